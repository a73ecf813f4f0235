//! Networks and volumes: the engine's own, with what services use of them.

use std::collections::BTreeSet;

use super::Runtime;
use crate::model::id::NodeId;
use crate::model::mount::MountKind;
use crate::model::node::NodeState;
use crate::model::objects::{NetworkAsk, NetworkInfo, NetworkSpec, VolumeAsk, VolumeInfo, VolumeSpec, Volumes};
use crate::model::service::Revision;
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
        let mut found = Volumes::default();
        let mut asked: Vec<NodeId> = Vec::new();
        match node {
            Some(node) => asked.push(self.node_id(node)?),
            None => {
                for node in world.nodes.values() {
                    match node.state {
                        NodeState::Ready => asked.push(node.id.clone()),
                        NodeState::Down => drop(found.missing.insert(node.hostname.clone(), "it is down".into())),
                    }
                }
            }
        }
        let name = |id: &NodeId| world.nodes.get(id).map_or_else(|| id.to_string(), |node| node.hostname.clone());
        let (engine, ask) = (&self.parts.engine, &ask);
        let answers = asked.iter().map(|id| async move { (id, engine.volumes(id, ask.clone()).await) });
        for (id, answer) in futures_util::future::join_all(answers).await {
            match answer {
                Ok(volumes) => found.volumes.extend(volumes.into_iter().map(|volume| VolumeInfo {
                    node: id.clone(),
                    hostname: name(id),
                    used_by: volume_users(&world, id, &volume.name),
                    ..volume
                })),
                Err(error) if node.is_some() || asked.len() == 1 => {
                    return Err(error.about_node(&name(id)));
                }
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
        if node.is_none() {
            self.all_there(&subject).await?;
        }
        let made = self.ask_volumes(node, VolumeAsk::Create(spec)).await?;
        whole(made, &subject, "made")
    }

    pub(super) async fn drop_volume(&self, node: Option<&str>, name: &str, force: bool) -> Result<Volumes> {
        let subject = format!("volume \"{name:.70}\"");
        if node.is_none() {
            let users = mounted_by(&self.world(), name);
            if !users.is_empty() {
                return Err(Error::new(Kind::Conflict, subject, format!("is used by {}", users.join(", ")))
                    .help("change those services first, or name the node whose volume is meant (--node)"));
            }
            self.all_there(&subject).await?;
        }
        let removed = self.ask_volumes(node, VolumeAsk::Remove { name: name.to_owned(), force }).await?;
        if removed.volumes.is_empty() && removed.missing.is_empty() {
            return Err(Error::not_found(subject).help("`neap volume ls` lists them"));
        }
        whole(removed, &subject, "removed")
    }
}

impl Runtime {
    // Nothing is changed anywhere unless every host that is meant can be asked.
    async fn all_there(&self, subject: &str) -> Result<()> {
        let there = self.ask_volumes(None, VolumeAsk::List).await?;
        let Some((node, why)) = there.missing.first_key_value() else { return Ok(()) };
        Err(Error::new(
            Kind::Unavailable,
            subject,
            format!("is meant on all nodes, and node \"{node}\" cannot be asked"),
        )
        .cause(why)
        .help("name the nodes that are meant, one by one (--node)"))
    }
}

// Services with a revision that mounts it.
fn mounted_by(world: &World, name: &str) -> Vec<String> {
    let mounts =
        |mount: &crate::model::mount::Mount| mount.kind == MountKind::Volume && mount.source.as_deref() == Some(name);
    users(world, |revision| revision.spec.mounts.iter().any(mounts))
}

/// Services with a revision that uses something; the revisions that they may go back to count as well.
pub fn users(world: &World, uses: impl Fn(&Revision) -> bool) -> Vec<String> {
    let using = world.revisions.values().filter(|revision| uses(revision));
    let mut users: Vec<String> = using.map(|revision| revision.service.to_string()).collect();
    users.dedup();
    users
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
    users(world, |revision| revision.spec.networks.iter().any(|used| used.name == name))
}

fn volume_users(world: &World, node: &NodeId, name: &str) -> Vec<String> {
    let here = world.tasks.values().filter(|task| task.node.as_ref() == Some(node) && !task.state.is_final());
    let mut labels = BTreeSet::new();
    for task in here {
        let mounts = world.task_spec(&task.id).map(|spec| &spec.mounts);
        let mounts_it = mounts
            .into_iter()
            .flatten()
            .any(|mount| mount.kind == MountKind::Volume && mount.source.as_deref() == Some(name));
        if mounts_it {
            labels.insert(task.label());
        }
    }
    labels.into_iter().collect()
}
