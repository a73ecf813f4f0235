//! Clients of TCP ports and their backends: accepted, paired, carried, ended.

use std::io;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use mio::event::Event;
use mio::net::TcpStream;
use mio::{Interest, Token};

use super::caller::{Caller, Greeted, Greeting, Line};
use super::pair::{Outcome, Pair};
use super::{CLIENT, LISTENER, SERVER, Tcp};
use crate::model::id::TaskId;
use crate::model::port::Balance;
use crate::network::balancer::pick::{Wish, text_hash};
use crate::network::balancer::proxy;
use crate::network::balancer::sockets::{is_own, is_unheard, prepare};

/// How long a backend has to accept a connection before another is tried.
const CONNECT: Duration = Duration::from_secs(3);
/// How long a proxy in front has to say whose a connection is.
const GREETING: Duration = Duration::from_secs(10);
const BOTH: Interest = Interest::READABLE.add(Interest::WRITABLE);

impl Tcp {
    /// A socket of one of the kinds here has something to tell.
    pub fn event(&mut self, token: Token, event: &Event) {
        let index = token.0 >> 2;
        let is_last = event.is_read_closed() || event.is_error();
        if token.0 & 3 == LISTENER {
            return self.accept(token);
        }
        let side = token.0 & 3;
        let Some(pair) = self.pairs.get_mut(&index) else {
            return if event.is_readable() || is_last {
                self.greet(index, is_last)
            };
        };
        if side == SERVER && pair.connecting.is_some() {
            if event.is_error() || matches!(pair.server.take_error(), Ok(Some(_)) | Err(_)) {
                return self.try_another(index, true);
            }
            if !event.is_writable() || pair.server.peer_addr().is_err() {
                return;
            }
            pair.connecting = None;
            pair.moved_at = self.now;
            pair.picked.peer().succeeded();
            // What the client sent meanwhile was announced before; it is read now.
            pair.mark_readable(false, false);
        }
        if event.is_readable() || is_last {
            pair.mark_readable(side == SERVER, is_last);
        }
        self.pump(index);
    }

    /// When this is done next without an event: at once, where there is more to read.
    pub fn is_busy(&self) -> bool {
        !self.busy.is_empty()
    }

    /// Whether `look` has something to look at.
    pub fn waits(&self) -> bool {
        !self.connecting.is_empty()
            || !self.doubted.is_empty()
            || !self.greetings.is_empty()
            || self.listeners.values().any(|open| open.starved)
            || (self.has_idle && !self.pairs.is_empty())
    }

    /// A turn begins.
    pub fn begin(&mut self, now: Instant) {
        self.now = now;
    }

    /// Goes on with those that have more to read.
    pub fn go_on(&mut self) {
        for index in std::mem::take(&mut self.busy) {
            if let Some(pair) = self.pairs.get_mut(&index) {
                pair.is_queued = false;
            }
            self.pump(index);
        }
    }

    fn pump(&mut self, index: usize) {
        let Some(pair) = self.pairs.get_mut(&index) else { return };
        let outcome = pair.pump(&mut self.buffer);
        let [up, down] = pair.moved();
        if pair.stirs() {
            pair.moved_at = self.now;
        }
        if up | down != 0 {
            pair.caller.port.note(|flowed| {
                flowed.bytes_in += up;
                flowed.bytes_out += down;
            });
            if let Some(line) = &mut pair.caller.line {
                line.bytes[0] += up;
                line.bytes[1] += down;
            }
        }
        match outcome {
            Outcome::Open => {}
            Outcome::Busy if pair.is_queued => {}
            Outcome::Busy => {
                pair.is_queued = true;
                self.busy.push(index);
            }
            Outcome::Done => self.close(index),
        }
    }

    fn close(&mut self, index: usize) {
        let Some(pair) = self.pairs.remove(&index) else { return };
        let port = pair.caller.port.clone();
        drop(pair);
        self.make_use(&port.name);
    }

    // Somebody is gone: whoever waited for a place has one.
    fn make_use(&mut self, name: &str) {
        let Some(open) = self.listeners.get(name).filter(|open| open.full) else { return };
        self.accept(open.token);
    }

