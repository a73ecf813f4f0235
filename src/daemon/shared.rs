//! A daemon beside others: the store is in the Swarm, every daemon serves the API, and one of them leads.

use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use bollard::Docker;
use tokio::net::UnixListener;
use tokio::sync::watch;

use super::discovery;
use super::following::Following;
use super::hosts::{self, Keys};
use super::images::choose;
use super::images::keeper::Host;
use super::standing::Memory;
use super::{Options, Parted, audit, tls};
use crate::agent::door;
use crate::agent::hub::Hub;
use crate::agent::work::Worker;
use crate::api::consul::Here;
use crate::api::oci::StoredSecrets;
use crate::api::switch::Switch;
use crate::api::{self, Api};
use crate::client::remote::RemoteCluster;
use crate::client::wire::Endpoint;
use crate::engines::docker::{Address, trouble};
use crate::model::clock::{Clock, SystemClock};
use crate::model::id::uuid_of;
use crate::model::{Error, Kind, Result};
use crate::runtime::Runtime;
use crate::runtime::catalog::Before;
use crate::runtime::fence::Fenced;
use crate::store::swarm::{Leader, SwarmConfigs, SwarmStore};
use crate::store::vault::Vault;
use crate::store::{Store, Write, decode, encode};

/// Where the daemons of a cluster reach each other, unless told otherwise.
pub const PORT: u16 = 8377;
/// How much longer a daemon waits before it takes over the lead when another one sits beside Swarm's leader.
const HANDICAP: Duration = Duration::from_secs(1);
/// The wait before something that failed is begun anew.
const RECOVER: Duration = Duration::from_secs(2);
/// How often the key of the secrets is sealed anew if the Swarm's manager token has changed.
const REWRAP: Duration = Duration::from_secs(30);
/// How often a daemon that follows looks for that key before there is one.
const FIND_KEY: Duration = Duration::from_millis(300);
/// The record with the key of the secrets, sealed with a key that every manager of the Swarm can find out.
const VAULT: &str = "meta/vault";

/// How long a Docker Engine is waited for that does not answer: it may be starting as well.
const STARTING: Duration = Duration::from_secs(60);

async fn reached(address: &Address) -> Result<(Docker, bollard::models::SystemInfo)> {
    let failed = |act: &str, error| trouble::error(format!("Docker Engine {}", address.url), act, &error);
    let until = tokio::time::Instant::now() + STARTING;
    let mut told = false;
    loop {
        let asked = async {
            let docker =
                address.client().await?.negotiate_version().await.map_err(|error| failed("reach it", error))?;
            let info = docker.info().await.map_err(|error| failed("ask it", error))?;
            Ok::<_, Error>((docker, info))
        };
        let late = |_| Err(Error::new(Kind::Timeout, format!("Docker Engine {}", address.url), "does not answer"));
        match tokio::time::timeout_at(until, asked).await.unwrap_or_else(late) {
            // A socket that is not there yet comes with its engine; what is wrong with an address stays wrong.
            Err(error) if comes_by_itself(address, &error) && tokio::time::Instant::now() < until => {
                if !std::mem::replace(&mut told, true) {
                    tracing::warn!(%error, "the Docker Engine is waited for, {} s at most", STARTING.as_secs());
                }
                tokio::time::sleep(RECOVER).await;
            }
            other => return other,
        }
    }
}

fn comes_by_itself(address: &Address, error: &Error) -> bool {
    error.retry || (address.is_local() && matches!(error.kind, Kind::Unavailable | Kind::Timeout))
}

#[derive(serde::Serialize, serde::Deserialize)]
struct Wrapped {
    key: Vec<u8>,
    // Which manager token it was sealed with.
    token: String,
}

