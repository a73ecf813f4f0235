//! The image registry as `trait Cluster` has it, and what happens there as events.

use std::path::PathBuf;
use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use tokio::sync::broadcast;

use super::asked::channel;
use super::{Message, Parts, Runtime, logins};
use crate::client::Stream1;
use crate::client::images::{
    BaseAsk, Based, BuildAsk, Built, CacheInfo, CacheSettings, Copied, CopyAsk, ImageInfo, ImageKeeper, ImagePart,
    ImageReferrer, ImageRepository, ImageTag, Images, ImagesCollected, ImagesScrubbed, ImportAsk, Imported, Keepers,
    PruneAsk, Pruned, RegistryStats, Rule, RuleSettings,
};
use crate::model::clock::Timestamp;
use crate::model::event::{AboutImage, What};
use crate::model::registry::Login;
use crate::model::{Error, Kind, Result};
use crate::registry::cache::Logins;
use crate::registry::describe::{Described, Scrubbed};
use crate::registry::digest::Algorithm;
use crate::registry::name::{self, Repository};
use crate::registry::refused::Refused;
use crate::registry::{Collected, Happened, ImageRegistry};
use crate::scheduler::world::Note;

/// Where images are kept, and in a Swarm who chooses the host that does.
pub type Kept = (Arc<dyn Images>, Option<Arc<dyn Keepers>>);

/// The registry of this host.
pub struct LocalImages {
    /// It.
    pub registry: Arc<ImageRegistry>,
    /// Where every host of the cluster finds it: `127.0.0.1:5000`.
    pub door: String,
    /// The certificate that clients need who reach it by its name, where the daemon has made it.
    pub ca: Option<PathBuf>,
}

impl Runtime {
    /// The cluster's images are kept there.
    pub fn serve_images(&self, images: Arc<dyn Images>, keepers: Option<Arc<dyn Keepers>>) {
        let _ = self.images.set((images, keepers));
    }

    fn keepers(&self) -> Result<&Arc<dyn Keepers>> {
        let none = || Error::new(Kind::Unsupported, "image registry", "is on the one host that there is");
        self.images.get().and_then(|(_, keepers)| keepers.as_ref()).ok_or_else(none)
    }

    /// Who knows what registries are told by the whole cluster.
    pub fn known_logins(&self) -> Arc<dyn Logins> {
        Arc::new(KnownLogins(self.parts.clone()))
    }

    /// Something happened to an image.
    pub fn tell_image(&self, happened: ImageHappened) {
        let _ = self.messages.send(Message::Note(note(happened)));
    }

    fn kept(&self) -> Result<&Arc<dyn Images>> {
        self.images.get().map(|(images, _)| images).ok_or_else(|| {
            Error::new(Kind::Unavailable, "image registry", "this daemon keeps none").help("neap up --registry-listen")
        })
    }
}

#[async_trait]
impl Keepers for Runtime {
    async fn keeper(&self) -> Result<ImageKeeper> {
        self.keepers()?.keeper().await
    }

    async fn name_keeper(&self, node: &str) -> Result<ImageKeeper> {
        self.keepers()?.name_keeper(node).await
    }
}

#[async_trait]
impl Images for Runtime {
    async fn image_repositories(&self, prefix: &str) -> Result<Vec<ImageRepository>> {
        self.kept()?.image_repositories(prefix).await
    }

    async fn image_tags(&self, repository: &str) -> Result<Vec<ImageTag>> {
        self.kept()?.image_tags(repository).await
    }

    async fn image(&self, name: &str) -> Result<ImageInfo> {
        self.kept()?.image(name).await
    }

    async fn resolve_image(&self, name: &str) -> Result<String> {
        self.kept()?.resolve_image(name).await
    }

    async fn image_door(&self) -> Result<String> {
        self.kept()?.image_door().await
    }

    async fn image_ca(&self) -> Result<Option<String>> {
        self.kept()?.image_ca().await
    }

    async fn delete_image(&self, name: &str) -> Result<()> {
        self.kept()?.delete_image(name).await
    }

    async fn collect_images(&self, dry_run: bool) -> Result<ImagesCollected> {
        self.kept()?.collect_images(dry_run).await
    }

    async fn scrub_images(&self) -> Result<Stream1<ImagesScrubbed>> {
        self.kept()?.scrub_images().await
    }

    async fn image_caches(&self) -> Result<Vec<CacheInfo>> {
        self.kept()?.image_caches().await
    }

    async fn set_image_cache(&self, prefix: &str, settings: CacheSettings) -> Result<CacheInfo> {
        self.kept()?.set_image_cache(prefix, settings).await
    }

    async fn remove_image_cache(&self, prefix: &str) -> Result<()> {
        self.kept()?.remove_image_cache(prefix).await
    }

    async fn copy_image(&self, ask: CopyAsk) -> Result<Stream1<Copied>> {
        self.kept()?.copy_image(ask).await
    }

