//! Copies of other registries' images, got when they are first asked for. Repositories whose names begin with a cache's prefix are read
//! from its upstream and kept; nobody pushes there. Whatever the upstream does, what is kept is served.

mod blobs;
mod manifests;

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tokio::sync::{Semaphore, watch};

use super::ImageRegistry;
use super::digest::Digest;
use super::index::is_copy;
use super::name::{Reference, Repository};
use super::refused::{Code, Refused};
use super::upstream::place::Place;
use super::upstream::{Fault, Upstream};
use crate::model::registry::Login;
use crate::model::units::Duration as Period;
use crate::model::{Error, Kind, Result as ModelResult};
pub use blobs::{Arrived, Content, Fetch};

/// Most caches of a registry.
const MOST: usize = 1000;
/// Blobs of a cache that are fetched at a time, and that wait for it.
const FETCHING: usize = 32;
const MANY: usize = 1000;
/// How long an upstream that did not answer is not asked where there is a copy.
const REST: Duration = Duration::from_secs(10);
/// The same where it was asked too much, and says nothing of how long; and at most.
const LIMITED: Duration = Duration::from_secs(60);
const LONGEST: Duration = Duration::from_secs(600);
/// What settings of caches are called in the index.
const SETTING: &str = "cache/";

/// What a cache keeps copies of.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct CacheSettings {
    /// The registry, or a part of it: docker.io, quay.io/org, http://registry.old:5000.
    pub upstream: String,
    /// Any certificate of it will do.
    #[serde(default)]
    pub insecure: bool,
    /// How long a copy stays that nobody asks for.
    #[serde(default = "week")]
    pub keep: Period,
}

fn week() -> Period {
    Period::from_secs(7 * 24 * 60 * 60)
}

/// How long a copy stays that nobody asks for, where no cache says more.
pub fn usual_keep() -> Period {
    week()
}

/// A cache, and how it fares since this daemon began.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct CacheInfo {
    /// What names of repositories begin with; nothing: all that are not somebody's own.
    pub prefix: String,
    /// The registry.
    pub upstream: String,
    /// Whether any certificate of it will do.
    pub insecure: bool,
    /// How long a copy stays that nobody asks for.
    pub keep: Period,
    /// Manifests and blobs that were served from what is kept.
    pub hits: u64,
    /// Those that were fetched.
    pub misses: u64,
    /// Manifests that were served although the upstream did not say that they are the newest.
    pub stale: u64,
    /// What was fetched, in bytes.
    pub fetched: u64,
    /// Why the upstream did not answer, where it did not when it was last asked.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub failing: Option<String>,
}

/// Who knows what registries are told.
#[async_trait]
pub trait Logins: Send + Sync {
    /// What one is told; nothing where nobody has logged in there.
    async fn at(&self, registry: &str) -> ModelResult<Option<Login>>;
}

#[derive(Default)]
struct Counts {
    hits: AtomicU64,
    misses: AtomicU64,
    stale: AtomicU64,
    fetched: AtomicU64,
}

fn count(counter: &AtomicU64, more: u64) {
    counter.fetch_add(more, Ordering::Relaxed);
}

/// Blobs that come, for all who want them.
pub(super) type Fetching = tokio::sync::Mutex<HashMap<(Repository, Digest), Arc<Fetch>>>;

// What is being asked, for all who wait for the same answer.
type Asked = watch::Receiver<Option<Result<Option<String>, Refused>>>;
type Asking = HashMap<(Repository, Reference), Asked>;

/// Copies of one upstream.
pub struct Cache {
    prefix: String,
    /// As it was set.
    pub settings: CacheSettings,
    upstream: Upstream,
    counts: Counts,
    asking: Mutex<Asking>,
    fetching: Fetching,
    // Fetches that go on at a time.
    turns: Semaphore,
    // Until when it is not asked, and why.
    resting: Mutex<Option<(Instant, Fault)>>,
}

