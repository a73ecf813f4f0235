//! Addresses of services, which this host has as long as a table names them: on its loopback device, so that containers here reach them
//! by their default route. Spoken to the kernel by netlink (rtnetlink(7)).

use std::collections::{BTreeSet, HashSet};
use std::io;
use std::net::{IpAddr, Ipv4Addr};
use std::os::fd::{AsRawFd, OwnedFd};

use nix::sys::socket::{
    AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, bind, recv, sendto, setsockopt, socket,
    sockopt,
};

use super::pick::text_hash;
use crate::network::table::Table;

// rtnetlink(7), netlink(7): messages, flags, attributes.
const NEW: u16 = libc::RTM_NEWADDR;
const DELETE: u16 = libc::RTM_DELADDR;
const GET: u16 = libc::RTM_GETADDR;
const REQUEST: u16 = libc::NLM_F_REQUEST as u16;
const HEAD: usize = 16;
const BODY: usize = 8;

/// Those of one balancer.
pub struct Locals {
    // What tells its addresses from others' on the same device; at most 15 bytes, and it begins with the device's name.
    label: String,
    have: Option<BTreeSet<Ipv4Addr>>,
    // Some are kept for the sake of those who are connected to them.
    is_waiting: bool,
}

impl Locals {
    /// None yet; those of a balancer before this one with the same name are known by it.
    pub fn new(name: &str) -> Self {
        Locals { label: format!("lo:np{:08x}", text_hash(name.as_bytes()) as u32), have: None, is_waiting: false }
    }

    /// Whether some are to go as soon as nobody is connected to them.
    pub fn is_waiting(&self) -> bool {
        self.is_waiting
    }

    /// Looks at the kernel's own list next time: others may have taken some away.
    pub fn forget(&mut self) {
        self.have = None;
    }

    /// Makes those that a table names, and takes away those that it does not any more and that nobody uses. What cannot be made shows
    /// when it is listened on.
    pub fn follow(&mut self, table: &Table, used: impl FnOnce() -> HashSet<IpAddr>) {
        // The whole of 127.0.0.0/8 is there anyway.
        let internal = table.listeners.values().filter(|listener| listener.internal);
        let wanted: BTreeSet<Ipv4Addr> = internal
            .filter_map(|listener| match listener.address {
                Some(IpAddr::V4(address)) if !address.is_loopback() => Some(address),
                _ => None,
            })
            .collect();
        if self.have.as_ref() == Some(&wanted) || (self.have.is_none() && wanted.is_empty() && !self.may_have()) {
            return;
        }
        let Ok(kernel) = Kernel::open() else { return };
        let have = match &self.have {
            Some(have) => have.clone(),
            None => kernel.list(&self.label).unwrap_or_default(),
        };
        let mut now = have.clone();
        for address in wanted.difference(&have) {
            if kernel.change(NEW, *address, &self.label).is_ok() {
                now.insert(*address);
            }
        }
        let gone: Vec<Ipv4Addr> = have.difference(&wanted).copied().collect();
        let used = if gone.is_empty() { HashSet::new() } else { used() };
        self.is_waiting = false;
        for address in gone {
            if used.contains(&IpAddr::V4(address)) {
                self.is_waiting = true;
                continue;
            }
            match kernel.change(DELETE, address, &self.label) {
                Err(error) if error.kind() != io::ErrorKind::AddrNotAvailable => {}
                _ => _ = now.remove(&address),
            }
        }
        self.have = Some(now);
    }

    // Without root there are none, nor can any be made.
    fn may_have(&self) -> bool {
        nix::unistd::geteuid().is_root()
    }
}

struct Kernel {
    socket: OwnedFd,
    device: u32,
}

impl Kernel {
    fn open() -> io::Result<Self> {
        let device = nix::net::if_::if_nametoindex("lo")?;
        let socket = socket(AddressFamily::Netlink, SockType::Raw, SockFlag::SOCK_CLOEXEC, SockProtocol::NetlinkRoute)?;
        bind(socket.as_raw_fd(), &NetlinkAddr::new(0, 0))?;
        // The kernel answers at once, or not at all.
        setsockopt(&socket, sockopt::ReceiveTimeout, &nix::sys::time::TimeVal::new(1, 0))?;
        Ok(Kernel { socket, device })
    }

    fn send(&self, message: u16, flags: u16, prefix: u8, attributes: &[u8]) -> io::Result<()> {
        let length = (HEAD + BODY + attributes.len()) as u32;
        let mut bytes = length.to_ne_bytes().to_vec();
        bytes.extend(message.to_ne_bytes());
        bytes.extend((REQUEST | flags).to_ne_bytes());
        // The number of the message, and who asks: one question at a time.
        bytes.extend([1_u32.to_ne_bytes(), [0; 4]].concat());
        bytes.extend([libc::AF_INET as u8, prefix, 0, libc::RT_SCOPE_HOST]);
        bytes.extend(self.device.to_ne_bytes());
        bytes.extend(attributes);
        sendto(self.socket.as_raw_fd(), &bytes, &NetlinkAddr::new(0, 0), MsgFlags::empty())?;
        Ok(())
    }

