//! What is asked of an image registry on another host of the cluster, over the connection between daemons and agents.

use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use futures_util::StreamExt;
use futures_util::future::BoxFuture;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::build::Packed;
use super::{
    BaseAsk, Based, BuildAsk, Built, CacheInfo, CacheSettings, Copied, CopyAsk, ImageInfo, ImageRepository, ImageTag,
    Images, ImagesCollected, ImagesScrubbed, ImportAsk, Imported, PruneAsk, Pruned, RegistryStats, Rule, RuleSettings,
};
use crate::client::Stream1;
use crate::client::works::{self, STEP, WorkAsk, Works, read, value};
use crate::model::{Error, Kind, Result};

/// One thing that is asked.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ImagesAsk {
    /// `image_repositories`.
    Repositories(String),
    /// `image_tags`.
    Tags(String),
    /// `image`.
    Image(String),
    /// `resolve_image`.
    Resolve(String),
    /// `image_door`.
    Door,
    /// `image_ca`.
    Ca,
    /// `delete_image`.
    Delete(String),
    /// `collect_images`.
    Collect {
        /// Says only what would go.
        dry_run: bool,
    },
    /// `scrub_images`: begins, or says how far it is a moment later.
    Scrub {
        /// Begins.
        begin: bool,
    },
    /// `image_caches`.
    Caches,
    /// `set_image_cache`.
    SetCache {
        /// What names begin with.
        prefix: String,
        /// What it is.
        settings: CacheSettings,
    },
    /// `remove_image_cache`.
    RemoveCache(String),
    /// `copy_image`: begins; a number for it is answered.
    Copy(CopyAsk),
    /// `import_images`: the same.
    Import(ImportAsk),
    /// How far something of those that begin is, or that nobody waits for it.
    Work(WorkAsk),
    /// `image_stats`.
    Stats,
    /// `image_rules`.
    Rules,
    /// `set_image_rule`.
    SetRule {
        /// For repositories with such a name.
        repositories: String,
        /// What it says.
        rule: RuleSettings,
    },
    /// `remove_image_rule`.
    RemoveRule(String),
    /// `prune_tags`.
    Prune(PruneAsk),
    /// `image_base`: begins; a number for it is answered.
    Base(BaseAsk),
    /// `begin_blob`.
    BeginBlob(String),
    /// `add_to_blob`.
    AddToBlob {
        /// Of which repository.
        repository: String,
        /// Which one.
        upload: String,
        /// Behind so many bytes.
        offset: u64,
        /// A piece.
        piece: Packed,
    },
    /// `drop_blob`.
    DropBlob {
        /// Of which repository.
        repository: String,
        /// Which one.
        upload: String,
    },
    /// `end_blob`.
    EndBlob {
        /// Of which repository.
        repository: String,
        /// Which one.
        upload: String,
        /// What it is to be.
        digest: String,
    },
    /// `build_image`.
    Build(Box<BuildAsk>),
}

/// Answers for a registry of this host.
pub struct Answering {
    images: Arc<dyn Images>,
    // What is being read, one at a time.
    scrub: tokio::sync::Mutex<Scrub>,
    works: Works,
}

#[derive(Default)]
struct Scrub {
    steps: Option<Stream1<ImagesScrubbed>>,
    // How far that is, or was when it ended.
    newest: ImagesScrubbed,
}

impl Answering {
    /// For this one.
    pub fn new(images: Arc<dyn Images>) -> Self {
        Answering { images, scrub: tokio::sync::Mutex::default(), works: Works::default() }
    }

