//! The conductor: one thread that owns the world.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt;
use tokio::sync::{mpsc, watch};

use super::publish::Listeners;
use super::trial::{Parted, Turn};
use super::{Message, Parts, bundles, persist, starter};
use crate::model::clock::Timestamp;
use crate::model::event::{AboutTask, Event, What};
use crate::model::name::Name;
use crate::model::task::{StopReason, Task, TaskState};
use crate::model::{Error, Kind, Result, fault, units};
use crate::scheduler::observe;
use crate::scheduler::reconcile::reconcile;
use crate::scheduler::world::{Change, Draft, Note, World};
use crate::script::host::Scripts;
use crate::script::lane::Threads;

/// Most messages that share a commit.
const GROUP: usize = 256;
/// After a commit messages are gathered for as long as it took, and no longer than this: a busy store gets fewer and larger
/// commits, a fast one is not waited for.
const GATHER: units::Duration = units::Duration::from_millis(100);
/// Most passes in a row before other messages get their turn.
const PASSES: usize = 16;
/// When a service for which nothing can be decided is looked at again, if nothing about it changes before.
const GIVEN_UP: units::Duration = units::Duration::from_secs(60);

struct Conductor {
    parts: Arc<Parts>,
    world: World,
    publish: watch::Sender<Arc<World>>,
    events: Listeners,
    sequence: u64,
    dirty: BTreeSet<Name>,
    wakes: BTreeMap<Name, Timestamp>,
    // Until when messages are gathered for the next commit.
    gather_until: Timestamp,
    // Messages whose changes could not be committed; tried again.
    retry_at: Option<Timestamp>,
    unwritten: Vec<Message>,
    // Parts of what could not be decided as a whole.
    trials: VecDeque<Turn>,
    // Services for which nothing could be decided when they were looked at last.
    given_up: BTreeSet<Name>,
    // More is written down than is known here.
    committed: bool,
}

/// Starts it, on a thread of its own if scripts have theirs. It ends when every sender of `inbox` is gone.
pub fn spawn(
    parts: Arc<Parts>,
    world: World,
    inbox: mpsc::UnboundedReceiver<Message>,
    publish: watch::Sender<Arc<World>>,
    events: Listeners,
) -> Result<()> {
    let handle = tokio::runtime::Handle::current();
    let dirty = world.services.keys().cloned().collect();
    let conductor = Conductor {
        parts,
        world,
        publish,
        events,
        sequence: 0,
        dirty,
        wakes: BTreeMap::new(),
        gather_until: Timestamp::default(),
        retry_at: None,
        unwritten: Vec::new(),
        trials: VecDeque::new(),
        given_up: BTreeSet::new(),
        committed: false,
    };
    if conductor.parts.host.threads() == Threads::This {
        tokio::spawn(conductor.run(inbox));
        return Ok(());
    }
    let run = move || handle.block_on(conductor.run(inbox));
    std::thread::Builder::new()
        .name("conductor".into())
        .spawn(run)
        .map(drop)
        .map_err(|error| Error::io("conductor", "start its thread", &error))
}

impl Conductor {
    async fn run(mut self, mut inbox: mpsc::UnboundedReceiver<Message>) {
        loop {
            let mut turn = match self.trials.pop_front() {
                Some(trial) => trial,
                None => match self.gather(&mut inbox).await {
                    Some(turn) => turn,
                    None => return,
                },
            };
            match AssertUnwindSafe(self.turn(&mut turn)).catch_unwind().await {
                Ok(Ok(())) => {}
                Ok(Err(error)) => self.failed(turn, &error),
                Err(panic) => self.broke(turn, panic),
            }
        }
    }

