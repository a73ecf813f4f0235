//! Blobs at the other place: sent once, however many wait for it, fetched where their files are not here, and compared.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::Bytes;
use futures_util::stream::BoxStream;
use tokio::sync::watch;

use super::store::{Down, Kept};
use super::{AGAIN, FAILING, Replica, Trouble, lock, unanswered};
use crate::model::fault;
use crate::model::id::random_uuid;
use crate::registry::ImageRegistry;
use crate::registry::digest::Digest;
use crate::registry::disk::PARTS;
use crate::registry::refused::{Code, Refused};
use crate::registry::upload::aside;

/// What names of blobs begin with.
pub const BLOBS: &str = "blobs/";
/// How often it is tried to send one.
const ATTEMPTS: u32 = 5;
/// How old something is there that belongs to nothing before it goes, and how much of it goes at a time.
const STRAY: Duration = Duration::from_secs(24 * 60 * 60);
const STRAYS: usize = 10_000;
/// Digits by which a blob that is sent differs from the same one that was sent before: what removes the one does not meet the other.
const MARK: usize = 12;

/// What a blob is called there.
pub fn name(digest: &Digest, object: &str) -> String {
    let hex = digest.hex();
    format!("{BLOBS}{}/{}/{hex}.{object}", digest.algorithm().as_str(), &hex[..2])
}

/// Why a blob is not there.
enum Unsent {
    /// It does not answer.
    Down(Down),
    /// It cannot be read here.
    Here(Refused),
}

impl Replica {
    /// A blob that is there by that name, from a byte on.
    pub(in crate::registry) async fn open(
        &self,
        digest: &Digest,
        object: &str,
        from: u64,
    ) -> Result<Option<BoxStream<'static, Result<Bytes, Down>>>, Down> {
        self.store.read(&name(digest, object), from).await
    }
}

impl ImageRegistry {
    /// Whether a blob is at the other place.
    pub(in crate::registry) fn is_elsewhere(&self, digest: &Digest) -> bool {
        self.replica().is_some() && self.index.is_replicated(digest).unwrap_or(false)
    }

    /// Brings a blob there that has just come, beside all else.
    pub(in crate::registry) fn send_soon(self: &Arc<Self>, digest: &Digest) {
        let Some(replica) = self.replica() else { return };
        let (own, digest) = (self.clone(), digest.clone());
        tokio::spawn(async move {
            // Whoever names it waits for it, and is told.
            if let Err(refused) = own.send(&replica, &digest).await {
                tracing::debug!(%digest, why = refused.why, "a blob is not in the bucket yet");
            }
        });
    }

    /// Brings a blob there, unless it is there; once, for all who want it.
    pub(super) async fn send(self: &Arc<Self>, replica: &Arc<Replica>, digest: &Digest) -> Result<(), Refused> {
        if self.index.is_replicated(digest)? {
            return Ok(());
        }
        let mut sent = {
            let mut sending = lock(&replica.sending);
            match sending.get(digest) {
                Some(sent) => sent.clone(),
                None => {
                    let (told, sent) = watch::channel(None);
                    sending.insert(digest.clone(), sent.clone());
                    let (own, turn) = (self.clone(), Turn(replica.clone(), digest.clone()));
                    // To its end, whoever waits for it.
                    tokio::spawn(async move {
                        let done = own.send_all(&turn.0, &turn.1).await;
                        drop(turn);
                        told.send_replace(Some(done));
                    });
                    sent
                }
            }
        };
        let done = match sent.wait_for(Option::is_some).await {
            Ok(sent) => sent.clone(),
            Err(_) => None,
        };
        done.unwrap_or_else(|| Err(unanswered("a blob did not get there")))
    }

    async fn send_all(self: &Arc<Self>, replica: &Arc<Replica>, digest: &Digest) -> Result<(), Refused> {
        let _turn = replica.turns.acquire().await;
        let mut wait = AGAIN;
        for left in (0..ATTEMPTS).rev() {
            match self.send_once(replica, digest).await {
                Ok(()) => break,
                Err(Unsent::Here(refused)) => return Err(refused),
                Err(Unsent::Down(down)) => {
                    let (since, _) = replica.heard(Some(&down.0));
                    if left == 0 || since >= FAILING {
                        return Err(unanswered(&down.0));
                    }
                    tokio::time::sleep(wait).await;
                }
            }
            wait *= 2;
        }
        Ok(())
    }

