//! What happened: a closed set.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::clock::Timestamp;
use super::name::Name;

/// Something that happened, in the order in which it did.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Event {
    /// Counts up without gaps while a daemon lives.
    pub sequence: u64,
    /// When.
    pub at: Timestamp,
    /// What.
    pub what: What,
    /// The service.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub service: Option<Name>,
    /// Whom it concerns, as users call it: `web.3`, `eu-1`.
    pub subject: String,
    /// In words.
    pub message: String,
}

macro_rules! events {
    ($($(#[$doc:meta])* $name:ident = $text:literal,)*) => {
        /// The kinds of events.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
        pub enum What {
            $($(#[$doc])* #[serde(rename = $text)] $name,)*
        }

        impl What {
            /// As in scripts and streams.
            pub fn as_str(self) -> &'static str {
                match self {
                    $(What::$name => $text,)*
                }
            }
        }
    };
}

events! {
    /// A service was created.
    ServiceCreated = "service.created",
    /// A service's description changed.
    ServiceUpdated = "service.updated",
    /// A service is gone.
    ServiceRemoved = "service.removed",
    /// A task was made and waits.
    TaskPending = "task.pending",
    /// A task was placed on a node.
    TaskAssigned = "task.assigned",
    /// A task runs.
    TaskRunning = "task.running",
    /// A task passes its check.
    TaskHealthy = "task.healthy",
    /// A task fails its check.
    TaskUnhealthy = "task.unhealthy",
    /// A task was told to end.
    TaskStopping = "task.stopping",
    /// A task ended as it should.
    TaskEnded = "task.ended",
    /// A task failed.
    TaskFailed = "task.failed",
    /// A release began.
    ReleaseStarted = "release.started",
    /// A release took a step.
    ReleaseStep = "release.step",
    /// A release ended well.
    ReleasePromoted = "release.promoted",
    /// A release goes back.
    ReleaseRollback = "release.rollback",
    /// A release went back.
    ReleaseRolledBack = "release.rolled_back",
    /// A release waits for a person.
    ReleasePaused = "release.paused",
    /// A release goes on.
    ReleaseResumed = "release.resumed",
    /// A release ended half-way.
    ReleaseFailed = "release.failed",
    /// A node's settings changed.
    NodeUpdated = "node.updated",
    /// A published port could not be opened.
    PortFailed = "port.failed",
    /// A script failed.
    ScriptFailed = "script.failed",
}
