//! The swarm engine on a real Docker Swarm of three machines.

use std::time::Instant;

#[path = "support/lab.rs"]
mod lab;
#[path = "support/mod.rs"]
mod support;

use lab::{Lab, LabDaemon, Load};
use support::eventually;

// One after the other: each has machines of its own, and there are two cores.
static ONE_AT_A_TIME: std::sync::Mutex<()> = std::sync::Mutex::new(());

fn with_swarm(managers: u32, test: impl FnOnce(&Lab)) {
    let _turn = ONE_AT_A_TIME.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    if lab::missing().is_none() {
        test(&Lab::up(3, managers));
    }
}

fn all_containers(lab: &Lab, service: &str) -> usize {
    ["n1", "n2", "n3"].iter().map(|node| lab.containers(node, service).len()).sum()
}

fn running_on(daemon: &LabDaemon, service: &str) -> Vec<String> {
    let status = &daemon.json(&["service", "inspect", service])["status"];
    let name = |id: &str| status["nodes"][id].as_str().unwrap_or(id).to_owned();
    let live = daemon.live(service);
    let mut on: Vec<String> = live
        .iter()
        .filter(|task| task["state"] == "running" && task["stop"].is_null())
        .map(|task| name(task["node"].as_str().unwrap()))
        .collect();
    on.sort();
    on
}

