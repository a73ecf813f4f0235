//! The configuration file (TOML) and the contexts in it. Precedence: flag, environment, file, default.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::client::wire::Endpoint;
use crate::model::{Error, Kind, Result, strict};

/// What the file may say.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Config {
    /// The cluster's name.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cluster: Option<String>,
    /// The data folder.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub data: Option<PathBuf>,
    /// The control socket.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub socket: Option<PathBuf>,
    /// Where the control API listens with TLS.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub listen: Option<SocketAddr>,
    /// Certificate chain for it, in PEM.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tls_cert: Option<PathBuf>,
    /// Its key, in PEM.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tls_key: Option<PathBuf>,
    /// Ports for replicas, `FIRST-LAST`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub task_ports: Option<String>,
    /// Addresses for services that are balanced inside the cluster, `198.18.0.0/16`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub internal_range: Option<String>,
    /// What runs replicas: `auto`, `process`, `docker`, `swarm`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub engine: Option<String>,
    /// Docker Engines, as `URL` or `NAME=URL`.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub docker_hosts: Vec<String>,
    /// Certificates for those reached by TCP.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub docker_certs: Option<PathBuf>,
    /// A folder of hosted scripts that the daemon follows.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub scripts: Option<PathBuf>,
    /// Where the image registry listens: addresses with commas, or `none`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub registry_listen: Option<String>,
    /// The name under which others reach the image registry: registry.corp:5000.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub registry_name: Option<String>,
    /// A bucket in which the image registry is kept as well: s3://BUCKET/PREFIX.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub registry_bucket: Option<String>,
    /// Where that is reached, where it is not Amazon.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub registry_endpoint: Option<String>,
    /// What its blobs may take on this host's disk: 50GB.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub registry_local: Option<String>,
    /// What this host of a Swarm keeps for the cluster: registry.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub roles: Vec<String>,
    /// What the image registry asks of clients: open, pull, token.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub registry_access: Option<String>,
    /// Where and how the catalogue is served.
    #[serde(skip_serializing_if = "Discovery::is_default")]
    pub discovery: Discovery,
    /// The context to use where none is named.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub context: Option<String>,
    /// Daemons elsewhere, by name.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub contexts: BTreeMap<String, Context>,
}

/// Where and how the catalogue is served; the flags of `neap up` have the same names.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Discovery {
    /// Where Consul's HTTP API listens: addresses with commas, or `none`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub consul_listen: Option<String>,
    /// A Consul elsewhere that is told of what is on this host: its address.
    pub consul: Option<String>,
    /// What is allowed in Consul's API where no rule of a token says: allow, read or deny; without it tokens are not looked at.
    pub consul_policy: Option<String>,
    /// Where DNS listens: addresses with commas, or `none`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub dns_listen: Option<String>,
    /// Threads for DNS.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub dns_threads: Option<u8>,
    /// Domains of names in DNS.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub dns_domains: Vec<String>,
    /// How long answers of DNS hold, in seconds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub dns_ttl: Option<u32>,
    /// DNS servers that are asked about all other names.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub recursors: Vec<String>,
    /// The datacenter's name, as Consul's clients see it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub datacenter: Option<String>,
    /// Where containers are reached that the registrator finds: `host`, `internal`, `internal:NETWORK`, or `off`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub registrator: Option<String>,
    /// Whether it registers only containers that say a name.
    pub registrator_explicit: bool,
    /// Whether checks may be commands on this host.
    pub enable_script_checks: bool,
    /// Tags that all containers get.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub registrator_tags: Vec<String>,
}

impl Discovery {
    fn is_default(&self) -> bool {
        *self == Discovery::default()
    }
}

/// A daemon elsewhere.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Context {
    /// `unix:///path` or `tcp://host:port`.
    pub host: String,
    /// The token's secret, for tcp.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub token: Option<String>,
    /// SHA-256 of the daemon's certificate, for tcp.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fingerprint: Option<String>,
}

/// Where the file is: `NEAP_CONFIG`, else `/etc/neap/config.toml` for root, else in the user's configuration folder.
pub fn default_path() -> PathBuf {
    if let Some(path) = std::env::var_os("NEAP_CONFIG") {
        return path.into();
    }
    if nix::unistd::geteuid().is_root() {
        return "/etc/neap/config.toml".into();
    }
    user_folder("XDG_CONFIG_HOME", ".config").join("neap/config.toml")
}

fn user_folder(variable: &str, fallback: &str) -> PathBuf {
    match std::env::var_os(variable) {
        Some(folder) if Path::new(&folder).is_absolute() => folder.into(),
        _ => PathBuf::from(std::env::var_os("HOME").unwrap_or_else(|| ".".into())).join(fallback),
    }
}

