//! How long published ports let nobody in while they change hands: whoever moves them keeps knocking.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use crate::model::clock::Timestamp;
use crate::model::port::Protocol;
use crate::model::service::Service;
use crate::model::units::Duration as Period;
use crate::runtime::Parts;
use crate::scheduler::world::World;

/// How often each place is knocked at, and how long it has to answer.
const EVERY: (Duration, Duration) = (Duration::from_millis(20), Duration::from_millis(500));
/// Most places that are watched.
const MOST: usize = 64;

/// What became of the places.
#[derive(Debug, Clone, Default)]
pub struct Gaps {
    /// The longest that each let nobody in.
    pub longest: BTreeMap<String, Period>,
    /// Those that still do not.
    pub closed: Vec<String>,
}

/// What was seen of a place.
#[derive(Debug, Clone, Copy, Default)]
struct Seen {
    // Whether it let anybody in at first: of one that did not, nobody knows for how long it has not.
    opened: Option<bool>,
    // Since when it lets nobody in.
    shut: Option<Timestamp>,
    longest: u64,
}

impl Seen {
    fn note(&mut self, open: bool, now: Timestamp) {
        match (open, self.shut) {
            (true, Some(since)) => {
                self.longest = self.longest.max(now.since(since).millis());
                self.shut = None;
            }
            (false, None) => self.shut = Some(now),
            _ => {}
        }
        self.opened.get_or_insert(open);
    }
}

/// Watches places until it is dropped.
pub struct Watch {
    seen: Arc<Mutex<BTreeMap<String, Seen>>>,
    tasks: Vec<tokio::task::JoinHandle<()>>,
}

impl Watch {
    /// The published ports of a service, on every node that can be reached.
    pub fn start(parts: &Arc<Parts>, world: &World, service: &Service) -> Self {
        let seen = Arc::new(Mutex::new(BTreeMap::new()));
        let places = places(world, service).into_iter().take(MOST);
        let watch = |(label, address): (String, SocketAddr)| {
            let (parts, seen) = (parts.clone(), seen.clone());
            tokio::spawn(async move {
                let address = address.to_string();
                loop {
                    let at = parts.clock.now();
                    let open = parts.network.connect(&address, EVERY.1).await.is_ok();
                    // Whoever was let in was so when it knocked, and whoever was not, from then on.
                    seen.lock()
                        .unwrap_or_else(PoisonError::into_inner)
                        .entry(label.clone())
                        .or_insert_with(Seen::default)
                        .note(open, if open { parts.clock.now() } else { at });
                    tokio::time::sleep(EVERY.0).await;
                }
            })
        };
        Watch { tasks: places.map(watch).collect(), seen }
    }

    /// What was seen of them until now.
    pub fn gaps(&self) -> Gaps {
        let mut gaps = Gaps::default();
        let seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        for (label, seen) in seen.iter().filter(|(_, seen)| seen.opened == Some(true)) {
            match seen.shut {
                None => drop(gaps.longest.insert(label.clone(), Period::from_millis(seen.longest))),
                Some(_) => gaps.closed.push(label.clone()),
            }
        }
        gaps
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.tasks.iter().for_each(tokio::task::JoinHandle::abort);
    }
}

fn places(world: &World, service: &Service) -> Vec<(String, SocketAddr)> {
    // Whether a port of UDP lets anybody in, only who knows its protocol can find out.
    let ports = service.spec.ports.values().filter(|port| port.protocol == Protocol::Tcp);
    let published = ports.filter_map(|port| Some((port.published?, port.address)));
    let at = |(port, address): (u16, Option<IpAddr>)| {
        let nodes = world.nodes.values().filter_map(move |node| {
            // A listener on one address is looked for there.
            let address = address.or(node.address)?;
            Some((format!("{}:{port}", node.hostname), SocketAddr::new(address, port)))
        });
        nodes.collect::<Vec<_>>()
    };
    published.flat_map(at).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_longest_gap_counts() {
        let mut seen = Seen::default();
        let mut note = |open, at| {
            seen.note(open, Timestamp(at));
            (seen.longest, seen.shut.is_some())
        };
        assert_eq!(note(true, 20), (0, false));
        assert_eq!(note(false, 40), (0, true));
        assert_eq!(note(false, 60), (0, true));
        assert_eq!(note(true, 340), (300, false));
        assert_eq!(note(false, 400), (300, true));
        assert_eq!(note(true, 420), (300, false));
    }

    #[test]
    fn what_was_shut_at_first_is_not_known() {
        let mut seen = Seen::default();
        seen.note(false, Timestamp(0));
        seen.note(true, Timestamp(500));
        assert_eq!(seen.opened, Some(false));
        let watch = Watch { seen: Arc::new(Mutex::new(BTreeMap::from([("n1:80".into(), seen)]))), tasks: Vec::new() };
        assert!(watch.gaps().longest.is_empty() && watch.gaps().closed.is_empty());
    }
}
