//! The store in a Docker Swarm: a log in configs of its managers' Raft, and everything in memory.
//!
//! A commit is one compare-and-set of the head, which carries the newest commits itself; what grows too large for it goes
//! into a config of its own first. So a commit costs one round through Raft however many keys it writes, and a daemon
//! that was overtaken, even one that slept through it, can write nothing: the head has changed under it. From time to time
//! all of it is written down whole, and the log begins anew. Every daemon follows the head and has all of it in memory.

mod compact;
mod configs;
mod head;
mod lead;

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use async_trait::async_trait;
use tokio::sync::{broadcast, watch};
use tokio::time::Instant;

pub use self::configs::{Config, Configs, SwarmConfigs};
pub use self::head::Leader;
use self::head::{Head, Log, Names, Put, Record};
use super::{Change, Entry, Store, Write};
use crate::model::{Error, Kind, Result, fault};

/// Most bytes of commits that the head itself carries.
const TAIL: usize = 8 << 10;
/// Most bytes in one config of log or snapshot; a Swarm takes 1,000 KiB.
const PART: usize = 400 << 10;
/// So many small configs of log are put together into one.
const MERGED: usize = 32;
/// All is written down whole once the log is as large as all, and at least this large: no byte is written more than a few
/// times, however much there is.
const LOG_BYTES: usize = 1 << 20;
/// A leader that could not prove that it leads for so long does nothing more.
pub const LEASE: Duration = Duration::from_secs(3);
/// How long it is tried to find out what became of a write whose answer was lost.
const FIND_OUT: Duration = Duration::from_secs(10);

type Data = BTreeMap<String, (u64, Vec<u8>)>;

/// The store of one cluster.
pub struct SwarmStore {
    configs: Arc<dyn Configs>,
    cluster: String,
    names: Names,
    inner: RwLock<Inner>,
    changes: broadcast::Sender<Change>,
    leader: watch::Sender<Option<Leader>>,
    // One write of the head at a time.
    writer: tokio::sync::Mutex<()>,
    attempts: AtomicU64,
}

struct Inner {
    data: Data,
    head: Head,
    // The version of the head's config; 0 where there is none.
    index: u64,
    // When the head was last seen to change.
    seen: Instant,
    // When this daemon last proved that it leads: the time before it sent what was accepted. None: it does not lead.
    proven: Option<Instant>,
    // A head that was sent, and of which nobody knows yet whether it was accepted.
    unsure: Option<Head>,
}

impl SwarmStore {
    /// Reads what is there.
    pub async fn open(configs: Arc<dyn Configs>, cluster: &str) -> Result<Arc<Self>> {
        let store = SwarmStore {
            configs,
            cluster: cluster.to_owned(),
            names: Names::new(cluster),
            inner: RwLock::new(Inner {
                data: Data::new(),
                head: Head::default(),
                index: 0,
                seen: Instant::now(),
                proven: None,
                unsure: None,
            }),
            changes: broadcast::channel(4096).0,
            leader: watch::Sender::new(None),
            writer: tokio::sync::Mutex::default(),
            attempts: AtomicU64::new(0),
        };
        store.refresh().await?;
        Ok(Arc::new(store))
    }

