//! The door: a port of this host that leads to the cluster's image registry, wherever that is. Bytes are passed on as they come; the registry
//! is told who brings them.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use rustls::pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, BufReader};
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio_rustls::client::TlsStream;

use crate::agent::protocol::Keeper;
use crate::api::oci::doors::{Brought, WELCOME, line};
use crate::api::oci::{self, Oci, Sides};
use crate::api::server::accept_each;
use crate::client::wire::pinned;
use crate::model::id::NodeId;
use crate::model::{Error, Kind, Result};

/// Most clients at once.
const MOST: usize = 4096;
/// How long the registry may take to answer a connection, and a client to take why there is none.
const PATIENCE: Duration = Duration::from_secs(5);
/// How long a client may say nothing when it has come; the registry itself has no more patience.
const SILENT: Duration = Duration::from_secs(30);
/// What is read before the registry is called, in bytes.
const FIRST: usize = 16 * 1024;
/// What is passed on at a time, in bytes.
const BUFFER: usize = 256 * 1024;
/// What the registry is called within TLS; which one it is says its certificate.
const NAME: &str = "registry";
/// Longest head that is read of a request that cannot be passed on, in bytes.
const HEAD: usize = 64 * 1024;

/// The registry of this host, for when it is the cluster's.
#[derive(Clone)]
pub struct Own {
    /// This host's node.
    pub node: NodeId,
    /// It.
    pub oci: Arc<Oci>,
}

/// Opens it at `address`, until the process ends; the address with its port.
pub async fn open(
    address: SocketAddr,
    keeper: watch::Receiver<Option<Keeper>>,
    sides: Sides<(Brought, Option<Own>)>,
) -> Result<SocketAddr> {
    let failed = |error: std::io::Error| Error::io(format!("door to the image registry {address}"), "listen", &error);
    let listener = oci::bind(address).await.map_err(failed)?;
    let address = listener.local_addr().map_err(failed)?;
    tokio::spawn(accept_each(listener, MOST, move |stream, from| {
        let (keeper, side, from) = (keeper.clone(), sides.of(&stream), from.ip());
        async move {
            let Some(((brought, own), tls)) = side else { return };
            let Some(config) = tls else { return bring(stream, &keeper, brought, own, from).await };
            let handshake = tokio_rustls::TlsAcceptor::from(config).accept(stream);
            if let Ok(Ok(stream)) = tokio::time::timeout(PATIENCE, handshake).await {
                bring(stream, &keeper, brought, own, from).await;
            }
        }
    }));
    Ok(address)
}

async fn bring(
    mut client: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    keeper: &watch::Receiver<Option<Keeper>>,
    brought: Brought,
    own: Option<Own>,
    from: IpAddr,
) {
    let known = keeper.borrow().clone();
    if let (Some(keeper), Some(own)) = (&known, own)
        && keeper.node == own.node
    {
        return oci::speak(client, own.oci, Some(from)).await;
    }
    // Whoever says nothing costs nobody else anything.
    let mut first = vec![0; FIRST];
    let Ok(Ok(length @ 1..)) = tokio::time::timeout(SILENT, client.read(&mut first)).await else { return };
    first.truncate(length);
    let known = keeper.borrow().clone();
    let connected = match known {
        Some(keeper) => connect(&keeper, brought).await,
        None => {
            let why = "is kept on no host of the cluster, as far as is known here";
            Err(Error::new(Kind::Unavailable, "image registry", why).help("start a daemon with --roles registry"))
        }
    };
    match connected {
        // Whoever breaks off is no event.
        Ok(registry) => _ = pass_on(client, registry, &first).await,
        Err(error) => {
            tracing::debug!(%error, "a client of the image registry was sent away");
            let _ = tokio::time::timeout(PATIENCE, excuse(&mut client, first, &error)).await;
        }
    }
}

// Until the registry has nothing more to say: it is the one that ends connections.
async fn pass_on(
    client: impl AsyncRead + AsyncWrite + Unpin,
    registry: TlsStream<TcpStream>,
    first: &[u8],
) -> std::io::Result<()> {
    let (from_client, mut to_client) = tokio::io::split(client);
    let (from_registry, mut to_registry) = tokio::io::split(registry);
    to_registry.write_all(first).await?;
    let (mut from_client, mut from_registry) =
        (BufReader::with_capacity(BUFFER, from_client), BufReader::with_capacity(BUFFER, from_registry));
    let up = async {
        tokio::io::copy_buf(&mut from_client, &mut to_registry).await?;
        to_registry.shutdown().await?;
        std::future::pending::<std::io::Result<()>>().await
    };
    let down = async {
        tokio::io::copy_buf(&mut from_registry, &mut to_client).await?;
        to_client.shutdown().await
    };
    tokio::pin!(down);
    tokio::select! {
        // It may have refused what comes before the end of it: why is still on its way.
        _ = up => tokio::time::timeout(PATIENCE, down).await.unwrap_or(Ok(())),
        over = &mut down => over,
    }
}

async fn connect(keeper: &Keeper, brought: Brought) -> Result<TlsStream<TcpStream>> {
    let subject = || format!("image registry at {}", keeper.address);
    let failed = |error: std::io::Error| Error::new(Kind::Unavailable, subject(), "cannot be reached").cause(error);
    let work = async {
        let stream = TcpStream::connect(keeper.address).await.map_err(failed)?;
        let _ = stream.set_nodelay(true);
        crate::network::keep_alive(&stream);
        let name = ServerName::try_from(NAME).expect("a constant that is a name");
        let config = pinned(&keeper.fingerprint);
        let mut stream =
            tokio_rustls::TlsConnector::from(Arc::new(config)).connect(name, stream).await.map_err(failed)?;
        stream.write_all(line(&keeper.secret, brought).as_bytes()).await.map_err(failed)?;
        // It says whether it knows this door.
        let refused = |_| {
            Error::new(Kind::Forbidden, subject(), "does not know this door: what it was told is old, or this host is")
        };
        match stream.read_u8().await.map_err(refused)? {
            WELCOME => Ok(stream),
            _ => Err(Error::new(Kind::Unsupported, subject(), "speaks in words of another version")),
        }
    };
    let late = |_| Err(Error::new(Kind::Unavailable, subject(), "does not answer"));
    tokio::time::timeout(PATIENCE, work).await.unwrap_or_else(late)
}

// Why nothing is answered, in the words of registries.
async fn excuse(
    client: &mut (impl AsyncRead + AsyncWrite + Unpin),
    mut head: Vec<u8>,
    error: &Error,
) -> std::io::Result<()> {
    let mut part = [0; 4096];
    while head.len() < HEAD && !head.windows(4).any(|four| four == b"\r\n\r\n") {
        match client.read(&mut part).await? {
            0 => return Ok(()),
            length => head.extend_from_slice(&part[..length]),
        }
    }
    let why = format!("{}: {}", error.subject, error.message);
    let body =
        serde_json::json!({ "errors": [{ "code": "UNKNOWN", "message": why, "detail": error.help }] }).to_string();
    let answer = format!(
        "HTTP/1.1 503 Service Unavailable\r\nContent-Type: application/json\r\nDocker-Distribution-API-Version: registry/2.0\r\n\
         Retry-After: 5\r\nContent-Length: {}\r\nConnection: close\r\n\r\n",
        body.len()
    );
    client.write_all(answer.as_bytes()).await?;
    // An answer to HEAD has no body.
    if !head.starts_with(b"HEAD ") {
        client.write_all(body.as_bytes()).await?;
    }
    client.shutdown().await
}
