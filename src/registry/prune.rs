//! Removes tags that are old, or too many, but never one that runs.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use glob::Pattern;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::ImageRegistry;
use super::name::{self, Repository};
use super::refused::{Code, Refused};
use super::upload::aside;
use crate::model::clock::Timestamp;
use crate::model::units::Duration;
use crate::model::{Error, Result as ModelResult};

/// Repositories that are looked at in one go.
const ROWS: usize = 100;
/// How old a manifest without a tag is at least, where nothing else is said: one that is just pushed gets its tag a moment later.
const UNTAGGED: Duration = Duration::from_secs(24 * 60 * 60);

/// What goes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct PruneAsk {
    /// Repositories with such a name: `shop/*`.
    pub repositories: String,
    /// Tags with such a name; all where it is not said.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tags: Option<String>,
    /// So many of a repository stay, the newest.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub keep: Option<u32>,
    /// Those stay that were set since.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub older_than: Option<Duration>,
    /// Manifests without a tag go as well, with the same age, or a day; not those of an index, nor what says something of an image that is there.
    #[serde(default)]
    pub untagged: bool,
    /// Says only what would go.
    #[serde(default)]
    pub dry_run: bool,
    /// Images that stay, whatever their age: what services run and could go back to is added to it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub in_use: Vec<String>,
}

/// A tag, or a manifest, that went.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct PrunedImage {
    /// Where.
    pub repository: String,
    /// The tag; nothing where a manifest went.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tag: Option<String>,
    /// The manifest.
    pub digest: String,
    /// When it was set, or came.
    pub at: Timestamp,
}

/// What went.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Pruned {
    /// Tags and manifests.
    #[serde(default)]
    pub images: Vec<PrunedImage>,
    /// How many would have gone, and are in use.
    pub in_use: u64,
    /// How many would have gone, and are immutable by a rule.
    pub immutable: u64,
}

// What runs, by repository.
#[derive(Default)]
struct InUse(BTreeMap<String, BTreeSet<String>>);

impl InUse {
    fn of(images: &[String]) -> Self {
        let mut all = InUse::default();
        // As it is, and without what may be the registry's host: what stays for nothing does no harm.
        let both = |image: &String| {
            let rest =
                image.split_once('/').filter(|(host, _)| host.contains(['.', ':'])).map(|(_, rest)| rest.to_owned());
            [Some(image.clone()), rest]
        };
        for image in images.iter().flat_map(both).flatten() {
            if let Ok((repository, reference)) = name::image(&image) {
                all.0.entry(repository.to_string()).or_default().insert(reference.as_str().to_owned());
            }
        }
        all
    }

    fn has(&self, repository: &str, reference: &str) -> bool {
        self.0.get(repository).is_some_and(|all| all.contains(reference))
    }
}

impl PruneAsk {
    fn read(&self) -> ModelResult<(Pattern, Pattern)> {
        let pattern = |text: &str| {
            Pattern::new(text)
                .map_err(|error| Error::invalid("prune", format!("{text:.80?} is no pattern")).cause(error))
        };
        if self.keep.is_none() && self.older_than.is_none() && !self.untagged {
            return Err(Error::invalid("prune", "says nothing of what goes").help("say keep, older_than or untagged"));
        }
        Ok((pattern(&self.repositories)?, pattern(self.tags.as_deref().unwrap_or("*"))?))
    }
}

impl ImageRegistry {
    /// Removes tags and manifests. Blobs go with the next collection, once their grace is over.
    pub async fn prune(self: &Arc<Self>, ask: PruneAsk) -> ModelResult<Pruned> {
        let (repositories, tags) = ask.read()?;
        let in_use = InUse::of(&ask.in_use);
        let mut pruned = Pruned::default();
        let (mut last, hold) = (String::new(), self.hold());
        loop {
            let page = self.index.repositories(&last, ROWS).map_err(Refused::into_error)?;
            for name in page.names.iter().filter(|name| repositories.matches(name)) {
                let repository: Repository = name.parse().map_err(Refused::into_error)?;
                // What is a copy goes by itself.
                if !self.is_copied(&repository).map_err(Refused::into_error)? {
                    self.prune_one(&repository, &tags, &ask, &in_use, &mut pruned)
                        .await
                        .map_err(Refused::into_error)?;
                }
            }
            match page.names.last() {
                Some(end) if page.has_more => last.clone_from(end),
                _ => {
                    self.settled(hold).await.map_err(Refused::into_error)?;
                    return Ok(pruned);
                }
            }
        }
    }

