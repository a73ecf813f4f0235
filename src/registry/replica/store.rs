//! Where else the registry is kept: things by name, each written whole or not at all.

use std::fs::File;
use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use futures_util::stream::BoxStream;

/// Why nothing came of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Down(pub String);

/// Something that is there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Kept {
    /// What it is called.
    pub name: String,
    /// Bytes.
    pub size: u64,
    /// When it was written, in milliseconds since 1970.
    pub at: u64,
}

/// A place that keeps things by name. What it has taken is durable.
#[async_trait]
pub trait Store: Send + Sync {
    /// What it is called, for people.
    fn place(&self) -> &str;

    /// Writes something that is not there; false: it is, and stays as it is.
    async fn create(&self, name: &str, bytes: Bytes) -> Result<bool, Down>;

    /// What is there.
    async fn get(&self, name: &str) -> Result<Option<Bytes>, Down>;

    /// How large what is there is.
    async fn size(&self, name: &str) -> Result<Option<u64>, Down>;

    /// What is there from a byte on.
    async fn read(&self, name: &str, from: u64) -> Result<Option<BoxStream<'static, Result<Bytes, Down>>>, Down>;

    /// Writes all of a file, whatever was there.
    async fn put(&self, name: &str, file: Arc<File>, size: u64) -> Result<(), Down>;

    /// All whose names begin so, in no order.
    async fn list(&self, prefix: &str) -> Result<Vec<Kept>, Down>;

    /// Removes it, if it is there.
    async fn remove(&self, name: &str) -> Result<(), Down>;
}
