//! `registry`: what registries are told when images are pulled, and the images of the cluster's own.

use std::path::Path;
use std::sync::Arc;

use futures_util::StreamExt;
use mlua::{Lua, Table, Value};
use serde::Deserialize;

use crate::client::images::{CacheSettings, CopyAsk, ImportAsk, MovesSeen, PruneAsk, PullAsk, PushAsk, RuleSettings};
use crate::client::{Cluster, Stream1};
use crate::model::registry::LoginAsk;
use crate::model::{Error, Kind, strict};
use crate::script::value::{from_record, from_timed, options, raise, to_json};

#[derive(Deserialize, Default)]
#[serde(default)]
struct Collect {
    dry_run: bool,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct PullOptions {
    nodes: Vec<String>,
    platform: Option<String>,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct PushOptions {
    to: Option<String>,
    node: Option<String>,
}

// What came of it; an error that names the nodes where it failed, and why.
fn moved(what: &str, seen: Option<MovesSeen>) -> mlua::Result<MovesSeen> {
    let seen = seen.ok_or_else(|| raise(Error::new(Kind::Unavailable, "daemon", "has stopped")))?;
    let failed: Vec<String> = seen
        .nodes
        .iter()
        .filter_map(|node| node.error.as_ref().map(|error| format!("node {}: {error}", node.node)))
        .collect();
    match failed.is_empty() {
        true => Ok(seen),
        false => Err(raise(Error::new(Kind::Failed, format!("{what} of {}", seen.image), failed.join("; ")))),
    }
}

// The last step of something long.
async fn last<T>(mut steps: Stream1<T>) -> mlua::Result<Option<T>> {
    let mut last = None;
    while let Some(step) = steps.next().await {
        last = Some(step.map_err(raise)?);
    }
    Ok(last)
}

/// Sets it.
pub fn install(lua: &Lua, cluster: &Arc<dyn Cluster>, folder: &Path) -> mlua::Result<()> {
    let registry = lua.create_table()?;
    let shared = cluster.clone();
    registry.set(
        "logins",
        lua.create_async_function(move |lua, ()| {
            let cluster = shared.clone();
            async move { from_timed(&lua, &cluster.logins().await.map_err(raise)?) }
        })?,
    )?;
    let shared = cluster.clone();
    registry.set(
        "login",
        lua.create_async_function(move |lua, (name, ask): (String, Table)| {
            let cluster = shared.clone();
            async move {
                let ask = to_json(&Value::Table(ask)).map_err(raise)?;
                let ask: LoginAsk = strict::read("registry.login", &ask).map_err(raise)?;
                from_timed(&lua, &cluster.login(&name, ask).await.map_err(raise)?)
            }
        })?,
    )?;
    let shared = cluster.clone();
    registry.set(
        "logout",
        lua.create_async_function(move |_, (name, service): (String, Option<String>)| {
            let cluster = shared.clone();
            async move { cluster.logout(&name, service.as_deref()).await.map_err(raise) }
        })?,
    )?;
    images(lua, &registry, cluster)?;
    caches(lua, &registry, cluster)?;
    rules(lua, &registry, cluster)?;
    super::build::install(lua, &registry, cluster, folder)?;
    registry.set_readonly(true);
    lua.globals().set("registry", registry)
}

fn images(lua: &Lua, registry: &Table, cluster: &Arc<dyn Cluster>) -> mlua::Result<()> {
    let shared = cluster.clone();
    registry.set(
        "repositories",
        lua.create_async_function(move |lua, prefix: Option<String>| {
            let cluster = shared.clone();
            async move {
                let all = cluster.image_repositories(prefix.as_deref().unwrap_or_default()).await.map_err(raise)?;
                from_timed(&lua, &all)
            }
        })?,
    )?;
    let shared = cluster.clone();
    registry.set(
        "tags",
        lua.create_async_function(move |lua, repository: String| {
            let cluster = shared.clone();
            async move { from_timed(&lua, &cluster.image_tags(&repository).await.map_err(raise)?) }
        })?,
    )?;
    let shared = cluster.clone();
    registry.set(
        "inspect",
        lua.create_async_function(move |lua, image: String| {
            let cluster = shared.clone();
            async move { from_timed(&lua, &cluster.image(&image).await.map_err(raise)?) }
        })?,
    )?;
    let shared = cluster.clone();
    registry.set(
        "resolve",
        lua.create_async_function(move |_, image: String| {
            let cluster = shared.clone();
            async move { cluster.resolve_image(&image).await.map_err(raise) }
        })?,
    )?;
    let shared = cluster.clone();
    registry.set(
        "delete",
        lua.create_async_function(move |_, image: String| {
            let cluster = shared.clone();
            async move { cluster.delete_image(&image).await.map_err(raise) }
        })?,
    )?;
    let shared = cluster.clone();
    registry.set(
        "gc",
        lua.create_async_function(move |lua, given: Option<Table>| {
            let cluster = shared.clone();
            async move {
                let Collect { dry_run } = options("registry.gc", given)?;
                from_timed(&lua, &cluster.collect_images(dry_run).await.map_err(raise)?)
            }
        })?,
    )?;
    let shared = cluster.clone();
    registry.set(
        "scrub",
        lua.create_async_function(move |lua, ()| {
            let cluster = shared.clone();
            async move { from_timed(&lua, &last(cluster.scrub_images().await.map_err(raise)?).await?) }
        })?,
    )
}

fn caches(lua: &Lua, registry: &Table, cluster: &Arc<dyn Cluster>) -> mlua::Result<()> {
    let shared = cluster.clone();
    registry.set(
        "caches",
        lua.create_async_function(move |lua, ()| {
            let cluster = shared.clone();
            async move { from_timed(&lua, &cluster.image_caches().await.map_err(raise)?) }
        })?,
    )?;
    let shared = cluster.clone();
    registry.set(
        "set_cache",
        lua.create_async_function(move |lua, (prefix, settings): (String, Table)| {
            let cluster = shared.clone();
            async move {
                let settings = to_json(&Value::Table(settings)).map_err(raise)?;
                let settings: CacheSettings = strict::read("registry.set_cache", &settings).map_err(raise)?;
                from_timed(&lua, &cluster.set_image_cache(&prefix, settings).await.map_err(raise)?)
            }
        })?,
    )?;
    let shared = cluster.clone();
    registry.set(
        "remove_cache",
        lua.create_async_function(move |_, prefix: String| {
            let cluster = shared.clone();
            async move { cluster.remove_image_cache(&prefix).await.map_err(raise) }
        })?,
    )
}

fn rules(lua: &Lua, registry: &Table, cluster: &Arc<dyn Cluster>) -> mlua::Result<()> {
    let shared = cluster.clone();
    registry.set(
        "copy",
        lua.create_async_function(move |lua, ask: Table| {
            let cluster = shared.clone();
            async move {
                let ask = to_json(&Value::Table(ask)).map_err(raise)?;
                let ask: CopyAsk = strict::read("registry.copy", &ask).map_err(raise)?;
                from_timed(&lua, &last(cluster.copy_image(ask).await.map_err(raise)?).await?)
            }
        })?,
    )?;
    let shared = cluster.clone();
    registry.set(
        "pull",
        lua.create_async_function(move |lua, (image, given): (String, Option<Table>)| {
            let cluster = shared.clone();
            async move {
                let PullOptions { nodes, platform } = options("registry.pull", given)?;
                let seen = last(cluster.pull_image(PullAsk { image, nodes, platform }).await.map_err(raise)?).await?;
                from_record(&lua, &moved("pull", seen)?)
            }
        })?,
    )?;
    let shared = cluster.clone();
    registry.set(
        "push",
        lua.create_async_function(move |lua, (image, given): (String, Option<Table>)| {
            let cluster = shared.clone();
            async move {
                let PushOptions { to, node } = options("registry.push", given)?;
                let seen = last(cluster.push_image(PushAsk { image, to, node }).await.map_err(raise)?).await?;
                from_record(&lua, &moved("push", seen)?)
            }
        })?,
    )?;
    let shared = cluster.clone();
    registry.set(
        "import",
        lua.create_async_function(move |lua, ask: Table| {
            let cluster = shared.clone();
            async move {
                let ask = to_json(&Value::Table(ask)).map_err(raise)?;
                let ask: ImportAsk = strict::read("registry.import", &ask).map_err(raise)?;
                from_timed(&lua, &last(cluster.import_images(ask).await.map_err(raise)?).await?)
            }
        })?,
    )?;
    let shared = cluster.clone();
    registry.set(
        "keeper",
        lua.create_async_function(move |lua, node: Option<String>| {
            let cluster = shared.clone();
            async move {
                let keeper = match node {
                    Some(node) => cluster.name_keeper(&node).await,
                    None => cluster.keeper().await,
                };
                from_timed(&lua, &keeper.map_err(raise)?)
            }
        })?,
    )?;
    let shared = cluster.clone();
    registry.set(
        "ca",
        lua.create_async_function(move |_, ()| {
            let cluster = shared.clone();
            async move { cluster.image_ca().await.map_err(raise) }
        })?,
    )?;
    let shared = cluster.clone();
    registry.set(
        "stats",
        lua.create_async_function(move |lua, ()| {
            let cluster = shared.clone();
            async move { from_timed(&lua, &cluster.image_stats().await.map_err(raise)?) }
        })?,
    )?;
    let shared = cluster.clone();
    registry.set(
        "rules",
        lua.create_async_function(move |lua, ()| {
            let cluster = shared.clone();
            async move { from_timed(&lua, &cluster.image_rules().await.map_err(raise)?) }
        })?,
    )?;
    let shared = cluster.clone();
    registry.set(
        "set_rule",
        lua.create_async_function(move |lua, (repositories, rule): (String, Table)| {
            let cluster = shared.clone();
            async move {
                let rule = to_json(&Value::Table(rule)).map_err(raise)?;
                let rule: RuleSettings = strict::read("registry.set_rule", &rule).map_err(raise)?;
                from_timed(&lua, &cluster.set_image_rule(&repositories, rule).await.map_err(raise)?)
            }
        })?,
    )?;
    let shared = cluster.clone();
    registry.set(
        "remove_rule",
        lua.create_async_function(move |_, repositories: String| {
            let cluster = shared.clone();
            async move { cluster.remove_image_rule(&repositories).await.map_err(raise) }
        })?,
    )?;
    let shared = cluster.clone();
    registry.set(
        "prune",
        lua.create_async_function(move |lua, ask: Table| {
            let cluster = shared.clone();
            async move {
                let ask = to_json(&Value::Table(ask)).map_err(raise)?;
                let ask: PruneAsk = strict::read("registry.prune", &ask).map_err(raise)?;
                from_timed(&lua, &cluster.prune_tags(ask).await.map_err(raise)?)
            }
        })?,
    )
}
