//! What is known of repositories: their manifests, tags and blobs, what names what. One redb file beside the blobs; one thread writes,
//! and gathers what waits into one transaction and one fsync. Readers see the last one and wait for nobody.

mod changes;
mod collect;
mod copies;
mod describe;
mod prune;
mod reads;
mod replica;

use std::panic::AssertUnwindSafe;
use std::path::Path;
use std::sync::{Arc, PoisonError, RwLock, mpsc};

use redb::{Database, MultimapTableDefinition, ReadableDatabase, TableDefinition, WriteTransaction};
use tokio::sync::{Notify, oneshot};

pub use changes::{Put, is_copy};
pub use describe::{Summary, Tagged};
pub use reads::{Found, Page};
pub use replica::{Moment, Standing};

use super::refused::{Code, Refused};
use crate::model::{Error, Kind, Result as ModelResult, fault};

/// Repositories that hold a manifest, and when they got the first, in milliseconds since 1970.
const REPOSITORIES: TableDefinition<&str, u64> = TableDefinition::new("repositories");
/// By repository and digest: media type, bytes, when it came, its subject or nothing.
const MANIFESTS: TableDefinition<(&str, &str), (&str, u64, u64, &str)> = TableDefinition::new("manifests");
/// What is in manifests, by digest, and the repositories that have them.
const CONTENT: TableDefinition<&str, &[u8]> = TableDefinition::new("content");
const HOLDERS: MultimapTableDefinition<&str, &str> = MultimapTableDefinition::new("holders");
/// By repository and tag: a digest, and when it was set; and the same the other way round.
const TAGS: TableDefinition<(&str, &str), (&str, u64)> = TableDefinition::new("tags");
const TAGGED: MultimapTableDefinition<(&str, &str), &str> = MultimapTableDefinition::new("tagged");
/// What says something of a subject, by repository, subject and digest: as it is told to clients, in JSON.
const REFERRERS: TableDefinition<(&str, &str, &str), &[u8]> = TableDefinition::new("referrers");
/// Blobs: bytes, and when they came.
const BLOBS: TableDefinition<&str, (u64, u64)> = TableDefinition::new("blobs");
/// Blobs of repositories: when they came there; and the same the other way round.
const LINKS: TableDefinition<(&str, &str), u64> = TableDefinition::new("links");
const LINKED: MultimapTableDefinition<&str, &str> = MultimapTableDefinition::new("linked");
/// By repository and digest of a blob or manifest: the manifests there that name it.
const NAMED: MultimapTableDefinition<(&str, &str), &str> = MultimapTableDefinition::new("named");
/// Manifests that are copies of another registry's: when they were last asked for.
const COPIES: TableDefinition<(&str, &str), u64> = TableDefinition::new("copies");
/// How the registry is kept, as it was told: by name, in JSON.
const SETTINGS: TableDefinition<&str, &[u8]> = TableDefinition::new("settings");
/// What has changed since another place was told, by number: what `replica` calls it.
const CHANGES: TableDefinition<u64, &str> = TableDefinition::new("changes");
/// Blobs that the other place has, and what they are called there, behind their digests.
const REPLICATED: TableDefinition<&str, &str> = TableDefinition::new("replicated");
/// What is there, by name, and is not needed any more.
const GONE: TableDefinition<&str, ()> = TableDefinition::new("gone");
/// Which place that is, and how far it is.
const REPLICA: TableDefinition<&str, &str> = TableDefinition::new("replica");
const META: TableDefinition<&str, u64> = TableDefinition::new("meta");

/// The layout that this build makes, and the newest it knows.
const FORMAT: u64 = 3;
/// Most changes that share a transaction.
const GROUP: usize = 512;
/// What of the file is kept in memory, in bytes.
const CACHE: usize = 32 << 20;

// redb refuses everything after a failed write (a full disk) until it is opened anew.
type Slot = Arc<RwLock<Option<Database>>>;

