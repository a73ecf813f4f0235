//! The agent's side of the connection: finds whoever leads, does what it asks, tells what it sees.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::mpsc;

use super::call::Caller;
use super::door::{CertifyAnswer, CertifyAsk};
use super::identity::Identity;
use super::link::{self, Reader};
use super::protocol::{Ask, Frame, Hello};
use super::up::Waiting;
use super::work::Worker;
use super::{authority, tls};
use crate::model::clock::Clock;
use crate::model::stats::Measured;
use crate::model::{Error, Kind, Result};
use crate::network::catalog::Portion;

/// The wait before the next daemon is tried: while one may answer in a moment, and at the longest.
const AGAIN: (Duration, Duration) = (Duration::from_millis(200), Duration::from_secs(3));
/// The wait before the certificate is asked for anew where that failed.
const RENEW: Duration = Duration::from_secs(3600);
/// Whoever leads with a lower number than was seen is believed once the higher one was not heard of for this long, many
/// times what a lead lasts without a sign of life: a Swarm that is restored from a backup counts from an older number.
const OUTLIVED: Duration = Duration::from_secs(60);
const DAY: u64 = 86_400_000;
/// The variable that names the service which an agent is a task of.
pub const SERVICE: &str = "NEAP_AGENT_SERVICE";

/// Whom to call, and as whom.
pub struct Site {
    /// What is shown.
    pub caller: Caller,
    /// Where daemons are reached, the most likely first.
    pub daemons: Vec<String>,
    /// Where the daemon that this is part of is reached.
    pub daemon: Option<String>,
    /// The service of the Swarm that this is a task of.
    pub service: Option<String>,
    /// The highest number of a lead that was heard of: one with a lower number does not lead any more.
    pub term: u64,
    /// When that was heard last.
    pub heard: Instant,
}

/// Shared between the connection and whoever keeps it up to date.
pub type Shared = Arc<Mutex<Site>>;

fn site(shared: &Shared) -> std::sync::MutexGuard<'_, Site> {
    shared.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Says where daemons are reached.
pub fn set_daemons(shared: &Shared, daemons: Vec<String>) {
    site(shared).daemons = daemons;
}

/// The agent of a host: connects, and begins again when the connection is lost. Ends only where what it has of its own
/// cannot be used.
pub async fn agent(
    folder: &std::path::Path,
    identity: Identity,
    worker: Arc<Worker>,
    clock: Arc<dyn Clock>,
    mut connected: impl FnMut(&str),
) -> Result<()> {
    let config = tls::agent(&identity.authority, Some(&identity.issued()))?;
    let shared = Arc::new(Mutex::new(Site {
        caller: Caller { config, headers: Vec::new() },
        daemons: identity.daemons.clone(),
        daemon: None,
        service: std::env::var(SERVICE).ok().filter(|name| !name.is_empty()),
        term: identity.term,
        heard: Instant::now(),
    }));
    let identity = Mutex::new(identity);
    loop {
        let serve = follow(&worker, &shared, |at| {
            connected(at);
            let site = site(&shared);
            let mut identity = identity.lock().unwrap_or_else(PoisonError::into_inner);
            if (identity.term, &identity.daemons) != (site.term, &site.daemons) {
                (identity.term, identity.daemons) = (site.term, site.daemons.clone());
                if let Err(error) = identity.save(folder) {
                    tracing::warn!(%error, "where daemons are cannot be kept");
                }
            }
        });
        let renewed = async {
            loop {
                let certified_at = identity.lock().unwrap_or_else(PoisonError::into_inner).certified_at;
                tokio::time::sleep(due(certified_at, clock.wall().0)).await;
                match renew(folder, &identity, &shared, &*clock).await {
                    Ok(()) => return,
                    Err(error) => {
                        tracing::warn!(%error, "the agent's certificate cannot be made anew yet; it is tried again");
                        tokio::time::sleep(RENEW).await;
                    }
                }
            }
        };
        // The next connection shows the new certificate.
        tokio::select! {
            () = serve => {}
            () = renewed => {}
        }
    }
}

