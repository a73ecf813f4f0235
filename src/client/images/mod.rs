//! The images of the cluster's registry, as they are asked for and shown.

pub mod ask;
pub mod build;

use std::collections::BTreeMap;

use async_trait::async_trait;
use bytes::Bytes;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use self::build::Packed;
use super::Stream1;
use super::remote::{RemoteCluster, segment};
use crate::model::Result;
use crate::model::clock::Timestamp;
pub use crate::model::moves::{MovesSeen, NodeMoved, PullAsk, PushAsk};
pub use crate::registry::build::{BaseAsk, Based, BuildAsk, Built, ImageSettings};
pub use crate::registry::cache::{CacheInfo, CacheSettings};
pub use crate::registry::copy::{Copied, CopyAsk};
pub use crate::registry::import::{ImportAsk, Imported};
pub use crate::registry::metrics::RegistryStats;
pub use crate::registry::prune::{PruneAsk, Pruned, PrunedImage};
pub use crate::registry::rules::{Rule, RuleSettings};

/// A repository.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ImageRepository {
    /// Its name.
    pub name: String,
    /// How many tags it has.
    pub tags: u64,
    /// How many manifests.
    pub manifests: u64,
    /// How many blobs.
    pub blobs: u64,
    /// What those take, in bytes; what others have as well is counted at each of them.
    pub size: u64,
}

/// A tag.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ImageTag {
    /// Its name.
    pub tag: String,
    /// The manifest that it leads to.
    pub digest: String,
    /// What kind that is.
    pub media_type: String,
    /// When the tag was set.
    pub at: Timestamp,
    /// What the image takes, in bytes: its manifest and all that it is made of.
    pub size: u64,
}

/// Something that an image is made of.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ImagePart {
    /// Its digest.
    pub digest: String,
    /// What kind it is.
    pub media_type: String,
    /// What it takes, in bytes.
    pub size: u64,
    /// The platform that it is for, in an index: `linux/arm64`.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub platform: String,
}

/// What says something of an image: a signature, an SBOM.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ImageReferrer {
    /// Its digest.
    pub digest: String,
    /// What it is.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub artifact_type: String,
    /// What is said of it besides.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub annotations: BTreeMap<String, String>,
}

/// An image, or an index of several.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ImageInfo {
    /// Where it is.
    pub repository: String,
    /// Its digest.
    pub digest: String,
    /// What kind it is.
    pub media_type: String,
    /// When it came to this repository.
    pub at: Timestamp,
    /// The tags that lead to it.
    pub tags: Vec<String>,
    /// What it takes, in bytes: its manifest and all that it is made of.
    pub size: u64,
    /// How it is run: what its config says; nothing for an index.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub config: Option<Value>,
    /// Its layers.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub layers: Vec<ImagePart>,
    /// The images that an index holds together.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub manifests: Vec<ImagePart>,
    /// The manifest that it says something of.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub subject: Option<String>,
    /// What says something of it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub referrers: Vec<ImageReferrer>,
    /// What is said of it besides.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub annotations: BTreeMap<String, String>,
}

/// What a collection removed, or would.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ImagesCollected {
    /// Blobs that their repositories did not need any more.
    pub unlinked: u64,
    /// Blobs that no repository needed.
    pub blobs: u64,
    /// What those took, in bytes.
    pub size: u64,
    /// Files that belonged to nothing.
    pub strays: u64,
    /// Copies of other registries' manifests that nobody asked for any more.
    #[serde(default)]
    pub copies: u64,
    /// Uploads that nobody went on with.
    pub uploads: u64,
}

/// How far all blobs have been read once more.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ImagesScrubbed {
    /// Blobs that were read.
    pub blobs: u64,
    /// Of so many.
    pub of: u64,
    /// What was read, in bytes.
    pub size: u64,
    /// Blobs that are not what they are called after: put aside, so that the next push brings them anew.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub damaged: Vec<String>,
    /// Blobs whose file is not there.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub missing: Vec<String>,
    /// Whether that was all.
    pub done: bool,
}

