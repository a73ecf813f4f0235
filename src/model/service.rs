//! The service description: what a user asks for. Everything but `name` has a default.

use std::collections::BTreeMap;
use std::fmt;

use schemars::JsonSchema;
use serde::de::{self, MapAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::Value;

use super::check::CheckSpec;
use super::clock::Timestamp;
use super::constraint::Constraint;
use super::error::{Error, Result};
use super::id::{ServiceId, sha256_hex};
use super::name::{Name, check_loose};
use super::port::PortSpec;
use super::spellings;
use super::strict;
use super::units::{Bytes, Cpu, Duration};

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
    /// A number of replicas, or one a node.
    #[serde(default)]
    pub mode: Mode,
    /// How many replicas; not used in global mode.
    #[serde(default = "one")]
    pub replicas: u32,
    /// The container image, for engines that run containers.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub image: Option<String>,
    /// The command and its arguments.
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
    pub secrets: BTreeMap<String, String>,
    /// The folder in which the command runs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub workdir: Option<String>,
    /// The user (name or number, optionally `:group`) as whom it runs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user: Option<String>,
    /// Ports by name: `{ http = "8080" }`.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub ports: BTreeMap<String, PortSpec>,
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
    #[serde(default, skip_serializing_if = "is_zero")]
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

/// A registered script by name, with options: `"spread"` or `{ use = "spread", over = "labels.zone" }`.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Use {
    /// The registration's name.
    #[serde(rename = "use")]
    pub name: Name,
    /// Options, handed to the script as they are.
    #[serde(flatten)]
    pub options: serde_json::Map<String, Value>,
}

impl Use {
    /// Without options.
    pub fn plain(name: &str) -> Self {
        Use { name: name.parse().expect("only called with the names of stdlib"), options: serde_json::Map::new() }
    }
}

impl<'de> Deserialize<'de> for Use {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Either;
        impl<'de> Visitor<'de> for Either {
            type Value = Use;

            fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
                f.write_str("a name, or a table with \"use\" and options")
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<Use, E> {
                Ok(Use { name: text.parse().map_err(E::custom)?, options: serde_json::Map::new() })
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Use, A::Error> {
                let mut name = None;
                let mut options = serde_json::Map::new();
                while let Some(key) = map.next_key::<String>()? {
                    if key == "use" {
                        name = Some(map.next_value::<Name>()?);
                    } else {
                        options.insert(key, map.next_value()?);
                    }
                }
                Ok(Use { name: name.ok_or_else(|| de::Error::missing_field("use"))?, options })
            }
        }
        deserializer.deserialize_any(Either)
    }
}

impl JsonSchema for Use {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "Use".into()
    }

    fn json_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
        schemars::json_schema!({
            "description": "A registered script by name, or a table with `use` and the script's options.",
            "oneOf": [
                { "type": "string" },
                { "type": "object", "properties": { "use": { "type": "string" } }, "required": ["use"] },
            ],
        })
    }
}

/// Amounts of cpu and memory; absent means none asked or no bound.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
pub struct Resources {
    /// In cores.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cpu: Option<Cpu>,
    /// In bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory: Option<Bytes>,
}

impl Resources {
    /// Whether nothing is asked.
    pub fn is_empty(&self) -> bool {
        *self == Resources::default()
    }
}

/// What happens when a replica ends by itself.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct RestartPolicy {
    /// After which endings it is started again.
    pub condition: RestartCondition,
    /// The wait before the first restart; doubled for each further one.
    pub delay: Duration,
    /// The longest wait.
    pub max_delay: Duration,
    /// How often it is tried in a row; 0 for no bound.
    pub max_attempts: u32,
    /// A replica that ran this long has recovered: its failures are forgotten.
    pub window: Duration,
}

impl Default for RestartPolicy {
    fn default() -> Self {
        RestartPolicy {
            condition: RestartCondition::Any,
            delay: Duration::from_secs(1),
            max_delay: Duration::from_secs(300),
            max_attempts: 0,
            window: Duration::from_secs(60),
        }
    }
}

