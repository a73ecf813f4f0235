//! Clients that speak HTTP/2. Each of their requests goes the way of one of HTTP/1.1 (`h1`), over a pipe in memory; those for
//! replicas that speak HTTP/2 as well, gRPC's among them, go on as they are (`h2c`).

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
use hyper::header::{self, HeaderName, HeaderValue};
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, DuplexStream, ReadBuf, ReadHalf};

use super::chunks::Chunks;
use super::h1::Session;
use super::h2c;
use super::head::{self, Body, Head, MAX_HEAD};
use super::rewrite::From;
use super::worker::{Worker, asked};
use crate::model::route::RouteProtocol;

/// Requests of one client at a time.
const STREAMS: u32 = 128;
/// How often a client is asked whether it is there, and how long it has to say so.
const ALIVE: (Duration, Duration) = (Duration::from_secs(30), Duration::from_secs(20));
/// What is under way in memory of one body.
const PIPE: usize = 64 * 1024;
/// How long a request's pipe may stand still before its first byte.
const BEGIN: Duration = Duration::from_secs(60);

/// How long a connection stays open on which nothing is asked, and how long once it is to end.
const IDLE: Duration = Duration::from_secs(75);
const GOODBYE: Duration = Duration::from_secs(10);
/// How often that is looked at.
const LOOK: Duration = Duration::from_secs(1);

