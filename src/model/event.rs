//! What happened: a closed set.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::clock::Timestamp;
use super::error::{Error, Result};
use super::id::TaskId;
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
    /// The task, where one is concerned.
    #[serde(default, flatten, skip_serializing_if = "Option::is_none")]
    pub task: Option<AboutTask>,
    /// The image, where one is concerned.
    #[serde(default, flatten, skip_serializing_if = "Option::is_none")]
    pub image: Option<AboutImage>,
}

/// The image that an event concerns.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct AboutImage {
    /// Where it is: `shop/api`.
    pub repository: String,
    /// The tag.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tag: Option<String>,
    /// The manifest's digest.
    pub digest: String,
    /// What kind of manifest that is.
    pub media_type: String,
}

/// The task that an event concerns.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct AboutTask {
    /// `web.3`.
    pub task: String,
    /// Its id.
    pub task_id: TaskId,
    /// Its place.
    pub slot: String,
    /// Its revision.
    pub revision: u32,
    /// The host's name of its node, once it has one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node: Option<String>,
    /// That node's identity.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node_id: Option<String>,
    /// Why it is as it is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
}

/// Fields of every event.
const COMMON: [&str; 6] = ["sequence", "at", "what", "service", "subject", "message"];
/// Fields of every event, and those of events about a task.
#[rustfmt::skip]
const TASK: [&str; 13] = [
    "sequence", "at", "what", "service", "subject", "message", "task", "task_id", "slot", "revision", "node", "node_id",
    "reason",
];

/// Fields of every event, and those of events about an image.
#[rustfmt::skip]
const IMAGE: [&str; 10] = [
    "sequence", "at", "what", "service", "subject", "message", "repository", "tag", "digest", "media_type",
];

macro_rules! events {
    ($($(#[doc = $doc:literal])* $name:ident = $text:literal,)*) => {
        /// The kinds of events.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema)]
        pub enum What {
            $($(#[doc = $doc])* #[serde(rename = $text)] $name,)*
        }

        impl What {
            /// All of them.
            pub const ALL: &'static [What] = &[$(What::$name,)*];

            /// As in scripts and streams.
            pub fn as_str(self) -> &'static str {
                match self {
                    $(What::$name => $text,)*
                }
            }

            /// What it means.
            pub fn meaning(self) -> &'static str {
                match self {
                    $(What::$name => concat!($($doc),*).trim_ascii(),)*
                }
            }
        }
    };
}

impl What {
    /// The event of this name.
    pub fn parse(text: &str) -> Result<What> {
        What::ALL.iter().copied().find(|what| what.as_str() == text).ok_or_else(|| {
            let known = What::ALL.iter().map(|what| what.as_str());
            let hint = super::suggest::nearest(text, known).map(|name| format!("; did you mean \"{name}\"?"));
            Error::invalid(format!("event \"{text:.60}\""), format!("is not known{}", hint.unwrap_or_default()))
                .help("`neap events --list` lists them")
        })
    }

    /// The fields that such an event has.
    pub fn fields(self) -> &'static [&'static str] {
        match self.as_str() {
            text if text.starts_with("task.") || self == What::ScriptFailed => &TASK,
            text if text.starts_with("image.") => &IMAGE,
            _ => &COMMON,
        }
    }
}

events! {
    /// A service was created.
    ServiceCreated = "service.created",
    /// A service's description changed.
    ServiceUpdated = "service.updated",
    /// A service is gone.
    ServiceRemoved = "service.removed",
    /// A service of the Swarm's own is Neap's from now on.
    ServiceAdopted = "service.adopted",
    /// A service is the Swarm's own from now on.
    ServiceReleased = "service.released",
    /// A change of who runs a service was given up.
    HandoverFailed = "service.handover_failed",
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
    /// A task that was to be moved stays where it is.
    TaskStays = "task.stays",
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
    /// A node does not answer.
    NodeDown = "node.down",
    /// A node answers again, or for the first time.
    NodeReady = "node.ready",
    /// A node has left the cluster.
    NodeRemoved = "node.removed",
    /// A published port, or one that routes are listened for on, could not be opened.
    PortFailed = "port.failed",
    /// A route that stands for itself was set.
    RouteSet = "route.set",
    /// A route that stands for itself was removed.
    RouteRemoved = "route.removed",
    /// A script failed.
    ScriptFailed = "script.failed",
    /// Hosted scripts were replaced by others.
    ScriptsReloaded = "scripts.reloaded",
    /// Hosted scripts could not be loaded; those before them go on.
    ScriptsRefused = "scripts.refused",
    /// A cron script begins.
    CronStarted = "cron.started",
    /// A run of a cron script ended well.
    CronFinished = "cron.finished",
    /// A run of a cron script failed, took too long, or was left out.
    CronFailed = "cron.failed",
    /// An image was pushed to the registry under a tag, or by its digest alone.
    ImagePushed = "image.pushed",
    /// A tag or a manifest was deleted from the registry.
    ImageDeleted = "image.deleted",
}
