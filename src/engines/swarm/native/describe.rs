//! A Swarm service as a description of Neap's: what it is made of, and what cannot be carried over.

use std::collections::{BTreeMap, HashMap};

use bollard::models::{
    EndpointPortConfig, EndpointPortConfigProtocolEnum, EndpointPortConfigPublishModeEnum, EndpointSpecModeEnum,
    HealthConfig, Mount as DockerMount, MountType, ServiceSpec as SwarmSpec, ServiceSpecUpdateConfig,
    ServiceSpecUpdateConfigFailureActionEnum, ServiceSpecUpdateConfigOrderEnum, TaskSpec, TaskSpecContainerSpec,
    TaskSpecRestartPolicyConditionEnum,
};
use serde_json::{Map, Value, json};

use crate::engines::native::Described;
use crate::model::mount::{Mount, MountKind};
use crate::model::name::check_loose;
use crate::model::units::{Bytes, Cpu, Duration};

/// What Docker takes where a health check says nothing.
const HEALTH: (Duration, Duration) = (Duration::from_secs(30), Duration::from_secs(30));
/// How long a Swarm waits before it restarts a task, where a service does not say.
const RESTART: Duration = Duration::from_secs(5);

/// The description. `networks`: their names by id. `ports`: those that the Swarm gave it. `mixed`: whether nodes have
/// different platforms.
pub fn described(
    spec: &SwarmSpec,
    networks: &BTreeMap<String, String>,
    ports: &[EndpointPortConfig],
    mixed: bool,
) -> Described {
    let mut out = Out(Described::default());
    let template = spec.task_template.clone().unwrap_or_default();
    let container = template.container_spec.clone().unwrap_or_default();
    let native = spec.name.clone().unwrap_or_default();
    out.mode(spec);
    out.labels("labels", spec.labels.clone());
    let released = spec.labels.as_ref().is_some_and(|labels| labels.contains_key(super::RELEASED));
    let targets = spec.endpoint_spec.iter().flat_map(|endpoint| endpoint.ports.iter().flatten());
    let targets: Vec<String> = targets.filter_map(|port| Some(port.target_port?.to_string())).collect();
    out.container(&container, &if released { targets } else { Vec::new() });
    out.files(&container);
    out.mounts(&container);
    out.check(container.health_check.as_ref());
    out.resources(&template);
    out.placement(&template, mixed);
    out.restart(&template);
    out.networks(spec, &template, networks, &native);
    out.ports(spec, ports);
    let unsaid = ServiceSpecUpdateConfig { parallelism: Some(1), ..ServiceSpecUpdateConfig::default() };
    out.way("rollout", spec.update_config.as_ref().unwrap_or(&unsaid));
    // In words of their own, of the same shape.
    let back = spec.rollback_config.as_ref().and_then(|back| serde_json::to_value(back).ok());
    if let Some(back) = back.and_then(|back| serde_json::from_value(back).ok()) {
        out.way("rollback", &back);
    }
    // The same is what it is anyway.
    if out.0.service.get("rollback") == out.0.service.get("rollout") {
        out.0.service.remove("rollback");
    }
    if let Some(driver) = &template.log_driver {
        out.set("log", json!({ "driver": driver.name, "options": driver.options.clone().unwrap_or_default() }));
    }
    out.0
}

struct Out(Described);

fn period(nanos: i64) -> Duration {
    Duration::from_millis(u64::try_from(nanos).unwrap_or_default() / 1_000_000)
}

fn sorted(map: Option<HashMap<String, String>>) -> BTreeMap<String, String> {
    map.unwrap_or_default().into_iter().collect()
}

impl Out {
    fn set(&mut self, key: &str, value: Value) {
        self.0.service.insert(key.to_owned(), value);
    }

    // A list or table that is not empty.
    fn fill(&mut self, key: &str, value: Value) {
        let empty = value.as_array().is_some_and(Vec::is_empty) || value.as_object().is_some_and(Map::is_empty);
        if !empty && !value.is_null() {
            self.set(key, value);
        }
    }

    fn note(&mut self, text: impl Into<String>) {
        self.0.notes.push(text.into());
    }

    fn refuse(&mut self, text: impl Into<String>) {
        self.0.refused.push(text.into());
    }

    fn mode(&mut self, spec: &SwarmSpec) {
        let mode = spec.mode.clone().unwrap_or_default();
        if mode.replicated_job.is_some() || mode.global_job.is_some() {
            self.refuse("mode: it is a job");
        } else if mode.global.is_some() {
            self.set("mode", json!("global"));
        } else {
            let replicas = mode.replicated.and_then(|replicated| replicated.replicas).unwrap_or(1);
            self.set("replicas", json!(replicas));
        }
    }

