//! `json`, `yaml`, `toml`: texts to tables and back.

use mlua::{Lua, LuaString, Value};

use crate::model::{Error, Kind};
use crate::script::value::{from_json, options, raise, to_json};

/// Largest text that is read, in bytes: reading cannot be interrupted, and takes memory beside the VM's own.
const MAX_TEXT: usize = 4 << 20;

/// Sets the three namespaces.
pub fn install(lua: &Lua) -> mlua::Result<()> {
    namespace(
        lua,
        "json",
        |text| serde_json::from_str(text).map_err(|error| error.to_string()),
        |value, pretty| {
            if pretty { serde_json::to_string_pretty(value) } else { serde_json::to_string(value) }
                .map_err(|error| error.to_string())
        },
    )?;
    namespace(
        lua,
        "yaml",
        |text| serde_norway::from_str(text).map_err(|error| error.to_string()),
        |value, pretty| match pretty {
            true => Err("has no option pretty: yaml is written one way".into()),
            false => serde_norway::to_string(value).map_err(|error| error.to_string()),
        },
    )?;
    namespace(
        lua,
        "toml",
        |text| toml::from_str(text).map_err(|error| error.to_string()),
        |value, pretty| {
            if pretty { toml::to_string_pretty(value) } else { toml::to_string(value) }
                .map_err(|error| error.to_string())
        },
    )
}

#[derive(serde::Deserialize, Default)]
#[serde(default)]
struct Writes {
    pretty: bool,
}

fn namespace(
    lua: &Lua,
    name: &'static str,
    decode: fn(&str) -> Result<serde_json::Value, String>,
    encode: fn(&serde_json::Value, bool) -> Result<String, String>,
) -> mlua::Result<()> {
    let table = lua.create_table()?;
    let fail = move |function: &str, why: String| raise(Error::new(Kind::Script, format!("{name}.{function}"), why));
    table.set(
        "decode",
        lua.create_function(move |lua, text: LuaString| {
            if text.as_bytes().len() > MAX_TEXT {
                return Err(fail("decode", format!("the text is longer than {MAX_TEXT} bytes")));
            }
            let text = text.to_str().map_err(|_| fail("decode", "the text is not UTF-8".into()))?;
            let value = decode(&text).map_err(|why| fail("decode", why))?;
            from_json(lua, &value)
        })?,
    )?;
    table.set(
        "encode",
        lua.create_function(move |_, (value, table): (Value, Option<mlua::Table>)| {
            let Writes { pretty } = options(&format!("{name}.encode"), table)?;
            let value = to_json(&value).map_err(raise)?;
            encode(&value, pretty).map_err(|why| fail("encode", why))
        })?,
    )?;
    table.set_readonly(true);
    lua.globals().set(name, table)
}
