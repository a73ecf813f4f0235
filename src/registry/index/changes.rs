//! What is changed in the index, each in one transaction. All is looked at before the first write.

use glob::Pattern;
use redb::{ReadableMultimapTable, ReadableTable, WriteTransaction};

use super::collect::renew;
use super::copies::has_copies;
use super::reads::unknown_manifest;
use super::replica::{Name, missing, note};
use super::{
    BLOBS, CONTENT, COPIES, Failed, HOLDERS, Index, LINKED, LINKS, MANIFESTS, NAMED, REFERRERS, REPOSITORIES, TAGGED,
    TAGS,
};
use crate::model::units::Bytes;
use crate::registry::digest::Digest;
use crate::registry::manifest::{Manifest, Named};
use crate::registry::name::{Reference, Repository};
use crate::registry::refused::{Code, Refused};

/// A manifest that is put into a repository.
#[derive(Debug, Clone)]
pub struct Put {
    /// Where.
    pub repository: Repository,
    /// Its digest.
    pub digest: Digest,
    /// The tags that are to lead to it.
    pub tags: Vec<String>,
    /// What is in it.
    pub bytes: Vec<u8>,
    /// What it names.
    pub manifest: Manifest,
    /// When, in milliseconds since 1970.
    pub at: u64,
    /// Tags that stay as they are.
    pub immutable: Vec<Pattern>,
    /// The registry whose copies a repository of this name would hold, where there is one: what is copied is not pushed to.
    pub cache_of: Option<String>,
}

impl Index {
    /// A blob is there, and of a repository, whose blobs may take so many bytes.
    pub async fn add_blob(
        &self,
        repository: &Repository,
        digest: &Digest,
        size: u64,
        at: u64,
        quota: Option<u64>,
    ) -> Result<(), Refused> {
        let (repository, digest) = (repository.clone(), digest.clone());
        self.write_here(move |write| {
            check_quota(write, &repository, &digest, size, quota)?;
            let mut blobs = write.open_table(BLOBS)?;
            if blobs.get(digest.as_str())?.is_none() {
                blobs.insert(digest.as_str(), (size, at))?;
            }
            drop(blobs);
            link(write, &repository, &digest, at)
        })
        .await
    }

    /// A blob of one repository is of another as well; false: the one has none such.
    pub async fn mount(
        &self,
        from: &Repository,
        to: &Repository,
        digest: &Digest,
        at: u64,
        quota: Option<u64>,
    ) -> Result<bool, Refused> {
        let (from, to, digest) = (from.clone(), to.clone(), digest.clone());
        self.write(move |write| {
            if write.open_table(LINKS)?.get((from.as_str(), digest.as_str()))?.is_none() {
                return Ok(false);
            }
            let size = write.open_table(BLOBS)?.get(digest.as_str())?.map_or(0, |blob| blob.value().0);
            check_quota(write, &to, &digest, size, quota)?;
            link(write, &to, &digest, at)?;
            Ok(true)
        })
        .await
    }

    /// A manifest with its tags and its subject. What it names has to be in its repository.
    /// Those of its blobs where another place has to have them first, and has not: nothing is put then.
    pub async fn put_manifest(&self, put: Put) -> Result<Vec<Digest>, Refused> {
        self.write(move |write| {
            if let Some(upstream) = &put.cache_of
                && has_copies(write, put.repository.as_str())?
            {
                return Err(is_copy(&put.repository, upstream).into());
            }
            check_named(write, &put)?;
            check_tags(write, &put)?;
            let missing = missing(write, &put)?;
            if !missing.is_empty() {
                return Ok(missing);
            }
            put_manifest(write, &put)?;
            own(write, &put)?;
            note(write, [Name::Manifest(put.repository.as_str(), put.digest.as_str())])?;
            note(write, put.tags.iter().map(|tag| Name::Tag(put.repository.as_str(), tag)))?;
            Ok(missing)
        })
        .await
    }

    /// A tag goes; its manifest stays. Not one that is `immutable`, nor one that does not lead to `only`.
    pub async fn delete_tag(
        &self,
        repository: &Repository,
        tag: &str,
        immutable: Vec<Pattern>,
        only: Option<String>,
    ) -> Result<(), Refused> {
        let (repository, tag) = (repository.clone(), tag.to_owned());
        self.write(move |write| {
            let unknown = || unknown_manifest(&repository, &Reference::Tag(tag.clone()));
            if let Some(only) = only {
                let tags = write.open_table(TAGS)?;
                let known = tags.get((repository.as_str(), tag.as_str()))?;
                if known.is_none_or(|row| row.value().0 != only) {
                    return Err(unknown().into());
                }
            }
            check_moved(&repository, [tag.as_str()].into_iter(), &immutable)?;
            let mut tags = write.open_table(TAGS)?;
            let key = (repository.as_str(), tag.as_str());
            let known = tags.remove(key)?.map(|row| row.value().0.to_owned());
            let digest = known.ok_or_else(unknown)?;
            write.open_multimap_table(TAGGED)?.remove((repository.as_str(), digest.as_str()), tag.as_str())?;
            note(write, [Name::Tag(repository.as_str(), &tag)])
        })
        .await
    }

