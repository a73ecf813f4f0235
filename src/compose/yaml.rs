//! A YAML document as a tree that knows its lines: an error can say where.

use std::collections::BTreeMap;
use std::sync::Arc;

use saphyr_parser::{Event, Parser, ScalarStyle, Span, Tag};

use crate::model::{Error, Kind, Result};

/// Largest file, in bytes.
const MAX_FILE: usize = 4 << 20;
/// Most nodes of a document, with each use of an anchor counted anew.
const MAX_NODES: usize = 200_000;
/// Deepest nesting.
const MAX_DEPTH: usize = 64;

/// Where something stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct At {
    /// The file, as its user named it.
    pub file: Arc<str>,
    /// Counted from 1.
    pub line: usize,
}

impl std::fmt::Display for At {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}:{}", self.file, self.line)
    }
}

/// A node, and where it begins.
#[derive(Debug, Clone, PartialEq)]
pub struct Node {
    /// Where.
    pub at: At,
    /// What.
    pub value: Value,
    /// Said with `!reset` or `!override`, which concern merging.
    pub merge: Merge,
}

/// A key, where it stands, and what it says.
pub type Entry = (String, At, Node);

/// How a node is merged into one of a file before.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Merge {
    /// Key by key, and lists one after the other.
    #[default]
    Usual,
    /// What was there goes.
    Reset,
    /// It takes the place of what was there.
    Override,
}

/// What a node is.
#[derive(Debug, Clone, PartialEq)]
pub enum Value {
    /// A text; `plain`: without quotes, so that `true` and `5` mean what they say.
    Text(String, bool),
    /// A list.
    List(Vec<Node>),
    /// Keys in their order, each with where it stands.
    Map(Vec<Entry>),
}

impl Node {
    /// Whether it says nothing: `key:` alone, `~`, `null`.
    pub fn is_null(&self) -> bool {
        matches!(&self.value, Value::Text(text, true) if matches!(text.as_str(), "" | "~" | "null" | "Null" | "NULL"))
    }

    /// What it is called in errors.
    pub fn kind(&self) -> &'static str {
        match self.value {
            _ if self.is_null() => "nothing",
            Value::Text(..) => "a text",
            Value::List(_) => "a list",
            Value::Map(_) => "a mapping",
        }
    }
}

/// Reads one document.
pub fn parse(file: &str, text: &str) -> Result<Node> {
    let file: Arc<str> = file.into();
    if text.len() > MAX_FILE {
        return Err(Error::new(Kind::Exhausted, file.to_string(), format!("{} bytes are too many", text.len()))
            .help(format!("at most {MAX_FILE} bytes")));
    }
    let mut reader = Reader { file, parser: Parser::new_from_str(text), anchors: BTreeMap::new(), nodes: 0 };
    let mut document = None;
    loop {
        let (event, span) = reader.next()?;
        match event {
            Event::StreamEnd => break,
            Event::StreamStart | Event::DocumentStart(_) | Event::DocumentEnd | Event::Nothing => {}
            _ if document.is_some() => return Err(reader.wrong(span, "begins a second document; there is to be one")),
            event => document = Some(reader.node(event, span, 0)?.0),
        }
    }
    let empty =
        || Node { at: At { file: reader.file.clone(), line: 1 }, value: Value::Map(Vec::new()), merge: Merge::Usual };
    let document = document.filter(|document| !document.is_null()).unwrap_or_else(empty);
    match document.value {
        Value::Map(_) => Ok(document),
        _ => Err(Error::invalid(document.at.to_string(), format!("is {}, not a mapping of keys", document.kind()))),
    }
}

struct Reader<'a> {
    file: Arc<str>,
    parser: Parser<'a, saphyr_parser::StrInput<'a>>,
    // Each with the number of nodes in it.
    anchors: BTreeMap<usize, (Node, usize)>,
    nodes: usize,
}

impl<'a> Reader<'a> {
    fn at(&self, span: Span) -> At {
        At { file: self.file.clone(), line: span.start.line() }
    }

    fn wrong(&self, span: Span, why: impl Into<String>) -> Error {
        Error::invalid(self.at(span).to_string(), why)
    }

