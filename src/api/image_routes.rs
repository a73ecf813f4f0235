//! The routes for the registry's images.

use futures_util::StreamExt;

use super::routes::{route, schema};
use super::{About, Answer, Call, Route, json, lines};
use crate::client::images::{
    CacheInfo, CacheSettings, Copied, CopyAsk, ImageInfo, ImageKeeper, ImageRepository, ImageTag, ImagesCollected,
    ImagesScrubbed, ImportAsk, Imported, KeeperAsk, PruneAsk, Pruned, RegistryStats, Rule, RuleSettings,
};
use crate::model::right::Role;
use crate::model::{Error, Kind, Result, strict};
use crate::registry::name::{self, Repository};
use crate::registry::refused::Refused;
use crate::registry::rules::{Action, Rules};

/// All of them.
pub fn all() -> Vec<Route> {
    use crate::model::right::Role::{Admin, Deployer, Viewer};
    vec![
        Route {
            query: &[("prefix", "only repositories whose names begin so")],
            response: schema::<Vec<ImageRepository>>(),
            ..route("GET", "/v1/images", "Repositories of the image registry", Viewer, |call| {
                Box::pin(repositories(call))
            })
        },
        Route {
            response: schema::<Vec<ImageTag>>(),
            ..route("GET", "/v1/images/{name}/tags", "Tags of a repository", Viewer, |call| Box::pin(tags(call)))
        },
        Route {
            response: schema::<ImageInfo>(),
            ..route("GET", "/v1/images/{name}", "An image, by tag or digest", Viewer, |call| Box::pin(image(call)))
        },
        Route {
            query: &[("image", "the image: shop/api:1.0, or one of another registry, docker.io/library/nginx:1.27")],
            response: schema::<String>(),
            ..route(
                "GET",
                "/v1/image-registry/resolve",
                "An image by its digest, as every host of the cluster gets it",
                Viewer,
                |call| Box::pin(resolve(call)),
            )
        },
        Route {
            change: Some("image.delete"),
            ..route(
                "DELETE",
                "/v1/images/{name}",
                "Deletes a tag, or by its digest a manifest with its tags",
                Deployer,
                |call| Box::pin(delete(call)),
            )
        },
        Route {
            change: Some("images.collect"),
            query: &[("dry_run", "true: says only what would go")],
            response: schema::<ImagesCollected>(),
            ..route("POST", "/v1/image-registry/collect", "Removes what no image needs any more", Admin, |call| {
                Box::pin(collect(call))
            })
        },
        Route {
            response: schema::<ImagesScrubbed>(),
            stream: true,
            ..route(
                "POST",
                "/v1/image-registry/scrub",
                "Reads all blobs once more; how far that is, a line each",
                Admin,
                |call| Box::pin(scrub(call)),
            )
        },
        Route {
            change: Some("image.copy"),
            query: &[
                ("from", "the image: shop/api:1.0, or one of another registry, docker.io/library/nginx:1.27"),
                ("to", "its new name; the tag is that of the image where none is said"),
                ("platform", "of an index only the image for this platform: linux/arm64"),
            ],
            response: schema::<Copied>(),
            stream: true,
            ..route(
                "POST",
                "/v1/image-registry/copy",
                "Copies an image from one registry to another; how far that is, a line each",
                Deployer,
                |call| Box::pin(copy(call)),
            )
        },
        Route {
            change: Some("images.import"),
            query: &[
                ("folder", "the folder on the registry's host: what distribution calls rootdirectory"),
                ("prefix", "only repositories whose names begin so"),
            ],
            response: schema::<Imported>(),
            stream: true,
            ..route(
                "POST",
                "/v1/image-registry/import",
                "Takes over what Docker's registry keeps in a folder; how far that is, a line each",
                Admin,
                |call| Box::pin(import(call)),
            )
        },
        Route {
            response: schema::<ImageKeeper>(),
            ..route("GET", "/v1/image-registry/keeper", "Which host of a Swarm keeps the images", Viewer, |call| {
                Box::pin(keeper(call))
            })
        },
        Route {
            change: Some("images.keeper"),
            request: schema::<KeeperAsk>(),
            response: schema::<ImageKeeper>(),
            ..route(
                "PUT",
                "/v1/image-registry/keeper",
                "Lets another host keep the images, with what it has; what the one before had stays there",
                Admin,
                |call| Box::pin(name_keeper(call)),
            )
        },
        Route {
            response: schema::<RegistryStats>(),
            ..route("GET", "/v1/image-registry/stats", "The registry in numbers", Viewer, |call| Box::pin(stats(call)))
        },
        Route {
            response: schema::<Vec<Rule>>(),
            ..route("GET", "/v1/image-registry/rules", "The rules for repositories", Viewer, |call| {
                Box::pin(rules(call))
            })
        },
        Route {
            about: About::Path,
            change: Some("images.rule"),
            request: schema::<RuleSettings>(),
            response: schema::<Rule>(),
            ..route(
                "PUT",
                "/v1/image-registry/rules/{name}",
                "Sets a rule for repositories with such a name: who pulls, pushes and deletes, immutable tags, a quota",
                Admin,
                |call| Box::pin(set_rule(call)),
            )
        },
        Route {
            about: About::Path,
            change: Some("images.unrule"),
            ..route("DELETE", "/v1/image-registry/rules/{name}", "Removes a rule", Admin, |call| {
                Box::pin(remove_rule(call))
            })
        },
        Route {
            change: Some("images.prune"),
            request: schema::<PruneAsk>(),
            response: schema::<Pruned>(),
            ..route(
                "POST",
                "/v1/image-registry/prune",
                "Removes tags and manifests that are old, or too many, but none that runs",
                Deployer,
                |call| Box::pin(prune(call)),
            )
        },
        Route {
            response: schema::<Vec<CacheInfo>>(),
            ..route(
                "GET",
                "/v1/image-registry/caches",
                "The registries of which it keeps copies, and how each fares",
                Viewer,
                |call| Box::pin(caches(call)),
            )
        },
        Route {
            about: About::Path,
            change: Some("images.cache"),
            request: schema::<CacheSettings>(),
            response: schema::<CacheInfo>(),
            ..route(
                "PUT",
                "/v1/image-registry/caches/{name}",
                "Keeps copies of a registry in repositories whose names begin so; / in all that nobody pushes to",
                Admin,
                |call| Box::pin(set_cache(call)),
            )
        },
        Route {
            about: About::Path,
            change: Some("images.uncache"),
            ..route("DELETE", "/v1/image-registry/caches/{name}", "Lets go of such a cache", Admin, |call| {
                Box::pin(remove_cache(call))
            })
        },
    ]
}

