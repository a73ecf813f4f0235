//! What another place does not have yet of what is pushed here, and what it has. Each change leaves the names of what it has changed, in the
//! same transaction; whoever brings them there reads how that is by then.

mod load;
mod rows;

use std::collections::BTreeSet;
use std::sync::PoisonError;

use redb::{ReadableDatabase, ReadableMultimapTable, ReadableTable, ReadableTableMetadata, WriteTransaction};

pub use self::rows::Moment;
use self::rows::row;
use super::collect::{Step, read_digest};
use super::{
    BLOBS, CHANGES, CONTENT, COPIES, Failed, GONE, Index, LINKED, MANIFESTS, Put, REPLICA, REPLICATED, unusable,
};
use crate::registry::digest::Digest;
use crate::registry::manifest::Manifest;
use crate::registry::refused::Refused;
use crate::registry::replica::blobs::{BLOBS as BLOBS_THERE, name};
use crate::registry::replica::rows::Row;

/// Where else it is kept, and how far that is.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Standing {
    /// What is kept there: the same as long as it is one registry, whoever serves it.
    pub lineage: String,
    /// What this host called itself when it took it over.
    pub writer: String,
    /// The last segment that is there.
    pub number: u64,
    /// Whether all that was here before is there as well.
    pub is_whole: bool,
    /// Whether what is here is just being replaced by what is there.
    pub is_loading: bool,
    /// Whether it was said that another host writes there from then on.
    pub is_left: bool,
    /// The number that the next change gets.
    pub next: u64,
}

impl Standing {
    /// Whether what is here is what this host has brought there.
    pub fn is_ours(&self) -> bool {
        !self.is_loading && !self.writer.is_empty()
    }
}

/// Something that may change.
pub(super) enum Name<'a> {
    Blob(&'a str),
    Link(&'a str, &'a str),
    Manifest(&'a str, &'a str),
    Tag(&'a str, &'a str),
    Setting(&'a str),
}

impl Name<'_> {
    fn text(&self) -> String {
        match self {
            Name::Blob(digest) => format!("b\0{digest}"),
            Name::Link(repository, digest) => format!("l\0{repository}\0{digest}"),
            Name::Manifest(repository, digest) => format!("m\0{repository}\0{digest}"),
            Name::Tag(repository, tag) => format!("t\0{repository}\0{tag}"),
            Name::Setting(name) => format!("s\0{name}"),
        }
    }
}

impl<'a> Name<'a> {
    fn read(text: &'a str) -> Option<Self> {
        let (kind, rest) = text.split_once('\0')?;
        let two = || rest.split_once('\0');
        Some(match kind {
            "b" => Name::Blob(rest),
            "l" => two().map(|(repository, digest)| Name::Link(repository, digest))?,
            "m" => two().map(|(repository, digest)| Name::Manifest(repository, digest))?,
            "t" => two().map(|(repository, tag)| Name::Tag(repository, tag))?,
            "s" => Name::Setting(rest),
            _ => return None,
        })
    }
}

/// A blob goes here, and so what it is called there.
pub(super) fn forget_replica(write: &WriteTransaction, digest: &Digest) -> Result<(), Failed> {
    let object = write.open_table(REPLICATED)?.remove(digest.as_str())?.map(|object| object.value().to_owned());
    if let Some(object) = object {
        write.open_table(GONE)?.insert(name(digest, &object).as_str(), ())?;
        note(write, [Name::Blob(digest.as_str())])?;
    }
    Ok(())
}

// The digest and the rest of what a blob is called there.
fn read_name(text: &str) -> Option<(Digest, String)> {
    let (folder, file) = text.strip_prefix(BLOBS_THERE)?.rsplit_once('/')?;
    let (hex, object) = file.split_once('.')?;
    let digest = format!("{}:{hex}", folder.split('/').next()?).parse().ok()?;
    Some((digest, object.to_owned()))
}

/// Those have changed.
pub(super) fn note<'a>(write: &WriteTransaction, names: impl IntoIterator<Item = Name<'a>>) -> Result<(), Failed> {
    let mut replica = write.open_table(REPLICA)?;
    for (name, is_noted) in [("lineage", true), ("loading", false), ("paused", false)] {
        if replica.get(name)?.is_some() != is_noted {
            return Ok(());
        }
    }
    // No number is used again.
    let mut next = replica.get("next")?.and_then(|value| value.value().parse().ok()).unwrap_or(1_u64);
    let mut changes = write.open_table(CHANGES)?;
    for name in names {
        changes.insert(next, name.text().as_str())?;
        next += 1;
    }
    replica.insert("next", next.to_string().as_str())?;
    Ok(())
}

