//! A description of Neap's as one ordinary Swarm service.

use std::collections::HashMap;

use bollard::models::{
    EndpointPortConfig, EndpointPortConfigPublishModeEnum, EndpointSpec, EndpointSpecModeEnum,
    ServiceSpec as SwarmSpec, ServiceSpecMode, ServiceSpecModeReplicated, ServiceSpecRollbackConfig,
    ServiceSpecRollbackConfigFailureActionEnum, ServiceSpecRollbackConfigOrderEnum, ServiceSpecUpdateConfig,
    ServiceSpecUpdateConfigFailureActionEnum, ServiceSpecUpdateConfigOrderEnum, TaskSpecPlacement,
    TaskSpecPlacementPreferences, TaskSpecPlacementSpread,
};
use bollard::query_parameters::UpdateServiceOptions;
use serde_json::Value;

use super::super::{Shared, objects, spec};
use super::{MANAGED, MARK, RELEASED, REVISION, subject};
use crate::engines::docker::spec::some;
use crate::engines::docker::{credentials, trouble};
use crate::engines::native::Wanted;
use crate::model::native::PublishMode;
use crate::model::service::{Mode, RestartCondition, ServiceSpec, Use};
use crate::model::units::Duration;
use crate::model::{Error, Kind, Result};

/// How often a change is tried when somebody else changed the service in between.
const ATTEMPTS: usize = 20;

/// Variables that tell a replica which one it is.
const OF_A_REPLICA: [&str; 6] =
    ["NEAP_SERVICE", "NEAP_TASK", "NEAP_TASK_ID", "NEAP_SLOT", "NEAP_REVISION", "NEAP_NODE"];

/// Makes it, or changes it where it is another.
pub async fn place(shared: &Shared, wanted: Wanted) -> Result<()> {
    let (docker, name) = (&shared.docker, &wanted.name);
    let image = wanted.request.spec.image.clone().unwrap_or_default();
    let credentials = credentials::of(wanted.request.login.as_ref(), &image).await;
    // What it needs is not cleared up while it is being made.
    let _held = shared.files.read().await;
    for network in &wanted.request.spec.networks {
        objects::ensure_network(docker, &shared.cluster, &network.name).await?;
    }
    let files = objects::native_files(docker, &shared.cluster, &wanted).await?;
    let mut body = body(&wanted, &shared.cluster, &files);
    for _ in 0..ATTEMPTS {
        let Some((known, ours)) = shared.placed(name).await? else {
            return match docker.create_service(body, credentials).await {
                Ok(_) => Ok(()),
                Err(error) => Err(trouble::error(subject(name), "make it", &error)),
            };
        };
        if !ours {
            return Err(Error::new(Kind::Conflict, subject(name), "is there already, and somebody else made it")
                .help("remove or rename it first (docker service ls)"));
        }
        let options = UpdateServiceOptions {
            version: i32::try_from(known.version.and_then(|version| version.index).unwrap_or_default())
                .unwrap_or_default(),
            registry_auth_from: "spec".into(),
            rollback: None,
        };
        let spec = known.spec.clone().unwrap_or_default();
        let id = known.id.clone().unwrap_or_default();
        // Somebody's `--force` stays done: without it all tasks would be replaced once more.
        let forced = spec.task_template.as_ref().and_then(|template| template.force_update);
        if let Some(template) = body.task_template.as_mut().filter(|_| wanted.request.spec.engine_native) {
            template.force_update = forced;
        }
        match docker.update_service(&id, body.clone(), options, credentials.clone()).await {
            Ok(_) => return Ok(()),
            Err(error) if trouble::said(&error).contains("out of sequence") => {}
            Err(error) => return Err(trouble::error(subject(name), "change it", &error)),
        }
    }
    Err(Error::new(Kind::Conflict, subject(name), "is changed by others all the time").retry(true))
}

