//! A service's own routes.

use crate::model::port::Protocol;
use crate::model::service::ServiceSpec;
use crate::model::{Error, Result};

impl ServiceSpec {
    /// An error unless its routes can be.
    pub(in crate::model) fn check_routes(&self) -> Result<()> {
        let subject = self.subject();
        for (index, route) in self.routes.iter().enumerate() {
            let field = format!("routes[{}]", index + 1);
            let wrong = |why: String| Err(Error::invalid(subject.clone(), format!("{field}: {why}")));
            route.validate_of(&format!("{subject}, {field}"))?;
            if self.engine_native {
                return wrong("goes through Neap's balancer, and the Swarm's ports do not".into());
            }
            if route.redirect.is_some() {
                continue;
            }
            match self.routed_port(route.port.as_deref()) {
                Ok(port) if self.ports[port].protocol == Protocol::Udp => {
                    return wrong(format!("leads to ports.{port}, which is udp"));
                }
                Ok(_) => {}
                Err(why) => return wrong(why),
            }
        }
        Ok(())
    }

    /// The port that a route leads to: the one that it names, else the only one.
    pub fn routed_port(&self, named: Option<&str>) -> std::result::Result<&str, String> {
        match named {
            Some(name) => match self.ports.get_key_value(name) {
                Some((name, _)) => Ok(name),
                None => {
                    let hint = crate::model::suggest::hint(name, self.ports.keys().map(String::as_str));
                    Err(format!("leads to port \"{name:.70}\", which it has not{hint}"))
                }
            },
            None => match self.ports.len() {
                1 => Ok(self.ports.keys().next().map_or("", String::as_str)),
                0 => Err("leads to no port; give it one, such as ports = { http = { target = 8080 } }".into()),
                _ => Err("does not say which of the ports it leads to (port = ...)".into()),
            },
        }
    }
}
