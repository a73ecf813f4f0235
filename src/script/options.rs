//! The options that a policy or a rollout knows, and whether a service gives them as they are meant: said when it is applied, not
//! when a release is half-way.

use std::collections::BTreeMap;

use serde::{Deserialize, Deserializer};
use serde_json::Value;

use crate::model::release::Portion;
use crate::model::units::{Bytes, Duration};
use crate::model::{Error, Result, suggest};

/// What an option may be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Meant {
    /// Anything.
    Any,
    /// A text.
    Text,
    /// A number.
    Number,
    /// True or false.
    Boolean,
    /// A length of time.
    Duration,
    /// A size in bytes.
    Size,
    /// So many of the replicas, or a percentage.
    Portion,
    /// One of these.
    OneOf(Vec<String>),
}

/// The words for them, as in `options = { batch = "portion" }`.
const WORDS: [(&str, Meant); 7] = [
    ("any", Meant::Any),
    ("text", Meant::Text),
    ("number", Meant::Number),
    ("boolean", Meant::Boolean),
    ("duration", Meant::Duration),
    ("size", Meant::Size),
    ("portion", Meant::Portion),
];

/// The known options by name.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Options(pub BTreeMap<String, Meant>);

impl<'de> Deserialize<'de> for Options {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Self, D::Error> {
        let read = match Value::deserialize(deserializer)? {
            Value::Array(names) => names.iter().map(|name| name_of(name).map(|name| (name, Meant::Any))).collect(),
            Value::Object(fields) => {
                fields.into_iter().map(|(name, meant)| Ok((name.clone(), word(&name, &meant)?))).collect()
            }
            other => Err(format!("expected a table of names, got {other}")),
        };
        read.map(Options).map_err(serde::de::Error::custom)
    }
}

fn name_of(value: &Value) -> std::result::Result<String, String> {
    value.as_str().map(str::to_owned).ok_or_else(|| format!("expected the name of an option, got {value}"))
}

fn word(name: &str, meant: &Value) -> std::result::Result<Meant, String> {
    match meant {
        Value::String(given) => match WORDS.iter().find(|(word, _)| word == given) {
            Some((_, meant)) => Ok(meant.clone()),
            None => {
                let known = WORDS.map(|(word, _)| word);
                let hint = suggest::hint(given, known);
                Err(format!("{name}: \"{given:.40}\" is no kind of value{hint}"))
            }
        },
        Value::Array(allowed) => Ok(Meant::OneOf(allowed.iter().map(name_of).collect::<std::result::Result<_, _>>()?)),
        other => {
            Err(format!("{name}: expected a word such as \"duration\", or a list of what is allowed, got {other}"))
        }
    }
}

impl Options {
    /// Checks what a service gives; `subject` is the policy or rollout.
    pub fn check(&self, subject: &str, given: &serde_json::Map<String, Value>) -> Result<()> {
        for (name, value) in given {
            let Some(meant) = self.0.get(name) else {
                let hint = suggest::hint(name, self.0.keys().map(String::as_str));
                return Err(Error::invalid(subject, format!("unknown option \"{name:.60}\"{hint}")));
            };
            meant.check(value).map_err(|why| Error::invalid(subject, format!("{name}: {why}")))?;
        }
        Ok(())
    }
}

impl Meant {
    /// Checks one value; an error says what is wrong with it.
    pub fn check(&self, value: &Value) -> std::result::Result<(), String> {
        let expected = |what: &str| Err(format!("expected {what}, got {value}"));
        match (self, value) {
            (Meant::Text, Value::String(_))
            | (Meant::Number, Value::Number(_))
            | (Meant::Boolean, Value::Bool(_))
            | (Meant::Any, _) => Ok(()),
            (Meant::Text, _) => expected("a text"),
            (Meant::Number, _) => expected("a number"),
            (Meant::Boolean, _) => expected("true or false"),
            (Meant::Duration, Value::String(text)) => read::<Duration>(text),
            (Meant::Duration, _) => expected("a duration, such as \"30s\""),
            (Meant::Size, Value::String(text)) => read::<Bytes>(text),
            (Meant::Size, _) => expected("a size, such as \"512MiB\""),
            (Meant::Portion, _) => match Portion::deserialize(value) {
                Ok(_) => Ok(()),
                Err(_) => expected("a number of replicas, or a part of them such as \"25%\""),
            },
            (Meant::OneOf(allowed), Value::String(text)) if allowed.contains(text) => Ok(()),
            (Meant::OneOf(allowed), given) => {
                let text = given.as_str().unwrap_or_default();
                let hint = suggest::hint(text, allowed.iter().map(String::as_str));
                Err(format!("is {given}{hint}"))
            }
        }
    }
}

fn read<T: std::str::FromStr<Err = Error>>(text: &str) -> std::result::Result<(), String> {
    text.parse::<T>().map(drop).map_err(|error| format!("{text:?} {}", error.message))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn options_are_read_and_checked() {
        let known: Options = serde_json::from_value(json!({
            "batch": "portion", "order": ["start-first", "stop-first"], "delay": "duration", "over": "text", "most": "number",
            "free": "size", "strict": "boolean", "else": "any",
        }))
        .unwrap();
        let check = |given: Value, expected: &str| {
            let result = known.check("rollout \"x\"", given.as_object().unwrap());
            let said = result.map_or_else(|error| format!("{}: {}", error.subject, error.message), |()| "fine".into());
            assert!(said.contains(expected), "{given}: {said}");
        };
        check(
            json!({ "batch": 2, "order": "stop-first", "delay": "10s", "over": "a", "most": 1.5, "free": "1GiB", "strict": true }),
            "fine",
        );
        check(json!({ "batch": "25%", "else": { "a": 1 } }), "fine");
        check(json!({ "bach": 1 }), "unknown option \"bach\"; did you mean \"batch\"?");
        check(json!({ "batch": 0 }), "batch: expected a number of replicas");
        check(json!({ "batch": "half" }), "batch: expected a number of replicas");
        check(json!({ "order": "start_first" }), "order: is \"start_first\"; did you mean \"start-first\"?");
        check(json!({ "order": 1 }), "order: is 1; known: start-first, stop-first");
        check(json!({ "delay": 5 }), "delay: expected a duration");
        check(json!({ "delay": "5 sec" }), "delay: \"5 sec\" has an unknown unit");
        check(json!({ "over": false }), "over: expected a text, got false");
        check(json!({ "most": "1" }), "most: expected a number");
        check(json!({ "free": 5 }), "free: expected a size");
        check(json!({ "strict": "no" }), "strict: expected true or false");

        let wrong = |options: Value| serde_json::from_value::<Options>(options).unwrap_err().to_string();
        assert!(wrong(json!({ "a": "durration" })).contains("did you mean \"duration\""));
        assert!(wrong(json!({ "a": 1 })).contains("expected a word"));
        assert!(wrong(json!([1])).contains("expected the name of an option"));
        let names: Options = serde_json::from_value(json!(["a"])).unwrap();
        assert!(names.check("policy \"x\"", json!({ "a": [1] }).as_object().unwrap()).is_ok());
    }
}
