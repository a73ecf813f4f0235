//! A node: where replicas run, what it offers, and what its owner wants of it.

use std::collections::BTreeMap;
use std::net::IpAddr;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::id::NodeId;
use super::units::{Bytes, Cpu};

/// A node as engine and owner describe it together.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Node {
    /// Its identity.
    pub id: NodeId,
    /// The host's name.
    pub hostname: String,
    /// Manager or worker.
    pub role: Role,
    /// Whether it takes work, as its owner says.
    pub availability: Availability,
    /// Whether it answers, as the engine says.
    pub state: NodeState,
    /// Its address, where known.
    #[serde(default)]
    pub address: Option<IpAddr>,
    /// Operating system: `linux`.
    pub os: String,
    /// Processor: `x86_64`, `aarch64`.
    pub arch: String,
    /// Cores.
    pub cpu: Cpu,
    /// Memory.
    pub memory: Bytes,
    /// Labels that the owner gives.
    #[serde(default)]
    pub labels: BTreeMap<String, String>,
    /// Labels of the engine itself.
    #[serde(default)]
    pub engine_labels: BTreeMap<String, String>,
    /// Neap's agent on it, where there is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub agent: Option<Agent>,
}

/// Who acts for the cluster on a node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Agent {
    /// Whether it answers.
    pub connected: bool,
    /// Whether it is part of a daemon.
    pub daemon: bool,
    /// Its version, once known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub version: Option<String>,
}

impl Agent {
    /// As in tables.
    pub fn as_str(&self) -> &'static str {
        match (self.connected, self.daemon) {
            (false, _) => "away",
            (true, true) => "daemon",
            (true, false) => "connected",
        }
    }
}

/// Which images go.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct ImagePrune {
    /// Only those that were made at least so long ago.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub created_before: Option<super::units::Duration>,
    /// Say what would go, and remove nothing.
    pub dry_run: bool,
    /// Images that stay whatever their age; those of all revisions that services keep are added to it.
    pub keep: Vec<String>,
}

/// What became of them.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
pub struct PrunedImages {
    /// The images that went, by name, or by id where they had none.
    pub removed: Vec<String>,
    /// Their sizes together, without what other images share with them.
    pub bytes: Bytes,
}

impl Node {
    /// A ready worker without anything else, for tests and as a base.
    pub fn new(id: &str, hostname: &str) -> Self {
        Node {
            id: id.into(),
            hostname: hostname.to_owned(),
            role: Role::Worker,
            availability: Availability::Active,
            state: NodeState::Ready,
            address: None,
            os: std::env::consts::OS.to_owned(),
            arch: std::env::consts::ARCH.to_owned(),
            cpu: Cpu::default(),
            memory: Bytes::default(),
            labels: BTreeMap::new(),
            engine_labels: BTreeMap::new(),
            agent: None,
        }
    }

    /// How errors call it.
    pub fn subject(&self) -> String {
        format!("node \"{}\"", self.hostname)
    }
}

/// Manager or worker.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Role {
    /// Takes part in decisions.
    Manager,
    /// Runs replicas only.
    Worker,
}

impl Role {
    /// As in constraints.
    pub fn as_str(self) -> &'static str {
        match self {
            Role::Manager => "manager",
            Role::Worker => "worker",
        }
    }
}

/// What the owner wants of a node (Docker's words), from most to least.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Availability {
    /// Takes new replicas.
    #[default]
    Active,
    /// Keeps what it has, takes nothing new.
    Pause,
    /// Gives away what it has.
    Drain,
}

impl Availability {
    /// As in flags and tables.
    pub fn as_str(self) -> &'static str {
        match self {
            Availability::Active => "active",
            Availability::Pause => "pause",
            Availability::Drain => "drain",
        }
    }
}

/// Whether a node answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum NodeState {
    /// It does.
    #[default]
    Ready,
    /// It does not.
    Down,
}

/// What the owner of a node has set: the part that is stored.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct NodeSettings {
    /// Whether it takes work.
    pub availability: Availability,
    /// Its labels.
    pub labels: BTreeMap<String, String>,
}

/// A change of a node's settings; what is absent stays.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct NodeUpdate {
    /// A new availability.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub availability: Option<Availability>,
    /// A new role, where the engine knows roles: a Swarm.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub role: Option<Role>,
    /// Labels to add or change.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub label_add: BTreeMap<String, String>,
    /// Labels to remove.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub label_rm: Vec<String>,
    /// With a drain: what is there is told to end now, also where nothing takes its place.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub force: bool,
}
