//! Blobs of an upstream: fetched once, however many wait, and served while they come. Of one that comes, the last byte is kept back until its
//! digest is known to be right.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::Stream;
use tokio::sync::{mpsc, watch};

use super::{Cache, MANY, count};
use crate::registry::digest::Digest;
use crate::registry::name::Repository;
use crate::registry::refused::{Code, Refused};
use crate::registry::upload::{Growing, Received};
use crate::registry::upstream::{Fault, LEAST, SILENCE, innermost};
use crate::registry::{ImageRegistry, unknown_blob};

/// How often an upstream is asked for the rest of a blob, without a byte of it, before that is given up; and how long between.
const ATTEMPTS: u32 = 4;
const PAUSE: Duration = Duration::from_millis(500);
/// What is read at a time, in bytes.
const PART: u64 = 512 * 1024;
/// Parts that wait to be written.
const WAITING: usize = 4;

/// Where a blob is read.
pub enum Content {
    /// From its file, with its bytes.
    Whole(File, u64),
    /// From one that grows.
    Coming(Arc<Fetch>),
}

impl Content {
    /// Bytes of all of it.
    pub fn size(&self) -> u64 {
        match self {
            Content::Whole(_, size) => *size,
            Content::Coming(fetch) => fetch.size,
        }
    }
}

impl Content {
    /// It, a part after the other.
    pub fn parts(self) -> impl Stream<Item = io::Result<Bytes>> + Send + 'static {
        let size = self.size();
        let (file, fetch) = match self {
            Content::Whole(file, _) => (Arc::new(file), None),
            Content::Coming(fetch) => (fetch.file(), Some(fetch)),
        };
        futures_util::stream::try_unfold(0, move |at| {
            let (file, fetch) = (file.clone(), fetch.clone());
            async move {
                if at >= size {
                    return Ok(None);
                }
                let until = match &fetch {
                    None => size,
                    Some(fetch) => fetch.until(at).await?,
                };
                let end = (at + PART).min(until);
                let read = move || {
                    let mut bytes = vec![0; (end - at) as usize];
                    file.read_exact_at(&mut bytes, at)?;
                    Ok::<_, io::Error>(Bytes::from(bytes))
                };
                let bytes = tokio::task::spawn_blocking(read).await.map_err(io::Error::other)??;
                Ok(Some((bytes, end)))
            }
        })
    }
}

/// How far a blob has come.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Arrived {
    /// So many bytes.
    Part(u64),
    /// All, and it is what it is called after.
    Whole,
    /// It will not come.
    Failed(Refused),
}

/// A blob that comes.
pub struct Fetch {
    /// Bytes, when it is all there.
    pub size: u64,
    file: Arc<File>,
    arrived: watch::Receiver<Arrived>,
}

impl Fetch {
    /// Its file.
    pub fn file(&self) -> Arc<File> {
        self.file.clone()
    }

    // Waits until the first of it is there, or is known not to come: nothing is said to clients before.
    async fn begun(&self) -> Result<(), Refused> {
        let mut arrived = self.arrived.clone();
        let seen = arrived.wait_for(|arrived| *arrived != Arrived::Part(0)).await;
        match seen.as_deref() {
            Ok(Arrived::Failed(refused)) => Err(refused.clone()),
            Ok(_) => Ok(()),
            Err(_) => Err(Refused::new(Code::Unknown, "the registry broke off")),
        }
    }

    /// Waits until something behind that byte can be read; up to which byte.
    pub async fn until(&self, byte: u64) -> io::Result<u64> {
        let mut arrived = self.arrived.clone();
        let readable = |arrived: &Arrived| match arrived {
            Arrived::Part(bytes) => Some((*bytes).min(self.size.saturating_sub(1))),
            Arrived::Whole => Some(self.size),
            Arrived::Failed(_) => None,
        };
        let seen = arrived.wait_for(|arrived| readable(arrived).is_none_or(|until| until > byte)).await;
        let gone = || io::Error::other("the registry broke off");
        let seen = seen.map_err(|_| gone())?;
        readable(&seen).ok_or_else(|| io::Error::other("the blob did not come"))
    }
}

// A blob that is fetched.
struct Wanted {
    cache: Arc<Cache>,
    repository: Repository,
    // What that is called at the upstream.
    name: Repository,
    digest: Digest,
    size: u64,
    told: watch::Sender<Arrived>,
}

