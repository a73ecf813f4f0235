//! Keys and values, and secrets, as they are asked for and shown.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::model::clock::Timestamp;

/// A key and its value.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct KvEntry {
    /// The key: a path such as `shop/level`.
    pub key: String,
    /// The value: a text; anything else is written by whoever sets it, as JSON for example.
    pub value: String,
    /// Grows with each change of anything in the store; equal versions mean an unchanged value.
    pub version: u64,
    /// When it was set.
    pub at: Timestamp,
}

/// A value to set.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
pub struct KvSet {
    /// The value.
    pub value: String,
    /// Only if the key has this version; 0: only if there is no such key.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub version: Option<u64>,
}

/// A change of a key.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct KvChange {
    /// The key.
    pub key: String,
    /// What it is now; none: it is gone.
    pub entry: Option<KvEntry>,
}

/// A secret: that there is one, never what it is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct SecretInfo {
    /// Its name: a path such as `shop/database_url`.
    pub name: String,
    /// Counts the times that it was set.
    pub version: u64,
    /// When it was set.
    pub at: Timestamp,
    /// Services that use it.
    pub used_by: Vec<String>,
}

/// A secret's value, on its way in.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct SecretSet {
    /// The value.
    pub value: String,
}

impl std::fmt::Debug for SecretSet {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("SecretSet(not shown)")
    }
}
