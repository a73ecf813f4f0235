//! Stands between a daemon and its Docker Engine: counts requests, and cuts streams of events.
#![allow(dead_code, reason = "each user needs its part")]

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

/// Listens for as long as the process lives.
#[derive(Default)]
pub struct Proxy {
    // Requests that were made, by method and path without ids.
    requests: Mutex<BTreeMap<String, usize>>,
    // Connections that carry events.
    streams: Mutex<Vec<UnixStream>>,
    silent: AtomicBool,
}

impl Proxy {
    /// Passes on to a Docker Engine's socket what comes to `own`.
    pub fn start(own: &Path, engine: PathBuf) -> Arc<Self> {
        let _ = std::fs::remove_file(own);
        let listener = UnixListener::bind(own).unwrap();
        let proxy = Arc::new(Proxy::default());
        let shared = proxy.clone();
        std::thread::spawn(move || {
            for client in listener.incoming().map_while(Result::ok) {
                let Ok(server) = UnixStream::connect(&engine) else { continue };
                let (from, to) = (client.try_clone().unwrap(), server.try_clone().unwrap());
                let shared = shared.clone();
                std::thread::spawn(move || {
                    pass_on(&from, &to, |chunk| shared.saw(chunk, &from));
                    let _ = to.shutdown(Shutdown::Write);
                });
                std::thread::spawn(move || {
                    pass_on(&server, &client, |_| true);
                    let _ = client.shutdown(Shutdown::Both);
                });
            }
        });
        proxy
    }

    /// What was asked since this was called last.
    pub fn taken(&self) -> BTreeMap<String, usize> {
        std::mem::take(&mut *self.requests.lock().unwrap())
    }

    /// Cuts all streams of events. How many there were.
    pub fn cut(&self) -> usize {
        let streams = std::mem::take(&mut *self.streams.lock().unwrap());
        streams.iter().filter(|stream| stream.shutdown(Shutdown::Both).is_ok()).count()
    }

    /// Whether streams of events are refused.
    pub fn refuse(&self, silent: bool) {
        self.silent.store(silent, Ordering::SeqCst);
    }

    // Whether to pass it on.
    fn saw(&self, chunk: &[u8], from: &UnixStream) -> bool {
        let text = String::from_utf8_lossy(chunk);
        let mut words = text.lines().next().unwrap_or_default().split(' ');
        let (Some(method @ ("GET" | "POST" | "DELETE" | "HEAD")), Some(path)) = (words.next(), words.next()) else {
            return true;
        };
        let path = path.split('?').next().unwrap_or_default();
        let parts = path.split('/').filter(|part| !part.is_empty() && !part.starts_with("v1."));
        let parts: Vec<&str> = parts.map(|part| if part.len() >= 25 { "ID" } else { part }).collect();
        *self.requests.lock().unwrap().entry(format!("{method} /{}", parts.join("/"))).or_default() += 1;
        if parts != ["events"] {
            return true;
        }
        if self.silent.load(Ordering::SeqCst) {
            let _ = from.shutdown(Shutdown::Both);
            return false;
        }
        self.streams.lock().unwrap().push(from.try_clone().unwrap());
        true
    }
}

fn pass_on(mut from: &UnixStream, mut to: &UnixStream, wanted: impl Fn(&[u8]) -> bool) {
    let mut chunk = vec![0; 64 << 10];
    while let Ok(length @ 1..) = from.read(&mut chunk) {
        if !wanted(&chunk[..length]) || to.write_all(&chunk[..length]).is_err() {
            break;
        }
    }
}
