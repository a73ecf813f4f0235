//! Brings what has changed to the other place, in order, and what was here before it was there.

use std::io::Seek;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::Bytes;
use futures_util::TryStreamExt;

use super::rows::{self, Head, Segments};
use super::take::{CLAIM, LOG, Lineage, Log, REGISTRY, SNAPSHOT, numbers, segment, snapshot, tempfile_in};
use super::{AT_ONCE, Replica, State, Trouble};
use crate::model::fault;
use crate::registry::ImageRegistry;
use crate::registry::digest::Digest;
use crate::registry::index::Moment;
use crate::registry::refused::Refused;
use crate::registry::upload::aside;

/// Segments after which all of it is written at once again.
const SEGMENTS: u64 = 512;
/// Manifests that are looked at in one go, and things that are removed.
const ROWS: usize = 1000;
const GONE: usize = 16;
/// How long a segment may take before it is tried again: pushes wait for it.
const SEGMENT: Duration = Duration::from_secs(10);
/// Bytes of one that go in a millisecond at least.
const SLOWEST: u64 = 32;

impl Replica {
    // Writes the next segment: nobody else has, since this one did last.
    async fn append(&self, log: &mut Log, bytes: Bytes) -> Result<(), Trouble> {
        let (name, size) = (segment(log.number + 1), bytes.len() as u64);
        // What is large may take longer, by a slow way.
        let patience = SEGMENT + Duration::from_millis(size / SLOWEST);
        let created = tokio::time::timeout(patience, self.store.create(&name, bytes)).await;
        let slow = |_| Trouble::Down(format!("{} does not answer within {} s", self.place(), patience.as_secs()));
        if created.map_err(slow)?? {
            self.sent.fetch_add(size, Ordering::Relaxed);
            log.number += 1;
            log.segments += 1;
            return Ok(());
        }
        let there = self.store.get(&name).await?;
        let there = there.ok_or_else(|| Trouble::Down(format!("{}: {name} is just going", self.place())))?;
        let head = rows::head(&there)?;
        if head.writer != log.writer {
            return Err(self.taken(&head));
        }
        // This host's own, of a try whose answer was lost: it goes on behind it, and says all once more.
        log.number += 1;
        log.segments += 1;
        Err(Trouble::Down(format!("{}: an answer was lost", self.place())))
    }

    fn taken(&self, head: &Head) -> Trouble {
        Trouble::Refused(format!("host {} has taken {} over", head.host, self.place()))
    }
}

impl ImageRegistry {
    // Says once more that it is this host's, where nothing else is to be said: nobody else has it up to here.
    pub(super) async fn prove(&self, replica: &Replica) -> Result<(), Trouble> {
        let mut log = replica.log.lock().await;
        let Some(log) = log.as_mut() else { return Err(Trouble::Down("it is not this host's just now".into())) };
        let head = Head { claim: true, ..self.head(replica, &log.writer, log.number + 1) };
        let bytes = rows::bare(&head)?;
        replica.append(log, bytes.into()).await?;
        Ok(self.index.brought(0, log.number, false).await?)
    }

    // Whether another has written behind this host, or all of it is gone.
    pub(super) async fn watch(&self, replica: &Replica) -> Result<(), Trouble> {
        let known = replica.store.get(REGISTRY).await?.and_then(|text| serde_json::from_slice::<Lineage>(&text).ok());
        let standing = self.index.standing()?;
        if known.map(|known| known.lineage) != standing.map(|standing| standing.lineage) {
            return Err(Trouble::Down(format!("{} does not hold what it held", replica.place())));
        }
        let log = replica.log.lock().await;
        let Some(log) = log.as_ref() else { return Ok(()) };
        let Some(there) = replica.store.get(&segment(log.number + 1)).await? else { return Ok(()) };
        let head = rows::head(&there)?;
        match head.writer == log.writer {
            true => Err(Trouble::Down(format!("{}: an answer was lost", replica.place()))),
            false => Err(replica.taken(&head)),
        }
    }

    /// What was here before: blobs, and then a snapshot.
    pub(super) async fn seed(self: &Arc<Self>, replica: &Arc<Replica>) -> Result<(), Trouble> {
        tracing::info!(place = replica.place(), "what the image registry holds is brought to its bucket");
        self.prove(replica).await?;
        while self.sweep(replica).await? > 0 {}
        // What is pushed from now on waits for its blobs.
        self.index.be_strict().await?;
        while self.sweep(replica).await? > 0 {}
        self.prove(replica).await?;
        let mut log = replica.log.lock().await;
        let Some(log) = log.as_mut() else { return Err(Trouble::Down("it is not this host's just now".into())) };
        let (head, now) = (self.head(replica, &log.writer, log.number), self.index.now()?);
        let last = self.snapshot(replica, head, now, false).await?;
        self.index.brought(last, log.number, true).await?;
        replica.told(last);
        (log.is_whole, log.segments) = (true, 0);
        tracing::info!(place = replica.place(), "the registry's bucket has everything");
        Ok(())
    }

    /// Brings blobs of manifests there that are not there; how many.
    pub(super) async fn sweep(self: &Arc<Self>, replica: &Arc<Replica>) -> Result<u64, Trouble> {
        let (mut from, mut count) = (Some((String::new(), String::new())), 0);
        while let Some(at) = from {
            let own = self.clone();
            let step = aside(move || own.index.unreplicated(&at, ROWS)).await?;
            from = step.next;
            // One that is damaged or gone keeps nobody else from being there.
            let here: Vec<Digest> = step.found.into_iter().filter(|digest| self.disk.is_there(digest)).collect();
            count += here.len() as u64;
            futures_util::stream::iter(here.into_iter().map(Ok::<_, Trouble>))
                .try_for_each_concurrent(AT_ONCE, |digest| async move {
                    self.send(replica, &digest).await.map_err(Trouble::from)
                })
                .await?;
        }
        Ok(count)
    }

