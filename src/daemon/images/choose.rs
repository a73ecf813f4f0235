//! Which host keeps the cluster's images: the first daemon that was started for it, or the host that somebody named, and it remains so. Whoever
//! leads remembers it, tells all, and asks it.

use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use futures_util::FutureExt;
use serde::{Deserialize, Serialize};
use tokio::sync::{Notify, watch};

use crate::agent::hub::{Hub, ImageHosts, Seat};
use crate::agent::protocol::{Ask, Keeper, Keeps};
use crate::client::images::ask::{AskedImages, ImagesAsk};
use crate::client::images::{ImageKeeper, Images, Keepers};
use crate::model::clock::Clock;
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
const NEVER: Duration = Duration::from_secs(24 * 60 * 60);
/// How long the host that keeps the images may be silent before another one that has the same bucket takes over.
const SILENT: Duration = Duration::from_secs(30);
/// How often it is asked whether its bucket has all of them, and how long it has to say so.
const ASKED: Duration = Duration::from_secs(15);
const SAYS: Duration = Duration::from_secs(5);

#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
struct Record {
    node: Option<NodeId>,
    // Where it was reached last, and the fingerprint of what it shows.
    at: Option<(SocketAddr, String)>,
    // Another one makes another secret for the doors.
    generation: u64,
    // The hosts that know the secret of this generation.
    hosts: Vec<NodeId>,
    // The bucket in which it keeps them as well.
    #[serde(default)]
    bucket: Option<String>,
    // Whether that has all of them.
    #[serde(default)]
    is_whole: bool,
    // How often it was said who keeps them.
    #[serde(default)]
    turn: u64,
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
    /// The time.
    pub clock: Arc<dyn Clock>,
    /// Another host was named.
    pub named: Notify,
    /// Since when the one that keeps the images says nothing.
    pub silent: Mutex<Option<(NodeId, Instant)>>,
}

fn keeps(seat: &Option<Seat>) -> Option<&Keeps> {
    seat.as_ref().and_then(|seat| seat.keeps.as_ref())
}

// Who keeps the images, where nobody is named; nothing: nobody does. One that `is_lost` has been silent for too long.
fn chosen(known: Option<NodeId>, hosts: &ImageHosts, bucket: Option<&str>, is_lost: bool) -> Option<NodeId> {
    // Daemons have what the cluster tells other registries anyway; an agent is given it only where somebody wants that.
    let by_itself = || {
        let daemons = hosts.iter().filter(|(_, seat)| seat.as_ref().is_some_and(|seat| seat.daemon));
        daemons
            .filter(|(_, seat)| keeps(seat).is_some_and(|keeps| keeps.port != 0))
            .map(|(node, _)| node.clone())
            .next()
    };
    // Whoever has the same bucket finds everything there.
    let by_bucket = || {
        let bucket = bucket?;
        let daemons = hosts.iter().filter(|(_, seat)| seat.as_ref().is_some_and(|seat| seat.daemon));
        let able = |seat| keeps(seat).is_some_and(|keeps| keeps.port != 0 && keeps.bucket.as_deref() == Some(bucket));
        daemons.filter(|(_, seat)| able(seat)).map(|(node, _)| node.clone()).next()
    };
    match known {
        Some(node) if is_lost => by_bucket().or(Some(node)),
        Some(node) => match hosts.get(&node) {
            // It was forgotten.
            None => by_bucket().or_else(by_itself),
            // It is here, and was started without the role: whoever has it instead is meant.
            Some(Some(seat)) if seat.keeps.is_none() => by_bucket().or_else(by_itself).or(Some(node)),
            // One that is silent keeps them all the same.
            Some(_) => Some(node),
        },
        None => by_itself(),
    }
}

impl Choice {
    fn record(&self) -> Result<(Record, Expect)> {
        let entry = self.store.get(KEY)?;
        let record = entry.as_ref().map(|entry| decode::<Record>(KEY, &entry.value)).transpose()?.unwrap_or_default();
        Ok((record, entry.map_or(Expect::Absent, |entry| Expect::Version(entry.version))))
    }

