//! Desired against actual: one pass over all services. Run twice on the same world it changes nothing the second time.

use std::collections::BTreeSet;
use std::sync::Arc;

use super::backoff::{Again, again};
use super::place::{NodeView, Policies, Policy, node_views, place};
use super::release::{self, Rollouts};
use super::slots::{self, InSlot};
use super::world::{Change, Decision, Draft, World};
use crate::model::Result;
use crate::model::clock::Clock;
use crate::model::event::What;
use crate::model::id::{Slot, TaskId};
use crate::model::name::Name;
use crate::model::release::{Order, ReleaseState};
use crate::model::service::{OnPolicyError, Service};
use crate::model::task::{Health, StopReason, Task, TaskState};
use crate::model::units::Duration;

/// Ended tasks that are kept a slot.
const HISTORY: usize = 5;
/// Revisions that are kept behind the latest.
const REVISIONS: u32 = 10;
/// How long a task without a place waits before it is tried again though nothing is known to have changed.
const RETRY: Duration = Duration::from_secs(5);

/// One pass over the services of `scope`.
pub fn reconcile(
    world: &World,
    clock: &dyn Clock,
    policies: &mut dyn Policies,
    rollouts: &mut dyn Rollouts,
    scope: &BTreeSet<Name>,
) -> Decision {
    let mut draft = Draft::new(world, clock);
    for name in scope {
        let Some(service) = draft.world.services.get(name).cloned() else { continue };
        release::advance(&mut draft, &service, rollouts);
        // A release may have moved the active revision.
        let Some(service) = draft.world.services.get(name).cloned() else { continue };
        fill(&mut draft, &service);
        tidy(&mut draft, &service);
    }
    assign(&mut draft, policies, scope);
    draft.decision
}

// Makes the tasks that are missing and ends those that are too many.
fn fill(draft: &mut Draft, service: &Arc<Service>) {
    let desired = slots::desired(&draft.world, service);
    let mut present = slots::by_slot(&draft.world, service);
    for (slot, tasks) in &present {
        if desired.contains(slot) {
            continue;
        }
        for task in &tasks.wanted {
            let why = if service.removing { StopReason::Removed } else { StopReason::ScaledDown };
            draft.stop(task, why);
        }
    }
    let open = draft.world.open_release(&service.spec.name).cloned();
    // A release that stopped half-way still says how its slots change.
    let latest = draft
        .world
        .releases
        .get(&service.spec.name)
        .filter(|release| !matches!(release.state, ReleaseState::Promoted | ReleaseState::RolledBack));
    let order = latest.map_or(Order::StartFirst, |release| release.order);
    let mut healthy = 0;
    for slot in &desired {
        let tasks = present.remove(slot).unwrap_or_default();
        let revision = draft.world.revision_for(service, slot);
        healthy += u32::from(fill_slot(draft, service, slot, &tasks, revision, order));
    }
    let all = healthy as usize == desired.len() && !service.removing;
    if all && open.is_none() && service.stable != Some(service.active) && !failed_half_way(&draft.world, service) {
        let mut service = Service::clone(service);
        service.stable = Some(service.active);
        draft.change(Change::Service(Arc::new(service)));
    }
}

fn failed_half_way(world: &World, service: &Service) -> bool {
    world.releases.get(&service.spec.name).is_some_and(|release| release.state == ReleaseState::Failed)
}

