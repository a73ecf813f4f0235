//! The swarm engine: each replica is one Swarm service with one replica, pinned to its node. The Engine API cannot
//! assign a task to a node, and like this every replica has a revision and a node of its own.

pub mod host;
pub mod join;
mod native;
pub mod nodes;
mod objects;
mod pulse;
mod restore;
mod spec;
mod watch;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use async_trait::async_trait;
use bollard::Docker;
use tokio::sync::{Notify, mpsc};

use self::nodes::Nodes;
use super::docker::spec as spec_of;
use super::docker::tasks::Tasks;
use super::docker::{Address, credentials, logs, trouble};
use super::hosts::{ExecAsk, Hosts, ProbeAsk, Probed};
use super::meter::Reading;
use super::{Engine, ExecResult, LogLine, LogPosition, LogQuery, Moves, Observed, Sight, StartRequest};
use crate::model::check::{CheckSpec, OnFail};
use crate::model::container::Pull;
use crate::model::id::{NodeId, TaskId};
use crate::model::moves::ImageMove;
use crate::model::node::{ImagePrune, Node, NodeUpdate, PrunedImages};
use crate::model::objects::{NetworkAsk, NetworkInfo, VolumeAsk, VolumeInfo};
use crate::model::registry::Login;
use crate::model::service::ServiceSpec;
use crate::model::stats::Stats;
use crate::model::units::Duration;
use crate::model::{Error, Kind, Result, fault};

/// How the engine is set up.
#[derive(Clone)]
pub struct SwarmOptions {
    /// The cluster's name and its store's id: services of another one are not ours.
    pub cluster: String,
    /// The Docker Engine of this host, which has to be a manager.
    pub address: Address,
    /// Who acts on the other hosts, where anybody does.
    pub hosts: Option<Arc<dyn Hosts>>,
}

/// Runs tasks as services of a Swarm.
pub struct SwarmEngine {
    shared: Arc<Shared>,
    logs: logs::Followed,
}

struct Shared {
    docker: Docker,
    address: Address,
    cluster: String,
    // What the Docker Engine of this host takes by itself, and so do the others of most Swarms.
    log_driver: Option<String>,
    nodes: Arc<Nodes>,
    tasks: Arc<Tasks>,
    // There may be news: a service was made or removed.
    stirred: Notify,
    hosts: Option<Arc<dyn Hosts>>,
    // Services that were changed, by whomever, and were not looked at since.
    touched: std::sync::Mutex<restore::Touched>,
    // Since when tasks wait for room on their nodes.
    without_room: std::sync::Mutex<BTreeMap<TaskId, tokio::time::Instant>>,
    // Held for a start, which may need a secret before its service names it; taken whole to clear them up.
    files: tokio::sync::RwLock<Option<std::time::Instant>>,
}

/// How often what no service reads any more is cleared up.
const CLEAR_UP: std::time::Duration = std::time::Duration::from_secs(600);

/// Whether the Docker Engine at `address` is a manager of a Swarm.
pub async fn manages(address: &Address) -> bool {
    let asked = async { address.client().await.ok()?.info().await.ok() };
    match tokio::time::timeout(std::time::Duration::from_secs(3), asked).await {
        Ok(Some(info)) => info.swarm.and_then(|swarm| swarm.control_available) == Some(true),
        _ => false,
    }
}

/// Removes what a cluster without services has left: services of ended tasks, and the secrets and configs that they read.
pub async fn clear(address: &Address, cluster: &str) -> Result<()> {
    let failed = |error| trouble::error(format!("Docker Engine {}", address.url), "connect to it", &error);
    let docker = address.client().await?.negotiate_version().await.map_err(failed)?;
    let filters =
        std::collections::HashMap::from([("label".to_owned(), vec![format!("{}={cluster}", spec_of::CLUSTER)])]);
    let options = bollard::query_parameters::ListServicesOptions { filters: Some(filters), status: None };
    let listed = docker.list_services(Some(options)).await;
    let listed = listed.map_err(|error| trouble::error("Swarm", "list its services", &error))?;
    for id in listed.into_iter().filter_map(|service| service.id) {
        match docker.delete_service(&id).await {
            Err(error) if !trouble::is_status(&error, 404) => {
                return Err(trouble::error(format!("Swarm service {id}"), "remove it", &error));
            }
            _ => {}
        }
    }
    objects::prune_files(&docker, cluster).await
}

