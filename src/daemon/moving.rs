//! Moves desired state from the data folder into the Swarm, or back, while no daemon runs. At every moment one of the two
//! serves at most: what is being moved away from says so before the other one counts.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use bollard::Docker;

use super::{identity, lock_data, shared, tls};
use crate::engines::docker::Address;
use crate::model::{Error, Kind, Result, fault};
use crate::store::swarm::{Leader, SwarmConfigs, SwarmStore};
use crate::store::vault::Vault;
use crate::store::{EmbeddedStore, Entry, Store, Write, decode, encode};

/// The record of a store that was moved away: to which host.
pub const MOVED: &str = "meta/moved";
/// How long a lead that another daemon may have is waited for.
const LEAD: Duration = Duration::from_secs(10);

/// How much longer than a daemon it waits for a lead that is free: one that runs beside it takes it first, and is seen.
const BEHIND: Duration = Duration::from_secs(2);

/// Whither.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Target {
    /// Into a file of this data folder
    Redb,
    /// Into the Swarm
    Swarm,
}

/// What is moved.
pub struct Moving {
    /// The cluster's name.
    pub cluster: String,
    /// The data folder.
    pub data: PathBuf,
    /// The Docker Engine of this host, a manager of the Swarm.
    pub docker: Address,
}

/// How much was moved; none: it was there already.
pub type Moved = Option<usize>;

/// The file of the data folder's store, while it is being moved, and after.
fn file(data: &Path, state: &str) -> PathBuf {
    data.join(format!("neap.redb{state}"))
}

/// An error while a move is half done.
pub fn refuse_half_moved(data: &Path) -> Result<()> {
    if !file(data, ".moving").exists() {
        return Ok(());
    }
    let subject = format!("data folder {}", data.display());
    Err(Error::new(Kind::Conflict, subject, "is in the middle of being moved")
        .help("end it: neap store move --to swarm"))
}

/// An error where the Swarm's store was moved away.
pub fn refuse_moved(store: &dyn Store) -> Result<()> {
    let Some(entry) = store.get(MOVED)? else { return Ok(()) };
    let host: String = decode(MOVED, &entry.value)?;
    Err(Error::new(Kind::Conflict, "store in the Swarm", format!("was moved to the data folder of host \"{host}\""))
        .help("run the daemon there, or move it back there: neap store move --to swarm"))
}

impl Moving {
    /// Does it.
    pub async fn run(&self, target: Target) -> Result<Moved> {
        let _lock = lock_data(&self.data)?;
        let failed = |error: bollard::errors::Error| {
            let subject = format!("Docker Engine {}", self.docker.url);
            Error::new(Kind::Unavailable, subject, "cannot be asked").cause(error)
        };
        let docker = self.docker.client().await?.negotiate_version().await.map_err(failed)?;
        let info = docker.info().await.map_err(failed)?;
        if info.swarm.and_then(|swarm| swarm.control_available) != Some(true) {
            return Err(Error::new(Kind::Conflict, "this host", "is no manager of a Swarm"));
        }
        let host = info.name.unwrap_or_default();
        let configs = Arc::new(SwarmConfigs::new(docker.clone(), &self.cluster));
        let store = SwarmStore::open(configs, &self.cluster).await?;
        self.take_lead(&store, &host).await?;
        let moved = match target {
            Target::Swarm => self.to_swarm(&docker, &store, &host).await,
            Target::Redb => self.to_redb(&docker, &store, &host).await.and_then(|moved| {
                super::standing::forget(&self.data)?;
                Ok(moved)
            }),
        };
        // Also after a failure: whatever daemon comes next need not wait.
        let given = store.give_up().await;
        let moved = moved?;
        given?;
        Ok(moved)
    }

