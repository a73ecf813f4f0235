//! `cluster`: the cluster as a whole, and the hosts that are to come to it.

use std::rc::Rc;

use mlua::{Lua, Table, Value};

use super::services::Context;
use crate::client::agents;
use crate::client::hosting::{Hosting, InitAsk, JoinAsk, LeaveAsk, UnlockAsk};
use crate::model::node::Role;
use crate::model::swarm::SwarmAsk;
use crate::model::{Error, Kind, Result};
use crate::script::value::{from_record, raise, to_json};

/// Sets `cluster`.
pub fn install(lua: &Lua, context: &Context) -> mlua::Result<()> {
    let cluster = &context.cluster;
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
                    None => SwarmAsk::Show {},
                };
                from_record(&lua, &cluster.swarm(ask).await.map_err(raise)?)
            }
        })?,
    )?;
    let shared = cluster.clone();
    table.set(
        "install_agents",
        lua.create_async_function(move |lua, ask: Table| {
            let cluster = shared.clone();
            async move {
                let asked = to_json(&Value::Table(ask)).map_err(raise)?;
                let ask = crate::model::strict::read("cluster.install_agents", &asked).map_err(raise)?;
                from_record(&lua, &agents::install(&*cluster, ask).await.map_err(raise)?)
            }
        })?,
    )?;
    let shared = cluster.clone();
    table.set(
        "remove_agents",
        lua.create_async_function(move |_, name: Option<String>| {
            let cluster = shared.clone();
            async move {
                let name = name.map(|name| name.parse()).transpose().map_err(raise)?;
                agents::remove(&*cluster, name.as_ref()).await.map(|name| name.to_string()).map_err(raise)
            }
        })?,
    )?;
    install_hosting(lua, &table, context.hosting.as_ref())?;
    table.set_readonly(true);
    lua.globals().set("cluster", table)
}

// `cluster.init`, `join`, `leave`, `unlock`: for whoever runs a script on the host that is meant.
fn install_hosting(lua: &Lua, table: &Table, hosting: Option<&Rc<dyn Hosting>>) -> mlua::Result<()> {
    let here = |what: &'static str| {
        let hosting = hosting.cloned();
        move || {
            hosting.clone().ok_or_else(|| {
                raise(
                    Error::new(Kind::Unsupported, what, "is for the host where a script is run by hand")
                        .help("put it into a file, and run that there: neap run FILE"),
                )
            })
        }
    };
    let get = here("cluster.init");
    let init = move |lua: Lua, ask: Option<Table>| {
        let get = get.clone();
        async move {
            let ask: InitAsk = asked("cluster.init", ask, &["cluster"]).map_err(raise)?;
            let ticket = get()?.init(ask).await.map_err(raise)?;
            let told = from_record(&lua, &ticket)?;
            if let Value::Table(told) = &told {
                told.raw_set("command", ticket.command())?;
            }
            Ok(told)
        }
    };
    table.set("init", lua.create_async_function(init)?)?;
    let get = here("cluster.join");
    let join = move |lua: Lua, ask: Table| {
        let get = get.clone();
        async move {
            let ask: JoinAsk = asked("cluster.join", Some(ask), &["address", "token", "no_start"]).map_err(raise)?;
            from_record(&lua, &get()?.join(ask).await.map_err(raise)?)
        }
    };
    table.set("join", lua.create_async_function(join)?)?;
    let get = here("cluster.leave");
    let leave = move |_: Lua, ask: Option<Table>| {
        let get = get.clone();
        async move {
            let ask: LeaveAsk = asked("cluster.leave", ask, &["force"]).map_err(raise)?;
            get()?.leave(ask).await.map_err(raise)
        }
    };
    table.set("leave", lua.create_async_function(leave)?)?;
    let get = here("cluster.unlock");
    let unlock = move |_: Lua, ask: Table| {
        let get = get.clone();
        async move {
            let ask: UnlockAsk = asked("cluster.unlock", Some(ask), &["key"]).map_err(raise)?;
            get()?.unlock(ask).await.map_err(raise)
        }
    };
    table.set("unlock", lua.create_async_function(unlock)?)
}

// What all of them take.
const PLACE: [&str; 6] = ["data", "docker_host", "socket", "advertise_addr", "listen_addr", "data_path_addr"];

fn asked<T: serde::de::DeserializeOwned>(what: &str, ask: Option<Table>, own: &[&str]) -> Result<T> {
    let value = match ask {
        Some(ask) => to_json(&Value::Table(ask))?,
        None => serde_json::json!({}),
    };
    let known = || own.iter().chain(&PLACE).copied();
    let keys = value.as_object().into_iter().flat_map(|fields| fields.keys());
    if let Some(odd) = keys.into_iter().find(|key| !known().any(|known| known == key.as_str())) {
        let hint = crate::model::suggest::hint(odd, known());
        return Err(Error::invalid(what, format!("unknown field \"{odd:.40}\"{hint}")));
    }
    crate::model::strict::read(what, &value)
}
