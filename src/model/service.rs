//! The service description: what a user asks for. Everything but `name` has a default.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::check::CheckSpec;
use super::clock::Timestamp;
use super::constraint::Constraint;
use super::container::{self, NetworkUse, Pull, Ulimit, ValueUse};
use super::error::{Error, Result};
use super::id::{ServiceId, sha256_hex};
use super::internal::Internal;
use super::mount::Mount;
use super::name::{Name, check_label};
use super::native::{Handover, Way};
pub use super::policy::{LogPolicy, Resources, RestartCondition, RestartPolicy, StopPolicy, Use};
use super::port::{PortSpec, Protocol};
use super::route::RouteSpec;
use super::spellings;
use super::strict;

/// Most replicas of one service.
pub const MAX_REPLICAS: u32 = 100_000;
/// Most entries in any list or table of a description, and the longest text in one, in bytes.
const MAX_ENTRIES: usize = 1000;
const MAX_TEXT: usize = 128 * 1024;

/// What a user asks for.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct ServiceSpec {
    /// Its name, unique in the cluster.
    pub name: Name,
    /// Free labels.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, String>,
    /// Whether the container engine runs it as one service of its own: scheduled, checked and updated by the Swarm.
    #[serde(default, skip_serializing_if = "is_default")]
    pub engine_native: bool,
    /// A number of replicas, or one a node.
    #[serde(default)]
    pub mode: Mode,
    /// How many replicas; not used in global mode.
    #[serde(default = "one")]
    pub replicas: u32,
    /// The container image, for engines that run containers.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub image: Option<String>,
    /// When the image is pulled: `missing`, `always`, `never`.
    #[serde(default, skip_serializing_if = "is_default")]
    pub pull: Pull,
    /// The platform of the image where it has several: `linux/arm64`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub platform: Option<String>,
    /// What is run instead of the image's entry point.
    #[serde(default, deserialize_with = "spellings::command", skip_serializing_if = "Vec::is_empty")]
    pub entrypoint: Vec<String>,
    /// The command and its arguments; in a container, what is handed to the entry point instead of the image's own.
    #[serde(default, deserialize_with = "spellings::command", skip_serializing_if = "Vec::is_empty")]
    pub command: Vec<String>,
    /// Environment variables.
    #[serde(default, deserialize_with = "spellings::environment", skip_serializing_if = "BTreeMap::is_empty")]
    pub env: BTreeMap<String, String>,
    /// Variables whose values are keys' at the time of the apply; in a description `env = { LEVEL = { kv = "shop/level" } }`.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub env_kv: BTreeMap<String, String>,
    /// Secrets by the name that replicas see: `{ database_url = "shop/database_url" }`.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(with = "BTreeMap<String, container::NameOrUse>")]
    pub secrets: BTreeMap<String, ValueUse>,
    /// Configs by the file that replicas see: `{ ["/etc/nginx/nginx.conf"] = "shop/nginx" }`.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(with = "BTreeMap<String, container::NameOrUse>")]
    pub configs: BTreeMap<String, ValueUse>,
    /// The folder in which the command runs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub workdir: Option<String>,
    /// The user (name or number, optionally `:group`) as whom it runs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user: Option<String>,
    /// Further groups of a container's user.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub groups: Vec<String>,
    /// Volumes, paths of the host, and memory in a container.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub mounts: Vec<Mount>,
    /// Networks that containers are attached to; the engine's own where none is named.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub networks: Vec<NetworkUse>,
    /// A container's host name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hostname: Option<String>,
    /// Further names in a container's hosts file, with their addresses.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub hosts: BTreeMap<String, String>,
    /// Name servers of a container.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub dns: Vec<String>,
    /// Domains in which a container looks names up.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub dns_search: Vec<String>,
    /// Options of a container's resolver.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub dns_options: Vec<String>,
    /// Capabilities that a container has besides the usual ones.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub cap_add: Vec<String>,
    /// Usual capabilities that a container does not have.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub cap_drop: Vec<String>,
    /// Kernel parameters of a container's own namespaces.
    #[serde(default, deserialize_with = "spellings::environment", skip_serializing_if = "BTreeMap::is_empty")]
    pub sysctls: BTreeMap<String, String>,
    /// The kernel's limits for a container's processes, by name.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub ulimits: BTreeMap<String, Ulimit>,
    /// Whether a container's own file system may only be read.
    #[serde(default, skip_serializing_if = "is_default")]
    pub read_only: bool,
    /// Whether a container's first process is one that passes signals on and reaps; the engine's setting where not said.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub init: Option<bool>,
    /// Whether a container has a terminal.
    #[serde(default, skip_serializing_if = "is_default")]
    pub tty: bool,
    /// Labels of containers; a change of these replaces them.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub container_labels: BTreeMap<String, String>,
    /// Ports by name: `{ http = "8080" }`.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub ports: BTreeMap<String, PortSpec>,
    /// How it is reached inside the cluster: `direct`, each replica by the service's name; or `balanced`, by an address of its own at which
    /// every host's balancer leads to its ports (direct).
    #[serde(default, skip_serializing_if = "is_default")]
    pub internal: Internal,
    /// HTTP requests that go to it: `{ "shop.example.com/api" }`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub routes: Vec<RouteSpec>,
    /// What a replica may use at most.
    #[serde(default, skip_serializing_if = "Resources::is_empty")]
    pub limits: Resources,
    /// What a node must have free for a replica.
    #[serde(default, skip_serializing_if = "Resources::is_empty")]
    pub reservations: Resources,
    /// Conditions on the node.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub constraints: Vec<Constraint>,
    /// Most replicas on one node; 0 for no bound.
    #[serde(default, skip_serializing_if = "is_default")]
    pub max_replicas_per_node: u32,
    /// Placement policies; the first one's score decides, the next ones break ties.
    #[serde(default = "spread", deserialize_with = "spellings::uses")]
    pub policy: Vec<Use>,
    /// What happens to replicas whose policy fails.
    #[serde(default)]
    pub on_policy_error: OnPolicyError,
    /// How a replica's health is judged.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub check: Option<CheckSpec>,
    /// How a new revision comes in.
    #[serde(default = "rolling")]
    pub rollout: Use,
    /// How the revision before comes back, when somebody asks for it; by the rollout where nothing is said.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rollback: Option<Use>,
    /// What happens when a replica ends.
    #[serde(default)]
    pub restart: RestartPolicy,
    /// How a replica is stopped.
    #[serde(default)]
    pub stop: StopPolicy,
    /// How much output is kept.
    #[serde(default)]
    pub log: LogPolicy,
}

