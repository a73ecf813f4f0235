//! Uploads: files that grow while their digest is made. One that a daemon has not ended goes on in the next. Between two requests an upload
//! is its file and a few numbers: nothing stays open for it.

use std::collections::HashMap;
use std::fs::{File, OpenOptions};
use std::io::{self, Read};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use tokio::sync::{OwnedMutexGuard, OwnedSemaphorePermit, mpsc};

use super::digest::{Algorithm, Digest, Hasher};
use super::name::Repository;
use super::refused::{Code, Refused};
use crate::model::clock::Clock;
use crate::model::fault;
use crate::model::id::{random_uuid, sha256_hex};

/// How much is written before what was written goes to the disk, beside what goes on: the end has little to wait for then.
const BESIDE: u64 = 16 << 20;
/// What is hashed and written in one go, in bytes.
const BATCH: usize = 1 << 20;
/// What is worth a second thread for its hash, in bytes.
const BOTH: usize = 512 << 10;
/// Most uploads that this daemon knows of.
const MOST: usize = 100_000;
/// How long one waits of which nothing has come.
const EMPTY: Duration = Duration::from_secs(60 * 60);

/// Uploads on a disk.
pub struct Uploads {
    folder: PathBuf,
    known: Mutex<HashMap<String, Shared>>,
}

// One, for whoever goes on with it.
type Shared = Arc<tokio::sync::Mutex<State>>;

/// How far an upload is.
pub enum State {
    /// Its file is there, and was not read yet.
    Unread,
    /// It grows.
    Growing(Box<Upload>),
    /// It became a blob, or was given up.
    Over,
}

/// An upload.
pub struct Upload {
    /// Its file.
    pub path: PathBuf,
    /// Bytes so far.
    pub size: u64,
    hasher: Hasher,
    // Something of it did not get to the disk, or nobody knows: no digest makes it a blob any more.
    is_broken: bool,
}

/// A part of what comes, with the room that it takes.
pub struct Part {
    /// It.
    pub bytes: Bytes,
    /// Given back once it is written.
    pub room: OwnedSemaphorePermit,
}

/// What has become of some bytes that came.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Received {
    /// All of them are there.
    All,
    /// More than may be: those behind it were not taken.
    TooMuch,
}

fn unknown(id: &str) -> Refused {
    let why = format!("there is no upload {id:.80?}: it is over, was given up, or never was");
    Refused::new(Code::BlobUploadUnknown, why).about(id)
}

fn failed(error: &io::Error) -> Refused {
    Refused::io("write an upload", error)
}

fn broken() -> Refused {
    Refused::new(Code::Unknown, "the upload did not get to the disk: begin another").status_of(500)
}

// A part of the file's name, so that an upload is of its repository and of no other.
fn mark(repository: &Repository) -> String {
    sha256_hex(repository.as_str().as_bytes())[..16].to_owned()
}

/// An upload that is gone on with, by one at a time.
pub struct Growing {
    id: String,
    state: OwnedMutexGuard<State>,
}

impl Growing {
    /// What it is called.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// Bytes so far.
    pub fn size(&self) -> u64 {
        match &*self.state {
            State::Growing(upload) => upload.size,
            State::Unread | State::Over => 0,
        }
    }

    fn upload(&mut self) -> Result<&mut Upload, Refused> {
        match &mut *self.state {
            State::Growing(upload) => Ok(upload),
            State::Unread | State::Over => Err(unknown(&self.id)),
        }
    }

    /// What it is so far, to be read while it grows.
    pub fn reader(&self) -> io::Result<File> {
        match &*self.state {
            State::Growing(upload) => File::open(&upload.path),
            State::Unread | State::Over => Err(io::ErrorKind::NotFound.into()),
        }
    }