    // Waits for what is next to be decided; nothing once nobody can send any more.
    async fn gather(&mut self, inbox: &mut mpsc::UnboundedReceiver<Message>) -> Option<Turn> {
        let now = self.parts.clock.now();
        let due: Vec<Name> = self.wakes.iter().filter(|(_, at)| **at <= now).map(|(name, _)| name.clone()).collect();
        for name in due {
            self.wakes.remove(&name);
            self.dirty.insert(name);
        }
        // What could not be written down comes first, so that nothing is overtaken by what followed it; and in its time, since a
        // disk that is full is not to be tried at each message.
        let mut messages = VecDeque::new();
        if let Some(at) = self.retry_at.take() {
            if inbox.is_closed() && inbox.is_empty() {
                return None;
            }
            tokio::time::sleep(Duration::from_millis(at.since(now).millis())).await;
        } else if self.dirty.is_empty() {
            let next = self.wakes.values().copied().min();
            let wait = next.map(|at| Duration::from_millis(at.since(now).millis() + 1));
            match receive(inbox, wait).await {
                Received::Message(message) => messages.push_back(message),
                Received::Nothing => {}
                Received::End => return None,
            }
            let early = self.gather_until.since(self.parts.clock.now()).millis();
            if early > 0 {
                tokio::time::sleep(Duration::from_millis(early)).await;
            }
        }
        while messages.len() < GROUP
            && let Ok(message) = inbox.try_recv()
        {
            messages.push_back(message);
        }
        let mut queue: VecDeque<Message> = std::mem::take(&mut self.unwritten).into();
        queue.append(&mut messages);
        let (apart, scope): (BTreeSet<Name>, _) =
            std::mem::take(&mut self.dirty).into_iter().partition(|name| self.given_up.contains(name));
        self.trials.extend(apart.into_iter().map(|name| Turn::looking([name].into())));
        Some(Turn::new(queue, scope))
    }

    // Nothing of it happened. What can come again is kept; who asked is told.
    fn failed(&mut self, mut turn: Turn, error: &Error) {
        if error.kind == Kind::Exhausted && !error.retry {
            // More than the store takes: whose fault it is shows when each is made by itself.
            let message = "could not be done together with something else that cannot be written down";
            let told = match turn.alone {
                true => error.clone(),
                false => Error::new(Kind::Unavailable, "this daemon", message).cause(error),
            };
            turn.refuse(&told);
            return self.part(turn, &error.to_string());
        }
        tracing::error!(%error, "a decision could not be written down; it is made again");
        turn.refuse(error);
        self.unwritten.append(&mut turn.taken);
        self.unwritten.extend(turn.queue);
        self.dirty.append(&mut turn.scope);
        // In their order, with what came later behind them.
        for mut trial in self.trials.drain(..) {
            self.unwritten.extend(trial.queue);
            self.dirty.append(&mut trial.scope);
        }
        super::trial::only_newest(&mut self.unwritten);
        self.retry_at = Some(self.parts.clock.now().after(units::Duration::from_millis(500)));
    }

    // A fault of ours. Where more is written down than is known here nothing can go on: whoever starts next reads it.
    fn broke(&mut self, mut turn: Turn, panic: Box<dyn std::any::Any + Send>) {
        if self.parts.host.threads() == Threads::This {
            std::panic::resume_unwind(panic);
        }
        if self.committed {
            tracing::error!("a commit could not be followed by a fault of Neap's own; the daemon ends");
            std::process::abort();
        }
        turn.refuse(&Error::internal("this daemon", "a decision broke off by a fault of Neap's own"));
        self.part(turn, "a fault of Neap's own");
    }

    fn part(&mut self, turn: Turn, why: &str) {
        match turn.part() {
            Parted::Into(parts) => parts.into_iter().rev().for_each(|part| self.trials.push_front(part)),
            Parted::Message => tracing::error!(why, "something that was seen cannot be taken in, and is left out"),
            Parted::Service(name) => {
                tracing::error!(why, service = %name, "nothing can be decided for it now; it is tried again in a while");
                let again = self.parts.clock.now().after(GIVEN_UP);
                self.wakes.entry(name.clone()).and_modify(|at| *at = (*at).min(again)).or_insert(again);
                self.given_up.insert(name);
            }
        }
    }

