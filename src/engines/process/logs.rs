//! Reads what replicas wrote: task by task in order, merged over tasks by time, never all of it at once.

use std::collections::{BTreeMap, BinaryHeap, VecDeque};
use std::fs::File;
use std::io::{self, BufRead, BufReader, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

use tokio::sync::mpsc;

use super::spool::{self, numbers};
use crate::engines::{LogLine, LogPosition, LogQuery};
use crate::model::id::TaskId;
use crate::model::{Error, Result};

/// Lines handed on at once.
const CHUNK: usize = 512;

/// Where in a task's output: file number and offset.
type Place = (u32, u64);

/// The whole lines of one task, in order. At the end it answers nothing and can be asked again later.
pub struct Reader {
    task: TaskId,
    folder: PathBuf,
    // Behind the last whole line; what follows is read again when it has grown.
    whole: Place,
    cursor: Place,
    until: Option<Place>,
    file: Option<BufReader<File>>,
    part: String,
    raw: Vec<u8>,
}

impl Reader {
    /// From `start` on, up to `until` if given.
    pub fn new(task: TaskId, folder: PathBuf, start: Place, until: Option<Place>) -> Self {
        Reader { task, folder, whole: start, cursor: start, until, file: None, part: String::new(), raw: Vec::new() }
    }

    /// Behind the last line that was given.
    pub fn place(&self) -> Place {
        self.whole
    }

    /// The next line; pieces of a long one are joined.
    pub fn next_line(&mut self) -> io::Result<Option<LogLine>> {
        loop {
            if self.until.is_some_and(|until| self.cursor >= until) || !self.open()? {
                return Ok(self.pause());
            }
            let Some(file) = &mut self.file else { return Ok(self.pause()) };
            self.raw.clear();
            let mut length = file.read_until(b'\n', &mut self.raw)?;
            if self.raw.last() != Some(&b'\n') {
                // The end of this file, as it was. A later one says that nothing more comes here, from then on.
                let Some(next) = numbers(&self.folder)?.into_iter().find(|number| *number > self.cursor.0) else {
                    return Ok(self.pause());
                };
                length += file.read_until(b'\n', &mut self.raw)?;
                if self.raw.last() != Some(&b'\n') {
                    self.cursor = (next, 0);
                    self.file = None;
                    continue;
                }
            }
            self.raw.pop();
            self.cursor.1 += length as u64;
            let Some((line, whole)) = spool::parse(&self.raw, &self.task) else { continue };
            self.part.push_str(&line.text);
            if whole {
                self.whole = self.cursor;
                return Ok(Some(LogLine { text: std::mem::take(&mut self.part), ..line }));
            }
        }
    }

    fn pause(&mut self) -> Option<LogLine> {
        self.file = None;
        self.part.clear();
        self.cursor = self.whole;
        None
    }

    fn open(&mut self) -> io::Result<bool> {
        if self.file.is_some() {
            return Ok(true);
        }
        // A file that was rotated away takes its lines along; the oldest that is left goes on.
        let first = self.cursor.0;
        for number in present(&self.folder)?.into_iter().filter(|number| *number >= first) {
            if number > self.cursor.0 {
                self.cursor = (number, 0);
            }
            if let Some(mut file) = opened(&self.folder, number)? {
                file.seek(SeekFrom::Start(self.cursor.1))?;
                self.file = Some(BufReader::new(file));
                return Ok(true);
            }
        }
        Ok(false)
    }
}

// The numbers of the files that are there; none where the folder is gone.
fn present(folder: &Path) -> io::Result<Vec<u32>> {
    match numbers(folder) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        other => other,
    }
}

// A file; none if it was rotated away since it was listed.
fn opened(folder: &Path, number: u32) -> io::Result<Option<File>> {
    match File::open(spool::path(folder, number)) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        other => other.map(Some),
    }
}

/// Where each task's output ends now: behind its last line that has its end.
pub fn ends(tasks: &[(TaskId, PathBuf)]) -> LogPosition {
    let end = |folder: &PathBuf| -> Place {
        let last = numbers(folder).ok().and_then(|numbers| numbers.last().copied()).unwrap_or_default();
        (last, whole_length(&spool::path(folder, last)).unwrap_or_default())
    };
    LogPosition(tasks.iter().map(|(task, folder)| (*task, end(folder))).collect())
}

