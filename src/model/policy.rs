//! Parts of a service description: which scripts decide, what replicas may use, how they are restarted and stopped, and
//! where their output goes.

use std::collections::BTreeMap;
use std::fmt;

use schemars::JsonSchema;
use serde::de::{self, MapAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::Value;

use super::name::Name;
use super::spellings;
use super::units::{Bytes, Cpu, Duration};

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
                {
                    "type": "object", "properties": { "use": { "type": "string" } }, "required": ["use"],
                    "additionalProperties": true,
                },
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
    /// Processes and threads; a limit only.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pids: Option<u32>,
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
    /// The signal that asks it to end; where none is named a container's is its image's, and else TERM.
    #[serde(deserialize_with = "spellings::signal", skip_serializing_if = "Option::is_none")]
    pub signal: Option<String>,
    /// How long it may take after the signal before it is killed.
    pub grace: Duration,
    /// How long its open connections may take, after new ones go elsewhere and before the signal.
    pub drain: Duration,
}

impl Default for StopPolicy {
    fn default() -> Self {
        StopPolicy { signal: None, grace: Duration::from_secs(10), drain: Duration::from_secs(10) }
    }
}

impl StopPolicy {
    /// The signal for a process.
    pub fn signal(&self) -> &str {
        self.signal.as_deref().unwrap_or("TERM")
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
    /// The container engine's log driver; the engine's own choice where none is named.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub driver: Option<String>,
    /// Options of the driver.
    #[serde(deserialize_with = "spellings::environment", skip_serializing_if = "BTreeMap::is_empty")]
    pub options: BTreeMap<String, String>,
}

impl Default for LogPolicy {
    fn default() -> Self {
        LogPolicy { max_size: Bytes(10 << 20), max_files: 5, driver: None, options: BTreeMap::new() }
    }
}
