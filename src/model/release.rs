//! A release: one revision of a service taking another's place, step by step, as a rollout script decides.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::clock::Timestamp;
use super::id::Slot;
use super::name::Name;
use super::service::Use;
use super::units::Duration;

/// A release as it is stored; all that a new daemon needs to go on with it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Release {
    /// The service.
    pub service: Name,
    /// The revision that ran before.
    pub from: u32,
    /// The revision that comes in.
    pub to: u32,
    /// The revision to go back to: the last one that was healthy.
    pub back: u32,
    /// The rollout script and its options.
    pub rollout: Use,
    /// The scripts it began with, by hash; a reload does not change a release in progress.
    #[serde(default)]
    pub bundle: Option<String>,
    /// How it stands.
    pub state: ReleaseState,
    /// The step that is being carried out, counted from 1; 0 before the first.
    pub step: u32,
    /// What the script asked for in this step; carried out to its end. Asked again only after a failure broke off its hold.
    #[serde(default)]
    pub intent: Option<Intent>,
    /// When the intent was written down.
    #[serde(default)]
    pub intent_at: Option<Timestamp>,
    /// Slots that are to run `to`.
    pub moved: BTreeSet<Slot>,
    /// Slots that an earlier, overtaken release left on a revision other than `from`.
    #[serde(default, with = "pairs")]
    #[schemars(with = "Vec<(Slot, u32)>")]
    pub base: BTreeMap<Slot, u32>,
    /// New tasks that failed, and why.
    #[serde(default, with = "pairs")]
    #[schemars(with = "Vec<(Slot, String)>")]
    pub failed: BTreeMap<Slot, String>,
    /// Order of replacement, from the latest batch.
    pub order: Order,
    /// Percent of new connections that `to` gets, while a shift says so.
    #[serde(default)]
    pub weight: Option<u32>,
    /// Why it stands so.
    #[serde(default)]
    pub reason: Option<String>,
    /// When it began.
    pub started_at: Timestamp,
    /// Failures of tasks made before do not count: a person has seen them and said go on.
    pub judged_from: Timestamp,
    /// Whether its script broke off, and that is why it is paused.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub broken: bool,
    /// Since when it is paused; that time is added to the deadline.
    #[serde(default)]
    pub paused_at: Option<Timestamp>,
    /// When it has to be through.
    #[serde(default)]
    pub deadline_at: Option<Timestamp>,
    /// When it ended.
    #[serde(default)]
    pub finished_at: Option<Timestamp>,
}

// JSON's keys are texts, so a map keyed by slots is written as a list of pairs.
mod pairs {
    use std::collections::BTreeMap;

    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    use super::Slot;

    pub fn serialize<V: Serialize, S: Serializer>(map: &BTreeMap<Slot, V>, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_seq(map.iter())
    }

    pub fn deserialize<'de, V: Deserialize<'de>, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<BTreeMap<Slot, V>, D::Error> {
        Ok(Vec::<(Slot, V)>::deserialize(deserializer)?.into_iter().collect())
    }
}

impl Release {
    /// The revision that `slot` is to run.
    pub fn revision_of(&self, slot: &Slot) -> u32 {
        match self.state {
            ReleaseState::RollingBack | ReleaseState::RolledBack => self.back,
            ReleaseState::Promoted => self.to,
            _ if self.moved.contains(slot) => self.to,
            _ => self.base.get(slot).copied().unwrap_or(self.from),
        }
    }
}

/// How a release stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum ReleaseState {
    /// Its script decides the steps.
    Running,
    /// Nobody asks the script until it is resumed.
    Paused,
    /// The last slots are moving.
    Promoting,
    /// All runs the new revision.
    Promoted,
    /// All slots go back.
    RollingBack,
    /// All runs the old revision again.
    RolledBack,
    /// It stopped half-way and stays there.
    Failed,
}

impl ReleaseState {
    /// Whether nothing more will happen by itself.
    pub fn is_final(self) -> bool {
        matches!(self, ReleaseState::Promoted | ReleaseState::RolledBack | ReleaseState::Failed)
    }

