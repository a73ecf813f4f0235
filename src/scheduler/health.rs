//! From single check results to health: thresholds and the start period.

use crate::model::check::CheckTiming;
use crate::model::clock::Timestamp;
use crate::model::task::Health;

/// Counts a task's check results.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HealthCounter {
    health: Health,
    passes: u32,
    failures: u32,
    started_at: Timestamp,
}

impl HealthCounter {
    /// Begins with what was known: a daemon that comes back does not start from nothing.
    pub fn new(health: Health, started_at: Timestamp) -> Self {
        let health = if health == Health::None { Health::Starting } else { health };
        HealthCounter { health, passes: 0, failures: 0, started_at }
    }

    /// Counts one result; the new health if it changed.
    pub fn count(&mut self, timing: &CheckTiming, now: Timestamp, passed: bool) -> Option<Health> {
        if passed {
            self.failures = 0;
            self.passes = self.passes.saturating_add(1);
            if self.passes >= timing.healthy && self.health != Health::Healthy {
                self.health = Health::Healthy;
                return Some(Health::Healthy);
            }
            return None;
        }
        self.passes = 0;
        let sheltered = self.health == Health::Starting && now.since(self.started_at) < timing.start_period;
        if sheltered {
            return None;
        }
        self.failures = self.failures.saturating_add(1);
        if self.failures >= timing.unhealthy && self.health != Health::Unhealthy {
            self.health = Health::Unhealthy;
            return Some(Health::Unhealthy);
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::check::CheckSpec;
    use crate::model::units::Duration;

    // One character a second: `+` a pass, `-` a failure; out comes S, H or U after each.
    fn check(results: &str, expected: &str) {
        let timing = CheckTiming {
            healthy: 2,
            unhealthy: 3,
            start_period: Duration::from_secs(4),
            ..CheckSpec::default().timing(None)
        };
        let mut counter = HealthCounter::new(Health::None, Timestamp(0));
        let mut now = Timestamp(0);
        let mut got = String::new();
        for result in results.chars() {
            counter.count(&timing, now, result == '+');
            got.push_str(match counter.health {
                Health::Healthy => "H",
                Health::Unhealthy => "U",
                _ => "S",
            });
            now = now.after(Duration::from_secs(1));
        }
        assert_eq!(got, expected, "for {results}");
    }

    #[test]
    fn thresholds() {
        check("++", "SH");
        check("+-++", "SSSH");
        check("++--+---", "SHHHHHHU");
        check("-------", "SSSSSSU");
        check("----+--+--+++", "SSSSSSSSSSSHH");
        check("++---++", "SHHHUUH");
    }
}
