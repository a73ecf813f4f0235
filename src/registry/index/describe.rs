//! What is told of repositories and their tags.

use super::{BLOBS, Failed, Index, LINKED, LINKS, MANIFESTS, NAMED, REPOSITORIES, TAGGED, TAGS};
use crate::registry::digest::Digest;
use crate::registry::name::Repository;
use crate::registry::refused::Refused;

/// A repository in numbers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Summary {
    /// Its name.
    pub name: String,
    /// Tags.
    pub tags: u64,
    /// Manifests.
    pub manifests: u64,
    /// Blobs.
    pub blobs: u64,
    /// What those take, in bytes.
    pub bytes: u64,
}

/// A tag.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tagged {
    /// Its name.
    pub tag: String,
    /// Where it leads.
    pub digest: String,
    /// When it was set, in milliseconds since 1970.
    pub at: u64,
    /// What kind of manifest that is.
    pub media_type: String,
}

impl Index {
    /// Repositories whose names begin so.
    pub fn summaries(&self, prefix: &str) -> Result<Vec<Summary>, Refused> {
        self.read(|read| {
            let (tags, manifests) = (read.open_table(TAGS)?, read.open_table(MANIFESTS)?);
            let (links, blobs) = (read.open_table(LINKS)?, read.open_table(BLOBS)?);
            let mut all = Vec::new();
            for row in read.open_table(REPOSITORIES)?.range(prefix..)? {
                let (name, _) = row?;
                let name = name.value();
                if !name.starts_with(prefix) {
                    break;
                }
                let mut summary = Summary { name: name.to_owned(), tags: 0, manifests: 0, blobs: 0, bytes: 0 };
                for row in tags.range((name, "")..)? {
                    if row?.0.value().0 != name {
                        break;
                    }
                    summary.tags += 1;
                }
                for row in manifests.range((name, "")..)? {
                    let (key, manifest) = row?;
                    if key.value().0 != name {
                        break;
                    }
                    summary.manifests += 1;
                    summary.bytes += manifest.value().1;
                }
                for row in links.range((name, "")..)? {
                    let (key, _) = row?;
                    if key.value().0 != name {
                        break;
                    }
                    summary.blobs += 1;
                    summary.bytes += blobs.get(key.value().1)?.map_or(0, |blob| blob.value().0);
                }
                all.push(summary);
            }
            Ok(all)
        })
    }

    /// All tags of a repository.
    pub fn tagged(&self, repository: &Repository) -> Result<Vec<Tagged>, Refused> {
        self.read(|read| {
            let name = repository.as_str();
            if read.open_table(REPOSITORIES)?.get(name)?.is_none() {
                return Err(super::reads::unknown_name(repository).into());
            }
            let manifests = read.open_table(MANIFESTS)?;
            let mut all = Vec::new();
            for row in read.open_table(TAGS)?.range((name, "")..)? {
                let (key, value) = row?;
                let ((of, tag), (digest, at)) = (key.value(), value.value());
                if of != name {
                    break;
                }
                let kind = manifests.get((name, digest))?.map(|row| row.value().0.to_owned()).unwrap_or_default();
                all.push(Tagged { tag: tag.to_owned(), digest: digest.to_owned(), at, media_type: kind });
            }
            Ok(all)
        })
    }

    /// The tags that lead to a manifest.
    pub fn tags_of(&self, repository: &Repository, digest: &Digest) -> Result<Vec<String>, Refused> {
        self.read(|read| {
            let tagged = read.open_multimap_table(TAGGED)?;
            let tags = tagged.get((repository.as_str(), digest.as_str()))?;
            tags.map(|tag| Ok(tag?.value().to_owned())).collect()
        })
    }

    /// Blobs behind one, with their bytes, at most so many.
    pub fn blobs_behind(&self, last: &str, rows: usize) -> Result<Vec<(Digest, u64)>, Refused> {
        self.read(|read| {
            let mut all = Vec::new();
            for row in read.open_table(BLOBS)?.range(last..)? {
                let (key, blob) = row?;
                if key.value() == last {
                    continue;
                }
                if all.len() == rows {
                    break;
                }
                all.push((super::collect::read_digest(key.value())?, blob.value().0));
            }
            Ok(all)
        })
    }

    /// What a collection would take now: blobs of repositories, blobs of none behind it, and their bytes.
    pub fn would_go(&self, before: u64) -> Result<[u64; 3], Refused> {
        self.read(|read| {
            let (links, named) = (read.open_table(LINKS)?, read.open_multimap_table(NAMED)?);
            let (blobs, linked) = (read.open_table(BLOBS)?, read.open_multimap_table(LINKED)?);
            let is_idle = |repository: &str, digest: &str| -> Result<bool, Failed> {
                let at = links.get((repository, digest))?.map(|at| at.value());
                Ok(at.is_none_or(|at| at < before) && named.get((repository, digest))?.next().is_none())
            };
            let [mut unlinked, mut gone, mut bytes] = [0; 3];
            for row in blobs.range::<&str>(..)? {
                let (key, blob) = row?;
                let (mut count, mut idle) = (0, 0);
                for repository in linked.get(key.value())? {
                    count += 1;
                    idle += u64::from(is_idle(repository?.value(), key.value())?);
                }
                unlinked += idle;
                if count == idle && (count > 0 || blob.value().1 < before) {
                    gone += 1;
                    bytes += blob.value().0;
                }
            }
            Ok([unlinked, gone, bytes])
        })
    }
}
