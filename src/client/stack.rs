//! Applies a stack: what it needs, then its services, each once those that it waits for are so far.

use std::time::Duration;

use futures_util::StreamExt;

use super::kv::{ValueKind, ValueSet};
use super::{Apply, Cluster, Only, ServiceStatus, wait};
use crate::model::bundle::Bundle;
use crate::model::objects::{NetworkInfo, NetworkSpec};
use crate::model::stack::{NAMESPACE, Stack, StackNetwork, Until};
use crate::model::task::TaskState;
use crate::model::{Error, Kind, Result};

/// How a stack is applied.
#[derive(Debug, Clone)]
pub struct Deploy {
    /// Remove services of the stack that it does not name any more.
    pub prune: bool,
    /// Wait until all is as described.
    pub wait: bool,
    /// How long each wait may take.
    pub timeout: Duration,
    /// Hosted scripts that its services bring along.
    pub with: Option<Bundle>,
}

/// What happens on the way.
pub enum Step<'a> {
    /// Something was made, set, applied or removed.
    Done(&'a str, &'a str),
    /// A service is waited for.
    Waits(&'a ServiceStatus),
}

/// Told of each step.
pub type Tell<'a> = &'a mut (dyn FnMut(Step<'_>) + Send);

/// The stack that a service belongs to.
pub fn of(status: &ServiceStatus) -> Option<&str> {
    status.service.spec.labels.get(NAMESPACE).map(String::as_str)
}

/// Applies it. What was done before an error stays; done again, it goes on from there.
pub async fn deploy(cluster: &dyn Cluster, stack: &Stack, ask: &Deploy, tell: Tell<'_>) -> Result<Vec<ServiceStatus>> {
    let order = stack.order()?;
    let known = match stack.networks.is_empty() {
        true => Vec::new(),
        false => cluster.networks().await?,
    };
    for network in stack.networks.values() {
        if let Some(spec) = missing(network, &known)? {
            cluster.create_network(spec.clone()).await?;
            tell(Step::Done("network created", &spec.name));
        }
    }
    for (of, values) in [(ValueKind::Secret, &stack.secrets), (ValueKind::Config, &stack.configs)] {
        for value in values.values() {
            let Some(text) = &value.value else { continue };
            // The services that use it are applied right after.
            let set = ValueSet { value: text.clone(), no_rollout: true, ..ValueSet::default() };
            let change = cluster.set_value(of, &value.name, set).await?;
            tell(Step::Done(&format!("{} version {}", of.as_str(), change.info.version), &value.name));
        }
    }
    let mut applied = Vec::new();
    for key in order {
        let spec = &stack.services[&key];
        for (needed, until) in stack.depends_on.get(&key).into_iter().flatten() {
            let name = stack.service(needed)?;
            reach(cluster, name, *until, ask.timeout, tell).await?;
        }
        let service = Apply { service: spec.clone(), with: ask.with.clone(), only: Only::Either };
        let status = cluster.apply(service).await?;
        tell(Step::Done("service applied", status.service.spec.name.as_str()));
        applied.push(status);
    }
    if ask.prune {
        for status in cluster.services().await? {
            let name = status.service.spec.name.as_str();
            let named = applied.iter().any(|applied| applied.service.spec.name.as_str() == name);
            if of(&status) == Some(stack.name.as_str()) && !named {
                cluster.remove(name).await?;
                tell(Step::Done("service removed", name));
            }
        }
    }
    if ask.wait {
        for status in &mut applied {
            let (name, before) = (status.service.spec.name.to_string(), status.release.clone());
            let mut progress = |status: &ServiceStatus| tell(Step::Waits(status));
            *status = wait::settled(cluster, &name, before.as_ref(), ask.timeout, &mut progress).await?;
        }
    }
    Ok(applied)
}

// The network to make, where there is none; an error where there is another one, or none that there should be.
fn missing<'a>(network: &'a StackNetwork, known: &[NetworkInfo]) -> Result<Option<&'a NetworkSpec>> {
    let spec = &network.spec;
    let subject = || format!("network \"{}\"", spec.name);
    match known.iter().find(|known| known.name == spec.name) {
        None if network.external => Err(Error::not_found(subject())
            .help(format!("it is external: make it first (neap network create {})", spec.name))),
        None => Ok(Some(spec)),
        Some(_) if network.external => Ok(None),
        Some(known) => {
            let encrypted = spec.encrypted || spec.options.contains_key("encrypted");
            let same = known.internal == spec.internal
                && known.encrypted == encrypted
                && spec.driver.as_ref().is_none_or(|driver| *driver == known.driver)
                && (spec.subnets.is_empty() || spec.subnets == known.subnets);
            match same {
                true => Ok(None),
                false => {
                    Err(Error::new(Kind::Conflict, subject(), "is there already, and is another one than described")
                        .help("a network cannot be changed: remove it first, or give it another name"))
                }
            }
        }
    }
}

