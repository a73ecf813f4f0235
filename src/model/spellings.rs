//! The several ways in which a field of a description may be written.

use std::collections::BTreeMap;
use std::fmt;

use serde::de::{self, MapAccess, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer};
use serde_json::Value;

use super::service::Use;

const SIGNALS: [&str; 9] = ["TERM", "INT", "QUIT", "HUP", "USR1", "USR2", "KILL", "WINCH", "ABRT"];

/// A signal's name, with or without `SIG`.
pub fn signal<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<String>, D::Error> {
    let Some(text) = Option::<String>::deserialize(deserializer)? else { return Ok(None) };
    let name = text.strip_prefix("SIG").unwrap_or(&text);
    if !SIGNALS.contains(&name) {
        let hint = super::suggest::hint(name, SIGNALS);
        return Err(de::Error::custom(format!("unknown signal \"{text:.20}\"{hint}")));
    }
    Ok(Some(name.to_owned()))
}

/// The fields of a flag such as Docker's `--mount`: separated by commas, quoted where they hold one (RFC 4180).
pub fn comma_separated(text: &str) -> Result<Vec<String>, String> {
    let mut fields = vec![String::new()];
    let mut quoted = false;
    let mut chars = text.chars().peekable();
    while let Some(c) = chars.next() {
        let field = fields.last_mut().expect("there is always one");
        match c {
            '"' if quoted && chars.peek() == Some(&'"') => {
                chars.next();
                field.push('"');
            }
            '"' if quoted => quoted = false,
            '"' if field.is_empty() => quoted = true,
            ',' if !quoted => fields.push(String::new()),
            _ => field.push(c),
        }
    }
    if quoted { Err("has a quote that is not closed".into()) } else { Ok(fields) }
}

/// Puts variables that are read from keys (`{ kv = "shop/level" }`) where the description keeps them.
pub fn keys_apart(value: &Value) -> Value {
    let mut value = value.clone();
    let Some(env) = value.get_mut("env").and_then(Value::as_object_mut) else { return value };
    let is_key = |value: &Value| value.as_object().is_some_and(|table| table.len() == 1 && table.contains_key("kv"));
    let named: Vec<String> = env.iter().filter(|(_, value)| is_key(value)).map(|(name, _)| name.clone()).collect();
    if named.is_empty() {
        return value;
    }
    let moved: serde_json::Map<String, Value> =
        named.into_iter().filter_map(|name| Some((name.clone(), env.remove(&name)?["kv"].clone()))).collect();
    match value.get_mut("env_kv").and_then(Value::as_object_mut) {
        Some(known) => known.extend(moved),
        None => value["env_kv"] = Value::Object(moved),
    }
    value
}

/// A policy's name, a table with `use`, or a list of them.
pub fn uses<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<Use>, D::Error> {
    struct OneOrMore;
    impl<'de> Visitor<'de> for OneOrMore {
        type Value = Vec<Use>;

        fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
            f.write_str("a policy's name, a table with \"use\", or a list of them")
        }

        fn visit_str<E: de::Error>(self, text: &str) -> Result<Vec<Use>, E> {
            Ok(vec![Use::deserialize(de::IntoDeserializer::into_deserializer(text))?])
        }

        fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Vec<Use>, A::Error> {
            Ok(vec![Use::deserialize(de::value::MapAccessDeserializer::new(map))?])
        }

        fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Vec<Use>, A::Error> {
            let mut uses = Vec::new();
            while let Some(next) = list.next_element()? {
                uses.push(next);
            }
            Ok(uses)
        }
    }
    deserializer.deserialize_any(OneOrMore)
}

/// A list of words; a text is one shell command line, as in a Dockerfile's shell form.
pub fn command<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<String>, D::Error> {
    struct Words;
    impl<'de> Visitor<'de> for Words {
        type Value = Vec<String>;

        fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
            f.write_str("a list of words, such as { \"server\", \"--port\", \"80\" }")
        }

        fn visit_str<E: de::Error>(self, text: &str) -> Result<Vec<String>, E> {
            Ok(vec!["/bin/sh".into(), "-c".into(), text.into()])
        }

        fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Vec<String>, A::Error> {
            let mut words = Vec::new();
            while let Some(Plain(word)) = list.next_element()? {
                words.push(word);
            }
            Ok(words)
        }

        // Lua's empty table.
        fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Vec<String>, A::Error> {
            match map.next_key::<String>()? {
                None => Ok(Vec::new()),
                Some(_) => Err(de::Error::invalid_type(de::Unexpected::Map, &self)),
            }
        }
    }
    deserializer.deserialize_any(Words)
}

/// Variables by name; numbers and booleans are written out.
pub fn environment<'de, D: Deserializer<'de>>(deserializer: D) -> Result<BTreeMap<String, String>, D::Error> {
    let map = BTreeMap::<String, Plain>::deserialize(deserializer)?;
    Ok(map.into_iter().map(|(key, Plain(value))| (key, value)).collect())
}

/// A text; a number or a boolean is written out.
pub fn text<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<String>, D::Error> {
    Ok(Option::<Plain>::deserialize(deserializer)?.map(|Plain(text)| text))
}

/// Texts; numbers and booleans are written out.
pub fn texts<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<String>, D::Error> {
    let all = Vec::<Plain>::deserialize(deserializer)?;
    Ok(all.into_iter().map(|Plain(text)| text).collect())
}

/// A `command` that may be left out.
pub fn some_command<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Vec<String>>, D::Error> {
    command(deserializer).map(Some)
}

// A text, or a number or boolean that is written as one: `PORT = 80`, `DEBUG = true`.
struct Plain(String);

impl<'de> Deserialize<'de> for Plain {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        match Value::deserialize(deserializer)? {
            Value::String(text) => Ok(Plain(text)),
            Value::Number(number) => match number.as_f64() {
                Some(float) if float.fract() == 0.0 && float.abs() < 9e15 => Ok(Plain(format!("{float:.0}"))),
                _ => Ok(Plain(number.to_string())),
            },
            Value::Bool(value) => Ok(Plain(value.to_string())),
            Value::Null => Err(de::Error::custom("expected a text, got nothing")),
            Value::Array(_) => Err(de::Error::custom("expected a text, got a list")),
            Value::Object(_) => Err(de::Error::custom("expected a text, got a table")),
        }
    }
}
