//! Images that are built from files, without Docker: layers come as blobs (`layer` makes them where the files are), the registry writes config and
//! manifest. The same files give the same image, byte for byte.

mod archive;
mod config;
mod heads;
pub mod layer;
#[cfg(test)]
mod tests;
pub mod tree;

use std::collections::{BTreeMap, VecDeque};
use std::io::Read;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tokio::sync::mpsc;

use self::config::{change, from_nothing, own_platform, platform_of};
use self::tree::{Scan, Tree};
use super::ImageRegistry;
use super::copy::{Copied, End, for_platform};
use super::digest::{Algorithm, Digest};
use super::manifest::{DOCKER_MANIFEST, Named, OCI_MANIFEST};
use super::name::{self, Reference, Repository};
use super::refused::{Code, Refused};
use super::upload::{Received, aside};
use crate::model::{Error, Result as ModelResult, spellings};

/// Largest config, in bytes.
const MAX_CONFIG: u64 = 4 << 20;
/// Most layers of an image: Docker mounts no more.
const MAX_LAYERS: usize = 127;
/// What is remembered of the folders of images that others were built from: so many images, and so large ones.
const TREES: usize = 8;
const SMALL: usize = 50_000;

/// What an image is to be built from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct BaseAsk {
    /// The image that is to be built: `shop/api:1.0`.
    pub image: String,
    /// The image that it is built from, of this registry or of another: `docker.io/library/alpine:3.20`.
    pub from: String,
    /// Of an index the image for this platform: `linux/arm64`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub platform: Option<String>,
    /// Its folders and links are asked for.
    #[serde(default)]
    pub tree: bool,
}

/// The image that another one is built from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Base {
    /// What it was called.
    pub name: String,
    /// Its digest.
    pub digest: String,
    /// What kind its manifest is.
    pub media_type: String,
    /// Its manifest.
    pub manifest: String,
}

/// How far its coming is.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Based {
    /// What of it is there.
    pub copied: Copied,
    /// It, once all of it is there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub base: Option<Base>,
    /// Its folders and links, where they were asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tree: Option<Arc<Tree>>,
    /// Whether that was all.
    pub done: bool,
}

/// A layer that was pushed as a blob.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct BuiltLayer {
    /// Its digest.
    pub digest: String,
    /// The digest of what it unpacks to.
    pub diff_id: String,
    /// How large it is, in bytes.
    pub size: u64,
    /// What `docker history` says of it.
    pub created_by: String,
}

/// How an image is run; what is not said is as in the image that it is built from.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct ImageSettings {
    /// Environment variables, besides those of the other image.
    #[serde(deserialize_with = "spellings::environment", skip_serializing_if = "BTreeMap::is_empty")]
    pub env: BTreeMap<String, String>,
    /// What is run, word by word, or one shell command line; the command of the other image does not count then.
    #[serde(deserialize_with = "spellings::some_command", skip_serializing_if = "Option::is_none")]
    pub entrypoint: Option<Vec<String>>,
    /// What it is run with.
    #[serde(deserialize_with = "spellings::some_command", skip_serializing_if = "Option::is_none")]
    pub command: Option<Vec<String>>,
    /// Where.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub workdir: Option<String>,
    /// As whom: `1000`, `1000:1000`, `nobody`.
    #[serde(deserialize_with = "spellings::text", skip_serializing_if = "Option::is_none")]
    pub user: Option<String>,
    /// Labels, besides those of the other image.
    #[serde(deserialize_with = "spellings::environment", skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, String>,
    /// Ports that it serves: `8080`, `53/udp`.
    #[serde(deserialize_with = "spellings::texts", skip_serializing_if = "Vec::is_empty")]
    pub expose: Vec<String>,
    /// Folders that are volumes.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub volumes: Vec<String>,
    /// The signal that it ends by: `SIGTERM`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub stop_signal: Option<String>,
}

/// An image that is to be written.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct BuildAsk {
    /// What it is to be called: `shop/api:1.0`.
    pub image: String,
    /// What it is built from; nothing: from nothing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub base: Option<Base>,
    /// The platform that it is for, where it is built from nothing; that of the registry's host without it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub platform: Option<String>,
    /// Its layers, the lowest first.
    pub layers: Vec<BuiltLayer>,
    /// How it is run.
    #[serde(default)]
    pub settings: ImageSettings,
    /// When it says that it was made, in seconds since 1970.
    #[serde(default)]
    pub created: u64,
}

