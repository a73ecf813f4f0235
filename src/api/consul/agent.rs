//! `/v1/agent`: this host, what is registered on it, and its checks.

use std::sync::Arc;

use serde_json::{Map, Value, json};

use super::input::Fields;
use super::{Call, Consul, LIKE, Reply, output, truth};
use crate::model::catalog::{CatalogCheck, CheckStatus, Origin, SERF_HEALTH};
use crate::model::{Error, Kind, Result};
use crate::network::catalog::{Found, NodeEntry};
use crate::runtime::catalog::Registration;

pub async fn answer(consul: &Arc<Consul>, call: &Call, method: &str, path: &[&str]) -> Result<Reply> {
    match (method, path) {
        ("GET", ["self"]) => Ok(Reply::Plain(itself(consul))),
        ("GET", ["members"]) => Ok(Reply::Plain(members(consul))),
        ("GET", ["services"]) => {
            let all = of_host(consul, |entry| {
                let all =
                    entry.instances.iter().map(|(id, known)| (id.to_string(), output::agent_service(consul, known)));
                Value::Object(all.collect::<Map<_, _>>())
            });
            call.filtered_table(all).map(Reply::Plain)
        }
        ("GET", ["service", id]) => service(consul, id),
        ("GET", ["checks"]) => {
            let all = of_host(consul, |entry| {
                let all = entry.checks.iter().filter(|(id, _)| &***id != SERF_HEALTH);
                let all = all.map(|(id, known)| (id.to_string(), output::check(entry, known)));
                Value::Object(all.collect::<Map<_, _>>())
            });
            call.filtered_table(all).map(Reply::Plain)
        }
        ("GET", ["health", "service", "id", id]) => health_by_id(consul, call, id),
        ("GET", ["health", "service", "name", name]) => health_by_name(consul, call, name),
        ("PUT", ["service", "register"]) => register(consul, call).await,
        ("PUT", ["service", "deregister", id]) => {
            consul.own()?.registry.deregister(&consul.host(), id).await.map(|()| Reply::Done)
        }
        ("PUT", ["service", "maintenance", id]) => {
            let host = &consul.host();
            if consul.catalog.read(|state| state.instance(host, id).is_none()) {
                return Err(Error::not_found(format!("service id \"{id:.70}\"")));
            }
            maintain(consul, call, Some(id)).await
        }
        ("PUT", ["maintenance"]) => maintain(consul, call, None).await,
        ("PUT", ["check", "register"]) => {
            let mut check = Fields::read(&call.body.0)?.check(Origin::Agent)?;
            if check.id.is_empty() {
                return Err(Error::invalid("check", "Missing check name"));
            }
            if check.run.is_none() {
                return Err(Error::invalid(
                    "check",
                    "Check must have a type: Args, HTTP, TCP, UDP, TTL or AliasService",
                ));
            }
            check.origin = Origin::Agent;
            consul.own()?.registry.register_check(&consul.host(), check).await.map(|()| Reply::Done)
        }
        ("PUT", ["check", "deregister", id]) => {
            consul.own()?.registry.deregister_check(&consul.host(), id).await.map(|()| Reply::Done)
        }
        ("PUT", ["check", word @ ("pass" | "warn" | "fail"), id]) => {
            let status = match *word {
                "pass" => CheckStatus::Passing,
                "warn" => CheckStatus::Warning,
                _ => CheckStatus::Critical,
            };
            let note = call.value("note").unwrap_or_default();
            consul.own()?.registry.say(&consul.host(), id, status, note).map(|()| Reply::Done)
        }
        ("PUT", ["check", "update", id]) => {
            let mut fields = Fields::read(&call.body.0)?;
            let status: CheckStatus = fields.text("Status")?.parse()?;
            let output = fields.text("Output")?;
            consul.own()?.registry.say(&consul.host(), id, status, &output).map(|()| Reply::Done)
        }
        _ => Err(Error::not_found(format!("{method} /v1/agent/{:.60}", path.join("/")))),
    }
}

fn of_host(consul: &Consul, make: impl FnOnce(&NodeEntry) -> Value) -> Value {
    consul.catalog.read(|state| match state.node(&consul.host()) {
        Some(entry) => make(entry),
        None => Value::Object(Map::new()),
    })
}

fn itself(consul: &Consul) -> Value {
    let (host, address) = (&consul.host(), consul.address());
    let node = consul.catalog.read(|state| state.node(host).map(|entry| entry.node.clone())).unwrap_or_default();
    json!({
        "Config": {
            "Datacenter": consul.datacenter,
            "PrimaryDatacenter": consul.datacenter,
            "NodeName": host,
            "NodeID": node.id,
            "Revision": "",
            "Server": true,
            "Version": LIKE,
            "VersionMetadata": concat!("neap-", env!("CARGO_PKG_VERSION")),
        },
        "Coord": null,
        "Member": member(host, &address, true),
        "Meta": node.meta,
    })
}

