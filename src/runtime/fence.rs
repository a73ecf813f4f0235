//! An engine that does nothing unless this daemon leads: whoever slept through the loss of its lead wakes up with
//! decisions that are no longer its to carry out.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use async_trait::async_trait;
use tokio::sync::{mpsc, watch};

use crate::engines::hosts::{ProbeAsk, Probed};
use crate::engines::meter::Reading;
use crate::engines::native::{Described, NativeLine, Natives, Wanted};
use crate::engines::{Engine, ExecResult, LogLine, LogPosition, LogQuery, Moves, Observed, Sight, StartRequest};
use crate::model::id::{NodeId, TaskId};
use crate::model::moves::ImageMove;
use crate::model::native::NativeService;
use crate::model::node::{ImagePrune, Node, NodeUpdate, PrunedImages};
use crate::model::objects::{NetworkAsk, NetworkInfo, VolumeAsk, VolumeInfo};
use crate::model::registry::Login;
use crate::model::service::ServiceSpec;
use crate::model::stats::Stats;
use crate::model::units::Duration;
use crate::model::{Error, Kind, Result};

/// The engine behind the fence.
pub struct Fenced {
    inner: Arc<dyn Engine>,
    leads: Box<dyn Fn() -> bool + Send + Sync>,
}

impl Fenced {
    /// Lets through what is asked while `leads` holds.
    pub fn new(inner: Arc<dyn Engine>, leads: impl Fn() -> bool + Send + Sync + 'static) -> Self {
        Fenced { inner, leads: Box::new(leads) }
    }

    fn engine(&self) -> Result<&Arc<dyn Engine>> {
        if (self.leads)() {
            return Ok(&self.inner);
        }
        Err(Error::new(Kind::Unavailable, "this daemon", "cannot prove that it leads, and so does nothing").retry(true))
    }
}

#[async_trait]
impl Engine for Fenced {
    fn name(&self) -> &'static str {
        self.inner.name()
    }

    fn accepts(&self, spec: &mut ServiceSpec) -> Result<()> {
        self.inner.accepts(spec)
    }

    fn nodes(&self) -> watch::Receiver<Arc<Vec<Node>>> {
        self.inner.nodes()
    }

    async fn update_node(&self, id: &str, update: &NodeUpdate) -> Result<bool> {
        self.engine()?.update_node(id, update).await
    }

    async fn remove_node(&self, id: &str, force: bool) -> Result<()> {
        self.engine()?.remove_node(id, force).await
    }

    async fn start(&self, request: StartRequest) -> Result<()> {
        self.engine()?.start(request).await
    }

    async fn stop(&self, task: &TaskId, grace: Duration) -> Result<bool> {
        self.engine()?.stop(task, grace).await
    }

    async fn remove(&self, task: &TaskId) -> Result<()> {
        self.engine()?.remove(task).await
    }

    async fn prune(&self, keep: &BTreeSet<TaskId>) -> Result<()> {
        self.engine()?.prune(keep).await
    }

    async fn list(&self) -> Result<Vec<Observed>> {
        self.inner.list().await
    }

    fn observe(&self) -> mpsc::UnboundedReceiver<Sight> {
        self.inner.observe()
    }

    async fn log_end(&self, tasks: &[TaskId]) -> Result<LogPosition> {
        self.inner.log_end(tasks).await
    }

    async fn logs(
        &self,
        tasks: &[TaskId],
        query: LogQuery,
        until: Option<LogPosition>,
    ) -> Result<mpsc::Receiver<Result<Vec<LogLine>>>> {
        self.inner.logs(tasks, query, until).await
    }

    async fn follow(&self, tasks: &[TaskId], position: &mut LogPosition) -> Result<Vec<LogLine>> {
        self.inner.follow(tasks, position).await
    }

    async fn prune_images(&self, node: &str, ask: ImagePrune) -> Result<PrunedImages> {
        self.engine()?.prune_images(node, ask).await
    }

    async fn move_image(&self, node: &str, ask: ImageMove) -> Result<Moves> {
        self.engine()?.move_image(node, ask).await
    }

    async fn verify_login(&self, login: &Login) -> Result<()> {
        self.engine()?.verify_login(login).await
    }

    async fn networks(&self, ask: NetworkAsk) -> Result<Vec<NetworkInfo>> {
        match ask {
            NetworkAsk::List => self.inner.networks(ask).await,
            change => self.engine()?.networks(change).await,
        }
    }

    async fn volumes(&self, node: &str, ask: VolumeAsk) -> Result<Vec<VolumeInfo>> {
        match ask {
            VolumeAsk::List => self.inner.volumes(node, ask).await,
            change => self.engine()?.volumes(node, change).await,
        }
    }

    fn natives(&self) -> Option<&dyn Natives> {
        self.inner.natives().map(|_| self as &dyn Natives)
    }

    fn measured(&self) -> BTreeMap<NodeId, Reading> {
        self.inner.measured()
    }

    async fn stats(&self, node: &str, tasks: &[TaskId]) -> Result<BTreeMap<TaskId, Stats>> {
        self.inner.stats(node, tasks).await
    }

    async fn probe(&self, ask: ProbeAsk) -> Result<Probed> {
        self.engine()?.probe(ask).await
    }

    async fn exec(&self, task: &TaskId, command: &[String], timeout: Duration) -> Result<ExecResult> {
        self.engine()?.exec(task, command, timeout).await
    }
}

// Only such an engine is asked as one that schedules services itself.
const NONE: &str = "has no services of its own";

impl Fenced {
    fn inner_natives(&self) -> Result<&dyn Natives> {
        self.inner.natives().ok_or_else(|| Error::new(Kind::Unsupported, "engine", NONE))
    }

    fn fenced_natives(&self) -> Result<&dyn Natives> {
        self.engine()?.natives().ok_or_else(|| Error::new(Kind::Unsupported, "engine", NONE))
    }
}

#[async_trait]
impl Natives for Fenced {
    async fn list(&self, only: Option<&str>) -> Result<Vec<NativeService>> {
        self.inner_natives()?.list(only).await
    }

    async fn describe(&self, name: &str) -> Result<Described> {
        self.inner_natives()?.describe(name).await
    }

    async fn logs(
        &self,
        name: &str,
        slot: Option<String>,
        query: LogQuery,
        follow: bool,
    ) -> Result<mpsc::Receiver<Result<Vec<NativeLine>>>> {
        self.inner_natives()?.logs(name, slot, query, follow).await
    }

    async fn place(&self, wanted: Wanted) -> Result<()> {
        self.fenced_natives()?.place(wanted).await
    }

    async fn remove(&self, id: &str) -> Result<()> {
        self.fenced_natives()?.remove(id).await
    }

    async fn withdraw(&self, name: &str) -> Result<()> {
        self.fenced_natives()?.withdraw(name).await
    }
}
