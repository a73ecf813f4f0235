//! What a service's containers have in their file system: volumes, tmpfs, secrets and configs.

use serde_json::{Map, Value as Json, json};

use super::Context;
use super::fields::{self, Fields, list, text, unsupported, wrong};
use super::service::{set, table};
use super::yaml::{At, Node, Value};
use crate::model::Result;

/// `volumes` and `tmpfs`.
pub fn mounts(context: &mut Context<'_>, fields: &mut Fields<'_>, spec: &mut Map<String, Json>) -> Result<()> {
    let mut mounts = Vec::new();
    let path = fields.path_of("volumes");
    if let Some(node) = fields.take("volumes") {
        for (number, node) in list(&path, node)?.iter().enumerate() {
            let path = format!("{path}[{}]", number + 1);
            mounts.push(match &node.value {
                Value::Map(_) => long(context, &path, node)?,
                _ => short(context, &path, &node.at, &text(&path, node)?)?,
            });
        }
    }
    for place in fields.texts("tmpfs")? {
        let (target, options) = place.split_once(':').unwrap_or((&place, ""));
        let mut mount = Map::from_iter([("type".to_owned(), json!("tmpfs")), ("target".to_owned(), json!(target))]);
        for option in options.split(',').filter(|option| !option.is_empty()) {
            match option.split_once('=') {
                Some(("size", size)) => drop(mount.insert("tmpfs_size".into(), json!(size))),
                Some(("mode", mode)) => drop(mount.insert("tmpfs_mode".into(), json!(mode))),
                _ => {
                    let path = fields.path_of("tmpfs");
                    return Err(unsupported(&context.at, &format!("{path} {option:.40}"), "size and mode are"));
                }
            }
        }
        mounts.push(Json::Object(mount));
    }
    if !mounts.is_empty() {
        spec.insert("mounts".into(), Json::Array(mounts));
    }
    Ok(())
}

fn is_path(source: &str) -> bool {
    source.starts_with(['/', '.', '~'])
}

// `[SOURCE:]TARGET[:ro]`.
fn short(context: &Context<'_>, path: &str, at: &At, text: &str) -> Result<Json> {
    let mut parts = text.split(':');
    let (first, second, options) = (parts.next().unwrap_or_default(), parts.next(), parts.next());
    if parts.next().is_some() {
        return Err(wrong(at, path, format!("{text:.80?} has too many parts")));
    }
    let Some(target) = second else {
        return Ok(json!({ "type": "volume", "target": first }));
    };
    let mut mount = match is_path(first) {
        true => json!({ "type": "bind", "source": context.path(first), "target": target }),
        false => context.volume(first, target).map_err(|why| wrong(at, path, why))?,
    };
    for option in options.unwrap_or_default().split(',').filter(|option| !option.is_empty()) {
        match option {
            "ro" => mount["read_only"] = json!(true),
            "rw" | "z" | "Z" | "cached" | "delegated" | "consistent" => {}
            "nocopy" => mount["volume_nocopy"] = json!(true),
            "shared" | "rshared" | "slave" | "rslave" | "private" | "rprivate" => {
                mount["bind_propagation"] = json!(option);
            }
            other => return Err(wrong(at, path, format!("has the unknown option {other:.40?}"))),
        }
    }
    Ok(mount)
}

fn long(context: &Context<'_>, path: &str, node: &Node) -> Result<Json> {
    let mut fields = Fields::of(path, node)?;
    let kind = fields.text("type")?.unwrap_or_else(|| "volume".into());
    let (source, target) = (fields.text("source")?, fields.text("target")?);
    let target = target.ok_or_else(|| wrong(&node.at, path, "has no target"))?;
    let mut mount = match (kind.as_str(), source) {
        ("volume", Some(source)) => context.volume(&source, &target).map_err(|why| wrong(&node.at, path, why))?,
        ("bind", Some(source)) => json!({ "type": "bind", "source": context.path(&source), "target": target }),
        ("bind", None) => return Err(wrong(&node.at, path, "has no source")),
        ("volume" | "tmpfs", None) => json!({ "type": kind, "target": target }),
        ("tmpfs", Some(_)) => return Err(wrong(&node.at, path, "is a tmpfs, which has no source")),
        (other, _) => {
            return Err(unsupported(&node.at, &format!("{path}.type {other:.40}"), "volume, bind and tmpfs are"));
        }
    };
    if fields.flag("read_only")? == Some(true) {
        mount["read_only"] = json!(true);
    }
    if let Some(node) = fields.take("bind") {
        let mut bind = Fields::of(format!("{path}.bind"), node)?;
        if let Some(propagation) = bind.text("propagation")? {
            mount["bind_propagation"] = json!(propagation);
        }
        bind.flag("create_host_path")?;
        bind.text("selinux")?;
        bind.finish(&[("recursive", "the engine's own way is taken")])?;
    }
    if let Some(node) = fields.take("volume") {
        let mut volume = Fields::of(format!("{path}.volume"), node)?;
        if volume.flag("nocopy")? == Some(true) {
            mount["volume_nocopy"] = json!(true);
        }
        volume.finish(&[("subpath", "mount the whole volume"), ("labels", "labels belong to the volume")])?;
    }
    if let Some(node) = fields.take("tmpfs") {
        let mut tmpfs = Fields::of(format!("{path}.tmpfs"), node)?;
        if let Some(size) = tmpfs.size("size")? {
            mount["tmpfs_size"] = json!(size.0);
        }
        if let Some(mode) = tmpfs.text("mode")? {
            mount["tmpfs_mode"] = json!(mode.trim_start_matches("0o"));
        }
        tmpfs.finish(&[])?;
    }
    fields.text("consistency")?;
    fields.finish(&[])?;
    Ok(mount)
}

