//! Several changes of the catalogue, all or nothing: made in a copy of the nodes that they have to do with, written down in one
//! commit, and known in one step.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::Registry;
use super::records::{Gone, Record, carry, few, is_neaps, only, ours_only, owned, record_key, removals, room};
use crate::model::catalog::{CatalogCheck, CatalogNode, Instance};
use crate::model::query::Query;
use crate::model::{Error, Kind, Result};
use crate::network::catalog::{CheckEntry, InstanceEntry, Key, NodeEntry, State, key};
use crate::store::Write;

/// What is done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verb {
    /// Reads it; it has to be there.
    Get,
    /// Sets it.
    Set,
    /// Sets it if its last change was `index`; 0: if it is not there.
    Cas,
    /// Removes it.
    Delete,
    /// Removes it if its last change was `index`.
    DeleteCas,
}

impl Verb {
    /// By Consul's word for it.
    pub fn parse(word: &str) -> Option<Self> {
        Some(match word {
            "get" => Verb::Get,
            "set" => Verb::Set,
            "cas" => Verb::Cas,
            "delete" => Verb::Delete,
            "delete-cas" => Verb::DeleteCas,
            _ => return None,
        })
    }
}

/// What it is done to.
#[derive(Debug, Clone)]
pub enum About {
    /// A node, by its name or its id.
    Node(CatalogNode),
    /// An instance, by its id, on this node.
    Instance(String, Instance),
    /// A check, by its id, on this node.
    Check(String, CatalogCheck),
}

/// One change, or one look.
#[derive(Debug, Clone)]
pub struct Op {
    /// What is done.
    pub verb: Verb,
    /// The change that is expected to be its last.
    pub index: u64,
    /// To what.
    pub about: About,
}

/// What was read or written.
#[derive(Debug, Clone)]
pub enum Told {
    /// A node.
    Node(NodeEntry),
    /// An instance of this id, on that node.
    Instance(NodeEntry, Arc<str>),
    /// A check of this id, on that node.
    Check(NodeEntry, Arc<str>),
}

/// What a transaction comes to, before it is written down.
pub struct Prepared {
    /// What has to be written down, in one commit with whatever else is to be.
    pub writes: Vec<Write>,
    /// What did not hold, by the number of the operation; then nothing is to be written.
    pub refused: Vec<(usize, String)>,
    told: Vec<(usize, Told)>,
    records: Vec<Record>,
    gone: Vec<Gone>,
}

/// Nobody else changes the catalogue while this is held.
pub struct Alone<'a> {
    registry: &'a Arc<Registry>,
    _writing: tokio::sync::MutexGuard<'a, ()>,
}

// The nodes that a transaction has to do with, as they are to be.
#[derive(Default)]
struct Copy {
    nodes: BTreeMap<Key, Option<NodeEntry>>,
    // The last operation that had to do with each.
    last: BTreeMap<Key, usize>,
}

impl Registry {
    /// For a transaction.
    pub async fn alone(self: &Arc<Self>) -> Alone<'_> {
        Alone { registry: self, _writing: self.writing.lock().await }
    }
}