    async fn send_once(self: &Arc<Self>, replica: &Arc<Replica>, digest: &Digest) -> Result<(), Unsent> {
        let unreadable = |error: std::io::Error| match error.kind() {
            std::io::ErrorKind::NotFound => {
                let why = format!("blob {digest} is not there");
                Unsent::Here(Refused::new(Code::ManifestBlobUnknown, why).about(digest.as_str()))
            }
            _ => Unsent::Here(Refused::io("read a blob", &error)),
        };
        let file = self.disk.read(digest).map_err(unreadable)?;
        let size = file.metadata().map_err(unreadable)?.len();
        // What is damaged here is not what is to be there.
        let (own, of) = (self.clone(), digest.clone());
        if !aside(move || own.is_whole(&of, size)).await.map_err(Unsent::Here)? {
            let why = format!("blob {digest} is damaged on this host's disk");
            return Err(Unsent::Here(Refused::new(Code::ManifestBlobUnknown, why).about(digest.as_str())));
        }
        let object: String = random_uuid(&*self.clock).chars().filter(|char| *char != '-').take(MARK).collect();
        fault::point("registry.before-blob-there");
        replica.store.put(&name(digest, &object), Arc::new(file), size).await.map_err(Unsent::Down)?;
        replica.sent.fetch_add(size, Ordering::Relaxed);
        self.index.replicated(digest, &object).await.map_err(Unsent::Here)
    }

    /// Compares what is there with what is thought to be: what is missing is brought again where it is here, what belongs to nothing goes. The
    /// blobs that are neither there nor here.
    pub async fn compare(self: &Arc<Self>) -> Result<Vec<Digest>, Refused> {
        let Some(replica) = self.replica() else { return Ok(Vec::new()) };
        let down = |down: Down| unanswered(&down.0);
        let (mut lost, mut strays, mut fault) = (Vec::new(), Vec::new(), None);
        for part in 0..PARTS {
            if !replica.is_whole() {
                return Err(unanswered("it is not this host's just now"));
            }
            let (algorithm, byte) = (if part < PARTS / 2 { "sha256" } else { "sha512" }, part % (PARTS / 2));
            // What comes meanwhile is not missing.
            let (own, first) = (self.clone(), format!("{algorithm}:{byte:02x}"));
            let known = aside(move || own.index.replicas_of(&first)).await?;
            let listed = replica.store.list(&format!("{BLOBS}{algorithm}/{byte:02x}/")).await.map_err(down)?;
            let there: HashMap<&str, &Kept> = listed.iter().map(|kept| (kept.name.as_str(), kept)).collect();
            for (digest, size, object) in known {
                let name = name(&digest, &object);
                if there.get(name.as_str()).is_some_and(|kept| kept.size == size) {
                    continue;
                }
                // It may have gone since, or been sent anew.
                if replica.store.size(&name).await.map_err(down)? == Some(size)
                    || !self.index.lost_replica(&digest, &object).await?
                {
                    continue;
                }
                tracing::error!(%digest, "a blob is missing in the registry's bucket");
                match self.disk.is_there(&digest) {
                    // The others are looked at all the same.
                    true => fault = self.send(&replica, &digest).await.err().or(fault),
                    false => lost.push(digest),
                }
            }
            let old = |kept: &&Kept| kept.at + (STRAY.as_millis() as u64) < self.now();
            strays.extend(listed.iter().filter(old).map(|kept| kept.name.clone()).take(STRAYS - strays.len()));
            let own = self.clone();
            strays = aside(move || own.index.not_replicas(strays)).await?;
        }
        // Also what got lost on the way when it was to be brought there.
        if let Err(Trouble::Down(why) | Trouble::Refused(why)) = self.sweep(&replica).await {
            fault = fault.or(Some(unanswered(&why)));
        }
        if !strays.is_empty() {
            // Whoever has taken it over knows better what is a stray.
            self.prove(&replica).await.map_err(|trouble| match trouble {
                Trouble::Down(why) | Trouble::Refused(why) => unanswered(&why),
            })?;
            for name in &strays {
                replica.store.remove(name).await.map_err(down)?;
            }
            tracing::info!(count = strays.len(), "what belonged to nothing is gone from the registry's bucket");
        }
        fault.map_or(Ok(lost), Err)
    }
}

// Whoever sends a blob, for all who want it; over, whatever comes of it.
struct Turn(Arc<Replica>, Digest);

impl Drop for Turn {
    fn drop(&mut self) {
        lock(&self.0.sending).remove(&self.1);
    }
}
