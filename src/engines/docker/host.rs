//! One Docker Engine: connected, listened to, connected again; what happens there becomes what is seen of tasks.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use bollard::Docker;
use bollard::models::{EventMessage, SystemInfo};
use bollard::query_parameters::{EventsOptions, ListContainersOptions};
use futures_util::StreamExt;
use tokio::sync::watch;

use super::address::Address;
use super::container::{self, Reach};
use super::tasks::Tasks;
use super::{networks, spec, trouble};
use crate::engines::{Observed, ObservedState};
use crate::model::clock::Timestamp;
use crate::model::id::TaskId;
use crate::model::node::{Node, NodeState};
use crate::model::objects::NetworkSpec;
use crate::model::task::Exit;
use crate::model::units::{Bytes, Cpu};
use crate::model::{Error, Kind, Result};

/// How often a connected engine is asked whether it is there, and how long it has to answer.
const PING: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(2));
/// An engine that did not answer for this long is down: nothing is heard of its host, or its host refuses, as while dockerd
/// is restarted.
const DOWN: (Duration, Duration) = (Duration::from_secs(4), Duration::from_secs(10));
/// How long one container may take to be looked at, and how many are looked at together.
const LOOK: (Duration, usize) = (Duration::from_secs(5), 16);
/// How long an attempt to connect may take: while the engine may be back in a moment, and once it is known to be down.
const CONNECT: (Duration, Duration) = (Duration::from_secs(2), Duration::from_secs(15));
/// How often an engine that does not answer is asked about a container; after that the next stock-taking tells.
const LOOKS: usize = 300;
/// The wait before the next attempt to connect.
const AGAIN: Duration = Duration::from_millis(250);

/// A Docker Engine as it is at the moment.
#[derive(Clone)]
pub struct Connection {
    /// The client, with the API's version agreed upon.
    pub docker: Docker,
    /// How its containers are reached.
    pub direct: bool,
    /// The engine's own log driver.
    pub log_driver: Option<String>,
}

/// A Docker Engine, there or not.
pub struct Host {
    /// Where it is.
    pub address: Address,
    /// The cluster whose containers are ours.
    pub cluster: String,
    connection: Mutex<Option<Connection>>,
    node: watch::Sender<Node>,
    tasks: Arc<Tasks>,
    // Networks that are known to be there, and the turn to make one.
    networks: Mutex<BTreeSet<String>>,
    making: tokio::sync::Mutex<()>,
    // Images that are being pulled: one pull at a time for each.
    pulls: Mutex<HashMap<String, Arc<tokio::sync::Mutex<()>>>>,
}

impl Host {
    /// One that is not connected yet.
    pub fn new(address: Address, cluster: &str, tasks: Arc<Tasks>) -> Arc<Self> {
        let mut node = Node::new(&address.name, &address.name);
        node.state = NodeState::Down;
        node.address = address.ip();
        Arc::new(Host {
            address,
            cluster: cluster.to_owned(),
            connection: Mutex::new(None),
            node: watch::Sender::new(node),
            tasks,
            networks: Mutex::default(),
            making: tokio::sync::Mutex::default(),
            pulls: Mutex::default(),
        })
    }

    /// The node, now and as it changes.
    pub fn node(&self) -> watch::Receiver<Node> {
        self.node.subscribe()
    }

    /// The engine, if it is there.
    pub fn connected(&self) -> Result<Connection> {
        let connection = self.connection.lock().unwrap_or_else(PoisonError::into_inner).clone();
        connection.ok_or_else(|| {
            Error::new(
                Kind::Unavailable,
                format!("node \"{}\"", self.address.name),
                "its Docker Engine does not answer",
            )
            .retry(true)
        })
    }

    /// Waits until it is connected, and all that it has is known; each for so long.
    pub async fn there(&self, (connects, tells): (Duration, Duration)) {
        let mut node = self.node();
        let ready = |node: &Node| node.state == NodeState::Ready;
        if tokio::time::timeout(connects, node.wait_for(ready)).await.is_err() && self.connected().is_ok() {
            let _ = tokio::time::timeout(tells, node.wait_for(ready)).await;
        }
    }

    /// How its containers' ports are reached.
    pub fn reach(&self, connection: &Connection) -> Reach {
        Reach { direct: connection.direct, host: self.address.host() }
    }

    /// The turn to pull an image here.
    pub fn pull_turn(&self, image: &str) -> Arc<tokio::sync::Mutex<()>> {
        let mut pulls = self.pulls.lock().unwrap_or_else(PoisonError::into_inner);
        pulls.retain(|_, turn| Arc::strong_count(turn) > 1);
        pulls.entry(image.to_owned()).or_default().clone()
    }

