//! Reads a tree key by key: whatever nobody asked for is an error with its line.

use std::collections::BTreeSet;

use super::yaml::{At, Node, Value};
use crate::model::units::{Bytes, Duration};
use crate::model::{Error, Kind, Result, suggest};

/// Why a key of the specification is not taken.
pub type Refused = (&'static str, &'static str);

/// The keys of a mapping.
pub struct Fields<'a> {
    /// What leads here: `services.web`.
    pub path: String,
    entries: Vec<(&'a str, &'a At, &'a Node)>,
    asked: BTreeSet<&'static str>,
}

/// An error about a place.
pub fn wrong(at: &At, path: &str, why: impl std::fmt::Display) -> Error {
    Error::invalid(at.to_string(), format!("{path}: {why}"))
}

/// An error about something that the specification has and Neap has not.
pub fn unsupported(at: &At, path: &str, help: &str) -> Error {
    Error::new(Kind::Unsupported, at.to_string(), format!("{path}: is not supported")).help(help)
}

impl<'a> Fields<'a> {
    /// Of `node`, which has to be a mapping; nothing is an empty one.
    pub fn of(path: impl Into<String>, node: &'a Node) -> Result<Self> {
        let path = path.into();
        let entries = match &node.value {
            Value::Map(map) => map.iter().map(|(key, at, node)| (key.as_str(), at, node)).collect(),
            _ if node.is_null() => Vec::new(),
            _ => return Err(wrong(&node.at, &path, format!("is {}, not a mapping", node.kind()))),
        };
        Ok(Fields { path, entries, asked: BTreeSet::new() })
    }

    /// The value of a key, where it says something.
    pub fn take(&mut self, key: &'static str) -> Option<&'a Node> {
        self.asked.insert(key);
        let found = self.entries.iter().find(|(known, ..)| *known == key)?;
        (!found.2.is_null()).then_some(found.2)
    }

    /// Where a key stands, if it is there and says something.
    pub fn place(&mut self, key: &'static str) -> Option<&'a At> {
        self.take(key)?;
        self.entries.iter().find(|(known, ..)| *known == key).map(|(_, at, _)| *at)
    }

    /// The path of a key.
    pub fn path_of(&self, key: &str) -> String {
        if self.path.is_empty() { key.to_owned() } else { format!("{}.{key}", self.path) }
    }

    /// A text.
    pub fn text(&mut self, key: &'static str) -> Result<Option<String>> {
        let path = self.path_of(key);
        self.take(key).map(|node| text(&path, node)).transpose()
    }

    /// True or false.
    pub fn flag(&mut self, key: &'static str) -> Result<Option<bool>> {
        let path = self.path_of(key);
        self.take(key).map(|node| flag(&path, node)).transpose()
    }

    /// A number.
    pub fn number<T: std::str::FromStr>(&mut self, key: &'static str) -> Result<Option<T>> {
        let path = self.path_of(key);
        self.take(key).map(|node| number(&path, node)).transpose()
    }

    /// A duration.
    pub fn duration(&mut self, key: &'static str) -> Result<Option<Duration>> {
        let path = self.path_of(key);
        let Some(node) = self.take(key) else { return Ok(None) };
        duration(&text(&path, node)?).map(Some).map_err(|why| wrong(&node.at, &path, why))
    }

    /// A size.
    pub fn size(&mut self, key: &'static str) -> Result<Option<Bytes>> {
        let path = self.path_of(key);
        let Some(node) = self.take(key) else { return Ok(None) };
        size(&text(&path, node)?).map(Some).map_err(|why| wrong(&node.at, &path, why))
    }

    /// A list of texts; one text is a list of one.
    pub fn texts(&mut self, key: &'static str) -> Result<Vec<String>> {
        let path = self.path_of(key);
        let Some(node) = self.take(key) else { return Ok(Vec::new()) };
        match &node.value {
            Value::List(list) => list.iter().map(|node| text(&path, node)).collect(),
            _ => Ok(vec![text(&path, node)?]),
        }
    }

    /// A mapping of texts, or a list of `KEY=value`; a key alone has none.
    pub fn pairs(&mut self, key: &'static str) -> Result<Vec<(String, Option<String>)>> {
        let path = self.path_of(key);
        let Some(node) = self.take(key) else { return Ok(Vec::new()) };
        match &node.value {
            Value::Map(map) => {
                let pair = |(key, _, node): &(String, At, Node)| {
                    let path = format!("{path}.{key}");
                    let value = if node.is_null() { None } else { Some(text(&path, node)?) };
                    Ok((key.clone(), value))
                };
                map.iter().map(pair).collect()
            }
            Value::List(list) => {
                let pair = |node: &Node| {
                    let text = text(&path, node)?;
                    Ok(match text.split_once('=') {
                        Some((key, value)) => (key.to_owned(), Some(value.to_owned())),
                        None => (text, None),
                    })
                };
                list.iter().map(pair).collect()
            }
            Value::Text(..) => Err(wrong(&node.at, &path, "is a text, neither a mapping nor a list")),
        }
    }

    /// An error about the first key that nobody asked for; those of extensions are let be.
    pub fn finish(self, refused: &[Refused]) -> Result<()> {
        for (key, at, node) in &self.entries {
            if self.asked.contains(key) || key.starts_with("x-") || node.is_null() {
                continue;
            }
            let path = self.path_of(key);
            if let Some((_, help)) = refused.iter().find(|(known, _)| known == key) {
                return Err(unsupported(at, &path, help));
            }
            let known: Vec<&str> = self.asked.iter().copied().collect();
            let hint = suggest::nearest(key, known).map(|near| format!("; did you mean \"{near}\"?"));
            return Err(wrong(at, &path, format!("is not a known key{}", hint.unwrap_or_default())));
        }
        Ok(())
    }
}

/// A scalar as a text.
pub fn text(path: &str, node: &Node) -> Result<String> {
    match &node.value {
        Value::Text(text, _) if !node.is_null() => Ok(text.clone()),
        _ => Err(wrong(&node.at, path, format!("is {}, not a text", node.kind()))),
    }
}

/// A scalar as true or false.
pub fn flag(path: &str, node: &Node) -> Result<bool> {
    match text(path, node)?.to_ascii_lowercase().as_str() {
        "true" | "yes" | "on" => Ok(true),
        "false" | "no" | "off" => Ok(false),
        other => Err(wrong(&node.at, path, format!("is {other:.40?}, neither true nor false"))),
    }
}

/// A scalar as a number.
pub fn number<T: std::str::FromStr>(path: &str, node: &Node) -> Result<T> {
    let text = text(path, node)?;
    text.trim().parse().map_err(|_| wrong(&node.at, path, format!("is {text:.40?}, not a number that fits")))
}

/// A list's nodes; nothing is none.
pub fn list<'a>(path: &str, node: &'a Node) -> Result<&'a [Node]> {
    match &node.value {
        Value::List(list) => Ok(list),
        _ if node.is_null() => Ok(&[]),
        _ => Err(wrong(&node.at, path, format!("is {}, not a list", node.kind()))),
    }
}

