//! Connections to replicas that speak HTTP/2: some requests on each at a time.

use std::cell::RefCell;
use std::io;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use hyper::client::conn::http2::{Builder, SendRequest};
use hyper_util::rt::{TokioIo, TokioTimer};
use rustc_hash::FxHashMap;

use super::h2::Here;
use super::h2c::Sent;
use super::worker::Worker;
use crate::network::balancer::pick::Peer;
use crate::network::balancer::sockets::is_own;

/// How often a replica is asked whether it is there, and how long it has to say so.
const ALIVE: (Duration, Duration) = (Duration::from_secs(10), Duration::from_secs(10));

/// What a replica may send of one answer before the client has read it, and of all of them, in bytes.
const WINDOW: u32 = 256 * 1024;
const WINDOWS: u32 = (1 << 31) - 1;
/// Requests on one connection at a time; more make another. A replica keeps back what their windows let it send, and has bounds of
/// its own there (nginx ends a connection with 10,000 frames that wait to go).
const MOST: usize = 100;

/// Connections to replicas that speak HTTP/2.
#[derive(Default)]
pub struct Streams(RefCell<FxHashMap<usize, Lines>>);

// Those to one replica, and whoever makes one more.
struct Lines {
    peer: Arc<Peer>,
    open: Vec<Stream>,
    making: Rc<tokio::sync::Mutex<()>>,
    // When one could not be made for the last time.
    failed: Option<Instant>,
}

struct Stream {
    sender: SendRequest<Sent>,
    under_way: Arc<AtomicUsize>,
}

/// A request on one of them, until its answer is over.
pub struct UnderWay(Arc<AtomicUsize>);

impl Drop for UnderWay {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Stream {
    fn begin(&self) -> (SendRequest<Sent>, UnderWay) {
        self.under_way.fetch_add(1, Ordering::Relaxed);
        (self.sender.clone(), UnderWay(self.under_way.clone()))
    }
}

impl Streams {
    /// One to a replica with room for a request, and whether it was there before.
    pub async fn get(&self, worker: &Worker, peer: &Arc<Peer>) -> io::Result<(SendRequest<Sent>, UnderWay, bool)> {
        let making = match self.free(peer) {
            Ok((sender, under_way)) => return Ok((sender, under_way, true)),
            Err(making) => making,
        };
        // Those who come at the same time wait for one, rather than make one each; where that fails, it has for all of them.
        let began = Instant::now();
        let _turn = making.lock().await;
        if let Ok((sender, under_way)) = self.free(peer) {
            return Ok((sender, under_way, true));
        }
        let has_failed = |lines: &Lines| lines.failed.is_some_and(|failed| failed >= began);
        if self.0.borrow().get(&key(peer)).is_some_and(has_failed) {
            return Err(io::ErrorKind::NotConnected.into());
        }
        let made = Self::make(worker, peer).await;
        let mut all = self.0.borrow_mut();
        let lines = all.get_mut(&key(peer));
        match made {
            Ok(stream) => {
                let (sender, under_way) = stream.begin();
                if let Some(lines) = lines {
                    lines.open.push(stream);
                }
                Ok((sender, under_way, false))
            }
            Err(error) => {
                // That this host has none left is not the replica's.
                if let Some(lines) = lines.filter(|_| !is_own(&error)) {
                    lines.failed = Some(Instant::now());
                }
                Err(error)
            }
        }
    }

    async fn make(worker: &Worker, peer: &Arc<Peer>) -> io::Result<Stream> {
        let watch = worker.watches.begin(super::pool::CONNECT);
        let upstream = worker.pool.connect(peer, &watch).await?;
        let mut builder = Builder::new(Here);
        builder.timer(TokioTimer::new()).keep_alive_interval(ALIVE.0).keep_alive_timeout(ALIVE.1);
        // One client that does not read holds up its own answer alone: of the connection as a whole no more is kept back.
        builder.initial_stream_window_size(WINDOW).initial_connection_window_size(WINDOWS);
        let (sender, connection) = builder.handshake(TokioIo::new(upstream.stream)).await.map_err(io::Error::other)?;
        tokio::task::spawn_local(async move {
            let _ = connection.await;
        });
        Ok(Stream { sender, under_way: Arc::default() })
    }

    // The one with the fewest requests, or whoever makes another.
    fn free(&self, peer: &Arc<Peer>) -> Result<(SendRequest<Sent>, UnderWay), Rc<tokio::sync::Mutex<()>>> {
        let mut all = self.0.borrow_mut();
        let lines = all.entry(key(peer)).or_insert_with(|| Lines {
            peer: peer.clone(),
            open: Vec::new(),
            making: Rc::default(),
            failed: None,
        });
        lines.open.retain(|stream| !stream.sender.is_closed());
        let load = |stream: &&Stream| stream.under_way.load(Ordering::Relaxed);
        let least = lines.open.iter().min_by_key(load).filter(|stream| load(stream) < MOST);
        least.map(Stream::begin).ok_or_else(|| lines.making.clone())
    }

    /// That one takes nothing any more: what is under way on it is finished, or it is over already.
    pub fn forget(&self, peer: &Arc<Peer>, under_way: &UnderWay) {
        if let Some(lines) = self.0.borrow_mut().get_mut(&key(peer)) {
            lines.open.retain(|stream| !Arc::ptr_eq(&stream.under_way, &under_way.0));
        }
    }

    /// Closes those to replicas that nobody is sent to any more. What is under way on them is finished.
    pub fn tidy(&self, is_known: impl Fn(&Arc<Peer>) -> bool) {
        self.0.borrow_mut().retain(|_, lines| {
            lines.open.retain(|stream| !stream.sender.is_closed());
            is_known(&lines.peer)
        });
    }
}

fn key(peer: &Arc<Peer>) -> usize {
    Arc::as_ptr(peer) as usize
}
