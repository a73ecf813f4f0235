//! Tokens: made once, shown once, kept as a hash.

use std::sync::Arc;

use super::consul::{Granted, Tokens};
use super::{Answer, Call, auth::token_key, json};
use crate::model::id::sha256_hex;
use crate::model::right::{MadeToken, NewToken, Principal, Token};
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
    let principal = Principal { name: new.name.to_string(), role: new.role, prefix: new.prefix };
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
pub struct Stored(pub Arc<dyn Store>);

impl Tokens for Stored {
    fn granted(&self, hash: &str) -> Result<Option<Granted>> {
        let token = match hash {
            "" => every(&*self.0)?.into_iter().find(|token| token.principal.name == ANONYMOUS && token.rules.is_some()),
            _ => {
                let entry = self.0.get(&token_key(hash))?;
                entry.map(|entry| decode::<Token>(&entry.key, &entry.value)).transpose()?
            }
        };
        Ok(token.map(|token| {
            let rules = token.rules.unwrap_or_else(|| Rules::of(&token.principal));
            Granted { name: token.principal.name, rules }
        }))
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