/// After which endings a replica is started again (Docker's words).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum RestartCondition {
    /// Never.
    #[serde(rename = "none")]
    None,
    /// After an exit code other than 0, a signal, or a failed check.
    #[serde(rename = "on-failure")]
    OnFailure,
    /// Always.
    #[serde(rename = "any")]
    Any,
}

/// How a replica is stopped: withdrawn from the balancer, drained, told, killed.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct StopPolicy {
    /// The signal that asks it to end.
    #[serde(deserialize_with = "spellings::signal")]
    pub signal: String,
    /// How long it may take after the signal before it is killed.
    pub grace: Duration,
    /// How long its open connections may take, after new ones go elsewhere and before the signal.
    pub drain: Duration,
}

impl Default for StopPolicy {
    fn default() -> Self {
        StopPolicy { signal: "TERM".into(), grace: Duration::from_secs(10), drain: Duration::from_secs(10) }
    }
}

/// How much of a replica's output is kept.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct LogPolicy {
    /// The size at which a file is closed and a new one begun.
    pub max_size: Bytes,
    /// How many files are kept, the one being written included.
    pub max_files: u32,
}

impl Default for LogPolicy {
    fn default() -> Self {
        LogPolicy { max_size: Bytes(10 << 20), max_files: 5 }
    }
}

fn one() -> u32 {
    1
}

fn is_zero(number: &u32) -> bool {
    *number == 0
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
            ("ports", self.ports.len()),
            ("constraints", self.constraints.len()),
            ("policy", self.policy.len()),
        ];
        if let Some((field, len)) = sizes.into_iter().find(|(_, len)| *len > MAX_ENTRIES) {
            return wrong(field, format!("{len} entries are more than {MAX_ENTRIES}"));
        }
        let texts =
            self.command.iter().map(|text| ("command", text)).chain(self.env.values().map(|text| ("env", text)));
        for (field, text) in texts.chain(self.labels.values().map(|text| ("labels", text))) {
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
            if secret.is_empty() {
                return wrong("secrets", format!("{name}: names no secret"));
            }
        }
        if let Some(key) =
            self.env.keys().chain(self.env_kv.keys()).find(|key| key.is_empty() || key.contains(['=', '\0']))
        {
            return wrong("env", format!("{key:.60?} is not a variable's name"));
        }
        for key in self.labels.keys() {
            check_loose("label", key).map_err(|error| error_in(&subject, "labels", &error))?;
        }
        if self.policy.is_empty() {
            return wrong("policy", "is an empty list".into());
        }
        let mut published = BTreeMap::new();
        for (name, port) in &self.ports {
            name.parse::<Name>().map_err(|error| error_in(&subject, "ports", &error))?;
            if let Some(number) = port.published
                && let Some(other) = published.insert((number, port.protocol), name)
            {
                return wrong(&format!("ports.{name}"), format!("publishes {number}, and so does ports.{other}"));
            }
        }
        if let Some(check) = &self.check {
            check.validate(&self.ports).map_err(|error| error_in(&subject, "check", &error))?;
        }
        if self.log.max_files == 0 || self.log.max_size.0 < 4096 {
            return wrong("log", "keeps nothing; max_files is at least 1 and max_size at least 4KiB".into());
        }
        Ok(())
    }

    /// How errors call it.
    pub fn subject(&self) -> String {
        format!("service \"{}\"", self.name)
    }

    /// The hash of what a running task is made of. Replicas, placement, rollout and restart policy are left out:
    /// changing them replaces no task.
    pub fn template_hash(&self) -> String {
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
            self.stop,
            self.log,
        ]);
        // Only where there are some: the hashes of descriptions from before there were secrets stay.
        if let (Some(parts), false) = (template.as_array_mut(), self.secrets.is_empty()) {
            parts.push(serde_json::json!(self.secrets));
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
    /// The scripts that came along with it, by hash.
    #[serde(default)]
    pub bundle: Option<String>,
    /// Set once the service is to go away: its tasks are drained, then the record goes.
    #[serde(default)]
    pub removing: bool,
    /// When it was created.
    pub created_at: Timestamp,
    /// When its description last changed.
    pub updated_at: Timestamp,
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
    /// When it was made.
    pub created_at: Timestamp,
}
