//! Floor 6, assembly: the control API, HTTP/JSON over `trait Cluster`. A route says once what it needs, takes and
//! gives; rights, audit, errors and the OpenAPI description follow from that.

pub mod auth;
mod build_routes;
mod catalog_routes;
pub mod consul;
mod image_routes;
mod native_routes;
mod node_routes;
mod object_routes;
pub mod oci;
mod openapi;
mod registry_routes;
mod routes;
mod script_routes;
pub mod server;
pub mod switch;
mod tokens;

pub use self::tokens::Stored as StoredTokens;
mod traffic_routes;

use std::pin::Pin;
use std::sync::Arc;

use axum::body::Body;
use axum::extract::Request;
use axum::http::HeaderName;
use axum::response::Response;
use futures_util::StreamExt;
use serde::Serialize;
use serde_json::Value;

use self::auth::Peer;
use crate::client::wire::{AGE, MAX_AGE};
use crate::client::{Cluster, Stream1};
use crate::model::right::{Audit, Principal, Role};
use crate::model::{Error, Kind, Result};
use crate::runtime::standing::Standing;
use crate::store::Store;

/// Largest request body, in bytes.
const MAX_BODY: usize = 16 << 20;

/// What this daemon remembers of its cluster.
pub trait Remembers: Send + Sync {
    /// How long ago it was proved that somebody leads, where that is too long.
    fn age(&self) -> Option<std::time::Duration>;
    /// What stands, as far as it is known.
    fn standing(&self) -> Option<Result<Standing>>;
    /// Whether the store was read yet.
    fn is_read(&self) -> bool;
}

/// What the API serves.
pub struct Api {
    /// The cluster.
    pub cluster: Arc<dyn Cluster>,
    /// Where tokens are kept.
    pub store: Arc<dyn Store>,
    /// Told of every change that was asked for.
    pub audit: Arc<dyn Audit>,
    /// Time and randomness.
    pub clock: Arc<dyn crate::model::clock::Clock>,
    /// What the daemons of this cluster show each other, where there can be several.
    pub daemons: Option<String>,
    /// The host that this daemon is on, as the catalogue names it.
    pub host: Arc<dyn Fn() -> Option<String> + Send + Sync>,
    /// What is remembered, where a daemon may be without one that leads.
    pub memory: Option<Arc<dyn Remembers>>,
}

/// How long whoever leads has to answer what can be told without it.
const PATIENCE: std::time::Duration = std::time::Duration::from_secs(3);

/// How often it is looked whether anybody leads, while an answer does not come.
const LOOK: std::time::Duration = std::time::Duration::from_secs(1);

/// A request that has passed its checks.
#[derive(Clone)]
struct Call {
    api: Arc<Api>,
    principal: Principal,
    path: std::collections::HashMap<String, String>,
    query: std::collections::HashMap<String, String>,
    body: Value,
    /// How old an answer may be.
    max_age: std::time::Duration,
}

impl Call {
    fn name(&self) -> &str {
        self.path.get("name").map_or("", String::as_str)
    }

    // A parameter that is true or false; without it, it is false.
    fn flag(&self, key: &str) -> Result<bool> {
        match self.query.get(key).map(String::as_str) {
            None | Some("false") => Ok(false),
            Some("true") => Ok(true),
            Some(other) => Err(Error::invalid("query", format!("{key}: {other:.20?} is not true or false"))),
        }
    }
}

/// What a handler answers.
enum Answer {
    Json(Value),
    /// From memory, and how old it is.
    Old(Value, std::time::Duration),
    Lines(Stream1<Value>),
}

fn json<T: Serialize>(value: &T) -> Result<Answer> {
    serde_json::to_value(value)
        .map(Answer::Json)
        .map_err(|error| Error::internal("answer", "cannot be written").cause(error))
}

fn lines<T: Serialize + Send + 'static>(stream: Stream1<T>) -> Result<Answer> {
    let values = stream.map(|item| {
        item.and_then(|value| {
            serde_json::to_value(&value).map_err(|error| Error::internal("answer", "cannot be written").cause(error))
        })
    });
    Ok(Answer::Lines(Box::pin(values)))
}

type Handler = fn(Call) -> Pin<Box<dyn Future<Output = Result<Answer>> + Send>>;
type Schema = fn(&mut schemars::SchemaGenerator) -> schemars::Schema;

