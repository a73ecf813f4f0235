//! Listens for the registry's clients: on this host's loopback unless told otherwise, with TLS where there is a certificate.

use std::convert::Infallible;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpListener;
use tokio::sync::watch;

use super::{Oci, answer};
use crate::api::server::accept_each;
use crate::model::{Error, Result};

/// Most connections at once.
pub(super) const MAX_CONNECTIONS: usize = 4096;
/// How long a client may take for a request's head.
const PATIENCE: Duration = Duration::from_secs(30);
/// What is read at once of a body, in bytes.
const BUFFER: usize = 512 * 1024;

/// How TLS ends, as it is now: certificates are read again.
pub type Tls = watch::Receiver<Arc<rustls::ServerConfig>>;

/// Serves at `address` until the process ends; the address with its port.
pub async fn listen(address: SocketAddr, oci: Arc<Oci>, tls: Option<Tls>) -> Result<SocketAddr> {
    let failed = |error: std::io::Error| Error::io(format!("image registry {address}"), "listen", &error);
    let listener = TcpListener::bind(address).await.map_err(failed)?;
    let address = listener.local_addr().map_err(failed)?;
    tokio::spawn(serve(listener, oci, tls));
    Ok(address)
}

async fn serve(listener: TcpListener, oci: Arc<Oci>, tls: Option<Tls>) {
    accept_each(listener, MAX_CONNECTIONS, |stream, from| {
        let (oci, tls) = (oci.clone(), tls.as_ref().map(|tls| tls.borrow().clone()));
        async move {
            let from = Some(from.ip());
            let Some(config) = tls else { return speak(stream, oci, from).await };
            let handshake = tokio_rustls::TlsAcceptor::from(config).accept(stream);
            if let Ok(Ok(stream)) = tokio::time::timeout(PATIENCE, handshake).await {
                speak(stream, oci, from).await;
            }
        }
    })
    .await;
}

/// Speaks with one client, who comes from there.
pub async fn speak(stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static, oci: Arc<Oci>, from: Option<IpAddr>) {
    let service = service_fn(move |request| {
        let oci = oci.clone();
        async move { Ok::<_, Infallible>(answer(oci, from, request).await) }
    });
    let connection = hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(PATIENCE)
        .max_buf_size(BUFFER)
        .serve_connection(TokioIo::new(stream), service);
    // A client that breaks off is no event.
    let _ = connection.await;
}
