//! The image registry of a Swarm: kept on one host, found behind the same address on each.

#[path = "support/lab.rs"]
mod lab;
#[path = "support/registry.rs"]
mod registry;
#[path = "support/mod.rs"]
mod support;

use std::process::Output;

use lab::{Lab, LabDaemon, all_ready, cluster};
use registry::Registry;
use serde_json::Value;
use support::{NEAP, eventually};

// One after the other: each has machines of its own, and there are two cores.
static ONE_AT_A_TIME: std::sync::Mutex<()> = std::sync::Mutex::new(());

const DOOR: &str = "127.0.0.1:5000";

// What this user's Docker knows is none of this.
fn docker(lab: &Lab, node: &str, args: &[&str]) -> Output {
    lab.exec(node, &[&["docker", "--config", "/run/docker-client"], args].concat())
}

#[track_caller]
fn ok(output: &Output) -> String {
    assert!(output.status.success(), "{output:?}");
    String::from_utf8_lossy(&output.stdout).into_owned()
}

fn push(lab: &Lab, node: &str, local: &str, image: &str) -> Output {
    ok(&docker(lab, node, &["tag", local, image]));
    docker(lab, node, &["push", image])
}

// Bytes that nothing makes smaller.
fn noise(length: usize) -> Vec<u8> {
    let mut state = 7_u64;
    let next = |_| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 56) as u8
    };
    (0..length).map(next).collect()
}

fn is_kept(daemon: &LabDaemon) {
    eventually("the registry is known to whoever leads", 30, || {
        daemon.neap(&["registry", "ls"]).status.success().then_some(())
    });
}

// An answer of the door, by its status and body.
fn asked(lab: &Lab, node: &str, path: &str) -> (String, String) {
    let url = format!("http://{DOOR}{path}");
    let output = lab.exec(node, &["curl", "-s", "-m", "20", "-w", "\n%{http_code}", &url]);
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let (body, status) = text.rsplit_once('\n').unwrap_or_default();
    (status.to_owned(), body.to_owned())
}

