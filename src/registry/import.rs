//! Takes over what Docker's registry (distribution) keeps in a folder: repositories, tags, manifests and blobs. Each blob is read once, and is what
//! it is called after; on the same disk its file is shared, and takes no more room.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::ImageRegistry;
use super::digest::Digest;
use super::manifest::{MAX_MANIFEST, Manifest};
use super::name::{Reference, Repository, check_tag};
use super::refused::{Code, Refused};
use super::upload::aside;
use crate::model::{Error, Kind, Result as ModelResult};

/// Where distribution begins in its folder.
const ROOT: &str = "docker/registry/v2";
/// How deep names of repositories go, and how many there are at most.
const DEPTH: usize = 64;
const MOST: usize = 1_000_000;
/// What is told of what was left out.
const LEFT: usize = 100;

/// What is taken over.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ImportAsk {
    /// The folder on the registry's host: what distribution calls `rootdirectory`.
    pub folder: PathBuf,
    /// Only repositories whose names begin so.
    #[serde(default)]
    pub prefix: String,
}

/// How far that is.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Imported {
    /// Repositories that are there.
    pub repositories: u64,
    /// Of so many.
    pub of: u64,
    /// Manifests that are there.
    pub manifests: u64,
    /// Tags.
    pub tags: u64,
    /// Blobs that came.
    pub blobs: u64,
    /// Those, in bytes.
    pub size: u64,
    /// What was left out, and why; a hundred at most.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub left: Vec<String>,
    /// How many were.
    pub left_out: u64,
    /// Whether that was all.
    pub done: bool,
}

impl Imported {
    fn leave(&mut self, what: String) {
        self.left_out += 1;
        if self.left.len() < LEFT {
            self.left.push(what);
        }
    }
}

fn entries(folder: &Path) -> io::Result<Vec<String>> {
    let read = match std::fs::read_dir(folder) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        other => other?,
    };
    let mut names: Vec<String> = read.filter_map(|entry| entry.ok()?.file_name().into_string().ok()).collect();
    names.sort();
    Ok(names)
}

// Repositories below a folder: those with manifests.
fn repositories(root: &Path, prefix: &str) -> io::Result<Vec<Repository>> {
    let mut found = Vec::new();
    let mut open = vec![(root.to_owned(), String::new(), 0)];
    while let Some((folder, name, depth)) = open.pop() {
        for entry in entries(&folder)? {
            if entry == "_manifests" {
                if let Ok(repository) = name.parse::<Repository>()
                    && name.starts_with(prefix)
                {
                    found.push(repository);
                }
            } else if !entry.starts_with('_') && depth < DEPTH && found.len() < MOST && folder.join(&entry).is_dir() {
                let below = if name.is_empty() { entry.clone() } else { format!("{name}/{entry}") };
                open.push((folder.join(&entry), below, depth + 1));
            }
        }
    }
    found.sort();
    Ok(found)
}

// What a link leads to.
fn link(path: &Path) -> Option<Digest> {
    std::fs::read_to_string(path).ok()?.trim().parse().ok()
}

// One repository of the folder.
struct Source {
    root: PathBuf,
    manifests: PathBuf,
}

impl Source {
    fn blob(&self, digest: &Digest) -> PathBuf {
        let hex = digest.hex();
        self.root.join("blobs").join(digest.algorithm().as_str()).join(&hex[..2]).join(hex).join("data")
    }

    fn revisions(&self) -> io::Result<Vec<Digest>> {
        let folder = self.manifests.join("revisions");
        let mut all = Vec::new();
        for algorithm in entries(&folder)? {
            for hex in entries(&folder.join(&algorithm))? {
                // Without its link it was deleted.
                if let Some(digest) = link(&folder.join(&algorithm).join(&hex).join("link")) {
                    all.push(digest);
                }
            }
        }
        Ok(all)
    }

    fn tags(&self) -> io::Result<Vec<(String, Digest)>> {
        let folder = self.manifests.join("tags");
        let named = entries(&folder)?.into_iter().filter(|tag| check_tag(tag).is_ok());
        Ok(named.filter_map(|tag| Some((tag.clone(), link(&folder.join(&tag).join("current/link"))?))).collect())
    }

    fn manifest(&self, digest: &Digest) -> Result<(Manifest, Vec<u8>), String> {
        let path = self.blob(digest);
        let large = std::fs::metadata(&path).map_err(|error| error.to_string())?.len() > MAX_MANIFEST as u64;
        if large {
            return Err("is too large for a manifest".into());
        }
        let bytes = std::fs::read(&path).map_err(|error| error.to_string())?;
        if Digest::of(digest.algorithm(), &bytes) != *digest {
            return Err("is damaged".into());
        }
        Manifest::read(None, &bytes).map(|manifest| (manifest, bytes)).map_err(|refused| refused.why)
    }
}

