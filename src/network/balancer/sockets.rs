//! What is asked of the kernel for each connection.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};

use mio::net::TcpStream;

/// Small packets at once; and a peer that went without a word is noticed after two minutes, so that it neither keeps
/// its descriptors nor holds up a drain for ever.
pub fn prepare(stream: &TcpStream) {
    prepare_any(stream.as_fd());
}

/// The same, whatever the socket is kept in.
pub fn prepare_any(stream: BorrowedFd) {
    use nix::sys::socket::{setsockopt, sockopt};
    let _ = setsockopt(&stream, sockopt::TcpNoDelay, &true);
    let _ = setsockopt(&stream, sockopt::KeepAlive, &true);
    let _ = setsockopt(&stream, sockopt::TcpKeepIdle, &60);
    let _ = setsockopt(&stream, sockopt::TcpKeepInterval, &15);
    let _ = setsockopt(&stream, sockopt::TcpKeepCount, &4);
}

/// While nothing is under way, whether the peer's host is there is known within four seconds.
pub fn ask_often(stream: &TcpStream) {
    use nix::sys::socket::{setsockopt, sockopt};
    let _ = setsockopt(stream, sockopt::TcpKeepIdle, &1);
    let _ = setsockopt(stream, sockopt::TcpKeepInterval, &1);
    let _ = setsockopt(stream, sockopt::TcpKeepCount, &3);
}

/// Whether what was sent was sent again and again, and nothing came: a host that is there says so for every packet, also where
/// the program there reads nothing. Four times take three seconds where packets travel fast.
#[allow(unsafe_code, reason = "the kernel fills a plain record, and no more of it than it is told")]
pub fn is_unheard(stream: &TcpStream) -> bool {
    let mut info: libc::tcp_info = unsafe { std::mem::zeroed() };
    let mut length = size_of::<libc::tcp_info>() as libc::socklen_t;
    let place = (&raw mut info).cast::<libc::c_void>();
    let told =
        unsafe { libc::getsockopt(stream.as_raw_fd(), libc::IPPROTO_TCP, libc::TCP_INFO, place, &raw mut length) };
    told == 0 && info.tcpi_retransmits >= 4
}

/// How many descriptors this process may have.
pub fn descriptors() -> usize {
    let limit = nix::sys::resource::getrlimit(nix::sys::resource::Resource::RLIMIT_NOFILE);
    limit.map_or(1024, |(soft, _)| usize::try_from(soft).unwrap_or(usize::MAX))
}

/// Whether a connection failed for want of something on this host: no fault of any replica's.
pub fn is_own(error: &io::Error) -> bool {
    let known = [libc::EMFILE, libc::ENFILE, libc::ENOBUFS, libc::ENOMEM, libc::EADDRNOTAVAIL];
    error.raw_os_error().is_some_and(|number| known.contains(&number))
}
