//! Hosted scripts of the whole cluster: pushed, taken back, removed. What is wrong with them is found before anything
//! changes, and what serves is replaced at once.

use std::sync::Arc;

use crate::client::scripts::{Back, Push, ScriptCalls, ScriptSource, ScriptStatus};
use crate::model::bundle::{Bundle, HostedKind, ScriptSet, Source, VERSIONS, Version};
use crate::model::event::What;
use crate::model::name::Name;
use crate::model::{Error, Kind, Result};
use crate::scheduler::world::{Change, Draft, Note, World};
use crate::script::epoch::Epoch;
use crate::script::host::{Inspected, ScriptHost};
use crate::script::stdlib;
use crate::store::{MAX_VALUE, Write, encode};

use super::persist::bundle_key;

/// Finds what a bundle registers, by its hash.
pub type Registered<'a> = dyn Fn(&str) -> Result<Arc<Inspected>> + 'a;

/// Scripts that were loaded once and found right in themselves.
pub struct Prepared {
    bundle: Bundle,
    hash: String,
    registrations: Arc<Inspected>,
}

/// Loads scripts where waiting for them holds up nobody else.
pub fn prepare(name: &Name, push: Push) -> Result<Prepared> {
    let subject = format!("scripts \"{name}\"");
    push.bundle.validate()?;
    if encode(&push.bundle).len() > MAX_VALUE {
        return Err(Error::new(Kind::Exhausted, subject, format!("take more than {MAX_VALUE} bytes together"))
            .help("push them under several names"));
    }
    let hash = push.bundle.hash();
    let registrations = Arc::new(crate::script::host::inspect(Arc::new(push.bundle.clone()), &hash)?);
    if registrations.registrations.is_empty() {
        return Err(Error::new(Kind::Script, subject, "register nothing")
            .help("a hosted script says policy, check, rollout, cron or on, with a name and a table"));
    }
    Ok(Prepared { bundle: push.bundle, hash, registrations })
}

impl Prepared {
    /// What would be shown of them.
    pub fn status(&self, set: ScriptSet) -> ScriptStatus {
        let registrations = self.registrations.registrations.values().map(|(registration, _)| registration.clone());
        ScriptStatus { set, registrations: registrations.collect() }
    }

    /// The set that they would make.
    pub fn set(
        &self,
        world: &World,
        name: &Name,
        source: Source,
        now: crate::model::clock::Timestamp,
        by: &str,
    ) -> ScriptSet {
        let version = Version { hash: self.hash.clone(), at: now, by: by.to_owned() };
        let mut versions = world.scripts.get(name).map(|set| set.versions.clone()).unwrap_or_default();
        versions.retain(|known| known.hash != self.hash);
        versions.push(version);
        let surplus = versions.len().saturating_sub(VERSIONS);
        versions.drain(..surplus);
        ScriptSet { name: name.clone(), source, active: self.hash.clone(), versions }
    }
}

/// Makes the prepared scripts serve under `name`.
pub fn push(
    draft: &mut Draft,
    writes: &mut Vec<Write>,
    host: &ScriptHost,
    prepared: Prepared,
    whose: &Whose,
) -> Result<()> {
    try_out(draft, host, &prepared, whose)?;
    writes.push(Write::put(bundle_key(&prepared.hash), encode(&prepared.bundle)));
    host.add_inspected(prepared.bundle, prepared.registrations);
    Ok(())
}

/// Under which name, from where, when and by whom scripts come.
pub struct Whose {
    /// The owner.
    pub name: Name,
    /// From where.
    pub source: Source,
    /// When.
    pub at: crate::model::clock::Timestamp,
    /// By whom.
    pub by: String,
}

/// Whether the prepared scripts could serve: all of it but the scripts themselves becomes known to nobody but the draft.
pub fn try_out(draft: &mut Draft, host: &ScriptHost, prepared: &Prepared, whose: &Whose) -> Result<()> {
    let set = prepared.set(&draft.world, &whose.name, whose.source, whose.at, &whose.by);
    if let Some(old) = draft.world.scripts.get(&set.name)
        && old.source != set.source
    {
        let whose =
            if old.source == Source::Folder { "the daemon's scripts folder" } else { "somebody who pushed them" };
        return Err(Error::new(Kind::Conflict, format!("scripts \"{}\"", set.name), format!("belong to {whose}"))
            .help("choose another name"));
    }
    replace(draft, host, set, &|hash| match hash == prepared.hash {
        true => Ok(prepared.registrations.clone()),
        false => host.registered(Some(hash)),
    })
}

