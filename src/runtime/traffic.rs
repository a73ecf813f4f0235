//! Keeps the balancer's table as the world says, and stops tasks only when nobody is sent to them any more: withdraw,
//! confirm, drain, stop.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt;
use imbl::OrdMap;
use tokio::sync::{mpsc, oneshot, watch};

use super::certificates::Certificates;
use super::status::Confirmed;
use super::{Message, Parts, catalog};
use crate::model::clock::Timestamp;
use crate::model::event::What;
use crate::model::id::TaskId;
use crate::model::port::PortSpec;
use crate::model::task::{Task, TaskState};
use crate::model::{Error, Kind, fault};
use crate::network::balancer::Balancer;
use crate::network::table::{Front, Status, Table};
use crate::scheduler::routing;
use crate::scheduler::world::{Note, World};

/// How often a drain is looked at.
const DRAIN: Duration = Duration::from_millis(50);
/// How often a balancer that failed, or could not open a port, is asked again.
const RETRY: Duration = Duration::from_millis(500);
/// How many are told to stop at a time.
const STOPS: usize = 16;
/// How long each of them may take to be told.
const STOP_WITHIN: Duration = Duration::from_secs(5);
/// How often in a row a table is overtaken at once.
const OVERTAKEN: u32 = 5;
/// How often what is counted is told on, at most.
const COUNTS: Duration = Duration::from_secs(1);
/// How often a balancer is looked at that gives no cause.
const WATCH: Duration = Duration::from_secs(5);

/// What others ask of it.
pub enum Request {
    /// End the balancer.
    StopBalancer(oneshot::Sender<()>),
}

struct Traffic {
    parts: Arc<Parts>,
    messages: mpsc::UnboundedSender<Message>,
    confirm: watch::Sender<Confirmed>,
    feeder: catalog::Shared,
    balancer: Box<dyn Balancer>,
    table: Table,
    pushed: bool,
    // How often in a row a later table than the one sent was answered.
    overtaken: u32,
    looked: bool,
    status: Status,
    told: BTreeSet<TaskId>,
    // All tasks at the turn before, and those that are to be told to stop.
    last: OrdMap<TaskId, Arc<Task>>,
    leaving: BTreeSet<TaskId>,
    // Nodes whose balancer does not answer, and of which that was said.
    missed: BTreeSet<String>,
    certificates: Certificates,
    // Routes with a certificate that cannot be used, and why.
    unread: Arc<BTreeMap<String, String>>,
    // When what is counted was told on.
    counted: Timestamp,
    // Who may still be sent requests by some balancer's routes.
    routed: BTreeSet<TaskId>,
}

/// Follows the world for as long as it is published.
pub fn spawn(
    parts: Arc<Parts>,
    balancer: Box<dyn Balancer>,
    mut seen: watch::Receiver<Arc<World>>,
    messages: mpsc::UnboundedSender<Message>,
    confirm: watch::Sender<Confirmed>,
    feeder: catalog::Shared,
) -> mpsc::UnboundedSender<Request> {
    let (sender, mut requests) = mpsc::unbounded_channel();
    let mut traffic = Traffic {
        messages,
        confirm,
        feeder,
        balancer,
        // Versions go on where an earlier daemon's stopped: the balancer does not go back.
        table: Table { version: parts.clock.wall().0, ..Table::default() },
        pushed: false,
        overtaken: 0,
        looked: false,
        status: Status::default(),
        told: BTreeSet::new(),
        last: OrdMap::new(),
        leaving: BTreeSet::new(),
        missed: BTreeSet::new(),
        certificates: Certificates::default(),
        unread: Arc::default(),
        counted: Timestamp(0),
        routed: BTreeSet::new(),
        parts,
    };
    tokio::spawn(async move {
        loop {
            let world = seen.borrow_and_update().clone();
            let wait = traffic.turn(&world).await;
            tokio::select! {
                biased;
                request = requests.recv() => match request {
                    Some(Request::StopBalancer(done)) => {
                        if let Err(error) = traffic.balancer.stop().await {
                            tracing::warn!(%error, "the balancer could not be stopped");
                        }
                        let _ = done.send(());
                        return;
                    }
                    None => return,
                },
                changed = seen.changed() => if changed.is_err() { return },
                () = traffic.balancer.gone() => {}
                () = tokio::time::sleep(wait) => {}
            }
        }
    });
    sender
}

