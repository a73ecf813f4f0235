//! What the Swarm schedules itself: listed, described, made and removed.

mod describe;
mod output;
mod place;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, HashMap};

use async_trait::async_trait;
use base64::Engine as _;
use bollard::models::{
    EndpointPortConfig, EndpointPortConfigPublishModeEnum, HealthConfig, Service, ServiceSpec as SwarmSpec, Task,
    TaskSpec, TaskState as SwarmTaskState,
};
use bollard::query_parameters::{InspectNetworkOptions, InspectServiceOptions, ListServicesOptions, ListTasksOptions};
use serde_json::Value;
use tokio::sync::mpsc;

use self::output::Output;
use super::Shared;
use super::objects::VALUE;
use crate::engines::LogQuery;
use crate::engines::docker::{networks, raw, spec, trouble};
use crate::engines::native::{Described, NativeLine, Natives, Wanted};
use crate::model::native::{NativePort, NativeService, NativeTask, PublishMode};
use crate::model::{Error, Result};

/// The label of a native service that was made for this cluster's: only such a one is changed.
const RELEASED: &str = "neap.released";
/// The same of one that is this cluster's, and the label that tells its state.
const MANAGED: &str = "neap.native";
const MARK: &str = "neap.mark";
/// The label by which tasks of one revision are told from those of another.
const REVISION: &str = "neap.revision";

fn subject(name: &str) -> String {
    format!("Swarm service \"{name:.70}\"")
}

fn missing(name: &str) -> Error {
    Error::not_found(subject(name)).help("`neap service ls` shows the Swarm's own services too")
}

#[async_trait]
impl Natives for Shared {
    async fn list(&self, only: Option<&str>) -> Result<Vec<NativeService>> {
        let failed = |error| trouble::error("Swarm", "list its services", &error);
        let filter = |key: &str| only.map(|name| HashMap::from([(key.to_owned(), vec![name.to_owned()])]));
        let options = ListServicesOptions { filters: filter("name"), status: Some(true) };
        let mut services = self.docker.list_services(Some(options)).await.map_err(failed)?;
        if only.is_some() && services.is_empty() {
            let options = ListServicesOptions { filters: filter("id"), status: Some(true) };
            services = self.docker.list_services(Some(options)).await.map_err(failed)?;
        }
        // A filter takes beginnings as well, and a name counts before an id.
        let named = services.iter().any(|service| Some(name_of(service)) == only);
        services.retain(|service| {
            let is_it = |name: &str| match named {
                true => name_of(service) == name,
                false => service.id.as_deref() == Some(name),
            };
            only.is_none_or(is_it) && !self.is_task(service)
        });
        if services.is_empty() {
            return Ok(Vec::new());
        }
        let filters = match services.as_slice() {
            [one] => Some(HashMap::from([("service".to_owned(), vec![one.id.clone().unwrap_or_default()])])),
            _ => None,
        };
        let tasks = self.docker.list_tasks(Some(ListTasksOptions { filters })).await;
        let tasks = tasks.map_err(|error| trouble::error("Swarm", "list its tasks", &error))?;
        let networks = self.network_names().await?;
        let mut found: Vec<NativeService> = services.iter().map(|one| self.shown(one, &tasks, &networks)).collect();
        found.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(found)
    }

    async fn describe(&self, name: &str) -> Result<Described> {
        let found = self.list(Some(name)).await?.into_iter().next().ok_or_else(|| missing(name))?;
        let service = self.inspect(&found.id).await?.ok_or_else(|| missing(name))?;
        let ports = service.endpoint.and_then(|endpoint| endpoint.ports).unwrap_or_default();
        let mut spec = service.spec.unwrap_or_default();
        let networks = self.networks_of(&spec).await?;
        let health = self.health(service.id.as_deref().unwrap_or_default()).await?;
        let told = health.is_some();
        if let Some(container) = spec.task_template.as_mut().and_then(|template| template.container_spec.as_mut()) {
            container.health_check = health.flatten();
        }
        let mut described = describe::described(&spec, &networks, &ports, self.is_mixed());
        if !told {
            described.notes.push("health check: cannot be told over this connection; say it with --change".into());
        }
        (described.id, described.name) = (found.id, found.name);
        self.under_our_names(&mut described).await?;
        Ok(described)
    }

