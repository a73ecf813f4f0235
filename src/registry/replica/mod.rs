//! The registry at another place as well: a bucket. What is pushed is there before it is acknowledged, blobs by their digests, and what the
//! index says of them as a log of segments with a snapshot now and then. An empty host finds everything there; one that another has taken over
//! from writes nothing any more, since each segment can be written once.

pub mod blobs;
mod bring;
pub mod bucket;
mod evict;
pub mod rows;
pub mod store;
mod take;

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinHandle;

use self::store::{Down, Store};
use self::take::Log;
use super::ImageRegistry;
use super::cache::Fetching;
use super::digest::Digest;
use super::index::Open;
use super::refused::{Code, Refused};
use crate::model::fault;
use crate::model::id::random_uuid;

/// Blobs that are sent, and that are fetched, at a time.
const AT_ONCE: usize = 4;
const FETCHING: usize = 16;
/// How long a push waits for the other place; and how long that is not answered before pushes are refused at once.
const PATIENCE: Duration = Duration::from_secs(60);
const FAILING: Duration = Duration::from_secs(10);
/// How long between two tries, at first and at most; and where only a person can help.
const AGAIN: Duration = Duration::from_millis(500);
const LONGEST: Duration = Duration::from_secs(5);
const HELP: Duration = Duration::from_secs(30);
/// How often it is looked whether another host has taken it over, while nothing changes.
const WATCH: Duration = Duration::from_secs(5);

fn unanswered(why: &str) -> Refused {
    let why = format!("what is pushed has to be in the registry's bucket as well, and is not: {why}");
    Refused::new(Code::Unknown, why).status_of(503)
}

/// How it stands with the other place.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum State {
    /// It has not answered yet, or what it holds is just coming here.
    Waiting(String),
    /// What was here before is brought there; what is pushed meanwhile is acknowledged without.
    Seeding,
    /// It has everything.
    Whole,
    /// It is not this host's.
    Lost(String),
}

/// Who says that this host writes there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Turn {
    /// Nobody: it is alone. It takes over what it has never had, and not what another has taken from it.
    Alone,
    /// Whoever leads, and has not said it yet.
    Unsaid,
    /// Whoever leads: of two the one that was named later.
    Said(u64),
}

/// The other place in numbers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ReplicaStats {
    /// What it is called: s3://bucket/prefix.
    pub place: String,
    /// `waiting` (for its first answer), `seeding` (what was here before is brought there), `whole`, `lost` (another host has it).
    pub state: String,
    /// Why it is not whole, or not answering.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub why: Option<String>,
    /// Blobs that are there.
    pub blobs: u64,
    /// Changes that are not there yet.
    pub waiting: u64,
    /// What was sent since the daemon began, in bytes.
    pub sent: u64,
    /// What was fetched from there since then, in bytes.
    pub fetched: u64,
    /// What its blobs may take on this host's disk, where that is bounded, in bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub local: Option<u64>,
    /// Blobs whose files were let go of here since the daemon began: they are there.
    pub evicted: u64,
}

// A blob on its way, for all who wait for it.
type Sending = watch::Receiver<Option<Result<(), Refused>>>;

/// How a replica is kept.
#[derive(Debug, Clone, Default)]
pub struct ReplicaOptions {
    /// This host, as people know it.
    pub host: String,
    /// What tells it from all others, where that is known.
    pub id: String,
    /// What blobs may take on this host's disk: those that are there as well are let go of, the longest unused first.
    pub local: Option<u64>,
}

/// The other place.
pub struct Replica {
    store: Arc<dyn Store>,
    options: ReplicaOptions,
    // Who this is, as in heads, where it takes it over.
    writer: String,
    turn: watch::Sender<Turn>,
    // That of what this host wrote last: it writes none that is lower.
    floor: AtomicU64,
    state: watch::Sender<State>,
    // The last change that is there.
    done: watch::Sender<u64>,
    // How often what is here was replaced: what was changed before counts for nothing.
    term: AtomicU64,
    // What it has written, while it may write.
    log: tokio::sync::Mutex<Option<Log>>,
    failing: Mutex<Option<(Instant, String)>>,
    sending: Mutex<HashMap<Digest, Sending>>,
    turns: Semaphore,
    /// Blobs that come from there.
    pub(super) fetching: Fetching,
    pub(super) fetch_turns: Semaphore,
    sent: AtomicU64,
    fetched: AtomicU64,
    evicted: AtomicU64,
    // Whether it was looked what is here, and what has come since, in bytes.
    looked: AtomicBool,
    came: AtomicU64,
    // That all of it is just being written at once.
    snapshot: Arc<Semaphore>,
}

