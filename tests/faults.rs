//! What goes wrong around a daemon: folders, ports, disks, clocks, formats, crowds. Each a clear error that costs
//! nothing else.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

#[path = "support/mod.rs"]
mod support;

use support::{Daemon, NEAP, eventually, free_port};

/// Starts `neap up` that is expected to fail; gives its error.
fn refused(daemon: &Daemon, extra: &[&str]) -> String {
    let output = Command::new("timeout")
        .args(["10", NEAP, "up", "--data"])
        .arg(daemon.data())
        .arg("--socket")
        .arg(daemon.folder.path().join("other.sock"))
        .args(extra)
        .env("NEAP_CONFIG", "/dev/null")
        .output()
        .unwrap();
    assert!(!output.status.success());
    String::from_utf8_lossy(&output.stderr).into_owned()
}

fn contents(folder: &Path) -> Vec<(std::path::PathBuf, Vec<u8>)> {
    let mut all: Vec<_> = std::fs::read_dir(folder)
        .unwrap()
        .flatten()
        .filter(|entry| entry.path().is_file())
        .map(|entry| (entry.path(), std::fs::read(entry.path()).unwrap()))
        .collect();
    all.sort();
    all
}

#[test]
fn two_daemons_on_one_folder() {
    let daemon = Daemon::start();
    let error = refused(&daemon, &[]);
    assert!(error.contains("is in use by another daemon") && error.contains("--data"), "{error}");
    assert!(daemon.neap(&["service", "ls"]).status.success(), "the first one goes on");
}

#[test]
fn a_damaged_or_newer_store_is_refused_and_left_alone() {
    let mut daemon = Daemon::start();
    daemon.ok(&["service", "create", "--detach", "--name", "keep", "--replicas", "0", "--", "/bin/true"]);
    daemon.stop();
    let store = daemon.data().join("neap.redb");
    let good = std::fs::read(&store).unwrap();

    // Not a store at all, a torn one, and one with a record that was changed behind our back.
    let position = good.windows(11).position(|part| part == b"\"replicas\":").unwrap();
    let mut flipped = good.clone();
    for (index, byte) in
        good.windows(11).enumerate().filter(|(_, part)| *part == b"\"replicas\":").map(|(index, _)| (index, b'8'))
    {
        flipped[index + 11] = byte;
    }
    assert_ne!(flipped[position + 11], good[position + 11]);
    for (what, bytes) in
        [("text", b"this is no store".to_vec()), ("torn", good[..good.len() / 2].to_vec()), ("flipped", flipped)]
    {
        std::fs::write(&store, &bytes).unwrap();
        let before = contents(&daemon.data());
        let error = refused(&daemon, &[]);
        assert!(error.contains("cannot be read") || error.contains("is damaged"), "{what}: {error}");
        assert!(error.contains("backup"), "{what}: {error}");
        assert!(contents(&daemon.data()) == before, "{what}: nothing is touched");
    }

    // A folder of the next format.
    std::fs::write(&store, &good).unwrap();
    std::fs::write(daemon.data().join("format"), "2\n").unwrap();
    let before = contents(&daemon.data());
    let error = refused(&daemon, &[]);
    assert!(error.contains("has format 2; this neap knows up to 1"), "{error}");
    assert!(contents(&daemon.data()) == before);

    std::fs::write(daemon.data().join("format"), "1\n").unwrap();
    daemon.up();
    assert!(daemon.ok(&["service", "ls"]).contains("keep"));
}

