//! The bucket in which the registry is kept as well.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;

use crate::agent::protocol::Keeper;
use crate::model::Result;
use crate::model::id::NodeId;
use crate::registry::ImageRegistry;
use crate::registry::replica::bucket::{Bucket, BucketOptions};
use crate::registry::replica::{ReplicaOptions, Turn};

/// How often it is looked whether blobs take too much of this host's disk.
const LOOK: Duration = Duration::from_secs(2);
/// How often all of the bucket is compared with what is thought to be there.
const COMPARE: Duration = Duration::from_secs(24 * 60 * 60);

/// Which bucket, and how much of it is here as well.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BucketSettings {
    /// It.
    pub bucket: BucketOptions,
    /// What blobs may take on this host's disk; as much as there is, where it is not said.
    pub local: Option<u64>,
}

impl BucketSettings {
    fn options(&self, node: Option<&NodeId>) -> ReplicaOptions {
        let host = nix::unistd::gethostname().ok().and_then(|name| name.into_string().ok()).unwrap_or_default();
        ReplicaOptions { host, id: node.map(NodeId::to_string).unwrap_or_default(), local: self.local }
    }

    /// What tells it from every other bucket.
    pub fn name(&self) -> String {
        let BucketOptions { name, prefix, endpoint } = &self.bucket;
        format!("{}/{name}/{prefix}", endpoint.as_deref().unwrap_or("s3:/"))
    }

    /// The registry of a host that is alone is kept there as well from now on.
    pub async fn keep(&self, registry: &Arc<ImageRegistry>) -> Result<()> {
        let bucket = Arc::new(Bucket::open(&self.bucket)?);
        registry.keep_at(bucket, self.options(None), Turn::Alone).await;
        tend(registry);
        Ok(())
    }

    /// The same for a host of a Swarm, as long as it is the one that keeps the images: until that is known it serves none.
    pub fn keep_while(
        self,
        registry: &Arc<ImageRegistry>,
        (mut keeper, mut said): (watch::Receiver<Option<Keeper>>, watch::Receiver<bool>),
        node: NodeId,
    ) -> Result<()> {
        let bucket = Arc::new(Bucket::open(&self.bucket)?);
        registry.hold_back();
        tend(registry);
        let registry = registry.clone();
        tokio::spawn(async move {
            let mut was = false;
            loop {
                // What was known before this process began is not said by anybody.
                let is_said = *said.borrow_and_update();
                let here = keeper.borrow_and_update().clone().filter(|keeper| keeper.node == node);
                if here.is_some() && !was {
                    registry.keep_at(bucket.clone(), self.options(Some(&node)), Turn::Unsaid).await;
                } else if here.is_none() && was {
                    // Nothing is served any more, whether or not that can be written down.
                    if let Err(refused) = registry.leave().await {
                        tracing::error!(
                            why = refused.why,
                            "that this host does not keep the images is not written down"
                        );
                    }
                }
                was = here.is_some();
                if let Some(keeper) = here.filter(|_| is_said) {
                    registry.said(keeper.turn);
                }
                tokio::select! {
                    changed = keeper.changed() => if changed.is_err() { return },
                    changed = said.changed() => if changed.is_err() { return },
                }
            }
        });
        Ok(())
    }
}

fn tend(registry: &Arc<ImageRegistry>) {
    let own = registry.clone();
    tokio::spawn(async move {
        let mut look = tokio::time::interval(LOOK);
        loop {
            look.tick().await;
            if let Err(refused) = own.evict().await {
                tracing::warn!(why = refused.why, "files that are in the registry's bucket cannot be let go of");
            }
        }
    });
    let own = registry.clone();
    tokio::spawn(async move {
        loop {
            tokio::time::sleep(COMPARE).await;
            match own.compare().await {
                Ok(lost) => match lost.first() {
                    None => {}
                    Some(first) => {
                        tracing::error!(blobs = lost.len(), %first, "the registry's bucket has lost blobs that are not here");
                    }
                },
                Err(refused) => tracing::warn!(why = refused.why, "the registry's bucket is not compared"),
            }
        }
    });
}
