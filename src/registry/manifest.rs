//! What a manifest names: blobs, other manifests, a subject. It is kept byte for byte as it came.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::digest::Digest;
use super::refused::{Code, Refused};

/// Largest manifest, in bytes. The specification asks for 4 MB at least.
pub const MAX_MANIFEST: usize = 8 << 20;
/// Most things that one names.
const MAX_NAMED: usize = 100_000;

/// OCI's image manifest.
pub const OCI_MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
/// OCI's index.
pub const OCI_INDEX: &str = "application/vnd.oci.image.index.v1+json";
/// Docker's image manifest.
pub const DOCKER_MANIFEST: &str = "application/vnd.docker.distribution.manifest.v2+json";
/// Docker's list of manifests.
pub const DOCKER_LIST: &str = "application/vnd.docker.distribution.manifest.list.v2+json";
/// Docker's first manifests, signed in a way of their own.
const DOCKER_FIRST: &str = "application/vnd.docker.distribution.manifest.v1+";

/// What a manifest names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Named {
    /// Its digest.
    pub digest: Digest,
    /// How large it is, in bytes.
    pub size: u64,
    /// Whether it may be elsewhere only.
    pub is_foreign: bool,
}

/// What is to be known of a manifest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Manifest {
    /// What kind it is.
    pub media_type: String,
    /// Blobs that it is made of.
    pub blobs: Vec<Named>,
    /// Manifests that it holds together.
    pub manifests: Vec<Named>,
    /// The manifest that it says something of.
    pub subject: Option<Digest>,
    /// What it is to those who ask for what refers to its subject.
    pub artifact_type: Option<String>,
    /// What is said of it besides.
    pub annotations: BTreeMap<String, String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Body {
    schema_version: Option<u64>,
    media_type: Option<String>,
    artifact_type: Option<String>,
    config: Option<Descriptor>,
    layers: Option<Vec<Descriptor>>,
    manifests: Option<Vec<Descriptor>>,
    subject: Option<Descriptor>,
    annotations: Option<BTreeMap<String, String>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Descriptor {
    media_type: Option<String>,
    digest: String,
    size: i64,
    urls: Option<Vec<String>>,
}

/// A manifest as it is told of to those who ask what refers to its subject.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Referrer {
    /// What kind it is.
    pub media_type: String,
    /// Its digest.
    pub digest: String,
    /// How large it is, in bytes.
    pub size: u64,
    /// What it is to its subject.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub artifact_type: Option<String>,
    /// What is said of it besides.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub annotations: BTreeMap<String, String>,
}

impl Descriptor {
    fn read(&self) -> Result<Named, Refused> {
        let wrong = |why: &str| Refused::new(Code::ManifestInvalid, why).about(self.digest.clone());
        let digest = self.digest.parse().map_err(|_| wrong("it names something by what is no digest"))?;
        let size = u64::try_from(self.size).map_err(|_| wrong("it names something of a negative size"))?;
        let is_foreign = self.urls.as_ref().is_some_and(|urls| !urls.is_empty())
            || self
                .media_type
                .as_ref()
                .is_some_and(|kind| kind.contains(".nondistributable.") || kind.contains(".foreign."));
        Ok(Named { digest, size, is_foreign })
    }
}

fn read_all(descriptors: Option<&Vec<Descriptor>>) -> Result<Vec<Named>, Refused> {
    descriptors.into_iter().flatten().map(Descriptor::read).collect()
}