/// Why a change was not made.
#[derive(Debug)]
pub enum Failed {
    /// It is refused; nothing of it was written.
    Refused(Refused),
    /// The file cannot be read or written: none of its group was made.
    Store(redb::Error),
}

impl From<Refused> for Failed {
    fn from(refused: Refused) -> Self {
        Failed::Refused(refused)
    }
}

impl<E: Into<redb::Error>> From<E> for Failed {
    fn from(error: E) -> Self {
        Failed::Store(error.into())
    }
}

fn unusable(error: impl std::fmt::Display) -> Refused {
    tracing::error!(%error, "the registry's index cannot be used");
    Refused::new(Code::Unknown, "the registry's index cannot be read or written").status_of(503)
}

// A change on its way: made within a transaction, acknowledged behind it.
trait Work: Send {
    fn run(&mut self, write: &WriteTransaction) -> Result<(), redb::Error>;
    fn settle(self: Box<Self>, committed: bool);
}

struct Job<T, F> {
    change: Option<F>,
    made: Option<Result<T, Refused>>,
    reply: oneshot::Sender<Result<T, Refused>>,
}

impl<T: Send, F: FnOnce(&WriteTransaction) -> Result<T, Failed> + Send> Work for Job<T, F> {
    fn run(&mut self, write: &WriteTransaction) -> Result<(), redb::Error> {
        let Some(change) = self.change.take() else { return Ok(()) };
        match change(write) {
            Ok(made) => self.made = Some(Ok(made)),
            Err(Failed::Refused(refused)) => self.made = Some(Err(refused)),
            Err(Failed::Store(error)) => return Err(error),
        }
        Ok(())
    }

    fn settle(self: Box<Self>, committed: bool) {
        let broken = || Refused::new(Code::Unknown, "the registry's index cannot be written").status_of(503);
        let made = if committed { self.made } else { None };
        let _ = self.reply.send(made.unwrap_or_else(|| Err(broken())));
    }
}

/// What may be done with it just now.
#[derive(Debug, Clone, Default)]
pub enum Open {
    /// All.
    #[default]
    Whole,
    /// What changes nothing that another place would have to be told of: that does not answer, say.
    ReadOnly(Refused),
    /// Nothing: what is here is not what it is to be.
    Not(Refused),
}

impl Open {
    fn may_read(&self) -> Result<(), Refused> {
        match self {
            Open::Whole | Open::ReadOnly(_) => Ok(()),
            Open::Not(refused) => Err(refused.clone()),
        }
    }

    fn may_write(&self) -> Result<(), Refused> {
        match self {
            Open::Whole => Ok(()),
            Open::ReadOnly(refused) | Open::Not(refused) => Err(refused.clone()),
        }
    }
}

/// The index of a registry.
pub struct Index {
    database: Slot,
    opened: Arc<RwLock<Open>>,
    // That something has been written.
    written: Arc<Notify>,
    jobs: Option<mpsc::Sender<Box<dyn Work>>>,
    writer: Option<std::thread::JoinHandle<()>>,
}

impl Drop for Index {
    fn drop(&mut self) {
        self.jobs = None;
        if let Some(writer) = self.writer.take() {
            let _ = writer.join();
        }
    }
}

impl Index {
    /// Opens or makes the file.
    pub fn open(path: &Path) -> ModelResult<Self> {
        let database = open(path)?;
        let database: Slot = Arc::new(RwLock::new(Some(database)));
        let (jobs, inbox) = mpsc::channel();
        let (slot, path) = (database.clone(), path.to_owned());
        let written = Arc::new(Notify::new());
        let told = written.clone();
        let writer = std::thread::Builder::new()
            .name("registry-index".into())
            .spawn(move || run(&slot, &path, &inbox, &told))
            .map_err(|error| Error::io("registry", "start the index's thread", &error))?;
        Ok(Index { database, opened: Arc::default(), written, jobs: Some(jobs), writer: Some(writer) })
    }

