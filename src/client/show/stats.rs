//! What replicas use, as a table.

use super::{table, text};
use crate::model::stats::{NodeStats, Stats, TaskStats};
use crate::model::units::Bytes;

/// `service stats`.
pub fn stats(rows: &[TaskStats]) -> String {
    let mut table = table(&[
        "TASK", "NODE", "CPU", "MEMORY", "LIMIT", "MEM %", "RECEIVED", "SENT", "READ", "WRITTEN", "PIDS", "REASON",
    ]);
    for row in rows {
        let mut cells = vec![row.task.clone(), row.node.clone()];
        cells.extend(row.stats.as_ref().map_or_else(|| std::array::from_fn(|_| "-".to_owned()), used));
        cells.push(row.reason.as_deref().and_then(|reason| reason.lines().next()).unwrap_or_default().to_owned());
        table.add_row(cells);
    }
    text(table)
}

/// `node stats`.
pub fn node_stats(rows: &[NodeStats], containers: bool) -> String {
    let mut nodes = table(&[
        "NODE", "CPU", "CORES", "LOAD", "MEMORY", "MEM %", "DISK", "DISK %", "RECEIVED", "SENT", "READ", "WRITTEN",
        "RUNNING", "AGE", "REASON",
    ]);
    let unknown = || "-".to_owned();
    for row in rows {
        let host = row.host.as_ref();
        let share = |used: u64, all: u64| if all > 0 { percent(used as f64 / all as f64) } else { unknown() };
        let of = |used: Bytes, all: Bytes| format!("{} / {}", amount(used), amount(all));
        let rate = |bytes: Bytes| format!("{}/s", amount(bytes));
        let disk = host.and_then(|host| Some((host.disk?, host.disk_total?)));
        let cores = host.filter(|host| host.cores > 0);
        nodes.add_row([
            row.node.clone(),
            cores.map_or_else(unknown, |host| percent(host.cpu / f64::from(host.cores))),
            cores.map_or_else(unknown, |host| host.cores.to_string()),
            host.map_or_else(unknown, |host| format!("{:.2}", host.load)),
            host.map_or_else(unknown, |host| of(host.memory, host.memory_total)),
            host.map_or_else(unknown, |host| share(host.memory.0, host.memory_total.0)),
            disk.map_or_else(unknown, |(used, all)| of(used, all)),
            disk.map_or_else(unknown, |(used, all)| share(used.0, all.0)),
            host.map_or_else(unknown, |host| rate(host.received)),
            host.map_or_else(unknown, |host| rate(host.sent)),
            host.map_or_else(unknown, |host| rate(host.read)),
            host.map_or_else(unknown, |host| rate(host.written)),
            row.age.map_or_else(unknown, |_| row.running.to_string()),
            row.age.map_or_else(unknown, |age| format!("{:.0}s", age.seconds())),
            row.reason.as_deref().and_then(|reason| reason.lines().next()).unwrap_or_default().to_owned(),
        ]);
    }
    if !containers {
        return text(nodes);
    }
    let mut all = table(&[
        "CONTAINER",
        "NAME",
        "TASK",
        "NODE",
        "CPU",
        "MEMORY",
        "LIMIT",
        "MEM %",
        "RECEIVED",
        "SENT",
        "READ",
        "WRITTEN",
        "PIDS",
    ]);
    for row in rows {
        for container in &row.containers {
            let text = |text: &str| if text.is_empty() { unknown() } else { text.to_owned() };
            let mut cells = vec![text(&container.container), text(&container.name)];
            cells.push(container.task.clone().unwrap_or_else(unknown));
            cells.push(row.node.clone());
            cells.extend(used(&container.stats));
            all.add_row(cells);
        }
    }
    format!("{}\n{}", text(nodes), text(all))
}

fn percent(share: f64) -> String {
    format!("{:.1}%", share * 100.0)
}

// What a replica or a container uses, as both tables show it.
fn used(stats: &Stats) -> [String; 9] {
    let bytes = |bytes: Option<Bytes>| bytes.map_or_else(|| "-".into(), amount);
    let limit = stats.memory_limit.filter(|limit| limit.0 > 0);
    [
        percent(stats.cpu),
        amount(stats.memory),
        bytes(stats.memory_limit),
        limit.map_or_else(|| "-".into(), |limit| percent(stats.memory.0 as f64 / limit.0 as f64)),
        bytes(stats.received),
        bytes(stats.sent),
        bytes(stats.read),
        bytes(stats.written),
        stats.pids.map_or_else(|| "-".into(), |pids| pids.to_string()),
    ]
}

// In the largest unit that leaves a whole part, with three digits.
pub(super) fn amount(bytes: Bytes) -> String {
    const UNITS: [&str; 6] = ["B", "KiB", "MiB", "GiB", "TiB", "PiB"];
    let (mut value, mut unit) = (bytes.0 as f64, 0);
    while value >= 1024.0 && unit + 1 < UNITS.len() {
        (value, unit) = (value / 1024.0, unit + 1);
    }
    let digits = if unit == 0 || value >= 100.0 {
        0
    } else if value >= 10.0 {
        1
    } else {
        2
    };
    format!("{value:.digits$}{}", UNITS[unit])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn amounts() {
        for (bytes, expected) in [
            (0, "0B"),
            (1023, "1023B"),
            (1024, "1.00KiB"),
            (15 << 20, "15.0MiB"),
            (300 << 20, "300MiB"),
            (u64::MAX, "16384PiB"),
        ] {
            assert_eq!(amount(Bytes(bytes)), expected);
        }
    }
}
