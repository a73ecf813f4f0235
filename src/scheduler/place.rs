//! Where a task goes: what is asked, what is answered, and the filters that Rust applies before any policy.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::board::{Board, Claim, Seat};
use super::reads::TaskFacts;
use crate::model::constraint::Constraint;
use crate::model::id::{NodeId, Slot};
use crate::model::name::Name;
use crate::model::node::{Availability, Node, NodeState};
use crate::model::service::{OnPolicyError, ServiceSpec, Use};
use crate::model::{Error, Result};

/// Places for tasks that go by one description.
#[derive(Debug, Clone)]
pub struct Ask {
    /// Their service.
    pub service: Name,
    /// Their revision.
    pub revision: u32,
    /// Their service's labels.
    pub labels: Arc<BTreeMap<String, String>>,
    /// What a node must fulfil.
    pub filter: Filter,
    /// The policies; the first one's score decides, the next ones break ties.
    pub policies: Vec<Use>,
    /// The scripts that the service brought along.
    pub bundle: Option<String>,
    /// What happens when a policy fails.
    pub on_error: OnPolicyError,
    /// Nodes that have tasks of this service already.
    pub on: Vec<NodeId>,
    /// The tasks.
    pub slots: Vec<SlotAsk>,
}

/// One task of an ask.
#[derive(Debug, Clone)]
pub struct SlotAsk {
    /// Its place in the service.
    pub slot: Slot,
    /// Nodes with a task whose place it takes: no neighbour to be counted.
    pub replaces: Vec<NodeId>,
    /// Where it is, for one that is asked about again: it is counted out first, and stays unless another node is better.
    pub stays: Option<Stay>,
}

/// A task that has a place.
#[derive(Debug, Clone, PartialEq)]
pub struct Stay {
    /// Its node.
    pub node: NodeId,
    /// By how much another node's score has to be higher.
    pub min_gain: f64,
    /// Whether it is gone from there once it has another place; otherwise it runs on there for the time being.
    pub gone: bool,
}

impl Ask {
    /// One of its tasks, as policies see it.
    pub fn task(&self, slot: &Slot) -> TaskFacts {
        TaskFacts {
            service: self.service.clone(),
            slot: slot.clone(),
            revision: self.revision,
            labels: self.labels.clone(),
        }
    }
}

/// What a description asks of a node before any policy is asked.
#[derive(Debug, Clone, PartialEq)]
pub struct Filter {
    /// Conditions.
    pub constraints: Vec<Constraint>,
    /// What must be free.
    pub claim: Claim,
    /// Most tasks of this service on one node, where there is a bound.
    pub most: Option<(Name, u32)>,
    /// Nodes that have just refused such a task.
    pub avoid: Vec<NodeId>,
}

impl Filter {
    /// As `spec` says.
    pub fn of(spec: &ServiceSpec) -> Self {
        let most = spec.max_replicas_per_node;
        Filter {
            constraints: spec.constraints.clone(),
            claim: Claim::of(spec),
            most: (most > 0).then(|| (spec.name.clone(), most)),
            avoid: Vec::new(),
        }
    }

    /// Why a node is refused, in words that are counted.
    pub fn refuses(&self, board: &Board, seat: &Seat) -> Option<String> {
        let node = &seat.node;
        if node.state == NodeState::Down {
            return Some("down".into());
        }
        match node.availability {
            Availability::Active => {}
            Availability::Pause => return Some("paused".into()),
            Availability::Drain => return Some("drained".into()),
        }
        if self.avoid.contains(&node.id) {
            return Some("refused it a moment ago".into());
        }
        if self.claim.cpu > seat.free_cpu() {
            return Some("insufficient cpu".into());
        }
        if self.claim.memory > seat.free_memory() {
            return Some("insufficient memory".into());
        }
        if let Some((port, protocol)) = self.claim.ports.iter().find(|port| seat.has_port(**port)) {
            return Some(format!("port {port}/{} in use", protocol.as_str()));
        }
        if let Some(constraint) = self.constraints.iter().find(|constraint| !constraint.matches(node)) {
            return Some(format!("constraint {constraint}"));
        }
        match &self.most {
            Some((service, most)) if board.count(seat, service.as_str()) >= *most => {
                Some(format!("max {most} replicas per node"))
            }
            _ => None,
        }
    }

