//! What the catalogue holds, and its indexes: each entry, each service and each list knows the change that it was last
//! part of, so that whoever waits for one is woken by nothing else.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::IpAddr;
use std::sync::Arc;

use super::entry::{CheckEntry, Found, InstanceEntry, NodeEntry};
use super::replica::Touched;
use super::{Queries, Topic};
use crate::model::catalog::{CatalogCheck, CatalogNode, Instance};

/// A name in small letters: names are the same whatever case they are written in, as in DNS.
pub type Key = Arc<str>;

/// Services that are gone and whose last change is still known.
const GONE: usize = 4096;

/// All of it.
#[derive(Debug, Default)]
pub struct State {
    /// The last change.
    pub index: u64,
    // What has no index of its own had none since then.
    base: u64,
    nodes: BTreeMap<Key, NodeEntry>,
    services: BTreeMap<Key, ServiceEntry>,
    gone: BTreeMap<u64, BTreeSet<Key>>,
    by_address: HashMap<IpAddr, BTreeSet<Place>>,
    nodes_index: u64,
    services_index: u64,
    checks_index: u64,
    pub(super) queries_index: u64,
    /// Prepared queries.
    pub queries: Queries,
}

/// A node, or an instance on it.
type Place = (Key, Option<Arc<str>>);

#[derive(Debug)]
struct ServiceEntry {
    name: Arc<str>,
    index: u64,
    instances: BTreeSet<(Key, Arc<str>)>,
}

/// In small letters.
pub fn key(name: &str) -> Key {
    name.to_lowercase().into()
}

impl State {
    /// Empty, with changes counted from `index` on.
    pub fn new(index: u64) -> Self {
        let index = index.max(1);
        State { index, base: index, nodes_index: index, services_index: index, checks_index: index, ..State::default() }
    }

    /// All nodes, by name.
    pub fn nodes(&self) -> impl Iterator<Item = &NodeEntry> {
        self.nodes.values()
    }

    /// One node.
    pub fn node(&self, name: &str) -> Option<&NodeEntry> {
        self.nodes.get(key(name).as_ref())
    }

    /// The node of this id.
    pub fn node_by_id(&self, id: &str) -> Option<&NodeEntry> {
        self.nodes.values().find(|entry| !entry.node.id.is_empty() && entry.node.id.eq_ignore_ascii_case(id))
    }

    /// Names of all services that have instances.
    pub fn services(&self) -> impl Iterator<Item = &Arc<str>> {
        self.services.values().filter(|entry| !entry.instances.is_empty()).map(|entry| &entry.name)
    }

    /// A service's instances, by node and id.
    pub fn instances(&self, service: &str) -> impl Iterator<Item = Found<'_>> {
        let entry = self.services.get(key(service).as_ref());
        entry.into_iter().flat_map(|entry| &entry.instances).filter_map(|(node, id)| {
            let node = self.nodes.get(node)?;
            Some(Found { node, entry: node.instances.get(id)? })
        })
    }

    /// One instance.
    pub fn instance(&self, node: &str, id: &str) -> Option<Found<'_>> {
        let node = self.node(node)?;
        Some(Found { node, entry: node.instances.get(id)? })
    }

    /// How many nodes, instances and checks there are.
    pub fn size(&self) -> usize {
        self.nodes.values().map(|entry| 1 + entry.instances.len() + entry.checks.len()).sum()
    }

    /// The nodes and instances at an address, by node and id.
    pub fn at(&self, address: IpAddr) -> impl Iterator<Item = (&NodeEntry, Option<&InstanceEntry>)> {
        self.by_address.get(&address).into_iter().flatten().filter_map(|(node, id)| {
            let node = self.nodes.get(node)?;
            match id {
                None => Some((node, None)),
                Some(id) => Some((node, Some(node.instances.get(id)?))),
            }
        })
    }

    /// The last change of what is waited for; it never goes back.
    pub fn index_of(&self, topic: &Topic) -> u64 {
        match topic {
            Topic::Nodes => self.nodes_index,
            Topic::Services => self.services_index,
            Topic::Checks => self.checks_index,
            Topic::Queries => self.queries_index.max(self.base),
            Topic::All => self.index,
            Topic::Node(name) => self.nodes.get(name).map_or(self.nodes_index, |entry| entry.index),
            Topic::Service(name) => self.services.get(name).map_or(self.base, |entry| entry.index),
        }
    }
}

/// One change, all or nothing: what it touches is told once it is over.
pub struct Draft<'a> {
    pub(super) state: &'a mut State,
    pub(super) touched: BTreeSet<Topic>,
    /// What has to be said to those who follow.
    pub(super) places: BTreeSet<Touched>,
}

impl<'a> Draft<'a> {
    /// Begins one.
    pub fn new(state: &'a mut State) -> Self {
        Draft { state, touched: BTreeSet::new(), places: BTreeSet::new() }
    }

    /// What stands so far.
    pub fn state(&self) -> &State {
        self.state
    }

