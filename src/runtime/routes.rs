//! Routes: services' own, and those that stand for themselves.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use super::{Parts, Runtime, values};
use crate::client::routes::{Replica, RouteInfo};
use crate::model::event::What;
use crate::model::id::TaskId;
use crate::model::name::Name;
use crate::model::port::{PortSpec, Protocol};
use crate::model::route::{Route, RouteSpec, plain_path};
use crate::model::service::ServiceSpec;
use crate::model::{Error, Kind, Result};
use crate::scheduler::routing;
use crate::scheduler::world::{Change, Draft, Note, World};

/// How long a route that was set is waited for until balancers follow it.
const FOLLOWED: Duration = Duration::from_secs(10);

impl Runtime {
    /// All of them, with what has gone by each.
    pub(super) fn list_routes(&self) -> Vec<RouteInfo> {
        let world = self.world();
        let confirmed = self.confirmed.borrow().clone();
        let info = |(name, spec, to): routing::Routed| {
            let service = name.split_once('/').and_then(|(service, _)| service.parse::<Name>().ok());
            let behind = to.iter().filter(|target| target.weight > 0).flat_map(|target| &target.backends);
            let behind: BTreeSet<TaskId> =
                behind.filter(|backend| backend.weight > 0).map(|backend| backend.id).collect();
            let replicas = behind.iter().filter_map(|id| {
                let task = world.tasks.get(id)?;
                Some(Replica { task: task.label(), carried: confirmed.carried.get(id).cloned().unwrap_or_default() })
            });
            RouteInfo {
                url: spec.shown(),
                serving: u32::try_from(behind.len()).unwrap_or(u32::MAX),
                replicas: replicas.collect(),
                problem: confirmed.route_problem(&name, &spec).or_else(|| leads_nowhere(&world, &spec)),
                passed: confirmed.passed.get(&name).cloned().unwrap_or_default(),
                name,
                service,
                spec,
            }
        };
        routing::routes(&world).map(info).collect()
    }

    /// Sets one that stands for itself. Returns when the balancers follow it, or it is known why they do not.
    pub(super) async fn put_route(&self, name: &Name, spec: RouteSpec) -> Result<RouteInfo> {
        spec.validate_alone(name)?;
        has_secrets(&self.parts, &format!("route \"{name}\""), &spec)?;
        if let Some(source) = &spec.choose {
            crate::script::choose::check(name.as_str(), source)?;
        }
        let (wanted, key) = (name.clone(), name.to_string());
        self.command(move |draft, _| {
            refuse(&draft.world, &wanted, &spec)?;
            note(draft, What::RouteSet, wanted.as_str(), &spec.shown());
            let changed_at = draft.clock.wall();
            draft.change(Change::Route(Arc::new(Route { name: wanted, spec, changed_at })));
            Ok(())
        })
        .await?;
        let mut confirmed = self.confirmed.clone();
        let _ = tokio::time::timeout(FOLLOWED, async {
            loop {
                let world = self.world();
                let route = routing::routes(&world).find(|(name, ..)| *name == key);
                let follows = |route| confirmed.borrow_and_update().follows(route);
                if route.as_ref().is_none_or(follows) || confirmed.changed().await.is_err() {
                    return;
                }
            }
        })
        .await;
        let made = self.list_routes().into_iter().find(|route| route.name == key);
        made.ok_or_else(|| Error::internal(format!("route \"{key}\""), "was set, and is not there"))
    }

    /// Removes one that stands for itself.
    pub(super) async fn drop_route(&self, name: &str) -> Result<()> {
        let subject = format!("route \"{name:.70}\"");
        if let Some((service, _)) = name.split_once('/') {
            return Err(Error::new(Kind::Conflict, subject, "is one of a service's own")
                .help(format!("take it out of the description of \"{service:.70}\"")));
        }
        let wanted = name.to_owned();
        self.command(move |draft, _| match draft.world.routes.get(wanted.as_str()).map(|route| route.name.clone()) {
            Some(name) => {
                note(draft, What::RouteRemoved, name.as_str(), "");
                draft.change(Change::RemoveRoute(name));
                Ok(())
            }
            None => Err(Error::not_found(subject).help("`neap route ls` lists them")),
        })
        .await
    }
}

/// An error where a route names a secret that is not there.
pub(super) fn has_secrets(parts: &Parts, subject: &str, spec: &RouteSpec) -> Result<()> {
    let places = spec.tls.iter().flat_map(|tls| [&tls.certificate, &tls.key]);
    for name in places.filter_map(|place| place.strip_prefix("secret:")) {
        values::secret_version(parts, name).map_err(|error| error.about(subject))?;
    }
    Ok(())
}

fn note(draft: &mut Draft, what: What, name: &str, message: &str) {
    let (subject, message) = (name.to_owned(), message.to_owned());
    draft.decision.notes.push(Note { what, service: None, task: None, image: None, subject, message });
}

// Why a share of a route has nobody behind it, whatever becomes of its service's replicas.
fn leads_nowhere(world: &World, spec: &RouteSpec) -> Option<String> {
    spec.to.iter().find_map(|share| {
        let name = &share.service;
        let Some(service) = world.services.get(name) else { return Some(format!("service \"{name}\" is not there")) };
        let why = service.spec.routed_port(share.port.as_deref()).err()?;
        Some(format!("service \"{name}\": {why}"))
    })
}

