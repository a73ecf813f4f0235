//! A hundred planned changes (rollouts, scalings, an upgrade of Neap itself) while a client asks that never tries again, through a
//! published port and through a route; then nine replicas killed, one after the other. What failed, of how many requests.
//! `cargo bench --bench rollouts [-- route|port]`; needs wrk (the Debian package). About ten minutes: connections that a client
//! keeps hold a replica behind a published port until its drain time is over.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

const NEAP: &str = env!("CARGO_BIN_EXE_neap");
const PORT: u16 = 18_280;
const CHANGES: u32 = 100;
// Few: a replica that fails again and again is started later and later.
const KILLS: u32 = 9;

struct Daemon {
    folder: PathBuf,
    child: Child,
}

impl Daemon {
    fn up(folder: &Path, program: &Path) -> Self {
        let child = Command::new(program)
            .args(["up", "--data"])
            .arg(folder.join("data"))
            .arg("--socket")
            .arg(folder.join("sock"))
            .envs([
                ("NEAP_ENGINE", "process"),
                ("NEAP_CONSUL_LISTEN", "none"),
                ("NEAP_DNS_LISTEN", "none"),
                ("NEAP_REGISTRY_LISTEN", "none"),
            ])
            .env("NEAP_CONFIG", folder.join("config"))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let daemon = Daemon { folder: folder.to_owned(), child };
        let until = Instant::now() + Duration::from_secs(20);
        while !daemon.try_neap(&["service", "ls"]) {
            assert!(Instant::now() < until, "the daemon does not answer");
            std::thread::sleep(Duration::from_millis(20));
        }
        daemon
    }

    fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(NEAP);
        command.args(args).env("NEAP_HOST", format!("unix://{}", self.folder.join("sock").display()));
        command.env("NEAP_CONFIG", self.folder.join("config"));
        command
    }

    fn try_neap(&self, args: &[&str]) -> bool {
        self.command(args).output().unwrap().status.success()
    }

    fn neap(&self, args: &[&str]) -> String {
        let output = self.command(args).output().unwrap();
        assert!(output.status.success(), "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    fn stop(&mut self) {
        let _ = Command::new("kill").arg(self.child.id().to_string()).status();
        let _ = self.child.wait();
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn main() {
    if Command::new("wrk").arg("-v").output().is_err() {
        println!("skipped: wrk is not installed");
        return;
    }
    println!("{:<44} {:>12} {:>10} {:>10}", "", "requests", "per s", "failed");
    let route = ["--expose", "8080", "--route", &format!("*:{PORT}")].map(str::to_owned).to_vec();
    let publish = ["--publish".to_owned(), PORT.to_string()].to_vec();
    // Only the one that is named on the command line, if one is.
    let wanted = std::env::args().skip(1).find(|argument| !argument.starts_with('-'));
    for (name, way) in [("route", route), ("port", publish)] {
        if wanted.as_ref().is_some_and(|wanted| wanted != name) {
            continue;
        }
        let folder = std::env::temp_dir().join(format!("neap-bench-{}", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        let mut daemon = Daemon::up(&folder, Path::new(NEAP));
        let way: Vec<&str> = way.iter().map(String::as_str).collect();
        let create = ["service", "create", "--name", "web", "--replicas", "3", "--health-http", "/healthz"];
        let how =
            ["--health-interval", "200ms", "--stop-drain", "5s", "--update-monitor", "0s", "--update-parallelism", "2"];
        daemon.neap(&[&create[..], &how, &way, &["--", NEAP, "demo"]].concat());

        let load = Load::start();
        for number in 0..CHANGES {
            match number % 10 {
                0..=7 => drop(daemon.neap(&["service", "update", "web", "--env-add", &format!("VERSION={number}")])),
                8 => drop(daemon.neap(&["service", "scale", &format!("web={}", 2 + number % 3)])),
                // Another build: the same program from another file, which takes the sockets over.
                _ => {
                    daemon.stop();
                    let copy = folder.join(format!("neap-{number}"));
                    std::fs::copy(NEAP, &copy).unwrap();
                    daemon = Daemon::up(&folder, &copy);
                }
            }
        }
        load.end(&format!("{CHANGES} changes, through a {name}"));

        daemon.neap(&["service", "scale", "web=3"]);
        let load = Load::start();
        for _ in 0..KILLS {
            // One at a time: the next one when three serve again.
            let serving = || -> Vec<serde_json::Value> {
                let ps = daemon.neap(&["service", "ps", "web", "--format", "json"]);
                let tasks: serde_json::Value = serde_json::from_str(&ps).unwrap();
                let serves = |task: &&serde_json::Value| task["state"] == "running" && task["health"] == "healthy";
                tasks.as_array().unwrap().iter().filter(serves).cloned().collect()
            };
            // In turn, so that none of them is taken for one that cannot run.
            let victim = serving().into_iter().min_by_key(|task| task["failures"].as_u64()).unwrap();
            let _ = Command::new("kill").args(["-KILL", &victim["pid"].to_string()]).status();
            let until = Instant::now() + Duration::from_secs(60);
            loop {
                let now = serving();
                if now.len() == 3 && now.iter().all(|task| task["id"] != victim["id"]) {
                    break;
                }
                assert!(Instant::now() < until, "not replaced: {now:?}");
                std::thread::sleep(Duration::from_millis(50));
            }
        }
        load.end(&format!("{KILLS} replicas killed, through a {name}"));
        daemon.neap(&["service", "rm", "web"]);
        daemon.stop();
        let wanted = folder.to_string_lossy().into_owned();
        let _ = Command::new("pkill").args(["-f", &format!("balancer {wanted}")]).status();
        let _ = std::fs::remove_dir_all(&folder);
    }
}

struct Load {
    child: Child,
    began: Instant,
}

impl Load {
    fn start() -> Self {
        let url = format!("http://127.0.0.1:{PORT}/");
        // Ended by a signal; it then tells what it has counted.
        let mut command = Command::new("wrk");
        command.args(["-t1", "-c32", "-d900s", &url]).stdout(Stdio::piped());
        Load { child: command.spawn().unwrap(), began: Instant::now() }
    }

    fn end(self, what: &str) {
        let took = self.began.elapsed().as_secs_f64();
        let _ = Command::new("kill").args(["-INT", &self.child.id().to_string()]).status();
        let text = String::from_utf8_lossy(&self.child.wait_with_output().unwrap().stdout).into_owned();
        let requests: f64 = text
            .lines()
            .find_map(|line| line.trim().split_once(" requests in ").and_then(|(count, _)| count.parse().ok()))
            .unwrap_or_else(|| panic!("{text}"));
        let failed =
            text.lines().find(|line| line.contains("Socket errors")).map_or(String::new(), |line| line.trim().into());
        let bad = text.lines().find(|line| line.contains("Non-2xx")).map_or(String::new(), |line| line.trim().into());
        let told = match (failed.is_empty(), bad.is_empty()) {
            (true, true) => "0".to_owned(),
            _ => format!("{failed} {bad}"),
        };
        println!("{what:<44} {requests:>12.0} {:>10.0} {told:>10}", requests / took);
    }
}
