//! A task as the body of a request that creates its container.

use std::collections::{BTreeMap, HashMap};

use bollard::models::{
    ContainerCreateBody, EndpointSettings, HealthConfig, HostConfig, HostConfigLogConfig, Mount as DockerMount,
    MountBindOptions, MountBindOptionsPropagationEnum, MountTmpfsOptions, MountType, MountVolumeOptions,
    MountVolumeOptionsDriverConfig, NetworkingConfig, PortBinding, ResourcesUlimits, RestartPolicy,
    RestartPolicyNameEnum,
};

use crate::engines::StartRequest;
use crate::model::check::CheckSpec;
use crate::model::container;
use crate::model::id::TaskId;
use crate::model::mount::{Mount, MountKind};
use crate::model::port::{PortSpec, Protocol};
use crate::model::service::{LogPolicy, ServiceSpec};

/// The label with the cluster's name and its store's id: what carries it is that cluster's.
pub const CLUSTER: &str = "neap.cluster";
/// The label with the task's id.
pub const TASK: &str = "neap.task";
/// Where containers find their secrets (Docker's own place for them).
const SECRETS: &str = "/run/secrets";

/// What the container's host adds to its description.
pub struct Site<'a> {
    /// The cluster's name.
    pub cluster: &'a str,
    /// Whether the host reaches containers by their own addresses; otherwise their ports are opened on the host.
    pub direct: bool,
    /// The address on which those ports are opened.
    pub listen: &'a str,
    /// The host's own log driver.
    pub log_driver: Option<&'a str>,
    /// What of the host is mounted into it.
    pub files: &'a Files,
}

/// Where on the host the task's files are.
#[derive(Debug, Default)]
pub struct Files {
    /// The folder with its secrets, if it has any.
    pub secrets: Option<String>,
    /// Its configs, each with its path in the container.
    pub configs: Vec<(String, String)>,
}

/// A config's path in a container: one that is not absolute begins in its root folder, as with Docker.
pub fn absolute(target: &str) -> String {
    if target.starts_with('/') { target.to_owned() } else { format!("/{target}") }
}

/// A container's name: shortened service, slot, and the end of the task's id. Never parsed: labels are the truth.
pub fn container_name(request: &StartRequest) -> String {
    let service: String = request.service.as_str().chars().take(30).collect();
    let slot: String = request
        .slot
        .to_string()
        .chars()
        .map(|c| if c.is_ascii_alphanumeric() || c == '-' { c } else { '-' })
        .take(16)
        .collect();
    // The id's end is its randomness; 50 bits of it are unique to the task on any host.
    let id = request.task.to_string();
    format!("{service}--{slot}-{}", &id[id.len() - 10..])
}

/// The whole description.
pub fn body(request: &StartRequest, site: &Site<'_>) -> ContainerCreateBody {
    let spec = &*request.spec;
    let ports = self::ports(spec);
    // Where the host reaches containers by their own addresses, only what is published on it is opened.
    let binding = |port: &PortSpec| {
        let host = port.host_port();
        let address = host.and(port.address).map(|address| address.to_string());
        let all = || if host.is_some() { String::new() } else { site.listen.to_owned() };
        let host_ip = Some(address.unwrap_or_else(all));
        (host.is_some() || !site.direct)
            .then(|| PortBinding { host_ip, host_port: host.map(|(port, _)| port.to_string()) })
    };
    let mut bindings: HashMap<String, Option<Vec<PortBinding>>> = HashMap::new();
    for port in spec.ports.values() {
        if let (Some(key), Some(binding)) = (key(port), binding(port)) {
            bindings.entry(key).or_default().get_or_insert_default().push(binding);
        }
    }
    ContainerCreateBody {
        image: spec.image.clone(),
        hostname: spec.hostname.clone(),
        user: spec.user.clone(),
        tty: spec.tty.then_some(true),
        env: Some(environment(request, &ports, site.files.secrets.is_some())),
        cmd: some(spec.command.clone()),
        entrypoint: some(spec.entrypoint.clone()),
        working_dir: spec.workdir.clone(),
        healthcheck: health(spec.check.as_ref()),
        labels: Some(labels(request, site.cluster)),
        stop_signal: spec.stop.signal.as_ref().map(|signal| format!("SIG{signal}")),
        stop_timeout: i64::try_from(spec.stop.grace.millis().div_ceil(1000)).ok(),
        exposed_ports: some(spec.ports.values().filter_map(key).collect()),
        networking_config: Some(networking(spec, request)),
        host_config: Some(HostConfig {
            port_bindings: (!bindings.is_empty()).then_some(bindings),
            ..host_config(spec, site)
        }),
        ..ContainerCreateBody::default()
    }
}

