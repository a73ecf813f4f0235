//! `service` describes what is wanted, `scripts` brings hosted scripts along: inert until a verb makes it so.

use std::cell::{Cell, RefCell};
use std::collections::BTreeSet;
use std::rc::Rc;

use mlua::{Lua, Table, UserData, UserDataFields, UserDataMethods, Value};
use serde_json::json;

use super::services::{Context, applied};
use crate::client::{Apply, Only, show};
use crate::model::bundle::Bundle;
use crate::model::plan::Plan;
use crate::model::service::ServiceSpec;
use crate::model::units::Duration;
use crate::model::{Error, Kind};
use crate::script::bring::bring;
use crate::script::value::{from_record, raise, take_wait, to_json};

/// Sets `service` and `scripts`.
pub fn install(lua: &Lua, context: &Context) -> mlua::Result<()> {
    let shared = context.clone();
    let describe = lua.create_function(move |lua, (name, table): (String, Value)| {
        let context = shared.clone();
        let describe = lua.create_function(move |lua, table: Table| {
            let subject = format!("service \"{name:.70}\"");
            // What comes along is no part of the description, and no value that could be written down.
            let (table, with) = match table.raw_get("with")? {
                Value::Nil => (table, None),
                with => {
                    let rest = lua.create_table()?;
                    for pair in table.pairs::<Value, Value>() {
                        let (key, value) = pair?;
                        if key.as_string().is_none_or(|key| key != "with") {
                            rest.raw_set(key, value)?;
                        }
                    }
                    (rest, Some(brought(&format!("{subject}: with"), &with)?))
                }
            };
            let mut spec = to_json(&Value::Table(table)).map_err(|error| raise(error.about(subject.as_str())))?;
            let Some(fields) = spec.as_object_mut() else {
                let message = "is described by a list, and not by fields";
                return Err(raise(
                    Error::invalid(subject, message).help("write service \"NAME\" { FIELD = VALUE, ... }"),
                ));
            };
            fields.insert("name".into(), json!(name));
            // Read here as well, so that a mistake is shown where the description stands.
            ServiceSpec::read(&spec).map_err(raise)?;
            let used = context.described.add(&name);
            Ok(Description { context: context.clone(), spec, with, used })
        })?;
        // `service("name", { ... })` is the same.
        match table {
            Value::Nil => Ok(Value::Function(describe)),
            table => describe.call::<Value>(table),
        }
    })?;
    lua.globals().set("service", describe)?;

    let shared = context.clone();
    let scripts =
        lua.create_function(move |_, pattern: String| bring(&shared.folder, &[pattern]).map(Brought).map_err(raise))?;
    lua.globals().set("scripts", scripts)
}

/// Hosted scripts brought along, checked already.
struct Brought(Bundle);

impl UserData for Brought {}

/// The scripts that `scripts "*.lua"` has read.
pub fn brought(what: &str, value: &Value) -> mlua::Result<Bundle> {
    if let Value::UserData(data) = value
        && let Ok(brought) = data.borrow::<Brought>()
    {
        return Ok(brought.0.clone());
    }
    let message = format!("expected what scripts \"*.lua\" returns, got a {}", value.type_name());
    Err(raise(Error::new(Kind::Script, what, message)))
}

/// The fields and methods of a description.
pub const DESCRIPTION: [&str; 4] = ["name", "spec", "plan", "apply"];

/// What is wanted of a service.
pub struct Description {
    context: Context,
    spec: serde_json::Value,
    // The scripts that come along, unless a verb says others.
    with: Option<Bundle>,
    used: Rc<Cell<bool>>,
}

/// What a script has described, and whether it has done anything with it.
#[derive(Clone, Default)]
pub struct Described(Rc<RefCell<Vec<Named>>>);

// A description's name, and whether a verb has used it.
type Named = (String, Rc<Cell<bool>>);

impl Described {
    fn add(&self, name: &str) -> Rc<Cell<bool>> {
        let used = Rc::new(Cell::new(false));
        let mut all = self.0.borrow_mut();
        if all.len() < MAX_DESCRIBED {
            all.push((name.to_owned(), used.clone()));
        }
        used
    }

