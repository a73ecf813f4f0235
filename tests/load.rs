//! 100 rollouts, scalings and drains under load, from clients that never retry: no request fails. And what happens to
//! traffic when daemon, balancer, keeper or backend die.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Ipv4Addr, TcpStream};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

#[path = "support/mod.rs"]
mod support;

use support::{Daemon, NEAP, eventually, free_port, signal};

// One after the other: each takes all that two cores give, and what two of them do to each other is nobody's fault.
static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());

/// Clients that ask as fast as they are answered and take every failure down.
struct Load {
    _turn: MutexGuard<'static, ()>,
    stop: Arc<AtomicBool>,
    done: Arc<AtomicU64>,
    threads: Vec<std::thread::JoinHandle<Vec<String>>>,
}

impl Load {
    fn start(port: u16, fresh: usize, kept: usize) -> Self {
        let turn = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
        let (stop, done) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let client = |keep: bool| {
            let (stop, done) = (stop.clone(), done.clone());
            std::thread::spawn(move || {
                let mut failures = Vec::new();
                let mut connection = None;
                while !stop.load(Ordering::SeqCst) {
                    match ask(port, &mut connection, keep) {
                        Ok(()) => {
                            done.fetch_add(1, Ordering::SeqCst);
                        }
                        Err(error) => {
                            failures.push(format!("{}: {error}", if keep { "kept" } else { "fresh" }));
                            connection = None;
                        }
                    }
                    // Loopback has only so many ports for fresh connections.
                    if !keep {
                        std::thread::sleep(Duration::from_millis(2));
                    }
                }
                failures
            })
        };
        let threads = (0..fresh).map(|_| client(false)).chain((0..kept).map(|_| client(true))).collect();
        Load { _turn: turn, stop, done, threads }
    }

    fn end(self) -> (u64, Vec<String>) {
        self.stop.store(true, Ordering::SeqCst);
        let failures = self.threads.into_iter().flat_map(|thread| thread.join().unwrap()).collect();
        (self.done.load(Ordering::SeqCst), failures)
    }
}

fn ask(port: u16, connection: &mut Option<BufReader<TcpStream>>, keep: bool) -> std::io::Result<()> {
    if connection.is_none() {
        let stream = TcpStream::connect((Ipv4Addr::LOCALHOST, port))?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(Duration::from_secs(10)))?;
        *connection = Some(BufReader::new(stream));
    }
    let reader = connection.as_mut().unwrap();
    let how = if keep { "keep-alive" } else { "close" };
    reader.get_mut().write_all(format!("GET / HTTP/1.1\r\nHost: test\r\nConnection: {how}\r\n\r\n").as_bytes())?;
    let (mut length, mut close, mut line) = (0, false, String::new());
    reader.read_line(&mut line)?;
    if !line.starts_with("HTTP/1.1 200") {
        return Err(std::io::Error::other(format!("answer {line:?}")));
    }
    loop {
        line.clear();
        reader.read_line(&mut line)?;
        let lower = line.trim().to_ascii_lowercase();
        if lower.is_empty() {
            break;
        }
        if let Some(value) = lower.strip_prefix("content-length:") {
            length = value.trim().parse().map_err(std::io::Error::other)?;
        }
        close |= lower == "connection: close";
    }
    let mut body = vec![0; length];
    reader.read_exact(&mut body)?;
    if close || !keep {
        *connection = None;
    }
    Ok(())
}

fn web(daemon: &Daemon, port: u16, replicas: u32) {
    web_by(daemon, &["--publish", &port.to_string()], replicas);
}

fn routed(daemon: &Daemon, port: u16, replicas: u32) {
    web_by(daemon, &["--expose", "8080", "--route", &format!("*:{port}")], replicas);
}

