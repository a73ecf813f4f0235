//! `neap cluster`.

use clap::Subcommand;

use super::output::{self, FormatArg};
use crate::client::agents::{self, AgentsAsk};
use crate::client::remote::RemoteCluster;
use crate::client::{Cluster, show};
use crate::model::name::Name;
use crate::model::node::Role;
use crate::model::units::Bytes;
use crate::model::{Error, Result};

/// Subcommands.
#[derive(Subcommand)]
pub enum Command {
    /// Agents: who acts on each worker
    #[command(subcommand)]
    Agents(AgentsCommand),
}

/// Subcommands of `agents`.
#[derive(Subcommand)]
pub enum AgentsCommand {
    /// Put an agent on each worker that has none: as a service of the Swarm, or by a command for each host
    ///
    /// With an image, the agent is one global service of the Swarm. Without one, the command that each host needs is printed: what is
    /// started by it belongs to the host, and outlives its containers.
    Install {
        /// An image that every host can pull, with neap in it
        #[arg(long, value_name = "IMAGE")]
        image: Option<String>,
        /// Name of the service [default: neap-agent]
        #[arg(long)]
        name: Option<Name>,
        /// The program in the image [default: neap, on its path]
        #[arg(long, value_name = "PATH")]
        program: Option<String>,
        /// Docker's socket on the hosts [default: /var/run/docker.sock]
        #[arg(long, value_name = "FILE")]
        docker_socket: Option<String>,
        /// Only on nodes for which this holds as well
        #[arg(long, value_name = "CONSTRAINT")]
        constraint: Vec<String>,
        /// Memory that each may take
        #[arg(long, value_name = "BYTES")]
        limit_memory: Option<Bytes>,
        #[command(flatten)]
        format: FormatArg,
    },
    /// List the workers, and whether an agent acts there
    #[command(visible_alias = "list")]
    Ls {
        #[command(flatten)]
        format: FormatArg,
    },
    /// Remove the service of agents, and forget them
    #[command(visible_alias = "remove")]
    Rm {
        /// The service [default: neap-agent]
        name: Option<Name>,
    },
}

/// Runs a subcommand.
pub async fn main(command: Command, cluster: &RemoteCluster) -> Result<()> {
    let Command::Agents(command) = command;
    match command {
        AgentsCommand::Install { image: None, format, .. } => print_commands(cluster, format).await,
        AgentsCommand::Install {
            image: Some(image),
            name,
            program,
            docker_socket,
            constraint,
            limit_memory,
            format,
        } => {
            let memory = limit_memory;
            let ask = AgentsAsk { image, name, program, docker_socket, constraints: constraint, memory };
            let made = agents::install(cluster, ask).await?;
            output::print(format.format, &made, || {
                let mut text = format!("service \"{}\" puts an agent on: {}\n", made.service, listed(&made.hosts));
                if !made.others.is_empty() {
                    text += &format!("have one of their own already: {}\n", listed(&made.others));
                }
                text += "\nWhat an agent in a container lacks:\n";
                agents::LACKS.iter().for_each(|lack| text += &format!("- {lack}\n"));
                text + "\n`neap cluster agents ls` shows when they are there; `neap join` makes one that lacks nothing.\n"
            })
        }
        AgentsCommand::Ls { format } => {
            let nodes = cluster.nodes().await?;
            let workers: Vec<_> = nodes.into_iter().filter(|node| node.role == Role::Worker).collect();
            output::print(format.format, &workers, || show::nodes(&workers, &[]))
        }
        AgentsCommand::Rm { name } => output::line(agents::remove(cluster, name.as_ref()).await?.as_str()),
    }
}

// One command a host, for those that lack an agent.
async fn print_commands(cluster: &RemoteCluster, format: FormatArg) -> Result<()> {
    let ticket = cluster.join_ticket(Role::Worker, false).await?;
    if ticket.addresses.is_empty() {
        return Err(Error::invalid("cluster", "does not tell where hosts join yet; try again in a moment"));
    }
    let nodes = cluster.nodes().await?;
    let without: Vec<String> = agents::workers(&nodes).0.into_iter().map(|node| node.hostname.clone()).collect();
    let command = ticket.command();
    let told = serde_json::json!({ "hosts": without, "command": command });
    output::print(format.format, &told, || match without.is_empty() {
        true => "every worker has an agent\n".to_owned(),
        false => format!(
            "without an agent: {}; as root on each of them, with neap installed:\n\n  {command}\n",
            listed(&without)
        ),
    })
}

fn listed(names: &[String]) -> String {
    if names.is_empty() { "none yet".into() } else { names.join(", ") }
}
