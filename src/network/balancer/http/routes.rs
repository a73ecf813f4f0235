//! The table as it is asked: which route a request takes, and who is behind it.

use std::borrow::Cow;
use std::collections::{BTreeMap, HashMap};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use crate::model::id::TaskId;
use crate::model::route::{RouteSpec, plain_path};
use crate::network::balancer::peers::Peers;
use crate::network::balancer::pick::{Choice, Peer, Picked, Slot, Wish};
use crate::network::table::{Carried, Front, Passed, Route, TIMES, Table, Target};

/// What shares are counted in.
const WHOLE: u64 = 1_000_000;

/// All that requests are answered by.
#[derive(Default)]
pub struct Routing {
    fronts: HashMap<String, FrontRoutes>,
    peers: Peers,
    ways: HashMap<String, Arc<Way>>,
    seed: u64,
}

#[derive(Default)]
struct FrontRoutes {
    // Where TLS goes through; and for the others, every list is in the order in which they are tried.
    through: Vec<usize>,
    by_host: HashMap<String, Vec<usize>>,
    others: Vec<usize>,
    routes: Vec<Known>,
}

// A route, and who is behind it.
struct Known {
    way: Arc<Way>,
    choice: Choice,
    // Each service of its own, where a script chooses among them.
    groups: HashMap<String, Choice>,
}

/// A route, as those who carry its requests know it.
#[derive(Debug)]
pub struct Way {
    /// Its name.
    pub name: String,
    /// What it was described as.
    pub spec: RouteSpec,
    /// The path that its requests begin with, to be compared.
    pub prefix: String,
    /// What has gone by.
    pub passed: Arc<WayPassed>,
}

/// What has gone by a route.
#[derive(Debug, Default)]
pub struct WayPassed {
    answers: [AtomicU64; 5],
    retries: AtomicU64,
    times: [AtomicU64; TIMES.len() + 1],
    micros: AtomicU64,
    unchosen: AtomicU64,
    why: Mutex<Option<String>>,
}

impl WayPassed {
    /// Counts an answer.
    pub fn note(&self, status: u16, took: Duration) {
        let class = usize::from(status / 100).clamp(1, 5) - 1;
        self.answers[class].fetch_add(1, Ordering::Relaxed);
        let millis = took.as_millis() as u64;
        let slot = TIMES.iter().position(|most| millis < *most).unwrap_or(TIMES.len());
        self.times[slot].fetch_add(1, Ordering::Relaxed);
        self.micros.fetch_add(took.as_micros() as u64, Ordering::Relaxed);
    }

    /// Counts another try.
    pub fn note_retry(&self) {
        self.retries.fetch_add(1, Ordering::Relaxed);
    }

    /// Counts a request of which the route's script said nothing of use, and why, where that is known.
    pub fn note_unchosen(&self, why: Option<&str>) {
        self.unchosen.fetch_add(1, Ordering::Relaxed);
        let Some(why) = why else { return };
        let mut known = self.why.lock().unwrap_or_else(PoisonError::into_inner);
        if known.as_deref() != Some(why) {
            *known = Some(crate::model::error::shorten(why));
        }
    }

    fn told(&self) -> Passed {
        let get = |count: &AtomicU64| count.load(Ordering::Relaxed);
        Passed {
            answers: std::array::from_fn(|class| get(&self.answers[class])),
            retries: get(&self.retries),
            times: std::array::from_fn(|slot| get(&self.times[slot])),
            micros: get(&self.micros),
            unchosen: get(&self.unchosen),
            why_unchosen: self.why.lock().unwrap_or_else(PoisonError::into_inner).clone(),
        }
    }
}

impl Routing {
    /// Nothing yet; `seed` tells hosts apart.
    pub fn new(seed: u64) -> Self {
        Routing { seed, ..Routing::default() }
    }

    /// Takes over a table. What is counted goes on for whatever stays.
    pub fn take(&mut self, table: &Table) {
        let mut ways = HashMap::new();
        let mut fronts = HashMap::new();
        for (name, front) in &table.fronts {
            let routes = front.routes.iter().map(|route| {
                let choice = Choice::new(self.slots(&route.to), self.seed);
                let mut groups = HashMap::new();
                for target in route.to.iter().filter(|_| route.spec.choose.is_some()) {
                    let alone = Target { weight: 1, ..target.clone() };
                    let slots = self.slots(std::slice::from_ref(&alone));
                    groups.insert(target.service.clone(), Choice::new(slots, self.seed));
                }
                Known { way: self.way(route, &mut ways), choice, groups }
            });
            fronts.insert(name.clone(), FrontRoutes::new(front, routes.collect()));
        }
        // Whoever still carries something is counted until that is over.
        self.peers.keep(table.fronts.values().flat_map(Front::backends));
        (self.fronts, self.ways) = (fronts, ways);
    }

