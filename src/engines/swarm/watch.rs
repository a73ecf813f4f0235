//! What becomes of our tasks in the Swarm. Managers tell of changes to services and nodes by events, but not of tasks:
//! those are listed, in one request for all, often while something is under way and seldom while nothing is.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use bollard::models::{EndpointPortConfig, EventMessageTypeEnum, Task, TaskState};
use bollard::query_parameters::{
    EventsOptions, InspectServiceOptions, ListServicesOptions, ListTasksOptions, UpdateServiceOptions,
};
use futures_util::StreamExt;
use tokio::sync::{Notify, mpsc};

use super::Shared;
use super::restore::CHANGED;
use crate::engines::docker::{spec, trouble};
use crate::engines::{Observed, ObservedState};
use crate::model::clock::Timestamp;
use crate::model::error::shorten;
use crate::model::id::{NodeId, TaskId};
use crate::model::name::Name;
use crate::model::node::{Node, NodeState};
use crate::model::task::{Exit, Health};
use crate::model::{Error, Result};

/// How often tasks are listed while some are under way, and while none is.
const UNDER_WAY: Duration = Duration::from_millis(100);
const AT_REST: Duration = Duration::from_secs(1);
/// The same while none is, and every node that is up tells by itself what its containers do; what is done to services, events
/// tell. Well below the time after which Swarm restarts what has ended: until then the list has to have shown it.
const QUIET: Duration = Duration::from_secs(3);
/// The same while some are under way and every node that is up tells by itself what its containers do: the list is then
/// for what never becomes a container.
const ALL_TELL: Duration = Duration::from_millis(500);
/// How many times as long as a list took nothing is asked.
const SPARED: u32 = 3;
/// What Swarm says of a task whose node has no room for it, or not its port, and how long that may take: what is being
/// removed there makes room in a moment.
const NO_ROOM: [&str; 2] = ["insufficient resources", "host-mode port already in use"];
/// The same where no waiting helps.
const UNFIT: [&str; 2] = ["missing plugin", "unsupported platform"];
const ROOM_WITHIN: Duration = Duration::from_secs(5);
/// What Swarm says of a task that ran and ended with an error.
const EXITED: &str = "task: non-zero exit";
/// What is said of a task that Swarm ended because its own check failed.
pub const FAILED_CHECK: &str = "ended by Swarm: it failed its check";
/// What is said of one whose service is not there any more.
const REMOVED: &str = "its Swarm service was removed by somebody else";
/// What is said of one whose service is to have no replica any more, by somebody else or by a daemon before this one.
const NONE_LEFT: &str = "its Swarm service was scaled to no replica";
/// How much of what a host says of a replica is taken in: warnings, and ports.
const WARNINGS: usize = 8;
const PORTS: usize = 256;
/// The wait before an event stream that ended is opened again.
const AGAIN: Duration = Duration::from_millis(500);
/// The longest wait before a service is held back anew: less than Swarm waits before it restarts.
const HOLD_BACK: Duration = Duration::from_secs(3);

impl Shared {
    fn filter(&self) -> HashMap<String, Vec<String>> {
        HashMap::from([("label".to_owned(), vec![format!("{}={}", spec::CLUSTER, self.cluster)])])
    }

    /// Lists tasks for ever.
    pub async fn follow(self: Arc<Self>) {
        let mut failed = false;
        let mut took = Duration::ZERO;
        let mut put_right = None;
        loop {
            // A list of many tasks costs the manager more than the news are worth: it gets most of the time for its work.
            let (hurried, all_tell) = (self.tasks.under_way(), self.all_tell());
            let wait = match (hurried, all_tell) {
                (false, false) => AT_REST,
                (false, true) if !failed => QUIET,
                (false, true) => AT_REST,
                (true, true) => ALL_TELL,
                (true, false) => UNDER_WAY.max(took * SPARED).min(AT_REST),
            };
            tokio::time::sleep(if all_tell { ALL_TELL / 2 } else { UNDER_WAY / 4 }).await;
            let _ = tokio::time::timeout(wait, self.stirred.notified()).await;
            let begun = tokio::time::Instant::now();
            // First what others have changed: what ends by that is no failure.
            let changed = self.put_right(&mut put_right).await;
            let looked = self.look().await.and(changed);
            took = begun.elapsed();
            match looked {
                Ok(()) => failed = false,
                Err(error) if !failed => {
                    tracing::warn!(%error, "what the Swarm's tasks do is not known for now");
                    failed = true;
                }
                Err(_) => {}
            }
        }
    }