    /// Says what may be done with it from now on.
    pub fn open_for(&self, opened: Open) {
        *self.opened.write().unwrap_or_else(PoisonError::into_inner) = opened;
    }

    /// That something has been written since this was waited for last.
    pub fn written(&self) -> &Notify {
        &self.written
    }

    fn may_read(&self) -> Result<(), Refused> {
        self.opened.read().unwrap_or_else(PoisonError::into_inner).may_read()
    }

    /// Whether changes are taken just now.
    pub fn may_write(&self) -> Result<(), Refused> {
        self.opened.read().unwrap_or_else(PoisonError::into_inner).may_write()
    }

    /// Makes a change, durably. It refuses before it writes.
    async fn write<T: Send + 'static>(
        &self,
        change: impl FnOnce(&WriteTransaction) -> Result<T, Failed> + Send + 'static,
    ) -> Result<T, Refused> {
        self.may_write()?;
        let opened = self.opened.clone();
        // Also when it is its turn: what is behind that may be another's.
        self.write_any(move |write| {
            opened.read().unwrap_or_else(PoisonError::into_inner).may_write()?;
            change(write)
        })
        .await
    }

    /// The same for what is this host's alone: it can be made also while another place cannot be told.
    async fn write_here<T: Send + 'static>(
        &self,
        change: impl FnOnce(&WriteTransaction) -> Result<T, Failed> + Send + 'static,
    ) -> Result<T, Refused> {
        self.may_read()?;
        let opened = self.opened.clone();
        self.write_any(move |write| {
            opened.read().unwrap_or_else(PoisonError::into_inner).may_read()?;
            change(write)
        })
        .await
    }

    async fn write_any<T: Send + 'static>(
        &self,
        change: impl FnOnce(&WriteTransaction) -> Result<T, Failed> + Send + 'static,
    ) -> Result<T, Refused> {
        let (reply, answer) = oneshot::channel();
        let gone = || Refused::new(Code::Unknown, "the registry is about to end").status_of(503);
        let job = Job { change: Some(change), made: None, reply };
        self.jobs.as_ref().ok_or_else(gone)?.send(Box::new(job)).map_err(|_| gone())?;
        answer.await.map_err(|_| gone())?
    }

    // Looks at what is there.
    fn read<T>(&self, look: impl FnOnce(&redb::ReadTransaction) -> Result<T, Failed>) -> Result<T, Refused> {
        self.may_read()?;
        self.read_any(look)
    }

    // The same, whether or not it is anybody's to look at just now.
    fn read_any<T>(&self, look: impl FnOnce(&redb::ReadTransaction) -> Result<T, Failed>) -> Result<T, Refused> {
        let slot = self.database.read().unwrap_or_else(PoisonError::into_inner);
        let Some(database) = slot.as_ref() else {
            // Whoever writes tries to open it again: here is something to write.
            let (reply, _) = oneshot::channel();
            let nothing = Job { change: Some(|_: &WriteTransaction| Ok(())), made: None, reply };
            let _ = self.jobs.as_ref().map(|jobs| jobs.send(Box::new(nothing)));
            return Err(unusable("it is being opened again"));
        };
        let read = database.begin_read().map_err(unusable)?;
        drop(slot);
        look(&read).map_err(|failed| match failed {
            Failed::Refused(refused) => refused,
            Failed::Store(error) => unusable(error),
        })
    }
}

