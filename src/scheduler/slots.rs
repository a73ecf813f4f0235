//! Which slots a service is to fill, and what is in each.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::backoff::{Again, again};
use super::place::Filter;
use super::world::World;
use crate::model::id::Slot;
use crate::model::node::Availability;
use crate::model::release::ReleaseState;
use crate::model::service::{Mode, Service, ServiceSpec};
use crate::model::task::{Task, TaskState};

/// The slots that a service is to fill now.
pub fn desired(world: &World, service: &Service) -> BTreeSet<Slot> {
    // What the Swarm runs itself has no tasks here.
    if service.removing || service.spec.engine_native {
        return BTreeSet::new();
    }
    match service.spec.mode {
        Mode::Replicated => (1..=service.spec.replicas).map(Slot::Replica).collect(),
        Mode::Global => {
            // A paused node keeps what it has and takes nothing new.
            let has = |slot: &Slot| world.tasks_of(&service.spec.name).any(|task| task.slot == *slot && task.wanted());
            let suited = world.nodes.values().filter(|node| suits(world, &service.spec, &node.id));
            let slots = suited.map(|node| (node.availability, Slot::Node(node.id.clone())));
            let wanted = slots.filter(|(availability, slot)| *availability != Availability::Pause || has(slot));
            wanted.map(|(_, slot)| slot).collect()
        }
    }
}

/// The description by which a task of `revision` is placed: while a release goes on, each revision's own; else the
/// latest one, so that a change of constraints alone takes effect in place.
pub fn placement<'a>(world: &'a World, service: &'a Service, revision: u32) -> &'a ServiceSpec {
    match world.open_release(&service.spec.name) {
        Some(release) if release.to != revision => {
            world.revision(&service.spec.name, revision).map_or(&service.spec, |revision| &revision.spec)
        }
        _ => &service.spec,
    }
}

/// The revision that a service's slots are on their way to, or run.
pub fn target(world: &World, service: &Service) -> u32 {
    world.open_release(&service.spec.name).map_or(service.active, |release| match release.state {
        ReleaseState::RollingBack => release.back,
        _ => release.to,
    })
}

/// Whether a release that stopped half-way has left slots on another revision.
pub fn is_half_way(world: &World, service: &Service) -> bool {
    let target = target(world, service);
    world.releases.get(&service.spec.name).is_some_and(|release| {
        release.state == ReleaseState::Failed
            && release.moved.iter().chain(release.base.keys()).any(|slot| release.revision_of(slot) != target)
    })
}

/// Whether a task placed by `spec` may stay on the node: it takes work or at least keeps it, and the constraints hold.
pub fn suits(world: &World, spec: &ServiceSpec, node: &str) -> bool {
    world.nodes.get(node).is_some_and(|node| Filter::of(spec).suits(node))
}

/// Whether a paused node keeps a task of another revision in this slot: nothing could take its place there, so it stays, and
/// nobody waits for it.
pub fn is_kept(world: &World, slot: &Slot, tasks: Option<&InSlot>, revision: u32) -> bool {
    let Slot::Node(node) = slot else { return false };
    let kept = |task: &Arc<Task>| task.state == TaskState::Running && task.revision != revision;
    world.nodes.get(node).is_some_and(|node| node.availability == Availability::Pause)
        && tasks.is_some_and(|tasks| tasks.wanted.iter().any(kept))
}

/// What is in one slot.
#[derive(Debug, Default)]
pub struct InSlot {
    /// Meant to run.
    pub wanted: Vec<Arc<Task>>,
    /// Told to end, and not ended yet.
    pub stopping: Vec<Arc<Task>>,
    /// Ended, oldest first.
    pub ended: Vec<Arc<Task>>,
}

/// A service's tasks by slot.
pub fn by_slot(world: &World, service: &Service) -> BTreeMap<Slot, InSlot> {
    let mut slots: BTreeMap<Slot, InSlot> = BTreeMap::new();
    for task in world.tasks_of(&service.spec.name) {
        let slot = slots.entry(task.slot.clone()).or_default();
        if task.state.is_final() {
            slot.ended.push(task.clone());
        } else if task.stop.is_some() {
            slot.stopping.push(task.clone());
        } else {
            slot.wanted.push(task.clone());
        }
    }
    slots
}

impl InSlot {
    /// Whether its last task of `revision` ended and the restart policy wants no other.
    pub fn is_over(&self, service: &Service, revision: u32) -> bool {
        self.wanted.is_empty()
            && again(&service.spec.restart, self.last(service, revision).map(AsRef::as_ref)) == Again::Never
    }

    /// Whether its last task of `revision` ended well, and was not to go on.
    pub fn is_complete(&self, service: &Service, revision: u32) -> bool {
        self.is_over(service, revision)
            && self.last(service, revision).is_some_and(|task| task.state == TaskState::Complete)
    }

    /// The newest ended task of `revision`.
    pub fn last(&self, service: &Service, revision: u32) -> Option<&Arc<Task>> {
        self.ended.iter().rev().find(|task| task.revision == revision && task.service_id == service.id)
    }

    /// The best wanted task of `revision` that may stay where it is: healthy before running before the rest, then the
    /// oldest.
    pub fn good(&self, world: &World, service: &Service, revision: u32) -> Option<&Arc<Task>> {
        self.best(world, service, revision, |_| true)
    }

    /// The same among those that no rebalance is to move.
    pub fn successor(&self, world: &World, service: &Service, revision: u32) -> Option<&Arc<Task>> {
        self.best(world, service, revision, |task| task.leaving.is_none())
    }

    fn best(
        &self,
        world: &World,
        service: &Service,
        revision: u32,
        among: impl Fn(&Task) -> bool,
    ) -> Option<&Arc<Task>> {
        let spec = placement(world, service, revision);
        let fits = |task: &&Arc<Task>| {
            among(task)
                && task.revision == revision
                && task.service_id == service.id
                && task.node.as_deref().is_none_or(|node| suits(world, spec, node))
        };
        let rank =
            |task: &Arc<Task>| (!task.is_healthy(), task.state != TaskState::Running, task.leaving.is_some(), task.id);
        self.wanted.iter().filter(fits).min_by_key(|task| rank(task))
    }

    /// Whether the successor of one that is to be moved is on its way.
    pub fn is_moving(&self) -> bool {
        self.wanted.iter().any(|task| task.leaving.is_some()) && self.wanted.iter().any(|task| task.leaving.is_none())
    }

    /// Leaves those where they are that a rebalance is to move, for now.
    pub fn stay(&mut self) {
        for task in self.wanted.iter_mut().filter(|task| task.leaving.is_some()) {
            Arc::make_mut(task).leaving = None;
        }
    }
}

/// Whether every slot runs its revision, healthy, or has run it to its end, and nothing else is left running.
pub fn settled(world: &World, service: &Service) -> bool {
    let slots = by_slot(world, service);
    let wanted = desired(world, service);
    let filled = wanted.iter().all(|slot| {
        let revision = world.revision_for(service, slot);
        let Some(tasks) = slots.get(slot) else { return false };
        if is_kept(world, slot, Some(tasks), revision) {
            return true;
        }
        tasks.good(world, service, revision).is_some_and(|task| task.is_healthy())
            || tasks.is_complete(service, revision)
    });
    filled
        && slots.values().all(|slot| slot.stopping.is_empty() && slot.wanted.len() <= 1)
        && slots.values().flat_map(|slot| &slot.wanted).all(|task| task.leaving.is_none())
        && slots.iter().all(|(slot, tasks)| tasks.wanted.is_empty() || wanted.contains(slot))
}
