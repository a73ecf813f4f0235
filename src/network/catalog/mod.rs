//! The catalogue: who serves what where, and how they are. It is read by many at once; whoever waits for a change is woken
//! by those of what they wait for alone.

mod entry;
mod query;
mod replica;
mod state;
#[cfg(test)]
mod tests;

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use tokio::sync::broadcast;

use super::waiting::Waiters;

pub use entry::{CheckEntry, Found, InstanceEntry, NodeEntry};
pub use query::{Queries, pattern};
pub use replica::{Portion, Subscription, Touched};
pub use state::{Draft, Key, State, key};

/// Changes that are kept for those who follow and are slow.
const FOLLOWED: usize = 4096;

/// What can be waited for.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Topic {
    /// Any change.
    All,
    /// The list of nodes.
    Nodes,
    /// One node and all that is on it.
    Node(Key),
    /// The list of services with their tags.
    Services,
    /// A service's instances, their nodes and checks.
    Service(Key),
    /// All checks.
    Checks,
    /// Prepared queries.
    Queries,
}

thread_local! {
    // The catalogues that this thread is looking at or changing.
    static WITHIN: RefCell<Vec<usize>> = const { RefCell::new(Vec::new()) };
}

// A thread is within one catalogue once. Only looked after in debug builds.
struct Alone;

impl Alone {
    fn at(catalog: &Catalog) -> Self {
        if cfg!(debug_assertions) {
            let address = std::ptr::from_ref(catalog) as usize;
            let nested = WITHIN.with_borrow(|within| within.contains(&address));
            assert!(!nested, "a catalogue is read or changed from within a look at it");
            WITHIN.with_borrow_mut(|within| within.push(address));
        }
        Alone
    }
}

impl Drop for Alone {
    fn drop(&mut self) {
        if cfg!(debug_assertions) {
            let _ = WITHIN.with_borrow_mut(Vec::pop);
        }
    }
}

/// The catalogue of one daemon or agent.
pub struct Catalog {
    state: RwLock<State>,
    // Counts changes, for whoever keeps what they have made of a state.
    generation: AtomicU64,
    waiting: Waiters<Topic>,
    // For those who follow.
    changes: broadcast::Sender<Arc<BTreeSet<Touched>>>,
}

impl Catalog {
    /// An empty one, whose changes are counted from `index` on. A catalogue that is made anew counts on from where the one before
    /// cannot have come: the time in milliseconds, where there are fewer than a thousand changes a second.
    pub fn new(index: u64) -> Self {
        Catalog {
            state: RwLock::new(State::new(index)),
            generation: AtomicU64::new(1),
            waiting: Waiters::default(),
            changes: broadcast::channel(FOLLOWED).0,
        }
    }

    /// Looks at it as it is. Not to be called from within a look or a change: a change that waits in between would make the second
    /// look wait for it, and it for the first (a debug build says so each time).
    pub fn read<T>(&self, look: impl FnOnce(&State) -> T) -> T {
        let _alone = Alone::at(self);
        look(&self.state.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// Changes it, in one step for all who look.
    pub fn change<T>(&self, change: impl FnOnce(&mut Draft) -> T) -> T {
        let _alone = Alone::at(self);
        let mut state = self.state.write().unwrap_or_else(PoisonError::into_inner);
        let mut draft = Draft::new(&mut state);
        let result = change(&mut draft);
        let (touched, places) = draft.end();
        if !touched.is_empty() {
            self.generation.fetch_add(1, Ordering::Release);
        }
        // Under the lock, so that they come in the order in which they were made.
        if !places.is_empty() && self.changes.receiver_count() > 0 {
            let _ = self.changes.send(Arc::new(places));
        }
        drop(state);
        self.waiting.wake(&touched);
        result
    }

    /// A number that is another after each change.
    pub fn generation(&self) -> u64 {
        self.generation.load(Ordering::Acquire)
    }

    /// Waits until the topic's index is another than `index`, or the time is over. An index of 0 is that of nobody.
    pub async fn wait(&self, topic: &Topic, index: u64, most: Duration) {
        let until = tokio::time::Instant::now() + most;
        self.waiting.wait(topic, until, || self.read(|state| state.index_of(topic)) != index).await;
    }

    /// How many topics are waited for.
    #[cfg(test)]
    fn waited_for(&self) -> usize {
        self.waiting.len()
    }
}
