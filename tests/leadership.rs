//! Several managers, each with a daemon: who acts, and who goes on when that one is gone.

use std::time::Instant;

#[path = "support/lab.rs"]
mod lab;
#[path = "support/mod.rs"]
mod support;

use lab::{Lab, LabDaemon};
use support::eventually;

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
    if lab::missing().is_none() {
        let lab = &Lab::up(3, 3);
        let daemons: Vec<LabDaemon> = ["n1", "n2", "n3"].iter().map(|node| LabDaemon::new(lab, node, &[])).collect();
        // On two of three managers, and the Swarm's leader is the third. Both at once: which of them makes the store is
        // decided by the Swarm.
        let two = &daemons[1..];
        two.iter().for_each(|daemon| daemon.spawn(&[]));
        for daemon in two {
            eventually("every daemon answers", 30, || daemon.answers().then_some(()));
        }
        two[0].ok(&["service", "create", "--name", "two", "--replicas", "2", &lab.image("demo:1")]);
        let leader = leading(two, |_| true).unwrap();
        let other = two.iter().find(|daemon| daemon.node != leader.node).unwrap();
        leader.end("KILL");
        let killed = Instant::now();
        eventually("the other one of two leads", 30, || {
            other.neap(&["service", "scale", "two=3", "--detach"]).status.success().then_some(())
        });
        println!("two of three: led by the other one after {:.1} s", killed.elapsed().as_secs_f32());
        eventually("three run", 30, || settled(other, "two", 1, 3));
        assert_eq!(other.tasks("two").len(), 3, "nothing was started twice");
        leader.up(&[]);
        daemons[0].up(&[]);
        other.ok(&["service", "rm", "two"]);
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
        assert_eq!(lab.all_containers("web"), 7);

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
        assert!(!other.running_on("web").contains(&lost));

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
        // What stood is told all the same, with its age; also by a daemon that starts where nobody leads.
        let told = |when: &str| {
            eventually(when, 30, || {
                let output = other.neap(&["service", "ps", "-a", "web", "--format", "json"]);
                let why = String::from_utf8_lossy(&output.stderr).into_owned();
                let tasks: serde_json::Value = serde_json::from_slice(&output.stdout).ok()?;
                let seven = tasks.as_array()?.iter().filter(|task| task["state"] == "running").count() == 7;
                (seven && why.contains("no daemon leads for now; this is what stood")).then_some(why)
            })
        };
        println!("minority: {}", told("what stood is told").trim());
        let nodes = other.neap(&["node", "ls", "--format", "json"]);
        assert!(String::from_utf8_lossy(&nodes.stdout).contains(&second.node), "{nodes:?}");
        let refused = other.neap(&["service", "rm", "web"]);
        assert!(!refused.status.success(), "a write is refused");
        other.end("KILL");
        other.spawn(&[]);
        println!("minority, begun anew: {}", told("what stood is told by a new daemon").trim());
        lab.ok(&["mend", &second.node]);
        lab.ok(&["start", &lost]);
        eventually("writes are taken again", 90, || {
            other.neap(&["service", "scale", "web=3", "--detach"]).status.success().then_some(())
        });
        eventually("three run", 90, || settled(other, "web", 3, 3));
        eventually("nothing else does", 90, || (lab.all_containers("web") == 3).then_some(()));
    }
}
