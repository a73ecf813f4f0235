//! Floor 2, world: what carries traffic. The balancer, and how replicas and everybody else are reached.

pub mod balancer;
pub mod catalog;
pub mod dns;
mod fetch;
pub mod inside;
mod probe;
pub mod table;
pub mod waiting;

use std::os::fd::AsFd;
use std::time::Duration;

use async_trait::async_trait;

pub use fetch::{Request, Response, built, client};

use crate::model::Result;

/// How replicas and everybody else are reached: over sockets, or inside a simulation.
#[async_trait]
pub trait Network: Send + Sync {
    /// Opens a connection to `address:port` and closes it; an error says why that failed.
    async fn connect(&self, address: &str, timeout: Duration) -> std::result::Result<(), String>;
    /// Sends a datagram to `address:port`: an error where its host says that nobody listens there. Who says nothing may have
    /// heard it.
    async fn datagram(&self, address: &str, timeout: Duration) -> std::result::Result<(), String>;
    /// GETs a path at `address:port`; a status from 200 to 399 passes, an error says why it does not.
    async fn probe(&self, address: &str, path: &str, timeout: Duration) -> std::result::Result<(), String>;
    /// One HTTP request, with its whole answer.
    async fn fetch(&self, request: Request) -> Result<Response>;
}

/// Notices within half a minute that the other end's host is gone, also while nothing is said.
pub fn keep_alive(stream: &impl AsFd) {
    use nix::sys::socket::{setsockopt, sockopt};
    // A socket without it works as well, and hangs longer.
    let _ = setsockopt(stream, sockopt::KeepAlive, &true);
    let _ = setsockopt(stream, sockopt::TcpKeepIdle, &15);
    let _ = setsockopt(stream, sockopt::TcpKeepInterval, &5);
    let _ = setsockopt(stream, sockopt::TcpKeepCount, &3);
    let _ = setsockopt(stream, sockopt::TcpUserTimeout, &30_000);
}

/// The machine's own network.
#[derive(Debug, Clone, Copy, Default)]
pub struct Sockets;

#[async_trait]
impl Network for Sockets {
    async fn connect(&self, address: &str, timeout: Duration) -> std::result::Result<(), String> {
        probe::tcp(address, timeout).await
    }

    async fn datagram(&self, address: &str, timeout: Duration) -> std::result::Result<(), String> {
        probe::udp(address, timeout).await
    }

    async fn probe(&self, address: &str, path: &str, timeout: Duration) -> std::result::Result<(), String> {
        probe::http(address, path, timeout).await
    }

    async fn fetch(&self, request: Request) -> Result<Response> {
        fetch::fetch(request).await
    }
}
