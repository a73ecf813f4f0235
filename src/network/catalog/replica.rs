//! The catalogue of one follows that of another: first all of it, then what changes.

use std::collections::BTreeSet;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use tokio::sync::broadcast;

use super::{Catalog, Key, State, key};
use crate::model::catalog::{CatalogCheck, CatalogNode, Instance};
use crate::model::query::Query;

/// Changes that are said together at most.
const TOGETHER: usize = 256;
/// Entries in one message at most: each is a few hundred bytes, and may come to some 200 KiB.
const PIECE: usize = 200;

/// What a change has to do with.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Touched {
    /// A node.
    Node(Key),
    /// An instance on a node.
    Instance(Key, Arc<str>),
    /// A check on a node.
    Check(Key, Arc<str>),
    /// A prepared query.
    Query(Key),
}

/// What is said to those who follow.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Portion {
    /// Whether it is all that there is.
    pub whole: bool,
    /// Whether there is more of it to come.
    pub more: bool,
    /// The last change that is in what was said so far, counted by the one who says it; 0: others are still to be said.
    pub at: u64,
    /// Nodes as they are.
    pub nodes: Vec<CatalogNode>,
    /// Instances as they are, each on a node.
    pub instances: Vec<(String, Instance)>,
    /// Checks as they are, each on a node.
    pub checks: Vec<(String, CatalogCheck)>,
    /// Prepared queries as they are.
    pub queries: Vec<Query>,
    /// Nodes that are gone, with all that was on them.
    pub gone_nodes: Vec<String>,
    /// Instances that are gone.
    pub gone_instances: Vec<(String, String)>,
    /// Checks that are gone.
    pub gone_checks: Vec<(String, String)>,
    /// Queries that are gone.
    pub gone_queries: Vec<String>,
}

impl Portion {
    fn join(&mut self, other: Portion) {
        self.whole |= other.whole;
        self.at = other.at;
        self.nodes.extend(other.nodes);
        self.instances.extend(other.instances);
        self.checks.extend(other.checks);
        self.queries.extend(other.queries);
        self.gone_nodes.extend(other.gone_nodes);
        self.gone_instances.extend(other.gone_instances);
        self.gone_checks.extend(other.gone_checks);
        self.gone_queries.extend(other.gone_queries);
    }

    /// Puts pieces together; the whole once it is there.
    pub fn gather(&mut self, piece: Portion) -> Option<Portion> {
        let more = piece.more;
        self.join(piece);
        (!more).then(|| std::mem::take(self))
    }

    /// In pieces that are not too large for one message.
    pub fn pieces(mut self) -> Vec<Portion> {
        fn cut<T>(all: &mut Vec<T>, room: &mut usize) -> Vec<T> {
            let rest = all.split_off(all.len().min(*room));
            *room -= all.len();
            std::mem::replace(all, rest)
        }
        let mut pieces = Vec::new();
        loop {
            let mut room = PIECE;
            let mut piece = Portion { whole: self.whole, ..Portion::default() };
            piece.nodes = cut(&mut self.nodes, &mut room);
            piece.instances = cut(&mut self.instances, &mut room);
            piece.checks = cut(&mut self.checks, &mut room);
            piece.queries = cut(&mut self.queries, &mut room);
            piece.gone_nodes = cut(&mut self.gone_nodes, &mut room);
            piece.gone_instances = cut(&mut self.gone_instances, &mut room);
            piece.gone_checks = cut(&mut self.gone_checks, &mut room);
            piece.gone_queries = cut(&mut self.gone_queries, &mut room);
            piece.more = room == 0;
            let is_last = !piece.more;
            if is_last {
                piece.at = self.at;
            }
            pieces.push(piece);
            if is_last {
                return pieces;
            }
        }
    }
}

/// Follows a catalogue.
pub struct Subscription {
    catalog: Arc<Catalog>,
    changes: Option<broadcast::Receiver<Arc<BTreeSet<Touched>>>>,
}

impl Subscription {
    /// From now on.
    pub fn new(catalog: Arc<Catalog>) -> Self {
        Subscription { catalog, changes: None }
    }

    /// All of it; from the second time on what has changed since. Nothing once the catalogue is no more.
    pub async fn next(&mut self) -> Option<Portion> {
        let Some(changes) = &mut self.changes else { return Some(self.begin()) };
        let mut touched = BTreeSet::new();
        match changes.recv().await {
            Ok(more) => touched.extend(more.iter().cloned()),
            // More than is kept for one that is slow: from the beginning.
            Err(broadcast::error::RecvError::Lagged(_)) => return Some(self.begin()),
            Err(broadcast::error::RecvError::Closed) => return None,
        }
        for _ in 0..TOGETHER {
            match changes.try_recv() {
                Ok(more) => touched.extend(more.iter().cloned()),
                Err(broadcast::error::TryRecvError::Lagged(_)) => return Some(self.begin()),
                Err(_) => break,
            }
        }
        // Changes are said under the lock that keeps this from being read: what is not said yet is in the queue.
        Some(self.catalog.read(|state| {
            let at = if changes.is_empty() { state.index } else { 0 };
            Portion { at, ..portion(state, touched) }
        }))
    }