// How long a certificate has until it is to be made anew. One that was given in the future was given by a clock that was wrong,
// and so is counted by.
fn due(certified_at: u64, now: u64) -> Duration {
    let term = u64::try_from(authority::RENEW_DAYS).unwrap_or_default() * DAY;
    if certified_at > now + DAY {
        return Duration::ZERO;
    }
    Duration::from_millis((certified_at + term).saturating_sub(now))
}

async fn renew(folder: &std::path::Path, identity: &Mutex<Identity>, shared: &Shared, clock: &dyn Clock) -> Result<()> {
    let (caller, daemons) = {
        let site = site(shared);
        (site.caller.clone(), site.daemons.clone())
    };
    let known = || identity.lock().unwrap_or_else(PoisonError::into_inner);
    let ask = {
        let identity = known();
        let key = authority::public_key(&identity.key)?;
        CertifyAsk { secret: String::new(), node: identity.node.clone(), key }
    };
    let mut last = Error::new(Kind::Unavailable, "cluster", "no daemon is known");
    for address in &daemons {
        match caller.post::<CertifyAnswer>(address, "/v1/join/agent", &ask).await {
            Ok(answer) => {
                let mut identity = known();
                identity.certificate = answer.certificate;
                identity.certified_at = clock.wall().0;
                identity.save(folder)?;
                site(shared).caller.config = tls::agent(&identity.authority, Some(&identity.issued()))?;
                tracing::info!("the agent's certificate was made anew");
                return Ok(());
            }
            Err(error) => last = error,
        }
    }
    Err(last)
}

/// Connects to whoever leads and serves it; when that ends, to whoever leads then. `connected` hears of each connection.
/// Never ends: what a daemon refuses now it may take later.
pub async fn follow(worker: &Arc<Worker>, shared: &Shared, mut connected: impl FnMut(&str)) {
    let mut wait = AGAIN.0;
    let mut told = false;
    loop {
        let (caller, daemons) = {
            let site = site(shared);
            (site.caller.clone(), site.daemons.clone())
        };
        let mut why = Error::new(Kind::Unavailable, "cluster", "no daemon is known yet");
        for address in &daemons {
            match caller.upgrade(address).await {
                Ok((at, stream)) => {
                    let began = tokio::time::Instant::now();
                    why = serve(worker, shared, stream, || connected(&at)).await;
                    worker.up.disconnect();
                    if began.elapsed() > AGAIN.1 {
                        (wait, told) = (AGAIN.0, false);
                        site(shared).heard = Instant::now();
                    }
                    break;
                }
                // What one daemon says may be a matter of that one.
                Err(error) => why = error,
            }
        }
        if !told {
            tracing::warn!(%why, "this host's agent is not connected; it tries again");
            told = true;
        }
        tokio::time::sleep(wait).await;
        wait = (wait * 2).min(AGAIN.1);
    }
}