    /// Whether a node is refused for what it is, whatever is on it.
    pub fn bars(&self, node: &Node) -> bool {
        node.state == NodeState::Down
            || node.availability != Availability::Active
            || self.avoid.contains(&node.id)
            || !self.constraints.iter().all(|constraint| constraint.matches(node))
    }

    /// Whether a node that is not barred is refused for what is on it.
    pub fn is_full(&self, board: &Board, seat: &Seat) -> bool {
        self.claim.cpu > seat.free_cpu()
            || self.claim.memory > seat.free_memory()
            || self.claim.ports.iter().any(|port| seat.has_port(*port))
            || self.most.as_ref().is_some_and(|(service, most)| board.count(seat, service.as_str()) >= *most)
    }

    /// Whether a task may stay on a node: it takes work or at least keeps it, and the constraints hold. What is reserved
    /// there was reserved for this very task.
    pub fn suits(&self, node: &Node) -> bool {
        node.state != NodeState::Down
            && node.availability != Availability::Drain
            && self.constraints.iter().all(|constraint| constraint.matches(node))
    }
}

/// A place, and the deciding score.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Placement {
    /// The node, by its place on the board that the question came with: two threads that count references to a node's
    /// name would wait for one another.
    pub at: u32,
    /// The first policy's score.
    pub score: f64,
    /// The score of the node where it was, for one that was asked about again; none: it may not be there any more.
    pub before: Option<f64>,
}

/// What is answered for one task.
#[derive(Debug, Clone)]
pub struct Answer {
    /// Its place; an error carries the operator's words: a refusal, or a policy's failure. Answers come in great numbers
    /// and errors are large, so those are boxed.
    pub place: Result<Placement, Box<Error>>,
    /// What the operator should know besides: a policy that failed and was stood in for.
    pub note: Option<String>,
}

/// Whoever finds places.
pub trait Placer {
    /// Answers all asks in order, each seeing what was placed before it. They may be answered while the next ones are
    /// still being made; `take` gets an ask's number and its answers, once all are made.
    fn place(&mut self, board: &Board, asks: &mut dyn Iterator<Item = Ask>, take: &mut dyn FnMut(usize, Vec<Answer>));
}

/// A placer's answer where nothing suits.
pub fn nowhere(service: &Name, refusals: &Refusals) -> Error {
    Error::new(crate::model::Kind::Exhausted, format!("service \"{service}\""), refusals.to_string()).retry(true)
}

/// How it is said that nothing suits.
pub const NOWHERE: &str = "no suitable node";

/// Counts refusals and tells them as `no suitable node (2 nodes drained; ...)`.
#[derive(Debug, Default)]
pub struct Refusals(BTreeMap<String, usize>);

impl Refusals {
    /// One more.
    pub fn add(&mut self, reason: String) {
        *self.0.entry(reason).or_default() += 1;
    }
}

impl std::fmt::Display for Refusals {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if self.0.is_empty() {
            return write!(f, "{NOWHERE} (there are no nodes)");
        }
        let nodes = |count: usize| if count == 1 { "1 node".to_owned() } else { format!("{count} nodes") };
        let parts: Vec<String> = self
            .0
            .iter()
            .map(|(reason, count)| match reason.as_str() {
                "down" | "paused" | "drained" => format!("{} {reason}", nodes(*count)),
                _ => format!("{reason} on {}", nodes(*count)),
            })
            .collect();
        write!(f, "{NOWHERE} ({})", parts.join("; "))
    }
}
