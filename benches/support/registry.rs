//! A client of registries, for benches.
#![allow(dead_code, reason = "each bench takes what it needs")]

use std::io::{BufRead, BufReader, Write};
use std::net::TcpStream;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use sha2::Digest as _;

const NEAP: &str = env!("CARGO_BIN_EXE_neap");

/// A process that is ended.
pub struct Running(pub Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ =
            nix::sys::signal::kill(nix::unistd::Pid::from_raw(self.0.id() as i32), nix::sys::signal::Signal::SIGTERM);
        let _ = self.0.wait();
    }
}

/// A daemon of ours with its registry at this port, in a folder; with what else is in its environment.
pub fn ours(folder: &Path, port: u16, env: &[(&str, &str)]) -> Running {
    let log = std::fs::File::create(folder.join("log")).unwrap();
    let mut command = Command::new(NEAP);
    command
        .args(["up", "--engine", "process", "--data"])
        .arg(folder.join("ours"))
        .arg("--socket")
        .arg(folder.join("neap.sock"))
        .envs([("NEAP_CONSUL_LISTEN", "none"), ("NEAP_DNS_LISTEN", "none")])
        .env("NEAP_REGISTRY_LISTEN", format!("127.0.0.1:{port}"))
        .env("NEAP_CONFIG", folder.join("none.toml"))
        .envs(env.iter().copied())
        .stdout(Stdio::null())
        .stderr(log);
    Running(command.spawn().unwrap())
}

/// Until somebody answers there.
pub fn wait_for(port: u16) {
    let until = Instant::now() + Duration::from_secs(20);
    while TcpStream::connect(("127.0.0.1", port)).is_err() {
        assert!(Instant::now() < until, "nobody answers on port {port}");
        std::thread::sleep(Duration::from_millis(2));
    }
}

pub fn memory(running: &Running) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{}/status", running.0.id())).unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    line.and_then(|line| line.split_whitespace().next()?.parse::<u64>().ok()).unwrap_or_default() / 1024
}

pub fn noise(seed: u64, length: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut bytes = Vec::with_capacity(length + 8);
    while bytes.len() < length {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend_from_slice(&state.to_le_bytes());
    }
    bytes.truncate(length);
    bytes
}

pub fn digest(bytes: &[u8]) -> String {
    let hash = sha2::Sha256::digest(bytes);
    format!("sha256:{}", hash.iter().map(|byte| format!("{byte:02x}")).collect::<String>())
}

// A client with one connection that is kept.
pub struct Client {
    stream: BufReader<TcpStream>,
    port: u16,
}

impl Client {
    pub fn new(port: u16) -> Self {
        let stream = TcpStream::connect(("127.0.0.1", port)).unwrap();
        stream.set_nodelay(true).unwrap();
        Client { stream: BufReader::with_capacity(256 * 1024, stream), port }
    }

    // The status, where to go on, and how much came.
    pub fn ask(&mut self, method: &str, path: &str, kind: &str, body: &[u8]) -> (u16, String, u64) {
        let head = format!(
            "{method} {path} HTTP/1.1\r\nHost: 127.0.0.1:{}\r\nContent-Length: {}\r\nContent-Type: {kind}\r\n\
             Accept: application/vnd.docker.distribution.manifest.v2+json\r\n\r\n",
            self.port,
            body.len()
        );
        let stream = self.stream.get_mut();
        stream.write_all(head.as_bytes()).unwrap();
        stream.write_all(body).unwrap();
        let (mut line, mut status, mut location, mut length) = (String::new(), 0, String::new(), 0_u64);
        loop {
            line.clear();
            self.stream.read_line(&mut line).unwrap();
            if line == "\r\n" {
                break;
            }
            match line.split_once(": ") {
                None => status = line.split(' ').nth(1).and_then(|status| status.parse().ok()).unwrap_or(0),
                Some((name, value)) if name.eq_ignore_ascii_case("location") => location = value.trim().to_owned(),
                Some((name, value)) if name.eq_ignore_ascii_case("content-length") => {
                    length = value.trim().parse().unwrap();
                }
                Some(_) => {}
            }
        }
        if method != "HEAD" && status != 204 {
            let mut left = length;
            while left > 0 {
                let part = self.stream.fill_buf().unwrap().len().min(left as usize);
                assert!(part > 0, "the body is cut off");
                self.stream.consume(part);
                left -= part as u64;
            }
        }
        (status, location, length)
    }

    // As Docker pushes a blob.
    pub fn push(&mut self, repository: &str, bytes: &[u8], digest: &str) {
        let kind = "application/octet-stream";
        let (status, location, _) = self.ask("POST", &format!("/v2/{repository}/blobs/uploads/"), kind, b"");
        assert_eq!(status, 202);
        let at = path_of(self.port, &location);
        let (status, location, _) = self.ask("PATCH", &at, kind, bytes);
        assert_eq!(status, 202);
        let at = path_of(self.port, &location);
        let mark = if at.contains('?') { '&' } else { '?' };
        let (status, ..) = self.ask("PUT", &format!("{at}{mark}digest={digest}"), kind, b"");
        assert_eq!(status, 201);
    }
}

pub fn path_of(port: u16, location: &str) -> String {
    location.trim_start_matches(&format!("http://127.0.0.1:{port}")).to_owned()
}

pub fn by_all<T: Sync>(port: u16, clients: usize, all: &[T], each: impl Fn(&mut Client, &T) + Sync) {
    let next = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        for _ in 0..clients {
            scope.spawn(|| {
                let mut client = Client::new(port);
                while let Some(one) = all.get(next.fetch_add(1, Ordering::Relaxed)) {
                    each(&mut client, one);
                }
            });
        }
    });
}
