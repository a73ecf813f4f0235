//! The image registry of this host: where it listens, and what it does by itself; in a Swarm the door to the one of another host.

mod bucket;
pub mod choose;
mod door;
pub mod keeper;
pub mod named;
pub mod up;

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use tokio::sync::watch;

pub use self::bucket::BucketSettings;
pub use self::named::RegistryName;
use super::discovery::tell;
use super::tls;
use crate::api::oci::{self, Access, Gate, Oci, Rate, Sides, StoredSecrets, Tls, Tokens, Users};
use crate::model::clock::Clock;
use crate::model::right::Principal;
use crate::model::{Error, Kind, Result};
use crate::registry::refused::Refused;
use crate::registry::{ImageRegistry, Limits};
use crate::runtime::Runtime;
use crate::runtime::images::{Happenings, LocalImages};
use crate::runtime::lent::Lent;

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
    /// Where it listens, or in a Swarm the door to it; the loopback's port 5000 where this is not said.
    pub listen: Option<Vec<SocketAddr>>,
    /// Whether this host of a Swarm keeps the cluster's images.
    pub keeps: bool,
    /// Where the doors of other hosts reach it, where it does.
    pub peer: Option<SocketAddr>,
    /// What is asked of clients; without it nothing of those on the loopback, a token of all others.
    pub access: Option<Access>,
    /// Certificate chain and key for what does not listen on the loopback.
    pub tls: Option<(PathBuf, PathBuf)>,
    /// Under which name others reach it.
    pub name: Option<RegistryName>,
    /// Users with passwords, in a file of `htpasswd -B`.
    pub users: Option<PathBuf>,
    /// How many requests a second one address may make; any number where it is not said.
    pub rate: Option<u32>,
    /// The bucket in which it is kept as well.
    pub bucket: Option<BucketSettings>,
    /// How it is kept.
    pub limits: Limits,
}

impl RegistryOptions {
    /// Where it, or the door to it, listens.
    pub fn addresses(&self) -> Vec<SocketAddr> {
        let (own, all) = ((Ipv4Addr::LOCALHOST, PORT).into(), |port| (Ipv6Addr::UNSPECIFIED, port).into());
        match (&self.listen, &self.name) {
            (Some(listen), _) => listen.clone(),
            (None, None) => vec![own],
            (None, Some(name)) if name.port == PORT => vec![all(PORT)],
            (None, Some(name)) => vec![own, all(name.port)],
        }
    }

    /// How much one address may ask.
    pub fn rate(&self) -> Option<Arc<Rate>> {
        self.rate.map(|rate| Arc::new(Rate::new(rate)))
    }

    /// Those who say a name and a password.
    pub fn users(&self) -> Result<Option<Arc<Users>>> {
        self.users.as_deref().map(|path| Users::open(path).map(Arc::new)).transpose()
    }

    /// The certificate that clients need who reach it by its name, where it is made here.
    pub fn ca(&self, data: &Path) -> Option<PathBuf> {
        (self.name.is_some() && self.tls.is_none()).then(|| data.join(named::CA))
    }

    /// Where every host of the cluster finds it: a port that is a setting of the whole cluster.
    pub fn door(&self) -> String {
        let addresses = self.addresses();
        let own = addresses.iter().find(|address| address.ip().is_loopback());
        let own = own.or_else(|| addresses.iter().find(|address| address.ip().is_unspecified()));
        let port = own.map_or(PORT, SocketAddr::port);
        format!("127.0.0.1:{port}")
    }
}

/// Opens the one of this host, and keeps it clean. One that cannot be opened keeps nobody from starting.
pub async fn open(options: &RegistryOptions, data: &Path, clock: Arc<dyn Clock>) -> Result<Option<Arc<ImageRegistry>>> {
    let (folder, limits) = (data.join(FOLDER), options.limits.clone());
    let opened = tokio::task::spawn_blocking(move || ImageRegistry::open(&folder, limits, clock)).await;
    let broken = |error| Error::internal("image registry", "broke off").cause(error);
    match opened.map_err(broken).and_then(|opened| opened) {
        Ok(registry) => {
            let registry = Arc::new(registry);
            tokio::spawn(keep_clean(registry.clone()));
            Ok(Some(registry))
        }
        Err(error) => {
            tracing::error!(%error, "the image registry is not served");
            Ok(None)
        }
    }
}