    async fn place(&self, wanted: Wanted) -> Result<()> {
        place::place(self, wanted).await
    }

    async fn logs(
        &self,
        name: &str,
        slot: Option<String>,
        query: LogQuery,
        follow: bool,
    ) -> Result<mpsc::Receiver<Result<Vec<NativeLine>>>> {
        let found = self.list(Some(name)).await?.into_iter().next().ok_or_else(|| missing(name))?;
        let (docker, nodes) = (self.docker.clone(), self.nodes.clone());
        let output = Output { docker, nodes, service: found.id, name: found.name, slot };
        Ok(output.read(query, follow))
    }

    async fn remove(&self, id: &str) -> Result<()> {
        match self.docker.delete_service(id).await {
            Ok(()) => Ok(()),
            Err(error) if trouble::is_status(&error, 404) => Ok(()),
            Err(error) => Err(trouble::error(subject(id), "remove it", &error)),
        }
    }

    async fn withdraw(&self, name: &str) -> Result<()> {
        match self.placed(name).await? {
            // By its id: Docker takes the beginning of another's for it, where nothing has that name.
            Some((service, true)) => self.remove(&service.id.unwrap_or_default()).await,
            _ => Ok(()),
        }
    }
}

fn name_of(service: &Service) -> &str {
    service.spec.as_ref().and_then(|spec| spec.name.as_deref()).unwrap_or_default()
}

impl Shared {
    fn is_task(&self, service: &Service) -> bool {
        let labels = service.spec.as_ref().and_then(|spec| spec.labels.as_ref());
        labels.is_some_and(|labels| spec::task_of(labels, &self.cluster).is_some())
    }

    async fn inspect(&self, name: &str) -> Result<Option<Service>> {
        match self.docker.inspect_service(name, None::<InspectServiceOptions>).await {
            Ok(service) => Ok(Some(service)),
            Err(error) if trouble::is_status(&error, 404) => Ok(None),
            Err(error) => Err(trouble::error(subject(name), "look it up", &error)),
        }
    }

    // What was given to it from here goes by the name that it has here; what configs hold is looked up.
    async fn under_our_names(&self, described: &mut Described) -> Result<()> {
        let ours = |labels: Option<HashMap<String, String>>| labels.and_then(|mut labels| labels.remove(VALUE));
        for (_, used) in described.service.get_mut("secrets").and_then(Value::as_object_mut).into_iter().flatten() {
            let name = named(used).as_str().unwrap_or_default().to_owned();
            let secret = self.docker.inspect_secret(&name).await;
            let secret = secret.map_err(|error| trouble::error(format!("secret \"{name}\""), "look it up", &error))?;
            if let Some(name) = ours(secret.spec.and_then(|spec| spec.labels)) {
                *named(used) = Value::String(name);
            }
        }
        for (name, _) in std::mem::take(&mut described.configs) {
            let subject = || format!("config \"{name}\"");
            let config = self.docker.inspect_config(&name).await;
            let spec = config.map_err(|error| trouble::error(subject(), "read it", &error))?.spec.unwrap_or_default();
            let value = base64::engine::general_purpose::STANDARD
                .decode(spec.data.unwrap_or_default())
                .map_err(|error| Error::internal(subject(), "cannot be read").cause(error))?;
            let called = ours(spec.labels).unwrap_or_else(|| name.clone());
            for (_, used) in described.service.get_mut("configs").and_then(Value::as_object_mut).into_iter().flatten() {
                if *named(used) == *name {
                    *named(used) = Value::String(called.clone());
                }
            }
            described.configs.insert(called, value);
        }
        Ok(())
    }

    // None where it cannot be told whether there is one (docker/raw.rs).
    async fn health(&self, id: &str) -> Result<Option<Option<HealthConfig>>> {
        let whole = raw::get(&self.address, &self.docker, &format!("/services/{id}")).await?;
        let Some(whole) = whole else { return Ok(None) };
        let Some(health) = whole.pointer("/Spec/TaskTemplate/ContainerSpec/Healthcheck") else { return Ok(Some(None)) };
        let health = serde_json::from_value(health.clone());
        health
            .map(Some)
            .map(Some)
            .map_err(|error| Error::internal(subject(id), "has no readable health check").cause(error))
    }

