//! Heads as they go on: without what was of one connection alone, with what the next one needs to know.

use std::io::Write;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use super::head::{Body, Head, Kind};
use super::routes::Way;
use super::tally::Tally;
use crate::model::route::{RouteSpec, plain_path};
use crate::network::balancer::hook::cookie_of;

/// By way of whom a request came.
#[derive(Debug, Clone)]
pub struct From {
    /// The address that it came from.
    pub ip: IpAddr,
    /// The port that it came from.
    pub peer_port: u16,
    /// The address in words.
    pub address: std::rc::Rc<str>,
    /// The port that it came to.
    pub port: u16,
    /// Whether it came by TLS.
    pub is_secure: bool,
    /// Where it is counted.
    pub tally: Arc<Tally>,
}

impl From {
    /// Somebody at an address, who came to a port.
    pub fn new(client: SocketAddr, port: u16, tally: &Arc<Tally>) -> Self {
        let ip = client.ip().to_canonical();
        let (address, tally) = (ip.to_string().into(), tally.clone());
        From { ip, peer_port: client.port(), address, port, is_secure: false, tally }
    }

    /// The scheme of what it asked for.
    pub fn scheme(&self) -> &'static str {
        if self.is_secure { "https" } else { "http" }
    }
}

/// Fields that say by way of whom a request came.
const SAID: [&str; 4] = ["x-forwarded-for", "x-forwarded-proto", "x-forwarded-host", "x-forwarded-port"];

/// Whether a field is one of those that are written anew.
pub fn is_said(name: &[u8]) -> bool {
    SAID.iter().any(|said| name.eq_ignore_ascii_case(said.as_bytes()))
}

/// What a proxy that is trusted has said of a request, and what is added to it.
pub struct Said([String; 4]);

impl Said {
    /// `value` is what it said in a field, all of it.
    pub fn of(spec: &RouteSpec, from: &From, host: &[u8], value: impl Fn(&str) -> Option<String>) -> Self {
        debug_assert!(spec.trusts(from.ip), "asked of those that are trusted alone");
        let chain = match value(SAID[0]) {
            Some(before) => format!("{before}, {}", from.address),
            None => from.address.to_string(),
        };
        let scheme = value(SAID[1]).unwrap_or_else(|| from.scheme().to_owned());
        let host = value(SAID[2]).unwrap_or_else(|| String::from_utf8_lossy(host).into_owned());
        let port = value(SAID[3]).unwrap_or_else(|| from.port.to_string());
        Said([chain, scheme, host, port])
    }

    /// Names and values.
    pub fn fields(&self) -> impl Iterator<Item = (&'static str, &str)> {
        SAID.into_iter().zip(self.0.iter().map(String::as_str)).filter(|(_, value)| !value.is_empty())
    }
}

/// The client's address: the last one of the chain that no trusted proxy has.
pub fn client(spec: &RouteSpec, from: &From, chain: Option<&str>) -> String {
    if !spec.trusts(from.ip) {
        return from.address.to_string();
    }
    let chain = chain.unwrap_or_default().rsplit(',').map(str::trim);
    let addresses = chain.filter_map(|text| text.parse::<IpAddr>().ok());
    let client = addresses.map(|address| address.to_canonical()).find(|address| !spec.trusts(*address));
    client.map_or_else(|| from.address.to_string(), |address| address.to_string())
}

/// A request's head for the replica.
pub fn request(out: &mut Vec<u8>, bytes: &[u8], head: &Head, way: &Way, from: &From) {
    out.extend_from_slice(head.method.of(bytes));
    out.push(b' ');
    target(out, head.target.of(bytes), way);
    out.extend_from_slice(if head.is_old { b" HTTP/1.0\r\n" } else { b" HTTP/1.1\r\n" });
    let host = head.host.of(bytes);
    if !host.is_empty() || !head.is_old {
        field(out, b"Host", host);
    }
    let trusts = way.spec.trusts(from.ip);
    for known in &head.fields {
        let goes = match known.kind {
            Kind::Hop | Kind::Host => false,
            Kind::Forwarded => trusts && !is_said(known.name.of(bytes)),
            _ => true,
        };
        if goes {
            field(out, known.name.of(bytes), known.value.of(bytes));
        }
    }
    // "trailers" alone may be asked for by this hop (RFC 9110, 10.1.4); others' words are not passed on.
    match head.upgrade {
        Some(to) => {
            out.extend_from_slice(b"Connection: upgrade\r\n");
            field(out, b"Upgrade", to.of(bytes));
        }
        None if head.is_old => out.extend_from_slice(b"Connection: keep-alive\r\n"),
        None => {}
    }
    if trusts {
        let said = Said::of(&way.spec, from, host, |name| head.values(bytes, name));
        for (name, value) in said.fields() {
            field(out, name.as_bytes(), value.as_bytes());
        }
    } else {
        // What a client says of itself is no proof of anything.
        field(out, b"X-Forwarded-For", from.address.as_bytes());
        field(out, b"X-Forwarded-Proto", from.scheme().as_bytes());
        if !host.is_empty() {
            field(out, b"X-Forwarded-Host", host);
        }
        let _ = write!(out, "X-Forwarded-Port: {}\r\n", from.port);
    }
    if way.spec.strip_path {
        field(out, b"X-Forwarded-Prefix", way.spec.prefix().as_bytes());
    }
    out.extend_from_slice(b"\r\n");
}

