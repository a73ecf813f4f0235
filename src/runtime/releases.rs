//! What people ask of releases: begin one, pause it, go on, go back.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use serde_json::Value;

use super::commands::{present, refuse_leaving, refuse_taken_names, refuse_taken_ports_of_others};
use crate::client::ReleaseAction;
use crate::model::bundle::HostedKind;
use crate::model::event::What;
use crate::model::policy::Use;
use crate::model::release::{Intent, Order, Release, ReleaseState};
use crate::model::service::Service;
use crate::model::units::Duration;
use crate::model::{Error, Kind, Result};
use crate::scheduler::release::roll_back;
use crate::scheduler::slots;
use crate::scheduler::world::{Change, Draft};
use crate::script::host::ScriptHost;
use crate::script::registration::Facts;
use crate::script::stdlib;

/// What a release that was paused says.
pub const BY_HAND: &str = "paused by hand";

/// How a release comes in.
pub struct Way<'a> {
    /// The rollout script with its options.
    pub rollout: &'a Use,
    /// What is known of the script.
    pub facts: &'a Facts,
    /// The scripts that it is in, by hash, where they are not the service's own.
    pub scripts: Option<String>,
}

/// Begins a release of the service's revision `to`.
pub fn begin_release(draft: &mut Draft, service: &Service, to: u32, way: Way<'_>) {
    let name = &service.spec.name;
    let now = draft.clock.now();
    // A release that is overtaken leaves its slots where they are until their turn comes.
    let mut base = BTreeMap::new();
    let mut order = Order::StartFirst;
    if let Some(open) = draft
        .world
        .releases
        .get(name)
        .filter(|release| !release.state.is_final() || release.state == ReleaseState::Failed)
    {
        order = open.order;
        let slots: BTreeSet<_> = open.moved.iter().chain(open.base.keys()).cloned().collect();
        base = slots.into_iter().map(|slot| (slot.clone(), open.revision_of(&slot))).collect();
    }
    let asked = way.rollout.options.get("deadline").and_then(Value::as_str);
    let asked = asked.and_then(|text| text.parse::<Duration>().ok());
    let release = Release {
        service: name.clone(),
        from: service.active,
        to,
        back: service.stable.unwrap_or(service.active),
        rollout: way.rollout.clone(),
        bundle: way.scripts.or_else(|| service.bundle.clone()),
        state: ReleaseState::Running,
        step: 0,
        intent: None,
        intent_at: None,
        moved: BTreeSet::new(),
        base,
        failed: BTreeMap::new(),
        order,
        weight: None,
        reason: None,
        started_at: now,
        judged_from: now,
        broken: false,
        paused_at: None,
        deadline_at: asked.or(way.facts.deadline).map(|period| now.after(period)),
        finished_at: None,
    };
    draft.note(
        What::ReleaseStarted,
        name,
        format!("revision {} -> {to} by rollout \"{}\"", release.from, release.rollout.name),
    );
    draft.change(Change::Release(Arc::new(release)));
}

/// A release that its own script held up goes on by the one that was mended.
pub fn mended(draft: &mut Draft, service: &Service, scripts: Option<&String>) {
    let Some(open) = draft.world.open_release(&service.spec.name).cloned() else { return };
    let scripts = scripts.or(service.bundle.as_ref()).cloned();
    let is_other = open.bundle != scripts || open.rollout != service.spec.rollout;
    // One that goes back goes its own way; what a script has paused waits for a person.
    let goes_back = service.spec.rollback.as_ref() == Some(&open.rollout);
    if open.state != ReleaseState::Paused || !open.broken || goes_back || !is_other {
        return;
    }
    let mut release = Release::clone(&open);
    (release.rollout, release.bundle) = (service.spec.rollout.clone(), scripts);
    (release.state, release.reason, release.broken) = (ReleaseState::Running, None, false);
    try_again(draft, &mut release);
    draft.note(What::ReleaseResumed, &release.service, "its rollout was mended");
    draft.change(Change::Release(Arc::new(release)));
}

/// A person's word on a release.
pub fn release(draft: &mut Draft, host: &ScriptHost, name: &str, action: ReleaseAction) -> Result<()> {
    let service = present(draft, name)?;
    refuse_leaving(&service)?;
    if service.spec.engine_native {
        return roll_back_native(draft, &service, action);
    }
    let open = draft.world.open_release(&service.spec.name).cloned();
    let Some(open) = open else {
        if action == ReleaseAction::Rollback {
            return roll_back_finished(draft, host, &service);
        }
        return Err(Error::new(Kind::Conflict, service.spec.subject(), "has no release going on"));
    };
    let mut release = Release::clone(&open);
    let wrong =
        || Error::new(Kind::Conflict, service.spec.subject(), format!("its release is {}", open.state.as_str()));
    match action {
        ReleaseAction::Pause if release.state == ReleaseState::Running => {
            release.state = ReleaseState::Paused;
            release.paused_at = Some(draft.clock.now());
            release.reason = Some(BY_HAND.into());
            draft.note(What::ReleasePaused, &release.service, "by hand");
        }
        ReleaseAction::Resume if release.state == ReleaseState::Paused => {
            release.state = ReleaseState::Running;
            release.reason = None;
            release.broken = false;
            try_again(draft, &mut release);
            draft.note(What::ReleaseResumed, &release.service, "by hand");
        }
        ReleaseAction::Promote if matches!(release.state, ReleaseState::Running | ReleaseState::Paused) => {
            release.state = ReleaseState::Promoting;
            release.intent = None;
            release.weight = None;
            try_again(draft, &mut release);
            draft.note(What::ReleaseStep, &release.service, "promoted by hand");
        }
        ReleaseAction::Abort => {
            stay_as_it_is(draft, &service, &mut release);
            release.state = ReleaseState::Failed;
            release.intent = None;
            release.reason = Some("aborted by hand".into());
            release.finished_at = Some(draft.clock.now());
            draft.note(What::ReleaseFailed, &release.service, "aborted by hand");
        }
        ReleaseAction::Rollback if release.state != ReleaseState::RollingBack => {
            refuse_ports_of(draft, &service, release.back)?;
            roll_back(draft, &mut release, "rolled back by hand".into());
        }
        _ => return Err(wrong()),
    }
    draft.change(Change::Release(Arc::new(release)));
    Ok(())
}

