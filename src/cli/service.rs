//! `neap service`, with Docker's words.

use std::io::IsTerminal;

use clap::Subcommand;
use futures_util::StreamExt;

use super::output::{self, Format, FormatArg};
use super::progress::Reporter;
use super::registry::AuthArgs;
use super::spec::{CommandArgs, SpecArgs, Words, changes, name_it};
use super::{look, native, stats};
use crate::client::remote::RemoteCluster;
use crate::client::{Apply, Cluster, LogsAsk, Only, ReleaseAction, ServiceStatus, show, wait};
use crate::model::plan::Rebalance;
use crate::model::release::Release;
use crate::model::units::Duration;
use crate::model::{Error, Result};

/// Subcommands.
#[derive(Subcommand)]
pub enum Command {
    /// Create a service: neap service create --name web --publish 80:80 nginx, or with a command: ... -- COMMAND
    Create {
        #[command(flatten)]
        words: Words,
        /// Its name [default: what its image or program is called]
        #[arg(long)]
        name: Option<String>,
        #[command(flatten)]
        spec: Box<SpecArgs>,
        #[command(flatten)]
        auth: AuthArgs,
        #[command(flatten)]
        wait: WaitArgs,
    },
    /// List services
    #[command(visible_alias = "list")]
    Ls(look::LsArgs),
    /// List services' tasks
    Ps(look::PsArgs),
    /// Show services whole, as JSON
    Inspect {
        /// The services
        #[arg(required = true)]
        services: Vec<String>,
    },
    /// Show what create or update would change, without doing it
    Plan {
        #[command(flatten)]
        words: Words,
        /// The service
        #[arg(long)]
        name: Option<String>,
        #[command(flatten)]
        spec: Box<SpecArgs>,
        #[command(flatten)]
        format: FormatArg,
    },
    #[command(about = "Show what replicas use of their hosts")]
    Stats(stats::Args),
    /// Show what a service's replicas wrote
    Logs {
        /// The service, or one task: web.3
        service: String,
        /// Go on with new lines
        #[arg(long, short)]
        follow: bool,
        /// Only lines since: 10m, or 2026-01-31T12:00:00Z
        #[arg(long)]
        since: Option<String>,
        /// Only so many of the newest lines, or all
        #[arg(long, short = 'n', value_name = "LINES", value_parser = tail)]
        tail: Option<Tail>,
        /// Show each line's time
        #[arg(long, short)]
        timestamps: bool,
        /// Lines as they are, without the task's name
        #[arg(long, conflicts_with = "format")]
        raw: bool,
        #[command(flatten)]
        format: FormatArg,
    },
    /// Change the number of replicas: neap service scale web=5
    Scale {
        /// SERVICE=REPLICAS
        #[arg(required = true)]
        scales: Vec<String>,
        #[command(flatten)]
        wait: WaitArgs,
    },
    /// Move replicas to nodes that their policy likes better by now, each healthy there before it ends here
    Rebalance {
        /// The services
        #[arg(required = true)]
        services: Vec<String>,
        /// Say what would move, and move nothing
        #[arg(long)]
        dry_run: bool,
        /// Move so many at most, of each service
        #[arg(long, value_name = "N")]
        max: Option<u32>,
        /// Move only where the other node's score is higher by more than this
        #[arg(long, value_name = "SCORE", default_value_t = 0.0)]
        min_gain: f64,
        /// Move nothing more: what a rebalance before is yet to move stays where it is
        #[arg(long, conflicts_with_all = ["dry_run", "max", "min_gain"])]
        cancel: bool,
        #[command(flatten)]
        format: FormatArg,
        #[command(flatten)]
        wait: WaitArgs,
    },
    /// Take over a service that the Swarm runs itself: replicas beside it, then its ports, then it goes
    Adopt {
        #[command(flatten)]
        args: native::AdoptArgs,
        #[command(flatten)]
        format: FormatArg,
        #[command(flatten)]
        wait: WaitArgs,
    },
    /// Give a service back to the Swarm, as an ordinary Swarm service
    HandBack {
        #[command(flatten)]
        args: native::HandBackArgs,
        #[command(flatten)]
        format: FormatArg,
        #[command(flatten)]
        wait: WaitArgs,
    },
    /// Change a service
    Update {
        /// The service
        service: String,
        #[command(flatten)]
        command: CommandArgs,
        #[command(flatten)]
        spec: Box<SpecArgs>,
        /// Say what would change, and change nothing
        #[arg(long, conflicts_with_all = ["detach", "timeout", "quiet"])]
        dry_run: bool,
        #[command(flatten)]
        auth: AuthArgs,
        #[command(flatten)]
        wait: WaitArgs,
    },
    /// Go back to the revision before
    Rollback {
        /// The service
        service: String,
        #[command(flatten)]
        wait: WaitArgs,
    },
    /// Look at and steer the release that is going on
    #[command(subcommand)]
    Rollout(Rollout),
    /// Drain and remove services
    #[command(visible_alias = "remove")]
    Rm {
        /// The services
        #[arg(required = true)]
        services: Vec<String>,
        /// Do not wait until they are gone
        #[arg(long, short)]
        detach: bool,
    },
    /// Wait until a service is as described
    Wait {
        /// The service
        service: String,
        /// How long
        #[arg(long, default_value = "10m")]
        timeout: Duration,
    },
}

