//! `neap token`.

use std::path::{Path, PathBuf};

use clap::Subcommand;
use serde_json::json;

use super::output::{self, FormatArg};
use crate::client::remote::{RemoteCluster, segment};
use crate::model::right::{MadeToken, Token};
use crate::model::rules::{Names, Resource, Rules};
use crate::model::{Error, Result};

/// Subcommands.
#[derive(Subcommand)]
pub enum Command {
    /// Make a token; its secret is shown this once
    Create {
        /// Its name
        name: String,
        /// What it allows in Neap's own API [default: viewer; none with --rules]
        #[arg(long, value_parser = ["none", "viewer", "deployer", "admin"])]
        role: Option<String>,
        /// Only names that begin so
        #[arg(long, default_value = "")]
        prefix: String,
        /// What it allows in Consul's API: a file with rules in HCL or JSON, - for standard input [default: by role and prefix]
        #[arg(long, value_name = "FILE")]
        rules: Option<PathBuf>,
        /// Output format
        #[command(flatten)]
        format: FormatArg,
    },
    /// List tokens
    #[command(visible_alias = "list")]
    Ls(FormatArg),
    /// Remove a token
    Rm {
        /// Its name
        name: String,
    },
}

fn read(file: &Path) -> Result<String> {
    let failed = |error| Error::io(file.display().to_string(), "read the rules", &error);
    match file.as_os_str() == "-" {
        true => std::io::read_to_string(std::io::stdin()).map_err(failed),
        false => std::fs::read_to_string(file).map_err(failed),
    }
}

// `key 2, service 1`.
fn summed(rules: &Rules) -> String {
    let one = |(resource, names): (&Resource, &Names)| format!("{resource} {}", names.exact.len() + names.prefix.len());
    rules.0.iter().map(one).collect::<Vec<_>>().join(", ")
}

/// Runs a subcommand.
pub async fn main(command: Command, cluster: &RemoteCluster) -> Result<()> {
    match command {
        Command::Create { name, role, prefix, rules, format } => {
            let mut body = json!({ "name": name, "role": role, "prefix": prefix });
            if let Some(file) = rules {
                body["rules"] = read(&file)?.into();
            }
            let made: MadeToken = cluster.call("POST", "/v1/tokens", Some(&body)).await?;
            output::print(format.format, &made, || made.secret.clone())
        }
        Command::Ls(args) => {
            let tokens: Vec<Token> = cluster.call("GET", "/v1/tokens", None::<&()>).await?;
            output::print(args.format, &tokens, || {
                let rows = tokens.iter().map(|token| {
                    [
                        token.principal.name.clone(),
                        token.principal.role.as_str().to_owned(),
                        token.principal.prefix.clone(),
                        token.rules.as_ref().map(summed).unwrap_or_default(),
                    ]
                });
                crate::client::show::rows(&["NAME", "ROLE", "PREFIX", "RULES"], rows)
            })
        }
        Command::Rm { name } => {
            cluster.call::<serde_json::Value>("DELETE", &format!("/v1/tokens/{}", segment(&name)), None::<&()>).await?;
            output::line(&name)
        }
    }
}
