//! `/v1/session`: what holds keys locked.

use std::sync::Arc;

use serde_json::{Value, json};

use super::input::Fields;
use super::{Call, Consul, Reply};
use crate::model::catalog::SERF_HEALTH;
use crate::model::units::Duration;
use crate::model::{Error, Result};
use crate::runtime::kv::index::Topic;
use crate::runtime::kv::session::Session;

/// How long what a session held is held back where it does not say.
const LOCK_DELAY: Duration = Duration::from_secs(15);

pub async fn answer(consul: &Arc<Consul>, call: &Call, method: &str, path: &[&str]) -> Result<Reply> {
    match (method, path) {
        ("PUT", ["create"]) => {
            let session = read(consul, &call.body.0)?;
            let id = consul.own()?.kv.begin_session(session, &consul.catalog).await?;
            Ok(Reply::Plain(json!({ "ID": id })))
        }
        ("PUT", ["destroy", id]) => {
            consul.own()?.kv.end_session(id).await?;
            Ok(Reply::Plain(Value::Bool(true)))
        }
        ("PUT", ["renew", id]) => match consul.own()?.kv.renew_session(id)? {
            Some(session) => Ok(Reply::Plain(Value::Array(vec![shown(&session)]))),
            None => Ok(Reply::Status(404, format!("Session id '{id:.60}' not found"))),
        },
        ("GET", ["info", id]) => list(consul, call, || Ok(consul.own()?.kv.session(id)?.into_iter().collect())).await,
        ("GET", ["list"]) => list(consul, call, || consul.own()?.kv.sessions()).await,
        ("GET", ["node", node]) => list(consul, call, || consul.own()?.kv.sessions_of(node)).await,
        _ => Err(Error::not_found(format!("{method} /v1/session/{:.60}", path.join("/")))),
    }
}

async fn list(consul: &Consul, call: &Call, find: impl Fn() -> Result<Vec<Session>>) -> Result<Reply> {
    call.wait_for_key(consul, &Topic::Sessions).await?;
    let index = consul.own()?.kv.index_of(&Topic::Sessions);
    Ok(Reply::Json(index, find()?.iter().map(shown).collect()))
}

fn read(consul: &Consul, body: &[u8]) -> Result<Session> {
    if body.is_empty() {
        return Ok(Session {
            node: consul.host(),
            node_checks: vec![SERF_HEALTH.into()],
            lock_delay: LOCK_DELAY,
            ..Session::default()
        });
    }
    let mut fields = Fields::read(body)?;
    let node = fields.text("Node")?;
    // Those of an older form, which are of the node.
    let given = fields.has("NodeChecks") || fields.has("Checks");
    let mut node_checks = fields.texts("NodeChecks")?;
    node_checks.extend(fields.texts("Checks")?);
    if !given {
        node_checks.push(SERF_HEALTH.into());
    }
    let service_checks = fields.objects("ServiceChecks")?;
    let service_checks = service_checks.into_iter().map(|mut check| check.text("ID")).collect::<Result<Vec<_>>>()?;
    let deletes = match fields.text("Behavior")?.as_str() {
        "" | "release" => false,
        "delete" => true,
        other => return Err(Error::invalid("session", format!("Invalid Behavior setting {other:.40?}"))),
    };
    Ok(Session {
        name: fields.text("Name")?,
        node: if node.is_empty() { consul.host() } else { node },
        node_checks,
        service_checks,
        lock_delay: fields.lock_delay("LockDelay")?.unwrap_or(LOCK_DELAY),
        deletes,
        ttl: fields.duration("TTL")?.filter(|ttl| ttl.millis() > 0),
        ..Session::default()
    })
}

fn shown(session: &Session) -> Value {
    let checks = session.service_checks.iter().map(|id| json!({ "ID": id, "Namespace": "" }));
    json!({
        "ID": session.id,
        "Name": session.name,
        "Node": session.node,
        "LockDelay": session.lock_delay.millis() * 1_000_000,
        "Behavior": if session.deletes { "delete" } else { "release" },
        "TTL": session.ttl.map(super::output::go).unwrap_or_default(),
        "Checks": session.node_checks,
        "NodeChecks": session.node_checks,
        "ServiceChecks": checks.collect::<Vec<_>>(),
        "CreateIndex": session.created,
        "ModifyIndex": session.created,
    })
}
