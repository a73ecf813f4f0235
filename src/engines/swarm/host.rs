//! One host of a Swarm, seen from itself: what its containers do is known here at once, while managers hear of it with
//! the next report of the node; and commands can be run in them.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bollard::Docker;
use bollard::models::{ContainerInspectResponse, ContainerSummaryStateEnum, EventMessage};
use bollard::query_parameters::{EventsOptions, ListContainersOptions};
use futures_util::StreamExt;
use tokio::sync::mpsc;

use crate::engines::Moves;
use crate::engines::docker::container::{self, Reach};
use crate::engines::docker::{Address, exec, image, prune, spec, stats, trouble, volumes};
use crate::engines::hosts::{ExecAsk, ProbeAsk, Probed};
use crate::engines::{ExecResult, Observed, ObservedState};
use crate::model::clock::Timestamp;
use crate::model::id::TaskId;
use crate::model::moves::ImageMove;
use crate::model::node::{ImagePrune, PrunedImages};
use crate::model::objects::{VolumeAsk, VolumeInfo};
use crate::model::stats::Stats;
use crate::model::task::{Exit, Health};
use crate::model::{Error, Kind, Result};

/// The wait before a Docker Engine that does not answer is asked again.
const AGAIN: Duration = Duration::from_millis(500);

/// How long one container may take to be looked at.
const LOOK: Duration = Duration::from_secs(2);

/// A container of ours on this host.
#[derive(Debug, Clone)]
struct Known {
    container: String,
    created: i64,
    // What it was seen as last, without what is no news to anybody.
    seen: Option<Observed>,
    // Its own check failed: Swarm ends it. Not to be read off a container that has ended, which is always unhealthy.
    unhealthy: bool,
}

/// The Docker Engine of this host, and our tasks on it.
pub struct SwarmHost {
    address: Address,
    cluster: String,
    /// Where its ports are reached, as others name it.
    host: String,
    docker: Mutex<Option<Docker>>,
    tasks: Mutex<BTreeMap<TaskId, Known>>,
    observer: Mutex<Option<mpsc::UnboundedSender<Observed>>>,
}

impl SwarmHost {
    /// One that is not connected yet. `cluster`: as in the label; `host`: the address of the node, for ports.
    pub fn new(address: Address, cluster: &str, host: std::net::IpAddr) -> Arc<Self> {
        let host = if host.is_ipv6() { format!("[{host}]") } else { host.to_string() };
        Arc::new(SwarmHost {
            address,
            cluster: cluster.to_owned(),
            host,
            docker: Mutex::default(),
            tasks: Mutex::default(),
            observer: Mutex::default(),
        })
    }

    fn tasks(&self) -> std::sync::MutexGuard<'_, BTreeMap<TaskId, Known>> {
        self.tasks.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Everything as it is, and what is seen from now on. The newest call wins.
    pub fn observe(&self) -> mpsc::UnboundedReceiver<Observed> {
        let (sender, receiver) = mpsc::unbounded_channel();
        // Under the tasks' lock, so that nothing falls between what is known and what comes.
        let tasks = self.tasks();
        for known in tasks.values() {
            if let Some(seen) = &known.seen {
                let _ = sender.send(seen.clone());
            }
        }
        *self.observer.lock().unwrap_or_else(PoisonError::into_inner) = Some(sender);
        receiver
    }

    fn connected(&self) -> Result<Docker> {
        let docker = self.docker.lock().unwrap_or_else(PoisonError::into_inner).clone();
        docker.ok_or_else(|| {
            Error::new(Kind::Unavailable, format!("Docker Engine {}", self.address.url), "does not answer").retry(true)
        })
    }

    /// Connects, listens, and begins again when the connection is lost. Never ends.
    pub async fn follow(self: Arc<Self>) {
        let mut told = false;
        loop {
            match self.listen().await {
                Ok(()) => told = false,
                Err(error) if !told => {
                    tracing::warn!(%error, "the Docker Engine of this host does not answer; it is asked again");
                    told = true;
                }
                Err(_) => {}
            }
            *self.docker.lock().unwrap_or_else(PoisonError::into_inner) = None;
            tokio::time::sleep(AGAIN).await;
        }
    }

    async fn listen(&self) -> Result<()> {
        let failed = |act: &str, error| trouble::error(format!("Docker Engine {}", self.address.url), act, &error);
        let docker = self.address.client().await?.negotiate_version().await.map_err(|e| failed("connect to it", e))?;
        let info = docker.info().await.map_err(|error| failed("ask it", error))?;
        let since = container::since(&info);
        *self.docker.lock().unwrap_or_else(PoisonError::into_inner) = Some(docker.clone());
        self.take_stock(&docker).await?;
        let filters = HashMap::from([
            ("type".to_owned(), vec!["container".to_owned()]),
            ("event".to_owned(), ["start", "die", "destroy", "health_status"].map(str::to_owned).to_vec()),
            ("label".to_owned(), vec![format!("{}={}", spec::CLUSTER, self.cluster)]),
        ]);
        let options = EventsOptions { since, filters: Some(filters), ..EventsOptions::default() };
        let mut events = Box::pin(docker.events(Some(options)));
        while let Some(event) = events.next().await {
            self.take_in(&docker, event.map_err(|error| failed("follow its events", error))?).await;
        }
        Ok(())
    }

