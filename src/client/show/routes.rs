//! Routes as people read them.

use super::rows;
use crate::client::routes::RouteInfo;

/// `route ls`.
pub fn routes(all: &[RouteInfo]) -> String {
    let row = |route: &RouteInfo| {
        let to = match (&route.spec.redirect, &route.service) {
            (Some(to), _) => format!("-> {to}"),
            (None, Some(service)) => service.to_string(),
            (None, None) => {
                let one = route.spec.to.len() == 1;
                let share = |share: &crate::model::route::RouteShare| match one {
                    true => share.service.to_string(),
                    false => format!("{} {}", share.service, share.weight),
                };
                route.spec.to.iter().map(share).collect::<Vec<_>>().join(", ")
            }
        };
        let serving = if route.spec.redirect.is_some() { "-".to_owned() } else { route.serving.to_string() };
        let within = |percent| match (route.requests(), route.within(percent)) {
            (0, _) => "-".to_owned(),
            (_, Some(millis)) => format!("<{millis}ms"),
            (_, None) => "longer".to_owned(),
        };
        [
            route.name.clone(),
            route.url.clone(),
            to,
            serving,
            route.requests().to_string(),
            route.errors().to_string(),
            within(50),
            within(99),
            route.problem.clone().unwrap_or_default(),
        ]
    };
    let head = ["NAME", "URL", "TO", "SERVING", "REQUESTS", "5XX", "P50", "P99", "PROBLEM"];
    rows(&head, all.iter().map(row))
}
