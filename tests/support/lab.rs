//! A laboratory of machines with Docker Engines (`tests/lab`), for tests. Dropped, it is gone.
#![allow(dead_code, reason = "each test file uses its part")]

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::process::{Command, Output, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex};

use crate::support::{NEAP, eventually};

/// Machines n1, n2, ...
pub struct Lab {
    name: String,
    /// How many.
    pub machines: u32,
}

/// Why there can be no laboratory here; under CI that is a failure.
pub fn missing() -> Option<String> {
    let tools = ["dockerd", "docker", "ip", "iptables", "nsenter", "unshare", "busybox", "openssl", "ssh", "sshd"];
    let found = |tool: &&&str| {
        std::env::split_paths(&std::env::var_os("PATH").unwrap_or_default()).any(|folder| folder.join(tool).is_file())
    };
    let why = if !nix::unistd::geteuid().is_root() {
        "a laboratory needs root".to_owned()
    } else {
        format!("{} is not installed", tools.iter().find(|tool| !found(tool))?)
    };
    assert!(std::env::var_os("CI").is_none(), "under CI nothing is skipped: {why}");
    println!("skipped: {why}");
    Some(why)
}

impl Lab {
    /// Starts machines with single Docker Engines.
    pub fn engines(machines: u32) -> Self {
        Lab::up(machines, 0)
    }

    /// Starts machines; so many of them make a Swarm with the others as workers.
    pub fn up(machines: u32, managers: u32) -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let name = format!("t{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::SeqCst));
        let lab = Lab { name, machines };
        lab.ok(&["up", &machines.to_string(), "--managers", &managers.to_string()]);
        lab
    }

    fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/lab"));
        command.args(["--name", &self.name, "--owner", &std::process::id().to_string(), "--neap", NEAP]).args(args);
        command
    }

    /// A command of `tests/lab`; panics unless it succeeds.
    pub fn ok(&self, args: &[&str]) -> String {
        let output = self.command(args).output().unwrap();
        let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        assert!(output.status.success(), "lab {args:?}: {out}{err}");
        out.into_owned()
    }

    /// A command on a machine.
    pub fn exec(&self, node: &str, args: &[&str]) -> Output {
        self.command(&[&["exec", node], args].concat()).output().unwrap()
    }

    /// The same; panics unless it succeeds.
    pub fn run(&self, node: &str, args: &[&str]) -> String {
        self.ok(&[&["exec", node], args].concat())
    }

    /// How many containers of a service run, on all machines.
    pub fn all_containers(&self, service: &str) -> usize {
        (1..=self.machines).map(|n| self.containers(&format!("n{n}"), service).len()).sum()
    }

    /// What a command in a container prints; nothing where the container is gone or the command fails.
    pub fn exec_in(&self, node: &str, container: &str, command: &str) -> Option<String> {
        let socket = format!("unix://{}", self.folder().join(node).join("docker.sock").display());
        let words = ["-H", &socket, "exec", container, "sh", "-c", command];
        let output = Command::new("docker").args(words).output().unwrap();
        output.status.success().then(|| String::from_utf8_lossy(&output.stdout).trim_end().to_owned())
    }

    /// docker on a machine, without the way through its namespaces.
    pub fn docker(&self, node: &str, args: &[&str]) -> String {
        let socket = format!("unix://{}", self.folder().join(node).join("docker.sock").display());
        let output = Command::new("docker").args(["-H", &socket]).args(args).output().unwrap();
        let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        assert!(output.status.success(), "docker {args:?} on {node}: {out}{err}");
        out.trim_end().to_owned()
    }

    /// Running containers of a service on a machine.
    pub fn containers(&self, node: &str, service: &str) -> BTreeSet<String> {
        let ids = self.docker(node, &["ps", "-q", "--filter", &format!("label=neap.service={service}")]);
        ids.lines().map(str::to_owned).collect()
    }

    /// Its folder.
    pub fn folder(&self) -> PathBuf {
        let labs = std::env::var_os("NEAP_LABS").map_or_else(|| PathBuf::from("/tmp/neap-labs"), PathBuf::from);
        labs.join(&self.name)
    }

    /// An image's name under the laboratory's registry, as a Swarm wants it.
    pub fn image(&self, name: &str) -> String {
        format!("{}:5000/{name}", self.host_address())
    }

    /// A machine's address, reached from here.
    pub fn address(&self, node: &str) -> String {
        let subnet = std::fs::read_to_string(self.folder().join("subnet")).unwrap();
        let number: u32 = node[1..].parse().unwrap();
        format!("10.99.{subnet}.{}", 10 + number)
    }

    /// The address of this host that the machines reach.
    pub fn host_address(&self) -> String {
        format!("10.99.{}.1", std::fs::read_to_string(self.folder().join("subnet")).unwrap())
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        let output = self.command(&["down"]).output();
        if !output.as_ref().is_ok_and(|output| output.status.success()) {
            eprintln!("the laboratory {} could not be removed: {output:?}", self.name);
        }
    }
}

