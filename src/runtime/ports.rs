//! Ports that the balancers listen on.

use std::collections::BTreeSet;

use super::Runtime;
use crate::client::ports::{PortInfo, Speaks};
use crate::model::id::TaskId;
use crate::model::port::Protocol;
use crate::network::table::Backend;
use crate::scheduler::routing;

fn takers<'a>(backends: impl Iterator<Item = &'a Backend>) -> u32 {
    let takers: BTreeSet<TaskId> = backends.filter(|backend| backend.weight > 0).map(|backend| backend.id).collect();
    u32::try_from(takers.len()).unwrap_or(u32::MAX)
}

impl Runtime {
    /// All of them, by number.
    pub(super) fn list_ports(&self) -> Vec<PortInfo> {
        let confirmed = self.confirmed.borrow().clone();
        let table = routing::table(&self.world());
        let published = table.listeners.iter().map(|(name, listener)| PortInfo {
            service: name.split_once('/').and_then(|(service, _)| service.parse().ok()),
            port: listener.port,
            address: listener.address,
            speaks: if listener.protocol == Protocol::Udp { Speaks::Udp } else { Speaks::Tcp },
            serving: takers(listener.backends.iter()),
            problem: confirmed.failed.get(name).cloned(),
            flowed: confirmed.flowed.get(name).copied().unwrap_or_default(),
            name: name.clone(),
        });
        let fronts = table.fronts.iter().map(|(name, front)| PortInfo {
            service: None,
            port: front.port,
            address: front.address,
            speaks: if front.tls { Speaks::Https } else { Speaks::Http },
            serving: takers(front.backends()),
            problem: confirmed.failed.get(name).cloned(),
            flowed: confirmed.flowed.get(name).copied().unwrap_or_default(),
            name: name.clone(),
        });
        let mut all: Vec<PortInfo> = published.chain(fronts).collect();
        all.sort_by(|a, b| (a.port, a.speaks, &a.name).cmp(&(b.port, b.speaks, &b.name)));
        all
    }
}