    /// Takes what comes until nothing more does, `most` bytes altogether at most. What came before an end too early stays. How many bytes
    /// are written is `told` on the way.
    pub async fn receive(
        mut self,
        mut parts: mpsc::Receiver<Part>,
        most: u64,
        told: impl Fn(u64),
    ) -> Result<(Self, Received), Refused> {
        let path = self.upload()?.path.clone();
        let id = self.id.clone();
        let opened = aside(move || match OpenOptions::new().write(true).open(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Err(unknown(&id)),
            other => other.map_err(|error| failed(&error)),
        });
        let file = Arc::new(opened.await?);
        let (mut beside, mut since) = (None::<tokio::task::JoinHandle<io::Result<()>>>, self.size());
        let mut received = Ok(Received::All);
        while let Some(first) = parts.recv().await {
            let (mut length, mut batch) = (first.bytes.len(), vec![first]);
            while length < BATCH
                && let Ok(next) = parts.try_recv()
            {
                length += next.bytes.len();
                batch.push(next);
            }
            if self.size() + length as u64 > most {
                received = Ok(Received::TooMuch);
                break;
            }
            let file_of = file.clone();
            let (growing, written) = aside(move || {
                let written = self.upload().and_then(|upload| upload.write(&file_of, &batch));
                Ok((self, written))
            })
            .await?;
            self = growing;
            if let Err(refused) = written {
                received = Err(refused);
                break;
            }
            told(self.size());
            if self.size() - since >= BESIDE && beside.as_ref().is_none_or(tokio::task::JoinHandle::is_finished) {
                self.note(beside.take()).await;
                since = self.size();
                let file = file.clone();
                beside = Some(tokio::task::spawn_blocking(move || file.sync_data()));
            }
        }
        self.note(beside).await;
        received.map(|received| (self, received))
    }

    // An error of the disk is told once: whoever hears it has to remember.
    async fn note(&mut self, syncing: Option<tokio::task::JoinHandle<io::Result<()>>>) {
        let Some(syncing) = syncing else { return };
        if !matches!(syncing.await, Ok(Ok(())))
            && let Ok(upload) = self.upload()
        {
            upload.is_broken = true;
        }
    }

    /// The digest of all of it, by this algorithm.
    pub fn digest(&mut self, algorithm: Algorithm) -> Result<Digest, Refused> {
        let upload = self.upload()?;
        if upload.hasher.algorithm() == algorithm {
            return Ok(upload.hasher.clone().finish());
        }
        let file = File::open(&upload.path).map_err(|error| failed(&error))?;
        let (hasher, _) = hash(file, algorithm).map_err(|error| failed(&error))?;
        Ok(hasher.finish())
    }
}

impl Upload {
    fn write(&mut self, file: &File, batch: &[Part]) -> Result<(), Refused> {
        let length: usize = batch.iter().map(|part| part.bytes.len()).sum();
        if length < BOTH {
            return self.write_each(file, batch, true);
        }
        // Much at once is hashed by one thread while another writes it.
        let mut hasher = self.hasher.clone();
        let written = std::thread::scope(|scope| {
            let hashing = scope.spawn(|| batch.iter().for_each(|part| hasher.update(&part.bytes)));
            let before = self.size;
            let written = self.write_each(file, batch, false);
            let is_hashed = hashing.join().is_ok();
            written.and_then(|()| if is_hashed { Ok(()) } else { Err(broken()) }).map_err(|refused| (before, refused))
        });
        match written {
            Ok(()) => {
                self.hasher = hasher;
                Ok(())
            }
            Err((before, refused)) => {
                // Some of it is there, and not hashed: that is not there either.
                self.size = before;
                self.is_broken |= file.set_len(before).is_err();
                Err(refused)
            }
        }
    }

    fn write_each(&mut self, file: &File, batch: &[Part], hashes: bool) -> Result<(), Refused> {
        for part in batch {
            if let Err(error) = file.write_all_at(&part.bytes, self.size) {
                // What is behind the bytes that count is not; if that cannot be said, nobody knows what is.
                self.is_broken |= file.set_len(self.size).is_err();
                return Err(failed(&error));
            }
            if hashes {
                self.hasher.update(&part.bytes);
            }
            self.size += part.bytes.len() as u64;
            fault::point("registry.receiving");
        }
        Ok(())
    }

