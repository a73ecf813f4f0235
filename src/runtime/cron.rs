//! Looks after cron scripts: a start is written down before it happens, so that it happens at most once.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::{mpsc, oneshot, watch};

use super::{Message, Parts};
use crate::client::scripts::CronStatus;
use crate::model::bundle::HostedKind;
use crate::model::clock::Timestamp;
use crate::model::cron::{CronRecord, CronRun, CronSpec, HISTORY, Outcome};
use crate::model::event::What;
use crate::model::{Error, Kind, Result, fault};
use crate::scheduler::cron::{Due, due};
use crate::scheduler::world::Note;
use crate::script::api::run::{self, CronCall};
use crate::script::epoch::Epoch;
use crate::script::sink::Output;
use crate::store::{Write, decode, encode};

/// How long it sleeps at most: a stepped clock is noticed after that.
const NAP: Duration = Duration::from_secs(10);
/// How long a start that could not be written down waits to be tried again.
const RETRY: Duration = Duration::from_millis(500);

/// What others ask of it.
pub enum Request {
    /// All scripts, with their histories.
    List(oneshot::Sender<Vec<CronStatus>>),
    /// Run one now.
    Run(String, String, oneshot::Sender<Result<CronRun>>),
    /// Hold one back, or let it go on.
    Pause(String, bool, oneshot::Sender<Result<()>>),
}

fn key(name: &str) -> String {
    format!("cron/{name}")
}

struct Tracked {
    owner: String,
    bundle: String,
    spec: CronSpec,
    since: Timestamp,
    next: Option<Timestamp>,
}

struct Keeper {
    parts: Arc<Parts>,
    messages: mpsc::UnboundedSender<Message>,
    scripts: BTreeMap<String, Tracked>,
    records: BTreeMap<String, CronRecord>,
    running: BTreeMap<String, BTreeSet<u64>>,
    waiting: BTreeMap<(String, u64), oneshot::Sender<Result<CronRun>>>,
    ended: mpsc::UnboundedSender<Ended>,
    // The clock as it was last looked at.
    seen: Timestamp,
}

struct Ended {
    name: String,
    number: u64,
    outcome: Outcome,
    output: String,
}

/// Starts looking after them, for as long as there is an epoch. What ran when the last daemon ended is unknown now.
pub async fn spawn(
    parts: Arc<Parts>,
    messages: mpsc::UnboundedSender<Message>,
    epochs: watch::Receiver<Arc<Epoch>>,
    requests: mpsc::UnboundedReceiver<Request>,
) -> Result<()> {
    let mut records = BTreeMap::new();
    let mut writes = Vec::new();
    for entry in parts.store.list("cron/")? {
        let mut record: CronRecord = decode(&entry.key, &entry.value)?;
        let lost = record.history.iter_mut().filter(|run| run.outcome == Outcome::Running);
        let mut changed = false;
        for run in lost {
            run.outcome = Outcome::Unknown;
            changed = true;
        }
        if changed {
            writes.push(Write::put(entry.key.clone(), encode(&record)));
        }
        records.insert(entry.key["cron/".len()..].to_owned(), record);
    }
    if !writes.is_empty() {
        parts.store.commit(writes).await?;
    }
    let (ended, ends) = mpsc::unbounded_channel();
    let keeper = Keeper {
        parts,
        messages,
        scripts: BTreeMap::new(),
        records,
        running: BTreeMap::new(),
        waiting: BTreeMap::new(),
        ended,
        seen: Timestamp(0),
    };
    tokio::spawn(keeper.run(epochs, requests, ends));
    Ok(())
}

