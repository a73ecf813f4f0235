//! A client's connection that speaks HTTP/1.1: request by request, each to the replica that its route chooses.

use std::future::poll_fn;
use std::net::SocketAddr;
use std::rc::Rc;
use std::task::Poll;
use std::time::{Duration, Instant};

use bytes::{Buf, BytesMut};
use smallvec::SmallVec;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

use super::access::Line;
use super::carry::{Broken, Carry, poll_fill};
use super::exchange::{After, Exchange, Failed};
use super::head::{self, Bad, Body, Head, MAX_HEAD};
use super::pool::Upstream;
use super::rewrite::{self, From};
use super::watch::{Late, Watch};
use super::worker::{Worker, asked, redirected};
use crate::model::id::TaskId;
use crate::model::route::RouteProtocol;
use crate::network::balancer::pick::{Picked, Wish};
use crate::network::balancer::proxy;
use crate::network::balancer::sockets::is_own;

/// How a connection begins that speaks HTTP/2.
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\n";
/// How long a connection stays open on which nothing is asked.
const IDLE: Duration = Duration::from_secs(75);
/// How long a head may take from its first byte on.
pub const HEAD: Duration = Duration::from_secs(15);
/// How long a body may stand still.
pub const STILL: Duration = Duration::from_secs(60);
/// How long a replica has to begin its answer, unless its route says otherwise.
pub const ANSWER: Duration = Duration::from_secs(60);
/// How often a request is tried elsewhere, unless its route says otherwise.
pub const RETRIES: u32 = 2;
/// Largest body that is kept to be sent again.
const KEPT: u64 = 64 * 1024;

/// A client's connection.
pub struct Session<S> {
    pub(super) worker: Rc<Worker>,
    pub(super) stream: S,
    pub(super) front: Rc<str>,
    pub(super) from: From,
    pub(super) watch: Rc<Watch>,
    pub(super) input: BytesMut,
    pub(super) out: Vec<u8>,
    pub(super) head: Head,
    pub(super) answer: Head,
    // A part of the body has gone on: what is left of it here says nothing of its length.
    pub(super) has_begun: bool,
}

impl<S: AsyncRead + AsyncWrite + Unpin> Session<S> {
    /// A connection that came in.
    pub fn new(worker: Rc<Worker>, stream: S, front: Rc<str>, from: From, watch: Rc<Watch>) -> Self {
        Self::begun(worker, stream, front, from, watch, BytesMut::with_capacity(4 * 1024))
    }

    /// One of which something was read already.
    pub fn begun(worker: Rc<Worker>, stream: S, front: Rc<str>, from: From, watch: Rc<Watch>, input: BytesMut) -> Self {
        let (out, head, answer) = (Vec::with_capacity(4 * 1024), Head::default(), Head::default());
        Session { worker, stream, front, from, watch, input, out, head, answer, has_begun: false }
    }

    /// Serves it to its end; gives it back, with what was read of it, if it turns out to speak HTTP/2.
    pub async fn run(mut self) -> Option<(S, BytesMut)> {
        let mut is_first = true;
        loop {
            match self.hear().await {
                Ok(true) => {}
                Ok(false) => return None,
                Err(_) if is_first && self.input.starts_with(PREFACE) => return Some((self.stream, self.input)),
                Err(bad) => {
                    self.refuse(bad).await;
                    return None;
                }
            }
            is_first = false;
            match self.exchange().await {
                After::Next => {}
                After::Close => break,
                After::Drop => return None,
            }
        }
        self.farewell().await;
        None
    }

