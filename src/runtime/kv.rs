//! Keys and values, and secrets: records of their own, beside the world.

use std::sync::Arc;

use serde::{Deserialize, Serialize};
use tokio::sync::{broadcast, mpsc};

use super::Parts;
use crate::client::kv::{KvChange, KvEntry, KvSet, SecretInfo, SecretSet};
use crate::model::clock::Timestamp;
use crate::model::{Error, Kind, Result};
use crate::scheduler::world::World;
use crate::store::{Entry, Expect, MAX_VALUE, Write, decode, encode};

/// Longest key, in bytes.
const MAX_KEY: usize = 256;
/// Largest value, in bytes (Consul's bound).
pub const MAX_KV: usize = 512 * 1024;
/// Largest secret, in bytes (Docker's bound).
const MAX_SECRET: usize = 500 * 1024;

/// A value as it is stored.
#[derive(Debug, Serialize, Deserialize)]
struct Record {
    value: String,
    at: Timestamp,
}

/// A secret as it is stored: all versions that something may still use, sealed.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct SecretRecord {
    /// Counts the times that it was set.
    pub version: u64,
    /// When it was set.
    pub at: Timestamp,
    /// Versions and what they hold, sealed, in hexadecimal digits; the oldest first.
    pub sealed: Vec<(u64, String)>,
}

/// The store's key of a secret.
pub fn secret_key(name: &str) -> String {
    format!("secret/{name}")
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
pub fn get(parts: &Parts, key: &str) -> Result<Option<KvEntry>> {
    check_key("key", key)?;
    parts.store.get(&kv_key(key))?.as_ref().map(shown).transpose()
}

/// All entries whose key begins with `prefix`.
pub fn list(parts: &Parts, prefix: &str) -> Result<Vec<KvEntry>> {
    parts.store.list(&kv_key(prefix))?.iter().map(shown).collect()
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
    let entries = list(parts, prefix)?;
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
                    let entry = if change.removed { Ok(None) } else { get(&parts, &key) };
                    match change.removed {
                        true => told.remove(&key),
                        false => told.insert(key.clone()),
                    };
                    sender.send(entry.map(|entry| KvChange { key, entry })).await
                }
                Ok(_) => Ok(()),
                // Too many at once: all that is there is told again.
                Err(broadcast::error::RecvError::Lagged(_)) => match list(&parts, &prefix) {
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
pub fn names(parts: &Parts, of: &str, prefix: &str, limit: usize) -> Result<Vec<String>> {
    let entries = parts.store.list(&format!("{of}/{prefix}"))?;
    Ok(entries.into_iter().take(limit).map(|entry| entry.key[of.len() + 1..].to_owned()).collect())
}

/// All secrets.
pub fn secrets(parts: &Parts, world: &World) -> Result<Vec<SecretInfo>> {
    let entries = parts.store.list("secret/")?;
    let info = |entry: &Entry| {
        let record: SecretRecord = decode(&entry.key, &entry.value)?;
        Ok(info(world, &entry.key["secret/".len()..], &record))
    };
    entries.iter().map(info).collect()
}

fn info(world: &World, name: &str, record: &SecretRecord) -> SecretInfo {
    SecretInfo { name: name.to_owned(), version: record.version, at: record.at, used_by: users(world, name) }
}

// Services with a revision that uses the secret.
fn users(world: &World, name: &str) -> Vec<String> {
    let uses = world.revisions.values().filter(|revision| revision.secrets.contains_key(name));
    let mut users: Vec<String> = uses.map(|revision| revision.service.to_string()).collect();
    users.dedup();
    users
}

/// Sets a secret. Versions that a revision uses are kept beside it.
pub async fn set_secret(parts: &Parts, world: &World, name: &str, set: SecretSet) -> Result<SecretInfo> {
    check_key("secret", name)?;
    if set.value.len() > MAX_SECRET {
        let message = format!("a value of {} bytes is too large", set.value.len());
        return Err(Error::new(Kind::Exhausted, format!("secret \"{name}\""), message)
            .help(format!("at most {MAX_SECRET} bytes")));
    }
    for _ in 0..10 {
        let old = parts.store.get(&secret_key(name))?;
        let expect = old.as_ref().map_or(Expect::Absent, |entry| Expect::Version(entry.version));
        let mut record: SecretRecord =
            old.map(|entry| decode(&entry.key, &entry.value)).transpose()?.unwrap_or_default();
        let used = |version: u64| world.revisions.values().any(|revision| revision.secrets.get(name) == Some(&version));
        // The last one as well: an apply that has looked it up may be about to use it.
        let last = record.version;
        record.sealed.retain(|(version, _)| used(*version) || *version == last);
        record.version += 1;
        record.at = parts.clock.wall();
        let sealed = parts.vault.seal(&format!("{name}@{}", record.version), set.value.as_bytes())?;
        record.sealed.push((record.version, hex(&sealed)));
        let bytes = encode(&record);
        if bytes.len() > MAX_VALUE {
            return Err(Error::new(
                Kind::Exhausted,
                format!("secret \"{name}\""),
                "its versions in use are too large together",
            )
            .help("apply the services that use it, so that older versions are forgotten"));
        }
        match parts.store.commit(vec![Write::put(secret_key(name), bytes).expect(expect)]).await {
            Ok(_) => return Ok(info(world, name, &record)),
            // Somebody else set it in between: once more, on top of that.
            Err(error) if error.kind == Kind::Conflict => {}
            Err(error) => return Err(error),
        }
    }
    Err(Error::new(Kind::Conflict, format!("secret \"{name}\""), "is being set by others all the time").retry(true))
}

/// Removes a secret that nothing uses.
pub async fn remove_secret(parts: &Parts, world: &World, name: &str) -> Result<()> {
    check_key("secret", name)?;
    if parts.store.get(&secret_key(name))?.is_none() {
        return Err(Error::not_found(format!("secret \"{name:.70}\"")).help("`neap secret ls` lists them"));
    }
    let users = users(world, name);
    if !users.is_empty() {
        let message = format!("is used by {}", users.join(", "));
        return Err(Error::new(Kind::Conflict, format!("secret \"{name}\""), message)
            .help("change those services first; the revisions that they may go back to count as well"));
    }
    parts.store.commit(vec![Write::remove(secret_key(name))]).await.map(drop)
}

/// The version that a secret has now.
pub fn secret_version(parts: &Parts, name: &str) -> Result<Option<u64>> {
    check_key("secret", name)?;
    let entry = parts.store.get(&secret_key(name))?;
    entry.map(|entry| Ok(decode::<SecretRecord>(&entry.key, &entry.value)?.version)).transpose()
}

/// A secret's value in one version, for the engine that hands it to a replica.
pub fn reveal(parts: &Parts, name: &str, version: u64) -> Result<Vec<u8>> {
    let gone = || Error::not_found(format!("secret \"{name:.70}\", version {version}"));
    let entry = parts.store.get(&secret_key(name))?.ok_or_else(gone)?;
    let record: SecretRecord = decode(&entry.key, &entry.value)?;
    let sealed = record.sealed.iter().find(|(of, _)| *of == version).ok_or_else(gone)?;
    parts.vault.unseal(&format!("{name}@{version}"), &unhex(&sealed.1).ok_or_else(gone)?)
}

fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write as _;
    bytes.iter().fold(String::with_capacity(2 * bytes.len()), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

fn unhex(text: &str) -> Option<Vec<u8>> {
    let digits = text.as_bytes();
    let pair = |pair: &[u8]| u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok();
    if digits.len().is_multiple_of(2) { digits.chunks(2).map(pair).collect() } else { None }
}
