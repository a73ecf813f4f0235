//! What is done on a host for the cluster: its balancer kept, its containers watched, commands run, images removed.

use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use serde_json::Value;
use tokio::sync::{Notify, mpsc, oneshot, watch};
use tokio::task::JoinHandle;

use super::protocol::{Ask, Keeper, Keeps, Welcome};
use super::up::Up;
use crate::client::images::ask::Answering;
use crate::client::works::Works;
use crate::engines::Observed;
use crate::engines::docker::{Address, stats};
use crate::engines::meter::Meter;
use crate::engines::registrator::{Changed, Containers, Registrator, Wanted, changed};
use crate::engines::swarm::host::SwarmHost;
use crate::model::{Error, Kind, Result};
use crate::network::balancer::Balancer;
use crate::network::catalog::Catalog;
use crate::network::table::{Status, Table};

/// How long the balancer has for one order, those before it included.
const ORDER: Duration = Duration::from_secs(10);
/// Who has followed within that time knows what whoever led did: a lead changes hands within seconds.
const LATELY: Duration = Duration::from_secs(60);
/// How long what a client of this host has changed is waited for here, before it is answered.
const CATCH_UP: Duration = Duration::from_secs(1);
/// The wait before a balancer that could not be started is tried again.
const AGAIN: Duration = Duration::from_millis(500);

/// Does it. Dropped, it ends; the balancer goes on with its last table.
pub struct Worker {
    docker: Address,
    watched: Mutex<Option<Watched>>,
    balancer: mpsc::Sender<(Order, oneshot::Sender<Result<Status>>)>,
    /// The balancer had ended and was started anew.
    pub restarted: Arc<Notify>,
    /// Who serves what where, as whoever leads tells it.
    pub catalog: Arc<Catalog>,
    followed: Mutex<Option<Instant>>,
    caught: watch::Sender<u64>,
    // Which containers are registered.
    registrator: Wanted,
    /// What the host and its containers use.
    pub meter: Meter,
    /// The way to whoever leads.
    pub up: Up,
    /// That this host keeps images, and who answers for them.
    pub keeps: OnceLock<(Keeps, Option<Answering>)>,
    /// Where the cluster's images are, as whoever leads tells it.
    pub registry: watch::Sender<Option<Keeper>>,
    /// Whether that was said by whoever leads, since this process began: before it is what was known last.
    pub registry_said: watch::Sender<bool>,
    keeper: JoinHandle<()>,
    // What goes on here that takes long.
    works: Works,
}

struct Watched {
    cluster: String,
    address: std::net::IpAddr,
    host: Arc<SwarmHost>,
    follower: JoinHandle<()>,
    containers: watch::Receiver<Option<Containers>>,
}

/// What one listener has been told of a host's containers.
pub struct Found {
    containers: Option<watch::Receiver<Option<Containers>>>,
    told: Option<Containers>,
}

impl Found {
    /// From this receiver, from the beginning.
    pub fn new(mut containers: watch::Receiver<Option<Containers>>) -> Self {
        containers.mark_changed();
        Found { containers: Some(containers), told: None }
    }

    /// What has changed since it was asked last; waits for it. Never where nothing is registered.
    pub async fn next(&mut self) -> Changed {
        loop {
            let Some(containers) = &mut self.containers else { return std::future::pending().await };
            if containers.changed().await.is_err() {
                self.containers = None;
                continue;
            }
            let Some(now) = containers.borrow_and_update().clone() else { continue };
            let changed = changed(self.told.as_ref(), &now);
            self.told = Some(now);
            return changed;
        }
    }
}

enum Order {
    Table(Table),
    Status,
    Stop,
}

impl Worker {
    /// On the Docker Engine at `docker`, with this balancer. Call inside a tokio runtime.
    pub fn new(docker: Address, balancer: Box<dyn Balancer>, catalog: Arc<Catalog>, registrator: Wanted) -> Self {
        let (orders, inbox) = mpsc::channel(16);
        let restarted = Arc::<Notify>::default();
        let keeper = tokio::spawn(keep(balancer, inbox, restarted.clone()));
        let (watched, up) = (Mutex::default(), Up::default());
        let meter = Meter::spawn(stats::Containers::of(docker.clone()), docker.url.starts_with("unix:"));
        let (followed, caught) = (Mutex::default(), watch::Sender::default());
        let balancer = orders;
        let (keeps, registry) = (OnceLock::new(), watch::Sender::default());
        Worker {
            docker,
            watched,
            balancer,
            restarted,
            catalog,
            followed,
            caught,
            registrator,
            meter,
            up,
            keeps,
            registry,
            registry_said: watch::Sender::default(),
            keeper,
            works: Works::default(),
        }
    }