#[test]
fn the_practice() {
    with_swarm(1, |lab| {
        let daemon = LabDaemon::start(lab, "n1", &[]);
        assert!(daemon.log().contains("engine swarm"), "found by itself:\n{}", daemon.log());
        let (demo1, demo2) = (lab.image("demo:1"), lab.image("demo:2"));
        daemon.secret("shop/password", "hunter2");
        daemon.config("shop/nginx", "listen 80;\n");
        #[rustfmt::skip]
        daemon.ok(&[
            "service", "create", "--name", "web", "--replicas", "2", "--publish", "8080:8080", "--network", "shop",
            "--secret", "source=shop/password,target=password", "--config",
            "source=shop/nginx,target=/etc/nginx/site.conf,uid=1,mode=0440", "--hostname", "{{.Service.Name}}-{{.Task.Slot}}",
            "--env", "HOST={{.Node.Hostname}}", "--limit-memory", "64M", "--stop-grace-period", "2s", &demo1,
        ]);
        let load = Load::start(format!("http://{}:8080/", lab.address("n1")));
        load.saw("\"version\":\"1\"");
        // Named from another container of the network: every replica answers.
        #[rustfmt::skip]
        daemon.ok(&[
            "service", "create", "--name", "asks", "--network", "shop", &lab.image("busybox"), "sleep", "1000",
        ]);
        let (node, container) = ["n1", "n2", "n3"]
            .iter()
            .find_map(|node| Some((*node, lab.containers(node, "asks").into_iter().next()?)))
            .unwrap();
        let found = lab.docker(node, &["exec", &container, "nslookup", "web"]);
        assert_eq!(found.matches("Address").count() - 1, 2, "both replicas:\n{found}");
        // Its network has room for more than Swarm's default.
        let subnet = lab.docker("n1", &["network", "inspect", "-f", "{{(index .IPAM.Config 0).Subnet}}", "shop"]);
        assert!(subnet.ends_with("/20"), "{subnet}");
        // One that was made before is what it was made as.
        daemon.ok(&[
            "network",
            "create",
            "--opt",
            "encrypted",
            "--subnet",
            "10.77.0.0/24",
            "--label",
            "team=shop",
            "safe",
        ]);
        let made = lab.docker("n1", &["network", "inspect", "safe"]);
        let made: serde_json::Value = serde_json::from_str(&made).unwrap();
        assert!(made[0]["Options"].get("encrypted").is_some() && made[0]["Attachable"] == true, "{made}");
        assert_eq!((&made[0]["Driver"], &made[0]["Labels"]["team"]), (&"overlay".into(), &"shop".into()));
        let said = daemon.fails(&["network", "create", "safe"]);
        assert!(said.contains("is there already"), "{said}");
        let listed = daemon.ok(&["network", "ls"]);
        let line =
            |name: &str| listed.lines().find(|line| line.starts_with(name)).unwrap_or_else(|| panic!("{listed}"));
        assert!(line("safe").contains("swarm, encrypted  10.77.0.0/24"), "{listed}");
        assert!(line("shop").contains("asks, web"), "{listed}");
        let said = daemon.fails(&["network", "rm", "shop"]);
        assert!(said.contains("is used by asks, web"), "{said}");
        let eval = "networks.remove 'safe'; print(networks.create({ name = 'inner', internal = true }).internal, #networks.list())";
        assert!(daemon.ok(&["repl", "--eval", eval]).starts_with("true"));
        daemon.ok(&["network", "rm", "inner"]);
        // What a replica sees.
        let web = lab.containers("n1", "web").into_iter().map(|id| ("n1", id));
        let (node, id) = web.chain(lab.containers("n2", "web").into_iter().map(|id| ("n2", id))).next().unwrap();
        assert_eq!(lab.docker(node, &["exec", &id, "cat", "/run/secrets/password"]), "hunter2");
        assert_eq!(lab.docker(node, &["exec", &id, "cat", "/etc/nginx/site.conf"]), "listen 80;");
        let mode = lab.docker(node, &["exec", &id, "stat", "-c", "%u:%g:%a", "/etc/nginx/site.conf"]);
        assert_eq!(mode, "1:0:440");
        let env = lab.docker(node, &["exec", &id, "env"]);
        assert!(env.contains(&format!("HOST={node}")) && env.contains("HOSTNAME=web-"), "{env}");

        daemon.ok(&["service", "scale", "web=4"]);
        assert_eq!(all_containers(lab, "web"), 4);
        let lines = daemon.ok(&["service", "logs", "web"]);
        assert!(lines.contains("listens on 0.0.0.0:8080"), "{lines}");

        // One that is killed is replaced.
        let victim = lab.containers(node, "web").into_iter().next().unwrap();
        lab.docker(node, &["kill", &victim]);
        daemon.task_that("web", "failed", |task| task["state"] == "failed" && task["reason"] == "exit code 137");
        eventually("four run again", 30, || (running_on(&daemon, "web").len() == 4).then_some(()));
        load.forgive();

        // Rolled out and back without a failed request.
        daemon.ok(&[
            "service",
            "update",
            "web",
            "--image",
            &demo2,
            "--update-monitor",
            "200ms",
            "--update-parallelism",
            "2",
        ]);
        load.saw("\"version\":\"2\"");
        daemon.ok(&["service", "rollback", "web"]);
        load.saw("\"version\":\"1\"");
        // Another value of a config: its users are rolled out with it, as carefully.
        daemon.config("shop/nginx", "listen 81;\n");
        eventually("all have the new one", 30, || {
            let web = ["n1", "n2", "n3"].iter().flat_map(|node| {
                lab.containers(node, "web")
                    .into_iter()
                    .map(move |id| lab.exec_in(node, &id, "cat /etc/nginx/site.conf"))
            });
            let all: Vec<Option<String>> = web.collect();
            (all.len() == 4 && all.iter().all(|text| text.as_deref() == Some("listen 81;"))).then_some(())
        });
        load.end();

        daemon.ok(&["service", "rm", "web", "asks"]);
        eventually("nothing is left in the Swarm", 10, || {
            lab.docker("n1", &["service", "ls", "-q"]).is_empty().then_some(())
        });
    });
}

#[test]
fn the_practice_by_a_script() {
    with_swarm(1, |lab| {
        let daemon = LabDaemon::start(lab, "n1", &[]);
        let script = concat!(env!("CARGO_MANIFEST_DIR"), "/scripts/containers.lua");
        let url = format!("http://{}:8080/", lab.address("n1"));
        let said = daemon.ok(&["run", script, &lab.image("demo:1"), &lab.image("demo:2"), &url]);
        assert!(said.contains("requests, 0 failed") && said.contains("shop.4"), "{said}");
        assert!(lab.docker("n1", &["service", "ls", "-q"]).is_empty());

        // Roles, and a node that leaves.
        daemon.ok(&["node", "promote", "n2"]);
        assert_eq!(lab.docker("n1", &["node", "inspect", "-f", "{{.Spec.Role}}", "n2"]), "manager");
        // Not before it has joined the managers' Raft.
        eventually("it is made a worker again", 30, || {
            daemon.neap(&["node", "demote", "n2"]).status.success().then_some(())
        });
        let refused = daemon.fails(&["node", "rm", "n3"]);
        assert!(refused.contains("is not down"), "{refused}");
        lab.docker("n3", &["swarm", "leave"]);
        eventually("it can be removed", 60, || daemon.neap(&["node", "rm", "n3"]).status.success().then_some(()));
        eventually("it is gone", 10, || {
            (daemon.json(&["node", "ls", "--format", "json"]).as_array().unwrap().len() == 2).then_some(())
        });
    });
}

