//! A host of a Swarm serves the catalogue as whoever leads tells it, and leads itself from some moment on.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Instant;

use async_trait::async_trait;
use serde::Deserialize;
use serde_json::{Value, json};

use super::audit::AuditFile;
use super::discovery::{DiscoveryOptions, Leads, hold_indexes, own_of};
use super::images::keeper::Leading;
use super::images::up::Told;
use crate::agent::hub::{Calls, Hub, Served};
use crate::agent::work::Worker;
use crate::api::auth;
use crate::api::consul::{self, Consul, Granted, Here, Own, Source};
use crate::engines::docker::Address;
use crate::engines::hosts::Hosts;
use crate::engines::registrator::Changed;
use crate::model::catalog::CheckStatus;
use crate::model::clock::SystemClock;
use crate::model::id::{NodeId, uuid_of};
use crate::model::{Error, Kind, Result};
use crate::network::Sockets;
use crate::registry::cache::Logins;
use crate::runtime::Runtime;
use crate::runtime::catalog::{Registry, host_checks};
use crate::runtime::images::ImageHappened;
use crate::runtime::lent::Lent;

/// How long hosts have to report after a daemon was started anew and leads, before others are told what it knows.
const HOLD: std::time::Duration = std::time::Duration::from_secs(3);
/// How long a host goes by what it was told of a token, and of how many it keeps that.
const GRANTED: std::time::Duration = std::time::Duration::from_secs(30);
const MOST_GRANTED: usize = 4096;
/// A host of a Swarm, which follows whoever leads, or leads itself from some moment on.
pub struct Following {
    worker: Arc<Worker>,
    own: OnceLock<(Arc<Own>, Leads)>,
    runtime: OnceLock<(Arc<Runtime>, Leads)>,
    // Of its node, in the catalogue.
    id: String,
    runs_commands: bool,
    granted: Mutex<HashMap<String, (Instant, Option<Granted>)>>,
}

impl Following {
    /// Follows what the worker is told, and runs the checks of this host: the one with the identity `node`.
    pub fn new(worker: Arc<Worker>, node: &str, options: &DiscoveryOptions) -> Arc<Self> {
        let catalog = worker.catalog.clone();
        let runs_commands = options.runs_commands;
        let following = Arc::new(Following {
            worker,
            own: OnceLock::new(),
            runtime: OnceLock::new(),
            id: uuid_of(node),
            runs_commands,
            granted: Mutex::default(),
        });
        host_checks::spawn(following.clone(), catalog, Arc::new(Sockets), Arc::new(SystemClock::start()));
        following
    }

    // Without an answer: what does not get there is said again.
    fn say(&self, word: Value) {
        let worker = self.worker.clone();
        tokio::spawn(async move {
            if let Err(error) = worker.up.call(word).await {
                tracing::debug!(%error, "what a check found is not told; it is told again");
            }
        });
    }

    /// From now on it leads: `runtime` is the cluster. Agents are told, and their clients answered, by `hub`.
    pub async fn lead(
        &self,
        options: &DiscoveryOptions,
        runtime: &Arc<Runtime>,
        audit: &Arc<AuditFile>,
        hub: &Arc<Hub>,
        leads: Leads,
    ) -> Result<()> {
        // Whatever this host serves, others do.
        hold_indexes(runtime).await?;
        let (own, registry) = (own_of(options, runtime, audit), runtime.registry().clone());
        let _ = self.own.set((own.clone(), leads.clone()));
        let _ = self.runtime.set((runtime.clone(), leads.clone()));
        let catalog = runtime.registry().catalog.clone();
        let consul = Consul {
            catalog: catalog.clone(),
            here: Here::Name(runtime.registry().host.clone()),
            datacenter: options.datacenter.clone(),
            clock: Arc::new(SystemClock::start()),
            source: Arc::new(Led { own, leads }),
            // Whoever has forwarded it has looked.
            runs_commands: true,
            policy: options.policy,
        };
        let _ = registry.docker.set(self.worker.docker().clone());
        tokio::spawn(cover(hub.clone(), registry.clone()));
        let hold = if hub.worker().followed_lately() { std::time::Duration::ZERO } else { HOLD };
        let from = tokio::time::Instant::now() + hold;
        let (hub_of, runtime) = (hub.clone(), runtime.clone());
        let calls = Arc::new(Answers { consul: Arc::new(consul), registry, hub: hub_of, runtime });
        hub.serve_calls(Served { from, catalog, calls });
        Ok(())
    }
}

