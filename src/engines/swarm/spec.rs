//! A task as a Swarm service of its own: one replica, pinned to its node.

use std::collections::HashMap;

use bollard::models::{
    EndpointPortConfig, EndpointPortConfigProtocolEnum, EndpointPortConfigPublishModeEnum, EndpointSpec,
    EndpointSpecModeEnum, HealthConfig, Limit, NetworkAttachmentConfig, ResourceObject, ServiceSpec as SwarmSpec,
    ServiceSpecMode, ServiceSpecModeReplicated, TaskSpec, TaskSpecContainerSpec, TaskSpecContainerSpecConfigs,
    TaskSpecContainerSpecDnsConfig, TaskSpecContainerSpecFile, TaskSpecContainerSpecFile1,
    TaskSpecContainerSpecSecrets, TaskSpecLogDriver, TaskSpecPlacement, TaskSpecResources, TaskSpecRestartPolicy,
    TaskSpecRestartPolicyConditionEnum,
};

use crate::engines::StartRequest;
use crate::engines::docker::spec::{self as container, log_config, some};
use crate::model::check::CheckSpec;
use crate::model::container::ValueUse;
use crate::model::port::Protocol;
use crate::model::service::{RestartCondition, ServiceSpec};

/// Swarm waits at least this long before it restarts what ended: long enough for a daemon that lives to act first.
const RESTART: crate::model::units::Duration = crate::model::units::Duration::from_secs(10);

/// Labels by which `docker stack` knows what is its own.
const STACK: &str = "com.docker.stack.";

/// What replicas read as files, as objects of the Swarm.
#[derive(Default)]
pub struct Files {
    /// Secrets, each with its owner and mode.
    pub secrets: Vec<(FileUse, ValueUse)>,
    /// Configs, the same.
    pub configs: Vec<(FileUse, ValueUse)>,
}

/// A secret or config of the Swarm, and the file that replicas find.
pub struct FileUse {
    /// A secret's file name, a config's path.
    pub file: String,
    /// Its id in the Swarm.
    pub id: String,
    /// Its name in the Swarm.
    pub name: String,
}

/// The whole description. The templates in it are Swarm's to fill in. `log_driver`: what hosts take by themselves.
pub fn service(request: &StartRequest, cluster: &str, files: &Files, log_driver: Option<&str>) -> SwarmSpec {
    let spec = &*request.spec;
    let labels = container::labels(request, cluster);
    SwarmSpec {
        name: Some(container::container_name(request)),
        // A stack of Docker's is whatever has its label, and is removed as a whole: replicas are none of it.
        labels: Some(
            labels.iter().filter(|(key, _)| !key.starts_with(STACK)).map(|(k, v)| (k.clone(), v.clone())).collect(),
        ),
        task_template: Some(TaskSpec {
            container_spec: Some(container_spec(request, labels, files)),
            resources: Some(resources(spec)),
            restart_policy: Some(restart(spec)),
            placement: Some(TaskSpecPlacement {
                constraints: Some(vec![format!("node.id=={}", request.node)]),
                ..TaskSpecPlacement::default()
            }),
            networks: some(
                spec.networks
                    .iter()
                    .map(|network| NetworkAttachmentConfig {
                        target: Some(network.name.clone()),
                        // Docker has names on networks of its users' alone.
                        aliases: match network.name.as_str() {
                            "host" | "bridge" | "none" => None,
                            _ => container::endpoint(&network.aliases, request).aliases,
                        },
                        driver_opts: None,
                    })
                    .collect(),
            ),
            log_driver: log_config(&spec.log, log_driver)
                .map(|(driver, options)| TaskSpecLogDriver { name: Some(driver), options: Some(options) }),
            ..TaskSpec::default()
        }),
        mode: Some(ServiceSpecMode {
            replicated: Some(ServiceSpecModeReplicated { replicas: Some(1) }),
            ..ServiceSpecMode::default()
        }),
        endpoint_spec: Some(EndpointSpec {
            // No virtual address: the alias leads to every replica, and published ports go through the balancer.
            mode: Some(EndpointSpecModeEnum::DNSRR),
            ports: some(
                spec.ports
                    .values()
                    .filter_map(|port| {
                        Some(EndpointPortConfig {
                            protocol: Some(protocol(port.protocol)),
                            target_port: Some(i64::from(port.container_port()?)),
                            // Unless it is published there, the host chooses the port, and the task's status tells it.
                            published_port: port.host_port().map(|(port, _)| i64::from(port)),
                            publish_mode: Some(EndpointPortConfigPublishModeEnum::HOST),
                            ..EndpointPortConfig::default()
                        })
                    })
                    .collect(),
            ),
        }),
        ..SwarmSpec::default()
    }
}

/// In Swarm's words.
pub fn protocol(protocol: Protocol) -> EndpointPortConfigProtocolEnum {
    match protocol {
        Protocol::Tcp => EndpointPortConfigProtocolEnum::TCP,
        Protocol::Udp => EndpointPortConfigProtocolEnum::UDP,
    }
}