/// What a client gets.
pub type Out = http_body_util::combinators::UnsyncBoxBody<Bytes, io::Error>;

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
    let use_of = used.clone();
    let mut builder = hyper::server::conn::http2::Builder::new(Here);
    builder
        .timer(TokioTimer::new())
        .max_concurrent_streams(STREAMS)
        .max_header_list_size(MAX_HEAD as u32)
        .keep_alive_interval(ALIVE.0)
        .keep_alive_timeout(ALIVE.1);
    let service = hyper::service::service_fn(move |request: Request<Incoming>| {
        let (worker, front, from) = (worker.clone(), front.clone(), from.clone());
        let under_way = use_of.begin();
        async move {
            let response = answer(worker, front, from, request).await;
            let response = response.map(|body| Kept::new(body, under_way));
            Ok::<_, Infallible>(response)
        }
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

async fn answer(worker: Rc<Worker>, front: Rc<str>, from: From, request: Request<Incoming>) -> Response<Out> {
    let authority = request.uri().authority().map(|authority| authority.as_str().to_owned());
    let host = authority.or_else(|| Some(request.headers().get(header::HOST)?.to_str().ok()?.to_owned()));
    let host = host.unwrap_or_default();
    let target = request.uri().path_and_query().map_or("/", |target| target.as_str()).to_owned();
    if request.method() == Method::CONNECT {
        return told(405, "this is no forward proxy");
    }
    let found = asked(host.as_bytes(), target.as_bytes()).map(|asked| worker.way_of(&front, &asked));
    match found {
        Ok(Some((index, way))) if way.spec.protocol == RouteProtocol::H2c => {
            h2c::exchange(&worker, &front, &from, way, index, request, &host).await
        }
        // What has no route is told so there.
        _ => by_pipe(worker, front, from, request, &host, &target)
            .await
            .unwrap_or_else(|_| told(502, "the replica broke off")),
    }
}

/// An answer of our own.
pub fn told(status: u16, why: &str) -> Response<Out> {
    let body = http_body_util::Full::new(Bytes::from(format!("{why}\n"))).map_err(|never: Infallible| match never {});
    let mut response = Response::new(body.boxed_unsync());
    *response.status_mut() = StatusCode::from_u16(status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    let kind = HeaderValue::from_static("text/plain; charset=utf-8");
    response.headers_mut().insert(header::CONTENT_TYPE, kind);
    response
}

// As one of HTTP/1.1, by the same code as those.
async fn by_pipe(
    worker: Rc<Worker>,
    front: Rc<str>,
    from: From,
    request: Request<Incoming>,
    host: &str,
    target: &str,
) -> io::Result<Response<Out>> {
    let (ours, theirs) = tokio::io::duplex(PIPE);
    let watch = worker.watches.begin(BEGIN);
    let session = tokio::task::spawn_local(Session::new(worker, theirs, front, from, watch).run());
    // Nobody waits for what a client has given up: it is no way to keep replicas busy.
    let mut sending = Sending(vec![session.abort_handle()]);
    let (mut input, mut output) = tokio::io::split(ours);
    let (parts, body) = request.into_parts();
    let is_head = parts.method == Method::HEAD;
    let length = parts.headers.get(header::CONTENT_LENGTH).cloned();
    let is_empty = body.is_end_stream();
    let mut out = format!("{} {target} HTTP/1.1\r\nHost: {host}\r\n", parts.method).into_bytes();
    let mut cookies = Vec::new();
    for (name, value) in &parts.headers {
        match name {
            &header::HOST | &header::CONTENT_LENGTH | &header::TRANSFER_ENCODING => {}
            // They may come one by one (RFC 9113, 8.2.3).
            &header::COOKIE => cookies.push(value.as_bytes()),
            name => put(&mut out, name.as_str().as_bytes(), value.as_bytes()),
        }
    }
    if !cookies.is_empty() {
        put(&mut out, b"cookie", &cookies.join(&b"; "[..]));
    }
    let chunked = length.is_none() && !is_empty;
    match &length {
        Some(length) => put(&mut out, b"content-length", length.as_bytes()),
        None if chunked => put(&mut out, b"transfer-encoding", b"chunked"),
        None => {}
    }
    out.extend_from_slice(b"\r\n");
    // The body goes while the answer comes. The pipe stays open behind it, since its end would be the client's, until the answer is
    // over or nobody waits for it any more.
    let body = tokio::task::spawn_local(async move {
        if send(&mut output, out, body, chunked).await.is_err() {
            let _ = output.shutdown().await;
        }
        std::future::pending::<()>().await;
    });
    sending.0.push(body.abort_handle());
    let (head, buffer) = hear(&mut input, is_head).await?;
    let mut response = Response::new(());
    *response.status_mut() = StatusCode::from_u16(head.status).map_err(io::Error::other)?;
    for field in &head.fields {
        use super::head::Kind;
        if matches!(field.kind, Kind::Hop | Kind::Coding) {
            continue;
        }
        let name = HeaderName::from_bytes(field.name.of(&buffer)).map_err(io::Error::other)?;
        let value = HeaderValue::from_bytes(field.value.of(&buffer)).map_err(io::Error::other)?;
        response.headers_mut().append(name, value);
    }
    let mut rest = buffer;
    rest.advance(head.length);
    let left = match head.body {
        Body::None => Left::Nothing,
        Body::Length(length) => Left::Bytes(length),
        Body::Chunked => Left::Chunks(Chunks::default()),
        Body::ToEnd => Left::All,
    };
    Ok(response.map(|()| Answer { input, rest, left, sending }.boxed_unsync()))
}

fn put(out: &mut Vec<u8>, name: &[u8], value: &[u8]) {
    for part in [name, b": ", value, b"\r\n"] {
        out.extend_from_slice(part);
    }
}

async fn send(
    output: &mut (impl AsyncWrite + Unpin),
    head: Vec<u8>,
    mut body: Incoming,
    chunked: bool,
) -> io::Result<()> {
    output.write_all(&head).await?;
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(io::Error::other)?;
        let Ok(data) = frame.into_data() else { continue };
        if data.is_empty() {
            continue;
        }
        if chunked {
            output.write_all(format!("{:x}\r\n", data.len()).as_bytes()).await?;
        }
        output.write_all(&data).await?;
        if chunked {
            output.write_all(b"\r\n").await?;
        }
    }
    if chunked {
        output.write_all(b"0\r\n\r\n").await?;
    }
    Ok(())
}

// The answer's head, with what came behind it.
async fn hear(input: &mut ReadHalf<DuplexStream>, is_head: bool) -> io::Result<(Head, BytesMut)> {
    let (mut buffer, mut from) = (BytesMut::with_capacity(4 * 1024), 0);
    loop {
        if head::end(&buffer, from).is_some() {
            let mut found = Head::default();
            found.read_response(&buffer, is_head).map_err(|bad| io::Error::other(bad.why))?;
            if !matches!(found.status, 100..200) {
                return Ok((found, buffer));
            }
            buffer.advance(found.length);
            from = 0;
            continue;
        }
        from = buffer.len();
        if input.read_buf(&mut buffer).await? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
    }
}

enum Left {
    Nothing,
    Bytes(u64),
    Chunks(Chunks),
    All,
}

// An answer's body on its way.
struct Answer {
    input: ReadHalf<DuplexStream>,
    rest: BytesMut,
    left: Left,
    sending: Sending,
}

// A request on its way, for as long as somebody waits for its answer: its session, and its body.
struct Sending(Vec<tokio::task::AbortHandle>);

impl Drop for Sending {
    fn drop(&mut self) {
        self.0.iter().for_each(tokio::task::AbortHandle::abort);
    }
}

impl Drop for Answer {
    fn drop(&mut self) {
        // One that is whole leaves the connection to the replica for others: its session ends by itself.
        if matches!(self.left, Left::Nothing) {
            self.sending.0.remove(0);
        }
    }
}

impl Answer {
    // What is there of it already.
    fn next(&mut self) -> io::Result<Option<Bytes>> {
        let found = match &mut self.left {
            Left::Nothing => return Ok(None),
            _ if self.rest.is_empty() => return Ok(None),
            Left::Bytes(left) => {
                let part = (*left).min(self.rest.len() as u64);
                *left -= part;
                if *left == 0 {
                    self.left = Left::Nothing;
                }
                self.rest.split_to(part as usize).freeze()
            }
            Left::Chunks(chunks) => {
                let mut data = BytesMut::with_capacity(self.rest.len());
                let step = chunks.step_with(&self.rest, |part| data.extend_from_slice(part));
                let step = step.map_err(|bad| io::Error::other(bad.why))?;
                self.rest.advance(step.taken);
                if step.done {
                    self.left = Left::Nothing;
                }
                data.freeze()
            }
            Left::All => self.rest.split().freeze(),
        };
        Ok((!found.is_empty()).then_some(found))
    }
}

impl HttpBody for Answer {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context) -> Poll<Option<io::Result<Frame<Bytes>>>> {
        loop {
            match self.next() {
                Ok(Some(data)) => return Poll::Ready(Some(Ok(Frame::data(data)))),
                Ok(None) if matches!(self.left, Left::Nothing) => return Poll::Ready(None),
                Ok(None) => {}
                Err(error) => return Poll::Ready(Some(Err(error))),
            }
            let Answer { input, rest, .. } = &mut *self;
            match super::carry::poll_fill(cx, input, rest) {
                Poll::Pending => return Poll::Pending,
                Poll::Ready(Ok(0)) if matches!(self.left, Left::All) => self.left = Left::Nothing,
                Poll::Ready(Ok(0)) => return Poll::Ready(Some(Err(io::ErrorKind::UnexpectedEof.into()))),
                Poll::Ready(Ok(_)) => {}
                Poll::Ready(Err(error)) => return Poll::Ready(Some(Err(error))),
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        matches!(self.left, Left::Nothing)
    }

    fn size_hint(&self) -> SizeHint {
        match self.left {
            Left::Nothing => SizeHint::with_exact(0),
            Left::Bytes(left) => SizeHint::with_exact(left),
            _ => SizeHint::default(),
        }
    }
}