impl Keeper {
    async fn run(
        mut self,
        mut epochs: watch::Receiver<Arc<Epoch>>,
        mut requests: mpsc::UnboundedReceiver<Request>,
        mut ends: mpsc::UnboundedReceiver<Ended>,
    ) {
        let epoch = epochs.borrow_and_update().clone();
        self.take_over(&epoch);
        loop {
            let wait = self.start_what_is_due().await;
            tokio::select! {
                biased;
                changed = epochs.changed() => {
                    if changed.is_err() {
                        return;
                    }
                    let epoch = epochs.borrow_and_update().clone();
                    self.take_over(&epoch);
                }
                request = requests.recv() => match request {
                    Some(request) => self.answer(request).await,
                    None => return,
                },
                end = ends.recv() => if let Some(end) = end {
                    let mut all = vec![end];
                    while let Ok(end) = ends.try_recv() {
                        all.push(end);
                    }
                    self.finish(all).await;
                },
                () = tokio::time::sleep(wait) => {}
            }
        }
    }

    fn take_over(&mut self, epoch: &Epoch) {
        let now = self.parts.clock.wall();
        let mut before = std::mem::take(&mut self.scripts);
        for ((kind, name), found) in &epoch.registrations {
            let (HostedKind::Cron, Some(spec)) = (kind, &found.facts.cron) else { continue };
            let old = before.remove(name).filter(|old| old.spec == *spec);
            self.scripts.insert(
                name.clone(),
                Tracked {
                    owner: found.owner.clone(),
                    bundle: found.registration.bundle.clone(),
                    spec: spec.clone(),
                    since: old.as_ref().map_or(now, |old| old.since),
                    // Found at the next look.
                    next: Some(old.and_then(|old| old.next).unwrap_or(Timestamp(0))),
                },
            );
        }
    }

    // Starts all whose time has come; returns how long there is nothing to do.
    async fn start_what_is_due(&mut self) -> Duration {
        let now = self.parts.clock.wall();
        // A clock that went back makes what was reckoned before worthless.
        if now.0 + 1000 < self.seen.0 {
            self.scripts.values_mut().for_each(|script| script.next = Some(Timestamp(0)));
        }
        self.seen = now;
        let mut starts = Vec::new();
        let mut changed: BTreeMap<String, CronRecord> = BTreeMap::new();
        for (name, script) in &mut self.scripts {
            // Paused, or not yet.
            if script.next.is_none_or(|next| next > now) {
                continue;
            }
            script.since = script.since.min(now);
            let record = self.records.get(name).cloned().unwrap_or_default();
            let running = self.running.get(name).is_some_and(|running| !running.is_empty());
            let (due, next) = due(&script.spec, &record, script.since, now, running);
            script.next = next;
            let Some(due) = due else { continue };
            let (at, outcome) = match due {
                Due::Run(at) => (at, Outcome::Running),
                Due::Skip(at) => (at, Outcome::Skipped),
                Due::Miss(at) => (at, Outcome::Missed),
            };
            let mut record = record;
            record.last_due = Some(at);
            let run = begin(&mut record, Some(at), now, outcome, None, &script.bundle);
            changed.insert(name.clone(), record);
            starts.push((name.clone(), run));
        }
        if !starts.is_empty() {
            let writes = changed.iter().map(|(name, record)| Write::put(key(name), encode(record))).collect();
            fault::point("cron.before-record");
            if let Err(error) = self.parts.store.commit(writes).await {
                tracing::error!(%error, "cron starts could not be written down; they are tried again");
                for (name, _) in starts {
                    if let Some(script) = self.scripts.get_mut(&name) {
                        script.next = Some(Timestamp(0));
                    }
                }
                return RETRY;
            }
            fault::point("cron.after-record");
            self.records.extend(changed);
            for (name, run) in starts {
                match run.outcome {
                    Outcome::Running => self.start(&name, &run),
                    other => self.tell(What::CronFailed, &name, format!("run {}: {}", run.number, other.as_str())),
                }
            }
        }
        let now = self.parts.clock.wall();
        let next = self.scripts.values().filter_map(|script| script.next).min();
        next.map_or(NAP, |next| Duration::from_millis(next.since(now).millis()).min(NAP))
    }

