//! Networks and volumes: the engine's own, with what services use of them.

use std::collections::BTreeMap;

use super::Runtime;
use crate::model::id::NodeId;
use crate::model::mount::MountKind;
use crate::model::node::NodeState;
use crate::model::objects::{NetworkAsk, NetworkInfo, NetworkSpec, VolumeAsk, VolumeInfo, VolumeSpec, Volumes};
use crate::model::{Error, Kind, Result};
use crate::scheduler::world::World;

impl Runtime {
    pub(super) async fn list_networks(&self) -> Result<Vec<NetworkInfo>> {
        let mut networks = self.parts.engine.networks(NetworkAsk::List).await?;
        let world = self.world();
        for network in &mut networks {
            network.used_by = network_users(&world, &network.name);
        }
        networks.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(networks)
    }

    pub(super) async fn make_network(&self, spec: NetworkSpec) -> Result<NetworkInfo> {
        spec.validate()?;
        let name = spec.name.clone();
        self.parts.engine.networks(NetworkAsk::Create(spec)).await?;
        let made = self.list_networks().await?.into_iter().find(|network| network.name == name);
        made.ok_or_else(|| Error::internal(format!("network \"{name}\""), "was made, and is not there"))
    }

    pub(super) async fn drop_network(&self, name: &str) -> Result<()> {
        let users = network_users(&self.world(), name);
        if !users.is_empty() {
            let message = format!("is used by {}", users.join(", "));
            return Err(Error::new(Kind::Conflict, format!("network \"{name:.70}\""), message)
                .help("change those services first; the revisions that they may go back to count as well"));
        }
        self.parts.engine.networks(NetworkAsk::Remove(name.to_owned())).await.map(drop)
    }

    // Asks one host, or all that are there; where some cannot be asked, the others count.
    pub(super) async fn ask_volumes(&self, node: Option<&str>, ask: VolumeAsk) -> Result<Volumes> {
        let world = self.world();
        let asked: Vec<NodeId> = match node {
            Some(node) => vec![self.node_id(node)?],
            None => {
                let there = world.nodes.values().filter(|node| node.state == NodeState::Ready);
                there.map(|node| node.id.clone()).collect()
            }
        };
        let name = |id: &NodeId| world.nodes.get(id).map_or_else(|| id.to_string(), |node| node.hostname.clone());
        let (engine, ask) = (&self.parts.engine, &ask);
        let answers = asked.iter().map(|id| async move { (id, engine.volumes(id, ask.clone()).await) });
        let mut found = Volumes::default();
        for (id, answer) in futures_util::future::join_all(answers).await {
            match answer {
                Ok(volumes) => found.volumes.extend(volumes.into_iter().map(|volume| VolumeInfo {
                    node: id.clone(),
                    hostname: name(id),
                    used_by: volume_users(&world, id, &volume.name),
                    ..volume
                })),
                Err(error) if node.is_some() || asked.len() == 1 || error.kind == Kind::Conflict => return Err(error),
                Err(error) => {
                    found.missing.insert(name(id), error.to_string());
                }
            }
        }
        found.volumes.sort_by(|a, b| (&a.name, &a.hostname).cmp(&(&b.name, &b.hostname)));
        Ok(found)
    }

    pub(super) async fn make_volume(&self, node: Option<&str>, spec: VolumeSpec) -> Result<Volumes> {
        spec.validate()?;
        let subject = format!("volume \"{}\"", spec.name);
        let made = self.ask_volumes(node, VolumeAsk::Create(spec)).await?;
        whole(made, &subject, "made")
    }

    pub(super) async fn drop_volume(&self, node: Option<&str>, name: &str, force: bool) -> Result<Volumes> {
        let subject = format!("volume \"{name:.70}\"");
        let removed = self.ask_volumes(node, VolumeAsk::Remove { name: name.to_owned(), force }).await?;
        if removed.volumes.is_empty() && removed.missing.is_empty() {
            return Err(Error::not_found(subject).help("`neap volume ls` lists them"));
        }
        whole(removed, &subject, "removed")
    }
}

// A change that did not reach every host that it was meant for is no success.
fn whole(done: Volumes, subject: &str, what: &str) -> Result<Volumes> {
    let Some((node, why)) = done.missing.first_key_value() else { return Ok(done) };
    let hosts: Vec<&str> = done.volumes.iter().map(|volume| volume.hostname.as_str()).collect();
    let told = if hosts.is_empty() { "nowhere".to_owned() } else { format!("on {} only", hosts.join(", ")) };
    Err(Error::new(Kind::Unavailable, subject, format!("is {what} {told}, and not on {node}"))
        .cause(why)
        .help("name the nodes that are meant (--node), or try again"))
}

fn network_users(world: &World, name: &str) -> Vec<String> {
    let uses = world.revisions.values().filter(|revision| revision.spec.networks.iter().any(|used| used.name == name));
    let mut users: Vec<String> = uses.map(|revision| revision.service.to_string()).collect();
    users.dedup();
    users
}

fn volume_users(world: &World, node: &NodeId, name: &str) -> Vec<String> {
    let here = world.tasks.values().filter(|task| task.node.as_ref() == Some(node) && !task.state.is_final());
    let mut labels: BTreeMap<String, ()> = BTreeMap::new();
    for task in here {
        let mounts = world.task_spec(&task.id).map(|spec| &spec.mounts);
        let mounts_it = mounts
            .into_iter()
            .flatten()
            .any(|mount| mount.kind == MountKind::Volume && mount.source.as_deref() == Some(name));
        if mounts_it {
            labels.insert(task.label(), ());
        }
    }
    labels.into_keys().collect()
}