#[test]
fn a_node_is_lost_and_comes_back() {
    with_swarm(1, |lab| {
        let daemon = LabDaemon::start(lab, "n1", &[]);
        daemon.ok(&["service", "create", "--name", "web", "--replicas", "6", "-p", "8080:8080", &lab.image("demo:1")]);
        assert_eq!(running_on(&daemon, "web"), ["n1", "n1", "n2", "n2", "n3", "n3"]);
        for (lose, back) in [("cut", "mend"), ("end", "start")] {
            lab.ok(&[lose, "n3"]);
            let lost = Instant::now();
            eventually("six run on the others", 20, || {
                (running_on(&daemon, "web").iter().filter(|node| *node != "n3").count() == 6).then_some(())
            });
            println!("{lose}: healthy elsewhere after {:.1} s", lost.elapsed().as_secs_f32());
            lab.ok(&[back, "n3"]);
            eventually("what ran there is gone", 40, || lab.containers("n3", "web").is_empty().then_some(()));
            eventually("the node is ready", 60, || {
                let nodes = daemon.json(&["node", "ls", "--format", "json"]);
                nodes.as_array().unwrap().iter().all(|node| node["state"] == "ready").then_some(())
            });
            assert_eq!(all_containers(lab, "web"), 6);
            // Back to an even spread for the next round.
            daemon.ok(&["service", "scale", "web=3"]);
            daemon.ok(&["service", "scale", "web=6"]);
        }
    });
}

#[test]
fn a_drained_node_gives_away_first() {
    with_swarm(1, |lab| {
        let daemon = LabDaemon::start(lab, "n1", &[]);
        daemon.ok(&["service", "create", "--name", "web", "--replicas", "4", "-p", "8080:8080", &lab.image("demo:1")]);
        let load = Load::start(format!("http://{}:8080/", lab.address("n1")));
        let availability = || lab.docker("n1", &["node", "inspect", "-f", "{{.Spec.Availability}}", "n2"]);
        daemon.ok(&["node", "update", "n2", "--availability", "drain", "--label-add", "disk=ssd"]);
        eventually("Swarm knows it", 30, || (availability() == "drain").then_some(()));
        assert!(lab.containers("n2", "web").is_empty());
        assert_eq!(running_on(&daemon, "web").len(), 4);
        assert_eq!(lab.docker("n1", &["node", "inspect", "-f", "{{.Spec.Labels.disk}}", "n2"]), "ssd");
        load.end();

        // Paused: nothing new. Active again, by docker's own command.
        daemon.ok(&["node", "update", "n2", "--availability", "pause"]);
        daemon.ok(&["service", "scale", "web=8"]);
        assert!(lab.containers("n2", "web").is_empty());
        lab.docker("n1", &["node", "update", "--availability", "active", "n2"]);
        eventually("it takes replicas", 20, || {
            let nodes = daemon.json(&["node", "ls", "--format", "json"]);
            nodes.as_array().unwrap().iter().all(|node| node["availability"] == "active").then_some(())
        });
        // A constraint follows labels that docker changed.
        lab.docker("n1", &["node", "update", "--label-add", "disk=hdd", "n3"]);
        let constrained = ["--constraint", "node.labels.disk==hdd"];
        daemon.ok(&[&["service", "create", "--name", "on-disk"], &constrained[..], &[&lab.image("demo:1")]].concat());
        assert_eq!(running_on(&daemon, "on-disk"), ["n3"]);
    });
}

