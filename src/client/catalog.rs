//! The catalogue as it is asked for, shown and changed: nodes, services, instances, checks.

use std::collections::BTreeMap;

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::model::catalog::{
    CatalogCheck, CatalogNode, CheckKind, CheckRun, CheckStatus, GrpcCheck, HttpCheck, Instance, Origin, TaggedAddress,
    Weights, check_name,
};
use crate::model::units::Duration;
use crate::model::{Error, Result};

/// A node of the catalogue.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct FoundNode {
    /// Its name.
    pub name: String,
    /// Its identity, a UUID; empty where it has none.
    pub id: String,
    /// Where it is reached.
    pub address: String,
    /// What else is said of it.
    pub meta: BTreeMap<String, String>,
    /// The worst of its own checks.
    pub status: CheckStatus,
    /// How many instances are on it.
    pub instances: usize,
}

/// A service of the catalogue.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct FoundService {
    /// Its name.
    pub name: String,
    /// The tags of its instances.
    pub tags: Vec<String>,
    /// How many instances it has.
    pub instances: usize,
    /// How many of them pass.
    pub passing: usize,
    /// How many of them warn.
    pub warning: usize,
    /// How many of them are critical.
    pub critical: usize,
}

/// A check and how it is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct FoundCheck {
    /// Its id, unique on its node.
    pub id: String,
    /// What people call it.
    pub name: String,
    /// How it is.
    pub status: CheckStatus,
    /// What it last said.
    pub output: String,
    /// `ttl`, `http`, `tcp`, `script`, `alias`; empty where others say how it is.
    pub kind: String,
    /// Whether it is about the node, and with it about all that is on it.
    pub of_node: bool,
}

/// One of those that serve a service.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct FoundInstance {
    /// Its id, unique on its node.
    pub id: String,
    /// Its service.
    pub service: String,
    /// The node that it is on.
    pub node: String,
    /// Where it is reached: its own address, or its node's.
    pub address: String,
    /// Its port; 0: none.
    pub port: u16,
    /// What tells it from other instances.
    pub tags: Vec<String>,
    /// What else is said of it.
    pub meta: BTreeMap<String, String>,
    /// The worst of its checks.
    pub status: CheckStatus,
    /// Its node's checks, and its own.
    pub checks: Vec<FoundCheck>,
    /// Who says that it is there.
    pub origin: Origin,
}

/// Which instances of a service.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct InstancesAsk {
    /// Only those with this tag.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tag: Option<String>,
    /// Only those on this node.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub node: Option<String>,
    /// Only those whose checks all pass.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub passing: bool,
}

/// An instance to register.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Register {
    /// Its service.
    pub service: String,
    /// Its id, unique on its node; the service's name where it is not given.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub id: Option<String>,
    /// The node that it is on: a host of the cluster, or anything else that has a name; the daemon's host where it is not
    /// given. What is not known yet is made, with the address below.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub node: Option<String>,
    /// Where it is reached; the node's address where it is not given.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub address: Option<String>,
    /// Its port.
    #[serde(skip_serializing_if = "is_zero")]
    pub port: u16,
    /// What tells it from other instances.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub tags: Vec<String>,
    /// What else is said of it.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub meta: BTreeMap<String, String>,
    /// Its share in DNS answers while it passes (1).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub weight: Option<u16>,
    /// Its checks; those that it had before and that are not among these go.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub checks: Vec<RegisterCheck>,
}

fn is_zero(port: &u16) -> bool {
    *port == 0
}

/// A check to register: what is asked, how often, and what follows from the answers.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct RegisterCheck {
    /// Its id, unique on its node; made of the instance's id where it is not given.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub id: Option<String>,
    /// What people call it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// A URL to ask: 2xx passes, 429 warns, all else is critical.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub http: Option<String>,
    /// A `host:port` to connect to.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tcp: Option<String>,
    /// A gRPC server, `host:port`, or a service of it, `host:port/shop.Api`, that says SERVING.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub grpc: Option<String>,
    /// The registered check of this name is asked.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub script: Option<String>,
    /// Critical unless somebody reports how it is within that time.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ttl: Option<Duration>,
    /// Time from one run's start to the next one's (10s).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub every: Option<Duration>,
    /// How long one run may take (5s).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub timeout: Option<Duration>,
    /// Passes in a row until it passes (1).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub healthy: Option<u32>,
    /// Failures in a row until it is critical (1).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub unhealthy: Option<u32>,
    /// Critical for so long, its instance is deregistered; one minute at the least.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub deregister_after: Option<Duration>,
    /// How it is until it was asked for the first time (critical).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub status: Option<CheckStatus>,
}

/// How a check is, as somebody reports it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Report {
    /// How it is.
    pub status: CheckStatus,
    /// What there is to say.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub output: String,
}

/// Whether an instance is looked at by its checks, or is taken out for maintenance.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Maintenance {
    /// Whether it begins or ends.
    pub enable: bool,
    /// Why.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub reason: String,
}

