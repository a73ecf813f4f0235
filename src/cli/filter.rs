//! `--filter KEY=VALUE`, as Docker has it: values of one key are alternatives, different keys have to hold all.

use std::collections::BTreeMap;

use crate::model::{Error, Result};

/// Chooses among what is listed.
#[derive(clap::Args)]
pub struct FilterArgs {
    /// Only what matches, such as name=web; given more than once, each key has to match
    #[arg(long = "filter", short = 'f', value_name = "KEY=VALUE")]
    filters: Vec<String>,
}

/// What was asked for, by key.
pub struct Filter(BTreeMap<String, Vec<String>>);

impl FilterArgs {
    /// Reads them; other keys than these are an error.
    pub fn read(&self, keys: &[&str]) -> Result<Filter> {
        let mut read: BTreeMap<String, Vec<String>> = BTreeMap::new();
        for text in &self.filters {
            let wrong = |why: String| Error::invalid(format!("--filter {text:.60?}"), why);
            let (key, value) = text.split_once('=').ok_or_else(|| wrong("is not KEY=VALUE".into()))?;
            if !keys.contains(&key) {
                return Err(wrong(format!("key {key:.30?} is not known here")).help(format!("use {}", keys.join(", "))));
            }
            read.entry(key.to_owned()).or_default().push(value.to_owned());
        }
        Ok(Filter(read))
    }
}

impl Filter {
    /// Whether something was asked for under `key`.
    pub fn asks(&self, key: &str) -> bool {
        self.0.contains_key(key)
    }

    /// Whether a text, or one of several, begins with what was asked for under `key`.
    pub fn begins(&self, key: &str, texts: &[&str]) -> bool {
        self.any(key, |wanted| texts.iter().any(|text| text.starts_with(wanted)))
    }

    /// Whether it is what was asked for.
    pub fn is(&self, key: &str, text: &str) -> bool {
        self.any(key, |wanted| wanted == text)
    }

    /// Whether labels have what was asked for: `label=KEY` or `label=KEY=VALUE`, every one of them.
    pub fn labels(&self, key: &str, labels: &BTreeMap<String, String>) -> bool {
        self.0.get(key).into_iter().flatten().all(|wanted| match wanted.split_once('=') {
            Some((name, value)) => labels.get(name).is_some_and(|is| is == value),
            None => labels.contains_key(wanted),
        })
    }

    fn any(&self, key: &str, matches: impl Fn(&str) -> bool) -> bool {
        self.0.get(key).is_none_or(|wanted| wanted.iter().any(|wanted| matches(wanted)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_and_values() {
        let read = |filters: &[&str]| {
            FilterArgs { filters: filters.iter().map(|text| (*text).to_owned()).collect() }.read(&["name", "label"])
        };
        let filter = read(&["name=we", "name=db", "label=a", "label=b=1"]).unwrap();
        assert!(
            filter.begins("name", &["x", "web"]) && filter.begins("name", &["db"]) && !filter.begins("name", &["x"])
        );
        let labels = |all: &[(&str, &str)]| all.iter().map(|(k, v)| ((*k).into(), (*v).into())).collect();
        assert!(filter.labels("label", &labels(&[("a", ""), ("b", "1")])));
        assert!(!filter.labels("label", &labels(&[("a", ""), ("b", "2")])) && !filter.labels("label", &labels(&[])));
        assert!(read(&[]).unwrap().is("name", "anything"));
        assert!(read(&["name"]).is_err() && read(&["colour=red"]).is_err());
    }
}