    fn begin(&mut self) -> Portion {
        // Before it is read, so that nothing falls between the two.
        self.changes = Some(self.catalog.changes.subscribe());
        self.catalog.read(whole)
    }
}

fn whole(state: &State) -> Portion {
    let mut all = Portion { whole: true, at: state.index, ..Portion::default() };
    for entry in state.nodes() {
        let name = &entry.node.name;
        all.nodes.push(CatalogNode::clone(&entry.node));
        all.instances.extend(entry.instances.values().map(|known| (name.clone(), Instance::clone(&known.instance))));
        all.checks.extend(entry.checks.values().map(|known| (name.clone(), CatalogCheck::clone(&known.check))));
    }
    all.queries = state.queries.all().map(|query| Query::clone(query)).collect();
    all
}

fn portion(state: &State, touched: BTreeSet<Touched>) -> Portion {
    let mut part = Portion::default();
    for touched in touched {
        match touched {
            Touched::Node(node) => match state.node(&node) {
                Some(entry) => part.nodes.push(CatalogNode::clone(&entry.node)),
                None => part.gone_nodes.push(node.to_string()),
            },
            Touched::Instance(node, id) => match state.instance(&node, &id) {
                Some(found) => {
                    part.instances.push((found.node.node.name.clone(), Instance::clone(&found.entry.instance)));
                }
                None => part.gone_instances.push((node.to_string(), id.to_string())),
            },
            Touched::Check(node, id) => match state.node(&node).and_then(|entry| Some((entry, entry.checks.get(&id)?)))
            {
                Some((entry, known)) => {
                    part.checks.push((entry.node.name.clone(), CatalogCheck::clone(&known.check)));
                }
                None => part.gone_checks.push((node.to_string(), id.to_string())),
            },
            Touched::Query(id) => match state.queries.by_id(&id) {
                Some(query) => part.queries.push(Query::clone(query)),
                None => part.gone_queries.push(id.to_string()),
            },
        }
    }
    part
}

impl Catalog {
    /// Brings it to what another one is, in one step for all who look.
    pub fn take(&self, mut portion: Portion) {
        self.change(|draft| {
            if portion.whole {
                surplus(draft.state(), &mut portion);
            }
            for (node, id) in &portion.gone_checks {
                draft.remove_check(node, id);
            }
            for (node, id) in &portion.gone_instances {
                draft.remove_instance(node, id);
            }
            for node in &portion.gone_nodes {
                draft.remove_node(node);
            }
            for id in &portion.gone_queries {
                draft.remove_query(id);
            }
            for node in portion.nodes {
                draft.put_node(node);
            }
            for (node, instance) in portion.instances {
                draft.put_instance(&node, instance);
            }
            for (node, check) in portion.checks {
                draft.put_check(&node, check);
            }
            for query in portion.queries {
                if let Err(error) = draft.put_query(query) {
                    tracing::warn!(%error, "a prepared query is left out");
                }
            }
        });
    }
}

// What is here and not there.
fn surplus(state: &State, there: &mut Portion) {
    let nodes: BTreeSet<Key> = there.nodes.iter().map(|node| key(&node.name)).collect();
    let instances: BTreeSet<(Key, &str)> =
        there.instances.iter().map(|(node, instance)| (key(node), instance.id.as_str())).collect();
    let checks: BTreeSet<(Key, &str)> =
        there.checks.iter().map(|(node, check)| (key(node), check.id.as_str())).collect();
    let queries: BTreeSet<Key> = there.queries.iter().map(|query| key(&query.id)).collect();
    let (mut gone_nodes, mut gone_instances, mut gone_checks) = (Vec::new(), Vec::new(), Vec::new());
    for entry in state.nodes() {
        let name = key(&entry.node.name);
        if !nodes.contains(&name) {
            gone_nodes.push(name.to_string());
            continue;
        }
        let lost = entry.instances.keys().filter(|id| !instances.contains(&(name.clone(), &***id)));
        gone_instances.extend(lost.map(|id| (name.to_string(), id.to_string())));
        let lost = entry.checks.keys().filter(|id| !checks.contains(&(name.clone(), &***id)));
        gone_checks.extend(lost.map(|id| (name.to_string(), id.to_string())));
    }
    let gone = state.queries.all().map(|query| key(&query.id)).filter(|id| !queries.contains(id));
    let gone_queries = gone.map(|id| id.to_string()).collect();
    (there.gone_nodes, there.gone_queries) = (gone_nodes, gone_queries);
    (there.gone_instances, there.gone_checks) = (gone_instances, gone_checks);
}
