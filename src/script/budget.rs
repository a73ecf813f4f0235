//! How long a script may compute and how much it may hold. Time counts only while Lua runs: a call that waits for the
//! network uses none.

use std::cell::Cell;
use std::future::Future;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use mlua::{Lua, VmState};

/// Computing time of one call into a policy, a check or a rollout.
pub const CALL: Duration = Duration::from_millis(50);
/// Computing time of loading one bundle.
pub const LOAD: Duration = Duration::from_secs(1);
/// Memory that a hosted VM may hold beyond what it holds once loaded, in bytes.
pub const GROWTH: usize = 64 << 20;

/// Shared by a VM's interrupt and whoever calls into it.
#[derive(Debug, Clone, Default)]
pub struct Budget {
    until: Rc<Cell<Option<Instant>>>,
    limit: Rc<Cell<Duration>>,
    exceeded: Rc<Cell<bool>>,
}

impl Budget {
    /// Makes `lua` stop by itself when the time is used up. pcall does not save it: the interrupt comes again.
    pub fn attach(lua: &Lua) -> Self {
        let budget = Budget::default();
        let seen = budget.clone();
        lua.set_interrupt(move |lua| match seen.until.get() {
            Some(until) if Instant::now() >= until => {
                seen.exceeded.set(true);
                let limit = seen.limit.get().as_millis();
                // The line that runs right now: seldom the culprit alone, but always inside of it.
                let (file, line) = super::api::position(lua);
                let place = if file.is_empty() { String::new() } else { format!("{file}:{line}: ") };
                Err(mlua::Error::runtime(format!("{place}ran longer than its {limit} ms")))
            }
            _ => Ok(VmState::Continue),
        });
        budget
    }

    /// Whether a call ever used up its time: such a VM is dropped, since it may be in any state.
    pub fn was_exceeded(&self) -> bool {
        self.exceeded.get()
    }

    /// Runs `call` within `limit`.
    pub fn run<T>(&self, limit: Duration, call: impl FnOnce() -> T) -> T {
        self.begin(limit);
        let result = call();
        self.until.set(None);
        result
    }

    /// Makes each stretch of computing in `future`, between two waits, stay within what is left of `limit`.
    pub fn spend<F: Future>(&self, limit: Duration, future: F) -> Spending<F> {
        Spending { budget: self.clone(), left: limit, limit, future: Box::pin(future) }
    }

    fn begin(&self, left: Duration) {
        self.limit.set(left);
        self.until.set(Some(Instant::now() + left));
    }
}

/// A future whose computing time is bounded.
pub struct Spending<F> {
    budget: Budget,
    left: Duration,
    limit: Duration,
    future: Pin<Box<F>>,
}

impl<F: Future> Future for Spending<F> {
    type Output = F::Output;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<F::Output> {
        let this = &mut *self;
        let begun = Instant::now();
        this.budget.begin(this.left);
        this.budget.limit.set(this.limit);
        let result = this.future.as_mut().poll(context);
        this.budget.until.set(None);
        this.left = this.left.saturating_sub(begun.elapsed());
        result
    }
}
