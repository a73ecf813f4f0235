//! `neap catalog`: who serves what where.

use std::collections::BTreeMap;

use clap::Subcommand;
use futures_util::StreamExt;

use super::output::{self, Format, FormatArg};
use crate::client::catalog::{
    CatalogSnapshot, FoundInstance, InstancesAsk, Maintenance, Register, RegisterCheck, Report,
};
use crate::client::remote::RemoteCluster;
use crate::client::{Cluster, show};
use crate::model::catalog::CheckStatus;
use crate::model::units::{Bytes, Duration};
use crate::model::{Error, Kind, Result};

/// Subcommands of `neap catalog`.
#[derive(Subcommand)]
pub enum Command {
    /// List services, with how many of their instances pass
    #[command(visible_alias = "ls")]
    Services {
        #[command(flatten)]
        format: FormatArg,
        /// Names only
        #[arg(long, short)]
        quiet: bool,
    },
    /// List nodes: the hosts of the cluster, and what clients have registered
    Nodes {
        #[command(flatten)]
        format: FormatArg,
    },
    /// List a service's instances with their health
    Instances {
        /// The service
        service: String,
        #[command(flatten)]
        which: Which,
        #[command(flatten)]
        format: FormatArg,
    },
    /// Print where a service is reached: one address:port a line, of those that pass, in random order
    Resolve {
        /// The service
        service: String,
        /// Only instances with this tag
        #[arg(long)]
        tag: Option<String>,
    },
    /// Print a service's instances, and again after each change
    Watch {
        /// The service
        service: String,
        #[command(flatten)]
        which: Which,
        #[command(flatten)]
        format: FormatArg,
    },
    /// Register an instance: neap catalog register db --address 10.0.0.9 --port 5432 --tcp 10.0.0.9:5432
    Register(Box<RegisterArgs>),
    /// Remove instances that were registered
    Deregister {
        /// Their ids
        #[arg(required = true)]
        ids: Vec<String>,
        /// The node that they are on [default: the daemon's host]
        #[arg(long)]
        node: Option<String>,
    },
    /// Say how a check with a TTL is: neap catalog report service:db passing "all well"
    Report {
        /// The check's id
        check: String,
        /// passing, warning or critical
        status: CheckStatus,
        /// What there is to say
        #[arg(default_value = "")]
        output: String,
        /// The node that it is on [default: the daemon's host]
        #[arg(long)]
        node: Option<String>,
    },
    /// Keep all that clients have registered and written in a file, or put it back
    #[command(subcommand)]
    Snapshot(SnapshotCommand),
    /// Take an instance out for maintenance, or with --end let it back in
    Maintenance {
        /// Its id
        id: String,
        /// Why
        #[arg(long, default_value = "")]
        reason: String,
        /// End it
        #[arg(long)]
        end: bool,
        /// The node that it is on [default: the daemon's host]
        #[arg(long)]
        node: Option<String>,
    },
}

/// Subcommands of `neap catalog snapshot`.
#[derive(Subcommand)]
pub enum SnapshotCommand {
    /// Write what is registered (nodes, instances, checks), keys, sessions and prepared queries to a file
    Save {
        /// The file, or - for standard output
        file: String,
    },
    /// Put all of a file back, in one step; what is not in it is removed
    Restore {
        /// The file, or - for standard input
        file: String,
        #[command(flatten)]
        format: FormatArg,
    },
}

impl SnapshotCommand {
    async fn run(self, cluster: &RemoteCluster) -> Result<()> {
        let failed = |file: &str, what: &str, error: std::io::Error| {
            Error::invalid(format!("file {file:?}"), format!("cannot be {what}")).cause(error)
        };
        match self {
            SnapshotCommand::Save { file } => {
                let archive = cluster.catalog_snapshot().await?.bytes()?;
                if file == "-" {
                    return output::bytes(&archive);
                }
                // Keys are nobody else's to read.
                crate::store::file::replace(std::path::Path::new(&file), &archive, 0o600)
                    .map_err(|error| failed(&file, "written", error))?;
                output::line(&format!("{file}: {}", Bytes(archive.len() as u64)))
            }
            SnapshotCommand::Restore { file, format } => {
                let archive = match file.as_str() {
                    "-" => {
                        let mut archive = Vec::new();
                        std::io::Read::read_to_end(&mut std::io::stdin().lock(), &mut archive).map(|_| archive)
                    }
                    _ => std::fs::read(&file),
                };
                let archive = archive.map_err(|error| failed(&file, "read", error))?;
                let restored = cluster.restore_catalog(CatalogSnapshot::new(&archive)).await?;
                output::print(format.format, &restored, || {
                    format!(
                        "{} registrations and {} keys, sessions and queries put back; {} removed",
                        restored.registrations, restored.others, restored.removed
                    )
                })
            }
        }
    }
}