    // All our containers here. Swarm keeps those of earlier attempts at a task: one that runs is the one that counts, else the
    // newest. Where several run, somebody has scaled the service: the oldest is what was there before.
    async fn take_stock(&self, docker: &Docker) -> Result<()> {
        let filters = HashMap::from([("label".to_owned(), vec![format!("{}={}", spec::CLUSTER, self.cluster)])]);
        let options = ListContainersOptions { all: true, filters: Some(filters), ..ListContainersOptions::default() };
        let listed = docker.list_containers(Some(options)).await;
        let listed = listed.map_err(|error| trouble::error("containers", "list them", &error))?;
        let mut counts: BTreeMap<TaskId, ((bool, i64), i64, String)> = BTreeMap::new();
        for summary in listed {
            let (Some(id), Some(labels)) = (summary.id, summary.labels) else { continue };
            let Some(task) = spec::task_of(&labels, &self.cluster) else { continue };
            let created = summary.created.unwrap_or_default();
            let runs = summary.state == Some(ContainerSummaryStateEnum::RUNNING);
            let rank = (runs, if runs { -created } else { created });
            if counts.get(&task).is_none_or(|(other, ..)| rank >= *other) {
                counts.insert(task, (rank, created, id));
            }
        }
        self.tasks().retain(|task, _| counts.contains_key(task));
        for (task, (_, created, id)) in counts {
            let known = Known { container: id.clone(), created, seen: None, unhealthy: false };
            self.tasks()
                .entry(task)
                .and_modify(|now| {
                    if now.container != id {
                        *now = known.clone();
                    }
                })
                .or_insert(known);
            self.look_at(docker, &task, &id).await;
        }
        Ok(())
    }

    // A container of a task; false if another one counts: one that runs, or a newer one.
    fn note(&self, task: &TaskId, container: &str, created: i64) -> bool {
        let mut tasks = self.tasks();
        match tasks.get_mut(task) {
            Some(known) if known.container == container => true,
            Some(known) if known.created > created => false,
            Some(Known { seen: Some(Observed { state: ObservedState::Running { .. }, .. }), .. }) => false,
            _ => {
                tasks.insert(*task, Known { container: container.to_owned(), created, seen: None, unhealthy: false });
                true
            }
        }
    }

    async fn look_at(&self, docker: &Docker, task: &TaskId, id: &str) {
        let Some(inspected) = inspect(docker, id).await else { return };
        let reach = Reach { direct: false, host: self.host.clone() };
        let (state, warnings) = container::state(&inspected, &reach);
        if matches!(state, ObservedState::Running { health: Health::Unhealthy, .. }) {
            self.fails(task, id);
        }
        let Some(state) = as_swarm_sees(state) else { return };
        self.report(id, Observed { task: *task, state, warnings });
    }

    fn fails(&self, task: &TaskId, container: &str) {
        if let Some(known) = self.tasks().get_mut(task).filter(|known| known.container == container) {
            known.unhealthy = true;
        }
    }

    fn report(&self, container: &str, observed: Observed) {
        let mut tasks = self.tasks();
        let Some(known) = tasks.get_mut(&observed.task).filter(|known| known.container == container) else { return };
        if known.seen.as_ref() == Some(&observed) {
            return;
        }
        known.seen = Some(observed.clone());
        if let Some(observer) = self.observer.lock().unwrap_or_else(PoisonError::into_inner).as_ref() {
            let _ = observer.send(observed);
        }
    }

