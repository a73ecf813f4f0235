//! Uploads: files that grow while their digest is made. One that a daemon has not ended goes on in the next.

use std::collections::HashMap;
use std::fs::{File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use tokio::sync::{OwnedMutexGuard, mpsc};

use super::digest::{Algorithm, Digest, Hasher};
use super::name::Repository;
use super::refused::{Code, Refused};
use crate::model::clock::Clock;
use crate::model::fault;
use crate::model::id::{random_uuid, sha256_hex};

/// How much is written before what was written goes to the disk, beside what goes on: the end has little to wait for then.
const BESIDE: u64 = 16 << 20;
/// Most uploads at a time.
const MOST: usize = 4096;

/// Uploads on a disk.
pub struct Uploads {
    folder: PathBuf,
    open: Mutex<HashMap<String, Shared>>,
}

/// One, for whoever goes on with it.
pub type Shared = Arc<tokio::sync::Mutex<Upload>>;

/// An upload.
pub struct Upload {
    /// Its file.
    pub path: PathBuf,
    /// The same, open.
    pub file: Arc<File>,
    /// Bytes so far.
    pub size: u64,
    hasher: Hasher,
    // It is over: it became a blob, or was given up.
    is_over: bool,
}

/// What has become of some bytes that came.
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

// A part of the file's name, so that an upload is of its repository and of no other.
fn mark(repository: &Repository) -> String {
    sha256_hex(repository.as_str().as_bytes())[..16].to_owned()
}

impl Uploads {
    /// Those in a folder.
    pub fn open(folder: &Path) -> io::Result<Self> {
        use std::os::unix::fs::DirBuilderExt;
        let folder = folder.join("uploads");
        std::fs::DirBuilder::new().recursive(true).mode(0o700).create(&folder)?;
        Ok(Uploads { folder, open: Mutex::default() })
    }

    fn all(&self) -> MutexGuard<'_, HashMap<String, Shared>> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn path(&self, repository: &Repository, id: &str) -> PathBuf {
        self.folder.join(format!("{id}-{}", mark(repository)))
    }

    /// A new one; its id.
    pub fn begin(
        &self,
        repository: &Repository,
        algorithm: Algorithm,
        clock: &dyn Clock,
    ) -> Result<(String, Shared), Refused> {
        let id = random_uuid(clock);
        let path = self.path(repository, &id);
        let file = OpenOptions::new().create_new(true).read(true).write(true).mode(0o600).open(&path);
        let file = Arc::new(file.map_err(|error| failed(&error))?);
        let upload = Upload { path, file, size: 0, hasher: Hasher::new(algorithm), is_over: false };
        let shared = Arc::new(tokio::sync::Mutex::new(upload));
        let mut all = self.all();
        if all.len() >= MOST {
            drop(all);
            let _ = std::fs::remove_file(self.path(repository, &id));
            return Err(Refused::new(Code::TooManyRequests, format!("{MOST} uploads are under way")));
        }
        all.insert(id.clone(), shared.clone());
        Ok((id, shared))
    }

    /// One that has begun. One of an earlier daemon is read once more, for its digest.
    pub async fn find(&self, repository: &Repository, id: &str) -> Result<OwnedMutexGuard<Upload>, Refused> {
        // It is a part of a path.
        let is_id = id.len() == 36 && id.bytes().all(|byte| byte.is_ascii_hexdigit() || byte == b'-');
        if !is_id {
            return Err(unknown(id));
        }
        let path = self.path(repository, id);
        let known = self.all().get(id).cloned();
        let shared = match known {
            Some(shared) => shared,
            None => {
                let from = path.clone();
                let found = aside(move || Upload::again(&from)).await?;
                let found = found.ok_or_else(|| unknown(id))?;
                self.all().entry(id.to_owned()).or_insert_with(|| Arc::new(tokio::sync::Mutex::new(found))).clone()
            }
        };
        let upload = shared.lock_owned().await;
        if upload.is_over || upload.path != path {
            return Err(unknown(id));
        }
        Ok(upload)
    }

    /// It is over.
    pub fn forget(&self, id: &str, upload: &mut Upload) {
        upload.is_over = true;
        self.all().remove(id);
    }

    /// Gives one up.
    pub fn remove(&self, id: &str, upload: &mut Upload) -> Result<(), Refused> {
        self.forget(id, upload);
        match std::fs::remove_file(&upload.path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(failed(&error)),
            _ => Ok(()),
        }
    }

    /// Gives up those on which nothing came for so long; how many.
    pub fn expire(&self, age: Duration) -> io::Result<usize> {
        let mut count = 0;
        for entry in std::fs::read_dir(&self.folder)? {
            let entry = entry?;
            let Ok(at) = entry.metadata().and_then(|meta| meta.modified()) else { continue };
            if SystemTime::now().duration_since(at).is_ok_and(|since| since < age) {
                continue;
            }
            let name = entry.file_name().to_string_lossy().into_owned();
            let id = name.get(..36).unwrap_or_default().to_owned();
            let known = self.all().get(&id).cloned();
            match known {
                Some(shared) => {
                    // One that somebody goes on with right now is not given up.
                    let Ok(mut upload) = shared.try_lock() else { continue };
                    if self.remove(&id, &mut upload).is_ok() {
                        count += 1;
                    }
                }
                None => {
                    if std::fs::remove_file(entry.path()).is_ok() {
                        count += 1;
                    }
                }
            }
        }
        Ok(count)
    }
}

