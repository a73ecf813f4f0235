//! `/v1/catalog`: nodes and services, and what clients say of others than their own host.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use serde_json::{Map, Value, json};

use super::health::{has_meta, has_tags};
use super::input::Fields;
use super::{Call, Consul, Reply, json, output};
use crate::model::catalog::Origin;
use crate::model::{Error, Kind, Result};
use crate::network::catalog::{State, Topic, key};

pub async fn answer(consul: &Arc<Consul>, call: &Call, method: &str, path: &[&str]) -> Result<Reply> {
    match (method, path) {
        ("GET", ["datacenters"]) => Ok(Reply::Json(1, Value::from(vec![consul.datacenter.clone()]))),
        ("GET", ["nodes"]) => {
            let all = |state: &State| {
                let all = state.nodes().filter(|entry| has_meta(call, entry));
                all.map(|entry| output::node(consul, entry)).collect()
            };
            call.watch(consul, Topic::Nodes, all).await
        }
        ("GET", ["services"]) => services(consul, call).await,
        ("GET", ["service", name]) => {
            let find = |state: &State| {
                let found = state
                    .instances(name)
                    .filter(|found| has_meta(call, found.node) && has_tags(call, &found.entry.instance.tags));
                found.map(|found| output::catalog_service(consul, &found)).collect()
            };
            call.watch(consul, Topic::Service(key(name)), find).await
        }
        ("GET", ["connect", name]) => call.watch(consul, Topic::Service(key(name)), |_| Vec::<()>::new()).await,
        ("GET", ["node", name]) => node(consul, call, name).await,
        ("GET", ["node-services", name]) => node_services(consul, call, name).await,
        ("PUT", ["register"]) => register(consul, call).await,
        ("PUT", ["deregister"]) => deregister(consul, call).await,
        _ => Err(Error::not_found(format!("{method} /v1/catalog/{:.60}", path.join("/")))),
    }
}

async fn services(consul: &Consul, call: &Call) -> Result<Reply> {
    let topic = Topic::Services;
    call.wait(consul, &topic).await?;
    let (index, all) = consul.catalog.read(|state| {
        let mut all: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
        for entry in state.nodes().filter(|entry| has_meta(call, entry)) {
            for (id, known) in &entry.instances {
                if let Some(filter) = &call.filter
                    && let Some(found) = state.instance(&entry.node.name, id)
                    && !filter.matches(&output::catalog_service(consul, &found))?
                {
                    continue;
                }
                let tags = all.entry(known.instance.service.clone()).or_default();
                tags.extend(known.instance.tags.iter().cloned());
            }
        }
        Ok::<_, Error>((state.index_of(&topic), all))
    })?;
    Ok(Reply::Json(index, json(&all)?))
}

// A node's name, where its id is given.
fn named(consul: &Consul, name: &str) -> String {
    let by_id = consul.catalog.read(|state| match state.node(name) {
        Some(_) => None,
        None => state.node_by_id(name).map(|entry| entry.node.name.clone()),
    });
    by_id.unwrap_or_else(|| name.to_owned())
}

async fn node(consul: &Consul, call: &Call, name: &str) -> Result<Reply> {
    let name = &named(consul, name);
    let topic = Topic::Node(key(name));
    call.wait(consul, &topic).await?;
    let (index, found) = consul.catalog.read(|state| {
        let found = state.node(name).map(|entry| {
            let services = entry.instances.iter().map(|(id, known)| (id.to_string(), output::node_service(known)));
            (output::node(consul, entry), Value::Object(services.collect::<Map<_, _>>()))
        });
        (state.index_of(&topic), found)
    });
    let Some((node, services)) = found else { return Ok(Reply::Json(index, Value::Null)) };
    Ok(Reply::Json(index, json!({ "Node": node, "Services": call.filtered_table(services)? })))
}

async fn node_services(consul: &Consul, call: &Call, name: &str) -> Result<Reply> {
    let name = &named(consul, name);
    let topic = Topic::Node(key(name));
    call.wait(consul, &topic).await?;
    let (index, found) = consul.catalog.read(|state| {
        let found = state.node(name).map(|entry| {
            let services = entry.instances.values().map(output::node_service);
            (output::node(consul, entry), services.collect::<Vec<_>>())
        });
        (state.index_of(&topic), found)
    });
    let Some((node, mut services)) = found else { return Ok(Reply::Json(index, Value::Null)) };
    if let Some(filter) = &call.filter {
        services = filter.keep(services)?;
    }
    Ok(Reply::Json(index, json!({ "Node": node, "Services": services })))
}

async fn register(consul: &Arc<Consul>, call: &Call) -> Result<Reply> {
    let mut fields = Fields::read(&call.body.0)?;
    let node = fields.node()?;
    if node.name.is_empty() {
        return Err(Error::invalid("request body", "Must provide node and address"));
    }
    let instance = match fields.has("Service") {
        true => Some(fields.object("Service")?.instance("Service", Origin::Catalog)?),
        false => None,
    };
    let mut checks = fields.objects("Checks")?;
    if fields.has("Check") {
        checks.push(fields.object("Check")?);
    }
    checks.retain(|check| !check.is_empty());
    let mut read = Vec::new();
    for mut fields in checks {
        let mut check = fields.check(Origin::Catalog)?;
        if check.instance.is_empty()
            && fields.has("ServiceName")
            && let Some(instance) = &instance
        {
            check.instance.clone_from(&instance.id);
        }
        read.push(check);
    }
    let keep_node = fields.flag("SkipNodeUpdate")?;
    consul.own()?.registry.register_node(node, instance, read, keep_node).await?;
    Ok(Reply::Plain(Value::Bool(true)))
}

async fn deregister(consul: &Consul, call: &Call) -> Result<Reply> {
    let mut fields = Fields::read(&call.body.0)?;
    let (node, service, check) = (fields.text("Node")?, fields.text("ServiceID")?, fields.text("CheckID")?);
    if node.is_empty() {
        return Err(Error::invalid("request body", "Must provide node"));
    }
    let result = if !service.is_empty() {
        consul.own()?.registry.deregister(&node, &service).await
    } else if !check.is_empty() {
        consul.own()?.registry.deregister_check(&node, &check).await
    } else {
        consul.own()?.registry.deregister_node(&node).await
    };
    match result {
        // What is gone is gone.
        Err(error) if error.kind == Kind::NotFound => Ok(Reply::Plain(Value::Bool(true))),
        other => other.map(|()| Reply::Plain(Value::Bool(true))),
    }
}
