//! `neap node`.

use clap::Subcommand;

use super::output::{self, FormatArg};
use crate::client::remote::RemoteCluster;
use crate::client::{Cluster, show};
use crate::model::node::{Availability, Node, NodeUpdate};
use crate::model::{Error, Result};

/// Subcommands.
#[derive(Subcommand)]
pub enum Command {
    /// List nodes
    #[command(visible_alias = "list")]
    Ls(FormatArg),
    /// Show one node whole
    Inspect {
        /// Id or hostname
        node: String,
    },
    /// Change availability and labels
    Update {
        /// Id or hostname
        node: String,
        /// Whether it takes work
        #[arg(long, value_enum)]
        availability: Option<AvailabilityArg>,
        /// Add or change a label
        #[arg(long, value_name = "KEY=VALUE")]
        label_add: Vec<String>,
        /// Remove a label
        #[arg(long, value_name = "KEY")]
        label_rm: Vec<String>,
    },
}

/// Docker's words.
#[derive(clap::ValueEnum, Clone, Copy)]
pub enum AvailabilityArg {
    /// Takes new replicas
    Active,
    /// Keeps what it has
    Pause,
    /// Gives away what it has
    Drain,
}

/// Runs a subcommand.
pub async fn main(command: Command, cluster: &RemoteCluster) -> Result<()> {
    match command {
        Command::Ls(args) => {
            let nodes = cluster.nodes().await?;
            output::print(args.format, &nodes, || show::nodes(&nodes))
        }
        Command::Inspect { node } => {
            let found = find(cluster, &node).await?;
            output::print(output::Format::Json, &found, String::new)
        }
        Command::Update { node, availability, label_add, label_rm } => {
            let availability = availability.map(|word| match word {
                AvailabilityArg::Active => Availability::Active,
                AvailabilityArg::Pause => Availability::Pause,
                AvailabilityArg::Drain => Availability::Drain,
            });
            let label_add = label_add
                .iter()
                .map(|text| {
                    text.split_once('=')
                        .map(|(key, value)| (key.to_owned(), value.to_owned()))
                        .ok_or_else(|| Error::invalid(format!("--label-add {text:.60?}"), "is not KEY=VALUE"))
                })
                .collect::<Result<_>>()?;
            let node = cluster.update_node(&node, NodeUpdate { availability, label_add, label_rm }).await?;
            output::line(&node.hostname)
        }
    }
}

async fn find(cluster: &RemoteCluster, name: &str) -> Result<Node> {
    let nodes = cluster.nodes().await?;
    let found = nodes.into_iter().find(|node| *node.id == *name || node.hostname == name);
    found.ok_or_else(|| Error::not_found(format!("node \"{name:.70}\"")).help("`neap node ls` lists them"))
}
