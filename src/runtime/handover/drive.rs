//! Carries handovers on. Each step is done again by whoever leads next, and doing one twice is harmless.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::{mpsc, oneshot, watch};

use super::super::status::{self, Confirmed};
use super::super::{Command, Message, Parts, starter};
use super::gaps::{Gaps, Watch};
use super::natives;
use crate::engines::native::Wanted;
use crate::engines::{Secrets, StartRequest};
use crate::model::clock::Timestamp;
use crate::model::event::What;
use crate::model::id::{Slot, TaskId};
use crate::model::name::Name;
use crate::model::native::{Handover, HandoverState, NativeService, PublishMode, Way};
use crate::model::service::Service;
use crate::model::{Error, Kind, Result};
use crate::scheduler::world::{Change, World};

/// How often the Swarm is asked while it has a part in it.
const LOOK: Duration = Duration::from_millis(250);
/// The wait after a step that could not be done.
const AGAIN: Duration = Duration::from_secs(1);
/// How long a service that is given back may be without its ports before all is as it was.
const MOVE: crate::model::units::Duration = crate::model::units::Duration::from_secs(60);
/// How long knocking goes on for a place that lets nobody in though all is said to be well.
const KNOCK: crate::model::units::Duration = crate::model::units::Duration::from_secs(5);

/// Follows the world for as long as it is published.
pub fn spawn(
    parts: Arc<Parts>,
    mut seen: watch::Receiver<Arc<World>>,
    confirmed: watch::Receiver<Confirmed>,
    messages: mpsc::UnboundedSender<Message>,
) {
    tokio::spawn(async move {
        let driven: Arc<Mutex<BTreeSet<Name>>> = Arc::default();
        loop {
            let world = seen.borrow_and_update().clone();
            for service in world.services.values().filter(|service| is_open(service)) {
                let name = service.spec.name.clone();
                if !driven.lock().unwrap_or_else(PoisonError::into_inner).insert(name.clone()) {
                    continue;
                }
                let driver = Driver {
                    parts: parts.clone(),
                    seen: seen.clone(),
                    confirmed: confirmed.clone(),
                    messages: messages.clone(),
                    name: name.clone(),
                };
                let driven = driven.clone();
                tokio::spawn(async move {
                    driver.run().await;
                    driven.lock().unwrap_or_else(PoisonError::into_inner).remove(&name);
                });
            }
            if seen.changed().await.is_err() {
                return;
            }
        }
    });
}

fn is_open(service: &Service) -> bool {
    !service.removing && service.open_handover().is_some()
}

struct Driver {
    parts: Arc<Parts>,
    seen: watch::Receiver<Arc<World>>,
    confirmed: watch::Receiver<Confirmed>,
    messages: mpsc::UnboundedSender<Message>,
    name: Name,
}

// What one daemon remembers of a handover; another one begins its step anew.
#[derive(Default)]
struct Memory {
    placed: Option<(HandoverState, bool)>,
    watch: Option<Watch>,
    // When the ports began to move, and when all was said to be well.
    moving: Option<Timestamp>,
    well: Option<Timestamp>,
}

impl Driver {
    async fn run(mut self) {
        let mut memory = Memory::default();
        loop {
            let world = self.seen.borrow_and_update().clone();
            let Some(service) = world.services.get(&self.name).filter(|service| is_open(service)).cloned() else {
                return;
            };
            let Some(handover) = service.open_handover().cloned() else { return };
            let step = match (handover.way, handover.state) {
                (_, HandoverState::Done) => return,
                (Way::Adopt, HandoverState::Starting | HandoverState::Cancelling) => self.ready(&world, &service).await,
                (Way::Adopt, HandoverState::Moving) => self.take(&world, &service, &handover, &mut memory).await,
                (Way::Release, HandoverState::Starting) => self.offer(&world, &service, &handover, &mut memory).await,
                (Way::Release, HandoverState::Moving) => self.give(&world, &service, &handover, &mut memory).await,
                (Way::Release, HandoverState::Cancelling) => self.keep(&handover).await,
            };
            let wait = match step {
                Ok(()) => LOOK,
                // Whoever does not lead any more has nothing to say.
                Err(error) => {
                    tracing::debug!(service = %self.name, %error, "a handover does not go on yet");
                    let said = self.say(Some(error.to_string())).await;
                    if said.is_err() {
                        return;
                    }
                    AGAIN
                }
            };
            tokio::select! {
                biased;
                changed = self.seen.changed() => if changed.is_err() { return },
                changed = self.confirmed.changed() => if changed.is_err() { return },
                () = tokio::time::sleep(wait) => {}
            }
        }
    }

