//! Reads a JSON value into a type, refusing unknown fields: every error names the field's path and, where a known
//! name is near, what was probably meant. API bodies, Lua tables, TOML files and flags all come through here.

use serde::de::{self, DeserializeOwned, DeserializeSeed, IntoDeserializer, MapAccess, SeqAccess, Visitor};
use serde_json::Value;

use super::error::{Error, Result};
use super::suggest;

/// Reads `value`; `subject` is how the errors call it, as in `service "web"`.
pub fn read<T: DeserializeOwned>(subject: &str, value: &Value) -> Result<T> {
    T::deserialize(Reader { value, path: &Path::Root })
        .map_err(|Mismatch { path, message }| Error::invalid(subject, join(&path, &message)))
}

/// Reads JSON text; a syntax error tells line and column.
pub fn parse<T: DeserializeOwned>(subject: &str, text: &[u8]) -> Result<T> {
    let value: Value =
        serde_json::from_slice(text).map_err(|error| Error::invalid(subject, "is not JSON").cause(error))?;
    read(subject, &value)
}

fn join(path: &str, message: &str) -> String {
    if path.is_empty() { message.to_owned() } else { format!("{path}: {message}") }
}

#[derive(Debug)]
struct Mismatch {
    path: String,
    message: String,
}

impl std::fmt::Display for Mismatch {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&join(&self.path, &self.message))
    }
}

impl std::error::Error for Mismatch {}

impl de::Error for Mismatch {
    fn custom<T: std::fmt::Display>(message: T) -> Self {
        Mismatch { path: String::new(), message: message.to_string() }
    }

    fn unknown_variant(variant: &str, expected: &'static [&'static str]) -> Self {
        Self::custom(format!("unknown value \"{variant:.60}\"{}", suggest::hint(variant, expected.iter().copied())))
    }

    fn unknown_field(field: &str, expected: &'static [&'static str]) -> Self {
        Self::custom(format!("unknown field \"{field:.60}\"{}", suggest::hint(field, expected.iter().copied())))
    }

    fn missing_field(field: &'static str) -> Self {
        Self::custom(format!("{field} is missing"))
    }

    fn invalid_type(got: de::Unexpected, expected: &dyn de::Expected) -> Self {
        Self::custom(format!("expected {}, got {}", plain(&expected.to_string()), describe(&got)))
    }

    fn invalid_value(got: de::Unexpected, expected: &dyn de::Expected) -> Self {
        Self::custom(format!("expected {}, got {}", plain(&expected.to_string()), describe(&got)))
    }
}

// serde's words name Rust's types; these are a user's.
fn plain(expected: &str) -> String {
    match expected {
        "u8" | "u16" | "u32" | "u64" | "usize" => "a whole number, 0 or more".into(),
        "i8" | "i16" | "i32" | "i64" => "a whole number".into(),
        "f32" | "f64" => "a number".into(),
        "a string" => "a text".into(),
        "a boolean" => "true or false".into(),
        "a sequence" => "a list".into(),
        "a map" => "a table of names".into(),
        other if other.starts_with("struct ") => "a table".into(),
        other => other.into(),
    }
}

fn describe(got: &de::Unexpected) -> String {
    match got {
        de::Unexpected::Str(text) => format!("{:?}", text.chars().take(60).collect::<String>()),
        de::Unexpected::Bool(value) => value.to_string(),
        de::Unexpected::Unsigned(number) => number.to_string(),
        de::Unexpected::Signed(number) => number.to_string(),
        de::Unexpected::Float(number) => number.to_string(),
        de::Unexpected::Seq => "a list".into(),
        de::Unexpected::Map => "a table of names".into(),
        de::Unexpected::Unit | de::Unexpected::Option => "nothing".into(),
        other => other.to_string(),
    }
}

enum Path<'a> {
    Root,
    Key(&'a Path<'a>, &'a str),
    Index(&'a Path<'a>, usize),
}

impl Path<'_> {
    fn text(&self) -> String {
        match self {
            Path::Root => String::new(),
            Path::Key(Path::Root, key) => format!("{key:.60}"),
            Path::Key(parent, key) => format!("{}.{key:.60}", parent.text()),
            // Lists count from 1, as they do in Lua.
            Path::Index(parent, index) => format!("{}[{}]", parent.text(), index + 1),
        }
    }

    fn place(&self, mut error: Mismatch) -> Mismatch {
        if error.path.is_empty() {
            error.path = self.text();
        }
        error
    }
}

#[derive(Clone, Copy)]
struct Reader<'a> {
    value: &'a Value,
    path: &'a Path<'a>,
}

