//! `service` describes, `services` finds; both give handles with the verbs. `scripts` brings hosted scripts along.

use std::rc::Rc;
use std::sync::Arc;

use futures_util::StreamExt;
use mlua::{AnyUserData, Lua, MetaMethod, Table, UserData, UserDataFields, UserDataMethods, Value};
use serde::Deserialize;
use serde_json::json;

use super::Reach;
use super::time::duration;
use crate::client::hosting::Hosting;
use crate::client::{Apply, Cluster, LogsAsk, Only, ReleaseAction, ServiceStatus, show, wait};
use crate::model::bundle::Bundle;
use crate::model::plan::{Plan, Rebalance};
use crate::model::release::{Release, ReleaseState};
use crate::model::service::ServiceSpec;
use crate::model::units::Duration;
use crate::model::{Error, Kind};
use crate::script::bring::bring;
use crate::script::value::{from_record, from_timed, raise, to_json};

/// How a script in the user's process shows that it waits.
pub type Reporter = Rc<dyn Fn(&str, &ServiceStatus)>;

/// What the handles need.
#[derive(Clone)]
pub struct Context {
    /// The cluster.
    pub cluster: Arc<dyn Cluster>,
    /// Shows progress.
    pub reporter: Reporter,
    /// The folder of the script, for the scripts that it brings along.
    pub folder: std::path::PathBuf,
    /// What else the script reaches.
    pub reach: Reach,
    /// What it can do with the very host where it is run, where somebody runs it by hand.
    pub hosting: Option<Rc<dyn Hosting>>,
}

/// How long `apply { wait = true }` and `wait()` wait where nothing is said.
pub const WAIT: Duration = Duration::from_secs(600);

/// Sets `service`, `services`, `scripts`.
pub fn install(lua: &Lua, context: &Context) -> mlua::Result<()> {
    let shared = context.clone();
    let describe = lua.create_function(move |lua, (name, table): (String, Value)| {
        let context = shared.clone();
        let describe = lua.create_function(move |_, table: Table| {
            let mut spec =
                to_json(&Value::Table(table)).map_err(|error| raise(error.about(format!("service \"{name:.70}\""))))?;
            if let serde_json::Value::Array(list) = &spec
                && list.is_empty()
            {
                spec = json!({});
            }
            spec["name"] = json!(name);
            // Read here as well, so that a mistake is shown where the description stands.
            ServiceSpec::read(&spec).map_err(raise)?;
            Ok(Description { context: context.clone(), spec })
        })?;
        // `service("name", { ... })` is the same.
        match table {
            Value::Nil => Ok(Value::Function(describe)),
            table => describe.call::<Value>(table),
        }
    })?;
    lua.globals().set("service", describe)?;

    let services = lua.create_table()?;
    let shared = context.clone();
    services.set(
        "get",
        lua.create_async_function(move |_, name: String| {
            let context = shared.clone();
            async move { Handle::fetch(context, &name).await }
        })?,
    )?;
    let shared = context.clone();
    services.set(
        "list",
        lua.create_async_function(move |_, ()| {
            let context = shared.clone();
            async move {
                let all = context.cluster.services().await.map_err(raise)?;
                Ok(all.into_iter().map(|status| Handle { context: context.clone(), status }).collect::<Vec<_>>())
            }
        })?,
    )?;
    services.set_readonly(true);
    lua.globals().set("services", services)?;

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

/// The fields and methods of a service.
pub const SERVICE: [&str; 22] = [
    "name",
    "revision",
    "replicas",
    "healthy",
    "settled",
    "spec",
    "release",
    "tasks",
    "refresh",
    "scale",
    "rebalance",
    "update",
    "wait",
    "pause",
    "resume",
    "abort",
    "promote",
    "rollback",
    "remove",
    "hand_back",
    "logs",
    "stats",
];
/// The fields and methods of a description.
pub const DESCRIPTION: [&str; 4] = ["name", "spec", "plan", "apply"];

/// The names of what a handle has, if `value` is one.
pub fn members(value: &Value) -> Option<&'static [&'static str]> {
    let data = value.as_userdata()?;
    if data.is::<Handle>() {
        return Some(&SERVICE);
    }
    data.is::<Description>().then_some(&DESCRIPTION)
}

