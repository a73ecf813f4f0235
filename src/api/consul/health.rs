//! `/v1/health`: services with their checks.

use super::{Call, Consul, Reply, output};
use crate::model::catalog::CheckStatus;
use crate::model::{Error, Result};
use crate::network::catalog::{CheckEntry, NodeEntry, State, Topic, key};

pub async fn answer(consul: &Consul, call: &Call, path: &[&str]) -> Result<Reply> {
    match path {
        ["service", name] => service(consul, call, name).await,
        ["connect" | "ingress", name] => call.watch(consul, Topic::Service(key(name)), |_| Vec::<()>::new()).await,
        ["node", name] => {
            let of_node = |state: &State| match state.node(name) {
                Some(entry) => entry.checks.values().map(|check| output::check(entry, check)).collect(),
                None => Vec::new(),
            };
            call.watch(consul, Topic::Node(key(name)), of_node).await
        }
        ["checks", name] => {
            let of_service = |state: &State| {
                let found = state.instances(name);
                let checks = found.flat_map(|found| {
                    let own = found.checks().filter(|check| !check.check.instance.is_empty());
                    own.map(move |check| output::check(found.node, check))
                });
                checks.collect()
            };
            call.watch(consul, Topic::Service(key(name)), of_service).await
        }
        ["state", wanted] => {
            let wanted: Option<CheckStatus> = if *wanted == "any" { None } else { Some(wanted.parse()?) };
            let of_state = |state: &State| {
                let all = state.nodes().filter(|entry| has_meta(call, entry));
                let all = all.flat_map(|entry| entry.checks.values().map(move |check| (entry, check)));
                let is_wanted =
                    |(_, check): &(&NodeEntry, &CheckEntry)| wanted.is_none_or(|wanted| check.check.status == wanted);
                all.filter(is_wanted).map(|(entry, check)| output::check(entry, check)).collect()
            };
            call.watch(consul, Topic::Checks, of_state).await
        }
        _ => Err(Error::not_found(format!("path /v1/health/{:.60}", path.join("/")))),
    }
}

async fn service(consul: &Consul, call: &Call, name: &str) -> Result<Reply> {
    let passing = call.flag("passing");
    let find = |state: &State| {
        let found = state.instances(name).filter(|found| {
            has_meta(call, found.node)
                && has_tags(call, &found.entry.instance.tags)
                && (!passing || found.status() == CheckStatus::Passing)
        });
        found.map(|found| output::health_service(consul, &found)).collect()
    };
    call.watch(consul, Topic::Service(key(name)), find).await
}

/// Whether a node has all that `node-meta` asks for.
pub fn has_meta(call: &Call, entry: &NodeEntry) -> bool {
    call.values("node-meta").all(|wanted| {
        let (key, value) = wanted.split_once(':').unwrap_or((wanted, ""));
        entry.node.meta.get(key).is_some_and(|known| known == value)
    })
}

/// Whether an instance has all the tags that are asked for.
pub fn has_tags(call: &Call, tags: &[String]) -> bool {
    call.values("tag").all(|wanted| wanted.is_empty() || tags.iter().any(|tag| tag.eq_ignore_ascii_case(wanted)))
}
