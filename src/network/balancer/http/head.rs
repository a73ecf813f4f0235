//! Heads of HTTP/1.1 as they are on the wire: what they say of themselves and of the body behind them. What two programs could
//! read in two ways is refused, so that nobody smuggles a request past a route (RFC 9112, 11.2).

/// Longest head, in bytes.
pub const MAX_HEAD: usize = 64 * 1024;
/// Most fields of a head.
pub const MAX_FIELDS: usize = 128;
/// Most fields that a connection names as its own.
const MAX_TOKENS: usize = 32;

/// A stretch of the bytes that a head was read from.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Span {
    start: u32,
    end: u32,
}

impl Span {
    /// What it spans.
    pub fn of(self, bytes: &[u8]) -> &[u8] {
        &bytes[self.start as usize..self.end as usize]
    }

    fn new(bytes: &[u8], part: &[u8]) -> Self {
        // What is empty may be anywhere.
        if part.is_empty() {
            return Span::default();
        }
        let start = part.as_ptr() as usize - bytes.as_ptr() as usize;
        Span { start: start as u32, end: (start + part.len()) as u32 }
    }
}

/// What a field is to whoever passes it on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Goes on as it is.
    Other,
    /// Is of this connection alone.
    Hop,
    /// Where a request goes.
    Host,
    /// Says how long the body is.
    Length,
    /// Says how the body is cut.
    Coding,
    /// Says by way of whom it came.
    Forwarded,
    /// Cookies of a request.
    Cookie,
}

/// A field.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Field {
    /// Its name.
    pub name: Span,
    /// Its value.
    pub value: Span,
    /// What it is to us.
    pub kind: Kind,
}

/// How a body ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Body {
    /// There is none.
    #[default]
    None,
    /// After so many bytes.
    Length(u64),
    /// With its last chunk.
    Chunked,
    /// With the connection.
    ToEnd,
}

/// Why a head is not taken: a status and a reason to tell.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Bad {
    /// The status to answer.
    pub status: u16,
    /// Why.
    pub why: &'static str,
}

const fn bad<T>(status: u16, why: &'static str) -> Result<T, Bad> {
    Err(Bad { status, why })
}

/// The head of a request or of a response.
#[derive(Debug, Default)]
pub struct Head {
    /// How many bytes it takes.
    pub length: usize,
    /// A request's method.
    pub method: Span,
    /// A request's path with its query.
    pub target: Span,
    /// A request's host, with its port if it names one.
    pub host: Span,
    /// A response's status.
    pub status: u16,
    /// A response's reason.
    pub reason: Span,
    /// Its fields in order.
    pub fields: Vec<Field>,
    /// How its body ends.
    pub body: Body,
    /// Whether it says how long a body is, or that there is one in chunks.
    pub has_length: bool,
    /// Whether the connection goes on behind it.
    pub keeps: bool,
    /// Whether it is of HTTP/1.0.
    pub is_old: bool,
    /// What the connection is to be turned into.
    pub upgrade: Option<Span>,
}

/// Where a head ends, if it does: to be asked before it is read, so that what comes byte by byte is read once. `from` is how far it was
/// looked at before.
pub fn end(bytes: &[u8], from: usize) -> Option<usize> {
    let begin = from.saturating_sub(3);
    memchr::memmem::find(&bytes[begin..], b"\r\n\r\n").map(|at| begin + at + 4)
}

impl Head {
    fn clear(&mut self) {
        let mut fields = std::mem::take(&mut self.fields);
        fields.clear();
        *self = Head { fields, keeps: true, ..Head::default() };
    }