    fn told(&self, record: &Record) -> Option<Keeper> {
        let (node, (address, fingerprint)) = (record.node.clone()?, record.at.clone()?);
        Some(Keeper { node, address, fingerprint, secret: (self.secret)(record.generation), turn: record.turn })
    }

    /// What whoever led before has written down, before anybody is told anything by this one.
    pub fn recall(&self) -> Result<()> {
        let (record, _) = self.record()?;
        self.told(&record).iter().for_each(|keeper| self.hub.tell_registry(keeper));
        Ok(())
    }

    /// Keeps it, until this daemon does not lead any more.
    pub async fn keep(self: Arc<Self>) {
        let (mut hosts, mut nodes) = (self.hub.image_hosts(), self.nodes.clone());
        loop {
            let again = match self.look(None, self.asks_whole().await).await {
                // Once it is silent for too long it is looked for another one now and then.
                Ok(has_bucket) => match self.silent().as_ref() {
                    Some((_, since)) => SILENT.checked_sub(since.elapsed()).unwrap_or(SILENT).max(AGAIN),
                    None if has_bucket => ASKED,
                    None => NEVER,
                },
                Err(error) => {
                    tracing::warn!(%error, "which host keeps the images cannot be written down yet");
                    AGAIN
                }
            };
            tokio::select! {
                changed = hosts.changed() => if changed.is_err() { return },
                changed = nodes.changed() => if changed.is_err() { return },
                () = self.named.notified() => {}
                () = tokio::time::sleep(again) => {}
            }
        }
    }