impl ImageRegistry {
    /// A blob's bytes, as `blob` says them, also of one that is to be fetched first.
    pub async fn size_of(&self, repository: &Repository, digest: &Digest) -> Result<u64, Refused> {
        match self.blob(repository, digest).await {
            Err(refused) if refused.code == Code::BlobUnknown => {}
            other => return other,
        }
        let (cache, name) = self.answers(repository)?.ok_or_else(|| unknown_blob(repository, digest))?;
        self.size_upstream(&cache, repository, &name, digest).await
    }

    /// A blob, to be read, also one that is to be fetched first.
    pub async fn open_blob(self: &Arc<Self>, repository: &Repository, digest: &Digest) -> Result<Content, Refused> {
        let unknown = match self.read(repository, digest).await {
            Ok((file, size)) => {
                if let Some((cache, _)) = self.caches.over(repository) {
                    count(&cache.counts.hits, 1);
                }
                return Ok(Content::Whole(file, size));
            }
            Err(refused) if refused.code == Code::BlobUnknown => refused,
            Err(refused) => return Err(refused),
        };
        let Some((cache, name)) = self.answers(repository)? else { return Err(unknown) };
        if let Some(fault @ Fault::Limited(..)) = cache.is_resting() {
            return Err(fault.refused(Code::BlobUnknown));
        }
        // Another repository has it already, a manifest of this one names it, and the upstream says that it is there: whoever may pull here
        // is not to get by that what is elsewhere only.
        if self.disk.is_there(digest)
            && self.index.named_size(repository, digest)?.is_some()
            && cache
                .upstream
                .size(&name, digest, self.login(&cache.upstream.place.registry).await.as_ref())
                .await
                .is_ok()
            && self.index.adopt(repository, digest, self.now()).await?
        {
            count(&cache.counts.hits, 1);
            return self.read(repository, digest).await.map(|(file, size)| Content::Whole(file, size));
        }
        let size = self.size_upstream(&cache, repository, &name, digest).await?;
        if size > self.limits().max_blob {
            let why = format!("the blob has {size} bytes, and {} are taken at most", self.limits().max_blob);
            return Err(Refused::new(Code::SizeInvalid, why).about(digest.as_str()).status_of(502));
        }
        let key = (repository.clone(), digest.clone());
        let mut fetching = cache.fetching.lock().await;
        if let Some(fetch) = fetching.get(&key).cloned() {
            drop(fetching);
            fetch.begun().await?;
            return Ok(Content::Coming(fetch));
        }
        if fetching.len() >= MANY {
            return Err(Refused::new(Code::TooManyRequests, format!("{MANY} blobs are being fetched")));
        }
        // It may have come to its end meanwhile.
        if let Ok((file, size)) = self.read(repository, digest).await {
            return Ok(Content::Whole(file, size));
        }
        let growing = self.begin(repository, digest.algorithm()).await?;
        let file = growing.reader().map_err(|error| Refused::io("read an upload", &error))?;
        let (sender, arrived) = watch::channel(Arrived::Part(0));
        let fetch = Arc::new(Fetch { size, file: Arc::new(file), arrived });
        fetching.insert(key.clone(), fetch.clone());
        drop(fetching);
        count(&cache.counts.misses, 1);
        let wanted = Wanted {
            cache: cache.clone(),
            repository: repository.clone(),
            name,
            digest: digest.clone(),
            size,
            told: sender,
        };
        let own = self.clone();
        // In a task of its own: whatever becomes of it, nobody waits for it for ever.
        let work = tokio::spawn(async move {
            let arrived = match own.fetch_all(&wanted, growing).await {
                Ok(()) => Arrived::Whole,
                Err(refused) => {
                    let Wanted { repository, digest, .. } = &wanted;
                    tracing::warn!(%repository, %digest, why = refused.why, "a blob did not come from its upstream");
                    Arrived::Failed(refused)
                }
            };
            wanted.told.send_replace(arrived);
        });
        tokio::spawn(async move {
            let _ = work.await;
            cache.fetching.lock().await.remove(&key);
        });
        fetch.begun().await?;
        Ok(Content::Coming(fetch))
    }

