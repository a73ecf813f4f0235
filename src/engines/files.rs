//! Secrets and configs as files of the host: secrets for nobody but the replica.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use super::{ConfigFile, Secrets};
use crate::model::container::ValueUse;
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

/// Writes files by their names into a new folder. What an attempt before left there goes.
pub fn write<'a>(folder: &Path, files: impl IntoIterator<Item = (&'a str, &'a [u8])>, reader: Reader) -> Result<()> {
    use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, chown};
    let failed = |error: std::io::Error| Error::io("secrets and configs", "write them for the replica", &error);
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
    for (name, value) in files {
        let path = folder.join(name);
        let mut options = std::fs::OpenOptions::new();
        let mut file = options.create_new(true).write(true).mode(file_mode).open(&path).map_err(failed)?;
        std::io::Write::write_all(&mut file, value).map_err(failed)?;
        hand_over(&path).map_err(failed)?;
    }
    hand_over(folder).map_err(failed)
}

/// Writes secrets for a container into one folder, which is mounted whole.
pub fn write_secrets(folder: &Path, secrets: &Secrets, uses: &BTreeMap<String, ValueUse>) -> Result<()> {
    write(folder, secrets.0.iter().map(|(name, value)| (name.as_str(), value.as_slice())), Reader::Container)?;
    let mut given = uses.iter().filter(|(name, _)| secrets.0.contains_key(*name));
    given.try_for_each(|(name, used)| hand(&folder.join(name), used))
}

/// Writes configs for a container, into which each is mounted by itself: their paths, in the same order.
pub fn write_configs(folder: &Path, configs: &[ConfigFile]) -> Result<Vec<std::path::PathBuf>> {
    let names: Vec<String> = (0..configs.len()).map(|number| number.to_string()).collect();
    let files = names.iter().map(String::as_str).zip(configs.iter().map(|config| config.value.as_slice()));
    write(folder, files, Reader::Container)?;
    let finish = |(name, config): (&String, &ConfigFile)| {
        let path = folder.join(name);
        hand(&path, &config.owner)?;
        Ok(path)
    };
    names.iter().zip(configs).map(finish).collect()
}

// Gives a file its owner and mode.
fn hand(path: &Path, used: &ValueUse) -> Result<()> {
    use std::os::unix::fs::{PermissionsExt, chown};
    let failed =
        |error: std::io::Error| Error::io(format!("file of \"{}\"", used.name), "give it its owner and mode", &error);
    if used.uid.is_some() || used.gid.is_some() {
        chown(path, Some(used.uid.unwrap_or(0)), Some(used.gid.unwrap_or(0))).map_err(failed)?;
    }
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(used.mode())).map_err(failed)
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
