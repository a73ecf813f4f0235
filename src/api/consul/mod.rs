//! Consul's HTTP API over the catalogue, for clients that know no other: paths, headers, blocking queries and forms as
//! those expect them.

mod agent;
mod catalog;
mod event;
mod filter;
mod health;
mod input;
mod kv;
mod methods;
mod output;
mod query;
mod reply;
mod request;
mod rights;
mod server;
mod session;
mod targets;
mod txn;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use axum::body::Body;
use axum::extract::{Request, State as Shared};
use axum::http::Method;
use axum::response::Response;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use tokio::time::Instant;

pub use self::event::Events;
use self::filter::Filter;
use self::reply::{Bytes, Reply, refusal};
pub(super) use self::request::decoded;
use self::request::{read, truth};
pub use self::rights::Granted;
use self::rights::{Rights, Seen};
pub use self::server::listen;
use crate::model::clock::Clock;
use crate::model::right::{Audit, Principal, Role};
use crate::model::rules::Access;
use crate::model::{Error, Kind, Result};
use crate::network::catalog::{Catalog, State, Topic};
use crate::runtime::catalog::Registry;
use crate::runtime::kv::Kv;
use crate::runtime::kv::index::Topic as KvTopic;
use crate::runtime::snapshot;

/// Largest request body, in bytes (Consul's bound for values, and room for what is around one).
const MAX_BODY: usize = 1 << 20;
/// How long a blocking query waits where it does not say, and at most.
const WAIT: Duration = Duration::from_secs(300);
const LONGEST: Duration = Duration::from_secs(600);
/// The version of Consul whose API this is like.
const LIKE: &str = "1.20.0";

/// What is served on a host.
#[derive(Clone)]
pub struct Consul {
    /// Who serves what where.
    pub catalog: Arc<Catalog>,
    /// Which host this is.
    pub here: Here,
    /// The datacenter's name.
    pub datacenter: String,
    /// Time and randomness.
    pub clock: Arc<dyn Clock>,
    /// Who changes anything.
    pub source: Arc<dyn Source>,
    /// Whether checks may be commands on this host.
    pub runs_commands: bool,
    /// What is allowed where no rule of a token says; without it tokens are not looked at.
    pub policy: Option<Access>,
}

/// A host, as the catalogue names it.
#[derive(Debug, Clone)]
pub enum Here {
    /// By its name.
    Name(String),
    /// By its identity, until the catalogue tells its name.
    Id(String),
}

/// What registers and keeps keys, in a daemon that leads.
pub struct Own {
    /// What clients register.
    pub registry: Arc<Registry>,
    /// Keys, and the sessions that hold some of them locked.
    pub kv: Arc<Kv>,
    /// Events that users have fired.
    pub events: Events,
    /// The tokens that there are.
    pub tokens: Arc<dyn Tokens>,
    /// Told of every change that was asked for, but for what clients say of their checks.
    pub audit: Arc<dyn Audit>,
}

/// Knows tokens.
pub trait Tokens: Send + Sync {
    /// What the token of this hash allows; for an empty one, what the token named `anonymous` does.
    fn granted(&self, hash: &str) -> Result<Option<Granted>>;
}

/// Who changes anything: this process, or whoever leads.
#[async_trait]
pub trait Source: Send + Sync {
    /// This process, where it leads.
    fn own(&self) -> Option<Arc<Own>>;
    /// Asks whoever leads.
    async fn forward(&self, call: Value) -> Result<Value>;
    /// What the token of this hash allows; for an empty one, what is allowed to whoever brings none.
    async fn granted(&self, hash: &str) -> Result<Option<Granted>>;
}

#[async_trait]
impl Source for Arc<Own> {
    fn own(&self) -> Option<Arc<Own>> {
        Some(self.clone())
    }

    async fn forward(&self, _: Value) -> Result<Value> {
        Err(Error::internal("request", "is forwarded by who leads"))
    }

    async fn granted(&self, hash: &str) -> Result<Option<Granted>> {
        self.tokens.granted(hash)
    }
}

/// All of it.
pub fn router(consul: Arc<Consul>) -> axum::Router {
    axum::Router::new().fallback(serve).with_state(consul)
}

async fn serve(Shared(consul): Shared<Arc<Consul>>, request: Request) -> Response {
    let consul = consul.settled();
    let method = request.method().clone();
    let pretty = request
        .uri()
        .query()
        .is_some_and(|query| query.split('&').any(|part| part.split('=').next() == Some("pretty")));
    let peer = request.extensions().get::<SocketAddr>().copied();
    let reply = match read(&consul, request).await {
        Ok(call) if call.path.first().is_some_and(|first| first == "acl") => {
            Ok(Reply::Status(401, "ACL support disabled".into()))
        }
        Ok(mut call) => {
            if let Some(refused) = call.refused() {
                return refused;
            }
            call.peer = peer.map(|peer| peer.ip().to_string()).unwrap_or_default();
            call.serve(&consul).await
        }
        Err(error) => Err(error),
    };
    let mut response = match reply {
        Ok(reply) => reply.into_response(pretty, consul.policy),
        Err(error) => refusal(&error),
    };
    if method == Method::HEAD {
        *response.body_mut() = Body::empty();
    }
    response
}