    /// Reads a request's head, which is whole.
    pub fn read_request(&mut self, bytes: &[u8]) -> Result<(), Bad> {
        self.clear();
        let mut fields = [httparse::EMPTY_HEADER; MAX_FIELDS];
        let mut request = httparse::Request::new(&mut fields);
        self.length = parsed(request.parse(bytes))?;
        has_strict_lines(&bytes[..self.length])?;
        self.is_old = request.version == Some(0);
        self.keeps = !self.is_old;
        let (method, target) = (request.method.unwrap_or_default(), request.path.unwrap_or_default());
        self.method = Span::new(bytes, method.as_bytes());
        if method == "CONNECT" {
            return bad(405, "this is no forward proxy");
        }
        // A fragment is none of a request's (RFC 9112, 3.2), and what is behind it would be hidden from the routes.
        let is_plain = |byte: u8| byte.is_ascii_graphic() && byte != b'#';
        if !target.bytes().all(is_plain) {
            return bad(400, "the target holds what no URL may hold");
        }
        // The host of a target is more than the field's (RFC 9112, 3.2.2).
        let rest = ["http://", "https://"].iter().find_map(|scheme| strip_case(target, scheme));
        let (authority, path) = match rest {
            Some(rest) => {
                let cut = rest.find(['/', '?']).unwrap_or(rest.len());
                (Some(&rest[..cut]), &rest[cut..])
            }
            None => (None, target),
        };
        let is_whole = path == "*" && method == "OPTIONS";
        let is_root = authority.is_some() && path.is_empty();
        if !is_whole && !is_root && !path.starts_with('/') {
            return bad(400, "the target is no path");
        }
        // Empty: the "/" that it stands for is no part of what came.
        self.target = Span::new(bytes, path.as_bytes());
        let fields = request.headers;
        let hosts = self.take_fields(bytes, fields)?;
        if hosts > 1 {
            return bad(400, "more than one Host");
        }
        if hosts == 0 && !self.is_old {
            return bad(400, "no Host");
        }
        if let Some(authority) = authority {
            self.host = Span::new(bytes, authority.as_bytes());
        }
        if !is_host(self.host.of(bytes)) {
            return bad(400, "the Host is none");
        }
        if self.body == Body::Chunked && self.is_old {
            return bad(400, "chunks in HTTP/1.0");
        }
        Ok(())
    }

    /// Reads a response's head, which is whole. `to_head`: it answers a HEAD.
    pub fn read_response(&mut self, bytes: &[u8], to_head: bool) -> Result<(), Bad> {
        self.clear();
        let mut fields = [httparse::EMPTY_HEADER; MAX_FIELDS];
        let mut response = httparse::Response::new(&mut fields);
        self.length = parsed(response.parse(bytes))?;
        self.is_old = response.version == Some(0);
        self.keeps = !self.is_old;
        self.status = response.code.unwrap_or_default();
        self.reason = Span::new(bytes, response.reason.unwrap_or_default().as_bytes());
        if self.status < 100 {
            return bad(502, "a status below 100");
        }
        self.body = Body::ToEnd;
        self.take_fields(bytes, response.headers)?;
        if to_head || matches!(self.status, 100..200 | 204 | 304) {
            self.body = Body::None;
        }
        if self.body == Body::ToEnd {
            self.keeps = false;
        }
        Ok(())
    }

    // How many hosts there were.
    fn take_fields(&mut self, bytes: &[u8], fields: &[httparse::Header]) -> Result<usize, Bad> {
        let (mut hosts, mut length, mut coded) = (0, None, false);
        let (mut upgrades, mut upgrade) = (false, None);
        for field in fields {
            let kind = kind(field.name);
            let value = field.value;
            let spans = Field { name: Span::new(bytes, field.name.as_bytes()), value: Span::new(bytes, value), kind };
            match kind {
                Kind::Host => {
                    hosts += 1;
                    self.host = spans.value;
                }
                Kind::Length => {
                    let number = number(value).ok_or(Bad { status: 400, why: "Content-Length is no number" })?;
                    if length.replace(number).is_some() {
                        return bad(400, "more than one Content-Length");
                    }
                }
                Kind::Coding if coded || !value.eq_ignore_ascii_case(b"chunked") => {
                    return bad(501, "a Transfer-Encoding other than chunked");
                }
                Kind::Coding => coded = true,
                Kind::Hop if field.name.eq_ignore_ascii_case("connection") => {
                    for token in tokens(value) {
                        if token.eq_ignore_ascii_case(b"close") {
                            self.keeps = false;
                        } else if token.eq_ignore_ascii_case(b"keep-alive") && self.is_old {
                            self.keeps = true;
                        } else if token.eq_ignore_ascii_case(b"upgrade") {
                            upgrades = true;
                        }
                    }
                }
                Kind::Hop if field.name.eq_ignore_ascii_case("upgrade") => upgrade = Some(spans.value),
                _ => {}
            }
            self.fields.push(spans);
        }
        // What the connection names is of it alone; never what says whither and how long, or by way of whom it came.
        for at in 0..self.fields.len() {
            let field = self.fields[at];
            if field.kind == Kind::Hop && field.name.of(bytes).eq_ignore_ascii_case(b"connection") {
                if tokens(field.value.of(bytes)).nth(MAX_TOKENS).is_some() {
                    return bad(400, "Connection names too many fields");
                }
                for token in tokens(field.value.of(bytes)) {
                    for named in self.fields.iter_mut().filter(|field| matches!(field.kind, Kind::Other | Kind::Cookie))
                    {
                        if named.name.of(bytes).eq_ignore_ascii_case(token) {
                            named.kind = Kind::Hop;
                        }
                    }
                }
            }
        }
        // To HTTP/2 it would go past the routes, and past every bound (RFC 9113, 3.1 has done away with it).
        let is_http = |to: &Span| tokens(to.of(bytes)).any(|to| to.len() >= 2 && to[..2].eq_ignore_ascii_case(b"h2"));
        self.upgrade = upgrade.filter(|to| upgrades && !self.is_old && !is_http(to));
        self.has_length = length.is_some() || coded;
        match (length, coded) {
            (Some(_), true) => return bad(400, "both Content-Length and Transfer-Encoding"),
            (Some(0), false) => self.body = Body::None,
            (Some(length), false) => self.body = Body::Length(length),
            (None, true) => self.body = Body::Chunked,
            (None, false) => {}
        }
        Ok(hosts)
    }

