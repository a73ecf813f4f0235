//! Clients that come through a door: a port of another host of the cluster, which passes their bytes on to the registry. The door says who it is
//! before the first of them, in one line within TLS.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio::sync::watch;

use super::server::{MAX_CONNECTIONS, Tls, speak};
use super::{Access, Gate, Oci, Rate, Tokens, Users};
use crate::api::server::accept_each;
use crate::model::id::sha256_hex;
use crate::model::{Error, Result};
use crate::registry::ImageRegistry;

/// The first word of a door.
const WORD: &str = "neap-door-1";
/// How the registry answers a door that it knows.
pub const WELCOME: u8 = b'+';
/// How long a door has to say who it is.
const PATIENCE: Duration = Duration::from_secs(5);
/// How often it is told that one was turned away.
const TELL: Duration = Duration::from_secs(60);
/// Longest line with which a door begins, in bytes.
const LONGEST: usize = 256;

/// What a door says of the client that it brings.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Brought {
    /// The door is on its host's own loopback: whoever is there pulls without a token.
    pub is_own: bool,
    /// The client speaks TLS with the door.
    pub is_secure: bool,
}

/// The line with which a door begins.
pub fn line(secret: &str, brought: Brought) -> String {
    let word = |is: bool, yes: &'static str, no: &'static str| if is { yes } else { no };
    let (place, scheme) = (word(brought.is_own, "own", "far"), word(brought.is_secure, "https", "http"));
    format!("{WORD} {secret} {place} {scheme}\n")
}

fn read_line(line: &str, is_known: impl Fn(&str) -> bool) -> Option<Brought> {
    let words: Vec<&str> = line.split(' ').collect();
    let [word, secret, place, scheme] = words[..] else { return None };
    let is_own = match place {
        "own" => true,
        "far" => false,
        _ => return None,
    };
    let is_secure = match scheme {
        "https" => true,
        "http" => false,
        _ => return None,
    };
    (word == WORD && is_known(secret)).then_some(Brought { is_own, is_secure })
}

/// The registry, for those who come through doors.
pub struct Doors {
    /// It.
    pub registry: Arc<ImageRegistry>,
    /// Who knows tokens.
    pub tokens: Arc<dyn Tokens>,
    /// Users with passwords, where there are some.
    pub users: Option<Arc<Users>>,
    /// What is asked of clients on a host's own loopback; of all others it is a token.
    pub access: Access,
    /// What doors know: the newest secret, and those before.
    pub secrets: watch::Receiver<Vec<String>>,
    /// How much one host may ask, where that is said.
    pub rate: Option<Arc<Rate>>,
    /// When it was last told that one was turned away.
    pub told: Mutex<Option<Instant>>,
}

impl Doors {
    // Comparing takes the same time whatever was sent.
    fn is_known(&self, secret: &str) -> bool {
        let hash = sha256_hex(secret.as_bytes());
        self.secrets.borrow().iter().any(|known| sha256_hex(known.as_bytes()) == hash)
    }

    fn turned_away(&self, from: SocketAddr) {
        let mut told = self.told.lock().unwrap_or_else(PoisonError::into_inner);
        if told.is_none_or(|at| at.elapsed() >= TELL) {
            *told = Some(Instant::now());
            tracing::warn!(%from, "a door to the image registry is not known, and was turned away");
        }
    }

    /// As those see it who are brought so.
    pub fn oci(&self, brought: Brought) -> Arc<Oci> {
        let access = if brought.is_own { self.access } else { Access::Token };
        let gate =
            Gate { access, tokens: self.tokens.clone(), users: self.users.clone(), is_secure: brought.is_secure };
        Arc::new(Oci { registry: self.registry.clone(), gate, rate: self.rate.clone() })
    }
}

/// Serves those who come through doors at `address` until the process ends; the address with its port.
pub async fn listen(address: SocketAddr, tls: Tls, doors: Arc<Doors>) -> Result<SocketAddr> {
    let failed = |error: std::io::Error| Error::io(format!("image registry {address}"), "listen", &error);
    let listener = TcpListener::bind(address).await.map_err(failed)?;
    let address = listener.local_addr().map_err(failed)?;
    tokio::spawn(accept_each(listener, MAX_CONNECTIONS, move |stream, from| {
        let (doors, config) = (doors.clone(), tls.borrow().clone());
        async move {
            let entered = async {
                let mut stream = tokio_rustls::TlsAcceptor::from(config).accept(stream).await.ok()?;
                let line = first_line(&mut stream).await?;
                let Some(brought) = read_line(&line, |secret| doors.is_known(secret)) else {
                    doors.turned_away(from);
                    return None;
                };
                stream.write_u8(WELCOME).await.ok()?;
                Some((stream, brought))
            };
            if let Ok(Some((stream, brought))) = tokio::time::timeout(PATIENCE, entered).await {
                speak(stream, doors.oci(brought), Some(from.ip())).await;
            }
        }
    }));
    Ok(address)
}

// Byte by byte: what follows is not ours to read.
async fn first_line(stream: &mut (impl AsyncRead + Unpin)) -> Option<String> {
    let mut line = Vec::new();
    while line.len() < LONGEST {
        match stream.read_u8().await.ok()? {
            b'\n' => return String::from_utf8(line).ok(),
            byte => line.push(byte),
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn doors_say_who_they_are() {
        let known = |secret: &str| secret == "abc";
        for brought in [
            Brought { is_own: true, is_secure: false },
            Brought { is_own: false, is_secure: true },
            Brought { is_own: false, is_secure: false },
        ] {
            let said = line("abc", brought);
            assert!(said.len() < LONGEST - 100);
            assert_eq!(read_line(said.trim_end(), known), Some(brought));
            assert_eq!(read_line(line("abd", brought).trim_end(), known), None);
        }
        for bad in ["", "GET / HTTP/1.1", "neap-door-1 abc own", "neap-door-1 abc own ftp", "neap-door-1 abc in http"] {
            assert_eq!(read_line(bad, known), None, "{bad}");
        }
    }
}
