//! A host of a Swarm: it keeps the cluster's images, or opens the door to the host that does.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;

use async_trait::async_trait;
use tokio::sync::watch;

use super::super::discovery::tell;
use super::super::tls;
use super::{Faces, RegistryOptions, door, up};
use crate::agent::protocol::{Keeper, Keeps};
use crate::agent::work::Worker;
use crate::api::oci::doors::{self, Doors};
use crate::api::oci::{Access, Tokens};
use crate::client::images::ask::Answering;
use crate::model::clock::Clock;
use crate::model::registry::Login;
use crate::model::{Error, Result};
use crate::registry::cache::Logins;
use crate::runtime::images::{Happenings, ImageHappened, LocalImages};
use crate::store::file;

/// Where the doors of other hosts reach the registry, unless told otherwise.
pub const PORT: u16 = 8378;
/// Where the host keeps what it was told of the cluster's registry.
const KNOWN: &str = "registry.json";

/// This host, where it leads, and knows by itself what it asks otherwise.
pub trait Leading: Send + Sync {
    /// What other registries are told, once this host leads.
    fn logins(&self) -> Option<Arc<dyn Logins>>;
    /// True, once it is told here: this host leads.
    fn tell(&self, happened: &ImageHappened) -> bool;
}

/// A host that never leads.
pub struct Agent;

impl Leading for Agent {
    fn logins(&self) -> Option<Arc<dyn Logins>> {
        None
    }

    fn tell(&self, _: &ImageHappened) -> bool {
        false
    }
}

struct HostLogins(Arc<dyn Leading>, Arc<up::Up>);

#[async_trait]
impl Logins for HostLogins {
    async fn at(&self, registry: &str) -> Result<Option<Login>> {
        match self.0.logins() {
            Some(logins) => logins.at(registry).await,
            None => self.1.at(registry).await,
        }
    }
}

/// A host's part in it.
pub struct Host<'a> {
    /// As it is told.
    pub options: &'a RegistryOptions,
    /// Its data folder.
    pub data: &'a Path,
    /// What it does for the cluster.
    pub worker: &'a Arc<Worker>,
    /// Who knows tokens; whoever leads is asked where nobody does.
    pub tokens: Option<Arc<dyn Tokens>>,
    /// Whether it leads.
    pub leading: Arc<dyn Leading>,
    /// Where the registry is reached by other hosts, where this one keeps it and nothing else is said.
    pub peer: SocketAddr,
}

impl Host<'_> {
    /// Keeps the cluster's images, or opens the door. What cannot be listened at is told, and keeps nobody from starting.
    pub async fn serve(self, clock: Arc<dyn Clock>) -> Result<()> {
        remember(self.data, &self.worker.registry);
        if self.options.keeps {
            return self.keep(clock).await;
        }
        let faces = Faces::of(self.options)?;
        for address in self.options.addresses() {
            match door::open(address, self.worker.registry.subscribe(), faces.at(address)).await {
                Ok(address) => tracing::info!(%address, "door to the image registry"),
                Err(error) => tell(&error, address.port(), "--registry-listen"),
            }
        }
        Ok(())
    }

    async fn keep(self, clock: Arc<dyn Clock>) -> Result<()> {
        let Some(registry) = super::open(self.options, self.data, clock).await? else { return Ok(()) };
        let up = up::Up::new(self.worker.clone());
        registry.set_logins(Arc::new(HostLogins(self.leading.clone(), up.clone())));
        let tokens = self.tokens.unwrap_or_else(|| up.clone());
        // Hosts of a cluster are more people's than one host is: pushes are somebody's.
        let users = self.options.users()?;
        super::listen(self.options, &registry, &tokens, &users, Access::Pull).await?;
        let (face, fingerprint) = tls::own_face(self.data, None)?;
        let (_, config) = watch::channel(tls::plain_config(face)?);
        let access = self.options.access.unwrap_or(Access::Pull);
        let secrets = secrets(self.worker.registry.subscribe());
        let doors = Arc::new(Doors { registry: registry.clone(), tokens, users, access, secrets });
        let peer = self.options.peer.unwrap_or(self.peer);
        match doors::listen(peer, config, doors).await {
            Ok(address) => {
                tracing::info!(%address, "image registry of the cluster, for the doors of its hosts");
                let door = self.options.door();
                let images = Arc::new(LocalImages { registry: registry.clone(), door });
                let keeps = Keeps { port: address.port(), fingerprint };
                let _ = self.worker.keeps.set((keeps, Answering::new(images)));
            }
            Err(error) => tell(&error, peer.port(), "--registry-peer"),
        }
        let (leading, mut happenings) = (self.leading, Happenings::of(&registry));
        tokio::spawn(async move {
            while let Some(happened) = happenings.next().await {
                if !leading.tell(&happened) {
                    up.tell(&happened).await;
                }
            }
        });
        Ok(())
    }
}

// The newest, and the one before: doors hear of a new one a moment later.
fn secrets(mut keeper: watch::Receiver<Option<Keeper>>) -> watch::Receiver<Vec<String>> {
    let (sender, receiver) = watch::channel(Vec::new());
    keeper.mark_changed();
    tokio::spawn(async move {
        while keeper.changed().await.is_ok() {
            let Some(secret) = keeper.borrow_and_update().as_ref().map(|keeper| keeper.secret.clone()) else {
                continue;
            };
            sender.send_modify(|secrets: &mut Vec<String>| {
                if secrets.first() != Some(&secret) {
                    secrets.insert(0, secret);
                    secrets.truncate(2);
                }
            });
        }
    });
    receiver
}

// A door leads somewhere before anybody leads who could say so.
fn remember(data: &Path, known: &watch::Sender<Option<Keeper>>) {
    let path = data.join(KNOWN);
    let before = file::text(&path).ok().flatten().and_then(|text| serde_json::from_str::<Keeper>(&text).ok());
    if let Some(before) = before {
        known.send_replace(Some(before));
    }
    let mut changes = known.subscribe();
    tokio::spawn(async move {
        while changes.changed().await.is_ok() {
            let Some(keeper) = changes.borrow_and_update().clone() else { continue };
            let written = serde_json::to_vec(&keeper)
                .map_err(|error| Error::internal("registry", error.to_string()))
                .and_then(|text| {
                    let failed = |error: std::io::Error| Error::io(path.display().to_string(), "write it", &error);
                    file::replace(&path, &text, 0o600).map_err(failed)
                });
            if let Err(error) = written {
                tracing::warn!(%error, "where the image registry is cannot be kept");
            }
        }
    });
}