    fn start(&mut self, name: &str, run: &CronRun) {
        let Some(script) = self.scripts.get(name) else { return };
        self.running.entry(name.to_owned()).or_default().insert(run.number);
        self.tell(What::CronStarted, name, format!("run {}", run.number));
        let (host, ended, bundle, timeout) =
            (self.parts.host.clone(), self.ended.clone(), run.bundle.clone(), script.spec.timeout);
        let call = CronCall {
            name: name.to_owned(),
            number: run.number,
            due_at: run.due_at.map(|at| at.0 as f64 / 1000.0),
            by: run.by.clone(),
        };
        tokio::spawn(async move {
            let (name, number) = (call.name.clone(), call.number);
            // What it printed comes along however it ends; that it failed is the call's own result, and is counted as such.
            let kept: Arc<Mutex<(String, bool)>> = Arc::default();
            let keep = kept.clone();
            let work = host.spawn(HostedKind::Cron, &bundle, &name, move |hosted| async move {
                let output = Output::default();
                let work = run::cron(&hosted, &call, &output);
                let result = tokio::time::timeout(timeout.std(), work).await;
                *keep.lock().unwrap_or_else(PoisonError::into_inner) = (output.text(), result.is_err());
                result.unwrap_or_else(|_| {
                    let message = format!("took longer than its {timeout}");
                    Err(Error::new(Kind::Timeout, format!("cron \"{}\"", call.name), message))
                })
            });
            let result = work.await;
            let (printed, late) = std::mem::take(&mut *kept.lock().unwrap_or_else(PoisonError::into_inner));
            let (outcome, output) = match result {
                Ok(()) => (Outcome::Ok, printed),
                Err(error) if late => (Outcome::TimedOut, format!("{printed}error: {error}")),
                Err(error) => (Outcome::Failed, format!("{printed}error: {error}")),
            };
            let _ = ended.send(Ended { name, number, outcome, output });
        });
    }

    async fn finish(&mut self, ends: Vec<Ended>) {
        let now = self.parts.clock.wall();
        let mut writes = BTreeMap::new();
        let mut over = Vec::new();
        for end in ends {
            if let Some(running) = self.running.get_mut(&end.name) {
                running.remove(&end.number);
            }
            let record = self.records.entry(end.name.clone()).or_default();
            let Some(run) = record.history.iter_mut().find(|run| run.number == end.number) else { continue };
            run.finished_at = Some(now);
            run.outcome = end.outcome;
            run.output = end.output;
            over.push((end.name.clone(), run.clone()));
            writes.insert(end.name.clone(), Write::put(key(&end.name), encode(record)));
        }
        fault::point("cron.before-finish");
        if let Err(error) = self.parts.store.commit(writes.into_values().collect()).await {
            // The run is over all the same; its end is written with the next change of the record.
            tracing::error!(%error, "the end of a cron run could not be written down");
        }
        fault::point("cron.after-finish");
        for (name, run) in over {
            let what = if run.outcome == Outcome::Ok { What::CronFinished } else { What::CronFailed };
            let last = crate::client::show::last_line(&run.output);
            self.tell(what, &name, format!("run {}: {} {last}", run.number, run.outcome.as_str()));
            if let Some(waiting) = self.waiting.remove(&(name, run.number)) {
                let _ = waiting.send(Ok(run));
            }
        }
    }

    async fn answer(&mut self, request: Request) {
        match request {
            Request::List(reply) => {
                let _ = reply.send(self.scripts.keys().map(|name| self.status(name)).collect());
            }
            Request::Run(name, by, reply) => match self.run_now(&name, by).await {
                Ok(number) => {
                    self.waiting.insert((name, number), reply);
                }
                Err(error) => drop(reply.send(Err(error))),
            },
            Request::Pause(name, paused, reply) => drop(reply.send(self.pause(&name, paused).await)),
        }
    }

