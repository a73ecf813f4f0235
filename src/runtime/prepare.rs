//! A description on its way in: read, its scripts found and checked, its keys and secrets looked up. Outside the conductor,
//! since it takes time.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde_json::Value;

use super::commands::missing;
use super::{Parts, kv, values};
use crate::client::kv::ValueKind;
use crate::client::{Apply, Only};
use crate::model::bundle::{Bundle, HostedKind};
use crate::model::check::CheckSpec;
use crate::model::internal::Range;
use crate::model::service::ServiceSpec;
use crate::model::{Error, Kind, Result};
use crate::scheduler::world::World;
use crate::script::host::{Inspected, check_options};
use crate::script::registration::Facts;
use crate::store::encode;

/// A description that was read, with its scripts found and checked. Made outside the conductor, since loading scripts
/// takes time.
pub struct Prepared {
    pub(super) spec: ServiceSpec,
    pub(super) only: Only,
    // What a change of some fields was made on top of.
    pub(super) base: Option<ServiceSpec>,
    // The same with what keys and secrets stand for.
    pub(super) resolved: Resolved,
    pub(super) bundle: Option<Bundle>,
    pub(super) rollout: Facts,
    // The scripts of the set that holds the rollout, where a set does.
    pub(super) rollout_bundle: Option<String>,
    // Where addresses inside the cluster are from.
    pub(super) internal: Range,
}

/// What a revision is made of besides its description.
#[derive(Debug, Clone)]
pub struct Resolved {
    /// The description with the values of keys in its environment.
    pub spec: ServiceSpec,
    /// The keys' versions.
    pub kv: BTreeMap<String, u64>,
    /// The secrets' versions.
    pub secrets: BTreeMap<String, u64>,
    /// The configs' versions.
    pub configs: BTreeMap<String, u64>,
}

impl Resolved {
    /// The hash of all that tasks are made of.
    pub fn hash(&self) -> String {
        let template = self.spec.template_hash();
        let all = match (self.secrets.is_empty(), self.configs.is_empty()) {
            (true, true) => return template,
            (false, true) => serde_json::json!([template, self.secrets]),
            (_, false) => serde_json::json!([template, self.secrets, self.configs]),
        };
        let all = all.to_string();
        crate::model::id::sha256_hex(all.as_bytes())[..12].to_owned()
    }
}

impl Prepared {
    /// The description, with all that was filled in.
    pub fn spec(&self) -> &ServiceSpec {
        &self.spec
    }

    /// The hash of all that its tasks would be made of.
    pub fn hash(&self) -> String {
        self.resolved.hash()
    }
}

/// Reads and checks an apply against the world as it is.
pub fn prepare(world: &World, parts: &Parts, ask: Apply) -> Result<Prepared> {
    let host = &*parts.host;
    let name = ask.service.get("name").and_then(Value::as_str).unwrap_or_default().to_owned();
    let old = world.services.get(name.as_str());
    let mut value = ask.service;
    if ask.only == Only::Update {
        let old = old.ok_or_else(|| missing(world, &name))?;
        value = merged(&old.spec, value)?;
    }
    let mut spec = ServiceSpec::read(&value)?;
    parts.engine.accepts(&mut spec)?;
    if spec.engine_native && parts.engine.natives().is_none() {
        let message = format!("engine_native: the {} engine has no services of its own", parts.engine.name());
        return Err(Error::new(Kind::Unsupported, spec.subject(), message).help("a Swarm has"));
    }
    let mut bundle = None;
    let own: Arc<Inspected> = match ask.with {
        Some(with) => {
            with.validate()?;
            let record = encode(&with);
            if record.len() > crate::store::MAX_VALUE {
                return Err(Error::new(
                    Kind::Exhausted,
                    spec.subject(),
                    format!("its scripts take {} bytes together", record.len()),
                )
                .help(format!("at most {} bytes of scripts go with one service", crate::store::MAX_VALUE)));
            }
            let hash = host.add(with.clone());
            bundle = Some(with);
            let own = host.registered(Some(&hash))?;
            let again = own.registrations.iter().find(|((kind, name), _)| host.in_library(*kind, name));
            if let Some(((kind, name), (first, _))) = again {
                let message = format!("is the library's; {}:{} registers it again", first.file, first.line);
                let subject = format!("{} \"{name}\"", kind.as_str());
                return Err(Error::new(Kind::Conflict, subject, message).help("choose another name"));
            }
            own
        }
        None => host.registered(old.and_then(|old| old.bundle.as_deref()))?,
    };
    let about = |error: Error| Error { subject: format!("{}: {}", spec.subject(), error.subject), ..error };
    for policy in &spec.policy {
        let (_, facts) = host.find(&own, HostedKind::Policy, policy.name.as_str()).map_err(about)?;
        check_options(HostedKind::Policy, policy, &facts).map_err(about)?;
    }
    let (rollout_bundle, rollout) = host.find(&own, HostedKind::Rollout, spec.rollout.name.as_str()).map_err(about)?;
    check_options(HostedKind::Rollout, &spec.rollout, &rollout).map_err(about)?;
    if let Some(back) = &spec.rollback {
        let (_, facts) = host.find(&own, HostedKind::Rollout, back.name.as_str()).map_err(about)?;
        check_options(HostedKind::Rollout, back, &facts).map_err(about)?;
    }
    let registered = match spec.check.as_ref().and_then(|check| check.script.as_ref()) {
        Some(script) => Some(host.find(&own, HostedKind::Check, script.as_str()).map_err(about)?.1.check),
        None => None,
    };
    let mut resolved = resolve(parts, &spec)?;
    // Not in the description: what the script says next counts next time.
    if let (Some(check), Some(registered)) = (&mut resolved.spec.check, registered) {
        fill_in(check, &registered);
    }
    let in_own = own.registrations.contains_key(&(HostedKind::Rollout, spec.rollout.name.to_string()));
    let in_set = !in_own && !host.in_library(HostedKind::Rollout, spec.rollout.name.as_str());
    let rollout_bundle = in_set.then_some(rollout_bundle);
    let base = old.filter(|_| ask.only == Only::Update).map(|old| old.spec.clone());
    let internal = parts.internal;
    Ok(Prepared { spec, only: ask.only, base, resolved, bundle, rollout, rollout_bundle, internal })
}