    async fn import_images(&self, ask: ImportAsk) -> Result<Stream1<Imported>> {
        self.kept()?.import_images(ask).await
    }

    async fn image_stats(&self) -> Result<RegistryStats> {
        self.kept()?.image_stats().await
    }

    async fn image_rules(&self) -> Result<Vec<Rule>> {
        self.kept()?.image_rules().await
    }

    async fn set_image_rule(&self, repositories: &str, rule: RuleSettings) -> Result<Rule> {
        self.kept()?.set_image_rule(repositories, rule).await
    }

    async fn remove_image_rule(&self, repositories: &str) -> Result<()> {
        self.kept()?.remove_image_rule(repositories).await
    }

    async fn prune_tags(&self, mut ask: PruneAsk) -> Result<Pruned> {
        ask.in_use.extend(self.images_in_use());
        self.kept()?.prune_tags(ask).await
    }

    async fn image_base(&self, ask: BaseAsk) -> Result<Stream1<Based>> {
        self.kept()?.image_base(ask).await
    }

    async fn begin_blob(&self, repository: &str) -> Result<String> {
        self.kept()?.begin_blob(repository).await
    }

    async fn add_to_blob(&self, repository: &str, upload: &str, offset: u64, piece: Bytes) -> Result<u64> {
        self.kept()?.add_to_blob(repository, upload, offset, piece).await
    }

    async fn drop_blob(&self, repository: &str, upload: &str) -> Result<()> {
        self.kept()?.drop_blob(repository, upload).await
    }

    async fn end_blob(&self, repository: &str, upload: &str, digest: &str) -> Result<u64> {
        self.kept()?.end_blob(repository, upload, digest).await
    }

    async fn build_image(&self, ask: BuildAsk) -> Result<Built> {
        self.kept()?.build_image(ask).await
    }
}

#[async_trait]
impl Images for LocalImages {
    async fn image_repositories(&self, prefix: &str) -> Result<Vec<ImageRepository>> {
        let all = self.registry.summaries(prefix).await.map_err(Refused::into_error)?;
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
        let all = self.registry.tagged(&repository).await.map_err(Refused::into_error)?;
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
        let found = self.registry.describe(&repository, &reference).await.map_err(Refused::into_error)?;
        Ok(told(&repository, found))
    }

    async fn resolve_image(&self, name: &str) -> Result<String> {
        if let Some((host, rest)) = name::elsewhere(name) {
            return self.registry.resolve_elsewhere(name, &host, rest).await;
        }
        let (repository, reference) = name::image(name).map_err(Refused::into_error)?;
        self.registry.freshen(&repository, &reference).await.map_err(Refused::into_error)?;
        let found = self.registry.manifest(&repository, &reference).map_err(Refused::into_error)?;
        Ok(format!("{}/{repository}@{}", self.door, found.digest))
    }

    async fn image_door(&self) -> Result<String> {
        Ok(self.door.clone())
    }

    async fn image_ca(&self) -> Result<Option<String>> {
        let Some(path) = &self.ca else { return Ok(None) };
        let read = std::fs::read_to_string(path);
        read.map(Some).map_err(|error| Error::io(path.display().to_string(), "read it", &error))
    }

    async fn delete_image(&self, name: &str) -> Result<()> {
        let (repository, reference) = name::image(name).map_err(Refused::into_error)?;
        self.registry.delete_manifest(&repository, &reference).await.map_err(Refused::into_error)
    }

    async fn collect_images(&self, dry_run: bool) -> Result<ImagesCollected> {
        let registry = &self.registry;
        let collected = match dry_run {
            true => registry.would_collect().await,
            false => registry.collect().await,
        };
        let Collected { unlinked, blobs, bytes, strays, copies, uploads } = collected.map_err(Refused::into_error)?;
        Ok(ImagesCollected { unlinked, blobs, size: bytes, strays, copies, uploads })
    }

    async fn scrub_images(&self) -> Result<Stream1<ImagesScrubbed>> {
        let registry = self.registry.clone();
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
        Ok(self.registry.caches())
    }

    async fn set_image_cache(&self, prefix: &str, settings: CacheSettings) -> Result<CacheInfo> {
        self.registry.set_cache(prefix, settings).await
    }

    async fn remove_image_cache(&self, prefix: &str) -> Result<()> {
        self.registry.remove_cache(prefix).await
    }

    async fn copy_image(&self, ask: CopyAsk) -> Result<Stream1<Copied>> {
        let registry = self.registry.clone();
        let (sender, stream) = channel();
        let on_the_way = sender.clone();
        tokio::spawn(async move {
            // As with scrub: the end is heard by all. What nobody waits for is given up.
            let told = move |copied: &Copied| _ = on_the_way.try_send(Ok(copied.clone()));
            tokio::select! {
                copied = registry.copy(ask, told) => {
                    let _ = sender.send(copied).await;
                }
                () = sender.closed() => {}
            }
        });
        Ok(stream)
    }