fn web_by(daemon: &Daemon, way: &[&str], replicas: u32) {
    let replicas = replicas.to_string();
    let create = ["service", "create", "--name", "web", "--replicas", &replicas];
    let how = [
        "--health-http",
        "/healthz",
        "--health-interval",
        "200ms",
        // While a host is that busy, a program may take a while until it listens.
        "--health-start-period",
        "20s",
        "--stop-drain",
        "100ms",
        "--update-monitor",
        "0s",
        "--update-parallelism",
        "2",
        "--",
        NEAP,
        "demo",
    ];
    daemon.ok(&[&create[..], way, &how].concat());
}

#[test]
fn a_hundred_changes_fail_no_request() {
    change(100, web);
}

#[test]
fn changes_fail_no_request_of_a_route() {
    change(40, routed);
}

fn change(times: u32, web: impl Fn(&Daemon, u16, u32)) {
    let daemon = Daemon::start();
    let port = free_port();
    web(&daemon, port, 3);
    let node = daemon.json(&["node", "ls", "--format", "json"])[0]["id"].as_str().unwrap().to_owned();
    let load = Load::start(port, 2, 4);
    for number in 0..times {
        match number % 10 {
            0..=5 => {
                let answer = format!("VERSION=v{number}");
                daemon.ok(&["service", "update", "web", "--env-add", &answer]);
            }
            6..=8 => {
                let scale = format!("web={}", 2 + number % 4);
                daemon.ok(&["service", "scale", &scale]);
            }
            _ => {
                // One node alone: what runs stays until it could run elsewhere.
                daemon.ok(&["node", "update", &node, "--availability", "drain", "--detach"]);
                std::thread::sleep(Duration::from_millis(200));
                daemon.ok(&["node", "update", &node, "--availability", "active"]);
            }
        }
    }
    let (done, failures) = load.end();
    assert!(failures.is_empty(), "{} of {done} failed: {:?}", failures.len(), &failures[..failures.len().min(5)]);
    assert!(done > u64::from(times) * 100, "only {done} requests: that is no load");
}

#[test]
fn a_daemon_that_dies_or_is_upgraded_costs_no_connection() {
    let mut daemon = Daemon::start();
    let port = free_port();
    web(&daemon, port, 2);
    let load = Load::start(port, 2, 2);
    // One connection that stays open over everything.
    let mut long = Some(BufReader::new(TcpStream::connect((Ipv4Addr::LOCALHOST, port)).unwrap()));
    ask(port, &mut long, true).unwrap();
    let local = long.as_ref().unwrap().get_ref().local_addr().unwrap();
    let balancer = balancer_pid(&daemon);
    daemon.kill();
    std::thread::sleep(Duration::from_millis(300));
    ask(port, &mut long, true).unwrap();
    daemon.up();
    assert_eq!(balancer_pid(&daemon), balancer, "the same build takes its balancer back");
    // Another build: the same program from another file.
    daemon.stop();
    let copy = daemon.folder.path().join("neap-next");
    std::fs::copy(NEAP, &copy).unwrap();
    daemon.program = copy;
    daemon.up();
    let next =
        eventually("a balancer of the new build", 10, || Some(balancer_pid(&daemon)).filter(|pid| *pid != balancer));
    assert!(std::path::Path::new(&format!("/proc/{balancer}")).exists(), "the old one serves its last connection");
    ask(port, &mut long, true).unwrap();
    assert_eq!(long.as_ref().unwrap().get_ref().local_addr().unwrap(), local, "the connection was never broken");
    // Changes reach the new one.
    daemon.ok(&["service", "scale", "web=4"]);
    let (done, failures) = load.end();
    assert!(failures.is_empty(), "{} of {done} failed: {:?}", failures.len(), &failures[..failures.len().min(5)]);
    drop(long);
    eventually("the old balancer ends with its last connection", 10, || {
        (!std::path::Path::new(&format!("/proc/{balancer}")).exists()).then_some(())
    });
    assert_ne!(next, balancer);
}

