//! Names, for whoever completes what somebody types.

use super::{Runtime, kv};
use crate::client::NameKind;
use crate::model::Result;
use crate::model::bundle::HostedKind;
use crate::model::name::Name;

impl Runtime {
    /// Those that begin so, as many as asked for at most.
    pub(super) fn names_of(&self, of: NameKind, prefix: &str, limit: usize) -> Result<Vec<String>> {
        let world = self.world();
        let some = |names: &mut dyn Iterator<Item = &str>| {
            names.filter(|name| name.starts_with(prefix)).take(limit).map(str::to_owned).collect()
        };
        Ok(match of {
            NameKind::Service => some(&mut world.services.keys().map(Name::as_str)),
            NameKind::Route => some(&mut world.routes.keys().map(Name::as_str)),
            NameKind::Script => some(&mut world.scripts.keys().map(Name::as_str)),
            NameKind::Node => some(&mut world.nodes.values().map(|node| node.hostname.as_str())),
            NameKind::Cron => {
                let epoch = self.parts.host.epoch();
                let crons = epoch.registrations.keys().filter(|(kind, _)| *kind == HostedKind::Cron);
                some(&mut crons.map(|(_, name)| name.as_str()))
            }
            NameKind::Kv => kv::names(&*self.parts.store, "kv", prefix, limit)?,
            NameKind::Secret | NameKind::Config => kv::names(&*self.parts.store, of.as_str(), prefix, limit)?,
        })
    }
}
