//! What a registry has done since its daemon began, and what it holds, in numbers.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::ImageRegistry;
use super::cache::CacheInfo;
use super::refused::Refused;
use super::replica::ReplicaStats;
use super::upload::aside;

/// What is asked for.
pub const KINDS: [&str; 9] = ["base", "token", "catalog", "tags", "manifest", "blob", "upload", "referrers", "metrics"];
/// How.
const METHODS: [&str; 6] = ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE"];
/// Up to how many seconds an answer's head took.
const BUCKETS: [f64; 9] = [0.001, 0.005, 0.025, 0.1, 0.5, 2.5, 10.0, 60.0, f64::INFINITY];
/// How long what is held counts as known: it is added up.
const KNOWN: Duration = Duration::from_secs(30);
/// Repositories that are told of by their size.
const LARGEST: usize = 100;

#[derive(Default)]
struct Kind {
    // By method, and by the first digit of the status.
    answers: [[AtomicU64; 5]; METHODS.len()],
    took: [AtomicU64; BUCKETS.len()],
    micros: AtomicU64,
}

/// Counts.
#[derive(Default)]
pub struct Metrics {
    kinds: [Kind; KINDS.len()],
    received: AtomicU64,
    sent: AtomicU64,
    held: Mutex<Option<(Instant, Held)>>,
}

/// How often something was answered.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct RequestCount {
    /// What was asked for: `manifest`, `blob`, `upload`.
    pub kind: String,
    /// How.
    pub method: String,
    /// `2xx`, `4xx`.
    pub status: String,
    /// How often.
    pub count: u64,
}

/// How long it took until answers began.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct RequestTimes {
    /// What was asked for.
    pub kind: String,
    /// All together, in seconds.
    pub seconds: f64,
    /// How often it took no longer than so many seconds; the last is for all.
    pub buckets: Vec<TimeBucket>,
}

/// How often it took no longer.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct TimeBucket {
    /// Than so many seconds; nothing: however long.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub seconds: Option<f64>,
    /// How often.
    pub count: u64,
}

/// What a repository holds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct RepositorySize {
    /// Its name.
    pub name: String,
    /// Bytes; what others have as well is counted at each of them.
    pub size: u64,
}

/// What is held.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Held {
    /// Repositories.
    pub repositories: u64,
    /// Manifests in them.
    pub manifests: u64,
    /// Tags in them.
    pub tags: u64,
    /// Blobs, each once.
    pub blobs: u64,
    /// What those take, in bytes.
    pub size: u64,
    /// The largest repositories, a hundred at most.
    pub largest: Vec<RepositorySize>,
}

/// A registry in numbers.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct RegistryStats {
    /// Answers since the daemon began.
    pub requests: Vec<RequestCount>,
    /// How long it took until they began.
    pub times: Vec<RequestTimes>,
    /// What came in blobs, in bytes.
    pub received: u64,
    /// What went, in bytes.
    pub sent: u64,
    /// What is held, as of half a minute ago at most.
    pub held: Held,
    /// How the caches fare.
    pub caches: Vec<CacheInfo>,
    /// The bucket in which it is kept as well, where there is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub replica: Option<ReplicaStats>,
}

impl Metrics {
    /// Something was answered with this status, so long after it was asked.
    pub fn answered(&self, kind: &str, method: &str, status: u16, took: Duration) {
        let Some(kind) = KINDS.iter().position(|known| *known == kind).and_then(|kind| self.kinds.get(kind)) else {
            return;
        };
        let method = METHODS.iter().position(|known| *known == method).and_then(|method| kind.answers.get(method));
        let class = usize::from(status / 100).checked_sub(1);
        if let Some(count) = method.zip(class).and_then(|(method, class)| method.get(class)) {
            count.fetch_add(1, Ordering::Relaxed);
        }
        let seconds = took.as_secs_f64();
        if let Some(bucket) = BUCKETS.iter().position(|most| seconds <= *most) {
            kind.took[bucket].fetch_add(1, Ordering::Relaxed);
        }
        kind.micros.fetch_add(u64::try_from(took.as_micros()).unwrap_or(u64::MAX), Ordering::Relaxed);
    }

    /// So many bytes of blobs came.
    pub fn received(&self, bytes: u64) {
        self.received.fetch_add(bytes, Ordering::Relaxed);
    }

    /// So many bytes went.
    pub fn sent(&self, bytes: u64) {
        self.sent.fetch_add(bytes, Ordering::Relaxed);
    }

    fn requests(&self) -> Vec<RequestCount> {
        let mut all = Vec::new();
        for (kind, counts) in KINDS.iter().zip(&self.kinds) {
            for (method, classes) in METHODS.iter().zip(&counts.answers) {
                for (class, count) in classes.iter().enumerate() {
                    let count = count.load(Ordering::Relaxed);
                    if count > 0 {
                        let status = format!("{}xx", class + 1);
                        all.push(RequestCount { kind: (*kind).into(), method: (*method).into(), status, count });
                    }
                }
            }
        }
        all
    }

    fn times(&self) -> Vec<RequestTimes> {
        let of = |(kind, counts): (&&str, &Kind)| {
            let mut sum = 0;
            let buckets = BUCKETS.iter().zip(&counts.took).map(|(most, count)| {
                sum += count.load(Ordering::Relaxed);
                TimeBucket { seconds: Some(*most).filter(|most| most.is_finite()), count: sum }
            });
            let buckets: Vec<TimeBucket> = buckets.collect();
            let seconds = counts.micros.load(Ordering::Relaxed) as f64 / 1e6;
            (sum > 0).then(|| RequestTimes { kind: (**kind).into(), seconds, buckets })
        };
        KINDS.iter().zip(&self.kinds).filter_map(of).collect()
    }
}

impl ImageRegistry {
    /// What it counts by.
    pub fn metrics(&self) -> &Metrics {
        &self.metrics
    }

    /// All numbers.
    pub async fn stats(self: &Arc<Self>) -> Result<RegistryStats, Refused> {
        let metrics = &self.metrics;
        let of = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        Ok(RegistryStats {
            requests: metrics.requests(),
            times: metrics.times(),
            received: of(&metrics.received),
            sent: of(&metrics.sent),
            held: match self.held().await {
                // How it stands with its bucket is to be told also, and most of all, while nothing else can be.
                Err(_) if self.replica().is_some() => Held::default(),
                held => held?,
            },
            caches: self.caches(),
            replica: self.replica_stats()?,
        })
    }

    async fn held(self: &Arc<Self>) -> Result<Held, Refused> {
        let slot = || self.metrics.held.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((at, held)) = slot().as_ref()
            && at.elapsed() < KNOWN
        {
            return Ok(held.clone());
        }
        let own = self.clone();
        let held = aside(move || {
            let [repositories, manifests, tags, blobs] = own.index.counts()?;
            let mut largest: Vec<RepositorySize> = own
                .index
                .summaries("")?
                .into_iter()
                .map(|one| RepositorySize { name: one.name, size: one.bytes })
                .collect();
            largest.sort_by(|a, b| b.size.cmp(&a.size).then(a.name.cmp(&b.name)));
            largest.truncate(LARGEST);
            Ok(Held { repositories, manifests, tags, blobs, size: own.index.blob_bytes()?, largest })
        });
        let held = held.await?;
        *slot() = Some((Instant::now(), held.clone()));
        Ok(held)
    }
}
