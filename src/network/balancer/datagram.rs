//! Datagrams of a socket that listens on several addresses: which of them a client has asked, and answers from that one.

use std::io::{self, IoSlice, IoSliceMut};
use std::net::{IpAddr, Ipv6Addr, SocketAddr, SocketAddrV6};
use std::os::fd::{AsFd, AsRawFd};

use nix::sys::socket::{
    ControlMessage, ControlMessageOwned, MsgFlags, SockaddrIn, SockaddrIn6, SockaddrStorage, recvmsg, sendmsg,
    setsockopt, sockopt,
};

/// The largest datagram.
pub const LARGEST: usize = 65_535;

/// What came.
pub struct Received {
    /// How long it is.
    pub length: usize,
    /// Who sent it.
    pub from: SocketAddr,
    /// Where to, as far as the kernel says.
    pub asked: Option<IpAddr>,
}

/// Has the kernel say for each datagram which address it was sent to.
pub fn tell_destination(socket: &(impl AsFd + AsRawFd)) -> io::Result<()> {
    let local = nix::sys::socket::getsockname::<SockaddrStorage>(socket.as_raw_fd())?;
    match local.as_sockaddr_in6() {
        Some(_) => setsockopt(socket, sockopt::Ipv6RecvPacketInfo, &true)?,
        None => setsockopt(socket, sockopt::Ipv4PacketInfo, &true)?,
    }
    Ok(())
}

fn address(of: &SockaddrStorage) -> Option<SocketAddr> {
    if let Some(v4) = of.as_sockaddr_in() {
        return Some(SocketAddr::new(v4.ip().into(), v4.port()));
    }
    // With its scope, without which a link's own address says nothing.
    of.as_sockaddr_in6().map(|v6| SocketAddrV6::new(v6.ip(), v6.port(), 0, v6.scope_id()).into())
}

/// The next datagram.
pub fn receive(socket: &impl AsRawFd, buffer: &mut [u8]) -> io::Result<Received> {
    let mut space = nix::cmsg_space!(libc::in6_pktinfo, libc::in_pktinfo);
    let mut parts = [IoSliceMut::new(buffer)];
    let message = recvmsg::<SockaddrStorage>(socket.as_raw_fd(), &mut parts, Some(&mut space), MsgFlags::MSG_DONTWAIT)?;
    let from = message.address.as_ref().and_then(address).ok_or(io::ErrorKind::InvalidData)?;
    let mut asked = None;
    for part in message.cmsgs()? {
        match part {
            ControlMessageOwned::Ipv4PacketInfo(info) => {
                asked = Some(IpAddr::from(u32::from_be(info.ipi_addr.s_addr).to_be_bytes()));
            }
            ControlMessageOwned::Ipv6PacketInfo(info) => asked = Some(IpAddr::from(info.ipi6_addr.s6_addr)),
            _ => {}
        }
    }
    Ok(Received { length: message.bytes, from, asked })
}

/// Sends one to a client, from the address that it has asked; from this host's own where that cannot be (a broadcast's).
pub fn send(socket: &impl AsRawFd, to: SocketAddr, from: Option<IpAddr>, data: &[u8]) -> io::Result<()> {
    match send_from(socket, to, from, data) {
        Err(error) if from.is_some() && error.kind() == io::ErrorKind::InvalidInput => {
            send_from(socket, to, None, data)
        }
        sent => sent,
    }
}

fn send_from(socket: &impl AsRawFd, to: SocketAddr, from: Option<IpAddr>, data: &[u8]) -> io::Result<()> {
    let parts = [IoSlice::new(data)];
    let fd = socket.as_raw_fd();
    // What was sent to many is answered by one.
    let from = from.filter(|address| !address.is_multicast() && !is_broadcast(*address));
    match (to, from) {
        (SocketAddr::V4(to), Some(IpAddr::V4(from))) => {
            let info = libc::in_pktinfo {
                ipi_ifindex: 0,
                ipi_spec_dst: libc::in_addr { s_addr: u32::from(from).to_be() },
                ipi_addr: libc::in_addr { s_addr: 0 },
            };
            sendmsg(
                fd,
                &parts,
                &[ControlMessage::Ipv4PacketInfo(&info)],
                MsgFlags::empty(),
                Some(&SockaddrIn::from(to)),
            )?;
        }
        (SocketAddr::V6(to), Some(IpAddr::V6(from))) => {
            let index = if is_of_link(from) { to.scope_id() } else { 0 };
            let info = libc::in6_pktinfo { ipi6_addr: libc::in6_addr { s6_addr: from.octets() }, ipi6_ifindex: index };
            sendmsg(
                fd,
                &parts,
                &[ControlMessage::Ipv6PacketInfo(&info)],
                MsgFlags::empty(),
                Some(&SockaddrIn6::from(to)),
            )?;
        }
        (to, _) => {
            sendmsg(fd, &parts, &[], MsgFlags::empty(), Some(&SockaddrStorage::from(to)))?;
        }
    }
    Ok(())
}

fn is_of_link(address: Ipv6Addr) -> bool {
    address.segments()[0] & 0xffc0 == 0xfe80
}

fn is_broadcast(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(address) => address.is_broadcast(),
        IpAddr::V6(address) => address.to_ipv4_mapped().is_some_and(|address| address.is_broadcast()),
    }
}

#[cfg(test)]
mod tests {
    use std::net::UdpSocket;

    use super::*;

    #[test]
    fn answers_come_from_where_was_asked() {
        for (bound, asked) in
            [("0.0.0.0:0", "127.0.0.7"), ("[::]:0", "127.0.0.7"), ("[::]:0", "::1"), ("127.0.0.1:0", "127.0.0.1")]
        {
            let Ok(listener) = UdpSocket::bind(bound) else { continue };
            tell_destination(&listener).unwrap();
            let to = SocketAddr::new(asked.parse().unwrap(), listener.local_addr().unwrap().port());
            let client = UdpSocket::bind(if to.is_ipv4() { "127.0.0.1:0" } else { "[::1]:0" }).unwrap();
            // Connected: what comes from elsewhere is not heard.
            client.connect(to).unwrap();
            client.set_read_timeout(Some(std::time::Duration::from_secs(5))).unwrap();
            client.send(b"question").unwrap();
            let mut buffer = vec![0; LARGEST];
            let received = loop {
                match receive(&listener, &mut buffer) {
                    Ok(received) => break received,
                    Err(error) => assert_eq!(error.kind(), io::ErrorKind::WouldBlock),
                }
            };
            assert_eq!(&buffer[..received.length], b"question");
            send(&listener, received.from, received.asked, b"answer").unwrap();
            let length = client.recv(&mut buffer).unwrap();
            assert_eq!(&buffer[..length], b"answer", "{bound} {asked}");
        }
    }
}