    // Takes in messages, decides, commits, publishes.
    async fn turn(&mut self, turn: &mut Turn) -> Result<()> {
        let parts = self.parts.clone();
        let mut draft = Draft::new(&self.world, &*parts.clock);
        let mut writes = Vec::new();
        turn.began = turn.queue.len();
        while let Some(message) = turn.queue.pop_front() {
            self.take_in(message, &mut draft, &mut writes, turn)?;
        }
        let mut later = BTreeSet::new();
        for change in &draft.decision.changes {
            later.extend(change.service(&self.world));
        }
        if turn.looks {
            // What was given up is looked at by itself, so that nobody else's wish fails with it.
            let (apart, mut with) = later.into_iter().partition(|name| self.given_up.contains(name));
            self.dirty.extend::<BTreeSet<Name>>(apart);
            turn.scope.append(&mut with);
            later = turn.scope.clone();
            for _ in 0..PASSES {
                if later.is_empty() {
                    break;
                }
                later = self.pass(&mut draft, &later);
            }
        }
        let decision = draft.decision;
        let world = draft.world;
        writes.extend(persist::writes(&self.world, &decision.changes));
        writes.extend(bundles::unused(&self.world, &world, &decision.changes));
        writes.extend(self.lent_logins(&decision.changes));
        if !writes.is_empty() {
            fault::point("conductor.before-commit");
            let began = self.parts.clock.now();
            self.parts.store.commit(writes).await?;
            self.committed = true;
            fault::point("conductor.after-commit");
            let ended = self.parts.clock.now();
            self.gather_until = ended.after(ended.since(began).min(GATHER));
        }
        self.given_up.retain(|name| !turn.scope.contains(name));
        self.dirty.append(&mut later);
        self.wakes.extend(decision.wakes);
        self.install_scripts(&world, &decision.changes);
        let changed = !decision.changes.is_empty()
            || self.world.board().nodes_stamp() != world.board().nodes_stamp()
            || self.world.natives != world.natives;
        bundles::forget(&self.parts.host, &world, &decision.changes);
        self.world = world;
        self.committed = false;
        if changed {
            self.publish.send_replace(Arc::new(self.world.clone()));
        }
        for stray in turn.strays.drain(..) {
            starter::put_away(&self.parts, stray, self.world.clone());
        }
        for note in decision.notes {
            self.tell(note);
        }
        for (reply, result) in turn.replies.drain(..) {
            let _ = reply.send(result);
        }
        Ok(())
    }

    fn take_in(
        &self,
        message: Message,
        draft: &mut Draft,
        writes: &mut Vec<crate::store::Write>,
        turn: &mut Turn,
    ) -> Result<()> {
        let repeatable = &mut turn.taken;
        match message {
            Message::Observed(observed) if starter::is_stray(&draft.world, &observed) => {
                turn.strays.push(observed.clone());
                repeatable.push(Message::Observed(observed));
            }
            Message::Stock(node, tasks) => {
                observe::stock(draft, &node, &tasks);
                repeatable.push(Message::Stock(node, tasks));
            }
            Message::Nodes(nodes) => {
                let settings = persist::with_settings(&*self.parts.store, writes, &nodes);
                repeatable.push(Message::Nodes(nodes));
                match settings {
                    Ok(nodes) => observe::nodes(draft, nodes),
                    Err(error) if error.retry => return Err(error),
                    // A damaged record must not hold up all else.
                    Err(error) => tracing::error!(%error, "the nodes' settings cannot be read"),
                }
            }
            Message::Observed(observed) => {
                observe::observe(draft, &observed);
                repeatable.push(Message::Observed(observed));
            }
            Message::Changed(task, why) => {
                if let Some(old) = draft.world.tasks.get(&task).filter(|task| task.wanted()).cloned() {
                    let mut told = Task::clone(&old);
                    if !told.warnings.contains(&why) {
                        told.warnings.push(why.clone());
                    }
                    draft.change(Change::Task(Arc::new(told.clone())));
                    draft.stop(&told, StopReason::Changed);
                }
                repeatable.push(Message::Changed(task, why));
            }
            Message::Told(task, will_end) => {
                if let Some(old) = draft.world.tasks.get(&task).cloned()
                    && !old.state.is_final()
                {
                    if will_end {
                        let mut told = Task::clone(&old);
                        told.state = TaskState::Stopping;
                        draft.change(Change::Task(Arc::new(told)));
                    } else {
                        observe::never_started(draft, &old);
                    }
                }
                repeatable.push(Message::Told(task, will_end));
            }
            Message::Health { task, health, reason, restart } => {
                if let Some(old) = draft.world.tasks.get(&task).cloned() {
                    observe::health(draft, &old, health, reason.clone(), restart);
                }
                repeatable.push(Message::Health { task, health, reason, restart });
            }
            Message::Rejected(task, reason) => {
                let state = crate::engines::ObservedState::Rejected { reason: reason.clone() };
                observe::observe(draft, &crate::engines::Observed { task, state, warnings: Vec::new() });
                repeatable.push(Message::Rejected(task, reason));
            }
            Message::Natives(natives) => {
                let now = draft.clock.now();
                let before = draft.world.natives.replace(natives.clone()).unwrap_or_default();
                let concerned = natives.keys().chain(before.keys()).filter_map(|name| name.parse::<Name>().ok());
                for name in concerned.collect::<Vec<_>>() {
                    draft.wake(&name, now);
                }
                repeatable.push(Message::Natives(natives));
            }
            Message::Note(note) => {
                draft.decision.notes.push(note.clone());
                repeatable.push(Message::Note(note));
            }
            Message::Command(command, reply) => {
                let (world, changes, notes) =
                    (draft.world.clone(), draft.decision.changes.len(), draft.decision.notes.len());
                let written = writes.len();
                let asked = std::panic::catch_unwind(AssertUnwindSafe(|| command(draft, writes)));
                let result = asked.unwrap_or_else(|panic| match self.parts.host.threads() {
                    Threads::This => std::panic::resume_unwind(panic),
                    _ => Err(Error::internal("this daemon", "a decision broke off by a fault of Neap's own")),
                });
                if result.is_err() {
                    // A refused wish leaves no trace.
                    draft.world = world;
                    draft.decision.changes.truncate(changes);
                    draft.decision.notes.truncate(notes);
                    writes.truncate(written);
                }
                turn.replies.push((reply, result));
            }
        }
        Ok(())
    }