    /// Makes a network that is not there, as a bridge of this host.
    pub async fn ensure_network(&self, docker: &Docker, name: &str) -> Result<()> {
        let known = || self.networks.lock().unwrap_or_else(PoisonError::into_inner);
        if known().contains(name) || matches!(name, "bridge" | "host" | "none") {
            return Ok(());
        }
        let _turn = self.making.lock().await;
        if known().contains(name) {
            return Ok(());
        }
        let failed = |act: &str, error| trouble::error(format!("network \"{name}\""), act, &error);
        match docker.inspect_network(name, None).await {
            Ok(_) => {}
            Err(error) if trouble::is_status(&error, 404) => {
                let network = NetworkSpec { name: name.to_owned(), ..NetworkSpec::default() };
                let request = networks::request(&network, "bridge", &[], &self.cluster);
                docker.create_network(request).await.map_err(|error| failed("make it", error))?;
            }
            Err(error) => return Err(failed("look it up", error)),
        }
        known().insert(name.to_owned());
        Ok(())
    }

    /// Forgets what networks there are: one was removed.
    pub fn forget_networks(&self) {
        self.networks.lock().unwrap_or_else(PoisonError::into_inner).clear();
    }

    /// Connects, listens, and begins again when the connection is lost. Never ends.
    pub async fn follow(self: Arc<Self>) {
        let mut answered = Instant::now();
        loop {
            let is_down = self.node.borrow().state == NodeState::Down;
            match self.connect(if is_down { CONNECT.1 } else { CONNECT.0 }).await {
                Ok((connection, since)) => {
                    answered = Instant::now();
                    if let Err(error) = self.listen(&connection, since, &mut answered).await {
                        tracing::warn!(node = self.address.name, %error, "the connection to a Docker Engine is lost");
                    }
                }
                Err(error) => {
                    let cause = error.cause.as_deref().unwrap_or_default();
                    let refused = ["refused", "No such file"].iter().any(|sign| cause.contains(sign));
                    if answered.elapsed() >= if refused { DOWN.1 } else { DOWN.0 } && !is_down {
                        tracing::warn!(node = self.address.name, %error, "a Docker Engine does not answer");
                        self.node.send_modify(|node| node.state = NodeState::Down);
                    }
                }
            }
            if self.node.borrow().state == NodeState::Down {
                *self.connection.lock().unwrap_or_else(PoisonError::into_inner) = None;
            }
            tokio::time::sleep(AGAIN).await;
        }
    }

    // The engine's own time at the beginning is where its events are read from.
    async fn connect(&self, patience: Duration) -> Result<(Connection, Option<String>)> {
        let subject = || format!("Docker Engine {}", self.address.url);
        let failed = |error| trouble::error(subject(), "connect to it", &error);
        let agree = async {
            let client = self.address.client().await?;
            let docker = client.negotiate_version().await.map_err(failed)?;
            let info = docker.info().await.map_err(failed)?;
            let direct = self.is_direct(&docker, &info).await;
            Ok((docker, info, direct))
        };
        let late = |_| Error::new(Kind::Timeout, subject(), "does not answer").retry(true);
        let (docker, info, direct) = tokio::time::timeout(patience, agree).await.map_err(late)??;
        let since = container::since(&info);
        self.describe(&info);
        Ok((Connection { docker, direct, log_driver: info.logging_driver }, since))
    }

    // Containers are reached by their own addresses where the engine's bridge is an interface of this very machine: not
    // where it runs in a virtual machine (Docker Desktop) or in a namespace of its own (rootless).
    async fn is_direct(&self, docker: &Docker, info: &SystemInfo) -> bool {
        let desktop = info.operating_system.as_deref().is_some_and(|system| system.contains("Desktop"));
        let rootless = info.security_options.iter().flatten().any(|option| option.contains("rootless"));
        if !self.address.is_local() || desktop || rootless {
            return false;
        }
        let Ok(bridge) = docker.inspect_network("bridge", None).await else { return false };
        let options = bridge.options.unwrap_or_default();
        let name = options.get("com.docker.network.bridge.name").map_or("docker0", String::as_str);
        nix::net::if_::if_nametoindex(name).is_ok()
    }

