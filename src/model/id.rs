//! Identities: ULIDs for services and tasks, slots that stay, revisions by number and hash.

use std::fmt;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::clock::Clock;

macro_rules! ulid_id {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema)]
        #[serde(transparent)]
        pub struct $name(pub String);

        impl $name {
            /// A new one: the clock's wall time and its randomness.
            pub fn new(clock: &dyn Clock) -> Self {
                let random = u128::from(clock.random()) << 64 | u128::from(clock.random());
                $name(ulid::Ulid::from_parts(clock.wall().0, random).to_string().to_lowercase())
            }

            /// The last eight characters, random, for names that people read.
            pub fn short(&self) -> &str {
                self.0.get(self.0.len().saturating_sub(8)..).unwrap_or(&self.0)
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }
    };
}

ulid_id!(
    /// A service's identity: stays through all its revisions; a new one when a service is removed and created again.
    ServiceId
);
ulid_id!(
    /// A task's identity: one attempt to run one replica.
    TaskId
);

/// A node's identity: in the process engine the host's name, in a Swarm the node's id.
pub type NodeId = String;

/// The place that a task fills. It stays when the task is replaced.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Slot {
    /// The n-th replica, counted from 1.
    Replica(u32),
    /// The one replica of a global service on this node.
    Node(NodeId),
}

impl fmt::Display for Slot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Slot::Replica(number) => write!(f, "{number}"),
            Slot::Node(node) => f.write_str(node),
        }
    }
}

/// SHA-256 as lower-case hexadecimal digits.
pub fn sha256_hex(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().fold(String::with_capacity(64), |mut text, byte| {
        use fmt::Write;
        let _ = write!(text, "{byte:02x}");
        text
    })
}

#[cfg(test)]
mod tests {
    use super::super::clock::{ManualClock, Timestamp};
    use super::*;

    #[test]
    fn ids_sort_by_time_and_are_seeded() {
        let clock = ManualClock::new(Timestamp(1_700_000_000_000), 7);
        let first = TaskId::new(&clock);
        clock.advance(super::super::units::Duration::from_millis(1));
        let second = TaskId::new(&clock);
        assert!(first < second);
        assert_eq!(first.0.len(), 26);
        assert_eq!(first, TaskId::new(&ManualClock::new(Timestamp(1_700_000_000_000), 7)));
    }
}
