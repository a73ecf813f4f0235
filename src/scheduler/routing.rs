//! Who gets traffic: the balancer's table, made from the world.

use std::collections::{BTreeMap, BTreeSet};

use super::world::World;
use crate::model::check::OnFail;
use crate::model::native::{Handover, PublishMode};
use crate::model::node::NodeState;
use crate::model::port::Protocol;
use crate::model::release::ReleaseState;
use crate::model::route::RouteSpec;
use crate::model::service::Service;
use crate::model::task::{Health, Task, TaskState};
use crate::network::table::{Backend, Certificate, Front, Listener, Route, Table, Target};

/// The table for the world as it is.
pub fn table(world: &World) -> Table {
    let listeners = world.services.values().flat_map(|service| listeners(world, service)).collect();
    Table { listeners, fronts: fronts(world), ..Table::default() }
}

// Ports where HTTP is spoken. Certificates are named as their routes name them; whoever hands the table over reads them.
fn fronts(world: &World) -> BTreeMap<String, Front> {
    let mut fronts = BTreeMap::new();
    for (name, spec, to) in routes(world) {
        let number = spec.port_number();
        let front: &mut Front = fronts.entry(front_name(&spec)).or_insert_with(|| Front {
            address: spec.address,
            port: number,
            ..Front::default()
        });
        front.proxy |= spec.accept_proxy;
        front.tls |= spec.passthrough;
        if let Some(tls) = &spec.tls {
            front.tls = true;
            let same = |known: &&mut Certificate| known.chain == tls.certificate && known.key == tls.key;
            let host = spec.host.clone().unwrap_or_else(|| "*".into());
            match front.certificates.iter_mut().find(same) {
                Some(known) => _ = known.hosts.insert(host),
                None => front.certificates.push(Certificate {
                    hosts: [host].into(),
                    chain: tls.certificate.clone(),
                    key: tls.key.clone(),
                }),
            }
        }
        front.routes.push(Route { name, spec, to });
    }
    fronts
}

/// The name of the port that a route is listened for on: `80`, or with its address.
pub fn front_name(spec: &RouteSpec) -> String {
    match spec.address {
        None => spec.port_number().to_string(),
        Some(address) => std::net::SocketAddr::new(address, spec.port_number()).to_string(),
    }
}

/// A route's name, what it is described as, and who is behind it.
pub type Routed = (String, RouteSpec, Vec<Target>);

/// Every route: services' own as `SERVICE/NUMBER`, then those that stand for themselves.
pub fn routes(world: &World) -> impl Iterator<Item = Routed> + '_ {
    let own = world.services.values().flat_map(move |service| service_routes(world, service));
    let alone = world.routes.values().map(move |route| {
        let to = route.spec.to.iter().filter_map(|share| {
            let service = world.services.get(&share.service).filter(|service| has_routes(service))?;
            target(world, service, share.port.as_deref(), share.weight)
        });
        (route.name.to_string(), route.spec.clone(), to.collect())
    });
    own.chain(alone)
}

/// Every route's name and what it is described as.
pub fn described(world: &World) -> impl Iterator<Item = (String, &RouteSpec)> + '_ {
    let own = world.services.values().filter(|service| has_routes(service)).flat_map(|service| {
        let named = |(index, spec)| (route_name(service, index), spec);
        service.spec.routes.iter().enumerate().map(named)
    });
    own.chain(world.routes.values().map(|route| (route.name.to_string(), &route.spec)))
}

// What one of a service's own is called.
fn route_name(service: &Service, index: usize) -> String {
    format!("{}/{}", service.spec.name, index + 1)
}

/// A service's own routes.
pub fn service_routes<'a>(world: &'a World, service: &'a Service) -> impl Iterator<Item = Routed> + use<'a> {
    let routes = if has_routes(service) { &service.spec.routes[..] } else { &[] };
    routes.iter().enumerate().map(move |(index, spec)| {
        let to = match &spec.redirect {
            None => target(world, service, spec.port.as_deref(), 100),
            Some(_) => None,
        };
        (route_name(service, index), spec.clone(), to.into_iter().collect())
    })
}

// While another has its ports, or is to have them, nobody is led there by us.
fn has_routes(service: &Service) -> bool {
    !service.removing && !service.spec.engine_native && service.handover.as_ref().is_none_or(Handover::has_ports)
}

fn target(world: &World, service: &Service, port: Option<&str>, weight: u32) -> Option<Target> {
    let port = service.spec.routed_port(port).ok()?;
    Some(Target { service: service.spec.name.to_string(), weight, backends: backends(world, &service.spec.name, port) })
}

