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
        // Who has changed something on a host finds it there at once.
        assert!(get(lab, "n2", "agent/services").get("db-1").is_some());
        eventually("n3 knows it", 5, || {
            let found = get(lab, "n3", "catalog/service/db");
            (found[0]["Node"] == "n2" && found[0]["ServiceID"] == "db-1").then_some(())
        });
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

// Containers that Neap did not start appear with their names and checks, are told of everywhere, and go before they end; what
// runs in a container asks for names at its host's bridge.
#[test]
fn containers_of_others_are_registered() {
    with_machines(2, 0, |lab| {
        for node in ["n1", "n2"] {
            let line = "echo '[discovery]' >>/run/neap.toml; \
                        echo 'dns_listen = \"127.0.0.1:8600,172.17.0.1:53\"' >>/run/neap.toml; \
                        echo 'enable_script_checks = true' >>/run/neap.toml";
            lab.run(node, &["sh", "-c", line]);
            lab.docker(node, &["network", "inspect", "bridge"]);
        }
        let before = ["run", "-d", "--name", "early", "-p", "8181:8080", "-e", "SERVICE_TAGS=old,\"a\\,b\"", "demo:1"];
        lab.docker("n2", &before);
        let daemon = cluster(lab);
        let instances = |node: &str, service: &str| get(lab, node, &format!("health/service/{service}"));
        let count = |service: &str| instances("n1", service).as_array().unwrap().len();
        eventually("what ran before is there", 20, || (count("demo") == 1).then_some(()));
        let found = instances("n1", "demo");
        assert_eq!(found[0]["Node"]["Node"], "n2");
        assert_eq!(found[0]["Service"]["ID"], "n2:early:8080");
        assert_eq!(found[0]["Service"]["Address"], lab.address("n2"));
        assert_eq!(found[0]["Service"]["Port"], 8181);

        // Two ports, one of them ignored, and a check of Docker's and one of Registrator's.
        #[rustfmt::skip]
        lab.docker("n2", &[
            "run", "-d", "--name", "shop", "-p", "8282:8080", "-p", "8283:9999", "-l", "SERVICE_9999_IGNORE=1",
            "-e", "SERVICE_8080_NAME=shop", "-e", "SERVICE_REGION=eu", "-e", "SERVICE_CHECK_HTTP=/", "-e",
            "SERVICE_CHECK_INTERVAL=1s", "--health-cmd", "test -e /tmp/ok", "--health-interval", "300ms", "--health-retries", "1",
            "demo:1",
        ]);
        eventually("it is there, and not well", 20, || {
            let found = instances("n1", "shop");
            (found[0]["Service"]["Meta"]["region"] == "eu").then_some(())
        });
        assert_eq!(dig(lab, "n1", "shop.service.consul", "SRV"), Vec::<String>::new());
        lab.docker("n2", &["exec", "shop", "/bin/busybox", "touch", "/tmp/ok"]);
        eventually("Docker's own check passes", 20, || {
            (dig(lab, "n1", "shop.service.consul", "SRV").len() == 1).then_some(())
        });
        // A command in that container, asked for on its host: by whoever may run commands there.
        let inside =
            r#"{"Name":"inside","DockerContainerID":"shop","Args":["/bin/busybox","cat","/tmp/in"],"Interval":"1s"}"#;
        put(lab, "n2", "agent/check/register", inside);
        let check = |node: &str| {
            let all = get(lab, node, "health/node/n2");
            let found = all.as_array().unwrap().iter().find(|check| check["CheckID"] == "inside").unwrap().clone();
            (found["Status"].as_str().unwrap().to_owned(), found["Output"].as_str().unwrap().to_owned())
        };
        eventually("it is not there, which is a warning", 10, || (check("n1").0 == "warning").then_some(()));
        lab.docker("n2", &["exec", "shop", "/bin/busybox", "sh", "-c", "echo fine >/tmp/in"]);
        eventually("it is", 10, || (check("n1") == ("passing".into(), "fine".into())).then_some(()));
        put(lab, "n2", "agent/check/deregister/inside", "");

        // From inside a container that is nobody's, by its host's bridge.
        let said =
            lab.docker("n1", &["run", "--rm", "--dns", "172.17.0.1", "busybox", "nslookup", "shop.service.consul"]);
        assert!(said.contains(&lab.address("n2")), "{said}");

        // A reload takes nobody out; an end does, before it has ended.
        lab.docker("n2", &["kill", "-s", "HUP", "early"]);
        let slow = ["run", "-d", "--name", "slow", "-p", "8383:8080", "-e", "SERVICE_NAME=slow", "busybox"];
        lab.docker("n2", &[&slow[..], &["sh", "-c", "trap '' TERM; while :; do sleep 1; done"]].concat());
        eventually("the slow one is there", 20, || (count("slow") == 1).then_some(()));
        std::thread::scope(|scope| {
            let stop = scope.spawn(|| lab.docker("n2", &["stop", "-t", "5", "slow"]));
            let began = Instant::now();
            eventually("it is out while it ends", 5, || (count("slow") == 0).then_some(()));
            let took = began.elapsed();
            let runs = lab.docker("n2", &["inspect", "-f", "{{.State.Running}}", "slow"]);
            assert!(runs.contains("true") && took.as_millis() < 4000, "{took:?} {runs}");
            stop.join().unwrap();
        });
        assert_eq!(count("demo"), 1);

        // The agent and the daemon begin anew: nothing goes, and nothing is there twice.
        daemon.find();
        daemon.end("KILL");
        lab.docker("n2", &["rm", "-f", "early"]);
        daemon.up(&["NEAP_LOG=warn"]);
        eventually("what went meanwhile is gone", 20, || (count("demo") == 0).then_some(()));
        assert_eq!(count("shop"), 1);
        lab.docker("n2", &["pause", "shop"]);
        eventually("what is paused is out", 5, || (count("shop") == 0).then_some(()));
        lab.docker("n2", &["unpause", "shop"]);
        eventually("and back", 5, || (count("shop") == 1).then_some(()));
        // Neap's own are there by their own names alone.
        web(&daemon, &lab.image("demo:1"));
        eventually("replicas are there", 20, || (count("web") == 3).then_some(()));
        assert_eq!(count("demo"), 0);
    });
}

