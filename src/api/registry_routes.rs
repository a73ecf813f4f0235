//! The routes for logins at registries.

use super::routes::{route, schema};
use super::{About, Answer, Call, Route, json};
use crate::model::registry::{LoginAsk, LoginInfo};
use crate::model::{Result, strict};

/// All of them.
pub fn all() -> Vec<Route> {
    use crate::model::right::Role::{Deployer, Viewer};
    vec![
        Route {
            response: schema::<Vec<LoginInfo>>(),
            standing: Some(|_, standing| json(&standing.logins()?)),
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
            ..route(
                "PUT",
                "/v1/logins/{name}",
                "Keeps what a registry is told when images are pulled",
                Deployer,
                |call| Box::pin(login(call)),
            )
        },
        Route {
            about: About::Path,
            change: Some("registry.logout"),
            ..route("DELETE", "/v1/logins/{name}", "Forgets it", Deployer, |call| Box::pin(logout(call)))
        },
    ]
}

async fn logins(call: Call) -> Result<Answer> {
    json(&call.api.cluster.logins().await?)
}

async fn login(call: Call) -> Result<Answer> {
    let ask: LoginAsk = strict::read("login", &call.body)?;
    json(&call.api.cluster.login(call.name(), ask).await?)
}

async fn logout(call: Call) -> Result<Answer> {
    json(&call.api.cluster.logout(call.name()).await?)
}