    // What a manifest says that names it, or else the upstream. Nothing is fetched for a repository that might be somebody's own.
    async fn size_upstream(
        &self,
        cache: &Cache,
        repository: &Repository,
        name: &Repository,
        digest: &Digest,
    ) -> Result<u64, Refused> {
        if let Some(size) = self.index.named_size(repository, digest)? {
            return Ok(size);
        }
        if cache.prefix.is_empty() {
            return Err(unknown_blob(repository, digest));
        }
        let asked = cache.upstream.size(name, digest, self.login(&cache.upstream.place.registry).await.as_ref()).await;
        let size = asked.map_err(|fault| {
            cache.heard(Some(&fault));
            fault.refused(Code::BlobUnknown)
        })?;
        let unsaid = || Refused::new(Code::Unknown, "the upstream does not say how large the blob is").status_of(502);
        size.ok_or_else(unsaid)
    }

    async fn fetch_all(self: &Arc<Self>, wanted: &Wanted, mut growing: Growing) -> Result<(), Refused> {
        let Wanted { cache, repository, digest, .. } = wanted;
        let size = wanted.size;
        let _turn = cache.turns.acquire().await;
        let (mut left, id) = (ATTEMPTS, growing.id().to_owned());
        while growing.size() < size || left == ATTEMPTS {
            let before = growing.size();
            let fault;
            match self.fetch_rest(wanted, growing).await {
                Ok((grown, why)) => (growing, fault) = (grown, why),
                Err(refused) => {
                    if let Ok(growing) = self.upload(repository, &id).await {
                        self.cancel(growing)?;
                    }
                    return Err(refused);
                }
            }
            if growing.size() >= size {
                break;
            }
            let fault = fault.unwrap_or_else(|| Fault::Down(format!("{} sent too little", cache.settings.upstream)));
            left = if growing.size() > before { ATTEMPTS - 1 } else { left - 1 };
            let is_final = matches!(fault, Fault::Missing(_) | Fault::Denied(_) | Fault::Limited(..));
            if left == 0 || is_final {
                cache.heard(Some(&fault));
                self.cancel(growing)?;
                return Err(fault.refused(Code::BlobUnknown));
            }
            tokio::time::sleep(PAUSE).await;
        }
        self.finish(repository, growing, digest).await.map(drop)
    }

    // As much as comes, and why it was no more.
    async fn fetch_rest(&self, wanted: &Wanted, growing: Growing) -> Result<(Growing, Option<Fault>), Refused> {
        let Wanted { cache, name, digest, size, told, .. } = wanted;
        let from = growing.size();
        let login = self.login(&cache.upstream.place.registry).await;
        let (mut answer, is_rest) = match cache.upstream.blob(name, digest, from, login.as_ref()).await {
            Ok(answer) => answer,
            Err(fault) => return Ok((growing, Some(fault))),
        };
        // What is here already is not written once more.
        let mut skip = if is_rest { 0 } else { from };
        let (sender, parts) = mpsc::channel(WAITING);
        let who = &cache.upstream.place.registry;
        let (began, mut bytes) = (tokio::time::Instant::now(), 0_u64);
        let send = async move {
            loop {
                let chunk = match tokio::time::timeout(SILENCE, answer.chunk()).await {
                    Ok(Ok(Some(chunk))) => chunk,
                    Ok(Ok(None)) => return Ok(None),
                    Ok(Err(error)) => return Ok(Some(Fault::Down(format!("{who} broke off: {}", innermost(&error))))),
                    Err(_) => return Ok(Some(Fault::Down(format!("{who} broke off")))),
                };
                bytes += chunk.len() as u64;
                if began.elapsed() > SILENCE && bytes / began.elapsed().as_secs().max(1) < LEAST {
                    return Ok(Some(Fault::Down(format!("{who} sends less than {LEAST} bytes a second"))));
                }
                let known = (skip as usize).min(chunk.len());
                skip -= known as u64;
                let chunk = chunk.slice(known..);
                if chunk.is_empty() {
                    continue;
                }
                count(&cache.counts.fetched, chunk.len() as u64);
                if sender.send(self.part(chunk).await?).await.is_err() {
                    return Ok(None);
                }
            }
        };
        let tell = |bytes| _ = told.send_replace(Arrived::Part(bytes));
        let most = (*size).min(self.limits().max_blob);
        let (received, sent) = tokio::join!(growing.receive(parts, most, tell), send);
        let ((growing, received), fault) = (received?, sent?);
        match received {
            Received::All => Ok((growing, fault)),
            Received::TooMuch => {
                let why = format!("{who} sent more than the {most} bytes that the blob has");
                Err(Refused::new(Code::SizeInvalid, why).about(digest.as_str()).status_of(502))
            }
        }
    }
}