    /// The Docker Engine of this host.
    pub fn docker(&self) -> &Address {
        &self.docker
    }

    /// Watches the containers of that cluster from now on; everything as it is, and what happens next.
    pub fn watch(&self, welcome: &Welcome) -> mpsc::UnboundedReceiver<Observed> {
        let mut watched = self.watched.lock().unwrap_or_else(PoisonError::into_inner);
        let same = |known: &Watched| known.cluster == welcome.cluster && known.address == welcome.address;
        if let Some(known) = watched.as_ref().filter(|known| same(known)) {
            return known.host.observe();
        }
        if let Some(before) = watched.take() {
            before.follower.abort();
        }
        let host = SwarmHost::new(self.docker.clone(), &welcome.cluster, welcome.address);
        let seen = host.observe();
        let follower = tokio::spawn(host.clone().follow());
        let (cluster, address) = (welcome.cluster.clone(), welcome.address);
        let rules = self.registrator.on(&self.docker.name, Some(address), &cluster);
        let containers = match rules {
            Some(rules) => Registrator::spawn(self.docker.clone(), rules),
            // None is a word as well: what was registered before goes.
            None => watch::channel(Some(Containers::default())).1,
        };
        *watched = Some(Watched { cluster, address, host, follower, containers });
        seen
    }

    /// What this host says of the images that it keeps.
    pub fn says_keeps(&self) -> Option<Keeps> {
        self.keeps.get().map(|(keeps, _)| keeps.clone())
    }

    /// Where the cluster's images are kept.
    pub fn told_registry(&self, keeper: Keeper) {
        self.registry.send_if_modified(|now| {
            let changed = now.as_ref() != Some(&keeper);
            *now = Some(keeper);
            changed
        });
        self.registry_said.send_if_modified(|said| !std::mem::replace(said, true));
    }

    /// The catalogue was told a moment ago, up to the change `at`.
    pub fn follows(&self, at: u64) {
        self.caught.send_replace(at);
        *self.followed.lock().unwrap_or_else(PoisonError::into_inner) = Some(Instant::now());
    }

    /// There is a new connection, perhaps to another who counts otherwise.
    pub fn begins(&self) {
        self.caught.send_replace(0);
    }

    /// Waits until the catalogue here has the change `at` of whoever leads, for a while.
    pub async fn catch_up(&self, at: u64) {
        let mut caught = self.caught.subscribe();
        let _ = tokio::time::timeout(CATCH_UP, caught.wait_for(|now| *now >= at)).await;
    }

    /// Whether it was, so that it is as whoever led last had it.
    pub fn followed_lately(&self) -> bool {
        let followed = *self.followed.lock().unwrap_or_else(PoisonError::into_inner);
        followed.is_some_and(|at| at.elapsed() < LATELY)
    }

    /// What the registrator has found, once the cluster is known; what is known by then is news.
    pub fn containers(&self) -> Found {
        let watched = self.watched.lock().unwrap_or_else(PoisonError::into_inner);
        match watched.as_ref().map(|watched| watched.containers.clone()) {
            Some(containers) => Found::new(containers),
            None => Found { containers: None, told: None },
        }
    }

    fn host(&self) -> Result<Arc<SwarmHost>> {
        let watched = self.watched.lock().unwrap_or_else(PoisonError::into_inner);
        watched
            .as_ref()
            .map(|watched| watched.host.clone())
            .ok_or_else(|| Error::new(Kind::Unavailable, "agent", "has not been told of its cluster yet").retry(true))
    }

