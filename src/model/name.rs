//! Names that users give: what they may look like, so that they fit DNS, labels, file names and engines alike.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::error::{Error, Result};

/// A service's, policy's, check's or rollout's name: 1 to 63 of `a-z`, `0-9` and `-`, a letter or digit first and
/// last (RFC 1123, section 2.1: what a DNS label may hold).
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(try_from = "String", into = "String")]
pub struct Name(Arc<str>);

impl Name {
    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Whether both are the same text in the same place: no for equal names from different places.
    pub fn same(&self, other: &Name) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }
}

impl FromStr for Name {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let shown: String = text.chars().take(70).collect();
        let wrong = |why: String| {
            Error::invalid(format!("name {shown:?}"), why)
                .help("use 1 to 63 of a-z, 0-9 and \"-\", such as \"shop-api\"")
        };
        if text.is_empty() {
            return Err(wrong("is empty".into()));
        }
        if text.len() > 63 {
            return Err(wrong(format!("is {} characters long, more than 63", text.chars().count())));
        }
        if let Some(bad) = text.chars().find(|c| !matches!(c, 'a'..='z' | '0'..='9' | '-')) {
            return Err(wrong(format!("holds {bad:?}")));
        }
        if text.starts_with('-') || text.ends_with('-') {
            return Err(wrong("begins or ends with \"-\"".into()));
        }
        Ok(Name(text.into()))
    }
}

impl TryFrom<String> for Name {
    type Error = Error;

    fn try_from(text: String) -> Result<Self> {
        text.parse()
    }
}

impl From<Name> for String {
    fn from(name: Name) -> String {
        name.0.to_string()
    }
}

impl std::borrow::Borrow<str> for Name {
    fn borrow(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A name that may also hold dots, capitals and underscores: ports, labels, nodes. 1 to 128 characters.
pub fn check_loose(what: &str, text: &str) -> Result<()> {
    let fits = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-' | '/');
    if text.is_empty() || text.len() > 128 || !text.chars().all(fits) {
        let shown: String = text.chars().take(70).collect();
        return Err(Error::invalid(format!("{what} {shown:?}"), "is not a name")
            .help("use 1 to 128 letters, digits, \".\", \"_\", \"-\" and \"/\""));
    }
    Ok(())
}

/// A label's key: whatever tools that read labels have made up, such as `traefik.http.routers.a.tls.domains[0].main`.
pub fn check_label(what: &str, text: &str) -> Result<()> {
    if text.is_empty() || text.len() > 256 || text.contains(|c: char| c.is_whitespace() || c.is_control() || c == '=') {
        let shown: String = text.chars().take(70).collect();
        return Err(Error::invalid(format!("{what} {shown:?}"), "is no key")
            .help("use 1 to 256 characters without spaces and \"=\""));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(input: &str, expected: &str) {
        let got = input.parse::<Name>().map_or_else(|error| error.message, |name| name.to_string());
        assert_eq!(got, expected);
    }

    #[test]
    fn names() {
        check("shop-api", "shop-api");
        check("", "is empty");
        check("Web", "holds 'W'");
        check("a.b", "holds '.'");
        check("-a", "begins or ends with \"-\"");
        check(&"x".repeat(1000), "is 1000 characters long, more than 63");
    }
}