#[test]
fn a_daemon_that_is_upgraded_costs_no_request_of_a_route() {
    let mut daemon = Daemon::start();
    let port = free_port();
    routed(&daemon, port, 2);
    let load = Load::start(port, 2, 4);
    let balancer = balancer_pid(&daemon);
    daemon.kill();
    std::thread::sleep(Duration::from_millis(300));
    daemon.up();
    assert_eq!(balancer_pid(&daemon), balancer, "the same build takes its balancer back");
    daemon.stop();
    let copy = daemon.folder.path().join("neap-next");
    std::fs::copy(NEAP, &copy).unwrap();
    daemon.program = copy;
    daemon.up();
    eventually("a balancer of the new build", 10, || Some(balancer_pid(&daemon)).filter(|pid| *pid != balancer));
    eventually("the old one ends: every answer of its said that it is the last", 10, || {
        (!std::path::Path::new(&format!("/proc/{balancer}")).exists()).then_some(())
    });
    daemon.ok(&["service", "scale", "web=4"]);
    let (done, failures) = load.end();
    assert!(failures.is_empty(), "{} of {done} failed: {:?}", failures.len(), &failures[..failures.len().min(5)]);
}

fn balancer_pid(daemon: &Daemon) -> u32 {
    let wanted = format!("balancer {}", daemon.data().display());
    eventually("the balancer runs", 10, || {
        let mut found: Vec<u32> =
            support::processes().into_iter().filter(|(_, line)| line.contains(&wanted)).map(|(pid, _)| pid).collect();
        found.sort_unstable();
        // The youngest: an older one may be serving its last connections.
        found.pop()
    })
}

#[test]
fn a_balancer_that_is_killed_is_back_at_once() {
    let daemon = Daemon::start();
    let port = free_port();
    web(&daemon, port, 2);
    let old = balancer_pid(&daemon);
    signal(old, "KILL");
    // Its open connections are lost with it, as those of any process; new ones are served as soon as it is seen.
    eventually("the port answers again", 10, || support::get(port, "/").ok().filter(|(status, _)| *status == 200));
    assert_ne!(balancer_pid(&daemon), old);
}

#[test]
fn a_killed_replica_is_replaced_and_others_serve() {
    let daemon = Daemon::start();
    let port = free_port();
    web(&daemon, port, 3);
    let task = daemon.live_tasks("web")[0].clone();
    let victim = task["pid"].as_u64().unwrap();
    signal(u32::try_from(victim).unwrap(), "KILL");
    // Between the signal and the end of its sockets the kernel still takes connections for it.
    let address = task["ports"]["http"].as_str().unwrap();
    eventually("its port is closed", 5, || TcpStream::connect(address).is_err().then_some(()));
    for _ in 0..50 {
        // A backend that refuses is passed over: the connection has not begun yet.
        assert_eq!(support::get(port, "/").unwrap().0, 200);
    }
    // Told by its keeper, a moment after its sockets are closed.
    let failed = eventually("its end is told", 10, || {
        let ended = daemon.json(&["service", "ps", "-a", "web", "--format", "json"]);
        ended.as_array().unwrap().iter().find(|task| task["state"] == "failed").cloned()
    });
    assert_eq!(failed["exit"]["signal"], 9);
    daemon.ok(&["service", "wait", "web"]);
}

#[test]
fn a_killed_keeper_takes_its_replica_along_and_a_new_one_comes() {
    let daemon = Daemon::start();
    let port = free_port();
    web(&daemon, port, 2);
    let wanted = format!("keeper {}", daemon.data().display());
    let (keeper, _) = support::processes().into_iter().find(|(_, line)| line.contains(&wanted)).unwrap();
    let replicas: Vec<u64> = daemon.live_tasks("web").iter().map(|task| task["pid"].as_u64().unwrap()).collect();
    signal(keeper, "KILL");
    // Its exit code is unknown and said to be; the replica never runs without a keeper.
    let lost = eventually("the loss is seen", 10, || {
        let tasks = daemon.json(&["service", "ps", "-a", "web", "--format", "json"]);
        let is_over = |task: &&serde_json::Value| task["state"] == "lost" || task["state"] == "failed";
        tasks.as_array().unwrap().iter().find(is_over).cloned()
    });
    assert_eq!(lost["exit"], "unknown");
    // On a busy machine its check may be the first to notice.
    let reason = lost["reason"].as_str().unwrap();
    match lost["state"] == "lost" {
        true => assert!(reason.contains("nobody saw it end"), "{reason}"),
        false => assert!(reason.contains("GET /healthz"), "{reason}"),
    }
    daemon.ok(&["service", "wait", "web"]);
    let now: Vec<u64> = daemon.live_tasks("web").iter().map(|task| task["pid"].as_u64().unwrap()).collect();
    assert_eq!(now.len(), 2);
    let gone = replicas.iter().filter(|pid| !now.contains(pid)).collect::<Vec<_>>();
    assert_eq!(gone.len(), 1);
    assert!(support::is_dead(*gone[0]));
}

