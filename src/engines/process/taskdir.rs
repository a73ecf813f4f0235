//! A task's folder: `task.json` (what to run, written before anything starts), `lock`, `state` (what the keeper
//! records, a line a fact), `stop.json` (a changed stop policy) and the output.

use std::collections::BTreeMap;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::sys::Identity;
use crate::engines::StartRequest;
use crate::engines::files::{self, Reader};
use crate::model::service::StopPolicy;
use crate::model::task::Exit;
use crate::model::{Error, Result};

/// What `task.json` holds.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct TaskFile {
    /// Format number; 1.
    pub format: u32,
    /// What to run.
    pub request: StartRequest,
    /// The port chosen for each port name.
    pub ports: BTreeMap<String, u16>,
    /// The environment that every replica inherits from the daemon: PATH, HOME and the like.
    pub inherited: BTreeMap<String, String>,
    /// Whether the replica ends with the daemon (standalone runs).
    pub lifeline: bool,
    /// Where its secrets are, if it has any.
    #[serde(default)]
    pub secrets: Option<PathBuf>,
    /// Where its configs are, if it has any.
    #[serde(default)]
    pub configs: Option<PathBuf>,
}

impl TaskFile {
    /// Reads `task.json` of `folder`.
    pub fn read(folder: &Path) -> Result<Self> {
        let path = folder.join("task.json");
        let text = std::fs::read(&path).map_err(|error| Error::io(path.display().to_string(), "read it", &error))?;
        serde_json::from_slice(&text).map_err(|error| {
            Error::new(crate::model::Kind::Corrupt, path.display().to_string(), "is damaged").cause(error)
        })
    }

    /// Writes it, whole or not at all.
    pub fn write(&self, folder: &Path) -> std::io::Result<()> {
        write_whole(&folder.join("task.json"), &serde_json::to_vec(self).map_err(std::io::Error::other)?)
    }

    /// Where its ports are reached, by name.
    pub fn addresses(&self) -> BTreeMap<String, String> {
        let specs = &self.request.spec.ports;
        let one = |(name, port): (&String, &u16)| {
            let protocol = specs.get(name).map(|spec| spec.protocol).unwrap_or_default();
            (name.clone(), protocol.told(format!("127.0.0.1:{port}")))
        };
        self.ports.iter().map(one).collect()
    }

    /// What the replica finds in its environment.
    pub fn environment(&self) -> BTreeMap<String, String> {
        let request = &self.request;
        let mut env = self.inherited.clone();
        for (name, port) in &self.ports {
            env.insert(format!("PORT_{}", name.to_uppercase().replace('-', "_")), port.to_string());
        }
        if let Some(port) = self.ports.get("http").or_else(|| self.ports.values().next()) {
            env.insert("PORT".into(), port.to_string());
        }
        if let Some(folder) = &self.secrets {
            env.insert("NEAP_SECRETS".into(), folder.to_string_lossy().into_owned());
        }
        if let Some(folder) = &self.configs {
            env.insert("NEAP_CONFIGS".into(), folder.to_string_lossy().into_owned());
        }
        env.extend(request.spec.env.clone());
        // Who it is, nobody else may say: an environment that was copied from another replica would make it that one's.
        env.insert("NEAP_SERVICE".into(), request.service.to_string());
        env.insert("NEAP_TASK".into(), format!("{}.{}", request.service, request.slot));
        env.insert("NEAP_TASK_ID".into(), request.task.to_string());
        env.insert("NEAP_SLOT".into(), request.slot.to_string());
        env.insert("NEAP_REVISION".into(), request.revision.to_string());
        env
    }

    /// How the replica is stopped: as last asked, else as described.
    pub fn stop_policy(&self, folder: &Path) -> StopPolicy {
        let asked = std::fs::read(folder.join("stop.json")).ok().and_then(|text| serde_json::from_slice(&text).ok());
        asked.unwrap_or_else(|| self.request.spec.stop.clone())
    }
}

/// Where root keeps files for replicas of other users: in memory, and not below a folder that is root's alone.
const SECRETS: &str = "/run/neap-secrets";
const CONFIGS: &str = "/run/neap-configs";

/// Writes secrets and configs as files that only the replica's user can read; tells where. The folders go when the
/// replica has ended.
pub fn write_files(folder: &Path, request: &StartRequest) -> Result<(Option<PathBuf>, Option<PathBuf>)> {
    // One of its own in each data folder: a copy may begin the same task.
    let failed = |error: std::io::Error| Error::io(folder.display().to_string(), "look at it", &error);
    let own = std::fs::metadata(folder).map_err(failed)?;
    let name = format!("{}-{:x}-{:x}", request.task, own.dev(), own.ino());
    let secrets = request.secrets.0.iter().map(|(name, value)| (name.as_str(), value.as_slice())).collect();
    let configs = request.configs.iter().map(|config| (config.target.as_str(), config.value.as_slice())).collect();
    Ok((
        write_some(secrets, Path::new(SECRETS).join(&name), folder.join("secrets"), request)?,
        write_some(configs, Path::new(CONFIGS).join(&name), folder.join("configs"), request)?,
    ))
}

