//! Registrations as they are written down, and what is asked of them before.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::sync::Notify;

use super::feed::mark_lost;
use super::{Before, Registry, queries};
use crate::model::catalog::{CatalogCheck, CatalogNode, CheckKind, Instance, Origin, SERF_HEALTH};
use crate::model::clock::Clock;
use crate::model::id::sha256_hex;
use crate::model::query::Query;
use crate::model::{Error, Kind, Result};
use crate::network::Network;
use crate::network::catalog::{Catalog, Draft, Key, NodeEntry, State, key};
use crate::script::host::ScriptHost;
use crate::store::{Entry, Store, Write, decode, encode};

/// Where registrations are in the store.
pub const PREFIX: &str = "catalog/";
/// Where the number stands that no index of a daemon before has reached.
const FLOOR: &str = "catalog-floor";
/// How many changes are ahead of it.
const AHEAD: u64 = 1_000_000;
/// How often it is looked whether there is enough ahead of the index.
const LOOK: Duration = Duration::from_secs(60);
/// How long changes of checks are gathered before they are written down.
const GATHER: Duration = Duration::from_secs(1);
/// Nodes, instances and checks at most.
const MOST: usize = 300_000;
/// Largest record, in bytes: what its checks say may still be added.
const MAX_RECORD: usize = 500_000;
/// Checks of one instance at most.
const MOST_CHECKS: usize = 64;

/// What is written down of one registration.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Record {
    /// A node that clients have made.
    Node(CatalogNode),
    /// An instance with its checks.
    Instance { node: String, instance: Instance, checks: Vec<CatalogCheck> },
    /// A check of a node, or one of what is Neap's own.
    Check { node: String, check: CatalogCheck },
}

impl Record {
    /// Names are whatever clients say: a hash of them is a key.
    pub fn key(&self) -> String {
        match self {
            Record::Node(node) => record_key("node", &node.name, ""),
            Record::Instance { node, instance, .. } => record_key("instance", node, &instance.id),
            Record::Check { node, check } => record_key("check", node, &check.id),
        }
    }

    /// One that was kept elsewhere: an error unless clients may register it so.
    pub fn restored(entry: &Entry) -> Result<Self> {
        let record: Record = decode(&entry.key, &entry.value)?;
        record.valid()?;
        match record.key() == entry.key {
            true => Ok(record),
            false => Err(Error::invalid(format!("record \"{:.80}\"", entry.key), "is not of that key")),
        }
    }

    /// As it is written down.
    pub fn write(&self) -> Write {
        Write::put(self.key(), encode(self))
    }

    /// An error where it is too large.
    pub fn checked(&self) -> Result<Write> {
        let write = self.write();
        match write.value.as_ref().map_or(0, Vec::len) {
            0..=MAX_RECORD => Ok(write),
            size => {
                let message = format!("comes to {size} bytes with its checks; {MAX_RECORD} are allowed");
                Err(Error::new(Kind::Exhausted, "registration", message))
            }
        }
    }

    /// The node that it is of.
    pub fn node(&self) -> &str {
        match self {
            Record::Node(node) => &node.name,
            Record::Instance { node, .. } | Record::Check { node, .. } => node,
        }
    }

    fn valid(&self) -> Result<()> {
        match self {
            Record::Node(node) => node.check(),
            Record::Instance { instance, checks, .. } => {
                few(&instance.id, checks.len())?;
                checks.iter().try_for_each(CatalogCheck::check)?;
                instance.check()
            }
            Record::Check { check, .. } => check.check(),
        }
    }

    /// Whether a host runs a command for it.
    pub fn runs_commands(&self) -> bool {
        let is_command = |check: &CatalogCheck| {
            let kind = check.run.as_ref().map(|run| &run.kind);
            matches!(kind, Some(CheckKind::Command(_) | CheckKind::Container { .. }))
        };
        match self {
            Record::Node(_) => false,
            Record::Instance { checks, .. } => checks.iter().any(is_command),
            Record::Check { check, .. } => is_command(check),
        }
    }

    /// What belongs to a task or a container is not written down: it comes anew with those.
    pub fn is_kept(&self) -> bool {
        match self {
            Record::Node(_) => true,
            Record::Instance { instance, .. } => !is_neaps(instance.origin),
            Record::Check { check, .. } => check.instance.is_empty(),
        }
    }
}

/// What is no more.
pub enum Gone {
    /// A node with all that is on it.
    Node(String),
    /// An instance with its checks, by node and id.
    Instance(String, String),
    /// A check, by node and id.
    Check(String, String),
}

