//! The catalogue: who serves what where, and how they are. It is read by many at once; whoever waits for a change is woken
//! by those of what they wait for alone.

mod state;
#[cfg(test)]
mod tests;

use std::collections::{BTreeSet, HashMap};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};
use std::time::Duration;

use tokio::sync::Notify;

pub use state::{CheckEntry, Draft, Found, InstanceEntry, Key, NodeEntry, State, key};

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
}

/// The catalogue of one daemon or agent.
pub struct Catalog {
    state: RwLock<State>,
    // Counts changes, for whoever keeps what they have made of a state.
    generation: AtomicU64,
    waiting: Mutex<HashMap<Topic, Waiting>>,
}

struct Waiting {
    notify: Arc<Notify>,
    count: usize,
}

impl Catalog {
    /// An empty one, whose changes are counted from `index` on. A catalogue that is made anew counts on from where the one before
    /// cannot have come: the time in milliseconds, where there are fewer than a thousand changes a second.
    pub fn new(index: u64) -> Self {
        Catalog { state: RwLock::new(State::new(index)), generation: AtomicU64::new(1), waiting: Mutex::default() }
    }

    /// Looks at it as it is.
    pub fn read<T>(&self, look: impl FnOnce(&State) -> T) -> T {
        look(&self.state.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// Changes it, in one step for all who look.
    pub fn change<T>(&self, change: impl FnOnce(&mut Draft) -> T) -> T {
        let mut state = self.state.write().unwrap_or_else(PoisonError::into_inner);
        let mut draft = Draft::new(&mut state);
        let result = change(&mut draft);
        let touched = draft.end();
        if !touched.is_empty() {
            self.generation.fetch_add(1, Ordering::Release);
        }
        drop(state);
        self.wake(&touched);
        result
    }

    /// A number that is another after each change.
    pub fn generation(&self) -> u64 {
        self.generation.load(Ordering::Acquire)
    }

    fn wake(&self, touched: &BTreeSet<Topic>) {
        if touched.is_empty() {
            return;
        }
        let waiting = self.waiting();
        for topic in touched {
            if let Some(waiting) = waiting.get(topic) {
                waiting.notify.notify_waiters();
            }
        }
    }

    fn waiting(&self) -> MutexGuard<'_, HashMap<Topic, Waiting>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until the topic's index is another than `index`, or the time is over. An index of 0 is that of nobody.
    pub async fn wait(&self, topic: &Topic, index: u64, most: Duration) {
        let place = Place::take(self, topic);
        let deadline = tokio::time::Instant::now() + most;
        loop {
            let notified = place.notify.notified();
            tokio::pin!(notified);
            // Listening before it is looked, so that no change falls between the two.
            notified.as_mut().enable();
            if self.read(|state| state.index_of(topic)) != index {
                return;
            }
            if tokio::time::timeout_at(deadline, notified).await.is_err() {
                return;
            }
        }
    }

    /// How many topics are waited for.
    #[cfg(test)]
    fn waited_for(&self) -> usize {
        self.waiting().len()
    }
}

// Somebody who waits: the last to leave a topic takes it away.
struct Place<'a> {
    catalog: &'a Catalog,
    topic: &'a Topic,
    notify: Arc<Notify>,
}

impl<'a> Place<'a> {
    fn take(catalog: &'a Catalog, topic: &'a Topic) -> Self {
        let mut waiting = catalog.waiting();
        let waiting = waiting.entry(topic.clone()).or_insert_with(|| Waiting { notify: Arc::default(), count: 0 });
        waiting.count += 1;
        Place { catalog, topic, notify: waiting.notify.clone() }
    }
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        let mut all = self.catalog.waiting();
        if let Some(waiting) = all.get_mut(self.topic) {
            waiting.count -= 1;
            if waiting.count == 0 {
                all.remove(self.topic);
            }
        }
    }
}
