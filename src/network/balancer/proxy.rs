//! The PROXY protocol, versions 1 and 2, as HAProxy has described it: a word at the beginning of a connection on whose it is.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use tokio::io::{AsyncRead, AsyncReadExt};

use crate::model::route::ProxyVersion;

/// How one of version 2 begins.
const SIGNATURE: [u8; 12] = *b"\r\n\r\n\0\r\nQUIT\n";
/// Longest of version 1, and of what follows the head of version 2, in bytes.
const MAX_LINE: usize = 107;
const MAX_REST: usize = 2048;

/// Whose a connection is: the client's address, and the one that it came to; nothing where it is the proxy's own.
pub type Whose = Option<(SocketAddr, SocketAddr)>;

/// Reads the word, and no byte more.
pub async fn read(stream: &mut (impl AsyncRead + Unpin)) -> io::Result<Whose> {
    let wrong = || io::Error::from(io::ErrorKind::InvalidData);
    let mut begin = [0; 12];
    stream.read_exact(&mut begin).await?;
    if begin == SIGNATURE {
        let mut head = [0; 4];
        stream.read_exact(&mut head).await?;
        let length = usize::from(u16::from_be_bytes([head[2], head[3]]));
        if length > MAX_REST {
            return Err(wrong());
        }
        let mut rest = vec![0; length];
        stream.read_exact(&mut rest).await?;
        return version_2(head[0], head[1], &rest).ok_or_else(wrong);
    }
    if !begin.starts_with(b"PROXY ") {
        return Err(wrong());
    }
    let mut line = begin.to_vec();
    while !line.ends_with(b"\r\n") {
        if line.len() >= MAX_LINE {
            return Err(wrong());
        }
        line.push(stream.read_u8().await?);
    }
    version_1(&line).ok_or_else(wrong)
}

/// What a beginning of a connection says.
#[derive(Debug, PartialEq, Eq)]
pub enum Parsed {
    /// Not whole yet.
    More,
    /// Whose it is, and how many bytes said so.
    Word(Whose, usize),
    /// It is no such word.
    Wrong,
}

/// Longest word, in bytes.
pub const LONGEST: usize = SIGNATURE.len() + 4 + MAX_REST;

/// Reads the word from what has come so far.
pub fn parse(bytes: &[u8]) -> Parsed {
    let begins = |with: &[u8]| bytes.iter().zip(with).all(|(byte, wanted)| byte == wanted);
    let word = |whose: Option<Whose>, length| whose.map_or(Parsed::Wrong, |whose| Parsed::Word(whose, length));
    if begins(&SIGNATURE) {
        let Some(head) = bytes.get(SIGNATURE.len()..SIGNATURE.len() + 4) else { return Parsed::More };
        let length = usize::from(u16::from_be_bytes([head[2], head[3]]));
        let begin = SIGNATURE.len() + 4;
        return match bytes.get(begin..begin + length) {
            _ if length > MAX_REST => Parsed::Wrong,
            Some(rest) => word(version_2(head[0], head[1], rest), begin + length),
            None => Parsed::More,
        };
    }
    if !begins(b"PROXY ") {
        return Parsed::Wrong;
    }
    let line = &bytes[..bytes.len().min(MAX_LINE)];
    match memchr::memchr(b'\n', line) {
        Some(end) => word(version_1(&line[..=end]), end + 1),
        None if line.len() == MAX_LINE => Parsed::Wrong,
        None => Parsed::More,
    }
}

fn version_1(line: &[u8]) -> Option<Whose> {
    let text = std::str::from_utf8(line).ok()?.strip_suffix("\r\n")?;
    let words: Vec<&str> = text.split(' ').collect();
    match words[..] {
        ["PROXY", "UNKNOWN", ..] => Some(None),
        ["PROXY", family @ ("TCP4" | "TCP6"), from, to, from_port, to_port] => {
            let address = |ip: &str, port: &str| {
                let ip: IpAddr = ip.parse().ok()?;
                (ip.is_ipv4() == (family == "TCP4")).then_some(SocketAddr::new(ip, port.parse().ok()?))
            };
            Some(Some((address(from, from_port)?, address(to, to_port)?)))
        }
        _ => None,
    }
}

fn version_2(command: u8, family: u8, rest: &[u8]) -> Option<Whose> {
    let port = |at: usize| Some(u16::from_be_bytes(rest.get(at..at + 2)?.try_into().ok()?));
    match (command, family) {
        (0x20, _) => Some(None),
        (0x21, 0x11) => {
            let ip = |at: usize| Some(Ipv4Addr::from(<[u8; 4]>::try_from(rest.get(at..at + 4)?).ok()?));
            let address = |ip: Ipv4Addr, port: u16| SocketAddr::new(ip.into(), port);
            Some(Some((address(ip(0)?, port(8)?), address(ip(4)?, port(10)?))))
        }
        (0x21, 0x21) => {
            let ip = |at: usize| Some(Ipv6Addr::from(<[u8; 16]>::try_from(rest.get(at..at + 16)?).ok()?));
            let address = |ip: Ipv6Addr, port: u16| SocketAddr::new(ip.into(), port);
            Some(Some((address(ip(0)?, port(32)?), address(ip(16)?, port(34)?))))
        }
        // What else it may be of has no address that is of use here.
        (0x21, _) => Some(None),
        _ => None,
    }
}

