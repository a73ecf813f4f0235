//! What nobody needs any more: blobs of repositories that no manifest there is made of, and blobs of no repository. How long one has
//! been so is in the index itself: it counts from when it came, was asked for, or lost its last manifest.

use redb::{ReadableMultimapTable, ReadableTable, WriteTransaction};

use super::changes::unlink;
use super::replica::forget_replica;
use super::{BLOBS, Failed, Index, LINKED, LINKS, NAMED};
use crate::registry::digest::Digest;
use crate::registry::name::Repository;
use crate::registry::refused::Refused;

/// What a look has found, and where the next begins.
#[derive(Debug, Default)]
pub struct Step<T> {
    /// What is not needed.
    pub found: Vec<T>,
    /// Where to go on; nothing: it was the last.
    pub next: Option<(String, String)>,
}

/// A digest of the index.
pub(super) fn read_digest(text: &str) -> Result<Digest, Failed> {
    text.parse().map_err(|_| Failed::Store(redb::Error::Corrupted(format!("{text:.80} is no digest"))))
}

impl Index {
    /// Blobs that their repository has not needed since `before`, among the next `rows`.
    pub fn idle_links(
        &self,
        from: &(String, String),
        rows: usize,
        before: u64,
    ) -> Result<Step<(Repository, Digest)>, Refused> {
        self.read(|read| {
            let (links, named) = (read.open_table(LINKS)?, read.open_multimap_table(NAMED)?);
            let mut step = Step { found: Vec::new(), next: None };
            for (number, row) in links.range((from.0.as_str(), from.1.as_str())..)?.enumerate() {
                let (key, at) = row?;
                let (repository, digest) = key.value();
                if number == rows {
                    step.next = Some((repository.to_owned(), digest.to_owned()));
                    break;
                }
                if at.value() < before && named.get((repository, digest))?.next().is_none() {
                    step.found.push((repository.parse().map_err(Failed::Refused)?, read_digest(digest)?));
                }
            }
            Ok(step)
        })
    }

    /// Blobs of no repository that came before that time, among the next `rows`.
    pub fn idle_blobs(&self, from: &str, rows: usize, before: u64) -> Result<Step<Digest>, Refused> {
        self.read(|read| {
            let (blobs, linked) = (read.open_table(BLOBS)?, read.open_multimap_table(LINKED)?);
            let mut step = Step { found: Vec::new(), next: None };
            for (number, row) in blobs.range(from..)?.enumerate() {
                let (key, blob) = row?;
                if number == rows {
                    step.next = Some((key.value().to_owned(), String::new()));
                    break;
                }
                if blob.value().1 < before && linked.get(key.value())?.next().is_none() {
                    step.found.push(read_digest(key.value())?);
                }
            }
            Ok(step)
        })
    }

    /// Takes those out of their repositories that are still not needed; how many.
    pub async fn unlink_idle(&self, idle: Vec<(Repository, Digest)>, before: u64) -> Result<usize, Refused> {
        self.write(move |write| {
            let mut count = 0;
            for (repository, digest) in &idle {
                let key = (repository.as_str(), digest.as_str());
                let at = write.open_table(LINKS)?.get(key)?.map(|at| at.value());
                let is_needed = write.open_multimap_table(NAMED)?.get(key)?.next().is_some();
                if at.is_some_and(|at| at < before) && !is_needed {
                    unlink(write, repository, digest)?;
                    count += 1;
                }
            }
            Ok(count)
        })
        .await
    }

    /// Forgets blobs that are still of no repository; those, with their bytes: their files are of no use behind it.
    pub async fn forget_idle(&self, idle: Vec<Digest>) -> Result<Vec<(Digest, u64)>, Refused> {
        self.write(move |write| {
            let mut gone = Vec::new();
            for digest in idle {
                if write.open_multimap_table(LINKED)?.get(digest.as_str())?.next().is_some() {
                    continue;
                }
                let size = write.open_table(BLOBS)?.remove(digest.as_str())?.map(|blob| blob.value().0);
                forget_replica(write, &digest)?;
                gone.extend(size.map(|size| (digest, size)));
            }
            Ok(gone)
        })
        .await
    }

    /// A blob is asked for by who may be about to name it: it is needed for a while, durably. Its bytes; nothing: the repository has none
    /// such. `fresh`: what was so since then need not be written anew.
    pub async fn touch(
        &self,
        repository: &Repository,
        digest: &Digest,
        now: u64,
        fresh: u64,
    ) -> Result<Option<u64>, Refused> {
        let known = self.read(|read| {
            let key = (repository.as_str(), digest.as_str());
            let Some(at) = read.open_table(LINKS)?.get(key)?.map(|at| at.value()) else { return Ok(None) };
            let size = read.open_table(BLOBS)?.get(digest.as_str())?.map(|blob| blob.value().0);
            let is_safe = at >= fresh || read.open_multimap_table(NAMED)?.get(key)?.next().is_some();
            Ok(size.map(|size| (size, is_safe)))
        })?;
        match known {
            None => return Ok(None),
            Some((size, true)) => return Ok(Some(size)),
            Some(_) => {}
        }
        let (repository, digest) = (repository.clone(), digest.clone());
        self.write_here(move |write| {
            let mut links = write.open_table(LINKS)?;
            let key = (repository.as_str(), digest.as_str());
            if links.get(key)?.is_none() {
                return Ok(None);
            }
            links.insert(key, now)?;
            Ok(write.open_table(BLOBS)?.get(digest.as_str())?.map(|blob| blob.value().0))
        })
        .await
    }
}

/// What a manifest was made of is needed for a while from now on, whether or not another is.
pub(super) fn renew(
    write: &WriteTransaction,
    repository: &Repository,
    digests: impl Iterator<Item = Digest>,
    now: u64,
) -> Result<(), Failed> {
    let mut links = write.open_table(LINKS)?;
    for digest in digests {
        let key = (repository.as_str(), digest.as_str());
        if links.get(key)?.is_some() {
            links.insert(key, now)?;
        }
    }
    Ok(())
}