// As Docker writes it: `8080/tcp`.
fn key(port: &PortSpec) -> Option<String> {
    Some(format!("{}/{}", port.container_port()?, port.protocol.as_str()))
}

fn host_config(spec: &ServiceSpec, site: &Site<'_>) -> HostConfig {
    let bytes = |size: crate::model::units::Bytes| i64::try_from(size.0).unwrap_or(i64::MAX);
    let mut mounts: Vec<DockerMount> = spec.mounts.iter().map(mount).collect();
    let bind = |source: &String, target: &str| DockerMount {
        typ: Some(MountType::BIND),
        source: Some(source.clone()),
        target: Some(target.to_owned()),
        read_only: Some(true),
        ..DockerMount::default()
    };
    mounts.extend(site.files.secrets.iter().map(|folder| bind(folder, SECRETS)));
    mounts.extend(site.files.configs.iter().map(|(source, target)| bind(source, target)));
    HostConfig {
        memory: spec.limits.memory.map(bytes),
        memory_reservation: spec.reservations.memory.map(bytes),
        nano_cpus: spec.limits.cpu.map(|cpu| i64::from(cpu.0) * 1_000_000),
        pids_limit: spec.limits.pids.map(i64::from),
        ulimits: ulimits(spec),
        mounts: some(mounts),
        network_mode: spec.networks.first().map(|network| network.name.clone()),
        extra_hosts: some(spec.hosts.iter().map(|(name, address)| format!("{name}:{address}")).collect()),
        dns: some(spec.dns.clone()),
        dns_search: some(spec.dns_search.clone()),
        dns_options: some(spec.dns_options.clone()),
        cap_add: some(spec.cap_add.clone()),
        cap_drop: some(spec.cap_drop.clone()),
        group_add: some(spec.groups.clone()),
        sysctls: (!spec.sysctls.is_empty()).then(|| spec.sysctls.clone().into_iter().collect()),
        readonly_rootfs: spec.read_only.then_some(true),
        init: spec.init,
        log_config: log_config(&spec.log, site.log_driver)
            .map(|(driver, options)| HostConfigLogConfig { typ: Some(driver), config: Some(options) }),
        // A restart is a new task, decided by the reconcile pass.
        restart_policy: Some(RestartPolicy { name: Some(RestartPolicyNameEnum::NO), maximum_retry_count: None }),
        ..HostConfig::default()
    }
}

/// The kernel's limits in Docker's form.
pub fn ulimits(spec: &ServiceSpec) -> Option<Vec<ResourcesUlimits>> {
    let limit = |(name, limit): (&String, &crate::model::container::Ulimit)| ResourcesUlimits {
        name: Some(name.clone()),
        soft: Some(limit.soft),
        hard: Some(limit.hard),
    };
    some(spec.ulimits.iter().map(limit).collect())
}

/// A list, or nothing where it is empty.
pub fn some<T>(list: Vec<T>) -> Option<Vec<T>> {
    (!list.is_empty()).then_some(list)
}

/// What a replica finds in its environment.
pub fn environment(request: &StartRequest, ports: &BTreeMap<&String, u16>, secrets: bool) -> Vec<String> {
    let mut env: BTreeMap<String, String> = BTreeMap::new();
    for (name, port) in ports {
        env.insert(format!("PORT_{}", name.to_uppercase().replace('-', "_")), port.to_string());
    }
    if let Some(port) = ports.get(&"http".to_owned()).or_else(|| ports.values().next()) {
        env.insert("PORT".into(), port.to_string());
    }
    if secrets {
        env.insert("NEAP_SECRETS".into(), SECRETS.into());
    }
    env.extend(request.spec.env.clone());
    // Who it is, nobody else may say.
    env.extend([
        ("NEAP_SERVICE".into(), request.service.to_string()),
        ("NEAP_TASK".into(), format!("{}.{}", request.service, request.slot)),
        ("NEAP_TASK_ID".into(), request.task.to_string()),
        ("NEAP_SLOT".into(), request.slot.to_string()),
        ("NEAP_REVISION".into(), request.revision.to_string()),
        ("NEAP_NODE".into(), request.node.to_string()),
    ]);
    env.into_iter().map(|(key, value)| format!("{key}={value}")).collect()
}

