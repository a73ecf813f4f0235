//! Filter expressions, as Consul's clients write them: `Service.Port == 80 and "v1" in Service.Tags`. What is filtered is the
//! answer itself, by the names of its fields.

use std::iter::Peekable;
use std::str::CharIndices;

use regex::Regex;
use serde_json::Value;

use crate::model::{Error, Result};

/// Longest expression, in bytes.
const LONGEST: usize = 4096;
/// How deep parentheses and negations may stand in each other.
const DEEPEST: usize = 64;
/// Largest compiled pattern, in bytes.
const MAX_PATTERN: usize = 1 << 18;
/// Patterns in one expression at most.
const MOST_PATTERNS: usize = 8;
/// Tables whose keys are whatever their owners say: a key that is not there is not wrong.
const OPEN: [&str; 6] = ["Meta", "NodeMeta", "ServiceMeta", "TaggedAddresses", "ServiceTaggedAddresses", "Header"];

/// An expression.
#[derive(Debug)]
pub enum Filter {
    Or(Box<Filter>, Box<Filter>),
    And(Box<Filter>, Box<Filter>),
    Not(Box<Filter>),
    /// A field and what is asked of it.
    Match(Vec<String>, Test),
}

/// What is asked of a field.
#[derive(Debug)]
pub enum Test {
    Equal(String),
    /// A list that holds it, a table that has the key, a text that it is part of.
    Holds(String),
    Matches(Regex),
    Empty,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Token {
    Open,
    Close,
    Equal,
    NotEqual,
    /// A name, a number or a word of the language.
    Word(String),
    Text(String),
    /// `["key"]` behind a field.
    Key(String),
}

fn wrong(why: impl Into<String>) -> Error {
    Error::invalid("filter", format!("Failed to create boolean expression evaluator: {}", why.into()))
        .help("write, for example: Service.Port == 80 and \"v1\" in Service.Tags")
}

impl Filter {
    /// Reads one.
    pub fn parse(text: &str) -> Result<Self> {
        if text.len() > LONGEST {
            return Err(wrong(format!("is {} bytes long; {LONGEST} are allowed", text.len())));
        }
        let tokens = split(text)?;
        let mut parser = Parser { tokens: &tokens, at: 0, depth: 0, patterns: 0 };
        let filter = parser.or()?;
        match parser.peek() {
            None => Ok(filter),
            Some(token) => Err(wrong(format!("{token:?} stands where \"and\", \"or\" or the end should"))),
        }
    }

    /// Whether `item` is one of those that are asked for.
    pub fn matches(&self, item: &Value) -> Result<bool> {
        Ok(match self {
            Filter::Or(left, right) => left.matches(item)? || right.matches(item)?,
            Filter::And(left, right) => left.matches(item)? && right.matches(item)?,
            Filter::Not(inner) => !inner.matches(item)?,
            Filter::Match(path, test) => match find(item, path)? {
                Some(found) => test.holds(found, path)?,
                None => matches!(test, Test::Empty),
            },
        })
    }

