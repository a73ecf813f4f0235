//! Desired against actual: one pass over all services. Run twice on the same world it changes nothing the second time.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::backoff::{Again, again};
use super::board::Claim;
use super::place::{self, Answer, Ask, Filter, Placer, SlotAsk, Stay};
use super::rebalance;
use super::release::{self, Rollouts};
use super::slots::{self, InSlot};
use super::world::{Change, Decision, Draft, World};
use crate::model::clock::{Clock, Timestamp};
use crate::model::event::What;
use crate::model::id::{NodeId, Slot, TaskId};
use crate::model::name::Name;
use crate::model::release::{Order, ReleaseState};
use crate::model::service::Service;
use crate::model::task::{Health, StopReason, Task, TaskState};
use crate::model::units::Duration;

/// Ended tasks that are kept a slot.
const HISTORY: usize = 5;
/// Revisions that are kept behind the latest.
const REVISIONS: u32 = 10;
/// How long a node that refused a task is passed over for the next ones in its place.
const AVOID: Duration = Duration::from_secs(60);
/// How long a task without a place waits before it is tried again though nothing is known to have changed.
const RETRY: Duration = Duration::from_secs(5);

/// One pass over the services of `scope`.
pub fn reconcile(
    world: &World,
    clock: &dyn Clock,
    placer: &mut dyn Placer,
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
    assign(&mut draft, placer, scope);
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
    // Two cannot have one port of a host.
    let apart = service.spec.host_ports().next().is_some();
    let order = if apart { Order::StopFirst } else { latest.map_or(Order::StartFirst, |release| release.order) };
    let mut healthy = 0;
    rebalance::judge(draft, service, &mut present);
    // A release moves tasks itself. Besides it, some at a time; those that have begun go on.
    let moving = present.values().filter(|tasks| tasks.is_moving()).count();
    let mut moves = if open.is_some() { 0 } else { moves_at_once(desired.len()).saturating_sub(moving) };
    for slot in &desired {
        let mut tasks = present.remove(slot).unwrap_or_default();
        let revision = draft.world.revision_for(service, slot);
        if tasks.wanted.iter().any(|task| task.leaving.is_some()) && !tasks.is_moving() {
            match moves {
                0 => tasks.stay(),
                _ => moves -= 1,
            }
        }
        healthy += u32::from(fill_slot(draft, service, slot, &tasks, revision, order));
    }
    let all = healthy as usize == desired.len() && !service.removing;
    // Of what the Swarm runs, the revision before is kept there, to go back to.
    if all
        && !service.spec.engine_native
        && open.is_none()
        && service.stable != Some(service.active)
        && !failed_half_way(&draft.world, service)
    {
        let mut service = Service::clone(service);
        service.stable = Some(service.active);
        draft.change(Change::Service(Arc::new(service)));
    }
}

// A tenth, and at least one.
fn moves_at_once(slots: usize) -> usize {
    slots.div_ceil(10).max(1)
}

fn failed_half_way(world: &World, service: &Service) -> bool {
    world.releases.get(&service.spec.name).is_some_and(|release| release.state == ReleaseState::Failed)
}

// Whether the slot runs its revision and is healthy, or has run it to its end.
fn fill_slot(
    draft: &mut Draft,
    service: &Arc<Service>,
    slot: &Slot,
    tasks: &InSlot,
    revision: u32,
    order: Order,
) -> bool {
    let good = tasks.successor(&draft.world, service, revision).cloned();
    let outgoing: Vec<Arc<Task>> =
        tasks.wanted.iter().filter(|task| good.as_ref().is_none_or(|good| good.id != task.id)).cloned().collect();
    if let Some(good) = good {
        for task in outgoing {
            // Two of the right revision, or an old one whose successor is ready, or one that never came up.
            let same = task.revision == revision && good.node == task.node && task.leaving.is_none();
            let ready = good.is_healthy() && (task.leaving.is_none() || rebalance::is_proven(draft, service, &good));
            if same || ready || task.state < TaskState::Running || task.health == Health::Unhealthy {
                draft.stop(&task, why(&task, revision));
            }
        }
        return good.is_healthy();
    }
    if slots::is_kept(&draft.world, slot, Some(tasks), revision) {
        return false;
    }
    let unfit = |task: &Arc<Task>| task.revision == revision;
    let mut blocked = false;
    for task in &outgoing {
        // A drained node's task stays until its successor is healthy, whatever the order of the rollout is.
        if (order == Order::StopFirst && !unfit(task)) || task.state < TaskState::Running {
            draft.stop(task, why(task, revision));
            blocked |= task.state != TaskState::Pending;
        }
    }
    for task in &tasks.stopping {
        let why = task.stop.as_ref().map(|stop| stop.why);
        let may_overlap = order == Order::StartFirst
            && matches!(why, Some(StopReason::Replaced | StopReason::Drained | StopReason::Moved));
        blocked |= !may_overlap;
    }
    if blocked {
        return false;
    }
    create(draft, service, slot, tasks, revision);
    tasks.is_complete(service, revision)
}