fn write_some(
    files: Vec<(&str, &[u8])>,
    for_root: PathBuf,
    else_in: PathBuf,
    request: &StartRequest,
) -> Result<Option<PathBuf>> {
    if files.is_empty() {
        return Ok(None);
    }
    let owner = request.spec.user.as_deref().map(identity).transpose().map_err(|why| Error::invalid("user", why))?;
    let reader = owner.map_or(Reader::Same, |owner| Reader::User(owner.uid.as_raw(), owner.gid.as_raw()));
    let root = nix::unistd::geteuid().is_root();
    let folder = if root { for_root } else { else_in };
    files::write(&folder, files, reader)?;
    Ok(Some(folder))
}

/// Writes a file so that a reader sees the old or the new one, never a part.
pub fn write_whole(path: &Path, bytes: &[u8]) -> std::io::Result<()> {
    let mut temporary = path.as_os_str().to_owned();
    temporary.push(".new");
    std::fs::write(&temporary, bytes)?;
    std::fs::rename(&temporary, path)
}

/// A fact that the keeper records.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Record {
    /// The keeper is about to start the replica; from here on it is never started again.
    Spawning {
        /// The keeper's process id.
        keeper: u32,
    },
    /// It runs.
    Started {
        /// Its process id.
        pid: u32,
        /// When, in milliseconds since 1970.
        at: u64,
        /// What could not be done as asked.
        warnings: Vec<String>,
    },
    /// It ended.
    Ended {
        /// How.
        exit: Exit,
        /// When, in milliseconds since 1970.
        at: u64,
        /// Whether the kernel ended a process for want of memory.
        out_of_memory: bool,
    },
    /// It could not be started.
    Rejected {
        /// Why.
        reason: String,
    },
}

impl Record {
    /// One line of `state`.
    pub fn to_line(&self) -> String {
        let mut line = serde_json::to_string(self).expect("records are plain data");
        line.push('\n');
        line
    }
}

/// Adds a record, durably and whole: after a failed write there is nothing of it.
pub fn append(folder: &Path, record: &Record) -> std::io::Result<()> {
    use std::io::Write;
    let mut file = std::fs::OpenOptions::new().create(true).append(true).open(folder.join("state"))?;
    let before = file.metadata()?.len();
    let written = file.write_all(record.to_line().as_bytes()).and_then(|()| file.sync_data());
    if written.is_err() {
        let _ = file.set_len(before);
    }
    written
}

/// All records of a folder. A torn last line was never acknowledged and is passed over.
pub fn records(folder: &Path) -> Vec<Record> {
    let text = std::fs::read_to_string(folder.join("state")).unwrap_or_default();
    text.lines().filter_map(|line| serde_json::from_str(line).ok()).collect()
}

/// `user`, `user:group`, by name or number.
pub fn identity(text: &str) -> Result<Identity, String> {
    use nix::unistd::{Gid, Group, Uid, User};
    let (user, group) = text.split_once(':').map_or((text, None), |(user, group)| (user, Some(group)));
    let known = match user.parse::<u32>() {
        Ok(uid) => User::from_uid(Uid::from_raw(uid)),
        Err(_) => User::from_name(user),
    };
    let known = known.map_err(|error| format!("user {user:?}: {error}"))?;
    let (uid, mut gid) = match (&known, user.parse::<u32>()) {
        (Some(known), _) => (known.uid, known.gid),
        (None, Ok(uid)) => (Uid::from_raw(uid), Gid::from_raw(uid)),
        (None, Err(_)) => return Err(format!("user {user:?} is not known on this host")),
    };
    if let Some(group) = group {
        gid = match group.parse::<u32>() {
            Ok(gid) => Gid::from_raw(gid),
            Err(_) => match Group::from_name(group).map_err(|error| format!("group {group:?}: {error}"))? {
                Some(known) => known.gid,
                None => return Err(format!("group {group:?} is not known on this host")),
            },
        };
    }
    let groups = match known.and_then(|user| std::ffi::CString::new(user.name).ok()) {
        Some(name) if group.is_none() => nix::unistd::getgrouplist(&name, gid).unwrap_or_else(|_| vec![gid]),
        _ => vec![gid],
    };
    Ok(Identity { uid, gid, groups })
}
