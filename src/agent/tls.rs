//! TLS between daemons and agents: certificates of the cluster's authority on both sides.

use std::sync::Arc;

use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::ServerCertVerifier;
use rustls::crypto::CryptoProvider;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::server::{ClientHello, ResolvesServerCert, WebPkiClientVerifier};
use rustls::sign::CertifiedKey;
use rustls::{ClientConfig, RootCertStore, ServerConfig};
use tokio::net::TcpStream;
use tokio_rustls::client::TlsStream;

use super::authority::{DAEMON, Issued};
use crate::client::trust;
use crate::model::id::sha256_hex;
use crate::model::{Error, Kind, Result};

/// How long a daemon may take to answer a connection.
const CONNECT: std::time::Duration = std::time::Duration::from_secs(3);

fn provider() -> Arc<CryptoProvider> {
    Arc::new(rustls::crypto::ring::default_provider())
}

fn wrong(what: &str, error: &dyn std::fmt::Display) -> Error {
    Error::new(Kind::Corrupt, what, "cannot be used").cause(error)
}

/// A certificate chain with its key, as a server shows it.
pub fn certified(chain: Vec<CertificateDer<'static>>, key: PrivateKeyDer<'static>) -> Result<Arc<CertifiedKey>> {
    let made = CertifiedKey::from_der(chain, key, &provider());
    made.map(Arc::new).map_err(|error| wrong("certificate", &error))
}

/// What a daemon's TLS port shows: `own` to those who know the daemon by that certificate; once there is an authority, its
/// own face for agents, whose certificates are then asked for.
pub fn server(own: Arc<CertifiedKey>, cluster: Option<(&str, &Issued)>) -> Result<Arc<ServerConfig>> {
    let builder = ServerConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()
        .expect("ring supports the default protocol versions");
    let Some((authority, issued)) = cluster else {
        let faces = Faces { own, cluster: None };
        return Ok(Arc::new(builder.with_no_client_auth().with_cert_resolver(Arc::new(faces))));
    };
    let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots(authority)?), provider())
        .allow_unauthenticated()
        .build()
        .map_err(|error| wrong("authority", &error))?;
    let mut chain = certificates(&issued.certificate)?;
    chain.extend(certificates(authority)?);
    let faces = Faces { own, cluster: Some(certified(chain, key(&issued.key)?)?) };
    Ok(Arc::new(builder.with_client_cert_verifier(verifier).with_cert_resolver(Arc::new(faces))))
}

#[derive(Debug)]
struct Faces {
    own: Arc<CertifiedKey>,
    cluster: Option<Arc<CertifiedKey>>,
}

impl ResolvesServerCert for Faces {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        match hello.server_name() {
            Some(DAEMON) => self.cluster.clone(),
            _ => Some(self.own.clone()),
        }
    }
}

/// How an agent shows itself to daemons of its cluster; `own`: certificate and key, where it shows any.
pub fn agent(authority: &str, own: Option<&Issued>) -> Result<Arc<ClientConfig>> {
    let builder = ClientConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()
        .expect("ring supports the default protocol versions")
        .with_root_certificates(roots(authority)?);
    let config = match own {
        None => builder.with_no_client_auth(),
        Some(own) => builder
            .with_client_auth_cert(certificates(&own.certificate)?, key(&own.key)?)
            .map_err(|error| wrong("agent's certificate", &error))?,
    };
    Ok(Arc::new(config))
}

/// How a host that has nothing but a join token finds the right cluster: the daemon brings its authority along, and what
/// makes that the right one is its fingerprint.
pub fn joining(fingerprint: &str) -> Arc<ClientConfig> {
    let fingerprint = fingerprint.to_owned();
    Arc::new(trust::trusting(move |(certificate, rest, name, now)| {
        let authority = rest.iter().find(|certificate| sha256_hex(certificate) == fingerprint);
        let mut roots = RootCertStore::empty();
        roots.add(authority.ok_or(trust::REFUSED)?.clone().into_owned())?;
        let verifier = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider()).build();
        verifier.map_err(|_| trust::REFUSED)?.verify_server_cert(certificate, &[], name, &[], now).map(drop)
    }))
}

