//! A request as it comes: its path and its parameters decoded, its token, its body; from no page in a browser.

use std::time::Duration;

use axum::extract::Request;
use axum::http::Method;
use tokio::sync::Semaphore;

use super::reply::Bytes;
use super::{Call, Consul, MAX_BODY, rights};
use crate::model::{Error, Kind, Result};
use crate::runtime::snapshot;

/// How long a snapshot may take to come.
const PATIENCE: Duration = Duration::from_secs(60);
static LARGE: Semaphore = Semaphore::const_new(1);

/// Reads it.
pub async fn read(consul: &Consul, request: Request) -> Result<Call> {
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
    let method = request.method().as_str().to_owned();
    let brought = brought(&request, &query);
    let is_snapshot = path == ["snapshot"] && method == "PUT";
    let most = if is_snapshot { snapshot::MOST } else { MAX_BODY };
    let too_large =
        || Error::new(Kind::Exhausted, "request body", format!("is larger than {most} bytes, or broke off"));
    let body = axum::body::to_bytes(request.into_body(), most);
    let body = match is_snapshot {
        false => body.await.map_err(|_| too_large())?,
        // Of those that are large, one at a time is held.
        true => {
            let busy = || Error::new(Kind::Unavailable, "snapshot", "another is just being sent").retry(true);
            let _turn = LARGE.try_acquire().map_err(|_| busy())?;
            let late = || Error::new(Kind::Timeout, "request body", format!("did not come within {PATIENCE:?}"));
            tokio::time::timeout(PATIENCE, body).await.map_err(|_| late())?.map_err(|_| too_large())?
        }
    };
    let (body, peer, token, policy) = (Bytes(body.to_vec()), String::new(), rights::hashed(&brought), consul.policy);
    let mut call = Call { method, path, query, body, peer, token, policy, filter: None, rights: None };
    // It is not told to others, nor taken down.
    call.query.retain(|(key, _)| key != "token");
    call.take_filter()?;
    match call.value("dc").filter(|dc| !dc.is_empty() && !dc.eq_ignore_ascii_case(&consul.datacenter)) {
        Some(dc) => Err(Error::new(Kind::Unavailable, format!("datacenter {dc:.60?}"), "No path to datacenter")),
        None => Ok(call),
    }
}

// The token, in any of the ways that clients have.
fn brought(request: &Request, query: &[(String, String)]) -> String {
    let header = |name: &str| request.headers().get(name)?.to_str().ok().filter(|value| !value.trim().is_empty());
    let bearer = || {
        let (scheme, token) = header("authorization")?.split_once(' ')?;
        scheme.eq_ignore_ascii_case("bearer").then_some(token)
    };
    let asked = || query.iter().find(|(key, _)| key == "token").map(|(_, token)| token.as_str());
    let found = asked().filter(|token| !token.is_empty()).or_else(|| header("x-consul-token")).or_else(bearer);
    found.unwrap_or_default().to_owned()
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

/// As Go reads it.
pub fn truth(text: &str) -> Option<bool> {
    match text {
        "1" | "t" | "T" | "true" | "TRUE" | "True" => Some(true),
        "0" | "f" | "F" | "false" | "FALSE" | "False" => Some(false),
        _ => None,
    }
}

/// What a part of an address says, out of its %XX; `plus`: a plus is a space.
pub fn decoded(text: &str, plus: bool) -> Result<String> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((first, more)) = rest.split_first() {
        rest = more;
        bytes.push(match first {
            b'%' => {
                let digits = more.get(..2).filter(|digits| digits.iter().all(u8::is_ascii_hexdigit));
                let digits = digits.and_then(|digits| std::str::from_utf8(digits).ok());
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
