//! A sandboxed VM: Luau's safe libraries, read-only, without the few functions that could run long inside C or reach
//! out of the sandbox.

use mlua::{Lua, LuaOptions, StdLib, Table, Value};

/// Largest text that one call may make, in bytes.
const MAX_TEXT: usize = 16 << 20;
/// Largest text that plain `string.find` searches: the search is a product of both lengths and cannot be interrupted.
const MAX_SEARCH: usize = 256 << 10;
/// Longest list that `table.sort` takes without a comparator, and `table.concat` at all.
const MAX_LIST: usize = 500_000;

/// A new VM. `print` and `warn` are left to the caller; globals are not frozen yet (`seal`).
pub fn new() -> mlua::Result<Lua> {
    let libraries = StdLib::TABLE
        | StdLib::STRING
        | StdLib::MATH
        | StdLib::UTF8
        | StdLib::BIT
        | StdLib::BUFFER
        | StdLib::COROUTINE
        | StdLib::VECTOR;
    let lua = Lua::new_with(libraries, LuaOptions::new().catch_rust_panics(true))?;
    lua.set_compiler(mlua::chunk::Compiler::new().set_optimization_level(2).set_debug_level(1));
    let globals = lua.globals();
    // `require` is ours; the rest reads or writes what is nobody's business here.
    for name in ["require", "getfenv", "setfenv", "loadstring", "collectgarbage", "gcinfo", "newproxy"] {
        globals.raw_set(name, Value::Nil)?;
    }
    bound_libraries(&lua)?;
    super::failure::install(&lua)?;
    Ok(lua)
}

/// Freezes globals and libraries; what scripts define from now on is theirs alone.
pub fn seal(lua: &Lua) -> mlua::Result<()> {
    let globals = lua.globals();
    for pair in globals.pairs::<String, Value>() {
        if let (name, Value::Table(library)) = pair?
            && library.metatable().is_none()
            && !matches!(name.as_str(), "_G" | "args")
        {
            library.set_readonly(false);
            library.set_metatable(Some(unknown_names(lua, format!("{name} has nothing called"))?))?;
            library.set_readonly(true);
        }
    }
    globals.set_metatable(Some(unknown_names(lua, "nothing is called".to_owned())?))?;
    lua.sandbox(true)
}

// A name that is not there is an error that says what was probably meant, instead of nil.
fn unknown_names(lua: &Lua, what: String) -> mlua::Result<Table> {
    let index = lua.create_function(move |_, (table, key): (Table, Value)| {
        let Value::String(key) = &key else { return Ok(Value::Nil) };
        let key = key.to_string_lossy();
        let known: Vec<String> =
            table.pairs::<Value, Value>().flatten().filter_map(|(name, _)| name.to_string().ok()).collect();
        let hint = crate::model::suggest::nearest(&key, known.iter().map(String::as_str));
        let hint = hint.map(|name| format!("; did you mean \"{name}\"?")).unwrap_or_default();
        Err::<Value, _>(mlua::Error::runtime(format!("{what} \"{key:.60}\"{hint}")))
    })?;
    let meta = lua.create_table()?;
    meta.raw_set("__index", index)?;
    meta.raw_set("__metatable", "locked")?;
    Ok(meta)
}

fn bound_libraries(lua: &Lua) -> mlua::Result<()> {
    let string: Table = lua.globals().get("string")?;
    let rep: mlua::Function = string.get("rep")?;
    string.set(
        "rep",
        lua.create_function(move |_, (text, count): (mlua::LuaString, f64)| {
            let length = text.as_bytes().len() as f64 * count.max(0.0);
            if length > MAX_TEXT as f64 {
                return Err(mlua::Error::runtime(format!(
                    "string.rep would make {length:.0} bytes; at most {MAX_TEXT} are allowed"
                )));
            }
            rep.call::<mlua::LuaString>((text, count))
        })?,
    )?;
    let find: mlua::Function = string.get("find")?;
    string.set(
        "find",
        lua.create_function(move |_, (text, rest): (mlua::LuaString, mlua::MultiValue)| {
            let plain = rest.get(2).is_some_and(|plain| !matches!(plain, Value::Nil | Value::Boolean(false)));
            if plain && text.as_bytes().len() > MAX_SEARCH {
                return Err(mlua::Error::runtime(format!(
                    "string.find: a plain search is bounded to texts of {MAX_SEARCH} bytes"
                )));
            }
            find.call::<mlua::MultiValue>((text, rest))
        })?,
    )?;
    let table: Table = lua.globals().get("table")?;
    let sort: mlua::Function = table.get("sort")?;
    table.set(
        "sort",
        lua.create_function(move |_, (list, compare): (Table, Option<mlua::Function>)| {
            if compare.is_none() && list.raw_len() > MAX_LIST {
                return Err(mlua::Error::runtime(format!(
                    "table.sort without a comparator is bounded to {MAX_LIST} entries"
                )));
            }
            sort.call::<()>((list, compare))
        })?,
    )?;
    let concat: mlua::Function = table.get("concat")?;
    table.set(
        "concat",
        lua.create_function(move |_, (list, rest): (Table, mlua::MultiValue)| {
            if list.raw_len() > MAX_LIST {
                return Err(mlua::Error::runtime(format!("table.concat is bounded to {MAX_LIST} entries")));
            }
            concat.call::<mlua::LuaString>((list, rest))
        })?,
    )
}