    fn next(&mut self) -> Result<(Event<'a>, Span)> {
        match self.parser.next() {
            Some(Ok(next)) => Ok(next),
            Some(Err(error)) => {
                let at = At { file: self.file.clone(), line: error.marker().line() };
                Err(Error::invalid(at.to_string(), "is not YAML").cause(error.info()))
            }
            None => Err(Error::invalid(self.file.to_string(), "ends in the middle")),
        }
    }

    // The node that an event begins, and how many nodes are in it.
    fn node(&mut self, event: Event<'a>, span: Span, depth: usize) -> Result<(Node, usize)> {
        if depth > MAX_DEPTH {
            return Err(self.wrong(span, format!("is nested deeper than {MAX_DEPTH}")));
        }
        let at = self.at(span);
        let (value, anchor, tag, mut size) = match event {
            Event::Alias(anchor) => {
                let known = self.anchors.get(&anchor).cloned();
                let (node, size) = known.ok_or_else(|| self.wrong(span, "names an anchor that is not there yet"))?;
                self.count(size, span)?;
                return Ok((node, size));
            }
            Event::Scalar(text, style, anchor, tag) => {
                (Value::Text(text.into_owned(), style == ScalarStyle::Plain), anchor, tag, 0)
            }
            Event::SequenceStart(anchor, tag) => {
                let (mut list, mut size) = (Vec::new(), 0);
                loop {
                    let (event, span) = self.next()?;
                    if matches!(event, Event::SequenceEnd) {
                        break;
                    }
                    let (node, nodes) = self.node(event, span, depth + 1)?;
                    size += nodes;
                    list.push(node);
                }
                (Value::List(list), anchor, tag, size)
            }
            Event::MappingStart(anchor, tag) => {
                let (map, size) = self.mapping(depth)?;
                (Value::Map(map), anchor, tag, size)
            }
            other => return Err(self.wrong(span, format!("cannot be read ({other:?})"))),
        };
        size += 1;
        self.count(1, span)?;
        let node = self.tagged(Node { at, value, merge: Merge::Usual }, tag.as_deref(), span)?;
        if anchor > 0 {
            self.anchors.insert(anchor, (node.clone(), size));
        }
        Ok((node, size))
    }

    fn count(&mut self, nodes: usize, span: Span) -> Result<()> {
        self.nodes += nodes;
        match self.nodes > MAX_NODES {
            true => {
                Err(self.wrong(span, format!("the document has more than {MAX_NODES} parts, uses of anchors counted")))
            }
            false => Ok(()),
        }
    }

    fn tagged(&self, mut node: Node, tag: Option<&Tag>, span: Span) -> Result<Node> {
        let Some(tag) = tag else { return Ok(node) };
        match (tag.handle.as_str(), tag.suffix.as_str()) {
            ("!", "reset") => node.merge = Merge::Reset,
            ("!", "override") => node.merge = Merge::Override,
            (_, "str") => {
                if let Value::Text(_, plain) = &mut node.value {
                    *plain = false;
                }
            }
            (_, "int" | "float" | "bool" | "null" | "map" | "seq") => {}
            (handle, suffix) => return Err(self.wrong(span, format!("has the unknown tag {handle}{suffix}"))),
        }
        Ok(node)
    }

    fn mapping(&mut self, depth: usize) -> Result<(Vec<Entry>, usize)> {
        let (mut map, mut merged, mut size): (Vec<Entry>, Vec<Node>, usize) = (Vec::new(), Vec::new(), 0);
        loop {
            let (event, span) = self.next()?;
            let key = match event {
                Event::MappingEnd => break,
                Event::Scalar(text, ..) => text.into_owned(),
                _ => return Err(self.wrong(span, "has a key that is no text")),
            };
            let at = self.at(span);
            let (event, value_span) = self.next()?;
            let (node, nodes) = self.node(event, value_span, depth + 1)?;
            size += nodes;
            if key == "<<" {
                merged.push(node);
                continue;
            }
            if map.iter().any(|(known, ..)| *known == key) {
                return Err(self.wrong(span, format!("has the key {key:?} twice")));
            }
            map.push((key, at, node));
        }
        // What is said here counts before what is merged in, and the first of several before the next.
        for node in merged {
            let nodes = match node.value {
                Value::List(list) => list,
                _ => vec![node],
            };
            for node in nodes {
                let Value::Map(entries) = node.value else {
                    return Err(Error::invalid(node.at.to_string(), "\"<<\" merges mappings only"));
                };
                for (key, at, value) in entries {
                    if !map.iter().any(|(known, ..)| *known == key) {
                        map.push((key, at, value));
                    }
                }
            }
        }
        Ok((map, size))
    }
}

