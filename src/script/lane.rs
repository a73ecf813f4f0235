//! A script thread: its own small runtime, its VMs, a queue of jobs. When a script holds its thread in a call that cannot
//! be interrupted, a fresh thread takes over the queue, and the script is kept from being called again. A simulation has
//! one thread for everything: there a job is done where it is sent.

use std::cell::RefCell;
use std::collections::{HashMap, VecDeque};
use std::rc::Rc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::Thread;
use std::time::{Duration, Instant};

use tokio::sync::{Notify, watch};

use super::budget::Beat;
use super::vms::Vms;
use crate::model::bundle::HostedKind;
use crate::model::{Error, Kind, Result};

/// How far beyond any budget a thread may stay in one stretch of computing before it is given up.
const PATIENCE: Duration = Duration::from_millis(1500);
/// How often threads that compute are looked at.
const LOOK: Duration = Duration::from_millis(100);

/// What a thread is to do.
pub type Job = Box<dyn FnOnce(&Rc<Vms>) + Send>;
/// Makes a thread's VMs, on that thread.
pub type MakeVms = Arc<dyn Fn(&Lane) -> Vms + Send + Sync>;

/// Which registration a thread is busy with: bundle and name.
pub type Culprit = (String, String);

/// Where scripts run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Threads {
    /// On threads of their own, each watched.
    Own,
    /// On the thread that calls them, which runs everything else as well: the order is the same each time. That thread
    /// has a `LocalSet` entered.
    This,
}

/// One kind's thread, and those that came before it.
#[derive(Clone)]
pub struct Lane {
    shared: Arc<Shared>,
}

struct Shared {
    kind: HostedKind,
    threads: Threads,
    // A job is being done: it may compute at any moment, if it does not yet.
    at_work: AtomicBool,
    queue: Mutex<VecDeque<Job>>,
    wake: Notify,
    generation: watch::Sender<u64>,
    beat: Mutex<Beat>,
    busy_with: Mutex<Option<Culprit>>,
    watchdog: Watchdog,
    make: MakeVms,
}

thread_local! {
    // The VMs of lanes without a thread of their own, by lane; they go with the thread.
    static HERE: RefCell<HashMap<usize, Rc<Vms>>> = RefCell::default();
}

impl Lane {
    /// A lane with its first thread, if it has threads.
    pub fn start(kind: HostedKind, threads: Threads, make: MakeVms, watchdog: Watchdog) -> Result<Self> {
        let lane = Lane {
            shared: Arc::new(Shared {
                kind,
                threads,
                at_work: AtomicBool::new(false),
                queue: Mutex::default(),
                wake: Notify::new(),
                generation: watch::channel(1).0,
                beat: Mutex::default(),
                busy_with: Mutex::default(),
                watchdog: watchdog.clone(),
                make,
            }),
        };
        match threads {
            Threads::Own => {
                lane.thread()?;
                watchdog.watch(lane.clone());
            }
            Threads::This => *lock(&lane.shared.beat) = Beat::in_steps(),
        }
        Ok(lane)
    }

    /// The kind whose scripts it runs.
    pub fn kind(&self) -> HostedKind {
        self.shared.kind
    }

    /// Puts a job into the queue, or does it at once.
    pub fn send(&self, job: Job) {
        if self.shared.threads == Threads::This {
            job(&self.vms_here());
            return;
        }
        lock(&self.shared.queue).push_back(job);
        self.shared.wake.notify_one();
        self.shared.watchdog.awake();
    }

    /// The number of the present thread.
    pub fn generation(&self) -> u64 {
        *self.shared.generation.borrow()
    }

