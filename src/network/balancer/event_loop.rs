//! The balancer's loop: waits for events, and obeys its control socket.

use std::collections::{HashMap, HashSet};
use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use mio::net::UnixListener;
use mio::{Events, Interest, Poll, Token};

use super::control::Control;
use super::hook::Hooks;
use super::http::Http;
use super::locals::Locals;
use super::tcp::Tcp;
use super::udp::Udp;
use super::{Reply, Request, build};
use crate::network::table::{Status, Table};

/// How often listeners that could not be opened, and whatever no event tells of, are looked at.
const RETRY: Duration = Duration::from_millis(500);

// A token is an index with the kind of socket in its lowest bits; the other kinds are those of `tcp`.
const CONTROL: usize = 3;
/// The control socket's.
pub const CONTROL_LISTENER: Token = Token(usize::MAX - 8);
/// Standard input's.
pub const LIFELINE: Token = Token(usize::MAX - 9);

/// The balancer, while it runs.
pub struct Loop {
    poll: Poll,
    tcp: Tcp,
    locals: Locals,
    http: Http,
    /// The ports of UDP.
    pub udp: Udp,
    table: Table,
    next: usize,
    controls: HashMap<usize, Control>,
    leaving: bool,
    stopped: bool,
    buffer: Vec<u8>,
}

impl Loop {
    /// Nothing is listened for yet. `name` is its own and of those after it; HTTP is served by so many threads; `seed` tells hosts apart; `hooks` loads scripts of routes.
    pub fn new(poll: Poll, name: &str, threads: usize, seed: u64, hooks: Arc<dyn Hooks>) -> io::Result<Self> {
        let tcp = Tcp::new(poll.registry().try_clone()?, seed);
        Ok(Loop {
            poll,
            tcp,
            locals: Locals::new(name),
            http: Http::new(threads, seed, hooks),
            udp: Udp::new(seed),
            table: Table::default(),
            next: 0,
            controls: HashMap::new(),
            leaving: false,
            stopped: false,
            buffer: vec![0; 64 * 1024],
        })
    }

    /// Takes a socket of the balancer before this one.
    pub fn inherit(&mut self, name: String, socket: std::net::TcpListener) -> io::Result<()> {
        let Some(socket) = self.http.inherit(&name, socket) else { return Ok(()) };
        self.tcp.inherit(name, socket)
    }

    /// Goes on until it is told to stop, or has handed over and served its last connection.
    pub fn run(&mut self, control: &UnixListener) -> io::Result<()> {
        let mut events = Events::with_capacity(1024);
        let mut retry_at = Instant::now() + RETRY;
        while !self.stopped && (!self.leaving || !self.tcp.is_idle() || !self.http.is_idle() || !self.udp.is_idle()) {
            let has_failed = self.has_failed();
            let reopen_at = self.tcp.reopen_at(has_failed, RETRY);
            let waiting = has_failed || self.leaving || self.tcp.waits() || self.locals.is_waiting();
            let timeout = match (self.tcp.is_busy(), waiting) {
                (true, _) => Some(Duration::ZERO),
                (false, true) => {
                    let next = reopen_at.map_or(retry_at, |at| at.min(retry_at));
                    Some(next.saturating_duration_since(Instant::now()))
                }
                (false, false) => None,
            };
            match self.poll.poll(&mut events, timeout) {
                Err(error) if error.kind() != io::ErrorKind::Interrupted => return Err(error),
                _ => {}
            }
            let now = Instant::now();
            self.tcp.begin(now);
            for event in &events {
                match event.token() {
                    CONTROL_LISTENER => self.accept_controls(control),
                    LIFELINE => self.stop(),
                    token if token.0 & 3 == CONTROL => self.control(token.0 >> 2, event.is_writable()),
                    token => self.tcp.event(token, event),
                }
            }
            self.tcp.go_on();
            if reopen_at.is_some_and(|at| now >= at) {
                self.locals.forget();
                self.locals.follow(&self.table, || self.tcp.locals());
                self.http.reopen(&self.table);
                self.udp.reopen(&self.table);
                self.tcp.reopen(&self.table);
            }
            if waiting && now >= retry_at {
                retry_at = now + RETRY;
                self.tcp.look();
                if self.locals.is_waiting() && !self.leaving {
                    self.locals.follow(&self.table, || self.tcp.locals());
                }
            }
        }
        Ok(())
    }

    // Whoever has the ports now has the addresses as well.
    fn stop(&mut self) {
        self.stopped = true;
        if !self.leaving {
            self.locals.follow(&Table::default(), HashSet::new);
        }
    }

    fn has_failed(&self) -> bool {
        self.tcp.has_failed() || self.http.has_failed() || self.udp.has_failed()
    }

    fn apply(&mut self, table: Table) {
        self.locals.follow(&table, || self.tcp.locals());
        self.http.close(&table);
        self.tcp.apply(&table, &self.table);
        self.http.apply(&table);
        self.udp.apply(&table);
        self.table = table;
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
                    self.tcp.follow(&table);
                    self.http.follow(&table);
                    self.udp.follow(&table);
                }
                Request::Stop => self.stop(),
                _ => {}
            }
            let (mut sockets, mut descriptors) = (Vec::new(), Vec::new());
            if handover {
                let all = self.tcp.sockets().chain(self.http.sockets()).chain(self.udp.sockets());
                (sockets, descriptors) = all.unzip();
            }
            if control.reply(&Reply { build: build(), status: self.status(), sockets }).is_err() {
                return;
            }
            if handover {
                if control.send_sockets(&descriptors).is_err() {
                    return;
                }
                self.leaving = true;
                self.tcp.leave();
                self.http.leave();
                self.udp.leave();
            }
        }
        self.controls.insert(index, control);
    }

    fn status(&self) -> Status {
        let mut status = Status { version: self.table.version, pid: std::process::id(), ..Status::default() };
        self.tcp.tell_status(&mut status);
        self.http.tell_status(&mut status);
        self.udp.tell_status(&mut status);
        status
    }
}
