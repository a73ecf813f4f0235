//! The script host's figures: the REPL's round trip and completion, a reload of 200 scripts, 1,000 cron scripts, checks in
//! Lua. `cargo bench --bench scripts`. About three minutes: it waits for the end of a minute.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use neap::client::remote::RemoteCluster;
use neap::client::scripts::Push;
use neap::client::wire::Endpoint;
use neap::client::{Apply, Cluster};
use neap::model::bundle::Bundle;
use neap::script::api::check::Judged;
use neap::script::api::services::Context;
use neap::script::host::ScriptHost;
use neap::script::repl::Session;

const NEAP: &str = env!("CARGO_BIN_EXE_neap");

struct Daemon {
    folder: PathBuf,
    child: Child,
}

impl Daemon {
    fn start(folder: &Path) -> Self {
        std::fs::create_dir_all(folder).unwrap();
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

    fn cluster(&self) -> RemoteCluster {
        RemoteCluster::new(Endpoint::Unix(self.folder.join("s")))
    }

    /// Seconds of cpu that it has used.
    fn cpu(&self) -> f64 {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.child.id())).unwrap();
        let fields: Vec<&str> = stat.rsplit_once(')').unwrap().1.split_ascii_whitespace().collect();
        (fields[11].parse::<f64>().unwrap() + fields[12].parse::<f64>().unwrap()) / 100.0
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn main() {
    let root = std::env::temp_dir().join(format!("neap-scripts-{}", std::process::id()));
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let local = tokio::task::LocalSet::new();
    local.block_on(&runtime, async {
        repl(&root.join("repl")).await;
        reload(&root.join("reload")).await;
        crons(&root.join("cron")).await;
    });
    checks();
    let _ = std::fs::remove_dir_all(&root);
}

async fn repl(folder: &Path) {
    let daemon = Daemon::start(folder);
    let cluster: Arc<dyn Cluster> = Arc::new(daemon.cluster());
    // Services without replicas: objects, and nothing to run.
    for number in 0..10_000 {
        let service = serde_json::json!({ "name": format!("service-{number:05}"), "command": ["true"], "replicas": 0 });
        cluster.apply(Apply { service, ..Apply::default() }).await.unwrap();
    }
    let reach = neap::script::api::Reach::default();
    let reporter = Rc::new(|_: &str, _: &_| {});
    let described = neap::script::api::describe::Described::default();
    let context = Context { cluster, reporter, folder: folder.to_owned(), reach, described, hosting: None };
    let session = Session::new(context, folder.to_owned(), Arc::default()).unwrap();
    let trips = measure(1000, async || drop(session.eval("services.get \"service-00500\"").await.unwrap())).await;
    println!(
        "REPL: a line that asks the daemon          median {:>7.3} ms, p99 {:>7.3} ms (goal < 1)",
        ms(trips[500]),
        ms(trips[990])
    );
    for (line, what) in [("services.get \"service-0", "an object's name"), ("services.", "a field")] {
        let times = measure(500, async || drop(session.complete(line).await)).await;
        println!(
            "REPL: completing {what:<25} median {:>7.3} ms, p99 {:>7.3} ms (goal < 5, 10,000 objects)",
            ms(times[250]),
            ms(times[495])
        );
    }
}

async fn measure(count: usize, mut one: impl AsyncFnMut()) -> Vec<Duration> {
    let mut times = Vec::new();
    for _ in 0..count {
        let begun = Instant::now();
        one().await;
        times.push(begun.elapsed());
    }
    times.sort();
    times
}

fn two_hundred(version: usize) -> Bundle {
    let mut bundle = Bundle::default();
    for number in 0..200 {
        let name = format!("rules/policy-{number:03}.lua");
        let source = format!(
            "-- Version {version}.\nlocal limits = {{ cpu = 2, memory = 2^30, zones = {{ 'a', 'b', 'c' }} }}\n\npolicy 'policy-{number:03}' {{\n  filter = function(node) return node.labels.tier ~= 'db', 'is a database host' end,\n  score = function(node, task, view)\n    local here = view:count {{ service = task.service, node = true }}\n    if node.cpu < limits.cpu then return -here * 2 end\n    return -here + {number} / 1000\n  end,\n}}\n"
        );
        bundle.entries.push(name.clone());
        bundle.files.insert(name, source);
    }
    bundle
}

async fn reload(folder: &Path) {
    let daemon = Daemon::start(folder);
    let cluster = daemon.cluster();
    let push = |version| Push { bundle: two_hundred(version), check_only: false };
    cluster.push_scripts("rules", push(0), "").await.unwrap();
    let service =
        serde_json::json!({ "name": "web", "command": ["sleep", "1000"], "replicas": 0, "policy": "policy-100" });
    cluster.apply(Apply { service, ..Apply::default() }).await.unwrap();
    let mut times = Vec::new();
    for version in 1..21 {
        let begun = Instant::now();
        cluster.push_scripts("rules", push(version), "").await.unwrap();
        times.push(begun.elapsed());
        // A decision right after it: the new version is asked.
        cluster.scale("web", version as u32).await.unwrap();
    }
    times.sort();
    let mut status = cluster.service("web").await.unwrap();
    while status.tasks.iter().filter(|task| task.node.is_some()).count() < 20 {
        tokio::time::sleep(Duration::from_millis(10)).await;
        status = cluster.service("web").await.unwrap();
    }
    println!(
        "200 scripts replaced, durable              median {:>7.1} ms, longest {:>5.1} ms (goal < 100), 20 of 20 decisions made",
        ms(times[10]),
        ms(times[19])
    );
    cluster.remove("web").await.unwrap();
    while cluster.service("web").await.is_ok() {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

fn thousand(schedule: &str) -> Bundle {
    let source: String =
        (0..1000).map(|n| format!("cron 'job-{n:03}' {{ schedule = '{schedule}', run = function() end }}\n")).collect();
    Bundle { entries: vec!["jobs.lua".into()], files: BTreeMap::from([("jobs.lua".into(), source)]) }
}

async fn crons(folder: &Path) {
    let daemon = Daemon::start(folder);
    let cluster = daemon.cluster();
    let rest = async || {
        let before = daemon.cpu();
        tokio::time::sleep(Duration::from_secs(20)).await;
        (daemon.cpu() - before) / 20.0 * 100.0
    };
    let without = rest().await;
    cluster.push_scripts("jobs", Push { bundle: thousand("0 0 1 1 *"), check_only: false }, "").await.unwrap();
    let with = rest().await;
    println!("1,000 cron scripts at rest                 {with:>7.2} % of a core, without any {without:.2} %");
    cluster.push_scripts("jobs", Push { bundle: thousand("* * * * *"), check_only: false }, "").await.unwrap();
    let late = loop {
        tokio::time::sleep(Duration::from_secs(2)).await;
        let all = cluster.crons().await.unwrap();
        let runs: Vec<_> = all.iter().filter_map(|cron| cron.history.first().cloned()).collect();
        if runs.len() == 1000 && runs.iter().all(|run| run.finished_at.is_some()) {
            let mut late: Vec<u64> = runs.iter().map(|run| run.started_at.0 - run.due_at.unwrap().0).collect();
            let mut over: Vec<u64> =
                runs.iter().map(|run| run.finished_at.unwrap().0 - run.due_at.unwrap().0).collect();
            late.sort_unstable();
            over.sort_unstable();
            break (late[990], over[990]);
        }
    };
    println!(
        "1,000 cron scripts due at once             p99 begun after {} ms, over and written down after {} ms (goal < 20 late)",
        late.0, late.1
    );
}

fn checks() {
    let port = 19_777_u16;
    let mut demo =
        Command::new(NEAP).args(["demo", "--port", &port.to_string()]).stdout(Stdio::null()).spawn().unwrap();
    while std::net::TcpStream::connect(("127.0.0.1", port)).is_err() {
        std::thread::sleep(Duration::from_millis(1));
    }
    let host = Arc::new(ScriptHost::new().unwrap());
    let source = "check 'c' { run = function(task) return http.get('http://' .. task:address 'http' .. '/healthz').status == 200 end }";
    let bundle = Bundle { entries: vec!["c.lua".into()], files: BTreeMap::from([("c.lua".into(), source.into())]) };
    let hash = host.add(bundle);
    let task: neap::model::task::Task = serde_json::from_value(serde_json::json!({
        "id": "01arz3ndektsv4rrffq69g5fav", "service": "web", "service_id": "01arz3ndektsv4rrffq69g5fav",
        "slot": { "replica": 1 }, "revision": 1, "state": "running", "health": "starting", "created_at": 0,
        "ports": { "http": format!("127.0.0.1:{port}") },
    }))
    .unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let before = own_cpu();
    let begun = Instant::now();
    let count = runtime.block_on(async {
        let until = Instant::now() + Duration::from_secs(5);
        let workers = (0..64).map(|_| {
            let (host, hash, task) = (host.clone(), hash.clone(), task.clone());
            async move {
                let mut count = 0;
                while Instant::now() < until {
                    assert!(
                        host.run_check(&hash, "c", Judged::task(&task, None), Duration::from_secs(5)).await.unwrap().0
                    );
                    count += 1;
                }
                count
            }
        });
        futures_util::future::join_all(workers).await.into_iter().sum::<u32>()
    });
    let took = begun.elapsed().as_secs_f64();
    let cpu = own_cpu() - before;
    println!(
        "http checks in Lua                         {:>7.0} a second, {:.0} us of cpu each (goal 10,000 on one core, or what each costs)",
        f64::from(count) / took,
        cpu / f64::from(count) * 1e6
    );
    let _ = demo.kill();
    let _ = demo.wait();
}

fn own_cpu() -> f64 {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap();
    let fields: Vec<&str> = stat.rsplit_once(')').unwrap().1.split_ascii_whitespace().collect();
    (fields[11].parse::<f64>().unwrap() + fields[12].parse::<f64>().unwrap()) / 100.0
}

fn ms(period: Duration) -> f64 {
    period.as_secs_f64() * 1000.0
}
