//! Serves the catalogue on this host: Consul's HTTP API and DNS.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;

use super::audit::AuditFile;
use crate::api::consul::{self, Consul, Events};
use crate::model::clock::{Clock, SystemClock};
use crate::model::{Error, Result};
use crate::network::dns::{Name, Recursor, Server, Zone};
use crate::runtime::Runtime;

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
}

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

/// Listens; a port that cannot be had stops that port alone.
pub async fn serve(options: &DiscoveryOptions, runtime: &Arc<Runtime>, audit: &Arc<AuditFile>) -> Result<()> {
    let clock: Arc<dyn Clock> = Arc::new(SystemClock::start());
    let registry = runtime.registry().clone();
    if options.consul.is_empty() && options.dns.is_empty() {
        return Ok(());
    }
    registry.hold_index().await?;
    runtime.kv().hold_index().await?;
    let router = consul::router(Arc::new(Consul {
        registry: registry.clone(),
        kv: runtime.kv().clone(),
        events: Events::default(),
        datacenter: options.datacenter.clone(),
        clock: clock.clone(),
        audit: audit.clone(),
    }));
    for address in &options.consul {
        match consul::listen(*address, router.clone()).await {
            Ok(address) => tracing::info!(%address, "Consul's API"),
            Err(error) => tell(&error, address.port(), "--consul-listen"),
        }
    }
    let domains = options.domains.iter().filter_map(|domain| Name::parse(domain)).collect();
    let zone = Zone {
        domains,
        datacenter: options.datacenter.clone(),
        node: registry.host.clone(),
        service_ttl: options.ttl,
        node_ttl: options.ttl,
    };
    let recursor = match options.recursors.is_empty() {
        true => None,
        false => Some(Arc::new(Recursor::new(options.recursors.clone(), clock.clone()))),
    };
    let server = Server { catalog: registry.catalog.clone(), zone: Arc::new(zone), recursor, seed: clock.random() };
    for address in &options.dns {
        match server.clone().listen(*address, options.dns_threads) {
            Ok(address) => tracing::info!(%address, "DNS"),
            Err(error) => tell(&error, address.port(), "--dns-listen"),
        }
    }
    Ok(())
}

fn tell(error: &Error, port: u16, flag: &str) {
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
