//! `cluster`: the cluster as a whole, and the hosts that are to come to it.

use std::sync::Arc;

use mlua::{Lua, Table, Value};

use crate::client::Cluster;
use crate::model::Error;
use crate::model::node::Role;
use crate::model::swarm::SwarmAsk;
use crate::script::value::{from_record, raise, to_json};

/// Sets `cluster`.
pub fn install(lua: &Lua, cluster: &Arc<dyn Cluster>) -> mlua::Result<()> {
    let table = lua.create_table()?;
    let shared = cluster.clone();
    table.set(
        "info",
        lua.create_async_function(move |lua, ()| {
            let cluster = shared.clone();
            async move { from_record(&lua, &cluster.info().await.map_err(raise)?) }
        })?,
    )?;
    for (name, rotate) in [("join_token", false), ("rotate_join_token", true)] {
        let shared = cluster.clone();
        table.set(
            name,
            lua.create_async_function(move |lua, word: String| {
                let cluster = shared.clone();
                async move {
                    let role = match word.as_str() {
                        "worker" => Role::Worker,
                        "manager" => Role::Manager,
                        _ => {
                            let message = format!("{word:.40?} is neither \"worker\" nor \"manager\"");
                            return Err(raise(Error::invalid(format!("cluster.{name}"), message)));
                        }
                    };
                    let ticket = cluster.join_ticket(role, rotate).await.map_err(raise)?;
                    let table = from_record(&lua, &ticket)?;
                    if let Value::Table(table) = &table {
                        table.raw_set("command", ticket.command())?;
                    }
                    Ok(table)
                }
            })?,
        )?;
    }
    let shared = cluster.clone();
    table.set(
        "swarm",
        lua.create_async_function(move |lua, ask: Option<Table>| {
            let cluster = shared.clone();
            async move {
                let ask = match ask {
                    Some(ask) => {
                        let asked = to_json(&Value::Table(ask)).map_err(raise)?;
                        crate::model::strict::read("cluster.swarm", &asked).map_err(raise)?
                    }
                    None => SwarmAsk::Show,
                };
                from_record(&lua, &cluster.swarm(ask).await.map_err(raise)?)
            }
        })?,
    )?;
    table.set_readonly(true);
    lua.globals().set("cluster", table)
}
