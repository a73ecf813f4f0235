//! What is sent, in Consul's forms.

use std::collections::BTreeMap;

use serde::Serialize;
use serde_json::{Map, Value, json};

use super::Consul;
use crate::model::catalog::{CatalogCheck, CatalogNode, CheckKind, CheckRun, Instance};
use crate::model::units::Duration;
use crate::network::catalog::{CheckEntry, Found, InstanceEntry, NodeEntry};

fn tagged(instance: &Instance) -> Value {
    let all = instance.tagged_addresses.iter();
    let all = all.map(|(key, at)| (key.clone(), json!({ "Address": at.address, "Port": at.port })));
    Value::Object(all.collect::<Map<_, _>>())
}

/// A service as the agent of its host knows it.
pub fn agent_service(consul: &Consul, entry: &InstanceEntry) -> Value {
    let instance = &entry.instance;
    json!({
        "ID": instance.id,
        "Service": instance.service,
        "Tags": instance.tags,
        "Meta": instance.meta,
        "Port": instance.port,
        "Address": instance.address,
        "TaggedAddresses": tagged(instance),
        "Weights": { "Passing": instance.weights.passing, "Warning": instance.weights.warning },
        "EnableTagOverride": instance.enable_tag_override,
        "Datacenter": consul.datacenter,
    })
}

/// A service on a node.
pub fn node_service(entry: &InstanceEntry) -> Value {
    let instance = &entry.instance;
    json!({
        "ID": instance.id,
        "Service": instance.service,
        "Tags": instance.tags,
        "Address": instance.address,
        "TaggedAddresses": tagged(instance),
        "Meta": instance.meta,
        "Port": instance.port,
        "Weights": { "Passing": instance.weights.passing, "Warning": instance.weights.warning },
        "EnableTagOverride": instance.enable_tag_override,
        "Proxy": { "Mode": "", "MeshGateway": {}, "Expose": {} },
        "Connect": {},
        "PeerName": "",
        "CreateIndex": entry.created,
        "ModifyIndex": entry.modified,
    })
}

/// A node.
pub fn node(consul: &Consul, entry: &NodeEntry) -> Value {
    let node = &entry.node;
    json!({
        "ID": node.id,
        "Node": node.name,
        "Address": node.address,
        "Datacenter": consul.datacenter,
        "TaggedAddresses": node.tagged_addresses,
        "Meta": node.meta,
        "CreateIndex": entry.created,
        "ModifyIndex": entry.modified,
    })
}

/// A service with its node, flat.
pub fn catalog_service(consul: &Consul, found: &Found) -> Value {
    let (node, instance): (&CatalogNode, &Instance) = (&found.node.node, &found.entry.instance);
    json!({
        "ID": node.id,
        "Node": node.name,
        "Address": node.address,
        "Datacenter": consul.datacenter,
        "TaggedAddresses": node.tagged_addresses,
        "NodeMeta": node.meta,
        "ServiceKind": "",
        "ServiceID": instance.id,
        "ServiceName": instance.service,
        "ServiceTags": instance.tags,
        "ServiceAddress": instance.address,
        "ServiceTaggedAddresses": tagged(instance),
        "ServiceWeights": { "Passing": instance.weights.passing, "Warning": instance.weights.warning },
        "ServiceMeta": instance.meta,
        "ServicePort": instance.port,
        "ServiceEnableTagOverride": instance.enable_tag_override,
        "ServiceProxy": { "Mode": "", "MeshGateway": {}, "Expose": {} },
        "ServiceConnect": {},
        "CreateIndex": found.entry.created,
        "ModifyIndex": found.entry.modified,
    })
}

/// A service with its node and its checks.
pub fn health_service(consul: &Consul, found: &Found) -> Value {
    json!({
        "Node": node(consul, found.node),
        "Service": node_service(found.entry),
        "Checks": found.checks().map(|entry| check(found.node, entry)).collect::<Vec<_>>(),
    })
}

/// As Go reads it: hours are the largest unit.
pub fn go(period: Duration) -> String {
    let (seconds, millis) = (period.millis() / 1000, period.millis() % 1000);
    match (seconds, millis) {
        (0, _) => format!("{millis}ms"),
        (_, 0) if seconds % 60 == 0 => match (seconds / 3600, seconds / 60 % 60) {
            (0, minutes) => format!("{minutes}m0s"),
            (hours, minutes) => format!("{hours}h{minutes}m0s"),
        },
        (_, 0) => format!("{seconds}s"),
        _ => format!("{seconds}.{millis:03}s"),
    }
}