    fn labels(&mut self, field: &str, labels: Option<HashMap<String, String>>) {
        let mut kept = Map::new();
        for (key, value) in sorted(labels) {
            // A service's labels are names; a container's are whatever Docker takes.
            if field == "labels" && check_loose("label", &key).is_err() {
                self.note(format!("label {key:?}: is no name"));
            } else if !key.starts_with("neap.") {
                kept.insert(key, json!(value));
            }
        }
        self.fill(field, Value::Object(kept));
    }

    // `told`: the ports that its tasks were told of when it was given to the Swarm.
    fn container(&mut self, container: &TaskSpecContainerSpec, told: &[String]) {
        let list = |list: &Option<Vec<String>>| json!(list.clone().unwrap_or_default());
        self.set("image", json!(container.image));
        self.fill("entrypoint", list(&container.command));
        self.fill("command", list(&container.args));
        // That is told anew.
        let of_port = |key: &str, value: &str| {
            (key == "PORT" || key.starts_with("PORT_")) && told.iter().any(|port| port == value)
        };
        if let Some(bare) = container.env.iter().flatten().find(|entry| !entry.contains('=')) {
            self.note(format!("env {bare}: has no value, and is left out"));
        }
        let env = container.env.iter().flatten().filter_map(|entry| entry.split_once('='));
        let env = env.filter(|(key, value)| !of_port(key, value) && (told.is_empty() || *key != "NEAP_SECRETS"));
        self.fill("env", env.map(|(key, value)| (key.to_owned(), json!(value))).collect::<Map<_, _>>().into());
        self.labels("container_labels", container.labels.clone());
        for (key, text) in [("workdir", &container.dir), ("user", &container.user), ("hostname", &container.hostname)] {
            if let Some(text) = text.as_ref().filter(|text| !text.is_empty()) {
                self.set(key, json!(text));
            }
        }
        self.fill("groups", list(&container.groups));
        // Swarm's order is the hosts file's: the address first.
        let mut hosts = Map::new();
        for entry in container.hosts.iter().flatten() {
            let mut words = entry.split_whitespace();
            let address = words.next().unwrap_or_default();
            hosts.extend(words.map(|name| (name.to_owned(), json!(address))));
        }
        self.fill("hosts", hosts.into());
        let dns = container.dns_config.clone().unwrap_or_default();
        self.fill("dns", list(&dns.nameservers));
        self.fill("dns_search", list(&dns.search));
        self.fill("dns_options", list(&dns.options));
        self.fill("cap_add", list(&container.capability_add));
        self.fill("cap_drop", list(&container.capability_drop));
        self.fill("sysctls", json!(sorted(container.sysctls.clone())));
        let limits = container.ulimits.iter().flatten().filter_map(|limit| {
            let table = json!({ "soft": limit.soft?, "hard": limit.hard? });
            Some((limit.name.clone()?, table))
        });
        self.fill("ulimits", limits.collect::<Map<_, _>>().into());
        for (key, flag) in [("read_only", container.read_only), ("tty", container.tty)] {
            if flag == Some(true) {
                self.set(key, json!(true));
            }
        }
        if let Some(init) = container.init {
            self.set("init", json!(init));
        }
        let mut stop = Map::new();
        if let Some(signal) = container.stop_signal.as_ref().filter(|signal| !signal.is_empty()) {
            stop.insert("signal".into(), json!(signal));
        }
        if let Some(grace) = container.stop_grace_period {
            stop.insert("grace".into(), json!(period(grace)));
        }
        self.fill("stop", stop.into());
        if container.open_stdin == Some(true) {
            self.note("an open standard input: replicas have none");
        }
        if container.oom_score_adj.is_some_and(|score| score != 0) {
            self.note("oom_score_adj: is left to the host");
        }
        let privileges = container.privileges.clone().unwrap_or_default();
        let of_windows = privileges.credential_spec.is_some();
        let context = privileges.se_linux_context.is_some()
            || privileges.seccomp.is_some()
            || privileges.app_armor.is_some()
            || privileges.no_new_privileges == Some(true);
        if of_windows || context {
            self.refuse("privileges: credential specs, SELinux, seccomp, AppArmor and no-new-privileges are not set");
        }
    }

