//! `nodes`: the cluster's nodes.

use std::collections::BTreeMap;
use std::sync::Arc;

use mlua::{Lua, Table, Value};
use serde::Deserialize;

use crate::client::{Cluster, wait};
use crate::model::node::{self, Availability, ImagePrune, Node, NodeState, NodeUpdate, Role};
use crate::model::strict;
use crate::model::units::Duration;
use crate::script::value::{WAIT, from_record, options, raise, to_json};

const FIELDS: [&str; 21] = [
    "id",
    "name",
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
    "stats",
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
        lua.create_async_function(move |lua, table: Option<Table>| {
            let cluster = shared.clone();
            async move {
                let which: Which = options("nodes.list", table)?;
                let all = cluster.nodes().await.map_err(raise)?;
                all.iter()
                    .filter(|node| which.holds(node))
                    .map(|node| node_table(&lua, &cluster, node))
                    .collect::<mlua::Result<Vec<_>>>()
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
                node_table(&lua, &cluster, node::named(all.iter(), &name).map_err(raise)?)
            }
        })?,
    )?;
    let shared = cluster.clone();
    nodes.set(
        "stats",
        lua.create_async_function(move |lua, table: Option<Table>| {
            let cluster = shared.clone();
            async move {
                let asked: Asked = options("nodes.stats", table)?;
                from_record(&lua, &cluster.node_stats(None, asked.containers).await.map_err(raise)?)
            }
        })?,
    )?;
    nodes.set_readonly(true);
    lua.globals().set("nodes", nodes)
}

// Which nodes `nodes.list` tells of.
#[derive(Deserialize, Default)]
#[serde(default)]
struct Which {
    labels: BTreeMap<String, String>,
    state: Option<NodeState>,
    role: Option<Role>,
    availability: Option<Availability>,
}

impl Which {
    fn holds(&self, node: &Node) -> bool {
        self.labels.iter().all(|(key, value)| node.labels.get(key) == Some(value))
            && self.state.is_none_or(|state| node.state == state)
            && self.role.is_none_or(|role| node.role == role)
            && self.availability.is_none_or(|availability| node.availability == availability)
    }
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct Asked {
    containers: bool,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct Forced {
    force: bool,
}

fn node_table(lua: &Lua, cluster: &Arc<dyn Cluster>, node: &Node) -> mlua::Result<Table> {
    let Value::Table(table) = from_record(lua, node)? else {
        return Err(mlua::Error::runtime("a node is a table"));
    };
    table.raw_set("name", node.hostname.as_str())?;
    // Amounts as numbers, as policies see them.
    table.raw_set("memory", node.memory.0 as f64)?;
    // Changed by `update`, not by writing to what was read.
    for name in ["labels", "engine_labels"] {
        if let Value::Table(labels) = table.raw_get(name)? {
            labels.set_readonly(true);
        }
    }
    let (shared, id) = (cluster.clone(), node.id.clone());
    let remove = lua.create_async_function(move |_, (_, table): (Value, Option<Table>)| {
        let (cluster, id) = (shared.clone(), id.clone());
        async move {
            let options: Forced = options("remove", table)?;
            cluster.remove_node(&id, options.force).await.map_err(raise)
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
    let stats = lua.create_async_function(move |lua, (_, table): (Value, Option<Table>)| {
        let (cluster, id) = (shared.clone(), id.clone());
        async move {
            let asked: Asked = options("stats", table)?;
            let told = cluster.node_stats(Some(&id), asked.containers).await.map_err(raise)?;
            from_record(&lua, &told.first())
        }
    })?;
    table.raw_set("stats", stats)?;
    let (shared, id) = (cluster.clone(), node.id.clone());
    let prune = lua.create_async_function(move |lua, (_, table): (Value, Option<Table>)| {
        let (cluster, id) = (shared.clone(), id.clone());
        async move {
            let ask: ImagePrune = options("prune_images", table)?;
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
    let drain = lua.create_async_function(move |lua, (_, table): (Value, Option<Table>)| {
        let (cluster, id) = (shared.clone(), id.clone());
        async move {
            let options: DrainOptions = options("drain", table)?;
            let availability = Some(Availability::Drain);
            let update = NodeUpdate { availability, force: options.force, ..NodeUpdate::default() };
            let node = cluster.update_node(&id, update).await.map_err(raise)?;
            let timeout = options.timeout.unwrap_or(WAIT).std();
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