/// One route, described once.
struct Route {
    method: &'static str,
    path: &'static str,
    summary: &'static str,
    need: Role,
    /// A change: it is audited under this name.
    change: Option<&'static str>,
    /// Whose rights count: the name in the path, or the service in the body.
    about: About,
    query: &'static [(&'static str, &'static str)],
    request: Option<Schema>,
    response: Option<Schema>,
    stream: bool,
    /// Largest body, in bytes.
    most: usize,
    handler: Handler,
    /// What is answered from memory while no daemon leads.
    standing: Option<fn(&Call, &Standing) -> Result<Answer>>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum About {
    Nothing,
    Path,
    BodyService,
    BodyName,
}

/// The router with all routes.
pub fn router(api: Arc<Api>) -> axum::Router {
    let mut router = axum::Router::new();
    for route in routes::all() {
        let api = api.clone();
        let method = axum::http::Method::from_bytes(route.method.as_bytes()).expect("routes name known methods");
        let filter = axum::routing::MethodFilter::try_from(method).expect("routes name known methods");
        let route = Arc::new(route);
        let path = route.path;
        let serve = move |params: axum::extract::RawPathParams, request: Request| {
            let path = params.iter().map(|(key, value)| (key.to_owned(), value.to_owned())).collect();
            dispatch(api.clone(), route.clone(), path, request)
        };
        router = router.route(path, axum::routing::on(filter, serve));
    }
    router
        .fallback(|request: Request| async move {
            let message = format!("there is no route {} {}", request.method(), request.uri().path());
            failure(&Error::new(Kind::NotFound, "API", message).help("GET /v1/openapi.json describes all routes"))
        })
        .method_not_allowed_fallback(|request: Request| async move {
            let message = format!("{} does not take {}", request.uri().path(), request.method());
            let mut response =
                failure(&Error::new(Kind::Invalid, "API", message).help("GET /v1/openapi.json describes all routes"));
            *response.status_mut() = axum::http::StatusCode::METHOD_NOT_ALLOWED;
            response
        })
}

async fn dispatch(
    api: Arc<Api>,
    route: Arc<Route>,
    path: std::collections::HashMap<String, String>,
    request: Request,
) -> Response {
    match serve(api, &route, path, request).await {
        Ok(Answer::Json(value)) => respond(200, Body::from(value.to_string()), "application/json"),
        Ok(Answer::Old(value, age)) => {
            let mut response = respond(200, Body::from(value.to_string()), "application/json");
            let age = format!("{:.1}", age.as_secs_f64());
            response.headers_mut().extend(age.parse().ok().map(|age| (HeaderName::from_static(AGE), age)));
            response
        }
        Ok(Answer::Lines(stream)) => {
            let lines = stream.map(|item| {
                let line = match item {
                    Ok(value) => format!("{value}\n"),
                    Err(error) => format!("{{\"error\":{}}}\n", serde_json::to_string(&error).unwrap_or_default()),
                };
                Ok::<_, std::convert::Infallible>(line)
            });
            respond(200, Body::from_stream(lines), "application/x-ndjson")
        }
        Err(error) => failure(&error),
    }
}

async fn serve(
    api: Arc<Api>,
    route: &Arc<Route>,
    path: std::collections::HashMap<String, String>,
    request: Request,
) -> Result<Answer> {
    check_version(&request)?;
    let peer = request.extensions().get::<Peer>().cloned().unwrap_or(Peer::Unknown);
    let unread = api.memory.as_ref().is_some_and(|memory| !memory.is_read());
    let principal = auth::principal(&peer, request.headers(), &*api.store, api.daemons.as_deref());
    let principal = principal.map_err(|error| match error.kind {
        // It may be in the store.
        Kind::Unauthenticated if unread && error.subject == "token" => {
            Error::new(Kind::Unavailable, "token", "cannot be looked up yet: the Swarm's managers do not answer")
                .retry(true)
        }
        _ => error,
    })?;
    let max_age = request.headers().get(MAX_AGE).map(|value| {
        let seconds = value.to_str().ok().and_then(|value| value.parse::<u32>().ok());
        seconds.ok_or_else(|| Error::invalid(MAX_AGE, "is not a number of seconds"))
    });
    let max_age = std::time::Duration::from_secs(u64::from(max_age.transpose()?.unwrap_or_default()));
    let query = read_query(route, request.uri().query().unwrap_or_default())?;
    // What needs no look into the body is said before it is read: it may be large.
    if route.most > MAX_BODY {
        let allowed = principal.require(route.need, None);
        if let (Err(_), Some(action)) = (&allowed, route.change) {
            api.audit.record(&principal, action, "", &allowed);
        }
        allowed?;
    }
    let most = route.most;
    let bytes = axum::body::to_bytes(request.into_body(), most).await.map_err(|error| {
        Error::new(Kind::Exhausted, "request body", format!("is larger than {most} bytes, or broke off")).cause(error)
    })?;
    let body = match (route.request, bytes.is_empty()) {
        (Some(_), true) => return Err(Error::invalid("request body", "is missing")),
        (Some(_), false) => serde_json::from_slice(&bytes)
            .map_err(|error| Error::invalid("request body", "is not JSON").cause(error))?,
        (None, _) => Value::Null,
    };
    let about = match route.about {
        About::Nothing => None,
        About::Path => path.get("name").cloned(),
        // What names nothing is not for whoever is confined to some names.
        About::BodyName => Some(body.get("name").and_then(Value::as_str).unwrap_or_default().to_owned()),
        About::BodyService => {
            let service = body.pointer("/service/name").or(body.get("service")).and_then(Value::as_str);
            Some(service.unwrap_or_default().to_owned())
        }
    };
    let image = || body.get("to").or_else(|| body.get("image")).and_then(Value::as_str).map(str::to_owned);
    let subject = about.clone().or_else(|| path.get("id").cloned()).or_else(image).unwrap_or_default();
    let allowed = principal.require(route.need, about.as_deref());
    let result = match allowed {
        Ok(()) => {
            let call = Call { api: api.clone(), principal: principal.clone(), path, query, body, max_age };
            match route.change {
                None => answer(route, call).await,
                // Whoever breaks off has not undone it: what is written down becomes known as well.
                Some(_) => {
                    let route = route.clone();
                    let done = tokio::spawn(async move { answer(&route, call).await }).await;
                    done.unwrap_or_else(|error| Err(Error::internal("request", "broke off").cause(error)))
                }
            }
        }
        Err(error) => Err(error),
    };
    if let Some(action) = route.change {
        let outcome = result.as_ref().map(|_| ()).map_err(Clone::clone);
        api.audit.record(&principal, action, &subject, &outcome);
    }
    result
}

// Asks the cluster; where nobody who leads answers, memory has to do for whoever says so.
async fn answer(route: &Route, call: Call) -> Result<Answer> {
    let (Some(from_memory), Some(memory)) = (route.standing, call.api.memory.clone()) else {
        return (route.handler)(call).await;
    };
    let leads = call.api.daemons.is_some();
    let asked = (route.handler)(call.clone());
    let silence = async {
        // Nobody is given up before it is known that nobody leads.
        while call.max_age.is_zero() || memory.age().is_none() {
            tokio::time::sleep(LOOK).await;
        }
        tokio::time::sleep(PATIENCE).await;
    };
    let answered = tokio::select! {
        answer = asked => Some(answer),
        () = silence => None,
    };
    let error = match answered {
        // A leader that cannot prove that it leads tells what stood when it last could.
        Some(Ok(Answer::Json(value))) if leads => {
            return match memory.age() {
                None => Ok(Answer::Json(value)),
                Some(age) if age <= call.max_age => Ok(Answer::Old(value, age)),
                Some(age) => {
                    let message = format!("no daemon has been able to prove for {} s that it leads", age.as_secs());
                    Err(Error::new(Kind::Unavailable, "cluster", message).retry(true))
                }
            };
        }
        Some(Err(error)) if matches!(error.kind, Kind::Unavailable | Kind::Timeout) => error,
        Some(answer) => return answer,
        None => Error::new(Kind::Unavailable, "cluster", "whoever leads does not answer").retry(true),
    };
    let Some(standing) = memory.standing().filter(|_| !call.max_age.is_zero()) else { return Err(error) };
    let standing = standing?;
    if standing.age > call.max_age {
        return Err(error);
    }
    match from_memory(&call, &standing) {
        Ok(Answer::Json(value)) => Ok(Answer::Old(value, standing.age)),
        // It may have been made since.
        Err(missing) if missing.kind == Kind::NotFound => Err(error),
        other => other,
    }
}

fn read_query(route: &Route, text: &str) -> Result<std::collections::HashMap<String, String>> {
    let pairs: Vec<(String, String)> = axum::extract::Query::try_from_uri(
        &format!("/?{text}").parse().map_err(|_| Error::invalid("query", "is not one"))?,
    )
    .map(|axum::extract::Query(pairs)| pairs)
    .map_err(|error| Error::invalid("query", error.to_string()))?;
    for (key, _) in &pairs {
        if !route.query.iter().any(|(known, _)| known == key) {
            let hint = crate::model::suggest::hint(key, route.query.iter().map(|(known, _)| *known));
            return Err(Error::invalid("query", format!("unknown parameter \"{key:.60}\"{hint}")));
        }
    }
    Ok(pairs.into_iter().collect())
}

// A client tells its version; one minor version apart is understood, more is not.
fn check_version(request: &Request) -> Result<()> {
    let Some(theirs) = request.headers().get("neap-version").and_then(|value| value.to_str().ok()) else {
        return Ok(());
    };
    let ours = env!("CARGO_PKG_VERSION");
    let parse = |text: &str| {
        let mut parts = text.split('.');
        Some((parts.next()?.parse::<u32>().ok()?, parts.next()?.parse::<u32>().ok()?))
    };
    match (parse(theirs), parse(ours)) {
        (Some((a, b)), Some((c, d))) if a == c && b.abs_diff(d) <= 1 => Ok(()),
        _ => Err(Error::new(Kind::Unsupported, "client", format!("is version {theirs:.40}, the daemon is {ours}"))
            .help("use a neap at most one minor version apart")),
    }
}

fn failure(error: &Error) -> Response {
    respond(error.kind.status(), Body::from(serde_json::to_string(error).unwrap_or_default()), "application/json")
}

fn respond(status: u16, body: Body, content_type: &'static str) -> Response {
    let mut response = Response::new(body);
    *response.status_mut() = axum::http::StatusCode::from_u16(status).unwrap_or_default();
    response.headers_mut().insert("content-type", axum::http::HeaderValue::from_static(content_type));
    response
}
