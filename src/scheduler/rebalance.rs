//! Moves tasks to nodes that their policy likes better by now: only those, and only as far as it says.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::backoff::{Again, again};
use super::board::Claim;
use super::place::{Ask, Filter, Placer, SlotAsk, Stay};
use super::slots::{self, InSlot};
use super::world::{Change, Draft, World};
use crate::model::event::What;
use crate::model::id::{NodeId, Slot, TaskId};
use crate::model::plan::{Move, Rebalance};
use crate::model::service::{Mode, Service};
use crate::model::task::{Health, Leaving, Stop, StopReason, Task, TaskState};
use crate::model::units::Duration;
use crate::model::{Error, Kind, Result};

/// How long a successor without a check has to run before the task whose place it takes ends.
const PROVEN: Duration = Duration::from_secs(5);
/// How long a successor may take to become healthy.
const PATIENCE: Duration = Duration::from_secs(600);

/// A move, and the task that it concerns.
#[derive(Debug, Clone, PartialEq)]
pub struct Moved {
    /// The task as it is.
    pub task: TaskId,
    /// As people read it.
    pub told: Move,
}

/// What a rebalance would move: each task in turn is asked about as if it had no place yet, with all others where they are
/// by then, and moves where another node's score is higher than its own node's.
pub fn moves(world: &World, service: &Service, ask: &Rebalance, placer: &mut dyn Placer) -> Result<Vec<Moved>> {
    let name = &service.spec.name;
    let wrong = |why: &str| Error::new(Kind::Conflict, service.spec.subject(), why.to_owned());
    if service.spec.mode == Mode::Global {
        return Err(Error::invalid(service.spec.subject(), "is global: it has one replica on each suitable node"));
    }
    if service.removing {
        return Err(wrong("is just being removed"));
    }
    may_begin(world, service)?;
    let mut there: Vec<(Arc<Task>, NodeId)> = Vec::new();
    for (_, tasks) in slots::by_slot(world, service) {
        let task = tasks.good(world, service, service.active).filter(|task| task.is_healthy());
        there.extend(task.and_then(|task| Some((task.clone(), task.node.clone()?))));
    }
    let spec = slots::placement(world, service, service.active);
    let mut filter = Filter::of(spec);
    if let Some(revision) = world.revision(name, service.active) {
        filter.claim = Claim::of(&revision.spec);
    }
    let slot = |(task, node): &(Arc<Task>, NodeId)| SlotAsk {
        slot: task.slot.clone(),
        replaces: Vec::new(),
        stays: Some(Stay { node: node.clone(), min_gain: ask.min_gain, gone: true }),
    };
    let question = Ask {
        service: name.clone(),
        revision: service.active,
        labels: Arc::new(spec.labels.clone()),
        filter,
        policies: service.spec.policy.clone(),
        bundle: service.bundle.clone(),
        on_error: service.spec.on_policy_error,
        on: world.tasks_of(name).filter_map(|task| task.node.clone()).collect(),
        slots: there.iter().map(slot).collect(),
    };
    let board = world.board();
    let hostname = |node: &NodeId| world.nodes.get(node).map_or_else(|| node.to_string(), |node| node.hostname.clone());
    let mut moves = Vec::new();
    let mut failure = None;
    placer.place(board, &mut std::iter::once(question), &mut |_, answers| {
        for ((task, from), answer) in there.iter().zip(answers) {
            let placement = match answer.place {
                Ok(placement) => placement,
                // Nowhere is better than where it is.
                Err(error) if error.kind == Kind::Exhausted => continue,
                Err(error) => {
                    failure.get_or_insert(*error);
                    continue;
                }
            };
            let Some(to) = board.seat(placement.at as usize).map(|seat| seat.node.id.clone()) else { continue };
            if to == *from {
                continue;
            }
            let told = Move {
                task: task.label(),
                from: hostname(from),
                to: hostname(&to),
                before: placement.before,
                after: placement.score,
            };
            moves.push(Moved { task: task.id, told });
        }
    });
    match failure {
        Some(error) => Err(error),
        None => {
            moves.truncate(ask.max.map_or(usize::MAX, |max| max as usize));
            Ok(moves)
        }
    }
}

/// Has them moved: those that are still as they were.
pub fn begin(draft: &mut Draft, service: &Service, ask: &Rebalance, moves: &[Moved]) -> Result<()> {
    let now = draft.clock.now();
    may_begin(&draft.world, service)?;
    for moved in moves {
        let Some(task) = draft.world.tasks.get(&moved.task).filter(|task| task.wanted()) else { continue };
        let mut task = Task::clone(task);
        task.leaving = Some(Leaving { at: now, min_gain: ask.min_gain });
        draft.change(Change::Task(Arc::new(task)));
    }
    draft.note(What::ServiceUpdated, &service.spec.name, format!("rebalanced: {} to move", moves.len()));
    Ok(())
}

/// Moves nothing more.
pub fn cancel(draft: &mut Draft, service: &Service) {
    let tasks: Vec<Arc<Task>> = draft.world.tasks_of(&service.spec.name).cloned().collect();
    for task in tasks.iter().filter(|task| task.wanted() && task.leaving.is_some()) {
        stay(draft, task, "the rebalance was cancelled");
    }
}