    /// Does what is asked.
    pub async fn answer(&self, ask: ImagesAsk) -> Result<Value> {
        let images = &self.images;
        match ask {
            ImagesAsk::Repositories(prefix) => value(images.image_repositories(&prefix).await?),
            ImagesAsk::Tags(repository) => value(images.image_tags(&repository).await?),
            ImagesAsk::Image(name) => value(images.image(&name).await?),
            ImagesAsk::Resolve(name) => value(images.resolve_image(&name).await?),
            ImagesAsk::Door => value(images.image_door().await?),
            ImagesAsk::Ca => value(images.image_ca().await?),
            ImagesAsk::Delete(name) => value(images.delete_image(&name).await?),
            ImagesAsk::Collect { dry_run } => value(images.collect_images(dry_run).await?),
            ImagesAsk::Scrub { begin } => value(self.scrub(begin).await?),
            ImagesAsk::Caches => value(images.image_caches().await?),
            ImagesAsk::SetCache { prefix, settings } => value(images.set_image_cache(&prefix, settings).await?),
            ImagesAsk::RemoveCache(prefix) => value(images.remove_image_cache(&prefix).await?),
            ImagesAsk::Copy(ask) => value(self.works.begin(images.copy_image(ask).await?)?),
            ImagesAsk::Import(ask) => value(self.works.begin(images.import_images(ask).await?)?),
            ImagesAsk::Work(ask) => self.works.answer(ask).await,
            ImagesAsk::Stats => value(images.image_stats().await?),
            ImagesAsk::Rules => value(images.image_rules().await?),
            ImagesAsk::SetRule { repositories, rule } => value(images.set_image_rule(&repositories, rule).await?),
            ImagesAsk::RemoveRule(repositories) => value(images.remove_image_rule(&repositories).await?),
            ImagesAsk::Prune(ask) => value(images.prune_tags(ask).await?),
            ImagesAsk::Base(ask) => value(self.works.begin(images.image_base(ask).await?)?),
            ImagesAsk::BeginBlob(repository) => value(images.begin_blob(&repository).await?),
            ImagesAsk::AddToBlob { repository, upload, offset, piece } => {
                value(images.add_to_blob(&repository, &upload, offset, piece.0).await?)
            }
            ImagesAsk::DropBlob { repository, upload } => value(images.drop_blob(&repository, &upload).await?),
            ImagesAsk::EndBlob { repository, upload, digest } => {
                value(images.end_blob(&repository, &upload, &digest).await?)
            }
            ImagesAsk::Build(ask) => value(images.build_image(*ask).await?),
        }
    }

    // The newest of what is said within a moment. Whoever begins while one goes on joins it.
    async fn scrub(&self, begin: bool) -> Result<ImagesScrubbed> {
        let mut scrub = self.scrub.lock().await;
        if begin && scrub.steps.is_none() {
            *scrub = Scrub { steps: Some(self.images.scrub_images().await?), newest: ImagesScrubbed::default() };
        }
        let until = tokio::time::Instant::now() + STEP;
        let Scrub { steps, newest } = &mut *scrub;
        while let Some(all) = steps.as_mut() {
            match tokio::time::timeout_at(until, all.next()).await {
                Ok(Some(Ok(step))) => {
                    if step.done {
                        *steps = None;
                    }
                    *newest = step;
                }
                Ok(Some(Err(error))) => {
                    *steps = None;
                    return Err(error);
                }
                Ok(None) => {
                    *steps = None;
                    return Err(Error::new(Kind::Unavailable, "scrub", "has ended too early"));
                }
                Err(_) => break,
            }
        }
        Ok(newest.clone())
    }
}

type Way = dyn Fn(ImagesAsk) -> BoxFuture<'static, Result<Value>> + Send + Sync;

/// A registry that is asked.
pub struct AskedImages(Arc<Way>);

impl AskedImages {
    /// This way.
    pub fn new(way: impl Fn(ImagesAsk) -> BoxFuture<'static, Result<Value>> + Send + Sync + 'static) -> Self {
        AskedImages(Arc::new(way))
    }

    async fn ask<T: DeserializeOwned>(&self, ask: ImagesAsk) -> Result<T> {
        read((self.0)(ask).await?)
    }

    // How far something long is, to its end.
    fn steps<T: DeserializeOwned + Send + 'static>(&self, id: u64, is_done: fn(&T) -> bool) -> Stream1<T> {
        let way = self.0.clone();
        works::steps(id, move |ask| (way)(ImagesAsk::Work(ask)), is_done)
    }
}

#[async_trait]
impl Images for AskedImages {
    async fn image_repositories(&self, prefix: &str) -> Result<Vec<ImageRepository>> {
        self.ask(ImagesAsk::Repositories(prefix.to_owned())).await
    }

    async fn image_tags(&self, repository: &str) -> Result<Vec<ImageTag>> {
        self.ask(ImagesAsk::Tags(repository.to_owned())).await
    }

    async fn image(&self, name: &str) -> Result<ImageInfo> {
        self.ask(ImagesAsk::Image(name.to_owned())).await
    }

    async fn resolve_image(&self, name: &str) -> Result<String> {
        self.ask(ImagesAsk::Resolve(name.to_owned())).await
    }

