//! The image registry as `trait Cluster` has it, and what happens there as events.

use std::sync::Arc;

use async_trait::async_trait;
use serde_json::Value;

use super::asked::channel;
use super::{Message, Parts, Runtime, logins};
use crate::client::Stream1;
use crate::client::images::{
    CacheInfo, CacheSettings, ImageInfo, ImagePart, ImageReferrer, ImageRepository, ImageTag, Images, ImagesCollected,
    ImagesScrubbed,
};
use crate::model::clock::Timestamp;
use crate::model::event::{AboutImage, What};
use crate::model::registry::Login;
use crate::model::{Error, Kind, Result};
use crate::registry::cache::Logins;
use crate::registry::describe::{Described, Scrubbed};
use crate::registry::digest::Digest;
use crate::registry::name::{self, Repository};
use crate::registry::refused::Refused;
use crate::registry::{Collected, Happened, ImageRegistry};
use crate::scheduler::world::Note;

impl Runtime {
    /// This daemon keeps the cluster's images.
    pub fn serve_images(&self, registry: Arc<ImageRegistry>) {
        let mut happened = registry.happened();
        let messages = self.messages.clone();
        tokio::spawn(async move {
            loop {
                let note = match happened.recv().await {
                    Ok(one) => note(one),
                    Err(tokio::sync::broadcast::error::RecvError::Lagged(count)) => {
                        tracing::warn!(count, "events of images were lost: more came at once than could be told");
                        continue;
                    }
                    Err(tokio::sync::broadcast::error::RecvError::Closed) => return,
                };
                if messages.send(Message::Note(note)).is_err() {
                    return;
                }
            }
        });
        registry.set_logins(Arc::new(KnownLogins(self.parts.clone())));
        let _ = self.images.set(registry);
    }

    fn image_registry(&self) -> Result<&Arc<ImageRegistry>> {
        self.images.get().ok_or_else(|| {
            Error::new(Kind::Unavailable, "image registry", "this daemon keeps none").help("neap up --registry-listen")
        })
    }
}

#[async_trait]
impl Images for Runtime {
    async fn image_repositories(&self, prefix: &str) -> Result<Vec<ImageRepository>> {
        let all = self.image_registry()?.summaries(prefix).await.map_err(Refused::into_error)?;
        let told = all.into_iter().map(|one| ImageRepository {
            name: one.name,
            tags: one.tags,
            manifests: one.manifests,
            blobs: one.blobs,
            size: one.bytes,
        });
        Ok(told.collect())
    }

    async fn image_tags(&self, repository: &str) -> Result<Vec<ImageTag>> {
        let repository: Repository = repository.parse().map_err(Refused::into_error)?;
        let all = self.image_registry()?.tagged(&repository).await.map_err(Refused::into_error)?;
        let told = all.into_iter().map(|(tag, size)| ImageTag {
            tag: tag.tag,
            digest: tag.digest,
            media_type: tag.media_type,
            at: Timestamp(tag.at),
            size,
        });
        Ok(told.collect())
    }

    async fn image(&self, name: &str) -> Result<ImageInfo> {
        let (repository, reference) = name::image(name).map_err(Refused::into_error)?;
        let found = self.image_registry()?.describe(&repository, &reference).await.map_err(Refused::into_error)?;
        Ok(told(&repository, found))
    }

    async fn delete_image(&self, name: &str) -> Result<()> {
        let (repository, reference) = name::image(name).map_err(Refused::into_error)?;
        self.image_registry()?.delete_manifest(&repository, &reference).await.map_err(Refused::into_error)
    }

    async fn collect_images(&self, dry_run: bool) -> Result<ImagesCollected> {
        let registry = self.image_registry()?;
        let collected = match dry_run {
            true => registry.would_collect().await,
            false => registry.collect().await,
        };
        let Collected { unlinked, blobs, bytes, strays, copies, uploads } = collected.map_err(Refused::into_error)?;
        Ok(ImagesCollected { unlinked, blobs, size: bytes, strays, copies, uploads })
    }

