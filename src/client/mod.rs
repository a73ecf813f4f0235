//! Floor 3: `trait Cluster`, what anybody can ask of a cluster, and its remote implementation. CLI, Lua and tests
//! know nothing else; the runtime implements the same trait in process.

pub mod remote;
pub mod show;
pub mod wait;
pub mod wire;

use std::pin::Pin;

use async_trait::async_trait;
use futures_util::Stream;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::model::Result;
use crate::model::bundle::Bundle;
use crate::model::event::Event;
use crate::model::node::{Node, NodeUpdate};
use crate::model::plan::Plan;
use crate::model::release::Release;
use crate::model::service::{Revision, Service};
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
    /// How many slots it is to fill.
    pub desired: u32,
    /// How many of them run their revision and are healthy.
    pub healthy: u32,
    /// Whether all is as described and nothing is under way.
    pub settled: bool,
    /// Published ports that could not be opened, and why.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub port_failures: Vec<String>,
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
pub trait Cluster: Send + Sync {
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
    /// Acts on the open release; `Rollback` without one starts a release back to the revision before.
    async fn release(&self, name: &str, action: ReleaseAction) -> Result<ServiceStatus>;
    /// Removes a service: its tasks are drained and stopped.
    async fn remove(&self, name: &str) -> Result<()>;
    /// What its replicas wrote, merged by time.
    async fn logs(&self, name: &str, ask: LogsAsk) -> Result<Stream1<LogEntry>>;

    /// All nodes.
    async fn nodes(&self) -> Result<Vec<Node>>;
    /// Changes a node's availability and labels.
    async fn update_node(&self, id: &str, update: NodeUpdate) -> Result<Node>;

    /// What happens from now on.
    async fn events(&self) -> Result<Stream1<Event>>;
}
