//! The keeper: one small process a replica (this binary, re-executed) that holds its pipes, writes its output, passes
//! on the stop signal, and records pid, start and exit. It outlives the daemon.
//!
//! Its lock file (open as standard input) is locked from before its own start until its end, so whoever finds the
//! lock free knows that neither keeper nor replica is left. Standard output is a socket to the daemon.

use std::io::{Read, Write};
use std::os::fd::AsFd;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Instant;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{SigSet, Signal, killpg};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::unistd::Pid;

use super::cgroup::Cgroup;
use super::spool::{MAX_LINE, Spool};
use super::sys;
use super::taskdir::{Record, TaskFile, append};
use crate::model::fault;
use crate::model::task::Exit;

/// Runs the keeper of the task folder `folder`; returns its exit code.
pub fn main(folder: &Path) -> u8 {
    match Keeper::start(folder) {
        Ok(mut keeper) => keeper.run(),
        Err(reason) => {
            record(folder, &Record::Rejected { reason });
            tell("rejected\n");
            1
        }
    }
}

fn tell(line: &str) {
    // The daemon may be gone; the record on disk is what counts.
    let _ = std::io::stdout().write_all(line.as_bytes());
    let _ = std::io::stdout().flush();
}

// Once the replica runs there is nobody to tell: what cannot be recorded is shown as lost.
fn record(folder: &Path, record: &Record) {
    let _ = append(folder, record);
}

/// How long what a replica has started may take to be gone once it is killed.
const KILLED_WITHIN: std::time::Duration = std::time::Duration::from_secs(2);
/// How often a record that could not be written is tried again.
const RECORD_AGAIN: std::time::Duration = std::time::Duration::from_secs(1);
/// Bound on the reads after the replica's end: 16 buffers each, far more than a pipe holds.
const LAST_READS: usize = 64;

struct Stream {
    name: &'static str,
    source: std::fs::File,
    line: Vec<u8>,
    open: bool,
}

impl Stream {
    fn new(name: &'static str, source: impl Into<std::os::fd::OwnedFd>) -> std::io::Result<Self> {
        let source: std::os::fd::OwnedFd = source.into();
        nix::fcntl::fcntl(&source, nix::fcntl::FcntlArg::F_SETFL(nix::fcntl::OFlag::O_NONBLOCK))?;
        Ok(Stream { name, source: source.into(), line: Vec::new(), open: true })
    }

    // Everything that is there now; whole lines go to the spool, the rest waits for its end.
    fn drain(&mut self, spool: &mut Spool, buffer: &mut [u8]) {
        // So that a replica that writes without a pause cannot keep signals and the other stream waiting.
        for _ in 0..16 {
            let length = match self.source.read(buffer) {
                Ok(0) => {
                    self.open = false;
                    break;
                }
                Ok(length) => length,
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => continue,
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => return,
                Err(_) => {
                    self.open = false;
                    break;
                }
            };
            let at = jiff::Timestamp::now().to_string();
            for piece in buffer[..length].split_inclusive(|byte| *byte == b'\n') {
                match piece.split_last() {
                    Some((b'\n', rest)) => {
                        self.line.extend_from_slice(rest);
                        self.cut(spool, &at);
                        spool.line(&at, self.name, self.line.strip_suffix(b"\r").unwrap_or(&self.line), true);
                        self.line.clear();
                    }
                    _ => {
                        self.line.extend_from_slice(piece);
                        self.cut(spool, &at);
                    }
                }
            }
            spool.flush(&at);
        }
        if !self.open && !self.line.is_empty() {
            let at = jiff::Timestamp::now().to_string();
            spool.line(&at, self.name, &self.line, true);
            spool.flush(&at);
            self.line.clear();
        }
    }

    fn cut(&mut self, spool: &mut Spool, at: &str) {
        while self.line.len() > MAX_LINE {
            spool.line(at, self.name, &self.line[..MAX_LINE], false);
            self.line.drain(..MAX_LINE);
        }
    }
}

struct Keeper {
    folder: PathBuf,
    task: TaskFile,
    child: Child,
    group: Pid,
    cgroup: Cgroup,
    signals: SignalFd,
    spool: Spool,
    streams: [Stream; 2],
    daemon_open: bool,
    kill_at: Option<Instant>,
    told: bool,
    // That it runs: the disk was full, and it is written once there is room.
    unrecorded: Option<Record>,
    record_at: Instant,
}

