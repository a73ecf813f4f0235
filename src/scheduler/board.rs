//! Nodes and what is on them, kept up with each change of the world instead of being counted anew for each decision.

use std::cell::Cell;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use imbl::Vector;
use smallvec::SmallVec;

use super::lookup::Lookup;
use crate::model::id::NodeId;
use crate::model::name::Name;
use crate::model::node::Node;
use crate::model::port::Protocol;
use crate::model::service::ServiceSpec;
use crate::model::units::{Bytes, Cpu};

/// A node and what is on it.
#[derive(Debug, Clone)]
pub struct Seat {
    /// The node.
    pub node: Arc<Node>,
    // What it has, here as well: asked for with each placement, when the node itself is not.
    cpu: Cpu,
    memory: Bytes,
    // Tasks meant to run here: the number that the board gave their service, how many.
    tasks: SmallVec<[(u32, u32); 4]>,
    /// All of them together.
    pub total: u32,
    /// What tasks on this node have reserved, those on their way out included.
    pub reserved: Reserved,
    // The ports of this host that they have: one a task, as long as Neap alone places them.
    ports: SmallVec<[(u16, Protocol); 2]>,
    /// Another number after each change; equal numbers mean equal contents.
    pub stamp: u64,
}

/// What one task takes of its node.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Claim {
    /// What it reserves.
    pub cpu: Cpu,
    /// What it reserves.
    pub memory: Bytes,
    /// Ports of the host.
    pub ports: SmallVec<[(u16, Protocol); 2]>,
}

impl Claim {
    /// As `spec` says.
    pub fn of(spec: &ServiceSpec) -> Self {
        let (cpu, memory) = (spec.reservations.cpu.unwrap_or_default(), spec.reservations.memory.unwrap_or_default());
        Claim { cpu, memory, ports: spec.host_ports().collect() }
    }
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
        let (cpu, memory, reserved) = (node.cpu, node.memory, Reserved::default());
        Seat {
            node,
            cpu,
            memory,
            tasks: SmallVec::new(),
            total: 0,
            reserved,
            ports: SmallVec::new(),
            stamp: fresh_stamp(),
        }
    }

    fn set_node(&mut self, node: Arc<Node>) {
        (self.cpu, self.memory, self.node) = (node.cpu, node.memory, node);
        self.stamp = fresh_stamp();
    }

    /// Tasks of one service, by the number that the board has given it.
    pub fn count(&self, service: u32) -> u32 {
        self.tasks.iter().find(|(other, _)| *other == service).map_or(0, |(_, count)| *count)
    }

    /// Cpu that nothing has reserved.
    pub fn free_cpu(&self) -> Cpu {
        Cpu(u32::try_from(u64::from(self.cpu.0).saturating_sub(self.reserved.cpu)).unwrap_or(u32::MAX))
    }

    /// Memory that nothing has reserved.
    pub fn free_memory(&self) -> Bytes {
        Bytes(self.memory.0.saturating_sub(self.reserved.memory))
    }

    /// Whether a task has this port of the host.
    pub fn has_port(&self, port: (u16, Protocol)) -> bool {
        self.ports.contains(&port)
    }

    // One task more (`sign` 1) or less (-1); `counts` as a neighbour, or only holds what it claims.
    fn alter(&mut self, service: u32, counts: bool, claim: &Claim, sign: i64) {
        if counts {
            let found = self.tasks.iter().position(|(other, _)| *other == service);
            match (found, sign > 0) {
                (Some(at), true) => self.tasks[at].1 += 1,
                (Some(at), false) => {
                    self.tasks[at].1 -= 1;
                    if self.tasks[at].1 == 0 {
                        self.tasks.swap_remove(at);
                    }
                }
                (None, true) => self.tasks.push((service, 1)),
                (None, false) => {}
            }
            self.total = if sign > 0 { self.total + 1 } else { self.total.saturating_sub(1) };
        }
        let (cpu, memory) = (u64::from(claim.cpu.0), claim.memory.0);
        if sign > 0 {
            self.reserved.cpu += cpu;
            self.reserved.memory = self.reserved.memory.saturating_add(memory);
            self.ports.extend(claim.ports.iter().copied());
        } else {
            self.reserved.cpu = self.reserved.cpu.saturating_sub(cpu);
            self.reserved.memory = self.reserved.memory.saturating_sub(memory);
            for port in &claim.ports {
                if let Some(at) = self.ports.iter().position(|other| other == port) {
                    self.ports.swap_remove(at);
                }
            }
        }
        self.stamp = fresh_stamp();
    }
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

