//! Tells an engine that keeps its nodes' settings itself that a node is drained, once nothing of ours runs there: a Swarm
//! ends at once what runs on a node that it drains.

use std::sync::Arc;

use tokio::sync::watch;

use super::{Parts, persist};
use crate::model::id::NodeId;
use crate::model::node::{Availability, Node, NodeSettings, NodeUpdate};
use crate::model::{Error, Kind, Result};
use crate::scheduler::world::World;
use crate::store::{Expect, Write, decode, encode};

/// The wait before an engine that could not be told is told again.
const AGAIN: std::time::Duration = std::time::Duration::from_secs(2);

/// Follows the world for as long as it is published.
pub fn spawn(parts: Arc<Parts>, mut seen: watch::Receiver<Arc<World>>) {
    let mut nodes = parts.engine.nodes();
    tokio::spawn(async move {
        loop {
            let told = tell(&parts, &mut seen, &mut nodes).await;
            if let Err(error) = &told {
                tracing::warn!(%error, "the engine could not be told that a node is drained");
            }
            // An engine that could not be told is told again, though nothing else happens.
            let wait = if told.is_err() { AGAIN } else { std::time::Duration::MAX };
            let changed = async {
                tokio::select! {
                    changed = seen.changed() => changed,
                    changed = nodes.changed() => changed,
                }
            };
            if let Ok(Err(_)) = tokio::time::timeout(wait, changed).await {
                return;
            }
        }
    });
}

// Tells of nodes that are to be empty, and are. What is written down of a drain is done once the engine itself says that the
// node is drained: from there on its word alone counts, so that others can take it back.
async fn tell(
    parts: &Parts,
    seen: &mut watch::Receiver<Arc<World>>,
    nodes: &mut watch::Receiver<Arc<Vec<Node>>>,
) -> Result<()> {
    nodes.borrow_and_update();
    let world = seen.borrow_and_update().clone();
    let drained = world.nodes.values().filter(|node| node.availability == Availability::Drain);
    let mut failed = None;
    for node in drained {
        // Each by itself, so that whoever changes another waits for no more than one.
        let _telling = parts.telling.lock().await;
        failed = tell_of(parts, seen, &node.id).await.err().or(failed);
    }
    failed.map_or(Ok(()), Err)
}

async fn tell_of(parts: &Parts, seen: &watch::Receiver<Arc<World>>, id: &NodeId) -> Result<()> {
    let key = persist::node_key(id);
    // First what is written, then the world: the other way round a task could have been placed there in between.
    let Some(entry) = parts.store.get(&key)? else { return Ok(()) };
    if decode::<NodeSettings>(&key, &entry.value)?.availability != Availability::Drain {
        return Ok(());
    }
    let world = seen.borrow().clone();
    let availability = || {
        let known = parts.engine.nodes().borrow().clone();
        known.iter().find(|node| node.id == *id).map(|node| node.availability)
    };
    match availability() {
        None => return Ok(()),
        Some(Availability::Drain) => {}
        Some(_) if !is_empty(&world, id) => return Ok(()),
        Some(_) => {
            let update = NodeUpdate { availability: Some(Availability::Drain), ..NodeUpdate::default() };
            // Where the engine keeps nothing, what is written down is all that there is.
            if !parts.engine.update_node(id, &update).await? {
                return Ok(());
            }
            if availability() != Some(Availability::Drain) {
                let unseen = Error::new(Kind::Unavailable, format!("node \"{id}\""), "its drain is not seen yet");
                return Err(unseen.retry(true));
            }
        }
    }
    let done = Write::put(key, encode(&NodeSettings::default())).expect(Expect::Version(entry.version));
    parts.store.commit(vec![done]).await.map(drop)
}

// Whether a node is to be empty, and is.
fn is_empty(world: &World, id: &NodeId) -> bool {
    world.nodes.get(id).is_some_and(|node| node.availability == Availability::Drain)
        && !world.tasks.values().any(|task| !task.state.is_final() && task.node.as_ref() == Some(id))
}
