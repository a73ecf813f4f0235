//! `discovery`: who serves what where, and what is registered by hand.

use std::sync::Arc;

use mlua::{Lua, LuaString, Table, Value};
use serde::Deserialize;

use super::Reach;
use super::kv::until;
use crate::client::catalog::{CatalogSnapshot, InstancesAsk, Maintenance, Register, Report};
use crate::client::{Cluster, show};
use crate::model::catalog::CheckStatus;
use crate::model::units::Duration;
use crate::script::value::{from_record, options, raise};

#[derive(Deserialize, Default)]
#[serde(default)]
struct Which {
    tag: Option<String>,
    node: Option<String>,
    passing: bool,
    timeout: Option<Duration>,
}

impl Which {
    fn ask(self) -> InstancesAsk {
        InstancesAsk { tag: self.tag, node: self.node, passing: self.passing }
    }
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct Instances {
    tag: Option<String>,
    node: Option<String>,
    passing: bool,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct Resolve {
    tag: Option<String>,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct Place {
    node: Option<String>,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct Maintain {
    node: Option<String>,
    enable: Option<bool>,
    reason: String,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct Said {
    node: Option<String>,
    output: String,
}

/// Sets it.
pub fn install(lua: &Lua, cluster: &Arc<dyn Cluster>, reach: &Reach) -> mlua::Result<()> {
    let table = lua.create_table()?;
    read(lua, &table, cluster, reach)?;
    change(lua, &table, cluster)?;
    keep(lua, &table, cluster)?;
    table.set_readonly(true);
    lua.globals().set("discovery", table)
}

fn read(lua: &Lua, table: &Table, cluster: &Arc<dyn Cluster>, reach: &Reach) -> mlua::Result<()> {
    let shared = cluster.clone();
    table.set(
        "services",
        lua.create_async_function(move |lua, ()| {
            let cluster = shared.clone();
            async move { from_record(&lua, &cluster.catalog_services().await.map_err(raise)?) }
        })?,
    )?;
    let shared = cluster.clone();
    table.set(
        "nodes",
        lua.create_async_function(move |lua, ()| {
            let cluster = shared.clone();
            async move { from_record(&lua, &cluster.catalog_nodes().await.map_err(raise)?) }
        })?,
    )?;
    let shared = cluster.clone();
    table.set(
        "instances",
        lua.create_async_function(move |lua, (service, given): (String, Option<Table>)| {
            let cluster = shared.clone();
            async move {
                let Instances { tag, node, passing } = options("discovery.instances", given)?;
                let ask = InstancesAsk { tag, node, passing };
                from_record(&lua, &cluster.instances(&service, ask).await.map_err(raise)?)
            }
        })?,
    )?;
    let (shared, clock) = (cluster.clone(), reach.clock.clone());
    table.set(
        "resolve",
        lua.create_async_function(move |lua, (service, given): (String, Option<Table>)| {
            let (cluster, clock) = (shared.clone(), clock.clone());
            async move {
                let Resolve { tag } = options("discovery.resolve", given)?;
                let ask = InstancesAsk { tag, node: None, passing: true };
                let mut found = cluster.instances(&service, ask).await.map_err(raise)?;
                for left in (1..found.len()).rev() {
                    found.swap(left, usize::try_from(clock.random() % (left as u64 + 1)).unwrap_or_default());
                }
                lua.create_sequence_from(found.iter().map(show::catalog::address))
            }
        })?,
    )?;
    let shared = cluster.clone();
    table.set(
        "watch",
        lua.create_async_function(move |lua, (service, each, given): (String, mlua::Function, Option<Table>)| {
            let cluster = shared.clone();
            async move {
                let which: Which = options("discovery.watch", given)?;
                let period = which.timeout;
                watch(&lua, &cluster, &service, which.ask(), &each, period).await
            }
        })?,
    )
}

fn change(lua: &Lua, table: &Table, cluster: &Arc<dyn Cluster>) -> mlua::Result<()> {
    let shared = cluster.clone();
    table.set(
        "register",
        lua.create_async_function(move |lua, given: Table| {
            let cluster = shared.clone();
            async move {
                let register: Register = options("discovery.register", Some(given))?;
                from_record(&lua, &cluster.register(register).await.map_err(raise)?)
            }
        })?,
    )?;
    let shared = cluster.clone();
    table.set(
        "deregister",
        lua.create_async_function(move |_, (id, given): (String, Option<Table>)| {
            let cluster = shared.clone();
            async move {
                let Place { node } = options("discovery.deregister", given)?;
                cluster.deregister(node.as_deref(), &id).await.map_err(raise)
            }
        })?,
    )?;
    let shared = cluster.clone();
    table.set(
        "report",
        lua.create_async_function(move |_, (check, status, given): (String, String, Option<Table>)| {
            let cluster = shared.clone();
            async move {
                let status: CheckStatus = status.parse().map_err(raise)?;
                let Said { node, output } = options("discovery.report", given)?;
                cluster.report(node.as_deref(), &check, Report { status, output }).await.map_err(raise)
            }
        })?,
    )?;
    let shared = cluster.clone();
    table.set(
        "maintain",
        lua.create_async_function(move |lua, (id, given): (String, Option<Table>)| {
            let cluster = shared.clone();
            async move {
                let Maintain { node, enable, reason } = options("discovery.maintain", given)?;
                let maintenance = Maintenance { enable: enable.unwrap_or(true), reason };
                from_record(&lua, &cluster.maintain(node.as_deref(), &id, maintenance).await.map_err(raise)?)
            }
        })?,
    )
}

fn keep(lua: &Lua, table: &Table, cluster: &Arc<dyn Cluster>) -> mlua::Result<()> {
    let shared = cluster.clone();
    table.set(
        "snapshot",
        lua.create_async_function(move |lua, ()| {
            let cluster = shared.clone();
            async move { lua.create_string(cluster.catalog_snapshot().await.and_then(|all| all.bytes()).map_err(raise)?) }
        })?,
    )?;
    let shared = cluster.clone();
    table.set(
        "restore",
        lua.create_async_function(move |lua, archive: LuaString| {
            let cluster = shared.clone();
            async move {
                let snapshot = CatalogSnapshot::new(&archive.as_bytes());
                from_record(&lua, &cluster.restore_catalog(snapshot).await.map_err(raise)?)
            }
        })?,
    )
}

// Calls `each(instances)` with what is there and after each change, until it returns something that counts as true, or the
// time is over.
async fn watch(
    lua: &Lua,
    cluster: &Arc<dyn Cluster>,
    service: &str,
    ask: InstancesAsk,
    each: &mlua::Function,
    period: Option<Duration>,
) -> mlua::Result<Value> {
    let changes = cluster.watch_instances(service, ask).await.map_err(raise)?;
    until(changes, period, async |found| each.call_async(from_record(lua, &found)?).await).await
}
