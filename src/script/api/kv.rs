//! `kv`, `secrets` and `configs`: keys with values, and what services read as files.

use std::sync::Arc;

use futures_util::StreamExt;
use mlua::{Lua, Table, Value};
use serde::Deserialize;

use crate::client::kv::{KvChange, KvSet, ValueKind, ValueSet};
use crate::client::{Cluster, Stream1};
use crate::model::units::Duration;
use crate::model::{Error, Kind};
use crate::script::value::{from_timed, options, raise};

#[derive(Deserialize, Default)]
#[serde(default)]
struct Versioned {
    version: Option<u64>,
}

// A value is a text; numbers and booleans are written out, as in an environment.
fn text(what: &str, value: &Value) -> mlua::Result<String> {
    match value {
        Value::String(text) => Ok(text.to_str()?.to_owned()),
        Value::Number(_) | Value::Integer(_) | Value::Boolean(_) => value.to_string(),
        other => {
            let message = format!("expected a text, got a {}", other.type_name());
            Err(raise(Error::new(Kind::Script, what, message).help("write tables as text: json.encode(value)")))
        }
    }
}

// The same, of any bytes.
fn bytes(what: &str, value: &Value) -> mlua::Result<Vec<u8>> {
    match value {
        Value::String(text) => Ok(text.as_bytes().to_vec()),
        other => text(what, other).map(String::into_bytes),
    }
}

