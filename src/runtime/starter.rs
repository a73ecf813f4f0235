//! Starts what was assigned and removes what is forgotten.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use tokio::sync::{Semaphore, mpsc, watch};

use super::{Message, Parts};
use crate::engines::{Engine, Observed, ObservedState, Secrets, StartRequest};
use crate::model::Result;
use crate::model::fault;
use crate::model::id::TaskId;
use crate::model::task::TaskState;
use crate::scheduler::world::World;

/// Most tasks that are being started at once.
const STARTS: usize = 32;

/// Follows the world for as long as it is published.
pub fn spawn(parts: Arc<Parts>, mut seen: watch::Receiver<Arc<World>>, messages: mpsc::UnboundedSender<Message>) {
    tokio::spawn(async move {
        let slots = Arc::new(Semaphore::new(STARTS));
        let mut asked: BTreeSet<TaskId> = BTreeSet::new();
        let mut known: BTreeSet<TaskId> = BTreeSet::new();
        loop {
            let world = seen.borrow_and_update().clone();
            for task in world.tasks.values().filter(|task| task.state == TaskState::Assigned && task.stop.is_none()) {
                let Some(revision) = world.revision(&task.service, task.revision) else { continue };
                let Some(node) = task.node.clone() else { continue };
                if !asked.insert(task.id) {
                    continue;
                }
                let request = StartRequest {
                    task: task.id,
                    service: task.service.clone(),
                    slot: task.slot.clone(),
                    node,
                    revision: task.revision,
                    spec: Arc::new(revision.spec.clone()),
                    secrets: Secrets::default(),
                };
                let versions = revision.secrets.clone();
                let (parts, messages, slots, now) = (parts.clone(), messages.clone(), slots.clone(), seen.clone());
                tokio::spawn(async move {
                    let _slot = slots.acquire().await;
                    // It may have been told to end while it waited for its turn.
                    if !now.borrow().tasks.get(&request.task).is_some_and(|task| task.wanted()) {
                        return;
                    }
                    fault::point("runtime.before-start");
                    let id = request.task;
                    let started = match with_secrets(&parts, request, &versions) {
                        Ok(request) => parts.engine.start(request).await,
                        Err(error) => Err(error),
                    };
                    if let Err(error) = started {
                        let _ = messages.send(Message::Rejected(id, error.to_string()));
                    }
                    fault::point("runtime.after-start");
                });
            }
            let present: BTreeSet<TaskId> = world.tasks.keys().cloned().collect();
            for id in known.difference(&present) {
                asked.remove(id);
                fault::point("runtime.before-remove");
                if let Err(error) = parts.engine.remove(id).await {
                    tracing::warn!(%error, "what is left of a task could not be removed");
                }
                fault::point("runtime.after-remove");
            }
            known = present;
            if seen.changed().await.is_err() {
                return;
            }
        }
    });
}

// Opened only here, on their way to the replica.
fn with_secrets(parts: &Parts, mut request: StartRequest, versions: &BTreeMap<String, u64>) -> Result<StartRequest> {
    for (name, secret) in &request.spec.secrets {
        let version = versions.get(secret).copied().unwrap_or_default();
        request.secrets.0.insert(name.clone(), super::kv::reveal(parts, secret, version)?);
    }
    Ok(request)
}

/// At the start: what the engine knows and the world does not. A commit that never happened, or a task that was
/// forgotten while its folder stood.
pub async fn clear_unknown(engine: &Arc<dyn Engine>, world: &World, known: &[Observed]) {
    for observed in known.iter().filter(|observed| !world.tasks.contains_key(&observed.task)) {
        if matches!(observed.state, ObservedState::Starting | ObservedState::Running { .. }) {
            tracing::warn!(task = %observed.task, "runs, but nobody asked for it; it is stopped");
            if let Err(error) = engine.stop(&observed.task, crate::model::units::Duration::from_secs(10)).await {
                tracing::warn!(%error, "an unknown task could not be stopped");
            }
        }
    }
    if let Err(error) = engine.prune(&world.tasks.keys().cloned().collect()).await {
        tracing::warn!(%error, "what is left of forgotten tasks could not be cleared away");
    }
}