impl SwarmEngine {
    /// Connects, and takes back what runs in the Swarm.
    pub async fn open(options: SwarmOptions) -> Result<Self> {
        let subject = || format!("Docker Engine {}", options.address.url);
        let failed = |act: &str, error| trouble::error(subject(), act, &error);
        let docker = options.address.client().await?;
        let docker = docker.negotiate_version().await.map_err(|error| failed("connect to it", error))?;
        let info = docker.info().await.map_err(|error| failed("ask it", error))?;
        let swarm = info.swarm.unwrap_or_default();
        if swarm.control_available != Some(true) {
            let message = match swarm.node_id.filter(|id| !id.is_empty()) {
                Some(_) => "is a worker of a Swarm",
                None => "is not part of a Swarm",
            };
            return Err(Error::new(Kind::Conflict, subject(), message)
                .help("the swarm engine needs a manager: docker swarm init, or run the daemon on a manager"));
        }
        let address = swarm.node_addr.as_deref().and_then(|address| address.parse().ok());
        let nodes = Nodes::open(&docker, (swarm.node_id.unwrap_or_default(), address)).await?;
        let shared = Arc::new(Shared {
            docker,
            address: options.address.clone(),
            cluster: options.cluster,
            log_driver: info.logging_driver,
            nodes: nodes.clone(),
            tasks: Arc::new(Tasks::default()),
            stirred: Notify::new(),
            hosts: options.hosts.clone(),
            touched: std::sync::Mutex::default(),
            without_room: std::sync::Mutex::default(),
            files: tokio::sync::RwLock::new(None),
        });
        // All that is there before anybody asks.
        shared.take_stock().await?;
        let changed = Arc::new(Notify::new());
        tokio::spawn(nodes.follow(changed.clone(), options.hosts.clone()));
        if let Some(hosts) = options.hosts {
            // From now on, whenever the task below has its turn.
            let seen = hosts.observe();
            tokio::spawn(shared.clone().hear(seen));
        }
        tokio::spawn(shared.clone().listen(changed));
        tokio::spawn(shared.clone().follow());
        Ok(SwarmEngine { shared, logs: logs::Followed::default() })
    }

    fn sources(&self, tasks: &[TaskId]) -> Vec<logs::Source> {
        let source = |task: &TaskId| {
            let (_, service) = self.shared.tasks.place(task)?;
            Some(logs::Source { task: *task, docker: self.shared.docker.clone(), of: logs::Of::Service(service) })
        };
        tasks.iter().filter_map(source).collect()
    }
}

impl Shared {
    async fn begin(&self, request: &StartRequest) -> Result<()> {
        let subject = format!("task {}.{}", request.service, request.slot);
        let image = request.spec.image.clone().unwrap_or_default();
        // It may take a while, and others want what is held from here on.
        let credentials = credentials::of(request.login.as_ref(), &image).await;
        let _held = self.files.read().await;
        for network in &request.spec.networks {
            objects::ensure_network(&self.docker, &self.cluster, &network.name).await?;
        }
        let files = objects::ensure_files(&self.docker, &self.cluster, request).await?;
        // The service's own name and slot are filled in here, its node's by Swarm.
        let filled = Arc::new(super::template::expand(request, None));
        let request = StartRequest { spec: filled, ..request.clone() };
        let mut body = spec::service(&request, &self.cluster, &files, self.log_driver.as_deref());
        let fingerprint = restore::of_request(&body)?;
        body.labels.get_or_insert_default().insert(restore::SPEC.to_owned(), fingerprint);
        fault::point("swarm.before-create");
        let name = body.name.clone().unwrap_or_default();
        let id = match self.docker.create_service(body, credentials).await {
            Ok(made) => made.id.unwrap_or(name),
            // The name is unique to the task: an attempt before this one has made it.
            Err(error) if trouble::is_status(&error, 409) => {
                let made =
                    self.docker.inspect_service(&name, None::<bollard::query_parameters::InspectServiceOptions>).await;
                let made =
                    made.map_err(|error| trouble::error(&subject, "find its Swarm service", &error).retry(true))?;
                made.id.unwrap_or(name)
            }
            Err(error) => return Err(trouble::error(subject, "make its Swarm service", &error)),
        };
        fault::point("swarm.after-create");
        self.tasks.found(&request.task, &request.node, &id);
        if self.tasks.is_forbidden(&request.task) {
            self.remove_service(&request.task, &id).await?;
        }
        self.stirred.notify_one();
        Ok(())
    }

