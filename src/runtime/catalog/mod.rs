//! The catalogue of a running cluster: fed by the world (`feed.rs`) and by clients, whose registrations are written down before they
//! are acknowledged. How checks are is kept in memory, and written down when it has changed, a little later: a restart begins
//! with it.

mod checks;
mod command;
mod containers;
mod feed;
mod grpc;
pub mod host_checks;
pub mod mirror;
mod own;
pub mod queries;
mod records;
#[cfg(test)]
mod tests;
pub mod transact;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicBool, AtomicU64};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use tokio::sync::Notify;

pub(super) use self::feed::{Feeder, Shared};
use self::records::{Gone, carry, few, is_neaps, only, ours_only, owned, put_check, record_key, removals, room};
pub(super) use self::records::{PREFIX, Record};
use crate::engines::docker::Address;
use crate::model::catalog::{CatalogCheck, CatalogNode, CheckStatus, Instance, NODE_MAINTENANCE, SERVICE_MAINTENANCE};
use crate::model::clock::Clock;
use crate::model::{Error, Kind, Result};
use crate::network::Network;
use crate::network::catalog::{Catalog, Key, Portion, key};
use crate::scheduler::world::World;
use crate::script::host::ScriptHost;
use crate::store::{Store, Write};

/// The host that this process is on: the only one there is, or the one of this name.
pub(super) fn host(world: &World) -> String {
    let mut all = world.nodes.values();
    match (all.next(), all.next()) {
        (Some(only), None) => only.hostname.clone(),
        _ => nix::unistd::gethostname().ok().and_then(|name| name.into_string().ok()).unwrap_or_default(),
    }
}

/// Registers for clients, runs their checks, and knows which hosts are the cluster's own.
pub struct Registry {
    /// What is known.
    pub catalog: Arc<Catalog>,
    /// The host that this process is on.
    pub host: String,
    store: Arc<dyn Store>,
    clock: Arc<dyn Clock>,
    network: Arc<dyn Network>,
    // Who runs scripted checks, where there is anybody.
    scripts: Option<Arc<ScriptHost>>,
    // One at a time: what is written down and what is known stay the same.
    writing: tokio::sync::Mutex<()>,
    runs: checks::Runs,
    // Hosts of the cluster, which no client makes or removes.
    hosts: Mutex<BTreeSet<Key>>,
    // By node, instance and check.
    changed: Mutex<BTreeSet<(String, String, String)>>,
    has_changed: Notify,
    // Hosts whose own checks are run by their agents.
    covered: Mutex<BTreeSet<Key>>,
    /// Whether checks may be commands on this host.
    pub runs_commands: AtomicBool,
    /// The Docker Engine of this host, where one is known.
    pub docker: OnceLock<Address>,
    // What registrators have put there.
    containers: Mutex<containers::Kept>,
    // What no index comes near to before it is written down anew; 0: nobody is told one.
    floor: AtomicU64,
}

/// What a host knew of the catalogue before.
#[derive(Clone)]
pub enum Before {
    /// Nothing.
    Nothing,
    /// What it had from whoever led; who waits there waits on. Whether it still followed a moment ago.
    Followed(Arc<Catalog>, bool),
    /// What it wrote down a moment ago.
    Remembered(Portion),
}

/// An instance as a client registers it.
#[derive(Debug, Clone, Default)]
pub struct Registration {
    /// The node; a host of the cluster, or one that clients have made.
    pub node: String,
    /// The instance.
    pub instance: Instance,
    /// Its checks.
    pub checks: Vec<CatalogCheck>,
    /// Whether checks that it had before and are not among these go.
    pub replace_checks: bool,
}

impl Registry {
    /// Registers an instance on a node that is there. Durable when it returns.
    pub async fn register(self: &Arc<Self>, registration: Registration) -> Result<()> {
        let _writing = self.writing.lock().await;
        let record = self.registering(registration)?;
        self.write_down(vec![record]).await
    }

    // Writes records down, then makes them known.
    async fn write_down(self: &Arc<Self>, records: Vec<Record>) -> Result<()> {
        let kept = records.iter().filter(|record| record.is_kept());
        let writes = kept.map(Record::checked).collect::<Result<Vec<_>>>()?;
        if !writes.is_empty() {
            self.store.commit(writes).await?;
        }
        self.take_in(records, Vec::new());
        Ok(())
    }

