//! A node: where replicas run, what it offers, and what its owner wants of it.

use std::collections::BTreeMap;
use std::net::IpAddr;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::id::NodeId;
use super::units::{Bytes, Cpu};
use super::{Error, Kind, Result};

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
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
pub struct Agent {
    /// Whether it answers.
    pub connected: bool,
    /// Whether it is part of a daemon.
    pub daemon: bool,
    /// Its version, once known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub version: Option<String>,
    /// The service of the Swarm that it is a task of, where it is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub service: Option<String>,
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

/// The node of this id, or else of this host name. A host that has left and come back has two entries of one name: the one that
/// is there is meant; where that does not tell, neither is.
pub fn named<'a>(nodes: impl IntoIterator<Item = &'a Node>, name: &str) -> Result<&'a Node> {
    let subject = || format!("node \"{name:.70}\"");
    let nodes: Vec<&Node> = nodes.into_iter().collect();
    if let Some(node) = nodes.iter().find(|node| *node.id == *name) {
        return Ok(node);
    }
    let all: Vec<&Node> = nodes.iter().filter(|node| node.hostname == name).copied().collect();
    let there: Vec<&Node> = all.iter().filter(|node| node.state != NodeState::Down).copied().collect();
    match (all.as_slice(), there.as_slice()) {
        ([one], _) | (_, [one]) => Ok(one),
        ([], _) => {
            let near = super::suggest::nearest(name, nodes.iter().map(|node| node.hostname.as_str()));
            let help = near.map_or("`neap node ls` lists them".to_owned(), |near| format!("did you mean \"{near}\"?"));
            Err(Error::not_found(subject()).help(help))
        }
        _ => {
            let ids: Vec<&str> = all.iter().map(|node| &*node.id).collect();
            let message = format!("is the name of {} hosts", all.len());
            Err(Error::new(Kind::Conflict, subject(), message).help(format!("say which by its id: {}", ids.join(", "))))
        }
    }
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn by_id_or_by_a_name_that_is_one_hosts() {
        let node = |id: &str, hostname: &str, state| Node { state, ..Node::new(id, hostname) };
        let nodes = [
            node("a1", "eu-1", NodeState::Down),
            node("a2", "eu-1", NodeState::Ready),
            node("b1", "eu-2", NodeState::Ready),
            node("b2", "eu-2", NodeState::Ready),
            node("eu-2x", "eu-3", NodeState::Down),
        ];
        let check = |name: &str, expected: &str| {
            let got = match named(nodes.iter(), name) {
                Ok(node) => node.id.to_string(),
                Err(error) => format!("{} {}", error.message, error.help.unwrap_or_default()),
            };
            assert!(got.contains(expected), "{name}: {got}");
        };
        check("a1", "a1");
        check("eu-1", "a2");
        check("eu-2", "is the name of 2 hosts say which by its id: b1, b2");
        check("eu-3", "eu-2x");
        check("eu-4", "did you mean");
        check("nothing", "`neap node ls`");
    }
}
