//! Scripts that travel together, content-addressed: a bundle is never changed, only replaced by another.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::clock::Timestamp;
use super::error::{Error, Result};
use super::id::sha256_hex;
use super::name::Name;

/// Most files of a bundle, and most bytes of one.
pub const MAX_FILES: usize = 500;
/// Most bytes of a bundle.
pub const MAX_BYTES: usize = 4 << 20;

/// Scripts by path; `entries` are loaded, the rest is there to be required.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
pub struct Bundle {
    /// The files that register something, in the order in which they are loaded.
    pub entries: Vec<String>,
    /// Source by path; paths are relative, with `/`.
    pub files: BTreeMap<String, String>,
}

/// How the names of files with tests end.
pub const TESTS: &str = "_test.lua";

/// Whether a script of a folder is loaded by itself: what lies in a folder called `lib` is there to be required, and a
/// file of tests is for `neap test`.
pub fn is_entry(path: &str) -> bool {
    !path.starts_with("lib/") && !path.contains("/lib/") && !path.ends_with(TESTS)
}

impl Bundle {
    /// The hash of all of it.
    pub fn hash(&self) -> String {
        let text = serde_json::to_vec(self).expect("texts always serialise");
        sha256_hex(&text)[..16].to_owned()
    }

    /// Bounds, and paths that stay inside.
    pub fn validate(&self) -> Result<()> {
        let bytes: usize = self.files.iter().map(|(path, text)| path.len() + text.len()).sum();
        if self.files.len() > MAX_FILES || bytes > MAX_BYTES {
            return Err(Error::new(
                super::Kind::Exhausted,
                "scripts",
                format!("{} files of {bytes} bytes are too much", self.files.len()),
            )
            .help(format!("at most {MAX_FILES} files and {MAX_BYTES} bytes go into one bundle")));
        }
        for path in self.files.keys() {
            let bad =
                path.is_empty() || path.starts_with('/') || path.split('/').any(|part| part == ".." || part.is_empty());
            if bad || path.contains('\0') {
                return Err(Error::invalid(format!("script {path:.80?}"), "is not a path inside the bundle"));
            }
        }
        if let Some(missing) = self.entries.iter().find(|entry| !self.files.contains_key(*entry)) {
            return Err(Error::invalid(format!("script {missing:.80?}"), "is an entry without a file"));
        }
        Ok(())
    }
}

/// What a hosted script may register.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum HostedKind {
    /// Where a replica goes.
    Policy,
    /// Whether it is healthy.
    Check,
    /// How a revision comes in.
    Rollout,
    /// What is done at certain times.
    Cron,
    /// What follows from an event.
    On,
}

impl HostedKind {
    /// All of them.
    pub const ALL: [HostedKind; 5] =
        [HostedKind::Policy, HostedKind::Check, HostedKind::Rollout, HostedKind::Cron, HostedKind::On];

    /// As scripts write it.
    pub fn as_str(self) -> &'static str {
        match self {
            HostedKind::Policy => "policy",
            HostedKind::Check => "check",
            HostedKind::Rollout => "rollout",
            HostedKind::Cron => "cron",
            HostedKind::On => "on",
        }
    }

    /// Whether a registration acts by itself, instead of being named by a service: its name is then unique in the
    /// cluster, whoever owns it.
    pub fn acts(self) -> bool {
        matches!(self, HostedKind::Cron | HostedKind::On)
    }
}

/// One registration: who registered what, and where it stands.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Registration {
    /// What sort.
    pub kind: HostedKind,
    /// Its name.
    pub name: String,
    /// The bundle that holds it.
    pub bundle: String,
    /// The file.
    pub file: String,
    /// The line.
    pub line: u32,
}

/// Most versions of a set that are kept.
pub const VERSIONS: usize = 10;

/// Hosted scripts under one owner: pushed under a name, or a watched folder. Replaced whole or not at all.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct ScriptSet {
    /// The owner.
    pub name: Name,
    /// Where it comes from.
    pub source: Source,
    /// The version that serves, by hash.
    pub active: String,
    /// The last versions, oldest first, the active one among them.
    pub versions: Vec<Version>,
}

/// Where a set comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Source {
    /// Somebody pushed it.
    Push,
    /// The daemon's scripts folder.
    Folder,
}

/// One version of a set.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Version {
    /// The bundle.
    pub hash: String,
    /// When it came.
    pub at: Timestamp,
    /// Who brought it.
    pub by: String,
}

impl ScriptSet {
    /// Whether one of its versions is this bundle.
    pub fn holds(&self, hash: &str) -> bool {
        self.versions.iter().any(|version| version.hash == hash)
    }
}