/// What can be done with a release.
#[derive(Subcommand)]
pub enum Rollout {
    /// Show it
    Status {
        /// The service
        service: String,
        #[command(flatten)]
        format: FormatArg,
    },
    /// Take no further step
    Pause {
        /// The service
        service: String,
    },
    /// Go on
    Resume {
        /// The service
        service: String,
    },
    /// Move the rest at once
    Promote {
        /// The service
        service: String,
    },
    /// Stop half-way and stay so
    Abort {
        /// The service
        service: String,
    },
}

/// Whether and how long to wait.
#[derive(clap::Args)]
pub struct WaitArgs {
    /// Return at once instead of waiting until the service is as described
    #[arg(long, short)]
    detach: bool,
    /// Do not show how far it is
    #[arg(long, short)]
    quiet: bool,
    /// How long to wait; what was begun goes on
    #[arg(long, default_value = "10m")]
    timeout: Duration,
}

impl WaitArgs {
    // How long is waited, if at all.
    fn timeout(&self) -> Option<Duration> {
        (!self.detach).then_some(self.timeout)
    }
}

/// Runs a subcommand.
pub async fn main(command: Command, cluster: &RemoteCluster) -> Result<()> {
    let looking = cluster.on_age(output::print_age);
    let looks = matches!(command, Command::Ls(_) | Command::Ps(_) | Command::Inspect { .. });
    let cluster = if looks { &looking } else { cluster };
    match command {
        Command::Create { words, name, spec, auth, wait } => {
            let mut service = words.describe(spec.describe(name.as_deref(), None)?);
            if service.get("name").is_none() {
                let known = cluster.services().await?;
                name_it(&mut service, |name| known.iter().any(|known| known.service.spec.name.as_str() == name));
            }
            let auth = auth.of(std::iter::once(&service)).into_values().next();
            let status = cluster.apply(Apply { service, with: spec.scripts()?, only: Only::Create, auth }).await?;
            let since = wait::since(None, status.release.as_ref());
            finish(cluster, "create", status, since, &wait).await
        }
        Command::Update { service, command, spec, dry_run, auth, wait } => {
            let old = cluster.service(&service).await?;
            let base = serde_json::to_value(&old.service.spec)
                .map_err(|error| Error::internal("update", error.to_string()))?;
            let service = command.describe(spec.describe(None, Some(base.clone()))?)?;
            let auth = auth.of(std::iter::once(&service)).into_values().next();
            let ask = Apply { service: changes(&base, service), with: spec.scripts()?, only: Only::Update, auth };
            if dry_run {
                let plan = cluster.plan(Apply { auth: None, ..ask }).await?;
                return output::print(Format::Table, &plan, || show::plan(&plan));
            }
            let status = cluster.apply(ask).await?;
            let since = wait::since(old.release.as_ref(), status.release.as_ref());
            finish(cluster, "update", status, since, &wait).await
        }
        Command::Plan { words, name, spec, format } => {
            let base = match &name {
                Some(name) => {
                    cluster.service(name).await.ok().and_then(|old| serde_json::to_value(&old.service.spec).ok())
                }
                None => None,
            };
            let service = words.describe(spec.describe(name.as_deref(), base)?);
            let plan = cluster.plan(Apply { service, with: spec.scripts()?, only: Only::Either, auth: None }).await?;
            output::print(format.format, &plan, || show::plan(&plan))
        }
        Command::Ls(args) => look::ls(args, cluster).await,
        Command::Ps(args) => look::ps(args, cluster).await,
        Command::Stats(args) => stats::main(args, cluster).await,
        Command::Adopt { args, format, wait } => {
            native::adopt(cluster, args, format.format, wait.timeout(), wait.quiet).await
        }
        Command::HandBack { args, format, wait } => {
            native::hand_back(cluster, args, format.format, wait.timeout(), wait.quiet).await
        }
        Command::Inspect { services } => look::inspect(&services, cluster).await,
        Command::Logs { service, follow, since, tail, timestamps, raw, format } => {
            let (name, slot) = match service.split_once('.') {
                Some((name, slot)) => (name.to_owned(), Some(slot.to_owned())),
                None => (service, None),
            };
            let since = since.as_deref().map(read_since).transpose()?;
            let shape = LineShape { json: format.format == Format::Json, timestamps, raw };
            let tail = tail.and_then(|tail| tail.0);
            logs(cluster, &name, LogsAsk { since, tail, follow, slot }, &shape).await
        }
        Command::Scale { scales, wait } => {
            let wrong = |text: &str| Error::invalid(format!("scale {text:.80?}"), "is not SERVICE=REPLICAS");
            let mut parsed = Vec::new();
            for text in &scales {
                let (name, count) = text.split_once('=').ok_or_else(|| wrong(text))?;
                parsed.push((name, count.parse::<u32>().map_err(|_| wrong(text))?));
            }
            // All of them are told first: one that does not settle keeps nobody back.
            let mut told = Vec::new();
            let asked = output::each(parsed, async |(name, count)| {
                told.push(cluster.scale(name, count).await?);
                Ok(())
            });
            let asked = asked.await;
            let settled = output::each(told, async |status: ServiceStatus| {
                let before = status.release.clone();
                finish(cluster, "scale", status, before, &wait).await
            });
            let settled = settled.await;
            if let (Err(_), Err(error)) = (&settled, &asked) {
                output::print_error(error);
            }
            settled.and(asked)
        }
        Command::Rebalance { services, dry_run, max, min_gain, cancel, format, wait } => {
            let mut all = Vec::new();
            for service in &services {
                let done = cluster.rebalance(service, Rebalance { dry_run, max, min_gain, cancel }).await?;
                if format.format == Format::Table {
                    output::line(&if cancel { done.service.to_string() } else { show::rebalanced(&done) })?;
                }
                if !done.moves.is_empty() && !dry_run && !wait.detach {
                    let status = cluster.service(service).await?;
                    let status = watched(cluster, "rebalance", &status, status.release.as_ref(), &wait).await?;
                    wait::moved(&status, &done.moves)?;
                }
                all.push(done);
            }
            if format.format == Format::Json { output::print(Format::Json, &all, String::new) } else { Ok(()) }
        }
        Command::Rollback { service, wait } => {
            let status = cluster.release(&service, ReleaseAction::Rollback).await?;
            let before = status.release.clone();
            // Going back is what was asked for, so that it went back is no failure.
            let going_back = before
                .as_ref()
                .is_some_and(|release| release.state == crate::model::release::ReleaseState::RollingBack);
            match finish(cluster, "rollback", status, before, &wait).await {
                Err(_) if going_back && cluster.service(&service).await?.settled => output::line(&service),
                other => other,
            }
        }
        Command::Rollout(rollout) => steer(cluster, rollout).await,
        Command::Rm { services, detach } => {
            output::each(services, async |name| {
                let states = cluster.watch(&name).await?;
                cluster.remove(&name).await?;
                if !detach {
                    wait::gone(cluster, &name, states).await?;
                }
                output::line(&name)
            })
            .await
        }
        Command::Wait { service, timeout } => {
            let status = cluster.service(&service).await?;
            wait::half_way(&status)?;
            let before = status.release;
            let mut reporter = Reporter::default();
            wait::settled(cluster, &service, before.as_ref(), timeout.std(), &mut |status| {
                reporter.report("wait", status)
            })
            .await?;
            output::line(&service)
        }
    }
}

