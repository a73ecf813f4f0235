//! Rebalancing: what moves is found where scripts may take their time, and marked by one command.

use super::{Runtime, commands};
use crate::model::plan::{Rebalance, Rebalanced};
use crate::model::{Error, Result};
use crate::scheduler::rebalance::{self, Moved};
use crate::script::host::Scripts;

impl Runtime {
    pub(super) async fn move_tasks(&self, name: &str, ask: Rebalance) -> Result<Rebalanced> {
        let world = self.world();
        let service = world.services.get(name).cloned().ok_or_else(|| commands::missing(&world, name))?;
        if !ask.min_gain.is_finite() || ask.min_gain < 0.0 {
            return Err(Error::invalid(service.spec.subject(), "min_gain is not a number from 0 up"));
        }
        if ask.cancel {
            let service = service.clone();
            let of = service.spec.name.clone();
            self.command(move |draft, _| {
                rebalance::cancel(draft, &service);
                Ok(())
            })
            .await?;
            return Ok(Rebalanced { service: of, moves: Vec::new() });
        }
        let (parts, asked) = (self.parts.clone(), service.clone());
        let find = move || rebalance::moves(&world, &asked, &ask, &mut Scripts::new(&parts.host));
        let moves: Vec<Moved> = self.parts.aside("rebalance", find).await?;
        let told = moves.iter().map(|moved| moved.told.clone()).collect();
        if !ask.dry_run && !moves.is_empty() {
            let service = service.clone();
            self.command(move |draft, _| rebalance::begin(draft, &service, &ask, &moves)).await?;
        }
        Ok(Rebalanced { service: service.spec.name.clone(), moves: told })
    }
}
