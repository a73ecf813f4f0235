//! Sessions: what holds keys locked, and lets them go when its owner is gone.

use std::sync::Arc;
use std::time::Duration as StdDuration;

use serde::{Deserialize, Serialize};
use tokio::time::Instant;

use super::Kv;
use super::change::{Op, Outcome, Verb};
use super::index::Topic as KvTopic;
use crate::model::catalog::CheckStatus;
use crate::model::units::Duration;
use crate::model::{Error, Kind, Result};
use crate::network::catalog::{Catalog, State, Topic, key};
use crate::store::{Expect, Write, decode, encode};

/// Where sessions are in the store.
pub const SESSION: &str = "session/";
/// Shortest and longest time to live (Consul's bounds).
pub const TTL: (Duration, Duration) = (Duration::from_secs(10), Duration::from_secs(86_400));
/// Longest time that a key is held back (Consul's bound).
const MAX_DELAY: Duration = Duration::from_secs(60);
/// Sessions at most.
const MOST: usize = 100_000;
/// Changes of the catalogue are gathered for so long before sessions are looked through.
const GATHER: StdDuration = StdDuration::from_millis(20);
/// How long it sleeps where nothing happens.
const REST: StdDuration = StdDuration::from_secs(3600);
/// How long what others register has after a start to be known again, before sessions end for want of it.
const SETTLED: StdDuration = StdDuration::from_secs(10);
/// Why a session has ended.
const LATE: &str = "was not renewed in time";
/// When it is tried again to end a session.
const AGAIN: StdDuration = StdDuration::from_secs(1);

/// A session.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Session {
    /// A UUID.
    pub id: String,
    /// What people call it.
    pub name: String,
    /// The node that it belongs to: it ends with that.
    pub node: String,
    /// Checks of that node that it ends with.
    pub node_checks: Vec<String>,
    /// Checks of instances there that it ends with.
    pub service_checks: Vec<String>,
    /// How long nobody else locks what it held when it ended.
    pub lock_delay: Duration,
    /// Whether keys are removed with it, rather than let go.
    pub deletes: bool,
    /// How long it lives unless it is renewed; none: as long as its node and checks do.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ttl: Option<Duration>,
    /// The commit that made it.
    #[serde(skip)]
    pub created: u64,
}

/// A session that is, and how long nobody has to say so.
#[derive(Debug)]
pub struct Alive {
    session: Session,
    until: Option<Instant>,
}

impl Alive {
    /// How long nobody locks what it held.
    pub fn lock_delay(&self) -> Duration {
        self.session.lock_delay
    }
}

/// As long as it may live without a word: the client, which counts from the answer that it got, has given up by then.
fn patience(ttl: Duration) -> StdDuration {
    ttl.std() + ttl.std() / 2
}

// Why a session cannot be, or goes on to be.
fn trouble(state: &State, session: &Session) -> Option<String> {
    let Some(node) = state.node(&session.node) else { return Some(format!("Missing node {:.70?}", session.node)) };
    session.node_checks.iter().chain(&session.service_checks).find_map(|id| match node.checks.get(id.as_str()) {
        None => Some(format!("Missing check {id:.70?} registration")),
        Some(known) if known.check.status == CheckStatus::Critical => {
            Some(format!("Check {id:.70?} is in critical state"))
        }
        Some(_) => None,
    })
}

impl Kv {
    /// One session.
    pub fn session(&self, id: &str) -> Result<Option<Session>> {
        if id.is_empty() || id.len() > 64 {
            return Ok(None);
        }
        let entry = self.store.get(&format!("{SESSION}{id}"))?;
        entry.map(|entry| Ok(Session { created: entry.version, ..decode(&entry.key, &entry.value)? })).transpose()
    }

    /// All of them, by id.
    pub fn sessions(&self) -> Result<Vec<Session>> {
        let entries = self.store.list(SESSION)?;
        let read =
            |entry: &crate::store::Entry| Ok(Session { created: entry.version, ..decode(&entry.key, &entry.value)? });
        entries.iter().map(read).collect()
    }

    pub(super) fn has_session(&self, id: &str) -> Result<bool> {
        Ok(self.session(id)?.is_some())
    }

    /// Begins one; its id. Durable when it returns.
    pub async fn begin_session(&self, mut session: Session, catalog: &Catalog) -> Result<String> {
        let wrong = |why: String| Err(Error::invalid("session", why));
        if let Some(ttl) = session.ttl.filter(|ttl| *ttl < TTL.0 || *ttl > TTL.1) {
            return wrong(format!("Invalid Session TTL '{ttl}', must be between [{} and {}]", TTL.0, TTL.1));
        }
        if session.lock_delay > MAX_DELAY {
            return wrong(format!("Invalid lock-delay '{}', must be at most {MAX_DELAY}", session.lock_delay));
        }
        if session.name.len() > 512 || session.node_checks.len() + session.service_checks.len() > 64 {
            return wrong("has a name over 512 bytes, or more than 64 checks".into());
        }
        if let Some(why) = catalog.read(|state| trouble(state, &session)) {
            return Err(Error::internal("session", why));
        }
        if self.memory().alive.len() >= MOST {
            return Err(Error::new(Kind::Exhausted, "sessions", format!("are {MOST}; no more are taken")));
        }
        session.id = crate::model::id::random_uuid(&*self.clock);
        let id = session.id.clone();
        let write = Write::put(format!("{SESSION}{id}"), encode(&session)).expect(Expect::Absent);
        let shared = self.gate.read().await;
        let version = self.store.commit(vec![write]).await?;
        self.watch_over(&session);
        drop(shared);
        self.memory().note_sessions(version);
        self.waiters.wake([&KvTopic::Sessions]);
        self.look.notify_one();
        // Between the look and the commit something may have failed.
        match catalog.read(|state| trouble(state, &session)) {
            None => Ok(id),
            Some(why) => {
                self.end_session(&id).await?;
                Err(Error::internal("session", why))
            }
        }
    }