    // Waits for a request's head; false: the client is gone, or sends nothing.
    async fn hear(&mut self) -> Result<bool, Bad> {
        let (mut from, mut has_begun) = (0, false);
        self.has_begun = false;
        // What a large body has taken is not kept by one who sends nothing.
        if self.input.is_empty() && self.input.capacity() > 16 * 1024 {
            self.input = BytesMut::new();
        }
        if self.out.capacity() > 16 * 1024 {
            self.out = Vec::new();
        }
        self.watch.allow(IDLE);
        loop {
            // Some end a body with an empty line more (RFC 9112, 2.2).
            while from == 0 && self.input.starts_with(b"\r\n") {
                self.input.advance(2);
            }
            let end = head::end(&self.input, from);
            if end.is_some_and(|end| end <= MAX_HEAD) {
                self.head.read_request(&self.input)?;
                return Ok(true);
            }
            if end.is_some() || self.input.len() > MAX_HEAD {
                return Err(Bad { status: 431, why: "the head is too long" });
            }
            from = self.input.len();
            if from > 0 && !has_begun {
                has_begun = true;
                self.watch.allow(HEAD);
            }
            self.input.reserve(4 * 1024);
            match self.watch.bound(self.stream.read_buf(&mut self.input)).await {
                Ok(Ok(0) | Err(_)) => return Ok(false),
                Ok(Ok(_)) => {}
                Err(Late) if has_begun => return Err(Bad { status: 408, why: "the head did not come in time" }),
                Err(Late) => return Ok(false),
            }
        }
    }

    async fn exchange(&mut self) -> After {
        let began = Instant::now();
        let bytes = &self.input[..self.head.length];
        let found = asked(self.head.host.of(bytes), self.head.target.of(bytes));
        let found = found.map(|asked| self.worker.way_of(&self.front, &asked));
        let (index, way) = match found {
            Ok(Some(found)) => found,
            Ok(None) => {
                self.from.tally.note_unrouted();
                return self.tell(404, "no route leads there", true).await;
            }
            Err(bad) => {
                self.refuse(bad).await;
                return After::Drop;
            }
        };
        if way.spec.protocol == RouteProtocol::H2c {
            return self.stream_on(index, way).await;
        }
        let line = Line::begin(&self.worker.lines, &way, || self.said(&way.spec));
        let keeps = self.head.keeps && !self.worker.is_leaving();
        let mut exchange = Exchange { way, began, mark: None, keeps, line };
        let way = exchange.way.clone();
        if let Some(to) = &way.spec.redirect {
            let bytes = &self.input[..self.head.length];
            let (status, to) =
                redirected(to, self.head.method.of(bytes), self.head.host.of(bytes), self.head.target.of(bytes));
            exchange.note(status);
            return self.tell_with(status, &[("Location", &to)], &to, true).await;
        }
        let most = way.spec.max_body.map(|most| most.0);
        if let (Body::Length(length), Some(most)) = (self.head.body, most)
            && length > most
        {
            return self.fail(&exchange, 413, "the body is larger than this route takes").await;
        }
        let group = self.worker.hooks.choose(&way, || self.shown(&way));
        let mut tried: SmallVec<[TaskId; 4]> = SmallVec::new();
        // A connection that was kept may have been closed at the other end: that is no fault of the replica's.
        let mut fresh = false;
        loop {
            let Some(picked) = self.choose(&exchange, index, &tried, group.as_deref()) else {
                let (status, why) = match tried.is_empty() {
                    true => (503, "no replica serves this route now"),
                    false => (502, "no replica took the request"),
                };
                return self.fail(&exchange, status, why).await;
            };
            let peer = picked.peer().clone();
            exchange.mark = way.spec.sticky.as_ref().map(|_| peer.mark.clone());
            // One that says whose it is is nobody else's.
            let is_own_alone = way.spec.send_proxy.is_some();
            let upstream = match fresh || is_own_alone {
                true => self.worker.pool.connect(&peer, &self.watch).await,
                false => self.worker.pool.get(&peer, &self.watch).await,
            };
            let mut upstream = match upstream {
                Ok(upstream) => upstream,
                Err(error) if is_own(&error) => {
                    return self.fail(&exchange, 503, "this host has no connections left").await;
                }
                Err(_) => {
                    // Nothing was sent: another may have it, whatever it is.
                    peer.failed();
                    tried.push(peer.id);
                    way.passed.note_retry();
                    fresh = false;
                    continue;
                }
            };
            let mut upload = Carry::new(self.head.body, most);
            let failed = match self.ask(&exchange, &mut upstream, &mut upload).await {
                Ok(()) => {
                    peer.succeeded();
                    return self.answer(exchange, picked, upstream, upload).await;
                }
                Err(failed) => failed,
            };
            let may_repeat = upload.taken == 0 && self.can_repeat();
            match failed {
                Failed::Silent if upstream.is_used && may_repeat => {
                    fresh = true;
                    continue;
                }
                Failed::Silent if may_repeat && (tried.len() as u32) < way.spec.retries.unwrap_or(RETRIES) => {
                    peer.failed();
                    tried.push(peer.id);
                    way.passed.note_retry();
                    fresh = false;
                    continue;
                }
                Failed::Slow => return self.fail(&exchange, 408, "the body did not come in time").await,
                Failed::Client(Some(bad)) => return self.fail(&exchange, bad.status, bad.why).await,
                Failed::Client(None) => {
                    exchange.note(499);
                    return After::Drop;
                }
                Failed::Late => {
                    peer.failed();
                    return self.fail(&exchange, 504, "the replica did not answer in time").await;
                }
                Failed::Silent | Failed::Garbled => {
                    peer.failed();
                    return self.fail(&exchange, 502, "the replica broke off").await;
                }
            }
        }
    }