// The blobs that a manifest is made of which are here, and not there.
fn blobs_missing(write: &WriteTransaction, manifest: &Manifest, missing: &mut BTreeSet<Digest>) -> Result<(), Failed> {
    let (blobs, replicated) = (write.open_table(BLOBS)?, write.open_table(REPLICATED)?);
    // BuildKit's caches are indexes of blobs.
    for named in manifest.blobs.iter().chain(&manifest.manifests) {
        let digest = named.digest.as_str();
        if blobs.get(digest)?.is_some() && replicated.get(digest)?.is_none() {
            missing.insert(named.digest.clone());
        }
    }
    Ok(())
}

/// The blobs that have to be there before a manifest may be told of, where it is all told of.
pub(super) fn missing(write: &WriteTransaction, put: &Put) -> Result<Vec<Digest>, Failed> {
    let mut missing = BTreeSet::new();
    if write.open_table(REPLICA)?.get("strict")?.is_none() {
        return Ok(Vec::new());
    }
    blobs_missing(write, &put.manifest, &mut missing)?;
    // What was a copy, and is not any more once this is pushed.
    let (copies, content) = (write.open_table(COPIES)?, write.open_table(CONTENT)?);
    let mut open: Vec<_> = put.manifest.manifests.iter().map(|named| named.digest.to_string()).collect();
    while let Some(digest) = open.pop() {
        if copies.get((put.repository.as_str(), digest.as_str()))?.is_some()
            && let Some(bytes) = content.get(digest.as_str())?
            && let Ok(manifest) = Manifest::read(None, bytes.value())
        {
            blobs_missing(write, &manifest, &mut missing)?;
            open.extend(manifest.manifests.iter().map(|named| named.digest.to_string()));
        }
    }
    Ok(missing.into_iter().collect())
}

impl Index {
    /// Where else it is kept; nothing: nowhere.
    pub fn standing(&self) -> Result<Option<Standing>, Refused> {
        self.read_any(|read| {
            let table = read.open_table(REPLICA)?;
            let value = |name: &str| -> Result<Option<String>, Failed> {
                Ok(table.get(name)?.map(|value| value.value().to_owned()))
            };
            let Some(lineage) = value("lineage")? else { return Ok(None) };
            Ok(Some(Standing {
                lineage,
                writer: value("writer")?.unwrap_or_default(),
                number: value("number")?.and_then(|number| number.parse().ok()).unwrap_or(0),
                is_whole: value("whole")?.is_some(),
                is_loading: value("loading")?.is_some(),
                is_left: value("left")?.is_some(),
                next: value("next")?.and_then(|next| next.parse().ok()).unwrap_or(1),
            }))
        })
    }

    /// From now on it is kept there as well, where nothing of it is yet.
    pub async fn begin_replica(&self, lineage: &str, writer: &str, number: u64) -> Result<(), Refused> {
        let (lineage, writer) = (lineage.to_owned(), writer.to_owned());
        self.write_any(move |write| {
            write.delete_table(CHANGES)?;
            write.open_table(CHANGES)?;
            write.delete_table(REPLICATED)?;
            write.open_table(REPLICATED)?;
            write.delete_table(GONE)?;
            write.open_table(GONE)?;
            let mut replica = write.open_table(REPLICA)?;
            for name in ["whole", "strict", "loading", "left", "paused"] {
                replica.remove(name)?;
            }
            replica.insert("lineage", lineage.as_str())?;
            replica.insert("writer", writer.as_str())?;
            replica.insert("number", number.to_string().as_str())?;
            Ok(())
        })
        .await
    }

    /// Nothing is pushed from now on whose blobs are not there.
    pub async fn be_strict(&self) -> Result<(), Refused> {
        self.write_any(|write| {
            write.open_table(REPLICA)?.insert("strict", "1")?;
            Ok(())
        })
        .await
    }

    /// All changes up to that one are there, in segments up to `number`; all of it is, where a snapshot `is_whole`.
    pub async fn brought(&self, change: u64, number: u64, is_whole: bool) -> Result<(), Refused> {
        self.write_any(move |write| {
            let mut changes = write.open_table(CHANGES)?;
            changes.retain_in(..=change, |_, _| false)?;
            let mut replica = write.open_table(REPLICA)?;
            replica.insert("number", number.to_string().as_str())?;
            if is_whole {
                replica.insert("whole", "1")?;
            }
            Ok(())
        })
        .await
    }

