//! How long a script may compute and how much it may hold. Time counts only while Lua runs: a call that waits for the
//! network uses none, and nor does one whose thread waits for a processor. In a simulation it is counted in steps, so
//! that a slow machine decides nothing.

use std::cell::{Cell, RefCell};
use std::ffi::c_void;
use std::future::Future;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, Wake, Waker};
use std::time::{Duration, Instant};

use mlua::{Lua, VmState};

/// Computing time of one call into a policy, a check, a rollout or a filter.
pub const CALL: Duration = Duration::from_millis(50);
/// Computing time of one run of an event's handler.
pub const HANDLER: Duration = Duration::from_secs(1);
/// Computing time of one run of a cron script.
pub const CRON: Duration = Duration::from_secs(10);
/// Computing time of loading one bundle.
pub const LOAD: Duration = Duration::from_secs(1);
/// Memory that a hosted VM may hold beyond what it holds once loaded, in bytes.
pub const GROWTH: usize = 64 << 20;
/// What counts as a microsecond of computing in a simulation, in interrupts.
const STEPS: u64 = 20;
/// How often a call may wait for its limit of computing where others keep the processors, at most.
const STARVED: u32 = 8;
/// How long it steps aside.
const PAUSE: Duration = Duration::from_millis(1);
/// Interrupts (calls, returns, rounds of a loop) before a call's time is taken.
const FREE: u8 = 16;
/// How long one run computes before others on its thread get their turn.
const SLICE: Duration = Duration::from_millis(5);

/// Shared by a VM's interrupt and whoever calls into it.
#[derive(Clone)]
pub struct Budget {
    inner: Rc<Inner>,
}

struct Inner {
    // Interrupts of a new call that pass before the clock is read: most calls are over by then.
    fresh: Cell<u8>,
    until: Cell<Option<Instant>>,
    // When a call's time was first taken: by the clock, and by what its thread had computed.
    since: Cell<Option<(Instant, Duration)>>,
    left: Cell<Duration>,
    limit: Cell<Duration>,
    // Where a long run steps aside for others; never for a call that is waited for on the spot.
    slice: Cell<Option<Instant>>,
    // The thread of the call itself: only there it steps aside, since to a coroutine of the script's own a yield means something.
    own: Cell<*const c_void>,
    yields: Cell<bool>,
    gate: RefCell<Option<Arc<Gate>>>,
    exceeded: Cell<bool>,
    beat: Beat,
    // Interrupts that are left, where time is counted in them.
    steps: Option<Cell<u64>>,
}

/// Counts the beginnings and ends of computing: odd while Lua runs. Whoever watches a thread sees by it whether it is
/// stuck.
#[derive(Clone, Default)]
pub struct Beat {
    count: Arc<AtomicU64>,
    stir: Option<Arc<dyn Fn() + Send + Sync>>,
    in_steps: bool,
}

impl Beat {
    /// A new count; `stir` is called before a run that nobody waits for on the spot.
    pub fn new(stir: impl Fn() + Send + Sync + 'static) -> Self {
        Beat { stir: Some(Arc::new(stir)), ..Beat::default() }
    }

    /// A new count for a simulation, where computing is counted in steps and not by a clock.
    pub fn in_steps() -> Self {
        Beat { in_steps: true, ..Beat::default() }
    }

    /// The count.
    pub fn count(&self) -> u64 {
        self.count.load(Ordering::Relaxed)
    }

    fn step(&self) {
        self.count.fetch_add(1, Ordering::Relaxed);
    }
}

impl Budget {
    /// Makes `lua` stop by itself when the time is used up. pcall does not save it: the interrupt comes again.
    pub fn attach(lua: &Lua, beat: Beat) -> Self {
        let steps = beat.in_steps.then(|| Cell::new(0));
        let inner = Rc::new(Inner {
            steps,
            fresh: Cell::new(0),
            until: Cell::new(None),
            since: Cell::new(None),
            left: Cell::new(Duration::ZERO),
            limit: Cell::new(Duration::ZERO),
            slice: Cell::new(None),
            own: Cell::new(std::ptr::null()),
            yields: Cell::new(false),
            gate: RefCell::default(),
            exceeded: Cell::new(false),
            beat,
        });
        let seen = inner.clone();
        lua.set_interrupt(move |lua| {
            if let Some(steps) = &seen.steps {
                let left = steps.get();
                steps.set(left.saturating_sub(1));
                // Between two calls nothing is counted.
                return if left == 1 { Err(seen.over(lua)) } else { Ok(VmState::Continue) };
            }
            let fresh = seen.fresh.get();
            if fresh > 0 {
                seen.fresh.set(fresh - 1);
                if fresh == FREE && seen.yields.get() {
                    seen.own.set(lua.current_thread().to_pointer());
                }
                if fresh > 1 {
                    return Ok(VmState::Continue);
                }
                let now = Instant::now();
                seen.until.set(Some(now + seen.left.get()));
                seen.since.set(Some((now, computed())));
                seen.slice.set(seen.yields.get().then(|| now + SLICE));
                return Ok(VmState::Continue);
            }
            let Some(until) = seen.until.get() else { return Ok(VmState::Continue) };
            let now = Instant::now();
            if now >= until {
                match seen.extended(now) {
                    Some(later) => seen.until.set(Some(later)),
                    None => return Err(seen.over(lua)),
                }
            }
            // Not asked again before the next turn begins: some code cannot step aside.
            if seen.slice.get().is_some_and(|slice| now >= slice) && lua.current_thread().to_pointer() == seen.own.get()
            {
                seen.slice.set(None);
                if let Some(gate) = &*seen.gate.borrow() {
                    gate.shut.store(true, Ordering::SeqCst);
                }
                return Ok(VmState::Yield);
            }
            Ok(VmState::Continue)
        });
        Budget { inner }
    }

