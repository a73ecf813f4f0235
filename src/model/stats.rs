//! What replicas use of their hosts.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::id::TaskId;
use super::units::Bytes;

/// What a task uses, as its host counts it.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize, JsonSchema)]
pub struct Stats {
    /// Cores, over the last second or so: 0.5 is half of one.
    pub cpu: f64,
    /// Memory, in bytes, without what the kernel keeps of files and could give up.
    pub memory: Bytes,
    /// What it may use at most, in bytes: its limit, else all that the host has.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory_limit: Option<Bytes>,
    /// Received over its networks since it started, in bytes; none where nobody counts it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub received: Option<Bytes>,
    /// Sent over its networks since it started, in bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sent: Option<Bytes>,
    /// Read from disks since it started, in bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub read: Option<Bytes>,
    /// Written to disks since it started, in bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub written: Option<Bytes>,
    /// Processes and threads.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pids: Option<u64>,
}

/// A running task and what it uses.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct TaskStats {
    /// `web.3`.
    pub task: String,
    /// Its id.
    pub id: TaskId,
    /// Its node's host name.
    pub node: String,
    /// What it uses.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stats: Option<Stats>,
    /// Why that is not known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
}
