//! Shares of a route's requests, and the ways in which they are written.

use std::fmt;

use schemars::JsonSchema;
use serde::de::{self, Visitor};
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::Value;

use crate::model::name::Name;

/// A share of a route's requests: a service's name, or a table.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct RouteShare {
    /// The service.
    pub service: Name,
    /// Its port, by its name; the only one where it is not given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub port: Option<String>,
    /// Its share, beside those of the others (100).
    #[serde(default = "hundred")]
    pub weight: u32,
}

fn hundred() -> u32 {
    100
}

/// In how many ways shares are written.
#[derive(JsonSchema)]
#[serde(untagged)]
#[allow(dead_code, reason = "only its schema is used")]
pub enum Shares {
    One(Name),
    Share(RouteShare),
    Several(Vec<ShareOrName>),
}

#[derive(JsonSchema)]
#[serde(untagged)]
#[allow(dead_code, reason = "only its schema is used")]
pub enum ShareOrName {
    Name(Name),
    Share(RouteShare),
}

/// Reads them, however they are written.
pub fn shares<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<RouteShare>, D::Error> {
    struct Either;
    impl<'de> Visitor<'de> for Either {
        type Value = Vec<RouteShare>;

        fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
            f.write_str("a service's name, or a list of names and of tables { service = ..., weight = ... }")
        }

        fn visit_str<E: de::Error>(self, text: &str) -> Result<Self::Value, E> {
            let service = text.parse::<Name>().map_err(E::custom)?;
            Ok(vec![RouteShare { service, port: None, weight: hundred() }])
        }

        fn visit_map<A: de::MapAccess<'de>>(self, map: A) -> Result<Self::Value, A::Error> {
            Ok(vec![RouteShare::deserialize(de::value::MapAccessDeserializer::new(map))?])
        }

        fn visit_seq<A: de::SeqAccess<'de>>(self, mut list: A) -> Result<Self::Value, A::Error> {
            let mut all = Vec::new();
            while let Some(next) = list.next_element::<Value>()? {
                all.push(match next {
                    Value::String(name) => {
                        let service = name.parse::<Name>().map_err(de::Error::custom)?;
                        RouteShare { service, port: None, weight: hundred() }
                    }
                    table => serde_json::from_value(table).map_err(de::Error::custom)?,
                });
            }
            Ok(all)
        }
    }
    deserializer.deserialize_any(Either)
}