/// Does what takes time where it holds up nobody else.
pub async fn aside<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, Refused> + Send + 'static,
) -> Result<T, Refused> {
    let broken = |_| Refused::new(Code::Unknown, "the registry broke off");
    tokio::task::spawn_blocking(work).await.map_err(broken)?
}

fn hash(file: &File, algorithm: Algorithm) -> io::Result<(Hasher, u64)> {
    let (mut hasher, mut size, mut part) = (Hasher::new(algorithm), 0, vec![0; 1 << 20]);
    let mut file = file;
    file.seek(SeekFrom::Start(0))?;
    loop {
        let length = file.read(&mut part)?;
        if length == 0 {
            return Ok((hasher, size));
        }
        hasher.update(&part[..length]);
        size += length as u64;
    }
}

impl Upload {
    // One that another daemon began; nothing: there is none.
    fn again(path: &Path) -> Result<Option<Self>, Refused> {
        let file = match OpenOptions::new().read(true).write(true).open(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            other => Arc::new(other.map_err(|error| failed(&error))?),
        };
        let (hasher, size) = hash(&file, Algorithm::Sha256).map_err(|error| failed(&error))?;
        Ok(Some(Upload { path: path.to_owned(), file, size, hasher, is_over: false }))
    }

    /// Takes what comes until nothing more does, `most` bytes altogether at most. What came before an end too early stays.
    pub fn receive(&mut self, parts: &mut mpsc::Receiver<Bytes>, most: u64) -> Result<Received, Refused> {
        let mut beside = None;
        let mut since = self.size;
        while let Some(part) = parts.blocking_recv() {
            if self.size + part.len() as u64 > most {
                return Ok(Received::TooMuch);
            }
            let mut file = &*self.file;
            if let Err(error) = file.write_all(&part) {
                // The digest is of what came before it.
                let _ = file.set_len(self.size).and_then(|()| file.seek(SeekFrom::Start(self.size)));
                return Err(failed(&error));
            }
            self.hasher.update(&part);
            self.size += part.len() as u64;
            if self.size - since >= BESIDE && beside.as_ref().is_none_or(std::thread::JoinHandle::is_finished) {
                since = self.size;
                let file = self.file.clone();
                beside = Some(std::thread::spawn(move || file.sync_data()));
            }
            fault::point("registry.receiving");
        }
        Ok(Received::All)
    }

    /// The digest of all of it, by this algorithm.
    pub fn digest(&self, algorithm: Algorithm) -> Result<Digest, Refused> {
        if self.hasher.algorithm() == algorithm {
            return Ok(self.hasher.clone().finish());
        }
        let (hasher, _) = hash(&self.file, algorithm).map_err(|error| failed(&error))?;
        Ok(hasher.finish())
    }
}
