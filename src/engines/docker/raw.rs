//! What bollard does not ask of a Docker Engine, or does not read as it is: the calls for a locked Swarm, and a Swarm
//! service's health check, which it looks for under the name that Docker's API description gives it (`HealthCheck`), while every
//! Docker Engine writes `Healthcheck`.

use std::time::Duration;

use bollard::Docker;
use bytes::Bytes;
use http_body_util::{BodyExt, Full, Limited};
use hyper_util::rt::TokioIo;
use serde_json::Value;

use super::Address;
use crate::model::{Error, Kind, Result};

/// Longest answer, in bytes, and how long it may take.
const MOST: usize = 16 << 20;
const PATIENCE: Duration = Duration::from_secs(60);

/// GETs a path.
pub async fn get(address: &Address, docker: &Docker, path: &str) -> Result<Option<Value>> {
    call(address, docker, "GET", path, None).await
}

/// Asks for a path below the version that `docker` speaks. None where the address is neither a socket of this host nor
/// plain HTTP, which is spoken here alone.
pub async fn call(
    address: &Address,
    docker: &Docker,
    method: &str,
    path: &str,
    body: Option<&Value>,
) -> Result<Option<Value>> {
    let version = docker.client_version();
    let path = format!("/v{}.{}{path}", version.major_version, version.minor_version);
    let body = body.map(ToString::to_string).unwrap_or_default();
    let failed = |error: String| {
        Error::new(Kind::Unavailable, format!("Docker Engine {}", address.url), "cannot be asked")
            .cause(error)
            .retry(true)
    };
    let ask = async {
        match address.url.split_once("://") {
            Some(("unix", socket)) => {
                let stream = tokio::net::UnixStream::connect(socket).await.map_err(|error| error.to_string())?;
                exchange(stream, method, &path, body).await.map(Some)
            }
            Some(("tcp" | "http", host)) if address.certificates.is_none() => {
                let stream = tokio::net::TcpStream::connect(host.trim_end_matches('/')).await;
                exchange(stream.map_err(|error| error.to_string())?, method, &path, body).await.map(Some)
            }
            _ => Ok(None),
        }
    };
    match tokio::time::timeout(PATIENCE, ask).await {
        Ok(result) => result.map_err(failed),
        Err(_) => Err(failed("it does not answer".into())),
    }
}

async fn exchange<S>(stream: S, method: &str, path: &str, body: String) -> std::result::Result<Value, String>
where
    S: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin + Send + 'static,
{
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(|error| error.to_string())?;
    let connection = tokio::spawn(connection);
    let request = hyper::Request::builder()
        .method(method)
        .uri(path)
        .header("host", "docker")
        .header("connection", "close")
        .header("content-type", "application/json")
        .body(Full::new(Bytes::from(body)))
        .map_err(|error| error.to_string())?;
    let response = sender.send_request(request).await.map_err(|error| error.to_string())?;
    let status = response.status();
    let body = Limited::new(response.into_body(), MOST).collect().await.map_err(|error| error.to_string())?;
    connection.abort();
    let body = body.to_bytes();
    if !status.is_success() {
        let said = serde_json::from_slice::<Value>(&body).ok();
        let said = said.as_ref().and_then(|said| said.get("message")?.as_str());
        return Err(said.map_or_else(|| format!("status {}", status.as_u16()), str::to_owned));
    }
    if body.is_empty() {
        return Ok(Value::Null);
    }
    serde_json::from_slice(&body).map_err(|error| error.to_string())
}
