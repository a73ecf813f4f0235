//! `/v1/query`: prepared queries.

use std::sync::Arc;

use serde_json::{Value, json};

use super::input::Fields;
use super::{Call, Consul, Own, Reply, output};
use crate::model::query::Query;
use crate::model::units::Duration;
use crate::model::{Error, Result};
use crate::network::catalog::{State, Topic};

pub async fn answer(consul: &Arc<Consul>, call: &Call, method: &str, path: &[&str]) -> Result<Reply> {
    match (method, path) {
        ("POST", []) => {
            let query = read(&call.body.0)?;
            let (own, session) = (consul.own()?, query.session.clone());
            bound(&own, &session)?;
            let id = own.registry.prepare(query).await?;
            // It may have ended meanwhile, and nobody looks for this one any more.
            if let Err(error) = bound(&own, &session) {
                let _ = own.registry.forget_query_of(&id, &session).await;
                return Err(error);
            }
            Ok(Reply::Plain(json!({ "ID": id })))
        }
        ("GET", []) => {
            let all = |state: &State| state.queries.all().map(|query| shown(query)).collect();
            call.watch(consul, Topic::Queries, all).await
        }
        ("PUT", [id]) => {
            let query = Query { id: (*id).to_owned(), ..read(&call.body.0)? };
            let (own, session) = (consul.own()?, query.session.clone());
            bound(&own, &session)?;
            own.registry.prepare_anew(query).await?;
            if let Err(error) = bound(&own, &session) {
                let _ = own.registry.forget_query_of(id, &session).await;
                return Err(error);
            }
            Ok(Reply::Done)
        }
        ("DELETE", [id]) => consul.own()?.registry.forget_query(id).await.map(|()| Reply::Done),
        ("GET", [id]) => {
            let (index, found) = consul
                .catalog
                .read(|state| (state.index_of(&Topic::Queries), state.queries.by_id(id).map(|query| shown(query))));
            match found {
                Some(found) => Ok(Reply::Json(index, Value::Array(vec![found]))),
                None => Ok(Reply::Missing(index)),
            }
        }
        ("GET", [name, "execute"]) => execute(consul, call, name),
        ("GET", [name, "explain"]) => {
            let found = consul.catalog.read(|state| state.queries.find(name));
            let query = found.ok_or_else(|| Error::not_found(format!("query \"{name:.60}\"")))?;
            Ok(Reply::Plain(json!({ "Query": shown(&query) })))
        }
        _ => Err(Error::not_found(format!("{method} /v1/query/{:.60}", path.join("/")))),
    }
}

// An error for a session that is not there.
fn bound(own: &Own, session: &str) -> Result<()> {
    match session.is_empty() || own.kv.session(session)?.is_some() {
        true => Ok(()),
        false => Err(Error::invalid("query", format!("invalid session {session:.60?}"))),
    }
}

fn execute(consul: &Consul, call: &Call, name: &str) -> Result<Reply> {
    let limit = match call.value("limit").filter(|limit| !limit.is_empty()) {
        None => usize::MAX,
        Some(limit) => match limit.parse() {
            Ok(0) => usize::MAX,
            Ok(limit) => limit,
            Err(_) => return Err(Error::invalid("query", format!("limit: {limit:.20?} is not a whole number"))),
        },
    };
    consul.catalog.read(|state| {
        let query = state.queries.find(name).ok_or_else(|| Error::not_found(format!("query \"{name:.60}\"")))?;
        let mut found = state.queried(&query);
        if let Some(rights) = &call.rights {
            found.retain(|found| rights.sees_instance(found));
        }
        // In random order, as DNS has it.
        for left in (1..found.len()).rev() {
            found.swap(left, usize::try_from(consul.clock.random() % (left as u64 + 1)).unwrap_or_default());
        }
        found.truncate(limit);
        // The others are asked, and are none: there is one datacenter.
        let failovers = if found.is_empty() { query.datacenters.len() } else { 0 };
        let nodes: Vec<Value> = found.iter().map(|found| output::health_service(consul, found)).collect();
        let value = json!({
            "Service": query.service,
            "Nodes": nodes,
            "DNS": { "TTL": ttl(&query) },
            "Datacenter": consul.datacenter,
            "Failovers": failovers,
        });
        Ok(Reply::Json(state.index, value))
    })
}

fn ttl(query: &Query) -> String {
    query.ttl.map(|seconds| output::go(Duration::from_secs(seconds.into()))).unwrap_or_default()
}

fn read(body: &[u8]) -> Result<Query> {
    let mut fields = Fields::read(body)?;
    let mut template = fields.object("Template")?;
    let is_template = match template.text("Type")?.as_str() {
        "" => false,
        "name_prefix_match" => true,
        other => return Err(Error::invalid("query", format!("Bad Template.Type {other:.40?}"))),
    };
    let mut service = fields.object("Service")?;
    let mut failover = service.object("Failover")?;
    let seconds = |ttl: Duration| u32::try_from(ttl.millis() / 1000).unwrap_or(u32::MAX);
    let ttl = fields.object("DNS")?.duration("TTL")?.map(seconds);
    let query = Query {
        name: fields.text("Name")?,
        is_template,
        pattern: template.text("Regexp")?,
        remove_empty_tags: template.flag("RemoveEmptyTags")?,
        service: service.text("Service")?,
        only_passing: service.flag("OnlyPassing")?,
        ignore_checks: service.texts("IgnoreCheckIDs")?,
        tags: service.texts("Tags")?,
        node_meta: service.table("NodeMeta")?,
        service_meta: service.table("ServiceMeta")?,
        near: service.text("Near")?,
        nearest: failover.number("NearestN")?,
        datacenters: failover.texts("Datacenters")?,
        session: fields.text("Session")?,
        ttl,
        ..Query::default()
    };
    if query.service.is_empty() {
        return Err(Error::invalid("query", "Must provide a Service name to query"));
    }
    Ok(query)
}

fn shown(query: &Query) -> Value {
    let kind = if query.is_template { "name_prefix_match" } else { "" };
    json!({
        "ID": query.id,
        "Name": query.name,
        "Session": query.session,
        "Token": "",
        "Template": { "Type": kind, "Regexp": query.pattern, "RemoveEmptyTags": query.remove_empty_tags },
        "Service": {
            "Service": query.service,
            "Failover": { "NearestN": query.nearest, "Datacenters": query.datacenters },
            "OnlyPassing": query.only_passing,
            "IgnoreCheckIDs": query.ignore_checks,
            "Near": query.near,
            "Tags": query.tags,
            "NodeMeta": query.node_meta,
            "ServiceMeta": query.service_meta,
            "Connect": false,
        },
        "DNS": { "TTL": ttl(query) },
        "CreateIndex": query.created,
        "ModifyIndex": query.modified,
    })
}