/// The labels of a task's objects.
pub fn labels(request: &StartRequest, cluster: &str) -> HashMap<String, String> {
    let mut labels: HashMap<String, String> = request.spec.container_labels.clone().into_iter().collect();
    labels.extend([
        (CLUSTER.to_owned(), cluster.to_owned()),
        (TASK.to_owned(), request.task.to_string()),
        ("neap.service".to_owned(), request.service.to_string()),
        ("neap.slot".to_owned(), request.slot.to_string()),
        ("neap.revision".to_owned(), request.revision.to_string()),
        (PORTS.to_owned(), port_label(&request.spec)),
    ]);
    labels
}

/// The ports in the container, by name.
pub fn ports(spec: &ServiceSpec) -> BTreeMap<&String, u16> {
    spec.ports.iter().filter_map(|(name, port)| Some((name, port.container_port()?))).collect()
}

/// The label with the ports' names: `http=8080,dns=53@5353/udp`; behind `@` the host's own, where it was asked for.
pub const PORTS: &str = "neap.ports";

fn port_label(spec: &ServiceSpec) -> String {
    let one = |(name, port): (&String, &PortSpec)| {
        let transport = if port.protocol == Protocol::Udp { "/udp" } else { "" };
        let host = port.host_port().map(|(port, _)| format!("@{port}")).unwrap_or_default();
        Some(format!("{name}={}{host}{transport}", port.container_port()?))
    };
    let ports = spec.ports.iter().filter_map(one);
    ports.collect::<Vec<_>>().join(",")
}

/// The task that a container's labels name, if it is one of `cluster`.
pub fn task_of(labels: &HashMap<String, String>, cluster: &str) -> Option<TaskId> {
    labels.get(CLUSTER).filter(|name| *name == cluster)?;
    labels.get(TASK)?.parse().ok()
}

/// A port as a container's labels tell it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Named {
    /// Its name.
    pub name: String,
    /// In the container.
    pub target: u16,
    /// On the host, where it was asked for.
    pub host: Option<u16>,
    /// Transport.
    pub protocol: Protocol,
}

/// The ports that a container's labels name.
pub fn ports_of(labels: &HashMap<String, String>) -> Vec<Named> {
    let text = labels.get(PORTS).map_or("", String::as_str);
    let ports = text.split(',').filter_map(|part| part.split_once('='));
    let one = |(name, port): (&str, &str)| {
        let (port, protocol) = port.split_once('/').unwrap_or((port, "tcp"));
        let (target, host) = port.split_once('@').map_or((port, None), |(target, host)| (target, Some(host)));
        let host = host.map(str::parse).transpose().ok()?;
        Some(Named { name: name.to_owned(), target: target.parse().ok()?, host, protocol: protocol.parse().ok()? })
    };
    ports.filter_map(one).collect()
}

/// A check of Neap's own replaces the image's; where nothing is asked, the image's serves with these times.
pub fn health(check: Option<&CheckSpec>) -> Option<HealthConfig> {
    let check = check?;
    if check.asks() || check.disable {
        return Some(HealthConfig { test: Some(vec!["NONE".into()]), ..HealthConfig::default() });
    }
    let nanos = |period: crate::model::units::Duration| i64::try_from(period.millis() * 1_000_000).ok();
    Some(HealthConfig {
        interval: check.every.and_then(nanos),
        timeout: check.timeout.and_then(nanos),
        retries: check.unhealthy.map(i64::from),
        start_period: check.start_period.and_then(nanos),
        ..HealthConfig::default()
    })
}

// Networks beyond the first are attached before the start (Engine API before 1.44 takes one only).
fn networking(spec: &ServiceSpec, request: &StartRequest) -> NetworkingConfig {
    let first = spec.networks.first().filter(|network| !container::is_mode(&network.name) && network.name != "bridge");
    let endpoints = first.map(|network| HashMap::from([(network.name.clone(), endpoint(&network.aliases, request))]));
    NetworkingConfig { endpoints_config: endpoints }
}

