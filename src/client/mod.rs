//! Floor 3: `trait Cluster`, what anybody can ask of a cluster, and its remote implementation. CLI, Lua and tests
//! know nothing else; the runtime implements the same trait in process.

pub mod agents;
pub mod catalog;
pub mod hosting;
pub mod images;
pub mod kv;
pub mod members;
pub mod native;
pub mod ports;
pub mod remote;
pub mod routes;
pub mod scripts;
pub mod show;
pub mod stack;
pub mod trust;
pub mod wait;
pub mod wire;
pub mod works;

use std::collections::BTreeMap;
use std::pin::Pin;

use async_trait::async_trait;
use futures_util::Stream;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use self::catalog::{
    CatalogRestored, CatalogSnapshot, FoundInstance, FoundNode, FoundService, InstancesAsk, Maintenance, Register,
    Report,
};
pub use self::images::{EngineImages, Images, Keepers};
use self::kv::{ConfigValue, KvChange, KvEntry, KvSet, ValueChange, ValueInfo, ValueKind, ValueSet};
use self::members::JoinTicket;
use self::scripts::{Back, CronStatus, FailedDelivery, Push, ScriptCalls, ScriptSource, ScriptStatus};
use crate::client::ports::PortInfo;
use crate::client::routes::RouteInfo;
use crate::model::Result;
use crate::model::bundle::Bundle;
use crate::model::cron::CronRun;
use crate::model::event::Event;
use crate::model::name::Name;
use crate::model::native::{Adopt, Adoption, HandBack, HandedBack, NativeService};
use crate::model::node::{ImagePrune, Node, NodeUpdate, PrunedImages, Role};
use crate::model::objects::{NetworkInfo, NetworkSpec, VolumeSpec, Volumes};
use crate::model::plan::{Plan, Rebalance, Rebalanced};
use crate::model::registry::{Credentials, LoginAsk, LoginInfo};
use crate::model::release::Release;
use crate::model::route::RouteSpec;
use crate::model::service::{Revision, Service};
use crate::model::stats::{NodeStats, TaskStats};
use crate::model::swarm::{SwarmAsk, SwarmState};
use crate::model::task::Task;

/// Answers that come one by one, until the receiver is dropped.
pub type Stream1<T> = Pin<Box<dyn Stream<Item = Result<T>> + Send>>;

/// Who answers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Info {
    /// The cluster's name.
    pub cluster: String,
    /// The daemon's version.
    pub version: String,
    /// The engine: `process`, `docker`, `swarm`.
    pub engine: String,
    /// The daemon's process id.
    pub pid: u32,
}

/// A description to apply, and the scripts that come along.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize, JsonSchema)]
pub struct Apply {
    /// The description, as a user wrote it.
    pub service: Value,
    /// Scripts that it uses and that are installed with it, or not at all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub with: Option<Bundle>,
    /// Whether it has to be new, or has to exist.
    #[serde(default)]
    pub only: Only,
    /// Who pulls its image, where the cluster has no login of its own at that registry. Sealed, and for this service alone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub auth: Option<Credentials>,
}

/// What must hold for an apply.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Only {
    /// Nothing: created or updated.
    #[default]
    Either,
    /// The service must not exist.
    Create,
    /// The service must exist; fields that are absent keep their value.
    Update,
}

/// A service with all that belongs to it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct ServiceStatus {
    /// Identity and description.
    pub service: Service,
    /// The latest release, if there was one.
    pub release: Option<Release>,
    /// Its tasks, oldest first, ended ones included as long as they are kept.
    pub tasks: Vec<Task>,
    /// The host names of the nodes that they are on, by id.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub nodes: BTreeMap<String, String>,
    /// How many slots it is to fill.
    pub desired: u32,
    /// How many of them run their revision and are healthy.
    pub healthy: u32,
    /// How many have run their revision to its end, where replicas may end.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub completed: u32,
    /// A slot whose replica failed and is not started again, and why.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub given_up: Option<String>,
    /// Whether all is as described and nothing is under way.
    pub settled: bool,
    /// Whether its last release was ended before all was as described.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub half_way: bool,
    /// Published ports that could not be opened, and why.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub port_failures: Vec<String>,
    /// What the Swarm runs, where it runs the service itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub native: Option<NativeService>,
    /// Why published ports do not lead where they should, where the balancer cannot be had.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ports_pending: Option<String>,
}

