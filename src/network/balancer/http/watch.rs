//! Deadlines of connections: looked at a few times a second for all of them at once, so that a request costs no timer.

use std::cell::{Cell, RefCell};
use std::future::poll_fn;
use std::pin::pin;
use std::rc::{Rc, Weak};
use std::task::{Poll, Waker};
use std::time::{Duration, Instant};

/// How often deadlines are looked at.
pub const LOOK: Duration = Duration::from_millis(100);

/// Something took longer than it may.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Late;

/// A connection's deadline.
#[derive(Debug)]
pub struct Watch {
    until: Cell<Instant>,
    is_late: Cell<bool>,
    waker: RefCell<Option<Waker>>,
}

impl Watch {
    /// From now on it may take so long.
    pub fn allow(&self, time: Duration) {
        self.until.set(Instant::now() + time);
        self.is_late.set(false);
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
        let watch = Rc::new(Watch { until, is_late: Cell::new(false), waker: RefCell::new(None) });
        self.0.borrow_mut().push(Rc::downgrade(&watch));
        watch
    }

    /// Wakes those that are late; how many there are.
    pub fn look(&self, now: Instant) -> usize {
        let mut all = self.0.borrow_mut();
        all.retain(|watch| {
            let Some(watch) = watch.upgrade() else { return false };
            if watch.until.get() <= now
                && !watch.is_late.replace(true)
                && let Some(waker) = watch.waker.borrow_mut().take()
            {
                waker.wake();
            }
            true
        });
        all.len()
    }
}