#[test]
fn a_folder_that_cannot_be_written() {
    let daemon = Daemon::new();
    std::fs::create_dir_all(daemon.data()).unwrap();
    if nix::unistd::geteuid().is_root() {
        // Root writes everywhere but on a read-only mount, in a mount namespace of its own.
        let script = format!(
            "mount -t tmpfs -o ro tmpfs {0} && exec {NEAP} up --data {0} --socket {0}.sock",
            daemon.data().display()
        );
        let output = Command::new("unshare")
            .args(["--mount", "/bin/sh", "-c", &script])
            .env("NEAP_CONFIG", "/dev/null")
            .output()
            .unwrap();
        let error = String::from_utf8_lossy(&output.stderr);
        assert!(
            !output.status.success() && error.contains("Read-only file system") && error.contains("--data"),
            "{error}"
        );
    } else {
        std::fs::set_permissions(daemon.data(), std::os::unix::fs::PermissionsExt::from_mode(0o500)).unwrap();
        let error = refused(&daemon, &[]);
        assert!(error.contains("Permission denied") && error.contains("--data"), "{error}");
    }
}

#[test]
fn a_full_disk_refuses_changes_and_loses_nothing() {
    if !nix::unistd::geteuid().is_root() {
        assert!(std::env::var_os("CI").is_none(), "CI runs as root");
        println!("skipped: only root can mount a small disk");
        return;
    }
    let mut daemon = Daemon::new();
    std::fs::create_dir_all(daemon.data()).unwrap();
    let wrapper = daemon.folder.path().join("small-disk");
    let script = format!(
        "#!/bin/sh\nexec unshare --mount /bin/sh -c 'mount -t tmpfs -o size=12m tmpfs {} && exec {NEAP} \"$@\"' neap \"$@\"\n",
        daemon.data().display()
    );
    std::fs::write(&wrapper, script).unwrap();
    std::fs::set_permissions(&wrapper, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    daemon.program = wrapper;
    daemon.up();
    let port = free_port();
    daemon.ok(&[
        "service",
        "create",
        "--name",
        "web",
        "--publish",
        &port.to_string(),
        "--health-http",
        "/healthz",
        "--",
        NEAP,
        "demo",
        "--log-every",
        "5ms",
    ]);
    // The daemon's own view of its folder.
    let pid = daemon.child.as_ref().unwrap().id();
    let inside = std::path::PathBuf::from(format!("/proc/{pid}/root{}", daemon.data().display()));
    let filler = inside.join("filler");
    let mut file = std::fs::File::create(&filler).unwrap();
    let block = vec![0_u8; 64 * 1024];
    while std::io::Write::write_all(&mut file, &block).is_ok() {}
    let error = eventually("changes are refused", 20, || {
        let output = daemon.neap(&[
            "service",
            "create",
            "--detach",
            "--name",
            "more",
            "--replicas",
            "0",
            "--label",
            &format!("x={}", "y".repeat(1000)),
            "--",
            "/bin/true",
        ]);
        let error = String::from_utf8_lossy(&output.stderr).into_owned();
        if output.status.success() {
            daemon.ok(&["service", "rm", "more", "--detach"]);
        }
        (!output.status.success()).then_some(error)
    });
    assert!(error.contains("No space left on device") && error.contains("free space"), "{error}");
    assert_eq!(support::get(port, "/").unwrap().0, 200, "what runs goes on");
    assert!(daemon.ok(&["service", "ls"]).contains("web"));
    drop(file);
    std::fs::remove_file(&filler).unwrap();
    eventually("changes are taken again", 20, || {
        daemon.neap(&["service", "scale", "web=2"]).status.success().then_some(())
    });
    assert_eq!(daemon.live_tasks("web").len(), 2);
}

#[test]
fn a_taken_port_stops_that_port_only_and_names_its_owner() {
    let daemon = Daemon::start();
    let taken = std::net::TcpListener::bind("0.0.0.0:0").unwrap();
    let port = taken.local_addr().unwrap().port();
    let other = free_port();
    let (code, error) = daemon.fails(&[
        "service",
        "create",
        "--name",
        "web",
        "--publish",
        &format!("a={port}"),
        "--publish",
        &format!("b={other}"),
        "--health-http",
        "/healthz",
        "--timeout",
        "2s",
        "--",
        NEAP,
        "demo",
    ]);
    assert_eq!(code, 5, "{error}");
    let listed = daemon.ok(&["service", "ls"]);
    assert!(
        listed.contains(&format!("port {port} is taken by"))
            && listed.contains(&format!("(pid {})", std::process::id())),
        "{listed}"
    );
    // `demo` listens on $PORT, which is the first port's; the other has nobody behind it, but is open.
    assert!(std::net::TcpStream::connect(("127.0.0.1", other)).is_ok());
    drop(taken);
    eventually("the port is opened once it is free", 10, || {
        support::get(port, "/").ok().filter(|(status, _)| *status == 200)
    });
    // Two services cannot publish one port.
    let (code, error) =
        daemon.fails(&["service", "create", "--name", "second", "--publish", &port.to_string(), "--", NEAP, "demo"]);
    assert_eq!(code, 5);
    assert!(error.contains(&format!("{port} is published by service \"web\"")), "{error}");
}

// The library that lets a process see another wall clock.
fn faketime() -> Option<&'static str> {
    let found =
        ["/usr/lib/x86_64-linux-gnu/faketime/libfaketime.so.1", "/usr/lib/aarch64-linux-gnu/faketime/libfaketime.so.1"]
            .into_iter()
            .find(|path| Path::new(path).exists());
    if found.is_none() {
        assert!(std::env::var_os("CI").is_none(), "libfaketime is missing");
        println!("skipped: libfaketime is not installed");
    }
    found
}

