//! Ports where HTTP is spoken: threads of their own beside the loop, which tells them what to do.
//!
//! A request's head is read (`head`), its route found (`routes`), a replica chosen (`super::pick`), a connection to it taken (`pool`), the head
//! sent on (`rewrite`) and bodies carried in both directions (`carry`), by a task of the client's connection (`h1`). Nothing is
//! started for a request of HTTP/1.1, and no timer is set (`watch`); one of HTTP/2 (`h2`) has a session of its own (`pipe`), or goes on as a
//! stream (`h2c`) on a connection with others (`streams`).

mod access;
mod carry;
mod chunks;
mod exchange;
mod h1;
mod h2;
mod h2c;
mod head;
mod one;
mod own;
mod pipe;
mod pool;
mod rewrite;
mod routes;
mod streams;
mod tally;
mod through;
mod tls;
mod watch;
mod worker;

pub use routes::{Routing, Way, plain_host};
pub use tls::certified;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::io;
use std::net::TcpListener;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use tokio::sync::mpsc;

use self::worker::{Command, Shared};
use super::hook::Hooks;
use super::owner::{self, Sharing};
use crate::network::table::{Certificate, Flowed, Front, Status, Table};

/// What tells a front's socket from a port's in a handover.
const PREFIX: &str = "front/";

/// How long threads have to close a socket.
const CLOSE: Duration = Duration::from_millis(500);

/// The threads, and what they listen on.
pub struct Http {
    hooks: Arc<dyn Hooks>,
    shared: Arc<Shared>,
    threads: usize,
    senders: Vec<mpsc::UnboundedSender<Command>>,
    sockets: BTreeMap<String, TcpListener>,
    // Taken over, and not known yet whether they are wanted.
    inherited: BTreeMap<String, TcpListener>,
    failed: BTreeMap<String, String>,
    certificates: HashMap<String, Vec<Certificate>>,
}

impl Http {
    /// So many threads; they are started when there is something to do. `seed` tells hosts apart.
    pub fn new(threads: usize, seed: u64, hooks: Arc<dyn Hooks>) -> Self {
        Http {
            hooks,
            shared: Shared::new(seed),
            threads: threads.max(1),
            senders: Vec::new(),
            sockets: BTreeMap::new(),
            inherited: BTreeMap::new(),
            failed: BTreeMap::new(),
            certificates: HashMap::new(),
        }
    }

    /// Takes a socket of the balancer before this one; gives it back if it is none of a front.
    pub fn inherit(&mut self, name: &str, socket: TcpListener) -> Option<TcpListener> {
        let Some(front) = name.strip_prefix(PREFIX) else { return Some(socket) };
        self.inherited.insert(front.to_owned(), socket);
        None
    }

