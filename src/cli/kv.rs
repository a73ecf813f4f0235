//! `neap kv`.

use clap::Subcommand;
use futures_util::StreamExt;

use super::output::{self, Format, FormatArg};
use super::value::bytes_from_input;
use crate::client::kv::KvSet;
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
            let cluster = &cluster.on_age(output::print_age);
            let entry = cluster.kv_get(&key).await?;
            let Some(entry) = entry else { return Err(missing(cluster, &key).await) };
            match (format.format, entry.base64) {
                (Format::Table, true) => output::bytes(&entry.bytes()?),
                _ => output::print(format.format, &entry, || entry.value.clone()),
            }
        }
        Command::Set { key, value, version, raw, format } => {
            let value = if value == "-" { bytes_from_input(raw)? } else { value.into_bytes() };
            let entry = cluster.kv_set(&key, KvSet { version, ..KvSet::of(value) }).await?;
            output::print(format.format, &entry, || format!("{key} version {}", entry.version))
        }
        Command::Rm { keys, version } => {
            output::each(keys, async |key| {
                if !cluster.kv_delete(&key, version).await? {
                    return Err(missing(cluster, &key).await);
                }
                output::line(&key)
            })
            .await
        }
        Command::Ls { prefix, format } => {
            let cluster = &cluster.on_age(output::print_age);
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
                        Some(entry) => format!("{} = {}", show::shown(&change.key), show::shown(&entry.value)),
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