/// Replicas by number, or one on each suitable node.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Mode {
    /// `replicas` of them.
    #[default]
    Replicated,
    /// One on each suitable node.
    Global,
}

/// What happens to replicas whose policy fails.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum OnPolicyError {
    /// They stay pending with the policy's error as reason.
    #[default]
    Pending,
    /// The built-in spread serves.
    Spread,
}

fn one() -> u32 {
    1
}

fn is_default<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}

fn spread() -> Vec<Use> {
    vec![Use::plain("spread")]
}

fn rolling() -> Use {
    Use::plain("rolling")
}

impl ServiceSpec {
    /// Reads and validates a description.
    pub fn read(value: &Value) -> Result<Self> {
        let subject = match value.get("name").and_then(Value::as_str) {
            Some(name) => format!("service \"{name:.70}\""),
            None => "service".to_owned(),
        };
        let spec: ServiceSpec = strict::read(&subject, &spellings::keys_apart(value))?;
        spec.validate()?;
        Ok(spec)
    }

    /// What types alone do not show.
    pub fn validate(&self) -> Result<()> {
        let subject = self.subject();
        let wrong = |field: &str, why: String| Err(Error::invalid(subject.clone(), format!("{field}: {why}")));
        if self.command.is_empty() && self.image.is_none() {
            return wrong("command", "is missing, and so is image".into());
        }
        if self.command.first().is_some_and(String::is_empty) {
            return wrong("command[1]", "is empty".into());
        }
        if self.replicas > MAX_REPLICAS {
            return wrong("replicas", format!("{} is more than {MAX_REPLICAS}", self.replicas));
        }
        let sizes = [
            ("labels", self.labels.len()),
            ("command", self.command.len()),
            ("env", self.env.len() + self.env_kv.len()),
            ("secrets", self.secrets.len()),
            ("configs", self.configs.len()),
            ("ports", self.ports.len()),
            ("routes", self.routes.len()),
            ("constraints", self.constraints.len()),
            ("policy", self.policy.len()),
            ("entrypoint", self.entrypoint.len()),
            ("mounts", self.mounts.len()),
            ("networks", self.networks.len()),
            ("hosts", self.hosts.len() + self.dns.len() + self.dns_search.len() + self.dns_options.len()),
            ("cap_add", self.cap_add.len() + self.cap_drop.len() + self.groups.len()),
            ("sysctls", self.sysctls.len() + self.ulimits.len()),
            ("container_labels", self.container_labels.len()),
        ];
        if let Some((field, len)) = sizes.into_iter().find(|(_, len)| *len > MAX_ENTRIES) {
            return wrong(field, format!("{len} entries are more than {MAX_ENTRIES}"));
        }
        let texts =
            self.command.iter().map(|text| ("command", text)).chain(self.env.values().map(|text| ("env", text)));
        let labels = self.labels.values().chain(self.container_labels.values()).map(|text| ("labels", text));
        for (field, text) in texts.chain(labels).chain(self.entrypoint.iter().map(|text| ("entrypoint", text))) {
            if text.len() > MAX_TEXT {
                return wrong(field, format!("an entry of {} bytes is longer than {MAX_TEXT}", text.len()));
            }
            if text.contains('\0') {
                return wrong(field, "holds a NUL character".into());
            }
        }
        for (name, secret) in &self.secrets {
            let fits = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '.');
            if name.is_empty() || name.len() > 128 || name.starts_with('.') || !name.chars().all(fits) {
                return wrong("secrets", format!("{name:.60?} is not a name for a file"));
            }
            if secret.name.is_empty() {
                return wrong("secrets", format!("{name}: names no secret"));
            }
        }
        if let Some(key) =
            self.env.keys().chain(self.env_kv.keys()).find(|key| key.is_empty() || key.contains(['=', '\0']))
        {
            return wrong("env", format!("{key:.60?} is not a variable's name"));
        }
        for key in self.labels.keys() {
            check_label("label", key).map_err(|error| error_in(&subject, "labels", &error))?;
        }
        if self.policy.is_empty() {
            return wrong("policy", "is an empty list".into());
        }
        let mut published = BTreeMap::new();
        for (name, port) in &self.ports {
            name.parse::<Name>().map_err(|error| error_in(&subject, "ports", &error))?;
            let host = port.mode == super::native::PublishMode::Host;
            if host && port.published.is_none() {
                return wrong(&format!("ports.{name}"), "has mode host, and nothing is published".into());
            }
            if let Some((field, why)) = port.wrong() {
                return wrong(&format!("ports.{name}.{field}"), why.into());
            }
            if let Some(number) = port.published
                && let Some(other) = published.insert((number, port.protocol), name)
            {
                return wrong(&format!("ports.{name}"), format!("publishes {number}, and so does ports.{other}"));
            }
        }
        self.check_routes()?;
        if let Some(check) = &self.check {
            check.validate(&self.ports, self.image.is_some()).map_err(|error| error_in(&subject, "check", &error))?;
        }
        if let Err((field, why)) = container::check(self) {
            return wrong(&field, why);
        }
        self.check_native().map_err(|why| Error::invalid(subject.clone(), why))?;
        if self.reservations.pids.is_some() {
            return wrong("reservations.pids", "is a limit only".into());
        }
        if self.log.max_files == 0 || self.log.max_size.0 < 4096 {
            return wrong("log", "keeps nothing; max_files is at least 1 and max_size at least 4KiB".into());
        }
        Ok(())
    }

    /// The rollout scripts that it names.
    pub fn rollouts(&self) -> impl Iterator<Item = &Use> {
        [Some(&self.rollout), self.rollback.as_ref()].into_iter().flatten()
    }

    /// The ports that a replica takes on its host.
    pub fn host_ports(&self) -> impl Iterator<Item = (u16, Protocol)> + '_ {
        self.ports.values().filter_map(PortSpec::host_port)
    }

    // What the Swarm would have to ask Neap for.
    fn check_native(&self) -> std::result::Result<(), String> {
        if !self.engine_native {
            return Ok(());
        }
        if let Some(policy) = self.policy.iter().find(|policy| policy.name.as_str() != "spread") {
            return Err(format!("engine_native: the Swarm does not ask policy \"{}\"", policy.name));
        }
        if let Some(other) = self.rollouts().find(|used| used.name.as_str() != "rolling") {
            return Err(format!("engine_native: the Swarm does not ask rollout \"{}\"", other.name));
        }
        let own = |check: &CheckSpec| check.http.is_some() || check.tcp.is_some() || check.script.is_some();
        if self.check.as_ref().is_some_and(own) {
            return Err("engine_native: the Swarm checks by a command (exec) alone".into());
        }
        if self.check.as_ref().is_some_and(|check| check.timing(None).on_fail != super::check::OnFail::Restart) {
            return Err("engine_native: the Swarm replaces a task that fails its check".into());
        }
        let wrong = |(name, port): (&String, &PortSpec)| Some(format!("ports.{name}{}", port.not_the_swarms()?));
        self.ports.iter().find_map(wrong).map_or(Ok(()), Err)
    }

    /// The check that is asked by Neap itself, instead of by the container engine.
    pub fn own_check(&self) -> Option<&CheckSpec> {
        self.check.as_ref().filter(|check| check.asks())
    }

    /// How errors call it.
    pub fn subject(&self) -> String {
        format!("service \"{}\"", self.name)
    }

    /// The hash of what a running task is made of. Replicas, placement, rollout and restart policy are left out:
    /// changing them replaces no task.
    pub fn template_hash(&self) -> String {
        let mut stop = serde_json::json!(self.stop);
        stop["signal"] = self.stop.signal().into();
        let mut template = serde_json::json!([
            self.image,
            self.command,
            self.env,
            self.workdir,
            self.user,
            self.ports,
            self.limits,
            self.reservations,
            self.check,
            stop,
            self.log,
        ]);
        let parts = template.as_array_mut().expect("was just made a list");
        // Only where there are some: the hashes of descriptions from before there were secrets stay.
        if !self.secrets.is_empty() {
            parts.push(serde_json::json!(self.secrets));
        }
        if !container::fields(self).is_empty() {
            parts.push(container::template(self));
        }
        if !self.configs.is_empty() {
            let whole = self.configs.iter().map(|(target, used)| (target, used.whole()));
            parts.push(serde_json::json!(whole.collect::<BTreeMap<_, _>>()));
        }
        sha256_hex(template.to_string().as_bytes())[..12].to_owned()
    }
}

