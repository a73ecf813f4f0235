//! What stands in a store, for whoever asks while no daemon leads: no engine is asked, and nothing can be changed.

use std::sync::Arc;
use std::time::Duration;

use super::{commands, kv, logins, persist, status, values};
use crate::client::ServiceStatus;
use crate::client::kv::{KvEntry, ValueInfo, ValueKind};
use crate::model::Result;
use crate::model::node::Node;
use crate::model::registry::LoginInfo;
use crate::model::service::Revision;
use crate::scheduler::routing;
use crate::scheduler::world::World;
use crate::store::Store;

/// A cluster as its store had it.
pub struct Standing {
    store: Arc<dyn Store>,
    world: World,
    /// How old it is.
    pub age: Duration,
}

impl Standing {
    /// Reads it. `nodes`: as they were last seen; the store has only what their owner set.
    pub fn read(store: Arc<dyn Store>, nodes: &[Node], age: Duration) -> Result<Self> {
        let mut world = persist::load_world(&*store)?;
        world.set_nodes(persist::with_settings(&*store, &[], nodes)?.into_iter().map(Arc::new));
        Ok(Standing { store, world, age })
    }

    // No balancer was asked: that all is as it should be, but for what is known.
    fn confirmed(&self) -> status::Confirmed {
        let table = routing::table(&self.world);
        let (listeners, fronts) = (Arc::new(table.listeners), Arc::new(table.fronts));
        status::Confirmed { heard: true, listeners, fronts, ..status::Confirmed::default() }
    }

    /// All services, by name.
    pub fn services(&self) -> Vec<ServiceStatus> {
        let confirmed = self.confirmed();
        self.world.services.values().map(|service| status::of(&self.world, service, &confirmed)).collect()
    }

    /// One service.
    pub fn service(&self, name: &str) -> Result<ServiceStatus> {
        let service = self.world.services.get(name).ok_or_else(|| commands::missing(&self.world, name))?;
        Ok(status::of(&self.world, service, &self.confirmed()))
    }

    /// A service's revisions, oldest first.
    pub fn revisions(&self, name: &str) -> Result<Vec<Revision>> {
        let service = self.world.services.get(name).ok_or_else(|| commands::missing(&self.world, name))?;
        Ok(self.world.revisions_of(&service.spec.name).map(|revision| Revision::clone(revision)).collect())
    }

    /// All nodes.
    pub fn nodes(&self) -> Vec<Node> {
        self.world.nodes.values().map(|node| Node::clone(node)).collect()
    }

    /// One key's entry.
    pub fn kv_get(&self, key: &str) -> Result<Option<KvEntry>> {
        kv::get(&*self.store, key)
    }

    /// All entries whose key begins with `prefix`, by key.
    pub fn kv_list(&self, prefix: &str) -> Result<Vec<KvEntry>> {
        kv::list(&*self.store, prefix)
    }

    /// The registries that somebody has logged in at.
    pub fn logins(&self) -> Result<Vec<LoginInfo>> {
        logins::list(&*self.store, &self.world)
    }

    /// All secrets or configs, without their values.
    pub fn values(&self, of: ValueKind) -> Result<Vec<ValueInfo>> {
        values::list(&*self.store, &self.world, of)
    }
}
