//! Requests of HTTP/2 to replicas that speak it too: many on one connection, with trailers, as gRPC needs them.

use std::io;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http_body_util::BodyExt;
use hyper::body::{Body as HttpBody, Frame, Incoming, SizeHint};
use hyper::header::{self, HeaderMap, HeaderName, HeaderValue};
use hyper::http::request::Parts;
use hyper::{Request, Response, Uri, Version};
use smallvec::SmallVec;
use tokio::time::error::Elapsed;

use super::access::Line;
use super::h1::{ANSWER, RETRIES};
use super::h2::{Kept, Out, told};
use super::head::{Kind, kind};
use super::rewrite::{self, From};
use super::routes::Way;
use super::streams::UnderWay;
use super::worker::{Named, Worker};
use crate::model::id::TaskId;
use crate::model::route::RouteSpec;
use crate::network::balancer::hook::{RoutedRequest, cookie_of};
use crate::network::balancer::pick::{Picked, Wish};
use crate::network::balancer::sockets::is_own;

/// A request's body on its way to a replica.
pub type Sent = http_body_util::combinators::UnsyncBoxBody<Bytes, Box<dyn std::error::Error + Send + Sync>>;

/// Sends a request to whoever the route chooses.
pub async fn exchange(
    worker: &Worker,
    front: &str,
    from: &From,
    way: Arc<Way>,
    index: usize,
    request: Request<Incoming>,
    host: &str,
) -> Response<Out> {
    let began = Instant::now();
    let line = Line::begin(&worker.lines, &way, || said(&request, host, &way.spec, from));
    let note = |status: u16| {
        way.passed.note(status, began.elapsed());
        if let Some(line) = &line {
            line.status.set(status);
        }
    };
    let fail = |status: u16, why: &str| {
        note(status);
        told(status, why)
    };
    let spec = &way.spec;
    if let Some(to) = &spec.redirect {
        let target = request.uri().path_and_query().map_or("/", |target| target.as_str());
        let method = request.method().as_str().as_bytes();
        let (status, to) = super::worker::redirected(to, method, host.as_bytes(), target.as_bytes());
        let mut response = fail(status, &to);
        if let Ok(to) = HeaderValue::from_str(&to) {
            response.headers_mut().insert(header::LOCATION, to);
        }
        return response.map(|body| Box::pin(Kept::new(body, request)) as Out);
    }
    let (parts, body) = request.into_parts();
    let length = body.size_hint().exact();
    if spec.max_body.is_some_and(|most| length.is_some_and(|length| length > most.0)) {
        let response = fail(413, "the body is larger than this route takes");
        return response.map(|answer| Box::pin(Kept::new(answer, body)) as Out);
    }
    let mark = spec.sticky.as_deref().and_then(|name| cookie(&parts.headers, name)).map(str::to_owned);
    let hash = worker.hash(spec, from, parts.uri.path().as_bytes(), |by| match by {
        Named::Header(name) => Some(parts.headers.get(name)?.as_bytes()),
        Named::Cookie(name) => cookie(&parts.headers, name).map(str::as_bytes),
    });
    let group = worker.hooks.choose(&way, || {
        let fields = parts.headers.iter().map(|(name, value)| (name.to_string(), value.as_bytes().to_vec()));
        let target = parts.uri.path_and_query().map_or("/", |target| target.as_str());
        let chain = chain(&parts.headers);
        let client = super::rewrite::client(spec, from, chain.as_deref());
        let method = parts.method.to_string();
        RoutedRequest::of(method, host.as_bytes(), target.as_bytes(), client, from.is_secure, fields.collect())
    });
    let (going, back) = (Arc::new(Progress::default()), Back::default());
    let fail = |status: u16, why: &str| fail(status, why).map(|body| Box::pin(Kept::new(body, back.clone())) as Out);
    let most = spec.max_body.map_or(u64::MAX, |most| most.0);
    let body: Sent = Going { body: Some(body), left: most, state: going.clone(), back: back.clone() }.boxed_unsync();
    let Some(parts) = forwarded(parts, host, &way, from) else { return fail(400, "the target is no path") };
    let mut outgoing = Request::from_parts(parts, body);
    let mut tried: SmallVec<[TaskId; 4]> = SmallVec::new();
    loop {
        let bytes = mark.as_deref().map(str::as_bytes);
        let wish = Wish { mark: bytes, hash, tried: &tried, group: group.as_deref() };
        let Some(picked) = worker.choose(front, &way, index, &wish) else {
            return match tried.is_empty() {
                true => fail(503, "no replica serves this route now"),
                false => fail(502, "no replica took the request"),
            };
        };
        let peer = picked.peer().clone();
        let (mut sender, under_way, was_there) = match worker.streams.get(worker, &peer).await {
            Ok(found) => found,
            Err(error) if is_own(&error) => return fail(503, "this host has no connections left"),
            Err(_) => {
                peer.failed();
                tried.push(peer.id);
                way.passed.note_retry();
                continue;
            }
        };
        let patience = spec.timeout.map_or(ANSWER, |timeout| timeout.std());
        let sent = async {
            match sender.ready().await {
                Ok(()) => sender.try_send_request(outgoing).await.map_err(|mut error| error.take_message()),
                Err(_) => Err(Some(outgoing)),
            }
        };
        match answered(sent, &going, patience).await {
            Ok(Ok(response)) => {
                peer.succeeded();
                note(response.status().as_u16());
                if let Some(line) = &line {
                    line.task.set(Some(peer.id));
                }
                return handed_on(response, &way, (picked, under_way), line, mark.as_deref(), from);
            }
            // Nothing of it was sent: the connection was closed at the other end, or the replica takes no more.
            Ok(Err(Some(request))) => {
                worker.streams.forget(&peer, &under_way);
                outgoing = request;
                if !was_there {
                    peer.failed();
                    tried.push(peer.id);
                    if tried.len() as u32 > spec.retries.unwrap_or(RETRIES) {
                        return fail(502, "no replica took the request");
                    }
                    way.passed.note_retry();
                }
            }
            Ok(Err(None)) => match going.state() {
                TOO_LARGE => return fail(413, "the body is larger than this route takes"),
                BROKEN => return fail(499, "the client broke off"),
                _ => {
                    peer.failed();
                    return fail(502, "the replica broke off");
                }
            },
            Err(_) => {
                peer.failed();
                return fail(504, "the replica did not answer in time");
            }
        }
    }
}

