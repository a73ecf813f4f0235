//! How long a replica that was killed is still sent new connections, through a published port and through a route. The port of
//! the one that was killed is taken by this program at once: whatever comes there afterwards was sent to it.
//! `cargo bench --bench kills [-- port|route]`; about two minutes.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

const NEAP: &str = env!("CARGO_BIN_EXE_neap");
const PORT: u16 = 18_290;
// Few: a replica that fails again and again is started later and later.
const KILLS: usize = 9;
const CLIENTS: usize = 4;
/// After so long without a connection there come no more.
const QUIET: Duration = Duration::from_secs(2);

struct Daemon {
    folder: PathBuf,
    child: Child,
}

impl Daemon {
    fn up(folder: &Path) -> Self {
        let child = Command::new(NEAP)
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
        while !daemon.command(&["service", "ls"]).output().unwrap().status.success() {
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

    fn neap(&self, args: &[&str]) -> String {
        let output = self.command(args).output().unwrap();
        assert!(output.status.success(), "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    fn serving(&self) -> Vec<serde_json::Value> {
        let tasks: serde_json::Value =
            serde_json::from_str(&self.neap(&["service", "ps", "web", "--format", "json"])).unwrap();
        let serves = |task: &&serde_json::Value| task["state"] == "running" && task["health"] == "healthy";
        tasks.as_array().unwrap().iter().filter(serves).cloned().collect()
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = Command::new("kill").arg(self.child.id().to_string()).status();
        let _ = self.child.wait();
        let wanted = self.folder.to_string_lossy().into_owned();
        let _ = Command::new("pkill").args(["-f", &format!("balancer {wanted}")]).status();
    }
}

// Clients that connect anew for each request.
fn load(over: &Arc<AtomicBool>, asked: &Arc<AtomicU64>) -> Vec<std::thread::JoinHandle<()>> {
    let client = |_| {
        let (over, asked) = (over.clone(), asked.clone());
        std::thread::spawn(move || {
            while !over.load(Ordering::SeqCst) {
                let ask = || -> std::io::Result<usize> {
                    let mut stream = TcpStream::connect(("127.0.0.1", PORT))?;
                    stream.set_read_timeout(Some(Duration::from_secs(5)))?;
                    stream.write_all(b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")?;
                    stream.read_to_end(&mut Vec::new())
                };
                let _ = ask();
                asked.fetch_add(1, Ordering::Relaxed);
            }
        })
    };
    (0..CLIENTS).map(client).collect()
}

// From the kill to the last connection that came to the port, and how many came.
fn last(port: u16, pid: u64) -> (Duration, u32) {
    let killed = Instant::now();
    assert!(Command::new("kill").args(["-KILL", &pid.to_string()]).status().unwrap().success());
    let listener = loop {
        match TcpListener::bind(("127.0.0.1", port)) {
            Ok(listener) => break listener,
            Err(error) => assert!(killed.elapsed() < QUIET, "port {port}: {error}"),
        }
    };
    listener.set_nonblocking(true).unwrap();
    let (mut last, mut count) = (Duration::ZERO, 0);
    while killed.elapsed() < last + QUIET {
        match listener.accept() {
            Ok(_) => (last, count) = (killed.elapsed(), count + 1),
            Err(_) => std::thread::sleep(Duration::from_micros(100)),
        }
    }
    (last, count)
}

fn main() {
    let wanted = std::env::args().skip(1).find(|argument| !argument.starts_with('-'));
    println!("{:<34} {:>12} {:>12} {:>14}", "", "median", "longest", "connections");
    let route = ["--expose", "8080", "--route", &format!("*:{PORT}")].map(str::to_owned).to_vec();
    let publish = ["--publish".to_owned(), PORT.to_string()].to_vec();
    for (name, way) in [("port", publish), ("route", route)] {
        if wanted.as_ref().is_some_and(|wanted| wanted != name) {
            continue;
        }
        let folder = std::env::temp_dir().join(format!("neap-kills-{}-{name}", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        let daemon = Daemon::up(&folder);
        let way: Vec<&str> = way.iter().map(String::as_str).collect();
        let create = ["service", "create", "--name", "web", "--replicas", "3", "--health-http", "/healthz"];
        daemon.neap(&[&create[..], &["--health-interval", "200ms"], &way, &["--", NEAP, "demo"]].concat());
        let (over, asked) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let clients = load(&over, &asked);
        let mut found = Vec::new();
        for _ in 0..KILLS {
            let until = Instant::now() + Duration::from_secs(60);
            let serving = loop {
                let serving = daemon.serving();
                if serving.len() == 3 {
                    break serving;
                }
                assert!(Instant::now() < until, "not replaced: {serving:?}");
                std::thread::sleep(Duration::from_millis(50));
            };
            // In turn, so that none of them is taken for one that cannot run.
            let victim = serving.into_iter().min_by_key(|task| task["failures"].as_u64()).unwrap();
            let address = victim["ports"].as_object().unwrap().values().next().unwrap().as_str().unwrap().to_owned();
            let port = address.rsplit(':').next().unwrap().parse().unwrap();
            found.push(last(port, victim["pid"].as_u64().unwrap()));
        }
        over.store(true, Ordering::SeqCst);
        clients.into_iter().for_each(|client| client.join().unwrap());
        found.sort();
        let millis = |time: Duration| format!("{:.1} ms", time.as_secs_f64() * 1000.0);
        let (median, longest) = (found[KILLS / 2].0, found[KILLS - 1].0);
        let count: u32 = found.iter().map(|(_, count)| count).sum();
        println!(
            "{:<34} {:>12} {:>12} {:>14}",
            format!("{KILLS} kills, through a {name}"),
            millis(median),
            millis(longest),
            count
        );
        println!("  of {} requests", asked.load(Ordering::Relaxed));
        daemon.neap(&["service", "rm", "web"]);
        drop(daemon);
        let _ = std::fs::remove_dir_all(&folder);
    }
}
