//! What the API answers about routes of requests.

use super::routes::{route, schema};
use super::{About, Answer, Call, Route, json};
use crate::client::ports::PortInfo;
use crate::client::routes::RouteInfo;
use crate::model::name::Name;
use crate::model::right::Role;
use crate::model::route::RouteSpec;
use crate::model::{Error, Kind, Result, strict};

/// All of them.
pub fn all() -> Vec<Route> {
    use crate::model::right::Role::{Deployer, Viewer};
    vec![
        Route {
            response: schema::<Vec<RouteInfo>>(),
            ..route("GET", "/v1/routes", "All routes of HTTP requests, with what has gone by each", Viewer, |call| {
                Box::pin(routes(call))
            })
        },
        Route {
            response: schema::<Vec<PortInfo>>(),
            ..route("GET", "/v1/ports", "All ports that the balancers listen on", Viewer, |call| Box::pin(ports(call)))
        },
        Route {
            about: About::Path,
            change: Some("route.set"),
            request: schema::<RouteSpec>(),
            response: schema::<RouteInfo>(),
            ..route("PUT", "/v1/routes/{name}", "Sets a route that stands for itself", Deployer, |call| {
                Box::pin(set_route(call))
            })
        },
        Route {
            about: About::Path,
            change: Some("route.remove"),
            ..route("DELETE", "/v1/routes/{name}", "Removes a route that stands for itself", Deployer, |call| {
                Box::pin(remove_route(call))
            })
        },
    ]
}

async fn routes(call: Call) -> Result<Answer> {
    let mut routes = call.api.cluster.routes().await?;
    routes.retain(|route| route.name.starts_with(&call.principal.prefix));
    json(&routes)
}

// A port of routes is no one service's: whoever is confined to some names does not see it.
async fn ports(call: Call) -> Result<Answer> {
    let mut ports = call.api.cluster.ports().await?;
    let prefix = &call.principal.prefix;
    ports.retain(|port| prefix.is_empty() || (port.service.is_some() && port.name.starts_with(prefix)));
    json(&ports)
}

async fn set_route(call: Call) -> Result<Answer> {
    let name: Name = call.name().parse()?;
    let spec: RouteSpec = strict::read(&format!("route \"{name}\""), &call.body)?;
    may_use(&call, std::slice::from_ref(&spec)).await?;
    json(&call.api.cluster.set_route(&name, spec).await?)
}

async fn remove_route(call: Call) -> Result<Answer> {
    json(&call.api.cluster.remove_route(call.name()).await?)
}

/// Whoever is confined to some names leads nobody to others' services, shows nobody others' certificates, and takes no requests for
/// hosts that others have routes for.
pub async fn may_use(call: &Call, specs: &[RouteSpec]) -> Result<()> {
    let principal = &call.principal;
    if principal.prefix.is_empty() || specs.is_empty() {
        return Ok(());
    }
    for share in specs.iter().flat_map(|spec| &spec.to) {
        principal.require(Role::Deployer, Some(share.service.as_str()))?;
    }
    for place in specs.iter().filter_map(|spec| spec.tls.as_ref()).flat_map(|tls| [&tls.certificate, &tls.key]) {
        // A file of the host has no name that a prefix could be of.
        principal.require(Role::Deployer, Some(place.strip_prefix("secret:").unwrap_or(place)))?;
    }
    let all = call.api.cluster.routes().await?;
    for other in all.iter().filter(|route| !route.name.starts_with(&principal.prefix)) {
        let meets = |spec: &&RouteSpec| spec.port_number() == other.spec.port_number() && spec.covers(&other.spec);
        if let Some(spec) = specs.iter().find(meets) {
            let message = format!("may not have requests for {}, for which others have a route", spec.shown());
            return Err(Error::new(Kind::Forbidden, format!("principal \"{}\"", principal.name), message)
                .help("name a host that is yours alone"));
        }
    }
    Ok(())
}
