//! `trait Cluster` over the control API.

use async_trait::async_trait;
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::json;

use super::catalog::{
    CatalogRestored, CatalogSnapshot, FoundInstance, FoundNode, FoundService, InstancesAsk, Maintenance, Register,
    Report,
};
use super::kv::{ConfigValue, KvChange, KvEntry, KvSet, ValueChange, ValueInfo, ValueKind, ValueSet};
use super::members::JoinTicket;
use super::ports::PortInfo;
use super::routes::RouteInfo;
use super::scripts::{Back, CronStatus, FailedDelivery, Push, ScriptCalls, ScriptSource, ScriptStatus};
use super::wire::{Endpoint, OnAge, Wire};
use super::{Apply, Cluster, Info, LogEntry, LogsAsk, NameKind, ReleaseAction, ServiceStatus, Stream1};
use crate::model::Result;
use crate::model::cron::CronRun;
use crate::model::event::Event;
use crate::model::name::Name;
use crate::model::native::{Adopt, Adoption, HandBack, HandedBack, NativeService};
use crate::model::node::{ImagePrune, Node, NodeUpdate, PrunedImages, Role};
use crate::model::objects::{NetworkInfo, NetworkSpec, VolumeSpec, Volumes};
use crate::model::plan::{Plan, Rebalance, Rebalanced};
use crate::model::registry::{self, LoginAsk, LoginInfo};
use crate::model::route::RouteSpec;
use crate::model::service::Revision;
use crate::model::stats::{NodeStats, TaskStats};
use crate::model::swarm::{SwarmAsk, SwarmState};

/// A cluster behind a daemon's control API.
#[derive(Debug, Clone)]
pub struct RemoteCluster {
    wire: Wire,
}

impl RemoteCluster {
    /// Behind `endpoint`; nothing is sent yet.
    pub fn new(endpoint: Endpoint) -> Self {
        RemoteCluster { wire: Wire::new(endpoint) }
    }

    /// For looking at what stands: an old answer will do while nobody leads, and `told` hears of its age. Whoever decides
    /// anything by an answer does without this.
    #[must_use]
    pub fn on_age(&self, told: OnAge) -> Self {
        RemoteCluster { wire: self.wire.clone().on_age(told) }
    }

    /// Behind whoever leads at the moment.
    pub fn following(leader: tokio::sync::watch::Receiver<Option<Endpoint>>) -> Self {
        RemoteCluster { wire: Wire::following(leader) }
    }

    /// Any route of the API, for what is not part of `trait Cluster`.
    pub async fn call<T: DeserializeOwned>(
        &self,
        method: &str,
        path: &str,
        body: Option<&(impl Serialize + Sync)>,
    ) -> Result<T> {
        self.wire.call(method, path, body).await
    }

    pub(super) async fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T> {
        self.wire.call("GET", path, None::<&()>).await
    }

    async fn stream<T: DeserializeOwned + Send + 'static>(&self, path: &str) -> Result<Stream1<T>> {
        self.stream_by("GET", path).await
    }

    pub(super) async fn stream_by<T: DeserializeOwned + Send + 'static>(
        &self,
        method: &str,
        path: &str,
    ) -> Result<Stream1<T>> {
        self.stream_of(method, path, None::<&()>).await
    }

    pub(super) async fn stream_of<T: DeserializeOwned + Send + 'static>(
        &self,
        method: &str,
        path: &str,
        body: Option<&(impl Serialize + Sync)>,
    ) -> Result<Stream1<T>> {
        let lines = self.wire.lines(method, path, body).await?;
        let next = |mut lines: super::wire::Lines| async move {
            match lines.next().await {
                Ok(Some(value)) => Some((Ok(value), Some(lines))),
                Ok(None) => None,
                Err(error) => Some((Err(error), None)),
            }
        };
        let stream = futures_util::stream::unfold(Some(lines), move |lines| async move {
            match lines {
                Some(lines) => next(lines).await,
                None => None,
            }
        });
        Ok(Box::pin(stream))
    }
}

/// A path segment: whatever a user typed, it stays one segment.
pub fn segment(text: &str) -> String {
    text.bytes().fold(String::new(), |mut out, byte| {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
            out.push(char::from(byte));
        } else {
            out.push_str(&format!("%{byte:02X}"));
        }
        out
    })
}

fn node_query(node: Option<&str>) -> String {
    node.map(|node| format!("?node={}", segment(node))).unwrap_or_default()
}

fn instances_query(ask: &InstancesAsk) -> String {
    let mut query = format!("?passing={}", ask.passing);
    for (key, value) in [("tag", &ask.tag), ("node", &ask.node)] {
        if let Some(value) = value {
            query.push_str(&format!("&{key}={}", segment(value)));
        }
    }
    query
}