    /// A manifest goes, with its tags. Not where one of those is `immutable`.
    pub async fn delete_manifest(
        &self,
        repository: &Repository,
        digest: &Digest,
        at: u64,
        immutable: Vec<Pattern>,
    ) -> Result<(), Refused> {
        let (repository, digest) = (repository.clone(), digest.clone());
        self.write(move |write| {
            if !immutable.is_empty() {
                check_led_to(write, &repository, &digest, &immutable)?;
            }
            delete_manifest(write, &repository, &digest, at)
        })
        .await
    }

    /// A blob is no more of a repository. One that a manifest there is made of stays.
    pub async fn delete_blob(&self, repository: &Repository, digest: &Digest) -> Result<(), Refused> {
        let (repository, digest) = (repository.clone(), digest.clone());
        self.write(move |write| {
            let key = (repository.as_str(), digest.as_str());
            if write.open_table(LINKS)?.get(key)?.is_none() {
                let why = format!("there is no blob {digest} in {repository}");
                return Err(Refused::new(Code::BlobUnknown, why).about(digest.as_str()).into());
            }
            if let Some(by) = write.open_multimap_table(NAMED)?.get(key)?.next() {
                let why = format!("manifest {} of {repository} is made of it", by?.value());
                return Err(Refused::new(Code::Unsupported, why).about(digest.as_str()).into());
            }
            unlink(write, &repository, &digest)
        })
        .await
    }
}

/// Makes a blob one of a repository.
pub(super) fn link(write: &WriteTransaction, repository: &Repository, digest: &Digest, at: u64) -> Result<(), Failed> {
    let before = write.open_table(LINKS)?.insert((repository.as_str(), digest.as_str()), at)?.map(|at| at.value());
    write.open_multimap_table(LINKED)?.insert(digest.as_str(), repository.as_str())?;
    match before {
        Some(_) => Ok(()),
        None => note(write, [Name::Link(repository.as_str(), digest.as_str())]),
    }
}

/// Takes a blob out of a repository.
pub(super) fn unlink(write: &WriteTransaction, repository: &Repository, digest: &Digest) -> Result<(), Failed> {
    write.open_table(LINKS)?.remove((repository.as_str(), digest.as_str()))?;
    write.open_multimap_table(LINKED)?.remove(digest.as_str(), repository.as_str())?;
    note(write, [Name::Link(repository.as_str(), digest.as_str())])
}

// What is pushed, and what it names, is no copy any more: nobody lets go of it but its owner.
fn own(write: &WriteTransaction, put: &Put) -> Result<(), Failed> {
    let (mut copies, content) = (write.open_table(COPIES)?, write.open_table(CONTENT)?);
    let repository = put.repository.as_str();
    let mut open = vec![put.digest.to_string()];
    while let Some(digest) = open.pop() {
        // What is no copy has none below it: they were taken when it came.
        let was = copies.remove((repository, digest.as_str()))?.is_some();
        if !was && digest != put.digest.as_str() {
            continue;
        }
        if was {
            note(write, [Name::Manifest(repository, &digest)])?;
            for tag in write.open_multimap_table(TAGGED)?.get((repository, digest.as_str()))? {
                note(write, [Name::Tag(repository, tag?.value())])?;
            }
        }
        if let Some(bytes) = content.get(digest.as_str())?
            && let Ok(manifest) = Manifest::read(None, bytes.value())
        {
            open.extend(manifest.manifests.into_iter().map(|named| named.digest.to_string()));
        }
    }
    Ok(())
}

// Whether none of these tags is to stay as it is.
fn check_moved<'a>(
    repository: &Repository,
    mut tags: impl Iterator<Item = &'a str>,
    immutable: &[Pattern],
) -> Result<(), Failed> {
    match tags.find(|tag| immutable.iter().any(|pattern| pattern.matches(tag))) {
        Some(tag) => {
            let why = format!("tag {tag} of {repository} stays as it is: a rule makes it immutable");
            Err(Refused::new(Code::Denied, why).about(tag).into())
        }
        None => Ok(()),
    }
}