#[test]
fn what_a_replica_started_in_another_session_ends_with_a_killed_keeper() {
    let daemon = Daemon::start();
    let wanted = format!("sleep 1{}", free_port());
    let script = format!("setsid {wanted} & exec sleep 1000");
    daemon.ok(&["service", "create", "--name", "leaves", "--", "/bin/sh", "-c", &script]);
    let runs = || support::processes().into_iter().find(|(_, line)| line.trim() == wanted).map(|(pid, _)| pid);
    let left = eventually("it runs", 10, runs);
    let keeper = format!("keeper {}", daemon.data().display());
    let (keeper, _) = support::processes().into_iter().find(|(_, line)| line.contains(&keeper)).unwrap();
    signal(keeper, "KILL");
    eventually("it is ended", 10, || support::is_dead(u64::from(left)).then_some(()));
    daemon.ok(&["service", "wait", "leaves"]);
}

#[test]
fn a_copy_of_a_data_folder_leaves_the_originals_replicas_alone() {
    let mut daemon = Daemon::start();
    let script = "setsid sleep 1001 & exec sleep 1000";
    let value = daemon.folder.path().join("pin");
    std::fs::write(&value, "4321").unwrap();
    daemon.ok(&["secret", "set", "pin", value.to_str().unwrap()]);
    #[rustfmt::skip]
    daemon.ok(&[
        "service", "create", "--name", "shop", "--replicas", "2", "--secret", "pin", "--", "/bin/sh", "-c", script,
    ]);
    let secrets: Vec<PathBuf> = std::fs::read_dir(daemon.data().join("tasks"))
        .unwrap()
        .flatten()
        .map(|task| {
            let file: serde_json::Value =
                serde_json::from_slice(&std::fs::read(task.path().join("task.json")).unwrap()).unwrap();
            PathBuf::from(file["secrets"].as_str().unwrap())
        })
        .collect();
    assert!(secrets.len() == 2 && secrets.iter().all(|folder| folder.join("pin").exists()), "{secrets:?}");
    let pids = |daemon: &Daemon| {
        let tasks = daemon.live_tasks("shop").into_iter();
        tasks.map(|task| task["pid"].as_u64().unwrap()).collect::<std::collections::BTreeSet<u64>>()
    };
    let before = pids(&daemon);
    // As somebody tries out a backup while the original goes on.
    daemon.kill();
    let mut copy = Daemon::new();
    let copied = std::process::Command::new("cp").arg("-a").args([daemon.data(), copy.data()]).status().unwrap();
    assert!(copied.success());
    daemon.up();
    copy.up();
    copy.ok(&["service", "wait", "shop"]);
    assert!(pids(&copy).is_disjoint(&before));
    copy.ok(&["service", "rm", "shop"]);
    eventually("nothing of the copy's is left", 10, || {
        std::fs::read_dir(copy.data().join("tasks")).unwrap().next().is_none().then_some(())
    });
    assert!(secrets.iter().all(|folder| folder.join("pin").exists()), "{secrets:?}");
    assert_eq!(pids(&daemon), before);
    assert!(before.iter().all(|pid| !support::is_dead(*pid)));
    assert!(daemon.log().lines().all(|line| !line.contains("task.ended")), "{}", daemon.log());
}