// What is asked for, and who asks.
fn said(request: &Request<Incoming>, host: &str, spec: &RouteSpec, from: &From) -> ([String; 4], String) {
    let text = |name: &str| request.headers().get(name).and_then(|value| value.to_str().ok());
    let client = rewrite::client(spec, from, chain(request.headers()).as_deref());
    let target = request.uri().path_and_query().map_or("/", |target| target.as_str());
    let agent = text("user-agent").unwrap_or_default().to_owned();
    ([request.method().to_string(), host.to_owned(), target.to_owned(), client], agent)
}

// Waits for the head of an answer: as long as a request's body goes on, and then for so long. What is said in both directions at once
// may take its time; a replica that takes nothing more of a body does not.
async fn answered<T>(sent: impl Future<Output = T>, going: &Progress, patience: Duration) -> Result<T, Elapsed> {
    let mut sent = std::pin::pin!(sent);
    loop {
        let before = going.parts.load(Ordering::Relaxed);
        let is_clients_turn = || going.waits.load(Ordering::Relaxed) || going.parts.load(Ordering::Relaxed) != before;
        match tokio::time::timeout(patience, sent.as_mut()).await {
            Err(_) if going.state() == GOING && is_clients_turn() => {}
            other => return other,
        }
    }
}

// A request's body is on its way; all of it has gone; it is larger than the route takes; the client broke off.
const GOING: u8 = 0;
const GONE: u8 = 1;
const TOO_LARGE: u8 = 2;
const BROKEN: u8 = 3;

// How far a request's body is.
#[derive(Default)]
struct Progress {
    state: AtomicU8,
    // It is the client that sends nothing now; else it is the replica's turn to take what there is.
    waits: AtomicBool,
    parts: AtomicU64,
}

impl Progress {
    fn state(&self) -> u8 {
        self.state.load(Ordering::Relaxed)
    }
}

// A request's body, and what became of it.
struct Going {
    body: Option<Incoming>,
    left: u64,
    state: Arc<Progress>,
    back: Back,
}

// Where a body is put that is not sent to its end: it goes with the answer, since its end before that would be the client's.
type Back = Arc<Mutex<Option<Incoming>>>;

impl Drop for Going {
    fn drop(&mut self) {
        *self.back.lock().unwrap_or_else(PoisonError::into_inner) = self.body.take();
    }
}

impl HttpBody for Going {
    type Data = Bytes;
    type Error = Box<dyn std::error::Error + Send + Sync>;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        let Some(body) = &mut self.body else { return Poll::Ready(None) };
        let frame = Pin::new(body).poll_frame(cx);
        self.state.waits.store(frame.is_pending(), Ordering::Relaxed);
        let frame = std::task::ready!(frame);
        self.state.parts.fetch_add(1, Ordering::Relaxed);
        let became = match &frame {
            None => Some(GONE),
            Some(Err(_)) => Some(BROKEN),
            Some(Ok(frame)) => match frame.data_ref().map_or(0, |data| data.len() as u64) {
                length if length > self.left => Some(TOO_LARGE),
                length => {
                    self.left -= length;
                    self.body.as_ref().is_none_or(Incoming::is_end_stream).then_some(GONE)
                }
            },
        };
        if let Some(became) = became {
            self.state.state.store(became, Ordering::Relaxed);
        }
        match became {
            Some(TOO_LARGE) => Poll::Ready(Some(Err("the body is larger than this route takes".into()))),
            _ => Poll::Ready(frame.map(|frame| frame.map_err(Into::into))),
        }
    }

    fn is_end_stream(&self) -> bool {
        let is_end = self.body.as_ref().is_none_or(Incoming::is_end_stream);
        if is_end {
            self.state.state.store(GONE, Ordering::Relaxed);
        }
        is_end
    }

    fn size_hint(&self) -> SizeHint {
        self.body.as_ref().map_or_else(SizeHint::default, Incoming::size_hint)
    }
}