    // One pass of the scheduler on the draft; returns the services that changed by it.
    fn pass(&self, draft: &mut Draft, scope: &BTreeSet<Name>) -> BTreeSet<Name> {
        let (mut places, mut rollouts) = (Scripts::new(&self.parts.host), Scripts::new(&self.parts.host));
        let decision = reconcile(&draft.world, &*self.parts.clock, &mut places, &mut rollouts, scope);
        let mut changed = BTreeSet::new();
        for change in decision.changes {
            changed.extend(change.service(&draft.world));
            draft.change(change);
        }
        draft.decision.notes.extend(decision.notes);
        for (name, at) in decision.wakes {
            draft.wake(&name, at);
        }
        changed
    }

    // What serves the cluster follows what is written down. It was tried out before the commit, so it does not fail now.
    fn install_scripts(&self, world: &World, changes: &[Change]) {
        let bundle = |world: &World, name: &Name| {
            world.services.get(name).filter(|service| !service.removing).and_then(|service| service.bundle.clone())
        };
        let concerns = |change: &Change| match change {
            Change::Scripts(_) | Change::RemoveScripts(_) => true,
            Change::Service(service) => bundle(&self.world, &service.spec.name) != bundle(world, &service.spec.name),
            Change::RemoveService(_) => true,
            _ => false,
        };
        if changes.iter().any(concerns) {
            super::install(&self.parts.host, world);
        }
    }

    // What came along with services that are gone. What cannot be looked up for the moment is only left over.
    fn lent_logins(&self, changes: &[Change]) -> Vec<crate::store::Write> {
        let gone = changes.iter().filter_map(|change| match change {
            Change::RemoveService(name) => self.world.services.get(name).map(|service| service.id),
            _ => None,
        });
        gone.flat_map(|id| super::logins::forget(&*self.parts.store, id, None).unwrap_or_default()).collect()
    }

    fn tell(&mut self, note: Note) {
        self.sequence += 1;
        let Note { what, service, task, image, mut subject, mut message } = note;
        let about = task.as_ref().map(|task| AboutTask {
            task: task.label(),
            task_id: task.id,
            slot: task.slot.to_string(),
            revision: task.revision,
            node: task.node.as_ref().map(|_| self.world.hostname(task).to_owned()),
            node_id: task.node.as_deref().map(str::to_owned),
            reason: task.reason.clone(),
        });
        if let Some(about) = &about {
            subject.clone_from(&about.task);
        }
        if what == What::TaskAssigned {
            message = format!("on {}", task.as_ref().map_or("", |task| self.world.hostname(task)));
        }
        tracing::info!(event = what.as_str(), subject, message);
        let event = Event {
            sequence: self.sequence,
            at: self.parts.clock.wall(),
            what,
            service,
            subject,
            message,
            task: about,
            image,
        };
        self.events.tell(&event);
    }
}

enum Received {
    Message(Message),
    Nothing,
    End,
}

async fn receive(inbox: &mut mpsc::UnboundedReceiver<Message>, wait: Option<Duration>) -> Received {
    let received = match wait {
        Some(wait) => match tokio::time::timeout(wait, inbox.recv()).await {
            Ok(received) => received,
            Err(_) => return Received::Nothing,
        },
        None => inbox.recv().await,
    };
    received.map_or(Received::End, Received::Message)
}
