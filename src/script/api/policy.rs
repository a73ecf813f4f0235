//! `policy`: what `filter` and `score` see. What they read is noted, since verdicts are kept by it: tables hold what is
//! known to be read, and whatever else is asked for ends the call, which is then made again with that as well.

mod facade;

use std::cell::RefCell;
use std::rc::Rc;

use mlua::{Table, Value as LuaValue};
use serde::Deserialize;
use smallvec::SmallVec;

pub use self::facade::install;
use self::facade::{Facade, NODE, Noted, Of, facade};
use crate::model::bundle::HostedKind;
use crate::model::name::Name;
use crate::model::service::Use;
use crate::model::{Error, Kind, Result};
use crate::scheduler::reads::{CountOf, Judge, NodeField, Read, Scope, Sight, TaskField, Value, Verdict, Whose};
use crate::script::budget;
use crate::script::hosted::{Entry, Hosted, type_of};
use crate::script::lane::Lane;
use crate::script::value::{from_json, raise, to_json};

// A count that is known is a look-up; every other one, and every mistake, is Rust's.
const COUNT: &str = r#"
local values, own, ask = ...
return function(view, given)
  -- Called with a dot, its first argument is the table: it would count everything, and nobody would know.
  if view == nil or view.count == nil then
    error("view.count is called with a colon: view:count(...)", 2)
  end
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

// Sets the numbers that are read, and asks.
const ONE_NUMBER: &str = r#"
local score, node, task, view, table, key = ...
return function(value)
  table[key] = value
  return score(node, task, view)
end
"#;
const TWO_NUMBERS: &str = r#"
local score, node, task, view, one, one_key, two, two_key = ...
return function(first, second)
  one[one_key], two[two_key] = first, second
  return score(node, task, view)
end
"#;

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
    // A score without a filter that reads one number or two is called by way of this: they go in with the call, which is
    // cheaper than to set them one by one.
    quick: Option<mlua::Function>,
    // Which of the reads those are.
    numbers: SmallVec<[usize; 2]>,
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
            quick: None,
            numbers: SmallVec::new(),
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

    // Shows what is in sight to the script; only what has changed since the last call, and not what goes in with it.
    fn show(&mut self, sight: &dyn Sight, with_call: bool) -> mlua::Result<()> {
        let service = &sight.task().service;
        let mut noted = self.noted.borrow_mut();
        if noted.service.as_ref().is_none_or(|last| !last.same(service)) {
            self.own.clear()?;
            self.own.raw_set(service.as_str(), &self.own_counts)?;
            noted.service = Some(service.clone());
        }
        drop(noted);
        for (read, (table, key, last)) in self.reads.iter().zip(&mut self.places) {
            let by_call = self.quick.is_some() && is_number(read);
            if by_call && with_call {
                continue;
            }
            let value = sight.read(read);
            // What went in with a call is not what was set here last.
            if !by_call && last.as_ref() == Some(&value) {
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
        let numbers = self.numbers_in(sight);
        self.show(sight, numbers.is_some()).map_err(broken)?;
        if let Some((lane, bundle)) = &self.announced {
            lane.busy_with(bundle, &self.name);
        }
        let result = self.hosted.budget.run(budget::CALL, || self.call(sight, numbers));
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
        self.quick_way().map_err(broken)?;
        Ok(None)
    }

    fn quick_way(&mut self) -> mlua::Result<()> {
        self.numbers = (0..self.reads.len()).filter(|at| is_number(&self.reads[*at])).collect();
        let (lua, node, task, view) = (&self.hosted.lua, &self.node.front, &self.task.front, &self.view);
        self.quick = match (&self.filter, &self.score, &self.numbers[..]) {
            (None, Some(score), [one]) => {
                let (table, key, _) = &self.places[*one];
                Some(lua.load(ONE_NUMBER).set_name("=neap").call((score, node, task, view, table, key))?)
            }
            (None, Some(score), [one, two]) => {
                let ((one, one_key, _), (two, two_key, _)) = (&self.places[*one], &self.places[*two]);
                let all = (score, node, task, view, one, one_key, two, two_key);
                Some(lua.load(TWO_NUMBERS).set_name("=neap").call(all)?)
            }
            _ => None,
        };
        Ok(())
    }

    // The numbers that go in with the call, if all of them are some.
    fn numbers_in(&self, sight: &dyn Sight) -> Option<[f64; 2]> {
        self.quick.as_ref()?;
        let mut values = [0.0; 2];
        for (value, read) in values.iter_mut().zip(&self.numbers) {
            let Value::Number(number) = sight.read(&self.reads[*read]) else { return None };
            *value = number;
        }
        Some(values)
    }

    fn call(&self, sight: &dyn Sight, numbers: Option<[f64; 2]>) -> Result<Verdict> {
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
        let explain = |error: mlua::Error| self.explain("score", sight, &error);
        let value: LuaValue = match (&self.quick, numbers) {
            (Some(quick), Some([one, _])) if self.numbers.len() == 1 => quick.call(one).map_err(explain)?,
            (Some(quick), Some([one, two])) => quick.call((one, two)).map_err(explain)?,
            _ => score.call(arguments).map_err(explain)?,
        };
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

// Reads whose value is a number on every node.
fn is_number(read: &Read) -> bool {
    match read {
        Read::Count(_) => true,
        Read::Node(field) => field.is_load() || matches!(field, NodeField::Cpu | NodeField::Memory),
        Read::Task(_) => false,
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

fn freeze(value: &LuaValue) {
    if let LuaValue::Table(table) = value {
        for (_, inner) in table.pairs::<LuaValue, LuaValue>().flatten() {
            freeze(&inner);
        }
        table.set_readonly(true);
    }
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