    async fn image_door(&self) -> Result<String> {
        self.ask(ImagesAsk::Door).await
    }

    async fn image_ca(&self) -> Result<Option<String>> {
        self.ask(ImagesAsk::Ca).await
    }

    async fn delete_image(&self, name: &str) -> Result<()> {
        self.ask(ImagesAsk::Delete(name.to_owned())).await
    }

    async fn collect_images(&self, dry_run: bool) -> Result<ImagesCollected> {
        self.ask(ImagesAsk::Collect { dry_run }).await
    }

    async fn scrub_images(&self) -> Result<Stream1<ImagesScrubbed>> {
        let first: ImagesScrubbed = self.ask(ImagesAsk::Scrub { begin: true }).await?;
        let way = self.0.clone();
        let state = Some((first, way));
        let steps = futures_util::stream::unfold(state, |state| async move {
            let (step, way) = state?;
            if step.done {
                return Some((Ok(step), None));
            }
            let next = match (way)(ImagesAsk::Scrub { begin: false }).await.and_then(read::<ImagesScrubbed>) {
                Ok(next) => next,
                Err(error) => return Some((Err(error), None)),
            };
            Some((Ok(step), Some((next, way))))
        });
        Ok(Box::pin(steps))
    }

    async fn image_caches(&self) -> Result<Vec<CacheInfo>> {
        self.ask(ImagesAsk::Caches).await
    }

    async fn set_image_cache(&self, prefix: &str, settings: CacheSettings) -> Result<CacheInfo> {
        self.ask(ImagesAsk::SetCache { prefix: prefix.to_owned(), settings }).await
    }

    async fn remove_image_cache(&self, prefix: &str) -> Result<()> {
        self.ask(ImagesAsk::RemoveCache(prefix.to_owned())).await
    }

    async fn copy_image(&self, ask: CopyAsk) -> Result<Stream1<Copied>> {
        let id: u64 = self.ask(ImagesAsk::Copy(ask)).await?;
        Ok(self.steps(id, |step: &Copied| step.done))
    }

    async fn import_images(&self, ask: ImportAsk) -> Result<Stream1<Imported>> {
        let id: u64 = self.ask(ImagesAsk::Import(ask)).await?;
        Ok(self.steps(id, |step: &Imported| step.done))
    }

    async fn image_stats(&self) -> Result<RegistryStats> {
        self.ask(ImagesAsk::Stats).await
    }

    async fn image_rules(&self) -> Result<Vec<Rule>> {
        self.ask(ImagesAsk::Rules).await
    }

    async fn set_image_rule(&self, repositories: &str, rule: RuleSettings) -> Result<Rule> {
        self.ask(ImagesAsk::SetRule { repositories: repositories.to_owned(), rule }).await
    }

    async fn remove_image_rule(&self, repositories: &str) -> Result<()> {
        self.ask(ImagesAsk::RemoveRule(repositories.to_owned())).await
    }

    async fn prune_tags(&self, ask: PruneAsk) -> Result<Pruned> {
        self.ask(ImagesAsk::Prune(ask)).await
    }

    async fn image_base(&self, ask: BaseAsk) -> Result<Stream1<Based>> {
        let id: u64 = self.ask(ImagesAsk::Base(ask)).await?;
        Ok(self.steps(id, |step: &Based| step.done))
    }

    async fn begin_blob(&self, repository: &str) -> Result<String> {
        self.ask(ImagesAsk::BeginBlob(repository.to_owned())).await
    }

    async fn add_to_blob(&self, repository: &str, upload: &str, offset: u64, piece: Bytes) -> Result<u64> {
        let (repository, upload) = (repository.to_owned(), upload.to_owned());
        self.ask(ImagesAsk::AddToBlob { repository, upload, offset, piece: Packed(piece) }).await
    }

    async fn drop_blob(&self, repository: &str, upload: &str) -> Result<()> {
        self.ask(ImagesAsk::DropBlob { repository: repository.to_owned(), upload: upload.to_owned() }).await
    }

    async fn end_blob(&self, repository: &str, upload: &str, digest: &str) -> Result<u64> {
        let (repository, upload) = (repository.to_owned(), upload.to_owned());
        self.ask(ImagesAsk::EndBlob { repository, upload, digest: digest.to_owned() }).await
    }

    async fn build_image(&self, ask: BuildAsk) -> Result<Built> {
        self.ask(ImagesAsk::Build(Box::new(ask))).await
    }
}
