//! The Swarm's nodes. Swarm itself notices the loss of one only after three missed heartbeats, about 20 s; so each node
//! is asked for besides, at the port on which Swarm's nodes gossip (7946) and every Docker Engine of a Swarm listens. One that
//! does not answer here is asked for from other hosts before it is taken for lost: it may be only the way to this one that is cut.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use bollard::Docker;
use bollard::models::{Node as SwarmNode, NodeSpecAvailabilityEnum, NodeSpecRoleEnum, NodeState as SwarmState};
use bollard::query_parameters::{DeleteNodeOptions, ListNodesOptions, UpdateNodeOptions};
use tokio::sync::{Notify, oneshot, watch};
use tokio::task::JoinSet;

use super::pulse::Pulse;
use crate::engines::docker::trouble;
use crate::engines::hosts::{Hosts, ReachAsk, Reached};
use crate::model::id::NodeId;
use crate::model::node::{Agent, Availability, Node, NodeState, NodeUpdate, Role};
use crate::model::units::{self, Bytes, Cpu};
use crate::model::{Error, Kind, Result};

/// The port on which every node of a Swarm listens for the others.
const GOSSIP: u16 = 7946;
/// How long a node has to answer: long enough for one packet that is lost (1 s).
const PROBE: Duration = Duration::from_millis(1200);
/// How many others are asked whether they reach a node that does not answer here, and how long they have to try.
const WITNESSES: (usize, Duration) = (3, Duration::from_millis(650));
/// How often all of them are looked through though nothing is new.
const LOOK: Duration = Duration::from_millis(250);
/// How often the list is read anew though no event says so.
const LIST: Duration = Duration::from_secs(15);
/// How long the list may take.
const LIST_WITHIN: Duration = Duration::from_secs(3);
/// How often a change is tried when somebody else changed the node in between.
const ATTEMPTS: usize = 20;

/// Keeps the list.
pub struct Nodes {
    docker: Docker,
    /// What is known, now and as it changes.
    pub known: watch::Sender<Arc<Vec<Node>>>,
    /// The node of this very host.
    pub own: String,
    /// Those who have changed a node, and wait until what is known is no older than that.
    waiting: Mutex<Vec<oneshot::Sender<()>>>,
    /// Wakes the one who asks for the list.
    asked: Notify,
}

impl Nodes {
    /// Reads the list for the first time. `own`: id and address of this host's node.
    pub async fn open(docker: &Docker, own: (String, Option<IpAddr>)) -> Result<Arc<Self>> {
        let nodes = Nodes {
            docker: docker.clone(),
            known: watch::Sender::new(Arc::default()),
            own: own.0,
            waiting: Mutex::default(),
            asked: Notify::new(),
        };
        let told = docker.list_nodes(None::<ListNodesOptions>).await;
        let told = told.map_err(|error| trouble::error("Swarm", "list its nodes", &error))?;
        let mut listed: Vec<Node> = told.iter().filter_map(described).collect();
        // A Swarm that has just changed its leader knows nothing of any: what is taken for up is what answers.
        let unknown =
            |node: &SwarmNode| node.status.as_ref().and_then(|status| status.state) == Some(SwarmState::UNKNOWN);
        if told.iter().any(unknown) {
            let probes =
                listed.iter().map(async |node| if *node.id == *nodes.own { Reached::Yes } else { probe(node).await });
            let answers = futures_util::future::join_all(probes).await;
            for (node, answer) in listed.iter_mut().zip(answers) {
                if answer == Reached::Silent {
                    node.state = NodeState::Down;
                }
            }
        }
        nodes.known.send_replace(Arc::new(listed));
        Ok(Arc::new(nodes))
    }

    /// The address at which a node's ports are reached.
    pub fn address(&self, node: &str) -> Option<IpAddr> {
        self.known.borrow().iter().find(|known| *known.id == *node)?.address
    }

    /// A node's name.
    pub fn hostname(&self, node: &str) -> Option<String> {
        Some(self.known.borrow().iter().find(|known| *known.id == *node)?.hostname.clone())
    }

