//! `neap stack`: Compose files, and the services that belong together.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use clap::Subcommand;
use serde_json::json;

use super::output::{self, Format, FormatArg};
use super::progress::Reporter;
use super::registry::AuthArgs;
use crate::client::remote::RemoteCluster;
use crate::client::stack::{self, Deploy, Step};
use crate::client::{Cluster, ServiceStatus, show};
use crate::compose;
use crate::model::stack::Stack;
use crate::model::units::Duration;
use crate::model::{Error, Kind, Result};
use crate::script::bring::bring;

/// Where a stack is described.
#[derive(clap::Args)]
pub struct Files {
    /// A Compose file; several are put on top of each other; -: standard input [default: compose.yaml, compose.yml,
    /// docker-compose.yaml or docker-compose.yml, the first that is there]
    #[arg(long = "compose-file", short = 'c', visible_alias = "file", value_name = "FILE")]
    files: Vec<PathBuf>,
    /// Variables for the file, instead of the .env beside it
    #[arg(long, value_name = "FILE")]
    env_file: Option<PathBuf>,
    /// Services with this profile as well; *: all
    #[arg(long, value_name = "NAME")]
    profile: Vec<String>,
    /// The stack [default: the file's own name, else its folder's]
    name: Option<String>,
}

/// Subcommands.
#[derive(Subcommand)]
pub enum Command {
    /// Apply a Compose file: neap stack deploy -c docker-compose.yml shop
    #[command(visible_alias = "up")]
    Deploy {
        #[command(flatten)]
        files: Files,
        /// Remove services of the stack that the file does not name any more
        #[arg(long)]
        prune: bool,
        /// Do not wait until all is as described; services that others wait for are waited for all the same
        #[arg(long, short)]
        detach: bool,
        /// How long each wait may take
        #[arg(long, default_value = "10m")]
        timeout: Duration,
        /// Bring hosted scripts along: a pattern below this folder, such as 'policies/*.lua'
        #[arg(long, value_name = "PATTERN")]
        with: Vec<String>,
        #[command(flatten)]
        auth: AuthArgs,
    },
    /// Show what a Compose file comes to, as JSON; values of secrets are left out
    Config {
        #[command(flatten)]
        files: Files,
    },
    /// List stacks
    #[command(visible_alias = "list")]
    Ls(FormatArg),
    /// List a stack's services
    Services {
        /// The stack
        name: String,
        #[command(flatten)]
        format: FormatArg,
    },
    /// List a stack's tasks
    Ps {
        /// The stack
        name: String,
        /// Ended tasks as well
        #[arg(long, short)]
        all: bool,
        #[command(flatten)]
        format: FormatArg,
    },
    /// Remove a stack's services and networks; volumes, secrets and configs stay
    #[command(visible_aliases = ["remove", "down"])]
    Rm {
        /// The stacks
        #[arg(required = true)]
        names: Vec<String>,
        /// How long it may take
        #[arg(long, default_value = "10m")]
        timeout: Duration,
    },
}

fn read(path: &Path) -> Result<String> {
    let subject = || format!("file {}", path.display());
    if path.ends_with("-") {
        return std::io::read_to_string(std::io::stdin())
            .map_err(|error| Error::io("standard input", "read it", &error));
    }
    let bytes = std::fs::read(path).map_err(|error| Error::io(subject(), "read it", &error))?;
    String::from_utf8(bytes).map_err(|_| Error::invalid(subject(), "is not UTF-8 text"))
}

