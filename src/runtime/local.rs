//! `trait Cluster` in process.

use std::collections::BTreeMap;
use std::sync::PoisonError;

use async_trait::async_trait;

use super::asked::channel;
use super::follow::Follower;
use super::{Runtime, commands, cron, kv, logins, prepare, releases, scripts, status, values};
use crate::client::catalog::{CatalogRestored, CatalogSnapshot};
use crate::client::catalog::{FoundInstance, FoundNode, FoundService, InstancesAsk, Maintenance, Register, Report};
use crate::client::kv::{ConfigValue, KvChange, KvEntry, KvSet, ValueChange, ValueInfo, ValueKind, ValueSet};
use crate::client::members::JoinTicket;
use crate::client::ports::PortInfo;
use crate::client::routes::RouteInfo;
use crate::client::scripts::{Back, CronStatus, FailedDelivery, Push, ScriptCalls, ScriptSource, ScriptStatus};
use crate::client::{Apply, Cluster, Info, LogEntry, LogsAsk, NameKind, ReleaseAction, ServiceStatus, Stream1};
use crate::model::bundle::Source;
use crate::model::cron::CronRun;
use crate::model::event::Event;
use crate::model::id::ServiceId;
use crate::model::name::{Name, check_loose};
use crate::model::native::{Adopt, Adoption, HandBack, HandedBack, NativeService};
use crate::model::node::{self, Availability, ImagePrune, Node, NodeUpdate, PrunedImages, Role};
use crate::model::objects::{NetworkInfo, NetworkSpec, VolumeAsk, VolumeSpec, Volumes};
use crate::model::plan::{Plan, Rebalance, Rebalanced};
use crate::model::registry::{self, LoginAsk, LoginInfo};
use crate::model::route::RouteSpec;
use crate::model::service::{Revision, Service};
use crate::model::stats::{NodeStats, TaskStats};
use crate::model::swarm::{SwarmAsk, SwarmState};
use crate::model::{Error, Kind, Result};
use crate::scheduler::plan;
use crate::scheduler::world::Draft;
use crate::script::host::Scripts;
use crate::store::Write;

#[async_trait]
impl Cluster for Runtime {
    async fn info(&self) -> Result<Info> {
        Ok(self.about())
    }

    async fn services(&self) -> Result<Vec<ServiceStatus>> {
        let world = self.world();
        let confirmed = self.confirmed.borrow().clone();
        Ok(world.services.values().map(|service| status::of(&world, service, &confirmed)).collect())
    }

    async fn service(&self, name: &str) -> Result<ServiceStatus> {
        self.status(name)
    }

    async fn watch(&self, name: &str) -> Result<Stream1<ServiceStatus>> {
        let mut last = self.status(name)?;
        let (sender, stream) = channel();
        let (mut seen, mut confirmed, name) = (self.world.clone(), self.confirmed.clone(), name.to_owned());
        tokio::spawn(async move {
            let _ = sender.send(Ok(last.clone())).await;
            loop {
                let changed = tokio::select! {
                    biased;
                    changed = seen.changed() => changed,
                    changed = confirmed.changed() => changed,
                    () = sender.closed() => return,
                };
                // Not the service's end, which is what an end of its states says.
                if changed.is_err() {
                    let _ = sender.send(Err(Error::new(Kind::Unavailable, "daemon", "is being ended"))).await;
                    return;
                }
                let world = seen.borrow_and_update().clone();
                let Some(service) = world.services.get(name.as_str()) else { return };
                let status = status::of(&world, service, &confirmed.borrow_and_update());
                if status != last {
                    last = status;
                    if sender.send(Ok(last.clone())).await.is_err() {
                        return;
                    }
                }
            }
        });
        Ok(stream)
    }

    async fn revisions(&self, name: &str) -> Result<Vec<Revision>> {
        let status = self.status(name)?;
        let name = &status.service.spec.name;
        let world = self.world();
        Ok(world.revisions_of(name).map(|revision| Revision::clone(revision)).collect())
    }

    async fn plan(&self, ask: Apply) -> Result<Plan> {
        let (world, parts) = (self.world(), self.parts.clone());
        let plan = move || {
            let bundle = ask.with.as_ref().map(crate::model::bundle::Bundle::hash);
            let prepared = prepare::prepare(&world, &parts, ask)?;
            commands::refuse(&world, &prepared)?;
            let spec = prepared.spec().clone();
            if let Some(hash) = &bundle {
                commands::refuse_taken_names(&world, &parts.host, &spec.name, hash)?;
            }
            let old = world.services.get(&spec.name);
            let mut service = old.map_or_else(
                || Service {
                    id: ServiceId::new(&*parts.clock),
                    spec: spec.clone(),
                    revision: 0,
                    active: 0,
                    stable: None,
                    previous: None,
                    bundle: None,
                    removing: false,
                    address: None,
                    handover: None,
                    created_at: parts.clock.wall(),
                    updated_at: parts.clock.wall(),
                },
                |old| Service::clone(old),
            );
            service.spec = spec;
            service.bundle = bundle.or(service.bundle);
            let hash = prepared.hash();
            Ok(plan::plan(&world, old.map(AsRef::as_ref), &service, &hash, &mut Scripts::new(&parts.host)))
        };
        self.parts.aside("plan", plan).await
    }

