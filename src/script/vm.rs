//! A sandboxed VM: Luau's safe libraries, read-only, without the few functions that could run long inside C or reach
//! out of the sandbox.

use mlua::{Lua, LuaOptions, StdLib, Table, Value};

/// Largest text that one call may make, in bytes.
const MAX_TEXT: usize = 16 << 20;
/// Longest range that `table.move` copies and `table.concat` joins in one call.
const MAX_RANGE: f64 = 1_000_000.0;

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
        let near = crate::model::suggest::nearest(&key, known.iter().map(String::as_str));
        let hint = match key.as_str() {
            // What plain Lua has, and is done in another way here.
            "os" => "; the time is time.now(), a variable of the environment env.get \"NAME\"".to_owned(),
            "io" => "; a file is read with fs.read \"FILE\"".to_owned(),
            _ => near.map(|name| format!("; did you mean \"{name}\"?")).unwrap_or_default(),
        };
        Err::<Value, _>(mlua::Error::runtime(format!("{what} \"{key:.60}\"{hint}")))
    })?;
    let meta = lua.create_table()?;
    meta.raw_set("__index", index)?;
    meta.raw_set("__metatable", "locked")?;
    Ok(meta)
}

// Calls that run long inside C can be neither interrupted nor bounded by time: they are bounded by size, done in another
// way, or given a comparator in Lua, where every call counts.
const BOUNDED: &str = r#"
local max_range, find, split, is_plain, pending = ...
local raw_sort, raw_move, raw_concat, raw_find, raw_split = table.sort, table.move, table.concat, string.find, string.split
local function less(a, b) return a < b end
table.sort = function(list, compare) return raw_sort(list, compare or less) end
table.move = function(from, first, last, to, into)
  -- A text that is a number is one for C as well.
  local from_at, to_at = tonumber(first), tonumber(last)
  if from_at and to_at and to_at - from_at > max_range then
    error(`table.move is bounded to {max_range} entries`, 2)
  end
  if into == nil then return raw_move(from, first, last, to) end
  return raw_move(from, first, last, to, into)
end
table.concat = function(list, between, first, last)
  if type(list) == "table" and (tonumber(last) or #list) - (tonumber(first) or 1) > max_range then
    error(`table.concat is bounded to {max_range} entries`, 2)
  end
  return raw_concat(list, between, first, last)
end
string.find = function(text, wanted, from, plain)
  if type(text) == "string" and type(wanted) == "string" and (from == nil or tonumber(from))
    and #text * #wanted > 65536 and (plain or is_plain(wanted)) then
    return find(text, wanted, tonumber(from))
  end
  return raw_find(text, wanted, from, plain)
end
string.split = function(text, separator)
  if type(text) == "string" and type(separator) == "string" and #separator > 1 then return split(text, separator) end
  return raw_split(text, separator)
end

-- Where a call of the API waits in a coroutine of the script's own, all that is below it waits.
local raw_resume, create, yield, pack, unpack = coroutine.resume, coroutine.create, coroutine.yield, table.pack, table.unpack
local function resume(thread, ...)
  local results = pack(raw_resume(thread, ...))
  while results[1] and results.n == 2 and results[2] == pending do
    yield(pending)
    results = pack(raw_resume(thread))
  end
  return unpack(results, 1, results.n)
end
local function given(ok, ...)
  if not ok then error((...), 0) end
  return ...
end
coroutine.resume = resume
coroutine.wrap = function(run)
  local thread = create(run)
  return function(...) return given(resume(thread, ...)) end
end
"#;

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
    // Searches in time proportional to both lengths together, where the library's own takes their product.
    let find = lua.create_function(|_, (text, wanted, from): (mlua::LuaString, mlua::LuaString, Option<f64>)| {
        let (text, wanted) = (text.as_bytes(), wanted.as_bytes());
        let length = text.len() as f64;
        let from = from.unwrap_or(1.0);
        let from = if from < 0.0 { (length + from + 1.0).max(1.0) } else { from.max(1.0) };
        if from > length + 1.0 {
            return Ok((None, None));
        }
        let from = from as usize - 1;
        let found = memchr::memmem::find(&text[from..], &wanted).map(|at| from + at + 1);
        Ok((found, found.map(|at| at + wanted.len() - 1)))
    })?;
    let split = lua.create_function(|lua, (text, separator): (mlua::LuaString, mlua::LuaString)| {
        let (text, separator) = (text.as_bytes(), separator.as_bytes());
        let parts = lua.create_table()?;
        let mut begin = 0;
        for at in memchr::memmem::find_iter(&text, &*separator) {
            parts.raw_push(lua.create_string(&text[begin..at])?)?;
            begin = at + separator.len();
        }
        parts.raw_push(lua.create_string(&text[begin..])?)?;
        Ok(parts)
    })?;
    let is_plain = lua.create_function(|_, wanted: mlua::LuaString| {
        Ok(!wanted.as_bytes().iter().any(|byte| b"^$*+?.([%-".contains(byte)))
    })?;
    lua.load(BOUNDED).set_name("=neap").call::<()>((MAX_RANGE, find, split, is_plain, Lua::poll_pending()))
}
