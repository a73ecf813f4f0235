//! `neap ca`, `unlock`, `unlock-key`, `autolock`: the Swarm as a whole, with Docker's words.

use std::io::{IsTerminal, Read};

use super::host::Place;
use super::output::{self, FormatArg};
use crate::client::Cluster;
use crate::client::remote::RemoteCluster;
use crate::engines::swarm::join::LocalSwarm;
use crate::model::swarm::SwarmAsk;
use crate::model::units::Duration;
use crate::model::{Error, Kind, Result};

/// Arguments of `ca`.
#[derive(clap::Args)]
pub struct CaArgs {
    /// Make it anew, and with it the certificates of all nodes
    #[arg(long)]
    rotate: bool,
    /// Do not wait until all nodes have theirs
    #[arg(long, short, requires = "rotate")]
    detach: bool,
    /// How long to wait
    #[arg(long, default_value = "5m")]
    timeout: Duration,
    #[command(flatten)]
    format: FormatArg,
}

/// Arguments of `unlock`.
#[derive(clap::Args)]
pub struct UnlockArgs {
    #[command(flatten)]
    place: Place,
}

/// Arguments of `unlock-key`.
#[derive(clap::Args)]
pub struct UnlockKeyArgs {
    /// Make it anew
    #[arg(long)]
    rotate: bool,
    /// The key alone
    #[arg(long, short)]
    quiet: bool,
}

/// On or off.
#[derive(clap::ValueEnum, Clone, Copy, PartialEq, Eq)]
pub enum Switch {
    /// A manager that starts again waits for the key
    On,
    /// It does not
    Off,
}

/// Arguments of `autolock`.
#[derive(clap::Args)]
pub struct AutolockArgs {
    /// What it is to be; shown where it is not said
    #[arg(value_enum)]
    switch: Option<Switch>,
}

/// Runs `neap ca`.
pub async fn ca(args: &CaArgs, cluster: &RemoteCluster) -> Result<()> {
    let ask = if args.rotate { SwarmAsk::RotateCa {} } else { SwarmAsk::Show {} };
    let mut state = cluster.swarm(ask).await?;
    if args.rotate && !args.detach {
        let late = |_| {
            Error::new(Kind::Timeout, "Swarm", format!("not all nodes have new certificates within {}", args.timeout))
                .help("it goes on by itself; nodes that are down get theirs when they are back")
        };
        let wait = async {
            while state.ca_rotating {
                tokio::time::sleep(std::time::Duration::from_millis(500)).await;
                state = cluster.swarm(SwarmAsk::Show {}).await?;
            }
            Ok::<_, Error>(state)
        };
        state = tokio::time::timeout(args.timeout.std(), wait).await.map_err(late)??;
    }
    output::print(args.format.format, &state, || state.ca_certificate.trim_end().to_owned())
}

/// Runs `neap unlock`.
pub async fn unlock(args: &UnlockArgs) -> Result<()> {
    let local = LocalSwarm::open(&args.place.docker()?).await?;
    let mut key = String::new();
    if std::io::stdin().is_terminal() {
        eprint!("unlock key: ");
    }
    let failed = |error| Error::io("standard input", "read the key from it", &error);
    match std::io::stdin().is_terminal() {
        true => std::io::stdin().read_line(&mut key).map(drop).map_err(failed)?,
        false => std::io::stdin().take(4096).read_to_string(&mut key).map(drop).map_err(failed)?,
    }
    local.unlock(key.trim()).await?;
    output::line("this host's manager is unlocked")
}

/// Runs `neap unlock-key`.
pub async fn unlock_key(args: &UnlockKeyArgs, cluster: &RemoteCluster) -> Result<()> {
    let ask = if args.rotate { SwarmAsk::RotateUnlockKey {} } else { SwarmAsk::UnlockKey {} };
    let state = cluster.swarm(ask).await?;
    let key = state
        .unlock_key
        .filter(|_| state.autolock)
        .ok_or_else(|| Error::new(Kind::Conflict, "Swarm", "does not lock its managers").help("neap autolock on"))?;
    match args.quiet {
        true => output::line(&key),
        false => {
            output::line(&format!("a manager that starts again is unlocked with neap unlock, and this key:\n\n  {key}"))
        }
    }
}

/// Runs `neap autolock`.
pub async fn autolock(args: &AutolockArgs, cluster: &RemoteCluster) -> Result<()> {
    let ask = args.switch.map_or(SwarmAsk::Show {}, |switch| SwarmAsk::Autolock { on: switch == Switch::On });
    let state = cluster.swarm(ask).await?;
    output::line(if state.autolock { "on" } else { "off" })?;
    match state.unlock_key.filter(|_| args.switch == Some(Switch::On)) {
        Some(key) => output::line(&format!("keep this key where it is found without the Swarm:\n\n  {key}")),
        None => Ok(()),
    }
}
