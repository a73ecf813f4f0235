//! The catalogue as people read it.

use super::rows;
use crate::client::catalog::{FoundInstance, FoundNode, FoundService};
use crate::model::catalog::{CheckStatus, Origin, place};

/// `catalog nodes`.
pub fn nodes(all: &[FoundNode]) -> String {
    let row = |node: &FoundNode| {
        [node.name.clone(), node.address.clone(), node.status.as_str().to_owned(), node.instances.to_string()]
    };
    rows(&["NODE", "ADDRESS", "STATUS", "INSTANCES"], all.iter().map(row))
}

/// `catalog services`.
pub fn services(all: &[FoundService]) -> String {
    let row = |service: &FoundService| {
        [
            service.name.clone(),
            format!("{}/{}", service.passing, service.instances),
            service.warning.to_string(),
            service.critical.to_string(),
            service.tags.join(", "),
        ]
    };
    rows(&["SERVICE", "PASSING", "WARNING", "CRITICAL", "TAGS"], all.iter().map(row))
}

/// `catalog instances`.
pub fn instances(all: &[FoundInstance]) -> String {
    let row = |found: &FoundInstance| {
        let complaint = found.checks.iter().filter(|check| check.status != CheckStatus::Passing);
        let complaint = complaint.max_by_key(|check| check.status).map(|check| {
            let said = check.output.lines().next().unwrap_or_default();
            format!("{}: {}", check.name, said.chars().take(60).collect::<String>())
        });
        [
            found.id.clone(),
            found.node.clone(),
            address(found),
            found.status.as_str().to_owned(),
            found.tags.join(", "),
            origin(found.origin).to_owned(),
            complaint.unwrap_or_default(),
        ]
    };
    rows(&["ID", "NODE", "ADDRESS", "STATUS", "TAGS", "REGISTERED BY", "COMPLAINT"], all.iter().map(row))
}

/// `address:port`, as far as there are both.
pub fn address(found: &FoundInstance) -> String {
    place(&found.address, found.port)
}

fn origin(origin: Origin) -> &'static str {
    match origin {
        Origin::Agent | Origin::Catalog => "client",
        Origin::Task => "neap",
        Origin::Container => "registrator",
    }
}
