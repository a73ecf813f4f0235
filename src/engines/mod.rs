//! Floor 2, world: whatever starts replicas. Only this room does; the runtime sees `trait Engine`.

pub mod docker;
mod files;
pub mod hosts;
pub mod meter;
pub mod native;
pub mod process;
pub mod registrator;
pub mod sim;
pub mod swarm;
mod template;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use async_trait::async_trait;
use futures_util::stream::BoxStream;
use serde::{Deserialize, Serialize};
use tokio::sync::{mpsc, watch};

use crate::model::clock::Timestamp;
use crate::model::container::ValueUse;
use crate::model::id::{NodeId, Slot, TaskId};
use crate::model::moves::{ImageMove, ImageMoved};
use crate::model::node::{ImagePrune, Node, NodeUpdate, PrunedImages};
use crate::model::objects::{NetworkAsk, NetworkInfo, VolumeAsk, VolumeInfo};
use crate::model::registry::Login;
use crate::model::service::ServiceSpec;
use crate::model::stats::Stats;
use crate::model::task::{Exit, Health};
use crate::model::units::Duration;
use crate::model::{Result, name::Name};
use hosts::{ProbeAsk, Probed};

/// How far an image is on its way, to the end.
pub type Moves = BoxStream<'static, Result<ImageMoved>>;

/// What an engine needs to know to start a task.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct StartRequest {
    /// The task.
    pub task: TaskId,
    /// Its service.
    pub service: Name,
    /// Its place.
    pub slot: Slot,
    /// The node that it was placed on.
    #[serde(default = "nowhere")]
    pub node: NodeId,
    /// Its revision.
    pub revision: u32,
    /// The description of that revision.
    pub spec: Arc<ServiceSpec>,
    /// What replicas read as files, by name. Never written down with the rest.
    #[serde(skip)]
    pub secrets: Secrets,
    /// Further files that they read. Never written down with the rest either: they may be large.
    #[serde(skip)]
    pub configs: Vec<ConfigFile>,
    /// What the registry of its image is told, where somebody has logged in there. Never written down either.
    #[serde(skip)]
    pub login: Option<Login>,
}

/// A config's value, and the file that a replica finds.
#[derive(Debug, Clone)]
pub struct ConfigFile {
    /// Its path: absolute, or below the root folder; in the process engine a name below `$NEAP_CONFIGS`.
    pub target: String,
    /// What it holds.
    pub value: Vec<u8>,
    /// Owner and mode.
    pub owner: ValueUse,
}

// What the process engine wrote down before it was told the node.
fn nowhere() -> NodeId {
    "".into()
}

/// Secrets' values by the name that replicas see; not shown by accident.
#[derive(Clone, Default)]
pub struct Secrets(pub BTreeMap<String, Vec<u8>>);

impl std::fmt::Debug for Secrets {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} secrets", self.0.len())
    }
}

/// What an engine sees of a task.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Observed {
    /// The task.
    pub task: TaskId,
    /// How far it is.
    pub state: ObservedState,
    /// What could not be done as asked.
    pub warnings: Vec<String>,
}

/// What an engine tells.
#[derive(Debug, Clone, PartialEq)]
pub enum Sight {
    /// What it saw of a task.
    Task(Observed),
    /// A node was looked through: these tasks are all that it has.
    Node(NodeId, BTreeSet<TaskId>),
    /// Somebody else has changed or removed what a task runs in, as is said: another is to take its place.
    Changed(TaskId, String),
}

/// How far a task is, as its engine sees it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ObservedState {
    /// Not there yet: its image is being pulled, say.
    Preparing {
        /// How far it is.
        said: String,
    },
    /// Known, not running yet.
    Starting,
    /// It runs.
    Running {
        /// Process id, where it has one on this host.
        pid: Option<u32>,
        /// `address:port` by port name.
        ports: BTreeMap<String, String>,
        /// Since when.
        started_at: Timestamp,
        /// What the engine's own check says; none where it has none.
        health: Health,
        /// What that check said last, where it failed.
        said: Option<String>,
    },
    /// It ended.
    Ended {
        /// How.
        exit: Exit,
        /// When.
        finished_at: Timestamp,
    },
    /// It could not be started, and never ran.
    Rejected {
        /// Why.
        reason: String,
    },
    /// It never ran, because there is no room for it where it was placed.
    NoRoom {
        /// Of what.
        reason: String,
    },
}

/// One line that a replica wrote.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct LogLine {
    /// Nanoseconds since 1970-01-01 UTC.
    pub at: i64,
    /// The task.
    pub task: TaskId,
    /// `stdout` or `stderr`.
    pub stream: String,
    /// The line, without its end.
    pub text: String,
}

/// Which lines are asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct LogQuery {
    /// Only lines from this moment on (nanoseconds since 1970-01-01 UTC).
    pub since: Option<i64>,
    /// Only so many of the newest.
    pub tail: Option<usize>,
}

/// What a command run beside a task answered.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExecResult {
    /// Its exit code; 128 and the signal's number where a signal ended it.
    pub code: i32,
    /// The first 4 KiB of its output.
    pub output: String,
}

/// Starts, stops and watches tasks on nodes.
#[async_trait]
pub trait Engine: Send + Sync {
    /// Its name: `process`, `docker`, `swarm`, `sim`.
    fn name(&self) -> &'static str;

