//! Published ports of UDP: each client's datagrams go to one replica for as long as they go on, and its answers go back from
//! the address that the client has asked. One thread, one epoll loop, none as long as no port is published so.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::io;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::os::fd::{AsRawFd, RawFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use mio::net::UdpSocket;
use mio::{Events, Interest, Poll, Registry, Token, Waker};

use super::choose::Chooser;
use super::datagram::{self, Received};
use super::owner;
use crate::model::id::TaskId;
use crate::model::port::Protocol;
use crate::network::table::{Listener, Status, Table};

/// Before the name of a socket that is handed over.
pub const PREFIX: &str = "udp:";
/// A client that is silent for this long is forgotten; where there are many, and where its replica is to go, sooner.
const IDLE: Duration = Duration::from_secs(60);
const IDLE_IF_MANY: Duration = Duration::from_secs(5);
const IDLE_IF_DRAINED: Duration = Duration::from_secs(2);
/// How often it is looked who is silent.
const SWEEP: Duration = Duration::from_millis(500);
/// So many datagrams of one socket are taken before others have their turn.
const TURN: usize = 64;
/// The largest datagram that is kept until it is answered, so that it can go elsewhere if it is refused.
const KEPT: usize = 1500;
/// Clients that are served at most; each takes a descriptor.
const MOST: usize = 65_536;

const WAKER: Token = Token(usize::MAX - 1);

/// The ports of UDP of one balancer.
#[derive(Default)]
pub struct Udp {
    shared: Option<(Arc<Mutex<State>>, Arc<Waker>)>,
    inherited: BTreeMap<String, std::net::UdpSocket>,
    failed: BTreeMap<String, String>,
}

struct Open {
    name: String,
    socket: UdpSocket,
    spec: Listener,
    chooser: Chooser,
}

// A client of a port, and who answers it.
struct Flow {
    listener: usize,
    client: SocketAddr,
    // Which address of this host it has asked.
    asked: Option<IpAddr>,
    socket: UdpSocket,
    task: TaskId,
    tried: Vec<TaskId>,
    last: Instant,
    sent: u64,
    received: u64,
    // The last datagram, as long as it is not answered.
    held: Option<Vec<u8>>,
}

impl Flow {
    // Every question was answered by one datagram, as of DNS: the next one may go to whomever it likes.
    fn is_settled(&self) -> bool {
        self.sent == self.received
    }
}

struct State {
    registry: Registry,
    listeners: HashMap<usize, Open>,
    flows: HashMap<usize, Flow>,
    by_client: HashMap<(usize, SocketAddr), usize>,
    open: HashMap<TaskId, u32>,
    busy: Vec<Token>,
    next: usize,
    most: usize,
    accepted: u64,
    refused: u64,
    // Another has the ports: answers go back still.
    leaving: bool,
}

fn held(state: &Mutex<State>) -> MutexGuard<'_, State> {
    state.lock().unwrap_or_else(PoisonError::into_inner)
}

fn is_udp(listener: &Listener) -> bool {
    listener.protocol == Protocol::Udp
}

impl Udp {
    /// Takes a socket of the balancer before this one; what comes to it waits in the kernel until the first table.
    pub fn inherit(&mut self, name: &str, socket: std::net::UdpSocket) {
        self.inherited.insert(name.to_owned(), socket);
    }