    /// What fields of a name say together.
    pub fn values(&self, bytes: &[u8], name: &str) -> Option<String> {
        let found = self.fields.iter().filter(|field| field.name.of(bytes).eq_ignore_ascii_case(name.as_bytes()));
        let texts: Vec<&str> = found.filter_map(|field| std::str::from_utf8(field.value.of(bytes)).ok()).collect();
        (!texts.is_empty()).then(|| texts.join(", "))
    }

    /// A field's value by its name, the first.
    pub fn value<'a>(&self, bytes: &'a [u8], name: &str) -> Option<&'a [u8]> {
        let found = self.fields.iter().find(|field| field.name.of(bytes).eq_ignore_ascii_case(name.as_bytes()));
        found.map(|field| field.value.of(bytes))
    }
}

fn parsed(result: httparse::Result<usize>) -> Result<usize, Bad> {
    match result {
        Ok(httparse::Status::Complete(length)) => Ok(length),
        Ok(httparse::Status::Partial) => bad(400, "the head ends in its middle"),
        Err(httparse::Error::TooManyHeaders) => bad(431, "too many fields"),
        Err(httparse::Error::Version) => bad(505, "an unknown version of HTTP"),
        Err(_) => bad(400, "this is no HTTP"),
    }
}

// A line ends with CR LF; what ends it with LF alone, or holds a CR, is read by some as one line and by others as two.
fn has_strict_lines(head: &[u8]) -> Result<(), Bad> {
    for at in memchr::memchr_iter(b'\n', head) {
        if at == 0 || head[at - 1] != b'\r' {
            return bad(400, "a line ends without CR");
        }
    }
    Ok(())
}

fn strip_case<'a>(text: &'a str, prefix: &str) -> Option<&'a str> {
    let head = text.get(..prefix.len())?;
    head.eq_ignore_ascii_case(prefix).then(|| &text[prefix.len()..])
}

fn number(value: &[u8]) -> Option<u64> {
    if value.is_empty() || value.len() > 19 || !value.iter().all(u8::is_ascii_digit) {
        return None;
    }
    std::str::from_utf8(value).ok()?.parse().ok()
}

/// The words of a list, between commas.
pub fn tokens(value: &[u8]) -> impl Iterator<Item = &[u8]> {
    value.split(|byte| *byte == b',').map(<[u8]>::trim_ascii).filter(|token| !token.is_empty())
}

fn is_host(host: &[u8]) -> bool {
    let plain = |byte: &u8| byte.is_ascii_alphanumeric() || b"-._:[]%~!$&'()*+;=".contains(byte);
    host.len() <= 300 && host.iter().all(plain)
}

/// What a field of this name is.
pub fn kind(name: &str) -> Kind {
    // Programs that are handed fields as variables read "_" and "-" alike: nobody says by that what is ours to say.
    if name.contains('_') {
        let plain = plain_kind(&name.replace('_', "-"));
        return if plain == Kind::Other { Kind::Other } else { Kind::Hop };
    }
    plain_kind(name)
}

