//! Scripts that come along with services, for as long as something uses them.

use std::collections::BTreeSet;

use super::persist;
use crate::model::name::Name;
use crate::scheduler::world::{Change, World};
use crate::script::host::ScriptHost;
use crate::store::Write;

/// Bundles that the changed records used and nothing uses any more once the changes are made.
pub fn unused(before: &World, world: &World, changes: &[Change]) -> Vec<Write> {
    let mut used: BTreeSet<&String> = BTreeSet::new();
    for change in changes {
        match change {
            Change::Service(new) => {
                used.extend(before.services.get(&new.spec.name).and_then(|old| old.bundle.as_ref()));
            }
            Change::Revision(new) => {
                used.extend(before.revision(&new.service, new.number).and_then(|old| old.bundle.as_ref()));
            }
            Change::RemoveRevision(name, number) => {
                used.extend(before.revision(name, *number).and_then(|old| old.bundle.as_ref()));
            }
            Change::Release(new) => {
                used.extend(before.releases.get(&new.service).and_then(|old| old.bundle.as_ref()));
            }
            Change::RemoveService(name) => {
                used.extend(before.services.get(name).and_then(|old| old.bundle.as_ref()));
                used.extend(before.releases.get(name).and_then(|old| old.bundle.as_ref()));
                used.extend(before.revisions_of(name).filter_map(|old| old.bundle.as_ref()));
            }
            Change::Scripts(new) => used.extend(versions_of(before, &new.name)),
            Change::RemoveScripts(name) => used.extend(versions_of(before, name)),
            Change::Task(_) | Change::RemoveTask(_) | Change::Route(_) | Change::RemoveRoute(_) => {}
        }
    }
    let unused = used.into_iter().filter(|hash| !world.uses_bundle(hash));
    unused.map(|hash| Write::remove(persist::bundle_key(hash))).collect()
}

fn versions_of<'a>(world: &'a World, name: &Name) -> impl Iterator<Item = &'a String> {
    let sets = world.scripts.get(name).into_iter();
    sets.flat_map(|set| &set.versions).map(|version| &version.hash)
}

/// The host's memory of scripts follows the services that use them.
pub fn forget(host: &ScriptHost, world: &World, changes: &[Change]) {
    if changes.iter().any(releases_bundles) {
        host.retain(&|hash| world.uses_bundle(hash));
    }
}

// Whether a change may end the last use of a bundle.
fn releases_bundles(change: &Change) -> bool {
    matches!(
        change,
        Change::RemoveService(_)
            | Change::RemoveRevision(..)
            | Change::Service(_)
            | Change::Release(_)
            | Change::Revision(_)
            | Change::Scripts(_)
            | Change::Route(_)
            | Change::RemoveRoute(_)
            | Change::RemoveScripts(_)
    )
}
