//! Clients that speak HTTP/2. Each of their requests goes the way of one of HTTP/1.1 (`pipe`); those for replicas that speak HTTP/2
//! as well, gRPC's among them, go on as they are (`h2c`).

use std::convert::Infallible;
use std::io;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use bytes::{Buf, Bytes, BytesMut};
use http_body_util::BodyExt;
use hyper::body::{Body as HttpBody, Frame, Incoming, SizeHint};
use hyper::header::{self, HeaderMap, HeaderValue};
use hyper::{Method, Request, Response, StatusCode, Uri};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::head::MAX_HEAD;
use super::rewrite::From;
use super::worker::{Worker, asked};
use super::{h2c, pipe};
use crate::model::route::RouteProtocol;

/// Requests of one client at a time.
const STREAMS: u32 = 128;
/// How often a client is asked whether it is there, and how long it has to say so.
const ALIVE: (Duration, Duration) = (Duration::from_secs(30), Duration::from_secs(20));

/// How long a connection stays open on which nothing is asked, and how long once it is to end.
const IDLE: Duration = Duration::from_secs(75);
const GOODBYE: Duration = Duration::from_secs(10);
/// How often that is looked at.
const LOOK: Duration = Duration::from_secs(1);

/// One that is connected.
pub struct Client {
    /// Who serves it.
    pub worker: Rc<Worker>,
    /// The front that it came to.
    pub front: Rc<str>,
    /// Where it came from.
    pub from: From,
    /// What waits for its next requests.
    pub idle: pipe::Idle,
}

/// What a client gets.
pub type Out = Pin<Box<dyn HttpBody<Data = Bytes, Error = io::Error>>>;

/// Starts tasks on the thread that they are made on.
#[derive(Debug, Clone, Copy)]
pub struct Here;

impl<F: Future + 'static> hyper::rt::Executor<F> for Here {
    fn execute(&self, task: F) {
        tokio::task::spawn_local(async move {
            task.await;
        });
    }
}

/// A connection of which something was read already.
pub struct Begun<S> {
    begun: BytesMut,
    stream: S,
}

impl<S> Begun<S> {
    /// With what was read.
    pub fn new(begun: BytesMut, stream: S) -> Self {
        Begun { begun, stream }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Begun<S> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context, buffer: &mut ReadBuf) -> Poll<io::Result<()>> {
        if self.begun.is_empty() {
            return Pin::new(&mut self.stream).poll_read(cx, buffer);
        }
        let length = self.begun.len().min(buffer.remaining());
        buffer.put_slice(&self.begun[..length]);
        self.begun.advance(length);
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Begun<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, bytes)
    }

    // Heads and what belongs to them, and TLS's records, go in one call.
    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context,
        parts: &[io::IoSlice],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(cx, parts)
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

/// Serves a client to its end.
pub async fn serve<S: AsyncRead + AsyncWrite + Unpin + 'static>(
    worker: Rc<Worker>,
    stream: S,
    front: Rc<str>,
    from: From,
) {
    let (shared, used) = (worker.shared.clone(), Used::new());
    let client = Rc::new(Client { worker, front, from, idle: pipe::Idle::default() });
    let use_of = used.clone();
    let mut builder = hyper::server::conn::http2::Builder::new(Here);
    builder
        .timer(TokioTimer::new())
        .max_concurrent_streams(STREAMS)
        .max_header_list_size(MAX_HEAD as u32)
        .keep_alive_interval(ALIVE.0)
        .keep_alive_timeout(ALIVE.1);
    let service = hyper::service::service_fn(move |request: Request<Incoming>| {
        let (client, under_way) = (client.clone(), use_of.begin());
        // Moved a few times before it begins.
        Box::pin(async move {
            let response = answer(&client, request).await;
            let response = response.map(|body| Kept::new(body, under_way));
            Ok::<_, Infallible>(response)
        })
    });
    let mut connection = std::pin::pin!(builder.serve_connection(TokioIo::new(stream), service));
    let mut left = std::pin::pin!(shared.left.notified());
    left.as_mut().enable();
    if !shared.is_leaving() {
        tokio::select! {
            _ = connection.as_mut() => return,
            () = left => {}
            () = used.unused_for(IDLE) => {}
        }
    }
    // Whatever has begun is finished; what comes later comes to another connection. Whoever asks for nothing is not waited for.
    connection.as_mut().graceful_shutdown();
    tokio::select! {
        _ = connection => {}
        () = used.unused_for(GOODBYE) => {}
    }
}

