//! Services that a Swarm itself schedules: shown beside Neap's own, taken over, and given back.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::clock::Timestamp;
use super::error::{Error, Result};
use super::name::Name;
use super::units::Duration;

/// A service of the container engine's own, made by `docker service create` or anything else that is not this cluster.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct NativeService {
    /// Its id in the Swarm.
    pub id: String,
    /// Its name in the Swarm.
    pub name: String,
    /// Its image.
    pub image: String,
    /// `replicated`, `global`, `replicated-job` or `global-job`.
    pub mode: String,
    /// How many tasks there should be.
    pub desired: u32,
    /// How many run.
    pub running: u32,
    /// Its published ports.
    pub ports: Vec<NativePort>,
    /// The names of its networks.
    pub networks: Vec<String>,
    /// Why not all of its tasks run, in the words of the newest one that says something.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// How far an update of it is, in the Swarm's words.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub update: Option<String>,
    /// What tells one state of a service that the Swarm runs for this cluster from another; none: it is not of this cluster.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mark: Option<String>,
    /// The state that it could not be brought to, and why.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub refused: Option<(String, String)>,
    /// Its tasks, ended ones included as long as the Swarm keeps them.
    pub tasks: Vec<NativeTask>,
}

impl NativeService {
    /// Why its update does not go on, if it does not.
    pub fn stuck(&self) -> Option<String> {
        if let Some((_, why)) = &self.refused {
            return Some(why.clone());
        }
        let update = self.update.as_deref().filter(|state| state.contains("paused"))?;
        let why = self.reason.as_ref().map(|reason| format!(": {reason}")).unwrap_or_default();
        Some(format!("the Swarm's update is {}{why}", update.replace('_', " ")))
    }

    /// Whether an update is going on.
    pub fn is_updating(&self) -> bool {
        matches!(self.update.as_deref(), Some("updating" | "rollback_started"))
    }
}

/// A published port of a native service.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct NativePort {
    /// The port on the hosts, where one is said.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub published: Option<u16>,
    /// The port in the container.
    pub target: u16,
    /// `tcp`, `udp` or `sctp`.
    pub protocol: String,
    /// Where it is published.
    pub mode: PublishMode,
}

/// Where a Swarm publishes a port.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum PublishMode {
    /// On every host, by the routing mesh.
    #[default]
    Ingress,
    /// On the hosts on which a task runs.
    Host,
}

impl PublishMode {
    /// As in flags.
    pub fn as_str(self) -> &'static str {
        match self {
            PublishMode::Ingress => "ingress",
            PublishMode::Host => "host",
        }
    }
}

impl std::str::FromStr for PublishMode {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        match text {
            "ingress" => Ok(PublishMode::Ingress),
            "host" => Ok(PublishMode::Host),
            other => Err(Error::invalid(format!("publish mode {other:.40?}"), "is neither ingress nor host")),
        }
    }
}

/// A task of a native service.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct NativeTask {
    /// `web.1`.
    pub name: String,
    /// The node that it is on.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub node: Option<String>,
    /// What it is doing, in the Swarm's words.
    pub state: String,
    /// What it should be doing.
    pub wanted: String,
    /// Why it is not doing that.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
}

/// Taking over a native service.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Adopt {
    /// The service's name from then on; the native one's where it is not said.
    #[serde(rename = "as", skip_serializing_if = "Option::is_none")]
    pub as_name: Option<String>,
    /// Fields of the description that are to be others than those found.
    #[serde(skip_serializing_if = "serde_json::Map::is_empty")]
    pub change: serde_json::Map<String, Value>,
    /// Take over one with volumes that its tasks write to, though both sets of replicas have them for a while.
    pub share_volumes: bool,
    /// Say what would be done, and do nothing.
    pub dry_run: bool,
}

/// What becomes of a native service that is taken over.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct Adoption {
    /// The service that is made of it.
    pub service: Value,
    /// What is not as it was, and why.
    pub notes: Vec<String>,
    /// Configs that are set from the Swarm's.
    pub configs: Vec<String>,
}

/// Giving a service back to the Swarm.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct HandBack {
    /// Where the native service publishes its ports.
    pub publish_mode: PublishMode,
    /// Give back one with volumes that its replicas write to, though both sets of tasks have them for a while.
    pub share_volumes: bool,
    /// Say what would be done, and do nothing.
    pub dry_run: bool,
    /// Give up one that is under way: the service stays Neap's.
    pub cancel: bool,
}

