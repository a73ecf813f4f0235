//! One service of a Compose file as a description.

use std::collections::BTreeMap;

use serde_json::{Map, Value as Json, json};

use super::fields::{self, Fields, Refused, list, text, unsupported, words, wrong};
use super::interpolate::env_file;
use super::yaml::{At, Node, Value};
use super::{Context, deploy, mounts, ports};
use crate::model::Result;
use crate::model::stack::{NAMESPACE, Need, Until};

/// What a service may say by the specification and not here.
const REFUSED: [Refused; 38] = [
    ("annotations", "use labels"),
    ("attach", "`neap service logs -f` shows a service's output"),
    ("blkio_config", "Swarm has no such limit"),
    ("cgroup", "every container has a cgroup of its own"),
    ("cgroup_parent", "every container has a cgroup of its own"),
    ("cpu_count", "use deploy.resources.limits.cpus"),
    ("cpu_percent", "use deploy.resources.limits.cpus"),
    ("cpu_period", "use deploy.resources.limits.cpus"),
    ("cpu_quota", "use deploy.resources.limits.cpus"),
    ("cpu_shares", "use deploy.resources.limits.cpus"),
    ("cpuset", "use deploy.resources.limits.cpus"),
    ("credential_spec", "it is for Windows"),
    ("develop", "it is for one's own machine"),
    ("device_cgroup_rules", "devices are not handed to containers"),
    ("devices", "devices are not handed to containers"),
    ("domainname", "write it into hostname"),
    ("extends", "write it out, or use YAML's anchors"),
    ("gpus", "devices are not handed to containers"),
    ("ipc", "every container has its own"),
    ("isolation", "it is for Windows"),
    ("links", "a service is found by its name on the networks that both are attached to"),
    ("external_links", "a service is found by its name on the networks that both are attached to"),
    ("mac_address", "the engine gives it one"),
    ("mem_swappiness", "Swarm has no such limit"),
    ("memswap_limit", "Swarm has no such limit"),
    ("models", "they are not made here"),
    ("oom_kill_disable", "Swarm has no such setting"),
    ("oom_score_adj", "Swarm has no such setting"),
    ("pid", "every container has its own"),
    ("post_start", "write it into the entry point"),
    ("pre_stop", "write it into the entry point, for the stop signal"),
    ("privileged", "a container gets the capabilities that cap_add names"),
    ("provider", "only containers are started"),
    ("runtime", "the engine's own is used"),
    ("security_opt", "Swarm has no such setting"),
    ("shm_size", "mount a tmpfs on /dev/shm"),
    ("use_api_socket", "mount the socket"),
    ("userns_mode", "the engine's own is used"),
];

/// What is left out with a warning: it changes nothing that runs.
const LEFT_OUT: [(&str, &str); 6] = [
    ("build", "an image is not built here; the one that is named is used"),
    ("container_name", "replicas have names of their own"),
    ("expose", "every port of a container is reached on its networks"),
    ("stdin_open", "nobody is there to type"),
    ("volumes_from", ""),
    ("storage_opt", ""),
];

