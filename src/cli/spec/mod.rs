//! The flags of `service create` and `service update`, under Docker's names, as a description.

mod container;
mod files;
mod ports;
mod refused;
mod rollback;
mod routes;
#[cfg(test)]
mod tests;
mod words;

use container::{ContainerArgs, change_list};
use files::FileArgs;
use refused::RefusedArgs;
use rollback::RollbackArgs;
use serde_json::{Map, Value, json};
pub use words::{CommandArgs, Words, name_it};

use self::routes::RouteArgs;
use crate::model::bundle::Bundle;
use crate::model::units::docker_size;
use crate::model::{Error, Result};
use crate::script::bring::bring;

/// Flags that describe a service.
#[derive(clap::Args, Default)]
pub struct SpecArgs {
    /// Number of replicas
    #[arg(long)]
    replicas: Option<u32>,
    /// replicated or global
    #[arg(long)]
    mode: Option<String>,
    /// Let the Swarm run it as one service of its own: scheduled, checked and updated by it
    #[arg(long, num_args = 0..=1, default_missing_value = "true", require_equals = true, value_name = "BOOL")]
    engine_native: Option<bool>,
    /// Publish a port: [NAME=][ADDRESS:]PUBLISHED[:TARGET], or published=80,target=8080
    #[arg(long, short = 'p', visible_alias = "publish-add", value_name = "PORT")]
    publish: Vec<String>,
    /// Publish no more the port with this target (update)
    #[arg(long, value_name = "TARGET")]
    publish_rm: Vec<String>,
    #[command(flatten)]
    routes: RouteArgs,
    /// Set an environment variable; KEY alone passes on the caller's
    #[arg(long, short = 'e', visible_alias = "env-add", value_name = "KEY[=VALUE]")]
    env: Vec<String>,
    /// Remove an environment variable (update)
    #[arg(long, value_name = "KEY")]
    env_rm: Vec<String>,
    /// Read environment variables from a file
    #[arg(long, value_name = "FILE")]
    env_file: Vec<std::path::PathBuf>,
    /// Set a label
    #[arg(long, short = 'l', visible_alias = "label-add", value_name = "KEY=VALUE")]
    label: Vec<String>,
    /// Remove a label (update)
    #[arg(long, value_name = "KEY")]
    label_rm: Vec<String>,
    #[command(flatten)]
    files: FileArgs,
    /// Working folder
    #[arg(long, short = 'w', value_name = "FOLDER")]
    workdir: Option<String>,
    /// User to run as: USER[:GROUP]
    #[arg(long, short = 'u')]
    user: Option<String>,
    /// Placement constraint, such as node.labels.disk==ssd
    #[arg(long, visible_alias = "constraint-add")]
    constraint: Vec<String>,
    /// Remove a constraint (update)
    #[arg(long, value_name = "CONSTRAINT")]
    constraint_rm: Vec<String>,
    /// Spread over the values of a label: spread=node.labels.zone
    #[arg(long, visible_alias = "placement-pref-add", value_name = "PREFERENCE", conflicts_with = "policy")]
    placement_pref: Vec<String>,
    /// Spread over the values of a label no more (update)
    #[arg(long, value_name = "PREFERENCE", conflicts_with = "policy")]
    placement_pref_rm: Vec<String>,
    /// Most replicas on one node
    #[arg(long)]
    replicas_max_per_node: Option<u32>,
    /// Most cpu, in cores
    #[arg(long, value_name = "CORES")]
    limit_cpu: Option<String>,
    /// Most memory, such as 512M
    #[arg(long, value_name = "SIZE")]
    limit_memory: Option<String>,
    /// Most processes and threads
    #[arg(long, value_name = "N")]
    limit_pids: Option<u32>,
    /// Cpu that a node must have free, in cores
    #[arg(long, value_name = "CORES")]
    reserve_cpu: Option<String>,
    /// Memory that a node must have free
    #[arg(long, value_name = "SIZE")]
    reserve_memory: Option<String>,
    /// Placement policy, as NAME or NAME,option=value
    #[arg(long)]
    policy: Vec<String>,
    /// Check by a registered script
    #[arg(long, value_name = "NAME", conflicts_with_all = ["health_cmd", "health_http", "health_tcp"])]
    check: Option<String>,
    /// No check, not even the image's own
    #[arg(long, conflicts_with_all = ["check", "health_cmd", "health_http", "health_tcp"])]
    no_healthcheck: bool,
    /// Check by a command
    #[arg(long, value_name = "COMMAND", conflicts_with_all = ["health_http", "health_tcp"])]
    health_cmd: Option<String>,
    /// Check by GET of this path
    #[arg(long, value_name = "PATH", conflicts_with = "health_tcp")]
    health_http: Option<String>,
    /// Check by a connection to this port: a name, or a number inside the replica's network
    #[arg(long, value_name = "PORT")]
    health_tcp: Option<String>,
    /// The port for --health-http: a name, or a number inside the replica's network
    #[arg(long, value_name = "PORT", conflicts_with = "health_tcp")]
    health_port: Option<String>,
    /// Time between checks
    #[arg(long, value_name = "DURATION")]
    health_interval: Option<String>,
    /// Time that one check may take
    #[arg(long, value_name = "DURATION")]
    health_timeout: Option<String>,
    /// Failures in a row that make unhealthy
    #[arg(long, value_name = "N")]
    health_retries: Option<u32>,
    /// Time after the start in which failures do not count
    #[arg(long, value_name = "DURATION")]
    health_start_period: Option<String>,
    /// What follows when unhealthy: restart, unroute, none
    #[arg(long, value_parser = ["restart", "unroute", "none"])]
    health_on_fail: Option<String>,
    /// Rollout script, as NAME or NAME,option=value
    #[arg(long)]
    rollout: Option<String>,
    /// Replicas replaced at once, or a part such as 25% (rollout rolling)
    #[arg(long, value_name = "N")]
    update_parallelism: Option<String>,
    /// Time between batches (rollout rolling)
    #[arg(long, value_name = "DURATION")]
    update_delay: Option<String>,
    /// Time a new replica has to be healthy (rollout rolling)
    #[arg(long, value_name = "DURATION")]
    update_monitor: Option<String>,
    /// start-first or stop-first (rollout rolling)
    #[arg(long, value_parser = ["start-first", "stop-first"])]
    update_order: Option<String>,
    /// What follows when a new replica fails (rollout rolling)
    #[arg(long, value_parser = ["rollback", "pause", "continue"])]
    update_failure_action: Option<String>,
    /// Share of replicas that may fail (rollout rolling)
    #[arg(long, value_name = "RATIO")]
    update_max_failure_ratio: Option<f64>,
    /// When an ended replica is started again
    #[arg(long, value_parser = ["none", "on-failure", "any"])]
    restart_condition: Option<String>,
    /// Wait before the first restart; doubled for each further one
    #[arg(long, value_name = "DURATION")]
    restart_delay: Option<String>,
    /// Most restarts in a row; 0 for no bound
    #[arg(long, value_name = "N")]
    restart_max_attempts: Option<u32>,
    /// A replica that ran this long has recovered
    #[arg(long, value_name = "DURATION")]
    restart_window: Option<String>,
    /// Signal that asks a replica to end
    #[arg(long, value_name = "SIGNAL")]
    stop_signal: Option<String>,
    /// Time between that signal and the kill
    #[arg(long, value_name = "DURATION")]
    stop_grace_period: Option<String>,
    /// Time that open connections have before the signal
    #[arg(long, value_name = "DURATION")]
    stop_drain: Option<String>,
    #[command(flatten)]
    container: ContainerArgs,
    #[command(flatten)]
    rollback: RollbackArgs,
    #[command(flatten)]
    refused: RefusedArgs,
    /// Bring hosted scripts along: a pattern below this folder, such as 'policies/*.lua'
    #[arg(long, value_name = "PATTERN")]
    with: Vec<String>,
    /// Read the description from a file (.json, .yaml, .toml); flags come on top
    #[arg(long, short = 'f', value_name = "FILE")]
    file: Option<std::path::PathBuf>,
}