impl Alone<'_> {
    /// Looks what the operations come to.
    pub fn prepare(&self, ops: Vec<(usize, Op)>) -> Prepared {
        let mut copy = Copy::default();
        let (mut told, mut refused) = (Vec::new(), Vec::new());
        for (number, op) in ops {
            let (About::Node(CatalogNode { name, .. }) | About::Instance(name, _) | About::Check(name, _)) = &op.about;
            copy.last.insert(key(name), number);
            match copy.apply(self.registry, op) {
                Ok(Some(read)) => told.push((number, read)),
                Ok(None) => {}
                Err(error) => refused.push((number, error.to_string())),
            }
        }
        let mut prepared = Prepared { writes: Vec::new(), refused, told, records: Vec::new(), gone: Vec::new() };
        if prepared.refused.is_empty() {
            self.registry.catalog.read(|state| {
                for (name, after) in &copy.nodes {
                    prepared.differences(state.node(name), after.as_ref());
                }
            });
            for record in prepared.records.iter().filter(|record| record.is_kept()) {
                match record.checked() {
                    Ok(write) => prepared.writes.push(write),
                    Err(error) => {
                        let number = copy.last.get(&key(record.node())).copied().unwrap_or_default();
                        prepared.refused.push((number, error.to_string()));
                    }
                }
            }
        }
        prepared
    }

    /// Whether it is nothing that the cluster knows of itself.
    pub fn may_restore(&self, record: &Record) -> bool {
        match record {
            Record::Node(node) => !self.registry.is_host(&node.name),
            Record::Instance { node, instance, .. } => self.registry.catalog.read(|state| {
                state.instance(node, &instance.id).is_none_or(|found| !is_neaps(found.entry.instance.origin))
            }),
            Record::Check { .. } => true,
        }
    }

    /// What was written down is all that clients have registered.
    pub fn restored(self, records: Vec<Record>, queries: Vec<Query>) {
        self.registry.replace(records, queries);
    }

    /// Makes known what was written down; what was read or written, by the number of the operation, and the last change.
    pub fn done(self, prepared: Prepared) -> (Vec<(usize, Told)>, u64) {
        let Prepared { mut told, records, gone, .. } = prepared;
        self.registry.take_in(records, gone);
        self.registry.catalog.read(|state| {
            told.iter_mut().for_each(|(_, told)| told.settle(state));
            (told, state.index)
        })
    }
}

impl Told {
    fn of(entry: &NodeEntry, instance: Option<&str>, check: Option<&str>) -> NodeEntry {
        let (mut instances, mut checks) = (BTreeMap::new(), BTreeMap::new());
        if let Some((id, known)) = check.and_then(|id| entry.checks.get_key_value(id)) {
            checks.insert(id.clone(), known.clone());
        }
        let about = checks.values().next().map(|known: &CheckEntry| known.check.instance.as_str());
        if let Some((id, known)) = instance.or(about).and_then(|id| entry.instances.get_key_value(id)) {
            instances.insert(id.clone(), known.clone());
        }
        NodeEntry::new(entry.node.clone(), (entry.created, entry.modified), instances, checks)
    }

    // What was written has its numbers now.
    fn settle(&mut self, state: &State) {
        let (entry, is_new) = match self {
            Told::Node(entry) => (&*entry, entry.modified == 0),
            Told::Instance(entry, id) => (&*entry, entry.instances.get(id).is_some_and(|known| known.modified == 0)),
            Told::Check(entry, id) => (&*entry, entry.checks.get(id).is_some_and(|known| known.modified == 0)),
        };
        // It may be gone again, by a later operation.
        let Some(now) = state.node(&entry.node.name).filter(|_| is_new) else { return };
        match self {
            Told::Node(entry) => *entry = Told::of(now, None, None),
            Told::Instance(entry, id) if now.instances.contains_key(id) => *entry = Told::of(now, Some(id), None),
            Told::Check(entry, id) if now.checks.contains_key(id) => *entry = Told::of(now, None, Some(id)),
            _ => {}
        }
    }
}

impl Prepared {
    fn differences(&mut self, before: Option<&NodeEntry>, after: Option<&NodeEntry>) {
        let (before, after) = match (before, after) {
            (None, None) => return,
            (Some(before), None) => {
                self.writes.extend(removals(before));
                self.gone.push(Gone::Node(before.node.name.clone()));
                return;
            }
            (before, Some(after)) => (before, after),
        };
        let name = &after.node.name;
        if before.is_none_or(|before| before.node != after.node) {
            self.records.push(Record::Node(CatalogNode::clone(&after.node)));
        }
        let of = |entry: &NodeEntry, id: &str| -> Vec<Arc<CatalogCheck>> {
            entry.checks_of(id).map(|known| known.check.clone()).collect()
        };
        for (id, known) in &after.instances {
            let checks = of(after, id);
            let is_same = before.is_some_and(|before| {
                let instance = before.instances.get(id).map(|known| &known.instance);
                instance == Some(&known.instance) && of(before, id) == checks
            });
            if !is_same && !is_neaps(known.instance.origin) {
                let (node, instance) = (name.clone(), Instance::clone(&known.instance));
                let checks = checks.iter().map(|check| CatalogCheck::clone(check)).collect();
                self.records.push(Record::Instance { node, instance, checks });
            }
        }
        // Those of the node, and those about what is Neap's own, are records of their own.
        let is_apart = |entry: &NodeEntry, known: &CheckEntry| {
            let about = entry.instances.get(known.check.instance.as_str());
            about.is_none_or(|about| is_neaps(about.instance.origin))
        };
        for (id, known) in after.checks.iter().filter(|(_, known)| is_apart(after, known)) {
            let was = before.and_then(|before| before.checks.get(id));
            if was.is_none_or(|was| was.check != known.check) {
                let check = CatalogCheck::clone(&known.check);
                self.records.push(Record::Check { node: name.clone(), check });
            }
        }
        for id in before.iter().flat_map(|before| before.instances.keys()) {
            if !after.instances.contains_key(id) {
                self.writes.push(Write::remove(record_key("instance", name, id)));
                self.gone.push(Gone::Instance(name.clone(), id.to_string()));
            }
        }
        if let Some(before) = before {
            for (id, _) in before.checks.iter().filter(|(_, known)| is_apart(before, known)) {
                let now = after.checks.get(id);
                if now.is_none_or(|now| !is_apart(after, now)) {
                    self.writes.push(Write::remove(record_key("check", name, id)));
                }
                if now.is_none() {
                    self.gone.push(Gone::Check(name.clone(), id.to_string()));
                }
            }
        }
    }
}

