//! The Swarm's own services as people read them.

use super::rows;
use crate::model::native::{Adoption, NativeService, PublishMode};

/// Cells of `service ls`, in its columns.
pub fn cells(native: &NativeService) -> [String; 6] {
    let port = |port: &crate::model::native::NativePort| {
        let protocol = if port.protocol == "tcp" { String::new() } else { format!("/{}", port.protocol) };
        let mode = if port.mode == PublishMode::Host { " (host)" } else { "" };
        match port.published {
            Some(published) => format!("{published}->{}{protocol}{mode}", port.target),
            None => format!("{}{protocol}{mode}", port.target),
        }
    };
    let ports: Vec<String> = native.ports.iter().map(port).collect();
    let why = native.reason.clone().or_else(|| native.update.clone().filter(|state| state != "completed"));
    [
        native.name.clone(),
        native.mode.clone(),
        format!("{}/{}", native.running, native.desired),
        "-".into(),
        why.map_or_else(|| "native".into(), |why| format!("native, {why}")),
        ports.join(", "),
    ]
}

/// `service ls --native`.
pub fn natives(all: &[NativeService]) -> String {
    let row = |native: &NativeService| {
        let [name, mode, replicas, _, state, ports] = cells(native);
        [name, mode, replicas, native.image.clone(), native.networks.join(", "), state, ports]
    };
    rows(&["NAME", "MODE", "REPLICAS", "IMAGE", "NETWORKS", "STATE", "PORTS"], all.iter().map(row))
}

/// `service ps` of one of the Swarm's own.
pub fn native_tasks(native: &NativeService, all: bool) -> String {
    let over = |wanted: &str| matches!(wanted, "shutdown" | "remove");
    let tasks = native.tasks.iter().filter(|task| all || !over(&task.wanted));
    let row = |task: &crate::model::native::NativeTask| {
        let dash = |text: &Option<String>| text.clone().unwrap_or_else(|| "-".into());
        [
            task.name.clone(),
            dash(&task.node),
            task.state.clone(),
            task.wanted.clone(),
            task.reason.clone().unwrap_or_default(),
        ]
    };
    rows(&["TASK", "NODE", "STATE", "WANTED", "REASON"], tasks.map(row))
}

/// What an adoption makes, and what will not be as it was.
pub fn adoption(adoption: &Adoption) -> String {
    let mut lines = vec![serde_json::to_string_pretty(&adoption.service).unwrap_or_default()];
    lines.extend(adoption.configs.iter().map(|config| format!("config {config}: is set from the Swarm's")));
    lines.extend(notes(&adoption.notes));
    lines.join("\n")
}

/// What will not be as it was, a line each.
pub fn notes(notes: &[String]) -> Vec<String> {
    notes.iter().map(|note| format!("note: {note}")).collect()
}
