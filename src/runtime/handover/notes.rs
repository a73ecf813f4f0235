//! What a Swarm does not do as Neap did it.

use crate::model::check::OnFail;
use crate::model::container::Pull;
use crate::model::internal::Internal;
use crate::model::port::Balance;
use crate::model::service::{OnPolicyError, ServiceSpec};

/// What changes for a service that is given back, and why.
pub fn of(spec: &ServiceSpec) -> Vec<String> {
    let mut notes = Vec::new();
    if spec.engine_native {
        return notes;
    }
    for policy in spec.policy.iter().filter(|policy| policy.name.as_str() != "spread") {
        notes.push(format!("policy \"{}\": the Swarm spreads tasks over its nodes", policy.name));
    }
    if spec.on_policy_error != OnPolicyError::default() {
        notes.push("on_policy_error: there is no policy to fail".into());
    }
    for used in spec.rollouts().filter(|used| used.name.as_str() != "rolling") {
        notes.push(format!("rollout \"{}\": the Swarm updates one task after the other", used.name));
    }
    if let Some(check) = spec.check.as_ref().filter(|check| !check.disable) {
        let asked = [("http", check.http.is_some()), ("tcp", check.tcp.is_some()), ("script", check.script.is_some())];
        if let Some((kind, _)) = asked.into_iter().find(|(_, asked)| *asked) {
            notes.push(format!("check: the Swarm has none by {kind}; a task counts as healthy as soon as it runs"));
        } else if check.timing(None).on_fail != OnFail::Restart {
            notes.push("check.on_fail: the Swarm replaces a task that fails its check".into());
        }
    }
    let published: Vec<_> = spec.ports.iter().filter(|(_, port)| port.published.is_some()).collect();
    if !published.is_empty() && spec.stop.drain.millis() > 0 {
        notes.push("stop.drain: the Swarm ends a task without waiting for its connections".into());
    }
    for (name, port) in published {
        if let Some(address) = port.address {
            notes.push(format!("ports.{name}: is open on all addresses, not on {address} only"));
        }
        if port.balance != Balance::default() {
            notes.push(format!("ports.{name}: connections go to the tasks in turn"));
        }
        for field in port.carried().filter(|field| *field != "balance") {
            notes.push(format!("ports.{name}.{field}: the Swarm knows nothing of the kind"));
        }
    }
    if spec.internal == Internal::Balanced {
        notes.push("internal: its own address goes; the Swarm gives it another, for its name on its networks".into());
    }
    for route in &spec.routes {
        notes.push(format!("routes: nobody answers for {} any more", route.shown()));
    }
    if spec.pull != Pull::default() {
        notes.push("pull: the Swarm pulls an image where it is missing".into());
    }
    if !spec.secrets.is_empty() || !spec.configs.is_empty() {
        notes.push("secrets and configs: become the Swarm's own, each with its version in its name".into());
    }
    notes
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(spec: serde_json::Value, expected: &[&str]) {
        let notes = of(&ServiceSpec::read(&spec).unwrap());
        let heads: Vec<&str> = notes.iter().filter_map(|note| note.split(':').next()).collect();
        assert_eq!(heads, expected, "{spec}");
    }

    #[test]
    fn what_is_not_the_same() {
        let plain = serde_json::json!({ "name": "web", "image": "x", "stop": { "drain": "0s" } });
        check(plain, &[]);
        let all = serde_json::json!({
            "name": "web", "image": "x", "policy": "pack", "rollout": "canary", "check": { "http": "/" }, "pull": "always",
            "ports": { "http": { "published": 80, "address": "127.0.0.1", "balance": "least_connections" } },
            "secrets": { "key": "shop/key" }
        });
        let expected = [
            "policy \"pack\"",
            "rollout \"canary\"",
            "check",
            "stop.drain",
            "ports.http",
            "ports.http",
            "pull",
            "secrets and configs",
        ];
        check(all, &expected);
        let by_command = serde_json::json!({
            "name": "web", "image": "x", "check": { "exec": ["true"], "on_fail": "unroute" }, "stop": { "drain": "0s" }
        });
        check(by_command, &["check.on_fail"]);
    }
}
