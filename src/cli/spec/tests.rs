//! Every flag into its own field, and out of it again.

use clap::Parser;
use serde_json::{Value, json};

use super::{CommandArgs, SpecArgs, changes, name_it};

#[derive(Parser)]
struct Line {
    #[command(flatten)]
    spec: SpecArgs,
    #[command(flatten)]
    command: CommandArgs,
}

fn described(base: &Value, flags: &[&str]) -> Value {
    let line = Line::try_parse_from([&["neap"], flags].concat()).unwrap_or_else(|error| panic!("{flags:?}: {error}"));
    line.command.describe(line.spec.describe(None, Some(base.clone())).unwrap()).unwrap()
}

// What the flags change, and nothing else.
fn check(base: &Value, flags: &[&str], expected: &Value) {
    assert_eq!(described(base, flags), *expected, "for {flags:?}");
}

#[test]
fn flags_with_one_value() {
    for (flags, expected) in [
        ("--replicas 3", json!({ "replicas": 3 })),
        ("--mode global", json!({ "mode": "global" })),
        ("--engine-native", json!({ "engine_native": true })),
        ("--workdir /srv", json!({ "workdir": "/srv" })),
        ("--user 1:2", json!({ "user": "1:2" })),
        ("--replicas-max-per-node 2", json!({ "max_replicas_per_node": 2 })),
        ("--limit-cpu 0.5", json!({ "limits": { "cpu": "0.5" } })),
        ("--limit-memory 512mb", json!({ "limits": { "memory": "512m" } })),
        ("--limit-memory 512MiB", json!({ "limits": { "memory": "512MiB" } })),
        ("--limit-pids 9", json!({ "limits": { "pids": 9 } })),
        ("--reserve-cpu 2", json!({ "reservations": { "cpu": "2" } })),
        ("--reserve-memory 1G", json!({ "reservations": { "memory": "1G" } })),
        ("--restart-condition on-failure", json!({ "restart": { "condition": "on-failure" } })),
        ("--restart-delay 5s", json!({ "restart": { "delay": "5s" } })),
        ("--restart-max-attempts 4", json!({ "restart": { "max_attempts": 4 } })),
        ("--restart-window 1m", json!({ "restart": { "window": "1m" } })),
        ("--stop-signal INT", json!({ "stop": { "signal": "INT" } })),
        ("--stop-grace-period 7s", json!({ "stop": { "grace": "7s" } })),
        ("--stop-drain 8s", json!({ "stop": { "drain": "8s" } })),
        ("--no-healthcheck", json!({ "check": false })),
        ("--check up", json!({ "check": { "script": "up" } })),
        ("--health-cmd true", json!({ "check": { "exec": ["/bin/sh", "-c", "true"] } })),
        ("--health-http /up", json!({ "check": { "http": "/up" } })),
        ("--health-tcp 80", json!({ "check": { "tcp": "80" } })),
        ("--health-http /up --health-port 81", json!({ "check": { "http": "/up", "port": "81" } })),
        ("--health-interval 1s", json!({ "check": { "every": "1s" } })),
        ("--health-timeout 2s", json!({ "check": { "timeout": "2s" } })),
        ("--health-retries 3", json!({ "check": { "unhealthy": 3 } })),
        ("--health-start-period 4s", json!({ "check": { "start_period": "4s" } })),
        ("--health-on-fail unroute", json!({ "check": { "on_fail": "unroute" } })),
        ("--update-parallelism 2", json!({ "rollout": { "use": "rolling", "batch": 2 } })),
        ("--update-parallelism 0", json!({ "rollout": { "use": "rolling", "batch": "100%" } })),
        ("--update-delay 5s", json!({ "rollout": { "use": "rolling", "delay": "5s" } })),
        ("--update-monitor 6s", json!({ "rollout": { "use": "rolling", "min_healthy": "6s" } })),
        ("--update-order stop-first", json!({ "rollout": { "use": "rolling", "order": "stop-first" } })),
        ("--update-failure-action pause", json!({ "rollout": { "use": "rolling", "on_failure": "pause" } })),
        ("--update-max-failure-ratio 0.5", json!({ "rollout": { "use": "rolling", "max_failure_ratio": 0.5 } })),
        ("--placement-pref spread=node.labels.zone", json!({ "policy": [{ "use": "spread", "over": "labels.zone" }] })),
        ("--policy fewest,weight=2", json!({ "policy": [{ "use": "fewest", "weight": 2.0 }] })),
        ("--image a:1", json!({ "image": "a:1" })),
        ("--pull always", json!({ "pull": "always" })),
        ("--platform linux/arm64", json!({ "platform": "linux/arm64" })),
        ("--hostname h", json!({ "hostname": "h" })),
        ("--read-only", json!({ "read_only": true })),
        ("--init=false", json!({ "init": false })),
        ("--tty", json!({ "tty": true })),
        ("--log-driver local", json!({ "log": { "driver": "local" } })),
        ("--log-opt tag=x", json!({ "log": { "options": { "tag": "x" } } })),
    ] {
        check(&json!({}), &flags.split(' ').collect::<Vec<_>>(), &expected);
    }
    check(&json!({}), &["--args", "serve --port 80"], &json!({ "command": ["serve", "--port", "80"] }));
    check(&json!({}), &["--entrypoint", "sh -c"], &json!({ "entrypoint": ["sh", "-c"] }));
}

