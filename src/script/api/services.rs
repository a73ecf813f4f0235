//! `services` finds services; handles with the verbs.

use std::collections::BTreeMap;
use std::rc::Rc;
use std::sync::Arc;

use futures_util::StreamExt;
use mlua::{AnyUserData, Lua, MetaMethod, Table, UserData, UserDataFields, UserDataMethods, Value};
use serde::Deserialize;
use serde_json::json;

use super::Reach;
use super::describe::{self, Described, Description, apply_options};
use super::time::duration;
use crate::client::hosting::Hosting;
use crate::client::{Apply, Cluster, LogsAsk, Only, ReleaseAction, ServiceStatus, show, wait};
use crate::model::bundle::Bundle;
use crate::model::plan::Rebalance;
use crate::model::release::{Release, ReleaseState};
use crate::model::service::ServiceSpec;
use crate::model::stack::NAMESPACE;
use crate::model::task::Task;
use crate::model::units::Duration;
use crate::model::{Error, Kind};
use crate::script::value::{WAIT, Waits, from_record, from_timed, options, options_and_wait, raise, strict, to_json};

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
    /// What the script has described.
    pub described: Described,
    /// What it can do with the very host where it is run, where somebody runs it by hand.
    pub hosting: Option<Rc<dyn Hosting>>,
}

/// Sets `service`, `services`, `scripts`.
pub fn install(lua: &Lua, context: &Context) -> mlua::Result<()> {
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
        lua.create_async_function(move |_, table: Option<Table>| {
            let context = shared.clone();
            async move {
                let which: Which = options("services.list", table)?;
                let mut all = context.cluster.services().await.map_err(raise)?;
                all.retain(|status| which.holds(&status.service.spec));
                Ok(all.into_iter().map(|status| Handle::of(context.clone(), status)).collect::<Vec<_>>())
            }
        })?,
    )?;
    services.set_readonly(true);
    lua.globals().set("services", services)?;
    describe::install(lua, context)
}

// Which services `services.list` tells of.
#[derive(Deserialize, Default)]
#[serde(default)]
struct Which {
    prefix: String,
    labels: BTreeMap<String, String>,
    stack: Option<String>,
}

impl Which {
    fn holds(&self, spec: &ServiceSpec) -> bool {
        let stack = self.stack.as_deref();
        spec.name.as_str().starts_with(&self.prefix)
            && self.labels.iter().all(|(key, value)| spec.labels.get(key) == Some(value))
            && stack.is_none_or(|stack| spec.labels.get(NAMESPACE).is_some_and(|of| of == stack))
    }
}

/// The fields and methods of a service.
pub const SERVICE: [&str; 24] = [
    "name",
    "address",
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
    "plan",
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
/// The names of what a handle has, if `value` is one.
pub fn members(value: &Value) -> Option<&'static [&'static str]> {
    let data = value.as_userdata()?;
    if data.is::<Handle>() {
        return Some(&SERVICE);
    }
    data.is::<Description>().then_some(&describe::DESCRIPTION)
}

/// The services that `values` stand for, if all of them are services.
pub fn statuses(values: &[Value]) -> Option<Vec<ServiceStatus>> {
    let status = |value: &Value| Some(value.as_userdata()?.borrow::<Handle>().ok()?.status.clone());
    values.iter().map(status).collect()
}

/// Applies it, and waits where that is asked for.
pub async fn applied(context: &Context, doing: &str, ask: Apply, period: Option<Duration>) -> mlua::Result<Handle> {
    let name = ask.service["name"].as_str().unwrap_or_default().to_owned();
    let before = wait::release_before(&*context.cluster, &name).await.map_err(raise)?;
    let status = context.cluster.apply(ask).await.map_err(raise)?;
    let since = wait::since(before.as_ref(), status.release.as_ref());
    Handle::of(context.clone(), status).waited_since(doing, period, since).await
}

/// A service that exists, as it was when it was last asked for.
#[derive(Clone)]
pub struct Handle {
    context: Context,
    status: ServiceStatus,
    // What was begun by the verb that returned it, and the release that a wait for it starts from.
    begun: Option<(String, Option<Release>)>,
}

impl Handle {
    /// As it was seen.
    pub fn of(context: Context, status: ServiceStatus) -> Self {
        Handle { context, status, begun: None }
    }

    /// As it is now.
    pub async fn fetch(context: Context, name: &str) -> mlua::Result<Handle> {
        let status = context.cluster.service(name).await.map_err(raise)?;
        Ok(Handle::of(context, status))
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
        let Some(period) = period else { return Ok(Handle { begun: Some((doing.to_owned(), before)), ..self }) };
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
        // Going back is what was asked for, so that it went back is no failure.
        let going_back = before.as_ref().is_some_and(|release| release.state == ReleaseState::RollingBack);
        let (result, ()) = tokio::join!(waiting, shown);
        self.status = match result {
            Err(error) if going_back => {
                let now = self.context.cluster.service(&name).await.map_err(raise)?;
                if !now.settled {
                    return Err(raise(error));
                }
                now
            }
            other => other.map_err(raise)?,
        };
        self.begun = None;
        Ok(self)
    }

