//! The images of the cluster's registry, as they are asked for and shown.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::model::clock::Timestamp;

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