    fn change(&self, message: u16, address: Ipv4Addr, label: &str) -> io::Result<()> {
        let octets = address.octets();
        let mut attributes = attribute(libc::IFA_LOCAL, &octets);
        attributes.extend(attribute(libc::IFA_ADDRESS, &octets));
        attributes.extend(attribute(libc::IFA_LABEL, &[label.as_bytes(), b"\0"].concat()));
        let make = (libc::NLM_F_CREATE | libc::NLM_F_REPLACE) as u16;
        let flags = libc::NLM_F_ACK as u16 | if message == NEW { make } else { 0 };
        self.send(message, flags, 32, &attributes)?;
        let mut bytes = [0; 4096];
        let length = recv(self.socket.as_raw_fd(), &mut bytes, MsgFlags::empty())?;
        let failed = messages(&bytes[..length]).find(|(kind, _)| i32::from(*kind) == libc::NLMSG_ERROR);
        match failed.and_then(|(_, body)| Some(i32::from_ne_bytes(body.get(..4)?.try_into().ok()?))) {
            None | Some(0) => Ok(()),
            Some(number) => Err(io::Error::from_raw_os_error(-number)),
        }
    }

    // Addresses with this label.
    fn list(&self, label: &str) -> io::Result<BTreeSet<Ipv4Addr>> {
        self.send(GET, libc::NLM_F_DUMP as u16, 0, &[])?;
        let mut found = BTreeSet::new();
        let mut bytes = vec![0; 64 * 1024];
        loop {
            let length = recv(self.socket.as_raw_fd(), &mut bytes, MsgFlags::empty())?;
            for (kind, body) in messages(&bytes[..length]) {
                match i32::from(kind) {
                    libc::NLMSG_DONE | libc::NLMSG_ERROR => return Ok(found),
                    _ if kind == NEW => found.extend(labelled(body, label)),
                    _ => {}
                }
            }
        }
    }
}

fn attribute(kind: u16, value: &[u8]) -> Vec<u8> {
    let length = (4 + value.len()) as u16;
    let mut bytes = [length.to_ne_bytes(), kind.to_ne_bytes()].concat();
    bytes.extend(value);
    bytes.resize(bytes.len().next_multiple_of(4), 0);
    bytes
}

// The kinds and bodies of what came.
fn messages(mut bytes: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    std::iter::from_fn(move || {
        let length = u32::from_ne_bytes(bytes.get(..4)?.try_into().ok()?) as usize;
        let kind = u16::from_ne_bytes(bytes.get(4..6)?.try_into().ok()?);
        let body = bytes.get(HEAD..length)?;
        bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some((kind, body))
    })
}

// The address that a message tells of, if it has this label.
fn labelled(body: &[u8], label: &str) -> Option<Ipv4Addr> {
    let (mut address, mut is_ours) = (None, false);
    let mut rest = body.get(BODY..)?;
    while let Some(head) = rest.get(..4) {
        let length = usize::from(u16::from_ne_bytes([head[0], head[1]]));
        let Some(value) = rest.get(4..length) else { break };
        match u16::from_ne_bytes([head[2], head[3]]) {
            libc::IFA_LOCAL => address = <[u8; 4]>::try_from(value).ok().map(Ipv4Addr::from),
            libc::IFA_LABEL => is_ours = value.strip_suffix(b"\0") == Some(label.as_bytes()),
            _ => {}
        }
        rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
    }
    address.filter(|_| is_ours)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::network::table::Listener;

    fn table(addresses: &[&str]) -> Table {
        let listeners = addresses.iter().map(|address| {
            let address = Some(address.parse().unwrap());
            (
                (*address.as_ref().map(ToString::to_string).get_or_insert_default()).clone(),
                Listener { address, internal: true, ..Listener::default() },
            )
        });
        Table { listeners: listeners.collect(), ..Table::default() }
    }

    #[test]
    fn this_host_has_what_the_table_names_and_no_more() {
        if !nix::unistd::geteuid().is_root() {
            println!("skipped: addresses are made by root alone");
            return;
        }
        let name = format!("test {}", std::process::id());
        let has = |address: &str| std::net::UdpSocket::bind((address, 0)).is_ok();
        let mut locals = Locals::new(&name);
        locals.follow(&table(&["198.19.250.1", "198.19.250.2", "127.98.0.1"]), HashSet::new);
        assert!(has("198.19.250.1") && has("198.19.250.2"));
        // Another one that is begun after it was killed knows them.
        let mut locals = Locals::new(&name);
        locals.follow(&table(&["198.19.250.2", "198.19.250.3"]), HashSet::new);
        assert!(!has("198.19.250.1") && has("198.19.250.2") && has("198.19.250.3"));
        // Others' stay.
        Locals::new("another").follow(&table(&[]), HashSet::new);
        assert!(has("198.19.250.2"));
        locals.follow(&table(&[]), || HashSet::from(["198.19.250.3".parse().unwrap()]));
        assert!(!has("198.19.250.2") && has("198.19.250.3") && locals.is_waiting());
        // Somebody else took it away meanwhile.
        locals.follow(&table(&[]), HashSet::new);
        assert!(!has("198.19.250.2") && !has("198.19.250.3"));
    }
}
