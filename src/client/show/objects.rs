//! Networks and volumes as people read them.

use super::{ago, rows};
use crate::model::clock::Timestamp;
use crate::model::objects::{NetworkInfo, VolumeInfo};
use crate::model::registry::LoginInfo;

/// `registry logins`.
pub fn logins(all: &[LoginInfo], now: Timestamp) -> String {
    let row = |login: &LoginInfo| {
        let user = match &login.service {
            Some(service) => format!("service {service}"),
            None => "all".to_owned(),
        };
        let verified = if login.verified { "yes" } else { "no" };
        [login.registry.clone(), login.username.clone(), user, verified.to_owned(), ago(now, login.at)]
    };
    rows(&["REGISTRY", "USER", "FOR", "VERIFIED", "SINCE"], all.iter().map(row))
}

/// `network ls`.
pub fn networks(all: &[NetworkInfo]) -> String {
    let row = |network: &NetworkInfo| {
        let id: String = network.id.chars().take(12).collect();
        let mut kind = vec![network.scope.clone()];
        kind.extend(network.internal.then(|| "internal".to_owned()));
        kind.extend(network.encrypted.then(|| "encrypted".to_owned()));
        [
            network.name.clone(),
            id,
            network.driver.clone(),
            kind.join(", "),
            network.subnets.join(", "),
            network.used_by.join(", "),
        ]
    };
    rows(&["NAME", "ID", "DRIVER", "SCOPE", "SUBNETS", "USED BY"], all.iter().map(row))
}

/// `volume ls`.
pub fn volumes(all: &[VolumeInfo]) -> String {
    let row = |volume: &VolumeInfo| {
        [volume.name.clone(), volume.hostname.clone(), volume.driver.clone(), volume.used_by.join(", ")]
    };
    rows(&["NAME", "NODE", "DRIVER", "USED BY"], all.iter().map(row))
}
