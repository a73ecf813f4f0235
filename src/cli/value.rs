//! `neap secret` and `neap config`.

use std::io::{IsTerminal, Read};
use std::path::PathBuf;

use clap::Subcommand;

use super::filter::FilterArgs;
use super::output::{self, Format, FormatArg};
use crate::client::kv::{ValueChange, ValueInfo, ValueKind, ValueSet};
use crate::client::remote::RemoteCluster;
use crate::client::{Cluster, show};
use crate::model::{Error, Kind, Result};

/// What is set, and from where.
#[derive(clap::Args)]
pub struct SetArgs {
    /// Its name
    name: String,
    /// The file that holds the value; - or nothing: standard input
    file: Option<PathBuf>,
    /// Leave the services that use it as they are, until they are applied
    #[arg(long)]
    no_rollout: bool,
    #[command(flatten)]
    format: FormatArg,
}

/// The same for a secret, which seldom ends with a line end on purpose.
#[derive(clap::Args)]
pub struct SecretArgs {
    #[command(flatten)]
    set: SetArgs,
    /// Keep a line end at the end of what is read
    #[arg(long)]
    raw: bool,
}

/// Subcommands of `neap secret`.
#[derive(Subcommand)]
pub enum SecretCommand {
    /// Make a secret: neap secret create shop/database_url url.txt
    Create(SecretArgs),
    /// Set a secret, new or not, and roll out the services that use it: neap secret set shop/database_url < url.txt
    Set(SecretArgs),
    /// List secrets; their values are never shown
    #[command(visible_alias = "list")]
    Ls(ListArgs),
    /// Show what is known of secrets, but not their values
    Inspect(Names),
    /// Remove secrets that nothing uses
    #[command(visible_alias = "remove")]
    Rm {
        /// Their names
        #[arg(required = true)]
        names: Vec<String>,
    },
}

/// Subcommands of `neap config`.
#[derive(Subcommand)]
pub enum ConfigCommand {
    /// Make a config: neap config create shop/nginx nginx.conf
    Create(SetArgs),
    /// Set a config, new or not, and roll out the services that use it
    Set(SetArgs),
    /// Print a config's value
    Get {
        /// Its name
        name: String,
    },
    /// List configs
    #[command(visible_alias = "list")]
    Ls(ListArgs),
    /// Show configs with their values
    Inspect(Names),
    /// Remove configs that nothing uses
    #[command(visible_alias = "remove")]
    Rm {
        /// Their names
        #[arg(required = true)]
        names: Vec<String>,
    },
}

/// What is listed.
#[derive(clap::Args)]
pub struct ListArgs {
    #[command(flatten)]
    format: FormatArg,
    /// Names only
    #[arg(long, short)]
    quiet: bool,
    #[command(flatten)]
    filter: FilterArgs,
}

/// Some by name.
#[derive(clap::Args)]
pub struct Names {
    /// Their names
    #[arg(required = true)]
    names: Vec<String>,
    /// For people instead of as JSON
    #[arg(long)]
    pretty: bool,
}

impl Names {
    fn format(&self) -> Format {
        if self.pretty { Format::Table } else { Format::Json }
    }
}

/// Runs a subcommand of `neap secret`.
pub async fn secret(command: SecretCommand, cluster: &RemoteCluster) -> Result<()> {
    let of = ValueKind::Secret;
    match command {
        SecretCommand::Create(args) => set(of, args.set, !args.raw, true, cluster).await,
        SecretCommand::Set(args) => set(of, args.set, !args.raw, false, cluster).await,
        SecretCommand::Ls(args) => list(of, args, &cluster.on_age(output::print_age)).await,
        SecretCommand::Inspect(args) => {
            let all = cluster.values(of).await?;
            let found: Result<Vec<&ValueInfo>> = args.names.iter().map(|name| find(of, &all, name)).collect();
            let found = found?;
            let told = |info: &&ValueInfo| show::value(info, show::now());
            output::print(args.format(), &found, || found.iter().map(told).collect::<Vec<_>>().join("\n\n"))
        }
        SecretCommand::Rm { names } => remove(of, names, cluster).await,
    }
}

/// Runs a subcommand of `neap config`.
pub async fn config(command: ConfigCommand, cluster: &RemoteCluster) -> Result<()> {
    let of = ValueKind::Config;
    match command {
        ConfigCommand::Create(args) => set(of, args, false, true, cluster).await,
        ConfigCommand::Set(args) => set(of, args, false, false, cluster).await,
        ConfigCommand::Get { name } => output::raw(&cluster.config(&name).await?.value),
        ConfigCommand::Ls(args) => list(of, args, &cluster.on_age(output::print_age)).await,
        ConfigCommand::Inspect(args) => {
            let mut found = Vec::new();
            for name in &args.names {
                found.push(cluster.config(name).await?);
            }
            let now = show::now();
            let told = |config: &crate::client::kv::ConfigValue| {
                format!("{}\n\n{}", show::value(&config.info, now), config.value.trim_end_matches('\n'))
            };
            output::print(args.format(), &found, || found.iter().map(told).collect::<Vec<_>>().join("\n\n"))
        }
        ConfigCommand::Rm { names } => remove(of, names, cluster).await,
    }
}

