//! `neap uninstall`: gives the services back, removes what Neap made here, and says what stays.

use super::host::Place;
use super::output;
use crate::agent::identity::Identity;
use crate::client::remote::RemoteCluster;
use crate::client::wait;
use crate::client::wire::Endpoint;
use crate::client::{Cluster, ServiceStatus, native};
use crate::daemon::config::{self, Config};
use crate::daemon::moving::Moving;
use crate::daemon::{background, removal};
use crate::model::native::{HandBack, PublishMode};
use crate::model::node::Role;
use crate::model::units::Duration;
use crate::model::{Error, Kind, Result};

/// Arguments.
#[derive(clap::Args)]
pub struct Args {
    #[command(flatten)]
    place: Place,
    /// Name of the cluster
    #[arg(long, env = "NEAP_CLUSTER")]
    cluster: Option<String>,
    /// Control socket of the daemon [default: /run/neap.sock for root]
    #[arg(long, env = "NEAP_SOCKET", value_name = "FILE")]
    socket: Option<std::path::PathBuf>,
    /// Remove the services instead of giving them back to the Swarm
    #[arg(long)]
    remove_services: bool,
    /// Where the Swarm publishes the ports of services that it is given back: ingress or host
    #[arg(long, value_name = "MODE", default_value = "ingress")]
    publish_mode: PublishMode,
    /// Give back also services that write to volumes or folders of the host, which both sets of tasks have for a while
    #[arg(long)]
    share_volumes: bool,
    /// Remove the data folder as well, with audit log, keys and everything else in it
    #[arg(long)]
    purge: bool,
    /// How long each service may take
    #[arg(long, default_value = "10m")]
    timeout: Duration,
}

/// What is left for its owner.
#[derive(Default)]
struct Stays(Vec<String>);

/// Runs it.
pub async fn main(args: &Args, file: Config) -> Result<()> {
    let data = args.place.data(&file);
    let socket = args.socket.clone().or_else(|| file.socket.clone()).unwrap_or_else(config::default_socket);
    let remote = RemoteCluster::new(Endpoint::Unix(socket.clone()));
    let mut stays = Stays::default();
    let mut name = args.cluster.clone().or_else(|| file.cluster.clone());
    let is_agent = Identity::load(&data)?.is_some();
    if args.purge && data.exists() {
        removal::check_folder(&data)?;
    }
    let info = match remote.info().await {
        Ok(info) => {
            // Whoever answers may have another folder, and another cluster.
            if crate::daemon::holder(&data)? != listener(&socket) {
                let message = format!("is not used by the daemon that answers (cluster {})", info.cluster);
                return Err(Error::new(Kind::Conflict, format!("data folder {}", data.display()), message)
                    .help("name the folder and the socket of one daemon (--data, --socket)"));
            }
            Some(info)
        }
        Err(error) if is_agent || !data.exists() || removal::is_done(&data) => {
            tracing::debug!(%error, "no daemon here");
            None
        }
        Err(error) => {
            return Err(Error::new(Kind::Unavailable, "daemon", "does not answer").cause(error).help(
                "services are given back by it: start it (neap up) first; or, on a host that only lost its daemon, remove the data folder",
            ));
        }
    };
    let mut swarm = false;
    if let Some(info) = &info {
        swarm = info.engine == "swarm";
        name = Some(info.cluster.clone());
        note_objects(&remote, &mut stays).await?;
        give_back(args, &remote, swarm).await?;
        let here = nix::unistd::gethostname().ok().and_then(|name| name.into_string().ok()).unwrap_or_default();
        for node in remote.nodes().await?.iter().filter(|node| node.hostname != here && swarm) {
            match &node.agent {
                Some(agent) if !agent.daemon => {
                    stays.0.push(format!("an agent on {}: neap uninstall there", node.hostname));
                }
                Some(_) => stays.0.push(format!("a daemon on {}: neap uninstall there", node.hostname)),
                None if node.role == Role::Manager => {
                    stays.0.push(format!("a daemon on {}, if one runs there: neap uninstall there", node.hostname));
                }
                None => {}
            }
        }
    }
    for unit in ["neap-agent", "neap"] {
        background::stop(unit, &data)?;
    }
    crate::daemon::stop_balancer(&data).await?;
    output::line("neither daemon, agent nor balancer runs here any more")?;
    Identity::remove(&data)?;
    if swarm {
        let cluster = name.unwrap_or_else(|| "default".into());
        let place = Moving { cluster, data: data.clone(), docker: args.place.docker()? };
        match removal::clear(&place).await {
            Ok(removed) => output::line(&format!(
                "{removed} configs of the store are removed from the Swarm, and the secrets and configs of replicas"
            ))?,
            // Another daemon goes on with it.
            Err(error) if error.kind == Kind::Conflict && error.message.starts_with("is led by") => {
                stays.0.push(format!("the store in the Swarm: it {}", error.message));
            }
            Err(error) => return Err(error),
        }
    }
    if data.exists() {
        removal::done(&data)?;
    }
    match args.purge {
        true if data.exists() => {
            removal::purge(&data)?;
            output::line(&format!("{} is removed", data.display()))?;
        }
        true => {}
        false if data.exists() => stays.0.push(format!("the data folder {} (--purge removes it)", data.display())),
        false => {}
    }
    if let Ok(program) = std::env::current_exe() {
        stays.0.push(format!("the program {}", program.display()));
    }
    if swarm {
        stays.0.push("the Swarm itself".into());
    }
    output::line("what stays:")?;
    stays.0.iter().try_for_each(|text| output::line(&format!("  {text}")))
}

