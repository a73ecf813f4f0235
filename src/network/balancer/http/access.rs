//! A line for each request, sent once the answer is over.

use std::cell::Cell;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Instant;

use serde_json::json;

use super::routes::Way;
use crate::model::id::TaskId;
use crate::network::balancer::lines::{Lines, cut};

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
        asked.iter_mut().chain([&mut agent]).for_each(cut);
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
        // Notice where the server's side failed, else information.
        let level = if status >= 500 { 5 } else { 6 };
        let fields = json!({
            "_route": self.way.name,
            "_method": method,
            "_http_host": host,
            "_path": path,
            "_client": client,
            "_user_agent": self.agent,
            "_status": status,
            "_duration_ms": self.began.elapsed().as_secs_f64() * 1000.0,
            "_bytes": self.bytes.get(),
            "_task": self.task.get().map(|task| task.to_string()),
        });
        self.lines.send(to, level, &format!("{method} {host}{path} {status}"), fields);
    }
}
