//! Serves the catalogue on this host: Consul's HTTP API and DNS.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::audit::AuditFile;
use super::remembered;
use crate::agent::work::Found;
use crate::api::StoredTokens;
use crate::api::consul::{self, Consul, Events, Here, Own, Source};
use crate::engines::docker::Address;
use crate::engines::registrator::{Registrator, Wanted};
use crate::model::clock::{Clock, SystemClock};
use crate::model::id::uuid_of;
use crate::model::rules::Access;
use crate::model::{Error, Result};
use crate::network::Sockets;
use crate::network::catalog::Catalog;
use crate::network::dns::{Name, Recursor, Server, Zone};
use crate::runtime::Runtime;
use crate::runtime::catalog::mirror::{self, Mirror};
use crate::runtime::catalog::{Registry, queries};

/// Where and how.
#[derive(Debug, Clone)]
pub struct DiscoveryOptions {
    /// Where Consul's HTTP API listens.
    pub consul: Vec<SocketAddr>,
    /// Where DNS listens.
    pub dns: Vec<SocketAddr>,
    /// Threads for DNS.
    pub dns_threads: usize,
    /// Domains that names are below, the first the one that answers name.
    pub domains: Vec<String>,
    /// The datacenter's name.
    pub datacenter: String,
    /// Who is asked about names of others.
    pub recursors: Vec<SocketAddr>,
    /// How long answers hold, in seconds.
    pub ttl: u32,
    /// Which containers are registered, and how.
    pub registrator: Wanted,
    /// Whether checks may be commands on this host.
    pub runs_commands: bool,
    /// A Consul elsewhere that is told of what is on this host.
    pub mirror: Option<String>,
    /// What is allowed in Consul's API where no rule of a token says; without it tokens are not looked at.
    pub policy: Option<Access>,
}

/// How often it is looked whether a host is known by now.
const UNKNOWN: std::time::Duration = std::time::Duration::from_millis(200);
/// Consul's port for HTTP.
pub const CONSUL: u16 = 8500;
/// Consul's port for DNS.
pub const DNS: u16 = 8600;

/// Addresses with ports, several with commas; `none` for none; without any, the loopback's with `port`.
pub fn addresses(what: &str, text: Option<&str>, port: u16) -> Result<Vec<SocketAddr>> {
    let Some(text) = text else { return Ok(vec![([127, 0, 0, 1], port).into()]) };
    if text == "none" {
        return Ok(Vec::new());
    }
    let one = |text: &str| {
        let text = text.trim();
        let address = text.parse().or_else(|error| match text.parse() {
            Ok(ip) => Ok(SocketAddr::new(ip, port)),
            Err(_) => Err(error),
        });
        let wrong = |_| Error::invalid(format!("{what} {text:.60?}"), "is no address with a port");
        address.map_err(wrong).map_err(|error| error.help("write 127.0.0.1:8500, several with commas, or none"))
    };
    text.split(',').map(one).collect()
}

/// A datacenter and domains, if they can be names.
pub fn check(options: &DiscoveryOptions) -> Result<()> {
    let good = |label: &str| {
        !label.is_empty()
            && label.len() <= 63
            && label.bytes().all(|c| c.is_ascii_alphanumeric() || c == b'-' || c == b'_')
    };
    if !good(&options.datacenter) {
        return Err(Error::invalid(
            format!("datacenter {:.60?}", options.datacenter),
            "is not letters, digits, - and _",
        ));
    }
    match options.domains.iter().find(|domain| !domain.trim_end_matches('.').split('.').all(good)) {
        Some(domain) => {
            Err(Error::invalid(format!("domain {domain:.60?}"), "is not labels of letters, digits, - and _"))
        }
        None => Ok(()),
    }
}

/// What registers and keeps keys here, where anybody is served at all.
pub async fn own(options: &DiscoveryOptions, runtime: &Arc<Runtime>, audit: &Arc<AuditFile>) -> Result<Arc<Own>> {
    if !options.consul.is_empty() || !options.dns.is_empty() {
        hold_indexes(runtime).await?;
    }
    Ok(own_of(options, runtime, audit))
}

