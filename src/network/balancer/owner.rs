//! Who holds a port: for the error that names them.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, UdpSocket};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};

use mio::net::TcpListener as MioListener;
use nix::sys::socket::{
    AddressFamily, Backlog, SockFlag, SockType, SockaddrStorage, listen as listen_on, setsockopt, socket, sockopt,
};

use crate::network::table::Table;

/// How many clients wait to be accepted at most; the kernel has a bound of its own (net.core.somaxconn).
const QUEUE: i32 = 4096;

/// Opens a listening socket: on one address, or on all interfaces, IPv6 and IPv4 together. An error says who is in the way.
pub fn listen(address: Option<IpAddr>, port: u16, sharing: Sharing) -> Result<MioListener, String> {
    listen_std(address, port, sharing).map(MioListener::from_std)
}

/// The same, as the standard library has it.
pub fn listen_std(address: Option<IpAddr>, port: u16, sharing: Sharing) -> Result<TcpListener, String> {
    bind_tcp(address, port, sharing).map_err(|error| match error.kind() {
        std::io::ErrorKind::AddrInUse => match holder(port) {
            Some(holder) => format!("port {port} is taken by {holder}"),
            None => format!("port {port} is taken by another process"),
        },
        std::io::ErrorKind::PermissionDenied => {
            format!("port {port}: no right to bind below 1024; run as root or give the capability CAP_NET_BIND_SERVICE")
        }
        std::io::ErrorKind::AddrNotAvailable => not_here(address, port),
        _ => format!("port {port}: {error}"),
    })
}

fn not_here(address: Option<IpAddr>, port: u16) -> String {
    let address = address.map(|address| address.to_string()).unwrap_or_default();
    format!(
        "port {port}: {address} is no address of this host (a service's own takes root or CAP_NET_ADMIN to be made)"
    )
}

/// The same, without looking for who is in the way.
pub fn try_listen(address: Option<IpAddr>, port: u16, sharing: Sharing) -> std::io::Result<MioListener> {
    bind_tcp(address, port, sharing).map(MioListener::from_std)
}

/// With whom a port is shared. Services are listened for at addresses of their own, and on the same number another port may be listened
/// for at all addresses: the kernel takes both where both say that they share it, and prefers the one of the address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sharing {
    /// With nobody.
    Alone,
    /// With services' own addresses.
    Met,
    /// It is at one of those.
    Own,
}

impl Sharing {
    /// What a table says of a port at a service's own address, or of any other.
    pub fn of(table: &Table, internal: bool, port: u16) -> Self {
        match internal {
            true => Sharing::Own,
            false if table.listeners.values().any(|other| other.internal && other.port == port) => Sharing::Met,
            false => Sharing::Alone,
        }
    }
}

fn bind_tcp(address: Option<IpAddr>, port: u16, sharing: Sharing) -> std::io::Result<TcpListener> {
    let open = |at| open(at, sharing, TcpListener::bind, SockType::Stream, TcpListener::from);
    let listener = bind(address, port, open)?;
    listener.set_nonblocking(true)?;
    Ok(listener)
}

// At a service's own address it is shared from the beginning. Elsewhere it is first tried to have it alone, so that others are noticed.
fn open<T: AsFd>(
    at: SocketAddr,
    sharing: Sharing,
    alone: impl Fn(SocketAddr) -> std::io::Result<T>,
    kind: SockType,
    made: impl Fn(OwnedFd) -> T,
) -> std::io::Result<T> {
    let shared = || -> std::io::Result<T> {
        let family = if at.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
        let socket = socket(family, kind, SockFlag::SOCK_CLOEXEC, None)?;
        setsockopt(&socket, sockopt::ReusePort, &true)?;
        if kind == SockType::Stream {
            setsockopt(&socket, sockopt::ReuseAddr, &true)?;
        }
        nix::sys::socket::bind(socket.as_raw_fd(), &SockaddrStorage::from(at))?;
        Ok(made(socket))
    };
    let opened = match sharing {
        Sharing::Own => shared()?,
        _ => alone(at).or_else(|error| match error.kind() {
            std::io::ErrorKind::AddrInUse if sharing == Sharing::Met => shared(),
            _ => Err(error),
        })?,
    };
    share(&opened, sharing);
    if kind == SockType::Stream {
        // The standard library's queue of 128 is full in an instant where many come at once: whoever waits for a word would do so for seconds.
        listen_on(&opened.as_fd(), Backlog::new(QUEUE)?)?;
    }
    Ok(opened)
}

/// Lets a socket be joined by those at services' own addresses, where there are some with its number.
pub fn share(socket: &impl AsFd, sharing: Sharing) {
    if sharing == Sharing::Met {
        let _ = setsockopt(&socket.as_fd(), sockopt::ReusePort, &true);
    }
}

fn bind<T>(address: Option<IpAddr>, port: u16, open: impl Fn(SocketAddr) -> std::io::Result<T>) -> std::io::Result<T> {
    let first = SocketAddr::new(address.unwrap_or(Ipv6Addr::UNSPECIFIED.into()), port);
    open(first).or_else(|error| match address {
        // A host without IPv6.
        None if error.raw_os_error() == Some(nix::errno::Errno::EAFNOSUPPORT as i32) => {
            open((Ipv4Addr::UNSPECIFIED, port).into())
        }
        _ => Err(error),
    })
}

/// The same for datagrams.
pub fn listen_udp(address: Option<IpAddr>, port: u16, sharing: Sharing) -> Result<UdpSocket, String> {
    let open = |at| open(at, sharing, UdpSocket::bind, SockType::Datagram, UdpSocket::from);
    let bound = bind(address, port, open).and_then(|socket| socket.set_nonblocking(true).map(|()| socket));
    bound.map_err(|error| match error.kind() {
        std::io::ErrorKind::AddrInUse => format!("port {port}/udp is taken by another process"),
        std::io::ErrorKind::PermissionDenied => {
            format!(
                "port {port}/udp: no right to bind below 1024; run as root or give the capability CAP_NET_BIND_SERVICE"
            )
        }
        std::io::ErrorKind::AddrNotAvailable => not_here(address, port),
        _ => format!("port {port}/udp: {error}"),
    })
}

// The process that listens on `port`, as `nginx (pid 812)`, where this process may see it.
fn holder(port: u16) -> Option<String> {
    let inode = ["/proc/net/tcp", "/proc/net/tcp6"].iter().find_map(|file| {
        let text = std::fs::read_to_string(file).ok()?;
        text.lines().skip(1).find_map(|line| {
            let fields: Vec<&str> = line.split_ascii_whitespace().collect();
            let listens = fields.get(3) == Some(&"0A");
            let number = fields.get(1)?.rsplit_once(':')?.1;
            (listens && u16::from_str_radix(number, 16) == Ok(port))
                .then(|| fields.get(9).map(|inode| (*inode).to_owned()))?
        })
    })?;
    let wanted = format!("socket:[{inode}]");
    for process in std::fs::read_dir("/proc").ok()?.flatten() {
        let Some(pid) = process.file_name().to_str().and_then(|name| name.parse::<u32>().ok()) else { continue };
        let Ok(files) = std::fs::read_dir(process.path().join("fd")) else { continue };
        if files.flatten().any(|file| std::fs::read_link(file.path()).is_ok_and(|link| link.to_str() == Some(&wanted)))
        {
            let name = std::fs::read_to_string(process.path().join("comm")).unwrap_or_default();
            return Some(format!("{} (pid {pid})", name.trim()));
        }
    }
    None
}
