//! What replicas need besides their service: networks, secrets and configs of the Swarm.

use std::collections::{BTreeMap, HashMap};
use std::net::Ipv4Addr;

use base64::Engine;
use bollard::Docker;
use bollard::models::{ConfigSpec, SecretSpec};
use bollard::query_parameters::{InspectNetworkOptions, ListConfigsOptions, ListSecretsOptions};

use super::spec::{FileUse, Files};
use crate::engines::StartRequest;
use crate::engines::docker::{networks, spec, trouble};
use crate::engines::native::Wanted;
use crate::model::id::sha256_hex;
use crate::model::objects::{NetworkAsk, NetworkInfo, NetworkSpec};
use crate::model::{Error, Kind, Result};

/// Networks get subnets of this size, out of 10.128.0.0/9: Swarm's own default, a /24, is full after 250 replicas.
const PREFIX: u8 = 20;
/// The label of a config that replicas read. The store's own configs carry others.
const CONFIG: &str = "neap.config";

/// The label of what was given to a native service: which of Neap's secrets or configs it was.
pub const VALUE: &str = "neap.value";

/// Makes a network that is not there: an overlay to which containers outside of services can be attached too.
pub async fn ensure_network(docker: &Docker, cluster: &str, name: &str) -> Result<()> {
    if matches!(name, "host" | "none" | "bridge") {
        return Ok(());
    }
    let of_swarm = InspectNetworkOptions { scope: Some("swarm".into()), ..InspectNetworkOptions::default() };
    match docker.inspect_network(name, Some(of_swarm)).await {
        // It may have found another one whose id begins like this.
        Ok(found) if found.name.as_deref() == Some(name) => return Ok(()),
        Err(error) if !trouble::is_status(&error, 404) => {
            return Err(trouble::error(format!("network \"{name}\""), "look it up", &error));
        }
        _ => {}
    }
    let listed = networks::list(docker).await?;
    if listed.iter().any(|network| network.name == name) {
        let message = "is there on this host, but is no network of the Swarm";
        return Err(Error::new(Kind::Conflict, format!("network \"{name}\""), message).help("use another name"));
    }
    match create(docker, cluster, &NetworkSpec { name: name.to_owned(), ..NetworkSpec::default() }, &listed).await {
        // Another replica's start was faster.
        Err(error) if error.kind == Kind::Conflict => Ok(()),
        other => other,
    }
}

async fn create(docker: &Docker, cluster: &str, network: &NetworkSpec, known: &[NetworkInfo]) -> Result<()> {
    let mut subnets = network.subnets.clone();
    if subnets.is_empty() && network.driver.as_deref().is_none_or(|driver| driver == "overlay") {
        let taken = known.iter().flat_map(|network| &network.subnets).filter_map(|text| subnet(text));
        subnets.extend(free_subnet(&taken.collect::<Vec<_>>(), &network.name));
    }
    networks::create(docker, networks::request(network, "overlay", &subnets, cluster)).await
}

/// Networks of the Swarm.
pub async fn networks(docker: &Docker, cluster: &str, ask: NetworkAsk) -> Result<Vec<NetworkInfo>> {
    let mut known = networks::list(docker).await?;
    known.retain(|network| network.scope == "swarm");
    match ask {
        NetworkAsk::List => return Ok(known),
        NetworkAsk::Create(network) => create(docker, cluster, &network, &networks::list(docker).await?).await?,
        NetworkAsk::Remove(name) => {
            let found = known.iter().find(|network| network.name == name).ok_or_else(|| networks::missing(&name))?;
            if name == "ingress" {
                return Err(Error::new(Kind::Unsupported, "network \"ingress\"", "is Swarm's own"));
            }
            // By id: a network of this host may have the same name.
            if !networks::remove(docker, &found.id).await.map_err(|error| error.about(format!("network \"{name}\"")))? {
                return Err(networks::missing(&name));
            }
        }
    }
    Ok(Vec::new())
}

fn subnet(text: &str) -> Option<(u32, u8)> {
    let (address, prefix) = text.split_once('/')?;
    Some((u32::from(address.parse::<Ipv4Addr>().ok()?), prefix.parse().ok()?))
}

