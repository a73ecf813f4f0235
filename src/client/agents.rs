//! Agents on all workers at once: as one service of the Swarm, or by the command that each host needs.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::json;

use super::kv::{ValueKind, ValueSet};
use super::{Apply, Cluster, Only};
use crate::model::name::Name;
use crate::model::node::{Node, NodeState, Role};
use crate::model::units::Bytes;
use crate::model::{Error, Kind, Result};

/// The service's name where none is given.
pub const SERVICE: &str = "neap-agent";
/// The secret that lets them in.
const TOKEN: &str = "neap-agent/token";
/// The file that an agent reads it from.
const TOKEN_FILE: &str = "token";
/// How often it is looked whether the last agent is gone, and how many times.
const LOOK: std::time::Duration = std::time::Duration::from_millis(500);
const PATIENCE: u32 = 120;

/// What is wanted.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct AgentsAsk {
    /// An image that every host can pull, with this program in it.
    pub image: String,
    /// The service's name.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<Name>,
    /// Where the program is in that image.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub program: Option<String>,
    /// Docker's socket on the hosts.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub docker_socket: Option<String>,
    /// Further constraints, beside that of being a worker without another agent.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub constraints: Vec<String>,
    /// Memory that each may take.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub memory: Option<Bytes>,
}

/// What came of it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Agents {
    /// The service.
    pub service: Name,
    /// The hosts that it is for, by name.
    pub hosts: Vec<String>,
    /// Workers that have an agent of their own already.
    pub others: Vec<String>,
}

/// What an agent in a container lacks, line by line.
pub const LACKS: [&str; 6] = [
    "when its container ends (a new image, a drained node, a restart of Docker) its balancer ends with it: connections \
     through that host's ports break, which an agent of the host itself hands over",
    "a node that is drained loses its agent at once, so that nobody serves the published ports there meanwhile",
    "a port in a replica's own network cannot be asked from there: checks by http or tcp need a published port, or Docker's own",
    "the disk that holds containers is not seen, and so not measured",
    "a host that is to have an agent of its own later (neap join) has to be left out first: install again with \
     --constraint node.hostname!=NAME",
    "it begins only once its image is there: pull it before a rollout of the whole Swarm",
];

/// Workers that nobody acts on, and those that have an agent; both by name.
pub fn workers(nodes: &[Node]) -> (Vec<&Node>, Vec<&Node>) {
    let mut workers: Vec<&Node> = nodes.iter().filter(|node| node.role == Role::Worker).collect();
    workers.sort_by(|one, other| one.hostname.cmp(&other.hostname));
    workers.into_iter().partition(|node| node.agent.is_none())
}

