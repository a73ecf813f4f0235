//! How a daemon is reached: a unix socket, or TCP with TLS and a token.

use std::path::PathBuf;
use std::sync::Arc;

use http_body_util::{BodyExt, Full};
use hyper::body::{Bytes, Incoming};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use rustls::pki_types::ServerName;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::sync::watch;

use super::trust;
use crate::model::id::sha256_hex;
use crate::model::{Error, Kind, Result};

/// Where a daemon listens, and how one proves who one is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Endpoint {
    /// A unix socket; its file mode is the key.
    Unix(PathBuf),
    /// TCP with TLS.
    Tls {
        /// `host:port`.
        address: String,
        /// The token's secret.
        token: String,
        /// SHA-256 of the daemon's certificate: no other is accepted.
        fingerprint: String,
    },
}

/// How long it is waited for somebody to lead.
const ABOUT_TO_LEAD: std::time::Duration = std::time::Duration::from_secs(5);

/// The largest answer that is taken in whole, in bytes.
const MAX_ANSWER: usize = 256 << 20;

/// Sends requests, each over a connection of its own.
#[derive(Debug, Clone)]
pub struct Wire {
    to: Target,
    on_age: Option<OnAge>,
}

/// The header of a request that an answer from memory will do for: how old it may be, in seconds.
pub const MAX_AGE: &str = "neap-max-age";

/// Told when an answer is only what stood so long ago, since no daemon leads.
pub type OnAge = fn(std::time::Duration);

#[derive(Debug, Clone)]
enum Target {
    Fixed(Endpoint),
    /// Whoever it is at the moment.
    Following(watch::Receiver<Option<Endpoint>>),
}

/// The fingerprint of the certificate that a client showed, and that the cluster's authority signed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PeerCertificate(pub String);

/// The header of a request that a daemon sends on for somebody: it is sent on once only.
pub const FORWARDED: &str = "neap-forwarded";

/// The header of an answer that a daemon gave from memory, since none leads: how old it is, in seconds.
pub const AGE: &str = "neap-age";

impl Wire {
    /// To `endpoint`.
    pub fn new(endpoint: Endpoint) -> Self {
        Wire { to: Target::Fixed(endpoint), on_age: None }
    }

    /// To whoever leads at the moment.
    pub fn following(leader: watch::Receiver<Option<Endpoint>>) -> Self {
        Wire { to: Target::Following(leader), on_age: None }
    }

    /// With somebody who is told of old answers, and will do with them.
    #[must_use]
    pub fn on_age(self, told: OnAge) -> Self {
        Wire { on_age: Some(told), ..self }
    }

    fn endpoint(&self) -> Option<Endpoint> {
        match &self.to {
            Target::Fixed(endpoint) => Some(endpoint.clone()),
            Target::Following(leader) => leader.borrow().clone(),
        }
    }

    fn subject(&self) -> String {
        match self.endpoint() {
            Some(Endpoint::Unix(path)) => format!("daemon at {}", path.display()),
            Some(Endpoint::Tls { address, .. }) => format!("daemon at {address}"),
            None => "cluster".into(),
        }
    }

    /// One request, its answer read whole.
    pub async fn call<T: DeserializeOwned>(
        &self,
        method: &str,
        path: &str,
        body: Option<&impl Serialize>,
    ) -> Result<T> {
        let body = written(body)?;
        // In a box, so that its code is there once and not for every type of an answer.
        let bytes = Box::pin(self.ask(method, path, body)).await?;
        self.decode(&bytes)
    }

    async fn ask(&self, method: &str, path: &str, body: Bytes) -> Result<Vec<u8>> {
        let mut answer = self.send(method, path, body).await?;
        let mut bytes = Vec::new();
        while let Some(chunk) = next_chunk(&mut answer).await.map_err(|error| self.broken(&error))? {
            bytes.extend_from_slice(&chunk);
            if bytes.len() > MAX_ANSWER {
                return Err(Error::new(Kind::Exhausted, self.subject(), "answers with too much"));
            }
        }
        Ok(bytes)
    }

