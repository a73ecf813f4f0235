//! Which engine runs the replicas: as asked, as it was before in this data folder, or what this host has.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::program;
use crate::engines::Engine;
use crate::engines::docker::{self, Address, DockerEngine, DockerOptions};
use crate::engines::hosts::Hosts;
use crate::engines::process::{ProcessEngine, ProcessOptions};
use crate::engines::swarm::{self, SwarmEngine, SwarmOptions};
use crate::model::{Error, Kind, Result};
use crate::store::{EmbeddedStore, Store, file};

/// Which engine is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, clap::ValueEnum)]
pub enum Choice {
    /// The one that the data folder was used with, else the Swarm that this host manages, else the Docker Engine if one
    /// answers, else processes
    #[default]
    Auto,
    /// Replicas are processes of this host
    Process,
    /// Replicas are containers, on one or several Docker Engines
    Docker,
    /// Replicas are services of a Docker Swarm, of which this host is a manager
    Swarm,
}

/// All that the choice depends on.
#[derive(Debug, Clone)]
pub struct EngineOptions {
    /// Which one.
    pub choice: Choice,
    /// Where desired state is.
    pub store: StoreChoice,
    /// Ports for replicas that are processes.
    pub task_ports: std::ops::RangeInclusive<u16>,
    /// Docker Engines, as `URL` or `NAME=URL`; the local one where none is named.
    pub docker_hosts: Vec<String>,
    /// A folder with `ca.pem`, `cert.pem` and `key.pem` for those reached by TCP.
    pub docker_certs: Option<PathBuf>,
    /// Whether replicas end with this process.
    pub lifeline: bool,
}

/// The file in the data folder that says which engine its services run on.
const FILE: &str = "engine";

/// Where desired state is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, clap::ValueEnum)]
pub enum StoreChoice {
    /// In the Swarm for the swarm engine, in the data folder otherwise
    #[default]
    Auto,
    /// In a file of the data folder; this daemon is the only one
    Redb,
    /// In the Swarm; a daemon on each manager, one of which leads
    Swarm,
}

