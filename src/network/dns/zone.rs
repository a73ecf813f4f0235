//! Which records a name has: nodes, services by tag, addresses, and names for addresses, in Consul's scheme.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::wire::{ASKED, Code, Data, Labels, Name, kind};
use crate::model::catalog::CheckStatus;
use crate::network::catalog::{Found, NodeEntry, State, Topic, key};

/// How names are answered.
#[derive(Debug, Clone)]
pub struct Zone {
    /// The domains, the first the one that answers name: `consul`, `neap`.
    pub domains: Vec<Name>,
    /// The datacenter's name.
    pub datacenter: String,
    /// The node that answers.
    pub node: String,
    /// How long answers about services hold.
    pub service_ttl: u32,
    /// How long answers about nodes hold.
    pub node_ttl: u32,
}

/// A record ready to be sent, but for where it stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ready {
    /// The record, with a pointer to the question as its owner.
    pub answer: Vec<u8>,
    /// Records behind their owner, which is the name that begins at `OWNER` in the answer.
    pub more: Vec<Vec<u8>>,
}

/// Where an SRV record's target begins: owner, head, priority, weight and port before it.
pub const OWNER: usize = 2 + 10 + 6;

/// All that is known of a name and type.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Known {
    /// What becomes of the question.
    pub code: Code,
    /// The records, in no order.
    pub answers: Vec<Ready>,
    /// Who says that there are none.
    pub authority: Vec<u8>,
    /// As long as this is as it was, so is all of it.
    pub topic: Option<(Topic, u64)>,
}

/// The longest table of records for one name.
const MOST: usize = 1000;

impl Zone {
    /// The records of a name in small letters; none where the name is others' business.
    pub fn find(&self, state: &State, name: &[u8], kind: u16) -> Option<Known> {
        let labels: Vec<&[u8]> = Labels(name).collect();
        if let Some(address) = reversed(&labels) {
            return self.names_of(state, address, kind);
        }
        let domain = self.domains.iter().find(|domain| {
            let own: Vec<&[u8]> = domain.labels().collect();
            labels.ends_with(&own)
        })?;
        let own = &labels[..labels.len() - domain.labels().count()];
        Some(self.inside(state, domain, own, kind))
    }

    fn inside(&self, state: &State, domain: &Name, labels: &[&[u8]], kind: u16) -> Known {
        let is_kind = |label: &[u8]| matches!(label, b"node" | b"service" | b"virtual" | b"addr" | b"query");
        // `web.service.dc1`: the datacenter may be named.
        let here = self.datacenter.as_bytes();
        let labels = match labels {
            [rest @ .., word, last] if is_kind(word) && last.eq_ignore_ascii_case(here) => &labels[..rest.len() + 1],
            all => all,
        };
        match labels {
            [] => self.apex(state, domain, kind),
            [b"ns"] => match state.node(&self.node) {
                Some(entry) => self.of_node(state, domain, entry, kind),
                None => self.nothing(domain, Code::NxDomain, None),
            },
            [b"node" | b"service" | b"virtual" | b"addr" | b"query"] => self.nothing(domain, Code::NoError, None),
            [parts @ .., b"node"] => {
                let name = text(parts);
                let topic = Topic::Node(key(&name));
                match state.node(&name) {
                    Some(entry) => self.of_node(state, domain, entry, kind),
                    None => self.nothing(domain, Code::NxDomain, Some((Topic::Nodes, state.index_of(&topic)))),
                }
            }
            [digits, b"addr"] => match from_hex(digits) {
                Some(address) => self.records(domain, self.node_ttl, kind, [Data::Address(address)], None),
                None => self.nothing(domain, Code::NxDomain, None),
            },
            [service, tag, b"service"] if service.starts_with(b"_") && tag.starts_with(b"_") => {
                let tag = Some(text(&[&tag[1..]])).filter(|tag| tag != "tcp");
                self.service(state, domain, &text(&[&service[1..]]), tag.as_deref(), kind)
            }
            [parts @ .., b"query"] => self.query(state, domain, &text(parts), kind),
            [service, b"virtual"] => self.virtual_of(state, domain, &text(&[service]), kind),
            [service, b"service"] => self.service(state, domain, &text(&[service]), None, kind),
            [tag @ .., service, b"service"] => self.service(state, domain, &text(&[service]), Some(&text(tag)), kind),
            _ => self.nothing(domain, Code::NxDomain, None),
        }
    }

    fn soa(&self, domain: &Name) -> Vec<u8> {
        let below = |label: &str| Name::new(std::iter::once(label.as_bytes()).chain(domain.labels()));
        let mut out = domain.bytes().to_vec();
        if let (Some(server), Some(mail)) = (below("ns"), below("hostmaster")) {
            Data::Soa { server, mail, minimum: 0 }.write(0, &mut out);
        }
        out
    }

