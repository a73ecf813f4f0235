//! The figures of the foundation: start of `neap run` and `neap up`, memory and cpu at rest, 300 processes, a thousand
//! services. `cargo bench --bench figures`, about two minutes; `-- thousand` for the last alone.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

const NEAP: &str = env!("CARGO_BIN_EXE_neap");

struct Daemon {
    folder: PathBuf,
    child: Child,
}

impl Daemon {
    fn start(folder: &Path) -> Self {
        let child = Command::new(NEAP)
            .args(["up", "--log", "error", "--data"])
            .arg(folder.join("data"))
            .arg("--socket")
            .arg(folder.join("s"))
            .env("NEAP_CONFIG", "/dev/null")
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        let daemon = Daemon { folder: folder.to_owned(), child };
        while std::os::unix::net::UnixStream::connect(folder.join("s")).is_err() {
            std::thread::sleep(Duration::from_micros(200));
        }
        daemon
    }

    fn neap(&self, args: &[&str]) {
        let status = Command::new(NEAP)
            .args(args)
            .env("NEAP_HOST", format!("unix://{}", self.folder.join("s").display()))
            .env("NEAP_CONFIG", "/dev/null")
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .status()
            .unwrap();
        assert!(status.success(), "neap {args:?}");
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        // Keepers and balancer name the folder on their command lines.
        for entry in std::fs::read_dir("/proc").unwrap().flatten() {
            let line = std::fs::read(entry.path().join("cmdline")).unwrap_or_default();
            if String::from_utf8_lossy(&line).contains(&*self.folder.to_string_lossy()) {
                let _ = Command::new("kill").arg("-KILL").arg(entry.file_name()).status();
            }
        }
    }
}

fn main() {
    let root = std::env::temp_dir().join(format!("neap-figures-{}", std::process::id()));
    std::fs::create_dir_all(&root).unwrap();
    let folder = |name: &str| {
        let folder = root.join(name);
        std::fs::create_dir_all(&folder).unwrap();
        folder
    };

    if std::env::args().any(|arg| arg == "thousand") {
        thousand(&folder("thousand"));
        let _ = std::fs::remove_dir_all(&root);
        return;
    }
    let up = folder("up");
    let mut starts: Vec<Duration> = (0..11)
        .map(|_| {
            let begun = Instant::now();
            let daemon = Daemon::start(&up);
            daemon.neap(&["service", "ls"]);
            let took = begun.elapsed();
            drop(daemon);
            took
        })
        .collect();
    starts.sort();
    println!("neap up until `service ls` is answered   {:>8.1} ms (goal < 150)", ms(starts[5]));

    let daemon = Daemon::start(&folder("run"));
    let script = root.join("empty.lua");
    std::fs::write(&script, "").unwrap();
    let mut runs: Vec<Duration> = (0..51)
        .map(|_| {
            let begun = Instant::now();
            daemon.neap(&["run", script.to_str().unwrap()]);
            begun.elapsed()
        })
        .collect();
    runs.sort();
    println!("neap run of an empty script, median      {:>8.1} ms (goal < 15)", ms(runs[25]));
    drop(daemon);

    let daemon = Daemon::start(&folder("idle"));
    daemon.neap(&[
        "service",
        "create",
        "--name",
        "idle",
        "--replicas",
        "100",
        "--publish",
        "18070",
        "--health-http",
        "/healthz",
        "--",
        NEAP,
        "demo",
    ]);
    std::thread::sleep(Duration::from_secs(3));
    let pid = daemon.child.id();
    let before = cpu(pid);
    std::thread::sleep(Duration::from_secs(20));
    let share = (cpu(pid) - before) / 20.0 * 100.0;
    println!("daemon, 100 replicas checked every 10s   {:>8.1} MB resident (goal < 25)", status(pid, "VmRSS:"));
    println!("                                         {share:>8.2} % of a core (goal < 0.5)");
    let keepers = keepers(&daemon.folder);
    let own: Vec<f64> = keepers.iter().map(|pid| private(*pid)).collect();
    println!(
        "a keeper's own memory (private pages)    {:>8.2} MB (goal < 2)",
        own.iter().sum::<f64>() / own.len() as f64
    );
    drop(daemon);

    let daemon = Daemon::start(&folder("many"));
    let begun = Instant::now();
    daemon.neap(&[
        "service",
        "create",
        "--name",
        "many",
        "--replicas",
        "300",
        "--publish",
        "18071",
        "--health-http",
        "/healthz",
        "--",
        NEAP,
        "demo",
    ]);
    let through = begun.elapsed();
    let ours = cpu(daemon.child.id()) + self::keepers(&daemon.folder).iter().map(|pid| cpu(*pid)).sum::<f64>();
    drop(daemon);
    // The same 300 without us: started, and asked until they answer.
    let begun = Instant::now();
    let mut plain: Vec<Child> = (0..300)
        .map(|n| {
            Command::new(NEAP)
                .args(["demo", "--port", &(19_000 + n).to_string()])
                .stdout(Stdio::null())
                .spawn()
                .unwrap()
        })
        .collect();
    for n in 0..300_u16 {
        while std::net::TcpStream::connect(("127.0.0.1", 19_000 + n)).is_err() {
            std::thread::sleep(Duration::from_micros(500));
        }
    }
    let bare = begun.elapsed();
    for child in &mut plain {
        let _ = child.kill();
        let _ = child.wait();
    }
    println!("300 processes started and healthy        {:>8.0} ms; started by hand {:.0} ms", ms(through), ms(bare));
    println!(
        "  share of the time that is ours         {:>8.0} % ({:.0} ms of cpu in daemon and keepers)",
        (1.0 - bare.as_secs_f64() / through.as_secs_f64()) * 100.0,
        ours * 1000.0
    );
    thousand(&folder("thousand"));
    let _ = std::fs::remove_dir_all(&root);
}

