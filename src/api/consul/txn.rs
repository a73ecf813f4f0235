//! `/v1/txn`: several changes of keys, all or nothing.

use std::sync::Arc;

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use serde_json::{Value, json};

use super::input::Fields;
use super::{Consul, Reply, kv};
use crate::model::rules::Access;
use crate::model::{Error, Kind, Result};
use crate::runtime::kv::change::{Op, Outcome, Verb};
use crate::runtime::kv::index::Topic;

/// Operations at most (Consul's bound).
const MOST: usize = 128;

/// What an operation has to do with.
pub enum Touched {
    /// A key, to be read or written.
    Key(Access, String),
    /// All keys that begin so, to be removed.
    Tree(String),
    /// A session, to be ended.
    Session(String),
}

/// What a transaction has to do with; of what it reads whole, only what may be seen is told.
pub fn touched(body: &[u8]) -> Result<Vec<Touched>> {
    let touched = |op: Op| match op.verb {
        Verb::GetTree => None,
        Verb::DeleteTree => Some(Touched::Tree(op.key)),
        Verb::EndSession => Some(Touched::Session(op.session)),
        Verb::Get | Verb::GetOrEmpty | Verb::CheckIndex | Verb::CheckSession | Verb::CheckNotExists => {
            Some(Touched::Key(Access::Read, op.key))
        }
        Verb::Set | Verb::Cas | Verb::Lock | Verb::Unlock | Verb::Delete | Verb::DeleteCas => {
            Some(Touched::Key(Access::Write, op.key))
        }
    };
    Ok(operations(body)?.into_iter().filter_map(touched).collect())
}

fn operations(body: &[u8]) -> Result<Vec<Op>> {
    let all: Value = serde_json::from_slice(body)
        .map_err(|error| Error::invalid("request body", "Failed to parse body: is not JSON").cause(error))?;
    let Value::Array(all) = all else { return Err(Error::invalid("request body", "is not a list of operations")) };
    if all.len() > MOST {
        let message = format!("Transaction contains too many operations ({} > {MOST})", all.len());
        return Err(Error::new(Kind::Exhausted, "transaction", message));
    }
    all.into_iter().enumerate().map(|(number, value)| read(number, value)).collect()
}

pub async fn answer(consul: &Arc<Consul>, body: &[u8]) -> Result<Reply> {
    let ops = operations(body)?;
    let verbs: Vec<Verb> = ops.iter().map(|op| op.verb).collect();
    let index = consul.own()?.kv.index_of(&Topic::Prefix(String::new()));
    match consul.own()?.kv.run(&ops).await? {
        Outcome::Done(read, version) => {
            let results = read.iter().map(|(number, key, pair)| {
                let mut shown = kv::shown(key, pair);
                // What was written is not sent back.
                if !matches!(verbs[*number], Verb::Get | Verb::GetOrEmpty | Verb::GetTree) {
                    shown["Value"] = Value::Null;
                }
                json!({ "KV": shown })
            });
            let value = json!({ "Results": results.collect::<Vec<_>>(), "Errors": null });
            Ok(Reply::Json(index.max(version), value))
        }
        Outcome::Refused(why) => {
            let errors: Vec<Value> =
                why.iter().map(|(number, what)| json!({ "OpIndex": number, "What": what })).collect();
            Ok(Reply::Other(409, index, json!({ "Results": null, "Errors": errors })))
        }
    }
}

fn read(number: usize, value: Value) -> Result<Op> {
    let wrong = |why: String| Error::invalid(format!("operation {number}"), why);
    let mut fields = Fields::of("operation", value)?;
    if fields.has("Session") {
        let mut session = fields.object("Session")?;
        return match session.text("Verb")?.as_str() {
            "delete" => {
                let id = session.object("Session")?.text("ID")?;
                Ok(Op { session: id, ..Op::new(Verb::EndSession, "") })
            }
            verb => Err(wrong(format!("unknown Session verb {verb:.40?}"))),
        };
    }
    if !fields.has("KV") {
        return Err(wrong("is none of KV and Session; nodes, services and checks are registered one by one".into()));
    }
    let mut fields = fields.object("KV")?;
    let verb = fields.text("Verb")?;
    let verb = Verb::parse(&verb).ok_or_else(|| wrong(format!("unknown KV verb {verb:.40?}")))?;
    let value = fields.text("Value")?;
    Ok(Op {
        verb,
        key: fields.text("Key")?,
        value: BASE64_STANDARD.decode(value).map_err(|error| wrong("its Value is not base64".into()).cause(error))?,
        flags: Some(fields.number("Flags")?),
        index: fields.number("Index")?,
        session: fields.text("Session")?,
    })
}