// Waits until a service is so far.
async fn reach(cluster: &dyn Cluster, name: &str, until: Until, timeout: Duration, tell: Tell<'_>) -> Result<()> {
    let now = cluster.service(name).await?;
    if until == Until::Healthy {
        let mut progress = |status: &ServiceStatus| tell(Step::Waits(status));
        return wait::settled(cluster, name, now.release.as_ref(), timeout, &mut progress).await.map(drop);
    }
    let subject = format!("service \"{name}\"");
    let watch = async {
        let mut states = cluster.watch(name).await?;
        while let Some(status) = states.next().await.transpose()? {
            tell(Step::Waits(&status));
            if let Some(why) = &status.given_up {
                return Err(Error::new(Kind::Failed, subject.clone(), "others wait for it, and it failed").cause(why));
            }
            let running = status.tasks.iter().filter(|task| task.state == TaskState::Running && task.stop.is_none());
            let so_far = match until {
                Until::Completed => status.completed >= status.desired,
                _ => running.count() + status.completed as usize >= status.desired as usize,
            };
            if so_far && status.release.as_ref().is_none_or(|release| release.state.is_final()) {
                return Ok(());
            }
        }
        Err(Error::new(Kind::NotFound, subject.clone(), "was removed while others waited for it"))
    };
    let late = |_| {
        let what = match until {
            Until::Completed => "has not run to its end",
            _ => "does not run",
        };
        Error::new(Kind::Timeout, subject.clone(), format!("others wait for it, and it {what}"))
            .help(format!("look with: neap service ps {name}"))
    };
    tokio::time::timeout(timeout, watch).await.map_err(late)?
}

/// Removes a stack's services, waits until they are gone, and removes its networks. Its volumes, secrets and configs stay.
pub async fn remove(cluster: &dyn Cluster, name: &str, timeout: Duration, tell: Tell<'_>) -> Result<()> {
    let services = cluster.services().await?;
    let own: Vec<String> = services
        .iter()
        .filter(|status| of(status) == Some(name))
        .map(|status| status.service.spec.name.to_string())
        .collect();
    let networks = match own.is_empty() {
        // An engine without networks has none of a stack either.
        true => cluster.networks().await.unwrap_or_default(),
        false => cluster.networks().await?,
    };
    let networks: Vec<&NetworkInfo> =
        networks.iter().filter(|network| network.labels.get(NAMESPACE).is_some_and(|of| of == name)).collect();
    if own.is_empty() && networks.is_empty() {
        return Err(Error::not_found(format!("stack \"{name:.70}\"")).help("`neap stack ls` lists them"));
    }
    for service in &own {
        cluster.remove(service).await?;
        tell(Step::Done("service removed", service));
    }
    let gone = async {
        for service in &own {
            match cluster.watch(service).await {
                Ok(mut states) => while states.next().await.transpose()?.is_some() {},
                Err(error) if error.kind == Kind::NotFound => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    };
    let late = |_| Error::new(Kind::Timeout, format!("stack \"{name}\""), "its services are not gone yet");
    tokio::time::timeout(timeout, gone).await.map_err(late)??;
    for network in networks {
        cluster.remove_network(&network.name).await?;
        tell(Step::Done("network removed", &network.name));
    }
    Ok(())
}