// As for a replica, but for all that is said of a single one.
fn body(wanted: &Wanted, cluster: &str, files: &spec::Files) -> SwarmSpec {
    let described = &*wanted.request.spec;
    let mut body = spec::service(&wanted.request, cluster, files, None);
    body.name = Some(wanted.name.clone());
    let mut labels: HashMap<String, String> = described.labels.clone().into_iter().collect();
    match &wanted.mark {
        Some(mark) => labels.extend([(MANAGED.into(), cluster.to_owned()), (MARK.into(), mark.clone())]),
        None => drop(labels.insert(RELEASED.into(), cluster.to_owned())),
    }
    body.labels = Some(labels);
    if let Some(template) = &mut body.task_template {
        if let Some(container) = &mut template.container_spec {
            let mut labels: HashMap<String, String> = described.container_labels.clone().into_iter().collect();
            if described.engine_native {
                labels.insert("neap.service".into(), wanted.name.clone());
                labels.insert(REVISION.into(), wanted.request.revision.to_string());
            }
            container.labels = Some(labels);
            // What a replica is told of itself is not so any more; its ports are.
            let told = |entry: &str| {
                let key = entry.split_once('=').map_or(entry, |(key, _)| key);
                OF_A_REPLICA.contains(&key) && !described.env.contains_key(key)
            };
            container.env.iter_mut().for_each(|env| env.retain(|entry| !told(entry)));
            if let Some(check) = &described.check
                && !check.exec.is_empty()
            {
                container.health_check = Some(spec::command_check(check));
            }
        }
        // Ports are part of what a task is made of: with them all are replaced, and this tells the new ones from the old.
        template.force_update = Some(u64::from(wanted.ports.is_some() && !described.engine_native));
        template.placement = Some(placement(described));
        for network in template.networks.iter_mut().flatten() {
            // Swarm itself gives it its name.
            network.aliases = network
                .aliases
                .take()
                .map(|aliases| aliases.into_iter().filter(|alias| *alias != wanted.name).collect::<Vec<_>>())
                .filter(|aliases| !aliases.is_empty());
        }
        if let Some(restart) = &mut template.restart_policy {
            let policy = &described.restart;
            restart.delay = nanos(policy.delay);
            restart.window = nanos(policy.window);
            restart.max_attempts = (policy.max_attempts > 0).then(|| i64::from(policy.max_attempts));
            if policy.condition == RestartCondition::None {
                restart.delay = None;
            }
        }
    }
    body.mode = Some(match described.mode {
        Mode::Replicated => ServiceSpecMode {
            replicated: Some(ServiceSpecModeReplicated { replicas: Some(i64::from(described.replicas)) }),
            ..ServiceSpecMode::default()
        },
        Mode::Global => ServiceSpecMode { global: Some(HashMap::new()), ..ServiceSpecMode::default() },
    });
    let on_hosts =
        wanted.ports == Some(PublishMode::Host) || described.ports.values().any(|port| port.mode == PublishMode::Host);
    body.update_config = Some(way(described, &described.rollout, on_hosts, wanted.at_once));
    let back = described.rollback.as_ref().unwrap_or(&described.rollout);
    body.rollback_config = Some(way_back(way(described, back, on_hosts, wanted.at_once)));
    body.endpoint_spec = Some(endpoint(described, wanted.ports));
    body
}

fn nanos(period: Duration) -> Option<i64> {
    i64::try_from(period.millis().saturating_mul(1_000_000)).ok().filter(|nanos| *nanos > 0)
}

fn placement(described: &ServiceSpec) -> TaskSpecPlacement {
    let over = described.policy.iter().filter(|policy| policy.name.as_str() == "spread").filter_map(|policy| {
        let over = policy.options.get("over")?.as_str()?;
        Some(TaskSpecPlacementPreferences {
            spread: Some(TaskSpecPlacementSpread { spread_descriptor: Some(format!("node.{over}")) }),
        })
    });
    TaskSpecPlacement {
        constraints: some(
            described.constraints.iter().map(|constraint| constraint.to_string().replace(' ', "")).collect(),
        ),
        preferences: some(over.collect()),
        max_replicas: (described.max_replicas_per_node > 0).then(|| i64::from(described.max_replicas_per_node)),
        platforms: None,
    }
}

