//! Logins at registries: sealed in the store, and opened where an image is about to be pulled. The cluster's own are for all
//! that is pulled from a registry; those that were taken along with a service are for it alone.

use std::collections::BTreeMap;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Serialize};

use super::Parts;
use crate::model::clock::Timestamp;
use crate::model::id::ServiceId;
use crate::model::registry::{self, Credentials, Login, LoginAsk, LoginInfo};
use crate::model::{Error, Result};
use crate::scheduler::world::World;
use crate::store::{Entry, Store, Write, decode, encode};

/// Where the cluster's own are in the store: `login/REGISTRY`.
const OWN: &str = "login/";
/// Where those are that were taken along: `lent/SERVICE ID/REGISTRY`.
const LENT: &str = "lent/";

#[derive(Debug, Serialize, Deserialize)]
struct Record {
    username: String,
    // Sealed, in base64.
    password: String,
    at: Timestamp,
    verified: bool,
}

fn own_key(registry: &str) -> String {
    format!("{OWN}{registry}")
}

fn lent_key(service: ServiceId, registry: &str) -> String {
    format!("{LENT}{service}/{registry}")
}

/// All, by registry; those of services after the cluster's own.
pub fn list(store: &dyn Store, world: &World) -> Result<Vec<LoginInfo>> {
    let info = |entry: &Entry, registry: &str, service: Option<String>| {
        let Record { username, at, verified, .. } = decode(&entry.key, &entry.value)?;
        Ok(LoginInfo { registry: registry.to_owned(), username, at, verified, service })
    };
    let names: BTreeMap<String, String> =
        world.services.values().map(|service| (service.id.to_string(), service.spec.name.to_string())).collect();
    let mut all = Vec::new();
    for entry in store.list(OWN)? {
        all.push(info(&entry, &entry.key[OWN.len()..], None)?);
    }
    for entry in store.list(LENT)? {
        let Some((id, registry)) = entry.key[LENT.len()..].split_once('/') else { continue };
        if let Some(service) = names.get(id) {
            all.push(info(&entry, registry, Some(service.clone()))?);
        }
    }
    Ok(all)
}

fn sealed(parts: &Parts, key: &str, login: Login, verified: bool) -> Result<Record> {
    let password = STANDARD.encode(parts.vault.seal(key, login.password.as_bytes())?);
    Ok(Record { username: login.username, password, at: parts.clock.wall(), verified })
}

/// Keeps one of the cluster's own, in place of the one before: one that the registry takes, unless nobody is to be asked.
pub async fn set(parts: &Parts, registry: &str, ask: LoginAsk) -> Result<LoginInfo> {
    let login = Credentials { username: ask.username, password: ask.password }.login(registry)?;
    if !ask.unverified {
        parts.engine.verify_login(&login).await?;
    }
    let (key, registry) = (own_key(&login.registry), login.registry.clone());
    let record = sealed(parts, &key, login, !ask.unverified)?;
    parts.store.commit(vec![Write::put(&key, encode(&record))]).await?;
    Ok(LoginInfo { registry, username: record.username, at: record.at, verified: record.verified, service: None })
}

/// Forgets one of the cluster's own, or of a service.
pub async fn remove(parts: &Parts, world: &World, registry: &str, service: Option<&str>) -> Result<()> {
    let registry = registry::name(registry)?;
    let key = match service {
        None => own_key(&registry),
        Some(name) => {
            let known = world.services.get(name).ok_or_else(|| super::commands::missing(world, name))?;
            lent_key(known.id, &registry)
        }
    };
    if parts.store.get(&key)?.is_none() {
        let of = service.map(|name| format!(" of service \"{name}\"")).unwrap_or_default();
        return Err(Error::not_found(format!("login{of} at {registry}")).help("`neap registry logins` lists them"));
    }
    parts.store.commit(vec![Write::remove(key)]).await.map(drop)
}

/// What a service's apply writes for the login that comes along with it, in place of the one before.
pub fn lend(parts: &Parts, service: ServiceId, login: Login) -> Result<Vec<Write>> {
    let key = lent_key(service, &login.registry);
    let mut writes = forget(&*parts.store, service, Some(&key))?;
    writes.push(Write::put(&key, encode(&sealed(parts, &key, login, false)?)));
    Ok(writes)
}

/// What removes those that came along with a service, but for one.
pub fn forget(store: &dyn Store, service: ServiceId, but: Option<&str>) -> Result<Vec<Write>> {
    let all = store.list(&format!("{LENT}{service}/"))?.into_iter();
    Ok(all.filter(|entry| Some(entry.key.as_str()) != but).map(|entry| Write::remove(entry.key)).collect())
}

// The cluster's own first.
fn entry(parts: &Parts, service: ServiceId, image: &str) -> Result<Option<(String, Entry)>> {
    let Ok(registry) = registry::name(registry::of_image(image)) else { return Ok(None) };
    for key in [own_key(&registry), lent_key(service, &registry)] {
        if let Some(entry) = parts.store.get(&key)? {
            return Ok(Some((registry, entry)));
        }
    }
    Ok(None)
}

/// Tells one state of what an image's registry is told from another.
pub fn version(parts: &Parts, service: ServiceId, image: &str) -> Result<Option<u64>> {
    Ok(entry(parts, service, image)?.map(|(_, entry)| entry.version))
}

/// What an image's registry is told; nothing where nobody has logged in there.
pub fn for_image(parts: &Parts, service: ServiceId, image: &str) -> Result<Option<Login>> {
    let Some((registry, entry)) = entry(parts, service, image)? else { return Ok(None) };
    opened(parts, registry, &entry).map(Some)
}

/// What a registry is told by the whole cluster; nothing where nobody has logged in there.
pub fn at(parts: &Parts, registry: &str) -> Result<Option<Login>> {
    let registry = registry::name(registry)?;
    let entry = parts.store.get(&own_key(&registry))?;
    entry.map(|entry| opened(parts, registry, &entry)).transpose()
}

fn opened(parts: &Parts, registry: String, entry: &Entry) -> Result<Login> {
    let Record { username, password, .. } = decode(&entry.key, &entry.value)?;
    let damaged = || Error::internal(format!("login at {registry}"), "cannot be read; log in again");
    let sealed = STANDARD.decode(password).map_err(|_| damaged())?;
    let opened = parts.vault.unseal(&entry.key, &sealed)?;
    let password = String::from_utf8(opened).map_err(|_| damaged())?;
    Ok(Login { registry, username, password })
}