impl Manifest {
    /// Reads one; `content_type` is what its sender calls it.
    pub fn read(content_type: Option<&str>, bytes: &[u8]) -> Result<Self, Refused> {
        let wrong = |why: String| Refused::new(Code::ManifestInvalid, why);
        let called = content_type.map(|kind| kind.split(';').next().unwrap_or_default().trim().to_owned());
        let called = called.filter(|kind| !kind.is_empty());
        let is_first = |kind: &str| kind.starts_with(DOCKER_FIRST);
        if called.as_deref().is_some_and(is_first) {
            return Err(wrong("Docker's manifests of schema 1 are not taken; push with Docker 1.10 or newer".into()));
        }
        let body: Body = serde_json::from_slice(bytes).map_err(|error| wrong(format!("it cannot be read: {error}")))?;
        if body.schema_version != Some(2) {
            return Err(wrong("its schemaVersion is not 2".into()));
        }
        let media_type = match (called, body.media_type) {
            (Some(called), Some(own)) if called != own => {
                return Err(wrong(format!("it says that it is {own:.100?}, and its Content-Type {called:.100?}")));
            }
            (Some(kind), _) | (None, Some(kind)) => kind,
            (None, None) if body.manifests.is_some() => OCI_INDEX.to_owned(),
            (None, None) => OCI_MANIFEST.to_owned(),
        };
        if media_type.len() > 255 || !media_type.bytes().all(|byte| byte.is_ascii_graphic()) {
            return Err(wrong(format!("its media type {media_type:.80?} is none")));
        }
        let is_image = matches!(media_type.as_str(), OCI_MANIFEST | DOCKER_MANIFEST);
        if is_image && body.config.is_none() {
            return Err(wrong("an image's manifest has a config".into()));
        }
        if matches!(media_type.as_str(), OCI_INDEX | DOCKER_LIST) && body.manifests.is_none() {
            return Err(wrong("an index has manifests".into()));
        }
        let mut blobs: Vec<Named> = body.config.iter().map(Descriptor::read).collect::<Result<_, _>>()?;
        blobs.extend(read_all(body.layers.as_ref())?);
        let manifests = read_all(body.manifests.as_ref())?;
        if blobs.len() + manifests.len() > MAX_NAMED {
            return Err(wrong(format!("it names more than {MAX_NAMED} things")));
        }
        let subject = body.subject.as_ref().map(Descriptor::read).transpose()?.map(|named| named.digest);
        // What says nothing of itself is what its config is (OCI image specification, 1.1).
        let config = body.config.as_ref().and_then(|config| config.media_type.clone()).filter(|_| is_image);
        let artifact_type = body.artifact_type.filter(|kind| !kind.is_empty()).or(config);
        let annotations = body.annotations.unwrap_or_default();
        Ok(Manifest { media_type, blobs, manifests, subject, artifact_type, annotations })
    }

    /// As it is told of to those who ask what refers to its subject.
    pub fn referrer(&self, digest: &Digest, size: u64) -> Referrer {
        Referrer {
            media_type: self.media_type.clone(),
            digest: digest.to_string(),
            size,
            artifact_type: self.artifact_type.clone(),
            annotations: self.annotations.clone(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DIGEST: &str = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

    fn refused(kind: Option<&str>, text: &str) -> String {
        let refused = Manifest::read(kind, text.as_bytes()).unwrap_err();
        assert_eq!(refused.code, Code::ManifestInvalid);
        refused.why
    }

    #[test]
    fn manifests_name_what_they_are_made_of() {
        let config = format!(r#"{{"mediaType":"application/x-config","digest":"{DIGEST}","size":2}}"#);
        let layer = format!(r#"{{"mediaType":"x","digest":"{DIGEST}","size":7,"urls":["https://elsewhere"]}}"#);
        let image = format!(
            r#"{{"schemaVersion":2,"config":{config},"layers":[{layer}],"subject":{layer},"annotations":{{"a":"b"}}}}"#
        );
        let read = Manifest::read(Some(&format!("{OCI_MANIFEST}; charset=utf-8")), image.as_bytes()).unwrap();
        assert_eq!((read.blobs.len(), read.blobs[0].size, read.blobs[1].is_foreign), (2, 2, true));
        assert_eq!(read.artifact_type.as_deref(), Some("application/x-config"));
        assert!(read.subject.is_some() && read.manifests.is_empty());
        let index = format!(r#"{{"schemaVersion":2,"manifests":[{config}]}}"#);
        let read = Manifest::read(None, index.as_bytes()).unwrap();
        assert_eq!((read.media_type.as_str(), read.manifests.len()), (OCI_INDEX, 1));
        assert_eq!(read.artifact_type, None);

        assert!(refused(None, "{").contains("cannot be read"));
        assert!(refused(None, "{}").contains("schemaVersion"));
        assert!(refused(Some(OCI_MANIFEST), r#"{"schemaVersion":2}"#).contains("config"));
        assert!(refused(Some(OCI_INDEX), r#"{"schemaVersion":2}"#).contains("manifests"));
        let other = format!(r#"{{"schemaVersion":2,"mediaType":"{DOCKER_LIST}","manifests":[]}}"#);
        assert!(refused(Some(OCI_INDEX), &other).contains("Content-Type"));
        assert!(refused(None, &index.replace("e3b0", "E3B0")).contains("no digest"));
        assert!(refused(None, &index.replace(":2}", ":-2}")).contains("negative"));
        assert!(refused(Some(&format!("{DOCKER_FIRST}prettyjws")), "{}").contains("schema 1"));
    }
}
