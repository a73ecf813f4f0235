//! A replica's output on disk: numbered files of lines in the form of the CRI's logs,
//! `TIME STREAM F|P TEXT`, where P marks a piece of a line that goes on.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use crate::engines::LogLine;
use crate::model::id::TaskId;
use crate::model::service::LogPolicy;

/// Longest piece of a line; a longer line is cut into several.
pub const MAX_LINE: usize = 16 * 1024;

/// The file of that number in `folder`.
pub fn path(folder: &Path, number: u32) -> PathBuf {
    folder.join(format!("output.{number:06}"))
}

/// The numbers of the files in `folder`, ascending.
pub fn numbers(folder: &Path) -> io::Result<Vec<u32>> {
    let mut numbers = Vec::new();
    for entry in std::fs::read_dir(folder)? {
        let name = entry?.file_name();
        if let Some(number) = name.to_str().and_then(|name| name.strip_prefix("output.")?.parse().ok()) {
            numbers.push(number);
        }
    }
    numbers.sort_unstable();
    Ok(numbers)
}

/// Appends lines; begins a new file at the size asked for and removes the oldest.
pub struct Spool {
    folder: PathBuf,
    policy: LogPolicy,
    number: u32,
    file: File,
    size: u64,
    pending: Vec<u8>,
    lost: u64,
}

impl Spool {
    /// Opens the newest file of `folder`, or the first.
    pub fn open(folder: &Path, policy: LogPolicy) -> io::Result<Self> {
        let number = numbers(folder)?.last().copied().unwrap_or(1);
        let file = append(&path(folder, number))?;
        let size = file.metadata()?.len();
        Ok(Spool { folder: folder.to_owned(), policy, number, file, size, pending: Vec::with_capacity(4096), lost: 0 })
    }

    /// Adds one line, or a piece of one, to what the next `flush` writes.
    pub fn line(&mut self, at: &str, stream: &str, text: &[u8], whole: bool) {
        self.pending.extend_from_slice(at.as_bytes());
        self.pending.push(b' ');
        self.pending.extend_from_slice(stream.as_bytes());
        self.pending.extend_from_slice(if whole { b" F " } else { b" P " });
        self.pending.extend_from_slice(text);
        self.pending.push(b'\n');
    }

    /// Writes what was added. On a full disk it is dropped, counted, and said once there is room again: a replica
    /// is never held up by its log.
    pub fn flush(&mut self, at: &str) {
        if self.pending.is_empty() {
            return;
        }
        if self.lost > 0 {
            let note = format!("{at} stderr F neap: {} bytes of output were lost, the disk was full\n", self.lost);
            if self.write(note.as_bytes()).is_ok() {
                self.lost = 0;
            }
        }
        let pending = std::mem::take(&mut self.pending);
        if self.write(&pending).is_err() {
            self.lost += pending.len() as u64;
        }
        self.pending = pending;
        self.pending.clear();
        if self.size >= self.policy.max_size.0 {
            // Without a new file the old one simply goes on.
            let _ = self.rotate();
        }
    }

    fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        let before = self.size;
        if let Err(error) = self.file.write_all(bytes) {
            // A torn line would be read as another one.
            let _ = self.file.set_len(before);
            return Err(error);
        }
        self.size += bytes.len() as u64;
        Ok(())
    }

    fn rotate(&mut self) -> io::Result<()> {
        self.file = append(&path(&self.folder, self.number + 1))?;
        self.number += 1;
        self.size = 0;
        let numbers = numbers(&self.folder)?;
        let surplus = numbers.len().saturating_sub(self.policy.max_files as usize);
        for number in &numbers[..surplus] {
            std::fs::remove_file(path(&self.folder, *number))?;
        }
        Ok(())
    }
}

fn append(path: &Path) -> io::Result<File> {
    use std::os::unix::fs::OpenOptionsExt;
    OpenOptions::new().create(true).append(true).mode(0o640).open(path)
}

/// Whether a line of a file ends a line of output.
pub fn is_whole(raw: &[u8]) -> bool {
    raw.splitn(4, |byte| *byte == b' ').nth(2) == Some(b"F")
}

/// One line of a file, and whether it is whole.
pub fn parse(raw: &[u8], task: &TaskId) -> Option<(LogLine, bool)> {
    let text = String::from_utf8_lossy(raw);
    let mut fields = text.splitn(4, ' ');
    let at: jiff::Timestamp = fields.next()?.parse().ok()?;
    let stream = fields.next()?.to_owned();
    let whole = fields.next()? == "F";
    let text = fields.next()?.to_owned();
    let at = i64::try_from(at.as_nanosecond()).ok()?;
    Some((LogLine { at, task: *task, stream, text }, whole))
}

#[cfg(test)]
mod tests {
    use super::super::logs::Reader;
    use super::*;
    use crate::model::units::Bytes;

    #[test]
    fn rotates_and_reads_on() {
        let folder = tempfile::tempdir().unwrap();
        let task = TaskId::numbered(7);
        let policy = LogPolicy { max_size: Bytes(4096), max_files: 3, ..LogPolicy::default() };
        let mut spool = Spool::open(folder.path(), policy).unwrap();
        let mut reader = Reader::new(task, folder.path().to_owned(), (0, 0), None);
        let mut seen = 0;
        for number in 0..400 {
            spool.line(
                "2026-01-02T03:04:05.123456789Z",
                "stdout",
                format!("line {number} {}", "x".repeat(80)).as_bytes(),
                true,
            );
            spool.flush("2026-01-02T03:04:05Z");
            while let Some(line) = reader.next_line().unwrap() {
                assert!(line.text.starts_with(&format!("line {seen} ")), "{}", line.text);
                seen += 1;
            }
        }
        assert_eq!(seen, 400, "a reader that keeps up sees every line once, across rotations");
        assert_eq!(numbers(folder.path()).unwrap().len(), 3);
    }

    #[test]
    fn joins_pieces_and_leaves_torn_lines() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("output.000001");
        let at = "2026-01-02T03:04:05Z stdout";
        let text = format!("{at} P ab\n{at} F cd\n{at} P long\n{at} F to");
        std::fs::write(&file, &text).unwrap();
        let mut reader = Reader::new(TaskId::numbered(7), folder.path().to_owned(), (0, 0), None);
        assert_eq!(reader.next_line().unwrap().unwrap().text, "abcd");
        assert_eq!(reader.next_line().unwrap(), None, "a line whose end is not there yet is left");
        std::fs::write(&file, format!("{text}rn\n")).unwrap();
        assert_eq!(reader.next_line().unwrap().unwrap().text, "longtorn");
    }
}