/// What becomes of a service that is given back.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct HandedBack {
    /// What the Swarm does not do as it was done, and why.
    pub notes: Vec<String>,
}

/// A change of who runs a service, as far as it is.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Handover {
    /// From whom to whom.
    pub way: Way,
    /// How far it is.
    pub state: HandoverState,
    /// The native service: its id where it is taken over, its name where it is made.
    pub native: String,
    /// Where the native service publishes its ports.
    #[serde(default)]
    pub publish_mode: PublishMode,
    /// When it began.
    pub started_at: Timestamp,
    /// A hash of what is taken over, as it was: one that was changed meanwhile is not removed.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub seen: String,
    /// What it waits for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// How long a published port let nobody in while it changed hands, by `host:port`, as seen from the daemon; empty where
    /// nobody looked.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub gaps: BTreeMap<String, Duration>,
    /// Places that let people in before, and did not when it was over: hosts without an agent, say.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub closed: Vec<String>,
}

/// From whom to whom a service goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Way {
    /// From the Swarm to Neap.
    Adopt,
    /// From Neap to the Swarm.
    Release,
}

/// How far it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum HandoverState {
    /// The new replicas come up beside the old ones, which have the published ports.
    Starting,
    /// The published ports change hands.
    Moving,
    /// It is over.
    Done,
    /// It is taken back: the native service that was made goes away again.
    Cancelling,
}

impl Handover {
    /// Whether Neap's balancer has the service's published ports.
    pub fn has_ports(&self) -> bool {
        match self.way {
            Way::Adopt => self.state >= HandoverState::Moving,
            Way::Release => matches!(self.state, HandoverState::Starting | HandoverState::Cancelling),
        }
    }

    /// Whether there is still something to do.
    pub fn is_open(&self) -> bool {
        self.state != HandoverState::Done
    }

    /// In a few words.
    pub fn said(&self) -> String {
        let doing = match (self.way, self.state) {
            (Way::Adopt, HandoverState::Done) => return "adopted".into(),
            (Way::Adopt, _) => "being adopted",
            (Way::Release, HandoverState::Done) => return "given back".into(),
            (Way::Release, HandoverState::Cancelling) => "stays after all",
            (Way::Release, _) => "being given back",
        };
        match &self.reason {
            Some(reason) => format!("{doing}: {reason}"),
            None => doing.into(),
        }
    }

    /// The measured gaps in words.
    pub fn gaps_said(&self) -> String {
        if self.gaps.is_empty() && self.closed.is_empty() {
            return "no published port was looked at while it moved".into();
        }
        let one = |(place, gap): (&String, &Duration)| format!("{place} let nobody in for {gap}");
        let closed = self.closed.iter().map(|place| format!("{place} lets nobody in any more"));
        self.gaps.iter().map(one).chain(closed).collect::<Vec<_>>().join(", ")
    }
}

/// A Swarm's name as one of Neap's: what does not fit becomes `-`.
pub fn name_for(native: &str) -> Result<Name> {
    let fit = |c: char| if c.is_ascii_alphanumeric() { c.to_ascii_lowercase() } else { '-' };
    let name: String = native.chars().map(fit).collect();
    name.trim_matches('-').parse::<Name>().map_err(|error| error.help("choose another name: --name NAME"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_the_swarm_as_ours() {
        let name = |text: &str| name_for(text).map(|name| name.to_string()).ok();
        assert_eq!(name("web").as_deref(), Some("web"));
        assert_eq!(name("shop_Web.v2").as_deref(), Some("shop-web-v2"));
        assert_eq!(name("__"), None);
    }

    #[test]
    fn who_has_the_ports() {
        let has = |way, state| {
            let handover = Handover {
                way,
                state,
                native: "x".into(),
                publish_mode: PublishMode::Host,
                seen: String::new(),
                started_at: Timestamp(0),
                reason: None,
                gaps: BTreeMap::new(),
                closed: Vec::new(),
            };
            handover.has_ports()
        };
        use HandoverState::{Cancelling, Done, Moving, Starting};
        assert_eq!([Starting, Moving, Done].map(|state| has(Way::Adopt, state)), [false, true, true]);
        assert_eq!(
            [Starting, Moving, Done, Cancelling].map(|state| has(Way::Release, state)),
            [true, false, false, true]
        );
    }
}
