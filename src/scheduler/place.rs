//! Where a task goes: filters in Rust, then the policies' filter and score, ties broken by node id.

use std::collections::BTreeMap;

use super::world::World;
use crate::model::id::{NodeId, Slot};
use crate::model::name::Name;
use crate::model::node::{Availability, Node, NodeState};
use crate::model::service::ServiceSpec;
use crate::model::units::{Bytes, Cpu};
use crate::model::{Error, Result};

/// What a policy is asked: one task, all nodes, what runs on each, and which of them are left to choose from.
#[derive(Debug, Clone)]
pub struct Ask {
    /// The task's service.
    pub service: Name,
    /// Its place.
    pub slot: Slot,
    /// Its revision.
    pub revision: u32,
    /// The service's labels.
    pub labels: BTreeMap<String, String>,
    /// All nodes that take work, with what is on them.
    pub nodes: Vec<NodeView>,
    /// Indices of those that passed the filters so far.
    pub candidates: Vec<usize>,
}

/// A node and what is on it.
#[derive(Debug, Clone)]
pub struct NodeView {
    /// The node.
    pub node: std::sync::Arc<Node>,
    /// Tasks on it by service.
    pub tasks: BTreeMap<Name, u32>,
    /// Cpu not reserved.
    pub free_cpu: Cpu,
    /// Memory not reserved.
    pub free_memory: Bytes,
}

/// What a policy says of one candidate.
#[derive(Debug, Clone, PartialEq)]
pub enum Verdict {
    /// It may go there; higher wins.
    Score(f64),
    /// It may not, and why.
    Refused(String),
}

/// A placement policy: a script, or built in for tests.
pub trait Policy {
    /// One verdict for each candidate, in order.
    fn rank(&mut self, ask: &Ask) -> Result<Vec<Verdict>>;
}

/// Finds policies by name.
pub trait Policies {
    /// The policy that `spec` names at `index`.
    fn find(&mut self, spec: &ServiceSpec, index: usize) -> Result<Box<dyn Policy>>;
    /// What stands in when a policy fails and the service asks for it.
    fn spread(&mut self) -> Result<Box<dyn Policy>>;
}

/// A place, and the deciding score.
#[derive(Debug, Clone, PartialEq)]
pub struct Placement {
    /// The node.
    pub node: NodeId,
    /// The first policy's score.
    pub score: f64,
}

/// The nodes with what is on them.
pub fn node_views(world: &World) -> Vec<NodeView> {
    let mut views: BTreeMap<&str, NodeView> = world
        .nodes
        .values()
        .map(|node| {
            let view =
                NodeView { node: node.clone(), tasks: BTreeMap::new(), free_cpu: node.cpu, free_memory: node.memory };
            (node.id.as_str(), view)
        })
        .collect();
    for task in world.tasks.values().filter(|task| !task.state.is_final()) {
        let Some(view) = task.node.as_deref().and_then(|node| views.get_mut(node)) else { continue };
        // What is on its way out still holds its resources, but no longer counts as a neighbour.
        if task.stop.is_none() {
            *view.tasks.entry(task.service.clone()).or_default() += 1;
        }
        if let Some(revision) = world.revision(&task.service, task.revision) {
            reserve(view, &revision.spec);
        }
    }
    views.into_values().collect()
}

fn reserve(view: &mut NodeView, spec: &ServiceSpec) {
    view.free_cpu.0 = view.free_cpu.0.saturating_sub(spec.reservations.cpu.unwrap_or_default().0);
    view.free_memory.0 = view.free_memory.0.saturating_sub(spec.reservations.memory.unwrap_or_default().0);
}

/// Why Rust's own filters refuse a node, in words that are counted.
pub fn refusal(view: &NodeView, spec: &ServiceSpec) -> Option<String> {
    let node = &view.node;
    if node.state == NodeState::Down {
        return Some("down".into());
    }
    match node.availability {
        Availability::Active => {}
        Availability::Pause => return Some("paused".into()),
        Availability::Drain => return Some("drained".into()),
    }
    if spec.reservations.cpu.is_some_and(|cpu| cpu > view.free_cpu) {
        return Some("insufficient cpu".into());
    }
    if spec.reservations.memory.is_some_and(|memory| memory > view.free_memory) {
        return Some("insufficient memory".into());
    }
    if let Some(constraint) = spec.constraints.iter().find(|constraint| !constraint.matches(node)) {
        return Some(format!("constraint {constraint}"));
    }
    let most = spec.max_replicas_per_node;
    if most > 0 && view.tasks.get(&spec.name).copied().unwrap_or_default() >= most {
        return Some(format!("max {most} replicas per node"));
    }
    None
}

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
            return f.write_str("no suitable node (there are no nodes)");
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
        write!(f, "no suitable node ({})", parts.join("; "))
    }
}

/// Places one task. `views` are updated with it. `Err` carries the operator's words: a refusal, or a policy's failure.
pub fn place(
    views: &mut [NodeView],
    spec: &ServiceSpec,
    slot: &Slot,
    revision: u32,
    policies: &mut [(String, Box<dyn Policy>)],
) -> Result<Placement> {
    let mut refusals = Refusals::default();
    let mut candidates = Vec::new();
    for (index, view) in views.iter().enumerate() {
        let elsewhere = matches!(slot, Slot::Node(node) if *node != view.node.id);
        if elsewhere {
            continue;
        }
        match refusal(view, spec) {
            Some(reason) => refusals.add(reason),
            None => candidates.push(index),
        }
    }
    let mut ask = Ask {
        service: spec.name.clone(),
        slot: slot.clone(),
        revision,
        labels: spec.labels.clone(),
        nodes: views.to_vec(),
        candidates,
    };
    // One list of scores a candidate: the first policy's decides, the next ones break ties.
    let mut scores: BTreeMap<usize, Vec<f64>> = ask.candidates.iter().map(|index| (*index, Vec::new())).collect();
    for (name, policy) in policies {
        if ask.candidates.is_empty() {
            break;
        }
        let verdicts = policy.rank(&ask)?;
        if verdicts.len() != ask.candidates.len() {
            return Err(Error::internal(
                format!("policy \"{name}\""),
                "answered for another number of nodes than it was asked for",
            ));
        }
        let asked = std::mem::take(&mut ask.candidates);
        for (index, verdict) in asked.into_iter().zip(verdicts) {
            match verdict {
                Verdict::Refused(reason) => {
                    scores.remove(&index);
                    refusals.add(format!("policy \"{name}\": {reason}"));
                }
                Verdict::Score(score) => {
                    ask.candidates.push(index);
                    scores.entry(index).or_default().push(score);
                }
            }
        }
    }
    // Views come sorted by node id, and the first of equals is kept, so ties fall to the smallest id.
    let mut best: Option<(&usize, &Vec<f64>)> = None;
    for (index, score) in &scores {
        let better = best.is_none_or(|(_, other)| compare(score, other) == std::cmp::Ordering::Greater);
        if better {
            best = Some((index, score));
        }
    }
    let Some((index, score)) = best else {
        return Err(Error::new(crate::model::Kind::Exhausted, spec.subject(), refusals.to_string()).retry(true));
    };
    let view = &mut views[*index];
    *view.tasks.entry(spec.name.clone()).or_default() += 1;
    reserve(view, spec);
    Ok(Placement { node: view.node.id.clone(), score: score.first().copied().unwrap_or_default() })
}

fn compare(a: &[f64], b: &[f64]) -> std::cmp::Ordering {
    a.iter().zip(b).map(|(a, b)| a.total_cmp(b)).find(|order| order.is_ne()).unwrap_or(std::cmp::Ordering::Equal)
}
