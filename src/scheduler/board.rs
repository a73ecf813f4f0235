//! Nodes and what is on them, kept up with each change of the world instead of being counted anew for each decision.

use std::cell::Cell;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use imbl::Vector;

use super::lookup::Lookup;
use crate::model::id::NodeId;
use crate::model::name::Name;
use crate::model::node::Node;
use crate::model::service::Resources;
use crate::model::units::{Bytes, Cpu};

/// A node and what is on it.
#[derive(Debug, Clone)]
pub struct Seat {
    /// The node.
    pub node: Arc<Node>,
    // Tasks meant to run here, by service: its name's hash, so that few names are compared, its name, how many.
    tasks: Vec<(u64, Name, u32)>,
    /// All of them together.
    pub total: u32,
    /// What tasks on this node have reserved, those on their way out included.
    pub reserved: Reserved,
    /// Another number after each change; equal numbers mean equal contents.
    pub stamp: u64,
}

/// Sums of reservations; wide enough for what nobody would do on purpose.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Reserved {
    /// In thousandths of a core.
    pub cpu: u64,
    /// In bytes.
    pub memory: u64,
}

impl Seat {
    fn new(node: Arc<Node>) -> Self {
        Seat { node, tasks: Vec::new(), total: 0, reserved: Reserved::default(), stamp: fresh_stamp() }
    }

    /// Tasks of one service.
    pub fn count(&self, service: &str) -> u32 {
        let hash = hash(service);
        let found = self.tasks.iter().find(|(other, name, _)| *other == hash && name.as_str() == service);
        found.map_or(0, |(_, _, count)| *count)
    }

    /// Cpu that nothing has reserved.
    pub fn free_cpu(&self) -> Cpu {
        Cpu(u32::try_from(u64::from(self.node.cpu.0).saturating_sub(self.reserved.cpu)).unwrap_or(u32::MAX))
    }

    /// Memory that nothing has reserved.
    pub fn free_memory(&self) -> Bytes {
        Bytes(self.node.memory.0.saturating_sub(self.reserved.memory))
    }

    /// One task more (`sign` 1) or less (-1); `counts` as a neighbour, or only holds its resources.
    pub fn alter(&mut self, service: &Name, counts: bool, resources: &Resources, sign: i64) {
        if counts {
            let hash = hash(service.as_str());
            let found = self.tasks.iter().position(|(other, name, _)| *other == hash && name == service);
            match (found, sign > 0) {
                (Some(at), true) => self.tasks[at].2 += 1,
                (Some(at), false) => {
                    self.tasks[at].2 -= 1;
                    if self.tasks[at].2 == 0 {
                        self.tasks.swap_remove(at);
                    }
                }
                (None, true) => self.tasks.push((hash, service.clone(), 1)),
                (None, false) => {}
            }
            self.total = if sign > 0 { self.total + 1 } else { self.total.saturating_sub(1) };
        }
        let cpu = u64::from(resources.cpu.unwrap_or_default().0);
        let memory = resources.memory.unwrap_or_default().0;
        if sign > 0 {
            self.reserved.cpu += cpu;
            self.reserved.memory = self.reserved.memory.saturating_add(memory);
        } else {
            self.reserved.cpu = self.reserved.cpu.saturating_sub(cpu);
            self.reserved.memory = self.reserved.memory.saturating_sub(memory);
        }
        self.stamp = fresh_stamp();
    }
}

fn hash(name: &str) -> u64 {
    use std::hash::Hasher;
    let mut hasher = rustc_hash::FxHasher::default();
    hasher.write(name.as_bytes());
    hasher.finish()
}

// Unique in this process and never part of a decision: two drafts of the same world must not be taken for one another.
// Each thread takes many at once, so that threads do not wait for one another.
fn fresh_stamp() -> u64 {
    const BLOCK: u64 = 1 << 20;
    static BLOCKS: AtomicU64 = AtomicU64::new(1);
    thread_local!(static NEXT: Cell<u64> = const { Cell::new(0) });
    NEXT.with(|next| {
        if next.get().is_multiple_of(BLOCK) {
            next.set(BLOCKS.fetch_add(1, Ordering::Relaxed) * BLOCK);
        }
        next.set(next.get() + 1);
        next.get()
    })
}

/// All seats, sorted by node id. Cloning copies a pointer.
#[derive(Debug, Clone, Default)]
pub struct Board {
    seats: Vector<Arc<Seat>>,
    index: Arc<Lookup<NodeId, u32>>,
    /// Another number after each change of a node itself.
    nodes_stamp: u64,
    /// Another number after each change.
    stamp: u64,
}

impl Board {
    /// How many nodes there are.
    pub fn len(&self) -> usize {
        self.seats.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.seats.is_empty()
    }

    /// Another number after each change of a node itself: its labels, its state, its being there.
    pub fn nodes_stamp(&self) -> u64 {
        self.nodes_stamp
    }

    /// Another number after each change.
    pub fn stamp(&self) -> u64 {
        self.stamp
    }

    /// The seats, by node id.
    pub fn seats(&self) -> impl Iterator<Item = &Arc<Seat>> {
        self.seats.iter()
    }

    /// The place of a node.
    pub fn position(&self, node: &str) -> Option<usize> {
        self.index.get(node).map(|at| *at as usize)
    }

    /// The seat at a place.
    pub fn seat(&self, at: usize) -> Option<&Arc<Seat>> {
        self.seats.get(at)
    }

    /// New or changed nodes; those that are there keep what is on them.
    pub fn set_nodes(&mut self, nodes: impl IntoIterator<Item = Arc<Node>>) {
        self.nodes_stamp = fresh_stamp();
        self.stamp = fresh_stamp();
        let mut added = Vec::new();
        for node in nodes {
            match self.position(&node.id) {
                Some(at) => {
                    let seat = Arc::make_mut(&mut self.seats[at]);
                    seat.node = node;
                    seat.stamp = fresh_stamp();
                }
                None => added.push(node),
            }
        }
        if added.is_empty() {
            return;
        }
        let mut all: Vec<Arc<Seat>> = self.seats.iter().cloned().collect();
        all.extend(added.into_iter().map(|node| Arc::new(Seat::new(node))));
        all.sort_by(|a, b| a.node.id.cmp(&b.node.id));
        let number = |at: usize| u32::try_from(at).expect("nodes are counted in 32 bits");
        self.index = Arc::new(all.iter().enumerate().map(|(at, seat)| (seat.node.id.clone(), number(at))).collect());
        self.seats = all.into_iter().collect();
    }

    /// A task more or less on `node`; a node that is not known has no seat.
    pub fn alter(&mut self, node: &str, service: &Name, counts: bool, resources: &Resources, sign: i64) {
        if let Some(at) = self.position(node) {
            self.alter_at(at, service, counts, resources, sign);
        }
    }

    /// The same at a place that is known.
    pub fn alter_at(&mut self, at: usize, service: &Name, counts: bool, resources: &Resources, sign: i64) {
        if let Some(seat) = self.seats.get_mut(at) {
            Arc::make_mut(seat).alter(service, counts, resources, sign);
            self.stamp = fresh_stamp();
        }
    }
}
