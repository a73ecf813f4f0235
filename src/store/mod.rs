//! Floor 1, memory: `trait Store`, with redb or a Docker Swarm's configs behind it. What a commit acknowledged survives kill -9 and power loss. A
//! simulation keeps its store in memory.

mod embedded;
pub mod file;
mod memory;
mod record;
pub mod swarm;
pub mod vault;

use async_trait::async_trait;
use tokio::sync::broadcast;

pub use embedded::EmbeddedStore;
pub use memory::MemoryStore;
pub use record::{FORMAT, decode, encode};

use crate::model::{Error, Kind, Result};

/// A stored value and the version that it had when it was read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// The key.
    pub key: String,
    /// The number of the commit that wrote it.
    pub version: u64,
    /// The record.
    pub value: Vec<u8>,
}

/// What a commit expects of a key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Expect {
    /// Nothing.
    Any,
    /// That it does not exist.
    Absent,
    /// That it was last written by this commit.
    Version(u64),
}

/// One key's part in a commit: a new value, or none to remove it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Write {
    /// The key.
    pub key: String,
    /// What it has to be like before.
    pub expect: Expect,
    /// What it is to be.
    pub value: Option<Vec<u8>>,
}

impl Write {
    /// Writes `value` whatever was there.
    pub fn put(key: impl Into<String>, value: Vec<u8>) -> Self {
        Write { key: key.into(), expect: Expect::Any, value: Some(value) }
    }

    /// Removes the key, if it is there.
    pub fn remove(key: impl Into<String>) -> Self {
        Write { key: key.into(), expect: Expect::Any, value: None }
    }

    // Keys and values have bounds.
    fn check(&self) -> Result<()> {
        if self.key.is_empty() || self.key.len() > MAX_KEY {
            let message = format!("is not 1 to {MAX_KEY} bytes long");
            return Err(Error::invalid(format!("key {:.80?}", self.key), message));
        }
        match self.value.as_ref().map(Vec::len).filter(|size| *size > MAX_VALUE) {
            Some(size) => {
                let message = format!("a value of {size} bytes is larger than {MAX_VALUE}");
                Err(Error::new(Kind::Exhausted, format!("key {:?}", self.key), message))
            }
            None => Ok(()),
        }
    }

    // Whether what is expected is so, where `version` wrote the key last.
    fn meets(&self, version: Option<u64>) -> Result<()> {
        let why = match (self.expect, version) {
            (Expect::Any, _) | (Expect::Absent, None) => return Ok(()),
            (Expect::Version(expected), Some(version)) if expected == version => return Ok(()),
            (Expect::Absent, Some(_)) => "exists already",
            (Expect::Version(_), None) => "is gone",
            (Expect::Version(_), Some(_)) => "was changed by somebody else",
        };
        Err(Error::new(Kind::Conflict, format!("record \"{}\"", self.key), why).retry(true))
    }

    /// With an expectation.
    #[must_use]
    pub fn expect(mut self, expect: Expect) -> Self {
        self.expect = expect;
        self
    }
}

/// A key that a commit changed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Change {
    /// The key.
    pub key: String,
    /// The commit.
    pub version: u64,
    /// Whether it is gone.
    pub removed: bool,
}

/// Longest key, in bytes.
pub const MAX_KEY: usize = 512;
/// Largest value, in bytes (what a Swarm config's label was seen to carry).
pub const MAX_VALUE: usize = 900_000;

/// Where desired state lives. Keys are paths such as `service/web`.
#[async_trait]
pub trait Store: Send + Sync {
    /// The entry of one key.
    fn get(&self, key: &str) -> Result<Option<Entry>>;
    /// All entries whose key begins with `prefix`, sorted by key.
    fn list(&self, prefix: &str) -> Result<Vec<Entry>>;
    /// Writes all of it or nothing; the version is the commit's number. An expectation that does not hold is
    /// `Kind::Conflict` and names the key.
    async fn commit(&self, writes: Vec<Write>) -> Result<u64>;
    /// Changes from now on. A receiver that lags is told so and lists again.
    fn watch(&self) -> broadcast::Receiver<Change>;
}
