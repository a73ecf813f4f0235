//! `neap store`: where desired state is.

use clap::Subcommand;

use super::host::Place;
use super::output;
use crate::daemon::config::Config;
use crate::daemon::moving::{Moving, Target};
use crate::model::Result;

/// Subcommands.
#[derive(Subcommand)]
pub enum Command {
    /// Move it from this host's data folder into the Swarm, or back; no daemon of the cluster may run meanwhile
    Move {
        /// Whither
        #[arg(long, value_enum)]
        to: Target,
        /// Name of the cluster
        #[arg(long, env = "NEAP_CLUSTER")]
        cluster: Option<String>,
        #[command(flatten)]
        place: Place,
    },
}

/// Runs a subcommand.
pub async fn main(command: Command, file: Config) -> Result<()> {
    let Command::Move { to, cluster, place } = command;
    let (data, docker) = (place.data(&file), place.docker()?);
    let cluster = cluster.or(file.cluster).unwrap_or_else(|| "default".into());
    let moving = Moving { cluster, data: data.clone(), docker };
    let moved = moving.run(to).await?;
    let whither = match to {
        Target::Swarm => "the Swarm".to_owned(),
        Target::Redb => format!("{}", data.display()),
    };
    match moved {
        Some(records) => output::line(&format!("{records} records are in {whither} now"))?,
        None => output::line(&format!("they are in {whither} already"))?,
    }
    match to {
        Target::Swarm => output::line("start the daemons again: neap up, on as many managers as you like"),
        Target::Redb => {
            output::line("start the daemon again, on this host alone; agents have nobody to follow meanwhile")
        }
    }
}
