//! What heals by itself on a Swarm: streams that are cut, Docker Engines that are restarted, checks that never pass, room
//! that comes late, labels that change under what runs, two who change the same thing at once.

use std::time::{Duration, Instant};

#[path = "support/lab.rs"]
mod lab;
#[path = "support/proxy.rs"]
mod proxy;
#[path = "support/mod.rs"]
mod support;

use lab::{Lab, LabDaemon, Load, join_agents};
use proxy::Proxy;
use support::eventually;

const NODES: [&str; 3] = ["n1", "n2", "n3"];

#[test]
fn what_heals_by_itself() {
    if lab::missing().is_some() {
        return;
    }
    let lab = Lab::up(3, 1);
    let proxy = Proxy::start(&lab.folder().join("n1/run/proxy.sock"), lab.folder().join("n1/docker.sock"));
    let daemon = LabDaemon::new(&lab, "n1", &[]);
    daemon.up(&["DOCKER_HOST=unix:///run/proxy.sock"]);
    let demo = lab.image("demo:1");
    join_agents(&daemon);

    events_that_do_not_come(&lab, &daemon, &proxy, &demo);
    docker_engines_that_are_restarted(&lab, &daemon);
    a_check_that_never_passes(&lab, &daemon);
    room_that_comes_late(&lab, &daemon);
    labels_under_what_runs(&lab, &daemon, &demo);
    two_who_change_the_same(&lab, &daemon, &demo);
}

fn ids(daemon: &LabDaemon, service: &str) -> Vec<String> {
    daemon.live(service).iter().map(|task| task["id"].to_string()).collect()
}

fn events_that_do_not_come(lab: &Lab, daemon: &LabDaemon, proxy: &Proxy, image: &str) {
    #[rustfmt::skip]
    daemon.ok(&[
        "service", "create", "--name", "web", "--replicas", "6", "-p", "8080:8080", "--stop-grace-period", "2s", image,
    ]);
    let load = Load::start(format!("http://{}:8080/", lab.address("n2")));
    // Cut again and again: nothing happens but that they are asked for again.
    let before = ids(daemon, "web");
    for _ in 0..5 {
        assert!(eventually("there are streams", 10, || Some(proxy.cut()).filter(|cut| *cut > 0)) > 0);
    }
    // None for a while, and meanwhile one of the Swarm's services is removed and a container is killed.
    eventually("there are streams", 10, || Some(proxy.cut()).filter(|cut| *cut > 0));
    proxy.refuse(true);
    proxy.cut();
    assert_eq!(ids(daemon, "web"), before);
    load.end();
    let ours = lab.docker("n1", &["service", "ls", "-q", "--filter", "label=neap.service=web"]);
    lab.docker("n1", &["service", "rm", ours.lines().next().unwrap()]);
    let victim = lab.containers("n1", "web").into_iter().next().unwrap();
    lab.docker("n1", &["kill", &victim]);
    proxy.refuse(false);
    let begun = Instant::now();
    eventually("six run again", 20, || {
        let now = ids(daemon, "web");
        let stayed = now.iter().filter(|id| before.contains(id)).count();
        (daemon.running_on("web").len() == 6 && (4..=5).contains(&stayed)).then_some(())
    });
    println!("events are back, and six run after {:.1} s", begun.elapsed().as_secs_f32());
    eventually("and no more", 20, || (lab.all_containers("web") == 6).then_some(()));
    daemon.task_that("web", "was removed by somebody", |task| {
        task["warnings"].to_string().contains("its Swarm service was removed by somebody else")
    });
}

