//! Prepared queries in the catalogue: found by name, and executed.

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;

use regex::Regex;

use super::replica::Touched;
use super::{Draft, Found, Key, State, Topic, key};
use crate::model::catalog::{CheckStatus, MAX_TEXT};
use crate::model::query::Query;
use crate::model::{Error, Result};

/// Longest name that is asked, in bytes: as long as names in DNS.
const MAX_ASKED: usize = 255;
/// Largest compiled pattern, in bytes.
const MAX_PATTERN: usize = 1 << 18;

/// All of them, by id.
#[derive(Debug, Default)]
pub struct Queries {
    all: BTreeMap<Key, Prepared>,
    // Those that are found by their name, and those that answer for all names that begin with it.
    named: BTreeMap<Key, Key>,
    templates: BTreeMap<Key, Key>,
}

#[derive(Debug)]
struct Prepared {
    query: Arc<Query>,
    pattern: Option<Regex>,
}

/// A pattern; an error where it is none.
pub fn pattern(text: &str) -> Result<Option<Regex>> {
    if text.is_empty() {
        return Ok(None);
    }
    let built = regex::RegexBuilder::new(text).size_limit(MAX_PATTERN).build();
    built.map(Some).map_err(|error| Error::invalid("query", format!("Bad Regexp {text:.80?}")).cause(error))
}

impl Queries {
    /// All of them, by id.
    pub fn all(&self) -> impl Iterator<Item = &Arc<Query>> {
        self.all.values().map(|prepared| &prepared.query)
    }

    /// One of them.
    pub fn by_id(&self, id: &str) -> Option<&Arc<Query>> {
        self.all.get(key(id).as_ref()).map(|prepared| &prepared.query)
    }

    /// The id of the query that has this name.
    pub fn named(&self, query: &Query) -> Option<&Key> {
        let names = if query.is_template { &self.templates } else { &self.named };
        names.get(key(&query.name).as_ref()).filter(|_| query.is_template || !query.name.is_empty())
    }

    /// What is asked by an id or a name; a template's is filled in.
    pub fn find(&self, name: &str) -> Option<Arc<Query>> {
        if name.len() > MAX_ASKED {
            return None;
        }
        let folded = key(name);
        if let Some(prepared) = self.all.get(&folded) {
            return Some(match prepared.query.is_template {
                true => Arc::new(prepared.filled_in(&prepared.query.name)),
                false => prepared.query.clone(),
            });
        }
        if let Some(prepared) = self.named.get(&folded).and_then(|id| self.all.get(id)) {
            return Some(prepared.query.clone());
        }
        // The longest beginning wins.
        let lengths = (0..=folded.len()).rev().filter(|at| folded.is_char_boundary(*at));
        let id = lengths.into_iter().find_map(|at| self.templates.get(&folded[..at]))?;
        Some(Arc::new(self.all.get(id)?.filled_in(name)))
    }

    fn put(&mut self, query: Arc<Query>) -> Result<()> {
        let pattern = pattern(&query.pattern)?;
        self.remove(&query.id);
        let (id, name) = (key(&query.id), key(&query.name));
        match query.is_template {
            true => self.templates.insert(name, id.clone()),
            false if name.is_empty() => None,
            false => self.named.insert(name, id.clone()),
        };
        self.all.insert(id, Prepared { query, pattern });
        Ok(())
    }

    fn remove(&mut self, id: &str) -> bool {
        let Some(prepared) = self.all.remove(key(id).as_ref()) else { return false };
        let names = if prepared.query.is_template { &mut self.templates } else { &mut self.named };
        let name = key(&prepared.query.name);
        if names.get(&name).is_some_and(|of| **of == *key(id)) {
            names.remove(&name);
        }
        true
    }
}