/// Runs the daemon: follows, leads when it is its turn, and begins anew as a follower when it has lost the lead.
pub async fn up(options: Options, socket: UnixListener, address: Address) -> Result<()> {
    let subject = || format!("Docker Engine {}", address.url);
    let mut told = false;
    let (docker, info) = loop {
        let (docker, info) = reached(&address).await?;
        let state = info.swarm.as_ref().and_then(|swarm| swarm.local_node_state);
        if state != Some(bollard::models::LocalNodeState::LOCKED) {
            break (docker, info);
        }
        if !std::mem::replace(&mut told, true) {
            tracing::warn!("this manager is locked; the daemon waits until it is unlocked (neap unlock)");
        }
        tokio::time::sleep(RECOVER).await;
    };
    let swarm = info.swarm.unwrap_or_default();
    if swarm.control_available != Some(true) {
        return Err(Error::new(Kind::Conflict, subject(), "is no manager of a Swarm")
            .help("docker swarm init, or run the daemon on a manager"));
    }
    let node = swarm.node_id.unwrap_or_default();
    let own = swarm.node_addr.as_deref().and_then(|address| address.parse::<IpAddr>().ok());
    let unknown = || {
        Error::new(Kind::Invalid, "--peer", "is needed: this Swarm node does not tell its address")
            .help("name the address at which the other managers reach this one, such as --peer 10.0.0.1:8377")
    };
    let peer = match options.peer {
        Some(peer) => peer,
        None => SocketAddr::new(own.ok_or_else(unknown)?, PORT),
    };
    // Listening on all addresses is no address that others can be told.
    let told = if peer.ip().is_unspecified() { SocketAddr::new(own.ok_or_else(unknown)?, peer.port()) } else { peer };
    let clock: Arc<dyn Clock> = Arc::new(SystemClock::start());
    let memory = Memory::open(&options.data, &options.cluster, clock.clone());
    let audit = Arc::new(audit::AuditFile::open(&options.data, clock.clone())?);
    let catalog = discovery::follower(&*clock, &options.data);
    let (known, id) = (catalog.clone(), uuid_of(&node));
    let host: Arc<dyn Fn() -> Option<String> + Send + Sync> =
        Arc::new(move || known.read(|state| Some(state.node_by_id(&id)?.node.name.clone())));
    // Everything that is asked here goes to whoever leads; while nobody does, memory has to do.
    let forwarding = |leader, known: watch::Receiver<Option<Leader>>, store| {
        let (audit, clock, memory) = (audit.clone(), clock.clone(), memory.clone());
        let cluster = Arc::new(RemoteCluster::following(leader));
        let memory: Option<Arc<dyn api::Remembers>> = Some(memory);
        door::elsewhere(known).merge(api::router(Arc::new(Api {
            cluster,
            store,
            audit,
            clock,
            daemons: None,
            host: host.clone(),
            memory,
        })))
    };
    let switch = Switch::new(forwarding(watch::channel(None).1, watch::channel(None).1, memory.past()));
    let (face, fingerprint) = tls::own_face(&options.data, options.tls.as_ref())?;
    let config = Arc::new(tls::server_config(face.clone())?);
    let face = hosts::Face { own: face, shown: config.clone() };
    tokio::spawn(api::server::serve_unix(socket, switch.router()));
    let listener = api::server::bind_tcp(peer).await?;
    tokio::spawn(api::server::serve_tls(listener, config.subscribe(), switch.router()));
    if let Some(address) = options.listen.filter(|address| *address != peer) {
        let listener = api::server::bind_tcp(address).await?;
        println!("control API: https://{address}, fingerprint {fingerprint}");
        tokio::spawn(api::server::serve_tls(listener, config.subscribe(), switch.router()));
    }
    // Managers that are starting have no quorum yet.
    let store = open_store(&options, &docker).await;
    memory.follow(&store, &docker);
    switch.follow(forwarding(endpoints(&options, &docker, &store), store.leader(), store.clone()));
    // What is done on this host is done here whoever leads.
    let balancer = super::balancer(&options.data, false);
    let worker =
        Arc::new(Worker::new(address.clone(), balancer, catalog.clone(), options.discovery.registrator.clone()));
    let following = Following::new(worker.clone(), &node, &options.discovery);
    let here = Here::Id(uuid_of(&node));
    discovery::serve(&options.discovery, &catalog, here, Arc::new(following.clone())).await;
    let shared: Arc<dyn Store> = store.clone();
    let images = Host {
        options: &options.registry,
        data: &options.data,
        worker: &worker,
        tokens: Some(Arc::new(StoredSecrets(shared))),
        leading: following.clone(),
        peer: Some(SocketAddr::new(peer.ip(), super::images::keeper::PORT)),
        node: node.as_str().into(),
    };
    images.serve(clock.clone()).await?;
    let keys = {
        let (options, docker, store) = (options.clone(), docker.clone(), store.clone());
        Keys::new(store.clone(), clock.clone(), move || {
            let (options, docker, store) = (options.clone(), docker.clone(), store.clone());
            Box::pin(async move { find_vault(&options.data, &docker, &store).await })
        })
    };
    tokio::spawn(hosts::keep_face(keys.clone(), face.clone()));
    let agent = tokio::spawn(hosts::follow(keys, store.leader(), worker.clone(), node.clone(), told.to_string()));
    println!(
        "neap {} follows: cluster {}, engine swarm, control socket {}",
        env!("CARGO_PKG_VERSION"),
        options.cluster,
        options.socket.display()
    );
    let me = Leader {
        id: format!("{node}-{:016x}", clock.random()),
        hostname: info.name.unwrap_or_default(),
        address: told.to_string(),
        fingerprint,
    };
    let end = super::end_signal()?;
    tokio::pin!(end);
    let handicap = async || if is_leader(&docker, &node).await { Duration::ZERO } else { HANDICAP };
    tokio::select! {
        led = store.lead(&me, handicap) => led?,
        () = &mut end => {
            memory.keep();
            super::leave(&options)
        }
    }
    agent.abort();
    // The lead is kept from the first moment on: what is set up below may take its time.
    let lost = store.keep_lead();
    tokio::pin!(lost);
    let leading = async {
        super::moving::refuse_moved(&*store)?;
        // The first daemon that ever leads makes the key, before anything is sealed with it.
        let known = find_vault(&options.data, &docker, &store).await?;
        let vault = known.map_or_else(|| Vault::open(&options.data), Ok)?;
        let daemons = Some(vault.shared_secret(hosts::DAEMONS));
        leave_key(&docker, &store, &vault).await?;
        tokio::spawn(keep_key(docker.clone(), store.clone(), Vault::open(&options.data)?));
        let identity = super::identity::of(&options.cluster, &*store, &*clock).await?;
        let hub = Hub::new(&node, worker);
        let engine = super::engine::swarm(&identity, address.clone(), Some(hub.clone())).await?;
        let lead = hosts::Lead {
            node: node.clone(),
            address: told,
            face,
            hub,
            docker: docker.clone(),
            engine: address,
            store: store.clone(),
            nodes: engine.nodes(),
            name: options.cluster.clone(),
            cluster: identity,
            secret: vault.shared_secret(hosts::DAEMONS),
            audit: audit.clone(),
        };
        let (door, fleet) = hosts::lead(lead, Vault::open(&options.data)?, &clock).await?;
        let fence = store.clone();
        let engine = Arc::new(Fenced::new(engine, move || fence.leads()));
        // What it has only from before its own restart says less than the store.
        let before = Before::Followed(catalog.clone(), door.hub.worker().followed_lately());
        let parted = Parted {
            store: store.clone(),
            engine,
            vault,
            members: Some(door.clone()),
            catalog: before,
            internal: options.internal,
        };
        let runtime = Runtime::start(super::parts(&options.cluster, parted)?, Box::new(fleet)).await?;
        super::follow_scripts(&options, &runtime).await?;
        let fence = store.clone();
        let leads: discovery::Leads = Arc::new(move || fence.leads());
        following.lead(&options.discovery, &runtime, &audit, &door.hub, leads).await?;
        let sealed = Vault::open(&options.data)?;
        let choice = Arc::new(choose::Choice {
            hub: door.hub.clone(),
            store: store.clone(),
            nodes: door.nodes.clone(),
            secret: Box::new(move |generation| sealed.shared_secret(&format!("image registry {generation}"))),
            clock: clock.clone(),
            named: tokio::sync::Notify::new(),
            silent: std::sync::Mutex::default(),
        });
        choice.recall()?;
        runtime.serve_images(Arc::new(choose::asked(&door.hub)), Some(choice.clone()));
        tokio::spawn(choice.keep());
        let (cluster, clock) = (runtime.clone(), clock.clone());
        let (memory, host): (Option<Arc<dyn api::Remembers>>, _) = (Some(memory.clone()), host.clone());
        let api = Api { cluster, store: store.clone(), audit: audit.clone(), clock, daemons, host, memory };
        switch.set(door.router().merge(api::router(Arc::new(api))));
        println!("neap {} is up: cluster {}, engine swarm, leads", env!("CARGO_PKG_VERSION"), options.cluster);
        // Alive for as long as this daemon leads.
        std::future::pending::<()>().await;
        drop(runtime);
        Ok::<(), Error>(())
    };
    tokio::select! {
        biased;
        () = &mut end => {
            hand_over(&store).await;
            memory.keep();
            super::leave(&options)
        }
        why = &mut lost => {
            tracing::warn!(%why, "this daemon begins anew");
            memory.keep();
            // Told to end in the same moment: a program that begins anew would not know of it.
            if futures_util::FutureExt::now_or_never(&mut end).is_some() {
                super::leave(&options)
            }
            Err(again())
        }
        result = leading => {
            // Another daemon may have more luck; this one tries again as well.
            if let Err(error) = result {
                tracing::error!(%error, "this daemon cannot lead; it hands over and begins anew");
            }
            tokio::select! {
                biased;
                () = &mut end => super::leave(&options),
                () = async {
                    hand_over(&store).await;
                    tokio::time::sleep(RECOVER).await;
                } => Err(again()),
            }
        }
    }
}

