//! Carries handovers on. Each step is done again by whoever leads next, and doing one twice is harmless.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::{mpsc, oneshot, watch};

use super::super::status::{self, Confirmed};
use super::super::{Command, Message, Parts, native};
use super::gaps::{Gaps, Watch};
use super::natives;
use crate::engines::native::Wanted;
use crate::model::clock::Timestamp;
use crate::model::event::What;
use crate::model::name::Name;
use crate::model::native::{Handover, HandoverState, NativeService, PublishMode, Way};
use crate::model::service::{Mode, Service};
use crate::model::{Error, Kind, Result};
use crate::scheduler::routing;
use crate::scheduler::world::{Change, World};

/// How often the Swarm is asked while it has a part in it.
const LOOK: Duration = Duration::from_millis(250);
/// The wait after a step that could not be done.
const AGAIN: Duration = Duration::from_secs(1);
/// How long a service that is given back may be without its ports before all is as it was.
const MOVE: crate::model::units::Duration = crate::model::units::Duration::from_secs(60);
/// How long a balancer is waited for that cannot be asked.
const SILENT: crate::model::units::Duration = crate::model::units::Duration::from_secs(10);
/// How long knocking goes on for a place that lets nobody in though all is said to be well.
const KNOCK: crate::model::units::Duration = crate::model::units::Duration::from_secs(5);

/// Follows the world for as long as it is published.
pub fn spawn(
    parts: Arc<Parts>,
    mut seen: watch::Receiver<Arc<World>>,
    confirmed: watch::Receiver<Confirmed>,
    messages: mpsc::UnboundedSender<Message>,
) {
    if parts.engine.natives().is_none() {
        return;
    }
    tokio::spawn(async move {
        let driven: Arc<Mutex<BTreeSet<Name>>> = Arc::default();
        loop {
            let world = seen.borrow_and_update().clone();
            for service in world.services.values().filter(|service| is_open(service)) {
                let name = service.spec.name.clone();
                if !driven.lock().unwrap_or_else(PoisonError::into_inner).insert(name.clone()) {
                    continue;
                }
                let mut driver = Driver {
                    parts: parts.clone(),
                    seen: seen.clone(),
                    confirmed: confirmed.clone(),
                    messages: messages.clone(),
                    name: name.clone(),
                };
                let driven = driven.clone();
                tokio::spawn(async move {
                    loop {
                        driver.run().await;
                        let mut driven = driven.lock().unwrap_or_else(PoisonError::into_inner);
                        // Begun anew since the last look, it would be picked up by nobody else.
                        if driver.scene().is_none() {
                            driven.remove(&name);
                            return;
                        }
                    }
                });
            }
            if seen.changed().await.is_err() {
                return;
            }
        }
    });
}

