//! The balancer's process.

use std::io;
use std::os::fd::AsRawFd;
use std::path::Path;
use std::sync::Arc;

use mio::net::UnixListener;
use mio::{Interest, Poll};

use super::control::take_over;
use super::event_loop::{CONTROL_LISTENER, LIFELINE, Loop};
use super::hook::Hooks;
use super::{socket_path, udp};

/// Runs the balancer of `folder` until it is told to stop, or has handed over and served its last connection. With
/// `lifeline`, also until standard input is closed. HTTP is
/// served by so many threads; `hooks` loads scripts of routes.
pub fn main(folder: &Path, lifeline: bool, threads: usize, hooks: Arc<dyn Hooks>) -> io::Result<()> {
    let _ = nix::unistd::setsid();
    // Shown by ps; the program itself is run through /proc/self/exe.
    let _ = nix::sys::prctl::set_name(c"neap-balancer");
    // Every connection takes two descriptors; the soft limit is for programs that use select.
    if let Ok((_, hard)) = nix::sys::resource::getrlimit(nix::sys::resource::Resource::RLIMIT_NOFILE) {
        let _ = nix::sys::resource::setrlimit(nix::sys::resource::Resource::RLIMIT_NOFILE, hard, hard);
    }
    let path = socket_path(folder);
    let inherited = if path.exists() { take_over(&path).unwrap_or_default() } else { Vec::new() };
    // The name is taken over whole: there is no moment without a socket behind it.
    let temporary = folder.join(format!("balancer.{}", std::process::id()));
    let _ = std::fs::remove_file(&temporary);
    let mut control = UnixListener::bind(&temporary)?;
    std::fs::set_permissions(&temporary, std::os::unix::fs::PermissionsExt::from_mode(0o600))?;
    let poll = Poll::new()?;
    poll.registry().register(&mut control, CONTROL_LISTENER, Interest::READABLE)?;
    let stdin = std::io::stdin();
    if lifeline {
        poll.registry().register(&mut mio::unix::SourceFd(&stdin.as_raw_fd()), LIFELINE, Interest::READABLE)?;
    }
    let seed = u64::from(std::process::id()) << 32
        ^ std::time::SystemTime::UNIX_EPOCH.elapsed().map_or(0, |time| time.as_nanos() as u64);
    let mut inner = Loop::new(poll, &folder.to_string_lossy(), threads, seed, hooks)?;
    for (name, socket) in inherited {
        match name.strip_prefix(udp::PREFIX) {
            Some(name) => inner.udp.inherit(name, std::net::UdpSocket::from(socket)),
            None => inner.inherit(name, std::net::TcpListener::from(socket))?,
        }
    }
    std::fs::rename(&temporary, &path)?;
    inner.run(&control)
}
