//! The docker engine: replicas are containers, placed directly on one or several Docker Engines. What runs is found
//! again by its labels; nothing is remembered elsewhere.

mod address;
pub mod container;
pub mod credentials;
pub mod exec;
mod host;
pub mod image;
pub mod logs;
pub mod networks;
pub mod prune;
pub mod raw;
pub mod spec;
mod start;
pub mod stats;
pub mod tasks;
pub mod trouble;
mod tunnel;
pub mod volumes;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use async_trait::async_trait;
use bollard::query_parameters::{RemoveContainerOptions, StopContainerOptions};
use tokio::sync::{mpsc, watch};

pub use self::address::{Address, DEFAULT};
use self::host::{Connection, Host};
use self::tasks::Tasks;
use super::hosts::{ProbeAsk, Probed};
use super::meter::{Meter, Reading};
use super::{Engine, ExecResult, LogLine, LogPosition, LogQuery, Moves, Observed, ObservedState, Sight, StartRequest};
use crate::model::id::{NodeId, TaskId};
use crate::model::moves::ImageMove;
use crate::model::node::{ImagePrune, Node, PrunedImages};
use crate::model::objects::{NetworkAsk, NetworkInfo, VolumeAsk, VolumeInfo};
use crate::model::registry::{self, Login};
use crate::model::service::ServiceSpec;
use crate::model::stats::Stats;
use crate::model::units::Duration;
use crate::model::{Error, Kind, Result};

/// The wait before a container that did not stop is told again.
const STOP_AGAIN: std::time::Duration = std::time::Duration::from_secs(2);
/// How long a start of the daemon waits for Docker Engines that do not answer, and for those that do to tell what they have.
const FIRST: (std::time::Duration, std::time::Duration) =
    (std::time::Duration::from_secs(3), std::time::Duration::from_secs(60));

/// How the engine is set up.
#[derive(Debug, Clone)]
pub struct DockerOptions {
    /// The cluster's name and its store's id: containers of another one are not ours.
    pub cluster: String,
    /// The Docker Engines, each a node.
    pub hosts: Vec<Address>,
    /// A folder for what containers of this host read and nobody else may: their secrets and configs.
    pub secrets: std::path::PathBuf,
}

/// Runs tasks as containers.
pub struct DockerEngine {
    hosts: BTreeMap<String, Arc<Host>>,
    meters: BTreeMap<NodeId, Meter>,
    tasks: Arc<Tasks>,
    nodes: watch::Sender<Arc<Vec<Node>>>,
    logs: logs::Followed,
    options: DockerOptions,
}

/// Whether a Docker Engine is there.
pub async fn answers(address: &Address) -> bool {
    let asked = async { address.client().await.ok()?.ping().await.ok() };
    matches!(tokio::time::timeout(FIRST.0, asked).await, Ok(Some(_)))
}

impl DockerEngine {
    /// Connects to all of them and takes back what runs there. Those that do not answer are waited for later.
    pub async fn open(options: DockerOptions) -> Result<Self> {
        let tasks = Arc::new(Tasks::default());
        let mut hosts = BTreeMap::new();
        for address in &options.hosts {
            let host = Host::new(address.clone(), &options.cluster, tasks.clone());
            if hosts.insert(address.name.clone(), host).is_some() {
                return Err(Error::invalid(format!("Docker Engine {}", address.url), "has the name of another one")
                    .help(format!("give it a name of its own: NAME={}", address.url)));
            }
        }
        let mut changes: Vec<watch::Receiver<Node>> = hosts.values().map(|host| host.node()).collect();
        for host in hosts.values() {
            tokio::spawn(host.clone().follow());
        }
        // Only what is reached through a socket of this host is sure to be on it.
        let meter = |address: &Address| {
            let source = stats::Containers::of(address.clone());
            (address.name.as_str().into(), Meter::spawn(source, address.url.starts_with("unix:")))
        };
        let meters = options.hosts.iter().map(meter).collect();
        let all_there = futures_util::future::join_all(hosts.values().map(|host| host.there(FIRST)));
        all_there.await;
        let now = |changes: &mut [watch::Receiver<Node>]| {
            Arc::new(changes.iter_mut().map(|change| change.borrow_and_update().clone()).collect::<Vec<Node>>())
        };
        let nodes = watch::Sender::new(now(&mut changes));
        let publish = nodes.clone();
        tokio::spawn(async move {
            loop {
                let next =
                    futures_util::future::select_all(changes.iter_mut().map(|change| Box::pin(change.changed())));
                if next.await.0.is_err() {
                    return;
                }
                publish.send_replace(now(&mut changes));
            }
        });
        Ok(DockerEngine { hosts, meters, tasks, nodes, logs: logs::Followed::default(), options })
    }

