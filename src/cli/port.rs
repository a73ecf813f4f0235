//! `neap port`.

use clap::Subcommand;

use super::output::{self, FormatArg};
use crate::client::remote::RemoteCluster;
use crate::client::{Cluster, show};
use crate::model::Result;

/// Subcommands of `neap port`.
#[derive(Subcommand)]
pub enum Command {
    /// List the ports that the balancers listen on, with what has gone by each
    #[command(visible_alias = "list")]
    Ls {
        #[command(flatten)]
        format: FormatArg,
    },
}

/// Runs a subcommand.
pub async fn run(command: Command, cluster: &RemoteCluster) -> Result<()> {
    let Command::Ls { format } = command;
    let all = cluster.ports().await?;
    output::print(format.format, &all, || show::ports(&all))
}