    fn files(&mut self, container: &TaskSpecContainerSpec) {
        let mut secrets = Map::new();
        for secret in container.secrets.iter().flatten() {
            let name = secret.secret_name.clone().unwrap_or_default();
            let file = secret.file.clone().unwrap_or_default();
            let used = used(&name, [&file.uid, &file.gid], file.mode);
            let target = file.name.unwrap_or_else(|| name.clone());
            let bare = target.strip_prefix("/run/secrets/").unwrap_or(&target).to_owned();
            if bare.contains('/') {
                self.refuse(format!("secret {name}: replicas find secrets below /run/secrets, not at {target}"));
            }
            secrets.insert(bare, used);
        }
        self.fill("secrets", secrets.into());
        let mut configs = Map::new();
        for config in container.configs.iter().flatten() {
            let Some(file) = &config.file else {
                self.refuse("a config without a file, for a credential spec");
                continue;
            };
            let name = config.config_name.clone().unwrap_or_default();
            let used = used(&name, [&file.uid, &file.gid], file.mode);
            configs.insert(file.name.clone().unwrap_or_else(|| name.clone()), used);
            // What it holds is looked up by who asked for this.
            self.0.configs.insert(name, Vec::new());
        }
        self.fill("configs", configs.into());
    }

    fn mounts(&mut self, container: &TaskSpecContainerSpec) {
        let mut mounts = Vec::new();
        for mount in container.mounts.iter().flatten() {
            let bind = mount.bind_options.clone().unwrap_or_default();
            if bind.non_recursive == Some(true) || bind.create_mountpoint == Some(true) {
                let target = mount.target.clone().unwrap_or_default();
                self.note(format!(
                    "mount {target}: what is mounted below comes along, and a missing source is not made"
                ));
            }
            match one_mount(mount) {
                Ok(mount) => mounts.push(json!(mount)),
                Err(kind) => {
                    let target = mount.target.clone().unwrap_or_default();
                    self.refuse(format!("mount {target}: of the type {kind}"));
                }
            }
        }
        self.fill("mounts", mounts.into());
    }

    fn check(&mut self, health: Option<&HealthConfig>) {
        let Some(health) = health else { return };
        let test = health.test.clone().unwrap_or_default();
        let mut check = Map::new();
        match test.split_first().map(|(kind, rest)| (kind.as_str(), rest)) {
            Some(("NONE", _)) => return self.set("check", json!(false)),
            Some(("CMD-SHELL", line)) => drop(check.insert("exec".into(), json!(["/bin/sh", "-c", line.join(" ")]))),
            Some(("CMD", command)) => drop(check.insert("exec".into(), json!(command))),
            _ => {}
        }
        let told = |nanos: Option<i64>| nanos.filter(|nanos| *nanos > 0).map(period);
        if told(health.start_interval).is_some() {
            self.note("health check: the interval counts from the start on");
        }
        let own = check.contains_key("exec");
        let or = |found: Option<Duration>, usual: Duration| found.or(own.then_some(usual));
        let times = [
            ("every", or(told(health.interval), HEALTH.0)),
            ("timeout", or(told(health.timeout), HEALTH.1)),
            ("start_period", told(health.start_period)),
        ];
        for (key, time) in times {
            if let Some(time) = time {
                check.insert(key.into(), json!(time));
            }
        }
        if let Some(retries) = health.retries.filter(|retries| *retries > 0) {
            check.insert("unhealthy".into(), json!(retries));
        }
        self.fill("check", check.into());
    }

    fn resources(&mut self, template: &TaskSpec) {
        let resources = template.resources.clone().unwrap_or_default();
        let cpu = |nanos: Option<i64>| {
            let nanos = nanos.filter(|nanos| *nanos > 0)?;
            Some(Cpu(u32::try_from((nanos / 1_000_000).max(1)).unwrap_or(u32::MAX)))
        };
        let memory = |bytes: Option<i64>| Some(Bytes(u64::try_from(bytes?).ok().filter(|bytes| *bytes > 0)?));
        let mut table = |key: &str, fields: [(&str, Option<Value>); 3]| {
            let fields = fields.into_iter().filter_map(|(key, value)| Some((key.to_owned(), value?)));
            self.fill(key, fields.collect::<Map<_, _>>().into());
        };
        if let Some(limits) = resources.limits {
            let pids = limits.pids.filter(|pids| *pids > 0).map(|pids| json!(pids));
            let amounts = (cpu(limits.nano_cpus), memory(limits.memory_bytes));
            table(
                "limits",
                [
                    ("cpu", amounts.0.map(|cpu| json!(cpu))),
                    ("memory", amounts.1.map(|memory| json!(memory))),
                    ("pids", pids),
                ],
            );
        }
        if let Some(reserved) = resources.reservations {
            let amounts = (cpu(reserved.nano_cpus), memory(reserved.memory_bytes));
            table(
                "reservations",
                [
                    ("cpu", amounts.0.map(|cpu| json!(cpu))),
                    ("memory", amounts.1.map(|memory| json!(memory))),
                    ("pids", None),
                ],
            );
            if reserved.generic_resources.is_some_and(|resources| !resources.is_empty()) {
                self.refuse("generic resources: label the nodes, and use a constraint or a policy");
            }
        }
    }