impl Prepared {
    // With what the name that was asked says.
    fn filled_in(&self, name: &str) -> Query {
        let mut query = Query::clone(&self.query);
        let captures = self.pattern.as_ref().and_then(|pattern| pattern.captures(name));
        let suffix = name.get(query.name.len()..).unwrap_or_default();
        let fill = |text: &str| {
            let mut out = String::new();
            let mut rest = text;
            while let Some((before, after)) = rest.split_once("${") {
                out.push_str(before);
                let Some((word, behind)) = after.split_once('}') else {
                    rest = &rest[before.len()..];
                    break;
                };
                let number = || word.trim().strip_prefix("match(")?.strip_suffix(')')?.trim().parse::<usize>().ok();
                match word.trim() {
                    "name.full" => out.push_str(name),
                    "name.prefix" => out.push_str(&self.query.name),
                    "name.suffix" => out.push_str(suffix),
                    _ => {
                        let found = number().and_then(|number| captures.as_ref()?.get(number));
                        out.push_str(found.map_or("", |found| found.as_str()));
                    }
                }
                rest = behind;
            }
            out.push_str(rest);
            // A name that is asked may be as long as it likes.
            let end = out.char_indices().map(|(at, c)| at + c.len_utf8()).take_while(|end| *end <= MAX_TEXT).last();
            out.truncate(end.unwrap_or_default());
            out
        };
        query.service = fill(&query.service);
        query.tags = query.tags.iter().map(|tag| fill(tag)).collect();
        if query.remove_empty_tags {
            query.tags.retain(|tag| !tag.is_empty());
        }
        query.datacenters = query.datacenters.iter().map(|name| fill(name)).collect();
        for value in query.node_meta.values_mut().chain(query.service_meta.values_mut()) {
            *value = fill(value);
        }
        query
    }
}

impl State {
    /// The instances that a query asks for, by node and id.
    pub fn queried<'a>(&'a self, query: &Query) -> Vec<Found<'a>> {
        let ignored: HashSet<&str> = query.ignore_checks.iter().map(String::as_str).collect();
        let has = |found: &Found, tag: &str| found.entry.instance.tags.iter().any(|own| own.eq_ignore_ascii_case(tag));
        let serves = |found: &Found| {
            let counted = found.checks().filter(|entry| !ignored.contains(entry.check.id.as_str()));
            let status = counted.map(|entry| entry.check.status).max().unwrap_or(CheckStatus::Passing);
            let tags = query.tags.iter().all(|tag| match tag.strip_prefix('!') {
                Some(tag) => !has(found, tag),
                None => has(found, tag),
            });
            let node = query.node_meta.iter().all(|(key, value)| found.node.node.meta.get(key) == Some(value));
            let own = query.service_meta.iter().all(|(key, value)| found.entry.instance.meta.get(key) == Some(value));
            let fit = match query.only_passing {
                true => status == CheckStatus::Passing,
                false => status != CheckStatus::Critical,
            };
            fit && tags && node && own
        };
        self.instances(&query.service).filter(serves).collect()
    }
}

impl Draft<'_> {
    /// Makes a query, or says it anew; an error where its pattern is none.
    pub fn put_query(&mut self, mut query: Query) -> Result<()> {
        let known = self.state.queries.by_id(&query.id);
        if let Some(known) = known {
            (query.created, query.modified) = (known.created, known.modified);
            if query == **known {
                return Ok(());
            }
        }
        (query.created, query.modified) = (known.map_or(self.number(), |known| known.created), self.number());
        let place = Touched::Query(key(&query.id));
        self.state.queries.put(Arc::new(query))?;
        self.places.insert(place);
        self.touch_queries();
        Ok(())
    }

    /// Removes a query; false: there was none.
    pub fn remove_query(&mut self, id: &str) -> bool {
        let removed = self.state.queries.remove(id);
        if removed {
            self.places.insert(Touched::Query(key(id)));
            self.touch_queries();
        }
        removed
    }

    fn touch_queries(&mut self) {
        self.state.queries_index = self.number();
        self.touched.extend([Topic::Queries, Topic::All]);
    }
}