impl Traffic {
    // Does what can be done now; returns when to look again.
    async fn turn(&mut self, world: &World) -> Duration {
        let mut wanted = routing::table(world);
        let unread = self.certificates.fill(&self.parts, &mut wanted);
        if *self.unread != unread {
            self.unread = Arc::new(unread);
        }
        for (id, task) in world.tasks_since(&self.last) {
            let is_leaving =
                |task: &&Arc<Task>| task.stop.is_some() && !task.state.is_final() && task.state < TaskState::Stopping;
            match task.filter(is_leaving) {
                Some(_) => self.leaving.insert(id),
                None => self.leaving.remove(&id),
            };
        }
        self.last = world.tasks.clone();
        let stopping: Vec<Arc<Task>> = self.leaving.iter().filter_map(|id| world.tasks.get(id)).cloned().collect();
        self.told.retain(|id| world.tasks.get(id).is_some_and(|task| !task.state.is_final()));
        // A host without published ports needs no balancer. One that runs has the table of a daemon before this one.
        let left_over = !self.looked && self.balancer.is_left_over();
        if wanted.is_empty() && self.table.is_empty() && !self.pushed && !left_over {
            self.looked = true;
            let nothing = Confirmed { heard: true, ..Confirmed::default() };
            if *self.confirm.borrow() != nothing {
                self.confirm.send_replace(nothing);
            }
            return if self.stop_all(&stopping, world, true).await { RETRY } else { WATCH };
        }
        if !wanted.says(&self.table) || !self.pushed {
            self.table = Table { version: self.table.version + 1, ..wanted };
            self.routed.extend(self.table.fronts.values().flat_map(Front::backends).map(|backend| backend.id));
            fault::point("traffic.before-push");
            match self.balancer.push(&self.table).await {
                // Only the version sent is a confirmation. A balancer that knows a later one (the clock went back between
                // two daemons) is overtaken.
                Ok(status) if status.version != self.table.version => {
                    self.table.version = self.table.version.max(status.version);
                    self.pushed = false;
                    self.overtaken += 1;
                    if self.overtaken <= OVERTAKEN {
                        return Duration::ZERO;
                    }
                    self.stop_all(&stopping, world, false).await;
                    return RETRY;
                }
                Ok(status) => {
                    self.overtaken = 0;
                    self.note_status(status);
                }
                Err(error) => {
                    self.note_trouble(&error);
                    tracing::warn!(%error, "the balancer did not take the table; it is sent again");
                    self.stop_all(&stopping, world, false).await;
                    return RETRY;
                }
            }
            fault::point("traffic.after-push");
            (self.pushed, self.looked) = (true, true);
        } else {
            match self.balancer.status().await {
                // A balancer that was started anew has no table.
                Ok(status) if status.version != self.table.version => {
                    self.pushed = false;
                    return Duration::ZERO;
                }
                Ok(status) => self.note_status(status),
                Err(error) => {
                    self.note_trouble(&error);
                    return Duration::ZERO;
                }
            }
        }
        // A balancer that could not be asked may still send somebody to whoever is to stop.
        let all = self.status.missing.is_empty();
        if all {
            // What tables before led to, nobody is sent to any more.
            self.routed = self.table.fronts.values().flat_map(Front::backends).map(|backend| backend.id).collect();
        }
        if self.stop_all(&stopping, world, all).await {
            return if all { DRAIN } else { RETRY };
        }
        if all && self.status.failed.is_empty() { WATCH } else { RETRY }
    }

