//! Who belongs to the cluster, and how hosts come to it.

use async_trait::async_trait;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::model::node::Role;
use crate::model::swarm::{SwarmAsk, SwarmState};
use crate::model::{Error, Kind, Result};

/// What lets a host in.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct JoinTicket {
    /// What it becomes.
    pub role: Role,
    /// The token: the fingerprint of the cluster's authority, and a secret.
    pub token: String,
    /// Where it can join, `address:port`.
    pub addresses: Vec<String>,
}

impl JoinTicket {
    /// The command for the host.
    pub fn command(&self) -> String {
        let address = self.addresses.first().map_or("ADDRESS", String::as_str);
        format!("neap join {address} --token {}", self.token)
    }
}

/// Who keeps the door of a cluster of several hosts.
#[async_trait]
pub trait Members: Send + Sync {
    /// What lets a host of that role in; `rotate`: made anew first.
    async fn join_ticket(&self, role: Role, rotate: bool) -> Result<JoinTicket>;
    /// Says how the Swarm is, and changes it first where that is asked.
    async fn swarm(&self, ask: SwarmAsk) -> Result<SwarmState>;
    /// Forgets a node's agent: it is not listened to any more, and another may take its place. False: there was none.
    async fn forget(&self, node: &str) -> Result<bool>;
}

/// What is said where there is nobody to join.
pub fn alone() -> Error {
    Error::new(Kind::Unsupported, "cluster", "has no hosts that join: its state is not in a Swarm")
        .help("make one with `neap init`")
}