    /// Tells when a thread was given up.
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.shared.generation.subscribe()
    }

    /// The present thread's beat.
    pub fn beat(&self) -> Beat {
        lock(&self.shared.beat).clone()
    }

    /// Says what is computed next, should it get stuck.
    pub fn busy_with(&self, bundle: &str, name: &str) {
        *lock(&self.shared.busy_with) = Some((bundle.to_owned(), name.to_owned()));
    }

    fn vms_here(&self) -> Rc<Vms> {
        let lane = Arc::as_ptr(&self.shared) as usize;
        let known = HERE.with(|here| here.borrow().get(&lane).cloned());
        // Made outside of the borrow; the VMs hold the lane, so its address is not another's later.
        known.unwrap_or_else(|| {
            let vms = Rc::new((self.shared.make)(self));
            HERE.with(|here| here.borrow_mut().insert(lane, vms.clone()));
            vms
        })
    }

    fn thread(&self) -> Result<()> {
        let lane = self.clone();
        let word = self.shared.kind.as_str();
        let failed = |error: std::io::Error| Error::io(format!("{word} thread"), "start it", &error);
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(failed)?;
        let generation = self.generation();
        let watchdog = self.shared.watchdog.clone();
        *lock(&self.shared.beat) = Beat::new(move || watchdog.awake());
        let run = move || {
            let vms = Rc::new((lane.shared.make)(&lane));
            let local = tokio::task::LocalSet::new();
            local.block_on(&runtime, async {
                while lane.generation() == generation {
                    let job = {
                        let mut queue = lock(&lane.shared.queue);
                        // Before the queue looks empty to the watchdog.
                        lane.shared.at_work.store(!queue.is_empty(), Ordering::SeqCst);
                        queue.pop_front()
                    };
                    match job {
                        Some(job) => {
                            let done = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| job(&vms)));
                            // Where it was given up meanwhile, another thread works.
                            if lane.generation() == generation {
                                lane.shared.at_work.store(false, Ordering::SeqCst);
                            }
                            if done.is_err() {
                                // A fault of ours: what this thread holds is in no known state.
                                tracing::error!(kind = word, "a script thread broke; a fresh one takes over");
                                lane.give_up();
                                return;
                            }
                            // What a job has begun gets its turn before the next job.
                            tokio::task::yield_now().await;
                        }
                        None => lane.shared.wake.notified().await,
                    }
                }
            });
        };
        std::thread::Builder::new().name(format!("script-{word}")).spawn(run).map(drop).map_err(failed)
    }

    // The thread is left to itself; it ends when it comes back. What it had begun is lost, what waits is not.
    fn give_up(&self) -> Option<Culprit> {
        let culprit = lock(&self.shared.busy_with).take();
        self.shared.generation.send_modify(|generation| *generation += 1);
        if let Err(error) = self.thread() {
            tracing::error!(%error, "a script thread could not be replaced");
        }
        self.shared.wake.notify_one();
        culprit
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What a caller waits by: its job's thread may be given up.
pub struct Ticket {
    lane: Lane,
    begun: Arc<AtomicU64>,
}

impl Ticket {
    /// For a job that has not been sent yet.
    pub fn new(lane: &Lane) -> Self {
        Ticket { lane: lane.clone(), begun: Arc::default() }
    }

    /// To be called as the job begins, on its thread.
    pub fn stamp(&self) -> impl FnOnce() + Send + 'static {
        let (lane, begun) = (self.lane.clone(), self.begun.clone());
        move || begun.store(lane.generation(), Ordering::SeqCst)
    }

    /// Whether the job was begun on a thread that was given up since.
    pub fn is_lost(&self) -> bool {
        let begun = self.begun.load(Ordering::SeqCst);
        begun != 0 && begun != self.lane.generation()
    }

    /// The error for a job that was lost.
    pub fn lost(&self) -> Error {
        let subject = format!("{} thread", self.lane.kind().as_str());
        let message = "was held by a script in a call that cannot be interrupted; a fresh one has taken over";
        Error::new(Kind::Script, subject, message).retry(true)
    }
}