// `since`: the release that the wait starts from.
async fn finish(
    cluster: &RemoteCluster,
    doing: &str,
    status: ServiceStatus,
    since: Option<Release>,
    args: &WaitArgs,
) -> Result<()> {
    if !args.detach {
        watched(cluster, doing, &status, since.as_ref(), args).await?;
    }
    output::line(status.service.spec.name.as_str())
}

async fn watched(
    cluster: &RemoteCluster,
    doing: &str,
    status: &ServiceStatus,
    since: Option<&Release>,
    args: &WaitArgs,
) -> Result<ServiceStatus> {
    let mut reporter = Reporter::default();
    let name = status.service.spec.name.as_str();
    wait::settled(cluster, name, since, args.timeout.std(), &mut |status| {
        if !args.quiet {
            reporter.report(doing, status);
        }
    })
    .await
}

async fn steer(cluster: &RemoteCluster, rollout: Rollout) -> Result<()> {
    let (service, action) = match rollout {
        Rollout::Status { service, format } => {
            let release = cluster.service(&service).await?.release;
            return output::print(format.format, &release, || {
                release.as_ref().map_or_else(|| "there was no release yet".into(), show::release)
            });
        }
        Rollout::Pause { service } => (service, ReleaseAction::Pause),
        Rollout::Resume { service } => (service, ReleaseAction::Resume),
        Rollout::Promote { service } => (service, ReleaseAction::Promote),
        Rollout::Abort { service } => (service, ReleaseAction::Abort),
    };
    let status = cluster.release(&service, action).await?;
    output::line(&status.release.as_ref().map(show::release).unwrap_or_default())
}

