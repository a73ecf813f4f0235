//! A request of HTTP/2 that goes on by HTTP/1.1: a session (`h1`) reads it from memory and writes its answer there. One without a body
//! is carried by whoever waits for the answer, in no task of its own.

use std::cell::{Cell, RefCell};
use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker, ready};
use std::time::Duration;

use bytes::{Buf, Bytes, BytesMut};
use hyper::body::{Body as HttpBody, Frame, Incoming, SizeHint};
use hyper::header::{self, HeaderMap, HeaderName, HeaderValue};
use hyper::http::request::Parts;
use hyper::{Method, Request, Response, StatusCode};
use smallvec::SmallVec;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::task::AbortHandle;

use super::chunks::Chunks;
use super::h1::Session;
use super::h2::{Client, Out, asked_for};
use super::head::{self, Body, Head, Kind};
use super::watch::{Held, Watch};

/// What is under way in memory of one answer, in bytes.
const PIPE: usize = 64 * 1024;
/// How long a request may stand still before its first byte.
const BEGIN: Duration = Duration::from_secs(60);
/// Most sessions of a client that wait for requests.
const KEPT: usize = 16;
/// Largest buffer that is kept with one, in bytes.
const LARGE: usize = 16 * 1024;

/// Sessions of a client of which each has answered its request, for the next ones.
#[derive(Default)]
pub struct Idle(RefCell<Vec<(Rc<Shared>, Rc<Held>)>>);

impl Idle {
    fn take(&self) -> Option<(Rc<Shared>, Rc<Held>)> {
        let mut all = self.0.borrow_mut();
        // One that has waited too long is over.
        std::iter::from_fn(|| all.pop()).find(|(shared, held)| !shared.is_over.get() && held.borrow().is_some())
    }

    fn put(&self, session: (Rc<Shared>, Rc<Held>)) {
        let mut all = self.0.borrow_mut();
        all.retain(|(shared, held)| !shared.is_over.get() && held.borrow().is_some());
        if all.len() < KEPT {
            // What a large answer has taken is not kept by one who waits.
            session.0.bytes.take();
            if session.0.head.borrow().capacity() > LARGE {
                session.0.head.take();
            }
            all.push(session);
        }
    }
}

/// Answers a request by the same code as those of HTTP/1.1.
pub async fn exchange(client: &Rc<Client>, request: Request<Incoming>) -> io::Result<Response<Out>> {
    let (parts, body) = request.into_parts();
    let (is_head, has_body) = (parts.method == Method::HEAD, !body.is_end_stream());
    let (shared, carrier) = match has_body {
        // A body goes on whether or not the client takes of its answer meanwhile.
        true => {
            let shared = Rc::new(Shared::default());
            let is_chunked = write(&mut shared.head.borrow_mut(), &parts, true);
            let (session, _) = begin(client, Some(body), is_chunked, &shared);
            (shared, Carrier::Task(tokio::task::spawn_local(session.run()).abort_handle()))
        }
        false => {
            let (shared, held) = client.idle.take().unwrap_or_else(|| held(client));
            write(&mut shared.head.borrow_mut(), &parts, false);
            (shared, Carrier::Held(held))
        }
    };
    let mut answer = Answer { client: client.clone(), shared, carrier, rest: BytesMut::new(), left: Left::All };
    let head = poll_fn(|cx| answer.poll_head(cx, is_head)).await?;
    // Clients are told of some fields by number for as long as they stay: those are not to hold on to the body's memory.
    let bytes = Bytes::copy_from_slice(&answer.rest[..head.length]);
    answer.rest.advance(head.length);
    let mut response = Response::new(());
    *response.status_mut() = StatusCode::from_u16(head.status).map_err(io::Error::other)?;
    *response.headers_mut() = HeaderMap::with_capacity(head.fields.len());
    for field in &head.fields {
        if matches!(field.kind, Kind::Hop | Kind::Coding) {
            continue;
        }
        let name = HeaderName::from_bytes(field.name.of(&bytes)).map_err(io::Error::other)?;
        let value = bytes.slice_ref(field.value.of(&bytes));
        let value = HeaderValue::from_maybe_shared(value).map_err(io::Error::other)?;
        response.headers_mut().append(name, value);
    }
    answer.left = match head.body {
        Body::None | Body::Length(0) => Left::Nothing,
        Body::Length(length) => Left::Bytes(length),
        Body::Chunked => Left::Chunks(Chunks::default()),
        Body::ToEnd => Left::All,
    };
    Ok(response.map(|()| Box::pin(answer) as Out))
}

