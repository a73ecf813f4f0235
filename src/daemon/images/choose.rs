//! Which host keeps the cluster's images: the first one that was started for it, and remains so. Whoever leads remembers it, tells all, and asks it.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt;
use serde::{Deserialize, Serialize};
use tokio::sync::watch;

use crate::agent::hub::Hub;
use crate::agent::protocol::{Ask, Keeper};
use crate::client::images::ask::{AskedImages, ImagesAsk};
use crate::engines::hosts::Hosts;
use crate::model::id::NodeId;
use crate::model::node::Node;
use crate::model::{Error, Kind, Result};
use crate::store::{Expect, Store, Write, decode, encode};

/// The record of it.
const KEY: &str = "meta/registry";
/// How long the registry has for what it looks up; and for what may have to read or remove much.
const QUICK: Duration = Duration::from_secs(60);
const LONG: Duration = Duration::from_secs(4 * 60 * 60);
/// The wait before something that failed is tried again.
const AGAIN: Duration = Duration::from_secs(2);

#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
struct Record {
    node: Option<NodeId>,
    // Another one makes another secret for the doors.
    generation: u64,
    // The hosts that know the secret of this generation.
    hosts: Vec<NodeId>,
}

/// What whoever leads brings along.
pub struct Choice {
    /// The hosts.
    pub hub: Arc<Hub>,
    /// The store.
    pub store: Arc<dyn Store>,
    /// The nodes, with their addresses.
    pub nodes: watch::Receiver<Arc<Vec<Node>>>,
    /// Makes the secret of a generation.
    pub secret: Box<dyn Fn(u64) -> String + Send + Sync>,
}

impl Choice {
    /// Keeps it, until this daemon does not lead any more.
    pub async fn keep(mut self) {
        let (mut keepers, mut agents) = (self.hub.keepers(), self.hub.agents());
        loop {
            let again = match self.look().await {
                Ok(()) => Duration::MAX,
                Err(error) => {
                    tracing::warn!(%error, "which host keeps the images cannot be written down yet");
                    AGAIN
                }
            };
            tokio::select! {
                changed = keepers.changed() => if changed.is_err() { return },
                changed = agents.changed() => if changed.is_err() { return },
                changed = self.nodes.changed() => if changed.is_err() { return },
                () = tokio::time::sleep(again) => {}
            }
        }
    }

    async fn look(&self) -> Result<()> {
        let candidates = self.hub.keepers().borrow().clone();
        let hosts: Vec<NodeId> = self.hub.agents().borrow().keys().cloned().collect();
        let entry = self.store.get(KEY)?;
        let before = entry.as_ref().map(|entry| decode::<Record>(KEY, &entry.value)).transpose()?.unwrap_or_default();
        let mut record = before.clone();
        // One that is silent keeps them all the same; one that was forgotten, or says that it does not, does not.
        let connected = |node: &NodeId| self.hub.agents().borrow().get(node).is_some_and(|agent| agent.connected);
        let stays = record.node.as_ref().is_some_and(|node| {
            hosts.contains(node) && (candidates.contains_key(node) || !connected(node) || candidates.is_empty())
        });
        if !stays {
            record.node = candidates.keys().next().cloned().or_else(|| record.node.filter(|node| hosts.contains(node)));
            if let (Some(old), Some(new)) = (&before.node, &record.node)
                && old != new
            {
                tracing::warn!(%old, %new, "another host keeps the images from now on: what the one before had is not there");
            }
        }
        if record.hosts.iter().any(|host| !hosts.contains(host)) {
            record.generation += 1;
        }
        record.hosts = hosts;
        if record.node.is_none() {
            return Ok(());
        }
        if record != before {
            let expect = entry.map_or(Expect::Absent, |entry| Expect::Version(entry.version));
            self.store.commit(vec![Write::put(KEY, encode(&record)).expect(expect)]).await?;
        }
        for other in candidates.keys().filter(|node| Some(*node) != record.node.as_ref()) {
            tracing::warn!(%other, "was started with --roles registry as well, and keeps no images: another host does");
        }
        let Some((node, keeps)) = record.node.as_ref().and_then(|node| candidates.get_key_value(node)) else {
            return Ok(());
        };
        let Some(ip) = self.address(node) else { return Ok(()) };
        let (address, fingerprint) = (SocketAddr::new(ip, keeps.port), keeps.fingerprint.clone());
        let secret = (self.secret)(record.generation);
        self.hub.tell_registry(&Keeper { node: node.clone(), address, fingerprint, secret });
        Ok(())
    }

    fn address(&self, id: &NodeId) -> Option<IpAddr> {
        self.nodes.borrow().iter().find(|node| node.id == *id).and_then(|node| node.address)
    }
}

/// The registry, as whoever leads asks it.
pub fn asked(hub: &Arc<Hub>) -> AskedImages {
    let hub = hub.clone();
    AskedImages::new(move |ask| {
        let hub = hub.clone();
        async move {
            let keeper = hub.worker().registry.borrow().clone();
            let none = || {
                Error::new(Kind::Unavailable, "image registry", "is kept on no host of the cluster")
                    .help("start a daemon or an agent with --roles registry")
            };
            let keeper = keeper.ok_or_else(none)?;
            let patience = match ask {
                ImagesAsk::Collect { .. } | ImagesAsk::Prune(_) => LONG,
                _ => QUICK,
            };
            hub.ask(&keeper.node, Ask::Images(ask), patience).await
        }
        .boxed()
    })
}
