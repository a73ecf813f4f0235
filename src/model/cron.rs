//! Cron scripts: when they run, and what became of each run.

use std::fmt;
use std::str::FromStr;

use croner::Cron;
use croner::parser::{CronParser, Seconds, Year};
use jiff::tz::{AmbiguousOffset, TimeZone};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::clock::Timestamp;
use super::error::{Error, Result};
use super::units::Duration;

/// Runs of a cron script that are kept.
pub const HISTORY: usize = 20;
/// Output that is kept of a run, in bytes.
pub const MAX_OUTPUT: usize = 4096;

/// Changes of clocks that a search goes over: more than in the eight years between two leap days.
const MAX_CHANGES: usize = 100;

/// What stands for five fields.
const NICKNAMES: [&str; 7] = ["@hourly", "@daily", "@midnight", "@weekly", "@monthly", "@yearly", "@annually"];

/// The fields, and the words that they know.
const FIELDS: [(&str, &[&str]); 5] = [
    ("minute", &[]),
    ("hour", &[]),
    ("day of month", &["L", "W", "LW"]),
    ("month", &["JAN", "FEB", "MAR", "APR", "MAY", "JUN", "JUL", "AUG", "SEP", "OCT", "NOV", "DEC"]),
    ("day of week", &["SUN", "MON", "TUE", "WED", "THU", "FRI", "SAT", "L"]),
];

/// Five fields (minute, hour, day of month, month, day of week), or `@hourly` and its like.
///
/// Around a change of clocks it goes as people know it from cron: what falls into the hour that is left out runs at its
/// end, what falls into the hour that comes twice runs once; schedules with `*` or `/` in the hour simply follow the
/// clock on the wall.
#[derive(Debug, Clone)]
pub struct Schedule {
    text: String,
    cron: Cron,
    follows_the_wall: bool,
}

impl Schedule {
    /// The first time after `now`, in `zone`; none if there is no such day.
    pub fn next(&self, now: Timestamp, zone: &TimeZone) -> Option<Timestamp> {
        let now = jiff::Timestamp::from_millisecond(now.0.cast_signed()).ok()?;
        let next = if self.follows_the_wall { self.next_on_the_wall(now, zone) } else { self.next_once(now, zone) };
        Some(Timestamp(u64::try_from(next?.as_millisecond()).ok()?))
    }

    // Each time that the clock on the wall shows a time that is named: in both hours where one comes twice.
    fn next_on_the_wall(&self, now: jiff::Timestamp, zone: &TimeZone) -> Option<jiff::Timestamp> {
        let mut offset = zone.to_offset(now);
        let (mut after, mut wall) = (now, offset.to_datetime(now));
        // From one change of clocks to the next; a day may be years ahead.
        for _ in 0..MAX_CHANGES {
            let next = offset.to_timestamp(self.named_after(wall)?).ok()?;
            let Some(change) = zone.following(after).next() else { return Some(next) };
            if next < change.timestamp() {
                return Some(next);
            }
            (after, offset) = (change.timestamp(), change.offset());
            // The moment of the change itself may be one.
            wall = offset.to_datetime(after).checked_sub(jiff::Span::new().seconds(1)).ok()?;
        }
        None
    }

    // Each time that is named once: at the end of an hour that is left out, in the first of an hour that comes twice.
    fn next_once(&self, now: jiff::Timestamp, zone: &TimeZone) -> Option<jiff::Timestamp> {
        let mut wall = zone.to_datetime(now);
        loop {
            wall = self.named_after(wall)?;
            let at = match zone.to_ambiguous_timestamp(wall).offset() {
                AmbiguousOffset::Unambiguous { offset } => offset.to_timestamp(wall).ok()?,
                AmbiguousOffset::Fold { before, .. } => before.to_timestamp(wall).ok()?,
                AmbiguousOffset::Gap { after, .. } => {
                    zone.following(after.to_timestamp(wall).ok()?).next()?.timestamp()
                }
            };
            if at > now {
                return Some(at);
            }
        }
    }

