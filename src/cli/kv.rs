//! `neap kv` and `neap secret`.

use std::io::{IsTerminal, Read};

use clap::Subcommand;
use futures_util::StreamExt;

use super::output::{self, Format, FormatArg};
use crate::client::kv::{KvSet, SecretSet};
use crate::client::remote::RemoteCluster;
use crate::client::{Cluster, show};
use crate::model::{Error, Kind, Result};

/// Subcommands of `neap kv`.
#[derive(Subcommand)]
pub enum Command {
    /// Print a key's value
    Get {
        /// The key
        key: String,
        #[command(flatten)]
        format: FormatArg,
    },
    /// Set a key: neap kv set shop/level info; a value of - is read from standard input
    Set {
        /// The key
        key: String,
        /// The value
        value: String,
        /// Only if the key has this version; 0: only if there is no such key
        #[arg(long)]
        version: Option<u64>,
        /// Keep a line end at the end of what is read from standard input
        #[arg(long)]
        raw: bool,
        #[command(flatten)]
        format: FormatArg,
    },
    /// Remove keys
    #[command(visible_alias = "delete")]
    Rm {
        /// The keys
        #[arg(required = true)]
        keys: Vec<String>,
        /// Only if the key has this version
        #[arg(long)]
        version: Option<u64>,
    },
    /// List keys
    #[command(visible_alias = "list")]
    Ls {
        /// Only keys that begin so
        #[arg(default_value = "")]
        prefix: String,
        #[command(flatten)]
        format: FormatArg,
    },
    /// Print keys and each change from then on
    Watch {
        /// Only keys that begin so
        #[arg(default_value = "")]
        prefix: String,
        #[command(flatten)]
        format: FormatArg,
    },
}

/// Runs a subcommand of `neap kv`.
pub async fn main(command: Command, cluster: &RemoteCluster) -> Result<()> {
    match command {
        Command::Get { key, format } => {
            let entry = cluster.kv_get(&key).await?;
            let entry =
                entry.ok_or_else(|| Error::not_found(format!("key \"{key:.70}\"")).help("`neap kv ls` lists them"))?;
            output::print(format.format, &entry, || entry.value.clone())
        }
        Command::Set { key, value, version, raw, format } => {
            let value = if value == "-" { text_from_input(raw)? } else { value };
            let entry = cluster.kv_set(&key, KvSet { value, version }).await?;
            output::print(format.format, &entry, || format!("{key} version {}", entry.version))
        }
        Command::Rm { keys, version } => {
            for key in keys {
                if !cluster.kv_delete(&key, version).await? {
                    return Err(Error::not_found(format!("key \"{key:.70}\"")).help("`neap kv ls` lists them"));
                }
                output::line(&key)?;
            }
            Ok(())
        }
        Command::Ls { prefix, format } => {
            let entries = cluster.kv_list(&prefix).await?;
            output::print(format.format, &entries, || show::kv(&entries))
        }
        Command::Watch { prefix, format } => {
            let mut changes = cluster.kv_watch(&prefix).await?;
            while let Some(change) = changes.next().await {
                let change = change?;
                match format.format {
                    Format::Json => output::line(&serde_json::to_string(&change).unwrap_or_default())?,
                    Format::Table => output::line(&match &change.entry {
                        Some(entry) => format!("{} = {}", change.key, entry.value),
                        None => format!("{} removed", change.key),
                    })?,
                }
            }
            Err(Error::new(Kind::Unavailable, "daemon", "has stopped"))
        }
    }
}

/// Subcommands of `neap secret`.
#[derive(Subcommand)]
pub enum SecretCommand {
    /// Set a secret, read from standard input: neap secret set shop/database_url < url.txt
    Set {
        /// Its name
        name: String,
        /// Keep a line end at the end of what is read
        #[arg(long)]
        raw: bool,
    },
    /// List secrets; their values are never shown
    #[command(visible_alias = "list")]
    Ls(FormatArg),
    /// Remove secrets that nothing uses
    #[command(visible_alias = "remove")]
    Rm {
        /// Their names
        #[arg(required = true)]
        names: Vec<String>,
    },
}

/// Runs a subcommand of `neap secret`.
pub async fn secret(command: SecretCommand, cluster: &RemoteCluster) -> Result<()> {
    match command {
        SecretCommand::Set { name, raw } => {
            if std::io::stdin().is_terminal() {
                eprintln!("the secret is read up to the end of input (Ctrl-D); it shows as you type");
            }
            let value = text_from_input(raw)?;
            if value.is_empty() {
                return Err(
                    Error::invalid(format!("secret \"{name}\""), "is empty").help("give its value on standard input")
                );
            }
            let info = cluster.set_secret(&name, SecretSet { value }).await?;
            output::line(&format!("{name} version {}", info.version))
        }
        SecretCommand::Ls(args) => {
            let all = cluster.secrets().await?;
            output::print(args.format, &all, || show::secrets(&all, show::now()))
        }
        SecretCommand::Rm { names } => {
            for name in names {
                cluster.remove_secret(&name).await?;
                output::line(&name)?;
            }
            Ok(())
        }
    }
}

// A text is what stands before the last line end, unless all of it is asked for.
fn text_from_input(raw: bool) -> Result<String> {
    let mut text = String::new();
    std::io::stdin().read_to_string(&mut text).map_err(|error| match error.kind() {
        std::io::ErrorKind::InvalidData => {
            Error::invalid("standard input", "is not UTF-8 text").help("write other data as text, base64 for example")
        }
        _ => Error::io("standard input", "read a text from it", &error),
    })?;
    if !raw && text.ends_with('\n') {
        text.pop();
        if text.ends_with('\r') {
            text.pop();
        }
    }
    Ok(text)
}