#[async_trait]
impl Cluster for RemoteCluster {
    async fn info(&self) -> Result<Info> {
        self.get("/v1/info").await
    }

    async fn services(&self) -> Result<Vec<ServiceStatus>> {
        self.get("/v1/services").await
    }

    async fn service(&self, name: &str) -> Result<ServiceStatus> {
        self.get(&format!("/v1/services/{}", segment(name))).await
    }

    async fn watch(&self, name: &str) -> Result<Stream1<ServiceStatus>> {
        self.stream(&format!("/v1/services/{}/watch", segment(name))).await
    }

    async fn revisions(&self, name: &str) -> Result<Vec<Revision>> {
        self.get(&format!("/v1/services/{}/revisions", segment(name))).await
    }

    async fn plan(&self, ask: Apply) -> Result<Plan> {
        self.wire.call("POST", "/v1/plan", Some(&ask)).await
    }

    async fn apply(&self, ask: Apply) -> Result<ServiceStatus> {
        self.wire.call("POST", "/v1/apply", Some(&ask)).await
    }

    async fn scale(&self, name: &str, replicas: u32) -> Result<ServiceStatus> {
        self.wire
            .call("POST", &format!("/v1/services/{}/scale", segment(name)), Some(&json!({ "replicas": replicas })))
            .await
    }

    async fn rebalance(&self, name: &str, ask: Rebalance) -> Result<Rebalanced> {
        self.wire.call("POST", &format!("/v1/services/{}/rebalance", segment(name)), Some(&ask)).await
    }

    async fn release(&self, name: &str, action: ReleaseAction) -> Result<ServiceStatus> {
        self.wire
            .call("POST", &format!("/v1/services/{}/release", segment(name)), Some(&json!({ "action": action })))
            .await
    }

    async fn remove(&self, name: &str) -> Result<()> {
        self.wire.call("DELETE", &format!("/v1/services/{}", segment(name)), None::<&()>).await
    }

    async fn stats(&self, name: &str) -> Result<Vec<TaskStats>> {
        self.get(&format!("/v1/services/{}/stats", segment(name))).await
    }

    async fn logs(&self, name: &str, ask: LogsAsk) -> Result<Stream1<LogEntry>> {
        let mut query = format!("follow={}", ask.follow);
        for (key, value) in
            [("since", ask.since.map(|v| v.to_string())), ("tail", ask.tail.map(|v| v.to_string())), ("slot", ask.slot)]
        {
            if let Some(value) = value {
                query.push_str(&format!("&{key}={}", segment(&value)));
            }
        }
        self.stream(&format!("/v1/services/{}/logs?{query}", segment(name))).await
    }

    async fn node_stats(&self, node: Option<&str>, containers: bool) -> Result<Vec<NodeStats>> {
        match node {
            Some(node) => self.get(&format!("/v1/nodes/{}/stats?containers={containers}", segment(node))).await,
            None => self.get(&format!("/v1/stats/nodes?containers={containers}")).await,
        }
    }

    async fn nodes(&self) -> Result<Vec<Node>> {
        self.get("/v1/nodes").await
    }

    async fn remove_node(&self, id: &str, force: bool) -> Result<()> {
        self.wire.call("DELETE", &format!("/v1/nodes/{}?force={force}", segment(id)), None::<&()>).await
    }

    async fn prune_images(&self, node: &str, ask: ImagePrune) -> Result<PrunedImages> {
        self.wire.call("POST", &format!("/v1/nodes/{}/prune-images", segment(node)), Some(&ask)).await
    }

    async fn networks(&self) -> Result<Vec<NetworkInfo>> {
        self.get("/v1/networks").await
    }

    async fn create_network(&self, spec: NetworkSpec) -> Result<NetworkInfo> {
        self.wire.call("POST", "/v1/networks", Some(&spec)).await
    }

    async fn remove_network(&self, name: &str) -> Result<()> {
        self.wire.call("DELETE", &format!("/v1/networks/{}", segment(name)), None::<&()>).await
    }

    async fn routes(&self) -> Result<Vec<RouteInfo>> {
        self.get("/v1/routes").await
    }

    async fn ports(&self) -> Result<Vec<PortInfo>> {
        self.get("/v1/ports").await
    }

    async fn set_route(&self, name: &Name, spec: RouteSpec) -> Result<RouteInfo> {
        self.wire.call("PUT", &format!("/v1/routes/{name}"), Some(&spec)).await
    }

    async fn remove_route(&self, name: &str) -> Result<()> {
        self.wire.call("DELETE", &format!("/v1/routes/{}", segment(name)), None::<&()>).await
    }

