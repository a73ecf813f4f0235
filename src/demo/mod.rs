//! `neap demo`: a small HTTP application for examples and tests. It says who it is, and misbehaves on request.

use std::convert::Infallible;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use serde_json::json;
use tokio::sync::Notify;

use crate::model::{Error, Result};

/// How the application behaves.
#[derive(Debug, Clone)]
pub struct Options {
    /// The version that it answers.
    pub version: String,
    /// Where it listens.
    pub address: IpAddr,
    /// The port.
    pub port: u16,
    /// A port of UDP, where each datagram is answered by one: the version, its port, and what was sent.
    pub udp_port: Option<u16>,
    /// How long it takes until it listens.
    pub start_delay: Duration,
    /// Whether `/healthz` fails from the start.
    pub fail_check: bool,
    /// When `/healthz` begins to fail.
    pub fail_check_after: Option<Duration>,
    /// How long each answer takes.
    pub slow: Duration,
    /// Bytes of memory that each answer loses.
    pub leak: usize,
    /// When it crashes.
    pub crash_after: Option<Duration>,
    /// With which exit code.
    pub exit_code: u8,
    /// How often it writes a line.
    pub log_every: Option<Duration>,
}

struct State {
    options: Options,
    host: String,
    failing: AtomicBool,
    slow: AtomicU64,
    leaving: AtomicBool,
    open: AtomicUsize,
    answers: AtomicU64,
    closed: Notify,
}

/// How long open connections have after the signal to be told that they are the last.
const FAREWELL: Duration = Duration::from_secs(8);

async fn echo(socket: tokio::net::UdpSocket, version: String) {
    let own = socket.local_addr().map_or(0, |address| address.port());
    let mut buffer = vec![0; 65_535];
    loop {
        let Ok((length, from)) = socket.recv_from(&mut buffer).await else { continue };
        let answer = [format!("{version} {own} ").as_bytes(), &buffer[..length]].concat();
        let _ = socket.send_to(&answer, from).await;
    }
}

/// Runs until it is told to end, or ends itself as asked.
pub async fn run(options: Options) -> Result<u8> {
    tokio::time::sleep(options.start_delay).await;
    let host = nix::unistd::gethostname().ok().and_then(|name| name.into_string().ok()).unwrap_or_default();
    let state = Arc::new(State {
        failing: AtomicBool::new(options.fail_check),
        slow: AtomicU64::new(u64::try_from(options.slow.as_millis()).unwrap_or_default()),
        leaving: AtomicBool::new(false),
        open: AtomicUsize::new(0),
        answers: AtomicU64::new(0),
        closed: Notify::new(),
        host,
        options,
    });
    let address = SocketAddr::new(state.options.address, state.options.port);
    let failed = |error: std::io::Error| Error::io(format!("demo {address}"), "listen", &error);
    let listener = tokio::net::TcpListener::bind(address).await.map_err(failed)?;
    if let Some(port) = state.options.udp_port {
        let socket = tokio::net::UdpSocket::bind((state.options.address, port)).await.map_err(failed)?;
        tokio::spawn(echo(socket, state.options.version.clone()));
    }
    println!("demo {} listens on {}", state.options.version, listener.local_addr().map_err(failed)?);
    let mut terminate = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate()).map_err(failed)?;
    let mut interrupt = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::interrupt()).map_err(failed)?;
    spawn_clocks(&state);
    let crash = async {
        match state.options.crash_after {
            Some(after) => tokio::time::sleep(after).await,
            None => std::future::pending().await,
        }
    };
    tokio::pin!(crash);
    let mut farewell: Option<tokio::time::Instant> = None;
    loop {
        let until = farewell.unwrap_or_else(|| tokio::time::Instant::now() + Duration::from_secs(3600));
        tokio::select! {
            accepted = listener.accept() => {
                let Ok((stream, _)) = accepted else {
                    tokio::time::sleep(Duration::from_millis(10)).await;
                    continue;
                };
                let _ = stream.set_nodelay(true);
                state.open.fetch_add(1, Ordering::SeqCst);
                let shared = state.clone();
                tokio::spawn(async move {
                    let service = hyper::service::service_fn(|request| answer(shared.clone(), request));
                    let _ = hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), service).await;
                    shared.open.fetch_sub(1, Ordering::SeqCst);
                    shared.closed.notify_one();
                });
            }
            _ = terminate.recv() => farewell = Some(leave(&state)),
            _ = interrupt.recv() => farewell = Some(leave(&state)),
            () = &mut crash => {
                eprintln!("demo crashes, as asked");
                return Ok(state.options.exit_code);
            }
            () = state.closed.notified(), if farewell.is_some() => {}
            () = tokio::time::sleep_until(until) => {}
        }
        if farewell.is_some_and(|until| state.open.load(Ordering::SeqCst) == 0 || tokio::time::Instant::now() >= until)
        {
            println!("demo {} ends after {} answers", state.options.version, state.answers.load(Ordering::SeqCst));
            return Ok(0);
        }
    }
}

