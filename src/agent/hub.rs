//! The daemon's side: who is connected, what they are asked, what they tell.

use std::collections::{BTreeMap, HashMap};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use serde::de::DeserializeOwned;
use serde_json::Value;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::{Notify, mpsc, oneshot, watch};

use super::link::{self, Reader};
use super::protocol::{Ask, Frame, Hello, Keeper, Keeps, Welcome};
use super::work::Worker;
use crate::client::works;
use crate::engines::hosts::{ExecAsk, Hosts, ProbeAsk, Probed, ReachAsk, Reached};
use crate::engines::meter::Reading;
use crate::engines::registrator::Changed;
use crate::engines::{ExecResult, Moves, Observed};
use crate::model::id::{NodeId, TaskId};
use crate::model::moves::{ImageMove, ImageMoved};
use crate::model::node::{Agent, ImagePrune, PrunedImages};
use crate::model::objects::{VolumeAsk, VolumeInfo};
use crate::model::stats::Stats;
use crate::model::{Error, Kind, Result};
use crate::network::catalog::{Catalog, Subscription};

/// How many frames may wait before a piece of the catalogue, and how long it waits for its turn.
const BEFORE: usize = 2;
const TURN: Duration = Duration::from_millis(2);
/// How often it is looked whether a host is known by now.
const UNKNOWN: Duration = Duration::from_millis(200);
/// What the clients of one agent may ask at once; each that waits for a change of a key is one.
const CALLS: usize = 10_000;
/// How long an agent has for what takes no time: a table, a status.
pub const QUICK: Duration = Duration::from_secs(2);
/// How long an answer that is waited for may be on its way, over and above what was asked for.
const WAY: Duration = Duration::from_millis(150);
/// How long it has to remove images.
const PRUNE: Duration = Duration::from_secs(600);
/// How long it has to count what its tasks use: a second or two, for some at a time.
const STATS: Duration = Duration::from_secs(30);
/// How long it has for volumes: a driver may ask a storage elsewhere.
const VOLUMES: Duration = Duration::from_secs(60);

type Answers = HashMap<u64, oneshot::Sender<Result<Value>>>;

// An agent's connection.
struct Member {
    connection: u64,
    frames: mpsc::Sender<Frame>,
    waiting: Arc<Mutex<Answers>>,
    version: String,
    daemon: bool,
    measured: Option<Reading>,
    service: Option<String>,
    keeps: Option<Keeps>,
}

#[derive(Default)]
struct State {
    // Those that are to be there, and whether they are part of a daemon.
    known: BTreeMap<NodeId, bool>,
    connected: BTreeMap<NodeId, Member>,
}

/// The hosts of the cluster: nothing for one that is not connected.
pub type ImageHosts = BTreeMap<NodeId, Option<Seat>>;

/// A host that is connected.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Seat {
    /// Whether a daemon acts on it.
    pub daemon: bool,
    /// That it would keep images.
    pub keeps: Option<Keeps>,
}

/// What a daemon that leads tells agents, and answers them.
#[derive(Clone)]
pub struct Served {
    /// Who serves what where.
    pub catalog: Arc<Catalog>,
    /// Answers what agents' clients ask.
    pub calls: Arc<dyn Calls>,
    /// When agents are told first: one that has been started anew does not know all yet, and they do.
    pub from: tokio::time::Instant,
}

/// Answers what agents' clients ask.
#[async_trait]
pub trait Calls: Send + Sync {
    /// `call` as the agent on `node` forwards it.
    async fn call(&self, node: &NodeId, call: Value) -> Result<Value>;
    /// The registrator on `node` has found these; false: that node is not known yet.
    fn containers(&self, node: &NodeId, changed: &Changed) -> bool;
}

impl Served {
    // Until they are taken: what comes next builds on it.
    async fn tell(&self, node: &NodeId, changed: &Changed) {
        while !self.calls.containers(node, changed) {
            tokio::time::sleep(UNKNOWN).await;
        }
    }
}

