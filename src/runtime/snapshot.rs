//! What clients have registered and written (keys, sessions, nodes, services, checks, prepared queries), as one file that can be
//! kept, and that puts all of it back. An archive as Consul's clients verify it: `meta.json`, `state.bin`, and their sums.

use std::io::{BufRead, Read, Write as _};
use std::sync::Arc;

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use flate2::Compression;
use flate2::read::GzDecoder;
use flate2::write::GzEncoder;
use serde::{Deserialize, Serialize};

use super::catalog::{PREFIX, Record, Registry, queries};
use super::kv::Kv;
use super::kv::restore::{self, Restored};
use crate::client::catalog::CatalogRestored;
use crate::model::id::sha256_hex;
use crate::model::query::Query;
use crate::model::{Error, Kind, Result};
use crate::store::{Entry, Write};

/// Largest archive, in bytes: what a host can send to whoever leads.
pub const MOST: usize = 32 << 20;
/// The same of what is in it.
const MOST_STATE: usize = 128 << 20;
/// How the state begins.
const FORMAT: &str = "neap snapshot 1\n";
/// The files in it.
const META: &str = "meta.json";
const STATE: &str = "state.bin";
const SUMS: &str = "SHA256SUMS";
/// One at a time: each takes the memory of all that there is, several times.
static TURN: tokio::sync::Mutex<()> = tokio::sync::Mutex::const_new(());

#[derive(Serialize, Deserialize)]
struct Line {
    key: String,
    // In base64: a record as it is in the store.
    record: String,
}

fn too_large(what: &str, most: usize) -> Error {
    Error::new(Kind::Exhausted, "snapshot", format!("{what} comes to more than {} MiB", most >> 20))
        .help("a copy of the data folder has all of it")
}

fn broken(error: impl std::fmt::Display) -> Error {
    Error::internal("snapshot", "cannot be made").cause(error)
}

/// All of it as it is now, and the last commit of it.
pub async fn save(registry: &Arc<Registry>, kv: &Kv) -> Result<(Vec<u8>, u64)> {
    let _turn = TURN.lock().await;
    // Nobody changes anything meanwhile: it is of one moment.
    let catalog = registry.alone().await;
    let keys = kv.alone().await;
    let mut entries = Vec::new();
    let mut size = 0;
    for prefix in prefixes() {
        for entry in kv.store().list(prefix)? {
            size += entry.key.len() + entry.value.len() * 4 / 3 + 32;
            if size > MOST_STATE {
                return Err(too_large("what it would hold", MOST_STATE));
            }
            entries.push(entry);
        }
    }
    drop((catalog, keys));
    let index = entries.iter().map(|entry| entry.version).max().unwrap_or_default();
    let archive = aside(move || written(entries, index)).await?;
    if archive.len() > MOST { Err(too_large("it", MOST)) } else { Ok((archive, index)) }
}

// What takes time, where it holds up nobody else.
async fn aside<T: Send + 'static>(work: impl FnOnce() -> Result<T> + Send + 'static) -> Result<T> {
    tokio::task::spawn_blocking(work).await.map_err(broken)?
}

fn written(entries: Vec<Entry>, index: u64) -> Result<Vec<u8>> {
    let mut state = FORMAT.as_bytes().to_vec();
    for Entry { key, value, .. } in entries {
        let line = Line { key, record: BASE64_STANDARD.encode(value) };
        serde_json::to_writer(&mut state, &line).map_err(broken)?;
        state.push(b'\n');
    }
    packed(&state, index).map_err(broken)
}

fn packed(state: &[u8], index: u64) -> std::io::Result<Vec<u8>> {
    let meta = serde_json::json!({
        "Version": 1,
        "ID": format!("neap-{index}"),
        "Index": index,
        "Term": 1,
        "Peers": null,
        "Configuration": { "Servers": [] },
        "ConfigurationIndex": 0,
        "Size": state.len(),
    });
    let meta = meta.to_string().into_bytes();
    let sums = format!("{}  {META}\n{}  {STATE}\n", sha256_hex(&meta), sha256_hex(state)).into_bytes();
    let mut archive = tar::Builder::new(GzEncoder::new(Vec::new(), Compression::default()));
    for (name, bytes) in [(META, meta.as_slice()), (STATE, state), (SUMS, sums.as_slice())] {
        let mut header = tar::Header::new_gnu();
        header.set_size(bytes.len() as u64);
        header.set_mode(0o600);
        archive.append_data(&mut header, name, bytes)?;
    }
    let mut packed = archive.into_inner()?;
    packed.flush()?;
    packed.finish()
}

fn prefixes() -> impl Iterator<Item = &'static str> {
    // Keys first: whatever holds one locked is there as well then.
    restore::PREFIXES.into_iter().chain([PREFIX, queries::QUERY])
}