// Whether there is something to do for it; one that was given back has yet to go.
fn is_open(service: &Service) -> bool {
    let to_do = |handover: &Handover| handover.is_open() || handover.way == Way::Release;
    !service.removing && service.handover.as_ref().is_some_and(to_do)
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

// A handover at one moment.
struct Scene {
    world: Arc<World>,
    service: Arc<Service>,
    handover: Handover,
}

impl Driver {
    fn scene(&self) -> Option<Scene> {
        let world = self.seen.borrow().clone();
        let service = world.services.get(&self.name).filter(|service| is_open(service)).cloned()?;
        let handover = service.handover.clone()?;
        Some(Scene { world, service, handover })
    }

    async fn run(&mut self) {
        let mut memory = Memory::default();
        loop {
            self.seen.borrow_and_update();
            let Some(scene) = self.scene() else { return };
            let step = match (scene.handover.way, scene.handover.state) {
                (Way::Adopt, HandoverState::Starting) => self.ready(&scene).await,
                (Way::Adopt, HandoverState::Moving) => self.take(&scene, &mut memory).await,
                (Way::Adopt, HandoverState::Done | HandoverState::Cancelling) => return,
                (Way::Release, HandoverState::Starting) => self.offer(&scene, &mut memory).await,
                (Way::Release, HandoverState::Moving) => self.give(&scene, &mut memory).await,
                (Way::Release, HandoverState::Done) => self.leave(&scene).await,
                (Way::Release, HandoverState::Cancelling) => self.keep(&scene).await,
            };
            if let Err(error) = step {
                tracing::debug!(service = %self.name, %error, "a handover does not go on yet");
                // Whoever does not lead any more has nothing to say.
                if self.say(&scene, Some(error.to_string())).await.is_err() {
                    return;
                }
                tokio::time::sleep(AGAIN).await;
                continue;
            }
            // However much happens elsewhere.
            tokio::time::sleep(LOOK / 2).await;
            tokio::select! {
                biased;
                changed = self.seen.changed() => if changed.is_err() { return },
                changed = self.confirmed.changed() => if changed.is_err() { return },
                () = tokio::time::sleep(LOOK / 2) => {}
            }
        }
    }

    // Why it is not as described, if it is not.
    fn unready(&self, scene: &Scene) -> Option<String> {
        let status = status::of(&scene.world, &scene.service, &self.confirmed.borrow());
        let moving = scene.world.open_release(&self.name).is_some();
        let ready = status.healthy >= status.desired && !moving;
        (!ready).then(|| format!("{} of {} replicas are healthy", status.healthy, status.desired))
    }

    // What somebody else made of it since it was looked at is not what was taken over.
    async fn changed(&self, scene: &Scene) -> Result<Option<String>> {
        match natives(&*self.parts.engine)?.describe(&scene.handover.native).await {
            Ok(described) if super::print(&described) == scene.handover.seen => Ok(None),
            Ok(_) => Ok(Some(format!(
                "the Swarm's service was changed meanwhile: give this up (neap service rm {}) and adopt it again",
                self.name
            ))),
            Err(error) if error.kind == Kind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    // Taken over once the replicas are as described, beside those of the Swarm.
    async fn ready(&self, scene: &Scene) -> Result<()> {
        if let Some(why) = self.unready(scene) {
            return self.say(scene, Some(why)).await;
        }
        if let Some(why) = self.changed(scene).await? {
            return self.say(scene, Some(why)).await;
        }
        self.change(scene, |handover| {
            handover.state = HandoverState::Moving;
            handover.reason = None;
        })
        .await
    }

    // The Swarm's service goes, and the balancer has its ports as soon as they are free.
    async fn take(&self, scene: &Scene, memory: &mut Memory) -> Result<()> {
        let natives = natives(&*self.parts.engine)?;
        if !natives.list(Some(&scene.handover.native)).await?.is_empty() {
            // Still only while there is something to take its place: a daemon before this one may have died here.
            if let Some(why) = self.unready(scene) {
                return self.say(scene, Some(why)).await;
            }
            if let Some(why) = self.changed(scene).await? {
                return self.say(scene, Some(why)).await;
            }
            self.look_at_ports(scene, memory).await;
            let now = self.scene().filter(|now| same(&now.handover, &scene.handover) && self.unready(now).is_none());
            if now.is_none() {
                return Ok(());
            }
            natives.remove(&scene.handover.native).await?;
        }
        let now = self.parts.clock.now();
        let late = now >= memory.moving.get_or_insert(now).after(MOVE);
        let status = status::of(&scene.world, &scene.service, &self.confirmed.borrow());
        if let Some(failure) = status.port_failures.first().filter(|_| !late) {
            return self.say(scene, Some(format!("waits for its port: {failure}"))).await;
        }
        let here = |(key, listener)| self.confirmed.borrow().listeners.get(&key) == Some(&listener);
        if !late && !routing::listeners(&scene.world, &scene.service).all(here) {
            return self.say(scene, Some("waits for the balancers".into())).await;
        }
        // A port that another program has is shown as any service's is.
        let Some(gaps) = self.gaps(memory) else { return Ok(()) };
        self.finish(scene, gaps, What::ServiceAdopted).await
    }

    // The Swarm's tasks start beside ours, without the ports.
    async fn offer(&self, scene: &Scene, memory: &mut Memory) -> Result<()> {
        // What the Swarm runs already goes on as it is, and is this cluster's no more.
        if scene.service.spec.engine_native {
            self.place(scene, memory, Some(PublishMode::Ingress), false).await?;
            return self.finish(scene, Gaps::default(), What::ServiceReleased).await;
        }
        self.place(scene, memory, None, false).await?;
        let native = self.native(scene).await?;
        if !is_up(scene, &native) {
            return self.say(scene, Some(progress(&native))).await;
        }
        self.look_at_ports(scene, memory).await;
        self.change(scene, |handover| {
            handover.state = HandoverState::Moving;
            handover.reason = None;
        })
        .await
    }

    // Ours let go of the ports, and the Swarm's get them.
    async fn give(&self, scene: &Scene, memory: &mut Memory) -> Result<()> {
        let now = self.parts.clock.now();
        let since = *memory.moving.get_or_insert(now);
        if now >= since.after(MOVE) {
            let native = self.native(scene).await.map_or_else(|error| error.to_string(), |native| progress(&native));
            let why = format!("the Swarm's tasks did not come up with its ports within {MOVE}: {native}");
            let reason = Some(why.clone());
            self.change(scene, move |handover| {
                handover.state = HandoverState::Cancelling;
                handover.reason = reason;
            })
            .await?;
            self.note(What::HandoverFailed, &why);
            return Ok(());
        }
        let prefix = format!("{}/", self.name);
        let confirmed = self.confirmed.borrow().clone();
        let held = !confirmed.heard
            || confirmed.trouble.is_some()
            || confirmed.listeners.keys().any(|key| key.starts_with(&prefix))
            || (!confirmed.silent.is_empty() && now < since.after(SILENT));
        if held {
            return self.say(scene, Some("waits for the balancers to let go of its ports".into())).await;
        }
        let ports = Some(scene.handover.publish_mode);
        self.place(scene, memory, ports, true).await?;
        let native = self.native(scene).await?;
        if !is_up(scene, &native) {
            return self.say(scene, Some(progress(&native))).await;
        }
        let Some(gaps) = self.gaps(memory) else { return Ok(()) };
        // Later updates go as they are described to.
        self.place(scene, memory, ports, false).await?;
        self.finish(scene, gaps, What::ServiceReleased).await
    }

    // Ours end.
    async fn leave(&self, scene: &Scene) -> Result<()> {
        self.command(scene, |service| service.removing = true).await
    }

    async fn keep(&self, scene: &Scene) -> Result<()> {
        natives(&*self.parts.engine)?.withdraw(&scene.handover.native).await?;
        self.command(scene, |service| service.handover = None).await?;
        self.note(What::HandoverFailed, "it stays Neap's");
        Ok(())
    }

    // Nothing is moved before it is known how it was.
    async fn look_at_ports(&self, scene: &Scene, memory: &mut Memory) {
        memory.watch = Some(Watch::start(&self.parts, &scene.world, &scene.service));
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

    async fn native(&self, scene: &Scene) -> Result<NativeService> {
        let name = &scene.handover.native;
        let found = natives(&*self.parts.engine)?.list(Some(name)).await?;
        found
            .into_iter()
            .find(|native| native.name == *name)
            .ok_or_else(|| Error::not_found(format!("Swarm service \"{name}\"")).help("it is made again").retry(true))
    }

    async fn place(&self, scene: &Scene, memory: &mut Memory, ports: Option<PublishMode>, at_once: bool) -> Result<()> {
        let step = (scene.handover.state, at_once);
        // Once a step, unless somebody has removed it meanwhile.
        if memory.placed == Some(step) && self.native(scene).await.is_ok() {
            return Ok(());
        }
        let gone = || Error::internal(scene.service.spec.subject(), "has no active revision");
        let revision = scene.world.revision(&self.name, scene.service.active).ok_or_else(gone)?;
        let id = scene.service.id.to_string();
        let wanted = Wanted {
            name: scene.handover.native.clone(),
            mark: None,
            request: native::request(&self.parts, &scene.service, revision)?,
            ports,
            at_once,
            versions: (revision.secrets.clone(), revision.configs.clone()),
            tag: id[id.len() - 6..].to_owned(),
        };
        natives(&*self.parts.engine)?.place(wanted).await?;
        memory.placed = Some(step);
        Ok(())
    }

    async fn finish(&self, scene: &Scene, gaps: Gaps, what: What) -> Result<()> {
        let mut done = scene.handover.clone();
        (done.state, done.reason) = (HandoverState::Done, None);
        (done.gaps, done.closed) = (gaps.longest, gaps.closed);
        let said = done.gaps_said();
        self.change(scene, move |handover| *handover = done).await?;
        self.note(what, &said);
        Ok(())
    }

    async fn say(&self, scene: &Scene, reason: Option<String>) -> Result<()> {
        if scene.handover.reason == reason {
            return Ok(());
        }
        self.change(scene, move |handover| handover.reason = reason).await
    }

    async fn change(&self, scene: &Scene, change: impl FnOnce(&mut Handover) + Send + 'static) -> Result<()> {
        self.command(scene, move |service| {
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
            image: None,
            subject: self.name.to_string(),
            message: message.to_owned(),
        };
        let _ = self.messages.send(Message::Note(note));
    }

    // Changes the service's record, if it still is where it was seen: a person may have cancelled it meanwhile.
    async fn command(&self, scene: &Scene, change: impl FnOnce(&mut Service) + Send + 'static) -> Result<()> {
        let gone = || Error::new(Kind::Unavailable, "daemon", "is stopping");
        let (name, expected) = (self.name.clone(), scene.handover.clone());
        let command: Command = Box::new(move |draft, _| {
            let is_it = |service: &&Arc<Service>| {
                is_open(service) && service.handover.as_ref().is_some_and(|known| same(known, &expected))
            };
            let Some(known) = draft.world.services.get(&name).filter(is_it) else { return Ok(()) };
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

fn same(known: &Handover, expected: &Handover) -> bool {
    (known.way, known.state, known.started_at) == (expected.way, expected.state, expected.started_at)
}

// A Swarm counts the tasks of a global service only once it has made them.
fn is_up(scene: &Scene, native: &NativeService) -> bool {
    let spec = &scene.service.spec;
    let wanted = match spec.mode {
        Mode::Replicated => spec.replicas,
        Mode::Global => {
            let nodes = scene.world.nodes.values().filter(|node| super::suits(spec, node)).count();
            native.desired.max(u32::try_from(nodes).unwrap_or(u32::MAX))
        }
    };
    native.running >= wanted
}

fn progress(native: &NativeService) -> String {
    let reason = native.reason.as_ref().map(|reason| format!(": {reason}")).unwrap_or_default();
    format!("{} of {} tasks of the Swarm's run{reason}", native.running, native.desired)
}
