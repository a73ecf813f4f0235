//! A host of a Swarm: it keeps the cluster's images, or opens the door to the host that does.

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use tokio::sync::watch;

use super::super::discovery::tell;
use super::super::tls;
use super::{BucketSettings, Faces, RegistryOptions, door, up};
use crate::agent::protocol::{Keeper, Keeps};
use crate::agent::work::Worker;
use crate::api::oci::doors::{self, Brought, Doors};
use crate::api::oci::{Access, Tokens};
use crate::client::images::ask::Answering;
use crate::model::clock::Clock;
use crate::model::id::NodeId;
use crate::model::registry::Login;
use crate::model::right::Principal;
use crate::model::{Error, Kind, Result};
use crate::registry::cache::Logins;
use crate::registry::refused::Refused;
use crate::runtime::images::{Happenings, ImageHappened, LocalImages};
use crate::runtime::lent::Lent;
use crate::store::file;

/// Where the doors of other hosts reach the registry, unless told otherwise.
pub const PORT: u16 = 8378;
/// How long doors have that know only the secret before.
const BEFORE: Duration = Duration::from_secs(60);
/// How often, and how long between, it is tried to tell what happened.
const TRIES: u32 = 30;
const AGAIN: Duration = Duration::from_secs(1);
/// Where the host keeps what it was told of the cluster's registry.
const KNOWN: &str = "registry.json";

/// This host, where it leads, and knows by itself what it asks otherwise.
pub trait Leading: Send + Sync {
    /// What other registries are told, once this host leads.
    fn logins(&self) -> Option<Arc<dyn Logins>>;
    /// True, once it is told here: this host leads.
    fn tell(&self, happened: &ImageHappened) -> bool;
    /// What is lent, where this host leads.
    fn lent(&self) -> Option<Arc<Lent>>;
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

    fn lent(&self) -> Option<Arc<Lent>> {
        None
    }
}

// What this host knows, and what whoever leads has lent for a moment.
struct HostTokens {
    own: Option<Arc<dyn Tokens>>,
    leading: Arc<dyn Leading>,
    up: Arc<up::Up>,
}

#[async_trait]
impl Tokens for HostTokens {
    async fn principal(&self, hash: &str) -> Result<Principal> {
        let unknown = match &self.own {
            Some(own) => match own.principal(hash).await {
                Err(error) if error.kind == Kind::Unauthenticated => error,
                known => return known,
            },
            None => return self.up.principal(hash).await,
        };
        match self.leading.lent() {
            Some(lent) => lent.principal(hash).ok_or(unknown),
            // Where nobody leads, nothing is lent.
            None => self.up.principal(hash).await.map_err(|error| match error.kind {
                Kind::Unavailable => unknown,
                _ => error,
            }),
        }
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
    /// Where the registry is reached by other hosts, where this one keeps it and nothing else is said; without it at all addresses.
    pub peer: Option<SocketAddr>,
    /// This host's node.
    pub node: NodeId,
}

impl Host<'_> {
    /// Opens the door, and would keep the cluster's images where that is its role. What cannot be listened at is told, and keeps nobody from
    /// starting.
    pub async fn serve(self, clock: Arc<dyn Clock>) -> Result<()> {
        remember(self.data, &self.worker.registry);
        let faces = Faces::of(self.options, self.data)?;
        let kept = if self.options.keeps { self.keep(clock).await? } else { None };
        let RegistryOptions { access, users, peer, rate, keeps, .. } = self.options;
        if !keeps && (access.is_some() || users.is_some() || peer.is_some() || rate.is_some()) {
            tracing::warn!(
                "who may do what with images is said on the host that keeps them (--roles registry); here it is only a door"
            );
        }
        for address in self.options.addresses() {
            let side = |is_own: bool, is_secure: bool| {
                let brought = Brought { is_own, is_secure };
                let own = kept.as_ref().map(|doors| door::Own { node: self.node.clone(), oci: doors.oci(brought) });
                (brought, own)
            };
            let sides = faces.at(self.options, address, side);
            match door::open(address, self.worker.registry.subscribe(), sides).await {
                Ok(address) => tracing::info!(%address, "door to the image registry"),
                Err(error) => tell(&error, address.port(), "--registry-listen"),
            }
        }
        Ok(())
    }

