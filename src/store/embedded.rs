//! The embedded store: one redb file, one writer thread that gathers waiting commits into one transaction and one
//! fsync. Readers see the last finished transaction and wait for nobody.

use std::panic::AssertUnwindSafe;
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock, mpsc};

use async_trait::async_trait;
use redb::{Database, Durability, ReadableDatabase, ReadableTable, TableDefinition};
use tokio::sync::{broadcast, oneshot};

use super::record::verify;
use super::{Change, Entry, FORMAT, Store, Write};
use crate::model::{Error, Kind, Result, fault};

const DATA: TableDefinition<&str, &[u8]> = TableDefinition::new("data");
const META: TableDefinition<&str, u64> = TableDefinition::new("meta");
/// Most commits that share a transaction.
const GROUP: usize = 256;

struct Request {
    writes: Vec<Write>,
    reply: oneshot::Sender<Result<u64>>,
}

// redb refuses everything after a failed write (a full disk) until it is opened anew, so the writer can take it out
// and put another in.
type Slot = Arc<RwLock<Option<Database>>>;

/// The redb file in a data folder.
pub struct EmbeddedStore {
    database: Slot,
    requests: Option<mpsc::Sender<Request>>,
    changes: broadcast::Sender<Change>,
    writer: Option<std::thread::JoinHandle<()>>,
}

impl EmbeddedStore {
    /// Opens or creates `path`. A file that is no store, is damaged, or has a newer format is an error, and is left
    /// as it is.
    pub fn open(path: &Path) -> Result<Self> {
        // Opening writes: redb repairs what a killed process left. So a copy is kept until everything has been read.
        let copy = path.with_extension("redb.before");
        keep_copy(path, &copy)?;
        let opened = Self::open_and_read(path);
        let settled = match &opened {
            // Nothing is acknowledged before it is known to be gone: it would take the place of what follows.
            Ok(_) => std::fs::remove_file(&copy).and_then(|()| sync_folder(&copy)),
            // Another daemon has it: what it writes there is not ours to undo.
            Err(error) if error.kind == Kind::Conflict => std::fs::remove_file(&copy),
            Err(_) => std::fs::rename(&copy, path).and_then(|()| sync_folder(path)),
        };
        match settled {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                opened.and(Err(Error::io(subject(&copy), "put it away", &error)))
            }
            _ => opened,
        }
    }

    fn open_and_read(path: &Path) -> Result<Self> {
        let database = open_database(path)?;
        let version = prepare(&database).map_err(|error| damaged(path, &error))?;
        verify_all(&database, path)?;
        if let Some(format) = version.newer_format {
            return Err(Error::new(
                Kind::Corrupt,
                subject(path),
                format!("has format {format}; this neap knows up to {FORMAT}"),
            )
            .help("run the newer neap that wrote it"));
        }
        let database: Slot = Arc::new(RwLock::new(Some(database)));
        let (requests, inbox) = mpsc::channel();
        let (changes, _) = broadcast::channel(4096);
        let writer = Writer {
            database: database.clone(),
            changes: changes.clone(),
            version: version.last,
            path: path.to_owned(),
        };
        let writer = std::thread::Builder::new()
            .name("store".into())
            .spawn(move || writer.run(&inbox))
            .map_err(|error| Error::io(subject(path), "start the writer thread", &error))?;
        Ok(EmbeddedStore { database, requests: Some(requests), changes, writer: Some(writer) })
    }
}

impl EmbeddedStore {
    fn read(&self) -> Result<redb::ReadOnlyTable<&'static str, &'static [u8]>> {
        let slot = self.database.read().unwrap_or_else(PoisonError::into_inner);
        let database = slot.as_ref().ok_or_else(|| failed("it is being opened again after a failed write"))?;
        database.begin_read().map_err(failed)?.open_table(DATA).map_err(failed)
    }
}

impl Drop for EmbeddedStore {
    fn drop(&mut self) {
        self.requests = None;
        if let Some(writer) = self.writer.take() {
            let _ = writer.join();
        }
    }
}

// A copy that is there already is whole (it got its name last) and from an opening that never came to its end.
fn keep_copy(path: &Path, copy: &Path) -> Result<()> {
    let failed = |error: std::io::Error| Error::io(subject(path), "copy it", &error);
    if copy.exists() {
        return std::fs::copy(copy, path).and_then(|_| sync(path)).map_err(failed);
    }
    if path.exists() {
        let temporary = path.with_extension("redb.copy");
        match std::fs::copy(path, &temporary) {
            // It is whole on the disk before it has the name that says so.
            Ok(_) => sync(&temporary)
                .and_then(|()| std::fs::rename(&temporary, copy))
                .and_then(|()| sync_folder(copy))
                .map_err(failed)?,
            // A full disk must not keep a daemon from coming back; only the way back out of a repair is missing then.
            Err(error) if error.kind() == std::io::ErrorKind::StorageFull => {
                tracing::warn!("no room to keep a copy of the store while it is opened");
                let _ = std::fs::remove_file(&temporary);
            }
            Err(error) => return Err(failed(error)),
        }
    }
    Ok(())
}

