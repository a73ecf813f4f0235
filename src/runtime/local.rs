//! `trait Cluster` in process.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use tokio::sync::{broadcast, mpsc};

use super::{Runtime, commands, status};
use crate::client::{Apply, Cluster, Info, LogEntry, LogsAsk, ReleaseAction, ServiceStatus, Stream1};
use crate::engines::{LogLine, LogQuery};
use crate::model::event::Event;
use crate::model::id::{ServiceId, TaskId};
use crate::model::name::check_loose;
use crate::model::node::{Node, NodeUpdate};
use crate::model::plan::Plan;
use crate::model::service::{Revision, Service};
use crate::model::{Error, Kind, Result};
use crate::scheduler::plan;
use crate::scheduler::world::World;
use crate::script::host::Scripts;

/// How often followed output is looked at.
const FOLLOW: Duration = Duration::from_millis(100);

impl Runtime {
    fn status(&self, name: &str) -> Result<ServiceStatus> {
        let world = self.world();
        let service = world.services.get(name).ok_or_else(|| commands::missing(&world, name))?;
        Ok(status::of(&world, service, &self.port_failures.borrow()))
    }

    // Scripts are loaded where waiting for them holds up nobody else.
    async fn prepare(&self, ask: Apply) -> Result<commands::Prepared> {
        let (world, host) = (self.world(), self.parts.host.clone());
        tokio::task::spawn_blocking(move || commands::prepare(&world, &host, ask))
            .await
            .map_err(|error| Error::internal("apply", "its preparation broke").cause(error))?
    }
}

fn channel<T: Send + 'static>() -> (mpsc::Sender<Result<T>>, Stream1<T>) {
    let (sender, receiver) = mpsc::channel(64);
    let stream =
        futures_util::stream::unfold(receiver, |mut receiver| async move { Some((receiver.recv().await?, receiver)) });
    (sender, Box::pin(stream))
}

#[async_trait]
impl Cluster for Runtime {
    async fn info(&self) -> Result<Info> {
        Ok(Info {
            cluster: self.parts.cluster.clone(),
            version: env!("CARGO_PKG_VERSION").into(),
            engine: self.parts.engine.name().into(),
            pid: std::process::id(),
        })
    }

    async fn services(&self) -> Result<Vec<ServiceStatus>> {
        let world = self.world();
        let failures = self.port_failures.borrow().clone();
        Ok(world.services.values().map(|service| status::of(&world, service, &failures)).collect())
    }

    async fn service(&self, name: &str) -> Result<ServiceStatus> {
        self.status(name)
    }

    async fn watch(&self, name: &str) -> Result<Stream1<ServiceStatus>> {
        let mut last = self.status(name)?;
        let (sender, stream) = channel();
        let (mut seen, mut failures, name) = (self.world.clone(), self.port_failures.clone(), name.to_owned());
        tokio::spawn(async move {
            let _ = sender.send(Ok(last.clone())).await;
            loop {
                tokio::select! {
                    changed = seen.changed() => if changed.is_err() { return },
                    changed = failures.changed() => if changed.is_err() { return },
                    () = sender.closed() => return,
                }
                let world = seen.borrow_and_update().clone();
                let Some(service) = world.services.get(name.as_str()) else { return };
                let status = status::of(&world, service, &failures.borrow_and_update());
                if status != last {
                    last = status;
                    if sender.send(Ok(last.clone())).await.is_err() {
                        return;
                    }
                }
            }
        });
        Ok(stream)
    }

    async fn revisions(&self, name: &str) -> Result<Vec<Revision>> {
        let status = self.status(name)?;
        let name = &status.service.spec.name;
        let world = self.world();
        Ok(world.revisions_of(name).map(|revision| Revision::clone(revision)).collect())
    }

    async fn plan(&self, ask: Apply) -> Result<Plan> {
        let (world, parts) = (self.world(), self.parts.clone());
        let plan = move || {
            let bundle = ask.with.as_ref().map(crate::model::bundle::Bundle::hash);
            let prepared = commands::prepare(&world, &parts.host, ask)?;
            let spec = prepared.spec().clone();
            let old = world.services.get(&spec.name);
            let mut service = old.map_or_else(
                || Service {
                    id: ServiceId::new(&*parts.clock),
                    spec: spec.clone(),
                    revision: 0,
                    active: 0,
                    stable: None,
                    bundle: None,
                    removing: false,
                    created_at: parts.clock.wall(),
                    updated_at: parts.clock.wall(),
                },
                |old| Service::clone(old),
            );
            service.spec = spec;
            service.bundle = bundle.or(service.bundle);
            Ok(plan::plan(&world, old.map(AsRef::as_ref), &service, &mut Scripts::new(&parts.host)))
        };
        tokio::task::spawn_blocking(plan).await.map_err(|error| Error::internal("plan", "broke").cause(error))?
    }

    async fn apply(&self, ask: Apply) -> Result<ServiceStatus> {
        let prepared = self.prepare(ask).await?;
        let name = prepared.spec().name.to_string();
        let host = self.parts.host.clone();
        self.command(move |draft, writes| commands::apply(draft, writes, &host, prepared)).await?;
        self.status(&name)
    }

    async fn scale(&self, name: &str, replicas: u32) -> Result<ServiceStatus> {
        let owned = name.to_owned();
        self.command(move |draft, _| commands::scale(draft, &owned, replicas)).await?;
        self.status(name)
    }

