//! Keys, secrets and configs, and the services that use them, on the real binary.

#[path = "support/mod.rs"]
mod support;

use support::{Daemon, NEAP, eventually};

#[test]
fn keys_have_versions_and_services_keep_the_one_they_were_applied_with() {
    let daemon = Daemon::start();
    let set = |value: &str, version: &str| {
        daemon.neap(&["kv", "set", "shop/level", value, "--version", version, "--format", "json"])
    };
    let first: serde_json::Value = serde_json::from_slice(&set("info", "0").stdout).unwrap();
    let version = first["version"].as_u64().unwrap().to_string();
    let again = set("debug", "0");
    assert_eq!(again.status.code(), Some(5));
    assert!(set("debug", &version).status.success());
    assert_eq!(set("warn", &version).status.code(), Some(5));
    let (code, error) = daemon.fails(&["kv", "set", "/bad/", "x"]);
    assert!(code == 2 && error.contains("begins or ends with"), "{error}");

    std::fs::write(daemon.folder.path().join("apply.lua"), "service 'app' { command = { 'sh', '-c', 'echo level $LEVEL secret $(cat $NEAP_SECRETS/url); stat -c %a $NEAP_SECRETS/url; sleep 1000' }, env = { LEVEL = kv.ref 'shop/level' }, secrets = { url = 'shop/url' } }:apply { wait = '10s' }").unwrap();
    let script = daemon.folder.path().join("apply.lua").to_string_lossy().into_owned();
    let (code, error) = daemon.fails(&["run", &script]);
    assert!(code == 4 && error.contains("there is no secret \"shop/url\""), "{error}");
    let secret = |value: &str| {
        let mut child = std::process::Command::new(NEAP)
            .args(["secret", "set", "shop/url", "--no-rollout"])
            .env("NEAP_HOST", format!("unix://{}", daemon.socket().display()))
            .env("NEAP_CONFIG", "/dev/null")
            .stdin(std::process::Stdio::piped())
            .stdout(std::process::Stdio::null())
            .spawn()
            .unwrap();
        std::io::Write::write_all(&mut child.stdin.take().unwrap(), value.as_bytes()).unwrap();
        assert!(child.wait().unwrap().success());
    };
    secret("postgres://s3cret\n");
    daemon.ok(&["run", &script]);
    let logs = |what: &str| {
        eventually(what, 10, || daemon.ok(&["service", "logs", "app"]).contains(what).then_some(()));
    };
    logs("level debug secret postgres://s3cret");
    logs("400");
    // Neither is changed by a change of the key alone; the next apply takes it over, and only then is there a revision.
    daemon.ok(&["kv", "set", "shop/level", "trace"]);
    secret("postgres://n3w");
    let revisions = || daemon.json(&["service", "inspect", "app"])["status"]["service"]["revision"].as_u64().unwrap();
    assert_eq!(revisions(), 1);
    daemon.ok(&["run", &script]);
    logs("level trace secret postgres://n3w");
    assert_eq!(revisions(), 2);
    daemon.ok(&["run", &script]);
    assert_eq!(revisions(), 2, "nothing has changed since");
    // Back to the revision before: with what belonged to it.
    daemon.ok(&["service", "rollback", "app"]);
    eventually("the old values are back", 20, || {
        let text = daemon.ok(&["service", "logs", "app", "--tail", "20"]);
        (text.matches("level debug secret postgres://s3cret").count() >= 2).then_some(())
    });
    // It is used, so it stays; and nobody is shown it.
    let (code, error) = daemon.fails(&["secret", "rm", "shop/url"]);
    assert!(code == 5 && error.contains("is used by app"), "{error}");
    let listed = daemon.ok(&["secret", "ls"]);
    assert!(listed.contains("shop/url") && !listed.contains("s3cret"), "{listed}");
    for place in [daemon.data(), daemon.folder.path().join("log")] {
        assert!(!holds(&place, b"n3w\"") && !holds(&place, b"s3cret\""), "{} holds a secret", place.display());
    }
    let inspect = daemon.ok(&["service", "inspect", "app"]);
    assert!(!inspect.contains("s3cret") && !inspect.contains("n3w"));
    let inspect = daemon.ok(&["secret", "inspect", "--pretty", "shop/url"]);
    assert!(inspect.contains("Version:  2") && !inspect.contains("s3cret"), "{inspect}");
}

#[test]
fn one_that_goes_takes_no_other_along() {
    let daemon = Daemon::start();
    let file = daemon.folder.path().join("value");
    for name in ["a", "a@b"] {
        std::fs::write(&file, format!("of {name}")).unwrap();
        daemon.ok(&["config", "create", name, file.to_str().unwrap()]);
    }
    daemon.ok(&["config", "rm", "a"]);
    assert_eq!(daemon.ok(&["config", "get", "a@b"]), "of a@b");
}

