//! Carries a release on: asks its script for the next step, writes the answer down as an intent, and sees when the
//! intent is done. The intent is in the same change set as everything that follows from it, so it is durable before
//! any effect.

mod ending;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

pub use self::ending::roll_back;
use self::ending::{promoting, rolling_back};
use super::slots::{self, InSlot};
use super::world::{Change, Draft};
use crate::model::Result;
use crate::model::clock::Timestamp;
use crate::model::error::shorten;
use crate::model::event::What;
use crate::model::id::Slot;
use crate::model::release::{
    Answer, Batch, BatchAnswer, Intent, Order, Release, ReleaseState, ReleaseView, ShiftAnswer,
};
use crate::model::service::{RestartCondition, Service};
use crate::model::task::{Health, Task, TaskState};
use crate::model::units::Duration;

/// Most steps of one release: a script that never ends it is stopped.
const MAX_STEPS: u32 = 10_000;
/// The shortest wait that a script may ask for: without one it would be asked without end.
const SHORTEST: Duration = Duration::from_millis(100);
/// A batch that is refilled gets its next part when one of so many is through.
const PARTS: usize = 8;

/// Rollout scripts.
pub trait Rollouts {
    /// The next step of a release.
    fn step(&mut self, release: &Release, view: &ReleaseView) -> Result<Answer>;
}

/// Carries the open release of a service on as far as it goes now.
pub fn advance(draft: &mut Draft, service: &Arc<Service>, rollouts: &mut dyn Rollouts) {
    if service.removing {
        return;
    }
    let name = &service.spec.name;
    // An intent may be done the moment it is written (a batch of what runs already), so several steps may follow; the
    // bound keeps one service from holding up the others.
    for _ in 0..8 {
        // A step may have changed the service itself.
        let Some(service) = &draft.world.services.get(name).cloned() else { return };
        let Some(open) = draft.world.open_release(name).cloned() else { return };
        let mut release = Release::clone(&open);
        match release.state {
            ReleaseState::Running => running(draft, service, &mut release, rollouts),
            ReleaseState::Promoting => promoting(draft, service, &mut release),
            ReleaseState::RollingBack => rolling_back(draft, service, &mut release),
            _ => {}
        }
        if release == *open {
            return;
        }
        draft.change(Change::Release(Arc::new(release)));
    }
    draft.wake(name, draft.clock.now());
}

fn running(draft: &mut Draft, service: &Service, release: &mut Release, rollouts: &mut dyn Rollouts) {
    let now = draft.clock.now();
    let mut before = Before::default();
    if let Some(intent) = release.intent.clone() {
        if !finished(draft, service, release, &intent) {
            overdue(draft, release);
            return;
        }
        match &intent {
            Intent::Batch(batch) => {
                before.carried = on_their_way(draft, service, release, batch);
                before.hold = unheld(draft, service, release, batch);
            }
            // Another failure has ended it.
            Intent::Wait { hold, rest: true } => {
                before.hold = release.intent_at.map_or(Duration::ZERO, |at| at.after(*hold).since(now));
            }
            _ => {}
        }
        release.intent = None;
    }
    if let Some(at) = release.deadline_at
        && now >= at
    {
        overdue(draft, release);
        return;
    }
    if release.step >= MAX_STEPS {
        roll_back(draft, release, format!("no end after {MAX_STEPS} steps"));
        return;
    }
    let view = view(draft, service, release);
    match rollouts.step(release, &view) {
        Ok(answer) => {
            release.step += 1;
            begin(draft, service, release, (answer, before), view.failure);
        }
        Err(error) => {
            release.state = ReleaseState::Paused;
            release.broken = true;
            release.paused_at = Some(draft.clock.now());
            release.reason = Some(error.to_string());
            draft.note(What::ReleasePaused, &release.service, error.to_string());
        }
    }
}

fn overdue(draft: &mut Draft, release: &mut Release) {
    let Some(at) = release.deadline_at else { return };
    if draft.clock.now() < at {
        draft.wake(&release.service, at);
        return;
    }
    let after = at.since(release.started_at);
    roll_back(draft, release, format!("not through within {after}"));
}

// What the step before leaves to the next.
#[derive(Default)]
struct Before {
    // Slots that are on their way still, and since when.
    carried: BTreeMap<Slot, Timestamp>,
    // What is left of its hold, where a failure ended it.
    hold: Duration,
}

