//! Ports that the balancers listen on, as they are shown.

use std::net::IpAddr;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::model::name::Name;
use crate::network::table::Flowed;

/// What is spoken on a port.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Speaks {
    /// TCP: a service's port.
    Tcp,
    /// UDP: a service's port.
    Udp,
    /// HTTP: routes.
    Http,
    /// HTTP over TLS: routes.
    Https,
}

impl Speaks {
    /// As it is shown.
    pub fn as_str(self) -> &'static str {
        match self {
            Speaks::Tcp => "tcp",
            Speaks::Udp => "udp",
            Speaks::Http => "http",
            Speaks::Https => "https",
        }
    }
}

/// A port that every host's balancer listens on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct PortInfo {
    /// Its name: `SERVICE/PORT`; at a service's own address inside the cluster `SERVICE/PORT@internal`; where routes are listened for `80`, or
    /// `ADDRESS:80`.
    pub name: String,
    /// The service whose port it is, if it is one's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub service: Option<Name>,
    /// Its number.
    pub port: u16,
    /// The address; all interfaces where it is not given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub address: Option<IpAddr>,
    /// What is spoken there.
    pub speaks: Speaks,
    /// How many replicas take what comes.
    pub serving: u32,
    /// Why it is not listened on, if so.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub problem: Option<String>,
    /// What has gone by it on all hosts since their balancers started, as of a few seconds ago.
    pub flowed: Flowed,
}