fn is_zero(count: &u32) -> bool {
    *count == 0
}

/// What a person may do with a release.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum ReleaseAction {
    /// Ask its script no more until resumed.
    Pause,
    /// Go on; after a failure, try again.
    Resume,
    /// Stop half-way and stay so.
    Abort,
    /// Move the rest at once.
    Promote,
    /// Go back to the last healthy revision.
    Rollback,
}

impl ReleaseAction {
    /// As in paths and flags.
    pub fn as_str(self) -> &'static str {
        match self {
            ReleaseAction::Pause => "pause",
            ReleaseAction::Resume => "resume",
            ReleaseAction::Abort => "abort",
            ReleaseAction::Promote => "promote",
            ReleaseAction::Rollback => "rollback",
        }
    }
}

/// Which lines of a service's output.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct LogsAsk {
    /// Only lines from this moment on, in nanoseconds since 1970-01-01 UTC.
    pub since: Option<i64>,
    /// Only so many of the newest.
    pub tail: Option<usize>,
    /// Go on with new lines as they come.
    pub follow: bool,
    /// Only the task of this slot.
    pub slot: Option<String>,
}

/// A line of output and who wrote it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct LogEntry {
    /// Nanoseconds since 1970-01-01 UTC.
    pub at: i64,
    /// `web.3`.
    pub task: String,
    /// The task's id.
    pub id: String,
    /// `stdout` or `stderr`.
    pub stream: String,
    /// The line.
    pub text: String,
}

/// A cluster, here or elsewhere.
#[async_trait]
pub trait Cluster: Images + Keepers + EngineImages + Send + Sync {
    /// Who answers.
    async fn info(&self) -> Result<Info>;

    /// All services, by name.
    async fn services(&self) -> Result<Vec<ServiceStatus>>;
    /// One service.
    async fn service(&self, name: &str) -> Result<ServiceStatus>;
    /// One service now, and again after each change. The stream ends with the service.
    async fn watch(&self, name: &str) -> Result<Stream1<ServiceStatus>>;
    /// A service's revisions, oldest first.
    async fn revisions(&self, name: &str) -> Result<Vec<Revision>>;
    /// What applying would change.
    async fn plan(&self, ask: Apply) -> Result<Plan>;
    /// Creates or updates a service, with its scripts, all or nothing. Durable when it returns.
    async fn apply(&self, ask: Apply) -> Result<ServiceStatus>;
    /// Changes the number of replicas.
    async fn scale(&self, name: &str, replicas: u32) -> Result<ServiceStatus>;
    /// Moves tasks to nodes that their policy likes better by now; what moves.
    async fn rebalance(&self, name: &str, ask: Rebalance) -> Result<Rebalanced>;
    /// Acts on the open release; `Rollback` without one starts a release back to the revision before.
    async fn release(&self, name: &str, action: ReleaseAction) -> Result<ServiceStatus>;
    /// Removes a service: its tasks are drained and stopped.
    async fn remove(&self, name: &str) -> Result<()>;
    /// What its running replicas use, by task.
    async fn stats(&self, name: &str) -> Result<Vec<TaskStats>>;
    /// What its replicas wrote, merged by time.
    async fn logs(&self, name: &str, ask: LogsAsk) -> Result<Stream1<LogEntry>>;

    /// Services that the engine runs itself.
    async fn natives(&self) -> Result<Vec<NativeService>>;
    /// Takes over one of them; what is made of it. It goes on when this returns.
    async fn adopt(&self, native: &str, ask: Adopt) -> Result<Adoption>;
    /// Gives a service back to the engine. It goes on when this returns.
    async fn hand_back(&self, name: &str, ask: HandBack) -> Result<HandedBack>;

    /// What a node, or all, have and use, as measured within the last seconds; each container as well if asked for.
    async fn node_stats(&self, node: Option<&str>, containers: bool) -> Result<Vec<NodeStats>>;

