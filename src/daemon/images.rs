//! The image registry of this host: where it listens, and what it does by itself.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use super::discovery::tell;
use crate::api::oci::{self, Oci};
use crate::model::clock::Clock;
use crate::registry::{ImageRegistry, Limits};

/// The registry's port.
pub const PORT: u16 = 5000;
/// The folder in the data folder.
const FOLDER: &str = "registry";
/// How long a daemon runs before it collects for the first time, and how long between two times.
const FIRST: Duration = Duration::from_secs(10 * 60);
const EVERY: Duration = Duration::from_secs(60 * 60);

/// Where it listens, and how it is kept.
#[derive(Debug, Clone, Default)]
pub struct RegistryOptions {
    /// Where it listens; nothing where this is not said.
    pub listen: Option<Vec<SocketAddr>>,
    /// How it is kept.
    pub limits: Limits,
}

/// Serves it where it is to be: on the loopback where nothing is said and the daemon is `alone`. One that cannot be opened keeps nobody from
/// starting.
pub async fn serve(
    options: &RegistryOptions,
    alone: bool,
    data: &Path,
    clock: Arc<dyn Clock>,
) -> Option<Arc<ImageRegistry>> {
    let usual = || if alone { vec![([127, 0, 0, 1], PORT).into()] } else { Vec::new() };
    let addresses = options.listen.clone().unwrap_or_else(usual);
    if addresses.is_empty() {
        return None;
    }
    let (folder, limits) = (data.join(FOLDER), options.limits.clone());
    let opened = tokio::task::spawn_blocking(move || ImageRegistry::open(&folder, limits, clock)).await;
    let registry = match opened {
        Ok(Ok(registry)) => Arc::new(registry),
        Ok(Err(error)) => {
            tracing::error!(%error, "the image registry is not served");
            return None;
        }
        Err(error) => {
            tracing::error!(%error, "the image registry is not served");
            return None;
        }
    };
    let oci = Arc::new(Oci { registry: registry.clone() });
    for address in addresses {
        match oci::listen(address, oci.clone()).await {
            Ok(address) => tracing::info!(%address, "image registry"),
            Err(error) => tell(&error, address.port(), "--registry-listen"),
        }
    }
    tokio::spawn(keep_clean(registry.clone()));
    Some(registry)
}

async fn keep_clean(registry: Arc<ImageRegistry>) {
    tokio::time::sleep(FIRST).await;
    loop {
        match registry.collect().await {
            Ok(done) if done == Default::default() => {}
            Ok(done) => tracing::info!(
                blobs = done.blobs,
                bytes = done.bytes,
                uploads = done.uploads,
                "the image registry has removed what nobody needs"
            ),
            Err(refused) => tracing::warn!(why = refused.why, "the image registry could not be cleaned"),
        }
        tokio::time::sleep(EVERY).await;
    }
}
