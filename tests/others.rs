//! A Swarm that is not Neap's alone: services of others that take room, people who change what is ours by hand, hosts that
//! cannot be emptied, links that fail.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

#[path = "support/lab.rs"]
mod lab;
#[path = "support/mod.rs"]
mod support;

use lab::{Lab, LabDaemon, Load, join_agents};
use support::eventually;

#[test]
fn a_swarm_is_shared() {
    if lab::missing().is_some() {
        return;
    }
    let lab = Lab::up(3, 1);
    let daemon = LabDaemon::start(&lab, "n1", &[]);
    let demo = lab.image("demo:1");
    join_agents(&daemon);

    what_a_swarm_cannot_do_is_refused(&daemon, &demo);
    room_that_others_take(&lab, &daemon, &demo);
    changes_by_hand(&lab, &daemon, &demo);
    a_drain_that_cannot_end(&lab, &daemon, &demo);
    new_ports_behind_its_back(&lab, &daemon);
    a_host_that_is_lost_gets_no_requests(&lab, &daemon, &demo);
    a_manager_that_is_cut_off(&lab, &daemon);
}

fn what_a_swarm_cannot_do_is_refused(daemon: &LabDaemon, image: &str) {
    for (flags, said) in [
        (&["--network", "none"][..], "networks: \"none\""),
        (&["--pull", "never"], "pull: "),
        (&["--health-interval", "5s", "--health-on-fail", "none"], "check.on_fail: "),
        (&["--health-start-interval", "1s"], "--health-start-interval"),
    ] {
        let line = [&["service", "create", "--name", "refused"], flags, &[image]].concat();
        let answer = daemon.fails(&line);
        assert!(answer.contains(said), "{flags:?}: {answer}");
    }
    // Docker's own networks have no names on them.
    daemon.ok(&[
        "service",
        "create",
        "--detach=false",
        "--name",
        "on-host",
        "--network",
        "host",
        "--no-resolve-image",
        image,
    ]);
    daemon.ok(&["service", "rm", "--detach=false", "on-host"]);
}

fn room_that_others_take(lab: &Lab, daemon: &LabDaemon, image: &str) {
    let node = &daemon.json(&["node", "ls", "--format", "json"])[0];
    let memory: u64 = lab.docker("n1", &["info", "-f", "{{.MemTotal}}"]).parse().unwrap();
    let most = (memory / 4 * 3).to_string();
    let some = (memory / 3).to_string();
    assert_ne!(node["memory"], "0");
    for node in ["n1", "n2"] {
        let constraint = format!("node.hostname=={node}");
        #[rustfmt::skip]
        lab.docker("n1", &[
            "service", "create", "--detach", "--name", &format!("theirs-{node}"), "--constraint", &constraint,
            "--reserve-memory", &most, image,
        ]);
    }
    for node in ["n1", "n2"] {
        eventually("theirs is there", 30, || {
            let ps = ["service", "ps", "--format", "{{.CurrentState}}", &format!("theirs-{node}")];
            lab.docker("n1", &ps).starts_with("Running").then_some(())
        });
    }
    let begun = Instant::now();
    daemon.ok(&["service", "create", "--name", "big", "--replicas", "2", "--reserve-memory", &some, image]);
    assert_eq!(daemon.running_on("big"), ["n3", "n3"]);
    println!("refused by the Swarm, and elsewhere after {:.1} s", begun.elapsed().as_secs_f32());
    let listed = daemon.ok(&["service", "ps", "--all", "big"]);
    assert!(listed.contains("the Swarm finds no room for it on its node"), "{listed}");
    // What a container writes is bounded though nobody asked for it.
    let container = lab.containers("n3", "big").into_iter().next().unwrap();
    let log = lab.docker("n3", &["inspect", "-f", "{{json .HostConfig.LogConfig.Config}}", &container]);
    assert!(log.contains("\"max-size\":\"10485760\"") && log.contains("\"max-file\":\"5\""), "{log}");
    daemon.ok(&["service", "rm", "big"]);
    lab.docker("n1", &["service", "rm", "theirs-n1", "theirs-n2"]);
}

