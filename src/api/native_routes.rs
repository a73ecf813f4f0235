//! The routes for services that the Swarm runs itself: shown, taken over, given back.

use super::routes::{route, schema};
use super::{About, Answer, Call, Route, json};
use crate::model::native::{Adopt, Adoption, HandBack, HandedBack, NativeService};
use crate::model::right::Role;
use crate::model::{Result, strict};

/// All of them. They reach beyond what Neap's own names say, so that changes need the role admin.
pub fn all() -> Vec<Route> {
    vec![
        Route {
            response: schema::<Vec<NativeService>>(),
            ..route("GET", "/v1/native-services", "Services that the Swarm runs itself", Role::Viewer, |call| {
                Box::pin(natives(call))
            })
        },
        Route {
            about: About::Path,
            change: Some("service.adopt"),
            request: schema::<Adopt>(),
            response: schema::<Adoption>(),
            ..route(
                "POST",
                "/v1/native-services/{name}/adopt",
                "Takes over one of the Swarm's services; answers what is made of it",
                Role::Admin,
                |call| Box::pin(adopt(call)),
            )
        },
        Route {
            change: Some("service.hand-back"),
            request: schema::<HandBack>(),
            response: schema::<HandedBack>(),
            ..route(
                "POST",
                "/v1/services/{name}/hand-back",
                "Gives a service back to the Swarm; answers what will not be as it was",
                Role::Admin,
                |call| Box::pin(hand_back(call)),
            )
        },
    ]
}

async fn natives(call: Call) -> Result<Answer> {
    let mut natives = call.api.cluster.natives().await?;
    natives.retain(|native| native.name.starts_with(&call.principal.prefix));
    json(&natives)
}

async fn adopt(call: Call) -> Result<Answer> {
    // What is made of it may have any name, and be handed anything.
    call.principal.require(Role::Admin, None)?;
    let ask: Adopt = strict::read("adopt", &call.body)?;
    json(&call.api.cluster.adopt(call.name(), ask).await?)
}

async fn hand_back(call: Call) -> Result<Answer> {
    call.principal.require(Role::Admin, None)?;
    let ask: HandBack = strict::read("hand-back", &call.body)?;
    json(&call.api.cluster.hand_back(call.name(), ask).await?)
}
