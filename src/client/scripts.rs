//! Hosted scripts, cron scripts and handlers, as they are asked for and shown.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::model::bundle::{Bundle, HostedKind, Registration, ScriptSet};
use crate::model::clock::Timestamp;
use crate::model::cron::{CronRun, Overlap};
use crate::model::event::Event;
use crate::model::units::Duration;

/// Scripts to push.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Push {
    /// The scripts.
    pub bundle: Bundle,
    /// Only say what would be registered, and whether it could be.
    #[serde(default)]
    pub check_only: bool,
}

/// Going back to an earlier version.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct Back {
    /// The version, or the beginning of its hash; the one before the active one where none is named.
    pub to: Option<String>,
}

/// A set and what it registers.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct ScriptStatus {
    /// The set.
    pub set: ScriptSet,
    /// What its active version registers.
    pub registrations: Vec<Registration>,
}

/// A set with its sources.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct ScriptSource {
    /// The set.
    pub set: ScriptSet,
    /// The version that was asked for.
    pub version: String,
    /// Its files.
    pub bundle: Bundle,
}

/// What was called how often.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct ScriptCalls {
    /// What sort.
    pub kind: HostedKind,
    /// Its name.
    pub name: String,
    /// Whose: `scripts "shop"`, `service "web"`, `library`; empty for a version that is no longer active.
    pub owner: String,
    /// The version, by hash.
    pub bundle: String,
    /// How often it was called since the daemon started.
    pub calls: u64,
    /// How often it failed.
    pub errors: u64,
    /// All calls together, in milliseconds of computing and waiting.
    pub total_ms: f64,
    /// The longest one.
    pub longest_ms: f64,
    /// What its VM held after the last call, in bytes; shared by what one file set registers for a kind.
    pub memory: u64,
    /// The last failure.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_error: Option<String>,
    /// Why it is not called any more, if so.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub quarantine: Option<String>,
}

/// A cron script.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct CronStatus {
    /// Its name.
    pub name: String,
    /// Whose: `scripts "shop"`, `service "web"`.
    pub owner: String,
    /// When it runs.
    pub schedule: String,
    /// By whose clock.
    pub timezone: String,
    /// What happens when the run before still goes on.
    pub overlap: Overlap,
    /// How long a run may take.
    pub timeout: Duration,
    /// Whether it does not run by schedule at present.
    pub paused: bool,
    /// When it is due next; none while it is paused.
    pub next_at: Option<Timestamp>,
    /// The last runs, oldest first.
    pub history: Vec<CronRun>,
}

/// A delivery of an event that failed.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct FailedDelivery {
    /// The handler.
    pub handler: String,
    /// When.
    pub at: Timestamp,
    /// The event.
    pub event: Event,
    /// Why.
    pub error: String,
}
