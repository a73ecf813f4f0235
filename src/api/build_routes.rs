//! The routes for images that are made: built, from what they are built from and layers in pieces, and brought or got by Docker Engines.

use futures_util::StreamExt;

use super::image_routes::allowed;
use super::routes::{route, schema};
use super::{Answer, Call, Route, json, lines};
use crate::client::images::{BaseAsk, Based, BuildAsk, Built, MovesSeen, PieceAsk, PullAsk, PushAsk};
use crate::model::right::Role;
use crate::model::{Error, Kind, Result, strict};
use crate::registry::name::{self, Repository};
use crate::registry::refused::Refused;
use crate::registry::rules::Action;

/// All of them.
pub fn all() -> Vec<Route> {
    use crate::model::right::Role::{Deployer, Viewer};
    vec![
        Route {
            request: schema::<BaseAsk>(),
            response: schema::<Based>(),
            stream: true,
            ..route(
                "POST",
                "/v1/image-registry/base",
                "Brings what an image is made of that another is to be built from; how far that is, a line each",
                Deployer,
                |call| Box::pin(base(call)),
            )
        },
        Route {
            query: &[("repository", "whose blob it is to be")],
            response: schema::<String>(),
            ..route("POST", "/v1/image-registry/uploads", "Begins a blob that comes in pieces", Deployer, |call| {
                Box::pin(begin(call))
            })
        },
        Route {
            query: &[("repository", "whose blob it is to be")],
            request: schema::<PieceAsk>(),
            response: schema::<u64>(),
            ..route(
                "PATCH",
                "/v1/image-registry/uploads/{name}",
                "Adds a piece to it; the same once more changes nothing",
                Deployer,
                |call| Box::pin(add(call)),
            )
        },
        Route {
            query: &[("repository", "whose blob it was to be")],
            ..route("DELETE", "/v1/image-registry/uploads/{name}", "Gives it up", Deployer, |call| {
                Box::pin(give_up(call))
            })
        },
        Route {
            query: &[("repository", "whose blob it is to be"), ("digest", "what it is to be: sha256:...")],
            response: schema::<u64>(),
            ..route(
                "PUT",
                "/v1/image-registry/uploads/{name}",
                "It is all there, and becomes a blob",
                Deployer,
                |call| Box::pin(end(call)),
            )
        },
        Route {
            change: Some("image.build"),
            request: schema::<BuildAsk>(),
            response: schema::<Built>(),
            ..route("POST", "/v1/image-registry/build", "Writes an image whose layers are there", Deployer, |call| {
                Box::pin(build(call))
            })
        },
        Route {
            response: schema::<String>(),
            ..route(
                "GET",
                "/v1/image-registry/door",
                "Where every host of the cluster finds its registry",
                Viewer,
                |call| Box::pin(door(call)),
            )
        },
        Route {
            response: schema::<Option<String>>(),
            ..route(
                "GET",
                "/v1/image-registry/ca",
                "The certificate that clients need who reach the registry by its name, where the daemon has made it",
                Viewer,
                |call| Box::pin(ca(call)),
            )
        },
        Route {
            change: Some("image.pull"),
            request: schema::<PullAsk>(),
            response: schema::<MovesSeen>(),
            stream: true,
            ..route(
                "POST",
                "/v1/image-registry/pull",
                "Lets Docker Engines of the cluster get an image; how far they are, a line each",
                Deployer,
                |call| Box::pin(pull(call)),
            )
        },
        Route {
            change: Some("image.push"),
            request: schema::<PushAsk>(),
            response: schema::<MovesSeen>(),
            stream: true,
            ..route(
                "POST",
                "/v1/image-registry/push",
                "Lets a Docker Engine bring an image to a registry; how far that is, a line each",
                Deployer,
                |call| Box::pin(push(call)),
            )
        },
    ]
}

async fn may_push(call: &Call, image: &str) -> Result<()> {
    let (repository, _) = name::image(image).map_err(Refused::into_error)?;
    allowed(call, Role::Deployer, &repository, Action::Push).await
}

