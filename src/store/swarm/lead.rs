//! Leadership: a lease in the head with a term. Whoever leads renews it with every commit, or with a beat between commits;
//! when it stands still, another daemon takes it over. Both are compare-and-sets of the head, so that at any moment one
//! daemon at most can write.

use std::sync::Arc;
use std::time::Duration;

use super::head::Leader;
use super::{LEASE, SwarmStore};
use crate::model::{Error, Kind, Result};

/// How often a leader that has nothing to commit gives a sign of life.
pub(super) const BEAT: Duration = Duration::from_secs(1);
/// How often the others look, though no event tells of a change.
const LOOK: Duration = Duration::from_millis(500);
/// How long a lead has to stand still before another takes it over: longer than the lease, which its holder counts from
/// before it was renewed.
const PATIENCE: Duration = LEASE.saturating_add(Duration::from_millis(500));

impl SwarmStore {
    /// Follows the head until this daemon leads. `handicap`: how much longer it waits than the daemon that is preferred.
    pub async fn lead(&self, me: &Leader, handicap: impl AsyncFn() -> Duration) -> Result<()> {
        // A head that was there before this daemon is given the same time as one that stops.
        loop {
            if let Err(error) = self.refresh().await {
                tracing::debug!(%error, "the store's head cannot be read for now");
            } else {
                let (free, still) = {
                    let inner = self.inner();
                    (inner.head.leader.is_none(), inner.seen.elapsed())
                };
                let wait = if free { Duration::ZERO } else { PATIENCE };
                if still >= wait && still >= wait + handicap().await {
                    match self.take_over(me).await {
                        Ok(()) => return Ok(()),
                        Err(error) => tracing::debug!(%error, "the lead could not be taken over"),
                    }
                }
            }
            let _ = tokio::time::timeout(LOOK, self.configs.changed()).await;
        }
    }

    pub(super) async fn take_over(&self, me: &Leader) -> Result<()> {
        let _turn = self.writer.lock().await;
        let mut next = self.inner().head.clone();
        next.term += 1;
        next.beat += 1;
        let before = next.leader.replace(me.clone());
        // All that was committed is in memory here: the head is still the one that was read.
        self.advance(&next).await?;
        self.leader.send_replace(Some(me.clone()));
        match before {
            Some(before) => tracing::info!(term = next.term, from = before.hostname, "this daemon leads now"),
            None => tracing::info!(term = next.term, "this daemon leads"),
        }
        Ok(())
    }

    /// Keeps the lead for as long as possible; returns when another daemon has it.
    pub async fn keep_lead(self: &Arc<Self>) -> Error {
        let mut told = false;
        loop {
            tokio::time::sleep(BEAT / 2).await;
            let Some(proven) = self.inner().proven else { return lost() };
            if proven.elapsed() < BEAT {
                continue;
            }
            let _turn = self.writer.lock().await;
            let mut next = self.inner().head.clone();
            next.beat += 1;
            // Without a quorum nobody else can take it over either: it is tried again until it is known.
            match self.advance(&next).await {
                Ok(()) => told = false,
                Err(error) if !told => {
                    tracing::warn!(%error, "the lead could not be renewed");
                    told = true;
                }
                Err(_) => {}
            }
        }
    }

    /// Gives the lead up, so that another daemon takes it over at once.
    pub async fn give_up(&self) -> Result<()> {
        let _turn = self.writer.lock().await;
        let mut next = self.inner().head.clone();
        if self.inner().proven.is_none() {
            return Ok(());
        }
        next.leader = None;
        self.advance(&next).await?;
        self.change().proven = None;
        Ok(())
    }
}

fn lost() -> Error {
    Error::new(Kind::Unavailable, "lead", "was taken over by another daemon")
}