    pub(super) fn accept(&mut self, token: Token) {
        let Some(name) = self.names.get(&token).cloned() else { return };
        loop {
            let is_room = self.pairs.len() + self.greetings.len() < self.most;
            let Some(open) = self.listeners.get_mut(&name) else { return };
            // Without a descriptor for the other side it would be refused: in the kernel's queue it waits.
            (open.starved, open.full) = (!is_room, !is_room);
            if !is_room {
                return;
            }
            // Taken over, and the table not known yet: the kernel's queue holds them.
            if !self.is_known {
                open.starved = true;
                return;
            }
            if open.is_full() {
                open.full = true;
                return;
            }
            let Some(socket) = &open.socket else { return };
            match socket.accept() {
                Ok((client, from)) => {
                    prepare(&client);
                    let line = open.spec.access_log.map(|to| {
                        let lines = self.lines.clone();
                        Box::new(Line { lines, to, began: Instant::now(), task: None, bytes: [0; 2] })
                    });
                    let caller = Caller::new(client, from, &open.port, line);
                    match open.spec.accept_proxy {
                        true => self.await_greeting(caller),
                        false => self.connect(&name, caller),
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                Err(error) if matches!(error.kind(), io::ErrorKind::Interrupted | io::ErrorKind::ConnectionAborted) => {
                }
                Err(_) => {
                    open.starved = true;
                    return;
                }
            }
        }
    }

    fn await_greeting(&mut self, mut caller: Caller) {
        let index = self.next;
        self.next += 1;
        if self.registry.register(&mut caller.socket, Token(index << 2 | CLIENT), BOTH).is_err() {
            return caller.refuse();
        }
        self.greetings.insert(index, Greeting { caller, until: self.now + GREETING });
    }

    fn greet(&mut self, index: usize, is_last: bool) {
        let Some(greeting) = self.greetings.get_mut(&index) else { return };
        match greeting.look(is_last) {
            Greeted::Waits => {}
            Greeted::Wrong => self.dismiss(index),
            Greeted::Whole => {
                let Some(Greeting { mut caller, .. }) = self.greetings.remove(&index) else { return };
                let name = caller.port.name.clone();
                match self.registry.deregister(&mut caller.socket) {
                    Ok(()) => self.connect(&name, caller),
                    Err(_) => caller.refuse(),
                }
                self.make_use(&name);
            }
        }
    }

    // It did not say whose it is.
    fn dismiss(&mut self, index: usize) {
        if let Some(Greeting { caller, .. }) = self.greetings.remove(&index) {
            let port = caller.port.clone();
            port.note(|flowed| flowed.malformed += 1);
            drop(caller);
            self.make_use(&port.name);
        }
    }

    // Pairs a client with a backend; without one its connection is closed, which counts as refused.
    fn connect(&mut self, name: &str, mut caller: Caller) {
        let index = self.next;
        self.next += 1;
        loop {
            let Some(open) = self.listeners.get_mut(name) else { return caller.refuse() };
            let hash = match open.spec.balance {
                Balance::HashIp => text_hash(caller.from.ip().to_string().as_bytes()),
                _ => 0,
            };
            let wish = Wish { hash, tried: &caller.tried, ..Wish::default() };
            let Some(picked) = open.choice.choose(&open.spec.balance.into(), &wish) else { return caller.refuse() };
            let peer = picked.peer();
            let server = peer.address.parse::<SocketAddr>().map_err(io::Error::other).and_then(TcpStream::connect);
            let mut server = match server {
                Ok(server) => server,
                // No port is left towards that one address; there may be some towards others.
                Err(error) if error.kind() == io::ErrorKind::AddrNotAvailable => {
                    caller.tried.push(peer.id);
                    continue;
                }
                Err(error) if is_own(&error) => return caller.refuse(),
                Err(_) => {
                    peer.failed();
                    caller.port.note(|flowed| flowed.retries += 1);
                    caller.tried.push(peer.id);
                    continue;
                }
            };
            prepare(&server);
            let mut first = Vec::new();
            if let Some(version) = open.spec.send_proxy
                && let Some(to) = caller.to.or_else(|| caller.socket.local_addr().ok())
            {
                proxy::write(&mut first, version, caller.from, SocketAddr::new(to.ip().to_canonical(), to.port()));
            }
            let registered = self
                .registry
                .register(&mut caller.socket, Token(index << 2 | CLIENT), BOTH)
                .and_then(|()| self.registry.register(&mut server, Token(index << 2 | SERVER), BOTH));
            if registered.is_err() {
                return caller.refuse();
            }
            if let Some(line) = &mut caller.line {
                line.task = Some(peer.id);
            }
            let until = self.now + CONNECT;
            self.connecting.push_back((until, index));
            self.pairs.insert(index, Pair::new(caller, server, picked, until, first));
            return;
        }
    }

    // The backend did not take it. Nothing was read from the client yet, so another can serve it whole.
    pub(super) fn try_another(&mut self, index: usize, is_at_fault: bool) {
        let Some(pair) = self.pairs.remove(&index) else { return };
        if is_at_fault {
            pair.picked.peer().failed();
        }
        let mut caller = pair.into_caller();
        caller.port.note(|flowed| flowed.retries += 1);
        if let Some(line) = &mut caller.line {
            line.task = None;
        }
        let name = caller.port.name.clone();
        match self.registry.deregister(&mut caller.socket) {
            Ok(()) => self.connect(&name, caller),
            Err(_) => caller.refuse(),
        }
        self.make_use(&name);
    }

    /// Looks after what no event tells of: backends that do not answer, hosts that are lost, clients that are silent.
    pub fn look(&mut self) {
        let now = Instant::now();
        while let Some((until, index)) = self.connecting.front().copied() {
            let open = self.pairs.get(&index).is_some_and(|pair| pair.connecting.is_some());
            if open && until > now {
                break;
            }
            self.connecting.pop_front();
            if open {
                self.try_another(index, true);
            }
        }
        let late = self.greetings.iter().filter(|(_, greeting)| greeting.until <= now);
        let late: Vec<usize> = late.map(|(index, _)| *index).collect();
        late.into_iter().for_each(|index| self.dismiss(index));
        if !self.doubted.is_empty() {
            let is_doubted = |task: TaskId| self.doubted.contains(&task);
            let doubted = self.pairs.iter().filter(|(_, pair)| is_doubted(pair.task()));
            let lost: Vec<usize> =
                doubted.filter(|(_, pair)| is_unheard(&pair.server)).map(|(index, _)| *index).collect();
            lost.into_iter().for_each(|index| self.close(index));
        }
        let is_idle = |pair: &Pair| {
            let silent = now.saturating_duration_since(pair.moved_at);
            pair.connecting.is_none() && pair.caller.port.idle.get().is_some_and(|patience| silent >= patience)
        };
        let pairs = self.pairs.iter().filter(|_| self.has_idle);
        let idle: Vec<usize> = pairs.filter(|(_, pair)| is_idle(pair)).map(|(index, _)| *index).collect();
        idle.into_iter().for_each(|index| self.close(index));
        let starved = self.listeners.values().filter(|open| open.starved);
        let starved: Vec<Token> = starved.map(|open| open.token).collect();
        starved.into_iter().for_each(|token| self.accept(token));
    }
}