async fn open_store(options: &Options, docker: &Docker) -> Arc<SwarmStore> {
    let mut told = false;
    loop {
        let configs = Arc::new(SwarmConfigs::new(docker.clone(), &options.cluster));
        match SwarmStore::open(configs, &options.cluster).await {
            Ok(store) => return store,
            Err(error) if !told => {
                tracing::warn!(%error, "the store cannot be read yet; it is waited for");
                told = true;
            }
            Err(_) => {}
        }
        tokio::time::sleep(RECOVER).await;
    }
}

async fn hand_over(store: &Arc<SwarmStore>) {
    let given = tokio::time::timeout(RECOVER * 2, store.give_up()).await;
    if !matches!(given, Ok(Ok(()))) {
        tracing::warn!("the lead could not be handed over; another daemon takes it in a few seconds");
    }
}

// The same program from the beginning: nothing of what was decided under a lost lead is left in it.
fn again() -> Error {
    use std::os::unix::process::CommandExt;
    let mut arguments = std::env::args_os();
    let mut command = std::process::Command::new(super::program());
    if let Some(name) = arguments.next() {
        command.arg0(name);
    }
    Error::io("daemon", "begin anew", &command.args(arguments).exec())
}

async fn is_leader(docker: &Docker, node: &str) -> bool {
    let node = docker.inspect_node(node).await;
    node.is_ok_and(|node| node.manager_status.and_then(|manager| manager.leader) == Some(true))
}

