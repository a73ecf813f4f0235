//! What the index holds, a row at a time, as it is written where else it is to be: lines of JSON, packed by gzip. A row says how something
//! is now, not what was done: read twice, or in two parts, it comes to the same.

use std::io::{self, BufRead, BufReader, Read, Write};

use flate2::Compression;
use flate2::read::{GzDecoder, MultiGzDecoder};
use flate2::write::GzEncoder;
use serde::{Deserialize, Serialize};

/// The layout that this build writes, and the newest it knows.
pub const FORMAT: u32 = 1;
/// Longest line that is read, in bytes: a manifest with all that JSON makes of it.
const LONGEST: u64 = 64 << 20;
/// What a segment holds at most before another begins, packed, in bytes.
const LARGE: usize = 4 << 20;

/// Something of the index, as it is; without its value it is gone.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "row", rename_all = "snake_case")]
pub enum Row {
    /// A blob: its bytes.
    Blob {
        /// Which.
        digest: String,
        /// Bytes.
        size: Option<u64>,
        /// What it is called there, behind its digest.
        object: String,
    },
    /// A blob of a repository.
    Link {
        /// Of which.
        repository: String,
        /// Which.
        digest: String,
        /// Whether it is one.
        there: bool,
    },
    /// A manifest of a repository.
    Manifest {
        /// Of which.
        repository: String,
        /// Which.
        digest: String,
        /// When it came, in milliseconds since 1970.
        at: u64,
        /// What kind it is.
        media_type: String,
        /// What is in it.
        text: Option<String>,
    },
    /// A tag of a repository.
    Tag {
        /// Of which.
        repository: String,
        /// It.
        tag: String,
        /// When it was set.
        at: u64,
        /// What it leads to.
        digest: Option<String>,
    },
    /// How the registry is kept.
    Setting {
        /// What is set.
        name: String,
        /// JSON.
        value: Option<String>,
    },
    /// That these were all: so many rows.
    End {
        /// How many.
        rows: u64,
    },
}

/// What a segment begins with.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Head {
    /// Its layout.
    pub format: u32,
    /// Its number; a snapshot's: that of the last segment that it holds.
    pub number: u64,
    /// Who wrote it.
    pub writer: String,
    /// The host on which that was, for people.
    pub host: String,
    /// What tells that host from all others, where that is known.
    pub id: String,
    /// Who was named later has more; 0 where nobody leads.
    pub turn: u64,
    /// The last change that is in it, as this writer counts them.
    pub change: u64,
    /// When, in milliseconds since 1970.
    pub at: u64,
    /// Whether what it is a part of goes on in the next.
    pub more: bool,
    /// Whether whoever wrote it takes all over with it: nobody else writes from here on, and what had begun is over.
    pub claim: bool,
}

// Rows, packed, and how many.
struct Segment(GzEncoder<Vec<u8>>, u64);

fn line(out: &mut impl Write, value: &impl Serialize) -> io::Result<()> {
    serde_json::to_writer(&mut *out, value)?;
    out.write_all(b"\n")
}

impl Default for Segment {
    fn default() -> Self {
        Segment(GzEncoder::new(Vec::new(), Compression::fast()), 0)
    }
}

impl Segment {
    fn end(mut self, head: &Head) -> io::Result<Vec<u8>> {
        line(&mut self.0, &Row::End { rows: self.1 })?;
        // The head is known last, and stands first: two streams of gzip are one.
        let mut first = GzEncoder::new(Vec::new(), Compression::fast());
        line(&mut first, head)?;
        let mut all = first.finish()?;
        all.extend(self.0.finish()?);
        Ok(all)
    }
}

/// One segment without rows.
pub fn bare(head: &Head) -> io::Result<Vec<u8>> {
    Segment::default().end(head)
}

/// Rows as segments that belong together: all but the last say that there are more.
#[derive(Default)]
pub struct Segments {
    now: Segment,
    full: Vec<Segment>,
}

impl Segments {
    /// One row more.
    pub fn push(&mut self, row: &Row) -> io::Result<()> {
        if self.now.0.get_ref().len() >= LARGE {
            self.full.push(std::mem::take(&mut self.now));
        }
        self.now.1 += 1;
        line(&mut self.now.0, row)
    }

    /// Them, numbered from `head`'s number on.
    pub fn end(self, head: &Head) -> io::Result<Vec<Vec<u8>>> {
        let count = self.full.len();
        let all = self.full.into_iter().chain([self.now]).enumerate();
        all.map(|(place, segment)| {
            let number = head.number + place as u64;
            segment.end(&Head { number, more: place < count, ..head.clone() })
        })
        .collect()
    }
}

/// Writes a snapshot: its head, and then all rows that `each` gives.
pub fn write(
    out: impl Write,
    head: &Head,
    each: impl FnOnce(&mut dyn FnMut(Row) -> io::Result<()>) -> io::Result<()>,
) -> io::Result<()> {
    let mut packed = GzEncoder::new(out, Compression::fast());
    line(&mut packed, head)?;
    let mut rows = 0;
    each(&mut |row| {
        rows += 1;
        line(&mut packed, &row)
    })?;
    line(&mut packed, &Row::End { rows })?;
    packed.finish()?.flush()
}

