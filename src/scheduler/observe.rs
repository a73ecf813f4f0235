//! What an engine saw of a task, turned into a change of its record.

use std::sync::Arc;

use super::world::{Change, Draft, Note};
use crate::engines::{Observed, ObservedState};
use crate::model::check::OnFail;
use crate::model::clock::Timestamp;
use crate::model::event::What;
use crate::model::id::{NodeId, TaskId};
use crate::model::node::{Node, NodeState};
use crate::model::task::{Exit, Health, Stop, StopReason, Task, TaskState};

/// Takes in one observation. States only move forward: an old or doubled one changes nothing.
pub fn observe(draft: &mut Draft, observed: &Observed) {
    let Some(old) = draft.world.tasks.get(&observed.task).cloned() else { return };
    if old.state.is_final() {
        return;
    }
    let mut task = Task::clone(&old);
    for warning in &observed.warnings {
        if !task.warnings.contains(warning) {
            task.warnings.push(warning.clone());
        }
    }
    let now = draft.clock.now();
    if old.state == TaskState::Running
        && let ObservedState::Running { ports, health, said, .. } = &observed.state
    {
        return still_running(draft, &task, ports, *health, said.clone());
    }
    if !matches!(observed.state, ObservedState::Preparing { .. }) {
        let none = matches!(observed.state, ObservedState::NoRoom { .. });
        task.no_room = if none { task.no_room.saturating_add(1) } else { 0 };
    }
    let note = match &observed.state {
        ObservedState::Preparing { said } => {
            if task.state < TaskState::Starting {
                task.reason = Some(crate::model::error::shorten(said));
            }
            None
        }
        ObservedState::Starting => {
            if task.state < TaskState::Starting {
                task.state = TaskState::Starting;
            }
            None
        }
        ObservedState::Running { pid, ports, started_at, health, said } => {
            let note = running(draft, &mut task, *pid, ports, *started_at, *health);
            if task.health == Health::Unhealthy {
                task.reason.clone_from(said);
            }
            note
        }
        ObservedState::Ended { exit, finished_at } => Some(ended(draft, &mut task, *exit, *finished_at)),
        ObservedState::Rejected { reason } | ObservedState::NoRoom { reason } => {
            // What somebody else has made of it says nothing of what it is.
            let changed = task.stop.as_ref().is_some_and(|stop| stop.why == StopReason::Changed);
            task.state = if changed { TaskState::Shutdown } else { TaskState::Rejected };
            task.reason = Some(reason.clone());
            task.finished_at = Some(now);
            Some((if changed { What::TaskEnded } else { What::TaskFailed }, reason.clone()))
        }
    };
    if task != *old {
        let task = Arc::new(task);
        if let Some((what, message)) = note {
            draft.note_task(what, &task, message);
        }
        draft.change(Change::Task(task));
    }
}

fn running(
    draft: &Draft,
    task: &mut Task,
    pid: Option<u32>,
    ports: &std::collections::BTreeMap<String, String>,
    started_at: Timestamp,
    health: Health,
) -> Option<(What, String)> {
    if task.state >= TaskState::Running {
        return None;
    }
    task.state = TaskState::Running;
    task.pid = pid;
    task.ports.clone_from(ports);
    let started_at = within(started_at, task.created_at, draft.clock.now());
    task.started_at = Some(started_at);
    task.reason = None;
    let revision = draft.world.revision(&task.service, task.revision);
    task.health = match revision.map(|revision| &revision.spec) {
        Some(spec) if spec.own_check().is_some() => Health::Starting,
        // Who runs a check for us has a replica running once that passes.
        Some(spec) if health == Health::None && spec.check.as_ref().is_some_and(|check| check.by_engine) => {
            Health::Healthy
        }
        _ => health,
    };
    if matches!(task.health, Health::None | Health::Healthy) {
        task.healthy_at = Some(started_at);
    }
    Some((What::TaskRunning, format!("runs on {}", draft.world.hostname(task))))
}

fn has_own_check(draft: &Draft, task: &Task) -> bool {
    let revision = draft.world.revision(&task.service, task.revision);
    revision.is_some_and(|revision| revision.spec.own_check().is_some())
}

// News of a task that is known to run: other ports after a restart in place, and what the engine's own check says.
fn still_running(
    draft: &mut Draft,
    old: &Task,
    ports: &std::collections::BTreeMap<String, String>,
    health: Health,
    said: Option<String>,
) {
    let mut task = old.clone();
    task.ports.clone_from(ports);
    let known = draft.world.tasks.get(&old.id).is_some_and(|known| **known == task);
    if !known {
        draft.change(Change::Task(Arc::new(task.clone())));
    }
    if health == Health::None || has_own_check(draft, &task) {
        return;
    }
    let revision = draft.world.revision(&task.service, task.revision);
    let check = revision.and_then(|revision| revision.spec.check.as_ref());
    let on_fail = check.map(|check| check.timing(None).on_fail).unwrap_or_default();
    self::health(draft, &task, health, said, on_fail == OnFail::Restart);
}

