//! Who asks at ports of UDP, and who answers.

use std::collections::{HashMap, HashSet};
use std::io;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::time::{Duration, Instant};

use mio::net::UdpSocket;
use mio::{Interest, Registry, Token};

use crate::model::id::TaskId;
use crate::model::port::Balance;
use crate::network::balancer::datagram::{self, Received};
use crate::network::balancer::peers::Peers;
use crate::network::balancer::pick::{Choice, Picked, Wish, text_hash};
use crate::network::table::{Flowed, Listener};

/// A client that is silent for this long is forgotten: the fuller it is (above a quarter, a half, three quarters), the sooner.
const IDLE: [Duration; 4] =
    [Duration::from_secs(60), Duration::from_secs(15), Duration::from_secs(5), Duration::from_secs(1)];
/// The same where its replica is to go; and whoever heard nothing from there for so long may go elsewhere.
const IDLE_IF_DRAINED: Duration = Duration::from_secs(2);
/// Where it is full, one in so many of a port's clients goes, those that were silent for longest.
const GOES: usize = 16;
/// So many datagrams of one socket are taken before others have their turn.
const TURN: usize = 64;
/// The largest datagram that is kept until it is answered, so that it can go elsewhere if it is refused.
const KEPT: usize = 1500;

/// A port.
pub struct Open {
    pub name: String,
    pub socket: UdpSocket,
    pub spec: Listener,
    pub choice: Choice,
    pub flows: usize,
    pub flowed: Flowed,
}

// Who has asked where: a port, and at which address of this host.
type Asks = (usize, SocketAddr, Option<IpAddr>);

/// A client of a port, and who answers it.
pub struct Flow {
    listener: usize,
    client: SocketAddr,
    // Which address of this host it has asked.
    asked: Option<IpAddr>,
    socket: UdpSocket,
    picked: Picked,
    tried: Vec<TaskId>,
    last: Instant,
    // When the replica was heard last, or was first asked.
    heard: Instant,
    // Questions without an answer.
    owed: u32,
    // It has said more than it was asked.
    talks: bool,
    // The last datagram, as long as nothing came back; empty for none.
    held: Vec<u8>,
}

impl Flow {
    fn task(&self) -> TaskId {
        self.picked.peer().id
    }

    fn asks(&self) -> Asks {
        (self.listener, self.client, self.asked)
    }

    // Every question was answered by one datagram, as of DNS: the next one may go to whomever it likes.
    fn is_settled(&self) -> bool {
        self.owed == 0 && !self.talks
    }

    // Whether it may go elsewhere without being cut off: what it was owed for so long does not come any more.
    fn may_move(&self, now: Instant) -> bool {
        self.is_settled() || now.duration_since(self.heard) >= IDLE_IF_DRAINED
    }
}

/// All ports, and all clients.
pub struct State {
    pub registry: Registry,
    pub listeners: HashMap<usize, Open>,
    pub flows: HashMap<usize, Flow>,
    by_client: HashMap<Asks, usize>,
    pub peers: Peers,
    seed: u64,
    pub busy: Vec<Token>,
    next: usize,
    most: usize,
    /// Another has the ports: answers go back still.
    pub leaving: bool,
}

// Its host says that nobody is there, or nobody says where its host is.
fn is_away(error: &io::Error) -> bool {
    use io::ErrorKind::{ConnectionRefused, HostUnreachable, NetworkUnreachable};
    matches!(error.kind(), ConnectionRefused | HostUnreachable | NetworkUnreachable)
}

impl State {
    /// Without ports; `most`: how many clients are served at once; `seed` tells hosts apart.
    pub fn new(registry: Registry, most: usize, seed: u64) -> Self {
        State {
            registry,
            listeners: HashMap::new(),
            flows: HashMap::new(),
            by_client: HashMap::new(),
            peers: Peers::default(),
            seed,
            busy: Vec::new(),
            next: 0,
            most,
            leaving: false,
        }
    }

    pub fn add_listener(&mut self, name: String, socket: std::net::UdpSocket, spec: Listener) -> io::Result<()> {
        datagram::tell_destination(&socket)?;
        let mut socket = UdpSocket::from_std(socket);
        let index = self.next;
        self.next += 1;
        self.registry.register(&mut socket, Token(index), Interest::READABLE)?;
        let choice = self.peers.choice(&spec.backends, self.seed);
        self.listeners.insert(index, Open { name, socket, spec, choice, flows: 0, flowed: Flowed::default() });
        Ok(())
    }

    pub fn close_listener(&mut self, index: usize) {
        let Some(mut open) = self.listeners.remove(&index) else { return };
        let _ = self.registry.deregister(&mut open.socket);
        let flows: Vec<usize> =
            self.flows.iter().filter(|(_, flow)| flow.listener == index).map(|(index, _)| *index).collect();
        flows.into_iter().for_each(|flow| self.end(flow));
    }