    fn shared(&mut self) -> io::Result<(Arc<Mutex<State>>, Arc<Waker>)> {
        if let Some(shared) = &self.shared {
            return Ok(shared.clone());
        }
        let poll = Poll::new()?;
        let waker = Arc::new(Waker::new(poll.registry(), WAKER)?);
        let limit = nix::sys::resource::getrlimit(nix::sys::resource::Resource::RLIMIT_NOFILE);
        let most = limit.map_or(256, |(soft, _)| usize::try_from(soft / 4).unwrap_or(MOST)).clamp(64, MOST);
        let state = State {
            registry: poll.registry().try_clone()?,
            listeners: HashMap::new(),
            flows: HashMap::new(),
            by_client: HashMap::new(),
            open: HashMap::new(),
            busy: Vec::new(),
            next: 0,
            most,
            accepted: 0,
            refused: 0,
            leaving: false,
        };
        let state = Arc::new(Mutex::new(state));
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
        let mut state = held(&state);
        let gone = |open: &Open| {
            wanted
                .get(&open.name)
                .is_none_or(|wanted| (wanted.address, wanted.port) != (open.spec.address, open.spec.port))
        };
        let gone: Vec<usize> = state.listeners.iter().filter(|(_, open)| gone(open)).map(|(index, _)| *index).collect();
        gone.into_iter().for_each(|index| state.close_listener(index));
        for (name, spec) in wanted {
            if let Some(open) = state.listeners.values_mut().find(|open| open.name == *name) {
                open.chooser.retain(&spec.backends);
                open.spec = spec.clone();
                continue;
            }
            let opened = match self.inherited.remove(name).filter(|socket| is_at(socket, spec)) {
                Some(socket) => Ok(socket),
                None => owner::listen_udp(spec.address, spec.port),
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
        let Some((state, _)) = &self.shared else { return Vec::new() };
        held(state).listeners.values().map(|open| (format!("{PREFIX}{}", open.name), open.socket.as_raw_fd())).collect()
    }

    /// Another has the sockets: nothing is taken from clients any more, and answers go back for as long as some come.
    pub fn leave(&mut self) {
        self.failed.clear();
        let Some((state, waker)) = &self.shared else { return };
        let mut state = held(state);
        state.leaving = true;
        let State { registry, listeners, .. } = &mut *state;
        for open in listeners.values_mut() {
            let _ = registry.deregister(&mut open.socket);
        }
        drop(state);
        let _ = waker.wake();
    }

    /// Whether nobody is served any more.
    pub fn is_idle(&self) -> bool {
        self.shared.as_ref().is_none_or(|(state, _)| held(state).flows.is_empty())
    }

    /// Adds how things are.
    pub fn tell_status(&self, status: &mut Status) {
        status.failed.extend(self.failed.clone());
        let Some((state, _)) = &self.shared else { return };
        let state = held(state);
        for (task, open) in &state.open {
            *status.connections.entry(*task).or_default() += open;
        }
        status.accepted += state.accepted;
        status.refused += state.refused;
    }
}

fn is_at(socket: &std::net::UdpSocket, spec: &Listener) -> bool {
    socket.local_addr().is_ok_and(|local| {
        let address = spec.address.map_or(local.ip().is_unspecified(), |address| address == local.ip());
        address && local.port() == spec.port
    })
}

fn serve(mut poll: Poll, state: &Mutex<State>) {
    let mut events = Events::with_capacity(1024);
    let mut buffer = vec![0; datagram::LARGEST];
    let mut sweep = Instant::now() + SWEEP;
    loop {
        let timeout = {
            let state = held(state);
            match (state.busy.is_empty(), state.flows.is_empty()) {
                (false, _) => Some(Duration::ZERO),
                (true, false) => Some(sweep.saturating_duration_since(Instant::now())),
                (true, true) => None,
            }
        };
        match poll.poll(&mut events, timeout) {
            Err(error) if error.kind() != io::ErrorKind::Interrupted => return,
            _ => {}
        }
        let mut state = held(state);
        let mut ready = std::mem::take(&mut state.busy);
        for event in &events {
            match event.token() {
                // A table: what waits at its sockets is read.
                WAKER => ready.extend(state.listeners.keys().map(|index| Token(*index))),
                token => ready.push(token),
            }
        }
        let now = Instant::now();
        ready.sort_unstable();
        ready.dedup();
        for token in ready {
            state.turn(token.0, now, &mut buffer);
        }
        if now >= sweep {
            sweep = now + SWEEP;
            state.sweep(now);
        }
    }
}

impl State {
    fn add_listener(&mut self, name: String, socket: std::net::UdpSocket, spec: Listener) -> io::Result<()> {
        datagram::tell_destination(&socket)?;
        let mut socket = UdpSocket::from_std(socket);
        let index = self.next;
        self.next += 1;
        self.registry.register(&mut socket, Token(index), Interest::READABLE)?;
        self.listeners.insert(index, Open { name, socket, spec, chooser: Chooser::default() });
        Ok(())
    }

    fn close_listener(&mut self, index: usize) {
        let Some(mut open) = self.listeners.remove(&index) else { return };
        let _ = self.registry.deregister(&mut open.socket);
        let flows: Vec<usize> =
            self.flows.iter().filter(|(_, flow)| flow.listener == index).map(|(index, _)| *index).collect();
        flows.into_iter().for_each(|flow| self.end(flow));
    }

    fn end(&mut self, index: usize) {
        let Some(mut flow) = self.flows.remove(&index) else { return };
        let _ = self.registry.deregister(&mut flow.socket);
        if self.by_client.get(&(flow.listener, flow.client)) == Some(&index) {
            self.by_client.remove(&(flow.listener, flow.client));
        }
        if let Some(count) = self.open.get_mut(&flow.task) {
            *count -= 1;
            if *count == 0 {
                self.open.remove(&flow.task);
            }
        }
    }

    // Whose replica is not in the table any more is served by nobody: its next datagram finds another.
    fn settle(&mut self) {
        let known: HashMap<usize, HashSet<TaskId>> = self
            .listeners
            .iter()
            .map(|(index, open)| (*index, open.spec.backends.iter().map(|backend| backend.id).collect()))
            .collect();
        let is_gone = |flow: &Flow| known.get(&flow.listener).is_none_or(|tasks| !tasks.contains(&flow.task));
        let gone: Vec<usize> = self.flows.iter().filter(|(_, flow)| is_gone(flow)).map(|(index, _)| *index).collect();
        gone.into_iter().for_each(|index| self.end(index));
    }

    fn takes(&self, listener: usize, task: &TaskId) -> bool {
        self.listeners.get(&listener).is_some_and(|open| open.spec.takers().any(|taker| taker == *task))
    }

    fn sweep(&mut self, now: Instant) {
        let many = self.flows.len() > self.most / 4 * 3;
        let takers: HashMap<usize, HashSet<TaskId>> =
            self.listeners.iter().map(|(index, open)| (*index, open.spec.takers().collect())).collect();
        let is_silent = |flow: &Flow| {
            let takes = takers.get(&flow.listener).is_some_and(|takers| takers.contains(&flow.task));
            let idle = match (many, takes && !self.leaving) {
                (_, false) => IDLE_IF_DRAINED,
                (true, true) => IDLE_IF_MANY,
                (false, true) => IDLE,
            };
            now.duration_since(flow.last) >= idle
        };
        let silent: Vec<usize> =
            self.flows.iter().filter(|(_, flow)| is_silent(flow)).map(|(index, _)| *index).collect();
        silent.into_iter().for_each(|index| self.end(index));
    }

    fn turn(&mut self, index: usize, now: Instant, buffer: &mut [u8]) {
        let more = if self.listeners.contains_key(&index) {
            !self.leaving && self.hear_clients(index, now, buffer)
        } else {
            self.hear_replica(index, now, buffer)
        };
        if more {
            self.busy.push(Token(index));
        }
    }

    // True if there may be more.
    fn hear_clients(&mut self, listener: usize, now: Instant, buffer: &mut [u8]) -> bool {
        for _ in 0..TURN {
            let Some(open) = self.listeners.get(&listener) else { return false };
            match datagram::receive(&open.socket, buffer) {
                Ok(received) => self.forward(listener, &received, now, &buffer[..received.length]),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return false,
                // Word of a client that went away.
                Err(_) => {}
            }
        }
        true
    }

    fn forward(&mut self, listener: usize, received: &Received, now: Instant, data: &[u8]) {
        let known = self.by_client.get(&(listener, received.from)).copied();
        if let Some(index) = known {
            let moves =
                self.flows.get(&index).is_some_and(|flow| flow.is_settled() && !self.takes(listener, &flow.task));
            let sent = if moves { Err(io::ErrorKind::NotConnected.into()) } else { self.send(index, now, data) };
            match sent {
                Ok(()) => return,
                Err(_) if moves => self.end(index),
                Err(_) => {
                    self.elsewhere(index, now, Some(data));
                    return;
                }
            }
        }
        self.begin(listener, (received.from, received.asked), now, Vec::new(), data);
    }

    fn send(&mut self, index: usize, now: Instant, data: &[u8]) -> io::Result<()> {
        let Some(flow) = self.flows.get_mut(&index) else { return Ok(()) };
        match flow.socket.send(data) {
            Ok(_) => {}
            // Its buffer is full: lost, as on any way of a datagram.
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => return Err(error),
        }
        flow.last = now;
        flow.sent += 1;
        flow.held = (data.len() <= KEPT && flow.sent == flow.received + 1).then(|| data.to_vec());
        Ok(())
    }

    // The replica's host says that nobody listens there: what it did not answer goes to another.
    fn elsewhere(&mut self, index: usize, now: Instant, data: Option<&[u8]>) {
        let Some(flow) = self.flows.get_mut(&index) else { return };
        let (listener, client, asked) = (flow.listener, flow.client, flow.asked);
        let (held, mut tried) = (flow.held.take(), std::mem::take(&mut flow.tried));
        tried.push(flow.task);
        self.end(index);
        let again = [held.as_deref(), data].into_iter().flatten();
        let mut first = true;
        for data in again {
            match self.by_client.get(&(listener, client)).copied().filter(|_| !first) {
                Some(index) => drop(self.send(index, now, data)),
                None => self.begin(listener, (client, asked), now, tried.clone(), data),
            }
            first = false;
        }
    }

    fn begin(
        &mut self,
        listener: usize,
        (client, asked): (SocketAddr, Option<IpAddr>),
        now: Instant,
        mut tried: Vec<TaskId>,
        data: &[u8],
    ) {
        if self.flows.len() >= self.most {
            self.refused += 1;
            return;
        }
        loop {
            let Some(open) = self.listeners.get_mut(&listener) else { return };
            let spec = &open.spec;
            let Some(chosen) = open.chooser.choose(spec.balance, &spec.backends, &tried, &self.open) else {
                self.refused += 1;
                return;
            };
            let (task, address) = (spec.backends[chosen].id, spec.backends[chosen].address.clone());
            let index = self.next;
            let Ok(socket) = self.connect(&address, index) else {
                tried.push(task);
                continue;
            };
            self.next += 1;
            let flow =
                Flow { listener, client, asked, socket, task, tried, last: now, sent: 0, received: 0, held: None };
            self.flows.insert(index, flow);
            self.by_client.insert((listener, client), index);
            *self.open.entry(task).or_default() += 1;
            self.accepted += 1;
            let _ = self.send(index, now, data);
            return;
        }
    }

    fn connect(&self, address: &str, index: usize) -> io::Result<UdpSocket> {
        let address = address.trim_end_matches("/udp");
        let to: SocketAddr = address.parse().map_err(io::Error::other)?;
        let from: SocketAddr = match to {
            SocketAddr::V4(_) => ([0, 0, 0, 0], 0).into(),
            SocketAddr::V6(_) => (Ipv6Addr::UNSPECIFIED, 0).into(),
        };
        let mut socket = UdpSocket::bind(from)?;
        socket.connect(to)?;
        self.registry.register(&mut socket, Token(index), Interest::READABLE)?;
        Ok(socket)
    }

    // True if there may be more.
    fn hear_replica(&mut self, index: usize, now: Instant, buffer: &mut [u8]) -> bool {
        for _ in 0..TURN {
            let Some(flow) = self.flows.get_mut(&index) else { return false };
            match flow.socket.recv(buffer) {
                Ok(length) => {
                    flow.last = now;
                    flow.received += 1;
                    flow.held = None;
                    if let Some(open) = self.listeners.get(&flow.listener) {
                        // A client that takes nothing loses it.
                        let _ = datagram::send(&open.socket, flow.client, flow.asked, &buffer[..length]);
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return false,
                Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
                    self.elsewhere(index, now, None);
                    return false;
                }
                Err(_) => {}
            }
        }
        true
    }
}