fn begin(
    client: &Client,
    body: Option<Incoming>,
    is_chunked: bool,
    shared: &Rc<Shared>,
) -> (Session<Theirs>, Rc<Watch>) {
    let (lead, part, shared) = (SmallVec::new(), Bytes::new(), shared.clone());
    let theirs = Theirs { body, is_chunked, is_broken: false, lead, part, tail: b"", shared };
    let watch = client.worker.watches.begin(BEGIN);
    let (worker, front, from) = (client.worker.clone(), client.front.clone(), client.from.clone());
    (Session::new(worker, theirs, front, from, watch.clone()), watch)
}

// A session that is carried by whoever waits for its answers.
fn held(client: &Client) -> (Rc<Shared>, Rc<Held>) {
    let shared = Rc::new(Shared::default());
    let (session, watch) = begin(client, None, false, &shared);
    let held: Rc<Held> = Rc::new(RefCell::new(Some(Box::pin(async move {
        session.run().await;
    }))));
    // Nobody carries it while the client takes nothing, or asks for nothing.
    watch.cuts(&held);
    (shared, held)
}

// Writes a request's head as HTTP/1.1 has it; whether its body comes in chunks.
fn write(out: &mut BytesMut, parts: &Parts, has_body: bool) -> bool {
    let (host, target) = asked_for(&parts.uri, &parts.headers);
    for part in [parts.method.as_str(), " ", target, " HTTP/1.1\r\nHost: ", host, "\r\n"] {
        out.extend_from_slice(part.as_bytes());
    }
    let mut cookies: SmallVec<[&[u8]; 4]> = SmallVec::new();
    for (name, value) in &parts.headers {
        match name {
            &header::HOST | &header::CONTENT_LENGTH | &header::TRANSFER_ENCODING => {}
            // They may come one by one (RFC 9113, 8.2.3).
            &header::COOKIE => cookies.push(value.as_bytes()),
            name => put(out, name.as_str().as_bytes(), value.as_bytes()),
        }
    }
    if !cookies.is_empty() {
        put(out, b"cookie", &cookies.join(&b"; "[..]));
    }
    let length = parts.headers.get(header::CONTENT_LENGTH);
    match length {
        Some(length) => put(out, b"content-length", length.as_bytes()),
        None if has_body => put(out, b"transfer-encoding", b"chunked"),
        None => {}
    }
    out.extend_from_slice(b"\r\n");
    length.is_none() && has_body
}

fn put(out: &mut BytesMut, name: &[u8], value: &[u8]) {
    for part in [name, b": ", value, b"\r\n"] {
        out.extend_from_slice(part);
    }
}

/// What both ends know: the request's head and the answer, as far as they were not taken yet.
#[derive(Default)]
pub struct Shared {
    head: RefCell<BytesMut>,
    bytes: RefCell<BytesMut>,
    // The session waits for another request.
    hears: Cell<bool>,
    // Nothing more comes.
    is_over: Cell<bool>,
    reader: Cell<Option<Waker>>,
    writer: Cell<Option<Waker>>,
}

impl Shared {
    fn end(&self) {
        self.is_over.set(true);
        self.reader.take().into_iter().for_each(Waker::wake);
    }
}

// The session's end. It reads the request's body; behind that nothing comes, and no end either, since that would be the client's.
struct Theirs {
    body: Option<Incoming>,
    is_chunked: bool,
    is_broken: bool,
    // What came of it and was not read yet, between what a chunk has before and behind it.
    lead: SmallVec<[u8; 24]>,
    part: Bytes,
    tail: &'static [u8],
    shared: Rc<Shared>,
}

impl Drop for Theirs {
    fn drop(&mut self) {
        self.shared.end();
    }
}

impl Theirs {
    // Reads what is there; false: nothing is.
    fn give(&mut self, buffer: &mut ReadBuf) -> bool {
        let before = buffer.filled().len();
        let length = self.lead.len().min(buffer.remaining());
        buffer.put_slice(&self.lead[..length]);
        self.lead.drain(..length);
        let length = self.part.len().min(buffer.remaining());
        buffer.put_slice(&self.part[..length]);
        self.part.advance(length);
        let length = self.tail.len().min(buffer.remaining());
        buffer.put_slice(&self.tail[..length]);
        self.tail = &self.tail[length..];
        buffer.filled().len() > before
    }
}

