//! Keys and values: records of their own, beside the world.

use std::sync::Arc;

use serde::{Deserialize, Serialize};
use tokio::sync::{broadcast, mpsc};

use super::Parts;
use crate::client::kv::{KvChange, KvEntry, KvSet};
use crate::model::clock::Timestamp;
use crate::model::{Error, Kind, Result};
use crate::store::{Entry, Expect, MAX_VALUE, Store, Write, decode, encode};

/// Longest key, in bytes.
const MAX_KEY: usize = 256;
/// Largest value, in bytes (Consul's bound).
pub const MAX_KV: usize = 512 * 1024;

/// A value as it is stored.
#[derive(Debug, Serialize, Deserialize)]
struct Record {
    value: String,
    at: Timestamp,
}

fn kv_key(key: &str) -> String {
    format!("kv/{key}")
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

fn shown(entry: &Entry) -> Result<KvEntry> {
    let record: Record = decode(&entry.key, &entry.value)?;
    let key = entry.key["kv/".len()..].to_owned();
    Ok(KvEntry { key, value: record.value, version: entry.version, at: record.at })
}

/// One key's entry.
pub fn get(store: &dyn Store, key: &str) -> Result<Option<KvEntry>> {
    check_key("key", key)?;
    store.get(&kv_key(key))?.as_ref().map(shown).transpose()
}

/// All entries whose key begins with `prefix`.
pub fn list(store: &dyn Store, prefix: &str) -> Result<Vec<KvEntry>> {
    store.list(&kv_key(prefix))?.iter().map(shown).collect()
}

/// Sets a key.
pub async fn set(parts: &Parts, key: &str, set: KvSet) -> Result<KvEntry> {
    check_key("key", key)?;
    let size = set.value.len();
    if size > MAX_KV {
        return Err(Error::new(
            Kind::Exhausted,
            format!("key \"{key}\""),
            format!("a value of {size} bytes is too large"),
        )
        .help(format!("at most {MAX_KV} bytes")));
    }
    let at = parts.clock.wall();
    let record = encode(&Record { value: set.value.clone(), at });
    if record.len() > MAX_VALUE {
        return Err(Error::new(Kind::Exhausted, format!("key \"{key}\""), "its value is too large as it is written"));
    }
    let expect = match set.version {
        None => Expect::Any,
        Some(0) => Expect::Absent,
        Some(version) => Expect::Version(version),
    };
    let write = Write::put(kv_key(key), record).expect(expect);
    let version = parts.store.commit(vec![write]).await.map_err(|error| conflict(parts, key, set.version, error))?;
    Ok(KvEntry { key: key.to_owned(), value: set.value, version, at })
}

/// Removes a key; false: there was none.
pub async fn delete(parts: &Parts, key: &str, version: Option<u64>) -> Result<bool> {
    check_key("key", key)?;
    let there = parts.store.get(&kv_key(key))?.is_some();
    if !there && version.is_none() {
        return Ok(false);
    }
    let expect = version.map_or(Expect::Any, Expect::Version);
    let write = Write::remove(kv_key(key)).expect(expect);
    parts.store.commit(vec![write]).await.map_err(|error| conflict(parts, key, version, error))?;
    Ok(there)
}

// The store names its own key; people know another, and want to know what is there now.
fn conflict(parts: &Parts, key: &str, expected: Option<u64>, error: Error) -> Error {
    if error.kind != Kind::Conflict {
        return error;
    }
    let now = parts.store.get(&kv_key(key)).ok().flatten();
    let message = match now {
        Some(entry) => format!("has version {} by now", entry.version),
        None => format!("does not exist; version {} was expected", expected.unwrap_or_default()),
    };
    Error::new(Kind::Conflict, format!("key \"{key}\""), message).help("read it again, and decide anew").retry(false)
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
