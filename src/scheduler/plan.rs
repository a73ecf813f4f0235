//! What applying a description would change: the same decisions on a copy of the world, nothing written.

use std::collections::BTreeMap;

use serde_json::Value;

use super::place::{Policies, node_views, place};
use super::slots;
use super::world::World;
use crate::model::id::Slot;
use crate::model::plan::{Plan, PlanAction, PlanStep};
use crate::model::service::{Service, ServiceSpec};

/// Compares `service` (as it would be after the change) with what runs in `world`.
pub fn plan(world: &World, old: Option<&Service>, service: &Service, policies: &mut dyn Policies) -> Plan {
    let changes = old.map_or_else(Vec::new, |old| differences(&old.spec, &service.spec));
    let replaced = old.is_some_and(|old| old.spec.template_hash() != service.spec.template_hash());
    let present = slots::by_slot(world, service);
    let desired = slots::desired(world, service);
    let mut views = node_views(world);
    let loaded: Result<Vec<_>, _> = service
        .spec
        .policy
        .iter()
        .enumerate()
        .map(|(index, policy)| {
            Ok::<_, crate::model::Error>((policy.name.to_string(), policies.find(&service.spec, index)?))
        })
        .collect();
    let (mut loaded, failure) = match loaded {
        Ok(loaded) => (loaded, None),
        Err(error) => (Vec::new(), Some(error.to_string())),
    };
    let mut steps = Vec::new();
    for slot in &desired {
        let tasks = present.get(slot);
        let keeps = tasks.and_then(|tasks| {
            tasks
                .wanted
                .iter()
                .find(|task| task.node.as_deref().is_none_or(|node| slots::suits(world, &service.spec, node)))
        });
        let (action, reason) = match (keeps, replaced) {
            (Some(_), false) => continue,
            (Some(_), true) => {
                (PlanAction::Replace, format!("new revision, by rollout \"{}\"", service.spec.rollout.name))
            }
            (None, _) if tasks.is_some_and(|tasks| !tasks.wanted.is_empty()) => {
                (PlanAction::Replace, "its node is drained or no longer fits".to_owned())
            }
            (None, _) => (PlanAction::Create, "missing".to_owned()),
        };
        let found = match &failure {
            Some(error) => Err(error.clone()),
            None => place(&mut views, &service.spec, slot, service.revision, &mut loaded).map_err(|error| {
                if error.kind == crate::model::Kind::Exhausted { error.message } else { error.to_string() }
            }),
        };
        steps.push(step(service, slot, action, found, reason));
    }
    for (slot, tasks) in &present {
        for task in tasks.wanted.iter().filter(|_| !desired.contains(slot)) {
            let reason = if service.removing { "service removed" } else { "scaled down" };
            steps.push(PlanStep {
                action: PlanAction::Stop,
                task: task.label(),
                node: task.node.clone(),
                score: None,
                reason: reason.into(),
            });
        }
    }
    Plan {
        service: Some(service.spec.name.clone()),
        empty: steps.is_empty() && changes.is_empty() && old.is_some(),
        changes,
        steps,
    }
}

fn step(
    service: &Service,
    slot: &Slot,
    action: PlanAction,
    found: Result<super::place::Placement, String>,
    reason: String,
) -> PlanStep {
    let task = format!("{}.{slot}", service.spec.name);
    match found {
        Ok(placement) => PlanStep { action, task, node: Some(placement.node), score: Some(placement.score), reason },
        Err(why) => PlanStep { action: PlanAction::Pending, task, node: None, score: None, reason: why },
    }
}

/// The top-level fields in which two descriptions differ, as `field: old -> new`.
pub fn differences(old: &ServiceSpec, new: &ServiceSpec) -> Vec<String> {
    let fields = |spec: &ServiceSpec| -> BTreeMap<String, Value> {
        match serde_json::to_value(spec) {
            Ok(Value::Object(map)) => map.into_iter().collect(),
            _ => BTreeMap::new(),
        }
    };
    let (old, new) = (fields(old), fields(new));
    let mut lines = Vec::new();
    let keys: std::collections::BTreeSet<&String> = old.keys().chain(new.keys()).collect();
    for key in keys {
        let (before, after) = (old.get(key).unwrap_or(&Value::Null), new.get(key).unwrap_or(&Value::Null));
        match (before, after) {
            _ if before == after => {}
            // A table's difference is told entry by entry: a changed variable should not show all the others.
            (Value::Object(a), Value::Object(b)) => {
                let inner: std::collections::BTreeSet<&String> = a.keys().chain(b.keys()).collect();
                for name in inner {
                    let (x, y) = (a.get(name).unwrap_or(&Value::Null), b.get(name).unwrap_or(&Value::Null));
                    if x != y {
                        lines.push(format!("{key}.{name}: {} -> {}", short(x), short(y)));
                    }
                }
            }
            _ => lines.push(format!("{key}: {} -> {}", short(before), short(after))),
        }
    }
    lines
}

fn short(value: &Value) -> String {
    match value {
        Value::Null => "none".into(),
        Value::String(text) => text.chars().take(80).collect(),
        other => other.to_string().chars().take(80).collect(),
    }
}
