//! Who gets traffic: the balancer's table, made from the world.

use std::collections::{BTreeMap, BTreeSet};

use super::world::World;
use crate::model::check::OnFail;
use crate::model::native::{Handover, PublishMode};
use crate::model::port::Protocol;
use crate::model::release::ReleaseState;
use crate::model::service::{Service, ServiceSpec};
use crate::model::task::{Health, Task, TaskState};
use crate::network::table::{Backend, Listener, Table};

/// The table for the world as it is.
pub fn table(world: &World) -> Table {
    let listeners = world.services.values().flat_map(|service| listeners(world, service)).collect();
    Table { version: 0, listeners }
}

/// One service's listeners, by `service/port`.
pub fn listeners<'a>(world: &'a World, service: &'a Service) -> impl Iterator<Item = (String, Listener)> + use<'a> {
    let name = &service.spec.name;
    // While another has them, or is to have them, they are not ours to open.
    let has_ports = service.handover.as_ref().is_none_or(Handover::has_ports) && !service.spec.engine_native;
    let ports = service.spec.ports.iter().filter(move |(_, port)| has_ports && port.mode == PublishMode::Ingress);
    // As long as a replica has it on its host, nobody else opens it there.
    let held = held_by_replicas(world, service);
    let ports = ports.filter(move |(_, port)| !port.published.is_some_and(|number| held.contains(&number)));
    ports.filter_map(move |(port_name, port)| {
        let backends = backends(world, name, port_name);
        let listener = Listener { address: port.address, port: port.published?, balance: port.balance, backends };
        Some((format!("{name}/{port_name}"), listener))
    })
}

// Ports of hosts that replicas of older revisions still have; nearly always none.
fn held_by_replicas(world: &World, service: &Service) -> BTreeSet<u16> {
    let name = &service.spec.name;
    let tcp = |spec: &ServiceSpec| {
        spec.host_ports().filter(|(_, protocol)| *protocol == Protocol::Tcp).map(|(port, _)| port).collect()
    };
    let had: BTreeMap<u32, Vec<u16>> = world
        .revisions_of(name)
        .map(|revision| (revision.number, tcp(&revision.spec)))
        .filter(|(_, ports): &(u32, Vec<u16>)| !ports.is_empty())
        .collect();
    if had.is_empty() {
        return BTreeSet::new();
    }
    let alive = world.tasks_of(name).filter(|task| task.node.is_some() && !task.state.is_final());
    alive.filter_map(|task| had.get(&task.revision)).flatten().copied().collect()
}

fn backends(world: &World, service: &crate::model::name::Name, port: &str) -> Vec<Backend> {
    let routed: Vec<_> = world
        .tasks_of(service)
        .filter(|task| task.ports.contains_key(port) && task.state == TaskState::Running)
        .collect();
    // One that was stopped half-way keeps its shares.
    let going = |state| !matches!(state, ReleaseState::Promoted | ReleaseState::RolledBack);
    let release = world.releases.get(service).filter(|release| going(release.state));
    let shares = release.and_then(|release| release.weight.map(|weight| (release.to, weight)));
    let takes = |task: &Task| task.stop.is_none() && serves(world, task);
    let count = |of: &dyn Fn(u32) -> bool| routed.iter().filter(|task| takes(task) && of(task.revision)).count();
    // A share for nobody would be connections refused: until both sides serve, all who serve share alike.
    let shares =
        shares.filter(|(to, _)| count(&|revision| revision == *to) > 0 && count(&|revision| revision != *to) > 0);
    let (new, old) = match shares {
        Some((to, _)) => (count(&|revision| revision == to), count(&|revision| revision != to)),
        None => (0, 0),
    };
    routed
        .iter()
        .filter(|task| takes(task) || task.stop.is_some())
        .map(|task| {
            let weight = match shares {
                _ if !takes(task) => 0,
                None => 100,
                Some((to, weight)) if task.revision == to => share(weight, new),
                Some((_, weight)) => share(100_u32.saturating_sub(weight), old),
            };
            Backend { id: task.id, address: task.ports[port].clone(), weight }
        })
        .collect()
}

// A revision's percent, divided among its tasks, in hundredths of a percent so that small shares survive.
fn share(percent: u32, tasks: usize) -> u32 {
    percent * 100 / u32::try_from(tasks).unwrap_or(u32::MAX)
}

fn serves(world: &World, task: &Task) -> bool {
    match task.health {
        Health::None | Health::Healthy => true,
        Health::Starting => false,
        Health::Unhealthy => {
            let revision = world.revision(&task.service, task.revision);
            let on_fail = revision.and_then(|revision| Some(revision.spec.check.as_ref()?.timing(None).on_fail));
            on_fail == Some(OnFail::None)
        }
    }
}