/// Sets `kv`, `secrets` and `configs`.
pub fn install(lua: &Lua, cluster: &Arc<dyn Cluster>) -> mlua::Result<()> {
    let kv = lua.create_table()?;
    let shared = cluster.clone();
    kv.set(
        "get",
        lua.create_async_function(move |lua, key: String| {
            let cluster = shared.clone();
            async move {
                match cluster.kv_get(&key).await.map_err(raise)? {
                    Some(entry) => {
                        let value = lua.create_string(entry.bytes().map_err(raise)?)?;
                        Ok((Value::String(value), Some(entry.version as f64)))
                    }
                    None => Ok((Value::Nil, None)),
                }
            }
        })?,
    )?;
    let shared = cluster.clone();
    kv.set(
        "set",
        lua.create_async_function(move |_, (key, value, table): (String, Value, Option<Table>)| {
            let cluster = shared.clone();
            async move {
                let version = options::<Versioned>("kv.set", table)?.version;
                let set = KvSet { version, ..KvSet::of(bytes("kv.set", &value)?) };
                Ok(cluster.kv_set(&key, set).await.map_err(raise)?.version as f64)
            }
        })?,
    )?;
    let shared = cluster.clone();
    kv.set(
        "remove",
        lua.create_async_function(move |_, (key, table): (String, Option<Table>)| {
            let cluster = shared.clone();
            async move {
                let version = options::<Versioned>("kv.remove", table)?.version;
                cluster.kv_delete(&key, version).await.map_err(raise)
            }
        })?,
    )?;
    let shared = cluster.clone();
    kv.set(
        "list",
        lua.create_async_function(move |lua, prefix: Option<String>| {
            let cluster = shared.clone();
            async move {
                let entries = cluster.kv_list(&prefix.unwrap_or_default()).await.map_err(raise)?;
                let shown = from_timed(&lua, &entries)?;
                // A text of a script's holds any bytes.
                for (at, entry) in entries.iter().enumerate().filter(|(_, entry)| entry.base64) {
                    let table: Table =
                        shown.as_table().map_or_else(|| lua.create_table(), |all| all.raw_get(at + 1))?;
                    table.raw_set("value", lua.create_string(entry.bytes().map_err(raise)?)?)?;
                    table.raw_set("base64", Value::Nil)?;
                }
                Ok(shown)
            }
        })?,
    )?;
    let shared = cluster.clone();
    kv.set(
        "watch",
        lua.create_async_function(move |lua, (prefix, each, table): (String, mlua::Function, Option<Table>)| {
            let cluster = shared.clone();
            async move {
                let timeout = options::<WatchOptions>("kv.watch", table)?.timeout;
                watch(&lua, &cluster, &prefix, each, timeout).await
            }
        })?,
    )?;
    let shared = cluster.clone();
    kv.set(
        "update",
        lua.create_async_function(move |lua, (key, change): (String, mlua::Function)| {
            let cluster = shared.clone();
            async move { update(&lua, &cluster, &key, &change).await }
        })?,
    )?;
    kv.set(
        "ref",
        lua.create_function(|lua, key: String| {
            let table = lua.create_table()?;
            table.raw_set("kv", key)?;
            Ok(table)
        })?,
    )?;
    kv.set_readonly(true);
    lua.globals().set("kv", kv)?;

    for (name, of) in [("secrets", ValueKind::Secret), ("configs", ValueKind::Config)] {
        lua.globals().set(name, values(lua, cluster, name, of)?)?;
    }
    Ok(())
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct WatchOptions {
    timeout: Option<Duration>,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct SetOptions {
    only_new: bool,
    rollout: Option<bool>,
}

// What secrets and configs have in common; a config's value can be read.
fn values(lua: &Lua, cluster: &Arc<dyn Cluster>, name: &'static str, of: ValueKind) -> mlua::Result<Table> {
    let table = lua.create_table()?;
    let shared = cluster.clone();
    table.set(
        "set",
        lua.create_async_function(move |lua, (key, value, given): (String, Value, Option<Table>)| {
            let cluster = shared.clone();
            async move {
                let what = format!("{name}.set");
                let options: SetOptions = options(&what, given)?;
                let no_rollout = options.rollout == Some(false);
                let set = ValueSet {
                    value: text(&what, &value)?,
                    only_new: options.only_new,
                    no_rollout,
                    prefix: String::new(),
                };
                let change = cluster.set_value(of, &key, set).await.map_err(raise)?;
                if let Some((service, why)) = change.refused.first_key_value() {
                    let message = format!("is set, but service \"{service}\" goes on with what it had");
                    return Err(raise(
                        Error::new(Kind::Failed, format!("{} \"{key}\"", of.as_str()), message).cause(why),
                    ));
                }
                Ok((change.info.version as f64, lua.create_sequence_from(change.rolled_out)?))
            }
        })?,
    )?;
    let shared = cluster.clone();
    table.set(
        "list",
        lua.create_async_function(move |lua, ()| {
            let cluster = shared.clone();
            async move { from_timed(&lua, &cluster.values(of).await.map_err(raise)?) }
        })?,
    )?;
    let shared = cluster.clone();
    table.set(
        "remove",
        lua.create_async_function(move |_, key: String| {
            let cluster = shared.clone();
            async move { cluster.remove_value(of, &key).await.map_err(raise) }
        })?,
    )?;
    if of == ValueKind::Config {
        let shared = cluster.clone();
        table.set(
            "get",
            lua.create_async_function(move |_, key: String| {
                let cluster = shared.clone();
                async move {
                    match cluster.config(&key).await {
                        Ok(config) => Ok((Some(config.value), Some(config.info.version as f64))),
                        Err(error) if error.kind == Kind::NotFound => Ok((None, None)),
                        Err(error) => Err(raise(error)),
                    }
                }
            })?,
        )?;
    }
    table.set_readonly(true);
    Ok(table)
}

/// How often a key that others change all the time is read anew.
const ATTEMPTS: usize = 100;

// Writes what `change(value)` returns, unless somebody else was faster: then it is asked again. Nothing returned leaves all as
// it is.
async fn update(lua: &Lua, cluster: &Arc<dyn Cluster>, key: &str, change: &mlua::Function) -> mlua::Result<Value> {
    for _ in 0..ATTEMPTS {
        let entry = cluster.kv_get(key).await.map_err(raise)?;
        let known = entry.as_ref().map(|entry| entry.bytes().map_err(raise)).transpose()?;
        let known = known.map(|known| lua.create_string(known)).transpose()?;
        let wanted: Value = change.call_async(known).await?;
        if wanted.is_nil() {
            return Ok(Value::Nil);
        }
        let value = bytes("kv.update", &wanted)?;
        let version = Some(entry.map_or(0, |entry| entry.version));
        match cluster.kv_set(key, KvSet { version, ..KvSet::of(value.clone()) }).await {
            Ok(_) => return Ok(Value::String(lua.create_string(value)?)),
            Err(error) if error.kind == Kind::Conflict => {}
            Err(error) => return Err(raise(error)),
        }
    }
    Err(raise(
        Error::new(Kind::Conflict, format!("key \"{key:.70}\""), "is changed by others all the time").retry(true),
    ))
}

// Calls `each(key, value, version)` for what is there and for each change, until it returns something that counts as true,
// or the time is over.
async fn watch(
    lua: &Lua,
    cluster: &Arc<dyn Cluster>,
    prefix: &str,
    each: mlua::Function,
    period: Option<Duration>,
) -> mlua::Result<Value> {
    let changes = cluster.kv_watch(prefix).await.map_err(raise)?;
    until(changes, period, async |change: KvChange| {
        let (value, version) = match change.entry {
            Some(entry) => {
                let value = lua.create_string(entry.bytes().map_err(raise)?)?;
                (Value::String(value), Some(entry.version as f64))
            }
            None => (Value::Nil, None),
        };
        each.call_async((change.key, value, version)).await
    })
    .await
}

/// Calls `each` for what comes, until it returns something that counts as true, which is returned, or the time is over.
pub async fn until<T>(
    mut changes: Stream1<T>,
    period: Option<Duration>,
    mut each: impl AsyncFnMut(T) -> mlua::Result<Value>,
) -> mlua::Result<Value> {
    let until = period.map(|period| tokio::time::Instant::now() + period.std());
    loop {
        let next = match until {
            Some(until) => match tokio::time::timeout_at(until, changes.next()).await {
                Ok(next) => next,
                Err(_) => return Ok(Value::Nil),
            },
            None => changes.next().await,
        };
        let Some(change) = next else { return Ok(Value::Nil) };
        let answer = each(change.map_err(raise)?).await?;
        if !matches!(answer, Value::Nil | Value::Boolean(false)) {
            return Ok(answer);
        }
    }
}
