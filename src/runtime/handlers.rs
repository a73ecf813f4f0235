//! Brings events to the handlers that scripts have registered: in order for each subject, in parallel between them.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::{Semaphore, mpsc};

use super::{Message, Parts};
use crate::client::scripts::FailedDelivery;
use crate::model::bundle::HostedKind;
use crate::model::event::{Event, What};
use crate::model::units::Duration;
use crate::model::{Error, Kind};
use crate::scheduler::world::Note;
use crate::script::api::run;

/// Events that may wait for handlers, all together.
const MAX_WAITING: usize = 10_000;
/// Handlers that run at once.
const AT_ONCE: usize = 32;
/// Failures that are remembered.
const MAX_FAILED: usize = 200;

/// What was not delivered, the last ones.
pub type Failed = Arc<Mutex<VecDeque<FailedDelivery>>>;

// A handler and a subject: what concerns both comes in order.
type Line = (String, String);

struct Postman {
    parts: Arc<Parts>,
    messages: mpsc::UnboundedSender<Message>,
    failed: Failed,
    lines: Mutex<HashMap<Line, VecDeque<Event>>>,
    at_once: Semaphore,
}

/// Delivers events for as long as they come.
pub fn spawn(
    parts: Arc<Parts>,
    messages: mpsc::UnboundedSender<Message>,
    mut events: mpsc::Receiver<Result<Event, Error>>,
    failed: Failed,
) {
    let postman =
        Arc::new(Postman { parts, messages, failed, lines: Mutex::default(), at_once: Semaphore::new(AT_ONCE) });
    tokio::spawn(async move {
        while let Some(event) = events.recv().await {
            match event {
                Ok(event) => postman.take(event),
                Err(error) => tracing::error!(%error, "handlers have missed events"),
            }
        }
    });
}

impl Postman {
    fn take(self: &Arc<Self>, event: Event) {
        let epoch = self.parts.host.epoch();
        for ((kind, name), found) in &epoch.registrations {
            let (HostedKind::On, Some(on)) = (kind, &found.facts.on) else { continue };
            if on.what != event.what || !passes(&on.filter, &event) {
                continue;
            }
            let line = (name.clone(), event.subject.clone());
            let mut lines = self.lines.lock().unwrap_or_else(PoisonError::into_inner);
            let waiting: usize = lines.values().map(VecDeque::len).sum();
            if waiting >= MAX_WAITING {
                drop(lines);
                let message = format!("was dropped: {MAX_WAITING} events wait already");
                self.fail(name, &event, Error::new(Kind::Exhausted, format!("event {}", event.sequence), message));
                continue;
            }
            match lines.get_mut(&line) {
                Some(queue) => queue.push_back(event.clone()),
                None => {
                    lines.insert(line.clone(), VecDeque::from([event.clone()]));
                    drop(lines);
                    tokio::spawn(self.clone().deliver(line));
                }
            }
        }
    }

    // Works one line off, as the handler is registered when its turn comes.
    async fn deliver(self: Arc<Self>, line: Line) {
        loop {
            // Before the next one is taken: what waits for its turn still counts as waiting.
            let _turn = self.at_once.acquire().await;
            let next = {
                let mut lines = self.lines.lock().unwrap_or_else(PoisonError::into_inner);
                match lines.get_mut(&line).and_then(VecDeque::pop_front) {
                    Some(event) => event,
                    None => {
                        lines.remove(&line);
                        return;
                    }
                }
            };
            if let Err(error) = self.one(&line.0, next.clone()).await {
                self.fail(&line.0, &next, error);
            }
        }
    }

    async fn one(&self, name: &str, event: Event) -> Result<(), Error> {
        let epoch = self.parts.host.epoch();
        let Some(found) = epoch.registrations.get(&(HostedKind::On, name.to_owned())) else { return Ok(()) };
        let timeout = found.facts.on.as_ref().map_or(Duration::from_secs(60), |on| on.timeout);
        let (bundle, handler) = (found.registration.bundle.clone(), name.to_owned());
        let host = &self.parts.host;
        host.spawn(HostedKind::On, &bundle, name, move |hosted| async move {
            let work = run::handler(&hosted, &handler, &event);
            tokio::time::timeout(timeout.std(), work).await.unwrap_or_else(|_| {
                Err(Error::new(Kind::Timeout, format!("on \"{handler}\""), format!("took longer than its {timeout}")))
            })
        })
        .await
    }

    fn fail(&self, handler: &str, event: &Event, error: Error) {
        tracing::warn!(handler, %error, "a handler failed");
        let delivery = FailedDelivery {
            handler: handler.to_owned(),
            at: self.parts.clock.wall(),
            event: event.clone(),
            error: crate::model::error::shorten(&error.to_string()),
        };
        let mut failed = self.failed.lock().unwrap_or_else(PoisonError::into_inner);
        if failed.len() >= MAX_FAILED {
            failed.pop_front();
        }
        failed.push_back(delivery);
        drop(failed);
        // A handler of failures that fails must not feed itself.
        if event.what != What::ScriptFailed {
            let (what, subject) = (What::ScriptFailed, format!("on \"{handler}\""));
            let note = Note {
                what,
                service: event.service.clone(),
                task: None,
                image: None,
                subject,
                message: error.to_string(),
            };
            let _ = self.messages.send(Message::Note(note));
        }
    }
}

fn passes(filter: &std::collections::BTreeMap<String, serde_json::Value>, event: &Event) -> bool {
    if filter.is_empty() {
        return true;
    }
    let Ok(fields) = serde_json::to_value(event) else { return false };
    filter.iter().all(|(key, wanted)| {
        let is = |value: &serde_json::Value| {
            // Numbers compare as numbers: Lua has one kind of them.
            value == wanted || value.as_f64().is_some_and(|number| Some(number) == wanted.as_f64())
        };
        // A node by its host's name, or by its id, as everywhere.
        is(&fields[key]) || key == "node" && is(&fields["node_id"])
    })
}
