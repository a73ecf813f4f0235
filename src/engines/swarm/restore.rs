//! What others change of our services: `docker service scale` is put right, and a replica of which somebody has changed what
//! it is made of is ended, so that one as its revision says takes its place.

use std::collections::BTreeSet;
use std::sync::PoisonError;
use std::time::Duration;

use serde_json::{Value, json};
use tokio::time::Instant;

use super::Shared;
use crate::engines::docker::{raw, spec};
use crate::engines::{Observed, ObservedState};
use crate::model::clock::Timestamp;
use crate::model::id::{TaskId, sha256_hex};
use crate::model::task::Exit;
use crate::model::{Error, Result};

/// The label with the hash of what the service was made of: only one that is not so any more was changed by others, whichever
/// version of Neap made it, and on whichever host.
pub const SPEC: &str = "neap.spec";
/// So many services are asked for at once.
const AT_ONCE: usize = 100;
/// While tasks are under way services are looked at no more often: each that is made is touched by the Swarm itself.
const SELDOM: Duration = Duration::from_secs(3);
/// What is said of a task.
const SCALED: &str = "its Swarm service was scaled by somebody else, and scaled back";
const CHANGED: &str = "its Swarm service was changed by somebody else; another replica takes its place";

impl Shared {
    /// A service was changed, by whomever.
    pub fn touch(&self, service: &str) {
        self.touched.lock().unwrap_or_else(PoisonError::into_inner).insert(service.to_owned());
    }

    /// Looks at those that were touched, and puts right what is not as it was made. What fails is tried with the next look.
    pub async fn put_right(&self, last: &mut Option<Instant>) -> Result<()> {
        let hurried = self.tasks.under_way() && last.is_some_and(|last| last.elapsed() < SELDOM);
        if hurried || self.touched.lock().unwrap_or_else(PoisonError::into_inner).is_empty() {
            return Ok(());
        }
        *last = Some(Instant::now());
        let touched = std::mem::take(&mut *self.touched.lock().unwrap_or_else(PoisonError::into_inner));
        let touched: Vec<String> = touched.into_iter().collect();
        let mut failed = None;
        for some in touched.chunks(AT_ONCE) {
            // {"id":["...","..."]}
            let ids = some.join("%22%2C%22");
            let path = format!("/services?filters=%7B%22id%22%3A%5B%22{ids}%22%5D%7D");
            match raw::get(&self.address, &self.docker, &path).await {
                Ok(listed) => {
                    for service in listed.as_ref().and_then(Value::as_array).into_iter().flatten() {
                        if let Err(error) = self.look_over(service).await {
                            self.touch(service["ID"].as_str().unwrap_or_default());
                            failed = Some(error);
                        }
                    }
                }
                Err(error) => {
                    some.iter().for_each(|service| self.touch(service));
                    failed = Some(error);
                }
            }
        }
        failed.map_or(Ok(()), Err)
    }

    async fn look_over(&self, service: &Value) -> Result<()> {
        let labels = serde_json::from_value(service["Spec"]["Labels"].clone()).unwrap_or_default();
        let Some(task) = spec::task_of(&labels, &self.cluster) else { return Ok(()) };
        let Some(id) = service["ID"].as_str() else { return Ok(()) };
        let (Some(made), false) = (labels.get(SPEC), service["PreviousSpec"].is_null()) else { return Ok(()) };
        // What has ended is replaced already, and held back by us.
        if self.tasks.place(&task).is_none() || self.tasks.is_forbidden(&task) || self.tasks.is_over(&task) {
            return Ok(());
        }
        let now = &service["Spec"];
        if fingerprint(now) == *made || now["Mode"]["Replicated"]["Replicas"] == 0 {
            return Ok(());
        }
        let mut scaled_back = now.clone();
        scaled_back["Mode"] = json!({ "Replicated": { "Replicas": 1 } });
        if fingerprint(&scaled_back) == *made {
            let version = service["Version"]["Index"].as_u64().unwrap_or_default();
            let path = format!("/services/{id}/update?version={version}&registryAuthFrom=spec");
            raw::call(&self.address, &self.docker, "POST", &path, Some(&scaled_back)).await?;
            tracing::warn!(%task, service = id, "its Swarm service was scaled by somebody else; it is scaled back");
            self.tasks.say(&task, SCALED);
            return Ok(());
        }
        tracing::warn!(%task, service = id, "its Swarm service was changed by somebody else; it is replaced");
        self.end_changed(task, id);
        Ok(())
    }

