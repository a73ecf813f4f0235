//! Where in a file a field of the description comes from: for errors that are only found in the whole.

use super::yaml::{At, Node, Value};

/// The keys of a service that become each field that is called otherwise; the first that is there counts.
const FIELDS: [(&str, &[&str]); 23] = [
    ("labels", &["deploy.labels"]),
    ("container_labels", &["labels"]),
    ("mode", &["deploy.mode"]),
    ("replicas", &["deploy.replicas", "scale"]),
    ("env", &["environment", "env_file"]),
    ("workdir", &["working_dir"]),
    ("groups", &["group_add"]),
    ("mounts", &["volumes", "tmpfs"]),
    ("networks", &["networks", "network_mode"]),
    ("hosts", &["extra_hosts"]),
    ("dns_options", &["dns_opt"]),
    ("limits", &["deploy.resources.limits", "mem_limit", "cpus", "pids_limit"]),
    ("reservations", &["deploy.resources.reservations", "mem_reservation"]),
    ("constraints", &["deploy.placement.constraints"]),
    ("max_replicas_per_node", &["deploy.placement.max_replicas_per_node"]),
    ("policy", &["deploy.placement.preferences"]),
    ("check", &["healthcheck"]),
    ("rollout", &["deploy.update_config"]),
    ("rollback", &["deploy.rollback_config"]),
    ("restart", &["deploy.restart_policy", "restart"]),
    ("stop", &["stop_signal", "stop_grace_period"]),
    ("log", &["logging"]),
    ("pull", &["pull_policy"]),
];

/// The place of the key that an error's message begins with, as in `constraints[1]: ...` or `stop.signal: ...`.
pub fn of<'a>(service: &'a Node, message: &str) -> Option<&'a At> {
    let end = message.find(|c: char| !(c.is_ascii_alphanumeric() || c == '_'))?;
    let field = &message[..end];
    let keys = FIELDS.iter().find(|(known, _)| *known == field).map_or(&[][..], |(_, keys)| keys);
    // What Compose has no word for is said in x-neap, and many are called the same.
    let others = [format!("x-neap.{field}"), field.to_owned()];
    let paths = others.iter().map(String::as_str).take(1).chain(keys.iter().copied());
    paths.chain(others.iter().map(String::as_str).skip(1)).find_map(|path| find(service, path))
}

fn find<'a>(node: &'a Node, path: &str) -> Option<&'a At> {
    let (key, rest) = path.split_once('.').unwrap_or((path, ""));
    let Value::Map(map) = &node.value else { return None };
    let (_, at, inner) = map.iter().find(|(known, ..)| known == key)?;
    if rest.is_empty() { Some(at) } else { find(inner, rest) }
}