/// The services that `values` stand for, if all of them are services.
pub fn statuses(values: &[Value]) -> Option<Vec<ServiceStatus>> {
    let status = |value: &Value| Some(value.as_userdata()?.borrow::<Handle>().ok()?.status.clone());
    values.iter().map(status).collect()
}

struct Description {
    context: Context,
    spec: serde_json::Value,
}

#[derive(Default)]
struct ApplyOptions {
    with: Option<Bundle>,
    wait: Option<Duration>,
}

// `with` holds a userdata, so this table is read by hand.
fn apply_options(table: Option<Table>) -> mlua::Result<ApplyOptions> {
    let mut options = ApplyOptions::default();
    let Some(table) = table else { return Ok(options) };
    for pair in table.pairs::<String, Value>() {
        let (key, value) = pair?;
        match (key.as_str(), value) {
            ("with", value) => options.with = Some(brought("apply: with", &value)?),
            ("wait", value) => options.wait = wait_time(&value)?,
            (other, _) => {
                let hint = crate::model::suggest::hint(other, ["with", "wait"]);
                return Err(raise(Error::new(Kind::Script, "apply", format!("unknown option \"{other:.60}\"{hint}"))));
            }
        }
    }
    Ok(options)
}

/// A `wait` option: a time, or true for the usual one.
pub fn wait_time(value: &Value) -> mlua::Result<Option<Duration>> {
    match value {
        Value::Nil | Value::Boolean(false) => Ok(None),
        Value::Boolean(true) => Ok(Some(WAIT)),
        other => duration(other).map(Some),
    }
}

impl Description {
    fn name(&self) -> String {
        self.spec["name"].as_str().unwrap_or_default().to_owned()
    }
}

impl UserData for Description {
    fn add_fields<F: UserDataFields<Self>>(fields: &mut F) {
        fields.add_field_method_get("name", |_, this| Ok(this.name()));
        fields.add_field_method_get("spec", |lua, this| from_record(lua, &this.spec));
    }

    fn add_methods<M: UserDataMethods<Self>>(methods: &mut M) {
        methods.add_async_method("plan", |lua, this, options: Option<Table>| async move {
            let options = apply_options(options)?;
            let ask = Apply { service: this.spec.clone(), with: options.with, only: Only::Either, auth: None };
            let plan = this.context.cluster.plan(ask).await.map_err(raise)?;
            plan_table(&lua, &plan)
        });
        methods.add_async_method("apply", |_, this, options: Option<Table>| async move {
            let options = apply_options(options)?;
            let ask = Apply { service: this.spec.clone(), with: options.with, only: Only::Either, auth: None };
            applied(&this.context, "apply", ask, options.wait).await
        });
    }
}

fn plan_table(lua: &Lua, plan: &Plan) -> mlua::Result<Value> {
    let value = from_record(lua, plan)?;
    if let Value::Table(table) = &value {
        let text = show::plan(plan);
        let meta = lua.create_table()?;
        meta.set("__tostring", lua.create_function(move |_, _: Value| Ok(text.clone()))?)?;
        table.set_metatable(Some(meta))?;
    }
    Ok(value)
}

async fn applied(context: &Context, doing: &str, ask: Apply, period: Option<Duration>) -> mlua::Result<Handle> {
    let name = ask.service["name"].as_str().unwrap_or_default().to_owned();
    let before = wait::release_before(&*context.cluster, &name).await.map_err(raise)?;
    let status = context.cluster.apply(ask).await.map_err(raise)?;
    let since = wait::since(before.as_ref(), status.release.as_ref());
    Handle { context: context.clone(), status }.waited_since(doing, period, since).await
}

/// A service that exists, as it was when it was last asked for.
#[derive(Clone)]
pub struct Handle {
    context: Context,
    status: ServiceStatus,
}

impl Handle {
    /// As it was seen.
    pub fn of(context: Context, status: ServiceStatus) -> Self {
        Handle { context, status }
    }

    /// As it is now.
    pub async fn fetch(context: Context, name: &str) -> mlua::Result<Handle> {
        let status = context.cluster.service(name).await.map_err(raise)?;
        Ok(Handle { context, status })
    }