/// A connection to the daemon at `address`, `host:port`.
pub async fn connect(address: &str, config: Arc<ClientConfig>) -> Result<TlsStream<TcpStream>> {
    let subject = || format!("daemon at {address}");
    let work = async {
        let stream = TcpStream::connect(address)
            .await
            .map_err(|error| Error::new(Kind::Unavailable, subject(), "cannot be reached").cause(error))?;
        let _ = stream.set_nodelay(true);
        let name = ServerName::try_from(DAEMON).expect("a constant that is a name");
        tokio_rustls::TlsConnector::from(config)
            .connect(name, stream)
            .await
            .map_err(|error| Error::new(Kind::Unauthenticated, subject(), "is no daemon of this cluster").cause(error))
    };
    match tokio::time::timeout(CONNECT, work).await {
        Ok(result) => result,
        Err(_) => Err(Error::new(Kind::Timeout, subject(), "no answer within 3s")),
    }
}

fn certificates(pem: &str) -> Result<Vec<CertificateDer<'static>>> {
    CertificateDer::pem_slice_iter(pem.as_bytes())
        .collect::<std::result::Result<_, _>>()
        .map_err(|error| wrong("certificate", &error))
}

fn key(pem: &str) -> Result<PrivateKeyDer<'static>> {
    PrivateKeyDer::from_pem_slice(pem.as_bytes()).map_err(|error| wrong("key", &error))
}

fn roots(authority: &str) -> Result<RootCertStore> {
    let mut roots = RootCertStore::empty();
    for certificate in certificates(authority)? {
        roots.add(certificate).map_err(|error| wrong("authority", &error))?;
    }
    Ok(roots)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::agent::authority::{Authority, agent_key};
    use crate::model::clock::{Clock, SystemClock};
    use crate::store::vault::Vault;
    use crate::store::{MemoryStore, Store};

    async fn authority() -> Authority {
        let store: Arc<dyn Store> = Arc::new(MemoryStore::default());
        let clock: Arc<dyn Clock> = Arc::new(SystemClock::start());
        Authority::open(&store, Vault::in_memory().unwrap(), &clock).await.unwrap()
    }

    fn own() -> Arc<CertifiedKey> {
        let made = rcgen::generate_simple_self_signed(vec!["neap".to_owned()]).unwrap();
        let key = PrivateKeyDer::try_from(made.signing_key.serialize_der()).unwrap();
        certified(vec![made.cert.der().clone()], key).unwrap()
    }

    // What the server learns of the client's certificate, or why there is no connection.
    async fn meet(server: Arc<ServerConfig>, client: Arc<ClientConfig>) -> std::result::Result<Option<String>, String> {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let accept = async {
            let (stream, _) = listener.accept().await.unwrap();
            let stream = tokio_rustls::TlsAcceptor::from(server).accept(stream).await.map_err(|e| e.to_string())?;
            let shown = stream.get_ref().1.peer_certificates().and_then(|all| all.first()).map(|one| sha256_hex(one));
            Ok::<_, String>(shown)
        };
        let (seen, connected) = tokio::join!(accept, connect(&address, client));
        connected.map_err(|error| error.to_string())?;
        seen
    }

    #[tokio::test]
    async fn only_this_cluster() {
        let (ours, theirs) = (authority().await, authority().await);
        let server = |authority: &Authority| {
            server(own(), Some((&authority.certificate, &authority.daemon().unwrap()))).unwrap()
        };
        // With the token's fingerprint, and nothing to show.
        assert_eq!(meet(server(&ours), joining(&ours.fingerprint().unwrap())).await, Ok(None));
        assert!(meet(server(&theirs), joining(&ours.fingerprint().unwrap())).await.is_err());
        // With a certificate of the authority.
        let issue = |authority: &Authority| {
            let (key, public) = agent_key().unwrap();
            Issued { certificate: authority.agent(&public).unwrap(), key }
        };
        let issued = issue(&ours);
        let print = crate::agent::authority::fingerprint(&issued.certificate).unwrap();
        let config = agent(&ours.certificate, Some(&issued)).unwrap();
        assert_eq!(meet(server(&ours), config.clone()).await, Ok(Some(print)));
        assert!(meet(server(&theirs), config).await.is_err());
        // One of another authority: the server does not take it.
        let foreign = agent(&ours.certificate, Some(&issue(&theirs))).unwrap();
        assert!(meet(server(&ours), foreign).await.is_err());
        // An agent's certificate makes no daemon.
        let posing = super::server(own(), Some((&ours.certificate, &issued))).unwrap();
        assert!(meet(posing, agent(&ours.certificate, None).unwrap()).await.is_err());
        // Before there is an authority nobody is taken for a daemon of the cluster.
        assert!(meet(super::server(own(), None).unwrap(), agent(&ours.certificate, None).unwrap()).await.is_err());
    }
}