/// `secrets` and `configs`.
pub fn files(context: &mut Context<'_>, fields: &mut Fields<'_>, spec: &mut Map<String, Json>) -> Result<()> {
    let path = fields.path_of("secrets");
    if let Some(node) = fields.take("secrets") {
        for node in list(&path, node)? {
            let (source, mut used) = file(&path, node)?;
            let name = context.value("secrets", &source).map_err(|why| wrong(&node.at, &path, why))?;
            let target = match used.remove("target") {
                Some(Json::String(target)) => target,
                _ => source,
            };
            let file = target.strip_prefix("/run/secrets/").unwrap_or(&target);
            if file.contains('/') {
                return Err(unsupported(
                    &node.at,
                    &format!("{path} target {target:.80}"),
                    "secrets are in /run/secrets",
                ));
            }
            table(spec, "secrets").insert(file.to_owned(), with_owner(used, name));
        }
    }
    let path = fields.path_of("configs");
    if let Some(node) = fields.take("configs") {
        for node in list(&path, node)? {
            let (source, mut used) = file(&path, node)?;
            let name = context.value("configs", &source).map_err(|why| wrong(&node.at, &path, why))?;
            let target = match used.remove("target") {
                Some(Json::String(target)) => target,
                _ => format!("/{source}"),
            };
            table(spec, "configs").insert(target, with_owner(used, name));
        }
    }
    Ok(())
}

// What one is, and what is said of its file.
fn file(path: &str, node: &Node) -> Result<(String, Map<String, Json>)> {
    let mut used = Map::new();
    if !matches!(node.value, Value::Map(_)) {
        return Ok((text(path, node)?, used));
    }
    let mut fields = Fields::of(path.to_owned(), node)?;
    let source = fields.text("source")?.ok_or_else(|| wrong(&node.at, path, "has no source"))?;
    set(&mut used, "target", fields.text("target")?);
    set(&mut used, "uid", fields.number::<u32>("uid")?);
    set(&mut used, "gid", fields.number::<u32>("gid")?);
    set(&mut used, "mode", fields.text("mode")?.map(|mode| mode.trim_start_matches("0o").to_owned()));
    fields.finish(&[])?;
    Ok((source, used))
}

fn with_owner(mut used: Map<String, Json>, name: String) -> Json {
    if used.is_empty() {
        return json!(name);
    }
    used.insert("name".into(), json!(name));
    Json::Object(used)
}

/// The volume driver's part of a mount, as a top-level volume says it.
pub fn volume_options(fields: &mut Fields<'_>) -> Result<Map<String, Json>> {
    let mut mount = Map::new();
    set(&mut mount, "volume_driver", fields.text("driver")?);
    for (from, to) in [("driver_opts", "volume_options"), ("labels", "volume_labels")] {
        let pairs = fields.pairs(from)?;
        if !pairs.is_empty() {
            let texts = pairs.into_iter().map(|(key, value)| (key, json!(value.unwrap_or_default())));
            mount.insert(to.into(), Json::Object(texts.collect()));
        }
    }
    Ok(mount)
}

/// Whether a top-level network, volume, secret or config is there already, and its name where it has one of its own.
pub fn external(fields: &mut Fields<'_>) -> Result<(bool, Option<String>)> {
    let path = fields.path_of("external");
    let mut name = fields.text("name")?;
    let external = match fields.take("external") {
        None => false,
        Some(node) => match &node.value {
            // The older form.
            Value::Map(_) => {
                let mut inner = Fields::of(path, node)?;
                name = inner.text("name")?.or(name);
                inner.finish(&[])?;
                true
            }
            _ => fields::flag(&path, node)?,
        },
    };
    Ok((external, name))
}
