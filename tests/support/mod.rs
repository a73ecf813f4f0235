//! What the tests of the real binary share: a daemon in a folder of its own, a client, waiting with a deadline.
#![allow(dead_code, reason = "each test file uses its part")]

use std::net::{Ipv4Addr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

/// The program under test.
pub const NEAP: &str = env!("CARGO_BIN_EXE_neap");

/// How long a command of the CLI may take.
const PATIENCE: Duration = Duration::from_secs(300);

/// A port that was free a moment ago, below the kernel's ephemeral ones and apart from those of other test processes.
pub fn free_port() -> u16 {
    use std::sync::atomic::{AtomicU16, Ordering};
    static NEXT: AtomicU16 = AtomicU16::new(0);
    for _ in 0..2000 {
        let offset =
            (std::process::id() as u16).wrapping_mul(61).wrapping_add(NEXT.fetch_add(1, Ordering::SeqCst)) % 9000;
        let port = 10_000 + offset;
        if TcpListener::bind((Ipv4Addr::UNSPECIFIED, port)).is_ok() {
            return port;
        }
    }
    panic!("no free port");
}

/// Waits until `condition` gives a value; panics with `what` after `seconds`.
pub fn eventually<T>(what: &str, seconds: u64, mut condition: impl FnMut() -> Option<T>) -> T {
    let until = Instant::now() + Duration::from_secs(seconds);
    loop {
        if let Some(value) = condition() {
            return value;
        }
        assert!(Instant::now() < until, "not within {seconds}s: {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// A daemon with a data folder of its own. Dropping it ends daemon, replicas and balancer.
pub struct Daemon {
    pub folder: tempfile::TempDir,
    pub child: Option<Child>,
    pub program: PathBuf,
    pub env: Vec<(String, String)>,
    pub flags: Vec<String>,
}

impl Daemon {
    /// Starts one and waits until it answers.
    pub fn start() -> Self {
        let mut daemon = Self::new();
        daemon.up();
        daemon
    }

    /// One that is not started yet.
    pub fn new() -> Self {
        let folder = tempfile::Builder::new().prefix("neap-test-").tempdir().unwrap();
        Daemon { folder, child: None, program: NEAP.into(), env: Vec::new(), flags: Vec::new() }
    }

    pub fn data(&self) -> PathBuf {
        self.folder.path().join("data")
    }

    pub fn socket(&self) -> PathBuf {
        self.folder.path().join("neap.sock")
    }

    /// Starts the process without waiting.
    pub fn spawn(&mut self) {
        let log = std::fs::OpenOptions::new().create(true).append(true).open(self.folder.path().join("log")).unwrap();
        let mut command = Command::new(&self.program);
        command.arg("up").arg("--data").arg(self.data()).arg("--socket").arg(self.socket()).args(&self.flags);
        command
            .env("NEAP_ENGINE", "process")
            // Many daemons run at once here; a test of these says where.
            .envs([("NEAP_CONSUL_LISTEN", "none"), ("NEAP_DNS_LISTEN", "none"), ("NEAP_REGISTRY_LISTEN", "none")])
            .envs(self.env.iter().cloned())
            .env("NEAP_CONFIG", self.folder.path().join("config.toml"));
        command.stdin(Stdio::null()).stdout(log.try_clone().unwrap()).stderr(log);
        self.child = Some(command.spawn().unwrap());
    }

    /// Starts it and waits until it answers.
    pub fn up(&mut self) {
        self.spawn();
        eventually("the daemon answers", 30, || {
            if let Some(status) = self.child.as_mut().unwrap().try_wait().unwrap() {
                panic!("the daemon ended with {status}:\n{}", self.log());
            }
            self.neap(&["version"])
                .stdout
                .windows(6)
                .any(|part| part == b"daemon")
                .then_some(())
                .filter(|()| self.answers())
        });
    }

    fn answers(&self) -> bool {
        self.neap(&["service", "ls"]).status.success()
    }

    /// kill -9.
    pub fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }

    /// TERM, and waits for its end.
    pub fn stop(&mut self) {
        if let Some(mut child) = self.child.take() {
            signal(child.id(), "TERM");
            let _ = child.wait();
        }
    }

    pub fn log(&self) -> String {
        std::fs::read_to_string(self.folder.path().join("log")).unwrap_or_default()
    }

    /// Runs the CLI against this daemon.
    pub fn neap(&self, args: &[&str]) -> Output {
        // A command that is never answered is to fail its test, not to hold all of them.
        let child =
            self.command(args).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let pid = child.id();
        let (ended, wait) = std::sync::mpsc::channel::<()>();
        let (words, log) = (format!("{args:?}"), self.folder.path().join("log"));
        let watch = std::thread::spawn(move || {
            if wait.recv_timeout(PATIENCE) == Err(std::sync::mpsc::RecvTimeoutError::Timeout) {
                eprintln!("neap {words} was not answered in {PATIENCE:?}; the daemon said:");
                eprintln!("{}", std::fs::read_to_string(log).unwrap_or_default());
                signal(pid, "KILL");
            }
        });
        let output = child.wait_with_output().unwrap();
        drop(ended);
        watch.join().unwrap();
        output
    }

    /// The same, still to be run.
    pub fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(NEAP);
        command.args(args).env("NEAP_HOST", format!("unix://{}", self.socket().display()));
        command.env("NEAP_CONFIG", self.folder.path().join("config.toml"));
        command
    }

    /// The same; panics unless it succeeds.
    pub fn ok(&self, args: &[&str]) -> String {
        let output = self.neap(args);
        let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        assert!(output.status.success(), "neap {args:?}: {out}{err}\n{}", self.log());
        out.into_owned()
    }

    /// The same; panics unless it fails; gives the exit code and the error.
    pub fn fails(&self, args: &[&str]) -> (i32, String) {
        let output = self.neap(args);
        assert!(!output.status.success(), "neap {args:?} should fail: {}", String::from_utf8_lossy(&output.stdout));
        (output.status.code().unwrap(), String::from_utf8_lossy(&output.stderr).into_owned())
    }

    pub fn json(&self, args: &[&str]) -> serde_json::Value {
        serde_json::from_str(&self.ok(args)).unwrap()
    }

    /// A service's tasks that have not ended.
    pub fn live_tasks(&self, service: &str) -> Vec<serde_json::Value> {
        let tasks = self.json(&["service", "ps", service, "--format", "json"]);
        let ended = ["complete", "shutdown", "failed", "rejected", "lost"];
        tasks
            .as_array()
            .unwrap()
            .iter()
            .filter(|task| !ended.contains(&task["state"].as_str().unwrap()))
            .cloned()
            .collect()
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("--- daemon's log ---\n{}", self.log());
        }
        self.kill();
        end_everything(&self.data());
        let nested = self.log().contains("from within a look at it");
        assert!(std::thread::panicking() || !nested, "a lock was taken within itself:\n{}", self.log());
    }
}

/// Sends a signal to a process by id.
pub fn signal(pid: u32, name: &str) {
    let _ = Command::new("kill").arg(format!("-{name}")).arg(pid.to_string()).status();
}

/// Ends keepers, their replicas and the balancer of a data folder: every process that names it on its command line.
pub fn end_everything(data: &Path) {
    // What killed keepers leave beside the data folder.
    for task in std::fs::read_dir(data.join("tasks")).into_iter().flatten().flatten() {
        let text = std::fs::read(task.path().join("task.json")).unwrap_or_default();
        let file: serde_json::Value = serde_json::from_slice(&text).unwrap_or_default();
        if let Some(secrets) = file["secrets"].as_str() {
            let _ = std::fs::remove_dir_all(secrets);
        }
    }

    let wanted = data.to_string_lossy().into_owned();
    for (pid, line) in processes() {
        if line.contains(&wanted) && pid != std::process::id() {
            signal(pid, "KILL");
        }
    }
}

/// Whether a process has ended; one that only waits to be reaped has.
pub fn is_dead(pid: u64) -> bool {
    std::fs::read(format!("/proc/{pid}/cmdline")).map_or(true, |line| line.is_empty())
}

/// All processes with their command lines.
pub fn processes() -> Vec<(u32, String)> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir("/proc").unwrap().flatten() {
        if let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse().ok())
            && let Ok(line) = std::fs::read(entry.path().join("cmdline"))
        {
            found.push((pid, String::from_utf8_lossy(&line).replace('\0', " ")));
        }
    }
    found
}

