//! How many requests a second one address may make. Whoever makes more is told when to come again.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use crate::registry::refused::{Code, Refused};

/// Addresses that are remembered at a time.
const MOST: usize = 100_000;
/// So many seconds' worth may come at once: a client asks for all layers of an image in a moment.
const BURST: f64 = 10.0;

/// Counts requests by address.
pub struct Rate {
    per_second: f64,
    // What each may still ask at once, and as of when.
    left: Mutex<HashMap<IpAddr, (f64, Instant)>>,
}

impl Rate {
    /// So many requests a second of each address.
    pub fn new(per_second: u32) -> Self {
        Rate { per_second: f64::from(per_second.max(1)), left: Mutex::default() }
    }

    /// One more; refused with how long to wait.
    pub fn take(&self, address: IpAddr, now: Instant) -> Result<(), (Refused, Duration)> {
        let most = self.per_second * BURST;
        let mut all = self.left.lock().unwrap_or_else(PoisonError::into_inner);
        if all.len() >= MOST && !all.contains_key(&address) {
            // Who has not asked for that long has all of it again.
            all.retain(|_, (_, at)| now.saturating_duration_since(*at).as_secs_f64() < BURST);
            if all.len() >= MOST {
                all.clear();
            }
        }
        let (left, at) = all.entry(address).or_insert((most, now));
        *left = (*left + now.saturating_duration_since(*at).as_secs_f64() * self.per_second).min(most);
        *at = now;
        if *left >= 1.0 {
            *left -= 1.0;
            return Ok(());
        }
        let wait = Duration::from_secs_f64((1.0 - *left) / self.per_second);
        let why = format!("{address} asks more than {} times a second", self.per_second);
        Err((Refused::new(Code::TooManyRequests, why), wait))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whoever_asks_too_much_waits() {
        let (rate, mut now) = (Rate::new(2), Instant::now());
        let (a, b) = (IpAddr::from([10, 0, 0, 1]), IpAddr::from([10, 0, 0, 2]));
        let count = |address, now| (0..100).filter(|_| rate.take(address, now).is_ok()).count();
        assert_eq!((count(a, now), count(b, now)), (20, 20));
        let (refused, wait) = rate.take(a, now).unwrap_err();
        assert_eq!((refused.status(), wait), (429, Duration::from_millis(500)));
        now += Duration::from_secs(3);
        assert_eq!(count(a, now), 6);
        now += Duration::from_secs(3600);
        assert_eq!(count(a, now), 20, "no more than at first, however long it was silent");
    }
}
