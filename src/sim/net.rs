//! The network of a simulation: replicas by their addresses, published ports and routes on every node, nobody else.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;

use crate::engines::sim::{Answer, SimEngine};
use crate::model::port::Protocol;
use crate::model::route::plain_path;
use crate::model::{Error, Kind, Result};
use crate::network::balancer::{Balancer, Choice, Hooks, Loaded, Peers, RoutedRequest, Routing, Wish, plain_host};
use crate::network::table::{Status, Table};
use crate::network::{Network, Request, Response};

/// How long any answer takes: time goes on for who asks again and again.
const LATENCY: Duration = Duration::from_millis(1);

/// Where published ports lead.
#[derive(Default)]
pub struct Routes {
    table: Table,
    choices: BTreeMap<String, Choice>,
    peers: Peers,
    routing: Routing,
}

/// Replicas and published ports.
pub struct SimNetwork {
    /// Who runs the replicas.
    pub engine: Arc<SimEngine>,
    /// Where published ports lead.
    pub routes: Arc<Mutex<Routes>>,
    /// Names and addresses of nodes.
    pub hosts: BTreeSet<String>,
    /// Loads scripts of routes.
    pub hooks: Arc<dyn Hooks>,
}

impl SimNetwork {
    // What is answered at an address, by a replica itself or by the one that a published port leads to.
    fn answer(&self, address: &str, path: &str) -> Option<Answer> {
        self.answer_for(address, address, path, RoutedRequest::default)
    }

    // The same for whoever names another host than the one that is connected to.
    fn answer_for(
        &self,
        address: &str,
        named: &str,
        path: &str,
        shown: impl FnOnce() -> RoutedRequest,
    ) -> Option<Answer> {
        if let Some(answer) = self.engine.answer(address, path) {
            return Some(answer);
        }
        let (host, port) = address.rsplit_once(':')?;
        let port: u16 = port.parse().ok()?;
        let mut routes = self.routes.lock().unwrap_or_else(PoisonError::into_inner);
        let Routes { table, choices, routing, .. } = &mut *routes;
        let is_here = ["localhost", "127.0.0.1", "[::1]"].contains(&host) || self.hosts.contains(host);
        if let Some((front, known)) = table.fronts.iter().find(|(_, front)| front.port == port) {
            // A name that a route is for leads to these hosts.
            let is_named = known.routes.iter().any(|route| route.spec.host.is_some() && route.spec.is_for(host));
            return (is_here || is_named).then(|| self.routed(routing, front, named, path, shown));
        }
        if !is_here {
            return None;
        }
        let (name, listener) =
            table.listeners.iter().find(|(_, listener)| listener.port == port && listener.protocol == Protocol::Tcp)?;
        let choice = choices.get_mut(name)?;
        let mut tried = Vec::new();
        // As the balancer does: a refused connection is tried elsewhere.
        loop {
            let picked = choice.choose(&listener.balance.into(), &Wish { tried: &tried, ..Wish::default() })?;
            if let Some(answer) = self.engine.answer(&picked.peer().address, path) {
                return Some(answer);
            }
            tried.push(picked.peer().id);
        }
    }

    // As the balancer does where HTTP is spoken.
    fn routed(
        &self,
        routing: &mut Routing,
        front: &str,
        named: &str,
        path: &str,
        shown: impl FnOnce() -> RoutedRequest,
    ) -> Answer {
        let told = |status: u16, body: &str| Answer { status, body: body.to_owned() };
        let plain = match plain_path(path) {
            Ok(plain) => plain,
            Err(why) => return told(400, why),
        };
        let host = plain_host(named.as_bytes());
        let Some((index, way)) = routing.way_of(front, &host, &plain).map(|(index, way)| (index, way.clone())) else {
            return told(404, "no route leads there");
        };
        if way.spec.redirect.is_some() {
            return told(301, "");
        }
        let rest = if way.spec.strip_path { path.strip_prefix(way.spec.prefix()).unwrap_or(path) } else { path };
        let rest = if rest.is_empty() { "/" } else { rest };
        let group = Loaded::new(self.hooks.clone()).choose(&way, shown);
        let mut tried = Vec::new();
        let group = group.as_deref();
        while let Some(picked) = routing.choose(front, &way, index, &Wish { tried: &tried, group, ..Wish::default() }) {
            if let Some(answer) = self.engine.answer(&picked.peer().address, rest) {
                return answer;
            }
            tried.push(picked.peer().id);
        }
        if tried.is_empty() {
            told(503, "no replica serves this route now")
        } else {
            told(502, "no replica took the request")
        }
    }
}

