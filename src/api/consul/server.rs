//! Listens for Consul's clients, without TLS: on this host's loopback unless told otherwise.

use std::net::SocketAddr;
use std::time::Duration;

use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::net::TcpListener;
use tower::ServiceExt;

use crate::api::server::accept_each;
use crate::model::{Error, Result};

/// Most connections at once: each watcher has one.
const MAX_CONNECTIONS: usize = 8192;
/// How long a client may take for its request's head.
const PATIENCE: Duration = Duration::from_secs(10);

/// Serves at `address` until the process ends; the address with its port.
pub async fn listen(address: SocketAddr, router: axum::Router) -> Result<SocketAddr> {
    let failed = |error: std::io::Error| Error::io(format!("Consul's API {address}"), "listen", &error);
    let listener = TcpListener::bind(address).await.map_err(failed)?;
    let address = listener.local_addr().map_err(failed)?;
    tokio::spawn(serve(listener, router));
    Ok(address)
}

async fn serve(listener: TcpListener, router: axum::Router) {
    accept_each(listener, MAX_CONNECTIONS, |stream, peer| {
        let router = router.clone().map_request(move |mut request: hyper::Request<hyper::body::Incoming>| {
            request.extensions_mut().insert(peer);
            request
        });
        async move {
            let connection = hyper::server::conn::http1::Builder::new()
                .timer(TokioTimer::new())
                .header_read_timeout(PATIENCE)
                .serve_connection(TokioIo::new(stream), TowerToHyperService::new(router));
            // A client that breaks off is no event.
            let _ = connection.await;
        }
    })
    .await;
}