// An answer's body, with what is known of it until it is over.
struct Coming {
    body: Incoming,
    line: Option<Line>,
    _until_then: (Picked, UnderWay),
}

impl HttpBody for Coming {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context) -> Poll<Option<io::Result<Frame<Bytes>>>> {
        let frame = std::task::ready!(Pin::new(&mut self.body).poll_frame(cx));
        if let (Some(line), Some(Ok(frame))) = (&self.line, &frame)
            && let Some(data) = frame.data_ref()
        {
            line.bytes.set(Some(line.bytes.get().unwrap_or_default() + data.len() as u64));
        }
        Poll::Ready(frame.map(|frame| frame.map_err(io::Error::other)))
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

// A request's head for the replica.
fn forwarded(mut parts: Parts, host: &str, way: &Way, from: &From) -> Option<Parts> {
    let mut target = Vec::new();
    let asked = parts.uri.path_and_query().map_or("/", |target| target.as_str()).as_bytes().to_vec();
    rewrite::target(&mut target, &asked, way);
    parts.uri = Uri::builder().scheme("http").authority(host).path_and_query(target).build().ok()?;
    parts.version = Version::HTTP_2;
    let headers = &mut parts.headers;
    // "te: trailers" is what gRPC asks for; else what is of one connection, or said of another, ends here.
    let trusts = way.spec.trusts(from.ip);
    let said = trusts.then(|| {
        rewrite::Said::of(&way.spec, from, host.as_bytes(), |name| {
            let texts: Vec<&str> = headers.get_all(name).iter().filter_map(|value| value.to_str().ok()).collect();
            (!texts.is_empty()).then(|| texts.join(", "))
        })
    });
    // By HTTP/1.1 a field may be named to be of this connection alone.
    let named: Vec<String> = headers
        .get_all(header::CONNECTION)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|names| names.split(',').map(|name| name.trim().to_ascii_lowercase()))
        .collect();
    let wants_trailers = headers.get(header::TE).is_some_and(|value| value.as_bytes() == b"trailers");
    let is_ours = |name: &&HeaderName| match kind(name.as_str()) {
        Kind::Hop if **name == header::TE => !wants_trailers,
        Kind::Hop | Kind::Host | Kind::Coding => true,
        Kind::Forwarded => !trusts || rewrite::is_said(name.as_str().as_bytes()),
        Kind::Other if **name == header::EXPECT => true,
        Kind::Other | Kind::Cookie => named.iter().any(|named| named == name.as_str()),
        _ => false,
    };
    let gone: Vec<HeaderName> = headers.keys().filter(is_ours).cloned().collect();
    gone.iter().for_each(|name| drop(headers.remove(name)));
    let mut put = |name: &'static str, value: &str| {
        if let Ok(value) = HeaderValue::from_str(value) {
            headers.insert(HeaderName::from_static(name), value);
        }
    };
    match &said {
        Some(said) => said.fields().for_each(|(name, value)| put(name, value)),
        None => {
            put("x-forwarded-for", &from.address);
            put("x-forwarded-proto", from.scheme());
            put("x-forwarded-host", host);
            put("x-forwarded-port", &from.port.to_string());
        }
    }
    if way.spec.strip_path {
        put("x-forwarded-prefix", way.spec.prefix());
    }
    Some(parts)
}

fn handed_on(
    response: Response<Incoming>,
    way: &Way,
    (picked, under_way): (Picked, UnderWay),
    line: Option<Line>,
    mark: Option<&str>,
    from: &From,
) -> Response<Out> {
    let (mut parts, body) = response.into_parts();
    let own = &picked.peer().mark;
    if let Some(name) = way.spec.sticky.as_ref().filter(|_| mark != Some(own))
        && let Ok(cookie) = HeaderValue::from_str(&rewrite::set_cookie(name, own, from))
    {
        parts.headers.append(header::SET_COOKIE, cookie);
    }
    if let Some(line) = &line {
        line.bytes.set(Some(0));
    }
    Response::from_parts(parts, Box::pin(Coming { body, line, _until_then: (picked, under_way) }))
}

// All that proxies have said of by way of whom it came: there may be several fields.
fn chain(headers: &hyper::HeaderMap) -> Option<String> {
    let all: Vec<&str> = headers.get_all("x-forwarded-for").iter().filter_map(|chain| chain.to_str().ok()).collect();
    (!all.is_empty()).then(|| all.join(", "))
}

fn cookie<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a str> {
    let fields = headers.get_all(header::COOKIE).iter().map(HeaderValue::as_bytes);
    std::str::from_utf8(cookie_of(fields, name)?).ok()
}