    async fn import_images(&self, ask: ImportAsk) -> Result<Stream1<Imported>> {
        let registry = self.registry.clone();
        let (sender, stream) = channel();
        let on_the_way = sender.clone();
        tokio::spawn(async move {
            let told = move |imported: &Imported| _ = on_the_way.try_send(Ok(imported.clone()));
            let _ = sender.send(registry.import(ask, told).await).await;
        });
        Ok(stream)
    }

    async fn image_stats(&self) -> Result<RegistryStats> {
        self.registry.stats().await.map_err(Refused::into_error)
    }

    async fn image_rules(&self) -> Result<Vec<Rule>> {
        Ok(self.registry.all_rules())
    }

    async fn set_image_rule(&self, repositories: &str, rule: RuleSettings) -> Result<Rule> {
        self.registry.set_rule(repositories, rule).await
    }

    async fn remove_image_rule(&self, repositories: &str) -> Result<()> {
        self.registry.remove_rule(repositories).await
    }

    async fn prune_tags(&self, ask: PruneAsk) -> Result<Pruned> {
        self.registry.prune(ask).await
    }

    async fn image_base(&self, ask: BaseAsk) -> Result<Stream1<Based>> {
        let registry = self.registry.clone();
        let (sender, stream) = channel();
        let on_the_way = sender.clone();
        tokio::spawn(async move {
            let told = move |copied: &Copied| {
                _ = on_the_way.try_send(Ok(Based { copied: copied.clone(), ..Based::default() }));
            };
            tokio::select! {
                based = registry.base(ask, told) => {
                    let _ = sender.send(based).await;
                }
                () = sender.closed() => {}
            }
        });
        Ok(stream)
    }

    async fn begin_blob(&self, repository: &str) -> Result<String> {
        let repository: Repository = repository.parse().map_err(Refused::into_error)?;
        self.registry.check_pushed(&repository).map_err(Refused::into_error)?;
        let growing = self.registry.begin(&repository, Algorithm::Sha256).await.map_err(Refused::into_error)?;
        Ok(growing.id().to_owned())
    }

    async fn add_to_blob(&self, repository: &str, upload: &str, offset: u64, piece: Bytes) -> Result<u64> {
        let repository: Repository = repository.parse().map_err(Refused::into_error)?;
        self.registry.add(&repository, upload, offset, piece).await.map_err(Refused::into_error)
    }

    async fn drop_blob(&self, repository: &str, upload: &str) -> Result<()> {
        let repository: Repository = repository.parse().map_err(Refused::into_error)?;
        self.registry.drop_upload(&repository, upload).await.map_err(Refused::into_error)
    }

    async fn end_blob(&self, repository: &str, upload: &str, digest: &str) -> Result<u64> {
        let repository: Repository = repository.parse().map_err(Refused::into_error)?;
        self.registry.end_upload(&repository, upload, digest).await.map_err(Refused::into_error)
    }

    async fn build_image(&self, ask: BuildAsk) -> Result<Built> {
        self.registry.build(ask, &self.door).await
    }
}

// What upstreams are told: what the cluster's hosts tell them.
struct KnownLogins(Arc<Parts>);

#[async_trait]
impl Logins for KnownLogins {
    async fn at(&self, registry: &str) -> Result<Option<Login>> {
        logins::at(&self.0, registry)
    }
}

/// What happens in a registry from now on.
pub struct Happenings(broadcast::Receiver<Happened>);

impl Happenings {
    /// In this one.
    pub fn of(registry: &ImageRegistry) -> Self {
        Happenings(registry.happened())
    }

    /// The next; nothing where the registry is gone.
    pub async fn next(&mut self) -> Option<ImageHappened> {
        loop {
            match self.0.recv().await {
                Ok(one) => return Some(told_of(one)),
                Err(broadcast::error::RecvError::Lagged(count)) => {
                    tracing::warn!(count, "events of images were lost: more came at once than could be told");
                }
                Err(broadcast::error::RecvError::Closed) => return None,
            }
        }
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

/// What happened to an image, as it is told from host to host.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct ImageHappened {
    /// Whether it was pushed, or deleted.
    pub is_pushed: bool,
    /// It.
    pub image: AboutImage,
}

fn told_of(happened: Happened) -> ImageHappened {
    let Happened { is_pushed, repository, tag, digest, media_type } = happened;
    let digest = digest.map(|digest| digest.to_string()).unwrap_or_default();
    ImageHappened { is_pushed, image: AboutImage { repository: repository.to_string(), tag, digest, media_type } }
}

fn note(happened: ImageHappened) -> Note {
    let ImageHappened { is_pushed, image } = happened;
    let subject = match &image.tag {
        Some(tag) => format!("{}:{tag}", image.repository),
        None => format!("{}@{}", image.repository, image.digest),
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
