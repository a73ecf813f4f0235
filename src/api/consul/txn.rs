//! `/v1/txn`: several changes of keys, nodes, services and checks, all or nothing.

use std::collections::BTreeSet;
use std::sync::Arc;

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use serde_json::{Value, json};

use super::input::Fields;
use super::{Consul, Reply, kv, output};
use crate::model::catalog::{CatalogNode, Origin};
use crate::model::rules::Access;
use crate::model::{Error, Kind, Result};
use crate::network::catalog::Topic as Changes;
use crate::runtime::catalog::transact::{self, About, Told};
use crate::runtime::kv::change::{self, Outcome, Verb, With};
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
    /// A node, to be read or written; by its name, or else its id.
    Node(Access, CatalogNode),
    /// An instance of this service, on a node, by its id.
    Service {
        /// To be read or written.
        access: Access,
        /// The node's name.
        node: String,
        /// The service's name, where it is said.
        name: String,
        /// The instance's id.
        id: String,
    },
    /// A check on a node, by its id, about the instance of that id, where there is one.
    Check {
        /// To be read or written.
        access: Access,
        /// The node's name.
        node: String,
        /// The check's id.
        id: String,
        /// The instance's.
        instance: String,
    },
}

enum Op {
    Key(change::Op),
    Entry(Box<transact::Op>),
}

/// What a transaction has to do with; of what it reads whole, only what may be seen is told.
pub fn touched(body: &[u8]) -> Result<Vec<Touched>> {
    Ok(operations(body)?.into_iter().filter_map(Op::touched).collect())
}

impl Op {
    fn touched(self) -> Option<Touched> {
        let op = match self {
            Op::Key(op) => op,
            Op::Entry(op) => {
                let transact::Op { verb, about, .. } = *op;
                let access = if verb == transact::Verb::Get { Access::Read } else { Access::Write };
                return Some(match about {
                    About::Node(node) => Touched::Node(access, node),
                    About::Instance(node, of) => Touched::Service { access, node, name: of.service, id: of.id },
                    About::Check(node, of) => Touched::Check { access, node, id: of.id, instance: of.instance },
                });
            }
        };
        match op.verb {
            Verb::GetTree => None,
            Verb::DeleteTree => Some(Touched::Tree(op.key)),
            Verb::EndSession => Some(Touched::Session(op.session)),
            verb if verb.only_reads() => Some(Touched::Key(Access::Read, op.key)),
            _ => Some(Touched::Key(Access::Write, op.key)),
        }
    }
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
    let (mut keys, mut numbers, mut entries) = (Vec::new(), Vec::new(), Vec::new());
    for (number, op) in operations(body)?.into_iter().enumerate() {
        match op {
            Op::Key(op) => {
                keys.push(op);
                numbers.push(number);
            }
            Op::Entry(op) => entries.push((number, *op)),
        }
    }
    let own = consul.own()?;
    let index = own.kv.index_of(&Topic::Prefix(String::new()));
    if entries.is_empty() {
        return Ok(match own.kv.run(&keys).await? {
            Outcome::Done(read, version) => done(index.max(version), of_keys(&keys, &numbers, read)),
            Outcome::Refused(why) => refused(index, why, &numbers, Vec::new()),
        });
    }
    let alone = own.registry.alone().await;
    let prepared = alone.prepare(entries);
    let with = With { writes: &prepared.writes, only_looks: !prepared.refused.is_empty() };
    match own.kv.run_with(&keys, with).await? {
        Outcome::Refused(why) => {
            let index = consul.catalog.read(|state| state.index_of(&Changes::All));
            Ok(refused(index, why, &numbers, prepared.refused))
        }
        Outcome::Done(read, _) => {
            let (told, index) = alone.done(prepared);
            let mut results = of_keys(&keys, &numbers, read);
            results.extend(told.iter().map(|(number, told)| (*number, shown(consul, told))));
            // In the order of what was asked; a tree has several of one number.
            results.sort_by_key(|(number, _)| *number);
            Ok(done(index, results))
        }
    }
}

fn done(index: u64, results: Vec<(usize, Value)>) -> Reply {
    let results: Vec<Value> = results.into_iter().map(|(_, value)| value).collect();
    Reply::Json(index, json!({ "Results": results, "Errors": null }))
}

