//! Releases on the real binary: a bad version goes back, people steer, shares shift, scripts are brought along.

use std::collections::BTreeMap;

#[path = "support/mod.rs"]
mod support;

use support::{Daemon, NEAP, eventually, free_port};

struct Scene {
    daemon: Daemon,
    port: u16,
}

impl Scene {
    /// `web` at v1 with so many replicas, checked often.
    fn new(replicas: u32, extra: &[&str]) -> Self {
        let scene = Scene { daemon: Daemon::start(), port: free_port() };
        let (port, replicas) = (scene.port.to_string(), replicas.to_string());
        let base = [
            "service",
            "create",
            "--name",
            "web",
            "--replicas",
            &replicas,
            "--publish",
            &port,
            "--health-http",
            "/healthz",
            "--health-interval",
            "100ms",
            "--health-retries",
            "2",
            "--stop-drain",
            "100ms",
            "--restart-delay",
            "50ms",
        ];
        let quick: &[&str] = if extra.contains(&"--update-monitor") { &[] } else { &["--update-monitor", "0s"] };
        scene.daemon.ok(&[&base[..], extra, quick, &["--", NEAP, "demo"]].concat());
        scene
    }

    fn release(&self) -> serde_json::Value {
        self.daemon.json(&["service", "rollout", "status", "web", "--format", "json"])
    }

    /// The versions that answer, by share of 100 connections.
    fn versions(&self) -> BTreeMap<String, u32> {
        let mut seen = BTreeMap::new();
        for _ in 0..100 {
            let (_, body) = support::get(self.port, "/").unwrap();
            let answer: serde_json::Value = serde_json::from_str(&body).unwrap();
            *seen.entry(answer["version"].as_str().unwrap().to_owned()).or_default() += 1;
        }
        seen
    }

    fn only(&self, version: &str) {
        assert_eq!(self.versions(), BTreeMap::from([(version.to_owned(), 100)]));
    }
}

#[test]
fn a_bad_version_goes_back_to_the_last_healthy_one() {
    let scene = Scene::new(3, &[]);
    scene.daemon.ok(&["service", "update", "web", "--env-add", "VERSION=v2"]);
    scene.only("v2");
    // Fails its check; crashes at once; is not there at all.
    for command in [&[NEAP, "demo", "--answer", "bad", "--fail-check"][..], &["/bin/false"], &["/no/such/thing"]] {
        let (code, error) = scene.daemon.fails(&[&["service", "update", "web", "--"], command].concat());
        assert_eq!(code, 1);
        assert!(error.contains("was rolled back to revision 2"), "{error}");
        scene.only("v2");
        let status = scene.daemon.json(&["service", "inspect", "web"])["status"].clone();
        assert_eq!(status["service"]["active"], 2);
        assert_eq!(status["service"]["spec"]["env"]["VERSION"], "v2", "the description goes back as well");
        assert_eq!(status["settled"], true);
    }
    // And forward again.
    scene.daemon.ok(&["service", "update", "web", "--env-add", "VERSION=v3"]);
    scene.only("v3");
}

#[test]
fn pause_and_continue_on_failure() {
    let scene = Scene::new(2, &["--update-failure-action", "pause"]);
    let (_, error) = scene.daemon.fails(&["service", "update", "web", "--", NEAP, "demo", "--fail-check"]);
    assert!(error.contains("is paused") && error.contains("rollout resume"), "{error}");
    assert_eq!(scene.release()["state"], "paused");
    scene.only("v1");
    scene.daemon.ok(&["service", "rollback", "web"]);
    assert_eq!(scene.release()["state"], "rolled_back");
    assert_eq!(scene.daemon.live_tasks("web").len(), 2);
    scene.only("v1");
}

#[test]
fn people_steer() {
    let scene = Scene::new(3, &["--update-monitor", "1s"]);
    let update = |version: &str| {
        scene.daemon.ok(&["service", "update", "web", "--detach", "--env-add", &format!("VERSION={version}")])
    };
    update("v2");
    eventually("the first batch", 10, || (scene.release()["step"].as_u64() == Some(1)).then_some(()));
    scene.daemon.ok(&["service", "rollout", "pause", "web"]);
    let (code, error) = scene.daemon.fails(&["service", "rollout", "pause", "web"]);
    assert!(code == 5 && error.contains("its release is paused"), "{error}");
    let (code, error) = scene.daemon.fails(&["service", "update", "web", "--env-add", "VERSION=v9"]);
    assert!(code == 5 && error.contains("was paused by hand"), "{error}");
    scene.daemon.ok(&["service", "rollout", "resume", "web"]);
    scene.daemon.ok(&["service", "wait", "web"]);
    scene.only("v2");

    update("v3");
    eventually("the first batch", 10, || (scene.release()["step"].as_u64() == Some(1)).then_some(()));
    scene.daemon.ok(&["service", "rollout", "promote", "web"]);
    scene.daemon.ok(&["service", "wait", "web"]);
    scene.only("v3");

    update("v4");
    eventually("the first batch", 10, || (scene.release()["step"].as_u64() == Some(1)).then_some(()));
    scene.daemon.ok(&["service", "rollback", "web"]);
    scene.only("v3");

    update("v5");
    eventually("one runs v5", 10, || scene.versions().contains_key("v5").then_some(()));
    scene.daemon.ok(&["service", "rollout", "abort", "web"]);
    assert_eq!(scene.release()["state"], "failed");
    let mixed = scene.versions();
    assert!(mixed.contains_key("v5") && mixed.contains_key("v3"), "{mixed:?}");
    assert!(scene.daemon.ok(&["service", "ls"]).contains("stopped half-way"));
    // Half-way stays half-way until somebody says where to.
    scene.daemon.ok(&["service", "rollback", "web"]);
    scene.only("v3");

    // After all is over, back to the one before.
    update("v6");
    scene.daemon.ok(&["service", "wait", "web"]);
    scene.daemon.ok(&["service", "rollback", "web"]);
    scene.only("v3");
}

