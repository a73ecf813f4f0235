//! What the leading daemon and an agent say to each other.

use std::net::SocketAddr;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::client::images::ask::ImagesAsk;
use crate::client::works::WorkAsk;
use crate::engines::Observed;
use crate::engines::hosts::{ExecAsk, ProbeAsk, ReachAsk};
use crate::engines::registrator::Changed;
use crate::model::Error;
use crate::model::id::{NodeId, TaskId};
use crate::model::moves::ImageMove;
use crate::model::node::ImagePrune;
use crate::model::objects::VolumeAsk;
use crate::model::stats::Measured;
use crate::network::catalog::Portion;
use crate::network::table::Table;

/// The protocol's name in the request that begins it.
pub const UPGRADE: &str = "neap-agent";

/// One message, in either direction.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Frame {
    /// A sign of life.
    Beat,
    /// The first word of a daemon.
    Welcome(Welcome),
    /// The first word of an agent.
    Hello(Hello),
    /// The daemon asks. What an agent does not know it says so of.
    Ask {
        /// Names the answer.
        id: u64,
        /// What is asked: an `Ask`.
        ask: Value,
    },
    /// The agent answers.
    Answer {
        /// What was asked.
        id: u64,
        /// How it went.
        result: Result<Value, Error>,
    },
    /// The agent tells what a container of its host does.
    Seen(Observed),
    /// The agent tells what its registrator has found.
    Containers(Changed),
    /// The agent tells what its host and the containers there use.
    Measured {
        /// How long ago that was measured, in milliseconds.
        age: u64,
        /// What was.
        measured: Measured,
    },
    /// The agent tells that its balancer was started anew.
    Balancer,
    /// The daemon tells where daemons are reached now.
    Daemons(Vec<String>),
    /// The daemon tells where the cluster's images are kept.
    Registry(Keeper),
    /// The daemon tells what the catalogue is, and what of it changes.
    Catalog(Portion),
    /// A client of the agent's asks whoever leads.
    Call {
        /// Names the answer.
        id: u64,
        /// What is asked.
        call: Value,
    },
    /// That client waits no longer.
    Drop {
        /// What was asked.
        id: u64,
    },
    /// The daemon answers.
    Reply {
        /// What was asked.
        id: u64,
        /// How it went.
        result: Result<Value, Error>,
    },
}

/// That a host keeps images.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Keeps {
    /// The port at which the doors of other hosts reach it; 0: it would, and cannot listen.
    pub port: u16,
    /// At this address, where that is not the node's.
    #[serde(default)]
    pub address: Option<std::net::IpAddr>,
    /// The fingerprint of the certificate that it shows there.
    pub fingerprint: String,
    /// The bucket in which it is kept as well: whoever has the same finds everything there.
    #[serde(default)]
    pub bucket: Option<String>,
}

/// Where the cluster's images are kept.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Keeper {
    /// On which node.
    pub node: NodeId,
    /// Where it is reached.
    pub address: SocketAddr,
    /// The fingerprint of the certificate that it shows.
    pub fingerprint: String,
    /// What doors say to it: nobody else knows it.
    pub secret: String,
    /// How often it was said who keeps them: of two hosts with one bucket it is the one that was named later.
    #[serde(default)]
    pub turn: u64,
}

impl std::fmt::Debug for Keeper {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "the image registry of node {} at {}", self.node, self.address)
    }
}

/// What a daemon says first.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Welcome {
    /// Counts the changes of leader: one with a lower term does not lead any more.
    pub term: u64,
    /// The cluster as labels of containers name it.
    pub cluster: String,
    /// The node's address, as the others reach it.
    pub address: std::net::IpAddr,
    /// Where daemons are reached, the one that leads first.
    pub daemons: Vec<String>,
    /// Where the cluster's images are kept, if that is known by now.
    #[serde(default)]
    pub registry: Option<Keeper>,
}

/// What an agent says first.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Hello {
    /// Its version.
    pub version: String,
    /// Where the daemon that it is part of is reached, if it is.
    pub daemon: Option<String>,
    /// The service of the Swarm that it is a task of, if it is.
    #[serde(default)]
    pub service: Option<String>,
    /// That it keeps images, if it does.
    #[serde(default)]
    pub registry: Option<Keeps>,
}

/// What can be asked of an agent.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Ask {
    /// Hand this table to the balancer; the answer is its status.
    Table(Table),
    /// The balancer's status.
    Balancer,
    /// End the balancer.
    StopBalancer,
    /// Run a command in a container.
    Exec(ExecAsk),
    /// Ask a port in a container's network.
    Probe(ProbeAsk),
    /// Try whether another host can be reached.
    Reach(ReachAsk),
    /// Count what tasks use.
    Stats(Vec<TaskId>),
    /// List, make or remove volumes.
    Volumes(VolumeAsk),
    /// Remove images.
    PruneImages(ImagePrune),
    /// Ask the image registry of its host.
    Images(ImagesAsk),
    /// Let its Docker Engine get an image, or bring it to a registry; a number for that is answered.
    MoveImage(ImageMove),
    /// How far that is, or that nobody waits for it any more.
    Work(WorkAsk),
}