fn changes_by_hand(lab: &Lab, daemon: &LabDaemon, image: &str) {
    #[rustfmt::skip]
    daemon.ok(&[
        "service", "create", "--name", "web", "--replicas", "2", "-p", "8080:8080", "--stop-grace-period", "1s", image,
    ]);
    // As old scripts ask.
    assert_eq!(daemon.ok(&["service", "ls", "-q", "--filter", "name=we", "-f", "mode=replicated"]), "web\n");
    assert_eq!(daemon.ok(&["service", "ls", "-q", "-f", "label=none"]), "");
    assert_eq!(daemon.ok(&["service", "ps", "-q", "-f", "name=web.2", "web"]).lines().count(), 1);
    assert_eq!(daemon.ok(&["service", "ps", "-q", "-f", "desired-state=shutdown", "web"]), "");
    assert_eq!(daemon.ok(&["node", "ls", "-q", "-f", "role=worker"]).lines().count(), 2);
    assert!(daemon.json(&["node", "inspect", "n1", "n2"]).as_array().is_some_and(|nodes| nodes.len() == 2));
    assert!(daemon.fails(&["service", "ls", "-f", "colour=red"]).contains("use name, label, mode"));
    daemon.ok(&["service", "logs", "--tail", "all", "web"]);

    let services = |name: &str| {
        let listed = lab.docker("n1", &["service", "ls", "-q", "--filter", &format!("label=neap.service={name}")]);
        listed.lines().map(str::to_owned).collect::<Vec<_>>()
    };
    // Each service has what counts, and each replica runs once.
    let as_described = |what: &str| {
        eventually(what, 60, || {
            let running: Vec<String> =
                services("web").into_iter().filter(|id| !["", "0"].contains(&&*replicas(lab, id))).collect();
            let limit = |id: &String| show(lab, id, "{{.Spec.TaskTemplate.Resources.Limits.MemoryBytes}}");
            let right = running.len() == 2 && running.iter().all(|id| replicas(lab, id) == "1" && limit(id) == "0");
            (right && daemon.running_on("web").len() == 2 && lab.all_containers("web") == 2).then_some(())
        });
    };

    // More of one: it is scaled back, whichever of the three the Swarm leaves.
    let one = &services("web")[0];
    lab.docker("n1", &["service", "scale", "--detach", &format!("{one}=3")]);
    as_described("the one is scaled back");
    let listed = daemon.ok(&["service", "ps", "--all", "web"]);
    assert!(listed.contains("scaled by somebody else, and scaled back"), "{listed}");

    // What one is made of: another takes its place, and nothing is left of what nobody described.
    let changed = &services("web").into_iter().find(|id| replicas(lab, id) == "1").unwrap();
    lab.docker("n1", &["service", "update", "--detach", "--limit-memory", "100M", changed]);
    as_described("no replica has the limit");
    let listed = daemon.ok(&["service", "ps", "--all", "web"]);
    assert!(listed.contains("changed by somebody else; another replica takes its place"), "{listed}");
    assert!(daemon.tasks("web").iter().all(|task| task["failures"] == 0), "no failure of the service's: {listed}");

    // A label is nobody's business: a replica with all that can be described stays, also when a daemon begins.
    daemon.secret("shop/key", "1");
    daemon.config("shop/site", "x");
    #[rustfmt::skip]
    daemon.ok(&[
        "service", "create", "--name", "rich", "--network", "shop", "--cap-add", "net_admin", "--cap-drop", "mknod",
        "--health-cmd", "true", "--health-interval", "1s", "--health-retries", "4", "--env", "A=1", "--env", "EMPTY=",
        "--secret", "source=shop/key,target=key,mode=0400", "--config", "source=shop/site,target=/etc/site", "--user", "0",
        "--mount", "type=volume,source=data,target=/data", "--mount", "type=tmpfs,target=/scratch,tmpfs-size=1M", "--init",
        "--limit-memory", "64M", "--limit-cpu", "1.5", "--limit-pids", "200", "--reserve-memory", "8M", "--hostname",
        "{{.Service.Name}}-{{.Task.Slot}}", "--host", "db:10.0.0.9", "--dns", "9.9.9.9", "--dns-search", "example.org",
        "--ulimit", "nofile=1024:2048", "--sysctl", "net.core.somaxconn=256", "--group", "5", "--workdir", "/tmp",
        "--stop-signal", "INT", "--stop-grace-period", "3s", "--label", "a.b[0].c=d", "--container-label", "x=y",
        "--log-opt", "tag=z", "-p", "8082:8080", "-p", "mode=host,published=9100,target=9100", image,
    ]);
    let ids = || {
        let live = [daemon.live("web"), daemon.live("rich")].concat();
        let containers = ["n1", "n2", "n3"].map(|node| [lab.containers(node, "web"), lab.containers(node, "rich")]);
        (live.iter().map(|task| task["id"].to_string()).collect::<Vec<_>>(), containers)
    };
    let before = ids();
    assert_eq!(before.0.len(), 3);
    for id in services("rich").iter().chain(&services("web")) {
        if replicas(lab, id) == "1" {
            lab.docker("n1", &["service", "update", "--detach", "--label-add", "who=me", id]);
        }
    }
    std::thread::sleep(Duration::from_secs(6));
    assert_eq!(ids(), before);
    daemon.end("KILL");
    daemon.up(&[]);
    daemon.ok(&["service", "wait", "rich"]);
    std::thread::sleep(Duration::from_secs(3));
    assert_eq!(ids(), before);
    assert_eq!(lab.all_containers("web") + lab.all_containers("rich"), 3);
    daemon.ok(&["service", "rm", "web", "rich"]);
}