    /// Those that were described, and neither planned nor applied.
    pub fn forgotten(&self) -> Vec<String> {
        let all = self.0.borrow();
        // A second description of the same name may be the one that counts.
        let is_used = |name: &str| all.iter().any(|(other, used)| other == name && used.get());
        let names: BTreeSet<&String> = all.iter().map(|(name, _)| name).filter(|name| !is_used(name)).collect();
        names.into_iter().cloned().collect()
    }
}

/// Most descriptions that are watched for being forgotten.
const MAX_DESCRIBED: usize = 1000;

/// What `apply`, `plan` and `update` are told besides.
#[derive(Default)]
pub struct ApplyOptions {
    /// Hosted scripts that come along.
    pub with: Option<Bundle>,
    /// How long to wait.
    pub wait: Option<Duration>,
}

/// Reads them; `with` holds a userdata, so by hand.
pub fn apply_options(verb: &str, table: Option<Table>) -> mlua::Result<ApplyOptions> {
    let mut options = ApplyOptions { wait: take_wait(verb, table.as_ref())?, ..ApplyOptions::default() };
    let Some(table) = table else { return Ok(options) };
    for pair in table.pairs::<String, Value>() {
        let (key, value) = pair?;
        match (key.as_str(), value) {
            ("with", value) => options.with = Some(brought(&format!("{verb}: with"), &value)?),
            ("wait", _) => {}
            (other, _) => {
                let hint = crate::model::suggest::hint(other, ["with", "wait"]);
                return Err(raise(Error::invalid(verb, format!("unknown option \"{other:.60}\"{hint}"))));
            }
        }
    }
    Ok(options)
}

/// Reads those of `plan`: nothing is done that could be waited for.
pub fn plan_options(table: Option<Table>) -> mlua::Result<Option<Bundle>> {
    if let Some(table) = &table
        && !table.raw_get::<Value>("wait")?.is_nil()
    {
        return Err(raise(Error::invalid("plan", "wait: a plan does nothing that could be waited for")));
    }
    Ok(apply_options("plan", table)?.with)
}

impl Description {
    fn name(&self) -> String {
        self.spec["name"].as_str().unwrap_or_default().to_owned()
    }

    // What it is applied or planned with; it counts as used.
    fn ask(&self, with: Option<Bundle>) -> Apply {
        self.used.set(true);
        Apply { service: self.spec.clone(), with: with.or_else(|| self.with.clone()), only: Only::Either, auth: None }
    }
}

impl UserData for Description {
    fn add_fields<F: UserDataFields<Self>>(fields: &mut F) {
        fields.add_field_method_get("name", |_, this| Ok(this.name()));
        fields.add_field_method_get("spec", |lua, this| {
            this.used.set(true);
            from_record(lua, &this.spec)
        });
    }

    fn add_methods<M: UserDataMethods<Self>>(methods: &mut M) {
        methods.add_async_method("plan", |lua, this, options: Option<Table>| async move {
            let ask = this.ask(plan_options(options)?);
            planned(&lua, &this.context, ask).await
        });
        methods.add_async_method("apply", |_, this, options: Option<Table>| async move {
            let options = apply_options("apply", options)?;
            applied(&this.context, "apply", this.ask(options.with), options.wait).await
        });
    }
}

/// What applying it would change.
pub async fn planned(lua: &Lua, context: &Context, ask: Apply) -> mlua::Result<Value> {
    let plan: Plan = context.cluster.plan(ask).await.map_err(raise)?;
    let value = from_record(lua, &plan)?;
    if let Value::Table(table) = &value {
        let text = show::plan(&plan);
        let meta = lua.create_table()?;
        if let Some(fields) = table.metatable() {
            meta.set("__index", fields.raw_get::<Value>("__index")?)?;
        }
        meta.set("__tostring", lua.create_function(move |_, _: Value| Ok(text.clone()))?)?;
        table.set_metatable(Some(meta))?;
    }
    Ok(value)
}