// Serves one of this host where it is to be; `own_access` is what is asked on the loopback where nothing else is said.
async fn listen(
    options: &RegistryOptions,
    data: &Path,
    registry: &Arc<ImageRegistry>,
    tokens: &Arc<dyn Tokens>,
    users: &Option<Arc<Users>>,
    own_access: Access,
) -> Result<()> {
    let (faces, rate) = (Faces::of(options, data)?, options.rate());
    for address in options.addresses() {
        let sides = faces.at(options, address, |is_own, is_secure| {
            let access = options.access.unwrap_or(if is_own { own_access } else { Access::Token });
            let gate = Gate { access, tokens: tokens.clone(), users: users.clone(), is_secure };
            Arc::new(Oci { registry: registry.clone(), gate, rate: rate.clone() })
        });
        match oci::listen(address, sides).await {
            Ok(address) => tracing::info!(%address, "image registry"),
            Err(error) => tell(&error, address.port(), "--registry-listen"),
        }
    }
    Ok(())
}

/// Serves the one of a daemon that is alone. A certificate that cannot be read keeps it from starting.
pub async fn serve_alone(
    options: &RegistryOptions,
    data: &Path,
    runtime: &Arc<Runtime>,
    clock: Arc<dyn Clock>,
) -> Result<()> {
    if options.addresses().is_empty() {
        return Ok(());
    }
    let Some(registry) = open(options, data, clock).await? else { return Ok(()) };
    registry.set_logins(runtime.known_logins());
    match &options.bucket {
        Some(bucket) => bucket.keep(&registry).await?,
        None => registry.keep_here().await.map_err(Refused::into_error)?,
    }
    let tokens: Arc<dyn Tokens> = Arc::new(OwnTokens(StoredSecrets(runtime.store().clone()), runtime.lent().clone()));
    listen(options, data, &registry, &tokens, &options.users()?, Access::Open).await?;
    let (own, mut happenings) = (runtime.clone(), Happenings::of(&registry));
    tokio::spawn(async move {
        while let Some(happened) = happenings.next().await {
            own.tell_image(happened);
        }
    });
    runtime.serve_images(Arc::new(LocalImages { registry, door: options.door(), ca: options.ca(data) }), None);
    Ok(())
}

// Those that stay, and those that are lent for a moment.
struct OwnTokens(StoredSecrets, Arc<Lent>);

#[async_trait]
impl Tokens for OwnTokens {
    async fn principal(&self, hash: &str) -> Result<Principal> {
        match self.0.principal(hash).await {
            Err(error) if error.kind == Kind::Unauthenticated => self.1.principal(hash).ok_or(error),
            known => known,
        }
    }
}

/// What is shown beyond the loopback.
pub struct Faces(Option<Tls>);

impl Faces {
    /// As it is told; for a name without a certificate one is made.
    pub fn of(options: &RegistryOptions, data: &Path) -> Result<Self> {
        let (given, name, data) = (options.tls.clone(), options.name.clone(), data.to_owned());
        let paths: Paths = match (given, name) {
            (Some(paths), _) => Box::new(move || Ok(paths.clone())),
            (None, Some(name)) => {
                let ca = data.join(named::CA);
                tracing::info!(
                    %name, ca = %ca.display(),
                    "clients of the image registry need that certificate, Docker as /etc/docker/certs.d/{name}/ca.crt"
                );
                Box::new(move || named::face(&data, &name))
            }
            (None, None) => return Ok(Faces(None)),
        };
        followed(paths).map(|tls| Faces(Some(tls)))
    }

    /// What is shown at this address; `side` makes it, for those on this host or others, with or without TLS.
    pub fn at<T>(&self, options: &RegistryOptions, address: SocketAddr, side: impl Fn(bool, bool) -> T) -> Sides<T> {
        let ip = address.ip();
        let has_own = options.addresses().iter().any(|address| address.ip().is_loopback());
        let is_own = ip.is_loopback() || (ip.is_unspecified() && !has_own);
        let own = is_own.then(|| side(true, false));
        if ip.is_loopback() {
            return Sides { own, far: None };
        }
        if self.0.is_none() {
            tracing::warn!(
                %address,
                "the image registry is served without TLS: tokens are seen on the way, and Docker wants it among its insecure-registries \
                 (--registry-name, --registry-tls-cert)"
            );
        }
        Sides { own, far: Some((side(false, self.0.is_some()), self.0.clone())) }
    }
}

// Where certificate and key are now.
type Paths = Box<dyn Fn() -> Result<(PathBuf, PathBuf)> + Send + Sync>;

// A certificate that is read again when its file is another.
fn followed(paths: Paths) -> Result<Tls> {
    let read = move || -> Result<(Arc<rustls::ServerConfig>, String)> {
        let (face, fingerprint) = tls::own_face(Path::new(""), Some(&paths()?))?;
        Ok((tls::plain_config(face)?, fingerprint))
    };
    let (config, mut known) = read()?;
    let (sender, receiver) = watch::channel(config);
    tokio::spawn(async move {
        loop {
            tokio::time::sleep(LOOK).await;
            match read() {
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