// The records of an archive, by key.
fn unpacked(archive: &[u8]) -> Result<Vec<(String, Vec<u8>)>> {
    let invalid = |why: &str| Error::invalid("snapshot", why.to_owned());
    let damaged = |error: std::io::Error| invalid("is no archive of one, or is damaged").cause(error);
    let (mut meta, mut state, mut sums) = (None, None, None);
    let mut archive = tar::Archive::new(GzDecoder::new(archive).take(MOST_STATE as u64 + (1 << 20)));
    for entry in archive.entries().map_err(damaged)? {
        let entry = entry.map_err(damaged)?;
        // Other kinds can come to more than what they are packed in.
        if !entry.header().entry_type().is_file() {
            return Err(invalid("holds something that is no plain file"));
        }
        let name = String::from_utf8_lossy(&entry.path_bytes()).into_owned();
        let to = match name.as_str() {
            META => &mut meta,
            STATE => &mut state,
            SUMS => &mut sums,
            _ => return Err(invalid("holds something else").help(format!("{name:.60?}"))),
        };
        let mut bytes = Vec::new();
        entry.take(MOST_STATE as u64 + 1).read_to_end(&mut bytes).map_err(damaged)?;
        *to = Some(bytes);
    }
    let (Some(meta), Some(state), Some(sums)) = (meta, state, sums) else {
        return Err(invalid("is cut off: it has to hold meta.json, state.bin and SHA256SUMS"));
    };
    let expected = format!("{}  {META}\n{}  {STATE}\n", sha256_hex(&meta), sha256_hex(&state));
    let lines = |text: &str| text.lines().map(str::to_owned).collect::<std::collections::BTreeSet<_>>();
    if lines(&String::from_utf8_lossy(&sums)) != lines(&expected) {
        return Err(invalid("is damaged: its sums are others"));
    }
    let Some(state) = state.strip_prefix(FORMAT.as_bytes()) else {
        return Err(invalid("is none of Neap's").help(
            "what Consul's own servers have saved is in a form of theirs; `consul kv export` and `consul kv import` take \
             keys from one to the other",
        ));
    };
    let mut records = Vec::new();
    for line in state.lines() {
        let line: Line = serde_json::from_str(&line.map_err(damaged)?)
            .map_err(|error| invalid("holds a line that cannot be read").cause(error))?;
        let record = BASE64_STANDARD.decode(&line.record);
        let record = record.map_err(|error| invalid("holds a line that cannot be read").cause(error))?;
        records.push((line.key, record));
    }
    Ok(records)
}

// What an archive holds.
#[derive(Default)]
struct Held {
    catalog: Vec<(Entry, Record)>,
    queries: Vec<Query>,
    keys: Restored,
    // Those of queries, keys and sessions.
    writes: Vec<Write>,
}

impl Held {
    fn read(archive: &[u8]) -> Result<Self> {
        let mut held = Held::default();
        for (key, value) in unpacked(archive)? {
            let entry = Entry { key, version: 0, value };
            if entry.key.starts_with(PREFIX) {
                let record = Record::restored(&entry)?;
                held.catalog.push((entry, record));
                continue;
            }
            let known = if entry.key.starts_with(queries::QUERY) {
                held.queries.push(queries::record(&entry)?);
                true
            } else {
                held.keys.take(&entry)?
            };
            if !known {
                return Err(Error::invalid("snapshot", format!("holds a record of another kind: {:.60?}", entry.key)));
            }
            held.writes.push(Write::put(entry.key, entry.value));
        }
        Ok(held)
    }
}

/// The same with all that may be in it; to its end also where nobody waits for that any more, as a script whose time is over.
pub async fn restore_whole(registry: &Arc<Registry>, kv: &Arc<Kv>, archive: Vec<u8>) -> Result<CatalogRestored> {
    let (registry, kv) = (registry.clone(), kv.clone());
    tokio::spawn(async move { restore(&registry, &kv, archive, true).await }).await.map_err(broken)?
}

/// Puts all of it back, in one step: what is not in it goes. Durable when it returns. `commands`: whether checks that are
/// commands may be among it, which their hosts will run.
pub async fn restore(registry: &Arc<Registry>, kv: &Kv, archive: Vec<u8>, commands: bool) -> Result<CatalogRestored> {
    if archive.len() > MOST {
        return Err(too_large("it", MOST));
    }
    let _turn = TURN.lock().await;
    let Held { mut catalog, queries, keys, mut writes } = aside(move || Held::read(&archive)).await?;
    if !commands && catalog.iter().any(|(_, record)| record.runs_commands()) {
        return Err(Error::new(Kind::Forbidden, "snapshot", "holds checks that are commands").help(
            "only a token whose rules say operator = \"write\" puts those back (--consul-policy): hosts will run them",
        ));
    }
    let changes = registry.alone().await;
    let gate = kv.alone().await;
    // Hosts of this cluster, and what runs here, are as they are.
    catalog.retain(|(_, record)| changes.may_restore(record));
    let (entries, records): (Vec<Entry>, Vec<Record>) = catalog.into_iter().unzip();
    let mut restored = CatalogRestored { registrations: entries.len(), others: writes.len(), removed: 0 };
    writes.extend(entries.into_iter().map(|entry| Write::put(entry.key, entry.value)));
    let kept: std::collections::HashSet<String> = writes.iter().map(|write| write.key.clone()).collect();
    for prefix in prefixes() {
        let gone = kv.store().list(prefix)?.into_iter().filter(|entry| !kept.contains(&entry.key));
        let before = writes.len();
        writes.extend(gone.map(|entry| Write::remove(entry.key)));
        restored.removed += writes.len() - before;
    }
    let version = if writes.is_empty() { 0 } else { kv.store().commit(writes).await? };
    // Sessions end with the nodes and checks that they are bound to: those first.
    changes.restored(records, queries);
    kv.restored(keys, version);
    drop(gate);
    kv.let_go_orphans().await;
    Ok(restored)
}
