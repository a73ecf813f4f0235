//! What goes by a port where HTTP is spoken: each thread counts for itself.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::network::table::Flowed;

/// One thread's count of one port.
#[derive(Debug, Default)]
pub struct Tally {
    open: AtomicU32,
    connections: AtomicU64,
    unrouted: AtomicU64,
    malformed: AtomicU64,
    bytes_in: AtomicU64,
    bytes_out: AtomicU64,
}

impl Tally {
    /// No route was for a request.
    pub fn note_unrouted(&self) {
        self.unrouted.fetch_add(1, Ordering::Relaxed);
    }

    /// What came was no HTTP, or could be read in two ways.
    pub fn note_malformed(&self) {
        self.malformed.fetch_add(1, Ordering::Relaxed);
    }

    /// What is counted so far.
    pub fn told(&self) -> Flowed {
        let get = |count: &AtomicU64| count.load(Ordering::Relaxed);
        Flowed {
            open: self.open.load(Ordering::Relaxed),
            connections: get(&self.connections),
            unrouted: get(&self.unrouted),
            malformed: get(&self.malformed),
            bytes_in: get(&self.bytes_in),
            bytes_out: get(&self.bytes_out),
            ..Flowed::default()
        }
    }
}

/// A client's connection, counted as long as it is kept.
pub struct Counted<S> {
    stream: S,
    tally: Arc<Tally>,
}

impl<S> Counted<S> {
    /// One that has just come.
    pub fn new(stream: S, tally: &Arc<Tally>) -> Self {
        tally.open.fetch_add(1, Ordering::Relaxed);
        tally.connections.fetch_add(1, Ordering::Relaxed);
        Counted { stream, tally: tally.clone() }
    }
}

impl<S> Drop for Counted<S> {
    fn drop(&mut self) {
        self.tally.open.fetch_sub(1, Ordering::Relaxed);
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Counted<S> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context, buffer: &mut ReadBuf) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        let done = Pin::new(&mut self.stream).poll_read(cx, buffer);
        let length = buffer.filled().len() - before;
        if length > 0 {
            self.tally.bytes_in.fetch_add(length as u64, Ordering::Relaxed);
        }
        done
    }
}

impl<S: AsyncWrite + Unpin> Counted<S> {
    fn sent(&self, done: Poll<io::Result<usize>>) -> Poll<io::Result<usize>> {
        if let Poll::Ready(Ok(length)) = &done {
            self.tally.bytes_out.fetch_add(*length as u64, Ordering::Relaxed);
        }
        done
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Counted<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let done = Pin::new(&mut self.stream).poll_write(cx, bytes);
        self.sent(done)
    }

    fn poll_write_vectored(mut self: Pin<&mut Self>, cx: &mut Context, parts: &[IoSlice]) -> Poll<io::Result<usize>> {
        let done = Pin::new(&mut self.stream).poll_write_vectored(cx, parts);
        self.sent(done)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