    // Tells those whose connections are over, or whose time is; true while some still drain.
    // Without the balancer's word only those are told that it never sent anybody to, or whose drain is over anyway.
    async fn stop_all(&mut self, stopping: &[Arc<Task>], world: &World, confirmed: bool) -> bool {
        let now = self.parts.clock.now();
        // Whoever asks where the service is is not sent there any more.
        for task in stopping {
            self.feeder.lock().unwrap_or_else(std::sync::PoisonError::into_inner).withdraw(&task.id);
        }
        let mut draining = false;
        let mut due = Vec::new();
        for task in stopping {
            if self.told.contains(&task.id) {
                continue;
            }
            let revision = world.revision(&task.service, task.revision);
            let policy = revision.map(|revision| revision.spec.stop.clone()).unwrap_or_default();
            let until = task.stop.as_ref().map_or(Timestamp(0), |stop| stop.at).after(policy.drain);
            let open = self.status.connections.get(&task.id).copied().unwrap_or_default();
            // Where the engine publishes a port, no balancer sends anybody there.
            let by_balancer = |port: &PortSpec| port.published.is_some() && port.host_port().is_none();
            let published = revision.is_some_and(|revision| revision.spec.ports.values().any(by_balancer))
                || self.routed.contains(&task.id);
            if (open > 0 || (!confirmed && published)) && now < until {
                draining = true;
                continue;
            }
            due.push((task.id, policy.grace));
        }
        // Some at a time: tables wait for it, and each is a request to its host.
        let stops = due.into_iter().map(|(id, grace)| {
            let engine = self.parts.engine.clone();
            async move {
                fault::point("runtime.before-stop");
                let late =
                    |_| Err(Error::new(Kind::Timeout, format!("task {id}"), "its host does not answer").retry(true));
                (id, tokio::time::timeout(STOP_WITHIN, engine.stop(&id, grace)).await.unwrap_or_else(late))
            }
        });
        let mut stops = futures_util::stream::iter(stops).buffered(STOPS);
        while let Some((id, told)) = stops.next().await {
            match told {
                Ok(will_end) => {
                    self.told.insert(id);
                    fault::point("runtime.after-stop");
                    let _ = self.messages.send(Message::Told(id, will_end));
                }
                Err(error) => {
                    tracing::debug!(%error, "a task could not be stopped yet");
                    draining = true;
                }
            }
        }
        draining
    }

    // What it confirmed before is worth nothing now.
    fn note_trouble(&mut self, error: &crate::model::Error) {
        self.pushed = false;
        let confirmed = Confirmed { trouble: Some(error.to_string()), ..Confirmed::default() };
        if *self.confirm.borrow() != confirmed {
            self.confirm.send_replace(confirmed);
        }
    }

    fn note_status(&mut self, status: Status) {
        for (listener, why) in &status.failed {
            if self.status.failed.get(listener) != Some(why) {
                let service = listener.split_once('/').and_then(|(name, _)| name.parse().ok());
                let note = Note {
                    what: What::PortFailed,
                    service,
                    task: None,
                    image: None,
                    subject: listener.clone(),
                    message: why.clone(),
                };
                let _ = self.messages.send(Message::Note(note));
            }
        }
        // What a daemon before this one has told is no news.
        for (route, passed) in status.routes.iter().filter(|_| self.status.pid != 0) {
            let before = self.status.routes.get(route).and_then(|passed| passed.why_unchosen.as_ref());
            if let Some(why) = passed.why_unchosen.as_ref().filter(|why| before != Some(why)) {
                let (subject, message) = (route.clone(), why.clone());
                let note = Note { what: What::ScriptFailed, service: None, task: None, image: None, subject, message };
                let _ = self.messages.send(Message::Note(note));
            }
        }
        self.missed.retain(|node| status.missing.contains_key(node));
        for (node, why) in &status.missing {
            // Not of one that is just coming or going: it is asked again in a moment.
            if self.status.missing.contains_key(node) && self.missed.insert(node.clone()) {
                tracing::warn!(node, why, "the balancer there is not known to follow; what is planned waits for it");
            }
        }
        // Said only for the version that was sent.
        let last = self.confirm.borrow().clone();
        let silent: BTreeSet<String> = status.missing.keys().cloned().collect();
        let same = last.heard && last.silent == silent && last.failed == status.failed && last.trouble.is_none();
        let same_table = *last.listeners == self.table.listeners && *last.fronts == self.table.fronts;
        // While somebody drains it is asked often; what is counted is told on less often.
        let now = self.parts.clock.now();
        let same_counts = now < self.counted.after(COUNTS.into())
            || *last.passed == status.routes && *last.carried == status.backends && *last.flowed == status.ports;
        if !same_counts {
            self.counted = now;
        }
        if !same || !same_table || !same_counts || last.unread != self.unread {
            let (listeners, fronts) = match same_table {
                true => (last.listeners, last.fronts),
                false => (Arc::new(self.table.listeners.clone()), Arc::new(self.table.fronts.clone())),
            };
            self.confirm.send_replace(Confirmed {
                heard: true,
                silent,
                listeners,
                failed: status.failed.clone(),
                passed: Arc::new(status.routes.clone()),
                flowed: Arc::new(status.ports.clone()),
                carried: Arc::new(status.backends.clone()),
                fronts,
                unread: self.unread.clone(),
                trouble: None,
            });
        }
        self.status = status;
    }
}
