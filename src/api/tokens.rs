//! Tokens: made once, shown once, kept as a hash.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use super::consul::{Granted, Tokens};
use super::{Answer, Call, auth::token_key, json};
use crate::model::id::sha256_hex;
use crate::model::right::{MadeToken, NewToken, Principal, Role, Token};
use crate::model::rules::Rules;
use crate::model::{Error, Kind, Result, strict};
use crate::store::{Expect, Store, Write, decode, encode};

/// The token whose rules hold for whoever brings none, in Consul's API.
const ANONYMOUS: &str = "anonymous";

pub async fn create(call: Call) -> Result<Answer> {
    let new: NewToken = strict::read("token", &call.body)?;
    if all(&call)?.iter().any(|token| token.principal.name == new.name.as_str()) {
        return Err(Error::new(Kind::Conflict, format!("token \"{}\"", new.name), "exists already"));
    }
    let mut secret = String::from("neap_");
    let mut file = std::fs::File::open("/dev/urandom").map_err(|error| Error::io("/dev/urandom", "read it", &error))?;
    let mut random = [0_u8; 24];
    std::io::Read::read_exact(&mut file, &mut random).map_err(|error| Error::io("/dev/urandom", "read it", &error))?;
    for byte in random {
        secret.push_str(&format!("{byte:02x}"));
    }
    // Rules are for Consul's API; whoever is to see more is given that by name.
    let role = new.role.unwrap_or(if new.rules.is_some() { Role::None } else { Role::Viewer });
    let principal = Principal { name: new.name.to_string(), role, prefix: new.prefix };
    let rules = new.rules.as_deref().map(Rules::parse).transpose()?;
    let hash = sha256_hex(secret.as_bytes());
    let token = Token { principal: principal.clone(), rules, hash: hash.clone(), created_at: call.api.clock.wall() };
    call.api.store.commit(vec![Write::put(token_key(&hash), encode(&token)).expect(Expect::Absent)]).await?;
    json(&MadeToken { principal, secret })
}

fn all(call: &Call) -> Result<Vec<Token>> {
    every(&*call.api.store)
}

fn every(store: &dyn Store) -> Result<Vec<Token>> {
    store.list("token/")?.iter().map(|entry| decode(&entry.key, &entry.value)).collect()
}

/// The tokens of a store, for Consul's API.
pub struct Stored {
    store: Arc<dyn Store>,
    // What is allowed to whoever brings none, and when that was looked up.
    anonymous: Mutex<Option<(Instant, Option<Granted>)>>,
}

/// How long that holds: all tokens are looked through for it.
const HOLDS: Duration = Duration::from_secs(1);

impl Stored {
    /// Those of this store.
    pub fn new(store: Arc<dyn Store>) -> Self {
        Stored { store, anonymous: Mutex::default() }
    }

    fn anonymous(&self) -> Result<Option<Granted>> {
        let mut known = self.anonymous.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((at, granted)) = &*known
            && at.elapsed() < HOLDS
        {
            return Ok(granted.clone());
        }
        let all = every(&*self.store)?;
        let found = all.into_iter().find(|token| token.principal.name == ANONYMOUS && token.rules.is_some());
        let granted = found.map(granted);
        *known = Some((Instant::now(), granted.clone()));
        Ok(granted)
    }
}

fn granted(token: Token) -> Granted {
    let rules = token.rules.unwrap_or_else(|| Rules::of(&token.principal));
    Granted { name: token.principal.name, rules }
}

impl Tokens for Stored {
    fn granted(&self, hash: &str) -> Result<Option<Granted>> {
        if hash.is_empty() {
            return self.anonymous();
        }
        let entry = self.store.get(&token_key(hash))?;
        Ok(entry.map(|entry| decode::<Token>(&entry.key, &entry.value)).transpose()?.map(granted))
    }
}

pub async fn list(call: Call) -> Result<Answer> {
    json(&all(&call)?)
}

pub async fn remove(call: Call) -> Result<Answer> {
    let name = call.name();
    let found = all(&call)?.into_iter().find(|token| token.principal.name == name);
    let token = found.ok_or_else(|| Error::not_found(format!("token \"{name:.70}\"")))?;
    call.api.store.commit(vec![Write::remove(token_key(&token.hash))]).await?;
    Ok(Answer::Json(serde_json::Value::Null))
}
