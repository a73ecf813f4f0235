//! Records as tables that people read: the same in the CLI and in scripts.

pub mod catalog;
pub mod images;
mod native;
mod objects;
mod ports;
mod routes;
mod scripts;
mod stats;

use comfy_table::{ContentArrangement, Table, presets};

pub use native::{adoption, native_tasks, natives, notes};
pub use objects::{logins, networks, volumes};
pub use ports::ports;
pub use routes::routes;
pub use scripts::{
    crons, event, failed, history, kv, last_line, registrations, script_calls, scripts, source, value, values,
};
pub use stats::{node_stats, stats};

use super::ServiceStatus;
use crate::model::clock::Timestamp;
use crate::model::native::NativeService;
use crate::model::node::{Availability, Node};
use crate::model::plan::{Plan, Rebalanced};
use crate::model::port::{PortSpec, Protocol};
use crate::model::release::Release;
use crate::model::service::Mode;
use crate::model::task::{Task, TaskState};
use crate::model::units::Duration;

fn table(head: &[&str]) -> Table {
    let mut table = Table::new();
    table
        .load_style(presets::NOTHING)
        .set_content_arrangement(ContentArrangement::Disabled)
        .set_header(head.iter().copied());
    table
}

// Columns stand two spaces apart, and nothing follows the last one.
fn text(mut table: Table) -> String {
    let count = table.column_count();
    for index in 0..count {
        if let Some(column) = table.column_mut(index) {
            column.set_padding((0, if index + 1 == count { 0 } else { 2 }));
        }
    }
    table.lines().map(|line| line.trim_end().to_owned()).collect::<Vec<_>>().join("\n")
}

/// Without what a terminal would act upon: anybody may have written it.
pub fn shown(text: &str) -> String {
    let one = |c: char| match c.is_control() {
        true => c.escape_default().collect::<String>(),
        false => c.to_string(),
    };
    text.chars().map(one).collect()
}

/// `service ls`: Neap's own, and then those that the engine runs itself.
pub fn services(services: &[ServiceStatus], natives: &[NativeService]) -> String {
    let mut table = table(&["NAME", "MODE", "REPLICAS", "REVISION", "STATE", "PORTS"]);
    for status in services {
        let spec = &status.service.spec;
        let ports: Vec<String> = spec.ports.iter().map(|(name, port)| self::port(name, port)).collect();
        table.add_row([
            spec.name.to_string(),
            match (spec.mode, spec.engine_native) {
                (Mode::Global, false) => "global".into(),
                (Mode::Replicated, false) => "replicated".into(),
                (Mode::Global, true) => "global, native".into(),
                (Mode::Replicated, true) => "native".into(),
            },
            format!("{}/{}", status.healthy, status.desired),
            status.service.active.to_string(),
            state(status),
            ports.join(", "),
        ]);
    }
    for native in natives {
        table.add_row(native::cells(native));
    }
    text(table)
}

fn port(name: &str, port: &PortSpec) -> String {
    let transport = if port.protocol == Protocol::Udp { "/udp" } else { "" };
    let mode = if port.host_port().is_some() { " (host)" } else { "" };
    match (port.published, port.target) {
        (Some(published), Some(target)) => format!("{name} {published}->{target}{transport}{mode}"),
        (Some(published), None) => format!("{name} {published}{transport}{mode}"),
        _ => name.to_owned(),
    }
}

