//! The index as rows, and rows as the index.

use redb::{ReadTransaction, ReadableTable, WriteTransaction};

use super::super::changes::{delete_manifest, link, put_manifest, unlink};
use super::super::collect::read_digest;
use super::super::{
    BLOBS, CHANGES, CONTENT, COPIES, Failed, LINKS, MANIFESTS, Put, REPLICATED, SETTINGS, TAGGED, TAGS, unusable,
};
use super::Name;
use crate::registry::digest::Digest;
use crate::registry::manifest::Manifest;
use crate::registry::name::Repository;
use crate::registry::refused::{Code, Refused};
use crate::registry::replica::rows::Row;

// How something is now.
pub(super) fn row(read: &ReadTransaction, name: &Name<'_>) -> Result<Option<Row>, Failed> {
    let is_there = |digest: &str| -> Result<bool, Failed> { Ok(read.open_table(REPLICATED)?.get(digest)?.is_some()) };
    let is_copy = |repository: &str, digest: &str| -> Result<bool, Failed> {
        Ok(read.open_table(COPIES)?.get((repository, digest))?.is_some())
    };
    Ok(Some(match *name {
        Name::Blob(digest) => {
            let size = read.open_table(BLOBS)?.get(digest)?.map(|blob| blob.value().0);
            let object = read.open_table(REPLICATED)?.get(digest)?.map(|object| object.value().to_owned());
            let size = size.filter(|_| object.is_some());
            Row::Blob { digest: digest.to_owned(), size, object: object.unwrap_or_default() }
        }
        Name::Link(repository, digest) => {
            let there = read.open_table(LINKS)?.get((repository, digest))?.is_some();
            if there && !is_there(digest)? {
                // It is told once it is there.
                return Ok(None);
            }
            Row::Link { repository: repository.to_owned(), digest: digest.to_owned(), there }
        }
        Name::Manifest(repository, digest) => {
            let (mut at, mut media_type, mut text) = (0, String::new(), None);
            let manifests = read.open_table(MANIFESTS)?;
            if let Some(row) = manifests.get((repository, digest))?
                && !is_copy(repository, digest)?
                && let Some(bytes) = read.open_table(CONTENT)?.get(digest)?
            {
                let (kind, _, came, _) = row.value();
                (at, media_type) = (came, kind.to_owned());
                let wrong = |_| redb::Error::Corrupted(format!("manifest {digest} is not UTF-8"));
                text = Some(std::str::from_utf8(bytes.value()).map_err(wrong)?.to_owned());
            }
            Row::Manifest { repository: repository.to_owned(), digest: digest.to_owned(), at, media_type, text }
        }
        Name::Tag(repository, tag) => {
            let found = read.open_table(TAGS)?.get((repository, tag))?.map(|row| {
                let (digest, at) = row.value();
                (digest.to_owned(), at)
            });
            let (digest, at) = found.map_or((None, 0), |(digest, at)| (Some(digest), at));
            let digest = match digest {
                Some(digest) if is_copy(repository, &digest)? => None,
                other => other,
            };
            Row::Tag { repository: repository.to_owned(), tag: tag.to_owned(), at, digest }
        }
        Name::Setting(name) => {
            let settings = read.open_table(SETTINGS)?;
            let value = settings.get(name)?.map(|value| String::from_utf8_lossy(value.value()).into_owned());
            Row::Setting { name: name.to_owned(), value }
        }
    }))
}

