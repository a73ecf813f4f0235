//! The process engine: replicas are local processes, each under a keeper. The engine can be killed at any moment and
//! finds everything again by the task folders and their locks.

mod accept;
mod cgroup;
mod exec;
pub mod keeper;
mod lock;
mod logs;
mod node;
mod orphans;
pub mod ports;
mod spool;
mod stats;
mod sys;
mod taskdir;

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::fs::File;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use async_trait::async_trait;
use nix::errno::Errno;
use nix::sys::signal::Signal;
use tokio::io::AsyncReadExt;
use tokio::sync::{mpsc, watch};

pub use self::lock::any_keeper;
use self::lock::{keeper_handle, lock_is_held, open_lock, try_lock};
use self::ports::PortPool;
use self::taskdir::{Record, TaskFile, records};
use super::meter::{Meter, Reading};
use super::{Engine, ExecResult, LogLine, LogPosition, LogQuery, Observed, ObservedState, Sight, StartRequest};
use crate::model::clock::Timestamp;
use crate::model::id::{NodeId, TaskId};
use crate::model::node::Node;
use crate::model::service::{ServiceSpec, StopPolicy};
use crate::model::stats::Stats;
use crate::model::task::{Exit, Health};
use crate::model::units::Duration;
use crate::model::{Error, Kind, Result, fault};

/// How the engine is set up.
#[derive(Debug, Clone)]
pub struct ProcessOptions {
    /// The folder of the task folders.
    pub folder: PathBuf,
    /// The program that serves as keeper: this binary.
    pub program: PathBuf,
    /// Ports handed out to replicas.
    pub ports: std::ops::RangeInclusive<u16>,
    /// Whether replicas end with this process.
    pub lifeline: bool,
}

/// Most lines of one task that one look at followed output takes; the rest comes with the next look.
const FOLLOWED: usize = 10_000;

/// Runs tasks as processes of this host.
pub struct ProcessEngine {
    shared: Arc<Shared>,
    meter: Meter,
}

struct Shared {
    options: ProcessOptions,
    nodes: watch::Sender<Arc<Vec<Node>>>,
    inherited: BTreeMap<String, String>,
    ports: Mutex<PortPool>,
    observer: Mutex<Option<mpsc::UnboundedSender<Sight>>>,
    // Tasks whose keeper is being watched.
    watched: Mutex<HashSet<TaskId>>,
}

fn held<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    // What these locks guard is whole between any two statements, so a panic elsewhere spoils nothing.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl ProcessEngine {
    /// Takes over the folder and everything that runs from it. Call inside a tokio runtime.
    pub fn open(options: ProcessOptions) -> Result<Self> {
        std::fs::create_dir_all(&options.folder)
            .map_err(|error| Error::io(options.folder.display().to_string(), "make the task folder", &error))?;
        let inherit = ["PATH", "HOME", "LANG", "LC_ALL", "TZ", "TMPDIR", "USER", "LOGNAME"];
        let inherited = inherit.iter().filter_map(|key| Some(((*key).to_owned(), std::env::var(key).ok()?))).collect();
        let shared = Arc::new(Shared {
            ports: Mutex::new(PortPool::new(options.ports.clone())),
            nodes: watch::Sender::new(Arc::new(vec![node::local()])),
            inherited,
            observer: Mutex::new(None),
            watched: Mutex::default(),
            options,
        });
        for task in shared.task_ids()? {
            let folder = shared.folder(&task);
            if lock_is_held(&folder) {
                if let Ok(file) = TaskFile::read(&folder) {
                    let protocol = |name: &String| file.request.spec.ports.get(name).map(|port| port.protocol);
                    let ports = file.ports.iter().map(|(name, port)| (*port, protocol(name).unwrap_or_default()));
                    held(&shared.ports).hold(&task, ports);
                }
                shared.watch_adopted(&task);
            }
        }
        let meter = Meter::spawn(stats::Running(shared.clone()), true);
        Ok(ProcessEngine { shared, meter })
    }
}

impl Shared {
    async fn count(self: &Arc<Self>, tasks: Vec<TaskId>) -> Result<BTreeMap<TaskId, Stats>> {
        let shared = self.clone();
        let running = move |task: &TaskId| match shared.state(task)?.state {
            ObservedState::Running { pid: Some(pid), .. } => Some((*task, pid)),
            _ => None,
        };
        let count = move || stats::of(&tasks.iter().filter_map(running).collect());
        tokio::task::spawn_blocking(count).await.map_err(|error| Error::internal("statistics", error.to_string()))
    }

    fn folder(&self, task: &TaskId) -> PathBuf {
        self.options.folder.join(task.to_string())
    }

