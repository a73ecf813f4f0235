//! Replicas from the command to all of them running, and a rolling update, beside Docker Swarm itself on the same three
//! machines in the same run: `cargo bench --bench swarm`; of it only what is named: `-- create`, `update`, `lost`, `rest`,
//! `requests`; `-- rest 1000` for so many services at rest. Needs what tests/lab needs.

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
    let count = asked.iter().find_map(|arg| arg.parse().ok());
    if wants("requests") {
        requests(&lab, &daemon, count.unwrap_or(30));
    }
    if wants("rest") {
        at_rest(&lab, &daemon, count.unwrap_or(100));
    }
}

/// What a round took: time, and seconds of processors in the whole machine, in the three dockerd, and in Neap.
struct Took {
    time: f64,
    all: f64,
    docker: f64,
    neap: f64,
}

type Figure = (&'static str, fn(&Took) -> f64);

const FIGURES: [Figure; 4] = [
    ("", |took| took.time),
    ("  seconds of processors: the whole machine", |took| took.all),
    ("  of them: three dockerd", |took| took.docker),
    ("  of them: Neap's daemon and agents", |took| took.neap),
];

// Seconds of processors so far: the whole machine, the three dockerd, Neap.
fn spent() -> [f64; 3] {
    let number = |field: &str| field.parse::<f64>().unwrap_or_default() / 100.0;
    let whole = std::fs::read_to_string("/proc/stat").unwrap();
    let fields: Vec<f64> = whole.lines().next().unwrap().split_whitespace().skip(1).map(number).collect();
    // All but idle and waiting for disks.
    let all = fields[..3].iter().chain(&fields[5..8]).sum();
    let (mut docker, mut neap) = (0.0, 0.0);
    for process in std::fs::read_dir("/proc").unwrap().flatten() {
        let read = |file: &str| std::fs::read(process.path().join(file)).unwrap_or_default();
        let (line, stat) = (read("cmdline"), read("stat"));
        let (line, stat) = (String::from_utf8_lossy(&line), String::from_utf8_lossy(&stat));
        let fields: Vec<&str> = stat.rsplit(')').next().unwrap_or_default().split_whitespace().collect();
        let Some(took) = fields.get(11..13).map(|took| took.iter().map(|field| number(field)).sum::<f64>()) else {
            continue;
        };
        let program = line.split('\0').next().unwrap_or_default();
        match program.rsplit('/').next() {
            Some("dockerd") => docker += took,
            Some("neap") if line.split('\0').nth(1) != Some("demo") => neap += took,
            _ => {}
        }
    }
    [all, docker, neap]
}

fn measure(act: impl FnOnce()) -> Took {
    let (before, begun) = (spent(), Instant::now());
    act();
    let (time, now) = (begun.elapsed().as_secs_f64(), spent());
    let [all, docker, neap] = std::array::from_fn(|at| now[at] - before[at]);
    Took { time, all, docker, neap }
}

// What Swarm took and what Neap took, each round begun by the other one.
fn in_turn(rounds: usize, mut swarm: impl FnMut() -> Took, mut neap: impl FnMut() -> Took) -> [Vec<Took>; 2] {
    let mut taken = [Vec::new(), Vec::new()];
    for round in 0..rounds {
        for who in [round % 2, 1 - round % 2] {
            taken[who].push(if who == 0 { swarm() } else { neap() });
        }
    }
    taken
}

fn row(what: &str, taken: [Vec<Took>; 2]) {
    for (name, of) in FIGURES {
        let [swarm, neap] = taken.each_ref().map(|taken| {
            let mut figures: Vec<f64> = taken.iter().map(of).collect();
            figures.sort_by(f64::total_cmp);
            let (low, high) = (figures[(figures.len() - 1) / 2], figures[figures.len() / 2]);
            ((low + high) / 2.0, figures[0])
        });
        let shown = |(median, best): (f64, f64)| format!("{median:.2} s ({best:.2})");
        let ratio = if swarm.0 > 0.0 { format!("{:.2}", neap.0 / swarm.0) } else { String::new() };
        let name = if name.is_empty() { what } else { name };
        println!("{name:<46} {:>17} {:>17} {ratio:>6}", shown(swarm), shown(neap));
    }
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

fn create_by_swarm(lab: &Lab, replicas: usize) -> Took {
    let took = measure(|| {
        swarm_service(lab, replicas);
        wait_for(lab, &lab.image("demo:1"), replicas);
    });
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

fn create_by_neap(lab: &Lab, daemon: &LabDaemon, replicas: usize) -> Took {
    let took = measure(|| {
        neap_service(lab, daemon, replicas);
        wait_for(lab, &lab.image("demo:1"), replicas);
    });
    daemon.ok(&["service", "rm", "ours"]);
    clear(lab);
    took
}

fn update_by_swarm(lab: &Lab, replicas: usize) -> Took {
    swarm_service(lab, replicas);
    wait_for(lab, &lab.image("demo:1"), replicas);
    let (image, update) = (lab.image("demo:2"), ["service", "update", "--detach", "--no-resolve-image", "--image"]);
    let took = measure(|| {
        lab.docker("n1", &[&update[..], &[&image, "theirs"]].concat());
        wait_for(lab, &image, replicas);
    });
    lab.docker("n1", &["service", "rm", "theirs"]);
    clear(lab);
    took
}

fn update_by_neap(lab: &Lab, daemon: &LabDaemon, replicas: usize) -> Took {
    neap_service(lab, daemon, replicas);
    wait_for(lab, &lab.image("demo:1"), replicas);
    let took = measure(|| {
        daemon.ok(&["service", "update", "ours", "--detach", "--image", &lab.image("demo:2")]);
        wait_for(lab, &lab.image("demo:2"), replicas);
    });
    daemon.ok(&["service", "rm", "ours"]);
    clear(lab);
    took
}

// From the cut to as many as before on the other hosts.
fn lose(lab: &Lab, image: &str, replicas: usize) -> Took {
    let lost = lab.docker("n1", &["node", "inspect", "-f", "{{.ID}}", "n3"]);
    lab.ok(&["cut", "n3"]);
    let took = measure(|| {
        let begun = Instant::now();
        while tasks(lab, image).iter().filter(|task| task["NodeID"] != lost.as_str()).count() < replicas {
            assert!(begun.elapsed() < Duration::from_secs(120), "not {replicas} on the others");
            std::thread::sleep(Duration::from_millis(50));
        }
    });
    lab.ok(&["mend", "n3"]);
    let until = Instant::now() + Duration::from_secs(120);
    while lab.docker("n1", &["node", "inspect", "-f", "{{.Status.State}}", "n3"]) != "ready" {
        assert!(Instant::now() < until, "n3 does not come back");
        std::thread::sleep(Duration::from_millis(200));
    }
    took
}

fn lost_by_swarm(lab: &Lab, replicas: usize) -> Took {
    swarm_service(lab, replicas);
    wait_for(lab, &lab.image("demo:1"), replicas);
    let took = lose(lab, &lab.image("demo:1"), replicas);
    lab.docker("n1", &["service", "rm", "theirs"]);
    clear(lab);
    took
}

fn lost_by_neap(lab: &Lab, daemon: &LabDaemon, replicas: usize) -> Took {
    neap_service(lab, daemon, replicas);
    wait_for(lab, &lab.image("demo:1"), replicas);
    let took = lose(lab, &lab.image("demo:1"), replicas);
    daemon.ok(&["service", "rm", "ours"]);
    clear(lab);
    took
}

// The daemon behind a proxy that counts what it asks of Docker.
fn counted(lab: &Lab, daemon: &LabDaemon) -> std::sync::Arc<Proxy> {
    let proxy = Proxy::start(&lab.folder().join("n1/run/count.sock"), lab.folder().join("n1/docker.sock"));
    daemon.end("TERM");
    daemon.up(&["DOCKER_HOST=unix:///run/count.sock"]);
    proxy
}

// What the leading daemon asks of Docker for so many replicas: created, updated, removed.
fn requests(lab: &Lab, daemon: &LabDaemon, replicas: usize) {
    let proxy = counted(lab, daemon);
    let tell = |what: &str| {
        let made = proxy.taken();
        println!("requests to Docker, {what} {replicas}: {}, {made:?}", made.values().sum::<usize>());
    };
    tell("before any of");
    neap_service(lab, daemon, replicas);
    wait_for(lab, &lab.image("demo:1"), replicas);
    tell("create");
    daemon.ok(&["service", "update", "ours", "--detach", "--image", &lab.image("demo:2")]);
    wait_for(lab, &lab.image("demo:2"), replicas);
    tell("update");
    daemon.ok(&["service", "rm", "ours"]);
    clear(lab);
    tell("remove");
}

// What a daemon with many services costs while nothing happens.
fn at_rest(lab: &Lab, daemon: &LabDaemon, replicas: usize) {
    let proxy = counted(lab, daemon);
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