    /// One request, whose answer comes in lines.
    pub async fn lines(&self, method: &str, path: &str, body: Option<&impl Serialize>) -> Result<Lines> {
        let body = self.send(method, path, written(body)?).await?;
        Ok(Lines { wire: self.clone(), body, buffer: Vec::new() })
    }

    fn decode<T: DeserializeOwned>(&self, bytes: &[u8]) -> Result<T> {
        let bytes = if bytes.is_empty() { b"null" } else { bytes };
        serde_json::from_slice(bytes).map_err(|error| {
            Error::new(Kind::Unavailable, self.subject(), "answers in words of another version")
                .cause(error)
                .retry(false)
        })
    }

    fn broken(&self, error: &dyn std::fmt::Display) -> Error {
        Error::new(Kind::Unavailable, self.subject(), "the connection broke").cause(error)
    }

    async fn send(&self, method: &str, path: &str, body: Bytes) -> Result<Incoming> {
        let Target::Following(leader) = &self.to else { return self.send_once(method, path, body).await };
        let mut leader = leader.clone();
        // Where somebody is about to lead, that is waited for.
        let _ = tokio::time::timeout(ABOUT_TO_LEAD, leader.wait_for(Option::is_some)).await;
        let asked = leader.borrow_and_update().clone();
        let another = async {
            // Whoever was asked may have stopped in the middle of it, and will never answer.
            while leader.changed().await.is_ok() && *leader.borrow_and_update() == asked {}
        };
        tokio::select! {
            biased;
            answer = self.send_once(method, path, body) => answer,
            () = another => Err(Error::new(Kind::Unavailable, "daemon", "lost the lead before it answered")
                .help("see whether it was done, and ask again")
                .retry(true)),
        }
    }

    async fn send_once(&self, method: &str, path: &str, body: Bytes) -> Result<Incoming> {
        if path.split('?').next().is_some_and(|path| path.split('/').skip(1).any(str::is_empty)) {
            return Err(Error::invalid("name", "is empty"));
        }
        let endpoint = self.endpoint().ok_or_else(|| {
            Error::new(Kind::Unavailable, "cluster", "no daemon leads for now")
                .help("try again in a few seconds")
                .retry(true)
        })?;
        let mut request = hyper::Request::builder()
            .method(method)
            .uri(path)
            .header("host", "neap")
            .header("content-type", "application/json")
            .header("neap-version", env!("CARGO_PKG_VERSION"));
        if self.on_age.is_some() {
            request = request.header(MAX_AGE, u32::MAX.to_string());
        }
        if matches!(self.to, Target::Following(_)) {
            request = request.header(FORWARDED, "1");
        }
        if let Endpoint::Tls { token, .. } = &endpoint {
            request = request.header("authorization", format!("Bearer {token}"));
        }
        let request = request.body(Full::new(body)).map_err(|error| Error::invalid("request", error.to_string()))?;
        let response = match &endpoint {
            Endpoint::Unix(path) => {
                let stream = tokio::net::UnixStream::connect(path).await.map_err(|error| self.unreachable(&error))?;
                self.exchange(stream, request).await?
            }
            Endpoint::Tls { address, fingerprint, .. } => {
                let connect = tokio::net::TcpStream::connect(address);
                let stream = tokio::time::timeout(std::time::Duration::from_secs(10), connect)
                    .await
                    .map_err(|_| Error::new(Kind::Timeout, self.subject(), "no answer within 10s"))?
                    .map_err(|error| self.unreachable(&error))?;
                crate::network::keep_alive(&stream);
                let host = address
                    .rsplit_once(':')
                    .map_or(address.as_str(), |(host, _)| host)
                    .trim_matches(['[', ']'])
                    .to_owned();
                let name =
                    ServerName::try_from(host).map_err(|error| Error::invalid(self.subject(), error.to_string()))?;
                let connector = tokio_rustls::TlsConnector::from(Arc::new(pinned(fingerprint)));
                let stream = connector.connect(name, stream).await.map_err(|error| {
                    Error::new(Kind::Unauthenticated, self.subject(), "its certificate is not the one of this context")
                        .cause(error)
                })?;
                self.exchange(stream, request).await?
            }
        };
        if response.status().is_success() {
            let age = response.headers().get(AGE).and_then(|age| age.to_str().ok()?.parse::<f64>().ok());
            let age = age.and_then(|age| std::time::Duration::try_from_secs_f64(age).ok());
            if let (Some(age), Some(told)) = (age, self.on_age) {
                told(age);
            }
            return Ok(response.into_body());
        }
        let status = response.status();
        let bytes = response.into_body().collect().await.map_err(|error| self.broken(&error))?.to_bytes();
        Err(serde_json::from_slice::<Error>(&bytes).unwrap_or_else(|_| {
            Error::new(Kind::Unavailable, self.subject(), format!("answers {status}"))
                .cause(String::from_utf8_lossy(&bytes).chars().take(200).collect::<String>())
        }))
    }

