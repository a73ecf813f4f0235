//! Listens: a unix socket for this host, TCP with TLS for others.

use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream, UnixListener};
use tokio::sync::{Semaphore, watch};
use tower::ServiceExt;

use super::auth::Peer;
use crate::client::wire::PeerCertificate;
use crate::model::id::sha256_hex;
use crate::model::{Error, Kind, Result};

/// Most connections at once.
const MAX_CONNECTIONS: usize = 4096;
/// How long a client may take for its request's head, and for its TLS handshake.
const PATIENCE: Duration = Duration::from_secs(10);

/// Opens the control socket: mode 0660, group `neap` where there is one. Whoever may open it is as good as root.
pub fn bind_unix(path: &Path) -> Result<UnixListener> {
    let subject = format!("control socket {}", path.display());
    let failed = |error: std::io::Error| Error::io(subject.clone(), "open it", &error);
    if let Some(folder) = path.parent() {
        std::fs::create_dir_all(folder).map_err(failed)?;
    }
    if path.exists() {
        // A socket that answers belongs to a living daemon.
        if std::os::unix::net::UnixStream::connect(path).is_ok() {
            return Err(Error::new(Kind::Conflict, subject, "is in use by another daemon")
                .help("stop it, or give this one another socket (--socket)"));
        }
        std::fs::remove_file(path).map_err(failed)?;
    }
    let listener = UnixListener::bind(path).map_err(failed)?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o660)).map_err(failed)?;
    if let Ok(Some(group)) = nix::unistd::Group::from_name("neap") {
        // Without the right to give it away it stays with the own group, which is as safe.
        let _ = nix::unistd::chown(path, None, Some(group.gid));
    }
    Ok(listener)
}

/// Serves the control socket until the process ends.
pub async fn serve_unix(listener: UnixListener, router: axum::Router) {
    let slots = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    loop {
        let Ok(slot) = slots.clone().acquire_owned().await else { return };
        let Ok((stream, _)) = listener.accept().await else {
            tokio::time::sleep(Duration::from_millis(50)).await;
            continue;
        };
        let peer = stream.peer_cred().map_or(Peer::Unknown, |credentials| Peer::Unix(credentials.uid()));
        let router = router.clone();
        tokio::spawn(async move {
            serve(stream, peer, None, router).await;
            drop(slot);
        });
    }
}

/// Serves TCP with TLS until the process ends.
/// `tls`: what is shown, which may change.
pub async fn serve_tls(listener: TcpListener, tls: watch::Receiver<Arc<rustls::ServerConfig>>, router: axum::Router) {
    accept_each(listener, MAX_CONNECTIONS, |stream, address| {
        let (acceptor, router) = (tokio_rustls::TlsAcceptor::from(tls.borrow().clone()), router.clone());
        async move {
            if let Ok(Ok(stream)) = tokio::time::timeout(PATIENCE, acceptor.accept(stream)).await {
                let shown = stream.get_ref().1.peer_certificates().and_then(|all| all.first());
                let shown = shown.map(|certificate| PeerCertificate(sha256_hex(certificate)));
                serve(stream, Peer::Tls(address.to_string()), shown, router).await;
            }
        }
    })
    .await;
}

/// Serves each connection in a task of its own, `most` at once, until the process ends.
pub async fn accept_each<F: Future<Output = ()> + Send + 'static>(
    listener: TcpListener,
    most: usize,
    serve: impl Fn(TcpStream, SocketAddr) -> F,
) {
    let slots = Arc::new(Semaphore::new(most));
    loop {
        let Ok(slot) = slots.clone().acquire_owned().await else { return };
        let Ok((stream, address)) = listener.accept().await else {
            tokio::time::sleep(Duration::from_millis(50)).await;
            continue;
        };
        let _ = stream.set_nodelay(true);
        crate::network::keep_alive(&stream);
        let served = serve(stream, address);
        tokio::spawn(async move {
            served.await;
            drop(slot);
        });
    }
}

async fn serve<S: AsyncRead + AsyncWrite + Unpin + Send + 'static>(
    stream: S,
    peer: Peer,
    shown: Option<PeerCertificate>,
    router: axum::Router,
) {
    let service = router.map_request(move |mut request: hyper::Request<hyper::body::Incoming>| {
        request.extensions_mut().insert(peer.clone());
        if let Some(shown) = &shown {
            request.extensions_mut().insert(shown.clone());
        }
        request
    });
    let connection = hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(PATIENCE)
        .serve_connection(TokioIo::new(stream), TowerToHyperService::new(service))
        .with_upgrades();
    // A client that breaks off is no event.
    let _ = connection.await;
}

/// Listens on `address`.
pub async fn bind_tcp(address: SocketAddr) -> Result<TcpListener> {
    TcpListener::bind(address).await.map_err(|error| Error::io(format!("control API {address}"), "listen", &error))
}
