//! `rollout`: what `step` sees, and the intents that it may answer with.

use mlua::{Lua, MultiValue, Table, Value};

use crate::model::bundle::HostedKind;
use crate::model::release::{Answer, ReleaseView};
use crate::model::{Error, Kind, Result, strict};
use crate::script::hosted::Hosted;
use crate::script::value::{from_record, raise, to_json};

const FIELDS: [&str; 13] = [
    "service",
    "step",
    "from",
    "to",
    "replicas",
    "moved",
    "remaining",
    "healthy",
    "failed_tasks",
    "failure",
    "elapsed",
    "overdue",
    "options",
];
const INTENTS: [&str; 7] = ["batch", "shift", "wait", "pause", "promote", "rollback", "fail"];

/// Asks a rollout for its next step.
pub fn step(hosted: &Hosted, name: &str, view: &ReleaseView) -> Result<Answer> {
    let subject = format!("rollout \"{name}\"");
    let entry = hosted.entry(HostedKind::Rollout, name)?;
    let call = format!("step(release of \"{}\", step {})", view.service, view.step);
    let explain = |error: mlua::Error| hosted.explain(&subject, &error, &call);
    let place = format!("  --> {}:{}", entry.file, entry.line);
    let release = release_table(&hosted.lua, view).map_err(explain)?;
    let answer: Value = entry.functions["step"].call(release).map_err(explain)?;
    let wrong = |what: &str| {
        Error::new(Kind::Script, subject.clone(), format!("returned {what}, not an intent\n{place}\n   = in {call}"))
            .help(format!("return one of release:{}", INTENTS.join("(), release:") + "()"))
    };
    let Value::Table(table) = &answer else {
        return Err(wrong(if answer.is_nil() { "nothing" } else { answer.type_name() }));
    };
    if !table.raw_get::<bool>("__intent").unwrap_or(false) {
        return Err(wrong("a table"));
    }
    let kind: String = table.raw_get("kind").map_err(explain)?;
    read(&kind, &table.raw_get::<Value>("given").map_err(explain)?)
}

// What an intent was given. Read when it is made, where the script's line is known, and once more when it is returned.
fn read(kind: &str, given: &Value) -> Result<Answer> {
    let subject = format!("release:{kind}");
    let given = to_json(given).map_err(|error| Error { kind: Kind::Script, ..error.about(subject.as_str()) })?;
    let given = if given.is_null() && matches!(kind, "batch" | "shift") { serde_json::json!({}) } else { given };
    if kind == "shift"
        && let Some(weight) = given["weight"].as_f64().filter(|weight| !(0.0..=100.0).contains(weight))
    {
        let message = format!("weight: {weight} is not a percentage between 0 and 100");
        return Err(Error::new(Kind::Script, subject, message));
    }
    let answer = serde_json::json!({ kind: given });
    strict::read(&subject, &answer).map_err(|error: Error| Error { kind: Kind::Script, ..error })
}

fn release_table(lua: &Lua, view: &ReleaseView) -> mlua::Result<Table> {
    let Value::Table(table) = from_record(lua, view)? else {
        return Err(mlua::Error::runtime("a release is a table"));
    };
    for kind in INTENTS {
        table.raw_set(
            kind,
            lua.create_function(move |lua, (this, given): (Value, MultiValue)| {
                let is_release = this
                    .as_table()
                    .is_some_and(|table| table.raw_get::<Option<u32>>("replicas").is_ok_and(|n| n.is_some()));
                if !is_release {
                    return Err(raise(Error::new(
                        Kind::Script,
                        format!("release.{kind}"),
                        format!("is called with a colon: release:{kind}(...)"),
                    )));
                }
                let given = given.front().cloned().unwrap_or(Value::Nil);
                read(kind, &given).map_err(raise)?;
                let intent = lua.create_table()?;
                intent.raw_set("__intent", true)?;
                intent.raw_set("kind", kind)?;
                intent.raw_set("given", given)?;
                Ok(intent)
            })?,
        )?;
    }
    let known: Vec<&str> = FIELDS.iter().chain(&INTENTS).copied().collect();
    crate::script::value::strict(lua, "release", &table, &known)?;
    Ok(table)
}
