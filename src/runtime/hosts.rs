//! What is asked about nodes and what is on them.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::{Runtime, commands};
use crate::client::members::{self, Members};
use crate::model::id::{NodeId, TaskId};
use crate::model::node::{self, ImagePrune, PrunedImages};
use crate::model::stats::{NodeStats, TaskStats};
use crate::model::task::{Task, TaskState};
use crate::model::{Error, Kind, Result};
use crate::scheduler::world::World;

/// What was measured so long ago is said to be old.
const OLD: std::time::Duration = std::time::Duration::from_secs(30);

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

    /// What was measured last of a node, or of all; its containers as well where they are asked for.
    pub(super) fn measured(&self, node: Option<&str>, containers: bool) -> Result<Vec<NodeStats>> {
        let wanted = node.map(|name| self.node_id(name)).transpose()?;
        let (world, mut readings) = (self.world(), self.parts.engine.measured());
        let nodes = world.nodes.values().filter(|node| wanted.as_ref().is_none_or(|id| *id == node.id));
        let one = |node: &Arc<node::Node>| {
            let mut stats = NodeStats {
                node: node.hostname.clone(),
                id: node.id.clone(),
                age: None,
                host: None,
                running: 0,
                containers: Vec::new(),
                reason: None,
            };
            let Some((at, measured)) = readings.remove(&node.id) else {
                stats.reason = Some(unmeasured(node));
                return stats;
            };
            stats.age = Some(at.elapsed().into());
            stats.host = measured.host.clone();
            stats.running = measured.running;
            stats.reason = measured.trouble.clone().or_else(|| {
                let far = "its Docker Engine is on another host, where nobody measures";
                stats.host.is_none().then(|| far.to_owned())
            });
            if at.elapsed() >= OLD {
                let old = format!("nothing newer is told for {} s", at.elapsed().as_secs());
                stats.reason = Some(stats.reason.take().map_or(old.clone(), |why| format!("{old}; {why}")));
            }
            if containers {
                stats.containers = measured.containers.clone();
                for container in &mut stats.containers {
                    // Labels are anybody's; a task is where it was placed.
                    let task = container.id.and_then(|id| world.tasks.get(&id));
                    let task = task.filter(|task| task.node.as_ref() == Some(&node.id));
                    container.task = task.map(|task| task.label());
                }
            }
            stats
        };
        Ok(nodes.map(one).collect())
    }

    pub(super) async fn prune(&self, node: &str, mut ask: ImagePrune) -> Result<PrunedImages> {
        let id = self.node_id(node)?;
        ask.keep.extend(images(&self.world()));
        self.parts.engine.prune_images(&id, ask).await
    }

    /// Images that services run or could go back to, and those of the containers that hosts tell of, whoever has started them.
    pub(super) fn images_in_use(&self) -> Vec<String> {
        let measured = self.parts.engine.measured();
        let containers = measured.values().flat_map(|(_, measured)| &measured.containers);
        let containers = containers.map(|container| container.image.clone());
        images(&self.world()).into_iter().chain(containers).collect()
    }
}

fn unmeasured(node: &node::Node) -> String {
    match &node.agent {
        _ if node.state == node::NodeState::Down => "it is down".into(),
        None => "no agent is on it (neap join-token)".into(),
        Some(agent) if !agent.connected => "its agent is away".into(),
        Some(_) => "nothing has been told yet".into(),
    }
}

// Those of all revisions that are kept: the current ones, those that tasks still run, those that can be gone back to.
fn images(world: &World) -> BTreeSet<String> {
    let names = world.services.keys();
    names.flat_map(|name| world.revisions_of(name)).filter_map(|revision| revision.spec.image.clone()).collect()
}
