//! One request and what becomes of it.

use std::sync::Arc;
use std::time::Instant;

use super::access::Line;
use super::head::Bad;
use super::routes::Way;

/// What follows an exchange.
pub enum After {
    /// Another request.
    Next,
    /// The end of the connection.
    Close,
    /// The same without a word: what was begun is not whole.
    Drop,
}

/// Why nothing was answered yet.
pub enum Failed {
    /// The replica took nothing, or said nothing.
    Silent,
    /// It broke off in the head of its answer, or sent no HTTP.
    Garbled,
    /// It was waited for too long.
    Late,
    /// The client was waited for.
    Slow,
    /// The client is gone, or sends what is none.
    Client(Option<Bad>),
}

/// What an exchange is known by until its answer has begun.
pub struct Exchange {
    /// Its route.
    pub way: Arc<Way>,
    /// When it began.
    pub began: Instant,
    /// The mark of who answers, where the client is to come back to it.
    pub mark: Option<String>,
    /// Whether the connection goes on behind it.
    pub keeps: bool,
    /// The line that is sent of it.
    pub line: Option<Line>,
}

impl Exchange {
    /// Counts the answer.
    pub fn note(&self, status: u16) {
        self.way.passed.note(status, self.began.elapsed());
        if let Some(line) = &self.line {
            line.status.set(status);
        }
    }
}
