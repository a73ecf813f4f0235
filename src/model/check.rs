//! How a replica's health is judged: http, tcp, exec or a script, with thresholds.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::de::{self, MapAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize};

use super::error::{Error, Result};
use super::name::Name;
use super::port::{PortSpec, Protocol};
use super::spellings;
use super::units::Duration;

/// A check: what is asked, how often, and what follows from the answers. Where nothing is named to be asked, it is the
/// image's own HEALTHCHECK, with these times; `false` is no check, not even that one.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(remote = "Self", default, deny_unknown_fields)]
#[schemars(rename = "CheckSpec")]
pub struct CheckSpec {
    /// No check at all, not even the image's own.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub disable: bool,
    /// Asked by the engine itself; filled in by Neap where an engine can.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub by_engine: bool,
    /// GET this path; 200 to 399 passes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub http: Option<String>,
    /// Open a connection to this port, by its name; a number is asked in the replica's own network.
    #[serde(skip_serializing_if = "Option::is_none", deserialize_with = "spellings::text")]
    #[schemars(with = "NameOrNumber")]
    pub tcp: Option<String>,
    /// Run this command beside the replica, with its environment; exit code 0 passes.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub exec: Vec<String>,
    /// Ask the registered check of this name.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub script: Option<Name>,
    /// The port for http, by its name; the only or first one where it is not given. A number that is no name is asked in
    /// the replica's own network, on its loopback: it need not be published.
    #[serde(skip_serializing_if = "Option::is_none", deserialize_with = "spellings::text")]
    #[schemars(with = "NameOrNumber")]
    pub port: Option<String>,
    /// Time from one run's start to the next one's (10s).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub every: Option<Duration>,
    /// How long one run may take (5s).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub timeout: Option<Duration>,
    /// Passes in a row that make it healthy (1).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub healthy: Option<u32>,
    /// Failures in a row that make it unhealthy (3).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub unhealthy: Option<u32>,
    /// Failures do not count for this long after the start, until the first pass (0s).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub start_period: Option<Duration>,
    /// What follows when it is unhealthy (restart).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub on_fail: Option<OnFail>,
}

/// What follows when a replica is unhealthy.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum OnFail {
    /// It is stopped and replaced.
    #[default]
    Restart,
    /// It gets no traffic until it is healthy again.
    Unroute,
    /// It is only shown.
    None,
}

/// A check's times and thresholds with every default filled in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct CheckTiming {
    /// From one run's start to the next one's.
    pub every: Duration,
    /// How long one run may take.
    pub timeout: Duration,
    /// Passes in a row that make healthy.
    pub healthy: u32,
    /// Failures in a row that make unhealthy.
    pub unhealthy: u32,
    /// While failures do not count.
    pub start_period: Duration,
    /// What follows.
    pub on_fail: OnFail,
}

impl CheckSpec {
    /// No check.
    pub fn none() -> Self {
        CheckSpec { disable: true, ..CheckSpec::default() }
    }

    /// Times and thresholds; `registered` are those that a scripted check was registered with.
    pub fn timing(&self, registered: Option<&CheckSpec>) -> CheckTiming {
        let none = CheckSpec::default();
        let other = registered.unwrap_or(&none);
        CheckTiming {
            every: self.every.or(other.every).unwrap_or(Duration::from_secs(10)).max(Duration::from_millis(10)),
            timeout: self.timeout.or(other.timeout).unwrap_or(Duration::from_secs(5)).max(Duration::from_millis(1)),
            healthy: self.healthy.or(other.healthy).unwrap_or(1).max(1),
            unhealthy: self.unhealthy.or(other.unhealthy).unwrap_or(3).max(1),
            start_period: self.start_period.or(other.start_period).unwrap_or_default(),
            on_fail: self.on_fail.or(other.on_fail).unwrap_or_default(),
        }
    }

    /// The name of the port that http or tcp asks: the one named, else `http`, else the first.
    pub fn port_name<'a>(&'a self, ports: impl IntoIterator<Item = &'a String>) -> Option<&'a str> {
        if let Some(named) = self.tcp.as_ref().or(self.port.as_ref()) {
            return Some(named);
        }
        let names: Vec<&String> = ports.into_iter().collect();
        names.iter().find(|name| **name == "http").or(names.first()).map(|name| name.as_str())
    }

    /// The port that http or tcp asks in the replica's own network, where it is no port of the service: one of its number.
    pub fn inside(&self, is_named: impl Fn(&str) -> bool) -> Option<u16> {
        let named = self.tcp.as_ref().or(self.port.as_ref())?;
        if is_named(named) { None } else { named.parse().ok().filter(|port| *port != 0) }
    }

    /// Whether Neap asks something, instead of leaving that to the engine or the image.
    pub fn asks(&self) -> bool {
        self.asked() > 0 && !self.by_engine
    }

