//! Starts what was assigned and removes what is forgotten.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use imbl::OrdMap;
use tokio::sync::{Semaphore, mpsc, watch};

use super::{Message, Parts, logins, values};
use crate::client::kv::ValueKind;
use crate::engines::{ConfigFile, Engine, Observed, ObservedState, Secrets, StartRequest};
use crate::model::Result;
use crate::model::fault;
use crate::model::id::{ServiceId, TaskId};
use crate::model::service::ServiceSpec;
use crate::model::task::{Task, TaskState};
use crate::scheduler::world::World;

/// Most tasks that are being started at once.
const STARTS: usize = 32;
/// Most ended tasks that are being removed at once.
const REMOVALS: usize = 8;
/// The first and the longest wait before a start that could not be made is tried again.
const AGAIN: (Duration, Duration) = (Duration::from_millis(200), Duration::from_secs(5));

/// Follows the world for as long as it is published.
pub fn spawn(parts: Arc<Parts>, mut seen: watch::Receiver<Arc<World>>, messages: mpsc::UnboundedSender<Message>) {
    tokio::spawn(async move {
        let slots = Arc::new(Semaphore::new(STARTS));
        let mut asked: BTreeSet<TaskId> = BTreeSet::new();
        let removals = Arc::new(Semaphore::new(REMOVALS));
        let mut last = OrdMap::new();
        // What was given up before this daemon is found by what the engine lists.
        let mut given_up: BTreeSet<TaskId> =
            seen.borrow().tasks.values().filter(|task| is_lost(task)).map(|task| task.id).collect();
        loop {
            let world = seen.borrow_and_update().clone();
            for (id, task) in world.tasks_since(&last) {
                let Some(task) = task else {
                    asked.remove(&id);
                    given_up.remove(&id);
                    remove(&parts, id, &removals);
                    continue;
                };
                if is_lost(task) && given_up.insert(id) {
                    give_up(&parts, task);
                }
                // Looked at first: thousands may wait for their turn, and a request is a description copied.
                if task.state != TaskState::Assigned || task.stop.is_some() || asked.contains(&id) {
                    continue;
                }
                let Some((service, request, versions)) = request(&world, task) else { continue };
                asked.insert(task.id);
                let (parts, messages, slots, now) = (parts.clone(), messages.clone(), slots.clone(), seen.clone());
                tokio::spawn(async move {
                    let mut slot = slots.acquire().await;
                    // It may have been told to end while it waited for its turn.
                    if !now.borrow().tasks.get(&request.task).is_some_and(|task| task.wanted()) {
                        return;
                    }
                    fault::point("runtime.before-start");
                    let id = request.task;
                    let mut wait = AGAIN.0;
                    let started = loop {
                        let started = match with_files(&parts, service, request.clone(), &versions) {
                            Err(error) => Err(error),
                            Ok(request) => parts.engine.start(request).await,
                        };
                        match started {
                            // What cannot be had for the moment is tried again, for as long as it is wanted.
                            Err(error) if error.retry => {
                                let state = ObservedState::Preparing { said: error.to_string() };
                                let observed = Observed { task: id, state, warnings: Vec::new() };
                                let _ = messages.send(Message::Observed(observed));
                                // Others need not wait for a node that is away.
                                drop(slot);
                                tokio::time::sleep(wait).await;
                                wait = (wait * 2).min(AGAIN.1);
                                slot = slots.acquire().await;
                                if !now.borrow().tasks.get(&id).is_some_and(|task| task.wanted()) {
                                    return;
                                }
                            }
                            other => break other,
                        }
                    };
                    if let Err(error) = started {
                        let _ = messages.send(Message::Rejected(id, error.to_string()));
                    }
                    drop(slot);
                    fault::point("runtime.after-start");
                });
            }
            last = world.tasks.clone();
            if seen.changed().await.is_err() {
                return;
            }
        }
    });
}

type Versions = (BTreeMap<String, u64>, BTreeMap<String, u64>);

// What starts a task, but for what is sealed; of its service, in these versions of secrets and configs.
fn request(world: &World, task: &Task) -> Option<(ServiceId, StartRequest, Versions)> {
    let revision = world.revision(&task.service, task.revision)?;
    let request = StartRequest {
        task: task.id,
        service: task.service.clone(),
        slot: task.slot.clone(),
        node: task.node.clone()?,
        revision: task.revision,
        spec: Arc::new(ServiceSpec { hosts: hosts(world, &revision.spec), ..revision.spec.clone() }),
        secrets: Secrets::default(),
        configs: Vec::new(),
        login: None,
    };
    let service = world.services.get(&task.service)?.id;
    Some((service, request, (revision.secrets.clone(), revision.configs.clone())))
}

// Besides its own: services that are balanced, under the names that they have on the networks that both are attached to.
fn hosts(world: &World, spec: &ServiceSpec) -> BTreeMap<String, String> {
    let mut hosts = spec.hosts.clone();
    let is_on = |name: &str| spec.networks.iter().any(|own| own.name == name) && !is_of_all(name);
    for service in world.services.values().filter(|service| !service.removing) {
        let Some(address) = service.internal_address() else { continue };
        for network in service.spec.networks.iter().filter(|network| is_on(&network.name)) {
            // An alias takes no other service's name.
            let aliases = network.aliases.iter().map(String::as_str);
            let aliases = aliases.filter(|alias| !world.services.contains_key(*alias));
            for name in std::iter::once(service.spec.name.as_str()).chain(aliases) {
                hosts.entry(name.to_owned()).or_insert_with(|| address.to_string());
            }
        }
    }
    hosts
}

// Where no engine knows names.
fn is_of_all(network: &str) -> bool {
    ["host", "bridge", "none"].contains(&network)
}

