//! Listens for questions: threads of their own for datagrams, many at a time, and tasks for connections.

use std::io::IoSlice;
use std::net::{SocketAddr, UdpSocket};
use std::os::fd::{AsRawFd, OwnedFd};
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Duration;

use nix::sys::socket::{self, AddressFamily, MsgFlags, MultiHeaders, SockFlag, SockType, SockaddrStorage, sockopt};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;

use super::answer::{Answerer, FEW, KEPT, Outcome};
use super::recursor::Recursor;
use super::wire::{self, Code};
use super::zone::Zone;
use crate::model::{Error, Result};
use crate::network::catalog::Catalog;

/// Questions that are taken at once.
const BATCH: usize = 32;
/// The largest question.
const QUESTION: usize = 1500;
/// Connections at once.
const CONNECTIONS: usize = 256;
/// How long a connection may be silent, and how long an answer may take to be read.
const SILENT: Duration = Duration::from_secs(10);

/// What a server is made of.
#[derive(Clone)]
pub struct Server {
    /// What is known.
    pub catalog: Arc<Catalog>,
    /// How it is named.
    pub zone: Arc<Zone>,
    /// Who is asked about names of others.
    pub recursor: Option<Arc<Recursor>>,
    /// What orders of records begin with.
    pub seed: u64,
}

impl Server {
    /// Listens at `address`, with so many threads for datagrams. Call inside a tokio runtime; it goes on until the process ends.
    pub fn listen(self, address: SocketAddr, threads: usize) -> Result<SocketAddr> {
        let subject = format!("DNS {address}");
        let failed = |error: std::io::Error| Error::io(subject.clone(), "listen", &error);
        // Bound first, and by one process alone: sockets for datagrams share their port with whoever asks for it.
        let listener = listener(address).map_err(failed)?;
        listener.set_nonblocking(true).map_err(failed)?;
        let address = listener.local_addr().map_err(failed)?;
        let sockets: Vec<UdpSocket> =
            (0..threads.max(1)).map(|_| bind(address)).collect::<std::io::Result<_>>().map_err(failed)?;
        let listener = TcpListener::from_std(listener).map_err(failed)?;
        for (number, socket) in sockets.into_iter().enumerate() {
            let server = self.clone();
            let runtime = tokio::runtime::Handle::current();
            let serve = move || server.datagrams(&Arc::new(socket), number as u64, &runtime);
            std::thread::Builder::new().name(format!("dns-{number}")).spawn(serve).map_err(failed)?;
        }
        tokio::spawn(self.connections(listener));
        Ok(address)
    }

    fn answerer(&self, most: usize, number: u64) -> Answerer {
        let seed = crate::model::clock::mix(self.seed.wrapping_add(number));
        Answerer::new(self.catalog.clone(), self.zone.clone(), self.recursor.is_some(), most, seed)
    }

    fn datagrams(&self, socket: &Arc<UdpSocket>, number: u64, runtime: &tokio::runtime::Handle) {
        let mut answerer = self.answerer(KEPT, number);
        let mut questions = vec![[0_u8; QUESTION]; BATCH];
        let mut answers: Vec<Vec<u8>> = (0..BATCH).map(|_| Vec::with_capacity(QUESTION)).collect();
        let mut received = MultiHeaders::<SockaddrStorage>::preallocate(BATCH, None);
        let mut sent = MultiHeaders::<SockaddrStorage>::preallocate(BATCH, None);
        loop {
            let mut froms: [Option<SockaddrStorage>; BATCH] = [None; BATCH];
            let mut sizes = [0; BATCH];
            let mut count = 0;
            {
                let mut slices: Vec<[std::io::IoSliceMut; 1]> =
                    questions.iter_mut().map(|question| [std::io::IoSliceMut::new(question)]).collect();
                let got = socket::recvmmsg(
                    socket.as_raw_fd(),
                    &mut received,
                    slices.iter_mut(),
                    MsgFlags::MSG_WAITFORONE,
                    None,
                );
                let Ok(got) = got else {
                    // Nothing but an interruption is known to happen; whatever it is, it is not to keep a core busy.
                    std::thread::sleep(Duration::from_millis(1));
                    continue;
                };
                for message in got {
                    (froms[count], sizes[count]) = (message.address, message.bytes);
                    count += 1;
                }
            }
            let mut ready: Vec<(usize, Option<SockaddrStorage>)> = Vec::with_capacity(count);
            for number in 0..count {
                let question = &questions[number][..sizes[number]];
                let out = &mut answers[number];
                // A fault of ours costs this question, and no other.
                let outcome = std::panic::catch_unwind(AssertUnwindSafe(|| answerer.answer(question, false, out)));
                let outcome = outcome.unwrap_or_else(|_| {
                    tracing::error!("a question could not be answered: a fault in Neap");
                    answerer = self.answerer(KEPT, number as u64);
                    Outcome::Ignored
                });
                match outcome {
                    Outcome::Answered => ready.push((number, froms[number])),
                    Outcome::Ignored => {}
                    Outcome::Elsewhere => self.elsewhere(question, froms[number], socket, runtime),
                }
            }
            if ready.is_empty() {
                continue;
            }
            // Whom one answer does not reach asks again; the others have theirs all the same.
            let mut rest = ready.as_slice();
            while !rest.is_empty() {
                let slices: Vec<[IoSlice; 1]> =
                    rest.iter().map(|(number, _)| [IoSlice::new(&answers[*number])]).collect();
                let froms: Vec<Option<SockaddrStorage>> = rest.iter().map(|(_, from)| *from).collect();
                let done = socket::sendmmsg(socket.as_raw_fd(), &mut sent, &slices, froms, [], MsgFlags::empty());
                let done = done.map_or(0, Iterator::count);
                rest = &rest[done.max(1)..];
            }
        }
    }

