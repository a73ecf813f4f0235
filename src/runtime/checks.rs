//! Runs the checks of running tasks, each on a small task of its own, and reports changes of health.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use imbl::OrdMap;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;

use super::{Message, Parts};
use crate::engines::hosts::ProbeAsk;
use crate::model::bundle::HostedKind;
use crate::model::check::{CheckSpec, OnFail};
use crate::model::id::TaskId;
use crate::model::task::{Health, Task, TaskState};
use crate::model::{Error, Kind};
use crate::scheduler::health::HealthCounter;
use crate::scheduler::world::World;
use crate::script::api::check::Judged;

/// A starting task is asked this soon, then at growing distances up to the check's own.
const FIRST: Duration = Duration::from_millis(50);
/// Why one that has not passed yet does not is told from then on.
const NEWS: Duration = Duration::from_secs(1);

/// Follows the world for as long as it is published.
pub fn spawn(parts: Arc<Parts>, mut seen: watch::Receiver<Arc<World>>, messages: mpsc::UnboundedSender<Message>) {
    tokio::spawn(async move {
        let mut runners: BTreeMap<TaskId, JoinHandle<()>> = BTreeMap::new();
        let mut last = OrdMap::new();
        loop {
            let world = seen.borrow_and_update().clone();
            let runs = |task: &Task| task.state == TaskState::Running && task.stop.is_none();
            for (id, task) in world.tasks_since(&last) {
                let Some(task) = task.filter(|task| runs(task)) else {
                    if let Some(runner) = runners.remove(&id) {
                        runner.abort();
                    }
                    continue;
                };
                if runners.contains_key(&id) {
                    continue;
                }
                let Some(revision) = world.revision(&task.service, task.revision) else { continue };
                let Some(check) = revision.spec.own_check().cloned() else { continue };
                let runner = Runner {
                    parts: parts.clone(),
                    messages: messages.clone(),
                    task: Task::clone(task),
                    check,
                    seen: seen.clone(),
                };
                runners.insert(id, tokio::spawn(runner.run()));
            }
            last = world.tasks.clone();
            if seen.changed().await.is_err() {
                return;
            }
        }
    });
}

struct Runner {
    parts: Arc<Parts>,
    messages: mpsc::UnboundedSender<Message>,
    task: Task,
    check: CheckSpec,
    seen: watch::Receiver<Arc<World>>,
}

/// Why a run did not pass.
enum Miss {
    /// The replica failed it.
    Failed(String),
    /// It could not be asked: no word on the replica.
    Unasked(String),
}

impl From<String> for Miss {
    fn from(why: String) -> Self {
        Miss::Failed(why)
    }
}

impl Runner {
    async fn run(self) {
        let timing = self.check.timing(None);
        let started = self.task.started_at.unwrap_or(self.task.created_at);
        let mut counter = HealthCounter::new(self.task.health, started);
        let mut starting = matches!(self.task.health, Health::None | Health::Starting);
        let every = timing.every.std();
        let mut quick = FIRST.min(every);
        // Only failures a whole interval apart count: the quick looks at the start are there to see the first pass
        // early, not to use up the patience.
        let mut last: Option<String> = None;
        let first = tokio::time::Instant::now();
        let mut counted = first;
        loop {
            let begun = tokio::time::Instant::now();
            let result = match self.ask(timing.timeout.std()).await {
                Ok(()) => Ok(()),
                Err(Miss::Failed(why)) => Err(why),
                Err(Miss::Unasked(why)) => {
                    // Said once; what was found before goes on to hold.
                    if last.as_ref() != Some(&why) {
                        tracing::warn!(task = self.task.label(), why, "a check could not be asked");
                        last = Some(why.clone());
                        if starting {
                            let (task, reason) = (self.task.id, Some(why));
                            let health = Health::Starting;
                            let _ = self.messages.send(Message::Health { task, health, reason, restart: false });
                        }
                    }
                    tokio::time::sleep_until(begun + every).await;
                    continue;
                }
            };
            // What has only just been started refuses connections: no news.
            if let (true, Err(why)) = (starting, &result)
                && first.elapsed() >= NEWS
                && last.as_ref() != Some(why)
            {
                last = Some(why.clone());
                let (task, reason) = (self.task.id, Some(why.clone()));
                let _ = self.messages.send(Message::Health { task, health: Health::Starting, reason, restart: false });
            }
            let counts = result.is_ok() || begun.duration_since(counted) >= every || !starting;
            if counts {
                counted = begun;
                let passed = result.is_ok();
                if let Some(health) = counter.count(&timing, self.parts.clock.now(), passed) {
                    starting = false;
                    let restart = timing.on_fail == OnFail::Restart;
                    let message = Message::Health { task: self.task.id, health, reason: result.err(), restart };
                    if self.messages.send(message).is_err() {
                        return;
                    }
                }
            }
            let wait = if starting { quick } else { every };
            quick = (quick * 2).min(every);
            tokio::time::sleep_until(begun + wait).await;
        }
    }