// One connection, to its end.
async fn serve(
    worker: &Arc<Worker>,
    shared: &Shared,
    stream: impl AsyncRead + AsyncWrite + Send + 'static,
    connected: impl FnOnce(),
) -> Error {
    let (read, write) = tokio::io::split(stream);
    let frames = link::writer(write);
    let (daemon, service) = {
        let site = site(shared);
        (site.daemon.clone(), site.service.clone())
    };
    let (version, registry) = (env!("CARGO_PKG_VERSION").into(), worker.says_keeps());
    let hello = Hello { version, daemon, service, registry };
    let gone = || Error::new(Kind::Unavailable, "connection to the daemon", "broke").retry(true);
    if frames.send(Frame::Hello(hello)).await.is_err() {
        return gone();
    }
    let mut reader = Reader(read);
    let welcome = match reader.next().await {
        Ok(Frame::Welcome(welcome)) => welcome,
        Ok(_) => return Error::invalid("daemon", "does not greet"),
        Err(error) => return error,
    };
    {
        let mut site = site(shared);
        if welcome.term < site.term && site.heard.elapsed() < OUTLIVED {
            let message = format!("leads with the number {}, and {} has been seen", welcome.term, site.term);
            return Error::new(Kind::Conflict, "daemon", message).retry(true);
        }
        if welcome.term < site.term {
            tracing::warn!(
                term = welcome.term,
                "this lead has a lower number than was seen: a Swarm restored from a backup"
            );
        }
        site.heard = Instant::now();
        (site.term, site.daemons) = (welcome.term, welcome.daemons.clone());
    }
    welcome.registry.iter().for_each(|keeper| worker.told_registry(keeper.clone()));
    tracing::info!(cluster = welcome.cluster, term = welcome.term, "connected to the daemon that leads");
    connected();
    let mut seen = worker.watch(&welcome);
    worker.begins();
    let mut words = worker.up.connect();
    let mut containers = worker.containers();
    let mut measured = worker.meter.now();
    measured.mark_changed();
    let (mut waiting, mut gathered) = (Waiting::default(), Portion::default());
    // Read on a task of its own: a frame is not left half read for something else.
    let (inbox, mut asked) = mpsc::channel(64);
    // Nothing of it lives on when the connection is given up.
    let mut tasks = tokio::task::JoinSet::new();
    tasks.spawn(async move {
        loop {
            let next = reader.next().await;
            let over = next.is_err();
            if inbox.send(next).await.is_err() || over {
                return;
            }
        }
    });
    loop {
        while tasks.try_join_next().is_some() {}
        let told = tokio::select! {
            frame = asked.recv() => match frame {
                Some(Ok(Frame::Ask { id, ask })) => {
                    let (worker, frames) = (worker.clone(), frames.clone());
                    tasks.spawn(async move {
                        let result = match serde_json::from_value::<Ask>(ask) {
                            Ok(ask) => worker.serve(ask).await,
                            Err(error) => {
                                let message = "does not know what it is asked; it is of another version";
                                Err(Error::new(Kind::Unsupported, "agent", message).cause(error))
                            }
                        };
                        let _ = frames.send(Frame::Answer { id, result }).await;
                    });
                    continue;
                }
                Some(Ok(Frame::Daemons(daemons))) => {
                    site(shared).daemons = daemons;
                    continue;
                }
                Some(Ok(Frame::Registry(keeper))) => {
                    worker.told_registry(keeper);
                    continue;
                }
                Some(Ok(Frame::Catalog(portion))) => {
                    if let Some(whole) = gathered.gather(portion) {
                        let at = whole.at;
                        worker.catalog.take(whole);
                        worker.follows(at);
                    }
                    continue;
                }
                Some(Ok(Frame::Reply { id, result })) => {
                    waiting.answer(id, result);
                    continue;
                }
                Some(Ok(_)) => continue,
                Some(Err(error)) => return error,
                None => return gone(),
            },
            observed = seen.recv() => match observed {
                Some(observed) => Frame::Seen(observed),
                None => return gone(),
            },
            Some(word) = words.recv() => match waiting.say(word) {
                Some(frame) => frame,
                None => continue,
            },
            changed = containers.next() => Frame::Containers(changed),
            Ok(()) = measured.changed() => match measured.borrow_and_update().clone() {
                Some((at, measured)) => {
                    let age = u64::try_from(at.elapsed().as_millis()).unwrap_or(u64::MAX);
                    Frame::Measured { age, measured: Measured::clone(&measured) }
                }
                None => continue,
            },
            () = worker.restarted.notified() => Frame::Balancer,
        };
        if frames.send(told).await.is_err() {
            return gone();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_certificate_is_made_anew_in_time_whatever_the_clock_said() {
        let now = 1_000 * DAY;
        let whole = Duration::from_millis(u64::try_from(authority::RENEW_DAYS).unwrap() * DAY);
        assert_eq!(due(now, now), whole);
        assert_eq!(due(now - whole.as_millis() as u64, now), Duration::ZERO);
        assert_eq!(due(0, now), Duration::ZERO);
        assert_eq!(due(now + 400 * DAY, now), Duration::ZERO, "the clock was ahead when it was given");
    }
}
