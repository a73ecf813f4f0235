//! The tables that a policy is shown: read-only in front, behind them what is known to be read. Whatever else is asked for
//! is noted, and ends the call.

use std::cell::RefCell;
use std::rc::Rc;

use mlua::{Lua, Table, Value as LuaValue};

use crate::model::name::Name;
use crate::model::suggest;
use crate::scheduler::reads::{NodeField, Read, TaskField};

pub(super) const NODE: [&str; 14] = [
    "id",
    "name",
    "role",
    "availability",
    "address",
    "os",
    "arch",
    "cpu",
    "memory",
    "free_cpu",
    "free_memory",
    "labels",
    "engine_labels",
    "tasks",
];
const TASK: [&str; 6] = ["name", "service", "slot", "revision", "labels", "options"];

// What looks at a table's contents directly would see only what is known to be read so far; these unfold it first.
const RAW: &str = r#"
local facades = setmetatable({}, { __mode = "k" })
local raw_next, raw_pairs, raw_get, raw_len, raw_clone, raw_foreach =
  next, pairs, rawget, rawlen, table.clone, table.foreach
local function whole(t) local unfold = facades[t] return unfold and unfold() or t end
local function shown(t) return type(t) == "table" and whole(t) or t end
next = function(t, ...) return raw_next(shown(t), ...) end
pairs = function(t, ...) return raw_pairs(shown(t), ...) end
rawget = function(t, k) if type(t) == "table" and facades[t] then return t[k] end return raw_get(t, k) end
rawlen = function(t) return raw_len(shown(t)) end
table.clone = function(t) return raw_clone(shown(t)) end
table.foreach = function(t, f) return raw_foreach(shown(t), f) end
return function(facade, unfold) facades[facade] = unfold end
"#;

/// Where facades are made known to the functions that look into tables.
const FACADES: &str = "neap.facades";

/// Prepares a VM for policies. Before it is sealed.
pub fn install(lua: &Lua) -> mlua::Result<()> {
    let register: mlua::Function = lua.load(RAW).set_name("=neap").call(())?;
    lua.set_named_registry_value(FACADES, register)
}

/// What a policy was found to read.
#[derive(Default)]
pub(super) struct Noted {
    pub(super) reads: Vec<Read>,
    // Something was asked for that is not noted yet.
    pub(super) missing: bool,
    // The service of the task in sight.
    pub(super) service: Option<Name>,
}

/// A read-only table in front, what is known behind it.
pub(super) struct Facade {
    pub(super) front: Table,
    pub(super) known: Table,
}

impl Noted {
    /// Notes what is not known yet, and ends the call.
    pub(super) fn miss(&mut self, read: Read) -> mlua::Result<LuaValue> {
        if !self.reads.contains(&read) {
            self.reads.push(read);
        }
        self.missing = true;
        Err(mlua::Error::runtime("asked again with what was read"))
    }
}

/// What a table stands for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Of {
    Node,
    Task,
    Labels,
    EngineLabels,
    TaskLabels,
}

/// A table for one of them.
pub(super) fn facade(lua: &Lua, noted: &Rc<RefCell<Noted>>, of: Of) -> mlua::Result<Facade> {
    let known = lua.create_table()?;
    let shared = noted.clone();
    let miss = lua.create_function(move |_, (_, key): (LuaValue, LuaValue)| {
        let LuaValue::String(key) = &key else { return Ok(LuaValue::Nil) };
        let key = key.to_str()?;
        let read = match of {
            Of::Labels => Read::Node(NodeField::Label((&*key).into())),
            Of::EngineLabels => Read::Node(NodeField::EngineLabel((&*key).into())),
            Of::TaskLabels => Read::Task(TaskField::Label((&*key).into())),
            Of::Node => Read::Node(NodeField::named(&key).ok_or_else(|| unknown("node", &key, &NODE))?),
            Of::Task => Read::Task(task_field(&key).ok_or_else(|| unknown("task", &key, &TASK))?),
        };
        let mut noted = shared.borrow_mut();
        // Known, and there is nothing there.
        if noted.reads.contains(&read) { Ok(LuaValue::Nil) } else { noted.miss(read) }
    })?;
    let behind = lua.create_table()?;
    behind.raw_set("__index", miss)?;
    known.set_metatable(Some(behind))?;
    let shared = noted.clone();
    let back = known.clone();
    let unfold = lua.create_function(move |lua, ()| {
        let whole = match of {
            Of::Labels => Read::Node(NodeField::Labels),
            Of::EngineLabels => Read::Node(NodeField::EngineLabels),
            Of::TaskLabels => Read::Task(TaskField::Labels),
            Of::Node | Of::Task => {
                // All fields, one by one.
                let copy = lua.create_table()?;
                for name in if of == Of::Node { &NODE[..] } else { &TASK[..] } {
                    copy.raw_set(*name, back.get::<LuaValue>(*name)?)?;
                }
                return Ok(LuaValue::Table(copy));
            }
        };
        let mut noted = shared.borrow_mut();
        if noted.reads.contains(&whole) { back.raw_get(true) } else { noted.miss(whole) }
    })?;
    let front = lua.create_table()?;
    let meta = lua.create_table()?;
    meta.raw_set("__index", &known)?;
    meta.raw_set("__metatable", "locked")?;
    meta.raw_set(crate::script::value::UNFOLD, &unfold)?;
    let next: mlua::Function = lua.globals().get("next")?;
    let unfold_all = unfold.clone();
    let iterate = lua.create_function(move |_, _: LuaValue| {
        let whole: LuaValue = unfold_all.call(())?;
        Ok((next.clone(), whole, LuaValue::Nil))
    })?;
    meta.raw_set("__iter", iterate)?;
    front.set_metatable(Some(meta))?;
    front.set_readonly(true);
    let register: mlua::Function = lua.named_registry_value(FACADES)?;
    register.call::<()>((&front, unfold))?;
    Ok(Facade { front, known })
}

fn unknown(what: &str, key: &str, known: &[&str]) -> mlua::Error {
    let hint = suggest::nearest(key, known.iter().copied()).map(|name| format!("; did you mean \"{name}\"?"));
    mlua::Error::runtime(format!("{what} has no field \"{key:.60}\"{}", hint.unwrap_or_default()))
}

fn task_field(name: &str) -> Option<TaskField> {
    Some(match name {
        "name" => TaskField::Name,
        "service" => TaskField::Service,
        "slot" => TaskField::Slot,
        "revision" => TaskField::Revision,
        _ => return None,
    })
}
