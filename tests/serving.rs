//! Hosted scripts of the whole cluster on the real binary: pushed, refused, taken back; cron, events.

use std::path::PathBuf;

#[path = "support/mod.rs"]
mod support;

use support::{Daemon, eventually};

fn write(daemon: &Daemon, name: &str, text: &str) -> String {
    let path: PathBuf = daemon.folder.path().join("files").join(name);
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    std::fs::write(&path, text).unwrap();
    path.to_string_lossy().into_owned()
}

fn create(daemon: &Daemon, name: &str, extra: &[&str]) {
    let base = ["service", "create", "--name", name, "--detach"];
    daemon.ok(&[&base[..], extra, &["--", "sleep", "1000"]].concat());
}

#[test]
fn a_set_serves_until_a_better_one_replaces_it_whole() {
    let daemon = Daemon::start();
    let one = write(&daemon, "first.lua", "policy 'first' { score = function() return 1 end }");
    let said = daemon.ok(&["script", "push", "shop", &one]);
    assert!(said.contains("policy  first  first.lua:1"), "{said}");
    create(&daemon, "web", &["--policy", "first"]);
    eventually("web runs by the pushed policy", 10, || {
        let tasks = daemon.live_tasks("web");
        tasks.first().filter(|task| task["state"] == "running").map(|_| ())
    });

    // What is wrong changes nothing and is shown where it stands.
    let broken = write(&daemon, "broken.lua", "policy 'first' {\n  scoer = function() return 1 end,\n}");
    let (code, error) = daemon.fails(&["script", "push", "shop", &broken]);
    assert_eq!(code, 3, "{error}");
    assert!(
        error.contains("unknown field \"scoer\"; did you mean \"score\"?") && error.contains("broken.lua:1"),
        "{error}"
    );
    let (code, error) = daemon.fails(&["script", "check", &broken]);
    assert!(code == 3 && error.contains("did you mean \"score\"?"), "{error}");
    // So is what would take a name away that a service uses, or is somebody else's.
    let other = write(&daemon, "other.lua", "policy 'other' { score = function() return 1 end }");
    let (code, error) = daemon.fails(&["script", "push", "shop", &other]);
    assert!(code == 5 && error.contains("policy \"first\": is used by service \"web\""), "{error}");
    let (code, error) = daemon.fails(&["script", "push", "theirs", &one]);
    assert!(code == 5 && error.contains("belongs to scripts \"shop\" already (first.lua:1)"), "{error}");
    let library = write(&daemon, "spread.lua", "policy 'spread' { score = function() return 1 end }");
    let (code, error) = daemon.fails(&["script", "push", "mine", &library]);
    assert!(code == 5 && error.contains("is the library's"), "{error}");
    let (code, error) = daemon.fails(&["script", "rm", "shop"]);
    assert!(code == 5 && error.contains("is used by service \"web\""), "{error}");
    let sets = daemon.json(&["script", "ls", "--format", "json"]);
    assert_eq!(sets.as_array().unwrap().len(), 1);
    assert_eq!(sets[0]["registrations"][0]["name"], "first");

    // A new version, seen by diff, and back again.
    std::fs::write(&one, "-- better\npolicy 'first' { score = function() return 2 end }").unwrap();
    let difference = daemon.ok(&["script", "diff", "shop", &one]);
    assert!(difference.contains("+-- better"), "{difference}");
    daemon.ok(&["script", "push", "shop", &one]);
    assert!(daemon.ok(&["script", "show", "shop", "first.lua"]).starts_with("-- better"));
    daemon.ok(&["script", "rollback", "shop"]);
    assert!(daemon.ok(&["script", "show", "shop"]).contains("return 1"));
    let (code, error) = daemon.fails(&["script", "rollback", "shop"]);
    assert!(code == 4 && error.contains("have no earlier version"), "{error}");

    // It is there again after a restart, and serves what comes.
    let mut daemon = daemon;
    daemon.kill();
    daemon.up();
    daemon.ok(&["service", "scale", "--detach", "web=3"]);
    eventually("three run", 10, || (daemon.live_tasks("web").len() == 3).then_some(()));
    let top = daemon.json(&["script", "top", "--format", "json"]);
    let first = top.as_array().unwrap().iter().find(|calls| calls["name"] == "first").unwrap().clone();
    assert_eq!((first["calls"].as_u64(), first["errors"].as_u64()), (Some(2), Some(0)));
    assert_eq!(first["owner"], "scripts \"shop\"");
    daemon.ok(&["service", "rm", "web"]);
    eventually("web is gone", 20, || {
        daemon.json(&["service", "ls", "--format", "json"]).as_array().unwrap().is_empty().then_some(())
    });
    daemon.ok(&["script", "rm", "shop"]);
}

