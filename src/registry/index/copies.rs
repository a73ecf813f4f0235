//! Manifests that are copies of another registry's, and how the registry is kept, as it was told.

use redb::{ReadableMultimapTable, ReadableTable, WriteTransaction};

use super::changes::{delete_manifest, link, put_manifest};
use super::collect::{Step, read_digest};
use super::replica::{Name, note};
use super::{BLOBS, CONTENT, COPIES, Failed, Index, LINKS, MANIFESTS, NAMED, Put, SETTINGS};
use crate::registry::digest::Digest;
use crate::registry::manifest::Manifest;
use crate::registry::name::Repository;
use crate::registry::refused::Refused;

// Whether one of a repository's manifests was pushed here.
fn is_own(
    manifests: &impl ReadableTable<(&'static str, &'static str), (&'static str, u64, u64, &'static str)>,
    copies: &impl ReadableTable<(&'static str, &'static str), u64>,
    repository: &str,
) -> Result<bool, Failed> {
    for row in manifests.range((repository, "")..)? {
        let (key, _) = row?;
        if key.value().0 != repository {
            break;
        }
        if copies.get(key.value())?.is_none() {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Whether one of a repository's manifests is a copy.
pub(super) fn has_copies(write: &WriteTransaction, repository: &str) -> Result<bool, Failed> {
    let copies = write.open_table(COPIES)?;
    let first = copies.range((repository, "")..)?.next().transpose()?;
    Ok(first.is_some_and(|(key, _)| key.value().0 == repository))
}

impl Index {
    /// Whether one of a repository's manifests was pushed here.
    pub fn is_own(&self, repository: &Repository) -> Result<bool, Refused> {
        self.read(|read| is_own(&read.open_table(MANIFESTS)?, &read.open_table(COPIES)?, repository.as_str()))
    }

    /// Whether one of a repository's manifests is a copy; of all repositories, where none is named.
    pub fn has_copies(&self, repository: Option<&Repository>) -> Result<bool, Refused> {
        self.read(|read| {
            let copies = read.open_table(COPIES)?;
            let from = repository.map_or("", Repository::as_str);
            let first = copies.range((from, "")..)?.next().transpose()?;
            Ok(first.is_some_and(|(key, _)| repository.is_none_or(|repository| key.value().0 == repository.as_str())))
        })
    }

    /// Keeps a copy with its tag, whatever of what it names is there. Nothing is done where the repository is somebody's own by now.
    pub async fn put_copy(&self, put: Put) -> Result<bool, Refused> {
        self.write_here(move |write| {
            let repository = put.repository.as_str();
            if is_own(&write.open_table(MANIFESTS)?, &write.open_table(COPIES)?, repository)? {
                return Ok(false);
            }
            put_manifest(write, &put)?;
            write.open_table(COPIES)?.insert((repository, put.digest.as_str()), put.at)?;
            Ok(true)
        })
        .await
    }

    /// When a copy was last asked for; nothing: it is none.
    pub fn copy_asked_at(&self, repository: &Repository, digest: &Digest) -> Result<Option<u64>, Refused> {
        self.read(|read| {
            let copies = read.open_table(COPIES)?;
            Ok(copies.get((repository.as_str(), digest.as_str()))?.map(|at| at.value()))
        })
    }

    /// A copy is asked for.
    pub async fn ask_for_copy(&self, repository: &Repository, digest: &Digest, now: u64) -> Result<(), Refused> {
        let (repository, digest) = (repository.clone(), digest.clone());
        self.write_here(move |write| {
            let mut copies = write.open_table(COPIES)?;
            let key = (repository.as_str(), digest.as_str());
            if copies.get(key)?.is_some() {
                copies.insert(key, now)?;
            }
            Ok(())
        })
        .await
    }

    /// Copies that nobody has asked for since their repository's time, among the next `rows`.
    pub fn idle_copies(
        &self,
        from: &(String, String),
        rows: usize,
        before: impl Fn(&str) -> u64,
    ) -> Result<Step<(Repository, Digest)>, Refused> {
        self.read(|read| {
            let copies = read.open_table(COPIES)?;
            let mut step = Step { found: Vec::new(), next: None };
            for (number, row) in copies.range((from.0.as_str(), from.1.as_str())..)?.enumerate() {
                let (key, at) = row?;
                let (repository, digest) = key.value();
                if number == rows {
                    step.next = Some((repository.to_owned(), digest.to_owned()));
                    break;
                }
                if at.value() < before(repository) {
                    step.found.push((repository.parse().map_err(Failed::Refused)?, read_digest(digest)?));
                }
            }
            Ok(step)
        })
    }

    /// Lets go of a copy, unless somebody has asked for it since, or an index holds it that stays; whether it went.
    pub async fn drop_copy(
        &self,
        repository: &Repository,
        digest: &Digest,
        before: u64,
        now: u64,
    ) -> Result<bool, Refused> {
        let (repository, digest) = (repository.clone(), digest.clone());
        self.write(move |write| {
            let key = (repository.as_str(), digest.as_str());
            let at = write.open_table(COPIES)?.get(key)?.map(|at| at.value());
            let is_held = write.open_multimap_table(NAMED)?.get(key)?.next().is_some();
            if is_held || at.is_none_or(|at| at >= before) {
                return Ok(false);
            }
            delete_manifest(write, &repository, &digest, now)?;
            Ok(true)
        })
        .await
    }

    /// How large a blob is by what a manifest of the repository says that names it.
    pub fn named_size(&self, repository: &Repository, digest: &Digest) -> Result<Option<u64>, Refused> {
        self.read(|read| {
            let (named, content) = (read.open_multimap_table(NAMED)?, read.open_table(CONTENT)?);
            for by in named.get((repository.as_str(), digest.as_str()))? {
                let Some(bytes) = content.get(by?.value())? else { continue };
                let Ok(manifest) = Manifest::read(None, bytes.value()) else { continue };
                if let Some(blob) = manifest.blobs.iter().find(|blob| blob.digest == *digest) {
                    return Ok(Some(blob.size));
                }
            }
            Ok(None)
        })
    }

    /// A blob that is there, and that a manifest of the repository names, is the repository's; false: it is not so.
    pub async fn adopt(&self, repository: &Repository, digest: &Digest, now: u64) -> Result<bool, Refused> {
        let (repository, digest) = (repository.clone(), digest.clone());
        self.write_here(move |write| {
            let key = (repository.as_str(), digest.as_str());
            let is_there = write.open_table(BLOBS)?.get(digest.as_str())?.is_some();
            let is_named = write.open_multimap_table(NAMED)?.get(key)?.next().is_some();
            if is_there && is_named && write.open_table(LINKS)?.get(key)?.is_none() {
                link(write, &repository, &digest, now)?;
            }
            Ok(is_there && is_named)
        })
        .await
    }

    /// What was set, by names that begin so.
    pub fn settings(&self, prefix: &str) -> Result<Vec<(String, Vec<u8>)>, Refused> {
        self.may_read()?;
        self.settings_now(prefix)
    }

    /// The same, also while nothing else may be looked at.
    pub fn settings_now(&self, prefix: &str) -> Result<Vec<(String, Vec<u8>)>, Refused> {
        self.read_any(|read| {
            let mut all = Vec::new();
            for row in read.open_table(SETTINGS)?.range(prefix..)? {
                let (name, value) = row?;
                let Some(name) = name.value().strip_prefix(prefix) else { break };
                all.push((name.to_owned(), value.value().to_vec()));
            }
            Ok(all)
        })
    }

    /// Sets something; nothing: as if it had never been set. Whether it was.
    pub async fn set(&self, name: String, value: Option<Vec<u8>>) -> Result<bool, Refused> {
        self.write(move |write| {
            let mut settings = write.open_table(SETTINGS)?;
            let before = match &value {
                Some(value) => settings.insert(name.as_str(), value.as_slice())?,
                None => settings.remove(name.as_str())?,
            };
            let was = before.is_some();
            drop(before);
            drop(settings);
            note(write, [Name::Setting(&name)])?;
            Ok(was)
        })
        .await
    }
}
