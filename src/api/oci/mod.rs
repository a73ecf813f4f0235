//! The OCI distribution API, 1.1: what Docker, Podman, skopeo and the rest push to and pull from.

mod access;
mod blobs;
pub mod doors;
mod manifests;
mod metrics;
mod path;
mod rate;
mod server;
mod uploads;
mod users;

use std::io;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Empty, Full};
use hyper::body::Incoming;
use hyper::header::{self, HeaderMap, HeaderName, HeaderValue};
use hyper::{Method, Request, Response, StatusCode};
use serde_json::json;

use self::access::Caller;
use self::path::{Asked, Query};
use crate::registry::ImageRegistry;
use crate::registry::refused::{Code, Refused};

pub use access::{Access, Gate, StoredSecrets, Tokens};
pub use rate::Rate;
pub use server::{Sides, Tls, bind, listen, speak};
pub use users::Users;

/// What is answered.
type Body = UnsyncBoxBody<Bytes, io::Error>;
type Answer = Result<Response<Body>, Refused>;

const VERSION: HeaderName = HeaderName::from_static("docker-distribution-api-version");
const DIGEST: HeaderName = HeaderName::from_static("docker-content-digest");
const UPLOAD: HeaderName = HeaderName::from_static("docker-upload-uuid");
/// Most names of a page.
const PAGE: usize = 10_000;

/// Speaks for a registry.
pub struct Oci {
    /// It.
    pub registry: Arc<ImageRegistry>,
    /// Who is let in.
    pub gate: Gate,
    /// How much one address may ask, where that is said.
    pub rate: Option<Arc<Rate>>,
}

// A request, as handlers see it.
struct Call {
    registry: Arc<ImageRegistry>,
    caller: Caller,
    method: Method,
    headers: HeaderMap,
    query: Query,
    body: Incoming,
}

impl Call {
    fn header(&self, name: HeaderName) -> Option<&str> {
        self.headers.get(name)?.to_str().ok()
    }
}

fn empty() -> Body {
    Empty::new().map_err(|never| match never {}).boxed_unsync()
}

fn full(bytes: impl Into<Bytes>) -> Body {
    Full::new(bytes.into()).map_err(|never| match never {}).boxed_unsync()
}