#[async_trait]
impl Source for Arc<Following> {
    fn own(&self) -> Option<Arc<Own>> {
        // One that was cut off from the others may not lead any more, and not know: it renews nothing, and tells of no lock.
        self.own.get().filter(|(_, leads)| leads()).map(|(own, _)| own.clone())
    }

    async fn forward(&self, call: Value) -> Result<Value> {
        let mut answer = self.worker.up.call(json!({ "consul": call })).await?;
        // Whoever has changed something here finds it here.
        self.worker.catch_up(answer["at"].as_u64().unwrap_or_default()).await;
        Ok(answer["reply"].take())
    }

    // Kept for a while, and for as long as nobody leads: who could do something can do it then.
    async fn granted(&self, hash: &str) -> Result<Option<Granted>> {
        if let Some(own) = self.own() {
            return own.tokens.granted(hash);
        }
        let known = || self.granted.lock().unwrap_or_else(PoisonError::into_inner);
        let before = known().get(hash).cloned();
        if let Some((at, granted)) = &before
            && at.elapsed() < GRANTED
        {
            return Ok(granted.clone());
        }
        match self.worker.up.call(json!({ "token": hash })).await {
            Ok(answer) => {
                let granted: Option<Granted> = serde_json::from_value(answer).map_err(|error| {
                    Error::new(Kind::Unsupported, "daemon", "answers in words of another version").cause(error)
                })?;
                let mut known = known();
                // Those that nobody has ever made can be made up without end.
                if granted.is_some() || before.is_some() || known.len() < MOST_GRANTED {
                    known.insert(hash.to_owned(), (Instant::now(), granted.clone()));
                } else if known.len() >= MOST_GRANTED {
                    known.retain(|_, (_, granted)| granted.is_some());
                }
                Ok(granted)
            }
            Err(error) if error.kind == Kind::Unavailable => before.map(|(_, granted)| granted).ok_or(error),
            Err(error) => Err(error),
        }
    }
}

// What an agent asks whoever leads.
#[derive(Deserialize)]
#[serde(rename_all = "snake_case")]
enum Asked {
    /// What a client of Consul's API has asked there.
    Consul(Value),
    /// How a check of its host is.
    Found { check: String, status: CheckStatus, output: String },
    /// That an instance of its host was critical for too long.
    Overdue { instance: String },
    /// What the token of this hash allows.
    Token(String),
    /// Whose it is: the host with the image registry asks.
    Principal(String),
    /// What another registry is told: the same asks.
    Login(String),
    /// What has happened to an image there.
    Image(ImageHappened),
}

impl host_checks::Host for Following {
    fn name(&self) -> Option<String> {
        self.worker.catalog.read(|state| state.node_by_id(&self.id).map(|entry| entry.node.name.clone()))
    }

    fn leads(&self) -> bool {
        self.own.get().is_some()
    }

    fn runs_commands(&self) -> bool {
        self.runs_commands
    }

    fn docker(&self) -> Option<Address> {
        Some(self.worker.docker().clone())
    }

    fn found(&self, id: &str, status: CheckStatus, output: &str) {
        self.say(json!({ "found": { "check": id, "status": status, "output": output } }));
    }

    fn overdue(&self, instance: &str) {
        self.say(json!({ "overdue": { "instance": instance } }));
    }
}

impl Leading for Following {
    fn logins(&self) -> Option<Arc<dyn Logins>> {
        let led = self.runtime.get().filter(|(_, leads)| leads());
        led.map(|(runtime, _)| runtime.known_logins())
    }

    fn tell(&self, happened: &ImageHappened) -> bool {
        let led = self.runtime.get().filter(|(_, leads)| leads());
        led.iter().for_each(|(runtime, _)| runtime.tell_image(happened.clone()));
        led.is_some()
    }

    fn lent(&self) -> Option<Arc<Lent>> {
        let led = self.runtime.get().filter(|(_, leads)| leads());
        led.map(|(runtime, _)| runtime.lent().clone())
    }
}