impl<'a> Reader<'a> {
    fn visit<'de, V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Mismatch> {
        match self.value {
            Value::Null => visitor.visit_unit(),
            Value::Bool(value) => visitor.visit_bool(*value),
            Value::Number(number) => match (number.as_u64(), number.as_i64(), number.as_f64()) {
                (Some(number), ..) => visitor.visit_u64(number),
                (_, Some(number), _) => visitor.visit_i64(number),
                (.., number) => visitor.visit_f64(number.unwrap_or(f64::NAN)),
            },
            Value::String(text) => visitor.visit_str(text),
            Value::Array(list) => visitor.visit_seq(List { list, path: self.path, index: 0 }),
            Value::Object(map) => visitor.visit_map(Table { entries: map.iter(), path: self.path, value: None }),
        }
        .map_err(|error| self.path.place(error))
    }

    // Lua has one empty table for both; it is read as whichever is asked for.
    fn is_empty_table(&self) -> bool {
        match self.value {
            Value::Array(list) => list.is_empty(),
            Value::Object(map) => map.is_empty(),
            _ => false,
        }
    }

    // Lua's numbers are floats; a whole one is as good as an integer.
    fn whole<'de, V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Mismatch> {
        if let Value::Number(number) = self.value
            && let Some(float) = number.as_f64()
            && number.is_f64()
            && float.fract() == 0.0
            && float.abs() < 9e15
        {
            let result = if float < 0.0 { visitor.visit_i64(float as i64) } else { visitor.visit_u64(float as u64) };
            return result.map_err(|error| self.path.place(error));
        }
        self.visit(visitor)
    }
}

macro_rules! whole_numbers {
    ($($method:ident)*) => { $(
        fn $method<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Mismatch> {
            self.whole(visitor)
        }
    )* };
}

impl<'de> de::Deserializer<'de> for Reader<'_> {
    type Error = Mismatch;

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Mismatch> {
        self.visit(visitor)
    }

    whole_numbers! {
        deserialize_i8 deserialize_i16 deserialize_i32 deserialize_i64
        deserialize_u8 deserialize_u16 deserialize_u32 deserialize_u64
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Mismatch> {
        match self.value {
            Value::Null => visitor.visit_none(),
            _ => visitor.visit_some(self),
        }
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(self, _: &'static str, visitor: V) -> Result<V::Value, Mismatch> {
        visitor.visit_newtype_struct(self)
    }

    fn deserialize_seq<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Mismatch> {
        if self.is_empty_table() {
            return visitor.visit_seq(List { list: &[], path: self.path, index: 0 });
        }
        self.visit(visitor)
    }

    fn deserialize_map<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Mismatch> {
        if self.is_empty_table() {
            return visitor.visit_map(de::value::MapDeserializer::new(std::iter::empty::<(&str, &str)>()));
        }
        self.visit(visitor)
    }

    fn deserialize_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        fields: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Mismatch> {
        // A list in the order of the fields is nobody's way to write a table; what looks names up in one would find none.
        if let Value::Array(list) = self.value
            && !list.is_empty()
        {
            return Err(self.path.place(de::Error::invalid_type(de::Unexpected::Seq, &visitor)));
        }
        if let Value::Object(map) = self.value
            && let Some(unknown) = map.keys().find(|key| !fields.contains(&key.as_str()))
        {
            return Err(self.path.place(de::Error::unknown_field(unknown, fields)));
        }
        self.deserialize_map(visitor)
    }

    fn deserialize_enum<V: Visitor<'de>>(
        self,
        name: &'static str,
        variants: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Mismatch> {
        match self.value {
            Value::String(text) => {
                visitor.visit_enum(text.as_str().into_deserializer()).map_err(|error: Mismatch| self.path.place(error))
            }
            Value::Object(map) if map.len() == 1 => {
                let (key, value) = map.iter().next().expect("a map of one entry has a first");
                let path = Path::Key(self.path, key);
                visitor
                    .visit_enum(Variant { key, reader: Reader { value, path: &path } })
                    .map_err(|error| self.path.place(error))
            }
            _ => Err(self.path.place(de::Error::custom(format!("expected one of {} ({name})", variants.join(", "))))),
        }
    }

    serde::forward_to_deserialize_any! {
        bool i128 u128 f32 f64 char str string bytes byte_buf unit unit_struct tuple tuple_struct identifier ignored_any
    }
}

struct Variant<'a> {
    key: &'a str,
    reader: Reader<'a>,
}