impl SpecArgs {
    /// The description on top of `base` (what the service is now, or nothing).
    pub fn describe(&self, name: Option<&str>, base: Option<Value>) -> Result<Value> {
        self.refused.check()?;
        if self.replicas.is_some() && self.mode.as_deref().is_some_and(|mode| mode.starts_with("global")) {
            return Err(Error::invalid("--replicas", "is not for --mode global, which has one on every node"));
        }
        let mut spec = match (base, &self.file) {
            (Some(Value::Object(base)), _) => base,
            (_, _) => Map::new(),
        };
        let base_name = spec.get("name").cloned();
        if let Some(path) = &self.file {
            spec.extend(read_file(path)?);
            if let (Some(base), Some(named)) = (&base_name, spec.get("name"))
                && base != named
            {
                let message = format!("describes {named}, and not {base}");
                return Err(Error::invalid(format!("file {}", path.display()), message));
            }
        }
        if let Some(name) = name {
            spec.insert("name".into(), json!(name));
        }
        let single = [
            ("replicas", self.replicas.map(Value::from)),
            ("mode", self.mode.as_deref().map(mode).transpose()?),
            ("engine_native", self.engine_native.map(Value::from)),
            ("workdir", self.workdir.clone().map(Value::from)),
            ("user", self.user.clone().map(Value::from)),
            ("max_replicas_per_node", self.replicas_max_per_node.map(Value::from)),
        ];
        for (key, value) in single {
            set(&mut spec, key, value);
        }
        change_list(&mut spec, "constraints", &constraints(&self.constraint)?, &constraints(&self.constraint_rm)?);
        if let Some(policy) = self.preference(base_name.and_then(|_| spec.get("policy")))? {
            spec.insert("policy".into(), policy);
        }
        if !self.policy.is_empty() {
            let uses: Result<Vec<Value>> = self.policy.iter().map(|text| read_use(text)).collect();
            spec.insert("policy".into(), Value::Array(uses?));
        }
        self.container.describe(&mut spec)?;
        self.maps(&mut spec)?;
        self.tables(&mut spec)?;
        Ok(Value::Object(spec))
    }

