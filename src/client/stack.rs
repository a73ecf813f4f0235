//! Applies a stack: what it needs, then its services, each once those that it waits for are so far.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use futures_util::StreamExt;

use super::kv::{ValueKind, ValueSet};
use super::{Apply, Cluster, Only, ServiceStatus, wait};
use crate::model::bundle::Bundle;
use crate::model::objects::{NetworkInfo, NetworkSpec};
use crate::model::registry::{self, Credentials};
use crate::model::release::{Release, ReleaseState};
use crate::model::route::RouteSpec;
use crate::model::service::ServiceSpec;
use crate::model::stack::{NAMESPACE, Need, Stack, StackNetwork, Until, stack_name};
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
    /// Who pulls images, by registry.
    pub auth: BTreeMap<String, Credentials>,
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
    stack.order()?;
    let there = cluster.services().await?;
    refuse_others(stack, &there)?;
    let order = stack.order_with(&ports_first(stack, &there)).or_else(|_| stack.order())?;
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
    // Before anything is applied: what is named no more may have a port that another one is to have.
    if ask.prune {
        prune(cluster, stack, &there, ask.timeout, tell).await?;
    }
    let mut applied: Vec<(String, ServiceStatus, Option<Release>)> = Vec::new();
    for key in order {
        let spec = &stack.services[&key];
        for (needed, need) in stack.depends_on.get(&key).into_iter().flatten() {
            let release = applied.iter().find(|(known, ..)| known == needed).and_then(|(.., since)| since.as_ref());
            let reached = reach(cluster, stack.service(needed)?, need.until, release, ask.timeout, tell).await;
            match reached {
                Err(error) if !need.required => {
                    let told = format!("waited for in vain, and not needed ({error})");
                    tell(Step::Done(&told, stack.service(needed)?));
                }
                other => other?,
            }
        }
        let auth = ask.auth.get(registry::of_image(spec["image"].as_str().unwrap_or_default())).cloned();
        let service = Apply { service: spec.clone(), with: ask.with.clone(), only: Only::Either, auth };
        let before = wait::release_before(cluster, spec["name"].as_str().unwrap_or_default()).await?;
        let status = cluster.apply(service).await?;
        let since = wait::since(before.as_ref(), status.release.as_ref());
        tell(Step::Done("service applied", status.service.spec.name.as_str()));
        applied.push((key, status, since));
    }
    let optional = |key: &str| {
        let named = |needs: &BTreeMap<String, Need>| needs.get(key).map(|need| need.required);
        let all: Vec<bool> = stack.depends_on.values().filter_map(named).collect();
        !all.is_empty() && all.iter().all(|required| !required)
    };
    if ask.wait {
        for (key, status, since) in &mut applied {
            let name = status.service.spec.name.to_string();
            let mut progress = |status: &ServiceStatus| tell(Step::Waits(status));
            match wait::settled(cluster, &name, since.as_ref(), ask.timeout, &mut progress).await {
                Err(error) if optional(key) => tell(Step::Done(&format!("is not as described ({error})"), &name)),
                other => *status = other?,
            }
        }
    }
    Ok(applied.into_iter().map(|(_, status, _)| status).collect())
}

// A name may be somebody else's: of another stack, or of none.
fn refuse_others(stack: &Stack, there: &[ServiceStatus]) -> Result<()> {
    for key in stack.services.keys() {
        let name = stack.service(key)?;
        let Some(known) = there.iter().find(|status| status.service.spec.name.as_str() == name) else { continue };
        let whose = match of(known) {
            Some(own) if own == stack.name.as_str() => continue,
            Some(other) => format!("is there already, and is of stack \"{other}\""),
            None => "is there already, and is of no stack".to_owned(),
        };
        return Err(Error::new(Kind::Conflict, format!("service \"{name}\""), whose).help(format!(
            "deploy under another name, remove it, or make it this stack's: neap service update {name} --label-add {NAMESPACE}={}",
            stack.name
        )));
    }
    Ok(())
}

