//! `registry`: what registries are told when images are pulled.

use std::sync::Arc;

use mlua::{Lua, Table, Value};

use crate::client::Cluster;
use crate::model::registry::LoginAsk;
use crate::script::value::{from_timed, raise, to_json};

/// Sets it.
pub fn install(lua: &Lua, cluster: &Arc<dyn Cluster>) -> mlua::Result<()> {
    let registry = lua.create_table()?;
    let shared = cluster.clone();
    registry.set(
        "logins",
        lua.create_async_function(move |lua, ()| {
            let cluster = shared.clone();
            async move { from_timed(&lua, &cluster.logins().await.map_err(raise)?) }
        })?,
    )?;
    let shared = cluster.clone();
    registry.set(
        "login",
        lua.create_async_function(move |lua, (name, ask): (String, Table)| {
            let cluster = shared.clone();
            async move {
                let ask = to_json(&Value::Table(ask)).map_err(raise)?;
                let ask: LoginAsk = crate::model::strict::read("registry.login", &ask).map_err(raise)?;
                from_timed(&lua, &cluster.login(&name, ask).await.map_err(raise)?)
            }
        })?,
    )?;
    let shared = cluster.clone();
    registry.set(
        "logout",
        lua.create_async_function(move |_, (name, service): (String, Option<String>)| {
            let cluster = shared.clone();
            async move { cluster.logout(&name, service.as_deref()).await.map_err(raise) }
        })?,
    )?;
    registry.set_readonly(true);
    lua.globals().set("registry", registry)
}