    /// All nodes.
    async fn nodes(&self) -> Result<Vec<Node>>;
    /// Changes a node's availability, role and labels.
    async fn update_node(&self, id: &str, update: NodeUpdate) -> Result<Node>;
    /// Takes a node out of the cluster; one that is not down only with `force`.
    async fn remove_node(&self, id: &str, force: bool) -> Result<()>;
    /// Removes images on a node that nothing uses. What services run, and what they could go back to, stays.
    async fn prune_images(&self, node: &str, ask: ImagePrune) -> Result<PrunedImages>;
    /// All networks that services can be attached to.
    async fn networks(&self) -> Result<Vec<NetworkInfo>>;
    /// Makes a network.
    async fn create_network(&self, spec: NetworkSpec) -> Result<NetworkInfo>;
    /// Removes a network that no service uses.
    async fn remove_network(&self, name: &str) -> Result<()>;
    /// All routes of HTTP requests: services' own, and those that stand for themselves.
    async fn routes(&self) -> Result<Vec<RouteInfo>>;
    /// All ports that the balancers listen on.
    async fn ports(&self) -> Result<Vec<PortInfo>>;
    /// Sets a route that stands for itself. Durable when it returns.
    async fn set_route(&self, name: &Name, spec: RouteSpec) -> Result<RouteInfo>;
    /// Removes a route that stands for itself.
    async fn remove_route(&self, name: &str) -> Result<()>;
    /// The volumes of a node, or of all.
    async fn volumes(&self, node: Option<&str>) -> Result<Volumes>;
    /// Makes a volume on a node, or on all; those made.
    async fn create_volume(&self, node: Option<&str>, spec: VolumeSpec) -> Result<Volumes>;
    /// Removes a volume from a node, or from all; those removed.
    async fn remove_volume(&self, node: Option<&str>, name: &str, force: bool) -> Result<Volumes>;
    /// Forgets a node's agent: it is not listened to any more, and another may take its place.
    async fn forget_agent(&self, node: &str) -> Result<()>;

    /// Nodes of the catalogue, by name.
    async fn catalog_nodes(&self) -> Result<Vec<FoundNode>>;
    /// Services of the catalogue, by name.
    async fn catalog_services(&self) -> Result<Vec<FoundService>>;
    /// Instances of a service, by node and id; none where there is no such service.
    async fn instances(&self, service: &str, ask: InstancesAsk) -> Result<Vec<FoundInstance>>;
    /// The instances now, and again after each change of them.
    async fn watch_instances(&self, service: &str, ask: InstancesAsk) -> Result<Stream1<Vec<FoundInstance>>>;
    /// Registers an instance, or says it anew. Durable when it returns.
    async fn register(&self, register: Register) -> Result<FoundInstance>;
    /// Removes an instance with its checks; of the daemon's host where no node is named. Durable when it returns.
    async fn deregister(&self, node: Option<&str>, id: &str) -> Result<()>;
    /// Says how a check with a TTL is.
    async fn report(&self, node: Option<&str>, check: &str, report: Report) -> Result<()>;
    /// Begins or ends an instance's maintenance. Durable when it returns.
    async fn maintain(&self, node: Option<&str>, id: &str, maintenance: Maintenance) -> Result<FoundInstance>;

    /// All that clients have registered and written.
    async fn catalog_snapshot(&self) -> Result<CatalogSnapshot>;
    /// Puts all of it back, in one step: what is not in it goes. Durable when it returns.
    async fn restore_catalog(&self, snapshot: CatalogSnapshot) -> Result<CatalogRestored>;

    /// Says how the Swarm is, and changes it first where that is asked.
    async fn swarm(&self, ask: SwarmAsk) -> Result<SwarmState>;
    /// What lets a host of that role in; `rotate`: made anew, so that the one before lets nobody in any more.
    async fn join_ticket(&self, role: Role, rotate: bool) -> Result<JoinTicket>;

    /// What happens from now on.
    async fn events(&self) -> Result<Stream1<Event>>;
    /// The last deliveries of events that failed, oldest first.
    async fn failed_deliveries(&self) -> Result<Vec<FailedDelivery>>;

