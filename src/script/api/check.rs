//! `check`: what `run` sees of the task that it judges.

use mlua::{Lua, Table, Value};

use crate::model::bundle::HostedKind;
use crate::model::task::Task;
use crate::model::{Error, Kind, Result};
use crate::script::hosted::{Hosted, type_of};
use crate::script::value::{raise, strict};

const FIELDS: [&str; 10] = ["id", "name", "service", "slot", "revision", "node", "node_id", "ports", "pid", "address"];

/// What a check judges: a task, and the host's name of its node.
pub type Judged = (Task, Option<String>);

/// Runs a check once: whether it passed, and what it said.
pub async fn run(hosted: &Hosted, name: &str, (task, node): &Judged) -> Result<(bool, String)> {
    let subject = format!("check \"{name}\"");
    let entry = hosted.entry(HostedKind::Check, name)?;
    let call = format!("run(task \"{}\")", task.label());
    let explain = |error: mlua::Error| hosted.explain(&subject, &error, &call);
    let table = task_table(&hosted.lua, task, node.as_deref()).map_err(explain)?;
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

fn task_table(lua: &Lua, task: &Task, node: Option<&str>) -> mlua::Result<Table> {
    let table = lua.create_table_with_capacity(0, FIELDS.len())?;
    table.raw_set("id", task.id.to_string())?;
    table.raw_set("name", task.label())?;
    table.raw_set("service", task.service.as_str())?;
    table.raw_set("slot", task.slot.to_string())?;
    table.raw_set("revision", task.revision)?;
    table.raw_set("node", node)?;
    table.raw_set("node_id", task.node.as_deref())?;
    table.raw_set("pid", task.pid)?;
    let ports = lua.create_table_from(task.ports.iter().map(|(name, address)| (name.as_str(), address.as_str())))?;
    ports.set_readonly(true);
    table.raw_set("ports", ports)?;
    let addresses = task.ports.clone();
    let label = task.label();
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
