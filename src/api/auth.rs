//! Who calls: the control socket's peer, or the bearer of a token.

use axum::http::HeaderMap;

use crate::model::id::sha256_hex;
use crate::model::right::{Principal, Token};
use crate::model::{Error, Kind, Result};
use crate::store::{Store, decode};

/// Where a connection comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Peer {
    /// The control socket, opened by this user.
    Unix(u32),
    /// TCP with TLS, from this address.
    Tls(String),
    /// Nobody said.
    Unknown,
}

/// The key of a token's record, by the secret's hash.
pub fn token_key(hash: &str) -> String {
    format!("token/{hash}")
}

/// Who it is; an error for a token that is missing or not known. `daemons`: what the cluster's daemons show each other.
pub fn principal(peer: &Peer, headers: &HeaderMap, store: &dyn Store, daemons: Option<&str>) -> Result<Principal> {
    if let Peer::Unix(uid) = peer {
        return Ok(Principal::local(*uid));
    }
    let secret = headers
        .get("authorization")
        .and_then(|value| value.to_str().ok())
        .and_then(|value| value.strip_prefix("Bearer "))
        .ok_or_else(|| {
            Error::new(Kind::Unauthenticated, "request", "brings no token")
                .help("send `Authorization: Bearer TOKEN`; `neap token create` makes one")
        })?;
    let hash = sha256_hex(secret.trim().as_bytes());
    // Another daemon of this cluster, which has asked for the caller's rights itself.
    if daemons.is_some_and(|daemons| sha256_hex(daemons.as_bytes()) == hash) {
        let name = "another daemon".to_owned();
        return Ok(Principal { name, role: crate::model::right::Role::Admin, prefix: String::new() });
    }
    token(&hash, store)
}

/// Whose token it is, by the secret's hash: comparing takes the same time whatever was sent.
pub fn token(hash: &str, store: &dyn Store) -> Result<Principal> {
    let key = token_key(hash);
    let entry = store.get(&key)?.ok_or_else(|| {
        Error::new(Kind::Unauthenticated, "token", "is not known").help("`neap token ls` lists them by name")
    })?;
    Ok(decode::<Token>(&entry.key, &entry.value)?.principal)
}
