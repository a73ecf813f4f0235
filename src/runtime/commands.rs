//! What people ask for, as changes of the world: apply, scale, remove.

use std::net::Ipv4Addr;
use std::sync::Arc;

use super::persist::{bundle_key, node_key};
use super::prepare::{Prepared, Resolved};
use super::releases::{BY_HAND, Way, begin_release};
use crate::client::Only;
use crate::model::bundle::HostedKind;
use crate::model::event::What;
use crate::model::id::ServiceId;
use crate::model::internal::{Internal, Range};
use crate::model::name::Name;
use crate::model::node::{self, Availability, NodeSettings, NodeUpdate};
use crate::model::port::PortSpec;
use crate::model::release::ReleaseState;
use crate::model::service::{MAX_REPLICAS, Revision, Service, ServiceSpec};
use crate::model::task::StopReason;
use crate::model::{Error, Kind, Result};
use crate::scheduler::slots;
use crate::scheduler::world::{Change, Draft, Note, World};
use crate::script::host::ScriptHost;
use crate::script::registration::Facts;
use crate::store::{Write, encode};

/// The error for a service that is not there.
pub fn missing(world: &World, name: &str) -> Error {
    let hint = crate::model::suggest::nearest(name, world.services.keys().map(crate::model::name::Name::as_str));
    let error = Error::not_found(format!("service \"{name:.70}\""));
    match hint {
        Some(near) => error.help(format!("did you mean \"{near}\"?")),
        None => error.help("`neap service ls` lists them"),
    }
}

/// Whether an apply, or the plan of one, is refused as things stand.
pub fn refuse(world: &World, prepared: &Prepared) -> Result<()> {
    let Prepared { spec, only, base, resolved, .. } = prepared;
    if let Some(old) = world.services.get(&spec.name) {
        if old.removing {
            return Err(Error::new(Kind::Conflict, spec.subject(), "is just being removed")
                .help("wait until it is gone")
                .retry(true));
        }
        refuse_leaving(old)?;
        if base.as_ref().is_some_and(|base| *base != old.spec) {
            return Err(Error::new(Kind::Conflict, spec.subject(), "was changed by somebody else just now").retry(true));
        }
        if old.spec.engine_native != spec.engine_native {
            let message = "engine_native: cannot be changed of a service that is there";
            return Err(Error::new(Kind::Conflict, spec.subject(), message).help(format!(
                "give it back to the Swarm (neap service hand-back {}), or remove it first",
                spec.name
            )));
        }
        if spec.engine_native && old.spec.mode != spec.mode {
            return Err(Error::new(Kind::Conflict, spec.subject(), "mode: the Swarm changes it of no service")
                .help("remove the service, and create it anew"));
        }
        if *only == Only::Create {
            return Err(Error::new(Kind::Conflict, spec.subject(), "exists already")
                .help(format!("change it with: neap service update {}", spec.name)));
        }
    }
    refuse_taken_ports(world, spec)?;
    if let Some(release) = world.open_release(&spec.name)
        && release.reason.as_deref() == Some(BY_HAND)
        && release.state == ReleaseState::Paused
        && world.revision(&spec.name, release.to).is_some_and(|held| held.hash != resolved.hash())
    {
        return Err(Error::new(Kind::Conflict, spec.subject(), "its release was paused by hand").help(format!(
            "resume it (neap service rollout resume {0}) or roll it back (neap service rollback {0}) first",
            spec.name
        )));
    }
    Ok(())
}

/// Creates or updates a service.
pub fn apply(draft: &mut Draft, writes: &mut Vec<Write>, host: &ScriptHost, prepared: Prepared) -> Result<()> {
    refuse(&draft.world, &prepared)?;
    let Prepared { spec, only, resolved, bundle, rollout, rollout_bundle, internal, .. } = prepared;
    let address = address(&draft.world, &spec, internal)?;
    let old = draft.world.services.get(&spec.name).cloned();
    let bundle = bundle.map(|bundle| {
        let record = encode(&bundle);
        // Made known again: between the preparation and now nothing used it, so it may have been forgotten.
        let hash = host.add(bundle);
        writes.push(Write::put(bundle_key(&hash), record));
        hash
    });
    if let Some(hash) = &bundle {
        refuse_taken_names(&draft.world, host, &spec.name, hash)?;
    }
    match old {
        // Removed between the preparation and now.
        None if only == Only::Update => return Err(missing(&draft.world, spec.name.as_str())),
        None => create(draft, spec, &resolved, bundle, address),
        Some(old) => {
            let old = Service { address, ..Service::clone(&old) };
            update(draft, &old, spec, &resolved, bundle, &rollout, rollout_bundle);
        }
    }
    Ok(())
}

// A service's own, where it is balanced inside the cluster: the one that it has already, or one that nobody has.
fn address(world: &World, spec: &ServiceSpec, range: Range) -> Result<Option<Ipv4Addr>> {
    if spec.internal == Internal::Direct {
        return Ok(None);
    }
    let own = world.services.get(&spec.name).and_then(|service| service.address);
    if let Some(own) = own.filter(|own| range.contains(*own)) {
        return Ok(Some(own));
    }
    let taken = world.services.values().filter_map(|service| service.address).collect();
    range.address(spec.name.as_str(), &taken).map(Some)
}