    async fn keep(&self, clock: Arc<dyn Clock>) -> Result<Option<Arc<Doors>>> {
        let Some(registry) = super::open(self.options, self.data, clock).await? else {
            // Nobody else is to begin with nothing instead.
            let none = Keeps { port: 0, address: None, fingerprint: String::new(), bucket: None };
            let _ = self.worker.keeps.set((none, None));
            return Ok(None);
        };
        match &self.options.bucket {
            Some(bucket) => {
                let said = (self.worker.registry.subscribe(), self.worker.registry_said.subscribe());
                bucket.clone().keep_while(&registry, said, self.node.clone())?;
            }
            None => registry.keep_here().await.map_err(Refused::into_error)?,
        }
        let up = up::Up::new(self.worker.clone());
        registry.set_logins(Arc::new(HostLogins(self.leading.clone(), up.clone())));
        let tokens: Arc<dyn Tokens> =
            Arc::new(HostTokens { own: self.tokens.clone(), leading: self.leading.clone(), up: up.clone() });
        let (face, fingerprint) = tls::own_face(self.data, None)?;
        let (_, config) = watch::channel(tls::plain_config(face)?);
        // Hosts of a cluster are more people's than one host is: pushes are somebody's.
        let access = self.options.access.unwrap_or(Access::Pull);
        let secrets = secrets(self.worker.registry.subscribe());
        let (users, told) = (self.options.users()?, Mutex::default());
        let rate = self.options.rate();
        let doors = Arc::new(Doors { registry: registry.clone(), tokens, users, access, secrets, rate, told });
        let wanted = self.options.peer.or(self.peer);
        let everywhere = [(Ipv6Addr::UNSPECIFIED, PORT).into(), (Ipv4Addr::UNSPECIFIED, PORT).into()];
        let addresses = wanted.map_or(everywhere.to_vec(), |address| vec![address]);
        let mut listened = Err(Error::internal("image registry", "has nowhere to listen"));
        for address in addresses {
            listened = doors::listen(address, config.clone(), doors.clone()).await;
            if listened.is_ok() {
                break;
            }
        }
        // One that cannot be reached keeps what it has: nobody else is to begin with nothing instead.
        let (port, address) = match listened {
            Ok(address) => {
                tracing::info!(%address, "image registry, for the doors of the cluster's hosts");
                (address.port(), Some(address.ip()).filter(|ip| !ip.is_unspecified()))
            }
            Err(error) => {
                tell(&error, wanted.map_or(PORT, |address| address.port()), "--registry-peer");
                (0, None)
            }
        };
        let images = Arc::new(LocalImages {
            registry: registry.clone(),
            door: self.options.door(),
            ca: self.options.ca(self.data),
        });
        let bucket = self.options.bucket.as_ref().map(BucketSettings::name);
        let _ = self.worker.keeps.set((Keeps { port, address, fingerprint, bucket }, Some(Answering::new(images))));
        let (leading, worker, node) = (self.leading.clone(), self.worker.clone(), self.node.clone());
        let mut happenings = Happenings::of(&registry);
        tokio::spawn(async move {
            while let Some(happened) = happenings.next().await {
                // What is pushed to one that is not the cluster's is nobody's event.
                let is_the_one = worker.registry.borrow().as_ref().is_some_and(|keeper| keeper.node == node);
                if is_the_one {
                    announce(&*leading, &up, &happened).await;
                }
            }
        });
        Ok(Some(doors))
    }
}

// Whoever leads hears it, also where that changes just now, and where it is this host by then.
async fn announce(leading: &dyn Leading, up: &up::Up, happened: &ImageHappened) {
    for _ in 0..TRIES {
        if leading.tell(happened) {
            return;
        }
        match up.tell(happened).await {
            Ok(()) => return,
            Err(error) if error.retry => tokio::time::sleep(AGAIN).await,
            Err(error) => return tracing::warn!(%error, "an event of an image is not told"),
        }
    }
    tracing::warn!(image = ?happened.image, "an event of an image is not told: nobody leads");
}

// The newest, and for a moment the one before: doors hear of a new one a moment later.
fn secrets(mut keeper: watch::Receiver<Option<Keeper>>) -> watch::Receiver<Vec<String>> {
    let (sender, receiver) = watch::channel(Vec::new());
    keeper.mark_changed();
    tokio::spawn(async move {
        loop {
            tokio::select! {
                changed = keeper.changed() => if changed.is_err() { return },
                () = tokio::time::sleep(BEFORE), if sender.borrow().len() > 1 => {
                    sender.send_modify(|secrets: &mut Vec<String>| secrets.truncate(1));
                    continue;
                }
            }
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
