//! Values between Lua and JSON, and tables that know their fields.

use mlua::{Lua, Table, Value as LuaValue};
use serde::de::DeserializeOwned;
use serde_json::{Map, Number, Value};

use crate::model::units::Duration;
use crate::model::{Error, Result, suggest};
use crate::script::shapes::shaped;

/// Deepest nesting, and most entries in all.
const MAX_DEPTH: usize = 64;
const MAX_ENTRIES: usize = 1_000_000;

/// A Lua value as JSON. A table with the keys 1 to n is a list. A function, a thread or a cycle is an error that
/// names where it is.
pub fn to_json(value: &LuaValue) -> Result<Value> {
    let mut left = MAX_ENTRIES;
    convert(value, "", 0, &mut left)
}

fn convert(value: &LuaValue, path: &str, depth: usize, left: &mut usize) -> Result<Value> {
    let at = || if path.is_empty() { "value".to_owned() } else { path.to_owned() };
    if depth > MAX_DEPTH {
        return Err(Error::invalid(at(), format!("is nested more than {MAX_DEPTH} deep; does a table hold itself?")));
    }
    *left = left.checked_sub(1).ok_or_else(|| Error::invalid(at(), format!("has more than {MAX_ENTRIES} entries")))?;
    match value {
        LuaValue::Nil => Ok(Value::Null),
        LuaValue::Boolean(flag) => Ok(Value::Bool(*flag)),
        LuaValue::Integer(number) => Ok(Value::from(*number)),
        LuaValue::Number(number) if number.fract() == 0.0 && number.abs() < 9e15 => Ok(Value::from(*number as i64)),
        LuaValue::Number(number) => Number::from_f64(*number)
            .map(Value::Number)
            .ok_or_else(|| Error::invalid(at(), format!("is {number}, which is no number that can be written"))),
        LuaValue::String(text) => match text.to_str() {
            Ok(text) => Ok(Value::String(text.to_owned())),
            Err(_) => Err(Error::invalid(at(), "is text that is not UTF-8")),
        },
        LuaValue::Table(table) => convert_table(table, path, depth, left),
        other => Err(Error::invalid(
            at(),
            format!("is a {}; only texts, numbers, booleans and tables can be written", other.type_name()),
        )),
    }
}

/// The field of a metatable that gives all that a table stands for, where it does not hold it itself.
pub const UNFOLD: &str = "__unfold";

fn convert_table(table: &Table, path: &str, depth: usize, left: &mut usize) -> Result<Value> {
    let broken = |error: mlua::Error| Error::invalid(path.to_owned(), error.to_string());
    let unfold = table.metatable().and_then(|meta| meta.raw_get::<Option<mlua::Function>>(UNFOLD).ok().flatten());
    let table = match unfold {
        Some(unfold) => &unfold.call::<Table>(()).map_err(broken)?,
        None => table,
    };
    let length = table.raw_len();
    let mut list = Vec::new();
    let mut map = Map::new();
    for pair in table.pairs::<LuaValue, LuaValue>() {
        let (key, value) = pair.map_err(broken)?;
        let index = match &key {
            LuaValue::Integer(index) => Some(*index as f64),
            LuaValue::Number(index) => Some(*index),
            _ => None,
        };
        match (index, &key) {
            (Some(index), _) if index >= 1.0 && index <= length as f64 => {
                list.push((index as usize, convert(&value, &format!("{path}[{index}]"), depth + 1, left)?));
            }
            (_, LuaValue::String(name)) => {
                let name = name.to_string_lossy();
                let inner = if path.is_empty() { name.clone() } else { format!("{path}.{name}") };
                map.insert(name, convert(&value, &inner, depth + 1, left)?);
            }
            (_, key) => {
                return Err(Error::invalid(
                    if path.is_empty() { "table" } else { path }.to_owned(),
                    format!("has a {} as key", key.type_name()),
                ));
            }
        }
    }
    if list.is_empty() {
        return Ok(Value::Object(map));
    }
    if let Some(name) = map.keys().next() {
        return Err(Error::invalid(
            if path.is_empty() { "table" } else { path }.to_owned(),
            format!("is a list and has the name \"{name}\" as well"),
        ));
    }
    list.sort_by_key(|(index, _)| *index);
    if let Some(hole) = list.iter().enumerate().find(|(place, (index, _))| place + 1 != *index) {
        return Err(Error::invalid(format!("{path}[{}]", hole.0 + 1), "is nil"));
    }
    Ok(Value::Array(list.into_iter().map(|(_, value)| value).collect()))
}

/// JSON as a Lua value: plain tables, which scripts may change.
pub fn from_json(lua: &Lua, value: &Value) -> mlua::Result<LuaValue> {
    Ok(match value {
        Value::Null => LuaValue::Nil,
        Value::Bool(flag) => LuaValue::Boolean(*flag),
        Value::Number(number) => LuaValue::Number(number.as_f64().unwrap_or(f64::NAN)),
        Value::String(text) => LuaValue::String(lua.create_string(text)?),
        Value::Array(list) => {
            let table = lua.create_table_with_capacity(list.len(), 0)?;
            // By number: a null leaves a hole, and what follows it stays where it is.
            for (at, value) in list.iter().enumerate() {
                table.raw_set(at + 1, from_json(lua, value)?)?;
            }
            LuaValue::Table(table)
        }
        Value::Object(map) => {
            let table = lua.create_table_with_capacity(0, map.len())?;
            for (key, value) in map {
                table.raw_set(key.as_str(), from_json(lua, value)?)?;
            }
            LuaValue::Table(table)
        }
    })
}