    fn describe(&self, info: &SystemInfo) {
        let labels = info.labels.iter().flatten().filter_map(|label| {
            let (key, value) = label.split_once('=')?;
            Some((key.to_owned(), value.to_owned()))
        });
        let labels: BTreeMap<String, String> = labels.collect();
        self.node.send_if_modified(|node| {
            let mut now = node.clone();
            now.hostname = if self.address.is_local() { info.name.clone() } else { None }.unwrap_or(now.hostname);
            now.role = crate::model::node::Role::Manager;
            now.os = info.os_type.clone().unwrap_or(now.os);
            now.arch = info.architecture.clone().unwrap_or(now.arch);
            now.cpu = Cpu(u32::try_from(info.ncpu.unwrap_or_default()).unwrap_or_default() * 1000);
            now.memory = Bytes(u64::try_from(info.mem_total.unwrap_or_default()).unwrap_or_default());
            now.engine_labels = labels;
            let changed = now != *node;
            *node = now;
            changed
        });
    }

    async fn listen(
        self: &Arc<Self>,
        connection: &Connection,
        since: Option<String>,
        answered: &mut Instant,
    ) -> Result<()> {
        let docker = &connection.docker;
        let lost = |error| trouble::error(format!("Docker Engine {}", self.address.url), "follow its events", &error);
        // Before anything is told: what is found here may have to be ended here.
        *self.connection.lock().unwrap_or_else(PoisonError::into_inner) = Some(connection.clone());
        self.take_stock(connection).await?;
        self.node.send_if_modified(|node| std::mem::replace(&mut node.state, NodeState::Ready) != NodeState::Ready);
        tracing::info!(node = self.address.name, url = self.address.url, "connected to a Docker Engine");
        let filters = HashMap::from([
            ("type".to_owned(), vec!["container".to_owned(), "network".to_owned()]),
            ("event".to_owned(), ["start", "die", "oom", "destroy", "health_status"].map(str::to_owned).to_vec()),
        ]);
        let options = EventsOptions { since, filters: Some(filters), ..EventsOptions::default() };
        let mut events = Box::pin(docker.events(Some(options)));
        let mut ping = tokio::time::interval(PING.0);
        loop {
            tokio::select! {
                biased;
                event = events.next() => match event {
                    Some(Ok(event)) => self.take_in(connection, event),
                    Some(Err(error)) => return Err(lost(error)),
                    None => return Err(Error::new(Kind::Unavailable, "event stream", "has ended")),
                },
                _ = ping.tick() => match tokio::time::timeout(PING.1, docker.ping()).await {
                    Ok(Ok(_)) => *answered = Instant::now(),
                    Ok(Err(error)) => return Err(lost(error)),
                    Err(_) => return Err(Error::new(Kind::Timeout, format!("Docker Engine {}", self.address.url), "does not answer")),
                },
            }
        }
    }

    // All our containers of this host, as they are now: what an event stream that was lost did not tell.
    async fn take_stock(self: &Arc<Self>, connection: &Connection) -> Result<()> {
        let docker = &connection.docker;
        let failed =
            |error| trouble::error(format!("Docker Engine {}", self.address.url), "list its containers", &error);
        let before = self.tasks.begin_stock(&self.address.name);
        let filters = HashMap::from([("label".to_owned(), vec![format!("{}={}", spec::CLUSTER, self.cluster)])]);
        let options = ListContainersOptions { all: true, filters: Some(filters), ..ListContainersOptions::default() };
        let mut present = before;
        let mut found = Vec::new();
        for summary in docker.list_containers(Some(options)).await.map_err(failed)? {
            let (Some(id), Some(labels)) = (summary.id, summary.labels) else { continue };
            let Some(task) = spec::task_of(&labels, &self.cluster) else { continue };
            self.tasks.found(&task, &self.address.name, &id);
            present.insert(task);
            found.push((task, id));
        }
        let mut looks = futures_util::stream::iter(found)
            .map(|(task, id)| async move { (self.look_at(connection, &task, &id).await, task, id) })
            .buffer_unordered(LOOK.1);
        let begun = Instant::now();
        let mut unknown = Vec::new();
        while let Some((seen, task, id)) = looks.next().await {
            let (host, connection) = (self.clone(), connection.clone());
            match seen {
                // Made by a daemon that died before it could start it.
                Some(ObservedState::Starting) if self.tasks.begin_start(&task, &self.address.name) => {
                    tokio::spawn(async move {
                        host.start(&connection, &task, &id).await;
                        host.tasks.end_start(&task);
                    });
                }
                // One that hangs holds up no others; when as many as are asked together do, it is not the containers.
                None if self.tasks.is_open(&task) => {
                    unknown.push((task, id));
                    if unknown.len() >= LOOK.1 && begun.elapsed() >= LOOK.0 {
                        return Err(Error::new(
                            Kind::Timeout,
                            format!("Docker Engine {}", self.address.url),
                            "does not answer",
                        ));
                    }
                }
                _ => {}
            }
        }
        for (task, id) in unknown {
            let host = self.clone();
            tokio::spawn(async move { host.look_until_known(&task, &id).await });
        }
        self.tasks.end_stock(&self.address.name, present);
        Ok(())
    }