    /// Those of a list that are asked for.
    pub fn keep(&self, items: Vec<Value>) -> Result<Vec<Value>> {
        let mut kept = Vec::with_capacity(items.len());
        for item in items {
            if self.matches(&item)? {
                kept.push(item);
            }
        }
        Ok(kept)
    }
}

impl Test {
    fn holds(&self, found: &Value, path: &[String]) -> Result<bool> {
        let unfit = |what: &str| Err(wrong(format!("{} cannot be asked {what}", path.join("."))));
        Ok(match (self, found) {
            (Test::Empty, Value::Null) => true,
            (Test::Empty, Value::Array(all)) => all.is_empty(),
            (Test::Empty, Value::Object(map)) => map.is_empty(),
            (Test::Empty, Value::String(text)) => text.is_empty(),
            (Test::Empty, _) => return unfit("whether it is empty"),
            (_, Value::Null) => false,
            (Test::Equal(wanted), Value::String(text)) => text == wanted,
            (Test::Equal(wanted), Value::Number(number)) => {
                let wanted: f64 = wanted
                    .parse()
                    .map_err(|_| wrong(format!("{} is a number, {wanted:.60?} is none", path.join("."))))?;
                number.as_f64() == Some(wanted)
            }
            (Test::Equal(wanted), Value::Bool(flag)) => match wanted.to_lowercase().as_str() {
                "true" | "t" | "1" => *flag,
                "false" | "f" | "0" => !flag,
                _ => return Err(wrong(format!("{} is true or false, not {wanted:.60?}", path.join(".")))),
            },
            (Test::Equal(_), _) => return unfit("whether it equals something"),
            (Test::Holds(wanted), Value::Array(all)) => all.iter().any(|item| item.as_str() == Some(wanted)),
            (Test::Holds(wanted), Value::Object(map)) => map.contains_key(wanted),
            (Test::Holds(wanted), Value::String(text)) => text.contains(wanted.as_str()),
            (Test::Holds(_), _) => return unfit("what it holds"),
            (Test::Matches(pattern), Value::String(text)) => pattern.is_match(text),
            (Test::Matches(_), _) => return unfit("whether it matches a pattern"),
        })
    }
}

// A field of an answer; nothing where a table of its owner's has no such key.
fn find<'a>(item: &'a Value, path: &[String]) -> Result<Option<&'a Value>> {
    let mut here = item;
    let mut open = false;
    for name in path {
        match here {
            Value::Object(map) => match map.get(name) {
                Some(next) => here = next,
                None if open => return Ok(None),
                None => {
                    let hint = crate::model::suggest::hint(name, map.keys().map(String::as_str));
                    return Err(wrong(format!("Selector {:.80?} is not valid{hint}", path.join("."))));
                }
            },
            Value::Null => return Ok(None),
            _ => return Err(wrong(format!("Selector {:.80?} is not valid", path.join(".")))),
        }
        open = OPEN.contains(&name.as_str());
    }
    Ok(Some(here))
}

fn split(text: &str) -> Result<Vec<Token>> {
    let mut tokens = Vec::new();
    let mut chars = text.char_indices().peekable();
    while let Some((at, c)) = chars.next() {
        let token = match c {
            c if c.is_whitespace() => continue,
            '(' => Token::Open,
            ')' => Token::Close,
            '=' if chars.next_if(|(_, c)| *c == '=').is_some() => Token::Equal,
            '!' if chars.next_if(|(_, c)| *c == '=').is_some() => Token::NotEqual,
            '"' | '`' => Token::Text(quoted(&mut chars, c)?),
            '[' => {
                let Some((_, quote)) = chars.next_if(|(_, c)| matches!(c, '"' | '`')) else {
                    return Err(wrong("a [ is not followed by a text"));
                };
                let key = quoted(&mut chars, quote)?;
                chars.next_if(|(_, c)| *c == ']').ok_or_else(|| wrong("a [ is not closed"))?;
                Token::Key(key)
            }
            c if is_word(c) => {
                let mut end = at + c.len_utf8();
                while let Some((next, c)) = chars.next_if(|(_, c)| is_word(*c)) {
                    end = next + c.len_utf8();
                }
                Token::Word(text[at..end].to_owned())
            }
            other => return Err(wrong(format!("{other:?} stands at {at}, and means nothing there"))),
        };
        tokens.push(token);
    }
    Ok(tokens)
}

fn is_word(c: char) -> bool {
    c.is_alphanumeric() || matches!(c, '_' | '.' | '-' | '/' | ':')
}

// Up to the closing quote; in "…" a backslash takes the next one as it is, in `…` it is one itself.
fn quoted(chars: &mut Peekable<CharIndices>, quote: char) -> Result<String> {
    let mut text = String::new();
    while let Some((_, c)) = chars.next() {
        match c {
            c if c == quote => return Ok(text),
            '\\' if quote == '"' => match chars.next() {
                Some((_, 'n')) => text.push('\n'),
                Some((_, 't')) => text.push('\t'),
                Some((_, next @ ('"' | '\\'))) => text.push(next),
                // A pattern's own.
                Some((_, next)) => text.extend(['\\', next]),
                None => break,
            },
            other => text.push(other),
        }
    }
    Err(wrong("a text is not closed"))
}

