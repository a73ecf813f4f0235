//! Networks in Docker's form, and back.

use std::collections::{BTreeMap, HashMap};
use std::time::Duration;

use bollard::Docker;
use bollard::models::{Ipam, IpamConfig, Network, NetworkCreateRequest};
use bollard::query_parameters::ListNetworksOptions;

use super::{spec, trouble};
use crate::model::objects::{NetworkInfo, NetworkSpec};
use crate::model::{Error, Kind, Result};

/// How long a host may take to let go of a network that is removed, and how often it is looked.
const GOING: Duration = Duration::from_secs(10);
const LOOK: Duration = Duration::from_millis(50);

/// A request that makes one, with these subnets.
pub fn request(network: &NetworkSpec, driver: &str, subnets: &[String], cluster: &str) -> NetworkCreateRequest {
    let mut options: HashMap<String, String> = network.options.clone().into_iter().collect();
    if network.encrypted {
        options.entry("encrypted".into()).or_default();
    }
    let mut labels: HashMap<String, String> = network.labels.clone().into_iter().collect();
    labels.insert(spec::CLUSTER.to_owned(), cluster.to_owned());
    let config = |(number, subnet): (usize, &String)| IpamConfig {
        subnet: Some(subnet.clone()),
        gateway: network.gateways.get(number).cloned(),
        ..IpamConfig::default()
    };
    // In a Swarm, one that is not the whole Swarm's would be of no use to services.
    let scope = (driver == "overlay").then_some("swarm");
    let driver = network.driver.as_deref().unwrap_or(driver);
    NetworkCreateRequest {
        name: network.name.clone(),
        driver: Some(driver.to_owned()),
        internal: network.internal.then_some(true),
        attachable: (driver == "overlay").then_some(network.attachable.unwrap_or(true)),
        scope: scope.map(str::to_owned),
        enable_ipv6: network.ipv6.then_some(true),
        ipam: (!subnets.is_empty())
            .then(|| Ipam { config: Some(subnets.iter().enumerate().map(config).collect()), ..Ipam::default() }),
        options: (!options.is_empty()).then_some(options),
        labels: Some(labels),
        ..NetworkCreateRequest::default()
    }
}

/// All that an engine has.
pub async fn list(docker: &Docker) -> Result<Vec<NetworkInfo>> {
    let listed = docker.list_networks(None::<ListNetworksOptions>).await;
    let listed = listed.map_err(|error| trouble::error("networks", "list them", &error))?;
    Ok(listed.into_iter().filter_map(info).collect())
}

fn info(network: Network) -> Option<NetworkInfo> {
    let map = |map: Option<HashMap<String, String>>| map.unwrap_or_default().into_iter().collect::<BTreeMap<_, _>>();
    let options = map(network.options);
    let subnets = network.ipam.and_then(|ipam| ipam.config).unwrap_or_default();
    Some(NetworkInfo {
        name: network.name?,
        id: network.id.unwrap_or_default(),
        driver: network.driver.unwrap_or_default(),
        scope: network.scope.unwrap_or_default(),
        nodes: Vec::new(),
        internal: network.internal.unwrap_or_default(),
        attachable: network.attachable.unwrap_or_default(),
        encrypted: options.contains_key("encrypted"),
        subnets: subnets.into_iter().filter_map(|config| config.subnet).collect(),
        options,
        labels: map(network.labels),
        used_by: Vec::new(),
    })
}

/// Makes one.
pub async fn create(docker: &Docker, request: NetworkCreateRequest) -> Result<()> {
    let (subject, name) = (format!("network \"{}\"", request.name), request.name.clone());
    match docker.create_network(request).await {
        Ok(_) => Ok(()),
        Err(error) if trouble::said(&error).contains("already exists") => Err(is_there(&name)),
        Err(error) => Err(trouble::error(subject, "make it", &error)),
    }
}

/// The error where there is one already.
pub fn is_there(name: &str) -> Error {
    Error::new(Kind::Conflict, format!("network \"{name:.70}\""), "is there already")
        .help("remove it first, or use another name")
}

/// Whether one that is there is what is asked for.
pub fn is_like(known: &NetworkInfo, asked: &NetworkSpec, driver: &str) -> bool {
    known.driver == asked.driver.as_deref().unwrap_or(driver)
        && known.internal == asked.internal
        && known.encrypted == (asked.encrypted || asked.options.contains_key("encrypted"))
        && (asked.subnets.is_empty() || known.subnets == asked.subnets)
        && asked.labels.iter().all(|(key, value)| known.labels.get(key) == Some(value))
}

// A host's own part of a Swarm's network goes a moment later, with what its last container had of it.
async fn gone(docker: &Docker, id: &str) {
    let until = tokio::time::Instant::now() + GOING;
    while tokio::time::Instant::now() < until {
        match docker.inspect_network(id, None).await {
            Ok(_) => tokio::time::sleep(LOOK).await,
            // Nobody who cannot answer will tell more.
            Err(_) => return,
        }
    }
}

/// Removes one; false: there is none. It is gone from this host when it returns, so that another of its name can be made.
pub async fn remove(docker: &Docker, name: &str) -> Result<bool> {
    let subject = format!("network \"{name:.70}\"");
    let known = docker.inspect_network(name, None).await.ok().and_then(|known| known.id);
    match docker.remove_network(name).await {
        Ok(()) => {
            if let Some(id) = known {
                gone(docker, &id).await;
            }
            Ok(true)
        }
        Err(error) if trouble::is_status(&error, 404) => Ok(false),
        Err(error)
            if trouble::said(&error).contains("active endpoints") || trouble::said(&error).contains("in use") =>
        {
            Err(Error::new(Kind::Conflict, subject, "is in use")
                .cause(trouble::said(&error))
                .help("detach what is attached to it first"))
        }
        Err(error) => Err(trouble::error(subject, "remove it", &error)),
    }
}

/// The error where there is none of that name.
pub fn missing(name: &str) -> Error {
    Error::not_found(format!("network \"{name:.70}\"")).help("`neap network ls` lists them")
}
