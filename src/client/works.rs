//! What takes long, asked of another host of the cluster step by step: a connection that breaks does not end it.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use futures_util::StreamExt;
use futures_util::future::BoxFuture;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::Stream1;
use crate::model::{Error, Kind, Result};

/// How long it takes at most until it is said how far a long work is.
pub const STEP: Duration = Duration::from_secs(1);
/// Works that go on at a time; for how long one does that nobody asks for, and how long it is told how one ended.
const WORKS: usize = 64;
const FORGOTTEN: Duration = Duration::from_secs(600);
const ENDED: Duration = Duration::from_secs(90);
/// For how long it is asked again where the answer does not come.
const PATIENCE: Duration = Duration::from_secs(60);
/// How often it is tried to say that one is not needed any more.
const DROPS: u32 = 5;

/// What goes on here for others.
#[derive(Default)]
pub struct Works(Arc<Mutex<Known>>);

#[derive(Default)]
struct Known {
    last: u64,
    // By number, and when somebody last asked for it.
    all: HashMap<u64, (Instant, Work)>,
}

impl Known {
    fn forget(&mut self) {
        let is_over = |work: &Work| work.over.get().is_some_and(|at| at.elapsed() > ENDED);
        self.all.retain(|_, (asked, work)| asked.elapsed() < FORGOTTEN && !is_over(work));
    }
}

#[derive(Clone)]
struct Work {
    steps: Arc<tokio::sync::Mutex<Steps>>,
    // When it ended.
    over: Arc<OnceLock<Instant>>,
}

struct Steps {
    // Nothing once it has ended.
    all: Option<Stream1<Value>>,
    end: Option<Result<Value>>,
}

/// What is asked of something that goes on elsewhere.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum WorkAsk {
    /// How far it is, a moment later.
    Step(u64),
    /// Nobody waits for it any more.
    Drop(u64),
}

// How far it is.
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Next {
    Nothing,
    Step(Value),
    Failed(Error),
}

fn ended() -> Error {
    Error::new(Kind::Unavailable, "work", "has ended too early there").retry(false)
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
    fn known(&self) -> std::sync::MutexGuard<'_, Known> {
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        known.forget();
        known
    }

    /// Begins one, whose last step says `done`; its number.
    pub fn begin<T: Serialize + Send + 'static>(&self, steps: Stream1<T>) -> Result<u64> {
        let mut works = self.known();
        if works.all.values().filter(|(_, work)| work.over.get().is_none()).count() >= WORKS {
            return Err(Error::new(Kind::Exhausted, "host", format!("{WORKS} works are under way there")));
        }
        // No other's from before a restart.
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        works.last = (works.last + 1).max(u64::try_from(now.as_micros()).unwrap_or_default());
        let id = works.last;
        let all: Stream1<Value> = Box::pin(steps.map(|step| step.and_then(value)));
        let steps = Arc::new(tokio::sync::Mutex::new(Steps { all: Some(all), end: None }));
        works.all.insert(id, (Instant::now(), Work { steps, over: Arc::default() }));
        drop(works);
        // One that is forgotten goes also where nobody asks for others.
        let known = Arc::downgrade(&self.0);
        tokio::spawn(async move {
            loop {
                tokio::time::sleep(FORGOTTEN / 2).await;
                let Some(known) = known.upgrade() else { return };
                let mut known = known.lock().unwrap_or_else(PoisonError::into_inner);
                known.forget();
                if !known.all.contains_key(&id) {
                    return;
                }
            }
        });
        Ok(id)
    }

    /// Does what is asked of one.
    pub async fn answer(&self, ask: WorkAsk) -> Result<Value> {
        match ask {
            WorkAsk::Drop(id) => {
                self.known().all.remove(&id);
                value(())
            }
            WorkAsk::Step(id) => {
                let work = self.known().all.get_mut(&id).map(|(asked, work)| {
                    *asked = Instant::now();
                    work.clone()
                });
                value(match work {
                    Some(work) => step(&work).await,
                    None => Next::Failed(ended()),
                })
            }
        }
    }
}

// The newest of what is said within a moment.
async fn step(work: &Work) -> Next {
    let said = |end: &Result<Value>| match end {
        Ok(step) => Next::Step(step.clone()),
        Err(error) => Next::Failed(error.clone()),
    };
    let mut steps = work.steps.lock().await;
    // How it ended is told as often as it is asked for: an answer may be lost.
    if let Some(end) = &steps.end {
        return said(end);
    }
    let until = tokio::time::Instant::now() + STEP;
    let mut newest = Next::Nothing;
    while let Some(all) = &mut steps.all
        && let Ok(step) = tokio::time::timeout_at(until, all.next()).await
    {
        match step {
            Some(Ok(step)) if step["done"] != true => newest = Next::Step(step),
            other => {
                let end = other.unwrap_or_else(|| Err(ended()));
                newest = said(&end);
                steps.end = Some(end);
                steps.all = None;
                let _ = work.over.set(Instant::now());
            }
        }
    }
    newest
}

type Way = Arc<dyn Fn(WorkAsk) -> BoxFuture<'static, Result<Value>> + Send + Sync>;