/// Where what a user's own programs remember is kept.
pub fn state_folder() -> PathBuf {
    user_folder("XDG_STATE_HOME", ".local/state").join("neap")
}

/// The data folder where nothing is said.
pub fn default_data() -> PathBuf {
    if nix::unistd::geteuid().is_root() {
        "/var/lib/neap".into()
    } else {
        user_folder("XDG_DATA_HOME", ".local/share").join("neap")
    }
}

/// The control socket where nothing is said.
pub fn default_socket() -> PathBuf {
    if nix::unistd::geteuid().is_root() {
        return "/run/neap.sock".into();
    }
    match std::env::var_os("XDG_RUNTIME_DIR") {
        Some(folder) => PathBuf::from(folder).join("neap.sock"),
        None => default_data().join("neap.sock"),
    }
}

impl Config {
    /// Reads `path`; a file that is not there is an empty one.
    pub fn load(path: &Path) -> Result<Self> {
        let subject = format!("configuration {}", path.display());
        let text = match std::fs::read_to_string(path) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Config::default()),
            other => other.map_err(|error| Error::io(subject.clone(), "read it", &error))?,
        };
        let value: serde_json::Value = toml::from_str(&text)
            .map_err(|error| Error::invalid(subject.clone(), "is not TOML").cause(error.to_string().trim_end()))?;
        strict::read(&subject, &value)
    }

    /// Writes it back, readable by its owner only: contexts hold tokens.
    pub fn save(&self, path: &Path) -> Result<()> {
        let subject = format!("configuration {}", path.display());
        let failed = |error: std::io::Error| Error::io(subject.clone(), "write it", &error);
        let text = toml::to_string_pretty(self).map_err(|error| Error::internal(subject.clone(), error.to_string()))?;
        if let Some(folder) = path.parent() {
            std::fs::create_dir_all(folder).map_err(failed)?;
        }
        crate::store::file::replace(path, text.as_bytes(), 0o600).map_err(failed)
    }

    /// The daemon that `host` means: an address, a context's name, or by default the local one.
    pub fn endpoint(&self, host: Option<&str>) -> Result<Endpoint> {
        let Some(host) = host.filter(|host| !host.is_empty()).map(str::to_owned).or_else(|| self.context.clone())
        else {
            return Ok(Endpoint::Unix(self.socket.clone().unwrap_or_else(default_socket)));
        };
        if let Some(context) = self.contexts.get(&host) {
            return address(&context.host, context.token.clone(), context.fingerprint.clone());
        }
        if !host.contains("://") && !host.starts_with('/') {
            let hint = crate::model::suggest::hint(&host, self.contexts.keys().map(String::as_str));
            return Err(Error::new(Kind::NotFound, format!("context \"{host:.60}\""), format!("is not known{hint}"))
                .help("`neap context add` makes one; an address is unix:///path or tcp://host:port"));
        }
        let variable = |name: &str| std::env::var(name).ok().filter(|value| !value.is_empty());
        address(&host, variable("NEAP_TOKEN"), variable("NEAP_FINGERPRINT"))
    }
}

fn address(host: &str, token: Option<String>, fingerprint: Option<String>) -> Result<Endpoint> {
    let subject = format!("host {host:.80?}");
    if let Some(path) = host.strip_prefix("unix://").or_else(|| host.starts_with('/').then_some(host)) {
        return Ok(Endpoint::Unix(path.into()));
    }
    let Some(address) = host.strip_prefix("tcp://") else {
        return Err(Error::invalid(subject, "is neither unix:///path nor tcp://host:port"));
    };
    if address.rsplit_once(':').is_none_or(|(name, port)| name.is_empty() || port.parse::<u16>().is_err()) {
        return Err(Error::invalid(subject, "names no port").help("write tcp://host:port"));
    }
    if let Some(print) =
        fingerprint.as_ref().filter(|print| print.len() != 64 || !print.chars().all(|c| c.is_ascii_hexdigit()))
    {
        return Err(Error::invalid(format!("fingerprint {print:.70?}"), "is not 64 hexadecimal digits")
            .help("`neap up --listen` prints it"));
    }
    let missing = |what: &str, variable: &str| {
        Error::new(Kind::Unauthenticated, subject.clone(), format!("over TCP needs {what}"))
            .help(format!("set {variable}, or use a context: neap context add NAME --help"))
    };
    Ok(Endpoint::Tls {
        address: address.to_owned(),
        token: token.ok_or_else(|| missing("a token", "NEAP_TOKEN"))?,
        fingerprint: fingerprint
            .ok_or_else(|| missing("the certificate's fingerprint", "NEAP_FINGERPRINT"))?
            .to_lowercase(),
    })
}