#[test]
fn what_lies_in_lib_is_required_not_loaded() {
    let daemon = Daemon::start();
    write(&daemon, "rules/lib/helper.lua", "error 'loaded by itself'");
    let rules = write(&daemon, "rules/a.lua", "policy 'a' { score = function() return 1 end }");
    let folder = std::path::Path::new(&rules).parent().unwrap().to_string_lossy().into_owned();
    assert!(daemon.ok(&["script", "check", &folder]).contains("policy  a"));
    daemon.ok(&["script", "push", "rules", &folder]);
    let (code, error) = daemon.fails(&["script", "push", "rules", &format!("{folder}/lib")]);
    assert!(code == 3 && error.contains("loaded by itself"), "named by itself it is loaded: {error}");
}

#[test]
fn a_release_keeps_its_rollout_and_takes_the_new_policy() {
    let daemon = Daemon::start();
    let first = write(
        &daemon,
        "rules.lua",
        "policy 'p' { score = function() return 1 end }
         rollout 'r' { step = function(release)
           if release.remaining == 0 then return release:promote() end
           return release:batch { tasks = 1, min_healthy = '400ms' }
         end }",
    );
    daemon.ok(&["script", "push", "rules", &first]);
    create(&daemon, "web", &["--replicas", "4", "--policy", "p", "--rollout", "r", "--stop-drain", "0s"]);
    daemon.ok(&["service", "wait", "web"]);
    daemon.ok(&["service", "update", "web", "--detach", "--env-add", "A=1"]);
    eventually("the release has begun", 10, || {
        let release = daemon.json(&["service", "rollout", "status", "web", "--format", "json"]);
        (release["step"].as_u64()? >= 1).then_some(())
    });
    // From now on the policy refuses everything but what is labelled, and the rollout gives up.
    std::fs::write(
        &first,
        "policy 'p' { filter = function(node) return node.labels.new == 'yes', 'is not new' end }
         rollout 'r' { step = function(release) return release:fail 'by the new script' end }",
    )
    .unwrap();
    daemon.ok(&["script", "push", "rules", &first]);
    eventually("a replica waits, by the new policy", 15, || {
        let waits = |task: &serde_json::Value| task["reason"].as_str().is_some_and(|why| why.contains("is not new"));
        daemon.live_tasks("web").iter().any(waits).then_some(())
    });
    let node = daemon.json(&["node", "ls", "--format", "json"])[0]["hostname"].as_str().unwrap().to_owned();
    daemon.ok(&["node", "update", &node, "--label-add", "new=yes"]);
    eventually("the release ends by the script that it began with", 30, || {
        let release = daemon.json(&["service", "rollout", "status", "web", "--format", "json"]);
        assert_ne!(release["state"], "failed", "{release}");
        (release["state"] == "promoted").then_some(())
    });
    // The next one goes by the new script.
    daemon.ok(&["service", "update", "web", "--detach", "--env-add", "A=2"]);
    eventually("the next release gives up", 10, || {
        let release = daemon.json(&["service", "rollout", "status", "web", "--format", "json"]);
        (release["reason"] == "by the new script").then_some(())
    });
}

