//! What the table of a registration may hold, for each kind.

use std::collections::BTreeMap;

use mlua::{Table, Value};
use serde::Deserialize;
use serde_json::Map;

use super::hosted::{Entry, type_of};
use super::options::Options;
use super::value::to_json;
use crate::model::bundle::HostedKind;
use crate::model::check::{CheckSpec, OnFail};
use crate::model::cron::{CronSpec, Overlap, Schedule, Zone};
use crate::model::event::What;
use crate::model::name::Name;
use crate::model::units::Duration;
use crate::model::{Error, Kind, Result, strict, suggest};

/// How long a run of a cron script may take where nothing is said.
const CRON_TIMEOUT: Duration = Duration::from_secs(600);
/// How long a handler may take where nothing is said.
const HANDLER_TIMEOUT: Duration = Duration::from_secs(60);

/// A registration's fields that are no functions.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Facts {
    /// Times and thresholds of a check.
    pub check: CheckSpec,
    /// How long a rollout may take in all.
    pub deadline: Option<Duration>,
    /// The options that it knows; none: any.
    pub options: Option<Options>,
    /// When a cron script runs.
    pub cron: Option<CronSpec>,
    /// What an event's handler listens to.
    pub on: Option<OnSpec>,
}

/// What an event's handler listens to.
#[derive(Debug, Clone, PartialEq)]
pub struct OnSpec {
    /// The event.
    pub what: What,
    /// Only events whose fields have these values.
    pub filter: BTreeMap<String, serde_json::Value>,
    /// Whether a function filters as well.
    pub asks: bool,
    /// How long one run may take.
    pub timeout: Duration,
}

// Functions, whether they are required, and plain fields of each kind.
fn fields(kind: HostedKind) -> (&'static [(&'static str, bool)], &'static [&'static str]) {
    match kind {
        HostedKind::Policy => (&[("filter", false), ("score", false)], &["options"]),
        HostedKind::Check => {
            (&[("run", true)], &["every", "timeout", "healthy", "unhealthy", "start_period", "on_fail"])
        }
        HostedKind::Rollout => (&[("step", true)], &["deadline", "options"]),
        HostedKind::Cron => (&[("run", true)], &["schedule", "timezone", "overlap", "timeout"]),
        HostedKind::On => (&[("run", true), ("filter", false)], &["name", "filter", "timeout"]),
    }
}

/// What stands behind the kind's word: a name, or an event's.
pub fn check_name(kind: HostedKind, given: &str) -> Result<()> {
    let checked = match kind {
        HostedKind::On => What::parse(given).map(drop),
        _ => given.parse::<Name>().map(drop),
    };
    checked.map_err(|error| Error { kind: Kind::Script, ..error })
}

/// Reads a registration; its name and what it holds.
pub fn read(kind: HostedKind, given: &str, table: &Table, file: &str, line: u32) -> Result<(String, Entry)> {
    let word = kind.as_str();
    let subject = format!("{word} \"{given}\"");
    let subject = subject.as_str();
    let (functions, plain) = fields(kind);
    let mut entry = Entry { functions: BTreeMap::new(), facts: Facts::default(), file: file.to_owned(), line };
    let mut rest = Map::new();
    for pair in table.pairs::<Value, Value>() {
        let (key, value) = pair.map_err(|error| Error::new(Kind::Script, subject, error.to_string()))?;
        let Value::String(key) = &key else {
            return Err(Error::new(Kind::Script, subject, "holds a value without a name")
                .help(format!("write {word} \"name\" {{ field = value }}")));
        };
        let key = key.to_string_lossy();
        let is_function = functions.iter().any(|(name, _)| *name == key);
        match value {
            Value::Function(function) if is_function => {
                entry.functions.insert(key, function);
            }
            value if plain.contains(&key.as_str()) => {
                rest.insert(key, to_json(&value).map_err(|error| error.about(subject))?);
            }
            value if is_function => {
                let message = format!("{key}: expected a function, got {}", type_of(&value));
                return Err(Error::new(Kind::Script, subject, message));
            }
            _ => {
                let known: Vec<&str> = functions.iter().map(|(name, _)| *name).chain(plain.iter().copied()).collect();
                let hint = suggest::hint(&key, known);
                return Err(Error::new(Kind::Script, subject, format!("unknown field \"{key:.60}\"{hint}")));
            }
        }
    }
    if let Some((missing, _)) =
        functions.iter().find(|(name, required)| *required && !entry.functions.contains_key(*name))
    {
        return Err(Error::new(Kind::Script, subject, format!("{missing} is missing")));
    }
    if entry.functions.is_empty() {
        return Err(Error::new(Kind::Script, subject, "has neither filter nor score"));
    }
    let rest = serde_json::Value::Object(rest);
    let mut name = given.to_owned();
    match kind {
        HostedKind::Policy => entry.facts.options = strict::read::<Policy>(subject, &rest)?.options,
        HostedKind::Rollout => {
            let read: Rollout = strict::read(subject, &rest)?;
            entry.facts = Facts { deadline: read.deadline, options: read.options, ..Facts::default() };
        }
        HostedKind::Check => entry.facts = check(subject, &rest)?,
        HostedKind::Cron => entry.facts.cron = Some(cron(subject, &rest)?),
        HostedKind::On => {
            let read: On = strict::read(subject, &rest)?;
            name = read.name.to_string();
            let what = What::parse(given)?;
            if let Some(unknown) = read.filter.keys().find(|key| !what.fields().contains(&key.as_str())) {
                let hint = suggest::hint(unknown, what.fields().iter().copied());
                return Err(Error::new(
                    Kind::Script,
                    subject,
                    format!("filter: unknown field \"{unknown:.60}\"{hint}"),
                ));
            }
            let mut filter = read.filter;
            for (key, value) in &mut filter {
                comparable(key, value, what).map_err(|why| Error::new(Kind::Script, subject, why))?;
            }
            entry.facts.on = Some(OnSpec {
                what,
                filter,
                asks: entry.functions.contains_key("filter"),
                timeout: read.timeout.unwrap_or(HANDLER_TIMEOUT),
            });
        }
    }
    Ok((name, entry))
}

