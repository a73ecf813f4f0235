//! Floor 2, world: the image registry. Blobs are files that are called after what is in them (`disk`), uploads files that grow
//! (`upload`); which repository has what, and what names what, is in one index (`index`). Nothing is acknowledged before data,
//! directory entry and index are on the disk, and nothing is served that was not hashed on its way in. It knows nothing of HTTP:
//! `api::oci` speaks for it.

pub mod build;
pub mod cache;
mod collect;
pub mod copy;
pub mod describe;
pub mod digest;
mod disk;
pub mod import;
mod index;
pub mod manifest;
pub mod metrics;
pub mod name;
pub mod prune;
pub mod refused;
pub mod replica;
pub mod rules;
#[cfg(test)]
mod tests;
mod upload;
mod upstream;

use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock, RwLock};
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::{Semaphore, broadcast, mpsc};
use tokio::task::JoinHandle;

use self::build::Trees;
use self::cache::{Caches, Logins};
pub use self::collect::Collected;
use self::digest::{Algorithm, Digest};
use self::disk::Disk;
pub use self::index::{Found, Page};
use self::index::{Index, Put};
use self::manifest::{Manifest, Referrer};
use self::metrics::Metrics;
use self::name::{Reference, Repository, check_tag};
use self::refused::{Code, Refused};
use self::replica::Replica;
use self::rules::Rules;
pub use self::upload::{Growing, Part, Received};
use self::upload::{Uploads, aside};
use crate::model::clock::Clock;
use crate::model::{Error, Kind, Result as ModelResult, fault};

/// How a registry is kept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Limits {
    /// Largest blob, in bytes.
    pub max_blob: u64,
    /// How long a blob stays that no manifest is made of, since it came or lost its last manifest; at
    /// least half as long since it was asked for.
    pub grace: Duration,
    /// How long an upload waits for more.
    pub patience: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        let day = Duration::from_secs(24 * 60 * 60);
        Limits { max_blob: 1 << 40, grace: day, patience: day }
    }
}

/// What happened, for whoever listens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Happened {
    /// Whether something was pushed, or deleted.
    pub is_pushed: bool,
    /// Where.
    pub repository: Repository,
    /// The tag.
    pub tag: Option<String>,
    /// The manifest; nothing where a tag alone went.
    pub digest: Option<Digest>,
    /// What kind of manifest that is.
    pub media_type: String,
}

/// What may wait to be written of all that comes, in bytes.
const ROOM: u32 = 64 << 20;
/// Blobs that go to the disk at a time.
const SYNCING: usize = 8;
/// Images that are copied from registry to registry at a time.
const COPYING: usize = 8;
/// How often it is tried to put a manifest whose blobs go meanwhile.
const PUTS: usize = 5;
/// What waits for who listens, at most.
const WAITING: usize = 4096;

/// An image registry in a folder.
pub struct ImageRegistry {
    disk: Disk,
    uploads: Arc<Uploads>,
    index: Index,
    limits: Limits,
    clock: Arc<dyn Clock>,
    caches: Caches,
    rules: Rules,
    metrics: Metrics,
    logins: OnceLock<Arc<dyn Logins>>,
    happened: broadcast::Sender<Happened>,
    // Bytes that came and are not written yet, of all together.
    room: Arc<Semaphore>,
    // Who waits for the disk at a time.
    syncing: Semaphore,
    // Copies from registry to registry at a time.
    copying: Semaphore,
    trees: Trees,
    replica: RwLock<Option<Arc<Replica>>>,
    replicating: tokio::sync::Mutex<Option<JoinHandle<()>>>,
    // Collections, and readings of all that there is: one at a time.
    collecting: tokio::sync::Mutex<()>,
    scrubbing: tokio::sync::Mutex<()>,
}

impl ImageRegistry {
    /// The one in a folder, which is made where it is not there.
    pub fn open(folder: &Path, limits: Limits, clock: Arc<dyn Clock>) -> ModelResult<Self> {
        let failed = |error: std::io::Error| Error::io(format!("registry {}", folder.display()), "use it", &error);
        std::fs::create_dir_all(folder).map_err(failed)?;
        let disk = Disk::open(folder).map_err(failed)?;
        let uploads = Arc::new(Uploads::open(folder).map_err(failed)?);
        let index = Index::open(&folder.join("index.redb"))?;
        let failed = |refused: Refused| Error::new(Kind::Corrupt, "image registry", refused.why);
        let has_copies = index.has_copies(None).map_err(failed)?;
        let caches = Caches::read(index.settings(Caches::setting()).map_err(failed)?, has_copies);
        let rules = Rules::read(index.settings(Rules::setting()).map_err(failed)?)?;
        let (happened, _) = broadcast::channel(WAITING);
        let (room, syncing) = (Arc::new(Semaphore::new(ROOM as usize)), Semaphore::new(SYNCING));
        let (logins, collecting, scrubbing) = Default::default();
        let registry = ImageRegistry {
            disk,
            uploads,
            index,
            limits,
            clock,
            caches,
            rules,
            metrics: Metrics::default(),
            logins,
            happened,
            room,
            syncing,
            copying: Semaphore::new(COPYING),
            trees: Trees::default(),
            replica: RwLock::default(),
            replicating: tokio::sync::Mutex::default(),
            collecting,
            scrubbing,
        };
        Ok(registry)
    }