/// All that clients have registered and written (instances, nodes, checks, keys, sessions, prepared queries), as one file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct CatalogSnapshot {
    /// An archive (.tar.gz) in base64.
    pub archive: String,
}

impl CatalogSnapshot {
    /// Of an archive.
    pub fn new(archive: &[u8]) -> Self {
        CatalogSnapshot { archive: BASE64_STANDARD.encode(archive) }
    }

    /// The archive.
    pub fn bytes(&self) -> Result<Vec<u8>> {
        let wrong = |error| Error::invalid("snapshot", "its archive is no base64").cause(error);
        BASE64_STANDARD.decode(&self.archive).map_err(wrong)
    }
}

/// What a snapshot has put back.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct CatalogRestored {
    /// Nodes, instances and checks that clients had registered.
    pub registrations: usize,
    /// Keys, sessions and prepared queries.
    pub others: usize,
    /// What was there and is not in it.
    pub removed: usize,
}

impl Register {
    /// What is registered where: the node, and with it what is on it.
    pub fn read(self, host: &str) -> Result<(CatalogNode, Instance, Vec<CatalogCheck>)> {
        check_name("service", &self.service)?;
        let id = self.id.unwrap_or_else(|| self.service.clone());
        let node = self.node.unwrap_or_else(|| host.to_owned());
        let address = self.address.unwrap_or_default();
        let count = self.checks.len();
        let mut checks = Vec::new();
        for (number, check) in self.checks.into_iter().enumerate() {
            let of = match count {
                1 => format!("service:{id}"),
                _ => format!("service:{id}:{}", number + 1),
            };
            checks.push(check.read(&id, of, &self.service)?);
        }
        let weights = self.weight.map_or_else(Weights::default, |passing| Weights { passing, ..Weights::default() });
        let instance = Instance {
            id,
            service: self.service,
            tags: self.tags,
            address: address.clone(),
            port: self.port,
            meta: self.meta,
            tagged_addresses: BTreeMap::<String, TaggedAddress>::new(),
            weights,
            enable_tag_override: false,
            origin: Origin::Agent,
        };
        Ok((CatalogNode { name: node, address, ..CatalogNode::default() }, instance, checks))
    }
}

impl RegisterCheck {
    fn read(self, instance: &str, id: String, service: &str) -> Result<CatalogCheck> {
        let id = self.id.unwrap_or(id);
        let wrong = |why: &str| Error::invalid(format!("check {id:.70?}"), why.to_owned());
        let mut kinds = Vec::new();
        kinds.extend(self.http.map(|url| CheckKind::Http(HttpCheck { url, ..HttpCheck::default() })));
        kinds.extend(self.tcp.map(CheckKind::Tcp));
        kinds.extend(self.grpc.map(|place| CheckKind::Grpc(GrpcCheck::parse(&place))));
        kinds.extend(self.script.map(CheckKind::Script));
        kinds.extend(self.ttl.map(CheckKind::Ttl));
        let kind = match (kinds.pop(), kinds.is_empty()) {
            (Some(kind), true) => kind,
            (None, _) => {
                return Err(wrong("says nothing that is asked").help("give one of http, tcp, grpc, script, ttl"));
            }
            (Some(_), false) => {
                return Err(wrong("says several things that are asked").help("make several checks of it"));
            }
        };
        if self.ttl.is_some_and(|ttl| ttl.millis() < 1000) {
            return Err(wrong("has a ttl below 1s"));
        }
        Ok(CatalogCheck {
            name: self.name.unwrap_or_else(|| format!("Service '{service}' check")),
            instance: instance.to_owned(),
            status: self.status.unwrap_or_default(),
            run: Some(CheckRun {
                kind,
                interval: self.every.unwrap_or(Duration::from_secs(10)).max(Duration::from_secs(1)),
                timeout: self.timeout.unwrap_or(Duration::from_secs(5)).max(Duration::from_millis(1)),
                success_before_passing: self.healthy.unwrap_or(1),
                failures_before_warning: 0,
                failures_before_critical: self.unhealthy.unwrap_or(1),
                deregister_after: self.deregister_after,
            }),
            origin: Origin::Agent,
            id,
            ..CatalogCheck::default()
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_check_asks_one_thing() {
        let read = |check: RegisterCheck| {
            let register = Register { service: "db".into(), checks: vec![check], ..Register::default() };
            register.read("here").map(|(node, instance, checks)| (node.name, instance.id, checks[0].id.clone()))
        };
        let tcp = RegisterCheck { tcp: Some("127.0.0.1:1".into()), ..RegisterCheck::default() };
        assert_eq!(read(tcp.clone()).unwrap(), ("here".into(), "db".into(), "service:db".into()));
        let nothing = read(RegisterCheck::default()).unwrap_err();
        assert!(nothing.to_string().contains("says nothing"), "{nothing}");
        let two = read(RegisterCheck { ttl: Some(Duration::from_secs(5)), ..tcp }).unwrap_err();
        assert!(two.to_string().contains("several things"), "{two}");
    }
}