/// What is asked for of the replica.
pub fn target(out: &mut Vec<u8>, target: &[u8], way: &Way) {
    if target.is_empty() {
        out.push(b'/');
        return;
    }
    if !way.spec.strip_path {
        out.extend_from_slice(target);
        return;
    }
    let cut = memchr::memchr(b'?', target).unwrap_or(target.len());
    let (path, query) = target.split_at(cut);
    let prefix = way.spec.prefix().as_bytes();
    match path.strip_prefix(prefix) {
        Some(rest) if rest.is_empty() || rest[0] == b'/' => {
            if rest.is_empty() {
                out.push(b'/');
            }
            out.extend_from_slice(rest);
        }
        // Written in another way: it goes on as it was understood.
        _ => {
            let plain = std::str::from_utf8(path).ok().and_then(|path| plain_path(path).ok()).unwrap_or_default();
            let rest = plain.strip_prefix(way.prefix.as_str()).filter(|rest| !rest.is_empty()).unwrap_or("/");
            for byte in rest.bytes() {
                match byte {
                    b'"' | b'<' | b'>' | b'?' | b'#' | b'`' | b'{' | b'}' => _ = write!(out, "%{byte:02X}"),
                    byte if byte.is_ascii_graphic() => out.push(byte),
                    byte => _ = write!(out, "%{byte:02X}"),
                }
            }
        }
    }
    out.extend_from_slice(query);
}

/// A response's head for the client. `keeps`: more may follow on its connection; `cookie`: what it is to come back with.
pub fn response(out: &mut Vec<u8>, bytes: &[u8], head: &Head, keeps: bool, to_old: bool, cookie: Option<&str>) {
    let _ = write!(out, "HTTP/1.1 {} ", head.status);
    out.extend_from_slice(head.reason.of(bytes));
    out.extend_from_slice(b"\r\n");
    for known in &head.fields {
        // A body that ends with the connection has no coding.
        let is_gone = known.kind == Kind::Hop || known.kind == Kind::Coding && head.body != Body::Chunked;
        if !is_gone {
            field(out, known.name.of(bytes), known.value.of(bytes));
        }
    }
    if head.body == Body::ToEnd && !to_old {
        out.extend_from_slice(b"Transfer-Encoding: chunked\r\n");
    }
    if let Some(cookie) = cookie {
        field(out, b"Set-Cookie", cookie.as_bytes());
    }
    match head.upgrade.filter(|_| head.status == 101) {
        Some(to) => {
            out.extend_from_slice(b"Connection: upgrade\r\n");
            field(out, b"Upgrade", to.of(bytes));
        }
        None if head.status < 200 => {}
        None if !keeps => out.extend_from_slice(b"Connection: close\r\n"),
        None if to_old => out.extend_from_slice(b"Connection: keep-alive\r\n"),
        None => {}
    }
    out.extend_from_slice(b"\r\n");
}

/// An answer of our own.
pub fn own(out: &mut Vec<u8>, status: u16, fields: &[(&str, &str)], text: &str, keeps: bool, with_body: bool) {
    let _ = write!(out, "HTTP/1.1 {status} {}\r\n", reason(status));
    for (name, value) in fields {
        field(out, name.as_bytes(), value.as_bytes());
    }
    let _ = write!(out, "Content-Type: text/plain; charset=utf-8\r\nContent-Length: {}\r\n", text.len());
    out.extend_from_slice(if keeps { b"\r\n" } else { b"Connection: close\r\n\r\n" });
    if with_body {
        out.extend_from_slice(text.as_bytes());
    }
}

/// A status in words.
pub fn reason(status: u16) -> &'static str {
    hyper::StatusCode::from_u16(status).ok().and_then(|status| status.canonical_reason()).unwrap_or("")
}

fn field(out: &mut Vec<u8>, name: &[u8], value: &[u8]) {
    out.extend_from_slice(name);
    out.extend_from_slice(b": ");
    out.extend_from_slice(value);
    out.extend_from_slice(b"\r\n");
}

/// What a client is to come back with, so that it comes to the same replica.
pub fn set_cookie(name: &str, mark: &str, from: &From) -> String {
    let secure = if from.is_secure { "; Secure" } else { "" };
    format!("{name}={mark}; Path=/; HttpOnly; SameSite=Lax{secure}")
}

/// A cookie's value.
pub fn cookie<'a>(bytes: &'a [u8], head: &Head, name: &str) -> Option<&'a [u8]> {
    let cookies = head.fields.iter().filter(|field| field.kind == Kind::Cookie);
    cookie_of(cookies.map(|field| field.value.of(bytes)), name)
}