#[test]
fn docker_used_beside() {
    with_swarm(1, |lab| {
        lab.docker(
            "n1",
            &["service", "create", "--detach", "--name", "theirs", "--no-resolve-image", &lab.image("demo:3")],
        );
        let daemon = LabDaemon::start(lab, "n1", &[]);
        daemon.ok(&["service", "create", "--name", "web", "--replicas", "3", &lab.image("demo:1")]);
        // A daemon that dies takes back what runs, and finds out what happened meanwhile.
        let before: Vec<_> = ["n1", "n2", "n3"].map(|node| lab.containers(node, "web")).into();
        daemon.end("KILL");
        daemon.up(&[]);
        let after: Vec<_> = ["n1", "n2", "n3"].map(|node| lab.containers(node, "web")).into();
        assert_eq!(before, after);

        // A replica's service removed by hand comes back, and it is said.
        let ours = lab.docker("n1", &["service", "ls", "-q", "--filter", "label=neap.service=web"]);
        lab.docker("n1", &["service", "rm", ours.lines().next().unwrap()]);
        daemon.task_that("web", "was removed by somebody", |task| {
            task["warnings"].to_string().contains("its Swarm service was removed by somebody else")
        });
        eventually("three run again", 30, || (running_on(&daemon, "web").len() == 3).then_some(()));
        // What is not ours is left alone.
        assert_eq!(
            lab.docker("n1", &["service", "ls", "--format", "{{.Name}}"])
                .lines()
                .filter(|name| *name == "theirs")
                .count(),
            1
        );

        // Drained by docker: Swarm ends what runs there at once, and it runs elsewhere.
        lab.docker("n1", &["node", "update", "--availability", "drain", "n3"]);
        eventually("three run on two", 30, || {
            let on = running_on(&daemon, "web");
            (on.len() == 3 && !on.contains(&"n3".to_owned())).then_some(())
        });

        // Killed between making a service and writing so: made once.
        daemon.end("KILL");
        daemon.up(&["NEAP_FAULT=swarm.after-create:1"]);
        daemon.neap(&["service", "create", "--detach", "--name", "late", &lab.image("demo:1")]);
        eventually("the daemon has died", 10, || (!daemon.neap(&["service", "ls"]).status.success()).then_some(()));
        daemon.up(&[]);
        daemon.task_that("late", "runs", |task| task["state"] == "running");
        assert_eq!(daemon.tasks("late").len(), 1);
        assert_eq!(all_containers(lab, "late"), 1);
    });
}

#[test]
fn what_goes_wrong_is_said() {
    with_swarm(1, |lab| {
        let daemon = LabDaemon::start(lab, "n1", &[]);
        let create = |name: &str, args: &[&str]| {
            daemon.ok(&[&["service", "create", "--detach", "--name", name], args].concat());
        };
        let reason = |name: &str, says: &str| {
            daemon.task_that(name, &format!("says {says}"), |task| {
                task["reason"].as_str().is_some_and(|reason| reason.contains(says))
            })
        };
        let busybox = lab.image("busybox");
        create("no-image", &[&lab.image("absent:1")]);
        reason("no-image", "No such image");
        create("exits", &[&busybox, "sh", "-c", "echo last words; exit 3"]);
        reason("exits", "exit code 3");
        create("no-program", &[&busybox, "/bin/none"]);
        reason("no-program", "/bin/none");
        create("no-memory", &["--reserve-memory", "900G", &busybox, "sleep", "1000"]);
        reason("no-memory", "insufficient memory on 3 nodes");
        create(
            "checked",
            &[
                "--health-cmd",
                "test -e /tmp/ok",
                "--health-interval",
                "300ms",
                "--health-retries",
                "2",
                &busybox,
                "sh",
                "-c",
                "touch /tmp/ok; sleep 1000",
            ],
        );
        daemon.task_that("checked", "runs", |task| task["state"] == "running");
        let on = running_on(&daemon, "checked").remove(0);
        let id = lab.containers(&on, "checked").into_iter().next().unwrap();
        lab.docker(&on, &["exec", &id, "rm", "/tmp/ok"]);
        daemon
            .task_that("checked", "failed its check", |task| task["warnings"].to_string().contains("failed its check"));
        // What ended can still be read.
        let lines = daemon.ok(&["service", "logs", "exits"]);
        assert!(lines.contains("last words"), "{lines}");
        for name in ["no-image", "exits", "no-program"] {
            let attempts = daemon.tasks(name).len();
            assert!(attempts <= 8, "{name}: {attempts} attempts");
        }
        // Heals when the cause is gone.
        for node in ["n1", "n2", "n3"] {
            lab.docker(node, &["tag", "demo:1", &lab.image("absent:1")]);
        }
        daemon.task_that("no-image", "runs", |task| task["state"] == "running");
        // A command whose failure is not to end the replica is run beside Swarm, by whoever acts on its node.
        let line = ["--health-cmd", "true", "--health-on-fail", "none", "--health-interval", "300ms"];
        for (name, node) in [("near", "n1"), ("far", "n2")] {
            let constraint = format!("node.hostname=={node}");
            let start = ["service", "create", "--detach", "--name", name, "--constraint", &constraint];
            daemon.ok(&[&start[..], &line[..], &[&busybox, "sleep", "1000"]].concat());
        }
        daemon.task_that("near", "is healthy", |task| task["health"] == "healthy");
        daemon.task_that("far", "lacks an agent", |task| {
            task["reason"].as_str().is_some_and(|why| why.contains("needs an agent on node \"n2\""))
        });
    });
}