/// All agents of the cluster, and this daemon's own work on its host.
pub struct Hub {
    this: Weak<Hub>,
    own: NodeId,
    worker: Arc<Worker>,
    state: Mutex<State>,
    next: AtomicU64,
    agents: watch::Sender<Arc<BTreeMap<NodeId, Agent>>>,
    observer: Mutex<Option<mpsc::UnboundedSender<(NodeId, Observed)>>>,
    served: watch::Sender<Option<Served>>,
    image_hosts: watch::Sender<Arc<ImageHosts>>,
    /// Something changed that balancers have to do with: one has come, gone or begun anew.
    pub stirred: Notify,
}

impl Hub {
    /// With nobody but this daemon itself, on the node `own`.
    pub fn new(own: &str, worker: Arc<Worker>) -> Arc<Self> {
        let hub = Arc::new_cyclic(|this| Hub {
            this: this.clone(),
            own: own.into(),
            worker,
            state: Mutex::default(),
            next: AtomicU64::new(1),
            agents: watch::Sender::default(),
            observer: Mutex::default(),
            served: watch::Sender::default(),
            image_hosts: watch::Sender::default(),
            stirred: Notify::new(),
        });
        hub.publish(&hub.state());
        hub
    }

    fn state(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether a node is that of this daemon itself.
    pub fn is_own(&self, node: &NodeId) -> bool {
        *node == self.own
    }

    /// What is done on this daemon's own host.
    pub fn worker(&self) -> &Arc<Worker> {
        &self.worker
    }

    /// Finds out who is to be there, and whether they are part of a daemon. Whoever is not is not listened to any more.
    /// `find` is not called by two at once, so that what is kept is what was found last.
    pub fn set_known(&self, find: impl FnOnce() -> Result<BTreeMap<NodeId, bool>>) -> Result<()> {
        let mut state = self.state();
        let known = find()?;
        state.connected.retain(|node, _| known.contains_key(node));
        state.known = known;
        self.publish(&state);
        self.stirred.notify_one();
        Ok(())
    }

    fn publish(&self, state: &State) {
        let mut agents = BTreeMap::new();
        for (node, daemon) in &state.known {
            agents.insert(node.clone(), Agent { daemon: *daemon, ..Agent::default() });
        }
        for (node, member) in &state.connected {
            let version = Some(member.version.clone());
            let service = member.service.clone();
            agents.insert(node.clone(), Agent { connected: true, daemon: member.daemon, version, service });
        }
        let version = Some(env!("CARGO_PKG_VERSION").to_owned());
        agents.insert(self.own.clone(), Agent { connected: true, daemon: true, version, service: None });
        let mut hosts: ImageHosts = state.known.keys().map(|node| (node.clone(), None)).collect();
        for (node, member) in &state.connected {
            hosts.insert(node.clone(), Some(Seat { daemon: member.daemon, keeps: member.keeps.clone() }));
        }
        hosts.insert(self.own.clone(), Some(Seat { daemon: true, keeps: self.worker.says_keeps() }));
        self.image_hosts.send_if_modified(|now| {
            let changed = **now != hosts;
            *now = Arc::new(hosts);
            changed
        });
        self.agents.send_if_modified(|now| {
            let changed = **now != agents;
            *now = Arc::new(agents);
            changed
        });
    }

    /// Serves the connection of a node's agent, or daemon, to its end. `heard` decides when it has said who it is.
    pub async fn serve(
        self: &Arc<Self>,
        node: NodeId,
        daemon: bool,
        stream: impl AsyncRead + AsyncWrite + Send + 'static,
        welcome: Welcome,
        heard: impl AsyncFnOnce(&Hello) -> Result<()>,
    ) -> Result<()> {
        let (read, write) = tokio::io::split(stream);
        let frames = link::writer(write);
        let mut reader = Reader(read);
        let _ = frames.send(Frame::Welcome(welcome)).await;
        let late = |_| Error::new(Kind::Timeout, "agent", "does not say who it is");
        let first = tokio::time::timeout(link::SILENT, reader.next()).await.map_err(late)??;
        let Frame::Hello(hello) = first else { return Err(Error::invalid("agent", "does not say who it is")) };
        heard(&hello).await?;
        let connection = self.next.fetch_add(1, Ordering::Relaxed);
        let waiting = Arc::<Mutex<Answers>>::default();
        {
            let mut state = self.state();
            if !state.known.contains_key(&node) {
                return Err(Error::new(Kind::Forbidden, "agent", "is not known any more"));
            }
            let member = Member {
                connection,
                frames: frames.clone(),
                waiting: waiting.clone(),
                version: hello.version.clone(),
                daemon,
                measured: None,
                service: hello.service.clone(),
                keeps: hello.registry.clone(),
            };
            state.connected.insert(node.clone(), member);
            // What was told between its welcome and now.
            let keeper = self.worker.registry.borrow().clone();
            keeper.into_iter().for_each(|keeper| _ = frames.try_send(Frame::Registry(keeper)));
            self.publish(&state);
        }
        self.stirred.notify_one();
        // Nothing of it lives on when the connection is given up.
        let mut tasks = tokio::task::JoinSet::new();
        tasks.spawn(tell_catalog(self.served.subscribe(), frames.clone()));
        let (containers, found) = mpsc::unbounded_channel();
        tasks.spawn(take_containers(self.served.subscribe(), node.clone(), found));
        let mut calls: HashMap<u64, tokio::task::AbortHandle> = HashMap::new();
        let ended = loop {
            let frame = match reader.next().await {
                Ok(frame) => frame,
                Err(error) => break error,
            };
            if !self.is_current(&node, connection) {
                break Error::new(Kind::Conflict, "agent", "has connected anew, or is not known any more");
            }
            match frame {
                Frame::Answer { id, result } => {
                    let asked = waiting.lock().unwrap_or_else(PoisonError::into_inner).remove(&id);
                    if let Some(asked) = asked {
                        let _ = asked.send(result);
                    }
                }
                Frame::Seen(observed) => self.tell(&node, observed),
                Frame::Measured { age, measured } => {
                    let at = Instant::now().checked_sub(Duration::from_millis(age));
                    if let Some(member) = self.state().connected.get_mut(&node) {
                        member.measured = at.map(|at| (at, Arc::new(measured)));
                    }
                }
                Frame::Balancer => self.stirred.notify_one(),
                Frame::Call { id, call } => {
                    while tasks.try_join_next().is_some() {}
                    calls.retain(|_, task| !task.is_finished());
                    let (served, node, frames) = (self.served.borrow().clone(), node.clone(), frames.clone());
                    let many = calls.len() >= CALLS;
                    let task = tasks.spawn(async move {
                        let result = match served {
                            _ if many => Err(Error::new(Kind::Exhausted, "agent", format!("{CALLS} calls are open"))),
                            Some(served) => served.calls.call(&node, call).await,
                            None => Err(Error::new(Kind::Unavailable, "daemon", "does not lead yet").retry(true)),
                        };
                        let _ = frames.send(Frame::Reply { id, result }).await;
                    });
                    calls.insert(id, task);
                }
                Frame::Containers(changed) => {
                    let _ = containers.send(changed);
                }
                Frame::Drop { id } => {
                    if let Some(task) = calls.remove(&id) {
                        task.abort();
                    }
                }
                _ => {}
            }
        };
        {
            let mut state = self.state();
            if state.connected.get(&node).is_some_and(|member| member.connection == connection) {
                state.connected.remove(&node);
                self.publish(&state);
            }
        }
        // Whoever waits for an answer is told by the sender's end.
        waiting.lock().unwrap_or_else(PoisonError::into_inner).clear();
        self.stirred.notify_one();
        Err(ended)
    }

    fn is_current(&self, node: &NodeId, connection: u64) -> bool {
        self.state().connected.get(node).is_some_and(|member| member.connection == connection)
    }

    /// Tells what was seen on this daemon's own host, or on another.
    pub fn tell(&self, node: &NodeId, observed: Observed) {
        if let Some(observer) = self.observer.lock().unwrap_or_else(PoisonError::into_inner).as_ref() {
            let _ = observer.send((node.clone(), observed));
        }
    }

    /// Tells agents of the catalogue, and answers what their clients ask, from now on.
    pub fn serve_calls(&self, served: Served) {
        self.served.send_replace(Some(served));
    }

    /// Takes in what the registrator of this daemon's own host finds. Never ends.
    pub async fn register_own(&self) {
        let mut served = self.served.subscribe();
        let Ok(Some(served)) = served.wait_for(Option::is_some).await.map(|served| served.clone()) else { return };
        let mut found = self.worker.containers();
        loop {
            served.tell(&self.own, &found.next().await).await;
        }
    }

    /// The hosts, and which of them would keep images, as they change.
    pub fn image_hosts(&self) -> watch::Receiver<Arc<ImageHosts>> {
        self.image_hosts.subscribe()
    }

    /// Tells all hosts where the cluster's images are kept, and those who come what was told last.
    pub fn tell_registry(&self, keeper: &Keeper) {
        let state = self.state();
        self.worker.told_registry(keeper.clone());
        for member in state.connected.values() {
            // One that takes nothing now hears it when it connects anew.
            let _ = member.frames.try_send(Frame::Registry(keeper.clone()));
        }
    }

    /// Tells all agents where daemons are.
    pub fn tell_daemons(&self, daemons: &[String]) {
        for member in self.state().connected.values() {
            // One that takes nothing now hears it when it connects anew.
            let _ = member.frames.try_send(Frame::Daemons(daemons.to_vec()));
        }
    }

    /// Asks whoever acts on `node`.
    pub async fn ask<T: DeserializeOwned>(&self, node: &str, ask: Ask, patience: Duration) -> Result<T> {
        let subject = || format!("agent on node \"{node:.70}\"");
        let answer = if *self.own == *node {
            tokio::time::timeout(patience, self.worker.serve(ask)).await
        } else {
            let text = serde_json::to_value(&ask).map_err(|error| Error::internal(subject(), error.to_string()))?;
            let id = self.next.fetch_add(1, Ordering::Relaxed);
            let (sender, receiver) = oneshot::channel();
            let (frames, waiting) = {
                let state = self.state();
                let member = state.connected.get(node).ok_or_else(|| away(subject()))?;
                member.waiting.lock().unwrap_or_else(PoisonError::into_inner).insert(id, sender);
                (member.frames.clone(), member.waiting.clone())
            };
            let exchange = async {
                frames.send(Frame::Ask { id, ask: text }).await.map_err(|_| away(subject()))?;
                receiver.await.map_err(|_| away(subject()))?
            };
            let answer = tokio::time::timeout(patience, exchange).await;
            waiting.lock().unwrap_or_else(PoisonError::into_inner).remove(&id);
            answer
        };
        let late = |_| Error::new(Kind::Unavailable, subject(), format!("no answer within {} s", patience.as_secs()));
        let value = answer.map_err(late)??;
        serde_json::from_value(value).map_err(|error| {
            Error::new(Kind::Unsupported, subject(), "answers in words of another version").cause(error)
        })
    }
}

// What a host's registrator finds, from the moment that there is somebody to tell.
async fn take_containers(
    mut served: watch::Receiver<Option<Served>>,
    node: NodeId,
    mut found: mpsc::UnboundedReceiver<Changed>,
) {
    let Ok(Some(served)) = served.wait_for(Option::is_some).await.map(|served| served.clone()) else { return };
    while let Some(changed) = found.recv().await {
        served.tell(&node, &changed).await;
    }
}

// The catalogue, from the moment that there is one.
async fn tell_catalog(mut served: watch::Receiver<Option<Served>>, frames: mpsc::Sender<Frame>) {
    let Ok(Some(served)) = served.wait_for(Option::is_some).await.map(|served| served.clone()) else { return };
    tokio::time::sleep_until(served.from).await;
    let mut subscription = Subscription::new(served.catalog);
    while let Some(portion) = subscription.next().await {
        for piece in portion.pieces() {
            // Behind all else that is to be said: a host is asked in between, and changes are put together meanwhile.
            while frames.max_capacity() - frames.capacity() > BEFORE {
                tokio::time::sleep(TURN).await;
            }
            if frames.send(Frame::Catalog(piece)).await.is_err() {
                return;
            }
        }
    }
}

fn away(subject: String) -> Error {
    Error::new(Kind::Unavailable, subject, "is not connected").retry(true)
}

#[async_trait]
impl Hosts for Hub {
    fn agents(&self) -> watch::Receiver<Arc<BTreeMap<NodeId, Agent>>> {
        self.agents.subscribe()
    }

