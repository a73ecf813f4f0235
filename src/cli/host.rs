//! `neap init`, `join`, `leave`, `agent`, `join-token`: hosts and their cluster.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use async_trait::async_trait;

use super::discovery::DiscoveryArgs;
use super::image_registry::RegistryArgs;
use super::output::{self, FormatArg};
use super::up::start_log;
use crate::agent::authority::JoinToken;
use crate::agent::identity::Identity;
use crate::agent::join;
use crate::client::Cluster;
use crate::client::hosting::{HostJoined, HostPlace, Hosting, InitAsk, JoinAsk, LeaveAsk, UnlockAsk};
use crate::client::members::JoinTicket;
use crate::client::remote::RemoteCluster;
use crate::client::wire::Endpoint;
use crate::daemon::agent::{self, AgentOptions};
use crate::daemon::config::{self, Config};
use crate::daemon::{background, engine, shared};
use crate::engines::docker::Address;
use crate::engines::swarm::join::{LocalSwarm, Terms};
use crate::model::clock::SystemClock;
use crate::model::node::Role;
use crate::model::{Error, Kind, Result};

/// How long what was started has until it works.
const READY: Duration = Duration::from_secs(60);

/// Where this host's part is.
#[derive(clap::Args, Clone)]
pub struct Place {
    /// Data folder [default: /var/lib/neap for root, else ~/.local/share/neap]
    #[arg(long, env = "NEAP_DATA", value_name = "FOLDER")]
    data: Option<PathBuf>,
    /// The Docker Engine of this host [default: DOCKER_HOST, else unix:///var/run/docker.sock]
    #[arg(long, env = "NEAP_DOCKER_HOST", value_name = "URL")]
    docker_host: Option<String>,
}

impl Place {
    /// The data folder.
    pub fn data(&self, file: &Config) -> PathBuf {
        self.data.clone().or_else(|| file.data.clone()).unwrap_or_else(config::default_data)
    }

    /// The Docker Engine of this host.
    pub fn docker(&self) -> Result<Address> {
        engine::local_address(self.docker_host.as_deref())
    }
}

/// Docker's words for a node's addresses.
#[derive(clap::Args)]
pub struct Addresses {
    /// Address that the other hosts are told [default: the one of the interface that leads to them]
    #[arg(long, value_name = "ADDRESS")]
    advertise_addr: Option<String>,
    /// Where the Swarm's manager listens [default: 0.0.0.0:2377]
    #[arg(long, value_name = "ADDRESS:PORT")]
    listen_addr: Option<String>,
    /// Address for the containers' traffic [default: as advertised]
    #[arg(long, value_name = "ADDRESS")]
    data_path_addr: Option<String>,
}

impl Addresses {
    fn of(&self, place: &Place, socket: Option<&PathBuf>) -> HostPlace {
        HostPlace {
            data: place.data.clone(),
            docker_host: place.docker_host.clone(),
            socket: socket.cloned(),
            advertise_addr: self.advertise_addr.clone(),
            listen_addr: self.listen_addr.clone(),
            data_path_addr: self.data_path_addr.clone(),
        }
    }
}

fn terms(place: &HostPlace) -> Terms {
    Terms {
        only: None,
        advertise_addr: place.advertise_addr.clone(),
        listen_addr: place.listen_addr.clone(),
        data_path_addr: place.data_path_addr.clone(),
    }
}

/// This host, for the commands of this file and for the scripts that are run here.
pub struct Here {
    /// The configuration.
    pub file: Config,
    /// Who is told what has been done.
    pub say: fn(&str) -> Result<()>,
}

impl Here {
    /// For a script, which tells what it likes itself.
    pub fn silent(file: Config) -> Self {
        Here { file, say: |_| Ok(()) }
    }

    fn say(&self, line: &str) -> Result<()> {
        (self.say)(line)
    }

    fn data(&self, place: &HostPlace) -> PathBuf {
        let named = place.data.clone().or_else(|| environment("NEAP_DATA").map(PathBuf::from));
        named.or_else(|| self.file.data.clone()).unwrap_or_else(config::default_data)
    }

