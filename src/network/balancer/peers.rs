//! The replicas that one part of the balancer knows.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;

use super::pick::{Choice, Peer, Slot};
use crate::model::id::TaskId;
use crate::network::table::{Backend, Carried};

/// All of them, as long as a table leads to them or a client is with them.
#[derive(Debug, Default)]
pub struct Peers {
    known: HashMap<(TaskId, String), Arc<Peer>>,
}

impl Peers {
    /// One replica at one address.
    pub fn of(&mut self, backend: &Backend) -> Arc<Peer> {
        let known = self.known.entry((backend.id, backend.address.clone()));
        known.or_insert_with(|| Peer::new(backend.id, &backend.address)).clone()
    }

    /// A port's choice among these; `seed` tells hosts apart.
    pub fn choice(&mut self, backends: &[Backend], seed: u64) -> Choice {
        let slots = backends.iter().map(|backend| Slot::new(self.of(backend), u64::from(backend.weight)));
        Choice::new(slots.collect(), seed)
    }

    /// Forgets those that nobody is sent to, and nobody is with.
    pub fn tidy(&mut self) {
        self.known.retain(|_, peer| Arc::strong_count(peer) > 1);
    }

    /// Forgets those that are none of these, once nothing is under way with them: connections that are kept need not be counted.
    pub fn keep<'a>(&mut self, wanted: impl Iterator<Item = &'a Backend>) {
        let wanted: HashSet<(TaskId, &str)> = wanted.map(|backend| (backend.id, backend.address.as_str())).collect();
        self.known.retain(|_, peer| {
            wanted.contains(&(peer.id, peer.address.as_str())) || (peer.open() > 0 && Arc::strong_count(peer) > 1)
        });
    }

    /// Whether it is known still.
    pub fn has(&self, peer: &Arc<Peer>) -> bool {
        let known = self.known.get(&(peer.id, peer.address.clone()));
        known.is_some_and(|known| Arc::ptr_eq(known, peer))
    }

    /// Whoever is with somebody, by task.
    pub fn open(&self) -> BTreeMap<TaskId, u32> {
        let mut open = BTreeMap::new();
        for peer in self.known.values().filter(|peer| peer.open() > 0) {
            *open.entry(peer.id).or_default() += peer.open();
        }
        open
    }

    /// What went to each, by task, is added.
    pub fn count(&self, sums: &mut BTreeMap<TaskId, Carried>) {
        for peer in self.known.values() {
            let [requests, failures, ejections] = peer.counts();
            sums.entry(peer.id).or_default().add(&Carried { requests, failures, ejections });
        }
    }
}
