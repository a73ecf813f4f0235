//! Stands before a registry: counts what is asked of it, and lets it fail.
#![allow(dead_code, reason = "each user needs its part")]

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Condvar, Mutex};

/// What becomes of requests.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Mode {
    /// They are passed on.
    Pass,
    /// They are answered with this status, and one more line of a head.
    Answer(u16, &'static str),
    /// Of each blob so many bytes come, and then the end.
    Cut(usize),
    /// The same without an end: until another mode is set.
    Hold(usize),
    /// One byte of each blob is another.
    Wrong,
    /// The same of each manifest.
    Lie,
    /// Nothing is answered.
    Silent,
}

pub struct Upstream {
    pub port: u16,
    mode: Mutex<Mode>,
    changed: Condvar,
    seen: Mutex<Vec<String>>,
}

impl Upstream {
    /// Before a registry at this port, for as long as the process lives.
    pub fn before(registry: u16) -> Arc<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let upstream =
            Arc::new(Upstream { port, mode: Mutex::new(Mode::Pass), changed: Condvar::new(), seen: Mutex::default() });
        let shared = upstream.clone();
        std::thread::spawn(move || {
            for client in listener.incoming().map_while(Result::ok) {
                let shared = shared.clone();
                std::thread::spawn(move || drop(shared.serve(client, registry)));
            }
        });
        upstream
    }

    pub fn set(&self, mode: Mode) {
        *self.mode.lock().unwrap() = mode;
        self.changed.notify_all();
    }

    /// What was asked since this was called last: `GET /v2/...`, with a range where there was one.
    pub fn taken(&self) -> Vec<String> {
        std::mem::take(&mut *self.seen.lock().unwrap())
    }

    fn serve(&self, client: TcpStream, registry: u16) -> std::io::Result<()> {
        let mut reader = BufReader::new(client.try_clone()?);
        let (mut head, mut line) = (String::new(), String::new());
        while reader.read_line(&mut line)? > 2 {
            head += &line;
            line.clear();
        }
        let first = head.lines().next().unwrap_or_default().trim_end_matches(" HTTP/1.1").to_owned();
        let range = head.lines().find_map(|line| line.to_ascii_lowercase().strip_prefix("range: ").map(str::to_owned));
        let said = range.map_or(first.clone(), |range| format!("{first} {range}"));
        self.seen.lock().unwrap().push(said);
        let mode = self.mode.lock().unwrap().clone();
        match mode {
            Mode::Answer(status, more) => {
                return (&client).write_all(
                    format!("HTTP/1.1 {status} x\r\n{more}content-length: 0\r\nconnection: close\r\n\r\n").as_bytes(),
                );
            }
            Mode::Silent => {
                let guard = self.mode.lock().unwrap();
                drop(self.changed.wait_while(guard, |mode| *mode == Mode::Silent).unwrap());
                return Ok(());
            }
            _ => {}
        }
        let mut server = TcpStream::connect(("127.0.0.1", registry))?;
        server.write_all(format!("{head}connection: close\r\n\r\n").as_bytes())?;
        let mut answer = Vec::new();
        server.read_to_end(&mut answer)?;
        let end = answer.windows(4).position(|four| four == b"\r\n\r\n").unwrap_or(answer.len() - 4) + 4;
        let is_blob = first.starts_with("GET ") && first.contains("/blobs/");
        let mut client = client;
        match mode {
            Mode::Cut(bytes) if is_blob => client.write_all(&answer[..(end + bytes).min(answer.len())]),
            Mode::Hold(bytes) if is_blob => {
                let half = (end + bytes).min(answer.len());
                client.write_all(&answer[..half])?;
                let guard = self.mode.lock().unwrap();
                drop(self.changed.wait_while(guard, |now| *now == mode).unwrap());
                client.write_all(&answer[half..])
            }
            Mode::Wrong | Mode::Lie if answer.len() > end && (is_blob == (mode == Mode::Wrong)) => {
                answer[end] ^= 1;
                client.write_all(&answer)
            }
            _ => client.write_all(&answer),
        }
    }
}
