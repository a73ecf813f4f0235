//! What there is of a node, an instance, a check.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use crate::model::catalog::{CatalogCheck, CatalogNode, CheckStatus, Instance};

/// A node with all that is on it.
#[derive(Debug, Clone)]
pub struct NodeEntry {
    /// What is known of it.
    pub node: Arc<CatalogNode>,
    /// Its instances, by id.
    pub instances: BTreeMap<Arc<str>, InstanceEntry>,
    /// Checks of the node and its instances, by id.
    pub checks: BTreeMap<Arc<str>, CheckEntry>,
    // Ids of checks by the instance that they are about.
    pub(super) about: BTreeMap<String, BTreeSet<Arc<str>>>,
    /// The change that made it.
    pub created: u64,
    /// The last change of what is known of it.
    pub modified: u64,
    /// The last change of it or of anything on it.
    pub index: u64,
}

/// An instance.
#[derive(Debug, Clone)]
pub struct InstanceEntry {
    /// What is known of it.
    pub instance: Arc<Instance>,
    /// The change that made it.
    pub created: u64,
    /// Its last change.
    pub modified: u64,
}

/// A check.
#[derive(Debug, Clone)]
pub struct CheckEntry {
    /// What is known of it.
    pub check: Arc<CatalogCheck>,
    /// The change that made it.
    pub created: u64,
    /// Its last change.
    pub modified: u64,
}

/// An instance with its node and its checks.
#[derive(Debug, Clone, Copy)]
pub struct Found<'a> {
    /// Its node.
    pub node: &'a NodeEntry,
    /// The instance.
    pub entry: &'a InstanceEntry,
}

impl NodeEntry {
    /// With these on it, made and changed last by these changes.
    pub fn new(
        node: Arc<CatalogNode>,
        (created, modified): (u64, u64),
        instances: BTreeMap<Arc<str>, InstanceEntry>,
        checks: BTreeMap<Arc<str>, CheckEntry>,
    ) -> Self {
        let mut entry = NodeEntry {
            node,
            instances,
            checks: BTreeMap::new(),
            about: BTreeMap::new(),
            created,
            modified,
            index: modified,
        };
        checks.into_values().for_each(|known| entry.put_check(known));
        entry
    }

    /// Puts an instance there, for itself: nobody else is told.
    pub fn put_instance(&mut self, known: InstanceEntry) {
        self.instances.insert(known.instance.id.as_str().into(), known);
    }

    /// Takes an instance away with its checks.
    pub fn take_instance(&mut self, id: &str) {
        self.instances.remove(id);
        for check in self.about.remove(id).unwrap_or_default() {
            self.checks.remove(&check);
        }
    }

    /// Puts a check there.
    pub fn put_check(&mut self, known: CheckEntry) {
        let id: Arc<str> = known.check.id.as_str().into();
        self.take_check(&id);
        self.put_about(&known.check.instance, &id);
        self.checks.insert(id, known);
    }

    /// Takes a check away.
    pub fn take_check(&mut self, id: &str) {
        if let Some(known) = self.checks.remove(id) {
            self.drop_about(&known.check.instance, id);
        }
    }

    /// The checks of an instance, by id; with none those of the node.
    pub fn checks_of(&self, instance: &str) -> impl Iterator<Item = &CheckEntry> + use<'_> {
        self.about.get(instance).into_iter().flatten().filter_map(|id| self.checks.get(id))
    }

    pub(super) fn put_about(&mut self, instance: &str, id: &Arc<str>) {
        self.about.entry(instance.to_owned()).or_default().insert(id.clone());
    }

    pub(super) fn drop_about(&mut self, instance: &str, id: &str) {
        if let Some(ids) = self.about.get_mut(instance) {
            ids.remove(id);
            if ids.is_empty() {
                self.about.remove(instance);
            }
        }
    }
}

impl<'a> Found<'a> {
    /// The node's checks, then its own.
    pub fn checks(&self) -> impl Iterator<Item = &'a CheckEntry> + use<'a> {
        self.node.checks_of("").chain(self.node.checks_of(&self.entry.instance.id))
    }

    /// The worst of its checks; one without any passes.
    pub fn status(&self) -> CheckStatus {
        self.checks().map(|entry| entry.check.status).max().unwrap_or(CheckStatus::Passing)
    }

    /// Where it is reached.
    pub fn address(&self) -> &'a str {
        match self.entry.instance.address.as_str() {
            "" => &self.node.node.address,
            own => own,
        }
    }
}
