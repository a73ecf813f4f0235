//! Manifests of an upstream. One by its digest is fetched once; a tag is looked up each time, by HEAD, which costs those nothing that count
//! pulls. Where that fails, what is kept is served.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio::sync::watch;

use super::{Cache, count, usual_keep};
use crate::model::units::Duration as Period;
use crate::registry::ImageRegistry;
use crate::registry::digest::Digest;
use crate::registry::index::{Found, Put};
use crate::registry::manifest::{Manifest, Referrer};
use crate::registry::name::{Reference, Repository};
use crate::registry::refused::{Code, Refused};
use crate::registry::upstream::{Fault, Fetched};

/// How long an upstream may take to say that a tag is where it was: longer, and what is kept is served.
const QUICK: Duration = Duration::from_secs(5);
/// How long a manifest may take altogether.
const WHOLE: Duration = Duration::from_secs(60);
/// It is written down that a copy was asked for once in such a part of the time for which it stays without.
const PARTS: u64 = 16;

impl ImageRegistry {
    /// Sees to it that a manifest is here, and the newest, where the repository is a copy. Something is said where it may not be the newest.
    pub async fn freshen(
        self: &Arc<Self>,
        repository: &Repository,
        reference: &Reference,
    ) -> Result<Option<String>, Refused> {
        let Some((cache, name)) = self.answers(repository)? else {
            // What a cache has left stays for as long as it is asked for.
            if self.caches.has_copies.load(Ordering::Relaxed)
                && let Ok(found) = self.index.manifest(repository, reference)
            {
                self.asked(repository, &found.digest, usual_keep()).await?;
            }
            return Ok(None);
        };
        if let Reference::Digest(digest) = reference
            && self.index.manifest(repository, reference).is_ok()
        {
            count(&cache.counts.hits, 1);
            self.asked(repository, digest, cache.settings.keep).await?;
            return Ok(None);
        }
        let key = (repository.clone(), reference.clone());
        let mut asked = {
            let mut asking = cache.asking();
            match asking.get(&key) {
                Some(asked) => asked.clone(),
                None => {
                    let (sender, asked) = watch::channel(None);
                    asking.insert(key.clone(), asked.clone());
                    let (own, turn) = (self.clone(), Turn(cache.clone(), key));
                    // To its end, whoever waits for it.
                    tokio::spawn(async move {
                        let said = own.ask(&turn.0, &turn.1.0, &name, &turn.1.1).await;
                        drop(turn);
                        sender.send_replace(Some(said));
                    });
                    asked
                }
            }
        };
        let broken = || Refused::new(Code::Unknown, "the registry broke off");
        let said = asked.wait_for(Option::is_some).await.map_err(|_| broken())?;
        said.clone().unwrap_or_else(|| Err(broken()))
    }

    // A copy is asked for: that is written down now and then.
    async fn asked(&self, repository: &Repository, digest: &Digest, keep: Period) -> Result<(), Refused> {
        let now = self.now();
        let part = keep.millis() / PARTS;
        match self.index.copy_asked_at(repository, digest)? {
            Some(at) if at + part < now => self.index.ask_for_copy(repository, digest, now).await,
            _ => Ok(()),
        }
    }

    async fn ask(
        &self,
        cache: &Cache,
        repository: &Repository,
        name: &Repository,
        reference: &Reference,
    ) -> Result<Option<String>, Refused> {
        let kept = self.index.manifest(repository, reference).ok();
        if let Some(fault) = cache.is_resting()
            && (kept.is_some() || matches!(fault, Fault::Limited(..)))
        {
            return self.without(cache, repository, kept, &fault).await;
        }
        let login = self.login(&cache.upstream.place.registry).await;
        let upstream = &cache.upstream;
        if let (Some(kept), Reference::Tag(_)) = (&kept, reference) {
            let asked = tokio::time::timeout(QUICK, upstream.digest(name, reference, login.as_ref())).await;
            let slow = |_| Err(Fault::Down(format!("{} does not answer", upstream.place.registry)));
            match asked.unwrap_or_else(slow) {
                Ok(Some(digest)) if digest == kept.digest => {
                    cache.heard(None);
                    count(&cache.counts.hits, 1);
                    self.asked(repository, &digest, cache.settings.keep).await?;
                    return Ok(None);
                }
                Ok(_) => {}
                Err(fault) => return self.failed(cache, repository, reference, Some(kept.clone()), &fault).await,
            }
        }
        let patience = if kept.is_some() { QUICK * 2 } else { WHOLE };
        let slow = |_| Err(Fault::Down(format!("{} does not answer", upstream.place.registry)));
        let fetched = tokio::time::timeout(patience, upstream.manifest(name, reference, login.as_ref())).await;
        // What is no manifest is no answer: a page of some proxy, say.
        let read = fetched.unwrap_or_else(slow).and_then(|fetched| {
            let wrong = |refused: Refused| {
                Fault::Down(format!("{} sent no manifest: {}", upstream.place.registry, refused.why))
            };
            let manifest = Manifest::read(fetched.media_type.as_deref(), &fetched.bytes).map_err(wrong)?;
            Ok((fetched, manifest))
        });
        match read {
            Ok((fetched, manifest)) => {
                cache.heard(None);
                self.keep_copy(cache, repository, reference, fetched, manifest).await?;
                Ok(None)
            }
            Err(fault) => self.failed(cache, repository, reference, kept, &fault).await,
        }
    }

