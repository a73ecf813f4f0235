//! Users of a file as `htpasswd -B` writes it: names and what bcrypt has made of their passwords. It is read again when it changes.

use std::collections::{HashMap, HashSet};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use tokio::sync::Semaphore;

use crate::model::id::sha256_hex;
use crate::model::{Error, Result};

/// How often it is looked whether the file is another.
const LOOK: Duration = Duration::from_secs(2);
/// Largest file, in bytes, and most passwords that are remembered to be right.
const LARGEST: u64 = 4 << 20;
const MOST: usize = 10_000;
/// Passwords that are tried at a time: that is slow on purpose.
const TRYING: usize = 2;
/// Passwords that wait to be tried.
const WAITING: usize = 64;
/// Where nobody has this name, as much is tried as for those that are there, so that names cannot be guessed by how long it takes.
const NOBODY: &str = "CwTycUXWue0Thq9StjUM0uJ8.ElgdSWJ0Xn0kVzvGqkXo4FhV9zW2";

#[derive(Default)]
struct State {
    looked: Option<Instant>,
    stamp: Option<(SystemTime, u64)>,
    // Hashes by name.
    users: HashMap<String, String>,
    // Names and passwords that were right, as hashes: bcrypt is for those who guess.
    right: HashSet<String>,
}

/// Those of a file.
pub struct Users {
    path: PathBuf,
    state: Mutex<State>,
    trying: Semaphore,
    waiting: AtomicUsize,
}

fn read(path: &Path) -> Result<(HashMap<String, String>, (SystemTime, u64))> {
    let subject = || path.display().to_string();
    let failed = |error: std::io::Error| Error::io(subject(), "read the users", &error);
    let meta = std::fs::metadata(path).map_err(failed)?;
    if meta.len() > LARGEST {
        return Err(Error::invalid(subject(), "is too large for a file of users"));
    }
    let stamp = (meta.modified().map_err(failed)?, meta.len());
    let mut users = HashMap::new();
    for (number, line) in std::fs::read_to_string(path).map_err(failed)?.lines().enumerate() {
        let line = line.trim();
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        let wrong = |why: &str| Error::invalid(format!("{}, line {}", subject(), number + 1), why);
        let (name, hash) = line.split_once(':').ok_or_else(|| wrong("is no NAME:HASH"))?;
        let is_bcrypt = ["$2y$", "$2a$", "$2b$", "$2x$"].iter().any(|kind| hash.starts_with(kind));
        if !is_bcrypt {
            return Err(wrong("is not made by bcrypt").help("htpasswd -B FILE NAME"));
        }
        users.insert(name.to_owned(), hash.to_owned());
    }
    Ok((users, stamp))
}

impl Users {
    /// Those of this file, which has to be one.
    pub fn open(path: &Path) -> Result<Self> {
        let (users, stamp) = read(path)?;
        let state = State { looked: Some(Instant::now()), stamp: Some(stamp), users, right: HashSet::new() };
        Ok(Users {
            path: path.to_owned(),
            state: Mutex::new(state),
            trying: Semaphore::new(TRYING),
            waiting: AtomicUsize::new(0),
        })
    }

    fn state(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    // One that is being written, or is wrong, leaves those that were there.
    fn look(&self) {
        let known = {
            let mut state = self.state();
            if state.looked.is_some_and(|at| at.elapsed() < LOOK) {
                return;
            }
            state.looked = Some(Instant::now());
            state.stamp
        };
        let stamp = std::fs::metadata(&self.path).and_then(|meta| Ok((meta.modified()?, meta.len())));
        if stamp.is_ok_and(|stamp| Some(stamp) == known) {
            return;
        }
        match read(&self.path) {
            Ok((users, stamp)) => {
                let mut state = self.state();
                (state.users, state.stamp) = (users, Some(stamp));
                state.right.clear();
            }
            Err(error) => tracing::warn!(%error, "the registry's users stay as they were"),
        }
    }

    // As slow as the slowest.
    fn nobody(&self) -> String {
        let state = self.state();
        let cost = state.users.values().filter_map(|hash| hash.get(4..6)?.parse::<u32>().ok()).max();
        format!("$2b${:02}${NOBODY}", cost.unwrap_or(5).clamp(4, 16))
    }

    /// Whether that is a user's password.
    pub async fn are(&self, name: &str, password: &str) -> bool {
        self.look();
        let mark = sha256_hex(format!("{name}\0{password}").as_bytes());
        let hash = {
            let state = self.state();
            if state.right.contains(&mark) {
                return true;
            }
            state.users.get(name).cloned()
        };
        // Whoever guesses many at once is told no.
        let waits = Waits::new(&self.waiting);
        if waits.1 >= WAITING {
            return false;
        }
        let Ok(_turn) = self.trying.acquire().await else { return false };
        let (tried_with, password) = (hash.clone().unwrap_or_else(|| self.nobody()), password.to_owned());
        let tried = tokio::task::spawn_blocking(move || bcrypt::verify(password, &tried_with).unwrap_or(false));
        let is_right = tried.await.unwrap_or(false) && hash.is_some();
        drop(waits);
        if is_right {
            let mut state = self.state();
            // It may have been changed meanwhile.
            if state.users.get(name) != hash.as_ref() {
                return false;
            }
            if state.right.len() >= MOST {
                state.right.clear();
            }
            state.right.insert(mark);
        }
        is_right
    }
}

// Counts those who wait, and how many did before.
struct Waits<'a>(&'a AtomicUsize, usize);

impl<'a> Waits<'a> {
    fn new(count: &'a AtomicUsize) -> Self {
        Waits(count, count.fetch_add(1, Ordering::Relaxed))
    }
}

impl Drop for Waits<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn users_are_who_their_passwords_say() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("users");
        // neap, secret.
        let neap = "neap:$2b$04$qbJ/MKgCGBDS0aZW6WXVZ.9NzSRc7BLy/O5ddcL4hGtImmsdyIRJ2\n";
        std::fs::write(&path, format!("# who may\n\n{neap}")).unwrap();
        let users = Users::open(&path).unwrap();
        for _ in 0..2 {
            assert!(users.are("neap", "secret").await);
            assert!(!users.are("neap", "secret ").await && !users.are("nobody", "secret").await);
        }
        for (wrong, why) in [("neap", "NAME:HASH"), ("neap:{SHA}x", "bcrypt")] {
            std::fs::write(&path, wrong).unwrap();
            assert!(Users::open(&path).err().unwrap().to_string().contains(why));
        }
        assert!(Users::open(&folder.path().join("none")).is_err());
    }
}