fn refused(index: u64, why: Vec<(usize, String)>, numbers: &[usize], others: Vec<(usize, String)>) -> Reply {
    let all: BTreeSet<(usize, String)> = why.into_iter().map(|(at, what)| (numbers[at], what)).chain(others).collect();
    let errors: Vec<Value> = all.into_iter().map(|(number, what)| json!({ "OpIndex": number, "What": what })).collect();
    Reply::Other(409, index, json!({ "Results": null, "Errors": errors }))
}

fn of_keys(
    ops: &[change::Op],
    numbers: &[usize],
    read: Vec<(usize, String, crate::runtime::kv::Pair)>,
) -> Vec<(usize, Value)> {
    let results = read.iter().map(|(at, key, pair)| {
        let mut shown = kv::shown(key, pair);
        // What was written is not sent back.
        if !matches!(ops[*at].verb, Verb::Get | Verb::GetOrEmpty | Verb::GetTree) {
            shown["Value"] = Value::Null;
        }
        (numbers[*at], json!({ "KV": shown }))
    });
    results.collect()
}

fn shown(consul: &Consul, told: &Told) -> Value {
    match told {
        Told::Node(entry) => json!({ "Node": output::node(consul, entry) }),
        Told::Instance(entry, id) => {
            let mut service = entry.instances.get(id).map_or(Value::Null, output::node_service);
            service["Node"] = Value::from(entry.node.name.as_str());
            json!({ "Service": service })
        }
        Told::Check(entry, id) => {
            json!({ "Check": entry.checks.get(id).map_or(Value::Null, |known| output::check(entry, known)) })
        }
    }
}

fn read(number: usize, value: Value) -> Result<Op> {
    let wrong = |why: String| Error::invalid(format!("operation {number}"), why);
    let mut fields = Fields::of("operation", value)?;
    let kinds: Vec<&str> =
        ["KV", "Node", "Service", "Check", "Session"].into_iter().filter(|kind| fields.has(kind)).collect();
    let [kind] = kinds.as_slice() else {
        return Err(wrong("has to be one of KV, Node, Service, Check and Session".into()));
    };
    let mut fields = fields.object(kind)?;
    let word = fields.text("Verb")?;
    let unknown = || wrong(format!("unknown {kind} verb {word:.40?}"));
    let verb = || transact::Verb::parse(&word).ok_or_else(unknown);
    // What it is about has a last change that may be expected.
    let entry = |mut about: Fields, node: Option<String>| -> Result<Op> {
        let verb = verb()?;
        let index = about.number("ModifyIndex")?;
        let about = match node {
            None if *kind == "Node" => About::Node(about.node_of_txn()?),
            None => {
                let node = about.text("Node")?;
                About::Check(node, about.check(Origin::Catalog)?)
            }
            Some(node) => {
                let only_id = matches!(verb, transact::Verb::Get | transact::Verb::Delete | transact::Verb::DeleteCas);
                About::Instance(node, about.instance_of_txn(only_id)?)
            }
        };
        Ok(Op::Entry(Box::new(transact::Op { verb, index, about })))
    };
    match *kind {
        "Session" => match word.as_str() {
            "delete" => {
                let id = fields.object("Session")?.text("ID")?;
                Ok(Op::Key(change::Op { session: id, ..change::Op::new(Verb::EndSession, "") }))
            }
            _ => Err(unknown()),
        },
        "Node" | "Check" => entry(fields.object(kind)?, None),
        "Service" => {
            let node = fields.text("Node")?;
            entry(fields.object("Service")?, Some(node))
        }
        _ => {
            let verb = Verb::parse(&word).ok_or_else(unknown)?;
            let value = fields.text("Value")?;
            let value = BASE64_STANDARD.decode(value);
            Ok(Op::Key(change::Op {
                verb,
                key: fields.text("Key")?,
                value: value.map_err(|error| wrong("its Value is not base64".into()).cause(error))?,
                flags: Some(fields.number("Flags")?),
                index: fields.number("Index")?,
                session: fields.text("Session")?,
            }))
        }
    }
}
