//! A stack: services that belong together, with the networks, secrets and configs that they need. What a Compose file
//! describes.

use std::collections::BTreeMap;
use std::fmt;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::error::{Error, Kind, Result};
use super::name::Name;
use super::objects::NetworkSpec;

/// The label with a stack's name, on its services, containers and networks: Docker's own.
pub const NAMESPACE: &str = "com.docker.stack.namespace";

/// Most services of one stack.
pub const MAX_SERVICES: usize = 1000;

/// A stack, ready to be applied.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Stack {
    /// Its name.
    pub name: Name,
    /// Descriptions by the name that its file gives.
    pub services: BTreeMap<String, Value>,
    /// What each service waits for before it is applied: others of `services`, and how far they have to be.
    #[serde(default)]
    pub depends_on: BTreeMap<String, BTreeMap<String, Need>>,
    /// The networks that its services are attached to.
    #[serde(default)]
    pub networks: BTreeMap<String, StackNetwork>,
    /// The secrets that its services read.
    #[serde(default)]
    pub secrets: BTreeMap<String, StackValue>,
    /// The configs that its services read.
    #[serde(default)]
    pub configs: BTreeMap<String, StackValue>,
    /// What of its file was left out, and where.
    #[serde(default)]
    pub warnings: Vec<String>,
}

/// How far a service has to be for those that wait for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Until {
    /// Its replicas run.
    Started,
    /// They are healthy, and all is as described.
    Healthy,
    /// They have run to their end, and ended well.
    Completed,
}

/// What a service waits for in another one: `"healthy"`, or a table.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(from = "NeedForm", into = "NeedForm")]
pub struct Need {
    /// How far the other one has to be.
    pub until: Until,
    /// Whether it is waited for in vain when the other one fails; otherwise that is only told.
    pub required: bool,
}

#[derive(Serialize, Deserialize, JsonSchema)]
#[serde(untagged)]
enum NeedForm {
    Plain(Until),
    Whole {
        until: Until,
        #[serde(default = "yes")]
        required: bool,
    },
}

fn yes() -> bool {
    true
}

impl From<NeedForm> for Need {
    fn from(form: NeedForm) -> Need {
        match form {
            NeedForm::Plain(until) => Need { until, required: true },
            NeedForm::Whole { until, required } => Need { until, required },
        }
    }
}

impl From<Need> for NeedForm {
    fn from(need: Need) -> NeedForm {
        match need.required {
            true => NeedForm::Plain(need.until),
            false => NeedForm::Whole { until: need.until, required: false },
        }
    }
}

/// A stack's name as it is kept: `my_app` is `my-app`.
pub fn stack_name(text: &str) -> String {
    text.to_lowercase().replace(['_', '.'], "-")
}

/// A network of a stack.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct StackNetwork {
    /// It is there already, and is not the stack's.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub external: bool,
    /// What it is.
    pub spec: NetworkSpec,
}

/// A secret or config of a stack.
#[derive(Clone, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct StackValue {
    /// Its name in the cluster.
    pub name: String,
    /// What it is set to; none: it is there already, and is not the stack's.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub value: Option<String>,
}

impl fmt::Debug for StackValue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "StackValue({}, not shown)", self.name)
    }
}

impl Stack {
    /// Its services, each after those that it waits for; an error names a circle.
    pub fn order(&self) -> Result<Vec<String>> {
        self.order_with(&BTreeMap::new())
    }

    /// The same, with further services that are to come before others.
    pub fn order_with(&self, before: &BTreeMap<String, Vec<String>>) -> Result<Vec<String>> {
        fn visit<'a>(
            stack: &'a Stack,
            before: &'a BTreeMap<String, Vec<String>>,
            key: &'a str,
            open: &mut Vec<&'a str>,
            done: &mut Vec<String>,
        ) -> std::result::Result<(), String> {
            if done.iter().any(|known| known == key) {
                return Ok(());
            }
            if let Some(at) = open.iter().position(|known| *known == key) {
                let circle: Vec<&str> = open[at..].iter().copied().chain([key]).collect();
                return Err(format!("services wait for each other: {}", circle.join(" -> ")));
            }
            if !stack.services.contains_key(key) {
                return Err(format!("depends_on names \"{key:.70}\", which is no service of it"));
            }
            open.push(key);
            let needed = stack.depends_on.get(key).into_iter().flat_map(BTreeMap::keys);
            for needed in needed.chain(before.get(key).into_iter().flatten()) {
                visit(stack, before, needed, open, done)?;
            }
            open.pop();
            done.push(key.to_owned());
            Ok(())
        }
        let subject = || format!("stack \"{}\"", self.name);
        if self.services.len() > MAX_SERVICES {
            let message = format!("has {} services, more than {MAX_SERVICES}", self.services.len());
            return Err(Error::new(Kind::Exhausted, subject(), message));
        }
        let mut done = Vec::new();
        for key in self.services.keys() {
            visit(self, before, key, &mut Vec::new(), &mut done).map_err(|why| Error::invalid(subject(), why))?;
        }
        Ok(done)
    }

    /// The name in the cluster of one of its services.
    pub fn service(&self, key: &str) -> Result<&str> {
        let name = self.services.get(key).and_then(|spec| spec.get("name")?.as_str());
        name.ok_or_else(|| {
            Error::invalid(format!("stack \"{}\"", self.name), format!("service \"{key:.70}\" has no name"))
        })
    }
}