    async fn volumes(&self, node: Option<&str>) -> Result<Volumes> {
        self.get(&format!("/v1/volumes{}", node_query(node))).await
    }

    async fn create_volume(&self, node: Option<&str>, spec: VolumeSpec) -> Result<Volumes> {
        self.wire.call("POST", &format!("/v1/volumes{}", node_query(node)), Some(&spec)).await
    }

    async fn remove_volume(&self, node: Option<&str>, name: &str, force: bool) -> Result<Volumes> {
        let query = format!("?force={force}{}", node_query(node).replace('?', "&"));
        self.wire.call("DELETE", &format!("/v1/volumes/{}{query}", segment(name)), None::<&()>).await
    }

    async fn forget_agent(&self, node: &str) -> Result<()> {
        self.wire.call("DELETE", &format!("/v1/nodes/{}/agent", segment(node)), None::<&()>).await
    }

    async fn catalog_nodes(&self) -> Result<Vec<FoundNode>> {
        self.get("/v1/catalog/nodes").await
    }

    async fn catalog_services(&self) -> Result<Vec<FoundService>> {
        self.get("/v1/catalog/services").await
    }

    async fn instances(&self, service: &str, ask: InstancesAsk) -> Result<Vec<FoundInstance>> {
        self.get(&format!("/v1/catalog/services/{}{}", segment(service), instances_query(&ask))).await
    }

    async fn watch_instances(&self, service: &str, ask: InstancesAsk) -> Result<Stream1<Vec<FoundInstance>>> {
        self.stream(&format!("/v1/catalog/services/{}/watch{}", segment(service), instances_query(&ask))).await
    }

    async fn register(&self, register: Register) -> Result<FoundInstance> {
        self.wire.call("POST", "/v1/catalog/instances", Some(&register)).await
    }

    async fn deregister(&self, node: Option<&str>, id: &str) -> Result<()> {
        self.wire
            .call("DELETE", &format!("/v1/catalog/instances/{}{}", segment(id), node_query(node)), None::<&()>)
            .await
    }

    async fn report(&self, node: Option<&str>, check: &str, report: Report) -> Result<()> {
        let path = format!("/v1/catalog/checks/{}{}", segment(check), node_query(node));
        self.wire.call("POST", &path, Some(&report)).await
    }

    async fn maintain(&self, node: Option<&str>, id: &str, maintenance: Maintenance) -> Result<FoundInstance> {
        let path = format!("/v1/catalog/instances/{}/maintenance{}", segment(id), node_query(node));
        self.wire.call("POST", &path, Some(&maintenance)).await
    }

    async fn catalog_snapshot(&self) -> Result<CatalogSnapshot> {
        self.get("/v1/catalog/snapshot").await
    }

    async fn restore_catalog(&self, snapshot: CatalogSnapshot) -> Result<CatalogRestored> {
        self.wire.call("PUT", "/v1/catalog/snapshot", Some(&snapshot)).await
    }

    async fn swarm(&self, ask: SwarmAsk) -> Result<SwarmState> {
        match ask {
            SwarmAsk::Show {} => self.get("/v1/swarm").await,
            SwarmAsk::UnlockKey {} => self.get("/v1/swarm/unlock-key").await,
            change => self.wire.call("POST", "/v1/swarm", Some(&change)).await,
        }
    }

    async fn natives(&self) -> Result<Vec<NativeService>> {
        self.get("/v1/native-services").await
    }

    async fn adopt(&self, native: &str, ask: Adopt) -> Result<Adoption> {
        self.wire.call("POST", &format!("/v1/native-services/{}/adopt", segment(native)), Some(&ask)).await
    }

    async fn hand_back(&self, name: &str, ask: HandBack) -> Result<HandedBack> {
        self.wire.call("POST", &format!("/v1/services/{}/hand-back", segment(name)), Some(&ask)).await
    }

    async fn join_ticket(&self, role: Role, rotate: bool) -> Result<JoinTicket> {
        let path = format!("/v1/join-tokens/{}", role.as_str());
        match rotate {
            true => self.wire.call("POST", &format!("{path}/rotate"), None::<&()>).await,
            false => self.get(&path).await,
        }
    }

    async fn update_node(&self, id: &str, update: NodeUpdate) -> Result<Node> {
        self.wire.call("PATCH", &format!("/v1/nodes/{}", segment(id)), Some(&update)).await
    }

    async fn events(&self) -> Result<Stream1<Event>> {
        self.stream("/v1/events").await
    }

    async fn failed_deliveries(&self) -> Result<Vec<FailedDelivery>> {
        self.get("/v1/events/failed").await
    }

