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

use super::catalog::{Registry, queries, transact};
use super::kv::Kv;
use super::kv::restore::{self, Restored};
use crate::model::id::sha256_hex;
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
    let mut state = FORMAT.as_bytes().to_vec();
    for Entry { key, value, .. } in entries {
        let line = Line { key, record: BASE64_STANDARD.encode(value) };
        serde_json::to_writer(&mut state, &line).map_err(broken)?;
        state.push(b'\n');
    }
    let archive = packed(&state, index).map_err(broken)?;
    if archive.len() > MOST { Err(too_large("it", MOST)) } else { Ok((archive, index)) }
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
    restore::PREFIXES.into_iter().chain([transact::PREFIX, queries::QUERY])
}

// The records of an archive, by key.
fn unpacked(archive: &[u8]) -> Result<Vec<(String, Vec<u8>)>> {
    let invalid = |why: &str| Error::invalid("snapshot", why.to_owned());
    let damaged = |error: std::io::Error| invalid("is no archive of one, or is damaged").cause(error);
    let (mut meta, mut state, mut sums) = (None, None, None);
    let mut archive = tar::Archive::new(GzDecoder::new(archive).take(MOST_STATE as u64 + (1 << 20)));
    for entry in archive.entries().map_err(damaged)? {
        let mut entry = entry.map_err(damaged)?;
        let name = String::from_utf8_lossy(&entry.path_bytes()).into_owned();
        let to = match name.as_str() {
            META => &mut meta,
            STATE => &mut state,
            SUMS => &mut sums,
            _ => return Err(invalid("holds something else").help(format!("{name:.60?}"))),
        };
        let mut bytes = Vec::new();
        entry.read_to_end(&mut bytes).map_err(damaged)?;
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

/// Puts all of it back, in one step: what is not in it goes. Durable when it returns.
pub async fn restore(registry: &Arc<Registry>, kv: &Kv, archive: &[u8]) -> Result<()> {
    let records = unpacked(archive)?;
    let (mut catalog, mut prepared) = (Vec::new(), Vec::new());
    let mut keys = Restored::default();
    let mut writes = Vec::new();
    for (key, value) in records {
        let entry = Entry { key, version: 0, value };
        let known = if entry.key.starts_with(transact::PREFIX) {
            catalog.push(transact::record(&entry)?);
            true
        } else if entry.key.starts_with(queries::QUERY) {
            prepared.push(queries::record(&entry)?);
            true
        } else {
            keys.take(&entry)?
        };
        if !known {
            return Err(Error::invalid("snapshot", format!("holds a record of another kind: {:.60?}", entry.key)));
        }
        writes.push(Write::put(entry.key, entry.value));
    }
    let kept: std::collections::HashSet<String> = writes.iter().map(|write| write.key.clone()).collect();
    let changes = registry.alone().await;
    let gate = kv.alone().await;
    for prefix in prefixes() {
        let gone = kv.store().list(prefix)?.into_iter().filter(|entry| !kept.contains(&entry.key));
        writes.extend(gone.map(|entry| Write::remove(entry.key)));
    }
    let version = if writes.is_empty() { 0 } else { kv.store().commit(writes).await? };
    kv.restored(keys, version);
    changes.restored(catalog, prepared);
    drop(gate);
    kv.let_go_orphans().await;
    Ok(())
}