// Lets the daemon's wall clock be what `file` says: an offset in seconds, read anew each time.
fn set_clock(daemon: &mut Daemon, library: &str, file: &Path) {
    for (key, value) in [
        ("LD_PRELOAD", library),
        ("FAKETIME_TIMESTAMP_FILE", file.to_str().unwrap()),
        ("FAKETIME_NO_CACHE", "1"),
        ("FAKETIME_DONT_FAKE_MONOTONIC", "1"),
    ] {
        daemon.env.push((key.into(), value.into()));
    }
}

#[test]
fn a_stepped_clock_neither_fires_nor_postpones() {
    let Some(library) = faketime() else { return };
    let mut daemon = Daemon::new();
    let clock = daemon.folder.path().join("clock");
    std::fs::write(&clock, "+0\n").unwrap();
    set_clock(&mut daemon, library, &clock);
    daemon.up();
    let create = [
        "service",
        "create",
        "--name",
        "web",
        "--health-http",
        "/healthz",
        "--health-interval",
        "100ms",
        "--update-monitor",
        "3s",
    ];
    let port = free_port().to_string();
    daemon.ok(&[&create[..], &["--publish", &port, "--", NEAP, "demo"]].concat());
    for step in ["+3600\n", "-3600\n"] {
        daemon.ok(&["service", "update", "web", "--detach", "--env-add", &format!("STEP={}", step.trim())]);
        eventually("the new task is healthy", 10, || {
            daemon.live_tasks("web").iter().any(|task| task["health"] == "healthy").then_some(())
        });
        let begun = std::time::Instant::now();
        std::fs::write(&clock, step).unwrap();
        daemon.ok(&["service", "wait", "web", "--timeout", "15s"]);
        let took = begun.elapsed();
        assert!(took.as_secs_f64() > 1.5 && took.as_secs() < 12, "step {step}: min_healthy of 3s took {took:?}");
    }
    // A crash's back-off ends in its own time as well.
    daemon.fails(&[
        "service",
        "create",
        "--name",
        "crash",
        "--restart-delay",
        "200ms",
        "--timeout",
        "20s",
        "--",
        "/bin/false",
    ]);
}

