//! A change of who runs a service: from the Swarm to Neap and back. What is wanted and how far it is stands in the
//! service's record; whoever leads carries it on (`drive.rs`), whatever became of who asked for it.

mod drive;
mod gaps;
mod notes;

use std::sync::Arc;

use serde_json::{Value, json};

pub use self::drive::spawn;
use super::{Runtime, commands, values};
use crate::client::kv::{ValueKind, ValueSet};
use crate::client::{Apply, Only};
use crate::engines::Engine;
use crate::engines::native::{Described, Natives};
use crate::model::native::{
    Adopt, Adoption, HandBack, HandedBack, Handover, HandoverState, NativeService, PublishMode, Way, name_for,
};
use crate::model::node::{Availability, NodeState};
use crate::model::service::{Mode, Service, ServiceSpec};
use crate::model::{Error, Kind, Result};
use crate::scheduler::world::{Change, World};

fn natives(engine: &dyn Engine) -> Result<&dyn Natives> {
    engine.natives().ok_or_else(|| {
        let message = format!("the {} engine has no services of its own", engine.name());
        Error::new(Kind::Unsupported, "native services", message).help("a Swarm has")
    })
}

impl Runtime {
    /// The engine's own services, where it has some.
    pub(super) async fn list_natives(&self) -> Result<Vec<NativeService>> {
        match self.parts.engine.natives() {
            Some(natives) => natives.list(None).await,
            None => Ok(Vec::new()),
        }
    }

    /// Takes over a service of the Swarm's.
    pub(super) async fn adopt_native(&self, native: &str, ask: Adopt) -> Result<Adoption> {
        let described = natives(&*self.parts.engine)?.describe(native).await?;
        let subject = format!("Swarm service \"{native:.70}\"");
        if !described.refused.is_empty() {
            let message = format!("cannot be run by Neap: {}", described.refused.join("; "));
            return Err(Error::new(Kind::Unsupported, subject, message));
        }
        let name = match &ask.as_name {
            Some(name) => name.parse()?,
            None => name_for(native)?,
        };
        let Described { id, service, mut notes, configs, .. } = described;
        let mut service = Value::Object(service);
        service["name"] = json!(name);
        own_name_is_no_alias(&mut service, name.as_str());
        for (key, value) in ask.change {
            service[key] = value;
        }
        let world = self.world();
        match world.services.values().find(|service| adopts(service, &id)) {
            Some(same) if same.spec.name == name => {
                return Ok(Adoption { service: json!(same.spec), notes, configs: Vec::new() });
            }
            Some(other) => {
                let message = format!("is just being adopted as \"{}\"", other.spec.name);
                return Err(Error::new(Kind::Conflict, subject, message));
            }
            None => {}
        }
        let taken = world.services.contains_key(&name);
        if taken {
            return Err(Error::new(Kind::Conflict, format!("service \"{name}\""), "exists already")
                .help("adopt it under another name: --name NAME"));
        }
        // What is missing is said before anything is changed.
        let spec = ServiceSpec::read(&service)?;
        self.parts.engine.accepts(&mut spec.clone())?;
        for secret in spec.secrets.values() {
            if values::version(&self.parts, ValueKind::Secret, secret)?.is_none() {
                let message =
                    format!("there is no secret \"{secret:.70}\", and the Swarm tells nobody what its own holds");
                return Err(Error::new(Kind::NotFound, spec.subject(), message)
                    .help(format!("set it first: neap secret set {secret}")));
            }
        }
        let mut adoption = Adoption { service: service.clone(), notes: Vec::new(), configs: Vec::new() };
        for (config, value) in configs {
            if !spec.configs.values().any(|used| used.name == config) {
                continue;
            }
            if values::version(&self.parts, ValueKind::Config, &config)?.is_some() {
                notes.push(format!("config {config}: the one that Neap has serves"));
                continue;
            }
            if !ask.dry_run {
                let subject = format!("config \"{config:.70}\"");
                let value = String::from_utf8(value).map_err(|_| {
                    Error::new(Kind::Unsupported, subject, "is no text").help("set it as a file that the image has")
                })?;
                let set = ValueSet { value, only_new: true, no_rollout: true, prefix: String::new() };
                self.set_one(ValueKind::Config, &config, &set).await?;
            }
            adoption.configs.push(config);
        }
        adoption.notes = notes;
        if ask.dry_run {
            return Ok(adoption);
        }
        let prepared = self.prepare(Apply { service, with: None, only: Only::Create }).await?;
        let host = self.parts.host.clone();
        self.command(move |draft, writes| {
            commands::apply(draft, writes, &host, prepared)?;
            let made = draft.world.services.get(&name).cloned();
            let mut service = Service::clone(&*made.ok_or_else(|| Error::internal("adopt", "made no service"))?);
            service.handover = Some(begin(Way::Adopt, id, PublishMode::default(), draft.clock.wall()));
            draft.change(Change::Service(Arc::new(service)));
            Ok(())
        })
        .await?;
        Ok(adoption)
    }

