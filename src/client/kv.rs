//! Keys and values, secrets and configs, as they are asked for and shown.

use std::collections::BTreeMap;

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::model::clock::Timestamp;
use crate::model::{Error, Result};

/// A key and its value.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct KvEntry {
    /// The key: a path such as `shop/level`.
    pub key: String,
    /// The value: a text; anything else is written by whoever sets it, as JSON for example.
    pub value: String,
    /// Whether the value is bytes that are no text, written in base64.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub base64: bool,
    /// Grows with each change of anything in the store; equal versions mean an unchanged value.
    pub version: u64,
    /// When it was set.
    pub at: Timestamp,
    /// A number that Consul's clients may give it.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub flags: u64,
    /// The session of Consul's API that holds it locked.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub session: Option<String>,
}

fn is_zero(number: &u64) -> bool {
    *number == 0
}

impl KvEntry {
    /// The value as it is.
    pub fn bytes(&self) -> Result<Vec<u8>> {
        match self.base64 {
            false => Ok(self.value.clone().into_bytes()),
            true => BASE64_STANDARD
                .decode(&self.value)
                .map_err(|error| Error::internal("value", "is not base64").cause(error)),
        }
    }
}

/// A value to set.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
pub struct KvSet {
    /// The value.
    pub value: String,
    /// Whether the value is written in base64, for bytes that are no text.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub base64: bool,
    /// Only if the key has this version; 0: only if there is no such key.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub version: Option<u64>,
}

impl KvSet {
    /// Any bytes.
    pub fn of(bytes: Vec<u8>) -> Self {
        match String::from_utf8(bytes) {
            Ok(value) => KvSet { value, ..KvSet::default() },
            Err(error) => KvSet { value: BASE64_STANDARD.encode(error.as_bytes()), base64: true, version: None },
        }
    }
}

/// A change of a key.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct KvChange {
    /// The key.
    pub key: String,
    /// What it is now; none: it is gone.
    pub entry: Option<KvEntry>,
}

/// What holds values in versions that belong to revisions: services name them, and replicas read them as files.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum ValueKind {
    /// Sealed, and never shown again.
    Secret,
    /// To be read by whoever may see services.
    Config,
}

impl ValueKind {
    /// As in keys, paths and errors.
    pub fn as_str(self) -> &'static str {
        match self {
            ValueKind::Secret => "secret",
            ValueKind::Config => "config",
        }
    }
}

/// A secret or config: that there is one, not what it is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ValueInfo {
    /// Its name: a path such as `shop/database_url`.
    pub name: String,
    /// Counts the times that it was set.
    pub version: u64,
    /// When it was set.
    pub at: Timestamp,
    /// Services that use it.
    pub used_by: Vec<String>,
}

/// What setting a secret or config led to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ValueChange {
    /// As it is now.
    #[serde(flatten)]
    pub info: ValueInfo,
    /// The services that are rolled out with it.
    pub rolled_out: Vec<String>,
    /// Services that use it and could not be, with the reason: they go on with what they had.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub refused: BTreeMap<String, String>,
}

/// A config with its value.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ConfigValue {
    /// What is known of it.
    #[serde(flatten)]
    pub info: ValueInfo,
    /// The value.
    pub value: String,
}

/// A secret's or config's value, on its way in.
#[derive(Clone, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
pub struct ValueSet {
    /// The value.
    pub value: String,
    /// Only where there is none of that name.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub only_new: bool,
    /// Services go on with what they have, until they are applied.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub no_rollout: bool,
    /// Roll out only services whose names begin so.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub prefix: String,
}

impl std::fmt::Debug for ValueSet {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("ValueSet(not shown)")
    }
}