// Whether the slot runs its revision and is healthy.
fn fill_slot(
    draft: &mut Draft,
    service: &Arc<Service>,
    slot: &Slot,
    tasks: &InSlot,
    revision: u32,
    order: Order,
) -> bool {
    let good = tasks.good(&draft.world, service, revision).cloned();
    let outgoing: Vec<Arc<Task>> =
        tasks.wanted.iter().filter(|task| good.as_ref().is_none_or(|good| good.id != task.id)).cloned().collect();
    if let Some(good) = good {
        for task in outgoing {
            // Two of the right revision, or an old one whose successor is ready, or one that never came up.
            let same = task.revision == revision && good.node == task.node;
            if same || good.is_healthy() || task.state < TaskState::Running || task.health == Health::Unhealthy {
                let why = if task.revision == revision { StopReason::Drained } else { StopReason::Replaced };
                draft.stop(&task, why);
            }
        }
        return good.is_healthy();
    }
    let unfit = |task: &Arc<Task>| task.revision == revision;
    let mut blocked = false;
    for task in &outgoing {
        // A drained node's task stays until its successor is healthy, whatever the order of the rollout is.
        if (order == Order::StopFirst && !unfit(task)) || task.state < TaskState::Running {
            let why = if unfit(task) { StopReason::Drained } else { StopReason::Replaced };
            draft.stop(task, why);
            blocked |= task.state != TaskState::Pending;
        }
    }
    for task in &tasks.stopping {
        let why = task.stop.as_ref().map(|stop| stop.why);
        let may_overlap = order == Order::StartFirst && matches!(why, Some(StopReason::Replaced | StopReason::Drained));
        blocked |= !may_overlap;
    }
    if blocked {
        return false;
    }
    create(draft, service, slot, tasks, revision);
    false
}

fn create(draft: &mut Draft, service: &Arc<Service>, slot: &Slot, tasks: &InSlot, revision: u32) {
    let last = tasks.last(service, revision);
    let Again::At(not_before, failures) = again(&service.spec.restart, last.map(AsRef::as_ref)) else { return };
    let now = draft.clock.now();
    let not_before = not_before.filter(|at| *at > now);
    let task = Task {
        id: TaskId::new(draft.clock),
        service: service.spec.name.clone(),
        service_id: service.id.clone(),
        slot: slot.clone(),
        revision,
        node: None,
        state: TaskState::Pending,
        health: Health::None,
        reason: last.filter(|_| failures > 0).and_then(|task| task.reason.clone()),
        warnings: Vec::new(),
        ports: std::collections::BTreeMap::new(),
        pid: None,
        stop: None,
        exit: None,
        failures,
        not_before,
        created_at: now,
        started_at: None,
        healthy_at: None,
        finished_at: None,
    };
    draft.note(What::TaskPending, &task.service, task.label(), task.reason.clone().unwrap_or_default());
    draft.change(Change::Task(Arc::new(task)));
}

// Forgets what is long over; a removed service goes when its last task has ended.
fn tidy(draft: &mut Draft, service: &Arc<Service>) {
    let name = &service.spec.name;
    let slots = slots::by_slot(&draft.world, service);
    if service.removing {
        if slots.values().all(|slot| slot.wanted.is_empty() && slot.stopping.is_empty()) {
            draft.note(What::ServiceRemoved, name, name.to_string(), "its last task has ended");
            draft.change(Change::RemoveService(name.clone()));
        }
        return;
    }
    for slot in slots.values() {
        let surplus = slot.ended.len().saturating_sub(HISTORY);
        for task in &slot.ended[..surplus] {
            draft.change(Change::RemoveTask(task.id.clone()));
        }
    }
    let used: BTreeSet<u32> =
        draft.world.tasks_of(name).filter(|task| !task.state.is_final()).map(|task| task.revision).collect();
    let release = draft.world.releases.get(name).cloned();
    let old: Vec<u32> = draft
        .world
        .revisions
        .range((name.clone(), 0)..=(name.clone(), service.revision.saturating_sub(REVISIONS)))
        .map(|((_, number), _)| *number)
        .filter(|number| {
            let in_release = release
                .as_ref()
                .is_some_and(|r| [r.from, r.to, r.back].contains(number) || r.base.values().any(|v| v == number));
            !used.contains(number) && !in_release && *number != service.active && service.stable != Some(*number)
        })
        .collect();
    for number in old {
        draft.change(Change::RemoveRevision(name.clone(), number));
    }
}

/// Policies with their names, for errors.
type Named = Vec<(String, Box<dyn Policy>)>;

