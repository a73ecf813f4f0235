//! The daemon's scripts folder: what lies in it serves, and is replaced when it changes.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use super::{Message, Runtime};
use crate::client::scripts::Push;
use crate::model::bundle::{Bundle, Source, TESTS, is_entry};
use crate::model::event::What;
use crate::model::{Error, Result};
use crate::scheduler::world::Note;

/// The owner under which a folder's scripts serve.
pub const OWNER: &str = "folder";
/// How often the folder is looked at. A change counts once it has stood still for that long.
const LOOK: Duration = Duration::from_millis(1000);

// What is there: size and time of change by path.
type Seen = BTreeMap<String, (u64, Option<SystemTime>)>;

/// Loads the folder, and follows it. What is wrong is told, and the scripts before it go on; where there are none from
/// before, it is an error at the start.
pub async fn watch(runtime: &Arc<Runtime>, folder: PathBuf) -> Result<()> {
    let seen = look(&folder)?;
    let mut loaded = Some(seen.clone());
    match load(runtime, &folder, &seen).await {
        Err(error) if runtime.world().scripts.contains_key(OWNER) => {
            refused(runtime, &folder, &error);
            if error.retry {
                loaded = None;
            }
        }
        other => other?,
    }
    let runtime = Arc::downgrade(runtime);
    tokio::spawn(async move {
        let (mut last, mut lost, mut told) = (seen, false, None);
        loop {
            tokio::time::sleep(LOOK).await;
            let Some(runtime) = runtime.upgrade() else { return };
            let now = match look(&folder) {
                Ok(now) => now,
                Err(error) => {
                    if !std::mem::replace(&mut lost, true) {
                        tracing::error!(%error, "the scripts folder is gone; its scripts go on");
                    }
                    continue;
                }
            };
            lost = false;
            let still = now == last;
            last = now;
            if !still || loaded.as_ref() == Some(&last) {
                continue;
            }
            let done = load(&runtime, &folder, &last).await;
            // What only could not be written down is tried again.
            if !done.as_ref().is_err_and(|error| error.retry) {
                loaded = Some(last.clone());
            }
            // Once, however often it is tried.
            let why = done.err();
            if let Some(error) = why.as_ref().filter(|error| told.as_ref() != Some(*error)) {
                refused(&runtime, &folder, error);
            }
            told = why;
        }
    });
    Ok(())
}

fn refused(runtime: &Runtime, folder: &Path, error: &Error) {
    tracing::error!(%error, "the scripts folder cannot be used as it is; the scripts before go on");
    let (subject, message) = (folder.display().to_string(), error.to_string());
    let note = Note { what: What::ScriptsRefused, service: None, task: None, image: None, subject, message };
    let _ = runtime.messages.send(Message::Note(note));
}

/// What an earlier daemon's folder left goes, where there is no folder any more.
pub async fn forget(runtime: &Arc<Runtime>) -> Result<()> {
    let there = runtime.world().scripts.contains_key(OWNER);
    if there { runtime.drop_scripts(OWNER, Source::Folder).await } else { Ok(()) }
}

async fn load(runtime: &Arc<Runtime>, folder: &Path, seen: &Seen) -> Result<()> {
    if seen.is_empty() {
        tracing::warn!(folder = %folder.display(), "the scripts folder holds no scripts");
        return forget(runtime).await;
    }
    let mut bundle = Bundle::default();
    for path in seen.keys() {
        let file = folder.join(path);
        let source = std::fs::read_to_string(&file)
            .map_err(|error| Error::io(format!("script {}", file.display()), "read it", &error))?;
        if is_entry(path) {
            bundle.entries.push(path.clone());
        }
        bundle.files.insert(path.clone(), source);
    }
    let push = Push { bundle, check_only: false };
    runtime.replace_scripts(OWNER, push, Source::Folder, "scripts folder").await.map(drop)
}

fn look(folder: &Path) -> Result<Seen> {
    let failed = |error: std::io::Error| Error::io(format!("scripts folder {}", folder.display()), "read it", &error);
    let mut seen = Seen::new();
    let mut left = vec![folder.to_owned()];
    while let Some(next) = left.pop() {
        for entry in std::fs::read_dir(&next).map_err(failed)? {
            let entry = entry.map_err(failed)?;
            let path = entry.path();
            // What editors keep beside a file is none, nor is a file of tests.
            let name = entry.file_name().to_string_lossy().into_owned();
            if name.starts_with('.') || name.ends_with(TESTS) {
                continue;
            }
            let Ok(about) = std::fs::metadata(&path) else { continue };
            if about.is_dir() {
                left.push(path);
            } else if path.extension().is_some_and(|extension| extension == "lua")
                && let Ok(inner) = path.strip_prefix(folder)
            {
                seen.insert(inner.to_string_lossy().into_owned(), (about.len(), about.modified().ok()));
            }
        }
        if seen.len() > crate::model::bundle::MAX_FILES {
            return Err(Error::invalid(format!("scripts folder {}", folder.display()), "holds too many scripts"));
        }
    }
    Ok(seen)
}
