//! `neap context`: daemons elsewhere, by name, in the configuration file.

use std::path::Path;

use clap::Subcommand;

use super::output::{self, FormatArg};
use crate::daemon::config::{Config, Context};
use crate::model::{Error, Result};

/// Subcommands.
#[derive(Subcommand)]
pub enum Command {
    /// Add a daemon, or change it
    Add {
        /// The context's name
        name: String,
        /// unix:///path or tcp://host:port
        #[arg(long = "address", value_name = "HOST")]
        address: String,
        /// The token's secret (for tcp)
        #[arg(long)]
        token: Option<String>,
        /// SHA-256 of the daemon's certificate, as `neap up` prints it (for tcp)
        #[arg(long)]
        fingerprint: Option<String>,
    },
    /// List contexts
    #[command(visible_alias = "list")]
    Ls(FormatArg),
    /// Use a context where none is named; without a name, the local daemon
    Use {
        /// The context's name
        name: Option<String>,
    },
    /// Remove a context
    Rm {
        /// The context's name
        name: String,
    },
}

/// Runs a subcommand.
pub fn main(command: Command, path: &Path) -> Result<()> {
    let mut config = Config::load(path)?;
    let missing = |name: &str, config: &Config| {
        let hint = crate::model::suggest::hint(name, config.contexts.keys().map(String::as_str));
        Error::new(crate::model::Kind::NotFound, format!("context \"{name:.60}\""), format!("is not known{hint}"))
    };
    match command {
        Command::Add { name, address, token, fingerprint } => {
            let context = Context { host: address, token, fingerprint };
            config.contexts.insert(name.clone(), context);
            // Reads it as it will be used, so that a mistake shows now.
            config.endpoint(Some(&name))?;
            config.save(path)?;
            output::line(&name)
        }
        Command::Ls(args) => {
            let rows: Vec<[String; 3]> = config
                .contexts
                .iter()
                .map(|(name, context)| {
                    [
                        name.clone(),
                        context.host.clone(),
                        if config.context.as_ref() == Some(name) { "*".into() } else { String::new() },
                    ]
                })
                .collect();
            let listed: Vec<_> = rows.iter().map(|[name, host, current]| serde_json::json!({ "name": name, "host": host, "current": current == "*" })).collect();
            output::print(args.format, &listed, || crate::client::show::rows(&["NAME", "HOST", "CURRENT"], rows))
        }
        Command::Use { name } => {
            if let Some(name) = &name
                && !config.contexts.contains_key(name)
            {
                return Err(missing(name, &config));
            }
            config.context = name;
            config.save(path)
        }
        Command::Rm { name } => {
            if config.contexts.remove(&name).is_none() {
                return Err(missing(&name, &config));
            }
            config.context = config.context.filter(|current| *current != name);
            config.save(path)?;
            output::line(&name)
        }
    }
}