/// Goes back to an earlier version.
pub fn roll_back(draft: &mut Draft, host: &ScriptHost, name: &str, back: &Back) -> Result<()> {
    let old = present(&draft.world, name)?;
    refuse_folder(&old, Source::Push, "change the files in that folder")?;
    let active = old.versions.iter().position(|version| version.hash == old.active).unwrap_or_default();
    let found = match &back.to {
        Some(to) => {
            let fits = |version: &&Version| version.hash.starts_with(to.as_str());
            let found = old.versions.iter().find(fits);
            if let Some(other) =
                old.versions.iter().filter(fits).find(|other| Some(&other.hash) != found.map(|v| &v.hash))
            {
                let message = format!("{to:?} fits more than one version: {}, ...", other.hash);
                return Err(Error::invalid(format!("scripts \"{name:.63}\""), message).help("write more of its hash"));
            }
            found
        }
        None => active.checked_sub(1).and_then(|at| old.versions.get(at)),
    };
    let found = found.ok_or_else(|| {
        let message = match &back.to {
            Some(to) => format!("have no version {to:.20}"),
            None => "have no earlier version".to_owned(),
        };
        let known: Vec<&str> = old.versions.iter().map(|version| version.hash.as_str()).collect();
        Error::new(Kind::NotFound, format!("scripts \"{name:.63}\""), message).help(format!(
            "kept are, oldest first: {}; name one: neap script rollback {name:.63} --to HASH",
            known.join(", ")
        ))
    })?;
    let set = ScriptSet { active: found.hash.clone(), ..ScriptSet::clone(&old) };
    replace(draft, host, set, &|hash| host.registered(Some(hash)))
}

/// Removes a set.
pub fn remove(draft: &mut Draft, host: &ScriptHost, name: &str, of: Source) -> Result<()> {
    let old = present(&draft.world, name)?;
    refuse_folder(&old, of, "remove the files from that folder")?;
    let sets = draft.world.scripts.values().filter(|set| set.name != old.name);
    check(&draft.world, host, &epoch(&draft.world, &|hash| host.registered(Some(hash)), sets)?)?;
    draft.change(Change::RemoveScripts(old.name.clone()));
    tell(draft, &old.name, "removed".into());
    Ok(())
}

// What a folder says is changed in the folder.
fn refuse_folder(set: &ScriptSet, by: Source, help: &str) -> Result<()> {
    if set.source != Source::Folder || by == Source::Folder {
        return Ok(());
    }
    let subject = format!("scripts \"{}\"", set.name);
    Err(Error::new(Kind::Conflict, subject, "belong to the daemon's scripts folder").help(help))
}

fn replace(draft: &mut Draft, host: &ScriptHost, set: ScriptSet, registered: &Registered) -> Result<()> {
    let set = Arc::new(set);
    let inspected = registered(&set.active)?;
    for ((kind, name), (registration, _)) in &inspected.registrations {
        if host.in_library(*kind, name) {
            let message = format!("is the library's; {}:{} registers it again", registration.file, registration.line);
            return Err(Error::new(Kind::Conflict, format!("{} \"{name}\"", kind.as_str()), message)
                .help("choose another name"));
        }
    }
    let others = draft.world.scripts.values().filter(|other| other.name != set.name);
    let sets = others.chain(std::iter::once(&set));
    check(&draft.world, host, &epoch(&draft.world, registered, sets)?)?;
    let message = format!("version {}, {} registrations", set.active, inspected.registrations.len());
    if draft.world.scripts.get(&set.name).is_none_or(|old| **old != *set) {
        tell(draft, &set.name, message);
        draft.change(Change::Scripts(set));
    }
    Ok(())
}

fn tell(draft: &mut Draft, name: &Name, message: String) {
    let subject = name.to_string();
    draft.decision.notes.push(Note {
        what: What::ScriptsReloaded,
        service: None,
        task: None,
        image: None,
        subject,
        message,
    });
    // What they decide concerns every service.
    for service in draft.world.services.keys().cloned().collect::<Vec<_>>() {
        draft.wake(&service, draft.clock.now());
    }
}

/// The error for a set that is not there.
fn present(world: &World, name: &str) -> Result<Arc<ScriptSet>> {
    world.scripts.get(name).cloned().ok_or_else(|| {
        let hint = crate::model::suggest::nearest(name, world.scripts.keys().map(Name::as_str));
        let error = Error::not_found(format!("scripts \"{name:.63}\""));
        error.help(hint.map_or("`neap script ls` lists them".into(), |near| format!("did you mean \"{near}\"?")))
    })
}

/// All that would serve with these sets and the services as they are.
pub fn epoch<'a>(
    world: &'a World,
    registered: &Registered,
    sets: impl Iterator<Item = &'a Arc<ScriptSet>>,
) -> Result<Epoch> {
    let services = world.services.iter().filter(|(_, service)| !service.removing);
    let bundles = services.filter_map(|(name, service)| Some((name.as_str(), service.bundle.as_deref()?)));
    Epoch::of(0, sets, bundles, registered)
}

