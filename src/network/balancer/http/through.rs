//! TLS that ends at the replica: a connection goes there by the name that it asks for (SNI), byte for byte.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Instant;

use bytes::BytesMut;
use smallvec::SmallVec;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::rewrite::From;
use super::routes::Way;
use super::tally::Counted;
use super::watch::Watch;
use super::worker::Worker;
use crate::model::id::TaskId;
use crate::network::balancer::pick::Wish;
use crate::network::balancer::proxy;
use crate::network::balancer::sockets::is_own;

/// Longest beginning of a handshake, in bytes.
const MAX_HELLO: usize = 32 * 1024;
/// What is under way of a connection in either direction.
const PIPE: usize = 32 * 1024;

/// Reads the beginning of a handshake: what was read, and the name that is asked for, in lower case.
pub async fn hello(stream: &mut Counted<TcpStream>) -> io::Result<(BytesMut, String)> {
    let mut begun = BytesMut::with_capacity(2 * 1024);
    let mut acceptor = rustls::server::Acceptor::default();
    let mut taken = 0;
    loop {
        if begun.len() > MAX_HELLO || stream.read_buf(&mut begun).await? == 0 {
            return Err(io::ErrorKind::InvalidData.into());
        }
        let mut rest = &begun[taken..];
        while !rest.is_empty() {
            if acceptor.read_tls(&mut rest)? == 0 {
                return Err(io::ErrorKind::InvalidData.into());
            }
        }
        taken = begun.len();
        if let Some(accepted) = acceptor.accept().map_err(|(error, _)| io::Error::other(error))? {
            let name = accepted.client_hello().server_name().unwrap_or_default().to_ascii_lowercase();
            return Ok((begun, name));
        }
        begun.reserve(4 * 1024);
    }
}

/// Carries a connection to whoever its route chooses, to its end. Counted as 200 where somebody took it.
pub async fn carry(
    worker: &Worker,
    front: &str,
    (index, way): (usize, Arc<Way>),
    from: &From,
    mut stream: Counted<TcpStream>,
    begun: BytesMut,
    watch: &Watch,
) {
    let began = Instant::now();
    let mut tried: SmallVec<[TaskId; 4]> = SmallVec::new();
    loop {
        let hash = worker.hash(&way.spec, from, b"", |_| None);
        let Some(picked) = worker.choose(front, &way, index, &Wish { hash, tried: &tried, ..Wish::default() }) else {
            return way.passed.note(if tried.is_empty() { 503 } else { 502 }, began.elapsed());
        };
        let peer = picked.peer().clone();
        let mut upstream = match worker.pool.connect(&peer, watch).await {
            Ok(upstream) => upstream.stream,
            Err(error) if is_own(&error) => return way.passed.note(503, began.elapsed()),
            Err(_) => {
                peer.failed();
                tried.push(peer.id);
                way.passed.note_retry();
                continue;
            }
        };
        peer.succeeded();
        way.passed.note(200, began.elapsed());
        let mut first = Vec::new();
        if let Some(version) = way.spec.send_proxy
            && let Ok(to) = upstream.peer_addr()
        {
            proxy::write(&mut first, version, SocketAddr::new(from.ip, from.peer_port), to);
        }
        first.extend_from_slice(&begun);
        if upstream.write_all(&first).await.is_ok() {
            let _ = tokio::io::copy_bidirectional_with_sizes(&mut stream, &mut upstream, PIPE, PIPE).await;
        }
        return;
    }
}
