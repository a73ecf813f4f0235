//! What replicas use, as a table.

use super::{table, text};
use crate::model::stats::TaskStats;
use crate::model::units::Bytes;

/// `service stats`.
pub fn stats(rows: &[TaskStats]) -> String {
    let mut table = table(&[
        "TASK", "NODE", "CPU", "MEMORY", "LIMIT", "MEM %", "RECEIVED", "SENT", "READ", "WRITTEN", "PIDS", "REASON",
    ]);
    for row in rows {
        let stats = row.stats.clone().unwrap_or_default();
        let known = row.stats.is_some();
        let bytes = |bytes: Option<Bytes>| bytes.filter(|_| known).map_or_else(|| "-".into(), amount);
        let share = stats.memory_limit.filter(|limit| limit.0 > 0);
        let share = share.map(|limit| format!("{:.1}%", stats.memory.0 as f64 / limit.0 as f64 * 100.0));
        table.add_row([
            row.task.clone(),
            row.node.clone(),
            if known { format!("{:.1}%", stats.cpu * 100.0) } else { "-".into() },
            bytes(Some(stats.memory)),
            bytes(stats.memory_limit),
            share.unwrap_or_else(|| "-".into()),
            bytes(stats.received),
            bytes(stats.sent),
            bytes(stats.read),
            bytes(stats.written),
            stats.pids.map_or_else(|| "-".into(), |pids| pids.to_string()),
            row.reason.as_deref().and_then(|reason| reason.lines().next()).unwrap_or_default().to_owned(),
        ]);
    }
    text(table)
}

// In the largest unit that leaves a whole part, with three digits.
fn amount(bytes: Bytes) -> String {
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
