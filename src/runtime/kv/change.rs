//! Changes of keys: one or many at once, all or nothing.

use std::collections::BTreeMap;

use super::record::{KV, Pair, kv_key, own_key};
use super::session::SESSION;
use super::{Kv, MAX_KV, check_any_key};
use crate::model::{Error, Kind, Result};
use crate::store::{Expect, Store, Write};

/// How often a change is tried where others are faster, and how often of that beside them.
const ATTEMPTS: usize = 100;
const BESIDE: usize = 5;
/// Most bytes that are read by one transaction.
const MOST_READ: usize = 16 << 20;

/// How it begins that a key is to be locked for a session that is not there.
pub const NO_SESSION: &str = "invalid session";

/// What is done with a key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verb {
    /// Sets it.
    Set,
    /// Sets it if it was last written by `index`; 0: if it is not there.
    Cas,
    /// Sets and locks it for a session, unless another has it.
    Lock,
    /// Sets it and lets it go, if the session has it.
    Unlock,
    /// Reads it; it has to be there.
    Get,
    /// Reads it.
    GetOrEmpty,
    /// Reads all that begin so.
    GetTree,
    /// Whether it was last written by `index`.
    CheckIndex,
    /// Whether the session has it.
    CheckSession,
    /// Whether it is not there.
    CheckNotExists,
    /// Removes it.
    Delete,
    /// Removes all that begin so.
    DeleteTree,
    /// Removes it if it was last written by `index`.
    DeleteCas,
    /// Ends the session.
    EndSession,
}

impl Verb {
    /// By Consul's word for it.
    pub fn parse(word: &str) -> Option<Self> {
        Some(match word {
            "set" => Verb::Set,
            "cas" => Verb::Cas,
            "lock" => Verb::Lock,
            "unlock" => Verb::Unlock,
            "get" => Verb::Get,
            "get-or-empty" => Verb::GetOrEmpty,
            "get-tree" => Verb::GetTree,
            "check-index" => Verb::CheckIndex,
            "check-session" => Verb::CheckSession,
            "check-not-exists" => Verb::CheckNotExists,
            "delete" => Verb::Delete,
            "delete-tree" => Verb::DeleteTree,
            "delete-cas" => Verb::DeleteCas,
            _ => return None,
        })
    }

    /// Whether it changes nothing.
    pub fn only_reads(self) -> bool {
        matches!(
            self,
            Verb::Get | Verb::GetOrEmpty | Verb::GetTree | Verb::CheckIndex | Verb::CheckSession | Verb::CheckNotExists
        )
    }

    // Others may do the same to other keys meanwhile.
    fn is_alone(self) -> bool {
        !matches!(self, Verb::Set | Verb::Cas | Verb::Delete | Verb::DeleteCas)
    }
}

/// One change, or one look.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Op {
    /// What is done.
    pub verb: Verb,
    /// The key, or how keys begin.
    pub key: String,
    /// The value.
    pub value: Vec<u8>,
    /// Its owner's number; none: as it is.
    pub flags: Option<u64>,
    /// The commit that is expected.
    pub index: u64,
    /// The session.
    pub session: String,
}

impl Op {
    /// With nothing else than the key.
    pub fn new(verb: Verb, key: impl Into<String>) -> Self {
        Op { verb, key: key.into(), value: Vec::new(), flags: Some(0), index: 0, session: String::new() }
    }
}

/// What a change came to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// All is done: the keys that were read or written, by the number of the operation; the last commit.
    Done(Vec<(usize, String, Pair)>, u64),
    /// Nothing is done: what did not hold, by the number of the operation.
    Refused(Vec<(usize, String)>),
}

/// What goes along with changes of keys.
#[derive(Debug, Clone, Copy, Default)]
pub struct With<'a> {
    /// Written in the same commit.
    pub writes: &'a [Write],
    /// Nothing is to be done: what does not hold is all that is asked for.
    pub only_looks: bool,
}

// What stands, with what was changed so far.
struct Draft<'a> {
    store: &'a dyn Store,
    changed: BTreeMap<String, Changed>,
}

struct Changed {
    // Of the store; none: it was not there.
    version: Option<u64>,
    pair: Option<Pair>,
}

impl Draft<'_> {
    fn get(&self, key: &str) -> Result<Option<Pair>> {
        match self.changed.get(key) {
            Some(changed) => Ok(changed.pair.clone()),
            None => self.store.get(&kv_key(key))?.as_ref().map(Pair::read).transpose(),
        }
    }

    fn tree(&self, prefix: &str) -> Result<BTreeMap<String, Pair>> {
        let mut all = BTreeMap::new();
        for entry in self.store.list(&kv_key(prefix))? {
            all.insert(own_key(&entry), Pair::read(&entry)?);
        }
        for (key, changed) in self.changed.range(prefix.to_owned()..).take_while(|(key, _)| key.starts_with(prefix)) {
            match &changed.pair {
                Some(pair) => all.insert(key.clone(), pair.clone()),
                None => all.remove(key),
            };
        }
        Ok(all)
    }

    fn put(&mut self, key: &str, pair: Option<Pair>) -> Result<()> {
        if let Some(changed) = self.changed.get_mut(key) {
            changed.pair = pair;
            return Ok(());
        }
        let version = self.store.get(&kv_key(key))?.map(|entry| entry.version);
        self.changed.insert(key.to_owned(), Changed { version, pair });
        Ok(())
    }
}

