//! A cluster for one script: a temporary data folder, no port but the published ones, nothing left behind, also after
//! kill -9. A sweeper (this binary, re-executed) waits at the other end of a pipe and removes the folder when this
//! process is gone.

use std::path::{Path, PathBuf};
use std::process::ChildStdin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::StreamExt;

use super::{DataLock, Parted, lock_data, parts, program};
use crate::client::Cluster;
use crate::engines::process::ports::DEFAULT_RANGE;
use crate::engines::process::{ProcessEngine, ProcessOptions};
use crate::model::{Error, Result};
use crate::runtime::Runtime;
use crate::runtime::catalog::Before;
use crate::store::EmbeddedStore;
use crate::store::vault::Vault;

/// A cluster that ends with this process.
pub struct Standalone {
    runtime: Arc<Runtime>,
    sweeper: Option<(std::process::Child, ChildStdin)>,
    _lock: DataLock,
}

/// How long the end of everything may take: drains, grace periods.
const END: Duration = Duration::from_secs(40);

impl Standalone {
    /// Makes the folder and starts the runtime.
    pub async fn start() -> Result<Self> {
        let folder = temporary_folder()?;
        let lock = lock_data(&folder)?;
        let failed = |error: std::io::Error| Error::io("sweeper", "start it", &error);
        let mut command = std::process::Command::new(program());
        std::os::unix::process::CommandExt::arg0(&mut command, "neap");
        command.arg("sweep").arg(&folder).env_clear().stdin(std::process::Stdio::piped());
        command.stdout(std::process::Stdio::null()).stderr(std::process::Stdio::null());
        // Ctrl-C is for the script; the sweeper cleans up after it.
        std::os::unix::process::CommandExt::process_group(&mut command, 0);
        let mut sweeper = command.spawn().map_err(failed)?;
        let lifeline = sweeper.stdin.take().ok_or_else(|| Error::internal("sweeper", "has no standard input"))?;
        let engine = ProcessEngine::open(ProcessOptions {
            folder: folder.join("tasks"),
            program: program(),
            ports: DEFAULT_RANGE,
            lifeline: true,
        })?;
        let store = Arc::new(EmbeddedStore::open(&folder.join("neap.redb"))?);
        let parted = Parted {
            store,
            engine: Arc::new(engine),
            vault: Vault::open(&folder)?,
            members: None,
            catalog: Before::Nothing,
            internal: None,
        };
        let parts = parts("standalone", parted)?;
        let balancer = super::balancer(&folder, true);
        let runtime = Runtime::start(parts, balancer).await?;
        Ok(Standalone { runtime, sweeper: Some((sweeper, lifeline)), _lock: lock })
    }

    /// The cluster.
    pub fn cluster(&self) -> Arc<dyn Cluster> {
        self.runtime.clone()
    }

    /// Ends all that the script left running, then the balancer, then the folder.
    pub async fn end(mut self) {
        let all = async {
            let services = self.runtime.services().await.unwrap_or_default();
            let mut ends = Vec::new();
            for status in services {
                let name = status.service.spec.name.to_string();
                if let Ok(states) = self.runtime.watch(&name).await {
                    let _ = self.runtime.remove(&name).await;
                    ends.push(states.for_each(|_| async {}));
                }
            }
            futures_util::future::join_all(ends).await;
        };
        let _ = tokio::time::timeout(END, all).await;
        self.runtime.stop_balancer().await;
        if let Some((mut sweeper, lifeline)) = self.sweeper.take() {
            drop(lifeline);
            let _ = tokio::task::spawn_blocking(move || sweeper.wait()).await;
        }
    }
}

fn temporary_folder() -> Result<PathBuf> {
    let base = std::env::temp_dir();
    let clock = crate::model::clock::SystemClock::start();
    for _ in 0..100 {
        let random = crate::model::clock::Clock::random(&clock);
        let folder = base.join(format!("neap-standalone-{random:016x}"));
        match std::os::unix::fs::DirBuilderExt::mode(&mut std::fs::DirBuilder::new(), 0o700).create(&folder) {
            Ok(()) => return Ok(folder),
            Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {}
            Err(error) => return Err(Error::io(base.display().to_string(), "make a temporary folder", &error)),
        }
    }
    Err(Error::internal("temporary folder", "every name is taken"))
}

/// Waits until standard input is closed, then until keepers and balancer have ended, and removes `folder`.
pub fn sweep(folder: &Path) {
    let _ = nix::unistd::setsid();
    // Shown by ps; the program itself is run through /proc/self/exe.
    let _ = nix::sys::prctl::set_name(c"neap-sweep");
    let _ = std::io::copy(&mut std::io::stdin(), &mut std::io::sink());
    let until = Instant::now() + END;
    // A keeper holds its task's lock until the replica has ended.
    while Instant::now() < until && crate::engines::process::any_keeper(&folder.join("tasks")) {
        std::thread::sleep(Duration::from_millis(50));
    }
    while Instant::now() < until
        && std::os::unix::net::UnixStream::connect(crate::network::balancer::socket_path(folder)).is_ok()
    {
        std::thread::sleep(Duration::from_millis(20));
    }
    let _ = std::fs::remove_dir_all(folder);
}
