//! What the bearer of a token may do in Consul's API: rules by kind of thing and by name, as Consul's users write them, in HCL
//! or JSON.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fmt;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::right::{Principal, Role};
use super::{Error, Result, suggest};

/// The longest text of rules, in bytes.
const LONGEST: usize = 256 << 10;

/// How much is allowed, each including what is before it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Access {
    /// Nothing.
    Deny,
    /// To see it.
    Read,
    /// To change it.
    Write,
}

impl Access {
    /// As in rules.
    pub fn as_str(self) -> &'static str {
        match self {
            Access::Deny => "deny",
            Access::Read => "read",
            Access::Write => "write",
        }
    }
}

impl std::str::FromStr for Access {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        match text {
            "deny" => Ok(Access::Deny),
            // To list keys is to read them here.
            "read" | "list" => Ok(Access::Read),
            "write" | "allow" => Ok(Access::Write),
            _ => Err(Error::invalid(format!("policy {text:.40?}"), "is none of deny, read, list, write")),
        }
    }
}

/// What rules are about.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Resource {
    /// Keys and their values.
    Key,
    /// Services, their instances and checks.
    Service,
    /// Nodes, their checks and their being there.
    Node,
    /// Sessions, by the node that they are of.
    Session,
    /// Events that users fire.
    Event,
    /// Prepared queries, by name.
    Query,
    /// A host's own view, by its name.
    Agent,
    /// The whole: snapshots.
    Operator,
}

impl Resource {
    const ALL: [Resource; 8] = [
        Resource::Key,
        Resource::Service,
        Resource::Node,
        Resource::Session,
        Resource::Event,
        Resource::Query,
        Resource::Agent,
        Resource::Operator,
    ];

    // Names of the catalogue are the same whatever their case; those of keys and events are not.
    fn folded(self, name: &str) -> Cow<'_, str> {
        match self {
            Resource::Key | Resource::Event | Resource::Operator => Cow::Borrowed(name),
            _ => Cow::Owned(name.to_lowercase()),
        }
    }

    /// As in rules.
    pub fn as_str(self) -> &'static str {
        match self {
            Resource::Key => "key",
            Resource::Service => "service",
            Resource::Node => "node",
            Resource::Session => "session",
            Resource::Event => "event",
            Resource::Query => "query",
            Resource::Agent => "agent",
            Resource::Operator => "operator",
        }
    }
}

impl fmt::Display for Resource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// The rules for one kind of thing.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
pub struct Names {
    /// For one name.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub exact: BTreeMap<String, Access>,
    /// For names that begin so; the longest that fits holds.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub prefix: BTreeMap<String, Access>,
}

/// All rules of a token.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(transparent)]
pub struct Rules(pub BTreeMap<Resource, Names>);

impl Rules {
    /// What is allowed of the thing of this name; nothing where no rule says.
    pub fn access(&self, resource: Resource, name: &str) -> Option<Access> {
        let (names, name) = (self.0.get(&resource)?, resource.folded(name));
        let longest = || {
            let fits = names.prefix.iter().filter(|(prefix, _)| name.starts_with(prefix.as_str()));
            fits.max_by_key(|(prefix, _)| prefix.len()).map(|(_, access)| *access)
        };
        names.exact.get(&*name).copied().or_else(longest)
    }

    /// The least that is allowed of anything whose name begins so; `default` where no rule says.
    pub fn least(&self, resource: Resource, prefix: &str, default: Access) -> Access {
        let own = self.access(resource, prefix).unwrap_or(default);
        let Some(names) = self.0.get(&resource) else { return own };
        let prefix = &*resource.folded(prefix);
        // What is said of the name alone says nothing of those below it.
        let fits = names.prefix.iter().filter(|(known, _)| prefix.starts_with(known.as_str()));
        let below = fits.max_by_key(|(known, _)| known.len()).map_or(default, |(_, access)| *access);
        let further = names.exact.iter().chain(&names.prefix).filter(|(name, _)| name.starts_with(prefix));
        further.map(|(_, access)| *access).fold(below, Access::min)
    }

    /// The most that is allowed of anything whose name begins so; `default` where no rule says.
    pub fn most(&self, resource: Resource, prefix: &str, default: Access) -> Access {
        let own = self.access(resource, prefix).unwrap_or(default);
        let Some(names) = self.0.get(&resource) else { return own };
        let prefix = &*resource.folded(prefix);
        let further = names.exact.iter().chain(&names.prefix).filter(|(name, _)| name.starts_with(prefix));
        further.map(|(_, access)| *access).fold(own, Access::max)
    }

