//! DNS messages (RFC 1035, EDNS of RFC 6891): reads a question, writes records. A question is read without a copy, and nothing in
//! it is trusted.

use std::net::IpAddr;

/// Types of records.
pub mod kind {
    /// An IPv4 address.
    pub const A: u16 = 1;
    /// A name server.
    pub const NS: u16 = 2;
    /// Another name.
    pub const CNAME: u16 = 5;
    /// Start of authority.
    pub const SOA: u16 = 6;
    /// A name for an address.
    pub const PTR: u16 = 12;
    /// Text.
    pub const TXT: u16 = 16;
    /// An IPv6 address.
    pub const AAAA: u16 = 28;
    /// A service's location.
    pub const SRV: u16 = 33;
    /// EDNS.
    pub const OPT: u16 = 41;
    /// An incremental transfer of a zone.
    pub const IXFR: u16 = 251;
    /// A transfer of a zone.
    pub const AXFR: u16 = 252;
    /// All of them.
    pub const ANY: u16 = 255;
}

/// What becomes of a question.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Code {
    /// All is well.
    NoError = 0,
    /// It could not be read.
    FormErr = 1,
    /// It could not be answered now.
    ServFail = 2,
    /// The name does not exist.
    NxDomain = 3,
    /// This kind of question is not answered.
    NotImp = 4,
    /// It is not answered to you, or not here.
    Refused = 5,
    /// An unknown version of EDNS.
    BadVers = 16,
}

/// The internet's class.
pub const IN: u16 = 1;
/// Size of a message's head.
pub const HEAD: usize = 12;
/// What fits into a datagram where the client says nothing (RFC 1035).
pub const PLAIN: usize = 512;
/// What is sent in one datagram at most, whatever the client says.
pub const LARGEST: usize = 8192;

/// A name as in a message, in small letters: labels with their lengths, and the root's zero.
#[derive(Clone, PartialEq, Eq, Hash, Default)]
pub struct Name(Vec<u8>);

impl std::fmt::Debug for Name {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.labels().map(String::from_utf8_lossy).collect::<Vec<_>>().join("."))
    }
}

impl Name {
    /// From labels; none where one is empty or longer than 63 bytes, or all together than 255.
    pub fn new<'a>(labels: impl IntoIterator<Item = &'a [u8]>) -> Option<Self> {
        let mut name = Vec::with_capacity(64);
        for label in labels {
            let length = u8::try_from(label.len()).ok().filter(|length| (1..=63).contains(length))?;
            name.push(length);
            name.extend(label.iter().map(u8::to_ascii_lowercase));
        }
        name.push(0);
        (name.len() <= 255).then_some(Name(name))
    }

    /// From text with dots.
    pub fn parse(text: &str) -> Option<Self> {
        let text = text.strip_suffix('.').unwrap_or(text);
        match text.is_empty() {
            true => Some(Name(vec![0])),
            false => Name::new(text.split('.').map(str::as_bytes)),
        }
    }

    /// Its labels, from the left.
    pub fn labels(&self) -> impl Iterator<Item = &[u8]> {
        Labels(&self.0)
    }

    /// As in a message.
    pub fn bytes(&self) -> &[u8] {
        &self.0
    }
}

/// Goes through a name's labels.
pub struct Labels<'a>(pub &'a [u8]);

impl<'a> Iterator for Labels<'a> {
    type Item = &'a [u8];

    fn next(&mut self) -> Option<&'a [u8]> {
        let (length, rest) = self.0.split_first()?;
        if *length == 0 {
            return None;
        }
        let (label, rest) = rest.split_at_checked(usize::from(*length))?;
        self.0 = rest;
        Some(label)
    }
}

/// A question, as far as it could be read.
#[derive(Debug, Clone, Copy)]
pub struct Question<'a> {
    /// The name as it was written.
    pub name: &'a [u8],
    /// The type asked for.
    pub kind: u16,
    /// The class.
    pub class: u16,
    /// What the client says of itself.
    pub edns: Option<Edns>,
    /// Where the question ends in the message.
    pub end: usize,
}

/// EDNS, as asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Edns {
    /// The largest datagram that the client takes.
    pub size: u16,
    /// Its version.
    pub version: u8,
    /// Whether it wants signatures.
    pub dnssec: bool,
}

fn word(message: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_be_bytes([*message.get(at)?, *message.get(at + 1)?]))
}

/// Reads a message. None: it is not one that is to be answered. The error: what it is to be answered with.
pub fn read(message: &[u8]) -> Option<Result<Question<'_>, Code>> {
    // Whoever answers an answer goes on for ever.
    if message.len() < HEAD || message[2] & 0x80 != 0 {
        return None;
    }
    if message[2] & 0x78 != 0 {
        return Some(Err(Code::NotImp));
    }
    Some(question(message).ok_or(Code::FormErr))
}

fn question(message: &[u8]) -> Option<Question<'_>> {
    if word(message, 4)? != 1 {
        return None;
    }
    let end = name_end(message, HEAD)?;
    let name = &message[HEAD..end];
    let (kind, class) = (word(message, end)?, word(message, end + 2)?);
    let (before, more) = (u32::from(word(message, 6)?) + u32::from(word(message, 8)?), u32::from(word(message, 10)?));
    let mut at = end + 4;
    let mut edns = None;
    for number in 0..before + more {
        let is_root = *message.get(at)? == 0;
        at = skip_name(message, at)?;
        let (kind, class, length) = (word(message, at)?, word(message, at + 2)?, word(message, at + 8)?);
        if number >= before && kind == kind::OPT {
            // One at most, and of the root.
            if !is_root || edns.is_some() {
                return None;
            }
            edns = Some(Edns { size: class, version: message[at + 5], dnssec: message[at + 6] & 0x80 != 0 });
        }
        at += 10 + usize::from(length);
        if at > message.len() {
            return None;
        }
    }
    Some(Question { name, kind, class, edns, end: end + 4 })
}