/// Which host of a Swarm keeps the images.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ImageKeeper {
    /// The node, where there is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node: Option<String>,
    /// Where the doors of other hosts reach it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub address: Option<String>,
    /// Whether it is there now.
    pub connected: bool,
    /// The nodes that were started for it.
    pub offers: Vec<String>,
}

/// A node by name.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct KeeperAsk {
    /// Its name or id.
    pub node: String,
}

/// A piece of a blob that comes in pieces.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct PieceAsk {
    /// How many bytes came before it.
    pub offset: u64,
    /// It.
    pub bytes: Packed,
}

/// Which host of a Swarm keeps the images, and another one.
#[async_trait]
pub trait Keepers: Send + Sync {
    /// Which one.
    async fn keeper(&self) -> Result<ImageKeeper>;
    /// This one from now on, with what it has: what the one before had stays there. Durable when it returns.
    async fn name_keeper(&self, node: &str) -> Result<ImageKeeper>;
}

#[async_trait]
impl Keepers for RemoteCluster {
    async fn keeper(&self) -> Result<ImageKeeper> {
        self.get("/v1/image-registry/keeper").await
    }

    async fn name_keeper(&self, node: &str) -> Result<ImageKeeper> {
        self.call("PUT", "/v1/image-registry/keeper", Some(&KeeperAsk { node: node.to_owned() })).await
    }
}

/// Images that Docker Engines of the cluster get and bring.
#[async_trait]
pub trait EngineImages: Send + Sync {
    /// Lets Docker Engines get an image; how far all of them are, to the end.
    async fn pull_image(&self, ask: PullAsk) -> Result<Stream1<MovesSeen>>;
    /// Lets a Docker Engine bring an image to a registry; how far that is, to the end.
    async fn push_image(&self, ask: PushAsk) -> Result<Stream1<MovesSeen>>;
}

#[async_trait]
impl EngineImages for RemoteCluster {
    async fn pull_image(&self, ask: PullAsk) -> Result<Stream1<MovesSeen>> {
        self.stream_of("POST", "/v1/image-registry/pull", Some(&ask)).await
    }

    async fn push_image(&self, ask: PushAsk) -> Result<Stream1<MovesSeen>> {
        self.stream_of("POST", "/v1/image-registry/push", Some(&ask)).await
    }
}

