//! A daemon's part in what is done on the hosts of a Swarm: for its own host it is the agent; when it leads it keeps the
//! door for the others.

use std::future::Future;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bollard::Docker;
use rustls::sign::CertifiedKey;
use tokio::sync::watch;

use crate::agent::authority::Authority;
use crate::agent::call::{Caller, NODE};
use crate::agent::door::Door;
use crate::agent::fleet::Fleet;
use crate::agent::hub::Hub;
use crate::agent::protocol::Welcome;
use crate::agent::run::{self, Site};
use crate::agent::tls;
use crate::agent::work::Worker;
use crate::engines::docker::Address;
use crate::engines::swarm::join::LocalSwarm;
use crate::model::Result;
use crate::model::clock::Clock;
use crate::model::node::Node;
use crate::model::right::Audit;
use crate::store::Store;
use crate::store::swarm::{Leader, SwarmStore};
use crate::store::vault::Vault;

/// What the secret that the daemons share is for.
pub const DAEMONS: &str = "daemons";
/// How often it is looked whether there is an authority yet.
const FIND: Duration = Duration::from_millis(300);
/// How often a daemon's certificate is made anew: far more often than it would have to be.
const FACE: Duration = Duration::from_secs(24 * 3600);
const FACE_AGAIN: Duration = Duration::from_secs(30);

type Found = Pin<Box<dyn Future<Output = Result<Option<Vault>>> + Send>>;

/// The way to the key of the secrets, which a daemon finds only once one has led.
#[derive(Clone)]
pub struct Keys {
    store: Arc<SwarmStore>,
    clock: Arc<dyn Clock>,
    find: Arc<dyn Fn() -> Found + Send + Sync>,
}

impl Keys {
    /// `find` looks for it.
    pub fn new(
        store: Arc<SwarmStore>,
        clock: Arc<dyn Clock>,
        find: impl Fn() -> Found + Send + Sync + 'static,
    ) -> Self {
        Keys { store, clock, find: Arc::new(find) }
    }

    // The authority and the secret of the daemons, once they are there.
    async fn found(&self) -> (Authority, String) {
        let mut told = false;
        loop {
            let store: Arc<dyn Store> = self.store.clone();
            let authority = match (self.find)().await {
                Ok(Some(vault)) => {
                    let secret = vault.shared_secret(DAEMONS);
                    Authority::find(&store, vault, &self.clock).map(|found| found.map(|found| (found, secret)))
                }
                Ok(None) => Ok(None),
                Err(error) => Err(error),
            };
            match authority {
                Ok(Some(found)) => return found,
                Ok(None) => {}
                Err(error) if !told => {
                    tracing::warn!(%error, "this daemon does not know the cluster's authority yet");
                    told = true;
                }
                Err(_) => {}
            }
            tokio::time::sleep(FIND).await;
        }
    }
}

/// What this daemon's port shows.
#[derive(Clone)]
pub struct Face {
    /// To those who know it by its own certificate.
    pub own: Arc<CertifiedKey>,
    /// All of it, as it is served.
    pub shown: Arc<watch::Sender<Arc<rustls::ServerConfig>>>,
}

impl Face {
    // To agents and hosts that join: a certificate of the authority.
    fn show(&self, authority: &Authority) -> Result<()> {
        let issued = authority.daemon()?;
        self.shown.send_replace(tls::server(self.own.clone(), Some((&authority.certificate, &issued)))?);
        Ok(())
    }
}

/// Shows agents a certificate of the authority from the moment that there is one.
pub async fn keep_face(keys: Keys, face: Face) {
    let (authority, _) = keys.found().await;
    loop {
        let wait = match face.show(&authority) {
            Ok(()) => FACE,
            Err(error) => {
                tracing::warn!(%error, "this daemon's certificate cannot be made; it is tried again");
                FACE_AGAIN
            }
        };
        tokio::time::sleep(wait).await;
    }
}