/// A record as a Lua value: tables which scripts may change, and which know what fields there are.
pub fn from_record<T: serde::Serialize + schemars::JsonSchema>(lua: &Lua, record: &T) -> mlua::Result<LuaValue> {
    shaped::<T>(lua, &serde_json::to_value(record).map_err(mlua::Error::external)?)
}

/// The same with moments in seconds, as `time.now` has them, instead of milliseconds.
pub fn from_timed<T: serde::Serialize + schemars::JsonSchema>(lua: &Lua, record: &T) -> mlua::Result<LuaValue> {
    let mut value = serde_json::to_value(record).map_err(mlua::Error::external)?;
    in_seconds(&mut value);
    shaped::<T>(lua, &value)
}

fn in_seconds(value: &mut Value) {
    match value {
        Value::Array(list) => list.iter_mut().for_each(in_seconds),
        Value::Object(map) => {
            for (key, value) in map.iter_mut() {
                match value.as_u64() {
                    Some(millis) if is_moment(key) => *value = Value::from(millis as f64 / 1000.0),
                    // What a user wrote stays as it is.
                    _ if matches!(key.as_str(), "spec" | "rollout" | "options" | "labels" | "env") => {}
                    _ => in_seconds(value),
                }
            }
        }
        _ => {}
    }
}

fn is_moment(key: &str) -> bool {
    key == "at" || key.ends_with("_at") || matches!(key, "not_before" | "judged_from")
}

/// Makes `table` read-only and strict: reading or writing a field that is not in `fields` is an error with "did you
/// mean". `fields` are the optional ones as well.
pub fn strict(lua: &Lua, what: &'static str, table: &Table, fields: &[&str]) -> mlua::Result<()> {
    let known: Vec<String> = fields.iter().map(|field| (*field).to_owned()).collect();
    let index = lua.create_function(move |_, (_, key): (Table, LuaValue)| {
        let key = key.to_string()?;
        if known.contains(&key) {
            return Ok(LuaValue::Nil);
        }
        let hint =
            suggest::nearest(&key, known.iter().map(String::as_str)).map(|name| format!("; did you mean \"{name}\"?"));
        Err::<LuaValue, _>(mlua::Error::runtime(format!("{what} has no field \"{key}\"{}", hint.unwrap_or_default())))
    })?;
    let meta = lua.create_table()?;
    meta.raw_set("__index", index)?;
    meta.raw_set("__metatable", "locked")?;
    table.set_metatable(Some(meta))?;
    table.set_readonly(true);
    Ok(())
}

/// A verb's options, read strictly: none is an empty table.
pub fn options<T: DeserializeOwned>(verb: &str, table: Option<Table>) -> mlua::Result<T> {
    let given = table.map_or_else(|| Ok(Value::Object(Map::new())), |table| to_json(&LuaValue::Table(table)));
    crate::model::strict::read(verb, &given.map_err(raise)?).map_err(raise)
}

/// How long a verb waits that is told to wait, and not how long.
pub const WAIT: Duration = Duration::from_secs(600);

/// A verb's `wait` option: a time, or true for the usual one.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Wait(pub Option<Duration>);

impl<'de> serde::Deserialize<'de> for Wait {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> std::result::Result<Self, D::Error> {
        use serde::de::Error;
        match Value::deserialize(deserializer)? {
            Value::Null | Value::Bool(false) => Ok(Wait(None)),
            Value::Bool(true) => Ok(Wait(Some(WAIT))),
            Value::String(text) => text.parse().map(|period| Wait(Some(period))).map_err(D::Error::custom),
            other => Err(D::Error::custom(format!("expected a time such as \"2m\", or true, got {other}"))),
        }
    }
}

/// The `wait` among a verb's options, where the others are read elsewhere.
pub fn take_wait(verb: &str, table: Option<&Table>) -> mlua::Result<Option<Duration>> {
    let Some(table) = table else { return Ok(None) };
    let given = to_json(&table.get::<LuaValue>("wait")?).map_err(raise)?;
    let read: Waits = crate::model::strict::read(verb, &serde_json::json!({ "wait": given })).map_err(raise)?;
    Ok(read.wait.0)
}

/// A verb's options, read strictly, and how long is waited, which is nobody's but the script's.
pub fn options_and_wait<T: DeserializeOwned>(verb: &str, table: Option<Table>) -> mlua::Result<(T, Option<Duration>)> {
    let wait = take_wait(verb, table.as_ref())?;
    let given = table.map_or_else(|| Ok(Value::Object(Map::new())), |table| to_json(&LuaValue::Table(table)));
    let mut given = given.map_err(raise)?;
    given.as_object_mut().map(|fields| fields.remove("wait"));
    Ok((crate::model::strict::read(verb, &given).map_err(raise)?, wait))
}

/// What verbs have whose only option is `wait`.
#[derive(Debug, Default, serde::Deserialize)]
#[serde(default)]
pub struct Waits {
    /// Whether to wait, and how long.
    pub wait: Wait,
}

/// A Rust function's error for Lua.
pub fn raise(error: Error) -> mlua::Error {
    mlua::Error::external(error)
}
