//! Hosted scripts, cron scripts, keys, secrets and events as people read them.

use super::{ago, rows};
use crate::client::kv::{KvEntry, ValueInfo};
use crate::client::scripts::{CronStatus, FailedDelivery, ScriptCalls, ScriptSource, ScriptStatus};
use crate::model::bundle::{Registration, Source};
use crate::model::clock::Timestamp;
use crate::model::cron::{CronRun, Outcome};
use crate::model::event::Event;
use crate::model::units::Bytes;

/// `script ls`.
pub fn scripts(all: &[ScriptStatus]) -> String {
    let row = |status: &ScriptStatus| {
        let names: Vec<String> =
            status.registrations.iter().map(|found| format!("{} {}", found.kind.as_str(), found.name)).collect();
        let from = if status.set.source == Source::Folder { "folder" } else { "push" };
        [status.set.name.to_string(), status.set.active.clone(), from.into(), names.join(", ")]
    };
    rows(&["OWNER", "VERSION", "FROM", "REGISTERS"], all.iter().map(row))
}

/// What scripts register, a line each.
pub fn registrations(all: &[Registration]) -> String {
    let row = |found: &Registration| {
        [found.kind.as_str().to_owned(), found.name.clone(), format!("{}:{}", found.file, found.line)]
    };
    rows(&["KIND", "NAME", "AT"], all.iter().map(row))
}

/// `script show`.
pub fn source(source: &ScriptSource) -> String {
    let files = source.bundle.files.iter().map(|(path, text)| format!("-- {path}\n{}", text.trim_end()));
    files.collect::<Vec<_>>().join("\n\n")
}

/// `script top`.
pub fn script_calls(all: &[ScriptCalls]) -> String {
    let mut sorted: Vec<&ScriptCalls> = all.iter().collect();
    sorted.sort_by(|a, b| b.total_ms.total_cmp(&a.total_ms));
    let row = |calls: &&ScriptCalls| {
        let mean = if calls.calls > 0 { calls.total_ms / calls.calls as f64 } else { 0.0 };
        let last = calls.quarantine.as_ref().or(calls.last_error.as_ref());
        [
            calls.kind.as_str().to_owned(),
            calls.name.clone(),
            calls.owner.clone(),
            calls.calls.to_string(),
            calls.errors.to_string(),
            format!("{mean:.3}ms"),
            format!("{:.3}ms", calls.longest_ms),
            Bytes(calls.memory).to_string(),
            last.and_then(|text| text.lines().next()).unwrap_or_default().to_owned(),
        ]
    };
    rows(
        &["KIND", "NAME", "OWNER", "CALLS", "ERRORS", "MEAN", "LONGEST", "MEMORY", "LAST ERROR"],
        sorted.iter().map(row),
    )
}

/// `cron ls`.
pub fn crons(all: &[CronStatus], now: Timestamp) -> String {
    let row = |cron: &CronStatus| {
        let next = match cron.next_at {
            Some(at) => format!("in {}", super::coarse(at.since(now))),
            None if cron.paused => "paused".into(),
            None => "-".into(),
        };
        let last = cron.history.last().map_or_else(
            || "-".into(),
            |run| format!("{}, {}", run.outcome.as_str(), ago(now, run.finished_at.unwrap_or(run.started_at))),
        );
        [cron.name.clone(), cron.schedule.clone(), cron.timezone.clone(), next, last, cron.owner.clone()]
    };
    rows(&["NAME", "SCHEDULE", "TIMEZONE", "NEXT", "LAST RUN", "OWNER"], all.iter().map(row))
}

/// `cron history`.
pub fn history(runs: &[CronRun], now: Timestamp) -> String {
    let row = |run: &CronRun| {
        let took = match (run.finished_at, run.outcome) {
            (Some(end), Outcome::Ok | Outcome::Failed | Outcome::TimedOut) => end.since(run.started_at).to_string(),
            _ => "-".into(),
        };
        [
            run.number.to_string(),
            run.outcome.as_str().to_owned(),
            ago(now, run.started_at),
            took,
            run.by.clone().unwrap_or_else(|| "schedule".into()),
            last_line(&run.output).to_owned(),
        ]
    };
    rows(&["RUN", "OUTCOME", "STARTED", "TOOK", "BY", "LAST LINE"], runs.iter().map(row))
}

/// What a run's output comes to: its error, else the last line that it printed.
pub fn last_line(output: &str) -> &str {
    let error = output.lines().find(|line| line.starts_with("error: "));
    error.or(output.trim_end().lines().next_back()).unwrap_or_default()
}

/// `kv ls`.
pub fn kv(entries: &[KvEntry]) -> String {
    let row = |entry: &KvEntry| {
        let first = entry.value.lines().next().unwrap_or_default();
        let mut value: String = first.chars().take(80).collect();
        if value.len() < entry.value.trim_end().len() {
            value.push_str("...");
        }
        if entry.base64 {
            value = format!("{} bytes", entry.bytes().map_or(0, |bytes| bytes.len()));
        }
        [super::shown(&entry.key), entry.version.to_string(), super::shown(&value)]
    };
    rows(&["KEY", "VERSION", "VALUE"], entries.iter().map(row))
}

/// `secret ls` and `config ls`.
pub fn values(all: &[ValueInfo], now: Timestamp) -> String {
    let row =
        |info: &ValueInfo| [info.name.clone(), info.version.to_string(), ago(now, info.at), info.used_by.join(", ")];
    rows(&["NAME", "VERSION", "SET", "USED BY"], all.iter().map(row))
}

/// One of them.
pub fn value(info: &ValueInfo, now: Timestamp) -> String {
    let used = if info.used_by.is_empty() { "nothing".to_owned() } else { info.used_by.join(", ") };
    format!("Name:     {}\nVersion:  {}\nSet:      {}\nUsed by:  {used}", info.name, info.version, ago(now, info.at))
}

/// An event in a line.
pub fn event(event: &Event) -> String {
    let at = jiff::Timestamp::from_millisecond(event.at.0.cast_signed()).map(|at| at.to_string()).unwrap_or_default();
    format!("{at} {} {} {}", event.what.as_str(), event.subject, event.message).trim_end().to_owned()
}

/// `events --failed`.
pub fn failed(all: &[FailedDelivery], now: Timestamp) -> String {
    let row = |failed: &FailedDelivery| {
        [
            failed.handler.clone(),
            ago(now, failed.at),
            format!("{} {}", failed.event.what.as_str(), failed.event.subject),
            failed.error.lines().next().unwrap_or_default().to_owned(),
        ]
    };
    rows(&["HANDLER", "WHEN", "EVENT", "ERROR"], all.iter().map(row))
}
