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
use crate::registry::ImageRegistry;
use crate::registry::digest::Digest;
use crate::registry::refused::Refused;

/// What names of blobs begin with.
pub const BLOBS: &str = "blobs/";
/// How often it is tried to send one.
const ATTEMPTS: u32 = 5;
/// How large one is at least before it is asked whether it is there already, in bytes.
const ASKED: u64 = 1 << 20;
/// How old something is there that belongs to nothing before it goes.
const STRAY: Duration = Duration::from_secs(24 * 60 * 60);

/// What one is called there.
pub fn name(digest: &Digest) -> String {
    let hex = digest.hex();
    format!("{BLOBS}{}/{}/{hex}", digest.algorithm().as_str(), &hex[..2])
}

impl Replica {
    /// A blob that is there, from a byte on.
    pub(in crate::registry) async fn open(
        &self,
        digest: &Digest,
        from: u64,
    ) -> Result<Option<BoxStream<'static, Result<Bytes, Down>>>, Down> {
        self.store.read(&name(digest), from).await
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
        match done {
            Some(Ok(())) => Ok(()),
            Some(Err(Down(why))) => Err(unanswered(&why)),
            None => Err(unanswered("a blob did not get there")),
        }
    }

    async fn send_all(self: &Arc<Self>, replica: &Arc<Replica>, digest: &Digest) -> Result<(), Down> {
        let _turn = replica.turns.acquire().await;
        let mut wait = AGAIN;
        for left in (0..ATTEMPTS).rev() {
            match self.send_once(replica, digest).await {
                Ok(()) => return Ok(()),
                Err(down) => {
                    let (since, _) = replica.heard(Some(&down.0));
                    if left == 0 || since >= FAILING {
                        return Err(down);
                    }
                    tokio::time::sleep(wait).await;
                }
            }
            wait *= 2;
        }
        Ok(())
    }

    async fn send_once(self: &Arc<Self>, replica: &Arc<Replica>, digest: &Digest) -> Result<(), Down> {
        let read = |error: std::io::Error| Down(format!("blob {digest} cannot be read: {error}"));
        let file = self.disk.read(digest).map_err(read)?;
        let size = file.metadata().map_err(read)?.len();
        let name = name(digest);
        let is_there = size >= ASKED && replica.store.size(&name).await? == Some(size);
        if !is_there {
            fault::point("registry.before-blob-there");
            replica.store.put(&name, Arc::new(file), size).await?;
            replica.sent.fetch_add(size, Ordering::Relaxed);
        }
        self.index.replicated(digest).await.map_err(|refused| Down(refused.why))
    }

    /// Compares what is there with what is thought to be: what is missing is brought again where it is here, what belongs to nothing goes. The
    /// blobs that are neither there nor here.
    pub async fn compare(self: &Arc<Self>) -> Result<Vec<Digest>, Refused> {
        let Some(replica) = self.replica() else { return Ok(Vec::new()) };
        let down = |down: Down| unanswered(&down.0);
        let (mut lost, now) = (Vec::new(), self.now());
        for part in 0..512 {
            let (algorithm, byte) = (if part < 256 { "sha256" } else { "sha512" }, part % 256);
            let prefix = format!("{BLOBS}{algorithm}/{byte:02x}/");
            let there: HashMap<String, Kept> = replica
                .store
                .list(&prefix)
                .await
                .map_err(down)?
                .into_iter()
                .map(|kept| (kept.name.clone(), kept))
                .collect();
            let (own, first) = (self.clone(), format!("{algorithm}:{byte:02x}"));
            let known = crate::registry::upload::aside(move || own.index.replicas_of(&first)).await?;
            for (digest, size) in &known {
                if there.get(&name(digest)).is_some_and(|kept| kept.size == *size) {
                    continue;
                }
                tracing::error!(%digest, "a blob is missing in the registry's bucket");
                self.index.lost_replica(digest).await?;
                match self.disk.is_there(digest) {
                    true => self.send(&replica, digest).await?,
                    false => lost.push(digest.clone()),
                }
            }
            let names: std::collections::HashSet<String> = known.iter().map(|(digest, _)| name(digest)).collect();
            for (kept, _) in there.iter().filter(|(kept, _)| !names.contains(*kept)) {
                let old = there.get(kept).is_some_and(|kept| kept.at + (STRAY.as_millis() as u64) < now);
                let hex = kept.rsplit('/').next().unwrap_or_default();
                if let (true, Ok(digest)) = (old, format!("{algorithm}:{hex}").parse::<Digest>()) {
                    self.remove_there(&replica, &digest).await.map_err(told)?;
                }
            }
        }
        Ok(lost)
    }
}

fn told(trouble: Trouble) -> Refused {
    match trouble {
        Trouble::Down(why) | Trouble::Refused(why) => unanswered(&why),
    }
}

// Whoever sends a blob, for all who want it; over, whatever comes of it.
struct Turn(Arc<Replica>, Digest);

impl Drop for Turn {
    fn drop(&mut self) {
        lock(&self.0.sending).remove(&self.1);
    }
}