    /// The scripts that are brought along, if any.
    pub fn scripts(&self) -> Result<Option<Bundle>> {
        if self.with.is_empty() {
            return Ok(None);
        }
        let here = std::env::current_dir().map_err(|error| Error::io("working folder", "find it", &error))?;
        bring(&here, &self.with).map(Some)
    }

    fn maps(&self, spec: &mut Map<String, Value>) -> Result<()> {
        let mut env = Vec::new();
        for path in &self.env_file {
            let text = std::fs::read_to_string(path)
                .map_err(|error| Error::io(format!("--env-file {}", path.display()), "read it", &error))?;
            env.extend(
                text.lines()
                    .map(str::trim_start)
                    .filter(|line| !line.is_empty() && !line.starts_with('#'))
                    .map(str::to_owned),
            );
        }
        env.extend(self.env.iter().cloned());
        for key in &self.env_rm {
            table(spec, "env").remove(key);
            not_by_reference(spec, key);
        }
        for text in env {
            // As with Docker, a bare name passes on the caller's variable.
            let (key, value) = match text.split_once('=') {
                Some((key, value)) => (key.to_owned(), Some(value.to_owned())),
                None => (text.clone(), std::env::var(&text).ok()),
            };
            if value.is_some() {
                not_by_reference(spec, &key);
            }
            set(table(spec, "env"), &key, value.map(Value::from));
        }
        for key in &self.label_rm {
            table(spec, "labels").remove(key);
        }
        for text in &self.label {
            let (key, value) = text.split_once('=').unwrap_or((text, ""));
            table(spec, "labels").insert(key.to_owned(), json!(value));
        }
        self.files.describe(spec)?;
        ports::describe(spec, &self.publish, &self.publish_rm)?;
        self.routes.describe(spec)
    }