// Of a Swarm service; nothing where it is gone.
fn show(lab: &Lab, service: &str, what: &str) -> String {
    let socket = format!("unix://{}", lab.folder().join("n1/docker.sock").display());
    let words = ["-H", &socket, "service", "inspect", "-f", what, service];
    let output = std::process::Command::new("docker").args(words).output().unwrap();
    String::from_utf8_lossy(&output.stdout).trim().to_owned()
}

fn replicas(lab: &Lab, service: &str) -> String {
    show(lab, service, "{{.Spec.Mode.Replicated.Replicas}}")
}

fn a_drain_that_cannot_end(lab: &Lab, daemon: &LabDaemon, image: &str) {
    daemon.ok(&["service", "create", "--name", "pinned", "--constraint", "node.hostname==n2", image]);
    let drain = ["node", "update", "n2", "--availability", "drain"];
    let said = daemon.fails(&[&drain[..], &["--timeout", "2s"]].concat());
    assert!(said.contains("not empty within 2s; 1 left: pinned.1: no suitable node ("), "{said}");
    assert!(said.contains("--force"), "{said}");
    let listed = daemon.ok(&["node", "ls"]);
    assert!(listed.contains("drain (1 left)"), "{listed}");
    assert_eq!(lab.containers("n2", "pinned").len(), 1, "nothing takes its place, so it stays");
    daemon.ok(&[&drain[..], &["--force", "--timeout", "1m"]].concat());
    assert!(lab.containers("n2", "pinned").is_empty());
    let availability = || lab.docker("n1", &["node", "inspect", "-f", "{{.Spec.Availability}}", "n2"]);
    eventually("Swarm knows it", 20, || (availability() == "drain").then_some(()));
    daemon.ok(&["node", "update", "n2", "--availability", "active"]);
    daemon.ok(&["service", "wait", "pinned"]);
    daemon.ok(&["service", "rm", "pinned"]);
}

