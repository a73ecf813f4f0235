//! What a process cannot have.

use crate::model::container;
use crate::model::service::ServiceSpec;
use crate::model::{Error, Kind, Result};

/// An error that names it.
pub fn accepts(spec: &mut ServiceSpec) -> Result<()> {
    if let Some(check) = &mut spec.check {
        check.by_engine = false;
    }
    if let Some(port) = spec.check.as_ref().and_then(|check| check.inside(|name| spec.ports.contains_key(name))) {
        let message =
            format!("check: port {port} would be asked in a network of the replica's own, which a process has not");
        return Err(Error::new(Kind::Unsupported, spec.subject(), message)
            .help("name a port: ports = { admin = {} }, whose number the process finds in $PORT_ADMIN"));
    }
    if let Some(field) = container::fields(spec).first() {
        let message = format!("{field}: is for containers, and the process engine runs commands");
        // The first word of a command line that was not set apart.
        let help = match (*field, spec.image.as_deref()) {
            ("image", Some(word)) if !word.contains([':', '/']) => {
                format!("a command stands behind two dashes: -- {word} ...; images are run with --engine docker")
            }
            _ => "leave it out, or run the daemon with --engine docker".to_owned(),
        };
        return Err(Error::new(Kind::Unsupported, spec.subject(), message).help(help));
    }
    if let Some((name, _)) = spec.ports.iter().find(|(_, port)| port.host_port().is_some() && port.address.is_some()) {
        let message = format!("ports.{name}.address: with mode host a process itself opens its port, where it likes");
        return Err(Error::new(Kind::Unsupported, spec.subject(), message).help("leave the address out"));
    }
    if let Some(target) = spec.configs.keys().find(|target| target.contains('/')) {
        let message = format!("configs.{target:.80}: a process has no file system of its own");
        return Err(Error::new(Kind::Unsupported, spec.subject(), message)
            .help("give a name alone; the replica finds the file in $NEAP_CONFIGS"));
    }
    for (of, files) in [("secrets", &spec.secrets), ("configs", &spec.configs)] {
        if let Some((target, _)) = files.iter().find(|(_, used)| !used.is_plain()) {
            let message = format!("{of}.{target:.80}: uid, gid and mode are for containers");
            return Err(Error::new(Kind::Unsupported, spec.subject(), message)
                .help("the file is the replica's own, and can be read by it alone"));
        }
    }
    Ok(())
}