async fn repositories(call: Call) -> Result<Answer> {
    let prefix = call.query.get("prefix").map(String::as_str).unwrap_or_default();
    let mut all = call.api.cluster.image_repositories(prefix).await?;
    let rules = known_rules(&call).await?;
    let sees = |name: &str| rules.allow(&call.principal, name, Action::Pull);
    all.retain(|repository| repository.name.starts_with(&call.principal.prefix) && sees(&repository.name));
    json(&all)
}

async fn known_rules(call: &Call) -> Result<Rules> {
    Rules::of(call.api.cluster.image_rules().await?)
}

/// Whether something may be done with a repository. Whoever is confined to some names is so by the repository's, however the image is written;
/// and its rules are for all ways to it.
pub async fn allowed(call: &Call, role: Role, repository: &Repository, action: Action) -> Result<()> {
    let name = repository.as_str();
    call.principal.require(role, Some(name))?;
    match known_rules(call).await?.allow(&call.principal, name, action) {
        true => Ok(()),
        false => {
            Err(Error::new(Kind::Forbidden, format!("repository {name}"), "has a rule that names who may do that"))
        }
    }
}

async fn tags(call: Call) -> Result<Answer> {
    let repository: Repository = call.name().parse().map_err(Refused::into_error)?;
    allowed(&call, Role::Viewer, &repository, Action::Pull).await?;
    json(&call.api.cluster.image_tags(repository.as_str()).await?)
}

async fn image(call: Call) -> Result<Answer> {
    let (repository, _) = name::image(call.name()).map_err(Refused::into_error)?;
    allowed(&call, Role::Viewer, &repository, Action::Pull).await?;
    json(&call.api.cluster.image(call.name()).await?)
}

async fn resolve(call: Call) -> Result<Answer> {
    let image = call.query.get("image").map(String::as_str).unwrap_or_default();
    // Another registry is asked as the whole cluster: that is for those who deploy, and can run what it has.
    if name::elsewhere(image).is_some() {
        call.principal.require(Role::Deployer, None)?;
    } else {
        let (repository, _) = name::image(image).map_err(Refused::into_error)?;
        allowed(&call, Role::Viewer, &repository, Action::Pull).await?;
    }
    json(&call.api.cluster.resolve_image(image).await?)
}

async fn delete(call: Call) -> Result<Answer> {
    let (repository, _) = name::image(call.name()).map_err(Refused::into_error)?;
    allowed(&call, Role::Deployer, &repository, Action::Delete).await?;
    json(&call.api.cluster.delete_image(call.name()).await?)
}

async fn collect(call: Call) -> Result<Answer> {
    let dry_run = call.flag("dry_run")?;
    json(&call.api.cluster.collect_images(dry_run).await?)
}

