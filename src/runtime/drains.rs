//! Tells an engine that keeps its nodes' settings itself that a node is drained, once nothing of ours runs there: a Swarm
//! ends at once what runs on a node that it drains.

use std::sync::Arc;

use tokio::sync::watch;

use super::Parts;
use super::persist::NODE;
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
    let _telling = parts.telling.lock().await;
    nodes.borrow_and_update();
    if !seen.borrow_and_update().nodes.values().any(|node| node.availability == Availability::Drain) {
        return Ok(());
    }
    // First what is written, then the world: the other way round a task could have been placed there in between.
    let mut pending = Vec::new();
    for entry in parts.store.list(NODE)? {
        if decode::<NodeSettings>(&entry.key, &entry.value)?.availability == Availability::Drain {
            pending.push(entry);
        }
    }
    let world = seen.borrow_and_update().clone();
    let known = nodes.borrow_and_update().clone();
    let mut failed = None;
    for entry in pending {
        let id: NodeId = entry.key[NODE.len()..].into();
        let Some(node) = known.iter().find(|node| node.id == id) else { continue };
        if node.availability != Availability::Drain {
            if !is_empty(&world, &id) {
                continue;
            }
            let update = NodeUpdate { availability: Some(Availability::Drain), ..NodeUpdate::default() };
            match parts.engine.update_node(&id, &update).await {
                // What is written down is all that there is.
                Ok(false) => continue,
                Ok(true) => {}
                Err(error) => {
                    failed = Some(error);
                    continue;
                }
            }
            let now = parts.engine.nodes().borrow().clone();
            if !now.iter().any(|node| node.id == id && node.availability == Availability::Drain) {
                let unseen = Error::new(Kind::Unavailable, format!("node \"{id}\""), "its drain is not seen yet");
                failed = Some(unseen.retry(true));
                continue;
            }
        }
        let done = Write::put(entry.key, encode(&NodeSettings::default())).expect(Expect::Version(entry.version));
        parts.store.commit(vec![done]).await?;
    }
    failed.map_or(Ok(()), Err)
}

// Whether a node is to be empty, and is.
fn is_empty(world: &World, id: &NodeId) -> bool {
    world.nodes.get(id).is_some_and(|node| node.availability == Availability::Drain)
        && !world.tasks.values().any(|task| !task.state.is_final() && task.node.as_ref() == Some(id))
}
