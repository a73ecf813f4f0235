//! Floor 6, assembly: a whole cluster on one thread and a clock that jumps from one thing that happens to the next. The
//! runtime, the scheduler and the scripts are the daemon's own; engine, store, network and balancer are in memory. The
//! same seed gives the same history.

mod net;
pub mod tests;

use std::rc::Rc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use self::net::{Routes, SimBalancer, SimNetwork};
use crate::client::Cluster;
use crate::engines::sim::SimEngine;
use crate::model::Result;
use crate::model::clock::{Clock, Timestamp, mix};
use crate::model::internal::Range;
use crate::runtime::{Parts, Runtime};
use crate::script::api::Reach;
use crate::script::api::test::{History, Setup, Stage};
use crate::script::host::ScriptHost;
use crate::script::lane::Threads;
use crate::store::vault::Vault;
use crate::store::{MemoryStore, Store};

/// Time as the simulation's own runtime has it, and randomness from a seed.
struct VirtualClock {
    begin: Timestamp,
    origin: tokio::time::Instant,
    seed: AtomicU64,
}

impl Clock for VirtualClock {
    fn now(&self) -> Timestamp {
        self.begin.after(self.origin.elapsed().into())
    }

    fn wall(&self) -> Timestamp {
        self.now()
    }

    fn random(&self) -> u64 {
        mix(self.seed.fetch_add(0x9E37_79B9_7F4A_7C15, Ordering::Relaxed))
    }
}

/// Runs `work` on this thread alone, where time stands still while anything can be done and jumps when nothing can.
pub fn alone<T>(work: impl Future<Output = T>) -> Result<T> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build();
    let runtime = runtime.map_err(|error| crate::model::Error::io("simulation", "start it", &error))?;
    let local = tokio::task::LocalSet::new();
    // Entered for tasks of the runtime as well: scripts run on this thread, whoever calls them.
    let _entered = local.enter();
    Ok(runtime.block_on(local.run_until(work)))
}

/// Starts a cluster in memory. Call it inside of `alone`; it goes when that ends.
pub async fn start(setup: &Setup, seed: u64) -> Result<Stage> {
    start_on(setup, seed, Arc::new(MemoryStore::new())).await
}

/// The same on a store of one's own.
pub async fn start_on(setup: &Setup, seed: u64, store: Arc<dyn Store>) -> Result<Stage> {
    let begin = setup.begin()?;
    let clock: Arc<dyn Clock> =
        Arc::new(VirtualClock { begin, origin: tokio::time::Instant::now(), seed: AtomicU64::new(mix(seed)) });
    let nodes = setup.nodes()?;
    let hosts = nodes.iter().flat_map(|node| [Some(node.hostname.clone()), node.address.map(|it| it.to_string())]);
    let hosts = hosts.flatten().collect();
    let engine = SimEngine::new(clock.clone(), nodes, setup.programs());
    let routes = Arc::new(Mutex::new(Routes::default()));
    let network = Arc::new(SimNetwork {
        engine: engine.clone(),
        routes: routes.clone(),
        hosts,
        hooks: crate::script::choose::Choosers::in_steps(),
    });
    let reach = Reach { clock: clock.clone(), network: network.clone(), simulated: true };
    let parts = Parts {
        cluster: "sim".into(),
        store,
        engine: engine.clone(),
        host: Arc::new(ScriptHost::with(reach.clone(), Threads::This)?),
        clock,
        network,
        vault: Vault::in_memory()?,
        members: None,
        catalog: crate::runtime::catalog::Before::Nothing,
        internal: Range::LOOPBACK,
        telling: tokio::sync::Mutex::default(),
    };
    let runtime = Runtime::start(parts, Box::new(SimBalancer(routes))).await?;
    let history = Rc::new(History::new(runtime.record()));
    let cluster: Arc<dyn Cluster> = runtime;
    tokio::spawn(engine.clone().drive());
    Ok(Stage { cluster, engine, reach, history, seed })
}