    // Now and then, and never while a start is on its way to need one.
    async fn clear_up(&self) -> Result<()> {
        let mut last = self.files.write().await;
        if last.is_some_and(|last| last.elapsed() < CLEAR_UP) {
            return Ok(());
        }
        *last = Some(std::time::Instant::now());
        objects::prune_files(&self.docker, &self.cluster).await
    }

    // Who acts on that node.
    fn host_of(&self, node: &str, subject: &str) -> Result<&Arc<dyn Hosts>> {
        let there = |hosts: &&Arc<dyn Hosts>| hosts.agents().borrow().get(node).is_some_and(|agent| agent.connected);
        self.hosts.as_ref().filter(there).ok_or_else(|| {
            let name = self.nodes.hostname(node).unwrap_or_else(|| node.to_owned());
            Error::new(Kind::Unsupported, subject.to_owned(), format!("needs an agent on node \"{name}\""))
                .help("`neap join-token worker` shows how to start one there")
        })
    }

    // Who acts on the node of a task, and which that is.
    fn beside(&self, task: &TaskId) -> Result<(String, &Arc<dyn Hosts>)> {
        let subject = format!("task {task}");
        let place = self.tasks.place(task);
        let (node, _) = place.ok_or_else(|| Error::new(Kind::Unavailable, subject.clone(), "has no container"))?;
        let hosts = self.host_of(&node, &subject)?;
        Ok((node, hosts))
    }

    async fn remove_service(&self, task: &TaskId, id: &str) -> Result<()> {
        match self.docker.delete_service(id).await {
            Ok(()) => Ok(()),
            Err(error) if trouble::is_status(&error, 404) => Ok(()),
            Err(error) => {
                let error = trouble::error(format!("task {task}"), "remove its Swarm service", &error);
                let retry = error.retry || error.kind == Kind::Internal;
                Err(error.retry(retry))
            }
        }
    }
}

