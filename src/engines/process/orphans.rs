//! What a killed keeper leaves behind: it takes its replica along (PDEATHSIG), but not what that one started, in whatever
//! group and session. Those say whose they are in their environment; what lives below a keeper, that of a folder of which
//! this one is a copy, say, is not left behind.

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use nix::sys::signal::Signal;

use super::lock::lock_is_free;
use super::sys::{pidfd_open, pidfd_signal};
use super::taskdir::{Record, append, records};
use crate::model::clock::Timestamp;
use crate::model::task::Exit;

/// How often all processes are looked at, and the time between: one may start another while it is looked for, and what
/// is killed takes a moment to end.
const ROUNDS: usize = 5;
const BETWEEN: Duration = Duration::from_millis(2);
/// How far up a process's ancestors are looked at.
const GENERATIONS: usize = 64;

/// Ends what is left of a task whose keeper has ended without a word, and records the end, so that it is done once.
pub fn end(folder: &Path, at: Timestamp) {
    static TURN: Mutex<()> = Mutex::new(());
    let _turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    let Some(id) = folder.file_name().and_then(|name| name.to_str()) else { return };
    // What cannot be told is no reason to kill.
    if !lock_is_free(folder) || matches!(records(folder).last(), Some(Record::Ended { .. } | Record::Rejected { .. })) {
        return;
    }
    let mut left = 0;
    // In a copy all of it is the original's, what a check runs there as well.
    let rounds = if is_kept_elsewhere(folder) { 0 } else { ROUNDS };
    for round in 0..rounds {
        if round > 0 {
            std::thread::sleep(BETWEEN);
        }
        left = end_all(id);
        if left == 0 {
            break;
        }
    }
    if left > 0 {
        tracing::warn!(task = id, left, "processes that it started do not end");
    }
    let ended = Record::Ended { exit: Exit::Unknown, at: at.0, out_of_memory: false };
    if let Err(error) = append(folder, &ended) {
        tracing::warn!(task = id, %error, "that its keeper has ended without a word cannot be recorded");
    }
}

/// Whether the keeper that a folder tells of lives. Where nobody has the folder's lock, it keeps another one's task: this
/// folder is a copy.
pub fn is_kept_elsewhere(folder: &Path) -> bool {
    let Some(id) = folder.file_name().and_then(|name| name.to_str()) else { return false };
    records(folder).iter().any(|record| matches!(record, Record::Spawning { keeper } if is_keeper(*keeper, id)))
}

// Kills all that say in their environment that they are the task's; how many there were, those aside of which it cannot be
// told whether a keeper has them.
fn end_all(id: &str) -> usize {
    let marker = format!("NEAP_TASK_ID={id}");
    let Ok(processes) = std::fs::read_dir("/proc") else { return 0 };
    let ids = processes.flatten().filter_map(|process| process.file_name().to_str()?.parse::<u32>().ok());
    let is_marked = |process: u32| {
        let environ = std::fs::read(of(process, "environ")).unwrap_or_default();
        environ.split(|byte| *byte == 0).any(|entry| entry == marker.as_bytes())
    };
    let kill = |process: &u32| {
        // Looked at once more through a handle: a number may have become another process's.
        let handle = pidfd_open(*process).ok().filter(|_| is_marked(*process) && !is_kept(*process, id));
        handle.is_some_and(|handle| pidfd_signal(&handle, Signal::SIGKILL).is_ok())
    };
    ids.filter(|process| *process != std::process::id() && is_marked(*process)).filter(kill).count()
}

// Whether a process descends from a keeper of the task that lives. A keeper adopts what its replica leaves behind.
fn is_kept(process: u32, id: &str) -> bool {
    let mut process = process;
    for _ in 0..GENERATIONS {
        match parent(process) {
            Some(0 | 1) => return false,
            Some(parent) if is_keeper(parent, id) => return true,
            Some(parent) => process = parent,
            // It has just ended, and who has the one below now is not known: no reason to kill.
            None => break,
        }
    }
    true
}

fn parent(process: u32) -> Option<u32> {
    let stat = std::fs::read_to_string(of(process, "stat")).ok()?;
    stat.rsplit_once(')')?.1.split_ascii_whitespace().nth(1)?.parse().ok()
}

// Whether a process keeps the task, and its folder is still somewhere: the lock is a keeper's standard input.
fn is_keeper(process: u32, id: &str) -> bool {
    let line = std::fs::read(of(process, "cmdline")).unwrap_or_default();
    let mut words = line.split(|byte| *byte == 0).skip(1);
    let keeps = words.next() == Some(b"keeper") && words.next().is_some_and(|folder| folder.ends_with(id.as_bytes()));
    // Who cannot be asked is taken for one.
    keeps && std::fs::metadata(of(process, "fd/0")).map_or(true, |lock| lock.nlink() > 0)
}

fn of(process: u32, file: &str) -> PathBuf {
    Path::new("/proc").join(process.to_string()).join(file)
}