/// One service's listeners, by `service/port`.
pub fn listeners<'a>(world: &'a World, service: &'a Service) -> impl Iterator<Item = (String, Listener)> + use<'a> {
    let name = &service.spec.name;
    // While another has them, or is to have them, they are not ours to open.
    let has_ports = service.handover.as_ref().is_none_or(Handover::has_ports) && !service.spec.engine_native;
    let ports = service.spec.ports.iter().filter(move |(_, port)| has_ports && port.mode == PublishMode::Ingress);
    // As long as a replica has it on its host, nobody else opens it there.
    let held = held_by_replicas(world, service);
    let ports =
        ports.filter(move |(_, port)| !port.published.is_some_and(|number| held.contains(&(number, port.protocol))));
    let published = ports.filter_map(move |(port_name, port)| {
        let backends = backends(world, name, port_name);
        let listener = Listener {
            address: port.address,
            internal: false,
            port: port.published?,
            protocol: port.protocol,
            balance: port.balance,
            accept_proxy: port.accept_proxy,
            send_proxy: port.send_proxy,
            max_connections: port.max_connections,
            idle_timeout: port.idle_timeout,
            access_log: port.access_log,
            backends,
        };
        Some((format!("{name}/{port_name}"), listener))
    });
    published.chain(internal(world, service))
}

// At its own address, where it has one, under the numbers that its replicas have inside.
fn internal<'a>(world: &'a World, service: &'a Service) -> impl Iterator<Item = (String, Listener)> + use<'a> {
    let address = service.internal_address();
    let mut taken = BTreeSet::new();
    let named = service.spec.ports.iter().filter_map(move |(name, port)| {
        let number = port.container_port()?;
        // Published twice, it is one port all the same.
        taken.insert((number, port.protocol)).then_some((name, number, port))
    });
    address.into_iter().flat_map(move |address| {
        named.clone().map(move |(port_name, number, port)| {
            let listener = Listener {
                address: Some(address.into()),
                internal: true,
                port: number,
                protocol: port.protocol,
                balance: port.balance,
                send_proxy: port.send_proxy,
                idle_timeout: port.idle_timeout,
                access_log: port.access_log,
                backends: backends(world, &service.spec.name, port_name),
                ..Listener::default()
            };
            (format!("{}/{port_name}@internal", service.spec.name), listener)
        })
    })
}

// Ports of hosts that replicas of older revisions still have; nearly always none.
fn held_by_replicas(world: &World, service: &Service) -> BTreeSet<(u16, Protocol)> {
    let name = &service.spec.name;
    let had: BTreeMap<u32, Vec<(u16, Protocol)>> = world
        .revisions_of(name)
        .map(|revision| (revision.number, revision.spec.host_ports().collect()))
        .filter(|(_, ports): &(u32, Vec<(u16, Protocol)>)| !ports.is_empty())
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
    // A host that does not answer gets nothing, unless there is no other.
    let is_away = |task: &Task| {
        let node = task.node.as_ref().and_then(|node| world.nodes.get(node));
        node.is_some_and(|node| node.state == NodeState::Down)
    };
    let willing = |task: &Task| task.stop.is_none() && serves(world, task);
    let some_are_here = routed.iter().any(|task| willing(task) && !is_away(task));
    let takes = |task: &Task| willing(task) && !(some_are_here && is_away(task));
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
        .filter(|task| willing(task) || task.stop.is_some())
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

// A revision's percent, divided among its tasks, fine enough that shares among thousands are kept.
fn share(percent: u32, tasks: usize) -> u32 {
    percent.min(100) * 1_000_000 / u32::try_from(tasks).unwrap_or(u32::MAX).max(1)
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

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::model::node::Node;
    use crate::scheduler::world::Change;

    #[test]
    fn a_host_that_is_down_gets_nothing_unless_there_is_no_other() {
        let mut world = World::default();
        for (id, node) in [("01arz3ndektsv4rrffq69g5fa1", "n1"), ("01arz3ndektsv4rrffq69g5fa2", "n2")] {
            let task = serde_json::from_value(serde_json::json!({
                "id": id, "service": "web", "service_id": crate::model::id::ServiceId::numbered(1), "node": node,
                "slot": { "replica": 1 }, "revision": 1, "state": "running", "health": "none", "created_at": 0,
                "ports": { "http": format!("{node}:80") },
            }));
            world.apply(&Change::Task(Arc::new(task.unwrap())));
        }
        let weights = |world: &World| {
            let backends = backends(world, &"web".parse().unwrap(), "http");
            backends.into_iter().map(|backend| (backend.address, backend.weight)).collect::<BTreeMap<_, _>>()
        };
        let down = |ids: &[&str]| {
            ["n1", "n2"].map(|id| {
                let mut node = Node::new(id, id);
                node.state = if ids.contains(&id) { NodeState::Down } else { NodeState::Ready };
                Arc::new(node)
            })
        };
        let both = |one: u32, two: u32| BTreeMap::from([("n1:80".to_owned(), one), ("n2:80".to_owned(), two)]);
        world.set_nodes(down(&[]));
        assert_eq!(weights(&world), both(100, 100));
        world.set_nodes(down(&["n2"]));
        assert_eq!(weights(&world), both(100, 0));
        world.set_nodes(down(&["n1", "n2"]));
        assert_eq!(weights(&world), both(100, 100));
    }
}
