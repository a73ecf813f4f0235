//! Replicas from the command to all of them running, and a rolling update, beside Docker Swarm itself on the same three
//! machines in the same run: `cargo bench --bench swarm`; of it only what is named: `-- create`, `update`, `lost`, `rest`;
//! `-- rest 1000` for so many services at rest. Needs what tests/lab needs.

use std::time::{Duration, Instant};

#[path = "../tests/support/lab.rs"]
mod lab;
#[path = "../tests/support/proxy.rs"]
mod proxy;
#[path = "../tests/support/mod.rs"]
mod support;

use lab::{Lab, LabDaemon, join_agents};
use proxy::Proxy;

/// How often a round is made, by either in turn: a machine that makes and removes hundreds of network namespaces becomes
/// slower, and whoever went second would pay for it.
const ROUNDS: usize = 6;

fn main() {
    if lab::missing().is_some() {
        return;
    }
    let lab = Lab::up(3, 1);
    let daemon = LabDaemon::start(&lab, "n1", &["--log", "warn"]);
    // As its owner has it: somebody on every host.
    join_agents(&daemon);
    let asked: Vec<String> = std::env::args().skip(1).filter(|arg| !arg.starts_with("--")).collect();
    let wants = |what: &str| asked.is_empty() || asked.iter().any(|arg| arg == what);
    println!("{:<46} {:>17} {:>17} {:>6}", "medians of rounds in turn (best)", "Swarm", "Neap", "ratio");
    if wants("create") {
        for (replicas, rounds) in [(30, ROUNDS), (100, ROUNDS / 2)] {
            let times = in_turn(rounds, || create_by_swarm(&lab, replicas), || create_by_neap(&lab, &daemon, replicas));
            row(&format!("{replicas} replicas, command to all running"), times);
        }
    }
    if wants("update") {
        for replicas in [30, 100] {
            let neap = || update_by_neap(&lab, &daemon, replicas);
            let times = in_turn(ROUNDS / 2, || update_by_swarm(&lab, replicas), neap);
            row(&format!("rolling update of {replicas}, 2 at once, start-first"), times);
        }
    }
    if wants("lost") {
        let times = in_turn(ROUNDS / 3, || lost_by_swarm(&lab, 6), || lost_by_neap(&lab, &daemon, 6));
        row("a worker's link cut, 6 replicas on the others", times);
    }
    if wants("rest") {
        at_rest(&lab, &daemon, asked.iter().find_map(|arg| arg.parse().ok()).unwrap_or(100));
    }
}

// What Swarm took and what Neap took, each round begun by the other one.
fn in_turn(
    rounds: usize,
    mut swarm: impl FnMut() -> Duration,
    mut neap: impl FnMut() -> Duration,
) -> [Vec<Duration>; 2] {
    let mut times = [Vec::new(), Vec::new()];
    for round in 0..rounds {
        for who in [round % 2, 1 - round % 2] {
            times[who].push(if who == 0 { swarm() } else { neap() });
        }
    }
    times.each_mut().map(|times| {
        times.sort();
        std::mem::take(times)
    })
}

fn row(what: &str, times: [Vec<Duration>; 2]) {
    let middle = |times: &[Duration]| {
        let (low, high) = (times[(times.len() - 1) / 2], times[times.len() / 2]);
        (low + high).as_secs_f64() / 2.0
    };
    let [swarm, neap] = times.map(|times| (middle(&times), times[0].as_secs_f64()));
    let shown = |(median, best): (f64, f64)| format!("{median:.2} s ({best:.2})");
    println!("{what:<46} {:>17} {:>17} {:>6.2}", shown(swarm), shown(neap), neap.0 / swarm.0);
}

// Tasks that the Swarm has as running with this image: asked in the same way for both.
fn running(lab: &Lab, image: &str) -> usize {
    tasks(lab, image).len()
}

fn tasks(lab: &Lab, image: &str) -> Vec<serde_json::Value> {
    let socket = lab.folder().join("n1/docker.sock");
    let url = "http://docker/v1.41/tasks?filters=%7B%22desired-state%22%3A%5B%22running%22%5D%7D";
    let output =
        std::process::Command::new("curl").args(["-s", "--unix-socket"]).arg(socket).arg(url).output().unwrap();
    let mut tasks: Vec<serde_json::Value> = serde_json::from_slice(&output.stdout).unwrap();
    tasks.retain(|task| task["Status"]["State"] == "running" && task["Spec"]["ContainerSpec"]["Image"] == image);
    tasks
}

fn wait_for(lab: &Lab, image: &str, replicas: usize) {
    let until = Instant::now() + Duration::from_secs(180).max(Duration::from_millis(600) * replicas as u32);
    while running(lab, image) != replicas {
        assert!(Instant::now() < until, "not {replicas} of {image}: {}", running(lab, image));
        std::thread::sleep(Duration::from_millis(50));
    }
}

fn clear(lab: &Lab) {
    for node in ["n1", "n2", "n3"] {
        let until = Instant::now() + Duration::from_secs(600);
        while !lab.docker(node, &["ps", "-aq"]).is_empty() {
            assert!(Instant::now() < until, "containers are left on {node}");
            std::thread::sleep(Duration::from_millis(200));
        }
    }
}

fn swarm_service(lab: &Lab, replicas: usize) {
    let count = replicas.to_string();
    #[rustfmt::skip]
    lab.docker("n1", &[
        "service", "create", "--detach", "--no-resolve-image", "--name", "theirs", "--replicas", &count,
        "--publish", "mode=host,target=8080", "--update-order", "start-first", "--update-parallelism", "2",
        "--update-monitor", "1ms", "--stop-grace-period", "2s", &lab.image("demo:1"),
    ]);
}