    fn name(&self) -> String {
        self.status.service.spec.name.to_string()
    }

    async fn waited(self, doing: &str, period: Option<Duration>) -> mlua::Result<Handle> {
        let before = self.status.release.clone();
        self.waited_since(doing, period, before).await
    }

    // `before`: the release that it starts from.
    async fn waited_since(
        mut self,
        doing: &str,
        period: Option<Duration>,
        before: Option<Release>,
    ) -> mlua::Result<Handle> {
        let Some(period) = period else { return Ok(self) };
        let name = self.name();
        let (sender, mut states) = tokio::sync::mpsc::unbounded_channel();
        let mut progress = move |status: &ServiceStatus| {
            let _ = sender.send(status.clone());
        };
        let reporter = self.context.reporter.clone();
        let shown = async {
            while let Some(status) = states.recv().await {
                reporter(doing, &status);
            }
        };
        let waiting = async {
            let result =
                wait::settled(&*self.context.cluster, &name, before.as_ref(), period.std(), &mut progress).await;
            drop(progress);
            result
        };
        let (result, ()) = tokio::join!(waiting, shown);
        self.status = result.map_err(raise)?;
        Ok(self)
    }

    async fn act(self, action: ReleaseAction, options: Option<Table>) -> mlua::Result<Handle> {
        let period = match options {
            Some(options) => wait_time(&options.get("wait")?)?,
            None => None,
        };
        let status = self.context.cluster.release(&self.name(), action).await.map_err(raise)?;
        // Going back is what was asked for, so that it went back is no failure.
        let going_back = status.release.as_ref().is_some_and(|release| release.state == ReleaseState::RollingBack);
        let (context, name) = (self.context.clone(), self.name());
        match (Handle { status, ..self }).waited(action.as_str(), period).await {
            Err(error) if going_back => {
                let now = Handle::fetch(context, &name).await?;
                if now.status.settled { Ok(now) } else { Err(error) }
            }
            other => other,
        }
    }
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct LogOptions {
    tail: Option<usize>,
    since: Option<Duration>,
}

impl UserData for Handle {
    fn add_fields<F: UserDataFields<Self>>(fields: &mut F) {
        fields.add_field_method_get("name", |_, this| Ok(this.name()));
        fields.add_field_method_get("revision", |_, this| Ok(this.status.service.active));
        fields.add_field_method_get("replicas", |_, this| Ok(this.status.desired));
        fields.add_field_method_get("healthy", |_, this| Ok(this.status.healthy));
        fields.add_field_method_get("settled", |_, this| Ok(this.status.settled));
        fields.add_field_method_get("spec", |lua, this| from_record(lua, &this.status.service.spec));
        fields.add_field_method_get("release", |lua, this| from_timed(lua, &this.status.release));
        fields.add_field_method_get("tasks", |lua, this| {
            let live: Vec<_> = this.status.tasks.iter().filter(|task| !task.state.is_final()).collect();
            from_timed(lua, &live)
        });
    }

