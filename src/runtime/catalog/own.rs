//! The catalogue for Neap's own clients: what `trait Cluster` says of it.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc;

use super::{Registration, Registry};
use crate::client::catalog::{
    FoundCheck, FoundInstance, FoundNode, FoundService, InstancesAsk, Maintenance, Register, Report,
};
use crate::model::bundle::HostedKind;
use crate::model::catalog::{CheckKind, CheckStatus};
use crate::model::{Error, Result};
use crate::network::catalog::{Found, NodeEntry, State, Topic, key};

/// How often a watch looks whether somebody is still there.
const LOOK: Duration = Duration::from_secs(60);

fn check(entry: &crate::network::catalog::CheckEntry) -> FoundCheck {
    let check = &entry.check;
    FoundCheck {
        id: check.id.clone(),
        name: check.name.clone(),
        status: check.status,
        output: check.output.clone(),
        kind: check.run.as_ref().map_or("", |run| run.kind.as_str()).to_owned(),
        of_node: check.instance.is_empty(),
    }
}

fn instance(found: &Found) -> FoundInstance {
    let instance = &found.entry.instance;
    FoundInstance {
        id: instance.id.clone(),
        service: instance.service.clone(),
        node: found.node.node.name.clone(),
        address: found.address().to_owned(),
        port: instance.port,
        tags: instance.tags.clone(),
        meta: instance.meta.clone(),
        status: found.status(),
        checks: found.checks().map(check).collect(),
        origin: instance.origin,
    }
}

fn node(entry: &NodeEntry) -> FoundNode {
    FoundNode {
        name: entry.node.name.clone(),
        id: entry.node.id.clone(),
        address: entry.node.address.clone(),
        meta: entry.node.meta.clone(),
        status: entry.checks_of("").map(|known| known.check.status).max().unwrap_or(CheckStatus::Passing),
        instances: entry.instances.len(),
    }
}

fn service(state: &State, name: &str) -> FoundService {
    let mut all =
        FoundService { name: name.to_owned(), tags: Vec::new(), instances: 0, passing: 0, warning: 0, critical: 0 };
    let mut tags = BTreeSet::new();
    for found in state.instances(name) {
        tags.extend(found.entry.instance.tags.iter().cloned());
        all.instances += 1;
        *match found.status() {
            CheckStatus::Passing => &mut all.passing,
            CheckStatus::Warning => &mut all.warning,
            CheckStatus::Critical => &mut all.critical,
        } += 1;
    }
    all.tags = tags.into_iter().collect();
    all
}

fn chosen(state: &State, service: &str, ask: &InstancesAsk) -> Vec<FoundInstance> {
    let is_chosen = |found: &Found| {
        ask.tag.as_ref().is_none_or(|tag| found.entry.instance.tags.iter().any(|known| known.eq_ignore_ascii_case(tag)))
            && ask.node.as_ref().is_none_or(|node| found.node.node.name.eq_ignore_ascii_case(node))
            && (!ask.passing || found.status() == CheckStatus::Passing)
    };
    state.instances(service).filter(is_chosen).map(|found| instance(&found)).collect()
}

impl Registry {
    /// All nodes, by name.
    pub fn nodes(&self) -> Vec<FoundNode> {
        self.catalog.read(|state| state.nodes().map(node).collect())
    }

    /// All services, by name.
    pub fn services(&self) -> Vec<FoundService> {
        self.catalog.read(|state| state.services().map(|name| service(state, name)).collect())
    }

    /// Instances of a service, by node and id; none where there is no such service.
    pub fn instances(&self, service: &str, ask: &InstancesAsk) -> Vec<FoundInstance> {
        self.catalog.read(|state| chosen(state, service, ask))
    }

    /// The instances now, and again after each change of them.
    pub fn watch_instances(&self, service: &str, ask: InstancesAsk, sender: mpsc::Sender<Result<Vec<FoundInstance>>>) {
        let (catalog, service) = (self.catalog.clone(), service.to_owned());
        tokio::spawn(async move {
            let topic = Topic::Service(key(&service));
            let mut last = None;
            loop {
                let (index, now) = catalog.read(|state| (state.index_of(&topic), chosen(state, &service, &ask)));
                if last.as_ref() != Some(&now) {
                    last = Some(now.clone());
                    if sender.send(Ok(now)).await.is_err() {
                        return;
                    }
                }
                tokio::select! {
                    () = catalog.wait(&topic, index, LOOK) => {}
                    () = sender.closed() => return,
                }
            }
        });
    }