// Gives pending tasks their nodes, service by service, so that a policy sees the tasks placed before.
fn assign(draft: &mut Draft, policies: &mut dyn Policies, scope: &BTreeSet<Name>) {
    let now = draft.clock.now();
    let waits = |task: &&Arc<Task>| task.state == TaskState::Pending && task.stop.is_none();
    let pending: Vec<Arc<Task>> =
        scope.iter().flat_map(|name| draft.world.tasks_of(name).filter(waits)).cloned().collect();
    if pending.is_empty() {
        return;
    }
    let mut views: Option<Vec<NodeView>> = None;
    let mut loaded: Option<(String, Result<Named>)> = None;
    for task in pending {
        if let Some(at) = task.not_before.filter(|at| *at > now) {
            draft.wake(&task.service, at);
            continue;
        }
        let Some(service) = draft.world.services.get(&task.service).cloned() else { continue };
        let Some(revision) = draft.world.revision(&task.service, task.revision).cloned() else { continue };
        // Placement follows the latest description, resources those of the task's own revision.
        let mut spec = slots::placement(&draft.world, &service, task.revision).clone();
        spec.reservations = revision.spec.reservations;
        let name = task.service.to_string();
        if loaded.as_ref().is_none_or(|(other, _)| *other != name) {
            loaded = Some((name.clone(), load(&service, policies)));
        }
        let views = views.get_or_insert_with(|| node_views(&draft.world));
        // The task whose place it takes is no neighbour to be counted.
        let replaced: Vec<String> = draft
            .world
            .tasks_of(&task.service)
            .filter(|other| other.slot == task.slot && other.id != task.id && other.wanted())
            .filter_map(|other| other.node.clone())
            .collect();
        count_neighbours(views, &task.service, &replaced, |count| count.saturating_sub(1));
        let Some((_, policy)) = &mut loaded else { continue };
        let mut result = match policy {
            Ok(policy) => place(views, &spec, &task.slot, task.revision, policy),
            Err(error) => Err(error.clone()),
        };
        if let Err(error) = &result
            && error.kind == crate::model::Kind::Script
            && service.spec.on_policy_error == OnPolicyError::Spread
            && let Ok(spread) = policies.spread()
        {
            draft.note(What::ScriptFailed, &task.service, task.label(), format!("{error}; the built-in spread serves"));
            result = place(views, &spec, &task.slot, task.revision, &mut [("spread".to_owned(), spread)]);
        }
        count_neighbours(views, &task.service, &replaced, |count| count + 1);
        let mut placed = Task::clone(&task);
        match result {
            Ok(placement) => {
                placed.state = TaskState::Assigned;
                placed.not_before = None;
                placed.reason = None;
                draft.note(What::TaskAssigned, &task.service, task.label(), format!("on {}", placement.node));
                placed.node = Some(placement.node);
            }
            Err(error) => {
                // A script that failed for one task is not asked about the service's others in this pass: each try may
                // take its whole budget.
                if error.kind == crate::model::Kind::Script {
                    loaded = Some((name.clone(), Err(error.clone())));
                }
                draft.wake(&task.service, now.after(RETRY));
                let reason =
                    if error.kind == crate::model::Kind::Exhausted { error.message.clone() } else { error.to_string() };
                if task.reason.as_ref() != Some(&reason) {
                    let what =
                        if error.kind == crate::model::Kind::Script { What::ScriptFailed } else { What::TaskPending };
                    draft.note(what, &task.service, task.label(), reason.clone());
                }
                placed.reason = Some(reason);
            }
        }
        if placed != *task {
            draft.change(Change::Task(Arc::new(placed)));
        }
    }
}

fn count_neighbours(views: &mut [NodeView], service: &Name, nodes: &[String], change: impl Fn(u32) -> u32) {
    for node in nodes {
        if let Some(view) = views.iter_mut().find(|view| view.node.id == *node) {
            let count = view.tasks.entry(service.clone()).or_default();
            *count = change(*count);
        }
    }
}

fn load(service: &Service, policies: &mut dyn Policies) -> Result<Named> {
    let names = service.spec.policy.iter().enumerate();
    names.map(|(index, policy)| Ok((policy.name.to_string(), policies.find(&service.spec, index)?))).collect()
}
