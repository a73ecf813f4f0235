//! Parts of a service description that only containers have.

use std::fmt;

use schemars::JsonSchema;
use serde::de::{self, MapAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize};

use super::error::{Error, Result};
use super::internal::Internal;
use super::service::ServiceSpec;

/// When an image is pulled.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Pull {
    /// Where the node does not have it.
    #[default]
    Missing,
    /// Before every start; where the registry cannot be reached and the node has the image, that one serves.
    Always,
    /// Never: a node without it rejects the task.
    Never,
}

/// A network that replicas are attached to: its name, or a table.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(remote = "Self", default, deny_unknown_fields)]
#[schemars(rename = "NetworkUse")]
pub struct NetworkUse {
    /// The network's name.
    pub name: String,
    /// Names by which replicas are found in it besides the service's.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub aliases: Vec<String>,
}

/// A secret or config that replicas read as a file: its name, or a table.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(remote = "Self", default, deny_unknown_fields)]
#[schemars(rename = "ValueUse")]
pub struct ValueUse {
    /// Its name: a path such as `shop/nginx`.
    pub name: String,
    /// The file's owner, by number; 0 where not said.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub uid: Option<u32>,
    /// The file's group, by number; 0 where not said.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub gid: Option<u32>,
    /// The file's mode in octal digits; "0444" where not said.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mode: Option<String>,
}

impl ValueUse {
    /// Whether its file has the usual owner and mode.
    pub fn is_plain(&self) -> bool {
        self.uid.is_none() && self.gid.is_none() && self.mode.is_none()
    }

    /// As a table, however short it could be: what hashes are made of.
    pub fn whole(&self) -> serde_json::Value {
        let mut whole = serde_json::json!({ "name": self.name });
        let fields = [("uid", self.uid.map(Into::into)), ("gid", self.gid.map(Into::into))];
        let mode = ("mode", self.mode.clone().map(serde_json::Value::from));
        for (key, value) in fields.into_iter().chain([mode]) {
            if let Some(value) = value {
                whole[key] = value;
            }
        }
        whole
    }

    /// The file's mode.
    pub fn mode(&self) -> u32 {
        self.mode.as_deref().and_then(|mode| u32::from_str_radix(mode, 8).ok()).unwrap_or(0o444)
    }
}

/// How one is written.
#[derive(JsonSchema)]
#[serde(untagged)]
pub enum NameOrUse {
    /// Its name alone.
    Name(String),
    /// With its file's owner and mode.
    Use(ValueUse),
}

/// A limit of the kernel for a process: `"nofile=1024:2048"` in flags.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Ulimit {
    /// What holds until the process asks for more; -1 for no bound.
    pub soft: i64,
    /// The most it may ask for; -1 for no bound.
    pub hard: i64,
}

impl std::str::FromStr for NetworkUse {
    type Err = Error;

    /// `NAME`, or `name=NAME,alias=OTHER`.
    fn from_str(text: &str) -> Result<Self> {
        let wrong = |why: String| Error::invalid(format!("network {text:.80?}"), why);
        if !text.contains('=') {
            return Ok(NetworkUse { name: text.to_owned(), aliases: Vec::new() });
        }
        let mut network = NetworkUse::default();
        for field in super::spellings::comma_separated(text).map_err(wrong)? {
            match field.split_once('=') {
                Some(("name", name)) => name.clone_into(&mut network.name),
                Some(("alias", alias)) => network.aliases.push(alias.to_owned()),
                Some((key, _)) => {
                    return Err(wrong(format!("has an unknown field {key:?}")).help("write name=NAME,alias=OTHER"));
                }
                None => return Err(wrong(format!("has {field:?} without a value"))),
            }
        }
        if network.name.is_empty() { Err(wrong("has no name".into())) } else { Ok(network) }
    }
}

impl<'de> Deserialize<'de> for NetworkUse {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Either;
        impl<'de> Visitor<'de> for Either {
            type Value = NetworkUse;

            fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
                f.write_str("a network's name, or a table with \"name\" and \"aliases\"")
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<NetworkUse, E> {
                text.parse().map_err(E::custom)
            }

            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<NetworkUse, A::Error> {
                // The derived reading of the table, under the type's own name because of `remote`.
                NetworkUse::deserialize(de::value::MapAccessDeserializer::new(map))
            }
        }
        deserializer.deserialize_any(Either)
    }
}

impl Serialize for NetworkUse {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        NetworkUse::serialize(self, serializer)
    }
}

impl<'de> Deserialize<'de> for ValueUse {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Either;
        impl<'de> Visitor<'de> for Either {
            type Value = ValueUse;

            fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
                f.write_str("a name, or a table with \"name\", \"uid\", \"gid\" and \"mode\"")
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<ValueUse, E> {
                Ok(ValueUse { name: text.to_owned(), ..ValueUse::default() })
            }

            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<ValueUse, A::Error> {
                ValueUse::deserialize(de::value::MapAccessDeserializer::new(map))
            }
        }
        deserializer.deserialize_any(Either)
    }
}

// As short as it is mostly written.
impl Serialize for ValueUse {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self.is_plain() {
            true => serializer.serialize_str(&self.name),
            false => ValueUse::serialize(self, serializer),
        }
    }
}

/// The names of the fields that are set and that only containers have.
pub fn fields(spec: &ServiceSpec) -> Vec<&'static str> {
    let set = [
        ("image", spec.image.is_some()),
        ("entrypoint", !spec.entrypoint.is_empty()),
        ("pull", spec.pull != Pull::default()),
        ("platform", spec.platform.is_some()),
        ("mounts", !spec.mounts.is_empty()),
        ("networks", !spec.networks.is_empty()),
        ("hostname", spec.hostname.is_some()),
        ("hosts", !spec.hosts.is_empty()),
        ("dns", !spec.dns.is_empty()),
        ("dns_search", !spec.dns_search.is_empty()),
        ("dns_options", !spec.dns_options.is_empty()),
        ("groups", !spec.groups.is_empty()),
        ("cap_add", !spec.cap_add.is_empty()),
        ("cap_drop", !spec.cap_drop.is_empty()),
        ("sysctls", !spec.sysctls.is_empty()),
        ("ulimits", !spec.ulimits.is_empty()),
        ("read_only", spec.read_only),
        ("init", spec.init.is_some()),
        ("tty", spec.tty),
        ("container_labels", !spec.container_labels.is_empty()),
        ("log.driver", spec.log.driver.is_some()),
        ("log.options", !spec.log.options.is_empty()),
    ];
    set.into_iter().filter(|(_, is_set)| *is_set).map(|(name, _)| name).collect()
}

/// What these fields add to what a task is made of. When an image is pulled is no part of it.
pub fn template(spec: &ServiceSpec) -> serde_json::Value {
    serde_json::json!({
        "entrypoint": spec.entrypoint,
        "platform": spec.platform,
        "mounts": spec.mounts,
        "networks": spec.networks,
        "hostname": spec.hostname,
        "hosts": spec.hosts,
        "dns": [spec.dns, spec.dns_search, spec.dns_options],
        "groups": spec.groups,
        "capabilities": [spec.cap_add, spec.cap_drop],
        "sysctls": spec.sysctls,
        "ulimits": spec.ulimits,
        "read_only": spec.read_only,
        "init": spec.init,
        "tty": spec.tty,
        "container_labels": spec.container_labels,
    })
}

