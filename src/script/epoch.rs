//! All registrations that serve the whole cluster at one time. A reload makes another epoch and swaps it in whole.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::host::Inspected;
use super::registration::Facts;
use crate::model::bundle::{HostedKind, Registration, ScriptSet};
use crate::model::{Error, Kind, Result};

/// Registrations by kind and name.
#[derive(Debug, Default)]
pub struct Epoch {
    /// Counts reloads.
    pub number: u64,
    /// Everything: what the sets register, and what acts by itself in the bundles of services.
    pub registrations: BTreeMap<(HostedKind, String), Found>,
}

/// A registration and whose it is.
#[derive(Debug, Clone)]
pub struct Found {
    /// The registration.
    pub registration: Registration,
    /// Its plain fields.
    pub facts: Facts,
    /// As people call the owner: `scripts "shop"`, `service "web"`.
    pub owner: String,
}

impl Epoch {
    /// Of sets and of services with bundles of their own. A name that two owners have is an error that names both.
    pub fn of<'a>(
        number: u64,
        sets: impl Iterator<Item = &'a Arc<ScriptSet>>,
        services: impl Iterator<Item = (&'a str, &'a str)>,
        registered: &dyn Fn(&str) -> Result<Arc<Inspected>>,
    ) -> Result<Self> {
        let mut failed = None;
        let epoch =
            Self::gather(number, sets, services, registered, &mut |error| failed = failed.take().or(Some(error)));
        failed.map_or(Ok(epoch), Err)
    }

    /// The same, without those that cannot serve: `refused` is told why.
    pub fn gather<'a>(
        number: u64,
        sets: impl Iterator<Item = &'a Arc<ScriptSet>>,
        services: impl Iterator<Item = (&'a str, &'a str)>,
        registered: &dyn Fn(&str) -> Result<Arc<Inspected>>,
        refused: &mut dyn FnMut(Error),
    ) -> Self {
        // Of services first: whoever asks for what is taken pushes a set, and is told who has it.
        let mut epoch = Epoch { number, registrations: BTreeMap::new() };
        for (service, bundle) in services {
            match registered(bundle) {
                Ok(inspected) => {
                    epoch.add(&format!("service \"{service}\""), &inspected, HostedKind::acts, refused);
                }
                Err(error) => refused(error),
            }
        }
        for set in sets {
            match registered(&set.active) {
                Ok(inspected) => epoch.add(&format!("scripts \"{}\"", set.name), &inspected, |_| true, refused),
                Err(error) => refused(error),
            }
        }
        epoch
    }

    /// Adds what `owner` registers of the kinds that `which` picks; whoever has a name already keeps it.
    pub fn add(
        &mut self,
        owner: &str,
        inspected: &Inspected,
        which: impl Fn(HostedKind) -> bool,
        refused: &mut dyn FnMut(Error),
    ) {
        for ((kind, name), (registration, facts)) in &inspected.registrations {
            if !which(*kind) {
                continue;
            }
            if let Some(first) = self.registrations.get(&(*kind, name.clone())) {
                let message = format!(
                    "belongs to {} already ({}:{})",
                    first.owner, first.registration.file, first.registration.line
                );
                let second = format!("{owner} registers it as well, at {}:{}", registration.file, registration.line);
                let error = Error::new(Kind::Conflict, format!("{} \"{name}\"", kind.as_str()), message);
                refused(error.cause(second).help("choose another name, or remove the other first"));
                continue;
            }
            let found = Found { registration: registration.clone(), facts: facts.clone(), owner: owner.to_owned() };
            self.registrations.insert((*kind, name.clone()), found);
        }
    }
}
