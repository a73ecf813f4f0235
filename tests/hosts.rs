//! Hosts: what is measured of them, and when one is taken for lost.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

#[path = "support/lab.rs"]
mod lab;
#[path = "support/mod.rs"]
mod support;

use lab::{Lab, LabDaemon, Load, all_ready, cluster};
use support::eventually;

// One after the other: each has machines of its own, and there are two cores.
static ONE_AT_A_TIME: std::sync::Mutex<()> = std::sync::Mutex::new(());

fn with_machines(machines: u32, test: impl FnOnce(&Lab)) {
    let _turn = ONE_AT_A_TIME.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    if lab::missing().is_none() {
        test(&Lab::engines(machines));
    }
}

fn state(daemon: &LabDaemon, node: &str) -> String {
    let nodes = daemon.json(&["node", "ls", "--format", "json"]);
    let found = nodes.as_array().unwrap().iter().find(|found| found["hostname"] == node).unwrap().clone();
    format!("{} {}", found["state"].as_str().unwrap(), found["agent"]["connected"])
}

#[test]
fn a_host_is_lost_when_nobody_reaches_it() {
    with_machines(3, |lab| {
        let daemon = cluster(lab);
        let flags = "--name web --replicas 3 --publish 8080:8080 --update-monitor 200ms --stop-grace-period 2s";
        let words = ["service", "create"].into_iter().chain(flags.split(' '));
        let image = lab.image("demo:1");
        daemon.ok(&words.chain([image.as_str()]).collect::<Vec<_>>());
        assert_eq!(daemon.running_on("web"), ["n1", "n2", "n3"]);
        let ids: BTreeSet<String> = ["n1", "n2", "n3"].iter().flat_map(|node| lab.containers(node, "web")).collect();
        measured(lab, &daemon);

        // Only the way between the leader and n3 is cut: n3 serves whoever reaches it, and n2 does.
        let rule = |act: &str| {
            let far = lab.address("n3");
            lab.run("n1", &["iptables", "-w", act, "INPUT", "-s", &far, "-j", "DROP"]);
            lab.run("n1", &["iptables", "-w", act, "OUTPUT", "-d", &far, "-j", "DROP"]);
        };
        let load = Load::start(format!("http://{}:8080/", lab.address("n2")));
        rule("-I");
        eventually("its agent is missed", 10, || (state(&daemon, "n3") == "ready false").then_some(()));
        let missed = Instant::now();
        while missed.elapsed() < Duration::from_secs(4) {
            assert_eq!(state(&daemon, "n3"), "ready false", "n2 reaches it");
        }
        let said = daemon.ok(&["node", "stats", "n3"]);
        assert!(said.contains("its agent is away"), "{said}");
        rule("-D");
        all_ready(&daemon, 3);
        load.end();
        let now: BTreeSet<String> = ["n1", "n2", "n3"].iter().flat_map(|node| lab.containers(node, "web")).collect();
        assert_eq!(now, ids, "nothing was moved");

        // Cut off from all.
        lab.ok(&["cut", "n3"]);
        let cut = Instant::now();
        eventually("it is down", 10, || (state(&daemon, "n3") == "down false").then_some(()));
        println!("known to be lost after {:.1} s", cut.elapsed().as_secs_f32());
        assert!(cut.elapsed() < Duration::from_millis(3500), "{:.1?}: 3 s, and the time of a look", cut.elapsed());
        eventually("three run on the others", 20, || {
            (daemon.running_on("web").iter().filter(|node| *node != "n3").count() == 3).then_some(())
        });
        lab.ok(&["mend", "n3"]);
        all_ready(&daemon, 3);
    });
}