    // The service of this very name, and whether it was made here.
    async fn placed(&self, name: &str) -> Result<Option<(Service, bool)>> {
        let Some(found) = self.list(Some(name)).await?.into_iter().find(|native| native.name == name) else {
            return Ok(None);
        };
        let Some(service) = self.inspect(&found.id).await? else { return Ok(None) };
        let labels = service.spec.as_ref().and_then(|spec| spec.labels.as_ref());
        let has = |key: &str| labels.and_then(|labels| labels.get(key)) == Some(&self.cluster);
        let ours = has(RELEASED) || has(MANAGED);
        Ok(Some((service, ours)))
    }

    // Nodes of more than one platform.
    fn is_mixed(&self) -> bool {
        let nodes = self.nodes.known.borrow();
        nodes.iter().any(|node| (&node.os, &node.arch) != (&nodes[0].os, &nodes[0].arch))
    }

    // The names of its networks by id; those that Swarm has from the start are in no list.
    async fn networks_of(&self, spec: &SwarmSpec) -> Result<BTreeMap<String, String>> {
        let mut known = self.network_names().await?;
        let template = spec.task_template.as_ref().and_then(|template| template.networks.as_ref());
        for network in template.or(spec.networks.as_ref()).into_iter().flatten() {
            let Some(id) = network.target.as_ref().filter(|id| !known.contains_key(*id)) else { continue };
            let options = InspectNetworkOptions { scope: Some("swarm".into()), ..InspectNetworkOptions::default() };
            match self.docker.inspect_network(id, Some(options)).await {
                Ok(found) => drop(known.insert(id.clone(), found.name.unwrap_or_default())),
                Err(error) if trouble::is_status(&error, 404) => {}
                Err(error) => return Err(trouble::error(format!("network \"{id}\""), "look it up", &error)),
            }
        }
        Ok(known)
    }

    async fn network_names(&self) -> Result<BTreeMap<String, String>> {
        let known = networks::list(&self.docker).await?;
        Ok(known.into_iter().map(|network| (network.id, network.name)).collect())
    }

