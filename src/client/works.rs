//! What takes long, asked of another host of the cluster step by step: a connection that breaks does not end it.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use futures_util::StreamExt;
use futures_util::future::BoxFuture;
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

use super::Stream1;
use crate::model::{Error, Kind, Result};

/// How long it takes at most until it is said how far a long work is.
pub const STEP: Duration = Duration::from_secs(1);
/// Works that are told of at a time, and for how long one is that nobody asks for.
const WORKS: usize = 64;
const FORGOTTEN: Duration = Duration::from_secs(600);
/// How often it is asked again where the answer did not come.
const TRIES: u32 = 60;

/// What goes on here for others.
#[derive(Default)]
pub struct Works(Mutex<Known>);

#[derive(Default)]
struct Known {
    last: u64,
    // By number, and when somebody last asked for it.
    all: HashMap<u64, (Instant, Work)>,
}

type Work = Arc<tokio::sync::Mutex<Steps>>;

struct Steps {
    all: Stream1<Value>,
    end: Option<Result<Value>>,
}

fn ended() -> Error {
    Error::new(Kind::Unavailable, "work", "has ended too early there")
}

/// An answer as JSON.
pub fn value(answer: impl Serialize) -> Result<Value> {
    serde_json::to_value(answer).map_err(|error| Error::internal("answer", error.to_string()))
}

/// An answer of another host.
pub fn read<T: DeserializeOwned>(value: Value) -> Result<T> {
    serde_json::from_value(value)
        .map_err(|error| Error::new(Kind::Unsupported, "host", "answers in words of another version").cause(error))
}

impl Works {
    /// Begins one, whose last step says `done`; its number.
    pub fn begin<T: Serialize + Send + 'static>(&self, steps: Stream1<T>) -> Result<u64> {
        let mut works = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        works.all.retain(|_, (asked, _)| asked.elapsed() < FORGOTTEN);
        if works.all.len() >= WORKS {
            return Err(Error::new(Kind::Exhausted, "host", format!("{WORKS} works are under way there")));
        }
        // No other's from before a restart.
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        works.last = (works.last + 1).max(u64::try_from(now.as_micros()).unwrap_or_default());
        let id = works.last;
        let all: Stream1<Value> = Box::pin(steps.map(|step| step.and_then(value)));
        works.all.insert(id, (Instant::now(), Arc::new(tokio::sync::Mutex::new(Steps { all, end: None }))));
        Ok(id)
    }

    /// The newest of what is said within a moment.
    pub async fn step(&self, id: u64) -> Result<Option<Value>> {
        let works = || self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let steps = works().all.get_mut(&id).map(|(asked, steps)| {
            *asked = Instant::now();
            steps.clone()
        });
        let steps = steps.ok_or_else(ended)?;
        let mut steps = steps.lock().await;
        let until = tokio::time::Instant::now() + STEP;
        // How it ended is told as often as it is asked for: an answer may be lost.
        if let Some(end) = &steps.end {
            return end.clone().map(Some);
        }
        let mut newest = None;
        while let Ok(step) = tokio::time::timeout_at(until, steps.all.next()).await {
            match step {
                Some(Ok(step)) if step["done"] != true => newest = Some(step),
                other => {
                    let end = other.unwrap_or_else(|| Err(ended()));
                    steps.end = Some(end.clone());
                    return end.map(Some);
                }
            }
        }
        Ok(newest)
    }
}

/// How far something on another host is, to its end; `ask` asks it for the next step.
pub fn steps<T: DeserializeOwned + Send + 'static>(
    ask: impl Fn() -> BoxFuture<'static, Result<Value>> + Send + Sync + 'static,
    is_done: fn(&T) -> bool,
) -> Stream1<T> {
    let steps = futures_util::stream::unfold(Some(ask), move |ask| async move {
        let ask = ask?;
        let mut tries = 0;
        loop {
            match ask().await.and_then(read::<Option<T>>) {
                // It goes on there, whatever becomes of the connection.
                Err(error) if error.retry && tries < TRIES => {
                    tries += 1;
                    tokio::time::sleep(STEP).await;
                }
                Ok(Some(step)) if is_done(&step) => return Some((Ok(step), None)),
                Ok(Some(step)) => return Some((Ok(step), Some(ask))),
                Ok(None) => {}
                Err(error) => return Some((Err(error), None)),
            }
        }
    });
    Box::pin(steps)
}
