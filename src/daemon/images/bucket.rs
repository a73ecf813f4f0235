//! The bucket in which the registry is kept as well.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;

use crate::agent::protocol::Keeper;
use crate::model::Result;
use crate::model::id::NodeId;
use crate::registry::ImageRegistry;
use crate::registry::refused::Refused;
use crate::registry::replica::ReplicaOptions;
use crate::registry::replica::bucket::{Bucket, BucketOptions};

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
    fn options(&self) -> ReplicaOptions {
        let host = nix::unistd::gethostname().ok().and_then(|name| name.into_string().ok()).unwrap_or_default();
        ReplicaOptions { host, local: self.local }
    }

    /// What tells it from every other bucket.
    pub fn name(&self) -> String {
        let BucketOptions { name, prefix, endpoint } = &self.bucket;
        format!("{}/{name}/{prefix}", endpoint.as_deref().unwrap_or("s3:/"))
    }

    /// The registry of a host that is alone is kept there as well from now on.
    pub fn keep(&self, registry: &Arc<ImageRegistry>) -> Result<()> {
        let bucket = Arc::new(Bucket::open(&self.bucket)?);
        registry.keep_at(bucket, self.options()).map_err(Refused::into_error)?;
        tokio::spawn(tend(registry.clone()));
        Ok(())
    }

    /// The same for a host of a Swarm, as long as it is the one that keeps the images.
    pub fn keep_while(
        self,
        registry: &Arc<ImageRegistry>,
        (mut keeper, mut said): (watch::Receiver<Option<Keeper>>, watch::Receiver<bool>),
        node: NodeId,
    ) -> Result<()> {
        let bucket = Arc::new(Bucket::open(&self.bucket)?);
        let registry = registry.clone();
        tokio::spawn(tend(registry.clone()));
        tokio::spawn(async move {
            let mut was = false;
            loop {
                let is_here = keeper.borrow_and_update().as_ref().is_some_and(|keeper| keeper.node == node);
                let done = match (was, is_here) {
                    (false, true) => registry.keep_at(bucket.clone(), self.options()),
                    (true, false) => registry.leave().await,
                    _ => Ok(()),
                };
                if let Err(refused) = done {
                    tracing::error!(why = refused.why, "the registry cannot be kept in its bucket");
                }
                was = is_here;
                // What was known before this process began is not said by anybody.
                if is_here && *said.borrow_and_update() {
                    registry.may_take();
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

async fn tend(registry: Arc<ImageRegistry>) {
    let (mut look, mut compare) = (tokio::time::interval(LOOK), tokio::time::interval(COMPARE));
    compare.reset();
    loop {
        tokio::select! {
            _ = look.tick() => {
                if let Err(refused) = registry.evict().await {
                    tracing::warn!(why = refused.why, "files that are in the registry's bucket cannot be let go of");
                }
            }
            _ = compare.tick() => match registry.compare().await {
                Ok(lost) if lost.is_empty() => {}
                Ok(lost) => tracing::error!(blobs = lost.len(), first = lost[0].as_str(), "the registry's bucket has lost blobs"),
                Err(refused) => tracing::warn!(why = refused.why, "the registry's bucket cannot be compared"),
            },
        }
    }
}