    /// As in tables.
    pub fn as_str(self) -> &'static str {
        match self {
            ReleaseState::Running => "running",
            ReleaseState::Paused => "paused",
            ReleaseState::Promoting => "promoting",
            ReleaseState::Promoted => "promoted",
            ReleaseState::RollingBack => "rolling back",
            ReleaseState::RolledBack => "rolled back",
            ReleaseState::Failed => "failed",
        }
    }
}

/// What a rollout script may ask for: a closed set.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Intent {
    /// Move these slots and wait until each is healthy or has failed.
    Batch(Batch),
    /// As a batch; besides, give the new revision this percent of new connections and hold.
    Shift {
        /// The slots.
        batch: Batch,
        /// Percent of new connections.
        weight: u32,
    },
    /// Do nothing for this long.
    Wait {
        /// How long.
        hold: Duration,
        /// Whether it is what was left of a batch's hold when a failure ended that.
        #[serde(default, skip_serializing_if = "std::ops::Not::not")]
        rest: bool,
    },
    /// Stop asking until a person says resume.
    Pause {
        /// Why.
        reason: String,
    },
    /// Move what is left and end well.
    Promote,
    /// Go back.
    Rollback {
        /// Why.
        reason: String,
    },
    /// Stay as it is and end badly.
    Fail {
        /// Why.
        reason: String,
    },
}

impl fmt::Display for Intent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Intent::Batch(batch) => write!(f, "{batch}"),
            Intent::Shift { batch, weight } => write!(f, "{batch}, {weight}% of connections, hold {}", batch.hold),
            Intent::Wait { hold, .. } => write!(f, "wait {hold}"),
            Intent::Pause { reason } => write!(f, "pause: {reason}"),
            Intent::Promote => f.write_str("promote"),
            Intent::Rollback { reason } => write!(f, "roll back: {reason}"),
            Intent::Fail { reason } => write!(f, "fail: {reason}"),
        }
    }
}

/// Which slots move, and how.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Batch {
    /// The slots.
    pub slots: Vec<Slot>,
    /// New task first, or old task first.
    pub order: Order,
    /// How long a new task has to be healthy to count.
    pub min_healthy: Duration,
    /// How long it may take to get there.
    pub deadline: Duration,
    /// Whether the next step is asked for as soon as one of them is through.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub refill: bool,
    /// How long to stay so once all are through.
    #[serde(default)]
    pub hold: Duration,
    /// Those that an earlier step began, and when.
    #[serde(default, with = "pairs", skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(with = "Vec<(Slot, Timestamp)>")]
    pub carried: BTreeMap<Slot, Timestamp>,
}

/// Most slots of a batch that are named.
const NAMED: usize = 12;

impl fmt::Display for Batch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let fresh = || self.slots.iter().filter(|slot| !self.carried.contains_key(slot));
        let names: Vec<String> = fresh().take(NAMED).map(ToString::to_string).collect();
        write!(f, "replace {}", names.join(", "))?;
        match fresh().count() - names.len() {
            0 => Ok(()),
            more => write!(f, " and {more} more"),
        }
    }
}

/// Order of replacement (Docker's words).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
pub enum Order {
    /// The new task is healthy before the old one is drained.
    #[default]
    #[serde(rename = "start-first")]
    StartFirst,
    /// The old task has ended before the new one starts.
    #[serde(rename = "stop-first")]
    StopFirst,
}

/// What a rollout script sees at each step.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct ReleaseView {
    /// The service's name.
    pub service: Name,
    /// The step that is asked for, counted from 1.
    pub step: u32,
    /// The revision that ran before.
    pub from: u32,
    /// The revision that comes in.
    pub to: u32,
    /// How many slots the service has.
    pub replicas: u32,
    /// How many of them were moved.
    pub moved: u32,
    /// How many are left.
    pub remaining: u32,
    /// How many new tasks are healthy.
    pub healthy: u32,
    /// How many new tasks failed.
    pub failed_tasks: u32,
    /// Why the first of them failed.
    pub failure: Option<String>,
    /// Seconds since the release began.
    pub elapsed: f64,
    /// Whether the deadline has passed.
    pub overdue: bool,
    /// The options of the service's `rollout` field.
    pub options: serde_json::Map<String, serde_json::Value>,
}