/// Requests one after the other, each over a connection of its own, until it is ended.
pub struct Load {
    shared: Arc<LoadShared>,
    thread: Option<std::thread::JoinHandle<()>>,
}

#[derive(Default)]
struct LoadShared {
    over: AtomicBool,
    answered: AtomicU32,
    failed: Mutex<Vec<String>>,
    // When it was answered last, and the longest that it was not.
    gap: Mutex<(Option<std::time::Instant>, std::time::Duration)>,
    last: Mutex<String>,
}

impl Load {
    /// Begins, and returns once the first request is answered. At most so many requests a second.
    pub fn start(url: String) -> Self {
        let shared = Arc::new(LoadShared::default());
        let address = url.trim_start_matches("http://").trim_end_matches('/').to_owned();
        let state = shared.clone();
        let thread = std::thread::spawn(move || {
            while !state.over.load(Ordering::SeqCst) {
                match request(&address) {
                    Ok(body) => {
                        state.answered.fetch_add(1, Ordering::SeqCst);
                        let mut gap = state.gap.lock().unwrap();
                        let now = std::time::Instant::now();
                        gap.1 = gap.0.map_or(gap.1, |last| gap.1.max(now - last));
                        gap.0 = Some(now);
                        *state.last.lock().unwrap() = body;
                    }
                    Err(error) => state.failed.lock().unwrap().push(error.to_string()),
                }
                std::thread::sleep(std::time::Duration::from_millis(5));
            }
        });
        let load = Load { shared, thread: Some(thread) };
        eventually("the first answer", 20, || (load.shared.answered.load(Ordering::SeqCst) > 0).then_some(()));
        load.forgive();
        load
    }

    /// Waits until an answer holds this.
    pub fn saw(&self, text: &str) {
        eventually(&format!("an answer with {text}"), 30, || {
            self.shared.last.lock().unwrap().contains(text).then_some(())
        });
    }

    /// Waits until what is under way now is over: a request is answered that began after this.
    pub fn answers_again(&self) {
        let so_far = self.shared.answered.load(Ordering::SeqCst);
        eventually("another answer", 30, || (self.shared.answered.load(Ordering::SeqCst) > so_far + 1).then_some(()));
    }

    /// What failed so far was to be expected: a replica was killed under the load.
    pub fn forgive(&self) {
        self.shared.failed.lock().unwrap().clear();
    }

    /// How many requests failed that are not forgiven.
    pub fn failed(&self) -> usize {
        self.shared.failed.lock().unwrap().len()
    }

    /// The longest time without an answer since this was asked last; what failed in it is forgiven.
    pub fn gap(&self) -> std::time::Duration {
        self.forgive();
        std::mem::take(&mut self.shared.gap.lock().unwrap().1)
    }

    /// Ends it; panics if a request failed.
    pub fn end(mut self) {
        self.shared.over.store(true, Ordering::SeqCst);
        self.thread.take().unwrap().join().unwrap();
        let failed = self.shared.failed.lock().unwrap();
        let answered = self.shared.answered.load(Ordering::SeqCst);
        assert!(
            failed.is_empty(),
            "{} of {answered} requests failed: {:?}",
            failed.len(),
            &failed[..failed.len().min(5)]
        );
        println!("0 of {answered} requests failed");
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        self.shared.over.store(true, Ordering::SeqCst);
    }
}

fn request(address: &str) -> std::io::Result<String> {
    use std::io::{Error, Read, Write};
    let timeout = std::time::Duration::from_secs(10);
    let address = address.parse().map_err(Error::other)?;
    let mut stream = std::net::TcpStream::connect_timeout(&address, timeout)?;
    stream.set_read_timeout(Some(timeout))?;
    write!(stream, "GET / HTTP/1.1\r\nHost: test\r\nConnection: close\r\n\r\n")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    if answer.starts_with("HTTP/1.1 200") { Ok(answer) } else { Err(Error::other(format!("answered {answer:?}"))) }
}

/// A daemon on a machine of a laboratory.
pub struct LabDaemon<'a> {
    pub lab: &'a Lab,
    pub node: String,
    flags: Vec<String>,
}

impl<'a> LabDaemon<'a> {
    /// Starts one and waits until it answers.
    pub fn start(lab: &'a Lab, node: &str, flags: &[&str]) -> Self {
        let daemon = Self::new(lab, node, flags);
        daemon.up(&[]);
        daemon
    }

