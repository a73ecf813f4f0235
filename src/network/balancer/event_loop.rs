//! The balancer's loop: accepts, connects, moves bytes, obeys its control socket.

use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};
use std::io;
use std::os::fd::AsRawFd;
use std::time::{Duration, Instant};

use mio::net::{TcpListener, TcpStream, UnixListener};
use mio::{Events, Interest, Poll, Token};

use super::choose::Chooser;
use super::control::Control;
use super::http::Http;
use super::pair::{Outcome, Pair};
use super::sockets::{ask_often, is_unheard, prepare};
use super::udp::Udp;
use super::{Reply, Request, build, owner};
use crate::model::id::TaskId;
use crate::model::port::Protocol;
use crate::network::table::{Listener, Status, Table};

/// How long a backend has to accept a connection before another is tried.
const CONNECT: Duration = Duration::from_secs(3);
/// How often listeners that could not be opened, and an exhausted `accept`, are tried again.
const RETRY: Duration = Duration::from_millis(500);
/// How soon a listener that could not be opened is tried again at first: whoever hands a port over, is waited for.
const REOPEN: Duration = Duration::from_millis(20);
const BUFFER: usize = 64 * 1024;

// A token is an index with the kind of socket in its lowest bits.
const CLIENT: usize = 0;
const SERVER: usize = 1;
const LISTENER: usize = 2;
const CONTROL: usize = 3;
/// The control socket's.
pub const CONTROL_LISTENER: Token = Token(usize::MAX - 8);
/// Standard input's.
pub const LIFELINE: Token = Token(usize::MAX - 9);

struct Open {
    token: Token,
    socket: TcpListener,
    spec: Listener,
    chooser: Chooser,
    // accept() ran out of descriptors; no new event will come for what waits.
    starved: bool,
}

/// The balancer, while it runs.
pub struct Loop {
    poll: Poll,
    http: Http,
    /// The ports of UDP.
    pub udp: Udp,
    table: Table,
    listeners: BTreeMap<String, Open>,
    failed: BTreeMap<String, String>,
    // Since when one could not be opened, and when it is tried again.
    reopen: Option<(Instant, Instant)>,
    names: HashMap<Token, String>,
    next: usize,
    pairs: HashMap<usize, Pair>,
    controls: HashMap<usize, Control>,
    open: HashMap<TaskId, u32>,
    // Those of them that get no new ones, and whose connections are asked often whether anybody is there.
    doubted: HashSet<TaskId>,
    // Pairs whose backend has yet to answer, and until when; in the order of that moment, since all wait alike.
    connecting: VecDeque<(Instant, usize)>,
    busy: Vec<usize>,
    accepted: u64,
    refused: u64,
    leaving: bool,
    stopped: bool,
    buffer: Vec<u8>,
}

impl Loop {
    /// Nothing is listened for yet; `http` serves the ports where HTTP is spoken.
    pub fn new(poll: Poll, http: Http) -> Self {
        Loop {
            poll,
            http,
            udp: Udp::default(),
            table: Table::default(),
            listeners: BTreeMap::new(),
            failed: BTreeMap::new(),
            reopen: None,
            names: HashMap::new(),
            next: 0,
            pairs: HashMap::new(),
            controls: HashMap::new(),
            open: HashMap::new(),
            doubted: HashSet::new(),
            connecting: VecDeque::new(),
            busy: Vec::new(),
            accepted: 0,
            refused: 0,
            leaving: false,
            stopped: false,
            buffer: vec![0; BUFFER],
        }
    }

    /// Takes a socket of the balancer before this one. Until the first table says who is behind it, connections wait in the kernel's
    /// queue.
    pub fn inherit(&mut self, name: String, socket: std::net::TcpListener) -> io::Result<()> {
        let Some(socket) = self.http.inherit(&name, socket) else { return Ok(()) };
        let port = socket.local_addr()?.port();
        let balance = crate::model::port::Balance::default();
        let spec = Listener { address: None, port, protocol: Protocol::Tcp, balance, backends: Vec::new() };
        self.add_listener(name, TcpListener::from_std(socket), spec)
    }