/// The description, and what it waits for.
pub fn service(context: &mut Context<'_>, key: &str, node: &Node) -> Result<(Json, BTreeMap<String, Need>)> {
    let mut fields = Fields::of(format!("services.{key}"), node)?;
    let mut spec = Map::new();
    let name = context.service_name(key).map_err(|why| wrong(&node.at, &fields.path, why))?;
    spec.insert("name".into(), json!(name));
    for (what, why) in LEFT_OUT {
        let Some(at) = fields.place(what).cloned() else { continue };
        let path = fields.path_of(what);
        if why.is_empty() {
            return Err(unsupported(&at, &path, "name the volumes themselves"));
        }
        context.warn(&at, &path, why);
    }
    let image = fields.text("image")?;
    if image.is_none() {
        return Err(wrong(&node.at, &fields.path, "has no image")
            .help("an image is not built here: build and push it, and name it"));
    }
    set(&mut spec, "image", image);
    for (from, to) in [("command", "command"), ("entrypoint", "entrypoint")] {
        let path = fields.path_of(from);
        if let Some(node) = fields.take(from) {
            let words = command_words(&path, node)?;
            if words.is_empty() {
                let help = "what the image has is run: leave it out, or name what is to run";
                return Err(unsupported(&node.at, &format!("{path} that is empty"), help));
            }
            spec.insert(to.into(), json!(words));
        }
    }
    for (from, to) in [("user", "user"), ("working_dir", "workdir"), ("hostname", "hostname"), ("platform", "platform")]
    {
        set(&mut spec, to, fields.text(from)?);
    }
    for key in ["read_only", "init", "tty"] {
        set(&mut spec, key, fields.flag(key)?);
    }
    for (from, to) in [
        ("cap_add", "cap_add"),
        ("cap_drop", "cap_drop"),
        ("group_add", "groups"),
        ("dns", "dns"),
        ("dns_search", "dns_search"),
        ("dns_opt", "dns_options"),
    ] {
        let texts = fields.texts(from)?;
        if !texts.is_empty() {
            spec.insert(to.into(), json!(texts));
        }
    }
    environment(context, &mut fields, &mut spec)?;
    let mut labels: BTreeMap<String, String> = pairs(&mut fields, "labels")?;
    labels.insert(NAMESPACE.into(), context.stack.to_string());
    spec.insert("container_labels".into(), json!(labels));
    let sysctls = pairs(&mut fields, "sysctls")?;
    if !sysctls.is_empty() {
        spec.insert("sysctls".into(), json!(sysctls));
    }
    hosts(&mut fields, &mut spec)?;
    ulimits(&mut fields, &mut spec)?;
    ports::ports(&mut fields, &mut spec)?;
    mounts::mounts(context, &mut fields, &mut spec)?;
    mounts::files(context, &mut fields, &mut spec)?;
    networks(context, key, &mut fields, &mut spec)?;
    healthcheck(&mut fields, &mut spec)?;
    stop(&mut fields, &mut spec)?;
    logging(&mut fields, &mut spec)?;
    pull(&mut fields, &mut spec)?;
    deploy::restart(&mut fields, &mut spec)?;
    deploy::older(&mut fields, &mut spec)?;
    let balanced = deploy::deploy(context, &mut fields, &mut spec)?;
    let depends_on = depends_on(context, &mut fields)?;
    fields.take("profiles");
    // Whatever Neap has and Compose has not.
    if let Some(node) = fields.take("x-neap") {
        let Json::Object(own) = fields::json(node) else {
            return Err(wrong(&node.at, &fields.path_of("x-neap"), "is no mapping of a description's fields"));
        };
        for (key, value) in own {
            match (spec.get_mut(&key), value) {
                // A script is used with its own options alone.
                (Some(Json::Object(known)), Json::Object(more))
                    if !matches!(key.as_str(), "rollout" | "rollback" | "check") =>
                {
                    known.extend(more);
                }
                (_, value) => drop(spec.insert(key, value)),
            }
        }
        // Without these it would be nobody's.
        for labels in ["labels", "container_labels"] {
            table(&mut spec, labels).insert(NAMESPACE.into(), json!(context.stack));
        }
    }
    deploy::balance(context, balanced, &mut spec);
    fields.finish(&REFUSED)?;
    Ok((Json::Object(spec), depends_on))
}

/// Puts a value into a description, if there is one.
pub fn set(spec: &mut Map<String, Json>, key: &str, value: Option<impl Into<Json>>) {
    if let Some(value) = value {
        spec.insert(key.to_owned(), value.into());
    }
}

/// A table of a description.
pub fn table<'a>(spec: &'a mut Map<String, Json>, key: &str) -> &'a mut Map<String, Json> {
    let entry = spec.entry(key).or_insert_with(|| json!({}));
    if !entry.is_object() {
        *entry = json!({});
    }
    entry.as_object_mut().expect("was just made an object")
}