    fn silent(&self) -> MutexGuard<'_, Option<(NodeId, Instant)>> {
        self.silent.lock().unwrap_or_else(PoisonError::into_inner)
    }

    // Whether the one that keeps the images has been silent for too long.
    fn is_lost(&self, known: Option<&NodeId>, hosts: &ImageHosts) -> bool {
        let mut silent = self.silent();
        match known.filter(|node| hosts.get(*node).is_some_and(Option::is_none)) {
            None => *silent = None,
            Some(node) if silent.as_ref().is_none_or(|(of, _)| of != node) => {
                *silent = Some((node.clone(), Instant::now()));
            }
            Some(_) => {}
        }
        silent.as_ref().is_some_and(|(_, since)| since.elapsed() >= SILENT)
    }

    // Whether the bucket of the one that keeps the images has all of them, where it says so.
    async fn asks_whole(&self) -> Option<bool> {
        let (record, _) = self.record().ok()?;
        let (node, _) = (record.node?, record.bucket?);
        let is_here = self.hub.image_hosts().borrow().get(&node).is_some_and(Option::is_some);
        if !is_here {
            return None;
        }
        let images = asked(&self.hub);
        let stats = tokio::time::timeout(SAYS, images.image_stats()).await.ok()?.ok()?;
        // While it waits for the bucket, or is not its host, nothing is known of that.
        match stats.replica?.state.as_str() {
            "whole" => Some(true),
            "seeding" => Some(false),
            _ => None,
        }
    }

    // Whether it is kept in a bucket as well.
    async fn look(&self, named: Option<&NodeId>, is_whole: Option<bool>) -> Result<bool> {
        let hosts = self.hub.image_hosts().borrow().clone();
        let (before, expect) = self.record()?;
        let mut record = before.clone();
        let is_lost = self.is_lost(before.node.as_ref(), &hosts);
        // What is not all there is nothing to take over.
        record.is_whole = is_whole.unwrap_or(record.is_whole);
        let bucket = record.bucket.clone().filter(|_| record.is_whole);
        record.node = named.cloned().or_else(|| chosen(record.node.take(), &hosts, bucket.as_deref(), is_lost));
        if named.is_some() || record.node != before.node {
            // Above all that were before, also of a cluster that is not there any more.
            record.turn = (record.turn + 1).max(self.clock.wall().0);
        }
        let bucket_of = |node: &NodeId| hosts.get(node).and_then(keeps).and_then(|keeps| keeps.bucket.clone());
        if record.node != before.node {
            record.at = None;
            record.bucket = record.node.as_ref().and_then(bucket_of);
            record.is_whole &= record.bucket.is_some() && record.bucket == before.bucket;
            match (&before.node, &record.node) {
                (Some(old), Some(new)) if record.bucket.is_some() && record.bucket == before.bucket => {
                    tracing::warn!(%old, %new, "another host keeps the images from now on, with what the bucket holds");
                }
                (Some(old), Some(new)) => {
                    tracing::warn!(%old, %new, "another host keeps the images from now on: what the one before had is not there");
                }
                (None, Some(node)) => tracing::info!(%node, "this node keeps the cluster's images"),
                (_, None) => tracing::warn!("no host keeps the cluster's images any more"),
            }
        }
        if let Some((node, keeps)) = record.node.as_ref().and_then(|node| Some((node, keeps(hosts.get(node)?)?)))
            && keeps.port != 0
        {
            match keeps.address.or_else(|| self.address(node)) {
                Some(ip) => {
                    record.at = Some((SocketAddr::new(ip, keeps.port), keeps.fingerprint.clone()));
                    record.bucket.clone_from(&keeps.bucket);
                }
                None => tracing::warn!(%node, "the Swarm does not tell the address of the node that keeps the images"),
            }
        }
        if record.hosts.iter().any(|host| !hosts.contains_key(host)) {
            record.generation += 1;
        }
        record.hosts = hosts.keys().cloned().collect();
        if record != before && (record.node.is_some() || before.node.is_some()) {
            self.store.commit(vec![Write::put(KEY, encode(&record)).expect(expect)]).await?;
        }
        for (other, _) in
            hosts.iter().filter(|(node, seat)| keeps(seat).is_some() && Some(*node) != record.node.as_ref())
        {
            tracing::info!(%other, "has --roles registry, and is only a door: neap registry keeper NODE names it");
        }
        self.told(&record).iter().for_each(|keeper| self.hub.tell_registry(keeper));
        Ok(record.bucket.is_some())
    }

    fn address(&self, id: &NodeId) -> Option<IpAddr> {
        self.nodes.borrow().iter().find(|node| node.id == *id).and_then(|node| node.address)
    }

    fn name(&self, id: &NodeId) -> String {
        let nodes = self.nodes.borrow();
        nodes.iter().find(|node| node.id == *id).map_or_else(|| id.to_string(), |node| node.hostname.clone())
    }
}

#[async_trait]
impl Keepers for Choice {
    async fn keeper(&self) -> Result<ImageKeeper> {
        let (record, _) = self.record()?;
        let hosts = self.hub.image_hosts().borrow().clone();
        let offers = hosts.iter().filter(|(_, seat)| keeps(seat).is_some());
        let is_there =
            |node: &NodeId| hosts.get(node).is_some_and(|seat| keeps(seat).is_some_and(|keeps| keeps.port != 0));
        Ok(ImageKeeper {
            connected: record.node.as_ref().is_some_and(is_there),
            node: record.node.as_ref().map(|node| self.name(node)),
            address: record.at.map(|(address, _)| address.to_string()),
            offers: offers.map(|(node, _)| self.name(node)).collect(),
        })
    }

