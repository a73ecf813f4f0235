//! What a collection takes and what it leaves.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use serde_json::json;
use tokio::sync::mpsc;

use super::digest::{Algorithm, Digest};
use super::manifest::OCI_MANIFEST;
use super::name::{Reference, Repository};
use super::refused::Code;
use super::{Collected, ImageRegistry, Limits};
use crate::model::clock::{ManualClock, Timestamp};
use crate::model::units::Duration as Period;

const GRACE: Duration = Duration::from_secs(1000);

struct Tried {
    registry: Arc<ImageRegistry>,
    clock: Arc<ManualClock>,
    _folder: tempfile::TempDir,
}

fn name(text: &str) -> Repository {
    text.parse().unwrap()
}

fn of(bytes: &[u8]) -> Digest {
    Digest::of(Algorithm::Sha256, bytes)
}

impl Tried {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let clock = Arc::new(ManualClock::new(Timestamp(1_000_000_000), 1));
        let limits = Limits { grace: GRACE, ..Limits::default() };
        let registry = Arc::new(ImageRegistry::open(folder.path(), limits, clock.clone()).unwrap());
        Tried { registry, clock, _folder: folder }
    }

    fn pass(&self, seconds: u64) {
        self.clock.advance(Period::from_secs(seconds));
    }

    async fn push(&self, repository: &str, bytes: &[u8]) -> Digest {
        let (repository, digest) = (name(repository), of(bytes));
        let growing = self.registry.begin(&repository, Algorithm::Sha256).await.unwrap();
        let (sender, parts) = mpsc::channel(1);
        let part = self.registry.part(Bytes::copy_from_slice(bytes)).await.unwrap();
        let (received, _) = tokio::join!(self.registry.receive(growing, parts), async move {
            let _ = sender.send(part).await;
        });
        let (growing, _) = received.unwrap();
        self.registry.finish(&repository, growing, &digest).await.unwrap();
        digest
    }

    // An image of one layer.
    async fn image(&self, repository: &str, tag: &str, layer: &[u8]) -> Digest {
        let config = self.push(repository, b"{}").await;
        let layer_digest = self.push(repository, layer).await;
        let manifest = json!({ "schemaVersion": 2, "mediaType": OCI_MANIFEST,
            "config": { "mediaType": "x/y", "digest": config.as_str(), "size": 2 },
            "layers": [{ "mediaType": "x/z", "digest": layer_digest.as_str(), "size": layer.len() }] });
        let (repository, reference) = (name(repository), Reference::Tag(tag.into()));
        let bytes = manifest.to_string().into_bytes();
        self.registry.put_manifest(&repository, &reference, Vec::new(), None, bytes).await.unwrap().0
    }

    async fn has(&self, repository: &str, digest: &Digest) -> bool {
        match self.registry.read(&name(repository), digest).await {
            Ok(_) => true,
            Err(refused) => {
                assert_eq!(refused.code, Code::BlobUnknown);
                false
            }
        }
    }

    async fn collect(&self) -> Collected {
        self.registry.collect().await.unwrap()
    }
}

#[tokio::test]
async fn what_images_are_made_of_stays_and_the_rest_goes_after_a_while() {
    let tried = Tried::new();
    let image = tried.image("app", "1", b"layer").await;
    let stray = tried.push("app", b"stray").await;
    assert_eq!(tried.collect().await, Collected::default(), "it has just come");
    tried.pass(1001);
    let done = tried.collect().await;
    assert_eq!((done.unlinked, done.blobs, done.bytes), (1, 1, 5));
    assert!(!tried.has("app", &stray).await && tried.has("app", &of(b"layer")).await);
    assert!(!tried.registry.disk.is_there(&stray));

    // Whoever loses the last image keeps its layers for as long as one that has just come.
    tried.registry.delete_manifest(&name("app"), &Reference::Digest(image)).await.unwrap();
    tried.pass(999);
    assert_eq!(tried.collect().await, Collected::default());
    tried.pass(2);
    assert_eq!(tried.collect().await.blobs, 2);
    assert_eq!(tried.registry.counts().unwrap(), [0, 0, 0, 0]);
}

#[tokio::test]
async fn what_is_asked_for_is_kept_for_who_may_be_about_to_name_it() {
    let tried = Tried::new();
    let layer = tried.push("app", b"layer").await;
    tried.pass(900);
    // A push asks whether a layer is there, and sends it not again.
    assert_eq!(tried.registry.blob(&name("app"), &layer).await.unwrap(), 5);
    tried.pass(900);
    assert_eq!(tried.collect().await, Collected::default());
    tried.image("app", "1", b"layer").await;
    tried.pass(5000);
    tried.collect().await;
    assert!(tried.has("app", &layer).await);
    assert_eq!(tried.registry.blob(&name("other"), &layer).await.unwrap_err().code, Code::BlobUnknown);
}

#[tokio::test]
async fn one_repository_goes_without_another() {
    let tried = Tried::new();
    tried.image("app", "1", b"layer").await;
    let layer = of(b"layer");
    assert!(tried.registry.mount(&name("app"), &name("copy"), &layer).await.unwrap());
    tried.pass(1001);
    let done = tried.collect().await;
    assert_eq!((done.unlinked, done.blobs), (1, 0), "of one it is not, of the other it is");
    assert!(!tried.has("copy", &layer).await && tried.has("app", &layer).await);
    assert!(!tried.registry.mount(&name("copy"), &name("third"), &layer).await.unwrap());
}