// What hosts and containers use, whoever started them; in Lua as well.
fn measured(lab: &Lab, daemon: &LabDaemon) {
    lab.docker("n2", &["run", "-d", "--name", "busy", "--memory", "64m", "busybox", "sh", "-c", "while :; do :; done"]);
    let busy = eventually("a busy container is measured", 30, || {
        let rows = daemon.json(&["node", "stats", "--containers", "--format", "json"]);
        let rows = rows.as_array().unwrap();
        if rows.iter().any(|row| row["host"].is_null()) {
            return None;
        }
        let on = |node: &str| rows.iter().find(|row| row["node"] == node).unwrap();
        for row in rows {
            let host = &row["host"];
            let number = |of: &str| host[of].as_f64().unwrap_or_else(|| panic!("{of}: {row}"));
            assert!(number("cpu") <= number("cores") && number("memory") < number("memory_total"), "{row}");
            assert!(number("disk") <= number("disk_total") && number("load") >= 0.0, "{row}");
        }
        let (near, far) = (on("n1"), on("n2"));
        let task = |row: &serde_json::Value| {
            row["containers"]
                .as_array()
                .unwrap_or(&Vec::new())
                .iter()
                .find_map(|one| one["task"].as_str().map(str::to_owned))
        };
        let busy = far["containers"].as_array()?.iter().find(|one| one["name"] == "busy")?.clone();
        (task(near).is_some_and(|task| task.starts_with("web.")) && near["running"] == 1).then_some(busy)
    });
    assert!(busy["cpu"].as_f64().unwrap() > 0.1 && busy["memory_limit"] == 64 << 20, "{busy}");
    assert!(busy["pids"].as_u64().unwrap() > 0 && busy["task"].is_null(), "{busy}");
    let shown = daemon.ok(&["node", "stats", "n2", "-c"]);
    // A name of a container may have any two letters in it.
    let others = shown.split_whitespace().any(|word| word == "n1" || word == "n3");
    assert!(shown.contains("busy") && shown.contains("/s") && !others, "{shown}");
    let told = daemon.ok(&["run", concat!(env!("CARGO_MANIFEST_DIR"), "/scripts/usage.lua")]);
    assert!(told.contains("n1") && told.contains("busy") && told.contains("n3"), "{told}");
    lab.docker("n2", &["rm", "-f", "busy"]);
}

#[test]
fn agents_as_one_service_of_the_swarm() {
    let _turn = ONE_AT_A_TIME.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    if lab::missing().is_some() {
        return;
    }
    let lab = Lab::up(3, 1);
    lab::neap(&lab, "n1", &[&["init"], &lab::PLACE[..]].concat());
    let daemon = LabDaemon::new(&lab, "n1", &[]);
    let agents = || {
        let workers = daemon.json(&["cluster", "agents", "ls", "--format", "json"]);
        let connected = |node: &serde_json::Value| node["agent"]["connected"] == true;
        (workers.as_array().unwrap().len(), workers.as_array().unwrap().iter().filter(|node| connected(node)).count())
    };
    eventually("both workers are known", 20, || (agents() == (2, 0)).then_some(()));
    // By hand, for hosts that are to have one of their own.
    let told = daemon.ok(&["cluster", "agents", "install"]);
    assert!(told.contains("without an agent: n2, n3") && told.contains("neap join 10."), "{told}");

    let image = lab.image("demo:1");
    let install = ["cluster", "agents", "install", "--image", &image, "--program", "/bin/neap"];
    let said = daemon.ok(&install);
    assert!(said.contains("puts an agent on: n2, n3") && said.contains("lacks:"), "{said}");
    eventually("both act", 60, || (agents() == (2, 2)).then_some(()));

    // They serve published ports, tell of containers, and run commands.
    let flags = "--name web --replicas 3 --publish 8080:8080 --update-monitor 200ms --stop-grace-period 2s";
    let words = ["service", "create"].into_iter().chain(flags.split(' '));
    daemon.ok(&words.chain([image.as_str()]).collect::<Vec<_>>());
    for node in ["n2", "n3"] {
        Load::start(format!("http://{}:8080/", lab.address(node))).end();
    }
    let rows = daemon.json(&["service", "stats", "web", "--format", "json"]);
    assert!(rows.as_array().unwrap().iter().all(|row| row["stats"].is_object()), "{rows}");
    eventually("hosts are measured", 20, || {
        let rows = daemon.json(&["node", "stats", "--format", "json"]);
        rows.as_array().unwrap().iter().all(|row| row["host"]["memory"].is_u64()).then_some(())
    });

    // Their containers are replaced: the same agents come back. Done again with another image, the same.
    for node in ["n2", "n3"] {
        let id = lab.docker(node, &["ps", "-q", "--filter", "name=neap-agent"]);
        lab.docker(node, &["rm", "-f", id.trim()]);
    }
    eventually("they are missed", 20, || (agents().1 < 2).then_some(()));
    eventually("both are back", 60, || (agents() == (2, 2)).then_some(()));
    let second = lab.image("demo:2");
    let made = daemon.json(&[&install[..4], &[&second, "--program", "/bin/neap", "--format", "json"]].concat());
    assert_eq!(made["service"], "neap-agent");
    eventually("the new image runs", 60, || {
        let image = |node: &str| lab.docker(node, &["ps", "--filter", "name=neap-agent", "--format", "{{.Image}}"]);
        (image("n2").contains("demo:2") && image("n3").contains("demo:2") && agents() == (2, 2)).then_some(())
    });

    // By a script, and gone.
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/scripts/agents.lua");
    let told = daemon.ok(&["run", script, &image, "/bin/neap"]);
    assert!(told.contains("every worker has an agent"), "{told}");
    assert!(daemon.ok(&["run", script, "remove"]).contains("removed: neap-agent"));
    let left = daemon.json(&["cluster", "agents", "ls", "--format", "json"]);
    assert!(left.as_array().unwrap().iter().all(|node| node["agent"].is_null()), "{left}");

    // A host that has one of its own keeps it, whatever becomes of the service.
    let ticket = daemon.json(&["join-token", "worker", "--format", "json"]);
    let (address, token) = (ticket["addresses"][0].as_str().unwrap(), ticket["token"].as_str().unwrap());
    lab::neap(&lab, "n2", &[&["join", address, "--token", token], &lab::PLACE[..]].concat());
    let made = daemon.json(&[&install[..], &["--format", "json"]].concat());
    assert_eq!((&made["hosts"], &made["others"]), (&serde_json::json!(["n3"]), &serde_json::json!(["n2"])), "{made}");
    eventually("both act", 60, || (agents() == (2, 2)).then_some(()));
    let again = daemon.json(&[&install[..], &["--format", "json"]].concat());
    assert_eq!((&again["hosts"], &again["others"]), (&made["hosts"], &made["others"]), "{again}");
    daemon.ok(&["cluster", "agents", "rm"]);
    assert_eq!(agents(), (2, 1), "n2's goes on");
    // A manager's token makes nobody a manager by this.
    let manager = daemon.json(&["join-token", "manager", "--format", "json"])["token"].as_str().unwrap().to_owned();
    lab.run("n3", &["sh", "-c", &format!("echo {manager} >/run/token")]);
    let words = ["env", "NEAP_CONFIG=/run/neap.toml", support::NEAP, "agent", "--data", "/run/x", "--join", address];
    let refused = lab.exec("n3", &[&words[..], &["--token-file", "/run/token"]].concat());
    let said = String::from_utf8_lossy(&refused.stderr);
    assert!(!refused.status.success() && said.contains("lets a host in as manager"), "{said}");
    assert_eq!(daemon.json(&["node", "ls", "--format", "json"]).to_string().matches("\"manager\"").count(), 1);
    assert!(!daemon.ok(&["secret", "ls"]).contains("neap-agent"), "the token is gone");
}