// What services name must be there afterwards, if it was before.
fn check(world: &World, host: &ScriptHost, next: &Epoch) -> Result<()> {
    let now = host.epoch();
    for (name, service) in world.services.iter().filter(|(_, service)| !service.removing) {
        let own = host.registered(service.bundle.as_deref())?;
        let spec = &service.spec;
        let checked = spec.check.as_ref().and_then(|check| check.script.as_ref());
        let named = (spec.policy.iter().map(|policy| (HostedKind::Policy, policy.name.as_str())))
            .chain(spec.rollouts().map(|used| (HostedKind::Rollout, used.name.as_str())))
            .chain(checked.map(|check| (HostedKind::Check, check.as_str())));
        for (kind, wanted) in named {
            let key = (kind, wanted.to_owned());
            let elsewhere = own.registrations.contains_key(&key) || host.in_library(kind, wanted);
            if !elsewhere && now.registrations.contains_key(&key) && !next.registrations.contains_key(&key) {
                let message = format!("is used by service \"{name}\"");
                return Err(Error::new(Kind::Conflict, format!("{} \"{wanted}\"", kind.as_str()), message)
                    .help("change the service first, or keep the registration"));
            }
        }
    }
    Ok(())
}

/// Every set with what it registers.
pub fn list(world: &World, host: &ScriptHost) -> Result<Vec<ScriptStatus>> {
    world.scripts.values().map(|set| status(set, host)).collect()
}

/// One set with what it registers.
pub fn status(set: &ScriptSet, host: &ScriptHost) -> Result<ScriptStatus> {
    let inspected = host.registered(Some(&set.active))?;
    let registrations = inspected.registrations.values().map(|(registration, _)| registration.clone());
    Ok(ScriptStatus { set: set.clone(), registrations: registrations.collect() })
}

/// One set's sources.
pub fn source(world: &World, host: &ScriptHost, name: &str, version: Option<&str>) -> Result<ScriptSource> {
    let set = present(world, name)?;
    let hash = match version {
        None => set.active.clone(),
        Some(wanted) => {
            let found = set.versions.iter().find(|version| version.hash.starts_with(wanted));
            found.map(|version| version.hash.clone()).ok_or_else(|| {
                Error::new(Kind::NotFound, format!("scripts \"{name:.63}\""), format!("have no version {wanted:.20}"))
            })?
        }
    };
    let bundle = host.bundle(&hash).ok_or_else(|| Error::internal(format!("scripts \"{name}\""), "are not at hand"))?;
    Ok(ScriptSource { set: ScriptSet::clone(&set), version: hash, bundle: Bundle::clone(&bundle) })
}

/// What was called how often.
pub fn calls(world: &World, host: &ScriptHost) -> Vec<ScriptCalls> {
    use std::sync::atomic::Ordering::Relaxed;
    let owner = |bundle: &str| {
        if bundle == stdlib::OWNER {
            return "library".to_owned();
        }
        let set = world.scripts.values().find(|set| set.active == bundle);
        let service = || world.services.values().find(|service| service.bundle.as_deref() == Some(bundle));
        match set {
            Some(set) => format!("scripts \"{}\"", set.name),
            None => service().map(|service| format!("service \"{}\"", service.spec.name)).unwrap_or_default(),
        }
    };
    let shown = host.calls().into_iter().map(|((kind, bundle, name), calls)| ScriptCalls {
        kind,
        owner: owner(&bundle),
        calls: calls.count.load(Relaxed),
        errors: calls.errors.load(Relaxed),
        total_ms: calls.nanos.load(Relaxed) as f64 / 1e6,
        longest_ms: calls.longest.load(Relaxed) as f64 / 1e6,
        memory: calls.memory.load(Relaxed),
        last_error: calls.last_error.lock().unwrap_or_else(std::sync::PoisonError::into_inner).clone(),
        quarantine: host.quarantined(kind, &bundle, &name).map(|error| error.message),
        name,
        bundle,
    });
    shown.collect()
}

impl super::Runtime {
    /// One owner's scripts.
    pub(super) fn script_status(&self, name: &str) -> Result<ScriptStatus> {
        let world = self.world();
        let set = world.scripts.get(name).ok_or_else(|| Error::not_found(format!("scripts \"{name:.63}\"")))?;
        status(set, &self.parts.host)
    }

    /// Removes the scripts of one owner; `of`: who asks for it.
    pub(super) async fn drop_scripts(&self, name: &str, of: Source) -> Result<()> {
        let (name, host) = (name.to_owned(), self.parts.host.clone());
        self.command(move |draft, _| remove(draft, &host, &name, of)).await
    }

    /// Replaces the scripts of one owner.
    pub(super) async fn replace_scripts(
        &self,
        name: &str,
        pushed: Push,
        source: Source,
        by: &str,
    ) -> Result<ScriptStatus> {
        let name: Name = name.parse()?;
        let check_only = pushed.check_only;
        let named = name.clone();
        let prepared = self.parts.aside("push", move || prepare(&named, pushed)).await?;
        let whose = Whose { name: name.clone(), source, at: self.parts.clock.wall(), by: by.to_owned() };
        let host = self.parts.host.clone();
        if check_only {
            let world = self.world();
            try_out(&mut Draft::new(&world, &*self.parts.clock), &host, &prepared, &whose)?;
            return Ok(prepared.status(prepared.set(&world, &name, source, whose.at, by)));
        }
        self.command(move |draft, writes| push(draft, writes, &host, prepared, &whose)).await?;
        self.script_status(name.as_str())
    }
}
