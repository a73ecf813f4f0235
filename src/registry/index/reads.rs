//! What is asked of the index.

use redb::ReadableTableMetadata;

use super::{BLOBS, CONTENT, Failed, Index, MANIFESTS, REFERRERS, REPOSITORIES, TAGS};
use crate::registry::digest::Digest;
use crate::registry::manifest::Referrer;
use crate::registry::name::{Reference, Repository};
use crate::registry::refused::{Code, Refused};

/// A manifest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Found {
    /// Its digest.
    pub digest: Digest,
    /// What kind it is.
    pub media_type: String,
    /// Bytes.
    pub size: u64,
    /// When it came to this repository, in milliseconds since 1970.
    pub at: u64,
}

/// What is told at once of what refers to something, in bytes.
const PAGE: usize = 2 << 20;

/// Some of many names, in order.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Page {
    /// Them.
    pub names: Vec<String>,
    /// Whether more follow.
    pub has_more: bool,
}

fn damaged(what: &str) -> Failed {
    Failed::Store(redb::Error::Corrupted(format!("{what} is none")))
}

/// That there is no such repository.
pub fn unknown_name(repository: &Repository) -> Refused {
    let why = format!("there is no repository {:.80?}", repository.as_str());
    Refused::new(Code::NameUnknown, why).about(repository.as_str())
}

/// That there is no such manifest.
pub fn unknown_manifest(repository: &Repository, reference: &Reference) -> Refused {
    let why = format!("there is no manifest {} in {repository}", reference.as_str());
    Refused::new(Code::ManifestUnknown, why).about(reference.as_str())
}

impl Index {
    /// A manifest of a repository.
    pub fn manifest(&self, repository: &Repository, reference: &Reference) -> Result<Found, Refused> {
        self.read(|read| found(read, repository, reference))
    }

    /// The same with what is in it.
    pub fn content(&self, repository: &Repository, reference: &Reference) -> Result<(Found, Vec<u8>), Refused> {
        self.read(|read| {
            let found = found(read, repository, reference)?;
            let content = read.open_table(CONTENT)?;
            let bytes = content.get(found.digest.as_str())?.ok_or_else(|| damaged("the content of a manifest"))?;
            Ok((found, bytes.value().to_vec()))
        })
    }

    /// How large a blob is, whoever has it.
    pub fn any_blob(&self, digest: &Digest) -> Result<Option<u64>, Refused> {
        self.read(|read| Ok(read.open_table(BLOBS)?.get(digest.as_str())?.map(|blob| blob.value().0)))
    }

    /// Tags of a repository behind `last`, at most so many.
    pub fn tags(&self, repository: &Repository, last: &str, most: usize) -> Result<Page, Refused> {
        self.read(|read| {
            if read.open_table(REPOSITORIES)?.get(repository.as_str())?.is_none() {
                return Err(unknown_name(repository).into());
            }
            let mut page = Page::default();
            for row in read.open_table(TAGS)?.range((repository.as_str(), last)..)? {
                let (key, _) = row?;
                let (of, tag) = key.value();
                if of != repository.as_str() {
                    break;
                }
                if tag == last {
                    continue;
                }
                if page.names.len() == most {
                    page.has_more = true;
                    break;
                }
                page.names.push(tag.to_owned());
            }
            Ok(page)
        })
    }

    /// Repositories behind `last`, at most so many.
    pub fn repositories(&self, last: &str, most: usize) -> Result<Page, Refused> {
        self.read(|read| {
            let mut page = Page::default();
            for row in read.open_table(REPOSITORIES)?.range(last..)? {
                let (name, _) = row?;
                if name.value() == last {
                    continue;
                }
                if page.names.len() == most {
                    page.has_more = true;
                    break;
                }
                page.names.push(name.value().to_owned());
            }
            Ok(page)
        })
    }

    /// What says something of a subject, by digest.
    /// Those behind `last`; whether there are more.
    pub fn referrers(
        &self,
        repository: &Repository,
        subject: &Digest,
        last: &str,
    ) -> Result<(Vec<Referrer>, bool), Refused> {
        self.read(|read| {
            let (mut all, mut bytes) = (Vec::new(), 0);
            let table = read.open_table(REFERRERS)?;
            for row in table.range((repository.as_str(), subject.as_str(), last)..)? {
                let (key, value) = row?;
                let (of, about, digest) = key.value();
                if of != repository.as_str() || about != subject.as_str() {
                    break;
                }
                if digest == last {
                    continue;
                }
                bytes += value.value().len();
                if bytes > PAGE && !all.is_empty() {
                    return Ok((all, true));
                }
                all.push(serde_json::from_slice(value.value()).map_err(|_| damaged("a referrer"))?);
            }
            Ok((all, false))
        })
    }

    /// What all blobs take, in bytes.
    pub fn blob_bytes(&self) -> Result<u64, Refused> {
        self.read(|read| {
            let mut bytes: u64 = 0;
            for row in read.open_table(BLOBS)?.range::<&str>(..)? {
                bytes = bytes.saturating_add(row?.1.value().0);
            }
            Ok(bytes)
        })
    }

    /// How many repositories, manifests, tags and blobs there are.
    pub fn counts(&self) -> Result<[u64; 4], Refused> {
        self.may_read()?;
        self.counts_now()
    }

    /// The same, also while nothing else may be looked at.
    pub fn counts_now(&self) -> Result<[u64; 4], Refused> {
        self.read_any(|read| {
            Ok([
                read.open_table(REPOSITORIES)?.len()?,
                read.open_table(MANIFESTS)?.len()?,
                read.open_table(TAGS)?.len()?,
                read.open_table(BLOBS)?.len()?,
            ])
        })
    }
}

fn found(read: &redb::ReadTransaction, repository: &Repository, reference: &Reference) -> Result<Found, Failed> {
    let digest = match reference {
        Reference::Digest(digest) => digest.clone(),
        Reference::Tag(tag) => {
            let tags = read.open_table(TAGS)?;
            let row = tags.get((repository.as_str(), tag.as_str()))?;
            let row = row.ok_or_else(|| unknown_manifest(repository, reference))?;
            row.value().0.parse().map_err(|_| damaged("the digest of a tag"))?
        }
    };
    let manifests = read.open_table(MANIFESTS)?;
    let row = manifests.get((repository.as_str(), digest.as_str()))?;
    let row = row.ok_or_else(|| unknown_manifest(repository, reference))?;
    let (media_type, size, at, _) = row.value();
    let media_type = media_type.to_owned();
    Ok(Found { digest, media_type, size, at })
}