    // Each preference is a spread; the first decides, the next ones break ties. `old`: what an update adds to.
    fn preference(&self, old: Option<&Value>) -> Result<Option<Value>> {
        if self.placement_pref.is_empty() && self.placement_pref_rm.is_empty() {
            return Ok(None);
        }
        let read = |text: &String| {
            let over = text.strip_prefix("spread=").and_then(|over| over.strip_prefix("node."));
            let wrong = || Error::invalid(format!("--placement-pref {text:.80?}"), "is not spread=node.labels.KEY");
            over.map(|over| json!({ "use": "spread", "over": over })).ok_or_else(wrong)
        };
        let remove = self.placement_pref_rm.iter().map(read).collect::<Result<Vec<_>>>()?;
        let mut policies = old.and_then(Value::as_array).cloned().unwrap_or_default();
        policies.retain(|policy| policy.get("over").is_some() && !remove.contains(policy));
        for added in self.placement_pref.iter().map(read) {
            let added = added?;
            policies.retain(|policy| *policy != added);
            policies.push(added);
        }
        Ok(Some(if policies.is_empty() { json!(["spread"]) } else { Value::Array(policies) }))
    }

    fn tables(&self, spec: &mut Map<String, Value>) -> Result<()> {
        let text = |value: &Option<String>| value.clone().map(Value::from);
        let size = |value: &Option<String>| value.as_deref().map(|value| json!(docker_size(value)));
        let groups = [
            (
                "limits",
                vec![
                    ("cpu", text(&self.limit_cpu)),
                    ("memory", size(&self.limit_memory)),
                    ("pids", self.limit_pids.map(Value::from)),
                ],
            ),
            ("reservations", vec![("cpu", text(&self.reserve_cpu)), ("memory", size(&self.reserve_memory))]),
            (
                "restart",
                vec![
                    ("condition", text(&self.restart_condition)),
                    ("delay", text(&self.restart_delay)),
                    ("max_attempts", self.restart_max_attempts.map(Value::from)),
                    ("window", text(&self.restart_window)),
                ],
            ),
            (
                "stop",
                vec![
                    ("signal", text(&self.stop_signal)),
                    ("grace", text(&self.stop_grace_period)),
                    ("drain", text(&self.stop_drain)),
                ],
            ),
        ];
        for (group, fields) in groups {
            for (key, value) in fields {
                if value.is_some() {
                    set(table(spec, group), key, value);
                }
            }
        }
        self.check(spec);
        self.rollout(spec)
    }

    fn check(&self, spec: &mut Map<String, Value>) {
        if self.no_healthcheck {
            spec.insert("check".into(), json!(false));
            return;
        }
        let kinds = [
            ("script", self.check.clone().map(Value::from)),
            ("exec", self.health_cmd.clone().map(|line| json!(["/bin/sh", "-c", line]))),
            ("http", self.health_http.clone().map(Value::from)),
            ("tcp", self.health_tcp.clone().map(Value::from)),
        ];
        if kinds.iter().any(|(_, value)| value.is_some()) {
            // Another kind of check replaces the one before, its times stay.
            for (kind, _) in &kinds {
                table(spec, "check").remove(*kind);
            }
            table(spec, "check").remove("disable");
            if self.health_http.is_none() {
                table(spec, "check").remove("port");
            }
        }
        let fields = [
            ("port", self.health_port.clone().map(Value::from)),
            ("every", self.health_interval.clone().map(Value::from)),
            ("timeout", self.health_timeout.clone().map(Value::from)),
            ("unhealthy", self.health_retries.map(Value::from)),
            ("start_period", self.health_start_period.clone().map(Value::from)),
            ("on_fail", self.health_on_fail.clone().map(Value::from)),
        ];
        for (key, value) in kinds.into_iter().chain(fields) {
            if value.is_some() {
                set(table(spec, "check"), key, value);
            }
        }
    }

    fn rollout(&self, spec: &mut Map<String, Value>) -> Result<()> {
        if let Some(text) = &self.rollout {
            spec.insert("rollout".into(), read_use(text)?);
        }
        let fields = [
            ("batch", self.update_parallelism.as_deref().map(rollback::batch)),
            ("delay", self.update_delay.clone().map(Value::from)),
            ("min_healthy", self.update_monitor.clone().map(Value::from)),
            ("order", self.update_order.clone().map(Value::from)),
            ("on_failure", self.update_failure_action.clone().map(Value::from)),
            ("max_failure_ratio", self.update_max_failure_ratio.map(Value::from)),
        ];
        for (key, value) in fields {
            if value.is_some() {
                if !spec.get("rollout").is_some_and(Value::is_object) {
                    let name = spec.get("rollout").cloned().unwrap_or_else(|| json!("rolling"));
                    spec.insert("rollout".into(), json!({ "use": name }));
                }
                set(table(spec, "rollout"), key, value);
            }
        }
        self.rollback.describe(spec)
    }
}

