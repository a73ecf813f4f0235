//! Hands events on to whoever listens. Each listener has a queue of its own; one that is too slow is told how many it has
//! missed, and holds up nobody.

use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::mpsc;

use crate::model::event::Event;
use crate::model::{Error, Kind, Result};

/// Events that wait for a listener at most, where nothing else is said.
pub const WAITING: usize = 65_536;

/// Those who listen.
#[derive(Clone, Default)]
pub struct Listeners(Arc<Mutex<Vec<Listener>>>);

struct Listener {
    queue: mpsc::Sender<Result<Event>>,
    missed: usize,
}

impl Listeners {
    /// Everything that happens from now on; up to `waiting` events wait to be taken.
    pub fn listen(&self, waiting: usize) -> mpsc::Receiver<Result<Event>> {
        let (queue, events) = mpsc::channel(waiting);
        self.0.lock().unwrap_or_else(PoisonError::into_inner).push(Listener { queue, missed: 0 });
        events
    }

    /// Tells all of them.
    pub fn tell(&self, event: &Event) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).retain_mut(|listener| listener.tell(event));
    }
}

impl Listener {
    // False: it listens no more.
    fn tell(&mut self, event: &Event) -> bool {
        if self.missed > 0 {
            let message = format!("{} were missed; the reader is too slow", self.missed);
            match self.queue.try_send(Err(Error::new(Kind::Exhausted, "events", message))) {
                Ok(()) => self.missed = 0,
                Err(mpsc::error::TrySendError::Closed(_)) => return false,
                Err(mpsc::error::TrySendError::Full(_)) => {}
            }
        }
        match self.queue.try_send(Ok(event.clone())) {
            Ok(()) => true,
            Err(mpsc::error::TrySendError::Closed(_)) => false,
            Err(mpsc::error::TrySendError::Full(_)) => {
                self.missed += 1;
                true
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::clock::Timestamp;
    use crate::model::event::What;

    #[test]
    fn a_slow_listener_is_told_what_it_missed_and_holds_up_nobody() {
        let event = |sequence| Event {
            sequence,
            at: Timestamp(0),
            what: What::ServiceCreated,
            service: None,
            subject: "web".into(),
            message: String::new(),
            task: None,
            image: None,
        };
        let listeners = Listeners::default();
        let (mut slow, mut quick) = (listeners.listen(2), listeners.listen(WAITING));
        drop(listeners.listen(1));
        (1..=5).for_each(|sequence| listeners.tell(&event(sequence)));
        assert_eq!(listeners.0.lock().unwrap().len(), 2, "who has gone is forgotten");
        let numbers: Vec<u64> = std::iter::from_fn(|| quick.try_recv().ok()).map(|it| it.unwrap().sequence).collect();
        assert_eq!(numbers, [1, 2, 3, 4, 5]);
        assert_eq!(slow.try_recv().unwrap().unwrap().sequence, 1);
        assert_eq!(slow.try_recv().unwrap().unwrap().sequence, 2);
        listeners.tell(&event(6));
        assert!(slow.try_recv().unwrap().unwrap_err().message.starts_with("3 were missed"));
        assert_eq!(slow.try_recv().unwrap().unwrap().sequence, 6);
    }
}
