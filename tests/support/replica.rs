//! A server of HTTP/1.1 that behaves as it is told.
#![allow(dead_code, reason = "each test file uses its part")]

use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

/// A request, whole.
pub struct Request {
    /// Its head as it came, with the empty line.
    pub head: String,
    /// Its body, out of its chunks.
    pub body: Vec<u8>,
}

/// One that listens on a port of its own.
pub struct Replica {
    /// The id of a task.
    pub id: String,
    /// Its port.
    pub port: u16,
    inner: Arc<Inner>,
}

#[derive(Default)]
struct Inner {
    connections: AtomicUsize,
    requests: AtomicUsize,
    closed: AtomicBool,
    open: Mutex<Vec<TcpStream>>,
    seen: Mutex<Vec<Vec<u8>>>,
}

/// An answer with this body.
pub fn answer(status: u16, body: &str) -> String {
    format!("HTTP/1.1 {status} OK\r\nContent-Length: {}\r\n\r\n{body}", body.len())
}

impl Replica {
    /// Answers each request by `serve`, which says whether the connection goes on.
    pub fn start(serve: impl Fn(&Request, &mut TcpStream) -> bool + Send + Sync + 'static) -> Self {
        static NEXT: AtomicUsize = AtomicUsize::new(0);
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let inner = Arc::new(Inner::default());
        let (shared, serve) = (inner.clone(), Arc::new(serve));
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                if shared.closed.load(Ordering::SeqCst) {
                    return;
                }
                let Ok(mut stream) = stream else { continue };
                shared.connections.fetch_add(1, Ordering::SeqCst);
                shared.open.lock().unwrap().push(stream.try_clone().unwrap());
                let (shared, serve) = (shared.clone(), serve.clone());
                std::thread::spawn(move || {
                    let mut input = Vec::new();
                    while let Some(request) = read(&mut stream, &mut input) {
                        shared.requests.fetch_add(1, Ordering::SeqCst);
                        if !serve(&request, &mut stream) {
                            break;
                        }
                    }
                    let _ = stream.shutdown(Shutdown::Both);
                });
            }
        });
        let number = NEXT.fetch_add(1, Ordering::SeqCst);
        Replica { id: format!("01arz3ndektsv4rrffq69g{number:04}"), port, inner }
    }

    /// Each connection is `serve`'s alone, which gives back what it has seen on it.
    pub fn raw(serve: impl Fn(&mut TcpStream) -> Vec<u8> + Send + Sync + 'static) -> Self {
        let replica = Self::start(|_, _| false);
        replica.close();
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let replica = Replica { id: replica.id.clone(), port, inner: replica.inner.clone() };
        let (shared, serve) = (replica.inner.clone(), Arc::new(serve));
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let Ok(mut stream) = stream else { continue };
                let (shared, serve) = (shared.clone(), serve.clone());
                std::thread::spawn(move || {
                    let seen = serve(&mut stream);
                    shared.seen.lock().unwrap().push(seen);
                });
            }
        });
        replica
    }

    /// What was seen on the connections that are over.
    pub fn seen(&self) -> Vec<Vec<u8>> {
        self.inner.seen.lock().unwrap().clone()
    }

    /// How many connections came.
    pub fn connections(&self) -> usize {
        self.inner.connections.load(Ordering::SeqCst)
    }

    /// How many requests came whole.
    pub fn requests(&self) -> usize {
        self.inner.requests.load(Ordering::SeqCst)
    }

    /// Takes nothing more, as one that was killed.
    pub fn close(&self) {
        self.inner.closed.store(true, Ordering::SeqCst);
        let _ = TcpStream::connect(("127.0.0.1", self.port));
        for stream in self.inner.open.lock().unwrap().drain(..) {
            let _ = stream.shutdown(Shutdown::Both);
        }
        // Until the port is free.
        while TcpStream::connect(("127.0.0.1", self.port)).is_ok() {
            std::thread::yield_now();
        }
    }
}

impl Drop for Replica {
    fn drop(&mut self) {
        if !self.inner.closed.load(Ordering::SeqCst) {
            self.close();
        }
    }
}

fn more(stream: &mut TcpStream, input: &mut Vec<u8>) -> Option<()> {
    let mut part = [0; 64 * 1024];
    match stream.read(&mut part) {
        Ok(0) | Err(_) => None,
        Ok(length) => {
            input.extend_from_slice(&part[..length]);
            Some(())
        }
    }
}

// The next request; `input` keeps what came behind it.
fn read(stream: &mut TcpStream, input: &mut Vec<u8>) -> Option<Request> {
    let end = loop {
        if let Some(end) = input.windows(4).position(|four| four == b"\r\n\r\n") {
            break end + 4;
        }
        more(stream, input)?;
    };
    let head = String::from_utf8_lossy(&input[..end]).into_owned();
    input.drain(..end);
    let field = |name: &str| {
        let mut lines = head.lines().filter_map(|line| line.split_once(": "));
        lines.find(|(known, _)| known.eq_ignore_ascii_case(name)).map(|(_, value)| value.to_owned())
    };
    if field("expect").is_some() {
        stream.write_all(b"HTTP/1.1 100 Continue\r\n\r\n").ok()?;
    }
    let mut body = Vec::new();
    if field("transfer-encoding").is_some() {
        loop {
            let line = loop {
                if let Some(end) = input.windows(2).position(|two| two == b"\r\n") {
                    break end;
                }
                more(stream, input)?;
            };
            let text = String::from_utf8_lossy(&input[..line]).into_owned();
            let size = usize::from_str_radix(text.split(';').next().unwrap(), 16).ok()?;
            while input.len() < line + 2 + size + 2 {
                more(stream, input)?;
            }
            body.extend_from_slice(&input[line + 2..line + 2 + size]);
            input.drain(..line + 2 + size + 2);
            if size == 0 {
                break;
            }
        }
    } else if let Some(length) = field("content-length") {
        let length: usize = length.parse().ok()?;
        while input.len() < length {
            more(stream, input)?;
        }
        body = input.drain(..length).collect();
    }
    Some(Request { head, body })
}