    async fn prune_one(
        self: &Arc<Self>,
        repository: &Repository,
        tags: &Pattern,
        ask: &PruneAsk,
        in_use: &InUse,
        pruned: &mut Pruned,
    ) -> Result<(), Refused> {
        let name = repository.as_str();
        let before = ask.older_than.map(|age| self.now().saturating_sub(age.millis()));
        let (own, of) = (self.clone(), repository.clone());
        // It may be gone by now.
        let all = match aside(move || own.index.tagged(&of)).await {
            Err(refused) if refused.code == Code::NameUnknown => return Ok(()),
            other => other?,
        };
        // By tag, or by what it leads to: whoever runs it by its digest may look for its tag.
        let runs = |tag: &str, digest: &str| in_use.has(name, tag) || in_use.has(name, digest);
        let running: BTreeSet<&str> =
            all.iter().filter(|tag| runs(&tag.tag, &tag.digest)).map(|tag| tag.digest.as_str()).collect();
        let immutable = self.rules.immutable(name);
        let mut matching: Vec<_> = all.iter().filter(|tag| tags.matches(&tag.tag)).collect();
        matching.sort_by(|a, b| b.at.cmp(&a.at).then(a.tag.cmp(&b.tag)));
        let goes = ask.keep.is_some() || ask.older_than.is_some();
        let kept = ask.keep.unwrap_or_default() as usize;
        for tag in matching.into_iter().skip(kept).filter(|tag| goes && before.is_none_or(|before| tag.at < before)) {
            if running.contains(tag.digest.as_str()) {
                pruned.in_use += 1;
            } else if immutable.iter().any(|pattern| pattern.matches(&tag.tag)) {
                pruned.immutable += 1;
            } else if ask.dry_run || self.drop_tag(repository, &tag.tag, &tag.digest).await? {
                let (tag, digest, at) = (Some(tag.tag.clone()), tag.digest.clone(), Timestamp(tag.at));
                pruned.images.push(PrunedImage { repository: name.to_owned(), tag, digest, at });
            }
        }
        if ask.untagged {
            let before = self.now().saturating_sub(ask.older_than.unwrap_or(UNTAGGED).millis());
            self.prune_untagged(repository, before, ask.dry_run, in_use, pruned).await?;
        }
        Ok(())
    }

    // False: it leads elsewhere by now, or is gone.
    async fn drop_tag(self: &Arc<Self>, repository: &Repository, tag: &str, digest: &str) -> Result<bool, Refused> {
        let immutable = self.rules.immutable(repository.as_str());
        match self.index.delete_tag(repository, tag, immutable, Some(digest.to_owned())).await {
            Ok(()) => {
                self.tell(false, repository, Some(tag.to_owned()), None, String::new());
                Ok(true)
            }
            Err(refused) if refused.code == Code::ManifestUnknown => Ok(false),
            Err(refused) => Err(refused),
        }
    }

    async fn prune_untagged(
        self: &Arc<Self>,
        repository: &Repository,
        before: u64,
        dry_run: bool,
        in_use: &InUse,
        pruned: &mut Pruned,
    ) -> Result<(), Refused> {
        // Those of an index that goes are without a name only then.
        let mut running = BTreeSet::new();
        loop {
            let (own, of) = (self.clone(), repository.clone());
            let found = aside(move || own.index.untagged(&of, before)).await?;
            let mut count = 0;
            for (digest, at) in found {
                if in_use.has(repository.as_str(), digest.as_str()) {
                    pruned.in_use += u64::from(running.insert(digest));
                    continue;
                }
                if !dry_run && !self.index.drop_untagged(repository, &digest, before, self.now()).await? {
                    continue;
                }
                if !dry_run {
                    self.tell(false, repository, None, Some(digest.clone()), String::new());
                }
                count += 1;
                let (repository, digest) = (repository.to_string(), digest.to_string());
                pruned.images.push(PrunedImage { repository, tag: None, digest, at: Timestamp(at) });
            }
            if count == 0 || dry_run {
                return Ok(());
            }
        }
    }
}
