//! `require`: files beside the script, and `@neap/...` from the embedded library. Each file is loaded once a VM.

use std::rc::Rc;

use mlua::{Lua, Table, Value};

use super::files::Files;
use super::stdlib;
use super::value::raise;
use crate::model::{Error, Kind};

/// Where loaded modules are kept in the registry.
const LOADED: &str = "neap.loaded";

/// Gives `lua` its `require`, with files from `files`.
pub fn install(lua: &Lua, files: Rc<dyn Files>) -> mlua::Result<()> {
    lua.set_named_registry_value(LOADED, lua.create_table()?)?;
    let require = lua.create_function(move |lua, name: String| {
        let from = caller(lua).unwrap_or_default();
        let path = resolve(&from, &name).map_err(raise)?;
        let loaded: Table = lua.named_registry_value(LOADED)?;
        match loaded.raw_get::<Value>(path.as_str())? {
            Value::Nil => {}
            Value::Boolean(false) => {
                return Err(raise(Error::new(
                    Kind::Script,
                    format!("require {name:?}"),
                    "requires itself in a circle",
                )));
            }
            module => return Ok(module),
        }
        let source = match path.strip_prefix("@neap/") {
            Some(inner) => stdlib::source(inner).map(str::to_owned),
            None => files.read(&path),
        };
        let Some(source) = source else {
            return Err(raise(
                Error::new(Kind::NotFound, format!("require {name:?}"), format!("there is no file {path}"))
                    .help("paths are relative to the requiring file; the library's begin with \"@neap/\""),
            ));
        };
        loaded.raw_set(path.as_str(), false)?;
        let chunk = lua.load(source).set_name(format!("={path}")).set_mode(mlua::chunk::ChunkMode::Text);
        let result = chunk.call::<Value>(());
        match result {
            Ok(module) => {
                let module = if module.is_nil() { Value::Boolean(true) } else { module };
                loaded.raw_set(path.as_str(), module.clone())?;
                Ok(module)
            }
            Err(error) => {
                loaded.raw_set(path.as_str(), Value::Nil)?;
                Err(error)
            }
        }
    })?;
    lua.globals().set("require", require)
}

// The file whose code calls us.
fn caller(lua: &Lua) -> Option<String> {
    let in_frame = |level| {
        lua.inspect_stack(level, |frame| {
            let source = frame.source();
            let name = source.source.as_deref()?.strip_prefix('=')?.to_owned();
            name.ends_with(".lua").then_some(name)
        })
    };
    (0..8).find_map(|level| in_frame(level).flatten())
}

/// The path that `name` means in the file `from`.
fn resolve(from: &str, name: &str) -> Result<String, Error> {
    let wrong = |why: &str| {
        Error::new(Kind::Script, format!("require {:?}", name.chars().take(80).collect::<String>()), why.to_owned())
    };
    let bare = name.strip_suffix(".lua").unwrap_or(name);
    if bare.is_empty() || bare.starts_with('/') || bare.contains(['\\', '\0']) {
        return Err(wrong("is not a path relative to the requiring file"));
    }
    if bare.starts_with("@neap/") {
        return Ok(format!("{bare}.lua"));
    }
    let mut parts: Vec<&str> = from.split('/').collect();
    parts.pop();
    for part in bare.split('/') {
        match part {
            "." => {}
            // What is joined to a folder would else begin at the root.
            "" => return Err(wrong("is not a path relative to the requiring file")),
            ".." => {
                if parts.pop().is_none() {
                    return Err(wrong("leads out of the scripts' folder"));
                }
            }
            part => parts.push(part),
        }
    }
    Ok(format!("{}.lua", parts.join("/")))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(from: &str, name: &str, expected: &str) {
        let got = resolve(from, name).unwrap_or_else(|error| error.message);
        assert_eq!(got, expected, "{name} from {from}");
    }

    #[test]
    fn paths() {
        check("deploy.lua", "./zones", "zones.lua");
        check("policies/a.lua", "zones.lua", "policies/zones.lua");
        check("policies/a.lua", "../lib/zones", "lib/zones.lua");
        check("deploy.lua", "../zones", "leads out of the scripts' folder");
        check("deploy.lua", "/etc/passwd", "is not a path relative to the requiring file");
        check("deploy.lua", "@neap/lib/failure", "@neap/lib/failure.lua");
        check("@neap/rollouts/rolling.lua", "../lib/failure", "@neap/lib/failure.lua");
    }
}
