//! What an engine saw of a task, turned into a change of its record.

use std::sync::Arc;

use super::world::{Change, Draft};
use crate::engines::{Observed, ObservedState};
use crate::model::clock::Timestamp;
use crate::model::event::What;
use crate::model::task::{Exit, Health, StopReason, Task, TaskState};

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
    let note = match &observed.state {
        ObservedState::Starting => {
            if task.state < TaskState::Starting {
                task.state = TaskState::Starting;
            }
            None
        }
        ObservedState::Running { pid, ports, started_at } => running(draft, &mut task, *pid, ports, *started_at),
        ObservedState::Ended { exit, finished_at } => Some(ended(draft, &mut task, *exit, *finished_at)),
        ObservedState::Rejected { reason } => {
            task.state = TaskState::Rejected;
            task.reason = Some(reason.clone());
            task.finished_at = Some(now);
            Some((What::TaskFailed, reason.clone()))
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
    let checked =
        draft.world.revision(&task.service, task.revision).is_some_and(|revision| revision.spec.check.is_some());
    if checked {
        task.health = Health::Starting;
    } else {
        task.healthy_at = Some(started_at);
    }
    let on = task.node.as_deref().unwrap_or_default();
    Some((What::TaskRunning, format!("runs on {on}")))
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