    async fn ask(&self, timeout: Duration) -> Result<(), Miss> {
        let check = &self.check;
        let unasked = |error: Error| Miss::Unasked(error.to_string());
        // As it is now: one that was restarted in place has other ports.
        let Some(task) = self.seen.borrow().tasks.get(&self.task.id).cloned() else {
            return Err(Miss::Unasked("it is gone".into()));
        };
        if check.http.is_some() || check.tcp.is_some() {
            if let Some(port) = check.inside(|name| task.ports.contains_key(name)) {
                let ask = ProbeAsk { task: task.id, port, path: check.http.clone(), timeout: timeout.into() };
                return Ok(self.parts.engine.probe(ask).await.map_err(unasked)??);
            }
            let tcp = task.ports.iter().filter(|(_, address)| !address.ends_with("/udp"));
            let name = check.port_name(tcp.map(|(name, _)| name)).unwrap_or_default();
            let address = task.ports.get(name).ok_or_else(|| format!("the task has no port \"{name}\""))?;
            match &check.http {
                Some(path) => self.parts.network.probe(address, path, timeout).await?,
                None => self.parts.network.connect(address, timeout).await?,
            }
            return Ok(());
        }
        if !check.exec.is_empty() {
            let result = self.parts.engine.exec(&task.id, &check.exec, timeout.into()).await;
            // That nobody is there to run it says nothing of the replica.
            let result = result.map_err(|error| match error.kind {
                Kind::Unsupported | Kind::Unavailable => unasked(error),
                _ => Miss::Failed(error.to_string()),
            })?;
            let said = result.output.trim().lines().next().unwrap_or_default().to_owned();
            return if result.code == 0 { Ok(()) } else { Err(format!("exit code {}: {said}", result.code).into()) };
        }
        let Some(name) = &check.script else { return Ok(()) };
        // As the task's revision says now: its scripts may have been edited since the task began.
        let bundle = self.seen.borrow().revision(&task.service, task.revision).and_then(|r| r.bundle.clone());
        let host = &self.parts.host;
        let own = host.registered(bundle.as_deref()).map_err(unasked)?;
        let (bundle, _) = host.find(&own, HostedKind::Check, name.as_str()).map_err(unasked)?;
        let node = task.node.as_ref().map(|_| self.seen.borrow().hostname(&task).to_owned());
        match host.run_check(&bundle, name.as_str(), Judged::task(&task, node), timeout).await {
            Ok((true, _)) => Ok(()),
            Ok((false, said)) => Err(if said.is_empty() { format!("check \"{name}\" failed") } else { said }.into()),
            // Its thread was held by another script.
            Err(error) if error.retry => Err(unasked(error)),
            Err(error) => Err(error.to_string().into()),
        }
    }
}
