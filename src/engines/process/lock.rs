//! A task folder's lock: held from before its keeper starts until the keeper has ended, so that "is anybody there"
//! has one answer.

use std::fs::{File, OpenOptions};
use std::os::fd::OwnedFd;
use std::path::Path;

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, fcntl};

use super::sys;

/// A task's lock file, made if it is not there.
pub fn open_lock(folder: &Path) -> std::io::Result<File> {
    OpenOptions::new().create(true).truncate(false).write(true).read(true).open(folder.join("lock"))
}

// Locks of the open file description (fcntl(2), F_OFD_SETLK): they pass to a child with the descriptor, last until
// its last copy is closed, and can be asked about without being taken.
fn whole_file(kind: i32) -> libc::flock {
    libc::flock {
        l_type: kind as libc::c_short,
        l_whence: libc::SEEK_SET as libc::c_short,
        l_start: 0,
        l_len: 0,
        l_pid: 0,
    }
}

/// Takes the lock for the descriptor and all its copies; false when somebody has it.
pub fn try_lock(file: &File) -> std::io::Result<bool> {
    match fcntl(file, FcntlArg::F_OFD_SETLK(&whole_file(libc::F_WRLCK))) {
        Ok(_) => Ok(true),
        Err(Errno::EAGAIN | Errno::EACCES) => Ok(false),
        Err(error) => Err(error.into()),
    }
}

// Whether somebody has the lock, where that can be told.
fn ask(folder: &Path) -> std::io::Result<bool> {
    let file = OpenOptions::new().read(true).write(true).open(folder.join("lock"))?;
    let mut asked = whole_file(libc::F_WRLCK);
    fcntl(&file, FcntlArg::F_OFD_GETLK(&mut asked))?;
    Ok(asked.l_type != libc::F_UNLCK as libc::c_short)
}

/// Whether somebody has the lock: a keeper, or who is about to start one.
pub fn lock_is_held(folder: &Path) -> bool {
    ask(folder).unwrap_or(false)
}

/// Whether it is certain that nobody has the lock.
pub fn lock_is_free(folder: &Path) -> bool {
    ask(folder).is_ok_and(|held| !held)
}

/// A handle on the keeper of a folder. The process id was recorded by the holder of the lock; if the lock is still held once the handle is open, the
/// handle is the keeper's and not that of a later process with its id.
pub fn keeper_handle(folder: &Path, pid: u32) -> Option<OwnedFd> {
    let handle = sys::pidfd_open(pid).ok()?;
    lock_is_held(folder).then_some(handle)
}

/// Whether any task in `folder` still has its keeper.
pub fn any_keeper(folder: &Path) -> bool {
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    entries.into_iter().any(|entry| lock_is_held(&entry.path()))
}
