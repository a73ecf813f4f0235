//! Rules for repositories, by how their names are: who pulls, pushes and deletes, which tags stay as they are, how much they may hold.

use std::sync::{Arc, PoisonError, RwLock};

use glob::Pattern;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::ImageRegistry;
use super::refused::Refused;
use crate::model::right::{Principal, Role};
use crate::model::units::Bytes;
use crate::model::{Error, Kind, Result as ModelResult};

/// Whoever it is, also those who do not say.
pub const ANYBODY: &str = "anybody";
/// Whoever says who they are.
pub const KNOWN: &str = "known";
/// What rules are called in the index.
const SETTING: &str = "rule/";
/// Most rules, and most names or patterns that one has.
const MOST: usize = 1000;
const MANY: usize = 100;
/// Longest pattern or name, in bytes.
const LONGEST: usize = 255;

/// What a rule says. Where several are for one repository, the longest pattern that says something of it counts.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct RuleSettings {
    /// Who pulls: names of tokens and users, `known` for all who say who they are, `anybody`. Without it the registry's own access counts.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pull: Option<Vec<String>>,
    /// Who pushes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub push: Option<Vec<String>>,
    /// Who deletes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub delete: Option<Vec<String>>,
    /// Tags that are neither moved nor deleted once they are set: `v*`.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub immutable: Vec<String>,
    /// What the blobs of such a repository may take.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub quota: Option<Bytes>,
}

/// A rule.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Rule {
    /// For repositories with such a name: `shop/*`.
    pub repositories: String,
    /// What it says.
    pub rule: RuleSettings,
}

/// What is done with a repository.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    /// Looked at.
    Pull,
    /// Put into.
    Push,
    /// Taken from.
    Delete,
}

#[derive(Clone)]
struct Read {
    name: String,
    pattern: Pattern,
    settings: RuleSettings,
    immutable: Vec<Pattern>,
}

impl Read {
    fn new(name: &str, settings: RuleSettings) -> ModelResult<Self> {
        let subject = || format!("rule {name:.80?}");
        let pattern = |text: &str| {
            let wrong = |error: glob::PatternError| {
                Error::invalid(subject(), format!("{text:.80?} is no pattern")).cause(error)
            };
            if text.is_empty() || text.len() > LONGEST {
                return Err(Error::invalid(subject(), "has a pattern of no, or of more than 255 bytes"));
            }
            Pattern::new(text).map_err(wrong)
        };
        let lists = [&settings.pull, &settings.push, &settings.delete];
        for list in lists.into_iter().flatten() {
            if list.len() > MANY || list.iter().any(|who| who.is_empty() || who.len() > LONGEST) {
                return Err(Error::invalid(subject(), "names nobody by an empty name, or too many"));
            }
        }
        if settings.immutable.len() > MANY {
            return Err(Error::invalid(subject(), format!("has more than {MANY} patterns of tags")));
        }
        if settings == RuleSettings::default() {
            return Err(Error::invalid(subject(), "says nothing").help("say pull, push, delete, immutable or quota"));
        }
        let immutable = settings.immutable.iter().map(|text| pattern(text)).collect::<ModelResult<_>>()?;
        Ok(Read { name: name.to_owned(), pattern: pattern(name)?, settings, immutable })
    }
}

/// All rules of a registry.
pub struct Rules(RwLock<Arc<Vec<Read>>>);

impl Rules {
    /// Those of an index's settings. One that cannot be read keeps the registry from being opened: it may forbid something.
    pub fn read(settings: Vec<(String, Vec<u8>)>) -> ModelResult<Self> {
        let read = |(name, value): (String, Vec<u8>)| {
            let wrong = |error| Error::new(Kind::Corrupt, format!("rule {name:?}"), "cannot be read").cause(error);
            Read::new(&name, serde_json::from_slice(&value).map_err(wrong)?)
        };
        let mut all = settings.into_iter().map(read).collect::<ModelResult<Vec<_>>>()?;
        order(&mut all);
        Ok(Rules(RwLock::new(Arc::new(all))))
    }

    /// Those of another take the place of all of them.
    pub fn replace_all(&self, by: Self) {
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = by.all();
    }