    fn nothing(&self, domain: &Name, code: Code, topic: Option<(Topic, u64)>) -> Known {
        Known { code, answers: Vec::new(), authority: self.soa(domain), topic }
    }

    // Those of the kind that is asked for; without one, the name is there all the same.
    fn records(
        &self,
        domain: &Name,
        ttl: u32,
        kind: u16,
        all: impl IntoIterator<Item = Data>,
        topic: Option<(Topic, u64)>,
    ) -> Known {
        let mut answers: Vec<Ready> = Vec::new();
        let mut all: Vec<Data> = all.into_iter().collect();
        // A name that stands for another has nothing else (RFC 1034, 3.6.2).
        if all.iter().any(|data| matches!(data, Data::Address(_))) {
            all.retain(|data| !matches!(data, Data::Cname(_)));
        } else if let Some(alias) = all.iter().find(|data| matches!(data, Data::Cname(_))) {
            all = vec![alias.clone()];
        }
        for data in all {
            let is_alias = matches!(data, Data::Cname(_));
            let mut answer = ASKED.to_vec();
            data.write(ttl, &mut answer);
            let wanted = kind == kind::ANY || is_alias || answer[2..4] == kind.to_be_bytes();
            if wanted && answers.len() < MOST && !answers.iter().any(|known| known.answer == answer) {
                answers.push(Ready { answer, more: Vec::new() });
            }
        }
        match answers.is_empty() {
            true => self.nothing(domain, Code::NoError, topic),
            false => Known { code: Code::NoError, answers, authority: Vec::new(), topic },
        }
    }

    fn apex(&self, state: &State, domain: &Name, kind: u16) -> Known {
        let below = |label: &str| Name::new(std::iter::once(label.as_bytes()).chain(domain.labels()));
        let (Some(server), Some(mail)) = (below("ns"), below("hostmaster")) else {
            return self.nothing(domain, Code::NoError, None);
        };
        let name_server = match state.node(&self.node) {
            Some(entry) => self.node_name(domain, entry).unwrap_or_else(|| server.clone()),
            None => server.clone(),
        };
        let all = [Data::Soa { server, mail, minimum: 0 }, Data::Ns(name_server)];
        self.records(domain, 0, kind, all, Some((Topic::Nodes, state.index_of(&Topic::Nodes))))
    }

    // `<node>.node.<datacenter>.<domain>`.
    fn node_name(&self, domain: &Name, entry: &NodeEntry) -> Option<Name> {
        let labels = entry.node.name.split('.').chain(["node", &self.datacenter]).map(str::as_bytes);
        Name::new(labels.chain(domain.labels()))
    }

    fn of_node(&self, state: &State, domain: &Name, entry: &NodeEntry, kind: u16) -> Known {
        let topic = Topic::Node(key(&entry.node.name));
        let index = state.index_of(&topic);
        let meta = entry.node.meta.iter().map(|(key, value)| {
            // With `rfc1035-` before its key it is a record's text as it stands.
            Data::Txt(if key.starts_with("rfc1035-") { value.clone() } else { format!("{key}={value}") }.into_bytes())
        });
        let all = address(&entry.node.address).into_iter().chain(meta);
        self.records(domain, self.node_ttl, kind, all, Some((topic, index)))
    }

    fn service(&self, state: &State, domain: &Name, service: &str, tag: Option<&str>, kind: u16) -> Known {
        let topic = Topic::Service(key(service));
        let index = state.index_of(&topic);
        let topic = Some((topic, index));
        let has_tag = |found: &Found| {
            tag.is_none_or(|tag| found.entry.instance.tags.iter().any(|own| own.eq_ignore_ascii_case(tag)))
        };
        let serves = |found: &Found| found.status() != CheckStatus::Critical && has_tag(found);
        let found: Vec<Found> = state.instances(service).filter(serves).collect();
        self.instances(domain, &found, kind, topic, self.service_ttl)
    }

    // The address of a service's own, as long as somebody serves behind it.
    fn virtual_of(&self, state: &State, domain: &Name, service: &str, kind: u16) -> Known {
        let topic = Topic::Service(key(service));
        let topic = Some((topic.clone(), state.index_of(&topic)));
        let own = state.instances(service).find_map(|found| {
            let own = found.entry.instance.tagged_addresses.get("virtual")?;
            own.address.parse().ok()
        });
        match own {
            Some(own) => self.records(domain, self.service_ttl, kind, [Data::Address(own)], topic),
            None => self.nothing(domain, Code::NxDomain, topic),
        }
    }

    // What a prepared query finds, by its name or its id.
    fn query(&self, state: &State, domain: &Name, name: &str, kind: u16) -> Known {
        // Of the query, and of the service that it asks for.
        let topic = Some((Topic::All, state.index_of(&Topic::All)));
        match state.queries.find(name) {
            None => self.nothing(domain, Code::NxDomain, topic),
            Some(query) => {
                let ttl = query.ttl.unwrap_or(self.service_ttl);
                self.instances(domain, &state.queried(&query), kind, topic, ttl)
            }
        }
    }

