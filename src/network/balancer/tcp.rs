//! Published ports of TCP: what listens, and how it follows a table. Carried by the balancer's loop (`event_loop`).

mod caller;
mod pair;
mod pairs;

use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};
use std::io;
use std::net::IpAddr;
use std::os::fd::{AsRawFd, RawFd};
use std::rc::Rc;
use std::time::{Duration, Instant};

use mio::net::TcpListener;
use mio::{Interest, Registry, Token};

use self::caller::{Greeting, Port};
use self::pair::Pair;
use super::lines::Lines;
use super::owner::{self, Sharing};
use super::peers::Peers;
use super::pick::Choice;
use super::sockets::{ask_often, descriptors, prepare};
use crate::model::id::TaskId;
use crate::model::port::Protocol;
use crate::model::units::Duration as Period;
use crate::network::table::{Flowed, Listener, Status, Table};

/// How soon a listener that could not be opened is tried again at first: whoever hands a port over, is waited for.
const REOPEN: Duration = Duration::from_millis(20);
const BUFFER: usize = 64 * 1024;

// A token is an index with the kind of socket in its lowest bits.
/// A client's socket.
pub const CLIENT: usize = 0;
/// A backend's.
pub const SERVER: usize = 1;
/// A port's.
pub const LISTENER: usize = 2;

struct Open {
    token: Token,
    // None once a successor has it.
    socket: Option<TcpListener>,
    spec: Listener,
    choice: Choice,
    port: Rc<Port>,
    // accept() ran out of descriptors, or as many are there as may be: no new event will come for what waits.
    starved: bool,
    full: bool,
}

impl Open {
    fn is_full(&self) -> bool {
        self.spec.max_connections.is_some_and(|most| self.port.open.get() >= most)
    }
}

/// All of them.
pub struct Tcp {
    registry: Registry,
    listeners: BTreeMap<String, Open>,
    failed: BTreeMap<String, String>,
    // Since when one could not be opened, and when it is tried again.
    reopen: Option<(Instant, Instant)>,
    names: HashMap<Token, String>,
    next: usize,
    seed: u64,
    peers: Peers,
    pairs: HashMap<usize, Pair>,
    // Clients for which there are descriptors, with those of their backends.
    most: usize,
    greetings: HashMap<usize, Greeting>,
    // Tasks that get no new connections, and whose connections are asked often whether anybody is there.
    doubted: HashSet<TaskId>,
    // Some port ends connections over which nothing goes, or has done so.
    has_idle: bool,
    // Pairs whose backend has yet to answer, and until when; in the order of that moment, since all wait alike.
    connecting: VecDeque<(Instant, usize)>,
    busy: Vec<usize>,
    lines: Rc<Lines>,
    // A table has said who is behind the ports.
    is_known: bool,
    now: Instant,
    buffer: Vec<u8>,
}

impl Tcp {
    /// Nothing is listened for yet; `seed` tells hosts apart.
    pub fn new(registry: Registry, seed: u64) -> Self {
        Tcp {
            registry,
            listeners: BTreeMap::new(),
            failed: BTreeMap::new(),
            reopen: None,
            names: HashMap::new(),
            next: 0,
            seed,
            peers: Peers::default(),
            pairs: HashMap::new(),
            // Two each; some are for other things.
            most: (descriptors().saturating_sub(256) / 2).max(64),
            greetings: HashMap::new(),
            doubted: HashSet::new(),
            has_idle: false,
            connecting: VecDeque::new(),
            busy: Vec::new(),
            lines: Rc::default(),
            is_known: false,
            now: Instant::now(),
            buffer: vec![0; BUFFER],
        }
    }

    /// Takes a socket of the balancer before this one. Until the first table says who is behind it, connections wait in the kernel's
    /// queue.
    pub fn inherit(&mut self, name: String, socket: std::net::TcpListener) -> io::Result<()> {
        let port = socket.local_addr()?.port();
        self.add_listener(name, TcpListener::from_std(socket), Listener { port, ..Listener::default() })
    }