fn error_in(subject: &str, field: &str, error: &Error) -> Error {
    let mut error = error.clone();
    error.message =
        format!("{field}: {}{}{}", error.subject, if error.subject.is_empty() { "" } else { ": " }, error.message);
    subject.clone_into(&mut error.subject);
    error
}

/// A service as it is stored: identity, description and where its revisions stand.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Service {
    /// Stays through all revisions.
    pub id: ServiceId,
    /// The latest description.
    pub spec: ServiceSpec,
    /// The number of the latest revision.
    pub revision: u32,
    /// The revision that runs wherever no release says otherwise.
    pub active: u32,
    /// The last revision of which every replica was healthy.
    #[serde(default)]
    pub stable: Option<u32>,
    /// The revision that ran before the active one came in by a release that went through: what a rollback goes back to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub previous: Option<u32>,
    /// The scripts that came along with it, by hash.
    #[serde(default)]
    pub bundle: Option<String>,
    /// Set once the service is to go away: its tasks are drained, then the record goes.
    #[serde(default)]
    pub removing: bool,
    /// Its own address inside the cluster, where it is balanced there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub address: Option<Ipv4Addr>,
    /// A change of who runs it, the Swarm or Neap: under way, or the last one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub handover: Option<Handover>,
    /// When it was created.
    pub created_at: Timestamp,
    /// When its description last changed.
    pub updated_at: Timestamp,
}

