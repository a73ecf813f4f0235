//! The balancers of all hosts, as one: a table is taken when every one that can be reached follows it.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use futures_util::future::join_all;
use tokio::sync::watch;

use super::hub::{Hub, QUICK};
use super::protocol::Ask;
use crate::engines::hosts::Hosts;
use crate::model::id::NodeId;
use crate::model::node::{Node, NodeState};
use crate::model::{Error, Result};
use crate::network::balancer::Balancer;
use crate::network::table::{Status, Table};

/// How long an agent has to take a table over: it may be large, and the way slow. One that is gone is known sooner.
const TABLE: Duration = Duration::from_secs(10);

/// How many tables a host may be ahead of, and how far: versions begin at the wall clock's milliseconds.
const AHEAD: u32 = 3;
const FARTHEST: u64 = 100 * 365 * 24 * 3600 * 1000;

/// Speaks to all of them.
pub struct Fleet {
    hub: Arc<Hub>,
    nodes: watch::Receiver<Arc<Vec<Node>>>,
    own: NodeId,
    leads: Box<dyn Fn() -> bool + Send + Sync>,
    // The version of the last table.
    sent: u64,
    // How many tables in a row a host has answered with a later version than was sent.
    ahead: BTreeMap<String, u32>,
}

impl Fleet {
    /// `own`: the node of this daemon, whose balancer has to be there; `leads`: whether this daemon may say anything.
    pub fn new(
        hub: Arc<Hub>,
        nodes: watch::Receiver<Arc<Vec<Node>>>,
        own: &str,
        leads: impl Fn() -> bool + Send + Sync + 'static,
    ) -> Self {
        Fleet { hub, nodes, own: own.into(), leads: Box::new(leads), sent: 0, ahead: BTreeMap::new() }
    }

    async fn ask(&mut self, ask: Ask) -> Result<Status> {
        if !(self.leads)() {
            let message = "cannot prove that it leads, and so does nothing";
            return Err(Error::new(crate::model::Kind::Unavailable, "this daemon", message).retry(true));
        }
        let patience = if matches!(ask, Ask::Table(_)) { TABLE } else { QUICK };
        let nodes = self.nodes.borrow().clone();
        let nodes: BTreeMap<&NodeId, &Node> = nodes.iter().map(|node| (&node.id, node)).collect();
        let agents = self.hub.agents().borrow().clone();
        // Also on a node that is down: where only the Docker Engine is, the balancer goes on.
        let hub = &self.hub;
        let answers = agents.keys().map(|node| {
            let ask = ask.clone();
            async move { (node, hub.ask::<Status>(node, ask, patience).await) }
        });
        let mut all = Vec::new();
        for (node, answer) in join_all(answers).await {
            let known = nodes.get(node);
            let name = known.map_or_else(|| node.to_string(), |node| node.hostname.clone());
            match answer {
                Err(error) if *node == self.own => return Err(error),
                // Nobody reaches it, so its balancer sends nobody anywhere.
                Err(_) if known.is_none_or(|node| node.state == NodeState::Down) => {}
                answer => all.push((name, answer)),
            }
        }
        self.doubt(&mut all);
        Ok(together(all, self.sent))
    }
}

impl Fleet {
    // A table overtakes one that another daemon has sent. Whoever is ahead for ever does not follow, and is nobody to wait for.
    fn doubt(&mut self, all: &mut [(String, Result<Status>)]) {
        for (name, answer) in all {
            let version = answer.as_ref().map_or(0, |status| status.version);
            if version <= self.sent {
                self.ahead.remove(name);
                continue;
            }
            let times = self.ahead.entry(name.clone()).or_default();
            *times = times.saturating_add(1);
            if *times > AHEAD || version - self.sent > FARTHEST {
                let message = format!("its balancer has table {version}, and not {}", self.sent);
                *answer = Err(Error::new(crate::model::Kind::Conflict, format!("node \"{name}\""), message));
            }
        }
    }
}