// Where the leader is reached, as it changes; nobody, until the key that the daemons share is there.
fn endpoints(options: &Options, docker: &Docker, store: &Arc<SwarmStore>) -> watch::Receiver<Option<Endpoint>> {
    let (sender, receiver) = watch::channel(None);
    let (options, docker, store) = (options.clone(), docker.clone(), store.clone());
    tokio::spawn(async move {
        let mut leader = store.leader();
        let mut said = String::new();
        let token = loop {
            match find_vault(&options.data, &docker, &store).await {
                Ok(Some(vault)) => break vault.shared_secret(hosts::DAEMONS),
                Ok(None) => {}
                // Once, however often it is tried.
                Err(error) if error.to_string() == said => {}
                Err(error) => {
                    tracing::warn!(%error, "this daemon cannot ask the one that leads");
                    said = error.to_string();
                }
            }
            tokio::time::sleep(FIND_KEY).await;
        };
        loop {
            let now = leader.borrow_and_update().clone().map(|leader| Endpoint::Tls {
                address: leader.address,
                token: token.clone(),
                fingerprint: leader.fingerprint,
            });
            sender.send_replace(now);
            if leader.changed().await.is_err() {
                return;
            }
        }
    });
    receiver
}

// What only managers of the Swarm can ask for: the token with which a manager joins.
async fn manager_token(docker: &Docker) -> Result<([u8; 32], String)> {
    use sha2::Digest;
    let swarm = docker.inspect_swarm().await;
    let swarm = swarm.map_err(|error| Error::new(Kind::Unavailable, "Swarm", "cannot be inspected").cause(error))?;
    let token = swarm.join_tokens.and_then(|tokens| tokens.manager).unwrap_or_default();
    if token.is_empty() {
        return Err(Error::new(Kind::Unavailable, "Swarm", "tells no manager token"));
    }
    let key = sha2::Sha256::digest(format!("neap: the key of the vault\0{token}"));
    let name = crate::model::id::sha256_hex(format!("name\0{token}").as_bytes())[..16].to_owned();
    Ok((key.into(), name))
}