// What acts by itself has one owner, whoever brings it along.
pub(super) fn refuse_taken_names(world: &World, host: &ScriptHost, name: &Name, bundle: &str) -> Result<()> {
    let own = host.registered(Some(bundle))?;
    if !own.registrations.keys().any(|(kind, _)| kind.acts()) {
        return Ok(());
    }
    let mut others = world.clone();
    others.services.remove(name);
    let registered = |hash: &str| host.registered(Some(hash));
    let mut epoch = super::scripts::epoch(&others, &registered, others.scripts.values())?;
    let mut failed = None;
    epoch.add(&format!("service \"{name}\""), &own, HostedKind::acts, &mut |error| failed = Some(error));
    failed.map_or(Ok(()), Err)
}

/// An error where another service publishes a port of it.
pub fn refuse_taken_ports(world: &World, spec: &ServiceSpec) -> Result<()> {
    let old = world.services.get(&spec.name).filter(|old| !old.spec.engine_native && !spec.engine_native);
    for (name, port) in &spec.ports {
        let changes = |theirs: &PortSpec| {
            port.published.is_some()
                && theirs.published == port.published
                && theirs.protocol == port.protocol
                && theirs.mode != port.mode
        };
        if old.is_some_and(|old| old.spec.ports.values().any(changes)) {
            let message = format!(
                "ports.{name}: mode {} under a number that is published otherwise now; replicas and balancer would wait for one another",
                port.mode.as_str()
            );
            return Err(Error::new(Kind::Unsupported, spec.subject(), message)
                .help("take the port out first and publish it anew afterwards, or take another number"));
        }
    }
    refuse_taken_ports_of_others(world, spec)
}

/// The same without regard to what the service itself has published until now.
pub(super) fn refuse_taken_ports_of_others(world: &World, spec: &ServiceSpec) -> Result<()> {
    super::routes::refuse_met(world, spec)?;
    for (name, port) in &spec.ports {
        let Some(published) = port.published else { continue };
        for other in world.services.values().filter(|other| other.spec.name != spec.name) {
            let taken = other.spec.ports.iter().find(|(_, theirs)| {
                let same_address = theirs.address.is_none() || port.address.is_none() || theirs.address == port.address;
                // Two on their replicas' hosts do not meet: they are placed apart.
                let apart = theirs.host_port().is_some()
                    && port.host_port().is_some()
                    && other.spec.engine_native == spec.engine_native;
                theirs.published == Some(published) && theirs.protocol == port.protocol && same_address && !apart
            });
            if let Some((theirs, _)) = taken {
                let message = format!(
                    "ports.{name}: {published} is published by service \"{}\" (port \"{theirs}\")",
                    other.spec.name
                );
                return Err(Error::new(Kind::Conflict, spec.subject(), message)
                    .help("publish another port, or remove that service first"));
            }
        }
    }
    Ok(())
}

fn revision(draft: &Draft, resolved: &Resolved, bundle: Option<&String>, number: u32) -> Change {
    Change::Revision(Arc::new(Revision {
        service: resolved.spec.name.clone(),
        number,
        hash: resolved.hash(),
        spec: resolved.spec.clone(),
        bundle: bundle.cloned(),
        kv: resolved.kv.clone(),
        secrets: resolved.secrets.clone(),
        configs: resolved.configs.clone(),
        created_at: draft.clock.wall(),
    }))
}

fn create(
    draft: &mut Draft,
    spec: ServiceSpec,
    resolved: &Resolved,
    bundle: Option<String>,
    address: Option<Ipv4Addr>,
) {
    let now = draft.clock.wall();
    let name = spec.name.clone();
    draft.change(revision(draft, resolved, bundle.as_ref(), 1));
    let service = Service {
        id: ServiceId::new(draft.clock),
        spec,
        revision: 1,
        active: 1,
        stable: None,
        previous: None,
        bundle,
        removing: false,
        address,
        handover: None,
        created_at: now,
        updated_at: now,
    };
    draft.change(Change::Service(Arc::new(service)));
    draft.note(What::ServiceCreated, &name, "revision 1");
}