/// Who waits for a change to be there as well: nothing, where it is nowhere else.
pub struct Hold(Option<(Arc<Replica>, u64)>);

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Why it is not this host's, or not now.
enum Trouble {
    /// It does not answer; it is asked again.
    Down(String),
    /// Somebody has to do something.
    Refused(String),
}

impl From<Down> for Trouble {
    fn from(down: Down) -> Self {
        Trouble::Down(down.0)
    }
}

impl From<Refused> for Trouble {
    fn from(refused: Refused) -> Self {
        Trouble::Down(refused.why)
    }
}

impl From<std::io::Error> for Trouble {
    fn from(error: std::io::Error) -> Self {
        Trouble::Down(error.to_string())
    }
}

impl Replica {
    fn new(store: Arc<dyn Store>, options: ReplicaOptions, writer: String, turn: Turn) -> Self {
        Replica {
            store,
            options,
            writer,
            turn: watch::Sender::new(turn),
            floor: AtomicU64::new(0),
            state: watch::Sender::new(State::Waiting("it is asked for the first time".into())),
            done: watch::Sender::new(0),
            term: AtomicU64::new(0),
            log: tokio::sync::Mutex::default(),
            failing: Mutex::default(),
            sending: Mutex::default(),
            turns: Semaphore::new(AT_ONCE),
            fetching: Fetching::default(),
            fetch_turns: Semaphore::new(FETCHING),
            sent: AtomicU64::new(0),
            fetched: AtomicU64::new(0),
            evicted: AtomicU64::new(0),
            looked: AtomicBool::new(false),
            came: AtomicU64::new(0),
            snapshot: Arc::new(Semaphore::new(1)),
        }
    }

    fn term(&self) -> u64 {
        self.term.load(Ordering::SeqCst)
    }

    fn is_whole(&self) -> bool {
        *self.state.borrow() == State::Whole
    }

    /// What it is called.
    pub fn place(&self) -> &str {
        self.store.place()
    }

    pub(super) fn count_here(&self, bytes: u64) {
        self.came.fetch_add(bytes, Ordering::Relaxed);
    }

    pub(super) fn count_fetched(&self, bytes: u64) {
        self.fetched.fetch_add(bytes, Ordering::Relaxed);
    }

    // Since when it fails, and why.
    fn failing(&self) -> Option<(Duration, String)> {
        lock(&self.failing).as_ref().map(|(since, why)| (since.elapsed(), why.clone()))
    }

    // Whether it answers, as of now: told once, until that changes. For how long it has not, and why.
    fn heard(&self, fault: Option<&str>) -> (Duration, String) {
        let mut failing = lock(&self.failing);
        match (fault, failing.as_mut()) {
            (None, None) => {}
            (None, Some(_)) => {
                tracing::info!(place = self.place(), "the registry's bucket answers again");
                *failing = None;
            }
            (Some(why), Some(known)) => known.1 = why.to_owned(),
            (Some(why), None) => {
                tracing::warn!(place = self.place(), why, "the registry's bucket does not do what it is asked");
                *failing = Some((Instant::now(), why.to_owned()));
            }
        }
        failing.as_ref().map_or_else(Default::default, |(since, why)| (since.elapsed(), why.clone()))
    }
}

