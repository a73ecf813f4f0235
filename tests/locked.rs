//! A Swarm whose managers are locked, and whose authority is made anew.

use std::io::Write;
use std::process::Stdio;

#[path = "support/lab.rs"]
mod lab;
#[path = "support/mod.rs"]
mod support;

use lab::{Lab, LabDaemon};
use support::{NEAP, eventually};

fn unlock(lab: &Lab, key: &str) -> (bool, String) {
    let socket = format!("unix://{}", lab.folder().join("n1/docker.sock").display());
    let mut child = std::process::Command::new(NEAP)
        .args(["unlock", "--docker-host", &socket])
        .env("NEAP_CONFIG", "/dev/null")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    writeln!(child.stdin.take().unwrap(), "{key}").unwrap();
    let output = child.wait_with_output().unwrap();
    (output.status.success(), String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned())
}

#[test]
fn managers_are_locked_and_the_authority_is_made_anew() {
    if lab::missing().is_some() {
        return;
    }
    let lab = Lab::up(2, 1);
    let daemon = LabDaemon::start(&lab, "n1", &[]);
    daemon.ok(&[
        "service",
        "create",
        "--name",
        "web",
        "--stop-grace-period",
        "1s",
        &lab.image("busybox"),
        "sleep",
        "1000",
    ]);
    assert_eq!(daemon.ok(&["autolock"]).trim(), "off");
    assert!(daemon.fails(&["unlock-key"]).contains("does not lock its managers"));
    assert!(unlock(&lab, "x").1.contains("is not locked"));
    let said = daemon.ok(&["autolock", "on"]);
    assert!(said.starts_with("on\n") && said.contains("SWMKEY-1-"), "{said}");
    let before = daemon.ok(&["unlock-key", "--quiet"]).trim().to_owned();
    let key = daemon.ok(&["unlock-key", "--rotate", "--quiet"]).trim().to_owned();
    assert!(key.starts_with("SWMKEY-1-") && key != before);
    assert!(
        daemon
            .ok(&["repl", "--eval", "print(cluster.swarm().autolock, cluster.swarm().unlock_key)"])
            .starts_with("true\tnil")
    );

    // Its authority: every node has a new certificate, and all goes on.
    let old = daemon.ok(&["ca"]);
    assert!(old.starts_with("-----BEGIN CERTIFICATE-----"), "{old}");
    let new = daemon.ok(&["ca", "--rotate"]);
    assert!(new.starts_with("-----BEGIN CERTIFICATE-----") && new != old, "{new}");
    daemon.ok(&["service", "scale", "web=2"]);

    // A manager that starts again waits for the key; its daemon waits with it.
    lab.ok(&["engine-stop", "n1"]);
    lab.ok(&["engine-start", "n1"]);
    eventually("it is locked", 30, || {
        unlock(&lab, "SWMKEY-1-7c37Cc8654o6p38HnroywCi19pllOnGtbdZEgtKxZu8").1.contains("does not fit").then_some(())
    });
    // Also one that is started meanwhile, as after a reboot.
    daemon.end("KILL");
    daemon.spawn(&[]);
    eventually("it waits", 20, || daemon.log().contains("waits until it is unlocked").then_some(()));
    // By a script as well as by the command.
    let socket = lab.folder().join("n1/docker.sock");
    let line = format!("cluster.unlock {{ key = \"{key}\", docker_host = \"unix://{}\" }}", socket.display());
    let script = lab.folder().join("unlock.lua");
    std::fs::write(&script, line).unwrap();
    let output = std::process::Command::new(support::NEAP).arg("run").arg(&script).output().unwrap();
    assert!(output.status.success(), "{output:?}");
    eventually("the daemon is back", 60, || daemon.neap(&["service", "scale", "web=1"]).status.success().then_some(()));
    assert_eq!(daemon.ok(&["autolock", "off"]).trim(), "off");
}