    // What a registration comes to, with what was there.
    fn registering(&self, registration: Registration) -> Result<Record> {
        let Registration { node, instance, mut checks, replace_checks } = registration;
        instance.check()?;
        for check in &checks {
            check.check()?;
        }
        self.catalog.read(|state| {
            let Some(entry) = state.node(&node) else { return Err(Error::not_found(format!("node \"{node:.70}\""))) };
            match entry.instances.get(instance.id.as_str()) {
                Some(known) => owned(&known.instance, &instance)?,
                None => room(state.size())?,
            }
            for known in entry.checks_of(&instance.id) {
                match checks.iter_mut().find(|check| check.id == known.check.id) {
                    Some(check) => carry(check, &known.check),
                    None if replace_checks && !known.check.id.starts_with(SERVICE_MAINTENANCE) => {}
                    None => checks.push(CatalogCheck::clone(&known.check)),
                }
            }
            checks.iter().try_for_each(|check| only(entry, check, &instance.id))
        })?;
        few(&instance.id, checks.len())?;
        Ok(Record::Instance { node, instance, checks })
    }

    // Makes known what is written down and what is no more, in one step, and runs what is to be run.
    fn take_in(self: &Arc<Self>, records: Vec<Record>, lost: Vec<Gone>) {
        let (mut gone, mut found) = (Vec::new(), Vec::new());
        self.catalog.change(|draft| {
            for lost in &lost {
                gone.extend(lost.checks(draft.state()));
                match lost {
                    Gone::Node(node) => drop(draft.remove_node(node)),
                    Gone::Instance(node, id) => {
                        draft.remove_instance(node, id);
                        // A container may have waited for that id.
                        found.extend(self.settle(draft, node).into_iter().map(|check| (node.clone(), check)));
                    }
                    Gone::Check(node, id) => drop(draft.remove_check(node, id)),
                }
            }
            for record in &records {
                match record {
                    Record::Node(node) => draft.put_node(node.clone()),
                    Record::Instance { node, instance, checks } => {
                        let known = draft.state().node(node).map(|entry| {
                            let ids = entry.checks_of(&instance.id).map(|known| known.check.id.clone());
                            ids.filter(|id| !checks.iter().any(|check| check.id == *id)).collect::<Vec<_>>()
                        });
                        for id in known.unwrap_or_default() {
                            draft.remove_check(node, &id);
                            gone.push((node.clone(), id));
                        }
                        draft.put_instance(node, instance.clone());
                        checks.iter().for_each(|check| put_check(draft, node, check));
                    }
                    Record::Check { node, check } => put_check(draft, node, check),
                }
            }
        });
        for (node, id) in gone {
            self.halt(&node, &id);
        }
        found.iter().for_each(|(node, check)| self.run(node, check));
        for record in &records {
            match record {
                Record::Node(_) => {}
                Record::Instance { node, checks, .. } => checks.iter().for_each(|check| self.run(node, check)),
                Record::Check { node, check } => self.run(node, check),
            }
        }
    }

    /// Removes an instance with its checks. Durable when it returns.
    pub async fn deregister(self: &Arc<Self>, node: &str, id: &str) -> Result<()> {
        let _writing = self.writing.lock().await;
        let known = self.catalog.read(|state| Some(state.instance(node, id)?.entry.instance.clone()));
        let known = known.ok_or_else(|| Error::not_found(format!("service id \"{id:.70}\"")))?;
        ours_only(&known)?;
        self.store.commit(vec![Write::remove(record_key("instance", node, id))]).await?;
        self.take_in(Vec::new(), vec![Gone::Instance(node.to_owned(), id.to_owned())]);
        Ok(())
    }

    /// Runs the checks of a node that has just been made known.
    pub(super) fn run_all_of(self: &Arc<Self>, node: &str) {
        let checks = self.catalog.read(|state| {
            let checks = state.node(node).into_iter().flat_map(|entry| entry.checks.values());
            checks.map(|known| known.check.clone()).collect::<Vec<_>>()
        });
        checks.iter().for_each(|check| self.run(node, check));
    }

    /// Registers what is on a node that a client names, and the node where it is none of the cluster's. Durable when it returns.
    pub async fn register_node(
        self: &Arc<Self>,
        node: CatalogNode,
        instance: Option<Instance>,
        checks: Vec<CatalogCheck>,
        keep_node: bool,
    ) -> Result<()> {
        node.check()?;
        let _writing = self.writing.lock().await;
        let is_host = self.is_host(&node.name);
        let known = self.catalog.read(|state| state.node(&node.name).map(|entry| entry.node.clone()));
        let name = node.name.clone();
        // Hosts are found by theirs.
        let taken = self.catalog.read(|state| {
            let other = state.node_by_id(&node.id).filter(|entry| !entry.node.name.eq_ignore_ascii_case(&name))?;
            Some(other.node.name.clone())
        });
        if let Some(other) = taken.filter(|_| !node.id.is_empty()) {
            let message = format!("has the id of node \"{other:.70}\"");
            return Err(Error::new(Kind::Conflict, format!("node \"{name:.70}\""), message));
        }
        let mut records = Vec::new();
        let is_kept = is_host || (keep_node && known.is_some());
        if !is_kept {
            if node.address.is_empty() {
                return Err(Error::invalid(format!("node \"{name:.70}\""), "has no address"));
            }
            if known.is_none() {
                room(self.catalog.read(crate::network::catalog::State::size))?;
            }
            if known.as_deref() != Some(&node) {
                records.push(Record::Node(node.clone()));
            }
        }
        // So that the rest finds it. It goes again if that cannot be written down.
        let is_new = known.is_none();
        if is_new {
            self.catalog.change(|draft| draft.put_node(node));
        }
        let result = match self.registering_on(&name, instance, checks) {
            Ok(more) => {
                records.extend(more);
                self.write_down(records).await
            }
            Err(error) => Err(error),
        };
        if result.is_err() && is_new {
            self.catalog.change(|draft| draft.remove_node(&name));
        }
        result
    }