/// Reads a segment or snapshot: its head, and then its rows one after the other.
pub struct Reading<R: Read>(BufReader<MultiGzDecoder<R>>, u64);

fn bad(why: impl std::fmt::Display) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, why.to_string())
}

impl<R: Read> Reading<R> {
    /// Its head.
    pub fn begin(from: R) -> io::Result<(Head, Self)> {
        let mut reading = Reading(BufReader::new(MultiGzDecoder::new(from)), 0);
        let text = reading.line()?.ok_or_else(|| bad("it is empty"))?;
        let head: Head = serde_json::from_slice(&text).map_err(bad)?;
        if head.format > FORMAT {
            return Err(bad(format!("it has format {}; this neap knows up to {FORMAT}", head.format)));
        }
        Ok((head, reading))
    }

    fn line(&mut self) -> io::Result<Option<Vec<u8>>> {
        let mut text = Vec::new();
        (&mut self.0).take(LONGEST).read_until(b'\n', &mut text)?;
        match text.last() {
            None => Ok(None),
            Some(b'\n') => Ok(Some(text)),
            Some(_) => Err(bad("a row is cut off")),
        }
    }

    /// One more row; nothing: those were all of them.
    pub fn row(&mut self) -> io::Result<Option<Row>> {
        let text = self.line()?.ok_or_else(|| bad("its end is missing"))?;
        match serde_json::from_slice(&text).map_err(bad)? {
            // What was packed is compared with its sum at its end only.
            Row::End { rows } if rows == self.1 => match self.line()? {
                None => Ok(None),
                Some(_) => Err(bad("more follows behind its end")),
            },
            Row::End { rows } => Err(bad(format!("it has {} rows of {rows}", self.1))),
            row => {
                self.1 += 1;
                Ok(Some(row))
            }
        }
    }
}

/// The head of a segment alone.
pub fn head(bytes: &[u8]) -> io::Result<Head> {
    let mut first = BufReader::new(GzDecoder::new(bytes));
    let mut text = Vec::new();
    (&mut first).take(LONGEST).read_until(b'\n', &mut text)?;
    serde_json::from_slice(&text).map_err(bad)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn head_of(number: u64) -> Head {
        Head {
            format: FORMAT,
            number,
            writer: "w".into(),
            host: "h".into(),
            id: "i".into(),
            turn: 3,
            change: 4,
            at: 7,
            more: false,
            claim: false,
        }
    }

    #[test]
    fn rows_come_back_as_they_were() {
        let rows = [
            Row::Blob { digest: "sha256:ab".into(), size: Some(7), object: "x".into() },
            Row::Tag { repository: "a/b".into(), tag: "1\"\n".into(), at: 3, digest: None },
        ];
        let mut segments = Segments::default();
        rows.iter().for_each(|row| segments.push(row).unwrap());
        let all = segments.end(&head_of(5)).unwrap();
        assert_eq!(all.len(), 1);
        assert_eq!(super::head(&all[0]).unwrap(), head_of(5));
        let (_, mut reading) = Reading::begin(&all[0][..]).unwrap();
        let read: Vec<Row> = std::iter::from_fn(|| reading.row().unwrap()).collect();
        assert_eq!(read, rows);
    }

    #[test]
    fn what_is_cut_off_is_no_segment() {
        let mut segments = Segments::default();
        segments.push(&Row::Blob { digest: "sha256:ab".into(), size: None, object: String::new() }).unwrap();
        let all = segments.end(&head_of(1)).unwrap().remove(0);
        for length in 0..all.len() {
            let read = Reading::begin(&all[..length]).and_then(|(_, mut reading)| {
                while reading.row()?.is_some() {}
                Ok(())
            });
            assert!(read.is_err(), "{length} of {}", all.len());
        }
    }

    #[test]
    fn many_rows_are_several_segments_that_belong_together() {
        let mut segments = Segments::default();
        let mut seed = 1_u64;
        // What cannot be packed.
        let mut text = || -> String {
            (0..200_000)
                .map(|_| {
                    seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                    char::from(b'!' + (seed >> 33) as u8 % 90)
                })
                .collect()
        };
        for _ in 0..60 {
            segments.push(&Row::Setting { name: "x".into(), value: Some(text()) }).unwrap();
        }
        let all = segments.end(&head_of(9)).unwrap();
        let heads: Vec<Head> = all.iter().map(|segment| super::head(segment).unwrap()).collect();
        assert!(heads.len() > 1, "{}", heads.len());
        assert_eq!(heads[0].number, 9);
        assert_eq!(heads.iter().filter(|head| head.more).count(), heads.len() - 1);
        assert!(heads.windows(2).all(|two| two[1].number == two[0].number + 1 && two[0].more));
    }
}
