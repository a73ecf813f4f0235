//! Floor 5, runtime: holds the world, writes decisions down and carries them out. Implements `trait Cluster` in
//! process.
//!
//! One thread, the conductor, owns the world. All that happens comes to it as messages: what an engine saw, what a
//! check found, what somebody asks. It decides (scheduler), commits (store), and publishes the new world. Whoever has
//! effects to make (starter, traffic, checks) follows what is published, so nothing is done that is not written down.

mod asked;
mod bundles;
mod carry;
pub mod catalog;
mod certificates;
mod checks;
mod commands;
mod conductor;
mod cron;
mod drains;
pub mod fence;
pub mod folder;
mod follow;
mod handlers;
mod handover;
mod hosts;
pub mod images;
pub mod kv;
pub mod lent;
mod local;
mod logins;
mod moves;
mod names;
mod native;
mod objects;
mod persist;
mod ports;
mod prepare;
mod publish;
mod releases;
mod routes;
mod scripts;
pub mod snapshot;
pub mod standing;
mod starter;
mod status;
mod traffic;
mod trial;
mod values;

use std::collections::BTreeSet;
use std::sync::Arc;

use tokio::sync::{mpsc, oneshot, watch};

use self::publish::Listeners;
use crate::client::members::Members;
use crate::engines::{Engine, Observed, ObservedState, Sight};
use crate::model::Result;
use crate::model::clock::Clock;
use crate::model::event::Event;
use crate::model::id::{NodeId, TaskId};
use crate::model::internal::Range;
use crate::model::node::Node;
use crate::model::task::{Exit, Health, TaskState};
use crate::network::Network;
use crate::network::balancer::Balancer;
use crate::scheduler::world::{Draft, World};
use crate::script::host::ScriptHost;
use crate::script::lane::Threads;
use crate::store::vault::Vault;
use crate::store::{Store, Write};

/// What a runtime is made of.
pub struct Parts {
    /// The cluster's name.
    pub cluster: String,
    /// Where desired state lives.
    pub store: Arc<dyn Store>,
    /// What starts replicas.
    pub engine: Arc<dyn Engine>,
    /// What runs hosted scripts.
    pub host: Arc<ScriptHost>,
    /// Time and randomness.
    pub clock: Arc<dyn Clock>,
    /// How checks reach replicas.
    pub network: Arc<dyn Network>,
    /// Seals secrets.
    pub vault: Vault,
    /// Who keeps the door, where hosts can join.
    pub members: Option<Arc<dyn Members>>,
    /// What is known of the catalogue.
    pub catalog: catalog::Before,
    /// Addresses for services that are balanced inside the cluster.
    pub internal: Range,
    /// Whoever tells the engine of a node's availability: what is told and what is written down of it go together.
    pub telling: tokio::sync::Mutex<()>,
}

impl Parts {
    // Does what takes time where waiting for it holds up nobody else. Where everything has one thread, there.
    async fn aside<T: Send + 'static>(
        &self,
        subject: &str,
        work: impl FnOnce() -> Result<T> + Send + 'static,
    ) -> Result<T> {
        match self.host.threads() {
            Threads::This => work(),
            Threads::Own => {
                let broke = |error| crate::model::Error::internal(subject, "its preparation broke").cause(error);
                tokio::task::spawn_blocking(work).await.map_err(broke)?
            }
        }
    }
}

/// A message to the conductor.
enum Message {
    Observed(Observed),
    /// A node was looked through: these tasks are all that it has.
    Stock(NodeId, BTreeSet<TaskId>),
    /// Somebody else has changed what a task runs in.
    Changed(TaskId, String),
    /// The nodes as their engine sees them now.
    Nodes(Arc<Vec<Node>>),
    /// The engine was told to stop it; true: its end will be observed.
    Told(TaskId, bool),
    Health {
        task: TaskId,
        health: Health,
        reason: Option<String>,
        restart: bool,
    },
    /// A task that could not be started at all.
    Rejected(TaskId, String),
    /// The services that the Swarm runs for this cluster, by name.
    Natives(Arc<std::collections::BTreeMap<String, crate::model::native::NativeService>>),
    Note(crate::scheduler::world::Note),
    Command(Command, oneshot::Sender<Result<()>>),
}

/// Somebody's wish: changes the draft, and may write further records in the same commit.
type Command = Box<dyn FnOnce(&mut Draft, &mut Vec<Write>) -> Result<()> + Send>;

// Makes the world's scripts those that serve.
fn install(host: &ScriptHost, world: &World) {
    let services = world.services.iter().filter(|(_, service)| !service.removing);
    let bundles = services.filter_map(|(name, service)| Some((name.as_str(), service.bundle.as_deref()?)));
    host.install(world.scripts.values(), bundles);
}

/// A running runtime; dropping it ends the conductor, not the replicas.
pub struct Runtime {
    parts: Arc<Parts>,
    messages: mpsc::UnboundedSender<Message>,
    world: watch::Receiver<Arc<World>>,
    events: Listeners,
    confirmed: watch::Receiver<status::Confirmed>,
    traffic: mpsc::UnboundedSender<traffic::Request>,
    cron: mpsc::UnboundedSender<cron::Request>,
    failed: handlers::Failed,
    registry: Arc<catalog::Registry>,
    kv: Arc<kv::Kv>,
    images: std::sync::OnceLock<images::Kept>,
    lent: Arc<lent::Lent>,
}

