//! Routes of hosted scripts, cron scripts, keys, secrets and configs.

use serde_json::Value;

use super::routes::{route, schema};
use super::{About, Answer, Call, Route, json, lines};
use crate::client::NameKind;
use crate::client::kv::{ConfigValue, KvChange, KvEntry, KvSet, ValueChange, ValueInfo, ValueKind, ValueSet};
use crate::client::scripts::{Back, CronStatus, FailedDelivery, Push, ScriptCalls, ScriptSource, ScriptStatus};
use crate::model::cron::CronRun;
use crate::model::right::Role;
use crate::model::{Error, Result, strict};

/// Most names that one answer holds.
const MAX_NAMES: usize = 1000;

/// All of them.
pub fn all() -> Vec<Route> {
    use Role::{Admin, Deployer, Viewer};
    vec![
        Route {
            response: schema::<Vec<FailedDelivery>>(),
            ..route("GET", "/v1/events/failed", "The last deliveries to handlers that failed", Admin, |call| {
                Box::pin(failed(call))
            })
        },
        Route {
            response: schema::<Vec<ScriptStatus>>(),
            ..route("GET", "/v1/scripts", "All hosted scripts, by owner", Viewer, |call| Box::pin(scripts(call)))
        },
        Route {
            response: schema::<ScriptSource>(),
            query: &[("version", "a version's hash, or its beginning; the active one where none is named")],
            ..route("GET", "/v1/scripts/{name}", "One owner's scripts with their sources", Admin, |call| {
                Box::pin(script(call))
            })
        },
        Route {
            change: Some("script.push"),
            request: schema::<Push>(),
            response: schema::<ScriptStatus>(),
            ..route("POST", "/v1/scripts/{name}", "Replaces one owner's scripts, all or nothing", Admin, |call| {
                Box::pin(push(call))
            })
        },
        Route {
            change: Some("script.rollback"),
            request: schema::<Back>(),
            response: schema::<ScriptStatus>(),
            ..route("POST", "/v1/scripts/{name}/rollback", "Goes back to an earlier version", Admin, |call| {
                Box::pin(rollback(call))
            })
        },
        Route {
            change: Some("script.remove"),
            ..route("DELETE", "/v1/scripts/{name}", "Removes one owner's scripts", Admin, |call| Box::pin(remove(call)))
        },
        Route {
            response: schema::<Vec<ScriptCalls>>(),
            ..route("GET", "/v1/script-calls", "What was called how often since the daemon started", Viewer, |call| {
                Box::pin(calls(call))
            })
        },
        Route {
            response: schema::<Vec<CronStatus>>(),
            ..route("GET", "/v1/crons", "All cron scripts, with their last runs", Viewer, |call| Box::pin(crons(call)))
        },
        Route {
            response: schema::<CronStatus>(),
            ..route("GET", "/v1/crons/{name}", "One cron script, with its last runs", Viewer, |call| {
                Box::pin(cron(call))
            })
        },
        Route {
            change: Some("cron.run"),
            response: schema::<CronRun>(),
            ..route("POST", "/v1/crons/{name}/run", "Runs a cron script now; answers when it is over", Admin, |call| {
                Box::pin(run_cron(call))
            })
        },
        Route {
            change: Some("cron.pause"),
            response: schema::<CronStatus>(),
            ..route("POST", "/v1/crons/{name}/pause", "Holds a cron script back", Admin, |call| {
                Box::pin(pause_cron(call, true))
            })
        },
        Route {
            change: Some("cron.resume"),
            response: schema::<CronStatus>(),
            ..route("POST", "/v1/crons/{name}/resume", "Lets a cron script go on", Admin, |call| {
                Box::pin(pause_cron(call, false))
            })
        },
        Route {
            response: schema::<Vec<KvEntry>>(),
            query: &[("prefix", "only keys that begin so")],
            standing: Some(|call, standing| json(&own_keys(call, standing.kv_list(&within(call).0)?))),
            ..route("GET", "/v1/kv", "Keys with their values", Viewer, |call| Box::pin(kv_list(call)))
        },
        Route {
            about: About::Path,
            response: schema::<Option<KvEntry>>(),
            standing: Some(|call, standing| json(&standing.kv_get(call.name())?)),
            ..route("GET", "/v1/kv/{name}", "One key; null where there is none", Viewer, |call| Box::pin(kv_get(call)))
        },
        Route {
            about: About::Path,
            change: Some("kv.set"),
            request: schema::<KvSet>(),
            response: schema::<KvEntry>(),
            ..route("PUT", "/v1/kv/{name}", "Sets a key", Deployer, |call| Box::pin(kv_set(call)))
        },
        Route {
            about: About::Path,
            change: Some("kv.delete"),
            response: schema::<bool>(),
            query: &[("version", "only if the key has this version")],
            ..route("DELETE", "/v1/kv/{name}", "Removes a key; false where there was none", Deployer, |call| {
                Box::pin(kv_delete(call))
            })
        },
        Route {
            response: schema::<KvChange>(),
            stream: true,
            query: &[("prefix", "only keys that begin so")],
            ..route("GET", "/v1/kv-watch", "Keys now and after each change, a line each", Viewer, |call| {
                Box::pin(kv_watch(call))
            })
        },
        Route {
            response: schema::<Vec<ValueInfo>>(),
            standing: Some(|call, standing| json(&own_values(call, standing.values(ValueKind::Secret)?))),
            ..route("GET", "/v1/secrets", "All secrets, without their values", Viewer, |call| {
                Box::pin(values(call, ValueKind::Secret))
            })
        },
        Route {
            about: About::Path,
            change: Some("secret.set"),
            request: schema::<ValueSet>(),
            response: schema::<ValueChange>(),
            ..route("PUT", "/v1/secrets/{name}", "Sets a secret, and rolls its users out", Deployer, |call| {
                Box::pin(set_value(call, ValueKind::Secret))
            })
        },
        Route {
            about: About::Path,
            change: Some("secret.remove"),
            ..route("DELETE", "/v1/secrets/{name}", "Removes a secret that nothing uses", Deployer, |call| {
                Box::pin(remove_value(call, ValueKind::Secret))
            })
        },
        Route {
            response: schema::<Vec<ValueInfo>>(),
            standing: Some(|call, standing| json(&own_values(call, standing.values(ValueKind::Config)?))),
            ..route("GET", "/v1/configs", "All configs, without their values", Viewer, |call| {
                Box::pin(values(call, ValueKind::Config))
            })
        },
        Route {
            about: About::Path,
            response: schema::<ConfigValue>(),
            ..route("GET", "/v1/configs/{name}", "One config with its value", Viewer, |call| Box::pin(config(call)))
        },
        Route {
            about: About::Path,
            change: Some("config.set"),
            request: schema::<ValueSet>(),
            response: schema::<ValueChange>(),
            ..route("PUT", "/v1/configs/{name}", "Sets a config, and rolls its users out", Deployer, |call| {
                Box::pin(set_value(call, ValueKind::Config))
            })
        },
        Route {
            about: About::Path,
            change: Some("config.remove"),
            ..route("DELETE", "/v1/configs/{name}", "Removes a config that nothing uses", Deployer, |call| {
                Box::pin(remove_value(call, ValueKind::Config))
            })
        },
        Route {
            response: schema::<Vec<String>>(),
            query: &[
                ("of", "service, node, cron, script, kv, secret or config"),
                ("prefix", "only names that begin so"),
                ("limit", "at most so many (100)"),
            ],
            ..route("GET", "/v1/names", "Names, for completion", Viewer, |call| Box::pin(names(call)))
        },
    ]
}

