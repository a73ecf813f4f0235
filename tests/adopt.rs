//! Services that a real Swarm runs itself: shown beside Neap's own, taken over under load, and given back.

#[path = "support/lab.rs"]
mod lab;
#[path = "support/mod.rs"]
mod support;

use std::time::Duration;

use lab::{Lab, LabDaemon, Load, cluster};
use support::eventually;

fn docker_service(lab: &Lab, name: &str, more: &[&str]) {
    let image = lab.image("demo:1");
    #[rustfmt::skip]
    let words = [
        "service", "create", "--detach=false", "--quiet", "--name", name, "--replicas", "2", "--network", "back",
        "--constraint", "node.hostname!=n3", "--stop-grace-period", "2s",
    ];
    lab.docker("n1", &[&words[..], more, &[&image]].concat());
}

// What the daemon says of the last handover.
fn handover(daemon: &LabDaemon, service: &str) -> serde_json::Value {
    daemon.json(&["service", "inspect", service])["status"]["service"]["handover"].clone()
}

fn native(daemon: &LabDaemon, name: &str) -> Option<serde_json::Value> {
    let natives = daemon.json(&["service", "ls", "--native", "--format", "json"]);
    natives.as_array().unwrap().iter().find(|native| native["name"] == name).cloned()
}

#[test]
fn a_service_of_the_swarm_is_adopted_under_load_and_given_back() {
    if lab::missing().is_some() {
        return;
    }
    let lab = Lab::engines(3);
    let daemon = cluster(&lab);
    lab.docker("n1", &["network", "create", "-d", "overlay", "--attachable", "back"]);
    lab.run("n1", &["sh", "-c", "printf 'listen 80' | docker config create site -"]);
    lab.run("n1", &["sh", "-c", "printf hunter2 | docker secret create key -"]);
    #[rustfmt::skip]
    docker_service(&lab, "shop_web", &[
        "--publish", "mode=host,published=8080,target=8080", "--config", "source=site,target=/etc/site.conf",
        "--secret", "key", "--env", "LEVEL=info", "--label", "team=shop", "--health-cmd", "test -e /etc/site.conf",
        "--health-interval", "500ms", "--limit-memory", "64M", "--update-order", "stop-first",
    ]);
    docker_service(&lab, "resolver", &["--publish", "published=5353,target=53,protocol=udp", "--env", "PORT_UDP=53"]);
    docker_service(&lab, "keyed", &["--secret", "source=key,target=/etc/key"]);

    // Shown beside ours.
    let listed = daemon.ok(&["service", "ls"]);
    let line = listed.lines().find(|line| line.starts_with("shop_web")).unwrap_or_else(|| panic!("{listed}"));
    assert!(line.contains("2/2") && line.contains("native") && line.contains("8080->8080 (host)"), "{listed}");
    let tasks = daemon.ok(&["service", "ps", "shop_web"]);
    assert!(tasks.contains("shop_web.1") && tasks.contains("running"), "{tasks}");
    assert_eq!(daemon.json(&["service", "inspect", "shop_web"])["native"]["networks"][0], "back");

    // What cannot be is said before anything is changed.
    let said = daemon.fails(&["service", "adopt", "keyed"]);
    assert!(said.contains("cannot be run by Neap: secret key: replicas find secrets below /run/secrets"), "{said}");
    lab.docker("n1", &["service", "rm", "keyed"]);
    let said = daemon.fails(&["service", "adopt", "nothing"]);
    assert!(said.contains("not found"), "{said}");
    let said = daemon.fails(&["service", "adopt", "shop_web"]);
    assert!(said.contains("there is no secret \"key\"") && said.contains("neap secret set key"), "{said}");
    docker_service(&lab, "store", &["--mount", "type=volume,source=data,target=/data", "--env", "STAGE=1"]);
    let said = daemon.fails(&["service", "adopt", "store"]);
    assert!(said.contains("writes to /data") && said.contains("--share-volumes"), "{said}");
    daemon.secret("key", "hunter2");
    let plan = daemon.json(&["service", "adopt", "shop_web", "--dry-run", "--format", "json"]);
    let service = &plan["service"];
    assert_eq!(service["name"], "shop-web");
    assert_eq!(service["check"]["exec"], serde_json::json!(["/bin/sh", "-c", "test -e /etc/site.conf"]));
    assert_eq!(service["limits"]["memory"], "64MiB");
    assert_eq!((&service["env"]["LEVEL"], &service["labels"]["team"]), (&"info".into(), &"shop".into()));
    assert_eq!(service["rollout"]["order"], "stop-first");
    assert_eq!(plan["configs"], serde_json::json!(["site"]));
    assert!(plan["notes"].to_string().contains("is open on every host"), "{plan}");
    assert!(daemon.fails(&["service", "inspect", "shop-web"]).contains("not found"));

    // Taken over, by a daemon that dies meanwhile.
    let load = Load::start(format!("http://{}:8080/", lab.address("n1")));
    load.gap();
    daemon.ok(&["service", "adopt", "shop_web", "--detach"]);
    assert!(daemon.ok(&["service", "ls"]).contains("being adopted"));
    daemon.find();
    daemon.end("KILL");
    daemon.up(&[]);
    let done =
        eventually("it is adopted", 60, || Some(handover(&daemon, "shop-web")).filter(|it| it["state"] == "done"));
    let gap = load.gap();
    println!("adopted: {done}, seen from outside: {gap:?}");
    assert!(gap < Duration::from_secs(5), "{gap:?}");
    assert!(done["gaps"].is_object(), "{done}");
    daemon.ok(&["service", "wait", "shop-web", "--timeout", "30s"]);
    assert_eq!(native(&daemon, "shop_web"), None);
    eventually("only its replicas are left", 30, || {
        let on = |node: &&str| lab.docker(node, &["ps", "-q", "--filter", "name=shop"]).lines().count();
        (["n1", "n2", "n3"].iter().map(on).sum::<usize>() == 2).then_some(())
    });
    // Open on every host, and found by the name that it had.
    drop(Load::start(format!("http://{}:8080/", lab.address("n3"))));
    let (node, id) = ["n1", "n2"]
        .iter()
        .find_map(|node| Some((*node, lab.containers(node, "shop-web").into_iter().next()?)))
        .unwrap();
    let found = lab.docker(node, &["exec", &id, "nslookup", "shop_web"]);
    assert_eq!(found.matches("Address").count() - 1, 2, "both replicas:\n{found}");
    assert_eq!(lab.docker(node, &["exec", &id, "cat", "/run/secrets/key"]), "hunter2");
    assert_eq!(lab.docker(node, &["exec", &id, "cat", "/etc/site.conf"]), "listen 80");
    let said = daemon.fails(&["service", "hand-back", "keyed"]);
    assert!(said.contains("not found"), "{said}");

    // A port of UDP: answered on each host, from the address that was asked.
    daemon.ok(&["service", "adopt", "resolver"]);
    for node in ["n1", "n3"] {
        let client = std::net::UdpSocket::bind("0.0.0.0:0").unwrap();
        client.connect((lab.address(node), 5353)).unwrap();
        client.set_read_timeout(Some(Duration::from_secs(1))).unwrap();
        eventually("it is answered", 20, || {
            let mut buffer = [0; 100];
            client.send(b"hi").unwrap();
            let length = client.recv(&mut buffer).ok()?;
            (&buffer[..length] == b"1 53 hi").then_some(())
        });
    }

    // What somebody changes meanwhile stays the Swarm's.
    let waits = r#"{"check": {"exec": ["test", "-e", "/tmp/go"], "every": "300ms", "unhealthy": 1000}}"#;
    daemon.ok(&["service", "adopt", "store", "--share-volumes", "--change", waits, "--detach"]);
    lab.docker("n1", &["service", "update", "--quiet", "--detach=false", "--env-add", "STAGE=2", "store"]);
    for node in ["n1", "n2"] {
        for container in eventually("its replicas run", 30, || {
            Some(lab.containers(node, "store")).filter(|_| lab.all_containers("store") == 2)
        }) {
            lab.exec_in(node, &container, "touch /tmp/go").unwrap();
        }
    }
    eventually("the change is seen", 30, || {
        let reason = handover(&daemon, "store")["reason"].as_str().unwrap_or_default().to_owned();
        reason.contains("was changed meanwhile").then_some(())
    });
    daemon.ok(&["service", "rm", "store"]);
    assert_eq!(native(&daemon, "store").unwrap()["running"], 2);

    // Given back: not where a name or the ports are in the way.
    docker_service(&lab, "shop-web", &[]);
    let said = daemon.fails(&["service", "hand-back", "shop-web"]);
    assert!(said.contains("the Swarm has a service \"shop-web\" of its own already"), "{said}");
    lab.docker("n1", &["service", "rm", "shop-web"]);
    daemon.ok(&["service", "scale", "shop-web=3"]);
    let said = daemon.fails(&["service", "hand-back", "shop-web", "--publish-mode", "host"]);
    assert!(said.contains("its 3 tasks cannot have its ports on 2 hosts"), "{said}");
    daemon.ok(&["service", "scale", "shop-web=2"]);
    // One that stays after all.
    daemon.ok(&["service", "hand-back", "shop-web", "--publish-mode", "host", "--detach"]);
    let said = daemon.fails(&["service", "scale", "shop-web=3"]);
    assert!(said.contains("is just being given back to the Swarm"), "{said}");
    let said = daemon.fails(&["service", "rm", "shop-web"]);
    assert!(said.contains("is just being given back to the Swarm"), "{said}");
    daemon.ok(&["service", "hand-back", "shop-web", "--cancel"]);
    daemon.ok(&["service", "wait", "shop-web", "--timeout", "60s"]);
    assert_eq!(native(&daemon, "shop-web"), None);
    load.gap();
    let said = daemon.ok(&["service", "hand-back", "shop-web", "--publish-mode", "host"]);
    let gap = load.gap();
    println!("given back: {said}, seen from outside: {gap:?}");
    assert!(said.contains(":8080 let nobody in for"), "{said}");
    assert!(gap < Duration::from_secs(15), "{gap:?}");
    let left = native(&daemon, "shop-web").unwrap();
    assert_eq!((&left["running"], &left["ports"][0]["mode"]), (&2.into(), &"host".into()), "{left}");
    eventually("its replicas are gone", 20, || (lab.all_containers("shop-web") == 0).then_some(()));
    let (node, id) = ["n1", "n2"]
        .iter()
        .find_map(|node| {
            let found = lab.docker(node, &["ps", "-q", "--filter", "name=shop-web"]);
            Some((*node, found.lines().next()?.to_owned()))
        })
        .unwrap();
    assert_eq!(lab.docker(node, &["exec", &id, "cat", "/run/secrets/key"]), "hunter2");

    // And the same by scripts, back to the names of before.
    let file = concat!(env!("CARGO_MANIFEST_DIR"), "/scripts/adopt.lua");
    let said = daemon.ok(&["run", file, "shop-"]);
    assert!(said.contains("shop-web becomes shop-web") && said.contains("is open on every host"), "{said}");
    assert!(daemon.ok(&["run", file, "shop-", "--do"]).contains("shop-web is shop-web now: 2 of 2 healthy"));
    let script = "
        local web = services.get 'shop-web'
        local told = web:hand_back { publish_mode = 'host', wait = '90s' }
        assert(#told.notes > 0 and next(told.gaps), told)
        local made = natives.adopt('shop-web', { as = 'other', change = { labels = { team = 'x' } }, dry_run = true })
        local service = made.service
        assert(service.env.PORT == nil and service.secrets.key == 'key' and service.configs['/etc/site.conf'] == 'site')
        print(service.name, service.labels.team, #natives.list())
    ";
    assert!(daemon.ok(&["repl", "--eval", script]).trim().ends_with("other\tx\t2"));
    drop(load);
}