    // The next time that is named, whatever clocks do: reckoned in UTC, which has every hour once.
    fn named_after(&self, wall: jiff::civil::DateTime) -> Option<jiff::civil::DateTime> {
        let wall = wall.to_zoned(TimeZone::UTC).ok()?;
        Some(self.cron.find_next_occurrence(&wall, false).ok()?.datetime())
    }
}

impl FromStr for Schedule {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let wrong = |why: String| {
            Error::invalid(format!("schedule {text:.60?}"), why)
                .help("five fields: minute hour day-of-month month day-of-week, such as \"30 3 * * *\"")
        };
        let fields = text.split_whitespace().count();
        if fields != 5 && !text.trim_start().starts_with('@') {
            return Err(wrong(format!("has {fields} fields, not 5")));
        }
        // A name in the wrong field would be read as a number, at another time than was meant.
        let parts: Vec<&str> = text.split_whitespace().collect();
        for (part, (field, names)) in parts.iter().zip(FIELDS).filter(|_| fields == 5) {
            let words = part.split(|c: char| !c.is_ascii_alphabetic()).filter(|word| !word.is_empty());
            if let Some(wrong_word) = words.clone().find(|word| !names.contains(&word.to_ascii_uppercase().as_str())) {
                return Err(wrong(format!("\"{wrong_word:.20}\" is not known in the field {field}")));
            }
        }
        if fields != 5 && !NICKNAMES.contains(&text.trim().to_ascii_lowercase().as_str()) {
            let hint = super::suggest::hint(text.trim(), NICKNAMES);
            return Err(wrong(format!("is not known{hint}")));
        }
        let parser = CronParser::builder().seconds(Seconds::Disallowed).year(Year::Disallowed).build();
        let cron = parser.parse(text).map_err(|error| wrong(error.to_string().trim_end_matches('.').to_lowercase()))?;
        let hour = parts.get(1).copied().unwrap_or_default();
        let follows_the_wall = hour.contains(['*', '/']) || text.trim().eq_ignore_ascii_case("@hourly");
        let schedule = Schedule { text: text.trim().to_owned(), cron, follows_the_wall };
        if schedule.next(Timestamp(1_704_067_200_000), &TimeZone::UTC).is_none() {
            return Err(wrong("names a day that never comes".into()));
        }
        Ok(schedule)
    }
}

impl fmt::Display for Schedule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl PartialEq for Schedule {
    fn eq(&self, other: &Self) -> bool {
        self.text == other.text
    }
}

/// A time zone by its IANA name; the names and rules are part of the program.
#[derive(Debug, Clone, PartialEq)]
pub struct Zone(TimeZone);

impl Zone {
    /// UTC.
    pub fn utc() -> Self {
        Zone(TimeZone::UTC)
    }

    /// For reckoning.
    pub fn rules(&self) -> &TimeZone {
        &self.0
    }
}

impl FromStr for Zone {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        if text.eq_ignore_ascii_case("utc") {
            return Ok(Zone::utc());
        }
        jiff::tz::db().get(text).map(Zone).map_err(|_| {
            let known: Vec<String> = jiff::tz::db().available().map(|name| name.to_string()).collect();
            let hint = super::suggest::nearest(text, known.iter().map(String::as_str));
            let hint = hint.map(|name| format!("; did you mean \"{name}\"?")).unwrap_or_default();
            Error::invalid(format!("time zone {text:.60?}"), format!("is not known{hint}"))
                .help("use an IANA name such as \"Europe/Amsterdam\"")
        })
    }
}

impl fmt::Display for Zone {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.0.iana_name().unwrap_or("UTC"))
    }
}

/// What happens when a run is due and the one before still goes on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Overlap {
    /// It is left out, and the history says so.
    #[default]
    Skip,
    /// Both run.
    Allow,
}

/// When a cron script runs, and for how long at most.
#[derive(Debug, Clone, PartialEq)]
pub struct CronSpec {
    /// When.
    pub schedule: Schedule,
    /// By whose clock.
    pub zone: Zone,
    /// What happens to a run that is due while another goes on.
    pub overlap: Overlap,
    /// How long a run may take.
    pub timeout: Duration,
}