    fn placement(&mut self, template: &TaskSpec, mixed: bool) {
        let placement = template.placement.clone().unwrap_or_default();
        if mixed && placement.platforms.as_ref().is_some_and(|platforms| !platforms.is_empty()) {
            self.note("platforms: nodes of another platform are not kept out; add a constraint on node.platform.arch");
        }
        self.fill("constraints", json!(placement.constraints.unwrap_or_default()));
        if let Some(most) = placement.max_replicas.filter(|most| *most > 0) {
            self.set("max_replicas_per_node", json!(most));
        }
        let mut policies = Vec::new();
        for preference in placement.preferences.into_iter().flatten() {
            let over = preference.spread.and_then(|spread| spread.spread_descriptor).unwrap_or_default();
            match over.strip_prefix("node.") {
                Some(over) => policies.push(json!({ "use": "spread", "over": over })),
                None => self.note(format!("placement preference {over:?}: only what a node has can be spread over")),
            }
        }
        self.fill("policy", policies.into());
        if template.plugin_spec.is_some() || template.network_attachment_spec.is_some() {
            self.refuse("runtime: its tasks are no containers");
        }
    }

    fn restart(&mut self, template: &TaskSpec) {
        let policy = template.restart_policy.clone().unwrap_or_default();
        let mut restart = Map::new();
        let condition = match policy.condition {
            Some(TaskSpecRestartPolicyConditionEnum::NONE) => Some("none"),
            Some(TaskSpecRestartPolicyConditionEnum::ON_FAILURE) => Some("on-failure"),
            Some(TaskSpecRestartPolicyConditionEnum::ANY) => Some("any"),
            _ => None,
        };
        if let Some(condition) = condition {
            restart.insert("condition".into(), json!(condition));
        }
        restart.insert("delay".into(), json!(policy.delay.map_or(RESTART, period)));
        if let Some(nanos) = policy.window.filter(|nanos| *nanos > 0) {
            restart.insert("window".into(), json!(period(nanos)));
        }
        if let Some(attempts) = policy.max_attempts.filter(|attempts| *attempts > 0) {
            restart.insert("max_attempts".into(), json!(attempts));
        }
        self.fill("restart", restart.into());
    }

    fn networks(&mut self, spec: &SwarmSpec, template: &TaskSpec, known: &BTreeMap<String, String>, native: &str) {
        let attached = template.networks.clone().or(spec.networks.clone()).unwrap_or_default();
        let mut networks = Vec::new();
        for network in attached {
            let target = network.target.unwrap_or_default();
            let Some(name) = known.get(&target).cloned() else {
                self.refuse(format!("network {target}: is not known any more"));
                continue;
            };
            if network.driver_opts.is_some_and(|options| !options.is_empty()) {
                self.note(format!("network {name}: options belong to the network, and are left out"));
            }
            if matches!(name.as_str(), "host" | "none" | "bridge") {
                networks.push(json!({ "name": name }));
                continue;
            }
            let mut aliases = network.aliases.unwrap_or_default();
            // Others find it under the name that it had.
            if !aliases.iter().any(|alias| alias == native) {
                aliases.push(native.to_owned());
            }
            networks.push(json!({ "name": name, "aliases": aliases }));
        }
        let virtual_address =
            spec.endpoint_spec.as_ref().and_then(|endpoint| endpoint.mode) != Some(EndpointSpecModeEnum::DNSRR);
        if virtual_address && !networks.is_empty() {
            self.note("endpoint mode vip: its name leads to all replicas, no more to one address before them");
        }
        self.fill("networks", networks.into());
    }

