//! kill -9 of the daemon at every named point and at random moments: the same end as without, nothing twice, nothing
//! lost.

use std::collections::BTreeSet;
use std::process::{Output, Stdio};
use std::time::{Duration, Instant};

#[path = "support/mod.rs"]
mod support;

use support::{Daemon, NEAP, eventually, free_port};

/// A daemon whose replicas write their task's id down when they start, and then a numbered line every 10 ms.
struct Scene {
    daemon: Daemon,
    port: u16,
    created: bool,
}

impl Scene {
    fn new() -> Self {
        Scene { daemon: Daemon::new(), port: free_port(), created: false }
    }

    fn starts(&self) -> String {
        self.daemon.folder.path().join("starts").display().to_string()
    }

    fn description(&self, version: &str, replicas: u32) -> String {
        let run =
            format!("echo $NEAP_TASK_ID >> {}; exec {NEAP} demo --answer {version} --log-every 10ms", self.starts());
        serde_json::json!({
            "name": "web", "replicas": replicas, "command": ["/bin/sh", "-c", run], "ports": { "http": self.port },
            "check": { "http": "/healthz", "every": "200ms", "timeout": "2s" },
            "rollout": { "use": "rolling", "batch": 2, "min_healthy": "0s" }, "stop": { "drain": "200ms", "grace": "5s" },
        })
        .to_string()
    }

