//! The routes for the catalogue.

use futures_util::StreamExt;

use super::routes::{route, schema};
use super::{About, Answer, Call, Route, json, lines};
use crate::client::catalog::{
    CatalogRestored, CatalogSnapshot, FoundInstance, FoundNode, FoundService, InstancesAsk, Maintenance, Register,
    Report,
};
use crate::model::right::Role;
use crate::model::{Error, Kind, Result, strict};

const NODE: (&str, &str) = ("node", "the node that it is on; the host that is asked where none is named");

/// All of them.
pub fn all() -> Vec<Route> {
    use crate::model::right::Role::{Admin, Deployer, Viewer};
    const WHICH: &[(&str, &str)] = &[
        ("tag", "only those with this tag"),
        ("node", "only those on this node"),
        ("passing", "true: only those whose checks all pass"),
    ];
    vec![
        Route {
            response: schema::<Vec<FoundNode>>(),
            ..route("GET", "/v1/catalog/nodes", "Nodes of the catalogue", Viewer, |call| Box::pin(nodes(call)))
        },
        Route {
            response: schema::<Vec<FoundService>>(),
            ..route("GET", "/v1/catalog/services", "Services of the catalogue", Viewer, |call| Box::pin(services(call)))
        },
        Route {
            about: About::Path,
            query: WHICH,
            response: schema::<Vec<FoundInstance>>(),
            ..route("GET", "/v1/catalog/services/{name}", "Instances of a service", Viewer, |call| {
                Box::pin(instances(call))
            })
        },
        Route {
            about: About::Path,
            query: WHICH,
            response: schema::<Vec<FoundInstance>>(),
            stream: true,
            ..route(
                "GET",
                "/v1/catalog/services/{name}/watch",
                "Instances of a service now and after each change, a line each",
                Viewer,
                |call| Box::pin(watch(call)),
            )
        },
        Route {
            about: About::BodyService,
            change: Some("catalog.register"),
            request: schema::<Register>(),
            response: schema::<FoundInstance>(),
            ..route("POST", "/v1/catalog/instances", "Registers an instance, or says it anew", Deployer, |call| {
                Box::pin(register(call))
            })
        },
        Route {
            change: Some("catalog.deregister"),
            query: &[NODE],
            ..route("DELETE", "/v1/catalog/instances/{id}", "Removes an instance with its checks", Deployer, |call| {
                Box::pin(deregister(call))
            })
        },
        Route {
            change: Some("catalog.maintain"),
            query: &[NODE],
            request: schema::<Maintenance>(),
            response: schema::<FoundInstance>(),
            ..route(
                "POST",
                "/v1/catalog/instances/{id}/maintenance",
                "Begins or ends an instance's maintenance",
                Deployer,
                |call| Box::pin(maintain(call)),
            )
        },
        Route {
            query: &[NODE],
            request: schema::<Report>(),
            ..route("POST", "/v1/catalog/checks/{id}", "Says how a check with a TTL is", Deployer, |call| {
                Box::pin(report(call))
            })
        },
        Route {
            response: schema::<CatalogSnapshot>(),
            ..route("GET", "/v1/catalog/snapshot", "All that clients have registered and written", Admin, |call| {
                Box::pin(snapshot(call))
            })
        },
        Route {
            change: Some("catalog.restore"),
            request: schema::<CatalogSnapshot>(),
            response: schema::<CatalogRestored>(),
            // What is 32 MiB as it is, and what goes around it.
            most: (32 << 20) * 4 / 3 + 1024,
            ..route("PUT", "/v1/catalog/snapshot", "Puts all of that back: what is not in it goes", Admin, |call| {
                Box::pin(restore(call))
            })
        },
    ]
}

async fn nodes(call: Call) -> Result<Answer> {
    json(&call.api.cluster.catalog_nodes().await?)
}

async fn services(call: Call) -> Result<Answer> {
    let mut all = call.api.cluster.catalog_services().await?;
    all.retain(|service| service.name.starts_with(&call.principal.prefix));
    json(&all)
}

