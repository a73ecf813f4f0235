//! A router behind which another one can be put: a daemon answers for others until it leads itself.

use std::sync::{Arc, PoisonError, RwLock};

use axum::extract::Request;
use axum::response::{IntoResponse, Response};
use tower::ServiceExt;

use crate::client::wire::FORWARDED;
use crate::model::{Error, Kind};

/// The router of the moment.
#[derive(Clone)]
pub struct Switch(Arc<RwLock<axum::Router>>);

impl Switch {
    /// Begins with one that sends everything on, and so takes nothing that was sent on already.
    pub fn new(router: axum::Router) -> Self {
        let switch = Switch(Arc::default());
        switch.follow(router);
        switch
    }

    /// Puts one in its place that sends everything on.
    pub fn follow(&self, router: axum::Router) {
        let once = axum::Router::new().fallback(move |request: Request| {
            let router = router.clone();
            async move {
                if request.headers().contains_key(FORWARDED) {
                    let error = Error::new(Kind::Unavailable, "daemon", "does not lead any more").retry(true);
                    return super::failure(&error);
                }
                answered(router, request).await
            }
        });
        self.set(once);
    }

    /// Puts another one in its place.
    pub fn set(&self, router: axum::Router) {
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = router;
    }

    /// What is served.
    pub fn router(&self) -> axum::Router {
        let current = self.0.clone();
        axum::Router::new().fallback(move |request: Request| {
            let router = current.read().unwrap_or_else(PoisonError::into_inner).clone();
            answered(router, request)
        })
    }
}

async fn answered(router: axum::Router, request: Request) -> Response {
    router.oneshot(request).await.into_response()
}
