//! Keeps the catalogue as the world says: hosts, and what Neap's own services run. A service of one port is there by its
//! name; of several, each as `NAME-PORT`, and the first of them (`http`, else one that is published) by the service's name
//! as well.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, PoisonError};

use imbl::OrdMap;
use tokio::sync::watch;

use super::Registry;
use super::records::is_neaps;
use crate::engines::registrator::own_words;
use crate::model::catalog::{
    CatalogCheck, CatalogNode, CheckStatus, Instance, MAX_ENTRIES, Origin, SERF_HEALTH, TaggedAddress,
};
use crate::model::id::{NodeId, TaskId, uuid_of};
use crate::model::name::Name;
use crate::model::node::{Node, NodeState};
use crate::model::port::PortSpec;
use crate::model::service::Service;
use crate::model::task::{Health, Task, TaskState};
use crate::network::catalog::{Draft, Key, key};
use crate::scheduler::world::World;

/// What was made of the world before.
pub struct Feeder {
    registry: Arc<Registry>,
    tasks: OrdMap<TaskId, Arc<Task>>,
    nodes: OrdMap<NodeId, Arc<Node>>,
    services: OrdMap<Name, Arc<Service>>,
    // What is in the catalogue of each task.
    own: BTreeMap<TaskId, Vec<(String, String)>>,
    // Tasks that are told to stop by now, whatever an older world says.
    withdrawn: BTreeSet<TaskId>,
    // Hosts whose containers are there again.
    settled: Vec<String>,
    // What whoever led before had of its tasks, until the world is known.
    left: Vec<(String, String)>,
}

/// One that several use.
pub type Shared = Arc<Mutex<Feeder>>;

/// An instance, where it is, and its check.
type Made = (String, Instance, Option<CatalogCheck>);

impl Feeder {
    /// Begins with nothing.
    pub fn new(registry: Arc<Registry>) -> Self {
        let left = registry.catalog.read(|state| {
            let all = state.nodes().flat_map(|entry| entry.instances.values().map(move |known| (entry, known)));
            let own = all.filter(|(_, known)| known.instance.origin == Origin::Task);
            own.map(|(entry, known)| (entry.node.name.clone(), known.instance.id.clone())).collect()
        });
        Feeder {
            services: OrdMap::new(),
            settled: Vec::new(),
            left,
            registry,
            tasks: OrdMap::new(),
            nodes: OrdMap::new(),
            own: BTreeMap::new(),
            withdrawn: BTreeSet::new(),
        }
    }

    /// Follows the world for as long as it is published; shared with whoever tells tasks to stop.
    pub fn spawn(mut self, mut seen: watch::Receiver<Arc<World>>) -> Shared {
        // Before anybody can ask: what was there before a restart is there at once.
        self.follow(&seen.borrow_and_update().clone());
        let shared: Shared = Arc::new(Mutex::new(self));
        let feeder = shared.clone();
        tokio::spawn(async move {
            while seen.changed().await.is_ok() {
                let world = seen.borrow_and_update().clone();
                feeder.lock().unwrap_or_else(PoisonError::into_inner).follow(&world);
            }
        });
        shared
    }

    /// Brings the catalogue to what the world is; what both have costs nothing.
    pub fn follow(&mut self, world: &World) {
        let catalog = self.registry.catalog.clone();
        catalog.change(|draft| {
            let moved = self.follow_nodes(world, draft);
            // A host of another name takes all along that is on it.
            let before = if moved { OrdMap::new() } else { std::mem::take(&mut self.tasks) };
            for (id, task) in world.tasks_since(&before) {
                match task {
                    Some(task) => self.put(world, task, draft),
                    None => {
                        self.withdrawn.remove(&id);
                        self.drop_task(&id, draft);
                    }
                }
            }
            self.follow_addresses(world, draft);
            if moved {
                // Nothing that is gone is told of then.
                let gone: Vec<TaskId> = self.own.keys().filter(|id| !world.tasks.contains_key(*id)).copied().collect();
                gone.iter().for_each(|id| self.drop_task(id, draft));
                self.withdrawn.retain(|id| world.tasks.contains_key(id));
            }
            self.tasks = world.tasks.clone();
            for (node, id) in std::mem::take(&mut self.left) {
                let is_there = self.own.values().flatten().any(|(on, own)| *on == node && *own == id);
                if !is_there {
                    self.drop_instance(&node, &id, draft);
                }
            }
        });
        for node in std::mem::take(&mut self.settled) {
            self.registry.run_all_of(&node);
        }
    }