// Packets lost, doubled, late and out of order: no host is taken for lost, no name goes whose instances are well, and what
// is asked for is done, also by a daemon that is started anew in the midst of it.
#[test]
fn a_bad_network() {
    with_machines(3, |lab| {
        let daemon = cluster(lab);
        let flags = "--name web --replicas 3 --publish 8080:8080 --update-monitor 200ms --stop-grace-period 2s";
        let (one, two) = (lab.image("demo:1"), lab.image("demo:2"));
        let words = ["service", "create"].into_iter().chain(flags.split(' '));
        daemon.ok(&words.chain([one.as_str()]).collect::<Vec<_>>());
        let names = |node: &str| -> usize {
            let output = lab.exec(
                node,
                &["dig", "@127.0.0.1", "-p", "8600", "+short", "+tries=1", "+time=3", "web.service.consul", "SRV"],
            );
            String::from_utf8_lossy(&output.stdout).lines().count()
        };
        for node in ["n1", "n2", "n3"] {
            eventually("all replicas have a name there", 20, || (names(node) == 3).then_some(()));
        }
        for node in ["n2", "n3"] {
            lab.ok(&["worse", node, "0.05", "0.05", "0.25", "10"]);
        }
        let over = std::sync::atomic::AtomicBool::new(false);
        std::thread::scope(|scope| {
            // Asked of a host by itself: what it knows, whatever the way to it is like.
            let watches = scope.spawn(|| {
                let mut count = 0;
                while !over.load(std::sync::atomic::Ordering::SeqCst) {
                    for node in ["n2", "n3"] {
                        assert!(names(node) >= 1, "{node}: no name of a service that is well");
                        count += 1;
                    }
                }
                count
            });
            let began = Instant::now();
            while began.elapsed() < Duration::from_secs(5) {
                let state = ["n2", "n3"].map(|node| state(&daemon, node));
                assert!(state.iter().all(|state| state.starts_with("ready")), "{state:?}");
            }
            daemon.ok(&["service", "update", "web", "--image", &two]);
            daemon.find();
            daemon.end("KILL");
            daemon.up(&["NEAP_LOG=warn"]);
            daemon.ok(&["service", "update", "web", "--image", &one]);
            over.store(true, std::sync::atomic::Ordering::SeqCst);
            println!("asked {} times, always with an answer", watches.join().unwrap());
        });
        for node in ["n2", "n3"] {
            lab.ok(&["better", node]);
        }
        all_ready(&daemon, 3);
        // Where they are is the policy's to say: a daemon that has just begun may not have heard of all hosts yet.
        let mut seen = (Vec::new(), 0);
        let three = |seen: &mut (Vec<String>, usize)| {
            let there = ["n1", "n2", "n3"].iter().map(|node| lab.containers(node, "web").len()).sum();
            *seen = (daemon.running_on("web"), there);
            (seen.0.len() == 3 && there == 3).then_some(())
        };
        let until = Instant::now() + Duration::from_secs(30);
        while three(&mut seen).is_none() {
            assert!(Instant::now() < until, "three run: {seen:?}, {:#?}", daemon.live("web"));
            std::thread::sleep(Duration::from_millis(100));
        }
        Load::start(format!("http://{}:8080/", lab.address("n3"))).end();
    });
}