impl Copy {
    // As it is after what was done so far; none: there is none.
    fn node(&mut self, registry: &Registry, name: &str) -> &mut Option<NodeEntry> {
        let entry = || registry.catalog.read(|state| state.node(name).cloned());
        self.nodes.entry(key(name)).or_insert_with(entry)
    }

    fn present(&mut self, registry: &Registry, name: &str) -> Result<&mut NodeEntry> {
        self.node(registry, name).as_mut().ok_or_else(|| Error::not_found(format!("node \"{name:.70}\"")))
    }

    // The node of this id, as it is after what was done so far.
    fn of_id(&self, registry: &Registry, id: &str) -> Option<String> {
        if id.is_empty() {
            return None;
        }
        let mut own = self.nodes.values().flatten().map(|entry| &entry.node);
        if let Some(own) = own.find(|node| node.id.eq_ignore_ascii_case(id)) {
            return Some(own.name.clone());
        }
        let known = registry.catalog.read(|state| Some(state.node_by_id(id)?.node.name.clone()));
        known.filter(|name| !self.nodes.contains_key(&key(name)))
    }

    fn apply(&mut self, registry: &Registry, op: Op) -> Result<Option<Told>> {
        match op.about {
            About::Node(node) => self.node_op(registry, op.verb, op.index, node),
            About::Instance(node, instance) => self
                .present(registry, &node)
                .and_then(|entry| instance_op(registry, entry, op.verb, op.index, instance)),
            About::Check(node, check) => {
                self.present(registry, &node).and_then(|entry| check_op(registry, entry, op.verb, op.index, check))
            }
        }
    }

    fn node_op(&mut self, registry: &Registry, verb: Verb, index: u64, mut node: CatalogNode) -> Result<Option<Told>> {
        let other = self.of_id(registry, &node.id);
        if node.name.is_empty() {
            node.name = other.clone().ok_or_else(|| Error::not_found(format!("node id \"{:.70}\"", node.id)))?;
        }
        let subject = format!("node \"{:.70}\"", node.name);
        let is_host = registry.is_host(&node.name);
        let entry = self.node(registry, &node.name);
        let modified = entry.as_ref().map(|entry| entry.modified);
        if !meets(verb, index, modified, &subject)? {
            return Ok(None);
        }
        match verb {
            Verb::Get => {}
            Verb::Delete | Verb::DeleteCas if is_host => {
                return Err(Error::new(Kind::Conflict, subject, "is a host of the cluster"));
            }
            Verb::Delete | Verb::DeleteCas => {
                *entry = None;
                return Ok(None);
            }
            // A host is as the cluster knows it.
            Verb::Set | Verb::Cas if is_host => {}
            Verb::Set | Verb::Cas => {
                node.check()?;
                if node.address.is_empty() {
                    return Err(Error::invalid(subject, "has no address"));
                }
                if let Some(other) = other.filter(|other| !other.eq_ignore_ascii_case(&node.name)) {
                    return Err(Error::new(Kind::Conflict, subject, format!("has the id of node \"{other:.70}\"")));
                }
                match entry {
                    Some(entry) if *entry.node == node => {}
                    Some(entry) => (entry.node, entry.modified) = (Arc::new(node), 0),
                    None => {
                        room(registry.catalog.read(State::size))?;
                        *entry = Some(NodeEntry::new(Arc::new(node), (0, 0), BTreeMap::new(), BTreeMap::new()));
                    }
                }
            }
        }
        Ok(entry.as_ref().map(|entry| Told::Node(Told::of(entry, None, None))))
    }
}

