//! `check`: what `run` sees of the task that it judges.

use std::collections::BTreeMap;

use mlua::{Lua, Table, Value};

use crate::model::bundle::HostedKind;
use crate::model::task::Task;
use crate::model::{Error, Kind, Result};
use crate::script::hosted::{Hosted, type_of};
use crate::script::value::{raise, strict};

const FIELDS: [&str; 10] = ["id", "name", "service", "slot", "revision", "node", "node_id", "ports", "pid", "address"];

/// What a check judges: a task, or an instance that somebody registered.
#[derive(Debug, Clone, Default)]
pub struct Judged {
    /// Its identity.
    pub id: String,
    /// What people call it.
    pub name: String,
    /// Its service's name.
    pub service: String,
    /// A task's place.
    pub slot: Option<String>,
    /// A task's revision.
    pub revision: Option<u32>,
    /// The host's name of its node.
    pub node: Option<String>,
    /// That node's identity.
    pub node_id: Option<String>,
    /// Its process.
    pub pid: Option<u32>,
    /// Where its ports are reached, by name.
    pub ports: BTreeMap<String, String>,
}

impl Judged {
    /// A task; `node` is the host's name of its node.
    pub fn task(task: &Task, node: Option<String>) -> Self {
        Judged {
            id: task.id.to_string(),
            name: task.label(),
            service: task.service.to_string(),
            slot: Some(task.slot.to_string()),
            revision: Some(task.revision),
            node,
            node_id: task.node.as_ref().map(ToString::to_string),
            pid: task.pid,
            ports: task.ports.clone(),
        }
    }
}

/// Runs a check once: whether it passed, and what it said.
pub async fn run(hosted: &Hosted, name: &str, judged: &Judged) -> Result<(bool, String)> {
    let subject = format!("check \"{name}\"");
    let entry = hosted.entry(HostedKind::Check, name)?;
    let call = format!("run(task \"{}\")", judged.name);
    let explain = |error: mlua::Error| hosted.explain(&subject, &error, &call);
    let table = task_table(&hosted.lua, judged).map_err(explain)?;
    let answer: (Value, Value) = entry.functions["run"].call_async(table).await.map_err(explain)?;
    let said = |value: &Value| if value.is_nil() { Ok(String::new()) } else { value.to_string() };
    match answer.0 {
        Value::Boolean(passed) => Ok((passed, said(&answer.1).map_err(explain)?.chars().take(500).collect())),
        other => {
            let shown = type_of(&other);
            Err(Error::new(
                Kind::Script,
                subject,
                format!("returned {shown}, not true or false\n  --> {}:{}\n   = in {call}", entry.file, entry.line),
            ))
        }
    }
}

fn task_table(lua: &Lua, task: &Judged) -> mlua::Result<Table> {
    let table = lua.create_table_with_capacity(0, FIELDS.len())?;
    table.raw_set("id", task.id.as_str())?;
    table.raw_set("name", task.name.as_str())?;
    table.raw_set("service", task.service.as_str())?;
    table.raw_set("slot", task.slot.as_deref())?;
    table.raw_set("revision", task.revision)?;
    table.raw_set("node", task.node.as_deref())?;
    table.raw_set("node_id", task.node.as_deref())?;
    table.raw_set("pid", task.pid)?;
    let ports = lua.create_table_from(task.ports.iter().map(|(name, address)| (name.as_str(), address.as_str())))?;
    ports.set_readonly(true);
    table.raw_set("ports", ports)?;
    let addresses = task.ports.clone();
    let label = task.name.clone();
    let address = lua.create_function(move |_, (this, name): (Value, Option<String>)| {
        if !this
            .as_table()
            .is_some_and(|table| table.raw_get::<Value>("address").is_ok_and(|found| found.is_function()))
        {
            let message = "is called with a colon: task:address(...)";
            return Err(raise(Error::new(Kind::Script, "task.address", message)));
        }
        let name = name.or_else(|| addresses.keys().find(|name| *name == "http").or(addresses.keys().next()).cloned());
        let Some(name) = name else {
            return Err(raise(Error::new(Kind::Script, format!("task {label}"), "has no ports")));
        };
        addresses.get(&name).cloned().ok_or_else(|| {
            let hint = crate::model::suggest::hint(&name, addresses.keys().map(String::as_str));
            raise(Error::new(Kind::Script, format!("task {label}"), format!("has no port \"{name:.60}\"{hint}")))
        })
    })?;
    table.raw_set("address", address)?;
    strict(lua, "task", &table, &FIELDS)?;
    Ok(table)
}
