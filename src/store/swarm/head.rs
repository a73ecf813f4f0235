//! The store's head: who leads, and where the log stands. It lives in the labels of one config, and every commit is a
//! compare-and-set of it: whoever has been overtaken can write nothing any more.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::configs::STORE;
use crate::model::id::sha256_hex;
use crate::model::{Error, Kind, Result};
use crate::store::Write;

/// The format that this build writes, and the newest it reads.
const FORMAT: u32 = 1;
/// The label with the head.
const HEAD: &str = "neap.head";

/// Who leads.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Leader {
    /// The daemon: another one each time it is started.
    pub id: String,
    /// The host that it runs on.
    pub hostname: String,
    /// Where the others reach it: `address:port`.
    pub address: String,
    /// SHA-256 of its certificate.
    pub fingerprint: String,
}

/// One key's new value, or none where it is removed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Put(pub String, pub Option<Value>);

/// A value: text where it is one, which nearly all are.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Value {
    /// UTF-8.
    Text(String),
    /// Anything else.
    Bytes(Vec<u8>),
}

impl From<Vec<u8>> for Value {
    fn from(bytes: Vec<u8>) -> Self {
        String::from_utf8(bytes).map_or_else(|error| Value::Bytes(error.into_bytes()), Value::Text)
    }
}

impl From<Value> for Vec<u8> {
    fn from(value: Value) -> Self {
        match value {
            Value::Text(text) => text.into_bytes(),
            Value::Bytes(bytes) => bytes,
        }
    }
}

/// One commit.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// Its number.
    pub seq: u64,
    /// What it writes.
    pub puts: Vec<Put>,
}

impl Record {
    /// Of these writes.
    pub fn new(seq: u64, writes: &[Write]) -> Self {
        let put = |write: &Write| Put(write.key.clone(), write.value.clone().map(Value::from));
        Record { seq, puts: writes.iter().map(put).collect() }
    }
}

/// Everything up to a commit, written down whole.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Snapshot {
    /// The term of the leader that wrote it: another one's is another.
    pub term: u64,
    /// The last commit that it holds.
    pub seq: u64,
    /// Counts what this leader has written, so that a name is never used twice.
    pub attempt: u64,
    /// The number of its configs.
    pub parts: u32,
    /// How large it is.
    pub bytes: usize,
}

/// Some commits in a row, in a config of their own.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Log {
    /// The term of the leader that wrote it.
    pub term: u64,
    /// The last commit that it holds.
    pub seq: u64,
    /// Counts what this leader has written, so that a name is never used twice.
    pub attempt: u64,
    /// Whether it was put together from smaller ones.
    pub merged: bool,
    /// How large it is.
    pub bytes: usize,
}

/// Where the log stands.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Head {
    /// Grows with every change of leader.
    pub term: u64,
    /// Who leads.
    pub leader: Option<Leader>,
    /// Grows with every sign of life between commits.
    pub beat: u64,
    /// The number of the last commit.
    pub seq: u64,
    /// The snapshot that the log begins behind.
    pub snapshot: Snapshot,
    /// The log after the snapshot.
    pub logs: Vec<Log>,
    /// The commits after those.
    pub tail: Vec<Record>,
}

impl Head {
    /// As labels of the config.
    pub fn labels(&self, cluster: &str) -> Result<BTreeMap<String, String>> {
        let text = serde_json::to_string(self).map_err(|error| Error::internal("store", error.to_string()))?;
        Ok(BTreeMap::from([(STORE.to_owned(), cluster.to_owned()), (HEAD.to_owned(), format!("{FORMAT} {text}"))]))
    }

    /// From labels of the config.
    pub fn read(labels: &BTreeMap<String, String>) -> Result<Self> {
        let subject = "store in the Swarm";
        let text = labels.get(HEAD).map_or("", String::as_str);
        let (format, json) = text.split_once(' ').unwrap_or_default();
        match format.parse::<u32>() {
            Ok(format) if format > FORMAT => {
                let message = format!("has format {format}; this neap knows up to {FORMAT}");
                Err(Error::new(Kind::Corrupt, subject, message).help("run the newer neap that wrote it"))
            }
            Ok(_) => serde_json::from_str(json)
                .map_err(|error| Error::new(Kind::Corrupt, subject, "has a damaged head").cause(error)),
            Err(_) => Err(Error::new(Kind::Corrupt, subject, "has a damaged head")),
        }
    }

    /// Bytes of log since the snapshot.
    pub fn logged(&self) -> usize {
        self.logs.iter().map(|log| log.bytes).sum::<usize>() + self.tail_size()
    }

    /// How much the commits in it take.
    pub fn tail_size(&self) -> usize {
        let size = |put: &Put| put.0.len() + put.1.as_ref().map_or(0, size_of_value) + 16;
        self.tail.iter().flat_map(|record| &record.puts).map(size).sum()
    }
}

fn size_of_value(value: &Value) -> usize {
    match value {
        Value::Text(text) => text.len(),
        Value::Bytes(bytes) => bytes.len() * 4,
    }
}

/// The names of a store's configs.
#[derive(Debug, Clone)]
pub struct Names(String);

impl Names {
    /// For a cluster. Names may hold 64 characters of a few kinds, so it is a hash that stands for the cluster's.
    pub fn new(cluster: &str) -> Self {
        Names(format!("neap-{}", &sha256_hex(cluster.as_bytes())[..12]))
    }

    /// The head.
    pub fn head(&self) -> String {
        format!("{}-head", self.0)
    }

    /// A part of the log. Two leaders that each believe to write the same commit do not share a name.
    pub fn log(&self, log: Log) -> String {
        let kind = if log.merged { "sum" } else { "log" };
        format!("{}-{kind}-{:05x}-{:010x}-{:x}", self.0, log.term, log.seq, log.attempt)
    }

    /// A part of a snapshot.
    pub fn snapshot(&self, snapshot: Snapshot, part: u32) -> String {
        format!("{}-all-{:05x}-{:010x}-{:x}-{part}", self.0, snapshot.term, snapshot.seq, snapshot.attempt)
    }

    /// Term and commit in the name of a part of log or snapshot.
    pub fn read(&self, name: &str) -> Option<(u64, u64)> {
        let rest = name.strip_prefix(&self.0)?;
        let kinds = ["-log-", "-sum-", "-all-"];
        let mut fields = kinds.iter().find_map(|kind| rest.strip_prefix(kind))?.split('-');
        let mut number = || u64::from_str_radix(fields.next()?, 16).ok();
        Some((number()?, number()?))
    }
}
