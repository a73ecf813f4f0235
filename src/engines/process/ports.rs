//! Ports for replicas: handed out from a range below the kernel's ephemeral ports, tried by binding, remembered until
//! the task has ended.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, TcpListener, UdpSocket};
use std::ops::RangeInclusive;

use crate::model::port::{PortSpec, Protocol};
use crate::model::{Error, Kind, Result};

/// The range that is used where nothing else is configured.
pub const DEFAULT_RANGE: RangeInclusive<u16> = 20_000..=29_999;

/// Ports in use, and where to look next.
pub struct PortPool {
    range: RangeInclusive<u16>,
    taken: BTreeSet<u16>,
    next: u16,
}

impl PortPool {
    /// An empty pool over `range`.
    pub fn new(range: RangeInclusive<u16>) -> Self {
        // Daemons on one host begin at different places, so that they seldom try each other's ports.
        let width = range.end() - range.start() + 1;
        let offset = u16::try_from(std::process::id() * 37 % u32::from(width)).unwrap_or_default();
        PortPool { next: range.start() + offset, taken: BTreeSet::new(), range }
    }

    /// Remembers ports that are in use already.
    pub fn take(&mut self, ports: impl IntoIterator<Item = u16>) {
        self.taken.extend(ports);
    }

    /// Forgets ports whose task has ended.
    pub fn give_back(&mut self, ports: impl IntoIterator<Item = u16>) {
        for port in ports {
            self.taken.remove(&port);
        }
    }

    /// One free port for each; the host's own where it is published there.
    pub fn choose(&mut self, ports: &BTreeMap<String, PortSpec>) -> Result<BTreeMap<String, u16>> {
        let mut chosen = BTreeMap::new();
        for (name, spec) in ports {
            let found = match spec.host_port() {
                Some((port, protocol)) => self.own(port, protocol, spec.address),
                None => self.free().ok_or_else(|| {
                    let range = format!("no free port between {} and {}", self.range.start(), self.range.end());
                    Error::new(Kind::Exhausted, "", range).help("widen the range with --task-ports").retry(true)
                }),
            };
            match found {
                Ok(port) => chosen.insert(name.clone(), port),
                Err(error) => {
                    self.give_back(chosen.into_values());
                    return Err(error);
                }
            };
        }
        Ok(chosen)
    }

    fn own(&mut self, port: u16, protocol: Protocol, address: Option<IpAddr>) -> Result<u16> {
        let address = address.unwrap_or(Ipv4Addr::UNSPECIFIED.into());
        let bound = match protocol {
            Protocol::Tcp => TcpListener::bind((address, port)).map(drop),
            Protocol::Udp => UdpSocket::bind((address, port)).map(drop),
        };
        bound.map_err(|error| {
            Error::new(Kind::Exhausted, "", format!("port {port}/{} of this host cannot be had", protocol.as_str()))
                .cause(error)
                .retry(true)
        })?;
        self.taken.insert(port);
        Ok(port)
    }

    fn free(&mut self) -> Option<u16> {
        for _ in self.range.clone() {
            let port = self.next;
            self.next = if port >= *self.range.end() { *self.range.start() } else { port + 1 };
            if !self.taken.contains(&port) && TcpListener::bind((Ipv4Addr::LOCALHOST, port)).is_ok() {
                self.taken.insert(port);
                return Some(port);
            }
        }
        None
    }
}
