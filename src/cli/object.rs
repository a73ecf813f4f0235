//! `neap network` and `neap volume`.

use std::collections::BTreeMap;

use clap::Subcommand;

use super::output::{self, FormatArg};
use crate::client::remote::RemoteCluster;
use crate::client::{Cluster, show};
use crate::model::objects::{NetworkInfo, NetworkSpec, VolumeInfo, VolumeSpec};
use crate::model::{Error, Result};

/// Subcommands of `neap network`.
#[derive(Subcommand)]
pub enum NetworkCommand {
    /// List networks that services can be attached to
    #[command(visible_alias = "list")]
    Ls {
        #[command(flatten)]
        format: FormatArg,
        /// Names only
        #[arg(long, short)]
        quiet: bool,
    },
    /// Show networks whole, as JSON
    Inspect {
        /// Their names
        #[arg(required = true)]
        names: Vec<String>,
    },
    /// Make a network: neap network create --opt encrypted back
    Create(Box<NetworkArgs>),
    /// Remove networks that no service uses
    #[command(visible_alias = "remove")]
    Rm {
        /// Their names
        #[arg(required = true)]
        names: Vec<String>,
    },
}

/// Docker's flags.
#[derive(clap::Args)]
pub struct NetworkArgs {
    /// Its name
    name: String,
    /// Driver [default: overlay on a Swarm, else bridge]
    #[arg(long, short)]
    driver: Option<String>,
    /// Reach nothing outside of it
    #[arg(long)]
    internal: bool,
    /// Let containers outside of services be attached (overlay)
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_value_t = true, default_missing_value = "true", action = clap::ArgAction::Set)]
    attachable: bool,
    /// IPv6 addresses as well
    #[arg(long)]
    ipv6: bool,
    /// A subnet, such as 10.20.0.0/16 [default: one that is free]
    #[arg(long, value_name = "CIDR")]
    subnet: Vec<String>,
    /// The subnet's gateway
    #[arg(long, value_name = "IP")]
    gateway: Vec<String>,
    /// An option of the driver; encrypted: traffic between hosts is
    #[arg(long, short, value_name = "KEY[=VALUE]")]
    opt: Vec<String>,
    /// A label
    #[arg(long, value_name = "KEY=VALUE")]
    label: Vec<String>,
}

/// Subcommands of `neap volume`.
#[derive(Subcommand)]
pub enum VolumeCommand {
    /// List volumes by name and node
    #[command(visible_alias = "list")]
    Ls {
        /// Only those of this node
        #[arg(long)]
        node: Option<String>,
        #[command(flatten)]
        format: FormatArg,
        /// Names only
        #[arg(long, short)]
        quiet: bool,
    },
    /// Show volumes whole, as JSON: one entry a node
    Inspect {
        /// Their names
        #[arg(required = true)]
        names: Vec<String>,
        /// Only those of this node
        #[arg(long)]
        node: Option<String>,
    },
    /// Make a volume on all nodes, or on one
    Create {
        /// Its name
        name: String,
        /// Only on this node
        #[arg(long)]
        node: Option<String>,
        /// Driver [default: local]
        #[arg(long, short)]
        driver: Option<String>,
        /// An option of the driver
        #[arg(long, short, value_name = "KEY[=VALUE]")]
        opt: Vec<String>,
        /// A label
        #[arg(long, value_name = "KEY=VALUE")]
        label: Vec<String>,
    },
    /// Remove volumes and what they hold from all nodes, or from one
    #[command(visible_alias = "remove")]
    Rm {
        /// Their names
        #[arg(required = true)]
        names: Vec<String>,
        /// Only from this node
        #[arg(long)]
        node: Option<String>,
        /// Also where the driver fails to
        #[arg(long, short)]
        force: bool,
    },
}