// Whether no tag that is to stay as it is leads to a manifest, also by the indexes that hold it.
fn check_led_to(
    write: &WriteTransaction,
    repository: &Repository,
    digest: &Digest,
    immutable: &[Pattern],
) -> Result<(), Failed> {
    let (tagged, named) = (write.open_multimap_table(TAGGED)?, write.open_multimap_table(NAMED)?);
    let (mut open, mut seen) = (vec![digest.to_string()], std::collections::BTreeSet::new());
    while let Some(digest) = open.pop() {
        for tag in tagged.get((repository.as_str(), digest.as_str()))? {
            check_moved(repository, [tag?.value()].into_iter(), immutable)?;
        }
        for by in named.get((repository.as_str(), digest.as_str()))? {
            let by = by?.value().to_owned();
            if seen.insert(by.clone()) {
                open.push(by);
            }
        }
    }
    Ok(())
}

// Whether the tags that a manifest is to get do not lead elsewhere already, where that is not to be changed.
fn check_tags(write: &WriteTransaction, put: &Put) -> Result<(), Failed> {
    if put.immutable.is_empty() {
        return Ok(());
    }
    let tags = write.open_table(TAGS)?;
    for tag in &put.tags {
        let known = tags.get((put.repository.as_str(), tag.as_str()))?;
        if known.is_some_and(|row| row.value().0 != put.digest.as_str()) {
            check_moved(&put.repository, [tag.as_str()].into_iter(), &put.immutable)?;
        }
    }
    Ok(())
}

// Whether a blob may come to those that a repository has.
fn check_quota(
    write: &WriteTransaction,
    repository: &Repository,
    digest: &Digest,
    size: u64,
    quota: Option<u64>,
) -> Result<(), Failed> {
    let Some(quota) = quota else { return Ok(()) };
    let (links, blobs) = (write.open_table(LINKS)?, write.open_table(BLOBS)?);
    let mut bytes = size;
    for row in links.range((repository.as_str(), "")..)? {
        let (key, _) = row?;
        let (of, known) = key.value();
        if of != repository.as_str() {
            break;
        }
        // What is there already costs nothing more.
        if known == digest.as_str() {
            return Ok(());
        }
        bytes = bytes.saturating_add(blobs.get(known)?.map_or(0, |blob| blob.value().0));
    }
    if bytes <= quota {
        return Ok(());
    }
    let why = format!("{repository} may hold {}, and would hold {}", Bytes(quota), Bytes(bytes));
    Err(Refused::new(Code::Denied, why).about(repository.as_str()).into())
}

// What a manifest names and its repository has not.
fn check_named(write: &WriteTransaction, put: &Put) -> Result<(), Failed> {
    let repository = put.repository.as_str();
    let (links, blobs, manifests) = (write.open_table(LINKS)?, write.open_table(BLOBS)?, write.open_table(MANIFESTS)?);
    let mut missing = Vec::new();
    let wrong_size = |named: &Named, size: u64| {
        let why = format!("{} has {size} bytes, not {}", named.digest, named.size);
        Refused::new(Code::ManifestInvalid, why).about(named.digest.as_str())
    };
    for named in &put.manifest.blobs {
        let digest = named.digest.as_str();
        let here = links.get((repository, digest))?.is_some();
        let size = if here { blobs.get(digest)?.map(|blob| blob.value().0) } else { None };
        match size {
            Some(size) if size != named.size => return Err(wrong_size(named, size).into()),
            None if !named.is_foreign => missing.push(digest),
            _ => {}
        }
    }
    for named in &put.manifest.manifests {
        let digest = named.digest.as_str();
        let size = manifests.get((repository, digest))?.map(|row| row.value().1);
        // BuildKit's caches are indexes of blobs.
        let size = match size {
            None if links.get((repository, digest))?.is_some() => blobs.get(digest)?.map(|blob| blob.value().0),
            size => size,
        };
        match size {
            Some(size) if size != named.size => return Err(wrong_size(named, size).into()),
            None if !named.is_foreign => missing.push(digest),
            _ => {}
        }
    }
    if missing.is_empty() {
        return Ok(());
    }
    let why = format!("{repository} has not what the manifest names: {}", missing.join(", "));
    let why =
        if why.len() > 1000 { format!("{repository} has not {} things that it names", missing.len()) } else { why };
    let refused =
        missing.iter().fold(Refused::new(Code::ManifestBlobUnknown, why), |refused, digest| refused.about(*digest));
    Err(refused.into())
}

