//! Moves tasks to nodes that their policy likes better by now: only those, and only as far as it says.

use std::sync::Arc;

use super::place::{Ask, Filter, Placer, SlotAsk, Stay};
use super::slots::{self, InSlot};
use super::world::{Change, Draft, World};
use crate::model::event::What;
use crate::model::id::{NodeId, TaskId};
use crate::model::plan::{Move, Rebalance};
use crate::model::service::{Mode, Service};
use crate::model::task::{Task, TaskState};
use crate::model::{Error, Kind, Result};

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
    if world.open_release(name).is_some() {
        return Err(
            wrong("has a release going on").help("wait until it is over; a rollout places its tasks anew anyway")
        );
    }
    let mut there: Vec<(Arc<Task>, NodeId)> = Vec::new();
    for (_, tasks) in slots::by_slot(world, service) {
        let staying = |task: &&Arc<Task>| task.is_healthy() && task.leaving.is_none();
        let task = tasks.good(world, service, service.active).filter(staying);
        there.extend(task.and_then(|task| Some((task.clone(), task.node.clone()?))));
    }
    let spec = slots::placement(world, service, service.active);
    let mut filter = Filter::of(spec);
    if let Some(revision) = world.revision(name, service.active) {
        filter.reservations = revision.spec.reservations;
    }
    let slot = |(task, node): &(Arc<Task>, NodeId)| SlotAsk {
        slot: task.slot.clone(),
        replaces: Vec::new(),
        stays: Some(Stay { node: node.clone(), min_gain: ask.min_gain }),
    };
    let question = Ask {
        service: name.clone(),
        revision: service.active,
        labels: Arc::new(spec.labels.clone()),
        filter,
        policies: service.spec.policy.clone(),
        bundle: service.bundle.clone(),
        on_error: service.spec.on_policy_error,
        on: there.iter().map(|(_, node)| node.clone()).collect(),
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
pub fn begin(draft: &mut Draft, service: &Service, moves: &[Moved]) -> Result<()> {
    let now = draft.clock.now();
    if draft.world.open_release(&service.spec.name).is_some() {
        return Err(Error::new(Kind::Conflict, service.spec.subject(), "has a release going on"));
    }
    for moved in moves {
        let Some(task) = draft.world.tasks.get(&moved.task).filter(|task| task.wanted()) else { continue };
        let mut task = Task::clone(task);
        task.leaving = Some(now);
        draft.change(Change::Task(Arc::new(task)));
    }
    draft.note(What::ServiceUpdated, &service.spec.name, format!("rebalanced: {} to move", moves.len()));
    Ok(())
}

/// A task whose successor failed, or has no place by now, stays where it is.
pub fn give_up(draft: &mut Draft, tasks: &mut InSlot, revision: u32) {
    let failed = |since, task: &&Arc<Task>| {
        let ended = matches!(task.state, TaskState::Failed | TaskState::Rejected | TaskState::Complete);
        task.revision == revision && ended && task.created_at >= since
    };
    let refused =
        |task: &&Arc<Task>| task.leaving.is_none() && task.state == TaskState::Pending && task.reason.is_some();
    let why = |since| {
        let found = tasks.ended.iter().find(|task| failed(since, task)).or_else(|| tasks.wanted.iter().find(refused));
        found.map(|task| task.reason.clone().unwrap_or_else(|| task.state.as_str().to_owned()))
    };
    let stays: Vec<(TaskId, String)> =
        tasks.wanted.iter().filter_map(|task| Some((task.id, why(task.leaving?)?))).collect();
    for (id, why) in stays {
        let Some(task) = tasks.wanted.iter_mut().find(|task| task.id == id) else { continue };
        let mut staying = Task::clone(task);
        staying.leaving = None;
        staying.reason = Some(crate::model::error::shorten(&format!("could not be moved: {why}")));
        *task = Arc::new(staying);
        draft.change(Change::Task(task.clone()));
    }
}
