//! Logins at registries: sealed in the store, and opened where an image is about to be pulled.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Serialize};

use super::Parts;
use crate::model::clock::Timestamp;
use crate::model::registry::{self, Login, LoginAsk, LoginInfo};
use crate::model::{Error, Result};
use crate::store::{Entry, Store, Write, decode, encode};

/// Where they are in the store.
const PREFIX: &str = "login/";

#[derive(Debug, Serialize, Deserialize)]
struct Record {
    username: String,
    // Sealed, in base64.
    password: String,
    at: Timestamp,
    verified: bool,
    #[serde(default)]
    lent: bool,
}

fn key(registry: &str) -> String {
    format!("{PREFIX}{registry}")
}

fn info(entry: &Entry) -> Result<LoginInfo> {
    let Record { username, at, verified, lent, .. } = decode(&entry.key, &entry.value)?;
    Ok(LoginInfo { registry: entry.key[PREFIX.len()..].to_owned(), username, at, verified, lent })
}

/// All, by registry.
pub fn list(store: &dyn Store) -> Result<Vec<LoginInfo>> {
    store.list(PREFIX)?.iter().map(info).collect()
}

/// Keeps one, in place of the one before. Where the engine can ask the registry, only one that is right.
pub async fn set(parts: &Parts, registry: &str, ask: LoginAsk) -> Result<LoginInfo> {
    let (lent, ask_nobody) = (ask.lent, ask.unverified || ask.lent);
    let login = ask.login(registry)?;
    let key = key(&login.registry);
    if let Some(own) = parts.store.get(&key)?.map(|entry| info(&entry)).transpose()?.filter(|info| lent && !info.lent) {
        return Ok(own);
    }
    let verified = !ask_nobody && parts.engine.verify_login(&login).await?;
    let password = STANDARD.encode(parts.vault.seal(&key, login.password.as_bytes())?);
    let record = Record { username: login.username, password, at: parts.clock.wall(), verified, lent };
    parts.store.commit(vec![Write::put(&key, encode(&record))]).await?;
    Ok(LoginInfo { registry: login.registry, username: record.username, at: record.at, verified, lent })
}

/// Forgets one.
pub async fn remove(parts: &Parts, registry: &str) -> Result<()> {
    let registry = registry::name(registry)?;
    let key = key(&registry);
    if parts.store.get(&key)?.is_none() {
        return Err(Error::not_found(format!("login at {registry}")).help("`neap registry logins` lists them"));
    }
    parts.store.commit(vec![Write::remove(key)]).await.map(drop)
}

/// What an image's registry is told; nothing where nobody has logged in there.
pub fn for_image(parts: &Parts, image: &str) -> Result<Option<Login>> {
    let registry = registry::of_image(image).to_ascii_lowercase();
    let key = key(&registry);
    let Some(entry) = parts.store.get(&key)? else { return Ok(None) };
    let Record { username, password, .. } = decode(&entry.key, &entry.value)?;
    let damaged = || Error::internal(format!("login at {registry}"), "cannot be read; log in again");
    let sealed = STANDARD.decode(password).map_err(|_| damaged())?;
    let opened = parts.vault.unseal(&key, &sealed)?;
    let password = String::from_utf8(opened).map_err(|_| damaged())?;
    Ok(Some(Login { registry, username, password }))
}
