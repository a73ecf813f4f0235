//! Errors as scripts catch them: `pcall` gives a value that reads as one clean text and has the error's parts as
//! fields, instead of a trace.

use mlua::{Lua, MetaMethod, MultiValue, UserData, UserDataFields, UserDataMethods, Value};

use super::report;
use crate::model::Error;

/// What `pcall` gives for a failure that came from Rust.
struct Failure(Error);

impl UserData for Failure {
    fn add_fields<F: UserDataFields<Self>>(fields: &mut F) {
        fields.add_field_method_get("kind", |lua, this| super::value::from_record(lua, &this.0.kind));
        fields.add_field_method_get("subject", |_, this| Ok(this.0.subject.clone()));
        fields.add_field_method_get("message", |_, this| Ok(this.0.message.clone()));
        fields.add_field_method_get("cause", |_, this| Ok(this.0.cause.clone()));
        fields.add_field_method_get("help", |_, this| Ok(this.0.help.clone()));
        fields.add_field_method_get("retry", |_, this| Ok(this.0.retry));
    }

    fn add_methods<M: UserDataMethods<Self>>(methods: &mut M) {
        methods.add_meta_method(MetaMethod::ToString, |_, this, ()| Ok(this.0.to_string()));
    }
}

// In Lua, so that the protected function may still wait for something.
const WRAPPERS: &str = r#"
local clean, fail, raw_pcall, raw_xpcall, raw_error = ...
local function pcall_(f, ...) return clean(raw_pcall(f, ...)) end
local function xpcall_(f, handler, ...)
  return raw_xpcall(f, function(e) return handler((select(2, clean(false, e)))) end, ...)
end
local function error_(value, level)
  if type(value) == "userdata" then fail(value) end
  raw_error(value, (level or 1) > 0 and (level or 1) + 1 or 0)
end
return pcall_, xpcall_, error_
"#;

/// Replaces `pcall`, `xpcall` and `error`.
pub fn install(lua: &Lua) -> mlua::Result<()> {
    let clean = lua.create_function(|lua, mut values: MultiValue| {
        if let Some(Value::Error(error)) = values.get(1) {
            let failure = Failure(report::parts(error));
            let failure = Value::UserData(lua.create_userdata(failure)?);
            if let Some(slot) = values.get_mut(1) {
                *slot = failure;
            }
        }
        Ok(values)
    })?;
    let fail = lua.create_function(|_, value: Value| match &value {
        Value::UserData(data) => match data.borrow::<Failure>() {
            Ok(failure) => Err::<(), _>(super::value::raise(failure.0.clone())),
            Err(_) => Err(mlua::Error::runtime(value.to_string()?)),
        },
        other => Err(mlua::Error::runtime(other.to_string()?)),
    })?;
    let globals = lua.globals();
    let raw: (Value, Value, Value) = (globals.get("pcall")?, globals.get("xpcall")?, globals.get("error")?);
    let (pcall, xpcall, error): (Value, Value, Value) =
        lua.load(WRAPPERS).set_name("=neap").call((clean, fail, raw.0, raw.1, raw.2))?;
    globals.set("pcall", pcall)?;
    globals.set("xpcall", xpcall)?;
    globals.set("error", error)
}