impl Keeper {
    fn start(folder: &Path) -> Result<Self, String> {
        // A session of its own: a terminal's Ctrl-C and the daemon's end do not reach it.
        let _ = nix::unistd::setsid();
        // Shown by ps; the program itself is run through /proc/self/exe.
        let _ = nix::sys::prctl::set_name(c"neap-keeper");
        // Descendants that leave the replica's group come to us instead of to init, and end with it.
        nix::sys::prctl::set_child_subreaper(true).map_err(|error| format!("cannot adopt descendants: {error}"))?;
        let task = TaskFile::read(folder).map_err(|error| error.to_string())?;
        let mut mask = SigSet::empty();
        for signal in [Signal::SIGCHLD, Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP, Signal::SIGPIPE] {
            mask.add(signal);
        }
        mask.thread_block().map_err(|error| error.to_string())?;
        let signals = SignalFd::with_flags(&mask, SfdFlags::SFD_NONBLOCK | SfdFlags::SFD_CLOEXEC)
            .map_err(|error| error.to_string())?;
        let spool = Spool::open(folder, task.request.spec.log.clone())
            .map_err(|error| format!("cannot write output: {error}"))?;
        let (cgroup, warnings) = Cgroup::create(&task.request.task.to_string(), &task.request.spec.limits);
        fault::point("keeper.before-spawn");
        // Without this record nothing is started: it is what a replica is stopped by, and never started twice.
        append(folder, &Record::Spawning { keeper: std::process::id() })
            .map_err(|error| format!("its start cannot be recorded: {error}"))?;
        let spawned = spawn(&task, &cgroup);
        let mut child = spawned.inspect_err(|_| cgroup.remove())?;
        fault::point("keeper.after-spawn");
        let pid = child.id();
        let started = Record::Started { pid, at: now(), warnings };
        let unrecorded = append(folder, &started).err().map(|_| started);
        tell("started\n");
        let (Some(stdout), Some(stderr)) = (child.stdout.take(), child.stderr.take()) else {
            return Err("the replica has no pipes".into());
        };
        let stream = |error: std::io::Error| error.to_string();
        let streams = [Stream::new("stdout", stdout).map_err(stream)?, Stream::new("stderr", stderr).map_err(stream)?];
        let group = Pid::from_raw(pid.cast_signed());
        Ok(Keeper {
            folder: folder.to_owned(),
            task,
            child,
            group,
            cgroup,
            signals,
            spool,
            streams,
            daemon_open: true,
            kill_at: None,
            told: false,
            unrecorded,
            record_at: Instant::now() + RECORD_AGAIN,
        })
    }

    fn run(&mut self) -> u8 {
        let mut buffer = vec![0; 32 * 1024];
        let status = loop {
            self.wait();
            self.read_signals();
            for stream in self.streams.iter_mut().filter(|stream| stream.open) {
                stream.drain(&mut self.spool, &mut buffer);
            }
            if self.kill_at.is_some_and(|at| at <= Instant::now()) {
                let _ = killpg(self.group, Signal::SIGKILL);
                self.kill_at = None;
            }
            match self.child.try_wait() {
                Ok(Some(status)) => break Some(status),
                Ok(None) => {}
                Err(_) => break None,
            }
        };
        fault::point("keeper.after-exit");
        self.end_descendants();
        // With every writer gone, what is left in the pipes is all there is.
        for _ in 0..LAST_READS {
            for stream in self.streams.iter_mut().filter(|stream| stream.open) {
                stream.drain(&mut self.spool, &mut buffer);
            }
            if self.streams.iter().all(|stream| !stream.open) || !self.wait_for_output() {
                break;
            }
        }
        let exit = match status.map(|status| (status.code(), status.signal())) {
            Some((Some(code), _)) => Exit::Code(code),
            Some((None, Some(signal))) => Exit::Signal(signal),
            _ => Exit::Unknown,
        };
        for files in self.task.secrets.iter().chain(&self.task.configs) {
            crate::engines::files::remove(files);
        }
        let oom = self.cgroup.out_of_memory();
        self.cgroup.remove();
        if let Some(started) = self.unrecorded.take() {
            record(&self.folder, &started);
        }
        record(&self.folder, &Record::Ended { exit, at: now(), out_of_memory: oom });
        fault::point("keeper.after-record");
        0
    }

    fn wait(&mut self) {
        let left = self.kill_at.map(|at| at.saturating_duration_since(Instant::now()).as_millis() + 1);
        let again = self.unrecorded.as_ref().map(|_| RECORD_AGAIN.as_millis());
        let timeout = match left.into_iter().chain(again).min() {
            Some(wait) => PollTimeout::try_from(wait).unwrap_or(PollTimeout::MAX),
            None => PollTimeout::NONE,
        };
        let stdout = std::io::stdout();
        let mut fds = vec![PollFd::new(self.signals.as_fd(), PollFlags::POLLIN)];
        for stream in self.streams.iter().filter(|stream| stream.open) {
            fds.push(PollFd::new(stream.source.as_fd(), PollFlags::POLLIN));
        }
        let streams = fds.len();
        if self.daemon_open {
            fds.push(PollFd::new(stdout.as_fd(), PollFlags::POLLIN));
        }
        let _ = poll(&mut fds, timeout);
        if Instant::now() >= self.record_at {
            self.record_at = Instant::now() + RECORD_AGAIN;
            if self.unrecorded.take_if(|started| append(&self.folder, started).is_ok()).is_some() {
                tell("started\n");
            }
        }
        let gone = fds.get(streams).and_then(PollFd::revents).is_some_and(|events| !events.is_empty());
        drop(fds);
        if gone {
            self.daemon_open = false;
            if self.task.lifeline {
                self.tell_child();
            }
        }
    }

