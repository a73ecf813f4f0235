//! What is mounted into a container, in the grammars of Docker's `--mount`, of `--volume`, and as a table.

use std::collections::BTreeMap;
use std::fmt;

use schemars::JsonSchema;
use serde::de::{self, MapAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize};

use super::error::{Error, Result};
use super::units::Bytes;

/// Where a mount's files come from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum MountKind {
    /// A volume of the container engine, made where it is missing.
    #[default]
    Volume,
    /// A file or folder of the host, which has to be there.
    Bind,
    /// Memory.
    Tmpfs,
}

/// One mount: `"data:/var/lib/app"`, `"type=bind,source=/srv,target=/srv,readonly"`, or a table.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(remote = "Self", default, deny_unknown_fields)]
#[schemars(rename = "Mount")]
pub struct Mount {
    /// `volume`, `bind` or `tmpfs`.
    #[serde(rename = "type")]
    pub kind: MountKind,
    /// The volume's name, or the host's path. A volume without a name is the container's own.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub source: Option<String>,
    /// The path in the container.
    pub target: String,
    /// Whether the container may only read it.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub read_only: bool,
    /// The volume's driver, where it has to be made.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub volume_driver: Option<String>,
    /// The driver's options.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub volume_options: BTreeMap<String, String>,
    /// The volume's labels, where it has to be made.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub volume_labels: BTreeMap<String, String>,
    /// Whether a new volume stays empty instead of getting what the image has at the target.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub volume_nocopy: bool,
    /// How mounts below a bind mount are passed on: `rprivate` (default), `private`, `rshared`, `shared`, `rslave`, `slave`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bind_propagation: Option<String>,
    /// The most that a tmpfs holds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tmpfs_size: Option<Bytes>,
    /// The mode of a tmpfs's root, in octal: `"1777"`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tmpfs_mode: Option<String>,
}

const PROPAGATIONS: [&str; 6] = ["rprivate", "private", "rshared", "shared", "rslave", "slave"];
const FORMS: &str = "write \"VOLUME:/PATH\", \"/HOST/PATH:/PATH:ro\" or \"type=volume,source=NAME,target=/PATH\"";

impl std::str::FromStr for Mount {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let mount = if text.contains('=') { Mount::from_fields(text) } else { Mount::from_short(text) };
        let shown: String = text.chars().take(100).collect();
        let mount = mount.map_err(|why| Error::invalid(format!("mount {shown:?}"), why).help(FORMS))?;
        mount.check().map_err(|why| Error::invalid(format!("mount {shown:?}"), why))?;
        Ok(mount)
    }
}

impl Mount {
    // SOURCE:TARGET[:OPTIONS], as in `--volume`.
    fn from_short(text: &str) -> Result<Self, String> {
        let parts: Vec<&str> = text.split(':').collect();
        let (source, target, options) = match parts[..] {
            [target] => (None, target, ""),
            [source, target] => (Some(source), target, ""),
            [source, target, options] => (Some(source), target, options),
            _ => return Err("has too many parts".into()),
        };
        let is_path = source.is_some_and(|source| source.starts_with(['/', '.', '~']));
        let mut mount = Mount {
            kind: if is_path { MountKind::Bind } else { MountKind::Volume },
            source: source.map(str::to_owned),
            target: target.to_owned(),
            ..Mount::default()
        };
        for option in options.split(',').filter(|option| !option.is_empty()) {
            match option {
                "ro" => mount.read_only = true,
                "rw" => mount.read_only = false,
                "nocopy" => mount.volume_nocopy = true,
                // SELinux labels, which only the command line of the container engine sets.
                "z" | "Z" => return Err(format!("option {option} is not supported")),
                other if PROPAGATIONS.contains(&other) => mount.bind_propagation = Some(other.to_owned()),
                other => return Err(format!("has an unknown option {other:?}")),
            }
        }
        Ok(mount)
    }