// Whether there is anything to be done, or an error where what is expected is not so. `modified`: the last change of what is
// there; 0: one of this very transaction, which has no number yet.
fn meets(verb: Verb, index: u64, modified: Option<u64>, subject: &str) -> Result<bool> {
    let stale = || Err(Error::new(Kind::Conflict, subject, "index is stale"));
    match (verb, modified) {
        (Verb::Get, None) => Err(Error::not_found(subject)),
        (Verb::Delete | Verb::DeleteCas, None) => Ok(false),
        (Verb::Cas, None) if index == 0 => Ok(true),
        (Verb::Cas, None) => stale(),
        (Verb::Cas | Verb::DeleteCas, Some(modified)) if index == 0 || index != modified => stale(),
        _ => Ok(true),
    }
}

fn instance_op(
    registry: &Registry,
    entry: &mut NodeEntry,
    verb: Verb,
    index: u64,
    instance: Instance,
) -> Result<Option<Told>> {
    let id: Arc<str> = instance.id.as_str().into();
    let known = entry.instances.get(&id).cloned();
    let subject = format!("service id \"{id:.70}\"");
    if !meets(verb, index, known.as_ref().map(|known| known.modified), &subject)? {
        return Ok(None);
    }
    match (verb, known) {
        (Verb::Delete | Verb::DeleteCas, Some(known)) => {
            ours_only(&known.instance)?;
            entry.take_instance(&id);
            return Ok(None);
        }
        (Verb::Set | Verb::Cas, known) => {
            instance.check()?;
            match &known {
                Some(known) => owned(&known.instance, &instance)?,
                None => room(registry.catalog.read(State::size))?,
            }
            if known.as_ref().is_none_or(|known| *known.instance != instance) {
                let created = known.map_or(0, |known| known.created);
                entry.put_instance(InstanceEntry { instance: Arc::new(instance), created, modified: 0 });
            }
        }
        _ => {}
    }
    Ok(Some(Told::Instance(Told::of(entry, Some(&id), None), id)))
}

fn check_op(
    registry: &Registry,
    entry: &mut NodeEntry,
    verb: Verb,
    index: u64,
    mut check: CatalogCheck,
) -> Result<Option<Told>> {
    let id: Arc<str> = check.id.as_str().into();
    let known = entry.checks.get(&id).cloned();
    let subject = format!("check \"{id:.70}\"");
    if !meets(verb, index, known.as_ref().map(|known| known.modified), &subject)? {
        return Ok(None);
    }
    if let Some(known) = known.as_ref().filter(|known| verb != Verb::Get && is_neaps(known.check.origin)) {
        return Err(Error::new(Kind::Conflict, format!("check \"{:.70}\"", known.check.id), "is Neap's own"));
    }
    match verb {
        Verb::Get => {}
        Verb::Delete | Verb::DeleteCas => {
            entry.take_check(&id);
            return Ok(None);
        }
        Verb::Set | Verb::Cas => {
            check.check()?;
            if !check.instance.is_empty() && !entry.instances.contains_key(check.instance.as_str()) {
                return Err(Error::not_found(format!("service id \"{:.70}\"", check.instance)));
            }
            only(entry, &check, &check.instance)?;
            match &known {
                Some(known) => carry(&mut check, &known.check),
                None => room(registry.catalog.read(State::size))?,
            }
            if known.as_ref().is_none_or(|known| *known.check != check) {
                let about = check.instance.clone();
                let created = known.map_or(0, |known| known.created);
                entry.put_check(CheckEntry { check: Arc::new(check), created, modified: 0 });
                if !about.is_empty() {
                    few(&about, entry.checks_of(&about).count())?;
                }
            }
        }
    }
    Ok(Some(Told::Check(Told::of(entry, None, Some(&id)), id)))
}