    async fn apply(&self, ask: Apply) -> Result<ServiceStatus> {
        // A change of some fields is made on top of what is there; if somebody else was quicker, on top of that.
        let mut tries = 5;
        loop {
            let prepared = self.prepare(ask.clone()).await?;
            let name = prepared.spec().name.clone();
            let lent = prepared.spec().image.as_deref().map(registry::of_image).zip(ask.auth.clone());
            let lent = lent.map(|(registry, auth)| auth.login(registry)).transpose()?;
            let (parts, applied) = (self.parts.clone(), name.clone());
            let apply = move |draft: &mut Draft, writes: &mut Vec<Write>| {
                commands::apply(draft, writes, &parts.host, prepared)?;
                if let Some((login, service)) = lent.zip(draft.world.services.get(&applied)) {
                    writes.extend(logins::lend(&parts, service.id, login)?);
                }
                Ok(())
            };
            match self.command(apply).await {
                Err(error) if error.kind == Kind::Conflict && error.retry && tries > 1 => tries -= 1,
                result => return result.and_then(|()| self.status(name.as_str())),
            }
        }
    }

    async fn scale(&self, name: &str, replicas: u32) -> Result<ServiceStatus> {
        let owned = name.to_owned();
        self.command(move |draft, _| commands::scale(draft, &owned, replicas)).await?;
        self.status(name)
    }

    async fn rebalance(&self, name: &str, ask: Rebalance) -> Result<Rebalanced> {
        self.move_tasks(name, ask).await
    }

    async fn release(&self, name: &str, action: ReleaseAction) -> Result<ServiceStatus> {
        let (owned, host) = (name.to_owned(), self.parts.host.clone());
        self.command(move |draft, _| releases::release(draft, &host, &owned, action)).await?;
        self.status(name)
    }

    async fn remove(&self, name: &str) -> Result<()> {
        let name = name.to_owned();
        self.command(move |draft, _| commands::remove(draft, &name)).await
    }

    async fn stats(&self, name: &str) -> Result<Vec<TaskStats>> {
        self.count(name).await
    }

    async fn logs(&self, name: &str, ask: LogsAsk) -> Result<Stream1<LogEntry>> {
        match self.status(name) {
            Ok(status) if status.service.spec.engine_native => return self.native_logs(name, ask).await,
            Ok(_) => {}
            Err(missing) => {
                return match self.native_logs(name, ask).await {
                    Err(error) if matches!(error.kind, Kind::NotFound | Kind::Unsupported) => Err(missing),
                    read => read,
                };
            }
        }
        let world = self.world();
        if let Some(slot) = &ask.slot
            && !world.tasks.values().any(|task| task.service.as_str() == name && task.slot.to_string() == *slot)
        {
            return Err(Error::not_found(format!("task \"{name}.{slot:.60}\""))
                .help(format!("neap service ps -a {name} lists them")));
        }
        let (sender, stream) = channel();
        let follower = Follower { name: name.to_owned(), engine: self.parts.engine.clone(), world: self.world.clone() };
        tokio::spawn(async move {
            if let Err(error) = follower.run(&ask, &sender).await {
                let _ = sender.send(Err(error)).await;
            }
        });
        Ok(stream)
    }

    async fn natives(&self) -> Result<Vec<NativeService>> {
        self.list_natives().await
    }

    async fn adopt(&self, native: &str, ask: Adopt) -> Result<Adoption> {
        self.adopt_native(native, ask).await
    }

    async fn hand_back(&self, name: &str, ask: HandBack) -> Result<HandedBack> {
        self.give_back(name, ask).await
    }

    async fn node_stats(&self, node: Option<&str>, containers: bool) -> Result<Vec<NodeStats>> {
        self.measured(node, containers)
    }

    async fn nodes(&self) -> Result<Vec<Node>> {
        Ok(self.world().nodes.values().map(|node| Node::clone(node)).collect())
    }