#[async_trait]
impl Engine for SwarmEngine {
    fn name(&self) -> &'static str {
        "swarm"
    }

    fn accepts(&self, spec: &mut ServiceSpec) -> Result<()> {
        super::docker::accepts(spec, "swarm")?;
        let wrong = |message: String| Error::new(Kind::Unsupported, spec.subject(), message);
        if spec.platform.is_some() {
            return Err(wrong("platform: Swarm takes the one of each node".into()));
        }
        if spec.pull == Pull::Never {
            return Err(wrong("pull: a host of a Swarm pulls what it lacks; never cannot be had".into()));
        }
        if let Some(network) = spec.networks.iter().find(|network| network.name == "none") {
            return Err(wrong(format!("networks: \"{}\" is no network of a Swarm", network.name)));
        }
        if let Some((name, _)) =
            spec.ports.iter().find(|(_, port)| port.host_port().is_some() && port.address.is_some())
        {
            return Err(wrong(format!("ports.{name}.address: Swarm opens a port of mode host on all addresses")));
        }
        let images_own = |check: &&CheckSpec| !check.disable && !check.asks() && check.exec.is_empty();
        if let Some(check) = spec.check.as_ref().filter(images_own)
            && check.timing(None).on_fail != OnFail::Restart
        {
            let message = "check.on_fail: a Swarm ends a replica whose image's own HEALTHCHECK fails";
            return Err(wrong(message.into()).help("give the command: check.exec, --health-cmd; Neap runs it then"));
        }
        if let Some(check) = spec.check.as_mut().filter(|check| !check.exec.is_empty()) {
            // Swarm ends a task whose own check fails. For another outcome the check is run beside it, by the agent of its
            // node.
            check.by_engine = check.timing(None).on_fail == OnFail::Restart;
        }
        Ok(())
    }

    fn measured(&self) -> BTreeMap<NodeId, Reading> {
        self.shared.hosts.as_ref().map(|hosts| hosts.measured()).unwrap_or_default()
    }

    fn nodes(&self) -> tokio::sync::watch::Receiver<Arc<Vec<Node>>> {
        self.shared.nodes.known.subscribe()
    }

    async fn update_node(&self, id: &str, update: &NodeUpdate) -> Result<bool> {
        self.shared.nodes.update(id, update).await.map(|()| true)
    }

    async fn remove_node(&self, id: &str, force: bool) -> Result<()> {
        self.shared.nodes.remove(id, force).await
    }

    async fn start(&self, request: StartRequest) -> Result<()> {
        if !self.shared.tasks.begin_start(&request.task, &request.node) {
            return Ok(());
        }
        let result = self.shared.begin(&request).await;
        self.shared.tasks.end_start(&request.task);
        // Without a quorum, or a leader, nothing is refused for good.
        result.map_err(|error| {
            let cause = error.cause.clone().unwrap_or_default();
            let passing = ["leader", "deadline", "Unavailable", "transport"].iter().any(|sign| cause.contains(sign));
            let retry = error.retry || passing;
            error.retry(retry)
        })
    }

    // The grace period is the service's own.
    async fn stop(&self, task: &TaskId, _: Duration) -> Result<bool> {
        let Some((_, service)) = self.shared.tasks.forbid(task) else { return Ok(false) };
        self.shared.remove_service(task, &service).await?;
        self.shared.stirred.notify_one();
        Ok(true)
    }

    async fn remove(&self, task: &TaskId) -> Result<()> {
        if let Some((_, service)) = self.shared.tasks.place(task) {
            self.shared.remove_service(task, &service).await?;
        }
        self.shared.tasks.forget(task);
        let due = self.shared.files.try_read().is_ok_and(|last| last.is_none_or(|last| last.elapsed() >= CLEAR_UP));
        if due {
            let shared = self.shared.clone();
            tokio::spawn(async move {
                if let Err(error) = shared.clear_up().await {
                    tracing::debug!(%error, "secrets and configs are cleared up later");
                }
            });
        }
        Ok(())
    }

    async fn prune(&self, keep: &BTreeSet<TaskId>) -> Result<()> {
        for task in self.shared.tasks.unwanted(keep) {
            self.remove(&task).await?;
        }
        self.shared.clear_up().await
    }

    async fn list(&self) -> Result<Vec<Observed>> {
        Ok(self.shared.tasks.list())
    }

    fn observe(&self) -> mpsc::UnboundedReceiver<Sight> {
        self.shared.tasks.observe()
    }

    async fn log_end(&self, tasks: &[TaskId]) -> Result<LogPosition> {
        logs::ends(self.sources(tasks)).await
    }

    async fn logs(
        &self,
        tasks: &[TaskId],
        query: LogQuery,
        until: Option<LogPosition>,
    ) -> Result<mpsc::Receiver<Result<Vec<LogLine>>>> {
        Ok(logs::read(self.sources(tasks), query, until))
    }

    async fn follow(&self, tasks: &[TaskId], position: &mut LogPosition) -> Result<Vec<LogLine>> {
        Ok(self.logs.take(self.sources(tasks), position))
    }

    async fn stats(&self, node: &str, tasks: &[TaskId]) -> Result<BTreeMap<TaskId, Stats>> {
        self.shared.host_of(node, "statistics")?.stats(node, tasks.to_vec()).await
    }

    async fn verify_login(&self, login: &Login) -> Result<()> {
        credentials::verify(vec![(&self.shared.address, self.shared.docker.clone())], login).await
    }

    async fn probe(&self, ask: ProbeAsk) -> Result<Probed> {
        let (node, hosts) = self.shared.beside(&ask.task)?;
        hosts.probe(&node, ask).await
    }

    async fn exec(&self, task: &TaskId, command: &[String], timeout: Duration) -> Result<ExecResult> {
        let (node, hosts) = self.shared.beside(task)?;
        hosts.exec(&node, ExecAsk { task: *task, command: command.to_vec(), timeout }).await
    }

    async fn networks(&self, ask: NetworkAsk) -> Result<Vec<NetworkInfo>> {
        objects::networks(&self.shared.docker, &self.shared.cluster, ask).await
    }

    async fn volumes(&self, node: &str, ask: VolumeAsk) -> Result<Vec<VolumeInfo>> {
        self.shared.host_of(node, "volumes")?.volumes(node, ask).await
    }

    fn natives(&self) -> Option<&dyn super::native::Natives> {
        Some(&*self.shared)
    }

    async fn prune_images(&self, node: &str, ask: ImagePrune) -> Result<PrunedImages> {
        self.shared.host_of(node, "images")?.prune_images(node, ask).await
    }

    async fn move_image(&self, node: &str, ask: ImageMove) -> Result<Moves> {
        self.shared.host_of(node, "images")?.move_image(node, ask).await
    }
}