// The same for the same name and the same others; where it begins to look is spread by the name.
fn free_subnet(taken: &[(u32, u8)], name: &str) -> Option<String> {
    let count = 1_u32 << (PREFIX - 9);
    let first = u32::from_str_radix(&sha256_hex(name.as_bytes())[..7], 16).unwrap_or_default();
    let base = u32::from(Ipv4Addr::new(10, 128, 0, 0));
    (0..count).map(|step| base + ((first.wrapping_add(step) % count) << (32 - PREFIX))).find_map(|candidate| {
        let overlaps = |(other, prefix): &(u32, u8)| {
            let shift = 32 - u32::from((*prefix).min(PREFIX));
            shift >= 32 || candidate >> shift == other >> shift
        };
        (!taken.iter().any(overlaps)).then(|| format!("{}/{PREFIX}", Ipv4Addr::from(candidate)))
    })
}

// What it holds is part of its name: another version is another object.
fn object_name(cluster: &str, value: &[u8], salt: &str) -> String {
    let hash = sha256_hex(format!("{cluster}\0{salt}\0{}", sha256_hex(value)).as_bytes());
    format!("neap-{}", &hash[..40])
}

/// Makes the Swarm's secrets and configs that a task reads, where they are not there yet.
pub async fn ensure_files(docker: &Docker, cluster: &str, request: &StartRequest) -> Result<Files> {
    let mut files = Files::default();
    for (file, value) in &request.secrets.0 {
        let owner = request.spec.secrets.get(file).cloned().unwrap_or_default();
        let name = object_name(cluster, value, &owner.name);
        let id = match secret_id(docker, &name).await? {
            Some(id) => id,
            None => create_secret(docker, labels(spec::CLUSTER, cluster), &name, value).await?,
        };
        files.secrets.push((FileUse { file: file.clone(), id, name }, owner));
    }
    for config in &request.configs {
        let name = object_name(cluster, &config.value, &config.owner.name);
        let id = match config_id(docker, &name).await? {
            Some(id) => id,
            None => create_config(docker, labels(CONFIG, cluster), &name, &config.value).await?,
        };
        files.configs.push((FileUse { file: config.target.clone(), id, name }, config.owner.clone()));
    }
    Ok(files)
}

/// The same for a native service, under names that people know again. Those of one that is this cluster's are cleared up when
/// nothing uses them any more.
pub async fn native_files(docker: &Docker, cluster: &str, wanted: &Wanted) -> Result<Files> {
    let (request, (secrets, configs)) = (&wanted.request, &wanted.versions);
    let name = |name: &str, versions: &BTreeMap<String, u64>| {
        let fit = |c: char| if c.is_ascii_alphanumeric() || matches!(c, '-' | '.') { c } else { '_' };
        let plain: String = name.chars().map(fit).take(40).collect();
        let version = versions.get(name).copied().unwrap_or_default();
        // Two names may look alike with the letters that a Swarm takes.
        let which = &sha256_hex(name.as_bytes())[..4];
        format!("{}-v{version}-{which}{}", plain.trim_start_matches(['-', '.', '_']), wanted.tag)
    };
    let labels = |key: &str, name: &str| -> Labels {
        let mut all = labels(VALUE, name)?;
        all.extend(wanted.mark.iter().map(|_| (key.to_owned(), cluster.to_owned())));
        Some(all)
    };
    let mut files = Files::default();
    for (file, value) in &request.secrets.0 {
        let owner = request.spec.secrets.get(file).cloned().unwrap_or_default();
        let name = name(&owner.name, secrets);
        let id = create_secret(docker, labels(spec::CLUSTER, &owner.name), &name, value).await?;
        files.secrets.push((FileUse { file: file.clone(), id, name }, owner));
    }
    for config in &request.configs {
        let name = name(&config.owner.name, configs);
        let id = create_config(docker, labels(CONFIG, &config.owner.name), &name, &config.value).await?;
        files.configs.push((FileUse { file: config.target.clone(), id, name }, config.owner.clone()));
    }
    Ok(files)
}

type Labels = Option<HashMap<String, String>>;

fn labels(key: &str, value: &str) -> Labels {
    Some(HashMap::from([(key.to_owned(), value.to_owned())]))
}

