//! Where a body in chunks ends (RFC 9112, 7.1). It goes on as it came, byte for byte, but for its trailers, which end here.

use super::head::Bad;

/// Longest line of a chunk's size with its extensions, in bytes.
const MAX_LINE: u32 = 1024;
/// Trailers, in bytes.
const MAX_TRAILERS: u32 = 16 * 1024;

/// How far a body in chunks has been read.
#[derive(Debug, Clone, Default)]
pub struct Chunks {
    state: State,
    // What is left of a chunk, or what its size is so far.
    left: u64,
    // How long the present line, or the trailers, are so far.
    line: u32,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
enum State {
    #[default]
    Size,
    Digits,
    Extension,
    SizeEnd,
    Data,
    DataCr,
    DataLf,
    // The last chunk is over: lines until an empty one.
    TrailerStart,
    Trailer,
    TrailerLf,
    LastLf,
    Done,
}

/// What became of some bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Step {
    /// How many of them were looked at.
    pub taken: usize,
    /// How many of those go on: all but trailers.
    pub sent: usize,
    /// Whether the body is over; what is sent then is ended by an empty line.
    pub done: bool,
}

impl Chunks {
    /// Goes through the next bytes, as far as the body goes.
    pub fn step(&mut self, bytes: &[u8]) -> Result<Step, Bad> {
        self.step_with(bytes, |_| {})
    }

    /// The same; what is in the chunks is handed out.
    pub fn step_with(&mut self, bytes: &[u8], mut data: impl FnMut(&[u8])) -> Result<Step, Bad> {
        let wrong = |why| Err(Bad { status: 400, why });
        let (mut at, mut sent) = (0, 0);
        while at < bytes.len() && self.state != State::Done {
            let byte = bytes[at];
            if self.state == State::Data {
                let part = self.left.min((bytes.len() - at) as u64);
                self.left -= part;
                data(&bytes[at..at + part as usize]);
                at += part as usize;
                sent = at;
                if self.left == 0 {
                    self.state = State::DataCr;
                }
                continue;
            }
            at += 1;
            self.line += 1;
            match self.state {
                State::Size | State::Digits => match (char::from(byte).to_digit(16), byte) {
                    (Some(digit), _) => {
                        if self.left >> 56 != 0 {
                            return wrong("a chunk is too large");
                        }
                        self.left = self.left << 4 | u64::from(digit);
                        self.state = State::Digits;
                    }
                    (None, b'\r') if self.state == State::Digits => self.state = State::SizeEnd,
                    (None, b';') if self.state == State::Digits => self.state = State::Extension,
                    _ => return wrong("a chunk's size is none"),
                },
                State::Extension => match byte {
                    b'\r' => self.state = State::SizeEnd,
                    b'\t' | 0x20..=0x7e | 0x80.. => {}
                    _ => return wrong("a chunk's extension is none"),
                },
                State::SizeEnd if byte == b'\n' => {
                    self.state = if self.left == 0 { State::TrailerStart } else { State::Data };
                    self.line = 0;
                }
                State::DataCr if byte == b'\r' => self.state = State::DataLf,
                State::DataLf if byte == b'\n' => (self.state, self.line) = (State::Size, 0),
                State::TrailerStart if byte == b'\r' => self.state = State::LastLf,
                State::TrailerStart | State::Trailer => match byte {
                    b'\r' => self.state = State::TrailerLf,
                    b'\t' | 0x20..=0x7e | 0x80.. => self.state = State::Trailer,
                    _ => return wrong("a trailer is none"),
                },
                State::TrailerLf if byte == b'\n' => self.state = State::TrailerStart,
                State::LastLf if byte == b'\n' => self.state = State::Done,
                _ => return wrong("a chunk does not end as it should"),
            }
            let in_trailers = matches!(
                self.state,
                State::TrailerStart | State::Trailer | State::TrailerLf | State::LastLf | State::Done
            );
            if !in_trailers {
                sent = at;
            } else if self.state == State::TrailerStart && self.line == 0 {
                // The line of the last chunk itself.
                sent = at;
            }
            if self.line > if in_trailers { MAX_TRAILERS } else { MAX_LINE } {
                return wrong("a chunk's line is too long");
            }
        }
        Ok(Step { taken: at, sent, done: self.state == State::Done })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    // What goes on of a body that comes in parts of these sizes; and what is left over.
    fn through(body: &[u8], part: usize) -> Result<(Vec<u8>, Vec<u8>), &'static str> {
        let (mut chunks, mut out, mut at) = (Chunks::default(), Vec::new(), 0);
        while at < body.len() {
            let bytes = &body[at..body.len().min(at + part)];
            let step = chunks.step(bytes).map_err(|bad| bad.why)?;
            out.extend_from_slice(&bytes[..step.sent]);
            at += step.taken;
            if step.done {
                out.extend_from_slice(b"\r\n");
                return Ok((out, body[at..].to_vec()));
            }
        }
        Err("no end")
    }

    #[test]
    fn goes_on_as_it_came_without_trailers() {
        let body = b"5;a=b\r\nhello\r\n0A\r\n0123456789\r\n0\r\nX-Sum: 1\r\nY: 2\r\n\r\nGET /";
        for part in [1, 2, 3, 7, 100] {
            let (out, left) = through(body, part).unwrap();
            assert_eq!(out, b"5;a=b\r\nhello\r\n0A\r\n0123456789\r\n0\r\n\r\n", "in parts of {part}");
            assert_eq!(left, b"GET /");
        }
        assert_eq!(through(b"0\r\n\r\n", 1).unwrap().0, b"0\r\n\r\n");
    }

    #[test]
    fn what_could_be_read_in_two_ways_is_refused() {
        let cases: [&[u8]; 10] = [
            b"\r\n",
            b"x\r\n",
            b"5\nhello\r\n0\r\n\r\n",
            b"5 \r\nhello\r\n0\r\n\r\n",
            b"0x5\r\nhello\r\n0\r\n\r\n",
            b"5\r\nhello0\r\n\r\n",
            b"5\r\nhello\n0\r\n\r\n",
            b"5;\n\r\nhello\r\n0\r\n\r\n",
            b"fffffffffffffffff\r\n",
            b"0\r\nA: b\n\r\n",
        ];
        for body in cases {
            let shown = String::from_utf8_lossy(body);
            for part in [1, 100] {
                let refused = through(body, part);
                assert!(refused.as_ref().is_err_and(|why| *why != "no end"), "{shown:?}: {refused:?}");
            }
        }
        let long = [b"5;".as_slice(), &[b'a'; 2000]].concat();
        assert!(through(&long, 100).is_err_and(|why| why.contains("too long")));
    }

    proptest::proptest! {
        #[test]
        fn the_cuts_make_no_difference(body in proptest::collection::vec(proptest::sample::select(
            b"05a;\r\n x:".to_vec()), 0..60), part in 1_usize..9)
        {
            let whole = through(&body, body.len().max(1));
            let cut = through(&body, part);
            proptest::prop_assert_eq!(whole, cut);
        }
    }
}