/// Puts `over` on top of `base`: mappings key by key, lists one after the other, anything else replaces. `path` are the
/// keys that lead here; some of Compose's lists replace, or are mappings in another form.
pub fn merge(base: Node, over: Node, path: &mut Vec<String>) -> Node {
    let at = over.at.clone();
    match (base.value, over.value, over.merge) {
        (_, value, Merge::Override) => Node { at, value, merge: Merge::Usual },
        (_, _, Merge::Reset) => Node { at, value: Value::Text(String::new(), true), merge: Merge::Reset },
        (Value::Map(mut map), Value::Map(entries), _) => {
            for (key, at, node) in entries {
                path.push(key.clone());
                match map.iter().position(|(known, ..)| *known == key) {
                    Some(known) => {
                        let (_, _, before) = map.remove(known);
                        let merged = merge(before, node, path);
                        if merged.merge != Merge::Reset {
                            map.insert(known, (key, at, merged));
                        }
                    }
                    None if node.merge != Merge::Reset => map.push((key, at, node)),
                    None => {}
                }
                path.pop();
            }
            Node { at, value: Value::Map(map), merge: Merge::Usual }
        }
        (Value::List(mut list), Value::List(more), _) if !replaces(path) => {
            for node in more {
                if let Some(target) = same_place(&node, path) {
                    list.retain(|known| same_place(known, path).as_ref() != Some(&target));
                }
                if !list.iter().any(|known| known.value == node.value) {
                    list.push(node);
                }
            }
            Node { at, value: Value::List(list), merge: Merge::Usual }
        }
        // A list of `KEY=value` and a mapping are two forms of the same.
        (Value::List(list), Value::Map(entries), _) if has_two_forms(path) => {
            let base = Node { at: at.clone(), value: Value::Map(pairs(list)), merge: Merge::Usual };
            merge(base, Node { at, value: Value::Map(entries), merge: Merge::Usual }, path)
        }
        (Value::Map(entries), Value::List(list), _) if has_two_forms(path) => {
            let base = Node { at: at.clone(), value: Value::Map(entries), merge: Merge::Usual };
            merge(base, Node { at, value: Value::Map(pairs(list)), merge: Merge::Usual }, path)
        }
        (_, value, _) => Node { at, value, merge: Merge::Usual },
    }
}

fn key(path: &[String]) -> &str {
    path.last().map_or("", String::as_str)
}

fn replaces(path: &[String]) -> bool {
    matches!(key(path), "command" | "entrypoint" | "test")
}

fn has_two_forms(path: &[String]) -> bool {
    matches!(key(path), "environment" | "labels" | "sysctls" | "extra_hosts" | "annotations" | "args")
}

/// A list of `KEY=value` as a mapping.
fn pairs(list: Vec<Node>) -> Vec<Entry> {
    let pair = |node: Node| {
        let Value::Text(text, _) = &node.value else { return None };
        let (key, value) = match text.split_once('=') {
            Some((key, value)) => (key.to_owned(), Value::Text(value.to_owned(), false)),
            None => (text.clone(), Value::Text(String::new(), true)),
        };
        Some((key, node.at.clone(), Node { value, ..node }))
    };
    list.into_iter().filter_map(pair).collect()
}