    /// Keeps it up for ever; `changed` says that Swarm told of a change.
    /// `hosts`: who acts on which of them.
    pub async fn follow(self: Arc<Self>, changed: Arc<tokio::sync::Notify>, hosts: Option<Arc<dyn Hosts>>) {
        let mut agents = hosts.as_ref().map(|hosts| hosts.agents());
        let mut listed: Vec<Node> = self.known.borrow().to_vec();
        let mut pulse = Pulse::new(&self.own, hosts.is_some(), &listed, Instant::now());
        let (mut probes, mut inquiries, mut lists) = (JoinSet::new(), JoinSet::new(), JoinSet::new());
        // Those whose change the list that is being asked for shows.
        let mut served: Vec<oneshot::Sender<()>> = Vec::new();
        let mut due = Instant::now() + LIST;
        let (mut looked, mut news) = (Instant::now(), true);
        loop {
            for id in pulse.due(Instant::now()) {
                let Some(node) = listed.iter().find(|node| node.id == id).cloned() else { continue };
                probes.spawn(async move {
                    let answer = probe(&node).await;
                    (node.id, answer, Instant::now())
                });
            }
            // While it is being asked for, the list is not due.
            let listing = if lists.is_empty() { due } else { Instant::now() + LIST_WITHIN };
            let next =
                [pulse.next(), Some(listing), Some(looked + LOOK)].into_iter().flatten().min().unwrap_or(listing);
            // Dropped, and so let go on, once what is known is as the list says.
            let mut told = Vec::new();
            tokio::select! {
                () = changed.notified() => due = Instant::now(),
                () = self.asked.notified() => due = Instant::now(),
                () = changed_agents(&mut agents) => news = true,
                () = tokio::time::sleep(next.saturating_duration_since(Instant::now())) => {}
                Some(found) = probes.join_next() => {
                    let Ok((id, answer, at)) = found else {
                        pulse.begin_anew();
                        continue;
                    };
                    let (asks, is_news) = pulse.answered(&id, answer, at);
                    news |= is_news;
                    if asks
                        && let (Some(hosts), Some(node)) = (&hosts, listed.iter().find(|node| node.id == id))
                    {
                        let known = agents.as_ref().map(|agents| agents.borrow().clone()).unwrap_or_default();
                        let witnesses = witnesses(node, &listed, &self.own, &known);
                        inquiries.spawn(inquire(hosts.clone(), node.clone(), witnesses));
                    }
                }
                Some(found) = inquiries.join_next() => {
                    let Ok((node, started, reached)) = found else { continue };
                    news = true;
                    if pulse.inquired(&node, started, reached) {
                        tracing::warn!(%node, "a host does not answer here, but is reached from others: the way to it is cut");
                    }
                }
                Some(Ok(found)) = lists.join_next() => {
                    told.append(&mut served);
                    match found {
                        Ok(found) => {
                            listed = found;
                            news = true;
                            pulse.list(&listed, Instant::now());
                        }
                        Err(error) => tracing::warn!(%error, "the Swarm's nodes are not known anew"),
                    }
                }
            }
            // While the managers choose a leader they do not answer, and the hosts are asked all the same.
            if Instant::now() >= due && lists.is_empty() {
                due = Instant::now() + LIST;
                served = std::mem::take(&mut *self.waiting.lock().unwrap_or_else(PoisonError::into_inner));
                let docker = self.docker.clone();
                lists.spawn(async move {
                    let late =
                        || Error::new(Kind::Timeout, "Swarm", format!("its nodes are not told within {LIST_WITHIN:?}"));
                    tokio::time::timeout(LIST_WITHIN, list(&docker)).await.unwrap_or_else(|_| Err(late()))
                });
            }
            // What is as it was need not be looked through each time that somebody says so.
            let now = Instant::now();
            if !std::mem::take(&mut news) && now.duration_since(looked) < LOOK {
                continue;
            }
            looked = now;
            let known = agents.as_mut().map(|agents| agents.borrow_and_update().clone()).unwrap_or_default();
            let down = pulse.down(|id| known.get(id).is_some_and(|agent| agent.connected), now);
            let mut nodes = listed.clone();
            for node in &mut nodes {
                node.agent = known.get(&node.id).cloned();
                if down.contains(&node.id) {
                    node.state = NodeState::Down;
                }
            }
            let nodes = Arc::new(nodes);
            self.known.send_if_modified(|known| {
                let changed = *known != nodes;
                *known = nodes;
                changed
            });
            drop(told);
        }
    }