#[async_trait]
impl Network for SimNetwork {
    async fn connect(&self, address: &str, _: Duration) -> std::result::Result<(), String> {
        tokio::time::sleep(LATENCY).await;
        self.answer(address, "/").map(drop).ok_or_else(|| format!("tcp {address}: connection refused"))
    }

    async fn datagram(&self, address: &str, timeout: Duration) -> std::result::Result<(), String> {
        self.connect(address, timeout).await
    }

    async fn probe(&self, address: &str, path: &str, _: Duration) -> std::result::Result<(), String> {
        tokio::time::sleep(LATENCY).await;
        match self.answer(address, path) {
            Some(Answer { status: 200..400, .. }) => Ok(()),
            Some(Answer { status, body }) if body.is_empty() => Err(format!("GET {path}: status {status}")),
            Some(Answer { status, body }) => Err(format!("GET {path}: status {status}: {body}")),
            None => Err(format!("GET {path}: connection refused")),
        }
    }

    async fn fetch(&self, request: Request) -> Result<Response> {
        tokio::time::sleep(LATENCY).await;
        let (method, url) = request.parse()?;
        let address = format!("{}:{}", url.host_str().unwrap_or_default(), url.port_or_known_default().unwrap_or(80));
        let is_host = |(name, _): &&(String, String)| name.eq_ignore_ascii_case("host");
        let named = request.headers.iter().find(is_host).map_or(address.as_str(), |(_, host)| host);
        let shown = || {
            let fields = request.headers.iter().map(|(name, value)| (name.clone(), value.as_bytes().to_vec()));
            let query = url.query().map(|query| format!("?{query}")).unwrap_or_default();
            let target = format!("{}{query}", url.path());
            let client = "127.0.0.1".to_owned();
            RoutedRequest::of(
                method.to_string(),
                named.as_bytes(),
                target.as_bytes(),
                client,
                url.scheme() == "https",
                fields.collect(),
            )
        };
        let mut answer = self.answer_for(&address, named, url.path(), shown).ok_or_else(|| {
            let help = "in a simulation only replicas, published ports and routes answer";
            Error::new(Kind::Unavailable, request.subject(), "cannot connect").help(help)
        })?;
        if method == "HEAD" {
            answer.body.clear();
        }
        if !request.cut_off && answer.body.len() as u64 > request.max_body.0 {
            return Err(request.too_large());
        }
        let kind = if answer.body.starts_with(['{', '[']) { "application/json" } else { "text/plain" };
        let headers = vec![("content-type".to_owned(), kind.as_bytes().to_vec())];
        Ok(Response { status: answer.status, headers, body: answer.body.into_bytes() })
    }
}

/// The balancer of a simulation: it holds the table.
pub struct SimBalancer(pub Arc<Mutex<Routes>>);

impl SimBalancer {
    fn routes(&self) -> std::sync::MutexGuard<'_, Routes> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[async_trait]
impl Balancer for SimBalancer {
    fn is_left_over(&self) -> bool {
        false
    }

    async fn push(&mut self, table: &Table) -> Result<Status> {
        let mut routes = self.routes();
        let Routes { table: before, choices, peers, .. } = &mut *routes;
        choices.retain(|name, _| table.listeners.contains_key(name));
        for (name, listener) in &table.listeners {
            let is_same = before.listeners.get(name).is_some_and(|before| before.backends == listener.backends);
            if !is_same {
                choices.insert(name.clone(), peers.choice(&listener.backends, 0));
            }
        }
        peers.tidy();
        routes.routing.take(table);
        routes.table = table.clone();
        Ok(Status { version: table.version, ..Status::default() })
    }

    async fn status(&mut self) -> Result<Status> {
        Ok(Status { version: self.routes().table.version, ..Status::default() })
    }

    async fn gone(&mut self) {
        std::future::pending().await
    }

    async fn stop(&mut self) -> Result<()> {
        *self.routes() = Routes::default();
        Ok(())
    }
}