    // An update of some fields.
    fn change(&self, verb: &str, changes: Table, with: Option<Bundle>) -> mlua::Result<Apply> {
        let mut service = to_json(&Value::Table(changes)).map_err(raise)?;
        let Some(fields) = service.as_object_mut() else {
            return Err(raise(Error::invalid(verb, "is given a list, and not fields of the description")));
        };
        fields.insert("name".into(), json!(self.name()));
        Ok(Apply { service, with, only: Only::Update, auth: None })
    }

    async fn act(self, action: ReleaseAction, table: Option<Table>) -> mlua::Result<Handle> {
        let period = options::<Waits>(action.as_str(), table)?.wait.0;
        let status = self.context.cluster.release(&self.name(), action).await.map_err(raise)?;
        Handle::of(self.context, status).waited(action.as_str(), period).await
    }
}

// As tables show it: with its name, its slot as a text, and its node by the host's name.
fn task_table(lua: &Lua, status: &ServiceStatus, task: &Task) -> mlua::Result<Value> {
    let value = from_timed(lua, task)?;
    if let Value::Table(table) = &value {
        table.raw_set("name", task.label())?;
        table.raw_set("slot", task.slot.to_string())?;
        table.raw_set(
            "ports",
            lua.create_table_from(task.ports.iter().map(|(name, at)| (name.as_str(), at.as_str())))?,
        )?;
        table.raw_set("node_id", task.node.as_deref())?;
        table.raw_set("node", task.node.as_deref().map(|id| status.nodes.get(id).map_or(id, String::as_str)))?;
        strict(lua, "task", table, &TASK)?;
    }
    Ok(value)
}

/// The fields of a task that are not always there.
const TASK: [&str; 12] = [
    "node",
    "node_id",
    "reason",
    "pid",
    "started_at",
    "finished_at",
    "healthy_at",
    "exit",
    "warnings",
    "stop",
    "not_before",
    "leaving",
];

#[derive(Deserialize, Default)]
#[serde(default)]
struct LogOptions {
    tail: Option<usize>,
    since: Option<Duration>,
}

impl UserData for Handle {
    fn add_fields<F: UserDataFields<Self>>(fields: &mut F) {
        fields.add_field_method_get("name", |_, this| Ok(this.name()));
        fields.add_field_method_get("address", |_, this| Ok(this.status.service.address.map(|own| own.to_string())));
        fields.add_field_method_get("revision", |_, this| Ok(this.status.service.active));
        fields.add_field_method_get("replicas", |_, this| Ok(this.status.desired));
        fields.add_field_method_get("healthy", |_, this| Ok(this.status.healthy));
        fields.add_field_method_get("settled", |_, this| Ok(this.status.settled));
        fields.add_field_method_get("spec", |lua, this| from_record(lua, &this.status.service.spec));
        fields.add_field_method_get("release", |lua, this| from_timed(lua, &this.status.release));
        fields.add_field_method_get("tasks", |lua, this| {
            let live = this.status.tasks.iter().filter(|task| !task.state.is_final());
            live.map(|task| task_table(lua, &this.status, task)).collect::<mlua::Result<Vec<_>>>()
        });
    }

    fn add_methods<M: UserDataMethods<Self>>(methods: &mut M) {
        methods.add_async_method("refresh", |_, this, ()| async move {
            Handle::fetch(this.context.clone(), &this.name()).await
        });
        methods.add_async_method("scale", |_, this, (replicas, table): (u32, Option<Table>)| async move {
            let period = options::<Waits>("scale", table)?.wait.0;
            let status = this.context.cluster.scale(&this.name(), replicas).await.map_err(raise)?;
            Handle::of(this.context.clone(), status).waited("scale", period).await
        });
        methods.add_async_method("rebalance", |lua, this, table: Option<Table>| async move {
            let (ask, period) = options_and_wait::<Rebalance>("rebalance", table)?;
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
            let options = apply_options("update", options)?;
            let ask = this.change("update", changes, options.with)?;
            applied(&this.context, "update", ask, options.wait).await
        });
        methods.add_async_method("plan", |lua, this, (changes, options): (Table, Option<Table>)| async move {
            let ask = this.change("plan", changes, describe::plan_options(options)?)?;
            describe::planned(&lua, &this.context, ask).await
        });
        methods.add_async_method("wait", |_, this, period: Value| async move {
            let period = if period.is_nil() { WAIT } else { duration(&period)? };
            let handle = Handle::clone(&this);
            match handle.begun.clone() {
                Some((doing, before)) => handle.waited_since(&doing, Some(period), before).await,
                None => {
                    wait::half_way(&handle.status).map_err(raise)?;
                    handle.waited("wait", Some(period)).await
                }
            }
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
        methods.add_async_method("remove", |_, this, table: Option<Table>| async move {
            let period = options::<Waits>("remove", table)?.wait.0;
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
        methods.add_async_method("logs", |lua, this, table: Option<Table>| async move {
            let options: LogOptions = options("logs", table)?;
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
