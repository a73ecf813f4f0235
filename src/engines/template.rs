//! Swarm's templates in environment, host name and mounts: `{{.Service.Name}}`, `{{.Task.Slot}}`, `{{.Node.Hostname}}`.
//! What Swarm would fill in with the names that Neap gave its own objects is filled in here.

use super::StartRequest;
use crate::model::service::ServiceSpec;

/// The description with its templates filled in. `node`: the node's name, where nobody after this fills in the node's.
pub fn expand(request: &StartRequest, node: Option<&str>) -> ServiceSpec {
    let mut spec = ServiceSpec::clone(&request.spec);
    let fill = |text: &mut String| {
        if text.contains("{{") {
            *text = filled(text, request, node);
        }
    };
    spec.env.values_mut().for_each(fill);
    spec.hostname.iter_mut().for_each(fill);
    for mount in &mut spec.mounts {
        mount.source.iter_mut().for_each(fill);
        fill(&mut mount.target);
    }
    spec
}

// What is no template that is known stays as it is.
fn filled(text: &str, request: &StartRequest, node: Option<&str>) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(begin) = rest.find("{{") {
        let Some(length) = rest[begin..].find("}}") else { break };
        let whole = &rest[begin..begin + length + 2];
        out.push_str(&rest[..begin]);
        match value(whole[2..whole.len() - 2].trim(), request, node) {
            Some(value) => out.push_str(&value),
            None => out.push_str(whole),
        }
        rest = &rest[begin + length + 2..];
    }
    out.push_str(rest);
    out
}

fn value(name: &str, request: &StartRequest, node: Option<&str>) -> Option<String> {
    if let Some(rest) = name.strip_prefix("index .Service.Labels ") {
        let key = rest.trim().trim_matches(['"', '`']);
        return Some(request.spec.labels.get(key).cloned().unwrap_or_default());
    }
    Some(match name {
        ".Service.Name" => request.service.to_string(),
        ".Task.ID" => request.task.to_string(),
        ".Task.Name" => format!("{}.{}.{}", request.service, request.slot, request.task),
        ".Task.Slot" => request.slot.to_string(),
        ".Node.ID" if node.is_some() => request.node.to_string(),
        ".Node.Hostname" => node?.to_owned(),
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::id::{Slot, TaskId};

    #[test]
    fn what_is_known_is_filled_in() {
        let spec = ServiceSpec::read(&serde_json::json!({
            "name": "web", "image": "a", "labels": { "team": "shop" }, "hostname": "{{.Service.Name}}-{{ .Task.Slot }}",
            "env": { "A": "{{index .Service.Labels \"team\"}}", "B": "{{.Node.Hostname}}", "C": "{{.Other}} {{" },
        }))
        .unwrap();
        let request = StartRequest {
            task: TaskId::numbered(7),
            service: spec.name.clone(),
            slot: Slot::Replica(3),
            node: "eu-1".into(),
            revision: 1,
            spec: spec.into(),
            secrets: crate::engines::Secrets::default(),
            configs: Vec::new(),
            login: None,
        };
        let filled = expand(&request, None);
        assert_eq!(filled.hostname.as_deref(), Some("web-3"));
        let env: Vec<&str> = filled.env.values().map(String::as_str).collect();
        assert_eq!(env, ["shop", "{{.Node.Hostname}}", "{{.Other}} {{"]);
        assert_eq!(expand(&request, Some("host")).env["B"], "host");
    }
}
