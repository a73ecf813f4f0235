//! Two sockets and what flows between them.

use std::io::{self, Read, Write};
use std::net::Shutdown;
use std::time::Instant;

use mio::net::TcpStream;

use super::caller::Caller;
use crate::model::id::TaskId;
use crate::network::balancer::pick::Picked;

/// A client's connection and the backend's.
pub struct Pair {
    /// The client's side.
    pub caller: Caller,
    /// The backend's side.
    pub server: TcpStream,
    /// The backend.
    pub picked: Picked,
    /// Until when the backend has to answer; none once it has.
    pub connecting: Option<Instant>,
    /// When something moved last, roughly.
    pub moved_at: Instant,
    /// It stands in line for another turn.
    pub is_queued: bool,
    up: Flow,
    down: Flow,
}

/// One direction.
#[derive(Default)]
struct Flow {
    // What the other side has not taken yet; empty nearly always, so it costs nothing while idle.
    kept: Vec<u8>,
    sent: usize,
    // Bytes since they were last told, and whether any were taken.
    moved: u64,
    stirs: bool,
    // Nothing more can be read: its end is gone.
    broken: bool,
    readable: bool,
    // The other end has sent its last: what was announced ends with an end, which is no event of its own.
    last: bool,
    ended: bool,
    closed: bool,
}

/// What became of a pair.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// It waits for the sockets.
    Open,
    /// There may be more to read at once; others first.
    Busy,
    /// Both directions have ended, or one broke.
    Done,
}

/// Reads in a row before others get their turn.
const TURNS: usize = 8;

impl Pair {
    /// A new pair whose backend has yet to answer; it is sent `first` before anything of the client's.
    pub fn new(caller: Caller, server: TcpStream, picked: Picked, until: Instant, first: Vec<u8>) -> Self {
        let up = Flow { kept: first, ..Flow::default() };
        Pair {
            caller,
            server,
            picked,
            connecting: Some(until),
            moved_at: until,
            is_queued: false,
            up,
            down: Flow::default(),
        }
    }

    /// The backend's task.
    pub fn task(&self) -> TaskId {
        self.picked.peer().id
    }

    /// Bytes of the client, and for it, since this was asked last.
    pub fn moved(&mut self) -> [u64; 2] {
        [&mut self.up, &mut self.down].map(|flow| std::mem::take(&mut flow.moved))
    }

    /// Whether anything was read or taken since this was asked last.
    pub fn stirs(&mut self) -> bool {
        [&mut self.up, &mut self.down].map(|flow| std::mem::take(&mut flow.stirs)).contains(&true)
    }

    /// Notes that a side became readable.
    pub fn mark_readable(&mut self, from_server: bool, last: bool) {
        let flow = if from_server { &mut self.down } else { &mut self.up };
        flow.readable = true;
        flow.last |= last;
    }

    /// Moves whatever can be moved.
    pub fn pump(&mut self, buffer: &mut [u8]) -> Outcome {
        if self.connecting.is_some() {
            return Outcome::Open;
        }
        let up = self.up.pump(&mut self.caller.socket, &mut self.server, buffer);
        if self.up.broken {
            return Outcome::Done;
        }
        let up = up.unwrap_or_else(|_| {
            // The backend takes no more. What it has answered already still goes out.
            self.up = Flow { ended: true, closed: true, moved: self.up.moved, ..Flow::default() };
            let _ = self.server.shutdown(Shutdown::Write);
            false
        });
        match self.down.pump(&mut self.server, &mut self.caller.socket, buffer) {
            Err(_) => Outcome::Done,
            Ok(_) if self.up.closed && self.down.closed => Outcome::Done,
            Ok(down) if up || down => Outcome::Busy,
            Ok(_) => Outcome::Open,
        }
    }

    /// Gives back the client, to be paired with another backend. Only before anything was read from it.
    pub fn into_caller(self) -> Caller {
        let mut caller = self.caller;
        caller.tried.push(self.picked.peer().id);
        caller
    }
}

impl Flow {
    // Ok(true): stopped for fairness, not for want of data.
    fn pump(&mut self, from: &mut TcpStream, to: &mut TcpStream, buffer: &mut [u8]) -> io::Result<bool> {
        if !self.kept.is_empty() {
            let written = write_some(to, &self.kept[self.sent..])?;
            self.stirs |= written > 0;
            match written {
                written if self.sent + written == self.kept.len() => {
                    self.kept = Vec::new();
                    self.sent = 0;
                }
                written => {
                    self.sent += written;
                    return Ok(false);
                }
            }
        }
        for _ in 0..TURNS {
            if self.ended {
                break;
            }
            if !self.readable {
                return Ok(false);
            }
            let length = match from.read(buffer) {
                Ok(length) => length,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    self.readable = false;
                    return Ok(false);
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => {
                    self.broken = true;
                    return Err(error);
                }
            };
            if length == 0 {
                self.ended = true;
                break;
            }
            // A short read has emptied the socket; the next data, or an end that was not announced with this data, is
            // a new event (epoll(7)).
            if length < buffer.len() && !self.last {
                self.readable = false;
            }
            self.moved += length as u64;
            self.stirs = true;
            let written = write_some(to, &buffer[..length])?;
            if written < length {
                self.kept.extend_from_slice(&buffer[written..length]);
                return Ok(false);
            }
        }
        if self.ended {
            if !self.closed {
                self.closed = true;
                // The other side may have gone already.
                let _ = to.shutdown(Shutdown::Write);
            }
            return Ok(false);
        }
        Ok(self.readable)
    }
}

fn write_some(to: &mut TcpStream, bytes: &[u8]) -> io::Result<usize> {
    let mut written = 0;
    while written < bytes.len() {
        match to.write(&bytes[written..]) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(length) => written += length,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(written)
}
