//! A YAML document as a tree that knows its lines: an error can say where.

use std::collections::BTreeMap;
use std::sync::Arc;

use saphyr_parser::{Event, Parser, ScalarStyle, Span, Tag};

use crate::model::{Error, Kind, Result};

/// Largest file, in bytes.
const MAX_FILE: usize = 4 << 20;
/// Most nodes of a document, with each use of an anchor counted anew, and so many bytes of text for one more.
const MAX_NODES: usize = 200_000;
const TEXT: usize = 32;
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

/// Whether a plain text says nothing.
pub fn is_null(text: &str) -> bool {
    matches!(text, "" | "~" | "null" | "Null" | "NULL")
}

impl Node {
    /// Whether it says nothing: `key:` alone, `~`, `null`.
    pub fn is_null(&self) -> bool {
        matches!(&self.value, Value::Text(text, true) if is_null(text))
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
    anchors: BTreeMap<usize, (Node, Size)>,
    nodes: usize,
}

/// How much a node is: nodes in it, and how deep they are nested.
#[derive(Debug, Clone, Copy, Default)]
struct Size {
    nodes: usize,
    height: usize,
}

impl Size {
    fn add(&mut self, inner: Size) {
        self.nodes += inner.nodes;
        self.height = self.height.max(inner.height + 1);
    }
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

    fn too_deep(&self, depth: usize, span: Span) -> Result<()> {
        match depth > MAX_DEPTH {
            true => Err(self.wrong(span, format!("is nested deeper than {MAX_DEPTH}"))),
            false => Ok(()),
        }
    }

    // The node that an event begins, and how much it is.
    fn node(&mut self, event: Event<'a>, span: Span, depth: usize) -> Result<(Node, Size)> {
        self.too_deep(depth, span)?;
        let at = self.at(span);
        let (value, anchor, tag, mut size) = match event {
            Event::Alias(anchor) => {
                let known = self.anchors.get(&anchor).cloned();
                let (node, size) = known.ok_or_else(|| self.wrong(span, "names an anchor that is not there yet"))?;
                self.count(size.nodes, span)?;
                self.too_deep(depth + size.height, span)?;
                return Ok((node, size));
            }
            Event::Scalar(text, style, anchor, tag) => {
                let size = Size { nodes: text.len() / TEXT, height: 0 };
                self.count(size.nodes, span)?;
                (Value::Text(text.into_owned(), style == ScalarStyle::Plain), anchor, tag, size)
            }
            Event::SequenceStart(anchor, tag) => {
                let (mut list, mut size) = (Vec::new(), Size::default());
                loop {
                    let (event, span) = self.next()?;
                    if matches!(event, Event::SequenceEnd) {
                        break;
                    }
                    let (node, inner) = self.node(event, span, depth + 1)?;
                    size.add(inner);
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
        size.nodes += 1;
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

    fn mapping(&mut self, depth: usize) -> Result<(Vec<Entry>, Size)> {
        let (mut map, mut merged, mut size): (Vec<Entry>, Vec<Node>, _) = (Vec::new(), Vec::new(), Size::default());
        loop {
            let (event, span) = self.next()?;
            let key = match event {
                Event::MappingEnd => break,
                Event::Scalar(text, ..) => text.into_owned(),
                _ => return Err(self.wrong(span, "has a key that is no text")),
            };
            let at = self.at(span);
            let (event, value_span) = self.next()?;
            let (node, inner) = self.node(event, value_span, depth + 1)?;
            size.add(inner);
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

#[cfg(test)]
pub mod tests {
    use super::*;

    /// As JSON, with every text as it stands.
    pub fn json(node: &Node) -> serde_json::Value {
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
        // Also where each part of it is shallow.
        let part = format!("{}x{}", "[".repeat(40), "]".repeat(40));
        let whole = format!("a: &a {part}\nb: {}*a{}\n", "[".repeat(40), "]".repeat(40));
        check(&whole, "f.yml:2: is nested deeper than 64");
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
        // Few of them, and much in each.
        let text = format!("a: &a {}\nb: [{}]\n", "x".repeat(1 << 20), vec!["*a"; 100].join(", "));
        let error = parse("f.yml", &text).unwrap_err();
        assert!(error.message.contains("more than 200000 parts"), "{}", error.message);
    }

    proptest::proptest! {
        #[test]
        fn any_text_is_a_document_or_an_error(text in "[a-c:\\-\\[\\]{}&*!|>'\" \\n#,?]{0,60}") {
            let _ = parse("f.yml", &text);
        }
    }
}