/// Changes that a board remembers.
const RECENT: usize = 64;

/// The last changes of a board, so that whoever followed it up to one of them need not look at all seats.
#[derive(Debug, Clone)]
struct Recent {
    // The stamp that the board had after each change, and the seat that was changed.
    changes: [(u64, u32); RECENT],
    // All there ever were; the last ones are there still.
    count: usize,
    // The stamp before the first of those that are there.
    before: u64,
}

impl Default for Recent {
    fn default() -> Self {
        Recent { changes: [(0, 0); RECENT], count: 0, before: 0 }
    }
}

impl Recent {
    fn add(&mut self, stamp: u64, at: u32) {
        let place = &mut self.changes[self.count % RECENT];
        if self.count >= RECENT {
            self.before = place.0;
        }
        *place = (stamp, at);
        self.count += 1;
    }

    fn since(&self, stamp: u64) -> Option<impl Iterator<Item = u32> + '_> {
        let first = self.count.saturating_sub(RECENT);
        let known = (first..self.count).find(|number| self.changes[number % RECENT].0 == stamp);
        let from = if stamp == self.before { first } else { known? + 1 };
        Some((from..self.count).map(|number| self.changes[number % RECENT].1))
    }
}

/// Services by number: a seat counts by these, since names are counted by whoever holds them, and threads would wait for
/// one another.
#[derive(Debug, Clone, Default)]
struct Services {
    numbers: Lookup<Name, u32>,
    next: u32,
    free: Vec<u32>,
}

/// All seats, sorted by node id. Cloning copies a pointer, and a few numbers.
#[derive(Debug, Clone, Default)]
pub struct Board {
    seats: Vector<Arc<Seat>>,
    index: Arc<Lookup<NodeId, u32>>,
    /// Another number after each change of a node itself.
    nodes_stamp: u64,
    /// Another number after each change.
    stamp: u64,
    recent: Recent,
    services: Arc<Services>,
    // The service asked for last: tasks change in runs.
    last: Option<(Name, u32)>,
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