    /// Ends it: what it has touched.
    pub fn end(self) -> (BTreeSet<Topic>, BTreeSet<Touched>) {
        if !self.touched.is_empty() {
            self.state.index += 1;
        }
        (self.touched, self.places)
    }

    // The number of this change.
    pub(super) fn number(&self) -> u64 {
        self.state.index + 1
    }

    fn touch_node(&mut self, node: &Key) {
        let number = self.number();
        if let Some(entry) = self.state.nodes.get_mut(node) {
            entry.index = number;
        }
        self.touched.insert(Topic::Node(node.clone()));
        self.touched.insert(Topic::All);
    }

    fn touch_list(&mut self, topic: Topic) {
        let number = self.number();
        match topic {
            Topic::Nodes => self.state.nodes_index = number,
            Topic::Services => self.state.services_index = number,
            _ => self.state.checks_index = number,
        }
        self.touched.insert(topic);
    }

    fn touch_service(&mut self, service: &Key) {
        let number = self.number();
        if let Some(entry) = self.state.services.get_mut(service) {
            entry.index = number;
        }
        self.touched.insert(Topic::Service(service.clone()));
    }

    // All that is on a node shows the node's own address and checks.
    fn touch_all_on(&mut self, node: &Key) {
        let services = self.state.nodes.get(node).into_iter().flat_map(|entry| entry.instances.values());
        let services: BTreeSet<Key> = services.map(|entry| key(&entry.instance.service)).collect();
        for service in services {
            self.touch_service(&service);
        }
    }

    /// Makes a node, or says it anew.
    pub fn put_node(&mut self, node: CatalogNode) {
        let (name, number) = (key(&node.name), self.number());
        let before = match self.state.nodes.get_mut(&name) {
            Some(entry) if *entry.node == node => return,
            Some(entry) => {
                entry.modified = number;
                Some(std::mem::replace(&mut entry.node, Arc::new(node.clone())))
            }
            None => {
                let entry = NodeEntry {
                    node: Arc::new(node.clone()),
                    instances: BTreeMap::new(),
                    checks: BTreeMap::new(),
                    about: BTreeMap::new(),
                    created: number,
                    modified: number,
                    index: number,
                };
                self.state.nodes.insert(name.clone(), entry);
                None
            }
        };
        if let Some(before) = before {
            self.state.lose(&before.address, &name, None);
        }
        self.state.gain(&node.address, &name, None);
        self.places.insert(Touched::Node(name.clone()));
        self.touch_node(&name);
        self.touch_list(Topic::Nodes);
        self.touch_all_on(&name);
    }

    /// Removes a node with all that is on it; false: there was none.
    pub fn remove_node(&mut self, node: &str) -> bool {
        let name = key(node);
        let Some(entry) = self.state.nodes.get(&name) else { return false };
        let (instances, had_checks) = (entry.instances.keys().cloned().collect::<Vec<_>>(), !entry.checks.is_empty());
        let address = entry.node.address.clone();
        for id in instances {
            self.remove_instance(node, &id);
        }
        if let Some(entry) = self.state.nodes.remove(&name) {
            self.places.extend(entry.checks.into_keys().map(|check| Touched::Check(name.clone(), check)));
        }
        self.places.insert(Touched::Node(name.clone()));
        self.state.lose(&address, &name, None);
        self.touch_node(&name);
        self.touch_list(Topic::Nodes);
        if had_checks {
            self.touch_list(Topic::Checks);
        }
        true
    }

    /// Makes an instance on a node that is there, or says it anew; false: there is no such node.
    pub fn put_instance(&mut self, node: &str, instance: Instance) -> bool {
        let (name, number) = (key(node), self.number());
        let Some(entry) = self.state.nodes.get_mut(&name) else { return false };
        let id: Arc<str> = instance.id.as_str().into();
        let service = key(&instance.service);
        let before = match entry.instances.get_mut(&id) {
            Some(known) if *known.instance == instance => return true,
            Some(known) => {
                known.modified = number;
                Some(std::mem::replace(&mut known.instance, Arc::new(instance.clone())))
            }
            None => {
                let made = InstanceEntry { instance: Arc::new(instance.clone()), created: number, modified: number };
                entry.instances.insert(id.clone(), made);
                None
            }
        };
        if let Some(before) = &before {
            self.state.lose(&before.address, &name, Some(&id));
            let old = key(&before.service);
            if old != service {
                self.leave(&old, &name, &id);
            }
        }
        self.state.gain(&instance.address, &name, Some(&id));
        let entry = self.state.services.entry(service.clone()).or_insert_with(|| ServiceEntry {
            name: instance.service.as_str().into(),
            index: number,
            instances: BTreeSet::new(),
        });
        // What was gone is back.
        if entry.instances.is_empty() {
            entry.name = instance.service.as_str().into();
            if let Some(names) = self.state.gone.get_mut(&entry.index) {
                names.remove(&service);
                if names.is_empty() {
                    self.state.gone.remove(&entry.index);
                }
            }
        }
        self.places.insert(Touched::Instance(name.clone(), id.clone()));
        entry.instances.insert((name.clone(), id));
        self.touch_service(&service);
        self.touch_node(&name);
        // The list of services shows names and tags.
        if before.is_none_or(|before| before.service != instance.service || before.tags != instance.tags) {
            self.touch_list(Topic::Services);
        }
        true
    }