    /// Those that a principal has who was given none: its role, for the names that it is for.
    pub fn of(principal: &Principal) -> Self {
        let most = match principal.role {
            Role::None => Access::Deny,
            Role::Viewer => Access::Read,
            Role::Deployer | Role::Admin => Access::Write,
        };
        let named = |access: Access, prefix: &str| Names {
            exact: BTreeMap::new(),
            prefix: [(String::new(), Access::Deny), (prefix.to_owned(), access)].into(),
        };
        let confined = !principal.prefix.is_empty();
        let of = |resource: Resource| {
            let (access, prefix) = match resource {
                // A session is of a node, and what it holds may be another's.
                Resource::Node | Resource::Agent | Resource::Session if confined => (Access::Read, ""),
                Resource::Operator if confined || principal.role != Role::Admin => (Access::Deny, ""),
                _ => (most, principal.prefix.as_str()),
            };
            (resource, named(access, &resource.folded(prefix)))
        };
        Rules(Resource::ALL.map(of).into())
    }

    /// Reads them, as HCL or as JSON.
    pub fn parse(text: &str) -> Result<Self> {
        if text.len() > LONGEST {
            return Err(Error::invalid("rules", format!("are longer than {LONGEST} bytes")));
        }
        match text.trim_start().starts_with('{') {
            true => {
                let value: Value = serde_json::from_str(text).map_err(|error| {
                    Error::invalid("rules", format!("line {}: are no JSON", error.line())).cause(error)
                })?;
                Rules::of_json(&value)
            }
            false => Hcl { text: text.as_bytes(), at: 0 }.rules(),
        }
    }

    fn of_json(value: &Value) -> Result<Self> {
        let wrong = |what: &str| Error::invalid("rules", format!("{what:.60}: is no rule"));
        let mut rules = Rules::default();
        for (word, names) in value.as_object().ok_or_else(|| wrong("the whole"))? {
            match names {
                Value::String(policy) => rules.add(word, None, policy)?,
                Value::Object(names) => {
                    for (name, rule) in names {
                        let policy = rule.as_str().or_else(|| rule.get("policy")?.as_str());
                        rules.add(word, Some(name), policy.ok_or_else(|| wrong(name))?)?;
                    }
                }
                _ => return Err(wrong(word)),
            }
        }
        Ok(rules)
    }

    // `word`: service, service_prefix; without a name a rule is for the one thing of its kind.
    fn add(&mut self, word: &str, name: Option<&str>, policy: &str) -> Result<()> {
        let (kind, is_prefix) = word.strip_suffix("_prefix").map_or((word, false), |kind| (kind, true));
        let resource = Resource::ALL.into_iter().find(|resource| resource.as_str() == kind);
        let Some(resource) = resource else {
            // Of parts of Consul that are not here: they allow nothing, and forbid nothing.
            if matches!(kind, "acl" | "keyring" | "mesh" | "peering" | "identity" | "namespace" | "partition") {
                return Ok(());
            }
            let near = suggest::nearest(kind, Resource::ALL.map(Resource::as_str));
            let error = Error::invalid("rules", format!("{word:.60?} is no kind of rule"));
            return Err(match near {
                Some(near) => error.help(format!("did you mean \"{near}\" or \"{near}_prefix\"?")),
                None => error.help("they are for key, service, node, session, event, query, agent, operator"),
            });
        };
        let access: Access = policy.parse()?;
        let names = self.0.entry(resource).or_default();
        let all = if is_prefix || name.is_none() { &mut names.prefix } else { &mut names.exact };
        // Said twice, the less holds.
        let known = all.entry(resource.folded(name.unwrap_or_default()).into_owned()).or_insert(access);
        *known = access.min(*known);
        Ok(())
    }
}

// `key_prefix "app/" { policy = "write" }`, `operator = "read"`; comments as HCL has them.
struct Hcl<'a> {
    text: &'a [u8],
    at: usize,
}

