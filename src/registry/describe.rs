//! What is told of images, and whether what is kept is still what came.

use std::io::Read;
use std::sync::Arc;

use serde_json::Value;

use super::digest::{Digest, Hasher};
pub use super::index::{Summary, Tagged};
use super::manifest::Referrer;
use super::name::{Reference, Repository};
use super::refused::{Code, Refused};
use super::upload::aside;
use super::{Collected, ImageRegistry};

/// Largest config that is read to be shown, in bytes.
const MAX_CONFIG: u64 = 4 << 20;
/// How long is waited for who is just coming with a blob.
const AGAIN: std::time::Duration = std::time::Duration::from_millis(20);
/// Manifests that are looked at for one size.
const MOST: usize = 10_000;
/// Blobs that are looked up at once while all are read.
const ROWS: usize = 256;

/// A manifest with what belongs to it.
#[derive(Debug)]
pub struct Described {
    /// Its digest.
    pub digest: Digest,
    /// What kind it is.
    pub media_type: String,
    /// When it came, in milliseconds since 1970.
    pub at: u64,
    /// Bytes of it and of all that it is made of.
    pub bytes: u64,
    /// What is in it.
    pub manifest: Value,
    /// What is in its config, where that is JSON.
    pub config: Option<Value>,
    /// The tags that lead to it.
    pub tags: Vec<String>,
    /// What says something of it.
    pub referrers: Vec<Referrer>,
}

/// How far all blobs have been read.
#[derive(Debug, Clone, Default)]
pub struct Scrubbed {
    /// Blobs that were read, of so many.
    pub blobs: u64,
    /// All of them.
    pub of: u64,
    /// Bytes that were read.
    pub bytes: u64,
    /// Blobs that are not what they are called after.
    pub damaged: Vec<Digest>,
    /// Blobs without a file.
    pub missing: Vec<Digest>,
}

impl ImageRegistry {
    /// Repositories whose names begin so.
    pub async fn summaries(self: &Arc<Self>, prefix: &str) -> Result<Vec<Summary>, Refused> {
        let (own, prefix) = (self.clone(), prefix.to_owned());
        aside(move || own.index.summaries(&prefix)).await
    }

    /// All tags of a repository, each with the bytes of its image.
    pub async fn tagged(self: &Arc<Self>, repository: &Repository) -> Result<Vec<(Tagged, u64)>, Refused> {
        let (own, repository) = (self.clone(), repository.clone());
        aside(move || {
            let tags = own.index.tagged(&repository)?;
            // Several tags of one image are looked at once.
            let mut known = std::collections::HashMap::new();
            tags.into_iter()
                .map(|tag| {
                    if let Some(bytes) = known.get(&tag.digest) {
                        return Ok((tag, *bytes));
                    }
                    let bytes = own.bytes(&repository, tag.digest.parse()?)?;
                    known.insert(tag.digest.clone(), bytes);
                    Ok((tag, bytes))
                })
                .collect()
        })
        .await
    }

    // What a manifest takes with all that it names, each once. An index may hold others together, and those others.
    fn bytes(&self, repository: &Repository, digest: Digest) -> Result<u64, Refused> {
        let (mut all, mut open) = (0_u64, vec![digest]);
        let mut seen = std::collections::HashSet::new();
        while let Some(digest) = open.pop() {
            if seen.len() >= MOST || !seen.insert(digest.clone()) {
                continue;
            }
            let (found, bytes) = match self.index.content(repository, &Reference::Digest(digest)) {
                Ok(content) => content,
                Err(refused) if refused.code == Code::ManifestUnknown => continue,
                Err(refused) => return Err(refused),
            };
            let manifest = super::Manifest::read(Some(&found.media_type), &bytes)?;
            all = all.saturating_add(found.size);
            for named in manifest.blobs.into_iter().filter(|named| !named.is_foreign) {
                if seen.insert(named.digest) {
                    all = all.saturating_add(named.size);
                }
            }
            open.extend(manifest.manifests.into_iter().map(|named| named.digest));
        }
        Ok(all)
    }

