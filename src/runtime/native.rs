//! Services that the Swarm runs for this cluster, each as one service of its own (`engine_native`): made and changed as their
//! descriptions say, and looked at.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{mpsc, watch};

use super::{Message, Parts, logins, starter};
use crate::engines::native::{Natives, Wanted};
use crate::engines::{Secrets, StartRequest};
use crate::model::Result;
use crate::model::clock::Timestamp;
use crate::model::id::{Slot, TaskId, sha256_hex};
use crate::model::native::{NativeService, PublishMode};
use crate::model::service::{Mode, Revision, Service, ServiceSpec};
use crate::scheduler::world::World;

/// How often the Swarm is asked while something is under way, and while nothing is.
const UNDER_WAY: Duration = Duration::from_millis(300);
const AT_REST: Duration = Duration::from_secs(5);
/// How long nothing has changed where something is still wanted, until it is looked at as seldom.
const STANDS: Duration = Duration::from_secs(30);
/// How long after a change the Swarm may not have begun with it yet.
const SETTLES: crate::model::units::Duration = crate::model::units::Duration::from_millis(1500);

/// Follows the world for as long as it is published.
pub fn spawn(parts: Arc<Parts>, mut seen: watch::Receiver<Arc<World>>, messages: mpsc::UnboundedSender<Message>) {
    tokio::spawn(async move {
        let Some(natives) = parts.engine.natives() else {
            let _ = messages.send(Message::Natives(Arc::default()));
            return;
        };
        let mut told: Option<BTreeMap<String, NativeService>> = None;
        let mut memory = Memory::default();
        let mut changed_at = parts.clock.now();
        loop {
            let world = seen.borrow_and_update().clone();
            let any = world.services.values().any(|service| service.spec.engine_native);
            // Once at the start, since there may be some of a daemon before this one.
            let wait = match any || told.as_ref().is_none_or(|told| !told.is_empty()) {
                false => Duration::MAX,
                true => match turn(&parts, natives, &world, &mut memory).await {
                    Ok(now) => {
                        let quiet = now.values().all(|native| is_quiet(&world, native));
                        if told.as_ref() != Some(&now) {
                            let _ = messages.send(Message::Natives(Arc::new(now.clone())));
                            told = Some(now);
                            changed_at = parts.clock.now();
                        }
                        // One that finds no room stays as it is, and is no reason to ask all the time.
                        let stands = parts.clock.now().0.saturating_sub(changed_at.0) >= STANDS.as_millis() as u64;
                        if quiet || stands { AT_REST } else { UNDER_WAY }
                    }
                    Err(error) => {
                        tracing::debug!(%error, "the services that the Swarm runs are not known for now");
                        AT_REST
                    }
                },
            };
            // What happens elsewhere all the time is no reason to ask the Swarm all the time.
            tokio::time::sleep(UNDER_WAY / 3).await;
            if let Ok(Err(_)) = tokio::time::timeout(wait, seen.changed()).await {
                return;
            }
        }
    });
}

fn is_quiet(world: &World, native: &NativeService) -> bool {
    let Some(service) = world.services.get(native.name.as_str()).filter(|service| !service.removing) else {
        return false;
    };
    let all = match service.spec.mode {
        Mode::Global => native.desired > 0,
        _ => native.desired == service.spec.replicas,
    };
    let settled = native.running >= native.desired && all && !native.is_updating();
    settled || native.refused.is_some()
}

// What this daemon has asked for, by name: the state, and when; and what it has seen that registries are told.
#[derive(Default)]
struct Memory {
    asked: BTreeMap<String, (String, Timestamp)>,
    logins: BTreeMap<String, Option<u64>>,
}

