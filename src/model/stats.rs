//! What hosts have and use, and what replicas use of them.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize, Serializer};

use super::id::{NodeId, TaskId};
use super::units::{Bytes, Duration};

/// What a task uses, as its host counts it.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize, JsonSchema)]
pub struct Stats {
    /// Cores, over the last second or so: 0.5 is half of one.
    pub cpu: f64,
    /// Memory, in bytes, without what the kernel keeps of files and could give up.
    #[serde(serialize_with = "number")]
    pub memory: Bytes,
    /// What it may use at most, in bytes: its limit, else all that the host has.
    #[serde(default, skip_serializing_if = "Option::is_none", serialize_with = "some_number")]
    pub memory_limit: Option<Bytes>,
    /// Received over its networks since it started, in bytes; none where nobody counts it.
    #[serde(default, skip_serializing_if = "Option::is_none", serialize_with = "some_number")]
    pub received: Option<Bytes>,
    /// Sent over its networks since it started, in bytes.
    #[serde(default, skip_serializing_if = "Option::is_none", serialize_with = "some_number")]
    pub sent: Option<Bytes>,
    /// Read from disks since it started, in bytes.
    #[serde(default, skip_serializing_if = "Option::is_none", serialize_with = "some_number")]
    pub read: Option<Bytes>,
    /// Written to disks since it started, in bytes.
    #[serde(default, skip_serializing_if = "Option::is_none", serialize_with = "some_number")]
    pub written: Option<Bytes>,
    /// Processes and threads.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pids: Option<u64>,
}

// To be counted with, and not to be read: a number always, where a description writes "64MiB".
fn number<S: Serializer>(bytes: &Bytes, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_u64(bytes.0)
}

fn some_number<S: Serializer>(bytes: &Option<Bytes>, serializer: S) -> Result<S::Ok, S::Error> {
    match bytes {
        Some(bytes) => number(bytes, serializer),
        None => serializer.serialize_none(),
    }
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

/// What a host has and uses, as whoever acts on it measures it. Rates are over the period since the measurement before.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize, JsonSchema)]
pub struct HostStats {
    /// Cores that were busy: 0.5 is half of one.
    pub cpu: f64,
    /// Cores that there are.
    pub cores: u32,
    /// How many threads ran or waited to run, over the last minute.
    pub load: f64,
    /// Memory in use, in bytes, without what the kernel keeps of files and could give up.
    #[serde(serialize_with = "number")]
    pub memory: Bytes,
    /// Memory that there is, in bytes.
    #[serde(serialize_with = "number")]
    pub memory_total: Bytes,
    /// Memory that was moved to disks, in bytes.
    #[serde(serialize_with = "number")]
    pub swap: Bytes,
    /// In use of the file system that holds containers, in bytes; none where it is not seen from there.
    #[serde(default, skip_serializing_if = "Option::is_none", serialize_with = "some_number")]
    pub disk: Option<Bytes>,
    /// Its size, without what is kept for the host's owner, in bytes.
    #[serde(default, skip_serializing_if = "Option::is_none", serialize_with = "some_number")]
    pub disk_total: Option<Bytes>,
    /// Received over the host's network, in bytes a second.
    #[serde(serialize_with = "number")]
    pub received: Bytes,
    /// Sent, in bytes a second.
    #[serde(serialize_with = "number")]
    pub sent: Bytes,
    /// Read from disks, in bytes a second.
    #[serde(serialize_with = "number")]
    pub read: Bytes,
    /// Written to disks, in bytes a second.
    #[serde(serialize_with = "number")]
    pub written: Bytes,
    /// How much of the last ten seconds something waited (pressure stall information), where the kernel tells.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pressure: Option<Pressure>,
}

/// The share of time, from 0 to 1, in which some thread waited for it.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize, JsonSchema)]
pub struct Pressure {
    /// For a core.
    pub cpu: f64,
    /// For memory.
    pub memory: f64,
    /// For a disk.
    pub io: f64,
}

/// A container, or a process of ours, and what it uses.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize, JsonSchema)]
pub struct ContainerStats {
    /// The container's name; empty where a task is a process.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub name: String,
    /// The container's id, shortened as Docker does.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub container: String,
    /// The image that it was made of.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub image: String,
    /// The task that it is, where it is one: its id.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub id: Option<TaskId>,
    /// That task's name: `web.3`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub task: Option<String>,
    /// What it uses.
    #[serde(flatten)]
    pub stats: Stats,
}

/// What a host has told last.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct Measured {
    /// The host itself; none where only its containers are seen.
    pub host: Option<HostStats>,
    /// How many containers run.
    pub running: u32,
    /// They, by name; those that have only begun come with the next.
    pub containers: Vec<ContainerStats>,
    /// What could not be measured, and why.
    pub trouble: Option<String>,
}

/// A node and what is used of it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct NodeStats {
    /// Its host name.
    pub node: String,
    /// Its id.
    pub id: NodeId,
    /// How long ago that was measured.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub age: Option<Duration>,
    /// What the host has and uses.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub host: Option<HostStats>,
    /// How many containers, or processes of ours, run there.
    pub running: u32,
    /// They, where they were asked for.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub containers: Vec<ContainerStats>,
    /// Why something of it is not known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_numbers_whatever_they_are() {
        let stats = Stats { memory: Bytes(3_211_264), memory_limit: Some(Bytes(64 << 20)), ..Stats::default() };
        let json = serde_json::json!(stats);
        assert_eq!(json, serde_json::json!({ "cpu": 0.0, "memory": 3_211_264, "memory_limit": 67_108_864 }));
        assert_eq!(serde_json::from_value::<Stats>(json).unwrap(), stats);
    }
}
