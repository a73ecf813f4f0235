//! `policy`: what `filter` and `score` see. Nodes and tasks are plain, read-only tables; `view` counts.

use std::rc::Rc;

use mlua::{Lua, Table, UserData, UserDataMethods, Value};
use serde::Deserialize;

use crate::model::name::Name;
use crate::model::service::Use;
use crate::model::{Error, Kind, Result};
use crate::scheduler::place::{Ask, NodeView, Verdict};
use crate::script::hosted::{Entry, Hosted};
use crate::script::value::{from_json, raise, strict, to_json};

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

/// Asks one policy about all candidates.
pub fn rank(hosted: &Hosted, wanted: &Use, ask: &Ask) -> Result<Vec<Verdict>> {
    let subject = format!("policy \"{}\"", wanted.name);
    let entry = hosted.entries.get(wanted.name.as_str());
    let entry = entry.ok_or_else(|| Error::new(Kind::Script, subject.clone(), "is not registered any more"))?;
    let lua = &hosted.lua;
    let label = format!("{}.{}", ask.service, ask.slot);
    let outer = |error: mlua::Error| hosted.explain(&subject, &error, &format!("task \"{label}\""));
    let task = task_table(lua, wanted, ask).map_err(outer)?;
    let shared = Rc::new(ask.clone());
    let view = lua.create_userdata(View { ask: shared.clone(), node: 0 }).map_err(outer)?;
    let mut verdicts = Vec::with_capacity(ask.candidates.len());
    for index in &ask.candidates {
        let node = node_table(lua, &ask.nodes[*index]).map_err(outer)?;
        view.borrow_mut::<View>().map_err(outer)?.node = *index;
        let name = &ask.nodes[*index].node.hostname;
        if let Some(filter) = entry.functions.get("filter") {
            let call = format!("filter(node \"{name}\", task \"{label}\")");
            let explain = |error: mlua::Error| hosted.explain(&subject, &error, &call);
            let (passes, reason): (Value, Value) = filter.call((&node, &task, &view)).map_err(explain)?;
            match passes {
                Value::Boolean(true) => {}
                Value::Boolean(false) => {
                    let reason =
                        if reason.is_nil() { "refused".to_owned() } else { reason.to_string().map_err(explain)? };
                    verdicts.push(Verdict::Refused(reason.chars().take(200).collect()));
                    continue;
                }
                other => return Err(wrong(&subject, entry, &call, "true or false", &other)),
            }
        }
        let score = match entry.functions.get("score") {
            None => 0.0,
            Some(score) => {
                let call = format!("score(node \"{name}\", task \"{label}\")");
                let value: Value =
                    score.call((&node, &task, &view)).map_err(|error| hosted.explain(&subject, &error, &call))?;
                match value.as_f64().or_else(|| value.as_i64().map(|number| number as f64)) {
                    Some(number) if !number.is_nan() => number,
                    _ => return Err(wrong(&subject, entry, &call, "a number", &value)),
                }
            }
        };
        verdicts.push(Verdict::Score(score));
    }
    Ok(verdicts)
}

fn wrong(subject: &str, entry: &Entry, call: &str, expected: &str, got: &Value) -> Error {
    let shown = match got {
        Value::Nil => "nothing".to_owned(),
        Value::Number(number) if number.is_nan() => "nan".to_owned(),
        other => format!("a {}", other.type_name()),
    };
    Error::new(
        Kind::Script,
        subject,
        format!("returned {shown}, not {expected}\n  --> {}:{}\n   = in {call}", entry.file, entry.line),
    )
}