impl Kv {
    /// Does all of it in one commit, or nothing. Durable when it returns.
    pub async fn run(&self, ops: &[Op]) -> Result<Outcome> {
        self.run_with(ops, With::default()).await
    }

    /// The same, in one commit with what others write.
    pub async fn run_with(&self, ops: &[Op], with: With<'_>) -> Result<Outcome> {
        for op in ops {
            check(op)?;
        }
        let is_alone = ops.len() != 1 || ops[0].verb.is_alone();
        for attempt in 0..ATTEMPTS {
            // Who was too slow some times is alone from then on.
            let (shared, alone) = match is_alone || attempt >= BESIDE {
                true => (None, Some(self.gate.write().await)),
                false => (Some(self.gate.read().await), None),
            };
            let result = self.attempt(ops, with).await;
            drop((shared, alone));
            match result {
                Err(error) if error.kind == Kind::Conflict && error.retry => tokio::task::yield_now().await,
                result => return result,
            }
        }
        let what = ops.first().map_or("", |op| op.key.as_str());
        Err(Error::new(Kind::Conflict, format!("key \"{what:.70}\""), "is changed by others all the time").retry(true))
    }

    async fn attempt(&self, ops: &[Op], with: With<'_>) -> Result<Outcome> {
        let mut draft = Draft { store: &*self.store, changed: BTreeMap::new() };
        let (mut results, mut refused, mut ended) = (Vec::new(), Vec::new(), Vec::new());
        let mut size = 0;
        for (number, op) in ops.iter().enumerate() {
            match self.apply(&mut draft, op, &mut ended)? {
                Ok(read) => {
                    size += read.iter().map(|(key, pair)| key.len() + pair.value.len() + 200).sum::<usize>();
                    if size > MOST_READ {
                        let message = format!("reads more than {MOST_READ} bytes");
                        return Err(Error::new(Kind::Exhausted, "transaction", message).help("read in several"));
                    }
                    results.extend(read.into_iter().map(|(key, pair)| (number, key, pair)));
                }
                Err(why) => refused.push((number, why)),
            }
        }
        if !refused.is_empty() || with.only_looks {
            return Ok(Outcome::Refused(refused));
        }
        let mut writes = with.writes.to_vec();
        for (key, changed) in &draft.changed {
            let expect = changed.version.map_or(Expect::Absent, Expect::Version);
            match (&changed.pair, changed.version) {
                (None, None) => {}
                (None, Some(_)) => writes.push(Write::remove(kv_key(key)).expect(expect)),
                (Some(pair), _) => writes.push(Write::put(kv_key(key), pair.write()).expect(expect)),
            }
        }
        writes.extend(ended.iter().map(|id| Write::remove(format!("{SESSION}{id}"))));
        let version = match writes.is_empty() {
            true => 0,
            false => self.store.commit(writes).await?,
        };
        let changed = draft.changed.into_iter().map(|(key, changed)| (key, changed.pair));
        self.committed(changed.collect(), &ended, version);
        // What is not there was never written.
        for (_, _, pair) in results.iter_mut().filter(|(_, _, pair)| *pair != Pair::default()) {
            let new = |index: u64| if index == 0 { version } else { index };
            (pair.created, pair.modified) = (new(pair.created), new(pair.modified));
        }
        Ok(Outcome::Done(results, version))
    }