    fn docker(place: &HostPlace) -> Result<Address> {
        let named = place.docker_host.clone().or_else(|| environment("NEAP_DOCKER_HOST"));
        engine::local_address(named.as_deref())
    }

    fn socket(&self, place: &HostPlace) -> PathBuf {
        let named = place.socket.clone().or_else(|| environment("NEAP_SOCKET").map(PathBuf::from));
        named.or_else(|| self.file.socket.clone()).unwrap_or_else(config::default_socket)
    }
}

// As flags have it, for scripts as well.
fn environment(name: &str) -> Option<String> {
    std::env::var(name).ok().filter(|value| !value.is_empty())
}

/// Arguments of `init`.
#[derive(clap::Args)]
pub struct InitArgs {
    #[command(flatten)]
    place: Place,
    #[command(flatten)]
    addresses: Addresses,
    /// Name of the cluster
    #[arg(long, env = "NEAP_CLUSTER")]
    cluster: Option<String>,
    /// Control socket [default: /run/neap.sock for root]
    #[arg(long, env = "NEAP_SOCKET", value_name = "FILE")]
    socket: Option<PathBuf>,
}

/// Arguments of `join`.
#[derive(clap::Args)]
pub struct JoinArgs {
    /// A daemon of the cluster, as `neap join-token` prints it [port: 8377]
    address: String,
    /// What `neap join-token` prints
    #[arg(long, env = "NEAP_JOIN_TOKEN", value_name = "TOKEN", hide_env_values = true)]
    token: String,
    #[command(flatten)]
    place: Place,
    #[command(flatten)]
    addresses: Addresses,
    /// Control socket of the daemon, where this host becomes a manager [default: /run/neap.sock for root]
    #[arg(long, env = "NEAP_SOCKET", value_name = "FILE")]
    socket: Option<PathBuf>,
    /// Join only; start `neap agent` (or `neap up` on a manager) yourself
    #[arg(long)]
    no_start: bool,
}

/// Arguments of `leave`.
#[derive(clap::Args)]
pub struct LeaveArgs {
    #[command(flatten)]
    place: Place,
    /// Also as a manager, and without regard to what is lost by it
    #[arg(long, short)]
    force: bool,
}

/// Arguments of `agent`.
#[derive(clap::Args)]
pub struct AgentArgs {
    #[command(flatten)]
    place: Place,
    /// Join first, at this daemon of the cluster [port: 8377]; the first of several that answers
    #[arg(long, value_name = "ADDRESS", requires = "token_file")]
    join: Vec<String>,
    /// The file that holds the token of `neap join-token worker`, for --join
    #[arg(long, value_name = "FILE", env = "NEAP_JOIN_TOKEN_FILE")]
    token_file: Option<PathBuf>,
    #[command(flatten)]
    discovery: DiscoveryArgs,
    #[command(flatten)]
    registry: RegistryArgs,
    /// What is logged: error, warn, info, debug, or filters such as neap=debug
    #[arg(long, env = "NEAP_LOG", default_value = "info", value_name = "FILTER")]
    log: String,
}

/// Arguments of `join-token`.
#[derive(clap::Args)]
pub struct TokenArgs {
    /// What the host is to become
    #[arg(value_enum)]
    role: super::node::RoleArg,
    /// Make the token anew: the one before lets nobody in any more
    #[arg(long)]
    rotate: bool,
    /// The token alone
    #[arg(long, short)]
    quiet: bool,
    #[command(flatten)]
    format: FormatArg,
}

/// Runs `neap init`.
pub async fn init(args: &InitArgs, file: Config) -> Result<()> {
    let place = args.addresses.of(&args.place, args.socket.as_ref());
    let ask = InitAsk { place, cluster: args.cluster.clone() };
    let ticket = Here { file, say: output::line }.init(ask).await?;
    output::line(&format!("other hosts join with:\n\n  {}\n", ticket.command()))?;
    output::line("as managers, with the token that `neap join-token manager` prints")
}