    fn end(&mut self, index: usize) {
        let Some(mut flow) = self.flows.remove(&index) else { return };
        let _ = self.registry.deregister(&mut flow.socket);
        if self.by_client.get(&flow.asks()) == Some(&index) {
            self.by_client.remove(&flow.asks());
        }
        if let Some(open) = self.listeners.get_mut(&flow.listener) {
            open.flows -= 1;
            if self.leaving && open.flows == 0 {
                self.listeners.remove(&flow.listener);
            }
        }
    }

    /// What a table says of a port.
    pub fn renew(&mut self, index: usize, spec: Listener) {
        let Some(open) = self.listeners.get_mut(&index) else { return };
        if open.spec.backends != spec.backends {
            open.choice = self.peers.choice(&spec.backends, self.seed).after(&open.choice);
        }
        open.spec = spec;
    }

    // Whose replica is not in the table any more is served by nobody: its next datagram finds another.
    pub fn settle(&mut self) {
        let known: HashMap<usize, HashSet<TaskId>> = self
            .listeners
            .iter()
            .map(|(index, open)| (*index, open.spec.backends.iter().map(|backend| backend.id).collect()))
            .collect();
        let is_gone = |flow: &Flow| known.get(&flow.listener).is_none_or(|tasks| !tasks.contains(&flow.task()));
        let gone: Vec<usize> = self.flows.iter().filter(|(_, flow)| is_gone(flow)).map(|(index, _)| *index).collect();
        gone.into_iter().for_each(|index| self.end(index));
        self.peers.tidy();
    }

    // Whether others are there for it, and its own is not any more.
    fn is_to_move(&self, flow: &Flow) -> bool {
        let Some(open) = self.listeners.get(&flow.listener) else { return false };
        let mut takers = open.spec.takers().peekable();
        takers.peek().is_some() && !takers.any(|taker| taker == flow.task())
    }

    // Of the port that has most clients, those go that were silent for longest: those who asked without an answer, or have
    // theirs, before others.
    fn make_room(&mut self) {
        let Some((most, _)) = self.listeners.iter().max_by_key(|(_, open)| open.flows) else { return };
        let of_it = self.flows.iter().filter(|(_, flow)| flow.listener == *most);
        let mut oldest: Vec<(bool, Instant, usize)> =
            of_it.map(|(index, flow)| (flow.talks, flow.last, *index)).collect();
        let count = (oldest.len() / GOES).max(1).min(oldest.len());
        if count < oldest.len() {
            oldest.select_nth_unstable(count);
        }
        oldest.into_iter().take(count).for_each(|(_, _, index)| self.end(index));
    }

    pub fn sweep(&mut self, now: Instant) {
        let full = (self.flows.len() * 4 / self.most).min(3);
        let takers: HashMap<usize, HashSet<TaskId>> =
            self.listeners.iter().map(|(index, open)| (*index, open.spec.takers().collect())).collect();
        let is_silent = |flow: &Flow| {
            let takes = takers.get(&flow.listener).is_some_and(|takers| takers.contains(&flow.task()));
            let own = self.listeners.get(&flow.listener).and_then(|open| open.spec.idle_timeout);
            let idle = own.map_or(IDLE[full], |own| if full == 0 { own.std() } else { own.std().min(IDLE[full]) });
            let idle = if takes && !self.leaving { idle } else { IDLE_IF_DRAINED.min(idle) };
            now.duration_since(flow.last) >= idle
        };
        let silent: Vec<usize> =
            self.flows.iter().filter(|(_, flow)| is_silent(flow)).map(|(index, _)| *index).collect();
        silent.into_iter().for_each(|index| self.end(index));
    }

