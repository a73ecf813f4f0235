//! Brings what has changed to the other place, in order, and what was here before it was there.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use futures_util::TryStreamExt;

use super::rows::{self, Row, Segments};
use super::take::{Log, segment};
use super::{AT_ONCE, Replica, Trouble};
use crate::model::fault;
use crate::registry::ImageRegistry;
use crate::registry::digest::Digest;
use crate::registry::refused::Refused;
use crate::registry::upload::aside;

/// Segments after which all of it is written at once again.
const SEGMENTS: u64 = 512;
/// Manifests that are looked at in one go.
const ROWS: usize = 1000;

impl ImageRegistry {
    /// What was here before: blobs, and then a snapshot.
    pub(super) async fn seed(self: &Arc<Self>, replica: &Arc<Replica>, log: &mut Log) -> Result<(), Trouble> {
        tracing::info!(place = replica.place(), "what the image registry holds is brought to its bucket");
        while self.sweep(replica).await? > 0 {}
        // What is pushed from now on waits for its blobs.
        self.index.be_strict().await?;
        while self.sweep(replica).await? > 0 {}
        let (head, now) = (self.head(replica, &log.writer, log.number), self.index.now()?);
        let last = self.snapshot(replica, head, now).await?;
        self.index.brought(last, log.number, true).await?;
        replica.done.send_if_modified(|done| std::mem::replace(done, last.max(*done)) < last);
        log.is_whole = true;
        tracing::info!(place = replica.place(), "the registry's bucket has everything");
        Ok(())
    }

    // Brings blobs of manifests there that are not there; how many.
    async fn sweep(self: &Arc<Self>, replica: &Arc<Replica>) -> Result<u64, Trouble> {
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

    /// What has changed, until nothing has.
    pub(super) async fn bring(self: &Arc<Self>, replica: &Arc<Replica>, log: &mut Log) -> Result<(), Trouble> {
        while self.index.waiting()?.0 > 0 {
            self.bring_some(replica, log).await?;
            if log.segments >= SEGMENTS {
                self.snapshot_beside(replica, log)?;
            }
        }
        Ok(())
    }

    // As it is between two segments; pushes do not wait for it.
    fn snapshot_beside(self: &Arc<Self>, replica: &Arc<Replica>, log: &mut Log) -> Result<(), Trouble> {
        let Ok(turn) = replica.snapshot.clone().try_acquire_owned() else { return Ok(()) };
        let (head, now) = (self.head(replica, &log.writer, log.number), self.index.now()?);
        log.segments = 0;
        let (own, replica) = (self.clone(), replica.clone());
        tokio::spawn(async move {
            if let Err(Trouble::Down(why) | Trouble::Refused(why)) = own.snapshot(&replica, head, now).await {
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

    async fn bring_some(self: &Arc<Self>, replica: &Arc<Replica>, log: &mut Log) -> Result<(), Trouble> {
        let (own, head) = (self.clone(), self.head(replica, &log.writer, log.number + 1));
        let (segments, last, gone) = aside(move || {
            let (mut segments, mut gone) = (Segments::default(), Vec::new());
            let last = own.index.changed(|row| {
                if let Row::Blob { digest, size: None } = &row {
                    gone.extend(digest.parse::<Digest>().ok());
                }
                segments.push(&row)
            })?;
            let segments = segments.end(&head).map_err(|error| Refused::io("write down what has changed", &error))?;
            Ok((segments, last, gone))
        })
        .await?;
        for bytes in segments {
            fault::point("registry.before-segment");
            let (name, size) = (segment(log.number + 1), bytes.len() as u64);
            if !replica.store.create(&name, bytes.into()).await? {
                // Perhaps this host's own, of a try whose answer was lost: then it goes on behind it, and says all once more.
                let there = replica.store.get(&name).await?;
                let there = there.ok_or_else(|| Trouble::Down(format!("{name} is just going")))?;
                let head = rows::head(&there)?;
                if head.writer != log.writer {
                    let why = format!("host {} has taken {} over", head.host, replica.place());
                    return Err(Trouble::Refused(why));
                }
                log.number += 1;
                self.index.brought(0, log.number, false).await?;
                return Ok(());
            }
            fault::point("registry.after-segment");
            replica.sent.fetch_add(size, Ordering::Relaxed);
            log.number += 1;
            log.segments += 1;
        }
        self.index.brought(last, log.number, false).await?;
        replica.done.send_if_modified(|done| std::mem::replace(done, last.max(*done)) < last);
        // All who might take over know that those are gone.
        futures_util::stream::iter(gone.into_iter().map(Ok::<_, Trouble>))
            .try_for_each_concurrent(AT_ONCE, |digest| async move { self.remove_there(replica, &digest).await })
            .await
    }

    // A blob that nobody needs. Whoever comes with it meanwhile waits; where somebody has come, it stays.
    pub(super) async fn remove_there(self: &Arc<Self>, replica: &Arc<Replica>, digest: &Digest) -> Result<(), Trouble> {
        let going = self.disk.going(vec![digest.clone()]);
        if going.digests().is_empty() || self.index.any_blob_now(digest)?.is_some() {
            return Ok(());
        }
        replica.store.remove(&super::blobs::name(digest)).await?;
        Ok(())
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
