//! The balancer's table: which ports it listens on, and who stands behind each.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::model::id::TaskId;
use crate::model::port::{Balance, Protocol};
use crate::model::route::{ProxyVersion, RouteSpec};
use crate::model::units::Duration;

/// All listeners; a newer version replaces the older one whole.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Table {
    /// Counts up with each change.
    pub version: u64,
    /// Listeners by `service/port`.
    pub listeners: BTreeMap<String, Listener>,
    /// Ports where HTTP is spoken, by `PORT` or `ADDRESS:PORT`.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub fronts: BTreeMap<String, Front>,
}

/// A port where HTTP is spoken.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Front {
    /// Where it listens; all interfaces where none is given.
    pub address: Option<IpAddr>,
    /// The port.
    pub port: u16,
    /// Whether every connection begins with a word of the PROXY protocol.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub proxy: bool,
    /// Whether TLS ends here.
    #[serde(default)]
    pub tls: bool,
    /// What is shown then; the first one for names that none is for.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub certificates: Vec<Certificate>,
    /// Hosts whose certificate cannot be read now: the one that was shown for them before goes on.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub unread: BTreeSet<String>,
    /// Where requests go.
    pub routes: Vec<Route>,
}

/// A certificate and its key.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Certificate {
    /// The hosts that it is shown for, as routes name them.
    pub hosts: BTreeSet<String>,
    /// The chain, PEM.
    pub chain: String,
    /// The key, PEM.
    pub key: String,
}

impl std::fmt::Debug for Certificate {
    fn fmt(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
        f.debug_struct("Certificate").field("hosts", &self.hosts).finish_non_exhaustive()
    }
}

/// Requests that go one way.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Route {
    /// What it is called.
    pub name: String,
    /// Which requests, and how.
    pub spec: RouteSpec,
    /// Who answers them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub to: Vec<Target>,
}

/// A part of a route's requests.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Target {
    /// The service.
    #[serde(default)]
    pub service: String,
    /// Its share, beside those of the others.
    pub weight: u32,
    /// Who answers.
    pub backends: Vec<Backend>,
}

/// One published port.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Listener {
    /// Where it listens; all interfaces where none is given.
    pub address: Option<IpAddr>,
    /// The port.
    pub port: u16,
    /// Whether the address is a service's own, which hosts have for its sake.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub internal: bool,
    /// What is spoken.
    #[serde(default, skip_serializing_if = "is_tcp")]
    pub protocol: Protocol,
    /// How a backend is chosen.
    pub balance: Balance,
    /// Whether every connection begins with a word of the PROXY protocol.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub accept_proxy: bool,
    /// Whether connections to backends begin with such a word.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub send_proxy: Option<ProxyVersion>,
    /// Most connections at a time; others wait.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_connections: Option<u32>,
    /// When a connection over which nothing goes is ended, or a silent client of UDP forgotten.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub idle_timeout: Option<Duration>,
    /// Where a line for each connection is sent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub access_log: Option<SocketAddr>,
    /// Who stands behind it.
    pub backends: Vec<Backend>,
}

fn is_tcp(protocol: &Protocol) -> bool {
    *protocol == Protocol::Tcp
}

impl Listener {
    /// Whether a socket with this address of its own is the one that it asks for.
    pub fn is_at(&self, local: SocketAddr) -> bool {
        let address = self.address.map_or(local.ip().is_unspecified(), |address| address == local.ip());
        address && local.port() == self.port
    }

    /// The tasks that get new connections.
    pub fn takers(&self) -> impl Iterator<Item = TaskId> {
        self.backends.iter().filter(|backend| backend.weight > 0).map(|backend| backend.id)
    }
}

impl Front {
    /// Everybody behind it.
    pub fn backends(&self) -> impl Iterator<Item = &Backend> {
        self.routes.iter().flat_map(|route| &route.to).flat_map(|target| &target.backends)
    }
}

impl Table {
    /// Whether it says the same as another, whatever their versions.
    pub fn says(&self, other: &Table) -> bool {
        self.listeners == other.listeners && self.fronts == other.fronts
    }

    /// Whether nothing is listened for.
    pub fn is_empty(&self) -> bool {
        self.listeners.is_empty() && self.fronts.is_empty()
    }
}

/// One replica behind a port.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Backend {
    /// Its task.
    pub id: TaskId,
    /// Where it listens.
    pub address: String,
    /// Its share of new connections; 0 for one that is being drained.
    pub weight: u32,
}