async fn failed(call: Call) -> Result<Answer> {
    json(&call.api.cluster.failed_deliveries().await?)
}

async fn scripts(call: Call) -> Result<Answer> {
    json(&call.api.cluster.scripts().await?)
}

async fn script(call: Call) -> Result<Answer> {
    let version = call.query.get("version").map(String::as_str);
    json(&call.api.cluster.script(call.name(), version).await?)
}

async fn push(call: Call) -> Result<Answer> {
    let push: Push = strict::read("push", &call.body)?;
    json(&call.api.cluster.push_scripts(call.name(), push, &call.principal.name).await?)
}

async fn rollback(call: Call) -> Result<Answer> {
    let back: Back = strict::read("rollback", &call.body)?;
    json(&call.api.cluster.rollback_scripts(call.name(), back, &call.principal.name).await?)
}

async fn remove(call: Call) -> Result<Answer> {
    call.api.cluster.remove_scripts(call.name()).await?;
    Ok(Answer::Json(Value::Null))
}

async fn calls(call: Call) -> Result<Answer> {
    json(&call.api.cluster.script_calls().await?)
}

async fn crons(call: Call) -> Result<Answer> {
    json(&call.api.cluster.crons().await?)
}

async fn cron(call: Call) -> Result<Answer> {
    json(&call.api.cluster.cron(call.name()).await?)
}

async fn run_cron(call: Call) -> Result<Answer> {
    json(&call.api.cluster.run_cron(call.name(), &call.principal.name).await?)
}

async fn pause_cron(call: Call, paused: bool) -> Result<Answer> {
    json(&call.api.cluster.pause_cron(call.name(), paused).await?)
}

// What a principal that is confined to a prefix may see.
fn within(call: &Call) -> (String, String) {
    (call.query.get("prefix").cloned().unwrap_or_default(), call.principal.prefix.clone())
}