    pub fn turn(&mut self, index: usize, now: Instant, buffer: &mut [u8]) {
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
        let mut any = false;
        for _ in 0..TURN {
            let Some(open) = self.listeners.get_mut(&listener) else { return false };
            match datagram::receive(&open.socket, buffer) {
                Ok(received) => {
                    any = true;
                    open.flowed.bytes_in += received.length as u64;
                    self.forward(listener, &received, now, &buffer[..received.length]);
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return false,
                // Word of a client that went away.
                Err(_) => {}
            }
        }
        any
    }

    fn forward(&mut self, listener: usize, received: &Received, now: Instant, data: &[u8]) {
        let known = self.by_client.get(&(listener, received.from, received.asked)).copied();
        if let Some(index) = known {
            let moves = self.flows.get(&index).is_some_and(|flow| self.is_to_move(flow) && flow.may_move(now));
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
            Err(error) if is_away(&error) => return Err(error),
            // Its buffer is full, say: lost, as on any way of a datagram.
            _ => {}
        }
        // What was not answered for so long was lost.
        if now.duration_since(flow.last) >= IDLE_IF_DRAINED {
            flow.owed = 0;
        }
        if flow.owed == 0 {
            flow.heard = now;
        }
        flow.last = now;
        flow.owed = flow.owed.saturating_add(1);
        flow.held.clear();
        if data.len() <= KEPT {
            flow.held.extend_from_slice(data);
        }
        Ok(())
    }

    // The replica's host says that nobody listens there: what it did not answer goes to another.
    fn elsewhere(&mut self, index: usize, now: Instant, data: Option<&[u8]>) {
        let Some(flow) = self.flows.get_mut(&index) else { return };
        let asks = flow.asks();
        let (held, mut tried) = (std::mem::take(&mut flow.held), std::mem::take(&mut flow.tried));
        tried.push(flow.task());
        flow.picked.peer().failed();
        self.end(index);
        let held = (!held.is_empty()).then_some(held);
        let mut first = true;
        for data in [held.as_deref(), data].into_iter().flatten() {
            match self.by_client.get(&asks).copied().filter(|_| !first) {
                Some(index) => drop(self.send(index, now, data)),
                None => self.begin(asks.0, (asks.1, asks.2), now, tried.clone(), data),
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
        // Whoever has the ports now serves them.
        if self.leaving {
            return;
        }
        if self.flows.len() >= self.most {
            self.make_room();
        }
        loop {
            let Some(open) = self.listeners.get_mut(&listener) else { return };
            let hash = match open.spec.balance {
                Balance::HashIp => text_hash(client.ip().to_canonical().to_string().as_bytes()),
                _ => 0,
            };
            let wish = Wish { hash, tried: &tried, ..Wish::default() };
            let Some(picked) = open.choice.choose(&open.spec.balance.into(), &wish) else {
                open.flowed.refused += 1;
                return;
            };
            let address = picked.peer().address.clone();
            let index = self.next;
            let socket = match self.connect(&address, index) {
                Ok(socket) => socket,
                // This host has no port, or no descriptor, for anybody.
                Err(None) => {
                    if let Some(open) = self.listeners.get_mut(&listener) {
                        open.flowed.refused += 1;
                    }
                    return;
                }
                Err(Some(_)) => {
                    picked.peer().failed();
                    tried.push(picked.peer().id);
                    continue;
                }
            };
            self.next += 1;
            let flow = Flow {
                listener,
                client,
                asked,
                socket,
                picked,
                tried,
                last: now,
                heard: now,
                owed: 0,
                talks: false,
                held: Vec::new(),
            };
            self.by_client.insert(flow.asks(), index);
            self.flows.insert(index, flow);
            if let Some(open) = self.listeners.get_mut(&listener) {
                open.flows += 1;
                open.flowed.connections += 1;
            }
            let _ = self.send(index, now, data);
            return;
        }
    }

    // An error of the replica's, or none: it is this host's.
    fn connect(&self, address: &str, index: usize) -> std::result::Result<UdpSocket, Option<io::Error>> {
        let address = address.trim_end_matches("/udp");
        let to: SocketAddr = address.parse().map_err(|error| Some(io::Error::other(error)))?;
        let from: SocketAddr = match to {
            SocketAddr::V4(_) => ([0, 0, 0, 0], 0).into(),
            SocketAddr::V6(_) => (Ipv6Addr::UNSPECIFIED, 0).into(),
        };
        let mut socket = UdpSocket::bind(from).map_err(|_| None)?;
        socket.connect(to).map_err(Some)?;
        self.registry.register(&mut socket, Token(index), Interest::READABLE).map_err(|_| None)?;
        Ok(socket)
    }

    // True if there may be more.
    fn hear_replica(&mut self, index: usize, now: Instant, buffer: &mut [u8]) -> bool {
        for _ in 0..TURN {
            let Some(flow) = self.flows.get_mut(&index) else { return false };
            match flow.socket.recv(buffer) {
                Ok(length) => {
                    (flow.last, flow.heard) = (now, now);
                    flow.talks |= flow.owed == 0;
                    flow.owed = flow.owed.saturating_sub(1);
                    flow.held.clear();
                    flow.tried.clear();
                    flow.picked.peer().succeeded();
                    if let Some(open) = self.listeners.get_mut(&flow.listener) {
                        open.flowed.bytes_out += length as u64;
                        // A client that takes nothing loses it.
                        let _ = datagram::send(&open.socket, flow.client, flow.asked, &buffer[..length]);
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return false,
                Err(error) if is_away(&error) => {
                    self.elsewhere(index, now, None);
                    return false;
                }
                Err(_) => {}
            }
        }
        true
    }
}
