//! What a killed keeper leaves behind: it takes its replica along (PDEATHSIG), but not what that one started, in whatever
//! group and session. Those say whose they are in their environment.

use std::path::Path;
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::lock::{is_original, open_lock, try_lock};
use super::taskdir::{Record, append};
use crate::model::clock::Timestamp;
use crate::model::task::Exit;

/// How often all processes are looked at, and the time between: one may start another while it is looked for, and what
/// is killed takes a moment to end.
const ROUNDS: usize = 5;
const BETWEEN: Duration = Duration::from_millis(2);

/// Ends what is left of a task whose keeper has ended without a word, and records the end once nothing is left.
pub fn end(folder: &Path, at: Timestamp) {
    let Some(id) = folder.file_name().and_then(|name| name.to_str()) else { return };
    // What cannot be told is no reason to kill.
    let is_original = is_original(folder).unwrap_or(false);
    // Whoever has the lock is its keeper, or about to start one.
    let Ok(lock) = open_lock(folder) else { return };
    if !try_lock(&lock).unwrap_or(false) {
        return;
    }
    if is_original {
        let marker = format!("NEAP_TASK_ID={id}");
        let is_clear = |round: usize| {
            if round > 0 {
                std::thread::sleep(BETWEEN);
            }
            end_marked(&marker) == 0
        };
        // The next look tries again.
        if !(0..ROUNDS).any(is_clear) {
            return;
        }
    } else {
        tracing::warn!(task = id, "its folder is a copy: what runs of it is the original's, and goes on");
    }
    let ended = Record::Ended { exit: Exit::Unknown, at: at.0, out_of_memory: false };
    if let Err(error) = append(folder, &ended) {
        tracing::warn!(task = id, %error, "that its keeper has ended without a word cannot be recorded");
    }
}

// Kills every process that says so in its environment; how many.
fn end_marked(marker: &str) -> usize {
    let Ok(processes) = std::fs::read_dir("/proc") else { return 0 };
    let others = processes.flatten().filter_map(|process| {
        let id: i32 = process.file_name().to_str()?.parse().ok()?;
        (id.cast_unsigned() != std::process::id()).then_some((id, process.path().join("environ")))
    });
    let is_marked = |environ: &Vec<u8>| environ.split(|byte| *byte == 0).any(|entry| entry == marker.as_bytes());
    let marked = others.filter(|(_, environ)| std::fs::read(environ).as_ref().is_ok_and(is_marked));
    marked.filter(|(id, _)| kill(Pid::from_raw(*id), Signal::SIGKILL).is_ok()).count()
}
