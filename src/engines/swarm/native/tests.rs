use std::collections::BTreeMap;

use serde_json::{Value, json};

use super::describe::described;
use crate::engines::native::Described;
use crate::model::service::ServiceSpec;

fn read(spec: &Value) -> Described {
    let networks = BTreeMap::from([("net1".to_owned(), "back".to_owned())]);
    let given = json!([{ "Protocol": "tcp", "TargetPort": 90, "PublishedPort": 30000, "PublishMode": "ingress" }]);
    described(
        &serde_json::from_value(spec.clone()).unwrap(),
        &networks,
        &serde_json::from_value::<Vec<_>>(given).unwrap(),
        false,
    )
}

#[test]
fn every_field_is_carried_over() {
    // As `docker service inspect` shows it; the health check under the name that bollard reads.
    let spec = json!({
        "Name": "shop_web", "Labels": { "team": "shop", "odd key": "x", "neap.released": "c" },
        "TaskTemplate": {
            "ContainerSpec": {
                "Image": "web:1@sha256:00", "Labels": { "c": "d" }, "Command": ["/entry"], "Args": ["-v", "1"],
                "Hostname": "{{.Node.Hostname}}", "Env": ["A=1", "B=x=y", "PORT=80"], "Dir": "/srv", "User": "1:1",
                "Groups": ["adm"], "TTY": true, "ReadOnly": true, "Init": true, "StopSignal": "SIGINT",
                "StopGracePeriod": 3_000_000_000_i64,
                "HealthCheck": { "Test": ["CMD-SHELL", "curl localhost"], "Interval": 2_000_000_000_i64, "Retries": 5 },
                "Hosts": ["10.0.0.2 db cache"], "DNSConfig": { "Nameservers": ["9.9.9.9"], "Search": ["x"], "Options": ["y"] },
                "Secrets": [{ "File": { "Name": "key", "UID": "0", "GID": "0", "Mode": 292 }, "SecretName": "shop_key" }],
                "Configs": [{ "File": { "Name": "/etc/a", "UID": "7", "GID": "0", "Mode": 288 }, "ConfigName": "site" }],
                "Mounts": [
                    { "Type": "volume", "Source": "data", "Target": "/data" },
                    { "Type": "tmpfs", "Target": "/tmp", "TmpfsOptions": { "SizeBytes": 1_048_576, "Mode": 1023 } },
                ],
                "Sysctls": { "net.core.somaxconn": "9" }, "CapabilityAdd": ["CAP_NET_ADMIN"], "CapabilityDrop": ["ALL"],
                "Ulimits": [{ "Name": "nofile", "Soft": 1, "Hard": 2 }], "Isolation": "default",
            },
            "Resources": {
                "Limits": { "NanoCPUs": 500_000_000, "MemoryBytes": 67_108_864, "Pids": 10 },
                "Reservations": { "MemoryBytes": 1_048_576 },
            },
            "RestartPolicy": { "Condition": "on-failure", "Delay": 5_000_000_000_i64, "MaxAttempts": 3, "Window": 0 },
            "Placement": {
                "Constraints": ["node.role == worker"], "MaxReplicas": 2,
                "Preferences": [{ "Spread": { "SpreadDescriptor": "node.labels.zone" } }],
            },
            "Networks": [{ "Target": "net1", "Aliases": ["web"] }],
            "LogDriver": { "Name": "gelf", "Options": { "gelf-address": "udp://x:1" } },
        },
        "Mode": { "Replicated": { "Replicas": 3 } },
        "UpdateConfig": {
            "Parallelism": 0, "Delay": 1_000_000_000, "FailureAction": "rollback", "Monitor": 5_000_000_000_i64,
            "MaxFailureRatio": 0.5, "Order": "start-first",
        },
        "RollbackConfig": { "Parallelism": 2, "FailureAction": "continue", "MaxFailureRatio": 0, "Order": "stop-first" },
        "EndpointSpec": { "Mode": "vip", "Ports": [
            { "Protocol": "tcp", "TargetPort": 80, "PublishedPort": 8080, "PublishMode": "host" },
            { "Protocol": "tcp", "TargetPort": 90, "PublishMode": "ingress" },
        ] },
    });
    let Described { service, notes, refused, configs, .. } = read(&spec);
    assert_eq!(refused, Vec::<String>::new());
    assert_eq!(configs.keys().collect::<Vec<_>>(), ["site"]);
    let mut expected = json!({
        "replicas": 3, "labels": { "team": "shop" }, "image": "web:1@sha256:00", "entrypoint": ["/entry"],
        "command": ["-v", "1"], "env": { "A": "1", "B": "x=y" }, "container_labels": { "c": "d" }, "workdir": "/srv",
        "user": "1:1", "groups": ["adm"], "hostname": "{{.Node.Hostname}}", "hosts": { "db": "10.0.0.2", "cache": "10.0.0.2" },
        "dns": ["9.9.9.9"], "dns_search": ["x"], "dns_options": ["y"], "cap_add": ["CAP_NET_ADMIN"], "cap_drop": ["ALL"],
        "sysctls": { "net.core.somaxconn": "9" }, "ulimits": { "nofile": { "soft": 1, "hard": 2 } }, "read_only": true,
        "tty": true, "init": true, "stop": { "signal": "SIGINT", "grace": "3s" }, "secrets": { "key": "shop_key" },
        "configs": { "/etc/a": { "name": "site", "uid": 7, "mode": "0440" } },
        "mounts": [
            { "type": "volume", "source": "data", "target": "/data" },
            { "type": "tmpfs", "target": "/tmp", "tmpfs_size": "1MiB", "tmpfs_mode": "1777" },
        ],
    });
    let more = json!({
        "check": { "exec": ["/bin/sh", "-c", "curl localhost"], "every": "2s", "timeout": "30s", "unhealthy": 5 },
        "limits": { "cpu": 0.5, "memory": "64MiB", "pids": 10 }, "reservations": { "memory": "1MiB" },
        "restart": { "condition": "on-failure", "delay": "5s", "max_attempts": 3 },
        "constraints": ["node.role == worker"], "max_replicas_per_node": 2,
        "policy": [{ "use": "spread", "over": "labels.zone" }],
        "networks": [{ "name": "back", "aliases": ["web", "shop_web"] }],
        "log": { "driver": "gelf", "options": { "gelf-address": "udp://x:1" } },
        "ports": { "p80": { "target": 80, "published": 8080 }, "p90": { "target": 90, "published": 30000 } },
        "rollout": {
            "use": "rolling", "batch": "100%", "delay": "1s", "min_healthy": "5s", "max_failure_ratio": 0.5,
            "on_failure": "rollback", "order": "start-first",
        },
        "rollback": { "use": "rolling", "batch": 2, "on_failure": "continue", "order": "stop-first" },
    });
    expected.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    let mut named = Value::Object(service);
    assert_eq!(named, expected);
    let heads: Vec<&str> = notes.iter().filter_map(|note| note.split(':').next()).collect();
    assert_eq!(heads, ["label \"odd key\"", "endpoint mode vip", "port 8080"]);
    // It is a description that can be applied.
    named["name"] = "web".into();
    ServiceSpec::read(&named).unwrap();
}