impl Gone {
    /// The checks that go with it, by node and id.
    pub fn checks(&self, state: &State) -> Vec<(String, String)> {
        let (node, ids): (&String, Vec<String>) = match self {
            Gone::Node(node) => {
                let all = state.node(node).into_iter().flat_map(|entry| entry.checks.keys());
                (node, all.map(ToString::to_string).collect())
            }
            Gone::Instance(node, id) => {
                let all = state.node(node).into_iter().flat_map(|entry| entry.checks_of(id));
                (node, all.map(|known| known.check.id.clone()).collect())
            }
            Gone::Check(node, id) => (node, vec![id.clone()]),
        };
        ids.into_iter().map(|id| (node.clone(), id)).collect()
    }
}

/// The key of a record. Names are whatever clients say: a hash of them is one.
pub fn record_key(kind: &str, node: &str, id: &str) -> String {
    format!("{PREFIX}{kind}/{}", sha256_hex(format!("{}\0{id}", key(node)).as_bytes()))
}

/// What takes a node away with all that is on it.
pub fn removals(entry: &NodeEntry) -> Vec<Write> {
    let name = &entry.node.name;
    let instances = entry.instances.keys().map(|id| record_key("instance", name, id));
    let checks = entry.checks.keys().map(|id| record_key("check", name, id));
    instances.chain(checks).chain([record_key("node", name, "")]).map(Write::remove).collect()
}

/// Whether Neap itself says it.
pub fn is_neaps(origin: Origin) -> bool {
    matches!(origin, Origin::Task | Origin::Container)
}

/// An error where there is room for no more.
pub fn room(size: usize) -> Result<()> {
    if size < MOST {
        return Ok(());
    }
    Err(Error::new(
        Kind::Exhausted,
        "catalogue",
        format!("holds {MOST} nodes, instances and checks; no more are taken"),
    ))
}

/// An error where an instance has too many.
pub fn few(instance: &str, count: usize) -> Result<()> {
    if count <= MOST_CHECKS {
        return Ok(());
    }
    let error = Error::new(Kind::Exhausted, format!("service id \"{instance:.70}\""), "has too many checks");
    Err(error.help(format!("at most {MOST_CHECKS}")))
}

/// An error where the id is that of a check of something else.
pub fn only(entry: &NodeEntry, check: &CatalogCheck, instance: &str) -> Result<()> {
    match entry.checks.get(check.id.as_str()).filter(|known| known.check.instance != instance) {
        None => Ok(()),
        Some(_) => Err(Error::new(
            Kind::Conflict,
            format!("check \"{:.70}\"", check.id),
            "is the id of another check on this node",
        )),
    }
}

/// Said again, it is as it was found: registering anew is no change of health. What others watch over is as they say.
pub fn carry(check: &mut CatalogCheck, known: &CatalogCheck) {
    if check.origin != Origin::Catalog {
        check.status = known.status;
        check.output.clone_from(&known.output);
    }
}

/// The same of a check that is run here, as long as it is run as before.
pub fn carry_run(check: &mut CatalogCheck, known: &CatalogCheck) {
    if check.run.is_some() && check.run == known.run {
        check.status = known.status;
        check.output.clone_from(&known.output);
    }
}

/// What was found since it was written down holds.
pub fn put_check(draft: &mut Draft, node: &str, check: &CatalogCheck) {
    let known = draft.state().node(node).and_then(|entry| entry.checks.get(check.id.as_str()));
    let mut check = check.clone();
    if let Some(known) = known {
        carry(&mut check, &known.check);
    }
    draft.put_check(node, check);
}

/// An instance is said anew by whoever said it first.
pub fn owned(known: &Instance, new: &Instance) -> Result<()> {
    match known.origin == new.origin || !matches!(known.origin, Origin::Task | Origin::Container) {
        true => Ok(()),
        false => ours_only(known),
    }
}

/// An error where it is Neap itself that says it.
pub fn ours_only(known: &Instance) -> Result<()> {
    let subject = format!("service id \"{:.70}\"", known.id);
    match known.origin {
        Origin::Task => Err(Error::new(Kind::Conflict, subject, "is a replica of a service of Neap's")
            .help("`neap service scale` and `neap service rm` change those")),
        Origin::Container => Err(Error::new(Kind::Conflict, subject, "is a container, and there as long as that runs")),
        Origin::Agent | Origin::Catalog => Ok(()),
    }
}