#[test]
fn a_stepped_clock_runs_no_cron_script_twice_and_leaves_none_out_for_good() {
    let Some(library) = faketime() else { return };
    let mut daemon = Daemon::new();
    let file = daemon.folder.path().join("clock");
    let real = || std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs_f64();
    // From now on the daemon's clock shows this many seconds past a full hour.
    let hour = (real() / 3600.0).floor() * 3600.0;
    let step = |past: f64| std::fs::write(&file, format!("{:+.3}\n", hour + past - real())).unwrap();
    step(50.0);
    set_clock(&mut daemon, library, &file);
    daemon.up();
    let script = daemon.folder.path().join("tick.lua");
    std::fs::write(&script, "cron 'tick' { schedule = '* * * * *', run = function() end }").unwrap();
    daemon.ok(&["script", "push", "ticks", &script.to_string_lossy()]);
    let due = |daemon: &Daemon| -> Vec<u64> {
        let history = daemon.json(&["cron", "history", "tick", "--format", "json"]);
        history.as_array().unwrap().iter().map(|run| (run["due_at"].as_u64().unwrap() / 1000) - hour as u64).collect()
    };
    eventually("the first minute", 30, || (due(&daemon) == [60]).then_some(()));
    // Back by ten minutes: the minutes that come again are none. It looks at the clock every ten seconds at the latest.
    step(-530.0);
    let until = std::time::Instant::now() + Duration::from_secs(13);
    while std::time::Instant::now() < until {
        assert_eq!(due(&daemon), [60]);
        std::thread::sleep(Duration::from_millis(500));
    }
    // Forward over what was run already, and two minutes more: one is made up for at most, none twice.
    step(178.0);
    let seen = eventually("a later minute", 30, || Some(due(&daemon)).filter(|due| due.contains(&180)));
    assert!(seen.windows(2).all(|pair| pair[0] < pair[1]) && seen.len() <= 3, "{seen:?}");
}

#[test]
fn a_port_that_no_balancer_opens_is_not_called_settled() {
    let mut daemon = Daemon::new();
    // What lies where its control socket should be keeps the balancer from starting.
    std::fs::create_dir_all(daemon.data().join("balancer.sock/in-the-way")).unwrap();
    daemon.up();
    let port = free_port().to_string();
    let create = ["service", "create", "--name", "web", "--publish", &port, "--timeout", "8s", "--", "sleep", "1000"];
    let (code, error) = daemon.fails(&create);
    assert!(code == 6 && error.contains("port web/") && error.contains("balancer"), "{error}");
    assert!(daemon.ok(&["service", "ls"]).contains("balancer"));
    // Once it can start, it is as it should be.
    std::fs::remove_dir_all(daemon.data().join("balancer.sock")).unwrap();
    daemon.ok(&["service", "wait", "web", "--timeout", "20s"]);
}

#[test]
fn a_thousand_services() {
    use neap::client::{Apply, Cluster, Only, remote::RemoteCluster, wire::Endpoint};
    let daemon = Daemon::start();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let cluster = RemoteCluster::new(Endpoint::Unix(daemon.socket()));
    runtime.block_on(async {
        for number in 0..1000 {
            let service = serde_json::json!({ "name": format!("s{number}"), "command": ["/bin/sleep", "1000"], "stop": { "signal": "KILL" } });
            cluster.apply(Apply { service, with: None, only: Only::Create, auth: None }).await.unwrap();
        }
    });
    eventually("all run", 120, || {
        let services = runtime.block_on(cluster.services()).unwrap();
        (services.len() == 1000 && services.iter().all(|status| status.settled)).then_some(())
    });
    runtime.block_on(async {
        for number in 0..1000 {
            cluster.remove(&format!("s{number}")).await.unwrap();
        }
    });
    eventually("all are gone", 120, || runtime.block_on(cluster.services()).unwrap().is_empty().then_some(()));
}

