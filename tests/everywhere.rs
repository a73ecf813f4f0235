//! The catalogue on every host of a Swarm: what DNS and Consul's API say there, and what becomes of it when nobody leads.

use std::time::Instant;

use serde_json::Value;

#[path = "support/lab.rs"]
mod lab;
#[path = "support/mod.rs"]
mod support;

use lab::{Lab, LabDaemon, cluster};
use support::eventually;

// One after the other: each has machines of its own, and there are two cores.
static ONE_AT_A_TIME: std::sync::Mutex<()> = std::sync::Mutex::new(());

fn with_machines(machines: u32, managers: u32, test: impl FnOnce(&Lab)) {
    let _turn = ONE_AT_A_TIME.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    if lab::missing().is_none() {
        test(&if managers == 0 { Lab::engines(machines) } else { Lab::up(machines, managers) });
    }
}

/// Status and body of a request to Consul's API on a machine.
fn ask(lab: &Lab, node: &str, method: &str, path: &str, body: &str) -> (u16, String) {
    let url = format!("http://127.0.0.1:8500/v1/{path}");
    let mut args = vec!["curl", "-s", "-m", "60", "-X", method, "-w", "\n%{http_code}", &url];
    if !body.is_empty() {
        args.extend(["-d", body]);
    }
    let output = lab.exec(node, &args);
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let (body, status) = text.rsplit_once('\n').unwrap_or_else(|| panic!("{path}: {output:?}"));
    (status.parse().unwrap_or_default(), body.to_owned())
}

fn get(lab: &Lab, node: &str, path: &str) -> Value {
    let (status, body) = ask(lab, node, "GET", path, "");
    assert_eq!(status, 200, "{node}: {path}: {body}");
    serde_json::from_str(&body).unwrap()
}

fn put(lab: &Lab, node: &str, path: &str, body: &str) -> String {
    let (status, said) = ask(lab, node, "PUT", path, body);
    assert_eq!(status, 200, "{node}: {path}: {said}");
    said
}

fn dig(lab: &Lab, node: &str, name: &str, kind: &str) -> Vec<String> {
    let output = lab.exec(node, &["dig", "@127.0.0.1", "-p", "8600", "+short", "+tries=1", "+time=3", name, kind]);
    let mut lines: Vec<String> = String::from_utf8_lossy(&output.stdout).lines().map(str::to_owned).collect();
    lines.sort();
    lines
}

fn web(daemon: &LabDaemon, image: &str) {
    let flags = "--name web --replicas 3 --publish 8080:8080 --update-monitor 200ms --stop-grace-period 2s";
    let words = ["service", "create"].into_iter().chain(flags.split(' ')).chain([image]);
    daemon.ok(&words.collect::<Vec<_>>());
}