    // What an operation reads or writes, or why it does not hold.
    fn apply(
        &self,
        draft: &mut Draft,
        op: &Op,
        ended: &mut Vec<String>,
    ) -> Result<std::result::Result<Vec<(String, Pair)>, String>> {
        let known = match op.verb {
            Verb::GetTree | Verb::DeleteTree | Verb::EndSession => None,
            _ => draft.get(&op.key)?,
        };
        let index = known.as_ref().map_or(0, |pair| pair.modified);
        let holder = known.as_ref().and_then(|pair| pair.session.as_deref());
        let one = |pair: Option<Pair>| Ok(pair.into_iter().map(|pair| (op.key.clone(), pair)).collect());
        Ok(match op.verb {
            Verb::Get if known.is_none() => Err(format!("key \"{}\" doesn't exist", op.key)),
            Verb::GetOrEmpty => one(Some(known.unwrap_or_default())),
            Verb::Get => one(known),
            Verb::GetTree => Ok(draft.tree(&op.key)?.into_iter().collect()),
            Verb::CheckIndex if known.is_none() => Err(format!("key \"{}\" doesn't exist", op.key)),
            Verb::CheckIndex if index != op.index => {
                Err(format!("current modify index {index} does not match required index {}", op.index))
            }
            Verb::CheckSession if known.is_none() => Err(format!("key \"{}\" doesn't exist", op.key)),
            Verb::CheckSession if holder != Some(&op.session) => {
                Err(format!("current session \"{}\" does not match required session", holder.unwrap_or_default()))
            }
            Verb::CheckIndex | Verb::CheckSession => one(known),
            Verb::CheckNotExists if known.is_some() => Err(format!("key \"{}\" exists", op.key)),
            Verb::CheckNotExists => Ok(Vec::new()),
            // What was written a moment ago, in the same transaction, has none yet.
            Verb::Cas if op.index == 0 && known.is_some() => Err("index is stale".to_owned()),
            Verb::Cas if index != op.index => Err("index is stale".to_owned()),
            Verb::Lock if ended.contains(&op.session) || !self.has_session(&op.session)? => {
                Err(format!("{NO_SESSION} {:.60?}", op.session))
            }
            Verb::Lock if holder.is_some_and(|holder| holder != op.session) => Err("lock is already held".to_owned()),
            Verb::Lock if holder.is_none() && self.is_delayed(&op.key) => Err("lock is held back".to_owned()),
            Verb::Unlock if holder != Some(&op.session) => {
                Err("lock isn't held, or held by another session".to_owned())
            }
            Verb::Set | Verb::Cas | Verb::Lock | Verb::Unlock => {
                let pair = self.written(op, known.clone());
                // Consul's clients say the same again and again, and wake nobody by it.
                if let Some(known) = known.filter(|known| op.flags.is_some() && is_same(known, &pair)) {
                    return Ok(one(Some(known)));
                }
                draft.put(&op.key, Some(pair.clone()))?;
                one(Some(pair))
            }
            Verb::DeleteCas if known.is_some() && (index != op.index || index == 0) => Err("index is stale".to_owned()),
            Verb::Delete | Verb::DeleteCas => {
                if known.is_some() {
                    draft.put(&op.key, None)?;
                }
                Ok(Vec::new())
            }
            Verb::DeleteTree => {
                for key in draft.tree(&op.key)?.into_keys() {
                    draft.put(&key, None)?;
                }
                Ok(Vec::new())
            }
            Verb::EndSession => {
                self.let_go(draft, &op.session)?;
                ended.push(op.session.clone());
                Ok(Vec::new())
            }
        })
    }

    fn written(&self, op: &Op, known: Option<Pair>) -> Pair {
        let known = known.unwrap_or_default();
        let (session, lock_index) = match op.verb {
            // Whoever has it already locks it no more often.
            Verb::Lock if known.session.is_some() => (known.session, known.lock_index),
            Verb::Lock => (Some(op.session.clone()), known.lock_index + 1),
            Verb::Unlock => (None, known.lock_index),
            _ => (known.session, known.lock_index),
        };
        Pair {
            value: op.value.clone(),
            at: self.clock.wall(),
            flags: op.flags.unwrap_or(known.flags),
            session,
            lock_index,
            created: known.created,
            modified: 0,
        }
    }

    // What a session holds is let go, or removed where it says so.
    fn let_go(&self, draft: &mut Draft, id: &str) -> Result<()> {
        let deletes = self.session(id)?.is_some_and(|session| session.deletes);
        let mut keys: std::collections::BTreeSet<String> = self.held_by(id).into_iter().collect();
        // And what was locked a moment ago, in the same transaction.
        keys.extend(draft.changed.keys().cloned());
        for key in keys {
            let Some(mut pair) = draft.get(&key)?.filter(|pair| pair.session.as_deref() == Some(id)) else { continue };
            let pair = match deletes {
                true => None,
                false => {
                    (pair.session, pair.modified) = (None, 0);
                    Some(pair)
                }
            };
            draft.put(&key, pair)?;
        }
        Ok(())
    }
}

fn is_same(known: &Pair, new: &Pair) -> bool {
    (&known.value, known.flags, &known.session, known.lock_index)
        == (&new.value, new.flags, &new.session, new.lock_index)
}

fn check(op: &Op) -> Result<()> {
    match op.verb {
        Verb::EndSession => return Ok(()),
        // All of them.
        Verb::GetTree | Verb::DeleteTree if op.key.is_empty() => return Ok(()),
        _ => check_any_key("key", &op.key)?,
    }
    match op.value.len() {
        0..=MAX_KV => Ok(()),
        size => {
            let error = Error::new(
                Kind::Exhausted,
                format!("key \"{:.70}\"", op.key),
                format!("a value of {size} bytes is too large"),
            );
            Err(error.help(format!("at most {MAX_KV} bytes")))
        }
    }
}

/// All that begin so, with what belongs to them.
pub fn tree(store: &dyn Store, prefix: &str) -> Result<Vec<(String, Pair)>> {
    let entries = store.list(&kv_key(prefix))?;
    entries.iter().map(|entry| Ok((entry.key[KV.len()..].to_owned(), Pair::read(entry)?))).collect()
}