    // Comma-separated fields, as in `--mount`.
    fn from_fields(text: &str) -> Result<Self, String> {
        let mut mount = Mount::default();
        for field in super::spellings::comma_separated(text)? {
            let (key, value) = field.split_once('=').map_or((field.as_str(), None), |(key, value)| (key, Some(value)));
            let needed = || value.map(str::to_owned).ok_or_else(|| format!("{key} needs a value"));
            let pair = || {
                let value = needed()?;
                let (name, value) = value.split_once('=').unwrap_or((&value, ""));
                Ok::<_, String>((name.to_owned(), value.to_owned()))
            };
            match key {
                "type" => {
                    mount.kind = match needed()?.as_str() {
                        "volume" => MountKind::Volume,
                        "bind" => MountKind::Bind,
                        "tmpfs" => MountKind::Tmpfs,
                        other => {
                            return Err(format!("has type {other:?}; volume, bind and tmpfs are supported"));
                        }
                    }
                }
                "source" | "src" => mount.source = Some(needed()?),
                "target" | "dst" | "destination" => mount.target = needed()?,
                "readonly" | "ro" => mount.read_only = flag(key, value)?,
                "volume-driver" => mount.volume_driver = Some(needed()?),
                "volume-opt" => mount.volume_options.extend([pair()?]),
                "volume-label" => mount.volume_labels.extend([pair()?]),
                "volume-nocopy" => mount.volume_nocopy = flag(key, value)?,
                "bind-propagation" => mount.bind_propagation = Some(needed()?),
                "tmpfs-size" => {
                    let size = super::units::docker_size(&needed()?).parse();
                    mount.tmpfs_size = Some(size.map_err(|error: Error| error.message)?);
                }
                "tmpfs-mode" => mount.tmpfs_mode = Some(needed()?),
                // A hint for other platforms; on Linux it has no effect.
                "consistency" => {}
                other => {
                    let known = ["type", "source", "target", "readonly", "volume-driver", "volume-opt", "tmpfs-size"];
                    return Err(format!("has an unknown field {other:?}{}", super::suggest::hint(other, known)));
                }
            }
        }
        Ok(mount)
    }

    /// What its fields alone do not show.
    pub fn check(&self) -> Result<(), String> {
        if !self.target.starts_with('/') {
            return Err(if self.target.is_empty() {
                "has no target".into()
            } else {
                format!("has target {:.80?}, which is not an absolute path", self.target)
            });
        }
        match (self.kind, self.source.as_deref()) {
            (MountKind::Bind, None) => return Err("binds a path of the host, but has no source".into()),
            (MountKind::Bind, Some(path)) if !path.starts_with('/') => {
                return Err(format!("has source {path:.80?}, which is not an absolute path; it is the node's"));
            }
            (MountKind::Tmpfs, Some(_)) => return Err("is a tmpfs, which has no source".into()),
            (MountKind::Volume, Some(name)) if !is_volume_name(name) => {
                return Err(format!("has source {name:.80?}, which is not a volume's name"));
            }
            _ => {}
        }
        let of = |kind: MountKind, given: bool, field: &str| {
            if given && self.kind != kind { Err(format!("has {field}, which only a {kind} has")) } else { Ok(()) }
        };
        of(MountKind::Volume, self.volume_driver.is_some(), "volume_driver")?;
        of(MountKind::Volume, !self.volume_options.is_empty(), "volume_options")?;
        of(MountKind::Volume, !self.volume_labels.is_empty(), "volume_labels")?;
        of(MountKind::Volume, self.volume_nocopy, "volume_nocopy")?;
        of(MountKind::Bind, self.bind_propagation.is_some(), "bind_propagation")?;
        of(MountKind::Tmpfs, self.tmpfs_size.is_some(), "tmpfs_size")?;
        of(MountKind::Tmpfs, self.tmpfs_mode.is_some(), "tmpfs_mode")?;
        if let Some(other) = self.bind_propagation.as_deref().filter(|given| !PROPAGATIONS.contains(given)) {
            return Err(format!("has bind_propagation {other:.20?}; one of {}", PROPAGATIONS.join(", ")));
        }
        if self.tmpfs_mode.as_deref().is_some_and(|mode| u32::from_str_radix(mode, 8).is_err()) {
            return Err("has a tmpfs_mode that is not octal, such as \"1777\"".into());
        }
        Ok(())
    }
}

