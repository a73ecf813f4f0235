//! Blobs on a disk, each in a file that is called after what is in it. A file has that name once all of it is on the disk, and not before.

use std::collections::{HashMap, HashSet};
use std::fs::{File, FileTimes};
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use tokio::sync::Notify;

use super::digest::Digest;
use crate::model::fault;

/// The folder of blobs, and that of uploads, below a registry's own.
const BLOBS: &str = "blobs";

/// Blobs on a disk.
pub struct Disk {
    folder: PathBuf,
    busy: Arc<Busy>,
}

// Digests that are just coming to stay, and those that are just being removed: nothing is both.
#[derive(Default)]
struct Busy {
    state: Mutex<(HashMap<Digest, usize>, HashSet<Digest>)>,
    freed: Notify,
}

impl Busy {
    fn state(&self) -> MutexGuard<'_, (HashMap<Digest, usize>, HashSet<Digest>)> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A blob that is just coming to stay: nobody removes it meanwhile.
pub struct Coming(Arc<Busy>, Digest);

impl Drop for Coming {
    fn drop(&mut self) {
        let mut state = self.0.state();
        if let Some(count) = state.0.get_mut(&self.1) {
            *count -= 1;
            if *count == 0 {
                state.0.remove(&self.1);
            }
        }
    }
}

/// Blobs that are just being removed: who comes with one of them waits.
pub struct Going(Arc<Busy>, Vec<Digest>);

impl Going {
    /// Them.
    pub fn digests(&self) -> &[Digest] {
        &self.1
    }
}

impl Drop for Going {
    fn drop(&mut self) {
        let mut state = self.0.state();
        self.1.iter().for_each(|digest| _ = state.1.remove(digest));
        drop(state);
        self.0.freed.notify_waiters();
    }
}

/// Makes a folder that is nobody else's to look into.
pub fn make(folder: &Path) -> io::Result<()> {
    std::fs::DirBuilder::new().recursive(true).mode(0o700).create(folder)
}

/// Removes a file, if it is there.
pub fn remove_file(path: &Path) -> io::Result<()> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

/// Makes the entries of a folder durable.
pub fn sync_folder(folder: &Path) -> io::Result<()> {
    File::open(folder)?.sync_all()
}

impl Disk {
    /// Those in a folder.
    pub fn open(folder: &Path) -> io::Result<Self> {
        let blobs = folder.join(BLOBS);
        for algorithm in ["sha256", "sha512"] {
            let of = blobs.join(algorithm);
            make(&of)?;
            for byte in 0..=255 {
                let within = of.join(format!("{byte:02x}"));
                if !within.exists() {
                    std::fs::create_dir(&within)?;
                }
            }
            sync_folder(&of)?;
        }
        sync_folder(&blobs)?;
        sync_folder(folder)?;
        Ok(Disk { folder: blobs, busy: Arc::default() })
    }

    fn path(&self, digest: &Digest) -> PathBuf {
        let hex = digest.hex();
        self.folder.join(digest.algorithm().as_str()).join(&hex[..2]).join(hex)
    }

    /// Where they are.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// Opens one to read it.
    pub fn read(&self, digest: &Digest) -> io::Result<File> {
        File::open(self.path(digest))
    }

    /// One is used: it says so itself, whatever the file system notes of reading.
    pub fn mark_used(file: &File) {
        let _ = file.set_times(FileTimes::new().set_accessed(SystemTime::now()));
    }

    /// Blobs of one of 512 parts: when they were last used, and their bytes.
    pub fn used(&self, part: usize) -> io::Result<Vec<(SystemTime, u64, Digest)>> {
        let (algorithm, folder) = self.part(part);
        let mut found = Vec::new();
        for entry in std::fs::read_dir(folder)? {
            let entry = entry?;
            let Ok(digest) = format!("{algorithm}:{}", entry.file_name().to_string_lossy()).parse() else { continue };
            if let Ok(meta) = entry.metadata()
                && let Ok(at) = meta.accessed()
            {
                found.push((at, meta.len(), digest));
            }
        }
        Ok(found)
    }

    fn part(&self, part: usize) -> (&'static str, PathBuf) {
        let algorithm = if part < 256 { "sha256" } else { "sha512" };
        (algorithm, self.folder.join(algorithm).join(format!("{:02x}", part % 256)))
    }

    /// Waits until a blob may come to stay.
    pub async fn coming(&self, digest: &Digest) -> Coming {
        loop {
            let freed = self.busy.freed.notified();
            tokio::pin!(freed);
            freed.as_mut().enable();
            {
                let mut state = self.busy.state();
                if !state.1.contains(digest) {
                    *state.0.entry(digest.clone()).or_default() += 1;
                    return Coming(self.busy.clone(), digest.clone());
                }
            }
            freed.await;
        }
    }

    /// Those of some that are not just coming, and that nobody else removes.
    pub fn going(&self, digests: Vec<Digest>) -> Going {
        let mut state = self.busy.state();
        let mut free = Vec::new();
        for digest in digests {
            if !state.0.contains_key(&digest) && state.1.insert(digest.clone()) {
                free.push(digest);
            }
        }
        drop(state);
        Going(self.busy.clone(), free)
    }

    /// A file becomes a blob: durably, all of it.
    pub fn keep(&self, file: &File, path: &Path, coming: &Coming) -> io::Result<()> {
        let to = self.path(&coming.1);
        fault::point("registry.before-sync");
        file.sync_all()?;
        fault::point("registry.before-rename");
        std::fs::rename(path, &to)?;
        fault::point("registry.after-rename");
        to.parent().map_or(Ok(()), sync_folder)
    }

    /// Whether one is there.
    pub fn is_there(&self, digest: &Digest) -> bool {
        self.path(digest).exists()
    }

    /// Whether one is there, of this size.
    pub fn has(&self, digest: &Digest, size: u64) -> bool {
        std::fs::metadata(self.path(digest)).is_ok_and(|meta| meta.len() == size)
    }

    /// Takes one that is damaged away, and keeps it beside for whoever wants to look. Nothing is done where another has come meanwhile.
    pub fn put_aside(&self, digest: &Digest, read: &File) -> io::Result<()> {
        use std::os::unix::fs::MetadataExt;
        let path = self.path(digest);
        let (seen, now) = (read.metadata()?, std::fs::metadata(&path)?);
        if (seen.dev(), seen.ino()) != (now.dev(), now.ino()) {
            return Ok(());
        }
        std::fs::rename(&path, path.with_extension("damaged"))?;
        path.parent().map_or(Ok(()), sync_folder)
    }

    /// Removes one.
    pub fn remove(&self, digest: &Digest) -> io::Result<()> {
        remove_file(&self.path(digest))
    }

    /// Blobs that have been there for so long, of one of 512 parts: all that is in it.
    pub fn old(&self, part: usize, age: Duration) -> io::Result<Vec<Digest>> {
        let (algorithm, folder) = self.part(part);
        let mut found = Vec::new();
        for entry in std::fs::read_dir(folder)? {
            let entry = entry?;
            let Ok(digest) = format!("{algorithm}:{}", entry.file_name().to_string_lossy()).parse() else { continue };
            // One that goes meanwhile is nobody's concern.
            let Ok(at) = entry.metadata().and_then(|meta| meta.modified()) else { continue };
            if SystemTime::now().duration_since(at).is_ok_and(|since| since >= age) {
                found.push(digest);
            }
        }
        Ok(found)
    }
}

/// How many parts `old` knows.
pub const PARTS: usize = 512;
