//! Indexes of keys, for whoever waits for changes: of each the commit that wrote or removed it last.

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};

use tokio::time::Instant;

use super::session::Alive;

/// Keys that are gone and whose last change is still known.
const GONE: usize = 4096;

/// What can be waited for.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Topic {
    /// One key.
    Key(String),
    /// All that begin so.
    Prefix(String),
    /// Sessions.
    Sessions,
}

/// What is known in memory.
#[derive(Debug, Default)]
pub struct Memory {
    // What has no index of its own had none since then.
    base: u64,
    last: u64,
    live: BTreeMap<String, u64>,
    gone: BTreeMap<String, u64>,
    order: VecDeque<(u64, String)>,
    sessions: u64,
    // Keys by the session that has them locked, and the other way round.
    held: HashMap<String, BTreeSet<String>>,
    holder: HashMap<String, String>,
    /// Keys that nobody locks before then.
    pub delayed: HashMap<String, Instant>,
    /// Sessions by id.
    pub alive: HashMap<String, Alive>,
}

fn below<'a>(map: &'a BTreeMap<String, u64>, prefix: &'a str) -> impl Iterator<Item = u64> + 'a {
    map.range(prefix.to_owned()..).take_while(move |(key, _)| key.starts_with(prefix)).map(|(_, version)| *version)
}

impl Memory {
    /// Nothing is older than `index`.
    pub fn begin(&mut self, index: u64) {
        self.base = self.base.max(index);
        self.sessions = self.sessions.max(index);
    }

    /// A key was written or removed; false: by then it was so already, or something later is known.
    pub fn note(&mut self, key: &str, version: u64, removed: bool) -> bool {
        let known = self.live.get(key).or(self.gone.get(key)).copied().unwrap_or_default();
        if version <= known {
            return false;
        }
        self.last = self.last.max(version);
        if !removed {
            self.gone.remove(key);
            self.live.insert(key.to_owned(), version);
            return true;
        }
        self.live.remove(key);
        self.gone.insert(key.to_owned(), version);
        self.order.push_back((version, key.to_owned()));
        // Many at once, so that the index of what has none of its own moves seldom.
        if self.gone.len() > GONE {
            while self.gone.len() > GONE / 2
                && let Some((version, key)) = self.order.pop_front()
            {
                if self.gone.get(&key) == Some(&version) {
                    self.gone.remove(&key);
                    self.base = self.base.max(version);
                }
            }
        }
        // Those that came back since.
        if self.order.len() > 2 * GONE {
            self.order.retain(|(version, key)| self.gone.get(key) == Some(version));
        }
        true
    }

    /// A key is locked by a session, or by none.
    pub fn hold(&mut self, key: &str, session: Option<&str>) {
        if let Some(before) = self.holder.remove(key)
            && let Some(keys) = self.held.get_mut(&before)
        {
            keys.remove(key);
            if keys.is_empty() {
                self.held.remove(&before);
            }
        }
        if let Some(session) = session {
            self.held.entry(session.to_owned()).or_default().insert(key.to_owned());
            self.holder.insert(key.to_owned(), session.to_owned());
        }
    }

    /// All keys that there are.
    pub fn keys(&self) -> impl Iterator<Item = &String> {
        self.live.keys()
    }

    /// Sessions that have keys locked.
    pub fn holders(&self) -> impl Iterator<Item = &String> {
        self.held.keys()
    }

    /// The keys that a session has locked.
    pub fn held_by(&self, session: &str) -> Vec<String> {
        self.held.get(session).into_iter().flatten().cloned().collect()
    }

    /// A session is over: what it held is held back for as long as it asked for.
    pub fn end(&mut self, session: &str) {
        let delay = self.alive.remove(session).map(|alive| alive.lock_delay()).unwrap_or_default();
        if delay.millis() > 0 {
            let until = Instant::now() + delay.std();
            let keys = self.held_by(session);
            self.delayed.extend(keys.into_iter().map(|key| (key, until)));
        }
    }

    /// Sessions have changed.
    pub fn note_sessions(&mut self, version: u64) {
        self.sessions = self.sessions.max(version);
    }

    /// The last change of what is waited for; 1 at the least.
    pub fn index_of(&self, topic: &Topic) -> u64 {
        let index = match topic {
            Topic::Key(key) => self.live.get(key).or(self.gone.get(key)).copied().unwrap_or(self.base),
            Topic::Prefix(prefix) if prefix.is_empty() => self.last.max(self.base),
            // What was below and is forgotten was no later than that.
            Topic::Prefix(prefix) => {
                below(&self.live, prefix).chain(below(&self.gone, prefix)).max().unwrap_or_default().max(self.base)
            }
            Topic::Sessions => self.sessions,
        };
        index.max(1)
    }
}

impl Topic {
    /// Whether it is waited for a change of `key` by it.
    pub fn has(&self, key: &str) -> bool {
        match self {
            Topic::Key(own) => own == key,
            Topic::Prefix(prefix) => key.starts_with(prefix.as_str()),
            Topic::Sessions => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_prefix_has_the_index_of_what_is_below() {
        let mut memory = Memory::default();
        memory.begin(10);
        memory.note("shop/a", 11, false);
        memory.note("shop/b", 12, false);
        memory.note("bank/a", 13, false);
        let of = |memory: &Memory, prefix: &str| memory.index_of(&Topic::Prefix(prefix.into()));
        assert_eq!((of(&memory, ""), of(&memory, "shop/"), of(&memory, "x")), (13, 12, 10));
        memory.note("shop/b", 14, true);
        assert_eq!((of(&memory, "shop/"), memory.index_of(&Topic::Key("shop/b".into()))), (14, 14));
        // Said again, and late.
        memory.note("shop/b", 12, false);
        assert_eq!(of(&memory, "shop/"), 14);
        for number in 0..5000u64 {
            memory.note(&format!("t/{number}"), 100 + number, true);
        }
        // Forgotten keys never had an index that is lower than what is told now.
        assert!(memory.index_of(&Topic::Key("shop/b".into())) >= 14);
        let is_told = [Topic::Prefix(String::new()), Topic::Prefix("a".into()), Topic::Key("aü".into())];
        assert!(is_told.iter().all(|topic| topic.has("aü")) && !Topic::Key("a".into()).has("aü"));
    }
}