// An answer with a body or without.
fn response(status: u16, body: Body) -> Response<Body> {
    let mut response = Response::new(body);
    *response.status_mut() = StatusCode::from_u16(status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    response
}

fn put(response: &mut Response<Body>, name: HeaderName, value: impl AsRef<[u8]>) {
    if let Ok(value) = HeaderValue::from_bytes(value.as_ref()) {
        response.headers_mut().insert(name, value);
    }
}

fn json_of(value: &serde_json::Value) -> Response<Body> {
    let mut answer = response(200, full(value.to_string()));
    put(&mut answer, header::CONTENT_TYPE, "application/json");
    answer
}

fn told(refused: &Refused) -> Response<Body> {
    let detail = match refused.about.as_slice() {
        [] => json!(null),
        [one] => json!(one),
        many => json!(many),
    };
    let error = json!({ "code": refused.code.as_str(), "message": refused.why, "detail": detail });
    let mut answer = response(refused.status(), full(json!({ "errors": [error] }).to_string()));
    put(&mut answer, header::CONTENT_TYPE, "application/json");
    if refused.status() == 405 {
        put(&mut answer, header::ALLOW, "GET, HEAD");
    }
    answer
}

/// Answers a request.
async fn answer(oci: Arc<Oci>, from: Option<IpAddr>, request: Request<Incoming>) -> Response<Body> {
    let (is_head, began) = (request.method() == Method::HEAD, Instant::now());
    let method = request.method().clone();
    let asked = Asked::read(request.uri().path());
    let kind = asked.as_ref().and_then(|asked| asked.as_ref().ok()).map(Asked::kind);
    let mut answer = match too_much(&oci, from) {
        Some(answer) => answer,
        None => serve(&oci, request, asked).await.unwrap_or_else(|refused| told(&refused)),
    };
    // What is none of this API's is nobody's to count.
    if let Some(kind) = kind {
        oci.registry.metrics().answered(kind, method.as_str(), answer.status().as_u16(), began.elapsed());
    }
    put(&mut answer, VERSION, "registry/2.0");
    if is_head {
        // Its length stays said.
        let length = hyper::body::Body::size_hint(answer.body()).exact();
        if let Some(length) = length.filter(|_| !answer.headers().contains_key(header::CONTENT_LENGTH)) {
            put(&mut answer, header::CONTENT_LENGTH, length.to_string());
        }
        *answer.body_mut() = empty();
    }
    answer
}

// The answer for an address that asks more than it may.
fn too_much(oci: &Oci, from: Option<IpAddr>) -> Option<Response<Body>> {
    let (rate, from) = (oci.rate.as_ref()?, from?);
    let (refused, wait) = rate.take(from, Instant::now()).err()?;
    let mut answer = told(&refused);
    put(&mut answer, header::RETRY_AFTER, wait.as_secs_f64().ceil().to_string());
    Some(answer)
}

// A refusal, with how to say who one is where that is what is missing.
fn challenged(oci: &Oci, refused: &Refused, headers: &HeaderMap, asked: Option<&Asked>) -> Response<Body> {
    let mut answer = told(refused);
    if refused.code == Code::Unauthorized {
        oci.gate.challenge(&mut answer, headers, asked);
    }
    answer
}

async fn serve(oci: &Oci, request: Request<Incoming>, asked: Option<Result<Asked, Refused>>) -> Answer {
    let (parts, body) = request.into_parts();
    let asked = asked.unwrap_or_else(|| {
        let why = format!("there is nothing at {:.200?}: this is an image registry, at /v2/", parts.uri.path());
        Err(Refused::new(Code::Unsupported, why).status_of(404))
    })?;
    if !asked.methods().contains(&parts.method.as_str()) {
        let why = format!("it does not take {:.20}", parts.method.as_str());
        let mut answer = told(&Refused::new(Code::Unsupported, why));
        put(&mut answer, header::ALLOW, asked.methods().join(", "));
        return Ok(answer);
    }
    let query = Query::read(parts.uri.query())?;
    // Whoever asks a mirror says of which registry: its names are those there.
    let asked = match (query.get("ns"), asked.repository(), &parts.method) {
        (Some(registry), Some(name), &Method::GET | &Method::HEAD) => {
            let name = oci.registry.mirrored(registry, name)?;
            asked.of(name)
        }
        _ => asked,
    };
    if asked == Asked::Token {
        let answer = oci.gate.token(oci.registry.rules(), &parts.headers).await;
        return answer.or_else(|refused| Ok(challenged(oci, &refused, &parts.headers, None)));
    }
    let caller = match oci.gate.check(oci.registry.rules(), &parts.method, &parts.headers, &asked).await {
        Ok(caller) => caller,
        Err(refused) => return Ok(challenged(oci, &refused, &parts.headers, Some(&asked))),
    };
    let registry = oci.registry.clone();
    let call = Call { registry, caller, method: parts.method, headers: parts.headers, query, body };
    match asked {
        Asked::Base | Asked::Token => Ok(json_of(&json!({}))),
        Asked::Metrics => metrics::answer(&call).await,
        Asked::Catalog => manifests::catalog(&call),
        Asked::Tags(repository) => manifests::tags(&call, &repository).await,
        Asked::Referrers(repository, subject) => manifests::referrers(&call, &repository, &subject).await,
        Asked::Manifest(repository, reference) => manifests::answer(call, &repository, &reference).await,
        Asked::Blob(repository, digest) => blobs::answer(&call, &repository, &digest).await,
        Asked::Uploads(repository) => uploads::begin(call, &repository).await,
        Asked::Upload(repository, id) => uploads::answer(call, &repository, &id).await,
    }
}
