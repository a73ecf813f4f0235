//! Placement constraints in Swarm's grammar: `key == value`, `key != value`.

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::error::{Error, Result};
use super::node::Node;
use super::suggest;

const KEYS: [&str; 8] = [
    "node.id",
    "node.hostname",
    "node.role",
    "node.ip",
    "node.platform.os",
    "node.platform.arch",
    "node.labels.",
    "engine.labels.",
];

/// One condition on a node. Values are compared literally and without case, label keys with case; a missing label
/// makes `==` false and `!=` true (Swarm's rules).
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(try_from = "String", into = "String")]
pub struct Constraint {
    key: String,
    equal: bool,
    value: String,
}

impl Constraint {
    /// Whether `node` meets it.
    pub fn matches(&self, node: &Node) -> bool {
        let label = |labels: &std::collections::BTreeMap<String, String>, key: &str| {
            labels.get(key).is_some_and(|value| value.eq_ignore_ascii_case(&self.value))
        };
        let same = match self.key.as_str() {
            "node.id" => node.id.eq_ignore_ascii_case(&self.value),
            "node.hostname" => node.hostname.eq_ignore_ascii_case(&self.value),
            "node.role" => node.role.as_str().eq_ignore_ascii_case(&self.value),
            "node.ip" => within(node.address, &self.value),
            "node.platform.os" => node.os.eq_ignore_ascii_case(&self.value),
            "node.platform.arch" => node.arch.eq_ignore_ascii_case(&self.value),
            key => match key.split_once(".labels.") {
                Some(("node", key)) => label(&node.labels, key),
                Some(("engine", key)) => label(&node.engine_labels, key),
                _ => false,
            },
        };
        same == self.equal
    }
}

/// Whether an address is this one, or in this network in CIDR form (`10.0.0.0/8`).
pub fn within(address: Option<IpAddr>, range: &str) -> bool {
    let Some(address) = address else { return false };
    let Some((base, prefix)) = parse_range(range) else { return false };
    match (address, base) {
        (IpAddr::V4(a), IpAddr::V4(b)) => {
            let shift = 32 - u32::from(prefix.min(32));
            u32::from(a).checked_shr(shift) == u32::from(b).checked_shr(shift)
        }
        (IpAddr::V6(a), IpAddr::V6(b)) => {
            let shift = 128 - u32::from(prefix.min(128));
            u128::from(a).checked_shr(shift) == u128::from(b).checked_shr(shift)
        }
        _ => false,
    }
}

/// An address, or a network in CIDR form.
pub fn parse_range(text: &str) -> Option<(IpAddr, u8)> {
    let (base, prefix) = match text.split_once('/') {
        Some((base, prefix)) => (base.parse::<IpAddr>().ok()?, prefix.parse::<u8>().ok()?),
        None => (text.parse::<IpAddr>().ok()?, 128),
    };
    let widest = if base.is_ipv4() { 32 } else { 128 };
    (text.split_once('/').is_none() || prefix <= widest).then_some((base, prefix))
}

impl FromStr for Constraint {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let shown: String = text.chars().take(80).collect();
        let subject = format!("constraint {shown:?}");
        let wrong = |why: String| {
            Error::invalid(subject.clone(), why).help("write \"node.labels.disk == ssd\" or \"node.role != manager\"")
        };
        let (key, equal, value) = match (text.find("=="), text.find("!=")) {
            (Some(at), other) if other.is_none_or(|o| at < o) => (&text[..at], true, &text[at + 2..]),
            (_, Some(at)) => (&text[..at], false, &text[at + 2..]),
            _ => return Err(wrong("has neither == nor !=".into())),
        };
        let (key, value) = (key.trim(), value.trim());
        if value.is_empty() {
            return Err(wrong("has no value".into()));
        }
        let known =
            KEYS.iter().any(|k| if k.ends_with('.') { key.starts_with(k) && key.len() > k.len() } else { key == *k });
        if !known {
            return Err(wrong(format!("has an unknown key \"{key:.60}\"{}", suggest::hint(key, KEYS))));
        }
        if key == "node.ip" && parse_range(value).is_none() {
            return Err(wrong("compares node.ip with neither an address nor a network".into()));
        }
        Ok(Constraint { key: key.to_owned(), equal, value: value.to_owned() })
    }
}

impl TryFrom<String> for Constraint {
    type Error = Error;

    fn try_from(text: String) -> Result<Self> {
        text.parse()
    }
}

impl From<Constraint> for String {
    fn from(constraint: Constraint) -> String {
        constraint.to_string()
    }
}

impl fmt::Display for Constraint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {} {}", self.key, if self.equal { "==" } else { "!=" }, self.value)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node() -> Node {
        let mut node = Node::new("eu-1", "eu-1");
        node.labels.insert("disk".into(), "SSD".into());
        node.address = Some("10.1.2.3".parse().unwrap());
        node
    }

    fn check(constraint: &str, expected: &str) {
        let got = match constraint.parse::<Constraint>() {
            Ok(constraint) => constraint.matches(&node()).to_string(),
            Err(error) => error.message,
        };
        assert_eq!(got, expected, "for {constraint:?}");
    }

    #[test]
    fn grammar_and_meaning() {
        check("node.labels.disk==ssd", "true");
        check("node.labels.disk != ssd", "false");
        check("node.labels.Disk == ssd", "false");
        check("node.labels.zone == a", "false");
        check("node.labels.zone != a", "true");
        check("node.hostname==EU-1", "true");
        check("node.ip == 10.0.0.0/8", "true");
        check("node.ip != 10.1.2.3", "false");
        check("node.ip == 0.0.0.0/0", "true");
        check("node.ip == here", "compares node.ip with neither an address nor a network");
        check("node.lables.disk == ssd", "has an unknown key \"node.lables.disk\"; did you mean \"node.labels.\"?");
        check("node.rol == manager", "has an unknown key \"node.rol\"; did you mean \"node.role\"?");
        check("node.role", "has neither == nor !=");
        check("node.role ==", "has no value");
    }

    proptest::proptest! {
        #[test]
        fn any_text_is_a_constraint_or_an_error(text in "\\PC{0,60}") {
            if let Ok(constraint) = text.parse::<Constraint>() {
                constraint.matches(&node());
                assert_eq!(constraint.to_string().parse::<Constraint>().unwrap(), constraint);
            }
        }
    }
}