// Writes down what the script asked for.
fn begin(
    draft: &mut Draft,
    service: &Service,
    release: &mut Release,
    (answer, before): (Answer, Before),
    failure: Option<String>,
) {
    let now = draft.clock.now();
    let because = |reason: String| match &failure {
        Some(failure) if !reason.contains(failure.as_str()) => shorten(&format!("{reason}: {failure}")),
        _ => shorten(&reason),
    };
    let intent = match answer {
        // A failure that the script lets pass does not hurry the rest.
        Answer::Batch(_) if before.hold > Duration::ZERO => {
            // And is asked for again after that, as the same step.
            release.step -= 1;
            Intent::Wait { hold: before.hold, rest: true }
        }
        Answer::Batch(batch) => {
            let batch = choose_batch(draft, service, release, &batch, before.carried);
            // All has moved: a script that asks for more of it means that it is through.
            if batch.slots.is_empty() && left(draft, service, release).is_empty() {
                Intent::Promote
            } else {
                Intent::Batch(batch)
            }
        }
        Answer::Shift(shift) => choose_shift(draft, service, release, &shift),
        Answer::Wait(hold) => Intent::Wait { hold: hold.max(SHORTEST), rest: false },
        Answer::Pause(reason) => Intent::Pause { reason: because(reason) },
        Answer::Promote(()) => Intent::Promote,
        Answer::Rollback(reason) => Intent::Rollback { reason: because(reason) },
        Answer::Fail(reason) => Intent::Fail { reason: because(reason) },
    };
    draft.note(What::ReleaseStep, &release.service, format!("step {}: {}", release.step, intent));
    match &intent {
        Intent::Batch(batch) | Intent::Shift { batch, .. } => {
            release.order = batch.order;
            release.moved.extend(batch.slots.iter().cloned());
            if let Intent::Shift { weight, .. } = &intent {
                release.weight = Some(*weight);
            }
        }
        Intent::Wait { .. } => {}
        Intent::Pause { reason } => {
            release.state = ReleaseState::Paused;
            release.paused_at = Some(now);
            release.reason = Some(reason.clone());
            draft.note(What::ReleasePaused, &release.service, reason.clone());
        }
        Intent::Promote => {
            release.state = ReleaseState::Promoting;
            release.weight = None;
            release.moved = slots::desired(&draft.world, service);
        }
        Intent::Rollback { reason } => roll_back(draft, release, reason.clone()),
        Intent::Fail { reason } => {
            release.state = ReleaseState::Failed;
            release.reason = Some(reason.clone());
            release.finished_at = Some(now);
            draft.note(What::ReleaseFailed, &release.service, reason.clone());
        }
    }
    if release.state == ReleaseState::Running {
        release.intent = Some(intent);
        release.intent_at = Some(now);
    }
}

fn left(draft: &Draft, service: &Service, release: &Release) -> Vec<Slot> {
    let tasks = slots::by_slot(&draft.world, service);
    let stays = |slot: &Slot| slots::is_kept(&draft.world, slot, tasks.get(slot), release.to);
    let desired = slots::desired(&draft.world, service).into_iter();
    desired.filter(|slot| !release.moved.contains(slot) && !stays(slot)).collect()
}

// What an earlier step began counts among those on their way.
fn choose_batch(
    draft: &Draft,
    service: &Service,
    release: &Release,
    answer: &BatchAnswer,
    carried: BTreeMap<Slot, Timestamp>,
) -> Batch {
    let total = u32::try_from(slots::desired(&draft.world, service).len()).unwrap_or(u32::MAX);
    let mut fresh = left(draft, service, release);
    let count = (answer.tasks.of(total) as usize).saturating_sub(carried.len());
    // Nothing follows the last one that could wait for it.
    let hold = if count < fresh.len() { answer.hold } else { Duration::ZERO };
    fresh.truncate(count);
    let slots = carried.keys().cloned().chain(fresh).collect();
    let BatchAnswer { order, min_healthy, deadline, .. } = *answer;
    let refill = answer.refill && answer.hold == Duration::ZERO;
    Batch { slots, order, min_healthy, deadline, refill, hold, carried }
}

fn choose_shift(draft: &Draft, service: &Service, release: &Release, answer: &ShiftAnswer) -> Intent {
    let desired = slots::desired(&draft.world, service);
    let total = u32::try_from(desired.len()).unwrap_or(u32::MAX);
    let mut slots = left(draft, service, release);
    let moved = desired.iter().filter(|slot| release.moved.contains(*slot)).count();
    slots.truncate((answer.tasks.of(total) as usize).saturating_sub(moved));
    let batch = Batch {
        slots,
        order: Order::StartFirst,
        min_healthy: answer.min_healthy,
        deadline: answer.deadline,
        refill: false,
        hold: answer.hold,
        carried: BTreeMap::new(),
    };
    Intent::Shift { batch, weight: answer.weight.min(100) }
}