#[test]
fn a_policy_decides_exact_replicas() {
    with_swarm(1, |lab| {
        let daemon = LabDaemon::start(lab, "n1", &[]);
        let folder = tempfile::tempdir().unwrap();
        // Most on the node with the label, one on each of the others.
        let policy = r#"
            policy "mostly-big" {
              score = function(node, task, view)
                local here = view:count { service = task.service, node = true }
                if node.labels.size == "big" then return 10 - here end
                return if here == 0 then 20 else 0 - here
              end,
            }
        "#;
        std::fs::create_dir(folder.path().join("policies")).unwrap();
        std::fs::write(folder.path().join("policies/big.lua"), policy).unwrap();
        lab.docker("n1", &["node", "update", "--label-add", "size=big", "n2"]);
        eventually("the label is known", 10, || daemon.ok(&["node", "ls"]).contains("size=big").then_some(()));
        let script = format!(
            r#"service "web" {{ image = "{}", replicas = 6, policy = "mostly-big" }}
              :apply {{ with = scripts "policies/*.lua", wait = "1m" }}"#,
            lab.image("demo:1")
        );
        std::fs::write(folder.path().join("run.lua"), script).unwrap();
        daemon.ok(&["run", folder.path().join("run.lua").to_str().unwrap()]);
        assert_eq!(running_on(&daemon, "web"), ["n1", "n2", "n2", "n2", "n2", "n3"]);
        assert_eq!(lab.containers("n2", "web").len(), 4);
    });
}

/// The daemon that leads, by what its own log says last.
fn leading<'a, 'b>(daemons: &'a [LabDaemon<'b>], among: impl Fn(&LabDaemon) -> bool) -> Option<&'a LabDaemon<'b>> {
    daemons.iter().filter(|daemon| among(daemon)).find(|daemon| {
        let log = daemon.log();
        log.rfind("engine swarm, leads")
            .is_some_and(|leads| log.rfind(" follows: ").is_none_or(|follows| follows < leads))
    })
}

fn settled(daemon: &LabDaemon, service: &str, revision: u32, replicas: usize) -> Option<()> {
    let output = daemon.neap(&["service", "inspect", service]);
    let status = serde_json::from_slice::<serde_json::Value>(&output.stdout).ok()?["status"].take();
    let on_it =
        status["tasks"].as_array()?.iter().filter(|task| task["state"] == "running" && task["revision"] == revision);
    (status["settled"] == true && on_it.count() == replicas).then_some(())
}