/// What is kept of a cron script: one record.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct CronRecord {
    /// It does not run by schedule while this is set.
    pub paused: bool,
    /// The last time that was due; none before it is due again.
    pub last_due: Option<Timestamp>,
    /// Counts runs.
    pub runs: u64,
    /// The last runs, oldest first.
    pub history: Vec<CronRun>,
}

/// One run of a cron script.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct CronRun {
    /// Counts up for each script.
    pub number: u64,
    /// When it was due; none if somebody asked for it.
    pub due_at: Option<Timestamp>,
    /// When it was written down that it starts; it starts after that.
    pub started_at: Timestamp,
    /// When it ended.
    pub finished_at: Option<Timestamp>,
    /// How it ended.
    pub outcome: Outcome,
    /// Who asked for it, if somebody did.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub by: Option<String>,
    /// The scripts it ran from, by hash.
    pub bundle: String,
    /// What it printed, the end of it, and how it failed.
    pub output: String,
}

impl CronRun {
    /// An error where it did not end well; what it printed last is the cause.
    pub fn well(&self, name: &str) -> crate::model::Result<()> {
        if self.outcome == Outcome::Ok {
            return Ok(());
        }
        let message = format!("run {} ended: {}", self.number, self.outcome.as_str());
        let error = crate::model::Error::new(crate::model::Kind::Failed, format!("cron \"{name}\""), message);
        Err(match self.output.trim_end() {
            "" => error,
            output => error.cause(output),
        })
    }
}

/// How a run ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// It goes on.
    Running,
    /// Well.
    Ok,
    /// With an error.
    Failed,
    /// It took longer than it may.
    TimedOut,
    /// It was left out: the one before still went on.
    Skipped,
    /// It was left out: its time had long passed when it was noticed (a sleeping machine, a stepped clock).
    Missed,
    /// The daemon ended while it ran; nobody knows how far it came.
    Unknown,
}