// One at a time: a second one would not know where the first one's tasks will be.
fn may_begin(world: &World, service: &Service) -> Result<()> {
    let name = &service.spec.name;
    let wrong = |why: &str| Error::new(Kind::Conflict, service.spec.subject(), why.to_owned());
    if world.open_release(name).is_some() {
        return Err(
            wrong("has a release going on").help("wait until it is over; a rollout places its tasks anew anyway")
        );
    }
    if world.tasks_of(name).any(|task| task.wanted() && task.leaving.is_some()) {
        return Err(wrong("is being rebalanced already")
            .help(format!("wait until that is over, or end it: neap service rebalance {name} --cancel")));
    }
    Ok(())
}

/// Leaves a task where it is after all.
pub fn stay(draft: &mut Draft, task: &Arc<Task>, why: &str) {
    let mut staying = Task::clone(task);
    staying.leaving = None;
    let staying = Arc::new(staying);
    draft.note_task(What::TaskStays, &staying, why.to_owned());
    draft.change(Change::Task(staying));
}

/// Whether a successor has shown that it works: it passes a check, or without one has run for a while.
pub fn is_proven(draft: &mut Draft, service: &Service, task: &Task) -> bool {
    if task.health == Health::Healthy {
        return true;
    }
    let Some(proven) = task.healthy_at.map(|since| since.after(PROVEN)) else { return false };
    if draft.clock.now() < proven {
        draft.wake(&service.spec.name, proven);
        return false;
    }
    true
}

/// Looks at the moves that are going on. Where a successor fails, has no place, or takes too long, its task stays where it
/// is; and after one failure so do those that have not begun.
pub fn judge(draft: &mut Draft, service: &Service, slots: &mut BTreeMap<Slot, InSlot>) {
    let mut failed = false;
    for (slot, tasks) in slots.iter_mut() {
        let revision = draft.world.revision_for(service, slot);
        let Some(old) = tasks.wanted.iter().find(|task| task.leaving.is_some()).cloned() else { continue };
        let Some(why) = failure(draft, service, tasks, &old, revision) else { continue };
        failed = true;
        leave(draft, tasks, &old, &why);
        // What was tried says nothing of the slot.
        let since = old.leaving.map_or(old.created_at, |leaving| leaving.at);
        let tried = tasks.ended.iter_mut().filter(|task| task.created_at >= since && task.stop.is_none());
        for task in tried {
            let mut tried = Task::clone(task);
            tried.stop = Some(Stop { why: StopReason::Moved, at: draft.clock.now() });
            *task = Arc::new(tried);
            draft.change(Change::Task(task.clone()));
        }
        let successors = tasks.wanted.extract_if(.., |task| task.id != old.id && task.revision == revision);
        for successor in successors.collect::<Vec<_>>() {
            draft.stop(&successor, StopReason::Moved);
            tasks.stopping.push(successor);
        }
    }
    if failed {
        for tasks in slots.values_mut().filter(|tasks| !tasks.is_moving()) {
            for old in tasks.wanted.clone().iter().filter(|task| task.leaving.is_some()) {
                leave(draft, tasks, old, "another one could not be moved");
            }
        }
    }
}

fn leave(draft: &mut Draft, tasks: &mut InSlot, old: &Arc<Task>, why: &str) {
    stay(draft, old, why);
    if let (Some(known), Some(now)) =
        (tasks.wanted.iter_mut().find(|task| task.id == old.id), draft.world.tasks.get(&old.id))
    {
        *known = now.clone();
    }
}

// Why a task cannot be moved.
fn failure(draft: &mut Draft, service: &Service, tasks: &InSlot, old: &Task, revision: u32) -> Option<String> {
    let since = old.leaving?.at;
    let told = |task: &Arc<Task>| crate::model::error::shorten(task.reason.as_deref().unwrap_or(task.state.as_str()));
    let ended = |task: &&Arc<Task>| {
        let failed = matches!(task.state, TaskState::Failed | TaskState::Rejected | TaskState::Complete);
        failed && task.revision == revision && task.created_at >= since && task.stop.is_none()
    };
    if let Some(task) = tasks.ended.iter().find(ended) {
        return Some(told(task));
    }
    let Some(successor) = tasks.wanted.iter().find(|task| task.leaving.is_none()) else {
        // Nothing would be started here.
        let last = tasks.last(service, revision).map(AsRef::as_ref);
        let never = again(&service.spec.restart, last) == Again::Never;
        return never.then(|| "its restart policy starts no other".to_owned());
    };
    if successor.health == Health::Unhealthy || (successor.state == TaskState::Pending && successor.reason.is_some()) {
        return Some(told(successor));
    }
    let late = successor.created_at.after(PATIENCE);
    if successor.is_healthy() {
        return None;
    }
    if draft.clock.now() >= late {
        return Some(format!("its successor was not healthy within {PATIENCE}"));
    }
    draft.wake(&service.spec.name, late);
    None
}
