//! Scripts that travel together, content-addressed: a bundle is never changed, only replaced by another.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::error::{Error, Result};
use super::id::sha256_hex;

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

/// What a hosted script may register in this build.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum HostedKind {
    /// Where a replica goes.
    Policy,
    /// Whether it is healthy.
    Check,
    /// How a revision comes in.
    Rollout,
}

impl HostedKind {
    /// All of them.
    pub const ALL: [HostedKind; 3] = [HostedKind::Policy, HostedKind::Check, HostedKind::Rollout];

    /// As scripts write it.
    pub fn as_str(self) -> &'static str {
        match self {
            HostedKind::Policy => "policy",
            HostedKind::Check => "check",
            HostedKind::Rollout => "rollout",
        }
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
