//! Published ports of UDP: each client's datagrams go to one replica for as long as they go on, and its answers go back from
//! the address that the client has asked. One thread, one epoll loop, none as long as no port is published so.

mod flows;

use std::collections::BTreeMap;
use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use mio::{Events, Poll, Token, Waker};

use self::flows::{Open, State};
use super::datagram;
use super::owner::{self, Sharing};
use super::sockets::descriptors;
use crate::model::port::Protocol;
use crate::network::table::{Flowed, Listener, Status, Table};

/// Before the name of a socket that is handed over.
pub const PREFIX: &str = "udp:";
/// How often it is looked who is silent.
const SWEEP: Duration = Duration::from_millis(500);
/// Clients that are served at most: each takes a descriptor, and a port of this host, of which at most half are taken.
const MOST: usize = 65_536;
/// How many ports the kernel gives out where it does not say.
const PORTS: usize = 28_232;

const WAKER: Token = Token(usize::MAX - 1);

/// The ports of UDP of one balancer.
pub struct Udp {
    seed: u64,
    shared: Option<(Arc<Shared>, Arc<Waker>)>,
    inherited: BTreeMap<String, std::net::UdpSocket>,
    failed: BTreeMap<String, String>,
}

// The thread takes the lock for one socket at a time, and leaves it to whoever waits.
struct Shared {
    state: Mutex<State>,
    waiting: AtomicU32,
}

impl Shared {
    fn control(&self) -> MutexGuard<'_, State> {
        self.waiting.fetch_add(1, Ordering::SeqCst);
        let state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        self.waiting.fetch_sub(1, Ordering::SeqCst);
        state
    }

    fn serve(&self) -> MutexGuard<'_, State> {
        while self.waiting.load(Ordering::SeqCst) > 0 {
            std::thread::yield_now();
        }
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn is_udp(listener: &Listener) -> bool {
    listener.protocol == Protocol::Udp
}

impl Udp {
    /// None yet; `seed` tells hosts apart.
    pub fn new(seed: u64) -> Self {
        Udp { seed, shared: None, inherited: BTreeMap::new(), failed: BTreeMap::new() }
    }

    /// Takes a socket of the balancer before this one; what comes to it waits in the kernel until the first table.
    pub fn inherit(&mut self, name: &str, socket: std::net::UdpSocket) {
        self.inherited.insert(name.to_owned(), socket);
    }

    fn shared(&mut self) -> io::Result<(Arc<Shared>, Arc<Waker>)> {
        if let Some(shared) = &self.shared {
            return Ok(shared.clone());
        }
        let poll = Poll::new()?;
        let waker = Arc::new(Waker::new(poll.registry(), WAKER)?);
        let most = (descriptors() / 4).min(ports() / 2).clamp(64, MOST);
        let state = State::new(poll.registry().try_clone()?, most, self.seed);
        let state = Arc::new(Shared { state: Mutex::new(state), waiting: AtomicU32::new(0) });
        let served = state.clone();
        std::thread::Builder::new().name("udp".into()).spawn(move || serve(poll, &served))?;
        let shared = (state, waker);
        self.shared = Some(shared.clone());
        Ok(shared)
    }

    /// Takes over a table: the next datagram follows it.
    pub fn apply(&mut self, table: &Table) {
        let wanted: BTreeMap<&String, &Listener> = table.listeners.iter().filter(|(_, one)| is_udp(one)).collect();
        if wanted.is_empty() && self.shared.is_none() {
            self.inherited.clear();
            self.failed.clear();
            return;
        }
        let (state, waker) = match self.shared() {
            Ok(shared) => shared,
            Err(error) => {
                self.failed = wanted.keys().map(|name| ((*name).clone(), error.to_string())).collect();
                return;
            }
        };
        self.failed.clear();
        let mut state = state.control();
        let gone = |open: &Open| {
            wanted
                .get(&open.name)
                .is_none_or(|wanted| (wanted.address, wanted.port) != (open.spec.address, open.spec.port))
        };
        let gone: Vec<usize> = state.listeners.iter().filter(|(_, open)| gone(open)).map(|(index, _)| *index).collect();
        gone.into_iter().for_each(|index| state.close_listener(index));
        for open in state.listeners.values() {
            owner::share(&open.socket, Sharing::of(table, open.spec.internal, open.spec.port));
        }
        for (name, spec) in wanted {
            let known = state.listeners.iter().find(|(_, open)| open.name == *name).map(|(index, _)| *index);
            if let Some(index) = known {
                state.renew(index, spec.clone());
                continue;
            }
            let opened = match self
                .inherited
                .remove(name)
                .filter(|socket| socket.local_addr().is_ok_and(|local| spec.is_at(local)))
            {
                Some(socket) => Ok(socket),
                None => owner::listen_udp(spec.address, spec.port, Sharing::of(table, spec.internal, spec.port)),
            };
            let added = opened.and_then(|socket| {
                state.add_listener(name.clone(), socket, spec.clone()).map_err(|error| error.to_string())
            });
            if let Err(why) = added {
                self.failed.insert(name.clone(), why);
            }
        }
        self.inherited.clear();
        state.settle();
        // What came before its socket was registered is read now.
        drop(state);
        let _ = waker.wake();
    }

