//! What a process cannot have.

use crate::model::container;
use crate::model::service::ServiceSpec;
use crate::model::{Error, Kind, Result};

/// An error that names it.
pub fn accepts(spec: &mut ServiceSpec) -> Result<()> {
    if let Some(check) = &mut spec.check {
        check.by_engine = false;
    }
    if let Some(field) = container::fields(spec).first() {
        let message = format!("{field}: is for containers, and the process engine runs commands");
        return Err(Error::new(Kind::Unsupported, spec.subject(), message)
            .help("leave it out, or run the daemon with --engine docker"));
    }
    if let Some((name, _)) = spec.ports.iter().find(|(_, port)| port.host_port().is_some() && port.address.is_some()) {
        let message = format!("ports.{name}.address: with mode host a process itself opens its port, where it likes");
        return Err(Error::new(Kind::Unsupported, spec.subject(), message).help("leave the address out"));
    }
    for (target, config) in &spec.configs {
        let wrong = |why: &str| Error::new(Kind::Unsupported, spec.subject(), format!("configs.{target:.80}: {why}"));
        if target.contains('/') {
            return Err(wrong("a process has no file system of its own")
                .help("give a name alone; the replica finds the file in $NEAP_CONFIGS"));
        }
        if config.uid.is_some() || config.gid.is_some() || config.mode.is_some() {
            return Err(wrong("uid, gid and mode are for containers")
                .help("the file is the replica's own, and can be read by it alone"));
        }
    }
    Ok(())
}