/// Which instances.
#[derive(clap::Args)]
pub struct Which {
    /// Only those with this tag
    #[arg(long)]
    tag: Option<String>,
    /// Only those on this node
    #[arg(long)]
    node: Option<String>,
    /// Only those whose checks all pass
    #[arg(long)]
    passing: bool,
}

impl Which {
    fn ask(self) -> InstancesAsk {
        InstancesAsk { tag: self.tag, node: self.node, passing: self.passing }
    }
}

/// What is registered.
#[derive(clap::Args)]
pub struct RegisterArgs {
    /// Its service
    service: String,
    /// Its id, unique on its node [default: the service's name]
    #[arg(long)]
    id: Option<String>,
    /// The node that it is on; with --address it is made where it is not known [default: the daemon's host]
    #[arg(long)]
    node: Option<String>,
    /// Where it is reached [default: its node's address]
    #[arg(long)]
    address: Option<String>,
    /// Its port
    #[arg(long, default_value_t = 0)]
    port: u16,
    /// A tag; may be repeated
    #[arg(long)]
    tag: Vec<String>,
    /// What else is said of it; may be repeated
    #[arg(long, value_name = "KEY=VALUE")]
    meta: Vec<String>,
    /// Its share in DNS answers [default: 1]
    #[arg(long)]
    weight: Option<u16>,
    /// Check: a URL that answers with 2xx; may be repeated
    #[arg(long, value_name = "URL")]
    http: Vec<String>,
    /// Check: a host:port that takes connections; may be repeated
    #[arg(long, value_name = "HOST:PORT")]
    tcp: Vec<String>,
    /// Check: a gRPC server that says SERVING, as a whole or for a service of it; may be repeated
    #[arg(long, value_name = "HOST:PORT[/SERVICE]")]
    grpc: Vec<String>,
    /// Check: the registered check script of this name; may be repeated
    #[arg(long, value_name = "NAME")]
    script: Vec<String>,
    /// Check: critical unless somebody reports within this time
    #[arg(long)]
    ttl: Option<Duration>,
    /// Time from one run of its checks to the next [default: 10s]
    #[arg(long)]
    every: Option<Duration>,
    /// How long one run may take [default: 5s]
    #[arg(long)]
    timeout: Option<Duration>,
    /// Passes in a row until a check passes [default: 1]
    #[arg(long)]
    healthy: Option<u32>,
    /// Failures in a row until a check is critical [default: 1]
    #[arg(long)]
    unhealthy: Option<u32>,
    /// Critical for so long, it is deregistered; one minute at the least
    #[arg(long)]
    deregister_after: Option<Duration>,
    #[command(flatten)]
    format: FormatArg,
}

impl RegisterArgs {
    fn read(self) -> Result<(Register, FormatArg)> {
        let base = RegisterCheck {
            every: self.every,
            timeout: self.timeout,
            healthy: self.healthy,
            unhealthy: self.unhealthy,
            deregister_after: self.deregister_after,
            ..RegisterCheck::default()
        };
        let mut checks = Vec::new();
        checks.extend(self.http.into_iter().map(|http| RegisterCheck { http: Some(http), ..base.clone() }));
        checks.extend(self.grpc.into_iter().map(|grpc| RegisterCheck { grpc: Some(grpc), ..base.clone() }));
        checks.extend(self.tcp.into_iter().map(|tcp| RegisterCheck { tcp: Some(tcp), ..base.clone() }));
        checks.extend(self.script.into_iter().map(|script| RegisterCheck { script: Some(script), ..base.clone() }));
        checks.extend(self.ttl.map(|ttl| RegisterCheck { ttl: Some(ttl), ..base.clone() }));
        if checks.is_empty() && base != RegisterCheck::default() {
            return Err(Error::invalid("usage", "says how a check is run, and none is given")
                .help("give one of --http, --tcp, --grpc, --script, --ttl"));
        }
        let mut meta = BTreeMap::new();
        for pair in &self.meta {
            let Some((key, value)) = pair.split_once('=') else {
                return Err(Error::invalid(format!("--meta {pair:.60?}"), "has no =").help("write KEY=VALUE"));
            };
            meta.insert(key.to_owned(), value.to_owned());
        }
        let register = Register {
            service: self.service,
            id: self.id,
            node: self.node,
            address: self.address,
            port: self.port,
            tags: self.tag,
            meta,
            weight: self.weight,
            checks,
        };
        Ok((register, self.format))
    }
}