impl Cache {
    fn new(prefix: &str, settings: CacheSettings) -> ModelResult<Self> {
        let upstream = Upstream::new(Place::read(&settings.upstream)?, settings.insecure)?;
        let (prefix, counts) = (prefix.to_owned(), Counts::default());
        let (asking, fetching, resting) = Default::default();
        let turns = Semaphore::new(FETCHING);
        Ok(Cache { prefix, settings, upstream, counts, asking, fetching, turns, resting })
    }

    fn asking(&self) -> MutexGuard<'_, Asking> {
        self.asking.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn resting(&self) -> MutexGuard<'_, Option<(Instant, Fault)>> {
        self.resting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    // Why it is not asked now.
    fn is_resting(&self) -> Option<Fault> {
        self.resting().as_ref().filter(|(until, _)| *until > Instant::now()).map(|(_, fault)| fault.clone())
    }

    // What it said last.
    fn heard(&self, fault: Option<&Fault>) {
        let pause = match fault {
            Some(Fault::Down(_)) => REST,
            Some(Fault::Limited(_, seconds)) => seconds.map_or(LIMITED, Duration::from_secs).min(LONGEST),
            Some(Fault::Denied(_)) => Duration::ZERO,
            Some(Fault::Missing(_)) | None => {
                *self.resting() = None;
                return;
            }
        };
        let Some(fault) = fault else { return };
        tracing::warn!(
            upstream = self.settings.upstream,
            why = fault.why(),
            "a cache's upstream did not give what was asked"
        );
        *self.resting() = Some((Instant::now() + pause, fault.clone()));
    }

    fn info(&self) -> CacheInfo {
        let of = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        CacheInfo {
            prefix: self.prefix.clone(),
            upstream: self.settings.upstream.clone(),
            insecure: self.settings.insecure,
            keep: self.settings.keep,
            hits: of(&self.counts.hits),
            misses: of(&self.counts.misses),
            stale: of(&self.counts.stale),
            fetched: of(&self.counts.fetched),
            failing: self.resting().as_ref().map(|(_, fault)| fault.why().to_owned()),
        }
    }
}

/// All caches of a registry.
pub struct Caches {
    // Longer prefixes before shorter ones.
    all: RwLock<Arc<Vec<Arc<Cache>>>>,
    // Whether there are copies at all.
    has_copies: AtomicBool,
}

impl Caches {
    /// Those of an index's settings. One that cannot be used any more is told of, and left out.
    pub fn read(settings: Vec<(String, Vec<u8>)>, has_copies: bool) -> Self {
        let read = |(prefix, value): (String, Vec<u8>)| {
            let settings: CacheSettings = serde_json::from_slice(&value).ok()?;
            let made = Cache::new(&prefix, settings);
            made.inspect_err(|error| tracing::error!(prefix, %error, "a cache of another registry cannot be used")).ok()
        };
        let mut all: Vec<_> = settings.into_iter().filter_map(read).map(Arc::new).collect();
        order(&mut all);
        Caches { all: RwLock::new(Arc::new(all)), has_copies: AtomicBool::new(has_copies) }
    }

    /// Those of another take the place of all of them.
    pub fn replace_all(&self, by: Self) {
        *self.all.write().unwrap_or_else(PoisonError::into_inner) = by.all();
        self.has_copies.store(by.has_copies.load(Ordering::Relaxed), Ordering::Relaxed);
    }

