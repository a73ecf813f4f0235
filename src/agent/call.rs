//! Requests to a daemon of the cluster: whoever does not lead names the one that does.

use std::sync::Arc;

use http_body_util::{BodyExt, Full, Limited};
use hyper::body::{Bytes, Incoming};
use hyper::upgrade::Upgraded;
use hyper_util::rt::TokioIo;
use rustls::ClientConfig;
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::protocol::UPGRADE;
use super::tls;
use crate::model::{Error, Kind, Result};

/// The header of an answer that names the daemon that leads.
pub const LEADER: &str = "neap-leader";
/// The header of a daemon that names its own node.
pub const NODE: &str = "neap-node";
/// How often another daemon is named before it is given up.
const HOPS: usize = 3;
/// How long an answer may take: a certificate is written down before it is given.
const ANSWER: std::time::Duration = std::time::Duration::from_secs(20);
/// The longest answer, in bytes.
const LONGEST: usize = 1 << 20;

/// Who calls whom.
#[derive(Clone)]
pub struct Caller {
    /// What the caller shows, and whom it takes for a daemon.
    pub config: Arc<ClientConfig>,
    /// Further headers: what a daemon shows in place of a certificate.
    pub headers: Vec<(&'static str, String)>,
}

impl Caller {
    /// POSTs `body` to the daemon that leads, found from the one at `address`.
    pub async fn post<T: DeserializeOwned>(&self, address: &str, path: &str, body: &impl Serialize) -> Result<T> {
        let body = serde_json::to_vec(body).map_err(|error| Error::internal("request", error.to_string()))?;
        let (at, response) = self.send(address, "POST", path, &body).await?;
        let bytes = read(&at, response).await?;
        serde_json::from_slice(&bytes).map_err(|error| {
            Error::new(Kind::Unavailable, format!("daemon at {at}"), "answers in words of another version").cause(error)
        })
    }

    /// A connection for frames to the daemon that leads, found from the one at `address`; its own address too.
    pub async fn upgrade(&self, address: &str) -> Result<(String, TokioIo<Upgraded>)> {
        let (at, response) = self.send(address, "GET", "/v1/agent", &[]).await?;
        let broken =
            |error: hyper::Error| Error::new(Kind::Unavailable, format!("daemon at {at}"), "broke off").cause(error);
        let upgraded = hyper::upgrade::on(response).await.map_err(broken)?;
        Ok((at, TokioIo::new(upgraded)))
    }

    async fn send(
        &self,
        address: &str,
        method: &str,
        path: &str,
        body: &[u8],
    ) -> Result<(String, hyper::Response<Incoming>)> {
        let mut at = address.to_owned();
        for _ in 0..HOPS {
            let response = tokio::time::timeout(ANSWER, self.send_once(&at, method, path, body)).await;
            let late = |_| Error::new(Kind::Timeout, format!("daemon at {at}"), "no answer within 20s");
            let response = response.map_err(late)??;
            if response.status().is_success() || response.status() == hyper::StatusCode::SWITCHING_PROTOCOLS {
                return Ok((at, response));
            }
            let leader = response.headers().get(LEADER).and_then(|value| value.to_str().ok()).map(str::to_owned);
            match leader {
                Some(leader) if leader != at => at = leader,
                _ => {
                    let status = response.status();
                    let bytes = read(&at, response).await?;
                    return Err(serde_json::from_slice::<Error>(&bytes).unwrap_or_else(|_| {
                        Error::new(Kind::Unavailable, format!("daemon at {at}"), format!("answers {status}"))
                    }));
                }
            }
        }
        Err(Error::new(Kind::Unavailable, "cluster", "no daemon leads for now").retry(true))
    }

    async fn send_once(&self, at: &str, method: &str, path: &str, body: &[u8]) -> Result<hyper::Response<Incoming>> {
        let broken = |error: &dyn std::fmt::Display| {
            Error::new(Kind::Unavailable, format!("daemon at {at}"), "the connection broke").cause(error)
        };
        let stream = tls::connect(at, self.config.clone()).await?;
        let (mut sender, connection) =
            hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(|error| broken(&error))?;
        tokio::spawn(connection.with_upgrades());
        let mut request = hyper::Request::builder()
            .method(method)
            .uri(path)
            .header("host", super::authority::DAEMON)
            .header("neap-version", env!("CARGO_PKG_VERSION"))
            .header("content-type", "application/json");
        if method == "GET" {
            request = request.header("connection", "upgrade").header("upgrade", UPGRADE);
        }
        for (name, value) in &self.headers {
            request = request.header(*name, value);
        }
        let request = request.body(Full::new(Bytes::copy_from_slice(body)));
        let request = request.map_err(|error| Error::internal("request", error.to_string()))?;
        sender.send_request(request).await.map_err(|error| broken(&error))
    }
}

async fn read(at: &str, response: hyper::Response<Incoming>) -> Result<Bytes> {
    let body = tokio::time::timeout(ANSWER, Limited::new(response.into_body(), LONGEST).collect()).await;
    let silent = || Error::new(Kind::Timeout, format!("daemon at {at}"), "its answer does not come to an end");
    let body = body.map_err(|_| silent())?.map_err(|error| {
        Error::new(Kind::Unavailable, format!("daemon at {at}"), "its answer broke off").cause(error)
    })?;
    Ok(body.to_bytes())
}