    // Whether there is more, or the end of it. A descendant that cannot be killed would hold the pipe for ever, so
    // the wait is short.
    fn wait_for_output(&self) -> bool {
        let open = self.streams.iter().filter(|stream| stream.open);
        let mut fds: Vec<PollFd> = open.map(|stream| PollFd::new(stream.source.as_fd(), PollFlags::POLLIN)).collect();
        poll(&mut fds, PollTimeout::from(1000_u16)).is_ok_and(|ready| ready > 0)
    }

    fn read_signals(&mut self) {
        while let Ok(Some(info)) = self.signals.read_signal() {
            match Signal::try_from(info.ssi_signo.cast_signed()) {
                Ok(Signal::SIGTERM) => self.tell_child(),
                Ok(Signal::SIGCHLD) => self.reap_adopted(),
                _ => {}
            }
        }
    }

    // Once: the stop signal, and the kill when the grace period is over.
    fn tell_child(&mut self) {
        if self.told {
            return;
        }
        self.told = true;
        let stop = self.task.stop_policy(&self.folder);
        let signal = format!("SIG{}", stop.signal()).parse().unwrap_or(Signal::SIGTERM);
        let _ = killpg(self.group, signal);
        self.kill_at = Some(Instant::now() + stop.grace.std());
    }

    fn reap_adopted(&self) {
        for pid in children() {
            if pid != self.group {
                let _ = nix::sys::wait::waitpid(pid, Some(nix::sys::wait::WaitPidFlag::WNOHANG));
            }
        }
    }

    // The replica is its first process: when that ends, all that it started ends.
    fn end_descendants(&self) {
        let _ = killpg(self.group, Signal::SIGKILL);
        let until = Instant::now() + KILLED_WITHIN;
        loop {
            let left = children();
            // One that waits for a disk or a lost NFS server cannot be killed, and must not keep the end from being told.
            if left.is_empty() || Instant::now() >= until {
                return;
            }
            for pid in left {
                let _ = nix::sys::signal::kill(pid, Signal::SIGKILL);
                let _ = nix::sys::wait::waitpid(pid, Some(nix::sys::wait::WaitPidFlag::WNOHANG));
            }
            std::thread::sleep(std::time::Duration::from_millis(5));
        }
    }
}

fn now() -> u64 {
    u64::try_from(jiff::Timestamp::now().as_millisecond()).unwrap_or_default()
}

// Our children, adopted ones included (proc(5), "children": complete while they are not running concurrently with
// us being read, which a second pass makes up for).
fn children() -> Vec<Pid> {
    let pid = std::process::id();
    let text = std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap_or_default();
    text.split_ascii_whitespace().filter_map(|pid| pid.parse().ok()).map(Pid::from_raw).collect()
}

fn spawn(task: &TaskFile, cgroup: &Cgroup) -> Result<Child, String> {
    let spec = &task.request.spec;
    let Some((program, args)) = spec.command.split_first() else { return Err("there is no command".into()) };
    let identity = spec.user.as_deref().map(super::taskdir::identity).transpose()?;
    // Without root's rights a process is already who it may be; changing even its groups would be refused.
    let identity =
        identity.filter(|identity| nix::unistd::geteuid().is_root() || identity.uid != nix::unistd::geteuid());
    let mut command = Command::new(program);
    command.args(args).env_clear().envs(task.environment());
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    if let Some(workdir) = &spec.workdir {
        if !Path::new(workdir).is_dir() {
            return Err(format!("the working folder {workdir:?} is not there"));
        }
        command.current_dir(workdir);
    }
    sys::prepare_child(&mut command, cgroup.procs(), identity);
    command.spawn().map_err(|error| match error.kind() {
        std::io::ErrorKind::NotFound if program.starts_with('/') => format!("command {program:?} not found"),
        std::io::ErrorKind::NotFound if program.contains('/') => {
            let here = || std::env::current_dir().unwrap_or_default().display().to_string();
            format!("command {program:?} not found in {}", spec.workdir.clone().unwrap_or_else(here))
        }
        std::io::ErrorKind::NotFound => format!("command {program:?} not found in the daemon's PATH"),
        std::io::ErrorKind::PermissionDenied => format!("command {program:?}: permission denied"),
        _ => format!("command {program:?}: {error}"),
    })
}