/// What it came to.
pub enum Chosen {
    /// A store of this daemon's own, and the engine's name.
    Own(Arc<EmbeddedStore>, &'static str),
    /// The store in the Swarm of this Docker Engine, shared with other daemons.
    Shared(Address),
}

/// Decides for a data folder.
pub async fn choose(data: &Path, options: &EngineOptions) -> Result<Chosen> {
    super::moving::refuse_half_moved(data)?;
    let path = data.join("neap.redb");
    let subject = || format!("data folder {}", data.display());
    // Looked into only where there is one: opening it makes it.
    let own = if path.exists() { Some(Arc::new(EmbeddedStore::open(&path)?)) } else { None };
    let used = match &own {
        Some(store) => !store.list("service/")?.is_empty(),
        None => false,
    };
    // A store of the swarm engine in this folder was moved here, or asked for, though it has no services yet.
    let has_id = match &own {
        Some(store) => store.get(super::identity::ID)?.is_some(),
        None => false,
    };
    let failed = |act: &str, error: std::io::Error| Error::io(data.join(FILE).display().to_string(), act, &error);
    let known = file::text(&data.join(FILE)).map_err(|error| failed("read it", error))?;
    let before = known.map(|text| text.trim().to_owned());
    let written = before.clone();
    // What a folder without that file holds was made before there was a choice.
    let before = before.or_else(|| used.then(|| "process".to_owned()));
    let moved_here = has_id && before.as_deref() == Some("swarm");
    let hosts = addresses(&options.docker_hosts, options.docker_certs.as_deref())?;
    let name = match (options.choice, before.as_deref()) {
        (Choice::Process, _) | (Choice::Auto, Some("process")) => "process",
        (Choice::Docker, _) | (Choice::Auto, Some("docker")) => "docker",
        (Choice::Swarm, _) | (Choice::Auto, Some("swarm")) => "swarm",
        (Choice::Auto, Some(other)) => {
            let message = format!("was used with the engine {other:.20?}, which this neap does not have");
            return Err(Error::new(Kind::Corrupt, subject(), message));
        }
        (Choice::Auto, None) if hosts.len() == 1 && swarm::manages(&hosts[0]).await => "swarm",
        (Choice::Auto, None) if !options.docker_hosts.is_empty() || docker::answers(&hosts[0]).await => "docker",
        (Choice::Auto, None) => "process",
    };
    if let Some(uses) = before.filter(|uses| used && uses != name) {
        let message = format!("has services of the {uses} engine, and the {name} engine cannot take them over");
        return Err(Error::new(Kind::Conflict, subject(), message)
            .help(format!("start with --engine {uses}, remove them, or name another folder (--data)")));
    }
    let shared = match options.store {
        StoreChoice::Auto => name == "swarm" && !used && !moved_here,
        StoreChoice::Swarm if name != "swarm" => {
            let message = format!("goes with --engine swarm; this is the {name} engine");
            return Err(Error::invalid("--store swarm", message));
        }
        StoreChoice::Swarm if used => {
            return Err(Error::new(Kind::Conflict, subject(), "has services in a store of its own")
                .help("start with --store redb, remove them, or name another folder (--data)"));
        }
        choice => choice == StoreChoice::Swarm,
    };
    if written.as_deref() != Some(name) {
        let text = format!("{name}\n");
        file::replace(&data.join(FILE), text.as_bytes(), 0o644).map_err(|error| failed("write it", error))?;
    }
    match (shared, hosts.into_iter().next()) {
        (true, Some(address)) => Ok(Chosen::Shared(address)),
        (true, None) => Err(Error::invalid("--docker-host", "names no Docker Engine")),
        (false, _) => {
            let own = own.map_or_else(|| EmbeddedStore::open(&path).map(Arc::new), Ok)?;
            Ok(Chosen::Own(own, name))
        }
    }
}

/// Opens the engine of this name.
pub async fn open(cluster: &str, data: &Path, name: &str, options: &EngineOptions) -> Result<Arc<dyn Engine>> {
    if name == "process" {
        let engine = ProcessEngine::open(ProcessOptions {
            folder: data.join("tasks"),
            program: program(),
            ports: options.task_ports.clone(),
            lifeline: options.lifeline,
        })?;
        return Ok(Arc::new(engine));
    }
    let hosts = addresses(&options.docker_hosts, options.docker_certs.as_deref())?;
    if name == "swarm" {
        let first = hosts.into_iter().next();
        let first = first.ok_or_else(|| Error::invalid("--docker-host", "names no Docker Engine"))?;
        return swarm(cluster, first, None).await;
    }
    let secrets = if nix::unistd::geteuid().is_root() { PathBuf::from(SECRETS) } else { data.join("secrets") };
    let engine = DockerEngine::open(DockerOptions { cluster: cluster.to_owned(), hosts, secrets }).await?;
    Ok(Arc::new(engine))
}

/// The Docker Engines whose containers this daemon sees itself.
pub fn with_containers(name: &str, options: &EngineOptions) -> Result<Vec<Address>> {
    match name {
        "docker" | "swarm" => addresses(&options.docker_hosts, options.docker_certs.as_deref()),
        _ => Ok(Vec::new()),
    }
}

/// Opens the engine of the Swarm that this Docker Engine manages; `hosts`: who acts on its nodes.
pub async fn swarm(cluster: &str, address: Address, hosts: Option<Arc<dyn Hosts>>) -> Result<Arc<dyn Engine>> {
    Ok(Arc::new(SwarmEngine::open(SwarmOptions { cluster: cluster.to_owned(), address, hosts }).await?))
}

/// Where root keeps what containers read: in memory.
const SECRETS: &str = "/run/neap-containers";

/// The Docker Engine of this host: the one that is named, else as Docker's own variables say.
pub fn local_address(named: Option<&str>) -> Result<Address> {
    let named: Vec<String> = named.map(str::to_owned).into_iter().collect();
    let first = addresses(&named, None)?.into_iter().next();
    first.ok_or_else(|| Error::invalid("--docker-host", "names no Docker Engine"))
}

fn addresses(hosts: &[String], certificates: Option<&Path>) -> Result<Vec<Address>> {
    let here = nix::unistd::gethostname().ok().and_then(|name| name.into_string().ok());
    let here = here.unwrap_or_else(|| "localhost".into());
    let variable = std::env::var("DOCKER_HOST").ok().filter(|host| !host.is_empty());
    let named = match hosts.is_empty() {
        true => vec![variable.unwrap_or_else(|| docker::DEFAULT.to_owned())],
        false => hosts.to_vec(),
    };
    // Docker's own variables, where nothing else is said.
    let set = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty());
    let certificates = certificates.map(Path::to_owned).or_else(|| {
        set("DOCKER_TLS_VERIFY")?;
        set("DOCKER_CERT_PATH").map(PathBuf::from).or_else(|| Some(PathBuf::from(set("HOME")?).join(".docker")))
    });
    named.iter().map(|text| Address::read(text, certificates.as_deref(), &here)).collect()
}