    fn observe(&self) -> mpsc::UnboundedReceiver<(NodeId, Observed)> {
        let (sender, receiver) = mpsc::unbounded_channel();
        *self.observer.lock().unwrap_or_else(PoisonError::into_inner) = Some(sender);
        receiver
    }

    async fn exec(&self, node: &str, ask: ExecAsk) -> Result<ExecResult> {
        // The agent counts the time of the command. What is added is for the way, and longer than a host that is cut off is
        // listened to: its silence says nothing of the replica.
        let patience = ask.timeout.std() + link::SILENT + QUICK;
        self.ask(node, Ask::Exec(ask), patience).await
    }

    async fn probe(&self, node: &str, ask: ProbeAsk) -> Result<Probed> {
        let patience = ask.timeout.std() + link::SILENT + QUICK;
        self.ask(node, Ask::Probe(ask), patience).await
    }

    async fn reach(&self, node: &str, ask: ReachAsk) -> Result<Reached> {
        // Whoever is not heard in time is no witness: there are others.
        self.ask(node, Ask::Reach(ask), ask.timeout.std() + WAY).await
    }

    fn measured(&self) -> BTreeMap<NodeId, Reading> {
        let state = self.state();
        let others = state.connected.iter().filter_map(|(node, member)| Some((node.clone(), member.measured.clone()?)));
        others.chain(self.worker.meter.last().map(|reading| (self.own.clone(), reading))).collect()
    }

    async fn stats(&self, node: &str, tasks: Vec<TaskId>) -> Result<BTreeMap<TaskId, Stats>> {
        self.ask(node, Ask::Stats(tasks), STATS).await
    }

    async fn volumes(&self, node: &str, ask: VolumeAsk) -> Result<Vec<VolumeInfo>> {
        self.ask(node, Ask::Volumes(ask), VOLUMES).await
    }

    async fn prune_images(&self, node: &str, ask: ImagePrune) -> Result<PrunedImages> {
        self.ask(node, Ask::PruneImages(ask), PRUNE).await
    }

    async fn move_image(&self, node: &str, ask: ImageMove) -> Result<Moves> {
        let id: u64 = self.ask(node, Ask::MoveImage(ask), QUICK).await?;
        let (hub, node) = (self.this.clone(), NodeId::from(node));
        Ok(works::steps(
            id,
            move |ask| {
                let (hub, node) = (hub.clone(), node.clone());
                Box::pin(async move {
                    let hub = hub.upgrade().ok_or_else(|| away(format!("agent on node \"{node:.70}\"")))?;
                    hub.ask(&node, Ask::Work(ask), QUICK + works::STEP).await
                })
            },
            |step: &ImageMoved| step.done,
        ))
    }
}