    fn way(&self, route: &Route, ways: &mut HashMap<String, Arc<Way>>) -> Arc<Way> {
        if let Some(known) = self.ways.get(&route.name).filter(|known| known.spec == route.spec) {
            ways.insert(route.name.clone(), known.clone());
            return known.clone();
        }
        let before = self.ways.get(&route.name);
        let passed = before.map(|known| known.passed.clone()).unwrap_or_default();
        // What another script failed by is not this one's.
        if before.is_some_and(|known| known.spec.choose != route.spec.choose) {
            *passed.why.lock().unwrap_or_else(PoisonError::into_inner) = None;
        }
        // One that is none was refused when it was described; it leads nowhere, not everywhere.
        let prefix = plain_path(route.spec.prefix()).map_or_else(|_| "\0".to_owned(), Cow::into_owned);
        let way = Arc::new(Way { name: route.name.clone(), spec: route.spec.clone(), prefix, passed });
        ways.insert(route.name.clone(), way.clone());
        way
    }

    fn slots(&mut self, to: &[Target]) -> Vec<Slot> {
        let mut slots = Vec::new();
        for target in to {
            let sum: u64 = target.backends.iter().map(|backend| u64::from(backend.weight)).sum();
            for backend in &target.backends {
                // A target's share is its own, however many replicas it has.
                let share = match u64::from(target.weight) * u64::from(backend.weight) {
                    0 => 0,
                    _ if to.len() == 1 => u64::from(backend.weight),
                    share => (share as u128 * u128::from(WHOLE) / u128::from(sum)).max(1) as u64,
                };
                slots.push(Slot::new(self.peers.of(backend), share));
            }
        }
        slots
    }

    /// The route that a request takes; none: there is no such route.
    pub fn way_of(&self, front: &str, host: &str, path: &str) -> Option<(usize, &Arc<Way>)> {
        let front = self.fronts.get(front)?;
        let list = front.by_host.get(host).unwrap_or(&front.others);
        let fits = |index: &&usize| front.fits(**index, host, path);
        list.iter().find(fits).map(|index| (*index, &front.routes[*index].way))
    }

    /// The route that lets TLS for this name through, in lower case.
    pub fn way_through(&self, front: &str, name: &str) -> Option<(usize, &Arc<Way>)> {
        let front = self.fronts.get(front)?;
        let fits = |index: &&usize| front.routes[**index].way.spec.is_for(name);
        front.through.iter().find(fits).map(|index| (*index, &front.routes[*index].way))
    }

    /// Whether TLS of some name goes through.
    pub fn has_through(&self, front: &str) -> bool {
        self.fronts.get(front).is_some_and(|front| !front.through.is_empty())
    }

    /// Chooses who is asked of a route; counted at once, so that nobody is told to stop in between.
    /// A table that came since may have the route elsewhere, or not at all.
    pub fn choose(&mut self, front: &str, way: &Arc<Way>, index: usize, wish: &Wish) -> Option<Picked> {
        let routes = &mut self.fronts.get_mut(front)?.routes;
        let is_it = |known: &Known| known.way.name == way.name;
        let index = if routes.get(index).is_some_and(is_it) { index } else { routes.iter().position(is_it)? };
        let Known { way, choice, groups } = &mut routes[index];
        // Where nobody of it serves, the others do.
        let group = wish.group.and_then(|group| groups.get_mut(group)?.choose(&way.spec.balance, wish));
        group.or_else(|| choice.choose(&way.spec.balance, wish))
    }

    /// Whether there is a route of this name.
    pub fn has_way(&self, name: &str) -> bool {
        self.ways.contains_key(name)
    }

    /// Whether anybody is still sent there.
    pub fn has_peer(&self, peer: &Arc<Peer>) -> bool {
        self.peers.has(peer)
    }

    /// Requests under way, by task.
    pub fn open(&self) -> BTreeMap<TaskId, u32> {
        self.peers.open()
    }

    /// What went by each route; what went to each replica is added.
    pub fn count(&self, carried: &mut BTreeMap<TaskId, Carried>) -> BTreeMap<String, Passed> {
        self.peers.count(carried);
        self.ways.iter().map(|(name, way)| (name.clone(), way.passed.told())).collect()
    }
}

impl FrontRoutes {
    fn new(front: &Front, routes: Vec<Known>) -> Self {
        let spec = |index: usize| &front.routes[index].spec;
        let rank = |host: &Option<String>| match host.as_deref() {
            None => 0,
            Some(host) if host.starts_with("*.") => host.len(),
            Some(_) => usize::MAX,
        };
        let mut order: Vec<usize> = (0..routes.len()).collect();
        order.sort_by_key(|index| {
            let spec = spec(*index);
            let exact = (spec.priority, rank(&spec.host), routes[*index].way.prefix.len());
            (std::cmp::Reverse(exact), &front.routes[*index].name)
        });
        let (through, order): (Vec<usize>, Vec<usize>) = order.into_iter().partition(|index| spec(*index).passthrough);
        let hosts = front.routes.iter().filter_map(|route| route.spec.host.as_deref());
        let mut all = FrontRoutes { routes, through, ..FrontRoutes::default() };
        for host in hosts.filter(|host| !host.starts_with("*.")) {
            let list = order.iter().copied().filter(|index| spec(*index).is_for(host));
            all.by_host.insert(host.to_owned(), list.collect());
        }
        all.others = order
            .into_iter()
            .filter(|index| spec(*index).host.as_deref().is_none_or(|host| host.starts_with("*.")))
            .collect();
        all
    }