    /// Goes on until it is told to stop, or has handed over and served its last connection.
    pub fn run(&mut self, control: &UnixListener) -> io::Result<()> {
        let mut events = Events::with_capacity(1024);
        let mut retry_at = Instant::now() + RETRY;
        while !self.stopped && (!self.leaving || !self.pairs.is_empty() || !self.http.is_idle() || !self.udp.is_idle())
        {
            let waiting = self.has_failed()
                || self.leaving
                || !self.connecting.is_empty()
                || !self.doubted.is_empty()
                || self.listeners.values().any(|listener| listener.starved);
            let timeout = match (self.busy.is_empty(), waiting) {
                (false, _) => Some(Duration::ZERO),
                (true, true) => {
                    let next = self.reopen.map_or(retry_at, |(_, at)| at.min(retry_at));
                    Some(next.saturating_duration_since(Instant::now()))
                }
                (true, false) => None,
            };
            match self.poll.poll(&mut events, timeout) {
                Err(error) if error.kind() != io::ErrorKind::Interrupted => return Err(error),
                _ => {}
            }
            for event in &events {
                match event.token() {
                    CONTROL_LISTENER => self.accept_controls(control),
                    LIFELINE => self.stopped = true,
                    token => self.event(token, event),
                }
            }
            for index in std::mem::take(&mut self.busy) {
                self.pump(index);
            }
            self.reopen();
            if waiting && Instant::now() >= retry_at {
                retry_at = Instant::now() + RETRY;
                self.retry();
            }
        }
        Ok(())
    }

    fn event(&mut self, token: Token, event: &mio::event::Event) {
        let index = token.0 >> 2;
        match token.0 & 3 {
            LISTENER => self.accept(token),
            CONTROL => self.control(index, event.is_writable()),
            side => {
                let Some(pair) = self.pairs.get_mut(&index) else { return };
                if side == SERVER && pair.connecting.is_some() {
                    if event.is_error() || matches!(pair.server.take_error(), Ok(Some(_)) | Err(_)) {
                        self.try_another(index);
                        return;
                    }
                    if !event.is_writable() || pair.server.peer_addr().is_err() {
                        return;
                    }
                    pair.connecting = None;
                    // What the client sent meanwhile was announced before; it is read now.
                    pair.mark_readable(false, false);
                }
                if event.is_readable() || event.is_read_closed() || event.is_error() {
                    pair.mark_readable(side == SERVER, event.is_read_closed() || event.is_error());
                }
                self.pump(index);
            }
        }
    }

    fn pump(&mut self, index: usize) {
        let Some(pair) = self.pairs.get_mut(&index) else { return };
        match pair.pump(&mut self.buffer) {
            Outcome::Open => {}
            Outcome::Busy => self.busy.push(index),
            Outcome::Done => self.close(index),
        }
    }

    fn close(&mut self, index: usize) {
        if let Some(pair) = self.pairs.remove(&index) {
            self.count_down(&pair.task);
        }
    }

    fn count_down(&mut self, task: &TaskId) {
        if let Some(count) = self.open.get_mut(task) {
            *count -= 1;
            if *count == 0 {
                self.open.remove(task);
            }
        }
    }