    async fn keep_copy(
        &self,
        cache: &Cache,
        repository: &Repository,
        reference: &Reference,
        fetched: Fetched,
        manifest: Manifest,
    ) -> Result<(), Refused> {
        let Fetched { digest, bytes, .. } = fetched;
        self.caches.has_copies.store(true, Ordering::Relaxed);
        count(&cache.counts.misses, 1);
        count(&cache.counts.fetched, bytes.len() as u64);
        let tags = match reference {
            Reference::Tag(tag) => vec![tag.clone()],
            Reference::Digest(_) => Vec::new(),
        };
        let (repository, at) = (repository.clone(), self.now());
        // Where somebody has pushed meanwhile, theirs is what is there.
        self.index
            .put_copy(Put { repository, digest, tags, bytes, manifest, at, immutable: Vec::new(), cache_of: None })
            .await
            .map(drop)
    }

    // An upstream did not give what it was asked for.
    async fn failed(
        &self,
        cache: &Cache,
        repository: &Repository,
        reference: &Reference,
        kept: Option<Found>,
        fault: &Fault,
    ) -> Result<Option<String>, Refused> {
        cache.heard(Some(fault));
        if let (Fault::Missing(_), Reference::Tag(tag), Some(_)) = (fault, reference, &kept) {
            // The manifest stays for those who have its digest.
            match self.index.delete_tag(repository, tag, Vec::new(), None).await {
                Err(refused) if refused.code != Code::ManifestUnknown => return Err(refused),
                _ => {}
            }
        }
        self.without(cache, repository, kept, fault).await
    }

    // What is kept, where the upstream has not said that it is gone.
    async fn without(
        &self,
        cache: &Cache,
        repository: &Repository,
        kept: Option<Found>,
        fault: &Fault,
    ) -> Result<Option<String>, Refused> {
        match kept {
            Some(kept) if !matches!(fault, Fault::Missing(_)) => {
                count(&cache.counts.hits, 1);
                count(&cache.counts.stale, 1);
                self.asked(repository, &kept.digest, cache.settings.keep).await?;
                Ok(Some(fault.why().to_owned()))
            }
            _ => Err(fault.refused(Code::ManifestUnknown)),
        }
    }

    /// All tags of a copy's repository, as its upstream has them; nothing: it is no copy, or the upstream does not answer.
    pub async fn tags_upstream(&self, repository: &Repository) -> Result<Option<Vec<String>>, Refused> {
        let Some((cache, name)) = self.answers(repository)? else { return Ok(None) };
        if cache.is_resting().is_some() {
            return Ok(None);
        }
        match cache.upstream.tags(&name, self.login(&cache.upstream.place.registry).await.as_ref()).await {
            Ok(tags) => Ok(Some(tags)),
            Err(fault @ Fault::Missing(_)) => Err(fault.refused(Code::NameUnknown)),
            Err(fault) => {
                cache.heard(Some(&fault));
                Ok(None)
            }
        }
    }

    /// What says something of a manifest of a copy's repository, as its upstream has it; nothing as above.
    pub async fn referrers_upstream(
        &self,
        repository: &Repository,
        subject: &Digest,
    ) -> Result<Option<Vec<Referrer>>, Refused> {
        let Some((cache, name)) = self.answers(repository)? else { return Ok(None) };
        if cache.is_resting().is_some() {
            return Ok(None);
        }
        match cache.upstream.referrers(&name, subject, self.login(&cache.upstream.place.registry).await.as_ref()).await
        {
            Ok(all) => Ok(Some(all)),
            // One of before 1.1 knows of none.
            Err(Fault::Missing(_)) => Ok(Some(Vec::new())),
            Err(fault) => {
                cache.heard(Some(&fault));
                Ok(None)
            }
        }
    }
}

// Whoever asks now, for all who ask the same; over, whatever comes of it.
struct Turn(Arc<Cache>, (Repository, Reference));

impl Drop for Turn {
    fn drop(&mut self) {
        self.0.asking().remove(&self.1);
    }
}