    /// What settings of caches are called in the index.
    pub fn setting() -> &'static str {
        SETTING
    }

    fn all(&self) -> Arc<Vec<Arc<Cache>>> {
        self.all.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn replace(&self, prefix: &str, by: Option<Arc<Cache>>) {
        let mut slot = self.all.write().unwrap_or_else(PoisonError::into_inner);
        let mut all: Vec<_> = slot.iter().filter(|cache| cache.prefix != prefix).cloned().collect();
        all.extend(by);
        order(&mut all);
        *slot = Arc::new(all);
    }

    /// What a repository of another registry is called here, where it is cached.
    fn called(&self, registry: &str, name: &Repository) -> Option<Repository> {
        let registry = crate::model::registry::name(registry).ok()?;
        let all = self.all();
        let of = all.iter().filter(|cache| cache.upstream.place.registry == registry);
        // Of several the one with the least left to say.
        let rests = of.filter_map(|cache| Some((cache, cache.upstream.place.rest(name.as_str())?)));
        let (cache, rest) = rests.min_by_key(|(_, rest)| rest.len())?;
        let slash = if cache.prefix.is_empty() { "" } else { "/" };
        format!("{}{slash}{rest}", cache.prefix).parse().ok()
    }

    /// The cache that a repository is of, and what it is called at its upstream.
    pub fn over(&self, repository: &Repository) -> Option<(Arc<Cache>, Repository)> {
        let all = self.all();
        let (cache, rest) = all.iter().find_map(|cache| {
            let rest = repository.as_str().strip_prefix(cache.prefix.as_str())?;
            let rest = if cache.prefix.is_empty() { rest } else { rest.strip_prefix('/')? };
            Some((cache, rest))
        })?;
        let name = cache.upstream.place.repository(rest).ok()?;
        Some((cache.clone(), name))
    }
}

fn order(all: &mut [Arc<Cache>]) {
    all.sort_by(|a, b| b.prefix.len().cmp(&a.prefix.len()).then(a.prefix.cmp(&b.prefix)));
}

// `/` and nothing are the same: all repositories.
fn prefix_of(text: &str) -> ModelResult<String> {
    let prefix = text.trim_matches('/');
    if !prefix.is_empty() {
        prefix.parse::<Repository>().map_err(Refused::into_error)?;
    }
    Ok(prefix.to_owned())
}

impl ImageRegistry {
    /// Who knows what upstreams are told.
    pub fn set_logins(&self, logins: Arc<dyn Logins>) {
        let _ = self.logins.set(logins);
    }

    pub(super) async fn login(&self, registry: &str) -> Option<Login> {
        let found = self.logins.get()?.at(registry).await;
        found.unwrap_or_else(|error| {
            tracing::warn!(registry, %error, "a registry is asked without a login");
            None
        })
    }

    /// What a registry is told that somebody has named: nothing in the clear, but on this host. A cache is set by who may say more.
    pub(super) async fn login_at(&self, place: &Place) -> Option<Login> {
        match place.is_in_the_clear() {
            true => None,
            false => self.login(&place.registry).await,
        }
    }

    /// An image of another registry by its digest, as that says now.
    pub async fn resolve_elsewhere(&self, image: &str, host: &str, rest: &str) -> ModelResult<String> {
        let (name, reference) = super::name::image(rest).map_err(Refused::into_error)?;
        let upstream = Upstream::new(Place::read(host)?, false)?;
        let at = upstream.place.repository(name.as_str()).map_err(Refused::into_error)?;
        let login = self.login_at(&upstream.place).await;
        let told = |fault: Fault| fault.refused(Code::ManifestUnknown).about(image).into_error();
        let digest = match upstream.digest(&at, &reference, login.as_ref()).await.map_err(told)? {
            Some(digest) => digest,
            None => upstream.manifest(&at, &reference, login.as_ref()).await.map_err(told)?.digest,
        };
        Ok(format!("{}/{at}@{digest}", upstream.place.registry))
    }

    /// The caches, by prefix.
    pub fn caches(&self) -> Vec<CacheInfo> {
        let mut all: Vec<_> = self.caches.all().iter().map(|cache| cache.info()).collect();
        all.sort_by(|a, b| a.prefix.cmp(&b.prefix));
        all
    }

    /// Sets a cache, durably; one of the same prefix is another from then on.
    pub async fn set_cache(&self, prefix: &str, settings: CacheSettings) -> ModelResult<CacheInfo> {
        let prefix = prefix_of(prefix)?;
        if settings.keep.millis() == 0 {
            return Err(Error::invalid(format!("cache {prefix:?}"), "keep: is no time"));
        }
        let cache = Arc::new(Cache::new(&prefix, settings.clone())?);
        let all = self.caches.all();
        if all.len() >= MOST && !all.iter().any(|cache| cache.prefix == prefix) {
            return Err(Error::new(Kind::Exhausted, "image registry", format!("has {MOST} caches already")));
        }
        if !prefix.is_empty() {
            self.check_free(&prefix).map_err(Refused::into_error)?;
        }
        let value = serde_json::to_vec(&settings)
            .map_err(|error| Error::internal("cache", "its settings cannot be written").cause(error))?;
        let hold = self.hold();
        self.index.set(format!("{SETTING}{prefix}"), Some(value)).await.map_err(Refused::into_error)?;
        self.caches.replace(&prefix, Some(cache.clone()));
        self.settled(hold).await.map_err(Refused::into_error)?;
        Ok(cache.info())
    }