impl fmt::Display for MountKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            MountKind::Volume => "volume",
            MountKind::Bind => "bind mount",
            MountKind::Tmpfs => "tmpfs",
        })
    }
}

// Docker's rule: [a-zA-Z0-9][a-zA-Z0-9_.-]*. Swarm's templates are let through.
fn is_volume_name(name: &str) -> bool {
    name.contains("{{")
        || name.len() <= 255
            && name.starts_with(|c: char| c.is_ascii_alphanumeric())
            && name.chars().all(|c| c.is_ascii_alphanumeric() || "_.-".contains(c))
}

fn flag(key: &str, value: Option<&str>) -> Result<bool, String> {
    match value {
        None | Some("true" | "1") => Ok(true),
        Some("false" | "0") => Ok(false),
        Some(other) => Err(format!("{key} is true or false, not {other:?}")),
    }
}

impl<'de> Deserialize<'de> for Mount {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Either;
        impl<'de> Visitor<'de> for Either {
            type Value = Mount;

            fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
                f.write_str("a mount such as \"data:/var/lib/app\", or a table")
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<Mount, E> {
                text.parse().map_err(E::custom)
            }

            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Mount, A::Error> {
                // The derived reading of the table, under the type's own name because of `remote`.
                let mount = Mount::deserialize(de::value::MapAccessDeserializer::new(map))?;
                mount.check().map_err(de::Error::custom)?;
                Ok(mount)
            }
        }
        deserializer.deserialize_any(Either)
    }
}

impl Serialize for Mount {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        Mount::serialize(self, serializer)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(input: &str, expected: &str) {
        let got = match input.parse::<Mount>() {
            Ok(mount) => serde_json::to_string(&mount).unwrap(),
            Err(error) => error.message,
        };
        assert_eq!(got, expected, "for {input:?}");
    }

    #[test]
    fn grammar() {
        check("data:/var/lib", r#"{"type":"volume","source":"data","target":"/var/lib"}"#);
        check("/srv:/srv:ro", r#"{"type":"bind","source":"/srv","target":"/srv","read_only":true}"#);
        check("/cache", r#"{"type":"volume","target":"/cache"}"#);
        check(
            "type=bind,src=/a,dst=/b,readonly,bind-propagation=rshared",
            r#"{"type":"bind","source":"/a","target":"/b","read_only":true,"bind_propagation":"rshared"}"#,
        );
        check(
            "type=tmpfs,target=/tmp,tmpfs-size=64MB,tmpfs-mode=1770",
            r#"{"type":"tmpfs","target":"/tmp","tmpfs_size":"64MiB","tmpfs_mode":"1770"}"#,
        );
        check(
            r#"source=nfs,target=/n,"volume-opt=o=addr=1.2.3.4,rw",volume-driver=local"#,
            concat!(
                r#"{"type":"volume","source":"nfs","target":"/n","volume_driver":"local","#,
                r#""volume_options":{"o":"addr=1.2.3.4,rw"}}"#
            ),
        );
        check("./here:/there", "has source \"./here\", which is not an absolute path; it is the node's");
        check("data:there", "has target \"there\", which is not an absolute path");
        check("a:/b:ro:c", "has too many parts");
        check("type=npipe,target=/x", "has type \"npipe\"; volume, bind and tmpfs are supported");
        check("type=bind,target=/x", "binds a path of the host, but has no source");
        check("sorce=a,target=/x", "has an unknown field \"sorce\"; did you mean \"source\"?");
        check("type=tmpfs,source=a,target=/x", "is a tmpfs, which has no source");
        check("source=a,target=/x,tmpfs-size=1M", "has tmpfs_size, which only a tmpfs has");
    }

    proptest::proptest! {
        #[test]
        fn any_text_is_a_mount_or_an_error(text in "\\PC{0,60}") {
            let _ = text.parse::<Mount>();
        }
    }
}