    /// Takes the lead, which another daemon must not have.
    pub(super) async fn take_lead(&self, store: &Arc<SwarmStore>, host: &str) -> Result<()> {
        let (_, fingerprint) = tls::own_face(&self.data, None)?;
        let me = Leader {
            id: format!("move-{}", std::process::id()),
            hostname: host.to_owned(),
            address: String::new(),
            fingerprint,
        };
        match tokio::time::timeout(LEAD, store.lead(&me, async || BEHIND)).await {
            Ok(led) => led,
            Err(_) => {
                let Some(leader) = store.leader().borrow().clone().map(|leader| leader.hostname) else {
                    return Err(Error::new(Kind::Unavailable, "store in the Swarm", "does not let anybody lead it")
                        .help("see whether the Swarm has a quorum of managers (docker node ls)")
                        .retry(true));
                };
                let message = format!("is led by the daemon on \"{leader}\"");
                Err(Error::new(Kind::Conflict, "store in the Swarm", message)
                    .help("stop every daemon of the cluster first; replicas and published ports go on without them"))
            }
        }
    }

    // What the Swarm has of a store, and to which host it was moved.
    fn state_of(store: &SwarmStore) -> Result<(Vec<Entry>, Option<String>)> {
        let mut records = store.list("")?;
        let moved = records.iter().find(|entry| entry.key == MOVED);
        let host = moved.map(|entry| decode::<String>(MOVED, &entry.value)).transpose()?;
        records.retain(|entry| entry.key != MOVED);
        Ok((records, host))
    }

    // Replicas of another engine cannot be taken over.
    fn check_engine(&self) -> Result<()> {
        let engine = std::fs::read_to_string(self.data.join("engine")).unwrap_or_else(|_| "process".into());
        match engine.trim() {
            "swarm" => Ok(()),
            other => {
                let subject = format!("data folder {}", self.data.display());
                let message = format!("was used with the {other} engine, whose replicas are not in the Swarm");
                Err(Error::new(Kind::Conflict, subject, message))
            }
        }
    }

    async fn to_swarm(&self, docker: &Docker, store: &Arc<SwarmStore>, host: &str) -> Result<Moved> {
        let (own, moving) = (file(&self.data, ""), file(&self.data, ".moving"));
        let (known, moved_to) = Self::state_of(store)?;
        if let Some(other) = moved_to.as_ref().filter(|other| *other != host) {
            let message = format!("was moved to the data folder of host \"{other}\"");
            return Err(Error::new(Kind::Conflict, "store in the Swarm", message).help("move it from there"));
        }
        if !own.exists() && !moving.exists() {
            if known.is_empty() {
                return Err(Error::not_found(format!("store {}", own.display()))
                    .help("there is nothing to move; name the data folder that has it (--data)"));
            }
            // A move away that came to no end, and is not wanted any more: all of it is still there.
            if moved_to.is_some() {
                store.commit(vec![Write::remove(MOVED)]).await?;
                return Ok(Some(known.len()));
            }
            return Ok(None);
        }
        self.check_engine()?;
        let path = if moving.exists() { &moving } else { &own };
        let from = EmbeddedStore::open(path)?;
        let records = from.list("")?;
        let id = |all: &[Entry]| all.iter().find(|entry| entry.key == identity::ID).map(|entry| entry.value.clone());
        let same = id(&records).is_some() && id(&records) == id(&known);
        // The commit of a move before this one, which came to no end.
        let committed = moving.exists() && same && moved_to.is_none();
        // What it has is nothing, or what a move away has left of this very store.
        let free = known.is_empty() || (same && moved_to.is_some());
        if !committed && !free {
            let message = format!("has {} records of its own", known.len());
            return Err(Error::new(Kind::Conflict, "store in the Swarm", message)
                .help("another cluster of this name is there: give this one another name (--cluster)"));
        }
        drop(from);
        rename(&own, &moving)?;
        fault::point("moving.begun");
        let vault = Vault::open(&self.data)?;
        let moved = if committed {
            None
        } else {
            // All of it or nothing, and with it the key that its secrets are sealed with.
            let mut all: BTreeMap<String, Write> = BTreeMap::from([(MOVED.to_owned(), Write::remove(MOVED))]);
            all.extend(known.into_iter().map(|entry| (entry.key.clone(), Write::remove(entry.key))));
            let whole = records.iter().map(|entry| Write::put(entry.key.clone(), entry.value.clone()));
            all.extend(whole.map(|write| (write.key.clone(), write)));
            let key = shared::key_for_others(docker, &vault).await?;
            all.insert(key.key.clone(), key);
            store.commit(all.into_values().collect()).await?;
            Some(records.len())
        };
        fault::point("moving.committed");
        shared::leave_key(docker, store, &vault).await?;
        rename(&moving, &file(&self.data, ".moved"))?;
        Ok(moved)
    }