// A value that no event could have would make a handler that never runs, and nobody would know.
fn comparable(key: &str, value: &mut serde_json::Value, what: What) -> std::result::Result<(), String> {
    use serde_json::Value as Json;
    let is_number = matches!(key, "sequence" | "at" | "revision");
    match value {
        Json::Number(_) if is_number => Ok(()),
        // A slot is a text, since that of a global service is a node.
        Json::Number(number) if key == "slot" => {
            *value = Json::String(number.to_string());
            Ok(())
        }
        Json::String(given) if key == "what" && given != what.as_str() => {
            Err(format!("filter.what: such an event is always \"{}\"", what.as_str()))
        }
        Json::String(_) if !is_number => Ok(()),
        _ => {
            let expected = if is_number { "a number" } else { "a text" };
            Err(format!("filter.{key}: expected {expected}, got {value}"))
        }
    }
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct Policy {
    options: Option<Options>,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct Rollout {
    deadline: Option<Duration>,
    options: Option<Options>,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct Check {
    every: Option<Duration>,
    timeout: Option<Duration>,
    healthy: Option<u32>,
    unhealthy: Option<u32>,
    start_period: Option<Duration>,
    on_fail: Option<OnFail>,
}

fn check(subject: &str, given: &serde_json::Value) -> Result<Facts> {
    let read: Check = strict::read(subject, given)?;
    let check = CheckSpec {
        every: read.every,
        timeout: read.timeout,
        healthy: read.healthy,
        unhealthy: read.unhealthy,
        start_period: read.start_period,
        on_fail: read.on_fail,
        ..CheckSpec::default()
    };
    Ok(Facts { check, ..Facts::default() })
}

#[derive(Deserialize)]
struct Cron {
    schedule: String,
    #[serde(default)]
    timezone: Option<String>,
    #[serde(default)]
    overlap: Overlap,
    #[serde(default)]
    timeout: Option<Duration>,
}

fn cron(subject: &str, given: &serde_json::Value) -> Result<CronSpec> {
    let read: Cron = strict::read(subject, given)?;
    // The schedule's own error names itself; the script's name stands before it.
    let about = |error: Error| Error { subject: format!("{subject}: {}", error.subject), kind: Kind::Script, ..error };
    let schedule: Schedule = read.schedule.parse().map_err(about)?;
    let zone = read.timezone.map_or(Ok(Zone::utc()), |zone| zone.parse()).map_err(about)?;
    let timeout = read.timeout.unwrap_or(CRON_TIMEOUT);
    if timeout == Duration::ZERO {
        return Err(Error::new(Kind::Script, subject, "timeout: 0s leaves it no time"));
    }
    Ok(CronSpec { schedule, zone, overlap: read.overlap, timeout })
}

#[derive(Deserialize)]
struct On {
    name: Name,
    #[serde(default)]
    filter: BTreeMap<String, serde_json::Value>,
    #[serde(default)]
    timeout: Option<Duration>,
}
