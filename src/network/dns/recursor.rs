//! Asks other name servers about names of others, and keeps what they say for as long as it holds.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, UdpSocket};
use tokio::sync::Semaphore;
use tokio::time::Instant;

use super::wire::{self, Code, HEAD, Head, LARGEST, PLAIN};
use crate::model::clock::Clock;

/// How long one of them may take.
const PATIENCE: Duration = Duration::from_secs(2);
/// Questions under way at once; more are answered with "not now".
const AT_ONCE: usize = 512;
/// Answers that are kept.
const KEPT: usize = 4096;
/// The longest that an answer is kept.
const LONGEST: Duration = Duration::from_secs(3600);
/// How long it is kept that there is none, at most (RFC 2308 bounds it by the SOA; this is simpler, and shorter).
const NOTHING: Duration = Duration::from_secs(30);

/// Whoever is asked, in order.
pub struct Recursor {
    servers: Vec<SocketAddr>,
    clock: Arc<dyn Clock>,
    slots: Semaphore,
    kept: Mutex<HashMap<Vec<u8>, Kept>>,
}

struct Kept {
    // Behind the head and the question.
    answer: Vec<u8>,
    asked_at: Instant,
    until: Instant,
}

impl Recursor {
    /// One that asks `servers`.
    pub fn new(servers: Vec<SocketAddr>, clock: Arc<dyn Clock>) -> Self {
        Recursor { servers, clock, slots: Semaphore::new(AT_ONCE), kept: Mutex::default() }
    }

    /// The answer to `message`, whose question could be read.
    pub async fn ask(&self, message: &[u8], stream: bool) -> Vec<u8> {
        let Some(Ok(question)) = wire::read(message) else { return Vec::new() };
        let failed = |code: Code| {
            let mut out = Vec::new();
            wire::begin(message, Some(question.end), Head { code, authoritative: false, recursion: true }, &mut out);
            if let Some(edns) = question.edns {
                wire::write_edns(code, edns.dnssec, &mut out);
                wire::count(&mut out, [0, 0, 1]);
            }
            out
        };
        // What the client takes is part of it: an answer without EDNS is none to a question with it.
        let mut key = question.name.to_ascii_lowercase();
        key.extend(&message[question.end - 4..question.end]);
        key.push(u8::from(stream) << 2 | u8::from(question.edns.is_some()) << 1);
        if let Some(edns) = question.edns {
            key.extend(edns.size.to_be_bytes());
            key.push(u8::from(edns.dnssec));
        }
        if let Some(answer) = self.kept(&key, message, question.end) {
            return answer;
        }
        let Ok(_slot) = self.slots.try_acquire() else { return failed(Code::ServFail) };
        for server in &self.servers {
            let asked = async {
                match stream {
                    true => self.over_stream(*server, message).await,
                    false => self.over_datagrams(*server, message, question.end).await,
                }
            };
            let Ok(Ok(answer)) = tokio::time::timeout(PATIENCE, asked).await else { continue };
            // One that cannot, or will not; another may.
            if matches!(answer[3] & 0x0F, 2 | 4 | 5) {
                continue;
            }
            self.keep(key, &answer, question.end);
            return answer;
        }
        failed(Code::ServFail)
    }

    fn kept(&self, key: &[u8], message: &[u8], end: usize) -> Option<Vec<u8>> {
        let mut all = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        let kept = all.get(key)?;
        let now = Instant::now();
        if now >= kept.until {
            all.remove(key);
            return None;
        }
        // As it was asked this time.
        let mut answer = kept.answer.clone();
        answer[..2].copy_from_slice(&message[..2]);
        answer[2] = answer[2] & !0x01 | message[2] & 0x01;
        answer[HEAD..end].copy_from_slice(&message[HEAD..end]);
        let age = now.duration_since(kept.asked_at).as_secs();
        records(&answer, end, |kind, at, ttl| (kind != wire::kind::OPT).then_some((at, ttl)))?.into_iter().for_each(
            |(at, ttl)| {
                let left = ttl.saturating_sub(u32::try_from(age).unwrap_or(u32::MAX));
                answer[at..at + 4].copy_from_slice(&left.to_be_bytes());
            },
        );
        Some(answer)
    }

