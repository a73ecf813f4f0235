//! Registers what is on this host in a Consul elsewhere as well: Neap's replicas and the containers that the registrator has
//! found, for whoever still looks there.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use serde_json::{Value, json};

use crate::client::remote::segment;
use crate::model::catalog::{CheckStatus, Origin};
use crate::model::units::{self, Bytes};
use crate::model::{Error, Kind, Result};
use crate::network::catalog::{Catalog, State, Topic, key};
use crate::network::{Network, Request};

/// How often it is looked whether that Consul still has all.
const LOOK: Duration = Duration::from_secs(60);
/// How soon, while this host is not known yet.
const FIND: Duration = Duration::from_millis(500);
/// The wait before it is tried again where that Consul does not answer, and at the longest.
const AGAIN: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(30));
/// How long one request may take, and the largest answer.
const PATIENCE: units::Duration = units::Duration::from_secs(10);
const LARGEST: Bytes = Bytes(64 << 20);
/// By this entry of an instance's table it is known whose it is.
const MARK: &str = "neap_host";

/// An instance as that Consul is told of it.
#[derive(Debug, Clone, PartialEq)]
struct Told {
    body: Value,
    status: CheckStatus,
    said: String,
}

/// A Consul's agent elsewhere.
pub struct Mirror {
    /// Where its API is: `http://127.0.0.1:8500`.
    pub url: String,
    /// What it is shown, where it asks for that.
    pub token: Option<String>,
    /// How it is reached.
    pub network: Arc<dyn Network>,
}

/// Keeps that up for ever. `host`: this host's name in the catalogue, once it is known.
pub async fn follow(mirror: Mirror, catalog: Arc<Catalog>, host: impl Fn() -> Option<String>) {
    let mut known: Option<BTreeMap<String, Told>> = None;
    let mut wait = AGAIN.0;
    let mut failed = false;
    let mut looked = tokio::time::Instant::now();
    loop {
        let Some(name) = host() else {
            tokio::time::sleep(FIND).await;
            continue;
        };
        let topic = Topic::Node(key(&name));
        let (index, wanted) = catalog.read(|state| (state.index_of(&topic), wanted(state, &name)));
        let look = known.is_none() || looked.elapsed() >= LOOK;
        match mirror.bring(&name, known.take().unwrap_or_default(), &wanted, look).await {
            Ok(()) => {
                if look {
                    looked = tokio::time::Instant::now();
                }
                if std::mem::take(&mut failed) {
                    tracing::info!(url = mirror.url, "the Consul elsewhere answers again");
                }
                wait = AGAIN.0;
                known = Some(wanted);
                catalog.wait(&topic, index, LOOK).await;
            }
            Err(error) => {
                if !std::mem::replace(&mut failed, true) {
                    tracing::warn!(%error, "what is on this host is not registered there; it is tried again");
                }
                known = None;
                tokio::time::sleep(wait).await;
                wait = (wait * 2).min(AGAIN.1);
            }
        }
    }
}

// What is to be there, by id.
fn wanted(state: &State, host: &str) -> BTreeMap<String, Told> {
    let Some(entry) = state.node(host) else { return BTreeMap::new() };
    let ours = entry.instances.keys().filter_map(|id| state.instance(host, id));
    let ours = ours.filter(|found| matches!(found.entry.instance.origin, Origin::Task | Origin::Container));
    ours.map(|found| {
        let (instance, status) = (&found.entry.instance, found.status());
        // Of the check that makes it so.
        let said = found.checks().filter(|check| check.check.status == status).map(|check| check.check.output.clone());
        let said = said.max().unwrap_or_default();
        let mut meta = instance.meta.clone();
        meta.insert(MARK.to_owned(), host.to_owned());
        let address = if instance.address.is_empty() { &found.node.node.address } else { &instance.address };
        let body = json!({
            "ID": instance.id,
            "Name": instance.service,
            "Tags": instance.tags,
            "Address": address,
            "Port": instance.port,
            "Meta": meta,
            "Weights": { "Passing": instance.weights.passing, "Warning": instance.weights.warning },
        });
        (instance.id.clone(), Told { body, status, said })
    })
    .collect()
}

fn check_id(id: &str) -> String {
    format!("neap:{id}")
}

impl Mirror {
    // From what it was told to what it is to know; `look`: it is asked what it has, and given what it lacks.
    async fn bring(
        &self,
        host: &str,
        mut known: BTreeMap<String, Told>,
        wanted: &BTreeMap<String, Told>,
        look: bool,
    ) -> Result<()> {
        let mut gone: BTreeSet<String> = known.keys().filter(|id| !wanted.contains_key(*id)).cloned().collect();
        if look {
            let there = self.ours(host).await?;
            known.retain(|id, _| there.contains(id));
            gone.extend(there.into_iter().filter(|id| !wanted.contains_key(id)));
        }
        // Before anything else: nobody is to be sent there any more.
        for id in gone {
            self.put(&format!("/v1/agent/service/deregister/{}", segment(&id)), None).await?;
        }
        for (id, told) in wanted {
            let before = known.get(id);
            if before == Some(told) {
                continue;
            }
            if before.is_none_or(|before| before.body != told.body) {
                let mut body = told.body.clone();
                // Said by whoever knows it, and good until then: nothing goes because this program is started anew.
                body["Check"] = json!({
                    "CheckID": check_id(id), "Name": "as Neap sees it", "TTL": "87600h", "Status": told.status.as_str(),
                });
                self.put("/v1/agent/service/register?replace-existing-checks=true", Some(&body)).await?;
            }
            let update = json!({ "Status": told.status.as_str(), "Output": told.said });
            self.put(&format!("/v1/agent/check/update/{}", segment(&check_id(id))), Some(&update)).await?;
        }
        Ok(())
    }

    // The ids that were registered there by this host.
    async fn ours(&self, host: &str) -> Result<BTreeSet<String>> {
        let answer = self.ask("GET", "/v1/agent/services", None).await?;
        let wrong = |error: serde_json::Error| {
            Error::new(Kind::Unsupported, format!("Consul {}", self.url), "does not answer as one").cause(error)
        };
        let all: BTreeMap<String, Value> = serde_json::from_slice(&answer).map_err(wrong)?;
        Ok(all.into_iter().filter(|(_, service)| service["Meta"][MARK] == host).map(|(id, _)| id).collect())
    }

    async fn put(&self, path: &str, body: Option<&Value>) -> Result<()> {
        self.ask("PUT", path, body).await.map(drop)
    }

    async fn ask(&self, method: &str, path: &str, body: Option<&Value>) -> Result<Vec<u8>> {
        let mut headers = vec![("content-type".to_owned(), "application/json".to_owned())];
        headers.extend(self.token.clone().map(|token| ("x-consul-token".to_owned(), token)));
        let request = Request {
            method: method.to_owned(),
            url: format!("{}{path}", self.url.trim_end_matches('/')),
            headers,
            body: body.map(|body| body.to_string().into_bytes()),
            timeout: PATIENCE,
            max_body: LARGEST,
            cut_off: false,
            any_certificate: false,
            http2: false,
        };
        let answer = self.network.fetch(request).await?;
        let said = String::from_utf8_lossy(&answer.body[..answer.body.len().min(200)]).into_owned();
        match answer.status {
            200..=299 => Ok(answer.body),
            // Gone already.
            404 if path.contains("/deregister/") => Ok(Vec::new()),
            status => Err(Error::new(
                Kind::Unavailable,
                format!("Consul {}", self.url),
                format!("{method} {path}: status {status}: {}", said.trim()),
            )),
        }
    }
}
