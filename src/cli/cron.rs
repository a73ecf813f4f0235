//! `neap cron`: cron scripts by hand.

use clap::Subcommand;

use super::output::{self, FormatArg};
use crate::client::remote::RemoteCluster;
use crate::client::{Cluster, show};
use crate::model::{Error, Result};

/// Subcommands.
#[derive(Subcommand)]
pub enum Command {
    /// List cron scripts
    #[command(visible_alias = "list")]
    Ls(FormatArg),
    /// Show a script's last runs with their output
    History {
        /// The script
        name: String,
        #[command(flatten)]
        format: FormatArg,
    },
    /// Run a script now, and show what it prints
    Run {
        /// The script
        name: String,
        #[command(flatten)]
        format: FormatArg,
    },
    /// Hold a script back: it does not run by schedule
    Pause {
        /// The script
        name: String,
    },
    /// Let a script go on; what came in between is not made up for
    Resume {
        /// The script
        name: String,
    },
}

/// Runs a subcommand.
pub async fn main(command: Command, cluster: &RemoteCluster) -> Result<()> {
    match command {
        Command::Ls(args) => {
            let all = cluster.crons().await?;
            output::print(args.format, &all, || show::crons(&all, show::now()))
        }
        Command::History { name, format } => {
            let cron = cluster.cron(&name).await?;
            output::print(format.format, &cron.history, || show::history(&cron.history, show::now()))
        }
        Command::Run { name, format } => {
            let run = cluster.run_cron(&name, "").await?;
            output::print(format.format, &run, || run.output.trim_end().to_owned())?;
            // What it printed is there to be read already.
            run.well(&name).map_err(|error| Error { cause: None, ..error })
        }
        Command::Pause { name } => said(cluster.pause_cron(&name, true).await?.name),
        Command::Resume { name } => said(cluster.pause_cron(&name, false).await?.name),
    }
}

fn said(name: String) -> Result<()> {
    output::line(&name)
}