    /// What they are called in the index.
    pub fn setting() -> &'static str {
        SETTING
    }

    fn all(&self) -> Arc<Vec<Read>> {
        self.0.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn first<T>(&self, repository: &str, of: impl Fn(&Read) -> Option<T>) -> Option<T> {
        let all = self.all();
        all.iter().filter(|rule| rule.pattern.matches(repository)).find_map(of)
    }

    /// Who may; nothing: no rule says.
    pub fn who(&self, repository: &str, action: Action) -> Option<Vec<String>> {
        self.first(repository, |rule| match action {
            Action::Pull => rule.settings.pull.clone(),
            Action::Push => rule.settings.push.clone(),
            Action::Delete => rule.settings.delete.clone(),
        })
    }

    fn any_list(&self, is: impl Fn(&[String]) -> bool) -> bool {
        let has = |rule: &Read| {
            let RuleSettings { pull, push, delete, .. } = &rule.settings;
            [pull, push, delete].into_iter().flatten().any(|list| is(list))
        };
        self.all().iter().any(has)
    }

    /// Whether any rule wants to know who somebody is.
    pub fn want_names(&self) -> bool {
        self.any_list(|list| !list.iter().any(|who| who == ANYBODY))
    }

    /// Whether any rule lets in who does not say.
    pub fn name_anybody(&self) -> bool {
        self.any_list(|list| list.iter().any(|who| who == ANYBODY))
    }

    /// Those of a list, as it is told.
    pub fn of(all: Vec<Rule>) -> ModelResult<Self> {
        let read = all.into_iter().map(|one| Read::new(&one.repositories, one.rule));
        let mut all = read.collect::<ModelResult<Vec<_>>>()?;
        order(&mut all);
        Ok(Rules(RwLock::new(Arc::new(all))))
    }

    /// Whether somebody may, as far as a rule says: whoever may change the rules may all.
    pub fn allow(&self, principal: &Principal, repository: &str, action: Action) -> bool {
        // Whoever it was lent for may do that: it was looked at.
        if principal.is_lent() {
            return repository == principal.prefix
                && match action {
                    Action::Pull => true,
                    Action::Push => principal.role >= Role::Deployer,
                    Action::Delete => false,
                };
        }
        let is_named =
            |all: Vec<String>| all.iter().any(|who| [ANYBODY, KNOWN, &principal.name].contains(&who.as_str()));
        principal.role >= Role::Admin || self.who(repository, action).is_none_or(is_named)
    }

    /// Whether any rule names who deletes.
    pub fn guard_deletion(&self) -> bool {
        self.all().iter().any(|rule| rule.settings.delete.is_some())
    }

    /// The tags that stay as they are.
    pub fn immutable(&self, repository: &str) -> Vec<Pattern> {
        self.first(repository, |rule| Some(rule.immutable.clone()).filter(|all| !all.is_empty())).unwrap_or_default()
    }

    /// What its blobs may take, in bytes.
    pub fn quota(&self, repository: &str) -> Option<u64> {
        self.first(repository, |rule| rule.settings.quota.map(|quota| quota.0))
    }
}

fn order(all: &mut [Read]) {
    all.sort_by(|a, b| b.name.len().cmp(&a.name.len()).then(a.name.cmp(&b.name)));
}

impl ImageRegistry {
    /// The rules.
    pub fn rules(&self) -> &Rules {
        &self.rules
    }

    /// The rules, by pattern.
    pub fn all_rules(&self) -> Vec<Rule> {
        let all = self.rules.all();
        let told = all.iter().map(|rule| Rule { repositories: rule.name.clone(), rule: rule.settings.clone() });
        let mut told: Vec<Rule> = told.collect();
        told.sort_by(|a, b| a.repositories.cmp(&b.repositories));
        told
    }

    /// Sets a rule, durably, in place of that of the same pattern.
    pub async fn set_rule(&self, repositories: &str, settings: RuleSettings) -> ModelResult<Rule> {
        let read = Read::new(repositories, settings.clone())?;
        if self.rules.all().len() >= MOST && !self.rules.all().iter().any(|rule| rule.name == repositories) {
            return Err(Error::new(Kind::Exhausted, "image registry", format!("has {MOST} rules already")));
        }
        let value = serde_json::to_vec(&settings)
            .map_err(|error| Error::internal("rule", "it cannot be written").cause(error))?;
        let name = format!("{SETTING}{repositories}");
        let hold = self.hold();
        self.index.set(name, Some(value)).await.map_err(Refused::into_error)?;
        self.replace_rule(repositories, Some(read));
        self.settled(hold).await.map_err(Refused::into_error)?;
        Ok(Rule { repositories: repositories.to_owned(), rule: settings })
    }

    /// Removes a rule.
    pub async fn remove_rule(&self, repositories: &str) -> ModelResult<()> {
        let hold = self.hold();
        let was = self.index.set(format!("{SETTING}{repositories}"), None).await.map_err(Refused::into_error)?;
        self.replace_rule(repositories, None);
        self.settled(hold).await.map_err(Refused::into_error)?;
        match was {
            true => Ok(()),
            false => Err(Error::not_found(format!("rule {repositories:.80?}")).help("neap registry rule ls")),
        }
    }

    fn replace_rule(&self, name: &str, by: Option<Read>) {
        let mut slot = self.rules.0.write().unwrap_or_else(PoisonError::into_inner);
        let mut all: Vec<Read> = slot.iter().filter(|rule| rule.name != name).cloned().collect();
        all.extend(by);
        order(&mut all);
        *slot = Arc::new(all);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_longest_pattern_that_says_something_counts() {
        let of = |name: &str, text: &str| (name.to_owned(), text.as_bytes().to_vec());
        let rules = Rules::read(vec![
            of("*", r#"{"pull":["anybody"],"quota":"1GB"}"#),
            of("shop/*", r#"{"push":["ci"],"immutable":["v*"]}"#),
            of("shop/api", r#"{"pull":["known"]}"#),
        ])
        .unwrap();
        let who = |repository: &str, action| rules.who(repository, action).map(|all| all.join(","));
        assert_eq!(who("shop/api", Action::Pull).as_deref(), Some("known"));
        assert_eq!(who("shop/web", Action::Pull).as_deref(), Some("anybody"));
        assert_eq!(who("shop/api", Action::Push).as_deref(), Some("ci"));
        assert_eq!(who("other", Action::Push), None);
        assert_eq!((rules.quota("shop/api"), rules.quota("x/y/z")), (Some(1_000_000_000), Some(1_000_000_000)));
        assert!(rules.immutable("shop/api")[0].matches("v1") && rules.immutable("other").is_empty());
        assert!(rules.want_names());
        let open = Rules::read(vec![of("*", r#"{"pull":["anybody"]}"#)]).unwrap();
        assert!(!open.want_names());
        for bad in ["{}", r#"{"pulls":[]}"#, r#"{"immutable":["["]}"#, r#"{"push":[""]}"#] {
            assert!(Rules::read(vec![of("a", bad)]).is_err(), "{bad}");
        }
        assert!(Rules::read(vec![of("[", r#"{"quota":"1B"}"#)]).is_err());
    }
}