#[test]
fn a_worker_keeps_the_images_and_every_host_has_a_door() {
    let _turn = ONE_AT_A_TIME.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    if lab::missing().is_some() {
        return;
    }
    let lab = Lab::engines(3);
    lab.run("n3", &["sh", "-c", "echo 'roles = [\"registry\"]' >/run/neap.toml"]);
    let daemon = cluster(&lab);
    // A worker is given what the cluster tells other registries: that is said, once.
    let said = daemon.fails(&["registry", "ls"]);
    assert!(said.contains("neap registry keeper"), "{said}");
    assert_eq!(daemon.ok(&["registry", "keeper"]), "no host keeps the images\ncould as well: n3\n");
    let said = daemon.fails(&["registry", "keeper", "n2"]);
    assert!(said.contains("does not offer"), "{said}");
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("keeper.lua");
    std::fs::write(&file, "print(registry.keeper('n3').node, registry.keeper().connected)").unwrap();
    assert_eq!(daemon.ok(&["run", file.to_str().unwrap()]), "n3\ttrue\n");
    is_kept(&daemon);
    let image = format!("{DOOR}/shop/demo:1");

    // Everybody pulls; whoever pushes says who they are.
    let refused = push(&lab, "n2", "demo:1", &image);
    assert!(
        !refused.status.success() && String::from_utf8_lossy(&refused.stderr).contains("a token is needed"),
        "{refused:?}"
    );
    let token = daemon.ok(&["token", "create", "ci", "--role", "deployer"]).trim().to_owned();
    ok(&docker(&lab, "n2", &["login", DOOR, "-u", "ci", "-p", &token]));
    let pushed = ok(&push(&lab, "n2", "demo:1", &image));
    assert!(pushed.contains("digest: sha256:"), "{pushed}");
    ok(&docker(&lab, "n1", &["pull", &image]));

    // Each host runs it; the same by its digest.
    daemon.ok(&["script", "push", "deploy", concat!(env!("CARGO_MANIFEST_DIR"), "/scripts/deploy-on-push.lua")]);
    daemon.ok(&["service", "create", "--name", "web", "--mode", "global", "--publish", "8080:8080", &image]);
    for node in ["n1", "n2", "n3"] {
        assert_eq!(lab.containers(node, "web").len(), 1, "{node}");
    }
    let resolved = daemon.ok(&["registry", "resolve", "shop/demo:1"]);
    assert!(resolved.starts_with(&format!("{DOOR}/shop/demo@sha256:")), "{resolved}");
    ok(&docker(&lab, "n3", &["pull", resolved.trim()]));

    // Commands of whoever leads, about what is on another host.
    assert!(daemon.ok(&["registry", "ls"]).contains("shop/demo"));
    let tags: Value = daemon.json(&["registry", "tags", "shop/demo", "--format", "json"]);
    assert_eq!(tags[0]["tag"], "1");
    assert!(daemon.ok(&["registry", "inspect", "shop/demo:1"]).contains("layer"));
    assert!(daemon.ok(&["registry", "scrub"]).contains("read"));
    daemon.ok(&["registry", "gc"]);

    // Built here, kept there, run elsewhere.
    let note = folder.path().join("note");
    std::fs::write(&note, noise(9_000_000)).unwrap();
    let copy = format!("{}:/note", note.display());
    let built =
        daemon.json(&["registry", "build", "built:1", "--from", "shop/demo:1", "--copy", &copy, "--format", "json"]);
    ok(&docker(&lab, "n2", &["pull", built["image"].as_str().unwrap()]));

    // An engine of any host brings what it has, without a login of its own; all get it.
    let pushed = daemon.json(&["registry", "push", "--node", "n1", "demo:2", "brought:1", "--format", "json"]);
    let digest = pushed["nodes"][0]["digest"].as_str().unwrap().to_owned();
    let pulled = daemon.json(&["registry", "pull", "brought:1", "--format", "json"]);
    let nodes: Vec<(&str, &str)> = (0..3)
        .map(|at| (pulled["nodes"][at]["node"].as_str().unwrap(), pulled["nodes"][at]["digest"].as_str().unwrap()))
        .collect();
    assert_eq!(nodes, ["n1", "n2", "n3"].map(|node| (node, digest.as_str())));
    let said = daemon.fails(&["registry", "push", "demo:2", "brought:2"]);
    assert!(said.contains("there are several"), "{said}");

    // A push is an event, wherever it was.
    ok(&push(&lab, "n2", "demo:2", &image));
    let url = format!("http://{}:8080/", lab.address("n1"));
    eventually("what was pushed is rolled out", 60, || {
        let output = std::process::Command::new("curl").args(["-sS", "-m", "5", &url]).output().unwrap();
        String::from_utf8_lossy(&output.stdout).contains(r#""version":"2""#).then_some(())
    });

    // What runs, and what it could go back to, is not removed, however old or many.
    ok(&push(&lab, "n2", "demo:2", &format!("{DOOR}/shop/demo:idle")));
    ok(&push(&lab, "n2", "demo:1", &format!("{DOOR}/shop/other:1")));
    let pruned = daemon.json(&["registry", "prune", "shop/*", "--keep", "0", "--format", "json"]);
    assert_eq!((pruned["images"].as_array().unwrap().len(), &pruned["in_use"]), (1, &Value::from(2)), "{pruned}");
    assert_eq!(pruned["images"][0]["repository"], "shop/other");

    // A cache, with what the cluster tells the other registry.
    let other = Registry::start(&lab);
    ok(&docker(&lab, "n2", &["login", &other.address, "-u", "neap", "-p", "secret"]));
    ok(&push(&lab, "n2", "demo:1", &format!("{}/team/demo:1", other.address)));
    daemon.ok(&["registry", "cache", "set", "old", &format!("http://{}", other.address)]);
    let cached = format!("{DOOR}/old/team/demo:1");
    assert!(!docker(&lab, "n1", &["pull", &cached]).status.success());
    daemon.with_input(&["registry", "login", &other.address, "-u", "neap", "--password-stdin"], "secret");
    ok(&docker(&lab, "n1", &["pull", &cached]));
    let caches = daemon.json(&["registry", "cache", "ls", "--format", "json"]);
    assert!(caches[0]["misses"].as_u64().unwrap() >= 1, "{caches}");
    drop(other);
    ok(&docker(&lab, "n1", &["rmi", &cached]));
    ok(&docker(&lab, "n1", &["pull", &cached]));

    // Nobody leads: pulls go on, also those by a door that was opened meanwhile.
    daemon.find();
    daemon.end("KILL");
    ok(&docker(&lab, "n2", &["pull", &cached]));
    restart_agent(&lab, "n2");
    eventually("the door of n2 is open", 20, || {
        (asked(&lab, "n2", "/v2/shop/demo/tags/list").0 == "200").then_some(())
    });
    let (status, _) = asked(&lab, "n1", "/v2/");
    assert_eq!(status, "000", "its daemon is gone");
    daemon.up(&[]);
    all_ready(&daemon, 3);

    // The registry is gone: that is said in words, and it comes back.
    end_agent(&lab, "n3");
    let (status, body) = asked(&lab, "n1", "/v2/");
    assert!(status == "503" && body.contains("cannot be reached"), "{status} {body}");
    let said = daemon.fails(&["registry", "ls"]);
    assert!(said.contains("not connected"), "{said}");
    start_agent(&lab, "n3");
    eventually("the door leads there again", 30, || {
        (asked(&lab, "n1", "/v2/shop/demo/tags/list").0 == "200").then_some(())
    });
    is_kept(&daemon);
}

fn end_agent(lab: &Lab, node: &str) {
    let line = "for p in /proc/[0-9]*; do case \"$(tr '\\0' ' ' <$p/cmdline 2>/dev/null)\" in */[n]eap\\ agent*) \
                kill -9 ${p#/proc/}; while [ -d $p ] && ! grep -q '^State:.Z' $p/status; do sleep 0.02; done;; esac; done";
    lab.run(node, &["sh", "-c", line]);
}

fn start_agent(lab: &Lab, node: &str) {
    let line = format!("NEAP_CONFIG=/run/neap.toml {NEAP} agent --data /run/neap >>/run/agent.log 2>&1 &");
    lab.run(node, &["sh", "-c", &line]);
}

fn restart_agent(lab: &Lab, node: &str) {
    end_agent(lab, node);
    start_agent(lab, node);
}

#[test]
fn a_manager_keeps_the_images_whoever_leads() {
    let _turn = ONE_AT_A_TIME.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    if lab::missing().is_some() {
        return;
    }
    let lab = Lab::up(3, 3);
    let daemons: Vec<LabDaemon> = ["n1", "n2", "n3"]
        .map(|node| LabDaemon::new(&lab, node, if node == "n2" { &["--roles", "registry"] } else { &[] }))
        .into_iter()
        .collect();
    daemons[0].up(&[]);
    // Nobody keeps any yet.
    let said = daemons[0].fails(&["registry", "ls"]);
    assert!(said.contains("--roles registry"), "{said}");
    let (status, body) = asked(&lab, "n1", "/v2/");
    assert!(status == "503" && body.contains("--roles registry"), "{status} {body}");
    daemons[1].up(&[]);
    daemons[2].up(&[]);
    is_kept(&daemons[0]);
    let token = daemons[0].ok(&["token", "create", "ci", "--role", "deployer"]).trim().to_owned();
    let pushes = |node: &str, tag: &str| {
        ok(&docker(&lab, node, &["login", DOOR, "-u", "ci", "-p", &token]));
        ok(&push(&lab, node, "demo:1", &format!("{DOOR}/a:{tag}")));
    };
    let has_event = |daemon: &LabDaemon, tag: &str| {
        eventually("the push is an event", 20, || {
            let log = daemon.log();
            log.contains(&format!("subject=\"a:{tag}\"")).then_some(())
        });
    };
    // By the door of one that follows, of the one that leads, and of the one that keeps it.
    for (node, tag) in [("n3", "three"), ("n1", "one"), ("n2", "two")] {
        pushes(node, tag);
        has_event(&daemons[0], tag);
    }
    // Another leads, perhaps the one that keeps it.
    daemons[0].end("KILL");
    eventually("another leads", 30, || daemons[2].answers().then_some(()));
    is_kept(&daemons[2]);
    let tags: Value = daemons[2].json(&["registry", "tags", "a", "--format", "json"]);
    assert_eq!(tags.as_array().unwrap().len(), 3, "{tags}");
    pushes("n3", "four");
    let is_told = || daemons[1..].iter().any(|daemon| daemon.log().contains("subject=\"a:four\""));
    eventually("the push is an event", 20, || is_told().then_some(()));
    daemons[0].up(&[]);
    eventually("the door of n1 is open again", 20, || (asked(&lab, "n1", "/v2/a/tags/list").0 == "200").then_some(()));
    pushes("n1", "five");
    // A second one that would keep them does not, and is a door as all others are.
    daemons[0].end("TERM");
    daemons[0].up(&["NEAP_ROLES=registry"]);
    eventually("the door of n1 leads to n2", 20, || {
        (asked(&lab, "n1", "/v2/a/tags/list").1.contains("five")).then_some(())
    });
    pushes("n1", "six");
    eventually("n1 is known to offer it", 20, || {
        (daemons[2].ok(&["registry", "keeper"]).ends_with("could as well: n1\n")).then_some(())
    });
    // The one that keeps it ends, and is there again with all.
    daemons[1].end("TERM");
    assert_eq!(asked(&lab, "n3", "/v2/").0, "503");
    daemons[1].up(&[]);
    is_kept(&daemons[2]);
    eventually("the door leads there", 20, || (asked(&lab, "n3", "/v2/a/tags/list").0 == "200").then_some(()));
    let (_, body) = asked(&lab, "n3", "/v2/a/tags/list");
    assert!(body.contains("six") && body.contains("one"), "{body}");
    // Another is named: it begins with what it has, and every door leads there.
    daemons[2].ok(&["registry", "keeper", "n1"]);
    for node in ["n1", "n2", "n3"] {
        eventually("the door leads to n1", 20, || (asked(&lab, node, "/v2/a/tags/list").0 == "404").then_some(()));
    }
    daemons[2].ok(&["registry", "keeper", "n2"]);
    eventually("the door leads to n2", 20, || (asked(&lab, "n1", "/v2/a/tags/list").0 == "200").then_some(()));
}