fn load(files: &Files) -> Result<Stack> {
    let here = std::env::current_dir().map_err(|error| Error::io("working folder", "find it", &error))?;
    let mut paths: Vec<PathBuf> = files.files.iter().map(|path| here.join(path)).collect();
    if paths.is_empty() {
        let usual = ["compose.yaml", "compose.yml", "docker-compose.yaml", "docker-compose.yml"];
        let found = usual.iter().map(|name| here.join(name)).find(|path| path.exists());
        paths.push(found.ok_or_else(|| {
            Error::new(Kind::NotFound, format!("folder {}", here.display()), "has no Compose file")
                .help(format!("name one with -c, or call it {}", usual[0]))
        })?);
    }
    let options = compose::Options {
        name: files.name.clone(),
        variables: compose::environment(),
        profiles: files.profile.iter().cloned().collect::<BTreeSet<_>>(),
        env_file: files.env_file.as_ref().map(|path| here.join(path)),
    };
    let stack = compose::load(&paths, &options, &read)?;
    for warning in &stack.warnings {
        super::output::warn(warning);
    }
    Ok(stack)
}

/// Runs a subcommand.
pub async fn main(command: Command, cluster: impl FnOnce() -> Result<RemoteCluster>) -> Result<()> {
    match command {
        Command::Deploy { files, prune, detach, timeout, with, auth } => {
            let stack = load(&files)?;
            let here = std::env::current_dir().map_err(|error| Error::io("working folder", "find it", &error))?;
            let with = if with.is_empty() { None } else { Some(bring(&here, &with)?) };
            let auth = auth.of(stack.services.values());
            let ask = Deploy { prune, wait: !detach, timeout: timeout.std(), with, auth };
            let mut reporter = Reporter::default();
            let mut tell = |step: Step<'_>| match step {
                Step::Done(what, name) => eprintln!("{what}: {name}"),
                Step::Waits(status) => reporter.report("wait for", status),
            };
            let applied = stack::deploy(&cluster()?, &stack, &ask, &mut tell).await?;
            applied.iter().try_for_each(|status| output::line(status.service.spec.name.as_str()))
        }
        Command::Config { files } => {
            let mut stack = load(&files)?;
            for secret in stack.secrets.values_mut() {
                secret.value = secret.value.as_ref().map(|_| "(not shown)".to_owned());
            }
            output::print(Format::Json, &stack, String::new)
        }
        Command::Ls(args) => {
            let services = cluster()?.services().await?;
            let mut stacks: BTreeMap<&str, (usize, usize)> = BTreeMap::new();
            for status in &services {
                if let Some(name) = stack::of(status) {
                    let (all, settled) = stacks.entry(name).or_default();
                    *all += 1;
                    *settled += usize::from(status.settled);
                }
            }
            let all: Vec<_> = stacks
                .iter()
                .map(|(name, (services, settled))| json!({ "name": name, "services": services, "settled": settled }))
                .collect();
            let row = |(name, (services, settled)): (&&str, &(usize, usize))| {
                [(*name).to_owned(), services.to_string(), settled.to_string()]
            };
            output::print(args.format, &all, || {
                show::rows(&["NAME", "SERVICES", "AS DESCRIBED"], stacks.iter().map(row))
            })
        }
        Command::Services { name, format } => {
            let services = own(&cluster()?, &name).await?;
            output::print(format.format, &services, || show::services(&services, &[]))
        }
        Command::Ps { name, all, format } => {
            let services = own(&cluster()?, &name).await?;
            let tasks: Vec<_> = services.iter().flat_map(|status| &status.tasks).collect();
            output::print(format.format, &tasks, || show::tasks_of(&services, all, false, show::now()))
        }
        Command::Rm { names, timeout } => {
            let cluster = cluster()?;
            output::each(names, async |name| {
                let mut tell = |step: Step<'_>| {
                    if let Step::Done(what, name) = step {
                        eprintln!("{what}: {name}");
                    }
                };
                stack::remove(&cluster, &name, timeout.std(), &mut tell).await?;
                output::line(&name)
            })
            .await
        }
    }
}

async fn own(cluster: &RemoteCluster, name: &str) -> Result<Vec<ServiceStatus>> {
    let mut services = cluster.services().await?;
    let name = &crate::model::stack::stack_name(name);
    services.retain(|status| stack::of(status) == Some(name.as_str()));
    if services.is_empty() {
        return Err(Error::new(Kind::NotFound, format!("stack \"{name:.70}\""), "has no services")
            .help("`neap stack ls` lists stacks"));
    }
    Ok(services)
}