    async fn name_keeper(&self, node: &str) -> Result<ImageKeeper> {
        let hosts = self.hub.image_hosts().borrow().clone();
        let found = hosts.iter().find(|(id, _)| self.name(id) == node || ***id == *node);
        let Some((id, seat)) = found else { return Err(Error::not_found(format!("node {node:?}"))) };
        let subject = || format!("node {node:?}");
        match keeps(seat) {
            Some(keeps) if keeps.port != 0 => {}
            Some(_) => {
                let why = "cannot keep images: its registry does not open, or cannot listen";
                return Err(Error::new(Kind::Conflict, subject(), why).help("its log says why"));
            }
            None => {
                return Err(Error::new(Kind::Conflict, subject(), "does not offer to keep images")
                    .help("start its daemon or agent with --roles registry"));
            }
        }
        self.look(Some(id), None).await?;
        self.named.notify_one();
        self.keeper().await
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
                Error::new(Kind::Unavailable, "image registry", "is kept on no host of the cluster").help(
                    "start a daemon with --roles registry; an agent with that role is named: neap registry keeper NODE",
                )
            };
            let keeper = keeper.ok_or_else(none)?;
            let patience = match ask {
                ImagesAsk::Collect { .. }
                | ImagesAsk::Prune(_)
                | ImagesAsk::AddToBlob { .. }
                | ImagesAsk::EndBlob { .. }
                | ImagesAsk::Build(_) => LONG,
                _ => QUICK,
            };
            hub.ask(&keeper.node, Ask::Images(ask), patience).await
        }
        .boxed()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_remains_where_it_is() {
        let keeps = || Some(Keeps { port: 1, address: None, fingerprint: String::new(), bucket: None });
        let chosen = |known, hosts: &ImageHosts| super::chosen(known, hosts, None, false);
        let seat = |daemon, keeps| Some(Seat { daemon, keeps });
        let id = |name: &str| NodeId::from(name);
        let hosts = |all: &[(&str, Option<Seat>)]| {
            all.iter().map(|(name, seat)| (id(name), seat.clone())).collect::<ImageHosts>()
        };
        let (a, b) = (Some(id("a")), Some(id("b")));
        // The first daemon; never an agent by itself.
        assert_eq!(chosen(None, &hosts(&[("a", seat(false, keeps())), ("b", seat(true, keeps()))])), b);
        assert_eq!(chosen(None, &hosts(&[("a", seat(false, keeps()))])), None);
        let broken = || Some(Keeps { port: 0, ..keeps().unwrap() });
        assert_eq!(chosen(None, &hosts(&[("a", seat(true, broken())), ("b", seat(true, keeps()))])), b);
        // Silent, or unable to listen: it keeps them.
        for own in [None, seat(true, keeps()), seat(true, broken())] {
            assert_eq!(chosen(a.clone(), &hosts(&[("a", own), ("b", seat(true, keeps()))])), a);
        }
        // Started without the role while another has it; or forgotten.
        assert_eq!(chosen(a.clone(), &hosts(&[("a", seat(true, None)), ("b", seat(true, keeps()))])), b);
        assert_eq!(chosen(a.clone(), &hosts(&[("a", seat(true, None))])), a);
        assert_eq!(chosen(a.clone(), &hosts(&[("b", seat(true, keeps()))])), b);
        assert_eq!(chosen(a.clone(), &hosts(&[("c", seat(true, None))])), None);
        // Silent for too long: a daemon that has the same bucket.
        let in_bucket = |name: &str| Some(Keeps { bucket: Some(name.into()), ..keeps().unwrap() });
        let lost =
            |bucket, is_lost, all: &[(&str, Option<Seat>)]| super::chosen(a.clone(), &hosts(all), bucket, is_lost);
        let same = [("a", None), ("b", seat(true, in_bucket("x"))), ("c", seat(true, keeps()))];
        assert_eq!(lost(Some("x"), true, &same), b);
        assert_eq!(lost(Some("x"), false, &same), a);
        assert_eq!(lost(None, true, &same), a);
        assert_eq!(lost(Some("y"), true, &same), a);
        assert_eq!(lost(Some("x"), true, &[("a", None), ("b", seat(false, in_bucket("x")))]), a);
        assert_eq!(lost(Some("x"), false, &same[1..]), b);
        assert_eq!(lost(Some("x"), false, &[("a", seat(true, None)), ("b", seat(true, in_bucket("x")))]), b);
    }
}