async fn create_secret(docker: &Docker, labels: Labels, name: &str, value: &[u8]) -> Result<String> {
    let spec = SecretSpec {
        name: Some(name.to_owned()),
        labels,
        data: Some(base64::engine::general_purpose::STANDARD.encode(value)),
        ..SecretSpec::default()
    };
    match docker.create_secret(spec).await {
        Ok(made) => Ok(made.id),
        Err(error) if trouble::is_status(&error, 409) => {
            secret_id(docker, name).await?.ok_or_else(|| vanished("secret", name))
        }
        Err(error) => Err(trouble::error(format!("secret \"{name}\""), "make it in the Swarm", &error)),
    }
}

// There when it was to be made, and gone when it was looked up.
fn vanished(what: &str, name: &str) -> Error {
    Error::new(Kind::Conflict, format!("{what} \"{name}\""), "was removed by somebody else just now").retry(true)
}

async fn secret_id(docker: &Docker, name: &str) -> Result<Option<String>> {
    match docker.inspect_secret(name).await {
        Ok(found) => Ok(found.id),
        Err(error) if trouble::is_status(&error, 404) => Ok(None),
        Err(error) => Err(trouble::error(format!("secret \"{name}\""), "look it up in the Swarm", &error)),
    }
}

async fn create_config(docker: &Docker, labels: Labels, name: &str, value: &[u8]) -> Result<String> {
    let spec = ConfigSpec {
        name: Some(name.to_owned()),
        labels,
        data: Some(base64::engine::general_purpose::STANDARD.encode(value)),
        ..ConfigSpec::default()
    };
    match docker.create_config(spec).await {
        Ok(made) => Ok(made.id),
        Err(error) if trouble::is_status(&error, 409) => {
            config_id(docker, name).await?.ok_or_else(|| vanished("config", name))
        }
        Err(error) => Err(trouble::error(format!("config \"{name}\""), "make it in the Swarm", &error)),
    }
}

async fn config_id(docker: &Docker, name: &str) -> Result<Option<String>> {
    match docker.inspect_config(name).await {
        Ok(found) => Ok(found.id),
        Err(error) if trouble::is_status(&error, 404) => Ok(None),
        Err(error) => Err(trouble::error(format!("config \"{name}\""), "look it up in the Swarm", &error)),
    }
}

fn filters(key: &str, cluster: &str) -> Option<HashMap<String, Vec<String>>> {
    Some(HashMap::from([("label".to_owned(), vec![format!("{key}={cluster}")])]))
}

/// Removes our secrets and configs that no service uses any more; Swarm itself keeps those that one does.
pub async fn prune_files(docker: &Docker, cluster: &str) -> Result<()> {
    let gone = |what: &str, result: std::result::Result<(), bollard::errors::Error>| match result {
        Ok(()) => {}
        Err(error) if trouble::is_status(&error, 404) || trouble::said(&error).contains("in use") => {}
        Err(error) => tracing::warn!(%error, what, "what nothing uses could not be removed from the Swarm"),
    };
    let listed = docker.list_secrets(Some(ListSecretsOptions { filters: filters(spec::CLUSTER, cluster) })).await;
    let listed = listed.map_err(|error| trouble::error("Swarm", "list its secrets", &error))?;
    for id in listed.into_iter().filter_map(|secret| secret.id) {
        gone("secret", docker.delete_secret(&id).await);
    }
    let listed = docker.list_configs(Some(ListConfigsOptions { filters: filters(CONFIG, cluster) })).await;
    let listed = listed.map_err(|error| trouble::error("Swarm", "list its configs", &error))?;
    for id in listed.into_iter().filter_map(|config| config.id) {
        gone("config", docker.delete_config(&id).await);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn subnets_do_not_overlap() {
        let mut taken = vec![subnet("10.0.0.0/8").unwrap()];
        assert_eq!(free_subnet(&taken, "a"), None);
        taken = vec![subnet("10.0.1.0/24").unwrap(), subnet("172.17.0.0/16").unwrap()];
        let first = free_subnet(&taken, "a").unwrap();
        assert_eq!(free_subnet(&taken, "a").as_ref(), Some(&first));
        taken.push(subnet(&first).unwrap());
        let second = free_subnet(&taken, "a").unwrap();
        assert_ne!(first, second);
        // A smaller network inside takes the whole.
        let inside = second.replace("/20", "/28");
        taken.push(subnet(&inside).unwrap());
        assert_ne!(free_subnet(&taken, "a").unwrap(), second);
    }
}