    fn asked(&self) -> usize {
        let asked = [self.http.is_some(), self.tcp.is_some(), !self.exec.is_empty(), self.script.is_some()];
        asked.into_iter().filter(|is| *is).count()
    }

    /// One thing is asked, and the port it is asked at exists. `image`: there may be a check in the image.
    pub fn validate(&self, ports: &BTreeMap<String, PortSpec>, image: bool) -> Result<()> {
        if self.disable {
            let whole = *self == CheckSpec { disable: true, ..CheckSpec::default() };
            return if whole { Ok(()) } else { Err(Error::invalid("", "disable goes with nothing else")) };
        }
        if self.asked() > 1 || (self.asked() == 0 && !image) {
            return Err(Error::invalid("", "names not exactly one of http, tcp, exec and script"));
        }
        if self
            .http
            .as_ref()
            .is_some_and(|path| !path.starts_with('/') || path.contains(|c: char| c.is_control() || c == ' '))
        {
            return Err(Error::invalid("", "http: is not a path such as \"/healthz\""));
        }
        if self.http.is_none() && self.port.is_some() {
            return Err(Error::invalid("", "port: goes with http alone")
                .help("name the port that tcp asks: tcp = \"admin\", or its number"));
        }
        if (self.http.is_some() || self.tcp.is_some()) && self.inside(|name| ports.contains_key(name)).is_none() {
            let tcp = |(_, port): &(&String, &PortSpec)| port.protocol == Protocol::Tcp;
            let Some(name) = self.port_name(ports.iter().filter(tcp).map(|(name, _)| name)) else {
                return Err(Error::invalid("", "asks a port, but the service has none").help(
                    "add ports = { http = 8080 }, or port = 8080 to the check, to ask inside the replica's network",
                ));
            };
            if !ports.contains_key(name) {
                let hint = super::suggest::hint(name, ports.keys().map(String::as_str));
                return Err(Error::invalid(
                    "",
                    format!("asks port \"{name:.60}\", which the service does not have{hint}"),
                )
                .help("a number instead of a name is asked inside the replica's network"));
            }
            if ports[name].protocol == Protocol::Udp {
                return Err(Error::invalid("", format!("asks port \"{name:.60}\", which is udp"))
                    .help("ask a tcp port, or run a command in the container (exec)"));
            }
        }
        Ok(())
    }
}

/// How a port is written: by its name, or as a number.
#[derive(JsonSchema)]
#[serde(untagged)]
#[expect(dead_code, reason = "tells the schema")]
enum NameOrNumber {
    Name(String),
    Number(u16),
}

// A check is a table, or the name of a registered one.
impl<'de> Deserialize<'de> for CheckSpec {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Either;
        impl<'de> Visitor<'de> for Either {
            type Value = CheckSpec;

            fn expecting(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
                f.write_str("a check's name, or a table such as { http = \"/healthz\" }")
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<CheckSpec, E> {
                Ok(CheckSpec { script: Some(text.parse().map_err(E::custom)?), ..CheckSpec::default() })
            }

            fn visit_bool<E: de::Error>(self, wanted: bool) -> Result<CheckSpec, E> {
                if wanted { Err(E::custom("true says nothing; name what is asked")) } else { Ok(CheckSpec::none()) }
            }

            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<CheckSpec, A::Error> {
                // The derived reading of the table, under the type's own name because of `remote`.
                CheckSpec::deserialize(de::value::MapAccessDeserializer::new(map))
            }
        }
        deserializer.deserialize_any(Either)
    }
}

impl Serialize for CheckSpec {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        CheckSpec::serialize(self, serializer)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> CheckSpec {
        serde_json::from_str(text).unwrap()
    }

    #[test]
    fn a_number_that_is_no_name_is_asked_inside() {
        let none = BTreeMap::new();
        let named = BTreeMap::from([("9090".to_owned(), PortSpec { target: Some(80), ..PortSpec::default() })]);
        for text in [r#"{"http":"/","port":9090}"#, r#"{"http":"/","port":"9090"}"#, r#"{"tcp":9090}"#] {
            let check = read(text);
            assert_eq!(check.inside(|name| none.contains_key(name)), Some(9090), "{text}");
            check.validate(&none, false).unwrap();
            assert_eq!(check.inside(|name| named.contains_key(name)), None, "{text}");
            check.validate(&named, false).unwrap();
        }
    }

    #[test]
    fn what_is_no_port_is_said() {
        let why = |text: &str| read(text).validate(&BTreeMap::new(), false).unwrap_err().message;
        for text in [r#"{"http":"/","port":"admin"}"#, r#"{"tcp":0}"#, r#"{"tcp":70000}"#, r#"{"http":"/"}"#] {
            assert!(why(text).contains("the service has none") || why(text).contains("does not have"), "{text}");
        }
        assert!(why(r#"{"exec":["true"],"port":80}"#).contains("goes with http alone"));
    }
}