    fn registering_on(&self, node: &str, instance: Option<Instance>, checks: Vec<CatalogCheck>) -> Result<Vec<Record>> {
        let mut records = Vec::new();
        // Checks of one instance are one record.
        let mut others: BTreeMap<String, Vec<CatalogCheck>> = BTreeMap::new();
        for check in checks {
            others.entry(check.instance.clone()).or_default().push(check);
        }
        if let Some(instance) = instance {
            let checks = others.remove(&instance.id).unwrap_or_default();
            let node = node.to_owned();
            records.push(self.registering(Registration { node, instance, checks, replace_checks: false })?);
        }
        for checks in others.into_values() {
            records.extend(self.checking(node, checks)?);
        }
        Ok(records)
    }

    // What checks of one instance come to: with that, or each alone where they are about the node or about what is Neap's own.
    fn checking(&self, node: &str, mut checks: Vec<CatalogCheck>) -> Result<Vec<Record>> {
        for check in &checks {
            check.check()?;
        }
        let Some(about) = checks.first().map(|check| check.instance.clone()) else { return Ok(Vec::new()) };
        self.catalog.read(|state| {
            let Some(entry) = state.node(node) else { return Err(Error::not_found(format!("node \"{node:.70}\""))) };
            for check in &mut checks {
                only(entry, check, &about)?;
                match entry.checks.get(check.id.as_str()) {
                    Some(known) if is_neaps(known.check.origin) => {
                        return Err(Error::new(Kind::Conflict, format!("check \"{:.70}\"", check.id), "is Neap's own"));
                    }
                    Some(known) => carry(check, &known.check),
                    None => room(state.size())?,
                }
            }
            let instance = match entry.instances.get(about.as_str()) {
                Some(known) => Some(Instance::clone(&known.instance)),
                None if about.is_empty() => None,
                None => return Err(Error::not_found(format!("service id \"{about:.70}\""))),
            };
            let is_other =
                |known: &&crate::network::catalog::CheckEntry| checks.iter().all(|check| check.id != known.check.id);
            let others: Vec<_> = entry.checks_of(&about).filter(is_other).map(|known| known.check.clone()).collect();
            if !about.is_empty() {
                few(&about, checks.len() + others.len())?;
            }
            let node = node.to_owned();
            match instance.filter(|instance| !is_neaps(instance.origin)) {
                None => Ok(checks.into_iter().map(|check| Record::Check { node: node.clone(), check }).collect()),
                Some(instance) => {
                    checks.extend(others.iter().map(|known| CatalogCheck::clone(known)));
                    Ok(vec![Record::Instance { node, instance, checks }])
                }
            }
        })
    }

    /// Registers a check of a node, or of an instance that is there. Durable when it returns.
    pub async fn register_check(self: &Arc<Self>, node: &str, check: CatalogCheck) -> Result<()> {
        let _writing = self.writing.lock().await;
        let records = self.checking(node, vec![check])?;
        self.write_down(records).await
    }

    /// Removes a check. Durable when it returns.
    pub async fn deregister_check(self: &Arc<Self>, node: &str, id: &str) -> Result<()> {
        let _writing = self.writing.lock().await;
        let known = self.catalog.read(|state| Some(state.node(node)?.checks.get(id)?.check.clone()));
        let known = known.ok_or_else(|| Error::not_found(format!("check \"{id:.70}\"")))?;
        if is_neaps(known.origin) {
            return Err(Error::new(Kind::Conflict, format!("check \"{id:.70}\""), "is Neap's own"));
        }
        let write = match known.instance.is_empty() {
            true => Some(Write::remove(record_key("check", node, id))),
            false => self.record_of(node, &known.instance, Some(id)).map(|record| record.write()),
        };
        if let Some(write) = write {
            self.store.commit(vec![write]).await?;
        }
        self.take_in(Vec::new(), vec![Gone::Check(node.to_owned(), id.to_owned())]);
        Ok(())
    }