fn plain_kind(name: &str) -> Kind {
    let is = |other: &str| name.eq_ignore_ascii_case(other);
    match name.len() {
        2 if is("te") => Kind::Hop,
        4 if is("host") => Kind::Host,
        6 if is("cookie") => Kind::Cookie,
        7 if is("upgrade") || is("trailer") => Kind::Hop,
        9 if is("x-real-ip") || is("forwarded") => Kind::Forwarded,
        10 if is("connection") || is("keep-alive") => Kind::Hop,
        14 if is("content-length") => Kind::Length,
        14 if is("http2-settings") => Kind::Hop,
        15 if is("x-forwarded-for") => Kind::Forwarded,
        16 if is("x-forwarded-host") || is("x-forwarded-port") => Kind::Forwarded,
        16 if is("proxy-connection") => Kind::Hop,
        17 if is("x-forwarded-proto") => Kind::Forwarded,
        17 if is("transfer-encoding") => Kind::Coding,
        18 if is("x-forwarded-prefix") || is("x-forwarded-server") => Kind::Forwarded,
        _ => Kind::Other,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const REQUESTS: [&[u8]; 3] = [
        b"POST http://shop.test:80/a/b?c=d HTTP/1.1\r\nHost: shop.test:80\r\nContent-Length: 5\r\nX-A: b, c\r\n\r\n",
        b"PUT /a HTTP/1.1\r\nHost: x\r\nConnection: keep-alive, X-B\r\nX-B: 1\r\nTransfer-Encoding: chunked\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: x\r\nCookie: a=b\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n",
    ];
    const RESPONSES: [&[u8]; 3] = [
        b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nConnection: close\r\nX: \t y \r\n\r\n",
        b"HTTP/1.1 206 Partial\r\nTransfer-Encoding: chunked\r\nSet-Cookie: a=b\r\n\r\n",
        b"HTTP/1.0 200 OK\r\nContent-Length: 5\r\nTransfer-Encoding: gzip, chunked\r\n\r\n",
    ];

    #[test]
    fn those_that_are_changed_below_are_taken_or_not() {
        let mut head = Head::default();
        assert_eq!(REQUESTS.map(|bytes| head.read_request(bytes).is_ok()), [true, true, false]);
        assert_eq!(RESPONSES.map(|bytes| head.read_response(bytes, false).is_ok()), [true, true, false]);
    }

    // What is taken can be read in one way only: by fields that hold no line's end, and one word on how the body ends.
    fn holds(head: &Head, bytes: &[u8], is_request: bool) {
        // A replica's lines may end with LF alone.
        let end: &[u8] = if is_request { b"\r\n\r\n" } else { b"\n" };
        assert!(head.length <= bytes.len() && bytes[..head.length].ends_with(end));
        let text = |span: Span| span.of(bytes).iter().all(|byte| !matches!(byte, b'\r' | b'\n' | 0));
        assert!(text(head.method) && text(head.target) && text(head.host) && text(head.reason));
        let is_name =
            |name: &[u8]| !name.is_empty() && name.iter().all(|byte| byte.is_ascii_graphic() && *byte != b':');
        for field in &head.fields {
            assert!(
                text(field.name) && text(field.value) && is_name(field.name.of(bytes)),
                "{:?}",
                field.name.of(bytes)
            );
        }
        let count = |kind: Kind| head.fields.iter().filter(|field| field.kind == kind).count();
        assert!(count(Kind::Length) == 0 || count(Kind::Coding) == 0, "both say how long it is");
        if let Body::Length(length) = head.body {
            let said = head.fields.iter().filter(|field| field.kind == Kind::Length);
            assert!(said.map(|field| number(field.value.of(bytes))).all(|said| said == Some(length)));
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2000))]

        #[test]
        fn what_is_taken_is_read_in_one_way(
            noise in prop::collection::vec((any::<prop::sample::Index>(), prop_oneof![any::<u8>(), prop::sample::select(&b"\r\n :\t,;0aA/#"[..])]), 0..6),
            cut in prop::collection::vec((any::<prop::sample::Index>(), 0_usize..30), 0..3),
            (is_request, which) in (any::<bool>(), 0_usize..3),
        ) {
            let mut bytes = if is_request { REQUESTS } else { RESPONSES }[which].to_vec();
            for (at, length) in cut {
                let at = at.index(bytes.len().max(1)).min(bytes.len());
                let end = (at + length).min(bytes.len());
                bytes.drain(at..end);
            }
            for (at, byte) in noise {
                if !bytes.is_empty() {
                    let at = at.index(bytes.len());
                    bytes[at] = byte;
                }
            }
            let mut head = Head::default();
            let read = if is_request { head.read_request(&bytes) } else { head.read_response(&bytes, false) };
            match read {
                Ok(()) => {
                    holds(&head, &bytes, is_request);
                    prop_assert!(!is_request || head.host == Span::default() || !head.host.of(&bytes).contains(&b'/'));
                }
                Err(bad) => prop_assert!((400..600).contains(&bad.status)),
            }
        }
    }
}