/// A request.
#[derive(Serialize, Deserialize)]
struct Call {
    method: String,
    /// The parts of the path behind `/v1/`, decoded.
    path: Vec<String>,
    query: Vec<(String, String)>,
    body: Bytes,
    /// Who asks.
    peer: String,
    /// The hash of the token that came with it; empty without one.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    token: String,
    /// What is allowed where no rule says, on the host where it was asked.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    policy: Option<Access>,
    #[serde(skip)]
    filter: Option<Filter>,
    /// What it may, where tokens are looked at.
    #[serde(skip)]
    rights: Option<Rights>,
}

impl Call {
    fn take_filter(&mut self) -> Result<()> {
        let Some(text) = self.value("filter").filter(|text| !text.trim().is_empty()) else { return Ok(()) };
        let filter = Filter::parse(text)?;
        // Whoever filters and is given all would act on all.
        if !self.can_be_filtered() {
            return Err(Error::invalid("query", "filter: this cannot be filtered"));
        }
        self.filter = Some(filter);
        Ok(())
    }

    // An answer where the path does not take this method.
    fn refused(&self) -> Option<Response> {
        let path: Vec<&str> = self.path.iter().map(String::as_str).collect();
        let allowed = methods::of(&path).filter(|allowed| !allowed.contains(&self.method.as_str()))?;
        let message = format!("method {:.20} not allowed", self.method);
        let mut response = refusal(&Error::new(Kind::Unsupported, format!("/v1/{:.80}", path.join("/")), message));
        let allowed = axum::http::HeaderValue::from_str(&allowed.join(", ")).ok()?;
        response.headers_mut().insert("allow", allowed);
        Some(response)
    }

    // Here, or by whoever leads.
    async fn serve(self, consul: &Arc<Consul>) -> Result<Reply> {
        let registers = matches!(self.path.as_slice(), [agent, .., last] if agent == "agent" && last == "register");
        if registers && !consul.runs_commands && input::has_command(&self.body.0) {
            return Err(Error::invalid("check", "Scripts are disabled on this agent")
                .help("start it with --enable-script-checks: whoever may register a check runs commands then"));
        }
        let rights = rights::of(consul, &self).await?;
        let Some(rights) = rights else { return self.settle(consul).await };
        if let Err(error) = rights.check(consul, &self) {
            // What is refused is taken down as well.
            if let (Some(own), Some((action, subject))) = (consul.source.own(), self.change()) {
                own.audit.record(&self.principal(Some(rights.who())), &action, &subject, &Err(error.clone()));
            }
            return Err(error);
        }
        let seen = Seen { method: self.method.clone(), path: self.path.clone() };
        let call = Call { rights: Some(rights.clone()), ..self };
        Ok(rights.left(&seen, call.settle(consul).await?))
    }

    fn principal(&self, who: Option<&str>) -> Principal {
        let name = match who {
            Some(who) => format!("consul {} ({who})", self.peer),
            None => format!("consul {}", self.peer),
        };
        Principal { name, role: Role::Deployer, prefix: String::new() }
    }

    async fn settle(self, consul: &Arc<Consul>) -> Result<Reply> {
        let Some(own) = consul.source.own() else {
            if self.can_be_told_here() {
                return self.answer(consul).await;
            }
            let call = json(&self)?;
            let reply = consul.source.forward(call).await?;
            return serde_json::from_value(reply).map_err(|error| {
                Error::new(Kind::Unsupported, "daemon", "answers in words of another version").cause(error)
            });
        };
        let Some((action, subject)) = self.change() else { return self.answer(consul).await };
        let principal = self.principal(self.rights.as_ref().map(Rights::who));
        // Whoever breaks off has not undone it: what is written down becomes known as well.
        let consul = consul.clone();
        let answer = tokio::spawn(async move { self.answer(&consul).await });
        let reply = answer.await.unwrap_or_else(|error| Err(Error::internal("request", "broke off").cause(error)));
        own.audit.record(&principal, &action, &subject, &reply.as_ref().map(drop).map_err(Clone::clone));
        reply
    }