pub(super) async fn hold_indexes(runtime: &Arc<Runtime>) -> Result<()> {
    runtime.registry().hold_index().await?;
    runtime.kv().hold_index().await
}

pub(super) fn own_of(options: &DiscoveryOptions, runtime: &Arc<Runtime>, audit: &Arc<AuditFile>) -> Arc<Own> {
    let (registry, kv) = (runtime.registry().clone(), runtime.kv().clone());
    registry.runs_commands.store(options.runs_commands, Ordering::Relaxed);
    tokio::spawn(queries::follow_sessions(registry.clone(), kv.clone()));
    let tokens = Arc::new(StoredTokens::new(runtime.store().clone()));
    Arc::new(Own { registry, kv, events: Events::default(), tokens, audit: audit.clone() })
}

/// Listens; a port that cannot be had stops that port alone.
pub async fn serve(options: &DiscoveryOptions, catalog: &Arc<Catalog>, here: Here, source: Arc<dyn Source>) {
    let clock: Arc<dyn Clock> = Arc::new(SystemClock::start());
    let consul = Consul {
        catalog: catalog.clone(),
        here: here.clone(),
        datacenter: options.datacenter.clone(),
        clock: clock.clone(),
        source,
        runs_commands: options.runs_commands,
        policy: options.policy,
    };
    let router = consul::router(Arc::new(consul));
    for address in &options.consul {
        match consul::listen(*address, router.clone()).await {
            Ok(address) => tracing::info!(%address, "Consul's API"),
            Err(error) => tell(&error, address.port(), "--consul-listen"),
        }
    }
    if let Some(url) = &options.mirror {
        let token = std::env::var("CONSUL_HTTP_TOKEN").ok().filter(|token| !token.is_empty());
        let mirror = Mirror { url: url.clone(), token, network: Arc::new(Sockets) };
        let (known, here) = (catalog.clone(), here.clone());
        let host = move || match &here {
            Here::Name(name) => Some(name.clone()),
            Here::Id(id) => known.read(|state| state.node_by_id(id).map(|entry| entry.node.name.clone())),
        };
        tokio::spawn(mirror::follow(mirror, catalog.clone(), host));
    }
    let node = match here {
        Here::Name(name) => name,
        Here::Id(_) => nix::unistd::gethostname().ok().and_then(|name| name.into_string().ok()).unwrap_or_default(),
    };
    let domains = options.domains.iter().filter_map(|domain| Name::parse(domain)).collect();
    let zone =
        Zone { domains, datacenter: options.datacenter.clone(), node, service_ttl: options.ttl, node_ttl: options.ttl };
    let recursor = match options.recursors.is_empty() {
        true => None,
        false => Some(Arc::new(Recursor::new(options.recursors.clone(), clock.clone()))),
    };
    let server = Server { catalog: catalog.clone(), zone: Arc::new(zone), recursor, seed: clock.random() };
    for address in &options.dns {
        match server.clone().listen(*address, options.dns_threads) {
            Ok(address) => tracing::info!(%address, "DNS"),
            Err(error) => tell(&error, address.port(), "--dns-listen"),
        }
    }
}

/// Registers the containers of these Docker Engines, whoever has started them.
pub fn register_containers(options: &DiscoveryOptions, runtime: &Arc<Runtime>, hosts: Vec<Address>, cluster: &str) {
    let registry = runtime.registry().clone();
    let is_one = hosts.len() == 1;
    if let (true, Some(own)) = (is_one, hosts.first()) {
        let _ = registry.docker.set(own.clone());
    }
    let named: Vec<String> = hosts.iter().map(|address| uuid_of(&address.name)).collect();
    // What is found on hosts that nobody looks at any more goes.
    let off = options.registrator.at.is_none();
    let is_looked_at = |registry: &Registry, name: &str| {
        let id = registry.catalog.read(|state| state.node(name).map(|entry| entry.node.id.clone()));
        !off && (is_one && name == registry.host || id.is_some_and(|id| named.contains(&id)))
    };
    registry.drop_containers(|name| is_looked_at(&registry, name));
    for address in hosts {
        let Some(rules) = options.registrator.on(&address.name, address.ip(), cluster) else { return };
        let (registry, id) = (registry.clone(), uuid_of(&address.name));
        let mut found = Found::new(Registrator::spawn(address, rules));
        tokio::spawn(async move {
            loop {
                let changed = found.next().await;
                loop {
                    // Docker tells its host's name once it answers.
                    let name = match is_one {
                        true => Some(registry.host.clone()),
                        false => registry.catalog.read(|state| Some(state.node_by_id(&id)?.node.name.clone())),
                    };
                    if name.is_some_and(|name| registry.take_containers(&name, &changed)) {
                        break;
                    }
                    tokio::time::sleep(UNKNOWN).await;
                }
            }
        });
    }
}

