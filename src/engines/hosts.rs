//! What only somebody on a host can do for its containers, and what only they see at once: the agents, as engines know
//! them.

use std::collections::BTreeMap;
use std::sync::Arc;

use async_trait::async_trait;
use serde::{Deserialize, Serialize};
use tokio::sync::{mpsc, watch};

use super::meter::Reading;
use super::{ExecResult, Moves, Observed};
use crate::model::Result;
use crate::model::id::{NodeId, TaskId};
use crate::model::moves::ImageMove;
use crate::model::node::{Agent, ImagePrune, PrunedImages};
use crate::model::objects::{VolumeAsk, VolumeInfo};
use crate::model::stats::Stats;
use crate::model::units::Duration;

/// A command for a task's container.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ExecAsk {
    /// The task.
    pub task: TaskId,
    /// The command with its arguments.
    pub command: Vec<String>,
    /// How long it may take.
    pub timeout: Duration,
}

/// A question to a port in a task's own network.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ProbeAsk {
    /// The task.
    pub task: TaskId,
    /// The port on its loopback.
    pub port: u16,
    /// What is got by HTTP; only a connection is opened where there is none.
    pub path: Option<String>,
    /// How long it may take.
    pub timeout: Duration,
}

/// A question whether another host can be reached from there.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReachAsk {
    /// The other host's address.
    pub address: std::net::IpAddr,
    /// A port that is open there.
    pub port: u16,
    /// How long it may take.
    pub timeout: Duration,
}

/// How a host answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Reached {
    /// Somebody listens at the port.
    Yes,
    /// The host is there, and nobody listens.
    Refused,
    /// Nothing is heard.
    Silent,
}

impl ReachAsk {
    /// Tries it from here: opens a connection, and closes it.
    pub async fn reach(self) -> Reached {
        let connect = tokio::net::TcpStream::connect((self.address, self.port));
        match tokio::time::timeout(self.timeout.std(), connect).await {
            Ok(Ok(_)) => Reached::Yes,
            Ok(Err(error)) if error.kind() == std::io::ErrorKind::ConnectionRefused => Reached::Refused,
            _ => Reached::Silent,
        }
    }
}

/// What became of it: the error says why it does not pass.
pub type Probed = std::result::Result<(), String>;

/// The hosts that somebody of ours is on.
#[async_trait]
pub trait Hosts: Send + Sync {
    /// Which they are, now and as that changes.
    fn agents(&self) -> watch::Receiver<Arc<BTreeMap<NodeId, Agent>>>;

    /// What they see of tasks on their own host from now on. One receiver at a time; the newest call wins.
    fn observe(&self) -> mpsc::UnboundedReceiver<(NodeId, Observed)>;

    /// Runs a command in a task's container on that node.
    async fn exec(&self, node: &str, ask: ExecAsk) -> Result<ExecResult>;

    /// Asks a port in the network of a task on that node.
    async fn probe(&self, node: &str, ask: ProbeAsk) -> Result<Probed>;

    /// Whether another host can be reached from that node.
    async fn reach(&self, node: &str, ask: ReachAsk) -> Result<Reached>;

    /// What was measured last of each node.
    fn measured(&self) -> BTreeMap<NodeId, Reading>;

    /// What tasks on that node use.
    async fn stats(&self, node: &str, tasks: Vec<TaskId>) -> Result<BTreeMap<TaskId, Stats>>;

    /// Lists, makes or removes volumes of that node.
    async fn volumes(&self, node: &str, ask: VolumeAsk) -> Result<Vec<VolumeInfo>>;

    /// Removes images on that node.
    async fn prune_images(&self, node: &str, ask: ImagePrune) -> Result<PrunedImages>;

    /// Gets an image there, or brings it to a registry; how far that is.
    async fn move_image(&self, node: &str, ask: ImageMove) -> Result<Moves>;
}
