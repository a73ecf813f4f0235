//! The store in a Docker Swarm: a log in configs of its managers' Raft, and everything in memory.
//!
//! A commit is one compare-and-set of the head, which carries the newest commits itself; what grows too large for it goes
//! into a config of its own first. So a commit costs one round through Raft however many keys it writes, and a daemon
//! that was overtaken, even one that slept through it, can write nothing: the head has changed under it. From time to time
//! all of it is written down whole, and the log begins anew. Every daemon follows the head and has all of it in memory.

mod configs;
mod head;
mod lead;

use std::collections::BTreeMap;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use tokio::sync::{broadcast, watch};

pub use self::configs::{Config, Configs, SwarmConfigs};
pub use self::head::Leader;
use self::head::{Head, Log, Names, Put, Record, Snapshot};
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
}

struct Inner {
    data: Data,
    head: Head,
    // The version of the head's config; 0 where there is none.
    index: u64,
    // When the head was last seen to change.
    seen: Instant,
    // When this daemon last proved that it leads: the time before it sent what was accepted.
    proven: Option<Instant>,
    // Bytes of log since the snapshot, and of the snapshot, as far as this daemon wrote them.
    logged: usize,
    whole: usize,
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
                logged: 0,
                whole: 0,
            }),
            changes: broadcast::channel(4096).0,
            leader: watch::Sender::new(None),
            writer: tokio::sync::Mutex::default(),
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

    /// How long ago the head was seen to change: the age of all that is read here.
    pub fn age(&self) -> Duration {
        self.inner().seen.elapsed()
    }

    /// Takes in what others have written.
    pub async fn refresh(&self) -> Result<()> {
        loop {
            let Some(config) = self.configs.read(&self.names.head()).await? else { return Ok(()) };
            if config.index == self.inner().index {
                return Ok(());
            }
            let head = Head::read(&config.labels)?;
            if let Some((data, changed)) = self.gather(&head).await? {
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

    fn take(&self, head: Head, index: u64, data: Data, changed: Vec<Change>) {
        let leader = head.leader.clone();
        {
            let mut inner = self.change();
            if index <= inner.index {
                return;
            }
            if inner.proven.is_some() && head.term != inner.head.term {
                inner.proven = None;
            }
            (inner.data, inner.head, inner.index, inner.seen) = (data, head, index, Instant::now());
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
        let index = self.inner().index;
        let name = self.names.head();
        let labels = next.labels(&self.cluster)?;
        let sent = Instant::now();
        let written = match index {
            0 => self.configs.create(&name, &labels, b"the head of a store of Neap; do not change").await,
            _ => self.configs.update(&name, index, &labels).await,
        };
        let accepted = match written {
            Ok(accepted) => accepted,
            Err(error) if !error.retry => return Err(refused(&error)),
            // Whether it got there is found out below.
            Err(_) => false,
        };
        let until = Instant::now() + FIND_OUT;
        let now = loop {
            match self.configs.read(&name).await {
                Ok(Some(config)) => break config,
                Ok(None) => return Err(overtaken("was removed")),
                Err(error) if Instant::now() >= until => {
                    self.change().proven = None;
                    return Err(refused(&error));
                }
                Err(_) => tokio::time::sleep(Duration::from_millis(200)).await,
            }
        };
        if Head::read(&now.labels)? == *next {
            let mut inner = self.change();
            inner.index = now.index;
            inner.head = next.clone();
            inner.seen = Instant::now();
            inner.proven = Some(sent);
            return Ok(());
        }
        if now.index == index && !accepted {
            return Err(Error::new(Kind::Unavailable, "store in the Swarm", "did not take a write").retry(true));
        }
        self.change().proven = None;
        Err(overtaken("is written by another daemon, which leads now"))
    }

    // With the right to write: the log grows by these writes.
    async fn append(&self, writes: &[Write]) -> Result<u64> {
        let (mut next, logged) = {
            let inner = self.inner();
            if inner.proven.is_none() {
                return Err(not_leading(inner.head.leader.as_ref()));
            }
            for write in writes {
                write.meets(inner.data.get(&write.key).map(|(version, _)| *version))?;
            }
            (inner.head.clone(), inner.logged)
        };
        next.seq += 1;
        next.tail.push(Record::new(next.seq, writes));
        let mut size = next.tail_size();
        if size > TAIL {
            let text = serde_json::to_vec(&std::mem::take(&mut next.tail))
                .map_err(|error| Error::internal("store", error.to_string()))?;
            if text.len() > PART * 2 {
                return self.write_whole(writes).await;
            }
            let log = Log { term: next.term, seq: next.seq, merged: false };
            size = text.len();
            self.put(&self.names.log(log), &text).await?;
            next.logs.push(log);
        }
        fault::point("swarm-store.before-head");
        self.advance(&next).await?;
        fault::point("swarm-store.after-head");
        let mut changed = Vec::new();
        {
            let mut inner = self.change();
            inner.logged = logged + size;
            apply(&mut inner.data, Record::new(next.seq, writes), &mut changed);
        }
        for change in changed {
            let _ = self.changes.send(change);
        }
        // What follows keeps the store small; the commit is made, and stays so whatever becomes of that.
        let small = next.logs.iter().rev().take_while(|log| !log.merged).count();
        let kept = if logged + size >= LOG_BYTES.max(self.inner().whole) {
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

    // Puts the last `count` configs of the log together, as far as one config holds them.
    async fn merge(&self, count: usize) -> Result<()> {
        let mut next = self.inner().head.clone();
        let (begin, next_term) = (next.logs.len() - count, next.term);
        let (mut text, mut last) = (String::new(), 0);
        let mut merged = Vec::new();
        let sum = |seq| Log { term: next_term, seq, merged: true };
        for log in next.logs.split_off(begin) {
            let gone = || Error::new(Kind::Corrupt, "store in the Swarm", "lacks a part of its log");
            let records = self.read_log(log).await?.ok_or_else(gone)?;
            let part = serde_json::to_string(&records).map_err(|error| Error::internal("store", error.to_string()))?;
            let inside = part[1..part.len() - 1].to_owned();
            if !text.is_empty() && text.len() + inside.len() > PART {
                merged.push((sum(last), std::mem::take(&mut text)));
            }
            if !text.is_empty() {
                text.push(',');
            }
            text.push_str(&inside);
            last = log.seq;
        }
        if !text.is_empty() {
            merged.push((sum(last), text));
        }
        for (log, text) in merged {
            self.put(&self.names.log(log), format!("[{text}]").as_bytes()).await?;
            next.logs.push(log);
        }
        let old: Vec<Log> = self.inner().head.logs[begin..].to_vec();
        self.advance(&next).await?;
        for log in old {
            let _ = self.configs.remove(&self.names.log(log)).await;
        }
        Ok(())
    }

    // A config of this name and no other contents: an attempt before may have left it there with other ones.
    async fn put(&self, name: &str, data: &[u8]) -> Result<()> {
        let labels = BTreeMap::from([(configs::STORE.to_owned(), self.cluster.clone())]);
        if !self.configs.create(name, &labels, data).await.map_err(|error| refused(&error))? {
            self.configs.remove(name).await.map_err(|error| refused(&error))?;
            self.configs.create(name, &labels, data).await.map_err(|error| refused(&error))?;
        }
        Ok(())
    }

    // A commit too large for the log is part of what is written down whole.
    async fn write_whole(&self, writes: &[Write]) -> Result<u64> {
        self.write_down(writes).await?;
        Ok(self.inner().head.seq)
    }

    // Everything, with `writes` on top, in configs of its own; the log begins anew behind it.
    async fn write_down(&self, writes: &[Write]) -> Result<()> {
        let (mut next, mut data) = {
            let inner = self.inner();
            (inner.head.clone(), inner.data.clone())
        };
        let mut changed = Vec::new();
        if !writes.is_empty() {
            next.seq += 1;
            apply(&mut data, Record::new(next.seq, writes), &mut changed);
        }
        let whole: BTreeMap<&String, (u64, head::Value)> =
            data.iter().map(|(key, (version, value))| (key, (*version, value.clone().into()))).collect();
        let text = serde_json::to_string(&whole).map_err(|error| Error::internal("store", error.to_string()))?;
        let mut snapshot = Snapshot { term: next.term, seq: next.seq, parts: 0 };
        for part in chunks(&text) {
            self.put(&self.names.snapshot(snapshot, snapshot.parts), part.as_bytes()).await?;
            snapshot.parts += 1;
        }
        (next.snapshot, next.logs, next.tail) = (snapshot, Vec::new(), Vec::new());
        fault::point("swarm-store.before-anew");
        self.advance(&next).await?;
        {
            let mut inner = self.change();
            (inner.data, inner.logged, inner.whole) = (data, 0, text.len());
        }
        for change in changed {
            let _ = self.changes.send(change);
        }
        self.clear(snapshot).await;
        Ok(())
    }

    // What the snapshot makes needless, what attempts that failed have left included. A leader after this one has a later
    // term, and nothing of its own is touched.
    async fn clear(&self, snapshot: Snapshot) {
        let kept: Vec<String> = (0..snapshot.parts).map(|part| self.names.snapshot(snapshot, part)).collect();
        let Ok(names) = self.configs.names().await else { return };
        for name in names {
            let old = self.names.read(&name).is_some_and(|(term, seq)| term <= snapshot.term && seq <= snapshot.seq);
            if old && !kept.contains(&name) {
                let _ = self.configs.remove(&name).await;
            }
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

// Pieces of at most `PART` bytes that end between characters.
fn chunks(text: &str) -> Vec<&str> {
    let mut parts = Vec::new();
    let mut rest = text;
    while !rest.is_empty() {
        let mut end = rest.len().min(PART);
        while !rest.is_char_boundary(end) {
            end -= 1;
        }
        let (part, behind) = rest.split_at(end);
        parts.push(part);
        rest = behind;
    }
    parts
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
