//! A line for each request, as GELF over UDP to whoever collects them: sent once the answer is over, and lost where nobody takes it.

use std::cell::{Cell, RefCell};
use std::net::{Ipv4Addr, Ipv6Addr, UdpSocket};
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Instant, SystemTime};

use serde_json::json;

use super::routes::Way;
use crate::model::id::TaskId;

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

/// A request's line; sent when it is dropped.
pub struct Line {
    lines: Rc<Lines>,
    way: Arc<Way>,
    began: Instant,
    /// What was asked for: method, host, path with query, and who asked.
    pub asked: [String; 4],
    /// What it asked with.
    pub agent: String,
    /// The status of the answer.
    pub status: Cell<u16>,
    /// Bytes of its body, where they are counted.
    pub bytes: Cell<Option<u64>>,
    /// Who answered.
    pub task: Cell<Option<TaskId>>,
}

impl Line {
    /// One that has begun; nothing where the route keeps none.
    pub fn begin(lines: &Rc<Lines>, way: &Arc<Way>, asked: impl FnOnce() -> ([String; 4], String)) -> Option<Self> {
        way.spec.access_log.as_ref()?;
        let (mut asked, mut agent) = asked();
        asked.iter_mut().chain([&mut agent]).for_each(|text| text.truncate(text.floor_char_boundary(MAX_TEXT)));
        Some(Line {
            lines: lines.clone(),
            way: way.clone(),
            began: Instant::now(),
            asked,
            agent,
            status: Cell::new(0),
            bytes: Cell::new(None),
            task: Cell::new(None),
        })
    }
}

impl Drop for Line {
    fn drop(&mut self) {
        let Some(to) = self.way.spec.access_log else { return };
        let [method, host, path, client] = &self.asked;
        let status = self.status.get();
        let now = SystemTime::UNIX_EPOCH.elapsed().map_or(0.0, |time| time.as_secs_f64());
        let mut line = json!({
            "version": "1.1",
            "host": self.lines.host,
            "timestamp": now,
            // Notice where the server's side failed, else information (RFC 5424).
            "level": if status >= 500 { 5 } else { 6 },
            "short_message": format!("{method} {host}{path} {status}"),
            "_route": self.way.name,
            "_method": method,
            "_http_host": host,
            "_path": path,
            "_client": client,
            "_user_agent": self.agent,
            "_status": status,
            "_duration_ms": self.began.elapsed().as_secs_f64() * 1000.0,
        });
        if let Some(bytes) = self.bytes.get() {
            line["_bytes"] = json!(bytes);
        }
        if let Some(task) = self.task.get() {
            line["_task"] = json!(task.to_string());
        }
        let mut sockets = self.lines.sockets.borrow_mut();
        let socket = &mut sockets[usize::from(to.is_ipv6())];
        if socket.is_none() {
            let opened = match to.is_ipv6() {
                true => UdpSocket::bind((Ipv6Addr::UNSPECIFIED, 0)),
                false => UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)),
            };
            *socket = opened.ok().filter(|socket| socket.set_nonblocking(true).is_ok());
        }
        if let Some(socket) = socket {
            // Nobody waits for who collects them.
            let _ = socket.send_to(line.to_string().as_bytes(), to);
        }
    }
}