fn why(task: &Task, revision: u32) -> StopReason {
    match task.leaving {
        _ if task.revision != revision => StopReason::Replaced,
        Some(_) => StopReason::Moved,
        None => StopReason::Drained,
    }
}

fn create(draft: &mut Draft, service: &Arc<Service>, slot: &Slot, tasks: &InSlot, revision: u32) {
    let last = tasks.last(service, revision);
    let Again::At(not_before, failures) = again(&service.spec.restart, last.map(AsRef::as_ref)) else { return };
    let now = draft.clock.now();
    let not_before = not_before.filter(|at| *at > now);
    let task = Arc::new(Task {
        id: TaskId::after(draft.clock, draft.world.tasks.get_max().map(|(id, _)| *id)),
        service: service.spec.name.clone(),
        service_id: service.id,
        slot: slot.clone(),
        revision,
        node: None,
        state: TaskState::Pending,
        health: Health::None,
        reason: last.filter(|last| failures > 0 || last.found_no_room()).and_then(|task| task.reason.clone()),
        warnings: Vec::new(),
        no_room: last.filter(|last| last.found_no_room()).map_or(0, |last| last.no_room),
        ports: std::collections::BTreeMap::new(),
        pid: None,
        stop: None,
        leaving: None,
        exit: None,
        failures,
        not_before,
        created_at: now,
        started_at: None,
        healthy_at: None,
        finished_at: None,
    });
    draft.note_task(What::TaskPending, &task, task.reason.clone().unwrap_or_default());
    draft.change(Change::Task(task));
}

// Forgets what is long over; a removed service goes when its last task has ended.
fn tidy(draft: &mut Draft, service: &Arc<Service>) {
    let name = &service.spec.name;
    let slots = slots::by_slot(&draft.world, service);
    if service.removing {
        // The Swarm's own goes first, and it is known that it has.
        let natives = draft.world.natives.as_ref();
        if service.spec.engine_native && natives.is_none_or(|natives| natives.contains_key(name.as_str())) {
            return;
        }
        if slots.values().all(|slot| slot.wanted.is_empty() && slot.stopping.is_empty()) {
            draft.note(What::ServiceRemoved, name, "its last task has ended");
            draft.change(Change::RemoveService(name.clone()));
        }
        return;
    }
    for slot in slots.values() {
        let surplus = slot.ended.len().saturating_sub(HISTORY);
        for task in &slot.ended[..surplus] {
            draft.change(Change::RemoveTask(task.id));
        }
    }
    // What slots that are gone for good have left behind: the newest are enough. Of replicas, what ran to its end is remembered,
    // so that it is not run again should they come back; a node that comes back is another.
    let gone = slots.iter().filter(|(slot, _)| match slot {
        Slot::Replica(number) => *number > service.spec.replicas,
        Slot::Node(node) => !draft.world.nodes.contains_key(node),
    });
    let ended = gone.flat_map(|(_, tasks)| &tasks.ended);
    let ended = ended.filter(|task| task.state != TaskState::Complete || matches!(task.slot, Slot::Node(_)));
    let mut left: Vec<TaskId> = ended.map(|task| task.id).collect();
    left.sort_unstable_by(|a, b| b.cmp(a));
    left.iter().skip(HISTORY).for_each(|id| draft.change(Change::RemoveTask(*id)));
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
            !used.contains(number)
                && !in_release
                && *number != service.active
                && service.stable != Some(*number)
                && service.previous != Some(*number)
        })
        .collect();
    for number in old {
        draft.change(Change::RemoveRevision(name.clone(), number));
    }
}