/// Runs a subcommand of `neap catalog`.
pub async fn main(command: Command, cluster: &RemoteCluster) -> Result<()> {
    match command {
        Command::Services { format, quiet } => {
            let all = cluster.catalog_services().await?;
            if quiet {
                return all.iter().try_for_each(|service| output::line(&service.name));
            }
            output::print(format.format, &all, || show::catalog::services(&all))
        }
        Command::Nodes { format } => {
            let all = cluster.catalog_nodes().await?;
            output::print(format.format, &all, || show::catalog::nodes(&all))
        }
        Command::Instances { service, which, format } => {
            let ask = which.ask();
            let all = cluster.instances(&service, ask.clone()).await?;
            if all.is_empty() && ask == InstancesAsk::default() {
                return Err(missing(cluster, &service).await);
            }
            output::print(format.format, &all, || show::catalog::instances(&all))
        }
        Command::Resolve { service, tag } => {
            let ask = InstancesAsk { tag, passing: true, ..InstancesAsk::default() };
            let mut all = cluster.instances(&service, ask).await?;
            if all.is_empty() {
                return Err(match cluster.instances(&service, InstancesAsk::default()).await?.is_empty() {
                    true => missing(cluster, &service).await,
                    false => {
                        Error::new(Kind::NotFound, format!("service \"{service:.70}\""), "has no instance that passes")
                            .help(format!("neap catalog instances {service} says why"))
                    }
                });
            }
            shuffle(&mut all);
            all.iter().try_for_each(|found| output::line(&show::catalog::address(found)))
        }
        Command::Watch { service, which, format } => {
            let mut changes = cluster.watch_instances(&service, which.ask()).await?;
            while let Some(all) = changes.next().await {
                let all = all?;
                match format.format {
                    Format::Json => output::line(&serde_json::to_string(&all).unwrap_or_default())?,
                    Format::Table => output::line(&format!("{}\n", show::catalog::instances(&all)))?,
                }
            }
            Err(Error::new(Kind::Unavailable, "daemon", "has stopped"))
        }
        Command::Register(args) => {
            let (register, format) = args.read()?;
            let made = cluster.register(register).await?;
            output::print(format.format, &made, || {
                format!("{} on {}: {} {}", made.id, made.node, show::catalog::address(&made), made.status.as_str())
            })
        }
        Command::Deregister { ids, node } => {
            output::each(ids, async |id| {
                cluster.deregister(node.as_deref(), &id).await?;
                output::line(&id)
            })
            .await
        }
        Command::Report { check, status, output, node } => {
            cluster.report(node.as_deref(), &check, Report { status, output }).await
        }
        Command::Snapshot(command) => command.run(cluster).await,
        Command::Maintenance { id, reason, end, node } => {
            if end && !reason.is_empty() {
                return Err(Error::invalid("usage", "--reason says why it begins, and --end ends it"));
            }
            let made = cluster.maintain(node.as_deref(), &id, Maintenance { enable: !end, reason }).await?;
            output::line(&format!("{} {}", made.id, made.status.as_str()))
        }
    }
}

fn shuffle(all: &mut [FoundInstance]) {
    use crate::model::clock::Clock;
    let clock = crate::model::clock::SystemClock::start();
    for left in (1..all.len()).rev() {
        all.swap(left, usize::try_from(clock.random() % (left as u64 + 1)).unwrap_or_default());
    }
}

async fn missing(cluster: &RemoteCluster, service: &str) -> Error {
    let known = cluster.catalog_services().await.unwrap_or_default();
    let hint = crate::model::suggest::hint(service, known.iter().map(|known| known.name.as_str()));
    Error::not_found(format!("service \"{service:.70}\"")).help(format!("`neap catalog services` lists them{hint}"))
}
