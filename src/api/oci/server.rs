//! Listens for the registry's clients, without TLS: on this host's loopback unless told otherwise.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::TcpListener;
use tokio::sync::Semaphore;

use super::{Oci, answer};
use crate::model::{Error, Result};

/// Most connections at once.
const MAX_CONNECTIONS: usize = 4096;
/// How long a client may take for a request's head.
const PATIENCE: Duration = Duration::from_secs(30);
/// What is read at once of a body, in bytes.
const BUFFER: usize = 512 * 1024;

/// Serves at `address` until the process ends; the address with its port.
pub async fn listen(address: SocketAddr, oci: Arc<Oci>) -> Result<SocketAddr> {
    let failed = |error: std::io::Error| Error::io(format!("image registry {address}"), "listen", &error);
    let listener = TcpListener::bind(address).await.map_err(failed)?;
    let address = listener.local_addr().map_err(failed)?;
    tokio::spawn(serve(listener, oci));
    Ok(address)
}

async fn serve(listener: TcpListener, oci: Arc<Oci>) {
    let slots = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    loop {
        let Ok(slot) = slots.clone().acquire_owned().await else { return };
        let Ok((stream, _)) = listener.accept().await else {
            tokio::time::sleep(Duration::from_millis(50)).await;
            continue;
        };
        let oci = oci.clone();
        tokio::spawn(async move {
            let _ = stream.set_nodelay(true);
            crate::network::keep_alive(&stream);
            let service = service_fn(move |request| {
                let oci = oci.clone();
                async move { Ok::<_, Infallible>(answer(oci, request).await) }
            });
            let connection = hyper::server::conn::http1::Builder::new()
                .timer(TokioTimer::new())
                .header_read_timeout(PATIENCE)
                .max_buf_size(BUFFER)
                .serve_connection(TokioIo::new(stream), service);
            // A client that breaks off is no event.
            let _ = connection.await;
            drop(slot);
        });
    }
}