/// The key of the secrets that the cluster has; nothing before a daemon has led for the first time.
pub async fn find_vault(data: &Path, docker: &Docker, store: &Arc<SwarmStore>) -> Result<Option<Vault>> {
    let Some(entry) = store.get(VAULT)? else { return Ok(None) };
    let wrapped: Wrapped = decode(VAULT, &entry.value)?;
    let (key, token) = manager_token(docker).await?;
    if wrapped.token != token && Vault::is_in(data) {
        return Vault::open(data).map(Some);
    }
    Vault::unwrap(data, &wrapped.key, &key).map(Some).map_err(|error| match error.kind {
        Kind::Conflict => error,
        _ => {
            error.help("the Swarm's manager token was changed while no daemon led; start one that has led before first")
        }
    })
}

// Sealed with the manager token of the moment, so that a daemon on another manager finds it.
async fn keep_key(docker: Docker, store: Arc<SwarmStore>, vault: Vault) {
    loop {
        tokio::time::sleep(REWRAP).await;
        if let Err(error) = leave_key(&docker, &store, &vault).await {
            tracing::warn!(%error, "the key of the secrets could not be left for other managers");
        }
    }
}

/// The record with the key for the other managers.
pub async fn key_for_others(docker: &Docker, vault: &Vault) -> Result<Write> {
    let (key, token) = manager_token(docker).await?;
    Ok(Write::put(VAULT, encode(&Wrapped { key: vault.wrapped(&key)?, token })))
}

/// Leaves the key for the other managers, sealed with the manager token of the moment.
pub async fn leave_key(docker: &Docker, store: &Arc<SwarmStore>, vault: &Vault) -> Result<()> {
    let (_, token) = manager_token(docker).await?;
    let known = store.get(VAULT)?.map(|entry| decode::<Wrapped>(VAULT, &entry.value)).transpose()?;
    if known.is_none_or(|known| known.token != token) {
        store.commit(vec![key_for_others(docker, vault).await?]).await?;
    }
    Ok(())
}