    // Inspects a container and reports what it is.
    async fn look_at(&self, connection: &Connection, task: &TaskId, id: &str) -> Option<ObservedState> {
        match tokio::time::timeout(LOOK.0, connection.docker.inspect_container(id, None)).await {
            Ok(Ok(inspected)) => {
                let (state, warnings) = container::state(&inspected, &self.reach(connection));
                self.tasks.report(Observed { task: *task, state: state.clone(), warnings });
                return Some(state);
            }
            Ok(Err(error)) if trouble::is_status(&error, 404) => self.tasks.report(gone(task)),
            Ok(Err(error)) => tracing::warn!(node = self.address.name, %error, "a container could not be inspected"),
            Err(_) => tracing::warn!(node = self.address.name, %task, "the Docker Engine does not tell of a container"),
        }
        None
    }

    /// Looks until the engine answers: what happens in between may have been told to nobody. What was seen, if anything.
    pub async fn look_until_known(&self, task: &TaskId, id: &str) -> Option<ObservedState> {
        for _ in 0..LOOKS {
            if let Ok(connection) = self.connected() {
                let seen = self.look_at(&connection, task, id).await;
                if seen.is_some() || !self.tasks.is_open(task) {
                    return seen;
                }
            }
            tokio::time::sleep(PING.0).await;
        }
        None
    }

    /// Starts a container that was made, and reports what became of it.
    pub async fn start(&self, connection: &Connection, task: &TaskId, id: &str) {
        match connection.docker.start_container(id, None).await {
            Ok(()) => drop(self.look_at(connection, task, id).await),
            // Whether it was started is found by looking.
            Err(error) if trouble::error("", "", &error).retry => drop(self.look_until_known(task, id).await),
            Err(error) => {
                // A network that was removed by hand is made again with the next task.
                self.forget_networks();
                let state = ObservedState::Rejected { reason: trouble::said(&error) };
                self.tasks.report(Observed { task: *task, state, warnings: Vec::new() });
            }
        }
    }

    fn take_in(self: &Arc<Self>, connection: &Connection, event: EventMessage) {
        let Some(actor) = event.actor else { return };
        let (Some(action), Some(id)) = (event.action, actor.id) else { return };
        if event.typ == Some(bollard::models::EventMessageTypeEnum::NETWORK) {
            return self.forget_networks();
        }
        let attributes = actor.attributes.unwrap_or_default();
        let Some(task) = spec::task_of(&attributes, &self.cluster) else { return };
        // What is removed may be forgotten by now, and is not to be known again.
        if action != "destroy" {
            self.tasks.found(&task, &self.address.name, &id);
        }
        match action.split(':').next().unwrap_or_default() {
            "die" => {
                let code = attributes.get("exitCode").and_then(|code| code.parse().ok());
                let millis = event.time_nano.and_then(|nanos| u64::try_from(nanos / 1_000_000).ok());
                let state = ObservedState::Ended {
                    exit: code.map_or(Exit::Unknown, Exit::Code),
                    finished_at: Timestamp(millis.unwrap_or_default()),
                };
                self.tasks.report(Observed { task, state, warnings: Vec::new() });
            }
            "oom" => self.tasks.warn(&task, container::OUT_OF_MEMORY),
            "destroy" => self.tasks.report(gone(&task)),
            // Whatever else it is, an inspection tells how things stand; others need not wait for it.
            _ => {
                let (host, connection) = (self.clone(), connection.clone());
                tokio::spawn(async move {
                    if host.look_at(&connection, &task, &id).await.is_none() {
                        host.look_until_known(&task, &id).await;
                    }
                });
            }
        }
    }
}

// Removed by somebody else; how it ended is not known.
fn gone(task: &TaskId) -> Observed {
    let state = ObservedState::Ended { exit: Exit::Unknown, finished_at: Timestamp(0) };
    Observed { task: *task, state, warnings: vec!["its container was removed by somebody else".into()] }
}
