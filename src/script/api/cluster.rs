//! The cluster's own namespaces, the same wherever they work: in `neap run`, in the REPL, in cron scripts and handlers.

use std::path::PathBuf;
use std::rc::Rc;
use std::sync::Arc;

use mlua::{Lua, MultiValue, Table, Value};

use super::{Reach, crons, discovery, hosts, kv, natives, nodes, objects, registry, routes, services};
use crate::client::Cluster;
use crate::client::scripts::{Back, Push};
use crate::script::value::{from_timed, raise};

/// What `install` sets.
pub const NAMES: [&str; 17] = [
    "cluster",
    "service",
    "services",
    "nodes",
    "networks",
    "volumes",
    "route",
    "routes",
    "ports",
    "natives",
    "registry",
    "discovery",
    "kv",
    "secrets",
    "configs",
    "crons",
    "events",
];

/// Who does what a script does.
const BY: &str = "a script";

/// Sets them in a hosted VM. Nothing is shown to anybody there, and nothing is brought along.
pub fn install(lua: &Lua, cluster: &Arc<dyn Cluster>, reach: &Reach) -> mlua::Result<()> {
    let reporter: services::Reporter = Rc::new(|_, _| {});
    let (cluster, reach) = (cluster.clone(), reach.clone());
    let described = super::describe::Described::default();
    install_with(lua, &services::Context { cluster, reporter, folder: PathBuf::new(), reach, described, hosting: None })
}

/// Sets them for somebody who is there to see; `scripts` as well, for files that they have.
pub fn install_with(lua: &Lua, context: &services::Context) -> mlua::Result<()> {
    services::install(lua, context)?;
    hosts::install(lua, context)?;
    nodes::install(lua, &context.cluster)?;
    objects::install(lua, &context.cluster)?;
    routes::install(lua, &context.cluster)?;
    registry::install(lua, &context.cluster, &context.folder)?;
    natives::install(lua, context)?;
    discovery::install(lua, &context.cluster, &context.reach)?;
    kv::install(lua, &context.cluster)?;
    crons::install(lua, &context.cluster)?;
    install_scripts(lua, context)
}

// `scripts "policies/*.lua"` reads files; its fields manage what serves the cluster.
fn install_scripts(lua: &Lua, context: &services::Context) -> mlua::Result<()> {
    let scripts = lua.create_table()?;
    let shared = context.cluster.clone();
    scripts.set(
        "list",
        lua.create_async_function(move |lua, ()| {
            let cluster = shared.clone();
            async move { from_timed(&lua, &cluster.scripts().await.map_err(raise)?) }
        })?,
    )?;
    let shared = context.cluster.clone();
    scripts.set(
        "get",
        lua.create_async_function(move |lua, (name, version): (String, Option<String>)| {
            let cluster = shared.clone();
            async move { from_timed(&lua, &cluster.script(&name, version.as_deref()).await.map_err(raise)?) }
        })?,
    )?;
    let shared = context.cluster.clone();
    scripts.set(
        "push",
        lua.create_async_function(move |lua, (name, brought): (String, Value)| {
            let cluster = shared.clone();
            async move {
                let push = Push { bundle: super::describe::brought("scripts.push", &brought)?, check_only: false };
                from_timed(&lua, &cluster.push_scripts(&name, push, BY).await.map_err(raise)?)
            }
        })?,
    )?;
    let shared = context.cluster.clone();
    scripts.set(
        "rollback",
        lua.create_async_function(move |lua, (name, to): (String, Option<String>)| {
            let cluster = shared.clone();
            async move { from_timed(&lua, &cluster.rollback_scripts(&name, Back { to }, BY).await.map_err(raise)?) }
        })?,
    )?;
    let shared = context.cluster.clone();
    scripts.set(
        "remove",
        lua.create_async_function(move |_, name: String| {
            let cluster = shared.clone();
            async move { cluster.remove_scripts(&name).await.map_err(raise) }
        })?,
    )?;
    let shared = context.cluster.clone();
    scripts.set(
        "calls",
        lua.create_async_function(move |lua, ()| {
            let cluster = shared.clone();
            async move { from_timed(&lua, &cluster.script_calls().await.map_err(raise)?) }
        })?,
    )?;
    let read: mlua::Function = lua.globals().get("scripts")?;
    let meta = lua.create_table()?;
    let call = lua.create_function(move |_, (_, rest): (Table, MultiValue)| read.call::<Value>(rest))?;
    meta.raw_set("__call", call)?;
    let known = ["list", "get", "push", "rollback", "remove", "calls"];
    let index = lua.create_function(move |_, (_, key): (Table, String)| {
        let hint = crate::model::suggest::nearest(&key, known).map(|name| format!("; did you mean \"{name}\"?"));
        let hint = hint.unwrap_or_default();
        Err::<Value, _>(mlua::Error::runtime(format!("scripts has nothing called \"{key:.60}\"{hint}")))
    })?;
    meta.raw_set("__index", index)?;
    meta.raw_set("__metatable", "locked")?;
    scripts.set_metatable(Some(meta))?;
    scripts.set_readonly(true);
    lua.globals().set("scripts", scripts)
}
