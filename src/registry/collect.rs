//! Removes what nobody needs any more, a few rows at a time, while pushes and pulls go on.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::refused::Refused;
use super::upload::aside;
use super::{Digest, ImageRegistry, disk};
use crate::model::fault;

/// Rows of the index that are looked at in one go of a collection; how long it rests behind each at least, and how many times as long as that
/// took: pushes and pulls come first.
const ROWS: usize = 256;
const REST: Duration = Duration::from_millis(5);
const RESTS: u32 = 2;
/// How old a file is that may belong to nothing: one that just comes is not known yet.
const STRAY: Duration = Duration::from_secs(60 * 60);

/// What a collection did.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Collected {
    /// Blobs that their repositories did not need any more.
    pub unlinked: u64,
    /// Blobs that no repository needed, and their bytes.
    pub blobs: u64,
    /// Bytes of those.
    pub bytes: u64,
    /// Files that belonged to nothing.
    pub strays: u64,
    /// Copies of other registries' manifests that nobody asked for any more.
    pub copies: u64,
    /// Uploads that nobody went on with.
    pub uploads: u64,
}

async fn rest(began: Instant) {
    tokio::time::sleep((began.elapsed() * RESTS).max(REST)).await;
}

impl ImageRegistry {
    /// Removes what nobody needs any more, while all else goes on.
    pub async fn collect(self: &Arc<Self>) -> Result<Collected, Refused> {
        let _turn = self.collecting.lock().await;
        let mut collected = Collected::default();
        let before = self.idle_since();
        let mut from = Some((String::new(), String::new()));
        while let Some(at) = from {
            let began = Instant::now();
            let now = self.now();
            let step = self.index.idle_copies(&at, ROWS, |repository| self.copies_since(repository, now))?;
            from = step.next;
            for (repository, digest) in step.found {
                let since = self.copies_since(repository.as_str(), now);
                collected.copies += u64::from(self.index.drop_copy(&repository, &digest, since, now).await?);
            }
            rest(began).await;
        }
        let mut from = Some((String::new(), String::new()));
        while let Some(at) = from {
            let began = Instant::now();
            let step = self.index.idle_links(&at, ROWS, before)?;
            from = step.next;
            if !step.found.is_empty() {
                collected.unlinked += self.index.unlink_idle(step.found, before).await? as u64;
            }
            rest(began).await;
        }
        let mut from = Some(String::new());
        while let Some(at) = from {
            let began = Instant::now();
            let step = self.index.idle_blobs(&at, ROWS, before)?;
            from = step.next.map(|(digest, _)| digest);
            let (count, bytes) = self.remove(step.found).await?;
            collected.blobs += count;
            collected.bytes += bytes;
            rest(began).await;
        }
        for part in 0..disk::PARTS {
            let began = Instant::now();
            collected.strays += self.remove_strays(part).await?;
            if began.elapsed() > REST {
                rest(began).await;
            }
        }
        let (own, patience) = (self.clone(), self.limits.patience);
        let expired = aside(move || {
            own.uploads.expire(patience).map_err(|error| Refused::io("look through its uploads", &error))
        });
        collected.uploads = expired.await? as u64;
        Ok(collected)
    }

    // Removes blobs that are of no repository: from the index first, so that a death in between leaves a stray file.
    async fn remove(self: &Arc<Self>, digests: Vec<Digest>) -> Result<(u64, u64), Refused> {
        if digests.is_empty() {
            return Ok((0, 0));
        }
        let going = self.disk.going(digests);
        let gone = self.index.forget_idle(going.digests().to_vec()).await?;
        fault::point("registry.before-unlink");
        let own = self.clone();
        aside(move || {
            let mut bytes = 0;
            for (digest, size) in &gone {
                own.disk.remove(digest).map_err(|error| Refused::io("remove a blob", &error))?;
                bytes += size;
            }
            drop(going);
            Ok((gone.len() as u64, bytes))
        })
        .await
    }

    async fn remove_strays(self: &Arc<Self>, part: usize) -> Result<u64, Refused> {
        let own = self.clone();
        aside(move || {
            let old = own.disk.old(part, STRAY).map_err(|error| Refused::io("look through its blobs", &error))?;
            let mut strays = Vec::new();
            for digest in old {
                if own.index.any_blob(&digest)?.is_none() {
                    strays.push(digest);
                }
            }
            let going = own.disk.going(strays);
            let mut count = 0;
            for digest in going.digests() {
                // It may have come while it was looked at.
                if own.index.any_blob(digest)?.is_none() {
                    own.disk.remove(digest).map_err(|error| Refused::io("remove a file", &error))?;
                    count += 1;
                }
            }
            Ok(count)
        })
        .await
    }
}