fn docker_engines_that_are_restarted(lab: &Lab, daemon: &LabDaemon) {
    let loads = NODES.map(|node| Load::start(format!("http://{}:8080/", lab.address(node))));
    for (node, how) in [("n2", "engine-stop"), ("n3", "engine-end"), ("n1", "engine-stop"), ("n1", "engine-end")] {
        let begun = Instant::now();
        lab.ok(&[how, node]);
        lab.ok(&["engine-start", node]);
        let up = begun.elapsed();
        eventually("the service is whole", 60, || {
            let nodes = daemon.json(&["node", "ls", "--format", "json"]);
            let ready = nodes.as_array().unwrap().iter().all(|node| node["state"] == "ready");
            let settled = daemon.json(&["service", "inspect", "web"])["status"]["settled"] == true;
            (ready && settled && daemon.running_on("web").len() == 6 && lab.all_containers("web") == 6).then_some(())
        });
        let gaps = loads.each_ref().map(|load| (load.failed(), load.gap()));
        println!("{how} {node}: its engine is back after {up:.1?}, all six after {:.1?}; {gaps:?}", begun.elapsed());
        assert!(gaps.iter().all(|(_, gap)| *gap < Duration::from_secs(2)), "traffic does not go on: {gaps:?}");
    }
    let listed = daemon.ok(&["service", "ps", "--all", "web"]);
    daemon.ok(&["service", "rebalance", "web"]);
    assert_eq!(daemon.running_on("web"), ["n1", "n1", "n2", "n2", "n3", "n3"], "{listed}");
    loads.into_iter().for_each(Load::end);
    daemon.ok(&["service", "rm", "web"]);
}

fn a_check_that_never_passes(lab: &Lab, daemon: &LabDaemon) {
    #[rustfmt::skip]
    daemon.ok(&[
        "service", "create", "--detach", "--name", "sick", "--constraint", "node.hostname==n2", "--mount",
        "type=volume,source=cure,target=/data", "--health-cmd", "test -e /data/well", "--health-interval", "300ms",
        "--health-retries", "2", "--stop-grace-period", "1s", &lab.image("busybox"), "sleep", "1000",
    ]);
    let begun = Instant::now();
    daemon.task_that("sick", "failed its check", |task| task.to_string().contains("failed its check"));
    println!("a check that never passes is said after {:.1} s", begun.elapsed().as_secs_f32());
    std::thread::sleep(Duration::from_secs(8));
    let attempts = daemon.tasks("sick").len();
    assert!((2..=8).contains(&attempts), "{attempts} attempts:\n{}", daemon.ok(&["service", "ps", "--all", "sick"]));
    lab.docker("n2", &["run", "--rm", "-v", "cure:/data", &lab.image("busybox"), "touch", "/data/well"]);
    daemon.task_that("sick", "is healthy", |task| task["state"] == "running" && task["health"] == "healthy");
    daemon.ok(&["service", "wait", "sick"]);
    daemon.ok(&["service", "rm", "sick"]);
}

fn room_that_comes_late(lab: &Lab, daemon: &LabDaemon) {
    let memory: u64 = lab.docker("n1", &["info", "-f", "{{.MemTotal}}"]).parse().unwrap();
    let (most, much) = ((memory / 4 * 3).to_string(), (memory / 2).to_string());
    let image = lab.image("busybox");
    let hog = ["service", "create", "--name", "hog", "--mode", "global", "--reserve-memory", &most, &image];
    daemon.ok(&[&hog[..], &["sleep", "1000"]].concat());
    let late = ["service", "create", "--detach", "--name", "late", "--reserve-memory", &much, &image];
    daemon.ok(&[&late[..], &["sleep", "1000"]].concat());
    let task = daemon.task_that("late", "says why", |task| {
        task["reason"].as_str().is_some_and(|why| why.contains("insufficient memory on 3 nodes"))
    });
    assert_eq!(task["state"], "pending");
    assert_eq!(daemon.tasks("late").len(), 1, "nothing was tried");
    daemon.ok(&["service", "rm", "hog"]);
    let begun = Instant::now();
    daemon.ok(&["service", "wait", "late"]);
    println!("room is there, and used after {:.1} s", begun.elapsed().as_secs_f32());
    daemon.ok(&["service", "rm", "late"]);
}