    /// Tries to open what could not be opened.
    pub fn reopen(&mut self, table: &Table) {
        if !self.failed.is_empty() {
            self.apply(table);
        }
    }

    /// Whether something could not be opened.
    pub fn has_failed(&self) -> bool {
        !self.failed.is_empty()
    }

    /// The sockets that are handed over, by name.
    pub fn sockets(&self) -> Vec<(String, RawFd)> {
        // What was taken over, and what no table has told of yet.
        let mut all: Vec<(String, RawFd)> =
            self.inherited.iter().map(|(name, socket)| (format!("{PREFIX}{name}"), socket.as_raw_fd())).collect();
        if let Some((state, _)) = &self.shared {
            let state = state.control();
            all.extend(
                state.listeners.values().map(|open| (format!("{PREFIX}{}", open.name), open.socket.as_raw_fd())),
            );
        }
        all
    }

    /// Another has the sockets: nothing is taken from clients any more, and answers go back for as long as some come.
    pub fn leave(&mut self) {
        self.failed.clear();
        self.inherited.clear();
        let Some((state, waker)) = &self.shared else { return };
        let mut state = state.control();
        state.leaving = true;
        let State { registry, listeners, .. } = &mut *state;
        for open in listeners.values_mut() {
            let _ = registry.deregister(&mut open.socket);
        }
        // A port that nobody is served at any more is let go: its next owner may be another.
        listeners.retain(|_, open| open.flows > 0);
        drop(state);
        let _ = waker.wake();
    }

    /// Another has the ports: what a table says of who is there still counts.
    pub fn follow(&mut self, table: &Table) {
        let Some((state, _)) = &self.shared else { return };
        let mut state = state.control();
        for index in state.listeners.keys().copied().collect::<Vec<_>>() {
            let Some(open) = state.listeners.get(&index) else { continue };
            let now = table.listeners.get(&open.name).filter(|one| is_udp(one));
            let backends = now.map(|one| one.backends.clone()).unwrap_or_default();
            let spec = Listener { backends, ..open.spec.clone() };
            state.renew(index, spec);
        }
        state.settle();
    }

    /// Whether nobody is served any more.
    pub fn is_idle(&self) -> bool {
        self.shared.as_ref().is_none_or(|(state, _)| state.control().flows.is_empty())
    }

    /// Adds how things are.
    pub fn tell_status(&self, status: &mut Status) {
        status.failed.extend(self.failed.clone());
        let Some((state, _)) = &self.shared else { return };
        let state = state.control();
        for (task, open) in state.peers.open() {
            *status.connections.entry(task).or_default() += open;
        }
        state.peers.count(&mut status.backends);
        for open in state.listeners.values() {
            let flowed = Flowed { open: u32::try_from(open.flows).unwrap_or(u32::MAX), ..open.flowed };
            status.accepted += flowed.connections;
            status.refused += flowed.refused;
            status.ports.insert(open.name.clone(), flowed);
        }
    }
}

// How many ports of its own a host has for those who ask for none by number.
fn ports() -> usize {
    let text = std::fs::read_to_string("/proc/sys/net/ipv4/ip_local_port_range").unwrap_or_default();
    let mut ends = text.split_ascii_whitespace().filter_map(|word| word.parse::<usize>().ok());
    match (ends.next(), ends.next()) {
        (Some(first), Some(last)) if last > first => last - first,
        _ => PORTS,
    }
}

fn serve(mut poll: Poll, shared: &Shared) {
    let mut events = Events::with_capacity(1024);
    let mut buffer = vec![0; datagram::LARGEST];
    let mut sweep = Instant::now() + SWEEP;
    loop {
        let timeout = {
            let state = shared.serve();
            match (state.busy.is_empty(), state.flows.is_empty()) {
                (false, _) => Some(Duration::ZERO),
                (true, false) => Some(sweep.saturating_duration_since(Instant::now())),
                (true, true) => None,
            }
        };
        match poll.poll(&mut events, timeout) {
            Err(error) if error.kind() != io::ErrorKind::Interrupted => std::thread::sleep(SWEEP),
            _ => {}
        }
        let mut state = shared.serve();
        let mut ready = std::mem::take(&mut state.busy);
        for event in &events {
            match event.token() {
                // A table: what waits at its sockets is read.
                WAKER => ready.extend(state.listeners.keys().map(|index| Token(*index))),
                token => ready.push(token),
            }
        }
        drop(state);
        ready.sort_unstable();
        ready.dedup();
        for token in ready {
            shared.serve().turn(token.0, Instant::now(), &mut buffer);
        }
        let now = Instant::now();
        if now >= sweep {
            sweep = now + SWEEP;
            shared.serve().sweep(now);
        }
    }
}