/// Gives pending tasks their nodes, service by service, so that a policy sees the tasks placed before.
pub fn assign(draft: &mut Draft, placer: &mut dyn Placer, scope: &BTreeSet<Name>) {
    // As it is before anything is placed: asks are made while the first ones are being answered.
    let world = draft.world.clone();
    let now = draft.clock.now();
    let waiting: RefCell<Vec<Vec<Waiting>>> = RefCell::default();
    let mut later = Vec::new();
    let mut asks = scope
        .iter()
        .filter_map(|name| world.services.get(name))
        .flat_map(|service| {
            let name = &service.spec.name;
            let mut due = due(&world, name, now);
            later.extend(due.next.map(|at| (name.clone(), at)));
            let tasks = std::mem::take(&mut due.tasks);
            let ask = |((revision, avoid), tasks): ((u32, Vec<NodeId>), Vec<Arc<Task>>)| {
                let ask = ask(&world, service, revision, &tasks, &due, avoid)?;
                let leaving = |task: &Arc<Task>| due.leaving.get(&task.slot).cloned();
                waiting.borrow_mut().push(tasks.into_iter().map(|task| (leaving(&task), task)).collect());
                Some(ask)
            };
            tasks.into_iter().filter_map(ask).collect::<Vec<Ask>>()
        })
        .peekable();
    if asks.peek().is_some() {
        placer.place(world.board(), &mut asks, &mut |number, answers| {
            for ((leaving, task), answer) in waiting.borrow()[number].iter().zip(answers) {
                settle(draft, task, leaving.as_ref(), answer);
            }
        });
    }
    drop(asks);
    for (name, at) in later {
        draft.wake(&name, at);
    }
}

/// A pending task, and the one that a rebalance moves and whose place it is to take.
type Waiting = (Option<Arc<Task>>, Arc<Task>);

/// Nodes that have tasks of a service, by slot.
type Seated = BTreeMap<Slot, Vec<NodeId>>;

/// What a service waits for.
struct Due {
    /// Pending tasks whose time has come, by revision and the nodes that they are better not given to.
    tasks: BTreeMap<(u32, Vec<NodeId>), Vec<Arc<Task>>>,
    /// Where its others are.
    seated: Seated,
    /// Those that a rebalance moves.
    leaving: BTreeMap<Slot, Arc<Task>>,
    /// When the time of the next one comes.
    next: Option<Timestamp>,
}

fn due(world: &World, name: &Name, now: Timestamp) -> Due {
    let mut due = Due { tasks: BTreeMap::new(), seated: Seated::new(), leaving: BTreeMap::new(), next: None };
    let mut refused = Refused::default();
    for task in world.tasks_of(name).filter(|task| task.wanted()) {
        if let Some(node) = &task.node {
            due.seated.entry(task.slot.clone()).or_default().push(node.clone());
        }
        if task.leaving.is_some() {
            due.leaving.insert(task.slot.clone(), task.clone());
        }
        if task.state != TaskState::Pending {
            continue;
        }
        match task.not_before.filter(|at| *at > now) {
            Some(at) => due.next = Some(due.next.map_or(at, |other| at.min(other))),
            None => {
                let avoid = if may_avoid(task) { refused.of(world, task, now) } else { Vec::new() };
                due.tasks.entry((task.revision, avoid)).or_default().push(task.clone());
            }
        }
    }
    due
}

// One that found no place has tried the others, and one that belongs to its node has none.
fn may_avoid(task: &Task) -> bool {
    let has_tried = task.reason.as_deref().is_some_and(|reason| reason.starts_with(place::NOWHERE));
    (task.failures > 0 || task.no_room > 0) && !has_tried && !matches!(task.slot, Slot::Node(_))
}

/// Nodes that refused a task in the same place a moment ago: a port is taken there, an image cannot be had, there is no room.
#[derive(Default)]
struct Refused(Option<BTreeMap<(Slot, u32), BTreeSet<NodeId>>>);