#[test]
fn an_overtaking_update_wins() {
    let scene = Scene::new(4, &["--update-monitor", "500ms"]);
    let mut first = std::process::Command::new(NEAP)
        .args(["service", "update", "web", "--env-add", "VERSION=v2"])
        .env("NEAP_HOST", format!("unix://{}", scene.daemon.socket().display()))
        .stderr(std::process::Stdio::null())
        .spawn()
        .unwrap();
    eventually("v2 serves somewhere", 10, || scene.versions().contains_key("v2").then_some(()));
    scene.daemon.ok(&["service", "update", "web", "--env-add", "VERSION=v3"]);
    scene.only("v3");
    assert_eq!(first.wait().unwrap().code(), Some(5), "who was overtaken is told");
    assert_eq!(scene.daemon.live_tasks("web").len(), 4);
}

#[test]
fn stop_first_never_runs_two() {
    let scene = Scene::new(1, &["--update-order", "stop-first"]);
    scene.daemon.ok(&["service", "update", "web", "--env-add", "VERSION=v2"]);
    scene.only("v2");
    // However quick it was: in the order in which it happened, one ends before the next is handed to the engine.
    let log = scene.daemon.log();
    let happened = log.lines().filter(|line| line.contains("subject=\"web.1\""));
    let order: Vec<&str> = happened
        .filter_map(|line| {
            ["assigned", "running", "ended"].into_iter().find(|what| line.contains(&format!("task.{what}\"")))
        })
        .collect();
    assert_eq!(order, ["assigned", "running", "ended", "assigned", "running"], "{log}");
}

#[test]
fn scaling_while_a_release_goes_on() {
    let scene = Scene::new(4, &["--update-monitor", "300ms"]);
    scene.daemon.ok(&["service", "update", "web", "--detach", "--env-add", "VERSION=v2"]);
    scene.daemon.ok(&["service", "scale", "web=6"]);
    scene.only("v2");
    assert_eq!(scene.daemon.live_tasks("web").len(), 6);
    scene.daemon.ok(&["service", "update", "web", "--detach", "--env-add", "VERSION=v3"]);
    scene.daemon.ok(&["service", "scale", "web=2"]);
    scene.only("v3");
    assert_eq!(scene.daemon.live_tasks("web").len(), 2);
}

#[test]
fn scripts_brought_along_decide() {
    let daemon = Daemon::start();
    let (folder, port) = (daemon.folder.path().join("deploy"), free_port());
    std::fs::create_dir_all(folder.join("rules")).unwrap();
    let write = |name: &str, text: &str| std::fs::write(folder.join(name), text).unwrap();
    write(
        "rules/canary.lua",
        "local shares = { 10, 50 }\nrollout 'canary' {\n  step = function(release)\n    if release.failed_tasks > 0 then return release:rollback 'canary died' end\n    local share = shares[release.step]\n    if not share then return release:promote() end\n    return release:shift { tasks = release.step, weight = share, hold = '2s' }\n  end,\n}",
    );
    write(
        "rules/answers.lua",
        "check 'answers' { every = '100ms', run = function(task) return http.get('http://' .. task:address() .. '/healthz').status == 200 end }",
    );
    let deploy = format!(
        "local version = ...\nlocal web = service 'web' {{ command = {{ '{NEAP}', 'demo', '--answer', version }}, replicas = 4, ports = {{ http = {port} }}, check = 'answers', rollout = 'canary', stop = {{ drain = '100ms' }} }}\nlocal plan = web:plan {{ with = scripts 'rules/*.lua' }}\nprint(plan)\nif not plan.empty then web:apply {{ with = scripts 'rules/*.lua', wait = '30s' }} end\n"
    );
    write("deploy.lua", &deploy);
    let file = folder.join("deploy.lua").display().to_string();
    assert!(daemon.ok(&["run", &file, "v1"]).contains("create  web.1"));
    assert!(daemon.ok(&["run", &file, "v1"]).contains("nothing would change"));
    let scene = Scene { daemon, port };
    let mut child = std::process::Command::new(NEAP)
        .args(["run", &file, "v2"])
        .env("NEAP_HOST", format!("unix://{}", scene.daemon.socket().display()))
        .stdout(std::process::Stdio::null())
        .stderr(std::process::Stdio::null())
        .spawn()
        .unwrap();
    // One task of five gets 10 percent, then two get 50.
    eventually("the canary holds", 10, || {
        (scene.release()["step"] == 1 && scene.versions().get("v2") == Some(&10)).then_some(())
    });
    eventually("half and half", 10, || {
        (scene.release()["step"] == 2 && scene.versions().get("v2") == Some(&50)).then_some(())
    });
    assert!(child.wait().unwrap().success());
    scene.only("v2");
    // The CLI brings scripts along as well; a name of the library's cannot be taken.
    let bring = |file: &str| {
        std::process::Command::new(NEAP)
            .args(["service", "update", "web", "--with", file, "--policy", "first"])
            .current_dir(folder.join("rules"))
            .env("NEAP_HOST", format!("unix://{}", scene.daemon.socket().display()))
            .output()
            .unwrap()
    };
    write("rules/first.lua", "policy 'first' { score = function() return 1 end }");
    write("rules/taken.lua", "policy 'spread' { score = function() return 1 end }");
    let output = bring("*.lua");
    let error = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(
        output.status.code() == Some(5) && error.contains("policy \"spread\": is the library's; taken.lua:1"),
        "{error}"
    );
    std::fs::remove_file(folder.join("rules/taken.lua")).unwrap();
    assert!(bring("*.lua").status.success());
    // A check that is not registered any more, a policy that is not there: said before anything is done.
    let (code, error) = scene.daemon.fails(&["service", "update", "web", "--policy", "nowhere"]);
    assert!(code == 4 && error.contains("policy \"nowhere\": is not registered"), "{error}");
}