fn ask(call: &Call) -> Result<InstancesAsk> {
    let text = |key: &str| call.query.get(key).filter(|text| !text.is_empty()).cloned();
    Ok(InstancesAsk { tag: text("tag"), node: text("node"), passing: call.flag("passing")? })
}

async fn instances(call: Call) -> Result<Answer> {
    json(&call.api.cluster.instances(call.name(), ask(&call)?).await?)
}

async fn watch(call: Call) -> Result<Answer> {
    lines(call.api.cluster.watch_instances(call.name(), ask(&call)?).await?.boxed())
}

// A node where none is named: the host that was asked, whoever leads.
fn here(call: &Call) -> Result<String> {
    let unknown = || Error::new(Kind::Unavailable, "this host", "is not known in the catalogue yet").retry(true);
    (call.api.host)().filter(|host| !host.is_empty()).ok_or_else(unknown)
}

async fn register(call: Call) -> Result<Answer> {
    let mut register: Register = strict::read("instance", &call.body)?;
    let node = register.node.clone().map_or_else(|| here(&call), Ok)?;
    let id = register.id.clone().unwrap_or_else(|| register.service.clone());
    register.node = Some(node.clone());
    // What is there under that id may be of another service.
    own(&call, &node, |found| found.id == id, None).await?;
    json(&call.api.cluster.register(register).await?)
}

fn place(call: &Call) -> Result<(String, &str)> {
    let node = call.query.get("node").cloned().map_or_else(|| here(call), Ok)?;
    Ok((node, call.path.get("id").map_or("", String::as_str)))
}

// Whoever is confined to some names touches nothing of another. `missing`: what is said where there is nothing.
async fn own(call: &Call, node: &str, is_it: impl Fn(&FoundInstance) -> bool, missing: Option<&str>) -> Result<()> {
    if call.principal.prefix.is_empty() {
        return Ok(());
    }
    // Of all of them, as the catalogue compares names.
    let mut found = Vec::new();
    for service in call.api.cluster.catalog_services().await? {
        let instances = call.api.cluster.instances(&service.name, InstancesAsk::default()).await?;
        let here = instances.into_iter().filter(|found| found.node.to_lowercase() == node.to_lowercase());
        found.extend(here.filter(&is_it));
    }
    for instance in &found {
        call.principal.require(Role::Deployer, Some(&instance.service))?;
    }
    match (found.is_empty(), missing) {
        (true, Some(what)) => Err(Error::not_found(what.to_owned())),
        _ => Ok(()),
    }
}

async fn deregister(call: Call) -> Result<Answer> {
    let (node, id) = place(&call)?;
    own(&call, &node, |found| found.id == id, Some(&format!("service id \"{id:.70}\""))).await?;
    json(&call.api.cluster.deregister(Some(&node), id).await?)
}

async fn maintain(call: Call) -> Result<Answer> {
    let maintenance: Maintenance = strict::read("maintenance", &call.body)?;
    let (node, id) = place(&call)?;
    own(&call, &node, |found| found.id == id, Some(&format!("service id \"{id:.70}\""))).await?;
    json(&call.api.cluster.maintain(Some(&node), id, maintenance).await?)
}

async fn snapshot(call: Call) -> Result<Answer> {
    json(&call.api.cluster.catalog_snapshot().await?)
}

async fn restore(call: Call) -> Result<Answer> {
    let snapshot: CatalogSnapshot = strict::read("snapshot", &call.body)?;
    json(&call.api.cluster.restore_catalog(snapshot).await?)
}

async fn report(call: Call) -> Result<Answer> {
    let report: Report = strict::read("report", &call.body)?;
    let (node, id) = place(&call)?;
    let is_it = |found: &FoundInstance| found.checks.iter().any(|check| check.id == id && !check.of_node);
    own(&call, &node, is_it, Some(&format!("check \"{id:.70}\""))).await?;
    json(&call.api.cluster.report(Some(&node), id, report).await?)
}
