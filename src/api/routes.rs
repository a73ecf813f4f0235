//! All routes, each described once.

use futures_util::{StreamExt, future};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::{About, Answer, Call, Handler, Route, Schema, json, lines, openapi, tokens};
use crate::client::{Apply, Info, LogEntry, LogsAsk, ReleaseAction, ServiceStatus};
use crate::model::bundle::Bundle;
use crate::model::event::Event;
use crate::model::plan::{Plan, Rebalance, Rebalanced};
use crate::model::right::{MadeToken, NewToken, Role, Token};
use crate::model::route::RouteSpec;
use crate::model::service::Revision;
use crate::model::stats::TaskStats;
use crate::model::{Error, Kind, Result, strict};

#[derive(Debug, Serialize, Deserialize, JsonSchema)]
struct Scale {
    /// How many replicas.
    replicas: u32,
}

#[derive(Debug, Serialize, Deserialize, JsonSchema)]
struct Act {
    /// What to do.
    action: ReleaseAction,
}

/// A type's schema.
pub fn schema<T: JsonSchema>() -> Option<Schema> {
    Some(|generator| generator.subschema_for::<T>())
}

/// The parts of a route that most have in common.
pub fn route(method: &'static str, path: &'static str, summary: &'static str, need: Role, handler: Handler) -> Route {
    let about = if path.contains("{name}") && path.starts_with("/v1/services") { About::Path } else { About::Nothing };
    Route {
        method,
        path,
        summary,
        need,
        change: None,
        about,
        query: &[],
        request: None,
        response: None,
        stream: false,
        most: super::MAX_BODY,
        handler,
        standing: None,
    }
}