    fn keep(&self, key: Vec<u8>, answer: &[u8], end: usize) {
        let Some(ttls) = records(answer, end, |kind, _, ttl| (kind != wire::kind::OPT).then_some(ttl)) else { return };
        let is_whole = answer[2] & 0x02 == 0;
        let has_answers = answer[6..8] != [0, 0];
        let least = ttls.into_iter().min().unwrap_or_default();
        let most = if has_answers { LONGEST } else { NOTHING };
        let holds = Duration::from_secs(u64::from(least)).min(most);
        if !is_whole || holds.is_zero() {
            return;
        }
        let now = Instant::now();
        let mut all = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        if all.len() >= KEPT {
            all.retain(|_, kept| now < kept.until);
        }
        if all.len() >= KEPT {
            all.clear();
        }
        all.insert(key, Kept { answer: answer.to_vec(), asked_at: now, until: now + holds });
    }

    async fn over_datagrams(&self, server: SocketAddr, message: &[u8], end: usize) -> std::io::Result<Vec<u8>> {
        let local: SocketAddr = match server.is_ipv4() {
            true => ([0, 0, 0, 0], 0).into(),
            false => ([0_u16; 8], 0).into(),
        };
        // A port of its own and a number that nobody can guess: others' answers are not taken for the server's.
        let socket = UdpSocket::bind(local).await?;
        socket.connect(server).await?;
        let number = (self.clock.random() as u16).to_be_bytes();
        let mut question = message.to_vec();
        question[..2].copy_from_slice(&number);
        socket.send(&question).await?;
        let mut answer = vec![0; LARGEST.max(PLAIN)];
        loop {
            let size = socket.recv(&mut answer).await?;
            let got = &answer[..size];
            let is_answer = size >= end
                && got[..2] == number
                && got[2] & 0x80 != 0
                && got[HEAD..end].eq_ignore_ascii_case(&message[HEAD..end]);
            if is_answer {
                answer.truncate(size);
                answer[..2].copy_from_slice(&message[..2]);
                return Ok(answer);
            }
        }
    }

    async fn over_stream(&self, server: SocketAddr, message: &[u8]) -> std::io::Result<Vec<u8>> {
        let mut stream = TcpStream::connect(server).await?;
        let mut out = u16::try_from(message.len()).unwrap_or_default().to_be_bytes().to_vec();
        out.extend(message);
        stream.write_all(&out).await?;
        let size = usize::from(stream.read_u16().await?);
        let mut answer = vec![0; size];
        stream.read_exact(&mut answer).await?;
        if size < HEAD || answer[..2] != message[..2] || answer[2] & 0x80 == 0 {
            return Err(std::io::Error::other("is no answer"));
        }
        Ok(answer)
    }
}

// What `pick` takes of each record: its type, where its time to live stands, and that; none where the message is broken.
fn records<T>(message: &[u8], end: usize, pick: impl Fn(u16, usize, u32) -> Option<T>) -> Option<Vec<T>> {
    let word = |at: usize| Some(u16::from_be_bytes([*message.get(at)?, *message.get(at + 1)?]));
    let count = u32::from(word(6)?) + u32::from(word(8)?) + u32::from(word(10)?);
    let mut at = end;
    let mut all = Vec::new();
    for _ in 0..count {
        at = wire::skip_name(message, at)?;
        let ttl = u32::from(word(at + 4)?) << 16 | u32::from(word(at + 6)?);
        all.extend(pick(word(at)?, at + 4, ttl));
        at += 10 + usize::from(word(at + 8)?);
    }
    (at <= message.len()).then_some(all)
}