    /// Takes over a table: the next connection follows it. `before` is the one of before.
    pub fn apply(&mut self, table: &Table, before: &Table) {
        self.is_known = true;
        // What was done before may have taken a while.
        self.now = Instant::now();
        let failed = std::mem::take(&mut self.failed);
        // As the socket says: a table that was inherited does not.
        let same = |open: &Open, wanted: &Listener| {
            let local = open.socket.as_ref().and_then(|socket| socket.local_addr().ok());
            wanted.protocol == Protocol::Tcp && local.is_some_and(|local| wanted.is_at(local))
        };
        let gone: Vec<String> = self
            .listeners
            .iter()
            .filter(|(name, open)| table.listeners.get(*name).is_none_or(|wanted| !same(open, wanted)))
            .map(|(name, _)| name.clone())
            .collect();
        for name in gone {
            if let Some(mut open) = self.listeners.remove(&name) {
                open.socket.iter_mut().for_each(|socket| drop(self.registry.deregister(socket)));
                self.names.remove(&open.token);
            }
        }
        for open in self.listeners.values() {
            let sharing = Sharing::of(table, open.spec.internal, open.spec.port);
            open.socket.iter().for_each(|socket| owner::share(socket, sharing));
        }
        let tcp = table.listeners.iter().filter(|(_, wanted)| wanted.protocol == Protocol::Tcp);
        for (name, wanted) in tcp {
            if self.listeners.contains_key(name) {
                self.renew(name, wanted.clone());
                continue;
            }
            // Who is in the way was found once: looking for them takes a while, and traffic waits for it.
            let before = before.listeners.get(name);
            let is_same = before.is_some_and(|old| (old.address, old.port) == (wanted.address, wanted.port));
            let sharing = Sharing::of(table, wanted.internal, wanted.port);
            let opened = match failed.get(name).filter(|_| is_same) {
                Some(why) => owner::try_listen(wanted.address, wanted.port, sharing).map_err(|_| why.clone()),
                None => owner::listen(wanted.address, wanted.port, sharing),
            };
            let added = opened.and_then(|socket| {
                self.add_listener(name.clone(), socket, wanted.clone()).map_err(|error| error.to_string())
            });
            if let Err(why) = added {
                self.failed.insert(name.clone(), why);
            }
        }
        self.doubt(table);
        self.peers.tidy();
        // Connections that waited for the first table, or came before their listener was registered.
        let tokens: Vec<Token> = self.listeners.values().map(|listener| listener.token).collect();
        for token in tokens {
            self.accept(token);
        }
    }

    /// Another has the ports: what a table says of who is there still counts for whoever was not served yet.
    pub fn follow(&mut self, table: &Table) {
        for name in self.listeners.keys().cloned().collect::<Vec<_>>() {
            let Some(open) = self.listeners.get(&name) else { continue };
            let now = table.listeners.get(&name).filter(|now| now.protocol == Protocol::Tcp).cloned();
            // Whoever is there still is bound as before.
            let now = now.unwrap_or_else(|| Listener { backends: Vec::new(), ..open.spec.clone() });
            self.renew(&name, now);
        }
        self.doubt(table);
        self.peers.tidy();
    }

    fn renew(&mut self, name: &str, wanted: Listener) {
        let Some(open) = self.listeners.get_mut(name) else { return };
        // Whose turn it is goes on as long as the same take turns.
        if open.spec.backends != wanted.backends {
            open.choice = self.peers.choice(&wanted.backends, self.seed).after(&open.choice);
        }
        open.port.idle.set(wanted.idle_timeout.map(Period::std));
        self.has_idle |= wanted.idle_timeout.is_some();
        open.spec = wanted;
    }

    fn add_listener(&mut self, name: String, mut socket: TcpListener, spec: Listener) -> io::Result<()> {
        let token = Token(self.next << 2 | LISTENER);
        self.next += 1;
        self.registry.register(&mut socket, token, Interest::READABLE)?;
        self.names.insert(token, name.clone());
        let port = Rc::new(Port { name: name.clone(), ..Port::default() });
        port.idle.set(spec.idle_timeout.map(Period::std));
        self.has_idle |= spec.idle_timeout.is_some();
        let choice = self.peers.choice(&spec.backends, self.seed);
        let open = Open { token, socket: Some(socket), spec, choice, port, starved: false, full: false };
        self.listeners.insert(name, open);
        Ok(())
    }

    /// Whether something could not be opened.
    pub fn has_failed(&self) -> bool {
        !self.failed.is_empty()
    }