/// Every route of the API.
pub fn all() -> Vec<Route> {
    use Role::{Admin, Deployer, Viewer};
    let mut routes = vec![
        Route {
            response: schema::<Info>(),
            ..route("GET", "/v1/info", "Who answers", Viewer, |call| Box::pin(info(call)))
        },
        route("GET", "/v1/openapi.json", "This description", Viewer, |_| {
            Box::pin(future::ready(Ok(Answer::Json(openapi::document()))))
        }),
        Route {
            response: schema::<Vec<ServiceStatus>>(),
            standing: Some(|call, standing| json(&visible(call, standing.services()))),
            ..route("GET", "/v1/services", "All services that the caller may see", Viewer, |call| {
                Box::pin(services(call))
            })
        },
        Route {
            response: schema::<ServiceStatus>(),
            standing: Some(|call, standing| json(&standing.service(call.name())?)),
            ..route("GET", "/v1/services/{name}", "One service", Viewer, |call| Box::pin(service(call)))
        },
        Route {
            change: Some("service.remove"),
            ..route("DELETE", "/v1/services/{name}", "Drains and removes a service", Deployer, |call| {
                Box::pin(remove(call))
            })
        },
        Route {
            response: schema::<ServiceStatus>(),
            stream: true,
            ..route(
                "GET",
                "/v1/services/{name}/watch",
                "One service now and after each change, a line each",
                Viewer,
                |call| Box::pin(watch(call)),
            )
        },
        Route {
            response: schema::<Vec<Revision>>(),
            standing: Some(|call, standing| json(&standing.revisions(call.name())?)),
            ..route("GET", "/v1/services/{name}/revisions", "A service's revisions, oldest first", Viewer, |call| {
                Box::pin(revisions(call))
            })
        },
        Route {
            response: schema::<LogEntry>(),
            stream: true,
            query: &[
                ("follow", "true: go on with new lines"),
                ("since", "only lines from this moment on, in nanoseconds since 1970-01-01 UTC"),
                ("tail", "only so many of the newest"),
                ("slot", "only the task of this slot"),
            ],
            ..route("GET", "/v1/services/{name}/logs", "What a service's replicas wrote, a line each", Viewer, |call| {
                Box::pin(logs(call))
            })
        },
        Route {
            response: schema::<Vec<TaskStats>>(),
            ..route("GET", "/v1/services/{name}/stats", "What a service's running replicas use", Viewer, |call| {
                Box::pin(stats(call))
            })
        },
        Route {
            change: Some("service.scale"),
            request: schema::<Scale>(),
            response: schema::<ServiceStatus>(),
            ..route("POST", "/v1/services/{name}/scale", "Changes the number of replicas", Deployer, |call| {
                Box::pin(scale(call))
            })
        },
        Route {
            change: Some("service.rebalance"),
            request: schema::<Rebalance>(),
            response: schema::<Rebalanced>(),
            ..route(
                "POST",
                "/v1/services/{name}/rebalance",
                "Moves tasks to nodes that their policy likes better by now; answers what moves",
                Deployer,
                |call| Box::pin(rebalance(call)),
            )
        },
        Route {
            change: Some("service.release"),
            request: schema::<Act>(),
            response: schema::<ServiceStatus>(),
            ..route(
                "POST",
                "/v1/services/{name}/release",
                "Pauses, resumes, promotes, aborts or rolls back a release",
                Deployer,
                |call| Box::pin(release(call)),
            )
        },
        Route {
            about: About::BodyService,
            request: schema::<Apply>(),
            response: schema::<Plan>(),
            ..route("POST", "/v1/plan", "What applying a description would change", Viewer, |call| Box::pin(plan(call)))
        },
        Route {
            change: Some("service.apply"),
            about: About::BodyService,
            request: schema::<Apply>(),
            response: schema::<ServiceStatus>(),
            ..route("POST", "/v1/apply", "Creates or updates a service, with its scripts", Deployer, |call| {
                Box::pin(apply(call))
            })
        },
        Route {
            response: schema::<Event>(),
            stream: true,
            ..route("GET", "/v1/events", "What happens from now on, a line each", Viewer, |call| Box::pin(events(call)))
        },
        Route {
            response: schema::<Vec<Token>>(),
            ..route("GET", "/v1/tokens", "All tokens, without their secrets", Admin, |call| {
                Box::pin(tokens::list(call))
            })
        },
        Route {
            change: Some("token.create"),
            request: schema::<NewToken>(),
            response: schema::<MadeToken>(),
            ..route("POST", "/v1/tokens", "Makes a token; its secret is shown this once", Admin, |call| {
                Box::pin(tokens::create(call))
            })
        },
        Route {
            change: Some("token.remove"),
            ..route("DELETE", "/v1/tokens/{name}", "Removes a token", Admin, |call| Box::pin(tokens::remove(call)))
        },
    ];
    routes.extend(super::node_routes::all());
    routes.extend(super::catalog_routes::all());
    routes.extend(super::native_routes::all());
    routes.extend(super::object_routes::all());
    routes.extend(super::traffic_routes::all());
    routes.extend(super::registry_routes::all());
    routes.extend(super::image_routes::all());
    routes.extend(super::build_routes::all());
    routes.extend(super::script_routes::all());
    routes
}

async fn info(call: Call) -> Result<Answer> {
    json(&call.api.cluster.info().await?)
}

async fn services(call: Call) -> Result<Answer> {
    let services = call.api.cluster.services().await?;
    json(&visible(&call, services))
}

fn visible(call: &Call, mut services: Vec<ServiceStatus>) -> Vec<ServiceStatus> {
    services.retain(|status| status.service.spec.name.as_str().starts_with(&call.principal.prefix));
    services
}

async fn service(call: Call) -> Result<Answer> {
    json(&call.api.cluster.service(call.name()).await?)
}

async fn remove(call: Call) -> Result<Answer> {
    call.api.cluster.remove(call.name()).await?;
    Ok(Answer::Json(Value::Null))
}

async fn watch(call: Call) -> Result<Answer> {
    lines(call.api.cluster.watch(call.name()).await?)
}

async fn revisions(call: Call) -> Result<Answer> {
    json(&call.api.cluster.revisions(call.name()).await?)
}

async fn stats(call: Call) -> Result<Answer> {
    json(&call.api.cluster.stats(call.name()).await?)
}

async fn logs(call: Call) -> Result<Answer> {
    let number = |key: &str| -> Result<Option<i64>> {
        let Some(text) = call.query.get(key) else { return Ok(None) };
        text.parse().map(Some).map_err(|_| Error::invalid("query", format!("{key}: {text:.40?} is not a number")))
    };
    let tail = number("tail")?
        .map(|tail| usize::try_from(tail).map_err(|_| Error::invalid("query", "tail: is negative")))
        .transpose()?;
    let ask =
        LogsAsk { since: number("since")?, tail, follow: call.flag("follow")?, slot: call.query.get("slot").cloned() };
    lines(call.api.cluster.logs(call.name(), ask).await?)
}

