//! How a service is reached inside the cluster: each replica by itself, or by one address through the balancers.

use std::collections::BTreeSet;
use std::fmt;
use std::net::{IpAddr, Ipv4Addr};
use std::str::FromStr;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::constraint::parse_range;
use super::error::{Error, Kind, Result};
use super::native::Handover;
use super::service::{Service, ServiceSpec};

/// How a service's name is reached inside the cluster.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Internal {
    /// Its name is each replica's, on the networks that they are attached to; Docker calls that `dnsrr`.
    #[default]
    Direct,
    /// It has an address of its own, at which every host's balancer leads to its ports; Docker calls that `vip`.
    Balanced,
}

impl FromStr for Internal {
    type Err = Error;

    /// In Docker's words (`vip`, `dnsrr`), or in ours.
    fn from_str(text: &str) -> Result<Self> {
        match text {
            "vip" | "balanced" => Ok(Internal::Balanced),
            "dnsrr" | "direct" => Ok(Internal::Direct),
            other => Err(Error::invalid(format!("endpoint mode {other:.40?}"), "is neither vip nor dnsrr")),
        }
    }
}

impl Service {
    /// Its own address, as long as something leads from there to it: not while another has its ports, or is to have them.
    pub fn internal_address(&self) -> Option<Ipv4Addr> {
        let leads = self.spec.internal == Internal::Balanced
            && !self.spec.engine_native
            && self.handover.as_ref().is_none_or(Handover::has_ports);
        self.address.filter(|_| leads)
    }
}

impl ServiceSpec {
    /// Whether there is a port that an address of its own could lead to.
    pub fn can_be_balanced(&self) -> bool {
        self.ports.values().any(|port| port.container_port().is_some())
    }
}

/// Addresses that services get for themselves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Range {
    base: u32,
    prefix: u8,
}

/// Ranges are this large at most and at least, by the length of their prefix.
const PREFIXES: std::ops::RangeInclusive<u8> = 8..=28;

impl Range {
    /// What a host has anyway: for services of processes, reached from that host alone.
    pub const LOOPBACK: Range = Range { base: u32::from_be_bytes([127, 98, 0, 0]), prefix: 16 };
    /// For services of containers: what RFC 2544 keeps off the Internet.
    pub const CLUSTER: Range = Range { base: u32::from_be_bytes([198, 18, 0, 0]), prefix: 16 };

    /// The address for a name, none of those that are taken: the same one again as long as that is free.
    pub fn address(&self, name: &str, taken: &BTreeSet<Ipv4Addr>) -> Result<Ipv4Addr> {
        // The first and the last may mean the range itself.
        let count = (1_u32 << (32 - self.prefix)) - 2;
        let hash = name.bytes().fold(0x811c_9dc5_u32, |hash, byte| (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193));
        let all = (0..count).map(|step| Ipv4Addr::from(self.base + 1 + (hash % count + step) % count));
        let mut free = all.filter(|address| !taken.contains(address));
        free.next().ok_or_else(|| {
            Error::new(Kind::Exhausted, format!("service \"{name:.70}\""), format!("no address of {self} is left"))
                .help("give the daemon a larger --internal-range")
        })
    }

    /// Whether an address is one of it.
    pub fn contains(&self, address: Ipv4Addr) -> bool {
        u32::from(address) >> (32 - self.prefix) == self.base >> (32 - self.prefix)
    }
}

impl fmt::Display for Range {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        write!(f, "{}/{}", Ipv4Addr::from(self.base), self.prefix)
    }
}

impl FromStr for Range {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let wrong = |why: &str| {
            Err(Error::invalid(format!("internal range {text:.60?}"), why)
                .help("write a network such as 198.18.0.0/16"))
        };
        let Some((IpAddr::V4(base), prefix)) = parse_range(text) else { return wrong("is no network of IPv4") };
        if !PREFIXES.contains(&prefix) {
            return wrong("has a prefix that is not between 8 and 28");
        }
        if u32::from(base) << prefix != 0 {
            return wrong("has bits behind its prefix");
        }
        Ok(Range { base: u32::from(base), prefix })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_name_has_an_address_and_the_same_one_again() {
        let range: Range = "198.18.7.0/28".parse().unwrap();
        let mut taken = BTreeSet::new();
        let first = range.address("web", &taken).unwrap();
        for number in 0..14 {
            let name = if number == 0 { "web".to_owned() } else { format!("web-{number}") };
            let address = range.address(&name, &taken).unwrap();
            assert!(taken.insert(address) && range.contains(address));
        }
        assert!(taken.contains(&first) && !taken.contains(&"198.18.7.0".parse().unwrap()));
        let full = range.address("other", &taken).unwrap_err();
        assert_eq!(full.message, "no address of 198.18.7.0/28 is left");
        taken.remove(&first);
        assert_eq!(range.address("web", &taken).unwrap(), first);
        assert!(!range.contains("198.18.7.16".parse().unwrap()));
    }

    #[test]
    fn an_address_leads_where_something_takes_what_comes() {
        let read = |value: serde_json::Value| ServiceSpec::read(&value);
        let web = |more: serde_json::Value| {
            let mut value = serde_json::json!({ "name": "web", "image": "x", "internal": "balanced", "ports": { "http": { "target": 80 } } });
            value.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
            read(value)
        };
        let spec = web(serde_json::json!({})).unwrap();
        let service: Service = serde_json::from_value(serde_json::json!({
            "id": crate::model::id::ServiceId::numbered(1), "spec": spec, "revision": 1, "active": 1, "address": "198.18.0.7",
            "created_at": 0, "updated_at": 0,
        }))
        .unwrap();
        assert_eq!(service.internal_address(), Some("198.18.0.7".parse().unwrap()));
        let direct = Service { spec: web(serde_json::json!({ "internal": "direct" })).unwrap(), ..service.clone() };
        assert_eq!(direct.internal_address(), None);
        // What goes back to a revision without ports can be described so.
        let bare = read(serde_json::json!({ "name": "web", "image": "x" })).unwrap();
        let revision = serde_json::json!({ "service": "web", "number": 1, "spec": bare, "hash": "", "created_at": 0 });
        let back = service.back_to(&serde_json::from_value(revision).unwrap());
        assert_eq!((back.internal, back.validate().is_ok()), (Internal::Direct, true));
        let why = |more| web(more).unwrap_err().message;
        assert_eq!(why(serde_json::json!({ "ports": {} })), "internal: leads nowhere: name a port");
        let native = serde_json::json!({ "engine_native": true });
        assert_eq!(why(native), "internal: is not the Swarm's: leave out engine_native");
        let limited = serde_json::json!({
            "engine_native": true, "internal": "direct", "ports": { "http": { "published": 80, "max_connections": 5 } },
        });
        assert!(why(limited).contains("ports.http.max_connections: is the balancer's"));
    }

    #[test]
    fn ranges_are_read_strictly() {
        for wrong in ["", "198.18.0.0", "198.18.0.0/29", "198.18.0.0/7", "198.18.0.1/16", "::1/16", "a/16"] {
            assert!(wrong.parse::<Range>().is_err(), "{wrong}");
        }
        assert_eq!("198.18.0.0/16".parse::<Range>().unwrap(), Range::CLUSTER);
        assert_eq!(Range::LOOPBACK.to_string(), "127.98.0.0/16");
    }
}