#[test]
fn another_daemon_goes_on() {
    with_swarm(3, |lab| {
        let daemons: Vec<LabDaemon> = ["n1", "n2", "n3"].iter().map(|node| LabDaemon::new(lab, node, &[])).collect();
        // All at once: which of them makes the store is decided by the Swarm.
        daemons.iter().for_each(|daemon| daemon.spawn(&[]));
        for daemon in &daemons {
            eventually("every daemon answers", 30, || daemon.neap(&["service", "ls"]).status.success().then_some(()));
        }
        daemons[2].secret("shop/password", "hunter2");
        #[rustfmt::skip]
        daemons[1].ok(&[
            "service", "create", "--name", "web", "--replicas", "6", "--secret", "source=shop/password,target=password",
            "--update-monitor", "500ms", &lab.image("demo:1"),
        ]);
        assert_eq!(daemons[0].ok(&["service", "ls", "-q"]).trim(), "web", "the same through every daemon");

        // Killed in the middle of a rollout: another one goes on from the step that was written down.
        let leader = leading(&daemons, |_| true).unwrap();
        let other = daemons.iter().find(|daemon| daemon.node != leader.node).unwrap();
        other.ok(&["service", "update", "web", "--detach", "--image", &lab.image("demo:2")]);
        other.task_that("web", "is of revision 2", |task| task["revision"] == 2 && task["state"] == "running");
        leader.end("KILL");
        let killed = Instant::now();
        eventually("the rollout is over", 60, || settled(other, "web", 2, 6));
        println!("rolled out {:.1} s after the leading daemon was killed", killed.elapsed().as_secs_f32());
        let made = other.tasks("web").iter().filter(|task| task["revision"] == 2).count();
        assert_eq!(made, 6, "no batch twice:\n{}", other.ok(&["service", "ps", "web", "--all"]));
        leader.up(&[]);

        // Paused past its lease and continued: it does nothing more, and follows.
        let leader = leading(&daemons, |daemon| daemon.node != leader.node).unwrap();
        let other = daemons.iter().find(|daemon| daemon.node != leader.node).unwrap();
        leader.signal("STOP");
        eventually("another one leads", 20, || {
            other.neap(&["service", "scale", "web=7", "--detach"]).status.success().then_some(())
        });
        eventually("seven run", 30, || settled(other, "web", 2, 7));
        leader.signal("CONT");
        eventually("it follows", 20, || leader.log().contains("begins anew").then_some(()));
        eventually("it answers", 20, || settled(leader, "web", 2, 7));
        assert_eq!(all_containers(lab, "web"), 7);

        // The machine that leads Swarm and Neap is lost in the middle of a rollout.
        let swarm_leader = lab
            .docker("n1", &["node", "ls", "--filter", "role=manager", "--format", "{{.Hostname}} {{.ManagerStatus}}"]);
        let lost = swarm_leader.lines().find_map(|line| line.strip_suffix(" Leader")).unwrap().to_owned();
        let other = daemons.iter().find(|daemon| daemon.node != lost).unwrap();
        other.ok(&["service", "update", "web", "--detach", "--image", &lab.image("demo:3")]);
        other.task_that("web", "is of revision 3", |task| task["revision"] == 3 && task["state"] == "running");
        lab.ok(&["end", &lost]);
        let ended = Instant::now();
        eventually("the rollout is over without it", 120, || settled(other, "web", 3, 7));
        println!("rolled out {:.1} s after the leading machine was lost", ended.elapsed().as_secs_f32());
        assert!(!running_on(other, "web").contains(&lost));

        // With it a quorum is left, and without another one none: writes are refused, and say why.
        let second = daemons.iter().find(|daemon| daemon.node != lost && daemon.node != other.node).unwrap();
        lab.ok(&["cut", &second.node]);
        let refused = eventually("writes are refused", 60, || {
            let output = other.neap(&["service", "scale", "web=3", "--detach"]);
            (!output.status.success()).then(|| String::from_utf8_lossy(&output.stderr).into_owned())
        });
        assert!(
            ["no quorum", "no daemon leads", "cannot be reached", "no answer"].iter().any(|why| refused.contains(why)),
            "{refused}"
        );
        lab.ok(&["mend", &second.node]);
        lab.ok(&["start", &lost]);
        eventually("writes are taken again", 90, || {
            other.neap(&["service", "scale", "web=3", "--detach"]).status.success().then_some(())
        });
        eventually("three run", 90, || settled(other, "web", 3, 3));
        eventually("nothing else does", 90, || (all_containers(lab, "web") == 3).then_some(()));
    });
}
