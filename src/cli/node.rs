//! `neap node`.

use clap::Subcommand;

use super::filter::FilterArgs;
use super::output::{self, FormatArg};
use super::progress;
use crate::client::remote::RemoteCluster;
use crate::client::{Cluster, show, wait};
use crate::model::Result;
use crate::model::node::{self, Availability, ImagePrune, Node, NodeState, NodeUpdate, Role};
use crate::model::units::Duration;

/// Subcommands.
#[derive(Subcommand)]
pub enum Command {
    /// List nodes
    #[command(visible_alias = "list")]
    Ls {
        #[command(flatten)]
        format: FormatArg,
        /// Ids only
        #[arg(long, short)]
        quiet: bool,
        #[command(flatten)]
        filter: FilterArgs,
    },
    /// Show nodes whole, as JSON
    Inspect {
        /// Ids or hostnames
        #[arg(required = true)]
        nodes: Vec<String>,
    },
    /// List the tasks on a node
    Ps {
        /// Id or hostname
        node: String,
        #[command(flatten)]
        format: FormatArg,
        /// Ended tasks as well
        #[arg(long, short)]
        all: bool,
    },
    /// What hosts have and use, as measured within the last seconds
    Stats {
        /// Ids or hostnames; all nodes where none is named
        nodes: Vec<String>,
        /// Each container as well, whoever started it
        #[arg(long, short)]
        containers: bool,
        #[command(flatten)]
        format: FormatArg,
    },
    /// Make workers managers (Swarm)
    Promote {
        /// Ids or hostnames
        #[arg(required = true)]
        nodes: Vec<String>,
    },
    /// Make managers workers (Swarm)
    Demote {
        /// Ids or hostnames
        #[arg(required = true)]
        nodes: Vec<String>,
    },
    /// Take nodes out of the cluster (Swarm)
    #[command(visible_alias = "remove")]
    Rm {
        /// Ids or hostnames
        #[arg(required = true)]
        nodes: Vec<String>,
        /// Also a node that is not down
        #[arg(long, short)]
        force: bool,
    },
    /// Remove images that nothing uses; what services run, or could go back to, stays
    PruneImages {
        /// Ids or hostnames; all nodes where none is named
        nodes: Vec<String>,
        /// Only images made at least so long ago, such as 72h
        #[arg(long, value_name = "AGE")]
        created_before: Option<Duration>,
        /// An image that stays as well
        #[arg(long, value_name = "IMAGE")]
        keep: Vec<String>,
        /// Say what would go, and remove nothing
        #[arg(long)]
        dry_run: bool,
        #[command(flatten)]
        format: FormatArg,
    },
    /// Forget a node's agent: it is not listened to any more, and another may take its place (Swarm)
    Forget {
        /// Id or hostname
        node: String,
    },
    /// Change availability, role and labels
    Update {
        /// Id or hostname
        node: String,
        /// Whether it takes work
        #[arg(long, value_enum)]
        availability: Option<AvailabilityArg>,
        /// manager or worker (Swarm)
        #[arg(long, value_enum)]
        role: Option<RoleArg>,
        /// Add or change a label
        #[arg(long, value_name = "KEY=VALUE")]
        label_add: Vec<String>,
        /// Remove a label
        #[arg(long, value_name = "KEY")]
        label_rm: Vec<String>,
        /// With a drain: end what is there now, also where nothing takes its place
        #[arg(long, short)]
        force: bool,
        /// With a drain: return at once instead of waiting until the node is empty
        #[arg(long, short)]
        detach: bool,
        /// With a drain: how long to wait; it goes on by itself
        #[arg(long, default_value = "10m")]
        timeout: Duration,
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

/// Docker's words.
#[derive(clap::ValueEnum, Clone, Copy)]
pub enum RoleArg {
    /// Takes part in decisions
    Manager,
    /// Runs replicas only
    Worker,
}

impl RoleArg {
    /// The role.
    pub fn role(self) -> Role {
        match self {
            RoleArg::Manager => Role::Manager,
            RoleArg::Worker => Role::Worker,
        }
    }
}

/// Runs a subcommand.
pub async fn main(command: Command, cluster: &RemoteCluster) -> Result<()> {
    match command {
        Command::Stats { nodes, containers, format } => {
            let mut rows = Vec::new();
            if nodes.is_empty() {
                rows = cluster.node_stats(None, containers).await?;
            }
            for node in &nodes {
                rows.extend(cluster.node_stats(Some(node), containers).await?);
            }
            output::print(format.format, &rows, || show::node_stats(&rows, containers))
        }
        Command::Ls { format, quiet, filter } => {
            let filter = filter.read(&["name", "id", "label", "node.label", "role"])?;
            let cluster = &cluster.on_age(output::print_age);
            let mut nodes = cluster.nodes().await?;
            nodes.retain(|node| {
                filter.begins("name", &[&node.hostname])
                    && filter.begins("id", &[&node.id])
                    && filter.labels("label", &node.engine_labels)
                    && filter.labels("node.label", &node.labels)
                    && filter.is("role", node.role.as_str())
            });
            if quiet {
                return nodes.iter().try_for_each(|node| output::line(&node.id));
            }
            // What a drained node still has is what an operator waits for.
            let drained = nodes.iter().any(|node| node.availability == Availability::Drain);
            let services = if drained { cluster.services().await? } else { Vec::new() };
            output::print(format.format, &nodes, || show::nodes(&nodes, &services))
        }
        Command::Inspect { nodes } => {
            let cluster = &cluster.on_age(output::print_age);
            let mut found = Vec::new();
            for node in &nodes {
                found.push(find(cluster, node).await?);
            }
            match &found[..] {
                [one] => output::print(output::Format::Json, one, String::new),
                _ => output::print(output::Format::Json, &found, String::new),
            }
        }
        Command::Ps { node, format, all } => {
            let found = find(cluster, &node).await?;
            let mut services = cluster.services().await?;
            for status in &mut services {
                status.tasks.retain(|task| task.node.as_ref() == Some(&found.id));
            }
            let tasks: Vec<_> = services.iter().flat_map(|status| &status.tasks).collect();
            output::print(format.format, &tasks, || show::tasks_of(&services, all, false, show::now()))
        }
        Command::Promote { nodes } => change_roles(cluster, nodes, Role::Manager).await,
        Command::Demote { nodes } => change_roles(cluster, nodes, Role::Worker).await,
        Command::Rm { nodes, force } => {
            output::each(nodes, async |node| {
                cluster.remove_node(&node, force).await?;
                output::line(&node)
            })
            .await
        }
        Command::PruneImages { nodes, created_before, keep, dry_run, format } => {
            let ask = ImagePrune { created_before, dry_run, keep };
            prune_images(cluster, nodes, ask, format.format).await
        }
        Command::Forget { node } => {
            cluster.forget_agent(&node).await?;
            output::line(&node)
        }
        Command::Update { node, availability, role, label_add, label_rm, force, detach, timeout } => {
            let role = role.map(RoleArg::role);
            let availability = availability.map(|word| match word {
                AvailabilityArg::Active => Availability::Active,
                AvailabilityArg::Pause => Availability::Pause,
                AvailabilityArg::Drain => Availability::Drain,
            });
            // A label may stand alone.
            let pair = |text: &String| {
                let (key, value) = text.split_once('=').unwrap_or((text, ""));
                (key.to_owned(), value.to_owned())
            };
            let label_add = label_add.iter().map(pair).collect();
            let update = NodeUpdate { availability, role, label_add, label_rm, force };
            let node = cluster.update_node(&node, update).await?;
            if availability == Some(Availability::Drain) && !detach {
                let mut left = progress::Left::new("replicas", &node.hostname);
                wait::drained(cluster, &node, timeout.std(), &mut |count| left.report(count)).await?;
            }
            output::line(&node.hostname)
        }
    }
}

// Each node for itself: one that cannot be asked keeps the others from nothing, and is told of at the end.
async fn prune_images(
    cluster: &RemoteCluster,
    mut nodes: Vec<String>,
    ask: ImagePrune,
    format: output::Format,
) -> Result<()> {
    if nodes.is_empty() {
        let ready = |node: &Node| node.state == NodeState::Ready;
        nodes = cluster.nodes().await?.into_iter().filter(ready).map(|node| node.hostname).collect();
    }
    let mut pruned = std::collections::BTreeMap::new();
    let mut failed = None;
    for node in nodes {
        match cluster.prune_images(&node, ask.clone()).await {
            Ok(images) => drop(pruned.insert(node, images)),
            Err(error) => {
                if let Some(before) = failed.replace(error) {
                    output::print_error(&before);
                }
            }
        }
    }
    output::print(format, &pruned, || {
        let rows =
            pruned.iter().flat_map(|(node, images)| images.removed.iter().map(|image| [node.clone(), image.clone()]));
        let total = crate::model::units::Bytes(pruned.values().map(|images| images.bytes.0).sum());
        let word = if ask.dry_run { "would be freed" } else { "freed" };
        let said = format!("{total} {word}");
        if pruned.values().all(|images| images.removed.is_empty()) {
            said
        } else {
            format!("{}\n{said}", show::rows(&["NODE", "IMAGE"], rows))
        }
    })?;
    failed.map_or(Ok(()), Err)
}

async fn change_roles(cluster: &RemoteCluster, nodes: Vec<String>, role: Role) -> Result<()> {
    output::each(nodes, async |node| {
        let update = NodeUpdate { role: Some(role), ..NodeUpdate::default() };
        output::line(&cluster.update_node(&node, update).await?.hostname)
    })
    .await
}

async fn find(cluster: &RemoteCluster, name: &str) -> Result<Node> {
    node::named(cluster.nodes().await?.iter(), name).cloned()
}