#[test]
fn a_folder_is_followed_and_half_a_change_changes_nothing() {
    let mut daemon = Daemon::new();
    let folder = daemon.folder.path().join("hosted");
    std::fs::create_dir_all(folder.join("lib")).unwrap();
    std::fs::write(folder.join("lib/one.lua"), "return 1").unwrap();
    std::fs::write(
        folder.join("a.lua"),
        "local one = require './lib/one'\npolicy 'a' { score = function() return one end }",
    )
    .unwrap();
    daemon.flags = vec!["--scripts".into(), folder.to_string_lossy().into_owned()];
    daemon.up();
    let names = |daemon: &Daemon| -> Vec<String> {
        let sets = daemon.json(&["script", "ls", "--format", "json"]);
        let all = sets[0]["registrations"].as_array().cloned().unwrap_or_default();
        all.iter().map(|found| found["name"].as_str().unwrap().to_owned()).collect()
    };
    assert_eq!(names(&daemon), ["a"]);
    // One good file and one bad one: neither.
    std::fs::write(folder.join("b.lua"), "policy 'b' { score = function() return 1 end }").unwrap();
    std::fs::write(folder.join("c.lua"), "policy 'c' {").unwrap();
    eventually("the change is refused", 10, || daemon.log().contains("scripts.refused").then_some(()));
    assert_eq!(names(&daemon), ["a"]);
    std::fs::write(folder.join("c.lua"), "policy 'c' { score = function() return 1 end }").unwrap();
    eventually("all three serve", 10, || (names(&daemon) == ["a", "b", "c"]).then_some(()));
    let (code, error) = daemon.fails(&["script", "push", "folder", &folder.join("a.lua").to_string_lossy()]);
    assert!(code == 5 && error.contains("belong to the daemon's scripts folder"), "{error}");
    let (code, error) = daemon.fails(&["script", "rollback", "folder"]);
    assert!(code == 5 && error.contains("belong to the daemon's scripts folder"), "{error}");
}

#[test]
fn whoever_asks_for_a_taken_name_is_told_who_has_it_and_failures_are_counted() {
    let daemon = Daemon::start();
    write(&daemon, "own/boom.lua", "cron('boom', { schedule = '0 0 1 1 *', run = function() error 'no' end })");
    let deploy = "service('own', { command = 'sleep 1000' }):apply { with = scripts 'own/*.lua', wait = '20s' }";
    let deploy = write(&daemon, "deploy.lua", deploy);
    daemon.ok(&["run", &deploy]);
    let again = write(&daemon, "again.lua", "cron 'boom' { schedule = '@daily', run = function() end }");
    let (code, error) = daemon.fails(&["script", "push", "late", &again]);
    assert!(code == 5 && error.contains("belongs to service \"own\" already (own/boom.lua:1)"), "{error}");
    for _ in 0..3 {
        daemon.fails(&["cron", "run", "boom"]);
    }
    let top = daemon.json(&["script", "top", "--format", "json"]);
    let boom = top.as_array().unwrap().iter().find(|calls| calls["name"] == "boom").unwrap();
    assert_eq!((&boom["calls"], &boom["errors"]), (&3.into(), &3.into()), "{boom}");
    assert!(boom["last_error"].as_str().unwrap().contains("no"), "{boom}");
    // A folder in place of a pattern, a file of tests in place of scripts: what to write instead is said.
    let wrong = write(&daemon, "wrong.lua", "scripts 'own'");
    let (code, error) = daemon.fails(&["run", &wrong]);
    assert!(code == 4 && error.contains("write \"own/*.lua\""), "{error}");
    let tests = write(&daemon, "own/x_test.lua", "test('x', function() end)");
    let (code, error) = daemon.fails(&["script", "check", &tests]);
    assert!(code == 4 && error.contains("neap test runs them"), "{error}");
}

#[test]
fn moments_are_seconds_everywhere() {
    let daemon = Daemon::start();
    let source = "
        service('clock', { command = 'echo hi; sleep 1000' }):apply { wait = '20s' }
        local service = services.get 'clock'
        local function near(moment) assert(math.abs(time.now() - moment) < 60, tostring(moment)) end
        near(service.tasks[1].created_at)
        near(service.tasks[1].started_at)
        near(service:logs({})[1].at)
        service = service:update({ env = { A = '1' } }, { wait = '1m' })
        near(service.release.started_at)
        assert(not pcall(function() nodes.list()[1].labels.x = 'y' end), 'what was read is no place to write to')
        local ok, why = pcall(services.get)
        assert(not ok and tostring(why):find 'argument 1: expected a text, got nothing', tostring(why))
    ";
    let file = write(&daemon, "moments.lua", source);
    daemon.ok(&["run", &file]);
}

