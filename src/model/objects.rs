//! Networks and volumes, as they are asked for and shown.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::error::{Error, Result};
use super::id::NodeId;

/// A network to make.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct NetworkSpec {
    /// Its name.
    pub name: String,
    /// Its driver: `overlay` on a Swarm, else `bridge`, where none is named.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub driver: Option<String>,
    /// Whether nothing outside of it is reached from it.
    pub internal: bool,
    /// Whether containers outside of services can be attached (overlay); true where not said.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub attachable: Option<bool>,
    /// Whether traffic between hosts is encrypted (overlay).
    pub encrypted: bool,
    /// Whether it has IPv6 addresses as well.
    pub ipv6: bool,
    /// Its subnets, such as `10.20.0.0/16`; one that is free where none is named.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub subnets: Vec<String>,
    /// Gateways, one a subnet and in their order; the first address where none is named.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub gateways: Vec<String>,
    /// Options of the driver.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub options: BTreeMap<String, String>,
    /// Free labels.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, String>,
}

impl NetworkSpec {
    /// What types alone do not show.
    pub fn validate(&self) -> Result<()> {
        let subject = || format!("network {:.70?}", self.name);
        check_name(&self.name).map_err(|why| Error::invalid(subject(), why))?;
        if matches!(self.name.as_str(), "host" | "none" | "bridge" | "default") {
            return Err(Error::invalid(subject(), "is a name that Docker keeps for itself"));
        }
        let wrong = |why: String| Err(Error::invalid(subject(), why));
        for subnet in &self.subnets {
            let fits = subnet.split_once('/').is_some_and(|(address, prefix)| {
                let most = match address.parse::<std::net::IpAddr>() {
                    Ok(std::net::IpAddr::V4(_)) => 32,
                    Ok(std::net::IpAddr::V6(_)) => 128,
                    Err(_) => return false,
                };
                prefix.parse::<u8>().is_ok_and(|prefix| prefix <= most)
            });
            if !fits {
                return wrong(format!("subnet {subnet:.60?} is not ADDRESS/PREFIX, such as \"10.20.0.0/16\""));
            }
        }
        if self.gateways.len() > self.subnets.len() {
            return wrong("has more gateways than subnets".into());
        }
        match self.gateways.iter().find(|gateway| gateway.parse::<std::net::IpAddr>().is_err()) {
            Some(gateway) => wrong(format!("gateway {gateway:.60?} is not an address")),
            None => Ok(()),
        }
    }
}

/// A network as it is.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
pub struct NetworkInfo {
    /// Its name.
    pub name: String,
    /// Docker's id for it.
    pub id: String,
    /// Its driver.
    pub driver: String,
    /// `swarm`: on all hosts; `local`: on those that `nodes` names.
    pub scope: String,
    /// The hosts that have it, where it is not the whole Swarm's.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub nodes: Vec<String>,
    /// Whether nothing outside of it is reached from it.
    pub internal: bool,
    /// Whether containers outside of services can be attached.
    pub attachable: bool,
    /// Whether traffic between hosts is encrypted.
    pub encrypted: bool,
    /// Its subnets.
    pub subnets: Vec<String>,
    /// Options of the driver.
    pub options: BTreeMap<String, String>,
    /// Its labels.
    pub labels: BTreeMap<String, String>,
    /// The services that name it.
    #[serde(default)]
    pub used_by: Vec<String>,
}

/// What is asked about networks.
#[derive(Debug, Clone, PartialEq)]
pub enum NetworkAsk {
    /// Which there are.
    List,
    /// Make one.
    Create(NetworkSpec),
    /// Remove one by its name.
    Remove(String),
}

/// A volume to make.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct VolumeSpec {
    /// Its name.
    pub name: String,
    /// Its driver; `local` where none is named.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub driver: Option<String>,
    /// Options of the driver.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub options: BTreeMap<String, String>,
    /// Free labels.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, String>,
}

impl VolumeSpec {
    /// What types alone do not show.
    pub fn validate(&self) -> Result<()> {
        check_name(&self.name).map_err(|why| Error::invalid(format!("volume {:.70?}", self.name), why))
    }
}

/// A volume as it is on one host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct VolumeInfo {
    /// Its name.
    pub name: String,
    /// The id of the node that it is on.
    #[serde(default = "nowhere")]
    pub node: NodeId,
    /// That node's host name.
    #[serde(default)]
    pub hostname: String,
    /// Its driver.
    pub driver: String,
    /// Where it is on the host.
    pub mountpoint: String,
    /// Options of the driver.
    pub options: BTreeMap<String, String>,
    /// Its labels.
    pub labels: BTreeMap<String, String>,
    /// The tasks on that node that mount it.
    #[serde(default)]
    pub used_by: Vec<String>,
}

// Filled in by whoever knows whom was asked.
fn nowhere() -> NodeId {
    "".into()
}

/// The volumes of hosts.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
pub struct Volumes {
    /// Those that were found, made or removed, by name and host.
    pub volumes: Vec<VolumeInfo>,
    /// Hosts that could not be asked, and why.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub missing: BTreeMap<String, String>,
}

/// What is asked of one host about volumes; the answer is those that it has, made or removed.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum VolumeAsk {
    /// Which there are.
    List,
    /// Make one; one of the same kind that is there already is as good.
    Create(VolumeSpec),
    /// Remove one, if it is there; `force`: also where its driver fails.
    Remove {
        /// Its name.
        name: String,
        /// Docker's own meaning.
        force: bool,
    },
}

// Docker's rule for names: [a-zA-Z0-9][a-zA-Z0-9_.-]*.
fn check_name(name: &str) -> std::result::Result<(), String> {
    let fits = |c: char| c.is_ascii_alphanumeric() || "_.-".contains(c);
    match name {
        "" => Err("has no name".into()),
        name if name.len() > 255 => Err("has a name of more than 255 characters".into()),
        name if !name.starts_with(|c: char| c.is_ascii_alphanumeric()) || !name.chars().all(fits) => {
            Err("is a name that Docker does not take: letters, digits, \"_\", \".\" and \"-\", a letter or digit first"
                .into())
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(spec: serde_json::Value, expected: &str) {
        let spec: NetworkSpec = serde_json::from_value(spec).unwrap();
        assert_eq!(spec.validate().map_or_else(|error| error.message, |()| "fits".into()), expected);
    }

    #[test]
    fn networks_are_checked() {
        check(serde_json::json!({ "name": "shop_back", "subnets": ["10.20.0.0/16", "fd00::/64"] }), "fits");
        check(serde_json::json!({ "name": "" }), "has no name");
        check(serde_json::json!({ "name": "host" }), "is a name that Docker keeps for itself");
        check(
            serde_json::json!({ "name": "a", "subnets": ["10.20.0.0/33"] }),
            "subnet \"10.20.0.0/33\" is not ADDRESS/PREFIX, such as \"10.20.0.0/16\"",
        );
        check(serde_json::json!({ "name": "a", "gateways": ["10.0.0.1"] }), "has more gateways than subnets");
        let named = NetworkSpec { name: "a b".into(), ..NetworkSpec::default() };
        assert!(named.validate().unwrap_err().message.starts_with("is a name that Docker does not take"));
    }
}
