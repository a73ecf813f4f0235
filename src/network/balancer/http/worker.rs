//! A thread that serves HTTP: accepts, and carries each connection in a task of its own.

use std::borrow::Cow;
use std::cell::RefCell;
use std::collections::{BTreeMap, HashMap, HashSet};
use std::rc::Rc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use bytes::BytesMut;
use rustls::ServerConfig;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Notify, mpsc};
use tokio::task::{JoinHandle, LocalSet};

use super::h1::Session;
use super::h2::{self, Begun};
use super::head::Bad;
use super::pool::Pool;
use super::rewrite::From;
use super::routes::{Routing, Way, plain_host};
use super::streams::Streams;
use super::tally::{Counted, Tally};
use super::through;
use super::watch::{LOOK, Late, Watch, Watches};
use crate::model::route::{HashBy, RouteBalance, RouteSpec, plain_path};
use crate::network::balancer::hook::{Hooks, Loaded};
use crate::network::balancer::lines::Lines;
use crate::network::balancer::pick::{Picked, Wish, text_hash};
use crate::network::balancer::proxy;
use crate::network::balancer::sockets::descriptors;

/// How long a client has for the handshake of TLS.
const HANDSHAKE: Duration = Duration::from_secs(10);
/// How long nothing is accepted when there are no descriptors left.
const STARVED: Duration = Duration::from_millis(50);
/// How many looks at deadlines go between two at kept connections.
const TIDY: u32 = 10;

/// What all threads know.
pub struct Shared {
    routing: Mutex<Routing>,
    tls: Mutex<HashMap<String, Option<Arc<ServerConfig>>>>,
    proxied: Mutex<HashSet<String>>,
    leaving: AtomicBool,
    /// Told when connections are to end.
    pub left: Notify,
    /// Connections of clients that are open.
    pub connections: AtomicUsize,
    /// Sockets that threads have not closed yet.
    pub closing: AtomicUsize,
    // Most connections of clients: each takes one to a replica as well.
    most: usize,
    // What each thread counts, by front.
    tallies: Mutex<BTreeMap<String, Vec<Arc<Tally>>>>,
}

impl Shared {
    /// Nothing is routed yet.
    pub fn new(seed: u64) -> Arc<Self> {
        Arc::new(Shared {
            routing: Mutex::new(Routing::new(seed)),
            tls: Mutex::default(),
            proxied: Mutex::default(),
            leaving: AtomicBool::new(false),
            left: Notify::new(),
            connections: AtomicUsize::new(0),
            closing: AtomicUsize::new(0),
            most: most_connections(),
            tallies: Mutex::default(),
        })
    }

    /// Where requests go.
    pub fn routing(&self) -> MutexGuard<'_, Routing> {
        self.routing.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How TLS ends, by front, where it does; nothing: there is no certificate to show, and so nothing to say.
    pub fn tls(&self) -> MutexGuard<'_, HashMap<String, Option<Arc<ServerConfig>>>> {
        self.tls.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Fronts whose connections begin with the PROXY protocol.
    pub fn proxied(&self) -> MutexGuard<'_, HashSet<String>> {
        self.proxied.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What each thread counts, by front.
    pub fn tallies(&self) -> MutexGuard<'_, BTreeMap<String, Vec<Arc<Tally>>>> {
        self.tallies.lock().unwrap_or_else(PoisonError::into_inner)
    }

    // One's own; that of one who counts no more goes on.
    fn tally(&self, front: &str) -> Arc<Tally> {
        let mut all = self.tallies();
        let known = all.entry(front.to_owned()).or_default();
        if let Some(free) = known.iter().find(|tally| Arc::strong_count(tally) == 1) {
            return free.clone();
        }
        known.push(Arc::default());
        known[known.len() - 1].clone()
    }

    /// Whether connections are to end.
    pub fn is_leaving(&self) -> bool {
        self.leaving.load(Ordering::SeqCst)
    }

    /// From now on connections end with their next answer.
    pub fn leave(&self) {
        self.leaving.store(true, Ordering::SeqCst);
        self.left.notify_waiters();
    }
}

/// What a thread is told.
pub enum Command {
    /// Accept on this socket, for the front of this name.
    Listen(String, std::net::TcpListener),
    /// No more.
    Close(String),
}

/// One thread's.
pub struct Worker {
    /// What all threads know.
    pub shared: Arc<Shared>,
    /// Deadlines of this one's connections.
    pub watches: Watches,
    /// Connections to replicas.
    pub pool: Pool,
    /// Those that speak HTTP/2.
    pub streams: Streams,
    /// Where lines of requests go.
    pub lines: Rc<Lines>,
    /// Scripts of routes.
    pub hooks: Loaded,
}

