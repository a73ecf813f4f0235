//! What replicas use of their hosts.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize, Serializer};

use super::id::TaskId;
use super::units::Bytes;

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
