//! `http`: requests from scripts.

use std::sync::OnceLock;

use mlua::{Lua, LuaString, Table, Value};
use serde::Deserialize;

use super::Phase;
use crate::model::units::{Bytes, Duration};
use crate::model::{Error, Kind};
use crate::script::value::{raise, to_json};

/// Largest body that is taken in, in bytes, unless the call says otherwise.
const MAX_BODY: Bytes = Bytes(16 << 20);

#[derive(Deserialize, Default)]
#[serde(default)]
struct Options {
    method: Option<String>,
    url: Option<String>,
    headers: std::collections::BTreeMap<String, String>,
    body: Option<String>,
    json: Option<serde_json::Value>,
    timeout: Option<Duration>,
    max_body: Option<Bytes>,
}

/// Sets `http`. With a `phase`, calls are refused while a hosted file is being loaded.
pub fn install(lua: &Lua, phase: Option<Phase>) -> mlua::Result<()> {
    let http = lua.create_table()?;
    for method in ["get", "head", "post", "put", "patch", "delete"] {
        let phase = phase.clone();
        let call = lua.create_async_function(move |lua, (url, options): (String, Option<Table>)| {
            let phase = phase.clone();
            async move {
                let mut options = read(options)?;
                options.method = Some(method.to_uppercase());
                options.url = Some(url);
                request(&lua, phase, options).await
            }
        })?;
        http.set(method, call)?;
    }
    let call = lua.create_async_function(move |lua, options: Option<Table>| {
        let phase = phase.clone();
        async move { request(&lua, phase, read(options)?).await }
    })?;
    http.set("request", call)?;
    lua.globals().set("http", http)
}

fn read(options: Option<Table>) -> mlua::Result<Options> {
    let Some(table) = options else { return Ok(Options::default()) };
    let value = to_json(&Value::Table(table)).map_err(raise)?;
    crate::model::strict::read("http", &value).map_err(raise)
}

/// The one client of this process: connections are kept between calls.
pub fn client() -> Result<reqwest::Client, Error> {
    static CLIENT: OnceLock<Result<reqwest::Client, Error>> = OnceLock::new();
    CLIENT
        .get_or_init(|| {
            let _ = rustls::crypto::ring::default_provider().install_default();
            reqwest::Client::builder()
                .user_agent(concat!("neap/", env!("CARGO_PKG_VERSION")))
                .connect_timeout(std::time::Duration::from_secs(10))
                .build()
                .map_err(|error| Error::internal("http", "cannot make a client").cause(error))
        })
        .clone()
}

async fn request(lua: &Lua, phase: Option<Phase>, options: Options) -> mlua::Result<Table> {
    let url = options.url.unwrap_or_default();
    let method = options.method.unwrap_or_else(|| "GET".into());
    let subject = format!("http {method} {}", url.chars().take(120).collect::<String>());
    if let Some(phase) = phase {
        phase.require_running("http")?;
    }
    let invalid = |why: String| raise(Error::new(Kind::Script, subject.clone(), why));
    let method = reqwest::Method::from_bytes(method.as_bytes()).map_err(|_| invalid("unknown method".into()))?;
    let timeout = options.timeout.unwrap_or(Duration::from_secs(30));
    let mut request = client().map_err(raise)?.request(method, &url).timeout(timeout.std());
    for (name, value) in &options.headers {
        request = request.header(name, value);
    }
    if let Some(json) = &options.json {
        request = request.header("content-type", "application/json").body(json.to_string());
    } else if let Some(body) = options.body {
        request = request.body(body);
    }
    let failed = |error: reqwest::Error| {
        let kind = if error.is_timeout() {
            Kind::Timeout
        } else if error.is_builder() {
            Kind::Invalid
        } else {
            Kind::Unavailable
        };
        let message = if error.is_timeout() {
            format!("no answer within {timeout}")
        } else if error.is_connect() {
            "cannot connect".to_owned()
        } else {
            "failed".to_owned()
        };
        let mut cause: &dyn std::error::Error = &error;
        while let Some(inner) = cause.source() {
            cause = inner;
        }
        raise(Error::new(kind, subject.clone(), message).cause(cause))
    };
    let mut response = request.send().await.map_err(failed)?;
    let most = options.max_body.unwrap_or(MAX_BODY);
    let mut body = Vec::new();
    while let Some(chunk) = response.chunk().await.map_err(failed)? {
        body.extend_from_slice(&chunk);
        if body.len() as u64 > most.0 {
            return Err(raise(
                Error::new(Kind::Exhausted, subject, format!("the answer is larger than {most}"))
                    .help("raise max_body"),
            ));
        }
    }
    let reply = lua.create_table()?;
    reply.set("status", response.status().as_u16())?;
    let headers = lua.create_table()?;
    for (name, value) in response.headers() {
        headers.set(name.as_str(), lua.create_string(value.as_bytes())?)?;
    }
    reply.set("headers", headers)?;
    reply.set("body", lua.create_string(&body)?)?;
    let text: LuaString = reply.get("body")?;
    let decode = lua.create_function(move |lua, _: Value| {
        let value: serde_json::Value = serde_json::from_slice(&text.as_bytes())
            .map_err(|error| raise(Error::new(Kind::Script, "http", "the answer is not JSON").cause(error)))?;
        crate::script::value::from_json(lua, &value)
    })?;
    reply.set("json", decode)?;
    Ok(reply)
}