    /// One that is not started yet.
    pub fn new(lab: &'a Lab, node: &str, flags: &[&str]) -> Self {
        LabDaemon { lab, node: node.to_owned(), flags: flags.iter().map(|flag| (*flag).to_owned()).collect() }
    }

    /// Takes the daemon that `neap init` has started for the one that is meant.
    pub fn find(&self) {
        let line = "for p in /proc/[0-9]*; do case \"$(tr '\\0' ' ' <$p/cmdline 2>/dev/null)\" in */[n]eap\\ up\\ *) \
                    echo ${p#/proc/} >/run/neap.pid;; esac; done; test -s /run/neap.pid";
        self.lab.run(&self.node, &["sh", "-c", line]);
    }

    /// Sends a signal to the daemon.
    pub fn signal(&self, signal: &str) {
        self.lab.run(&self.node, &["sh", "-c", &format!("kill -{signal} $(cat /run/neap.pid)")]);
    }

    /// Starts it again, with these variables in its environment, and waits until it answers.
    pub fn up(&self, env: &[&str]) {
        self.spawn(env);
        eventually(&format!("the daemon on {} answers:\n{}", self.node, self.log()), 30, || {
            self.answers().then_some(())
        });
    }

    /// Whether it answers for the cluster, and not only from memory.
    pub fn answers(&self) -> bool {
        let output = self.neap(&["service", "ls"]);
        output.status.success() && !String::from_utf8_lossy(&output.stderr).contains("no daemon leads")
    }

    /// Starts it without waiting.
    pub fn spawn(&self, env: &[&str]) {
        let line = format!(
            "env {} NEAP_CONFIG=/run/neap.toml {NEAP} up --data /run/neap --socket /run/neap.sock {} \
             >>/run/neap.log 2>&1 & echo $! >/run/neap.pid",
            env.join(" "),
            self.flags.join(" ")
        );
        self.lab.run(&self.node, &["sh", "-c", &line]);
    }

    /// Sends a signal to the daemon and waits until it is gone.
    pub fn end(&self, signal: &str) {
        let line = format!(
            "pid=$(cat /run/neap.pid) && kill -{signal} $pid && while [ -d /proc/$pid ] && \
             ! grep -q '^State:.Z' /proc/$pid/status; do sleep 0.02; done"
        );
        self.lab.run(&self.node, &["sh", "-c", &line]);
    }

    /// Its log.
    pub fn log(&self) -> String {
        let run = self.lab.folder().join(&self.node).join("run");
        let files = ["neap.log", "neap/neap.log", "neap/neap-agent.log"];
        files.iter().filter_map(|file| std::fs::read_to_string(run.join(file)).ok()).collect()
    }

    /// Sets a secret.
    pub fn secret(&self, name: &str, value: &str) {
        self.set("secret", name, value);
    }

    /// Sets a config.
    pub fn config(&self, name: &str, value: &str) {
        self.set("config", name, value);
    }

    fn set(&self, kind: &str, name: &str, value: &str) {
        let output = self.with_input(&[kind, "set", name], value);
        assert!(output.status.success(), "{output:?}");
    }

    /// The host names of the nodes on which a service's tasks run, one for each task.
    pub fn running_on(&self, service: &str) -> Vec<String> {
        let status = &self.json(&["service", "inspect", service])["status"];
        let name = |id: &str| status["nodes"][id].as_str().unwrap_or(id).to_owned();
        let live = self.live(service);
        let running = live.iter().filter(|task| task["state"] == "running" && task["stop"].is_null());
        let mut on: Vec<String> = running.map(|task| name(task["node"].as_str().unwrap())).collect();
        on.sort();
        on
    }

    /// The CLI against it, from outside.
    pub fn neap(&self, args: &[&str]) -> Output {
        self.command(args).output().unwrap()
    }

    /// The same, still to be run.
    pub fn command(&self, args: &[&str]) -> Command {
        let socket = format!("unix://{}", self.lab.folder().join(&self.node).join("run/neap.sock").display());
        let config = self.lab.folder().join("client.toml");
        let mut command = Command::new(NEAP);
        command.args(args).env("NEAP_HOST", socket).env("NEAP_CONFIG", config);
        command
    }

    /// The same with this on its standard input.
    pub fn with_input(&self, args: &[&str], text: &str) -> Output {
        let mut command = self.command(args);
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        std::io::Write::write_all(&mut child.stdin.take().unwrap(), text.as_bytes()).unwrap();
        child.wait_with_output().unwrap()
    }

    /// The same; panics unless it succeeds.
    pub fn ok(&self, args: &[&str]) -> String {
        let output = self.neap(args);
        let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        assert!(output.status.success(), "neap {args:?}: {out}{err}\n{}", self.log());
        out.into_owned()
    }