// What was known of clients and is not written down any more; the hosts that are known. What is Neap's own is looked through by
// whoever feeds it.
fn drop_surplus(draft: &mut Draft, records: &[Record], queries: &[Query]) -> BTreeSet<Key> {
    let (mut nodes, mut instances, mut checks) = (BTreeSet::new(), BTreeSet::new(), BTreeSet::new());
    for record in records {
        match record {
            Record::Node(node) => drop(nodes.insert(key(&node.name))),
            Record::Instance { node, instance, checks: own } => {
                instances.insert((key(node), instance.id.clone()));
                checks.extend(own.iter().map(|check| (key(node), check.id.clone())));
            }
            Record::Check { node, check } => drop(checks.insert((key(node), check.id.clone()))),
        }
    }
    let (mut hosts, mut gone_nodes, mut gone) = (BTreeSet::new(), Vec::new(), Vec::new());
    for entry in draft.state().nodes() {
        let name = key(&entry.node.name);
        if entry.checks.get(SERF_HEALTH).is_some_and(|known| is_neaps(known.check.origin)) {
            hosts.insert(name.clone());
        } else if !nodes.contains(&name) {
            gone_nodes.push(name);
            continue;
        }
        let lost = entry
            .checks
            .values()
            .map(|known| &known.check)
            .filter(|check| !is_neaps(check.origin) && !checks.contains(&(name.clone(), check.id.clone())));
        gone.extend(lost.map(|check| (name.clone(), check.id.clone(), false)));
        let lost =
            entry.instances.values().map(|known| &known.instance).filter(|instance| {
                !is_neaps(instance.origin) && !instances.contains(&(name.clone(), instance.id.clone()))
            });
        gone.extend(lost.map(|instance| (name.clone(), instance.id.clone(), true)));
    }
    for node in gone_nodes {
        draft.remove_node(&node);
    }
    for (node, id, is_instance) in gone {
        if is_instance {
            draft.remove_instance(&node, &id)
        } else {
            draft.remove_check(&node, &id)
        };
    }
    let known: Vec<String> = draft.state().queries.all().map(|query| query.id.clone()).collect();
    for id in known.iter().filter(|id| queries.iter().all(|query| query.id != **id)) {
        draft.remove_query(id);
    }
    hosts
}

fn put_records(draft: &mut Draft, records: Vec<Record>, is_fresh: bool) {
    let put = |draft: &mut Draft, node: &str, check: &CatalogCheck| match is_fresh {
        true => put_check(draft, node, check),
        false => _ = draft.put_check(node, check.clone()),
    };
    // Nodes first: the rest is on them. A host of the cluster may not be known again yet.
    let named = |name: &str| CatalogNode { name: name.to_owned(), ..CatalogNode::default() };
    for record in &records {
        match record {
            Record::Node(node) => draft.put_node(node.clone()),
            Record::Instance { node, .. } | Record::Check { node, .. } => {
                if draft.state().node(node).is_none() {
                    draft.put_node(named(node));
                }
            }
        }
    }
    for record in records {
        match record {
            Record::Node(_) => {}
            Record::Instance { instance, .. } if is_neaps(instance.origin) => {}
            Record::Instance { node, instance, checks } => {
                draft.put_instance(&node, instance);
                checks.iter().for_each(|check| put(draft, &node, check));
            }
            Record::Check { node, check } => put(draft, &node, &check),
        }
    }
}

impl Registry {
    /// Reads what is written down, into what this host had from whoever led before, or into a catalogue of its own. `host` is the
    /// host that this process is on.
    pub(crate) fn load(
        host: String,
        store: Arc<dyn Store>,
        clock: Arc<dyn Clock>,
        network: Arc<dyn Network>,
        scripts: Option<Arc<ScriptHost>>,
        before: Before,
    ) -> Result<Arc<Self>> {
        let floor = store.get(FLOOR)?.map(|entry| decode::<u64>(&entry.key, &entry.value)).transpose()?;
        let first = clock.wall().0.max(floor.unwrap_or_default());
        // How checks are is written down a second after it has changed: who did not follow knows less.
        let is_fresh = matches!(before, Before::Followed(_, true));
        let catalog = match before {
            Before::Followed(catalog, _) => catalog,
            Before::Nothing => Arc::new(Catalog::new(first)),
            Before::Remembered(portion) => {
                let catalog = Catalog::new(first);
                catalog.take(portion);
                Arc::new(catalog)
            }
        };
        let mut records = Vec::new();
        for entry in store.list(PREFIX)? {
            records.push(decode::<Record>(&entry.key, &entry.value)?);
        }
        let queries = queries::read(&*store)?;
        let hosts = catalog.change(|draft| {
            let hosts = drop_surplus(draft, &records, &queries);
            queries::put(draft, queries);
            put_records(draft, records, is_fresh);
            hosts
        });
        Ok(Arc::new(Registry {
            catalog,
            host,
            store,
            clock,
            network,
            scripts,
            writing: tokio::sync::Mutex::default(),
            runs: super::checks::Runs::default(),
            hosts: Mutex::new(hosts),
            changed: Mutex::default(),
            has_changed: Notify::new(),
            covered: Mutex::default(),
            runs_commands: AtomicBool::new(false),
            containers: Mutex::default(),
            docker: std::sync::OnceLock::new(),
            floor: AtomicU64::new(0),
        }))
    }

