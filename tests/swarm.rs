//! The swarm engine on a real Docker Swarm of three machines.

use std::time::{Duration, Instant};

#[path = "support/lab.rs"]
mod lab;
#[path = "support/registry.rs"]
mod registry;
#[path = "support/mod.rs"]
mod support;

use lab::{Lab, LabDaemon, Load};
use registry::Registry;
use support::eventually;

// One after the other: each has machines of its own, and there are two cores.
static ONE_AT_A_TIME: std::sync::Mutex<()> = std::sync::Mutex::new(());

fn with_swarm(managers: u32, test: impl FnOnce(&Lab)) {
    let _turn = ONE_AT_A_TIME.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    if lab::missing().is_none() {
        test(&Lab::up(3, managers));
    }
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
            "--secret", "source=shop/password,target=password,uid=1,mode=0400", "--config",
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
        let made = "network create --opt encrypted --subnet 10.77.0.0/24 --label team=shop safe";
        daemon.ok(&made.split(' ').collect::<Vec<_>>());
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
        let files = ["/etc/nginx/site.conf", "/run/secrets/password"];
        let modes = lab.docker(node, &[&["exec", &id, "stat", "-c", "%u:%g:%a"], &files[..]].concat());
        assert_eq!(modes, "1:0:440\n1:0:400");
        let env = lab.docker(node, &["exec", &id, "env"]);
        assert!(env.contains(&format!("HOST={node}")) && env.contains("HOSTNAME=web-"), "{env}");

        daemon.ok(&["service", "scale", "web=4"]);
        assert_eq!(lab.all_containers("web"), 4);
        let lines = daemon.ok(&["service", "logs", "web"]);
        assert!(lines.contains("listens on 0.0.0.0:8080"), "{lines}");

        // One that is killed is replaced.
        let victim = lab.containers(node, "web").into_iter().next().unwrap();
        lab.docker(node, &["kill", &victim]);
        daemon.task_that("web", "failed", |task| task["state"] == "failed" && task["reason"] == "exit code 137");
        eventually("four run again", 30, || (daemon.running_on("web").len() == 4).then_some(()));
        load.forgive();

        // Rolled out and back without a failed request.
        let update = ["service", "update", "web", "--image", &demo2, "--update-monitor", "200ms"];
        daemon.ok(&[&update[..], &["--update-parallelism", "2"]].concat());
        load.saw("\"version\":\"2\"");
        daemon.ok(&["service", "rollback", "web"]);
        load.saw("\"version\":\"1\"");
        // Another value of a config or a secret: its users are rolled out with it, as carefully.
        let files = ["/etc/nginx/site.conf", "/run/secrets/password"];
        daemon.config("shop/nginx", "listen 81;\n");
        for (file, new) in files.iter().zip(["listen 81;", "hunter3"]) {
            let line = format!("cat {file}");
            eventually("all have the new one", 30, || {
                let on = |node: &'static str| lab.containers(node, "web").into_iter().map(move |id| (node, id));
                let web = ["n1", "n2", "n3"].into_iter().flat_map(on);
                let all: Vec<_> = web.map(|(node, id)| lab.exec_in(node, &id, &line)).collect();
                (all.len() == 4 && all.iter().all(|text| text.as_deref() == Some(new))).then_some(())
            });
            daemon.secret("shop/password", "hunter3");
        }
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
        assert_eq!(daemon.running_on("web"), ["n1", "n1", "n2", "n2", "n3", "n3"]);
        for (lose, back) in [("cut", "mend"), ("end", "start")] {
            lab.ok(&[lose, "n3"]);
            let lost = Instant::now();
            eventually("six run on the others", 20, || {
                (daemon.running_on("web").iter().filter(|node| *node != "n3").count() == 6).then_some(())
            });
            println!("{lose}: healthy elsewhere after {:.1} s", lost.elapsed().as_secs_f32());
            lab.ok(&[back, "n3"]);
            let back = Instant::now();
            eventually("what ran there is gone", 40, || lab.containers("n3", "web").is_empty().then_some(()));
            let twice = back.elapsed();
            eventually("the node is ready", 60, || {
                let nodes = daemon.json(&["node", "ls", "--format", "json"]);
                nodes.as_array().unwrap().iter().all(|node| node["state"] == "ready").then_some(())
            });
            println!("{lose}: back, and nothing twice after {twice:.1?}; ready after {:.1?}", back.elapsed());
            assert!(twice < Duration::from_secs(10), "what was replaced goes as soon as the node is back: {twice:.1?}");
            if lose == "cut" {
                assert_eq!(lab.all_containers("web"), 6);
            }
            if lose == "cut" {
                // Nobody comes back by itself, and no more than its share when told to.
                let moved = daemon.ok(&["service", "rebalance", "web"]);
                assert_eq!(moved.matches("  n3  ").count(), 2, "{moved}");
                // From now on a script sees to it.
                let script = concat!(env!("CARGO_MANIFEST_DIR"), "/scripts/rebalance.lua");
                daemon.ok(&["script", "push", "rebalance", script]);
            } else {
                eventually("it has its share again", 30, || {
                    (daemon.running_on("web").iter().filter(|node| *node == "n3").count() == 2).then_some(())
                });
                daemon.ok(&["service", "wait", "web"]);
            }
            assert_eq!(daemon.running_on("web"), ["n1", "n1", "n2", "n2", "n3", "n3"]);
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
        assert_eq!(daemon.running_on("web").len(), 4);
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
        assert_eq!(daemon.running_on("on-disk"), ["n3"]);

        // A port of each replica's own host: one a host, replaced stop-first, and udp as well.
        #[rustfmt::skip]
        daemon.ok(&[
            "service", "create", "--name", "edge", "--replicas", "3", "--publish", "mode=host,published=9100,target=8080",
            "--publish", "mode=host,published=9153,target=9153,protocol=udp", &lab.image("demo:1"),
        ]);
        let version = |node: &str| {
            let url = format!("http://{}:9100/", lab.address(node));
            let answer = std::process::Command::new("curl").args(["-s", "-m", "5", &url]).output().unwrap();
            serde_json::from_slice::<serde_json::Value>(&answer.stdout).map(|body| body["version"].clone()).ok()
        };
        for node in ["n1", "n2", "n3"] {
            eventually("each host has one", 10, || (version(node) == Some("1".into())).then_some(()));
            let udp = lab.docker(node, &["ps", "--filter", "label=neap.service=edge", "--format", "{{.Ports}}"]);
            assert!(udp.contains(":9153->9153/udp"), "{udp}");
        }
        let task = daemon.tasks("edge")[0]["ports"].clone();
        assert!(task["p9153"].as_str().is_some_and(|at| at.ends_with(":9153/udp")), "{task}");
        daemon.ok(&["service", "scale", "edge=4", "--detach"]);
        daemon.task_that("edge", "has no host left", |task| {
            task["reason"].as_str().is_some_and(|why| why.contains("port 9100/tcp in use on 3 nodes"))
        });
        daemon.ok(&["service", "scale", "edge=3"]);
        daemon.ok(&["service", "update", "edge", "--image", &lab.image("demo:2"), "--update-monitor", "200ms"]);
        for node in ["n1", "n2", "n3"] {
            assert_eq!(version(node), Some("2".into()), "{node}");
        }
        let script = concat!(env!("CARGO_MANIFEST_DIR"), "/scripts/host-agent.lua");
        let told = daemon.ok(&["run", script, &lab.image("demo:1"), "9300", "udp"]);
        assert!(
            ["n1", "n2", "n3"].iter().all(|node| told.contains(node)) && told.matches(":9300/udp").count() == 3,
            "{told}"
        );
        let said = daemon.fails(&["service", "hand-back", "edge"]);
        assert!(said.contains("its replicas have it on their hosts"), "{said}");
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
        eventually("three run again", 30, || (daemon.running_on("web").len() == 3).then_some(()));
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
            let on = daemon.running_on("web");
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
        assert_eq!(lab.all_containers("late"), 1);
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
        let on = daemon.running_on("checked").remove(0);
        let id = lab.containers(&on, "checked").into_iter().next().unwrap();
        lab.docker(&on, &["exec", &id, "rm", "/tmp/ok"]);
        daemon
            .task_that("checked", "failed its check", |task| task["warnings"].to_string().contains("failed its check"));
        // What ended can still be read, each attempt's words.
        let ended = daemon.tasks("exits").iter().filter(|task| task["state"] == "failed").count();
        let lines = daemon.ok(&["service", "logs", "exits"]);
        assert!(lines.matches("last words").count() >= ended, "{ended} attempts have ended:\n{lines}");
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
fn a_registry_that_is_down_or_wants_a_password() {
    with_swarm(1, |lab| {
        let registry = Registry::start(lab);
        let image = format!("{}/demo:1", registry.address);
        let config = format!("DOCKER_CONFIG={}", registry.folder.path().join("docker").display());
        let login = format!("echo secret | docker login -u neap --password-stdin {}", registry.address);
        let push = format!("docker tag demo:1 {image} && docker push -q {image} && docker rmi {image}");
        lab.run("n1", &["env", &config, "sh", "-c", &format!("{login} && {push}")]);
        let folder = registry.end();

        // Down: said within seconds, without spinning, and healed when it is back; every node gets the daemon's credentials.
        let daemon = LabDaemon::new(lab, "n1", &[]);
        daemon.up(&[&config]);
        daemon.ok(&["service", "create", "--detach", "--name", "web", "--mode", "global", &image]);
        daemon.task_that("web", "has no image", |task| {
            task["state"] == "rejected" && task["reason"].to_string().contains("No such image")
        });
        assert!(daemon.tasks("web").len() <= 12, "{:?}", daemon.tasks("web"));
        let registry = Registry::in_folder(lab, folder);
        eventually("all three run", 60, || (daemon.running_on("web").len() == 3).then_some(()));

        // Without credentials: said, and healed by those of a user.
        daemon.end("TERM");
        daemon.up(&[]);
        let other = format!("{}/demo:2", registry.address);
        lab.run("n1", &["env", &config, "sh", "-c", &push.replace("demo:1", "demo:2")]);
        daemon.ok(&["service", "create", "--detach", "--name", "closed", &other]);
        daemon.task_that("closed", "is refused", |task| {
            let reason = task["reason"].to_string();
            task["state"] == "rejected" && (reason.contains("No such image") || reason.contains("credentials"))
        });
        // Of a user without any nothing is taken along, and it is said.
        let lend = ["service", "update", "closed", "--detach", "--with-registry-auth"];
        let output = daemon.command(&lend).env("DOCKER_CONFIG", "/nowhere").output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success() && said.contains("docker has no login at"), "{said}");
        let folder = registry.folder.path().join("docker");
        assert!(daemon.command(&lend).env("DOCKER_CONFIG", &folder).status().unwrap().success());
        daemon.task_that("closed", "runs", |task| task["state"] == "running");
        let logins = daemon.ok(&["registry", "logins"]);
        assert!(logins.contains("service closed  no") && logins.contains(&registry.address), "{logins}");
        // It is that service's alone; the cluster's own is for all.
        daemon.ok(&["service", "create", "--detach", "--name", "other", "--mode", "global", &other]);
        daemon.task_that("other", "is refused", |task| task["state"] == "rejected");
        let words = ["registry", "login", &registry.address, "-u", "neap", "--password-stdin"];
        assert!(daemon.with_input(&words, "secret\n").status.success());
        eventually("all three run", 60, || (daemon.running_on("other").len() == 3).then_some(()));
        daemon.ok(&["registry", "logout", &registry.address, "--service", "closed"]);
        let logins = daemon.ok(&["registry", "logins"]);
        assert!(!logins.contains("service closed") && logins.contains("all  yes"), "{logins}");
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
            r#"service "web" {{ image = "{}", replicas = 6, policy = "mostly-big", ports = {{ http = "8080:8080" }} }}
              :apply {{ with = scripts "policies/*.lua", wait = "1m" }}"#,
            lab.image("demo:1")
        );
        std::fs::write(folder.path().join("run.lua"), script).unwrap();
        daemon.ok(&["run", folder.path().join("run.lua").to_str().unwrap()]);
        assert_eq!(daemon.running_on("web"), ["n1", "n2", "n2", "n2", "n2", "n3"]);
        assert_eq!(lab.containers("n2", "web").len(), 4);
        // Labels change, and replicas follow when they are told to: under load, without a failed request.
        let load = Load::start(format!("http://{}:8080/", lab.address("n1")));
        daemon.ok(&["node", "update", "n2", "--label-rm", "size"]);
        daemon.ok(&["node", "update", "n3", "--label-add", "size=big"]);
        eventually("the labels are known", 10, || {
            let line = daemon.ok(&["node", "ls"]).lines().find(|line| line.contains("size=big"))?.to_owned();
            line.contains("n3").then_some(())
        });
        let would = daemon.json(&["service", "rebalance", "web", "--dry-run", "--format", "json"]);
        let (moves, first) = (would[0]["moves"].as_array().unwrap(), &would[0]["moves"][0]);
        assert_eq!((moves.len(), &first["from"], &first["to"]), (3, &"n2".into(), &"n3".into()), "{would}");
        assert_eq!((first["before"].as_f64(), first["after"].as_f64()), (Some(-3.0), Some(9.0)));
        daemon.ok(&["service", "rebalance", "web"]);
        assert_eq!(daemon.running_on("web"), ["n1", "n2", "n3", "n3", "n3", "n3"]);
        assert_eq!(lab.containers("n3", "web").len(), 4);
        let again = daemon.ok(&["service", "rebalance", "web"]);
        assert!(again.contains("every replica is where its policy wants it"), "{again}");
        load.end();
    });
}
