//! Consul's HTTP API over the catalogue, for clients that know no other: paths, headers, blocking queries and forms as
//! those expect them.

mod agent;
mod catalog;
mod event;
mod filter;
mod health;
mod input;
mod kv;
mod output;
mod query;
mod server;
mod session;
mod txn;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use axum::extract::{Request, State as Shared};
use axum::http::{Method, StatusCode};
use axum::response::Response;
use serde::Serialize;
use serde_json::Value;
use tokio::time::Instant;

pub use self::event::Events;
use self::filter::Filter;
pub use self::server::listen;
use crate::model::clock::Clock;
use crate::model::right::{Audit, Principal, Role};
use crate::model::{Error, Kind, Result};
use crate::network::catalog::{State, Topic};
use crate::runtime::catalog::Registry;
use crate::runtime::kv::Kv;
use crate::runtime::kv::index::Topic as KvTopic;

/// Largest request body, in bytes (Consul's bound for values, and room for what is around one).
const MAX_BODY: usize = 1 << 20;
/// How long a blocking query waits where it does not say, and at most.
const WAIT: Duration = Duration::from_secs(300);
const LONGEST: Duration = Duration::from_secs(600);
/// The version of Consul whose API this is like.
const LIKE: &str = "1.20.0";

/// What is served.
pub struct Consul {
    /// Who serves what where.
    pub registry: Arc<Registry>,
    /// Keys, and the sessions that hold some of them locked.
    pub kv: Arc<Kv>,
    /// Events that users have fired.
    pub events: Events,
    /// The datacenter's name.
    pub datacenter: String,
    /// Time and randomness.
    pub clock: Arc<dyn Clock>,
    /// Told of every change that was asked for, but for what clients say of their checks.
    pub audit: Arc<dyn Audit>,
}

/// All of it.
pub fn router(consul: Arc<Consul>) -> axum::Router {
    axum::Router::new().fallback(serve).with_state(consul)
}

async fn serve(Shared(consul): Shared<Arc<Consul>>, request: Request) -> Response {
    let method = request.method().clone();
    let pretty = request
        .uri()
        .query()
        .is_some_and(|query| query.split('&').any(|part| part.split('=').next() == Some("pretty")));
    let peer = request.extensions().get::<SocketAddr>().copied();
    let reply = match read(&consul, request).await {
        Ok(call) => {
            let change = call.change();
            let reply = match change.is_some() {
                // Whoever breaks off has not undone it: what is written down becomes known as well.
                true => {
                    let consul = consul.clone();
                    let answer = tokio::spawn(async move { call.answer(&consul).await });
                    answer.await.unwrap_or_else(|error| Err(Error::internal("request", "broke off").cause(error)))
                }
                false => call.answer(&consul).await,
            };
            if let Some((action, subject)) = change {
                let name = peer.map_or_else(|| "consul".to_owned(), |peer| format!("consul {}", peer.ip()));
                let principal = Principal { name, role: Role::Deployer, prefix: String::new() };
                consul.audit.record(&principal, &action, &subject, &reply.as_ref().map(drop).map_err(Clone::clone));
            }
            reply
        }
        Err(error) => Err(error),
    };
    let mut response = match reply {
        Ok(reply) => reply.into_response(pretty),
        Err(error) => refusal(&error),
    };
    if method == Method::HEAD {
        *response.body_mut() = Body::empty();
    }
    response
}