fn find<'a>(of: ValueKind, all: &'a [ValueInfo], name: &str) -> Result<&'a ValueInfo> {
    all.iter().find(|info| info.name == name).ok_or_else(|| {
        let hint = crate::model::suggest::hint(name, all.iter().map(|info| info.name.as_str()));
        let error = Error::not_found(format!("{} \"{name:.70}\"", of.as_str()));
        let help = format!("`neap {} ls` lists them{hint}", of.as_str());
        error.help(help)
    })
}

async fn list(of: ValueKind, args: ListArgs, cluster: &RemoteCluster) -> Result<()> {
    let filter = args.filter.read(&["name"])?;
    let mut all = cluster.values(of).await?;
    all.retain(|value| filter.begins("name", &[&value.name]));
    if args.quiet {
        return all.iter().try_for_each(|value| output::line(&value.name));
    }
    output::print(args.format.format, &all, || show::values(&all, show::now()))
}

async fn remove(of: ValueKind, names: Vec<String>, cluster: &RemoteCluster) -> Result<()> {
    output::each(names, async |name| {
        cluster.remove_value(of, &name).await?;
        output::line(&name)
    })
    .await
}

async fn set(of: ValueKind, args: SetArgs, trim: bool, only_new: bool, cluster: &RemoteCluster) -> Result<()> {
    let mut value = match &args.file {
        Some(path) if path.as_os_str() != "-" => {
            let subject = || format!("file {}", path.display());
            let bytes = std::fs::read(path).map_err(|error| Error::io(subject(), "read it", &error))?;
            String::from_utf8(bytes).map_err(|_| {
                Error::invalid(subject(), "is not UTF-8 text").help("write other data as text, base64 for example")
            })?
        }
        _ if of == ValueKind::Secret && std::io::stdin().is_terminal() => typed(&format!("secret \"{}\"", args.name))?,
        _ => text_from_input(true)?,
    };
    if trim {
        without_line_end(&mut value);
    }
    if value.is_empty() {
        return Err(Error::invalid(format!("{} \"{}\"", of.as_str(), args.name), "is empty")
            .help("give its value in a file or on standard input"));
    }
    let set = ValueSet { value, only_new, no_rollout: args.no_rollout, prefix: String::new() };
    let change = cluster.set_value(of, &args.name, set).await?;
    output::print(args.format.format, &change, || told(&change))?;
    match change.refused.first_key_value() {
        None => Ok(()),
        Some((service, why)) => {
            Err(Error::new(Kind::Failed, format!("service \"{service}\""), "goes on with what it had").cause(why))
        }
    }
}

fn told(change: &ValueChange) -> String {
    let first = format!("{} version {}", change.info.name, change.info.version);
    match change.rolled_out.is_empty() {
        true => first,
        false => format!("{first}; rolls out {}", change.rolled_out.join(", ")),
    }
}

// A line at a terminal, which does not show it.
pub fn typed(name: &str) -> Result<String> {
    use nix::sys::termios::{LocalFlags, SetArg, tcgetattr, tcsetattr};
    let failed = |error: std::io::Error| Error::io("terminal", "read a line from it", &error);
    let stdin = std::io::stdin();
    let before = tcgetattr(&stdin).map_err(|errno| failed(errno.into()))?;
    let mut silent = before.clone();
    silent.local_flags.remove(LocalFlags::ECHO);
    eprint!("{name}, ends with Enter, is not shown: ");
    tcsetattr(&stdin, SetArg::TCSAFLUSH, &silent).map_err(|errno| failed(errno.into()))?;
    let mut line = String::new();
    let read = stdin.read_line(&mut line).map_err(failed);
    let _ = tcsetattr(&stdin, SetArg::TCSAFLUSH, &before);
    eprintln!();
    read?;
    Ok(line.trim_end_matches(['\r', '\n']).to_owned())
}

// A text is what stands before the last line end, unless all of it is asked for.
pub fn text_from_input(raw: bool) -> Result<String> {
    let mut text = String::new();
    std::io::stdin().read_to_string(&mut text).map_err(|error| match error.kind() {
        std::io::ErrorKind::InvalidData => {
            Error::invalid("standard input", "is not UTF-8 text").help("write other data as text, base64 for example")
        }
        _ => Error::io("standard input", "read a text from it", &error),
    })?;
    if !raw {
        without_line_end(&mut text);
    }
    Ok(text)
}

/// Any bytes, without the last line end where they are a text that is not wanted whole.
pub fn bytes_from_input(raw: bool) -> Result<Vec<u8>> {
    let mut all = Vec::new();
    std::io::stdin().read_to_end(&mut all).map_err(|error| Error::io("standard input", "read it", &error))?;
    if raw {
        return Ok(all);
    }
    match String::from_utf8(all) {
        Ok(mut text) => {
            without_line_end(&mut text);
            Ok(text.into_bytes())
        }
        Err(error) => Ok(error.into_bytes()),
    }
}

fn without_line_end(text: &mut String) {
    if text.ends_with('\n') {
        text.pop();
        if text.ends_with('\r') {
            text.pop();
        }
    }
}