// Whoever waits for a node that is away holds up nobody else, and tries again when it may be back.
fn remove(parts: &Arc<Parts>, id: TaskId, turns: &Arc<Semaphore>) {
    let (parts, turns) = (parts.clone(), turns.clone());
    tokio::spawn(async move {
        loop {
            let turn = turns.acquire().await;
            fault::point("runtime.before-remove");
            let removed = parts.engine.remove(&id).await;
            fault::point("runtime.after-remove");
            drop(turn);
            match removed {
                Err(error) if error.retry => tokio::time::sleep(AGAIN.1).await,
                Err(error) => return tracing::warn!(%error, "what is left of a task could not be removed"),
                Ok(()) => return,
            }
        }
    });
}

// Given up with their nodes, and told to end.
fn is_lost(task: &Task) -> bool {
    task.state == TaskState::Lost && task.stop.is_some()
}

// An engine that can reach what is left of it ends it; any other one does when the node is back.
fn give_up(parts: &Arc<Parts>, task: &Arc<Task>) {
    let (parts, id) = (parts.clone(), task.id);
    tokio::spawn(async move {
        if let Err(error) = parts.engine.stop(&id, LEFT_OVER).await {
            tracing::debug!(%error, task = %id, "it is ended when its node is back");
        }
    });
}

/// The request with what its replicas read as files, in the versions of its revision, and what the registry of its image
/// is told. Secrets are opened only here, on their way to the engine.
pub fn with_files(
    parts: &Parts,
    service: ServiceId,
    mut request: StartRequest,
    (secrets, configs): &Versions,
) -> Result<StartRequest> {
    for (name, secret) in &request.spec.secrets {
        let version = secrets.get(&secret.name).copied().unwrap_or_default();
        request.secrets.0.insert(name.clone(), values::reveal(parts, ValueKind::Secret, &secret.name, version)?);
    }
    for (target, config) in &request.spec.configs {
        let version = configs.get(&config.name).copied().unwrap_or_default();
        let value = values::reveal(parts, ValueKind::Config, &config.name, version)?;
        request.configs.push(ConfigFile { target: target.clone(), value, owner: config.clone() });
    }
    if let Some(image) = &request.spec.image {
        request.login = logins::for_image(parts, service, image)?;
    }
    Ok(request)
}

/// At the start: what was told to end by a daemon before this one, and still runs, is told again.
pub fn stop_again(parts: &Arc<Parts>, world: &World, known: &[Observed]) {
    for observed in known.iter().filter(|observed| matches!(observed.state, ObservedState::Running { .. })) {
        let Some(task) = world.tasks.get(&observed.task).filter(|task| task.state == TaskState::Stopping) else {
            continue;
        };
        let grace = world.task_spec(&task.id).map_or(LEFT_OVER, |spec| spec.stop.grace);
        let (parts, id) = (parts.clone(), task.id);
        tokio::spawn(async move {
            if let Err(error) = parts.engine.stop(&id, grace).await {
                tracing::warn!(%error, task = %id, "it could not be told again to end");
            }
        });
    }
}

/// Whether what was seen runs although nobody asks for it: left over by a task that was given up with its node, or whose
/// record is gone.
pub fn is_stray(world: &World, observed: &Observed) -> bool {
    let runs = matches!(observed.state, ObservedState::Starting | ObservedState::Running { .. });
    match world.tasks.get(&observed.task) {
        None => !matches!(observed.state, ObservedState::Preparing { .. }),
        Some(task) => runs && task.state.is_final(),
    }
}

/// Ends and removes it.
pub fn put_away(parts: &Arc<Parts>, observed: Observed, world: World) {
    let parts = parts.clone();
    tokio::spawn(async move {
        let id = observed.task;
        let over = matches!(
            observed.state,
            ObservedState::Ended { .. } | ObservedState::Rejected { .. } | ObservedState::NoRoom { .. }
        );
        let grace = world.task_spec(&id).map_or(LEFT_OVER, |spec| spec.stop.grace);
        if !over {
            tracing::warn!(task = %id, "runs, but nobody asks for it any more; it is stopped");
        }
        let put_away = || async {
            if over { parts.engine.remove(&id).await } else { parts.engine.stop(&id, grace).await.map(drop) }
        };
        // Where its node is away again, it is found again when that is back.
        for _ in 0..PUT_AWAY {
            match put_away().await {
                Err(error) if error.retry => tokio::time::sleep(AGAIN.1).await,
                Err(error) => return tracing::warn!(%error, task = %id, "what is left of a task could not be put away"),
                Ok(()) => return,
            }
        }
    });
}

/// How often that is tried.
const PUT_AWAY: u32 = 5;
/// The time to end for what has no description any more.
const LEFT_OVER: crate::model::units::Duration = crate::model::units::Duration::from_secs(10);

/// At the start: what the engine knows and the world does not. A commit that never happened, or a task that was
/// forgotten while its folder stood.
pub async fn clear_unknown(engine: &Arc<dyn Engine>, world: &World, known: &[Observed]) {
    for observed in known.iter().filter(|observed| !world.tasks.contains_key(&observed.task)) {
        if matches!(observed.state, ObservedState::Starting | ObservedState::Running { .. }) {
            tracing::warn!(task = %observed.task, "runs, but nobody asked for it; it is stopped");
            if let Err(error) = engine.stop(&observed.task, LEFT_OVER).await {
                tracing::warn!(%error, "an unknown task could not be stopped");
            }
        }
    }
    if let Err(error) = engine.prune(&world.tasks.keys().copied().collect()).await {
        tracing::warn!(%error, "what is left of forgotten tasks could not be cleared away");
    }
}
