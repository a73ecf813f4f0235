//! Copies an image from one registry to another, or within this one: what it is made of, and then itself, byte for byte.

use std::collections::{BTreeSet, HashSet};
use std::sync::Arc;

use bytes::Bytes;
use futures_util::stream::BoxStream;
use futures_util::{StreamExt, TryStreamExt};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use tokio::sync::mpsc;

use super::digest::Digest;
use super::manifest::{Manifest, Named};
use super::name::{self, Reference, Repository};
use super::refused::{Code, Refused};
use super::upload::Received;
use super::upstream::place::Place;
use super::upstream::{Fault, LEAST, SILENCE, Upstream, innermost};
use super::{ImageRegistry, Part};
use crate::model::registry::Login;
use crate::model::{Error, Result as ModelResult};

/// Most manifests of one image.
const MANIFESTS: usize = 1000;
/// What those take altogether, in bytes.
const BYTES: usize = 64 << 20;
/// Parts that wait to be written.
const WAITING: usize = 4;

/// What is copied.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct CopyAsk {
    /// The image: `shop/api:1.0` of the cluster's registry, or one of another, `docker.io/library/nginx:1.27`.
    pub from: String,
    /// Its new name; the tag is that of the image where none is said.
    pub to: String,
    /// Of an index only the image for this platform: `linux/arm64`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub platform: Option<String>,
}

/// How far a copy is.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Copied {
    /// Blobs that are there.
    pub blobs: u64,
    /// Of so many.
    pub of: u64,
    /// Bytes that are there.
    pub size: u64,
    /// Of so many.
    pub of_size: u64,
    /// What was sent of that, in bytes: the rest was there already.
    pub sent: u64,
    /// The manifest, once it is there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub digest: Option<String>,
    /// Whether that was all.
    pub done: bool,
}

/// One side.
pub(super) enum End {
    Own(Repository),
    Other(Box<Upstream>, Repository, Option<Login>),
}

/// A manifest on its way.
pub(super) struct Carried {
    pub digest: Digest,
    pub media_type: String,
    pub bytes: Vec<u8>,
    pub manifest: Manifest,
}

fn told(fault: &Fault) -> Refused {
    fault.refused(Code::ManifestUnknown)
}

// Whether a name says which tag or manifest is meant.
fn has_reference(text: &str) -> bool {
    let last = text.rsplit('/').next().unwrap_or_default();
    last.contains([':', '@'])
}

impl End {
    pub(super) async fn manifest(&self, own: &Arc<ImageRegistry>, reference: &Reference) -> Result<Carried, Refused> {
        let (digest, media_type, bytes) = match self {
            End::Own(repository) => {
                own.freshen(repository, reference).await?;
                let (found, bytes) = own.content(repository, reference)?;
                (found.digest, Some(found.media_type), bytes)
            }
            End::Other(upstream, repository, login) => {
                let fetched = upstream.manifest(repository, reference, login.as_ref()).await;
                let fetched = fetched.map_err(|fault| told(&fault))?;
                (fetched.digest, fetched.media_type, fetched.bytes)
            }
        };
        let manifest = Manifest::read(media_type.as_deref(), &bytes)?;
        Ok(Carried { digest, media_type: manifest.media_type.clone(), bytes, manifest })
    }

    async fn has(&self, own: &Arc<ImageRegistry>, digest: &Digest) -> Result<bool, Refused> {
        match self {
            End::Own(repository) => match own.blob(repository, digest).await {
                Ok(_) => Ok(true),
                Err(refused) if refused.code == Code::BlobUnknown => Ok(false),
                Err(refused) => Err(refused),
            },
            End::Other(upstream, repository, login) => {
                upstream.has(repository, digest, login.as_ref()).await.map_err(|fault| told(&fault))
            }
        }
    }