#[test]
fn a_failing_policy_leaves_tasks_pending_and_says_why() {
    let daemon = Daemon::start();
    let folder = daemon.folder.path().join("deploy");
    std::fs::create_dir_all(&folder).unwrap();
    std::fs::write(folder.join("bad.lua"), "policy 'bad' { score = function(node)\n  return node.lable.x\nend }")
        .unwrap();
    std::fs::write(folder.join("deploy.lua"), "service 'web' { command = { '/bin/sleep', '1000' }, policy = 'bad', on_policy_error = (...) }:apply { with = scripts 'bad.lua' }").unwrap();
    let file = folder.join("deploy.lua").display().to_string();
    daemon.ok(&["run", &file, "pending"]);
    let reason =
        eventually("the reason is shown", 10, || daemon.live_tasks("web")[0]["reason"].as_str().map(str::to_owned));
    assert!(reason.contains("did you mean \"labels\"?") && reason.contains("bad.lua:2"), "{reason}");
    daemon.ok(&["run", &file, "spread"]);
    daemon.ok(&["service", "wait", "web"]);
    let (_, error) = daemon.fails(&[
        "service",
        "create",
        "--name",
        "huge",
        "--reserve-memory",
        "900G",
        "--constraint",
        "node.labels.disk == ssd",
        "--timeout",
        "1s",
        "--",
        "/bin/sleep",
        "1",
    ]);
    assert!(error.contains("no suitable node (insufficient memory on 1 node)"), "{error}");
}

#[test]
fn global_services_follow_nodes_and_labels() {
    let daemon = Daemon::start();
    let node = daemon.json(&["node", "ls", "--format", "json"])[0]["id"].as_str().unwrap().to_owned();
    daemon.ok(&[
        "service",
        "create",
        "--name",
        "agent",
        "--mode",
        "global",
        "--constraint",
        "node.labels.tier == db",
        "--",
        "/bin/sleep",
        "1000",
    ]);
    assert!(daemon.live_tasks("agent").is_empty());
    daemon.ok(&["node", "update", &node, "--label-add", "tier=db"]);
    eventually("it comes", 10, || (daemon.live_tasks("agent").len() == 1).then_some(()));
    assert_eq!(daemon.live_tasks("agent")[0]["slot"]["node"], node.as_str());
    daemon.ok(&["node", "update", &node, "--label-rm", "tier"]);
    eventually("it goes", 15, || daemon.live_tasks("agent").is_empty().then_some(()));
    let (code, _) = daemon.fails(&["service", "scale", "agent=3"]);
    assert_eq!(code, 2);
    // A paused node keeps what it has, and nothing new is waited for there.
    daemon.ok(&["node", "update", &node, "--label-add", "tier=db"]);
    eventually("it comes", 10, || (daemon.live_tasks("agent").len() == 1).then_some(()));
    daemon.ok(&["node", "update", &node, "--availability", "pause"]);
    daemon.ok(&["service", "create", "--name", "late", "--mode", "global", "--", "/bin/sleep", "1000"]);
    assert!(daemon.live_tasks("late").is_empty());
    assert_eq!(daemon.live_tasks("agent").len(), 1);
    daemon.ok(&["node", "update", &node, "--availability", "active"]);
    eventually("it comes", 10, || (daemon.live_tasks("late").len() == 1).then_some(()));
}