/// What anybody can ask of the cluster's image registry.
#[async_trait]
pub trait Images: Send + Sync {
    /// Repositories of the cluster's registry whose names begin so.
    async fn image_repositories(&self, prefix: &str) -> Result<Vec<ImageRepository>>;
    /// A repository's tags, by name.
    async fn image_tags(&self, repository: &str) -> Result<Vec<ImageTag>>;
    /// An image: `shop/api:1.0`, `shop/api@sha256:...`.
    async fn image(&self, name: &str) -> Result<ImageInfo>;
    /// An image by its digest, as every host of the cluster gets it: `127.0.0.1:5000/shop/api@sha256:...`.
    async fn resolve_image(&self, name: &str) -> Result<String>;
    /// Where every host of the cluster finds its registry: `127.0.0.1:5000`.
    async fn image_door(&self) -> Result<String>;
    /// The certificate, in PEM, that clients need who reach the registry by its name; nothing where its certificate is its owner's, or it has no name.
    async fn image_ca(&self) -> Result<Option<String>>;
    /// Deletes a tag, or by its digest a manifest with all its tags. Durable when it returns.
    async fn delete_image(&self, name: &str) -> Result<()>;
    /// Removes what no image needs any more; `dry_run`: says only what that would be.
    async fn collect_images(&self, dry_run: bool) -> Result<ImagesCollected>;
    /// Reads all blobs once more; how far that is, to the end.
    async fn scrub_images(&self) -> Result<Stream1<ImagesScrubbed>>;
    /// The registries of which it keeps copies, by prefix.
    async fn image_caches(&self) -> Result<Vec<CacheInfo>>;
    /// Keeps copies of a registry in repositories whose names begin so; `/`: in all that nobody pushes to. Durable when it returns.
    async fn set_image_cache(&self, prefix: &str, settings: CacheSettings) -> Result<CacheInfo>;
    /// Lets go of such a cache. Durable when it returns.
    async fn remove_image_cache(&self, prefix: &str) -> Result<()>;
    /// Copies an image from one registry to another; how far that is, to the end.
    async fn copy_image(&self, ask: CopyAsk) -> Result<Stream1<Copied>>;
    /// Takes over what Docker's registry keeps in a folder of the registry's host; how far that is, to the end.
    async fn import_images(&self, ask: ImportAsk) -> Result<Stream1<Imported>>;
    /// The registry in numbers.
    async fn image_stats(&self) -> Result<RegistryStats>;
    /// The rules for repositories, by pattern.
    async fn image_rules(&self) -> Result<Vec<Rule>>;
    /// Sets a rule for repositories with such a name. Durable when it returns.
    async fn set_image_rule(&self, repositories: &str, rule: RuleSettings) -> Result<Rule>;
    /// Removes a rule. Durable when it returns.
    async fn remove_image_rule(&self, repositories: &str) -> Result<()>;
    /// Removes tags and manifests that are old, or too many, but none that runs or that a service could go back to.
    async fn prune_tags(&self, ask: PruneAsk) -> Result<Pruned>;
    /// Brings all that an image is made of which another one is to be built from; how far that is, to the end.
    async fn image_base(&self, ask: BaseAsk) -> Result<Stream1<Based>>;
    /// Begins a blob of a repository, by sha256; what the upload is called.
    async fn begin_blob(&self, repository: &str) -> Result<String>;
    /// Adds a piece to it behind so many bytes; how many there are now. The same piece once more changes nothing.
    async fn add_to_blob(&self, repository: &str, upload: &str, offset: u64, piece: Bytes) -> Result<u64>;
    /// It will not be all there; one that is over already is none.
    async fn drop_blob(&self, repository: &str, upload: &str) -> Result<()>;
    /// It is all there, and has this digest; its size. Durable when it returns.
    async fn end_blob(&self, repository: &str, upload: &str, digest: &str) -> Result<u64>;
    /// Writes an image whose layers are there. Durable when it returns.
    async fn build_image(&self, ask: BuildAsk) -> Result<Built>;
}

// Nothing is no segment of a path.
fn cache_path(prefix: &str) -> String {
    format!("/v1/image-registry/caches/{}", segment(if prefix.is_empty() { "/" } else { prefix }))
}

#[async_trait]
impl Images for RemoteCluster {
    async fn image_repositories(&self, prefix: &str) -> Result<Vec<ImageRepository>> {
        self.get(&format!("/v1/images?prefix={}", segment(prefix))).await
    }

    async fn image_tags(&self, repository: &str) -> Result<Vec<ImageTag>> {
        self.get(&format!("/v1/images/{}/tags", segment(repository))).await
    }

    async fn image(&self, name: &str) -> Result<ImageInfo> {
        self.get(&format!("/v1/images/{}", segment(name))).await
    }

    async fn resolve_image(&self, name: &str) -> Result<String> {
        self.get(&format!("/v1/image-registry/resolve?image={}", segment(name))).await
    }

    async fn image_door(&self) -> Result<String> {
        self.get("/v1/image-registry/door").await
    }

    async fn image_ca(&self) -> Result<Option<String>> {
        self.get("/v1/image-registry/ca").await
    }

    async fn delete_image(&self, name: &str) -> Result<()> {
        self.call("DELETE", &format!("/v1/images/{}", segment(name)), None::<&()>).await
    }