    /// Takes a task out of the catalogue before it is told to stop.
    pub fn withdraw(&mut self, task: &TaskId) {
        if self.withdrawn.insert(*task) && self.own.contains_key(task) {
            let catalog = self.registry.catalog.clone();
            catalog.change(|draft| self.drop_task(task, draft));
        }
    }

    fn drop_task(&mut self, task: &TaskId, draft: &mut Draft) {
        for (node, id) in self.own.remove(task).unwrap_or_default() {
            self.drop_instance(&node, &id, draft);
        }
    }

    // With what clients have had checked of it.
    fn drop_instance(&self, node: &str, id: &str, draft: &mut Draft) {
        let checks = draft
            .state()
            .node(node)
            .map(|entry| entry.checks_of(id).map(|known| known.check.id.clone()).collect::<Vec<_>>());
        for check in checks.unwrap_or_default() {
            self.registry.halt(node, &check);
        }
        draft.remove_instance(node, id);
    }

    fn put(&mut self, world: &World, task: &Task, draft: &mut Draft) {
        let made = match self.withdrawn.contains(&task.id) {
            true => Vec::new(),
            false => instances(world, task),
        };
        let now: Vec<(String, String)> =
            made.iter().map(|(node, instance, _)| (node.clone(), instance.id.clone())).collect();
        let before = match now.is_empty() {
            true => self.own.remove(&task.id),
            false => self.own.insert(task.id, now.clone()),
        };
        for (node, id) in before.unwrap_or_default().into_iter().filter(|place| !now.contains(place)) {
            self.drop_instance(&node, &id, draft);
        }
        for (node, instance, check) in made {
            let id = instance.id.clone();
            draft.put_instance(&node, instance);
            match check {
                Some(check) => draft.put_check(&node, check),
                None => draft.remove_check(&node, &check_id(&id)),
            };
        }
    }

    // Services that got an address of their own, or gave it up: their replicas say which one it is.
    fn follow_addresses(&mut self, world: &World, draft: &mut Draft) {
        if self.services.ptr_eq(&world.services) {
            return;
        }
        let address = |services: &OrdMap<Name, Arc<Service>>, name: &Name| {
            services.get(name).and_then(|it| it.internal_address())
        };
        for name in world.services.values().map(|service| &service.spec.name) {
            if address(&self.services, name) != address(&world.services, name) {
                for task in world.tasks_of(name) {
                    self.put(world, task, draft);
                }
            }
        }
        self.services = world.services.clone();
    }

    // Whether a host has another name than before.
    fn follow_nodes(&mut self, world: &World, draft: &mut Draft) -> bool {
        if self.nodes.ptr_eq(&world.nodes) {
            return false;
        }
        let mut hosts: BTreeMap<Key, &Node> = BTreeMap::new();
        for node in world.nodes.values() {
            // A host that has left and come back has two entries of one name: the one that is there counts.
            let known = hosts.get(&key(&node.hostname));
            if known.is_none_or(|known| known.state == NodeState::Down) {
                hosts.insert(key(&node.hostname), node);
            }
        }
        for node in hosts.values() {
            let is_new = draft.state().node(&node.hostname).is_none();
            draft.put_node(catalog_node(node));
            draft.put_check(&node.hostname, serf_health(node.state));
            if is_new {
                self.settled.push(node.hostname.clone());
                self.registry.settle(draft, &node.hostname);
            }
        }
        let names = |nodes: &OrdMap<NodeId, Arc<Node>>| {
            nodes.iter().map(|(id, node)| (id.clone(), node.hostname.clone())).collect::<Vec<_>>()
        };
        let moved = names(&self.nodes) != names(&world.nodes);
        let now: BTreeSet<Key> = hosts.into_keys().collect();
        let mut known = self.registry.hosts.lock().unwrap_or_else(PoisonError::into_inner);
        for gone in known.difference(&now) {
            // What clients have registered there stays, as on a host that does not answer: it may come back.
            // Its containers have left with it; they come back with it.
            let containers = draft.state().node(gone).into_iter().flat_map(|entry| entry.instances.values());
            let containers = containers.filter(|known| known.instance.origin == Origin::Container);
            let containers: Vec<String> = containers.map(|known| known.instance.id.clone()).collect();
            containers.iter().for_each(|id| self.registry.drop_container(draft, gone, id));
            let is_used = draft.state().node(gone).is_some_and(|entry| {
                entry.instances.values().any(|known| !is_neaps(known.instance.origin))
                    || entry.checks.values().any(|known| !is_neaps(known.check.origin))
            });
            match is_used {
                true => draft.put_check(gone, serf_health(NodeState::Down)),
                false => draft.remove_node(gone),
            };
        }
        mark_lost(draft);
        *known = now;
        self.nodes = world.nodes.clone();
        moved
    }
}