async fn rebalance(call: Call) -> Result<Answer> {
    let ask: Rebalance = strict::read("rebalance", &call.body)?;
    json(&call.api.cluster.rebalance(call.name(), ask).await?)
}

async fn scale(call: Call) -> Result<Answer> {
    let ask: Scale = strict::read("scale", &call.body)?;
    json(&call.api.cluster.scale(call.name(), ask.replicas).await?)
}

async fn release(call: Call) -> Result<Answer> {
    let ask: Act = strict::read("release", &call.body)?;
    json(&call.api.cluster.release(call.name(), ask.action).await?)
}

async fn plan(call: Call) -> Result<Answer> {
    let ask: Apply = strict::read("plan", &call.body)?;
    // Like the apply, it tells whether there is what it names, and who has a port.
    if !call.principal.prefix.is_empty() {
        let name = ask.service.get("name").and_then(Value::as_str);
        call.principal.require(Role::Deployer, Some(name.unwrap_or_default()))?;
    }
    may_read(&call, &ask.service).await?;
    if let Some(bundle) = ask.with.clone() {
        may_bring(&call, bundle).await?;
    }
    json(&call.api.cluster.plan(ask).await?)
}

async fn apply(call: Call) -> Result<Answer> {
    let ask: Apply = strict::read("apply", &call.body)?;
    may_read(&call, &ask.service).await?;
    if let Some(bundle) = ask.with.clone() {
        may_bring(&call, bundle).await?;
    }
    json(&call.api.cluster.apply(ask).await?)
}

// Whoever is confined to some names hands replicas nothing that has another.
async fn may_read(call: &Call, service: &Value) -> Result<()> {
    if call.principal.prefix.is_empty() {
        return Ok(());
    }
    let entries = |field: &str| service.get(field).and_then(Value::as_object).into_iter().flatten();
    let named = |value: &Value, field: &str| value.as_str().or_else(|| value.get(field)?.as_str()).map(str::to_owned);
    let files = entries("secrets").chain(entries("configs")).filter_map(|(_, value)| named(value, "name"));
    let keys =
        entries("env").chain(entries("env_add")).filter_map(|(_, value)| Some(value.get("kv")?.as_str()?.to_owned()));
    let plain = entries("env_kv").filter_map(|(_, value)| Some(value.as_str()?.to_owned()));
    for name in files.chain(keys).chain(plain) {
        call.principal.require(Role::Deployer, Some(&name))?;
    }
    let Some(routes) = service.get("routes").filter(|routes| !routes.is_null()) else { return Ok(()) };
    let routes: Vec<RouteSpec> = strict::read("routes", routes)?;
    super::traffic_routes::may_use(call, &routes).await
}

// Cron scripts and handlers act on the whole cluster: only who may do that may bring some along.
async fn may_bring(call: &Call, bundle: Bundle) -> Result<()> {
    if call.principal.require(Role::Admin, None).is_ok() {
        return Ok(());
    }
    bundle.validate()?;
    let inspect = move || crate::script::host::inspect(std::sync::Arc::new(bundle), "with");
    let inspected = tokio::task::spawn_blocking(inspect)
        .await
        .map_err(|error| Error::internal("apply", "its scripts could not be looked at").cause(error))??;
    match inspected.registrations.keys().find(|(kind, _)| kind.acts()) {
        Some((kind, name)) => {
            let message = format!("may not bring along {} \"{name}\", which acts on the whole cluster", kind.as_str());
            Err(Error::new(Kind::Forbidden, format!("principal \"{}\"", call.principal.name), message)
                .help("use a token with the role admin and without a prefix"))
        }
        None => Ok(()),
    }
}

async fn events(call: Call) -> Result<Answer> {
    let prefix = call.principal.prefix.clone();
    let events = call.api.cluster.events().await?;
    let seen = move |event: &Event| {
        prefix.is_empty() || event.service.as_ref().is_some_and(|name| name.as_str().starts_with(&prefix))
    };
    lines(Box::pin(events.filter(move |event| future::ready(event.as_ref().map_or(true, &seen)))))
}