// As Consul says it: text.
fn refusal(error: &Error) -> Response {
    let status = match error.kind {
        Kind::Invalid => 400,
        Kind::NotFound => 404,
        Kind::Unsupported => 405,
        Kind::Unauthenticated | Kind::Forbidden => 403,
        Kind::Conflict => 409,
        Kind::Exhausted => 413,
        _ => 500,
    };
    let mut response = Response::new(Body::from(error.to_string()));
    *response.status_mut() = StatusCode::from_u16(status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    let headers = response.headers_mut();
    headers.insert("content-type", axum::http::HeaderValue::from_static("text/plain; charset=utf-8"));
    // Some clients read it before they read the status.
    headers.insert("x-consul-index", axum::http::HeaderValue::from_static("1"));
    response
}

/// An answer.
enum Reply {
    /// JSON, with the index that it is of.
    Json(u64, Value),
    /// JSON of this host alone, which has no index.
    Plain(Value),
    /// Done, and nothing to say.
    Done,
    /// Another status, with text.
    Status(u16, String),
    /// JSON with another status.
    Other(u16, u64, Value),
    /// Bytes as they are.
    Bytes(u64, Vec<u8>),
    /// There is none.
    Missing(u64),
}

impl Reply {
    fn into_response(self, pretty: bool) -> Response {
        let text = |value: &Value| match pretty {
            true => serde_json::to_string_pretty(value).unwrap_or_default() + "\n",
            false => value.to_string(),
        };
        let (status, index, body, kind) = match &self {
            Reply::Json(index, value) => (200, Some(*index), text(value), "application/json"),
            Reply::Plain(value) => (200, None, text(value), "application/json"),
            Reply::Done => (200, None, String::new(), "text/plain; charset=utf-8"),
            Reply::Status(status, text) => (*status, None, text.clone(), "text/plain; charset=utf-8"),
            Reply::Other(status, index, value) => (*status, Some(*index), text(value), "application/json"),
            Reply::Missing(index) => (404, Some(*index), String::new(), "text/plain; charset=utf-8"),
            Reply::Bytes(index, _) => (200, Some(*index), String::new(), "application/octet-stream"),
        };
        let mut response = Response::new(match self {
            Reply::Bytes(_, bytes) => Body::from(bytes),
            _ => Body::from(body),
        });
        *response.status_mut() = StatusCode::from_u16(status).unwrap_or_default();
        let headers = response.headers_mut();
        headers.insert("content-type", axum::http::HeaderValue::from_static(kind));
        headers.insert("x-consul-index", axum::http::HeaderValue::from(index.unwrap_or(1).max(1)));
        headers.insert("x-consul-knownleader", axum::http::HeaderValue::from_static("true"));
        headers.insert("x-consul-lastcontact", axum::http::HeaderValue::from_static("0"));
        headers.insert("x-consul-effective-consistency", axum::http::HeaderValue::from_static("leader"));
        headers.insert("x-consul-default-acl-policy", axum::http::HeaderValue::from_static("allow"));
        headers.insert("x-neap-version", axum::http::HeaderValue::from_static(env!("CARGO_PKG_VERSION")));
        response
    }
}

/// A request.
struct Call {
    method: Method,
    /// The parts of the path behind `/v1/`, decoded.
    path: Vec<String>,
    query: Vec<(String, String)>,
    body: Vec<u8>,
    filter: Option<Filter>,
}

async fn read(consul: &Consul, request: Request) -> Result<Call> {
    refuse_browsers(&request)?;
    let path = request.uri().path();
    let Some(path) = path.strip_prefix("/v1/") else {
        return Err(Error::not_found(format!("path {path:.80}")).help("Consul's API is below /v1/"));
    };
    let path = path.split('/').map(|part| decoded(part, false)).collect::<Result<Vec<_>>>()?;
    let pairs = request.uri().query().unwrap_or_default().split('&').filter(|pair| !pair.is_empty());
    let query = pairs.map(|pair| {
        let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
        Ok((decoded(key, true)?, decoded(value, true)?))
    });
    let query = query.collect::<Result<Vec<_>>>()?;
    let method = request.method().clone();
    let body = axum::body::to_bytes(request.into_body(), MAX_BODY).await.map_err(|_| {
        Error::new(Kind::Exhausted, "request body", format!("is larger than {MAX_BODY} bytes, or broke off"))
    })?;
    let mut call = Call { method, path, query, body: body.to_vec(), filter: None };
    if let Some(text) = call.value("filter").filter(|text| !text.trim().is_empty()) {
        call.filter = Some(Filter::parse(text)?);
        // Whoever filters and is given all would act on all.
        if !call.can_be_filtered() {
            return Err(Error::invalid("query", "filter: this cannot be filtered"));
        }
    }
    match call.value("dc").filter(|dc| !dc.is_empty() && !dc.eq_ignore_ascii_case(&consul.datacenter)) {
        Some(dc) => Err(Error::new(Kind::Unavailable, format!("datacenter {dc:.60?}"), "No path to datacenter")),
        None => Ok(call),
    }
}

// A page that somebody looks at must not act on what listens on their own machine: browsers say where a request comes from.
fn refuse_browsers(request: &Request) -> Result<()> {
    let site = request.headers().get("sec-fetch-site").and_then(|value| value.to_str().ok());
    let origin = request.headers().get("origin").and_then(|value| value.to_str().ok());
    let changes = !matches!(*request.method(), Method::GET | Method::HEAD | Method::OPTIONS);
    let foreign = site.is_some_and(|site| !matches!(site, "none" | "same-origin"));
    match foreign || (changes && origin.is_some()) {
        false => Ok(()),
        true => Err(Error::new(Kind::Forbidden, "request", "comes from a page in a browser")),
    }
}

// As Go reads it.
fn truth(text: &str) -> Option<bool> {
    match text {
        "1" | "t" | "T" | "true" | "TRUE" | "True" => Some(true),
        "0" | "f" | "F" | "false" | "FALSE" | "False" => Some(false),
        _ => None,
    }
}

fn decoded(text: &str, plus: bool) -> Result<String> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((first, more)) = rest.split_first() {
        rest = more;
        bytes.push(match first {
            b'%' => {
                let digits = more.get(..2).and_then(|digits| std::str::from_utf8(digits).ok());
                let byte = digits.and_then(|digits| u8::from_str_radix(digits, 16).ok());
                rest = more.get(2..).unwrap_or_default();
                byte.ok_or_else(|| Error::invalid(format!("address {text:.60?}"), "holds a % without two digits"))?
            }
            b'+' if plus => b' ',
            other => *other,
        });
    }
    String::from_utf8(bytes).map_err(|_| Error::invalid(format!("address {text:.60?}"), "is not UTF-8"))
}