/// How a container is attached to a network: found by its service's name and by further ones.
pub fn endpoint(aliases: &[String], request: &StartRequest) -> EndpointSettings {
    let mut names = vec![request.service.to_string()];
    names.extend(aliases.iter().cloned());
    EndpointSettings { aliases: Some(names), ..EndpointSettings::default() }
}

/// A mount in Docker's form.
pub fn mount(mount: &Mount) -> DockerMount {
    let propagation = mount.bind_propagation.as_deref().map(|text| match text {
        "private" => MountBindOptionsPropagationEnum::PRIVATE,
        "rshared" => MountBindOptionsPropagationEnum::RSHARED,
        "shared" => MountBindOptionsPropagationEnum::SHARED,
        "rslave" => MountBindOptionsPropagationEnum::RSLAVE,
        "slave" => MountBindOptionsPropagationEnum::SLAVE,
        _ => MountBindOptionsPropagationEnum::RPRIVATE,
    });
    let map = |map: &BTreeMap<String, String>| (!map.is_empty()).then(|| map.clone().into_iter().collect());
    let driver = (mount.volume_driver.is_some() || !mount.volume_options.is_empty()).then(|| {
        MountVolumeOptionsDriverConfig { name: mount.volume_driver.clone(), options: map(&mount.volume_options) }
    });
    DockerMount {
        typ: Some(match mount.kind {
            MountKind::Volume => MountType::VOLUME,
            MountKind::Bind => MountType::BIND,
            MountKind::Tmpfs => MountType::TMPFS,
        }),
        source: mount.source.clone(),
        target: Some(mount.target.clone()),
        read_only: mount.read_only.then_some(true),
        bind_options: propagation
            .map(|propagation| MountBindOptions { propagation: Some(propagation), ..MountBindOptions::default() }),
        volume_options: (driver.is_some() || mount.volume_nocopy || !mount.volume_labels.is_empty()).then(|| {
            MountVolumeOptions {
                no_copy: mount.volume_nocopy.then_some(true),
                labels: map(&mount.volume_labels),
                driver_config: driver,
                ..MountVolumeOptions::default()
            }
        }),
        tmpfs_options: (mount.tmpfs_size.is_some() || mount.tmpfs_mode.is_some()).then(|| MountTmpfsOptions {
            size_bytes: mount.tmpfs_size.map(|size| i64::try_from(size.0).unwrap_or(i64::MAX)),
            mode: mount.tmpfs_mode.as_deref().and_then(|mode| i64::from_str_radix(mode, 8).ok()),
            ..MountTmpfsOptions::default()
        }),
        ..DockerMount::default()
    }
}