async fn kv_list(call: Call) -> Result<Answer> {
    let entries = call.api.cluster.kv_list(&within(&call).0).await?;
    json(&own_keys(&call, entries))
}

fn own_keys(call: &Call, mut entries: Vec<KvEntry>) -> Vec<KvEntry> {
    entries.retain(|entry| entry.key.starts_with(&call.principal.prefix));
    entries
}

async fn kv_get(call: Call) -> Result<Answer> {
    json(&call.api.cluster.kv_get(call.name()).await?)
}

async fn kv_set(call: Call) -> Result<Answer> {
    let set: KvSet = strict::read("key", &call.body)?;
    json(&call.api.cluster.kv_set(call.name(), set).await?)
}

async fn kv_delete(call: Call) -> Result<Answer> {
    let version = number(&call, "version")?;
    json(&call.api.cluster.kv_delete(call.name(), version).await?)
}

async fn kv_watch(call: Call) -> Result<Answer> {
    use futures_util::{StreamExt, future};
    let (prefix, own) = within(&call);
    let changes = call.api.cluster.kv_watch(&prefix).await?;
    let seen = move |change: &Result<KvChange>| change.as_ref().map_or(true, |change| change.key.starts_with(&own));
    lines(Box::pin(changes.filter(move |change| future::ready(seen(change)))))
}

async fn values(call: Call, of: ValueKind) -> Result<Answer> {
    let values = call.api.cluster.values(of).await?;
    json(&own_values(&call, values))
}

fn own_values(call: &Call, mut values: Vec<ValueInfo>) -> Vec<ValueInfo> {
    values.retain(|value| value.name.starts_with(&call.principal.prefix));
    for value in &mut values {
        value.used_by.retain(|user| user.starts_with(&call.principal.prefix));
    }
    values
}

async fn set_value(call: Call, of: ValueKind) -> Result<Answer> {
    // Read by hand: an error must not repeat what was sent.
    let wrong = |why: &str| Error::invalid(of.as_str(), why.to_owned());
    let fields = call.body.as_object().ok_or_else(|| wrong("is no table with a value"))?;
    if fields.keys().any(|key| !matches!(key.as_str(), "value" | "only_new" | "no_rollout" | "prefix")) {
        return Err(wrong("has an unknown field; known are value, only_new, no_rollout and prefix"));
    }
    let flag = |key: &str| match fields.get(key) {
        None | Some(Value::Null) => Ok(false),
        Some(value) => value.as_bool().ok_or_else(|| wrong(&format!("{key} is neither true nor false"))),
    };
    let value = fields.get("value").and_then(Value::as_str);
    let value = value.ok_or_else(|| wrong("value is missing, or is no text"))?.to_owned();
    // A principal that is confined to some names rolls out nothing else.
    let asked = fields.get("prefix").and_then(Value::as_str).unwrap_or_default();
    let own = &call.principal.prefix;
    let prefix = if asked.starts_with(own.as_str()) { asked.to_owned() } else { own.clone() };
    let set = ValueSet { value, only_new: flag("only_new")?, no_rollout: flag("no_rollout")?, prefix };
    json(&call.api.cluster.set_value(of, call.name(), set).await?)
}

async fn remove_value(call: Call, of: ValueKind) -> Result<Answer> {
    call.api.cluster.remove_value(of, call.name()).await?;
    Ok(Answer::Json(Value::Null))
}

async fn config(call: Call) -> Result<Answer> {
    json(&call.api.cluster.config(call.name()).await?)
}

async fn names(call: Call) -> Result<Answer> {
    let of = call.query.get("of").map_or("service", String::as_str);
    let kind = NameKind::ALL.into_iter().find(|kind| kind.as_str() == of).ok_or_else(|| {
        let hint = crate::model::suggest::hint(of, NameKind::ALL.map(NameKind::as_str));
        Error::invalid("query", format!("of: unknown value \"{of:.40}\"{hint}"))
    })?;
    let limit = number(&call, "limit")?.map_or(100, |limit| usize::try_from(limit).unwrap_or(MAX_NAMES));
    let (prefix, own) = within(&call);
    let mut names = call.api.cluster.names(kind, &prefix, limit.min(MAX_NAMES)).await?;
    if matches!(kind, NameKind::Service | NameKind::Route | NameKind::Kv | NameKind::Secret | NameKind::Config) {
        names.retain(|name| name.starts_with(&own));
    }
    json(&names)
}

fn number(call: &Call, key: &str) -> Result<Option<u64>> {
    let Some(text) = call.query.get(key) else { return Ok(None) };
    text.parse().map(Some).map_err(|_| Error::invalid("query", format!("{key}: {text:.40?} is not a whole number")))
}
