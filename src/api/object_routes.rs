//! The routes for networks and volumes.

use super::routes::{route, schema};
use super::{About, Answer, Call, Route, json};
use crate::model::objects::{NetworkInfo, NetworkSpec, VolumeSpec, Volumes};
use crate::model::right::Role;
use crate::model::{Result, strict};

/// All of them.
pub fn all() -> Vec<Route> {
    use crate::model::right::Role::{Admin, Deployer, Viewer};
    const NODE: (&str, &str) = ("node", "a node's id or host name; all where none is named");
    vec![
        Route {
            response: schema::<Vec<NetworkInfo>>(),
            ..route("GET", "/v1/networks", "All networks that services can be attached to", Viewer, |call| {
                Box::pin(networks(call))
            })
        },
        Route {
            about: About::BodyName,
            change: Some("network.create"),
            request: schema::<NetworkSpec>(),
            response: schema::<NetworkInfo>(),
            ..route("POST", "/v1/networks", "Makes a network", Deployer, |call| Box::pin(create_network(call)))
        },
        Route {
            about: About::Path,
            change: Some("network.remove"),
            ..route("DELETE", "/v1/networks/{name}", "Removes a network that no service uses", Deployer, |call| {
                Box::pin(remove_network(call))
            })
        },
        Route {
            response: schema::<Volumes>(),
            query: &[NODE],
            ..route("GET", "/v1/volumes", "Volumes by name and node", Viewer, |call| Box::pin(volumes(call)))
        },
        Route {
            change: Some("volume.create"),
            request: schema::<VolumeSpec>(),
            response: schema::<Volumes>(),
            query: &[NODE],
            ..route("POST", "/v1/volumes", "Makes a volume on a node, or on all", Admin, |call| {
                Box::pin(create_volume(call))
            })
        },
        Route {
            change: Some("volume.remove"),
            response: schema::<Volumes>(),
            query: &[NODE, ("force", "true: also where its driver fails")],
            ..route("DELETE", "/v1/volumes/{name}", "Removes a volume and what it holds", Admin, |call| {
                Box::pin(remove_volume(call))
            })
        },
    ]
}

async fn networks(call: Call) -> Result<Answer> {
    let mut networks = call.api.cluster.networks().await?;
    for network in &mut networks {
        network.used_by.retain(|user| user.starts_with(&call.principal.prefix));
    }
    json(&networks)
}

async fn create_network(call: Call) -> Result<Answer> {
    let spec: NetworkSpec = strict::read("network", &call.body)?;
    json(&call.api.cluster.create_network(spec).await?)
}

async fn remove_network(call: Call) -> Result<Answer> {
    json(&call.api.cluster.remove_network(call.name()).await?)
}

fn node(call: &Call) -> Option<&str> {
    call.query.get("node").map(String::as_str)
}

async fn volumes(call: Call) -> Result<Answer> {
    let mut found = call.api.cluster.volumes(node(&call)).await?;
    for volume in &mut found.volumes {
        // They may hold a storage's password.
        if call.principal.role < Role::Admin {
            volume.options.clear();
        }
        volume.used_by.retain(|user| user.starts_with(&call.principal.prefix));
    }
    json(&found)
}

async fn create_volume(call: Call) -> Result<Answer> {
    let spec: VolumeSpec = strict::read("volume", &call.body)?;
    json(&call.api.cluster.create_volume(node(&call), spec).await?)
}

async fn remove_volume(call: Call) -> Result<Answer> {
    json(&call.api.cluster.remove_volume(node(&call), call.name(), call.flag("force")?).await?)
}
