//! Which replica a request goes to.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use crate::model::id::TaskId;
use crate::model::route::RouteBalance;

/// Failures in a row after which a replica gets nothing for a while.
const IN_A_ROW: u32 = 5;
/// How long that is.
const AWAY: Duration = Duration::from_secs(30);

/// One replica at one address, whichever routes lead to it.
#[derive(Debug)]
pub struct Peer {
    /// Its task.
    pub id: TaskId,
    /// Where it listens.
    pub address: String,
    /// What its clients' cookies say.
    pub mark: String,
    // Requests and connections under way.
    open: AtomicU32,
    in_a_row: AtomicU32,
    // Until when it gets nothing, in milliseconds since `begin`; 0: it gets.
    away_until: AtomicU64,
    begin: Instant,
    requests: AtomicU64,
    failures: AtomicU64,
    ejections: AtomicU64,
}

impl Peer {
    /// A replica that nothing was sent to yet.
    pub fn new(id: TaskId, address: &str) -> Arc<Self> {
        Arc::new(Peer {
            id,
            address: address.to_owned(),
            mark: format!("{:016x}", text_hash(id.to_string().as_bytes())),
            open: AtomicU32::new(0),
            in_a_row: AtomicU32::new(0),
            away_until: AtomicU64::new(0),
            begin: Instant::now(),
            requests: AtomicU64::new(0),
            failures: AtomicU64::new(0),
            ejections: AtomicU64::new(0),
        })
    }

    /// How many requests are under way.
    pub fn open(&self) -> u32 {
        self.open.load(Ordering::Relaxed)
    }

    /// Requests, failures, ejections.
    pub fn counts(&self) -> [u64; 3] {
        [&self.requests, &self.failures, &self.ejections].map(|count| count.load(Ordering::Relaxed))
    }

    /// It has answered.
    pub fn succeeded(&self) {
        if self.in_a_row.load(Ordering::Relaxed) != 0 {
            self.in_a_row.store(0, Ordering::Relaxed);
        }
    }

    /// It refused, broke off or was late.
    pub fn failed(&self) {
        self.failures.fetch_add(1, Ordering::Relaxed);
        if self.in_a_row.fetch_add(1, Ordering::Relaxed) + 1 >= IN_A_ROW {
            let until = (self.begin.elapsed() + AWAY).as_millis() as u64;
            if self.away_until.swap(until, Ordering::Relaxed) == 0 {
                self.ejections.fetch_add(1, Ordering::Relaxed);
            }
        }
    }

    fn is_away(&self) -> bool {
        let until = self.away_until.load(Ordering::Relaxed);
        if until == 0 {
            return false;
        }
        let over = self.begin.elapsed().as_millis() as u64 >= until;
        if over {
            // One more failure and it is away again; one success and it is as any other.
            self.away_until.store(0, Ordering::Relaxed);
            self.in_a_row.store(IN_A_ROW - 1, Ordering::Relaxed);
        }
        !over
    }
}

/// A request's hold on the replica that was chosen for it; it is under way as long as this is kept.
#[derive(Debug)]
pub struct Picked(Arc<Peer>);

impl Picked {
    /// The replica.
    pub fn peer(&self) -> &Arc<Peer> {
        &self.0
    }
}

impl Drop for Picked {
    fn drop(&mut self) {
        self.0.open.fetch_sub(1, Ordering::Relaxed);
    }
}

/// A replica of a route, with its share.
#[derive(Debug)]
pub struct Slot {
    /// The replica.
    pub peer: Arc<Peer>,
    /// Its share; 0 for one that is drained.
    pub weight: u64,
    current: i64,
}

impl Slot {
    /// With this share.
    pub fn new(peer: Arc<Peer>, weight: u64) -> Self {
        Slot { peer, weight, current: 0 }
    }
}

/// What a choice may depend on besides.
#[derive(Debug, Default)]
pub struct Wish<'a> {
    /// The mark of the replica that had the client before.
    pub mark: Option<&'a [u8]>,
    /// What is hashed, where a hash decides.
    pub hash: u64,
    /// Replicas that did not take it.
    pub tried: &'a [TaskId],
    /// The service that is to answer, where a script has said so.
    pub group: Option<&'a str>,
}

/// A route's replicas, and whose turn it is.
#[derive(Debug, Default)]
pub struct Choice {
    slots: Vec<Slot>,
    are_alike: bool,
    next: usize,
    random: u64,
}

impl Choice {
    /// Among these; `seed` tells hosts apart, so that not all begin with the same one.
    pub fn new(slots: Vec<Slot>, seed: u64) -> Self {
        let mut weights = slots.iter().map(|slot| slot.weight).filter(|weight| *weight > 0);
        let first = weights.next();
        let are_alike = weights.all(|weight| Some(weight) == first);
        let next = if slots.is_empty() { 0 } else { (seed % slots.len() as u64) as usize };
        Choice { slots, are_alike, next, random: seed | 1 }
    }