    /// A blob is there, and what it is a part of here is told.
    pub async fn replicated(&self, digest: &Digest, object: &str) -> Result<(), Refused> {
        let (digest, object) = (digest.clone(), object.to_owned());
        self.write_any(move |write| {
            // It may have gone meanwhile, or be there by another name.
            let is_here = write.open_table(BLOBS)?.get(digest.as_str())?.is_some();
            let mut replicated = write.open_table(REPLICATED)?;
            if !is_here || replicated.get(digest.as_str())?.is_some() {
                write.open_table(GONE)?.insert(name(&digest, &object).as_str(), ())?;
                return Ok(());
            }
            replicated.insert(digest.as_str(), object.as_str())?;
            note(write, [Name::Blob(digest.as_str())])?;
            let linked = write.open_multimap_table(LINKED)?;
            for repository in linked.get(digest.as_str())? {
                note(write, [Name::Link(repository?.value(), digest.as_str())])?;
            }
            Ok(())
        })
        .await
    }

    /// A blob that was thought to be there by that name is not; false: nobody thinks so any more.
    pub async fn lost_replica(&self, digest: &Digest, object: &str) -> Result<bool, Refused> {
        let (digest, object) = (digest.clone(), object.to_owned());
        self.write_any(move |write| {
            let mut replicated = write.open_table(REPLICATED)?;
            let is_so = replicated.get(digest.as_str())?.is_some_and(|known| known.value() == object);
            if is_so {
                replicated.remove(digest.as_str())?;
                drop(replicated);
                write.open_table(GONE)?.insert(name(&digest, &object).as_str(), ())?;
                note(write, [Name::Blob(digest.as_str())])?;
            }
            Ok(is_so)
        })
        .await
    }

    /// What a blob is called there; nothing: it is not.
    pub fn object(&self, digest: &Digest) -> Result<Option<String>, Refused> {
        self.read_any(|read| {
            Ok(read.open_table(REPLICATED)?.get(digest.as_str())?.map(|object| object.value().to_owned()))
        })
    }

    /// Those of some names by which there is no blob there, as far as is known.
    pub fn not_replicas(&self, names: Vec<String>) -> Result<Vec<String>, Refused> {
        self.read_any(|read| {
            let (replicated, gone) = (read.open_table(REPLICATED)?, read.open_table(GONE)?);
            let mut strays = Vec::new();
            for text in names {
                let Some((digest, object)) = read_name(&text) else { continue };
                // What goes anyway goes in its order.
                let is_other = replicated.get(digest.as_str())?.is_none_or(|known| known.value() != object);
                if is_other && gone.get(text.as_str())?.is_none() {
                    strays.push(text);
                }
            }
            Ok(strays)
        })
    }

    /// Some of what is there, by name, and is not needed any more.
    pub fn gone(&self, most: usize) -> Result<Vec<String>, Refused> {
        self.read_any(|read| {
            let table = read.open_table(GONE)?;
            let mut some = Vec::new();
            for row in table.iter()?.take(most) {
                some.push(row?.0.value().to_owned());
            }
            Ok(some)
        })
    }

    /// That is not there any more.
    pub async fn removed(&self, names: Vec<String>) -> Result<(), Refused> {
        self.write_any(move |write| {
            let mut gone = write.open_table(GONE)?;
            for name in &names {
                gone.remove(name.as_str())?;
            }
            Ok(())
        })
        .await
    }

    /// Whether a blob is there.
    pub fn is_replicated(&self, digest: &Digest) -> Result<bool, Refused> {
        self.read_any(|read| Ok(read.open_table(REPLICATED)?.get(digest.as_str())?.is_some()))
    }

    /// How many changes wait, and the number of the last.
    pub fn waiting(&self) -> Result<(u64, u64), Refused> {
        self.read_any(|read| {
            let changes = read.open_table(CHANGES)?;
            Ok((changes.len()?, changes.last()?.map_or(0, |(number, _)| number.value())))
        })
    }

    /// How everything is that has changed, each once, as of one moment; the number of the last change.
    pub fn changed(&self, mut each: impl FnMut(Row) -> std::io::Result<()>) -> Result<u64, Refused> {
        self.read_any(|read| {
            let (mut last, mut seen, mut names) = (0, BTreeSet::new(), Vec::new());
            for change in read.open_table(CHANGES)?.iter()? {
                let (number, name) = change?;
                last = number.value();
                if seen.insert(name.value().to_owned()) {
                    names.push(name.value().to_owned());
                }
            }
            for text in &names {
                let wrong = || redb::Error::Corrupted(format!("{text:.80?} names nothing"));
                let name = Name::read(text).ok_or_else(wrong)?;
                if let Some(row) = row(read, &name)? {
                    each(row).map_err(redb::Error::Io)?;
                }
            }
            Ok(last)
        })
    }