    async fn take_in(&self, docker: &Docker, event: EventMessage) {
        let Some(actor) = event.actor else { return };
        let (Some(action), Some(id)) = (event.action, actor.id) else { return };
        let attributes = actor.attributes.unwrap_or_default();
        let Some(task) = spec::task_of(&attributes, &self.cluster) else { return };
        let nanos = event.time_nano.unwrap_or_default();
        match action.split(':').next().unwrap_or_default() {
            "die" => {
                let code = attributes.get("exitCode").and_then(|code| code.parse().ok());
                let millis = u64::try_from(nanos / 1_000_000).unwrap_or_default();
                let state = ObservedState::Ended {
                    exit: code.map_or(Exit::Unknown, Exit::Code),
                    finished_at: Timestamp(millis),
                };
                // What the kernel did to it only an inspection knows; it may be gone by then.
                let reach = Reach { direct: false, host: String::new() };
                let mut warnings = inspect(docker, &id)
                    .await
                    .map_or_else(Vec::new, |inspected| container::state(&inspected, &reach).1);
                if self.tasks().get(&task).is_some_and(|known| known.container == id && known.unhealthy) {
                    warnings.push(super::watch::FAILED_CHECK.to_owned());
                }
                self.report(&id, Observed { task, state, warnings });
            }
            "destroy" => {
                let mut tasks = self.tasks();
                if tasks.get(&task).is_some_and(|known| known.container == id) {
                    tasks.remove(&task);
                }
            }
            _ => {
                // Told by the event: an inspection may come when Swarm has ended it already.
                if action.ends_with(": unhealthy") {
                    self.fails(&task, &id);
                }
                if self.note(&task, &id, nanos / 1_000_000_000) {
                    self.look_at(docker, &task, &id).await;
                }
            }
        }
    }

    /// Runs a command in a task's container.
    pub async fn exec(&self, ask: &ExecAsk) -> Result<ExecResult> {
        let docker = self.connected()?;
        exec::run(
            &self.address,
            &docker,
            format!("task {}", ask.task),
            &self.container(&ask.task)?,
            &ask.command,
            ask.timeout,
        )
        .await
    }

    /// Asks a port in the network of a task's container.
    pub async fn probe(&self, ask: &ProbeAsk) -> Result<Probed> {
        exec::probe(&self.address, &self.connected()?, &self.container(&ask.task)?, ask).await
    }

    fn container(&self, task: &TaskId) -> Result<String> {
        let known = self.tasks().get(task).map(|known| known.container.clone());
        known.ok_or_else(|| Error::new(Kind::Unavailable, format!("task {task}"), "has no container on its node"))
    }

    /// What tasks on this host use.
    pub async fn stats(&self, tasks: &[TaskId]) -> Result<BTreeMap<TaskId, Stats>> {
        let docker = self.connected()?;
        let containers = {
            let known = self.tasks();
            let container = |task: &TaskId| known.get(task).map(|known| (*task, known.container.clone()));
            tasks.iter().filter_map(container).collect()
        };
        Ok(stats::of(&docker, containers).await)
    }

    /// Volumes of this host.
    pub async fn volumes(&self, ask: VolumeAsk) -> Result<Vec<VolumeInfo>> {
        volumes::serve(&self.connected()?, ask).await
    }

    /// Removes images that nothing uses.
    pub async fn prune_images(&self, ask: &ImagePrune) -> Result<PrunedImages> {
        let docker = self.connected()?;
        prune::images(&docker, ask).await
    }

    /// Gets an image, or brings it to a registry.
    pub fn move_image(&self, ask: ImageMove) -> Result<Moves> {
        Ok(image::moved(self.connected()?, ask))
    }
}

// What hangs is that container's trouble, and must not hold up what is told of others for long.
async fn inspect(docker: &Docker, id: &str) -> Option<ContainerInspectResponse> {
    tokio::time::timeout(LOOK, docker.inspect_container(id, None)).await.ok()?.ok()
}

// Swarm counts a task as running once its own check passes, and ends it when that fails: until then it is starting here
// as well, so that both ways of hearing of it tell the same.
fn as_swarm_sees(state: ObservedState) -> Option<ObservedState> {
    match state {
        ObservedState::Running { health: Health::Starting, .. } => Some(ObservedState::Starting),
        ObservedState::Running { health: Health::Unhealthy, .. } => None,
        // A start that failed may be tried again by Swarm: whether it was the last one the managers tell.
        ObservedState::Rejected { .. } | ObservedState::NoRoom { .. } => None,
        ObservedState::Running { pid, ports, started_at, .. } => {
            Some(ObservedState::Running { pid, ports, started_at, health: Health::None, said: None })
        }
        other => Some(other),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_swarm_would_not_say_is_not_said() {
        let running = |health| ObservedState::Running {
            pid: Some(1),
            ports: BTreeMap::new(),
            started_at: Timestamp(1),
            health,
            said: None,
        };
        assert_eq!(as_swarm_sees(running(Health::Starting)), Some(ObservedState::Starting));
        assert_eq!(as_swarm_sees(running(Health::Healthy)), Some(running(Health::None)));
        assert_eq!(as_swarm_sees(running(Health::Unhealthy)), None, "Swarm ends it");
        assert_eq!(as_swarm_sees(ObservedState::Rejected { reason: "no network yet".into() }), None);
        let ended = ObservedState::Ended { exit: Exit::Code(1), finished_at: Timestamp(2) };
        assert_eq!(as_swarm_sees(ended.clone()), Some(ended));
    }
}