// When something was asked for last on a connection, and how much is under way.
struct Used {
    under_way: AtomicUsize,
    began: Instant,
    // In milliseconds since then.
    last: AtomicU64,
}

// A request, until its answer is over.
struct UnderWay(Arc<Used>);

impl Used {
    fn new() -> Arc<Self> {
        Arc::new(Used { under_way: AtomicUsize::new(0), began: Instant::now(), last: AtomicU64::new(0) })
    }

    fn begin(self: &Arc<Self>) -> UnderWay {
        self.under_way.fetch_add(1, Ordering::Relaxed);
        UnderWay(self.clone())
    }

    // Returns once nothing was asked for so long, from now on.
    async fn unused_for(&self, time: Duration) {
        let now = self.began.elapsed();
        loop {
            let last = Duration::from_millis(self.last.load(Ordering::Relaxed)).max(now);
            let left = (last + time).saturating_sub(self.began.elapsed());
            if left.is_zero() && self.under_way.load(Ordering::Relaxed) == 0 {
                return;
            }
            tokio::time::sleep(left.max(LOOK)).await;
        }
    }
}

impl Drop for UnderWay {
    fn drop(&mut self) {
        self.0.last.store(self.0.began.elapsed().as_millis() as u64, Ordering::Relaxed);
        self.0.under_way.fetch_sub(1, Ordering::Relaxed);
    }
}

/// An answer's body, with what is let go when it is over.
pub struct Kept<B, T> {
    body: B,
    _until_then: T,
}

impl<B, T> Kept<B, T> {
    /// Keeps something until the body is over.
    pub fn new(body: B, until_then: T) -> Self {
        Kept { body, _until_then: until_then }
    }
}

impl<B, T> HttpBody for Kept<B, T>
where
    B: HttpBody<Data = Bytes, Error: Into<Box<dyn std::error::Error + Send + Sync>>> + Unpin,
    T: Unpin,
{
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context) -> Poll<Option<io::Result<Frame<Bytes>>>> {
        Pin::new(&mut self.body).poll_frame(cx).map_err(io::Error::other)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

async fn answer(client: &Rc<Client>, request: Request<Incoming>) -> Response<Out> {
    if request.method() == Method::CONNECT {
        return told(405, "this is no forward proxy");
    }
    let (worker, front) = (&client.worker, &client.front);
    let (host, target) = asked_for(request.uri(), request.headers());
    let found = asked(host.as_bytes(), target.as_bytes()).map(|asked| worker.way_of(front, &asked));
    match found {
        Ok(Some((index, way))) if way.spec.protocol == RouteProtocol::H2c => {
            let host = host.to_owned();
            Box::pin(h2c::exchange(worker, front, &client.from, way, index, request, &host)).await
        }
        // What has no route is told so there.
        _ => {
            let answered = pipe::exchange(client, request).await;
            answered.unwrap_or_else(|_| told(502, "the replica broke off"))
        }
    }
}

/// The host of a request, and its path with the query.
pub fn asked_for<'a>(uri: &'a Uri, headers: &'a HeaderMap) -> (&'a str, &'a str) {
    let authority = uri.authority().map(|authority| authority.as_str());
    let host = authority.or_else(|| headers.get(header::HOST)?.to_str().ok()).unwrap_or_default();
    (host, uri.path_and_query().map_or("/", |target| target.as_str()))
}

/// An answer of our own.
pub fn told(status: u16, why: &str) -> Response<Out> {
    let body = http_body_util::Full::new(Bytes::from(format!("{why}\n"))).map_err(io::Error::other);
    let mut response = Response::new(Box::pin(body) as Out);
    *response.status_mut() = StatusCode::from_u16(status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    let kind = HeaderValue::from_static("text/plain; charset=utf-8");
    response.headers_mut().insert(header::CONTENT_TYPE, kind);
    response
}
