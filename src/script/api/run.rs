//! `cron` and `on`: a run of each.

use mlua::{Lua, Table, Value};

use crate::model::bundle::HostedKind;
use crate::model::event::Event;
use crate::model::{Error, Kind, Result};
use crate::script::budget;
use crate::script::hosted::{Hosted, type_of};
use crate::script::sink::Output;
use crate::script::value::{from_json, strict};

/// What a cron script's `run` is given.
#[derive(Debug, Clone)]
pub struct CronCall {
    /// Its name.
    pub name: String,
    /// The number of the run.
    pub number: u64,
    /// When it was due, in seconds since 1970-01-01 UTC; none if somebody asked for it.
    pub due_at: Option<f64>,
    /// Who asked for it.
    pub by: Option<String>,
}

const RUN: [&str; 4] = ["name", "number", "due_at", "by"];

/// Runs a cron script once; what it prints goes to `output`.
pub async fn cron(hosted: &Hosted, call: &CronCall, output: &Output) -> Result<()> {
    let subject = format!("cron \"{}\"", call.name);
    let explain = |error: mlua::Error| hosted.explain(&subject, &error, &format!("run {}", call.number));
    let work = async {
        let entry = hosted.entry(HostedKind::Cron, &call.name)?;
        let run = run_table(&hosted.lua, call).map_err(explain)?;
        entry.functions["run"].call_async::<Value>(run).await.map(drop).map_err(explain)
    };
    hosted.sink.keep(output.clone(), hosted.budget.spend(budget::CRON, work)).await
}

fn run_table(lua: &Lua, call: &CronCall) -> mlua::Result<Table> {
    let table = lua.create_table()?;
    table.raw_set("name", call.name.as_str())?;
    table.raw_set("number", call.number as f64)?;
    table.raw_set("due_at", call.due_at)?;
    table.raw_set("by", call.by.as_deref())?;
    strict(lua, "run", &table, &RUN)?;
    Ok(table)
}

/// Runs a handler for one event, if its filter lets it.
pub async fn handler(hosted: &Hosted, name: &str, event: &Event) -> Result<()> {
    let subject = format!("on \"{}\" \"{name}\"", event.what.as_str());
    let words = |function: &str| format!("{function}(event {} of {})", event.sequence, event.subject);
    let work = async {
        let entry = hosted.entry(HostedKind::On, name)?;
        let explain = |error: mlua::Error| hosted.explain(&subject, &error, &words("run"));
        let table = event_table(&hosted.lua, event).map_err(explain)?;
        if let Some(filter) = entry.functions.get("filter") {
            let explain = |error: mlua::Error| hosted.explain(&subject, &error, &words("filter"));
            match filter.call_async(&table).await.map_err(explain)? {
                Value::Boolean(true) => {}
                Value::Boolean(false) | Value::Nil => return Ok(()),
                other => {
                    let message = format!("filter returned {}, not true or false", type_of(&other));
                    return Err(Error::new(Kind::Script, subject.clone(), message));
                }
            }
        }
        entry.functions["run"].call_async::<Value>(table).await.map(drop).map_err(explain)
    };
    hosted.budget.spend(budget::HANDLER, work).await
}

fn event_table(lua: &Lua, event: &Event) -> mlua::Result<Table> {
    let value = serde_json::to_value(event).map_err(mlua::Error::external)?;
    let Value::Table(table) = from_json(lua, &value)? else {
        return Err(mlua::Error::runtime("an event is a table"));
    };
    table.raw_set("at", event.at.0 as f64 / 1000.0)?;
    strict(lua, "event", &table, event.what.fields())?;
    Ok(table)
}
