//! Takes away what a cluster has left in its Swarm: the last thing that is done for it.

use std::path::Path;
use std::sync::Arc;

use super::moving::Moving;
use super::{identity, lock_data};
use crate::engines::swarm;
use crate::model::{Error, Kind, Result};
use crate::store::swarm::{Configs, SwarmConfigs, SwarmStore};
use crate::store::{EmbeddedStore, Store, decode};

/// What became of it.
#[derive(Debug, Default)]
pub struct Cleared {
    /// Configs of the store that were removed.
    pub store: usize,
    /// Whether what replicas read was looked through: the Swarm's secrets and configs that Neap made.
    pub files: bool,
}

/// Removes the store in the Swarm and what replicas read from it. An error where services are left, or another daemon
/// leads.
pub async fn clear(place: &Moving) -> Result<Cleared> {
    let _lock = lock_data(&place.data)?;
    let docker = place.docker.client()?.negotiate_version().await.map_err(|error| {
        Error::new(Kind::Unavailable, format!("Docker Engine {}", place.docker.url), "cannot be asked").cause(error)
    })?;
    let mut cleared = Cleared::default();
    let configs = Arc::new(SwarmConfigs::new(docker, &place.cluster));
    let mut names = configs.names().await?;
    let mut id = None;
    if !names.is_empty() {
        let store = SwarmStore::open(configs.clone(), &place.cluster).await?;
        place.take_lead(&store, "uninstall").await?;
        refuse_services(&*store, "store in the Swarm")?;
        id = read_id(&*store)?;
        // The head goes last: whoever begins anew after a failure finds one.
        names = configs.names().await?;
        names.sort_by_key(|name| name.ends_with("-head"));
        for name in &names {
            configs.remove(name).await?;
        }
        cleared.store = names.len();
    }
    let own = place.data.join("neap.redb");
    if own.exists() {
        let store = EmbeddedStore::open(&own)?;
        refuse_services(&store, &own.display().to_string())?;
        id = id.or(read_id(&store)?);
    }
    if let Some(id) = id {
        swarm::clear_files(&place.docker, &format!("{}.{id}", place.cluster)).await?;
        cleared.files = true;
    }
    Ok(cleared)
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
    let lock = lock_data(data)?;
    let removed = std::fs::remove_dir_all(data);
    drop(lock);
    removed.map_err(|error| Error::io(data.display().to_string(), "remove it", &error))
}