// Microseconds are rounded up: nothing here is as quick as that.
fn duration(text: &str) -> std::result::Result<Duration, String> {
    let text = text.trim();
    if let Some(micros) = text.strip_suffix("us").and_then(|number| number.parse::<u64>().ok()) {
        return Ok(Duration::from_millis(micros.div_ceil(1000)));
    }
    text.parse().map_err(|error: Error| format!("{} {}", error.subject, error.message))
}

// Compose counts in 1024 whatever the letters are.
fn size(text: &str) -> std::result::Result<Bytes, String> {
    let lower = text.trim().to_ascii_lowercase();
    let unit = lower.trim_end_matches("ib").trim_end_matches('b');
    let unit = if unit.is_empty() { &lower } else { unit };
    unit.parse().map_err(|error: Error| format!("{text:.40?} {}", error.message))
}

/// A command line as words, by the rules of a shell's quotes.
pub fn words(text: &str) -> std::result::Result<Vec<String>, String> {
    let (mut words, mut word, mut quote) = (Vec::new(), None::<String>, None);
    let mut chars = text.chars();
    while let Some(c) = chars.next() {
        match (quote, c) {
            (Some('\''), '\'') | (Some('"'), '"') => quote = None,
            (Some('"'), '\\') => match chars.next() {
                Some(next @ ('"' | '\\' | '$' | '`')) => word.get_or_insert_default().push(next),
                Some(next) => word.get_or_insert_default().extend(['\\', next]),
                None => return Err("ends with a backslash".into()),
            },
            (Some(_), c) => word.get_or_insert_default().push(c),
            (None, '\'' | '"') => {
                quote = Some(c);
                word.get_or_insert_default();
            }
            (None, '\\') => match chars.next() {
                Some('\n') => {}
                Some(next) => word.get_or_insert_default().push(next),
                None => return Err("ends with a backslash".into()),
            },
            (None, c) if c.is_whitespace() => words.extend(word.take()),
            (None, c) => word.get_or_insert_default().push(c),
        }
    }
    if quote.is_some() {
        return Err("has a quote that is not closed".into());
    }
    words.extend(word);
    Ok(words)
}

/// A tree as it would be in JSON: plain scalars are what they look like.
pub fn json(node: &Node) -> serde_json::Value {
    use serde_json::Value as Json;
    match &node.value {
        _ if node.is_null() => Json::Null,
        Value::Text(text, true) => match text.as_str() {
            "true" | "True" | "TRUE" => Json::Bool(true),
            "false" | "False" | "FALSE" => Json::Bool(false),
            _ => match text.parse::<i64>() {
                Ok(number) => number.into(),
                Err(_) => match text.parse::<f64>() {
                    Ok(number) if text.contains(|c: char| c.is_ascii_digit()) => number.into(),
                    _ => text.as_str().into(),
                },
            },
        },
        Value::Text(text, false) => text.as_str().into(),
        Value::List(list) => list.iter().map(json).collect(),
        Value::Map(map) => map.iter().map(|(key, _, node)| (key.clone(), json(node))).collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn command_lines() {
        let check = |text: &str, expected: &[&str]| assert_eq!(words(text).unwrap(), expected, "for {text:?}");
        check("run --a 'b c' \"d \\\"e\\\"\" f\\ g", &["run", "--a", "b c", "d \"e\"", "f g"]);
        check("  a ''  ", &["a", ""]);
        check("echo $HOME '$x'", &["echo", "$HOME", "$x"]);
        assert_eq!(words("a 'b").unwrap_err(), "has a quote that is not closed");
    }

    #[test]
    fn amounts() {
        for (text, bytes) in
            [("512M", 512 << 20), ("1gb", 1 << 30), ("64kb", 64 << 10), ("100", 100), ("10b", 10), ("2GiB", 2 << 30)]
        {
            assert_eq!(size(text), Ok(Bytes(bytes)), "for {text}");
        }
        assert!(size("many").is_err() && size("b").is_err() && size("").is_err());
        assert_eq!(duration("1m30s").unwrap().millis(), 90_000);
        assert_eq!(duration("1500us").unwrap().millis(), 2);
        assert!(duration("5").unwrap_err().contains("has no unit"));
    }
}