    /// Removes an instance with its checks; false: there was none.
    pub fn remove_instance(&mut self, node: &str, id: &str) -> bool {
        let name = key(node);
        let Some(entry) = self.state.nodes.get_mut(&name) else { return false };
        let Some((id, known)) = entry.instances.remove_entry(id) else { return false };
        let checks = entry.about.remove(&*id).unwrap_or_default();
        for check in &checks {
            entry.checks.remove(check);
        }
        let lost_checks = !checks.is_empty();
        self.places.extend(checks.into_iter().map(|check| Touched::Check(name.clone(), check)));
        self.places.insert(Touched::Instance(name.clone(), id.clone()));
        self.state.lose(&known.instance.address, &name, Some(&id));
        self.leave(&key(&known.instance.service), &name, &id);
        self.touch_node(&name);
        self.touch_list(Topic::Services);
        if lost_checks {
            self.touch_list(Topic::Checks);
        }
        true
    }

    // A service without instances is remembered for its index, as long as there are not too many.
    fn leave(&mut self, service: &Key, node: &Key, id: &Arc<str>) {
        self.touch_service(service);
        let number = self.number();
        let Some(entry) = self.state.services.get_mut(service) else { return };
        entry.instances.remove(&(node.clone(), id.clone()));
        if !entry.instances.is_empty() {
            return;
        }
        let gone = &mut self.state.gone;
        gone.entry(number).or_default().insert(service.clone());
        while gone.values().map(BTreeSet::len).sum::<usize>() > GONE
            && let Some((index, names)) = gone.pop_first()
        {
            for name in names {
                self.state.services.remove(&name);
            }
            self.state.base = self.state.base.max(index);
        }
    }

    /// Makes a check on a node that is there, or says it anew; false: there is no such node, or no such instance.
    pub fn put_check(&mut self, node: &str, check: CatalogCheck) -> bool {
        let (name, number) = (key(node), self.number());
        let Some(entry) = self.state.nodes.get_mut(&name) else { return false };
        if !check.instance.is_empty() && !entry.instances.contains_key(check.instance.as_str()) {
            return false;
        }
        let id: Arc<str> = check.id.as_str().into();
        let place = Touched::Check(name.clone(), id.clone());
        let mut about = BTreeSet::from([check.instance.clone()]);
        match entry.checks.get_mut(&id) {
            Some(known) if *known.check == check => return true,
            // What it says is shown with the next change, and wakes nobody: it may say the time of day.
            Some(known) if CatalogCheck { output: known.check.output.clone(), ..check.clone() } == *known.check => {
                known.check = Arc::new(check);
                self.places.insert(place);
                return true;
            }
            Some(known) => {
                about.insert(known.check.instance.clone());
                known.modified = number;
                let before = std::mem::replace(&mut known.check, Arc::new(check));
                let now = known.check.instance.clone();
                if before.instance != now {
                    entry.drop_about(&before.instance, &id);
                    entry.put_about(&now, &id);
                }
            }
            None => {
                entry.put_about(&check.instance, &id);
                entry.checks.insert(id, CheckEntry { check: Arc::new(check), created: number, modified: number });
            }
        }
        self.places.insert(place);
        for instance in about {
            self.touch_checked(&name, &instance);
        }
        true
    }

    /// Removes a check; false: there was none.
    pub fn remove_check(&mut self, node: &str, id: &str) -> bool {
        let name = key(node);
        let Some(entry) = self.state.nodes.get_mut(&name) else { return false };
        let Some((id, known)) = entry.checks.remove_entry(id) else { return false };
        entry.drop_about(&known.check.instance, &id);
        self.places.insert(Touched::Check(name.clone(), id));
        self.touch_checked(&name, &known.check.instance);
        true
    }

    fn touch_checked(&mut self, node: &Key, instance: &str) {
        self.touch_node(node);
        self.touch_list(Topic::Checks);
        if instance.is_empty() {
            return self.touch_all_on(node);
        }
        let found = self.state.nodes.get(node).and_then(|entry| entry.instances.get(instance));
        if let Some(service) = found.map(|entry| key(&entry.instance.service)) {
            self.touch_service(&service);
        }
    }
}

impl State {
    fn gain(&mut self, address: &str, node: &Key, instance: Option<&Arc<str>>) {
        if let Ok(address) = address.parse::<IpAddr>() {
            self.by_address.entry(address).or_default().insert((node.clone(), instance.cloned()));
        }
    }

    fn lose(&mut self, address: &str, node: &Key, instance: Option<&Arc<str>>) {
        let Ok(address) = address.parse::<IpAddr>() else { return };
        if let Some(all) = self.by_address.get_mut(&address) {
            all.remove(&(node.clone(), instance.cloned()));
            if all.is_empty() {
                self.by_address.remove(&address);
            }
        }
    }
}
