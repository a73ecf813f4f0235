//! Those who wait for changes, each for its own: a change wakes nobody else.

use std::collections::HashMap;
use std::hash::Hash;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;
use tokio::time::Instant;

/// Who waits for what.
#[derive(Debug)]
pub struct Waiters<T>(Mutex<HashMap<T, Waiting>>);

#[derive(Debug)]
struct Waiting {
    notify: Arc<Notify>,
    count: usize,
}

impl<T> Default for Waiters<T> {
    fn default() -> Self {
        Waiters(Mutex::default())
    }
}

impl<T: Hash + Eq + Clone> Waiters<T> {
    fn all(&self) -> MutexGuard<'_, HashMap<T, Waiting>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Wakes those who wait for any of these.
    pub fn wake<'a>(&self, topics: impl IntoIterator<Item = &'a T>)
    where
        T: 'a,
    {
        let waiting = self.all();
        if waiting.is_empty() {
            return;
        }
        for topic in topics {
            if let Some(waiting) = waiting.get(topic) {
                waiting.notify.notify_waiters();
            }
        }
    }

    /// Wakes those who wait for what `concerns` says yes to.
    pub fn wake_if(&self, concerns: impl Fn(&T) -> bool) {
        for (topic, waiting) in self.all().iter() {
            if concerns(topic) {
                waiting.notify.notify_waiters();
            }
        }
    }

    /// Waits until `changed`, which is asked again each time that the topic wakes; false: the time was over before.
    pub async fn wait(&self, topic: &T, until: Instant, changed: impl Fn() -> bool) -> bool {
        let place = Place::take(self, topic);
        loop {
            let notified = place.notify.notified();
            tokio::pin!(notified);
            // Listening before it is looked, so that no change falls between the two.
            notified.as_mut().enable();
            if changed() {
                return true;
            }
            if tokio::time::timeout_at(until, notified).await.is_err() {
                return false;
            }
        }
    }

    /// How many topics are waited for.
    pub fn len(&self) -> usize {
        self.all().len()
    }

    /// Whether nobody waits.
    pub fn is_empty(&self) -> bool {
        self.all().is_empty()
    }
}

// Somebody who waits: the last to leave a topic takes it away.
struct Place<'a, T: Hash + Eq + Clone> {
    waiters: &'a Waiters<T>,
    topic: &'a T,
    notify: Arc<Notify>,
}

impl<'a, T: Hash + Eq + Clone> Place<'a, T> {
    fn take(waiters: &'a Waiters<T>, topic: &'a T) -> Self {
        let mut all = waiters.all();
        let waiting = all.entry(topic.clone()).or_insert_with(|| Waiting { notify: Arc::default(), count: 0 });
        waiting.count += 1;
        Place { waiters, topic, notify: waiting.notify.clone() }
    }
}

impl<T: Hash + Eq + Clone> Drop for Place<'_, T> {
    fn drop(&mut self) {
        let mut all = self.waiters.all();
        if let Some(waiting) = all.get_mut(self.topic) {
            waiting.count -= 1;
            if waiting.count == 0 {
                all.remove(self.topic);
            }
        }
    }
}
