//! What is asked of an image registry on another host of the cluster, over the connection between daemons and agents.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime};

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
use crate::model::{Error, Kind, Result};

/// How long it takes at most until it is said how far a long work is.
const STEP: Duration = Duration::from_secs(1);
/// Copies and the like that are told of at a time, and for how long one is that nobody asks for.
const WORKS: usize = 64;
const FORGOTTEN: Duration = Duration::from_secs(600);
/// How often it is asked again where the answer did not come.
const TRIES: u32 = 60;

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
    /// How far what has such a number is, a moment later.
    Step(u64),
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
    // What takes long, by number, and when somebody last asked for it.
    works: Mutex<Works>,
}

#[derive(Default)]
struct Works {
    last: u64,
    all: HashMap<u64, (Instant, Work)>,
}

type Work = Arc<tokio::sync::Mutex<Steps>>;

struct Steps {
    all: Stream1<Value>,
    end: Option<Result<Value>>,
}

#[derive(Default)]
struct Scrub {
    steps: Option<Stream1<ImagesScrubbed>>,
    // How far that is, or was when it ended.
    newest: ImagesScrubbed,
}

fn value(answer: impl Serialize) -> Result<Value> {
    serde_json::to_value(answer).map_err(|error| Error::internal("answer", error.to_string()))
}

fn values<T: Serialize + Send + 'static>(steps: Stream1<T>) -> Stream1<Value> {
    Box::pin(steps.map(|step| step.and_then(value)))
}

fn ended() -> Error {
    Error::new(Kind::Unavailable, "image registry", "has ended that too early")
}

impl Answering {
    /// For this one.
    pub fn new(images: Arc<dyn Images>) -> Self {
        Answering { images, scrub: tokio::sync::Mutex::default(), works: Mutex::default() }
    }

    /// Does what is asked.
    pub async fn answer(&self, ask: ImagesAsk) -> Result<Value> {
        let images = &self.images;
        match ask {
            ImagesAsk::Repositories(prefix) => value(images.image_repositories(&prefix).await?),
            ImagesAsk::Tags(repository) => value(images.image_tags(&repository).await?),
            ImagesAsk::Image(name) => value(images.image(&name).await?),
            ImagesAsk::Resolve(name) => value(images.resolve_image(&name).await?),
            ImagesAsk::Delete(name) => value(images.delete_image(&name).await?),
            ImagesAsk::Collect { dry_run } => value(images.collect_images(dry_run).await?),
            ImagesAsk::Scrub { begin } => value(self.scrub(begin).await?),
            ImagesAsk::Caches => value(images.image_caches().await?),
            ImagesAsk::SetCache { prefix, settings } => value(images.set_image_cache(&prefix, settings).await?),
            ImagesAsk::RemoveCache(prefix) => value(images.remove_image_cache(&prefix).await?),
            ImagesAsk::Copy(ask) => value(self.begin(values(images.copy_image(ask).await?))?),
            ImagesAsk::Import(ask) => value(self.begin(values(images.import_images(ask).await?))?),
            ImagesAsk::Step(id) => value(self.step(id).await?),
            ImagesAsk::Stats => value(images.image_stats().await?),
            ImagesAsk::Rules => value(images.image_rules().await?),
            ImagesAsk::SetRule { repositories, rule } => value(images.set_image_rule(&repositories, rule).await?),
            ImagesAsk::RemoveRule(repositories) => value(images.remove_image_rule(&repositories).await?),
            ImagesAsk::Prune(ask) => value(images.prune_tags(ask).await?),
            ImagesAsk::Base(ask) => value(self.begin(values(images.image_base(ask).await?))?),
            ImagesAsk::BeginBlob(repository) => value(images.begin_blob(&repository).await?),
            ImagesAsk::AddToBlob { repository, upload, offset, piece } => {
                value(images.add_to_blob(&repository, &upload, offset, piece.0).await?)
            }
            ImagesAsk::EndBlob { repository, upload, digest } => {
                value(images.end_blob(&repository, &upload, &digest).await?)
            }
            ImagesAsk::Build(ask) => value(images.build_image(*ask).await?),
        }
    }

    // Begins something long; its number.
    fn begin(&self, steps: Stream1<Value>) -> Result<u64> {
        let mut works = self.works.lock().unwrap_or_else(PoisonError::into_inner);
        works.all.retain(|_, (asked, _)| asked.elapsed() < FORGOTTEN);
        if works.all.len() >= WORKS {
            return Err(Error::new(Kind::Exhausted, "image registry", format!("{WORKS} works are under way")));
        }
        // No other's from before a restart.
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        works.last = (works.last + 1).max(u64::try_from(now.as_micros()).unwrap_or_default());
        let id = works.last;
        works.all.insert(id, (Instant::now(), Arc::new(tokio::sync::Mutex::new(Steps { all: steps, end: None }))));
        Ok(id)
    }

    // The newest of what is said within a moment.
    async fn step(&self, id: u64) -> Result<Option<Value>> {
        let works = || self.works.lock().unwrap_or_else(PoisonError::into_inner);
        let steps = works().all.get_mut(&id).map(|(asked, steps)| {
            *asked = Instant::now();
            steps.clone()
        });
        let steps = steps.ok_or_else(ended)?;
        let mut steps = steps.lock().await;
        let until = tokio::time::Instant::now() + STEP;
        // How it ended is told as often as it is asked for: an answer may be lost.
        if let Some(end) = &steps.end {
            return end.clone().map(Some);
        }
        let mut newest = None;
        while let Ok(step) = tokio::time::timeout_at(until, steps.all.next()).await {
            match step {
                Some(Ok(step)) if step["done"] != true => newest = Some(step),
                other => {
                    let end = other.unwrap_or_else(|| Err(ended()));
                    steps.end = Some(end.clone());
                    return end.map(Some);
                }
            }
        }
        Ok(newest)
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
        let steps = futures_util::stream::unfold(Some(self.0.clone()), move |way| async move {
            let way = way?;
            let mut tries = 0;
            loop {
                match (way)(ImagesAsk::Step(id)).await.and_then(read::<Option<T>>) {
                    // It goes on there, whatever becomes of the connection.
                    Err(error) if error.retry && tries < TRIES => {
                        tries += 1;
                        tokio::time::sleep(STEP).await;
                    }
                    Ok(Some(step)) if is_done(&step) => return Some((Ok(step), None)),
                    Ok(Some(step)) => return Some((Ok(step), Some(way))),
                    Ok(None) => {}
                    Err(error) => return Some((Err(error), None)),
                }
            }
        });
        Box::pin(steps)
    }
}

fn read<T: DeserializeOwned>(value: Value) -> Result<T> {
    serde_json::from_value(value).map_err(|error| {
        Error::new(Kind::Unsupported, "image registry", "answers in words of another version").cause(error)
    })
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

    async fn end_blob(&self, repository: &str, upload: &str, digest: &str) -> Result<u64> {
        let (repository, upload) = (repository.to_owned(), upload.to_owned());
        self.ask(ImagesAsk::EndBlob { repository, upload, digest: digest.to_owned() }).await
    }

    async fn build_image(&self, ask: BuildAsk) -> Result<Built> {
        self.ask(ImagesAsk::Build(Box::new(ask))).await
    }
}