// Whether an intent is done. Failures of its tasks are written into the release.
fn finished(draft: &mut Draft, service: &Service, release: &mut Release, intent: &Intent) -> bool {
    let begun = release.intent_at.unwrap_or(release.started_at);
    match intent {
        Intent::Batch(batch) if batch.hold == Duration::ZERO => batch_done(draft, service, release, batch),
        Intent::Batch(batch) | Intent::Shift { batch, .. } => {
            // The hold begins when the tasks are ready; a failure ends it at once, for the script to judge.
            if !batch_done(draft, service, release, batch) {
                return false;
            }
            // A shift holds from when its tasks are well, a batch from when they have proven it.
            let since = if matches!(intent, Intent::Batch(_)) { batch.min_healthy } else { Duration::ZERO };
            let ready = ready_at(draft, service, release).map_or(begun, |at| at.after(since));
            has_failures(release, batch)
                || judge_moved(draft, service, release)
                || held(draft, service, ready, batch.hold)
        }
        Intent::Wait { hold, .. } => judge_moved(draft, service, release) || held(draft, service, begun, *hold),
        _ => true,
    }
}

fn held(draft: &mut Draft, service: &Service, since: Timestamp, hold: Duration) -> bool {
    let until = since.after(hold);
    if draft.clock.now() >= until {
        return true;
    }
    draft.wake(&service.spec.name, until);
    false
}

fn has_failures(release: &Release, batch: &Batch) -> bool {
    batch.slots.iter().any(|slot| release.failed.contains_key(slot))
}

// What is left of a batch's hold: all of it where one of its own has just failed.
fn unheld(draft: &Draft, service: &Service, release: &Release, batch: &Batch) -> Duration {
    if batch.hold == Duration::ZERO || has_failures(release, batch) {
        return batch.hold;
    }
    let now = draft.clock.now();
    let ready = ready_at(draft, service, release).unwrap_or(now).after(batch.min_healthy);
    ready.after(batch.hold).since(now)
}

fn ready_at(draft: &Draft, service: &Service, release: &Release) -> Option<Timestamp> {
    let slots = slots::by_slot(&draft.world, service);
    let healthy =
        release.moved.iter().filter_map(|slot| slots.get(slot)?.good(&draft.world, service, release.to)?.healthy_at);
    healthy.max().max(release.intent_at)
}

// Looks at all that was moved so far: during a hold, a task that fails after it was healthy counts as well.
fn judge_moved(draft: &Draft, service: &Service, release: &mut Release) -> bool {
    let slots = slots::by_slot(&draft.world, service);
    let before = release.failed.len();
    for slot in release.moved.clone() {
        if let Some(reason) = slots.get(&slot).and_then(|tasks| failure(tasks, service, release)) {
            release.failed.entry(slot).or_insert_with(|| brief(&reason));
        }
    }
    release.failed.len() > before
}

// Thousands of slots may fail, and one record holds them all.
fn brief(reason: &str) -> String {
    reason.char_indices().nth(300).map_or_else(|| reason.to_owned(), |(end, _)| format!("{}...", &reason[..end]))
}

fn batch_done(draft: &mut Draft, service: &Service, release: &mut Release, batch: &Batch) -> bool {
    let failed = release.failed.len();
    let open = on_their_way(draft, service, release, batch).len();
    // Large batches go on by parts: a step for each task of thousands would write the release down as often.
    let through = batch.slots.len() - open;
    let room = through > 0 && through * PARTS >= batch.slots.len() && !left(draft, service, release).is_empty();
    // A failure is judged at once.
    open == 0 || (batch.refill && (room || release.failed.len() > failed))
}

