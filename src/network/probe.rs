//! Asks a replica whether it answers: a connection, or a GET.

use std::io;
use std::time::Duration;

use http_body_util::{BodyExt, Empty};
use hyper::body::Bytes;
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;

/// Opens a connection and closes it.
pub async fn tcp(address: &str, timeout: Duration) -> Result<(), String> {
    opens(TcpStream::connect(address), address, timeout).await
}

/// Sends a datagram, and waits for an answer or for word that there is nobody.
pub async fn udp(address: &str, timeout: Duration) -> Result<(), String> {
    let failed = |error: io::Error| format!("udp {address}: {error}");
    let ask = async {
        let mut last = io::Error::from(io::ErrorKind::NotFound);
        for to in tokio::net::lookup_host(address).await.map_err(failed)? {
            let from: std::net::SocketAddr =
                if to.is_ipv4() { ([0, 0, 0, 0], 0).into() } else { ([0_u16; 8], 0).into() };
            let socket = tokio::net::UdpSocket::bind(from).await.map_err(failed)?;
            let asked = async {
                socket.connect(to).await?;
                socket.send(b"neap check\n").await?;
                socket.recv(&mut [0; 1500]).await
            };
            match asked.await {
                Ok(_) => return Ok(()),
                Err(error) => last = error,
            }
        }
        Err(failed(last))
    };
    // Silence is no refusal.
    tokio::time::timeout(timeout, ask).await.unwrap_or(Ok(()))
}

/// GETs `path`; a status from 200 to 399 passes.
pub async fn http(address: &str, path: &str, timeout: Duration) -> Result<(), String> {
    get(TcpStream::connect(address), address, path, timeout).await
}

/// What `dial` opens is closed.
pub async fn opens(
    dial: impl Future<Output = io::Result<TcpStream>>,
    address: &str,
    timeout: Duration,
) -> Result<(), String> {
    match tokio::time::timeout(timeout, dial).await {
        Ok(Ok(_)) => Ok(()),
        Ok(Err(error)) => Err(format!("tcp {address}: {error}")),
        Err(_) => Err(format!("tcp {address}: no answer within {}", shown(timeout))),
    }
}

/// A GET over what `dial` opens.
pub async fn get(
    dial: impl Future<Output = io::Result<TcpStream>>,
    address: &str,
    path: &str,
    timeout: Duration,
) -> Result<(), String> {
    let ask = async {
        let stream = dial.await.map_err(|error| error.to_string())?;
        let (mut sender, connection) =
            hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(|error| error.to_string())?;
        let connection = tokio::spawn(connection);
        let request = hyper::Request::get(path)
            .header("host", address)
            .header("user-agent", concat!("neap/", env!("CARGO_PKG_VERSION"), " check"))
            .header("connection", "close")
            .body(Empty::<Bytes>::new())
            .map_err(|error| error.to_string())?;
        let response = sender.send_request(request).await.map_err(|error| error.to_string())?;
        let status = response.status();
        let mut body = response.into_body();
        let mut said = Vec::new();
        // Enough to see why; the rest is not read.
        while said.len() < 200
            && let Some(Ok(frame)) = body.frame().await
        {
            if let Some(data) = frame.data_ref() {
                said.extend_from_slice(data);
            }
        }
        connection.abort();
        if (200..400).contains(&status.as_u16()) {
            return Ok(());
        }
        // One line, whatever it is laid out as.
        let said = String::from_utf8_lossy(&said[..said.len().min(200)]);
        let said = said.split_whitespace().collect::<Vec<_>>().join(" ");
        Err(if said.is_empty() {
            format!("status {}", status.as_u16())
        } else {
            format!("status {}: {said}", status.as_u16())
        })
    };
    match tokio::time::timeout(timeout, ask).await {
        Ok(result) => result.map_err(|why: String| format!("GET {path}: {why}")),
        Err(_) => Err(format!("GET {path}: no answer within {}", shown(timeout))),
    }
}

fn shown(timeout: Duration) -> crate::model::units::Duration {
    timeout.into()
}