    // What was pushed below a prefix would not be reached any more.
    fn check_free(&self, prefix: &str) -> Result<(), Refused> {
        let within = format!("{prefix}/");
        let mut last = within.clone();
        loop {
            let page = self.index.repositories(&last, 1000)?;
            for name in &page.names {
                if !name.starts_with(&within) {
                    return Ok(());
                }
                if self.index.is_own(&name.parse()?)? {
                    let why = format!("{name} was pushed here: a cache over it would hide it");
                    return Err(Refused::new(Code::Denied, why).about(prefix).status_of(409));
                }
            }
            match page.names.last() {
                Some(end) if page.has_more => last.clone_from(end),
                _ => return Ok(()),
            }
        }
    }

    /// Lets go of a cache. Its copies are served until nobody has asked for them for a week.
    pub async fn remove_cache(&self, prefix: &str) -> ModelResult<()> {
        let prefix = prefix_of(prefix)?;
        let hold = self.hold();
        let was = self.index.set(format!("{SETTING}{prefix}"), None).await.map_err(Refused::into_error)?;
        self.caches.replace(&prefix, None);
        self.settled(hold).await.map_err(Refused::into_error)?;
        if !was {
            let known = self.caches.all();
            let known: Vec<_> = known.iter().map(|cache| format!("{:?}", cache.prefix)).collect();
            let help = match known.is_empty() {
                true => "there is none".to_owned(),
                false => format!("there are {}", known.join(", ")),
            };
            return Err(Error::not_found(format!("cache {prefix:?}")).help(help));
        }
        Ok(())
    }

    /// Whether a repository is one that is pushed to.
    pub fn check_pushed(&self, repository: &Repository) -> Result<(), Refused> {
        match self.caches.over(repository) {
            Some((cache, _)) if !cache.prefix.is_empty() => Err(is_copy(repository, &cache.settings.upstream)),
            _ => Ok(()),
        }
    }

    /// What a repository of another registry is called here: as containerd asks a mirror of that registry.
    pub fn mirrored(&self, registry: &str, name: &Repository) -> Result<Repository, Refused> {
        self.caches.called(registry, name).ok_or_else(|| {
            let why = format!("no copies are kept of {registry:.255}: neap registry cache set PREFIX {registry:.255}");
            Refused::new(Code::NameUnknown, why).about(name.as_str())
        })
    }

    /// Whether a repository holds copies, or is one to hold them.
    pub(super) fn is_copied(&self, repository: &Repository) -> Result<bool, Refused> {
        match self.caches.over(repository) {
            Some((cache, _)) if !cache.prefix.is_empty() => Ok(true),
            _ => self.index.has_copies(Some(repository)),
        }
    }

    // The cache that answers for a repository: none for what was pushed here.
    fn answers(&self, repository: &Repository) -> Result<Option<(Arc<Cache>, Repository)>, Refused> {
        let Some((cache, name)) = self.caches.over(repository) else { return Ok(None) };
        if cache.prefix.is_empty() && self.index.is_own(repository)? {
            return Ok(None);
        }
        Ok(Some((cache, name)))
    }

    // Before which a copy of this repository was asked for the last time if it is not to stay.
    pub(super) fn copies_since(&self, repository: &str, now: u64) -> u64 {
        let cache = repository.parse().ok().and_then(|name| self.caches.over(&name));
        let keep = cache.map_or_else(usual_keep, |(cache, _)| cache.settings.keep);
        now.saturating_sub(keep.millis())
    }
}
