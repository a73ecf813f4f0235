//! When a cron script is due, and what happens to a time that has come.

use crate::model::clock::Timestamp;
use crate::model::cron::{CronRecord, CronSpec, Overlap};
use crate::model::units::Duration;

/// A time that is noticed later than this is left out: the machine slept, or its clock was stepped.
const LATE: Duration = Duration::from_secs(60);
/// A last run that lies further ahead than this was timed by a clock that was wrong.
const AHEAD: Duration = Duration::from_secs(3 * 3600);

/// What is to be done with a time that has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Due {
    /// Run.
    Run(Timestamp),
    /// Leave it out: the run before goes on.
    Skip(Timestamp),
    /// Leave it out: it was noticed too late.
    Miss(Timestamp),
}

/// The latest time that has come since the last one, if one has, and the next one. `since`: when the script began to be
/// looked after; nothing before it is made up for.
pub fn due(
    spec: &CronSpec,
    record: &CronRecord,
    since: Timestamp,
    now: Timestamp,
    running: bool,
) -> (Option<Due>, Option<Timestamp>) {
    if record.paused {
        return (None, None);
    }
    let zone = spec.zone.rules();
    // Never twice for one time, also when the clock goes back; unless it went back so far that it was wrong before.
    let last = record.last_due.filter(|last| last.since(now) <= AHEAD);
    let from = last.map_or(since, |last| last.max(since));
    let mut latest = None;
    let mut next = spec.schedule.next(from, zone);
    // Of times that were slept through only the last one counts.
    if let Some(first) = next
        && now.since(first) > LATE
        && let Some(recent) = spec.schedule.next(Timestamp(now.0 - LATE.millis()), zone)
    {
        latest = Some(first);
        next = Some(recent);
    }
    while let Some(at) = next.filter(|at| *at <= now) {
        latest = Some(at);
        next = spec.schedule.next(at, zone);
    }
    let due = latest.map(|at| match () {
        () if now.since(at) > LATE => Due::Miss(at),
        () if running && spec.overlap == Overlap::Skip => Due::Skip(at),
        () => Due::Run(at),
    });
    (due, next)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(text: &str) -> Timestamp {
        let moment: jiff::Timestamp = format!("2026-11-23T{text}Z").parse().unwrap();
        Timestamp(moment.as_millisecond() as u64)
    }

    // `last` and `since` empty: none, and midnight.
    fn check(schedule: &str, last: &str, since: &str, now: &str, running: bool, expected: &str) {
        let spec = CronSpec {
            schedule: schedule.parse().unwrap(),
            zone: "UTC".parse().unwrap(),
            overlap: Overlap::Skip,
            timeout: Duration::from_secs(60),
        };
        let record = CronRecord { last_due: (!last.is_empty()).then(|| at(last)), ..CronRecord::default() };
        let since = at(if since.is_empty() { "00:00:00" } else { since });
        let (due, next) = due(&spec, &record, since, at(now), running);
        let text = |moment: Timestamp| {
            let moment = jiff::Timestamp::from_millisecond(moment.0 as i64).unwrap().to_string();
            moment["2026-11-23T".len()..].trim_end_matches('Z').to_owned()
        };
        let due = match due {
            None => "nothing".to_owned(),
            Some(Due::Run(at)) => format!("run {}", text(at)),
            Some(Due::Skip(at)) => format!("skip {}", text(at)),
            Some(Due::Miss(at)) => format!("miss {}", text(at)),
        };
        let got = format!("{due}, next {}", next.map_or("never".into(), text));
        assert_eq!(got, expected, "{schedule} last {last} since {since:?} at {now}");
    }

    #[test]
    fn times_come_once() {
        check("*/5 * * * *", "10:00:00", "", "10:04:59", false, "nothing, next 10:05:00");
        check("*/5 * * * *", "10:00:00", "", "10:05:00", false, "run 10:05:00, next 10:10:00");
        check("*/5 * * * *", "10:05:00", "", "10:05:01", false, "nothing, next 10:10:00");
        check("*/5 * * * *", "10:00:00", "", "10:05:01", true, "skip 10:05:00, next 10:10:00");
    }

    #[test]
    fn what_is_noticed_late_is_missed() {
        check("0 * * * *", "08:00:00", "", "10:30:00", false, "miss 09:00:00, next 11:00:00");
        check("* * * * *", "08:00:00", "", "10:30:10", false, "run 10:30:00, next 10:31:00");
        check("0 * * * *", "", "10:30:00", "10:31:00", false, "nothing, next 11:00:00");
    }

    #[test]
    fn a_stepped_clock_runs_nothing_twice() {
        // Back by ten minutes after the run at 10:05.
        check("*/5 * * * *", "10:05:00", "", "09:56:00", false, "nothing, next 10:10:00");
        // The clock had been hours ahead.
        check("*/5 * * * *", "18:05:00", "", "10:05:00", false, "run 10:05:00, next 10:10:00");
        check("*/5 * * * *", "18:05:00", "10:01:00", "10:05:00", false, "run 10:05:00, next 10:10:00");
    }
}