// Open connections get one more answer each, with the word that it is the last.
fn leave(state: &State) -> tokio::time::Instant {
    state.leaving.store(true, Ordering::SeqCst);
    tokio::time::Instant::now() + FAREWELL
}

fn spawn_clocks(state: &Arc<State>) {
    if let Some(after) = state.options.fail_check_after {
        let state = state.clone();
        tokio::spawn(async move {
            tokio::time::sleep(after).await;
            state.failing.store(true, Ordering::SeqCst);
        });
    }
    if let Some(every) = state.options.log_every {
        tokio::spawn(async move {
            for number in 1_u64.. {
                println!("tick {number}");
                tokio::time::sleep(every).await;
            }
        });
    }
}

async fn answer(
    state: Arc<State>,
    request: Request<Incoming>,
) -> std::result::Result<Response<Full<Bytes>>, Infallible> {
    let slow = state.slow.load(Ordering::SeqCst);
    if slow > 0 {
        tokio::time::sleep(Duration::from_millis(slow)).await;
    }
    state.answers.fetch_add(1, Ordering::SeqCst);
    if state.options.leak > 0 {
        // Touched, so that the memory is really taken.
        std::mem::forget(vec![1_u8; state.options.leak]);
    }
    let (status, body) = route(&state, &request);
    let mut response = Response::new(Full::new(Bytes::from(body)));
    *response.status_mut() = hyper::StatusCode::from_u16(status).unwrap_or_default();
    response.headers_mut().insert("content-type", hyper::header::HeaderValue::from_static("application/json"));
    if state.leaving.load(Ordering::SeqCst) {
        response.headers_mut().insert("connection", hyper::header::HeaderValue::from_static("close"));
    }
    Ok(response)
}

fn route(state: &Arc<State>, request: &Request<Incoming>) -> (u16, String) {
    let path = request.uri().path();
    match (request.method().as_str(), path) {
        ("GET", "/") => {
            let body = json!({ "version": state.options.version, "host": state.host, "pid": std::process::id() });
            (200, format!("{body}\n"))
        }
        ("GET", "/healthz") if state.failing.load(Ordering::SeqCst) => (503, "\"told to fail\"\n".into()),
        ("GET", "/healthz") => (200, "\"ok\"\n".into()),
        ("POST", "/fail") => {
            state.failing.store(true, Ordering::SeqCst);
            (200, "\"the check fails from now on\"\n".into())
        }
        ("POST", "/heal") => {
            state.failing.store(false, Ordering::SeqCst);
            (200, "\"the check passes from now on\"\n".into())
        }
        ("POST", "/slow") => {
            let millis = request.uri().query().and_then(|query| query.strip_prefix("ms=")?.parse().ok()).unwrap_or(0);
            state.slow.store(millis, Ordering::SeqCst);
            (200, format!("\"answers take {millis} ms from now on\"\n"))
        }
        ("POST", "/crash") => {
            let code = i32::from(state.options.exit_code);
            tokio::spawn(async move {
                tokio::time::sleep(Duration::from_millis(20)).await;
                std::process::exit(code);
            });
            (200, "\"crashes now\"\n".into())
        }
        _ => (404, "\"there is GET / and /healthz, POST /fail, /heal, /slow?ms=N and /crash\"\n".into()),
    }
}