    /// Hears from the hosts themselves for ever: earlier than through the managers.
    pub async fn hear(self: Arc<Self>, mut seen: mpsc::UnboundedReceiver<(NodeId, Observed)>) {
        while let Some((node, observed)) = seen.recv().await {
            // An agent has a say in what is on its own node, and in nothing else.
            let Some((place, service)) = self.tasks.place(&observed.task) else { continue };
            if place != *node {
                continue;
            }
            let observed = within_bounds(observed, self.nodes.address(&node));
            let ended = matches!(observed.state, ObservedState::Ended { .. });
            if ended && !self.tasks.is_forbidden(&observed.task) && !self.tasks.is_over(&observed.task) {
                tokio::spawn(self.clone().report_end(observed, service));
            } else {
                self.report(observed);
            }
        }
    }

    // An end that nobody here has asked for: the host does not know whether somebody removed the service.
    async fn report_end(self: Arc<Self>, observed: Observed, service: String) {
        let why = async {
            match self.why_nothing_runs(&service).await {
                Some(why) => Some(why),
                None => self.was_changed(&service).await.then_some(CHANGED),
            }
        };
        if let Ok(Some(why)) = tokio::time::timeout(AGAIN, why).await {
            self.tasks.changed(&observed.task, why);
        }
        self.report(observed);
        // Its service is to be held back, and it is the list that tells which attempt it was.
        self.stirred.notify_one();
    }

    // A second word that it runs is no news: the two ways of hearing of it differ in when it began.
    fn report(&self, observed: Observed) {
        if let ObservedState::Running { ports, .. } = &observed.state
            && observed.warnings.is_empty()
            && self.tasks.runs_with(&observed.task, ports)
        {
            return;
        }
        self.tasks.report(observed);
    }

    fn all_tell(&self) -> bool {
        let tells = |node: &Node| node.agent.as_ref().is_some_and(|agent| agent.connected);
        self.nodes.known.borrow().iter().all(|node| node.state == NodeState::Down || tells(node))
    }

    /// Hears of changes to nodes and services for ever.
    pub async fn listen(self: Arc<Self>, nodes_changed: Arc<Notify>) {
        loop {
            let types = ["node", "service"].map(str::to_owned).to_vec();
            let options =
                EventsOptions { filters: Some([("type".to_owned(), types)].into()), ..EventsOptions::default() };
            let mut events = Box::pin(self.docker.events(Some(options)));
            while let Some(Ok(event)) = events.next().await {
                match event.typ {
                    Some(EventMessageTypeEnum::NODE) => nodes_changed.notify_one(),
                    _ => {
                        if event.action.as_deref() == Some("update")
                            && let Some(service) = event.actor.and_then(|actor| actor.id)
                        {
                            self.touch(&service, true);
                        }
                        self.stirred.notify_one();
                    }
                }
            }
            // What it did not tell is found by looking.
            self.tasks.with_container().iter().for_each(|(_, service)| self.touch(service, false));
            nodes_changed.notify_one();
            self.stirred.notify_one();
            tokio::time::sleep(AGAIN).await;
        }
    }

    /// All our services and tasks as they are now.
    pub async fn take_stock(&self) -> Result<()> {
        let options = ListServicesOptions { filters: Some(self.filter()), ..ListServicesOptions::default() };
        let services = self.docker.list_services(Some(options)).await;
        for service in services.map_err(|error| trouble::error("Swarm", "list its services", &error))? {
            let (Some(id), Some(described)) = (service.id, service.spec) else { continue };
            let labels = described.labels.unwrap_or_default();
            let Some(task) = spec::task_of(&labels, &self.cluster) else { continue };
            let pinned = described.task_template.and_then(|template| template.placement?.constraints);
            let node = pinned.iter().flatten().find_map(|constraint| constraint.strip_prefix("node.id=="));
            self.tasks.found(&task, node.unwrap_or_default(), &id);
            // Perhaps while nobody looked.
            self.touch(&id, false);
            self.tasks.report(Observed { task, state: ObservedState::Starting, warnings: Vec::new() });
        }
        self.look().await
    }

