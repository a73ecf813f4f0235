//! `compose`: Compose files as stacks, for scripts that run where the user's files are.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use mlua::{Lua, Table, Value};
use serde::Deserialize;

use super::describe::brought;
use super::services::Context;
use crate::client::stack::{self, Deploy, Step};
use crate::compose;
use crate::model::stack::Stack;
use crate::model::units::Duration;
use crate::model::{Error, Kind};
use crate::script::value::{WAIT, Waits, from_record, options, raise, take_wait, to_json};

#[derive(Deserialize, Default)]
#[serde(default)]
struct LoadOptions {
    name: Option<String>,
    variables: BTreeMap<String, String>,
    profiles: BTreeSet<String>,
    env_file: Option<PathBuf>,
}

/// Sets it. Relative paths are relative to `folder`, where the user is.
pub fn install(lua: &Lua, folder: &Path, context: &Context) -> mlua::Result<()> {
    let table = lua.create_table()?;
    let folder = folder.to_owned();
    let load = lua.create_function(move |lua, (files, table): (Value, Option<Table>)| {
        let paths: Vec<PathBuf> = match &files {
            Value::String(path) => vec![folder.join(&*path.to_str()?)],
            Value::Table(list) => {
                let paths: Vec<String> = list.sequence_values().collect::<mlua::Result<_>>()?;
                paths.iter().map(|path| folder.join(path)).collect()
            }
            other => {
                let message = format!("expected a file's name, or a list of them, got a {}", other.type_name());
                return Err(raise(Error::new(Kind::Script, "compose.load", message)));
            }
        };
        let options: LoadOptions = options("compose.load", table)?;
        let mut variables: BTreeMap<String, String> = compose::environment();
        variables.extend(options.variables);
        let env_file = options.env_file.map(|path| folder.join(path));
        let options = compose::Options { name: options.name, variables, profiles: options.profiles, env_file };
        let read = |path: &Path| {
            let failed = |error| Error::io(format!("file {}", path.display()), "read it", &error);
            std::fs::read_to_string(path).map_err(failed)
        };
        from_record(lua, &compose::load(&paths, &options, &read).map_err(raise)?)
    })?;
    table.set("load", load)?;
    let shared = context.clone();
    table.set(
        "apply",
        lua.create_async_function(move |lua, (stack, table): (Table, Option<Table>)| {
            let context = shared.clone();
            async move {
                let stack: Stack = {
                    let json = to_json(&Value::Table(stack)).map_err(raise)?;
                    crate::model::strict::read("compose.apply", &json).map_err(raise)?
                };
                let timeout = WAIT.std();
                let mut ask = Deploy { prune: false, wait: false, timeout, with: None, auth: BTreeMap::new() };
                if let Some(table) = table {
                    let wait = take_wait("compose.apply", Some(&table))?;
                    (ask.wait, ask.timeout) = (wait.is_some(), wait.map_or(timeout, Duration::std));
                    for pair in table.pairs::<String, Value>() {
                        match pair? {
                            (key, value) if key == "with" => ask.with = Some(brought("compose.apply: with", &value)?),
                            (key, Value::Boolean(prune)) if key == "prune" => ask.prune = prune,
                            (key, other) if key == "prune" => {
                                let message = format!("prune: expected true or false, got a {}", other.type_name());
                                return Err(raise(Error::invalid("compose.apply", message)));
                            }
                            (key, _) if key == "wait" => {}
                            (key, _) => {
                                let hint = crate::model::suggest::hint(&key, ["wait", "prune", "with"]);
                                let message = format!("unknown option \"{key:.60}\"{hint}");
                                return Err(raise(Error::invalid("compose.apply", message)));
                            }
                        }
                    }
                }
                // Steps are told where the script's own reports go.
                let (sender, mut states) = tokio::sync::mpsc::unbounded_channel();
                let applied = async {
                    let mut tell = |step: Step<'_>| {
                        if let Step::Waits(status) = step {
                            let _ = sender.send(status.clone());
                        }
                    };
                    let applied = stack::deploy(&*context.cluster, &stack, &ask, &mut tell).await;
                    drop(sender);
                    applied
                };
                let shown = async {
                    while let Some(status) = states.recv().await {
                        (context.reporter)("wait for", &status);
                    }
                };
                let (applied, ()) = tokio::join!(applied, shown);
                let names = applied.map_err(raise)?.into_iter().map(|status| status.service.spec.name.to_string());
                lua.create_sequence_from(names)
            }
        })?,
    )?;
    let shared = context.clone();
    table.set(
        "remove",
        lua.create_async_function(move |_, (name, table): (String, Option<Table>)| {
            let context = shared.clone();
            async move {
                let timeout = options::<Waits>("compose.remove", table)?.wait.0.unwrap_or(WAIT);
                stack::remove(&*context.cluster, &name, timeout.std(), &mut |_| {}).await.map_err(raise)
            }
        })?,
    )?;
    table.set_readonly(true);
    lua.globals().set("compose", table)
}
