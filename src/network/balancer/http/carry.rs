//! A body on its way from one side to the other.

use std::io;
use std::pin::{Pin, pin};
use std::task::{Context, Poll, ready};

use bytes::{Buf, BytesMut};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite};

use super::chunks::Chunks;
use super::head::{Bad, Body};

/// What is read at a time of a large body.
const LARGE: usize = 64 * 1024;
/// What of a body goes out with its head, at most.
const WITH_HEAD: usize = 16 * 1024;

/// Why a body did not get through.
#[derive(Debug)]
pub enum Broken {
    /// The side that it comes from ended or broke.
    Source,
    /// The side that it goes to takes no more.
    Sink,
    /// It is malformed.
    Bad(Bad),
}

#[derive(Debug)]
enum Left {
    Nothing,
    Bytes(u64),
    Chunks(Chunks),
    // Until the source ends.
    All,
}

/// A body on its way.
#[derive(Debug)]
pub struct Carry {
    left: Left,
    // The first so many bytes of the source's buffer go on; the next so many go nowhere.
    ready: usize,
    skipped: usize,
    // What goes before those, and what behind them.
    lead: Vec<u8>,
    led: usize,
    tail: &'static [u8],
    // The other side cannot know where the source ends: it is cut into chunks for it.
    recoded: bool,
    broken: bool,
    /// Bytes that came.
    pub taken: u64,
    /// Bytes that went on.
    pub moved: u64,
    most: Option<u64>,
}

impl Carry {
    /// A body of this kind, of `most` bytes at most.
    pub fn new(body: Body, most: Option<u64>) -> Self {
        let left = match body {
            Body::None => Left::Nothing,
            Body::Length(length) => Left::Bytes(length),
            Body::Chunked => Left::Chunks(Chunks::default()),
            Body::ToEnd => Left::All,
        };
        let (lead, tail): (Vec<u8>, &[u8]) = (Vec::new(), b"");
        Carry {
            left,
            ready: 0,
            skipped: 0,
            lead,
            led: 0,
            tail,
            recoded: false,
            broken: false,
            taken: 0,
            moved: 0,
            most,
        }
    }

    /// The same, cut into chunks if it ends with the source.
    pub fn recoded(self) -> Self {
        Carry { recoded: matches!(self.left, Left::All), ..self }
    }

    /// Whether all of it is through.
    pub fn is_done(&self) -> bool {
        let is_written = self.ready == 0 && self.led == self.lead.len() && self.tail.is_empty();
        matches!(self.left, Left::Nothing) && is_written && self.skipped == 0 && !self.broken
    }

    /// Whether something of it is here that the other side has not taken yet.
    pub fn waits_for_sink(&self) -> bool {
        self.ready > 0 || self.led < self.lead.len() || !self.tail.is_empty()
    }

    // Looks how much of what came belongs to it. After an error nothing more of it goes on, whoever asks again.
    fn stage(&mut self, input: &BytesMut) -> Result<(), Bad> {
        let staged = self.try_stage(input);
        if staged.is_err() {
            (self.broken, self.ready, self.skipped, self.tail) = (true, 0, 0, b"");
            (self.led, self.left) = (self.lead.len(), Left::Nothing);
        }
        staged
    }

    fn try_stage(&mut self, input: &BytesMut) -> Result<(), Bad> {
        let taken = match &mut self.left {
            Left::Nothing => 0,
            Left::Bytes(left) => {
                self.ready = (*left).min(input.len() as u64) as usize;
                *left -= self.ready as u64;
                if *left == 0 {
                    self.left = Left::Nothing;
                }
                self.ready
            }
            Left::Chunks(chunks) => {
                let step = chunks.step(input)?;
                (self.ready, self.skipped) = (step.sent, step.taken - step.sent);
                if step.done {
                    self.tail = b"\r\n";
                    self.left = Left::Nothing;
                }
                step.taken
            }
            Left::All => {
                self.ready = input.len();
                if self.recoded && self.ready > 0 {
                    self.lead(format!("{:x}\r\n", self.ready));
                    self.tail = b"\r\n";
                }
                self.ready
            }
        };
        self.taken += taken as u64;
        if self.most.is_some_and(|most| self.taken > most) {
            return Err(Bad { status: 413, why: "the body is larger than this route takes" });
        }
        Ok(())
    }