/// Whither a request wants.
pub struct Asked<'a> {
    host: Cow<'a, str>,
    path: Cow<'a, str>,
}

/// What a hash may be of.
pub enum Named<'a> {
    /// A field.
    Header(&'a str),
    /// A cookie.
    Cookie(&'a str),
}

/// Starts one.
pub fn start(
    shared: Arc<Shared>,
    hooks: Arc<dyn Hooks>,
    number: usize,
) -> std::io::Result<mpsc::UnboundedSender<Command>> {
    let (sender, commands) = mpsc::unbounded_channel();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let run = move || {
        let worker = Rc::new(Worker {
            shared,
            watches: Watches::default(),
            pool: Pool::default(),
            streams: Streams::default(),
            lines: Rc::default(),
            hooks: Loaded::new(hooks),
        });
        LocalSet::new().block_on(&runtime, worker.run(commands));
    };
    std::thread::Builder::new().name(format!("http-{number}")).spawn(run)?;
    Ok(sender)
}

impl Worker {
    // Until the sender is gone.
    async fn run(self: Rc<Self>, mut commands: mpsc::UnboundedReceiver<Command>) {
        let fronts: RefCell<HashMap<String, JoinHandle<()>>> = RefCell::default();
        let mut look = tokio::time::interval(LOOK);
        look.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut looks = 0;
        loop {
            tokio::select! {
                command = commands.recv() => match command {
                    Some(Command::Listen(name, socket)) => {
                        let Ok(listener) = TcpListener::from_std(socket) else { continue };
                        let task = tokio::task::spawn_local(self.clone().accept(name.as_str().into(), listener));
                        if let Some(before) = fronts.borrow_mut().insert(name, task) {
                            before.abort();
                        }
                    }
                    Some(Command::Close(name)) => {
                        let task = fronts.borrow_mut().remove(&name);
                        if let Some(task) = task {
                            task.abort();
                            // Its socket is closed with it.
                            let _ = task.await;
                        }
                        self.shared.closing.fetch_sub(1, Ordering::SeqCst);
                    }
                    None => return,
                },
                _ = look.tick() => {
                    let now = Instant::now();
                    self.watches.look(now);
                    looks += 1;
                    if looks % TIDY == 0 {
                        let routing = self.shared.routing();
                        self.pool.tidy(now, |peer| routing.has_peer(peer));
                        self.streams.tidy(|peer| routing.has_peer(peer));
                        self.hooks.tidy(|name| routing.has_way(name));
                    }
                }
            }
        }
    }

    async fn accept(self: Rc<Self>, front: Rc<str>, listener: TcpListener) {
        let port = listener.local_addr().map_or(0, |address| address.port());
        let tally = self.shared.tally(&front);
        loop {
            match listener.accept().await {
                Ok((stream, address)) => {
                    // Counted before anything else is done, so that nobody thinks that there is none.
                    let open = Open::count(&self.shared);
                    if self.shared.connections.load(Ordering::Relaxed) > self.shared.most {
                        continue;
                    }
                    crate::network::balancer::sockets::prepare_any(std::os::fd::AsFd::as_fd(&stream));
                    let from = From::new(address, port, &tally);
                    let stream = Counted::new(stream, &tally);
                    tokio::task::spawn_local(self.clone().serve(front.clone(), stream, from, open));
                }
                Err(error) if error.kind() == std::io::ErrorKind::ConnectionAborted => {}
                Err(_) => tokio::time::sleep(STARVED).await,
            }
        }
    }

    async fn serve(self: Rc<Self>, front: Rc<str>, mut stream: Counted<TcpStream>, mut from: From, _open: Open) {
        let watch = self.watches.begin(HANDSHAKE);
        if self.shared.proxied().contains(&*front) {
            match watch.bound(proxy::read(&mut stream)).await {
                Ok(Ok(Some((client, to)))) => from = From::new(client, to.port(), &from.tally),
                // It asks for itself, as a check does.
                Ok(Ok(None)) => {}
                Ok(Err(_)) | Err(Late) => {
                    from.tally.note_malformed();
                    return;
                }
            }
        }
        let tls = self.shared.tls().get(&*front).cloned();
        let Some(config) = tls else { return self.speak(front, stream, from, watch).await };
        from.is_secure = true;
        let mut begun = BytesMut::new();
        let has_through = self.shared.routing().has_through(&front);
        if has_through {
            let Ok(Ok((read, name))) = watch.bound(through::hello(&mut stream)).await else {
                from.tally.note_malformed();
                return;
            };
            let way = self.shared.routing().way_through(&front, &name).map(|(index, way)| (index, way.clone()));
            if let Some(way) = way {
                return through::carry(&self, &front, way, &from, stream, read, &watch).await;
            }
            begun = read;
        }
        let Some(config) = config else { return };
        let handshake = tokio_rustls::TlsAcceptor::from(config).accept(Begun::new(begun, stream));
        match watch.bound(Box::pin(handshake)).await {
            Ok(Ok(stream)) if stream.get_ref().1.alpn_protocol() == Some(b"h2") => {
                h2::serve(self, stream, front, from).await;
            }
            Ok(Ok(stream)) => self.speak(front, stream, from, watch).await,
            Ok(Err(_)) | Err(Late) => from.tally.note_malformed(),
        }
    }

    async fn speak<S>(self: Rc<Self>, front: Rc<str>, stream: S, from: From, watch: Rc<Watch>)
    where
        S: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin + 'static,
    {
        let session = Session::new(self.clone(), stream, front.clone(), from.clone(), watch);
        // A client that knows already what is spoken here begins with HTTP/2 at once (RFC 9113, 3.3).
        if let Some((stream, begun)) = session.run().await {
            h2::serve(self, Begun::new(begun, stream), front, from).await;
        }
    }

    /// The route that a request takes.
    pub fn way_of(&self, front: &str, asked: &Asked) -> Option<(usize, Arc<Way>)> {
        let routing = self.shared.routing();
        routing.way_of(front, &asked.host, &asked.path).map(|(index, way)| (index, way.clone()))
    }

    /// Who is asked. A table that came meanwhile may have the route in another place, or not at all.
    pub fn choose(&self, front: &str, way: &Arc<Way>, index: usize, wish: &Wish) -> Option<Picked> {
        self.shared.routing().choose(front, way, index, wish)
    }

    /// What a route's hash is of.
    pub fn hash<'a>(
        &self,
        spec: &RouteSpec,
        from: &From,
        target: &'a [u8],
        value: impl Fn(Named) -> Option<&'a [u8]>,
    ) -> u64 {
        let RouteBalance::Hash(by) = &spec.balance else { return 0 };
        let named = match by {
            HashBy::Ip => None,
            HashBy::Path => Some(&target[..memchr::memchr(b'?', target).unwrap_or(target.len())]),
            HashBy::Header(name) => value(Named::Header(name)),
            HashBy::Cookie(name) => value(Named::Cookie(name)),
        };
        // Whoever says nothing of it is told apart by where they come from.
        match named {
            Some(named) => text_hash(named),
            None => {
                let chain = value(Named::Header("x-forwarded-for")).and_then(|chain| std::str::from_utf8(chain).ok());
                text_hash(super::rewrite::client(spec, from, chain).as_bytes())
            }
        }
    }

    /// Whether connections are to end.
    pub fn is_leaving(&self) -> bool {
        self.shared.is_leaving()
    }
}

