//! The routes for nodes, and for hosts that are to become some.

use super::routes::{route, schema};
use super::{Answer, Call, Route, json};
use crate::client::agents::{self, Agents, AgentsAsk};
use crate::client::members::JoinTicket;
use crate::model::node::{ImagePrune, Node, NodeUpdate, PrunedImages, Role};
use crate::model::stats::NodeStats;
use crate::model::swarm::{SwarmAsk, SwarmState};
use crate::model::{Error, Result, strict};

const CONTAINERS: &[(&str, &str)] = &[("containers", "true: each container as well")];

/// All of them.
pub fn all() -> Vec<Route> {
    use crate::model::right::Role::{Admin, Viewer};
    vec![
        Route {
            response: schema::<Vec<Node>>(),
            standing: Some(|_, standing| json(&standing.nodes())),
            ..route("GET", "/v1/nodes", "All nodes", Viewer, |call| Box::pin(nodes(call)))
        },
        Route {
            query: CONTAINERS,
            response: schema::<Vec<NodeStats>>(),
            ..route(
                "GET",
                "/v1/stats/nodes",
                "What all nodes have and use, measured within the last seconds",
                Viewer,
                |call| Box::pin(all_stats(call)),
            )
        },
        Route {
            query: CONTAINERS,
            response: schema::<Vec<NodeStats>>(),
            ..route("GET", "/v1/nodes/{name}/stats", "The same of one node, as a list of one", Viewer, |call| {
                Box::pin(node_stats(call))
            })
        },
        Route {
            change: Some("node.update"),
            request: schema::<NodeUpdate>(),
            response: schema::<Node>(),
            ..route("PATCH", "/v1/nodes/{name}", "Changes a node's availability, role and labels", Admin, |call| {
                Box::pin(update_node(call))
            })
        },
        Route {
            change: Some("node.remove"),
            query: &[("force", "true: also one that is not down")],
            ..route("DELETE", "/v1/nodes/{name}", "Takes a node out of the cluster", Admin, |call| {
                Box::pin(remove_node(call))
            })
        },
        Route {
            change: Some("node.prune_images"),
            request: schema::<ImagePrune>(),
            response: schema::<PrunedImages>(),
            ..route(
                "POST",
                "/v1/nodes/{name}/prune-images",
                "Removes images that nothing uses; what services run or could go back to stays",
                Admin,
                |call| Box::pin(prune_images(call)),
            )
        },
        Route {
            change: Some("agent.forget"),
            ..route(
                "DELETE",
                "/v1/nodes/{name}/agent",
                "Forgets a node's agent; another may take its place",
                Admin,
                |call| Box::pin(forget_agent(call)),
            )
        },
        Route {
            change: Some("agents.install"),
            request: schema::<AgentsAsk>(),
            response: schema::<Agents>(),
            ..route(
                "POST",
                "/v1/cluster/agents",
                "Puts an agent on each worker, as a service of the Swarm",
                Admin,
                |call| Box::pin(install_agents(call)),
            )
        },
        Route {
            change: Some("agents.remove"),
            query: &[("name", "the service, where it is not neap-agent")],
            ..route("DELETE", "/v1/cluster/agents", "Removes that service, and forgets its agents", Admin, |call| {
                Box::pin(remove_agents(call))
            })
        },
        Route {
            response: schema::<JoinTicket>(),
            ..route(
                "GET",
                "/v1/join-tokens/{name}",
                "What lets a host in as worker or manager: the token, and where to join",
                Admin,
                |call| Box::pin(join_ticket(call)),
            )
        },
        Route {
            change: Some("join-token.rotate"),
            response: schema::<JoinTicket>(),
            ..route(
                "POST",
                "/v1/join-tokens/{name}/rotate",
                "Makes a join token anew; the one before lets nobody in any more",
                Admin,
                |call| Box::pin(rotate_join_token(call)),
            )
        },
        Route {
            response: schema::<SwarmState>(),
            ..route("GET", "/v1/swarm", "The Swarm as a whole, without the key of its managers", Viewer, |call| {
                Box::pin(swarm(call))
            })
        },
        Route {
            response: schema::<SwarmState>(),
            ..route("GET", "/v1/swarm/unlock-key", "The same with that key", Admin, |call| Box::pin(unlock_key(call)))
        },
        Route {
            change: Some("swarm.update"),
            request: schema::<SwarmAsk>(),
            response: schema::<SwarmState>(),
            ..route(
                "POST",
                "/v1/swarm",
                "Makes the Swarm's authority or unlock key anew, or locks its managers",
                Admin,
                |call| Box::pin(update_swarm(call)),
            )
        },
    ]
}

