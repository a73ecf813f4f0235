//! `natives`: services that the Swarm runs itself, and `Service:hand_back`, the way back.

use mlua::{Lua, Table, Value};
use serde_json::{Value as Json, json};

use super::services::{Context, Handle};
use crate::client::{ServiceStatus, native};
use crate::model::native::{Adopt, HandBack};
use crate::script::value::{from_record, options_and_wait, raise};

#[derive(serde::Deserialize, Default)]
#[serde(default)]
struct Which {
    prefix: String,
}

/// Sets `natives`.
pub fn install(lua: &Lua, context: &Context) -> mlua::Result<()> {
    let natives = lua.create_table()?;
    let shared = context.clone();
    natives.set(
        "list",
        lua.create_async_function(move |lua, table: Option<Table>| {
            let context = shared.clone();
            async move {
                let which: Which = crate::script::value::options("natives.list", table)?;
                let mut all = context.cluster.natives().await.map_err(raise)?;
                all.retain(|native| native.name.starts_with(&which.prefix));
                from_record(&lua, &all)
            }
        })?,
    )?;
    let shared = context.clone();
    natives.set(
        "adopt",
        lua.create_async_function(move |lua, (name, asked): (String, Option<Table>)| {
            let context = shared.clone();
            async move {
                let (ask, period) = options_and_wait::<Adopt>("natives.adopt", asked)?;
                let dry_run = ask.dry_run;
                let adoption = context.cluster.adopt(&name, ask).await.map_err(raise)?;
                let found = from_record(&lua, &adoption)?;
                if dry_run {
                    return Ok((found, None));
                }
                let name = adoption.service.get("name").and_then(Json::as_str).unwrap_or(&name);
                let Some(period) = period else {
                    return Ok((found, Some(Handle::fetch(context, name).await?)));
                };
                let reporter = context.reporter.clone();
                let (sender, mut states) = tokio::sync::mpsc::unbounded_channel();
                let mut progress = move |status: &ServiceStatus| drop(sender.send(status.clone()));
                let shown = async {
                    while let Some(status) = states.recv().await {
                        reporter("adopt", &status);
                    }
                };
                let waiting = async {
                    let result = native::adopted(&*context.cluster, name, period.std(), &mut progress).await;
                    drop(progress);
                    result
                };
                let (result, ()) = tokio::join!(waiting, shown);
                Ok((found, Some(Handle::of(context.clone(), result.map_err(raise)?))))
            }
        })?,
    )?;
    natives.set_readonly(true);
    lua.globals().set("natives", natives)
}

/// Gives a service back to the Swarm.
pub async fn hand_back(lua: Lua, context: Context, name: String, asked: Option<Table>) -> mlua::Result<Value> {
    let (ask, period) = options_and_wait::<HandBack>("hand_back", asked)?;
    let over = ask.dry_run || ask.cancel;
    let done = context.cluster.hand_back(&name, ask).await.map_err(raise)?;
    let mut told = json!({ "notes": done.notes });
    if let Some(period) = period.filter(|_| !over) {
        let handover = native::handed_back(&*context.cluster, &name, period.std(), &mut |_| {}).await.map_err(raise)?;
        told["gaps"] = json!(handover.gaps);
    }
    from_record(&lua, &told)
}