    fn unreachable(&self, error: &std::io::Error) -> Error {
        let error_kind = error.kind();
        let subject = self.subject();
        if error_kind == std::io::ErrorKind::PermissionDenied {
            return Error::new(Kind::Forbidden, subject, "no right to open its socket")
                .help("join the group neap, or run as root");
        }
        Error::new(Kind::Unavailable, subject, "cannot be reached")
            .cause(error)
            .help("start one with `neap up`, name another with --host, or run a script without one: `neap run --standalone FILE`")
    }

    async fn exchange<S>(&self, stream: S, request: hyper::Request<Full<Bytes>>) -> Result<hyper::Response<Incoming>>
    where
        S: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin + Send + 'static,
    {
        let (mut sender, connection) =
            http1::handshake(TokioIo::new(stream)).await.map_err(|error| self.broken(&error))?;
        tokio::spawn(connection);
        sender.send_request(request).await.map_err(|error| self.broken(&error))
    }
}

fn written(body: Option<&impl Serialize>) -> Result<Bytes> {
    let Some(body) = body else { return Ok(Bytes::new()) };
    let bytes = serde_json::to_vec(body);
    bytes.map(Bytes::from).map_err(|error| Error::internal("request", "cannot be written").cause(error))
}

async fn next_chunk(body: &mut Incoming) -> std::result::Result<Option<Bytes>, hyper::Error> {
    while let Some(frame) = body.frame().await {
        if let Ok(data) = frame?.into_data() {
            return Ok(Some(data));
        }
    }
    Ok(None)
}

/// An answer that comes line by line.
pub struct Lines {
    wire: Wire,
    body: Incoming,
    buffer: Vec<u8>,
}

impl Lines {
    /// The next value; nothing at the end. A line `{"error": ...}` is the daemon's error half-way.
    pub async fn next<T: DeserializeOwned>(&mut self) -> Result<Option<T>> {
        loop {
            if let Some(end) = self.buffer.iter().position(|byte| *byte == b'\n') {
                let line: Vec<u8> = self.buffer.drain(..=end).collect();
                // Empty lines keep the connection alive.
                if line.len() == 1 {
                    continue;
                }
                if let Some(error) = line.strip_prefix(b"{\"error\":") {
                    return Err(self.wire.decode::<Error>(error.strip_suffix(b"}\n").unwrap_or(error))?);
                }
                return self.wire.decode(&line).map(Some);
            }
            match next_chunk(&mut self.body).await {
                Ok(Some(chunk)) => self.buffer.extend_from_slice(&chunk),
                Ok(None) => return Ok(None),
                Err(error) => return Err(self.wire.broken(&error)),
            }
        }
    }
}

/// Takes whoever shows the certificate with this fingerprint: it is nobody else's, whoever has signed it.
pub fn pinned(fingerprint: &str) -> rustls::ClientConfig {
    let fingerprint = fingerprint.to_owned();
    trust::trusting(
        move |(certificate, ..)| {
            if sha256_hex(certificate) == fingerprint { Ok(()) } else { Err(trust::REFUSED) }
        },
    )
}