impl<'de> de::EnumAccess<'de> for Variant<'_> {
    type Error = Mismatch;
    type Variant = Self;

    fn variant_seed<V: DeserializeSeed<'de>>(self, seed: V) -> Result<(V::Value, Self), Mismatch> {
        let name = seed.deserialize(self.key.into_deserializer())?;
        Ok((name, self))
    }
}

impl<'de> de::VariantAccess<'de> for Variant<'_> {
    type Error = Mismatch;

    fn unit_variant(self) -> Result<(), Mismatch> {
        Ok(())
    }

    fn newtype_variant_seed<T: DeserializeSeed<'de>>(self, seed: T) -> Result<T::Value, Mismatch> {
        seed.deserialize(self.reader)
    }

    fn tuple_variant<V: Visitor<'de>>(self, _: usize, visitor: V) -> Result<V::Value, Mismatch> {
        de::Deserializer::deserialize_seq(self.reader, visitor)
    }

    fn struct_variant<V: Visitor<'de>>(
        self,
        fields: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Mismatch> {
        de::Deserializer::deserialize_struct(self.reader, "", fields, visitor)
    }
}

struct List<'a> {
    list: &'a [Value],
    path: &'a Path<'a>,
    index: usize,
}

impl<'de> SeqAccess<'de> for List<'_> {
    type Error = Mismatch;

    fn next_element_seed<T: DeserializeSeed<'de>>(&mut self, seed: T) -> Result<Option<T::Value>, Mismatch> {
        let Some(value) = self.list.get(self.index) else { return Ok(None) };
        let path = Path::Index(self.path, self.index);
        self.index += 1;
        seed.deserialize(Reader { value, path: &path }).map(Some).map_err(|error| path.place(error))
    }
}

struct Table<'a> {
    entries: serde_json::map::Iter<'a>,
    path: &'a Path<'a>,
    value: Option<(&'a str, &'a Value)>,
}

impl<'de> MapAccess<'de> for Table<'_> {
    type Error = Mismatch;

    fn next_key_seed<K: DeserializeSeed<'de>>(&mut self, seed: K) -> Result<Option<K::Value>, Mismatch> {
        let Some((key, value)) = self.entries.next() else { return Ok(None) };
        self.value = Some((key, value));
        let path = Path::Key(self.path, key);
        seed.deserialize(key.as_str().into_deserializer()).map(Some).map_err(|error| path.place(error))
    }

    fn next_value_seed<V: DeserializeSeed<'de>>(&mut self, seed: V) -> Result<V::Value, Mismatch> {
        let (key, value) = self.value.take().expect("serde asks for a value after its key");
        let path = Path::Key(self.path, key);
        seed.deserialize(Reader { value, path: &path }).map_err(|error| path.place(error))
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use serde::Deserialize;

    use super::*;

    #[derive(Debug, Deserialize, Default)]
    #[serde(default)]
    #[allow(dead_code, reason = "only the reading is tested")]
    struct Sample {
        name: String,
        replicas: u32,
        mode: Mode,
        limits: BTreeMap<String, u32>,
        list: Vec<u8>,
    }

    #[derive(Debug, Deserialize, Default)]
    #[serde(rename_all = "snake_case")]
    enum Mode {
        #[default]
        Replicated,
        Global,
    }

    fn check(input: &str, expected: &str) {
        let got = match parse::<Sample>("sample", input.as_bytes()) {
            Ok(_) => "ok".to_owned(),
            Err(error) => error.to_string(),
        };
        assert_eq!(got, expected, "for {input}");
    }

    #[test]
    fn errors_name_the_field() {
        check(r#"{"name":"a","replicas":3.0,"mode":"global","list":{},"limits":[]}"#, "ok");
        check(r#"{"replcas":3}"#, r#"sample: unknown field "replcas"; did you mean "replicas"?"#);
        check(r#"{"replicas":"x"}"#, r#"sample: replicas: expected a whole number, 0 or more, got "x""#);
        check(r#"{"replicas":-1}"#, "sample: replicas: expected a whole number, 0 or more, got -1");
        check(r#"{"replicas":1.5}"#, "sample: replicas: expected a whole number, 0 or more, got 1.5");
        check(r#"{"mode":"globl"}"#, r#"sample: mode: unknown value "globl"; did you mean "global"?"#);
        check(r#"{"list":[1,2,"x"]}"#, r#"sample: list[3]: expected a whole number, 0 or more, got "x""#);
        check(r#"{"limits":{"a":true}}"#, "sample: limits.a: expected a whole number, 0 or more, got true");
        check("[", "sample: is not JSON: EOF while parsing a list at line 1 column 1");
    }
}