// The Swarm updates to the revision before, as to any other.
fn roll_back_native(draft: &mut Draft, service: &Service, action: ReleaseAction) -> Result<()> {
    if action != ReleaseAction::Rollback {
        return Err(Error::new(Kind::Conflict, service.spec.subject(), "its updates are the Swarm's")
            .help(format!("go back with: neap service rollback {}", service.spec.name)));
    }
    let name = &service.spec.name;
    // What ran before; after that, one by one.
    let last = service.stable.filter(|number| *number != service.active);
    let last = last.and_then(|number| draft.world.revision(name, number).cloned());
    let before = last
        .or_else(|| draft.world.revisions_of(name).filter(|revision| revision.number < service.active).last().cloned());
    let before = before
        .ok_or_else(|| Error::new(Kind::Conflict, service.spec.subject(), "has no earlier revision to go back to"))?;
    let mut service = service.clone();
    service.spec = service.back_to(&before);
    refuse_taken_ports_of_others(&draft.world, &service.spec)?;
    service.active = before.number;
    service.updated_at = draft.clock.wall();
    draft.note(What::ServiceUpdated, name, format!("back to revision {}", before.number));
    draft.change(Change::Service(Arc::new(service)));
    Ok(())
}

// Each slot is left with the revision that it has now, whichever way it was going.
fn stay_as_it_is(draft: &Draft, service: &Service, release: &mut Release) {
    let before = release.clone();
    release.moved.clear();
    release.base.clear();
    let tasks = slots::by_slot(&draft.world, service);
    for slot in slots::desired(&draft.world, service) {
        let runs =
            tasks.get(&slot).and_then(|tasks| tasks.wanted.iter().max_by_key(|task| (task.is_healthy(), task.id)));
        let revision = runs.map_or_else(|| before.revision_of(&slot), |task| task.revision);
        if revision == release.to {
            release.moved.insert(slot);
        } else if revision != release.from {
            release.base.insert(slot, revision);
        }
    }
}

// What failed before has been seen, and the time of the pause does not count.
fn try_again(draft: &Draft, release: &mut Release) {
    let now = draft.clock.now();
    release.failed.clear();
    release.judged_from = now;
    if let Some(paused_at) = release.paused_at.take() {
        release.deadline_at = release.deadline_at.map(|at| at.after(now.since(paused_at)));
    }
    release.intent_at = release.intent_at.map(|_| now);
    if let Some(Intent::Batch(batch) | Intent::Shift { batch, .. }) = &mut release.intent {
        batch.carried.values_mut().for_each(|since| *since = now);
    }
}

// What another service has published in the meantime stays its own.
fn refuse_ports_of(draft: &Draft, service: &Service, number: u32) -> Result<()> {
    match draft.world.revision(&service.spec.name, number) {
        Some(revision) => refuse_taken_ports_of_others(&draft.world, &service.back_to(revision)),
        None => Ok(()),
    }
}

// After the release is over: back to the revision before, as the service's `rollback` says, else by its rollout.
fn roll_back_finished(draft: &mut Draft, host: &ScriptHost, service: &Service) -> Result<()> {
    let name = &service.spec.name;
    let nowhere = || Error::new(Kind::Conflict, service.spec.subject(), "has no earlier revision to go back to");
    let last = draft.world.releases.get(name).cloned();
    if let Some(failed) = last.as_ref().filter(|release| release.state == ReleaseState::Failed) {
        // The few slots that moved go back at once; its script has had its say.
        let mut release = Release::clone(failed);
        refuse_ports_of(draft, service, release.back)?;
        release.finished_at = None;
        roll_back(draft, &mut release, "rolled back by hand".into());
        draft.change(Change::Release(Arc::new(release)));
        return Ok(());
    }
    let to = match &last {
        Some(release) if release.state == ReleaseState::Promoted && release.to == service.active => release.from,
        // Not the one before by number: that may be one that failed.
        _ => {
            let previous = service.previous.filter(|number| *number != service.active);
            previous.or(service.active.checked_sub(1)).filter(|number| *number > 0).ok_or_else(nowhere)?
        }
    };
    let revision = draft.world.revision(name, to).cloned().ok_or_else(nowhere)?;
    let own = host.registered(service.bundle.as_deref())?;
    let rollout = service.spec.rollback.as_ref().unwrap_or(&service.spec.rollout).clone();
    let (bundle, facts) = host.find(&own, HostedKind::Rollout, rollout.name.as_str())?;
    if let Some(hash) = &revision.bundle {
        refuse_taken_names(&draft.world, host, name, hash)?;
    }
    let mut service = service.clone();
    service.spec = service.back_to(&revision);
    refuse_taken_ports_of_others(&draft.world, &service.spec)?;
    service.bundle.clone_from(&revision.bundle);
    service.updated_at = draft.clock.wall();
    let scripts = (bundle != stdlib::OWNER).then_some(bundle);
    begin_release(draft, &service, to, Way { rollout: &rollout, facts: &facts, scripts });
    draft.change(Change::Service(Arc::new(service)));
    Ok(())
}
