//! Deadlines of connections: looked at a few times a second for all of them at once, so that a request costs no timer.

use std::cell::{Cell, RefCell};
use std::future::poll_fn;
use std::pin::{Pin, pin};
use std::rc::{Rc, Weak};
use std::task::{Poll, Waker};
use std::time::{Duration, Instant};

/// How often deadlines are looked at.
pub const LOOK: Duration = Duration::from_millis(100);
/// How long nobody may take notice that one is late.
const UNSEEN: Duration = Duration::from_secs(1);

/// Something took longer than it may.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Late;

/// What is carried by whoever waits for it.
pub type Held = RefCell<Option<Pin<Box<dyn Future<Output = ()>>>>>;

/// A connection's deadline.
#[derive(Debug)]
pub struct Watch {
    until: Cell<Instant>,
    is_late: Cell<bool>,
    waker: RefCell<Option<Waker>>,
    cuts: RefCell<Weak<Held>>,
}

impl Watch {
    /// From now on it may take so long.
    pub fn allow(&self, time: Duration) {
        self.until.set(Instant::now() + time);
        self.is_late.set(false);
    }

    /// What ends with it where nobody carries it that could take notice.
    pub fn cuts(&self, held: &Rc<Held>) {
        *self.cuts.borrow_mut() = Rc::downgrade(held);
    }

    /// Waits for `future`, and no longer than was allowed.
    pub async fn bound<T>(&self, future: impl Future<Output = T>) -> Result<T, Late> {
        let mut future = pin!(future);
        poll_fn(|cx| {
            if let Poll::Ready(value) = future.as_mut().poll(cx) {
                return Poll::Ready(Ok(value));
            }
            if self.is_late.get() {
                return Poll::Ready(Err(Late));
            }
            let mut waker = self.waker.borrow_mut();
            if waker.as_ref().is_none_or(|known| !known.will_wake(cx.waker())) {
                *waker = Some(cx.waker().clone());
            }
            Poll::Pending
        })
        .await
    }
}

/// The deadlines of a thread's connections.
#[derive(Debug, Default)]
pub struct Watches(RefCell<Vec<Weak<Watch>>>);

impl Watches {
    /// One more.
    pub fn begin(&self, time: Duration) -> Rc<Watch> {
        let until = Cell::new(Instant::now() + time);
        let (is_late, waker, cuts) = (Cell::new(false), RefCell::new(None), RefCell::new(Weak::new()));
        let watch = Rc::new(Watch { until, is_late, waker, cuts });
        self.0.borrow_mut().push(Rc::downgrade(&watch));
        watch
    }

    /// Wakes those that are late, and cuts those that were woken before and took no notice; how many there are.
    pub fn look(&self, now: Instant) -> usize {
        let mut cut = Vec::new();
        let mut all = self.0.borrow_mut();
        all.retain(|watch| {
            let Some(watch) = watch.upgrade() else { return false };
            if watch.until.get() <= now {
                // Whoever was woken has had time to see for himself.
                if watch.is_late.replace(true) && watch.until.get() + UNSEEN <= now {
                    cut.extend(watch.cuts.take().upgrade());
                }
                if let Some(waker) = watch.waker.borrow_mut().take() {
                    waker.wake();
                }
            }
            true
        });
        let count = all.len();
        drop(all);
        cut.iter().for_each(|held| drop(held.take()));
        count
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_nobody_carries_is_cut_once_it_is_late() {
        let watches = Watches::default();
        let watch = watches.begin(Duration::from_secs(1));
        let held: Rc<Held> = Rc::new(RefCell::new(Some(Box::pin(std::future::pending()))));
        watch.cuts(&held);
        let now = Instant::now();
        watches.look(now);
        assert!(held.borrow().is_some());
        // It is woken first: whoever waits for it sees for himself.
        watches.look(now + Duration::from_secs(2));
        assert!(held.borrow().is_some());
        watch.allow(Duration::from_secs(9));
        watches.look(now + Duration::from_secs(3));
        assert!(held.borrow().is_some(), "it went on");
        watches.look(now + Duration::from_secs(10));
        watches.look(now + Duration::from_secs(10));
        assert!(held.borrow().is_some(), "it may be about to see for itself");
        watches.look(now + Duration::from_secs(12));
        assert!(held.borrow().is_none());
    }
}