impl ImageRegistry {
    /// The other place, where there is one.
    pub(super) fn replica(&self) -> Option<Arc<Replica>> {
        self.replica.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// It is kept nowhere else, whatever was before.
    pub async fn keep_here(&self) -> Result<(), Refused> {
        if self.index.standing()?.is_some() {
            tracing::warn!(
                "the image registry was kept in a bucket, and is not now: blobs whose files are there only are missing"
            );
        }
        self.index.pause().await
    }

    /// Nothing is served until it is known where the registry is kept.
    pub fn hold_back(&self) {
        let why = "it is not known yet whether this host keeps the cluster's images";
        self.index.open_for(Open::Not(Refused::new(Code::Unknown, why).status_of(503)));
    }

    /// Keeps the registry there as well from now on; how it stands with it. Until that has answered, what is here is read at most, where it
    /// is known to be what is there; what that holds comes here where this host has nothing.
    pub async fn keep_at(
        self: &Arc<Self>,
        store: Arc<dyn Store>,
        options: ReplicaOptions,
        turn: Turn,
    ) -> watch::Receiver<State> {
        let mut task = self.replicating.lock().await;
        if let Some(before) = task.take() {
            self.give_up(before).await;
        }
        let waiting = unanswered("it is asked for the first time");
        self.index.open_for(if self.was_ours() { Open::ReadOnly(waiting) } else { Open::Not(waiting) });
        let replica = Arc::new(Replica::new(store, options, random_uuid(&*self.clock), turn));
        *self.replica.write().unwrap_or_else(PoisonError::into_inner) = Some(replica.clone());
        let (own, state) = (self.clone(), replica.state.subscribe());
        *task = Some(tokio::spawn(async move { own.replicate(&replica).await }));
        state
    }

    // Nothing that it would still do comes behind this.
    async fn give_up(&self, task: JoinHandle<()>) {
        task.abort();
        let _ = task.await;
        if let Some(replica) = self.replica() {
            replica.state.send_replace(State::Lost("this host does not write there any more".into()));
        }
    }

    /// Whoever leads has said that this host keeps the registry: it takes over what another has that was named before.
    pub fn said(&self, turn: u64) {
        if let Some(replica) = self.replica() {
            replica.turn.send_if_modified(|known| std::mem::replace(known, Turn::Said(turn)) != Turn::Said(turn));
        }
    }

    /// Another host keeps the registry there from now on: what is here is not what counts.
    pub async fn leave(&self) -> Result<(), Refused> {
        let mut task = self.replicating.lock().await;
        let why = "this host does not keep the cluster's images any more";
        let not = || Open::Not(Refused::new(Code::Unknown, why).status_of(503));
        self.index.open_for(not());
        if let Some(task) = task.take() {
            self.give_up(task).await;
        }
        self.index.open_for(not());
        *self.replica.write().unwrap_or_else(PoisonError::into_inner) = None;
        self.index.left().await
    }

    // Takes it over, brings there what is missing, and then whatever changes.
    async fn replicate(self: Arc<Self>, replica: &Arc<Replica>) {
        let mut wait = AGAIN;
        let mut turn = replica.turn.subscribe();
        loop {
            let trouble = match self.replicate_until(replica, &mut wait).await {
                Ok(never) => match never {},
                Err(trouble) => trouble,
            };
            let known = replica.state.borrow().clone();
            match trouble {
                Trouble::Down(why) => {
                    let (since, _) = replica.heard(Some(&why));
                    let is_waiting = matches!(known, State::Waiting(_));
                    if is_waiting {
                        replica.state.send_replace(State::Waiting(why.clone()));
                    }
                    if !matches!(known, State::Lost(_)) {
                        // What is not known to be what is there is nobody's to look at.
                        if !self.was_ours() {
                            self.index.open_for(Open::Not(unanswered(&why)));
                        } else if is_waiting || since >= FAILING {
                            self.index.open_for(Open::ReadOnly(unanswered(&why)));
                        }
                    }
                    tokio::time::sleep(wait).await;
                    wait = (wait * 2).min(LONGEST);
                }
                Trouble::Refused(why) => {
                    if known != State::Lost(why.clone()) {
                        tracing::error!(place = replica.place(), why, "the image registry is not served");
                    }
                    let refused = Refused::new(Code::Unknown, why.clone()).status_of(503);
                    self.index.open_for(Open::Not(refused));
                    replica.state.send_replace(State::Lost(why));
                    tokio::select! {
                        () = tokio::time::sleep(HELP) => {}
                        _ = turn.changed() => {}
                    }
                }
            }
        }
    }

    // Whether what is here is what was there when it was last asked.
    fn was_ours(&self) -> bool {
        match self.index.standing() {
            Ok(Some(standing)) => standing.is_ours() && !standing.is_left,
            Ok(None) => self.index.has_own().unwrap_or(false),
            Err(_) => false,
        }
    }

    async fn replicate_until(
        self: &Arc<Self>,
        replica: &Arc<Replica>,
        wait: &mut Duration,
    ) -> Result<std::convert::Infallible, Trouble> {
        let mut log = replica.log.lock().await;
        *log = None;
        let log_now = log.insert(self.take_over(replica).await?);
        let is_whole = log_now.is_whole;
        drop(log);
        self.index.returned().await?;
        replica.heard(None);
        *wait = AGAIN;
        if !is_whole {
            replica.state.send_replace(State::Seeding);
            self.index.open_for(Open::Whole);
            self.seed(replica).await?;
        }
        replica.state.send_replace(State::Whole);
        self.index.open_for(Open::Whole);
        // What was to be there, and got lost on the way.
        let (own, of) = (self.clone(), replica.clone());
        tokio::spawn(async move { own.sweep(&of).await.is_ok() });
        let mut heard = Instant::now();
        loop {
            let mut is_answered = self.bring(replica).await?;
            self.remove_gone(replica).await?;
            if !is_answered && heard.elapsed() >= WATCH {
                self.watch(replica).await?;
                is_answered = true;
            }
            if is_answered {
                heard = Instant::now();
                replica.heard(None);
                *wait = AGAIN;
                self.index.open_for(Open::Whole);
            }
            let _ = tokio::time::timeout(WATCH, self.index.written().notified()).await;
        }
    }

    /// To be taken before something is changed that is to be there as well.
    pub(super) fn hold(&self) -> Hold {
        Hold(self.replica().map(|replica| (replica.clone(), replica.term())))
    }

    /// Waits until all that has changed so far is there as well.
    pub(super) async fn settled(&self, Hold(held): Hold) -> Result<(), Refused> {
        let Some((replica, term)) = held else { return Ok(()) };
        fault::point("registry.before-settled");
        let over = || Err(unanswered("another host has it by now"));
        // What was changed before all was replaced is not there.
        let is_same = || replica.term() == term && !matches!(*replica.state.borrow(), State::Lost(_));
        let (waiting, last) = self.index.waiting()?;
        if !is_same() {
            return over();
        }
        if waiting == 0 || *replica.state.borrow() == State::Seeding {
            return Ok(());
        }
        let (mut done, mut state) = (replica.done.subscribe(), replica.state.subscribe());
        let is_there = async {
            tokio::select! {
                is_there = done.wait_for(|done| *done >= last) => is_there.is_ok(),
                _ = state.wait_for(|state| matches!(state, State::Lost(_))) => false,
            }
        };
        match tokio::time::timeout(PATIENCE, is_there).await {
            Ok(true) if is_same() => Ok(()),
            Ok(_) => over(),
            Err(_) => {
                let why = replica.failing().map_or_else(|| "it takes too long".to_owned(), |(_, why)| why);
                Err(unanswered(&why))
            }
        }
    }

    /// It in numbers.
    pub(super) fn replica_stats(&self) -> Result<Option<ReplicaStats>, Refused> {
        let Some(replica) = self.replica() else { return Ok(None) };
        let (name, why) = match replica.state.borrow().clone() {
            State::Waiting(why) => ("waiting", Some(why)),
            State::Seeding => ("seeding", None),
            State::Whole => ("whole", None),
            State::Lost(why) => ("lost", Some(why)),
        };
        let of = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        Ok(Some(ReplicaStats {
            place: replica.place().to_owned(),
            state: name.to_owned(),
            why: why.or_else(|| replica.failing().map(|(_, why)| why)),
            blobs: self.index.replicas()?,
            waiting: self.index.waiting()?.0,
            sent: of(&replica.sent),
            fetched: of(&replica.fetched),
            local: replica.options.local,
            evicted: of(&replica.evicted),
        }))
    }
}
