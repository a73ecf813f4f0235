//! Containers that the registrators of hosts have found.

use std::collections::BTreeMap;
use std::sync::{Arc, PoisonError};

use super::Registry;
use super::records::carry_run;
use crate::engines::registrator::{Changed, Registered};
use crate::model::catalog::{CatalogCheck, Origin};
use crate::network::catalog::{Draft, Key, key};

/// Ids of what is in the catalogue, by host and container.
pub type Kept = BTreeMap<(Key, String), Vec<String>>;

impl Registry {
    /// Brings the catalogue to what the registrator of a host says; false: that host is not known yet.
    pub fn take_containers(self: &Arc<Self>, node: &str, changed: &Changed) -> bool {
        let host = key(node);
        // Only this removes hosts' containers, and only the feeder hosts: one that is there stays for this moment.
        if self.catalog.read(|state| state.node(node).is_none()) {
            return false;
        }
        let mut kept = self.containers.lock().unwrap_or_else(PoisonError::into_inner);
        let runs = self.catalog.change(|draft| {
            let mut gone = Vec::new();
            if changed.whole {
                // Also what whoever led before has put there.
                let known = draft.state().node(node).into_iter().flat_map(|entry| entry.instances.values());
                let known = known.filter(|known| known.instance.origin == Origin::Container);
                let wanted =
                    |id: &str| changed.put.iter().any(|(_, all)| all.iter().any(|found| found.instance.id == id));
                gone.extend(known.map(|known| known.instance.id.clone()).filter(|id| !wanted(id)));
                kept.retain(|(on, _), _| *on != host);
            }
            for container in &changed.gone {
                gone.extend(kept.remove(&(host.clone(), container.clone())).unwrap_or_default());
            }
            for id in gone {
                self.drop_container(draft, node, &id);
            }
            let mut runs = Vec::new();
            for (container, all) in &changed.put {
                let before = kept.remove(&(host.clone(), container.clone())).unwrap_or_default();
                let now: Vec<String> = all.iter().map(|found| found.instance.id.clone()).collect();
                for id in before.iter().filter(|id| !now.contains(id)) {
                    self.drop_container(draft, node, id);
                }
                kept.insert((host.clone(), container.clone()), now);
                for found in all {
                    runs.extend(self.put_container(draft, node, found));
                }
            }
            runs
        });
        drop(kept);
        for check in runs {
            self.run(node, &check);
        }
        true
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
        // Another registrator may run beside, as on the way from it to this one.
        if taken.is_some_and(|origin| origin != Origin::Container) {
            tracing::warn!(node, id, "a client has registered what a container is registered as; the client's counts");
            return Vec::new();
        }
        draft.put_instance(node, found.instance.clone());
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
            draft.put_check(node, check.clone());
            runs.push(check);
        }
        runs
    }
}