fn pairs(fields: &mut Fields<'_>, key: &'static str) -> Result<BTreeMap<String, String>> {
    let pairs = fields.pairs(key)?;
    Ok(pairs.into_iter().map(|(key, value)| (key, value.unwrap_or_default())).collect())
}

fn command_words(path: &str, node: &Node) -> Result<Vec<String>> {
    match &node.value {
        Value::List(list) => list.iter().map(|node| text(path, node)).collect(),
        _ => words(&text(path, node)?).map_err(|why| wrong(&node.at, path, why)),
    }
}

fn environment(context: &mut Context<'_>, fields: &mut Fields<'_>, spec: &mut Map<String, Json>) -> Result<()> {
    let mut env: BTreeMap<String, String> = BTreeMap::new();
    let path = fields.path_of("env_file");
    if let Some(node) = fields.take("env_file") {
        let entries = match &node.value {
            Value::List(list) => list.iter().collect(),
            _ => vec![node],
        };
        for node in entries {
            let (file, required) = match &node.value {
                Value::Map(_) => {
                    let mut entry = Fields::of(path.clone(), node)?;
                    let file = entry.text("path")?.ok_or_else(|| wrong(&node.at, &path, "has no path"))?;
                    let required = entry.flag("required")?.unwrap_or(true);
                    entry.finish(&[("format", "quotes and variables are read as usual")])?;
                    (file, required)
                }
                _ => (text(&path, node)?, true),
            };
            let place = context.path(&file);
            let content = match (context.read)(&place) {
                Ok(content) => content,
                Err(_) if !required => continue,
                Err(error) => return Err(wrong(&node.at, &path, error)),
            };
            for (key, value) in env_file(&file, &content, &context.variables)? {
                if let Some(value) = value.or_else(|| context.variables.get(&key).cloned()) {
                    env.insert(key, value);
                }
            }
        }
    }
    for (key, value) in fields.pairs("environment")? {
        // A name alone passes on the caller's variable; where that is not set there is none.
        match value.or_else(|| context.variables.get(&key).cloned()) {
            Some(value) => env.insert(key, value),
            None => env.remove(&key),
        };
    }
    if !env.is_empty() {
        spec.insert("env".into(), json!(env));
    }
    Ok(())
}

fn hosts(fields: &mut Fields<'_>, spec: &mut Map<String, Json>) -> Result<()> {
    let path = fields.path_of("extra_hosts");
    let Some(node) = fields.take("extra_hosts") else { return Ok(()) };
    let mut hosts = BTreeMap::new();
    match &node.value {
        Value::Map(map) => {
            for (name, _, node) in map {
                hosts.insert(name.clone(), text(&path, node)?);
            }
        }
        _ => {
            for node in list(&path, node)? {
                let text = text(&path, node)?;
                let (name, address) = text.split_once('=').or_else(|| text.split_once(':')).unwrap_or((&text, ""));
                let address = address.trim_matches(['[', ']']);
                if address.is_empty() {
                    return Err(wrong(&node.at, &path, format!("{text:.60?} is not NAME=ADDRESS")));
                }
                hosts.insert(name.to_owned(), address.to_owned());
            }
        }
    }
    spec.insert("hosts".into(), json!(hosts));
    Ok(())
}

fn ulimits(fields: &mut Fields<'_>, spec: &mut Map<String, Json>) -> Result<()> {
    let path = fields.path_of("ulimits");
    let Some(node) = fields.take("ulimits") else { return Ok(()) };
    let Value::Map(map) = &node.value else { return Err(wrong(&node.at, &path, "is no mapping")) };
    let mut limits = Map::new();
    for (name, at, node) in map {
        let path = format!("{path}.{name}");
        let (soft, hard) = match &node.value {
            Value::Map(_) => {
                let mut limit = Fields::of(path.clone(), node)?;
                let both = (limit.number::<i64>("soft")?, limit.number::<i64>("hard")?);
                limit.finish(&[])?;
                match both {
                    (Some(soft), Some(hard)) => (soft, hard),
                    _ => return Err(wrong(at, &path, "has to say both soft and hard")),
                }
            }
            _ => {
                let one = fields::number::<i64>(&path, node)?;
                (one, one)
            }
        };
        limits.insert(name.clone(), json!({ "soft": soft, "hard": hard }));
    }
    spec.insert("ulimits".into(), Json::Object(limits));
    Ok(())
}

