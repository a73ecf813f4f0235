//! `/v1/prometheus/targets`: instances as Prometheus's HTTP service discovery reads them.

use serde_json::{Value, json};

use super::{Call, Consul, Reply};
use crate::model::Result;
use crate::model::catalog::{CheckStatus, place};
use crate::network::catalog::Found;

/// Each instance with a port, with what is known of it as labels; of the services, tags and statuses that are asked for.
pub fn answer(consul: &Consul, call: &Call) -> Result<Reply> {
    let wanted: Vec<String> = call.values("service").map(str::to_lowercase).collect();
    let is_wanted = |found: &Found| {
        let tags = &found.entry.instance.tags;
        found.entry.instance.port > 0
            && call.values("tag").all(|tag| tags.iter().any(|own| own.eq_ignore_ascii_case(tag)))
            && (!call.flag("passing") || found.status() == CheckStatus::Passing)
    };
    let targets: Vec<Value> = consul.catalog.read(|state| {
        let names = state.services().filter(|name| wanted.is_empty() || wanted.contains(&name.to_lowercase()));
        let found = names.flat_map(|name| state.instances(name)).filter(is_wanted);
        found.map(|found| target(&found)).collect()
    });
    Ok(Reply::Plain(Value::Array(targets)))
}

fn target(found: &Found) -> Value {
    let (instance, address) = (&found.entry.instance, found.address());
    let mut labels = json!({
        "__meta_neap_service": instance.service,
        "__meta_neap_service_id": instance.id,
        "__meta_neap_node": found.node.node.name,
        "__meta_neap_status": found.status().as_str(),
        // Between commas, so that `,v1,` finds a whole one.
        "__meta_neap_tags": format!(",{},", instance.tags.join(",")),
    });
    for (key, value) in &instance.meta {
        let name: String = key.chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '_' }).collect();
        labels[format!("__meta_neap_meta_{name}")] = Value::from(value.as_str());
    }
    json!({ "targets": [place(address, instance.port)], "labels": labels })
}