impl ImageRegistry {
    /// Takes a folder of distribution over; `told` hears how far it is. What is here already stays, and may be there again.
    pub async fn import(
        self: &Arc<Self>,
        ask: ImportAsk,
        told: impl Fn(&Imported) + Send + Sync,
    ) -> ModelResult<Imported> {
        let subject = format!("folder {}", ask.folder.display());
        let root = ask.folder.join(ROOT);
        if !root.join("repositories").is_dir() {
            let why = format!("has no {ROOT}/repositories");
            return Err(Error::new(Kind::NotFound, subject, why)
                .help("name what distribution calls rootdirectory, such as /var/lib/registry"));
        }
        let (at, prefix) = (root.join("repositories"), ask.prefix.clone());
        let failed = |error: io::Error| Refused::io("read the folder", &error);
        let all = aside(move || repositories(&at, &prefix).map_err(failed)).await.map_err(Refused::into_error)?;
        let mut imported = Imported { of: all.len() as u64, ..Imported::default() };
        for repository in all {
            let manifests = root.join("repositories").join(repository.as_str()).join("_manifests");
            let source = Arc::new(Source { root: root.clone(), manifests });
            let one = self.import_one(&repository, &source, &mut imported, &told).await;
            one.map_err(|refused| {
                let error = refused.into_error();
                Error::new(error.kind, subject.clone(), format!("{repository}: {}", error.message))
            })?;
            imported.repositories += 1;
            told(&imported);
        }
        imported.done = true;
        Ok(imported)
    }

    async fn import_one(
        self: &Arc<Self>,
        repository: &Repository,
        source: &Arc<Source>,
        imported: &mut Imported,
        told: &(impl Fn(&Imported) + Send + Sync),
    ) -> Result<(), Refused> {
        self.check_pushed(repository)?;
        let failed = |error: io::Error| Refused::io("read the folder", &error);
        let own = source.clone();
        let (revisions, tags) =
            aside(move || Ok((own.revisions().map_err(failed)?, own.tags().map_err(failed)?))).await?;
        // What an index holds comes before it: whatever waits for another is tried again, for as long as something comes.
        let mut open = revisions;
        while !open.is_empty() {
            let (before, mut wait) = (open.len(), Vec::new());
            for digest in open {
                let (own, of) = (source.clone(), digest.clone());
                let (manifest, bytes) = match aside(move || Ok(own.manifest(&of))).await? {
                    Ok(read) => read,
                    Err(why) => {
                        imported.leave(format!("{repository}@{digest}: {why}"));
                        continue;
                    }
                };
                let lost = self.import_blobs(repository, source, &manifest, imported, told).await?;
                if let Some(lost) = lost {
                    imported.leave(format!("{repository}@{digest}: {lost}"));
                    continue;
                }
                let kind = manifest.media_type.clone();
                let named: Vec<String> =
                    tags.iter().filter(|(_, of)| *of == digest).map(|(tag, _)| tag.clone()).collect();
                let (count, reference) = (named.len() as u64, Reference::Digest(digest.clone()));
                match self.put_manifest(repository, &reference, named, Some(&kind), bytes).await {
                    Ok(_) => {
                        imported.manifests += 1;
                        imported.tags += count;
                    }
                    Err(refused) if refused.code == Code::ManifestBlobUnknown => wait.push((digest, refused.why)),
                    Err(refused) => imported.leave(format!("{repository}@{digest}: {}", refused.why)),
                }
            }
            if wait.len() == before {
                wait.iter().for_each(|(digest, why)| imported.leave(format!("{repository}@{digest}: {why}")));
                return Ok(());
            }
            open = wait.into_iter().map(|(digest, _)| digest).collect();
        }
        Ok(())
    }

    // Why a manifest cannot come, where one of its blobs is not what it is called after, or not there.
    async fn import_blobs(
        self: &Arc<Self>,
        repository: &Repository,
        source: &Arc<Source>,
        manifest: &Manifest,
        imported: &mut Imported,
        told: &(impl Fn(&Imported) + Send + Sync),
    ) -> Result<Option<String>, Refused> {
        for named in manifest.blobs.iter().filter(|named| !named.is_foreign) {
            match self.blob(repository, &named.digest).await {
                Ok(_) => continue,
                Err(refused) if refused.code == Code::BlobUnknown => {}
                Err(refused) => return Err(refused),
            }
            let path = source.blob(&named.digest);
            if !path.is_file() {
                return Ok(Some(format!("its blob {} is not there", named.digest)));
            }
            let growing = self.take_in(repository, path).await?;
            match self.finish(repository, growing, &named.digest).await {
                Ok(size) => {
                    imported.blobs += 1;
                    imported.size += size;
                    told(imported);
                }
                Err(refused) if refused.code == Code::DigestInvalid => {
                    return Ok(Some(format!("its blob {} is damaged", named.digest)));
                }
                Err(refused) => return Err(refused),
            }
        }
        Ok(None)
    }
}