    async fn update_node(&self, id: &str, update: NodeUpdate) -> Result<Node> {
        for (key, value) in &update.label_add {
            check_loose("label", key)?;
            if value.len() > 1024 {
                let why = format!("label_add.{key}: a value of {} bytes is longer than 1024", value.len());
                return Err(Error::invalid(format!("node \"{id:.70}\""), why));
            }
        }
        let wanted = self.node_id(id)?.to_string();
        if update.force && update.availability != Some(Availability::Drain) {
            let why = "force: goes with a drain alone (availability = \"drain\")";
            return Err(Error::invalid(format!("node \"{id:.70}\""), why));
        }
        // An engine that keeps settings itself is told; but of a drain only when the node is empty, since a Swarm would
        // end at once what runs there.
        let at_once =
            NodeUpdate { availability: update.availability.filter(|a| *a != Availability::Drain), ..update.clone() };
        let _telling = self.parts.telling.lock().await;
        let kept = self.parts.engine.update_node(&wanted, &at_once).await?;
        if update.role.is_some() && !kept {
            let message = format!("role: the {} engine knows no roles", self.parts.engine.name());
            return Err(Error::new(crate::model::Kind::Unsupported, format!("node \"{id:.70}\""), message));
        }
        self.command(move |draft, writes| commands::update_node(draft, writes, &wanted, update, kept)).await?;
        let world = self.world();
        node::named(world.nodes.values().map(|node| &**node), id).cloned()
    }

    async fn remove_node(&self, id: &str, force: bool) -> Result<()> {
        self.take_out(id, force).await
    }

    async fn prune_images(&self, node: &str, ask: ImagePrune) -> Result<PrunedImages> {
        self.prune(node, ask).await
    }

    async fn networks(&self) -> Result<Vec<NetworkInfo>> {
        self.list_networks().await
    }

    async fn create_network(&self, spec: NetworkSpec) -> Result<NetworkInfo> {
        self.make_network(spec).await
    }

    async fn remove_network(&self, name: &str) -> Result<()> {
        self.drop_network(name).await
    }

    async fn routes(&self) -> Result<Vec<RouteInfo>> {
        Ok(self.list_routes())
    }

    async fn ports(&self) -> Result<Vec<PortInfo>> {
        Ok(self.list_ports())
    }

    async fn set_route(&self, name: &Name, spec: RouteSpec) -> Result<RouteInfo> {
        self.put_route(name, spec).await
    }

    async fn remove_route(&self, name: &str) -> Result<()> {
        self.drop_route(name).await
    }

    async fn volumes(&self, node: Option<&str>) -> Result<Volumes> {
        self.ask_volumes(node, VolumeAsk::List).await
    }

    async fn create_volume(&self, node: Option<&str>, spec: VolumeSpec) -> Result<Volumes> {
        self.make_volume(node, spec).await
    }

    async fn remove_volume(&self, node: Option<&str>, name: &str, force: bool) -> Result<Volumes> {
        self.drop_volume(node, name, force).await
    }

    async fn forget_agent(&self, node: &str) -> Result<()> {
        self.forget(node).await
    }

    async fn catalog_nodes(&self) -> Result<Vec<FoundNode>> {
        Ok(self.registry.nodes())
    }

    async fn catalog_services(&self) -> Result<Vec<FoundService>> {
        Ok(self.registry.services())
    }

    async fn instances(&self, service: &str, ask: InstancesAsk) -> Result<Vec<FoundInstance>> {
        Ok(self.registry.instances(service, &ask))
    }

    async fn watch_instances(&self, service: &str, ask: InstancesAsk) -> Result<Stream1<Vec<FoundInstance>>> {
        let (sender, stream) = channel();
        self.registry.watch_instances(service, ask, sender);
        Ok(stream)
    }

    async fn register(&self, register: Register) -> Result<FoundInstance> {
        self.registry.register_own(register).await
    }

    async fn deregister(&self, node: Option<&str>, id: &str) -> Result<()> {
        self.registry.deregister_own(node, id).await
    }

    async fn report(&self, node: Option<&str>, check: &str, report: Report) -> Result<()> {
        self.registry.report(node, check, &report)
    }

    async fn maintain(&self, node: Option<&str>, id: &str, maintenance: Maintenance) -> Result<FoundInstance> {
        self.registry.maintain_own(node, id, &maintenance).await
    }

    async fn catalog_snapshot(&self) -> Result<CatalogSnapshot> {
        super::snapshot::save(&self.registry, &self.kv).await.map(|(archive, _)| CatalogSnapshot::new(&archive))
    }

    async fn restore_catalog(&self, snapshot: CatalogSnapshot) -> Result<CatalogRestored> {
        super::snapshot::restore_whole(&self.registry, &self.kv, snapshot.bytes()?).await
    }

    async fn swarm(&self, ask: SwarmAsk) -> Result<SwarmState> {
        self.members()?.swarm(ask).await
    }

    async fn join_ticket(&self, role: Role, rotate: bool) -> Result<JoinTicket> {
        self.members()?.join_ticket(role, rotate).await
    }