#[test]
fn cron_scripts_run_once_and_their_history_tells() {
    let mut daemon = Daemon::start();
    let file = write(
        &daemon,
        "jobs.lua",
        r#"
cron "count" {
  schedule = "0 0 1 1 *",
  run = function(run)
    local value = tonumber((kv.get "count")) or 0
    kv.set("count", value + 1)
    print(`{run.name} {run.number} by {run.by}: {#services.list()} services`)
  end,
}
cron "fails" { schedule = "@yearly", run = function() error "not today" end }
cron "slow" { schedule = "0 0 1 1 *", timeout = "300ms", run = function() time.sleep "1h" end }
cron "hangs" { schedule = "0 0 1 1 *", run = function() time.sleep "1h" end }
cron "often" { schedule = "* * * * *", timezone = "Europe/Amsterdam", run = function() end }
"#,
    );
    daemon.ok(&["script", "push", "jobs", &file]);
    assert!(daemon.ok(&["cron", "run", "count"]).contains("count 1 by uid 0: 0 services") || !nix_is_root());
    let (code, error) = daemon.fails(&["cron", "run", "fails"]);
    assert!(code == 1 && error.contains("run 1 ended: failed"), "{error}");
    let (code, error) = daemon.fails(&["cron", "run", "slow"]);
    assert!(code == 1 && error.contains("timed out"), "{error}");
    let history = daemon.json(&["cron", "history", "fails", "--format", "json"]);
    let output = history[0]["output"].as_str().unwrap();
    assert!(output.contains("not today") && output.contains("jobs.lua:10"), "{output}");
    let all = daemon.json(&["cron", "ls", "--format", "json"]);
    let often = all.as_array().unwrap().iter().find(|cron| cron["name"] == "often").unwrap().clone();
    let next = often["next_at"].as_u64().unwrap();
    assert!(next.is_multiple_of(60_000), "{next}");
    daemon.ok(&["cron", "pause", "often"]);
    let paused = daemon.json(&["cron", "ls", "--format", "json"]);
    assert!(paused.as_array().unwrap().iter().any(|cron| cron["name"] == "often" && cron["next_at"].is_null()));

    // What runs when the daemon dies is unknown afterwards, and not begun again.
    std::thread::scope(|scope| {
        scope.spawn(|| daemon.neap(&["cron", "run", "hangs"]));
        eventually("it hangs", 10, || {
            let history = daemon.json(&["cron", "history", "hangs", "--format", "json"]);
            (history[0]["outcome"] == "running").then_some(())
        });
        let pid = daemon.child.as_ref().unwrap().id();
        support::signal(pid, "KILL");
    });
    daemon.kill();
    daemon.up();
    let history = daemon.json(&["cron", "history", "hangs", "--format", "json"]);
    assert_eq!(history.as_array().unwrap().len(), 1);
    assert_eq!(history[0]["outcome"], "unknown");
    assert_eq!(daemon.ok(&["kv", "get", "count"]).trim(), "1");
}

#[test]
fn a_run_happens_at_most_once_wherever_the_daemon_dies() {
    for (point, outcome, ran) in [
        ("cron.before-record", None, false),
        ("cron.after-record", Some("unknown"), false),
        ("cron.before-finish", Some("unknown"), true),
        ("cron.after-finish", Some("ok"), true),
    ] {
        let mut daemon = Daemon::start();
        let file = write(
            &daemon,
            "once.lua",
            "cron 'once' { schedule = '@yearly', run = function() kv.set('ran', 1, { version = 0 }) end }",
        );
        daemon.ok(&["script", "push", "once", &file]);
        daemon.kill();
        daemon.env = vec![("NEAP_FAULT".into(), point.into())];
        daemon.up();
        daemon.neap(&["cron", "run", "once"]);
        daemon.kill();
        assert!(daemon.log().contains(&format!("fault point {point}: killed")), "{point} was not passed");
        daemon.env.clear();
        daemon.up();
        let history = daemon.json(&["cron", "history", "once", "--format", "json"]);
        assert_eq!(history[0]["outcome"].as_str(), outcome, "after {point}: {history}");
        let there = daemon.json(&["kv", "ls", "ran", "--format", "json"]).as_array().unwrap().len() == 1;
        assert_eq!(there, ran, "after {point}");
    }
}

