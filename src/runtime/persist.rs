//! The world in the store: one record a thing, keys that sort as they are listed.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::model::Result;
use crate::model::bundle::{Bundle, ScriptSet};
use crate::model::clock::Timestamp;
use crate::model::name::Name;
use crate::model::node::{Node, NodeSettings};
use crate::model::release::Release;
use crate::model::route::Route;
use crate::model::service::{Revision, Service};
use crate::model::task::Task;
use crate::scheduler::world::{Change, World};
use crate::script::host::ScriptHost;
use crate::store::{Store, Write, decode, encode};

fn revision_key(service: &Name, number: u32) -> String {
    format!("revision/{service}/{number:010}")
}

/// The key of a bundle.
pub fn bundle_key(hash: &str) -> String {
    format!("bundle/{hash}")
}

/// Before a node's id, in the key of its settings.
const NODE: &str = "node/";

/// The key of a node's settings.
pub fn node_key(id: &str) -> String {
    format!("{NODE}{id}")
}

/// Reads everything; a record that cannot be read is an error, since acting on half a world does harm.
pub fn load(store: &dyn Store, host: &ScriptHost) -> Result<World> {
    let world = load_world(store)?;
    for entry in store.list("bundle/")? {
        host.add(decode::<Bundle>(&entry.key, &entry.value)?);
    }
    Ok(world)
}

/// The same without the scripts' sources.
pub fn load_world(store: &dyn Store) -> Result<World> {
    let mut world = World::default();
    for entry in store.list("service/")? {
        world.apply(&Change::Service(Arc::new(decode::<Service>(&entry.key, &entry.value)?)));
    }
    for entry in store.list("revision/")? {
        world.apply(&Change::Revision(Arc::new(decode::<Revision>(&entry.key, &entry.value)?)));
    }
    for entry in store.list("release/")? {
        world.apply(&Change::Release(Arc::new(decode::<Release>(&entry.key, &entry.value)?)));
    }
    for entry in store.list("task/")? {
        world.apply(&Change::Task(Arc::new(decode::<Task>(&entry.key, &entry.value)?)));
    }
    for entry in store.list("script/")? {
        world.apply(&Change::Scripts(Arc::new(decode::<ScriptSet>(&entry.key, &entry.value)?)));
    }
    for entry in store.list("route/")? {
        world.apply(&Change::Route(Arc::new(decode::<Route>(&entry.key, &entry.value)?)));
    }
    Ok(world)
}

/// Removes the bundles that nothing in `world` uses; those of an apply that was refused half-way, or outlived.
pub async fn clear_bundles(store: &dyn Store, world: &World) -> Result<()> {
    let unused: Vec<Write> = store
        .list("bundle/")?
        .into_iter()
        .filter(|entry| !world.uses_bundle(&entry.key["bundle/".len()..]))
        .map(|entry| Write::remove(entry.key))
        .collect();
    if unused.is_empty() { Ok(()) } else { store.commit(unused).await.map(drop) }
}

/// Nodes as their engine and their owner describe them; `pending`: what is not in the store yet, and will be.
pub fn with_settings(store: &dyn Store, pending: &[Write], nodes: &[Node]) -> Result<Vec<Node>> {
    let mut settings = node_settings(store)?;
    for write in pending {
        if let (Some(id), Some(value)) = (write.key.strip_prefix(NODE), &write.value) {
            settings.insert(id.to_owned(), decode(&write.key, value)?);
        }
    }
    let nodes = nodes.iter().cloned().map(|mut node| {
        if let Some(settings) = settings.get(&*node.id) {
            node.availability = node.availability.max(settings.availability);
            node.labels.extend(settings.labels.clone());
        }
        node
    });
    Ok(nodes.collect())
}

/// The newest moment at which anything in the world was decided.
pub fn decided_at(world: &World) -> Timestamp {
    let tasks = world.tasks.values().flat_map(|task| {
        let told = task.stop.as_ref().map(|stop| stop.at);
        [Some(task.created_at), task.healthy_at, told]
    });
    let releases = world.releases.values().flat_map(|release| {
        [Some(release.started_at), Some(release.judged_from), release.intent_at, release.paused_at, release.finished_at]
    });
    tasks.chain(releases).flatten().max().unwrap_or_default()
}

// All nodes' settings, by id.
fn node_settings(store: &dyn Store) -> Result<BTreeMap<String, NodeSettings>> {
    let entries = store.list(NODE)?;
    entries.iter().map(|entry| Ok((entry.key[NODE.len()..].to_owned(), decode(&entry.key, &entry.value)?))).collect()
}

/// The writes that make `changes` durable; `before` is the world without them.
pub fn writes(before: &World, changes: &[Change]) -> Vec<Write> {
    // A record changed several times in one decision is written once, as it is in the end.
    let mut last: BTreeMap<String, Option<Vec<u8>>> = BTreeMap::new();
    for change in changes {
        match change {
            Change::Task(task) => last.insert(format!("task/{}", task.id), Some(encode(&**task))),
            Change::RemoveTask(id) => last.insert(format!("task/{id}"), None),
            Change::Service(service) => last.insert(format!("service/{}", service.spec.name), Some(encode(&**service))),
            Change::Revision(revision) => {
                last.insert(revision_key(&revision.service, revision.number), Some(encode(&**revision)))
            }
            Change::Scripts(set) => last.insert(format!("script/{}", set.name), Some(encode(&**set))),
            Change::RemoveScripts(name) => last.insert(format!("script/{name}"), None),
            Change::Route(route) => last.insert(format!("route/{}", route.name), Some(encode(&**route))),
            Change::RemoveRoute(name) => last.insert(format!("route/{name}"), None),
            Change::RemoveRevision(name, number) => last.insert(revision_key(name, *number), None),
            Change::Release(release) => last.insert(format!("release/{}", release.service), Some(encode(&**release))),
            Change::RemoveService(name) => {
                for task in before.tasks_of(name) {
                    last.insert(format!("task/{}", task.id), None);
                }
                for revision in before.revisions_of(name) {
                    last.insert(revision_key(name, revision.number), None);
                }
                // And what this very decision has made of it before.
                for change in changes {
                    match change {
                        Change::Task(task) if task.service == *name => last.insert(format!("task/{}", task.id), None),
                        Change::Revision(new) if new.service == *name => {
                            last.insert(revision_key(name, new.number), None)
                        }
                        _ => continue,
                    };
                }
                last.insert(format!("release/{name}"), None);
                last.insert(format!("service/{name}"), None)
            }
        };
    }
    last.into_iter().map(|(key, value)| Write { key, expect: crate::store::Expect::Any, value }).collect()
}