    fn elsewhere(
        &self,
        question: &[u8],
        from: Option<SockaddrStorage>,
        socket: &Arc<UdpSocket>,
        runtime: &tokio::runtime::Handle,
    ) {
        let Some(recursor) = self.recursor.clone() else { return };
        let Some(from) = from.and_then(|from| address(&from)) else { return };
        let (question, socket) = (question.to_vec(), socket.clone());
        runtime.spawn(async move {
            let answer = recursor.ask(&question, false).await;
            let _ = socket.send_to(&answer, from);
        });
    }

    async fn connections(self, listener: TcpListener) {
        let slots = Arc::new(Semaphore::new(CONNECTIONS));
        let mut number = 1 << 32;
        loop {
            let Ok(slot) = slots.clone().acquire_owned().await else { return };
            let Ok((stream, _)) = listener.accept().await else {
                tokio::time::sleep(Duration::from_millis(50)).await;
                continue;
            };
            number += 1;
            let (server, answerer) = (self.clone(), self.answerer(FEW, number));
            tokio::spawn(async move {
                // A client that breaks off is no event.
                let _ = server.connection(stream, answerer).await;
                drop(slot);
            });
        }
    }

    async fn connection(&self, mut stream: TcpStream, mut answerer: Answerer) -> std::io::Result<()> {
        let _ = stream.set_nodelay(true);
        let (mut question, mut answer, mut out) = (Vec::new(), Vec::new(), Vec::new());
        loop {
            let read = async {
                let size = usize::from(stream.read_u16().await?);
                question.resize(size, 0);
                stream.read_exact(&mut question).await
            };
            tokio::time::timeout(SILENT, read).await??;
            match answerer.answer(&question, true, &mut answer) {
                Outcome::Answered => {}
                Outcome::Ignored => return Ok(()),
                Outcome::Elsewhere => match &self.recursor {
                    Some(recursor) => answer = recursor.ask(&question, true).await,
                    None => answerer.refuse(
                        &question,
                        wire::read(&question).and_then(|read| read.ok()).as_ref(),
                        Code::Refused,
                        &mut answer,
                    ),
                },
            }
            let Ok(size) = u16::try_from(answer.len()) else { return Ok(()) };
            out.clear();
            out.extend(size.to_be_bytes());
            out.extend(&answer);
            tokio::time::timeout(SILENT, stream.write_all(&out)).await??;
        }
    }
}

// IPv6 alone, as the sockets for datagrams: whoever wants both names both.
fn listener(address: SocketAddr) -> std::io::Result<std::net::TcpListener> {
    let family = if address.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
    let socket: OwnedFd = socket::socket(family, SockType::Stream, SockFlag::SOCK_CLOEXEC, None)?;
    socket::setsockopt(&socket, sockopt::ReuseAddr, &true)?;
    if address.is_ipv6() {
        socket::setsockopt(&socket, sockopt::Ipv6V6Only, &true)?;
    }
    socket::bind(socket.as_raw_fd(), &SockaddrStorage::from(address))?;
    socket::listen(&socket, socket::Backlog::new(128).unwrap_or(socket::Backlog::MAXCONN))?;
    Ok(std::net::TcpListener::from(socket))
}

// A socket for datagrams that shares its port with the other threads' sockets.
fn bind(address: SocketAddr) -> std::io::Result<UdpSocket> {
    let family = if address.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
    let socket: OwnedFd = socket::socket(family, SockType::Datagram, SockFlag::SOCK_CLOEXEC, None)?;
    socket::setsockopt(&socket, sockopt::ReusePort, &true)?;
    if address.is_ipv6() {
        socket::setsockopt(&socket, sockopt::Ipv6V6Only, &true)?;
    }
    // A burst waits here while a thread has no turn; less will do where the kernel gives less.
    let _ = socket::setsockopt(&socket, sockopt::RcvBuf, &(4 << 20));
    socket::bind(socket.as_raw_fd(), &SockaddrStorage::from(address))?;
    Ok(UdpSocket::from(socket))
}

fn address(from: &SockaddrStorage) -> Option<SocketAddr> {
    match (from.as_sockaddr_in(), from.as_sockaddr_in6()) {
        (Some(from), _) => Some(SocketAddr::V4((*from).into())),
        (_, Some(from)) => Some(SocketAddr::V6((*from).into())),
        _ => None,
    }
}
