//! A request of HTTP/1.1 for a replica that speaks HTTP/2 alone. hyper turns the one into the other; of the client's connection
//! it sees this request, whose head was read here before, and no byte more.

use std::cell::Cell;
use std::convert::Infallible;
use std::io;
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use bytes::{Buf, BytesMut};
use hyper::Request;
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::Notify;

use super::carry::poll_fill;
use super::chunks::Chunks;
use super::exchange::After;
use super::h1::{STILL, Session};
use super::h2::{Kept, told};
use super::h2c;
use super::head::{Body, MAX_FIELDS, MAX_HEAD};
use super::routes::Way;
use super::watch::{Late, Watch};

/// What is read ahead of the next request, in bytes.
const AHEAD: usize = 16 * 1024;

enum Left {
    Nothing,
    Bytes(u64),
    Chunks(Chunks),
}

// How it goes, for whoever waits for the end of it.
#[derive(Default)]
struct Course {
    // All of the request was handed on.
    is_whole: Cell<bool>,
    // The client has closed its side: it may still take the answer, or be gone.
    has_closed: Cell<bool>,
    // The client sends nothing though there is more to come, or takes nothing.
    waits_to_read: Cell<bool>,
    waits_to_write: Cell<bool>,
    // What is malformed.
    bad: Cell<Option<&'static str>>,
}

impl Course {
    // Whether it is the client's turn, or it has none any more.
    fn waits(&self) -> bool {
        self.has_closed.get() || self.waits_to_read.get() || self.waits_to_write.get()
    }
}

// One request of a connection.
struct One<'a, S> {
    stream: &'a mut S,
    input: &'a mut BytesMut,
    // What is left of the head; then of the body; then what ends that.
    head: usize,
    left: Left,
    tail: &'static [u8],
    watch: &'a Watch,
    course: &'a Course,
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncRead for One<'_, S> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context, buffer: &mut ReadBuf) -> Poll<io::Result<()>> {
        let one = self.get_mut();
        if one.head > 0 {
            let length = one.head.min(buffer.remaining());
            buffer.put_slice(&one.input[..length]);
            one.input.advance(length);
            one.head -= length;
            one.course.is_whole.set(one.head == 0 && matches!(one.left, Left::Nothing));
            return Poll::Ready(Ok(()));
        }
        if !one.tail.is_empty() {
            let length = one.tail.len().min(buffer.remaining());
            buffer.put_slice(&one.tail[..length]);
            one.tail = &one.tail[length..];
            one.course.is_whole.set(one.tail.is_empty());
            return Poll::Ready(Ok(()));
        }
        loop {
            // What comes behind it is for others.
            if matches!(one.left, Left::Nothing | Left::Bytes(0)) {
                one.course.is_whole.set(true);
                one.course.waits_to_read.set(false);
                return one.listen(cx);
            }
            if one.input.is_empty() {
                one.course.waits_to_read.set(true);
                if ready!(poll_fill(cx, one.stream, one.input))? == 0 {
                    return Poll::Ready(Ok(()));
                }
                one.course.waits_to_read.set(false);
                one.watch.allow(STILL);
            }
            let here = one.input.len().min(buffer.remaining());
            let sent = match &mut one.left {
                Left::Nothing => 0,
                Left::Bytes(left) => {
                    let length = here.min(usize::try_from(*left).unwrap_or(usize::MAX));
                    *left -= length as u64;
                    one.course.is_whole.set(*left == 0);
                    buffer.put_slice(&one.input[..length]);
                    one.input.advance(length);
                    length
                }
                Left::Chunks(chunks) => {
                    let step = chunks.step(&one.input[..here]).map_err(|bad| {
                        one.course.bad.set(Some(bad.why));
                        io::Error::from(io::ErrorKind::InvalidData)
                    })?;
                    buffer.put_slice(&one.input[..step.sent]);
                    one.input.advance(step.taken);
                    if step.done {
                        (one.left, one.tail) = (Left::Nothing, b"\r\n");
                        if step.sent == 0 {
                            return Pin::new(one).poll_read(cx, buffer);
                        }
                    }
                    step.sent
                }
            };
            if sent > 0 {
                return Poll::Ready(Ok(()));
            }
        }
    }
}