#[test]
fn what_cannot_be_run_is_named() {
    let check = |part: Value, expected: &str| {
        let mut spec =
            json!({ "Name": "x", "Mode": { "Replicated": {} }, "TaskTemplate": { "ContainerSpec": { "Image": "x" } } });
        for (pointer, value) in part.as_object().unwrap() {
            let (parent, key) = pointer.rsplit_once('/').unwrap();
            spec.pointer_mut(parent).unwrap()[key] = value.clone();
        }
        let refused = read(&spec).refused.join("; ");
        assert!(refused.starts_with(expected), "{part}: {refused:?}");
    };
    let container = "/TaskTemplate/ContainerSpec";
    check(json!({ "/Mode": { "ReplicatedJob": {} } }), "mode: it is a job");
    check(json!({ format!("{container}/Privileges"): { "NoNewPrivileges": true } }), "privileges: ");
    check(
        json!({ format!("{container}/Mounts"): [{ "Type": "npipe", "Target": "/x" }] }),
        "mount /x: of the type npipe",
    );
    let secret = json!([{ "File": { "Name": "/etc/key" }, "SecretName": "key" }]);
    check(json!({ format!("{container}/Secrets"): secret }), "secret key: replicas find secrets below /run/secrets");
    let sctp = json!({ "Ports": [{ "Protocol": "sctp", "TargetPort": 53, "PublishedPort": 53 }] });
    check(json!({ "/EndpointSpec": sctp }), "port 53: sctp is not forwarded");
    let generic =
        json!({ "Reservations": { "GenericResources": [{ "DiscreteResourceSpec": { "Kind": "gpu", "Value": 1 } }] } });
    check(json!({ "/TaskTemplate/Resources": generic }), "generic resources");
    check(json!({ "/TaskTemplate/Networks": [{ "Target": "gone" }] }), "network gone: is not known any more");
    check(json!({ "/TaskTemplate/Networks": [] }), "");
}

#[test]
fn what_a_service_does_not_say_is_what_docker_takes() {
    let spec =
        json!({ "Name": "x", "Mode": { "Replicated": {} }, "TaskTemplate": { "ContainerSpec": { "Image": "x" } } });
    let Described { service, notes, .. } = read(&spec);
    assert_eq!(notes, Vec::<String>::new());
    let expected = json!({
        "image": "x", "replicas": 1, "restart": { "delay": "5s" },
        "rollout": { "use": "rolling", "batch": 1, "on_failure": "pause", "order": "stop-first" },
    });
    assert_eq!(Value::Object(service), expected);
}