    async fn blob(&self, own: &Arc<ImageRegistry>, named: &Named) -> Result<Parts, Refused> {
        match self {
            End::Own(repository) => Ok(own.open_blob(repository, &named.digest).await?.parts().boxed()),
            End::Other(upstream, repository, login) => {
                let answer = upstream.blob(repository, &named.digest, 0, login.as_ref()).await;
                let (answer, _) = answer.map_err(|fault| told(&fault))?;
                let failed = |error: reqwest::Error| std::io::Error::other(innermost(&error));
                Ok(in_time(answer.bytes_stream().map_err(failed).boxed()).boxed())
            }
        }
    }

    async fn put(&self, own: &Arc<ImageRegistry>, reference: &Reference, carried: Carried) -> Result<(), Refused> {
        match self {
            End::Own(repository) => {
                let kind = Some(carried.media_type.as_str());
                own.put_manifest(repository, reference, Vec::new(), kind, carried.bytes).await.map(drop)
            }
            End::Other(upstream, repository, login) => {
                let Carried { media_type, bytes, .. } = carried;
                let pushed = upstream.push_manifest(repository, reference, &media_type, bytes, login.as_ref()).await;
                pushed.map_err(|fault| told(&fault))
            }
        }
    }
}

type Parts = BoxStream<'static, std::io::Result<Bytes>>;

// What comes, as long as something does, and not too little.
fn in_time(parts: Parts) -> impl futures_util::Stream<Item = std::io::Result<Bytes>> + Send + 'static {
    let slow = || std::io::Error::new(std::io::ErrorKind::TimedOut, "it sends nothing more, or too little");
    let state = (parts, tokio::time::Instant::now(), 0_u64);
    futures_util::stream::try_unfold(state, move |(mut parts, began, bytes)| async move {
        let Some(part) = tokio::time::timeout(SILENCE, parts.next()).await.map_err(|_| slow())? else {
            return Ok(None);
        };
        let part = part?;
        let bytes = bytes + part.len() as u64;
        if began.elapsed() > SILENCE && bytes / began.elapsed().as_secs().max(1) < LEAST {
            return Err(slow());
        }
        Ok(Some((part, (parts, began, bytes))))
    })
}

impl ImageRegistry {
    pub(super) async fn end(&self, text: &str) -> ModelResult<(End, Reference)> {
        let Some((host, rest)) = name::elsewhere(text) else {
            let (repository, reference) = name::image(text).map_err(Refused::into_error)?;
            return Ok((End::Own(repository), reference));
        };
        let (name, reference) = name::image(rest).map_err(Refused::into_error)?;
        let upstream = Upstream::new(Place::read(&host)?, false)?;
        let repository = upstream.place.repository(name.as_str()).map_err(Refused::into_error)?;
        let login = self.login_at(&upstream.place).await;
        Ok((End::Other(Box::new(upstream), repository, login), reference))
    }

    /// Copies an image; `told` hears how far it is.
    pub async fn copy(self: &Arc<Self>, ask: CopyAsk, told: impl Fn(&Copied) + Send + Sync) -> ModelResult<Copied> {
        let _turn = self.copying.acquire().await;
        let (from, wanted) = self.end(&ask.from).await?;
        let (to, mut reference) = self.end(&ask.to).await?;
        if !has_reference(&ask.to) {
            reference = wanted.clone();
        }
        let copied = self.copy_all(&from, &wanted, &to, reference, ask.platform.as_deref(), &told).await;
        copied.map_err(|refused| {
            let error = refused.into_error();
            Error::new(
                error.kind,
                format!("copy of {} to {}", ask.from, ask.to),
                format!("{}: {}", error.subject, error.message),
            )
        })
    }

