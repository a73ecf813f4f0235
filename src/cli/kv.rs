//! `neap kv` and `neap secret`.

use std::io::{IsTerminal, Read};

use clap::Subcommand;
use futures_util::StreamExt;

use super::output::{self, Format, FormatArg};
use crate::client::kv::{KvSet, SecretSet};
use crate::client::remote::RemoteCluster;
use crate::client::{Cluster, NameKind, show};
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
            let Some(entry) = entry else { return Err(missing(cluster, &key).await) };
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
                    return Err(missing(cluster, &key).await);
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

async fn missing(cluster: &RemoteCluster, key: &str) -> Error {
    let beginning: String = key.chars().take(1).collect();
    let known = cluster.names(NameKind::Kv, &beginning, 1000).await.unwrap_or_default();
    let hint = crate::model::suggest::nearest(key, known.iter().map(String::as_str));
    let help = hint.map_or("`neap kv ls` lists them".into(), |near| format!("did you mean \"{near}\"?"));
    Error::not_found(format!("key \"{key:.70}\"")).help(help)
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
            let value = if std::io::stdin().is_terminal() { typed(&name)? } else { text_from_input(raw)? };
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

// A line at a terminal, which does not show it.
fn typed(name: &str) -> Result<String> {
    use nix::sys::termios::{LocalFlags, SetArg, tcgetattr, tcsetattr};
    let failed = |error: std::io::Error| Error::io("terminal", "read a line from it", &error);
    let stdin = std::io::stdin();
    let before = tcgetattr(&stdin).map_err(|errno| failed(errno.into()))?;
    let mut silent = before.clone();
    silent.local_flags.remove(LocalFlags::ECHO);
    eprint!("secret \"{name}\", ends with Enter, is not shown: ");
    tcsetattr(&stdin, SetArg::TCSAFLUSH, &silent).map_err(|errno| failed(errno.into()))?;
    let mut line = String::new();
    let read = stdin.read_line(&mut line).map_err(failed);
    let _ = tcsetattr(&stdin, SetArg::TCSAFLUSH, &before);
    eprintln!();
    read?;
    Ok(line.trim_end_matches(['\r', '\n']).to_owned())
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
