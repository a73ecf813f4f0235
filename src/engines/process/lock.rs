//! A task folder's lock: held from before its keeper starts until the keeper has ended, so that "is anybody there"
//! has one answer.

use std::fs::{File, OpenOptions};
use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, fcntl};

use super::sys;

/// A task's lock file, made if it is not there. It says which file it is and where, so that a copy is known for one.
pub fn open_lock(folder: &Path) -> std::io::Result<File> {
    let path = folder.join("lock");
    let mut file = OpenOptions::new().create(true).truncate(false).write(true).read(true).open(&path)?;
    if file.metadata()?.len() == 0 {
        let said = format!("{} {}", identity(&file.metadata()?), path.canonicalize()?.display());
        file.write_all(said.as_bytes())?;
    }
    Ok(file)
}

fn identity(meta: &std::fs::Metadata) -> String {
    format!("{}:{}", meta.dev(), meta.ino())
}

/// Whether what runs of a task may be taken for that of this folder: not in a copy, as long as the folder of which it is
/// one is where it was.
pub fn is_original(folder: &Path) -> std::io::Result<bool> {
    let mut file = File::open(folder.join("lock"))?;
    let mut said = String::new();
    (&mut file).take(8192).read_to_string(&mut said)?;
    let Some((which, place)) = said.split_once(' ') else { return Ok(false) };
    let is_there = || std::fs::metadata(place).is_ok_and(|meta| identity(&meta) == which);
    Ok(which == identity(&file.metadata()?) || !is_there())
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
