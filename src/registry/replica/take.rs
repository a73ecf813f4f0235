//! Whose the other place is: what this host wrote last, what others have written since, and how all of it comes here where this host has
//! nothing, or something older.

use std::fs::File;
use std::io::{Seek, Write};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use bytes::Bytes;
use futures_util::{StreamExt, TryStreamExt};
use serde::{Deserialize, Serialize};
use tokio::sync::mpsc;

use super::rows::{self, FORMAT, Head, Reading, Row};
use super::store::Store;
use super::{Replica, State, Trouble, Turn, unanswered};
use crate::model::fault;
use crate::model::id::random_uuid;
use crate::registry::ImageRegistry;
use crate::registry::cache::Caches;
use crate::registry::index::{Open, Standing};
use crate::registry::refused::Refused;
use crate::registry::rules::Rules;

/// What is kept at a place, and in which layout.
pub const REGISTRY: &str = "neap-registry.json";
/// What names of segments and of snapshots begin with.
pub const LOG: &str = "log/";
pub const SNAPSHOT: &str = "snapshot/";
/// The same of what stays of the log: where it was taken over.
pub const CLAIM: &str = "claim/";
/// Rows that come in one transaction, and what of it waits.
const ROWS: usize = 1000;
const WAITING: usize = 4;
/// Segments that are asked for at once.
const AHEAD: usize = 8;

/// That it is kept here.
#[derive(Serialize, Deserialize)]
pub struct Lineage {
    format: u32,
    /// What is kept: always the same, as long as it is not taken away.
    pub lineage: String,
}

/// The log that this host writes.
pub struct Log {
    /// Who it is, as in heads.
    pub writer: String,
    /// The last segment.
    pub number: u64,
    /// Whether all that was here before is there.
    pub is_whole: bool,
    /// What was written since the last snapshot.
    pub segments: u64,
}

// What is there, by number, in order.
#[derive(Clone)]
struct There {
    segments: Vec<u64>,
    snapshots: Vec<u64>,
}

impl There {
    fn last(&self) -> u64 {
        self.segments.last().max(self.snapshots.last()).copied().unwrap_or(0)
    }
}

/// What a segment is called.
pub fn segment(number: u64) -> String {
    format!("{LOG}{number:020}")
}

/// What a snapshot is called.
pub fn snapshot(number: u64) -> String {
    format!("{SNAPSHOT}{number:020}")
}

/// What is there, by number, in order.
pub async fn numbers(store: &dyn Store, prefix: &str) -> Result<Vec<u64>, Trouble> {
    let all = store.list(prefix).await?;
    let mut numbers: Vec<u64> = all.iter().filter_map(|kept| kept.name.strip_prefix(prefix)?.parse().ok()).collect();
    numbers.sort_unstable();
    Ok(numbers)
}

fn said(at: u64) -> String {
    let at = jiff::Timestamp::from_second((at / 1000) as i64);
    at.map_or_else(|_| "an unknown time".to_owned(), |at| at.to_string())
}

fn damaged(what: &str, error: impl std::fmt::Display) -> Trouble {
    Trouble::Refused(format!("{what} cannot be read: {error}"))
}

fn missing(replica: &Replica, name: &str) -> Trouble {
    Trouble::Refused(format!("{}: {name} is missing", replica.place()))
}

async fn head_of(replica: &Replica, number: u64) -> Result<Head, Trouble> {
    let name = segment(number);
    let gone = || Trouble::Down(format!("{}: {name} is just going", replica.place()));
    let bytes = replica.store.get(&name).await?.ok_or_else(gone)?;
    rows::head(&bytes).map_err(|error| damaged(&name, error))
}

impl ImageRegistry {
    pub(super) fn head(&self, replica: &Replica, writer: &str, number: u64) -> Head {
        let (host, id, at) = (replica.options.host.clone(), replica.options.id.clone(), self.now());
        let said = match *replica.turn.borrow() {
            Turn::Said(turn) => turn,
            Turn::Alone | Turn::Unsaid => 0,
        };
        let turn = said.max(replica.floor.load(Ordering::Relaxed));
        let writer = writer.to_owned();
        Head { format: FORMAT, number, writer, host, id, turn, change: 0, at, more: false, claim: false }
    }