    /// Has to be called before anybody is told an index: none goes back after a restart, whatever the clock says, since whoever
    /// waits with one that is ahead would wait for nothing.
    pub async fn hold_index(&self) -> Result<()> {
        let ahead = self.catalog.read(|state| state.index) + AHEAD;
        self.store.commit(vec![Write::put(FLOOR, encode(&ahead))]).await?;
        self.floor.store(ahead, Ordering::Relaxed);
        Ok(())
    }

    /// Of clients, this is all that there is now; what is run of it is what it says.
    pub(super) fn replace(self: &Arc<Self>, records: Vec<Record>, queries: Vec<Query>) {
        let all = |state: &State| -> BTreeSet<(String, String)> {
            let checks = state.nodes().flat_map(|entry| entry.checks.keys().map(move |id| (entry, id)));
            checks.map(|(entry, id)| (entry.node.name.clone(), id.to_string())).collect()
        };
        let (before, after) = self.catalog.change(|draft| {
            let before = all(draft.state());
            drop_surplus(draft, &records, &queries);
            queries::put(draft, queries);
            put_records(draft, records, false);
            mark_lost(draft);
            // Containers may have waited for ids.
            let hosts = self.hosts.lock().unwrap_or_else(PoisonError::into_inner).clone();
            for host in hosts {
                self.settle(draft, &host);
            }
            (before, all(draft.state()))
        });
        before.difference(&after).for_each(|(node, id)| self.halt(node, id));
        let nodes: BTreeSet<&String> = after.iter().map(|(node, _)| node).collect();
        nodes.into_iter().for_each(|node| self.run_all_of(node));
    }

    /// Begins to run checks and to write down what becomes of them.
    pub(crate) fn start(self: &Arc<Self>) {
        let all = self.catalog.read(|state| {
            let checks = state.nodes().flat_map(|entry| entry.checks.values().map(move |check| (entry, check)));
            checks.map(|(entry, check)| (entry.node.name.clone(), check.check.clone())).collect::<Vec<_>>()
        });
        for (node, check) in all {
            self.run(&node, &check);
        }
        let registry = self.clone();
        tokio::spawn(async move {
            loop {
                let _ = tokio::time::timeout(LOOK, registry.has_changed.notified()).await;
                tokio::time::sleep(GATHER).await;
                if let Err(error) = registry.write_changes().await {
                    tracing::warn!(%error, "how checks are is not written down; it is tried again");
                    registry.has_changed.notify_one();
                }
            }
        });
    }

    async fn write_changes(&self) -> Result<()> {
        let _writing = self.writing.lock().await;
        let changed = std::mem::take(&mut *self.changed.lock().unwrap_or_else(PoisonError::into_inner));
        let records = changed.iter().filter_map(|(node, instance, check)| {
            if !instance.is_empty() {
                return self.record_of(node, instance, None);
            }
            self.catalog.read(|state| {
                let check = &state.node(node)?.checks.get(check.as_str())?.check;
                let is_ours = check.instance.is_empty() && check.origin != Origin::Task;
                is_ours.then(|| Record::Check { node: node.clone(), check: CatalogCheck::clone(check) })
            })
        });
        let mut writes: Vec<Write> = records.map(|record| record.write()).collect();
        let (index, floor) = (self.catalog.read(|state| state.index), self.floor.load(Ordering::Relaxed));
        let is_near = floor > 0 && index + AHEAD / 2 > floor;
        if is_near {
            writes.push(Write::put(FLOOR, encode(&(index + AHEAD))));
        }
        if writes.is_empty() {
            return Ok(());
        }
        let result = self.store.commit(writes).await;
        if result.is_ok() && is_near {
            self.floor.store(index + AHEAD, Ordering::Relaxed);
        }
        if result.is_err() {
            self.changed.lock().unwrap_or_else(PoisonError::into_inner).extend(changed);
        }
        result.map(drop)
    }
}