    /// All hosted scripts, by owner.
    async fn scripts(&self) -> Result<Vec<ScriptStatus>>;
    /// One owner's scripts with their sources; `version` is a hash or the beginning of one, else the active version.
    async fn script(&self, name: &str, version: Option<&str>) -> Result<ScriptSource>;
    /// Replaces one owner's scripts, all or nothing; nothing is done with `check_only`.
    async fn push_scripts(&self, name: &str, push: Push, by: &str) -> Result<ScriptStatus>;
    /// Goes back to an earlier version.
    async fn rollback_scripts(&self, name: &str, back: Back, by: &str) -> Result<ScriptStatus>;
    /// Removes one owner's scripts.
    async fn remove_scripts(&self, name: &str) -> Result<()>;
    /// What was called how often.
    async fn script_calls(&self) -> Result<Vec<ScriptCalls>>;

    /// All cron scripts.
    async fn crons(&self) -> Result<Vec<CronStatus>>;
    /// One cron script with its history.
    async fn cron(&self, name: &str) -> Result<CronStatus>;
    /// Runs a cron script now; what it became, once it is over.
    async fn run_cron(&self, name: &str, by: &str) -> Result<CronRun>;
    /// Holds a cron script back, or lets it go on.
    async fn pause_cron(&self, name: &str, paused: bool) -> Result<CronStatus>;

    /// One key's entry.
    async fn kv_get(&self, key: &str) -> Result<Option<KvEntry>>;
    /// All entries whose key begins with `prefix`, by key.
    async fn kv_list(&self, prefix: &str) -> Result<Vec<KvEntry>>;
    /// Sets a key. Durable when it returns.
    async fn kv_set(&self, key: &str, set: KvSet) -> Result<KvEntry>;
    /// Removes a key; with a version only if it has that one. False: there was none.
    async fn kv_delete(&self, key: &str, version: Option<u64>) -> Result<bool>;
    /// The entries whose key begins with `prefix`, and each change from then on.
    async fn kv_watch(&self, prefix: &str) -> Result<Stream1<KvChange>>;

    /// All secrets or configs, without their values.
    async fn values(&self, of: ValueKind) -> Result<Vec<ValueInfo>>;
    /// Sets a secret or config, and rolls out the services that use it.
    async fn set_value(&self, of: ValueKind, name: &str, set: ValueSet) -> Result<ValueChange>;
    /// Removes a secret or config that no service uses.
    async fn remove_value(&self, of: ValueKind, name: &str) -> Result<()>;
    /// A config with its value.
    async fn config(&self, name: &str) -> Result<ConfigValue>;

    /// The registries that somebody has logged in at.
    async fn logins(&self) -> Result<Vec<LoginInfo>>;
    /// Keeps what a registry is told when images are pulled.
    async fn login(&self, registry: &str, ask: LoginAsk) -> Result<LoginInfo>;
    /// Forgets it; with a service what came along with that one.
    async fn logout(&self, registry: &str, service: Option<&str>) -> Result<()>;

    /// Names that begin with `prefix`, at most `limit`: for completion.
    async fn names(&self, of: NameKind, prefix: &str, limit: usize) -> Result<Vec<String>>;
}

/// What names are asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum NameKind {
    /// Services.
    Service,
    /// Nodes, by host name.
    Node,
    /// Routes that stand for themselves.
    Route,
    /// Cron scripts.
    Cron,
    /// Owners of hosted scripts.
    Script,
    /// Keys.
    Kv,
    /// Secrets.
    Secret,
    /// Configs.
    Config,
}

impl NameKind {
    /// All of them.
    pub const ALL: [NameKind; 8] = [
        NameKind::Service,
        NameKind::Node,
        NameKind::Route,
        NameKind::Cron,
        NameKind::Script,
        NameKind::Kv,
        NameKind::Secret,
        NameKind::Config,
    ];

    /// As in queries.
    pub fn as_str(self) -> &'static str {
        match self {
            NameKind::Service => "service",
            NameKind::Node => "node",
            NameKind::Route => "route",
            NameKind::Cron => "cron",
            NameKind::Script => "script",
            NameKind::Kv => "kv",
            NameKind::Secret => "secret",
            NameKind::Config => "config",
        }
    }
}