    async fn events(&self) -> Result<Stream1<Event>> {
        let events = self.events.listen(super::publish::WAITING);
        let stream =
            futures_util::stream::unfold(events, |mut events| async move { Some((events.recv().await?, events)) });
        Ok(Box::pin(stream))
    }

    async fn failed_deliveries(&self) -> Result<Vec<FailedDelivery>> {
        Ok(self.failed.lock().unwrap_or_else(PoisonError::into_inner).iter().cloned().collect())
    }

    async fn scripts(&self) -> Result<Vec<ScriptStatus>> {
        scripts::list(&self.world(), &self.parts.host)
    }

    async fn script(&self, name: &str, version: Option<&str>) -> Result<ScriptSource> {
        scripts::source(&self.world(), &self.parts.host, name, version)
    }

    async fn push_scripts(&self, name: &str, push: Push, by: &str) -> Result<ScriptStatus> {
        self.replace_scripts(name, push, Source::Push, by).await
    }

    async fn rollback_scripts(&self, name: &str, back: Back, _: &str) -> Result<ScriptStatus> {
        let (owned, host) = (name.to_owned(), self.parts.host.clone());
        self.command(move |draft, _| scripts::roll_back(draft, &host, &owned, &back)).await?;
        self.script_status(name)
    }

    async fn remove_scripts(&self, name: &str) -> Result<()> {
        self.drop_scripts(name, Source::Push).await
    }

    async fn script_calls(&self) -> Result<Vec<ScriptCalls>> {
        Ok(scripts::calls(&self.world(), &self.parts.host))
    }

    async fn crons(&self) -> Result<Vec<CronStatus>> {
        self.ask_cron(cron::Request::List).await
    }

    async fn cron(&self, name: &str) -> Result<CronStatus> {
        let all = self.crons().await?;
        let hint = crate::model::suggest::nearest(name, all.iter().map(|cron| cron.name.as_str()));
        let hint = hint.map_or("`neap cron ls` lists them".into(), |near| format!("did you mean \"{near}\"?"));
        let found = all.iter().find(|cron| cron.name == name).cloned();
        found.ok_or_else(|| Error::not_found(format!("cron \"{name:.63}\"")).help(hint))
    }

    async fn run_cron(&self, name: &str, by: &str) -> Result<CronRun> {
        let (name, by) = (name.to_owned(), by.to_owned());
        self.ask_cron(|reply| cron::Request::Run(name, by, reply)).await?
    }

    async fn pause_cron(&self, name: &str, paused: bool) -> Result<CronStatus> {
        let owned = name.to_owned();
        self.ask_cron(|reply| cron::Request::Pause(owned, paused, reply)).await??;
        self.cron(name).await
    }

    async fn kv_get(&self, key: &str) -> Result<Option<KvEntry>> {
        kv::get(&*self.parts.store, key)
    }

    async fn kv_list(&self, prefix: &str) -> Result<Vec<KvEntry>> {
        kv::list(&*self.parts.store, prefix)
    }

    async fn kv_set(&self, key: &str, set: KvSet) -> Result<KvEntry> {
        self.kv.set(key, set).await
    }

    async fn kv_delete(&self, key: &str, version: Option<u64>) -> Result<bool> {
        self.kv.delete(key, version).await
    }

    async fn kv_watch(&self, prefix: &str) -> Result<Stream1<KvChange>> {
        let (sender, stream) = channel();
        kv::watch(&self.parts, prefix, sender)?;
        Ok(stream)
    }

    async fn values(&self, of: ValueKind) -> Result<Vec<ValueInfo>> {
        values::list(&*self.parts.store, &self.world(), of)
    }

    async fn set_value(&self, of: ValueKind, name: &str, set: ValueSet) -> Result<ValueChange> {
        let info = self.set_one(of, name, &set).await?;
        match set.no_rollout {
            true => Ok(ValueChange { info, rolled_out: Vec::new(), refused: BTreeMap::new() }),
            false => Ok(self.roll_out_users(of, name, &set, info).await),
        }
    }

    async fn remove_value(&self, of: ValueKind, name: &str) -> Result<()> {
        values::remove(&self.parts, &self.world(), of, name).await
    }

    async fn config(&self, name: &str) -> Result<ConfigValue> {
        values::config(&self.parts, &self.world(), name)
    }

    async fn logins(&self) -> Result<Vec<LoginInfo>> {
        logins::list(&*self.parts.store, &self.world())
    }

    async fn login(&self, registry: &str, ask: LoginAsk) -> Result<LoginInfo> {
        logins::set(&self.parts, registry, ask).await
    }

    async fn logout(&self, registry: &str, service: Option<&str>) -> Result<()> {
        logins::remove(&self.parts, &self.world(), registry, service).await
    }

    async fn names(&self, of: NameKind, prefix: &str, limit: usize) -> Result<Vec<String>> {
        self.names_of(of, prefix, limit)
    }
}