impl AsyncRead for Theirs {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context, buffer: &mut ReadBuf) -> Poll<io::Result<()>> {
        let theirs = &mut *self;
        let mut head = theirs.shared.head.borrow_mut();
        theirs.shared.hears.set(false);
        let length = head.len().min(buffer.remaining());
        buffer.put_slice(&head[..length]);
        // What is emptied is written to again.
        match length == head.len() {
            true => head.clear(),
            false => head.advance(length),
        }
        let has_more = !head.is_empty();
        drop(head);
        // What is there of a body goes along: one that is whole can be sent once more.
        let has_some = length > 0;
        loop {
            if theirs.give(buffer) || has_more {
                return Poll::Ready(Ok(()));
            }
            if theirs.is_broken {
                return Poll::Ready(Ok(()));
            }
            let Some(body) = &mut theirs.body else {
                if has_some {
                    return Poll::Ready(Ok(()));
                }
                theirs.shared.hears.set(true);
                return Poll::Pending;
            };
            let frame = match Pin::new(body).poll_frame(cx) {
                Poll::Pending if has_some => return Poll::Ready(Ok(())),
                other => ready!(other),
            };
            match frame {
                Some(Ok(frame)) => {
                    // Trailers end here.
                    let Ok(data) = frame.into_data() else { continue };
                    if theirs.is_chunked && !data.is_empty() {
                        theirs.lead.extend_from_slice(format!("{:x}\r\n", data.len()).as_bytes());
                        theirs.tail = b"\r\n";
                    }
                    theirs.part = data;
                }
                // An end, once what came before it is read; not that of the body.
                Some(Err(_)) => {
                    theirs.is_broken = true;
                    return Poll::Ready(Ok(()));
                }
                None => {
                    theirs.body = None;
                    if theirs.is_chunked {
                        theirs.tail = b"0\r\n\r\n";
                    }
                }
            }
        }
    }
}

impl AsyncWrite for Theirs {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let mut waiting = self.shared.bytes.borrow_mut();
        let length = bytes.len().min(PIPE.saturating_sub(waiting.len()));
        if length == 0 && !bytes.is_empty() {
            self.shared.writer.set(Some(cx.waker().clone()));
            return Poll::Pending;
        }
        waiting.extend_from_slice(&bytes[..length]);
        self.shared.reader.take().into_iter().for_each(Waker::wake);
        Poll::Ready(Ok(length))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context) -> Poll<io::Result<()>> {
        self.shared.end();
        Poll::Ready(Ok(()))
    }
}

// Who carries a session.
enum Carrier {
    // Whoever waits for the answer. Nothing is left once its time was over while nobody did.
    Held(Rc<Held>),
    Task(AbortHandle),
}

// Nobody waits for what a client has given up: it is no way to keep replicas busy. Once an answer was written to its end, the session
// has left the connection to the replica for others.
impl Drop for Carrier {
    fn drop(&mut self) {
        if let Carrier::Task(task) = self {
            task.abort();
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
    client: Rc<Client>,
    shared: Rc<Shared>,
    carrier: Carrier,
    rest: BytesMut,
    left: Left,
}

impl Drop for Answer {
    fn drop(&mut self) {
        let is_whole = matches!(self.left, Left::Nothing) && self.shared.bytes.borrow().is_empty();
        if let Carrier::Held(held) = &self.carrier
            && is_whole
            && self.shared.hears.get()
        {
            self.client.idle.put((self.shared.clone(), held.clone()));
        }
    }
}

impl Answer {
    // Waits until more is in `rest`; false: nothing more comes.
    fn poll_more(&mut self, cx: &mut Context) -> Poll<bool> {
        loop {
            let mut waiting = self.shared.bytes.borrow_mut();
            if !waiting.is_empty() {
                match self.rest.is_empty() {
                    true => self.rest = waiting.split(),
                    false => self.rest.unsplit(waiting.split()),
                }
                self.shared.writer.take().into_iter().for_each(Waker::wake);
                return Poll::Ready(true);
            }
            if self.shared.is_over.get() {
                return Poll::Ready(false);
            }
            drop(waiting);
            match &self.carrier {
                Carrier::Held(held) => {
                    let mut session = held.borrow_mut();
                    let Some(carried) = &mut *session else { return Poll::Ready(false) };
                    if carried.as_mut().poll(cx).is_ready() {
                        *session = None;
                    } else if self.shared.bytes.borrow().is_empty() {
                        return Poll::Pending;
                    }
                }
                Carrier::Task(_) => {
                    self.shared.reader.set(Some(cx.waker().clone()));
                    return Poll::Pending;
                }
            }
        }
    }

    // The answer's head; what came behind it is in `rest` as well.
    fn poll_head(&mut self, cx: &mut Context, is_head: bool) -> Poll<io::Result<Head>> {
        loop {
            if head::end(&self.rest, 0).is_some() {
                let mut found = Head::default();
                found.read_response(&self.rest, is_head).map_err(|bad| io::Error::other(bad.why))?;
                if !matches!(found.status, 100..200) {
                    return Poll::Ready(Ok(found));
                }
                self.rest.advance(found.length);
                continue;
            }
            if !ready!(self.poll_more(cx)) {
                return Poll::Ready(Err(io::ErrorKind::UnexpectedEof.into()));
            }
        }
    }

    // What is there of the body already.
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
            match (ready!(self.poll_more(cx)), &self.left) {
                (true, _) => {}
                (false, Left::All) => self.left = Left::Nothing,
                (false, _) => return Poll::Ready(Some(Err(io::ErrorKind::UnexpectedEof.into()))),
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