    /// What happens from now on.
    pub fn happened(&self) -> broadcast::Receiver<Happened> {
        self.happened.subscribe()
    }

    /// How it is kept.
    pub fn limits(&self) -> &Limits {
        &self.limits
    }

    fn now(&self) -> u64 {
        self.clock.wall().0
    }

    // What was not needed since then is not kept.
    fn idle_since(&self) -> u64 {
        self.now().saturating_sub(self.limits.grace.as_millis() as u64)
    }

    /// A blob's bytes; it stays for a while from now on, since who asks may be about to name it.
    pub async fn blob(&self, repository: &Repository, digest: &Digest) -> Result<u64, Refused> {
        let now = self.now();
        let fresh = now.saturating_sub(self.limits.grace.as_millis() as u64 / 2);
        let size = self.index.touch(repository, digest, now, fresh).await?;
        // One that was damaged comes anew with the next push.
        size.filter(|_| self.is_kept(digest)).ok_or_else(|| unknown_blob(repository, digest))
    }

    /// A blob, to be read.
    pub async fn read(&self, repository: &Repository, digest: &Digest) -> Result<(File, u64), Refused> {
        let size = self.blob(repository, digest).await?;
        let file = self.disk.read(digest).map_err(|error| match error.kind() {
            std::io::ErrorKind::NotFound => unknown_blob(repository, digest),
            _ => Refused::io("read a blob", &error),
        })?;
        Disk::mark_used(&file);
        Ok((file, size))
    }

    /// Begins an upload.
    pub async fn begin(self: &Arc<Self>, repository: &Repository, algorithm: Algorithm) -> Result<Growing, Refused> {
        let (own, of) = (self.clone(), repository.clone());
        aside(move || own.uploads.begin(&of, algorithm, &*own.clock)).await
    }

    /// A file that is there already becomes an upload: shared where it is on the same disk, else copied.
    pub async fn take_in(self: &Arc<Self>, repository: &Repository, file: PathBuf) -> Result<Growing, Refused> {
        let (own, of) = (self.clone(), repository.clone());
        aside(move || own.uploads.take_in(&of, &file, &*own.clock)).await
    }

    /// An upload that has begun, to go on with it.
    pub async fn upload(&self, repository: &Repository, id: &str) -> Result<Growing, Refused> {
        self.uploads.find(repository, id).await
    }

    /// A part of what comes, once there is room for it in memory: of all that come at once, so much waits to be written.
    pub async fn part(&self, bytes: Bytes) -> Result<Part, Refused> {
        self.metrics.received(bytes.len() as u64);
        let length = u32::try_from(bytes.len()).unwrap_or(u32::MAX).min(ROOM);
        let room = self.room.clone().acquire_many_owned(length).await;
        Ok(Part { bytes, room: room.map_err(|_| Refused::new(Code::Unknown, "the registry is about to end"))? })
    }

    /// Takes what comes, to its end.
    pub async fn receive(&self, growing: Growing, parts: mpsc::Receiver<Part>) -> Result<(Growing, Received), Refused> {
        growing.receive(parts, self.limits.max_blob, |_| {}).await
    }

    /// Gives an upload up.
    pub fn cancel(&self, mut growing: Growing) -> Result<(), Refused> {
        self.uploads.remove(&mut growing)
    }

    /// An upload becomes a blob of the repository, durably. One that has another digest, or did not get to the disk, is given up.
    pub async fn finish(
        self: &Arc<Self>,
        repository: &Repository,
        growing: Growing,
        digest: &Digest,
    ) -> Result<u64, Refused> {
        let (own, repository, digest) = (self.clone(), repository.clone(), digest.clone());
        // Whoever breaks off has not undone it.
        alone(async move {
            let size = own.finish_here(&repository, growing, &digest).await?;
            own.send_soon(&digest);
            Ok(size)
        })
        .await
    }