fn node_table(lua: &Lua, view: &NodeView) -> mlua::Result<Table> {
    let node = &view.node;
    let table = lua.create_table_with_capacity(0, NODE.len())?;
    table.raw_set("id", node.id.as_str())?;
    table.raw_set("name", node.hostname.as_str())?;
    table.raw_set("role", node.role.as_str())?;
    table.raw_set("availability", node.availability.as_str())?;
    table.raw_set("address", node.address.map(|address| address.to_string()))?;
    table.raw_set("os", node.os.as_str())?;
    table.raw_set("arch", node.arch.as_str())?;
    table.raw_set("cpu", node.cpu.cores())?;
    table.raw_set("memory", node.memory.0 as f64)?;
    table.raw_set("free_cpu", view.free_cpu.cores())?;
    table.raw_set("free_memory", view.free_memory.0 as f64)?;
    table.raw_set("labels", map_table(lua, &node.labels)?)?;
    table.raw_set("engine_labels", map_table(lua, &node.engine_labels)?)?;
    table.raw_set("tasks", view.tasks.values().sum::<u32>())?;
    strict(lua, "node", &table, &NODE)?;
    Ok(table)
}

fn task_table(lua: &Lua, wanted: &Use, ask: &Ask) -> mlua::Result<Table> {
    let table = lua.create_table_with_capacity(0, TASK.len())?;
    table.raw_set("name", format!("{}.{}", ask.service, ask.slot))?;
    table.raw_set("service", ask.service.as_str())?;
    table.raw_set("slot", ask.slot.to_string())?;
    table.raw_set("revision", ask.revision)?;
    table.raw_set("labels", map_table(lua, &ask.labels)?)?;
    table.raw_set("options", from_json(lua, &serde_json::Value::Object(wanted.options.clone()))?)?;
    strict(lua, "task", &table, &TASK)?;
    Ok(table)
}

fn map_table(lua: &Lua, map: &std::collections::BTreeMap<String, String>) -> mlua::Result<Table> {
    let table = lua.create_table_from(map.iter().map(|(key, value)| (key.as_str(), value.as_str())))?;
    table.set_readonly(true);
    Ok(table)
}

/// What runs where, as seen from the node being judged.
struct View {
    ask: Rc<Ask>,
    node: usize,
}

/// What `view:count` counts: tasks meant to run.
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

impl UserData for View {
    fn add_methods<M: UserDataMethods<Self>>(methods: &mut M) {
        methods.add_method("count", |_, view, options: Value| {
            let options = if options.is_nil() { serde_json::json!({}) } else { to_json(&options).map_err(raise)? };
            let count: Count = crate::model::strict::read("view:count", &options).map_err(raise)?;
            view.count(&count).map_err(raise)
        });
    }
}

impl View {
    fn count(&self, count: &Count) -> Result<u32> {
        let here = field(&self.ask.nodes[self.node], count.same.as_deref())?;
        let mut total = 0;
        for (index, node) in self.ask.nodes.iter().enumerate() {
            if (count.node && index != self.node) || field(node, count.same.as_deref())? != here {
                continue;
            }
            total += match &count.service {
                Some(service) => node.tasks.get(service).copied().unwrap_or_default(),
                None => node.tasks.values().sum(),
            };
        }
        Ok(total)
    }
}

// A node's field by its path: `labels.zone`, `role`. Without a path all nodes are the same.
fn field<'a>(view: &'a NodeView, path: Option<&str>) -> Result<Option<&'a str>> {
    let Some(path) = path else { return Ok(None) };
    let node = &view.node;
    if let Some(label) = path.strip_prefix("labels.") {
        return Ok(node.labels.get(label).map(String::as_str));
    }
    if let Some(label) = path.strip_prefix("engine_labels.") {
        return Ok(node.engine_labels.get(label).map(String::as_str));
    }
    match path {
        "id" => Ok(Some(&node.id)),
        "name" => Ok(Some(&node.hostname)),
        "role" => Ok(Some(node.role.as_str())),
        "os" => Ok(Some(&node.os)),
        "arch" => Ok(Some(&node.arch)),
        other => {
            let hint = crate::model::suggest::hint(
                other,
                ["id", "name", "role", "os", "arch", "labels.NAME", "engine_labels.NAME"],
            );
            Err(Error::new(Kind::Script, "node", format!("has no field \"{other:.60}\" to group by{hint}")))
        }
    }
}
