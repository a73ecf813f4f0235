//! The image registry of this host: where it listens, and what it does by itself.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;

use super::discovery::tell;
use super::tls;
use crate::api::oci::{self, Access, Gate, Oci, Tls};
use crate::model::clock::Clock;
use crate::model::{Error, Result};
use crate::registry::{ImageRegistry, Limits};
use crate::store::Store;

/// The registry's port.
pub const PORT: u16 = 5000;
/// The folder in the data folder.
const FOLDER: &str = "registry";
/// How long a daemon runs before it collects for the first time, and how long between two times.
const FIRST: Duration = Duration::from_secs(10 * 60);
const EVERY: Duration = Duration::from_secs(60 * 60);
/// How often it is looked whether there is another certificate.
const LOOK: Duration = Duration::from_secs(30);

/// Where it listens, and how it is kept.
#[derive(Debug, Clone, Default)]
pub struct RegistryOptions {
    /// Where it listens; nothing where this is not said.
    pub listen: Option<Vec<SocketAddr>>,
    /// What is asked of clients; without it nothing of those on the loopback, a token of all others.
    pub access: Option<Access>,
    /// Certificate chain and key for what does not listen on the loopback.
    pub tls: Option<(PathBuf, PathBuf)>,
    /// How it is kept.
    pub limits: Limits,
}

/// Serves it where it is to be: on the loopback where nothing is said and the daemon is `alone`. One that cannot be opened keeps nobody from
/// starting; a certificate that cannot be read does.
pub async fn serve(
    options: &RegistryOptions,
    alone: bool,
    data: &Path,
    store: &Arc<dyn Store>,
    clock: Arc<dyn Clock>,
) -> Result<Option<Arc<ImageRegistry>>> {
    let usual = || if alone { vec![([127, 0, 0, 1], PORT).into()] } else { Vec::new() };
    let addresses = options.listen.clone().unwrap_or_else(usual);
    if addresses.is_empty() {
        return Ok(None);
    }
    let tls = options.tls.clone().map(followed).transpose()?;
    let (folder, limits) = (data.join(FOLDER), options.limits.clone());
    let opened = tokio::task::spawn_blocking(move || ImageRegistry::open(&folder, limits, clock)).await;
    let broken = |error| Error::internal("image registry", "broke off").cause(error);
    let registry = match opened.map_err(broken).and_then(|opened| opened) {
        Ok(registry) => Arc::new(registry),
        Err(error) => {
            tracing::error!(%error, "the image registry is not served");
            return Ok(None);
        }
    };
    for address in addresses {
        let is_own = address.ip().is_loopback();
        let access = options.access.unwrap_or(if is_own { Access::Open } else { Access::Token });
        let tls = tls.clone().filter(|_| !is_own);
        if tls.is_none() && !is_own {
            tracing::warn!(
                %address,
                "the image registry is served without TLS: tokens are seen on the way, and Docker wants it among its insecure-registries \
                 (--registry-tls-cert)"
            );
        }
        let gate = Gate { access, store: store.clone(), is_secure: tls.is_some() };
        let oci = Arc::new(Oci { registry: registry.clone(), gate });
        match oci::listen(address, oci, tls).await {
            Ok(address) => tracing::info!(%address, "image registry"),
            Err(error) => tell(&error, address.port(), "--registry-listen"),
        }
    }
    tokio::spawn(keep_clean(registry.clone()));
    Ok(Some(registry))
}

// A certificate that is read again when its file is another.
fn followed(paths: (PathBuf, PathBuf)) -> Result<Tls> {
    let read = |paths: &(PathBuf, PathBuf)| -> Result<(Arc<rustls::ServerConfig>, String)> {
        let (face, fingerprint) = tls::own_face(Path::new(""), Some(paths))?;
        Ok((tls::plain_config(face)?, fingerprint))
    };
    let (config, mut known) = read(&paths)?;
    let (sender, receiver) = watch::channel(config);
    tokio::spawn(async move {
        loop {
            tokio::time::sleep(LOOK).await;
            match read(&paths) {
                Ok((_, fingerprint)) if fingerprint == known => {}
                Ok((config, fingerprint)) => {
                    tracing::info!(fingerprint, "the image registry has a new certificate");
                    known = fingerprint;
                    sender.send_replace(config);
                }
                // Certificate and key are written one after the other.
                Err(error) => tracing::warn!(%error, "the image registry keeps its certificate"),
            }
            if sender.is_closed() {
                return;
            }
        }
    });
    Ok(receiver)
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