impl Here {
    // Starts the daemon, unless one answers, and waits until it leads or follows.
    async fn daemon(&self, place: &HostPlace, cluster: Option<&str>) -> Result<()> {
        let socket = self.socket(place);
        let remote = RemoteCluster::new(Endpoint::Unix(socket.clone()));
        if let Ok(info) = remote.info().await {
            return self.say(&format!("its daemon runs already (cluster {})", info.cluster));
        }
        let data = self.data(place);
        let mut arguments = vec!["up".to_owned(), "--engine".into(), "swarm".into()];
        arguments.extend(["--data".into(), text(&data)?, "--socket".into(), text(&socket)?]);
        arguments.extend(cluster.into_iter().flat_map(|name| ["--cluster".to_owned(), name.to_owned()]));
        arguments.extend(docker_flag(place));
        let started = background::start("neap", &arguments, &data)?;
        let mut last = None;
        let answers = async || match remote.info().await {
            Ok(info) => Some(info),
            Err(error) => {
                last = Some(error);
                None
            }
        };
        match until(&started, answers).await? {
            Some(info) => self.say(&format!("its daemon is up: cluster {}, {started}", info.cluster)),
            None => {
                let error = Error::new(Kind::Timeout, "daemon", format!("does not answer yet; it is {started}"));
                Err(last.map_or(error.clone(), |last| error.cause(last)))
            }
        }
    }
}

fn docker_flag(place: &HostPlace) -> Vec<String> {
    let named = place.docker_host.clone().or_else(|| environment("NEAP_DOCKER_HOST"));
    named.into_iter().flat_map(|host| ["--docker-host".to_owned(), host]).collect()
}

fn text(path: &Path) -> Result<String> {
    let text = path.to_str().map(str::to_owned);
    text.ok_or_else(|| Error::invalid(format!("path {}", path.display()), "is not UTF-8"))
}

