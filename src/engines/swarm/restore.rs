//! What others change of our services: `docker service scale` is put right, and a replica of which somebody has changed what
//! it is made of is ended, so that one as its revision says takes its place.

use std::collections::BTreeMap;
use std::sync::PoisonError;
use std::time::Duration;

use serde_json::{Value, json};
use tokio::time::Instant;

use super::Shared;
use crate::engines::docker::{raw, spec};
use crate::model::id::sha256_hex;
use crate::model::{Error, Result};

/// The label with the hash of what the service was made of: only one that is not so any more was changed by others, on
/// whichever host it was made. Before the hash the number of the way in which it is made; of other ways nothing is known.
pub const SPEC: &str = "neap.spec";
const WAY: &str = "1:";
/// So many services are asked for at once.
const AT_ONCE: usize = 100;
/// While tasks are under way services are looked at no more often: each that is made is touched by the Swarm itself.
const SELDOM: Duration = Duration::from_secs(3);
/// What ends within this time of a change may have ended by it.
const LATELY: Duration = Duration::from_secs(60);
/// What is said of a task.
const SCALED: &str = "its Swarm service was scaled by somebody else, and scaled back";
pub const CHANGED: &str = "its Swarm service was changed by somebody else; another replica takes its place";

impl Shared {
    /// A service was changed, by whomever. `told`: an event said so; else it may have been, long ago.
    pub fn touch(&self, service: &str, told: bool) {
        let mut touched = self.touched.lock().unwrap_or_else(PoisonError::into_inner);
        *touched.new.entry(service.to_owned()).or_default() |= told;
        if told {
            touched.lately.insert(service.to_owned(), Instant::now());
        }
    }

    /// Looks at those that were touched, and puts right what is not as it was made. What fails is tried with the next look.
    pub async fn put_right(&self, last: &mut Option<Instant>) -> Result<()> {
        let hurried = self.tasks.under_way() && last.is_some_and(|last| last.elapsed() < SELDOM);
        if hurried || !self.tasks.is_observed() {
            return Ok(());
        }
        let touched = {
            let mut touched = self.touched.lock().unwrap_or_else(PoisonError::into_inner);
            touched.lately.retain(|_, at| at.elapsed() < LATELY);
            std::mem::take(&mut touched.new)
        };
        if touched.is_empty() {
            return Ok(());
        }
        *last = Some(Instant::now());
        let names: Vec<String> = touched.keys().cloned().collect();
        let again = |service: &str| self.touch(service, touched.get(service).copied().unwrap_or_default());
        let mut failed = None;
        for some in names.chunks(AT_ONCE) {
            // {"id":["...","..."]}
            let ids = some.join("%22%2C%22");
            let path = format!("/services?filters=%7B%22id%22%3A%5B%22{ids}%22%5D%7D");
            match raw::get(&self.address, &self.docker, &path).await {
                Ok(listed) => {
                    for service in listed.as_ref().and_then(Value::as_array).into_iter().flatten() {
                        let id = service["ID"].as_str().unwrap_or_default();
                        if let Err(error) = self.look_over(service, id, touched.get(id) == Some(&true)).await {
                            again(id);
                            failed = Some(error);
                        }
                    }
                }
                Err(error) => {
                    some.iter().for_each(|service| again(service));
                    failed = Some(error);
                }
            }
        }
        failed.map_or(Ok(()), Err)
    }