    /// It is still there: counts its time anew; none: there is no such session.
    pub fn renew_session(&self, id: &str) -> Result<Option<Session>> {
        // Only one that is watched over: what has ended a moment ago does not begin to live again.
        let mut memory = self.memory();
        let Some(alive) = memory.alive.get_mut(id) else { return Ok(None) };
        alive.until = alive.session.ttl.map(|ttl| Instant::now() + patience(ttl));
        Ok(Some(alive.session.clone()))
    }

    /// Ends it, and lets go what it held. Durable when it returns.
    pub async fn end_session(&self, id: &str) -> Result<()> {
        if !self.has_session(id)? {
            self.memory().alive.remove(id);
            return Ok(());
        }
        self.let_go_of(id).await
    }

    pub(super) async fn let_go_of(&self, id: &str) -> Result<()> {
        match self.run(&[Op { session: id.to_owned(), ..Op::new(Verb::EndSession, "") }]).await? {
            Outcome::Done(..) => Ok(()),
            Outcome::Refused(why) => Err(Error::internal("session", format!("{why:?}"))),
        }
    }

    pub(super) fn watch_over(&self, session: &Session) {
        let until = session.ttl.map(|ttl| Instant::now() + patience(ttl));
        self.memory().alive.insert(session.id.clone(), Alive { session: session.clone(), until });
    }

    /// Ends sessions whose time is over, and those whose node or checks fail. Until the process ends.
    pub fn keep_sessions(self: &Arc<Self>, catalog: Arc<Catalog>) -> Result<()> {
        // Whoever is still there renews them.
        for session in self.sessions()? {
            self.watch_over(&session);
        }
        let kv = self.clone();
        let began = Instant::now();
        tokio::spawn(async move {
            // Locks of sessions that are not there any more, whoever left them.
            kv.let_go_orphans().await;
            let mut looked_at = 0;
            loop {
                let index = catalog.read(|state| state.index);
                // What is registered by others may not be known again yet.
                let look = index != looked_at && began.elapsed() >= SETTLED;
                let (over, next) = kv.over(&catalog, look);
                if look {
                    looked_at = index;
                }
                let mut next = next.unwrap_or_else(|| Instant::now() + REST);
                if began.elapsed() < SETTLED {
                    next = next.min(began + SETTLED);
                }
                for (id, why) in over {
                    // Renewed while others were ended.
                    if why == LATE && !kv.is_late(&id) {
                        continue;
                    }
                    match kv.end_session(&id).await {
                        Ok(()) => tracing::info!(session = id, why, "a session has ended"),
                        Err(error) => {
                            (looked_at, next) = (0, next.min(Instant::now() + AGAIN));
                            tracing::warn!(%error, session = id, "a session could not be ended; it is tried again");
                        }
                    }
                }
                tokio::select! {
                    () = tokio::time::sleep_until(next) => {}
                    () = kv.look.notified() => {}
                    () = catalog.wait(&Topic::All, index, REST) => tokio::time::sleep(GATHER).await,
                }
            }
        });
        Ok(())
    }

    fn is_late(&self, id: &str) -> bool {
        let until = self.memory().alive.get(id).and_then(|alive| alive.until);
        until.is_some_and(|until| until <= Instant::now())
    }

    pub(super) fn orphans(&self) -> Vec<String> {
        let memory = self.memory();
        memory.holders().filter(|id| !memory.alive.contains_key(*id)).cloned().collect()
    }

    // Those that are over and why, and when the next one will be.
    fn over(&self, catalog: &Catalog, look: bool) -> (Vec<(String, String)>, Option<Instant>) {
        let memory = self.memory();
        let now = Instant::now();
        let (late, others): (Vec<&Alive>, Vec<&Alive>) =
            memory.alive.values().partition(|alive| alive.until.is_some_and(|until| until <= now));
        let mut over: Vec<(String, String)> =
            late.iter().map(|alive| (alive.session.id.clone(), LATE.to_owned())).collect();
        if look {
            over.extend(catalog.read(|state| {
                let why = |alive: &&Alive| Some((alive.session.id.clone(), trouble(state, &alive.session)?));
                others.iter().filter_map(why).collect::<Vec<_>>()
            }));
        }
        (over, others.iter().filter_map(|alive| alive.until).min())
    }

    /// Sessions of a node.
    pub fn sessions_of(&self, node: &str) -> Result<Vec<Session>> {
        let wanted = key(node);
        Ok(self.sessions()?.into_iter().filter(|session| key(&session.node) == wanted).collect())
    }

    pub(super) fn held_by(&self, id: &str) -> Vec<String> {
        self.memory().held_by(id)
    }

    // Whether a key was held by a session that ended a moment ago.
    pub(super) fn is_delayed(&self, key: &str) -> bool {
        let mut memory = self.memory();
        let now = Instant::now();
        memory.delayed.retain(|_, until| *until > now);
        memory.delayed.contains_key(key)
    }
}
