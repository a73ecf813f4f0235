//! Users of a file as `htpasswd -B` writes it: names and what bcrypt has made of their passwords. It is read again when it changes.

use std::collections::{HashMap, HashSet};
use std::path::{Path, PathBuf};
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
/// Where nobody has this name, as much is tried, so that names cannot be guessed by how long it takes.
const NOBODY: &str = "$2b$10$CwTycUXWue0Thq9StjUM0uJ8.ElgdSWJ0Xn0kVzvGqkXo4FhV9zW2";

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
        Ok(Users { path: path.to_owned(), state: Mutex::new(state), trying: Semaphore::new(TRYING) })
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
        let Ok(_turn) = self.trying.acquire().await else { return false };
        let (is_user, password) = (hash.is_some(), password.to_owned());
        let hash = hash.unwrap_or_else(|| NOBODY.to_owned());
        let tried = tokio::task::spawn_blocking(move || bcrypt::verify(password, &hash).unwrap_or(false));
        let is_right = tried.await.unwrap_or(false) && is_user;
        if is_right {
            let mut state = self.state();
            if state.right.len() >= MOST {
                state.right.clear();
            }
            state.right.insert(mark);
        }
        is_right
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
