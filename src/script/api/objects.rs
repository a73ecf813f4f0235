//! `networks` and `volumes`: what services are attached to and keep things in.

use std::sync::Arc;

use mlua::{Lua, Table, Value};
use serde::Deserialize;
use serde::de::DeserializeOwned;

use crate::client::Cluster;
use crate::model::objects::{NetworkSpec, VolumeSpec, Volumes};
use crate::script::value::{from_record, raise, to_json};

fn read<T: DeserializeOwned>(what: &str, table: Table) -> mlua::Result<T> {
    crate::model::strict::read(what, &to_json(&Value::Table(table)).map_err(raise)?).map_err(raise)
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct Where {
    node: Option<String>,
    force: bool,
}

fn place(what: &str, options: Option<Table>) -> mlua::Result<Where> {
    options.map_or_else(|| Ok(Where::default()), |table| read(what, table))
}

// The volumes, and the hosts that could not be asked where there are some.
fn found(lua: &Lua, volumes: &Volumes) -> mlua::Result<(Value, Option<Value>)> {
    let missing = (!volumes.missing.is_empty()).then(|| from_record(lua, &volumes.missing)).transpose()?;
    Ok((from_record(lua, &volumes.volumes)?, missing))
}

/// Sets both.
pub fn install(lua: &Lua, cluster: &Arc<dyn Cluster>) -> mlua::Result<()> {
    let networks = lua.create_table()?;
    let shared = cluster.clone();
    networks.set(
        "list",
        lua.create_async_function(move |lua, ()| {
            let cluster = shared.clone();
            async move { from_record(&lua, &cluster.networks().await.map_err(raise)?) }
        })?,
    )?;
    let shared = cluster.clone();
    networks.set(
        "create",
        lua.create_async_function(move |lua, spec: Table| {
            let cluster = shared.clone();
            async move {
                let spec: NetworkSpec = read("networks.create", spec)?;
                from_record(&lua, &cluster.create_network(spec).await.map_err(raise)?)
            }
        })?,
    )?;
    let shared = cluster.clone();
    networks.set(
        "remove",
        lua.create_async_function(move |_, name: String| {
            let cluster = shared.clone();
            async move { cluster.remove_network(&name).await.map_err(raise) }
        })?,
    )?;
    networks.set_readonly(true);
    lua.globals().set("networks", networks)?;

    let volumes = lua.create_table()?;
    let shared = cluster.clone();
    volumes.set(
        "list",
        lua.create_async_function(move |lua, options: Option<Table>| {
            let cluster = shared.clone();
            async move {
                let place = place("volumes.list", options)?;
                found(&lua, &cluster.volumes(place.node.as_deref()).await.map_err(raise)?)
            }
        })?,
    )?;
    let shared = cluster.clone();
    volumes.set(
        "create",
        lua.create_async_function(move |lua, (spec, options): (Table, Option<Table>)| {
            let cluster = shared.clone();
            async move {
                let (spec, place): (VolumeSpec, _) = (read("volumes.create", spec)?, place("volumes.create", options)?);
                let made = cluster.create_volume(place.node.as_deref(), spec).await.map_err(raise)?;
                from_record(&lua, &made.volumes)
            }
        })?,
    )?;
    let shared = cluster.clone();
    volumes.set(
        "remove",
        lua.create_async_function(move |lua, (name, options): (String, Option<Table>)| {
            let cluster = shared.clone();
            async move {
                let place = place("volumes.remove", options)?;
                let removed = cluster.remove_volume(place.node.as_deref(), &name, place.force).await.map_err(raise)?;
                from_record(&lua, &removed.volumes)
            }
        })?,
    )?;
    volumes.set_readonly(true);
    lua.globals().set("volumes", volumes)
}