    fn instances(&self, domain: &Name, found: &[Found], kind: u16, topic: Option<(Topic, u64)>, ttl: u32) -> Known {
        if found.is_empty() {
            return self.nothing(domain, Code::NxDomain, topic);
        }
        if kind != kind::SRV && kind != kind::ANY {
            let all = found.iter().filter_map(|found| address(found.address()));
            return self.records(domain, ttl, kind, all, topic);
        }
        let mut answers: Vec<Ready> = Vec::new();
        for found in found {
            let Some(ready) = self.located(domain, found, ttl) else { continue };
            if answers.len() < MOST && !answers.contains(&ready) {
                answers.push(ready);
            }
        }
        Known { code: Code::NoError, answers, authority: Vec::new(), topic }
    }

    // An SRV record and the address of its target.
    fn located(&self, domain: &Name, found: &Found, ttl: u32) -> Option<Ready> {
        let instance = &found.entry.instance;
        let own = instance.address.as_str();
        let place = address(found.address());
        let target = match (&place, own.is_empty() || own == found.node.node.address) {
            (Some(Data::Cname(name)), false) => name.clone(),
            (Some(Data::Address(address)), false) => {
                let labels = [to_hex(*address), "addr".to_owned(), self.datacenter.clone()];
                Name::new(labels.iter().map(String::as_bytes).chain(domain.labels()))?
            }
            _ => self.node_name(domain, found.node)?,
        };
        let weight = match found.status() {
            CheckStatus::Warning => instance.weights.warning,
            _ => instance.weights.passing,
        };
        let mut answer = ASKED.to_vec();
        Data::Srv { weight, port: instance.port, target }.write(ttl, &mut answer);
        let more = match place {
            Some(place @ Data::Address(_)) => {
                let mut record = Vec::new();
                place.write(ttl, &mut record);
                vec![record]
            }
            _ => Vec::new(),
        };
        Some(Ready { answer, more })
    }

    fn names_of(&self, state: &State, address: IpAddr, kind: u16) -> Option<Known> {
        let domain = self.domains.first()?;
        let names = state.at(address).filter_map(|(node, entry)| {
            let name = match entry {
                None => self.node_name(domain, node)?,
                Some(entry) => {
                    let labels = entry.instance.service.split('.').chain(["service", &self.datacenter]);
                    Name::new(labels.map(str::as_bytes).chain(domain.labels()))?
                }
            };
            Some(Data::Ptr(name))
        });
        let names: Vec<Data> = names.collect();
        // An address that nobody here has is others' business.
        if names.is_empty() {
            return None;
        }
        let topic = Some((Topic::All, state.index_of(&Topic::All)));
        Some(self.records(domain, self.node_ttl, kind, names, topic))
    }
}

fn text(labels: &[&[u8]]) -> String {
    labels.iter().map(|label| String::from_utf8_lossy(label)).collect::<Vec<_>>().join(".")
}

// Where something is: an address, or another name.
fn address(text: &str) -> Option<Data> {
    match text.parse::<IpAddr>() {
        Ok(address) => Some(Data::Address(address)),
        Err(_) if text.is_empty() => None,
        Err(_) => Name::parse(text).map(Data::Cname),
    }
}

fn to_hex(address: IpAddr) -> String {
    match address {
        IpAddr::V4(address) => format!("{:08x}", u32::from(address)),
        IpAddr::V6(address) => format!("{:032x}", u128::from(address)),
    }
}

fn from_hex(digits: &[u8]) -> Option<IpAddr> {
    let digits = std::str::from_utf8(digits).ok().filter(|text| text.bytes().all(|c| c.is_ascii_hexdigit()))?;
    match digits.len() {
        8 => u32::from_str_radix(digits, 16).ok().map(|number| IpAddr::V4(Ipv4Addr::from(number))),
        32 => u128::from_str_radix(digits, 16).ok().map(|number| IpAddr::V6(Ipv6Addr::from(number))),
        _ => None,
    }
}

// The address that a name below `in-addr.arpa` or `ip6.arpa` stands for.
fn reversed(labels: &[&[u8]]) -> Option<IpAddr> {
    match labels {
        [d, c, b, a, b"in-addr", b"arpa"] => {
            let text = format!("{}.{}.{}.{}", text(&[a]), text(&[b]), text(&[c]), text(&[d]));
            text.parse::<Ipv4Addr>().ok().map(IpAddr::V4)
        }
        [digits @ .., b"ip6", b"arpa"] if digits.len() == 32 => {
            let mut number = 0_u128;
            for digit in digits.iter().rev() {
                let digit = match digit {
                    [one] => char::from(*one).to_digit(16)?,
                    _ => return None,
                };
                number = number << 4 | u128::from(digit);
            }
            Some(IpAddr::V6(number.into()))
        }
        _ => None,
    }
}
