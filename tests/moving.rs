//! Desired state moves from the Swarm into the data folder and back, also when the move dies half-way.

#[path = "support/lab.rs"]
mod lab;
#[path = "support/mod.rs"]
mod support;

use lab::{Lab, LabDaemon, Load};
use support::{NEAP, eventually};

fn move_it(lab: &Lab, to: &str, fault: &str) -> (bool, String) {
    let env = format!("NEAP_FAULT={fault}");
    let words = ["env", "NEAP_CONFIG=/run/neap.toml", &env, NEAP, "store", "move", "--to", to, "--data", "/run/neap"];
    let output = lab.exec("n1", &words);
    let said = [output.stdout, output.stderr].concat();
    (output.status.success(), String::from_utf8_lossy(&said).into_owned())
}

#[test]
fn the_store_moves_out_of_the_swarm_and_back() {
    if lab::missing().is_some() {
        return;
    }
    let lab = Lab::up(2, 2);
    let first = LabDaemon::start(&lab, "n1", &[]);
    first.secret("shop/key", "hunter2");
    first.config("shop/site", "listen 80");
    first.ok(&["kv", "set", "shop/level", "info"]);
    #[rustfmt::skip]
    first.ok(&[
        "service", "create", "--name", "web", "--replicas", "3", "--publish", "8080:8080", "--secret",
        "source=shop/key,target=key", "--config", "source=shop/site,target=/etc/site", "--stop-grace-period", "1s",
        &lab.image("demo:1"),
    ]);
    let ids = |daemon: &LabDaemon| daemon.running_on("web");
    let tasks = |daemon: &LabDaemon| -> Vec<String> {
        let mut ids: Vec<String> =
            daemon.live("web").iter().map(|task| task["id"].as_str().unwrap().to_owned()).collect();
        ids.sort();
        ids
    };
    let (before, places) = (tasks(&first), ids(&first));
    let load = Load::start(format!("http://{}:8080/", lab.address("n1")));

    // Not under a daemon's hands: neither its own, nor another one's.
    assert!(move_it(&lab, "redb", "").1.contains("is in use by another daemon"));
    let second = LabDaemon::start(&lab, "n2", &[]);
    first.end("TERM");
    let (ok, said) = move_it(&lab, "redb", "");
    assert!(!ok && said.contains("is led by the daemon on \"n2\""), "{said}");
    second.end("TERM");

    // One that died half-way, and is not wanted any more.
    let (ok, said) = move_it(&lab, "redb", "moving.marked");
    assert!(!ok && said.contains("killed"), "{said}");
    let (ok, said) = move_it(&lab, "swarm", "");
    assert!(ok && said.contains("records are in the Swarm now"), "{said}");

    // Out, dying at each step; whatever daemon comes meanwhile finds one store or the other, never both.
    for point in ["moving.marked", "moving.renamed"] {
        let (ok, said) = move_it(&lab, "redb", point);
        assert!(!ok && said.contains("killed"), "{point}: {said}");
    }
    second.spawn(&[]);
    eventually("another manager's daemon says where it is", 20, || {
        second.log().contains("was moved to the data folder of host \"n1\"").then_some(())
    });
    second.end("KILL");
    let (ok, said) = move_it(&lab, "redb", "");
    assert!(ok && said.contains("already"), "{said}");
    first.up(&[]);
    assert_eq!((tasks(&first), ids(&first)), (before.clone(), places.clone()), "the same replicas");
    assert_eq!(first.ok(&["kv", "get", "shop/level"]).trim(), "info");
    assert_eq!(first.ok(&["config", "get", "shop/site"]).trim(), "listen 80");
    // A replica that is made now gets the secret: its key came along.
    first.ok(&["service", "scale", "web=4"]);
    assert_eq!(lab.all_containers("web"), 4);
    first.end("TERM");

    // And back.
    for point in ["moving.begun", "moving.committed"] {
        let (ok, said) = move_it(&lab, "swarm", point);
        assert!(!ok && said.contains("killed"), "{point}: {said}");
        first.spawn(&[]);
        eventually("the daemon waits for the end of the move", 20, || {
            first.log().contains("is in the middle of being moved").then_some(())
        });
    }
    let (ok, said) = move_it(&lab, "swarm", "");
    assert!(ok, "{said}");
    let (ok, said) = move_it(&lab, "swarm", "");
    assert!(ok && said.contains("already"), "{said}");
    first.up(&[]);
    second.up(&[]);
    assert_eq!(tasks(&second).len(), 4);
    assert!(before.iter().all(|id| tasks(&second).contains(id)), "the same replicas");
    second.ok(&["service", "update", "web", "--image", &lab.image("demo:2"), "--update-monitor", "200ms"]);
    load.saw("\"version\":\"2\"");
    let (node, id) =
        ["n1", "n2"].iter().find_map(|node| Some((*node, lab.containers(node, "web").into_iter().next()?))).unwrap();
    assert_eq!(lab.docker(node, &["exec", &id, "cat", "/run/secrets/key"]), "hunter2");
    load.end();
}
