//! What is done on the very host where somebody is: it becomes a cluster, comes to one, or leaves it.

use std::path::PathBuf;

use async_trait::async_trait;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::members::JoinTicket;
use crate::model::Result;
use crate::model::node::Role;

/// Where this host's part is; defaults as on the command line.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct HostPlace {
    /// The data folder.
    pub data: Option<PathBuf>,
    /// The Docker Engine of this host.
    pub docker_host: Option<String>,
    /// The control socket of the daemon.
    pub socket: Option<PathBuf>,
    /// The address that the other hosts are told.
    pub advertise_addr: Option<String>,
    /// Where the Swarm's manager listens, `address:port`.
    pub listen_addr: Option<String>,
    /// The address for the containers' traffic.
    pub data_path_addr: Option<String>,
}

/// A host becomes a cluster.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct InitAsk {
    /// Where.
    #[serde(flatten)]
    pub place: HostPlace,
    /// The cluster's name.
    pub cluster: Option<String>,
}

/// A host comes to a cluster.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct JoinAsk {
    /// A daemon of the cluster, `address` or `address:port`.
    pub address: String,
    /// The join token.
    pub token: String,
    /// Where.
    #[serde(flatten)]
    pub place: HostPlace,
    /// Neither agent nor daemon is started.
    #[serde(default)]
    pub no_start: bool,
}

/// A host leaves its cluster.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct LeaveAsk {
    /// Where.
    #[serde(flatten)]
    pub place: HostPlace,
    /// Also as a manager.
    pub force: bool,
}

/// The manager of a host that started again is let go on.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct UnlockAsk {
    /// The key of the Swarm's managers.
    pub key: String,
    /// Where.
    #[serde(flatten)]
    pub place: HostPlace,
}

/// What a host has become.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct HostJoined {
    /// The cluster's name.
    pub cluster: String,
    /// Its node's id.
    pub node: String,
    /// Its role.
    pub role: Role,
}

/// Who does it: the command line, for scripts that it runs.
#[async_trait(?Send)]
pub trait Hosting {
    /// Makes a Swarm of this host, unless it is a manager of one, and starts the daemon; what lets workers in.
    async fn init(&self, ask: InitAsk) -> Result<JoinTicket>;
    /// Joins a cluster, and starts the agent, or as a manager the daemon.
    async fn join(&self, ask: JoinAsk) -> Result<HostJoined>;
    /// Leaves it.
    async fn leave(&self, ask: LeaveAsk) -> Result<()>;
    /// Unlocks this host's manager, which has started again and waits for its key.
    async fn unlock(&self, ask: UnlockAsk) -> Result<()>;
}
