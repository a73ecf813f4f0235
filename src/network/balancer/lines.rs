//! Lines of an access log, as GELF over UDP to whoever collects them: nobody waits for it, and what is not taken is lost.

use std::cell::RefCell;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::time::SystemTime;

use serde_json::{Value, json};

/// Longest text of a field, in bytes; a line stays within one datagram of an ordinary network.
const MAX_TEXT: usize = 512;

/// Sends lines.
#[derive(Debug)]
pub struct Lines {
    host: String,
    // One for each family of addresses, made when it is needed.
    sockets: RefCell<[Option<UdpSocket>; 2]>,
}

impl Default for Lines {
    fn default() -> Self {
        let host = nix::unistd::gethostname().ok().and_then(|name| name.into_string().ok()).unwrap_or_default();
        Lines { host, sockets: RefCell::default() }
    }
}

impl Lines {
    /// Sends one: a level of syslog (RFC 5424), what it says, and its fields, each with `_` before its name.
    pub fn send(&self, to: SocketAddr, level: u8, message: &str, fields: Value) {
        let now = SystemTime::UNIX_EPOCH.elapsed().map_or(0.0, |time| time.as_secs_f64());
        let mut line = json!({
            "version": "1.1",
            "host": self.host,
            "timestamp": now,
            "level": level,
            "short_message": message,
        });
        if let (Some(line), Value::Object(fields)) = (line.as_object_mut(), fields) {
            line.extend(fields.into_iter().filter(|(_, value)| !value.is_null()));
        }
        let mut sockets = self.sockets.borrow_mut();
        let socket = &mut sockets[usize::from(to.is_ipv6())];
        if socket.is_none() {
            let opened = match to.is_ipv6() {
                true => UdpSocket::bind((Ipv6Addr::UNSPECIFIED, 0)),
                false => UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)),
            };
            *socket = opened.ok().filter(|socket| socket.set_nonblocking(true).is_ok());
        }
        if let Some(socket) = socket {
            let _ = socket.send_to(line.to_string().as_bytes(), to);
        }
    }
}

/// Cuts a text to what a line has room for.
pub fn cut(text: &mut String) {
    text.truncate(text.floor_char_boundary(MAX_TEXT));
}
