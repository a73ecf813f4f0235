//! Floor 6, assembly: puts the parts together, as a daemon (`neap up`) or for one script (`neap run --standalone`).

pub mod agent;
mod audit;
pub mod background;
pub mod config;
pub mod discovery;
pub mod engine;
pub mod following;
mod hosts;
mod identity;
pub mod images;
pub mod moving;
mod remembered;
pub mod removal;
pub mod shared;
mod standalone;
mod standing;
mod tls;

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use self::engine::{Chosen, EngineOptions};
pub use self::standalone::{Standalone, sweep};

use crate::api::consul::Here;
use crate::api::{self, Api};
use crate::client::Cluster;
use crate::client::members::Members;
use crate::engines::Engine;
use crate::model::clock::Clock;
use crate::model::internal::Range;
use crate::model::{Error, Kind, Result};
use crate::network::balancer::Balancer;
use crate::network::balancer::client::{BalancerClient, BalancerOptions};
use crate::runtime::catalog::Before;
use crate::runtime::{Parts, Runtime};
use crate::script::api::Reach;
use crate::script::host::ScriptHost;
use crate::script::lane::Threads;
use crate::store::Store;
use crate::store::vault::Vault;

/// Everything that `neap up` can be told.
#[derive(Debug, Clone)]
pub struct Options {
    /// The cluster's name.
    pub cluster: String,
    /// The data folder.
    pub data: PathBuf,
    /// The control socket.
    pub socket: PathBuf,
    /// Where the control API listens with TLS, if anywhere.
    pub listen: Option<SocketAddr>,
    /// Certificate chain and key for it (PEM); one of its own where none are given.
    pub tls: Option<(PathBuf, PathBuf)>,
    /// What runs replicas.
    pub engine: EngineOptions,
    /// Where other daemons of the cluster reach this one.
    pub peer: Option<SocketAddr>,
    /// A folder of hosted scripts that is followed.
    pub scripts: Option<PathBuf>,
    /// Addresses for services that are balanced inside the cluster.
    pub internal: Option<Range>,
    /// Where the catalogue is served.
    pub discovery: discovery::DiscoveryOptions,
    /// Where the image registry is served.
    pub registry: images::RegistryOptions,
}

/// How long a data folder may still be held by what is just ending.
const LOCK_PATIENCE: Duration = Duration::from_secs(2);

/// The lock on a data folder; the folder is free again when it is dropped, or the process dies.
pub struct DataLock(#[allow(dead_code, reason = "held, never read")] std::fs::File);

/// Takes a data folder for this process alone.
pub fn lock_data(folder: &Path) -> Result<DataLock> {
    use std::os::unix::fs::DirBuilderExt;
    let subject = format!("data folder {}", folder.display());
    let failed = |error: std::io::Error| {
        let help = match error.kind() {
            std::io::ErrorKind::PermissionDenied | std::io::ErrorKind::ReadOnlyFilesystem => {
                "name a folder that this user may write to (--data)"
            }
            std::io::ErrorKind::StorageFull => "free space on its disk",
            _ => "name another folder (--data)",
        };
        Error::io(subject.clone(), "use it", &error).help(help)
    };
    // Tasks' environments and the store may hold what is nobody else's business.
    std::fs::DirBuilder::new().recursive(true).mode(0o700).create(folder).map_err(failed)?;
    let file = std::fs::OpenOptions::new()
        .create(true)
        .truncate(false)
        .write(true)
        .open(folder.join("lock"))
        .map_err(failed)?;
    // A daemon that was killed while it started a process leaves its lock to the half-born child for a moment, until
    // that runs a program of its own or ends; another command may just be asking who holds it.
    let until = Instant::now() + LOCK_PATIENCE;
    loop {
        match file.try_lock() {
            Ok(()) => break,
            Err(std::fs::TryLockError::WouldBlock) if Instant::now() < until => {
                std::thread::sleep(Duration::from_millis(20));
            }
            Err(std::fs::TryLockError::WouldBlock) => {
                return Err(Error::new(Kind::Conflict, subject, "is in use by another daemon")
                    .help("stop it, or give this one another folder (--data)"));
            }
            Err(std::fs::TryLockError::Error(error)) => return Err(failed(error)),
        }
    }
    check_format(folder)?;
    // Whatever uses it begins anew.
    removal::used_again(folder)?;
    Ok(DataLock(file))
}

/// Whether a process uses a data folder.
pub fn is_held(folder: &Path) -> Result<bool> {
    let path = folder.join("lock");
    let failed = |error: std::io::Error| Error::io(path.display().to_string(), "see whether it is held", &error);
    let file = match std::fs::File::open(&path) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(false),
        other => other.map_err(failed)?,
    };
    match file.try_lock() {
        Ok(()) => Ok(false),
        Err(std::fs::TryLockError::WouldBlock) => Ok(true),
        Err(std::fs::TryLockError::Error(error)) => Err(failed(error)),
    }
}