    /// Whether it can run such a service at all; the error names what it cannot do. Notes in the description what it does
    /// itself.
    fn accepts(&self, spec: &mut ServiceSpec) -> Result<()>;

    /// The nodes it knows, now and as they change.
    fn nodes(&self) -> watch::Receiver<Arc<Vec<Node>>>;

    /// Changes a node's settings where the engine keeps them itself; false: it does not.
    async fn update_node(&self, id: &str, update: &NodeUpdate) -> Result<bool> {
        let _ = (id, update);
        Ok(false)
    }

    /// Takes a node out of the cluster for good; one that answers only with `force`.
    async fn remove_node(&self, id: &str, force: bool) -> Result<()> {
        let _ = force;
        let message = format!("the {} engine has the nodes that the daemon was started with", self.name());
        Err(crate::model::Error::new(crate::model::Kind::Unsupported, format!("node \"{id:.70}\""), message))
    }

    /// Starts a task. Asking twice for the same task starts it once; the outcome comes through `observe`. An error that
    /// says that a retry can help is no outcome.
    async fn start(&self, request: StartRequest) -> Result<()>;

    /// Tells a task to end: its stop signal, then after `grace` the kill. False: it was never started, so no end of
    /// it will be observed.
    async fn stop(&self, task: &TaskId, grace: Duration) -> Result<bool>;

    /// Removes what is left of an ended task, its output included.
    async fn remove(&self, task: &TaskId) -> Result<()>;

    /// Removes what is left of every ended or never begun task that is not in `keep`.
    async fn prune(&self, keep: &BTreeSet<TaskId>) -> Result<()>;

    /// All tasks that it knows, running or ended.
    async fn list(&self) -> Result<Vec<Observed>>;

    /// Everything seen from now on. One receiver at a time; the newest call wins.
    fn observe(&self) -> mpsc::UnboundedReceiver<Sight>;

    /// Where each task's output ends now.
    async fn log_end(&self, tasks: &[TaskId]) -> Result<LogPosition>;

    /// What tasks wrote, in portions, oldest first, merged over the tasks by time; up to `until` if given.
    async fn logs(
        &self,
        tasks: &[TaskId],
        query: LogQuery,
        until: Option<LogPosition>,
    ) -> Result<mpsc::Receiver<Result<Vec<LogLine>>>>;

    /// What the tasks wrote since `position`, which moves on; start with an empty one to get all.
    async fn follow(&self, tasks: &[TaskId], position: &mut LogPosition) -> Result<Vec<LogLine>>;

    /// Removes images of a node that no container uses, older than asked, and not among those to keep.
    async fn prune_images(&self, node: &str, ask: ImagePrune) -> Result<PrunedImages> {
        let _ = ask;
        let message = format!("the {} engine has no images", self.name());
        Err(crate::model::Error::new(crate::model::Kind::Unsupported, format!("node \"{node:.70}\""), message))
    }

    /// Lets the Docker Engine of a node get an image, or bring it to a registry; how far that is.
    async fn move_image(&self, node: &str, ask: ImageMove) -> Result<Moves> {
        let _ = ask;
        let message = format!("the {} engine has no images", self.name());
        Err(crate::model::Error::new(crate::model::Kind::Unsupported, format!("node \"{node:.70}\""), message))
    }

    /// Asks a registry whether it takes a login; an error if it does not, or cannot be asked.
    async fn verify_login(&self, login: &Login) -> Result<()> {
        let (subject, message) =
            (format!("login at {}", login.registry), format!("the {} engine pulls no images", self.name()));
        Err(crate::model::Error::new(crate::model::Kind::Unsupported, subject, message))
    }

    /// Networks: lists them, makes one, removes one. The answer to a change is what was changed.
    async fn networks(&self, ask: NetworkAsk) -> Result<Vec<NetworkInfo>> {
        let _ = ask;
        let message = format!("the {} engine has none", self.name());
        Err(crate::model::Error::new(crate::model::Kind::Unsupported, "networks", message))
    }

    /// Volumes of a node.
    async fn volumes(&self, node: &str, ask: VolumeAsk) -> Result<Vec<VolumeInfo>> {
        let _ = (node, ask);
        let message = format!("the {} engine has none", self.name());
        Err(crate::model::Error::new(crate::model::Kind::Unsupported, "volumes", message))
    }

    /// What it schedules itself, where it does.
    fn natives(&self) -> Option<&dyn native::Natives> {
        None
    }

    /// What tasks on a node use; those that are not there any more are left out.
    async fn stats(&self, node: &str, tasks: &[TaskId]) -> Result<BTreeMap<TaskId, Stats>>;

    /// What was measured last of each node, where anybody measures.
    fn measured(&self) -> BTreeMap<NodeId, meter::Reading> {
        BTreeMap::new()
    }

    /// Asks a port in a task's own network. An error: it could not be asked.
    async fn probe(&self, ask: ProbeAsk) -> Result<Probed> {
        let message = format!("the {} engine gives tasks no network of their own", self.name());
        Err(crate::model::Error::new(crate::model::Kind::Unsupported, format!("task {}", ask.task), message))
    }

    /// Runs a command with a task's environment.
    async fn exec(&self, task: &TaskId, command: &[String], timeout: Duration) -> Result<ExecResult>;
}

/// How far each task's output was read: file number and offset.
#[derive(Debug, Clone, Default)]
pub struct LogPosition(pub BTreeMap<TaskId, (u32, u64)>);