// A row becomes how it is here.
pub(super) fn apply(write: &WriteTransaction, row: Row, now: u64) -> Result<(), Failed> {
    match row {
        Row::Blob { digest, size: Some(size), object } => {
            read_digest(&digest)?;
            write.open_table(BLOBS)?.insert(digest.as_str(), (size, now))?;
            write.open_table(REPLICATED)?.insert(digest.as_str(), object.as_str())?;
        }
        Row::Blob { digest, size: None, .. } => {
            write.open_table(BLOBS)?.remove(digest.as_str())?;
            write.open_table(REPLICATED)?.remove(digest.as_str())?;
        }
        Row::Link { repository, digest, there } => {
            let (repository, digest) = (named(&repository)?, read_digest(&digest)?);
            match there {
                true => link(write, &repository, &digest, now)?,
                false => unlink(write, &repository, &digest)?,
            }
        }
        Row::Manifest { repository, digest, at, media_type, text: Some(text) } => {
            let manifest = Manifest::read(Some(&media_type), text.as_bytes()).map_err(corrupt)?;
            let (repository, digest) = (named(&repository)?, read_digest(&digest)?);
            if Digest::of(digest.algorithm(), text.as_bytes()) != digest {
                return Err(redb::Error::Corrupted(format!("manifest {digest} is not what it is called after")).into());
            }
            let (tags, immutable, bytes) = (Vec::new(), Vec::new(), text.into_bytes());
            put_manifest(write, &Put { repository, digest, tags, bytes, manifest, at, immutable, cache_of: None })?;
        }
        Row::Manifest { repository, digest, text: None, .. } => {
            match delete_manifest(write, &named(&repository)?, &read_digest(&digest)?, now) {
                Err(Failed::Refused(refused)) if refused.code == Code::ManifestUnknown => {}
                other => other?,
            }
        }
        Row::Tag { repository, tag, at, digest } => {
            let key = (repository.as_str(), tag.as_str());
            let (mut tags, mut tagged) = (write.open_table(TAGS)?, write.open_multimap_table(TAGGED)?);
            let before = tags.remove(key)?.map(|row| row.value().0.to_owned());
            if let Some(before) = before {
                tagged.remove((repository.as_str(), before.as_str()), tag.as_str())?;
            }
            if let Some(digest) = digest {
                tags.insert(key, (digest.as_str(), at))?;
                tagged.insert((repository.as_str(), digest.as_str()), tag.as_str())?;
            }
        }
        Row::Setting { name, value } => {
            let mut settings = write.open_table(SETTINGS)?;
            match value {
                Some(value) => settings.insert(name.as_str(), value.as_bytes())?,
                None => settings.remove(name.as_str())?,
            };
        }
        Row::End { .. } => {}
    }
    Ok(())
}

fn corrupt(refused: Refused) -> Failed {
    Failed::Store(redb::Error::Corrupted(refused.why))
}

fn named(text: &str) -> Result<Repository, Failed> {
    text.parse().map_err(corrupt)
}

/// The index as it was at a moment.
pub struct Moment(pub(super) ReadTransaction);

impl Moment {
    /// Everything that is, or is to be, there, as of one moment; the number of the last change by then.
    pub fn everything(&self, mut each: impl FnMut(Row) -> std::io::Result<()>) -> Result<u64, Refused> {
        let read = &self.0;
        let mut all = || {
            let mut tell = |name: Name<'_>| -> Result<(), Failed> {
                let Some(row) = row(read, &name)? else { return Ok(()) };
                let is_gone = matches!(
                    row,
                    Row::Blob { size: None, .. }
                        | Row::Link { there: false, .. }
                        | Row::Manifest { text: None, .. }
                        | Row::Tag { digest: None, .. }
                );
                if !is_gone {
                    each(row).map_err(redb::Error::Io)?;
                }
                Ok(())
            };
            for row in read.open_table(SETTINGS)?.iter()? {
                tell(Name::Setting(row?.0.value()))?;
            }
            for row in read.open_table(REPLICATED)?.iter()? {
                tell(Name::Blob(row?.0.value()))?;
            }
            for row in read.open_table(LINKS)?.iter()? {
                let key = row?.0;
                let (repository, digest) = key.value();
                tell(Name::Link(repository, digest))?;
            }
            for row in read.open_table(MANIFESTS)?.iter()? {
                let key = row?.0;
                let (repository, digest) = key.value();
                tell(Name::Manifest(repository, digest))?;
            }
            for row in read.open_table(TAGS)?.iter()? {
                let key = row?.0;
                let (repository, tag) = key.value();
                tell(Name::Tag(repository, tag))?;
            }
            Ok(read.open_table(CHANGES)?.last()?.map_or(0, |(number, _)| number.value()))
        };
        all().map_err(|failed: Failed| match failed {
            Failed::Refused(refused) => refused,
            Failed::Store(error) => unusable(error),
        })
    }
}