    fn fits(&self, index: usize, host: &str, path: &str) -> bool {
        let way = &self.routes[index].way;
        let rest = path.strip_prefix(way.prefix.as_str());
        rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('/') || way.prefix.is_empty())
            && way.spec.is_for(host)
    }
}

/// A host as routes name them: without its port, in lower case.
pub fn plain_host(host: &[u8]) -> Cow<'_, str> {
    let text = std::str::from_utf8(host).unwrap_or_default();
    // The colons of a bare address of IPv6 are no port's.
    let is_name = |host: &str| host.ends_with(']') || !host.contains(':');
    let bare = match text.rsplit_once(':') {
        Some((host, port)) if is_name(host) && port.bytes().all(|byte| byte.is_ascii_digit()) => host,
        _ => text,
    };
    let bare = bare.strip_suffix('.').unwrap_or(bare);
    match bare.bytes().any(|byte| byte.is_ascii_uppercase()) {
        true => Cow::Owned(bare.to_ascii_lowercase()),
        false => Cow::Borrowed(bare),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::network::table::Backend;

    fn table(routes: &[(&str, &str, i32)]) -> Table {
        let route = |(name, place, priority): &(&str, &str, i32)| {
            let spec = RouteSpec { priority: *priority, ..place.parse().unwrap() };
            Route { name: (*name).to_owned(), spec, to: Vec::new() }
        };
        let front = Front { port: 80, routes: routes.iter().map(route).collect(), ..Front::default() };
        Table { fronts: [("80".to_owned(), front)].into(), ..Table::default() }
    }

    #[test]
    fn the_most_exact_route_is_taken() {
        let mut routing = Routing::new(0);
        routing.take(&table(&[
            ("any", "*:80/", 0),
            ("shop", "shop.example.com", 0),
            ("api", "shop.example.com/api", 0),
            ("api-v2", "shop.example.com/api/v2", 0),
            ("wild", "*.example.com", 0),
            ("deep", "*.eu.example.com", 0),
            ("health", "/healthz", 1),
            ("umlaut", "/%C3%A4", 0),
        ]));
        let way = |host: &str, path: &str| {
            let host = plain_host(host.as_bytes());
            let path = plain_path(path).ok()?;
            routing.way_of("80", &host, &path).map(|(_, way)| way.name.clone())
        };
        for (host, path, expected) in [
            ("shop.example.com", "/", "shop"),
            ("SHOP.example.com:80", "/x", "shop"),
            ("shop.example.com.", "/api", "api"),
            ("shop.example.com", "/api/", "api"),
            ("shop.example.com", "/apix", "shop"),
            ("shop.example.com", "/%61pi/x", "api"),
            ("shop.example.com", "//api//v2", "api-v2"),
            ("shop.example.com", "/healthz", "health"),
            ("a.example.com", "/", "wild"),
            ("a.b.example.com", "/", "wild"),
            ("a.eu.example.com", "/", "deep"),
            ("example.com", "/", "any"),
            ("", "/", "any"),
            ("[::1]:80", "/", "any"),
            ("x", "/\u{e4}/b", "umlaut"),
            ("x", "/%c3%a4", "umlaut"),
        ] {
            assert_eq!(way(host, path).as_deref(), Some(expected), "{host}{path}");
        }
    }

    #[test]
    fn a_targets_share_is_its_own() {
        let backend = |n: u128| Backend { id: TaskId::numbered(n), address: format!("127.0.0.1:{n}"), weight: 100 };
        let mut table = table(&[("shop", "shop.example.com", 0)]);
        let route = &mut table.fronts.get_mut("80").unwrap().routes[0];
        route.to = vec![
            Target { service: "shop".into(), weight: 95, backends: (1..=5).map(backend).collect() },
            Target { service: "next".into(), weight: 5, backends: vec![backend(6)] },
        ];
        let mut routing = Routing::new(0);
        routing.take(&table);
        let mut counts = BTreeMap::<TaskId, u32>::new();
        let way = routing.way_of("80", "shop.example.com", "/").unwrap().1.clone();
        for _ in 0..1000 {
            *counts.entry(routing.choose("80", &way, 0, &Wish::default()).unwrap().peer().id).or_default() += 1;
        }
        assert_eq!(counts.into_values().collect::<Vec<_>>(), [190, 190, 190, 190, 190, 50]);
        // What is under way is counted until it is over, also of those that are no more.
        let held = routing.choose("80", &way, 0, &Wish::default()).unwrap();
        routing.take(&Table::default());
        assert_eq!(routing.open(), [(held.peer().id, 1)].into());
        drop(held);
        assert!(routing.open().is_empty());
    }
}