    async fn collect_images(&self, dry_run: bool) -> Result<ImagesCollected> {
        self.call("POST", &format!("/v1/image-registry/collect?dry_run={dry_run}"), None::<&()>).await
    }

    async fn scrub_images(&self) -> Result<Stream1<ImagesScrubbed>> {
        self.stream_by("POST", "/v1/image-registry/scrub").await
    }

    async fn image_caches(&self) -> Result<Vec<CacheInfo>> {
        self.get("/v1/image-registry/caches").await
    }

    async fn set_image_cache(&self, prefix: &str, settings: CacheSettings) -> Result<CacheInfo> {
        self.call("PUT", &cache_path(prefix), Some(&settings)).await
    }

    async fn remove_image_cache(&self, prefix: &str) -> Result<()> {
        self.call("DELETE", &cache_path(prefix), None::<&()>).await
    }

    async fn copy_image(&self, ask: CopyAsk) -> Result<Stream1<Copied>> {
        let CopyAsk { from, to, platform } = &ask;
        let platform = platform.as_ref().map(|platform| format!("&platform={}", segment(platform))).unwrap_or_default();
        let path = format!("/v1/image-registry/copy?from={}&to={}{platform}", segment(from), segment(to));
        self.stream_by("POST", &path).await
    }

    async fn import_images(&self, ask: ImportAsk) -> Result<Stream1<Imported>> {
        let folder = ask.folder.to_string_lossy();
        let path = format!("/v1/image-registry/import?folder={}&prefix={}", segment(&folder), segment(&ask.prefix));
        self.stream_by("POST", &path).await
    }

    async fn image_stats(&self) -> Result<RegistryStats> {
        self.get("/v1/image-registry/stats").await
    }

    async fn image_rules(&self) -> Result<Vec<Rule>> {
        self.get("/v1/image-registry/rules").await
    }

    async fn set_image_rule(&self, repositories: &str, rule: RuleSettings) -> Result<Rule> {
        self.call("PUT", &format!("/v1/image-registry/rules/{}", segment(repositories)), Some(&rule)).await
    }

    async fn remove_image_rule(&self, repositories: &str) -> Result<()> {
        self.call("DELETE", &format!("/v1/image-registry/rules/{}", segment(repositories)), None::<&()>).await
    }

    async fn prune_tags(&self, ask: PruneAsk) -> Result<Pruned> {
        self.call("POST", "/v1/image-registry/prune", Some(&ask)).await
    }

    async fn image_base(&self, ask: BaseAsk) -> Result<Stream1<Based>> {
        self.stream_of("POST", "/v1/image-registry/base", Some(&ask)).await
    }

    async fn begin_blob(&self, repository: &str) -> Result<String> {
        self.call("POST", &format!("/v1/image-registry/uploads?repository={}", segment(repository)), None::<&()>).await
    }

    async fn add_to_blob(&self, repository: &str, upload: &str, offset: u64, piece: Bytes) -> Result<u64> {
        let path = format!("/v1/image-registry/uploads/{}?repository={}", segment(upload), segment(repository));
        self.call("PATCH", &path, Some(&PieceAsk { offset, bytes: Packed(piece) })).await
    }

    async fn drop_blob(&self, repository: &str, upload: &str) -> Result<()> {
        let path = format!("/v1/image-registry/uploads/{}?repository={}", segment(upload), segment(repository));
        self.call("DELETE", &path, None::<&()>).await
    }

    async fn end_blob(&self, repository: &str, upload: &str, digest: &str) -> Result<u64> {
        let (upload, repository, digest) = (segment(upload), segment(repository), segment(digest));
        let path = format!("/v1/image-registry/uploads/{upload}?repository={repository}&digest={digest}");
        self.call("PUT", &path, None::<&()>).await
    }

    async fn build_image(&self, ask: BuildAsk) -> Result<Built> {
        self.call("POST", "/v1/image-registry/build", Some(&ask)).await
    }
}
