//! Keys and sessions as they were: all at once, from a snapshot.

use std::collections::BTreeSet;

use super::Kv;
use super::record::{KV, Pair, own_key};
use super::session::{SESSION, Session};
use crate::model::{Error, Result};
use crate::store::{Entry, decode};

/// Where keys and sessions are in the store.
pub const PREFIXES: [&str; 2] = [KV, SESSION];

/// What is to be there.
#[derive(Default)]
pub struct Restored {
    pairs: Vec<(String, Pair)>,
    sessions: Vec<Session>,
}

impl Restored {
    /// Takes a record in; false: it is of another kind.
    pub fn take(&mut self, entry: &Entry) -> Result<bool> {
        if entry.key.starts_with(KV) {
            self.pairs.push((own_key(entry), Pair::read(entry)?));
        } else if entry.key.starts_with(SESSION) {
            let session: Session = decode(&entry.key, &entry.value)?;
            if entry.key.strip_prefix(SESSION) != Some(&session.id) {
                return Err(Error::invalid(format!("record \"{:.80}\"", entry.key), "is not of that key"));
            }
            self.sessions.push(session);
        } else {
            return Ok(false);
        }
        Ok(true)
    }
}

impl Kv {
    /// Nobody changes a key, begins a session or ends one while this is held.
    pub async fn alone(&self) -> impl Sized + '_ {
        self.gate.write().await
    }

    /// What `version` has written is all that there is; sessions are as if they had been renewed a moment ago.
    pub fn restored(&self, restored: Restored, version: u64) {
        let Restored { pairs, sessions } = restored;
        let mut memory = self.memory();
        let now: BTreeSet<&String> = pairs.iter().map(|(key, _)| key).collect();
        let gone: Vec<String> = memory.keys().filter(|key| !now.contains(key)).cloned().collect();
        for key in gone {
            memory.note(&key, version, true);
            memory.hold(&key, None);
        }
        for (key, pair) in &pairs {
            memory.note(key, version, false);
            memory.hold(key, pair.session.as_deref());
        }
        memory.alive.clear();
        memory.delayed.clear();
        memory.note_sessions(version);
        drop(memory);
        sessions.iter().for_each(|session| self.watch_over(session));
        self.waiters.wake_if(|_| true);
        self.look.notify_one();
    }

    /// Lets go what is held by sessions that are not there.
    pub async fn let_go_orphans(&self) {
        for id in self.orphans() {
            if let Err(error) = self.let_go_of(&id).await {
                tracing::warn!(%error, session = id, "what a session held that is no more stays locked");
            }
        }
    }
}