/// One HTTP request over a connection of its own: status and body.
pub fn get(port: u16, path: &str) -> std::io::Result<(u16, String)> {
    use std::io::{Read, Write};
    let mut stream = std::net::TcpStream::connect((Ipv4Addr::LOCALHOST, port))?;
    stream.set_read_timeout(Some(Duration::from_secs(10)))?;
    write!(stream, "GET {path} HTTP/1.1\r\nHost: test\r\nConnection: close\r\n\r\n")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    let status = answer.split(' ').nth(1).and_then(|code| code.parse().ok());
    let body = answer.split_once("\r\n\r\n").map(|(_, body)| body.to_owned()).unwrap_or_default();
    status.map(|status| (status, body)).ok_or_else(|| std::io::ErrorKind::UnexpectedEof.into())
}

/// A GET over the control socket; the body.
pub fn api_get(socket: &Path, path: &str) -> String {
    use std::io::{Read, Write};
    let mut stream = std::os::unix::net::UnixStream::connect(socket).unwrap();
    write!(stream, "GET {path} HTTP/1.1\r\nhost: neap\r\nconnection: close\r\n\r\n").unwrap();
    let mut text = String::new();
    stream.read_to_string(&mut text).unwrap();
    assert!(text.starts_with("HTTP/1.1 200"), "{text:.200}");
    text.split_once("\r\n\r\n").map(|(_, body)| body.to_owned()).unwrap_or_default()
}
