//! What applying a description would change: the same decisions on a copy of the world, nothing written.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde_json::Value;

use super::board::Claim;
use super::place::{Ask, Filter, Placer, SlotAsk};
use super::slots;
use super::world::World;
use crate::model::id::{NodeId, Slot};
use crate::model::plan::{Plan, PlanAction, PlanStep};
use crate::model::release::ReleaseState;
use crate::model::service::{Service, ServiceSpec};

/// Compares `service` (as it would be after the change, its tasks made of what `hash` stands for) with what runs in `world`.
pub fn plan(world: &World, old: Option<&Service>, service: &Service, hash: &str, placer: &mut dyn Placer) -> Plan {
    let mut changes = old.map_or_else(Vec::new, |old| differences(&old.spec, &service.spec));
    if old.is_some_and(|old| old.bundle != service.bundle) {
        changes.push("scripts that come along: edited".to_owned());
    }
    // As an apply decides it.
    let replaced = old.is_some_and(|old| {
        let target = world.revision(&old.spec.name, slots::target(world, old));
        target.is_none_or(|target| target.hash != hash) || slots::is_half_way(world, old)
    });
    let present = slots::by_slot(world, service);
    let desired = slots::desired(world, service);
    let mut wanted: Vec<(Slot, PlanAction, String)> = Vec::new();
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
        wanted.push((slot.clone(), action, reason));
    }
    let replaces = |slot: &Slot| -> Vec<NodeId> {
        let tasks = present.get(slot);
        tasks.iter().flat_map(|tasks| &tasks.wanted).filter_map(|task| task.node.clone()).collect()
    };
    let ask = Ask {
        service: service.spec.name.clone(),
        revision: service.revision,
        labels: Arc::new(service.spec.labels.clone()),
        filter: Filter::of(&service.spec),
        policies: service.spec.policy.clone(),
        bundle: service.bundle.clone(),
        on_error: service.spec.on_policy_error,
        on: world.tasks_of(&service.spec.name).filter_map(|task| task.node.clone()).collect(),
        slots: wanted
            .iter()
            .map(|(slot, ..)| SlotAsk { slot: slot.clone(), replaces: replaces(slot), stays: None })
            .collect(),
    };
    // A replica that gives way gives way with its host's ports.
    let mut board = world.board().clone();
    for (slot, ..) in &wanted {
        let gone = present.get(slot).into_iter().flat_map(|tasks| &tasks.wanted);
        for (task, node) in gone.filter_map(|task| Some((task, task.node.as_ref()?))) {
            let its = world.revision(&task.service, task.revision).map(|revision| Claim::of(&revision.spec));
            let ports = its.unwrap_or_default().ports;
            board.alter(node, &service.spec.name, false, &Claim { ports, ..Claim::default() }, -1);
        }
    }
    let mut steps = Vec::new();
    placer.place(&board, &mut std::iter::once(ask), &mut |_, answers| {
        for ((slot, action, reason), answer) in wanted.iter().zip(answers) {
            let found = answer.place.map_err(|error| {
                if error.kind == crate::model::Kind::Exhausted { error.message } else { error.to_string() }
            });
            let found = found.map(|found| {
                let node = world.board().seat(found.at as usize).map(|seat| seat.node.hostname.clone());
                (node.unwrap_or_default(), found.score)
            });
            steps.push(step(service, slot, *action, found, reason.clone()));
        }
    });
    for (slot, tasks) in &present {
        for task in tasks.wanted.iter().filter(|_| !desired.contains(slot)) {
            let reason = if service.removing { "service removed" } else { "scaled down" };
            steps.push(PlanStep {
                action: PlanAction::Stop,
                task: task.label(),
                node: task.node.is_some().then(|| world.hostname(task).to_owned()),
                score: None,
                reason: reason.into(),
            });
        }
    }
    // A description that is the same is not in place before its release is through.
    let release = world.open_release(&service.spec.name).filter(|_| old.is_some() && !replaced).map(|open| {
        let reason = open.reason.as_ref().map_or_else(String::new, |reason| format!(": {reason}"));
        let moved = desired.iter().filter(|slot| open.moved.contains(*slot)).count();
        match open.state {
            ReleaseState::RollingBack => format!("it goes back to revision {}{reason}", open.back),
            state => {
                format!(
                    "revision {} is on its way: {}, {moved} of {} moved{reason}",
                    open.to,
                    state.as_str(),
                    desired.len()
                )
            }
        }
    });
    Plan {
        service: Some(service.spec.name.clone()),
        empty: steps.is_empty() && changes.is_empty() && release.is_none() && old.is_some() && !replaced,
        changes,
        release,
        steps,
    }
}

fn step(
    service: &Service,
    slot: &Slot,
    action: PlanAction,
    found: Result<(String, f64), String>,
    reason: String,
) -> PlanStep {
    let task = format!("{}.{slot}", service.spec.name);
    match found {
        Ok((node, score)) => PlanStep { action, task, node: Some(node), score: Some(score), reason },
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