// What several say, as one would say it. Its version is the one that was sent only if all who answer have that one: else
// the highest, which a new table has to pass, or none at all.
fn together(all: Vec<(String, Result<Status>)>, sent: u64) -> Status {
    let mut whole = Status::default();
    let versions: BTreeSet<u64> = all.iter().filter_map(|(_, answer)| Some(answer.as_ref().ok()?.version)).collect();
    whole.version = match versions.last() {
        Some(highest) if *highest > sent || versions.len() == 1 => *highest,
        _ => 0,
    };
    for (name, answer) in all {
        let status = match answer {
            Ok(status) => status,
            Err(error) => {
                whole.missing.insert(name, error.to_string());
                continue;
            }
        };
        whole.pid = whole.pid.max(status.pid);
        whole.accepted = whole.accepted.saturating_add(status.accepted);
        whole.refused = whole.refused.saturating_add(status.refused);
        for (task, count) in status.connections {
            let open = whole.connections.entry(task).or_default();
            *open = open.saturating_add(count);
        }
        whole.unrouted = whole.unrouted.saturating_add(status.unrouted);
        whole.malformed = whole.malformed.saturating_add(status.malformed);
        for (route, passed) in status.routes {
            whole.routes.entry(route).or_default().add(&passed);
        }
        for (port, flowed) in status.ports {
            whole.ports.entry(port).or_default().add(&flowed);
        }
        for (task, carried) in status.backends {
            whole.backends.entry(task).or_default().add(&carried);
        }
        for (listener, why) in status.failed {
            let why = format!("on node \"{name}\": {why}");
            whole.failed.entry(listener).and_modify(|all| *all = format!("{all}; {why}")).or_insert(why);
        }
    }
    whole
}

#[async_trait]
impl Balancer for Fleet {
    // Others may have the table of a daemon that led before.
    fn is_left_over(&self) -> bool {
        true
    }

    async fn push(&mut self, table: &Table) -> Result<Status> {
        self.sent = table.version;
        self.ask(Ask::Table(table.clone())).await
    }

    async fn status(&mut self) -> Result<Status> {
        self.ask(Ask::Balancer).await
    }

    async fn gone(&mut self) {
        self.hub.stirred.notified().await;
    }

    async fn stop(&mut self) -> Result<()> {
        self.ask(Ask::StopBalancer).await.map(drop)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::Kind;
    use crate::model::id::TaskId;

    #[test]
    fn several_as_one() {
        let task = TaskId::numbered(1);
        let status = |version: u64, connections: u32, failed: &str| Status {
            version,
            connections: [(task, connections)].into(),
            failed: (!failed.is_empty()).then(|| ("web/http".to_owned(), failed.to_owned())).into_iter().collect(),
            ..Status::default()
        };
        let away = || Err(Error::new(Kind::Unavailable, "agent", "is not connected"));
        let all = vec![
            ("n1".to_owned(), Ok(status(7, 1, ""))),
            ("n2".to_owned(), Ok(status(7, 2, "port 80 is taken"))),
            ("n3".to_owned(), Ok(status(7, 0, "no right to bind"))),
            ("n4".to_owned(), away()),
        ];
        let whole = together(all, 7);
        assert_eq!((whole.version, whole.connections[&task]), (7, 3));
        assert_eq!(whole.failed["web/http"], "on node \"n2\": port 80 is taken; on node \"n3\": no right to bind");
        assert_eq!(whole.missing.keys().collect::<Vec<_>>(), ["n4"]);
        // One that was started anew, one with the table before, one that another daemon gave a later table.
        let versions = |second| {
            together(vec![("a".into(), Ok(status(7, 0, ""))), ("b".into(), Ok(status(second, 0, "")))], 7).version
        };
        assert_eq!([0, 6, 7, 9].map(versions), [0, 0, 7, 9]);
    }
}
