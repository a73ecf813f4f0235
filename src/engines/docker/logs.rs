//! What containers wrote, as their Docker Engines have it. A position is the time of the last line that was read, in
//! nanoseconds: Docker gives every line one.

use std::collections::{BTreeMap, VecDeque};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use bollard::Docker;
use bollard::container::LogOutput;
use bollard::query_parameters::LogsOptions;
use futures_util::{Stream, StreamExt};
use tokio::sync::mpsc;

use super::trouble;
use crate::engines::{LogLine, LogPosition, LogQuery};
use crate::model::Result;
use crate::model::id::TaskId;

/// Most lines that are sent on together.
const PORTION: usize = 512;
/// Most lines that wait to be asked for by whoever follows a task.
const WAITING: usize = 10_000;
/// Nobody has asked for so long: nobody follows any more.
const FORGOTTEN: Duration = Duration::from_secs(5);

/// Where a task's output is.
pub struct Source {
    /// The task.
    pub task: TaskId,
    /// Its host.
    pub docker: Docker,
    /// What wrote it.
    pub of: Of,
}

/// What has the output.
pub enum Of {
    /// A container of this host.
    Container(String),
    /// A Swarm service, wherever its containers are.
    Service(String),
    /// One task of a Swarm service.
    Task(String),
}

impl Source {
    // Lines later than `after`, in the order in which they were written.
    fn lines(
        &self,
        after: i64,
        tail: Option<usize>,
        follow: bool,
    ) -> impl Stream<Item = Result<LogLine>> + use<> + Unpin + Send {
        let options = LogsOptions {
            follow,
            stdout: true,
            stderr: true,
            timestamps: true,
            // Whole seconds; what is earlier within the first is left out below.
            since: i32::try_from(after / 1_000_000_000).unwrap_or_default(),
            tail: tail.map_or_else(|| "all".to_owned(), |lines| lines.to_string()),
            ..LogsOptions::default()
        };
        let task = self.task;
        let failed = move |error| trouble::error(format!("task {task}"), "read its output", &error);
        let parts = match &self.of {
            Of::Container(id) => self.docker.logs(id, Some(options)).boxed(),
            Of::Service(id) => self.docker.service_logs(id, Some(options)).boxed(),
            Of::Task(id) => self.docker.task_logs(id, Some(options)).boxed(),
        };
        let lines = parts.filter_map(move |part| {
            std::future::ready(match part {
                Ok(part) => parse(task, &part).filter(|line| line.at > after).map(Ok),
                // A container that was removed has nothing more to say.
                Err(error) if trouble::is_status(&error, 404) => None,
                Err(error) => Some(Err(failed(error))),
            })
        });
        Box::pin(lines)
    }
}

// `2026-01-02T03:04:05.678901234Z text`.
fn parse(task: TaskId, part: &LogOutput) -> Option<LogLine> {
    let (stream, bytes) = match part {
        LogOutput::StdErr { message } => ("stderr", message),
        LogOutput::StdOut { message } | LogOutput::Console { message } | LogOutput::StdIn { message } => {
            ("stdout", message)
        }
    };
    let text = String::from_utf8_lossy(bytes);
    let (time, text) = text.split_once(' ')?;
    let at = i64::try_from(time.parse::<jiff::Timestamp>().ok()?.as_nanosecond()).ok()?;
    Some(LogLine { at, task, stream: stream.into(), text: text.trim_end_matches(['\r', '\n']).to_owned() })
}

/// The time of each task's last line.
pub async fn ends(sources: Vec<Source>) -> Result<LogPosition> {
    let last = sources.iter().map(|source| async {
        let mut lines = source.lines(0, Some(1), false);
        let at = lines.next().await.transpose()?.map_or(0, |line| line.at);
        Ok((source.task, (0, u64::try_from(at).unwrap_or_default())))
    });
    let ends: Result<Vec<_>> = futures_util::future::join_all(last).await.into_iter().collect();
    Ok(LogPosition(ends?.into_iter().collect()))
}

/// Lines of all tasks, merged by time, in portions; up to `until` if given.
pub fn read(sources: Vec<Source>, query: LogQuery, until: Option<LogPosition>) -> mpsc::Receiver<Result<Vec<LogLine>>> {
    let (sender, receiver) = mpsc::channel(4);
    tokio::spawn(async move {
        if let Err(error) = merge(&sources, query, until.as_ref(), &sender).await {
            let _ = sender.send(Err(error)).await;
        }
    });
    receiver
}