fn sync(path: &Path) -> std::io::Result<()> {
    std::fs::File::open(path)?.sync_all()
}

fn sync_folder(of: &Path) -> std::io::Result<()> {
    of.parent().map_or(Ok(()), sync)
}

// Every record, so that damage is found before anything acts on the rest.
fn verify_all(database: &Database, path: &Path) -> Result<()> {
    let wrong = |error: &dyn std::fmt::Display| damaged(path, error);
    let table =
        database.begin_read().map_err(|error| wrong(&error))?.open_table(DATA).map_err(|error| wrong(&error))?;
    for item in table.iter().map_err(|error| wrong(&error))? {
        let (key, value) = item.map_err(|error| wrong(&error))?;
        verify(key.value(), &split(key.value(), value.value())?.value)?;
    }
    Ok(())
}

fn subject(path: &Path) -> String {
    format!("store {}", path.display())
}

fn damaged(path: &Path, error: &dyn std::fmt::Display) -> Error {
    Error::new(Kind::Corrupt, subject(path), "cannot be read")
        .cause(error)
        .help("restore the data folder from a backup, or start with an empty one (--data)")
}

fn failed(error: impl std::fmt::Display) -> Error {
    Error::new(Kind::Unavailable, "store", "cannot read or write").cause(error)
}