/// Whether this process leads, and could prove it a moment ago.
pub type Leads = Arc<dyn Fn() -> bool + Send + Sync>;

/// The catalogue of a host that follows, with what it had a moment ago: its changes are counted from where those before a restart cannot have come.
pub fn follower(clock: &dyn Clock, data: &Path) -> Arc<Catalog> {
    let catalog = Arc::new(Catalog::new(clock.wall().0));
    if let Some(portion) = remembered::read(data) {
        catalog.take(portion);
    }
    remembered::keep(data, &catalog);
    catalog
}

/// Says that an address is not served, and who has its port.
pub fn tell(error: &Error, port: u16, flag: &str) {
    match owner(port) {
        Some(owner) => {
            tracing::warn!(%error, owner, "it is not served; end what has the port, or say where else ({flag})")
        }
        None => tracing::warn!(%error, "it is not served; say where else ({flag})"),
    }
}

// Who listens on a port of this host, as far as this user may see.
fn owner(port: u16) -> Option<String> {
    let inode = ["/proc/net/tcp", "/proc/net/tcp6"].iter().find_map(|table| {
        let text = std::fs::read_to_string(table).ok()?;
        text.lines().skip(1).find_map(|line| {
            let words: Vec<&str> = line.split_whitespace().collect();
            let is_it = words.get(3) == Some(&"0A") && words.get(1)?.ends_with(&format!(":{port:04X}"));
            is_it.then(|| words.get(9).map(|inode| (*inode).to_owned())).flatten()
        })
    })?;
    let wanted = format!("socket:[{inode}]");
    let holds = |folder: &Path| {
        let open = std::fs::read_dir(folder.join("fd")).into_iter().flatten().flatten();
        open.into_iter().any(|file| std::fs::read_link(file.path()).is_ok_and(|to| to.as_os_str() == wanted.as_str()))
    };
    let processes = std::fs::read_dir("/proc").ok()?.flatten().map(|entry| entry.path());
    let numbered =
        processes.filter(|path| path.file_name().is_some_and(|name| name.to_string_lossy().parse::<u32>().is_ok()));
    let found = numbered.into_iter().find(|path| holds(path))?;
    let name = std::fs::read_to_string(found.join("comm")).unwrap_or_default();
    Some(format!("{} (process {})", name.trim(), found.file_name()?.to_string_lossy()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_as_people_write_them() {
        let read = |text: Option<&str>| {
            addresses("--consul-listen", text, CONSUL)
                .map(|all| all.iter().map(ToString::to_string).collect::<Vec<_>>())
        };
        assert_eq!(read(None).unwrap(), ["127.0.0.1:8500"]);
        assert_eq!(read(Some("none")).unwrap(), Vec::<String>::new());
        assert_eq!(read(Some("10.0.0.1, [::1]:85")).unwrap(), ["10.0.0.1:8500", "[::1]:85"]);
        assert!(read(Some("here")).unwrap_err().to_string().contains("is no address"));
    }

    #[test]
    fn whoever_has_a_port_is_named() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let owner = owner(listener.local_addr().unwrap().port()).unwrap();
        assert!(owner.contains(&format!("(process {})", std::process::id())), "{owner}");
    }
}
