//! Ports as people read them.

use super::rows;
use crate::client::ports::{PortInfo, Speaks};
use crate::model::units::Bytes;

/// `port ls`.
pub fn ports(all: &[PortInfo]) -> String {
    let row = |port: &PortInfo| {
        let place = match port.address {
            Some(address) => std::net::SocketAddr::new(address, port.port).to_string(),
            None => port.port.to_string(),
        };
        let flowed = &port.flowed;
        let is_http = matches!(port.speaks, Speaks::Http | Speaks::Https);
        // Who found no replica is a route's to say.
        let refused = if is_http { "-".to_owned() } else { flowed.refused.to_string() };
        let unrouted = if is_http { flowed.unrouted.to_string() } else { "-".to_owned() };
        [
            place,
            port.speaks.as_str().to_owned(),
            port.service.as_ref().map_or_else(|| "(routes)".to_owned(), |_| port.name.clone()),
            port.serving.to_string(),
            flowed.open.to_string(),
            flowed.connections.to_string(),
            refused,
            unrouted,
            flowed.malformed.to_string(),
            super::stats::amount(Bytes(flowed.bytes_in)),
            super::stats::amount(Bytes(flowed.bytes_out)),
            port.problem.clone().unwrap_or_default(),
        ]
    };
    let head = [
        "PORT",
        "SPEAKS",
        "OF",
        "SERVING",
        "OPEN",
        "CONNECTIONS",
        "REFUSED",
        "UNROUTED",
        "MALFORMED",
        "IN",
        "OUT",
        "PROBLEM",
    ];
    rows(&head, all.iter().map(row))
}
