//! `/v1/event`: events that users fire, kept in memory.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use serde_json::{Value, json};

use super::{Call, Consul, Reply};
use crate::model::id::random_uuid;
use crate::model::{Error, Kind, Result};
use crate::network::waiting::Waiters;

/// So many are kept (as in Consul).
const KEPT: usize = 256;
/// Largest payload, in bytes.
const MAX_PAYLOAD: usize = 4096;
/// Longest name or filter, in bytes.
const MAX_NAME: usize = 256;

/// The newest events.
#[derive(Debug, Default)]
pub struct Events {
    fired: Mutex<VecDeque<Fired>>,
    // The newest of those that are not kept any more.
    gone: AtomicU64,
    // By name; an empty one for all.
    waiters: Waiters<String>,
}

#[derive(Debug)]
struct Fired {
    number: u64,
    name: String,
    shown: Value,
}

impl Events {
    fn all(&self) -> MutexGuard<'_, VecDeque<Fired>> {
        self.fired.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn index_of(&self, name: &str) -> u64 {
        let all = self.all();
        all.iter()
            .rev()
            .find(|fired| name.is_empty() || fired.name == name)
            .map_or_else(|| self.gone.load(Ordering::Relaxed).max(1), |fired| fired.number)
    }
}

pub async fn answer(consul: &Arc<Consul>, call: &Call, method: &str, path: &[&str]) -> Result<Reply> {
    match (method, path) {
        ("PUT", ["fire", name]) => fire(consul, call, name).map(Reply::Plain),
        ("GET", ["list"]) => {
            let name = call.value("name").unwrap_or_default();
            let events = &consul.own()?.events;
            if let Some((index, until)) = call.patience(consul)? {
                events.waiters.wait(&name.to_owned(), until, || events.index_of(name) != index).await;
            }
            let index = events.index_of(name);
            let all = events.all();
            let shown = all.iter().filter(|fired| name.is_empty() || fired.name == name);
            Ok(Reply::Json(index, shown.map(|fired| fired.shown.clone()).collect()))
        }
        _ => Err(Error::not_found(format!("{method} /v1/event/{:.60}", path.join("/")))),
    }
}

fn fire(consul: &Consul, call: &Call, name: &str) -> Result<Value> {
    let filter = |key: &str| call.value(key).unwrap_or_default().to_owned();
    let filters = [filter("node"), filter("service"), filter("tag")];
    if name.is_empty() || filters.iter().chain([&name.to_owned()]).any(|text| text.len() > MAX_NAME) {
        return Err(Error::invalid("event", format!("has a name or filter that is not 1 to {MAX_NAME} bytes long")));
    }
    if call.body.0.len() > MAX_PAYLOAD {
        let message = format!("has a payload of {} bytes; {MAX_PAYLOAD} are allowed", call.body.0.len());
        return Err(Error::new(Kind::Exhausted, "event", message));
    }
    let [node, service, tag] = filters;
    let payload = (!call.body.0.is_empty()).then(|| BASE64_STANDARD.encode(&call.body.0));
    let own = consul.own()?;
    let mut all = own.events.all();
    // Counts on from where a daemon before cannot have come.
    let number = all.back().map_or_else(|| consul.clock.wall().0, |last| last.number + 1);
    let shown = json!({
        "ID": random_uuid(&*consul.clock),
        "Name": name,
        "Payload": payload,
        "NodeFilter": node,
        "ServiceFilter": service,
        "TagFilter": tag,
        "Version": 1,
        "LTime": number,
    });
    all.push_back(Fired { number, name: name.to_owned(), shown: shown.clone() });
    if all.len() > KEPT {
        let gone = all.pop_front().map_or(0, |fired| fired.number);
        own.events.gone.fetch_max(gone, Ordering::Relaxed);
    }
    drop(all);
    own.events.waiters.wake([&String::new(), &name.to_owned()]);
    Ok(shown)
}
