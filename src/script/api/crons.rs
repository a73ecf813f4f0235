//! `crons` and `events`: cron scripts by hand, and what happens.

use std::cell::RefCell;
use std::future::poll_fn;
use std::rc::Rc;
use std::sync::Arc;

use futures_util::StreamExt;
use futures_util::stream::Fuse;
use mlua::{Lua, MultiValue, Table, Value};
use serde::Deserialize;

use crate::client::scripts::CronStatus;
use crate::client::{Cluster, Stream1};
use crate::model::event::{Event, What};
use crate::model::units::Duration;
use crate::model::{Error, Kind};
use crate::script::value::{from_timed, raise, strict, to_json};

const CRON: [&str; 12] = [
    "name", "owner", "schedule", "timezone", "overlap", "timeout", "paused", "next_at", "history", "run", "pause",
    "resume",
];

/// Who runs a cron script from a script.
const BY: &str = "a script";

/// Sets `crons` and `events`.
pub fn install(lua: &Lua, cluster: &Arc<dyn Cluster>) -> mlua::Result<()> {
    let crons = lua.create_table()?;
    let shared = cluster.clone();
    crons.set(
        "list",
        lua.create_async_function(move |lua, ()| {
            let cluster = shared.clone();
            async move {
                let all = cluster.crons().await.map_err(raise)?;
                all.iter().map(|cron| cron_table(&lua, &cluster, cron)).collect::<mlua::Result<Vec<_>>>()
            }
        })?,
    )?;
    let shared = cluster.clone();
    crons.set(
        "get",
        lua.create_async_function(move |lua, name: String| {
            let cluster = shared.clone();
            async move { cron_table(&lua, &cluster, &cluster.cron(&name).await.map_err(raise)?) }
        })?,
    )?;
    crons.set_readonly(true);
    lua.globals().set("crons", crons)?;

    let events = lua.create_table()?;
    let shared = cluster.clone();
    events.set(
        "wait",
        lua.create_async_function(move |lua, options: Option<Table>| {
            let cluster = shared.clone();
            async move { Watch::begin("events.wait", &cluster, options).await?.next(&lua).await }
        })?,
    )?;
    let shared = cluster.clone();
    // Each open watch has a copy.
    let open = Arc::new(());
    events.set(
        "watch",
        lua.create_async_function(move |lua, options: Option<Table>| {
            let (cluster, turn) = (shared.clone(), one_more(&lua, &open));
            async move {
                let turn = turn?;
                let watch = Rc::new(Watch::begin("events.watch", &cluster, options).await?);
                lua.create_async_function(move |lua, _: MultiValue| {
                    let (watch, _) = (watch.clone(), &turn);
                    async move { watch.next(&lua).await }
                })
            }
        })?,
    )?;
    let shared = cluster.clone();
    events.set(
        "failed",
        lua.create_async_function(move |lua, ()| {
            let cluster = shared.clone();
            async move { from_timed(&lua, &cluster.failed_deliveries().await.map_err(raise)?) }
        })?,
    )?;
    events.set_readonly(true);
    lua.globals().set("events", events)
}

fn cron_table(lua: &Lua, cluster: &Arc<dyn Cluster>, cron: &CronStatus) -> mlua::Result<Table> {
    let Value::Table(table) = from_timed(lua, cron)? else {
        return Err(mlua::Error::runtime("a cron script is a table"));
    };
    let (shared, name) = (cluster.clone(), cron.name.clone());
    let run = lua.create_async_function(move |lua, _: Value| {
        let (cluster, name) = (shared.clone(), name.clone());
        async move {
            let run = cluster.run_cron(&name, BY).await.map_err(raise)?;
            run.well(&name).map_err(raise)?;
            from_timed(&lua, &run)
        }
    })?;
    table.raw_set("run", run)?;
    for (word, paused) in [("pause", true), ("resume", false)] {
        let (shared, name) = (cluster.clone(), cron.name.clone());
        let act = lua.create_async_function(move |lua, _: Value| {
            let (cluster, name) = (shared.clone(), name.clone());
            async move { cron_table(&lua, &cluster, &cluster.pause_cron(&name, paused).await.map_err(raise)?) }
        })?;
        table.raw_set(word, act)?;
    }
    strict(lua, "cron", &table, &CRON)?;
    Ok(table)
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct Wanted {
    what: Option<String>,
    service: Option<String>,
    subject: Option<String>,
    timeout: Option<Duration>,
}

/// Most watches of a script that are open at once: what waits in one is kept for it.
const WATCHES: usize = 8;

// One more open watch, unless there are too many; those that a script has left go when what it still has is looked for.
fn one_more(lua: &Lua, open: &Arc<()>) -> mlua::Result<Arc<()>> {
    let is_full = || Arc::strong_count(open) > WATCHES;
    if is_full() {
        lua.gc_collect()?;
    }
    if is_full() {
        let message = format!("more than {WATCHES} watches are open at once");
        let error = Error::new(Kind::Exhausted, "events.watch", message);
        return Err(raise(error.help("let go of those that are not needed any more")));
    }
    Ok(open.clone())
}

/// Events as they happen, those that are wanted.
struct Watch {
    events: RefCell<Fuse<Stream1<Event>>>,
    wanted: Wanted,
    what: Option<What>,
}

impl Watch {
    // From now on.
    async fn begin(verb: &str, cluster: &Arc<dyn Cluster>, options: Option<Table>) -> mlua::Result<Self> {
        let options =
            options.map_or(Ok(serde_json::json!({})), |table| to_json(&Value::Table(table)).map_err(raise))?;
        let wanted: Wanted = crate::model::strict::read(verb, &options).map_err(raise)?;
        let what = wanted.what.as_deref().map(What::parse).transpose().map_err(raise)?;
        let events = RefCell::new(cluster.events().await.map_err(raise)?.fuse());
        Ok(Watch { events, wanted, what })
    }

    fn wants(&self, event: &Event) -> bool {
        let Wanted { service, subject, .. } = &self.wanted;
        self.what.is_none_or(|what| what == event.what)
            && service.as_deref().is_none_or(|name| event.service.as_ref().is_some_and(|of| of.as_str() == name))
            && subject.as_ref().is_none_or(|subject| event.subject == *subject)
    }

    // The next one, or nothing once the time is over.
    async fn next(&self, lua: &Lua) -> mlua::Result<Value> {
        let period = self.wanted.timeout;
        let next = async {
            // Held for the moment of each look alone: a look that is given up leaves nothing behind.
            while let Some(event) = poll_fn(|cx| self.events.borrow_mut().poll_next_unpin(cx)).await {
                let event = event.map_err(raise)?;
                if self.wants(&event) {
                    return Ok(Some(event));
                }
            }
            Err(raise(Error::new(Kind::Unavailable, "events", "ended; the daemon has stopped")))
        };
        let found = match period {
            Some(period) => tokio::time::timeout(period.std(), next).await.unwrap_or(Ok(None))?,
            None => next.await?,
        };
        let Some(event) = found else { return Ok(Value::Nil) };
        let Value::Table(table) = from_timed(lua, &event)? else {
            return Err(mlua::Error::runtime("an event is a table"));
        };
        strict(lua, "event", &table, event.what.fields())?;
        Ok(Value::Table(table))
    }
}