/// An image that was built.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Built {
    /// It by its digest, as every host of the cluster gets it: `127.0.0.1:5000/shop/api@sha256:...`.
    pub image: String,
    /// Where it is.
    pub repository: String,
    /// Its tag.
    pub tag: String,
    /// Its digest.
    pub digest: String,
    /// The platform that it is for.
    pub platform: String,
    /// How many layers it has.
    pub layers: u64,
    /// What they take, in bytes.
    pub size: u64,
}

/// What is remembered of images that others were built from.
#[derive(Default)]
pub struct Trees {
    known: Mutex<VecDeque<(Digest, Arc<Tree>)>>,
    // One is looked through at a time.
    turn: tokio::sync::Mutex<()>,
}

impl Trees {
    fn get(&self, digest: &Digest) -> Option<Arc<Tree>> {
        let known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        known.iter().find(|(of, _)| of == digest).map(|(_, tree)| tree.clone())
    }

    fn keep(&self, digest: &Digest, tree: &Arc<Tree>) {
        if tree.count() <= SMALL {
            let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
            known.push_front((digest.clone(), tree.clone()));
            known.truncate(TREES);
        }
    }
}

fn invalid(why: impl Into<String>) -> Refused {
    Refused::new(Code::ManifestInvalid, why)
}

fn of_build(image: &str, refused: Refused) -> Error {
    let error = refused.into_error();
    Error::new(error.kind, format!("build of {image}"), format!("{}: {}", error.subject, error.message))
}

fn target(image: &str) -> ModelResult<(Repository, String)> {
    let subject = || format!("build of {image:.300}");
    if name::elsewhere(image).is_some() {
        return Err(
            Error::invalid(subject(), "is for the cluster's own registry").help("neap registry copy takes it on")
        );
    }
    match name::image(image).map_err(|refused| of_build(image, refused))? {
        (repository, Reference::Tag(tag)) => Ok((repository, tag)),
        (_, Reference::Digest(_)) => {
            Err(Error::invalid(subject(), "needs a tag: its digest follows from what is in it"))
        }
    }
}

// Dropped, it says that nobody waits any more.
struct Over(Arc<AtomicBool>);

impl Drop for Over {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

impl ImageRegistry {
    /// Brings all that an image is made of which another one is to be built from, and tells its folders and links.
    pub async fn base(self: &Arc<Self>, ask: BaseAsk, told: impl Fn(&Copied) + Send + Sync) -> ModelResult<Based> {
        let _turn = self.copying.acquire().await;
        let (repository, _) = target(&ask.image)?;
        let (from, wanted) = self.end(&ask.from).await?;
        let based = self.base_of(&repository, &from, &wanted, &ask, &told).await;
        based.map_err(|refused| of_build(&ask.image, refused))
    }

    async fn base_of(
        self: &Arc<Self>,
        repository: &Repository,
        from: &End,
        wanted: &Reference,
        ask: &BaseAsk,
        told: &(impl Fn(&Copied) + Send + Sync),
    ) -> Result<Based, Refused> {
        self.check_pushed(repository)?;
        let mut top = from.manifest(self, wanted).await?;
        let platform = ask.platform.clone().unwrap_or_else(own_platform);
        let mut is_chosen = false;
        if let Some(child) = for_platform(&top.bytes, &platform)? {
            is_chosen = true;
            top = from.manifest(self, &Reference::Digest(child)).await?;
        }
        let to = End::Own(repository.clone());
        let all = [top];
        let mut copied = self.carry_all(from, &to, &all, told).await?;
        let [top] = all;
        copied.digest = Some(top.digest.to_string());
        copied.done = true;
        let manifest = String::from_utf8(top.bytes).map_err(|_| invalid("the manifest is not UTF-8"))?;
        let base =
            Base { name: ask.from.clone(), digest: top.digest.to_string(), media_type: top.media_type, manifest };
        // What an index says of a platform counts.
        if let (Some(wanted), false) = (&ask.platform, is_chosen) {
            let (_, config) = self.read_base(repository, &base).await?;
            let is = platform_of(&config);
            if is != *wanted && !is.starts_with(&format!("{wanted}/")) && !wanted.starts_with(&format!("{is}/")) {
                return Err(invalid(format!("{} is for {is}, not for {wanted}", ask.from)));
            }
        }
        let mut tree = None;
        if ask.tree {
            let layers = top.manifest.blobs.into_iter().skip(1).filter(|named| !named.is_foreign);
            tree = Some(self.tree(repository, &top.digest, layers.collect()).await?);
        }
        Ok(Based { copied, base: Some(base), tree, done: true })
    }