async fn swarm(call: Call) -> Result<Answer> {
    json(&call.api.cluster.swarm(SwarmAsk::Show {}).await?)
}

async fn unlock_key(call: Call) -> Result<Answer> {
    json(&call.api.cluster.swarm(SwarmAsk::UnlockKey {}).await?)
}

async fn update_swarm(call: Call) -> Result<Answer> {
    let ask: SwarmAsk = strict::read("swarm", &call.body)?;
    json(&call.api.cluster.swarm(ask).await?)
}

async fn install_agents(call: Call) -> Result<Answer> {
    let ask: AgentsAsk = strict::read("agents", &call.body)?;
    json(&agents::install(&*call.api.cluster, ask).await?)
}

async fn remove_agents(call: Call) -> Result<Answer> {
    let name = call.query.get("name").map(|name| name.parse()).transpose()?;
    json(&agents::remove(&*call.api.cluster, name.as_ref()).await?)
}

// Whoever is confined to names that begin so sees the containers of those services alone.
fn seen(call: &Call, mut all: Vec<NodeStats>) -> Vec<NodeStats> {
    let prefix = &call.principal.prefix;
    for stats in all.iter_mut().filter(|_| !prefix.is_empty()) {
        stats.containers.retain(|one| one.task.as_ref().is_some_and(|task| task.starts_with(prefix.as_str())));
    }
    all
}

async fn all_stats(call: Call) -> Result<Answer> {
    json(&seen(&call, call.api.cluster.node_stats(None, call.flag("containers")?).await?))
}

async fn node_stats(call: Call) -> Result<Answer> {
    json(&seen(&call, call.api.cluster.node_stats(Some(call.name()), call.flag("containers")?).await?))
}

async fn nodes(call: Call) -> Result<Answer> {
    json(&call.api.cluster.nodes().await?)
}

async fn remove_node(call: Call) -> Result<Answer> {
    json(&call.api.cluster.remove_node(call.name(), call.flag("force")?).await?)
}

async fn update_node(call: Call) -> Result<Answer> {
    let update: NodeUpdate = strict::read("node", &call.body)?;
    json(&call.api.cluster.update_node(call.name(), update).await?)
}

async fn prune_images(call: Call) -> Result<Answer> {
    let ask: ImagePrune = strict::read("prune", &call.body)?;
    json(&call.api.cluster.prune_images(call.name(), ask).await?)
}

async fn forget_agent(call: Call) -> Result<Answer> {
    json(&call.api.cluster.forget_agent(call.name()).await?)
}

fn role(call: &Call) -> Result<Role> {
    match call.name() {
        "worker" => Ok(Role::Worker),
        "manager" => Ok(Role::Manager),
        other => Err(Error::invalid("join token", format!("role {other:.40?} is neither worker nor manager"))),
    }
}

async fn join_ticket(call: Call) -> Result<Answer> {
    json(&call.api.cluster.join_ticket(role(&call)?, false).await?)
}

async fn rotate_join_token(call: Call) -> Result<Answer> {
    json(&call.api.cluster.join_ticket(role(&call)?, true).await?)
}