// Brings the Swarm's to what is described; those of this cluster as they are then, by name.
async fn turn(
    parts: &Parts,
    natives: &dyn Natives,
    world: &World,
    memory: &mut Memory,
) -> Result<BTreeMap<String, NativeService>> {
    let ours = |all: Vec<NativeService>| {
        let ours = all.into_iter().filter(|native| native.mark.is_some());
        ours.map(|native| (native.name.clone(), native)).collect::<BTreeMap<_, _>>()
    };
    let mut found = ours(natives.list(None).await?);
    let mut refused = BTreeMap::new();
    let mut changed = false;
    let now = parts.clock.now();
    // What is being given back is no more ours to change.
    let ours_to_keep =
        |service: &Service| service.spec.engine_native && !service.removing && service.handover.is_none();
    for service in world.services.values().filter(|service| ours_to_keep(service)) {
        let name = service.spec.name.to_string();
        let Some(revision) = world.revision(&service.spec.name, service.active) else { continue };
        let mark = mark(service, revision, &described(service, revision));
        // Scaled by hand, it is put right as well.
        let counts =
            |native: &NativeService| service.spec.mode == Mode::Global || native.desired == service.spec.replicas;
        let known = found.get(&name);
        // Told once more, so that what comes next is pulled with another login.
        let login = logins::version(parts, service.id, revision.spec.image.as_deref().unwrap_or_default())?;
        let same_login = *memory.logins.entry(name.clone()).or_insert(login) == login;
        if known.is_some_and(|native| native.mark.as_ref() == Some(&mark) && counts(native)) && same_login {
            continue;
        }
        // The Swarm itself goes back from what was asked for: that has its end first, and asked for the same again it would
        // do so again.
        let went_back = match known.and_then(|native| native.update.as_deref()) {
            Some("rollback_started") => continue,
            Some(state) => state.contains("rollback"),
            None => false,
        };
        if went_back && same_login && memory.asked.get(&name).is_some_and(|(asked, _)| *asked == mark) {
            refused.insert(name, (mark, "the Swarm went back to what it ran before".to_owned()));
            continue;
        }
        let placed = match wanted(parts, service, revision, mark.clone()) {
            Ok(wanted) => natives.place(wanted).await,
            Err(error) => Err(error),
        };
        match placed {
            Ok(()) => {
                changed = true;
                memory.logins.insert(name.clone(), login);
                memory.asked.insert(name, (mark, now));
            }
            Err(error) if error.retry => tracing::debug!(%error, service = name, "the Swarm does not take it yet"),
            Err(error) => drop(refused.insert(name, (mark, error.to_string()))),
        }
    }
    for name in found.keys() {
        let wanted = world.services.get(name.as_str());
        if wanted.is_none_or(|service| service.handover.is_none() && !ours_to_keep(service)) {
            memory.asked.remove(name);
            memory.logins.remove(name);
            // Others need not wait for it.
            match natives.withdraw(name).await {
                Ok(()) => changed = true,
                Err(error) => tracing::debug!(%error, service = name, "a service of the Swarm's is removed later"),
            }
        }
    }
    if changed {
        found = ours(natives.list(None).await?);
    }
    for (name, why) in refused {
        let native = found.entry(name.clone()).or_insert_with(|| NativeService { name, ..NativeService::default() });
        native.refused = Some(why);
    }
    // Whether a change replaces tasks the Swarm says a moment later only.
    for (name, native) in &mut found {
        let fresh = memory.asked.get(name).is_some_and(|(_, at)| parts.clock.now() < at.after(SETTLES));
        if fresh && native.update.is_none() {
            native.update = Some("updating".into());
        }
    }
    Ok(found)
}

fn wanted(parts: &Parts, service: &Service, revision: &Revision, mark: String) -> Result<Wanted> {
    let request = request(parts, service, revision)?;
    let ports = Some(PublishMode::Ingress);
    let id = service.id.to_string();
    Ok(Wanted {
        name: service.spec.name.to_string(),
        mark: Some(mark),
        request,
        ports,
        at_once: false,
        versions: (revision.secrets.clone(), revision.configs.clone()),
        tag: id[id.len() - 6..].to_owned(),
    })
}

/// What tells one state of a description from another.
pub fn mark(service: &Service, revision: &Revision, spec: &ServiceSpec) -> String {
    let all = serde_json::json!([service.id, revision.number, revision.secrets, revision.configs, spec]);
    sha256_hex(all.to_string().as_bytes())[..16].to_owned()
}

/// What runs now, placed and updated as the latest description says.
pub fn described(service: &Service, revision: &Revision) -> ServiceSpec {
    let (mut spec, latest) = (revision.spec.clone(), service.spec.clone());
    spec.labels = latest.labels;
    (spec.mode, spec.replicas, spec.max_replicas_per_node) =
        (latest.mode, latest.replicas, latest.max_replicas_per_node);
    (spec.constraints, spec.policy) = (latest.constraints, latest.policy);
    (spec.rollout, spec.rollback) = (latest.rollout, latest.rollback);
    spec.restart = latest.restart;
    spec
}

/// The request that tasks of the Swarm's are made of.
pub fn request(parts: &Parts, service: &Service, revision: &Revision) -> Result<StartRequest> {
    let request = StartRequest {
        task: TaskId::numbered(0),
        service: service.spec.name.clone(),
        slot: Slot::Replica(0),
        node: "".into(),
        revision: revision.number,
        spec: Arc::new(described(service, revision)),
        secrets: Secrets::default(),
        configs: Vec::new(),
        login: None,
    };
    starter::with_files(parts, service.id, request, &(revision.secrets.clone(), revision.configs.clone()))
}