    async fn release(&self, name: &str, action: ReleaseAction) -> Result<ServiceStatus> {
        let (owned, host) = (name.to_owned(), self.parts.host.clone());
        self.command(move |draft, _| commands::release(draft, &host, &owned, action)).await?;
        self.status(name)
    }

    async fn remove(&self, name: &str) -> Result<()> {
        let name = name.to_owned();
        self.command(move |draft, _| commands::remove(draft, &name)).await
    }

    async fn logs(&self, name: &str, ask: LogsAsk) -> Result<Stream1<LogEntry>> {
        self.status(name)?;
        let world = self.world();
        if let Some(slot) = &ask.slot
            && !world.tasks.values().any(|task| task.service.as_str() == name && task.slot.to_string() == *slot)
        {
            return Err(Error::not_found(format!("task \"{name}.{slot:.60}\""))
                .help(format!("neap service ps -a {name} lists them")));
        }
        let (sender, stream) = channel();
        let follower = Follower { name: name.to_owned(), engine: self.parts.engine.clone(), world: self.world.clone() };
        tokio::spawn(async move {
            if let Err(error) = follower.run(&ask, &sender).await {
                let _ = sender.send(Err(error)).await;
            }
        });
        Ok(stream)
    }

    async fn nodes(&self) -> Result<Vec<Node>> {
        Ok(self.world().nodes.values().map(|node| Node::clone(node)).collect())
    }

    async fn update_node(&self, id: &str, update: NodeUpdate) -> Result<Node> {
        for (key, value) in &update.label_add {
            check_loose("label", key)?;
            if value.len() > 1024 {
                let why = format!("label_add.{key}: a value of {} bytes is longer than 1024", value.len());
                return Err(Error::invalid(format!("node \"{id:.70}\""), why));
            }
        }
        let wanted = id.to_owned();
        self.command(move |draft, writes| commands::update_node(draft, writes, &wanted, update)).await?;
        let world = self.world();
        let node = world.nodes.values().find(|node| *node.id == *id || node.hostname == id);
        node.map(|node| Node::clone(node)).ok_or_else(|| commands::missing_node(id))
    }

    async fn events(&self) -> Result<Stream1<Event>> {
        let mut events = self.events.subscribe();
        let (sender, stream) = channel();
        tokio::spawn(async move {
            loop {
                let event = tokio::select! {
                    event = events.recv() => event,
                    () = sender.closed() => return,
                };
                let item = match event {
                    Ok(event) => Ok(event),
                    Err(broadcast::error::RecvError::Lagged(count)) => Err(Error::new(
                        Kind::Exhausted,
                        "events",
                        format!("{count} were missed; the reader is too slow"),
                    )),
                    Err(broadcast::error::RecvError::Closed) => return,
                };
                if sender.send(item).await.is_err() {
                    return;
                }
            }
        });
        Ok(stream)
    }
}

/// Reads a service's output, and goes on reading.
struct Follower {
    name: String,
    engine: Arc<dyn crate::engines::Engine>,
    world: tokio::sync::watch::Receiver<Arc<World>>,
}

impl Follower {
    async fn run(mut self, ask: &LogsAsk, sender: &mpsc::Sender<Result<LogEntry>>) -> Result<()> {
        let mut labels = self.tasks(ask);
        let ids: Vec<TaskId> = labels.keys().cloned().collect();
        // The past goes up to where the following begins, so that no line falls between the two.
        let mut position = self.engine.log_end(&ids).await?;
        let query = LogQuery { since: ask.since, tail: ask.tail };
        let mut past = self.engine.logs(&ids, query, Some(position.clone())).await?;
        while let Some(lines) = past.recv().await {
            if !send(lines?, &labels, sender).await {
                return Ok(());
            }
        }
        if !ask.follow {
            return Ok(());
        }
        loop {
            tokio::select! {
                () = tokio::time::sleep(FOLLOW) => {}
                () = sender.closed() => return Ok(()),
            }
            if self.world.has_changed().is_err() {
                return Ok(());
            }
            let gone = !self.world.borrow_and_update().services.contains_key(self.name.as_str());
            // What has left the world has nothing more to say.
            if !gone {
                labels = self.tasks(ask);
                position.0.retain(|task, _| labels.contains_key(task));
            }
            let ids: Vec<TaskId> = labels.keys().cloned().collect();
            let lines = self.engine.follow(&ids, &mut position).await?;
            if !send(lines, &labels, sender).await || gone {
                return Ok(());
            }
        }
    }

    fn tasks(&self, ask: &LogsAsk) -> BTreeMap<TaskId, String> {
        let world = self.world.borrow();
        let Ok(name) = self.name.parse() else { return BTreeMap::new() };
        let wanted = |slot: &crate::model::id::Slot| ask.slot.as_ref().is_none_or(|wanted| *wanted == slot.to_string());
        world.tasks_of(&name).filter(|task| wanted(&task.slot)).map(|task| (task.id, task.label())).collect()
    }
}

async fn send(lines: Vec<LogLine>, labels: &BTreeMap<TaskId, String>, sender: &mpsc::Sender<Result<LogEntry>>) -> bool {
    for line in lines {
        let LogLine { at, task, stream, text } = line;
        let label = labels.get(&task).cloned().unwrap_or_default();
        if sender.send(Ok(LogEntry { at, task: label, id: task.to_string(), stream, text })).await.is_err() {
            return false;
        }
    }
    true
}