    // Whether the request can be sent once more: it is one that may come twice, and what has come of it is still here.
    fn can_repeat(&self) -> bool {
        let bytes = &self.input[..];
        let may = matches!(self.head.method.of(bytes), b"GET" | b"HEAD" | b"OPTIONS" | b"PUT" | b"DELETE" | b"TRACE");
        let is_here = match self.head.body {
            Body::None => true,
            Body::Length(length) => length <= KEPT,
            Body::Chunked | Body::ToEnd => false,
        };
        may && is_here && self.head.upgrade.is_none()
    }

    fn choose(&self, exchange: &Exchange, index: usize, tried: &[TaskId], group: Option<&str>) -> Option<Picked> {
        let bytes = &self.input[..self.head.length];
        let spec = &exchange.way.spec;
        let mark = spec.sticky.as_ref().and_then(|name| rewrite::cookie(bytes, &self.head, name));
        let hash = self.worker.hash(spec, &self.from, self.head.target.of(bytes), |by| match by {
            super::worker::Named::Header(name) => self.head.value(bytes, name),
            super::worker::Named::Cookie(name) => rewrite::cookie(bytes, &self.head, name),
        });
        self.worker.choose(&self.front, &exchange.way, index, &Wish { mark, hash, tried, group })
    }

    // Sends the request and waits for the head of its answer. What was sent of a body that is kept is still in `input` afterwards.
    async fn ask(&mut self, exchange: &Exchange, upstream: &mut Upstream, upload: &mut Carry) -> Result<(), Failed> {
        let Session { worker: _, stream, watch, input, out, head, answer, .. } = self;
        let way = &exchange.way;
        out.clear();
        if let Some(version) = way.spec.send_proxy
            && let Ok(to) = upstream.stream.peer_addr()
        {
            proxy::write(out, version, SocketAddr::new(self.from.ip, self.from.peer_port), to);
        }
        rewrite::request(out, &input[..head.length], head, way, &self.from);
        let whole = match head.body {
            Body::Length(length) if length <= KEPT && (input.len() - head.length) as u64 >= length => {
                Some(length as usize)
            }
            Body::None => Some(0),
            _ => None,
        };
        if let Some(length) = whole {
            out.extend_from_slice(&input[head.length..head.length + length]);
        }
        let patience = way.spec.timeout.map_or(ANSWER, |timeout| timeout.std());
        watch.allow(patience);
        match watch.bound(upstream.stream.write_all(out)).await {
            Ok(Ok(())) => {}
            Ok(Err(_)) => return Err(Failed::Silent),
            Err(Late) => return Err(Failed::Late),
        }
        // Of a body that comes while it is sent, nothing is kept but of a small one.
        let (mut uploading, to_head) = (whole.is_none(), head.method.of(input) == b"HEAD");
        let (mut held, mut heard) = (BytesMut::new(), false);
        let mut kept = None;
        if uploading {
            held = input.split_to(head.length);
            self.has_begun = true;
            kept = matches!(head.body, Body::Length(length) if length <= KEPT).then(|| input.clone());
        }
        let outcome = loop {
            let mut from = 0;
            let found = loop {
                if head::end(&upstream.input, from).is_some() {
                    break Ok(());
                }
                if upstream.input.len() > MAX_HEAD {
                    break Err(Failed::Garbled);
                }
                from = upstream.input.len();
                let came = watch.bound(poll_fn(|cx| {
                    if uploading {
                        let before = (upload.taken, upload.moved);
                        let fill = |cx: &mut std::task::Context<'_>, input: &mut BytesMut| {
                            let before = input.len();
                            let came = poll_fill(cx, stream, input);
                            kept.iter_mut().for_each(|kept| kept.extend_from_slice(&input[before..]));
                            came
                        };
                        match upload.poll(cx, input, fill, &mut upstream.stream) {
                            Poll::Ready(Ok(())) | Poll::Ready(Err(Broken::Sink)) => uploading = false,
                            Poll::Ready(Err(Broken::Source)) => return Poll::Ready(Err(Failed::Client(None))),
                            Poll::Ready(Err(Broken::Bad(bad))) => return Poll::Ready(Err(Failed::Client(Some(bad)))),
                            Poll::Pending => {}
                        }
                        if (upload.taken, upload.moved) != before {
                            watch.allow(patience);
                        }
                    }
                    match poll_fill(cx, &mut upstream.stream, &mut upstream.input) {
                        Poll::Ready(Ok(0) | Err(_)) if upstream.input.is_empty() && !heard => {
                            Poll::Ready(Err(Failed::Silent))
                        }
                        Poll::Ready(Ok(0) | Err(_)) => Poll::Ready(Err(Failed::Garbled)),
                        Poll::Ready(Ok(_)) => Poll::Ready(Ok(())),
                        Poll::Pending => Poll::Pending,
                    }
                }));
                match came.await {
                    Ok(Ok(())) => {}
                    Ok(Err(failed)) => break Err(failed),
                    Err(Late) if uploading && !upload.waits_for_sink() => break Err(Failed::Slow),
                    Err(Late) => break Err(Failed::Late),
                }
            };
            if let Err(failed) = found {
                break Err(failed);
            }
            if answer.read_response(&upstream.input, to_head).is_err() {
                break Err(Failed::Garbled);
            }
            // A word before the answer (RFC 9110, 15.2).
            if matches!(answer.status, 100..200) && answer.status != 101 {
                heard = true;
                if !head.is_old {
                    out.clear();
                    rewrite::response(out, &upstream.input, answer, true, false, None);
                    let told = async {
                        stream.write_all(out).await?;
                        stream.flush().await
                    };
                    if !matches!(watch.bound(told).await, Ok(Ok(()))) {
                        break Err(Failed::Client(None));
                    }
                }
                upstream.input.advance(answer.length);
                continue;
            }
            break Ok(());
        };
        if let (Err(Failed::Silent), Some(kept)) = (&outcome, kept) {
            // As it was, and as if nothing had been sent.
            held.unsplit(kept);
            (*input, upload.taken) = (held, 0);
        } else if whole.is_none() {
            // As it was, without what has gone of the body.
            held.unsplit(std::mem::take(input));
            *input = held;
        } else if outcome.is_ok() {
            *upload = Carry::new(Body::None, None);
        }
        outcome
    }

    // Hands the answer on.
    async fn answer(&mut self, exchange: Exchange, picked: Picked, mut upstream: Upstream, mut upload: Carry) -> After {
        let Session { worker, stream, watch, input, out, head, answer, from, .. } = self;
        let is_old = head.is_old;
        let way = &exchange.way;
        let upgrades = answer.status == 101;
        if upgrades && (head.upgrade.is_none() || answer.upgrade.is_none()) {
            drop(upstream);
            picked.peer().failed();
            return self.fail(&exchange, 502, "the replica upgrades what did not ask for it").await;
        }
        if answer.body == Body::Chunked && is_old {
            drop(upstream);
            return self.fail(&exchange, 502, "the replica answers in chunks, which HTTP/1.0 has not").await;
        }
        let sent_whole = match head.body {
            Body::Length(length) if upload.is_done() && upload.taken == 0 => length as usize,
            _ => 0,
        };
        // What ends with its connection is cut into chunks, so that an end too early is seen as such; HTTP/1.0 has none.
        let keeps = exchange.keeps && !(is_old && answer.body == Body::ToEnd) && !worker.is_leaving();
        let cookie = way.spec.sticky.as_ref().and_then(|name| {
            let mark = exchange.mark.as_deref()?;
            let known = rewrite::cookie(&input[..head.length], head, name);
            (known != Some(mark.as_bytes())).then(|| rewrite::set_cookie(name, mark, from))
        });
        out.clear();
        rewrite::response(out, &upstream.input, answer, keeps, is_old, cookie.as_deref());
        upstream.input.advance(answer.length);
        input.advance(head.length + sent_whole);
        exchange.note(answer.status);
        if let Some(line) = &exchange.line {
            line.task.set(Some(picked.peer().id));
        }
        let mut download = Carry::new(answer.body, None);
        if !is_old {
            download = download.recoded();
        }
        if download.join(&mut upstream.input, out).is_err() {
            picked.peer().failed();
            return After::Drop;
        }
        if let Some(line) = &exchange.line {
            line.bytes.set(Some(download.taken));
        }
        watch.allow(STILL);
        if !matches!(watch.bound(stream.write_all(out)).await, Ok(Ok(()))) {
            return After::Drop;
        }
        if upgrades {
            return self.tunnel(upstream).await;
        }
        if !(download.is_done() && upload.is_done()) {
            let mut uploading = !upload.is_done();
            let through = watch.bound(poll_fn(|cx| {
                let before = (upload.moved, download.taken, download.moved);
                if uploading {
                    let from = |cx: &mut std::task::Context<'_>, input: &mut BytesMut| poll_fill(cx, stream, input);
                    match upload.poll(cx, input, from, &mut upstream.stream) {
                        Poll::Ready(Err(Broken::Bad(bad))) => return Poll::Ready(Err(Broken::Bad(bad))),
                        // What the replica does not want any more need not come. It is not asked for again.
                        Poll::Ready(_) => uploading = false,
                        Poll::Pending => {}
                    }
                }
                let from =
                    |cx: &mut std::task::Context<'_>, input: &mut BytesMut| poll_fill(cx, &mut upstream.stream, input);
                let done = download.poll(cx, &mut upstream.input, from, stream);
                if (upload.moved, download.taken, download.moved) != before {
                    watch.allow(STILL);
                }
                if let Some(line) = &exchange.line {
                    line.bytes.set(Some(download.taken));
                }
                done
            }));
            match through.await {
                Ok(Ok(())) => {}
                Ok(Err(Broken::Source)) => {
                    picked.peer().failed();
                    return After::Drop;
                }
                Ok(Err(Broken::Sink | Broken::Bad(_))) | Err(Late) => return After::Drop,
            }
        } else if !matches!(watch.bound(stream.flush()).await, Ok(Ok(()))) {
            return After::Close;
        }
        // A replica that says of an answer without a body how long that is may send one all the same.
        let is_bare = matches!(answer.status, 204 | 304) && answer.has_length;
        let is_free = way.spec.send_proxy.is_none() && !is_bare;
        if answer.keeps && upload.is_done() && upstream.input.is_empty() && is_free {
            worker.pool.put(upstream);
        }
        if keeps && upload.is_done() { After::Next } else { After::Close }
    }

    // Bytes in both directions, whatever they are, to the end.
    async fn tunnel(&mut self, mut upstream: Upstream) -> After {
        let early = async {
            self.stream.write_all(&upstream.input).await?;
            self.stream.flush().await?;
            upstream.stream.write_all(&self.input).await
        };
        self.watch.allow(STILL);
        if matches!(self.watch.bound(early).await, Ok(Ok(()))) {
            let size = 16 * 1024;
            let _ = tokio::io::copy_bidirectional_with_sizes(&mut self.stream, &mut upstream.stream, size, size).await;
        }
        After::Drop
    }
}