fn update(
    draft: &mut Draft,
    old: &Service,
    spec: ServiceSpec,
    resolved: &Resolved,
    bundle: Option<String>,
    rollout: &Facts,
    rollout_bundle: Option<String>,
) {
    let name = spec.name.clone();
    let mut service = old.clone();
    service.bundle = bundle.or(service.bundle);
    let target = slots::target(&draft.world, old);
    let same = draft.world.revision(&name, target).is_some_and(|revision| revision.hash == resolved.hash());
    // The address of before is the world's: the one that `old` has is the wanted one already.
    let before = draft.world.services.get(&name).and_then(|service| service.address);
    let changed = service.spec != spec || service.bundle != old.bundle || service.address != before;
    service.spec = spec;
    // Edited scripts without any other change: what runs is judged by them from now on.
    if same
        && service.bundle != old.bundle
        && let Some(current) = draft.world.revision(&name, target)
    {
        let mut current = Revision::clone(current);
        current.bundle.clone_from(&service.bundle);
        draft.change(Change::Revision(Arc::new(current)));
    }
    if same {
        super::releases::mended(draft, &service, rollout_bundle.as_ref());
    }
    // After a release that stopped half-way, asking for what runs elsewhere brings every slot there.
    if same && slots::is_half_way(&draft.world, old) {
        let way = Way { rollout: &service.spec.rollout, facts: rollout, scripts: rollout_bundle.clone() };
        begin_release(draft, &service, target, way);
    }
    if !same {
        service.revision += 1;
        draft.change(revision(draft, resolved, service.bundle.as_ref(), service.revision));
        match service.spec.engine_native {
            // The Swarm has its own way from one to the next.
            true => {
                service.stable = Some(old.active);
                service.active = service.revision;
            }
            false => {
                let way = Way { rollout: &service.spec.rollout, facts: rollout, scripts: rollout_bundle };
                begin_release(draft, &service, service.revision, way);
            }
        }
    }
    if changed || !same {
        service.updated_at = draft.clock.wall();
        let what = if same {
            "description changed, no task replaced".to_owned()
        } else {
            format!("revision {}", service.revision)
        };
        draft.note(What::ServiceUpdated, &name, what);
        draft.change(Change::Service(Arc::new(service)));
    }
}

// What the Swarm is just taking over is not changed under its hands.
pub(super) fn refuse_leaving(service: &Service) -> Result<()> {
    if !service.is_leaving() {
        return Ok(());
    }
    Err(Error::new(Kind::Conflict, service.spec.subject(), "is just being given back to the Swarm")
        .help(format!("wait until it is, or let it stay: neap service hand-back {} --cancel", service.spec.name)))
}

pub(super) fn present(draft: &Draft, name: &str) -> Result<Arc<Service>> {
    draft.world.services.get(name).cloned().ok_or_else(|| missing(&draft.world, name))
}

/// Changes the number of replicas.
pub fn scale(draft: &mut Draft, name: &str, replicas: u32) -> Result<()> {
    let old = present(draft, name)?;
    if old.removing {
        return Err(Error::new(Kind::Conflict, old.spec.subject(), "is just being removed"));
    }
    refuse_leaving(&old)?;
    if old.spec.mode == crate::model::service::Mode::Global {
        return Err(Error::invalid(old.spec.subject(), "is global: it has one replica on each suitable node")
            .help("a replicated service can be scaled"));
    }
    if replicas > MAX_REPLICAS {
        return Err(Error::invalid(old.spec.subject(), format!("replicas: {replicas} is more than {MAX_REPLICAS}")));
    }
    if old.spec.replicas == replicas {
        return Ok(());
    }
    let mut service = Service::clone(&old);
    draft.note(What::ServiceUpdated, &service.spec.name, format!("replicas {} -> {replicas}", service.spec.replicas));
    service.spec.replicas = replicas;
    service.updated_at = draft.clock.wall();
    draft.change(Change::Service(Arc::new(service)));
    Ok(())
}

/// Removes a service.
pub fn remove(draft: &mut Draft, name: &str) -> Result<()> {
    let mut service = Service::clone(&*present(draft, name)?);
    if !service.removing {
        // Its tasks in the Swarm would be nobody's.
        refuse_leaving(&service)?;
        service.removing = true;
        draft.change(Change::Service(Arc::new(service)));
    }
    Ok(())
}

/// Changes a node's availability and labels. `kept`: the engine keeps them itself, and only a drain that is under way is
/// written down here.
pub fn update_node(draft: &mut Draft, writes: &mut Vec<Write>, id: &str, update: NodeUpdate, kept: bool) -> Result<()> {
    let mut node = node::named(draft.world.nodes.values().map(|node| &**node), id)?.clone();
    node.availability = update.availability.unwrap_or(node.availability);
    node.role = update.role.unwrap_or(node.role);
    node.labels.extend(update.label_add);
    for key in &update.label_rm {
        node.labels.remove(key);
    }
    let settings = match kept {
        true if node.availability == Availability::Drain => {
            NodeSettings { availability: Availability::Drain, ..NodeSettings::default() }
        }
        true => NodeSettings::default(),
        false => NodeSettings { availability: node.availability, labels: node.labels.clone() },
    };
    writes.push(Write::put(node_key(&node.id), encode(&settings)));
    let message = format!("availability {}, {} labels", node.availability.as_str(), node.labels.len());
    draft.decision.notes.push(Note {
        what: What::NodeUpdated,
        service: None,
        task: None,
        image: None,
        subject: node.hostname.clone(),
        message,
    });
    if update.force {
        let here = draft.world.tasks.values().filter(|task| task.node.as_ref() == Some(&node.id) && task.wanted());
        for task in here.cloned().collect::<Vec<_>>() {
            draft.stop(&task, StopReason::Drained);
        }
    }
    draft.world.set_nodes([Arc::new(node)]);
    // What a node offers concerns every service.
    for name in draft.world.services.keys().cloned().collect::<Vec<_>>() {
        draft.wake(&name, draft.clock.now());
    }
    Ok(())
}