struct Parser<'a> {
    tokens: &'a [Token],
    at: usize,
    depth: usize,
    patterns: usize,
}

impl Parser<'_> {
    fn peek(&self) -> Option<&Token> {
        self.tokens.get(self.at)
    }

    fn next(&mut self) -> Option<Token> {
        let token = self.tokens.get(self.at).cloned();
        self.at += 1;
        token
    }

    fn word(&mut self, wanted: &str) -> bool {
        let found = matches!(self.peek(), Some(Token::Word(word)) if word == wanted);
        self.at += usize::from(found);
        found
    }

    // Lists are read in a loop, so that a long one is no deep one.
    fn or(&mut self) -> Result<Filter> {
        let mut left = self.and()?;
        while self.word("or") {
            left = Filter::Or(Box::new(left), Box::new(self.and()?));
        }
        Ok(left)
    }

    fn and(&mut self) -> Result<Filter> {
        let mut left = self.not()?;
        while self.word("and") {
            left = Filter::And(Box::new(left), Box::new(self.not()?));
        }
        Ok(left)
    }

    fn not(&mut self) -> Result<Filter> {
        self.depth += 1;
        if self.depth > DEEPEST {
            return Err(wrong(format!("is nested deeper than {DEEPEST}")));
        }
        let filter = if self.word("not") {
            Filter::Not(Box::new(self.not()?))
        } else if self.peek() == Some(&Token::Open) {
            self.at += 1;
            let inner = self.or()?;
            match self.next() {
                Some(Token::Close) => inner,
                _ => return Err(wrong("a ( is not closed")),
            }
        } else {
            self.test()?
        };
        self.depth -= 1;
        Ok(filter)
    }

    fn test(&mut self) -> Result<Filter> {
        let first = match self.next() {
            Some(token @ (Token::Word(_) | Token::Text(_))) => token,
            Some(token) => return Err(wrong(format!("{token:?} stands where a field or a value should"))),
            None => return Err(wrong("ends where a field or a value should stand")),
        };
        let negated = |is: bool, filter: Filter| if is { Filter::Not(Box::new(filter)) } else { filter };
        // `value in field`, whose field stands last.
        let start = self.at;
        let not = self.word("not");
        if self.word("in") {
            let path = match self.next() {
                Some(Token::Word(name)) => self.path(&name)?,
                _ => return Err(wrong("\"in\" is not followed by a field")),
            };
            let (Token::Word(value) | Token::Text(value)) = first else { return Err(wrong("has no value")) };
            return Ok(negated(not, Filter::Match(path, Test::Holds(value))));
        }
        self.at = start;
        let Token::Word(name) = first else {
            return Err(wrong("a value is not followed by \"in\" or \"not in\""));
        };
        let path = self.path(&name)?;
        if self.word("is") {
            let not = self.word("not");
            return match self.word("empty") {
                true => Ok(negated(not, Filter::Match(path, Test::Empty))),
                false => Err(wrong("\"is\" is not followed by \"empty\" or \"not empty\"")),
            };
        }
        let mut not = self.word("not");
        let operator = match self.next() {
            Some(Token::Equal) if !not => "==",
            Some(Token::NotEqual) if !not => {
                not = true;
                "=="
            }
            Some(Token::Word(word)) if word == "contains" => "contains",
            Some(Token::Word(word)) if word == "matches" => "matches",
            other => {
                let what = other.map_or("its end".to_owned(), |token| format!("{token:?}"));
                return Err(wrong(format!("{} is followed by {what}, not by an operator", path.join("."))));
            }
        };
        let value = match self.next() {
            Some(Token::Word(value) | Token::Text(value)) => value,
            _ => return Err(wrong(format!("{operator} is not followed by a value"))),
        };
        let test = match operator {
            "==" => Test::Equal(value),
            "contains" => Test::Holds(value),
            _ => {
                self.patterns += 1;
                if self.patterns > MOST_PATTERNS {
                    return Err(wrong(format!("has more than {MOST_PATTERNS} patterns")));
                }
                let pattern = regex::RegexBuilder::new(&value).size_limit(MAX_PATTERN).build();
                Test::Matches(pattern.map_err(|error| wrong(format!("{value:.60?} is no pattern")).cause(error))?)
            }
        };
        Ok(negated(not, Filter::Match(path, test)))
    }

    // `Node.Meta.rack`, `Node.Meta["rack"]`.
    fn path(&mut self, name: &str) -> Result<Vec<String>> {
        let mut path: Vec<String> = name.split('.').map(str::to_owned).collect();
        while let Some(Token::Key(key)) = self.peek() {
            path.push(key.clone());
            self.at += 1;
            // `Meta["a"].b` comes as a word that begins with the dot.
            if let Some(Token::Word(rest)) = self.peek()
                && let Some(rest) = rest.strip_prefix('.')
            {
                path.extend(rest.split('.').map(str::to_owned));
                self.at += 1;
            }
        }
        match path.iter().all(|part| !part.is_empty()) {
            true => Ok(path),
            false => Err(wrong(format!("Selector {name:.80?} is not valid"))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn check(filter: &str, expected: bool) {
        let item = json!({
            "Node": { "Node": "eu-1", "Meta": { "rack": "r-1", "a/b": "x" } },
            "Service": { "Service": "web", "Port": 80, "Tags": ["v1", "blue"], "Meta": {}, "EnableTagOverride": true },
            "Checks": [],
        });
        assert_eq!(Filter::parse(filter).unwrap().matches(&item).unwrap(), expected, "{filter}");
    }

    #[test]
    fn what_is_asked_for() {
        check("Service.Port == 80", true);
        check("Service.Port==81", false);
        check("Service.Port != 81 and Node.Node == `eu-1`", true);
        check("Service.Service == web", true);
        check("\"v1\" in Service.Tags", true);
        check("v2 not in Service.Tags", true);
        check("Service.Tags contains \"blue\" and not Service.Tags contains green", true);
        check("Service.Tags not contains \"blue\"", false);
        check("Node.Meta.rack == \"r-1\"", true);
        check("Node.Meta[\"a/b\"] == x", true);
        check("Node.Meta.none == \"\"", false);
        check("Node.Meta.none != \"r-1\"", true);
        check("rack in Node.Meta and \"none\" not in Node.Meta", true);
        check("Node.Node matches \"^eu-\\d$\"", true);
        check("Node.Node not matches `^us`", true);
        check("\"u-\" in Node.Node", true);
        check("Checks is empty and Service.Tags is not empty", true);
        check("Service.EnableTagOverride == true", true);
        // `and` binds closer than `or`, `not` closer than both.
        check("Service.Port == 80 or Service.Port == 1 and Service.Port == 2", true);
        check("(Service.Port == 80 or Service.Port == 1) and Service.Port == 2", false);
        check("not Service.Port == 80 or Service.Port == 80", true);
        check("not (Service.Port == 80 or Service.Port == 1)", false);
    }

    #[test]
    fn what_is_wrong_is_said() {
        let item = json!({ "Node": "eu-1", "Port": 80, "Tags": [], "Meta": { "a": "b" } });
        let deep = format!("{}Port == 80{}", "(".repeat(100), ")".repeat(100));
        for (filter, why) in [
            ("Nodes == x", "did you mean \"Node\""),
            ("Port == x", "is a number"),
            ("Tags == x", "equals something"),
            ("Port matches x", "matches a pattern"),
            ("Port", "not by an operator"),
            ("Port ==", "not followed by a value"),
            ("Port == 80 Node == x", "where \"and\""),
            ("(Port == 80", "not closed"),
            ("Node == \"x", "not closed"),
            ("Node matches \"(\"", "is no pattern"),
            ("Node matches \"(a{1000}){1000}\"", "is no pattern"),
            ("Port = 80", "means nothing"),
            ("\"x\" == Node", "not followed by \"in\""),
            ("Meta.a.b == x", "not valid"),
            ("", "ends where"),
            (&deep, "nested deeper"),
        ] {
            let error = Filter::parse(filter).and_then(|filter| filter.matches(&item)).unwrap_err().to_string();
            assert!(error.contains(why), "{filter}: {error}");
        }
        let long = vec!["Port == 80"; 200].join(" or ");
        assert!(Filter::parse(&long).unwrap().matches(&item).unwrap());
    }
}