// Slots of a batch that are not through yet, and since when they are on their way. Failures are written into the release.
fn on_their_way(
    draft: &mut Draft,
    service: &Service,
    release: &mut Release,
    batch: &Batch,
) -> BTreeMap<Slot, Timestamp> {
    let now = draft.clock.now();
    let begun = release.intent_at.unwrap_or(release.started_at);
    let slots = slots::by_slot(&draft.world, service);
    let desired = slots::desired(&draft.world, service);
    let empty = InSlot::default();
    let mut open = BTreeMap::new();
    for slot in &batch.slots {
        let since = batch.carried.get(slot).copied().unwrap_or(begun);
        let until = since.after(batch.deadline);
        // A slot that was scaled away in the meantime has nothing left to prove.
        if release.failed.contains_key(slot) || !desired.contains(slot) {
            continue;
        }
        let tasks = slots.get(slot).unwrap_or(&empty);
        if slots::is_kept(&draft.world, slot, Some(tasks), release.to) {
            continue;
        }
        if let Some(reason) = failure(tasks, service, release) {
            release.failed.insert(slot.clone(), brief(&reason));
            continue;
        }
        if tasks.is_complete(service, release.to) {
            continue;
        }
        let good = tasks.good(&draft.world, service, release.to);
        if let Some(healthy) = good.filter(|task| task.is_healthy()).and_then(|task| task.healthy_at) {
            let proven = healthy.after(batch.min_healthy);
            if now >= proven {
                continue;
            }
            draft.wake(&release.service, proven);
        } else if now >= until {
            let why = good.and_then(|task| task.reason.clone()).map(|reason| format!(": {reason}")).unwrap_or_default();
            release.failed.insert(
                slot.clone(),
                format!("{}.{slot} was not healthy within {}{why}", release.service, batch.deadline),
            );
            continue;
        } else {
            draft.wake(&release.service, until);
        }
        open.insert(slot.clone(), since);
    }
    open
}

// How a task of the new revision failed in this slot since the release began.
fn failure(tasks: &InSlot, service: &Service, release: &Release) -> Option<String> {
    let may_end = service.spec.restart.condition != RestartCondition::Any;
    let counts = |task: &&Arc<Task>| {
        let is_new = task.revision == release.to && task.created_at >= release.judged_from;
        is_new && has_failed(task) && !(may_end && task.state == TaskState::Complete)
    };
    let task = tasks.ended.iter().chain(&tasks.stopping).chain(&tasks.wanted).find(counts)?;
    Some(format!("{}: {}", task.label(), task.reason.as_deref().unwrap_or(task.state.as_str())))
}

fn has_failed(task: &Task) -> bool {
    let ended = matches!(task.state, TaskState::Failed | TaskState::Rejected | TaskState::Lost | TaskState::Complete);
    // That a node was lost, or full, says nothing of the revision.
    (ended && !task.failed_in_nothing()) || task.health == Health::Unhealthy
}

fn view(draft: &Draft, service: &Service, release: &Release) -> ReleaseView {
    let slots = slots::by_slot(&draft.world, service);
    let desired = slots::desired(&draft.world, service);
    let moved: BTreeSet<&Slot> = desired.iter().filter(|slot| release.moved.contains(*slot)).collect();
    let healthy = moved
        .iter()
        .filter(|slot| {
            let Some(tasks) = slots.get(**slot) else { return false };
            tasks.good(&draft.world, service, release.to).is_some_and(|task| task.is_healthy())
                || tasks.is_complete(service, release.to)
        })
        .count();
    let count = |n: usize| u32::try_from(n).unwrap_or(u32::MAX);
    ReleaseView {
        service: release.service.clone(),
        step: release.step + 1,
        from: release.from,
        to: release.to,
        replicas: count(desired.len()),
        moved: count(moved.len()),
        remaining: count(desired.len() - moved.len()),
        healthy: count(healthy),
        failed_tasks: count(release.failed.len()),
        failure: release.failed.values().next().cloned(),
        elapsed: draft.clock.now().since(release.started_at).seconds(),
        overdue: release.deadline_at.is_some_and(|at| draft.clock.now() >= at),
        options: release.rollout.options.clone(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lost_node_is_no_failure_of_the_revision() {
        let failed = |state: &str, health: &str, stop: serde_json::Value| {
            let task = serde_json::json!({
                "id": "01arz3ndektsv4rrffq69g5fav", "service": "web", "service_id": crate::model::id::ServiceId::numbered(1),
                "slot": { "replica": 1 }, "revision": 1, "state": state, "health": health, "created_at": 0, "stop": stop,
            });
            has_failed(&serde_json::from_value(task).unwrap())
        };
        let told = |why: &str| serde_json::json!({ "why": why, "at": 0 });
        let not = serde_json::Value::Null;
        assert!(failed("failed", "none", not.clone()) && failed("lost", "none", not.clone()));
        assert!(failed("complete", "none", not.clone()) && failed("running", "unhealthy", not.clone()));
        assert!(!failed("running", "healthy", not) && !failed("shutdown", "healthy", told("drained")));
        assert!(!failed("lost", "healthy", told("drained")), "moved away from a node that is down");
        assert!(failed("lost", "unhealthy", told("unhealthy")), "it had failed its check before");
    }
}
