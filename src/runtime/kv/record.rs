//! A key's value as it is stored.

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use serde::{Deserialize, Serialize};

use crate::client::kv::KvEntry;
use crate::model::clock::Timestamp;
use crate::model::{Error, Kind, Result};
use crate::store::{Entry, decode, encode};

/// Longest value that is stored as text, as it is written: what is longer is written as bytes, which never come to more than a third
/// more.
const MAX_TEXT: usize = 600_000;

/// Where keys are in the store.
pub const KV: &str = "kv/";

/// A key's value, and what belongs to it.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Pair {
    /// The value.
    pub value: Vec<u8>,
    /// When it was set.
    pub at: Timestamp,
    /// A number that is its owner's.
    pub flags: u64,
    /// The session that holds it locked.
    pub session: Option<String>,
    /// How often it has been locked.
    pub lock_index: u64,
    /// The commit that made it; 0: the one that writes it.
    pub created: u64,
    /// The commit that wrote it; 0: the one to come.
    pub modified: u64,
}

#[derive(Serialize, Deserialize)]
struct Record {
    #[serde(default, skip_serializing_if = "String::is_empty")]
    value: String,
    // In base64, in place of a text.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    bytes: Option<String>,
    at: Timestamp,
    #[serde(default, skip_serializing_if = "is_zero")]
    flags: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    session: Option<String>,
    #[serde(default, skip_serializing_if = "is_zero")]
    lock_index: u64,
    #[serde(default, skip_serializing_if = "is_zero")]
    created: u64,
}

fn is_zero(number: &u64) -> bool {
    *number == 0
}

/// In the store.
pub fn kv_key(key: &str) -> String {
    format!("{KV}{key}")
}

/// As people know it.
pub fn own_key(entry: &Entry) -> String {
    entry.key[KV.len()..].to_owned()
}

impl Pair {
    /// As it is stored.
    pub fn read(entry: &Entry) -> Result<Self> {
        let record: Record = decode(&entry.key, &entry.value)?;
        let value = match record.bytes {
            None => record.value.into_bytes(),
            Some(bytes) => BASE64_STANDARD.decode(bytes).map_err(|error| {
                Error::new(Kind::Corrupt, format!("record \"{}\"", entry.key), "is damaged").cause(error)
            })?,
        };
        Ok(Pair {
            value,
            at: record.at,
            flags: record.flags,
            session: record.session,
            lock_index: record.lock_index,
            created: if record.created == 0 { entry.version } else { record.created },
            modified: entry.version,
        })
    }

    /// To be stored.
    pub fn write(&self) -> Vec<u8> {
        // Quotes and the like take more room than they are.
        let fits = |text: &&str| serde_json::to_string(text).is_ok_and(|written| written.len() <= MAX_TEXT);
        let text = std::str::from_utf8(&self.value).ok().filter(fits);
        encode(&Record {
            value: text.unwrap_or_default().to_owned(),
            bytes: text.is_none().then(|| BASE64_STANDARD.encode(&self.value)),
            at: self.at,
            flags: self.flags,
            session: self.session.clone(),
            lock_index: self.lock_index,
            created: self.created,
        })
    }

    /// As it is shown.
    pub fn shown(self, key: &str) -> KvEntry {
        let (value, base64) = match String::from_utf8(self.value) {
            Ok(text) => (text, false),
            Err(error) => (BASE64_STANDARD.encode(error.as_bytes()), true),
        };
        KvEntry {
            key: key.to_owned(),
            value,
            base64,
            version: self.modified,
            at: self.at,
            flags: self.flags,
            session: self.session,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn any_bytes_are_stored() {
        let quotes = vec![b'"'; 512 << 10];
        for value in [b"".to_vec(), b"text".to_vec(), vec![0, 255, 1], "\u{0}\"\u{7f}ü".into(), quotes] {
            let pair = Pair { value, flags: 7, session: Some("s".into()), ..Pair::default() };
            let stored = pair.write();
            assert!(stored.len() < crate::store::MAX_VALUE);
            let entry = Entry { key: "kv/a".into(), version: 3, value: stored };
            assert_eq!(Pair::read(&entry).unwrap(), Pair { created: 3, modified: 3, ..pair });
        }
    }
}
