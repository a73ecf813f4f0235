//! How a service is deployed: `deploy`, and the older keys for the same.

use serde_json::{Map, Value as Json, json};

use super::Context;
use super::fields::{Fields, list, text, unsupported, wrong};
use super::service::{set, table};
use super::yaml::At;
use crate::model::internal::Internal;
use crate::model::{Error, Result};

/// `restart`, as Compose has it; `deploy.restart_policy` counts before it.
pub fn restart(fields: &mut Fields<'_>, spec: &mut Map<String, Json>) -> Result<()> {
    let path = fields.path_of("restart");
    let Some(node) = fields.take("restart") else { return Ok(()) };
    let policy = text(&path, node)?;
    let restart = table(spec, "restart");
    match policy.split_once(':').unwrap_or((&policy, "")) {
        ("no", "") => drop(restart.insert("condition".into(), json!("none"))),
        ("always" | "unless-stopped", "") => drop(restart.insert("condition".into(), json!("any"))),
        ("on-failure", attempts) => {
            restart.insert("condition".into(), json!("on-failure"));
            if !attempts.is_empty() {
                let attempts: u32 = attempts
                    .parse()
                    .map_err(|_| wrong(&node.at, &path, format!("{attempts:.20?} is not a number of attempts")))?;
                restart.insert("max_attempts".into(), json!(attempts));
            }
        }
        _ => {
            let known = "is not one of no, always, unless-stopped, on-failure[:ATTEMPTS]";
            return Err(wrong(&node.at, &path, format!("{policy:.40?} {known}")));
        }
    }
    Ok(())
}

/// A service that others wait for until it has ended ends: where it does not say when it is restarted, it is not.
pub fn ends(spec: &mut Json) -> std::result::Result<(), String> {
    let Some(spec) = spec.as_object_mut() else { return Ok(()) };
    let restart = table(spec, "restart");
    match restart.get("condition").and_then(Json::as_str) {
        Some("any") => Err("it is started again whenever it ends".into()),
        Some(_) => Ok(()),
        None => {
            restart.insert("condition".into(), json!("none"));
            Ok(())
        }
    }
}

/// `scale`, `cpus`, `mem_limit`, `mem_reservation`, `pids_limit`.
pub fn older(fields: &mut Fields<'_>, spec: &mut Map<String, Json>) -> Result<()> {
    set(spec, "replicas", fields.number::<u32>("scale")?);
    let (cpus, memory, pids) =
        (fields.number::<f64>("cpus")?, fields.size("mem_limit")?, fields.number::<i64>("pids_limit")?);
    let reserved = fields.size("mem_reservation")?;
    if cpus.is_some() || memory.is_some() || pids.is_some() {
        let limits = table(spec, "limits");
        set(limits, "cpu", cpus);
        set(limits, "memory", memory.map(|size| size.0));
        set(limits, "pids", pids.filter(|pids| *pids > 0));
    }
    if let Some(reserved) = reserved {
        table(spec, "reservations").insert("memory".into(), json!(reserved.0));
    }
    Ok(())
}

/// `deploy`; where it asks for an address of the service's own, if it does (`balance`).
pub fn deploy(
    context: &mut Context<'_>,
    fields: &mut Fields<'_>,
    spec: &mut Map<String, Json>,
) -> Result<Option<(At, String)>> {
    let path = fields.path_of("deploy");
    let empty = super::yaml::Node {
        at: context.at.clone(),
        value: super::yaml::Value::Map(Vec::new()),
        merge: super::yaml::Merge::Usual,
    };
    let node = fields.take("deploy").unwrap_or(&empty);
    let mut deploy = Fields::of(path, node)?;
    let mut labels = Map::new();
    for (key, value) in deploy.pairs("labels")? {
        labels.insert(key, json!(value.unwrap_or_default()));
    }
    labels.insert(crate::model::stack::NAMESPACE.into(), json!(context.stack));
    spec.insert("labels".into(), Json::Object(labels));
    match deploy.text("mode")?.as_deref() {
        None => {}
        Some(mode @ ("replicated" | "global")) => drop(spec.insert("mode".into(), json!(mode))),
        Some(mode @ ("replicated-job" | "global-job")) => {
            let help = "a replica that may end has restart_policy.condition none";
            return Err(unsupported(&node.at, &format!("{} {mode}", deploy.path_of("mode")), help));
        }
        Some(other) => return Err(wrong(&node.at, &deploy.path_of("mode"), format!("{other:.40?} is not known"))),
    }
    set(spec, "replicas", deploy.number::<u32>("replicas")?);
    let mut balanced = None;
    if let Some(mode) = deploy.text("endpoint_mode")? {
        let path = deploy.path_of("endpoint_mode");
        let mode: Internal =
            mode.parse().map_err(|error: Error| wrong(&node.at, &path, format!("{mode:.40?} {}", error.message)))?;
        match mode {
            Internal::Balanced => balanced = Some((node.at.clone(), path)),
            Internal::Direct => drop(spec.insert("internal".into(), json!(mode))),
        }
    }
    resources(&mut deploy, spec)?;
    placement(&mut deploy, spec)?;
    restart_policy(&mut deploy, spec)?;
    update_config(&mut deploy, spec)?;
    deploy.finish(&[])?;
    Ok(balanced)
}

/// Gives a service the address that its `deploy` asks for, once all that it is described by is known: a Swarm's own service has one
/// anyway, and without ports there is nothing to lead to.
pub fn balance(context: &mut Context<'_>, asked: Option<(At, String)>, spec: &mut Map<String, Json>) {
    let Some((at, path)) = asked else { return };
    let is_native = spec.get("engine_native") == Some(&Json::Bool(true));
    if is_native || spec.contains_key("internal") {
        return;
    }
    let has_ports = spec.get("ports").and_then(Json::as_object).is_some_and(|ports| !ports.is_empty());
    match has_ports {
        true => drop(spec.insert("internal".into(), json!(Internal::Balanced))),
        false => {
            context.warn(&at, &path, "its name is every replica's: without ports there is nothing to balance");
        }
    }
}

