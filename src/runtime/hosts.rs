//! What is asked about nodes and what is on them.

use std::collections::BTreeSet;
use std::sync::Arc;

use super::{Runtime, commands};
use crate::client::members::{self, Members};
use crate::model::id::NodeId;
use crate::model::node::{ImagePrune, PrunedImages};
use crate::model::{Error, Result};
use crate::scheduler::world::World;

impl Runtime {
    /// The id of a node that is named by id or host name.
    pub(super) fn node_id(&self, name: &str) -> Result<NodeId> {
        let world = self.world();
        let found = world.nodes.values().find(|node| *node.id == *name || node.hostname == name);
        found.map(|node| node.id.clone()).ok_or_else(|| commands::missing_node(name))
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
