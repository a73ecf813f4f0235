//! Where hosts join and agents connect: routes beside the control API's, on the daemons' own port. Whoever comes shows a
//! join token, or a certificate of the cluster's authority, or what only daemons know.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::{Request, State};
use axum::http::HeaderMap;
use axum::response::Response;
use axum::routing::{get, post};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use tokio::sync::watch;

use super::authority::{Authority, fingerprint};
use super::call::{LEADER, NODE};
use super::hub::Hub;
use super::protocol::{Hello, UPGRADE, Welcome};
use crate::client::members::{JoinTicket, Members};
use crate::client::wire::PeerCertificate;
use crate::engines::swarm::join::LocalSwarm;
use crate::model::id::{NodeId, sha256_hex};
use crate::model::node::{Node, Role};
use crate::model::right::{Audit, Principal};
use crate::model::swarm::{SwarmAsk, SwarmState};
use crate::model::{Error, Kind, Result};
use crate::store::swarm::Leader;
use crate::store::{Expect, Store, Write, decode, encode};

/// Records of those who act on hosts, by node.
const AGENTS: &str = "agent/";
/// How long a node that has just joined may take to be known here.
const KNOWN: Duration = Duration::from_secs(10);
/// The longest id of a node, in bytes.
const LONGEST_NODE: usize = 64;
/// How long a request's body may take.
const PATIENCE: Duration = Duration::from_secs(10);
/// The longest request, in bytes.
const LONGEST: usize = 64 << 10;

#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
struct Record {
    // Fingerprints of its certificates: the one it has, and the one it is about to use.
    certificates: Vec<String>,
    // The public key that they are for.
    key: Option<String>,
    // Where the daemon on that node is reached, if there is one.
    daemon: Option<String>,
}

impl Record {
    fn has(&self, certificate: &str) -> bool {
        self.certificates.iter().any(|print| print == certificate)
    }
}

// Who connects, and what they showed.
enum Caller {
    Daemon(NodeId),
    Agent(NodeId, String),
}

impl Caller {
    fn node(&self) -> &NodeId {
        match self {
            Caller::Daemon(node) | Caller::Agent(node, _) => node,
        }
    }
}

fn stranger() -> Error {
    Error::new(Kind::Unauthenticated, "agent", "is not known here")
        .help("let it join with a token: `neap join-token worker` prints one")
}

/// A host asks to join.
#[derive(Debug, Serialize, Deserialize)]
pub struct JoinAsk {
    /// The join token's secret.
    pub secret: String,
}

/// What it needs to join the Swarm.
#[derive(Debug, Serialize, Deserialize)]
pub struct JoinAnswer {
    /// What it is to become.
    pub role: Role,
    /// The cluster's name.
    pub cluster: String,
    /// Swarm's own token.
    pub token: String,
    /// Where the Swarm's managers listen.
    pub managers: Vec<String>,
}

/// A host that is in the Swarm asks for its agent's certificate.
#[derive(Debug, Serialize, Deserialize)]
pub struct CertifyAsk {
    /// The join token's secret; an agent that renews its certificate shows the one it has instead.
    #[serde(default)]
    pub secret: String,
    /// Its node.
    pub node: String,
    /// Its public key.
    pub key: String,
}

/// Its certificate.
#[derive(Debug, Serialize, Deserialize)]
pub struct CertifyAnswer {
    /// In PEM.
    pub certificate: String,
    /// The authority's, in PEM.
    pub authority: String,
    /// Where daemons are reached.
    pub daemons: Vec<String>,
}

/// All that the leading daemon's door needs to know.
pub struct Door {
    /// The agents.
    pub hub: Arc<Hub>,
    /// Who signs.
    pub authority: Authority,
    /// Where records are.
    pub store: Arc<dyn Store>,
    /// The Docker Engine of this host, a manager.
    pub swarm: LocalSwarm,
    /// The nodes.
    pub nodes: watch::Receiver<Arc<Vec<Node>>>,
    /// The cluster's name.
    pub name: String,
    /// The cluster as labels of containers name it.
    pub cluster: String,
    /// This lead's number.
    pub term: u64,
    /// Where this daemon is reached.
    pub address: String,
    /// What daemons of this cluster show each other.
    pub secret: String,
    /// Whether this daemon may still answer for the cluster.
    pub leads: Box<dyn Fn() -> bool + Send + Sync>,
    /// Told of who joins.
    pub audit: Arc<dyn Audit>,
}

impl Door {
    /// Its routes.
    pub fn router(self: &Arc<Self>) -> Router {
        Router::new()
            .route("/v1/join", post(join))
            .route("/v1/join/agent", post(certify))
            .route("/v1/agent", get(connect))
            .with_state(self.clone())
    }