fn create_by_swarm(lab: &Lab, replicas: usize) -> Duration {
    let begun = Instant::now();
    swarm_service(lab, replicas);
    wait_for(lab, &lab.image("demo:1"), replicas);
    let took = begun.elapsed();
    lab.docker("n1", &["service", "rm", "theirs"]);
    clear(lab);
    took
}

fn neap_service(lab: &Lab, daemon: &LabDaemon, replicas: usize) {
    let count = replicas.to_string();
    #[rustfmt::skip]
    daemon.ok(&[
        "service", "create", "--detach", "--name", "ours", "--replicas", &count, "--publish", "8080:8080",
        "--update-order", "start-first", "--update-parallelism", "2", "--update-monitor", "0s", "--stop-drain", "0s",
        "--stop-grace-period", "2s", &lab.image("demo:1"),
    ]);
}

fn create_by_neap(lab: &Lab, daemon: &LabDaemon, replicas: usize) -> Duration {
    let begun = Instant::now();
    neap_service(lab, daemon, replicas);
    wait_for(lab, &lab.image("demo:1"), replicas);
    let took = begun.elapsed();
    daemon.ok(&["service", "rm", "ours"]);
    clear(lab);
    took
}

fn update_by_swarm(lab: &Lab, replicas: usize) -> Duration {
    swarm_service(lab, replicas);
    wait_for(lab, &lab.image("demo:1"), replicas);
    let begun = Instant::now();
    lab.docker(
        "n1",
        &["service", "update", "--detach", "--no-resolve-image", "--image", &lab.image("demo:2"), "theirs"],
    );
    wait_for(lab, &lab.image("demo:2"), replicas);
    let took = begun.elapsed();
    lab.docker("n1", &["service", "rm", "theirs"]);
    clear(lab);
    took
}

fn update_by_neap(lab: &Lab, daemon: &LabDaemon, replicas: usize) -> Duration {
    neap_service(lab, daemon, replicas);
    wait_for(lab, &lab.image("demo:1"), replicas);
    let begun = Instant::now();
    daemon.ok(&["service", "update", "ours", "--detach", "--image", &lab.image("demo:2")]);
    wait_for(lab, &lab.image("demo:2"), replicas);
    let took = begun.elapsed();
    daemon.ok(&["service", "rm", "ours"]);
    clear(lab);
    took
}

// From the cut to as many as before on the other hosts.
fn lose(lab: &Lab, image: &str, replicas: usize) -> Duration {
    let lost = lab.docker("n1", &["node", "inspect", "-f", "{{.ID}}", "n3"]);
    lab.ok(&["cut", "n3"]);
    let begun = Instant::now();
    while tasks(lab, image).iter().filter(|task| task["NodeID"] != lost.as_str()).count() < replicas {
        assert!(begun.elapsed() < Duration::from_secs(120), "not {replicas} on the others");
        std::thread::sleep(Duration::from_millis(50));
    }
    let took = begun.elapsed();
    lab.ok(&["mend", "n3"]);
    let until = Instant::now() + Duration::from_secs(120);
    while lab.docker("n1", &["node", "inspect", "-f", "{{.Status.State}}", "n3"]) != "ready" {
        assert!(Instant::now() < until, "n3 does not come back");
        std::thread::sleep(Duration::from_millis(200));
    }
    took
}

fn lost_by_swarm(lab: &Lab, replicas: usize) -> Duration {
    swarm_service(lab, replicas);
    wait_for(lab, &lab.image("demo:1"), replicas);
    let took = lose(lab, &lab.image("demo:1"), replicas);
    lab.docker("n1", &["service", "rm", "theirs"]);
    clear(lab);
    took
}

fn lost_by_neap(lab: &Lab, daemon: &LabDaemon, replicas: usize) -> Duration {
    neap_service(lab, daemon, replicas);
    wait_for(lab, &lab.image("demo:1"), replicas);
    let took = lose(lab, &lab.image("demo:1"), replicas);
    daemon.ok(&["service", "rm", "ours"]);
    clear(lab);
    took
}

// What a daemon with many services costs while nothing happens.
fn at_rest(lab: &Lab, daemon: &LabDaemon, replicas: usize) {
    let proxy = Proxy::start(&lab.folder().join("n1/run/count.sock"), lab.folder().join("n1/docker.sock"));
    daemon.end("TERM");
    daemon.up(&["DOCKER_HOST=unix:///run/count.sock"]);
    let pid = std::fs::read_to_string(lab.folder().join("n1/run/neap.pid")).unwrap();
    let line = format!("cat /proc/{0}/stat; grep -E 'VmRSS|RssAnon' /proc/{0}/status", pid.trim());
    let look = || lab.run("n1", &["sh", "-c", &line]);
    let ticks = |text: &str| -> u64 {
        let fields: Vec<&str> = text.rsplit(')').next().unwrap().split_whitespace().collect();
        fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap()
    };
    let (image, count) = (lab.image("busybox"), replicas.to_string());
    daemon.ok(&["service", "create", "--detach", "--name", "ours", "--replicas", &count, &image, "sleep", "100000"]);
    wait_for(lab, &image, replicas);
    std::thread::sleep(Duration::from_secs(15));
    let before = ticks(&look());
    proxy.taken();
    std::thread::sleep(Duration::from_secs(60));
    let made = proxy.taken();
    let after = look();
    let memory: Vec<&str> = after.lines().filter(|line| line.contains("Rss") || line.contains("RSS")).collect();
    println!(
        "at rest with {replicas} replicas, each a Swarm service: {:.2}% of a core, {}",
        (ticks(&after) - before) as f64 / 60.0,
        memory.join(", ")
    );
    println!("requests to Docker in 60 s: {}, {made:?}", made.values().sum::<usize>());
    daemon.ok(&["service", "rm", "ours"]);
    clear(lab);
}