/// A service's state in a few words.
pub fn state(status: &ServiceStatus) -> String {
    if status.service.removing {
        return "removing".into();
    }
    if let Some(handover) = status.service.open_handover() {
        return handover.said();
    }
    if let Some(native) = status.native.as_ref().filter(|_| !status.settled) {
        return native.stuck().or_else(|| native.reason.clone()).unwrap_or_else(|| "converging".into());
    }
    if let Some(failure) = status.port_failures.first() {
        return failure.clone();
    }
    if let Some(release) = status.release.as_ref().filter(|release| !release.state.is_final()) {
        return format!("release {} -> {}: {}", release.from, release.to, release.state.as_str());
    }
    if let Some(release) = status.release.as_ref().filter(|_| status.half_way) {
        return format!("stopped half-way, {} of {} on revision {}", release.moved.len(), status.desired, release.to);
    }
    if let Some(why) = status.ports_pending.as_ref().filter(|_| status.healthy == status.desired) {
        return why.clone();
    }
    if status.settled && status.desired > 0 && status.completed == status.desired {
        return "complete".into();
    }
    if let Some(why) = &status.given_up {
        return format!("ended: {why}");
    }
    if status.settled {
        return match &status.release {
            Some(release)
                if release.state == crate::model::release::ReleaseState::RolledBack
                    && release.back == status.service.active =>
            {
                format!("healthy, {} rolled back", release.to)
            }
            _ => "healthy".into(),
        };
    }
    if status.tasks.iter().any(|task| !task.state.is_final() && task.is_crash_looping()) {
        return "crash loop".into();
    }
    "converging".into()
}

/// `service ps`: `all` shows ended tasks as well; nodes are shown by their host names.
pub fn tasks(status: &ServiceStatus, all: bool, now: Timestamp) -> String {
    tasks_of(std::slice::from_ref(status), all, false, now)
}

/// `node ps`: the tasks of several services.
pub fn tasks_of(services: &[ServiceStatus], all: bool, whole: bool, now: Timestamp) -> String {
    let node = |task: &Task| {
        let id = task.node.as_deref()?;
        let name = services.iter().find_map(|status| status.nodes.get(id));
        Some(name.map_or(id, String::as_str).to_owned())
    };
    let tasks = services.iter().flat_map(|status| &status.tasks);
    let mut table = table(&["TASK", "REVISION", "NODE", "STATE", "HEALTH", "PID", "PORTS", "SINCE", "REASON"]);
    let mut rows: Vec<&Task> = tasks.filter(|task| all || !task.state.is_final()).collect();
    rows.sort_by(|a, b| (&a.service, &a.slot, &a.id).cmp(&(&b.service, &b.slot, &b.id)));
    for task in rows {
        let since = task.finished_at.or(task.started_at).unwrap_or(task.created_at);
        let ports: Vec<&str> = task.ports.values().map(String::as_str).collect();
        let reason = task.reason.iter().chain(&task.warnings).cloned().collect::<Vec<_>>().join("; ");
        table.add_row([
            task.label(),
            task.revision.to_string(),
            node(task).unwrap_or_else(|| "-".into()),
            task_state(task, now),
            task.health.as_str().to_owned(),
            task.pid.filter(|_| !task.state.is_final()).map_or_else(|| "-".into(), |pid| pid.to_string()),
            if ports.is_empty() { "-".into() } else { ports.join(", ") },
            ago(now, since),
            if whole { reason } else { reason.lines().next().unwrap_or_default().to_owned() },
        ]);
    }
    text(table)
}

fn task_state(task: &Task, now: Timestamp) -> String {
    match (task.state, &task.stop, task.not_before) {
        (TaskState::Pending, None, Some(at)) if at > now => {
            let word = if task.is_crash_looping() { "crash loop" } else { "restarting" };
            format!("{word}, again in {}", coarse(at.since(now)))
        }
        (TaskState::Running, Some(stop), _) => format!("draining ({})", stop.why.as_str()),
        (state, ..) => state.as_str().to_owned(),
    }
}

/// The present, by this machine's clock.
pub fn now() -> Timestamp {
    Timestamp(u64::try_from(jiff::Timestamp::now().as_millisecond()).unwrap_or_default())
}

/// `3m ago`.
fn ago(now: Timestamp, then: Timestamp) -> String {
    format!("{} ago", coarse(now.since(then)))
}

// The largest unit only: a table is for looking, not for reckoning.
fn coarse(period: Duration) -> String {
    let millis = period.millis();
    for (unit, size) in [("d", 86_400_000), ("h", 3_600_000), ("m", 60_000)] {
        if millis >= size {
            return format!("{}{unit}", millis / size);
        }
    }
    format!("{}s", millis / 1000)
}

