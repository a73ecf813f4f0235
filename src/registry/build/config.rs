//! The config of an image that is built: that of the one below it, with what is said of this one.

use std::collections::BTreeSet;

use serde_json::{Map, Value, json};

use super::{BuildAsk, ImageSettings, invalid};
use crate::registry::refused::Refused;

/// The platform of this machine, as images say it.
pub fn own_platform() -> String {
    let architecture = match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        "x86" => "386",
        "powerpc64" => "ppc64le",
        other => other,
    };
    format!("linux/{architecture}")
}

/// The platform that a config is for.
pub fn platform_of(config: &Value) -> String {
    let words = [&config["os"], &config["architecture"], &config["variant"]];
    words.iter().filter_map(|word| word.as_str()).filter(|word| !word.is_empty()).collect::<Vec<_>>().join("/")
}

/// The config of an image that is built from nothing.
pub fn from_nothing(platform: Option<&str>) -> Result<Value, Refused> {
    let platform = platform.map_or_else(own_platform, str::to_owned);
    let words: Vec<&str> = platform.split('/').collect();
    let (os, architecture, variant) = match words[..] {
        [os, architecture] if !os.is_empty() && !architecture.is_empty() => (os, architecture, None),
        [os, architecture, variant] if words.iter().all(|word| !word.is_empty()) => (os, architecture, Some(variant)),
        _ => return Err(invalid(format!("platform {platform:.40?} is none: linux/amd64, linux/arm64/v8"))),
    };
    let mut config = json!({ "os": os, "architecture": architecture, "rootfs": { "type": "layers", "diff_ids": [] } });
    if let Some(variant) = variant {
        config["variant"] = json!(variant);
    }
    Ok(config)
}

// The part of a config that has such a name, made where it is not there.
fn part<'a>(of: &'a mut Map<String, Value>, name: &str) -> &'a mut Map<String, Value> {
    let value = of.entry(name).or_insert_with(|| json!({}));
    if !value.is_object() {
        *value = json!({});
    }
    value.as_object_mut().expect("it was made an object above")
}

/// What is said of an image that is built comes into the config of the one below it.
pub fn change(config: &mut Value, ask: &BuildAsk) -> Result<(), Refused> {
    let created = jiff::Timestamp::from_second(i64::try_from(ask.created).unwrap_or(i64::MAX));
    let created =
        created.map_err(|_| invalid(format!("{} s since 1970 is no time that an image can have", ask.created)))?;
    let created = created.to_string();
    let before = config["rootfs"]["diff_ids"].as_array().cloned().unwrap_or_default();
    let told = config["history"].as_array().cloned().unwrap_or_default();
    let Some(all) = config.as_object_mut() else { return Err(invalid("its config is no object")) };
    all.insert("created".into(), json!(created));
    // What Docker says of the container and the machine where the other image was made is not true of this one.
    for gone in ["container", "container_config", "docker_version", "id", "parent", "author"] {
        all.remove(gone);
    }
    let of_layers = told.iter().filter(|one| one["empty_layer"] != true).count();
    if of_layers == before.len() {
        let own = ask.layers.iter().map(|layer| json!({ "created": created, "created_by": layer.created_by }));
        all.insert("history".into(), told.into_iter().chain(own).collect());
    } else {
        all.remove("history");
    }
    let own = ask.layers.iter().map(|layer| json!(layer.diff_id));
    let diff_ids: Vec<Value> = before.into_iter().chain(own).collect();
    all.insert("rootfs".into(), json!({ "type": "layers", "diff_ids": diff_ids }));
    settings(part(all, "config"), &ask.settings)
}

fn settings(run: &mut Map<String, Value>, told: &ImageSettings) -> Result<(), Refused> {
    run.remove("Image");
    if !told.env.is_empty() {
        let before = run.get("Env").and_then(Value::as_array).cloned().unwrap_or_default();
        let mut env: Vec<String> = before.iter().filter_map(|one| one.as_str().map(str::to_owned)).collect();
        for (name, value) in &told.env {
            if name.is_empty() || name.contains(['=', '\0']) || value.contains('\0') {
                return Err(invalid(format!("environment variable {name:.60?} cannot be one")));
            }
            let (line, start) = (format!("{name}={value}"), format!("{name}="));
            match env.iter_mut().find(|one| one.starts_with(&start)) {
                Some(one) => *one = line,
                None => env.push(line),
            }
        }
        run.insert("Env".into(), json!(env));
    }
    if let Some(entrypoint) = &told.entrypoint {
        run.insert("Entrypoint".into(), json!(entrypoint));
        run.remove("Cmd");
    }
    let folders = told.workdir.iter().chain(&told.volumes);
    if let Some(wrong) = folders.into_iter().find(|folder| !folder.starts_with('/')) {
        return Err(invalid(format!("folder {wrong:.80?} does not begin with a slash")));
    }
    for (name, value) in [("WorkingDir", &told.workdir), ("User", &told.user), ("StopSignal", &told.stop_signal)] {
        if let Some(value) = value {
            run.insert(name.into(), json!(value));
        }
    }
    if let Some(command) = &told.command {
        run.insert("Cmd".into(), json!(command));
    }
    if !told.labels.is_empty() {
        let labels = told.labels.iter().map(|(name, value)| (name.clone(), json!(value)));
        part(run, "Labels").extend(labels);
    }
    let mut ports = BTreeSet::new();
    for port in &told.expose {
        let (number, protocol) = port.split_once('/').unwrap_or((port, "tcp"));
        let is_port = number.parse::<u16>().is_ok_and(|number| number > 0);
        if !is_port || !matches!(protocol, "tcp" | "udp" | "sctp") {
            return Err(invalid(format!("{port:.40?} is no port to expose: 8080, 53/udp")));
        }
        ports.insert(format!("{number}/{protocol}"));
    }
    if !ports.is_empty() {
        part(run, "ExposedPorts").extend(ports.into_iter().map(|port| (port, json!({}))));
    }
    if !told.volumes.is_empty() {
        part(run, "Volumes").extend(told.volumes.iter().map(|folder| (folder.clone(), json!({}))));
    }
    Ok(())
}