    // The same for what is nobody else's concern: a copy, or what another place has.
    async fn finish_here(
        self: &Arc<Self>,
        repository: &Repository,
        growing: Growing,
        digest: &Digest,
    ) -> Result<u64, Refused> {
        let wanted = digest.algorithm();
        let (mut growing, made) = aside(move || {
            let mut growing = growing;
            growing.digest(wanted).map(|made| (growing, made))
        })
        .await?;
        if made != *digest {
            self.uploads.remove(&mut growing)?;
            let why = format!("what came has the digest {made}, not {digest}");
            return Err(Refused::new(Code::DigestInvalid, why).about(digest.as_str()));
        }
        let size = growing.size();
        let coming = self.disk.coming(digest).await;
        let is_known = self.index.any_blob(digest)?.is_some() && self.disk.has(digest, size);
        let own = self.clone();
        // Some at a time: who waits for the disk is not to keep all else of the daemon waiting.
        let _turn = self.syncing.acquire().await;
        let coming = aside(move || {
            // From here on nobody goes on with it, whatever becomes of it.
            let upload = own.uploads.take(&mut growing)?;
            let kept = match is_known {
                true => Ok(()),
                false => upload.open().and_then(|file| {
                    let kept = own.disk.keep(&file, &upload.path, &coming);
                    kept.map_err(|error| Refused::io("keep a blob", &error))
                }),
            };
            // Gone, where it became the blob.
            let _ = disk::remove_file(&upload.path);
            kept.map(|()| coming)
        })
        .await?;
        fault::point("registry.before-index");
        let quota = self.quota_of(repository)?;
        self.index.add_blob(repository, digest, size, self.now(), quota).await?;
        drop(coming);
        if let Some(replica) = self.replica() {
            replica.count_here(size);
        }
        Ok(size)
    }

    /// A blob of one repository becomes one of another; false: the one has none such.
    pub async fn mount(&self, from: &Repository, to: &Repository, digest: &Digest) -> Result<bool, Refused> {
        if !self.is_kept(digest) {
            return Ok(false);
        }
        self.index.mount(from, to, digest, self.now(), self.quota_of(to)?).await
    }

    /// A blob is no more of a repository.
    pub async fn delete_blob(&self, repository: &Repository, digest: &Digest) -> Result<(), Refused> {
        self.index.delete_blob(repository, digest).await
    }

    /// A manifest.
    pub fn manifest(&self, repository: &Repository, reference: &Reference) -> Result<Found, Refused> {
        self.index.manifest(repository, reference)
    }

    /// A manifest with what is in it.
    pub fn content(&self, repository: &Repository, reference: &Reference) -> Result<(Found, Vec<u8>), Refused> {
        self.index.content(repository, reference)
    }

    /// Puts a manifest, with its tags, durably; its digest and its subject.
    pub async fn put_manifest(
        self: &Arc<Self>,
        repository: &Repository,
        reference: &Reference,
        mut tags: Vec<String>,
        content_type: Option<&str>,
        bytes: Vec<u8>,
    ) -> Result<(Digest, Option<Digest>), Refused> {
        self.index.may_write()?;
        let manifest = Manifest::read(content_type, &bytes)?;
        let digest = match reference {
            Reference::Digest(said) => {
                let made = Digest::of(said.algorithm(), &bytes);
                if made != *said {
                    let why = format!("what came has the digest {made}, not {said}");
                    return Err(Refused::new(Code::DigestInvalid, why).about(said.as_str()));
                }
                made
            }
            Reference::Tag(tag) => {
                tags.push(tag.clone());
                Digest::of(Algorithm::Sha256, &bytes)
            }
        };
        tags.iter().try_for_each(|tag| check_tag(tag))?;
        self.check_pushed(repository)?;
        self.check_files(repository, &manifest)?;
        let subject = manifest.subject.clone();
        let media_type = manifest.media_type.clone();
        let put = Put {
            repository: repository.clone(),
            digest: digest.clone(),
            tags: tags.clone(),
            bytes,
            manifest,
            at: self.now(),
            immutable: self.rules.immutable(repository.as_str()),
            cache_of: self.caches.over(repository).map(|(cache, _)| cache.settings.upstream.clone()),
        };
        let (own, made) = (self.clone(), digest.clone());
        // It is told also where nobody waits for the answer any more.
        alone(async move {
            let repository = put.repository.clone();
            own.put(put).await?;
            let told = if tags.is_empty() { vec![None] } else { tags.into_iter().map(Some).collect() };
            for tag in told {
                own.tell(true, &repository, tag, Some(made.clone()), media_type.clone());
            }
            Ok(())
        })
        .await?;
        Ok((digest, subject))
    }

