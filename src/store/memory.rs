//! A store in memory, for simulations: the same promises but for durability.

use std::collections::BTreeMap;
use std::sync::{PoisonError, RwLock};

use async_trait::async_trait;
use tokio::sync::broadcast;

use super::{Change, Entry, Store, Write};
use crate::model::Result;

/// Keys and values, gone with the process.
pub struct MemoryStore {
    inner: RwLock<Inner>,
    changes: broadcast::Sender<Change>,
}

#[derive(Default)]
struct Inner {
    // Each value with the number of the commit that wrote it.
    data: BTreeMap<String, (u64, Vec<u8>)>,
    version: u64,
}

impl MemoryStore {
    /// An empty one.
    pub fn new() -> Self {
        MemoryStore { inner: RwLock::default(), changes: broadcast::channel(4096).0 }
    }
}

impl MemoryStore {
    /// One with these values, each with its version.
    pub fn of(values: impl IntoIterator<Item = (String, u64, Vec<u8>)>) -> Self {
        let store = MemoryStore::new();
        let data: BTreeMap<_, _> = values.into_iter().map(|(key, version, value)| (key, (version, value))).collect();
        let version = data.values().map(|(version, _)| *version).max().unwrap_or_default();
        *store.inner.write().unwrap_or_else(PoisonError::into_inner) = Inner { data, version };
        store
    }
}

impl Default for MemoryStore {
    fn default() -> Self {
        Self::new()
    }
}

fn entry(key: &str, (version, value): &(u64, Vec<u8>)) -> Entry {
    Entry { key: key.to_owned(), version: *version, value: value.clone() }
}

#[async_trait]
impl Store for MemoryStore {
    fn get(&self, key: &str) -> Result<Option<Entry>> {
        let inner = self.inner.read().unwrap_or_else(PoisonError::into_inner);
        Ok(inner.data.get(key).map(|stored| entry(key, stored)))
    }

    fn list(&self, prefix: &str) -> Result<Vec<Entry>> {
        let inner = self.inner.read().unwrap_or_else(PoisonError::into_inner);
        let from = inner.data.range(prefix.to_owned()..);
        Ok(from.take_while(|(key, _)| key.starts_with(prefix)).map(|(key, stored)| entry(key, stored)).collect())
    }

    async fn commit(&self, writes: Vec<Write>) -> Result<u64> {
        writes.iter().try_for_each(Write::check)?;
        let mut inner = self.inner.write().unwrap_or_else(PoisonError::into_inner);
        for write in &writes {
            write.meets(inner.data.get(&write.key).map(|(version, _)| *version))?;
        }
        inner.version += 1;
        let version = inner.version;
        for Write { key, value, .. } in writes {
            let removed = value.is_none();
            match value {
                Some(value) => inner.data.insert(key.clone(), (version, value)),
                None => inner.data.remove(&key),
            };
            let _ = self.changes.send(Change { key, version, removed });
        }
        Ok(version)
    }

    fn watch(&self) -> broadcast::Receiver<Change> {
        self.changes.subscribe()
    }
}