    /// Goes on with whose turn it was before, for those who are still there.
    pub fn after(mut self, before: &Choice) -> Self {
        for slot in &mut self.slots {
            let known = before.slots.iter().find(|known| Arc::ptr_eq(&known.peer, &slot.peer));
            slot.current = known.map_or(0, |known| known.current);
        }
        let next = before.slots.get(before.next).map(|slot| &slot.peer);
        let at = |peer: &Arc<Peer>| self.slots.iter().position(|slot| Arc::ptr_eq(&slot.peer, peer));
        self.next = next.and_then(at).unwrap_or(self.next);
        self
    }

    /// Chooses one; none where nobody is left. One that failed several times is chosen only where all have.
    pub fn choose(&mut self, balance: &RouteBalance, wish: &Wish) -> Option<Picked> {
        let index = self.among(balance, wish, true).or_else(|| self.among(balance, wish, false))?;
        let peer = self.slots[index].peer.clone();
        peer.open.fetch_add(1, Ordering::Relaxed);
        peer.requests.fetch_add(1, Ordering::Relaxed);
        Some(Picked(peer))
    }

    fn among(&mut self, balance: &RouteBalance, wish: &Wish, careful: bool) -> Option<usize> {
        let may =
            |slot: &Slot| slot.weight > 0 && !wish.tried.contains(&slot.peer.id) && !(careful && slot.peer.is_away());
        if let Some(mark) = wish.mark
            && let Some(known) = self.slots.iter().position(|slot| slot.peer.mark.as_bytes() == mark && may(slot))
        {
            return Some(known);
        }
        let load = |slot: &Slot| f64::from(slot.peer.open()) / slot.weight as f64;
        match balance {
            RouteBalance::RoundRobin => self.in_turn(may),
            RouteBalance::LeastConnections => {
                let least = self.slots.iter().filter(|slot| may(slot)).map(load).fold(f64::INFINITY, f64::min);
                self.in_turn(|slot| may(slot) && load(slot) <= least)
            }
            RouteBalance::PowerOfTwo => {
                let first = self.drawn(mix(self.random), may)?;
                let other = |slot: &Slot| may(slot) && slot.peer.id != self.slots[first].peer.id;
                let second = self.drawn(mix(!self.random), other);
                let fewer = |second: usize| load(&self.slots[second]) < load(&self.slots[first]);
                let chosen = second.filter(|second| fewer(*second)).unwrap_or(first);
                self.random = mix(self.random.wrapping_add(0x9e37_79b9_7f4a_7c15));
                Some(chosen)
            }
            // Weighted rendezvous hashing (Thaler and Ravishankar, 1996): one that comes or goes moves its own share alone.
            RouteBalance::Hash(_) => {
                let score = |slot: &Slot| {
                    let hash = mix(wish.hash ^ text_hash(slot.peer.mark.as_bytes()));
                    let unit = ((hash >> 11) as f64 + 0.5) / (1_u64 << 53) as f64;
                    -(slot.weight as f64) / unit.ln()
                };
                let scored = self.slots.iter().enumerate().filter(|(_, slot)| may(slot));
                let best = scored.map(|(index, slot)| (index, score(slot))).max_by(|a, b| a.1.total_cmp(&b.1));
                best.map(|(index, _)| index)
            }
        }
    }

    // One by weight, drawn.
    fn drawn(&self, random: u64, may: impl Fn(&Slot) -> bool) -> Option<usize> {
        let total: u64 = self.slots.iter().filter(|slot| may(slot)).map(|slot| slot.weight).sum();
        if total == 0 {
            return None;
        }
        let mut point = random % total;
        for (index, slot) in self.slots.iter().enumerate().filter(|(_, slot)| may(slot)) {
            match point.checked_sub(slot.weight) {
                Some(rest) => point = rest,
                None => return Some(index),
            }
        }
        None
    }

    fn in_turn(&mut self, may: impl Fn(&Slot) -> bool) -> Option<usize> {
        if self.are_alike {
            let count = self.slots.len();
            let index = (0..count).map(|step| (self.next + step) % count).find(|index| may(&self.slots[*index]))?;
            self.next = (index + 1) % count;
            return Some(index);
        }
        // Smooth weighted round robin (nginx, 2012): each gains its weight, the richest serves and pays the sum.
        let (mut total, mut best) = (0, None);
        for (index, slot) in self.slots.iter_mut().enumerate() {
            if !may(slot) {
                continue;
            }
            slot.current += slot.weight as i64;
            total += slot.weight as i64;
            if best.is_none_or(|(_, richest)| slot.current > richest) {
                best = Some((index, slot.current));
            }
        }
        let (index, _) = best?;
        self.slots[index].current -= total;
        Some(index)
    }
}

/// A number of a text, the same on each host (FNV-1a, mixed).
pub fn text_hash(text: &[u8]) -> u64 {
    let hash = text
        .iter()
        .fold(0xcbf2_9ce4_8422_2325, |hash: u64, byte| (hash ^ u64::from(*byte)).wrapping_mul(0x100_0000_01b3));
    mix(hash)
}