// Keys and secrets as they are now: from here on they belong to the revision.
fn resolve(parts: &Parts, spec: &ServiceSpec) -> Result<Resolved> {
    let mut resolved =
        Resolved { spec: spec.clone(), kv: BTreeMap::new(), secrets: BTreeMap::new(), configs: BTreeMap::new() };
    for (name, key) in &spec.env_kv {
        let entry = kv::get(&*parts.store, key).map_err(|error| error.about(spec.subject()))?;
        let entry = entry.ok_or_else(|| {
            let message = format!("env.{name}: there is no key \"{key:.70}\"");
            Error::new(Kind::NotFound, spec.subject(), message).help(format!("set it first: neap kv set {key} VALUE"))
        })?;
        if entry.base64 {
            let message = format!("env.{name}: key \"{key:.70}\" holds bytes that are no text");
            return Err(Error::invalid(spec.subject(), message));
        }
        resolved.kv.insert(key.clone(), entry.version);
        resolved.spec.env.insert(name.clone(), entry.value);
    }
    let version = |of: ValueKind, field: &str, name: &String| {
        let of_spec = |error: Error| error.about(spec.subject());
        values::version(parts, of, name).map_err(of_spec)?.ok_or_else(|| {
            let what = of.as_str();
            let message = format!("{what}s.{field}: there is no {what} \"{name:.70}\"");
            Error::new(Kind::NotFound, spec.subject(), message).help(format!("set it first: neap {what} set {name}"))
        })
    };
    for (file, secret) in &spec.secrets {
        resolved.secrets.insert(secret.name.clone(), version(ValueKind::Secret, file, &secret.name)?);
    }
    for (target, config) in &spec.configs {
        resolved.configs.insert(config.name.clone(), version(ValueKind::Config, target, &config.name)?);
    }
    for route in &spec.routes {
        super::routes::has_secrets(parts, &spec.subject(), route)?;
    }
    resolved.spec.validate()?;
    Ok(resolved)
}

// A scripted check's own times are part of the revision that uses it.
fn fill_in(check: &mut CheckSpec, registered: &CheckSpec) {
    check.every = check.every.or(registered.every);
    check.timeout = check.timeout.or(registered.timeout);
    check.healthy = check.healthy.or(registered.healthy);
    check.unhealthy = check.unhealthy.or(registered.unhealthy);
    check.start_period = check.start_period.or(registered.start_period);
    check.on_fail = check.on_fail.or(registered.on_fail);
}

// A field takes the place of the whole field. What is put into a table of the description, or taken out of it, has words
// of its own: `env_add`, `env_rm`, `label_add`, `label_rm`.
fn merged(old: &ServiceSpec, changes: Value) -> Result<Value> {
    let mut value = serde_json::to_value(old).map_err(|error| Error::internal(old.subject(), error.to_string()))?;
    let (Some(all), Value::Object(mut changes)) = (value.as_object_mut(), changes) else {
        return Err(Error::invalid(old.subject(), "a change is a table of fields"));
    };
    let within =
        ["env", "label"].map(|of| (of, changes.remove(&format!("{of}_rm")), changes.remove(&format!("{of}_add"))));
    // Variables are replaced together, whatever their values come from.
    if changes.contains_key("env") {
        all.remove("env_kv");
    }
    all.append(&mut changes);
    for (of, gone, new) in within {
        let wrong =
            |what: &str, expected: &str| Error::invalid(old.subject(), format!("{of}_{what}: expected {expected}"));
        let tables: &[&str] = if of == "env" { &["env", "env_kv"] } else { &["labels"] };
        let gone = match gone {
            None => Vec::new(),
            // Lua's empty table.
            Some(Value::Object(none)) if none.is_empty() => Vec::new(),
            Some(Value::String(name)) => vec![name],
            Some(names) => serde_json::from_value(names)
                .map_err(|_| wrong("rm", "a name, or a list of names, such as { \"LEVEL\" }"))?,
        };
        let new = match new {
            None => serde_json::Map::new(),
            Some(Value::Object(new)) => new,
            Some(_) => return Err(wrong("add", "a table of names and values, such as { LEVEL = \"debug\" }")),
        };
        if gone.is_empty() && new.is_empty() {
            continue;
        }
        for name in gone.iter().chain(new.keys()) {
            for table in tables {
                if let Some(table) = all.get_mut(*table).and_then(Value::as_object_mut) {
                    table.remove(name);
                }
            }
        }
        // Anything but a table is refused where the description is read.
        let table = all.entry(tables[0]).or_insert_with(|| Value::Object(serde_json::Map::new()));
        if let Some(table) = table.as_object_mut() {
            table.extend(new);
        }
    }
    Ok(value)
}