    fn folders(&self, tasks: &[TaskId]) -> Vec<(TaskId, PathBuf)> {
        tasks.iter().map(|task| (*task, self.folder(task))).collect()
    }

    fn task_ids(&self) -> Result<Vec<TaskId>> {
        let unreadable = |error| Error::io(self.options.folder.display().to_string(), "list the task folders", &error);
        let mut ids = Vec::new();
        for entry in std::fs::read_dir(&self.options.folder).map_err(unreadable)? {
            let name = entry.map_err(unreadable)?.file_name();
            // A folder by another name is nobody's task.
            if let Some(id) = name.to_str().and_then(|name| name.parse().ok()) {
                ids.push(id);
            }
        }
        ids.sort();
        Ok(ids)
    }

    // What folder and lock tell; None for a folder in which nothing was begun.
    fn state(&self, task: &TaskId) -> Option<Observed> {
        let folder = self.folder(task);
        // The lock first: a keeper that ends in between has recorded its end before it let go.
        let held = lock_is_held(&folder);
        let mut warnings = Vec::new();
        let mut state = None;
        for record in records(&folder) {
            state = Some(match record {
                Record::Spawning { .. } => ObservedState::Starting,
                Record::Started { pid, at, warnings: said, .. } => {
                    warnings = said;
                    let ports = TaskFile::read(&folder).map(|file| file.addresses()).unwrap_or_default();
                    ObservedState::Running {
                        pid: Some(pid),
                        ports,
                        started_at: Timestamp(at),
                        health: Health::None,
                        said: None,
                    }
                }
                Record::Ended { exit, at, out_of_memory } => {
                    if out_of_memory {
                        warnings.push("ended by the kernel for want of memory".into());
                    }
                    ObservedState::Ended { exit, finished_at: Timestamp(at) }
                }
                Record::Rejected { reason } => ObservedState::Rejected { reason },
            });
        }
        let state = match (state, held) {
            (None, false) => return None,
            (None, true) => ObservedState::Starting,
            (Some(ObservedState::Starting | ObservedState::Running { .. }), false) => {
                let finished_at = modified(&folder);
                orphans::end(&folder, finished_at);
                ObservedState::Ended { exit: Exit::Unknown, finished_at }
            }
            (Some(state), _) => state,
        };
        Some(Observed { task: *task, state, warnings })
    }

    // A start may still be on its way; it finds this record and does nothing.
    fn forbid_start(folder: &Path) -> Result<()> {
        let failed = |error: std::io::Error| Error::io(folder.display().to_string(), "write to it", &error);
        std::fs::create_dir_all(folder).map_err(failed)?;
        let lock = open_lock(folder).map_err(failed)?;
        if !try_lock(&lock).map_err(failed)? {
            return Err(
                Error::new(Kind::Unavailable, folder.display().to_string(), "is just being started").retry(true)
            );
        }
        if records(folder).is_empty() {
            taskdir::append(folder, &Record::Rejected { reason: "told to end before it was started".into() })
                .map_err(failed)?;
        }
        Ok(())
    }

    // A keeper that ended without a word never started anything.
    fn report_end(&self, task: &TaskId) {
        if records(&self.folder(task)).is_empty() {
            held(&self.ports).release(task);
            let reason = "its keeper ended before it could start the replica".to_owned();
            if let Some(observer) = held(&self.observer).as_ref() {
                let state = ObservedState::Rejected { reason };
                let _ = observer.send(Sight::Task(Observed { task: *task, state, warnings: Vec::new() }));
            }
        }
        self.report(task);
    }

    fn report(&self, task: &TaskId) {
        if let Some(observed) = self.state(task) {
            if matches!(observed.state, ObservedState::Ended { .. } | ObservedState::Rejected { .. }) {
                held(&self.ports).release(task);
            }
            if let Some(observer) = held(&self.observer).as_ref() {
                let _ = observer.send(Sight::Task(observed));
            }
        }
    }

    // A keeper that this process did not start: its end is seen through a pidfd.
    fn watch_adopted(self: &Arc<Self>, task: &TaskId) {
        if !held(&self.watched).insert(*task) {
            return;
        }
        let shared = self.clone();
        let task = *task;
        tokio::spawn(async move {
            let folder = shared.folder(&task);
            // Between exec and its first record a keeper has no pid to be found by.
            while lock_is_held(&folder) {
                let pid = records(&folder).into_iter().find_map(|record| match record {
                    Record::Spawning { keeper } => Some(keeper),
                    _ => None,
                });
                let Some(pidfd) = pid.and_then(|pid| keeper_handle(&folder, pid)) else {
                    tokio::time::sleep(std::time::Duration::from_millis(5)).await;
                    continue;
                };
                // Its hints go to the daemon that has started it: until the replica runs it is looked at.
                let starting = |seen: Observed| matches!(seen.state, ObservedState::Starting);
                let mut wait = std::time::Duration::from_millis(5);
                while shared.state(&task).is_some_and(starting) {
                    tokio::time::sleep(wait).await;
                    wait = (wait * 2).min(std::time::Duration::from_secs(1));
                }
                shared.report(&task);
                sys::ended(pidfd).await;
                break;
            }
            held(&shared.watched).remove(&task);
            shared.report_end(&task);
        });
    }

