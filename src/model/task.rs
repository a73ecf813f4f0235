//! A task: one attempt to run one replica. It is made, it runs, it ends; it never starts twice.

use std::collections::BTreeMap;
use std::fmt;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::clock::Timestamp;
use super::id::{NodeId, ServiceId, Slot, TaskId};
use super::name::Name;

/// A task as it is stored.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Task {
    /// Its identity.
    pub id: TaskId,
    /// The service's name.
    pub service: Name,
    /// The service's identity: a service removed and created again has another.
    pub service_id: ServiceId,
    /// The place it fills.
    pub slot: Slot,
    /// The revision it runs.
    pub revision: u32,
    /// The node it was placed on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node: Option<NodeId>,
    /// How far it is.
    pub state: TaskState,
    /// What its check says.
    pub health: Health,
    /// Why it is as it is: a refusal, an exit, a failed check.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// What could not be done as asked (a limit not enforced).
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub warnings: Vec<String>,
    /// Where its ports are reached, by name.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub ports: BTreeMap<String, String>,
    /// The process id of the replica, where it is a process.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pid: Option<u32>,
    /// Set once it is to end.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stop: Option<Stop>,
    /// Set while a rebalance is to move it: it serves until its successor elsewhere is healthy.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub leaving: Option<Leaving>,
    /// How it ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub exit: Option<Exit>,
    /// How often in a row there was no room for the one in this place, this one included: no failures of its revision.
    #[serde(default, skip_serializing_if = "is_none")]
    pub no_room: u32,
    /// Failures in a row in this slot and revision before this task.
    #[serde(default)]
    pub failures: u32,
    /// It is not started before.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub not_before: Option<Timestamp>,
    /// When it was made.
    pub created_at: Timestamp,
    /// When its process or container ran.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub started_at: Option<Timestamp>,
    /// Since when it is healthy without a break.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub healthy_at: Option<Timestamp>,
    /// When it ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub finished_at: Option<Timestamp>,
}

/// That a rebalance is to move a task.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Leaving {
    /// Since when.
    pub at: Timestamp,
    /// By how much another node's score has to be higher.
    pub min_gain: f64,
}

impl Task {
    /// Whether it was to take the place of one that a rebalance moves, and did not: it says nothing of the slot.
    pub fn was_on_trial(&self) -> bool {
        self.stop.as_ref().is_some_and(|stop| stop.why == StopReason::Moved)
    }

    /// Whether it was told to end and nobody could be asked how it did: lost with its node, it failed in nothing.
    pub fn went_with_its_node(&self) -> bool {
        self.state == TaskState::Lost && self.stop.is_some()
    }

    /// Whether it ended because its node had no room for it.
    pub fn found_no_room(&self) -> bool {
        self.no_room > 0 && self.state == TaskState::Rejected
    }

    /// Whether its end says nothing of what it is made of: it was lost with its node, or found no room on one.
    pub fn failed_in_nothing(&self) -> bool {
        self.found_no_room() || self.went_with_its_node()
    }

    /// As users call it: `web.3`.
    pub fn label(&self) -> String {
        format!("{}.{}", self.service, self.slot)
    }

    /// Whether it is meant to run.
    pub fn wanted(&self) -> bool {
        self.stop.is_none() && !self.state.is_final()
    }

    /// Whether it runs and passes its check (or has none).
    pub fn is_healthy(&self) -> bool {
        self.state == TaskState::Running && matches!(self.health, Health::None | Health::Healthy)
    }

    /// Whether failures follow each other so fast that waiting is all it does. One that has come to run does something else,
    /// however often those before it failed.
    pub fn is_crash_looping(&self) -> bool {
        self.failures >= CRASH_LOOP && self.state < TaskState::Running
    }
}

// By reference, as serde asks.
fn is_none(count: &u32) -> bool {
    *count == 0
}

/// From so many failures in a row on, a slot is in a crash loop.
pub const CRASH_LOOP: u32 = 3;

/// How far a task is. States only move forward.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum TaskState {
    /// No node yet, or waiting to be tried again.
    Pending,
    /// Reserved on a node; written down before anything is started.
    Assigned,
    /// The engine is starting it.
    Starting,
    /// Its process or container runs.
    Running,
    /// It was told to end.
    Stopping,
    /// It ended by itself with exit code 0.
    Complete,
    /// It ended because it was told to.
    Shutdown,
    /// It ended by itself with an error, or failed its check.
    Failed,
    /// The engine could not start it.
    Rejected,
    /// Nobody knows how it ended.
    Lost,
}

impl TaskState {
    /// Whether nothing runs any more.
    pub fn is_final(self) -> bool {
        self >= TaskState::Complete
    }

    /// As in tables.
    pub fn as_str(self) -> &'static str {
        match self {
            TaskState::Pending => "pending",
            TaskState::Assigned => "assigned",
            TaskState::Starting => "starting",
            TaskState::Running => "running",
            TaskState::Stopping => "stopping",
            TaskState::Complete => "complete",
            TaskState::Shutdown => "shutdown",
            TaskState::Failed => "failed",
            TaskState::Rejected => "rejected",
            TaskState::Lost => "lost",
        }
    }
}

/// What a task's check says.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Health {
    /// It has no check.
    #[default]
    None,
    /// It has not passed yet.
    Starting,
    /// It passes.
    Healthy,
    /// It failed as often as the check allows.
    Unhealthy,
}

impl Health {
    /// As in tables.
    pub fn as_str(self) -> &'static str {
        match self {
            Health::None => "-",
            Health::Starting => "starting",
            Health::Healthy => "healthy",
            Health::Unhealthy => "unhealthy",
        }
    }
}

/// That and why a task is to end.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Stop {
    /// Why.
    pub why: StopReason,
    /// Since when.
    pub at: Timestamp,
}

/// Why a task is to end.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum StopReason {
    /// Fewer replicas are asked for.
    ScaledDown,
    /// Another revision takes its place.
    Replaced,
    /// Its service is removed.
    Removed,
    /// It failed its check.
    Unhealthy,
    /// Its node is to be empty, or no longer fits.
    Drained,
    /// Its successor runs on a node that suits the policy better.
    Moved,
    /// Somebody else has changed or removed what it runs in.
    Changed,
}

impl StopReason {
    /// As in tables.
    pub fn as_str(self) -> &'static str {
        match self {
            StopReason::ScaledDown => "scaled down",
            StopReason::Replaced => "replaced by another revision",
            StopReason::Removed => "service removed",
            StopReason::Unhealthy => "failed its check",
            StopReason::Drained => "node drained or no longer fits",
            StopReason::Moved => "moved by a rebalance",
            StopReason::Changed => "changed by somebody else",
        }
    }
}

/// How a process ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Exit {
    /// With this code.
    Code(i32),
    /// By this signal.
    Signal(i32),
    /// Nobody saw it end (its keeper was lost, its host went away), and the code is lost.
    Unknown,
}

impl fmt::Display for Exit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Exit::Code(code) => write!(f, "exit code {code}"),
            Exit::Signal(signal) => match nix::sys::signal::Signal::try_from(*signal) {
                Ok(name) => write!(f, "killed by {name}"),
                Err(_) => write!(f, "killed by signal {signal}"),
            },
            Exit::Unknown => f.write_str("exit code unknown: nobody saw it end"),
        }
    }
}