    /// Closes what a table does not have any more: its ports may be had by others from now on.
    pub fn close(&mut self, table: &Table) {
        for (name, socket) in &self.sockets {
            if let Some(front) = table.fronts.get(name) {
                owner::share(socket, Sharing::of(table, false, front.port));
            }
        }
        let is_gone = |name: &&String| !table.fronts.contains_key(*name);
        let gone: Vec<String> = self.sockets.keys().filter(is_gone).cloned().collect();
        for name in gone {
            self.sockets.remove(&name);
            self.tell_close(&name);
        }
        let until = Instant::now() + CLOSE;
        while self.shared.closing.load(Ordering::SeqCst) > 0 && Instant::now() < until {
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    /// Follows a table's routes, and nothing else of it: what is left to a balancer whose sockets another has.
    pub fn follow(&mut self, table: &Table) {
        self.shared.routing().take(table);
    }

    /// Takes over a table: the next request follows it.
    pub fn apply(&mut self, table: &Table) {
        self.failed.clear();
        // Before the routes: what is to be told by TLS is told in no other way for a moment either.
        self.certificates.retain(|name, _| table.fronts.get(name).is_some_and(|front| front.tls));
        self.shared.tls().retain(|name, _| table.fronts.get(name).is_some_and(|front| front.tls));
        for (name, front) in table.fronts.iter().filter(|(_, front)| front.tls) {
            self.certify(name, front);
        }
        self.shared.routing().take(table);
        let proxied = table.fronts.iter().filter(|(_, front)| front.proxy).map(|(name, _)| name.clone());
        *self.shared.proxied() = proxied.collect();
        for (name, front) in &table.fronts {
            if !self.sockets.contains_key(name) {
                self.open(name, front, table);
            }
        }
        self.inherited.clear();
    }

    // Shows a front's certificates; those for hosts that have none now are the ones of before.
    fn certify(&mut self, name: &str, front: &Front) {
        let mut wanted = front.certificates.clone();
        let before = self.certificates.get(name);
        let has = |wanted: &[Certificate], host: &String| wanted.iter().any(|known| known.hosts.contains(host));
        for known in before.into_iter().flatten() {
            let hosts: BTreeSet<String> = known
                .hosts
                .iter()
                .filter(|host| front.unread.contains(*host) && !has(&wanted, host))
                .cloned()
                .collect();
            if !hosts.is_empty() {
                wanted.push(Certificate { hosts, ..known.clone() });
            }
        }
        if before == Some(&wanted) {
            return;
        }
        let config = tls::config(&wanted);
        if let Err(why) = &config {
            self.failed.insert(name.to_owned(), why.clone());
        }
        let mut all = self.shared.tls();
        let known = all.entry(name.to_owned()).or_default();
        if let Ok(config) = config {
            *known = config;
            drop(all);
            self.certificates.insert(name.to_owned(), wanted);
        }
    }

    /// Tries again what could not be opened.
    pub fn reopen(&mut self, table: &Table) {
        for name in self.failed.keys().cloned().collect::<Vec<_>>() {
            if let Some(front) = table.fronts.get(&name).filter(|_| !self.sockets.contains_key(&name)) {
                self.open(&name, front, table);
            }
        }
    }

    /// Whether something could not be opened.
    pub fn has_failed(&self) -> bool {
        !self.failed.is_empty()
    }

    fn open(&mut self, name: &str, front: &Front, table: &Table) {
        let (address, port) = (front.address, front.port);
        let sharing = Sharing::of(table, false, port);
        let socket = match self.inherited.remove(name) {
            Some(socket) => Ok(socket),
            None => owner::listen_std(address, port, sharing),
        };
        let given = socket.and_then(|socket| {
            let failed = |error: io::Error| format!("port {port}: {error}");
            socket.set_nonblocking(true).map_err(failed)?;
            self.start().map_err(failed)?;
            for sender in &self.senders {
                let own = socket.try_clone().map_err(failed)?;
                let _ = sender.send(Command::Listen(name.to_owned(), own));
            }
            Ok(socket)
        });
        match given {
            Ok(socket) => {
                self.failed.remove(name);
                self.sockets.insert(name.to_owned(), socket);
            }
            Err(why) => {
                // Some thread may have it already.
                self.tell_close(name);
                self.failed.insert(name.to_owned(), why);
            }
        }
    }

    fn start(&mut self) -> io::Result<()> {
        while self.senders.len() < self.threads {
            self.senders.push(worker::start(self.shared.clone(), self.hooks.clone(), self.senders.len())?);
        }
        Ok(())
    }

    fn tell_close(&self, name: &str) {
        for sender in &self.senders {
            self.shared.closing.fetch_add(1, Ordering::SeqCst);
            if sender.send(Command::Close(name.to_owned())).is_err() {
                self.shared.closing.fetch_sub(1, Ordering::SeqCst);
            }
        }
    }

    /// What listens, for a handover.
    pub fn sockets(&self) -> Vec<(String, RawFd)> {
        self.sockets.iter().map(|(name, socket)| (format!("{PREFIX}{name}"), socket.as_raw_fd())).collect()
    }

    /// Another has the sockets: nothing more is accepted, and connections end with their next answer.
    pub fn leave(&mut self) {
        self.shared.leave();
        for name in std::mem::take(&mut self.sockets).into_keys() {
            self.tell_close(&name);
        }
        self.failed.clear();
    }

    /// Whether no client is connected, and none can be any more.
    pub fn is_idle(&self) -> bool {
        self.shared.closing.load(Ordering::SeqCst) == 0 && self.shared.connections.load(Ordering::SeqCst) == 0
    }

    /// Adds how things are.
    pub fn tell_status(&self, status: &mut Status) {
        let routing = self.shared.routing();
        for (task, open) in routing.open() {
            *status.connections.entry(task).or_default() += open;
        }
        status.routes = routing.count(&mut status.backends);
        drop(routing);
        status.failed.extend(self.failed.iter().map(|(name, why)| (name.clone(), why.clone())));
        for (name, tallies) in &*self.shared.tallies() {
            let mut flowed = Flowed::default();
            tallies.iter().for_each(|tally| flowed.add(&tally.told()));
            status.accepted += flowed.connections;
            status.unrouted += flowed.unrouted;
            status.malformed += flowed.malformed;
            status.ports.insert(name.clone(), flowed);
        }
    }
}