/// What the fields' types alone do not show: the field, and what is wrong with it.
pub fn check(spec: &ServiceSpec) -> Result<(), (String, String)> {
    let wrong = |field: &str, why: String| Err((field.to_owned(), why));
    if spec.internal == Internal::Balanced {
        if spec.engine_native {
            return wrong("internal", "is not the Swarm's: leave out engine_native".into());
        }
        if !spec.can_be_balanced() {
            return wrong("internal", "leads nowhere: name a port".into());
        }
    }
    if spec.image.as_ref().is_some_and(|image| image.is_empty() || image.contains(char::is_whitespace)) {
        return wrong("image", "is not an image's name".into());
    }
    for (number, network) in spec.networks.iter().enumerate() {
        let field = format!("networks[{}]", number + 1);
        if network.name.is_empty() || network.name.contains(|c: char| c.is_whitespace() || c == '/') {
            return wrong(&field, "names no network".into());
        }
        if network.name.starts_with("container:") {
            return wrong(&field, "another container's network cannot be shared: which node would that be?".into());
        }
        if spec.networks[..number].iter().any(|other| other.name == network.name) {
            return wrong(&field, format!("\"{}\" is there twice", network.name));
        }
        if is_mode(&network.name) && (spec.networks.len() > 1 || !network.aliases.is_empty()) {
            return wrong(&field, format!("\"{}\" goes with no other network and no alias", network.name));
        }
    }
    let mut targets = std::collections::BTreeSet::new();
    for (number, mount) in spec.mounts.iter().enumerate() {
        let field = format!("mounts[{}]", number + 1);
        mount.check().map_err(|why| (field.clone(), why))?;
        if !targets.insert(mount.target.trim_end_matches('/').to_owned()) {
            return wrong(&field, format!("target {:.80?} is there twice", mount.target));
        }
    }
    for (target, config) in &spec.configs {
        let field = format!("configs.{target:.80}");
        let parts = target.strip_prefix('/').unwrap_or(target).split('/');
        if target.len() > 4096 || parts.into_iter().any(|part| matches!(part, "" | "." | "..") || part.contains('\0')) {
            return wrong(&field, "is not a file's path".into());
        }
        if !targets.insert(format!("/{}", target.trim_start_matches('/'))) {
            return wrong(&field, "is another one's or a mount's target as well".into());
        }
        if config.name.is_empty() {
            return wrong(&field, "names no config".into());
        }
    }
    let files =
        spec.secrets.iter().map(|file| ("secrets", file)).chain(spec.configs.iter().map(|file| ("configs", file)));
    for (of, (target, used)) in files {
        let octal = |mode: &str| u32::from_str_radix(mode, 8).is_ok_and(|mode| mode <= 0o777);
        if used.mode.as_deref().is_some_and(|mode| !octal(mode)) {
            return wrong(&format!("{of}.{target:.80}"), "has a mode that is not octal, such as \"0440\"".into());
        }
    }
    for (name, address) in &spec.hosts {
        if address != "host-gateway" && address.parse::<std::net::IpAddr>().is_err() {
            return wrong(&format!("hosts.{name:.60}"), format!("{address:.60?} is not an address"));
        }
    }
    for server in &spec.dns {
        if server.parse::<std::net::IpAddr>().is_err() {
            return wrong("dns", format!("{server:.60?} is not an address"));
        }
    }
    if let Some(platform) = &spec.platform
        && !platform.split_once('/').is_some_and(|(os, arch)| !os.is_empty() && !arch.is_empty())
    {
        return wrong("platform", format!("{platform:.60?} is not OS/ARCHITECTURE, such as \"linux/arm64\""));
    }
    if let Some((name, _)) = spec.ulimits.iter().find(|(_, limit)| limit.hard >= 0 && limit.soft > limit.hard) {
        return wrong(&format!("ulimits.{name:.40}"), "soft is more than hard".into());
    }
    Ok(())
}

/// Whether a network's name stands for a mode: the host's own network, or none.
pub fn is_mode(network: &str) -> bool {
    matches!(network, "host" | "none")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_use_is_short_where_it_can_be_and_whole_in_hashes() {
        let read = |text: &str| serde_json::from_str::<ValueUse>(text).unwrap();
        let (plain, whole) = (read("\"shop/key\""), read(r#"{"name":"shop/key","uid":7,"gid":8,"mode":"0400"}"#));
        assert_eq!(read(r#"{"name":"shop/key"}"#), plain);
        assert_eq!(serde_json::json!(plain), "shop/key");
        assert_eq!(serde_json::json!(whole), whole.whole());
        assert_eq!(plain.whole(), serde_json::json!({ "name": "shop/key" }));
    }
}