fn endpoint(described: &ServiceSpec, ports: Option<PublishMode>) -> EndpointSpec {
    let Some(mode) = ports else { return EndpointSpec::default() };
    let ports = described.ports.values().filter_map(|port| {
        Some(EndpointPortConfig {
            protocol: Some(spec::protocol(port.protocol)),
            target_port: Some(i64::from(port.container_port()?)),
            published_port: Some(i64::from(port.published?)),
            publish_mode: Some(match if port.mode == PublishMode::Host { port.mode } else { mode } {
                PublishMode::Ingress => EndpointPortConfigPublishModeEnum::INGRESS,
                PublishMode::Host => EndpointPortConfigPublishModeEnum::HOST,
            }),
            ..EndpointPortConfig::default()
        })
    });
    EndpointSpec { ports: some(ports.collect()), mode: Some(EndpointSpecModeEnum::VIP) }
}

// The same in the words for a rollback, which never goes back itself.
fn way_back(way: ServiceSpecUpdateConfig) -> ServiceSpecRollbackConfig {
    ServiceSpecRollbackConfig {
        parallelism: way.parallelism,
        delay: way.delay,
        monitor: way.monitor,
        max_failure_ratio: way.max_failure_ratio,
        failure_action: Some(match way.failure_action {
            Some(ServiceSpecUpdateConfigFailureActionEnum::CONTINUE) => {
                ServiceSpecRollbackConfigFailureActionEnum::CONTINUE
            }
            _ => ServiceSpecRollbackConfigFailureActionEnum::PAUSE,
        }),
        order: Some(match way.order {
            Some(ServiceSpecUpdateConfigOrderEnum::START_FIRST) => ServiceSpecRollbackConfigOrderEnum::START_FIRST,
            _ => ServiceSpecRollbackConfigOrderEnum::STOP_FIRST,
        }),
    }
}

fn way(described: &ServiceSpec, how: &Use, on_hosts: bool, at_once: bool) -> ServiceSpecUpdateConfig {
    let option = |key: &str| how.options.get(key);
    let period = |key: &str| option(key).and_then(Value::as_str).and_then(|text| text.parse().ok()).and_then(nanos);
    let parallelism = match option("batch") {
        _ if at_once => 0,
        Some(Value::Number(count)) => count.as_i64().unwrap_or(1),
        Some(Value::String(share)) => {
            let percent: f64 = share.trim_end_matches('%').parse().unwrap_or_default();
            // All at once is 0, however many there are; how many a global service has only the Swarm knows.
            if percent >= 100.0 { 0 } else { (percent / 100.0 * f64::from(described.replicas)).ceil() as i64 }
        }
        _ => 1,
    };
    ServiceSpecUpdateConfig {
        parallelism: Some(parallelism),
        delay: period("delay").filter(|_| !at_once),
        monitor: period("min_healthy"),
        max_failure_ratio: option("max_failure_ratio").and_then(Value::as_f64),
        failure_action: Some(match option("on_failure").and_then(Value::as_str) {
            Some("continue") => ServiceSpecUpdateConfigFailureActionEnum::CONTINUE,
            Some("rollback") if !at_once => ServiceSpecUpdateConfigFailureActionEnum::ROLLBACK,
            _ if at_once => ServiceSpecUpdateConfigFailureActionEnum::CONTINUE,
            _ => ServiceSpecUpdateConfigFailureActionEnum::PAUSE,
        }),
        order: Some(match option("order").and_then(Value::as_str) {
            // Those before have no port yet that the new ones would have to wait for.
            _ if at_once && described.max_replicas_per_node == 0 => ServiceSpecUpdateConfigOrderEnum::START_FIRST,
            Some("stop-first") => ServiceSpecUpdateConfigOrderEnum::STOP_FIRST,
            // With its ports on its host, a task cannot start beside the one before it.
            _ if on_hosts => ServiceSpecUpdateConfigOrderEnum::STOP_FIRST,
            _ => ServiceSpecUpdateConfigOrderEnum::START_FIRST,
        }),
    }
}
