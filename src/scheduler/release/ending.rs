//! How a release ends: its revision serves, or it goes back to the one before.

use std::sync::Arc;

use super::{judge_moved, overdue};
use crate::model::error::shorten;
use crate::model::event::What;
use crate::model::release::{Release, ReleaseState};
use crate::model::service::Service;
use crate::scheduler::slots;
use crate::scheduler::world::{Change, Draft};

/// Sends a release back, and puts the description back with it, so that the old tasks are judged by their own.
pub fn roll_back(draft: &mut Draft, release: &mut Release, reason: String) {
    let reason = shorten(&reason);
    restore(draft, release);
    draft.note(What::ReleaseRollback, &release.service, reason.clone());
    release.state = ReleaseState::RollingBack;
    release.intent = None;
    release.weight = None;
    release.reason = Some(reason);
}

pub(super) fn promoting(draft: &mut Draft, service: &Service, release: &mut Release) {
    release.moved = slots::desired(&draft.world, service);
    if judge_moved(draft, service, release) {
        let why = release.failed.values().next().cloned().unwrap_or_default();
        roll_back(draft, release, format!("a new task failed while the last ones moved: {why}"));
        return;
    }
    if !all_healthy(draft, service, release, release.to) {
        overdue(draft, release);
        return;
    }
    release.state = ReleaseState::Promoted;
    release.finished_at = Some(draft.clock.now());
    draft.note(What::ReleasePromoted, &release.service, format!("revision {} serves", release.to));
    let mut service = service.clone();
    service.active = release.to;
    service.stable = Some(release.to);
    if release.from != release.to {
        service.previous = Some(release.from);
    }
    draft.change(Change::Service(Arc::new(service)));
}

pub(super) fn rolling_back(draft: &mut Draft, service: &Service, release: &mut Release) {
    if !all_healthy(draft, service, release, release.back) {
        return;
    }
    release.state = ReleaseState::RolledBack;
    release.finished_at = Some(draft.clock.now());
    draft.note(What::ReleaseRolledBack, &release.service, format!("revision {} serves again", release.back));
    let mut service = service.clone();
    service.active = release.back;
    service.updated_at = draft.clock.wall();
    draft.change(Change::Service(Arc::new(service)));
}

fn restore(draft: &mut Draft, release: &Release) {
    let Some(service) = draft.world.services.get(&release.service).cloned() else { return };
    let Some(revision) = draft.world.revision(&release.service, release.back).cloned() else { return };
    let mut service = Service::clone(&service);
    service.spec = service.back_to(&revision);
    // What was asked for goes back whole, the way it was to come in as well.
    service.spec.rollout = revision.spec.rollout.clone();
    service.bundle.clone_from(&revision.bundle);
    draft.change(Change::Service(Arc::new(service)));
}

fn all_healthy(draft: &Draft, service: &Service, release: &Release, revision: u32) -> bool {
    let slots = slots::by_slot(&draft.world, service);
    slots::desired(&draft.world, service).iter().all(|slot| {
        debug_assert_eq!(release.revision_of(slot), revision, "every slot is on its way to the same revision here");
        let tasks = slots.get(slot);
        let good = tasks.and_then(|tasks| tasks.good(&draft.world, service, revision));
        slots::is_kept(&draft.world, slot, tasks, revision)
            || good.is_some_and(|task| task.is_healthy())
            || tasks.is_some_and(|tasks| tasks.is_over(service, revision))
    })
}