    fn missing(&self, name: &str) -> Error {
        let hint = crate::model::suggest::nearest(name, self.scripts.keys().map(String::as_str));
        let error = Error::not_found(format!("cron \"{name:.63}\""));
        error.help(hint.map_or("`neap cron ls` lists them".into(), |near| format!("did you mean \"{near}\"?")))
    }

    async fn run_now(&mut self, name: &str, by: String) -> Result<u64> {
        let script = self.scripts.get(name).ok_or_else(|| self.missing(name))?;
        let running = self.running.get(name).is_some_and(|running| !running.is_empty());
        if running && script.spec.overlap == crate::model::cron::Overlap::Skip {
            return Err(Error::new(Kind::Conflict, format!("cron \"{name}\""), "runs already").retry(true));
        }
        let now = self.parts.clock.wall();
        let mut record = self.records.get(name).cloned().unwrap_or_default();
        let run = begin(&mut record, None, now, Outcome::Running, Some(by), &script.bundle);
        fault::point("cron.before-record");
        self.parts.store.commit(vec![Write::put(key(name), encode(&record))]).await?;
        fault::point("cron.after-record");
        self.records.insert(name.to_owned(), record);
        self.start(name, &run);
        Ok(run.number)
    }

    async fn pause(&mut self, name: &str, paused: bool) -> Result<()> {
        if !self.scripts.contains_key(name) {
            return Err(self.missing(name));
        }
        let mut record = self.records.get(name).cloned().unwrap_or_default();
        record.paused = paused;
        // What came while it was held back is not made up for.
        record.last_due = Some(self.parts.clock.wall());
        self.parts.store.commit(vec![Write::put(key(name), encode(&record))]).await?;
        self.records.insert(name.to_owned(), record);
        if let Some(script) = self.scripts.get_mut(name) {
            script.next = Some(Timestamp(0));
        }
        Ok(())
    }

    fn status(&self, name: &str) -> CronStatus {
        let script = &self.scripts[name];
        let record = self.records.get(name).cloned().unwrap_or_default();
        let (_, next) = due(&script.spec, &record, script.since, self.parts.clock.wall(), false);
        CronStatus {
            name: name.to_owned(),
            owner: script.owner.clone(),
            schedule: script.spec.schedule.to_string(),
            timezone: script.spec.zone.to_string(),
            overlap: script.spec.overlap,
            timeout: script.spec.timeout,
            paused: record.paused,
            next_at: next,
            history: record.history,
        }
    }

    fn tell(&self, what: What, name: &str, message: String) {
        let note = Note { what, service: None, task: None, image: None, subject: name.to_owned(), message };
        let _ = self.messages.send(Message::Note(note));
    }
}

// Enters a run into the history.
fn begin(
    record: &mut CronRecord,
    due_at: Option<Timestamp>,
    now: Timestamp,
    outcome: Outcome,
    by: Option<String>,
    bundle: &str,
) -> CronRun {
    record.runs += 1;
    let over = outcome != Outcome::Running;
    let run = CronRun {
        number: record.runs,
        due_at,
        started_at: now,
        finished_at: over.then_some(now),
        outcome,
        by,
        bundle: bundle.to_owned(),
        output: String::new(),
    };
    record.history.push(run.clone());
    // What goes on is kept, however many have been left out since.
    while record.history.len() > HISTORY
        && let Some(at) = record.history.iter().position(|run| run.outcome != Outcome::Running)
    {
        record.history.remove(at);
    }
    run
}

impl super::Runtime {
    /// Asks the one that looks after cron scripts.
    pub(super) async fn ask_cron<T>(&self, request: impl FnOnce(oneshot::Sender<T>) -> Request) -> Result<T> {
        let (reply, answer) = oneshot::channel();
        let gone = || Error::new(Kind::Unavailable, "daemon", "is stopping");
        self.cron.send(request(reply)).map_err(|_| gone())?;
        answer.await.map_err(|_| gone())
    }
}