fn set(spec: &mut Map<String, Value>, key: &str, value: Option<Value>) {
    if let Some(value) = value {
        spec.insert(key.to_owned(), value);
    }
}

fn table<'a>(spec: &'a mut Map<String, Value>, key: &str) -> &'a mut Map<String, Value> {
    let entry = spec.entry(key).or_insert_with(|| json!({}));
    if !entry.is_object() {
        *entry = json!({});
    }
    entry.as_object_mut().expect("was just made an object")
}

fn mode(text: &str) -> Result<Value> {
    match text {
        "replicated" | "global" => Ok(json!(text)),
        "replicated-job" | "global-job" => {
            Err(Error::new(crate::model::Kind::Unsupported, format!("--mode {text}"), "is not supported").help(
                "a replica that may end is --restart-condition none; what is to happen at a time is a cron script",
            ))
        }
        _ => Err(Error::invalid(format!("--mode {text:.40?}"), "is neither replicated nor global")),
    }
}

// In the form in which they are stored, so that one is found however it was written.
fn constraints(texts: &[String]) -> Result<Vec<String>> {
    let read = |text: &String| text.parse::<crate::model::constraint::Constraint>().map(|read| read.to_string());
    texts.iter().map(read).collect()
}

// `spread,over=labels.zone`.
fn read_use(text: &str) -> Result<Value> {
    let mut parts = text.split(',');
    let mut map = Map::new();
    map.insert("use".into(), json!(parts.next().unwrap_or_default()));
    for part in parts {
        let (key, value) =
            part.split_once('=').ok_or_else(|| Error::invalid(format!("option {part:.60?}"), "is not key=value"))?;
        let value = value.parse::<f64>().map_or_else(|_| json!(value), |number| json!(number));
        map.insert(key.to_owned(), value);
    }
    Ok(Value::Object(map))
}

// A variable that is set or gone comes from no key any more.
fn not_by_reference(spec: &mut Map<String, Value>, variable: &str) {
    if let Some(references) = spec.get_mut("env_kv").and_then(Value::as_object_mut) {
        references.remove(variable);
    }
}

/// What of a description differs from `base`, so that whatever somebody else changes meanwhile stays.
pub fn changes(base: &Value, described: Value) -> Value {
    let (Some(old), Some(new)) = (base.as_object(), described.as_object()) else { return described };
    // Both are what variables come from.
    let env = ["env", "env_kv"];
    let env_differs = env.iter().any(|key| old.get(*key) != new.get(*key));
    if old.keys().any(|key| !new.contains_key(key)) {
        return described;
    }
    let counts = |key: &String, value: &Value| {
        key == "name" || old.get(key) != Some(value) || env_differs && env.contains(&key.as_str())
    };
    new.iter().filter(|(key, value)| counts(key, value)).map(|(key, value)| (key.clone(), value.clone())).collect()
}

fn read_file(path: &std::path::Path) -> Result<Map<String, Value>> {
    let subject = format!("file {}", path.display());
    let text = std::fs::read_to_string(path).map_err(|error| Error::io(subject.clone(), "read it", &error))?;
    let wrong = |error: &dyn std::fmt::Display| Error::invalid(subject.clone(), "cannot be read").cause(error);
    let value: Value = match path.extension().and_then(|extension| extension.to_str()) {
        Some("yaml" | "yml") => serde_norway::from_str(&text).map_err(|error| wrong(&error))?,
        Some("toml") => toml::from_str(&text).map_err(|error| wrong(&error))?,
        _ => serde_json::from_str(&text).map_err(|error| wrong(&error))?,
    };
    match value {
        Value::Object(map) => Ok(map),
        _ => Err(Error::invalid(subject, "is not a table of fields")),
    }
}