    /// Repeats a command until it is acknowledged; a daemon that died is started again, without the fault.
    fn insist(&mut self, args: &[&str]) {
        let until = Instant::now() + Duration::from_secs(60);
        loop {
            let output = self.through(args);
            if output.status.success() {
                return;
            }
            let error = String::from_utf8_lossy(&output.stderr).into_owned();
            // What was written down before the daemon died is there already.
            if !self.created && error.contains("exists already") {
                return;
            }
            assert!(Instant::now() < until, "neap {args:?}: {error}\n{}", self.daemon.log());
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// A command that is under way while its daemon may die, and be started again.
    fn through(&mut self, args: &[&str]) -> Output {
        self.revive();
        let mut child = self.daemon.command(args).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        while child.try_wait().unwrap().is_none() {
            self.revive();
            std::thread::sleep(Duration::from_millis(5));
        }
        child.wait_with_output().unwrap()
    }

    fn revive(&mut self) {
        let dead = match &mut self.daemon.child {
            Some(child) => child.try_wait().unwrap().is_some(),
            None => true,
        };
        if dead {
            self.daemon.env.clear();
            self.daemon.child = None;
            self.daemon.up();
        }
    }

    fn apply(&mut self, version: &str, replicas: u32) {
        let file = self.daemon.folder.path().join("web.json");
        std::fs::write(&file, self.description(version, replicas)).unwrap();
        let file = file.display().to_string();
        let verb: &[&str] = if self.created { &["service", "update", "web"] } else { &["service", "create"] };
        self.insist(&[verb, &["--detach", "--file", &file]].concat());
        self.created = true;
    }

    fn settle(&mut self) {
        self.insist(&["service", "wait", "web", "--timeout", "40s"]);
    }

    /// The end that every run has to come to.
    fn check_end(&mut self, version: &str, replicas: usize) {
        self.settle();
        let tasks = self.daemon.live_tasks("web");
        assert_eq!(tasks.len(), replicas, "{tasks:?}");
        assert!(tasks.iter().all(|task| task["health"] == "healthy"), "{tasks:?}");
        let expected: BTreeSet<u64> = tasks.iter().map(|task| task["pid"].as_u64().unwrap()).collect();
        // Exactly these replicas run, and nothing that was forgotten.
        let marker = "demo --answer".to_owned();
        let folder = self.starts();
        let running = || -> BTreeSet<u64> {
            let ours = |pid: u32| {
                std::fs::read_to_string(format!("/proc/{pid}/environ")).is_ok_and(|env| env.contains("NEAP_TASK_ID"))
            };
            let keepers: Vec<u32> = support::processes()
                .into_iter()
                .filter(|(_, line)| line.contains("keeper") && line.contains(self.daemon.data().to_str().unwrap()))
                .map(|(pid, _)| pid)
                .collect();
            support::processes()
                .into_iter()
                .filter(|(pid, line)| {
                    line.contains(&marker) && !line.contains(&folder) && ours(*pid) && keepers.contains(&parent(*pid))
                })
                .map(|(pid, _)| u64::from(pid))
                .collect()
        };
        eventually("only the wanted replicas run", 20, || (running() == expected).then_some(()));
        for _ in 0..8 {
            let (status, body) = support::get(self.port, "/").unwrap();
            assert_eq!(status, 200);
            assert!(body.contains(&format!("\"version\":\"{version}\"")), "{body}");
        }
        // No task was started twice.
        let starts = std::fs::read_to_string(self.starts()).unwrap();
        let all: Vec<&str> = starts.lines().collect();
        let unique: BTreeSet<&str> = all.iter().copied().collect();
        assert_eq!(all.len(), unique.len(), "a task was started twice: {starts}");
        self.check_output(&tasks);
    }

    /// Removes the service: nothing of it may stay, no process and no folder.
    fn clear(&mut self) {
        let until = Instant::now() + Duration::from_secs(60);
        loop {
            let output = self.through(&["service", "rm", "web"]);
            let error = String::from_utf8_lossy(&output.stderr).into_owned();
            if output.status.success() || error.contains("not found") {
                break;
            }
            assert!(Instant::now() < until, "{error}");
        }
        let tasks = self.daemon.data().join("tasks");
        eventually("its folders are gone", 20, || {
            self.revive();
            (std::fs::read_dir(&tasks).unwrap().count() == 0).then_some(())
        });
        assert_eq!(self.daemon.json(&["service", "ls", "--format", "json"]), serde_json::json!([]));
    }

    // Every line that a living replica wrote is there, once and in order.
    fn check_output(&self, tasks: &[serde_json::Value]) {
        let text = self.daemon.ok(&["service", "logs", "web", "--format", "json"]);
        let lines: Vec<serde_json::Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        for task in tasks {
            let own = lines.iter().filter(|line| line["id"] == task["id"]).filter_map(|line| line["text"].as_str());
            let ticks: Vec<u64> = own.filter_map(|text| text.strip_prefix("tick ")?.parse().ok()).collect();
            let expected: Vec<u64> = (1..=ticks.len() as u64).collect();
            assert!(!ticks.is_empty() && ticks == expected, "{}: {ticks:?}", task["id"]);
        }
    }
}

fn parent(pid: u32) -> u32 {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit_once(')').and_then(|(_, rest)| rest.split_ascii_whitespace().nth(1)?.parse().ok()).unwrap_or_default()
}

/// Deploys, scales, rolls out, scales down.
fn story(scene: &mut Scene) {
    scene.apply("v1", 2);
    scene.settle();
    scene.insist(&["service", "scale", "web=4", "--detach"]);
    scene.settle();
    scene.apply("v2", 4);
    scene.settle();
    scene.insist(&["service", "scale", "web=2", "--detach"]);
    scene.check_end("v2", 2);
    scene.clear();
}

const POINTS: [&str; 16] = [
    "store.before-commit",
    "store.after-commit",
    "conductor.before-commit",
    "conductor.after-commit",
    "runtime.before-start",
    "runtime.after-start",
    "engine.before-keeper",
    "engine.after-keeper",
    "traffic.before-push",
    "traffic.after-push",
    "runtime.before-stop",
    "runtime.after-stop",
    "runtime.before-remove",
    "runtime.after-remove",
    "balancer.before-start",
    "balancer.after-start",
];

#[test]
fn killed_at_every_named_point() {
    let mut hits = BTreeSet::new();
    for point in POINTS {
        // A balancer is started once in a story; the others are passed many times.
        let passes: &[u32] = if point.starts_with("balancer") { &[1] } else { &[1, 2, 3, 5] };
        for pass in passes {
            let mut scene = Scene::new();
            scene.daemon.env.push(("NEAP_FAULT".into(), format!("{point}:{pass}")));
            // The fault may hit before the daemon ever answers.
            scene.daemon.spawn();
            eventually("it answers or dies", 20, || {
                let ended = scene.daemon.child.as_mut().unwrap().try_wait().unwrap().is_some();
                (ended || scene.daemon.neap(&["service", "ls"]).status.success()).then_some(())
            });
            story(&mut scene);
            if scene.daemon.log().contains(&format!("fault point {point}: killed")) {
                hits.insert(point);
            }
        }
    }
    let missed: Vec<&&str> = POINTS.iter().filter(|point| !hits.contains(**point)).collect();
    assert!(missed.is_empty(), "never hit: {missed:?}");
}

#[test]
fn killed_at_random_moments() {
    let kills: u32 = std::env::var("NEAP_TEST_KILLS").ok().and_then(|text| text.parse().ok()).unwrap_or(200);
    let mut seed = 0x5EED_u64;
    let mut random = |below: u64| {
        seed = neap::model::clock::mix(seed);
        seed % below
    };
    let mut scene = Scene::new();
    scene.apply("v0", 2);
    let mut done = 0;
    let mut version = 0;
    let mut replicas = 2;
    while done < kills {
        // Something is always under way when the blow falls.
        match random(3) {
            0 => {
                replicas = 1 + random(4) as u32;
                scene.insist(&["service", "scale", &format!("web={replicas}"), "--detach"]);
            }
            _ => {
                version += 1;
                scene.apply(&format!("v{version}"), replicas);
            }
        }
        for _ in 0..=random(3) {
            std::thread::sleep(Duration::from_millis(random(150)));
            scene.revive();
            std::thread::sleep(Duration::from_millis(random(40)));
            scene.daemon.kill();
            done += 1;
        }
        scene.revive();
    }
    // The last word once more: a rollback may have followed a kill in the middle of a step.
    scene.apply(&format!("v{version}"), replicas);
    scene.check_end(&format!("v{version}"), replicas as usize);
}

#[test]
fn keepers_killed_at_every_point_of_their_own() {
    for (point, state) in [
        ("keeper.before-spawn", "rejected"),
        ("keeper.after-spawn", "lost"),
        // After the replica's end, before it is written down: what it was is not known any more.
        ("keeper.after-exit", "lost"),
        ("keeper.after-record", "failed"),
    ] {
        let mut daemon = Daemon::new();
        daemon.env.push(("NEAP_FAULT".into(), point.into()));
        daemon.up();
        let script = format!("echo begun; sleep 0.2; exit 3; # {point}");
        daemon.ok(&[
            "service",
            "create",
            "--detach",
            "--name",
            "once",
            "--restart-condition",
            "none",
            "--",
            "/bin/sh",
            "-c",
            &script,
        ]);
        let task = eventually("its end is seen", 20, || {
            let tasks = daemon.json(&["service", "ps", "-a", "once", "--format", "json"]);
            let task = tasks[0].clone();
            task["finished_at"].is_u64().then_some(task)
        });
        assert_eq!(task["state"], state, "{point}: {task}");
        // Nothing of it is left running, and with sound keepers the service comes up.
        eventually("no replica without a keeper", 10, || {
            let left = support::processes().into_iter().any(|(_, line)| line.contains(&format!("# {point}")));
            (!left).then_some(())
        });
        daemon.kill();
        daemon.env.clear();
        daemon.up();
        daemon.ok(&["service", "update", "once", "--update-monitor", "0s", "--", "/bin/sleep", "1000"]);
        assert_eq!(daemon.live_tasks("once").len(), 1);
    }
}