// The finalizer of MurmurHash3 (Appleby, 2011).
fn mix(mut hash: u64) -> u64 {
    hash ^= hash >> 33;
    hash = hash.wrapping_mul(0xff51_afd7_ed55_8ccd);
    hash ^= hash >> 33;
    hash = hash.wrapping_mul(0xc4ce_b9fe_1a85_ec53);
    hash ^ hash >> 33
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::route::HashBy;

    fn choice(weights: &[u64]) -> Choice {
        let slots = weights.iter().enumerate();
        let slots = slots.map(|(n, weight)| Slot::new(Peer::new(TaskId::numbered(n as u128), "127.0.0.1:1"), *weight));
        Choice::new(slots.collect(), 0)
    }

    fn number(picked: &Picked, of: &Choice) -> usize {
        of.slots.iter().position(|slot| slot.peer.id == picked.peer().id).unwrap()
    }

    fn counts(choice: &mut Choice, balance: &RouteBalance, rounds: u64) -> Vec<u64> {
        let mut counts = vec![0; choice.slots.len()];
        for hash in 0..rounds {
            let picked = choice.choose(balance, &Wish { hash: mix(hash), ..Wish::default() }).unwrap();
            counts[number(&picked, choice)] += 1;
        }
        counts
    }

    #[test]
    fn shares_follow_weights() {
        assert_eq!(counts(&mut choice(&[500, 0, 9500]), &RouteBalance::RoundRobin, 1000), [50, 0, 950]);
        assert_eq!(counts(&mut choice(&[7, 7, 0, 7]), &RouteBalance::RoundRobin, 999), [333, 333, 0, 333]);
        let hashed = counts(&mut choice(&[100, 0, 300]), &RouteBalance::Hash(HashBy::Ip), 10_000);
        assert!(hashed[1] == 0 && hashed[0].abs_diff(2500) < 200, "{hashed:?}");
        let drawn = counts(&mut choice(&[100, 100, 100, 100]), &RouteBalance::PowerOfTwo, 10_000);
        assert!(drawn.iter().all(|count| count.abs_diff(2500) < 300), "{drawn:?}");
    }

    #[test]
    fn fewest_under_way() {
        for balance in [RouteBalance::LeastConnections, RouteBalance::PowerOfTwo] {
            let mut choice = choice(&[100, 100]);
            let held: Vec<Picked> = (0..10).map(|_| choice.choose(&balance, &Wish::default()).unwrap()).collect();
            assert_eq!(choice.slots.iter().map(|slot| slot.peer.open()).collect::<Vec<_>>(), [5, 5]);
            drop(held);
            assert_eq!(choice.slots[0].peer.open(), 0);
        }
    }

    #[test]
    fn the_same_text_comes_to_the_same_replica_and_others_stay_where_they_are() {
        let by = RouteBalance::Hash(HashBy::Path);
        let mut all = choice(&[100; 10]);
        let gone = all.slots[3].peer.id;
        let mut moved = 0;
        for hash in 0..1000 {
            let before = all.choose(&by, &Wish { hash: mix(hash), ..Wish::default() }).unwrap().peer().id;
            let after =
                all.choose(&by, &Wish { hash: mix(hash), tried: &[gone], ..Wish::default() }).unwrap().peer().id;
            assert!(before == gone || before == after);
            moved += u32::from(before != after);
        }
        assert!((50..200).contains(&moved), "{moved}");
    }

    #[test]
    fn whoever_fails_again_and_again_is_left_out_but_never_all() {
        let mut choice = choice(&[100, 100]);
        let bad = choice.slots[0].peer.clone();
        (0..4).for_each(|_| bad.failed());
        bad.succeeded();
        (0..4).for_each(|_| bad.failed());
        assert_eq!(counts(&mut choice, &RouteBalance::RoundRobin, 10), [5, 5]);
        bad.failed();
        assert_eq!(counts(&mut choice, &RouteBalance::RoundRobin, 10), [0, 10]);
        let mark = bad.mark.clone();
        let sticky = Wish { mark: Some(mark.as_bytes()), ..Wish::default() };
        assert_ne!(choice.choose(&RouteBalance::RoundRobin, &sticky).unwrap().peer().id, bad.id);
        (0..5).for_each(|_| choice.slots[1].peer.failed());
        assert_eq!(counts(&mut choice, &RouteBalance::RoundRobin, 10), [5, 5]);
        assert_eq!(bad.counts()[1..], [9, 1]);
    }

    #[test]
    fn a_mark_is_followed_while_it_may_be() {
        let mut choice = choice(&[100, 100, 0]);
        let marks: Vec<String> = choice.slots.iter().map(|slot| slot.peer.mark.clone()).collect();
        for _ in 0..5 {
            let wish = Wish { mark: Some(marks[1].as_bytes()), ..Wish::default() };
            let picked = choice.choose(&RouteBalance::RoundRobin, &wish).unwrap();
            assert_eq!(number(&picked, &choice), 1);
        }
        let drained = Wish { mark: Some(marks[2].as_bytes()), ..Wish::default() };
        let picked = choice.choose(&RouteBalance::RoundRobin, &drained).unwrap();
        assert_ne!(number(&picked, &choice), 2);
    }
}