fn labels_under_what_runs(lab: &Lab, daemon: &LabDaemon, image: &str) {
    let label = |node: &str, change: &[&str]| {
        lab.docker("n1", &[&["node", "update"], change, &[node]].concat());
    };
    label("n2", &["--label-add", "disk=ssd"]);
    label("n3", &["--label-add", "disk=hdd"]);
    #[rustfmt::skip]
    daemon.ok(&[
        "service", "create", "--name", "db", "--replicas", "2", "--constraint", "node.labels.disk==ssd", "-p", "8081:8080",
        image,
    ]);
    assert_eq!(daemon.running_on("db"), ["n2", "n2"]);
    let load = Load::start(format!("http://{}:8081/", lab.address("n1")));
    label("n3", &["--label-add", "disk=ssd"]);
    label("n2", &["--label-rm", "disk"]);
    eventually("they have moved", 30, || {
        (daemon.running_on("db") == ["n3", "n3"] && lab.all_containers("db") == 2).then_some(())
    });
    load.end();
    // Nothing fits any more: what runs is not ended for that.
    label("n3", &["--label-rm", "disk"]);
    daemon.task_that("db", "finds no node", |task| task.to_string().contains("no suitable node"));
    println!("{}", daemon.ok(&["service", "ps", "--all", "db"]));
    label("n2", &["--label-add", "disk=ssd"]);
    daemon.ok(&["service", "wait", "db"]);
    assert_eq!(daemon.running_on("db"), ["n2", "n2"]);
    daemon.ok(&["service", "rm", "db"]);
}

// Each write names the version that it has read, and whoever comes second reads again.
fn two_who_change_the_same(lab: &Lab, daemon: &LabDaemon, image: &str) {
    daemon.ok(&["service", "create", "--name", "web", "--replicas", "2", "--constraint", "node.hostname==n2", image]);
    let service = lab.docker("n1", &["service", "ls", "-q", "--filter", "label=neap.service=web"]);
    let service = service.lines().next().unwrap();
    let over = std::sync::atomic::AtomicBool::new(false);
    let going = || !over.load(std::sync::atomic::Ordering::SeqCst);
    std::thread::scope(|scope| {
        for words in [["node", "update", "--label-add"], ["service", "update", "--label-add"]] {
            scope.spawn(move || {
                for number in 0.. {
                    if !going() {
                        return;
                    }
                    let label = format!("theirs={number}");
                    let target = if words[0] == "node" { "n2" } else { service };
                    let detach: &[&str] = if words[0] == "node" { &[] } else { &["--detach"] };
                    // Theirs may come second as well, and the service goes in the end.
                    let socket = format!("unix://{}", lab.folder().join("n1/docker.sock").display());
                    let line = [&["-H", &socket], &words[..], &[&label], detach, &[target]].concat();
                    std::process::Command::new("docker").args(line).output().unwrap();
                }
            });
        }
        for number in 0..20 {
            daemon.ok(&["node", "update", "n2", "--label-add", &format!("ours={number}")]);
        }
        for number in 0..4 {
            let availability = if number % 2 == 0 { "pause" } else { "active" };
            daemon.ok(&["node", "update", "n2", "--availability", availability]);
        }
        for replicas in [4, 1, 3] {
            daemon.ok(&["service", "scale", &format!("web={replicas}")]);
        }
        daemon.ok(&["service", "update", "web", "--image", &lab.image("demo:2"), "--update-monitor", "100ms"]);
        over.store(true, std::sync::atomic::Ordering::SeqCst);
    });
    let labels = lab.docker("n1", &["node", "inspect", "-f", "{{json .Spec.Labels}}", "n2"]);
    assert!(labels.contains("\"ours\":\"19\"") && labels.contains("\"theirs\":"), "{labels}");
    assert_eq!(lab.docker("n1", &["node", "inspect", "-f", "{{.Spec.Availability}}", "n2"]), "active");
    assert_eq!((daemon.running_on("web").len(), lab.all_containers("web")), (3, 3));
    daemon.ok(&["service", "rm", "web"]);
    eventually("nothing is left in the Swarm", 10, || {
        lab.docker("n1", &["service", "ls", "-q"]).is_empty().then_some(())
    });
}
