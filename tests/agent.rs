//! Hosts that join with one command, and what is done on each of them.

use std::collections::BTreeSet;

#[path = "support/lab.rs"]
mod lab;
#[path = "support/mod.rs"]
mod support;

use lab::{Lab, LabDaemon, Load, agents, all_ready, cluster, neap};
use support::{NEAP, eventually};

// One after the other: each has machines of its own, and there are two cores.
static ONE_AT_A_TIME: std::sync::Mutex<()> = std::sync::Mutex::new(());

fn with_machines(machines: u32, test: impl FnOnce(&Lab)) {
    let _turn = ONE_AT_A_TIME.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    if lab::missing().is_none() {
        test(&Lab::engines(machines));
    }
}

fn refused(lab: &Lab, node: &str, args: &[&str]) -> String {
    let output = lab.exec(node, &[&["env", "NEAP_CONFIG=/run/neap.toml", NEAP], args].concat());
    assert!(!output.status.success(), "neap {args:?} should fail: {}", String::from_utf8_lossy(&output.stdout));
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// Two replicas behind a port.
fn web(daemon: &LabDaemon, image: &str) {
    let flags = "--name web --replicas 2 --publish 8080:8080 --update-monitor 200ms --stop-grace-period 2s";
    let words = ["service", "create"].into_iter().chain(flags.split(' ')).chain([image]);
    daemon.ok(&words.collect::<Vec<_>>());
}

fn everywhere(lab: &Lab, port: u16) -> Vec<Load> {
    (1..=lab.machines).map(|n| Load::start(format!("http://{}:{port}/", lab.address(&format!("n{n}"))))).collect()
}

#[test]
fn three_commands_make_a_cluster() {
    with_machines(3, |lab| {
        let daemon = cluster(lab);
        let (demo1, demo2) = (lab.image("demo:1"), lab.image("demo:2"));
        web(&daemon, &demo1);
        // Every host answers, whoever it runs on; and nothing is lost in a rollout, whichever is asked.
        let mut loads = everywhere(lab, 8080);
        daemon.ok(&["route", "set", "web", "*:8088", "--to", "web"]);
        loads.extend(everywhere(lab, 8088));
        daemon.ok(&["service", "scale", "web=4"]);
        daemon.ok(&["service", "update", "web", "--image", &demo2, "--update-parallelism", "2"]);
        loads.iter().for_each(|load| load.saw("\"version\":\"2\""));
        daemon.ok(&["service", "rollback", "web"]);
        loads.iter().for_each(|load| load.saw("\"version\":\"1\""));
        daemon.ok(&["node", "update", "n3", "--availability", "drain"]);
        eventually("n3 is empty", 30, || lab.containers("n3", "web").is_empty().then_some(()));
        loads.into_iter().for_each(Load::end);
        daemon.ok(&["node", "update", "n3", "--availability", "active"]);

        // One that is killed is replaced.
        let node = ["n1", "n2"].into_iter().find(|node| !lab.containers(node, "web").is_empty()).unwrap();
        let victim = lab.containers(node, "web").into_iter().next().unwrap();
        lab.docker(node, &["kill", &victim]);
        daemon.task_that("web", "failed", |task| task["state"] == "failed" && task["reason"] == "exit code 137");

        // A port that somebody has on one host stops that port there, and names its owner.
        let line = format!("{NEAP} demo --address 0.0.0.0 --port 9090 >/dev/null 2>&1 & echo $! >/run/demo.pid");
        lab.run("n2", &["sh", "-c", &line]);
        eventually("the port is taken", 5, || {
            std::net::TcpStream::connect((lab.address("n2"), 9090)).is_ok().then_some(())
        });
        let said = daemon.fails(&["service", "create", "--name", "other", "--publish", "9090:8080", &demo1]);
        assert!(said.contains("on node \"n2\"") && said.contains("9090"), "{said}");
        lab.run("n2", &["sh", "-c", "kill $(cat /run/demo.pid)"]);
        eventually("it heals", 20, || {
            let status = &daemon.json(&["service", "inspect", "other"])["status"];
            (status["settled"] == true).then_some(())
        });
        daemon.ok(&["service", "rm", "web", "other"]);

        // A host leaves.
        let said = refused(lab, "n1", &["leave", "--data", "/run/neap"]);
        assert!(said.contains("is a manager"), "{said}");
        let said = neap(lab, "n3", &["leave", "--data", "/run/neap"]);
        assert!(said.contains("has left the Swarm"), "{said}");
        assert_eq!(lab.docker("n3", &["info", "-f", "{{.Swarm.LocalNodeState}}"]), "inactive");
        eventually("it is taken off the list", 60, || {
            daemon.neap(&["node", "rm", "n3"]).status.success().then_some(())
        });
        let left = lab.run("n3", &["sh", "-c", "ps -e | grep -c '[n]eap' || true"]);
        assert_eq!(left.trim(), "0", "nothing of ours runs there");
    });
}

// A volume is a host's own; which has it, and who mounts it, is seen from anywhere.
fn volumes_of_hosts(lab: &Lab, daemon: &LabDaemon, busybox: &str) {
    let said = daemon.ok(&["volume", "create", "data", "--label", "scratch=yes"]);
    assert_eq!(said, "data on n1\ndata on n2\n");
    assert_eq!(daemon.ok(&["volume", "create", "data", "--label", "scratch=yes"]), said, "said again");
    daemon.ok(&["volume", "create", "extra", "--node", "n2", "--opt", "type=tmpfs", "--opt", "device=tmpfs"]);
    let said = daemon.fails(&["volume", "create", "extra", "--node", "n2"]);
    assert!(said.contains("another driver or other options"), "{said}");
    let mount = ["--name", "keeps", "--mount", "source=data,target=/data", "--constraint", "node.hostname==n2"];
    daemon.ok(&[&["service", "create"], &mount[..], &[busybox, "sleep", "1000"]].concat());
    let listed: serde_json::Value = serde_json::from_str(&daemon.ok(&["volume", "inspect", "data", "extra"])).unwrap();
    let row = |volume: &serde_json::Value| {
        format!("{} {} {}", volume["name"], volume["hostname"], volume["used_by"]).replace('"', "")
    };
    let rows: Vec<String> = listed.as_array().unwrap().iter().map(row).collect();
    assert_eq!(rows, ["data n1 []", "data n2 [keeps.1]", "extra n2 []"]);
    let said = daemon.fails(&["volume", "rm", "data", "--node", "n2"]);
    assert!(said.contains("is in use"), "{said}");
    daemon.ok(&["service", "rm", "keeps"]);
    eventually("it is free", 20, || daemon.ok(&["volume", "ls"]).contains("keeps").eq(&false).then_some(()));
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/scripts/volumes.lua");
    eventually("a script removes it", 20, || {
        let said = daemon.ok(&["run", script, "--remove"]);
        said.contains("n2: data is removed").then_some(())
    });
    let made = daemon.ok(&["repl", "--eval", "print(#volumes.create { name = 'both' }, #volumes.remove 'both')"]);
    assert_eq!(made.trim(), "2\t2");
    let left = lab.docker("n2", &["volume", "ls", "-q"]);
    assert!(left.contains("extra") && !left.contains("data") && !left.contains("both"), "{left}");
    daemon.ok(&["volume", "rm", "extra"]);
    assert!(daemon.fails(&["volume", "rm", "extra"]).contains("neap volume ls"));
}

#[test]
fn a_script_makes_a_cluster() {
    with_machines(3, |lab| {
        let script = concat!(env!("CARGO_MANIFEST_DIR"), "/scripts/hosts.lua");
        let run = |node: &str, args: &[&str]| {
            let place = ["env", "NEAP_CONFIG=/run/neap.toml", "NEAP_DATA=/run/neap", "NEAP_SOCKET=/run/neap.sock"];
            lab.run(node, &[&place[..], &["NEAP_HOST=unix:///run/neap.sock", NEAP, "run", script], args].concat())
        };
        let said = run("n1", &["init"]);
        let words: Vec<&str> = said.lines().last().unwrap().split_whitespace().skip(3).collect();
        assert_eq!(words[0], "join", "{said}");
        for node in ["n2", "n3"] {
            let joined = run(node, &words);
            assert!(joined.contains("a worker of default now"), "{joined}");
        }
        let daemon = LabDaemon::new(lab, "n1", &[]);
        all_ready(&daemon, 3);
        // The practice on it, from publishing to removing.
        let practice = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/scripts/practice.lua");
        let images = ["demo:1", "demo:2", "busybox"].map(|name| lab.image(name));
        let urls = ["n1", "n2", "n3"].map(|node| format!("http://{}:8080/", lab.address(node)));
        let words: Vec<&str> = images.iter().chain(&urls).map(String::as_str).collect();
        let host = "NEAP_HOST=unix:///run/neap.sock";
        let said = lab.run("n1", &[&["env", host, NEAP, "run", practice], &words[..]].concat());
        assert!(said.contains("requests, 0 failed"), "{said}");
        assert!(run("n2", &["leave"]).contains("nobody's"));
        eventually("it is gone", 30, || agents(&daemon).contains(&("n2".into(), false)).then_some(()));
        // What the daemon itself runs has no host that is meant.
        let hosted = lab.folder().join("n1/run/hosted.lua");
        std::fs::write(
            &hosted,
            "cron 'leave' { schedule = '@yearly', run = function() print(select(2, pcall(cluster.leave))) end }",
        )
        .unwrap();
        daemon.ok(&["script", "push", "hosted", hosted.to_str().unwrap()]);
        let said = daemon.ok(&["cron", "run", "leave"]);
        assert!(said.contains("is for the host where a script is run by hand"), "{said}");
    });
}

#[test]
fn what_is_done_on_each_host() {
    with_machines(2, |lab| {
        let daemon = cluster(lab);
        let (demo1, demo2, busybox) = (lab.image("demo:1"), lab.image("demo:2"), lab.image("busybox"));
        web(&daemon, &demo1);
        // A command whose failure takes a replica out of the balancer, and leaves it running.
        daemon.ok(&[
            "service",
            "create",
            "--name",
            "far",
            "--constraint",
            "node.hostname==n2",
            "--health-cmd",
            "test -e /tmp/ok",
            "--health-interval",
            "300ms",
            "--health-retries",
            "1",
            "--health-on-fail",
            "unroute",
            &busybox,
            "sh",
            "-c",
            "touch /tmp/ok; sleep 1000",
        ]);
        let id = lab.containers("n2", "far").into_iter().next().unwrap();
        lab.docker("n2", &["exec", &id, "rm", "/tmp/ok"]);
        daemon.task_that("far", "fails its check", |task| task["health"] == "unhealthy" && task["state"] == "running");
        assert_eq!(lab.containers("n2", "far"), BTreeSet::from([id]), "the same container");

        // A port that nobody published, asked where its replica is.
        let worker = concat!(env!("CARGO_MANIFEST_DIR"), "/scripts/worker.lua");
        let told = daemon.ok(&["run", worker, &demo1, "8080", "/healthz", "2"]);
        assert_eq!(told.lines().filter(|line| line.split_whitespace().last() == Some("healthy")).count(), 2, "{told}");
        assert_eq!(daemon.running_on("worker"), ["n1", "n2"]);
        daemon.ok(&["service", "rm", "worker"]);
        let flags =
            "--health-http /ok --health-port 8099 --health-interval 200ms --health-retries 1 --health-on-fail unroute";
        let words = ["service", "create", "--name", "alone", "--constraint", "node.hostname==n2"].into_iter();
        let serve = [&busybox, "sh", "-c", "touch /tmp/ok; exec httpd -f -p 127.0.0.1:8099 -h /tmp"];
        daemon.ok(&words.chain(flags.split(' ')).chain(serve).collect::<Vec<_>>());
        let id = lab.containers("n2", "alone").into_iter().next().unwrap();
        lab.docker("n2", &["exec", &id, "rm", "/tmp/ok"]);
        let failed = daemon.task_that("alone", "fails its check", |task| task["health"] == "unhealthy");
        assert!(failed["reason"].as_str().unwrap().contains("GET /ok: status 404"), "{failed}");
        daemon.ok(&["service", "rm", "alone"]);

        volumes_of_hosts(lab, &daemon, &busybox);

        // What replicas use, counted on each host.
        lab.docker(
            "n2",
            &[
                "exec",
                "-d",
                lab.containers("n2", "far").first().unwrap(),
                "sh",
                "-c",
                "i=0; while [ $i -lt 5000000 ]; do i=$((i+1)); done",
            ],
        );
        let rows = daemon.json(&["service", "stats", "--format", "json"]);
        let of = |task: &str| rows.as_array().unwrap().iter().find(|row| row["task"] == task).unwrap().clone();
        let (far, web) = (of("far.1"), of("web.1"));
        assert!(web["stats"].is_object(), "{rows}");
        assert!(far["node"] == "n2" && far["stats"]["cpu"].as_f64().unwrap() > 0.2, "{far}");
        assert!(
            web["stats"]["memory"].as_u64().unwrap() > 100_000 && web["stats"]["pids"].as_u64().unwrap() > 0,
            "{web}"
        );
        let shown = daemon.ok(&["service", "stats", "far"]);
        assert!(shown.contains("far.1  n2") && shown.contains('%') && !shown.contains("web.1"), "{shown}");
        let told = daemon.ok(&["run", concat!(env!("CARGO_MANIFEST_DIR"), "/scripts/stats.lua"), "web"]);
        assert!(told.contains("web.1") && told.contains("MiB") && !told.contains("far.1"), "{told}");

        // Images: what runs, and what can be gone back to, stays.
        daemon.ok(&["service", "update", "web", "--image", &demo2]);
        let has = |image: &str| !lab.docker("n2", &["images", "-q", image]).is_empty();
        let would = daemon.ok(&["node", "prune-images", "n2", "--dry-run"]);
        assert!(would.contains("demo:3") && would.contains("would be freed") && has("demo:3"), "{would}");
        daemon.ok(&["node", "prune-images", "n2"]);
        assert!(has(&demo1) && has(&demo2) && has(&busybox) && !has("demo:3"));
        let script = concat!(env!("CARGO_MANIFEST_DIR"), "/scripts/images.lua");
        daemon.ok(&["script", "push", "images", script]);
        let ran = daemon.ok(&["cron", "run", "prune-images"]);
        assert!(ran.contains("n1: 0 images") && ran.contains("n2: 0 images"), "{ran}");

        // Whoever dies: traffic goes on at every host.
        let loads = everywhere(lab, 8080);
        let kill = |node: &str, what: &str| {
            lab.run(node, &["sh", "-c", &format!("kill -9 $(pgrep -f '{what}') && sleep 0.1")]);
        };
        kill("n2", "neap [a]gent");
        eventually("it is missed", 10, || agents(&daemon).contains(&("n2".into(), false)).then_some(()));
        let said = daemon.ok(&["service", "stats", "far"]);
        assert!(said.contains("needs an agent on node \"n2\""), "{said}");
        lab.run("n2", &["sh", "-c", &format!("{NEAP} agent --data /run/neap >>/run/neap.log 2>&1 &")]);
        all_ready(&daemon, 2);
        kill("n1", "neap [u]p");
        daemon.spawn(&[]);
        all_ready(&daemon, 2);
        daemon.ok(&["service", "update", "web", "--image", &demo1]);
        loads.iter().for_each(|load| load.saw("\"version\":\"1\""));
        loads.into_iter().for_each(Load::end);
        // A balancer that dies is started anew with its table, whoever leads.
        kill("n2", "neap [b]alancer");
        let load = Load::start(format!("http://{}:8080/", lab.address("n2")));
        load.end();

        // Who may come.
        let address = format!("{}:8377", lab.address("n1"));
        let token = daemon.ok(&["join-token", "worker", "--quiet"]).trim().to_owned();
        let by_script = daemon.ok(&["repl", "--eval", "print(cluster.join_token('worker').token)"]);
        assert_eq!(by_script.trim(), token);
        let join = |token: &str, data: &str| {
            ["join", &address, "--token", token, "--no-start", "--data", data].map(str::to_owned)
        };
        let refuse = |token: &str, data: &str| {
            let words = join(token, data);
            refused(lab, "n2", &words.iter().map(String::as_str).collect::<Vec<_>>())
        };
        let said = refuse(&token, "/run/other");
        assert!(said.contains("has an agent already") && said.contains("neap node forget n2"), "{said}");
        let (head, _) = token.rsplit_once('-').unwrap();
        let said = refuse(&format!("{head}-{}", "0".repeat(32)), "/run/other");
        assert!(said.contains("is not known here"), "{said}");
        let said = refuse(&format!("NEAP-1-{}-{}", "0".repeat(64), "0".repeat(32)), "/run/other");
        assert!(said.contains("is no daemon of this cluster"), "{said}");
        // Forgotten, it is not listened to, and another takes its place.
        daemon.ok(&["node", "forget", "n2"]);
        eventually("it is gone", 10, || {
            let nodes = daemon.json(&["node", "ls", "--format", "json"]);
            let there =
                nodes.as_array().unwrap().iter().any(|node| node["hostname"] == "n2" && !node["agent"].is_null());
            (!there).then_some(())
        });
        let words = join(&token, "/run/other");
        neap(lab, "n2", &words.iter().map(String::as_str).collect::<Vec<_>>());
        lab.run("n2", &["sh", "-c", &format!("{NEAP} agent --data /run/other >>/run/neap.log 2>&1 &")]);
        all_ready(&daemon, 2);
        // A token that was made anew: the one before lets nobody in.
        daemon.ok(&["join-token", "worker", "--rotate"]);
        let said = refuse(&token, "/run/third");
        assert!(said.contains("is not known here"), "{said}");
    });
}
