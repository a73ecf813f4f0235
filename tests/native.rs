//! A service that the Swarm runs as one of its own, described, changed and removed as any other.

#[path = "support/lab.rs"]
mod lab;
#[path = "support/mod.rs"]
mod support;

use lab::{Lab, LabDaemon, Load};
use support::eventually;

#[test]
fn the_swarm_schedules_and_updates_what_asks_for_it() {
    if lab::missing().is_some() {
        return;
    }
    let lab = Lab::up(3, 1);
    let daemon = LabDaemon::start(&lab, "n1", &[]);
    daemon.secret("key", "hunter2");
    let (demo1, demo2) = (lab.image("demo:1"), lab.image("demo:2"));
    let said = daemon.fails(&["service", "create", "--name", "web", "--publish", "mode=host,target=80", &demo1]);
    assert!(said.contains("has mode host, and nothing is published"), "{said}");
    let said = daemon.fails(&[
        "service",
        "create",
        "--name",
        "web",
        "--engine-native",
        "--health-http",
        "/",
        "--publish",
        "80:80",
        &demo1,
    ]);
    assert!(said.contains("the Swarm checks by a command (exec) alone"), "{said}");
    let said = daemon.fails(&["service", "create", "--name", "web", "--engine-native", "--rollout", "canary", &demo1]);
    assert!(said.contains("does not ask rollout \"canary\""), "{said}");

    #[rustfmt::skip]
    daemon.ok(&[
        "service", "create", "--name", "web", "--engine-native", "--replicas", "2", "--network", "back", "--secret",
        "source=key,target=key", "--publish", "mode=host,published=8080,target=8080", "--constraint",
        "node.hostname!=n3", "--update-order", "stop-first", "--update-monitor", "1s", "--stop-grace-period", "1s",
        "--rollback-parallelism", "2", "--rollback-order", "stop-first", &demo1,
    ]);
    let back = lab.docker("n1", &["service", "inspect", "-f", "{{json .Spec.RollbackConfig}}", "web"]);
    assert!(back.contains(r#""Parallelism":2,"FailureAction":"pause""#) && back.contains("stop-first"), "{back}");
    let services = || lab.docker("n1", &["service", "ls", "--format", "{{.Name}} {{.Replicas}}"]);
    assert_eq!(services().trim(), "web 2/2");
    // A change of that alone reaches the Swarm as well.
    daemon.ok(&["service", "update", "web", "--rollback-delay", "3s"]);
    let back = lab.docker("n1", &["service", "inspect", "-f", "{{json .Spec.RollbackConfig}}", "web"]);
    assert!(back.contains(r#""Parallelism":2,"Delay":3000000000"#), "{back}");
    let load = Load::start(format!("http://{}:8080/", lab.address("n1")));
    load.saw("\"version\":\"1\"");
    let listed = daemon.ok(&["service", "ls"]);
    assert!(listed.contains("web   native  2/2") && listed.contains("healthy"), "{listed}");
    assert_eq!(listed.lines().count(), 2, "shown once: {listed}");
    let tasks = daemon.ok(&["service", "ps", "web"]);
    assert!(tasks.contains("web.1") && tasks.contains("web.2") && tasks.contains("running"), "{tasks}");
    let wrote = daemon.ok(&["service", "logs", "web"]);
    assert!(wrote.contains("web.1 | demo 1 listens on") && wrote.contains("web.2 | demo 1 listens on"), "{wrote}");
    let wrote = daemon.ok(&["service", "logs", "--tail", "1", "web.2"]);
    assert!(wrote.starts_with("web.2 | demo 1") && wrote.lines().count() == 1, "{wrote}");
    let said = daemon.fails(&["service", "update", "web", "--engine-native=false", "--publish-rm", "8080"]);
    assert!(said.contains("cannot be changed of a service that is there"), "{said}");

    // By the Swarm's own update, and back.
    daemon.ok(&["service", "update", "web", "--image", &demo2]);
    load.saw("\"version\":\"2\"");
    assert!(lab.docker("n1", &["service", "inspect", "web"]).contains("demo:2"));
    daemon.ok(&["service", "rollback", "web"]);
    load.saw("\"version\":\"1\"");
    // What somebody else does to it is put right.
    lab.docker("n1", &["service", "scale", "--detach=false", "web=1"]);
    eventually("two run again", 30, || (services().trim() == "web 2/2").then_some(()));
    lab.docker("n1", &["service", "rm", "web"]);
    eventually("it is made again", 30, || (services().trim() == "web 2/2").then_some(()));
    eventually("all is as described", 30, || {
        daemon.neap(&["service", "wait", "web", "--timeout", "5s"]).status.success().then_some(())
    });
    // An update that fails is told.
    let said =
        daemon.fails(&["service", "update", "web", "--entrypoint", "/bin/none", "--update-failure-action", "pause"]);
    assert!(said.contains("the Swarm's update is paused"), "{said}");
    daemon.ok(&["service", "rollback", "web"]);
    eventually("two run again", 30, || (services().trim() == "web 2/2").then_some(()));

    let said =
        daemon.fails(&["service", "update", "web", "--entrypoint", "/bin/none", "--update-failure-action", "rollback"]);
    assert!(said.contains("the Swarm went back to what it ran before"), "{said}");
    daemon.ok(&["service", "rollback", "web"]);
    assert_eq!(services().trim(), "web 2/2");
    // A name that somebody else has is said, and not waited for.
    lab.docker("n1", &["service", "create", "--detach", "--name", "theirs", &lab.image("busybox"), "sleep", "1000"]);
    let said = daemon.fails(&["service", "create", "--name", "theirs", "--engine-native", &demo1]);
    assert!(said.contains("somebody else made it"), "{said}");
    daemon.ok(&["service", "rm", "theirs"]);
    lab.docker("n1", &["service", "rm", "theirs"]);

    // Given back it goes on as it is; removed it is gone.
    let containers = || {
        let on = |node: &str| lab.docker(node, &["ps", "-q", "--filter", "name=web"]);
        ["n1", "n2"].map(on)
    };
    let before = containers();
    daemon.ok(&["service", "hand-back", "web"]);
    assert_eq!((services().trim().to_owned(), containers()), ("web 2/2".to_owned(), before));
    assert!(daemon.ok(&["service", "ls", "--native"]).contains("web"));
    assert_eq!(daemon.ok(&["service", "ls", "--quiet"]), "");
    let script = format!(
        "local web = service 'other' {{ image = '{}', engine_native = true, command = {{ 'sleep', '1000' }} }}:apply {{ wait = '1m' }}
         assert(web.settled and web.healthy == 1); web:scale(2, {{ wait = '1m' }}); assert(web:refresh().healthy == 2)
         web:remove {{ wait = '1m' }}",
        lab.image("busybox")
    );
    daemon.ok(&["repl", "--eval", &script]);
    assert_eq!(services().trim(), "web 2/2");
    drop(load);
}