#[test]
fn going_back_is_as_the_rollout_but_for_what_is_said() {
    for (flags, key, value) in [
        ("--rollback-parallelism 3", "batch", json!(3)),
        ("--rollback-delay 5s", "delay", json!("5s")),
        ("--rollback-monitor 6s", "min_healthy", json!("6s")),
        ("--rollback-order stop-first", "order", json!("stop-first")),
        ("--rollback-failure-action continue", "on_failure", json!("continue")),
        ("--rollback-max-failure-ratio 0.25", "max_failure_ratio", json!(0.25)),
    ] {
        let flags: Vec<&str> = flags.split(' ').collect();
        let spec = described(&json!({ "rollout": { "use": "rolling", "batch": 1 } }), &flags);
        assert_eq!(spec["rollback"][key], value, "{flags:?}: {spec}");
        assert_eq!(spec["rollout"], json!({ "use": "rolling", "batch": 1 }), "{flags:?}");
    }
}

#[test]
fn lists_and_tables_grow_and_shrink() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("env");
    std::fs::write(&file, "# a comment\n\nA=1\nB=two words\n").unwrap();
    let file = file.to_str().unwrap();
    check(&json!({}), &["--env-file", file, "-e", "A=2"], &json!({ "env": { "A": "2", "B": "two words" } }));
    for (base, flags, expected) in [
        (
            json!({ "env": { "A": "1", "B": "2" } }),
            "--env-rm A --env-add C=3",
            json!({ "env": { "B": "2", "C": "3" } }),
        ),
        (json!({ "labels": { "a": "1" } }), "--label-rm a --label-add b=2", json!({ "labels": { "b": "2" } })),
        (
            json!({ "container_labels": { "a": "1" } }),
            "--container-label-rm a --container-label-add b=2",
            json!({ "container_labels": { "b": "2" } }),
        ),
        (
            json!({ "constraints": ["node.role == worker"] }),
            "--constraint-rm node.role==worker --constraint-add node.labels.a==1",
            json!({ "constraints": ["node.labels.a == 1"] }),
        ),
        (
            json!({ "secrets": { "a": "shop/a", "b": "shop/b" } }),
            "--secret-rm a --secret-rm shop/b --secret-add shop/c",
            json!({ "secrets": { "c": "shop/c" } }),
        ),
        (json!({ "configs": { "/a": "shop/a" } }), "--config-rm /a", json!({ "configs": {} })),
        (json!({ "dns": ["1.1.1.1"] }), "--dns-rm 1.1.1.1 --dns-add 9.9.9.9", json!({ "dns": ["9.9.9.9"] })),
        (json!({ "dns_search": ["a"] }), "--dns-search-rm a --dns-search-add b", json!({ "dns_search": ["b"] })),
        (json!({ "dns_options": ["a"] }), "--dns-option-rm a --dns-option-add b", json!({ "dns_options": ["b"] })),
        (json!({ "groups": ["a"] }), "--group-rm a --group-add b", json!({ "groups": ["b"] })),
        (
            json!({ "hosts": { "a": "10.0.0.1" } }),
            "--host-rm a --host-add b:10.0.0.2",
            json!({ "hosts": { "b": "10.0.0.2" } }),
        ),
        (
            json!({ "sysctls": { "a.b": "1" } }),
            "--sysctl-rm a.b --sysctl-add c.d=2",
            json!({ "sysctls": { "c.d": "2" } }),
        ),
        (
            json!({ "ulimits": { "core": { "soft": 0, "hard": 0 } } }),
            "--ulimit-rm core --ulimit-add nofile=10:20",
            json!({ "ulimits": { "nofile": { "soft": 10, "hard": 20 } } }),
        ),
    ] {
        check(&base, &flags.split(' ').collect::<Vec<_>>(), &expected);
    }
    // One goes and another comes under the same name: as with Docker, what comes is there in the end.
    let base =
        json!({ "secrets": { "key": "key_v1" }, "env": { "A": "1" }, "env_kv": { "A": "shop/a" }, "name": "web" });
    let rotated = described(&base, &["--secret-rm", "key", "--secret-add", "source=key_v2,target=key"]);
    assert_eq!(rotated["secrets"], json!({ "key": "key_v2" }));
    // A variable that is set by hand comes from no key any more, nor one that is gone.
    let set = described(&base, &["--env-add", "A=2"]);
    assert_eq!((&set["env"], &set["env_kv"]), (&json!({ "A": "2" }), &json!({})));
    let gone = described(&base, &["--env-rm", "A"]);
    assert_eq!((&gone["env"], &gone["env_kv"]), (&json!({}), &json!({})));
    // What is sent is what differs, so that what somebody else changes meanwhile stays.
    assert_eq!(changes(&base, rotated), json!({ "name": "web", "secrets": { "key": "key_v2" } }));
    assert_eq!(changes(&base, set), json!({ "name": "web", "env": { "A": "2" }, "env_kv": {} }));
    assert_eq!(changes(&base, base.clone()), json!({ "name": "web" }));
    // A shell's quotes.
    let quoted = described(&json!({}), &["--entrypoint", "sh -c 'sleep 5; exit'", "--args", "a 'b c'"]);
    let expected = (json!(["sh", "-c", "sleep 5; exit"]), json!(["a", "b c"]));
    assert_eq!((&quoted["entrypoint"], &quoted["command"]), (&expected.0, &expected.1));
    // Preferences are added to those that are there.
    let zone = described(&json!({}), &["--placement-pref", "spread=node.labels.zone"]);
    let named = json!({ "name": "web", "policy": zone["policy"] });
    let both = described(&named, &["--placement-pref-add", "spread=node.labels.rack"]);
    assert_eq!(both["policy"].as_array().map(Vec::len), Some(2), "{both}");
    let rack = described(&both, &["--placement-pref-rm", "spread=node.labels.zone"]);
    assert_eq!(rack["policy"], json!([{ "use": "spread", "over": "labels.rack" }]));
    let none = described(&rack, &["--placement-pref-rm", "spread=node.labels.rack"]);
    assert_eq!(none["policy"], json!(["spread"]));
    assert_eq!(described(&json!({ "hosts": { "db": "10.0.0.1" } }), &["--host-rm", "db:10.0.0.1"])["hosts"], json!({}));
    // Mounts and networks are written out; what went and what came is what counts.
    let base = described(&json!({}), &["--mount", "type=volume,source=a,target=/a", "--network", "front"]);
    #[rustfmt::skip]
    let spec = described(&base, &[
        "--mount-rm", "/a", "--mount-add", "type=bind,source=/b,target=/b,readonly", "--network-rm", "front",
        "--network-add", "name=back,alias=db",
    ]);
    let mounts = spec["mounts"].as_array().unwrap();
    assert_eq!((mounts.len(), &mounts[0]["target"], &mounts[0]["type"]), (1, &json!("/b"), &json!("bind")), "{spec}");
    let networks = spec["networks"].as_array().unwrap();
    assert_eq!((networks.len(), &networks[0]["name"]), (1, &json!("back")), "{spec}");
    assert_eq!(networks[0]["aliases"], json!(["db"]), "{spec}");
    // Capabilities are added and dropped, as with Docker.
    let caps = described(&json!({}), &["--cap-add", "NET_ADMIN", "--cap-drop", "ALL"]);
    assert!(
        caps["cap_add"].to_string().contains("NET_ADMIN") && caps["cap_drop"].to_string().contains("ALL"),
        "{caps}"
    );
}

#[test]
fn what_has_no_name_is_called_as_its_image_or_program_is() {
    let named = |spec: Value, taken: &[&str]| {
        let mut spec = spec;
        name_it(&mut spec, |name| taken.contains(&name));
        spec["name"].as_str().unwrap_or_default().to_owned()
    };
    assert_eq!(named(json!({ "image": "nginx" }), &[]), "nginx");
    assert_eq!(named(json!({ "image": "nginx" }), &["nginx", "nginx-2"]), "nginx-3");
    let image = "registry.example:5000/shop/My_App:1.2@sha256:0123";
    assert_eq!(named(json!({ "image": image, "command": ["run"] }), &[]), "my-app");
    assert_eq!(named(json!({ "command": ["./server.py", "x"] }), &[]), "server-py");
    assert_eq!(named(json!({ "command": ["/"] }), &[]), "service");
    assert_eq!(named(json!({ "image": "a".repeat(200) }), &["a"]).len(), 55);
    assert_eq!(named(json!({}), &[]), "", "which is the description's own error");
}