    /// Writes down that there is a daemon on this node, and makes known who is to be connected: before anything is asked of
    /// those who are.
    pub async fn know(&self, own: &str) -> Result<()> {
        let change = |record: &mut Record| {
            record.daemon = Some(self.address.clone());
            Ok(())
        };
        self.change(own, change).await
    }

    fn records(&self) -> Result<BTreeMap<NodeId, Record>> {
        let entries = self.store.list(AGENTS)?;
        entries.iter().map(|entry| Ok((entry.key[AGENTS.len()..].into(), decode(&entry.key, &entry.value)?))).collect()
    }

    fn publish(&self) -> Result<()> {
        self.hub.set_known(|| {
            Ok(self.records()?.into_iter().map(|(node, record)| (node, record.daemon.is_some())).collect())
        })
    }

    fn daemons(&self) -> Result<Vec<String>> {
        let mut all = vec![self.address.clone()];
        all.extend(self.records()?.into_values().filter_map(|record| record.daemon));
        let mut seen = std::collections::BTreeSet::new();
        all.retain(|address| seen.insert(address.clone()));
        Ok(all)
    }

    // Changes one node's record; nothing is written where nothing changes.
    async fn change(&self, node: &str, change: impl Fn(&mut Record) -> Result<()>) -> Result<()> {
        let key = format!("{AGENTS}{node}");
        loop {
            let entry = self.store.get(&key)?;
            let before = entry.as_ref().map(|entry| decode::<Record>(&key, &entry.value)).transpose()?;
            let mut record = before.clone().unwrap_or_default();
            change(&mut record)?;
            if before.as_ref() == Some(&record) {
                return self.publish();
            }
            let expect = entry.map_or(Expect::Absent, |entry| Expect::Version(entry.version));
            match self.store.commit(vec![Write::put(key.clone(), encode(&record)).expect(expect)]).await {
                Ok(_) => return self.publish(),
                Err(error) if error.kind == Kind::Conflict && error.retry => {}
                Err(error) => return Err(error),
            }
        }
    }

    // The node, once it is known here.
    async fn node(&self, id: &str) -> Result<Node> {
        let mut nodes = self.nodes.clone();
        let find = async {
            loop {
                if let Some(node) = nodes.borrow_and_update().iter().find(|node| *node.id == *id) {
                    return node.clone();
                }
                if nodes.changed().await.is_err() {
                    std::future::pending::<()>().await;
                }
            }
        };
        let found = tokio::time::timeout(KNOWN, find).await;
        found.map_err(|_| Error::not_found(format!("node \"{id:.70}\"")).help("it is in another Swarm, or in none"))
    }

    async fn join(&self, ask: &JoinAsk) -> Result<JoinAnswer> {
        let role = self.authority.role(&ask.secret)?;
        let membership = self.swarm.membership().await?;
        let managers = membership.map(|membership| membership.managers).unwrap_or_default();
        let token = self.swarm.token(role).await?;
        Ok(JoinAnswer { role, cluster: self.name.clone(), token, managers })
    }

    async fn certify(&self, ask: &CertifyAsk, shown: Option<&str>) -> Result<CertifyAnswer> {
        // Before anything is said of nodes: who asks.
        let known = self.records()?.get(ask.node.as_str()).cloned().unwrap_or_default();
        let shown = shown.filter(|shown| known.has(shown));
        if shown.is_none() {
            self.authority.role(&ask.secret)?;
        }
        let node = self.node(&ask.node).await?;
        // Whoever has the token may join, and may ask again where the answer was lost; but not in the place of another, and
        // least of all of a daemon.
        let refused = |record: &Record| {
            if shown.is_some() {
                return None;
            }
            let conflict = |message| Error::new(Kind::Conflict, node.subject(), message);
            if node.role == Role::Manager {
                let help = "start `neap up` on it; or make it a worker first: neap node demote NODE";
                return Some(conflict("is a manager: a daemon acts for it, not an agent").help(help));
            }
            let taken = record.daemon.is_some() || record.key.as_ref().is_some_and(|key| *key != ask.key);
            let help = || format!("let another take its place first: neap node forget {}", node.hostname);
            taken.then(|| conflict("has an agent already").help(help()))
        };
        if let Some(error) = refused(&known) {
            return Err(error);
        }
        let certificate = self.authority.agent(&ask.key)?;
        let print = fingerprint(&certificate)?;
        let change = |record: &mut Record| {
            if let Some(error) = refused(record) {
                return Err(error);
            }
            record.key = Some(ask.key.clone());
            // The one that was shown stays good: the answer may be lost, however often.
            match shown {
                Some(shown) => record.certificates = vec![shown.to_owned()],
                None => record.certificates.drain(..record.certificates.len().saturating_sub(1)).for_each(drop),
            }
            record.certificates.push(print.clone());
            Ok(())
        };
        self.change(&node.id, change).await?;
        Ok(CertifyAnswer { certificate, authority: self.authority.certificate.clone(), daemons: self.daemons()? })
    }