    async fn copy_all(
        self: &Arc<Self>,
        from: &End,
        wanted: &Reference,
        to: &End,
        reference: Reference,
        platform: Option<&str>,
        told: &(impl Fn(&Copied) + Send + Sync),
    ) -> Result<Copied, Refused> {
        let mut top = from.manifest(self, wanted).await?;
        if let Some(platform) = platform {
            let child = for_platform(&top.bytes, platform)?;
            if let Some(child) = child {
                top = from.manifest(self, &Reference::Digest(child)).await?;
            }
        }
        if let (Reference::Digest(said), false) = (&reference, reference.as_str() == top.digest.as_str()) {
            let why = format!("the image is {}, and is to be called {said}", top.digest);
            return Err(Refused::new(Code::DigestInvalid, why));
        }
        let digest = top.digest.clone();
        let all = self.gather(from, top).await?;
        let mut copied = self.carry_all(from, to, &all, told).await?;
        // What an index holds comes before it.
        let last = all.len().saturating_sub(1);
        for (number, carried) in all.into_iter().enumerate() {
            let own = Reference::Digest(carried.digest.clone());
            to.put(self, if number == last { &reference } else { &own }, carried).await?;
        }
        copied.digest = Some(digest.to_string());
        copied.done = true;
        Ok(copied)
    }

    /// The blobs of manifests, each once; `told` hears how far it is.
    pub(super) async fn carry_all(
        self: &Arc<Self>,
        from: &End,
        to: &End,
        all: &[Carried],
        told: &(impl Fn(&Copied) + Send + Sync),
    ) -> Result<Copied, Refused> {
        let mut seen = BTreeSet::new();
        let blobs: Vec<Named> = all
            .iter()
            .flat_map(|carried| &carried.manifest.blobs)
            .filter(|named| !named.is_foreign && seen.insert(named.digest.clone()))
            .cloned()
            .collect();
        let of_size = blobs.iter().map(|named| named.size).fold(0, u64::saturating_add);
        let mut copied = Copied { of: blobs.len() as u64, of_size, ..Copied::default() };
        for named in blobs {
            if !to.has(self, &named.digest).await? && self.carry(from, to, &named, &copied, told).await? {
                copied.sent = copied.sent.saturating_add(named.size);
            }
            copied.blobs += 1;
            copied.size = copied.size.saturating_add(named.size);
            told(&copied);
        }
        Ok(copied)
    }

    // A manifest with all that it holds, each behind what it holds itself.
    async fn gather(self: &Arc<Self>, from: &End, top: Carried) -> Result<Vec<Carried>, Refused> {
        let (mut found, mut seen, mut bytes) = (Vec::new(), HashSet::new(), 0);
        seen.insert(top.digest.clone());
        // Each with how many of those that it holds were looked at.
        let mut open = vec![(top, 0)];
        while let Some((carried, at)) = open.last_mut() {
            match carried.manifest.manifests.get(*at) {
                Some(named) => {
                    *at += 1;
                    if named.is_foreign || !seen.insert(named.digest.clone()) {
                        continue;
                    }
                    let held = from.manifest(self, &Reference::Digest(named.digest.clone())).await?;
                    bytes += held.bytes.len();
                    if seen.len() > MANIFESTS || bytes > BYTES {
                        let why = format!("it holds more than {MANIFESTS} manifests, or {} MiB of them", BYTES >> 20);
                        return Err(Refused::new(Code::ManifestInvalid, why));
                    }
                    open.push((held, 0));
                }
                None => found.extend(open.pop().map(|(carried, _)| carried)),
            }
        }
        Ok(found)
    }