    fn accept(&mut self, token: Token) {
        let Some(name) = self.names.get(&token).cloned() else { return };
        loop {
            let Some(listener) = self.listeners.get_mut(&name) else { return };
            listener.starved = false;
            // Taken over, and the table not known yet: the kernel's queue holds them.
            if self.table.version == 0 {
                listener.starved = true;
                return;
            }
            match listener.socket.accept() {
                Ok((client, _)) => {
                    self.accepted += 1;
                    prepare(&client);
                    self.connect(&name, client, Vec::new());
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                Err(error) if matches!(error.kind(), io::ErrorKind::Interrupted | io::ErrorKind::ConnectionAborted) => {
                }
                Err(_) => {
                    listener.starved = true;
                    return;
                }
            }
        }
    }

    // Pairs a client with a backend; without one its connection is closed, which counts as refused.
    fn connect(&mut self, name: &str, mut client: TcpStream, mut tried: Vec<TaskId>) {
        let index = self.next;
        self.next += 1;
        loop {
            let Some(listener) = self.listeners.get_mut(name) else { return };
            let spec = &listener.spec;
            let Some(chosen) = listener.chooser.choose(spec.balance, &spec.backends, &tried, &self.open) else {
                self.refused += 1;
                return;
            };
            let backend = &spec.backends[chosen];
            let task = backend.id;
            let server = backend.address.parse().map_err(io::Error::other).and_then(TcpStream::connect);
            let Ok(mut server) = server else {
                tried.push(task);
                continue;
            };
            prepare(&server);
            let both = Interest::READABLE | Interest::WRITABLE;
            let registered = self
                .poll
                .registry()
                .register(&mut client, Token(index << 2 | CLIENT), both)
                .and_then(|()| self.poll.registry().register(&mut server, Token(index << 2 | SERVER), both));
            if registered.is_err() {
                self.refused += 1;
                return;
            }
            *self.open.entry(task).or_default() += 1;
            let until = Instant::now() + CONNECT;
            self.connecting.push_back((until, index));
            let pair = Pair::new(client, server, name.to_owned(), task, tried, until);
            self.pairs.insert(index, pair);
            return;
        }
    }

    // The backend did not take it. Nothing was read from the client yet, so another can serve it whole.
    fn try_another(&mut self, index: usize) {
        let Some(pair) = self.pairs.remove(&index) else { return };
        self.count_down(&pair.task);
        let name = pair.listener.clone();
        let (mut client, tried) = pair.into_client();
        if self.poll.registry().deregister(&mut client).is_ok() {
            self.connect(&name, client, tried);
        }
    }

    fn retry(&mut self) {
        let now = Instant::now();
        while let Some((until, index)) = self.connecting.front().copied() {
            let open = self.pairs.get(&index).is_some_and(|pair| pair.connecting.is_some());
            if open && until > now {
                break;
            }
            self.connecting.pop_front();
            if open {
                self.try_another(index);
            }
        }
        if !self.doubted.is_empty() {
            let doubted = self.pairs.iter().filter(|(_, pair)| self.doubted.contains(&pair.task));
            let lost: Vec<usize> =
                doubted.filter(|(_, pair)| is_unheard(&pair.server)).map(|(index, _)| *index).collect();
            for index in lost {
                self.close(index);
            }
        }
        let starved: Vec<Token> =
            self.listeners.values().filter(|listener| listener.starved).map(|listener| listener.token).collect();
        for token in starved {
            self.accept(token);
        }
    }

    fn has_failed(&self) -> bool {
        !self.failed.is_empty() || self.http.has_failed() || self.udp.has_failed()
    }

    // Soon at first, then more and more seldom: after a minute as seldom as everything else.
    fn reopen(&mut self) {
        let now = Instant::now();
        if !self.has_failed() {
            self.reopen = None;
            return;
        }
        let (since, at) = *self.reopen.get_or_insert((now, now + REOPEN));
        if now < at {
            return;
        }
        let wait = ((now - since) / 100).clamp(REOPEN, RETRY);
        self.reopen = Some((since, now + wait));
        self.http.reopen(&self.table);
        self.udp.reopen(&self.table);
        for name in self.failed.keys().cloned().collect::<Vec<_>>() {
            let Some(wanted) = self.table.listeners.get(&name).cloned() else { continue };
            let Ok(socket) = owner::try_listen(wanted.address, wanted.port) else { continue };
            if self.add_listener(name.clone(), socket, wanted).is_ok() {
                self.failed.remove(&name);
                if let Some(token) = self.listeners.get(&name).map(|open| open.token) {
                    self.accept(token);
                }
            }
        }
    }

    fn add_listener(&mut self, name: String, mut socket: TcpListener, spec: Listener) -> io::Result<()> {
        let token = Token(self.next << 2 | LISTENER);
        self.next += 1;
        self.poll.registry().register(&mut socket, token, Interest::READABLE)?;
        self.names.insert(token, name.clone());
        self.listeners.insert(name, Open { token, socket, spec, chooser: Chooser::default(), starved: false });
        Ok(())
    }

    fn apply(&mut self, table: Table) {
        self.http.close(&table);
        let failed = std::mem::take(&mut self.failed);
        // As the socket says: a table that was inherited does not.
        let same = |open: &Open, wanted: &Listener| {
            let is_tcp = wanted.protocol == Protocol::Tcp;
            is_tcp
                && open.socket.local_addr().is_ok_and(|local| {
                    let address = wanted.address.map_or(local.ip().is_unspecified(), |address| address == local.ip());
                    address && local.port() == wanted.port
                })
        };
        let gone: Vec<String> = self
            .listeners
            .iter()
            .filter(|(name, open)| table.listeners.get(*name).is_none_or(|wanted| !same(open, wanted)))
            .map(|(name, _)| name.clone())
            .collect();
        for name in gone {
            if let Some(mut open) = self.listeners.remove(&name) {
                let _ = self.poll.registry().deregister(&mut open.socket);
                self.names.remove(&open.token);
            }
        }
        let tcp = table.listeners.iter().filter(|(_, wanted)| wanted.protocol == Protocol::Tcp);
        for (name, wanted) in tcp {
            if let Some(open) = self.listeners.get_mut(name) {
                open.chooser.retain(&wanted.backends);
                open.spec = wanted.clone();
                continue;
            }
            // Who is in the way was found once: looking for them takes a while, and traffic waits for it.
            let before = self.table.listeners.get(name);
            let is_same = before.is_some_and(|old| (old.address, old.port) == (wanted.address, wanted.port));
            let opened = match failed.get(name).filter(|_| is_same) {
                Some(why) => owner::try_listen(wanted.address, wanted.port).map_err(|_| why.clone()),
                None => owner::listen(wanted.address, wanted.port),
            };
            let added = opened.and_then(|socket| {
                self.add_listener(name.clone(), socket, wanted.clone()).map_err(|error| error.to_string())
            });
            if let Err(why) = added {
                self.failed.insert(name.clone(), why);
            }
        }
        self.http.apply(&table);
        self.udp.apply(&table);
        self.table = table;
        self.doubt();
        // Connections that waited for the first table, or came before their listener was registered.
        let tokens: Vec<Token> = self.listeners.values().map(|listener| listener.token).collect();
        for token in tokens {
            self.accept(token);
        }
    }

    // Who gets nothing new may be on a host that is lost: a connection there would hang until the kernel gives up, a
    // quarter of an hour later. One that is only being drained answers, and loses nothing.
    fn doubt(&mut self) {
        let takes: HashSet<TaskId> = self.table.listeners.values().flat_map(Listener::takers).collect();
        // Of one that takes connections again nothing more is asked than of any other.
        for pair in self.pairs.values().filter(|pair| takes.contains(&pair.task) && self.doubted.contains(&pair.task)) {
            prepare(&pair.server);
        }
        self.doubted.retain(|task| self.open.contains_key(task) && !takes.contains(task));
        let new = self.open.keys().filter(|task| !takes.contains(task) && !self.doubted.contains(task));
        let new: HashSet<TaskId> = new.copied().collect();
        if new.is_empty() {
            return;
        }
        for pair in self.pairs.values().filter(|pair| new.contains(&pair.task)) {
            ask_often(&pair.server);
        }
        // Whoever has not got through yet goes to another at once.
        let waiting = self.pairs.iter().filter(|(_, pair)| pair.connecting.is_some() && new.contains(&pair.task));
        let waiting: Vec<usize> = waiting.map(|(index, _)| *index).collect();
        self.doubted.extend(new);
        for index in waiting {
            self.try_another(index);
        }
    }

    fn accept_controls(&mut self, listener: &UnixListener) {
        while let Ok((mut stream, _)) = listener.accept() {
            let index = self.next;
            self.next += 1;
            let both = Interest::READABLE | Interest::WRITABLE;
            if self.poll.registry().register(&mut stream, Token(index << 2 | CONTROL), both).is_ok() {
                self.controls.insert(index, Control::new(stream));
            }
        }
    }

    fn control(&mut self, index: usize, writable: bool) {
        let Some(mut control) = self.controls.remove(&index) else { return };
        if writable && control.flush().is_err() {
            return;
        }
        let Ok(requests) = control.read(&mut self.buffer) else { return };
        for request in requests {
            let handover = matches!(request, Request::Handover);
            match request {
                // A table that a slow path brings late must not undo a newer one.
                Request::Table(table) if table.version >= self.table.version && !self.leaving => self.apply(table),
                // Requests still come over connections that were kept.
                Request::Table(table) if self.leaving => {
                    self.http.follow(&table);
                    self.udp.follow(&table);
                }
                Request::Stop => self.stopped = true,
                _ => {}
            }
            let (mut sockets, mut descriptors) = (Vec::new(), Vec::new());
            if handover {
                let own = self.listeners.iter().map(|(name, open)| (name.clone(), open.socket.as_raw_fd()));
                (sockets, descriptors) = own.chain(self.http.sockets()).chain(self.udp.sockets()).unzip();
            }
            if control.reply(&Reply { build: build(), status: self.status(), sockets }).is_err() {
                return;
            }
            if handover {
                if control.send_sockets(&descriptors).is_err() {
                    return;
                }
                self.leaving = true;
                self.failed.clear();
                self.http.leave();
                self.udp.leave();
                for (_, mut open) in std::mem::take(&mut self.listeners) {
                    let _ = self.poll.registry().deregister(&mut open.socket);
                }
            }
        }
        self.controls.insert(index, control);
    }

    fn status(&self) -> Status {
        let mut status = Status {
            version: self.table.version,
            pid: std::process::id(),
            connections: self.open.iter().map(|(task, count)| (*task, *count)).collect(),
            failed: self.failed.clone(),
            accepted: self.accepted,
            refused: self.refused,
            ..Status::default()
        };
        self.http.tell_status(&mut status);
        self.udp.tell_status(&mut status);
        status
    }
}