    // What the catalogue on this host says, unless it is to be the newest.
    fn can_be_told_here(&self) -> bool {
        let parts: Vec<&str> = self.path.iter().map(String::as_str).collect();
        let is_told = matches!(
            parts.as_slice(),
            ["catalog" | "health" | "coordinate" | "status", ..]
                | ["agent", "self" | "members" | "services" | "service" | "checks" | "health", ..]
                | ["query", ..]
                | ["prometheus", "targets"]
        );
        matches!(self.method.as_str(), "GET" | "HEAD") && is_told && !self.flag("consistent")
    }

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
        if matches!(self.method.as_str(), "GET" | "HEAD" | "OPTIONS") {
            return None;
        }
        let parts: Vec<&str> = self.path.iter().map(String::as_str).collect();
        let (words, subject) = match parts.as_slice() {
            ["agent", "check", "pass" | "warn" | "fail" | "update", ..] | ["session", "renew", ..] => return None,
            ["kv", key @ ..] => {
                let action = format!("consul.kv.{}", self.method.to_lowercase());
                return Some((action, key.join("/").chars().take(200).collect()));
            }
            [words @ .., subject] if words.len() > 2 => (words, (*subject).to_owned()),
            words => (words, input::named(&self.body.0)),
        };
        let action: String = format!("consul.{}", words.join(".")).chars().take(80).collect();
        Some((action, subject.chars().take(200).collect()))
    }

    async fn answer(self, consul: &Arc<Consul>) -> Result<Reply> {
        let parts: Vec<&str> = self.path.iter().map(String::as_str).collect();
        let method = if self.method == "HEAD" { "GET" } else { self.method.as_str() };
        match (method, parts.as_slice()) {
            ("GET", ["status", "leader"]) => Ok(Reply::Plain(Value::from(format!("{}:8300", consul.address())))),
            ("GET", ["status", "peers"]) => Ok(Reply::Plain(Value::from(vec![format!("{}:8300", consul.address())]))),
            (_, ["agent", rest @ ..]) => agent::answer(consul, &self, method, rest).await,
            (_, ["catalog", rest @ ..]) => catalog::answer(consul, &self, method, rest).await,
            ("GET", ["prometheus", "targets"]) => targets::answer(consul, &self),
            (_, ["kv", rest @ ..]) => kv::answer(consul, &self, method, rest).await,
            (_, ["session", rest @ ..]) => session::answer(consul, &self, method, rest).await,
            (_, ["event", rest @ ..]) => event::answer(consul, &self, method, rest).await,
            (_, ["query", rest @ ..]) => query::answer(consul, &self, method, rest).await,
            ("PUT", ["txn"]) => txn::answer(consul, &self.body.0).await,
            ("GET", ["health", rest @ ..]) => health::answer(consul, &self, rest).await,
            ("GET", ["snapshot"]) => {
                let own = consul.own()?;
                let (archive, index) = snapshot::save(&own.registry, &own.kv).await?;
                Ok(Reply::Bytes(index, Bytes(archive)))
            }
            ("PUT", ["snapshot"]) => {
                let own = consul.own()?;
                let commands = self.rights.as_ref().is_some_and(|rights| rights.operates(Access::Write));
                snapshot::restore(&own.registry, &own.kv, self.body.0.clone(), commands).await.map(|_| Reply::Done)
            }
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
        let (index, items) = consul.catalog.read(|state| (state.index_of(&topic), make(state)));
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
            consul.catalog.wait(topic, index, most).await;
        }
        Ok(())
    }

    async fn wait_for_key(&self, consul: &Consul, topic: &KvTopic) -> Result<()> {
        if let Some((index, until)) = self.patience(consul)? {
            consul.own()?.kv.wait(topic, index, until.duration_since(Instant::now())).await;
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
    /// The same on another host.
    fn on(&self, host: String) -> Arc<Self> {
        Arc::new(Consul { here: Here::Name(host), ..self.clone() })
    }

    fn own(&self) -> Result<Arc<Own>> {
        self.source.own().ok_or_else(|| Error::new(Kind::Unavailable, "cluster", "No cluster leader").retry(true))
    }

    // The host's name.
    fn host(&self) -> String {
        match &self.here {
            Here::Name(name) => name.clone(),
            Here::Id(_) => String::new(),
        }
    }

    // With its own name, as the catalogue tells it.
    fn settled(self: Arc<Self>) -> Arc<Self> {
        let Here::Id(id) = &self.here else { return self };
        let found = self.catalog.read(|state| state.node_by_id(id).map(|entry| entry.node.name.clone()));
        self.on(found.unwrap_or_default())
    }

    fn address(&self) -> String {
        let host = self.host();
        let own = self.catalog.read(|state| Some(state.node(&host)?.node.address.clone()));
        own.filter(|address| !address.is_empty()).unwrap_or_else(|| "127.0.0.1".to_owned())
    }
}

/// Answers for a host what its clients asked there: `call` as it was forwarded.
pub async fn answer_for(consul: &Arc<Consul>, host: String, call: Value) -> Result<Value> {
    let unknown = |error| Error::new(Kind::Unsupported, "agent", "asks in words of another version").cause(error);
    let mut call: Call = serde_json::from_value(call).map_err(unknown)?;
    call.take_filter()?;
    call.peer = format!("{} on {host}", call.peer);
    let reply = call.serve(&consul.on(host)).await?;
    json(&reply)
}

fn json<T: Serialize + ?Sized>(value: &T) -> Result<Value> {
    serde_json::to_value(value).map_err(|error| Error::internal("answer", "cannot be written").cause(error))
}
