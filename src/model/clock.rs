//! Time and randomness, handed in through one trait so that tests and the simulation hold both.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::units::Duration;

/// A moment in milliseconds since 1970-01-01 UTC.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize, JsonSchema)]
#[serde(transparent)]
pub struct Timestamp(pub u64);

impl Timestamp {
    /// The moment `period` later.
    #[must_use]
    pub fn after(self, period: Duration) -> Self {
        Timestamp(self.0.saturating_add(period.millis()))
    }

    /// How long ago `earlier` was; zero where it lies ahead.
    pub fn since(self, earlier: Timestamp) -> Duration {
        Duration::from_millis(self.0.saturating_sub(earlier.0))
    }
}

/// Where time and randomness come from.
pub trait Clock: Send + Sync {
    /// The moment that decisions use: starts at the wall time and then runs evenly, so that a stepped clock
    /// neither fires nor postpones a deadline while the daemon lives.
    fn now(&self) -> Timestamp;
    /// The wall clock, for what people read.
    fn wall(&self) -> Timestamp;
    /// The same in nanoseconds since 1970-01-01 UTC, as finely as it is known.
    fn wall_nanos(&self) -> i64 {
        i64::try_from(self.wall().0).unwrap_or(i64::MAX).saturating_mul(1_000_000)
    }
    /// 64 random bits.
    fn random(&self) -> u64;
    /// Lets `now` go on from `moment` where that lies ahead: what was decided before, by a clock that has been set back since,
    /// is not decided later than what is decided now.
    fn catch_up(&self, _moment: Timestamp) {}
}

/// The machine's own clock and randomness.
pub struct SystemClock {
    base: AtomicU64,
    started: Instant,
    seed: AtomicU64,
}

impl SystemClock {
    /// Starts at the present wall time.
    pub fn start() -> Self {
        SystemClock { base: AtomicU64::new(wall().0), started: Instant::now(), seed: AtomicU64::new(entropy()) }
    }
}

impl Clock for SystemClock {
    fn now(&self) -> Timestamp {
        Timestamp(self.base.load(Ordering::SeqCst)).after(self.started.elapsed().into())
    }

    fn wall(&self) -> Timestamp {
        wall()
    }

    fn wall_nanos(&self) -> i64 {
        let elapsed = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        i64::try_from(elapsed.as_nanos()).unwrap_or(i64::MAX)
    }

    fn random(&self) -> u64 {
        mix(self.seed.fetch_add(0x9E37_79B9_7F4A_7C15, Ordering::Relaxed))
    }

    fn catch_up(&self, moment: Timestamp) {
        self.base.fetch_add(moment.since(self.now()).millis(), Ordering::SeqCst);
    }
}

/// One step of SplitMix64 (Steele, Lea, Flood 2014): even bits from a counter, enough for ids and tie-breaks.
pub fn mix(seed: u64) -> u64 {
    let mut z = seed.wrapping_add(0x9E37_79B9_7F4A_7C15);
    z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ (z >> 31)
}

fn wall() -> Timestamp {
    let elapsed = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    Timestamp(u64::try_from(elapsed.as_millis()).unwrap_or(u64::MAX))
}

// The standard library's hasher keys are the one source of entropy that it hands out.
fn entropy() -> u64 {
    use std::hash::{BuildHasher, Hasher};
    let mut hasher = std::collections::hash_map::RandomState::new().build_hasher();
    hasher.write_u64(wall().0);
    hasher.write_u32(std::process::id());
    hasher.finish()
}

/// A clock that stands still until told, with seeded randomness.
#[derive(Debug)]
pub struct ManualClock {
    now: AtomicU64,
    seed: AtomicU64,
}

impl ManualClock {
    /// Stands at `now`; `seed` decides all randomness.
    pub fn new(now: Timestamp, seed: u64) -> Self {
        ManualClock { now: AtomicU64::new(now.0), seed: AtomicU64::new(seed) }
    }

    /// Moves on by `period`.
    pub fn advance(&self, period: Duration) {
        self.now.fetch_add(period.millis(), Ordering::SeqCst);
    }
}

impl Clock for ManualClock {
    fn now(&self) -> Timestamp {
        Timestamp(self.now.load(Ordering::SeqCst))
    }

    fn wall(&self) -> Timestamp {
        self.now()
    }

    fn random(&self) -> u64 {
        mix(self.seed.fetch_add(0x9E37_79B9_7F4A_7C15, Ordering::SeqCst))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_goes_on_from_what_was_decided_last() {
        let clock = SystemClock::start();
        let before = clock.now();
        clock.catch_up(Timestamp(before.0 - 5000));
        assert!(clock.now().since(before).millis() < 1000, "what is past is past");
        let ahead = before.after(Duration::from_secs(3600));
        clock.catch_up(ahead);
        assert!(clock.now() >= ahead && clock.now().since(ahead).millis() < 1000);
        assert!(clock.wall() < ahead, "people read the wall's clock");
    }
}