fn networks(context: &mut Context<'_>, key: &str, fields: &mut Fields<'_>, spec: &mut Map<String, Json>) -> Result<()> {
    let mode_path = fields.path_of("network_mode");
    if let Some(node) = fields.take("network_mode") {
        let mode = text(&mode_path, node)?;
        if !matches!(mode.as_str(), "host" | "none") {
            return Err(unsupported(
                &node.at,
                &format!("{mode_path} {mode:.60}"),
                "host and none are; else name networks",
            ));
        }
        if fields.take("networks").is_some() {
            return Err(wrong(&node.at, &mode_path, "goes with no networks"));
        }
        spec.insert("networks".into(), json!([mode]));
        return Ok(());
    }
    let path = fields.path_of("networks");
    let mut used: Vec<(String, At, Vec<String>)> = Vec::new();
    match fields.take("networks") {
        None => used.push(("default".into(), context.at.clone(), Vec::new())),
        Some(node) => match &node.value {
            Value::Map(map) => {
                for (name, at, node) in map {
                    let mut fields = Fields::of(format!("{path}.{name}"), node)?;
                    let aliases = fields.texts("aliases")?;
                    fields.take("priority");
                    fields.finish(&[
                        ("ipv4_address", "the engine gives addresses; a service is found by its name"),
                        ("ipv6_address", "the engine gives addresses; a service is found by its name"),
                        ("link_local_ips", "the engine gives addresses"),
                        ("mac_address", "the engine gives it one"),
                        ("driver_opts", "options belong to the network"),
                        ("gw_priority", "the engine chooses the gateway"),
                        ("interface_name", "the engine names interfaces"),
                    ])?;
                    used.push((name.clone(), at.clone(), aliases));
                }
            }
            _ => {
                for node in list(&path, node)? {
                    used.push((text(&path, node)?, node.at.clone(), Vec::new()));
                }
            }
        },
    }
    let mut networks = Vec::new();
    for (name, at, mut aliases) in used {
        let network = context.network(&name).map_err(|why| wrong(&at, &path, why))?;
        // The host's own network, as Swarm's files have it.
        if matches!(network.as_str(), "host" | "none") {
            networks.push(json!({ "name": network, "aliases": aliases }));
            continue;
        }
        // As in the file; the service's own name is an alias anyway.
        aliases.retain(|alias| alias != key);
        aliases.insert(0, key.to_owned());
        let mut seen = std::collections::BTreeSet::new();
        aliases.retain(|alias| seen.insert(alias.clone()));
        networks.push(json!({ "name": network, "aliases": aliases }));
    }
    spec.insert("networks".into(), Json::Array(networks));
    Ok(())
}

fn healthcheck(fields: &mut Fields<'_>, spec: &mut Map<String, Json>) -> Result<()> {
    let path = fields.path_of("healthcheck");
    let Some(node) = fields.take("healthcheck") else { return Ok(()) };
    let mut health = Fields::of(path.clone(), node)?;
    let mut check = Map::new();
    let mut disable = health.flag("disable")?.unwrap_or(false);
    if let Some(node) = health.take("test") {
        let path = health.path_of("test");
        match &node.value {
            Value::List(list) => {
                let words: Result<Vec<String>> = list.iter().map(|node| text(&path, node)).collect();
                let words = words?;
                match words.split_first() {
                    Some((kind, [])) if kind == "NONE" => disable = true,
                    Some((kind, rest)) if kind == "CMD" && !rest.is_empty() => {
                        drop(check.insert("exec".into(), json!(rest)))
                    }
                    Some((kind, [line])) if kind == "CMD-SHELL" => {
                        check.insert("exec".into(), json!(["/bin/sh", "-c", line]));
                    }
                    _ => {
                        return Err(wrong(
                            &node.at,
                            &path,
                            "does not begin with CMD, CMD-SHELL or NONE, and a command",
                        ));
                    }
                }
            }
            _ => drop(check.insert("exec".into(), json!(["/bin/sh", "-c", text(&path, node)?]))),
        }
    }
    // Docker's own times where a command says none; with the image's own check they are the image's.
    let usual = if check.contains_key("exec") { Some("30s") } else { None };
    for (from, to, usual) in
        [("interval", "every", usual), ("timeout", "timeout", usual), ("start_period", "start_period", None)]
    {
        let told = health.duration(from)?.map(|period| period.to_string());
        set(&mut check, to, told.or_else(|| usual.map(str::to_owned)));
    }
    set(&mut check, "unhealthy", health.number::<u32>("retries")?);
    health.finish(&[("start_interval", "the interval counts from the start on")])?;
    spec.insert("check".into(), if disable { json!(false) } else { Json::Object(check) });
    Ok(())
}

