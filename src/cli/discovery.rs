//! Where the catalogue is served: flags of `neap up` and `neap agent`.

use crate::daemon::config;
use crate::daemon::discovery::{self, DiscoveryOptions};
use crate::engines::registrator::Wanted;
use crate::model::{Error, Result};

/// Arguments.
#[derive(clap::Args)]
pub struct DiscoveryArgs {
    /// Serve Consul's HTTP API there, several with commas, or none [default: 127.0.0.1:8500]
    #[arg(long, env = "NEAP_CONSUL_LISTEN", value_name = "ADDRESS:PORT")]
    consul_listen: Option<String>,
    /// Serve DNS there, several with commas, or none [default: 127.0.0.1:8600]
    #[arg(long, env = "NEAP_DNS_LISTEN", value_name = "ADDRESS:PORT")]
    dns_listen: Option<String>,
    /// Threads for DNS
    #[arg(long, env = "NEAP_DNS_THREADS", value_name = "COUNT", value_parser = clap::value_parser!(u8).range(1..=64))]
    dns_threads: Option<u8>,
    /// Domains of names in DNS, the first the one that answers name [default: consul, neap]
    #[arg(long = "dns-domain", env = "NEAP_DNS_DOMAINS", value_delimiter = ',', value_name = "DOMAIN")]
    dns_domains: Vec<String>,
    /// How long answers of DNS hold, in seconds
    #[arg(long, env = "NEAP_DNS_TTL", value_name = "SECONDS")]
    dns_ttl: Option<u32>,
    /// A DNS server that is asked about all other names; several are asked in turn
    #[arg(long = "recursor", env = "NEAP_RECURSORS", value_delimiter = ',', value_name = "ADDRESS:PORT")]
    recursors: Vec<String>,
    /// Name of the datacenter, as Consul's clients see it [default: dc1]
    #[arg(long, env = "NEAP_DATACENTER", value_name = "NAME")]
    datacenter: Option<String>,
    /// Register the containers of this host, whoever started them: at the ports that they publish (host), at their own
    /// addresses (internal, or internal:NETWORK), or not (off) [default: host]
    #[arg(long, env = "NEAP_REGISTRATOR", value_name = "WHERE")]
    registrator: Option<String>,
    /// Register only containers that say a name (SERVICE_NAME)
    #[arg(long, env = "NEAP_REGISTRATOR_EXPLICIT")]
    registrator_explicit: bool,
    /// Let checks be commands on this host: whoever may register one runs them as this user
    #[arg(long, env = "NEAP_ENABLE_SCRIPT_CHECKS")]
    enable_script_checks: bool,
    /// Register what is on this host in a Consul elsewhere as well, such as http://127.0.0.1:8500; with the token in
    /// CONSUL_HTTP_TOKEN, where it asks for one
    #[arg(long, env = "NEAP_CONSUL", value_name = "URL")]
    consul: Option<String>,
    /// Look at the tokens of Consul's clients, with their rules; what no rule says is then allowed, only to be read, or denied. Say
    /// the same on each host
    #[arg(long, env = "NEAP_CONSUL_POLICY", value_parser = ["allow", "read", "deny"], value_name = "DEFAULT")]
    consul_policy: Option<String>,
    /// A tag for all containers that are registered; may be repeated
    #[arg(long = "registrator-tag", env = "NEAP_REGISTRATOR_TAGS", value_delimiter = ',', value_name = "TAG")]
    registrator_tags: Vec<String>,
}

impl DiscoveryArgs {
    /// With what the configuration says.
    pub fn read(&self, file: config::Discovery) -> Result<DiscoveryOptions> {
        let listed = |given: &[String], file: Vec<String>| if given.is_empty() { file } else { given.to_vec() };
        let consul = self.consul_listen.clone().or(file.consul_listen);
        let dns = self.dns_listen.clone().or(file.dns_listen);
        let domains = listed(&self.dns_domains, file.dns_domains);
        let recursors = listed(&self.recursors, file.recursors).join(",");
        let options = DiscoveryOptions {
            consul: discovery::addresses("--consul-listen", consul.as_deref(), discovery::CONSUL)?,
            dns: discovery::addresses("--dns-listen", dns.as_deref(), discovery::DNS)?,
            dns_threads: usize::from(self.dns_threads.or(file.dns_threads).unwrap_or(1)),
            domains: if domains.is_empty() { vec!["consul".into(), "neap".into()] } else { domains },
            datacenter: self.datacenter.clone().or(file.datacenter).unwrap_or_else(|| "dc1".into()),
            recursors: match recursors.as_str() {
                "" => Vec::new(),
                all => discovery::addresses("--recursor", Some(all), 53)?,
            },
            runs_commands: self.enable_script_checks || file.enable_script_checks,
            mirror: match self.consul.clone().or(file.consul) {
                Some(url) if !url.starts_with("http://") && !url.starts_with("https://") => {
                    return Err(Error::invalid(format!("--consul {url:.80?}"), "is no address of a Consul")
                        .help("write http://HOST:8500"));
                }
                url => url,
            },
            policy: match self.consul_policy.as_deref().or(file.consul_policy.as_deref()) {
                None => None,
                Some(word) => Some(word.parse()?),
            },
            registrator: Wanted {
                at: match self.registrator.as_deref().or(file.registrator.as_deref()).unwrap_or("host") {
                    "off" => None,
                    place => Some(place.parse()?),
                },
                explicit: self.registrator_explicit || file.registrator_explicit,
                tags: listed(&self.registrator_tags, file.registrator_tags),
            },
            ttl: self.dns_ttl.or(file.dns_ttl).unwrap_or_default(),
        };
        discovery::check(&options)?;
        Ok(options)
    }
}
