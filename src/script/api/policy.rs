//! `policy`: what `filter` and `score` see. What they read is noted, since verdicts are kept by it: tables hold what is
//! known to be read, and whatever else is asked for ends the call, which is then made again with that as well.

use std::cell::RefCell;
use std::rc::Rc;

use mlua::{Lua, Table, Value as LuaValue};
use serde::Deserialize;

use crate::model::bundle::HostedKind;
use crate::model::name::Name;
use crate::model::service::Use;
use crate::model::{Error, Kind, Result, suggest};
use crate::scheduler::reads::{CountOf, Judge, NodeField, Read, Scope, Sight, TaskField, Value, Verdict, Whose};
use crate::script::budget;
use crate::script::hosted::{Entry, Hosted, type_of};
use crate::script::lane::Lane;
use crate::script::value::{from_json, raise, to_json};

const NODE: [&str; 14] = [
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

// A count that is known is a look-up; every other one, and every mistake, is Rust's.
const COUNT: &str = r#"
local values, own, ask = ...
return function(_, given)
  local service, same, node
  if given ~= nil then
    if type(given) ~= "table" then return ask(given) end
    for key, value in given do
      if key == "service" then service = value
      elseif key == "same" then same = value
      elseif key == "node" then node = value
      else return ask(given) end
    end
  end
  if service == nil then service = 0 end
  local scope = node or same or false
  local of_own, of_named = own[service], values[service]
  local found = of_own and of_own[scope]
  if found == nil then found = of_named and of_named[scope] end
  if found ~= nil then return found end
  return ask(given)
end
"#;

/// Where facades are made known to the functions that look into tables.
const FACADES: &str = "neap.facades";

/// Prepares a VM for policies. Before it is sealed.
pub fn install(lua: &Lua) -> mlua::Result<()> {
    let register: mlua::Function = lua.load(RAW).set_name("=neap").call(())?;
    lua.set_named_registry_value(FACADES, register)
}

/// A registered policy with the options of its use.
pub struct LuaJudge {
    hosted: Rc<Hosted>,
    name: String,
    announced: Option<(Lane, String)>,
    filter: Option<mlua::Function>,
    score: Option<mlua::Function>,
    noted: Rc<RefCell<Noted>>,
    // Where the value of each noted read goes, and what went there last.
    places: Vec<(Table, LuaValue, Option<Value>)>,
    node: Facade,
    labels: Facade,
    engine_labels: Facade,
    task: Facade,
    task_labels: Facade,
    counts: Table,
    // The counts of the task's own service, under its name; the name changes, what is counted does not.
    own: Table,
    own_counts: Table,
    view: Table,
    reads: Vec<Read>,
}

#[derive(Default)]
struct Noted {
    reads: Vec<Read>,
    // Something was asked for that is not noted yet.
    missing: bool,
    // The service of the task in sight.
    service: Option<Name>,
}

// A read-only table in front, what is known behind it.
struct Facade {
    front: Table,
    known: Table,
}

impl LuaJudge {
    /// For the policy that `wanted` names.
    pub fn new(hosted: Rc<Hosted>, wanted: &Use) -> Result<Self> {
        let name = wanted.name.to_string();
        let broken =
            |error: mlua::Error| Error::internal(format!("policy \"{name}\""), "cannot be prepared").cause(error);
        let entry = hosted.entry(HostedKind::Policy, &name)?;
        Self::prepare(&hosted, entry, wanted).map_err(broken)
    }

    /// Says on each call that this one is what the thread is busy with.
    pub fn announce(&mut self, lane: Lane, bundle: String) {
        self.announced = Some((lane, bundle));
    }

    fn prepare(hosted: &Rc<Hosted>, entry: &Entry, wanted: &Use) -> mlua::Result<Self> {
        let lua = &hosted.lua;
        let noted = Rc::new(RefCell::new(Noted::default()));
        let labels = facade(lua, &noted, Of::Labels)?;
        let engine_labels = facade(lua, &noted, Of::EngineLabels)?;
        let task_labels = facade(lua, &noted, Of::TaskLabels)?;
        let node = facade(lua, &noted, Of::Node)?;
        node.known.raw_set("labels", &labels.front)?;
        node.known.raw_set("engine_labels", &engine_labels.front)?;
        let task = facade(lua, &noted, Of::Task)?;
        task.known.raw_set("labels", &task_labels.front)?;
        let options = from_json(lua, &serde_json::Value::Object(wanted.options.clone()))?;
        freeze(&options);
        task.known.raw_set("options", options)?;
        let counts = lua.create_table()?;
        let (own, own_counts) = (lua.create_table()?, lua.create_table()?);
        let shared = noted.clone();
        let ask = lua.create_function(move |_, given: LuaValue| {
            let mut noted = shared.borrow_mut();
            let read = count_of(&given, &noted).map_err(raise)?;
            noted.miss(read)
        })?;
        let count: mlua::Function = lua.load(COUNT).set_name("=neap").call((&counts, &own, ask))?;
        let view = lua.create_table()?;
        view.raw_set("count", count)?;
        crate::script::value::strict(lua, "view", &view, &["count"])?;
        Ok(LuaJudge {
            hosted: hosted.clone(),
            name: wanted.name.to_string(),
            announced: None,
            filter: entry.functions.get("filter").cloned(),
            score: entry.functions.get("score").cloned(),
            noted,
            places: Vec::new(),
            node,
            labels,
            engine_labels,
            task,
            task_labels,
            counts,
            own,
            own_counts,
            view,
            reads: Vec::new(),
        })
    }

    // Shows what is in sight to the script; only what has changed since the last call.
    fn show(&mut self, sight: &dyn Sight) -> mlua::Result<()> {
        let service = &sight.task().service;
        let mut noted = self.noted.borrow_mut();
        if noted.service.as_ref().is_none_or(|last| !last.same(service)) {
            self.own.clear()?;
            self.own.raw_set(service.as_str(), &self.own_counts)?;
            noted.service = Some(service.clone());
        }
        drop(noted);
        for (read, (table, key, last)) in self.reads.iter().zip(&mut self.places) {
            let value = sight.read(read);
            if last.as_ref() == Some(&value) {
                continue;
            }
            match &value {
                Value::Nil => table.raw_set(&*key, LuaValue::Nil)?,
                Value::Number(number) => table.raw_set(&*key, *number)?,
                Value::Text(text) => table.raw_set(&*key, &**text)?,
                Value::Map(map) => {
                    let lua = &self.hosted.lua;
                    let whole = lua.create_table_from(map.iter().map(|(key, value)| (key.as_str(), value.as_str())))?;
                    table.raw_set(&*key, whole)?;
                }
            }
            *last = Some(value);
        }
        Ok(())
    }

    // Where the value of a read goes.
    fn place(&self, read: &Read) -> mlua::Result<(Table, LuaValue)> {
        let lua = &self.hosted.lua;
        let text = |text: &str| lua.create_string(text).map(LuaValue::String);
        // Whole tables stand beside the values under a key that no script can name.
        let whole = || LuaValue::Boolean(true);
        Ok(match read {
            Read::Node(NodeField::Label(key)) => (self.labels.known.clone(), text(key)?),
            Read::Node(NodeField::EngineLabel(key)) => (self.engine_labels.known.clone(), text(key)?),
            Read::Task(TaskField::Label(key)) => (self.task_labels.known.clone(), text(key)?),
            Read::Node(NodeField::Labels) => (self.labels.known.clone(), whole()),
            Read::Node(NodeField::EngineLabels) => (self.engine_labels.known.clone(), whole()),
            Read::Task(TaskField::Labels) => (self.task_labels.known.clone(), whole()),
            Read::Node(field) => (self.node.known.clone(), text(node_name(field))?),
            Read::Task(field) => (self.task.known.clone(), text(task_name(field))?),
            Read::Count(CountOf { of, scope }) => {
                let table = match of {
                    Whose::Own => self.own_counts.clone(),
                    Whose::Named(name) => self.counts_under(text(name.as_str())?)?,
                    Whose::All => self.counts_under(LuaValue::Integer(0))?,
                };
                let key = match scope {
                    Scope::Node => LuaValue::Boolean(true),
                    Scope::All => LuaValue::Boolean(false),
                    Scope::Same(field) => text(&path_of(field))?,
                };
                (table, key)
            }
        })
    }

    fn counts_under(&self, key: LuaValue) -> mlua::Result<Table> {
        if let Some(table) = self.counts.raw_get::<Option<Table>>(&key)? {
            return Ok(table);
        }
        let table = self.hosted.lua.create_table()?;
        self.counts.raw_set(key, &table)?;
        Ok(table)
    }

    fn ask(&mut self, sight: &dyn Sight) -> Result<Option<Verdict>> {
        let name = self.name.clone();
        let broken =
            |error: mlua::Error| Error::internal(format!("policy \"{name}\""), "cannot be shown a node").cause(error);
        self.show(sight).map_err(broken)?;
        if let Some((lane, bundle)) = &self.announced {
            lane.busy_with(bundle, &self.name);
        }
        let result = self.hosted.budget.run(budget::CALL, || self.call(sight));
        // What was missing is told apart from what is wrong by the note: a script may have caught the error.
        let mut noted = self.noted.borrow_mut();
        if !std::mem::take(&mut noted.missing) {
            return result.map(Some);
        }
        let fresh: Vec<Read> = noted.reads[self.reads.len()..].to_vec();
        drop(noted);
        if fresh.is_empty() {
            return result.map(Some);
        }
        for read in fresh {
            let (table, key) = self.place(&read).map_err(broken)?;
            self.places.push((table, key, None));
            self.reads.push(read);
        }
        Ok(None)
    }

    fn call(&self, sight: &dyn Sight) -> Result<Verdict> {
        let arguments = (&self.node.front, &self.task.front, &self.view);
        if let Some(filter) = &self.filter {
            let explain = |error: mlua::Error| self.explain("filter", sight, &error);
            let (passes, reason): (LuaValue, LuaValue) = filter.call(arguments).map_err(explain)?;
            match passes {
                LuaValue::Boolean(true) => {}
                LuaValue::Boolean(false) => {
                    let reason =
                        if reason.is_nil() { "refused".to_owned() } else { reason.to_string().map_err(explain)? };
                    return Ok(Verdict::Refused(reason.chars().take(200).collect::<String>().into()));
                }
                other => return Err(self.wrong("filter", sight, "true or false", &other)),
            }
        }
        let Some(score) = &self.score else { return Ok(Verdict::Score(0.0)) };
        let value: LuaValue = score.call(arguments).map_err(|error| self.explain("score", sight, &error))?;
        match value.as_f64().or_else(|| value.as_i64().map(|number| number as f64)) {
            // No score is "minus nothing": it would count as less than nothing.
            Some(number) if !number.is_nan() => Ok(Verdict::Score(number + 0.0)),
            _ => Err(self.wrong("score", sight, "a number", &value)),
        }
    }

    fn explain(&self, function: &str, sight: &dyn Sight, error: &mlua::Error) -> Error {
        self.hosted.explain(&format!("policy \"{}\"", self.name), error, &words(function, sight))
    }

    fn wrong(&self, function: &str, sight: &dyn Sight, expected: &str, got: &LuaValue) -> Error {
        let place = match self.hosted.entry(HostedKind::Policy, &self.name) {
            Ok(entry) => format!("\n  --> {}:{}", entry.file, entry.line),
            Err(_) => String::new(),
        };
        let call = words(function, sight);
        let message = format!("returned {}, not {expected}{place}\n   = in {call}", type_of(got));
        Error::new(Kind::Script, format!("policy \"{}\"", self.name), message)
    }
}

fn words(function: &str, sight: &dyn Sight) -> String {
    format!("{function}(node \"{}\", task \"{}\")", sight.node_name(), sight.task().label())
}

impl Judge for LuaJudge {
    fn name(&self) -> &str {
        &self.name
    }

    fn reads(&self) -> &[Read] {
        &self.reads
    }

    fn judge(&mut self, sight: &dyn Sight) -> Result<Verdict> {
        // When it has read something new, whoever asks sees that by `reads`, and what is said here does not count.
        Ok(self.ask(sight)?.unwrap_or(Verdict::Score(0.0)))
    }
}

impl Noted {
    fn miss(&mut self, read: Read) -> mlua::Result<LuaValue> {
        if !self.reads.contains(&read) {
            self.reads.push(read);
        }
        self.missing = true;
        Err(mlua::Error::runtime("asked again with what was read"))
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Of {
    Node,
    Task,
    Labels,
    EngineLabels,
    TaskLabels,
}

fn facade(lua: &Lua, noted: &Rc<RefCell<Noted>>, of: Of) -> mlua::Result<Facade> {
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

fn freeze(value: &LuaValue) {
    if let LuaValue::Table(table) = value {
        for (_, inner) in table.pairs::<LuaValue, LuaValue>().flatten() {
            freeze(&inner);
        }
        table.set_readonly(true);
    }
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

fn task_name(field: &TaskField) -> &'static str {
    match field {
        TaskField::Name => "name",
        TaskField::Service => "service",
        TaskField::Slot => "slot",
        TaskField::Revision => "revision",
        TaskField::Label(_) | TaskField::Labels => "labels",
    }
}

fn node_name(field: &NodeField) -> &'static str {
    NODE.into_iter().find(|name| NodeField::named(name).as_ref() == Some(field)).unwrap_or("labels")
}

fn path_of(field: &NodeField) -> String {
    match field {
        NodeField::Label(key) => format!("labels.{key}"),
        NodeField::EngineLabel(key) => format!("engine_labels.{key}"),
        other => node_name(other).to_owned(),
    }
}

/// What `view:count` is given: tasks meant to run.
#[derive(Deserialize, Default)]
#[serde(default)]
struct Count {
    // Only of this service.
    service: Option<Name>,
    // Only on nodes that have the same value in this field as the node being judged.
    same: Option<String>,
    // Only on the node being judged.
    node: bool,
}

fn count_of(given: &LuaValue, noted: &Noted) -> Result<Read> {
    let options = if given.is_nil() { serde_json::json!({}) } else { to_json(given)? };
    let count: Count = crate::model::strict::read("view:count", &options)?;
    let same = count.same.as_deref().map(NodeField::path).transpose()?;
    let scope = match (count.node, same) {
        (true, _) => Scope::Node,
        (false, Some(field)) => Scope::Same(field),
        (false, None) => Scope::All,
    };
    // Whoever has read which service its task is of is judged anew for each: then "its own" says as much as the name, and
    // is one count for all services.
    let knows = noted.reads.contains(&Read::Task(TaskField::Service));
    let of = match count.service {
        None => Whose::All,
        Some(name) if knows && noted.service.as_ref() == Some(&name) => Whose::Own,
        Some(name) => Whose::Named(name),
    };
    Ok(Read::Count(CountOf { of, scope }))
}