impl Service {
    /// As `to` describes what tasks are made of. How many there are does not go back, nor how they come and go, unless that is
    /// in scripts that go.
    pub fn back_to(&self, to: &Revision) -> ServiceSpec {
        let replicas = self.spec.replicas;
        let from = if self.bundle == to.bundle { &self.spec } else { &to.spec };
        let (rollout, rollback) = (from.rollout.clone(), from.rollback.clone());
        let internal = if to.spec.can_be_balanced() { self.spec.internal } else { Internal::Direct };
        // No revision is made for what leads to it. What led to a port that is no more goes with that.
        let leads = |route: &&RouteSpec| route.redirect.is_some() || to.spec.routed_port(route.port.as_deref()).is_ok();
        let routes = self.spec.routes.iter().filter(leads).cloned().collect();
        ServiceSpec { replicas, rollout, rollback, routes, internal, ..to.spec.clone() }
    }

    /// The handover that is under way.
    pub fn open_handover(&self) -> Option<&Handover> {
        self.handover.as_ref().filter(|handover| handover.is_open())
    }

    /// Whether it is being given back to the Swarm.
    pub fn is_leaving(&self) -> bool {
        self.handover.as_ref().is_some_and(|handover| handover.way == Way::Release)
    }
}

/// One revision of a service: a number, and the description with its hash.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Revision {
    /// The service.
    pub service: Name,
    /// Counted from 1.
    pub number: u32,
    /// The hash of what its tasks are made of.
    pub hash: String,
    /// The whole description.
    pub spec: ServiceSpec,
    /// The scripts that its tasks are checked by, by hash.
    #[serde(default)]
    pub bundle: Option<String>,
    /// The versions of the keys that its variables were read from.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub kv: BTreeMap<String, u64>,
    /// The versions of the secrets that its replicas get.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub secrets: BTreeMap<String, u64>,
    /// The versions of the configs that its replicas get.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub configs: BTreeMap<String, u64>,
    /// When it was made.
    pub created_at: Timestamp,
}