fn whole_length(path: &Path) -> io::Result<u64> {
    let mut file = File::open(path)?;
    let size = file.metadata()?.len();
    // A line is written at once and no piece of one is longer than this.
    let from = size.saturating_sub(2 * spool::MAX_LINE as u64);
    file.seek(SeekFrom::Start(from))?;
    let mut tail = Vec::new();
    file.take(size - from).read_to_end(&mut tail)?;
    Ok(tail.iter().rposition(|byte| *byte == b'\n').map_or(from, |at| from + at as u64 + 1))
}

/// The lines asked for, oldest first, in portions.
pub fn read(
    folders: Vec<(TaskId, PathBuf)>,
    query: LogQuery,
    until: Option<LogPosition>,
) -> Result<mpsc::Receiver<Result<Vec<LogLine>>>> {
    let (sender, receiver) = mpsc::channel(4);
    // On a thread of its own: one that waits for a slow reader holds up nobody else, and the shared ones are few.
    let read = move || {
        let mut sink = |lines| sender.blocking_send(Ok(lines)).is_ok();
        if let Err(error) = merge(&folders, &query, until.as_ref(), &mut sink) {
            let _ = sender.blocking_send(Err(Error::io("output", "read it", &error)));
        }
    };
    let spawned = std::thread::Builder::new().name("output".into()).stack_size(512 * 1024).spawn(read);
    spawned.map_err(|error| Error::io("output", "begin to read it", &error))?;
    Ok(receiver)
}

/// Hands the lines asked for to `sink`, oldest first, until it wants no more.
pub fn merge(
    tasks: &[(TaskId, PathBuf)],
    query: &LogQuery,
    until: Option<&LogPosition>,
    sink: &mut dyn FnMut(Vec<LogLine>) -> bool,
) -> io::Result<()> {
    let mut readers = Vec::new();
    for (task, folder) in tasks {
        let start = query.tail.map_or(Ok((0, 0)), |tail| tail_start(folder, tail))?;
        let until = until.map(|until| until.0.get(task).copied().unwrap_or_default());
        readers.push(Reader::new(*task, folder.clone(), start, until));
    }
    // The earliest line first; of equals, the one of the earlier task.
    let mut heap = BinaryHeap::new();
    let mut waiting: BTreeMap<usize, LogLine> = BTreeMap::new();
    let advance = |index: usize, readers: &mut Vec<Reader>| -> io::Result<Option<LogLine>> {
        while let Some(line) = readers[index].next_line()? {
            if query.since.is_none_or(|since| line.at >= since) {
                return Ok(Some(line));
            }
        }
        Ok(None)
    };
    for index in 0..readers.len() {
        if let Some(line) = advance(index, &mut readers)? {
            heap.push(std::cmp::Reverse((line.at, index)));
            waiting.insert(index, line);
        }
    }
    let mut chunk = VecDeque::new();
    while let Some(std::cmp::Reverse((_, index))) = heap.pop() {
        if let Some(line) = waiting.remove(&index) {
            chunk.push_back(line);
        }
        if let Some(line) = advance(index, &mut readers)? {
            heap.push(std::cmp::Reverse((line.at, index)));
            waiting.insert(index, line);
        }
        if let Some(tail) = query.tail {
            if chunk.len() > tail {
                chunk.pop_front();
            }
        } else if chunk.len() >= CHUNK && !sink(std::mem::take(&mut chunk).into()) {
            return Ok(());
        }
    }
    if !chunk.is_empty() {
        sink(chunk.into());
    }
    Ok(())
}

// The newest file behind whose beginning there are at least `tail` lines.
fn tail_start(folder: &Path, tail: usize) -> io::Result<Place> {
    let mut lines = 0;
    let mut raw = Vec::new();
    for number in present(folder)?.into_iter().rev() {
        let Some(file) = opened(folder, number)? else { continue };
        let mut file = BufReader::new(file);
        // Pieces of a long line are one line.
        while file.read_until(b'\n', &mut raw)? > 0 {
            lines += usize::from(spool::is_whole(&raw));
            raw.clear();
        }
        if lines >= tail {
            return Ok((number, 0));
        }
    }
    Ok((0, 0))
}