fn resources(deploy: &mut Fields<'_>, spec: &mut Map<String, Json>) -> Result<()> {
    let path = deploy.path_of("resources");
    let Some(node) = deploy.take("resources") else { return Ok(()) };
    let mut resources = Fields::of(path, node)?;
    for key in ["limits", "reservations"] {
        let path = resources.path_of(key);
        let Some(node) = resources.take(key) else { continue };
        let mut amounts = Fields::of(path, node)?;
        let (cpus, memory) = (amounts.number::<f64>("cpus")?, amounts.size("memory")?);
        let pids = if key == "limits" { amounts.number::<i64>("pids")? } else { None };
        amounts.finish(&[
            ("devices", "devices are not handed to containers"),
            ("generic_resources", "label the nodes and use a constraint, or a policy"),
        ])?;
        let table = table(spec, key);
        set(table, "cpu", cpus);
        set(table, "memory", memory.map(|size| size.0));
        set(table, "pids", pids.filter(|pids| *pids > 0));
    }
    resources.finish(&[])
}

fn placement(deploy: &mut Fields<'_>, spec: &mut Map<String, Json>) -> Result<()> {
    let path = deploy.path_of("placement");
    let Some(node) = deploy.take("placement") else { return Ok(()) };
    let mut placement = Fields::of(path, node)?;
    let constraints = placement.texts("constraints")?;
    if !constraints.is_empty() {
        spec.insert("constraints".into(), json!(constraints));
    }
    let path = placement.path_of("preferences");
    if let Some(node) = placement.take("preferences") {
        let mut policies = Vec::new();
        for node in list(&path, node)? {
            let mut preference = Fields::of(path.clone(), node)?;
            let spread = preference.text("spread")?.unwrap_or_default();
            let over = spread
                .strip_prefix("node.")
                .ok_or_else(|| wrong(&node.at, &path, format!("{spread:.60?} is not spread: node.labels.KEY")))?;
            policies.push(json!({ "use": "spread", "over": over }));
            preference.finish(&[])?;
        }
        if !policies.is_empty() {
            spec.insert("policy".into(), Json::Array(policies));
        }
    }
    set(spec, "max_replicas_per_node", placement.number::<u32>("max_replicas_per_node")?);
    placement.finish(&[])
}

fn restart_policy(deploy: &mut Fields<'_>, spec: &mut Map<String, Json>) -> Result<()> {
    let path = deploy.path_of("restart_policy");
    let Some(node) = deploy.take("restart_policy") else { return Ok(()) };
    let mut policy = Fields::of(path, node)?;
    let restart = table(spec, "restart");
    restart.clear();
    match policy.text("condition")?.as_deref() {
        None => {}
        Some(condition @ ("none" | "on-failure" | "any")) => {
            restart.insert("condition".into(), json!(condition));
        }
        Some(other) => {
            let path = policy.path_of("condition");
            return Err(wrong(&node.at, &path, format!("{other:.40?} is not one of none, on-failure, any")));
        }
    }
    for key in ["delay", "window"] {
        set(restart, key, policy.duration(key)?.map(|period| period.to_string()));
    }
    set(restart, "max_attempts", policy.number::<u32>("max_attempts")?);
    policy.finish(&[])
}

// What the specification says where the file does not: one at a time, the old one ends first, and a failure is left to its
// owner. A rollback that is not described goes the way of the update.
fn update_config(deploy: &mut Fields<'_>, spec: &mut Map<String, Json>) -> Result<()> {
    let way = way(deploy, "update_config", &["continue", "pause", "rollback"])?;
    spec.insert("rollout".into(), Json::Object(way));
    if deploy.place("rollback_config").is_some() {
        let way = self::way(deploy, "rollback_config", &["continue", "pause"])?;
        spec.insert("rollback".into(), Json::Object(way));
    }
    Ok(())
}

fn way(deploy: &mut Fields<'_>, key: &'static str, actions: &[&str]) -> Result<Map<String, Json>> {
    let path = deploy.path_of(key);
    let usual = [
        ("use", json!("rolling")),
        ("batch", json!(1)),
        ("order", json!("stop-first")),
        ("on_failure", json!("pause")),
    ];
    let mut way = Map::from_iter(usual.map(|(key, value)| (key.to_owned(), value)));
    let Some(node) = deploy.take(key) else { return Ok(way) };
    let mut update = Fields::of(path, node)?;
    // 0 means all at once.
    let batch = update.number::<u32>("parallelism")?.map(|count| if count == 0 { json!("100%") } else { json!(count) });
    set(&mut way, "batch", batch);
    set(&mut way, "delay", update.duration("delay")?.filter(|delay| delay.millis() > 0).map(|d| d.to_string()));
    set(&mut way, "min_healthy", update.duration("monitor")?.map(|period| period.to_string()));
    set(&mut way, "max_failure_ratio", update.number::<f64>("max_failure_ratio")?);
    for (from, to, known) in
        [("failure_action", "on_failure", actions), ("order", "order", &["start-first", "stop-first"][..])]
    {
        let Some(word) = update.text(from)? else { continue };
        if !known.contains(&word.as_str()) {
            let path = update.path_of(from);
            return Err(wrong(&node.at, &path, format!("{word:.40?} is not one of {}", known.join(", "))));
        }
        way.insert(to.into(), json!(word));
    }
    update.finish(&[])?;
    Ok(way)
}