    async fn tree(
        self: &Arc<Self>,
        repository: &Repository,
        digest: &Digest,
        layers: Vec<Named>,
    ) -> Result<Arc<Tree>, Refused> {
        let _turn = self.trees.turn.lock().await;
        if let Some(tree) = self.trees.get(digest) {
            return Ok(tree);
        }
        let mut files = Vec::new();
        for layer in layers {
            files.push((self.whole_blob(repository, &layer.digest).await?.0, layer.digest));
        }
        let (own, digest) = (self.clone(), digest.clone());
        // Where nobody waits for it any more, it ends.
        let over = Over(Arc::default());
        let is_over = over.0.clone();
        aside(move || {
            let mut scan = Scan::new(&is_over);
            for (file, layer) in files {
                scan.layer(file).map_err(|error| invalid(format!("layer {layer} {error}")))?;
            }
            let tree = Arc::new(scan.tree);
            own.trees.keep(&digest, &tree);
            Ok(tree)
        })
        .await
    }

    // Its manifest and its config, which is in the repository by now.
    async fn read_base(self: &Arc<Self>, repository: &Repository, base: &Base) -> Result<(Value, Value), Refused> {
        let unreadable = |what: &'static str| move |error: serde_json::Error| invalid(format!("its {what}: {error}"));
        let manifest: Value = serde_json::from_str(&base.manifest).map_err(unreadable("manifest"))?;
        let digest: Digest = manifest["config"]["digest"].as_str().unwrap_or_default().parse()?;
        let (file, size) = self.whole_blob(repository, &digest).await?;
        if size > MAX_CONFIG {
            return Err(invalid(format!("its config is larger than {} MiB", MAX_CONFIG >> 20)));
        }
        let config = aside(move || {
            let mut text = Vec::new();
            file.take(MAX_CONFIG).read_to_end(&mut text).map_err(|error| Refused::io("read a config", &error))?;
            Ok(text)
        });
        let config: Value = serde_json::from_slice(&config.await?).map_err(unreadable("config"))?;
        let count = |value: &Value| value.as_array().map(Vec::len);
        let is_image =
            count(&manifest["layers"]).is_some() && count(&manifest["layers"]) == count(&config["rootfs"]["diff_ids"]);
        match config.is_object() && is_image {
            true => Ok((manifest, config)),
            false => Err(invalid(format!("{} is no image that can be built from", base.name))),
        }
    }

    /// Adds a piece to an upload behind so many bytes; how many there are then. One that is there already is not added again.
    pub async fn add(&self, repository: &Repository, upload: &str, offset: u64, piece: Bytes) -> Result<u64, Refused> {
        let growing = self.upload(repository, upload).await?;
        let (size, end) = (growing.size(), offset.saturating_add(piece.len() as u64));
        if size == end {
            return Ok(size);
        }
        if size != offset {
            let why = format!("the upload has {size} bytes, and the piece is for behind {offset}");
            return Err(Refused::new(Code::BlobUploadInvalid, why).status_of(416));
        }
        let (sender, parts) = mpsc::channel(1);
        let part = self.part(piece).await?;
        let send = async move { sender.send(part).await };
        let (received, _) = tokio::join!(self.receive(growing, parts), send);
        match received? {
            (growing, Received::All) => Ok(growing.size()),
            (_, Received::TooMuch) => Err(Refused::new(Code::SizeInvalid, "a blob is too large").status_of(413)),
        }
    }

