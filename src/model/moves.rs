//! Images that Docker Engines get from registries, and bring to them.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::registry::Login;

/// What one Docker Engine is to do with an image.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImageMove {
    /// The image, as the engine calls it.
    pub image: String,
    /// It is pushed, under this name; else it is pulled.
    #[serde(default)]
    pub to: Option<String>,
    /// Pulled for this platform.
    #[serde(default)]
    pub platform: Option<String>,
    /// What the registry is told: registry, name, password; else what Docker knows there.
    #[serde(default)]
    pub login: Option<(String, String, String)>,
}

impl ImageMove {
    /// What the registry is told.
    pub fn login(&self) -> Option<Login> {
        let (registry, username, password) = self.login.clone()?;
        Some(Login { registry, username, password })
    }
}

impl std::fmt::Debug for ImageMove {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match &self.to {
            Some(to) => write!(f, "push of {} as {to}", self.image),
            None => write!(f, "pull of {}", self.image),
        }
    }
}

/// How far that is.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImageMoved {
    /// What goes on.
    pub said: String,
    /// Bytes that have moved.
    pub size: u64,
    /// Of so many, as far as that is known.
    pub of: u64,
    /// The digest, once it is there.
    #[serde(default)]
    pub digest: Option<String>,
    /// Whether that was all.
    pub done: bool,
}

/// An image that Docker Engines are to get.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct PullAsk {
    /// The image: `shop/api:1.0` of the cluster's registry, or one of another, `docker.io/library/nginx:1.27`.
    pub image: String,
    /// The nodes; all that are ready where none is named.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub nodes: Vec<String>,
    /// For this platform: `linux/arm64`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub platform: Option<String>,
}

/// An image that a Docker Engine is to bring.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct PushAsk {
    /// The image, as the Docker Engine calls it.
    pub image: String,
    /// What it is to be called: `shop/api:1.0` of the cluster's registry, or with the host of another; without it as it is called there.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub to: Option<String>,
    /// The node, where there are several.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub node: Option<String>,
}

/// How far a node is.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct NodeMoved {
    /// The node's host name.
    pub node: String,
    /// What goes on there.
    pub said: String,
    /// Bytes that have moved.
    pub size: u64,
    /// Of so many, as far as that is known.
    pub of: u64,
    /// The image's digest, once it is there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub digest: Option<String>,
    /// Why it did not get there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
    /// Whether it is over there.
    pub over: bool,
}

/// How far all nodes are.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct MovesSeen {
    /// The image, as Docker Engines call it.
    pub image: String,
    /// Each of them.
    pub nodes: Vec<NodeMoved>,
    /// Whether that was all.
    pub done: bool,
}