    fn ports(&mut self, spec: &SwarmSpec, given: &[EndpointPortConfig]) {
        let wanted = spec.endpoint_spec.as_ref().and_then(|endpoint| endpoint.ports.clone()).unwrap_or_default();
        let mut ports = Map::new();
        for port in &wanted {
            let target = port.target_port.unwrap_or_default();
            if port.protocol == Some(EndpointPortConfigProtocolEnum::SCTP) {
                self.refuse(format!("port {target}: sctp is not forwarded"));
                continue;
            }
            let same =
                |other: &&EndpointPortConfig| other.target_port == port.target_port && other.protocol == port.protocol;
            let found = port.published_port.filter(|port| *port > 0);
            let published = found.or_else(|| given.iter().find(same)?.published_port).filter(|port| *port > 0);
            if port.publish_mode == Some(EndpointPortConfigPublishModeEnum::HOST) {
                self.note(match published {
                    Some(published) => format!("port {published}: is open on every host, no more only beside a task"),
                    None => format!("port {target}: the host chose its number; from now on it is found by name only"),
                });
            }
            let mut name = if wanted.len() == 1 { "http".to_owned() } else { format!("p{target}") };
            if ports.contains_key(&name) {
                name = format!("{name}-{}", published.unwrap_or_default());
            }
            let mut table = Map::from_iter([("target".to_owned(), json!(target))]);
            if port.protocol == Some(EndpointPortConfigProtocolEnum::UDP) {
                table.insert("protocol".into(), json!("udp"));
            }
            if let Some(published) = published {
                table.insert("published".into(), json!(published));
            }
            ports.insert(name, table.into());
        }
        self.fill("ports", ports.into());
    }

    fn way(&mut self, field: &str, update: &ServiceSpecUpdateConfig) {
        let mut rollout = Map::from_iter([("use".to_owned(), json!("rolling"))]);
        // 0 means all at once.
        let batch = match update.parallelism.unwrap_or_default() {
            ..=0 => json!("100%"),
            count => json!(count),
        };
        rollout.insert("batch".into(), batch);
        for (key, nanos) in [("delay", update.delay), ("min_healthy", update.monitor)] {
            if let Some(nanos) = nanos.filter(|nanos| *nanos > 0) {
                rollout.insert(key.into(), json!(period(nanos)));
            }
        }
        if let Some(ratio) = update.max_failure_ratio.filter(|ratio| *ratio > 0.0) {
            rollout.insert("max_failure_ratio".into(), json!(ratio));
        }
        let action = match update.failure_action {
            Some(ServiceSpecUpdateConfigFailureActionEnum::CONTINUE) => "continue",
            Some(ServiceSpecUpdateConfigFailureActionEnum::ROLLBACK) => "rollback",
            _ => "pause",
        };
        let order = match update.order {
            Some(ServiceSpecUpdateConfigOrderEnum::START_FIRST) => "start-first",
            _ => "stop-first",
        };
        for (key, word) in [("on_failure", action), ("order", order)] {
            rollout.insert(key.into(), json!(word));
        }
        self.set(field, rollout.into());
    }
}

fn one_mount(mount: &DockerMount) -> Result<Mount, String> {
    let kind = match mount.typ {
        Some(MountType::VOLUME) => MountKind::Volume,
        Some(MountType::BIND) => MountKind::Bind,
        Some(MountType::TMPFS) => MountKind::Tmpfs,
        other => return Err(other.map_or_else(|| "none".into(), |kind| kind.to_string())),
    };
    let volume = mount.volume_options.clone().unwrap_or_default();
    let driver = volume.driver_config.unwrap_or_default();
    let memory = mount.tmpfs_options.clone().unwrap_or_default();
    let propagation = mount.bind_options.as_ref().and_then(|options| options.propagation);
    Ok(Mount {
        kind,
        source: mount.source.clone().filter(|source| !source.is_empty()),
        target: mount.target.clone().unwrap_or_default(),
        read_only: mount.read_only.unwrap_or_default(),
        volume_driver: driver.name.filter(|name| !name.is_empty()),
        volume_options: sorted(driver.options),
        volume_labels: sorted(volume.labels),
        volume_nocopy: volume.no_copy.unwrap_or_default(),
        bind_propagation: propagation.map(|propagation| propagation.to_string()).filter(|text| !text.is_empty()),
        tmpfs_size: memory.size_bytes.and_then(|bytes| u64::try_from(bytes).ok()).filter(|n| *n > 0).map(Bytes),
        tmpfs_mode: memory.mode.filter(|mode| *mode > 0).map(|mode| format!("{mode:o}")),
    })
}

// A secret or config as a file: owner and mode where they are not the usual ones.
fn used(name: &str, [uid, gid]: [&Option<String>; 2], mode: Option<u32>) -> Value {
    let mut used = Map::from_iter([("name".to_owned(), json!(name))]);
    for (key, id) in [("uid", uid), ("gid", gid)] {
        if let Some(id) = id.as_ref().and_then(|id| id.parse::<u32>().ok()).filter(|id| *id > 0) {
            used.insert(key.into(), json!(id));
        }
    }
    if let Some(mode) = mode.filter(|mode| *mode != 0o444) {
        used.insert("mode".into(), json!(format!("{mode:04o}")));
    }
    if used.len() == 1 { json!(name) } else { used.into() }
}
