//! `route` describes one that stands for itself, `routes` finds them; `ports` finds what is listened on.

use std::sync::Arc;

use mlua::{Lua, Table, UserData, UserDataFields, UserDataMethods, Value};

use crate::client::Cluster;
use crate::model::name::Name;
use crate::model::route::RouteSpec;
use crate::model::{Error, strict};
use crate::script::value::{from_record, raise, to_json};

/// What is wanted of a route.
struct Description {
    cluster: Arc<dyn Cluster>,
    name: Name,
    spec: RouteSpec,
}

impl UserData for Description {
    fn add_fields<F: UserDataFields<Self>>(fields: &mut F) {
        fields.add_field_method_get("name", |_, this| Ok(this.name.to_string()));
        fields.add_field_method_get("url", |_, this| Ok(this.spec.shown()));
    }

    fn add_methods<M: UserDataMethods<Self>>(methods: &mut M) {
        methods.add_async_method("apply", |lua, this, ()| {
            let (cluster, name, spec) = (this.cluster.clone(), this.name.clone(), this.spec.clone());
            async move { from_record(&lua, &cluster.set_route(&name, spec).await.map_err(raise)?) }
        });
    }
}

fn described(cluster: &Arc<dyn Cluster>, name: &str, table: Table) -> mlua::Result<Description> {
    let what = format!("route \"{name:.70}\"");
    let name: Name = name.parse().map_err(|error: Error| raise(error.about(what.as_str())))?;
    let value = to_json(&Value::Table(table)).map_err(|error| raise(error.about(what.as_str())))?;
    let spec: RouteSpec = strict::read(&what, &value).map_err(raise)?;
    spec.validate_alone(&name).map_err(raise)?;
    Ok(Description { cluster: cluster.clone(), name, spec })
}

/// Sets them.
pub fn install(lua: &Lua, cluster: &Arc<dyn Cluster>) -> mlua::Result<()> {
    let shared = cluster.clone();
    let route = lua.create_function(move |lua, (name, table): (String, Value)| {
        let cluster = shared.clone();
        let describe = lua.create_function(move |_, table: Table| described(&cluster, &name, table))?;
        match table {
            Value::Nil => Ok(Value::Function(describe)),
            table => describe.call::<Value>(table),
        }
    })?;
    lua.globals().set("route", route)?;

    let routes = lua.create_table()?;
    let shared = cluster.clone();
    routes.set(
        "list",
        lua.create_async_function(move |lua, ()| {
            let cluster = shared.clone();
            async move { from_record(&lua, &cluster.routes().await.map_err(raise)?) }
        })?,
    )?;
    let shared = cluster.clone();
    routes.set(
        "get",
        lua.create_async_function(move |lua, name: String| {
            let cluster = shared.clone();
            async move {
                let all = cluster.routes().await.map_err(raise)?;
                match all.iter().find(|route| route.name == name) {
                    Some(route) => from_record(&lua, route),
                    None => Ok(Value::Nil),
                }
            }
        })?,
    )?;
    let shared = cluster.clone();
    routes.set(
        "remove",
        lua.create_async_function(move |_, name: String| {
            let cluster = shared.clone();
            async move { cluster.remove_route(&name).await.map_err(raise) }
        })?,
    )?;
    routes.set_readonly(true);
    lua.globals().set("routes", routes)?;

    let ports = lua.create_table()?;
    let shared = cluster.clone();
    ports.set(
        "list",
        lua.create_async_function(move |lua, ()| {
            let cluster = shared.clone();
            async move { from_record(&lua, &cluster.ports().await.map_err(raise)?) }
        })?,
    )?;
    ports.set_readonly(true);
    lua.globals().set("ports", ports)
}