    async fn look(&self) -> Result<()> {
        let asked = self.tasks.with_container();
        let options = ListTasksOptions { filters: Some(self.filter()) };
        let tasks = self.docker.list_tasks(Some(options)).await;
        let tasks = tasks.map_err(|error| trouble::error("Swarm", "list its tasks", &error))?;
        let mut attempts: BTreeMap<TaskId, Vec<&Task>> = BTreeMap::new();
        for task in &tasks {
            let template = task.spec.as_ref().and_then(|spec| spec.container_spec.as_ref());
            let labels = template.and_then(|template| template.labels.as_ref());
            if let Some(id) = labels.and_then(|labels| spec::task_of(labels, &self.cluster)) {
                attempts.entry(id).or_default().push(task);
            }
        }
        self.without_room.lock().unwrap_or_else(PoisonError::into_inner).retain(|id, _| attempts.contains_key(id));
        for (id, mut tasks) in attempts {
            tasks.sort_by_key(|task| created(task));
            self.take_in(&id, &tasks).await;
        }
        // Services that were there before this look and have no task any more.
        let with_task: HashSet<&str> = tasks.iter().filter_map(|task| task.service_id.as_deref()).collect();
        for (id, service) in asked {
            if with_task.contains(service.as_str()) || self.tasks.is_over(&id) {
                continue;
            }
            if let Some(why) = self.why_nothing_runs(&service).await {
                if why == REMOVED || self.touched_lately(&service) {
                    self.tasks.changed(&id, why);
                }
                let warnings = if self.tasks.is_forbidden(&id) { Vec::new() } else { vec![why.to_owned()] };
                let state = ObservedState::Ended { exit: Exit::Unknown, finished_at: Timestamp(0) };
                self.tasks.report(Observed { task: id, state, warnings });
            }
        }
        Ok(())
    }