async fn scrub(call: Call) -> Result<Answer> {
    lines(call.api.cluster.scrub_images().await?.boxed())
}

async fn copy(call: Call) -> Result<Answer> {
    let of = |name: &str| call.query.get(name).cloned();
    let missing = |what: &str| Error::invalid("copy", format!("{what}: is missing"));
    let from = of("from").ok_or_else(|| missing("from"))?;
    let to = of("to").ok_or_else(|| missing("to"))?;
    // Others are asked, and told, as the whole cluster.
    match name::elsewhere(&from).is_some() {
        true => call.principal.require(Role::Deployer, None)?,
        false => {
            let (repository, _) = name::image(&from).map_err(Refused::into_error)?;
            allowed(&call, Role::Viewer, &repository, Action::Pull).await?;
        }
    }
    match name::elsewhere(&to).is_some() {
        true => call.principal.require(Role::Admin, None)?,
        false => {
            let (repository, _) = name::image(&to).map_err(Refused::into_error)?;
            allowed(&call, Role::Deployer, &repository, Action::Push).await?;
        }
    }
    let ask = CopyAsk { from, to, platform: of("platform") };
    lines(call.api.cluster.copy_image(ask).await?.boxed())
}

async fn import(call: Call) -> Result<Answer> {
    call.principal.require(Role::Admin, None)?;
    let of = |name: &str| call.query.get(name).cloned();
    let folder = of("folder").ok_or_else(|| Error::invalid("import", "folder: is missing"))?;
    let ask = ImportAsk { folder: folder.into(), prefix: of("prefix").unwrap_or_default() };
    lines(call.api.cluster.import_images(ask).await?.boxed())
}

async fn keeper(call: Call) -> Result<Answer> {
    json(&call.api.cluster.keeper().await?)
}

async fn name_keeper(call: Call) -> Result<Answer> {
    call.principal.require(Role::Admin, None)?;
    let KeeperAsk { node } = strict::read("keeper", &call.body)?;
    json(&call.api.cluster.name_keeper(&node).await?)
}

async fn stats(call: Call) -> Result<Answer> {
    let mut stats = call.api.cluster.image_stats().await?;
    let (prefix, rules) = (&call.principal.prefix, known_rules(&call).await?);
    let sees = |name: &str| name.starts_with(prefix) && rules.allow(&call.principal, name, Action::Pull);
    stats.held.largest.retain(|one| sees(&one.name));
    stats.caches.retain(|cache| cache.prefix.starts_with(prefix));
    json(&stats)
}

async fn rules(call: Call) -> Result<Answer> {
    let mut all = call.api.cluster.image_rules().await?;
    all.retain(|rule| rule.repositories.starts_with(&call.principal.prefix));
    json(&all)
}

async fn set_rule(call: Call) -> Result<Answer> {
    call.principal.require(Role::Admin, None)?;
    let rule: RuleSettings = strict::read("rule", &call.body)?;
    json(&call.api.cluster.set_image_rule(call.name(), rule).await?)
}

async fn remove_rule(call: Call) -> Result<Answer> {
    call.principal.require(Role::Admin, None)?;
    json(&call.api.cluster.remove_image_rule(call.name()).await?)
}

// Whoever is confined to some names says so in the pattern: what it begins with has no wildcard there.
async fn prune(call: Call) -> Result<Answer> {
    let ask: PruneAsk = strict::read("prune", &call.body)?;
    let fixed = ask.repositories.split(['*', '?', '[']).next().unwrap_or_default();
    call.principal.require(Role::Deployer, Some(fixed))?;
    if call.principal.role < Role::Admin && known_rules(&call).await?.guard_deletion() {
        let why = "there are rules that name who deletes: an admin's token prunes";
        return Err(Error::new(Kind::Forbidden, format!("repositories {fixed}"), why));
    }
    json(&call.api.cluster.prune_tags(ask).await?)
}

async fn caches(call: Call) -> Result<Answer> {
    let mut all = call.api.cluster.image_caches().await?;
    all.retain(|cache| cache.prefix.starts_with(&call.principal.prefix));
    json(&all)
}

// How a registry is kept is nobody's who is confined to some names.
async fn set_cache(call: Call) -> Result<Answer> {
    call.principal.require(Role::Admin, None)?;
    let settings: CacheSettings = strict::read("cache", &call.body)?;
    json(&call.api.cluster.set_image_cache(call.name(), settings).await?)
}

async fn remove_cache(call: Call) -> Result<Answer> {
    call.principal.require(Role::Admin, None)?;
    json(&call.api.cluster.remove_image_cache(call.name()).await?)
}
