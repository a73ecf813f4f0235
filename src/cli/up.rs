//! `neap up`.

use std::net::SocketAddr;
use std::path::PathBuf;

use clap::ValueEnum;

use super::discovery::DiscoveryArgs;
use super::image_registry::RegistryArgs;
use crate::daemon::engine::{Choice, EngineOptions, StoreChoice};
use crate::daemon::{self, Options, config};
use crate::engines::process::ports::DEFAULT_RANGE;
use crate::model::{Error, Result};

/// Arguments.
#[derive(clap::Args)]
pub struct Args {
    /// Name of the cluster
    #[arg(long, env = "NEAP_CLUSTER")]
    cluster: Option<String>,
    /// Data folder [default: /var/lib/neap for root, else ~/.local/share/neap]
    #[arg(long, env = "NEAP_DATA", value_name = "FOLDER")]
    data: Option<PathBuf>,
    /// Control socket; whoever may open it is as good as root [default: /run/neap.sock for root]
    #[arg(long, env = "NEAP_SOCKET", value_name = "FILE")]
    socket: Option<PathBuf>,
    /// Serve the control API with TLS on this address as well; callers need a token
    #[arg(long, env = "NEAP_LISTEN", value_name = "ADDRESS:PORT")]
    listen: Option<SocketAddr>,
    /// Certificate chain for --listen, in PEM [default: one of its own]
    #[arg(long, env = "NEAP_TLS_CERT", value_name = "FILE", requires = "tls_key")]
    tls_cert: Option<PathBuf>,
    /// Key of --tls-cert, in PEM
    #[arg(long, env = "NEAP_TLS_KEY", value_name = "FILE", requires = "tls_cert")]
    tls_key: Option<PathBuf>,
    /// What runs replicas
    #[arg(long, env = "NEAP_ENGINE", value_enum, value_name = "ENGINE")]
    engine: Option<Choice>,
    /// Where desired state is
    #[arg(long, env = "NEAP_STORE", value_enum, default_value_t, value_name = "STORE")]
    store: StoreChoice,
    /// Where the other daemons of the cluster reach this one [default: port 8377 at the address of this Swarm node]
    #[arg(long, env = "NEAP_PEER", value_name = "ADDRESS:PORT")]
    peer: Option<SocketAddr>,
    /// A Docker Engine, as URL or NAME=URL with unix://, tcp:// or ssh://; several are several nodes
    /// [default: DOCKER_HOST, else unix:///var/run/docker.sock]
    #[arg(long = "docker-host", env = "NEAP_DOCKER_HOSTS", value_delimiter = ',', value_name = "URL")]
    docker_hosts: Vec<String>,
    /// Folder with ca.pem, cert.pem and key.pem for Docker Engines reached by TCP [default: as Docker's variables say]
    #[arg(long, env = "NEAP_DOCKER_CERTS", value_name = "FOLDER")]
    docker_certs: Option<PathBuf>,
    /// Ports handed out to replicas that are processes [default: 20000-29999]
    #[arg(long, env = "NEAP_TASK_PORTS", value_name = "FIRST-LAST")]
    task_ports: Option<String>,
    /// Addresses for services that are balanced inside the cluster [default: 198.18.0.0/16; for processes 127.98.0.0/16]
    #[arg(long, env = "NEAP_INTERNAL_RANGE", value_name = "CIDR")]
    internal_range: Option<String>,
    /// Folder of hosted scripts that serve the whole cluster; followed, and replaced whole when something in it changes
    #[arg(long, env = "NEAP_SCRIPTS", value_name = "FOLDER")]
    scripts: Option<PathBuf>,
    #[command(flatten)]
    registry: RegistryArgs,
    #[command(flatten)]
    discovery: DiscoveryArgs,
    /// What is logged: error, warn, info, debug, or filters such as neap=debug
    #[arg(long, env = "NEAP_LOG", default_value = "info", value_name = "FILTER")]
    log: String,
}

/// Runs the daemon.
pub async fn main(args: &Args, file: config::Config) -> Result<()> {
    start_log(&args.log)?;
    let registry = args.registry.read(&file)?;
    let tls = match (args.tls_cert.clone().or(file.tls_cert), args.tls_key.clone().or(file.tls_key)) {
        (Some(certificate), Some(key)) => Some((certificate, key)),
        (None, None) => None,
        _ => return Err(Error::invalid("configuration", "tls_cert and tls_key go together")),
    };
    let choice = match (args.engine, &file.engine) {
        (Some(choice), _) => choice,
        (None, Some(name)) => <Choice as clap::ValueEnum>::from_str(name, false).map_err(|_| {
            let known = Choice::value_variants().iter().filter_map(Choice::to_possible_value);
            let known: Vec<String> = known.map(|value| value.get_name().to_owned()).collect();
            Error::invalid("configuration", format!("engine: {name:.40?} is none of {}", known.join(", ")))
        })?,
        (None, None) => Choice::Auto,
    };
    let ports = args.task_ports.clone().or(file.task_ports);
    let catalog = args.discovery.read(file.discovery)?;
    let internal = args.internal_range.clone().or(file.internal_range);
    daemon::up(Options {
        internal: internal.map(|range| range.parse()).transpose()?,
        registry,
        discovery: catalog,
        cluster: args.cluster.clone().or(file.cluster).unwrap_or_else(|| "default".into()),
        data: args.data.clone().or(file.data).unwrap_or_else(config::default_data),
        socket: args.socket.clone().or(file.socket).unwrap_or_else(config::default_socket),
        listen: args.listen.or(file.listen),
        peer: args.peer,
        tls,
        scripts: args.scripts.clone().or(file.scripts),
        engine: EngineOptions {
            choice,
            store: args.store,
            task_ports: ports.as_deref().map(read_range).transpose()?.unwrap_or(DEFAULT_RANGE),
            docker_hosts: if args.docker_hosts.is_empty() { file.docker_hosts } else { args.docker_hosts.clone() },
            docker_certs: args.docker_certs.clone().or(file.docker_certs),
            lifeline: false,
        },
    })
    .await
}

fn read_range(text: &str) -> Result<std::ops::RangeInclusive<u16>> {
    let wrong = || {
        Error::invalid(format!("task ports {text:.40?}"), "are not a range of ports")
            .help("write FIRST-LAST, such as 20000-29999")
    };
    let (first, last) = text.split_once('-').ok_or_else(wrong)?;
    let (first, last): (u16, u16) =
        (first.trim().parse().map_err(|_| wrong())?, last.trim().parse().map_err(|_| wrong())?);
    if first == 0 || first > last { Err(wrong()) } else { Ok(first..=last) }
}

/// Begins logging to standard error.
pub fn start_log(filter: &str) -> Result<()> {
    use std::io::IsTerminal;
    use tracing_subscriber::prelude::*;
    let filter: tracing_subscriber::filter::Targets = filter
        .parse()
        .map_err(|error| Error::invalid(format!("log filter {filter:.60?}"), "cannot be read").cause(error))?;
    let colours = std::io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none();
    let lines = tracing_subscriber::fmt::layer().with_ansi(colours).with_writer(std::io::stderr).with_filter(filter);
    let _ = tracing_subscriber::registry().with(lines).try_init();
    Ok(())
}
