//! Blobs of an upstream: fetched once, however many wait, and served while they come. Of one that comes, the last byte is kept back until its
//! digest is known to be right.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::stream::BoxStream;
use futures_util::{Stream, StreamExt, TryStreamExt};
use tokio::sync::{Semaphore, mpsc, watch};

use super::{Cache, Fetching, MANY, count};
use crate::registry::digest::Digest;
use crate::registry::name::Repository;
use crate::registry::refused::{Code, Refused};
use crate::registry::replica::Replica;
use crate::registry::upload::{Growing, Received};
use crate::registry::upstream::{Fault, LEAST, SILENCE, innermost};
use crate::registry::{ImageRegistry, alone, unknown_blob};

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

    // Waits until it is all there.
    async fn ended(&self) -> Result<(), Refused> {
        let mut arrived = self.arrived.clone();
        let seen = arrived.wait_for(|arrived| !matches!(arrived, Arrived::Part(_))).await;
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

// Where a blob is fetched from.
#[derive(Clone)]
enum Source {
    // What the repository is called at the upstream.
    Upstream(Arc<Cache>, Repository),
    // The other place at which the registry is kept.
    Replica(Arc<Replica>),
}

impl Source {
    fn fetching(&self) -> &Fetching {
        match self {
            Source::Upstream(cache, _) => &cache.fetching,
            Source::Replica(replica) => &replica.fetching,
        }
    }

    fn turns(&self) -> &Semaphore {
        match self {
            Source::Upstream(cache, _) => &cache.turns,
            Source::Replica(replica) => &replica.fetch_turns,
        }
    }

    fn who(&self) -> &str {
        match self {
            Source::Upstream(cache, _) => &cache.upstream.place.registry,
            Source::Replica(replica) => replica.place(),
        }
    }

    fn heard(&self, fault: &Fault) {
        if let Source::Upstream(cache, _) = self {
            cache.heard(Some(fault));
        }
    }

    fn count(&self, bytes: u64) {
        match self {
            Source::Upstream(cache, _) => count(&cache.counts.fetched, bytes),
            Source::Replica(replica) => replica.count_fetched(bytes),
        }
    }

    // It from that byte on; whether that is what comes: else it is all of it.
    async fn open(&self, registry: &ImageRegistry, digest: &Digest, from: u64) -> Result<(Chunks, bool), Fault> {
        match self {
            Source::Upstream(cache, name) => {
                let login = registry.login(&cache.upstream.place.registry).await;
                let (answer, is_rest) = cache.upstream.blob(name, digest, from, login.as_ref()).await?;
                let who = self.who().to_owned();
                let chunks = futures_util::stream::try_unfold(answer, move |mut answer| {
                    let who = who.clone();
                    async move {
                        match tokio::time::timeout(SILENCE, answer.chunk()).await {
                            Ok(Ok(chunk)) => Ok(chunk.map(|chunk| (chunk, answer))),
                            Ok(Err(error)) => Err(Fault::Down(format!("{who} broke off: {}", innermost(&error)))),
                            Err(_) => Err(Fault::Down(format!("{who} broke off"))),
                        }
                    }
                });
                Ok((chunks.boxed(), is_rest))
            }
            Source::Replica(replica) => {
                let none = || Fault::Missing(format!("{} has no blob {digest}", self.who()));
                let object = registry.index.object(digest).map_err(|refused| Fault::Down(refused.why))?;
                match replica.open(digest, &object.ok_or_else(none)?, from).await {
                    Ok(chunks) => Ok((chunks.ok_or_else(none)?.map_err(|down| Fault::Down(down.0)).boxed(), true)),
                    Err(down) => Err(Fault::Down(down.0)),
                }
            }
        }
    }
}

type Chunks = BoxStream<'static, Result<Bytes, Fault>>;

// A blob that is fetched.
struct Wanted {
    source: Source,
    repository: Repository,
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
        if let Some(replica) = self.replica()
            && let Ok(size) = self.blob(repository, digest).await
        {
            return self.fetch(Source::Replica(replica), repository, digest, size).await;
        }
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
        self.fetch(Source::Upstream(cache, name), repository, digest, size).await
    }

    /// A blob, to be read, once all of it is here.
    pub async fn whole_blob(
        self: &Arc<Self>,
        repository: &Repository,
        digest: &Digest,
    ) -> Result<(File, u64), Refused> {
        match self.open_blob(repository, digest).await? {
            Content::Whole(file, size) => Ok((file, size)),
            Content::Coming(fetch) => {
                fetch.ended().await?;
                // As it came, whatever has become of it: by a place in it of its own.
                let again = File::open(format!("/proc/self/fd/{}", fetch.file.as_raw_fd()));
                let file = again.map_err(|error| Refused::io("read a blob", &error))?;
                Ok((file, fetch.size))
            }
        }
    }

    async fn fetch(
        self: &Arc<Self>,
        source: Source,
        repository: &Repository,
        digest: &Digest,
        size: u64,
    ) -> Result<Content, Refused> {
        let key = (repository.clone(), digest.clone());
        let mut fetching = source.fetching().lock().await;
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
        if let Source::Upstream(cache, _) = &source {
            count(&cache.counts.misses, 1);
        }
        let (of, repository, digest) = (source.clone(), repository.clone(), digest.clone());
        let wanted = Wanted { source, repository, digest, size, told: sender };
        let own = self.clone();
        // In a task of its own: whatever becomes of it, nobody waits for it for ever.
        let work = tokio::spawn(async move {
            let arrived = match own.fetch_all(&wanted, growing).await {
                Ok(()) => Arrived::Whole,
                Err(refused) => {
                    own.disbelieve(&wanted, &refused).await;
                    let Wanted { repository, digest, .. } = &wanted;
                    tracing::warn!(%repository, %digest, why = refused.why, from = wanted.source.who(), "a blob did not come");
                    Arrived::Failed(refused)
                }
            };
            wanted.told.send_replace(arrived);
        });
        tokio::spawn(async move {
            let _ = work.await;
            of.fetching().lock().await.remove(&key);
        });
        fetch.begun().await?;
        Ok(Content::Coming(fetch))
    }

    // What is there is not what it is called after, or is not there: it comes anew with the next push.
    async fn disbelieve(&self, wanted: &Wanted, refused: &Refused) {
        let is_wrong = matches!(refused.code, Code::DigestInvalid | Code::SizeInvalid | Code::BlobUnknown);
        if let (Source::Replica(_), true) = (&wanted.source, is_wrong)
            && let Ok(Some(object)) = self.index.object(&wanted.digest)
            && let Err(refused) = self.index.lost_replica(&wanted.digest, &object).await
        {
            tracing::warn!(why = refused.why, "a blob that is not in the bucket is thought to be there");
        }
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
        let Wanted { source, repository, digest, .. } = wanted;
        let size = wanted.size;
        let _turn = source.turns().acquire().await;
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
            let fault = fault.unwrap_or_else(|| Fault::Down(format!("{} sent too little", source.who())));
            left = if growing.size() > before { ATTEMPTS - 1 } else { left - 1 };
            let is_final = matches!(fault, Fault::Missing(_) | Fault::Denied(_) | Fault::Limited(..));
            if left == 0 || is_final {
                source.heard(&fault);
                self.cancel(growing)?;
                return Err(fault.refused(Code::BlobUnknown));
            }
            tokio::time::sleep(PAUSE).await;
        }
        let (own, repository, digest) = (self.clone(), repository.clone(), digest.clone());
        alone(async move { own.finish_here(&repository, growing, &digest).await.map(drop) }).await
    }

    // As much as comes, and why it was no more.
    async fn fetch_rest(&self, wanted: &Wanted, growing: Growing) -> Result<(Growing, Option<Fault>), Refused> {
        let Wanted { source, digest, size, told, .. } = wanted;
        let from = growing.size();
        let (mut chunks, is_rest) = match source.open(self, digest, from).await {
            Ok(answer) => answer,
            Err(fault) => return Ok((growing, Some(fault))),
        };
        // What is here already is not written once more.
        let mut skip = if is_rest { 0 } else { from };
        let (sender, parts) = mpsc::channel(WAITING);
        let who = source.who();
        let (began, mut bytes) = (tokio::time::Instant::now(), 0_u64);
        let send = async move {
            loop {
                let chunk = match chunks.try_next().await {
                    Ok(Some(chunk)) => chunk,
                    Ok(None) => return Ok(None),
                    Err(fault) => return Ok(Some(fault)),
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
                source.count(chunk.len() as u64);
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