    /// The same; panics unless it fails; gives the error.
    pub fn fails(&self, args: &[&str]) -> String {
        let output = self.neap(args);
        assert!(!output.status.success(), "neap {args:?} should fail: {}", String::from_utf8_lossy(&output.stdout));
        String::from_utf8_lossy(&output.stderr).into_owned()
    }

    pub fn json(&self, args: &[&str]) -> serde_json::Value {
        serde_json::from_str(&self.ok(args)).unwrap()
    }

    /// A service's tasks, the newest last.
    pub fn tasks(&self, service: &str) -> Vec<serde_json::Value> {
        let output = self.neap(&["service", "ps", service, "--all", "--format", "json"]);
        serde_json::from_slice::<Vec<serde_json::Value>>(&output.stdout).unwrap_or_default()
    }

    /// Those that have not ended.
    pub fn live(&self, service: &str) -> Vec<serde_json::Value> {
        let ended = ["complete", "shutdown", "failed", "rejected", "lost"];
        let mut tasks = self.tasks(service);
        tasks.retain(|task| !ended.contains(&task["state"].as_str().unwrap()));
        tasks
    }

    /// Waits until a task of the service satisfies `is`.
    pub fn task_that(&self, service: &str, what: &str, is: impl Fn(&serde_json::Value) -> bool) -> serde_json::Value {
        let found = || self.tasks(service).into_iter().find(|task| is(task));
        let until = std::time::Instant::now() + std::time::Duration::from_secs(40);
        loop {
            if let Some(task) = found() {
                return task;
            }
            assert!(
                std::time::Instant::now() < until,
                "no task that {what}:\n{}\n{}",
                self.ok(&["service", "ps", service, "--all"]),
                self.log()
            );
            std::thread::sleep(std::time::Duration::from_millis(50));
        }
    }
}

impl Drop for LabDaemon<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let log = self.log();
            let lines: Vec<&str> = log.lines().collect();
            eprintln!("--- the daemon on {} ---\n{}", self.node, lines[lines.len().saturating_sub(80)..].join("\n"));
        }
    }
}

/// Where everything of `neap` is on a machine.
pub const PLACE: [&str; 4] = ["--data", "/run/neap", "--socket", "/run/neap.sock"];

/// Runs `neap` on a machine, as its owner would.
pub fn neap(lab: &Lab, node: &str, args: &[&str]) -> String {
    lab.run(node, &[&["env", "NEAP_CONFIG=/run/neap.toml", NEAP], args].concat())
}

/// Lets the other machines of a Swarm join the daemon on n1 with an agent each.
pub fn join_agents(daemon: &LabDaemon) {
    let token = daemon.ok(&["join-token", "worker", "--quiet"]);
    let address = format!("{}:8377", daemon.lab.address("n1"));
    for node in 2..=daemon.lab.machines {
        let join = ["join", &address, "--token", token.trim(), "--data", "/run/neap"];
        daemon.lab.run(&format!("n{node}"), &[&["env", "NEAP_LOG=warn", NEAP], &join[..]].concat());
    }
}

/// Makes a cluster of all machines: n1 its manager, the others workers.
pub fn cluster(lab: &Lab) -> LabDaemon<'_> {
    let said = neap(lab, "n1", &[&["init"], &PLACE[..]].concat());
    let line = said.lines().find(|line| line.trim().starts_with("neap join ")).unwrap_or_else(|| panic!("{said}"));
    let words: Vec<&str> = line.split_whitespace().skip(1).collect();
    for node in 2..=lab.machines {
        let said = neap(lab, &format!("n{node}"), &[&words[..], &PLACE[..]].concat());
        assert!(said.contains("its agent is connected to"), "{said}");
    }
    let daemon = LabDaemon::new(lab, "n1", &[]);
    all_ready(&daemon, lab.machines as usize);
    daemon
}

/// The machines, and whether the agent of each is connected.
pub fn agents(daemon: &LabDaemon) -> Vec<(String, bool)> {
    // A daemon that is just being started says nothing.
    let output = daemon.neap(&["node", "ls", "--format", "json"]);
    let nodes: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap_or(serde_json::json!([]));
    let agent = |node: &serde_json::Value| {
        (node["hostname"].as_str().unwrap().to_owned(), node["agent"]["connected"] == true && node["state"] == "ready")
    };
    let mut all: Vec<_> = nodes.as_array().unwrap().iter().map(agent).collect();
    all.sort();
    all
}

/// Waits until all are.
pub fn all_ready(daemon: &LabDaemon, count: usize) {
    eventually("all agents are connected", 20, || {
        let agents = agents(daemon);
        (agents.len() == count && agents.iter().all(|(_, connected)| *connected)).then_some(())
    });
}
