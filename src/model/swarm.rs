//! What is said and changed of a Swarm as a whole, with Docker's words: its authority, and the lock of its managers.

use std::fmt;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// What is asked. Variants without fields have braces: only so is a field that they do not have refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(tag = "action", rename_all = "snake_case", deny_unknown_fields)]
pub enum SwarmAsk {
    /// How it is.
    Show {},
    /// Make the authority's certificate anew, and with it those of all nodes. Swarm's own join tokens change by it.
    RotateCa {},
    /// Lock managers, or lock them no more: one that starts again waits for the key.
    Autolock {
        /// Whether they are locked.
        on: bool,
    },
    /// The key, too.
    UnlockKey {},
    /// Make the key anew; the one before unlocks no manager that learns of it.
    RotateUnlockKey {},
}

/// How a Swarm is.
#[derive(Clone, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct SwarmState {
    /// Whether a manager that starts again waits for the key.
    pub autolock: bool,
    /// The authority's certificate, in PEM.
    pub ca_certificate: String,
    /// Whether nodes are still getting certificates of a new authority.
    pub ca_rotating: bool,
    /// The key of its managers, where it was asked for and there is one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub unlock_key: Option<String>,
}

impl fmt::Debug for SwarmState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SwarmState(autolock {}, the key not shown)", self.autolock)
    }
}