fn container_spec(request: &StartRequest, labels: HashMap<String, String>, files: &Files) -> TaskSpecContainerSpec {
    let spec = &*request.spec;
    let nanos = |period: crate::model::units::Duration| i64::try_from(period.millis() * 1_000_000).ok();
    TaskSpecContainerSpec {
        image: spec.image.clone(),
        labels: Some(labels),
        command: some(spec.entrypoint.clone()),
        args: some(spec.command.clone()),
        hostname: spec.hostname.clone(),
        env: Some(container::environment(request, &container::ports(spec), !files.secrets.is_empty())),
        dir: spec.workdir.clone(),
        user: spec.user.clone(),
        groups: some(spec.groups.clone()),
        tty: spec.tty.then_some(true),
        read_only: spec.read_only.then_some(true),
        mounts: some(mounts(spec)),
        stop_signal: spec.stop.signal.as_ref().map(|signal| format!("SIG{signal}")),
        stop_grace_period: nanos(spec.stop.grace),
        health_check: health(spec),
        // Swarm's order is the hosts file's: the address first.
        hosts: some(spec.hosts.iter().map(|(name, address)| format!("{address} {name}")).collect()),
        dns_config: Some(TaskSpecContainerSpecDnsConfig {
            nameservers: some(spec.dns.clone()),
            search: some(spec.dns_search.clone()),
            options: some(spec.dns_options.clone()),
        }),
        secrets: some(files.secrets.iter().map(secret).collect()),
        configs: some(files.configs.iter().map(config).collect()),
        init: spec.init,
        sysctls: (!spec.sysctls.is_empty()).then(|| spec.sysctls.clone().into_iter().collect()),
        // Swarm wants them with their prefix.
        capability_add: some(spec.cap_add.iter().map(|name| capability(name)).collect()),
        capability_drop: some(spec.cap_drop.iter().map(|name| capability(name)).collect()),
        ulimits: container::ulimits(spec),
        ..TaskSpecContainerSpec::default()
    }
}

// In the order in which docker's command line puts them with every change that somebody makes: it would be one of its own.
fn mounts(spec: &ServiceSpec) -> Vec<bollard::models::Mount> {
    let mut mounts: Vec<_> = spec.mounts.iter().map(container::mount).collect();
    mounts.sort_by(|a, b| (&a.source, &a.target).cmp(&(&b.source, &b.target)));
    mounts
}

fn secret((file, owner): &(FileUse, ValueUse)) -> TaskSpecContainerSpecSecrets {
    TaskSpecContainerSpecSecrets {
        file: Some(TaskSpecContainerSpecFile {
            name: Some(file.file.clone()),
            uid: Some(owner.uid.unwrap_or(0).to_string()),
            gid: Some(owner.gid.unwrap_or(0).to_string()),
            mode: Some(owner.mode()),
        }),
        secret_id: Some(file.id.clone()),
        secret_name: Some(file.name.clone()),
    }
}

fn config((file, owner): &(FileUse, ValueUse)) -> TaskSpecContainerSpecConfigs {
    TaskSpecContainerSpecConfigs {
        file: Some(TaskSpecContainerSpecFile1 {
            name: Some(container::absolute(&file.file)),
            uid: Some(owner.uid.unwrap_or(0).to_string()),
            gid: Some(owner.gid.unwrap_or(0).to_string()),
            mode: Some(owner.mode()),
        }),
        config_id: Some(file.id.clone()),
        config_name: Some(file.name.clone()),
        ..TaskSpecContainerSpecConfigs::default()
    }
}

fn capability(name: &str) -> String {
    let name = name.to_uppercase();
    if name == "ALL" || name.starts_with("CAP_") { name } else { format!("CAP_{name}") }
}

// A command is left to the container engine, which every node has; everything else is asked by Neap.
fn health(spec: &ServiceSpec) -> Option<HealthConfig> {
    let check = spec.check.as_ref()?;
    if check.by_engine { Some(command_check(check)) } else { container::health(Some(check)) }
}

/// A check's command as one that the container engine runs.
pub fn command_check(check: &CheckSpec) -> HealthConfig {
    let timing = check.timing(None);
    let nanos = |period: crate::model::units::Duration| i64::try_from(period.millis() * 1_000_000).ok();
    HealthConfig {
        test: Some(std::iter::once("CMD".to_owned()).chain(check.exec.iter().cloned()).collect()),
        interval: nanos(timing.every),
        timeout: nanos(timing.timeout),
        retries: Some(i64::from(timing.unhealthy)),
        start_period: nanos(timing.start_period),
        start_interval: None,
    }
}

fn resources(spec: &ServiceSpec) -> TaskSpecResources {
    let bytes = |size: crate::model::units::Bytes| i64::try_from(size.0).unwrap_or(i64::MAX);
    let nano = |cpu: crate::model::units::Cpu| i64::from(cpu.0) * 1_000_000;
    TaskSpecResources {
        limits: Some(Limit {
            nano_cpus: spec.limits.cpu.map(nano),
            memory_bytes: spec.limits.memory.map(bytes),
            pids: spec.limits.pids.map(i64::from),
        }),
        reservations: Some(ResourceObject {
            nano_cpus: spec.reservations.cpu.map(nano),
            memory_bytes: spec.reservations.memory.map(bytes),
            generic_resources: None,
        }),
        ..TaskSpecResources::default()
    }
}

// A restart is a new task, decided by the reconcile pass; Swarm's own is what is left where no daemon lives.
fn restart(spec: &ServiceSpec) -> TaskSpecRestartPolicy {
    let condition = match spec.restart.condition {
        RestartCondition::None => TaskSpecRestartPolicyConditionEnum::NONE,
        RestartCondition::OnFailure => TaskSpecRestartPolicyConditionEnum::ON_FAILURE,
        RestartCondition::Any => TaskSpecRestartPolicyConditionEnum::ANY,
    };
    TaskSpecRestartPolicy {
        condition: Some(condition),
        delay: i64::try_from(spec.restart.delay.max(RESTART).millis() * 1_000_000).ok(),
        ..TaskSpecRestartPolicy::default()
    }
}