/// Looks at threads that compute, and tells about those that are stuck. Sleeps while nothing computes.
#[derive(Clone)]
pub struct Watchdog {
    shared: Arc<Watched>,
}

struct Watched {
    lanes: Mutex<Vec<Lane>>,
    asleep: AtomicBool,
    thread: Mutex<Option<Thread>>,
    limit: Box<dyn Fn(HostedKind) -> Duration + Send + Sync>,
    stuck: Box<dyn Fn(HostedKind, Option<Culprit>) + Send + Sync>,
}

impl Watchdog {
    /// Starts its thread. `limit`: the longest budget of a kind; `stuck` is told of each thread that was given up.
    pub fn start(
        limit: impl Fn(HostedKind) -> Duration + Send + Sync + 'static,
        stuck: impl Fn(HostedKind, Option<Culprit>) + Send + Sync + 'static,
    ) -> Result<Self> {
        let shared = Arc::new(Watched {
            lanes: Mutex::default(),
            asleep: AtomicBool::new(false),
            thread: Mutex::default(),
            limit: Box::new(limit),
            stuck: Box::new(stuck),
        });
        let weak = Arc::downgrade(&shared);
        let run = move || {
            let mut seen: HashMap<(HostedKind, u64), (u64, Instant)> = HashMap::new();
            // The watchdog goes with the host that it watches for.
            while let Some(watched) = weak.upgrade() {
                let busy = watched.look(&mut seen);
                if busy {
                    drop(watched);
                    std::thread::sleep(LOOK);
                } else {
                    watched.asleep.store(true, Ordering::SeqCst);
                    // What began between the look and the flag is seen now, or wakes us.
                    if watched.look(&mut seen) {
                        watched.asleep.store(false, Ordering::SeqCst);
                        continue;
                    }
                    drop(watched);
                    std::thread::park_timeout(Duration::from_secs(60));
                }
            }
        };
        let handle = std::thread::Builder::new()
            .name("script-watchdog".into())
            .spawn(run)
            .map_err(|error| Error::io("script watchdog", "start it", &error))?;
        *lock(&shared.thread) = Some(handle.thread().clone());
        Ok(Watchdog { shared })
    }

    /// Watches nobody: for lanes without threads of their own.
    pub fn none() -> Self {
        let shared = Watched {
            lanes: Mutex::default(),
            asleep: AtomicBool::new(false),
            thread: Mutex::default(),
            limit: Box::new(|_| Duration::MAX),
            stuck: Box::new(|_, _| {}),
        };
        Watchdog { shared: Arc::new(shared) }
    }

    fn watch(&self, lane: Lane) {
        lock(&self.shared.lanes).push(lane);
    }

    // Something is about to compute.
    fn awake(&self) {
        if self.shared.asleep.load(Ordering::Relaxed)
            && self.shared.asleep.swap(false, Ordering::SeqCst)
            && let Some(thread) = &*lock(&self.shared.thread)
        {
            thread.unpark();
        }
    }
}

impl Watched {
    // True while anything computes or is about to.
    fn look(&self, seen: &mut HashMap<(HostedKind, u64), (u64, Instant)>) -> bool {
        let lanes = lock(&self.lanes).clone();
        let mut busy = false;
        for lane in lanes {
            let key = (lane.kind(), lane.generation());
            let count = lane.beat().count();
            if count % 2 == 0 {
                seen.remove(&key);
                busy |= !lock(&lane.shared.queue).is_empty() || lane.shared.at_work.load(Ordering::SeqCst);
                continue;
            }
            busy = true;
            let (last, since) = *seen.entry(key).or_insert((count, Instant::now()));
            if last != count {
                seen.insert(key, (count, Instant::now()));
            } else if since.elapsed() > (self.limit)(lane.kind()) + PATIENCE {
                seen.remove(&key);
                let culprit = lane.give_up();
                (self.stuck)(lane.kind(), culprit);
            }
        }
        busy
    }
}