    // An instance as it is to be written down, without one of its checks.
    fn record_of(&self, node: &str, id: &str, without: Option<&str>) -> Option<Record> {
        self.catalog.read(|state| {
            let entry = state.node(node)?;
            let instance = Instance::clone(&entry.instances.get(id)?.instance);
            if is_neaps(instance.origin) {
                return None;
            }
            let of_it = entry.checks_of(id).filter(|known| without != Some(known.check.id.as_str()));
            let checks = of_it.map(|known| CatalogCheck::clone(&known.check)).collect();
            Some(Record::Instance { node: entry.node.name.clone(), instance, checks })
        })
    }

    /// Removes a node that clients have made, with all that is on it. Durable when it returns.
    pub async fn deregister_node(self: &Arc<Self>, node: &str) -> Result<()> {
        let _writing = self.writing.lock().await;
        if self.is_host(node) {
            return Err(Error::new(Kind::Conflict, format!("node \"{node:.70}\""), "is a host of the cluster")
                .help("`neap node rm` takes a host out of it"));
        }
        let removals = self.catalog.read(|state| Some(removals(state.node(node)?)));
        let removals = removals.ok_or_else(|| Error::not_found(format!("node \"{node:.70}\"")))?;
        self.store.commit(removals).await?;
        self.take_in(Vec::new(), vec![Gone::Node(node.to_owned())]);
        Ok(())
    }

    /// Says how a check is. What becomes of it is in memory when it returns.
    pub fn set_status(&self, node: &str, id: &str, status: CheckStatus, output: &str) -> Result<()> {
        let changed = self.catalog.change(|draft| {
            let known = draft.state().node(node).and_then(|entry| entry.checks.get(id));
            let Some(mut check) = known.map(|known| CatalogCheck::clone(&known.check)) else {
                return Err(Error::not_found(format!("check \"{id:.70}\"")));
            };
            let changed = (check.status != status).then(|| check.instance.clone());
            check.status = status;
            check.say(output);
            draft.put_check(node, check);
            Ok(changed)
        })?;
        if let Some(instance) = changed {
            let mut changed = self.changed.lock().unwrap_or_else(PoisonError::into_inner);
            // An instance is written down with all its checks.
            let check = if instance.is_empty() { id } else { "" };
            changed.insert((node.to_owned(), instance, check.to_owned()));
            drop(changed);
            self.has_changed.notify_one();
        }
        Ok(())
    }

    /// Says how a check that others watch over is, and that they still do.
    pub fn say(&self, node: &str, id: &str, status: CheckStatus, output: &str) -> Result<()> {
        let known = self.catalog.read(|state| Some(state.node(node)?.checks.get(id)?.check.clone()));
        let known = known.ok_or_else(|| Error::not_found(format!("check \"{id:.70}\"")))?;
        let is_ttl = known.run.as_ref().is_some_and(|run| run.kind.as_str() == "ttl");
        if !is_ttl {
            return Err(Error::invalid(format!("check \"{id:.70}\""), "has no TTL: Neap finds out itself how it is"));
        }
        self.set_status(node, id, status, output)?;
        self.poke(node, id);
        Ok(())
    }

    /// Puts an instance under maintenance, or with none the node, or ends it.
    pub async fn maintain(self: &Arc<Self>, node: &str, instance: Option<&str>, reason: Option<&str>) -> Result<()> {
        let id = instance.map_or_else(|| NODE_MAINTENANCE.to_owned(), |id| format!("{SERVICE_MAINTENANCE}{id}"));
        let Some(reason) = reason else {
            return match self.deregister_check(node, &id).await {
                Err(error) if error.kind == Kind::NotFound => Ok(()),
                other => other,
            };
        };
        let name = if instance.is_some() { "Service Maintenance Mode" } else { "Node Maintenance Mode" };
        let given = if reason.is_empty() { "Maintenance mode is enabled; no reason was given" } else { reason };
        let check = CatalogCheck {
            id,
            name: name.into(),
            instance: instance.unwrap_or_default().to_owned(),
            status: CheckStatus::Critical,
            notes: given.to_owned(),
            ..CatalogCheck::default()
        };
        self.register_check(node, check).await
    }

    /// Says on which hosts agents run the checks of their own.
    pub fn set_covered(&self, hosts: impl IntoIterator<Item = String>) {
        let hosts = hosts.into_iter().map(|host| key(&host)).collect();
        *self.covered.lock().unwrap_or_else(PoisonError::into_inner) = hosts;
    }

    fn is_covered(&self, node: &str) -> bool {
        self.covered.lock().unwrap_or_else(PoisonError::into_inner).contains(&key(node))
    }

    fn is_host(&self, node: &str) -> bool {
        self.hosts.lock().unwrap_or_else(PoisonError::into_inner).contains(&key(node))
    }
}
