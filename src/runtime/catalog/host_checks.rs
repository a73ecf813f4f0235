//! The checks of one host, run on it: what listens on its loopback, or inside its containers, is reached from nowhere else.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;

use super::checks::{Judge, Runs};
use crate::engines::docker::Address;
use crate::model::catalog::{CatalogCheck, CheckKind, CheckStatus, Origin};
use crate::model::clock::Clock;
use crate::network::Network;
use crate::network::catalog::{Catalog, Topic, key};

/// How often it is looked for its own node, and whether somebody else runs the checks now.
const LOOK: Duration = Duration::from_secs(5);
/// How soon, while its node is not known.
const FIND: Duration = Duration::from_millis(200);

/// A host that follows another that leads.
pub trait Host: Send + Sync {
    /// Its name in the catalogue; none: it is not known yet.
    fn name(&self) -> Option<String>;
    /// Whether this process leads by now, and so runs them elsewhere.
    fn leads(&self) -> bool;
    /// Tells whoever leads how a check of this host is.
    fn found(&self, id: &str, status: CheckStatus, output: &str);
    /// Whether commands may be run here.
    fn runs_commands(&self) -> bool;
    /// The Docker Engine of this host.
    fn docker(&self) -> Option<Address>;
    /// Tells that an instance of this host has been critical for too long.
    fn overdue(&self, instance: &str);
}

struct HostChecks {
    host: Arc<dyn Host>,
    catalog: Arc<Catalog>,
    network: Arc<dyn Network>,
    clock: Arc<dyn Clock>,
}

/// Runs them, as the catalogue says, until this process leads itself.
pub fn spawn(host: Arc<dyn Host>, catalog: Arc<Catalog>, network: Arc<dyn Network>, clock: Arc<dyn Clock>) {
    tokio::spawn(async move {
        let judge: Arc<dyn Judge> =
            Arc::new(HostChecks { host: host.clone(), catalog: catalog.clone(), network, clock });
        let runs = Runs::default();
        while !host.leads() {
            let Some(name) = host.name() else {
                runs.keep(&std::collections::BTreeSet::new());
                tokio::time::sleep(FIND).await;
                continue;
            };
            let topic = Topic::Node(key(&name));
            let (index, checks) = catalog.read(|state| {
                let all = state.node(&name).into_iter().flat_map(|entry| entry.checks.values());
                let all = all.map(|known| known.check.clone()).filter(|check| {
                    check.origin != Origin::Catalog && check.run.as_ref().is_some_and(|run| is_of_host(&run.kind))
                });
                (state.index_of(&topic), all.collect::<Vec<_>>())
            });
            runs.keep(&checks.iter().map(|check| (key(&name), check.id.clone())).collect());
            for check in &checks {
                runs.run(&judge, &name, check);
            }
            catalog.wait(&topic, index, LOOK).await;
        }
        runs.keep(&std::collections::BTreeSet::new());
    });
}

fn is_of_host(kind: &CheckKind) -> bool {
    match kind {
        CheckKind::Http(_)
        | CheckKind::Tcp(_)
        | CheckKind::Udp(_)
        | CheckKind::Grpc(_)
        | CheckKind::Command(_)
        | CheckKind::Container { .. } => true,
        CheckKind::Ttl(_) | CheckKind::Alias { .. } | CheckKind::Script(_) => false,
    }
}

#[async_trait]
impl Judge for HostChecks {
    fn catalog(&self) -> &Arc<Catalog> {
        &self.catalog
    }

    fn network(&self) -> &Arc<dyn Network> {
        &self.network
    }

    fn random(&self) -> u64 {
        self.clock.random()
    }

    fn is_here(&self, _: &str, kind: &CheckKind) -> bool {
        is_of_host(kind) && !self.host.leads()
    }

    fn found(&self, node: &str, id: &str, status: CheckStatus, output: &str) {
        // What is known there already is no news. What does not get there is told again behind the next run.
        let is_known = self.catalog.read(|state| {
            let known = state.node(node).and_then(|entry| entry.checks.get(id));
            known.is_some_and(|known| {
                let mut said = CatalogCheck::default();
                said.say(output);
                known.check.status == status && known.check.output == said.output
            })
        });
        if !is_known {
            self.host.found(id, status, output);
        }
    }

    fn runs_commands(&self) -> bool {
        self.host.runs_commands()
    }

    fn docker(&self) -> Option<Address> {
        self.host.docker()
    }

    fn overdue(&self, _: &str, instance: &str) {
        self.host.overdue(instance);
    }

    async fn ask_script(&self, _: &str, _: &str, _: &str, _: Duration) -> Option<(CheckStatus, String)> {
        None
    }
}
