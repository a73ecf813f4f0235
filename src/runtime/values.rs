//! Secrets and configs: values in versions, each of which is kept as long as a revision uses it.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::kv::check_key;
use super::{Parts, Runtime};
use crate::client::kv::{ConfigValue, ValueChange, ValueInfo, ValueKind, ValueSet};
use crate::client::{Apply, Cluster, Only};
use crate::model::clock::Timestamp;
use crate::model::service::Revision;
use crate::model::{Error, Kind, Result};
use crate::scheduler::world::World;
use crate::store::{Entry, Expect, MAX_VALUE, Write, decode, encode};

/// Largest value, in bytes (Docker's bound for secrets).
const MAX: usize = 500 * 1024;

/// One as it is stored: all versions that something may still use.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
struct Record {
    // Counts the times that it was set.
    version: u64,
    // When it was set.
    at: Timestamp,
    // Versions and what they hold, the oldest first: a config's text, a secret sealed and in hexadecimal digits.
    #[serde(rename = "sealed")]
    held: Vec<(u64, String)>,
}

fn key(of: ValueKind, name: &str) -> String {
    format!("{}/{name}", of.as_str())
}

fn subject(of: ValueKind, name: &str) -> String {
    format!("{} \"{name:.70}\"", of.as_str())
}

// The versions that a revision was made of.
fn versions(of: ValueKind, revision: &Revision) -> &BTreeMap<String, u64> {
    match of {
        ValueKind::Secret => &revision.secrets,
        ValueKind::Config => &revision.configs,
    }
}

/// All of one kind.
pub fn list(parts: &Parts, world: &World, of: ValueKind) -> Result<Vec<ValueInfo>> {
    let prefix = key(of, "");
    let info = |entry: &Entry| {
        let record: Record = decode(&entry.key, &entry.value)?;
        Ok(info(world, of, &entry.key[prefix.len()..], &record))
    };
    parts.store.list(&prefix)?.iter().map(info).collect()
}

fn info(world: &World, of: ValueKind, name: &str, record: &Record) -> ValueInfo {
    ValueInfo { name: name.to_owned(), version: record.version, at: record.at, used_by: users(world, of, name) }
}

// Services with a revision that uses it.
fn users(world: &World, of: ValueKind, name: &str) -> Vec<String> {
    let uses = world.revisions.values().filter(|revision| versions(of, revision).contains_key(name));
    let mut users: Vec<String> = uses.map(|revision| revision.service.to_string()).collect();
    users.dedup();
    users
}

fn read(parts: &Parts, of: ValueKind, name: &str) -> Result<Option<(Record, u64)>> {
    check_key(of.as_str(), name)?;
    let entry = parts.store.get(&key(of, name))?;
    entry.map(|entry| Ok((decode(&entry.key, &entry.value)?, entry.version))).transpose()
}

fn missing(of: ValueKind, name: &str) -> Error {
    Error::not_found(subject(of, name)).help(format!("`neap {} ls` lists them", of.as_str()))
}

/// A config with its value.
pub fn config(parts: &Parts, world: &World, name: &str) -> Result<ConfigValue> {
    let of = ValueKind::Config;
    let (record, _) = read(parts, of, name)?.ok_or_else(|| missing(of, name))?;
    let value = record.held.last().map(|(_, value)| value.clone()).unwrap_or_default();
    Ok(ConfigValue { info: info(world, of, name, &record), value })
}