    // Of a service without any task: removed, or held back by whoever led before, or scaled by hand. None of them comes
    // back by itself.
    async fn why_nothing_runs(&self, service: &str) -> Option<&'static str> {
        match self.docker.inspect_service(service, None::<InspectServiceOptions>).await {
            Ok(known) => {
                let mode = known.spec.and_then(|spec| spec.mode);
                let replicas = mode.and_then(|mode| mode.replicated).and_then(|replicated| replicated.replicas);
                (replicas == Some(0)).then_some(NONE_LEFT)
            }
            Err(error) => trouble::is_status(&error, 404).then_some(REMOVED),
        }
    }

    // `tasks`: Swarm's attempts at one of ours, oldest first.
    async fn take_in(&self, id: &TaskId, tasks: &[&Task]) {
        // Surplus that was scaled away says nothing of what is left.
        let is_surplus = |task: &&&Task| task.desired_state == Some(TaskState::REMOVE);
        let kept: Vec<&Task> = tasks.iter().filter(|task| !is_surplus(task)).copied().collect();
        let tasks = if kept.is_empty() { tasks } else { &kept };
        let Some(last) = tasks.last() else { return };
        let is_over = |task: &Task| state(task) > TaskState::RUNNING;
        let running = tasks.iter().rev().find(|task| state(task) == TaskState::RUNNING);
        // Swarm has not begun its own restart yet: what ended is what counts, and the restart is ours to decide.
        let ended = tasks.iter().rev().find(|task| is_over(task));
        let shown = match running {
            Some(running) => running,
            None if state(last) < TaskState::RUNNING => ended.unwrap_or(last),
            None => last,
        };
        let mut warnings = Vec::new();
        let restarts = tasks.iter().filter(|task| task.slot == shown.slot && is_over(task)).count();
        if !is_over(shown) && restarts > 0 {
            warnings.push(format!("restarted by Swarm {restarts} times while no daemon acted"));
        }
        let error = shown.status.as_ref().and_then(|status| status.err.as_deref()).unwrap_or_default();
        if error.starts_with(EXITED) && error.contains("unhealthy") {
            warnings.push(FAILED_CHECK.to_owned());
        }
        let mut observed = Observed { task: *id, state: self.describe(shown), warnings };
        if let Some(state) = self.found_no_place(id, shown) {
            observed.state = state;
        }
        // On the managers' word alone, though the host's own comes sooner: a task that Swarm still has for running would be
        // removed with what it wrote.
        // So is what was told to be over by the host, once the Swarm has begun another in its place.
        let over = (self.tasks.is_over(id) && tasks.len() > 1)
            || matches!(
                observed.state,
                ObservedState::Ended { .. } | ObservedState::Rejected { .. } | ObservedState::NoRoom { .. }
            );
        // Asked before it is held back, which is a change too.
        let service = shown.service_id.as_deref().unwrap_or_default();
        let news = over && !self.tasks.is_forbidden(id) && !self.tasks.is_over(id);
        if news && self.was_changed(service).await {
            self.tasks.changed(id, CHANGED);
        }
        if over && !self.tasks.is_forbidden(id) && self.tasks.begin_hold(id) {
            self.hold_back(id, shown.service_id.clone().unwrap_or_default());
        }
        self.report(observed);
    }

    // Neap knows of its own tasks what they take, not of others': the Swarm does, and would let one wait for ever.
    fn found_no_place(&self, id: &TaskId, task: &Task) -> Option<ObservedState> {
        let said = task.status.as_ref().and_then(|status| status.err.as_deref()).unwrap_or_default();
        let mut waiting = self.without_room.lock().unwrap_or_else(PoisonError::into_inner);
        let says = |signs: &[&str]| signs.iter().any(|sign| said.contains(sign));
        if state(task) != TaskState::PENDING || !(says(&NO_ROOM) || says(&UNFIT)) {
            waiting.remove(id);
            return None;
        }
        let since = *waiting.entry(*id).or_insert_with(tokio::time::Instant::now);
        if since.elapsed() < ROOM_WITHIN {
            return None;
        }
        Some(match says(&NO_ROOM) {
            true => ObservedState::NoRoom { reason: format!("the Swarm finds no room for it on its node: {said}") },
            false => ObservedState::Rejected { reason: said.to_owned() },
        })
    }

    fn describe(&self, task: &Task) -> ObservedState {
        let status = task.status.clone().unwrap_or_default();
        let said = status.err.clone().filter(|text| !text.is_empty()).or(status.message.clone()).unwrap_or_default();
        let at = status.timestamp.as_deref().and_then(crate::engines::docker::container::read_time).unwrap_or_default();
        let container = status.container_status.clone().unwrap_or_default();
        match state(task) {
            TaskState::RUNNING => ObservedState::Running {
                pid: container.pid.and_then(|pid| u32::try_from(pid).ok()).filter(|pid| *pid > 0),
                ports: self.ports(task),
                started_at: at,
                health: Health::None,
                said: None,
            },
            TaskState::READY | TaskState::STARTING => ObservedState::Starting,
            TaskState::REJECTED => ObservedState::Rejected { reason: said },
            TaskState::COMPLETE | TaskState::SHUTDOWN | TaskState::FAILED => {
                // An image that cannot be had, a command that is not there: it never ran.
                let error = status.err.unwrap_or_default();
                if !error.is_empty() && !error.starts_with(EXITED) {
                    return ObservedState::Rejected { reason: error };
                }
                let code = container.exit_code.and_then(|code| i32::try_from(code).ok());
                ObservedState::Ended { exit: code.map_or(Exit::Unknown, Exit::Code), finished_at: at }
            }
            TaskState::ORPHANED | TaskState::REMOVE => ObservedState::Ended { exit: Exit::Unknown, finished_at: at },
            _ => ObservedState::Preparing { said },
        }
    }

    // The host chose each replica's ports; the task's status tells them.
    fn ports(&self, task: &Task) -> BTreeMap<String, String> {
        let template = task.spec.as_ref().and_then(|spec| spec.container_spec.as_ref());
        let labels = template.and_then(|template| template.labels.clone()).unwrap_or_default();
        let node = task.node_id.as_deref().unwrap_or_default();
        let Some(address) = self.nodes.address(node) else { return BTreeMap::new() };
        let status = task.status.as_ref().and_then(|status| status.port_status.as_ref()?.ports.clone());
        let found = spec::ports_of(&labels).into_iter().filter_map(|named| {
            let is_it = |port: &&EndpointPortConfig| {
                port.target_port == Some(i64::from(named.target))
                    && port.protocol == Some(super::spec::protocol(named.protocol))
                    && named.host.is_none_or(|host| port.published_port == Some(i64::from(host)))
            };
            let port = status.iter().flatten().find(is_it)?;
            let published = u16::try_from(port.published_port?).ok()?;
            Some((named.name, named.protocol.told(std::net::SocketAddr::new(address, published).to_string())))
        });
        found.collect()
    }

    // Keeps Swarm from restarting what ended, and what it wrote where it can be read.
    pub(super) fn hold_back(&self, task: &TaskId, service: String) {
        let (docker, task) = (self.docker.clone(), *task);
        tokio::spawn(async move {
            let mut wait = UNDER_WAY;
            loop {
                match scale_to_zero(&docker, &service).await {
                    Ok(()) => return,
                    Err(error) if error.kind == crate::model::Kind::NotFound => return,
                    Err(error) => tracing::debug!(%task, %error, "Swarm is told again not to restart what ended"),
                }
                tokio::time::sleep(wait).await;
                wait = (wait * 2).min(HOLD_BACK);
            }
        });
    }
}