/// What the balancer says of itself: the answer to a table, and to a question.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Status {
    /// The version of the table that new connections follow.
    pub version: u64,
    /// The balancer's process id.
    pub pid: u32,
    /// Open connections by task.
    pub connections: BTreeMap<TaskId, u32>,
    /// Listeners that could not be opened, and why.
    pub failed: BTreeMap<String, String>,
    /// Connections accepted since the start.
    pub accepted: u64,
    /// Connections closed because no backend took them.
    pub refused: u64,
    /// Requests that no route was for.
    #[serde(default)]
    pub unrouted: u64,
    /// Connections that sent what is no HTTP, or could be read in two ways.
    #[serde(default)]
    pub malformed: u64,
    /// What went by each route, by its name.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub routes: BTreeMap<String, Passed>,
    /// What went by each port: `service/port`, or as `fronts` names them.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub ports: BTreeMap<String, Flowed>,
    /// What went to each replica, by routes and ports.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub backends: BTreeMap<TaskId, Carried>,
    /// Where there are several balancers: the nodes whose balancer could not be asked, and why. They may still have an
    /// older table.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub missing: BTreeMap<String, String>,
}

/// Upper bounds of the times that answers are counted by, in milliseconds; the last has none.
pub const TIMES: [u64; 11] = [1, 2, 5, 10, 25, 50, 100, 250, 1000, 5000, 30_000];

/// What went by a route since the balancer started.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct Passed {
    /// Requests answered, by the first digit of their status: `[0]` is 1xx.
    pub answers: [u64; 5],
    /// Tries beyond the first.
    pub retries: u64,
    /// Answers by how long they took, each counted once, as `TIMES` has them.
    pub times: [u64; TIMES.len() + 1],
    /// The sum of those times, in microseconds.
    pub micros: u64,
    /// Requests that went by shares, because the route's script failed or said nothing of use.
    #[serde(skip_serializing_if = "is_none")]
    pub unchosen: u64,
    /// Why, the last time.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub why_unchosen: Option<String>,
}

fn is_none(count: &u64) -> bool {
    *count == 0
}

impl Passed {
    /// Adds what went by it elsewhere.
    pub fn add(&mut self, other: &Passed) {
        let sums = self.answers.iter_mut().zip(other.answers).chain(self.times.iter_mut().zip(other.times));
        let sums = sums.chain([
            (&mut self.retries, other.retries),
            (&mut self.micros, other.micros),
            (&mut self.unchosen, other.unchosen),
        ]);
        sums.for_each(|(sum, more)| *sum = sum.saturating_add(more));
        self.why_unchosen = self.why_unchosen.take().or_else(|| other.why_unchosen.clone());
    }
}

/// What went by a port since the balancer started.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct Flowed {
    /// Connections that are open; for UDP clients that are served.
    pub open: u32,
    /// Connections accepted; for UDP clients.
    pub connections: u64,
    /// Those that no replica took.
    pub refused: u64,
    /// Tries beyond the first; of HTTP counted by route.
    pub retries: u64,
    /// Requests of HTTP that no route was for.
    pub unrouted: u64,
    /// Connections that sent what is no HTTP, or could be read in two ways, or do not say whose they are where they have to.
    pub malformed: u64,
    /// Bytes of clients.
    pub bytes_in: u64,
    /// Bytes for clients.
    pub bytes_out: u64,
}

impl Flowed {
    /// Adds what went by elsewhere.
    pub fn add(&mut self, other: &Flowed) {
        self.open = self.open.saturating_add(other.open);
        let sums = [
            (&mut self.connections, other.connections),
            (&mut self.refused, other.refused),
            (&mut self.retries, other.retries),
            (&mut self.unrouted, other.unrouted),
            (&mut self.malformed, other.malformed),
            (&mut self.bytes_in, other.bytes_in),
            (&mut self.bytes_out, other.bytes_out),
        ];
        sums.into_iter().for_each(|(sum, more)| *sum = sum.saturating_add(more));
    }
}

impl Carried {
    /// Adds what was sent to it from elsewhere.
    pub fn add(&mut self, other: &Carried) {
        self.requests = self.requests.saturating_add(other.requests);
        self.failures = self.failures.saturating_add(other.failures);
        self.ejections = self.ejections.saturating_add(other.ejections);
    }
}

/// What went to a replica since it is known to the balancer.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
pub struct Carried {
    /// Requests sent, and connections.
    pub requests: u64,
    /// Those that failed for its sake: refused, broken off, too late.
    pub failures: u64,
    /// How often it got nothing for a while because of that.
    pub ejections: u64,
}
