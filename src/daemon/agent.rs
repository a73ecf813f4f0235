//! `neap agent`: acts for the cluster on a host that has joined.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::discovery::{self, DiscoveryOptions};
use super::following::Following;
use super::images::RegistryOptions;
use super::images::keeper::{self, Host};
use crate::agent::identity::Identity;
use crate::agent::run;
use crate::agent::work::Worker;
use crate::api::consul::Here;
use crate::engines::docker::Address;
use crate::model::clock::{Clock, SystemClock};
use crate::model::id::uuid_of;
use crate::model::{Error, Kind, Result};

/// All that it can be told.
#[derive(Debug, Clone)]
pub struct AgentOptions {
    /// Its data folder.
    pub data: PathBuf,
    /// The Docker Engine of this host.
    pub docker: Address,
    /// Where the catalogue is served.
    pub discovery: DiscoveryOptions,
    /// Where the door to the image registry is, or the registry.
    pub registry: RegistryOptions,
}

/// The file that says which daemon it is connected to, for whoever waits for that.
pub fn connected_file(data: &Path) -> PathBuf {
    data.join("agent.connected")
}

/// Runs the agent until it is told to end (TERM or INT). The balancer goes on.
pub async fn run(options: AgentOptions) -> Result<()> {
    let _lock = super::lock_data(&options.data)?;
    let missing = || {
        Error::new(Kind::NotFound, format!("data folder {}", options.data.display()), "is of no host that has joined")
            .help("neap join ADDRESS --token TOKEN; `neap join-token worker` on a manager prints it whole")
    };
    let identity = Identity::load(&options.data)?.filter(Identity::is_whole).ok_or_else(missing)?;
    let file = connected_file(&options.data);
    let _ = std::fs::remove_file(&file);
    println!(
        "neap {} is the agent of node {} in cluster {}",
        env!("CARGO_PKG_VERSION"),
        identity.node,
        identity.cluster
    );
    let clock: Arc<dyn Clock> = Arc::new(SystemClock::start());
    let catalog = discovery::follower(&*clock, &options.data);
    let balancer = super::balancer(&options.data, false);
    let worker =
        Arc::new(Worker::new(options.docker.clone(), balancer, catalog.clone(), options.discovery.registrator.clone()));
    let images = Host {
        options: &options.registry,
        data: &options.data,
        worker: &worker,
        tokens: None,
        leading: Arc::new(keeper::Agent),
        peer: None,
        node: identity.node.as_str().into(),
    };
    images.serve(clock.clone()).await?;
    let source = Arc::new(Following::new(worker.clone(), &identity.node, &options.discovery));
    discovery::serve(&options.discovery, &catalog, Here::Id(uuid_of(&identity.node)), source).await;
    let end = super::end_signal()?;
    let connected = |at: &str| {
        if let Err(error) = std::fs::write(&file, format!("{at}\n")) {
            tracing::warn!(%error, "that the agent is connected cannot be noted");
        }
    };
    tokio::select! {
        result = run::agent(&options.data, identity, worker, clock, connected) => result,
        () = end => {
            let _ = std::fs::remove_file(&file);
            println!("neap agent ends; containers and published ports go on without it");
            std::process::exit(0)
        }
    }
}