/// Clients have registered there, before a restart perhaps, and nothing else is known of it.
pub fn mark_lost(draft: &mut Draft) {
    let lost = draft.state().nodes().filter(|entry| entry.node.address.is_empty());
    let lost: Vec<String> = lost.map(|entry| entry.node.name.clone()).collect();
    for node in lost {
        draft.put_check(&node, serf_health(NodeState::Down));
    }
}

fn serf_health(state: NodeState) -> CatalogCheck {
    let (status, output) = match state {
        NodeState::Ready => (CheckStatus::Passing, "Agent alive and reachable"),
        NodeState::Down => (CheckStatus::Critical, "Agent not live or unreachable"),
    };
    CatalogCheck {
        id: SERF_HEALTH.into(),
        name: "Serf Health Status".into(),
        status,
        output: output.into(),
        origin: Origin::Task,
        ..CatalogCheck::default()
    }
}

fn catalog_node(node: &Node) -> CatalogNode {
    let address = node.address.map_or_else(|| "127.0.0.1".to_owned(), |address| address.to_string());
    let labels = node.labels.iter().take(MAX_ENTRIES).map(|(key, value)| (key.clone(), value.clone()));
    CatalogNode {
        name: node.hostname.clone(),
        id: uuid_of(&node.id),
        tagged_addresses: [("lan", &address), ("wan", &address)].map(|(of, at)| (of.to_owned(), at.clone())).into(),
        address,
        meta: labels.collect(),
    }
}

fn check_id(instance: &str) -> String {
    format!("service:{instance}")
}

// What a task is in the catalogue: nothing unless it runs and is to go on.
fn instances(world: &World, task: &Task) -> Vec<Made> {
    if task.state != TaskState::Running || task.stop.is_some() || task.ports.is_empty() {
        return Vec::new();
    }
    let Some(revision) = world.revision(&task.service, task.revision) else { return Vec::new() };
    let ports = &revision.spec.ports;
    let node = world.hostname(task).to_owned();
    let id = task.id.to_string();
    // Two tasks of one slot are there at once while one takes the other's place.
    let label = format!("{}-{}", task.label(), &id[id.len() - 4..]);
    let main = main_port(task.ports.keys(), ports);
    let virtual_address = world.services.get(&task.service).and_then(|service| service.internal_address());
    let mut made = Vec::new();
    for (port, address) in &task.ports {
        let Some((address, number, is_udp)) = place(address) else { continue };
        // As Registrator's users say it of containers.
        let spec = &revision.spec;
        let pairs = spec.env.iter().chain(&spec.container_labels);
        let inside = ports.get(port).and_then(PortSpec::container_port);
        let words = own_words(pairs.map(|(key, value)| (key.as_str(), value.as_str())), inside, task.ports.len() > 1);
        if words.ignore {
            continue;
        }
        // In Consul's words a service's own address is its virtual one.
        let own =
            virtual_address.zip(inside).map(|(address, port)| TaggedAddress { address: address.to_string(), port });
        let mut names = Vec::new();
        if main.as_ref() == Some(port) {
            names.push(task.service.to_string());
        }
        if task.ports.len() > 1 {
            names.push(format!("{}-{port}", task.service));
        }
        names.extend(words.name.clone().filter(|name| !names.contains(name)));
        for service in names {
            let id = match service == task.service.as_str() {
                true => label.clone(),
                false if Some(&service) == words.name.as_ref() => format!("{label}:{port}:{service}"),
                false => format!("{label}:{port}"),
            };
            let check = (task.health != Health::None).then(|| health(task, &id));
            let mut tags = vec![port.clone()];
            if is_udp {
                tags.push("udp".into());
            }
            tags.extend(words.tags.iter().filter(|tag| **tag != *port && *tag != "udp").cloned());
            let mut meta = words.meta.clone();
            meta.insert("neap_service".into(), task.service.to_string());
            meta.insert("neap_revision".into(), task.revision.to_string());
            let instance = Instance {
                id,
                service,
                tags,
                address: address.clone(),
                port: number,
                meta,
                tagged_addresses: own.clone().map(|own| ("virtual".to_owned(), own)).into_iter().collect(),
                origin: Origin::Task,
                ..Instance::default()
            };
            made.push((node.clone(), instance, check));
        }
    }
    made
}