/// Sets one. Versions that a revision uses are kept beside it.
pub async fn set(parts: &Parts, world: &World, of: ValueKind, name: &str, set: &ValueSet) -> Result<ValueInfo> {
    check_key(of.as_str(), name)?;
    if set.value.len() > MAX {
        let message = format!("a value of {} bytes is too large", set.value.len());
        return Err(Error::new(Kind::Exhausted, subject(of, name), message).help(format!("at most {MAX} bytes")));
    }
    for _ in 0..10 {
        let old = read(parts, of, name)?;
        if old.is_some() && set.only_new {
            return Err(Error::new(Kind::Conflict, subject(of, name), "is there already")
                .help(format!("`neap {} set` gives it another value", of.as_str())));
        }
        let expect = old.as_ref().map_or(Expect::Absent, |(_, version)| Expect::Version(*version));
        let mut record = old.map(|(record, _)| record).unwrap_or_default();
        let used =
            |version: u64| world.revisions.values().any(|revision| versions(of, revision).get(name) == Some(&version));
        // The last one as well: an apply that has looked it up may be about to use it.
        let last = record.version;
        record.held.retain(|(version, _)| used(*version) || *version == last);
        record.version += 1;
        record.at = parts.clock.wall();
        let held = match of {
            ValueKind::Secret => hex(&parts.vault.seal(&sealed_as(name, record.version), set.value.as_bytes())?),
            ValueKind::Config => set.value.clone(),
        };
        record.held.push((record.version, held));
        let bytes = encode(&record);
        if bytes.len() > MAX_VALUE {
            return Err(Error::new(Kind::Exhausted, subject(of, name), "its versions in use are too large together")
                .help("apply the services that use it, so that older versions are forgotten"));
        }
        match parts.store.commit(vec![Write::put(key(of, name), bytes).expect(expect)]).await {
            Ok(_) => return Ok(info(world, of, name, &record)),
            // Somebody else set it in between: once more, on top of that.
            Err(error) if error.kind == Kind::Conflict => {}
            Err(error) => return Err(error),
        }
    }
    Err(Error::new(Kind::Conflict, subject(of, name), "is being set by others all the time").retry(true))
}

fn sealed_as(name: &str, version: u64) -> String {
    format!("{name}@{version}")
}

/// Removes one that nothing uses.
pub async fn remove(parts: &Parts, world: &World, of: ValueKind, name: &str) -> Result<()> {
    read(parts, of, name)?.ok_or_else(|| missing(of, name))?;
    let users = users(world, of, name);
    if !users.is_empty() {
        let message = format!("is used by {}", users.join(", "));
        return Err(Error::new(Kind::Conflict, subject(of, name), message)
            .help("change those services first; the revisions that they may go back to count as well"));
    }
    parts.store.commit(vec![Write::remove(key(of, name))]).await.map(drop)
}

/// The version that one has now.
pub fn version(parts: &Parts, of: ValueKind, name: &str) -> Result<Option<u64>> {
    Ok(read(parts, of, name)?.map(|(record, _)| record.version))
}

/// A value in one version, for the engine that hands it to a replica.
pub fn reveal(parts: &Parts, of: ValueKind, name: &str, version: u64) -> Result<Vec<u8>> {
    let gone = || Error::not_found(format!("{}, version {version}", subject(of, name)));
    let (record, _) = read(parts, of, name)?.ok_or_else(gone)?;
    let (_, held) = record.held.into_iter().find(|(of, _)| *of == version).ok_or_else(gone)?;
    match of {
        ValueKind::Secret => parts.vault.unseal(&sealed_as(name, version), &unhex(&held).ok_or_else(gone)?),
        ValueKind::Config => Ok(held.into_bytes()),
    }
}

impl Runtime {
    // Services whose description names it take the new version; each by a release of its own.
    pub(super) async fn roll_out_users(&self, of: ValueKind, name: &str, info: ValueInfo) -> ValueChange {
        let world = self.world();
        let uses = |spec: &crate::model::service::ServiceSpec| match of {
            ValueKind::Secret => spec.secrets.values().any(|used| used == name),
            ValueKind::Config => spec.configs.values().any(|used| used.name == name),
        };
        let users = world.services.values().filter(|service| !service.removing && uses(&service.spec));
        let users: Vec<String> = users.map(|service| service.spec.name.to_string()).collect();
        let mut change = ValueChange { info, rolled_out: Vec::new(), refused: BTreeMap::new() };
        for user in users {
            let service = serde_json::json!({ "name": user });
            match self.apply(Apply { service, with: None, only: Only::Update }).await {
                Ok(_) => change.rolled_out.push(user),
                Err(error) => {
                    change.refused.insert(user, error.to_string());
                }
            }
        }
        change
    }
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