// The process that listens on a socket: a daemon that follows passes on what it is asked.
fn listener(socket: &std::path::Path) -> Option<i32> {
    use nix::sys::socket::{getsockopt, sockopt};
    let stream = std::os::unix::net::UnixStream::connect(socket).ok()?;
    getsockopt(&stream, sockopt::PeerCredentials).ok().map(|peer| peer.pid())
}

// All services, one after the other; what was done before an error stays done.
async fn give_back(args: &Args, remote: &RemoteCluster, swarm: bool) -> Result<()> {
    let services = remote.services().await?;
    if services.is_empty() {
        return Ok(());
    }
    if !swarm && !args.remove_services {
        let names: Vec<&str> = services.iter().map(|status| status.service.spec.name.as_str()).collect();
        let message = format!("has services that nobody would run: {}", names.join(", "));
        return Err(Error::new(Kind::Conflict, "this daemon", message).help("remove them with it: --remove-services"));
    }
    for status in services {
        let name = status.service.spec.name.to_string();
        if args.remove_services {
            let subject = format!("service \"{name}\"");
            let gone = async {
                let states = remote.watch(&name).await?;
                remote.remove(&name).await?;
                wait::gone(remote, &name, states).await
            };
            let late = |_| Error::new(Kind::Timeout, subject, format!("is not gone within {}", args.timeout));
            tokio::time::timeout(args.timeout.std(), gone).await.map_err(late)??;
            output::line(&format!("{name}: removed"))?;
            continue;
        }
        let ask =
            HandBack { publish_mode: args.publish_mode, share_volumes: args.share_volumes, ..HandBack::default() };
        let done = remote.hand_back(&name, ask).await?;
        done.notes.iter().try_for_each(|note| output::line(&format!("{name}: {note}")))?;
        let mut progress = |_: &ServiceStatus| {};
        let handover = native::handed_back(remote, &name, args.timeout.std(), &mut progress).await?;
        output::line(&format!("{name}: given back to the Swarm; {}", handover.gaps_said()))?;
    }
    Ok(())
}

// What holds data, or may be used by others.
async fn note_objects(remote: &RemoteCluster, stays: &mut Stays) -> Result<()> {
    let label = crate::engines::docker::spec::CLUSTER;
    if let Ok(networks) = remote.networks().await {
        let ours = networks.iter().filter(|network| network.labels.contains_key(label));
        stays.0.extend(ours.map(|network| format!("network {}", network.name)));
    }
    if let Ok(found) = remote.volumes(None).await {
        let used = found.volumes.iter().filter(|volume| !volume.used_by.is_empty());
        stays.0.extend(used.map(|volume| format!("volume {} on {}", volume.name, volume.hostname)));
    }
    Ok(())
}