// Whoever drops the steps, at their end or before it, needs the work no more.
struct Following {
    way: Way,
    id: u64,
}

impl Drop for Following {
    fn drop(&mut self) {
        let Ok(runtime) = tokio::runtime::Handle::try_current() else { return };
        let (way, id) = (self.way.clone(), self.id);
        runtime.spawn(async move {
            for _ in 0..DROPS {
                match way(WorkAsk::Drop(id)).await {
                    Err(error) if error.retry => tokio::time::sleep(STEP).await,
                    _ => return,
                }
            }
        });
    }
}

/// How far something on another host is, to its end; `way` asks it there. Given up here, it is there as well.
pub fn steps<T: DeserializeOwned + Send + 'static>(
    id: u64,
    way: impl Fn(WorkAsk) -> BoxFuture<'static, Result<Value>> + Send + Sync + 'static,
    is_done: fn(&T) -> bool,
) -> Stream1<T> {
    let following = Following { way: Arc::new(way), id };
    let steps = futures_util::stream::unfold(Some(following), move |following| async move {
        let following = following?;
        let mut silent = None::<Instant>;
        let next = loop {
            match (following.way)(WorkAsk::Step(id)).await.and_then(read::<Next>) {
                // It goes on there, whatever becomes of the connection.
                Err(error) if error.retry && silent.get_or_insert_with(Instant::now).elapsed() < PATIENCE => {
                    tokio::time::sleep(STEP).await;
                }
                Err(error) | Ok(Next::Failed(error)) => break Err(error),
                Ok(Next::Nothing) => silent = None,
                Ok(Next::Step(step)) => break read::<T>(step),
            }
        };
        let goes_on = matches!(&next, Ok(step) if !is_done(step));
        Some((next, goes_on.then_some(following)))
    });
    Box::pin(steps)
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering};

    use serde_json::json;
    use tokio::sync::mpsc;

    use super::*;

    fn stream(receiver: mpsc::Receiver<Result<Value>>) -> Stream1<Value> {
        Box::pin(futures_util::stream::unfold(receiver, |mut receiver| async move {
            receiver.recv().await.map(|step| (step, receiver))
        }))
    }

    // By way of a connection that loses each third answer.
    fn followed(works: &Arc<Works>, id: u64) -> Stream1<Value> {
        let (works, count) = (works.clone(), Arc::new(AtomicU32::new(0)));
        let way = move |ask| -> BoxFuture<'static, Result<Value>> {
            let (works, count) = (works.clone(), count.clone());
            Box::pin(async move {
                let answer = works.answer(ask).await;
                match count.fetch_add(1, Ordering::SeqCst) % 3 {
                    2 => Err(Error::new(Kind::Unavailable, "way", "broke").retry(true)),
                    _ => answer,
                }
            })
        };
        steps(id, way, |step: &Value| step["done"] == true)
    }

    #[tokio::test(start_paused = true)]
    async fn it_comes_to_its_end_by_a_way_that_breaks() {
        let works = Arc::new(Works::default());
        let (sender, receiver) = mpsc::channel(8);
        let mut all = followed(&works, works.begin(stream(receiver)).unwrap());
        tokio::spawn(async move {
            for number in 0..9 {
                sender.send(Ok(json!({ "at": number, "done": number == 8 }))).await.unwrap();
                tokio::time::sleep(STEP * 2).await;
            }
        });
        // One or the other is lost on the way; the last never is.
        let mut seen = Vec::new();
        while let Some(step) = all.next().await {
            seen.push(step.unwrap()["at"].as_u64().unwrap());
        }
        assert!(seen.is_sorted() && seen.len() > 3 && seen.last() == Some(&8), "{seen:?}");
        // One that fails says why at once, whatever kind of error that is.
        let (sender, receiver) = mpsc::channel(8);
        let mut all = followed(&works, works.begin(stream(receiver)).unwrap());
        let began = tokio::time::Instant::now();
        sender.send(Err(Error::new(Kind::Timeout, "engine", "is silent").retry(true))).await.unwrap();
        assert!(all.next().await.unwrap().unwrap_err().message.contains("is silent"));
        assert!(all.next().await.is_none() && began.elapsed() < Duration::from_secs(5));
        // One that is not known is over.
        assert!(followed(&works, 7).next().await.unwrap().is_err());
    }

    #[tokio::test]
    async fn what_nobody_follows_is_given_up_and_what_ended_takes_no_place() {
        let works = Arc::new(Works::default());
        let (sender, receiver) = mpsc::channel::<Result<Value>>(1);
        drop(followed(&works, works.begin(stream(receiver)).unwrap()));
        sender.closed().await;
        for _ in 0..WORKS * 2 {
            let (sender, receiver) = mpsc::channel(1);
            let id = works.begin(stream(receiver)).unwrap();
            sender.send(Ok(json!({ "done": true }))).await.unwrap();
            works.answer(WorkAsk::Step(id)).await.unwrap();
        }
        let open = |_| works.begin(Box::pin(futures_util::stream::pending::<Result<Value>>()));
        assert!((0..WORKS).map(open).all(|id| id.is_ok()));
        assert!(open(0).unwrap_err().message.contains("64 works"));
    }
}
