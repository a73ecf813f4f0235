//! `nodes`: the cluster's nodes.

use std::sync::Arc;

use mlua::{Lua, Table, Value};

use crate::client::{Cluster, wait};
use crate::model::node::{Availability, ImagePrune, Node, NodeUpdate};
use crate::model::units::Duration;
use crate::model::{Error, strict};
use crate::script::value::{from_record, raise, to_json};

const FIELDS: [&str; 19] = [
    "id",
    "hostname",
    "role",
    "availability",
    "state",
    "address",
    "os",
    "arch",
    "cpu",
    "memory",
    "labels",
    "engine_labels",
    "agent",
    "update",
    "drain",
    "remove",
    "tasks",
    "prune_images",
    "forget_agent",
];

/// How a drain is waited for.
#[derive(Default, serde::Deserialize, schemars::JsonSchema)]
#[serde(default)]
struct DrainOptions {
    timeout: Option<Duration>,
    force: bool,
}

/// Sets `nodes`.
pub fn install(lua: &Lua, cluster: &Arc<dyn Cluster>) -> mlua::Result<()> {
    let nodes = lua.create_table()?;
    let shared = cluster.clone();
    nodes.set(
        "list",
        lua.create_async_function(move |lua, ()| {
            let cluster = shared.clone();
            async move {
                let all = cluster.nodes().await.map_err(raise)?;
                all.iter().map(|node| node_table(&lua, &cluster, node)).collect::<mlua::Result<Vec<_>>>()
            }
        })?,
    )?;
    let shared = cluster.clone();
    nodes.set(
        "get",
        lua.create_async_function(move |lua, name: String| {
            let cluster = shared.clone();
            async move {
                let all = cluster.nodes().await.map_err(raise)?;
                let found = all.iter().find(|node| *node.id == *name || node.hostname == name);
                let found = found.ok_or_else(|| raise(Error::not_found(format!("node \"{name:.70}\""))))?;
                node_table(&lua, &cluster, found)
            }
        })?,
    )?;
    nodes.set_readonly(true);
    lua.globals().set("nodes", nodes)
}

fn node_table(lua: &Lua, cluster: &Arc<dyn Cluster>, node: &Node) -> mlua::Result<Table> {
    let Value::Table(table) = from_record(lua, node)? else {
        return Err(mlua::Error::runtime("a node is a table"));
    };
    // Amounts as numbers, as policies see them.
    table.raw_set("memory", node.memory.0 as f64)?;
    // Changed by `update`, not by writing to what was read.
    for name in ["labels", "engine_labels"] {
        if let Value::Table(labels) = table.raw_get(name)? {
            labels.set_readonly(true);
        }
    }
    let (shared, id) = (cluster.clone(), node.id.clone());
    let remove = lua.create_async_function(move |_, (_, options): (Value, Option<Table>)| {
        let (cluster, id) = (shared.clone(), id.clone());
        async move {
            let force = match options {
                Some(options) => options.get::<Option<bool>>("force")?.unwrap_or_default(),
                None => false,
            };
            cluster.remove_node(&id, force).await.map_err(raise)
        }
    })?;
    table.raw_set("remove", remove)?;
    let (shared, id) = (cluster.clone(), node.id.clone());
    let tasks = lua.create_async_function(move |lua, _: Value| {
        let (cluster, id) = (shared.clone(), id.clone());
        async move {
            let services = cluster.services().await.map_err(raise)?;
            let here = |task: &&crate::model::task::Task| task.node.as_ref() == Some(&id) && !task.state.is_final();
            let labels = services.iter().flat_map(|status| &status.tasks).filter(here).map(|task| task.label());
            lua.create_sequence_from(labels)
        }
    })?;
    table.raw_set("tasks", tasks)?;
    let (shared, id) = (cluster.clone(), node.id.clone());
    let prune = lua.create_async_function(move |lua, (_, options): (Value, Option<Table>)| {
        let (cluster, id) = (shared.clone(), id.clone());
        async move {
            let options = options.map_or_else(|| Ok(serde_json::json!({})), |table| to_json(&Value::Table(table)));
            let ask: ImagePrune = strict::read("prune_images", &options.map_err(raise)?).map_err(raise)?;
            let pruned = cluster.prune_images(&id, ask).await.map_err(raise)?;
            let table = lua.create_table()?;
            table.raw_set("removed", pruned.removed)?;
            table.raw_set("bytes", pruned.bytes.0 as f64)?;
            Ok(table)
        }
    })?;
    table.raw_set("prune_images", prune)?;
    let (shared, id) = (cluster.clone(), node.id.clone());
    let forget = lua.create_async_function(move |_, _: Value| {
        let (cluster, id) = (shared.clone(), id.clone());
        async move { cluster.forget_agent(&id).await.map_err(raise) }
    })?;
    table.raw_set("forget_agent", forget)?;
    let (shared, id) = (cluster.clone(), node.id.clone());
    let drain = lua.create_async_function(move |lua, (_, options): (Value, Option<Table>)| {
        let (cluster, id) = (shared.clone(), id.clone());
        async move {
            let options = options.map_or_else(|| Ok(serde_json::json!({})), |table| to_json(&Value::Table(table)));
            let options: DrainOptions = strict::read("drain", &options.map_err(raise)?).map_err(raise)?;
            let availability = Some(Availability::Drain);
            let update = NodeUpdate { availability, force: options.force, ..NodeUpdate::default() };
            let node = cluster.update_node(&id, update).await.map_err(raise)?;
            let timeout = options.timeout.unwrap_or(super::services::WAIT).std();
            wait::drained(&*cluster, &node, timeout, &mut |_| {}).await.map_err(raise)?;
            node_table(&lua, &cluster, &node)
        }
    })?;
    table.raw_set("drain", drain)?;
    let (cluster, id) = (cluster.clone(), node.id.clone());
    let update = lua.create_async_function(move |lua, (_, changes): (Value, Table)| {
        let (cluster, id) = (cluster.clone(), id.clone());
        async move {
            let changes = to_json(&Value::Table(changes)).map_err(raise)?;
            let update: NodeUpdate = strict::read(&format!("node \"{id}\""), &changes).map_err(raise)?;
            let node = cluster.update_node(&id, update).await.map_err(raise)?;
            node_table(&lua, &cluster, &node)
        }
    })?;
    table.raw_set("update", update)?;
    crate::script::value::strict(lua, "node", &table, &FIELDS)?;
    Ok(table)
}