    // Who wants to connect.
    fn who(&self, headers: &HeaderMap, certificate: Option<&str>) -> Result<Caller> {
        let bearer = headers.get("authorization").and_then(|value| value.to_str().ok());
        let bearer = bearer.and_then(|value| value.strip_prefix("Bearer "));
        if bearer.is_some_and(|bearer| sha256_hex(bearer.as_bytes()) == sha256_hex(self.secret.as_bytes())) {
            let node = headers.get(NODE).and_then(|value| value.to_str().ok());
            let node = node.ok_or_else(|| Error::invalid("daemon", "does not name its node"))?;
            return Ok(Caller::Daemon(node.into()));
        }
        let certificate = certificate.ok_or_else(stranger)?;
        let records = self.records()?;
        let found = records.iter().find(|(_, record)| record.has(certificate));
        match found {
            // A daemon has begun to act for that node since.
            Some((_, record)) if record.daemon.is_some() => {
                Err(Error::new(Kind::Conflict, "agent", "is on a node for which a daemon acts"))
            }
            Some((node, _)) => Ok(Caller::Agent(node.clone(), certificate.to_owned())),
            None => Err(stranger()),
        }
    }

    // Somebody has said who they are: whether that still holds.
    async fn heard(&self, caller: &Caller, hello: &Hello) -> Result<()> {
        match caller {
            Caller::Daemon(node) => {
                let change = |record: &mut Record| {
                    record.daemon.clone_from(&hello.daemon);
                    Ok(())
                };
                self.change(node, change).await?;
                self.hub.tell_daemons(&self.daemons()?);
                Ok(())
            }
            // It may have been forgotten while it was silent; and what it says of daemons is not for an agent to say.
            Caller::Agent(_, certificate) => self.who(&HeaderMap::new(), Some(certificate)).map(drop),
        }
    }

    fn note(&self, who: &str, action: &str, subject: &str, outcome: &Result<()>) {
        // Anybody can come without a secret, as often as they like: they are not to push out what others did.
        if outcome.as_ref().is_err_and(|error| error.kind == Kind::Unauthenticated) {
            return tracing::debug!(action, "somebody came with a join token that is not known");
        }
        let principal = Principal { name: who.into(), role: crate::model::right::Role::Viewer, prefix: String::new() };
        self.audit.record(&principal, action, subject, outcome);
    }
}

#[async_trait::async_trait]
impl Members for Door {
    async fn join_ticket(&self, role: Role, rotate: bool) -> Result<JoinTicket> {
        if rotate {
            self.authority.rotate(role).await?;
            self.swarm.rotate_token(role).await?;
        }
        Ok(JoinTicket { role, token: self.authority.token(role)?, addresses: self.daemons()? })
    }

    async fn swarm(&self, ask: SwarmAsk) -> Result<SwarmState> {
        self.swarm.state(ask).await
    }

    async fn forget(&self, node: &str) -> Result<bool> {
        let key = format!("{AGENTS}{node}");
        if self.store.get(&key)?.is_none() {
            return Ok(false);
        }
        self.store.commit(vec![Write::remove(key)]).await?;
        self.publish()?;
        self.hub.tell_daemons(&self.daemons()?);
        Ok(true)
    }
}

async fn join(State(door): State<Arc<Door>>, request: Request) -> Response {
    let answer = async {
        let ask: JoinAsk = read(request).await?;
        let result = door.join(&ask).await;
        let outcome = result.as_ref().map(drop).map_err(Clone::clone);
        door.note("join token", "node.join", "", &outcome);
        result
    };
    answered(answer.await)
}

async fn certify(State(door): State<Arc<Door>>, request: Request) -> Response {
    let shown = request.extensions().get::<PeerCertificate>().cloned();
    let answer = async {
        let ask: CertifyAsk = read(request).await?;
        if ask.node.len() > LONGEST_NODE || !ask.node.bytes().all(|byte| byte.is_ascii_alphanumeric()) {
            return Err(Error::invalid(format!("node {:.70?}", ask.node), "is no id of a Swarm node"));
        }
        let result = door.certify(&ask, shown.as_ref().map(|shown| shown.0.as_str())).await;
        let outcome = result.as_ref().map(drop).map_err(Clone::clone);
        door.note(if shown.is_some() { "agent" } else { "join token" }, "agent.certify", &ask.node, &outcome);
        result
    };
    answered(answer.await)
}

