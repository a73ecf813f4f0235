//! Files of blobs that the other place has as well go from this host's disk where they take too much of it, the longest unused first.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::SystemTime;

use super::Replica;
use crate::registry::ImageRegistry;
use crate::registry::digest::Digest;
use crate::registry::disk::PARTS;
use crate::registry::refused::Refused;
use crate::registry::upload::aside;

/// What of the bound is left free once it was reached, in parts of a hundred: so that not every push has to look.
const FREE: u64 = 10;

impl ImageRegistry {
    /// Lets go of files until what is here takes no more than it may; how many.
    pub async fn evict(self: &Arc<Self>) -> Result<u64, Refused> {
        let Some((replica, local)) = self.replica().and_then(|replica| Some((replica.clone(), replica.options.local?)))
        else {
            return Ok(0);
        };
        if !replica.is_whole() {
            return Ok(0);
        }
        // Behind the last look so much may come before it is too much again.
        let is_soon = replica.looked.load(Ordering::Relaxed);
        if is_soon && replica.came.load(Ordering::Relaxed) < local / 100 * FREE {
            return Ok(0);
        }
        replica.looked.store(true, Ordering::Relaxed);
        replica.came.store(0, Ordering::Relaxed);
        let own = self.clone();
        aside(move || own.evict_now(&replica, local)).await
    }

    fn evict_now(&self, replica: &Replica, local: u64) -> Result<u64, Refused> {
        let failed = |error: std::io::Error| Refused::io("look through its blobs", &error);
        let mut all: Vec<(SystemTime, u64, Digest)> = Vec::new();
        for part in 0..PARTS {
            all.extend(self.disk.used(part).map_err(failed)?);
        }
        let mut size: u64 = all.iter().map(|(_, size, _)| size).sum();
        if size <= local {
            return Ok(0);
        }
        let wanted = local - local / 100 * FREE;
        all.sort_unstable();
        let mut count = 0;
        for (_, bytes, digest) in all {
            if size <= wanted {
                break;
            }
            // While it is known to be there, and nobody is about to find out that it is not.
            let log = replica.log.blocking_lock();
            if log.is_none() || !replica.is_whole() {
                break;
            }
            // Not one that is just coming: whoever sends it to the bucket reads it.
            let going = self.disk.going(vec![digest.clone()]);
            if going.digests().is_empty()
                || super::lock(&replica.sending).contains_key(&digest)
                || !self.index.is_replicated(&digest)?
            {
                continue;
            }
            self.disk.remove(&digest).map_err(|error| Refused::io("remove a file", &error))?;
            size -= bytes;
            count += 1;
        }
        replica.evicted.fetch_add(count, Ordering::Relaxed);
        Ok(count)
    }
}
