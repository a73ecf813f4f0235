//! Tells an engine that keeps its nodes' settings itself that a node is drained, once nothing of ours runs there: a Swarm
//! ends at once what runs on a node that it drains.

use std::collections::BTreeSet;
use std::sync::Arc;

use tokio::sync::watch;

use super::{Parts, persist};
use crate::model::id::NodeId;
use crate::model::node::{Availability, NodeSettings, NodeUpdate};
use crate::scheduler::world::World;
use crate::store::{Write, encode};

/// The wait before an engine that could not be told is told again.
const AGAIN: std::time::Duration = std::time::Duration::from_secs(2);

/// Follows the world for as long as it is published.
pub fn spawn(parts: Arc<Parts>, mut seen: watch::Receiver<Arc<World>>) {
    tokio::spawn(async move {
        loop {
            let world = seen.borrow_and_update().clone();
            let mut failed = false;
            for id in empty(&world, &parts) {
                let update = NodeUpdate { availability: Some(Availability::Drain), ..NodeUpdate::default() };
                let told = match parts.engine.update_node(&id, &update).await {
                    Ok(false) => continue,
                    Ok(true) => {
                        // From here on the engine itself says so.
                        let done = Write::put(persist::node_key(&id), encode(&NodeSettings::default()));
                        parts.store.commit(vec![done]).await.map(drop)
                    }
                    Err(error) => Err(error),
                };
                if let Err(error) = told {
                    failed = true;
                    tracing::warn!(node = &*id, %error, "the engine could not be told that a node is drained");
                }
            }
            // An engine that could not be told is told again, though nothing else happens.
            let wait = if failed { AGAIN } else { std::time::Duration::MAX };
            if let Ok(Err(_)) = tokio::time::timeout(wait, seen.changed()).await {
                return;
            }
        }
    });
}

// Nodes that are to be empty, are, and are not known to be by the engine.
fn empty(world: &World, parts: &Parts) -> Vec<NodeId> {
    let active = |id: &NodeId| {
        let nodes = parts.engine.nodes();
        let nodes = nodes.borrow();
        nodes.iter().any(|node| node.id == *id && node.availability != Availability::Drain)
    };
    let drained: Vec<&NodeId> = world
        .nodes
        .values()
        .filter(|node| node.availability == Availability::Drain && active(&node.id))
        .map(|node| &node.id)
        .collect();
    if drained.is_empty() {
        return Vec::new();
    }
    let live = world.tasks.values().filter(|task| !task.state.is_final());
    let used: BTreeSet<&NodeId> = live.filter_map(|task| task.node.as_ref()).collect();
    drained.into_iter().filter(|id| !used.contains(id)).cloned().collect()
}