impl Call {
    fn value(&self, key: &str) -> Option<&str> {
        self.query.iter().find(|(known, _)| known == key).map(|(_, value)| value.as_str())
    }

    fn values<'a>(&'a self, key: &'a str) -> impl Iterator<Item = &'a str> {
        self.query.iter().filter(move |(known, _)| known == key).map(|(_, value)| value.as_str())
    }

    // Present counts, but for an explicit `false`.
    fn flag(&self, key: &str) -> bool {
        self.value(key).is_some_and(|value| truth(value) != Some(false))
    }

    // What is asked to be changed, and of what; what is said of checks is no change.
    fn change(&self) -> Option<(String, String)> {
        if matches!(self.method, Method::GET | Method::HEAD | Method::OPTIONS) {
            return None;
        }
        let parts: Vec<&str> = self.path.iter().map(String::as_str).collect();
        let (words, subject) = match parts.as_slice() {
            ["agent", "check", "pass" | "warn" | "fail" | "update", ..] | ["session", "renew", ..] => return None,
            ["kv", key @ ..] => {
                let action = format!("consul.kv.{}", self.method.as_str().to_lowercase());
                return Some((action, key.join("/").chars().take(200).collect()));
            }
            [words @ .., subject] if words.len() > 2 => (words, (*subject).to_owned()),
            words => (words, input::named(&self.body)),
        };
        let action: String = format!("consul.{}", words.join(".")).chars().take(80).collect();
        Some((action, subject.chars().take(200).collect()))
    }

    async fn answer(self, consul: &Arc<Consul>) -> Result<Reply> {
        let parts: Vec<&str> = self.path.iter().map(String::as_str).collect();
        let method = if self.method == Method::HEAD { "GET" } else { self.method.as_str() };
        match (method, parts.as_slice()) {
            ("GET", ["status", "leader"]) => Ok(Reply::Plain(Value::from(format!("{}:8300", consul.address())))),
            ("GET", ["status", "peers"]) => Ok(Reply::Plain(Value::from(vec![format!("{}:8300", consul.address())]))),
            (_, ["agent", rest @ ..]) => agent::answer(consul, &self, method, rest).await,
            (_, ["catalog", rest @ ..]) => catalog::answer(consul, &self, method, rest).await,
            (_, ["kv", rest @ ..]) => kv::answer(consul, &self, method, rest).await,
            (_, ["session", rest @ ..]) => session::answer(consul, &self, method, rest).await,
            (_, ["event", rest @ ..]) => event::answer(consul, &self, method, rest).await,
            (_, ["query", rest @ ..]) => query::answer(consul, &self, method, rest).await,
            ("PUT", ["txn"]) => txn::answer(consul, &self.body).await,
            ("GET", ["health", rest @ ..]) => health::answer(consul, &self, rest).await,
            ("GET", ["coordinate", "node", _]) => Ok(Reply::Missing(1)),
            ("GET", ["coordinate", "datacenters" | "nodes"]) => Ok(Reply::Json(1, Value::Array(Vec::new()))),
            _ => Err(Error::new(Kind::NotFound, format!("{method} /v1/{:.80}", parts.join("/")), "is not served")),
        }
    }

