//! `http`: requests from scripts.

use std::sync::Arc;

use mlua::{Lua, LuaString, Table, Value};
use serde::Deserialize;

use super::Phase;
use crate::model::units::{Bytes, Duration};
use crate::model::{Error, Kind};
use crate::network::{Network, Request};
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
pub fn install(lua: &Lua, phase: Option<Phase>, network: &Arc<dyn Network>) -> mlua::Result<()> {
    let http = lua.create_table()?;
    for method in ["get", "head", "post", "put", "patch", "delete"] {
        let (phase, network) = (phase.clone(), network.clone());
        let call = lua.create_async_function(move |lua, (url, options): (String, Option<Table>)| {
            let (phase, network) = (phase.clone(), network.clone());
            async move {
                let mut options = read(options)?;
                options.method = Some(method.to_uppercase());
                options.url = Some(url);
                request(&lua, phase, &*network, options).await
            }
        })?;
        http.set(method, call)?;
    }
    let network = network.clone();
    let call = lua.create_async_function(move |lua, options: Option<Table>| {
        let (phase, network) = (phase.clone(), network.clone());
        async move { request(&lua, phase, &*network, read(options)?).await }
    })?;
    http.set("request", call)?;
    lua.globals().set("http", http)
}

fn read(options: Option<Table>) -> mlua::Result<Options> {
    let Some(table) = options else { return Ok(Options::default()) };
    let value = to_json(&Value::Table(table)).map_err(raise)?;
    crate::model::strict::read("http", &value).map_err(raise)
}

async fn request(lua: &Lua, phase: Option<Phase>, network: &dyn Network, options: Options) -> mlua::Result<Table> {
    if let Some(phase) = phase {
        phase.require_running("http")?;
    }
    if options.body.is_some() && options.json.is_some() {
        return Err(raise(Error::invalid("http", "body and json are both given; a request has one of them")));
    }
    let mut headers: Vec<(String, String)> = options.headers.into_iter().collect();
    let body = match &options.json {
        Some(json) => {
            if !headers.iter().any(|(name, _)| name.eq_ignore_ascii_case("content-type")) {
                headers.push(("content-type".into(), "application/json".into()));
            }
            Some(json.to_string())
        }
        None => options.body,
    };
    let request = Request {
        method: options.method.unwrap_or_else(|| "GET".into()),
        url: options.url.unwrap_or_default(),
        headers,
        body: body.map(String::into_bytes),
        timeout: options.timeout.unwrap_or(Duration::from_secs(30)),
        max_body: options.max_body.unwrap_or(MAX_BODY),
        cut_off: false,
        any_certificate: false,
        http2: false,
    };
    let answer = network.fetch(request).await.map_err(raise)?;
    let reply = lua.create_table()?;
    reply.set("status", answer.status)?;
    let headers = lua.create_table()?;
    for (name, value) in &answer.headers {
        headers.set(name.as_str(), lua.create_string(value)?)?;
    }
    reply.set("headers", headers)?;
    reply.set("body", lua.create_string(&answer.body)?)?;
    let text: LuaString = reply.get("body")?;
    let decode = lua.create_function(move |lua, _: Value| {
        let value: serde_json::Value = serde_json::from_slice(&text.as_bytes())
            .map_err(|error| raise(Error::new(Kind::Script, "http", "the answer is not JSON").cause(error)))?;
        crate::script::value::from_json(lua, &value)
    })?;
    reply.set("json", decode)?;
    Ok(reply)
}