/// The process that uses a data folder, if one does: the kernel knows who holds a lock (proc(5), /proc/locks), so that
/// nothing has to be written for it.
pub fn holder(folder: &Path) -> Result<Option<i32>> {
    // One that is just ending has let go of its files, of the lock a moment later: it is asked about once more.
    let mut tries = 0;
    while is_held(folder)? {
        if let Some(pid) = seen_holder(&folder.join("lock"))? {
            return Ok(Some(pid));
        }
        tries += 1;
        if tries == 50 {
            let subject = folder.join("lock").display().to_string();
            return Err(Error::new(Kind::Conflict, subject, "is held by a process that cannot be seen from here")
                .help("end that process yourself"));
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    Ok(None)
}

fn seen_holder(path: &Path) -> Result<Option<i32>> {
    use std::os::unix::fs::MetadataExt;
    let failed = |error: std::io::Error| Error::io(path.display().to_string(), "see who holds it", &error);
    let lock = std::fs::metadata(path).map_err(failed)?;
    let locks = std::fs::read_to_string("/proc/locks").map_err(failed)?;
    let inode = format!(":{}", lock.ino());
    // "1: FLOCK  ADVISORY  WRITE 1234 fd:01:5678 0 EOF". Inodes are unique to a file system only: the file has to be open.
    let holds = |pid: &i32| {
        let open = std::fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten().flatten();
        let same = |meta: std::fs::Metadata| (meta.dev(), meta.ino()) == (lock.dev(), lock.ino());
        open.into_iter().any(|entry| std::fs::metadata(entry.path()).is_ok_and(same))
    };
    let candidates = locks.lines().filter_map(|line| {
        let words: Vec<&str> = line.split_whitespace().collect();
        let flock = words.get(1) == Some(&"FLOCK") && words.get(5)?.ends_with(&inode);
        if flock { words.get(4)?.parse::<i32>().ok() } else { None }
    });
    Ok(candidates.filter(|pid| *pid > 0).find(holds))
}

/// Ends the balancer of a data folder, if one runs.
pub async fn stop_balancer(folder: &Path) -> Result<()> {
    balancer(folder, false).stop().await
}

/// The layout of a data folder that this build makes, and the newest it knows.
const FOLDER_FORMAT: u32 = 1;

// The number stands in a file of its own and is read before anything else is opened: opening a database, even only to
// look, writes to it.
fn check_format(folder: &Path) -> Result<()> {
    let path = folder.join("format");
    let subject = format!("data folder {}", folder.display());
    let known = crate::store::file::text(&path);
    let Some(text) = known.map_err(|error| Error::io(subject.clone(), "read its format", &error))? else {
        return crate::store::file::replace(&path, format!("{FOLDER_FORMAT}\n").as_bytes(), 0o644)
            .map_err(|error| Error::io(subject, "write to it", &error));
    };
    match text.trim().parse::<u32>() {
        Ok(format) if format <= FOLDER_FORMAT => Ok(()),
        Ok(format) => Err(Error::new(
            Kind::Corrupt,
            subject,
            format!("has format {format}; this neap knows up to {FOLDER_FORMAT}"),
        )
        .help("run the newer neap that wrote it")),
        Err(_) => Err(Error::new(Kind::Corrupt, subject, "has a damaged format file")
            .help("restore the data folder from a backup")),
    }
}

/// This program's own file, for keepers and balancer. A path that stays right when the file is replaced.
pub fn program() -> PathBuf {
    PathBuf::from("/proc/self/exe")
}

/// What a runtime stands on.
pub struct Parted {
    /// Where desired state lives.
    pub store: Arc<dyn Store>,
    /// What starts replicas.
    pub engine: Arc<dyn Engine>,
    /// Seals secrets.
    pub vault: Vault,
    /// Who keeps the door, where hosts can join.
    pub members: Option<Arc<dyn Members>>,
    /// What is known of the catalogue.
    pub catalog: Before,
    /// Addresses for services that are balanced inside the cluster; the engine's usual ones where none are given.
    pub internal: Option<Range>,
}

/// The parts of a runtime.
pub fn parts(cluster: &str, parted: Parted) -> Result<Parts> {
    let reach = Reach::default();
    // Containers have a loopback of their own.
    let usual = if parted.engine.name() == "process" { Range::LOOPBACK } else { Range::CLUSTER };
    Ok(Parts {
        internal: parted.internal.unwrap_or(usual),
        telling: tokio::sync::Mutex::default(),
        cluster: cluster.to_owned(),
        store: parted.store,
        engine: parted.engine,
        clock: reach.clock.clone(),
        network: reach.network.clone(),
        host: Arc::new(ScriptHost::with(reach, Threads::Own)?),
        vault: parted.vault,
        members: parted.members,
        catalog: parted.catalog,
    })
}

fn balancer(data: &Path, lifeline: bool) -> Box<dyn Balancer> {
    Box::new(BalancerClient::new(BalancerOptions { folder: data.to_owned(), program: program(), lifeline }))
}

/// Runs the daemon until it is told to end (TERM or INT). Replicas and balancer stay.
pub async fn up(options: Options) -> Result<()> {
    let _lock = lock_data(&options.data)?;
    // Bound before anything is taken over: a second daemon on the same socket stops here.
    let socket = api::server::bind_unix(&options.socket)?;
    let (store, chosen) = match engine::choose(&options.data, &options.engine).await? {
        Chosen::Shared(address) => return shared::up(options, socket, address).await,
        Chosen::Own(store, engine) => (store, engine),
    };
    let identity = identity::of(&options.cluster, &*store, &crate::model::clock::SystemClock::start()).await?;
    let engine = engine::open(&identity, &options.data, chosen, &options.engine).await?;
    let containers = engine::with_containers(chosen, &options.engine)?;
    let catalog = remembered::read(&options.data).map_or(Before::Nothing, Before::Remembered);
    let parted = Parted {
        store,
        engine,
        vault: Vault::open(&options.data)?,
        members: None,
        catalog,
        internal: options.internal,
    };
    let parts = parts(&options.cluster, parted)?;
    let (store, clock): (_, Arc<dyn Clock>) = (parts.store.clone(), parts.clock.clone());
    let runtime = Runtime::start(parts, balancer(&options.data, false)).await?;
    follow_scripts(&options, &runtime).await?;
    let audit = Arc::new(audit::AuditFile::open(&options.data, clock.clone())?);
    let own = discovery::own(&options.discovery, &runtime, &audit).await?;
    remembered::keep(&options.data, &runtime.registry().catalog);
    discovery::register_containers(&options.discovery, &runtime, containers, &identity);
    let here = Here::Name(runtime.registry().host.clone());
    discovery::serve(&options.discovery, &runtime.registry().catalog, here, Arc::new(own)).await;
    images::serve_alone(&options.registry, &options.data, &runtime, clock.clone()).await?;
    let own = runtime.registry().host.clone();
    let host: Arc<dyn Fn() -> Option<String> + Send + Sync> = Arc::new(move || Some(own.clone()));
    let cluster = runtime.clone();
    let router = api::router(Arc::new(Api { cluster, store, audit, clock, daemons: None, host, memory: None }));
    tokio::spawn(api::server::serve_unix(socket, router.clone()));
    if let Some(address) = options.listen {
        let (face, fingerprint) = tls::own_face(&options.data, options.tls.as_ref())?;
        let config = tls::server_config(face)?;
        let listener = api::server::bind_tcp(address).await?;
        tracing::info!(%address, fingerprint, "control API with TLS");
        println!("control API: https://{address}, fingerprint {fingerprint}");
        tokio::spawn(api::server::serve_tls(listener, config.subscribe(), router));
    }
    let info = runtime.info().await?;
    println!(
        "neap {} is up: cluster {}, engine {}, control socket {}",
        info.version,
        info.cluster,
        info.engine,
        options.socket.display()
    );
    end_signal()?.await;
    leave(&options)
}

async fn follow_scripts(options: &Options, runtime: &Arc<Runtime>) -> Result<()> {
    match &options.scripts {
        Some(folder) => crate::runtime::folder::watch(runtime, folder.clone()).await?,
        None => {
            if let Err(error) = crate::runtime::folder::forget(runtime).await {
                tracing::warn!(%error, "scripts of an earlier scripts folder still serve");
            }
        }
    }
    Ok(())
}

// Resolves when this process is told to end.
fn end_signal() -> Result<impl Future<Output = ()>> {
    let failed = |error: std::io::Error| Error::io("signals", "wait for them", &error);
    let mut terminate = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate()).map_err(failed)?;
    let mut interrupt = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::interrupt()).map_err(failed)?;
    Ok(async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
    })
}