// What a token allows holds on each host, whoever it is asked of; one that was known there goes on while nobody leads.
#[test]
fn tokens_hold_on_each_host() {
    with_machines(2, 0, |lab| {
        for node in ["n1", "n2"] {
            lab.run(node, &["sh", "-c", "printf '[discovery]\\nconsul_policy = \"deny\"\\n' >>/run/neap.toml"]);
        }
        let daemon = cluster(lab);
        let rules = "key_prefix \"shop/\" { policy = \"write\" }\nservice_prefix \"\" { policy = \"read\" }\n\
                     node_prefix \"\" { policy = \"read\" }";
        let made = daemon.with_input(&["token", "create", "shop", "--rules", "-"], rules);
        let token = String::from_utf8_lossy(&made.stdout).trim().to_owned();
        let root = daemon.ok(&["token", "create", "root", "--role", "admin"]).trim().to_owned();
        eventually("n2 follows", 20, || {
            let found = get(lab, "n2", &format!("catalog/nodes?token={token}"));
            (found.as_array().unwrap().len() == 2).then_some(())
        });
        assert_eq!(get(lab, "n2", "catalog/nodes"), Value::Array(Vec::new()));
        put(lab, "n2", &format!("kv/bank/a?token={root}"), "1");
        put(lab, "n2", &format!("kv/shop/a?token={token}"), "1");
        for node in ["n1", "n2"] {
            for (method, path) in [("GET", "kv/bank/a"), ("PUT", "kv/bank/a"), ("PUT", "agent/service/register")] {
                for token in [&token, ""] {
                    let (status, said) = ask(lab, node, method, &format!("{path}?token={token}"), r#"{"Name":"bank"}"#);
                    assert!(status == 403 && said.contains("Permission denied"), "{node} {path}: {status} {said}");
                }
            }
            let keys = get(lab, node, &format!("kv/?keys&token={token}"));
            assert_eq!(keys, serde_json::json!(["shop/a"]), "{node}");
            assert_eq!(ask(lab, node, "GET", "kv/shop/a?token=wrong", "").0, 403);
        }
        daemon.find();
        daemon.end("KILL");
        assert_eq!(get(lab, "n2", &format!("catalog/nodes?token={token}")).as_array().unwrap().len(), 2);
        assert_eq!(get(lab, "n2", "catalog/nodes"), Value::Array(Vec::new()));
        let (status, _) = ask(lab, "n2", "GET", "catalog/nodes?token=never-seen", "");
        assert_eq!(status, 500, "whether it allows anything is not known");
    });
}