// Two volumes at one path of a container, or two values of one variable: the later counts.
fn same_place(node: &Node, path: &[String]) -> Option<String> {
    match (key(path), &node.value) {
        ("volumes", Value::Text(text, _)) => text.split(':').nth(1).map(str::to_owned),
        ("volumes" | "secrets" | "configs", Value::Map(map)) => {
            map.iter().find(|(key, ..)| key == "target").and_then(|(_, _, node)| match &node.value {
                Value::Text(text, _) => Some(text.clone()),
                _ => None,
            })
        }
        ("environment" | "labels" | "sysctls", Value::Text(text, _)) => text.split('=').next().map(str::to_owned),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    // As JSON, with every text as it stands.
    fn json(node: &Node) -> serde_json::Value {
        match &node.value {
            _ if node.is_null() => serde_json::Value::Null,
            Value::Text(text, _) => text.as_str().into(),
            Value::List(list) => list.iter().map(json).collect(),
            Value::Map(map) => map.iter().map(|(key, _, node)| (key.clone(), json(node))).collect(),
        }
    }

    fn check(text: &str, expected: &str) {
        let got = match parse("f.yml", text) {
            Ok(node) => json(&node).to_string(),
            Err(error) => format!("{}: {}", error.subject, error.message),
        };
        assert_eq!(got, expected, "for {text:?}");
    }

    #[test]
    fn documents() {
        check("a: 1\nb: [x, 'y']\nc:\n", r#"{"a":"1","b":["x","y"],"c":null}"#);
        check("", "{}");
        check("x: &x {a: 1, b: 2}\ny:\n  <<: *x\n  b: 3\n", r#"{"x":{"a":"1","b":"2"},"y":{"a":"1","b":"3"}}"#);
        check("a: 1\na: 2\n", "f.yml:2: has the key \"a\" twice");
        check("- a\n", "f.yml:1: is a list, not a mapping of keys");
        check("a: *b\n", "f.yml:1: is not YAML");
        check("a: 1\n---\nb: 2\n", "f.yml:3: begins a second document; there is to be one");
        check("a: !secret x\n", "f.yml:1: has the unknown tag !secret");
        check("a: [1, 2\n", "f.yml:2: is not YAML");
        let deep = format!("a: {}1{}", "[".repeat(100), "]".repeat(100));
        check(&deep, "f.yml:1: is nested deeper than 64");
    }

    #[test]
    fn anchors_within_anchors_are_counted() {
        let mut text = String::from("a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n");
        for level in 1..12 {
            let uses = vec![format!("*a{}", level - 1); 10].join(", ");
            text.push_str(&format!("a{level}: &a{level} [{uses}]\n"));
        }
        let error = parse("f.yml", &text).unwrap_err();
        assert!(error.message.contains("more than 200000 parts"), "{}", error.message);
    }

    #[test]
    fn merging() {
        let merged = |base: &str, over: &str| {
            json(&merge(parse("a", base).unwrap(), parse("b", over).unwrap(), &mut Vec::new())).to_string()
        };
        let both =
            merged("s: {ports: ['1'], command: [a], environment: [A=1, B=2]}", "s: {ports: ['2'], command: [b]}");
        assert_eq!(both, r#"{"s":{"command":["b"],"environment":["A=1","B=2"],"ports":["1","2"]}}"#);
        let both = merged("s: {environment: [A=1, B=2]}", "s: {environment: {B: 3, C: 4}}");
        assert_eq!(both, r#"{"s":{"environment":{"A":"1","B":"3","C":"4"}}}"#);
        assert_eq!(merged("s: {ports: ['1']}", "s: {ports: !override ['2']}"), r#"{"s":{"ports":["2"]}}"#);
        assert_eq!(merged("s: {ports: ['1'], a: 1}", "s: {ports: !reset []}"), r#"{"s":{"a":"1"}}"#);
        let both = merged("s: {volumes: ['a:/x', 'b:/y']}", "s: {volumes: ['c:/x']}");
        assert_eq!(both, r#"{"s":{"volumes":["b:/y","c:/x"]}}"#);
    }

    proptest::proptest! {
        #[test]
        fn any_text_is_a_document_or_an_error(text in "[a-c:\\-\\[\\]{}&*!|>'\" \\n#,?]{0,60}") {
            let _ = parse("f.yml", &text);
        }
    }
}
