//! Containers that the registrators of hosts have found. What they say is kept; what the catalogue has of a host follows from all
//! of it, whatever order it came in: two containers may be registered as one instance, one after the other or at once.

use std::collections::BTreeMap;
use std::sync::{Arc, PoisonError};

use super::Registry;
use super::records::carry_run;
use crate::engines::registrator::{Changed, Registered};
use crate::model::catalog::{CatalogCheck, Origin};
use crate::network::catalog::{Draft, Key, State, key};

/// What each host's registrator has found, by the container's id.
pub type Kept = BTreeMap<Key, BTreeMap<String, Vec<Registered>>>;

impl Registry {
    /// Brings the catalogue to what the registrator of a host says; false: that host is not known yet.
    pub fn take_containers(self: &Arc<Self>, node: &str, changed: &Changed) -> bool {
        if self.catalog.read(|state| state.node(node).is_none()) {
            return false;
        }
        {
            let mut kept = self.containers.lock().unwrap_or_else(PoisonError::into_inner);
            let own = kept.entry(key(node)).or_default();
            if changed.whole {
                own.clear();
            }
            changed.gone.iter().for_each(|container| drop(own.remove(container)));
            own.extend(changed.put.iter().cloned());
        }
        let runs = self.catalog.change(|draft| self.settle(draft, node));
        for check in runs {
            self.run(node, &check);
        }
        true
    }

    /// Nobody looks at the containers of these hosts any more.
    pub fn drop_containers(self: &Arc<Self>, is_looked_at: impl Fn(&str) -> bool) {
        let names = |state: &State| state.nodes().map(|entry| entry.node.name.clone()).collect::<Vec<_>>();
        let all = self.catalog.read(names);
        for node in all.into_iter().filter(|name| !is_looked_at(name)) {
            self.take_containers(&node, &Changed { whole: true, ..Changed::default() });
        }
    }

    /// Makes what the catalogue has of a host's containers what is kept of them; the checks that are to be run. Nothing where its
    /// registrator has not said anything yet: what whoever led before has put there stays.
    pub(super) fn settle(&self, draft: &mut Draft, node: &str) -> Vec<CatalogCheck> {
        let kept = self.containers.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(own) = kept.get(&key(node)) else { return Vec::new() };
        let mut wanted: BTreeMap<&str, &Registered> = BTreeMap::new();
        for found in own.values().flatten() {
            wanted.entry(&found.instance.id).or_insert(found);
        }
        let known = draft.state().node(node).into_iter().flat_map(|entry| entry.instances.values());
        let known = known.filter(|known| known.instance.origin == Origin::Container);
        let gone = known.map(|known| known.instance.id.clone()).filter(|id| !wanted.contains_key(id.as_str()));
        let gone: Vec<String> = gone.collect();
        for id in gone {
            self.drop_container(draft, node, &id);
        }
        wanted.into_values().flat_map(|found| self.put_container(draft, node, found)).collect()
    }

    /// Takes one out, with its checks.
    pub(super) fn drop_container(&self, draft: &mut Draft, node: &str, id: &str) {
        let found = draft.state().instance(node, id).map(|found| found.entry.instance.origin);
        if found != Some(Origin::Container) {
            return;
        }
        let checks = draft.state().node(node).into_iter().flat_map(|entry| entry.checks_of(id));
        let checks: Vec<String> = checks.map(|known| known.check.id.clone()).collect();
        for check in checks {
            self.halt(node, &check);
        }
        draft.remove_instance(node, id);
    }

    fn put_container(&self, draft: &mut Draft, node: &str, found: &Registered) -> Vec<CatalogCheck> {
        let id = &found.instance.id;
        let taken = draft.state().instance(node, id).map(|known| known.entry.instance.origin);
        // Another registrator may run beside, as on the way from it to this one: its word counts while it stands.
        if taken.is_some_and(|origin| origin != Origin::Container) {
            return Vec::new();
        }
        if !draft.put_instance(node, found.instance.clone()) {
            return Vec::new();
        }
        let known = draft.state().node(node).into_iter().flat_map(|entry| entry.checks_of(id));
        let known: Vec<CatalogCheck> = known.map(|known| CatalogCheck::clone(&known.check)).collect();
        for lost in &known {
            let is_ours = lost.origin == Origin::Container;
            if is_ours && found.checks.iter().all(|check| check.id != lost.id) {
                self.halt(node, &lost.id);
                draft.remove_check(node, &lost.id);
            }
        }
        let mut runs = Vec::new();
        for check in &found.checks {
            let mut check = check.clone();
            // Looked through again, it is as it was found.
            if let Some(known) = known.iter().find(|known| known.id == check.id) {
                carry_run(&mut check, known);
            }
            if draft.put_check(node, check.clone()) {
                runs.push(check);
            }
        }
        runs
    }
}