    /// When what could not be opened is tried again, if it is: soon at first, then more and more seldom, in the end every `rarely`.
    pub fn reopen_at(&mut self, has_failed: bool, rarely: Duration) -> Option<Instant> {
        if !has_failed {
            self.reopen = None;
            return None;
        }
        let now = Instant::now();
        let (since, at) = *self.reopen.get_or_insert((now, now + REOPEN));
        if now >= at {
            let wait = ((now - since) / 100).clamp(REOPEN, rarely);
            self.reopen = Some((since, now + wait));
        }
        Some(at)
    }

    /// Tries again what could not be opened.
    pub fn reopen(&mut self, table: &Table) {
        self.now = Instant::now();
        for name in self.failed.keys().cloned().collect::<Vec<_>>() {
            let Some(wanted) = table.listeners.get(&name).cloned() else { continue };
            let sharing = Sharing::of(table, wanted.internal, wanted.port);
            let Ok(socket) = owner::try_listen(wanted.address, wanted.port, sharing) else { continue };
            if self.add_listener(name.clone(), socket, wanted).is_ok() {
                self.failed.remove(&name);
                if let Some(token) = self.listeners.get(&name).map(|open| open.token) {
                    self.accept(token);
                }
            }
        }
    }

    /// The sockets, for a handover.
    pub fn sockets(&self) -> impl Iterator<Item = (String, RawFd)> + '_ {
        self.listeners.iter().filter_map(|(name, open)| Some((name.clone(), open.socket.as_ref()?.as_raw_fd())))
    }

    /// Another has the sockets.
    pub fn leave(&mut self) {
        self.failed.clear();
        for open in self.listeners.values_mut() {
            if let Some(mut socket) = open.socket.take() {
                let _ = self.registry.deregister(&mut socket);
            }
        }
    }

    /// Whether nobody is served any more.
    pub fn is_idle(&self) -> bool {
        self.pairs.is_empty() && self.greetings.is_empty()
    }

    // Who gets nothing new may be on a host that is lost: a connection there would hang until the kernel gives up, a
    // quarter of an hour later. One that is only being drained answers, and loses nothing.
    fn doubt(&mut self, table: &Table) {
        // Also of a port that could not be opened.
        let tcp = table.listeners.values().filter(|listener| listener.protocol == Protocol::Tcp);
        let takes: HashSet<TaskId> = tcp.flat_map(Listener::takers).collect();
        // Of one that takes connections again nothing more is asked than of any other.
        for pair in
            self.pairs.values().filter(|pair| takes.contains(&pair.task()) && self.doubted.contains(&pair.task()))
        {
            prepare(&pair.server);
        }
        let open = self.peers.open();
        self.doubted.retain(|task| open.contains_key(task) && !takes.contains(task));
        let new = open.keys().filter(|task| !takes.contains(task) && !self.doubted.contains(task));
        let new: HashSet<TaskId> = new.copied().collect();
        if new.is_empty() {
            return;
        }
        for pair in self.pairs.values().filter(|pair| new.contains(&pair.task())) {
            ask_often(&pair.server);
        }
        // Whoever has not got through yet goes to another at once.
        let waiting = self.pairs.iter().filter(|(_, pair)| pair.connecting.is_some() && new.contains(&pair.task()));
        let waiting: Vec<usize> = waiting.map(|(index, _)| *index).collect();
        self.doubted.extend(new);
        for index in waiting {
            self.try_another(index, false);
        }
    }

    /// The addresses of this host that clients are connected to.
    pub fn locals(&self) -> HashSet<IpAddr> {
        let local = |pair: &Pair| Some(pair.caller.socket.local_addr().ok()?.ip().to_canonical());
        self.pairs.values().filter_map(local).collect()
    }

    /// Adds how things are.
    pub fn tell_status(&self, status: &mut Status) {
        for (task, open) in self.peers.open() {
            *status.connections.entry(task).or_default() += open;
        }
        self.peers.count(&mut status.backends);
        status.failed.extend(self.failed.clone());
        for (name, open) in &self.listeners {
            let flowed = Flowed { open: open.port.open.get(), ..open.port.flowed.get() };
            status.accepted += flowed.connections;
            status.refused += flowed.refused;
            status.malformed += flowed.malformed;
            status.ports.insert(name.clone(), flowed);
        }
    }
}