// Asks until it says yes; an error as soon as what was started has ended.
async fn until<T>(started: &background::Started, mut ready: impl AsyncFnMut() -> Option<T>) -> Result<Option<T>> {
    let deadline = Instant::now() + READY;
    while Instant::now() < deadline {
        if let Some(found) = ready().await {
            return Ok(Some(found));
        }
        if let background::Started::Process(pid, log) = started
            && let Ok(nix::sys::wait::WaitStatus::Exited(..) | nix::sys::wait::WaitStatus::Signaled(..)) =
                nix::sys::wait::waitpid(
                    nix::unistd::Pid::from_raw(pid.cast_signed()),
                    Some(nix::sys::wait::WaitPidFlag::WNOHANG),
                )
        {
            let said = std::fs::read_to_string(log).unwrap_or_default();
            let lines: Vec<&str> = said.lines().collect();
            let tail = lines[lines.len().saturating_sub(5)..].join("\n");
            return Err(Error::new(Kind::Failed, format!("process {pid}"), "ended at once").cause(tail));
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    Ok(None)
}

/// Runs `neap join`.
pub async fn join(args: &JoinArgs, file: Config) -> Result<()> {
    let place = args.addresses.of(&args.place, args.socket.as_ref());
    let (address, token) = (args.address.clone(), args.token.clone());
    let ask = JoinAsk { address, token, place, no_start: args.no_start };
    Here { file, say: output::line }.join(ask).await.map(drop)
}

#[async_trait(?Send)]
impl Hosting for Here {
    async fn init(&self, ask: InitAsk) -> Result<JoinTicket> {
        let local = LocalSwarm::open(&Self::docker(&ask.place)?).await?;
        match local.membership().await? {
            Some(membership) if !membership.manager => {
                return Err(Error::new(Kind::Conflict, "this host", "is a worker of a Swarm already")
                    .help("leave it first (neap leave), or run this on a manager"));
            }
            Some(membership) => {
                self.say(&format!("this host is a manager of a Swarm already (node {})", membership.node))?;
            }
            None => {
                let node = local.init(&terms(&ask.place)).await?;
                self.say(&format!("a Swarm is made, with this host as its manager (node {node})"))?;
            }
        }
        let cluster = ask.cluster.or_else(|| environment("NEAP_CLUSTER")).or_else(|| self.file.cluster.clone());
        self.daemon(&ask.place, cluster.as_deref()).await?;
        RemoteCluster::new(Endpoint::Unix(self.socket(&ask.place))).join_ticket(Role::Worker, false).await
    }

    async fn join(&self, ask: JoinAsk) -> Result<HostJoined> {
        let token: JoinToken = ask.token.parse()?;
        let (address, place) = (with_port(&ask.address)?, &ask.place);
        let (docker, data) = (Self::docker(place)?, self.data(place));
        let clock = SystemClock::start();
        // An agent that runs begins anew with what it is given now; the balancer goes on meanwhile.
        let free = || {
            if crate::daemon::is_held(&data)? && Identity::load(&data)?.is_none() {
                let subject = format!("data folder {}", data.display());
                return Err(Error::new(Kind::Conflict, subject, "is in use by a daemon")
                    .help("stop it, or give the agent another folder (--data)"));
            }
            background::stop("neap-agent", &data)
        };
        let joined = join::join(&address, &token, &docker, &terms(place), &data, &clock, free).await?;
        let now = HostJoined { cluster: joined.cluster, node: joined.membership.node, role: joined.role };
        let how = if joined.was_node { "is" } else { "has become" };
        let (role, node) = (now.role.as_str(), &now.node);
        self.say(&format!("this host {how} a {role} of cluster {} (node {node})", now.cluster))?;
        if ask.no_start {
            let next = if now.role == Role::Manager { "up --engine swarm" } else { "agent" };
            self.say(&format!("now start: neap {next} --data {}", data.display()))?;
            return Ok(now);
        }
        if now.role == Role::Manager {
            self.daemon(place, Some(&now.cluster)).await?;
            return Ok(now);
        }
        let _ = std::fs::remove_file(agent::connected_file(&data));
        let mut arguments = vec!["agent".to_owned(), "--data".into(), text(&data)?];
        arguments.extend(docker_flag(place));
        let started = background::start("neap-agent", &arguments, &data)?;
        let connected = async || std::fs::read_to_string(agent::connected_file(&data)).ok();
        match until(&started, connected).await? {
            Some(at) => self.say(&format!("its agent is connected to {}: {started}", at.trim()))?,
            None => return Err(Error::new(Kind::Timeout, "agent", format!("is not connected yet; it is {started}"))),
        }
        Ok(now)
    }

    async fn unlock(&self, ask: UnlockAsk) -> Result<()> {
        LocalSwarm::open(&Self::docker(&ask.place)?).await?.unlock(ask.key.trim()).await
    }

    async fn leave(&self, ask: LeaveAsk) -> Result<()> {
        let data = self.data(&ask.place);
        let local = LocalSwarm::open(&Self::docker(&ask.place)?).await?;
        let membership = local.membership().await?;
        if membership.as_ref().is_some_and(|membership| membership.manager) && !ask.force {
            return Err(Error::new(Kind::Conflict, "this host", "is a manager of the Swarm")
                .help("make it a worker first (neap node demote NODE), or lose what only it knows: --force"));
        }
        for name in ["neap-agent", "neap"] {
            background::stop(name, &data)?;
        }
        match membership {
            Some(membership) => {
                local.leave(ask.force).await?;
                self.say(&format!("this host has left the Swarm (it was node {})", membership.node))?;
            }
            None => self.say("this host is in no Swarm")?,
        }
        // Published ports lead nowhere from here any more.
        crate::daemon::stop_balancer(&data).await?;
        Identity::remove(&data)?;
        self.say("neither daemon nor agent runs here any more; what is left is the data folder")?;
        self.say(&format!("{}; on a manager, take the node off the list: neap node rm NODE", data.display()))
    }
}

fn with_port(address: &str) -> Result<String> {
    let wrong = || Error::invalid(format!("address {address:.80?}"), "is no ADDRESS or ADDRESS:PORT");
    let address = address.trim();
    if address.is_empty() || address.contains("//") || address.contains(char::is_whitespace) {
        return Err(wrong());
    }
    if let Ok(ip) = address.trim_matches(['[', ']']).parse::<std::net::IpAddr>() {
        return Ok(std::net::SocketAddr::new(ip, shared::PORT).to_string());
    }
    match address.rsplit_once(':') {
        Some((host, port)) if !host.is_empty() && port.parse::<u16>().is_ok() => Ok(address.to_owned()),
        Some(_) => Err(wrong()),
        None => Ok(format!("{address}:{}", shared::PORT)),
    }
}

/// Runs `neap leave`.
pub async fn leave(args: &LeaveArgs, file: Config) -> Result<()> {
    let place = HostPlace {
        data: args.place.data.clone(),
        docker_host: args.place.docker_host.clone(),
        ..HostPlace::default()
    };
    Here { file, say: output::line }.leave(LeaveAsk { place, force: args.force }).await
}

/// Runs `neap agent`.
pub async fn agent(args: &AgentArgs, file: Config) -> Result<()> {
    start_log(&args.log)?;
    let registry = args.registry.read(&file)?;
    let (data, docker) = (args.place.data(&file), args.place.docker()?);
    let discovery = args.discovery.read(file.discovery)?;
    if let (false, Some(token_file)) = (args.join.is_empty(), &args.token_file) {
        join_first(&args.join, token_file, &data, &docker).await?;
    }
    agent::run(AgentOptions { data, docker, discovery, registry }).await
}

// As often as it is started: what it has already stays, and is good where nobody answers now.
async fn join_first(addresses: &[String], token_file: &Path, data: &Path, docker: &Address) -> Result<()> {
    let unreadable = |error| Error::io(token_file.display().to_string(), "read the token", &error);
    let token: JoinToken = std::fs::read_to_string(token_file).map_err(unreadable)?.trim().parse()?;
    let clock = SystemClock::start();
    let terms = Terms { only: Some(Role::Worker), ..Terms::default() };
    let mut last = None;
    for address in addresses {
        match join::join(&with_port(address)?, &token, docker, &terms, data, &clock, || Ok(())).await {
            Ok(_) => return Ok(()),
            Err(error) => last = Some(error),
        }
    }
    let error = last.unwrap_or_else(|| Error::internal("agent", "has nowhere to join"));
    if Identity::load(data)?.is_some_and(|identity| identity.is_whole()) {
        tracing::warn!(%error, "this host's agent cannot join anew, and goes on with what it has");
        return Ok(());
    }
    Err(error)
}

/// Runs `neap join-token`.
pub async fn join_token(args: &TokenArgs, cluster: &RemoteCluster) -> Result<()> {
    let role = args.role.role();
    let ticket = cluster.join_ticket(role, args.rotate).await?;
    if args.quiet {
        return output::line(&ticket.token);
    }
    output::print(args.format.format, &ticket, || {
        format!("a host joins as a {} with:\n\n  {}\n", role.as_str(), ticket.command())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(text: &str, expected: &str) {
        let got = with_port(text).unwrap_or_else(|error| error.message);
        assert_eq!(got, expected, "for {text:?}");
    }

    #[test]
    fn addresses() {
        check("10.0.0.1", "10.0.0.1:8377");
        check("10.0.0.1:9000", "10.0.0.1:9000");
        check("fd00::1", "[fd00::1]:8377");
        check("[fd00::1]:9000", "[fd00::1]:9000");
        check("eu-1.example.org", "eu-1.example.org:8377");
        let wrong = "is no ADDRESS or ADDRESS:PORT";
        for text in ["", "tcp://10.0.0.1", "a:b", ":8377", "a b"] {
            check(text, wrong);
        }
    }
}