// Which hosts' own checks are run by their agents.
async fn cover(hub: Arc<Hub>, registry: Arc<Registry>) {
    let mut agents = hub.agents();
    loop {
        let ids: Vec<String> = {
            let agents = agents.borrow_and_update();
            let others = agents.iter().filter(|(node, agent)| agent.connected && !hub.is_own(node));
            others.map(|(node, _)| uuid_of(node)).collect()
        };
        let names = registry.catalog.read(|state| {
            let names = ids.iter().filter_map(|id| state.node_by_id(id));
            names.map(|entry| entry.node.name.clone()).collect::<Vec<_>>()
        });
        registry.set_covered(names);
        if agents.changed().await.is_err() {
            return;
        }
    }
}

// The one that leads, for as long as it does.
struct Led {
    own: Arc<Own>,
    leads: Leads,
}

#[async_trait]
impl Source for Led {
    fn own(&self) -> Option<Arc<Own>> {
        (self.leads)().then(|| self.own.clone())
    }

    async fn forward(&self, _: Value) -> Result<Value> {
        Err(Error::new(Kind::Unavailable, "cluster", "No cluster leader").retry(true))
    }

    async fn granted(&self, hash: &str) -> Result<Option<Granted>> {
        self.own.tokens.granted(hash)
    }
}

fn answered(answer: impl serde::Serialize) -> Result<Value> {
    serde_json::to_value(answer).map_err(|error| Error::internal("answer", error.to_string()))
}

// What agents' clients ask.
struct Answers {
    consul: Arc<Consul>,
    registry: Arc<Registry>,
    hub: Arc<Hub>,
    runtime: Arc<Runtime>,
}

impl Answers {
    // Whether that is the host with the cluster's images.
    fn check_keeper(&self, node: &NodeId) -> Result<()> {
        let keeper = self.hub.worker().registry.borrow().clone();
        match keeper {
            Some(keeper) if keeper.node == *node => Ok(()),
            // One that leads since a moment ago may not know yet.
            _ => {
                let why = "is not on the host that keeps the cluster's images, as far as is known here";
                Err(Error::new(Kind::Unavailable, "agent", why).retry(true))
            }
        }
    }

    fn host(&self, node: &NodeId) -> Result<String> {
        let id = uuid_of(node);
        let host = self.consul.catalog.read(|state| state.node_by_id(&id).map(|entry| entry.node.name.clone()));
        host.ok_or_else(|| Error::new(Kind::Unavailable, "agent's node", "is not known yet").retry(true))
    }
}

#[async_trait]
impl Calls for Answers {
    async fn call(&self, node: &NodeId, call: Value) -> Result<Value> {
        let host = self.host(node)?;
        let asked: Asked = serde_json::from_value(call)
            .map_err(|error| Error::new(Kind::Unsupported, "agent", "asks in words of another version").cause(error))?;
        match asked {
            Asked::Consul(call) => {
                let changes = call["method"] != "GET"
                    && ["agent", "catalog", "query"].iter().any(|word| call["path"][0] == *word);
                let reply = consul::answer_for(&self.consul, host, call).await?;
                let at = if changes { self.consul.catalog.read(|state| state.index) } else { 0 };
                Ok(json!({ "reply": reply, "at": at }))
            }
            Asked::Found { check, status, output } => {
                self.registry.set_status(&host, &check, status, &output).map(|()| Value::Null)
            }
            Asked::Overdue { instance } => {
                tracing::info!(host, instance, "was critical for too long, and is not registered any more");
                self.registry.deregister(&host, &instance).await.map(|()| Value::Null)
            }
            Asked::Token(hash) => {
                let granted = self.consul.source.granted(&hash).await?;
                answered(granted)
            }
            Asked::Principal(hash) => {
                self.check_keeper(node)?;
                match auth::token(&hash, &**self.runtime.store()) {
                    Ok(principal) => answered(Some(principal)),
                    Err(error) if error.kind == Kind::Unauthenticated => answered(self.runtime.lent().principal(&hash)),
                    Err(error) => Err(error),
                }
            }
            Asked::Login(registry) => {
                self.check_keeper(node)?;
                let login = self.runtime.known_logins().at(&registry).await?;
                answered(login.map(|login| Told { username: login.username, password: login.password }))
            }
            Asked::Image(happened) => {
                self.check_keeper(node)?;
                self.runtime.tell_image(happened);
                Ok(Value::Null)
            }
        }
    }

    fn containers(&self, node: &NodeId, changed: &Changed) -> bool {
        self.host(node).is_ok_and(|host| self.registry.take_containers(&host, changed))
    }
}
