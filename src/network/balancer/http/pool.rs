//! Connections to replicas: made when they are needed, kept a while for whoever comes next.

use std::cell::RefCell;
use std::io;
use std::os::fd::{AsFd, AsRawFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::BytesMut;
use rustc_hash::FxHashMap;
use tokio::net::TcpStream;

use super::watch::{Late, Watch};
use crate::network::balancer::pick::Peer;

/// How long a replica has to accept a connection before another is tried.
pub const CONNECT: Duration = Duration::from_secs(3);
/// How long one that nobody needs is kept.
const IDLE: Duration = Duration::from_secs(20);
/// Largest buffer that is kept with one.
const LARGE: usize = 16 * 1024;
/// Most of them for each replica.
const MOST: usize = 1024;

/// A connection to a replica.
pub struct Upstream {
    /// The socket.
    pub stream: TcpStream,
    /// What has come from it and was not taken yet.
    pub input: BytesMut,
    /// Whether something went over it before.
    pub is_used: bool,
    peer: Arc<Peer>,
    idle_since: Instant,
}

/// Those of one thread.
#[derive(Default)]
pub struct Pool(RefCell<FxHashMap<usize, Vec<Upstream>>>);

fn key(peer: &Arc<Peer>) -> usize {
    Arc::as_ptr(peer) as usize
}

impl Pool {
    /// A connection to a replica: one that is kept, or a new one. One that was closed at the other end meanwhile, or on which something
    /// came that nobody has asked for, is of no use.
    pub async fn get(&self, peer: &Arc<Peer>, watch: &Watch) -> io::Result<Upstream> {
        while let Some(kept) = self.kept(peer) {
            if kept.is_open() {
                return Ok(kept);
            }
        }
        self.connect(peer, watch).await
    }

    /// A new one.
    pub async fn connect(&self, peer: &Arc<Peer>, watch: &Watch) -> io::Result<Upstream> {
        let address: std::net::SocketAddr = peer.address.parse().map_err(io::Error::other)?;
        watch.allow(CONNECT);
        let stream = watch.bound(TcpStream::connect(address)).await;
        let stream = stream.unwrap_or_else(|Late| Err(io::ErrorKind::TimedOut.into()))?;
        crate::network::balancer::sockets::prepare_any(stream.as_fd());
        let input = BytesMut::with_capacity(8 * 1024);
        Ok(Upstream { stream, input, is_used: false, peer: peer.clone(), idle_since: Instant::now() })
    }

    // The one that was used last: the others grow old and go.
    fn kept(&self, peer: &Arc<Peer>) -> Option<Upstream> {
        self.0.borrow_mut().get_mut(&key(peer))?.pop()
    }

    /// Keeps one for whoever comes next.
    pub fn put(&self, mut upstream: Upstream) {
        let mut all = self.0.borrow_mut();
        let kept = all.entry(key(&upstream.peer)).or_default();
        if kept.len() < MOST {
            if upstream.input.capacity() > LARGE {
                upstream.input = BytesMut::new();
            }
            (upstream.idle_since, upstream.is_used) = (Instant::now(), true);
            kept.push(upstream);
        }
    }

    /// Closes what nobody needed for a while, and what leads to those that nobody is sent to any more.
    pub fn tidy(&self, now: Instant, is_known: impl Fn(&Arc<Peer>) -> bool) {
        self.0.borrow_mut().retain(|_, kept| {
            kept.retain(|upstream| {
                now.saturating_duration_since(upstream.idle_since) < IDLE && is_known(&upstream.peer)
            });
            !kept.is_empty()
        });
    }
}

impl Upstream {
    // Asks the kernel, which knows before the runtime does.
    fn is_open(&self) -> bool {
        use nix::sys::socket::{MsgFlags, recv};
        let look = recv(self.stream.as_raw_fd(), &mut [0], MsgFlags::MSG_PEEK | MsgFlags::MSG_DONTWAIT);
        look == Err(nix::errno::Errno::EAGAIN)
    }
}