fn leave(options: &Options) -> ! {
    let _ = std::fs::remove_file(&options.socket);
    println!("neap ends; replicas and published ports go on without it");
    // What is acknowledged is written. Taking the runtime down under its threads would only make them stumble.
    std::process::exit(0)
}

// One that is not there is as good as removed.
fn remove_file(path: &Path) -> Result<()> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(Error::io(path.display().to_string(), "remove it", &error))
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_holds_a_folder() {
        let folder = tempfile::tempdir().unwrap();
        assert_eq!(holder(folder.path()).unwrap(), None);
        let lock = lock_data(folder.path()).unwrap();
        assert_eq!(holder(folder.path()).unwrap(), i32::try_from(std::process::id()).ok());
        drop(lock);
        assert_eq!(holder(folder.path()).unwrap(), None);
    }

    #[test]
    fn a_lock_on_its_way_out_is_waited_for() {
        let folder = tempfile::tempdir().unwrap();
        let lock = lock_data(folder.path()).unwrap();
        // A copy of the descriptor is what a child between fork and exec has.
        let copy = lock.0.try_clone().unwrap();
        drop(lock);
        let path = folder.path().to_owned();
        let next = std::thread::spawn(move || lock_data(&path).map(drop));
        std::thread::sleep(Duration::from_millis(100));
        assert!(!next.is_finished());
        drop(copy);
        next.join().unwrap().unwrap();
    }
}
