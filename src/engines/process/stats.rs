//! What processes use, as the kernel counts it: a replica and all that descends from it.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use async_trait::async_trait;

use super::Shared;
use crate::engines::meter::{Found, Source};
use crate::model::id::TaskId;
use crate::model::stats::{ContainerStats, Stats};
use crate::model::units::Bytes;
use crate::model::{Error, Result};

/// What share of time a process took is counted over this period.
const PERIOD: Duration = Duration::from_millis(500);

#[derive(Debug, Clone, Copy, PartialEq)]
struct Process {
    parent: u32,
    // Time on a core, in the kernel's ticks.
    ticks: u64,
    threads: u64,
    pages: u64,
}

/// For each of these tasks' processes. Takes half a second.
pub fn of(processes: &BTreeMap<TaskId, u32>) -> BTreeMap<TaskId, Stats> {
    let (before, begun) = (all(), Instant::now());
    std::thread::sleep(PERIOD);
    let (now, seconds) = (all(), begun.elapsed().as_secs_f64());
    let (second, page) = (per_second(), page());
    let one = |(task, pid): (&TaskId, &u32)| {
        let family = family(&now, *pid);
        let mut stats = Stats { pids: Some(0), ..Stats::default() };
        for process in &family {
            let known = now[process];
            let earlier = before.get(process).map_or(0, |earlier| earlier.ticks);
            stats.cpu += known.ticks.saturating_sub(earlier) as f64 / second / seconds;
            stats.memory.0 += known.pages * page;
            *stats.pids.get_or_insert(0) += known.threads;
            let (read, written) = disk(*process).unwrap_or_default();
            stats.read = Some(Bytes(stats.read.unwrap_or_default().0 + read));
            stats.written = Some(Bytes(stats.written.unwrap_or_default().0 + written));
        }
        (!family.is_empty()).then_some((*task, stats))
    };
    processes.iter().filter_map(one).collect()
}

/// All that run, for a meter.
pub struct Running(pub Arc<Shared>);

#[async_trait]
impl Source for Running {
    async fn count(&mut self) -> Result<Found> {
        let shared = self.0.clone();
        let running = tokio::task::spawn_blocking(move || shared.task_ids());
        let tasks = running.await.map_err(|error| Error::internal("tasks", error.to_string()))??;
        let counted = self.0.count(tasks).await?;
        let one = |(task, stats)| ContainerStats { id: Some(task), stats, ..ContainerStats::default() };
        let containers: Vec<ContainerStats> = counted.into_iter().map(one).collect();
        let running = u32::try_from(containers.len()).unwrap_or(u32::MAX);
        Ok(Found { running, containers, folder: Some(self.0.options.folder.clone()) })
    }
}

// A process with all that it has started, as far as it lives.
fn family(all: &BTreeMap<u32, Process>, pid: u32) -> BTreeSet<u32> {
    let mut found = BTreeSet::new();
    let mut open = vec![pid];
    while let Some(next) = open.pop() {
        if all.contains_key(&next) && found.insert(next) {
            open.extend(all.iter().filter(|(_, process)| process.parent == next).map(|(child, _)| *child));
        }
    }
    found
}

fn all() -> BTreeMap<u32, Process> {
    let entries = std::fs::read_dir("/proc").into_iter().flatten().flatten();
    let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
    let one =
        |pid: u32| Some((pid, read(&String::from_utf8_lossy(&std::fs::read(format!("/proc/{pid}/stat")).ok()?))?));
    pids.filter_map(one).collect()
}

// proc(5): the program's name, in parentheses, may hold anything.
fn read(stat: &str) -> Option<Process> {
    let fields: Vec<&str> = stat[stat.rfind(')')? + 1..].split_ascii_whitespace().collect();
    let number = |field: usize| fields.get(field - 3)?.parse::<u64>().ok();
    Some(Process {
        parent: u32::try_from(number(4)?).ok()?,
        ticks: number(14)? + number(15)?,
        threads: number(20)?,
        pages: number(24)?,
    })
}

fn disk(pid: u32) -> Option<(u64, u64)> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/io")).ok()?;
    let field = |name: &str| text.lines().find_map(|line| line.strip_prefix(name)?.trim().parse::<u64>().ok());
    Some((field("read_bytes:")?, field("write_bytes:")?))
}

fn per_second() -> f64 {
    let ticks = nix::unistd::sysconf(nix::unistd::SysconfVar::CLK_TCK).ok().flatten();
    ticks.filter(|ticks| *ticks > 0).map_or(100.0, |ticks| ticks as f64)
}

fn page() -> u64 {
    let size = nix::unistd::sysconf(nix::unistd::SysconfVar::PAGE_SIZE).ok().flatten();
    size.and_then(|size| u64::try_from(size).ok()).unwrap_or(4096)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernels_line() {
        let stat = "7 (a ) b) S 3 7 7 0 -1 4194560 1 0 0 0 11 22 0 0 20 0 5 0 100 4096 33 18446744073709551615";
        assert_eq!(read(stat), Some(Process { parent: 3, ticks: 33, threads: 5, pages: 33 }));
        for stat in ["", "7 (a", "7 (a) S 3", ")"] {
            assert_eq!(read(stat), None, "{stat:?}");
        }
    }

    #[test]
    fn children_count() {
        let process = |parent| Process { parent, ticks: 0, threads: 1, pages: 1 };
        let all = BTreeMap::from([(1, process(0)), (5, process(1)), (6, process(5)), (7, process(6)), (8, process(1))]);
        assert_eq!(family(&all, 5), BTreeSet::from([5, 6, 7]));
        assert_eq!(family(&all, 9), BTreeSet::new());
    }
}