    async fn look_over(&self, service: &Value, id: &str, told: bool) -> Result<()> {
        let labels = serde_json::from_value(service["Spec"]["Labels"].clone()).unwrap_or_default();
        let Some(task) = spec::task_of(&labels, &self.cluster) else { return Ok(()) };
        let now = &service["Spec"];
        let runs = now["Mode"]["Replicated"]["Replicas"] != 0;
        if self.tasks.place(&task).is_none() || self.tasks.is_forbidden(&task) {
            return Ok(());
        }
        // What has ended is replaced already: whoever lets it run again has two.
        if self.tasks.is_over(&task) {
            if runs && !service["PreviousSpec"].is_null() {
                self.hold_back(&task, id.to_owned());
            }
            return Ok(());
        }
        if service["PreviousSpec"].is_null() || !runs {
            return Ok(());
        }
        // One replica is one service, whichever version of Neap made it.
        if now["Mode"]["Replicated"]["Replicas"] != 1 {
            let mut scaled_back = now.clone();
            scaled_back["Mode"] = json!({ "Replicated": { "Replicas": 1 } });
            let version = service["Version"]["Index"].as_u64().unwrap_or_default();
            let path = format!("/services/{id}/update?version={version}&registryAuthFrom=spec");
            raw::call(&self.address, &self.docker, "POST", &path, Some(&scaled_back)).await?;
            tracing::warn!(%task, service = id, "its Swarm service was scaled by somebody else; it is scaled back");
            self.tasks.say(&task, SCALED);
        }
        let Some(made) = labels.get(SPEC) else { return Ok(()) };
        // Long after the fact only what was right before is known to have been changed since.
        if differs(now, made) && (told || !differs(&service["PreviousSpec"], made)) {
            tracing::warn!(%task, service = id, "its Swarm service was changed by somebody else; it is replaced");
            self.tasks.changed(&task, CHANGED);
        }
        Ok(())
    }

    /// Whether a service was changed within the last minute, as far as events told.
    pub fn touched_lately(&self, service: &str) -> bool {
        let touched = self.touched.lock().unwrap_or_else(PoisonError::into_inner);
        touched.lately.get(service).is_some_and(|at| at.elapsed() < LATELY)
    }

    /// Whether somebody else has just changed what a service is made of or how many there are, or has it started again: what
    /// ends then ends by that.
    pub async fn was_changed(&self, service: &str) -> bool {
        if !self.touched_lately(service) {
            return false;
        }
        let Ok(Some(found)) = raw::get(&self.address, &self.docker, &format!("/services/{service}")).await else {
            return false;
        };
        let (now, before) = (&found["Spec"], &found["PreviousSpec"]);
        let differs = now["Labels"][SPEC].as_str().is_some_and(|made| differs(now, made));
        let is_other = |path: &str| now.pointer(path) != before.pointer(path);
        // Scaled back by now, it is as it was: what ends later ends by itself.
        let scaled = now["Mode"]["Replicated"]["Replicas"] != 1;
        !before.is_null() && (differs || is_other("/TaskTemplate/ForceUpdate") || scaled)
    }
}

// Whether it is known not to be what it was made of.
fn differs(spec: &Value, made: &str) -> bool {
    made.starts_with(WAY) && fingerprint(spec) != made
}

/// The hash of what a Swarm service is made of; its labels, how many there are, and that somebody restarted it are none of it.
pub fn fingerprint(spec: &Value) -> String {
    let mut parts = json!({ "task": spec["TaskTemplate"], "endpoint": spec["EndpointSpec"] });
    strip(&mut parts);
    let digest = sha256_hex(parts.to_string().as_bytes());
    format!("{WAY}{}", &digest[..16])
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
            // docker's own command line puts them into an order of its own with every change.
            for set in ["Mounts", "Ulimits", "Secrets", "Configs", "Hosts"] {
                if let Some(Value::Array(items)) = fields.get_mut(set) {
                    items.sort_by_key(Value::to_string);
                }
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
#[derive(Default)]
pub struct Touched {
    // Not looked at since, and whether an event said so.
    new: BTreeMap<String, bool>,
    // When an event said so last.
    lately: BTreeMap<String, Instant>,
}

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
        let stored = |image: &str, memory: i64| {
            json!({
                "Name": "web", "Labels": { "who": "me" }, "Mode": { "Replicated": { "Replicas": 3 } },
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
        let made = fingerprint(&sent);
        assert!(made.starts_with("1:") && !differs(&stored("nginx:1", 0), &made));
        assert!(differs(&stored("nginx:2", 0), &made) && differs(&stored("nginx:1", 1 << 20), &made));
        assert!(!differs(&stored("nginx:2", 0), "2:0123456789abcdef"), "made in a way that is not known here");
    }
}
