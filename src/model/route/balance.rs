//! How a route chooses among replicas.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

use crate::model::error::{Error, Result};

/// How a route chooses among replicas.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum RouteBalance {
    /// In turn, by weight.
    #[default]
    RoundRobin,
    /// The one with the fewest requests under way for its weight.
    LeastConnections,
    /// Of two that are drawn, the one with fewer.
    PowerOfTwo,
    /// Always the same one for the same text.
    Hash(HashBy),
}

/// What a replica is chosen by.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum HashBy {
    /// The client's address.
    Ip,
    /// The path without its query.
    Path,
    /// A field of the request.
    Header(String),
    /// A cookie.
    Cookie(String),
}

impl RouteBalance {
    /// Whether it is the one where nothing is said.
    pub fn is_default(&self) -> bool {
        *self == RouteBalance::RoundRobin
    }
}

impl fmt::Display for RouteBalance {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        match self {
            RouteBalance::RoundRobin => f.write_str("round_robin"),
            RouteBalance::LeastConnections => f.write_str("least_connections"),
            RouteBalance::PowerOfTwo => f.write_str("power_of_two"),
            RouteBalance::Hash(HashBy::Ip) => f.write_str("hash:ip"),
            RouteBalance::Hash(HashBy::Path) => f.write_str("hash:path"),
            RouteBalance::Hash(HashBy::Header(name)) => write!(f, "hash:header:{name}"),
            RouteBalance::Hash(HashBy::Cookie(name)) => write!(f, "hash:cookie:{name}"),
        }
    }
}

impl FromStr for RouteBalance {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let named = |name: &str| is_token(name).then(|| name.to_owned());
        let found = match text {
            "round_robin" => Some(RouteBalance::RoundRobin),
            "least_connections" => Some(RouteBalance::LeastConnections),
            "power_of_two" => Some(RouteBalance::PowerOfTwo),
            "hash:ip" => Some(RouteBalance::Hash(HashBy::Ip)),
            "hash:path" => Some(RouteBalance::Hash(HashBy::Path)),
            _ => match text.strip_prefix("hash:").and_then(|rest| rest.split_once(':')) {
                Some(("header", name)) => named(name).map(HashBy::Header).map(RouteBalance::Hash),
                Some(("cookie", name)) => named(name).map(HashBy::Cookie).map(RouteBalance::Hash),
                _ => None,
            },
        };
        found.ok_or_else(|| {
            Error::invalid(format!("balance {text:.60?}"), "is none").help(
                "write \"round_robin\", \"least_connections\", \"power_of_two\", \"hash:ip\", \"hash:path\", \
                 \"hash:header:NAME\" or \"hash:cookie:NAME\"",
            )
        })
    }
}

impl Serialize for RouteBalance {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for RouteBalance {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(de::Error::custom)
    }
}

/// Whether a text can be a name of a field or a cookie (RFC 9110, 5.6.2).
pub fn is_token(text: &str) -> bool {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte);
    !text.is_empty() && text.len() <= 64 && text.bytes().all(plain)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn balances_are_written_as_they_are_read() {
        for text in [
            "round_robin",
            "least_connections",
            "power_of_two",
            "hash:ip",
            "hash:path",
            "hash:header:X-User",
            "hash:cookie:sid",
        ] {
            assert_eq!(text.parse::<RouteBalance>().unwrap().to_string(), text);
        }
        for wrong in ["", "hash", "hash:header:", "hash:cookie:a b", "random"] {
            assert!(wrong.parse::<RouteBalance>().is_err(), "{wrong:?}");
        }
    }
}
