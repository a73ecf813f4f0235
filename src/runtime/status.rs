//! A service as people ask for it.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::client::ServiceStatus;
use crate::model::service::Service;
use crate::model::task::Task;
use crate::network::table::Listener;
use crate::scheduler::world::World;
use crate::scheduler::{routing, slots};

/// What the balancer has confirmed.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Confirmed {
    /// Listeners that new connections follow.
    pub listeners: Arc<BTreeMap<String, Listener>>,
    /// Those that could not be opened, and why.
    pub failed: BTreeMap<String, String>,
}

impl Confirmed {
    // Whether published ports lead where they should; nobody is told that all is well before.
    fn covers(&self, world: &World, service: &Service) -> bool {
        routing::listeners(world, service).all(|(key, wanted)| self.listeners.get(&key) == Some(&wanted))
    }
}

/// Everything about `service`.
pub fn of(world: &World, service: &Service, confirmed: &Confirmed) -> ServiceStatus {
    let name = &service.spec.name;
    let desired = slots::desired(world, service);
    let by_slot = slots::by_slot(world, service);
    let healthy = desired.iter().filter(|slot| {
        let revision = world.revision_for(service, slot);
        by_slot.get(slot).and_then(|tasks| tasks.good(world, service, revision)).is_some_and(|task| task.is_healthy())
    });
    let count = |n: usize| u32::try_from(n).unwrap_or(u32::MAX);
    let prefix = format!("{name}/");
    let failures: Vec<String> =
        confirmed.failed.iter().filter(|(key, _)| key.starts_with(&prefix)).map(|(_, why)| why.clone()).collect();
    ServiceStatus {
        release: world.releases.get(name).map(|release| (**release).clone()),
        tasks: world.tasks_of(name).map(|task| Task::clone(task)).collect(),
        desired: count(desired.len()),
        healthy: count(healthy.count()),
        settled: !service.removing
            && world.open_release(name).is_none()
            && slots::settled(world, service)
            && failures.is_empty()
            && confirmed.covers(world, service),
        service: service.clone(),
        port_failures: failures,
    }
}