/// The log driver and its options. Drivers that keep files on the host get the policy's bounds: Docker's own default keeps
/// without end. `engine`: what the Docker Engine takes by itself.
pub fn log_config(log: &LogPolicy, engine: Option<&str>) -> Option<(String, HashMap<String, String>)> {
    let driver = log.driver.as_deref().or(engine.filter(|driver| matches!(*driver, "json-file" | "local")))?;
    let mut config: HashMap<String, String> = HashMap::new();
    if matches!(driver, "json-file" | "local") {
        config.insert("max-size".into(), log.max_size.0.to_string());
        config.insert("max-file".into(), log.max_files.to_string());
    }
    config.extend(log.options.clone());
    Some((driver.to_owned(), config))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(spec: &serde_json::Value) -> StartRequest {
        let spec = ServiceSpec::read(spec).unwrap();
        StartRequest {
            task: TaskId::numbered(0x0123_4567_89ab_cdef_0123_4567_89ab_cdef),
            service: spec.name.clone(),
            slot: crate::model::id::Slot::Replica(3),
            node: "eu-1".into(),
            revision: 2,
            spec: spec.into(),
            secrets: crate::engines::Secrets::default(),
            configs: Vec::new(),
            login: None,
        }
    }

    // What of the request is not the same for all.
    fn check(spec: &serde_json::Value, direct: bool, expected: &serde_json::Value) {
        let site =
            Site { cluster: "test", direct, listen: "", log_driver: Some("json-file"), files: &Files::default() };
        let mut got = serde_json::to_value(body(&request(spec), &site)).unwrap();
        for key in ["Labels", "StopTimeout"] {
            got.as_object_mut().unwrap().remove(key);
        }
        got["Env"].as_array_mut().unwrap().retain(|entry| !entry.as_str().unwrap().starts_with("NEAP_"));
        got["HostConfig"].as_object_mut().unwrap().retain(|key, _| key != "LogConfig" && key != "RestartPolicy");
        assert_eq!(got, *expected);
    }

    #[test]
    fn every_field_reaches_docker() {
        let spec = serde_json::json!({
            "name": "web", "image": "nginx:1", "entrypoint": ["/init"], "command": ["serve"], "env": { "A": 1 },
            "user": "www", "workdir": "/srv", "hostname": "web", "tty": true, "init": true, "read_only": true,
            "hosts": { "db": "10.0.0.2" }, "dns": ["10.0.0.3"], "dns_search": ["lan"], "dns_options": ["ndots:2"],
            "cap_add": ["NET_ADMIN"], "cap_drop": ["MKNOD"], "groups": ["video"], "sysctls": { "net.core.somaxconn": 1024 },
            "ulimits": { "nofile": { "soft": 10, "hard": 20 } },
            "mounts": ["data:/data", "type=tmpfs,target=/tmp,tmpfs-size=1MiB,tmpfs-mode=700"],
            "networks": [{ "name": "back", "aliases": ["w"] }], "ports": { "http": "80:8080" },
            "limits": { "memory": "64MiB", "cpu": 0.5, "pids": 10 }, "reservations": { "memory": "32MiB" },
            "stop": { "signal": "QUIT", "grace": "3s" }, "check": { "every": "2s", "unhealthy": 4 },
        });
        let expected = serde_json::json!({
            "Image": "nginx:1", "Entrypoint": ["/init"], "Cmd": ["serve"],
            "Env": ["A=1", "PORT=8080", "PORT_HTTP=8080"], "User": "www", "WorkingDir": "/srv", "Hostname": "web",
            "Tty": true, "StopSignal": "SIGQUIT", "ExposedPorts": { "8080/tcp": {} },
            "Healthcheck": { "Interval": 2_000_000_000_i64, "Retries": 4 },
            "NetworkingConfig": { "EndpointsConfig": { "back": { "Aliases": ["web", "w"] } } },
            "HostConfig": {
                "Init": true, "ReadonlyRootfs": true, "ExtraHosts": ["db:10.0.0.2"], "Dns": ["10.0.0.3"],
                "DnsSearch": ["lan"], "DnsOptions": ["ndots:2"], "CapAdd": ["NET_ADMIN"], "CapDrop": ["MKNOD"],
                "GroupAdd": ["video"], "Sysctls": { "net.core.somaxconn": "1024" },
                "Ulimits": [{ "Name": "nofile", "Soft": 10, "Hard": 20 }],
                "Mounts": [
                    { "Type": "volume", "Source": "data", "Target": "/data" },
                    { "Type": "tmpfs", "Target": "/tmp", "TmpfsOptions": { "SizeBytes": 1 << 20, "Mode": 0o700 } },
                ],
                "NetworkMode": "back", "Memory": 64 << 20, "MemoryReservation": 32 << 20, "NanoCpus": 500_000_000,
                "PidsLimit": 10, "PortBindings": { "8080/tcp": [{ "HostIp": "" }] },
            },
        });
        check(&spec, false, &expected);
    }

    #[test]
    fn a_check_of_ones_own_replaces_the_images() {
        let test = |check: serde_json::Value| {
            let spec = serde_json::json!({ "name": "web", "image": "a", "ports": { "http": 80 }, "check": check });
            let site = Site { cluster: "test", direct: true, listen: "", log_driver: None, files: &Files::default() };
            body(&request(&spec), &site).healthcheck.and_then(|health| health.test)
        };
        assert_eq!(test(serde_json::json!({ "http": "/" })), Some(vec!["NONE".into()]));
        assert_eq!(test(serde_json::json!(false)), Some(vec!["NONE".into()]));
        assert_eq!(test(serde_json::json!({ "every": "1s" })), None);
    }

    #[test]
    fn names_are_short_and_unique_to_the_task() {
        let long = "a".repeat(63);
        let name = container_name(&request(&serde_json::json!({ "name": long, "image": "a" })));
        assert_eq!(
            name,
            format!(
                "{}--3-{}",
                "a".repeat(30),
                &TaskId::numbered(0x0123_4567_89ab_cdef_0123_4567_89ab_cdef).to_string()[16..]
            )
        );
    }
}