fn stop(fields: &mut Fields<'_>, spec: &mut Map<String, Json>) -> Result<()> {
    let (signal, grace) = (fields.text("stop_signal")?, fields.duration("stop_grace_period")?);
    if signal.is_some() || grace.is_some() {
        let stop = table(spec, "stop");
        set(stop, "signal", signal);
        set(stop, "grace", grace.map(|period| period.to_string()));
    }
    Ok(())
}

fn logging(fields: &mut Fields<'_>, spec: &mut Map<String, Json>) -> Result<()> {
    let path = fields.path_of("logging");
    let Some(node) = fields.take("logging") else { return Ok(()) };
    let mut logging = Fields::of(path, node)?;
    let (driver, options) = (logging.text("driver")?, pairs(&mut logging, "options")?);
    logging.finish(&[])?;
    let log = table(spec, "log");
    set(log, "driver", driver);
    if !options.is_empty() {
        log.insert("options".into(), json!(options));
    }
    Ok(())
}

fn pull(fields: &mut Fields<'_>, spec: &mut Map<String, Json>) -> Result<()> {
    let path = fields.path_of("pull_policy");
    let Some(node) = fields.take("pull_policy") else { return Ok(()) };
    let policy = match text(&path, node)?.as_str() {
        "always" => "always",
        "never" => "never",
        "missing" | "if_not_present" => "missing",
        other => {
            return Err(unsupported(&node.at, &format!("{path} {other:.40}"), "always, missing and never are"));
        }
    };
    spec.insert("pull".into(), json!(policy));
    Ok(())
}

fn depends_on(context: &mut Context<'_>, fields: &mut Fields<'_>) -> Result<BTreeMap<String, Need>> {
    let path = fields.path_of("depends_on");
    let mut found = BTreeMap::new();
    let Some(node) = fields.take("depends_on") else { return Ok(found) };
    let mut add = |context: &Context<'_>, name: &str, at: &At, until: Until, required: bool| {
        if context.has_service(name) {
            found.insert(name.to_owned(), Need { until, required });
            Ok(())
        } else if required {
            Err(wrong(at, &path, format!("there is no service {name:.70?}")))
        } else {
            Ok(())
        }
    };
    match &node.value {
        Value::Map(map) => {
            for (name, at, node) in map {
                let mut fields = Fields::of(format!("{path}.{name}"), node)?;
                let until = match fields.text("condition")?.as_deref() {
                    None | Some("service_started") => Until::Started,
                    Some("service_healthy") => Until::Healthy,
                    Some("service_completed_successfully") => Until::Completed,
                    Some(other) => return Err(wrong(at, &fields.path, format!("condition {other:.60?} is not known"))),
                };
                let required = fields.flag("required")?.unwrap_or(true);
                if fields.flag("restart")? == Some(true) {
                    context.warn(at, &fields.path_of("restart"), "a service is not restarted because another one was");
                }
                fields.finish(&[])?;
                add(context, name, at, until, required)?;
            }
        }
        _ => {
            for node in list(&path, node)? {
                add(context, &text(&path, node)?, &node.at, Until::Started, true)?;
            }
        }
    }
    Ok(found)
}
