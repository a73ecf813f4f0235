//! The balancer's table: which ports it listens on, and who stands behind each.

use std::collections::BTreeMap;
use std::net::IpAddr;

use serde::{Deserialize, Serialize};

use crate::model::id::TaskId;
use crate::model::port::Balance;

/// All listeners; a newer version replaces the older one whole.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Table {
    /// Counts up with each change.
    pub version: u64,
    /// Listeners by `service/port`.
    pub listeners: BTreeMap<String, Listener>,
}

/// One published port.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Listener {
    /// Where it listens; all interfaces where none is given.
    pub address: Option<IpAddr>,
    /// The port.
    pub port: u16,
    /// How a backend is chosen.
    pub balance: Balance,
    /// Who stands behind it.
    pub backends: Vec<Backend>,
}

impl Listener {
    /// The tasks that get new connections.
    pub fn takers(&self) -> impl Iterator<Item = TaskId> {
        self.backends.iter().filter(|backend| backend.weight > 0).map(|backend| backend.id)
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
    /// Where there are several balancers: the nodes whose balancer could not be asked, and why. They may still have an
    /// older table.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub missing: BTreeMap<String, String>,
}