/// `node ls`.
pub fn nodes(nodes: &[Node], services: &[ServiceStatus]) -> String {
    let availability = |node: &Node| {
        let tasks = services.iter().flat_map(|status| &status.tasks);
        match tasks.filter(|task| task.node.as_ref() == Some(&node.id) && !task.state.is_final()).count() {
            left if left > 0 && node.availability == Availability::Drain => format!("drain ({left} left)"),
            _ => node.availability.as_str().to_owned(),
        }
    };
    let mut table = table(&["ID", "HOSTNAME", "ROLE", "AVAILABILITY", "STATE", "AGENT", "CPU", "MEMORY", "LABELS"]);
    for node in nodes {
        let labels: Vec<String> = node.labels.iter().map(|(key, value)| format!("{key}={value}")).collect();
        let state = match node.state {
            crate::model::node::NodeState::Ready => "ready",
            crate::model::node::NodeState::Down => "down",
        };
        table.add_row([
            node.id.to_string(),
            node.hostname.clone(),
            node.role.as_str().into(),
            availability(node),
            state.into(),
            node.agent.as_ref().map_or("-", crate::model::node::Agent::as_str).into(),
            node.cpu.to_string(),
            node.memory.to_string(),
            labels.join(","),
        ]);
    }
    text(table)
}

/// A plan, as `plan` prints it.
pub fn plan(plan: &Plan) -> String {
    let name = plan.service.as_ref().map(ToString::to_string).unwrap_or_default();
    if plan.empty {
        return format!("service \"{name}\": nothing would change");
    }
    let mut lines = vec![format!("service \"{name}\":")];
    lines.extend(plan.changes.iter().map(|change| format!("  ~ {change}")));
    lines.extend(plan.release.iter().map(|release| format!("  {release}")));
    if !plan.steps.is_empty() {
        let mut table = table(&["ACTION", "TASK", "NODE", "SCORE", "WHY"]);
        for step in &plan.steps {
            table.add_row([
                step.action.as_str().to_owned(),
                step.task.clone(),
                step.node.clone().unwrap_or_else(|| "-".into()),
                step.score.map_or_else(|| "-".into(), |score| format!("{:.3}", score + 0.0)),
                step.reason.lines().next().unwrap_or_default().to_owned(),
            ]);
        }
        lines.extend(text(table).lines().map(|line| format!("  {line}")));
    }
    lines.join("\n")
}

/// What a rebalance moves.
pub fn rebalanced(done: &Rebalanced) -> String {
    if done.moves.is_empty() {
        return format!("service \"{}\": every replica is where its policy wants it", done.service);
    }
    let score = |score: f64| format!("{:.3}", score + 0.0);
    let row = |step: &crate::model::plan::Move| {
        [
            step.task.clone(),
            step.from.clone(),
            step.to.clone(),
            step.before.map_or_else(|| "-".into(), score),
            score(step.after),
        ]
    };
    rows(&["TASK", "FROM", "TO", "SCORE", "BETTER"], done.moves.iter().map(row))
}

/// A release in a line.
pub fn release(release: &Release) -> String {
    let over = release.state.is_final();
    let moved = if over {
        String::new()
    } else {
        match release.moved.len() {
            1 => ", 1 slot moved".into(),
            many => format!(", {many} slots moved"),
        }
    };
    let weight = release.weight.map(|weight| format!(", {weight}% of new connections")).unwrap_or_default();
    let step = if release.step > 0 { format!(", step {}", release.step) } else { String::new() };
    let why = release
        .reason
        .as_ref()
        .map(|reason| format!(": {}", reason.lines().next().unwrap_or_default()))
        .unwrap_or_default();
    format!(
        "release {} -> {} by \"{}\"{step}{moved}{weight}: {}{why}",
        release.from,
        release.to,
        release.rollout.name,
        release.state.as_str()
    )
}

/// Any number of columns.
pub fn any(head: &[String], rows: Vec<Vec<String>>) -> String {
    let names: Vec<&str> = head.iter().map(String::as_str).collect();
    let mut table = table(&names);
    for row in rows {
        table.add_row(row);
    }
    text(table)
}

/// Any rows under a head.
pub fn rows<const N: usize>(head: &[&str; N], rows: impl IntoIterator<Item = [String; N]>) -> String {
    let mut table = table(head);
    for row in rows {
        table.add_row(row);
    }
    text(table)
}
