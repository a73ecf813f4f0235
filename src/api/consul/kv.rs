//! `/v1/kv`: keys and values, the same that `neap kv` shows.

use std::collections::BTreeSet;
use std::sync::Arc;

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use serde_json::{Value, json};

use super::{Call, Consul, Reply};
use crate::model::{Error, Kind, Result};
use crate::runtime::kv::MAX_KV;
use crate::runtime::kv::Pair;
use crate::runtime::kv::change::{NO_SESSION, Op, Outcome, Verb};
use crate::runtime::kv::index::Topic;

pub async fn answer(consul: &Arc<Consul>, call: &Call, method: &str, path: &[&str]) -> Result<Reply> {
    // An encoded slash is a slash.
    let key = path.join("/");
    match method {
        "GET" => read(consul, call, &key).await,
        "PUT" => write(consul, call, key).await,
        "DELETE" => delete(consul, call, key).await,
        _ => Err(Error::new(Kind::Unsupported, format!("{method} /v1/kv"), "is not served")),
    }
}

/// A key with all that belongs to it.
pub fn shown(key: &str, pair: &Pair) -> Value {
    let value = (!pair.value.is_empty()).then(|| BASE64_STANDARD.encode(&pair.value));
    let mut shown = json!({
        "LockIndex": pair.lock_index,
        "Key": key,
        "Flags": pair.flags,
        "Value": value,
        "CreateIndex": pair.created,
        "ModifyIndex": pair.modified,
    });
    if let (Some(session), Some(map)) = (&pair.session, shown.as_object_mut()) {
        map.insert("Session".into(), Value::from(session.as_str()));
    }
    shown
}

fn exclusive(call: &Call, flags: &[&str]) -> Result<()> {
    let given: Vec<&str> = flags.iter().copied().filter(|flag| call.value(flag).is_some()).collect();
    match given.len() {
        0 | 1 => Ok(()),
        _ => Err(Error::invalid("query", format!("Conflicting flags: {}", given.join(", ")))),
    }
}

fn named(key: &str) -> Result<()> {
    if key.is_empty() { Err(Error::invalid("query", "Missing key name")) } else { Ok(()) }
}

async fn read(consul: &Consul, call: &Call, key: &str) -> Result<Reply> {
    let kv = &consul.own()?.kv;
    if call.flag("keys") || call.flag("recurse") {
        let topic = Topic::Prefix(key.to_owned());
        call.wait_for_key(consul, &topic).await?;
        // Before the keys are read: a change between the two wakes whoever has read it already, and is never missed.
        let index = kv.index_of(&topic);
        let mut all = kv.tree(key)?;
        if let Some(rights) = &call.rights {
            all.retain(|(name, _)| rights.sees_key(name));
        }
        if call.flag("keys") {
            let separator = call.value("separator").unwrap_or_default();
            let cut = |name: &str| match name[key.len()..].find(separator).filter(|_| !separator.is_empty()) {
                Some(at) => name[..key.len() + at + separator.len()].to_owned(),
                None => name.to_owned(),
            };
            let names: BTreeSet<String> = all.iter().map(|(name, _)| cut(name)).collect();
            return Ok(match names.is_empty() && !key.is_empty() {
                true => Reply::Missing(index),
                false => Reply::Json(index, Value::from_iter(names)),
            });
        }
        return Ok(match all.is_empty() {
            true => Reply::Missing(index),
            false => Reply::Json(index, all.iter().map(|(name, pair)| shown(name, pair)).collect()),
        });
    }
    named(key)?;
    let topic = Topic::Key(key.to_owned());
    call.wait_for_key(consul, &topic).await?;
    let index = kv.index_of(&topic);
    let Some(pair) = kv.pair(key)? else { return Ok(Reply::Missing(index)) };
    Ok(match call.flag("raw") {
        true => Reply::Bytes(index, super::Bytes(pair.value)),
        false => Reply::Json(index, Value::Array(vec![shown(key, &pair)])),
    })
}

async fn write(consul: &Consul, call: &Call, key: String) -> Result<Reply> {
    named(&key)?;
    exclusive(call, &["cas", "acquire", "release"])?;
    if call.body.0.len() > MAX_KV {
        let message = format!("Request body({} bytes) too large, max size: {MAX_KV} bytes", call.body.0.len());
        return Err(Error::new(Kind::Exhausted, "request", message));
    }
    let number = |name: &str| -> Result<Option<u64>> {
        let text = call.value(name).filter(|text| !text.is_empty() || name == "cas");
        let wrong = |text: &str| Error::invalid("query", format!("{name}: {text:.40?} is not a whole number"));
        text.map(|text| text.parse().map_err(|_| wrong(text))).transpose()
    };
    let mut op =
        Op { value: call.body.0.clone(), flags: Some(number("flags")?.unwrap_or_default()), ..Op::new(Verb::Set, key) };
    if let Some(index) = number("cas")? {
        (op.verb, op.index) = (Verb::Cas, index);
    }
    for (name, verb) in [("acquire", Verb::Lock), ("release", Verb::Unlock)] {
        if let Some(session) = call.value(name) {
            // Whoever has lost its session would write over who holds the lock.
            if session.is_empty() {
                return Err(Error::invalid("query", format!("{name}: missing session")));
            }
            (op.verb, op.session) = (verb, session.to_owned());
        }
    }
    match consul.own()?.kv.run(&[op]).await? {
        Outcome::Done(..) => Ok(Reply::Plain(Value::Bool(true))),
        Outcome::Refused(why) => match why.into_iter().find(|(_, why)| why.starts_with(NO_SESSION)) {
            // Not a lock that is held: a mistake, or a session that is over.
            Some((_, why)) => Ok(Reply::Status(500, why)),
            None => Ok(Reply::Plain(Value::Bool(false))),
        },
    }
}

async fn delete(consul: &Consul, call: &Call, key: String) -> Result<Reply> {
    exclusive(call, &["cas", "recurse"])?;
    let op = if call.flag("recurse") {
        Op::new(Verb::DeleteTree, key)
    } else {
        named(&key)?;
        match call.value("cas") {
            None => Op::new(Verb::Delete, key),
            Some(text) => {
                let index = text
                    .parse()
                    .map_err(|_| Error::invalid("query", format!("cas: {text:.40?} is not a whole number")))?;
                Op { index, ..Op::new(Verb::DeleteCas, key) }
            }
        }
    };
    let outcome = consul.own()?.kv.run(&[op]).await?;
    Ok(Reply::Plain(Value::Bool(matches!(outcome, Outcome::Done(..)))))
}