// A thousand services, each with a replica: made, looked at, changed, found again after a kill, removed.
fn thousand(folder: &Path) {
    let mut daemon = Daemon::start(folder);
    let script = |name: &str, text: &str| {
        let path = folder.join(name);
        std::fs::write(&path, text).unwrap();
        path.to_str().unwrap().to_owned()
    };
    let create = script(
        "create.lua",
        "for i = 1, 1000 do service(`s{i}`){ command = { 'sleep', '100000' } }:apply() end\n\
         local function open() for _, s in services.list() do if not s.settled then return true end end return false end\n\
         while open() do time.sleep '100ms' end",
    );
    let change = script("change.lua", "for i = 1, 50 do services.get(`s{i}`):update { labels = { a = `{i}` } } end");
    let remove = script("remove.lua", "for i = 1, 1000 do services.get(`s{i}`):remove() end");
    let timed = |daemon: &Daemon, args: &[&str]| {
        let begun = Instant::now();
        daemon.neap(args);
        ms(begun.elapsed())
    };
    let (took, before) = (timed(&daemon, &["run", &create]), cpu(daemon.child.id()));
    println!("1000 services applied and waited for     {:>8.1} s ({before:.1} s of the daemon's cpu)", took / 1000.0);
    println!("  a change of one of them                {:>8.1} ms", timed(&daemon, &["run", &change]) / 50.0);
    println!("  service ls                             {:>8.1} ms", timed(&daemon, &["service", "ls"]));
    println!("  service ps of one                      {:>8.1} ms", timed(&daemon, &["service", "ps", "s500"]));
    std::thread::sleep(Duration::from_secs(5));
    let before = cpu(daemon.child.id());
    std::thread::sleep(Duration::from_secs(20));
    let share = (cpu(daemon.child.id()) - before) / 20.0 * 100.0;
    println!("  at rest                                {share:>8.2} % of a core");
    println!("                                         {:>8.1} MB resident", status(daemon.child.id(), "VmRSS:"));
    let _ = daemon.child.kill();
    let _ = daemon.child.wait();
    let begun = Instant::now();
    let again = Daemon::start(folder);
    again.neap(&["service", "ls"]);
    println!("  killed, and up until they are listed   {:>8.1} ms", ms(begun.elapsed()));
    let begun = Instant::now();
    again.neap(&["run", &remove]);
    while !keepers(folder).is_empty() {
        std::thread::sleep(Duration::from_millis(50));
    }
    println!("  removed, and nothing of them runs      {:>8.1} s", begun.elapsed().as_secs_f64());
}

fn ms(period: Duration) -> f64 {
    period.as_secs_f64() * 1000.0
}

/// Seconds of cpu that a process has used.
fn cpu(pid: u32) -> f64 {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    let fields: Vec<&str> =
        stat.rsplit_once(')').map(|(_, rest)| rest.split_ascii_whitespace().collect()).unwrap_or_default();
    let ticks: f64 = [11, 12].iter().filter_map(|index| fields.get(*index)?.parse::<f64>().ok()).sum();
    ticks / 100.0
}

fn status(pid: u32, key: &str) -> f64 {
    let text = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    text.lines()
        .find_map(|line| line.strip_prefix(key)?.split_ascii_whitespace().next()?.parse::<f64>().ok())
        .unwrap_or(0.0)
        / 1024.0
}

fn private(pid: u32) -> f64 {
    let text = std::fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).unwrap_or_default();
    let field = |key: &str| {
        text.lines()
            .find_map(|line| line.strip_prefix(key)?.split_ascii_whitespace().next()?.parse::<f64>().ok())
            .unwrap_or(0.0)
    };
    (field("Private_Clean:") + field("Private_Dirty:")) / 1024.0
}

fn keepers(folder: &Path) -> Vec<u32> {
    let wanted = format!("keeper\0{}", folder.display());
    let entries = std::fs::read_dir("/proc").unwrap().flatten();
    entries
        .filter(|entry| {
            std::fs::read(entry.path().join("cmdline"))
                .is_ok_and(|line| String::from_utf8_lossy(&line).contains(&wanted))
        })
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .collect()
}