impl Refused {
    // Read once for all tasks of a service, and only where one asks.
    fn of(&mut self, world: &World, task: &Task, now: Timestamp) -> Vec<NodeId> {
        let all = self.0.get_or_insert_with(|| {
            let mut all: BTreeMap<_, BTreeSet<NodeId>> = BTreeMap::new();
            let lately = |old: &Task| old.finished_at.is_some_and(|at| now.since(at) < AVOID);
            for old in world.tasks_of(&task.service).filter(|old| old.state == TaskState::Rejected && lately(old)) {
                all.entry((old.slot.clone(), old.revision)).or_default().extend(old.node.clone());
            }
            all
        });
        all.get(&(task.slot.clone(), task.revision)).into_iter().flatten().cloned().collect()
    }
}

fn ask(
    world: &World,
    service: &Service,
    revision: u32,
    tasks: &[Arc<Task>],
    due: &Due,
    avoid: Vec<NodeId>,
) -> Option<Ask> {
    let name = &service.spec.name;
    // Placement follows the latest description, resources those of the task's own revision.
    let spec = slots::placement(world, service, revision);
    let mut filter = Filter::of(spec);
    filter.claim = Claim::of(&world.revision(name, revision)?.spec);
    // Where there is no other, it is tried there again: the cause may be gone.
    if !avoid.is_empty() {
        let all = filter.clone();
        filter.avoid = avoid;
        if world.board().seats().all(|seat| filter.refuses(world.board(), seat).is_some()) {
            filter = all;
        }
    }
    // The task whose place it takes is no neighbour to be counted. One that a rebalance moves stays if it is not better
    // elsewhere any more.
    let slots = tasks.iter().map(|task| {
        let leaving = due.leaving.get(&task.slot);
        let mut replaces = due.seated.get(&task.slot).cloned().unwrap_or_default();
        let stays = leaving.and_then(|task| {
            let (node, why) = (task.node.clone()?, task.leaving?);
            let at = replaces.iter().position(|known| *known == node)?;
            replaces.remove(at);
            Some(Stay { node, min_gain: why.min_gain, gone: false })
        });
        SlotAsk { slot: task.slot.clone(), replaces, stays }
    });
    Some(Ask {
        service: name.clone(),
        revision,
        labels: Arc::new(spec.labels.clone()),
        filter,
        policies: service.spec.policy.clone(),
        bundle: service.bundle.clone(),
        on_error: service.spec.on_policy_error,
        on: due.seated.values().flatten().cloned().collect(),
        slots: slots.collect(),
    })
}

fn settle(draft: &mut Draft, task: &Arc<Task>, leaving: Option<&Arc<Task>>, answer: Answer) {
    if let Some(note) = answer.note {
        draft.note_task(What::ScriptFailed, task, note);
    }
    let mut placed = Task::clone(task);
    let node_of = |placement: &super::place::Placement| {
        draft.world.board().seat(placement.at as usize).map(|seat| seat.node.id.clone())
    };
    if let (Some(leaving), Ok(placement)) = (leaving, &answer.place)
        && leaving.node == node_of(placement)
    {
        rebalance::stay(draft, leaving, "no other node is better by now");
        draft.stop(task, StopReason::Moved);
        return;
    }
    match answer.place {
        Ok(placement) => {
            placed.state = TaskState::Assigned;
            placed.not_before = None;
            placed.reason = None;
            // Nodes neither come nor go while a pass is being made.
            placed.node = draft.world.board().seat(placement.at as usize).map(|seat| seat.node.id.clone());
            let placed = Arc::new(placed);
            draft.note_task(What::TaskAssigned, &placed, String::new());
            draft.place(placed, placement.at as usize);
        }
        Err(error) => {
            draft.wake(&task.service, draft.clock.now().after(RETRY));
            let script = error.kind == crate::model::Kind::Script;
            let reason =
                if error.kind == crate::model::Kind::Exhausted { error.message.clone() } else { error.to_string() };
            if task.reason.as_ref() != Some(&reason) {
                placed.reason = Some(reason.clone());
                let placed = Arc::new(placed);
                draft.note_task(if script { What::ScriptFailed } else { What::TaskPending }, &placed, reason);
                draft.change(Change::Task(placed));
            }
        }
    }
}