    /// Removes a node from the Swarm; one that is not down only with `force`.
    pub async fn remove(&self, id: &str, force: bool) -> Result<()> {
        match self.docker.delete_node(id, Some(DeleteNodeOptions { force })).await {
            Ok(()) => Ok(()),
            Err(error) if trouble::said(&error).contains("not down") => {
                let subject = format!("node \"{id:.70}\"");
                Err(Error::new(crate::model::Kind::Conflict, subject, "is not down")
                    .help("let it leave the Swarm first (docker swarm leave on it), or remove it with --force"))
            }
            Err(error) => Err(trouble::error(format!("node \"{id:.70}\""), "remove it", &error)),
        }
    }

    /// Changes availability, role and labels in the Swarm itself. Returns when what is known shows it: a list that was asked
    /// for before would say afterwards that nothing was changed.
    pub async fn update(&self, id: &str, update: &NodeUpdate) -> Result<()> {
        // Force is for whoever moves replicas, not for the Swarm.
        if (NodeUpdate { force: false, ..update.clone() }) == NodeUpdate::default() {
            return Ok(());
        }
        self.change(id, update).await?;
        let (shown, seen) = oneshot::channel();
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner).push(shown);
        self.asked.notify_one();
        // One may be under way, which shows nothing yet. That it could not be read does not undo the change.
        let _ = tokio::time::timeout(2 * LIST_WITHIN, seen).await;
        Ok(())
    }

    async fn change(&self, id: &str, update: &NodeUpdate) -> Result<()> {
        let subject = || format!("node \"{id:.70}\"");
        for _ in 0..ATTEMPTS {
            let node = self.docker.inspect_node(id).await;
            let node = node.map_err(|error| trouble::error(subject(), "look it up", &error))?;
            let version = node.version.and_then(|version| version.index).unwrap_or_default();
            let mut spec = node.spec.unwrap_or_default();
            if let Some(availability) = update.availability {
                spec.availability = Some(match availability {
                    Availability::Active => NodeSpecAvailabilityEnum::ACTIVE,
                    Availability::Pause => NodeSpecAvailabilityEnum::PAUSE,
                    Availability::Drain => NodeSpecAvailabilityEnum::DRAIN,
                });
            }
            if let Some(role) = update.role {
                spec.role = Some(match role {
                    Role::Manager => NodeSpecRoleEnum::MANAGER,
                    Role::Worker => NodeSpecRoleEnum::WORKER,
                });
            }
            let labels = spec.labels.get_or_insert_default();
            labels.extend(update.label_add.clone());
            for key in &update.label_rm {
                labels.remove(key);
            }
            let options = UpdateNodeOptions { version: i64::try_from(version).unwrap_or_default() };
            match self.docker.update_node(id, spec, options).await {
                Ok(()) => return Ok(()),
                Err(error) if trouble::said(&error).contains("out of sequence") => {}
                Err(error) => return Err(trouble::error(subject(), "change it", &error)),
            }
        }
        Err(Error::new(crate::model::Kind::Conflict, subject(), "is changed by others all the time").retry(true))
    }
}

async fn changed_agents(agents: &mut Option<watch::Receiver<Arc<BTreeMap<NodeId, Agent>>>>) {
    match agents {
        Some(agents) => drop(agents.changed().await),
        None => std::future::pending().await,
    }
}

// Whom to ask for a node: some of those whose agents are there, for each node others, so that they share the work.
fn witnesses(node: &Node, listed: &[Node], own: &str, agents: &BTreeMap<NodeId, Agent>) -> Vec<NodeId> {
    let connected = |other: &&Node| agents.get(&other.id).is_some_and(|agent| agent.connected);
    let others = listed.iter().filter(|other| other.id != node.id && *other.id != *own).filter(connected);
    let mut others: Vec<NodeId> = others.map(|other| other.id.clone()).collect();
    others.sort();
    let next = others.partition_point(|other| *other < node.id);
    let start = next % others.len().max(1);
    others.rotate_left(start);
    others.truncate(WITNESSES.0);
    others
}

// Whether one of them reaches it; the first that does is enough.
async fn inquire(hosts: Arc<dyn Hosts>, node: Node, witnesses: Vec<NodeId>) -> (NodeId, Instant, bool) {
    let started = Instant::now();
    let Some(address) = node.address else { return (node.id, started, false) };
    let timeout = units::Duration::from(WITNESSES.1);
    let ask = ReachAsk { address, port: GOSSIP, timeout };
    let mut asked: futures_util::stream::FuturesUnordered<_> =
        witnesses.iter().map(|other| hosts.reach(other, ask)).collect();
    while let Some(reached) = futures_util::StreamExt::next(&mut asked).await {
        // A host whose Docker Engine is just being started anew is there.
        if matches!(reached, Ok(Reached::Yes | Reached::Refused)) {
            return (node.id, started, true);
        }
    }
    drop(asked);
    (node.id, started, false)
}

