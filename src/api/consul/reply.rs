//! An answer: status, headers and body as Consul's clients expect them.

use axum::body::Body;
use axum::http::StatusCode;
use axum::response::Response;
use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::model::rules::Access;
use crate::model::{Error, Kind};

/// An error as Consul says it: text.
pub fn refusal(error: &Error) -> Response {
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
#[derive(Serialize, Deserialize)]
pub enum Reply {
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
    Bytes(u64, Bytes),
    /// There is none.
    Missing(u64),
}

impl Reply {
    /// With Consul's headers.
    pub fn into_response(self, pretty: bool, policy: Option<Access>) -> Response {
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
            Reply::Bytes(_, bytes) => Body::from(bytes.0),
            _ => Body::from(body),
        });
        *response.status_mut() = StatusCode::from_u16(status).unwrap_or_default();
        // Consul knows two.
        let default = if policy.is_some_and(|policy| policy < Access::Write) { "deny" } else { "allow" };
        let headers = response.headers_mut();
        headers.insert("content-type", axum::http::HeaderValue::from_static(kind));
        headers.insert("x-consul-index", axum::http::HeaderValue::from(index.unwrap_or(1).max(1)));
        headers.insert("x-consul-knownleader", axum::http::HeaderValue::from_static("true"));
        headers.insert("x-consul-lastcontact", axum::http::HeaderValue::from_static("0"));
        headers.insert("x-consul-effective-consistency", axum::http::HeaderValue::from_static("leader"));
        headers.insert("x-consul-default-acl-policy", axum::http::HeaderValue::from_static(default));
        headers.insert("x-neap-version", axum::http::HeaderValue::from_static(env!("CARGO_PKG_VERSION")));
        response
    }
}

/// Bytes, in JSON as base64.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Bytes(pub Vec<u8>);

impl Serialize for Bytes {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> std::result::Result<S::Ok, S::Error> {
        serializer.serialize_str(&BASE64_STANDARD.encode(&self.0))
    }
}

impl<'de> Deserialize<'de> for Bytes {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> std::result::Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        BASE64_STANDARD.decode(text).map(Bytes).map_err(serde::de::Error::custom)
    }
}