    // The client of the host where a task's container is, and the container's id.
    fn place(&self, task: &TaskId) -> Result<Option<(Connection, String)>> {
        let Some((host, container)) = self.tasks.place(task) else { return Ok(None) };
        Ok(Some((self.host(&host)?.connected()?, container)))
    }

    fn host(&self, name: &str) -> Result<&Arc<Host>> {
        self.hosts.get(name).ok_or_else(|| Error::not_found(format!("node \"{name:.70}\"")))
    }
}

/// What containers need, in whichever engine.
pub fn accepts(spec: &mut ServiceSpec, engine: &str) -> Result<()> {
    if let Some(check) = &mut spec.check {
        check.by_engine = false;
    }
    let wrong = |message: String| Error::new(Kind::Unsupported, spec.subject(), message);
    if spec.image.is_none() {
        return Err(wrong(format!("image: is missing, and the {engine} engine runs containers"))
            .help("name an image; a command alone is for the process engine"));
    }
    if let Some((name, _)) = spec.ports.iter().find(|(_, port)| port.container_port().is_none()) {
        return Err(wrong(format!("ports.{name}: has no target, the port in the container"))
            .help("write \"8080\", \"80:8080\" or { target = 8080 }"));
    }
    if spec.networks.iter().any(|network| network.name == "none") && !spec.ports.is_empty() {
        return Err(wrong("ports: cannot be reached without a network (networks = { \"none\" })".into()));
    }
    Ok(())
}