    async fn scrub_images(&self) -> Result<Stream1<ImagesScrubbed>> {
        let registry = self.image_registry()?.clone();
        let (sender, stream) = channel();
        let on_the_way = sender.clone();
        tokio::spawn(async move {
            // Whoever is slow hears less on the way; the end is heard by all.
            let told = move |scrubbed: &Scrubbed| _ = on_the_way.try_send(Ok(so_far(scrubbed, false)));
            let done = registry.scrub(told).await;
            let done = done.map(|scrubbed| so_far(&scrubbed, true)).map_err(Refused::into_error);
            let _ = sender.send(done).await;
        });
        Ok(stream)
    }

    async fn image_caches(&self) -> Result<Vec<CacheInfo>> {
        Ok(self.image_registry()?.caches())
    }

    async fn set_image_cache(&self, prefix: &str, settings: CacheSettings) -> Result<CacheInfo> {
        self.image_registry()?.set_cache(prefix, settings).await
    }

    async fn remove_image_cache(&self, prefix: &str) -> Result<()> {
        self.image_registry()?.remove_cache(prefix).await
    }
}

// What upstreams are told: what the cluster's hosts tell them.
struct KnownLogins(Arc<Parts>);

impl Logins for KnownLogins {
    fn at(&self, registry: &str) -> Result<Option<Login>> {
        logins::at(&self.0, registry)
    }
}

fn so_far(scrubbed: &Scrubbed, done: bool) -> ImagesScrubbed {
    ImagesScrubbed {
        blobs: scrubbed.blobs,
        of: scrubbed.of.max(scrubbed.blobs),
        size: scrubbed.bytes,
        damaged: scrubbed.damaged.iter().map(ToString::to_string).collect(),
        missing: scrubbed.missing.iter().map(ToString::to_string).collect(),
        done,
    }
}

fn note(happened: Happened) -> Note {
    let Happened { is_pushed, repository, tag, digest, media_type } = happened;
    let subject = match &tag {
        Some(tag) => format!("{repository}:{tag}"),
        None => format!("{repository}@{}", digest.as_ref().map(Digest::as_str).unwrap_or_default()),
    };
    let image = AboutImage {
        repository: repository.to_string(),
        tag,
        digest: digest.map(|digest| digest.to_string()).unwrap_or_default(),
        media_type,
    };
    let what = if is_pushed { What::ImagePushed } else { What::ImageDeleted };
    Note { what, service: None, task: None, message: image.digest.clone(), image: Some(image), subject }
}

fn parts(list: &Value) -> Vec<ImagePart> {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let platform = |one: &Value| {
        let platform = &one["platform"];
        let words = [&platform["os"], &platform["architecture"], &platform["variant"]];
        words.iter().filter_map(|word| word.as_str()).collect::<Vec<_>>().join("/")
    };
    let all = list.as_array().into_iter().flatten();
    all.map(|one| ImagePart {
        digest: text(&one["digest"]),
        media_type: text(&one["mediaType"]),
        size: one["size"].as_u64().unwrap_or_default(),
        platform: platform(one),
    })
    .collect()
}

fn told(repository: &Repository, found: Described) -> ImageInfo {
    let annotations = found.manifest["annotations"].as_object().into_iter().flatten();
    let annotations = annotations.filter_map(|(key, value)| Some((key.clone(), value.as_str()?.to_owned())));
    let referrers = found.referrers.into_iter().map(|referrer| ImageReferrer {
        digest: referrer.digest,
        artifact_type: referrer.artifact_type.unwrap_or_default(),
        annotations: referrer.annotations,
    });
    ImageInfo {
        repository: repository.to_string(),
        digest: found.digest.to_string(),
        media_type: found.media_type,
        at: Timestamp(found.at),
        tags: found.tags,
        size: found.bytes,
        config: found.config,
        layers: parts(&found.manifest["layers"]),
        manifests: parts(&found.manifest["manifests"]),
        subject: found.manifest["subject"]["digest"].as_str().map(str::to_owned),
        referrers: referrers.collect(),
        annotations: annotations.collect(),
    }
}