fn open(path: &Path) -> ModelResult<Database> {
    let subject = || format!("registry index {}", path.display());
    let damaged = |error: &dyn std::fmt::Display| {
        Error::new(Kind::Corrupt, subject(), "cannot be read").cause(error).help("restore it from a backup")
    };
    // redb asserts on some damage; a panic at the door is the same as an error.
    let opened = std::panic::catch_unwind(|| {
        let mut builder = Database::builder();
        builder.set_cache_size(CACHE);
        builder.create(path)
    });
    let database = match opened {
        Ok(Ok(database)) => database,
        Ok(Err(redb::DatabaseError::DatabaseAlreadyOpen)) => {
            return Err(Error::new(Kind::Conflict, subject(), "is in use by another daemon"));
        }
        Ok(Err(error)) => return Err(damaged(&error)),
        Err(_) => return Err(damaged(&"its structure is broken")),
    };
    let format = prepare(&database).map_err(|error| damaged(&error))?;
    if format > FORMAT {
        let why = format!("has format {format}; this neap knows up to {FORMAT}");
        return Err(Error::new(Kind::Corrupt, subject(), why).help("run the newer neap that wrote it"));
    }
    Ok(database)
}

// Its format. What is new, or was made before all of them were known, gets all its tables, so that readers find them.
fn prepare(database: &Database) -> Result<u64, redb::Error> {
    if let Ok(meta) = database.begin_read()?.open_table(META)
        && let Some(format) = meta.get("format")?
        && format.value() >= FORMAT
    {
        return Ok(format.value());
    }
    let write = database.begin_write()?;
    write.open_table(META)?.insert("format", FORMAT)?;
    tables(&write)?;
    write.commit()?;
    Ok(FORMAT)
}

// All of them are there from now on.
fn tables(write: &WriteTransaction) -> Result<(), redb::Error> {
    write.open_table(REPOSITORIES)?;
    write.open_table(MANIFESTS)?;
    write.open_table(CONTENT)?;
    write.open_multimap_table(HOLDERS)?;
    write.open_table(TAGS)?;
    write.open_multimap_table(TAGGED)?;
    write.open_table(REFERRERS)?;
    write.open_table(BLOBS)?;
    write.open_table(LINKS)?;
    write.open_multimap_table(LINKED)?;
    write.open_multimap_table(NAMED)?;
    write.open_table(COPIES)?;
    write.open_table(SETTINGS)?;
    write.open_table(CHANGES)?;
    write.open_table(REPLICATED)?;
    write.open_table(GONE)?;
    write.open_table(REPLICA)?;
    Ok(())
}

fn run(slot: &Slot, path: &Path, inbox: &mpsc::Receiver<Box<dyn Work>>, written: &Notify) {
    while let Ok(first) = inbox.recv() {
        let mut group = vec![first];
        while group.len() < GROUP
            && let Ok(next) = inbox.try_recv()
        {
            group.push(next);
        }
        let tried = AssertUnwindSafe(|| transaction(slot, &mut group));
        // A file that is damaged under our hands may break redb off: that write failed, and the next is tried.
        let broken = |_| Err(redb::Error::Io(std::io::Error::other("its structure is broken")));
        let result = std::panic::catch_unwind(tried).unwrap_or_else(broken);
        if let Err(error) = &result {
            tracing::error!(%error, "the registry's index cannot be written; it is opened anew");
            // The one before has to be closed first; readers are told meanwhile, and do not wait.
            *slot.write().unwrap_or_else(PoisonError::into_inner) = None;
            match open(path) {
                Ok(database) => *slot.write().unwrap_or_else(PoisonError::into_inner) = Some(database),
                Err(error) => tracing::error!(%error, "the registry's index cannot be opened again"),
            }
        }
        group.into_iter().for_each(|job| job.settle(result.is_ok()));
        written.notify_one();
    }
}

fn transaction(slot: &Slot, group: &mut [Box<dyn Work>]) -> Result<(), redb::Error> {
    let slot = slot.read().unwrap_or_else(PoisonError::into_inner);
    let closed = || redb::Error::Io(std::io::Error::other("it could not be opened again"));
    let mut write = slot.as_ref().ok_or_else(closed)?.begin_write()?;
    // What a killed process leaves is found whole without reading all of it.
    write.set_quick_repair(true);
    for job in group {
        job.run(&write)?;
    }
    fault::point("registry.before-commit");
    write.commit()?;
    fault::point("registry.after-commit");
    Ok(())
}