async fn merge(
    sources: &[Source],
    query: LogQuery,
    until: Option<&LogPosition>,
    sender: &mpsc::Sender<Result<Vec<LogLine>>>,
) -> Result<()> {
    let after = query.since.map_or(0, |since| since - 1);
    let mut streams: Vec<_> = sources.iter().map(|source| source.lines(after, query.tail, false)).collect();
    let ends: Vec<u64> = sources
        .iter()
        .map(|source| until.map_or(u64::MAX, |until| until.0.get(&source.task).map_or(0, |(_, at)| *at)))
        .collect();
    let mut heads: Vec<Option<LogLine>> = Vec::new();
    for (stream, end) in streams.iter_mut().zip(&ends) {
        heads.push(next(stream, *end).await?);
    }
    let mut portion = VecDeque::new();
    // The newest of all come last, so their number is known only at the end.
    let bound = query.tail.unwrap_or(PORTION);
    loop {
        let first = heads.iter().enumerate().filter_map(|(at, head)| Some((head.as_ref()?.at, at))).min();
        let Some((_, at)) = first else { break };
        portion.extend(heads[at].take());
        heads[at] = next(&mut streams[at], ends[at]).await?;
        if portion.len() < bound {
            continue;
        }
        if query.tail.is_some() {
            while portion.len() > bound {
                portion.pop_front();
            }
        } else if sender.send(Ok(std::mem::take(&mut portion).into())).await.is_err() {
            return Ok(());
        }
    }
    let _ = sender.send(Ok(portion.into())).await;
    Ok(())
}

async fn next(stream: &mut (impl Stream<Item = Result<LogLine>> + Unpin), end: u64) -> Result<Option<LogLine>> {
    let line = stream.next().await.transpose()?;
    Ok(line.filter(|line| u64::try_from(line.at).is_ok_and(|at| at <= end)))
}

/// Streams of those tasks that somebody follows.
#[derive(Default)]
pub struct Followed(Mutex<BTreeMap<(TaskId, u64), Following>>);

struct Following {
    lines: Arc<Mutex<VecDeque<LogLine>>>,
    asked: Arc<Mutex<Instant>>,
    reader: tokio::task::AbortHandle,
    broken: Arc<AtomicBool>,
}

impl Drop for Following {
    fn drop(&mut self) {
        self.reader.abort();
    }
}

impl Followed {
    /// What came since `position`, which moves on.
    pub fn take(&self, sources: Vec<Source>, position: &mut LogPosition) -> Vec<LogLine> {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        all.retain(|_, following| !is_forgotten(&following.asked));
        let mut lines = Vec::new();
        for source in sources {
            let place = position.0.entry(source.task).or_default();
            let known = all.remove(&(source.task, place.1)).filter(|known| !known.is_broken());
            let following = known.unwrap_or_else(|| Following::begin(&source, place.1));
            let new: Vec<LogLine> = following.lines.lock().unwrap_or_else(PoisonError::into_inner).drain(..).collect();
            if let Some(last) = new.last() {
                place.1 = u64::try_from(last.at).unwrap_or_default();
            }
            lines.extend(new);
            *following.asked.lock().unwrap_or_else(PoisonError::into_inner) = Instant::now();
            all.insert((source.task, place.1), following);
        }
        // Stable: lines of one task keep their order also within one moment.
        lines.sort_by_key(|line| line.at);
        lines
    }
}

fn is_forgotten(asked: &Mutex<Instant>) -> bool {
    asked.lock().unwrap_or_else(PoisonError::into_inner).elapsed() >= FORGOTTEN
}

impl Following {
    fn begin(source: &Source, after: u64) -> Self {
        let lines: Arc<Mutex<VecDeque<LogLine>>> = Arc::default();
        let mut stream = source.lines(i64::try_from(after).unwrap_or_default(), None, true);
        let waiting = lines.clone();
        let broken: Arc<AtomicBool> = Arc::default();
        let marked = broken.clone();
        let asked = Arc::new(Mutex::new(Instant::now()));
        let last = asked.clone();
        let reader = tokio::spawn(async move {
            // Ends by itself too: where the last one who followed is gone, nobody comes by to end it.
            while !is_forgotten(&last) {
                let Ok(next) = tokio::time::timeout(FORGOTTEN, stream.next()).await else { continue };
                let Some(line) = next else { return };
                let Ok(line) = line else {
                    marked.store(true, Ordering::SeqCst);
                    return;
                };
                // Whoever is slower than the container waits for it no further: the reader waits for him.
                while waiting.lock().unwrap_or_else(PoisonError::into_inner).len() >= WAITING && !is_forgotten(&last) {
                    tokio::time::sleep(Duration::from_millis(20)).await;
                }
                waiting.lock().unwrap_or_else(PoisonError::into_inner).push_back(line);
            }
            waiting.lock().unwrap_or_else(PoisonError::into_inner).clear();
            marked.store(true, Ordering::SeqCst);
        });
        Following { lines, asked, reader: reader.abort_handle(), broken }
    }

    // Its stream broke off, and all that came before was taken.
    fn is_broken(&self) -> bool {
        self.broken.load(Ordering::SeqCst) && self.lines.lock().unwrap_or_else(PoisonError::into_inner).is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_with_its_time() {
        let part = LogOutput::StdErr { message: "2026-01-02T03:04:05.000000001Z no  luck \r\n".into() };
        let line = parse(TaskId::numbered(1), &part).unwrap();
        assert_eq!(
            (line.at, line.stream.as_str(), line.text.as_str()),
            (1_767_323_045_000_000_001, "stderr", "no  luck ")
        );
        assert_eq!(parse(TaskId::numbered(1), &LogOutput::StdOut { message: "no time".into() }), None);
    }
}