    fn inner(&self) -> std::sync::RwLockReadGuard<'_, Inner> {
        self.inner.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn change(&self) -> std::sync::RwLockWriteGuard<'_, Inner> {
        self.inner.write().unwrap_or_else(PoisonError::into_inner)
    }

    /// Who leads, now and as it changes.
    pub fn leader(&self) -> watch::Receiver<Option<Leader>> {
        self.leader.subscribe()
    }

    /// Whether this daemon leads, and proved it a moment ago.
    pub fn leads(&self) -> bool {
        self.inner().proven.is_some_and(|at| at.elapsed() < LEASE)
    }

    /// How often the lead has changed hands.
    pub fn term(&self) -> u64 {
        self.inner().head.term
    }

    /// The number of the last commit.
    pub fn version(&self) -> u64 {
        self.inner().head.seq
    }

    /// How long ago the head was seen to change: the age of all that is read here.
    pub fn age(&self) -> Duration {
        self.inner().seen.elapsed()
    }

    /// Takes in what others have written.
    pub async fn refresh(&self) -> Result<()> {
        let mut incomplete = None;
        loop {
            let Some(config) = self.configs.read(&self.names.head()).await? else { return Ok(()) };
            if config.index == self.inner().index {
                return Ok(());
            }
            if incomplete == Some(config.index) {
                return Err(Error::new(Kind::Corrupt, "store in the Swarm", "lacks a part that its head names")
                    .help("a config of it was removed by hand; restore the Swarm's managers from a backup"));
            }
            incomplete = Some(config.index);
            let head = Head::read(&config.labels)?;
            // A sign of life, and nothing new.
            if head.seq == self.inner().head.seq {
                self.take(head, config.index, None, Vec::new());
                return Ok(());
            }
            if let Some((data, changed)) = self.gather(&head).await? {
                let data = Some(data);
                self.take(head, config.index, data, changed);
                return Ok(());
            }
            // Written down whole in the meantime: from the beginning.
        }
    }

    // All data as of `head`, and the keys that changed; nothing where a part is gone already.
    async fn gather(&self, head: &Head) -> Result<Option<(Data, Vec<Change>)>> {
        let (mut data, mut seq) = {
            let inner = self.inner();
            (inner.data.clone(), inner.head.seq)
        };
        let mut changed = Vec::new();
        if head.snapshot.seq > seq {
            let mut whole = String::new();
            for part in 0..head.snapshot.parts {
                let name = self.names.snapshot(head.snapshot, part);
                let Some(config) = self.configs.read(&name).await? else { return Ok(None) };
                whole.push_str(&String::from_utf8_lossy(&config.data));
            }
            let now: BTreeMap<String, (u64, head::Value)> = parse(&whole)?;
            let gone = data.keys().filter(|key| !now.contains_key(*key)).cloned();
            let version = head.snapshot.seq;
            changed.extend(gone.map(|key| Change { key, version, removed: true }));
            changed.extend(now.keys().map(|key| Change { key: key.clone(), version, removed: false }));
            data = now.into_iter().map(|(key, (version, value))| (key, (version, value.into()))).collect();
            seq = version;
        }
        for log in head.logs.iter().filter(|log| log.seq > seq) {
            let Some(records) = self.read_log(*log).await? else { return Ok(None) };
            for record in records.into_iter().filter(|record| record.seq > seq) {
                apply(&mut data, record, &mut changed);
            }
        }
        let logged = head.logs.last().map_or(0, |log| log.seq);
        for record in head.tail.iter().filter(|record| record.seq > seq.max(logged)) {
            apply(&mut data, record.clone(), &mut changed);
        }
        Ok(Some((data, changed)))
    }

    async fn read_log(&self, log: Log) -> Result<Option<Vec<Record>>> {
        let Some(config) = self.configs.read(&self.names.log(log)).await? else { return Ok(None) };
        parse(&String::from_utf8_lossy(&config.data)).map(Some)
    }

    // `data`: none where it is as it was.
    fn take(&self, head: Head, index: u64, data: Option<Data>, changed: Vec<Change>) {
        let leader = head.leader.clone();
        {
            let mut inner = self.change();
            if index <= inner.index {
                return;
            }
            if inner.proven.is_some() && head.term != inner.head.term {
                inner.proven = None;
            }
            if let Some(data) = data {
                inner.data = data;
            }
            (inner.head, inner.index, inner.seen) = (head, index, Instant::now());
        }
        for change in changed {
            let _ = self.changes.send(change);
        }
        self.leader.send_if_modified(|now| {
            let changed = *now != leader;
            *now = leader;
            changed
        });
    }

    // Makes `next` the head, if it is still what this daemon knows. `sent` proves the lead.
    async fn advance(&self, next: &Head) -> Result<()> {
        let name = self.names.head();
        let labels = next.labels(&self.cluster)?;
        self.find_out().await?;
        let index = self.inner().index;
        let sent = Instant::now();
        let written = match index {
            0 => self.configs.create(&name, &labels, b"the head of a store of Neap; do not change").await,
            _ => self.configs.update(&name, index, &labels).await,
        };
        let open = match written {
            Ok(true) => false,
            Ok(false) => {
                self.change().proven = None;
                return Err(overtaken("is written by another daemon, which leads now"));
            }
            // Whether it got there is found out below.
            Err(error) if error.retry => true,
            Err(error) => return Err(refused(&error)),
        };
        self.change().unsure = Some(next.clone());
        let until = Instant::now() + FIND_OUT;
        loop {
            match self.configs.read(&name).await {
                Ok(Some(now)) if Head::read(&now.labels)? == *next => {
                    let mut inner = self.change();
                    (inner.index, inner.head, inner.unsure) = (now.index, next.clone(), None);
                    (inner.seen, inner.proven) = (Instant::now(), Some(sent));
                    return Ok(());
                }
                // It may still be on its way; if it arrives, the next write finds the head changed.
                Ok(now) if open && now.as_ref().map_or(0, |now| now.index) == index => {
                    self.change().unsure = None;
                    return Err(Error::new(Kind::Unavailable, "store in the Swarm", "did not take a write").retry(true));
                }
                Ok(_) => {
                    self.change().proven = None;
                    return Err(overtaken("is written by another daemon, which leads now"));
                }
                Err(error) if Instant::now() >= until => return Err(refused(&error)),
                Err(_) => tokio::time::sleep(Duration::from_millis(200)).await,
            }
        }
    }

    // What became of a write whose answer never came. If it was accepted after all, what this daemon decided since stands
    // on something else, and it has to begin anew.
    async fn find_out(&self) -> Result<()> {
        let (unsure, index) = {
            let inner = self.inner();
            (inner.unsure.is_some(), inner.index)
        };
        if !unsure {
            return Ok(());
        }
        let now = self.configs.read(&self.names.head()).await.map_err(|error| refused(&error))?;
        let mut inner = self.change();
        inner.unsure = None;
        if now.map_or(0, |now| now.index) == index {
            return Ok(());
        }
        inner.proven = None;
        Err(overtaken("took a write that was given up"))
    }

    // A sign of life in the midst of long work, if it is time for one.
    async fn renew(&self) -> Result<()> {
        let due = self.inner().proven.is_some_and(|at| at.elapsed() >= lead::BEAT);
        if due {
            let mut next = self.inner().head.clone();
            next.beat += 1;
            self.advance(&next).await?;
        }
        Ok(())
    }

    // With the right to write: the log grows by these writes.
    async fn append(&self, writes: &[Write]) -> Result<u64> {
        let mut next = {
            let inner = self.inner();
            if inner.proven.is_none() {
                return Err(not_leading(inner.head.leader.as_ref()));
            }
            for write in writes {
                write.meets(inner.data.get(&write.key).map(|(version, _)| *version))?;
            }
            inner.head.clone()
        };
        next.seq += 1;
        next.tail.push(Record::new(next.seq, writes));
        if next.tail_size() > TAIL {
            let text = serde_json::to_vec(&std::mem::take(&mut next.tail))
                .map_err(|error| Error::internal("store", error.to_string()))?;
            if text.len() > PART * 2 {
                return self.write_whole(writes).await;
            }
            let log = self.log(&next, next.seq, false, text.len());
            self.put(&self.names.log(log), &text).await?;
            next.logs.push(log);
        }
        fault::point("swarm-store.before-head");
        self.advance(&next).await?;
        fault::point("swarm-store.after-head");
        let mut changed = Vec::new();
        {
            let mut inner = self.change();
            apply(&mut inner.data, Record::new(next.seq, writes), &mut changed);
        }
        for change in changed {
            let _ = self.changes.send(change);
        }
        // What follows keeps the store small; the commit is made, and stays so whatever becomes of that.
        let small = next.logs.iter().rev().take_while(|log| !log.merged).count();
        let kept = if next.logged() >= LOG_BYTES.max(next.snapshot.bytes) {
            self.write_down(&[]).await
        } else if small >= MERGED {
            self.merge(small).await
        } else {
            Ok(())
        };
        if let Err(error) = kept {
            tracing::debug!(%error, "the log could not be made shorter for now");
        }
        Ok(next.seq)
    }

    fn log(&self, head: &Head, seq: u64, merged: bool, bytes: usize) -> Log {
        Log { term: head.term, seq, attempt: self.attempts.fetch_add(1, Ordering::SeqCst), merged, bytes }
    }

    // A config that no other has the name of. One whose answer is lost is not counted on; it goes with the next clearing.
    async fn put(&self, name: &str, data: &[u8]) -> Result<()> {
        let labels = BTreeMap::from([(configs::STORE.to_owned(), self.cluster.clone())]);
        match self.configs.create(name, &labels, data).await {
            Ok(true) => Ok(()),
            Ok(false) => Err(Error::internal("store in the Swarm", format!("config {name} is there already"))),
            Err(error) => Err(refused(&error)),
        }
    }
}