// As with copies: other registries are asked as the whole cluster.
async fn may_pull(call: &Call, image: &str) -> Result<()> {
    if name::elsewhere(image).is_some() {
        return call.principal.require(Role::Deployer, None);
    }
    let (repository, _) = name::image(image).map_err(Refused::into_error)?;
    allowed(call, Role::Viewer, &repository, Action::Pull).await
}

async fn base(call: Call) -> Result<Answer> {
    let ask: BaseAsk = strict::read("base", &call.body)?;
    may_push(&call, &ask.image).await?;
    may_pull(&call, &ask.from).await?;
    lines(call.api.cluster.image_base(ask).await?.boxed())
}

async fn repository(call: &Call) -> Result<Repository> {
    let missing = || Error::invalid("upload", "repository: is missing");
    let text = call.query.get("repository").ok_or_else(missing)?;
    let repository: Repository = text.parse().map_err(Refused::into_error)?;
    allowed(call, Role::Deployer, &repository, Action::Push).await?;
    Ok(repository)
}

async fn begin(call: Call) -> Result<Answer> {
    let repository = repository(&call).await?;
    json(&call.api.cluster.begin_blob(repository.as_str()).await?)
}

async fn add(call: Call) -> Result<Answer> {
    let repository = repository(&call).await?;
    let PieceAsk { offset, bytes } = strict::read("piece", &call.body)?;
    json(&call.api.cluster.add_to_blob(repository.as_str(), call.name(), offset, bytes.0).await?)
}

async fn give_up(call: Call) -> Result<Answer> {
    let repository = repository(&call).await?;
    json(&call.api.cluster.drop_blob(repository.as_str(), call.name()).await?)
}

async fn end(call: Call) -> Result<Answer> {
    let repository = repository(&call).await?;
    let digest = call.query.get("digest").ok_or_else(|| Error::invalid("upload", "digest: is missing"))?;
    json(&call.api.cluster.end_blob(repository.as_str(), call.name(), digest).await?)
}

async fn build(call: Call) -> Result<Answer> {
    let ask: BuildAsk = strict::read("build", &call.body)?;
    may_push(&call, &ask.image).await?;
    json(&call.api.cluster.build_image(ask).await?)
}

async fn door(call: Call) -> Result<Answer> {
    json(&call.api.cluster.image_door().await?)
}

async fn ca(call: Call) -> Result<Answer> {
    json(&call.api.cluster.image_ca().await?)
}

async fn pull(call: Call) -> Result<Answer> {
    let ask: PullAsk = strict::read("pull", &call.body)?;
    may_pull(&call, &ask.image).await?;
    lines(call.api.cluster.pull_image(ask).await?.boxed())
}

// Whoever is confined to some names is so for what hosts have as well. Others are told as the whole cluster.
async fn push(call: Call) -> Result<Answer> {
    let ask: PushAsk = strict::read("push", &call.body)?;
    let to = ask.to.as_ref().unwrap_or(&ask.image);
    match name::elsewhere(to).is_some() {
        true => call.principal.require(Role::Admin, None)?,
        false => may_push(&call, to).await?,
    }
    if !call.principal.prefix.is_empty() {
        let (first, _) = ask.image.split_once('/').unwrap_or_default();
        let is_id = ask.image.bytes().all(|byte| byte.is_ascii_hexdigit()) || ask.image.starts_with("sha256:");
        if (name::is_host(first) && *first != *call.api.cluster.image_door().await?) || is_id {
            call.principal.require(Role::Deployer, Some(&ask.image))?;
            let why = "is named by a host or an id: a token for some names needs one of those";
            return Err(Error::new(Kind::Forbidden, format!("image {:.200?}", ask.image), why));
        }
        let (repository, _) = name::image(&ask.image).map_err(Refused::into_error)?;
        call.principal.require(Role::Deployer, Some(repository.as_str()))?;
    }
    lines(call.api.cluster.push_image(ask).await?.boxed())
}