    // What is asked of the state now, or once it is another than the client knows.
    async fn watch<T: Serialize>(
        &self,
        consul: &Consul,
        topic: Topic,
        make: impl Fn(&State) -> Vec<T>,
    ) -> Result<Reply> {
        self.wait(consul, &topic).await?;
        let (index, items) = consul.registry.catalog.read(|state| (state.index_of(&topic), make(state)));
        self.filtered(index, items)
    }

    // What of a list is asked for.
    fn filtered<T: Serialize>(&self, index: u64, items: Vec<T>) -> Result<Reply> {
        let Some(filter) = &self.filter else { return Ok(Reply::Json(index, json(&items)?)) };
        let items = items.iter().map(json).collect::<Result<Vec<_>>>()?;
        Ok(Reply::Json(index, Value::Array(filter.keep(items)?)))
    }

    // What of a table is asked for.
    fn filtered_table(&self, mut table: Value) -> Result<Value> {
        let (Some(filter), Some(map)) = (&self.filter, table.as_object_mut()) else { return Ok(table) };
        let mut kept = serde_json::Map::new();
        for (key, value) in std::mem::take(map) {
            if filter.matches(&value)? {
                kept.insert(key, value);
            }
        }
        Ok(Value::Object(kept))
    }

    fn can_be_filtered(&self) -> bool {
        let parts: Vec<&str> = self.path.iter().map(String::as_str).collect();
        matches!(
            parts.as_slice(),
            ["agent", "services" | "checks"]
                | ["catalog", "nodes" | "services"]
                | ["catalog", "service" | "connect" | "node" | "node-services", _]
                | ["health", "service" | "connect" | "ingress" | "node" | "checks" | "state", _]
        )
    }

    async fn wait(&self, consul: &Consul, topic: &Topic) -> Result<()> {
        if let Some((index, until)) = self.patience(consul)? {
            let most = until.duration_since(Instant::now());
            consul.registry.catalog.wait(topic, index, most).await;
        }
        Ok(())
    }

    async fn wait_for_key(&self, consul: &Consul, topic: &KvTopic) -> Result<()> {
        if let Some((index, until)) = self.patience(consul)? {
            consul.kv.wait(topic, index, until.duration_since(Instant::now())).await;
        }
        Ok(())
    }

    // What index the client knows, and until when it waits for another.
    fn patience(&self, consul: &Consul) -> Result<Option<(u64, Instant)>> {
        let Some(index) = self.value("index").filter(|index| !index.is_empty()) else { return Ok(None) };
        let index: u64 = index.parse().map_err(|_| Error::invalid("query", format!("Invalid index: {index:.30?}")))?;
        let asked = match self.value("wait").filter(|wait| !wait.is_empty()) {
            Some(wait) => {
                input::period(wait).ok_or_else(|| Error::invalid("query", format!("Invalid wait time: {wait:.30?}")))?
            }
            None => WAIT,
        };
        if index == 0 || asked.is_zero() {
            return Ok(None);
        }
        // A little longer, and not all at once.
        let most = asked.min(LONGEST);
        let spread = u64::try_from(most.as_millis() / 16).unwrap_or_default().max(1);
        let most = most + Duration::from_millis(consul.clock.random() % spread);
        Ok(Some((index, Instant::now() + most)))
    }
}

impl Consul {
    fn address(&self) -> String {
        let own = self.registry.catalog.read(|state| Some(state.node(&self.registry.host)?.node.address.clone()));
        own.filter(|address| !address.is_empty()).unwrap_or_else(|| "127.0.0.1".to_owned())
    }
}

fn json<T: Serialize + ?Sized>(value: &T) -> Result<Value> {
    serde_json::to_value(value).map_err(|error| Error::internal("answer", "cannot be written").cause(error))
}