/// That a repository is no place to push to.
pub fn is_copy(repository: &Repository, upstream: &str) -> Refused {
    let why = format!("{repository} is a copy of what {upstream} has: push to another name");
    Refused::new(Code::Denied, why).about(repository.as_str())
}

/// Puts a manifest into a repository, with its tags and its subject.
pub(super) fn put_manifest(write: &WriteTransaction, put: &Put) -> Result<(), Failed> {
    let (repository, digest) = (put.repository.as_str(), put.digest.as_str());
    let subject = put.manifest.subject.as_ref().map_or("", Digest::as_str);
    let size = put.bytes.len() as u64;
    let mut manifests = write.open_table(MANIFESTS)?;
    let is_new = manifests.get((repository, digest))?.is_none();
    manifests.insert((repository, digest), (put.manifest.media_type.as_str(), size, put.at, subject))?;
    if is_new {
        let mut repositories = write.open_table(REPOSITORIES)?;
        if repositories.get(repository)?.is_none() {
            repositories.insert(repository, put.at)?;
        }
        let mut content = write.open_table(CONTENT)?;
        if content.get(digest)?.is_none() {
            content.insert(digest, put.bytes.as_slice())?;
        }
        write.open_multimap_table(HOLDERS)?.insert(digest, repository)?;
        let mut named = write.open_multimap_table(NAMED)?;
        for of in put.manifest.blobs.iter().chain(&put.manifest.manifests) {
            named.insert((repository, of.digest.as_str()), digest)?;
        }
        if !subject.is_empty() {
            let referrer = put.manifest.referrer(&put.digest, size);
            let referrer = serde_json::to_vec(&referrer).map_err(|error| redb::Error::Corrupted(error.to_string()))?;
            write.open_table(REFERRERS)?.insert((repository, subject, digest), referrer.as_slice())?;
        }
    }
    let (mut tags, mut tagged) = (write.open_table(TAGS)?, write.open_multimap_table(TAGGED)?);
    for tag in &put.tags {
        let before = tags.insert((repository, tag.as_str()), (digest, put.at))?.map(|row| row.value().0.to_owned());
        if let Some(before) = before.filter(|before| before != digest) {
            tagged.remove((repository, before.as_str()), tag.as_str())?;
        }
        tagged.insert((repository, digest), tag.as_str())?;
    }
    Ok(())
}

/// Takes a manifest out of a repository, with its tags; out of the list goes a repository that held no other.
pub(super) fn delete_manifest(
    write: &WriteTransaction,
    repository: &Repository,
    digest: &Digest,
    at: u64,
) -> Result<(), Failed> {
    let (of, key) = (repository.as_str(), (repository.as_str(), digest.as_str()));
    let mut manifests = write.open_table(MANIFESTS)?;
    let known = manifests.remove(key)?.map(|row| (row.value().0.to_owned(), row.value().3.to_owned()));
    let (kind, subject) = known.ok_or_else(|| unknown_manifest(repository, &Reference::Digest(digest.clone())))?;
    let is_last = manifests.range((of, "")..)?.next().transpose()?.is_none_or(|(key, _)| key.value().0 != of);
    if is_last {
        write.open_table(REPOSITORIES)?.remove(of)?;
    }
    write.open_table(COPIES)?.remove(key)?;
    let mut tags = write.open_table(TAGS)?;
    let mut gone = Vec::new();
    for tag in write.open_multimap_table(TAGGED)?.remove_all(key)? {
        let tag = tag?.value().to_owned();
        tags.remove((of, tag.as_str()))?;
        gone.push(tag);
    }
    if !subject.is_empty() {
        write.open_table(REFERRERS)?.remove((of, subject.as_str(), digest.as_str()))?;
    }
    let mut content = write.open_table(CONTENT)?;
    let manifest = content.get(digest.as_str())?.map(|bytes| Manifest::read(Some(&kind), bytes.value()));
    if let Some(Ok(manifest)) = manifest {
        let mut named = write.open_multimap_table(NAMED)?;
        for gone in manifest.blobs.iter().chain(&manifest.manifests) {
            named.remove((of, gone.digest.as_str()), digest.as_str())?;
        }
        let all = manifest.blobs.into_iter().chain(manifest.manifests);
        renew(write, repository, all.map(|named| named.digest), at)?;
    }
    let mut holders = write.open_multimap_table(HOLDERS)?;
    holders.remove(digest.as_str(), of)?;
    if holders.get(digest.as_str())?.next().is_none() {
        content.remove(digest.as_str())?;
    }
    note(write, [Name::Manifest(of, digest.as_str())])?;
    note(write, gone.iter().map(|tag| Name::Tag(of, tag)))
}