impl Runtime {
    /// Loads the world, takes over what runs, and begins. Call inside a tokio runtime.
    pub async fn start(parts: Parts, balancer: Box<dyn Balancer>) -> Result<Arc<Self>> {
        let parts = Arc::new(parts);
        let mut world = persist::load(&*parts.store, &parts.host)?;
        persist::clear_bundles(&*parts.store, &world).await?;
        // A clock that was set back since, or another daemon's that was ahead, would leave what it has decided for later.
        parts.clock.catch_up(persist::decided_at(&world));
        let mut nodes = parts.engine.nodes();
        let with_settings = persist::with_settings(&*parts.store, &[], &nodes.borrow_and_update())?;
        world.set_nodes(with_settings.into_iter().map(Arc::new));
        install(&parts.host, &world);
        let host = catalog::host(&world);
        let registry = catalog::Registry::load(
            host,
            parts.store.clone(),
            parts.clock.clone(),
            parts.network.clone(),
            Some(parts.host.clone()),
            parts.catalog.clone(),
        )?;
        let kv = kv::Kv::load(parts.store.clone(), parts.clock.clone())?;
        let (messages, inbox) = mpsc::unbounded_channel();
        let (publish, seen) = watch::channel(Arc::new(world.clone()));
        let events = Listeners::default();
        let (confirm, confirmed) = watch::channel(status::Confirmed::default());
        // Seen before the list is taken, so that nothing falls between the two.
        let mut observations = parts.engine.observe();
        let known = parts.engine.list().await?;
        starter::clear_unknown(&parts.engine, &world, &known).await;
        // What should run and is not known any more (after a power cut, say) has ended, nobody knows how.
        let seen_ids: BTreeSet<&TaskId> = known.iter().map(|observed| &observed.task).collect();
        for task in world.tasks.values().filter(|task| task.state > TaskState::Assigned && !task.state.is_final()) {
            if !seen_ids.contains(&task.id) && !world.is_down(task) {
                let state = ObservedState::Ended { exit: Exit::Unknown, finished_at: parts.clock.now() };
                let _ = messages.send(Message::Observed(Observed { task: task.id, state, warnings: Vec::new() }));
            }
        }
        starter::stop_again(&parts, &world, &known);
        for observed in known {
            let _ = messages.send(Message::Observed(observed));
        }
        conductor::spawn(parts.clone(), world, inbox, publish, events.clone())?;
        let forward = messages.clone();
        tokio::spawn(async move {
            while let Some(sight) = observations.recv().await {
                let message = match sight {
                    Sight::Task(observed) => Message::Observed(observed),
                    Sight::Node(node, tasks) => Message::Stock(node, tasks),
                    Sight::Changed(task, why) => Message::Changed(task, why),
                };
                if forward.send(message).is_err() {
                    return;
                }
            }
        });
        let forward = messages.clone();
        tokio::spawn(async move {
            while nodes.changed().await.is_ok() {
                let now = nodes.borrow_and_update().clone();
                if forward.send(Message::Nodes(now)).is_err() {
                    return;
                }
            }
        });
        starter::spawn(parts.clone(), seen.clone(), messages.clone());
        drains::spawn(parts.clone(), seen.clone());
        checks::spawn(parts.clone(), seen.clone(), messages.clone());
        let feeder = catalog::Feeder::new(registry.clone()).spawn(seen.clone());
        let traffic = traffic::spawn(parts.clone(), balancer, seen.clone(), messages.clone(), confirm, feeder);
        native::spawn(parts.clone(), seen.clone(), messages.clone());
        handover::spawn(parts.clone(), seen.clone(), confirmed.clone(), messages.clone());
        let failed = handlers::Failed::default();
        let (cron, requests) = mpsc::unbounded_channel();
        let happened = events.listen(publish::WAITING);
        let runtime = Arc::new(Runtime {
            parts: parts.clone(),
            messages: messages.clone(),
            world: seen,
            events,
            confirmed,
            traffic,
            cron,
            failed: failed.clone(),
            registry: registry.clone(),
            kv: kv.clone(),
            images: std::sync::OnceLock::new(),
            lent: Arc::default(),
        });
        registry.start();
        kv.keep_sessions(registry.catalog.clone())?;
        // Before anything acts on the cluster: a VM finds out once whether there is one.
        let cluster: Arc<dyn crate::client::Cluster> = runtime.clone();
        parts.host.connect(&cluster);
        handlers::spawn(parts.clone(), messages.clone(), happened, failed);
        cron::spawn(parts.clone(), messages, parts.host.epochs(), requests).await?;
        Ok(runtime)
    }

    /// The world as last published.
    fn world(&self) -> Arc<World> {
        self.world.borrow().clone()
    }

    // Carries a command to the conductor and waits until it is durable.
    async fn command(
        &self,
        command: impl FnOnce(&mut Draft, &mut Vec<Write>) -> Result<()> + Send + 'static,
    ) -> Result<()> {
        let (reply, answer) = oneshot::channel();
        let gone = || crate::model::Error::new(crate::model::Kind::Unavailable, "daemon", "is stopping");
        self.messages.send(Message::Command(Box::new(command), reply)).map_err(|_| gone())?;
        answer.await.map_err(|_| gone())?
    }

    /// Everything that happens from now on, however slowly it is read.
    pub fn record(&self) -> mpsc::Receiver<Result<Event>> {
        self.events.listen(tokio::sync::Semaphore::MAX_PERMITS)
    }

    /// Who serves what where, and how they are.
    pub fn registry(&self) -> &Arc<catalog::Registry> {
        &self.registry
    }

    /// Where its state is.
    pub fn store(&self) -> &Arc<dyn Store> {
        &self.parts.store
    }

    /// Keys and values, and the sessions that hold some of them locked.
    pub fn kv(&self) -> &Arc<kv::Kv> {
        &self.kv
    }

    /// Ends the balancer, for a runtime that leaves nothing behind.
    pub async fn stop_balancer(&self) {
        let (done, answer) = oneshot::channel();
        if self.traffic.send(traffic::Request::StopBalancer(done)).is_ok() {
            let _ = answer.await;
        }
    }
}
