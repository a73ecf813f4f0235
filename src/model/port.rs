//! Published ports in Docker's grammar.

use std::fmt;
use std::net::{IpAddr, SocketAddr};

use schemars::JsonSchema;
use serde::de::{self, MapAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize};

use super::error::{Error, Result};
use super::native::PublishMode;
use super::route::{HashBy, ProxyVersion, RouteBalance};
use super::units::Duration;

/// Transport of a port.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Protocol {
    /// TCP.
    #[default]
    Tcp,
    /// UDP.
    Udp,
}

impl Protocol {
    /// As in Docker's words.
    pub fn as_str(self) -> &'static str {
        match self {
            Protocol::Tcp => "tcp",
            Protocol::Udp => "udp",
        }
    }

    /// An address as a task's ports tell it: with `/udp` behind it where it is no TCP address.
    pub fn told(self, address: String) -> String {
        match self {
            Protocol::Tcp => address,
            Protocol::Udp => format!("{address}/udp"),
        }
    }
}

impl std::str::FromStr for Protocol {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        match text {
            "tcp" => Ok(Protocol::Tcp),
            "udp" => Ok(Protocol::Udp),
            "sctp" => Err(Error::invalid("protocol \"sctp\"", "is not forwarded; tcp and udp are")),
            other => Err(Error::invalid(format!("protocol {other:.40?}"), "is neither tcp nor udp")),
        }
    }
}

/// How the balancer chooses among backends.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Balance {
    /// In turn, by weight.
    #[default]
    RoundRobin,
    /// The one with the fewest open connections for its weight.
    LeastConnections,
    /// Of two that are drawn, the one with fewer.
    PowerOfTwo,
    /// Always the same one for the same address of a client; one that comes or goes moves its own share alone.
    #[serde(rename = "hash:ip")]
    HashIp,
}

impl From<Balance> for RouteBalance {
    fn from(balance: Balance) -> Self {
        match balance {
            Balance::RoundRobin => RouteBalance::RoundRobin,
            Balance::LeastConnections => RouteBalance::LeastConnections,
            Balance::PowerOfTwo => RouteBalance::PowerOfTwo,
            Balance::HashIp => RouteBalance::Hash(HashBy::Ip),
        }
    }
}

/// A named port of a service: `"80:8080"`, `8080`, or a table.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(remote = "Self", default, deny_unknown_fields)]
#[schemars(rename = "PortSpec")]
pub struct PortSpec {
    /// The port that every host's balancer listens on, or with mode `host` the replica's own host; none for a port that is
    /// only found by name.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub published: Option<u16>,
    /// The port inside the container. The process engine chooses one itself and says it in `$PORT_<NAME>`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub target: Option<u16>,
    /// The address to listen on; all interfaces where it is not given.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub address: Option<IpAddr>,
    /// Transport.
    pub protocol: Protocol,
    /// How the balancer chooses: `round_robin`, `least_connections`, `power_of_two`, or `hash:ip`, always the same one for the same
    /// address of a client (round_robin).
    pub balance: Balance,
    /// Where it is published: `ingress`, on every host through the balancer; or `host`, on the replica's own host by the
    /// container engine, so that a host has one such replica at most.
    #[serde(skip_serializing_if = "is_ingress")]
    pub mode: PublishMode,
    /// Whether every connection begins with a word of the PROXY protocol, as from a proxy in front that says whose it is.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub accept_proxy: bool,
    /// Whether connections to replicas begin with such a word: `v1` or `v2`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub send_proxy: Option<ProxyVersion>,
    /// Most connections at a time on one host; others wait until one is over. Any number where it is not given.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_connections: Option<u32>,
    /// A connection over which nothing went for so long is ended; none where it is not given. For UDP: when a silent client is forgotten
    /// (60s).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub idle_timeout: Option<Duration>,
    /// Where a line for each connection is sent once it is over, as GELF over UDP: `10.0.0.5:12201`.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<String>")]
    pub access_log: Option<SocketAddr>,
}

fn is_ingress(mode: &PublishMode) -> bool {
    *mode == PublishMode::Ingress
}

impl PortSpec {
    /// The port that the program in a container listens on: the target, else the published one.
    pub fn container_port(&self) -> Option<u16> {
        self.target.or(self.published)
    }

    /// The fields that are said of how a balancer carries what comes.
    pub fn carried(&self) -> impl Iterator<Item = &'static str> + use<> {
        let said = [
            ("balance", self.balance != Balance::default()),
            ("accept_proxy", self.accept_proxy),
            ("send_proxy", self.send_proxy.is_some()),
            ("max_connections", self.max_connections.is_some()),
            ("access_log", self.access_log.is_some()),
            ("idle_timeout", self.idle_timeout.is_some()),
        ];
        said.into_iter().filter(|(_, said)| *said).map(|(field, _)| field)
    }

    /// What a Swarm's own service cannot have of it, if there is something. It always took what it was told of `balance`.
    pub fn not_the_swarms(&self) -> Option<String> {
        if self.address.is_some() {
            return Some(": the Swarm publishes on all addresses".into());
        }
        let field = self.carried().find(|field| *field != "balance")?;
        Some(format!(".{field}: is the balancer's, which the Swarm's own services go past"))
    }

    /// What is wrong with it: a field, and why.
    pub fn wrong(&self) -> Option<(&'static str, &'static str)> {
        let mut said = self.carried();
        if self.mode == PublishMode::Host {
            return said
                .find(|field| *field != "balance")
                .map(|field| (field, "is the balancer's, which mode host goes past"));
        }
        let is_udp = self.protocol == Protocol::Udp;
        if let Some(field) = said.find(|field| is_udp && !["balance", "idle_timeout"].contains(field)) {
            return Some((field, "is for tcp alone"));
        }
        if self.max_connections == Some(0) {
            return Some(("max_connections", "lets nobody in"));
        }
        let is_short = self.idle_timeout.is_some_and(|period| period < Duration::from_secs(1));
        is_short.then_some(("idle_timeout", "is shorter than 1s"))
    }

    /// The port that a replica takes on its own host, where it is published there.
    pub fn host_port(&self) -> Option<(u16, Protocol)> {
        let number = self.published.filter(|_| self.mode == PublishMode::Host)?;
        Some((number, self.protocol))
    }
}