    /// Sees to it that it is this host's.
    pub(super) async fn take_over(self: &Arc<Self>, replica: &Arc<Replica>) -> Result<Log, Trouble> {
        let store = &*replica.store;
        let lineage = self.lineage(replica).await?;
        let there = There { segments: numbers(store, LOG).await?, snapshots: numbers(store, SNAPSHOT).await? };
        let standing = self.index.standing()?;
        let is_known = standing.as_ref().is_some_and(|standing| standing.lineage == lineage);
        let before = standing.as_ref().map(|standing| standing.writer.clone()).unwrap_or_default();
        let own = standing.filter(|own| is_known && own.is_ours());
        match own {
            // It has lost what this host has written.
            Some(own) if own.number > there.last() => self.begin_there(replica, &lineage, own.number).await,
            Some(own) => match self.go_on(replica, &own, &there).await? {
                Ok(log) => Ok(log),
                Err(head) => {
                    if head.writer != own.writer {
                        self.check_turn(replica, Some(&head), false)?;
                    }
                    if !own.is_whole {
                        let why = format!(
                            "host {} has taken {} over, while this one had images that were not there yet: move its folder `registry` away",
                            head.host,
                            replica.place()
                        );
                        return Err(Trouble::Refused(why));
                    }
                    self.load(replica, &lineage, &there).await
                }
            },
            None if there.last() == 0 && is_known => {
                Err(Trouble::Refused(format!("{} held this registry, and is empty now", replica.place())))
            }
            None if there.last() == 0 => {
                self.check_turn(replica, None, true)?;
                self.begin_there(replica, &lineage, 0).await
            }
            // It was emptied while this host wrote there.
            None if !is_known && !before.is_empty() && head_of(replica, there.last()).await?.writer == before => {
                self.begin_there(replica, &lineage, there.last()).await
            }
            None if !is_known && self.index.has_own()? => {
                let why = format!(
                    "{} holds another registry's images, and this host has images of its own: give it an empty folder `registry`, or \
                     another bucket or prefix",
                    replica.place()
                );
                Err(Trouble::Refused(why))
            }
            None => {
                let head = match there.segments.last() {
                    Some(last) => Some(head_of(replica, *last).await?),
                    None => None,
                };
                self.check_turn(replica, head.as_ref(), true)?;
                self.load(replica, &lineage, &there).await
            }
        }
    }

    // Whether this host may take over from whoever has written that; what it `never_had`, where nobody leads.
    fn check_turn(&self, replica: &Replica, head: Option<&Head>, never_had: bool) -> Result<(), Trouble> {
        let turn = *replica.turn.borrow();
        match (turn, head) {
            (Turn::Unsaid, _) => {
                let why = "whoever leads has not said yet that this host keeps the images";
                Err(Trouble::Down(why.to_owned()))
            }
            (_, None) => Ok(()),
            (Turn::Alone, Some(_)) if never_had => Ok(()),
            (Turn::Alone, Some(head)) => {
                let why = format!(
                    "host {} has taken {} over, at {}; to serve it here again stop the registry there, and start this one with an empty \
                     folder `registry`",
                    head.host,
                    replica.place(),
                    said(head.at)
                );
                Err(Trouble::Refused(why))
            }
            (Turn::Said(turn), Some(head)) if turn > head.turn => Ok(()),
            // The same host, with an empty folder.
            (Turn::Said(turn), Some(head)) if turn == head.turn && never_had && head.id == replica.options.id => Ok(()),
            (Turn::Said(_), Some(head)) => {
                let why = format!(
                    "host {} has taken {} over, at {}: neap registry keeper NODE says who keeps the images",
                    head.host,
                    replica.place(),
                    said(head.at)
                );
                Err(Trouble::Refused(why))
            }
        }
    }

    // Where this host wrote last; or else what another has written since.
    async fn go_on(&self, replica: &Replica, own: &Standing, there: &There) -> Result<Result<Log, Head>, Trouble> {
        let mut number = own.number;
        for since in there.segments.iter().filter(|since| **since > own.number) {
            let head = head_of(replica, *since).await?;
            // What is here is older than what this host has written: it came back from a backup.
            if head.writer != own.writer || head.change >= own.next {
                return Ok(Err(head));
            }
            number = *since;
        }
        // It may be gone by now.
        if let Some(bytes) = replica.store.get(&segment(number)).await?
            && let Ok(head) = rows::head(&bytes)
        {
            replica.floor.fetch_max(head.turn, Ordering::Relaxed);
        }
        let segments = number - there.snapshots.last().copied().unwrap_or(0).min(number);
        Ok(Ok(Log { writer: own.writer.clone(), number, is_whole: own.is_whole, segments }))
    }