fn member(name: &str, address: &str, is_alive: bool) -> Value {
    json!({
        "Name": name,
        "Addr": address,
        "Port": 8301,
        "Tags": { "role": "consul" },
        "Status": if is_alive { 1 } else { 4 },
        "ProtocolMin": 1, "ProtocolMax": 5, "ProtocolCur": 2,
        "DelegateMin": 2, "DelegateMax": 5, "DelegateCur": 4,
    })
}

fn members(consul: &Consul) -> Value {
    consul.catalog.read(|state| {
        // Those that Neap watches over; other nodes are what clients say of them.
        let hosts = state.nodes().filter_map(|entry| {
            let serf = entry.checks.get(SERF_HEALTH)?;
            Some(member(&entry.node.name, &entry.node.address, serf.check.status == CheckStatus::Passing))
        });
        hosts.collect()
    })
}

fn service(consul: &Consul, id: &str) -> Result<Reply> {
    let found = consul.catalog.read(|state| {
        let found = state.instance(&consul.host(), id)?;
        Some(output::agent_service(consul, found.entry))
    });
    found.map(Reply::Plain).ok_or_else(|| Error::not_found(format!("service id \"{id:.70}\"")))
}

// The status is in the answer's own: 200, 429, 503.
fn coded(status: CheckStatus) -> u16 {
    match status {
        CheckStatus::Passing => 200,
        CheckStatus::Warning => 429,
        CheckStatus::Critical => 503,
    }
}

fn summed(consul: &Consul, found: &Found) -> Value {
    let checks = found.checks().map(|check| output::check(found.node, check)).collect::<Vec<_>>();
    json!({
        "AggregatedStatus": found.status().as_str(),
        "Service": output::agent_service(consul, found.entry),
        "Checks": checks,
    })
}

fn health_by_id(consul: &Consul, call: &Call, id: &str) -> Result<Reply> {
    let found = consul.catalog.read(|state| {
        let found = state.instance(&consul.host(), id)?;
        Some((found.status(), summed(consul, &found)))
    });
    let (status, value) = found.ok_or_else(|| Error::not_found(format!("ServiceId {id:.70}")))?;
    Ok(match call.value("format") == Some("text") {
        true => Reply::Status(coded(status), status.as_str().to_owned()),
        false => Reply::Other(coded(status), 1, value),
    })
}

fn health_by_name(consul: &Consul, call: &Call, name: &str) -> Result<Reply> {
    let found = consul.catalog.read(|state| {
        let own = state.instances(name).filter(|found| found.node.node.name.eq_ignore_ascii_case(&consul.host()));
        own.map(|found| (found.status(), summed(consul, &found))).collect::<Vec<_>>()
    });
    // The worst of them.
    let status = found.iter().map(|(status, _)| *status).max();
    let status = status.ok_or_else(|| Error::not_found(format!("ServiceName {name:.70}")))?;
    Ok(match call.value("format") == Some("text") {
        true => Reply::Status(coded(status), status.as_str().to_owned()),
        false => Reply::Other(coded(status), 1, found.into_iter().map(|(_, value)| value).collect()),
    })
}

async fn register(consul: &Arc<Consul>, call: &Call) -> Result<Reply> {
    let mut fields = Fields::read(&call.body.0)?;
    let mut given = fields.objects("Checks")?;
    if fields.has("Check") {
        given.insert(0, fields.object("Check")?);
    }
    given.retain(|check| !check.is_empty());
    let instance = fields.instance("Name", Origin::Agent)?;
    let count = given.len();
    let mut checks: Vec<CatalogCheck> = Vec::new();
    for (number, mut fields) in given.into_iter().enumerate() {
        let mut check = fields.own_check(Origin::Agent)?;
        if check.run.is_none() {
            return Err(Error::invalid("check", "Check must have a type: Args, HTTP, TCP, UDP, TTL or AliasService"));
        }
        if check.id.is_empty() {
            check.id = match count {
                1 => format!("service:{}", instance.id),
                _ => format!("service:{}:{}", instance.id, number + 1),
            };
        }
        if check.name.is_empty() {
            check.name = format!("Service '{}' check", instance.service);
        }
        check.instance.clone_from(&instance.id);
        if checks.iter().any(|known| known.id == check.id) {
            return Err(Error::new(Kind::Invalid, format!("check {:.60?}", check.id), "is given twice"));
        }
        checks.push(check);
    }
    let node = consul.host();
    let replace_checks = call.flag("replace-existing-checks");
    consul.own()?.registry.register(Registration { node, instance, checks, replace_checks }).await?;
    Ok(Reply::Done)
}

async fn maintain(consul: &Arc<Consul>, call: &Call, id: Option<&str>) -> Result<Reply> {
    let reason = call.value("reason").unwrap_or_default();
    let reason = match call.value("enable").map(|enable| (truth(enable), enable)) {
        Some((Some(true), _)) => Some(reason),
        Some((Some(false), _)) => None,
        Some((None, other)) => return Err(Error::invalid("query", format!("Invalid value for enable: {other:.20?}"))),
        None => return Err(Error::invalid("query", "Missing value for enable")),
    };
    consul.own()?.registry.maintain(&consul.host(), id, reason).await.map(|()| Reply::Done)
}
