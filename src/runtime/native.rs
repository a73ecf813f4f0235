//! Services that the Swarm runs for this cluster, each as one service of its own (`engine_native`): made and changed as their
//! descriptions say, and looked at.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{mpsc, watch};

use super::{Message, Parts, starter};
use crate::engines::native::{Natives, Wanted};
use crate::engines::{Secrets, StartRequest};
use crate::model::id::{Slot, TaskId, sha256_hex};
use crate::model::native::{NativeService, PublishMode};
use crate::model::service::{Mode, Revision, Service, ServiceSpec};
use crate::model::{Error, Result};
use crate::scheduler::world::World;

/// How often the Swarm is asked while something is under way, and while nothing is.
const UNDER_WAY: Duration = Duration::from_millis(300);
const AT_REST: Duration = Duration::from_secs(5);

/// Follows the world for as long as it is published.
pub fn spawn(parts: Arc<Parts>, mut seen: watch::Receiver<Arc<World>>, messages: mpsc::UnboundedSender<Message>) {
    tokio::spawn(async move {
        let mut told: Option<BTreeMap<String, NativeService>> = None;
        loop {
            let world = seen.borrow_and_update().clone();
            let any = world.services.values().any(|service| service.spec.engine_native);
            let wait = match parts.engine.natives() {
                // Once at the start, since there may be some of a daemon before this one.
                Some(natives) if any || told.as_ref().is_none_or(|told| !told.is_empty()) => {
                    match turn(&parts, natives, &world).await {
                        Ok(now) => {
                            let quiet = now.values().all(|native| is_quiet(&world, native));
                            if told.as_ref() != Some(&now) {
                                let _ = messages.send(Message::Natives(Arc::new(now.clone())));
                                told = Some(now);
                            }
                            if quiet { AT_REST } else { UNDER_WAY }
                        }
                        Err(error) => {
                            tracing::debug!(%error, "the services that the Swarm runs are not known for now");
                            AT_REST
                        }
                    }
                }
                _ => {
                    if told.is_none() {
                        let _ = messages.send(Message::Natives(Arc::default()));
                        told = Some(BTreeMap::new());
                    }
                    Duration::MAX
                }
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
    let known = world.services.get(native.name.as_str()).is_some_and(|service| !service.removing);
    known && native.running >= native.desired && !native.is_updating() && native.mark.is_some()
}

// Brings the Swarm's to what is described; those of this cluster as they are then, by name.
async fn turn(parts: &Parts, natives: &dyn Natives, world: &World) -> Result<BTreeMap<String, NativeService>> {
    let ours = |all: Vec<NativeService>| {
        let ours = all.into_iter().filter(|native| native.mark.is_some());
        ours.map(|native| (native.name.clone(), native)).collect::<BTreeMap<_, _>>()
    };
    let mut found = ours(natives.list(None).await?);
    let mut failed = BTreeMap::new();
    let mut changed = false;
    // What is being given back is no more ours to change.
    let ours_to_keep =
        |service: &Service| service.spec.engine_native && !service.removing && service.handover.is_none();
    for service in world.services.values().filter(|service| ours_to_keep(service)) {
        let name = service.spec.name.to_string();
        let Some(revision) = world.revision(&service.spec.name, service.active) else { continue };
        let wanted = wanted(parts, service, revision)?;
        // Scaled by hand, it is put right as well.
        let counts =
            |native: &NativeService| service.spec.mode == Mode::Global || native.desired == service.spec.replicas;
        if found.get(&name).is_some_and(|native| native.mark == wanted.mark && counts(native)) {
            continue;
        }
        match natives.place(wanted).await {
            Ok(()) => changed = true,
            Err(error) => drop(failed.insert(name, error)),
        }
    }
    for name in found.keys() {
        let wanted = world.services.get(name.as_str());
        if wanted.is_none_or(|service| service.handover.is_none() && !ours_to_keep(service)) {
            natives.withdraw(name).await?;
            changed = true;
        }
    }
    if changed {
        found = ours(natives.list(None).await?);
    }
    for (name, error) in failed {
        note(&mut found, name, &error);
    }
    Ok(found)
}

// One that could not be made as described has no mark: it is tried again.
fn note(found: &mut BTreeMap<String, NativeService>, name: String, error: &Error) {
    let native = found.entry(name.clone()).or_insert_with(|| NativeService { name, ..NativeService::default() });
    (native.mark, native.reason) = (None, Some(error.to_string()));
}

fn wanted(parts: &Parts, service: &Service, revision: &Revision) -> Result<Wanted> {
    let request = request(parts, service, revision)?;
    let ports = Some(PublishMode::Ingress);
    let id = service.id.to_string();
    Ok(Wanted {
        name: service.spec.name.to_string(),
        mark: Some(mark(service, revision, &request.spec)),
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
    (spec.constraints, spec.policy, spec.rollout) = (latest.constraints, latest.policy, latest.rollout);
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
    };
    starter::with_files(parts, request, &(revision.secrets.clone(), revision.configs.clone()))
}
