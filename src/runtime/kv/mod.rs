//! Keys and values: records of their own, beside the world; and the sessions that hold some of them locked.

pub mod change;
pub mod index;
mod record;
pub mod restore;
pub mod session;
#[cfg(test)]
mod tests;

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use tokio::sync::{Notify, broadcast, mpsc};

use self::change::{Op, Outcome, Verb, tree};
use self::index::{Memory, Topic};
pub use self::record::Pair;
use self::record::{KV, kv_key, own_key};
use super::Parts;
use crate::client::kv::{KvChange, KvEntry, KvSet};
use crate::model::clock::Clock;
use crate::model::{Error, Kind, Result};
use crate::network::waiting::Waiters;
use crate::store::{Store, Write, encode};

/// Where the number stands that no index of a daemon before has reached.
const FLOOR: &str = "kv-floor";
/// Longest key that Consul's clients may write, in bytes: what the store takes.
const MAX_ANY_KEY: usize = 500;

/// Longest key, in bytes.
const MAX_KEY: usize = 256;
/// Largest value, in bytes (Consul's bound).
pub const MAX_KV: usize = 512 * 1024;

/// All keys, and what is known of them in memory.
pub struct Kv {
    store: Arc<dyn Store>,
    clock: Arc<dyn Clock>,
    memory: Mutex<Memory>,
    waiters: Waiters<Topic>,
    // Changes of one key go on beside each other; what looks at several, or at sessions, is alone.
    gate: tokio::sync::RwLock<()>,
    // A session has begun.
    look: Notify,
}

/// An error unless `key` can be one.
pub fn check_key(what: &str, key: &str) -> Result<()> {
    let wrong = |why: String| {
        Err(Error::invalid(format!("{what} {key:.70?}"), why)
            .help("use a path such as \"shop/level\", at most 256 bytes"))
    };
    if key.is_empty() {
        return wrong("is empty".into());
    }
    if key.len() > MAX_KEY {
        return wrong(format!("is {} bytes long", key.len()));
    }
    if key.starts_with('/') || key.ends_with('/') || key.contains("//") {
        return wrong("begins or ends with \"/\", or holds two in a row".into());
    }
    match key.chars().find(|c| c.is_control()) {
        Some(bad) => wrong(format!("holds {bad:?}")),
        None => Ok(()),
    }
}

/// An error unless `key` can be one for Consul's clients, which take any text.
pub fn check_any_key(what: &str, key: &str) -> Result<()> {
    let wrong = |why: String| Err(Error::invalid(format!("{what} {key:.70?}"), why));
    match key {
        "" => wrong("is empty".into()),
        _ if key.len() > MAX_ANY_KEY => wrong(format!("is {} bytes long; {MAX_ANY_KEY} are allowed", key.len())),
        _ if key.contains('\0') => wrong("holds a zero byte".into()),
        _ => Ok(()),
    }
}

/// One key's entry.
pub fn get(store: &dyn Store, key: &str) -> Result<Option<KvEntry>> {
    check_any_key("key", key)?;
    let entry = store.get(&kv_key(key))?;
    entry.map(|entry| Ok(Pair::read(&entry)?.shown(key))).transpose()
}

/// All entries whose key begins with `prefix`.
pub fn list(store: &dyn Store, prefix: &str) -> Result<Vec<KvEntry>> {
    Ok(tree(store, prefix)?.into_iter().map(|(key, pair)| pair.shown(&key)).collect())
}

impl Kv {
    /// What there is in `store`.
    pub fn load(store: Arc<dyn Store>, clock: Arc<dyn Clock>) -> Result<Arc<Self>> {
        let mut memory = Memory::default();
        let (mut last, mut locked) = (0, Vec::new());
        for entry in store.list(KV)? {
            let pair = Pair::read(&entry)?;
            let key = own_key(&entry);
            memory.note(&key, entry.version, false);
            last = last.max(entry.version);
            locked.extend(pair.session.map(|session| (session, key)));
        }
        for (session, key) in locked {
            memory.hold(&key, Some(&session));
        }
        memory.begin(last);
        let (waiters, gate, look) = (Waiters::default(), tokio::sync::RwLock::default(), Notify::new());
        Ok(Arc::new(Kv { store, clock, memory: Mutex::new(memory), waiters, gate, look }))
    }

    /// Has to be called before anybody is told an index: what is told after a restart is no lower than what was told before.
    pub async fn hold_index(&self) -> Result<()> {
        let version = self.store.commit(vec![Write::put(FLOOR, encode(&self.clock.wall()))]).await?;
        self.memory().begin(version);
        Ok(())
    }

    /// Where they are written down.
    pub fn store(&self) -> &dyn Store {
        &*self.store
    }

    fn memory(&self) -> MutexGuard<'_, Memory> {
        self.memory.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The last change of what is waited for.
    pub fn index_of(&self, topic: &Topic) -> u64 {
        self.memory().index_of(topic)
    }

    /// Waits until the topic's index is another than `index`, or the time is over.
    pub async fn wait(&self, topic: &Topic, index: u64, most: Duration) {
        let until = tokio::time::Instant::now() + most;
        self.waiters.wait(topic, until, || self.index_of(topic) != index).await;
    }

    /// One key, with what belongs to it.
    pub fn pair(&self, key: &str) -> Result<Option<Pair>> {
        self.store.get(&kv_key(key))?.as_ref().map(Pair::read).transpose()
    }

