//! Scripts of routes: which of several services a request goes to. They run in the balancer, each thread has its own.

use std::sync::Arc;
use std::time::Duration;

use mlua::{Function, Lua, UserData, UserDataFields, UserDataMethods, Value};

use super::budget::{Beat, Budget};
use super::{report, vm};
use crate::model::{Error, Kind, Result};
use crate::network::balancer::{Hook, Hooks, RoutedRequest, Unsaid, text_hash};

/// Computing time of one request, and of loading one.
const CALL: Duration = Duration::from_millis(5);
const LOAD: Duration = Duration::from_millis(100);
/// What one may hold beyond what it holds once loaded, in bytes.
const GROWTH: usize = 8 << 20;

/// Loads them.
pub struct Choosers {
    // In a simulation computing is counted in steps.
    in_steps: bool,
}

impl Choosers {
    /// For a balancer.
    pub fn shared() -> Arc<dyn Hooks> {
        Arc::new(Choosers { in_steps: false })
    }

    /// For a simulation.
    pub fn in_steps() -> Arc<dyn Hooks> {
        Arc::new(Choosers { in_steps: true })
    }
}

/// An error unless a route's script can be loaded.
pub fn check(route: &str, source: &str) -> Result<()> {
    Choosers { in_steps: false }.load(route, source).map(drop)
}

struct Chooser {
    lua: Lua,
    budget: Budget,
    choose: Function,
    route: String,
    source: String,
}

impl Hooks for Choosers {
    fn load(&self, route: &str, source: &str) -> Result<Box<dyn Hook>> {
        let subject = format!("route \"{route}\", choose");
        let wrong = |error: &mlua::Error| report::explain(&subject, error, &|_| Some(source.to_owned()), None);
        let lua = vm::new().map_err(|error| wrong(&error))?;
        for name in ["print", "warn"] {
            lua.globals().raw_set(name, Value::Nil).map_err(|error| wrong(&error))?;
        }
        vm::seal(&lua).map_err(|error| wrong(&error))?;
        let beat = if self.in_steps { Beat::in_steps() } else { Beat::default() };
        let budget = Budget::attach(&lua, beat);
        let memory = |lua: &Lua| lua.set_memory_limit(lua.used_memory() + GROWTH).map(drop);
        memory(&lua).map_err(|error| wrong(&error))?;
        let loaded: Value = budget
            .run(LOAD, || lua.load(source).set_name("=choose.lua").set_mode(mlua::chunk::ChunkMode::Text).eval())
            .map_err(|error| wrong(&error))?;
        let Value::Function(choose) = loaded else {
            let message = format!("returns {}, and not a function", super::hosted::type_of(&loaded));
            return Err(Error::new(Kind::Script, subject, message).help("write return function(request) ... end"));
        };
        memory(&lua).map_err(|error| wrong(&error))?;
        let (route, source) = (route.to_owned(), source.to_owned());
        Ok(Box::new(Chooser { lua, budget, choose, route, source }))
    }
}

impl Hook for Chooser {
    fn choose(&self, request: RoutedRequest) -> std::result::Result<Option<String>, Unsaid> {
        let subject = format!("route \"{}\", choose", self.route);
        let said = self.budget.run(CALL, || {
            let request = self.lua.create_userdata(request)?;
            self.choose.call::<Value>(request)
        });
        let why = match said {
            Ok(Value::Nil) => return Ok(None),
            Ok(Value::String(name)) => return Ok(Some(name.to_string_lossy())),
            Ok(other) => {
                let message =
                    format!("returned {}, and neither a service's name nor nil", super::hosted::type_of(&other));
                Error::new(Kind::Script, subject, message)
            }
            Err(error) => {
                if super::hosted::is_memory(&error) {
                    self.budget.exceeded();
                }
                // Without the request: who asks does not decide what is told.
                report::explain(&subject, &error, &|_| Some(self.source.clone()), None)
            }
        };
        let is_spent = self.budget.was_exceeded();
        Err(Unsaid { why: why.to_string(), is_spent })
    }
}

impl UserData for RoutedRequest {
    fn add_fields<F: UserDataFields<Self>>(fields: &mut F) {
        fields.add_field_method_get("method", |lua, this| lua.create_string(&this.method));
        fields.add_field_method_get("host", |lua, this| lua.create_string(&this.host));
        fields.add_field_method_get("path", |lua, this| lua.create_string(&this.path));
        fields.add_field_method_get("query", |lua, this| lua.create_string(&this.query));
        fields.add_field_method_get("client", |lua, this| lua.create_string(&this.client));
        fields.add_field_method_get("secure", |_, this| Ok(this.secure));
    }

    fn add_methods<M: UserDataMethods<Self>>(methods: &mut M) {
        methods.add_method("header", |lua, this, name: String| {
            this.header(&name).map(|value| lua.create_string(value)).transpose()
        });
        methods.add_method("cookie", |lua, this, name: String| {
            this.cookie(&name).map(|value| lua.create_string(value)).transpose()
        });
        // A number from 0 up to 1, the same for the same text on each host.
        methods.add_method("share", |_, _, text: mlua::LuaString| {
            Ok((text_hash(&text.as_bytes()) >> 11) as f64 / (1_u64 << 53) as f64)
        });
    }
}