    fn spawn_keeper(self: &Arc<Self>, task: &TaskId, lock: File) -> std::io::Result<()> {
        let (ours, theirs) = std::os::unix::net::UnixStream::pair()?;
        ours.set_nonblocking(true)?;
        let mut command = tokio::process::Command::new(&self.options.program);
        command
            .arg0("neap")
            .arg("keeper")
            .arg(self.folder(task))
            .stdin(lock)
            .stdout(OwnedFd::from(theirs))
            .stderr(std::process::Stdio::null());
        // Nothing of the daemon's environment is the replica's business; task.json holds all it needs.
        command.env_clear();
        if let Some(fault) = std::env::var_os("NEAP_FAULT") {
            command.env("NEAP_FAULT", fault);
        }
        // The default would end it together with the daemon's process group on Ctrl-C.
        command.process_group(0);
        let mut child = command.spawn()?;
        held(&self.watched).insert(*task);
        let shared = self.clone();
        let task = *task;
        tokio::spawn(async move {
            if let Ok(mut socket) = tokio::net::UnixStream::from_std(ours) {
                // Each line is a hint that there is something new to read in the folder.
                let mut buffer = [0; 64];
                while socket.read(&mut buffer).await.is_ok_and(|length| length > 0) {
                    shared.report(&task);
                }
            }
            let _ = child.wait().await;
            held(&shared.watched).remove(&task);
            shared.report_end(&task);
        });
        Ok(())
    }
}

fn modified(folder: &Path) -> Timestamp {
    let time = std::fs::metadata(folder.join("state")).and_then(|meta| meta.modified()).ok();
    let since = time.and_then(|time| time.duration_since(std::time::UNIX_EPOCH).ok()).unwrap_or_default();
    Timestamp(u64::try_from(since.as_millis()).unwrap_or_default())
}

