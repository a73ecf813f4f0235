//! A service as people ask for it.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use crate::client::ServiceStatus;
use crate::model::id::TaskId;
use crate::model::route::RouteSpec;
use crate::model::service::{Mode, Service};
use crate::model::task::Task;
use crate::network::table::{Carried, Flowed, Front, Listener, Passed};
use crate::scheduler::world::World;
use crate::scheduler::{routing, slots};

/// What the balancer has confirmed.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Confirmed {
    /// Whether it has confirmed anything yet to this daemon.
    pub heard: bool,
    /// Nodes whose balancer cannot be asked, and may have an older table.
    pub silent: BTreeSet<String>,
    /// Listeners that new connections follow.
    pub listeners: Arc<BTreeMap<String, Listener>>,
    /// Those that could not be opened, and why.
    pub failed: BTreeMap<String, String>,
    /// What has gone by routes.
    pub passed: Arc<BTreeMap<String, Passed>>,
    /// What has gone by ports.
    pub flowed: Arc<BTreeMap<String, Flowed>>,
    /// What has gone to replicas by routes and ports.
    pub carried: Arc<BTreeMap<TaskId, Carried>>,
    /// Routes with a certificate that cannot be used, and why.
    pub unread: Arc<BTreeMap<String, String>>,
    /// Ports where HTTP is spoken, as they are followed.
    pub fronts: Arc<BTreeMap<String, Front>>,
    /// Why it has confirmed nothing, if it has not.
    pub trouble: Option<String>,
}

impl Confirmed {
    /// Why a route is not followed as it should be.
    pub fn route_problem(&self, name: &str, spec: &RouteSpec) -> Option<String> {
        self.failed.get(&routing::front_name(spec)).or_else(|| self.unread.get(name)).cloned()
    }

    /// Whether every balancer that is heard of follows a route as it is, or cannot.
    pub fn follows(&self, (name, spec, to): &routing::Routed) -> bool {
        let front = routing::front_name(spec);
        let known = self.fronts.get(&front).and_then(|front| front.routes.iter().find(|route| route.name == *name));
        self.failed.contains_key(&front) || known.is_some_and(|known| known.spec == *spec && known.to == *to)
    }

    // A published port that does not lead where it should yet; nobody is told that all is well before none is left.
    fn lacks(&self, world: &World, service: &Service) -> Option<String> {
        let lacks = |(key, wanted): &(String, Listener)| {
            !self.failed.contains_key(key) && self.listeners.get(key) != Some(wanted)
        };
        let listener = routing::listeners(world, service).find(lacks).map(|(key, _)| format!("port {key}"));
        listener.or_else(|| {
            routing::service_routes(world, service).find(|route| !self.follows(route)).map(|(_, spec, _)| spec.shown())
        })
    }
}

/// Everything about `service`.
pub fn of(world: &World, service: &Service, confirmed: &Confirmed) -> ServiceStatus {
    let mut status = of_tasks(world, service, confirmed);
    if service.spec.engine_native {
        add_native(world, service, &mut status);
    }
    status
}

// As the Swarm has it.
fn add_native(world: &World, service: &Service, status: &mut ServiceStatus) {
    let name = service.spec.name.as_str();
    status.settled = false;
    let Some(native) = world.natives.as_ref().and_then(|natives| natives.get(name)) else { return };
    // A Swarm counts the tasks of a global service only once it has made them.
    let nodes = match service.spec.mode {
        Mode::Global => world.nodes.values().filter(|node| super::handover::suits(&service.spec, node)).count(),
        Mode::Replicated => 0,
    };
    let nodes = u32::try_from(nodes).unwrap_or(u32::MAX);
    (status.desired, status.healthy) = (native.desired.max(nodes), native.running);
    let revision = world.revision(&service.spec.name, service.active);
    let wanted =
        revision.map(|revision| super::native::mark(service, revision, &super::native::described(service, revision)));
    let is_it = wanted.is_some() && native.mark == wanted;
    status.settled = is_it && !service.removing && status.healthy >= status.desired && !native.is_updating();
    let mut shown = native.clone();
    // What became of another description says nothing of this one.
    shown.refused = shown.refused.filter(|(mark, _)| Some(mark) == wanted.as_ref());
    if !is_it && shown.refused.is_none() {
        (shown.update, shown.reason) = (None, None);
    }
    status.native = Some(shown);
}

fn of_tasks(world: &World, service: &Service, confirmed: &Confirmed) -> ServiceStatus {
    let name = &service.spec.name;
    let desired = slots::desired(world, service);
    let by_slot = slots::by_slot(world, service);
    let healthy = desired.iter().filter(|slot| {
        let revision = world.revision_for(service, slot);
        by_slot.get(slot).and_then(|tasks| tasks.good(world, service, revision)).is_some_and(|task| task.is_healthy())
    });
    let given_up = desired.iter().find_map(|slot| {
        let (tasks, revision) = (by_slot.get(slot)?, world.revision_for(service, slot));
        let over = tasks.is_over(service, revision) && !tasks.is_complete(service, revision);
        let last = tasks.last(service, revision).filter(|_| over)?;
        Some(format!("{}: {}", last.label(), last.reason.as_deref().unwrap_or(last.state.as_str())))
    });
    let completed = desired.iter().filter(|slot| {
        let revision = world.revision_for(service, slot);
        by_slot.get(slot).is_some_and(|tasks| tasks.is_complete(service, revision))
    });
    let count = |n: usize| u32::try_from(n).unwrap_or(u32::MAX);
    let prefix = format!("{name}/");
    let own = confirmed.failed.iter().filter(|(key, _)| key.starts_with(&prefix)).map(|(_, why)| why.clone());
    let fronts = routing::service_routes(world, service);
    let fronts = fronts.filter_map(|(name, spec, _)| confirmed.route_problem(&name, &spec));
    let failures: Vec<String> = own.chain(fronts).collect();
    let lacking = confirmed.lacks(world, service);
    let hostname = |id: &crate::model::id::NodeId| Some(world.nodes.get(id)?.hostname.clone());
    let nodes = world.tasks_of(name).filter_map(|task| task.node.as_ref());
    ServiceStatus {
        nodes: nodes.filter_map(|id| Some((id.to_string(), hostname(id)?))).collect(),
        release: world.releases.get(name).map(|release| (**release).clone()),
        tasks: world.tasks_of(name).map(|task| Task::clone(task)).collect(),
        desired: count(desired.len()),
        healthy: count(healthy.count()),
        completed: count(completed.count()),
        given_up,
        half_way: slots::is_half_way(world, service),
        settled: !service.removing
            && world.open_release(name).is_none()
            && service.open_handover().is_none()
            && slots::settled(world, service)
            && failures.is_empty()
            && lacking.is_none(),
        service: service.clone(),
        native: None,
        port_failures: failures,
        ports_pending: lacking.and_then(|key| Some(format!("{key}: {}", confirmed.trouble.as_ref()?))),
    }
}