// For each service those that have a port now which it is to have, and are to have it no more.
fn ports_first(stack: &Stack, there: &[ServiceStatus]) -> BTreeMap<String, Vec<String>> {
    let ports = |spec: &ServiceSpec| {
        let published = spec.ports.values().filter_map(|port| port.published);
        published.chain(spec.routes.iter().map(RouteSpec::port_number)).collect::<Vec<u16>>()
    };
    let wanted = |key: &str| -> BTreeSet<u16> {
        let spec = ServiceSpec::read(&stack.services[key]);
        spec.iter().flat_map(ports).collect()
    };
    let has = |key: &str| -> BTreeSet<u16> {
        let name = stack.service(key).unwrap_or_default();
        let known = there.iter().find(|status| status.service.spec.name.as_str() == name);
        known.into_iter().flat_map(|status| ports(&status.service.spec)).collect()
    };
    let all: Vec<(&String, BTreeSet<u16>, BTreeSet<u16>)> =
        stack.services.keys().map(|key| (key, has(key), wanted(key))).collect();
    let mut before = BTreeMap::new();
    for (key, _, wants) in &all {
        let gives = |(other, has, keeps): &&(&String, BTreeSet<u16>, BTreeSet<u16>)| {
            other != key && has.intersection(wants).any(|port| !keeps.contains(port))
        };
        let givers: Vec<String> = all.iter().filter(gives).map(|(other, ..)| (*other).clone()).collect();
        if !givers.is_empty() {
            before.insert((*key).clone(), givers);
        }
    }
    before
}

// Removes the services of the stack that it does not name any more, and waits until they are gone.
async fn prune(
    cluster: &dyn Cluster,
    stack: &Stack,
    there: &[ServiceStatus],
    timeout: Duration,
    tell: Tell<'_>,
) -> Result<()> {
    let named: BTreeSet<&str> = stack.services.keys().filter_map(|key| stack.service(key).ok()).collect();
    let gone: Vec<&str> = there
        .iter()
        .filter(|status| of(status) == Some(stack.name.as_str()))
        .map(|status| status.service.spec.name.as_str())
        .filter(|name| !named.contains(name))
        .collect();
    for name in &gone {
        cluster.remove(name).await?;
        tell(Step::Done("service removed", name));
    }
    until_gone(cluster, &gone, stack.name.as_str(), timeout).await
}

async fn until_gone(cluster: &dyn Cluster, names: &[&str], stack: &str, timeout: Duration) -> Result<()> {
    let gone = async {
        for name in names {
            match cluster.watch(name).await {
                Ok(states) => wait::gone(cluster, name, states).await?,
                Err(error) if error.kind == Kind::NotFound => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    };
    let late = |_| Error::new(Kind::Timeout, format!("stack \"{stack}\""), "its services are not gone yet");
    tokio::time::timeout(timeout, gone).await.map_err(late)?
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

// Waits until a service is so far. `applied`: its release, as it was when it was applied; one that fails is no way to get there.
async fn reach(
    cluster: &dyn Cluster,
    name: &str,
    until: Until,
    applied: Option<&Release>,
    timeout: Duration,
    tell: Tell<'_>,
) -> Result<()> {
    if until == Until::Healthy {
        let mut progress = |status: &ServiceStatus| tell(Step::Waits(status));
        return wait::settled(cluster, name, applied, timeout, &mut progress).await.map(drop);
    }
    let subject = format!("service \"{name}\"");
    let watch = async {
        let mut states = cluster.watch(name).await?;
        while let Some(status) = states.next().await.transpose()? {
            tell(Step::Waits(&status));
            if let Some(failure) = wait::failure(&status, applied) {
                return Err(failure);
            }
            // Seen once all is quiet again, and told then.
            let going_back = |release: &Release| {
                matches!(release.state, ReleaseState::RollingBack | ReleaseState::RolledBack)
                    && !wait::is_old(release, applied)
            };
            if status.release.as_ref().is_some_and(going_back) {
                continue;
            }
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
    let name = &stack_name(name);
    let services = cluster.services().await?;
    let own: Vec<String> = services
        .iter()
        .filter(|status| of(status) == Some(name.as_str()))
        .map(|status| status.service.spec.name.to_string())
        .collect();
    let networks = match cluster.networks().await {
        // An engine without networks has none of a stack either.
        Err(error) if own.is_empty() || error.kind == Kind::Unsupported => Vec::new(),
        other => other?,
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
    let names: Vec<&str> = own.iter().map(String::as_str).collect();
    until_gone(cluster, &names, name, timeout).await?;
    for network in networks {
        cluster.remove_network(&network.name).await?;
        tell(Step::Done("network removed", &network.name));
    }
    Ok(())
}
