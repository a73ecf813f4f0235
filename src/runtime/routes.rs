//! Routes: services' own, and those that stand for themselves.

use std::sync::Arc;

use super::Runtime;
use crate::client::routes::RouteInfo;
use crate::model::name::Name;
use crate::model::route::{Route, RouteSpec};
use crate::model::service::ServiceSpec;
use crate::model::{Error, Kind, Result};
use crate::scheduler::routing;
use crate::scheduler::world::{Change, World};

impl Runtime {
    /// All of them, with what has gone by each.
    pub(super) fn list_routes(&self) -> Vec<RouteInfo> {
        let world = self.world();
        let confirmed = self.confirmed.borrow().clone();
        let info = |(name, spec, to): (String, RouteSpec, Vec<crate::network::table::Target>)| {
            let service = name.split_once('/').and_then(|(service, _)| service.parse::<Name>().ok());
            let front = routing::front_name(&spec);
            let backends = to.iter().flat_map(|target| &target.backends);
            let serving = backends.filter(|backend| backend.weight > 0).count();
            RouteInfo {
                url: spec.shown(),
                serving: u32::try_from(serving).unwrap_or(u32::MAX),
                problem: confirmed.failed.get(&front).cloned(),
                passed: confirmed.passed.get(&name).cloned().unwrap_or_default(),
                name,
                service,
                spec,
            }
        };
        routing::routes(&world).map(info).collect()
    }

    /// Sets one that stands for itself.
    pub(super) async fn put_route(&self, name: &Name, spec: RouteSpec) -> Result<RouteInfo> {
        spec.validate_alone(name)?;
        let (wanted, key) = (name.clone(), name.to_string());
        self.command(move |draft, _| {
            refuse(&draft.world, &wanted, &spec)?;
            let changed_at = draft.clock.wall();
            draft.change(Change::Route(Arc::new(Route { name: wanted, spec, changed_at })));
            Ok(())
        })
        .await?;
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
                draft.change(Change::RemoveRoute(name));
                Ok(())
            }
            None => Err(Error::not_found(subject).help("`neap route ls` lists them")),
        })
        .await
    }
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
        service
            .spec
            .routed_port(share.port.as_deref())
            .map_err(|why| Error::invalid(subject.clone(), format!("service \"{}\": {why}", share.service)))?;
    }
    refuse_taken(world, &subject, spec)
}

/// An error where a service publishes the port that a route is listened for on.
pub(super) fn refuse_taken(world: &World, subject: &str, spec: &RouteSpec) -> Result<()> {
    let number = spec.port_number();
    for service in world.services.values() {
        let taken = service.spec.ports.iter().find(|(_, port)| {
            let same_address = port.address.is_none() || spec.address.is_none() || port.address == spec.address;
            port.published == Some(number) && port.protocol == crate::model::port::Protocol::Tcp && same_address
        });
        if let Some((port, _)) = taken {
            let message =
                format!("listens on {number}, which service \"{}\" publishes (port \"{port}\")", service.spec.name);
            return Err(Error::new(Kind::Conflict, subject, message)
                .help("listen on another port, or publish that one no more and give the service a route"));
        }
    }
    Ok(())
}

/// An error where a service would publish a port that routes are listened for on, or its own routes one that is published.
pub(super) fn refuse_met(world: &World, spec: &ServiceSpec) -> Result<()> {
    let mut others = world.clone();
    others.services.remove(&spec.name);
    for route in &spec.routes {
        refuse_taken(&others, &spec.subject(), route)?;
        let number = route.port_number();
        if let Some((name, _)) = spec.ports.iter().find(|(_, port)| port.published == Some(number)) {
            let message = format!("ports.{name}: publishes {number}, which its own route listens on");
            return Err(Error::invalid(spec.subject(), message)
                .help("write the port as { target = ... } alone: the route is what leads to it"));
        }
    }
    for (name, port) in &spec.ports {
        let Some(number) = port.published.filter(|_| port.protocol == crate::model::port::Protocol::Tcp) else {
            continue;
        };
        let meets = |route: &RouteSpec| {
            let same_address = port.address.is_none() || route.address.is_none() || port.address == route.address;
            route.port_number() == number && same_address
        };
        if let Some((route, ..)) = routing::routes(&others).find(|(_, route, _)| meets(route)) {
            let message = format!("ports.{name}: {number} is listened on for route \"{route}\"");
            return Err(Error::new(Kind::Conflict, spec.subject(), message)
                .help("publish another port, or give the service a route in place of it"));
        }
    }
    Ok(())
}
