//! `neap token`.

use clap::Subcommand;
use serde_json::json;

use super::output::{self, FormatArg};
use crate::client::remote::{RemoteCluster, segment};
use crate::model::Result;
use crate::model::right::{MadeToken, Token};

/// Subcommands.
#[derive(Subcommand)]
pub enum Command {
    /// Make a token; its secret is shown this once
    Create {
        /// Its name
        name: String,
        /// What it allows
        #[arg(long, value_parser = ["viewer", "deployer", "admin"], default_value = "viewer")]
        role: String,
        /// Only names that begin so
        #[arg(long, default_value = "")]
        prefix: String,
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

/// Runs a subcommand.
pub async fn main(command: Command, cluster: &RemoteCluster) -> Result<()> {
    match command {
        Command::Create { name, role, prefix, format } => {
            let body = json!({ "name": name, "role": role, "prefix": prefix });
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
                    ]
                });
                crate::client::show::rows(&["NAME", "ROLE", "PREFIX"], rows)
            })
        }
        Command::Rm { name } => {
            cluster.call::<serde_json::Value>("DELETE", &format!("/v1/tokens/{}", segment(&name)), None::<&()>).await?;
            output::line(&name)
        }
    }
}
