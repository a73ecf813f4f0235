//! Limits by cgroup, version 1 and 2, where this process may set them; otherwise the reason is said.

use std::ffi::CString;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use crate::model::service::Resources;

/// A task's cgroup: one folder (version 2), or one for each controller (version 1).
#[derive(Debug, Default)]
pub struct Cgroup {
    folders: Vec<PathBuf>,
}

/// Period of the cpu quota, in microseconds (the kernel's default).
const PERIOD: u64 = 100_000;

impl Cgroup {
    /// Makes a cgroup with these limits for the task `name`. The second value tells what could not be enforced.
    pub fn create(name: &str, limits: &Resources) -> (Self, Vec<String>) {
        let mut cgroup = Cgroup::default();
        let mut warnings = Vec::new();
        if limits.is_empty() {
            return (cgroup, warnings);
        }
        let unified = Path::new("/sys/fs/cgroup/cgroup.controllers").exists();
        let asked =
            [("memory", limits.memory.is_some()), ("cpu", limits.cpu.is_some()), ("pids", limits.pids.is_some())];
        for (controller, wanted) in asked {
            if !wanted {
                continue;
            }
            let made = if unified { unified_folder(controller, name) } else { legacy_folder(controller, name) };
            let set = made.and_then(|folder| {
                if !cgroup.folders.contains(&folder) {
                    cgroup.folders.push(folder.clone());
                }
                write_limit(&folder, controller, unified, limits)
            });
            if let Err(error) = set {
                warnings.push(format!("limit {controller} is not enforced: {error}"));
            }
        }
        (cgroup, warnings)
    }

    /// The files through which a process joins.
    pub fn procs(&self) -> Vec<CString> {
        let path =
            |folder: &PathBuf| CString::new(folder.join("cgroup.procs").into_os_string().into_encoded_bytes()).ok();
        self.folders.iter().filter_map(path).collect()
    }

    /// Whether the kernel ended a process for want of memory.
    pub fn out_of_memory(&self) -> bool {
        self.folders.iter().any(|folder| {
            ["memory.events", "memory.oom_control"].iter().any(|file| {
                fs::read_to_string(folder.join(file)).is_ok_and(|text| {
                    text.lines().any(|line| line.strip_prefix("oom_kill ").is_some_and(|count| count.trim() != "0"))
                })
            })
        })
    }

    /// Removes it, once empty.
    pub fn remove(&self) {
        for folder in &self.folders {
            let _ = fs::remove_dir(folder);
        }
    }
}

fn write_limit(folder: &Path, controller: &str, unified: bool, limits: &Resources) -> io::Result<()> {
    match (controller, unified) {
        ("memory", _) => {
            let Some(memory) = limits.memory else { return Ok(()) };
            fs::write(folder.join(if unified { "memory.max" } else { "memory.limit_in_bytes" }), memory.0.to_string())
        }
        ("pids", _) => {
            let Some(pids) = limits.pids else { return Ok(()) };
            fs::write(folder.join("pids.max"), pids.to_string())
        }
        (_, unified) => {
            let Some(cpu) = limits.cpu else { return Ok(()) };
            let quota = (u64::from(cpu.0) * PERIOD / 1000).max(1000);
            if unified {
                fs::write(folder.join("cpu.max"), format!("{quota} {PERIOD}"))
            } else {
                fs::write(folder.join("cpu.cfs_period_us"), PERIOD.to_string())?;
                fs::write(folder.join("cpu.cfs_quota_us"), quota.to_string())
            }
        }
    }
}

fn legacy_folder(controller: &str, name: &str) -> io::Result<PathBuf> {
    let own = own_path(|controllers| controllers.split(',').any(|c| c == controller))?;
    let mount = Path::new("/sys/fs/cgroup").join(controller);
    if !mount.is_dir() {
        return Err(io::Error::other(format!("no {controller} cgroup is mounted")));
    }
    // Inside a container the path may not be visible; the mount's root is its own cgroup then.
    let base = mount.join(own.trim_start_matches('/'));
    let folder = if base.is_dir() { base } else { mount }.join("neap").join(name);
    fs::create_dir_all(&folder)?;
    Ok(folder)
}

fn unified_folder(controller: &str, name: &str) -> io::Result<PathBuf> {
    let own = own_path(str::is_empty)?;
    let root = Path::new("/sys/fs/cgroup");
    let base = root.join(own.trim_start_matches('/'));
    // A cgroup that holds processes cannot give controllers to its children (cgroup-v2, "no internal processes"),
    // the root excepted, so a sibling is tried first.
    let parent = match base.parent() {
        Some(parent) if base != root && parent.starts_with(root) => parent.join("neap"),
        _ => root.join("neap"),
    };
    fs::create_dir_all(&parent)?;
    for level in [parent.parent().unwrap_or(root), &parent] {
        let enabled = fs::read_to_string(level.join("cgroup.subtree_control"))?;
        if !enabled.split_ascii_whitespace().any(|c| c == controller) {
            fs::write(level.join("cgroup.subtree_control"), format!("+{controller}"))?;
        }
    }
    let folder = parent.join(name);
    fs::create_dir_all(&folder)?;
    Ok(folder)
}

fn own_path(is: impl Fn(&str) -> bool) -> io::Result<String> {
    let text = fs::read_to_string("/proc/self/cgroup")?;
    let line = text.lines().find_map(|line| {
        let mut fields = line.splitn(3, ':').skip(1);
        is(fields.next()?).then(|| fields.next().unwrap_or("/").to_owned())
    });
    line.ok_or_else(|| io::Error::other("this process is in no such cgroup"))
}