/// How a line of output is printed.
struct LineShape {
    json: bool,
    timestamps: bool,
    raw: bool,
}

async fn logs(cluster: &RemoteCluster, name: &str, ask: LogsAsk, shape: &LineShape) -> Result<()> {
    let colour = std::io::stdout().is_terminal() && std::env::var_os("NO_COLOR").is_none();
    let mut lines = cluster.logs(name, ask).await?;
    while let Some(entry) = lines.next().await {
        let entry = entry?;
        if shape.json {
            output::line(
                &serde_json::to_string(&entry).map_err(|error| Error::internal("output", error.to_string()))?,
            )?;
            continue;
        }
        let mut line = String::new();
        if shape.timestamps {
            let at =
                jiff::Timestamp::from_nanosecond(i128::from(entry.at)).map(|at| at.to_string()).unwrap_or_default();
            line.push_str(&at);
            line.push(' ');
        }
        if !shape.raw {
            // The slot chooses the colour, so a replica keeps its own over the whole output.
            let shade =
                31 + entry.task.bytes().fold(0_u32, |sum, byte| sum.wrapping_mul(31).wrapping_add(u32::from(byte))) % 6;
            if colour {
                line.push_str(&format!("\x1b[{shade}m{}\x1b[0m | ", entry.task));
            } else {
                line.push_str(&format!("{} | ", entry.task));
            }
        }
        line.push_str(&entry.text);
        output::line(&line)?;
    }
    Ok(())
}

/// How many lines; none: all.
#[derive(Clone)]
pub struct Tail(Option<usize>);

fn tail(text: &str) -> std::result::Result<Tail, std::num::ParseIntError> {
    if text == "all" { Ok(Tail(None)) } else { text.parse().map(|lines| Tail(Some(lines))) }
}

fn read_since(text: &str) -> Result<i64> {
    let at = match text.parse::<Duration>() {
        Ok(period) => jiff::Timestamp::now().as_nanosecond() - i128::from(period.millis()) * 1_000_000,
        Err(_) => text
            .parse::<jiff::Timestamp>()
            .map_err(|error| {
                Error::invalid(format!("--since {text:.60?}"), "is neither a duration nor a time")
                    .cause(error)
                    .help("write 10m or 2026-01-31T12:00:00Z")
            })?
            .as_nanosecond(),
    };
    Ok(i64::try_from(at).unwrap_or(i64::MAX))
}