    /// Registers an instance, and its node where that is not known. Durable when it returns.
    pub async fn register_own(self: &Arc<Self>, register: Register) -> Result<FoundInstance> {
        let (mut node, instance, checks) = register.read(&self.host)?;
        let (name, id, address) = (node.name.clone(), instance.id.clone(), node.address.clone());
        let scripted = checks.iter().filter_map(|check| match &check.run.as_ref()?.kind {
            CheckKind::Script(script) => Some(script),
            _ => None,
        });
        for script in scripted {
            let host = self.scripts.as_ref().ok_or_else(|| Error::not_found(format!("check \"{script:.70}\"")))?;
            host.find(&*host.registered(None)?, HostedKind::Check, script)?;
        }
        let known = self.catalog.read(|state| state.node(&name).map(|entry| entry.node.clone()));
        match known {
            Some(_) => {
                let registration = Registration { node: name.clone(), instance, checks, replace_checks: true };
                self.register(registration).await?;
            }
            None if address.is_empty() => {
                return Err(Error::not_found(format!("node \"{name:.70}\""))
                    .help("`neap catalog nodes` lists those that are known; with an address it is made"));
            }
            None => {
                node.meta = BTreeMap::new();
                self.register_node(node, Some(instance), checks, true).await?;
            }
        }
        let made = self.catalog.read(|state| Some(self::instance(&state.instance(&name, &id)?)));
        made.ok_or_else(|| Error::not_found(format!("service id \"{id:.70}\"")))
    }

    /// The service of an instance; an error that says which are there.
    pub fn service_of(&self, node: Option<&str>, id: &str) -> Result<String> {
        let node = node.unwrap_or(&self.host);
        let found = self.catalog.read(|state| Some(state.instance(node, id)?.entry.instance.service.clone()));
        found.ok_or_else(|| self.missing(node, id))
    }

    fn missing(&self, node: &str, id: &str) -> Error {
        self.catalog.read(|state| {
            let Some(entry) = state.node(node) else {
                let names: Vec<&str> = state.nodes().map(|entry| entry.node.name.as_str()).collect();
                let hint = crate::model::suggest::hint(node, names.iter().copied());
                return Error::not_found(format!("node \"{node:.70}\""))
                    .help(format!("`neap catalog nodes` lists them{hint}"));
            };
            let hint = crate::model::suggest::hint(id, entry.instances.keys().map(|id| &**id));
            let others = state.nodes().filter(|other| other.instances.contains_key(id));
            let others: Vec<&str> = others.map(|entry| entry.node.name.as_str()).collect();
            let help = match others.as_slice() {
                [] => format!("`neap catalog instances SERVICE` lists them{hint}"),
                nodes => format!("there is one on {}; name its node", nodes.join(", ")),
            };
            Error::not_found(format!("service id \"{id:.70}\" on node \"{node:.70}\"")).help(help)
        })
    }

    /// Removes an instance; of the daemon's host where no node is named. Durable when it returns.
    pub async fn deregister_own(self: &Arc<Self>, node: Option<&str>, id: &str) -> Result<()> {
        self.service_of(node, id)?;
        self.deregister(node.unwrap_or(&self.host), id).await
    }

    /// Says how a check with a TTL is.
    pub fn report(&self, node: Option<&str>, check: &str, report: &Report) -> Result<()> {
        self.say(node.unwrap_or(&self.host), check, report.status, &report.output)
    }

    /// Begins or ends an instance's maintenance. Durable when it returns.
    pub async fn maintain_own(
        self: &Arc<Self>,
        node: Option<&str>,
        id: &str,
        maintenance: &Maintenance,
    ) -> Result<FoundInstance> {
        self.service_of(node, id)?;
        let node = node.unwrap_or(&self.host);
        self.maintain(node, Some(id), maintenance.enable.then_some(maintenance.reason.as_str())).await?;
        let now = self.catalog.read(|state| Some(instance(&state.instance(node, id)?)));
        now.ok_or_else(|| self.missing(node, id))
    }
}
