//! `http.load`: many requests at once, in the background, counted. For trying a deployment, not for measuring a server.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::rc::Rc;
use std::time::Instant;

use mlua::{Lua, Table, UserData, UserDataMethods, Value};
use serde::Deserialize;

use crate::model::units::Duration;
use crate::model::{Error, Kind};
use crate::script::value::{raise, to_json};

/// Most different bodies and failures that are told apart.
const MAX_KINDS: usize = 1000;

#[derive(Deserialize)]
struct Options {
    url: String,
    #[serde(default)]
    requests: Option<u64>,
    #[serde(default = "four")]
    connections: u32,
    #[serde(default = "thirty_seconds")]
    timeout: Duration,
    #[serde(default)]
    keep_alive: Option<bool>,
}

fn four() -> u32 {
    4
}

fn thirty_seconds() -> Duration {
    Duration::from_secs(30)
}

#[derive(Default)]
struct Counts {
    sent: Cell<u64>,
    done: Cell<u64>,
    failed: Cell<u64>,
    bodies: RefCell<BTreeMap<String, u64>>,
    failures: RefCell<BTreeMap<String, u64>>,
    stop: Cell<bool>,
}

struct Load {
    counts: Rc<Counts>,
    begun: Instant,
    workers: Rc<RefCell<Vec<tokio::task::JoinHandle<()>>>>,
}

/// Adds `load` to `http`. Only where scripts run in the user's own process, and on a real network.
pub fn install(lua: &Lua, simulated: bool) -> mlua::Result<()> {
    let http: Table = lua.globals().get("http")?;
    let load = lua.create_function(move |_, options: Value| match simulated {
        false => start(&options),
        true => {
            let error = Error::new(Kind::Script, "http.load", "measures a real network, which a simulation has not");
            Err(raise(error.help("ask with http.get, as often as is needed")))
        }
    })?;
    http.set("load", load)
}

fn start(options: &Value) -> mlua::Result<Load> {
    let options: Options = crate::model::strict::read("http.load", &to_json(options).map_err(raise)?).map_err(raise)?;
    if options.connections == 0 || options.connections > 1000 {
        return Err(raise(Error::new(
            Kind::Script,
            "http.load",
            format!("connections: {} is not between 1 and 1000", options.connections),
        )));
    }
    let client = crate::network::built(|builder| {
        let builder = builder.timeout(options.timeout.std());
        if options.keep_alive == Some(false) { builder.pool_max_idle_per_host(0) } else { builder }
    });
    let client = client.map_err(|error| raise(Error::internal("http.load", "cannot make a client").cause(error)))?;
    let counts = Rc::new(Counts::default());
    let work = |_| {
        let (client, url, counts, most) = (client.clone(), options.url.clone(), counts.clone(), options.requests);
        tokio::task::spawn_local(async move {
            while !counts.stop.get() && most.is_none_or(|most| counts.sent.get() < most) {
                counts.sent.set(counts.sent.get() + 1);
                one(&client, &url, &counts).await;
            }
        })
    };
    let workers = (0..options.connections).map(work).collect();
    Ok(Load { counts, begun: Instant::now(), workers: Rc::new(RefCell::new(workers)) })
}

async fn one(client: &reqwest::Client, url: &str, counts: &Counts) {
    let answer = async {
        let reply = client.get(url).send().await?.error_for_status()?;
        reply.text().await
    };
    let answer = answer.await;
    counts.done.set(counts.done.get() + 1);
    let (table, key) = match answer {
        Ok(body) => (&counts.bodies, body.trim().chars().take(200).collect::<String>()),
        Err(error) => {
            counts.failed.set(counts.failed.get() + 1);
            let mut cause: &dyn std::error::Error = &error;
            while let Some(inner) = cause.source() {
                cause = inner;
            }
            (&counts.failures, cause.to_string())
        }
    };
    let mut table = table.borrow_mut();
    if table.len() < MAX_KINDS || table.contains_key(&key) {
        *table.entry(key).or_default() += 1;
    }
}

impl Load {
    async fn finish(
        lua: Lua,
        counts: Rc<Counts>,
        begun: Instant,
        workers: Rc<RefCell<Vec<tokio::task::JoinHandle<()>>>>,
    ) -> mlua::Result<Table> {
        loop {
            let Some(worker) = workers.borrow_mut().pop() else { break };
            let _ = worker.await;
        }
        let seconds = begun.elapsed().as_secs_f64();
        let table = lua.create_table()?;
        table.set("requests", counts.done.get())?;
        table.set("failed", counts.failed.get())?;
        table.set("seconds", seconds)?;
        table.set("per_second", counts.done.get() as f64 / seconds.max(1e-9))?;
        table.set("bodies", lua.create_table_from(counts.bodies.borrow().iter().map(|(k, v)| (k.as_str(), *v)))?)?;
        table
            .set("failures", lua.create_table_from(counts.failures.borrow().iter().map(|(k, v)| (k.as_str(), *v)))?)?;
        Ok(table)
    }
}

impl UserData for Load {
    fn add_methods<M: UserDataMethods<Self>>(methods: &mut M) {
        methods.add_async_method("wait", |lua, load, ()| {
            Load::finish(lua, load.counts.clone(), load.begun, load.workers.clone())
        });
        methods.add_async_method("stop", |lua, load, ()| {
            load.counts.stop.set(true);
            Load::finish(lua, load.counts.clone(), load.begun, load.workers.clone())
        });
    }
}