async fn scale_to_zero(docker: &bollard::Docker, service: &str) -> Result<()> {
    let failed = |error: bollard::errors::Error| {
        let conflict = trouble::said(&error).contains("out of sequence");
        let error: Error = trouble::error(format!("Swarm service {service}"), "hold it back", &error);
        let retry = error.retry || conflict;
        error.retry(retry)
    };
    let known = docker.inspect_service(service, None::<InspectServiceOptions>).await.map_err(failed)?;
    let version = known.version.and_then(|version| version.index).unwrap_or_default();
    let mut spec = known.spec.unwrap_or_default();
    if let Some(replicated) = spec.mode.as_mut().and_then(|mode| mode.replicated.as_mut()) {
        if replicated.replicas == Some(0) {
            return Ok(());
        }
        replicated.replicas = Some(0);
    }
    let options = UpdateServiceOptions {
        version: i32::try_from(version).unwrap_or_default(),
        registry_auth_from: "spec".into(),
        rollback: None,
    };
    docker.update_service(service, spec, options, None).await.map(drop).map_err(failed)
}

/// How far a task is.
pub fn state(task: &Task) -> TaskState {
    task.status.as_ref().and_then(|status| status.state).unwrap_or(TaskState::NEW)
}

/// When it was made; a time that cannot be read sorts first.
pub fn created(task: &Task) -> Option<jiff::Timestamp> {
    task.created_at.as_deref().and_then(|time| time.parse().ok())
}

// What a host says goes into records and tables: so much of it, and with that host's own address, whatever it says.
fn within_bounds(mut observed: Observed, address: Option<IpAddr>) -> Observed {
    observed.warnings.truncate(WARNINGS);
    observed.warnings.iter_mut().for_each(|warning| *warning = shorten(warning));
    match &mut observed.state {
        ObservedState::Running { ports, said, .. } => {
            *said = said.as_deref().map(shorten);
            ports.retain(|name, _| name.parse::<Name>().is_ok());
            let own = |told: &str| {
                let (at, protocol) = told.split_once('/').map_or((told, None), |(at, protocol)| (at, Some(protocol)));
                let port = at.rsplit_once(':')?.1.parse::<u16>().ok()?;
                let at = match address {
                    Some(address) => SocketAddr::new(address, port).to_string(),
                    None => at.parse::<SocketAddr>().ok()?.to_string(),
                };
                match protocol {
                    None => Some(at),
                    Some("udp") => Some(format!("{at}/udp")),
                    Some(_) => None,
                }
            };
            *ports = ports.iter().filter_map(|(name, told)| Some((name.clone(), own(told)?))).take(PORTS).collect();
        }
        ObservedState::Preparing { said: text }
        | ObservedState::Rejected { reason: text }
        | ObservedState::NoRoom { reason: text } => *text = shorten(text),
        ObservedState::Starting | ObservedState::Ended { .. } => {}
    }
    observed
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_host_speaks_of_itself_and_not_for_long() {
        let ports = [
            ("http", "169.254.169.254:80"),
            ("dns", "127.0.0.1:53/udp"),
            ("v6", "[::1]:8080"),
            ("odd", "nothing"),
            ("not a name", "10.0.0.1:1"),
        ];
        let observed = Observed {
            task: TaskId::numbered(1),
            state: ObservedState::Running {
                pid: None,
                ports: ports.map(|(name, at)| (name.to_owned(), at.to_owned())).into(),
                started_at: Timestamp(1),
                health: Health::None,
                said: Some("x".repeat(1 << 20)),
            },
            warnings: vec!["y".repeat(1 << 20); 100],
        };
        let taken = within_bounds(observed.clone(), Some([10, 0, 0, 7].into()));
        assert_eq!(taken.warnings.len(), WARNINGS);
        assert!(serde_json::to_vec(&taken.warnings).unwrap().len() < 100_000);
        let ObservedState::Running { ports, said, .. } = taken.state else { panic!("{taken:?}") };
        assert!(said.unwrap().len() < 10_000);
        let expected = [("dns", "10.0.0.7:53/udp"), ("http", "10.0.0.7:80"), ("v6", "10.0.0.7:8080")];
        assert_eq!(ports, expected.map(|(name, at)| (name.to_owned(), at.to_owned())).into());
        // Where the Swarm does not tell an address, the host's own is all there is.
        let ObservedState::Running { ports, .. } = within_bounds(observed, None).state else { panic!() };
        assert_eq!(ports["v6"], "[::1]:8080");
    }
}
