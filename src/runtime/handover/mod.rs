//! A change of who runs a service: from the Swarm to Neap and back. What is wanted and how far it is stands in the
//! service's record; whoever leads carries it on (`drive.rs`), whatever became of who asked for it.

mod drive;
mod gaps;
mod notes;

use std::collections::BTreeMap;
use std::sync::Arc;

use serde_json::{Value, json};

pub use self::drive::spawn;
use super::asked::channel;
use super::{Runtime, commands, values};
use crate::client::kv::{ValueKind, ValueSet};
use crate::client::{Apply, LogEntry, LogsAsk, Only, Stream1};
use crate::engines::native::{Described, NativeLine, Natives};
use crate::engines::{Engine, LogQuery};
use crate::model::id::sha256_hex;
use crate::model::mount::{Mount, MountKind};
use crate::model::native::{
    Adopt, Adoption, HandBack, HandedBack, Handover, HandoverState, NativeService, PublishMode, Way, name_for,
};
use crate::model::node::{Availability, Node, NodeState};
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
    /// What tasks of one of them wrote.
    pub(super) async fn native_logs(&self, name: &str, ask: LogsAsk) -> Result<Stream1<LogEntry>> {
        let query = LogQuery { since: ask.since, tail: ask.tail };
        let mut portions = natives(&*self.parts.engine)?.logs(name, ask.slot, query, ask.follow).await?;
        let (sender, stream) = channel();
        tokio::spawn(async move {
            loop {
                let portion = tokio::select! {
                    () = sender.closed() => return,
                    portion = portions.recv() => match portion {
                        Some(Ok(portion)) => portion,
                        Some(Err(error)) => return drop(sender.send(Err(error)).await),
                        None => return,
                    },
                };
                for NativeLine { at, task, id, stream, text } in portion {
                    if sender.send(Ok(LogEntry { at, task, id, stream, text })).await.is_err() {
                        return;
                    }
                }
            }
        });
        Ok(stream)
    }

    /// The engine's own services, where it has some.
    pub(super) async fn list_natives(&self) -> Result<Vec<NativeService>> {
        match self.parts.engine.natives() {
            // What it runs for this cluster is shown as any of its services.
            Some(natives) => {
                let mut found = natives.list(None).await?;
                found.retain(|native| native.mark.is_none());
                Ok(found)
            }
            None => Ok(Vec::new()),
        }
    }

    /// Takes over a service of the Swarm's.
    pub(super) async fn adopt_native(&self, native: &str, ask: Adopt) -> Result<Adoption> {
        let natives = natives(&*self.parts.engine)?;
        let described = natives.describe(native).await?;
        if self.world().services.get(described.name.as_str()).is_some_and(|service| service.spec.engine_native) {
            return Err(Error::new(Kind::Conflict, format!("service \"{}\"", described.name), "is Neap's already"));
        }
        let seen = print(&described);
        let subject = format!("Swarm service \"{:.70}\"", described.name);
        if !described.refused.is_empty() {
            let message = format!("cannot be run by Neap: {}", described.refused.join("; "));
            return Err(Error::new(Kind::Unsupported, subject, message));
        }
        let name = match &ask.as_name {
            Some(name) => name.parse()?,
            None => name_for(&described.name)?,
        };
        let busy = natives.list(Some(&described.id)).await?.into_iter().next().and_then(|native| native.update);
        if let Some(state) = busy.filter(|state| !state.ends_with("completed")) {
            return Err(Error::new(Kind::Conflict, subject, format!("is in the middle of an update ({state})"))
                .help("adopt it when that is over"));
        }
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
        if let Some((name, _)) = spec.ports.iter().find(|(_, port)| port.host_port().is_some()) {
            let why = format!("ports.{name}: the Swarm's tasks have it on their hosts until the replicas are healthy");
            return Err(Error::new(Kind::Unsupported, spec.subject(), why).help(
                "adopt it with the balancer's port, and change its mode afterwards by publishing another number",
            ));
        }
        if spec.engine_native {
            return Err(Error::invalid(spec.subject(), "engine_native: the Swarm runs it already")
                .help("leave it as it is, or leave engine_native out"));
        }
        self.parts.engine.accepts(&mut spec.clone())?;
        commands::refuse_taken_ports(&world, &spec)?;
        if !ask.share_volumes {
            refuse_shared(&spec, "adopt")?;
        }
        for secret in spec.secrets.values().map(|used| &used.name) {
            if values::version(&self.parts, ValueKind::Secret, secret)?.is_none() {
                let message =
                    format!("there is no secret \"{secret:.70}\", and the Swarm tells nobody what its own holds");
                return Err(Error::new(Kind::NotFound, spec.subject(), message)
                    .help(format!("set it first: neap secret set {secret}")));
            }
        }
        let mut new = BTreeMap::new();
        for (config, value) in configs {
            if !spec.configs.values().any(|used| used.name == config) {
                continue;
            }
            if values::version(&self.parts, ValueKind::Config, &config)?.is_some() {
                notes.push(format!("config {config}: the one that Neap has serves"));
                continue;
            }
            let value = String::from_utf8(value).map_err(|_| {
                Error::new(Kind::Unsupported, format!("config \"{config:.70}\""), "is no text")
                    .help("put it into the image, and adopt with --change '{\"configs\": {}}'")
            })?;
            new.insert(config, value);
        }
        let adoption = Adoption { service: service.clone(), notes, configs: new.keys().cloned().collect() };
        let apply = Apply { service, with: None, only: Only::Create, auth: None };
        if ask.dry_run {
            // With configs that are not there yet it could only be found out by setting them.
            if new.is_empty() {
                self.prepare(apply).await?;
            }
            return Ok(adoption);
        }
        for (config, value) in new {
            let set = ValueSet { value, only_new: true, no_rollout: true, prefix: String::new() };
            self.set_one(ValueKind::Config, &config, &set).await?;
        }
        let prepared = self.prepare(apply).await?;
        let host = self.parts.host.clone();
        self.command(move |draft, writes| {
            commands::apply(draft, writes, &host, prepared)?;
            let made = draft.world.services.get(&name).cloned();
            let mut service = Service::clone(&*made.ok_or_else(|| Error::internal("adopt", "made no service"))?);
            let mut handover = begin(Way::Adopt, id, PublishMode::default(), draft.clock.wall());
            handover.seen = seen;
            service.handover = Some(handover);
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
        let own = service.spec.engine_native;
        if !own && natives.list(Some(name)).await?.iter().any(|native| native.name == name) {
            let message = format!("the Swarm has a service \"{name:.70}\" of its own already");
            return Err(conflict(message).help("remove or rename that one first (docker service ls)"));
        }
        if !own {
            room_for_ports(&world, &service, ask.publish_mode)?;
        }
        if !ask.share_volumes && !own {
            refuse_shared(&service.spec, "hand-back")?;
        }
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
            let over = known.handover.as_ref().is_some_and(|handover| handover.state == HandoverState::Done);
            if !known.is_leaving() || known.removing || over {
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
        seen: String::new(),
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

/// What tells one state of a native service from another.
fn print(described: &Described) -> String {
    let all = json!([described.service, described.refused]);
    sha256_hex(all.to_string().as_bytes())[..16].to_owned()
}

// Two sets of replicas at once write to what is theirs together, or one of them finds an empty volume on another host.
fn refuse_shared(spec: &ServiceSpec, verb: &str) -> Result<()> {
    let written = |mount: &&Mount| mount.kind != MountKind::Tmpfs && !mount.read_only;
    let targets: Vec<&str> = spec.mounts.iter().filter(written).map(|mount| mount.target.as_str()).collect();
    if targets.is_empty() {
        return Ok(());
    }
    let message = format!("writes to {}, and for a while two sets of its tasks would", targets.join(", "));
    Err(Error::new(Kind::Conflict, spec.subject(), message).help(format!(
        "where that is safe, and every host has what is in there or the service is pinned: neap service {verb} ... --share-volumes"
    )))
}

/// Whether tasks of it can be on a node.
pub fn suits(spec: &ServiceSpec, node: &Node) -> bool {
    node.state == NodeState::Ready
        && node.availability == Availability::Active
        && spec.constraints.iter().all(|constraint| constraint.matches(node))
}

// A port on the host is had by one task; the others would wait for ever, with the ports closed.
fn room_for_ports(world: &World, service: &Service, mode: PublishMode) -> Result<()> {
    let spec = &service.spec;
    if let Some((name, _)) = spec.ports.iter().find(|(_, port)| port.host_port().is_some() && !spec.engine_native) {
        let why =
            format!("ports.{name}: its replicas have it on their hosts, and the Swarm's tasks would wait for it there");
        return Err(Error::new(Kind::Unsupported, spec.subject(), why)
            .help("publish it by the balancer first (mode = \"ingress\"), or remove the service and create it anew with --engine-native"));
    }
    let published = spec.ports.values().any(|port| port.published.is_some());
    if mode != PublishMode::Host || spec.mode == Mode::Global || !published {
        return Ok(());
    }
    let nodes = world.nodes.values().filter(|node| suits(spec, node)).count();
    if spec.replicas as usize <= nodes {
        return Ok(());
    }
    let message = format!("its {} tasks cannot have its ports on {nodes} hosts", spec.replicas);
    Err(Error::new(Kind::Conflict, spec.subject(), message)
        .help("scale it down first, or publish them by the routing mesh: --publish-mode ingress"))
}