    /// Gives an upload up; one that is over is none to give up.
    pub async fn drop_upload(&self, repository: &Repository, upload: &str) -> Result<(), Refused> {
        match self.upload(repository, upload).await {
            Ok(growing) => self.cancel(growing),
            Err(refused) if refused.code == Code::BlobUploadUnknown => Ok(()),
            Err(refused) => Err(refused),
        }
    }

    /// An upload is all there, and becomes a blob; its size. One that was is told so once more.
    pub async fn end_upload(
        self: &Arc<Self>,
        repository: &Repository,
        upload: &str,
        digest: &str,
    ) -> Result<u64, Refused> {
        let digest: Digest = digest.parse()?;
        match self.upload(repository, upload).await {
            Ok(growing) => self.finish(repository, growing, &digest).await,
            Err(refused) if refused.code == Code::BlobUploadUnknown => {
                self.blob(repository, &digest).await.map_err(|_| refused)
            }
            Err(refused) => Err(refused),
        }
    }

    /// Writes an image whose layers are there; `door` is where hosts get it.
    pub async fn build(self: &Arc<Self>, ask: BuildAsk, door: &str) -> ModelResult<Built> {
        let (repository, tag) = target(&ask.image)?;
        let built = self.build_in(&repository, &tag, &ask, door).await;
        built.map_err(|refused| of_build(&ask.image, refused))
    }

    async fn build_in(
        self: &Arc<Self>,
        repository: &Repository,
        tag: &str,
        ask: &BuildAsk,
        door: &str,
    ) -> Result<Built, Refused> {
        let (mut layers, mut config, is_docker) = match &ask.base {
            Some(base) => {
                let (mut manifest, config) = self.read_base(repository, base).await?;
                let Value::Array(layers) = manifest["layers"].take() else { return Err(invalid("it has no layers")) };
                (layers, config, base.media_type == DOCKER_MANIFEST)
            }
            None => (Vec::new(), from_nothing(ask.platform.as_deref())?, false),
        };
        let (kind, config_kind, layer_kind) = match is_docker {
            true => (
                DOCKER_MANIFEST,
                "application/vnd.docker.container.image.v1+json",
                "application/vnd.docker.image.rootfs.diff.tar.gzip",
            ),
            false => (
                OCI_MANIFEST,
                "application/vnd.oci.image.config.v1+json",
                "application/vnd.oci.image.layer.v1.tar+gzip",
            ),
        };
        for layer in &ask.layers {
            let BuiltLayer { digest, size, diff_id, .. } = layer;
            digest.parse::<Digest>().and(diff_id.parse::<Digest>())?;
            layers.push(json!({ "mediaType": layer_kind, "digest": digest, "size": size }));
        }
        if layers.is_empty() || layers.len() > MAX_LAYERS {
            let why = format!("it would have {} layers: at least one, and {MAX_LAYERS} at most", layers.len());
            return Err(invalid(why));
        }
        change(&mut config, ask)?;
        let text = serde_json::to_vec(&config).map_err(|error| invalid(error.to_string()))?;
        let named = Named { digest: Digest::of(Algorithm::Sha256, &text), size: text.len() as u64, is_foreign: false };
        let described = json!({ "mediaType": config_kind, "digest": named.digest.as_str(), "size": named.size });
        let parts = futures_util::stream::iter([Ok(Bytes::from(text))]);
        self.take(repository, &named, parts).await?;
        let mut manifest =
            json!({ "schemaVersion": 2, "mediaType": kind, "config": described, "layers": layers.clone() });
        if let (false, Some(base)) = (is_docker, &ask.base) {
            manifest["annotations"] = json!({
                "org.opencontainers.image.base.name": base.name,
                "org.opencontainers.image.base.digest": base.digest,
            });
        }
        let bytes = serde_json::to_vec(&manifest).map_err(|error| invalid(error.to_string()))?;
        let reference = Reference::Tag(tag.to_owned());
        let (digest, _) = self.put_manifest(repository, &reference, Vec::new(), Some(kind), bytes).await?;
        Ok(Built {
            image: format!("{door}/{repository}@{digest}"),
            repository: repository.to_string(),
            tag: tag.to_owned(),
            digest: digest.to_string(),
            platform: platform_of(&config),
            layers: layers.len() as u64,
            size: layers.iter().filter_map(|layer| layer["size"].as_u64()).fold(0, u64::saturating_add),
        })
    }
}