/// The word that a connection of `from` to `to` begins with.
pub fn write(out: &mut Vec<u8>, version: ProxyVersion, from: SocketAddr, to: SocketAddr) {
    // Both in one family.
    let (mut from, mut to) = (from, to);
    if from.is_ipv4() != to.is_ipv4() {
        let wide = |address: SocketAddr| match address.ip() {
            IpAddr::V4(ip) => SocketAddr::new(ip.to_ipv6_mapped().into(), address.port()),
            IpAddr::V6(_) => address,
        };
        (from, to) = (wide(from), wide(to));
    }
    match version {
        ProxyVersion::V1 => {
            let family = if from.is_ipv4() { "TCP4" } else { "TCP6" };
            let line = format!("PROXY {family} {} {} {} {}\r\n", from.ip(), to.ip(), from.port(), to.port());
            out.extend_from_slice(line.as_bytes());
        }
        ProxyVersion::V2 => {
            out.extend_from_slice(&SIGNATURE);
            out.push(0x21);
            let addresses = match (from.ip(), to.ip()) {
                (IpAddr::V4(from), IpAddr::V4(to)) => {
                    out.push(0x11);
                    [from.octets(), to.octets()].concat()
                }
                (from, to) => {
                    out.push(0x21);
                    let octets = |ip: IpAddr| match ip {
                        IpAddr::V4(ip) => ip.to_ipv6_mapped().octets(),
                        IpAddr::V6(ip) => ip.octets(),
                    };
                    [octets(from), octets(to)].concat()
                }
            };
            out.extend_from_slice(&(addresses.len() as u16 + 4).to_be_bytes());
            out.extend_from_slice(&addresses);
            out.extend_from_slice(&from.port().to_be_bytes());
            out.extend_from_slice(&to.port().to_be_bytes());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn through(bytes: &[u8]) -> io::Result<(Whose, Vec<u8>)> {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let mut rest = bytes;
        let whose = runtime.block_on(read(&mut rest))?;
        Ok((whose, rest.to_vec()))
    }

    #[test]
    fn what_is_written_is_read() {
        let pairs = [("1.2.3.4:5", "6.7.8.9:80"), ("[2001:db8::1]:5", "[::1]:80"), ("1.2.3.4:5", "[::1]:80")];
        for (from, to) in
            pairs.map(|(from, to)| (from.parse::<SocketAddr>().unwrap(), to.parse::<SocketAddr>().unwrap()))
        {
            for version in [ProxyVersion::V1, ProxyVersion::V2] {
                let mut out = Vec::new();
                write(&mut out, version, from, to);
                out.extend_from_slice(b"GET /");
                let (whose, rest) = through(&out).unwrap();
                let (told_from, told_to) = whose.unwrap();
                assert_eq!((told_from.ip().to_canonical(), told_from.port()), (from.ip(), from.port()));
                assert_eq!((told_to.ip().to_canonical(), told_to.port()), (to.ip(), to.port()));
                assert_eq!(rest, b"GET /");
            }
        }
    }

    #[test]
    fn what_is_none_is_refused() {
        let long = format!("PROXY TCP4 1.2.3.4 {}\r\n", "5".repeat(200));
        for wrong in [
            "GET / HTTP/1.1\r\n\r\n",
            "PROXY TCP4 1.2.3.4 5.6.7.8 9\r\n",
            "PROXY TCP4 ::1 ::1 9 80\r\n",
            "PROXY TCP4 1.2.3.4 5.6.7.8 9 99999\r\n",
            "PROXY UDP4 1.2.3.4 5.6.7.8 9 80\r\n",
            &long,
            "PROX",
        ] {
            assert!(through(wrong.as_bytes()).is_err(), "{wrong}");
        }
        assert_eq!(through(b"PROXY UNKNOWN ffff::1 x y\r\nrest").unwrap(), (None, b"rest".to_vec()));
        assert!(through(&[&SIGNATURE[..], &[0x11, 0x11, 0, 0]].concat()).is_err(), "version 1 in version 2's words");
        assert!(through(&[&SIGNATURE[..], &[0x21, 0x11, 0, 4, 1, 2, 3, 4]].concat()).is_err(), "too short");
        assert!(through(&[&SIGNATURE[..], &[0x21, 0x11, 0xff, 0xff]].concat()).is_err(), "too long");
        assert_eq!(
            through(&[&SIGNATURE[..], &[0x20, 0, 0, 0]].concat()).unwrap().0,
            None,
            "a proxy that asks for itself"
        );
    }

    proptest::proptest! {
        #[test]
        fn any_bytes_are_read_or_refused(bytes in proptest::collection::vec(proptest::prelude::any::<u8>(), 0..80), two in proptest::bool::ANY) {
            let begin: &[u8] = if two { &SIGNATURE } else { b"PROXY TCP4 " };
            let all = [begin, &bytes].concat();
            let both = through(&all).ok().map(|(whose, rest)| (whose, all.len() - rest.len()));
            let parsed = match parse(&all) {
                Parsed::Word(whose, length) => Some((whose, length)),
                Parsed::More | Parsed::Wrong => None,
            };
            proptest::prop_assert_eq!(both, parsed);
            // What is read whole was not whole before.
            if let Some((_, length)) = parsed {
                (0..length).for_each(|cut| assert_eq!(parse(&all[..cut]), Parsed::More, "{cut} of {all:?}"));
            }
        }
    }
}