async fn probe(node: &Node) -> Reached {
    // Without a leader's word on where it is there is nothing to ask.
    let Some(address) = node.address else { return Reached::Yes };
    let timeout = units::Duration::from(PROBE);
    ReachAsk { address, port: GOSSIP, timeout }.reach().await
}

/// The nodes as their Swarm lists them.
pub async fn list(docker: &Docker) -> Result<Vec<Node>> {
    let nodes = docker.list_nodes(None::<ListNodesOptions>).await;
    let nodes = nodes.map_err(|error| trouble::error("Swarm", "list its nodes", &error))?;
    Ok(nodes.into_iter().filter_map(|node| described(&node)).collect())
}

fn described(node: &SwarmNode) -> Option<Node> {
    let description = node.description.clone().unwrap_or_default();
    let spec = node.spec.clone().unwrap_or_default();
    let status = node.status.clone().unwrap_or_default();
    let id = node.id.as_deref()?;
    let mut described = Node::new(id, description.hostname.as_deref().unwrap_or(id));
    described.role = match spec.role {
        Some(NodeSpecRoleEnum::MANAGER) => Role::Manager,
        _ => Role::Worker,
    };
    described.availability = match spec.availability {
        Some(NodeSpecAvailabilityEnum::DRAIN) => Availability::Drain,
        Some(NodeSpecAvailabilityEnum::PAUSE) => Availability::Pause,
        _ => Availability::Active,
    };
    // A Swarm that has just changed its leader does not know of any node yet; whether one answers is seen by asking it.
    described.state = match status.state {
        Some(SwarmState::READY | SwarmState::UNKNOWN) => NodeState::Ready,
        _ => NodeState::Down,
    };
    let as_manager = node.manager_status.as_ref().and_then(|manager| manager.addr.as_deref());
    let as_manager = as_manager.and_then(|address| address.parse::<SocketAddr>().ok()).map(|address| address.ip());
    let address = status.addr.as_deref().and_then(|address| address.parse::<IpAddr>().ok());
    described.address = address.filter(|address| !address.is_unspecified()).or(as_manager);
    if let Some(platform) = description.platform {
        described.os = platform.os.unwrap_or(described.os);
        described.arch = platform.architecture.unwrap_or(described.arch);
    }
    if let Some(resources) = description.resources {
        described.cpu = Cpu(u32::try_from(resources.nano_cpus.unwrap_or_default() / 1_000_000).unwrap_or_default());
        described.memory = Bytes(u64::try_from(resources.memory_bytes.unwrap_or_default()).unwrap_or_default());
    }
    described.labels = spec.labels.unwrap_or_default().into_iter().collect();
    let engine = description.engine.and_then(|engine| engine.labels).unwrap_or_default();
    described.engine_labels = engine.into_iter().collect();
    Some(described)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn others_are_asked_and_not_always_the_same() {
        let node = |id: &str| Node::new(id, id);
        let listed: Vec<Node> = ["a", "b", "c", "d", "e", "f"].iter().map(|id| node(id)).collect();
        let agent = |connected| Agent { connected, ..Agent::default() };
        let agents = listed.iter().map(|node| (node.id.clone(), agent(*node.id != *"e"))).collect();
        let names = |of: &str| -> Vec<String> {
            witnesses(&node(of), &listed, "a", &agents).iter().map(ToString::to_string).collect()
        };
        assert_eq!(names("b"), ["c", "d", "f"], "not this host, nor one without an agent");
        assert_eq!(names("d"), ["f", "b", "c"]);
        assert!(witnesses(&node("b"), &listed[..2], "a", &agents).is_empty());
    }

    #[test]
    fn after_a_change_of_leader_nodes_are_not_down() {
        let state = |state: &str| {
            let node = serde_json::json!({ "ID": "x", "Status": { "State": state, "Addr": "10.0.0.1" } });
            described(&serde_json::from_value(node).unwrap()).unwrap().state
        };
        assert_eq!(["ready", "unknown"].map(state), [NodeState::Ready; 2]);
        assert_eq!(["down", "disconnected"].map(state), [NodeState::Down; 2]);
    }
}