    /// A manifest with what belongs to it.
    pub async fn describe(
        self: &Arc<Self>,
        repository: &Repository,
        reference: &Reference,
    ) -> Result<Described, Refused> {
        let (found, bytes) = self.index.content(repository, reference)?;
        let unreadable = |error: serde_json::Error| Refused::new(Code::ManifestInvalid, error.to_string());
        let manifest: Value = serde_json::from_slice(&bytes).map_err(unreadable)?;
        let config = manifest["config"]["digest"].as_str().and_then(|digest| digest.parse::<Digest>().ok());
        let config = match config {
            // What a copy has not brought yet is not brought for this.
            Some(digest) if self.is_kept(&digest) => self.whole_blob(repository, &digest).await.ok(),
            _ => None,
        };
        let (own, repository) = (self.clone(), repository.clone());
        aside(move || {
            let config = config.and_then(|(file, _)| {
                let mut text = Vec::new();
                file.take(MAX_CONFIG).read_to_end(&mut text).ok()?;
                serde_json::from_slice(&text).ok()
            });
            Ok(Described {
                bytes: own.bytes(&repository, found.digest.clone())?,
                tags: own.index.tags_of(&repository, &found.digest)?,
                referrers: own.index.referrers(&repository, &found.digest, "")?.0,
                digest: found.digest,
                media_type: found.media_type,
                at: found.at,
                manifest,
                config,
            })
        })
        .await
    }

    /// What a collection would remove now.
    pub async fn would_collect(self: &Arc<Self>) -> Result<Collected, Refused> {
        let own = self.clone();
        aside(move || {
            let [unlinked, blobs, bytes] = own.index.would_go(own.idle_since())?;
            Ok(Collected { unlinked, blobs, bytes, ..Collected::default() })
        })
        .await
    }

    /// Reads all blobs and compares them with their names; `told` hears how far it is. What is damaged is put aside: nobody gets it any
    /// more, and a push brings it anew.
    pub async fn scrub(
        self: &Arc<Self>,
        told: impl Fn(&Scrubbed) + Send + Sync + 'static,
    ) -> Result<Scrubbed, Refused> {
        let _turn = self.scrubbing.lock().await;
        let mut scrubbed = Scrubbed { of: self.index.counts()?[3], ..Scrubbed::default() };
        let told = Arc::new(told);
        let mut last = String::new();
        loop {
            let some = self.index.blobs_behind(&last, ROWS)?;
            let Some((end, _)) = some.last() else {
                scrubbed.missing.extend(self.compare().await?);
                return Ok(scrubbed);
            };
            last = end.to_string();
            for (digest, size) in some {
                let (own, of) = (self.clone(), digest.clone());
                let read = aside(move || own.check(&of, size)).await?;
                match read {
                    Checked::Whole => {}
                    Checked::Damaged(file) => {
                        tracing::error!(%digest, "a blob is damaged; it is put aside");
                        self.put_aside(&digest, file).await?;
                        scrubbed.damaged.push(digest);
                    }
                    Checked::Missing => scrubbed.missing.push(digest),
                }
                scrubbed.blobs += 1;
                scrubbed.bytes += size;
                told(&scrubbed);
            }
        }
    }

    /// Whether a blob's file is what it is called after.
    pub(super) fn is_whole(&self, digest: &Digest, size: u64) -> Result<bool, Refused> {
        Ok(matches!(self.check(digest, size)?, Checked::Whole))
    }

    fn check(&self, digest: &Digest, size: u64) -> Result<Checked, Refused> {
        let failed = |error: std::io::Error| Refused::io("read a blob", &error);
        let mut file = match self.disk.read(digest) {
            // It was removed since.
            Err(_) if self.index.any_blob(digest)?.is_none() => return Ok(Checked::Whole),
            // It is in the bucket, and comes from there.
            Err(error) if error.kind() == std::io::ErrorKind::NotFound && self.is_elsewhere(digest) => {
                return Ok(Checked::Whole);
            }
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Checked::Missing),
            other => other.map_err(failed)?,
        };
        let (mut hasher, mut part, mut length) = (Hasher::new(digest.algorithm()), vec![0; 1 << 20], 0);
        let is_whole = loop {
            match file.read(&mut part) {
                Ok(0) => break length == size && hasher.finish() == *digest,
                Ok(count) => {
                    hasher.update(&part[..count]);
                    length += count as u64;
                }
                // A disk that does not give it back has lost it.
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
                Err(_) => break false,
            }
        };
        if is_whole {
            return Ok(Checked::Whole);
        }
        Ok(Checked::Damaged(file))
    }

    // Once nobody comes with the same: what was taken for whole is not to go behind it.
    async fn put_aside(self: &Arc<Self>, digest: &Digest, file: std::fs::File) -> Result<(), Refused> {
        loop {
            let going = self.disk.going(vec![digest.clone()]);
            if going.digests().is_empty() {
                tokio::time::sleep(AGAIN).await;
                continue;
            }
            let (own, digest) = (self.clone(), digest.clone());
            return aside(move || {
                let put = own.disk.put_aside(&digest, &file);
                drop(going);
                match put {
                    Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
                    other => other.map_err(|error| Refused::io("put a blob aside", &error)),
                }
            })
            .await;
        }
    }
}

enum Checked {
    Whole,
    Damaged(std::fs::File),
    Missing,
}