    /// Its file, if it is what was hashed.
    pub fn open(&self) -> Result<File, Refused> {
        let file = OpenOptions::new().read(true).write(true).open(&self.path).map_err(|error| failed(&error))?;
        let length = file.metadata().map_err(|error| failed(&error))?.len();
        if self.is_broken || length != self.size { Err(broken()) } else { Ok(file) }
    }

    // One that another daemon began; nothing: there is none.
    fn again(path: &Path) -> Result<Option<Self>, Refused> {
        let file = match File::open(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            other => other.map_err(|error| failed(&error))?,
        };
        let (hasher, size) = hash(file, Algorithm::Sha256).map_err(|error| failed(&error))?;
        Ok(Some(Upload { path: path.to_owned(), size, hasher, is_broken: false }))
    }
}

impl Uploads {
    /// Those in a folder.
    pub fn open(folder: &Path) -> io::Result<Self> {
        let folder = folder.join("uploads");
        super::disk::make(&folder)?;
        Ok(Uploads { folder, known: Mutex::default() })
    }

    fn known(&self) -> MutexGuard<'_, HashMap<String, Shared>> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn path(&self, repository: &Repository, id: &str) -> PathBuf {
        self.folder.join(format!("{id}-{}", mark(repository)))
    }

    /// A new one.
    pub fn begin(&self, repository: &Repository, algorithm: Algorithm, clock: &dyn Clock) -> Result<Growing, Refused> {
        if self.known().len() >= MOST {
            return Err(Refused::new(Code::TooManyRequests, format!("{MOST} uploads are under way")));
        }
        let id = random_uuid(clock);
        let path = self.path(repository, &id);
        let made = OpenOptions::new().create_new(true).write(true).mode(0o600).open(&path);
        made.map_err(|error| failed(&error))?;
        let upload = Upload { path, size: 0, hasher: Hasher::new(algorithm), is_broken: false };
        let shared = Arc::new(tokio::sync::Mutex::new(State::Growing(Box::new(upload))));
        let state = shared.clone().try_lock_owned().map_err(|_| broken())?;
        self.known().insert(id.clone(), shared);
        Ok(Growing { id, state })
    }

    /// One that is a file already, which stays where it is.
    pub fn take_in(&self, repository: &Repository, file: &Path, clock: &dyn Clock) -> Result<Growing, Refused> {
        let id = random_uuid(clock);
        let path = self.path(repository, &id);
        // Known before it is there: however old it is, nobody takes it for given up.
        let shared = Arc::new(tokio::sync::Mutex::new(State::Unread));
        let mut growing = Growing { id: id.clone(), state: shared.clone().try_lock_owned().map_err(|_| broken())? };
        self.known().insert(id.clone(), shared);
        match brought(file, &path).map_err(|error| failed(&error)).and_then(|()| Upload::again(&path)) {
            Ok(Some(upload)) => {
                *growing.state = State::Growing(Box::new(upload));
                Ok(growing)
            }
            other => {
                self.forget(&mut growing);
                let _ = super::disk::remove_file(&path);
                Err(other.err().unwrap_or_else(|| unknown(&id)))
            }
        }
    }

    /// One that has begun. One of an earlier daemon is read once more, for its digest, by the first who asks.
    pub async fn find(self: &Arc<Self>, repository: &Repository, id: &str) -> Result<Growing, Refused> {
        // It is a part of a path.
        let is_id = id.len() == 36 && id.bytes().all(|byte| byte.is_ascii_hexdigit() || byte == b'-');
        let path = self.path(repository, if is_id { id } else { "none" });
        if !is_id || !path.exists() {
            return Err(unknown(id));
        }
        let shared = self.known().entry(id.to_owned()).or_insert_with(|| Arc::new(State::Unread.into())).clone();
        let mut growing = Growing { id: id.to_owned(), state: shared.lock_owned().await };
        if matches!(*growing.state, State::Unread) {
            // Whoever asked may be gone before all of it is read: that is not in vain.
            let own = self.clone();
            let read = tokio::spawn(async move {
                aside(move || {
                    match Upload::again(&path)? {
                        Some(upload) => *growing.state = State::Growing(Box::new(upload)),
                        None => own.forget(&mut growing),
                    }
                    Ok(growing)
                })
                .await
            });
            growing = read.await.map_err(|_| broken())??;
        }
        let path = self.path(repository, id);
        if growing.upload()?.path != path { Err(unknown(id)) } else { Ok(growing) }
    }

    // Nobody goes on with it.
    fn forget(&self, growing: &mut Growing) {
        *growing.state = State::Over;
        self.known().remove(&growing.id);
    }

    /// It is to become a blob, and is nobody's to go on with from here on: what it was.
    pub fn take(&self, growing: &mut Growing) -> Result<Upload, Refused> {
        growing.upload()?;
        let state = std::mem::replace(&mut *growing.state, State::Over);
        self.known().remove(&growing.id);
        match state {
            State::Growing(upload) => Ok(*upload),
            State::Unread | State::Over => Err(unknown(&growing.id)),
        }
    }

    /// Gives one up.
    pub fn remove(&self, growing: &mut Growing) -> Result<(), Refused> {
        let upload = self.take(growing)?;
        super::disk::remove_file(&upload.path).map_err(|error| failed(&error))
    }

    /// Gives up those on which nothing came for so long; how many.
    pub fn expire(&self, age: Duration) -> io::Result<usize> {
        let mut count = 0;
        for entry in std::fs::read_dir(&self.folder)? {
            let entry = entry?;
            let Ok(meta) = entry.metadata() else { continue };
            let patience = if meta.len() == 0 { age.min(EMPTY) } else { age };
            let is_old = |at| SystemTime::now().duration_since(at).is_ok_and(|since| since >= patience);
            if !meta.modified().is_ok_and(is_old) {
                continue;
            }
            let name = entry.file_name().to_string_lossy().into_owned();
            let id = name.get(..36).unwrap_or(&name).to_owned();
            let shared = self.known().entry(id.clone()).or_insert_with(|| Arc::new(State::Unread.into())).clone();
            // One that somebody goes on with right now is not given up.
            let Ok(state) = shared.try_lock_owned() else { continue };
            self.forget(&mut Growing { id, state });
            if std::fs::remove_file(entry.path()).is_ok() {
                count += 1;
            }
        }
        Ok(count)
    }
}

// Shares a file that nobody else may write to; of any other there is a copy.
fn brought(file: &Path, path: &Path) -> io::Result<()> {
    use std::os::unix::fs::{MetadataExt, PermissionsExt};
    let seen = std::fs::symlink_metadata(file)?;
    let is_ours = seen.is_file() && seen.uid() == nix::unistd::geteuid().as_raw() && seen.mode() & 0o022 == 0;
    if is_ours && std::fs::hard_link(file, path).is_ok() {
        return Ok(());
    }
    std::fs::copy(file, path)?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600))
}

/// Does what takes time where it holds up nobody else.
pub async fn aside<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, Refused> + Send + 'static,
) -> Result<T, Refused> {
    let broken = |_| Refused::new(Code::Unknown, "the registry broke off");
    tokio::task::spawn_blocking(work).await.map_err(broken)?
}

fn hash(mut file: File, algorithm: Algorithm) -> io::Result<(Hasher, u64)> {
    let (mut hasher, mut size, mut part) = (Hasher::new(algorithm), 0, vec![0; 1 << 20]);
    loop {
        match file.read(&mut part) {
            Ok(0) => return Ok((hasher, size)),
            Ok(length) => {
                hasher.update(&part[..length]);
                size += length as u64;
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}