#[test]
fn names_and_numbers_without_measure() {
    let daemon = Daemon::start();
    let long = "x".repeat(1000);
    let (code, error) = daemon.fails(&["service", "create", "--name", &long, "--", "/bin/true"]);
    assert_eq!(code, 2);
    assert!(error.contains("is 1000 characters long, more than 63") && error.len() < 600, "{error}");
    for args in [
        &["service", "ps", &long][..],
        &["service", "rm", &long],
        &["service", "logs", "../../etc/passwd"],
        &["service", "inspect", "a b\nc"],
        &["node", "update", &long, "--label-add", "a=b"],
    ] {
        let (code, error) = daemon.fails(args);
        // Not found, or no name at all.
        assert!(matches!(code, 2 | 4) && error.len() < 600, "{error}");
    }
    for (args, word) in [
        (&["--replicas", "100001"][..], "more than 100000"),
        (&["--limit-memory", "lots"], "limits.memory"),
        (&["--limit-cpu=-1"], "limits.cpu"),
        (&["--health-http", "healthz", "--publish", "1"], "is not a path"),
        (&["--publish", "99999"], "is not a port"),
        (&["--publish", "80:80/sctp"], "is not forwarded"),
        (&["--constraint", "node.rle == x"], "did you mean \"node.role\""),
        (&["--stop-signal", "SIGFOO"], "unknown signal"),
        (&["--rollout", "rolling,bach=3"], "did you mean \"batch\""),
        (&["--restart-delay", "5"], "has no unit"),
        (&["--env", "=x"], "is not a variable's name"),
    ] {
        let (code, error) =
            daemon.fails(&[&["service", "create", "--name", "bad"], args, &["--", "/bin/true"]].concat());
        assert_eq!(code, 2, "{error}");
        assert!(error.contains(word), "{args:?}: {error}");
    }
    assert_eq!(daemon.json(&["service", "ls", "--format", "json"]), serde_json::json!([]), "nothing came of any of it");
}

#[test]
fn no_daemon_says_both_ways_out() {
    let output = Command::new(NEAP)
        .args(["service", "ls"])
        .env("NEAP_HOST", "unix:///no/such/socket")
        .env("NEAP_CONFIG", "/dev/null")
        .output()
        .unwrap();
    let error = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(7));
    assert!(error.contains("neap up") && error.contains("--standalone"), "{error}");
}

#[test]
fn whatever_is_typed_is_answered() {
    use proptest::prelude::*;
    let daemon = Daemon::start();
    let flags = proptest::sample::select(vec![
        "replicas",
        "mode",
        "publish",
        "env",
        "label",
        "workdir",
        "user",
        "constraint",
        "replicas-max-per-node",
        "limit-cpu",
        "limit-memory",
        "reserve-cpu",
        "reserve-memory",
        "policy",
        "health-cmd",
        "health-http",
        "health-interval",
        "health-retries",
        "rollout",
        "update-parallelism",
        "update-max-failure-ratio",
        "rollback-parallelism",
        "rollback-delay",
        "restart-delay",
        "restart-max-attempts",
        "stop-signal",
        "stop-drain",
        "image",
        "file",
        "env-file",
        "with",
        "nothing",
    ]);
    let value =
        prop_oneof!["\\PC{0,20}", "-?[0-9]{1,22}", "[0-9]{1,3}(s|m|%|MiB|:80|/udp)?", "[a-z]{1,5}[=,:][a-z0-9]{0,5}"];
    let config = ProptestConfig { cases: 150, failure_persistence: None, ..ProptestConfig::default() };
    let mut runner = proptest::test_runner::TestRunner::new(config);
    runner
        .run(&proptest::collection::vec((flags, value), 1..3), |typed| {
            let typed: Vec<String> =
                typed.into_iter().map(|(flag, value)| format!("--{flag}={}", value.replace('\0', ""))).collect();
            let mut args = vec!["service", "plan", "--name", "typed"];
            args.extend(typed.iter().map(String::as_str));
            args.extend(["--", "/bin/true"]);
            let output = daemon.neap(&args);
            let error = String::from_utf8_lossy(&output.stderr).into_owned();
            prop_assert!(!error.contains("panicked"), "{args:?}: {error}");
            let code = output.status.code();
            prop_assert!(matches!(code, Some(0 | 2 | 3 | 4 | 5)), "{args:?}: {code:?} {error}");
            prop_assert!(code == Some(0) || error.starts_with("error: ") && error.len() > 12, "{args:?}: {error}");
            Ok(())
        })
        .unwrap();
    assert_eq!(daemon.json(&["service", "ls", "--format", "json"]), serde_json::json!([]));
}