// An error where it could not be served as things stand.
fn refuse(world: &World, name: &Name, spec: &RouteSpec) -> Result<()> {
    let subject = format!("route \"{name}\"");
    for share in &spec.to {
        let Some(service) = world.services.get(&share.service) else {
            return Err(super::commands::missing(world, share.service.as_str()).about(&subject));
        };
        if service.spec.engine_native {
            let message = format!("leads to service \"{}\", whose ports are the Swarm's own", share.service);
            return Err(Error::new(Kind::Unsupported, subject, message));
        }
        let wrong = |why: String| Error::invalid(subject.clone(), format!("service \"{}\": {why}", share.service));
        let port = service.spec.routed_port(share.port.as_deref()).map_err(wrong)?;
        if service.spec.ports[port].protocol == Protocol::Udp {
            return Err(wrong(format!("leads to ports.{port}, which is udp")));
        }
    }
    refuse_taken(world, &subject, spec)?;
    let others = routing::described(world).filter(|(other, _)| *other != name.as_str());
    refuse_beside(&subject, spec, others)
}

fn same_address(one: Option<std::net::IpAddr>, other: Option<std::net::IpAddr>) -> bool {
    one.is_none() || other.is_none() || one == other
}

// An error where a service publishes the port that a route is listened for on.
fn refuse_taken(world: &World, subject: &str, spec: &RouteSpec) -> Result<()> {
    for service in world.services.values() {
        if let Some((port, _)) = service.spec.ports.iter().find(|(_, port)| is_met(port, spec)) {
            let number = spec.port_number();
            let message =
                format!("listens on {number}, which service \"{}\" publishes (port \"{port}\")", service.spec.name);
            return Err(Error::new(Kind::Conflict, subject, message)
                .help("listen on another port, or publish that one no more and give the service a route"));
        }
    }
    Ok(())
}

// Whether a published port and a route's are one.
fn is_met(port: &PortSpec, route: &RouteSpec) -> bool {
    let is_tcp = port.protocol == Protocol::Tcp;
    is_tcp && port.published == Some(route.port_number()) && same_address(port.address, route.address)
}

// An error where a route cannot be beside others: on one port it is TLS or none, on one address or all, and one route for one place.
fn refuse_beside<'a>(
    subject: &str,
    spec: &RouteSpec,
    others: impl Iterator<Item = (String, &'a RouteSpec)>,
) -> Result<()> {
    let number = spec.port_number();
    let on_it = |other: &RouteSpec| other.port_number() == number && same_address(other.address, spec.address);
    for (name, other) in others.filter(|(_, other)| on_it(other)) {
        let taken = |message: String, help: &str| Err(Error::new(Kind::Conflict, subject, message).help(help));
        if other.address != spec.address {
            let message =
                format!("listens on {number} of another address than route \"{name}\", and one is part of the other");
            return taken(message, "give both the same address, or one another port");
        }
        if other.has_tls() != spec.has_tls() {
            let with = if spec.has_tls() { "with TLS, where route" } else { "without TLS, where route" };
            let has = if other.has_tls() { "has it" } else { "has none" };
            let message = format!("listens on {number} {with} \"{name}\" {has}");
            return taken(message, "a port speaks TLS or does not: listen on another one");
        }
        if other.accept_proxy != spec.accept_proxy {
            let message = format!("listens on {number}, where route \"{name}\" says otherwise of accept_proxy");
            return taken(
                message,
                "every connection to a port begins with the PROXY protocol, or none: say the same of both",
            );
        }
        if other.host != spec.host {
            continue;
        }
        if other.passthrough != spec.passthrough {
            let message = format!("lets TLS through for its host or does not, otherwise than route \"{name}\"");
            return taken(message, "TLS of a host ends in one place");
        }
        if other.tls != spec.tls {
            let message = format!("shows another certificate for its host than route \"{name}\"");
            return taken(message, "name the same certificate and key");
        }
        let same_path = plain_path(other.prefix()) == plain_path(spec.prefix());
        if same_path && other.priority == spec.priority {
            let message = format!("is for {}, and so is route \"{name}\"", spec.shown());
            return taken(
                message,
                "give one of them another path or priority, or name both services in one route (to = ...)",
            );
        }
    }
    Ok(())
}

/// An error where a service would publish a port that routes are listened for on, or its own routes cannot be beside others.
pub(super) fn refuse_met(world: &World, spec: &ServiceSpec) -> Result<()> {
    let mut others = world.clone();
    others.services.remove(&spec.name);
    for (index, route) in spec.routes.iter().enumerate() {
        refuse_taken(&others, &spec.subject(), route)?;
        if let Some((name, _)) = spec.ports.iter().find(|(_, port)| is_met(port, route)) {
            let message = format!("ports.{name}: publishes {}, which its own route listens on", route.port_number());
            return Err(Error::invalid(spec.subject(), message)
                .help("write the port as { target = ... } alone: the route is what leads to it"));
        }
        let before = spec.routes[..index].iter().enumerate();
        let before = before.map(|(index, route)| (format!("{}/{}", spec.name, index + 1), route));
        refuse_beside(&spec.subject(), route, routing::described(&others).chain(before))?;
    }
    for (name, port) in spec.ports.iter().filter(|(_, port)| port.published.is_some()) {
        if let Some((route, _)) = routing::described(&others).find(|(_, route)| is_met(port, route)) {
            let number = port.published.unwrap_or_default();
            let message = format!("ports.{name}: {number} is listened on for route \"{route}\"");
            return Err(Error::new(Kind::Conflict, spec.subject(), message)
                .help("publish another port, or give the service a route in place of it"));
        }
    }
    Ok(())
}
