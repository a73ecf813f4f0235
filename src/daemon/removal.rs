//! Takes away what a cluster has left in its Swarm: the last thing that is done for it.

use std::path::Path;
use std::sync::Arc;

use super::moving::Moving;
use super::{identity, lock_data, standing};
use crate::engines::swarm;
use crate::model::{Error, Kind, Result};
use crate::store::swarm::{Configs, SwarmConfigs, SwarmStore};
use crate::store::{EmbeddedStore, Store, decode};

/// Removes the store in the Swarm and what replicas read from it. An error where services are left, or another daemon
/// leads. How many configs of the store there were.
pub async fn clear(place: &Moving) -> Result<usize> {
    let _lock = lock_data(&place.data)?;
    let docker = place.docker.client().await?.negotiate_version().await.map_err(|error| {
        Error::new(Kind::Unavailable, format!("Docker Engine {}", place.docker.url), "cannot be asked").cause(error)
    })?;
    let mut removed = 0;
    let own = place.data.join("neap.redb");
    let mut id = None;
    if own.exists() {
        let store = EmbeddedStore::open(&own)?;
        refuse_services(&store, &own.display().to_string())?;
        id = read_id(&store)?;
    }
    let configs = Arc::new(SwarmConfigs::new(docker, &place.cluster));
    if !configs.names().await?.is_empty() {
        let store = SwarmStore::open(configs.clone(), &place.cluster).await?;
        let theirs = read_id(&*store)?;
        // One of the same name that is another cluster's stays.
        if id.is_none() || theirs.is_none() || id == theirs {
            place.take_lead(&store, "uninstall").await?;
            refuse_services(&*store, "store in the Swarm")?;
            // As long as it is known whose they are.
            if let Some(id) = theirs.as_ref().filter(|_| id.is_none()) {
                clear_swarm(place, id).await?;
            }
            // The head goes first: parts without one are no store, and are found again after a failure.
            let mut names = configs.names().await?;
            names.sort_by_key(|name| !name.ends_with("-head"));
            for name in &names {
                configs.remove(name).await?;
            }
            removed = names.len();
        }
    }
    if let Some(id) = id {
        clear_swarm(place, &id).await?;
    }
    standing::forget(&place.data)?;
    Ok(removed)
}

// What replicas of this very store have left.
async fn clear_swarm(place: &Moving, id: &str) -> Result<()> {
    swarm::clear(&place.docker, &format!("{}.{id}", place.cluster)).await
}

/// The file in a data folder that says that nothing of its cluster is left.
const DONE: &str = "uninstalled";

/// Whether a data folder is all that is left of a cluster.
pub fn is_done(data: &Path) -> bool {
    data.join(DONE).exists()
}

/// It is more than that again.
pub fn used_again(data: &Path) -> Result<()> {
    super::remove_file(&data.join(DONE))
}

/// Says so.
pub fn done(data: &Path) -> Result<()> {
    let path = data.join(DONE);
    std::fs::write(&path, "").map_err(|error| Error::io(path.display().to_string(), "write it", &error))
}

/// An error where a folder is none of Neap's.
pub fn check_folder(data: &Path) -> Result<()> {
    if data.join("format").is_file() {
        return Ok(());
    }
    let subject = format!("folder {}", data.display());
    Err(Error::invalid(subject, "is no data folder of Neap's").help("name the one that is meant (--data)"))
}

fn read_id(store: &dyn Store) -> Result<Option<String>> {
    store.get(identity::ID)?.map(|entry| decode(identity::ID, &entry.value)).transpose()
}

fn refuse_services(store: &dyn Store, subject: &str) -> Result<()> {
    match store.list("service/")?.len() {
        0 => Ok(()),
        count => Err(Error::new(Kind::Conflict, subject, format!("has {count} services"))
            .help("start the daemon again (neap up), and uninstall then")),
    }
}

/// Removes a data folder and all that is in it.
pub fn purge(data: &Path) -> Result<()> {
    check_folder(data)?;
    let lock = lock_data(data)?;
    let removed = std::fs::remove_dir_all(data);
    drop(lock);
    removed.map_err(|error| Error::io(data.display().to_string(), "remove it", &error))
}
