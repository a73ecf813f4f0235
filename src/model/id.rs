//! Identities: ULIDs for services and tasks, slots that stay, revisions by number and hash.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::clock::Clock;
use super::error::{Error, Result};

macro_rules! ulid_id {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(try_from = "String", into = "String")]
        pub struct $name(u128);

        impl $name {
            /// A new one: the clock's wall time and its randomness.
            pub fn new(clock: &dyn Clock) -> Self {
                let random = u128::from(clock.random()) << 64 | u128::from(clock.random());
                $name(ulid::Ulid::from_parts(clock.wall().0, random).0)
            }

            /// A new one that sorts behind `last`, whichever way the clock was set in the meantime.
            pub fn after(clock: &dyn Clock, last: Option<Self>) -> Self {
                let new = Self::new(clock);
                match last {
                    Some(last) if last >= new => {
                        let moment = ulid::Ulid(last.0).timestamp_ms() + 1;
                        $name(ulid::Ulid::from_parts(moment, ulid::Ulid(new.0).random()).0)
                    }
                    _ => new,
                }
            }

            /// The one of this number.
            pub fn numbered(number: u128) -> Self {
                $name(number)
            }
        }

        // Lower case: ids are part of names that may not hold capitals.
        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                let mut buffer = [0; ulid::ULID_LEN];
                let text = ulid::Ulid(self.0).array_to_str(&mut buffer);
                text.make_ascii_lowercase();
                f.pad(text)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(self, f)
            }
        }

        impl FromStr for $name {
            type Err = Error;

            fn from_str(text: &str) -> Result<Self> {
                let read = ulid::Ulid::from_string(text);
                read.map(|id| $name(id.0)).map_err(|_| Error::invalid(format!("id {text:.40?}"), "is not a ULID"))
            }
        }

        impl TryFrom<String> for $name {
            type Error = Error;

            fn try_from(text: String) -> Result<Self> {
                text.parse()
            }
        }

        impl From<$name> for String {
            fn from(id: $name) -> String {
                id.to_string()
            }
        }

        impl JsonSchema for $name {
            fn schema_name() -> std::borrow::Cow<'static, str> {
                stringify!($name).into()
            }

            fn json_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
                schemars::json_schema!({ "type": "string", "description": "A ULID in lower case." })
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
pub type NodeId = Arc<str>;

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

/// An identity in the form of a UUID, the same for the same text.
pub fn uuid_of(text: &str) -> String {
    let hash = sha256_hex(text.as_bytes());
    // Version 8, which leaves the rest to whoever makes it (RFC 9562).
    format!("{}-{}-8{}-a{}-{}", &hash[..8], &hash[8..12], &hash[13..16], &hash[17..20], &hash[20..32])
}

/// A new UUID, of version 4.
pub fn random_uuid(clock: &dyn Clock) -> String {
    let (high, low) = (clock.random(), clock.random());
    let (high, low) = (high & !0xf000 | 0x4000, low & !(0b11 << 62) | 0b10 << 62);
    let (first, second, third) = (high >> 32, high >> 16 & 0xffff, high & 0xffff);
    format!("{first:08x}-{second:04x}-{third:04x}-{:04x}-{:012x}", low >> 48, low & 0xffff_ffff_ffff)
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
        assert_eq!(first.to_string().len(), 26);
        assert_eq!(first.to_string().parse::<TaskId>().unwrap(), first);
        assert_eq!(first, TaskId::new(&ManualClock::new(Timestamp(1_700_000_000_000), 7)));
    }

    #[test]
    fn an_identity_has_the_form_of_a_uuid_of() {
        let id = uuid_of("eu-1");
        assert_eq!(id.len(), 36);
        assert_eq!(id.split('-').map(str::len).collect::<Vec<_>>(), [8, 4, 4, 4, 12]);
        assert_eq!(id, uuid_of("eu-1"));
    }
}
