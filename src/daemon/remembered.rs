//! The catalogue of this host as it was a moment ago, in its data folder: after a restart names are there at once, and what is no
//! more goes when whoever knows it says so. It is no truth: what clients have registered is in the store.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use crate::model::{Error, Result};
use crate::network::catalog::{Catalog, Portion, Subscription};
use crate::store::{decode, encode};

/// The file in the data folder.
const FILE: &str = "catalog";
/// How long after a change it is written; others join it meanwhile.
const LATER: Duration = Duration::from_secs(2);
/// The wait before a write that failed is tried again.
const AGAIN: Duration = Duration::from_secs(30);

fn path(data: &Path) -> PathBuf {
    data.join(FILE)
}

/// What was known before; nothing where there is no such file, or none that can be read.
pub fn read(data: &Path) -> Option<Portion> {
    let file = path(data);
    let bytes = match std::fs::read(&file) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return None,
        Err(error) => {
            tracing::warn!(%error, file = %file.display(), "the catalogue of before cannot be read; it is done without");
            return None;
        }
    };
    let portion = decode::<Portion>(FILE, &bytes);
    portion.inspect_err(|error| tracing::warn!(%error, "the catalogue of before is damaged; it is done without")).ok()
}

/// Writes it down behind each change, for as long as the process lives.
pub fn keep(data: &Path, catalog: &Arc<Catalog>) {
    let (file, catalog) = (path(data), catalog.clone());
    tokio::spawn(async move {
        let mut generation = 0;
        loop {
            tokio::time::sleep(LATER).await;
            let now = catalog.generation();
            if now == generation {
                let (index, topic) = (catalog.read(|state| state.index), crate::network::catalog::Topic::All);
                if now == catalog.generation() {
                    catalog.wait(&topic, index, AGAIN).await;
                }
                continue;
            }
            let Some(portion) = Subscription::new(catalog.clone()).next().await else { return };
            let to = file.clone();
            let written = tokio::task::spawn_blocking(move || write(&to, &portion)).await;
            match written.unwrap_or_else(|error| Err(Error::internal("catalogue", error.to_string()))) {
                Ok(()) => generation = now,
                Err(error) => {
                    tracing::warn!(%error, "the catalogue cannot be remembered; it is tried again");
                    tokio::time::sleep(AGAIN).await;
                }
            }
        }
    });
}

fn write(file: &Path, portion: &Portion) -> Result<()> {
    use std::io::Write;
    use std::os::unix::fs::OpenOptionsExt;
    let failed = |error: std::io::Error| Error::io(file.display().to_string(), "write it", &error);
    let new = file.with_extension("new");
    let mut options = std::fs::OpenOptions::new();
    let mut out = options.create(true).truncate(true).write(true).mode(0o600).open(&new).map_err(failed)?;
    out.write_all(&encode(portion)).map_err(failed)?;
    drop(out);
    std::fs::rename(&new, file).map_err(failed)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::catalog::CatalogNode;

    #[test]
    fn what_is_damaged_is_done_without() {
        let folder = tempfile::tempdir().unwrap();
        assert_eq!(read(folder.path()), None);
        let node = CatalogNode { name: "eu-1".into(), ..CatalogNode::default() };
        let portion = Portion { whole: true, nodes: vec![node], ..Portion::default() };
        write(&path(folder.path()), &portion).unwrap();
        assert_eq!(read(folder.path()), Some(portion));
        let mut bytes = std::fs::read(path(folder.path())).unwrap();
        bytes[40] ^= 1;
        std::fs::write(path(folder.path()), bytes).unwrap();
        assert_eq!(read(folder.path()), None);
    }
}
