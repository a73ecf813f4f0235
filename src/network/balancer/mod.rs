//! The balancer: a process of its own (this binary, re-executed) that forwards TCP and UDP from published ports to
//! healthy replicas. It keeps its last table when the daemon dies, and hands its sockets to its successor in an upgrade.
//!
//! TCP: one thread, one epoll loop, no runtime: what is read is written on at once from one shared buffer, and only what
//! the other side does not take is kept. HTTP and UDP have threads of their own.

pub mod client;
mod control;
mod datagram;
mod event_loop;
mod hook;
mod http;
mod lines;
mod locals;
mod owner;
mod peers;
mod pick;
mod process;
mod proxy;
mod sockets;
mod tcp;
mod udp;

use std::path::{Path, PathBuf};

use async_trait::async_trait;
use serde::{Deserialize, Serialize};

use super::table::{Status, Table};
use crate::model::Result;

pub use hook::{Hook, Hooks, Loaded, RoutedRequest, Unsaid};
pub use http::{Routing, certified, plain_host};
pub use peers::Peers;
pub use pick::{Choice, Wish, text_hash};
pub use process::main;

/// What carries published ports to replicas, as the runtime sees it.
#[async_trait]
pub trait Balancer: Send {
    /// Whether one of an earlier daemon may still serve.
    fn is_left_over(&self) -> bool;
    /// Hands over a table; returns what the balancer says once new connections follow it.
    async fn push(&mut self, table: &Table) -> Result<Status>;
    /// Open connections and failures.
    async fn status(&mut self) -> Result<Status>;
    /// Returns when the balancer is gone; never while there is none.
    async fn gone(&mut self);
    /// Ends the balancer.
    async fn stop(&mut self) -> Result<()>;
}

/// A line that the daemon sends to the balancer.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Request {
    /// Take over this table.
    Table(Table),
    /// Say how things are.
    Status,
    /// A successor asks for the listening sockets; they follow as descriptors.
    Handover,
    /// End, without waiting for open connections.
    Stop,
}

/// The balancer's line in answer.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Reply {
    /// Which build answers: another one is replaced.
    pub build: String,
    /// How things are.
    pub status: Status,
    /// With a handover: the listeners whose descriptors follow, in order.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub sockets: Vec<String>,
}

/// The control socket in `folder`.
pub fn socket_path(folder: &Path) -> PathBuf {
    folder.join("balancer.sock")
}

/// Names this build: version, and the file that it was loaded from.
pub fn build() -> String {
    use std::os::unix::fs::MetadataExt;
    let file = std::fs::metadata("/proc/self/exe")
        .map(|meta| format!("{}:{}", meta.ino(), meta.mtime_nsec()))
        .unwrap_or_default();
    format!("{} {file}", env!("CARGO_PKG_VERSION"))
}