// Half of the descriptors.
fn most_connections() -> usize {
    (descriptors() / 2).max(64)
}

// Counts a connection while it is open.
struct Open(Arc<Shared>);

impl Open {
    fn count(shared: &Arc<Shared>) -> Self {
        shared.connections.fetch_add(1, Ordering::SeqCst);
        Open(shared.clone())
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.0.connections.fetch_sub(1, Ordering::SeqCst);
    }
}

/// Whither a request wants, as routes are compared with.
pub fn asked<'a>(host: &'a [u8], target: &'a [u8]) -> Result<Asked<'a>, Bad> {
    let path = &target[..memchr::memchr2(b'?', b'#', target).unwrap_or(target.len())];
    let path = std::str::from_utf8(path).map_err(|_| Bad { status: 400, why: "the path is no text" })?;
    let path = plain_path(path).map_err(|why| Bad { status: 400, why })?;
    Ok(Asked { host: plain_host(host), path })
}

/// The status and the address of a redirect.
pub fn redirected(to: &str, method: &[u8], host: &[u8], target: &[u8]) -> (u16, String) {
    // Old clients turn a POST into a GET at 301, not at 308 (RFC 9110, 15.4.9).
    let status = if matches!(method, b"GET" | b"HEAD") { 301 } else { 308 };
    let target = String::from_utf8_lossy(target);
    let base = match to {
        "https" => format!("https://{}", plain_host(host)),
        to => to.trim_end_matches('/').to_owned(),
    };
    (status, format!("{base}{}", if target.is_empty() { "/" } else { &*target }))
}
