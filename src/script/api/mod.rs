//! What scripts can call: one file a namespace. Which kind sees which is said here and nowhere else.

pub mod check;
pub mod formats;
pub mod http;
pub mod load;
pub mod local;
pub mod nodes;
pub mod policy;
pub mod rollout;
pub mod services;
pub mod time;

use std::cell::Cell;
use std::rc::Rc;

use mlua::{Lua, MultiValue, Value};

use super::value::raise;
use crate::model::bundle::HostedKind;
use crate::model::{Error, Kind};

/// Whether a hosted file is being loaded, or what it registered is being called.
#[derive(Debug, Clone, Default)]
pub struct Phase {
    /// Set once loading is done.
    pub running: Rc<Cell<bool>>,
}

impl Phase {
    /// An error while loading: the top level of a hosted file may only register.
    pub fn require_running(&self, what: &str) -> mlua::Result<()> {
        if self.running.get() {
            return Ok(());
        }
        Err(raise(
            Error::new(Kind::Script, what, "cannot be called at the top level of a hosted file")
                .help("call it inside the registered function"),
        ))
    }
}

/// Gives a hosted VM of `kind` its namespaces.
pub fn install_hosted(lua: &Lua, kind: HostedKind, phase: &Phase) -> mlua::Result<()> {
    install_print(lua, "script")?;
    formats::install(lua)?;
    match kind {
        HostedKind::Policy | HostedKind::Rollout => {
            time::install(lua, false)?;
            absent(lua, "http", &format!("a {} computes only", kind.as_str()))?;
        }
        HostedKind::Check => {
            time::install(lua, true)?;
            http::install(lua, Some(phase.clone()))?;
        }
    }
    for name in ["service", "services", "nodes", "scripts", "fs", "env", "sh", "args"] {
        absent(lua, name, &format!("it works in `neap run`, not in a hosted {}", kind.as_str()))?;
    }
    Ok(())
}

// A namespace that this kind does not have: using it says so, rather than "attempt to index nil".
fn absent(lua: &Lua, name: &'static str, why: &str) -> mlua::Result<()> {
    let why = why.to_owned();
    let refuse = lua.create_function(move |_, _: MultiValue| {
        Err::<(), _>(raise(Error::new(Kind::Script, name, format!("cannot be used here: {why}"))))
    })?;
    let meta = lua.create_table()?;
    meta.raw_set("__index", refuse.clone())?;
    meta.raw_set("__call", refuse)?;
    meta.raw_set("__metatable", "locked")?;
    let table = lua.create_table()?;
    table.set_metatable(Some(meta))?;
    lua.globals().set(name, table)
}

/// `print` and `warn` to the script's log.
fn install_print(lua: &Lua, target: &'static str) -> mlua::Result<()> {
    let print = lua.create_function(move |_, values: MultiValue| {
        tracing::info!(target: "script", "{}: {}", target, join(&values)?);
        Ok(())
    })?;
    let warn = lua.create_function(move |_, values: MultiValue| {
        tracing::warn!(target: "script", "{}: {}", target, join(&values)?);
        Ok(())
    })?;
    lua.globals().set("print", print)?;
    lua.globals().set("warn", warn)
}

/// Values as `print` shows them: tabs between.
pub fn join(values: &MultiValue) -> mlua::Result<String> {
    let texts: mlua::Result<Vec<String>> = values.iter().map(Value::to_string).collect();
    Ok(texts?.join("\t"))
}

/// The file and line of the script that called into Rust.
pub fn position(lua: &Lua) -> (String, u32) {
    for level in 0..8 {
        let found = lua.inspect_stack(level, |frame| {
            let source = frame.source();
            let name = source.source.as_deref()?.strip_prefix('=')?.to_owned();
            let line = frame.current_line()?;
            name.ends_with(".lua").then_some((name, u32::try_from(line).unwrap_or_default()))
        });
        if let Some(Some(found)) = found {
            return found;
        }
    }
    (String::new(), 0)
}