#[async_trait]
impl Engine for ProcessEngine {
    fn name(&self) -> &'static str {
        "process"
    }

    fn accepts(&self, spec: &mut ServiceSpec) -> Result<()> {
        accept::accepts(spec)
    }

    fn nodes(&self) -> watch::Receiver<Arc<Vec<Node>>> {
        self.shared.nodes.subscribe()
    }

    async fn start(&self, request: StartRequest) -> Result<()> {
        let shared = &self.shared;
        let task = request.task;
        let subject = format!("task {}.{}", request.service, request.slot);
        if request.spec.command.is_empty() {
            return Err(Error::new(Kind::Unsupported, subject, "names an image, but the process engine runs commands")
                .help("give the service a command"));
        }
        let failed = |error: std::io::Error| Error::io(subject.clone(), "start it", &error);
        let folder = shared.folder(&task);
        std::fs::create_dir_all(&folder).map_err(failed)?;
        let lock = open_lock(&folder).map_err(failed)?;
        if !try_lock(&lock).map_err(failed)? {
            // A keeper has it already.
            shared.watch_adopted(&task);
            return Ok(());
        }
        if !records(&folder).is_empty() {
            // It ran and ended.
            drop(lock);
            shared.report(&task);
            return Ok(());
        }
        let ports = held(&shared.ports).choose(&task, &request.spec.ports);
        let ports = ports.map_err(|error| error.about(subject.clone()))?;
        let begun = || {
            let (secrets, configs) =
                taskdir::write_files(&folder, &request).map_err(|error| error.about(subject.clone()))?;
            let file = TaskFile {
                format: 1,
                request,
                ports,
                inherited: shared.inherited.clone(),
                lifeline: shared.options.lifeline,
                secrets,
                configs,
            };
            file.write(&folder).map_err(failed)?;
            fault::point("engine.before-keeper");
            // The descriptor itself is passed on, so that the lock is held without a break from here to the keeper's end.
            shared.spawn_keeper(&task, lock).map_err(failed)
        };
        begun().inspect_err(|_| held(&shared.ports).release(&task))?;
        fault::point("engine.after-keeper");
        Ok(())
    }

    async fn stop(&self, task: &TaskId, grace: Duration) -> Result<bool> {
        let folder = self.shared.folder(task);
        let Ok(file) = TaskFile::read(&folder) else {
            return Shared::forbid_start(&folder).map(|()| false);
        };
        let stop = StopPolicy { grace, ..file.request.spec.stop.clone() };
        let failed = |error: std::io::Error| Error::io(format!("task {task}"), "stop it", &error);
        if stop != file.request.spec.stop {
            let text = serde_json::to_vec(&stop).expect("a stop policy is plain data");
            taskdir::write_whole(&folder.join("stop.json"), &text).map_err(failed)?;
        }
        let keeper = records(&folder).into_iter().find_map(|record| match record {
            Record::Spawning { keeper } => Some(keeper),
            _ => None,
        });
        match keeper.and_then(|pid| keeper_handle(&folder, pid)) {
            Some(handle) => match sys::pidfd_signal(&handle, Signal::SIGTERM) {
                // It ended a moment ago.
                Err(error) if error.raw_os_error() != Some(Errno::ESRCH as i32) => Err(failed(error)),
                _ => Ok(true),
            },
            None if lock_is_held(&folder) => {
                Err(Error::new(Kind::Unavailable, format!("task {task}"), "is just being started").retry(true))
            }
            None => {
                self.shared.report(task);
                Ok(!records(&folder).is_empty())
            }
        }
    }

    async fn remove(&self, task: &TaskId) -> Result<()> {
        let folder = self.shared.folder(task);
        if lock_is_held(&folder) {
            return Err(Error::new(Kind::Conflict, format!("task {task}"), "still runs"));
        }
        // What is left, where that was not seen before.
        let _ = self.shared.state(task);
        // A keeper that was killed has left them; those of a folder of which this one is a copy are not its own.
        if !orphans::is_kept_elsewhere(&folder)
            && let Ok(file) = TaskFile::read(&folder)
        {
            for files in file.secrets.iter().chain(&file.configs) {
                super::files::remove(files);
            }
        }
        held(&self.shared.ports).release(task);
        match std::fs::remove_dir_all(&folder) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                Err(Error::io(format!("task {task}"), "remove its folder", &error))
            }
            _ => Ok(()),
        }
    }

    async fn prune(&self, keep: &BTreeSet<TaskId>) -> Result<()> {
        let mut result = Ok(());
        for task in self.shared.task_ids()?.iter().filter(|task| !keep.contains(*task)) {
            if !lock_is_held(&self.shared.folder(task)) {
                // One that cannot be removed keeps the others from nothing.
                result = result.and(self.remove(task).await);
            }
        }
        result
    }

    async fn list(&self) -> Result<Vec<Observed>> {
        Ok(self.shared.task_ids()?.iter().filter_map(|task| self.shared.state(task)).collect())
    }

    fn observe(&self) -> mpsc::UnboundedReceiver<Sight> {
        let (sender, receiver) = mpsc::unbounded_channel();
        *held(&self.shared.observer) = Some(sender);
        receiver
    }

    async fn log_end(&self, tasks: &[TaskId]) -> Result<LogPosition> {
        Ok(logs::ends(&self.shared.folders(tasks)))
    }

    async fn logs(
        &self,
        tasks: &[TaskId],
        query: LogQuery,
        until: Option<LogPosition>,
    ) -> Result<mpsc::Receiver<Result<Vec<LogLine>>>> {
        logs::read(self.shared.folders(tasks), query, until)
    }

    async fn follow(&self, tasks: &[TaskId], position: &mut LogPosition) -> Result<Vec<LogLine>> {
        let mut lines = Vec::new();
        for (task, folder) in self.shared.folders(tasks) {
            let place = position.0.entry(task).or_default();
            let mut reader = logs::Reader::new(task, folder, *place, None);
            let failed = |error: std::io::Error| Error::io(format!("task {task}"), "read its output", &error);
            for _ in 0..FOLLOWED {
                match reader.next_line().map_err(failed)? {
                    Some(line) => lines.push(line),
                    None => break,
                }
            }
            *place = reader.place();
        }
        // Stable: lines of one task keep their order also within one moment.
        lines.sort_by_key(|line| line.at);
        Ok(lines)
    }

    async fn stats(&self, _: &str, tasks: &[TaskId]) -> Result<BTreeMap<TaskId, Stats>> {
        self.shared.count(tasks.to_vec()).await
    }

    fn measured(&self) -> BTreeMap<NodeId, Reading> {
        let nodes = self.shared.nodes.borrow().clone();
        nodes.iter().filter_map(|node| Some((node.id.clone(), self.meter.last()?))).collect()
    }

    async fn exec(&self, task: &TaskId, command: &[String], timeout: Duration) -> Result<ExecResult> {
        exec::run(&self.shared.folder(task), command, timeout).await
    }
}