    /// Does what is asked.
    pub async fn serve(&self, ask: Ask) -> Result<Value> {
        fn value(answer: impl serde::Serialize) -> Result<Value> {
            serde_json::to_value(answer).map_err(|error| Error::internal("answer", error.to_string()))
        }
        match ask {
            Ask::Table(table) => value(self.order(Order::Table(table)).await?),
            Ask::Balancer => value(self.order(Order::Status).await?),
            Ask::StopBalancer => value(self.order(Order::Stop).await?),
            Ask::Exec(ask) => value(self.host()?.exec(&ask).await?),
            Ask::Probe(ask) => value(self.host()?.probe(&ask).await?),
            Ask::Reach(ask) => value(ask.reach().await),
            Ask::Stats(tasks) => value(self.host()?.stats(&tasks).await?),
            Ask::Volumes(ask) => value(self.host()?.volumes(ask).await?),
            Ask::PruneImages(ask) => value(self.host()?.prune_images(&ask).await?),
            Ask::MoveImage(ask) => value(self.works.begin(self.host()?.move_image(ask)?)?),
            Ask::Work(ask) => self.works.answer(ask).await,
            Ask::Images(ask) => {
                let none = || Error::new(Kind::Unavailable, "image registry", "is not kept on this host");
                let keeps = self.keeps.get().and_then(|(_, answering)| answering.as_ref());
                keeps.ok_or_else(none)?.answer(ask).await
            }
        }
    }

    async fn order(&self, order: Order) -> Result<Status> {
        let gone = || Error::new(Kind::Unavailable, "agent", "is stopping");
        let (sender, answer) = oneshot::channel();
        let asked = async {
            self.balancer.send((order, sender)).await.map_err(|_| gone())?;
            answer.await.map_err(|_| gone())?
        };
        let late = |_| Error::new(Kind::Timeout, "balancer", "no answer within 10s").retry(true);
        tokio::time::timeout(ORDER, asked).await.map_err(late)?
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        self.keeper.abort();
        if let Some(watched) = self.watched.lock().unwrap_or_else(PoisonError::into_inner).take() {
            watched.follower.abort();
        }
    }
}

// One balancer, one order at a time. One that ends is started anew with the last table, whoever leads.
async fn keep(
    mut balancer: Box<dyn Balancer>,
    mut orders: mpsc::Receiver<(Order, oneshot::Sender<Result<Status>>)>,
    restarted: Arc<Notify>,
) {
    let mut last: Option<Table> = None;
    let mut runs = balancer.is_left_over();
    let mut ended = false;
    loop {
        tokio::select! {
            biased;
            order = orders.recv() => {
                let Some((order, answer)) = order else { return };
                // Whoever asked has given it up, and asks again: with a balancer that hangs they would pile up.
                if answer.is_closed() {
                    continue;
                }
                let result = match order {
                    // A host where nothing is published needs none.
                    Order::Table(table) if !runs && table.is_empty() => {
                        let status = Status { version: table.version, ..Status::default() };
                        last = Some(table);
                        Ok(status)
                    }
                    Order::Table(table) => {
                        let result = balancer.push(&table).await;
                        runs = true;
                        // Two on their way at once may come in either order.
                        if last.as_ref().is_none_or(|last| last.version <= table.version) {
                            last = Some(table);
                        }
                        result
                    }
                    Order::Status if !runs => {
                        let version = last.as_ref().map_or(0, |table| table.version);
                        Ok(Status { version, ..Status::default() })
                    }
                    Order::Status => balancer.status().await,
                    Order::Stop => {
                        runs = false;
                        last = None;
                        balancer.stop().await.map(|()| Status::default())
                    }
                };
                let _ = answer.send(result);
            }
            () = balancer.gone(), if runs && !ended => {
                ended = begin_again(&mut *balancer, last.as_ref()).await;
                restarted.notify_one();
            }
            () = tokio::time::sleep(AGAIN), if runs && ended => {
                ended = begin_again(&mut *balancer, last.as_ref()).await;
            }
        }
    }
}

// True if it could not.
async fn begin_again(balancer: &mut dyn Balancer, last: Option<&Table>) -> bool {
    let Some(table) = last else { return false };
    let result = balancer.push(table).await;
    if let Err(error) = &result {
        tracing::warn!(%error, "the balancer has ended, and cannot be started; it is tried again");
    }
    result.is_err()
}
