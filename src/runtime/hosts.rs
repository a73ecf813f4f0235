//! What is asked about nodes and what is on them.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::{Runtime, commands};
use crate::client::members::{self, Members};
use crate::model::id::{NodeId, TaskId};
use crate::model::node::{self, ImagePrune, PrunedImages};
use crate::model::stats::TaskStats;
use crate::model::task::{Task, TaskState};
use crate::model::{Error, Kind, Result};
use crate::scheduler::world::World;

impl Runtime {
    /// The id of a node that is named by id or host name.
    pub(super) fn node_id(&self, name: &str) -> Result<NodeId> {
        let world = self.world();
        Ok(node::named(world.nodes.values().map(|node| &**node), name)?.id.clone())
    }

    pub(super) fn members(&self) -> Result<&Arc<dyn Members>> {
        self.parts.members.as_ref().ok_or_else(members::alone)
    }

    pub(super) async fn take_out(&self, node: &str, force: bool) -> Result<()> {
        let id = self.node_id(node)?;
        self.parts.engine.remove_node(&id, force).await?;
        if let Some(members) = &self.parts.members {
            members.forget(&id).await?;
        }
        Ok(())
    }

    pub(super) async fn forget(&self, node: &str) -> Result<()> {
        let members = self.members()?;
        // Also of a node that has left already.
        let id = self.node_id(node).unwrap_or_else(|_| node.into());
        match members.forget(&id).await? {
            true => Ok(()),
            false => Err(Error::not_found(format!("agent on node \"{node:.70}\""))),
        }
    }

    /// What the running tasks of a service use; each node is asked once, all at the same time.
    pub(super) async fn count(&self, service: &str) -> Result<Vec<TaskStats>> {
        let world = self.world();
        let known = world.services.get(service).ok_or_else(|| commands::missing(&world, service))?;
        if known.spec.engine_native {
            return Err(Error::new(Kind::Unsupported, known.spec.subject(), "is run by the Swarm (engine_native)")
                .help("docker stats on its nodes"));
        }
        let mut by_node: BTreeMap<NodeId, Vec<TaskId>> = BTreeMap::new();
        let running = || world.tasks_of(&known.spec.name).filter(|task| task.state == TaskState::Running);
        for (node, task) in running().filter_map(|task| Some((task.node.clone()?, task.id))) {
            by_node.entry(node).or_default().push(task);
        }
        let ask = |(node, tasks): (NodeId, Vec<TaskId>)| async move {
            let told = self.parts.engine.stats(&node, &tasks).await;
            (node, told)
        };
        let told: BTreeMap<NodeId, _> =
            futures_util::future::join_all(by_node.into_iter().map(ask)).await.into_iter().collect();
        let one = |task: &Arc<Task>| {
            let (stats, reason) = match task.node.as_ref().and_then(|node| told.get(node)) {
                Some(Ok(all)) => (all.get(&task.id).cloned(), None),
                Some(Err(error)) => (None, Some(format!("{}: {}", error.subject, error.message))),
                None => (None, None),
            };
            let reason = reason.or_else(|| stats.is_none().then(|| "nothing is told of it".to_owned()));
            TaskStats { task: task.label(), id: task.id, node: world.hostname(task).to_owned(), stats, reason }
        };
        Ok(running().map(one).collect())
    }

    pub(super) async fn prune(&self, node: &str, mut ask: ImagePrune) -> Result<PrunedImages> {
        let id = self.node_id(node)?;
        ask.keep.extend(images(&self.world()));
        self.parts.engine.prune_images(&id, ask).await
    }
}

// Those of all revisions that are kept: the current ones, those that tasks still run, those that can be gone back to.
fn images(world: &World) -> BTreeSet<String> {
    let names = world.services.keys();
    names.flat_map(|name| world.revisions_of(name)).filter_map(|revision| revision.spec.image.clone()).collect()
}
