//! Routes of a service, and the ports that they lead to.

use serde_json::{Map, Value, json};

use super::table;
use crate::model::route::RouteSpec;
use crate::model::{Error, Result};

/// The flags.
#[derive(clap::Args, Default)]
pub struct RouteArgs {
    /// Send HTTP requests for HOST[:PORT][/PATH] to it
    #[arg(long, visible_alias = "route-add", value_name = "URL")]
    route: Vec<String>,
    /// Send them no more (update)
    #[arg(long, value_name = "URL")]
    route_rm: Vec<String>,
    /// A port that routes and others find by its name, and that is not published
    #[arg(long, value_name = "[NAME=]TARGET")]
    expose: Vec<String>,
}

impl RouteArgs {
    /// Puts them into a description.
    pub fn describe(&self, spec: &mut Map<String, Value>) -> Result<()> {
        for text in &self.expose {
            let (name, target) = text.split_once('=').unwrap_or(("http", text));
            let target: u16 = target.parse().ok().filter(|port| *port > 0).ok_or_else(|| {
                Error::invalid(format!("--expose {text:.60?}"), "is no port").help("write 8080, or http=8080")
            })?;
            table(spec, "ports").insert(name.to_owned(), json!({ "target": target }));
        }
        if self.route.is_empty() && self.route_rm.is_empty() {
            return Ok(());
        }
        let mut routes = spec.get("routes").and_then(Value::as_array).cloned().unwrap_or_default();
        let place = |route: &Value| serde_json::from_value::<RouteSpec>(route.clone()).ok().map(|route| route.shown());
        for text in &self.route_rm {
            let (scheme, bare) =
                text.split_once("://").map_or((None, text.as_str()), |(scheme, rest)| (Some(scheme), rest));
            let gone: RouteSpec =
                bare.parse().map_err(|error: Error| error.about(format!("--route-rm {text:.60?}")))?;
            // As it is listed, or as it was given.
            let is_it = |route: &RouteSpec| {
                let own = if route.tls.is_some() { "https" } else { "http" };
                let same_port = gone.listen.is_none_or(|port| port == route.port_number());
                let same = route.host == gone.host && route.prefix() == gone.prefix();
                same && same_port && scheme.is_none_or(|scheme| scheme == own)
            };
            let there = routes.len();
            routes.retain(|route| !serde_json::from_value(route.clone()).is_ok_and(|route| is_it(&route)));
            if routes.len() == there {
                let known: Vec<String> = routes.iter().filter_map(place).collect();
                let known = if known.is_empty() { "none".to_owned() } else { known.join(", ") };
                return Err(
                    Error::not_found(format!("--route-rm {text:.60?}")).help(format!("its routes are: {known}"))
                );
            }
        }
        for text in &self.route {
            let added: RouteSpec = text.parse().map_err(|error: Error| error.about(format!("--route {text:.60?}")))?;
            routes.retain(|route| place(route) != Some(added.shown()));
            routes.push(json!(added));
        }
        spec.insert("routes".into(), routes.into());
        Ok(())
    }
}
