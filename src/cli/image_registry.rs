//! What `neap up` and `neap agent` are told of the image registry.

use std::net::SocketAddr;
use std::path::PathBuf;

use clap::ValueEnum;

use crate::daemon::config::Config;
use crate::daemon::discovery;
use crate::daemon::images::{self, BucketSettings, RegistryName, RegistryOptions};
use crate::model::units::{Bytes, Duration};
use crate::model::{Error, Result};
use crate::registry::Limits;
use crate::registry::replica::bucket::BucketOptions;

/// What a host keeps for its cluster.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Role {
    /// Its images
    Registry,
}

/// Arguments.
#[derive(clap::Args)]
pub struct RegistryArgs {
    /// What this host of a Swarm keeps for the cluster; one that is alone keeps all
    #[arg(long, env = "NEAP_ROLES", value_enum, value_delimiter = ',', value_name = "ROLE")]
    roles: Vec<Role>,
    /// Where the image registry listens, and in a Swarm the door to it; several with commas, or none [default: 127.0.0.1:5000]
    #[arg(long, env = "NEAP_REGISTRY_LISTEN", value_name = "ADDRESS:PORT")]
    registry_listen: Option<String>,
    /// Where the doors of other hosts reach the image registry, where this one keeps it
    /// [default: port 8378 at the address of --peer; of an agent at all of the host's]
    #[arg(long, env = "NEAP_REGISTRY_PEER", value_name = "ADDRESS:PORT")]
    registry_peer: Option<SocketAddr>,
    /// The name under which laptops and CI reach the image registry, by TLS, and which its certificate has; it listens at all addresses then
    #[arg(long, env = "NEAP_REGISTRY_NAME", value_name = "NAME:PORT")]
    registry_name: Option<RegistryName>,
    /// What the image registry asks of clients: open (nothing), pull (a token of who pushes or deletes), token (of everybody)
    /// [default: on the loopback open, in a Swarm pull; token elsewhere]
    #[arg(long, env = "NEAP_REGISTRY_ACCESS", value_name = "ACCESS")]
    registry_access: Option<String>,
    /// How many requests a second one address may make of the image registry, a door's host among them; ten times as many at once
    #[arg(long, env = "NEAP_REGISTRY_RATE", value_name = "REQUESTS", value_parser = clap::value_parser!(u32).range(1..))]
    registry_rate: Option<u32>,
    /// Users of the image registry with their passwords, a file of `htpasswd -B`; read again when it changes
    #[arg(long, env = "NEAP_REGISTRY_HTPASSWD", value_name = "FILE")]
    registry_htpasswd: Option<PathBuf>,
    /// Certificate chain of the image registry, in PEM, for what does not listen on the loopback; read again when it changes
    #[arg(long, env = "NEAP_REGISTRY_TLS_CERT", value_name = "FILE", requires = "registry_tls_key")]
    registry_tls_cert: Option<PathBuf>,
    /// Key of --registry-tls-cert, in PEM
    #[arg(long, env = "NEAP_REGISTRY_TLS_KEY", value_name = "FILE", requires = "registry_tls_cert")]
    registry_tls_key: Option<PathBuf>,
    /// A bucket of S3, or of what speaks like it, in which the image registry is kept as well: a push is there before it is acknowledged, and an
    /// empty host finds everything there. Who asks is said by AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and AWS_REGION, or the machine's role
    #[arg(long, env = "NEAP_REGISTRY_BUCKET", value_name = "s3://BUCKET[/PREFIX]")]
    registry_bucket: Option<String>,
    /// Where the bucket is reached, where that is not Amazon: https://s3.example.com
    #[arg(long, env = "NEAP_REGISTRY_ENDPOINT", value_name = "URL")]
    registry_endpoint: Option<String>,
    /// What blobs that are in the bucket may take on this host's disk: the longest unused go first, and come again when they are asked for
    /// [default: all stay]
    #[arg(long, env = "NEAP_REGISTRY_LOCAL", value_name = "SIZE")]
    registry_local: Option<Bytes>,
    /// How long the image registry keeps what no manifest is made of, since it came or was last asked for
    #[arg(long, env = "NEAP_REGISTRY_GRACE", value_name = "DURATION", default_value = "24h")]
    registry_grace: Duration,
}

impl RegistryArgs {
    fn bucket(&self, file: &Config) -> Result<Option<BucketSettings>> {
        let endpoint = self.registry_endpoint.as_ref().or(file.registry_endpoint.as_ref());
        let local = match (&self.registry_local, &file.registry_local) {
            (Some(local), _) => Some(local.0),
            (None, Some(text)) => Some(text.parse::<Bytes>()?.0),
            (None, None) => None,
        };
        let Some(bucket) = self.registry_bucket.as_ref().or(file.registry_bucket.as_ref()) else {
            return match endpoint.is_some() || local.is_some() {
                true => {
                    let why = "--registry-endpoint and --registry-local are for a bucket";
                    Err(Error::invalid("image registry", why).help("say --registry-bucket s3://BUCKET"))
                }
                false => Ok(None),
            };
        };
        let bucket = BucketOptions::read(bucket, endpoint.map(String::as_str))?;
        Ok(Some(BucketSettings { bucket, local }))
    }

    /// With what the configuration says besides.
    pub fn read(&self, file: &Config) -> Result<RegistryOptions> {
        let listen = self.registry_listen.as_ref().or(file.registry_listen.as_ref());
        let read = |text: &String| discovery::addresses("--registry-listen", Some(text), images::PORT);
        let access = self.registry_access.as_ref().or(file.registry_access.as_ref());
        let listed = file.roles.iter().map(|name| {
            let unknown = |_| Error::invalid("configuration", format!("roles: {name:.40?} is none of registry"));
            Role::from_str(name, false).map_err(unknown)
        });
        let listed = listed.collect::<Result<Vec<Role>>>()?;
        let roles = if self.roles.is_empty() { &listed } else { &self.roles };
        let named = file.registry_name.as_ref().map(|text| text.parse());
        Ok(RegistryOptions {
            listen: listen.map(read).transpose()?,
            keeps: roles.contains(&Role::Registry),
            peer: self.registry_peer,
            access: access.map(|word| word.parse()).transpose()?,
            tls: self.registry_tls_cert.clone().zip(self.registry_tls_key.clone()),
            name: self.registry_name.clone().map_or_else(|| named.transpose(), |name| Ok(Some(name)))?,
            users: self.registry_htpasswd.clone(),
            rate: self.registry_rate,
            bucket: self.bucket(file)?,
            limits: Limits { grace: self.registry_grace.std(), ..Limits::default() },
        })
    }
}