impl<S: AsyncRead + Unpin> One<'_, S> {
    // The request is whole: whether the client is still there is all that is listened for. What it asks next is kept.
    fn listen(&mut self, cx: &mut Context) -> Poll<io::Result<()>> {
        while !self.course.has_closed.get() && self.input.len() < AHEAD {
            if ready!(poll_fill(cx, self.stream, self.input))? == 0 {
                self.course.has_closed.set(true);
            }
        }
        Poll::Pending
    }
}

impl<S> One<'_, S> {
    fn note(&self, written: Poll<io::Result<usize>>) -> Poll<io::Result<usize>> {
        self.course.waits_to_write.set(written.is_pending());
        if written.is_ready() {
            self.watch.allow(STILL);
        }
        written
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncWrite for One<'_, S> {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let one = self.get_mut();
        let written = Pin::new(&mut *one.stream).poll_write(cx, bytes);
        one.note(written)
    }

    fn poll_write_vectored(self: Pin<&mut Self>, cx: &mut Context, parts: &[io::IoSlice]) -> Poll<io::Result<usize>> {
        let one = self.get_mut();
        let written = Pin::new(&mut *one.stream).poll_write_vectored(cx, parts);
        one.note(written)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    // By TLS what was written may still be here.
    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context) -> Poll<io::Result<()>> {
        let one = self.get_mut();
        let flushed = Pin::new(&mut *one.stream).poll_flush(cx);
        one.course.waits_to_write.set(flushed.is_pending());
        flushed
    }

    // The connection goes on.
    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context) -> Poll<io::Result<()>> {
        self.poll_flush(cx)
    }
}

// Says that an answer is over.
struct Told(Rc<Notify>);

impl Drop for Told {
    fn drop(&mut self) {
        self.0.notify_one();
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> Session<S> {
    /// Answers the request whose head was read, by a replica that speaks HTTP/2.
    pub(super) async fn stream_on(&mut self, index: usize, way: Arc<Way>) -> After {
        // hyper says to nobody of HTTP/1.0 that it keeps a connection.
        let keeps = self.head.keeps && !self.head.is_old && !self.worker.is_leaving();
        let host = String::from_utf8_lossy(self.head.host.of(&self.input)).into_owned();
        let left = match self.head.body {
            Body::Length(length) => Left::Bytes(length),
            Body::Chunked => Left::Chunks(Chunks::default()),
            Body::None | Body::ToEnd => Left::Nothing,
        };
        self.has_begun = !matches!(left, Left::Nothing);
        let (course, over) = (Course::default(), Rc::new(Notify::new()));
        let Session { worker, stream, input, watch, front, from, head, .. } = self;
        let one = One { stream, input, head: head.length, left, tail: b"", watch, course: &course };
        let service = hyper::service::service_fn(|request: Request<Incoming>| {
            let (way, told_by) = (way.clone(), Told(over.clone()));
            let (worker, front, from, host, course) = (&**worker, &**front, &*from, &host, &course);
            async move {
                let mut response = h2c::exchange(worker, front, from, way, index, request, host).await;
                if let Some(why) = course.bad.get() {
                    response = told(400, why);
                }
                Ok::<_, Infallible>(response.map(|body| Kept::new(body, told_by)))
            }
        });
        let mut builder = hyper::server::conn::http1::Builder::new();
        builder.keep_alive(keeps).max_buf_size(MAX_HEAD).max_headers(MAX_FIELDS).auto_date_header(false);
        let mut connection = pin!(builder.serve_connection(TokioIo::new(one), service));
        watch.allow(STILL);
        let mut is_over = false;
        let served = loop {
            let next = async {
                tokio::select! {
                    served = connection.as_mut() => Some(served.is_ok()),
                    () = over.notified(), if !is_over => None,
                }
            };
            match watch.bound(next).await {
                Ok(Some(served)) => break served,
                // What is not sent yet still is; then it waits for no other request.
                Ok(None) => {
                    is_over = true;
                    connection.as_mut().graceful_shutdown();
                }
                // It is the replica that takes its time, and has a time of its own to begin with.
                Err(Late) if !course.waits() => watch.allow(STILL),
                Err(Late) => return After::Drop,
            }
        };
        match (served, keeps && course.is_whole.get()) {
            (true, true) => After::Next,
            (true, false) => After::Close,
            // The answer is out: it is heard by whoever is still sending.
            (false, _) if is_over => After::Close,
            (false, _) => After::Drop,
        }
    }
}