    // Taken over once the replicas are as described, beside those of the Swarm.
    async fn ready(&self, world: &World, service: &Service) -> Result<()> {
        let status = status::of(world, service, &self.confirmed.borrow());
        if status.healthy < status.desired || world.open_release(&self.name).is_some() {
            let why = format!("{} of {} replicas are healthy", status.healthy, status.desired);
            return self.say(Some(why)).await;
        }
        self.change(|handover| {
            handover.state = HandoverState::Moving;
            handover.reason = None;
        })
        .await
    }

    // The Swarm's service goes, and the balancer has its ports as soon as they are free.
    async fn take(&self, world: &World, service: &Service, handover: &Handover, memory: &mut Memory) -> Result<()> {
        let natives = natives(&*self.parts.engine)?;
        if memory.watch.is_none() && !natives.list(Some(&handover.native)).await?.is_empty() {
            self.look_at_ports(world, service, memory).await;
        }
        natives.remove(&handover.native).await?;
        let status = status::of(world, service, &self.confirmed.borrow());
        if let Some(failure) = status.port_failures.first() {
            return self.say(Some(format!("waits for its port: {failure}"))).await;
        }
        let here = |(key, listener)| self.confirmed.borrow().listeners.get(&key) == Some(&listener);
        if !crate::scheduler::routing::listeners(world, service).all(here) {
            return self.say(Some("waits for the balancers".into())).await;
        }
        let Some(gaps) = self.gaps(memory) else { return Ok(()) };
        self.finish(gaps, What::ServiceAdopted, false).await
    }

    // The Swarm's tasks start beside ours, without the ports.
    async fn offer(&self, world: &World, service: &Service, handover: &Handover, memory: &mut Memory) -> Result<()> {
        self.place(world, service, handover, memory, None, false).await?;
        let native = self.native(handover).await?;
        if !is_up(&native) {
            return self.say(Some(progress(&native))).await;
        }
        self.look_at_ports(world, service, memory).await;
        self.change(|handover| {
            handover.state = HandoverState::Moving;
            handover.reason = None;
        })
        .await
    }

    // Ours let go of the ports, the Swarm's get them, and ours end.
    async fn give(&self, world: &World, service: &Service, handover: &Handover, memory: &mut Memory) -> Result<()> {
        let now = self.parts.clock.now();
        let since = *memory.moving.get_or_insert(now);
        if now >= since.after(MOVE) {
            let native = self.native(handover).await.map_or_else(|error| error.to_string(), |native| progress(&native));
            let why = format!("the Swarm's tasks did not come up with its ports within {MOVE}: {native}");
            self.note(What::HandoverFailed, &why);
            return self
                .change(move |handover| {
                    handover.state = HandoverState::Cancelling;
                    handover.reason = Some(why);
                })
                .await;
        }
        let prefix = format!("{}/", self.name);
        let held = |confirmed: &Confirmed| {
            let is_ours = |key: &String| key.starts_with(&prefix);
            confirmed.trouble.is_some() || confirmed.listeners.keys().any(is_ours)
        };
        if held(&self.confirmed.borrow()) {
            return self.say(Some("waits for the balancers to let go of its ports".into())).await;
        }
        let ports = Some(handover.publish_mode);
        self.place(world, service, handover, memory, ports, handover.publish_mode == PublishMode::Host).await?;
        let native = self.native(handover).await?;
        if !is_up(&native) {
            return self.say(Some(progress(&native))).await;
        }
        let Some(gaps) = self.gaps(memory) else { return Ok(()) };
        // Later updates go as they are described to.
        self.place(world, service, handover, memory, ports, false).await?;
        self.finish(gaps, What::ServiceReleased, true).await
    }

    async fn keep(&self, handover: &Handover) -> Result<()> {
        let natives = natives(&*self.parts.engine)?;
        natives.remove(&handover.native).await?;
        self.note(What::HandoverFailed, "it stays Neap's");
        self.command(|service| service.handover = None).await
    }

    // Nothing is moved before it is known how it was.
    async fn look_at_ports(&self, world: &World, service: &Service, memory: &mut Memory) {
        memory.watch = Some(Watch::start(&self.parts, world, service));
        tokio::time::sleep(LOOK).await;
    }

    // Once all is said to be well, places that let nobody in (behind a firewall, say) are not waited for much longer.
    fn gaps(&self, memory: &mut Memory) -> Option<Gaps> {
        let Some(watch) = &memory.watch else { return Some(Gaps::default()) };
        let now = self.parts.clock.now();
        let well = *memory.well.get_or_insert(now);
        let gaps = watch.gaps();
        (gaps.closed.is_empty() || now >= well.after(KNOCK)).then_some(gaps)
    }