/// Acts for whoever leads, on this host. Never ends.
pub async fn follow(
    keys: Keys,
    mut leader: watch::Receiver<Option<Leader>>,
    worker: Arc<Worker>,
    node: String,
    address: String,
) {
    let (authority, secret) = keys.found().await;
    let config = match tls::agent(&authority.certificate, None) {
        Ok(config) => config,
        Err(error) => return tracing::error!(%error, "this daemon cannot act for another one that leads"),
    };
    let headers = vec![("authorization", format!("Bearer {secret}")), (NODE, node)];
    let shared = Arc::new(Mutex::new(Site {
        caller: Caller { config, headers },
        daemons: Vec::new(),
        daemon: Some(address),
        service: None,
        term: 0,
        heard: std::time::Instant::now(),
    }));
    loop {
        let now = leader.borrow_and_update().clone();
        run::set_daemons(&shared, now.map(|leader| leader.address).into_iter().collect());
        tokio::select! {
            () = run::follow(&worker, &shared, |_| {}) => return,
            changed = leader.changed() => if changed.is_err() { return },
        }
    }
}

/// What a daemon that leads brings along.
pub struct Lead {
    /// Its node.
    pub node: String,
    /// Where it is reached.
    pub address: SocketAddr,
    /// What it shows.
    pub face: Face,
    /// The agents.
    pub hub: Arc<Hub>,
    /// The Docker Engine of its host.
    pub docker: Docker,
    /// Where that is reached.
    pub engine: Address,
    /// The store.
    pub store: Arc<SwarmStore>,
    /// The nodes.
    pub nodes: watch::Receiver<Arc<Vec<Node>>>,
    /// The cluster's name.
    pub name: String,
    /// The cluster as labels name it.
    pub cluster: String,
    /// What daemons show each other.
    pub secret: String,
    /// Told of who joins.
    pub audit: Arc<dyn Audit>,
}

/// The door that it keeps, and the balancers of all hosts. What happens on its own host it hears itself.
pub async fn lead(lead: Lead, vault: Vault, clock: &Arc<dyn Clock>) -> Result<(Arc<Door>, Fleet)> {
    let store: Arc<dyn Store> = lead.store.clone();
    let authority = Authority::open(&store, vault, clock).await?;
    // From the first answer on hosts can join.
    lead.face.show(&authority)?;
    let (own, hub) = (lead.node.clone(), lead.hub.clone());
    let here = lead.nodes.borrow().iter().find(|node| *node.id == *own).and_then(|node| node.address);
    let welcome = Welcome {
        term: lead.store.term(),
        cluster: lead.cluster.clone(),
        address: here.unwrap_or(lead.address.ip()),
        daemons: Vec::new(),
        registry: None,
    };
    tokio::spawn(hear(hub.clone(), own.clone(), welcome));
    let (fence, nodes) = (lead.store.clone(), lead.nodes.clone());
    let fleet = Fleet::new(hub.clone(), nodes, &own, move || fence.leads());
    let fence = lead.store.clone();
    let door = Door {
        hub,
        authority,
        term: lead.store.term(),
        store,
        swarm: LocalSwarm::with(lead.docker, lead.engine),
        nodes: lead.nodes,
        name: lead.name,
        cluster: lead.cluster,
        address: lead.address.to_string(),
        secret: lead.secret,
        leads: Box::new(move || fence.leads()),
        audit: lead.audit,
    };
    let door = Arc::new(door);
    // The next one that leads has to know that there is a balancer here.
    door.know(&own).await?;
    Ok((door, fleet))
}

async fn hear(hub: Arc<Hub>, own: String, welcome: Welcome) {
    let own = own.as_str().into();
    let mut seen = hub.worker().watch(&welcome);
    let own_hub = hub.clone();
    tokio::spawn(async move { own_hub.register_own().await });
    let restarted = hub.worker().restarted.clone();
    loop {
        tokio::select! {
            observed = seen.recv() => match observed {
                Some(observed) => hub.tell(&own, observed),
                None => return,
            },
            () = restarted.notified() => hub.stirred.notify_one(),
        }
    }
}
