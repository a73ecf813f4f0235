//! What would happen: the answer to `plan`.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::name::Name;

/// What applying a description would change, slot by slot, and why.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize, JsonSchema)]
pub struct Plan {
    /// The service.
    pub service: Option<Name>,
    /// Whether nothing would change, and all is as described.
    pub empty: bool,
    /// The fields of the description that differ, as `field: old -> new`.
    pub changes: Vec<String>,
    /// The release that is not through, where the revision that it brings, or goes back to, is what is described.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub release: Option<String>,
    /// What would be done.
    pub steps: Vec<PlanStep>,
}

/// One thing that would be done.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct PlanStep {
    /// What.
    pub action: PlanAction,
    /// The task, as users call it: `web.3`.
    pub task: String,
    /// The node, where one was found.
    pub node: Option<String>,
    /// The deciding policy's score of that node.
    pub score: Option<f64>,
    /// Why.
    pub reason: String,
}

/// What would be done with a task.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum PlanAction {
    /// A new task starts.
    Create,
    /// A task of another revision takes its place.
    Replace,
    /// It is drained and stopped.
    Stop,
    /// It finds no node.
    Pending,
}

impl PlanAction {
    /// As in tables.
    pub fn as_str(self) -> &'static str {
        match self {
            PlanAction::Create => "create",
            PlanAction::Replace => "replace",
            PlanAction::Stop => "stop",
            PlanAction::Pending => "pending",
        }
    }
}

/// What is asked of a rebalance.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Rebalance {
    /// Say what would move, and move nothing.
    pub dry_run: bool,
    /// Move so many tasks at most.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max: Option<u32>,
    /// Move nothing more: those that a rebalance before this is yet to move stay where they are.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub cancel: bool,
    /// Move only where the other node's score is higher by more than this.
    pub min_gain: f64,
}

/// What a rebalance moves.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Rebalanced {
    /// The service.
    pub service: Name,
    /// Task by task.
    pub moves: Vec<Move>,
}

/// A task that goes to another node.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Move {
    /// As users call it: `web.3`.
    pub task: String,
    /// The host name of its node.
    pub from: String,
    /// The host name of the better one.
    pub to: String,
    /// The deciding policy's score of its node; none: it refuses that node by now.
    pub before: Option<f64>,
    /// The score of the better one.
    pub after: f64,
}