/// Makes the service, or brings it to what is asked now: the token in it is the present one.
pub async fn install(cluster: &dyn Cluster, ask: AgentsAsk) -> Result<Agents> {
    let subject = || "agents".to_owned();
    if ask.image.trim().is_empty() {
        return Err(Error::invalid(subject(), "image: which one is not said").help(
            "name one that every host can pull and that has neap in it; or run what `neap cluster agents` prints",
        ));
    }
    let ticket = cluster.join_ticket(Role::Worker, false).await?;
    if ticket.addresses.is_empty() {
        return Err(Error::new(Kind::Unavailable, subject(), "where they join is not known yet").retry(true));
    }
    let service = match ask.name {
        Some(name) => name,
        None => SERVICE.parse()?,
    };
    let nodes = cluster.nodes().await?;
    let before = cluster.services().await?.into_iter().find(|status| status.service.spec.name == service);
    let mut constraints = vec!["node.role == worker".to_owned()];
    let others: Vec<String>;
    match &before {
        Some(status) if !is_ours(&status.service.spec.labels) => {
            return Err(Error::new(Kind::Conflict, subject(), format!("service \"{service}\" is another one"))
                .help("give the agents' service another name"));
        }
        // Whoever has an agent by now may have it of this service.
        Some(status) => {
            let kept = status.service.spec.constraints.iter().map(ToString::to_string);
            let kept: Vec<String> = kept.filter(|one| one.starts_with(NOT)).collect();
            others = kept.iter().filter_map(|one| one.strip_prefix(NOT)).map(str::to_owned).collect();
            constraints.extend(kept);
        }
        None => {
            let own = workers(&nodes).1;
            others = own.iter().map(|node| node.hostname.clone()).collect();
            constraints.extend(own.iter().map(|node| format!("{NOT}{}", node.hostname)));
        }
    }
    constraints.extend(ask.constraints);
    // Services that use it are rolled out by the apply below, once.
    let set = ValueSet { value: ticket.token, no_rollout: true, ..ValueSet::default() };
    cluster.set_value(ValueKind::Secret, TOKEN, set).await?;
    let program = ask.program.unwrap_or_else(|| "neap".into());
    let mut words = vec!["agent".to_owned(), "--data".into(), "/var/lib/neap".into()];
    words.extend(["--token-file".into(), format!("/run/secrets/{TOKEN_FILE}")]);
    words.extend(ticket.addresses.iter().flat_map(|address| ["--join".to_owned(), address.clone()]));
    let socket = ask.docker_socket.unwrap_or_else(|| "/var/run/docker.sock".into());
    let mut spec = json!({
        "name": service,
        "image": ask.image,
        "engine_native": true,
        "mode": "global",
        "entrypoint": [program],
        "command": words,
        "env": { "NEAP_DOCKER_HOST": "unix:///var/run/docker.sock", "NEAP_AGENT_SERVICE": service },
        "networks": ["host"],
        "mounts": [
            { "type": "bind", "source": socket, "target": "/var/run/docker.sock" },
            { "type": "volume", "source": SERVICE, "target": "/var/lib/neap" },
        ],
        "secrets": { TOKEN_FILE: TOKEN },
        "constraints": constraints,
        "labels": { OURS: "agents" },
    });
    if let Some(memory) = ask.memory {
        spec["limits"] = json!({ "memory": memory });
    }
    cluster.apply(Apply { service: spec, with: None, only: Only::default(), auth: None }).await?;
    let hosts = nodes.iter().filter(|node| node.role == Role::Worker && node.state == NodeState::Ready);
    let hosts = hosts.map(|node| node.hostname.clone()).filter(|host| !others.contains(host));
    let hosts = std::collections::BTreeSet::from_iter(hosts).into_iter().collect();
    Ok(Agents { service, hosts, others })
}

const OURS: &str = "neap.part";
/// Before the name of a host that has an agent of its own.
const NOT: &str = "node.hostname != ";

fn is_ours(labels: &std::collections::BTreeMap<String, String>) -> bool {
    labels.get(OURS).is_some_and(|part| part == "agents")
}

/// Removes that service with its secret, and forgets the agents that it was.
pub async fn remove(cluster: &dyn Cluster, name: Option<&Name>) -> Result<Name> {
    let service = match name {
        Some(name) => name.clone(),
        None => SERVICE.parse()?,
    };
    let status = cluster.service(service.as_str()).await?;
    if !is_ours(&status.service.spec.labels) {
        return Err(Error::new(Kind::Conflict, status.service.spec.subject(), "is no service of agents"));
    }
    // Those that are its own, as they say themselves: others stay.
    let is_of_it =
        |node: &&Node| node.agent.as_ref().is_some_and(|agent| agent.service.as_deref() == Some(service.as_str()));
    let nodes = cluster.nodes().await?;
    let own: Vec<&Node> = nodes.iter().filter(is_of_it).collect();
    cluster.remove(service.as_str()).await?;
    // Until the last task is gone the secret is in use, and an agent that is forgotten would come again.
    let mut tried = 0;
    loop {
        match cluster.remove_value(ValueKind::Secret, TOKEN).await {
            Err(error) if error.kind == Kind::Conflict && tried < PATIENCE => {
                tried += 1;
                tokio::time::sleep(LOOK).await;
            }
            Err(error) if error.kind != Kind::NotFound => return Err(error),
            _ => break,
        }
    }
    for node in own {
        match cluster.forget_agent(&node.id).await {
            Err(error) if error.kind != Kind::NotFound => return Err(error),
            _ => {}
        }
    }
    Ok(service)
}