    async fn scripts(&self) -> Result<Vec<ScriptStatus>> {
        self.get("/v1/scripts").await
    }

    async fn script(&self, name: &str, version: Option<&str>) -> Result<ScriptSource> {
        let query = version.map(|version| format!("?version={}", segment(version))).unwrap_or_default();
        self.get(&format!("/v1/scripts/{}{query}", segment(name))).await
    }

    // Who asks is known by the connection; what is given here is for those in the same process.
    async fn push_scripts(&self, name: &str, push: Push, _: &str) -> Result<ScriptStatus> {
        self.wire.call("POST", &format!("/v1/scripts/{}", segment(name)), Some(&push)).await
    }

    async fn rollback_scripts(&self, name: &str, back: Back, _: &str) -> Result<ScriptStatus> {
        self.wire.call("POST", &format!("/v1/scripts/{}/rollback", segment(name)), Some(&back)).await
    }

    async fn remove_scripts(&self, name: &str) -> Result<()> {
        self.wire.call("DELETE", &format!("/v1/scripts/{}", segment(name)), None::<&()>).await
    }

    async fn script_calls(&self) -> Result<Vec<ScriptCalls>> {
        self.get("/v1/script-calls").await
    }

    async fn crons(&self) -> Result<Vec<CronStatus>> {
        self.get("/v1/crons").await
    }

    async fn cron(&self, name: &str) -> Result<CronStatus> {
        self.get(&format!("/v1/crons/{}", segment(name))).await
    }

    async fn run_cron(&self, name: &str, _: &str) -> Result<CronRun> {
        self.wire.call("POST", &format!("/v1/crons/{}/run", segment(name)), None::<&()>).await
    }

    async fn pause_cron(&self, name: &str, paused: bool) -> Result<CronStatus> {
        let action = if paused { "pause" } else { "resume" };
        self.wire.call("POST", &format!("/v1/crons/{}/{action}", segment(name)), None::<&()>).await
    }

    async fn kv_get(&self, key: &str) -> Result<Option<KvEntry>> {
        self.get(&format!("/v1/kv/{}", segment(key))).await
    }

    async fn kv_list(&self, prefix: &str) -> Result<Vec<KvEntry>> {
        self.get(&format!("/v1/kv?prefix={}", segment(prefix))).await
    }

    async fn kv_set(&self, key: &str, set: KvSet) -> Result<KvEntry> {
        self.wire.call("PUT", &format!("/v1/kv/{}", segment(key)), Some(&set)).await
    }

    async fn kv_delete(&self, key: &str, version: Option<u64>) -> Result<bool> {
        let query = version.map(|version| format!("?version={version}")).unwrap_or_default();
        self.wire.call("DELETE", &format!("/v1/kv/{}{query}", segment(key)), None::<&()>).await
    }

    async fn kv_watch(&self, prefix: &str) -> Result<Stream1<KvChange>> {
        self.stream(&format!("/v1/kv-watch?prefix={}", segment(prefix))).await
    }

    async fn values(&self, of: ValueKind) -> Result<Vec<ValueInfo>> {
        self.get(&format!("/v1/{}s", of.as_str())).await
    }

    async fn set_value(&self, of: ValueKind, name: &str, set: ValueSet) -> Result<ValueChange> {
        self.wire.call("PUT", &format!("/v1/{}s/{}", of.as_str(), segment(name)), Some(&set)).await
    }

    async fn remove_value(&self, of: ValueKind, name: &str) -> Result<()> {
        self.wire.call("DELETE", &format!("/v1/{}s/{}", of.as_str(), segment(name)), None::<&()>).await
    }

    async fn config(&self, name: &str) -> Result<ConfigValue> {
        self.get(&format!("/v1/configs/{}", segment(name))).await
    }

    async fn logins(&self) -> Result<Vec<LoginInfo>> {
        self.get("/v1/logins").await
    }

    async fn login(&self, registry: &str, ask: LoginAsk) -> Result<LoginInfo> {
        let registry = registry::name(registry)?;
        self.wire.call("PUT", &format!("/v1/logins/{}", segment(&registry)), Some(&ask)).await
    }

    async fn logout(&self, registry: &str, service: Option<&str>) -> Result<()> {
        let registry = registry::name(registry)?;
        let query = service.map(|service| format!("?service={}", segment(service))).unwrap_or_default();
        self.wire.call("DELETE", &format!("/v1/logins/{}{query}", segment(&registry)), None::<&()>).await
    }

    async fn names(&self, of: NameKind, prefix: &str, limit: usize) -> Result<Vec<String>> {
        self.get(&format!("/v1/names?of={}&prefix={}&limit={limit}", of.as_str(), segment(prefix))).await
    }
}
