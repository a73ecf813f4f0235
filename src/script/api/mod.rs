//! What scripts can call: one file a namespace. Which kind sees which is said here and nowhere else.

pub mod build;
pub mod check;
pub mod cluster;
pub mod compose;
pub mod crons;
pub mod describe;
pub mod discovery;
pub mod formats;
pub mod hosts;
pub mod http;
pub mod kv;
pub mod load;
pub mod local;
pub mod natives;
pub mod nodes;
pub mod objects;
pub mod policy;
pub mod registry;
pub mod rollout;
pub mod routes;
pub mod run;
pub mod services;
pub mod test;
pub mod time;

use std::cell::Cell;
use std::rc::Rc;
use std::sync::{Arc, OnceLock, Weak};

use mlua::{Lua, MultiValue};

use super::sink::Sink;
use super::value::raise;
use crate::client::Cluster;
use crate::model::bundle::HostedKind;
use crate::model::clock::{Clock, SystemClock};
use crate::model::{Error, Kind};
use crate::network::{Network, Sockets};

/// What a script reaches wherever it runs, and a simulation holds in its hand.
#[derive(Clone)]
pub struct Reach {
    /// Time and randomness.
    pub clock: Arc<dyn Clock>,
    /// Whoever answers at an address.
    pub network: Arc<dyn Network>,
    /// Whether both are a simulation's.
    pub simulated: bool,
}

impl Default for Reach {
    fn default() -> Self {
        Reach { clock: Arc::new(SystemClock::start()), network: Arc::new(Sockets), simulated: false }
    }
}

/// What hosted scripts reach besides themselves.
#[derive(Clone, Default)]
pub struct HostEnv {
    /// Clock and network.
    pub reach: Reach,
    /// The cluster, once there is one; the host must not keep it alive.
    pub cluster: Arc<OnceLock<Weak<dyn Cluster>>>,
}

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

    /// An error once loading is done: a handler registers nothing.
    pub fn require_loading(&self, word: &str) -> mlua::Result<()> {
        if !self.running.get() {
            return Ok(());
        }
        Err(raise(
            Error::new(Kind::Script, word, "cannot be registered from inside a registered function")
                .help("register it at the top level of the file"),
        ))
    }
}

/// Gives a hosted VM of `kind` its namespaces; without a kind, those that any kind may name at the top level.
pub fn install_hosted(
    lua: &Lua,
    kind: Option<HostedKind>,
    phase: &Phase,
    sink: &Sink,
    env: &HostEnv,
) -> mlua::Result<()> {
    install_print(lua, sink)?;
    formats::install(lua)?;
    let computes = matches!(kind, Some(HostedKind::Policy | HostedKind::Rollout));
    time::install(lua, (!computes).then_some(&env.reach.clock), Some(phase))?;
    if computes {
        let word = kind.map_or("", HostedKind::as_str);
        absent(lua, "http", &format!("a {word} computes only"))?;
        deterministic(lua)?;
    } else {
        http::install(lua, Some(phase.clone()), &env.reach.network)?;
        seed(lua, &*env.reach.clock)?;
        only_while_running(lua, phase)?;
    }
    match (kind, env.cluster.get().and_then(Weak::upgrade)) {
        (Some(HostedKind::Cron | HostedKind::On), Some(cluster)) => cluster::install(lua, &cluster, &env.reach)?,
        (None | Some(HostedKind::Cron | HostedKind::On), _) => {
            for name in cluster::NAMES {
                absent(lua, name, "call it inside the registered function")?;
            }
        }
        (Some(kind), _) => {
            for name in cluster::NAMES {
                absent(lua, name, &format!("it works in cron and on, not in a {}", kind.as_str()))?;
            }
        }
    }
    absent(lua, "test", "it works in `neap test`, in files that end with _test.lua")?;
    for name in ["scripts", "fs", "env", "sh", "args", "compose"] {
        absent(lua, name, "it works in `neap run`, not in hosted scripts")?;
    }
    if kind == Some(HostedKind::Policy) {
        policy::install(lua)?;
    }
    Ok(())
}

/// Makes `math.random` begin where the clock's randomness says.
pub fn seed(lua: &Lua, clock: &dyn Clock) -> mlua::Result<()> {
    let math: mlua::Table = lua.globals().get("math")?;
    // Luau takes 31 bits and makes one of all that are more.
    math.get::<mlua::Function>("randomseed")?.call((clock.random() >> 33) as u32)
}

// What a file registers is the same each time that it is loaded.
fn only_while_running(lua: &Lua, phase: &Phase) -> mlua::Result<()> {
    let math: mlua::Table = lua.globals().get("math")?;
    for name in ["random", "randomseed"] {
        let (phase, inner) = (phase.clone(), math.get::<mlua::Function>(name)?);
        let guarded = lua.create_function(move |_, values: MultiValue| {
            phase.require_running(&format!("math.{name}"))?;
            inner.call::<MultiValue>(values)
        })?;
        math.set(name, guarded)?;
    }
    Ok(())
}

// The same inputs give the same decision: no randomness.
fn deterministic(lua: &Lua) -> mlua::Result<()> {
    let math: mlua::Table = lua.globals().get("math")?;
    for name in ["random", "randomseed"] {
        let refuse = lua.create_function(move |_, _: MultiValue| {
            let message = "cannot be used here: a decision depends on its inputs alone";
            Err::<(), _>(raise(Error::new(Kind::Script, format!("math.{name}"), message)))
        })?;
        math.set(name, refuse)?;
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

// `print` and `warn` to the daemon's log, and to what is kept of a run.
fn install_print(lua: &Lua, sink: &Sink) -> mlua::Result<()> {
    let shown = |values: &MultiValue| Ok::<_, mlua::Error>(crate::model::error::shorten(&join(values)?));
    let to = sink.clone();
    let print = lua.create_function(move |lua, values: MultiValue| {
        let line = shown(&values)?;
        crate::model::fault::stall("script.print");
        tracing::info!(target: "script", from = position(lua).0, "{line}");
        to.line(&line);
        Ok(())
    })?;
    let to = sink.clone();
    let warn = lua.create_function(move |lua, values: MultiValue| {
        let line = shown(&values)?;
        tracing::warn!(target: "script", from = position(lua).0, "{line}");
        to.line(&format!("warning: {line}"));
        Ok(())
    })?;
    lua.globals().set("print", print)?;
    lua.globals().set("warn", warn)
}

/// Values as `print` shows them: tabs between.
pub fn join(values: &MultiValue) -> mlua::Result<String> {
    let texts: mlua::Result<Vec<String>> = values.iter().map(super::show::printed).collect();
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
