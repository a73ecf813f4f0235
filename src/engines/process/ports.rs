//! Ports for replicas: handed out from a range below the kernel's ephemeral ports, tried by binding, remembered until
//! the task has ended.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, TcpListener, UdpSocket};
use std::ops::RangeInclusive;

use crate::model::id::TaskId;
use crate::model::port::{PortSpec, Protocol};
use crate::model::{Error, Kind, Result};

/// The range that is used where nothing else is configured.
pub const DEFAULT_RANGE: RangeInclusive<u16> = 20_000..=29_999;

/// Ports in use, and where to look next.
pub struct PortPool {
    range: RangeInclusive<u16>,
    // Who has which.
    holders: BTreeMap<(u16, Protocol), TaskId>,
    next: u16,
}

impl PortPool {
    /// An empty pool over `range`.
    pub fn new(range: RangeInclusive<u16>) -> Self {
        // Daemons on one host begin at different places, so that they seldom try each other's ports.
        let width = range.end() - range.start() + 1;
        // Neighbours in the process table are far apart (Fibonacci hashing).
        let spread = std::process::id().wrapping_mul(2_654_435_769) >> 16;
        let offset = u16::try_from(spread % u32::from(width)).unwrap_or_default();
        PortPool { next: range.start() + offset, holders: BTreeMap::new(), range }
    }

    /// Remembers ports that are in use, and whose they are.
    pub fn hold(&mut self, task: &TaskId, ports: impl IntoIterator<Item = (u16, Protocol)>) {
        self.holders.extend(ports.into_iter().map(|port| (port, *task)));
    }

    /// Forgets a task's ports once it has ended; what another has got since stays that one's.
    pub fn release(&mut self, task: &TaskId) {
        self.holders.retain(|_, holder| holder != task);
    }

    /// One free port for each, the task's from now on; the host's own where it is published there.
    pub fn choose(&mut self, task: &TaskId, ports: &BTreeMap<String, PortSpec>) -> Result<BTreeMap<String, u16>> {
        let mut chosen = BTreeMap::new();
        for (name, spec) in ports {
            let found = match spec.host_port() {
                Some((port, protocol)) => self.own(port, protocol, spec.address),
                None => self.free(spec.protocol).ok_or_else(|| {
                    let range = format!("no free port between {} and {}", self.range.start(), self.range.end());
                    Error::new(Kind::Exhausted, "", range).help("widen the range with --task-ports").retry(true)
                }),
            };
            match found {
                Ok(port) => {
                    self.hold(task, [(port, spec.protocol)]);
                    chosen.insert(name.clone(), port);
                }
                Err(error) => {
                    self.release(task);
                    return Err(error);
                }
            }
        }
        Ok(chosen)
    }

    fn own(&self, port: u16, protocol: Protocol, address: Option<IpAddr>) -> Result<u16> {
        let taken = || {
            let message = format!("port {port}/{} of this host cannot be had", protocol.as_str());
            Error::new(Kind::Exhausted, "", message).retry(true)
        };
        // Handed out from the range, and perhaps not bound yet.
        if self.holders.contains_key(&(port, protocol)) {
            return Err(taken().cause("another replica has it"));
        }
        let address = address.unwrap_or(Ipv4Addr::UNSPECIFIED.into());
        let bound = match protocol {
            Protocol::Tcp => TcpListener::bind((address, port)).map(drop),
            Protocol::Udp => UdpSocket::bind((address, port)).map(drop),
        };
        bound.map(|()| port).map_err(|error| taken().cause(error))
    }

    fn free(&mut self, protocol: Protocol) -> Option<u16> {
        for _ in self.range.clone() {
            let port = self.next;
            self.next = if port >= *self.range.end() { *self.range.start() } else { port + 1 };
            let is_free = match protocol {
                Protocol::Tcp => TcpListener::bind((Ipv4Addr::LOCALHOST, port)).is_ok(),
                Protocol::Udp => UdpSocket::bind((Ipv4Addr::LOCALHOST, port)).is_ok(),
            };
            if !self.holders.contains_key(&(port, protocol)) && is_free {
                return Some(port);
            }
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_another_has_by_now_is_not_given_back() {
        let (first, second) = (TaskId::numbered(1), TaskId::numbered(2));
        let mut pool = PortPool::new(DEFAULT_RANGE);
        pool.hold(&first, [(20_001, Protocol::Tcp), (20_002, Protocol::Tcp)]);
        pool.release(&first);
        pool.hold(&second, [(20_001, Protocol::Tcp)]);
        // Its record goes as well, later.
        pool.release(&first);
        assert_eq!(pool.holders, BTreeMap::from([((20_001, Protocol::Tcp), second)]));
        pool.release(&second);
        assert!(pool.holders.is_empty());
    }

    #[test]
    fn one_number_is_two_ports() {
        let read = |text: &str| serde_json::from_value::<PortSpec>(serde_json::json!(text)).unwrap();
        // Any that is free now.
        let number = TcpListener::bind((Ipv4Addr::UNSPECIFIED, 0)).unwrap().local_addr().unwrap().port();
        let host = |protocol: &str| PortSpec {
            mode: crate::model::native::PublishMode::Host,
            ..read(&format!("{number}/{protocol}"))
        };
        let ports = BTreeMap::from([("a".to_owned(), host("tcp")), ("b".to_owned(), host("udp"))]);
        let mut pool = PortPool::new(DEFAULT_RANGE);
        assert_eq!(pool.choose(&TaskId::numbered(1), &ports).unwrap().len(), 2);
        let why = pool.choose(&TaskId::numbered(2), &ports).unwrap_err();
        assert!(why.retry && why.cause.is_some_and(|cause| cause.contains("another replica")));
    }
}