fn pairs(texts: &[String]) -> BTreeMap<String, String> {
    let pair =
        |text: &String| text.split_once('=').map_or((text.clone(), String::new()), |(k, v)| (k.into(), v.into()));
    texts.iter().map(pair).collect()
}

/// Runs a subcommand of `neap network`.
pub async fn network(command: NetworkCommand, cluster: &RemoteCluster) -> Result<()> {
    match command {
        NetworkCommand::Ls { format, quiet } => {
            let all = cluster.networks().await?;
            if quiet {
                return all.iter().try_for_each(|network| output::line(&network.name));
            }
            output::print(format.format, &all, || show::networks(&all))
        }
        NetworkCommand::Inspect { names } => {
            let all = cluster.networks().await?;
            let find = |name: &String| {
                let found: Vec<&NetworkInfo> = all.iter().filter(|network| network.name == *name).collect();
                let hint = crate::model::suggest::hint(name, all.iter().map(|network| network.name.as_str()));
                let help = format!("`neap network ls` lists them{hint}");
                if found.is_empty() {
                    Err(Error::not_found(format!("network {name:.70?}")).help(help))
                } else {
                    Ok(found)
                }
            };
            let found: Result<Vec<_>> = names.iter().map(find).collect();
            output::print(output::Format::Json, &found?.concat(), String::new)
        }
        NetworkCommand::Create(args) => {
            let spec = NetworkSpec {
                name: args.name,
                driver: args.driver,
                internal: args.internal,
                attachable: (!args.attachable).then_some(false),
                encrypted: false,
                ipv6: args.ipv6,
                subnets: args.subnet,
                gateways: args.gateway,
                options: pairs(&args.opt),
                labels: pairs(&args.label),
            };
            output::line(&cluster.create_network(spec).await?.name)
        }
        NetworkCommand::Rm { names } => {
            output::each(names, async |name| {
                cluster.remove_network(&name).await?;
                output::line(&name)
            })
            .await
        }
    }
}

/// Runs a subcommand of `neap volume`.
pub async fn volume(command: VolumeCommand, cluster: &RemoteCluster) -> Result<()> {
    match command {
        VolumeCommand::Ls { node, format, quiet } => {
            let found = cluster.volumes(node.as_deref()).await?;
            warn(&found.missing);
            if quiet {
                let mut names: Vec<&String> = found.volumes.iter().map(|volume| &volume.name).collect();
                names.dedup();
                return names.into_iter().try_for_each(|name| output::line(name));
            }
            output::print(format.format, &found.volumes, || show::volumes(&found.volumes))
        }
        VolumeCommand::Inspect { names, node } => {
            let all = cluster.volumes(node.as_deref()).await?;
            warn(&all.missing);
            let find = |name: &String| {
                let found: Vec<&VolumeInfo> = all.volumes.iter().filter(|volume| volume.name == *name).collect();
                let help = "`neap volume ls` lists them";
                if found.is_empty() {
                    Err(Error::not_found(format!("volume {name:.70?}")).help(help))
                } else {
                    Ok(found)
                }
            };
            let found: Result<Vec<_>> = names.iter().map(find).collect();
            output::print(output::Format::Json, &found?.concat(), String::new)
        }
        VolumeCommand::Create { name, node, driver, opt, label } => {
            let spec = VolumeSpec { name, driver, options: pairs(&opt), labels: pairs(&label) };
            told(&cluster.create_volume(node.as_deref(), spec).await?.volumes)
        }
        VolumeCommand::Rm { names, node, force } => {
            output::each(names, async |name| told(&cluster.remove_volume(node.as_deref(), &name, force).await?.volumes))
                .await
        }
    }
}

fn told(volumes: &[VolumeInfo]) -> Result<()> {
    volumes.iter().try_for_each(|volume| output::line(&format!("{} on {}", volume.name, volume.hostname)))
}

fn warn(missing: &BTreeMap<String, String>) {
    for (node, why) in missing {
        super::output::warn(format!("node \"{node}\": {why}"));
    }
}
