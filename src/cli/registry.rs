//! `neap registry`, and what `--with-registry-auth` takes along.

use std::collections::BTreeMap;
use std::io::IsTerminal;

use clap::Subcommand;
use serde_json::Value;

use super::images;
use super::output::{self, FormatArg};
use super::value;
use crate::client::remote::RemoteCluster;
use crate::client::{Cluster, show};
use crate::engines::docker::credentials;
use crate::model::registry::{self, Credentials, LoginAsk, Password};
use crate::model::{Error, Result};

/// Subcommands.
#[derive(Subcommand)]
pub enum Command {
    /// Log the cluster in at a registry: its hosts pull images as this user
    Login {
        /// The registry, as images name it [default: docker.io]
        #[arg(default_value = registry::HUB, hide_default_value = true)]
        registry: String,
        /// Who asks there; <token>: the password is an identity token
        #[arg(long, short)]
        username: String,
        /// Take the password from standard input
        #[arg(long)]
        password_stdin: bool,
        /// Do not ask the registry whether that is right
        #[arg(long)]
        unverified: bool,
    },
    /// Forget a login
    Logout {
        /// The registry
        #[arg(default_value = registry::HUB, hide_default_value = true)]
        registry: String,
        /// The one that came along with this service (--with-registry-auth), instead of the cluster's own
        #[arg(long)]
        service: Option<String>,
    },
    /// List the registries that the cluster is logged in at
    Logins(FormatArg),
    #[command(flatten)]
    Images(images::Command),
}

/// Runs a subcommand.
pub async fn main(command: Command, cluster: &RemoteCluster) -> Result<()> {
    match command {
        Command::Login { registry, username, password_stdin, unverified } => {
            let password = match password_stdin {
                true => value::text_from_input(false)?,
                false if std::io::stdin().is_terminal() => value::typed(&format!("password for {registry}"))?,
                false => {
                    return Err(Error::invalid("password", "cannot be typed where there is no terminal")
                        .help("pipe it: echo $TOKEN | neap registry login HOST -u USER --password-stdin"));
                }
            };
            let login =
                cluster.login(&registry, LoginAsk { username, password: Password(password), unverified }).await?;
            output::line(&match login.verified {
                true => format!("logged in at {} as {}", login.registry, login.username),
                false => format!("{} is told {} from now on; nobody asked it", login.registry, login.username),
            })
        }
        Command::Logout { registry, service } => {
            cluster.logout(&registry, service.as_deref()).await?;
            output::line(&registry)
        }
        Command::Images(command) => images::main(command, cluster).await,
        Command::Logins(args) => {
            let logins = cluster.logins().await?;
            output::print(args.format, &logins, || show::logins(&logins, show::now()))
        }
    }
}

/// Whose credentials pull the image.
#[derive(clap::Args)]
pub struct AuthArgs {
    /// Take along what docker has on this machine for the image's registry (docker login)
    #[arg(long)]
    with_registry_auth: bool,
}

impl AuthArgs {
    /// What this user's Docker has for the registries of these descriptions' images, if it is to be taken along.
    pub fn of<'a>(&self, services: impl Iterator<Item = &'a Value>) -> BTreeMap<String, Credentials> {
        if !self.with_registry_auth {
            return BTreeMap::new();
        }
        let images = services.filter_map(|service| service["image"].as_str());
        let by_registry: BTreeMap<&str, &str> = images.map(|image| (registry::of_image(image), image)).collect();
        let known = by_registry.into_iter().filter_map(|(registry, image)| {
            let Some(login) = credentials::find_login(image) else {
                super::output::warn(format!(
                    "docker has no login at {registry} here that could be taken along (docker login {registry})"
                ));
                return None;
            };
            Some((registry.to_owned(), Credentials { username: login.username, password: Password(login.password) }))
        });
        known.collect()
    }
}