    /// What has changed, until nothing has; whether something had.
    pub(super) async fn bring(self: &Arc<Self>, replica: &Arc<Replica>) -> Result<bool, Trouble> {
        let mut is_answered = false;
        while self.index.waiting()?.0 > 0 {
            let mut log = replica.log.lock().await;
            let Some(log) = log.as_mut() else { return Err(Trouble::Down("it is not this host's just now".into())) };
            is_answered |= self.bring_some(replica, log).await?;
            if log.segments >= SEGMENTS {
                self.snapshot_beside(replica, log)?;
            }
        }
        Ok(is_answered)
    }

    async fn bring_some(self: &Arc<Self>, replica: &Arc<Replica>, log: &mut Log) -> Result<bool, Trouble> {
        let (own, head) = (self.clone(), self.head(replica, &log.writer, log.number + 1));
        let (segments, last) = aside(move || {
            let (mut segments, mut rows) = (Segments::default(), 0_u64);
            let last = own.index.changed(|row| {
                rows += 1;
                segments.push(&row)
            })?;
            let segments = match rows {
                0 => Vec::new(),
                _ => segments
                    .end(&Head { change: last, ..head })
                    .map_err(|error| Refused::io("write down what has changed", &error))?,
            };
            Ok((segments, last))
        })
        .await?;
        let is_answered = !segments.is_empty();
        for bytes in segments {
            fault::point("registry.before-segment");
            replica.append(log, bytes.into()).await?;
            fault::point("registry.after-segment");
        }
        self.index.brought(last, log.number, false).await?;
        replica.told(last);
        Ok(is_answered)
    }

    // As it is between two segments; pushes do not wait for it.
    fn snapshot_beside(self: &Arc<Self>, replica: &Arc<Replica>, log: &mut Log) -> Result<(), Trouble> {
        let Ok(turn) = replica.snapshot.clone().try_acquire_owned() else { return Ok(()) };
        let (head, now) = (self.head(replica, &log.writer, log.number), self.index.now()?);
        log.segments = 0;
        let (own, replica) = (self.clone(), replica.clone());
        tokio::spawn(async move {
            if let Err(Trouble::Down(why) | Trouble::Refused(why)) = own.snapshot(&replica, head, now, true).await {
                tracing::warn!(
                    place = replica.place(),
                    why,
                    "a snapshot of the registry is not written; the next will be"
                );
            }
            drop(turn);
        });
        Ok(())
    }

    // Writes all of it there at once, as it was at a moment, and lets go of what is older than the snapshot before; the last change that is in
    // it. Where it `waits` for that to be in the log as well, nothing comes there by it that no segment has said.
    async fn snapshot(
        self: &Arc<Self>,
        replica: &Arc<Replica>,
        head: Head,
        now: Moment,
        waits: bool,
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
        if waits {
            let (mut done, mut state) = (replica.done.subscribe(), replica.state.subscribe());
            tokio::select! {
                _ = done.wait_for(|done| *done >= last) => {}
                _ = state.wait_for(|state| !matches!(state, State::Whole)) => {
                    return Err(Trouble::Down("it is not this host's just now".into()));
                }
            }
        }
        store.put(&snapshot(number), Arc::new(file), size).await?;
        let snapshots = numbers(store, SNAPSHOT).await?;
        let before = snapshots.iter().rev().nth(1).copied().unwrap_or(0);
        for old in snapshots.iter().filter(|old| **old < before) {
            store.remove(&snapshot(*old)).await?;
        }
        // Where it was taken over stays: whoever was taken over from would write there next.
        let claims = numbers(store, CLAIM).await?;
        for old in numbers(store, LOG).await?.into_iter().filter(|old| *old <= before && !claims.contains(old)) {
            store.remove(&segment(old)).await?;
        }
        Ok(last)
    }

    /// Lets go of a few things there that nobody needs, once all who might take over know it. What comes anew has another name.
    pub(super) async fn remove_gone(&self, replica: &Replica) -> Result<(), Trouble> {
        let gone = self.index.gone(GONE)?;
        if gone.is_empty() || self.index.waiting()?.0 > 0 {
            return Ok(());
        }
        futures_util::stream::iter(gone.iter().map(Ok::<_, Trouble>))
            .try_for_each_concurrent(AT_ONCE, |name| async move { Ok(replica.store.remove(name).await?) })
            .await?;
        // Which is written, and so there is a next time for the rest.
        Ok(self.index.removed(gone).await?)
    }

    /// Brings blobs there that are not there yet.
    pub(in crate::registry) async fn all_there(self: &Arc<Self>, digests: Vec<Digest>) -> Result<(), Refused> {
        let Some(replica) = self.replica() else { return Ok(()) };
        futures_util::stream::iter(digests.into_iter().map(Ok::<_, Refused>))
            .try_for_each_concurrent(AT_ONCE, |digest| {
                let replica = replica.clone();
                async move { self.send(&replica, &digest).await }
            })
            .await
    }
}

impl Replica {
    fn told(&self, last: u64) {
        self.done.send_if_modified(|done| std::mem::replace(done, last.max(*done)) < last);
    }
}