    // A blob; whether it was sent.
    async fn carry(
        self: &Arc<Self>,
        from: &End,
        to: &End,
        named: &Named,
        before: &Copied,
        told: &(impl Fn(&Copied) + Send + Sync),
    ) -> Result<bool, Refused> {
        if let (End::Own(source), End::Own(target)) = (from, to)
            && self.mount(source, target, &named.digest).await?
        {
            return Ok(false);
        }
        let parts = from.blob(self, named).await?;
        match to {
            End::Own(repository) => {
                let (mut so_far, before) = (0, before.clone());
                let counted = parts.inspect_ok(move |part| {
                    so_far += part.len() as u64;
                    told(&Copied { size: before.size.saturating_add(so_far), ..before.clone() });
                });
                self.take(repository, named, counted).await.map(|()| true)
            }
            End::Other(upstream, repository, login) => {
                // Its way is told of by what is read.
                let (sender, mut read) = mpsc::unbounded_channel();
                let parts = parts.inspect_ok(move |part| _ = sender.send(part.len() as u64));
                let pushing = upstream.push_blob(repository, &named.digest, named.size, parts, login.as_ref());
                tokio::pin!(pushing);
                let mut so_far = 0;
                loop {
                    tokio::select! {
                        pushed = &mut pushing => {
                            return pushed.map(|()| true).map_err(|fault| fault.refused(Code::BlobUnknown));
                        }
                        Some(length) = read.recv() => {
                            so_far += length;
                            told(&Copied { size: before.size.saturating_add(so_far), ..before.clone() });
                        }
                    }
                }
            }
        }
    }

    /// A blob of a repository of ours, from what comes.
    pub(super) async fn take(
        self: &Arc<Self>,
        repository: &Repository,
        named: &Named,
        parts: impl futures_util::Stream<Item = std::io::Result<Bytes>> + Send,
    ) -> Result<(), Refused> {
        self.check_pushed(repository)?;
        let growing = self.begin(repository, named.digest.algorithm()).await?;
        let id = growing.id().to_owned();
        let (sender, received) = mpsc::channel::<Part>(WAITING);
        let send = async move {
            tokio::pin!(parts);
            while let Some(part) = parts.next().await {
                let broke = |error: std::io::Error| {
                    Refused::new(Code::Unknown, format!("the source broke off: {error}")).status_of(502)
                };
                if sender.send(self.part(part.map_err(broke)?).await?).await.is_err() {
                    break;
                }
            }
            Ok::<(), Refused>(())
        };
        let (received, sent) = tokio::join!(self.receive(growing, received), send);
        let kept = match (received, sent) {
            (Ok((growing, Received::All)), Ok(())) => {
                return self.finish(repository, growing, &named.digest).await.map(drop);
            }
            (Ok((_, Received::TooMuch)), _) => {
                Err(Refused::new(Code::SizeInvalid, "a blob is too large").status_of(413))
            }
            (Ok(_), Err(refused)) | (Err(refused), _) => Err(refused),
        };
        if let Ok(growing) = self.upload(repository, &id).await {
            self.cancel(growing)?;
        }
        kept
    }
}

/// The image of an index for a platform; nothing where it is no index.
pub(super) fn for_platform(bytes: &[u8], wanted: &str) -> Result<Option<Digest>, Refused> {
    let unreadable = |error: serde_json::Error| Refused::new(Code::ManifestInvalid, error.to_string());
    let manifest: Value = serde_json::from_slice(bytes).map_err(unreadable)?;
    let Some(all) = manifest["manifests"].as_array() else { return Ok(None) };
    let of = |one: &Value| {
        let platform = &one["platform"];
        let words = [&platform["os"], &platform["architecture"], &platform["variant"]];
        words.iter().filter_map(|word| word.as_str()).collect::<Vec<_>>().join("/")
    };
    let exact = all.iter().find(|one| of(one) == wanted);
    // `linux/arm64` is also `linux/arm64/v8`.
    let found = exact.or_else(|| all.iter().find(|one| of(one).starts_with(&format!("{wanted}/"))));
    let digest = found.and_then(|one| one["digest"].as_str()).ok_or_else(|| {
        let known: Vec<String> = all.iter().map(of).filter(|platform| !platform.is_empty()).collect();
        Refused::new(
            Code::ManifestUnknown,
            format!("there is no image for {wanted:.40?}; there are {}", known.join(", ")),
        )
    })?;
    digest.parse().map(Some)
}