    /// Gives a service back to the Swarm, or stops doing so.
    pub(super) async fn give_back(&self, name: &str, ask: HandBack) -> Result<HandedBack> {
        let world = self.world();
        let service = world.services.get(name).cloned().ok_or_else(|| commands::missing(&world, name))?;
        let conflict = |message: String| Error::new(Kind::Conflict, service.spec.subject(), message);
        if ask.cancel {
            return self.stay(name).await.map(|()| HandedBack::default());
        }
        let natives = natives(&*self.parts.engine)?;
        let done = HandedBack { notes: notes::of(&service.spec) };
        if service.is_leaving() {
            return Ok(done);
        }
        if service.removing || service.open_handover().is_some() {
            return Err(conflict(format!(
                "is {}",
                if service.removing { "just being removed" } else { "just being adopted" }
            )));
        }
        if world.open_release(&service.spec.name).is_some() {
            return Err(conflict("has a release going on".into()).help("wait until it is over, or end it"));
        }
        if !natives.list(Some(name)).await?.is_empty() {
            let message = format!("the Swarm has a service \"{name:.70}\" of its own already");
            return Err(conflict(message).help("remove or rename that one first (docker service ls)"));
        }
        room_for_ports(&world, &service, ask.publish_mode)?;
        if ask.dry_run {
            return Ok(done);
        }
        let (owned, mode) = (name.to_owned(), ask.publish_mode);
        self.command(move |draft, _| {
            let Some(known) = draft.world.services.get(owned.as_str()) else {
                return Err(commands::missing(&draft.world, &owned));
            };
            let mut service = Service::clone(known);
            if service.removing
                || service.open_handover().is_some()
                || draft.world.open_release(&service.spec.name).is_some()
            {
                return Err(Error::new(
                    Kind::Conflict,
                    service.spec.subject(),
                    "was changed by somebody else just now",
                )
                .retry(true));
            }
            service.handover = Some(begin(Way::Release, owned, mode, draft.clock.wall()));
            draft.change(Change::Service(Arc::new(service)));
            Ok(())
        })
        .await?;
        Ok(done)
    }

    // The native service goes away again, and then all is as before.
    async fn stay(&self, name: &str) -> Result<()> {
        let name = name.to_owned();
        self.command(move |draft, _| {
            let Some(known) = draft.world.services.get(name.as_str()) else {
                return Err(commands::missing(&draft.world, &name));
            };
            if !known.is_leaving() || known.removing {
                return Err(Error::new(Kind::Conflict, known.spec.subject(), "is not being given back"));
            }
            let mut service = Service::clone(known);
            if let Some(handover) = &mut service.handover {
                handover.state = HandoverState::Cancelling;
                handover.reason = None;
            }
            draft.change(Change::Service(Arc::new(service)));
            Ok(())
        })
        .await
    }
}

fn begin(way: Way, native: String, mode: PublishMode, at: crate::model::clock::Timestamp) -> Handover {
    Handover {
        way,
        state: HandoverState::Starting,
        native,
        publish_mode: mode,
        started_at: at,
        reason: None,
        gaps: std::collections::BTreeMap::new(),
        closed: Vec::new(),
    }
}

fn adopts(service: &Service, native: &str) -> bool {
    service.open_handover().is_some_and(|handover| handover.way == Way::Adopt && handover.native == native)
}

// Every replica is found by its service's name anyway.
fn own_name_is_no_alias(service: &mut Value, name: &str) {
    for network in service.get_mut("networks").and_then(Value::as_array_mut).into_iter().flatten() {
        if let Some(aliases) = network.get_mut("aliases").and_then(Value::as_array_mut) {
            aliases.retain(|alias| alias.as_str() != Some(name));
        }
    }
}

// A port on the host is had by one task; the others would wait for ever, with the ports closed.
fn room_for_ports(world: &World, service: &Service, mode: PublishMode) -> Result<()> {
    let spec = &service.spec;
    let published = spec.ports.values().any(|port| port.published.is_some());
    if mode != PublishMode::Host || spec.mode == Mode::Global || !published {
        return Ok(());
    }
    let suits = |node: &crate::model::node::Node| {
        node.state == NodeState::Ready
            && node.availability == Availability::Active
            && spec.constraints.iter().all(|constraint| constraint.matches(node))
    };
    let nodes = world.nodes.values().filter(|node| suits(node)).count();
    if spec.replicas as usize <= nodes {
        return Ok(());
    }
    let message = format!("its {} tasks cannot have its ports on {nodes} hosts", spec.replicas);
    Err(Error::new(Kind::Conflict, spec.subject(), message)
        .help("scale it down first, or publish them by the routing mesh: --publish-mode ingress"))
}