// The end of a name without pointers.
fn name_end(message: &[u8], start: usize) -> Option<usize> {
    let mut at = start;
    loop {
        let length = usize::from(*message.get(at)?);
        at += 1 + length;
        if length == 0 {
            return (at - start <= 255).then_some(at);
        }
        if length > 63 {
            return None;
        }
    }
}

/// Where a name ends that may have pointers: with the first.
pub fn skip_name(message: &[u8], start: usize) -> Option<usize> {
    let mut at = start;
    loop {
        let length = usize::from(*message.get(at)?);
        match length {
            0 => return Some(at + 1),
            1..=63 => at += 1 + length,
            192.. => return Some(at + 2),
            _ => return None,
        }
    }
}

/// A record's data.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Data {
    /// An address, of either family.
    Address(IpAddr),
    /// Another name.
    Cname(Name),
    /// A name server.
    Ns(Name),
    /// A name for an address.
    Ptr(Name),
    /// Text, in strings of at most 255 bytes.
    Txt(Vec<u8>),
    /// A service's location.
    Srv {
        /// Its share.
        weight: u16,
        /// The port.
        port: u16,
        /// The host.
        target: Name,
    },
    /// Start of authority.
    Soa {
        /// The first name server.
        server: Name,
        /// Whom to write to.
        mail: Name,
        /// How long a name is not asked for again that did not exist, in seconds.
        minimum: u32,
    },
}

impl Data {
    fn kind(&self) -> u16 {
        match self {
            Data::Address(IpAddr::V4(_)) => kind::A,
            Data::Address(IpAddr::V6(_)) => kind::AAAA,
            Data::Cname(_) => kind::CNAME,
            Data::Ns(_) => kind::NS,
            Data::Ptr(_) => kind::PTR,
            Data::Txt(_) => kind::TXT,
            Data::Srv { .. } => kind::SRV,
            Data::Soa { .. } => kind::SOA,
        }
    }

    /// Writes all of a record behind its owner's name.
    pub fn write(&self, ttl: u32, out: &mut Vec<u8>) {
        out.extend(self.kind().to_be_bytes());
        out.extend(IN.to_be_bytes());
        out.extend(ttl.to_be_bytes());
        let at = out.len();
        out.extend([0, 0]);
        match self {
            Data::Address(IpAddr::V4(address)) => out.extend(address.octets()),
            Data::Address(IpAddr::V6(address)) => out.extend(address.octets()),
            Data::Cname(name) | Data::Ns(name) | Data::Ptr(name) => out.extend(name.bytes()),
            Data::Txt(text) => {
                let pieces = text.chunks(255);
                if text.is_empty() {
                    out.push(0);
                }
                for piece in pieces {
                    out.push(piece.len() as u8);
                    out.extend(piece);
                }
            }
            Data::Srv { weight, port, target } => {
                // All have the same priority.
                out.extend(1_u16.to_be_bytes());
                out.extend(weight.to_be_bytes());
                out.extend(port.to_be_bytes());
                // Never with a pointer (RFC 2782).
                out.extend(target.bytes());
            }
            Data::Soa { server, mail, minimum } => {
                out.extend(server.bytes());
                out.extend(mail.bytes());
                // Serial, refresh, retry, expire: nobody transfers this zone.
                for number in [1, 3600, 600, 86400, *minimum] {
                    out.extend(number.to_be_bytes());
                }
            }
        }
        let length = u16::try_from(out.len() - at - 2).unwrap_or(u16::MAX);
        out[at..at + 2].copy_from_slice(&length.to_be_bytes());
    }
}

/// Where a record's owner is the question's own name: a pointer to it.
pub const ASKED: [u8; 2] = [0xC0, HEAD as u8];

/// What an answer's head says.
#[derive(Debug, Clone, Copy)]
pub struct Head {
    /// What became of it.
    pub code: Code,
    /// Whether whoever answers knows the name first-hand.
    pub authoritative: bool,
    /// Whether names of others are looked up as well.
    pub recursion: bool,
}

/// Begins an answer: the head without counts, and the question as it was asked.
pub fn begin(message: &[u8], question_end: Option<usize>, head: Head, out: &mut Vec<u8>) {
    out.clear();
    out.extend(&message[..2]);
    let asked = message[2] & 0x79;
    out.push(0x80 | asked | if head.authoritative { 0x04 } else { 0 });
    out.push((head.code as u8 & 0x0F) | if head.recursion { 0x80 } else { 0 });
    out.extend([0, u8::from(question_end.is_some()), 0, 0, 0, 0, 0, 0]);
    if let Some(end) = question_end {
        out.extend(&message[HEAD..end]);
    }
}

/// Says how many records follow: answers, authorities, others.
pub fn count(out: &mut [u8], counts: [u16; 3]) {
    for (at, count) in [6, 8, 10].into_iter().zip(counts) {
        out[at..at + 2].copy_from_slice(&count.to_be_bytes());
    }
}

/// Says that there is more than fits.
pub fn truncate(out: &mut [u8]) {
    out[2] |= 0x02;
}

/// What an EDNS record takes.
pub const EDNS: usize = 11;

/// Answers EDNS with its like.
pub fn write_edns(code: Code, dnssec: bool, out: &mut Vec<u8>) {
    out.push(0);
    out.extend(kind::OPT.to_be_bytes());
    out.extend((LARGEST as u16).to_be_bytes());
    out.extend([code as u8 >> 4, 0, if dnssec { 0x80 } else { 0 }, 0, 0, 0]);
}