fn open_database(path: &Path) -> Result<Database> {
    // As with the data folder's own lock: what a killed daemon was just starting may hold a copy of the file's
    // descriptor for a moment.
    let mut tries = 0;
    loop {
        match try_open(path) {
            Err(error) if error.kind == Kind::Conflict && tries < 20 => tries += 1,
            other => return other,
        }
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
}

fn try_open(path: &Path) -> Result<Database> {
    // redb asserts on some damage; a panic at the door is the same as an error.
    let opened = std::panic::catch_unwind(|| {
        let mut builder = Database::builder();
        builder.set_cache_size(4 << 20);
        builder.create(path)
    });
    match opened {
        Ok(Ok(database)) => Ok(database),
        Ok(Err(redb::DatabaseError::DatabaseAlreadyOpen)) => {
            Err(Error::new(Kind::Conflict, subject(path), "is in use by another daemon")
                .help("stop it, or give this one another folder (--data)"))
        }
        Ok(Err(redb::DatabaseError::Storage(redb::StorageError::Io(error))))
            if !matches!(error.kind(), std::io::ErrorKind::InvalidData | std::io::ErrorKind::UnexpectedEof) =>
        {
            Err(Error::io(subject(path), "open it", &error))
        }
        Ok(Err(error)) => Err(damaged(path, &error)),
        Err(_) => Err(damaged(path, &"its structure is broken")),
    }
}

struct Prepared {
    last: u64,
    newer_format: Option<u64>,
}

fn prepare(database: &Database) -> Result<Prepared, redb::Error> {
    {
        let read = database.begin_read()?;
        if let Ok(meta) = read.open_table(META) {
            let format = meta.get("format")?.map_or(0, |value| value.value());
            if format > u64::from(FORMAT) {
                return Ok(Prepared { last: 0, newer_format: Some(format) });
            }
            if format > 0 {
                return Ok(Prepared {
                    last: meta.get("version")?.map_or(0, |value| value.value()),
                    newer_format: None,
                });
            }
        }
    }
    let write = database.begin_write()?;
    {
        write.open_table(DATA)?;
        write.open_table(META)?.insert("format", u64::from(FORMAT))?;
    }
    write.commit()?;
    Ok(Prepared { last: 0, newer_format: None })
}

#[async_trait]
impl Store for EmbeddedStore {
    fn get(&self, key: &str) -> Result<Option<Entry>> {
        let table = self.read()?;
        let found = table.get(key).map_err(failed)?;
        found.map(|value| split(key, value.value())).transpose()
    }

    fn list(&self, prefix: &str) -> Result<Vec<Entry>> {
        let table = self.read()?;
        let mut entries = Vec::new();
        for item in table.range(prefix..).map_err(failed)? {
            let (key, value) = item.map_err(failed)?;
            if !key.value().starts_with(prefix) {
                break;
            }
            entries.push(split(key.value(), value.value())?);
        }
        Ok(entries)
    }

    async fn commit(&self, writes: Vec<Write>) -> Result<u64> {
        writes.iter().try_for_each(Write::check)?;
        let (reply, answer) = oneshot::channel();
        let gone = || Error::new(Kind::Unavailable, "store", "is closed");
        self.requests.as_ref().ok_or_else(gone)?.send(Request { writes, reply }).map_err(|_| gone())?;
        answer.await.map_err(|_| gone())?
    }

    fn watch(&self) -> broadcast::Receiver<Change> {
        self.changes.subscribe()
    }
}

// A value is stored behind the number of the commit that wrote it.
fn split(key: &str, stored: &[u8]) -> Result<Entry> {
    let Some((version, value)) = stored.split_first_chunk::<8>() else {
        return Err(Error::new(Kind::Corrupt, format!("record \"{key}\""), "is damaged: too short"));
    };
    Ok(Entry { key: key.to_owned(), version: u64::from_le_bytes(*version), value: value.to_vec() })
}

struct Writer {
    database: Slot,
    changes: broadcast::Sender<Change>,
    version: u64,
    path: PathBuf,
}

impl Writer {
    fn run(mut self, inbox: &mpsc::Receiver<Request>) {
        while let Ok(first) = inbox.recv() {
            let mut group = vec![first];
            while group.len() < GROUP
                && let Ok(next) = inbox.try_recv()
            {
                group.push(next);
            }
            self.write(group);
        }
    }

    // After a failed write. Until it succeeds, commits fail and try it again. The number of the last commit that is there.
    fn reopen(&self) -> Option<u64> {
        let mut slot = self.database.write().unwrap_or_else(PoisonError::into_inner);
        *slot = None;
        match open_database(&self.path) {
            Ok(database) => {
                let last = prepare(&database).ok().map(|prepared| prepared.last);
                *slot = Some(database);
                last
            }
            Err(error) => {
                tracing::error!(%error, "the store cannot be opened again");
                None
            }
        }
    }

    // Each request of a group stands for itself: one that conflicts is left out, the others go in.
    fn write(&mut self, group: Vec<Request>) {
        let mut replies = Vec::with_capacity(group.len());
        let before = self.version;
        fault::point("store.before-commit");
        let mut changes = Vec::new();
        let tried = AssertUnwindSafe(|| self.transaction(group, &mut replies, &mut changes));
        // A file that is damaged under our hands may break redb off: that write failed, and the next is tried.
        let broken = |_| Err(redb::Error::Io(std::io::Error::other("its structure is broken")));
        let mut result = std::panic::catch_unwind(tried).unwrap_or_else(broken);
        fault::point("store.after-commit");
        if result.is_err() {
            let reached = std::mem::replace(&mut self.version, before);
            // What failed last may have failed once all was written: then it is there, and its number is taken.
            if self.reopen() == Some(reached) && reached > before {
                self.version = reached;
                result = Ok(());
            }
        }
        match result {
            Ok(()) => {
                for change in changes {
                    let _ = self.changes.send(change);
                }
                for (reply, result) in replies {
                    let _ = reply.send(result);
                }
            }
            Err(error) => {
                let full = matches!(&error, redb::Error::Io(io) if io.kind() == std::io::ErrorKind::StorageFull);
                let mut failure = Error::new(
                    if full { Kind::Exhausted } else { Kind::Unavailable },
                    subject(&self.path),
                    "cannot be written",
                )
                .cause(&error);
                if full {
                    failure = failure
                        .help("free space on the data folder's disk; nothing that was acknowledged is lost")
                        .retry(true);
                }
                for (reply, _) in replies {
                    let _ = reply.send(Err(failure.clone()));
                }
            }
        }
    }

    fn transaction(
        &mut self,
        group: Vec<Request>,
        replies: &mut Vec<(oneshot::Sender<Result<u64>>, Result<u64>)>,
        changes: &mut Vec<Change>,
    ) -> Result<(), redb::Error> {
        let mut requests = Vec::with_capacity(group.len());
        for request in group {
            replies.push((request.reply, Ok(0)));
            requests.push(request.writes);
        }
        if self.database.read().unwrap_or_else(PoisonError::into_inner).is_none()
            && let Some(last) = self.reopen()
        {
            self.version = self.version.max(last);
        }
        let slot = self.database.read().unwrap_or_else(PoisonError::into_inner);
        let Some(database) = slot.as_ref() else {
            return Err(redb::Error::Io(std::io::Error::other("the file cannot be opened again")));
        };
        let mut transaction = database.begin_write()?;
        transaction.set_durability(Durability::Immediate)?;
        // In two phases: a reopened file then shows the last commit or an error, never silently the one before.
        transaction.set_two_phase_commit(true);
        {
            let mut data = transaction.open_table(DATA)?;
            let mut meta = transaction.open_table(META)?;
            for (writes, (_, outcome)) in requests.into_iter().zip(replies.iter_mut()) {
                *outcome = conflict(&data, &writes)?;
                if outcome.is_err() {
                    continue;
                }
                self.version += 1;
                *outcome = Ok(self.version);
                for Write { key, value, .. } in writes {
                    let removed = value.is_none();
                    match value {
                        Some(value) => {
                            let stored = [&self.version.to_le_bytes()[..], &value].concat();
                            data.insert(key.as_str(), stored.as_slice())?;
                        }
                        None => {
                            data.remove(key.as_str())?;
                        }
                    }
                    changes.push(Change { key, version: self.version, removed });
                }
            }
            meta.insert("version", self.version)?;
        }
        transaction.commit()?;
        Ok(())
    }
}

fn conflict(data: &redb::Table<&str, &[u8]>, writes: &[Write]) -> Result<Result<u64>, redb::Error> {
    for write in writes {
        let version = match data.get(write.key.as_str())? {
            Some(stored) => stored.value().first_chunk::<8>().map(|bytes| u64::from_le_bytes(*bytes)),
            None => None,
        };
        if let Err(error) = write.meets(version) {
            return Ok(Err(error));
        }
    }
    Ok(Ok(0))
}