    /// Whether a call ever used up its time or its memory: such a VM is dropped, since it may be in any state.
    pub fn was_exceeded(&self) -> bool {
        self.inner.exceeded.get()
    }

    /// Its memory was used up.
    pub fn exceeded(&self) {
        self.inner.exceeded.set(true);
    }

    // What was used of `left` since it began; in steps by the interrupts that are left.
    fn used(&self, left: Duration, begun: Instant) -> Duration {
        match &self.inner.steps {
            None => {
                let all = begun.elapsed();
                match self.inner.since.get() {
                    Some((since, then)) => {
                        all.min(since.saturating_duration_since(begun) + computed().saturating_sub(then))
                    }
                    None => all,
                }
            }
            Some(steps) => left.saturating_sub(Duration::from_micros(steps.get() / STEPS)),
        }
    }

    /// Runs `call` within `limit`.
    pub fn run<T>(&self, limit: Duration, call: impl FnOnce() -> T) -> T {
        self.begin(limit, limit, false);
        let result = call();
        self.end();
        result
    }

    /// Makes each stretch of computing in `future`, between two waits, stay within what is left of `limit`.
    pub fn spend<F: Future>(&self, limit: Duration, future: F) -> Spending<F> {
        Spending {
            budget: self.clone(),
            left: limit,
            limit,
            gate: Arc::default(),
            pause: None,
            future: Box::pin(future),
        }
    }

    fn begin(&self, left: Duration, limit: Duration, yields: bool) {
        let inner = &self.inner;
        inner.fresh.set(FREE);
        inner.left.set(left);
        inner.limit.set(limit);
        inner.yields.set(yields);
        if let Some(steps) = &inner.steps {
            // One more: none left is what it is between two calls.
            steps.set((left.as_micros() as u64).saturating_mul(STEPS) + 1);
        }
        inner.beat.step();
        if let (true, Some(stir)) = (yields, &inner.beat.stir) {
            stir();
        }
    }

    fn end(&self) {
        let inner = &self.inner;
        inner.fresh.set(0);
        inner.until.set(None);
        inner.since.set(None);
        inner.slice.set(None);
        if let Some(steps) = &inner.steps {
            steps.set(0);
        }
        inner.beat.step();
    }
}

// What this thread has computed since it began.
fn computed() -> Duration {
    let time = nix::time::clock_gettime(nix::time::ClockId::CLOCK_THREAD_CPUTIME_ID);
    time.map(Duration::from).unwrap_or_default()
}

impl Inner {
    // A new end for a call whose time is over by the clock, but whose thread has computed less: others had the processors.
    fn extended(&self, now: Instant) -> Option<Instant> {
        let (since, then) = self.since.get()?;
        let left = self.left.get();
        let rest = left.checked_sub(computed().saturating_sub(then)).filter(|rest| !rest.is_zero())?;
        (now.saturating_duration_since(since) < left * STARVED).then(|| now + rest)
    }

    fn over(&self, lua: &Lua) -> mlua::Error {
        self.exceeded.set(true);
        if let Some(steps) = &self.steps {
            // pcall does not save it.
            steps.set(1);
        }
        let limit = crate::model::units::Duration::from(self.limit.get());
        // The line that runs right now: seldom the culprit alone, but always inside of it.
        let (file, line) = super::api::position(lua);
        let place = if file.is_empty() { String::new() } else { format!("{file}:{line}: ") };
        mlua::Error::runtime(format!("{place}ran longer than its {limit} of computing"))
    }
}

/// A future whose computing time is bounded.
pub struct Spending<F> {
    budget: Budget,
    left: Duration,
    limit: Duration,
    gate: Arc<Gate>,
    pause: Option<Pin<Box<tokio::time::Sleep>>>,
    future: Pin<Box<F>>,
}

/// Passes wakes on, but for the one that a run gives itself when it steps aside: it would be next again at once, and
/// whoever waits outside of the runtime would not get their turn.
#[derive(Default)]
struct Gate {
    shut: AtomicBool,
    waker: Mutex<Option<Waker>>,
}

impl Wake for Gate {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        if !self.shut.load(Ordering::SeqCst)
            && let Some(waker) = &*self.waker.lock().unwrap_or_else(PoisonError::into_inner)
        {
            waker.wake_by_ref();
        }
    }
}

impl<F: Future> Future for Spending<F> {
    type Output = F::Output;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<F::Output> {
        let this = &mut *self;
        if let Some(pause) = &mut this.pause {
            if pause.as_mut().poll(context).is_pending() {
                return Poll::Pending;
            }
            this.pause = None;
        }
        *this.gate.waker.lock().unwrap_or_else(PoisonError::into_inner) = Some(context.waker().clone());
        let waker = Waker::from(this.gate.clone());
        let begun = Instant::now();
        *this.budget.inner.gate.borrow_mut() = Some(this.gate.clone());
        this.budget.begin(this.left, this.limit, true);
        let result = this.future.as_mut().poll(&mut Context::from_waker(&waker));
        let used = this.budget.used(this.left, begun);
        this.budget.end();
        *this.budget.inner.gate.borrow_mut() = None;
        this.left = this.left.saturating_sub(used);
        if this.gate.shut.swap(false, Ordering::SeqCst) && result.is_pending() {
            let mut pause = Box::pin(tokio::time::sleep(PAUSE));
            // A timer that is over already asks for the next turn by itself.
            if pause.as_mut().poll(context).is_ready() {
                context.waker().wake_by_ref();
            }
            this.pause = Some(pause);
        }
        result
    }
}