impl Hcl<'_> {
    fn rules(&mut self) -> Result<Rules> {
        let mut rules = Rules::default();
        loop {
            self.pass()?;
            if self.at >= self.text.len() {
                return Ok(rules);
            }
            let word = self.word()?;
            self.pass()?;
            match self.peek() {
                Some(b'=') => {
                    self.at += 1;
                    let policy = self.string()?;
                    rules.add(&word, None, &policy).map_err(|error| self.placed(error))?;
                }
                Some(b'"') => {
                    let name = self.string()?;
                    self.sign(b'{')?;
                    let mut policy = None;
                    loop {
                        self.pass()?;
                        if self.peek() == Some(b'}') {
                            self.at += 1;
                            break;
                        }
                        let key = self.word()?;
                        self.sign(b'=')?;
                        let value = self.string()?;
                        match key.as_str() {
                            "policy" => policy = Some(value),
                            // Of Consul's mesh, which is not here.
                            "intentions" => {}
                            _ => return Err(self.wrong(&format!("{key:.40?} is not part of a rule; policy is"))),
                        }
                    }
                    let policy = policy.ok_or_else(|| self.wrong(&format!("{word} {name:.40?} has no policy")))?;
                    rules.add(&word, Some(&name), &policy).map_err(|error| self.placed(error))?;
                }
                _ => return Err(self.wrong(&format!("a name or = is missing behind {word:.40?}"))),
            }
        }
    }

    fn peek(&self) -> Option<u8> {
        self.text.get(self.at).copied()
    }

    fn placed(&self, error: Error) -> Error {
        let line = self.text[..self.at.min(self.text.len())].iter().filter(|byte| **byte == b'\n').count() + 1;
        Error { message: format!("line {line}: {}", error.message), ..error }
    }

    fn wrong(&self, why: &str) -> Error {
        self.placed(Error::invalid("rules", why).help("write key_prefix \"app/\" { policy = \"write\" }"))
    }

    // Spaces, separators and comments.
    fn pass(&mut self) -> Result<()> {
        loop {
            let rest = &self.text[self.at..];
            if rest.first().is_some_and(|byte| byte.is_ascii_whitespace() || matches!(byte, b',' | b';')) {
                self.at += 1;
            } else if rest.starts_with(b"#") || rest.starts_with(b"//") {
                self.at += rest.iter().position(|byte| *byte == b'\n').unwrap_or(rest.len());
            } else if rest.starts_with(b"/*") {
                let end = rest.windows(2).skip(2).position(|pair| pair == b"*/");
                self.at += end.ok_or_else(|| self.wrong("a comment does not end"))? + 4;
            } else {
                return Ok(());
            }
        }
    }

    fn word(&mut self) -> Result<String> {
        // A key may be quoted.
        if self.peek() == Some(b'"') {
            return self.string();
        }
        let rest = &self.text[self.at..];
        let length = rest.iter().take_while(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-')).count();
        if length == 0 {
            let found = String::from_utf8_lossy(&rest[..rest.len().min(12)]).into_owned();
            return Err(self.wrong(&format!("{found:?} begins no rule")));
        }
        let word = String::from_utf8_lossy(&rest[..length]).into_owned();
        self.at += length;
        Ok(word)
    }

    fn sign(&mut self, sign: u8) -> Result<()> {
        self.pass()?;
        if self.peek() != Some(sign) {
            return Err(self.wrong(&format!("{:?} is missing", char::from(sign))));
        }
        self.at += 1;
        Ok(())
    }

    fn string(&mut self) -> Result<String> {
        self.sign(b'"')?;
        let mut bytes = Vec::new();
        loop {
            let byte = self.peek().filter(|byte| *byte != b'\n');
            self.at += 1;
            match byte {
                Some(b'"') => break,
                Some(b'\\') => {
                    let escaped = self.peek().filter(|byte| matches!(byte, b'"' | b'\\'));
                    bytes.push(escaped.ok_or_else(|| self.wrong("only \\\" and \\\\ are known in a text"))?);
                    self.at += 1;
                }
                Some(byte) => bytes.push(byte),
                None => return Err(self.wrong("a text does not end on its line")),
            }
        }
        String::from_utf8(bytes).map_err(|_| self.wrong("a text is not UTF-8"))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const TEXT: &str = r#"
        # what the shop may do
        key_prefix "shop/" { policy = "write" } // its own
        key_prefix "shop/secret/" { policy = "deny" }
        key "shop/secret/open" { policy = "read" }
        service "shop" { policy = "write", intentions = "read" }
        service_prefix "" { policy = "read" }
        /* the rest */ node_prefix "" { policy = "list" }
        operator = "read"
        acl = "write"
    "#;

    #[test]
    fn the_longest_rule_that_fits_holds() {
        let rules = Rules::parse(TEXT).unwrap();
        let of = |resource, name| rules.access(resource, name);
        assert_eq!(of(Resource::Key, "shop/a"), Some(Access::Write));
        assert_eq!(of(Resource::Key, "shop/secret/a"), Some(Access::Deny));
        assert_eq!(of(Resource::Key, "shop/secret/open"), Some(Access::Read));
        assert_eq!(of(Resource::Key, "bank"), None);
        assert_eq!(of(Resource::Service, "shop"), Some(Access::Write));
        assert_eq!(of(Resource::Service, "shop-2"), Some(Access::Read));
        assert_eq!((of(Resource::Service, "SHOP"), of(Resource::Key, "SHOP/a")), (Some(Access::Write), None));
        assert_eq!((of(Resource::Node, "n1"), of(Resource::Operator, "")), (Some(Access::Read), Some(Access::Read)));
        // A whole folder is as open as what is least open in it.
        assert_eq!(rules.least(Resource::Key, "shop/", Access::Write), Access::Deny);
        assert_eq!(rules.least(Resource::Key, "shop/a/", Access::Deny), Access::Write);
        assert_eq!(rules.least(Resource::Key, "", Access::Write), Access::Deny);
        assert_eq!(rules.least(Resource::Key, "shop/secret/open", Access::Write), Access::Deny);
        assert_eq!(rules.least(Resource::Event, "x", Access::Read), Access::Read);
        // And whether anything in it can be seen.
        let most = |prefix: &str| rules.most(Resource::Key, prefix, Access::Deny);
        assert_eq!(
            (most(""), most("shop/secret/"), most("shop/secret/x"), most("bank")),
            (Access::Write, Access::Read, Access::Deny, Access::Deny)
        );
        let twice =
            Rules::parse("service \"web\" { policy = \"deny\" } service \"Web\" { policy = \"write\" }").unwrap();
        assert_eq!(twice.access(Resource::Service, "web"), Some(Access::Deny));

        let json = r#"{"key_prefix": {"shop/": {"policy": "write"}, "shop/secret/": "deny"}, "key": {"shop/secret/open": "list"},
            "service": {"shop": "write"}, "service_prefix": {"": "read"}, "node_prefix": {"": "read"}, "operator": "read"}"#;
        assert_eq!(Rules::parse(json).unwrap(), rules);
        assert_eq!(serde_json::from_value::<Rules>(serde_json::json!(rules)).unwrap(), rules);
    }

    #[test]
    fn what_is_wrong_is_said_with_its_line() {
        for (text, expected) in [
            ("\nkeys \"a\" { policy = \"read\" }", "line 2: \"keys\" is no kind of rule"),
            ("key \"a\" { policy = \"reed\" }", "line 1: is none of deny, read, list, write"),
            ("key \"a\" { }", "has no policy"),
            ("key \"a\" { polici = \"read\" }", "\"polici\" is not part of a rule"),
            ("key { policy = \"read\" }", "a name or = is missing"),
            ("key \"a", "does not end on its line"),
            ("/* x", "a comment does not end"),
            ("key \"a\" policy", "'{' is missing"),
            ("{", "line 1: are no JSON"),
            ("{\"key\": 3}", "key: is no rule"),
        ] {
            let said = Rules::parse(text).unwrap_err();
            assert!(said.to_string().contains(expected), "{text:?}: {said}");
        }
    }

    #[test]
    fn a_role_and_a_prefix_as_rules() {
        let principal = |role, prefix: &str| Principal { name: "ci".into(), role, prefix: prefix.into() };
        let rules = Rules::of(&principal(Role::Deployer, "shop-"));
        let of = |resource, name| rules.access(resource, name).unwrap();
        assert_eq!((of(Resource::Key, "shop-a"), of(Resource::Key, "bank")), (Access::Write, Access::Deny));
        assert_eq!((of(Resource::Node, "n1"), of(Resource::Operator, "")), (Access::Read, Access::Deny));
        let viewer = Rules::of(&principal(Role::Viewer, ""));
        assert_eq!(viewer.access(Resource::Service, "x"), Some(Access::Read));
        assert_eq!(Rules::of(&principal(Role::Admin, "")).access(Resource::Operator, ""), Some(Access::Write));
    }

    proptest! {
        #[test]
        fn whatever_is_read_breaks_nothing(text in "[a-z_\"{}=#/* \\\\\n,]{0,60}") {
            let _ = Rules::parse(&text);
        }
    }
}