/// The nodes as their engine sees them now, with their owner's settings.
pub fn nodes(draft: &mut Draft, nodes: Vec<Node>) {
    let note = |draft: &mut Draft, what: What, node: &Node, message: &str| {
        let (subject, message) = (node.hostname.clone(), message.to_owned());
        draft.decision.notes.push(Note { what, service: None, task: None, image: None, subject, message });
    };
    let present: std::collections::BTreeSet<NodeId> = nodes.iter().map(|node| node.id.clone()).collect();
    let gone: Vec<Arc<Node>> = draft.world.nodes.values().filter(|node| !present.contains(&node.id)).cloned().collect();
    let known = |draft: &Draft, node: &Node| draft.world.nodes.get(&node.id).cloned();
    let changed: Vec<Node> =
        nodes.into_iter().filter(|node| known(draft, node).is_none_or(|old| *old != *node)).collect();
    if changed.is_empty() && gone.is_empty() {
        return;
    }
    for node in &changed {
        match known(draft, node).map(|old| old.state) {
            Some(state) if state == node.state => {}
            None if node.state == NodeState::Down => {}
            _ if node.state == NodeState::Down => note(draft, What::NodeDown, node, "does not answer"),
            _ => note(draft, What::NodeReady, node, "answers"),
        }
    }
    draft.world.set_nodes(changed.into_iter().map(Arc::new));
    for node in gone {
        note(draft, What::NodeRemoved, &node, "has left the cluster");
        draft.world.drop_node(&node.id);
        let on = |task: &&Arc<Task>| task.node.as_ref() == Some(&node.id) && !task.state.is_final();
        let tasks: Vec<Arc<Task>> = draft.world.tasks.values().filter(on).cloned().collect();
        for task in tasks {
            lost(draft, &task, "its node has left the cluster");
        }
    }
    // What cannot be told to end any more is not waited for.
    let unreachable = |task: &&Arc<Task>| task.stop.is_some() && !task.state.is_final() && draft.world.is_down(task);
    let tasks: Vec<Arc<Task>> = draft.world.tasks.values().filter(unreachable).cloned().collect();
    for task in tasks {
        lost(draft, &task, "its node is down");
    }
    // What a node offers concerns every service.
    for name in draft.world.services.keys().cloned().collect::<Vec<_>>() {
        draft.wake(&name, draft.clock.now());
    }
}

/// A node was looked through: what should be there beyond these has gone while nobody looked.
pub fn stock(draft: &mut Draft, node: &NodeId, present: &std::collections::BTreeSet<TaskId>) {
    let begun = |task: &Task| task.state > TaskState::Assigned && !task.state.is_final();
    let missing = |task: &&Arc<Task>| task.node.as_ref() == Some(node) && begun(task) && !present.contains(&task.id);
    let tasks: Vec<Arc<Task>> = draft.world.tasks.values().filter(missing).cloned().collect();
    for task in tasks {
        let state = ObservedState::Ended { exit: Exit::Unknown, finished_at: draft.clock.now() };
        observe(draft, &Observed { task: task.id, state, warnings: Vec::new() });
    }
}

fn lost(draft: &mut Draft, old: &Task, why: &str) {
    let mut task = old.clone();
    task.state = TaskState::Lost;
    // It went with its node, and failed in nothing.
    let at = draft.clock.now();
    task.stop = task.stop.or(Some(Stop { why: StopReason::Drained, at }));
    task.reason = Some(why.to_owned());
    task.healthy_at = None;
    task.finished_at = Some(draft.clock.now());
    let task = Arc::new(task);
    draft.note_task(What::TaskFailed, &task, why);
    draft.change(Change::Task(task));
}

fn ended(draft: &Draft, task: &mut Task, exit: Exit, finished_at: Timestamp) -> (What, String) {
    task.exit = Some(exit);
    task.finished_at = Some(within(finished_at, task.started_at.unwrap_or(task.created_at), draft.clock.now()));
    task.healthy_at = None;
    let told = task.stop.as_ref().map(|stop| stop.why);
    task.state = match (told, exit) {
        (Some(StopReason::Unhealthy), _) => TaskState::Failed,
        (Some(_), _) => TaskState::Shutdown,
        (None, Exit::Code(0)) => TaskState::Complete,
        (None, Exit::Unknown) => TaskState::Lost,
        (None, _) => TaskState::Failed,
    };
    if told.is_none() {
        task.reason = Some(exit.to_string());
    }
    let failed = matches!(task.state, TaskState::Failed | TaskState::Lost);
    let what = if failed { What::TaskFailed } else { What::TaskEnded };
    let why =
        if told == Some(StopReason::Unhealthy) { task.reason.clone().unwrap_or_default() } else { exit.to_string() };
    (what, why)
}

// An engine's times are the wall clock's; where that was stepped they are brought back between what is known.
fn within(at: Timestamp, first: Timestamp, last: Timestamp) -> Timestamp {
    at.clamp(first.min(last), last)
}

/// A task that was told to end and had never been started.
pub fn never_started(draft: &mut Draft, old: &Task) {
    let mut task = old.clone();
    task.state = TaskState::Shutdown;
    task.finished_at = Some(draft.clock.now());
    draft.change(Change::Task(Arc::new(task)));
}

/// A task's health changed; `reason` is what its check said.
pub fn health(draft: &mut Draft, old: &Task, health: Health, reason: Option<String>, restart: bool) {
    if old.state != TaskState::Running {
        return;
    }
    let mut task = old.clone();
    if old.health == health {
        // No news, but perhaps another reason: shown while it is waited for.
        task.reason = reason.as_deref().map(crate::model::error::shorten);
        if task.reason != old.reason {
            draft.change(Change::Task(Arc::new(task)));
        }
        return;
    }
    task.health = health;
    task.reason = reason.as_deref().map(crate::model::error::shorten).filter(|_| health != Health::Healthy);
    task.healthy_at = (health == Health::Healthy).then(|| draft.clock.now());
    let task = Arc::new(task);
    match health {
        Health::Healthy => draft.note_task(What::TaskHealthy, &task, "passes its check"),
        _ => draft.note_task(What::TaskUnhealthy, &task, reason.unwrap_or_default()),
    }
    draft.change(Change::Task(task.clone()));
    if health == Health::Unhealthy && restart {
        draft.stop(&task, StopReason::Unhealthy);
    }
}
