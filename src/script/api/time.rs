//! `time`: moments as seconds since 1970-01-01 UTC, durations as seconds.

use std::sync::Arc;

use mlua::{Lua, Value};

use super::Phase;
use crate::model::clock::Clock;
use crate::model::units::Duration;
use crate::model::{Error, Kind};
use crate::script::value::raise;

/// Sets `time`. Without a clock only what computes: a decision does not depend on when it is made. With a `phase`, the
/// clock is not read while a hosted file is being loaded.
pub fn install(lua: &Lua, clock: Option<&Arc<dyn Clock>>, phase: Option<&Phase>) -> mlua::Result<()> {
    let time = lua.create_table()?;
    time.set("seconds", lua.create_function(|_, text: Value| Ok(duration(&text)?.seconds()))?)?;
    time.set(
        "format",
        lua.create_function(|_, seconds: f64| {
            // A number of seconds is exact to about a quarter of a microsecond today.
            let micros = (seconds * 1e6).round() as i64;
            let moment = jiff::Timestamp::from_microsecond(micros).map_err(|error| failed("format", &error))?;
            Ok(moment.to_string())
        })?,
    )?;
    time.set(
        "parse",
        lua.create_function(|_, text: String| {
            let moment: jiff::Timestamp = text.parse().map_err(|error: jiff::Error| failed("parse", &error))?;
            Ok(moment.as_nanosecond() as f64 / 1e9)
        })?,
    )?;
    if let Some(clock) = clock.cloned() {
        let phase = phase.cloned();
        let now = lua.create_function(move |_, ()| {
            if let Some(phase) = &phase {
                phase.require_running("time.now")?;
            }
            Ok(clock.wall_nanos() as f64 / 1e9)
        })?;
        time.set("now", now)?;
        time.set(
            "sleep",
            lua.create_async_function(|_, period: Value| async move {
                tokio::time::sleep(duration(&period)?.std()).await;
                Ok(())
            })?,
        )?;
    }
    time.set_readonly(true);
    lua.globals().set("time", time)
}

fn failed(function: &str, error: &dyn std::fmt::Display) -> mlua::Error {
    raise(Error::new(Kind::Script, format!("time.{function}"), error.to_string()))
}

/// `"30s"`, or a number of seconds.
pub fn duration(value: &Value) -> mlua::Result<Duration> {
    match value {
        Value::String(text) => text.to_str()?.parse().map_err(raise),
        Value::Integer(seconds) if *seconds >= 0 => Ok(Duration::from_secs(*seconds as u64)),
        Value::Number(seconds) if *seconds >= 0.0 && *seconds < 3e9 => {
            Ok(Duration::from_millis((*seconds * 1000.0) as u64))
        }
        Value::Integer(_) | Value::Number(_) => {
            Err(raise(Error::new(Kind::Script, "duration", "is no number of seconds from 0 to 3 thousand million")))
        }
        other => Err(raise(Error::new(
            Kind::Script,
            "duration",
            format!("expected a text such as \"30s\" or a number of seconds, got a {}", other.type_name()),
        ))),
    }
}
