//! What the standard library and nix do not wrap: pidfds, and the few calls between fork and exec.
#![allow(unsafe_code, reason = "system calls without a safe wrapper; each says why it is sound")]

use std::ffi::CString;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::process::Command;

/// A handle on a process that can neither be reused nor confused with a later one of the same id.
pub fn pidfd_open(pid: u32) -> io::Result<OwnedFd> {
    let pid = libc::pid_t::try_from(pid).map_err(|_| io::ErrorKind::InvalidInput)?;
    // Takes integers and returns a new descriptor or -1.
    let fd = unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // The descriptor is ours alone: it was just made.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as i32) })
}

/// Sends a signal to the process behind the handle.
pub fn pidfd_signal(fd: &OwnedFd, signal: nix::sys::signal::Signal) -> io::Result<()> {
    // A null siginfo is allowed and means that of kill(2).
    let done = unsafe {
        libc::syscall(
            libc::SYS_pidfd_send_signal,
            fd.as_raw_fd(),
            signal as i32,
            std::ptr::null::<libc::siginfo_t>(),
            0,
        )
    };
    if done < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Returns once the process behind the handle has ended (pidfds become readable then), or cannot be watched.
pub async fn ended(fd: OwnedFd) {
    // The descriptor is owned by the registration and stays open as long as it.
    let watched = unsafe { tokio::io::unix::AsyncFd::register_with_interest(fd, tokio::io::Interest::READABLE) };
    if let Ok(watched) = watched {
        let _ = watched.readable().await;
    }
}

/// Who a replica runs as.
#[derive(Debug, Clone)]
pub struct Identity {
    /// User id.
    pub uid: nix::unistd::Uid,
    /// Group id.
    pub gid: nix::unistd::Gid,
    /// Further groups.
    pub groups: Vec<nix::unistd::Gid>,
}

/// Makes `command` start as the leader of a session of its own, inside the cgroups whose `cgroup.procs` files are
/// given, as `identity`, and dying with its parent.
pub fn prepare_child(command: &mut Command, cgroups: Vec<CString>, identity: Option<Identity>) {
    let parent = nix::unistd::getpid();
    let hook = move || {
        nix::unistd::setsid()?;
        for procs in &cgroups {
            let fd = nix::fcntl::open(procs.as_c_str(), nix::fcntl::OFlag::O_WRONLY, nix::sys::stat::Mode::empty())?;
            nix::unistd::write(&fd, b"0")?;
        }
        if let Some(identity) = &identity {
            nix::unistd::setgroups(&identity.groups)?;
            nix::unistd::setgid(identity.gid)?;
            nix::unistd::setuid(identity.uid)?;
        }
        // After setuid, which clears it.
        nix::sys::prctl::set_pdeathsig(nix::sys::signal::Signal::SIGKILL)?;
        if nix::unistd::getppid() != parent {
            return Err(io::ErrorKind::BrokenPipe.into());
        }
        nix::sys::signal::SigSet::empty().thread_set_mask()?;
        Ok(())
    };
    // Only system calls on memory prepared before the fork: nothing here allocates or takes a lock.
    unsafe { command.pre_exec(hook) };
}