    // Here, and where else it is to be before it is acknowledged.
    async fn put(self: &Arc<Self>, put: Put) -> Result<(), Refused> {
        let named = put.manifest.blobs.iter().filter(|named| !named.is_foreign);
        let mut missing: Vec<Digest> = named.map(|named| named.digest.clone()).collect();
        let hold = self.hold();
        for _ in 0..PUTS {
            self.all_there(missing).await?;
            missing = self.index.put_manifest(put.clone()).await?;
            if missing.is_empty() {
                return self.settled(hold).await;
            }
        }
        let why = format!("what {} names does not get to the registry's bucket", put.digest);
        Err(Refused::new(Code::Unknown, why).status_of(503))
    }

    /// A tag goes, or a manifest with all its tags.
    pub async fn delete_manifest(
        self: &Arc<Self>,
        repository: &Repository,
        reference: &Reference,
    ) -> Result<(), Refused> {
        let (own, repository, reference) = (self.clone(), repository.clone(), reference.clone());
        alone(async move { own.delete(&repository, &reference).await }).await
    }

    // A blob that was put aside is to come anew: whoever names it is told.
    fn check_files(&self, repository: &Repository, manifest: &Manifest) -> Result<(), Refused> {
        let needed = manifest.blobs.iter().filter(|named| !named.is_foreign);
        let lost: Vec<&Digest> = needed.map(|named| &named.digest).filter(|digest| !self.is_kept(digest)).collect();
        if lost.is_empty() {
            return Ok(());
        }
        let why = format!("{repository} has not {} of the blobs that it names", lost.len());
        let refused = Refused::new(Code::ManifestBlobUnknown, why);
        Err(lost.iter().fold(refused, |refused, digest| refused.about(digest.as_str())))
    }

    // Here, or at another place.
    fn is_kept(&self, digest: &Digest) -> bool {
        self.disk.is_there(digest) || self.is_elsewhere(digest)
    }

    // A copy counts for nobody.
    fn quota_of(&self, repository: &Repository) -> Result<Option<u64>, Refused> {
        let Some(quota) = self.rules.quota(repository.as_str()) else { return Ok(None) };
        Ok(if self.is_copied(repository)? { None } else { Some(quota) })
    }

    async fn delete(&self, repository: &Repository, reference: &Reference) -> Result<(), Refused> {
        let (immutable, hold) = (self.rules.immutable(repository.as_str()), self.hold());
        match reference {
            Reference::Tag(tag) => {
                self.index.delete_tag(repository, tag, immutable, None).await?;
                self.settled(hold).await?;
                self.tell(false, repository, Some(tag.clone()), None, String::new());
            }
            Reference::Digest(digest) => {
                self.index.delete_manifest(repository, digest, self.now(), immutable).await?;
                self.settled(hold).await?;
                self.tell(false, repository, None, Some(digest.clone()), String::new());
            }
        }
        Ok(())
    }

    // Nobody has to listen.
    fn tell(
        &self,
        is_pushed: bool,
        repository: &Repository,
        tag: Option<String>,
        digest: Option<Digest>,
        media_type: String,
    ) {
        let repository = repository.clone();
        let _ = self.happened.send(Happened { is_pushed, repository, tag, digest, media_type });
    }

    /// Tags of a repository in order, at most so many behind `last`.
    pub fn tags(&self, repository: &Repository, last: &str, most: usize) -> Result<Page, Refused> {
        self.index.tags(repository, last, most)
    }

    /// Repositories in order, at most so many behind `last`.
    pub fn repositories(&self, last: &str, most: usize) -> Result<Page, Refused> {
        self.index.repositories(last, most)
    }

    /// What says something of a subject.
    /// Those behind `last`; whether there are more.
    pub async fn referrers(
        self: &Arc<Self>,
        repository: &Repository,
        subject: &Digest,
        last: &str,
    ) -> Result<(Vec<Referrer>, bool), Refused> {
        let (own, repository, subject, last) = (self.clone(), repository.clone(), subject.clone(), last.to_owned());
        aside(move || own.index.referrers(&repository, &subject, &last)).await
    }

    /// How many repositories, manifests, tags and blobs there are.
    pub fn counts(&self) -> Result<[u64; 4], Refused> {
        self.index.counts()
    }
}

// Does something to its end, whether or not anybody waits for it.
async fn alone<T: Send + 'static>(
    work: impl Future<Output = Result<T, Refused>> + Send + 'static,
) -> Result<T, Refused> {
    tokio::spawn(work).await.unwrap_or_else(|_| Err(Refused::new(Code::Unknown, "the registry broke off")))
}

fn unknown_blob(repository: &Repository, digest: &Digest) -> Refused {
    Refused::new(Code::BlobUnknown, format!("there is no blob {digest} in {repository}")).about(digest.as_str())
}