// A host whose clock is an hour ahead, or behind: its agent connects, is told, tells and does what it is asked.
#[test]
fn a_clock_that_is_off_by_an_hour() {
    let libraries =
        ["/usr/lib/x86_64-linux-gnu/faketime/libfaketime.so.1", "/usr/lib/aarch64-linux-gnu/faketime/libfaketime.so.1"];
    let Some(library) = libraries.into_iter().find(|path| std::path::Path::new(path).exists()) else {
        assert!(std::env::var_os("CI").is_none(), "libfaketime is missing");
        println!("skipped: libfaketime is not installed");
        return;
    };
    with_machines(2, |lab| {
        let daemon = cluster(lab);
        let flags = "--name web --replicas 2 --publish 8080:8080 --update-monitor 200ms --stop-grace-period 2s";
        let images = [lab.image("demo:1"), lab.image("demo:2")];
        let words = ["service", "create"].into_iter().chain(flags.split(' '));
        daemon.ok(&words.chain([images[0].as_str()]).collect::<Vec<_>>());
        let ask = |node: &str, method: &str, path: &str, body: &str| -> String {
            let url = format!("http://127.0.0.1:8500/v1/{path}");
            let output = lab.exec(node, &["curl", "-sf", "-m", "20", "-X", method, "-d", body, &url]);
            assert!(output.status.success(), "{node}: {method} {path}: {output:?}");
            String::from_utf8_lossy(&output.stdout).into_owned()
        };
        for (round, offset) in ["+3600", "-3600"].into_iter().enumerate() {
            lab.run("n2", &["sh", "-c", "kill -9 $(pgrep -f 'neap [a]gent') && sleep 0.1"]);
            eventually("it is missed", 10, || (state(&daemon, "n2") == "ready false").then_some(()));
            let agent = format!(
                "LD_PRELOAD={library} FAKETIME={offset} FAKETIME_DONT_FAKE_MONOTONIC=1 {} agent --data /run/neap \
                 >>/run/neap.log 2>&1 &",
                support::NEAP
            );
            lab.run("n2", &["sh", "-c", &agent]);
            all_ready(&daemon, 2);
            let load = Load::start(format!("http://{}:8080/", lab.address("n2")));
            let name = format!("db{round}");
            let body = format!(r#"{{"Name":"{name}","Check":{{"TTL":"30s"}}}}"#);
            ask("n2", "PUT", "agent/service/register", &body);
            ask("n2", "PUT", &format!("agent/check/pass/service:{name}"), "");
            for node in ["n1", "n2"] {
                eventually("it passes there", 10, || {
                    ask(node, "GET", &format!("health/service/{name}?passing"), "").contains("passing").then_some(())
                });
            }
            let session = ask("n2", "PUT", "session/create", r#"{"TTL":"20s"}"#);
            let id = serde_json::from_str::<serde_json::Value>(&session).unwrap()["ID"].as_str().unwrap().to_owned();
            assert_eq!(ask("n2", "PUT", &format!("kv/leader{round}?acquire={id}"), "me"), "true");
            daemon.ok(&["service", "update", "web", "--image", &images[1 - round]]);
            // Asked of everybody for all of that time, and held.
            assert!(ask("n1", "GET", &format!("kv/leader{round}"), "").contains(&id));
            ask("n2", "PUT", &format!("session/destroy/{id}"), "");
            eventually("it is measured, a moment ago", 20, || {
                let rows = daemon.json(&["node", "stats", "n2", "--format", "json"]);
                (rows[0]["host"]["memory"].is_u64() && rows[0]["reason"].is_null()).then_some(())
            });
            load.end();
        }
    });
}
