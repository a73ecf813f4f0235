//! Listens for the registry's clients: on this host's loopback unless told otherwise, with TLS where there is a certificate.

use std::convert::Infallible;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
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

/// What a port shows: to those who come by this host's loopback, and to all others. One that listens at all addresses has both.
#[derive(Clone)]
pub struct Sides<T> {
    /// To the one, without TLS.
    pub own: Option<T>,
    /// To the others.
    pub far: Option<(T, Option<Tls>)>,
}

impl<T: Clone> Sides<T> {
    /// What it shows a connection, and how TLS ends.
    pub fn of(&self, stream: &TcpStream) -> Option<(T, Option<Arc<rustls::ServerConfig>>)> {
        let is_own = stream.local_addr().is_ok_and(|address| address.ip().to_canonical().is_loopback());
        let own = || self.own.clone().map(|own| (own, None));
        let far = || self.far.clone().map(|(far, tls)| (far, tls.map(|tls| tls.borrow().clone())));
        if is_own { own().or_else(far) } else { far() }
    }
}

/// Listens; where there is no IPv6, all addresses are those of IPv4.
pub async fn bind(address: SocketAddr) -> std::io::Result<TcpListener> {
    match TcpListener::bind(address).await {
        Err(error) if address.is_ipv6() && address.ip().is_unspecified() && !is_taken(&error) => {
            TcpListener::bind(SocketAddr::new(Ipv4Addr::UNSPECIFIED.into(), address.port())).await
        }
        other => other,
    }
}

fn is_taken(error: &std::io::Error) -> bool {
    matches!(error.kind(), std::io::ErrorKind::AddrInUse | std::io::ErrorKind::PermissionDenied)
}

/// Serves at `address` until the process ends; the address with its port.
pub async fn listen(address: SocketAddr, sides: Sides<Arc<Oci>>) -> Result<SocketAddr> {
    let failed = |error: std::io::Error| Error::io(format!("image registry {address}"), "listen", &error);
    let listener = bind(address).await.map_err(failed)?;
    let address = listener.local_addr().map_err(failed)?;
    tokio::spawn(serve(listener, sides));
    Ok(address)
}

async fn serve(listener: TcpListener, sides: Sides<Arc<Oci>>) {
    accept_each(listener, MAX_CONNECTIONS, |stream, from| {
        let side = sides.of(&stream);
        async move {
            let from = Some(from.ip());
            let Some((oci, tls)) = side else { return };
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