async fn connect(State(door): State<Arc<Door>>, mut request: Request) -> Response {
    let begin = || -> Result<(Caller, Node, Welcome)> {
        if !(door.leads)() {
            return Err(Error::new(Kind::Unavailable, "daemon", "does not lead any more").retry(true));
        }
        let shown = request.extensions().get::<PeerCertificate>().cloned();
        let caller = door.who(request.headers(), shown.as_ref().map(|shown| shown.0.as_str()))?;
        let node = caller.node().clone();
        let wanted = request.headers().get("upgrade").and_then(|value| value.to_str().ok());
        if wanted != Some(UPGRADE) {
            return Err(Error::invalid("request", format!("lacks the header Upgrade: {UPGRADE}")));
        }
        let nodes = door.nodes.borrow().clone();
        let known = nodes.iter().find(|known| known.id == node).cloned();
        let known = known.ok_or_else(|| Error::not_found(format!("node \"{node:.70}\"")))?;
        // With another host's idea of it, every host would send requests to itself.
        let address = known.address.ok_or_else(|| {
            let subject = format!("node \"{}\"", known.hostname);
            Error::new(Kind::Unavailable, subject, "the Swarm does not tell its address yet").retry(true)
        })?;
        let daemons = door.daemons()?;
        let registry = door.hub.worker().registry.borrow().clone();
        Ok((caller, known, Welcome { term: door.term, cluster: door.cluster.clone(), address, daemons, registry }))
    };
    let (caller, node, welcome) = match begin() {
        Ok(begun) => begun,
        Err(error) => return failure(&error),
    };
    let upgrade = hyper::upgrade::on(&mut request);
    tokio::spawn(async move {
        let Ok(stream) = upgrade.await else { return };
        let stream = hyper_util::rt::TokioIo::new(stream);
        let daemon = matches!(caller, Caller::Daemon(_));
        let heard = async |hello: &Hello| door.heard(&caller, hello).await;
        if let Err(why) = door.hub.serve(node.id.clone(), daemon, stream, welcome, heard).await {
            tracing::info!(node = node.hostname, %why, "an agent's connection has ended");
        }
    });
    let mut response = Response::new(Body::empty());
    *response.status_mut() = axum::http::StatusCode::SWITCHING_PROTOCOLS;
    let headers = response.headers_mut();
    headers.insert("connection", axum::http::HeaderValue::from_static("upgrade"));
    headers.insert("upgrade", axum::http::HeaderValue::from_static(UPGRADE));
    response
}

/// The same routes at a daemon that does not lead: they name the one that does.
pub fn elsewhere(leader: watch::Receiver<Option<Leader>>) -> Router {
    let refer = move || {
        let leader = leader.borrow().clone();
        async move {
            let error = Error::new(Kind::Unavailable, "daemon", "does not lead").retry(true);
            let mut response = failure(&error);
            let named = leader.and_then(|leader| axum::http::HeaderValue::from_str(&leader.address).ok());
            if let Some(named) = named {
                response.headers_mut().insert(LEADER, named);
            }
            response
        }
    };
    Router::new()
        .route("/v1/join", post(refer.clone()))
        .route("/v1/join/agent", post(refer.clone()))
        .route("/v1/agent", get(refer))
}

async fn read<T: DeserializeOwned>(request: Request) -> Result<T> {
    let body = tokio::time::timeout(PATIENCE, axum::body::to_bytes(request.into_body(), LONGEST)).await;
    let body = body.map_err(|_| Error::new(Kind::Timeout, "request body", "did not come within 10s"))?;
    let bytes: Bytes = body.map_err(|error| {
        Error::new(Kind::Exhausted, "request body", format!("is larger than {LONGEST} bytes, or broke off"))
            .cause(error)
    })?;
    serde_json::from_slice(&bytes)
        .map_err(|error| Error::invalid("request body", "is not what is asked for").cause(error))
}

fn answered<T: Serialize>(answer: Result<T>) -> Response {
    match answer
        .and_then(|answer| serde_json::to_vec(&answer).map_err(|error| Error::internal("answer", error.to_string())))
    {
        Ok(bytes) => Response::new(Body::from(bytes)),
        Err(error) => failure(&error),
    }
}

fn failure(error: &Error) -> Response {
    let mut response = Response::new(Body::from(serde_json::to_vec(error).unwrap_or_default()));
    *response.status_mut() = axum::http::StatusCode::from_u16(error.kind.status()).unwrap_or_default();
    response
}

#[cfg(test)]
#[path = "door_tests.rs"]
mod tests;
