//! What others change of our services is put right: a replica is as its revision says, whoever types `docker service update`.

use std::sync::PoisonError;

use bollard::query_parameters::UpdateServiceOptions;
use serde_json::Value;

use super::Shared;
use crate::engines::StartRequest;
use crate::engines::docker::{raw, spec, trouble};
use crate::model::id::TaskId;
use crate::model::{Error, Kind, Result};

/// So many services are asked for at once.
const AT_ONCE: usize = 100;
/// How often a change is tried when somebody else changed the service in between.
const ATTEMPTS: usize = 5;
/// What is said of a task whose service was put right.
const PUT_RIGHT: &str = "its Swarm service was changed by somebody else, and put right";

impl Shared {
    /// A service was changed, by whomever.
    pub fn touch(&self, service: &str) {
        self.touched.lock().unwrap_or_else(PoisonError::into_inner).insert(service.to_owned());
    }

    /// Tells which of ours were changed since they were made, of those that were touched.
    pub async fn tell_changed(&self) -> Result<()> {
        let touched = std::mem::take(&mut *self.touched.lock().unwrap_or_else(PoisonError::into_inner));
        let touched: Vec<String> = touched.into_iter().collect();
        for some in touched.chunks(AT_ONCE) {
            // {"id":["...","..."]}
            let ids = some.join("%22%2C%22");
            let path = format!("/services?filters=%7B%22id%22%3A%5B%22{ids}%22%5D%7D");
            let listed = raw::get(&self.address, &self.docker, &path).await.inspect_err(|_| {
                touched.iter().for_each(|service| self.touch(service));
            })?;
            for service in listed.as_ref().and_then(Value::as_array).into_iter().flatten().filter(|it| was_changed(it))
            {
                let labels = serde_json::from_value(service["Spec"]["Labels"].clone()).unwrap_or_default();
                if let Some(task) = spec::task_of(&labels, &self.cluster).filter(|task| self.is_kept(task)) {
                    self.tasks.changed(task);
                }
            }
        }
        Ok(())
    }

    // Whether it is to run, as far as is known here.
    fn is_kept(&self, task: &TaskId) -> bool {
        self.tasks.place(task).is_some() && !self.tasks.is_forbidden(task) && !self.tasks.is_over(task)
    }

    /// Makes the service of a task again as it is to be.
    pub async fn put_right(&self, request: &StartRequest) -> Result<()> {
        let task = request.task;
        let subject = || format!("task {}.{}", request.service, request.slot);
        let Some((_, service)) = self.tasks.place(&task) else { return Ok(()) };
        let _held = self.files.read().await;
        let (body, _) = self.compose(request).await?;
        let wanted = plain(&serde_json::to_value(&body).unwrap_or_default());
        for _ in 0..ATTEMPTS {
            let Some(known) = raw::get(&self.address, &self.docker, &format!("/services/{service}")).await? else {
                return Ok(());
            };
            let now = &known["Spec"];
            // One without replicas has ended, and is replaced; so is one whose service is gone.
            let runs = now["Mode"]["Replicated"]["Replicas"].as_i64().is_some_and(|replicas| replicas > 0);
            if !runs || !self.is_kept(&task) || self.is_as_wanted(&task, &wanted, now) {
                return Ok(());
            }
            let version = known["Version"]["Index"].as_u64().unwrap_or_default();
            let options = UpdateServiceOptions {
                version: i32::try_from(version).unwrap_or_default(),
                registry_auth_from: "spec".into(),
                rollback: None,
            };
            match self.docker.update_service(&service, body.clone(), options, None).await {
                Ok(_) => {}
                Err(error) if trouble::said(&error).contains("out of sequence") => continue,
                Err(error) => return Err(trouble::error(subject(), "put its Swarm service right", &error)),
            }
            // As the Swarm writes it down: should that differ in a way that is not foreseen here, it is not sent for ever.
            if let Ok(Some(made)) = raw::get(&self.address, &self.docker, &format!("/services/{service}")).await {
                let mut restored = self.restored.lock().unwrap_or_else(PoisonError::into_inner);
                restored.insert(task, plain(&made["Spec"]));
            }
            tracing::warn!(
                task = subject(),
                service,
                "its Swarm service was changed by somebody else; it is put right"
            );
            self.tasks.say(&task, PUT_RIGHT);
            return Ok(());
        }
        Err(Error::new(Kind::Conflict, subject(), "has a Swarm service that is changed by others all the time")
            .retry(true))
    }

    fn is_as_wanted(&self, task: &TaskId, wanted: &Value, now: &Value) -> bool {
        let now = plain(now);
        now == *wanted
            || self.restored.lock().unwrap_or_else(PoisonError::into_inner).get(task).is_some_and(|made| *made == now)
    }
}

/// Whether a Swarm service was changed since it was made.
pub fn was_changed(service: &Value) -> bool {
    !service["PreviousSpec"].is_null()
}

// What it says, without what a Swarm fills in and without networks' names, for which it has their ids.
fn plain(spec: &Value) -> Value {
    let mut value = spec.clone();
    strip(&mut value);
    value
}

// Whether anything is left.
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
                let by_default = match key.as_str() {
                    "Isolation" => field == "default",
                    "Runtime" => field == "container",
                    _ => false,
                };
                !by_default && strip(field)
            });
            !fields.is_empty()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_swarm_fills_in_is_no_change() {
        let sent = serde_json::json!({
            "Name": "web", "Mode": { "Replicated": { "Replicas": 1 } },
            "TaskTemplate": {
                "ContainerSpec": { "Image": "nginx:1", "Env": ["A=1", ""], "HealthCheck": { "Retries": 3 } },
                "Networks": [{ "Target": "front", "Aliases": ["web"] }],
            },
        });
        let stored = |image: &str, memory: i64| {
            serde_json::json!({
                "Name": "web", "Labels": {}, "Mode": { "Replicated": { "Replicas": 1 } },
                "TaskTemplate": {
                    "ContainerSpec": {
                        "Image": image, "Env": ["A=1", ""], "Isolation": "default", "DNSConfig": {}, "Init": false,
                        "Healthcheck": { "Retries": 3 },
                    },
                    "Networks": [{ "Target": "xq2j", "Aliases": ["web"] }],
                    "Resources": { "Limits": { "MemoryBytes": memory }, "Reservations": {} },
                    "ForceUpdate": 0, "Runtime": "container",
                },
            })
        };
        assert_eq!(plain(&sent), plain(&stored("nginx:1", 0)));
        assert_ne!(plain(&sent), plain(&stored("nginx:2", 0)));
        assert_ne!(plain(&sent), plain(&stored("nginx:1", 1 << 20)));
    }
}
