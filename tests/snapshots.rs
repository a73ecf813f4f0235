//! What people read: tables and plans, by snapshot.

use neap::client::{ServiceStatus, show};
use neap::model::clock::Timestamp;
use neap::model::plan::{Plan, PlanAction, PlanStep};
use serde_json::json;

fn status() -> ServiceStatus {
    let task = |slot: u32, revision: u32, state: &str, more: serde_json::Value| {
        let mut task = json!({
            "id": format!("01arz3ndektsv4rrffq69g5f{slot}{revision}"), "service": "web", "service_id": "01arz3ndektsv4rrffq69g5fav", "slot": { "replica": slot }, "revision": revision,
            "node": "eu-1", "state": state, "health": "healthy", "pid": 4000 + slot, "ports": { "http": format!("127.0.0.1:2000{slot}") },
            "created_at": 0, "started_at": 1000, "failures": 0,
        });
        for (key, value) in more.as_object().unwrap() {
            task[key] = value.clone();
        }
        task
    };
    let value = json!({
        "service": {
            "id": "01arz3ndektsv4rrffq69g5fav", "revision": 2, "active": 1, "stable": 1, "created_at": 0, "updated_at": 0,
            "spec": { "name": "web", "command": ["./server"], "replicas": 3, "ports": { "http": 8080, "admin": "9000:90" } },
        },
        "release": {
            "service": "web", "from": 1, "to": 2, "back": 1, "rollout": { "use": "canary" }, "state": "running", "step": 2, "weight": 20,
            "moved": [{ "replica": 1 }], "order": "start-first", "started_at": 0, "judged_from": 0,
        },
        "tasks": [
            task(2, 1, "running", json!({})),
            task(1, 2, "running", json!({ "health": "unhealthy", "reason": "GET /healthz: status 503" })),
            task(1, 1, "running", json!({ "stop": { "why": "replaced", "at": 0 } })),
            task(3, 1, "pending", json!({ "node": null, "pid": null, "ports": {}, "health": "none", "failures": 4, "not_before": 95_000, "reason": "exit code 3" })),
            task(3, 1, "failed", json!({ "finished_at": 60_000, "reason": "exit code 3", "warnings": ["limit memory is not enforced: no right"] })),
        ],
        "desired": 3, "healthy": 1, "settled": false,
    });
    serde_json::from_value(value).unwrap()
}

#[test]
fn services() {
    let mut settled = status();
    settled.release = None;
    settled.settled = true;
    settled.healthy = 3;
    let mut taken = settled.clone();
    taken.port_failures = vec!["port 8080 is taken by nginx (pid 812)".into()];
    let native = serde_json::from_value(json!({
        "name": "old_web", "mode": "replicated", "desired": 3, "running": 2, "reason": "no suitable node",
        "ports": [
            { "published": 80, "target": 8080, "protocol": "tcp", "mode": "ingress" },
            { "published": 53, "target": 53, "protocol": "udp", "mode": "host" },
        ],
    }))
    .unwrap();
    insta::assert_snapshot!(show::services(&[status(), settled, taken], &[native]));
}

#[test]
fn tasks() {
    insta::assert_snapshot!(show::tasks(&status(), true, Timestamp(90_000)));
}

#[test]
fn release() {
    insta::assert_snapshot!(show::release(&status().release.unwrap()));
}

#[test]
fn plan() {
    let step = |action, task: &str, node: Option<&str>, score, reason: &str| PlanStep {
        action,
        task: task.into(),
        node: node.map(str::to_owned),
        score,
        reason: reason.into(),
    };
    let plan = Plan {
        service: Some("web".parse().unwrap()),
        empty: false,
        changes: vec!["env.VERSION: 1 -> 2".into(), "replicas: 3 -> 2".into()],
        release: None,
        steps: vec![
            step(PlanAction::Replace, "web.1", Some("eu-1"), Some(-1.0), "new revision, by rollout \"rolling\""),
            step(
                PlanAction::Pending,
                "web.2",
                None,
                None,
                "no suitable node (2 nodes drained; insufficient memory on 3 nodes)",
            ),
            step(PlanAction::Stop, "web.3", Some("eu-2"), None, "scaled down"),
        ],
    };
    insta::assert_snapshot!(show::plan(&plan));
}

#[test]
fn help() {
    let output = std::process::Command::new(env!("CARGO_BIN_EXE_neap"))
        .args(["service", "--help"])
        .env("COLUMNS", "100")
        .env_remove("NEAP_HOST")
        .env_remove("NEAP_CONFIG")
        .output()
        .unwrap();
    insta::assert_snapshot!(String::from_utf8(output.stdout).unwrap());
}