impl Outcome {
    /// As in tables.
    pub fn as_str(self) -> &'static str {
        match self {
            Outcome::Running => "running",
            Outcome::Ok => "ok",
            Outcome::Failed => "failed",
            Outcome::TimedOut => "timed out",
            Outcome::Skipped => "skipped",
            Outcome::Missed => "missed",
            Outcome::Unknown => "unknown",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    // The next times of `schedule` in `zone` after `from`, as UTC.
    fn check(schedule: &str, zone: &str, from: &str, expected: &[&str]) {
        let (schedule, zone): (Schedule, Zone) = (schedule.parse().unwrap(), zone.parse().unwrap());
        let mut now = Timestamp(from.parse::<jiff::Timestamp>().unwrap().as_millisecond() as u64);
        for expected in expected {
            now = schedule.next(now, zone.rules()).unwrap();
            let got = jiff::Timestamp::from_millisecond(now.0 as i64).unwrap().to_string();
            assert_eq!(got, *expected, "{schedule} in {zone} after {from}");
        }
    }

    #[test]
    fn times() {
        check("30 3 * * *", "UTC", "2026-11-23T00:00:00Z", &["2026-11-23T03:30:00Z", "2026-11-24T03:30:00Z"]);
        check("30 3 * * *", "Europe/Amsterdam", "2026-11-23T00:00:00Z", &["2026-11-23T02:30:00Z"]);
        check("*/15 * * * *", "UTC", "2026-01-01T00:00:00Z", &["2026-01-01T00:15:00Z", "2026-01-01T00:30:00Z"]);
        check("0 0 29 2 *", "UTC", "2026-01-01T00:00:00Z", &["2028-02-29T00:00:00Z"]);
        check("@daily", "UTC", "2026-01-01T00:00:00Z", &["2026-01-02T00:00:00Z"]);
        check("0 9 * * MON-FRI", "UTC", "2026-11-20T12:00:00Z", &["2026-11-23T09:00:00Z"]);
    }

    // Europe/Amsterdam goes from +1 to +2 on 29 March 2026 at 01:00Z, and back on 25 October 2026 at 01:00Z.
    #[test]
    fn both_changes_of_clocks() {
        let zone = "Europe/Amsterdam";
        check("30 2 * * *", zone, "2026-03-28T12:00:00Z", &["2026-03-29T01:00:00Z", "2026-03-30T00:30:00Z"]);
        check("30 2 * * *", zone, "2026-10-24T12:00:00Z", &["2026-10-25T00:30:00Z", "2026-10-26T01:30:00Z"]);
        check("0 * * * *", zone, "2026-03-29T00:30:00Z", &["2026-03-29T01:00:00Z", "2026-03-29T02:00:00Z"]);
        check(
            "0 * * * *",
            zone,
            "2026-10-24T23:30:00Z",
            &["2026-10-25T00:00:00Z", "2026-10-25T01:00:00Z", "2026-10-25T02:00:00Z"],
        );
        check("30 3 * * *", zone, "2026-03-28T12:00:00Z", &["2026-03-29T01:30:00Z"]);
        // Several times in the hour that is left out are one at its end; in the hour that comes twice each is there once.
        for half_hours in ["0,30 2 * * *", "*/30 2 * * *"] {
            check(half_hours, zone, "2026-03-28T12:00:00Z", &["2026-03-29T01:00:00Z", "2026-03-30T00:00:00Z"]);
            check(
                half_hours,
                zone,
                "2026-10-24T12:00:00Z",
                &["2026-10-25T00:00:00Z", "2026-10-25T00:30:00Z", "2026-10-26T01:00:00Z"],
            );
        }
        check("15 2,3 * * *", zone, "2026-03-28T12:00:00Z", &["2026-03-29T01:00:00Z", "2026-03-29T01:15:00Z"]);
        check(
            "15 2,3 * * *",
            zone,
            "2026-10-24T12:00:00Z",
            &["2026-10-25T00:15:00Z", "2026-10-25T02:15:00Z", "2026-10-26T01:15:00Z"],
        );
        for hourly in ["@hourly", "0 */1 * * *"] {
            let twice = ["2026-10-25T00:00:00Z", "2026-10-25T01:00:00Z", "2026-10-25T02:00:00Z"];
            check(hourly, zone, "2026-10-24T23:30:00Z", &twice);
        }
        check("*/30 * 29 3 *", zone, "2026-03-29T00:45:00Z", &["2026-03-29T01:00:00Z", "2026-03-29T01:30:00Z"]);
        // Half an hour's change, and one at midnight.
        check("15 2 * * *", "Australia/Lord_Howe", "2026-10-03T00:00:00Z", &["2026-10-03T15:30:00Z"]);
        check("0 0 * * *", "Asia/Beirut", "2026-03-28T12:00:00Z", &["2026-03-28T22:00:00Z", "2026-03-29T21:00:00Z"]);
        check("0 * 29 2 *", zone, "2096-03-01T00:00:00Z", &["2104-02-28T23:00:00Z"]);
    }

    #[test]
    fn mistakes() {
        let error = |text: &str| text.parse::<Schedule>().unwrap_err().message;
        assert_eq!(error("* * *"), "has 3 fields, not 5");
        assert_eq!(error("0 0 3 * * *"), "has 6 fields, not 5");
        assert_eq!(error("0 0 30 2 *"), "names a day that never comes");
        assert!(error("61 * * * *").contains("out of bounds"), "{}", error("61 * * * *"));
        assert_eq!(error("mon * * * *"), "\"mon\" is not known in the field minute");
        assert_eq!(error("* jan * * *"), "\"jan\" is not known in the field hour");
        assert!(error("@hourlyy").contains("did you mean \"@hourly\"?"), "{}", error("@hourlyy"));
        let zone = "Europe/Amsterdan".parse::<Zone>().unwrap_err().message;
        assert_eq!(zone, "is not known; did you mean \"Europe/Amsterdam\"?");
    }
}