    async fn to_redb(&self, docker: &Docker, store: &Arc<SwarmStore>, host: &str) -> Result<Moved> {
        let (own, new) = (file(&self.data, ""), file(&self.data, ".new"));
        refuse_half_moved(&self.data)?;
        let (records, moved_to) = Self::state_of(store)?;
        if let Some(other) = moved_to.as_ref().filter(|other| *other != host) {
            let message = format!("was moved to the data folder of host \"{other}\"");
            return Err(Error::new(Kind::Conflict, "store in the Swarm", message));
        }
        if own.exists() {
            let here = EmbeddedStore::open(&own)?.list("")?;
            let id =
                |all: &[Entry]| all.iter().find(|entry| entry.key == identity::ID).map(|entry| entry.value.clone());
            if !here.is_empty() {
                // What is left of it in the Swarm goes, if it is the same.
                let same = records.is_empty() || id(&here) == id(&records);
                if moved_to.is_some() && same {
                    self.clear(store).await?;
                    return Ok(None);
                }
                return Err(Error::new(Kind::Conflict, format!("store {}", own.display()), "has records of its own")
                    .help("name another data folder (--data)"));
            }
        }
        if records.is_empty() {
            return Err(
                Error::not_found("store in the Swarm").help(format!("cluster \"{}\" has none there", self.cluster))
            );
        }
        // The key of the secrets that it holds comes first: without it they are lost.
        let key = shared::find_vault(&self.data, docker, store).await?;
        if key.is_none() {
            return Err(
                Error::not_found("key of the secrets").help("move it on a host whose daemon has led or followed")
            );
        }
        remove(&new)?;
        let to = EmbeddedStore::open(&new)?;
        let count = records.len();
        to.commit(records.into_iter().map(|entry| Write::put(entry.key, entry.value)).collect()).await?;
        drop(to);
        let engine = self.data.join("engine");
        std::fs::write(&engine, "swarm\n")
            .map_err(|error| Error::io(engine.display().to_string(), "write it", &error))?;
        // From here on no daemon takes the Swarm's for its store.
        store.commit(vec![Write::put(MOVED, encode(&host))]).await?;
        fault::point("moving.marked");
        rename(&new, &own)?;
        fault::point("moving.renamed");
        self.clear(store).await?;
        Ok(Some(count))
    }

    // All but the word that it has gone.
    async fn clear(&self, store: &Arc<SwarmStore>) -> Result<()> {
        let left = store.list("")?.into_iter().filter(|entry| entry.key != MOVED);
        let left: Vec<Write> = left.map(|entry| Write::remove(entry.key)).collect();
        if left.is_empty() { Ok(()) } else { store.commit(left).await.map(drop) }
    }
}

// And its name for good, before anything is built on it.
fn rename(from: &Path, to: &Path) -> Result<()> {
    if !from.exists() {
        return Ok(());
    }
    let failed = |error: std::io::Error| Error::io(from.display().to_string(), "rename it", &error);
    std::fs::rename(from, to).map_err(failed)?;
    let folder = to.parent().unwrap_or(Path::new("."));
    std::fs::File::open(folder).and_then(|folder| folder.sync_all()).map_err(failed)
}

fn remove(path: &Path) -> Result<()> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(Error::io(path.display().to_string(), "remove it", &error))
        }
        _ => Ok(()),
    }
}