    async fn native(&self, handover: &Handover) -> Result<NativeService> {
        let found = natives(&*self.parts.engine)?.list(Some(&handover.native)).await?;
        found.into_iter().next().ok_or_else(|| {
            Error::not_found(format!("Swarm service \"{}\"", handover.native)).help("it is made again").retry(true)
        })
    }

    async fn place(
        &self,
        world: &World,
        service: &Service,
        handover: &Handover,
        memory: &mut Memory,
        ports: Option<PublishMode>,
        at_once: bool,
    ) -> Result<()> {
        let step = (handover.state, at_once);
        let natives = natives(&*self.parts.engine)?;
        // Once a step, unless somebody has removed it meanwhile.
        if memory.placed == Some(step) && !natives.list(Some(&handover.native)).await?.is_empty() {
            return Ok(());
        }
        let wanted = Wanted { name: handover.native.clone(), request: self.request(world, service)?, ports, at_once };
        natives.place(wanted).await?;
        memory.placed = Some(step);
        Ok(())
    }

    // What runs now, placed and updated as the latest description says.
    fn request(&self, world: &World, service: &Service) -> Result<StartRequest> {
        let gone = || Error::internal(service.spec.subject(), "has no active revision");
        let revision = world.revision(&self.name, service.active).ok_or_else(gone)?;
        let (mut spec, latest) = (revision.spec.clone(), service.spec.clone());
        spec.labels = latest.labels;
        (spec.mode, spec.replicas, spec.max_replicas_per_node) =
            (latest.mode, latest.replicas, latest.max_replicas_per_node);
        (spec.constraints, spec.policy, spec.rollout) = (latest.constraints, latest.policy, latest.rollout);
        spec.restart = latest.restart;
        let request = StartRequest {
            task: TaskId::numbered(0),
            service: self.name.clone(),
            slot: Slot::Replica(0),
            node: "".into(),
            revision: service.active,
            spec: Arc::new(spec),
            secrets: Secrets::default(),
            configs: Vec::new(),
        };
        starter::with_files(&self.parts, request, &(revision.secrets.clone(), revision.configs.clone()))
    }

    async fn finish(&self, gaps: Gaps, what: What, remove: bool) -> Result<()> {
        let (name, done) = (self.name.clone(), gaps.clone());
        self.command(move |service| {
            if let Some(handover) = &mut service.handover {
                handover.state = HandoverState::Done;
                handover.reason = None;
                (handover.gaps, handover.closed) = (done.longest, done.closed);
            }
            service.removing |= remove;
        })
        .await?;
        let handover = self.seen.borrow().services.get(&name).and_then(|service| service.handover.clone());
        self.note(what, &handover.map(|handover| handover.gaps_said()).unwrap_or_default());
        Ok(())
    }

    async fn say(&self, reason: Option<String>) -> Result<()> {
        let known = self.seen.borrow().services.get(&self.name).and_then(|service| service.handover.clone());
        if known.is_none_or(|known| known.reason == reason) {
            return Ok(());
        }
        self.change(move |handover| handover.reason = reason).await
    }

    async fn change(&self, change: impl FnOnce(&mut Handover) + Send + 'static) -> Result<()> {
        self.command(move |service| {
            if let Some(handover) = &mut service.handover {
                change(handover);
            }
        })
        .await
    }

    fn note(&self, what: What, message: &str) {
        let note = crate::scheduler::world::Note {
            what,
            service: Some(self.name.clone()),
            task: None,
            subject: self.name.to_string(),
            message: message.to_owned(),
        };
        let _ = self.messages.send(Message::Note(note));
    }

    // Changes the service's record; one that is gone, or in another hand, is left alone.
    async fn command(&self, change: impl FnOnce(&mut Service) + Send + 'static) -> Result<()> {
        let gone = || Error::new(Kind::Unavailable, "daemon", "is stopping");
        let name = self.name.clone();
        let command: Command = Box::new(move |draft, _| {
            let Some(known) = draft.world.services.get(&name).filter(|service| is_open(service)) else { return Ok(()) };
            let mut service = Service::clone(known);
            change(&mut service);
            draft.change(Change::Service(Arc::new(service)));
            Ok(())
        });
        let (reply, answer) = oneshot::channel();
        self.messages.send(Message::Command(command, reply)).map_err(|_| gone())?;
        answer.await.map_err(|_| gone())?
    }
}

fn is_up(native: &NativeService) -> bool {
    native.running >= native.desired
}

fn progress(native: &NativeService) -> String {
    let reason = native.reason.as_ref().map(|reason| format!(": {reason}")).unwrap_or_default();
    format!("{} of {} tasks of the Swarm's run{reason}", native.running, native.desired)
}
