//! A Swarm on which others do very much: hundreds of events a second, and none of them ours to react to.

use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

#[path = "support/lab.rs"]
mod lab;
#[path = "support/mod.rs"]
mod support;

use lab::{Lab, LabDaemon, Load};
use support::eventually;

/// How long it lasts.
const LASTS: Duration = Duration::from_secs(10);

// One connection to a Docker Engine that is kept.
struct Wire(BufReader<UnixStream>);

impl Wire {
    fn new(socket: &Path) -> Self {
        Wire(BufReader::new(UnixStream::connect(socket).unwrap()))
    }

    fn ask(&mut self, method: &str, path: &str, body: &str) -> (u16, String) {
        let head = format!(
            "{method} {path} HTTP/1.1\r\nHost: docker\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
            body.len()
        );
        self.0.get_mut().write_all(head.as_bytes()).unwrap();
        let (mut status, mut length, mut chunked) = (0, 0, false);
        loop {
            let mut line = String::new();
            self.0.read_line(&mut line).unwrap();
            let line = line.trim_end().to_ascii_lowercase();
            if let Some(rest) = line.strip_prefix("http/1.1 ") {
                status = rest.split(' ').next().unwrap().parse().unwrap();
            } else if let Some(rest) = line.strip_prefix("content-length: ") {
                length = rest.parse().unwrap();
            } else if line == "transfer-encoding: chunked" {
                chunked = true;
            } else if line.is_empty() {
                break;
            }
        }
        let mut body = Vec::new();
        while chunked {
            let mut size = String::new();
            self.0.read_line(&mut size).unwrap();
            let size = usize::from_str_radix(size.trim(), 16).unwrap();
            let mut part = vec![0; size + 2];
            self.0.read_exact(&mut part).unwrap();
            body.extend_from_slice(&part[..size]);
            chunked = size > 0;
        }
        if body.is_empty() {
            body = vec![0; length];
            self.0.read_exact(&mut body).unwrap();
        }
        (status, String::from_utf8(body).unwrap())
    }
}

// Commands are made in a container of ours: an event each that says nothing of the container itself.
fn execs(socket: &Path, container: &str, events: &AtomicU32) {
    let (mut wire, until) = (Wire::new(socket), Instant::now() + LASTS);
    while Instant::now() < until {
        let (status, answer) = wire.ask("POST", &format!("/containers/{container}/exec"), r#"{"Cmd":["true"]}"#);
        assert_eq!(status, 201, "{answer}");
        events.fetch_add(1, Ordering::SeqCst);
    }
}

// Somebody else's service changes its label all the time.
fn updates(socket: &Path, service: &str, events: &AtomicU32) {
    let (mut wire, until) = (Wire::new(socket), Instant::now() + LASTS);
    for number in 0.. {
        if Instant::now() >= until {
            return;
        }
        let (_, answer) = wire.ask("GET", &format!("/services/{service}"), "");
        let mut known: serde_json::Value = serde_json::from_str(&answer).unwrap();
        known["Spec"]["Labels"]["number"] = number.to_string().into();
        let path = format!("/services/{service}/update?version={}", known["Version"]["Index"]);
        let (status, answer) = wire.ask("POST", &path, &known["Spec"].to_string());
        // Its tasks change it as well, now and then.
        assert!(status == 200 || answer.contains("out of sequence"), "{status} {answer}");
        events.fetch_add(1, Ordering::SeqCst);
    }
}

// Configs of somebody else come and go.
fn configs(socket: &Path, name: &str, events: &AtomicU32) {
    let (mut wire, until) = (Wire::new(socket), Instant::now() + LASTS);
    while Instant::now() < until {
        let (status, answer) = wire.ask("POST", "/configs/create", &format!(r#"{{"Name":"{name}","Data":"eA=="}}"#));
        assert_eq!(status, 201, "{answer}");
        let (status, answer) = wire.ask("DELETE", &format!("/configs/{name}"), "");
        assert_eq!(status, 204, "{answer}");
        events.fetch_add(2, Ordering::SeqCst);
    }
}

// Seconds on a core, and memory in MiB.
fn used(lab: &Lab, node: &str) -> (f64, f64) {
    let line = "pid=$(cat /run/neap.pid); cut -d' ' -f14,15 /proc/$pid/stat; grep VmRSS /proc/$pid/status";
    let told = lab.run(node, &["sh", "-c", line]);
    let numbers: Vec<f64> = told.split_whitespace().filter_map(|word| word.parse().ok()).collect();
    ((numbers[0] + numbers[1]) / 100.0, numbers[2] / 1024.0)
}

#[test]
fn much_goes_on_beside() {
    if lab::missing().is_some() {
        return;
    }
    let lab = Lab::up(3, 1);
    let daemon = LabDaemon::start(&lab, "n1", &[]);
    daemon.ok(&["service", "create", "--name", "web", "--replicas", "3", "-p", "8080:8080", &lab.image("demo:1")]);
    lab.docker("n1", &["service", "create", "--detach", "--name", "theirs", "--replicas", "0", &lab.image("demo:2")]);
    let load = Load::start(format!("http://{}:8080/", lab.address("n1")));
    let socket = |node: &str| -> PathBuf { lab.folder().join(node).join("docker.sock") };
    let container = lab.containers("n1", "web").into_iter().next().expect("one of three on each");
    let events = AtomicU32::new(0);
    let (cpu, _) = used(&lab, "n1");
    let begun = Instant::now();
    std::thread::scope(|scope| {
        scope.spawn(|| execs(&socket("n1"), &container, &events));
        scope.spawn(|| execs(&socket("n1"), &container, &events));
        scope.spawn(|| updates(&socket("n1"), "theirs", &events));
        scope.spawn(|| configs(&socket("n1"), "theirs", &events));
        // In the midst of it, what is ours goes its way.
        daemon.ok(&["service", "scale", "web=6"]);
        println!("three more replicas after {:.1} s", begun.elapsed().as_secs_f64());
        let victim = lab.containers("n2", "web").into_iter().next().unwrap();
        daemon.ok(&["node", "update", "n3", "--availability", "drain"]);
        assert!(lab.containers("n2", "web").contains(&victim), "what need not move stays");
    });
    let seconds = begun.elapsed().as_secs_f64();
    let (now, memory) = used(&lab, "n1");
    let rate = f64::from(events.load(Ordering::SeqCst)) / LASTS.as_secs_f64();
    println!("{rate:.0} events a second; {:.1}% of a core, {memory:.0} MiB", (now - cpu) / seconds * 100.0);
    assert!(rate > 500.0, "{rate} events a second");
    load.end();
    assert_eq!(daemon.running_on("web").len(), 6);
    eventually("nothing is left over", 30, || (lab.all_containers("web") == 6).then_some(()));
    assert!(!daemon.log().contains("ERROR"), "{}", daemon.log());
}