    /// As it is now, to be read at leisure.
    pub fn now(&self) -> Result<Moment, Refused> {
        let slot = self.database.read().unwrap_or_else(PoisonError::into_inner);
        let database = slot.as_ref().ok_or_else(|| unusable("it is being opened again"))?;
        Ok(Moment(database.begin_read().map_err(unusable)?))
    }

    /// Blobs that manifests are made of which were pushed here, and that are not there, among the next `rows` manifests.
    pub fn unreplicated(&self, from: &(String, String), rows: usize) -> Result<Step<Digest>, Refused> {
        self.read_any(|read| {
            let (manifests, copies) = (read.open_table(MANIFESTS)?, read.open_table(COPIES)?);
            let (blobs, replicated) = (read.open_table(BLOBS)?, read.open_table(REPLICATED)?);
            let content = read.open_table(CONTENT)?;
            let mut missing = BTreeSet::new();
            for (number, row) in manifests.range((from.0.as_str(), from.1.as_str())..)?.enumerate() {
                let key = row?.0;
                let (repository, digest) = key.value();
                if number == rows {
                    let next = Some((repository.to_owned(), digest.to_owned()));
                    return Ok(Step { found: missing.into_iter().collect(), next });
                }
                if copies.get((repository, digest))?.is_some() {
                    continue;
                }
                let Some(bytes) = content.get(digest)? else { continue };
                let Ok(manifest) = Manifest::read(None, bytes.value()) else { continue };
                for named in manifest.blobs.into_iter().chain(manifest.manifests) {
                    let digest = named.digest.as_str();
                    if blobs.get(digest)?.is_some() && replicated.get(digest)?.is_none() {
                        missing.insert(named.digest);
                    }
                }
            }
            Ok(Step { found: missing.into_iter().collect(), next: None })
        })
    }

    /// How many blobs are there.
    pub fn replicas(&self) -> Result<u64, Refused> {
        self.read_any(|read| Ok(read.open_table(REPLICATED)?.len()?))
    }

    /// Blobs that are there, behind `last`, at most so many.
    pub fn replicas_behind(&self, last: &str, most: usize) -> Result<Vec<Digest>, Refused> {
        self.read_any(|read| {
            let mut some = Vec::new();
            for row in read.open_table(REPLICATED)?.range(last..)? {
                let key = row?.0;
                if key.value() != last {
                    some.push(read_digest(key.value())?);
                }
                if some.len() == most {
                    break;
                }
            }
            Ok(some)
        })
    }

    /// Blobs that are there whose digests begin so, with their bytes, and what they are called.
    pub fn replicas_of(&self, first: &str) -> Result<Vec<(Digest, u64, String)>, Refused> {
        self.read_any(|read| {
            let (mut all, blobs) = (Vec::new(), read.open_table(BLOBS)?);
            for row in read.open_table(REPLICATED)?.range(first..)? {
                let (key, object) = row?;
                if !key.value().starts_with(first) {
                    break;
                }
                let size = blobs.get(key.value())?.map(|blob| blob.value().0);
                if let Some(size) = size {
                    all.push((read_digest(key.value())?, size, object.value().to_owned()));
                }
            }
            Ok(all)
        })
    }

    /// This host does not write there any more: whoever does may.
    pub async fn left(&self) -> Result<(), Refused> {
        self.write_any(|write| {
            write.open_table(REPLICA)?.insert("left", "1")?;
            Ok(())
        })
        .await
    }

    /// It does again.
    pub async fn returned(&self) -> Result<(), Refused> {
        self.write_any(|write| {
            let mut replica = write.open_table(REPLICA)?;
            replica.remove("left")?;
            replica.remove("paused")?;
            Ok(())
        })
        .await
    }

    /// It is kept nowhere else for now: what was there is not whole any more, and nothing waits for it.
    pub async fn pause(&self) -> Result<(), Refused> {
        self.write_any(|write| {
            let mut replica = write.open_table(REPLICA)?;
            if replica.get("lineage")?.is_none() {
                return Ok(());
            }
            replica.insert("paused", "1")?;
            for name in ["whole", "strict"] {
                replica.remove(name)?;
            }
            drop(replica);
            write.delete_table(CHANGES)?;
            write.open_table(CHANGES)?;
            Ok(())
        })
        .await
    }

    /// Whether a manifest is here that was pushed.
    pub fn has_own(&self) -> Result<bool, Refused> {
        self.read_any(|read| {
            let copies = read.open_table(COPIES)?;
            for row in read.open_table(MANIFESTS)?.iter()? {
                if copies.get(row?.0.value())?.is_none() {
                    return Ok(true);
                }
            }
            Ok(false)
        })
    }
}
