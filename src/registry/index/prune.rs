//! Manifests that nothing leads to.

use redb::{ReadableMultimapTable, ReadableTable};

use super::changes::delete_manifest;
use super::collect::read_digest;
use super::{Failed, Index, MANIFESTS, NAMED, TAGGED};
use crate::registry::digest::Digest;
use crate::registry::name::Repository;
use crate::registry::refused::Refused;

type Manifests<'a> = &'a dyn Fn(&str) -> Result<bool, Failed>;

// Whether nothing leads to it: no tag, no index, and it says nothing of a manifest that is there.
fn is_free(
    key: (&str, &str),
    subject: &str,
    tagged: &impl ReadableMultimapTable<(&'static str, &'static str), &'static str>,
    named: &impl ReadableMultimapTable<(&'static str, &'static str), &'static str>,
    is_there: Manifests<'_>,
) -> Result<bool, Failed> {
    let is_led_to = tagged.get(key)?.next().is_some() || named.get(key)?.next().is_some();
    Ok(!is_led_to && (subject.is_empty() || !is_there(subject)?))
}

impl Index {
    /// Manifests of a repository that nothing leads to, and that came before that time; with when they came.
    pub fn untagged(&self, repository: &Repository, before: u64) -> Result<Vec<(Digest, u64)>, Refused> {
        self.read(|read| {
            let manifests = read.open_table(MANIFESTS)?;
            let (tagged, named) = (read.open_multimap_table(TAGGED)?, read.open_multimap_table(NAMED)?);
            let is_there = |digest: &str| Ok(manifests.get((repository.as_str(), digest))?.is_some());
            let mut found = Vec::new();
            for row in manifests.range((repository.as_str(), "")..)? {
                let (key, value) = row?;
                let (of, digest) = key.value();
                if of != repository.as_str() {
                    break;
                }
                let (_, _, at, subject) = value.value();
                if at < before && is_free((of, digest), subject, &tagged, &named, &is_there)? {
                    found.push((read_digest(digest)?, at));
                }
            }
            Ok(found)
        })
    }

    /// Removes one, if still nothing leads to it, and it did not come once more; whether it went.
    pub async fn drop_untagged(
        &self,
        repository: &Repository,
        digest: &Digest,
        before: u64,
        now: u64,
    ) -> Result<bool, Refused> {
        let (repository, digest) = (repository.clone(), digest.clone());
        self.write(move |write| {
            let key = (repository.as_str(), digest.as_str());
            let is_still_free = {
                let manifests = write.open_table(MANIFESTS)?;
                let old = manifests.get(key)?.filter(|row| row.value().2 < before);
                let subject = old.map(|row| row.value().3.to_owned());
                let (tagged, named) = (write.open_multimap_table(TAGGED)?, write.open_multimap_table(NAMED)?);
                let is_there = |digest: &str| Ok(manifests.get((repository.as_str(), digest))?.is_some());
                match subject {
                    Some(subject) => is_free(key, &subject, &tagged, &named, &is_there)?,
                    None => false,
                }
            };
            if is_still_free {
                delete_manifest(write, &repository, &digest, now)?;
            }
            Ok(is_still_free)
        })
        .await
    }
}