#[test]
fn configs_roll_out_their_users() {
    let daemon = Daemon::start();
    let file = |name: &str, text: &str| {
        let path = daemon.folder.path().join(name);
        std::fs::write(&path, text).unwrap();
        path.to_string_lossy().into_owned()
    };
    let (one, two) = (file("one.conf", "level one\n"), file("two.conf", "level two\n"));
    assert_eq!(daemon.ok(&["config", "create", "app/conf", &one]).trim(), "app/conf version 1");
    let (code, error) = daemon.fails(&["config", "create", "app/conf", &two]);
    assert!(code == 5 && error.contains("is there already") && error.contains("neap config set"), "{error}");
    let line = "cat $NEAP_CONFIGS/app.conf; sleep 1000";
    let create = |target: &str| {
        let config = format!("source=app/conf,target={target}");
        let words = ["service", "create", "--name", "app", "--config", &config, "--", "sh", "-c", line];
        words.map(str::to_owned)
    };
    // A process has no file system of its own.
    let refused = create("/etc/app.conf");
    let (code, error) = daemon.fails(&refused.each_ref().map(String::as_str));
    assert!(code == 2 && error.contains("$NEAP_CONFIGS"), "{error}");
    daemon.ok(&create("app.conf").each_ref().map(String::as_str));
    let logs = |what: &str| {
        eventually(what, 10, || daemon.ok(&["service", "logs", "app"]).contains(what).then_some(()));
    };
    logs("level one");
    assert_eq!(daemon.ok(&["config", "get", "app/conf"]), "level one\n");
    // A new value is a new revision of whoever uses it.
    assert_eq!(daemon.ok(&["config", "set", "app/conf", &two]).trim(), "app/conf version 2; rolls out app");
    logs("level two");
    // The same value again is no new one.
    assert_eq!(daemon.ok(&["config", "set", "app/conf", &two]).trim(), "app/conf version 2");
    let set = daemon.ok(&["config", "set", "app/conf", &one, "--no-rollout"]);
    assert_eq!(set.trim(), "app/conf version 3");
    let inspected = daemon.json(&["config", "inspect", "app/conf"]);
    assert_eq!((&inspected[0]["version"], &inspected[0]["used_by"]), (&3.into(), &serde_json::json!(["app"])));
    assert_eq!(inspected[0]["value"], "level one\n");
    let revision = || daemon.json(&["service", "inspect", "app"])["status"]["service"]["revision"].as_u64().unwrap();
    assert_eq!(revision(), 2);
    let (code, error) = daemon.fails(&["config", "rm", "app/conf"]);
    assert!(code == 5 && error.contains("is used by app"), "{error}");
    // What a revision was made with belongs to it.
    daemon.ok(&["service", "rollback", "app"]);
    eventually("the old value is back", 20, || {
        (daemon.ok(&["service", "logs", "app"]).matches("level one").count() >= 2).then_some(())
    });
    // What somebody holds half-way is not carried on by a new value.
    let line = "echo 3; cat $NEAP_CONFIGS/app.conf; sleep 1000";
    daemon.ok(&["service", "update", "app", "--detach", "--update-monitor", "1h", "--", "sh", "-c", line]);
    daemon.ok(&["service", "rollout", "pause", "app"]);
    let (_, error) = daemon.fails(&["config", "set", "app/conf", &file("three.conf", "level three\n")]);
    assert!(error.contains("goes on with what it had") && error.contains("is paused"), "{error}");
    assert_eq!(daemon.ok(&["config", "get", "app/conf"]), "level three\n");
    daemon.ok(&["service", "rollback", "app"]);
    daemon.ok(&["service", "update", "app", "--config-rm", "app/conf"]);
    daemon.ok(&["service", "rm", "app"]);
    eventually("nothing uses it", 10, || daemon.neap(&["config", "rm", "app/conf"]).status.success().then_some(()));
    let (code, error) = daemon.fails(&["config", "inspect", "app/conf"]);
    assert!(code == 4 && error.contains("neap config ls"), "{error}");
}

// Whether a file at or below `path`, other than a replica's own output, holds the bytes.
fn holds(path: &std::path::Path, bytes: &[u8]) -> bool {
    if path.is_dir() {
        return std::fs::read_dir(path).unwrap().flatten().any(|entry| holds(&entry.path(), bytes));
    }
    let text = std::fs::read(path).unwrap_or_default();
    text.windows(bytes.len()).any(|window| window == bytes)
}