/// What a rollout script answers, before the host has chosen slots for it.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Answer {
    /// `release:batch { tasks = 2 }`.
    Batch(BatchAnswer),
    /// `release:shift { tasks = 1, weight = 5, hold = "10m" }`.
    Shift(ShiftAnswer),
    /// `release:wait "30s"`.
    Wait(Duration),
    /// `release:pause "why"`.
    Pause(String),
    /// `release:promote()`.
    Promote(()),
    /// `release:rollback "why"`.
    Rollback(String),
    /// `release:fail "why"`.
    Fail(String),
}

/// Options of `release:batch`.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(default)]
pub struct BatchAnswer {
    /// How many, or a part in percent (`"25%"`) of all slots, rounded up.
    pub tasks: Portion,
    /// Order of replacement.
    pub order: Order,
    /// How long a new task has to be healthy to count.
    pub min_healthy: Duration,
    /// How long a task may take to get there.
    pub deadline: Duration,
    /// As soon as one is through the next step is asked for, so that always so many are on their way; otherwise once all
    /// are.
    pub refill: bool,
    /// How long to stay so before the next step, once all are through; none goes on meanwhile. A failure ends it, for the script
    /// to judge.
    pub hold: Duration,
}

impl Default for BatchAnswer {
    fn default() -> Self {
        BatchAnswer {
            tasks: Portion::Count(1),
            order: Order::StartFirst,
            min_healthy: Duration::ZERO,
            deadline: Duration::from_secs(300),
            refill: false,
            hold: Duration::ZERO,
        }
    }
}

/// Options of `release:shift`.
#[derive(Debug, Clone, PartialEq, Deserialize)]
pub struct ShiftAnswer {
    /// How many slots run the new revision from then on, those moved before included.
    #[serde(default = "one")]
    pub tasks: Portion,
    /// Percent of new connections that the new revision gets.
    pub weight: u32,
    /// How long to stay so.
    #[serde(default)]
    pub hold: Duration,
    /// How long a new task has to be healthy to count.
    #[serde(default)]
    pub min_healthy: Duration,
    /// How long a task may take to get there.
    #[serde(default = "five_minutes")]
    pub deadline: Duration,
}

fn one() -> Portion {
    Portion::Count(1)
}

fn five_minutes() -> Duration {
    Duration::from_secs(300)
}

/// A number of tasks, or a part of them.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Portion {
    /// So many.
    Count(u32),
    /// So many percent.
    Percent(f64),
}

impl Portion {
    /// Of `total`, rounded up, at least one.
    pub fn of(self, total: u32) -> u32 {
        match self {
            Portion::Count(count) => count.max(1),
            Portion::Percent(percent) => ((f64::from(total) * percent / 100.0).ceil() as u32).max(1),
        }
    }
}

impl<'de> Deserialize<'de> for Portion {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        use serde::de::Error;
        let value = serde_json::Value::deserialize(deserializer)?;
        let parsed = match &value {
            serde_json::Value::Number(number) => number
                .as_f64()
                .filter(|n| n.fract() == 0.0 && (1.0..=1e6).contains(n))
                .map(|n| Portion::Count(n as u32)),
            serde_json::Value::String(text) => match text.strip_suffix('%') {
                Some(percent) => percent.trim().parse().ok().filter(|p| *p > 0.0 && *p <= 100.0).map(Portion::Percent),
                None => text.parse().ok().filter(|n| *n > 0).map(Portion::Count),
            },
            _ => None,
        };
        parsed.ok_or_else(|| {
            D::Error::custom(format!("expected a number of tasks or a part such as \"25%\", got {value}"))
        })
    }
}