#[test]
fn every_host_serves_the_catalogue() {
    with_machines(3, 0, |lab| {
        let daemon = cluster(lab);
        web(&daemon, &lab.image("demo:1"));
        for node in ["n1", "n2", "n3"] {
            eventually("all replicas have a name there", 20, || {
                (dig(lab, node, "web.service.consul", "SRV").len() == 3).then_some(())
            });
            assert_eq!(get(lab, node, "agent/self")["Config"]["NodeName"], node);
            assert_eq!(get(lab, node, "health/service/web?passing").as_array().unwrap().len(), 3);
            assert_eq!(dig(lab, node, "n2.node.consul", "A"), [lab.address("n2")]);
        }

        // What is registered at an agent is of its host, and known everywhere.
        put(lab, "n2", "agent/service/register", r#"{"Name":"db","ID":"db-1","Port":5432,"Check":{"TTL":"1m"}}"#);
        eventually("n3 knows it", 5, || {
            let found = get(lab, "n3", "catalog/service/db");
            (found[0]["Node"] == "n2" && found[0]["ServiceID"] == "db-1").then_some(())
        });
        assert!(get(lab, "n2", "agent/services").get("db-1").is_some());
        assert!(get(lab, "n3", "agent/services").get("db-1").is_none());
        // Whoever waits on one host is woken by what is said on another.
        let index = {
            let output = lab.exec("n3", &["curl", "-si", "http://127.0.0.1:8500/v1/health/service/db?passing"]);
            let text = String::from_utf8_lossy(&output.stdout).to_lowercase();
            let line = text.lines().find_map(|line| line.strip_prefix("x-consul-index: ")).unwrap().to_owned();
            line.trim().parse::<u64>().unwrap()
        };
        std::thread::scope(|scope| {
            let waits = scope.spawn(|| {
                let began = Instant::now();
                let found = get(lab, "n3", &format!("health/service/db?passing&index={index}&wait=30s"));
                (found.as_array().unwrap().len(), began.elapsed())
            });
            std::thread::sleep(std::time::Duration::from_millis(300));
            put(lab, "n2", "agent/check/pass/service:db-1", "");
            let (found, took) = waits.join().unwrap();
            assert!(found == 1 && took.as_secs() < 10, "{found} after {took:?}");
        });
        assert_eq!(put(lab, "n3", "kv/shop/level", "info"), "true");
        assert_eq!(ask(lab, "n2", "GET", "kv/shop/level?raw", ""), (200, "info".into()));
        let session: Value = serde_json::from_str(&put(lab, "n2", "session/create", "{}")).unwrap();
        let id = session["ID"].as_str().unwrap();
        assert_eq!(get(lab, "n1", "session/list")[0]["Node"], "n2");
        assert_eq!(put(lab, "n3", &format!("kv/leader?acquire={id}"), "n2"), "true");
        let (status, said) = ask(lab, "n3", "PUT", "agent/service/deregister/none", "");
        assert!(status == 404 && said.contains("none"), "{status} {said}");

        // Nobody leads: what was known is told, and nothing is acknowledged.
        daemon.find();
        daemon.end("KILL");
        assert_eq!(dig(lab, "n2", "web.service.consul", "SRV").len(), 3);
        assert_eq!(get(lab, "n3", "catalog/service/db")[0]["Node"], "n2");
        eventually("that nobody leads is said", 10, || {
            let (status, said) = ask(lab, "n3", "PUT", "kv/shop/level", "debug");
            (status == 500 && said.contains("No cluster leader")).then_some(())
        });
        daemon.up(&["NEAP_LOG=warn"]);
        eventually("keys can be written again", 20, || {
            (ask(lab, "n3", "PUT", "kv/shop/level", "warn").0 == 200).then_some(())
        });
        assert_eq!(dig(lab, "n3", "web.service.consul", "SRV").len(), 3);
        assert_eq!(get(lab, "n2", "kv/leader")[0]["Session"], id);
        put(lab, "n2", "agent/service/deregister/db-1", "");
        eventually("it is gone everywhere", 5, || dig(lab, "n3", "db.service.consul", "SRV").is_empty().then_some(()));
    });
}

// Three daemons; the one that leads is killed, and comes back. On no host a name disappears that has a healthy instance.
#[test]
fn no_name_disappears_when_the_lead_changes_hands() {
    with_machines(3, 3, |lab| {
        let daemons: Vec<LabDaemon> = ["n1", "n2", "n3"].iter().map(|node| LabDaemon::new(lab, node, &[])).collect();
        daemons.iter().for_each(|daemon| daemon.spawn(&["NEAP_LOG=warn"]));
        daemons.iter().for_each(|daemon| eventually("it answers", 30, || daemon.answers().then_some(())));
        web(&daemons[0], &lab.image("demo:1"));
        put(lab, "n3", "agent/service/register", r#"{"Name":"db","ID":"db-1","Port":5432}"#);
        let nodes = ["n1", "n2", "n3"];
        let whole = |node: &str| {
            (dig(lab, node, "web.service.consul", "SRV").len() == 3
                && dig(lab, node, "db.service.consul", "SRV").len() == 1)
                .then_some(())
        };
        nodes.iter().for_each(|node| eventually("all is known there", 20, || whole(node)));
        for round in 0..2 {
            let leads = |daemon: &&LabDaemon| {
                let log = daemon.log();
                log.rfind("engine swarm, leads").is_some_and(|at| log.rfind(" follows: ").is_none_or(|from| from < at))
            };
            let leader = daemons.iter().filter(leads).find(|daemon| daemon.answers()).unwrap();
            leader.end("KILL");
            let others: Vec<&LabDaemon> = daemons.iter().filter(|daemon| daemon.node != leader.node).collect();
            let watch = |seconds: u64, done: &dyn Fn() -> bool| {
                let began = Instant::now();
                loop {
                    for daemon in &others {
                        assert!(whole(&daemon.node).is_some(), "round {round}: names are missing on {}", daemon.node);
                    }
                    if done() {
                        return;
                    }
                    assert!(began.elapsed().as_secs() < seconds, "round {round}: nobody leads");
                }
            };
            // Until another one leads and takes registrations again, and a while longer.
            watch(60, &|| ask(lab, &others[0].node, "PUT", "kv/x", "y").0 == 200);
            let settled = Instant::now();
            watch(30, &|| settled.elapsed().as_secs() >= 3);
            leader.up(&["NEAP_LOG=warn"]);
            eventually("it has caught up", 20, || whole(&leader.node));
        }
    });
}
