//! Secrets as files that only the replica can read.

use std::collections::BTreeSet;
use std::path::Path;

use super::Secrets;
use crate::model::id::TaskId;
use crate::model::{Error, Result};

/// Who reads them.
#[derive(Debug, Clone, Copy)]
pub enum Reader {
    /// A process of this user and group.
    User(u32, u32),
    /// A process of the daemon's own user.
    Same,
    /// A container into which the folder is mounted, whatever its user: on the host the way there is closed.
    Container,
}

/// Writes them into a new folder. What an attempt before left there goes.
pub fn write(folder: &Path, secrets: &Secrets, reader: Reader) -> Result<()> {
    use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, chown};
    let failed = |error: std::io::Error| Error::io("secrets", "write them for the replica", &error);
    if let Some(parent) = folder.parent() {
        // Passed through by replicas of other users, listed by nobody.
        let mode = if matches!(reader, Reader::Container) { 0o700 } else { 0o711 };
        std::fs::DirBuilder::new().recursive(true).mode(mode).create(parent).map_err(failed)?;
    }
    remove(folder);
    let (folder_mode, file_mode) = if matches!(reader, Reader::Container) { (0o755, 0o444) } else { (0o700, 0o400) };
    std::fs::DirBuilder::new().mode(folder_mode).create(folder).map_err(failed)?;
    let hand_over = |path: &Path| match reader {
        Reader::User(user, group) => chown(path, Some(user), Some(group)),
        Reader::Same | Reader::Container => Ok(()),
    };
    for (name, value) in &secrets.0 {
        let path = folder.join(name);
        let mut options = std::fs::OpenOptions::new();
        let mut file = options.create_new(true).write(true).mode(file_mode).open(&path).map_err(failed)?;
        std::io::Write::write_all(&mut file, value).map_err(failed)?;
        hand_over(&path).map_err(failed)?;
    }
    hand_over(folder).map_err(failed)
}

/// Removes what `write` wrote.
pub fn remove(folder: &Path) {
    let _ = std::fs::remove_dir_all(folder);
}

/// Removes those of all tasks that are not in `keep`.
pub fn prune(parent: &Path, keep: &BTreeSet<TaskId>) {
    for entry in std::fs::read_dir(parent).into_iter().flatten().flatten() {
        let task = entry.file_name().to_str().and_then(|name| name.parse::<TaskId>().ok());
        if task.is_some_and(|task| !keep.contains(&task)) {
            remove(&entry.path());
        }
    }
}