impl std::str::FromStr for PortSpec {
    type Err = Error;

    /// `PUBLISHED`, `PUBLISHED:TARGET`, each with `ADDRESS:` before it and `/tcp` behind it if wanted.
    fn from_str(text: &str) -> Result<Self> {
        let shown: String = text.chars().take(60).collect();
        let wrong = |why: &str| {
            Error::invalid(format!("port {shown:?}"), why).help("write \"8080\", \"80:8080\" or \"127.0.0.1:80:8080\"")
        };
        let (rest, protocol) = text.split_once('/').unwrap_or((text, "tcp"));
        let protocol: Protocol = protocol.parse().map_err(|error: Error| wrong(&error.message))?;
        let number = |text: &str| match text.parse::<u16>() {
            Ok(0) | Err(_) => Err(wrong("is not a port between 1 and 65535")),
            Ok(port) => Ok(port),
        };
        let mut spec = PortSpec { protocol, ..PortSpec::default() };
        let address = |text: &str| {
            let bare = text.strip_prefix('[').and_then(|a| a.strip_suffix(']')).unwrap_or(text);
            bare.parse::<IpAddr>().ok()
        };
        // A bare IPv6 address could as well be one and a port more.
        if let Some((before, published)) = rest.rsplit_once(':')
            && (before.starts_with('[') || !before.contains(':'))
            && let Some(address) = address(before)
        {
            (spec.address, spec.published) = (Some(address), Some(number(published)?));
            return Ok(spec);
        }
        let mut parts = rest.rsplitn(3, ':');
        let last = parts.next().unwrap_or_default();
        let Some(middle) = parts.next() else {
            spec.published = Some(number(last)?);
            return Ok(spec);
        };
        spec.target = Some(number(last)?);
        spec.published = Some(number(middle)?);
        if let Some(text) = parts.next() {
            spec.address = Some(address(text).ok_or_else(|| wrong("has an address that is none"))?);
        }
        Ok(spec)
    }
}

impl<'de> Deserialize<'de> for PortSpec {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Either;
        impl<'de> Visitor<'de> for Either {
            type Value = PortSpec;

            fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
                f.write_str("a port such as \"80:8080\", or a table")
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<PortSpec, E> {
                text.parse().map_err(E::custom)
            }

            fn visit_u64<E: de::Error>(self, number: u64) -> Result<PortSpec, E> {
                number.to_string().parse().map_err(E::custom)
            }

            fn visit_i64<E: de::Error>(self, number: i64) -> Result<PortSpec, E> {
                number.to_string().parse().map_err(E::custom)
            }

            fn visit_f64<E: de::Error>(self, number: f64) -> Result<PortSpec, E> {
                number.to_string().parse().map_err(E::custom)
            }

            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<PortSpec, A::Error> {
                // The derived reading of the table, under the type's own name because of `remote`.
                let port = PortSpec::deserialize(de::value::MapAccessDeserializer::new(map))?;
                if port.published == Some(0) || port.target == Some(0) {
                    return Err(de::Error::custom("port 0 is none"));
                }
                Ok(port)
            }
        }
        deserializer.deserialize_any(Either)
    }
}

impl Serialize for PortSpec {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        PortSpec::serialize(self, serializer)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(input: &str, expected: &str) {
        let got = match input.parse::<PortSpec>() {
            Ok(port) => format!("{:?} {:?} {:?}", port.address, port.published, port.target),
            Err(error) => error.message,
        };
        assert_eq!(got, expected, "for {input:?}");
    }

    #[test]
    fn grammar() {
        check("8080", "None Some(8080) None");
        check("80:8080", "None Some(80) Some(8080)");
        check("80:8080/tcp", "None Some(80) Some(8080)");
        check("127.0.0.1:80:8080", "Some(127.0.0.1) Some(80) Some(8080)");
        check("::1:80:8080", "Some(::1) Some(80) Some(8080)");
        check("127.0.0.1:8080", "Some(127.0.0.1) Some(8080) None");
        check("[::1]:8080/udp", "Some(::1) Some(8080) None");
        check("[::1]:80:8080", "Some(::1) Some(80) Some(8080)");
        check("53:53/udp", "None Some(53) Some(53)");
        check("80:8080/sctp", "is not forwarded; tcp and udp are");
        check("80:8080/x", "is neither tcp nor udp");
        check("0", "is not a port between 1 and 65535");
        check("70000", "is not a port between 1 and 65535");
        check("a:b:c", "is not a port between 1 and 65535");
        check("a:1:2", "has an address that is none");
    }

    proptest::proptest! {
        #[test]
        fn any_text_is_a_port_or_an_error(text in "\\PC{0,40}") {
            let _ = text.parse::<PortSpec>();
        }
    }
}
