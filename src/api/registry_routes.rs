//! The routes for logins at registries.

use super::routes::{route, schema};
use super::{About, Answer, Call, Route, json};
use crate::model::registry::{LoginAsk, LoginInfo};
use crate::model::right::Role;
use crate::model::{Error, Result, strict};

/// All of them.
pub fn all() -> Vec<Route> {
    use crate::model::right::Role::{Admin, Viewer};
    vec![
        Route {
            response: schema::<Vec<LoginInfo>>(),
            standing: Some(|call, standing| json(&own(call, standing.logins()?))),
            ..route(
                "GET",
                "/v1/logins",
                "Registries that somebody has logged in at, without passwords",
                Viewer,
                |call| Box::pin(logins(call)),
            )
        },
        Route {
            about: About::Path,
            change: Some("registry.login"),
            request: schema::<LoginAsk>(),
            response: schema::<LoginInfo>(),
            ..route("PUT", "/v1/logins/{name}", "Keeps what a registry is told when images are pulled", Admin, |call| {
                Box::pin(login(call))
            })
        },
        Route {
            about: About::Path,
            change: Some("registry.logout"),
            query: &[("service", "what came along with this service, instead of the cluster's own")],
            ..route("DELETE", "/v1/logins/{name}", "Forgets it", Admin, |call| Box::pin(logout(call)))
        },
    ]
}

async fn logins(call: Call) -> Result<Answer> {
    json(&own(&call, call.api.cluster.logins().await?))
}

// Whoever is confined to some names sees what came along with those.
fn own(call: &Call, mut logins: Vec<LoginInfo>) -> Vec<LoginInfo> {
    let prefix = &call.principal.prefix;
    logins.retain(|login| login.service.as_deref().unwrap_or_default().starts_with(prefix));
    logins
}

// A registry is everybody's: nobody is confined to one by how its name begins.
async fn login(call: Call) -> Result<Answer> {
    call.principal.require(Role::Admin, None)?;
    // What an error repeats must not be the password.
    if !call.body.is_object() {
        return Err(Error::invalid("login", "is no table with a username and a password"));
    }
    let ask: LoginAsk = strict::read("login", &call.body)?;
    json(&call.api.cluster.login(call.name(), ask).await?)
}

async fn logout(call: Call) -> Result<Answer> {
    call.principal.require(Role::Admin, None)?;
    let service = call.query.get("service").map(String::as_str);
    json(&call.api.cluster.logout(call.name(), service).await?)
}