#[tokio::test]
async fn what_belongs_to_nothing_goes_and_what_comes_back_stays() {
    let tried = Tried::new();
    let layer = tried.push("app", b"layer").await;
    // As after a death between a blob's name and its entry.
    let stray = of(b"stray");
    let path = tried._folder.path().join("blobs/sha256").join(&stray.hex()[..2]).join(stray.hex());
    std::fs::write(&path, b"stray").unwrap();
    tried.collect().await;
    assert!(path.exists(), "it may be just coming");
    let old = std::time::SystemTime::now() - Duration::from_secs(2 * 60 * 60);
    std::fs::File::options().write(true).open(&path).unwrap().set_modified(old).unwrap();
    let other = tried._folder.path().join("blobs/sha256").join(&layer.hex()[..2]).join(layer.hex());
    std::fs::File::options().write(true).open(&other).unwrap().set_modified(old).unwrap();
    assert_eq!(tried.collect().await.strays, 1);
    assert!(!path.exists() && tried.has("app", &layer).await);
    // One that comes where a stray file is takes its place.
    std::fs::write(&path, b"other").unwrap();
    tried.push("app", b"stray").await;
    assert_eq!(std::fs::read(&path).unwrap(), b"stray");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn pushes_and_collections_at_once() {
    let tried = Arc::new(Tried::new());
    let until = std::time::Instant::now() + Duration::from_secs(3);
    // Time passes between pushes alone; collections go on beside them.
    let time = Arc::new(tokio::sync::RwLock::new(()));
    let mut pushes = tokio::task::JoinSet::new();
    for number in 0..4_u32 {
        let (tried, time) = (tried.clone(), time.clone());
        pushes.spawn(async move {
            let mut rounds = 0;
            while std::time::Instant::now() < until {
                let _now = time.read().await;
                // All push the same layers over and over, and forget them.
                let repository = format!("app{}", number % 2);
                let layer = format!("layer {}", rounds % 40);
                let image = tried.image(&repository, &format!("t{number}"), layer.as_bytes()).await;
                assert!(tried.has(&repository, &of(layer.as_bytes())).await, "what is acknowledged is there");
                let gone = tried.registry.delete_manifest(&name(&repository), &Reference::Digest(image)).await;
                assert!(gone.is_ok() || gone.unwrap_err().code == Code::ManifestUnknown);
                rounds += 1;
            }
            rounds
        });
    }
    // Two, as where somebody asks for one while another is under way.
    let collectors: Vec<_> = (0..2)
        .map(|_| {
            let (tried, time) = (tried.clone(), time.clone());
            tokio::spawn(async move {
                let mut blobs = 0;
                while std::time::Instant::now() < until {
                    let now = time.write().await;
                    tried.pass(1001);
                    drop(now);
                    blobs += tried.collect().await.blobs;
                }
                blobs
            })
        })
        .collect();
    let rounds: u32 = pushes.join_all().await.into_iter().sum();
    let mut blobs = 0;
    for collector in collectors {
        blobs += collector.await.unwrap();
    }
    assert!(rounds > 20 && blobs > 3, "{rounds} pushes, {blobs} blobs collected");
}

#[tokio::test]
async fn what_is_damaged_comes_anew_wherever_it_is_named() {
    let tried = Tried::new();
    tried.image("app", "1", b"layer").await;
    let layer = of(b"layer");
    let path = tried._folder.path().join("blobs/sha256").join(&layer.hex()[..2]).join(layer.hex());
    std::fs::write(&path, b"Layer").unwrap();
    let scrubbed = tried.registry.scrub(|_| {}).await.unwrap();
    assert_eq!((scrubbed.blobs, scrubbed.damaged), (2, vec![layer.clone()]));
    assert!(!tried.has("app", &layer).await);
    // Whoever would mount it has to send it, and a manifest of it is not taken before.
    assert!(!tried.registry.mount(&name("app"), &name("other"), &layer).await.unwrap());
    tried.push("other", b"{}").await;
    let manifest = json!({ "schemaVersion": 2, "config": { "digest": of(b"{}").as_str(), "size": 2 },
        "layers": [{ "digest": layer.as_str(), "size": 5 }] });
    let (app, tag) = (name("app"), Reference::Tag("2".into()));
    let put = tried.registry.put_manifest(&app, &tag, Vec::new(), None, manifest.to_string().into_bytes());
    assert_eq!(put.await.unwrap_err().code, Code::ManifestBlobUnknown);
    tried.push("other", b"layer").await;
    assert!(tried.has("app", &layer).await && tried.has("other", &layer).await);
    assert_eq!(std::fs::read(&path).unwrap(), b"layer");
    assert!(tried.registry.scrub(|_| {}).await.unwrap().damaged.is_empty());
}

#[tokio::test]
async fn uploads_are_given_up_after_a_while() {
    let tried = Tried::new();
    let mut growing = tried.registry.begin(&name("app"), Algorithm::Sha256).await.unwrap();
    let id = growing.id().to_owned();
    let old = std::time::SystemTime::now() - Duration::from_secs(25 * 60 * 60);
    let file = std::fs::read_dir(tried._folder.path().join("uploads")).unwrap().flatten().next().unwrap().path();
    let age = || std::fs::File::options().write(true).open(&file).unwrap().set_modified(old).unwrap();
    age();
    assert_eq!(tried.collect().await.uploads, 0, "somebody goes on with it");
    let (sender, parts) = mpsc::channel(1);
    sender.send(tried.registry.part(Bytes::from_static(b"x")).await.unwrap()).await.unwrap();
    drop(sender);
    (growing, _) = tried.registry.receive(growing, parts).await.unwrap();
    assert_eq!(growing.size(), 1);
    drop(growing);
    assert_eq!(tried.collect().await.uploads, 0, "it is new again");
    age();
    assert_eq!(tried.collect().await.uploads, 1);
    let gone = tried.registry.upload(&name("app"), &id).await.err().unwrap();
    assert_eq!(gone.code, Code::BlobUploadUnknown);
    assert!(!file.exists());
}