    // What is there is always of the same registry, as long as that is not taken away.
    async fn lineage(&self, replica: &Replica) -> Result<String, Trouble> {
        let fresh = Lineage { format: FORMAT, lineage: random_uuid(&*self.clock) };
        let text = serde_json::to_vec(&fresh).map_err(std::io::Error::other)?;
        let store = &*replica.store;
        let known = match store.get(REGISTRY).await? {
            Some(known) => known,
            None => {
                store.create(REGISTRY, Bytes::from(text)).await?;
                store.get(REGISTRY).await?.ok_or_else(|| Trouble::Down(format!("{REGISTRY} is not kept")))?
            }
        };
        let read: Lineage = serde_json::from_slice(&known).map_err(|error| damaged(REGISTRY, error))?;
        if read.format > FORMAT {
            let why = format!("{} has format {}; this neap knows up to {FORMAT}", replica.place(), read.format);
            return Err(Trouble::Refused(why));
        }
        // The same once more: it has to stay as it is.
        if store.create(REGISTRY, known).await? {
            tracing::warn!(
                place = replica.place(),
                "the registry's bucket does not refuse to write what is there already (If-None-Match): take care that one registry alone uses it"
            );
        }
        Ok(read.lineage)
    }

    // Nothing is there: what is here is to be brought there.
    async fn begin_there(&self, replica: &Replica, lineage: &str, last: u64) -> Result<Log, Trouble> {
        // From here on no file is let go of.
        replica.state.send_replace(State::Waiting("what is here is to be brought there".into()));
        self.index.open_for(Open::ReadOnly(unanswered("it is about to be brought there")));
        let mut behind = String::new();
        loop {
            let some = self.index.replicas_behind(&behind, ROWS)?;
            let Some(end) = some.last() else { break };
            behind = end.to_string();
            if let Some(gone) = some.iter().find(|digest| !self.disk.is_there(digest)) {
                let why = format!(
                    "{} does not hold what this registry has kept in its bucket: blob {gone}, among others, is not on this host's disk",
                    replica.place()
                );
                return Err(Trouble::Refused(why));
            }
        }
        // It is known here before it is said there: a death in between is no other host.
        replica.term.fetch_add(1, Ordering::SeqCst);
        self.index.begin_replica(lineage, &replica.writer, last).await?;
        fault::point("registry.before-claim");
        Ok(Log { writer: replica.writer.clone(), number: last, is_whole: false, segments: 0 })
    }

    // Nobody else writes from here on; the number of the segment that says so, or nothing: somebody has just written there.
    async fn claim(&self, replica: &Replica, there: &There) -> Result<Option<u64>, Trouble> {
        let last = there.last();
        // A try before may have got so far.
        if there.segments.last() == Some(&last) {
            let head = head_of(replica, last).await?;
            if head.claim && head.writer == replica.writer {
                self.mark(replica, last).await?;
                return Ok(Some(last));
            }
        }
        let head = Head { claim: true, ..self.head(replica, &replica.writer, last + 1) };
        if !replica.store.create(&segment(last + 1), rows::bare(&head)?.into()).await? {
            return Ok(None);
        }
        self.mark(replica, last + 1).await?;
        Ok(Some(last + 1))
    }

    // That segment stays for good: whoever was taken over from meets it, however late.
    async fn mark(&self, replica: &Replica, number: u64) -> Result<(), Trouble> {
        replica.store.create(&format!("{CLAIM}{number:020}"), Bytes::from_static(b"{}")).await?;
        Ok(())
    }

    // All that is there comes here.
    async fn load(self: &Arc<Self>, replica: &Arc<Replica>, lineage: &str, there: &There) -> Result<Log, Trouble> {
        if there.snapshots.is_empty() {
            let why = format!(
                "{} does not hold a whole registry yet: whoever began to bring one there has not ended; where that host is lost, empty it",
                replica.place()
            );
            return Err(Trouble::Refused(why));
        }
        tracing::info!(place = replica.place(), "what the registry's bucket holds comes to this host");
        // Nobody is kept from serving it by one that cannot.
        let mut read = None;
        for number in there.snapshots.iter().rev() {
            match self.fetch_snapshot(replica, &snapshot(*number)).await {
                Ok(file) => {
                    read = Some((*number, file));
                    break;
                }
                Err(Trouble::Refused(why)) => {
                    tracing::error!(why, "a snapshot of the registry is damaged; the one before is read");
                }
                Err(trouble) => return Err(trouble),
            }
        }
        let (from, file) =
            read.ok_or_else(|| Trouble::Refused(format!("{}: no snapshot can be read", replica.place())))?;
        // From its claim on it is this host's, and what has come is the last there is. What is written meanwhile is read as well.
        let (mut there, mut seen) = (there.clone(), from);
        let number = loop {
            self.segments(replica, &there, seen, there.last(), None).await?;
            seen = there.last();
            if let Some(number) = self.claim(replica, &there).await? {
                break number;
            }
            there.segments = numbers(&*replica.store, LOG).await?;
        };
        fault::point("registry.after-claim");
        replica.state.send_replace(State::Waiting("what it holds is coming here".into()));
        self.index.open_for(Open::Not(unanswered("what it holds is coming here")));
        replica.term.fetch_add(1, Ordering::SeqCst);
        self.index.begin_loading(lineage).await?;
        self.load_snapshot(file).await?;
        let own = self.clone();
        self.segments(replica, &there, from, there.last(), Some(&own)).await?;
        self.reload().map_err(|error| Trouble::Refused(error.to_string()))?;
        fault::point("registry.before-loaded");
        self.index.loaded(&replica.writer, number).await?;
        let [repositories, manifests, tags, blobs] = self.index.counts_now()?;
        tracing::info!(repositories, manifests, tags, blobs, "the image registry is what its bucket holds");
        Ok(Log { writer: replica.writer.clone(), number, is_whole: true, segments: number - from })
    }

