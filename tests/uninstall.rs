//! Neap goes again: services are given back, what it made is removed, and what stays is said.

#[path = "support/lab.rs"]
mod lab;
#[path = "support/mod.rs"]
mod support;

use lab::{Lab, Load, PLACE, cluster};
use support::{Daemon, NEAP, eventually};

fn uninstall(lab: &Lab, node: &str, more: &[&str]) -> String {
    let words = ["env", "NEAP_CONFIG=/run/neap.toml", NEAP, "uninstall"];
    lab.run(node, &[&words[..], &PLACE[..], more].concat())
}

#[test]
fn a_swarm_keeps_its_services() {
    if lab::missing().is_some() {
        return;
    }
    let lab = Lab::engines(2);
    let daemon = cluster(&lab);
    daemon.secret("key", "hunter2");
    #[rustfmt::skip]
    daemon.ok(&[
        "service", "create", "--name", "web", "--replicas", "2", "--publish", "8080:8080", "--network", "back",
        "--secret", "source=key,target=key", "--stop-grace-period", "1s", "--replicas-max-per-node", "1",
        &lab.image("demo:1"),
    ]);
    daemon.ok(&["service", "create", "--name", "asks", "--network", "back", &lab.image("busybox"), "sleep", "1000"]);
    let load = Load::start(format!("http://{}:8080/", lab.address("n1")));
    load.gap();
    let said = uninstall(&lab, "n1", &["--publish-mode", "host"]);
    println!("{said}\nseen from outside: {:?}", load.gap());
    for text in [
        "web: given back to the Swarm; ",
        "asks: given back to the Swarm",
        "runs here any more",
        "removed from the Swarm",
        "network back",
        "on n2: neap uninstall there",
        "the data folder /run/neap (--purge removes it)",
        "the Swarm itself",
    ] {
        assert!(said.contains(text), "{text}: {said}");
    }
    // All goes on without it, and nothing else of it is left in the Swarm.
    let services = lab.docker("n1", &["service", "ls", "--format", "{{.Name}} {{.Replicas}}"]);
    let mut services: Vec<&str> = services.lines().map(str::trim).collect();
    services.sort_unstable();
    assert_eq!(services.len(), 2, "{services:?}");
    assert!(services[0].starts_with("asks 1/1") && services[1].starts_with("web 2/2"), "{services:?}");
    load.saw("\"version\":\"1\"");
    eventually("its replicas are gone", 20, || {
        (lab.all_containers("web") + lab.all_containers("asks") == 0).then_some(())
    });
    assert_eq!(lab.docker("n1", &["config", "ls", "-q"]), "");
    let secrets = lab.docker("n1", &["secret", "ls", "--format", "{{.Name}}"]);
    assert!(secrets.lines().count() == 1 && secrets.starts_with("key-v1-"), "{secrets}");
    let left = |node: &str| {
        let line = "for p in /proc/[0-9]*; do tr '\\0' ' ' <$p/cmdline 2>/dev/null | grep -E '[/]neap (up|agent|balancer) '; done; true";
        lab.run(node, &["sh", "-c", line])
    };
    assert_eq!(left("n1"), "");
    let said = uninstall(&lab, "n1", &["--purge"]);
    assert!(said.contains("/run/neap is removed"), "{said}");
    // On the other host its agent is left, and goes by the same word.
    assert!(left("n2").contains("neap agent"), "{}", left("n2"));
    let said = uninstall(&lab, "n2", &["--purge"]);
    assert!(said.contains("runs here any more") && said.contains("/run/neap is removed"), "{said}");
    assert_eq!(left("n2"), "");
    assert!(!lab.exec("n2", &["test", "-e", "/run/neap"]).status.success());
    drop(load);
}

#[test]
fn processes_end_with_it() {
    let daemon = Daemon::start();
    daemon.ok(&["service", "create", "--name", "web", "--", "/bin/sleep", "1000"]);
    let (data, socket) = (daemon.data().display().to_string(), daemon.socket().display().to_string());
    let uninstall = |more: &[&str]| daemon.neap(&[&["uninstall", "--data", &data, "--socket", &socket], more].concat());
    let said = String::from_utf8_lossy(&uninstall(&[]).stderr).into_owned();
    assert!(said.contains("nobody would run: web") && said.contains("--remove-services"), "{said}");
    let other = tempfile::tempdir().unwrap();
    std::fs::create_dir(other.path().join("data")).unwrap();
    let wrong = |more: &[&str]| {
        let folder = other.path().join("data").display().to_string();
        let output =
            daemon.neap(&[&["uninstall", "--remove-services", "--data", &folder, "--socket", &socket], more].concat());
        String::from_utf8_lossy(&output.stderr).into_owned()
    };
    assert!(wrong(&["--purge"]).contains("is no data folder of Neap's"));
    assert!(wrong(&[]).contains("is not used by the daemon that answers"));
    let pid = daemon.live_tasks("web")[0]["pid"].as_u64().unwrap();
    let done = uninstall(&["--remove-services", "--purge"]);
    let said = String::from_utf8_lossy(&done.stdout).into_owned();
    assert!(done.status.success(), "{said}{}", String::from_utf8_lossy(&done.stderr));
    assert!(said.contains("web: removed") && said.contains("is removed"), "{said}");
    assert!(!daemon.data().exists() && !std::path::Path::new(&format!("/proc/{pid}")).exists());
}
