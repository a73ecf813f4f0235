//! Whose the other place is: what this host wrote last, what others have written since, and how all of it comes here where this host has
//! nothing, or something older.

use std::fs::File;
use std::io::{Seek, Write};
use std::sync::Arc;

use bytes::Bytes;
use futures_util::{StreamExt, TryStreamExt};
use serde::{Deserialize, Serialize};
use tokio::sync::mpsc;

use super::rows::{self, FORMAT, Head, Reading, Row};
use super::store::Store;
use super::{Replica, Trouble};
use crate::model::id::random_uuid;
use crate::registry::ImageRegistry;
use crate::registry::cache::Caches;
use crate::registry::index::{Moment, Standing};
use crate::registry::refused::Refused;
use crate::registry::rules::Rules;
use crate::registry::upload::aside;

/// What is kept at a place, and in which layout.
const REGISTRY: &str = "neap-registry.json";
/// What names of segments and of snapshots begin with.
pub const LOG: &str = "log/";
pub const SNAPSHOT: &str = "snapshot/";
/// Rows that come in one transaction, and what of it waits.
const ROWS: usize = 1000;
const WAITING: usize = 4;
/// Segments that are asked for at once.
const AHEAD: usize = 8;

#[derive(Serialize, Deserialize)]
struct Lineage {
    format: u32,
    lineage: String,
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

/// What a segment is called.
pub fn segment(number: u64) -> String {
    format!("{LOG}{number:020}")
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

impl ImageRegistry {
    pub(super) fn head(&self, replica: &Replica, writer: &str, number: u64) -> Head {
        let (host, at) = (replica.options.host.clone(), self.now());
        Head { format: FORMAT, number, writer: writer.to_owned(), host, at, more: false, claim: false }
    }

    /// Sees to it that it is this host's. What another has by now is taken from that where this one `may_take` it, or has never had it.
    pub(super) async fn take_over(self: &Arc<Self>, replica: &Arc<Replica>, may_take: bool) -> Result<Log, Trouble> {
        let store = &*replica.store;
        let lineage = self.lineage(replica).await?;
        let (segments, snapshots) = (numbers(store, LOG).await?, numbers(store, SNAPSHOT).await?);
        let last = segments.last().max(snapshots.last()).copied().unwrap_or(0);
        let standing = self.index.standing()?;
        let (own, known) = match standing {
            Some(own) if own.lineage == lineage => (Some(own).filter(|own| own.is_ours()), true),
            _ => (None, false),
        };
        match own {
            // It has lost what this host has written, or never had it.
            Some(own) if own.number > last => return self.begin_there(replica, &lineage, own.number).await,
            Some(own) => {
                if let Some(log) = self.go_on(replica, own, &segments, &snapshots, may_take).await? {
                    return Ok(log);
                }
            }
            None if last == 0 && known => {
                let why = format!("{} held this registry, and is empty now", replica.place());
                return Err(Trouble::Refused(why));
            }
            None if last == 0 => return self.begin_there(replica, &lineage, last).await,
            None if !known && self.index.has_own()? => {
                let why = format!(
                    "{} holds another registry's images, and this host has images of its own: give it an empty folder `registry`, or \
                     another bucket or prefix",
                    replica.place()
                );
                return Err(Trouble::Refused(why));
            }
            None => {}
        }
        self.load(replica, &lineage, &segments, &snapshots).await
    }

    // Where this host wrote last; nothing: another has since, and it may be taken over from that.
    async fn go_on(
        &self,
        replica: &Replica,
        own: Standing,
        segments: &[u64],
        snapshots: &[u64],
        may_take: bool,
    ) -> Result<Option<Log>, Trouble> {
        let (mut number, mut other) = (own.number, None);
        for since in segments.iter().filter(|since| **since > own.number) {
            let name = segment(*since);
            let gone = || Trouble::Down(format!("{}: {name} is just going", replica.place()));
            let bytes = replica.store.get(&name).await?.ok_or_else(gone)?;
            let head = rows::head(&bytes).map_err(|error| damaged(&name, error))?;
            match head.writer == own.writer {
                true => number = *since,
                false => other = Some(head),
            }
        }
        match other {
            None => {
                let segments = number - snapshots.last().copied().unwrap_or(0).min(number);
                Ok(Some(Log { writer: own.writer, number, is_whole: own.is_whole, segments }))
            }
            Some(head) if !may_take => {
                let why = format!(
                    "host {} has taken {} over, at {}; to serve it here again stop the registry there, and start this one with an empty \
                     folder `registry`",
                    head.host,
                    replica.place(),
                    said(head.at)
                );
                Err(Trouble::Refused(why))
            }
            Some(_) => Ok(None),
        }
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

    // Nothing is there: what is here is brought there.
    async fn begin_there(&self, replica: &Replica, lineage: &str, last: u64) -> Result<Log, Trouble> {
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
        let writer = random_uuid(&*self.clock);
        let number = self.claim(replica, &writer, last).await?;
        self.index.begin_replica(lineage, &writer, number).await?;
        Ok(Log { writer, number, is_whole: false, segments: 0 })
    }

    // Nobody else writes from here on.
    async fn claim(&self, replica: &Replica, writer: &str, last: u64) -> Result<u64, Trouble> {
        let head = Head { claim: true, ..self.head(replica, writer, last + 1) };
        match replica.store.create(&segment(last + 1), rows::bare(&head)?.into()).await? {
            true => Ok(last + 1),
            // It is looked at anew.
            false => Err(Trouble::Down(format!("{}: another host has just written there", replica.place()))),
        }
    }

    // All that is there comes here.
    async fn load(
        self: &Arc<Self>,
        replica: &Arc<Replica>,
        lineage: &str,
        segments: &[u64],
        snapshots: &[u64],
    ) -> Result<Log, Trouble> {
        tracing::info!(place = replica.place(), "what the registry's bucket holds comes to this host");
        // First of all it is this host's, so that what comes is the last there is.
        let writer = random_uuid(&*self.clock);
        let last = segments.last().max(snapshots.last()).copied().unwrap_or(0);
        let number = self.claim(replica, &writer, last).await?;
        self.index.begin_loading(lineage).await?;
        let mut from = None;
        for snapshot in snapshots.iter().rev() {
            match self.load_snapshot(replica, &format!("{SNAPSHOT}{snapshot:020}")).await {
                Ok(()) => {
                    from = Some(*snapshot);
                    break;
                }
                Err(Trouble::Refused(why)) => {
                    tracing::error!(why, "a snapshot of the registry is damaged; the one before is read");
                    self.index.begin_loading(lineage).await?;
                }
                Err(trouble) => return Err(trouble),
            }
        }
        let from = match (from, snapshots) {
            (Some(from), _) => from,
            (None, []) => 0,
            (None, _) => return Err(Trouble::Refused(format!("{}: no snapshot can be read", replica.place()))),
        };
        let place = replica.place();
        if let Some(missing) = (from + 1..=last).find(|number| segments.binary_search(number).is_err()) {
            return Err(Trouble::Refused(format!("{place}: {} is missing", segment(missing))));
        }
        let fetched = (from + 1..=last).map(|number| async move {
            let name = segment(number);
            let missing = || Trouble::Refused(format!("{place}: {name} is missing"));
            let bytes = replica.store.get(&name).await?.ok_or_else(missing)?;
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
            match head.claim {
                true => together.clear(),
                false => together.extend(rows),
            }
            if !head.more {
                whole.append(&mut together);
            }
            if whole.len() >= ROWS {
                self.index.load(std::mem::take(&mut whole), self.now()).await?;
            }
        }
        drop(fetched);
        self.index.load(whole, self.now()).await?;
        self.index.loaded(&writer, number).await?;
        self.reload().map_err(|error| Trouble::Refused(error.to_string()))?;
        let [repositories, manifests, tags, blobs] = self.index.counts_now()?;
        tracing::info!(repositories, manifests, tags, blobs, "the image registry is what its bucket holds");
        Ok(Log { writer, number, is_whole: true, segments: number - from })
    }

    // All of a snapshot becomes what is here.
    async fn load_snapshot(self: &Arc<Self>, replica: &Arc<Replica>, name: &str) -> Result<(), Trouble> {
        let missing = || Trouble::Refused(format!("{}: {name} is missing", replica.place()));
        let mut file = tempfile_in(self.disk.folder())?;
        let mut chunks = replica.store.read(name, 0).await?.ok_or_else(missing)?;
        while let Some(chunk) = chunks.try_next().await? {
            file.write_all(&chunk)?;
        }
        file.rewind()?;
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
        read.await.map_err(std::io::Error::other)?.map_err(|error| damaged(name, error))
    }

    // What is known of the index beside it.
    fn reload(&self) -> crate::model::Result<()> {
        let caches = self.index.settings_now(Caches::setting()).map_err(Refused::into_error)?;
        let rules = self.index.settings_now(Rules::setting()).map_err(Refused::into_error)?;
        self.rules.replace_all(Rules::read(rules)?);
        self.caches.replace_all(Caches::read(caches, false));
        Ok(())
    }

    /// Writes all of it there at once, as it is now, and lets go of what is older than the snapshot before; the last change that is in it.
    pub(super) async fn snapshot(
        self: &Arc<Self>,
        replica: &Arc<Replica>,
        head: Head,
        now: Moment,
    ) -> Result<u64, Trouble> {
        let (store, own, number) = (&*replica.store, self.clone(), head.number);
        let (file, size, last) = aside(move || {
            let failed = |error: std::io::Error| Refused::io("write a snapshot", &error);
            let mut file = tempfile_in(own.disk.folder())?;
            let mut last = 0;
            let out = std::io::BufWriter::with_capacity(1 << 20, &file);
            rows::write(out, &head, |each| {
                last = now.everything(each).map_err(|refused| std::io::Error::other(refused.why))?;
                Ok(())
            })
            .map_err(failed)?;
            let size = file.stream_position().map_err(failed)?;
            Ok((file, size, last))
        })
        .await?;
        store.put(&format!("{SNAPSHOT}{number:020}"), Arc::new(file), size).await?;
        let snapshots = numbers(store, SNAPSHOT).await?;
        let before = snapshots.iter().rev().nth(1).copied().unwrap_or(0);
        for old in snapshots.iter().filter(|old| **old < before) {
            store.remove(&format!("{SNAPSHOT}{old:020}")).await?;
        }
        for old in numbers(store, LOG).await?.into_iter().filter(|old| *old <= before) {
            store.remove(&segment(old)).await?;
        }
        Ok(last)
    }
}

// A file without a name, beside the rest.
fn tempfile_in(folder: &std::path::Path) -> Result<File, Refused> {
    use std::os::unix::fs::OpenOptionsExt;
    let opened = File::options().read(true).write(true).mode(0o600).custom_flags(libc::O_TMPFILE).open(folder);
    opened.map_err(|error| Refused::io("write a file", &error))
}