    // Segments behind `from` up to one: they are looked at, or become what is here.
    async fn segments(
        &self,
        replica: &Replica,
        there: &There,
        from: u64,
        until: u64,
        into: Option<&ImageRegistry>,
    ) -> Result<(), Trouble> {
        if let Some(gone) = (from + 1..=until).find(|number| there.segments.binary_search(number).is_err()) {
            return Err(missing(replica, &segment(gone)));
        }
        let fetched = (from + 1..=until).map(|number| async move {
            let name = segment(number);
            let bytes = replica.store.get(&name).await?.ok_or_else(|| missing(replica, &name))?;
            let failed = |error| damaged(&name, error);
            let (head, mut reading) = Reading::begin(&bytes[..]).map_err(failed)?;
            let mut rows = Vec::new();
            while let Some(row) = reading.row().map_err(failed)? {
                rows.push(row);
            }
            Ok::<_, Trouble>((head, rows))
        });
        let mut fetched = futures_util::stream::iter(fetched).buffered(AHEAD);
        // What belongs together counts once all of it is there.
        let (mut together, mut whole) = (Vec::new(), Vec::new());
        while let Some((head, rows)) = fetched.try_next().await? {
            let Some(into) = into else {
                // Whoever claimed it may not have got to saying that it stays.
                if head.claim {
                    self.mark(replica, head.number).await?;
                }
                continue;
            };
            match head.claim {
                true => together.clear(),
                false => together.extend(rows),
            }
            if !head.more {
                whole.append(&mut together);
            }
            if whole.len() >= ROWS {
                into.index.load(std::mem::take(&mut whole), into.now()).await?;
            }
        }
        match into {
            Some(into) => Ok(into.index.load(whole, into.now()).await?),
            None => Ok(()),
        }
    }

    // A snapshot as a file, which was read to its end.
    async fn fetch_snapshot(&self, replica: &Replica, name: &str) -> Result<File, Trouble> {
        let mut file = tempfile_in(self.disk.folder())?;
        let mut chunks = replica.store.read(name, 0).await?.ok_or_else(|| missing(replica, name))?;
        while let Some(chunk) = chunks.try_next().await? {
            file.write_all(&chunk)?;
        }
        file.rewind()?;
        let read = tokio::task::spawn_blocking(move || -> std::io::Result<File> {
            let (_, mut reading) = Reading::begin(&file)?;
            while reading.row()?.is_some() {}
            drop(reading);
            file.rewind()?;
            Ok(file)
        });
        read.await.map_err(std::io::Error::other)?.map_err(|error| damaged(name, error))
    }

    // All of a snapshot becomes what is here.
    async fn load_snapshot(&self, file: File) -> Result<(), Trouble> {
        let (sender, mut some) = mpsc::channel::<Vec<Row>>(WAITING);
        let read = tokio::task::spawn_blocking(move || -> std::io::Result<()> {
            let (_, mut reading) = Reading::begin(file)?;
            let mut rows = Vec::new();
            while let Some(row) = reading.row()? {
                rows.push(row);
                if rows.len() == ROWS {
                    let full = std::mem::take(&mut rows);
                    sender.blocking_send(full).map_err(std::io::Error::other)?;
                }
            }
            sender.blocking_send(rows).map_err(std::io::Error::other)
        });
        while let Some(rows) = some.recv().await {
            self.index.load(rows, self.now()).await?;
        }
        Ok(read.await.map_err(std::io::Error::other)??)
    }

    // What is known of the index beside it.
    fn reload(&self) -> crate::model::Result<()> {
        let caches = self.index.settings_now(Caches::setting()).map_err(Refused::into_error)?;
        let rules = self.index.settings_now(Rules::setting()).map_err(Refused::into_error)?;
        self.rules.replace_all(Rules::read(rules)?);
        self.caches.replace_all(Caches::read(caches, false));
        Ok(())
    }
}

/// A file without a name, beside the rest.
pub fn tempfile_in(folder: &Path) -> Result<File, Refused> {
    use std::os::unix::fs::OpenOptionsExt;
    let opened = File::options().read(true).write(true).mode(0o600).custom_flags(libc::O_TMPFILE).open(folder);
    opened.map_err(|error| Refused::io("write a file", &error))
}