    // The Swarm has begun to replace its container by one that nobody described: neither is kept.
    fn end_changed(&self, task: TaskId, service: &str) {
        let state = ObservedState::Ended { exit: Exit::Unknown, finished_at: Timestamp(0) };
        self.tasks.report(Observed { task, state, warnings: vec![CHANGED.to_owned()] });
        if self.tasks.begin_hold(&task) {
            self.hold_back(&task, service.to_owned());
        }
    }
}

/// The hash of what a Swarm service is made of and how many there are; labels, and that somebody restarted it, are none of it.
pub fn fingerprint(spec: &Value) -> String {
    let mut parts = json!({ "task": spec["TaskTemplate"], "mode": spec["Mode"], "endpoint": spec["EndpointSpec"] });
    strip(&mut parts);
    let mut digest = sha256_hex(parts.to_string().as_bytes());
    digest.truncate(16);
    digest
}

// Takes out what a Swarm fills in, and networks' names, for which it has their ids. Whether anything is left.
fn strip(value: &mut Value) -> bool {
    match value {
        Value::Null | Value::Bool(false) => false,
        Value::Bool(true) => true,
        Value::Number(number) => number.as_f64() != Some(0.0),
        Value::String(text) => !text.is_empty(),
        Value::Array(items) => {
            for item in &mut *items {
                strip(item);
            }
            !items.is_empty()
        }
        Value::Object(fields) => {
            if let Some(Value::Array(networks)) = fields.get_mut("Networks") {
                networks.iter_mut().filter_map(Value::as_object_mut).for_each(|network| drop(network.remove("Target")));
            }
            // Written so by every Docker Engine, whatever the description of its API says.
            if let Some(check) = fields.remove("HealthCheck") {
                fields.insert("Healthcheck".into(), check);
            }
            fields.retain(|key, field| {
                let is_extra = match key.as_str() {
                    "Isolation" => field == "default",
                    "Runtime" => field == "container",
                    "ForceUpdate" => true,
                    _ => false,
                };
                !is_extra && strip(field)
            });
            !fields.is_empty()
        }
    }
}

/// Services that were touched.
pub type Touched = std::sync::Mutex<BTreeSet<String>>;

/// The fingerprint of what is about to be sent.
pub fn of_request(body: &bollard::models::ServiceSpec) -> Result<String> {
    let body = serde_json::to_value(body).map_err(|error| Error::internal("Swarm service", error.to_string()))?;
    Ok(fingerprint(&body))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_swarm_fills_in_is_no_change() {
        let sent = json!({
            "Name": "web", "Mode": { "Replicated": { "Replicas": 1 } },
            "TaskTemplate": {
                "ContainerSpec": { "Image": "nginx:1", "Env": ["A=1", ""], "HealthCheck": { "Retries": 3 } },
                "Networks": [{ "Target": "front", "Aliases": ["web"] }],
            },
        });
        let stored = |image: &str, memory: i64, replicas: u32| {
            json!({
                "Name": "web", "Labels": { "who": "me" }, "Mode": { "Replicated": { "Replicas": replicas } },
                "TaskTemplate": {
                    "ContainerSpec": {
                        "Image": image, "Env": ["A=1", ""], "Isolation": "default", "DNSConfig": {}, "Init": false,
                        "Healthcheck": { "Retries": 3 },
                    },
                    "Networks": [{ "Target": "xq2j", "Aliases": ["web"] }],
                    "Resources": { "Limits": { "MemoryBytes": memory }, "Reservations": {} },
                    "ForceUpdate": 1, "Runtime": "container",
                },
            })
        };
        assert_eq!(fingerprint(&sent), fingerprint(&stored("nginx:1", 0, 1)));
        assert_ne!(fingerprint(&sent), fingerprint(&stored("nginx:2", 0, 1)));
        assert_ne!(fingerprint(&sent), fingerprint(&stored("nginx:1", 1 << 20, 1)));
        assert_ne!(fingerprint(&sent), fingerprint(&stored("nginx:1", 0, 3)));
    }
}