#[async_trait]
impl Engine for DockerEngine {
    fn name(&self) -> &'static str {
        "docker"
    }

    fn accepts(&self, spec: &mut ServiceSpec) -> Result<()> {
        accepts(spec, self.name())
    }

    fn nodes(&self) -> watch::Receiver<Arc<Vec<Node>>> {
        self.nodes.subscribe()
    }

    async fn start(&self, request: StartRequest) -> Result<()> {
        let host = self.host(&request.node)?.clone();
        let connection = host.connected()?;
        if !self.tasks.begin_start(&request.task, &host.address.name) {
            return Ok(());
        }
        let spec = Arc::new(super::template::expand(&request, Some(&host.node().borrow().hostname)));
        let request = StartRequest { spec, ..request };
        let result = self.begin(&host, &connection, &request).await;
        self.tasks.end_start(&request.task);
        result
    }

    async fn stop(&self, task: &TaskId, grace: Duration) -> Result<bool> {
        let Some((host, id)) = self.tasks.forbid(task) else {
            // A start that is on its way finds that out by itself.
            return Ok(false);
        };
        let host = self.host(&host)?.clone();
        let mut connection = host.connected()?;
        let seconds = grace.millis().div_ceil(1000);
        // It answers when the container has ended.
        let patience = std::time::Duration::from_secs(seconds + 60);
        let (task, tasks) = (*task, self.tasks.clone());
        tokio::spawn(async move {
            // Until it has ended: a Docker Engine that is restarted in between forgets what it was asked.
            while tasks.is_open(&task) {
                let docker = connection.docker.clone().with_timeout(patience);
                let options =
                    StopContainerOptions { t: i32::try_from(seconds).ok(), ..StopContainerOptions::default() };
                match docker.stop_container(&id, Some(options)).await {
                    // Its end is told by its event as well; one that is missed is found by looking. What was never started
                    // counts as stopped: it is told again if it is about to be, and else will not be.
                    Ok(()) => {
                        let seen = host.look_until_known(&task, &id).await;
                        if seen == Some(ObservedState::Starting) && !tasks.is_starting(&task) {
                            let state = ObservedState::Rejected { reason: "told to end before it was started".into() };
                            tasks.report(Observed { task, state, warnings: Vec::new() });
                        }
                    }
                    Err(error) if trouble::is_status(&error, 404) => {
                        host.look_until_known(&task, &id).await;
                        return;
                    }
                    Err(error) => tracing::warn!(%task, %error, "a container could not be stopped; it is tried again"),
                }
                tokio::time::sleep(STOP_AGAIN).await;
                if let Ok(now) = host.connected() {
                    connection = now;
                }
            }
        });
        Ok(true)
    }

    async fn remove(&self, task: &TaskId) -> Result<()> {
        super::files::remove(&self.options.secrets.join(task.to_string()));
        let Some((connection, id)) = self.place(task)? else {
            self.tasks.forget(task);
            return Ok(());
        };
        let options = RemoveContainerOptions { v: true, ..RemoveContainerOptions::default() };
        match connection.docker.remove_container(&id, Some(options)).await {
            Ok(()) => {}
            Err(error) if trouble::is_status(&error, 404) => {}
            Err(error) => {
                // Its removal is under way already, or something of it is still busy.
                let passes = trouble::is_status(&error, 409) || trouble::is_status(&error, 500);
                let error = trouble::error(format!("task {task}"), "remove its container", &error);
                return Err(if passes { error.retry(true) } else { error });
            }
        }
        self.tasks.forget(task);
        Ok(())
    }

    async fn prune(&self, keep: &BTreeSet<TaskId>) -> Result<()> {
        for task in self.tasks.unwanted(keep) {
            self.remove(&task).await?;
        }
        super::files::prune(&self.options.secrets, keep);
        Ok(())
    }

    async fn list(&self) -> Result<Vec<Observed>> {
        Ok(self.tasks.list())
    }

    fn observe(&self) -> mpsc::UnboundedReceiver<Sight> {
        self.tasks.observe()
    }

    async fn log_end(&self, tasks: &[TaskId]) -> Result<LogPosition> {
        logs::ends(self.places(tasks)).await
    }

    async fn logs(
        &self,
        tasks: &[TaskId],
        query: LogQuery,
        until: Option<LogPosition>,
    ) -> Result<mpsc::Receiver<Result<Vec<LogLine>>>> {
        Ok(logs::read(self.places(tasks), query, until))
    }

    async fn follow(&self, tasks: &[TaskId], position: &mut LogPosition) -> Result<Vec<LogLine>> {
        Ok(self.logs.take(self.places(tasks), position))
    }

    async fn prune_images(&self, node: &str, ask: ImagePrune) -> Result<PrunedImages> {
        let connection = self.host(node)?.connected()?;
        prune::images(&connection.docker, &ask).await
    }

    async fn move_image(&self, node: &str, ask: ImageMove) -> Result<Moves> {
        let host = self.host(node)?;
        let name = ask.to.as_ref().unwrap_or(&ask.image);
        // Its loopback is another: who listens there is nobody of ours.
        if !host.address.is_local() && registry::is_loopback(name) {
            let why = format!(
                "its Docker Engine is on another host, where {} is not the cluster's registry",
                registry::of_image(name)
            );
            return Err(Error::new(Kind::Unsupported, format!("node \"{node:.70}\""), why));
        }
        Ok(image::moved(host.connected()?.docker.clone(), ask))
    }

    // A network is each host's own: made on all of them, and shown once.
    async fn networks(&self, ask: NetworkAsk) -> Result<Vec<NetworkInfo>> {
        let mut all: BTreeMap<String, NetworkInfo> = BTreeMap::new();
        let (mut removed, mut made) = (false, false);
        // A change is begun only where all of them can be asked; otherwise those that are there tell.
        let mut there = Vec::new();
        for host in self.hosts.values() {
            match host.connected() {
                Ok(connection) => there.push((host, connection.docker)),
                Err(error) if ask != NetworkAsk::List || self.hosts.len() == 1 => return Err(error),
                Err(_) => {}
            }
        }
        for (host, docker) in there {
            match &ask {
                NetworkAsk::List => {
                    for network in networks::list(&docker).await? {
                        let known = all.entry(network.name.clone()).or_insert(network);
                        known.nodes.push(host.node().borrow().hostname.clone());
                    }
                }
                NetworkAsk::Create(network) => {
                    // What an attempt before this one has made is as good.
                    let known = networks::list(&docker).await?;
                    let known = known.iter().find(|known| known.name == network.name);
                    if known.is_some_and(|known| networks::is_like(known, network, "bridge")) {
                        continue;
                    }
                    let request = networks::request(network, "bridge", &network.subnets, &host.cluster);
                    networks::create(&docker, request).await?;
                    made = true;
                }
                NetworkAsk::Remove(name) => {
                    removed |= networks::remove(&docker, name).await?;
                    host.forget_networks();
                }
            }
        }
        match ask {
            NetworkAsk::Remove(name) if !removed => Err(networks::missing(&name)),
            NetworkAsk::Create(network) if !made => Err(networks::is_there(&network.name)),
            _ => Ok(all.into_values().collect()),
        }
    }

    async fn volumes(&self, node: &str, ask: VolumeAsk) -> Result<Vec<VolumeInfo>> {
        volumes::serve(&self.host(node)?.connected()?.docker, ask).await
    }

    fn measured(&self) -> BTreeMap<NodeId, Reading> {
        self.meters.iter().filter_map(|(node, meter)| Some((node.clone(), meter.last()?))).collect()
    }

    async fn stats(&self, node: &str, tasks: &[TaskId]) -> Result<BTreeMap<TaskId, Stats>> {
        let docker = self.host(node)?.connected()?.docker;
        let container = |task: &TaskId| self.tasks.place(task).map(|(_, container)| (*task, container));
        Ok(stats::of(&docker, tasks.iter().filter_map(container).collect()).await)
    }

    async fn probe(&self, ask: ProbeAsk) -> Result<Probed> {
        let (host, id) = self.tasks.place(&ask.task).ok_or_else(|| no_container(&ask.task))?;
        let host = self.host(&host)?;
        exec::probe(&host.address, &host.connected()?.docker, &id, &ask).await
    }

    async fn verify_login(&self, login: &Login) -> Result<()> {
        let mut there: Vec<_> =
            self.hosts.values().filter_map(|host| Some((&host.address, host.connected().ok()?.docker))).collect();
        there.sort_by_key(|(address, _)| !address.is_local());
        credentials::verify(there, login).await
    }

    async fn exec(&self, task: &TaskId, command: &[String], timeout: Duration) -> Result<ExecResult> {
        let (host, id) = self.tasks.place(task).ok_or_else(|| no_container(task))?;
        let host = self.host(&host)?;
        exec::run(&host.address, &host.connected()?.docker, format!("task {task}"), &id, command, timeout).await
    }
}

fn no_container(task: &TaskId) -> Error {
    Error::new(Kind::Unavailable, format!("task {task}"), "has no container")
}

impl DockerEngine {
    // Where the output of tasks is; those whose host is away have none for now.
    fn places(&self, tasks: &[TaskId]) -> Vec<logs::Source> {
        let source = |task: &TaskId| {
            let (connection, container) = self.place(task).ok().flatten()?;
            Some(logs::Source { task: *task, docker: connection.docker, of: logs::Of::Container(container) })
        };
        tasks.iter().filter_map(source).collect()
    }
}