fn nix_is_root() -> bool {
    std::fs::metadata("/proc/self").is_ok_and(|about| std::os::unix::fs::MetadataExt::uid(&about) == 0)
}

#[test]
fn a_schedule_starts_a_run_by_itself_exactly_once() {
    let daemon = Daemon::start();
    let file = write(
        &daemon,
        "tick.lua",
        "cron 'tick' { schedule = '* * * * *', run = function(run) kv.set('tick/' .. run.number, run.due_at) end }",
    );
    daemon.ok(&["script", "push", "tick", &file]);
    let entries = eventually("a minute's end", 70, || {
        let entries = daemon.json(&["kv", "ls", "tick/", "--format", "json"]);
        (!entries.as_array().unwrap().is_empty()).then_some(entries)
    });
    assert_eq!(entries.as_array().unwrap().len(), 1);
    let due: f64 = entries[0]["value"].as_str().unwrap().parse().unwrap();
    assert_eq!(due % 60.0, 0.0);
    let history = daemon.json(&["cron", "history", "tick", "--format", "json"]);
    let late = history[0]["started_at"].as_u64().unwrap() - history[0]["due_at"].as_u64().unwrap();
    assert!(late < 1000, "started {late} ms after its time");
}

#[test]
fn handlers_get_their_events_in_order_and_failures_are_listed() {
    let daemon = Daemon::start();
    let file = write(
        &daemon,
        "handlers.lua",
        r#"
on "task.running" {
  name = "note", filter = { service = "web" },
  run = function(event)
    local seen = kv.get "seen" or ""
    time.sleep "10ms"
    kv.set("seen", `{seen}{event.task} on {event.node ~= nil};`)
  end,
}
on "service.updated" { name = "order", run = function(event) kv.set("order", (kv.get "order" or "") .. event.message .. ";") end }
on "service.created" { name = "breaks", run = function(event) return event.nothing.here end }
on "service.created" { name = "picky", filter = function(event) return event.subject == "web" end, run = function(event) kv.set("picky", (kv.get "picky" or "") .. event.subject) end }
"#,
    );
    daemon.ok(&["script", "push", "handlers", &file]);
    create(&daemon, "web", &[]);
    create(&daemon, "db", &[]);
    for replicas in 2..8 {
        daemon.ok(&["service", "scale", "--detach", &format!("db={replicas}")]);
    }
    eventually("the handler has seen web run", 10, || {
        (daemon.ok(&["kv", "get", "seen"]).trim() == "web.1 on true;").then_some(())
    });
    let expected: String = (2..8).map(|n| format!("replicas {} -> {n};", n - 1)).collect();
    eventually("changes of one service came in order", 10, || {
        (daemon.ok(&["kv", "get", "order"]).trim() == expected).then_some(())
    });
    eventually("the picky one saw web alone", 10, || {
        (daemon.ok(&["kv", "get", "picky"]).trim() == "web").then_some(())
    });
    let failed = daemon.json(&["events", "--failed", "--format", "json"]);
    assert_eq!(failed.as_array().unwrap().len(), 2, "{failed:#}");
    let error = failed[0]["error"].as_str().unwrap();
    assert!(error.contains("event has no field \"nothing\"") && error.contains("handlers.lua:11"), "{error}");
    let (code, error) = daemon.fails(&[
        "script",
        "check",
        &write(&daemon, "bad.lua", "on 'task.faild' { name = 'x', run = function() end }"),
    ]);
    assert!(code == 3 && error.contains("did you mean \"task.failed\"?"), "{error}");
}
