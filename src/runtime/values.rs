//! Secrets and configs: values in versions, each of which is kept as long as a revision uses it.

use std::collections::BTreeMap;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Serialize};

use super::kv::check_key;
use super::{Parts, Runtime};
use crate::client::kv::{ConfigValue, ValueChange, ValueInfo, ValueKind, ValueSet};
use crate::client::{Apply, Cluster, Only};
use crate::model::clock::Timestamp;
use crate::model::id::TaskId;
use crate::model::release::ReleaseState;
use crate::model::route::RouteSpec;
use crate::model::service::{Revision, ServiceSpec};
use crate::model::units::Duration;
use crate::model::{Error, Kind, Result};
use crate::scheduler::world::World;
use crate::store::{Entry, Expect, Store, Write, decode, encode};

/// Largest value, in bytes: a Swarm takes secrets of less than 500 KiB.
const MAX: usize = 500 * 1024 - 1;
/// A version that no revision uses is kept so long: an apply that has looked it up may be about to.
const KEPT: Duration = Duration::from_secs(600);

/// What is known of one. Its values are records of their own.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
struct Record {
    // Counts the values that it was set to.
    version: u64,
    // When it was set.
    at: Timestamp,
    // Versions that something may still use, the oldest first.
    versions: Vec<Held>,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
struct Held {
    version: u64,
    at: Timestamp,
    // Where its value is: two that are set at once do not meet there.
    id: String,
}

/// A value as it is stored: a config's text, or a secret, sealed and in base64.
#[derive(Debug, Serialize, Deserialize)]
struct Value {
    value: String,
}

fn key(of: ValueKind, name: &str) -> String {
    format!("{}/{name}", of.as_str())
}

fn value_key(of: ValueKind, name: &str, id: &str) -> String {
    format!("{}-value/{name}@{id}", of.as_str())
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
pub fn list(store: &dyn Store, world: &World, of: ValueKind) -> Result<Vec<ValueInfo>> {
    let prefix = key(of, "");
    let info = |entry: &Entry| {
        let record: Record = decode(&entry.key, &entry.value)?;
        Ok(info(world, of, &entry.key[prefix.len()..], &record))
    };
    store.list(&prefix)?.iter().map(info).collect()
}

fn info(world: &World, of: ValueKind, name: &str, record: &Record) -> ValueInfo {
    ValueInfo { name: name.to_owned(), version: record.version, at: record.at, used_by: users(world, of, name) }
}

// Services with a revision that uses it.
fn users(world: &World, of: ValueKind, name: &str) -> Vec<String> {
    let mut users = super::objects::users(world, |revision| versions(of, revision).contains_key(name));
    if of == ValueKind::Secret {
        let place = format!("secret:{name}");
        let uses = |spec: &RouteSpec| spec.tls.as_ref().is_some_and(|tls| tls.certificate == place || tls.key == place);
        let routes = world.routes.values().filter(|route| uses(&route.spec));
        users.extend(routes.map(|route| format!("route {}", route.name)));
        let services = world.services.values().filter(|service| service.spec.routes.iter().any(uses));
        users.extend(services.map(|service| service.spec.name.to_string()));
        users.sort();
        users.dedup();
    }
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
    let value = reveal(parts, of, name, record.version)?;
    Ok(ConfigValue { info: info(world, of, name, &record), value: String::from_utf8_lossy(&value).into_owned() })
}

/// A secret's newest version.
pub fn secret_version(parts: &Parts, name: &str) -> Result<u64> {
    let of = ValueKind::Secret;
    Ok(read(parts, of, name)?.ok_or_else(|| missing(of, name))?.0.version)
}

/// A secret as it is now.
pub fn secret(parts: &Parts, name: &str) -> Result<Vec<u8>> {
    reveal(parts, ValueKind::Secret, name, secret_version(parts, name)?)
}

// A secret is sealed for its name and its place, so that it cannot be moved to another.
fn sealed_as(name: &str, id: &str) -> String {
    format!("{name}@{id}")
}

/// Removes one that nothing uses.
pub async fn remove(parts: &Parts, world: &World, of: ValueKind, name: &str) -> Result<()> {
    let (record, version) = read(parts, of, name)?.ok_or_else(|| missing(of, name))?;
    let users = users(world, of, name);
    if !users.is_empty() {
        let message = format!("is used by {}", users.join(", "));
        return Err(Error::new(Kind::Conflict, subject(of, name), message)
            .help("change those services first; the revisions that they may go back to count as well"));
    }
    let mut writes = vec![Write::remove(key(of, name)).expect(Expect::Version(version))];
    // Its own, one by one: another's name may begin with this one's.
    writes.extend(record.versions.iter().map(|held| Write::remove(value_key(of, name, &held.id))));
    parts.store.commit(writes).await.map(drop)
}

/// The version that one has now.
pub fn version(parts: &Parts, of: ValueKind, name: &str) -> Result<Option<u64>> {
    Ok(read(parts, of, name)?.map(|(record, _)| record.version))
}

/// A value in one version, for the engine that hands it to a replica.
pub fn reveal(parts: &Parts, of: ValueKind, name: &str, version: u64) -> Result<Vec<u8>> {
    let gone = || Error::not_found(format!("{}, version {version}", subject(of, name)));
    let (record, _) = read(parts, of, name)?.ok_or_else(gone)?;
    let held = record.versions.into_iter().find(|held| held.version == version).ok_or_else(gone)?;
    let entry = parts.store.get(&value_key(of, name, &held.id))?.ok_or_else(gone)?;
    let Value { value } = decode(&entry.key, &entry.value)?;
    match of {
        ValueKind::Secret => {
            parts.vault.unseal(&sealed_as(name, &held.id), &STANDARD.decode(value).map_err(|_| gone())?)
        }
        ValueKind::Config => Ok(value.into_bytes()),
    }
}

impl Runtime {
    /// Sets one. A value that is there already is no new version; versions that a revision uses are kept.
    pub(super) async fn set_one(&self, of: ValueKind, name: &str, set: &ValueSet) -> Result<ValueInfo> {
        let parts = &self.parts;
        check_key(of.as_str(), name)?;
        if set.value.is_empty() {
            return Err(Error::invalid(subject(of, name), "is empty"));
        }
        if set.value.len() > MAX {
            let message = format!("a value of {} bytes is too large", set.value.len());
            return Err(Error::new(Kind::Exhausted, subject(of, name), message).help(format!("at most {MAX} bytes")));
        }
        for _ in 0..10 {
            let world = self.world();
            let old = read(parts, of, name)?;
            if old.is_some() && set.only_new {
                return Err(Error::new(Kind::Conflict, subject(of, name), "is there already")
                    .help(format!("`neap {} set` gives it another value", of.as_str())));
            }
            let expect = old.as_ref().map_or(Expect::Absent, |(_, version)| Expect::Version(*version));
            let mut record = old.map(|(record, _)| record).unwrap_or_default();
            if record.version > 0 && reveal(parts, of, name, record.version)? == set.value.as_bytes() {
                return Ok(info(&world, of, name, &record));
            }
            let now = parts.clock.wall();
            let used = |version: u64| {
                world.revisions.values().any(|revision| versions(of, revision).get(name) == Some(&version))
            };
            let last = record.version;
            let stays = |held: &Held| used(held.version) || held.version == last || now.since(held.at) < KEPT;
            let gone: Vec<Held> = record.versions.extract_if(.., |held| !stays(held)).collect();
            record.version += 1;
            record.at = now;
            let id = TaskId::new(&*parts.clock).to_string();
            let value = match of {
                ValueKind::Secret => STANDARD.encode(parts.vault.seal(&sealed_as(name, &id), set.value.as_bytes())?),
                ValueKind::Config => set.value.clone(),
            };
            // The value first, by itself since it may be large; nobody knows of it before the record does.
            let place = value_key(of, name, &id);
            parts.store.commit(vec![Write::put(&place, encode(&Value { value })).expect(Expect::Absent)]).await?;
            record.versions.push(Held { version: record.version, at: now, id });
            let mut writes = vec![Write::put(key(of, name), encode(&record)).expect(expect)];
            writes.extend(gone.iter().map(|held| Write::remove(value_key(of, name, &held.id))));
            match parts.store.commit(writes).await {
                Ok(_) => return Ok(info(&world, of, name, &record)),
                // Somebody else set it in between: once more, on top of that.
                Err(error) => {
                    let _ = parts.store.commit(vec![Write::remove(place)]).await;
                    if error.kind != Kind::Conflict {
                        return Err(error);
                    }
                }
            }
        }
        Err(Error::new(Kind::Conflict, subject(of, name), "is being set by others all the time").retry(true))
    }

    // Services whose description names it take the new version; each by a release of its own.
    pub(super) async fn roll_out_users(
        &self,
        of: ValueKind,
        name: &str,
        set: &ValueSet,
        info: ValueInfo,
    ) -> ValueChange {
        let world = self.world();
        let uses = |spec: &ServiceSpec| match of {
            ValueKind::Secret => spec.secrets.values().any(|used| used.name == name),
            ValueKind::Config => spec.configs.values().any(|used| used.name == name),
        };
        let mut change = ValueChange { info, rolled_out: Vec::new(), refused: BTreeMap::new() };
        for service in world.services.values().filter(|service| !service.removing && uses(&service.spec)) {
            let user = service.spec.name.to_string();
            let latest = world.revision(&service.spec.name, service.revision);
            if latest.is_some_and(|latest| versions(of, latest).get(name) == Some(&change.info.version)) {
                continue;
            }
            if let Some(why) = holds_back(&world, service, set) {
                change.refused.insert(user, why);
                continue;
            }
            let ask = serde_json::json!({ "name": user });
            match self.apply(Apply { service: ask, with: None, only: Only::Update, auth: None }).await {
                Ok(_) => change.rolled_out.push(user),
                Err(error) => {
                    change.refused.insert(user, error.to_string());
                }
            }
        }
        change
    }
}

// Why a service is left as it is. What somebody holds half-way is not to be carried on by a new value.
fn holds_back(world: &World, service: &crate::model::service::Service, set: &ValueSet) -> Option<String> {
    if !service.spec.name.as_str().starts_with(&set.prefix) {
        return Some(format!("whoever set it may touch only names that begin with \"{}\"", set.prefix));
    }
    let release = world.releases.get(&service.spec.name)?;
    match release.state {
        ReleaseState::Paused => Some("its release is paused; apply it once that is over".into()),
        ReleaseState::Failed => Some("its last release stopped half-way; apply it once that is mended".into()),
        _ => None,
    }
}