    /// All that begin so, by key.
    pub fn tree(&self, prefix: &str) -> Result<Vec<(String, Pair)>> {
        tree(&*self.store, prefix)
    }

    // What a commit has changed is known from now on, and whoever waits for it is told.
    fn committed(&self, changed: Vec<(String, Option<Pair>)>, ended: &[String], version: u64) {
        if version == 0 {
            return;
        }
        let mut memory = self.memory();
        for id in ended {
            memory.end(id);
            memory.note_sessions(version);
        }
        for (key, pair) in &changed {
            // Two may come in either order; what is later counts.
            if memory.note(key, version, pair.is_none()) {
                memory.hold(key, pair.as_ref().and_then(|pair| pair.session.as_deref()));
            }
        }
        drop(memory);
        let concerns = |topic: &Topic| match topic {
            Topic::Sessions => !ended.is_empty(),
            topic => changed.iter().any(|(key, _)| topic.has(key)),
        };
        self.waiters.wake_if(concerns);
    }

    /// Sets a key.
    pub async fn set(&self, key: &str, set: KvSet) -> Result<KvEntry> {
        check_key("key", key)?;
        let value = match set.base64 {
            false => set.value.into_bytes(),
            true => BASE64_STANDARD
                .decode(&set.value)
                .map_err(|error| Error::invalid(format!("key \"{key}\""), "its value is not base64").cause(error))?,
        };
        let (verb, index) = match set.version {
            None => (Verb::Set, 0),
            Some(version) => (Verb::Cas, version),
        };
        match self.run(&[Op { value, flags: None, index, ..Op::new(verb, key) }]).await? {
            Outcome::Done(mut read, _) => {
                let (_, _, pair) = read.pop().ok_or_else(|| Error::internal("key", "is not there"))?;
                Ok(pair.shown(key))
            }
            Outcome::Refused(_) => Err(self.conflict(key, set.version)),
        }
    }

    /// Removes a key; false: there was none.
    pub async fn delete(&self, key: &str, version: Option<u64>) -> Result<bool> {
        let there = self.pair(key)?.is_some();
        if version.is_some() && !there {
            return Err(self.conflict(key, version));
        }
        let (verb, index) = match version {
            None => (Verb::Delete, 0),
            Some(version) => (Verb::DeleteCas, version),
        };
        match self.run(&[Op { index, ..Op::new(verb, key) }]).await? {
            Outcome::Done(..) => Ok(there),
            Outcome::Refused(_) => Err(self.conflict(key, version)),
        }
    }

    // What is there now is what people want to know.
    fn conflict(&self, key: &str, expected: Option<u64>) -> Error {
        let message = match self.pair(key).ok().flatten() {
            Some(pair) => format!("has version {} by now", pair.modified),
            None => format!("does not exist; version {} was expected", expected.unwrap_or_default()),
        };
        Error::new(Kind::Conflict, format!("key \"{key}\""), message).help("read it again, and decide anew")
    }
}

/// The entries below `prefix`, and each change from then on.
pub fn watch(parts: &Arc<Parts>, prefix: &str, sender: mpsc::Sender<Result<KvChange>>) -> Result<()> {
    // Before the list is read, so that nothing falls between the two.
    let mut changes = parts.store.watch();
    let entries = list(&*parts.store, prefix)?;
    let (parts, wanted, prefix) = (parts.clone(), kv_key(prefix), prefix.to_owned());
    tokio::spawn(async move {
        let mut entries = entries;
        let mut told = std::collections::BTreeSet::new();
        loop {
            for entry in std::mem::take(&mut entries) {
                told.insert(entry.key.clone());
                let change = KvChange { key: entry.key.clone(), entry: Some(entry) };
                if sender.send(Ok(change)).await.is_err() {
                    return;
                }
            }
            let change = tokio::select! {
                biased;
                change = changes.recv() => change,
                () = sender.closed() => return,
            };
            let sent = match change {
                Ok(change) if change.key.starts_with(&wanted) => {
                    let key = change.key["kv/".len()..].to_owned();
                    let entry = if change.removed { Ok(None) } else { get(&*parts.store, &key) };
                    match change.removed {
                        true => told.remove(&key),
                        false => told.insert(key.clone()),
                    };
                    sender.send(entry.map(|entry| KvChange { key, entry })).await
                }
                Ok(_) => Ok(()),
                // Too many at once: all that is there is told again.
                Err(broadcast::error::RecvError::Lagged(_)) => match list(&*parts.store, &prefix) {
                    Ok(all) => {
                        entries = all;
                        let there = |key: &String| entries.iter().any(|entry| entry.key == *key);
                        let gone: Vec<String> = told.iter().filter(|key| !there(key)).cloned().collect();
                        for key in gone {
                            told.remove(&key);
                            if sender.send(Ok(KvChange { key, entry: None })).await.is_err() {
                                return;
                            }
                        }
                        Ok(())
                    }
                    Err(error) => sender.send(Err(error)).await,
                },
                Err(broadcast::error::RecvError::Closed) => return,
            };
            if sent.is_err() {
                return;
            }
        }
    });
    Ok(())
}

/// Names of keys, for completion.
pub fn names(store: &dyn Store, of: &str, prefix: &str, limit: usize) -> Result<Vec<String>> {
    let entries = store.list(&format!("{of}/{prefix}"))?;
    Ok(entries.into_iter().take(limit).map(|entry| entry.key[of.len() + 1..].to_owned()).collect())
}