    fn add_methods<M: UserDataMethods<Self>>(methods: &mut M) {
        methods.add_async_method("refresh", |_, this, ()| async move {
            Handle::fetch(this.context.clone(), &this.name()).await
        });
        methods.add_async_method("scale", |_, this, (replicas, options): (u32, Option<Table>)| async move {
            let period = options.map(|options| wait_time(&options.get("wait")?)).transpose()?.flatten();
            let status = this.context.cluster.scale(&this.name(), replicas).await.map_err(raise)?;
            Handle { context: this.context.clone(), status }.waited("scale", period).await
        });
        methods.add_async_method("rebalance", |lua, this, options: Option<Table>| async move {
            let mut period = None;
            let mut asked = json!({});
            if let Some(options) = options {
                period = wait_time(&options.get("wait")?)?;
                asked = to_json(&Value::Table(options)).map_err(raise)?;
                asked.as_object_mut().map(|fields| fields.remove("wait"));
            }
            let ask: Rebalance = crate::model::strict::read("rebalance", &asked).map_err(raise)?;
            let done = this.context.cluster.rebalance(&this.name(), ask).await.map_err(raise)?;
            if period.is_some() && !ask.dry_run && !done.moves.is_empty() {
                let handle = Handle::fetch(this.context.clone(), &this.name()).await?;
                let handle = handle.waited("rebalance", period).await?;
                wait::moved(&handle.status, &done.moves).map_err(raise)?;
            }
            from_record(&lua, &done.moves)
        });
        methods.add_async_method("stats", |lua, this, ()| async move {
            let stats = this.context.cluster.stats(&this.name()).await.map_err(raise)?;
            from_record(&lua, &stats)
        });
        methods.add_async_method("update", |_, this, (changes, options): (Table, Option<Table>)| async move {
            let mut spec = to_json(&Value::Table(changes)).map_err(raise)?;
            spec["name"] = json!(this.name());
            let options = apply_options(options)?;
            let ask = Apply { service: spec, with: options.with, only: Only::Update, auth: None };
            applied(&this.context, "update", ask, options.wait).await
        });
        methods.add_async_method("wait", |_, this, period: Value| async move {
            let period = if period.is_nil() { WAIT } else { duration(&period)? };
            Handle::clone(&this).waited("wait", Some(period)).await
        });
        for action in [
            ReleaseAction::Pause,
            ReleaseAction::Resume,
            ReleaseAction::Abort,
            ReleaseAction::Promote,
            ReleaseAction::Rollback,
        ] {
            methods.add_async_method(action.as_str(), move |_, this, options: Option<Table>| {
                Handle::clone(&this).act(action, options)
            });
        }
        methods.add_async_method("remove", |_, this, options: Option<Table>| async move {
            let period = options.map(|options| wait_time(&options.get("wait")?)).transpose()?.flatten();
            let name = this.name();
            // Before the removal, so that its end cannot be missed.
            let states = this.context.cluster.watch(&name).await.map_err(raise)?;
            this.context.cluster.remove(&name).await.map_err(raise)?;
            if let Some(period) = period {
                let gone = wait::gone(&*this.context.cluster, &name, states);
                let late = |_| {
                    let message = format!("not removed within {period}");
                    raise(Error::new(Kind::Timeout, format!("service \"{name}\""), message))
                };
                tokio::time::timeout(period.std(), gone).await.map_err(late)?.map_err(raise)?;
            }
            Ok(())
        });
        methods.add_async_method("hand_back", |lua, this, options: Option<Table>| async move {
            super::natives::hand_back(lua, this.context.clone(), this.name(), options).await
        });
        methods.add_async_method("logs", |lua, this, options: Option<Table>| async move {
            let options: LogOptions = match options {
                Some(table) => {
                    crate::model::strict::read("logs", &to_json(&Value::Table(table)).map_err(raise)?).map_err(raise)?
                }
                None => LogOptions::default(),
            };
            let now = this.context.reach.clock.wall_nanos();
            let since = options.since.map(|period| now - period.millis().cast_signed() * 1_000_000);
            let ask = LogsAsk { since, tail: options.tail, follow: false, slot: None };
            let mut lines = this.context.cluster.logs(&this.name(), ask).await.map_err(raise)?;
            let list = lua.create_table()?;
            while let Some(line) = lines.next().await {
                let line = line.map_err(raise)?;
                let table = from_record(&lua, &line)?;
                if let Some(table) = table.as_table() {
                    table.raw_set("at", line.at as f64 / 1e9)?;
                }
                list.raw_push(table)?;
            }
            Ok(list)
        });
        methods.add_meta_method(MetaMethod::ToString, |_, this, ()| {
            Ok(show::tasks(&this.status, false, this.context.reach.clock.wall()))
        });
        // Only reached for names that are neither field nor method.
        methods.add_meta_function(MetaMethod::Index, |_, (_, key): (AnyUserData, String)| {
            let hint = crate::model::suggest::nearest(&key, SERVICE)
                .map(|name| format!("; did you mean \"{name}\"?"))
                .unwrap_or_default();
            Err::<Value, _>(mlua::Error::runtime(format!("service has no field \"{key:.60}\"{hint}")))
        });
    }
}