fn main_port<'a>(
    mut names: impl Iterator<Item = &'a String> + Clone,
    ports: &BTreeMap<String, PortSpec>,
) -> Option<String> {
    let all = names.clone();
    let is_published = |name: &&String| ports.get(name.as_str()).is_some_and(|port| port.published.is_some());
    let http = all.clone().find(|name| *name == "http");
    http.or_else(|| all.clone().find(is_published)).or_else(|| names.next()).cloned()
}

fn health(task: &Task, instance: &str) -> CatalogCheck {
    let (status, said) = match task.health {
        Health::Healthy | Health::None => (CheckStatus::Passing, "passes its check"),
        Health::Starting => (CheckStatus::Critical, "has not passed its check yet"),
        Health::Unhealthy => (CheckStatus::Critical, "fails its check"),
    };
    let mut check = CatalogCheck {
        id: check_id(instance),
        name: format!("Service '{}' check", task.service),
        instance: instance.to_owned(),
        status,
        origin: Origin::Task,
        ..CatalogCheck::default()
    };
    check.say(task.reason.as_deref().unwrap_or(said));
    check
}

// `127.0.0.1:80`, `[::1]:80`, `10.0.0.1:53/udp`.
fn place(text: &str) -> Option<(String, u16, bool)> {
    let (text, is_udp) = text.strip_suffix("/udp").map_or((text, false), |text| (text, true));
    let (address, port) = text.rsplit_once(':')?;
    let address = address.trim_start_matches('[').trim_end_matches(']');
    Some((address.to_owned(), port.parse().ok()?, is_udp))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_of_ports() {
        assert_eq!(place("127.0.0.1:80"), Some(("127.0.0.1".into(), 80, false)));
        assert_eq!(place("[2001:db8::1]:53/udp"), Some(("2001:db8::1".into(), 53, true)));
        assert_eq!(place("nothing"), None);
    }

    #[test]
    fn the_port_that_a_service_is_known_by() {
        let published = PortSpec { published: Some(80), ..PortSpec::default() };
        let ports = |names: &[(&str, bool)]| {
            let spec = |is: bool| if is { published } else { PortSpec::default() };
            names.iter().map(|(name, is)| ((*name).to_owned(), spec(*is))).collect::<BTreeMap<_, _>>()
        };
        let main = |names: &[(&str, bool)]| main_port(ports(names).keys(), &ports(names));
        assert_eq!(main(&[("admin", true), ("http", false)]).as_deref(), Some("http"));
        assert_eq!(main(&[("admin", false), ("web", true)]).as_deref(), Some("web"));
        assert_eq!(main(&[("admin", false), ("web", false)]).as_deref(), Some("admin"));
        assert_eq!(main(&[]), None);
    }
}
