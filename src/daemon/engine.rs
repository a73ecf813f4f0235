//! Which engine runs the replicas: as asked, as it was before in this data folder, or what this host has.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::program;
use crate::engines::Engine;
use crate::engines::docker::{self, Address, DockerEngine, DockerOptions};
use crate::engines::process::{ProcessEngine, ProcessOptions};
use crate::engines::swarm::{self, SwarmEngine, SwarmOptions};
use crate::model::{Error, Kind, Result};
use crate::store::Store;

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

/// Opens the engine for a data folder.
pub async fn open(cluster: &str, data: &Path, store: &dyn Store, options: &EngineOptions) -> Result<Arc<dyn Engine>> {
    let used = !store.list("service/")?.is_empty();
    let before = std::fs::read_to_string(data.join(FILE)).ok().map(|text| text.trim().to_owned());
    // What a folder without that file holds was made before there was a choice.
    let before = before.or_else(|| used.then(|| "process".to_owned()));
    let hosts = addresses(options)?;
    let name = match (options.choice, before.as_deref()) {
        (Choice::Process, _) | (Choice::Auto, Some("process")) => "process",
        (Choice::Docker, _) | (Choice::Auto, Some("docker")) => "docker",
        (Choice::Swarm, _) | (Choice::Auto, Some("swarm")) => "swarm",
        (Choice::Auto, Some(other)) => {
            return Err(Error::new(
                Kind::Corrupt,
                format!("data folder {}", data.display()),
                format!("was used with the engine {other:.20?}, which this neap does not have"),
            ));
        }
        (Choice::Auto, None) if hosts.len() == 1 && swarm::manages(&hosts[0]).await => "swarm",
        (Choice::Auto, None) if !options.docker_hosts.is_empty() || docker::answers(&hosts[0]).await => "docker",
        (Choice::Auto, None) => "process",
    };
    if let Some(uses) = before.filter(|uses| used && uses != name) {
        let message = format!("has services of the {uses} engine, and the {name} engine cannot take them over");
        return Err(Error::new(Kind::Conflict, format!("data folder {}", data.display()), message)
            .help(format!("start with --engine {uses}, remove them, or name another folder (--data)")));
    }
    let failed = |error: std::io::Error| Error::io(data.join(FILE).display().to_string(), "write it", &error);
    std::fs::write(data.join(FILE), format!("{name}\n")).map_err(failed)?;
    if name == "process" {
        let engine = ProcessEngine::open(ProcessOptions {
            folder: data.join("tasks"),
            program: program(),
            ports: options.task_ports.clone(),
            lifeline: options.lifeline,
        })?;
        return Ok(Arc::new(engine));
    }
    if name == "swarm" {
        let Some(address) = hosts.into_iter().next() else {
            return Err(Error::invalid("--docker-host", "names no Docker Engine"));
        };
        return Ok(Arc::new(SwarmEngine::open(SwarmOptions { cluster: cluster.to_owned(), address }).await?));
    }
    let secrets = if nix::unistd::geteuid().is_root() { PathBuf::from(SECRETS) } else { data.join("secrets") };
    let engine = DockerEngine::open(DockerOptions { cluster: cluster.to_owned(), hosts, secrets }).await?;
    Ok(Arc::new(engine))
}

/// Where root keeps what containers read: in memory.
const SECRETS: &str = "/run/neap-containers";

fn addresses(options: &EngineOptions) -> Result<Vec<Address>> {
    let here = nix::unistd::gethostname().ok().and_then(|name| name.into_string().ok());
    let here = here.unwrap_or_else(|| "localhost".into());
    let variable = std::env::var("DOCKER_HOST").ok().filter(|host| !host.is_empty());
    let named = match options.docker_hosts.is_empty() {
        true => vec![variable.unwrap_or_else(|| docker::DEFAULT.to_owned())],
        false => options.docker_hosts.clone(),
    };
    // Docker's own variables, where nothing else is said.
    let set = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty());
    let certificates = options.docker_certs.clone().or_else(|| {
        set("DOCKER_TLS_VERIFY")?;
        set("DOCKER_CERT_PATH").map(PathBuf::from).or_else(|| Some(PathBuf::from(set("HOME")?).join(".docker")))
    });
    named.iter().map(|text| Address::read(text, certificates.as_deref(), &here)).collect()
}
