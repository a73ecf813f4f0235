//! The way up, from a host to whoever leads: calls, as long as there is a connection.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

use serde_json::Value;
use tokio::sync::{mpsc, oneshot};

use super::protocol::Frame;
use crate::model::{Error, Kind, Result};

/// Calls that wait to be written.
const WAITING: usize = 256;

/// A word for the connection.
#[derive(Debug)]
pub enum Word {
    /// Asks something, and who waits for the answer.
    Call(u64, Value, oneshot::Sender<Result<Value>>),
    /// Nobody waits for that answer any more.
    Drop(u64),
}

/// Asks whoever leads.
#[derive(Debug, Default)]
pub struct Up {
    next: AtomicU64,
    connection: Mutex<Option<mpsc::Sender<Word>>>,
}

// Says that nobody waits any more.
struct Waits {
    id: u64,
    words: mpsc::Sender<Word>,
    answered: bool,
}

impl Drop for Waits {
    fn drop(&mut self) {
        if !self.answered {
            let _ = self.words.try_send(Word::Drop(self.id));
        }
    }
}

impl Up {
    /// Asks, and waits for the answer.
    pub async fn call(&self, call: Value) -> Result<Value> {
        let words = self.connection.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let words = words.ok_or_else(|| {
            Error::new(Kind::Unavailable, "cluster", "No cluster leader: this host is not connected to one").retry(true)
        })?;
        let broke = || {
            let message = "the connection to whoever leads broke; whether it was done is not known";
            Error::new(Kind::Unavailable, "request", message).retry(true)
        };
        let id = self.next.fetch_add(1, Ordering::Relaxed);
        let (sender, answer) = oneshot::channel();
        words.send(Word::Call(id, call, sender)).await.map_err(|_| broke())?;
        let mut waits = Waits { id, words, answered: false };
        let answer = answer.await;
        waits.answered = true;
        answer.map_err(|_| broke())?
    }

    /// There is a connection: what it is to say.
    pub fn connect(&self) -> mpsc::Receiver<Word> {
        let (sender, words) = mpsc::channel(WAITING);
        *self.connection.lock().unwrap_or_else(PoisonError::into_inner) = Some(sender);
        words
    }

    /// There is none any more.
    pub fn disconnect(&self) {
        *self.connection.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }
}

/// Those who wait for answers over one connection.
#[derive(Debug, Default)]
pub struct Waiting(HashMap<u64, oneshot::Sender<Result<Value>>>);

impl Waiting {
    /// What a word is, over the connection; nothing where there is no more to say.
    pub fn say(&mut self, word: Word) -> Option<Frame> {
        match word {
            Word::Call(id, call, answer) => {
                self.0.insert(id, answer);
                Some(Frame::Call { id, call })
            }
            Word::Drop(id) => self.0.remove(&id).map(|_| Frame::Drop { id }),
        }
    }

    /// An answer has come.
    pub fn answer(&mut self, id: u64, result: Result<Value>) {
        if let Some(waits) = self.0.remove(&id) {
            let _ = waits.send(result);
        }
    }
}