    fn lead(&mut self, text: String) {
        (self.lead, self.led) = (text.into_bytes(), 0);
    }

    /// Puts what is there already behind a head, if it is little.
    pub fn join(&mut self, input: &mut BytesMut, out: &mut Vec<u8>) -> Result<(), Bad> {
        if input.is_empty() || input.len() > WITH_HEAD {
            return Ok(());
        }
        self.stage(input)?;
        out.extend_from_slice(&self.lead[self.led..]);
        self.led = self.lead.len();
        out.extend_from_slice(&input[..self.ready]);
        out.extend_from_slice(self.tail);
        input.advance(self.ready + self.skipped);
        (self.ready, self.skipped, self.tail) = (0, 0, b"");
        Ok(())
    }

    /// Moves what can be moved; ready when all of it is through.
    pub fn poll<W: AsyncWrite + Unpin>(
        &mut self,
        cx: &mut Context,
        input: &mut BytesMut,
        mut from: impl FnMut(&mut Context, &mut BytesMut) -> Poll<io::Result<usize>>,
        to: &mut W,
    ) -> Poll<Result<(), Broken>> {
        loop {
            if self.broken {
                return Poll::Ready(Err(Broken::Bad(Bad { status: 400, why: "the body is none" })));
            }
            if self.led < self.lead.len() {
                match ready!(Pin::new(&mut *to).poll_write(cx, &self.lead[self.led..])) {
                    Ok(0) | Err(_) => return Poll::Ready(Err(Broken::Sink)),
                    Ok(written) => self.led += written,
                }
                continue;
            }
            if self.ready > 0 {
                let written = ready!(Pin::new(&mut *to).poll_write(cx, &input[..self.ready]));
                match written {
                    Ok(0) | Err(_) => return Poll::Ready(Err(Broken::Sink)),
                    Ok(written) => {
                        input.advance(written);
                        self.ready -= written;
                        self.moved += written as u64;
                    }
                }
                continue;
            }
            if self.skipped > 0 {
                input.advance(std::mem::take(&mut self.skipped));
            }
            if !self.tail.is_empty() {
                match ready!(Pin::new(&mut *to).poll_write(cx, self.tail)) {
                    Ok(0) | Err(_) => return Poll::Ready(Err(Broken::Sink)),
                    Ok(written) => self.tail = &self.tail[written..],
                }
                continue;
            }
            if matches!(self.left, Left::Nothing) {
                // What TLS has kept so far goes out.
                return Pin::new(to).poll_flush(cx).map_err(|_| Broken::Sink);
            }
            if !input.is_empty() {
                self.stage(input).map_err(Broken::Bad)?;
                continue;
            }
            let came = from(cx, input);
            if came.is_pending() {
                let _ = Pin::new(&mut *to).poll_flush(cx);
            }
            match ready!(came) {
                Ok(0) if matches!(self.left, Left::All) => {
                    self.left = Left::Nothing;
                    if self.recoded {
                        self.lead("0\r\n\r\n".into());
                    }
                }
                Ok(0) | Err(_) => return Poll::Ready(Err(Broken::Source)),
                Ok(_) => {}
            }
        }
    }
}

/// Reads into a buffer what is there, with room for a large body.
pub fn poll_fill<R: AsyncRead + Unpin>(
    cx: &mut Context,
    from: &mut R,
    input: &mut BytesMut,
) -> Poll<io::Result<usize>> {
    if input.capacity() - input.len() < LARGE / 4 {
        input.reserve(LARGE);
    }
    // Made anew each time: it keeps nothing between two looks.
    pin!(from.read_buf(input)).poll(cx)
}