fn apply(data: &mut Data, record: Record, changed: &mut Vec<Change>) {
    let version = record.seq;
    for Put(key, value) in record.puts {
        changed.push(Change { key: key.clone(), version, removed: value.is_none() });
        match value {
            Some(value) => data.insert(key, (version, value.into())),
            None => data.remove(&key),
        };
    }
}

fn parse<T: serde::de::DeserializeOwned>(text: &str) -> Result<T> {
    serde_json::from_str(text)
        .map_err(|error| Error::new(Kind::Corrupt, "store in the Swarm", "is damaged").cause(error))
}

fn refused(error: &Error) -> Error {
    Error::new(
        Kind::Unavailable,
        "store in the Swarm",
        "cannot be written to: its managers have no quorum or do not answer",
    )
    .cause(error)
    .retry(true)
}

fn overtaken(why: &str) -> Error {
    Error::new(Kind::Unavailable, "store in the Swarm", why).retry(true)
}

fn not_leading(leader: Option<&Leader>) -> Error {
    let message = match leader {
        Some(leader) => format!("does not lead; the daemon on {} does", leader.hostname),
        None => "does not lead, and nobody does for now".to_owned(),
    };
    Error::new(Kind::Unavailable, "this daemon", message).retry(true)
}

fn entry(key: &str, (version, value): &(u64, Vec<u8>)) -> Entry {
    Entry { key: key.to_owned(), version: *version, value: value.clone() }
}

#[async_trait]
impl Store for SwarmStore {
    fn get(&self, key: &str) -> Result<Option<Entry>> {
        Ok(self.inner().data.get(key).map(|stored| entry(key, stored)))
    }

    fn list(&self, prefix: &str) -> Result<Vec<Entry>> {
        let inner = self.inner();
        let from = inner.data.range(prefix.to_owned()..);
        Ok(from.take_while(|(key, _)| key.starts_with(prefix)).map(|(key, stored)| entry(key, stored)).collect())
    }

    async fn commit(&self, writes: Vec<Write>) -> Result<u64> {
        writes.iter().try_for_each(Write::check)?;
        let _turn = self.writer.lock().await;
        self.append(&writes).await
    }

    fn watch(&self) -> broadcast::Receiver<Change> {
        self.changes.subscribe()
    }
}

#[cfg(test)]
mod tests;
