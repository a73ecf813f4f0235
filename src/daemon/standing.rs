//! What a daemon remembers of its cluster, so that it can tell what stood while no daemon leads: the store as this daemon
//! saw it last, in memory, and in a file for a daemon that starts where the Swarm's managers have no quorum.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bollard::Docker;
use serde::{Deserialize, Serialize};
use tokio::time::Instant;

use crate::api::Remembers;
use crate::engines::swarm::nodes;
use crate::model::clock::{Clock, Timestamp};
use crate::model::node::Node;
use crate::model::{Error, Result};
use crate::runtime::standing::Standing;
use crate::store::swarm::SwarmStore;
use crate::store::{MemoryStore, Store};

/// How often the nodes are read, and the file is written if something changed.
const KEEP: Duration = Duration::from_secs(60);
/// How often it is looked whether somebody leads. Once nobody does, the file gets what was seen last.
const LOOK: Duration = Duration::from_secs(1);
/// How long the nodes are waited for.
const PATIENCE: Duration = Duration::from_secs(10);
/// A leader proves once a second that it leads; after so long nobody does.
const STALE: Duration = Duration::from_secs(5);
/// The file in the data folder.
const FILE: &str = "standing.json";

#[derive(Serialize, Deserialize)]
struct Kept {
    cluster: String,
    // Values in base64, each with its version.
    data: BTreeMap<String, (u64, String)>,
    nodes: Vec<Node>,
}

/// Keeps it.
pub struct Memory {
    cluster: String,
    file: PathBuf,
    clock: Arc<dyn Clock>,
    // Where the store cannot be read: what stood, and when.
    past: Mutex<Option<(Arc<dyn Store>, Timestamp)>>,
    live: Mutex<Option<Arc<SwarmStore>>>,
    nodes: Mutex<Vec<Node>>,
    // The version of the store that the file has, and the nodes.
    kept: Mutex<Option<(u64, Vec<Node>)>>,
}

fn locked<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Memory {
    /// With what the file has of this cluster; one that cannot be read is as good as none.
    pub fn open(data: &Path, cluster: &str, clock: Arc<dyn Clock>) -> Arc<Self> {
        let file = data.join(FILE);
        let (mut past, mut nodes) = (None, Vec::new());
        if let Some((kept, at)) = read(&file).filter(|(kept, _)| kept.cluster == cluster) {
            nodes = kept.nodes;
            let values = kept.data.into_iter();
            let values =
                values.filter_map(|(key, (version, value))| Some((key, version, STANDARD.decode(value).ok()?)));
            past = Some((Arc::new(MemoryStore::of(values)) as Arc<dyn Store>, at));
        }
        let (past, nodes, live, kept) = (Mutex::new(past), Mutex::new(nodes), Mutex::default(), Mutex::default());
        Arc::new(Memory { cluster: cluster.to_owned(), file, clock, past, live, nodes, kept })
    }

    /// Where tokens are looked up until the store can be read.
    pub fn past(&self) -> Arc<dyn Store> {
        let past = locked(&self.past);
        past.as_ref().map_or_else(|| Arc::new(MemoryStore::new()) as Arc<dyn Store>, |(store, _)| store.clone())
    }

    /// The store can be read: it is what stands from now on.
    pub fn follow(self: &Arc<Self>, store: &Arc<SwarmStore>, docker: &Docker) {
        *locked(&self.live) = Some(store.clone());
        *locked(&self.past) = None;
        let (memory, docker) = (self.clone(), docker.clone());
        tokio::spawn(async move {
            // When the nodes were read last, and whether nobody led the last time somebody looked.
            let (mut read, mut alone) = (None::<Instant>, false);
            loop {
                let was_alone = std::mem::replace(&mut alone, memory.age().is_some());
                let mut keep = alone && !was_alone;
                // Without a quorum nobody can be asked, and what was seen last stays.
                if !alone && read.is_none_or(|read| read.elapsed() >= KEEP) {
                    read = Some(Instant::now());
                    if let Ok(Ok(nodes)) = tokio::time::timeout(PATIENCE, nodes::list(&docker)).await {
                        *locked(&memory.nodes) = nodes;
                        keep = true;
                    }
                }
                if keep {
                    let memory = memory.clone();
                    let _ = tokio::task::spawn_blocking(move || memory.keep()).await;
                }
                tokio::time::sleep(LOOK).await;
            }
        });
    }

    /// Brings the file up to date. Its own time says when the store was last seen to be alive.
    pub fn keep(&self) {
        let Some(store) = locked(&self.live).clone() else { return };
        let mut kept = locked(&self.kept);
        let (version, seen) = (store.version(), SystemTime::now().checked_sub(store.age()));
        let nodes = locked(&self.nodes).clone();
        let written = match kept.as_ref().is_some_and(|(its, of)| *its == version && *of == nodes) {
            true => Ok(()),
            false => self.write(&*store, nodes.clone()),
        };
        let dated = written.and_then(|()| {
            let file = std::fs::File::options().append(true).open(&self.file);
            let dated = file.and_then(|file| file.set_modified(seen.unwrap_or(SystemTime::UNIX_EPOCH)));
            dated.map_err(|error| Error::io(self.file.display().to_string(), "date it", &error))
        });
        match dated {
            Ok(()) => *kept = Some((version, nodes)),
            Err(error) => {
                *kept = None;
                tracing::warn!(%error, "what stands cannot be kept for a time without a leader");
            }
        }
    }

    fn write(&self, store: &dyn Store, nodes: Vec<Node>) -> Result<()> {
        let data = store
            .list("")?
            .into_iter()
            .map(|entry| (entry.key, (entry.version, STANDARD.encode(entry.value))))
            .collect();
        let kept = Kept { cluster: self.cluster.clone(), data, nodes };
        let text = serde_json::to_vec(&kept).map_err(|error| Error::internal("what stands", error.to_string()))?;
        let failed = |error: std::io::Error| Error::io(self.file.display().to_string(), "write it", &error);
        crate::store::file::replace(&self.file, &text, 0o600).map_err(failed)
    }
}

impl Remembers for Memory {
    fn age(&self) -> Option<Duration> {
        match &*locked(&self.live) {
            Some(store) => Some(store.age()).filter(|age| *age > STALE),
            None => Some(locked(&self.past).as_ref().map_or(STALE, |(_, at)| self.clock.wall().since(*at).std())),
        }
    }

    fn standing(&self) -> Option<Result<Standing>> {
        let nodes = locked(&self.nodes).clone();
        if let Some(store) = locked(&self.live).clone() {
            let age = store.age();
            return Some(Standing::read(store, &nodes, age));
        }
        let (store, at) = locked(&self.past).clone()?;
        Some(Standing::read(store, &nodes, self.clock.wall().since(at).std()))
    }

    fn is_read(&self) -> bool {
        locked(&self.live).is_some()
    }
}

/// Takes the file away, where the store is another one from now on, or none.
pub fn forget(data: &Path) -> Result<()> {
    super::remove_file(&data.join(FILE))
}

fn read(file: &Path) -> Option<(Kept, Timestamp)> {
    let text = std::fs::read(file).ok()?;
    let modified = std::fs::metadata(file).ok()?.modified().ok()?;
    let since = modified.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    let at = Timestamp(u64::try_from(since.as_millis()).unwrap_or(u64::MAX));
    match serde_json::from_slice(&text) {
        Ok(kept) => Some((kept, at)),
        Err(error) => {
            tracing::warn!(%error, file = %file.display(), "what stood cannot be read, and is read anew from the Swarm");
            None
        }
    }
}