// Replicas die while no daemon lives, and Swarm restarts them with other ports: checks follow.
fn new_ports_behind_its_back(lab: &Lab, daemon: &LabDaemon) {
    #[rustfmt::skip]
    daemon.ok(&[
        "service", "create", "--name", "moves", "--replicas", "3", "-p", "8081:8080", "--health-http", "/",
        "--health-interval", "500ms", "--health-retries", "3", &lab.image("demo:1"),
    ]);
    let ports = |task: &serde_json::Value| (task["id"].to_string(), task["ports"].to_string());
    let before: Vec<_> = daemon.live("moves").iter().map(ports).collect();
    daemon.end("KILL");
    for node in ["n1", "n2", "n3"] {
        for container in lab.containers(node, "moves") {
            lab.docker(node, &["kill", &container]);
        }
    }
    eventually("Swarm has restarted them", 60, || (lab.all_containers("moves") == 3).then_some(()));
    daemon.up(&[]);
    eventually("they have other ports", 30, || {
        let now: Vec<_> = daemon.live("moves").iter().map(ports).collect();
        let moved = |(id, ports): &(String, String)| before.iter().any(|(old, had)| old == id && had != ports);
        (now.len() == 3 && now.iter().all(moved)).then_some(())
    });
    // Long enough for six checks: whoever asks at the old ports ends all three.
    std::thread::sleep(Duration::from_secs(4));
    let now: Vec<_> =
        daemon.live("moves").iter().map(|task| (task["id"].to_string(), task["health"].to_string())).collect();
    let healthy: Vec<_> = before.iter().map(|(id, _)| (id.clone(), "\"healthy\"".to_owned())).collect();
    assert_eq!(now, healthy);
    daemon.ok(&["service", "rm", "moves"]);
}

fn a_host_that_is_lost_gets_no_requests(lab: &Lab, daemon: &LabDaemon, image: &str) {
    #[rustfmt::skip]
    daemon.ok(&[
        "service", "create", "--name", "web", "--replicas", "3", "--replicas-max-per-node", "1", "-p", "8080:8080", image,
    ]);
    let mut kept: Vec<TcpStream> = (0..6).map(|_| TcpStream::connect((lab.address("n1"), 8080)).unwrap()).collect();
    assert!(kept.iter_mut().all(ask_again));
    let load = Load::start(format!("http://{}:8080/", lab.address("n1")));
    lab.ok(&["cut", "n3"]);
    // What was open to it is closed, though nothing comes from there; what is open to others goes on.
    let kept: Vec<_> = kept.into_iter().map(|mut one| std::thread::spawn(move || ask_again(&mut one))).collect();
    eventually("it is known to be down", 20, || {
        let nodes = daemon.json(&["node", "ls", "--format", "json"]);
        nodes.as_array().unwrap().iter().any(|node| node["state"] == "down").then_some(())
    });
    assert_eq!(kept.into_iter().map(|one| one.join().unwrap()).filter(|answered| *answered).count(), 4);
    load.answers_again();
    load.gap();
    std::thread::sleep(Duration::from_secs(3));
    let gap = load.gap();
    assert!(gap < Duration::from_secs(2), "a third of the requests went to a host that is lost: {gap:?}");
    load.end();
    lab.ok(&["mend", "n3"]);
    eventually("it is back", 60, || (daemon.running_on("web").len() == 3).then_some(()));
    daemon.ok(&["service", "wait", "web"]);
}

// Whether a request over this connection is answered; false once it is closed.
fn ask_again(stream: &mut TcpStream) -> bool {
    stream.set_read_timeout(Some(Duration::from_secs(12))).unwrap();
    stream.write_all(b"GET / HTTP/1.1\r\nHost: test\r\n\r\n").unwrap();
    match stream.read(&mut [0; 4096]) {
        Ok(length) => length > 0,
        Err(error) if error.kind() == std::io::ErrorKind::ConnectionReset => false,
        Err(error) => panic!("neither answered nor closed within 12 s: {error}"),
    }
}

// It hears of nobody any more, and is the one that is cut off: nothing is started on it for the others.
fn a_manager_that_is_cut_off(lab: &Lab, daemon: &LabDaemon) {
    let ids = || daemon.live("web").iter().map(|task| task["id"].clone()).collect::<Vec<_>>();
    let ready = || {
        let nodes = daemon.json(&["node", "ls", "--format", "json"]);
        nodes.as_array().unwrap().iter().all(|node| node["state"] == "ready")
    };
    let before = ids();
    lab.ok(&["cut", "n1"]);
    // Longer than any silence that is waited for, and shorter than what the Swarm itself waits for.
    std::thread::sleep(Duration::from_millis(4500));
    assert!(ready());
    lab.ok(&["mend", "n1"]);
    // They are heard of again one after the other.
    std::thread::sleep(Duration::from_secs(4));
    assert_eq!(ids(), before);
    eventually("all are ready", 30, || ready().then_some(()));
    assert_eq!(daemon.running_on("web"), ["n1", "n2", "n3"]);
}