fn definition(run: &CheckRun) -> Value {
    #[derive(Serialize, Default)]
    #[serde(rename_all = "PascalCase")]
    struct Definition<'a> {
        #[serde(skip_serializing_if = "String::is_empty")]
        interval: String,
        #[serde(skip_serializing_if = "String::is_empty")]
        timeout: String,
        // Go's clients take no empty one.
        #[serde(skip_serializing_if = "String::is_empty")]
        deregister_critical_service_after: String,
        #[serde(rename = "HTTP")]
        http: &'a str,
        method: &'a str,
        header: Option<&'a BTreeMap<String, Vec<String>>>,
        body: &'a str,
        #[serde(rename = "TLSSkipVerify")]
        tls_skip_verify: bool,
        #[serde(rename = "TCP")]
        tcp: &'a str,
        #[serde(rename = "UDP", skip_serializing_if = "str::is_empty")]
        udp: &'a str,
        #[serde(skip_serializing_if = "Option::is_none")]
        script_args: Option<&'a Vec<String>>,
        #[serde(rename = "TTL", skip_serializing_if = "String::is_empty")]
        ttl: String,
        #[serde(rename = "GRPC", skip_serializing_if = "String::is_empty")]
        grpc: String,
        #[serde(rename = "GRPCUseTLS", skip_serializing_if = "std::ops::Not::not")]
        grpc_use_tls: bool,
        #[serde(rename = "DockerContainerID", skip_serializing_if = "str::is_empty")]
        docker_container_id: &'a str,
        alias_node: &'a str,
        alias_service: &'a str,
    }
    let mut out = Definition {
        interval: go(run.interval),
        timeout: go(run.timeout),
        deregister_critical_service_after: run.deregister_after.map(go).unwrap_or_default(),
        ..Definition::default()
    };
    match &run.kind {
        CheckKind::Ttl(ttl) => out.ttl = go(*ttl),
        CheckKind::Http(http) => {
            (out.http, out.method, out.body) = (&http.url, &http.method, &http.body);
            (out.header, out.tls_skip_verify) = (Some(&http.header), http.tls_skip_verify);
        }
        CheckKind::Tcp(address) => out.tcp = address,
        CheckKind::Udp(address) => out.udp = address,
        CheckKind::Grpc(grpc) => {
            (out.grpc, out.grpc_use_tls, out.tls_skip_verify) = (grpc.place(), grpc.tls, grpc.tls_skip_verify);
        }
        CheckKind::Container { container, command } => {
            (out.docker_container_id, out.script_args) = (container, Some(command));
        }
        CheckKind::Command(words) => out.script_args = Some(words),
        // Consul has no word for it.
        CheckKind::Script(_) => {}
        CheckKind::Alias { node, instance } => (out.alias_node, out.alias_service) = (node, instance),
    }
    serde_json::to_value(out).unwrap_or_default()
}

/// A check.
pub fn check(on: &NodeEntry, entry: &CheckEntry) -> Value {
    let check: &CatalogCheck = &entry.check;
    let about = on.instances.get(check.instance.as_str()).map(|entry| &entry.instance);
    json!({
        "Node": on.node.name,
        "CheckID": check.id,
        "Name": check.name,
        "Status": check.status.as_str(),
        "Notes": check.notes,
        "Output": check.output,
        "ServiceID": check.instance,
        "ServiceName": about.map_or("", |instance| &instance.service),
        "ServiceTags": about.map(|instance| instance.tags.clone()).unwrap_or_default(),
        "Type": check.run.as_ref().map_or("", |run| run.kind.as_str()),
        "Interval": check.run.as_ref().map(|run| go(run.interval)).unwrap_or_default(),
        "Timeout": check.run.as_ref().map(|run| go(run.timeout)).unwrap_or_default(),
        "ExposedPort": 0,
        "Definition": check.run.as_ref().map_or_else(|| json!({}), definition),
        "CreateIndex": entry.created,
        "ModifyIndex": entry.modified,
    })
}