    fn shown(&self, service: &Service, tasks: &[Task], networks: &BTreeMap<String, String>) -> NativeService {
        let spec = service.spec.clone().unwrap_or_default();
        let name = spec.name.clone().unwrap_or_default();
        let labels = spec.labels.clone().unwrap_or_default();
        let mark = labels.get(MARK).filter(|_| labels.get(MANAGED) == Some(&self.cluster)).cloned();
        let template = spec.task_template.clone().unwrap_or_default();
        let mode = spec.mode.clone().unwrap_or_default();
        let status = service.service_status.clone().unwrap_or_default();
        let count = |number: u64| u32::try_from(number).unwrap_or(u32::MAX);
        let (mode, desired) = match (&mode.replicated, &mode.global, &mode.replicated_job) {
            (Some(replicated), ..) => {
                ("replicated", u32::try_from(replicated.replicas.unwrap_or_default()).unwrap_or_default())
            }
            (_, Some(_), _) => ("global", count(status.desired_tasks.unwrap_or_default())),
            (.., Some(_)) => ("replicated-job", count(status.desired_tasks.unwrap_or_default())),
            _ => ("global-job", count(status.desired_tasks.unwrap_or_default())),
        };
        let wanted = spec.endpoint_spec.clone().and_then(|endpoint| endpoint.ports).unwrap_or_default();
        let given = service.endpoint.clone().and_then(|endpoint| endpoint.ports).unwrap_or_default();
        let on_hosts: Vec<&EndpointPortConfig> =
            wanted.iter().filter(|port| port.publish_mode == Some(EndpointPortConfigPublishModeEnum::HOST)).collect();
        let mut own: Vec<&Task> = tasks.iter().filter(|task| task.service_id == service.id).collect();
        own.sort_by_key(|task| (task.slot, std::cmp::Reverse(super::watch::created(task))));
        // One that is replaced as a whole, or lacks a port that it is to have, is not what is wanted.
        let serves = |task: &&&Task| {
            let has = task.status.as_ref().and_then(|status| status.port_status.as_ref()?.ports.clone());
            let has = |port: &&&EndpointPortConfig| {
                has.iter().flatten().any(|other| {
                    other.target_port == port.target_port
                        && (port.published_port.is_none() || other.published_port == port.published_port)
                })
            };
            let forced =
                |template: Option<&TaskSpec>| template.and_then(|template| template.force_update).unwrap_or_default();
            let revision = |template: Option<&TaskSpec>| {
                template.and_then(|template| template.container_spec.as_ref()?.labels.as_ref()?.get(REVISION).cloned())
            };
            forced(task.spec.as_ref()) == forced(spec.task_template.as_ref())
                && revision(task.spec.as_ref()) == revision(spec.task_template.as_ref())
                && super::watch::state(task) == SwarmTaskState::RUNNING
                && task.desired_state == Some(SwarmTaskState::RUNNING)
                && on_hosts.iter().filter(|port| !has(port)).count() == 0
        };
        let running = own.iter().filter(serves).count();
        let said = |task: &&Task| task.status.as_ref().and_then(|status| status.err.clone()).filter(|e| !e.is_empty());
        let reason = if running < desired as usize {
            let newest = own.iter().max_by_key(|task| (said(task).is_some(), super::watch::created(task)));
            newest.and_then(said)
        } else {
            None
        };
        let published = |port: &EndpointPortConfig| {
            let same =
                |other: &&EndpointPortConfig| other.target_port == port.target_port && other.protocol == port.protocol;
            let found = port.published_port.or_else(|| given.iter().find(same)?.published_port);
            found.and_then(|port| u16::try_from(port).ok()).filter(|port| *port > 0)
        };
        let attached = template.networks.or(spec.networks).unwrap_or_default();
        NativeService {
            id: service.id.clone().unwrap_or_default(),
            image: template.container_spec.and_then(|container| container.image).unwrap_or_default(),
            mode: mode.to_owned(),
            desired,
            running: u32::try_from(running).unwrap_or(u32::MAX),
            ports: wanted
                .iter()
                .map(|port| NativePort {
                    published: published(port),
                    target: u16::try_from(port.target_port.unwrap_or_default()).unwrap_or_default(),
                    protocol: port.protocol.map_or_else(|| "tcp".into(), |protocol| protocol.to_string()),
                    mode: match port.publish_mode {
                        Some(EndpointPortConfigPublishModeEnum::HOST) => PublishMode::Host,
                        _ => PublishMode::Ingress,
                    },
                })
                .collect(),
            networks: attached
                .into_iter()
                .filter_map(|network| {
                    let id = network.target?;
                    Some(networks.get(&id).cloned().unwrap_or(id))
                })
                .collect(),
            reason,
            mark,
            refused: None,
            update: service
                .update_status
                .as_ref()
                .and_then(|status| status.state)
                .map(|state| state.to_string())
                .filter(|text| !text.is_empty()),
            tasks: own.iter().map(|task| self.task_shown(&name, task)).collect(),
            name,
        }
    }

    fn task_shown(&self, service: &str, task: &Task) -> NativeTask {
        let node = task.node_id.clone().filter(|id| !id.is_empty());
        let host = node.as_ref().map(|id| self.nodes.hostname(id).unwrap_or_else(|| id.clone()));
        let slot = match task.slot.filter(|slot| *slot > 0) {
            Some(slot) => slot.to_string(),
            None => host.clone().unwrap_or_default(),
        };
        let status = task.status.clone().unwrap_or_default();
        NativeTask {
            name: format!("{service}.{slot}"),
            node: host,
            state: status.state.map(|state| state.to_string()).unwrap_or_default(),
            wanted: task.desired_state.map(|state| state.to_string()).unwrap_or_default(),
            reason: status.err.filter(|text| !text.is_empty()),
        }
    }
}

// Where the name is, in a secret or config that is written short or with an owner.
fn named(used: &mut Value) -> &mut Value {
    if used.is_object() { &mut used["name"] } else { used }
}
