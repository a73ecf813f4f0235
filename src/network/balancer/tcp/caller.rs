//! A client of a port, until it is served and while it is.

use std::cell::Cell;
use std::io::Read;
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::Instant;

use mio::net::TcpStream;
use serde_json::json;

use crate::model::id::TaskId;
use crate::network::balancer::lines::Lines;
use crate::network::balancer::proxy::{self, Parsed};
use crate::network::table::Flowed;

/// A port, and what has gone by it.
#[derive(Debug, Default)]
pub struct Port {
    /// The port's name.
    pub name: String,
    /// Clients that are there.
    pub open: Cell<u32>,
    /// When a connection over which nothing goes is ended.
    pub idle: Cell<Option<std::time::Duration>>,
    /// The rest.
    pub flowed: Cell<Flowed>,
}

impl Port {
    /// Counts.
    pub fn note(&self, change: impl FnOnce(&mut Flowed)) {
        let mut flowed = self.flowed.get();
        change(&mut flowed);
        self.flowed.set(flowed);
    }
}

/// A client.
pub struct Caller {
    /// Its connection.
    pub socket: TcpStream,
    /// Its address: the connection's, or as a proxy in front has it.
    pub from: SocketAddr,
    /// What it came to, where a proxy in front has said.
    pub to: Option<SocketAddr>,
    /// The port that it came to.
    pub port: Rc<Port>,
    /// The line that is sent once it is gone.
    pub line: Option<Box<Line>>,
    /// Backends that did not take it.
    pub tried: Vec<TaskId>,
}

impl Caller {
    /// One that has just come.
    pub fn new(socket: TcpStream, from: SocketAddr, port: &Rc<Port>, line: Option<Box<Line>>) -> Self {
        port.open.set(port.open.get() + 1);
        port.note(|flowed| flowed.connections += 1);
        let from = SocketAddr::new(from.ip().to_canonical(), from.port());
        Caller { socket, from, to: None, port: port.clone(), line, tried: Vec::new() }
    }

    /// Nobody serves it.
    pub fn refuse(self) {
        self.port.note(|flowed| flowed.refused += 1);
    }
}

impl Drop for Caller {
    fn drop(&mut self) {
        self.port.open.set(self.port.open.get() - 1);
        if let Some(line) = self.line.take() {
            line.send(&self.port.name, self.from);
        }
    }
}

/// A line of a connection.
pub struct Line {
    /// Who sends it.
    pub lines: Rc<Lines>,
    /// Where to.
    pub to: SocketAddr,
    /// When it began.
    pub began: Instant,
    /// Who served it.
    pub task: Option<TaskId>,
    /// Bytes of the client, and for it.
    pub bytes: [u64; 2],
}

impl Line {
    fn send(&self, port: &str, from: SocketAddr) {
        let served = match self.task {
            Some(task) => task.to_string(),
            None => "nobody".to_owned(),
        };
        let fields = json!({
            "_port": port,
            "_client": from.ip().to_string(),
            "_client_port": from.port(),
            "_task": self.task.map(|task| task.to_string()),
            "_bytes_in": self.bytes[0],
            "_bytes_out": self.bytes[1],
            "_duration_ms": self.began.elapsed().as_secs_f64() * 1000.0,
        });
        // Notice where nobody served it, else information.
        let level = if self.task.is_none() { 5 } else { 6 };
        self.lines.send(self.to, level, &format!("{port} {} {served}", from.ip()), fields);
    }
}

/// A client whose connection has to say first whose it is.
pub struct Greeting {
    /// The client.
    pub caller: Caller,
    /// Until when.
    pub until: Instant,
}

/// How far one is.
pub enum Greeted {
    /// More has to come.
    Waits,
    /// It is known.
    Whole,
    /// It is none.
    Wrong,
}

impl Greeting {
    /// Looks at what has come; takes the word, and no byte more.
    pub fn look(&mut self, is_last: bool) -> Greeted {
        let mut bytes = [0; proxy::LONGEST];
        let length = match self.caller.socket.peek(&mut bytes) {
            Ok(0) => return Greeted::Wrong,
            Ok(length) => length,
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => return Greeted::Waits,
            Err(_) => return Greeted::Wrong,
        };
        match proxy::parse(&bytes[..length]) {
            Parsed::More if is_last => Greeted::Wrong,
            Parsed::More => Greeted::Waits,
            Parsed::Wrong => Greeted::Wrong,
            Parsed::Word(whose, length) => {
                if self.caller.socket.read_exact(&mut bytes[..length]).is_err() {
                    return Greeted::Wrong;
                }
                // One without addresses is the proxy's own, as its checks are.
                if let Some((from, to)) = whose {
                    self.caller.from = SocketAddr::new(from.ip().to_canonical(), from.port());
                    self.caller.to = Some(to);
                }
                Greeted::Whole
            }
        }
    }
}