    /// The seats that have changed since the board had this stamp, some of them more than once; nothing where that is not
    /// known any more, or was another board.
    pub fn changed_since(&self, stamp: u64) -> Option<impl Iterator<Item = u32> + '_> {
        self.recent.since(stamp)
    }

    /// The seats, by node id.
    pub fn seats(&self) -> impl Iterator<Item = &Arc<Seat>> {
        self.seats.iter()
    }

    /// The number of a service; none has tasks on no node.
    pub fn number(&self, service: &str) -> Option<u32> {
        self.services.numbers.get(service).copied()
    }

    /// Tasks of a service on a seat.
    pub fn count(&self, seat: &Seat, service: &str) -> u32 {
        self.number(service).map_or(0, |number| seat.count(number))
    }

    /// A service is gone, and its tasks with it.
    pub fn forget(&mut self, service: &Name) {
        self.last = None;
        if let Some(number) = self.number(service.as_str()) {
            let services = Arc::make_mut(&mut self.services);
            services.numbers.remove(service);
            services.free.push(number);
        }
    }

    fn number_or_new(&mut self, service: &Name) -> u32 {
        if let Some((_, number)) = self.last.as_ref().filter(|(name, _)| name.same(service)) {
            return *number;
        }
        let number = self.number(service.as_str()).unwrap_or_else(|| {
            let services = Arc::make_mut(&mut self.services);
            let number = services.free.pop().unwrap_or_else(|| {
                services.next += 1;
                services.next
            });
            services.numbers.insert(service.clone(), number);
            number
        });
        self.last = Some((service.clone(), number));
        number
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
        self.recent = Recent { before: self.stamp, ..Recent::default() };
        let mut added = Vec::new();
        for node in nodes {
            match self.position(&node.id) {
                Some(at) => {
                    Arc::make_mut(&mut self.seats[at]).set_node(node);
                }
                None => added.push(node),
            }
        }
        if added.is_empty() {
            return;
        }
        let mut all: Vec<Arc<Seat>> = self.seats.iter().cloned().collect();
        all.extend(added.into_iter().map(|node| Arc::new(Seat::new(node))));
        self.seat_all(all);
    }

    /// A node that is no more, with all that was on it.
    pub fn drop_node(&mut self, id: &NodeId) {
        self.nodes_stamp = fresh_stamp();
        self.stamp = fresh_stamp();
        self.recent = Recent { before: self.stamp, ..Recent::default() };
        self.seat_all(self.seats.iter().filter(|seat| seat.node.id != *id).cloned().collect());
    }

    fn seat_all(&mut self, mut all: Vec<Arc<Seat>>) {
        all.sort_by(|a, b| a.node.id.cmp(&b.node.id));
        let number = |at: usize| u32::try_from(at).expect("nodes are counted in 32 bits");
        self.index = Arc::new(all.iter().enumerate().map(|(at, seat)| (seat.node.id.clone(), number(at))).collect());
        self.seats = all.into_iter().collect();
    }

    /// A task more or less on `node`; a node that is not known has no seat.
    pub fn alter(&mut self, node: &str, service: &Name, counts: bool, claim: &Claim, sign: i64) {
        if let Some(at) = self.position(node) {
            self.alter_at(at, service, counts, claim, sign);
        }
    }

    /// The same at a place that is known.
    pub fn alter_at(&mut self, at: usize, service: &Name, counts: bool, claim: &Claim, sign: i64) {
        let service = self.number_or_new(service);
        if let Some(seat) = self.seats.get_mut(at) {
            Arc::make_mut(seat).alter(service, counts, claim, sign);
            self.stamp = seat.stamp;
            self.recent.add(self.stamp, u32::try_from(at).unwrap_or(u32::MAX));
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn what_has_changed_since_is_known_or_said_to_be_unknown(
            before in prop::collection::vec(0_usize..5, 0..90),
            after in prop::collection::vec(0_usize..5, 0..90),
            elsewhere in prop::collection::vec(0_usize..5, 0..3),
        ) {
            let mut board = Board::default();
            board.set_nodes((0..5).map(|n| Arc::new(Node::new(&format!("n{n}"), "n"))));
            let service: Name = "web".parse().unwrap();
            let alter = |board: &mut Board, at: usize| board.alter_at(at, &service, true, &Claim::default(), 1);
            before.iter().for_each(|at| alter(&mut board, *at));
            let earlier = board.clone();
            let mut other = board.clone();
            elsewhere.iter().for_each(|at| alter(&mut other, *at));
            after.iter().for_each(|at| alter(&mut board, *at));
            match board.changed_since(earlier.stamp()) {
                Some(changed) => {
                    let mut changed: Vec<usize> = changed.map(|at| at as usize).collect();
                    prop_assert_eq!(&changed, &after);
                    changed.sort_unstable();
                    let same = |at: &usize| earlier.seats[*at].stamp == board.seats[*at].stamp;
                    prop_assert!((0..5).all(|at| same(&at) != changed.contains(&at)));
                }
                None => prop_assert!(after.len() > RECENT),
            }
            // A change that was made on a copy only is not one of this board's.
            prop_assert_eq!(board.changed_since(other.stamp()).is_some(), elsewhere.is_empty() && after.len() <= RECENT);
        }
    }
}
