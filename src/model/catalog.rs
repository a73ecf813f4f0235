//! What the catalogue knows: nodes, instances of services, and checks, in Consul's terms.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::units::Duration;
use super::{Error, Result};

/// Longest name of a node, service, instance or check, in bytes.
pub const MAX_NAME: usize = 200;
/// Most tags, and most entries of a meta table (Consul's bound).
pub const MAX_ENTRIES: usize = 64;
/// Longest tag, meta key, address and the like, in bytes (Consul's bound for meta values).
pub const MAX_TEXT: usize = 512;
/// Longest note or output of a check, in bytes (Consul's bound for outputs); the rest of an output is cut off.
pub const MAX_OUTPUT: usize = 4096;

/// Largest body, and headers together, that a check sends, in bytes.
pub const MAX_BODY: usize = 16 << 10;

/// What a check says, the better first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum CheckStatus {
    /// All is well.
    Passing,
    /// It works, with a complaint.
    Warning,
    /// It does not work. What nobody has looked at yet counts as such.
    #[default]
    Critical,
}

impl CheckStatus {
    /// As in Consul's API.
    pub fn as_str(self) -> &'static str {
        match self {
            CheckStatus::Passing => "passing",
            CheckStatus::Warning => "warning",
            CheckStatus::Critical => "critical",
        }
    }
}

impl std::str::FromStr for CheckStatus {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        match text {
            "passing" => Ok(CheckStatus::Passing),
            "warning" => Ok(CheckStatus::Warning),
            "critical" => Ok(CheckStatus::Critical),
            other => Err(Error::invalid(format!("status {other:.40?}"), "is none of passing, warning, critical")),
        }
    }
}

/// A host, or whatever else instances are on.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct CatalogNode {
    /// Its name.
    pub name: String,
    /// Its identity, a UUID, where it has one.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub id: String,
    /// Where it is reached: an address or a host name.
    pub address: String,
    /// Further addresses, by what they are for: `lan`, `wan`.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub tagged_addresses: BTreeMap<String, String>,
    /// What else its owner says of it.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub meta: BTreeMap<String, String>,
}

/// Address and port of one kind.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct TaggedAddress {
    /// The address.
    pub address: String,
    /// The port.
    pub port: u16,
}

/// Shares in DNS answers, by how its checks are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct Weights {
    /// While it passes.
    pub passing: u16,
    /// While it warns.
    pub warning: u16,
}

impl Default for Weights {
    fn default() -> Self {
        Weights { passing: 1, warning: 1 }
    }
}

/// One of those that serve a service.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct Instance {
    /// Its id, unique on its node.
    pub id: String,
    /// The service's name.
    pub service: String,
    /// What tells it from other instances of the service.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub tags: Vec<String>,
    /// Where it is reached; empty: at its node's address.
    pub address: String,
    /// Its port; 0: none.
    pub port: u16,
    /// What else is said of it.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub meta: BTreeMap<String, String>,
    /// Further addresses, by what they are for.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub tagged_addresses: BTreeMap<String, TaggedAddress>,
    /// Its shares in DNS answers.
    pub weights: Weights,
    /// Whether others than its registrant may change its tags.
    pub enable_tag_override: bool,
    /// Who says that it is there.
    pub origin: Origin,
}

/// Who registered an instance.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Origin {
    /// A client, at the agent of its host.
    #[default]
    Agent,
    /// A client, for a node that it names.
    Catalog,
    /// Neap, of a task of its own.
    Task,
    /// The registrator, of a container.
    Container,
}

/// A check as the catalogue knows it.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct CatalogCheck {
    /// Its id, unique on its node.
    pub id: String,
    /// What people call it.
    pub name: String,
    /// The instance that it is about; empty: the node, and with it all that is on it.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub instance: String,
    /// How it is.
    pub status: CheckStatus,
    /// What its owner notes.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub notes: String,
    /// What it last said.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub output: String,
    /// How it is run; none where others say how it is.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub run: Option<CheckRun>,
    /// Who says that it is there.
    pub origin: Origin,
}

/// What a check does.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum CheckKind {
    /// Critical unless somebody says how it is within that time.
    Ttl(Duration),
    /// A request: 2xx passes, 429 warns, all else is critical.
    Http(HttpCheck),
    /// A connection to `host:port`.
    Tcp(String),
    /// A datagram to `host:port`: critical where its host says that nobody listens.
    Udp(String),
    /// gRPC's own question after a server's health: SERVING passes, all else is critical.
    Grpc(GrpcCheck),
    /// A command on its host, with its arguments: 0 passes, 1 warns, all else is critical.
    Command(Vec<String>),
    /// A command in a container of its host.
    Container {
        /// The container's name or id.
        container: String,
        /// The command with its arguments.
        command: Vec<String>,
    },
    /// As the registered check of this name says.
    Script(String),
    /// As an instance (or, where it is empty, a node) is: the worst of its checks.
    Alias {
        /// The node; empty: the check's own.
        node: String,
        /// The instance's id.
        instance: String,
    },
}

impl CheckKind {
    /// As in Consul's `Type`.
    pub fn as_str(&self) -> &'static str {
        match self {
            CheckKind::Ttl(_) => "ttl",
            CheckKind::Http(_) => "http",
            CheckKind::Tcp(_) => "tcp",
            CheckKind::Udp(_) => "udp",
            CheckKind::Grpc(_) => "grpc",
            CheckKind::Container { .. } => "docker",
            // Consul's word for a command, and Neap's for one of its scripts.
            CheckKind::Command(_) | CheckKind::Script(_) => "script",
            CheckKind::Alias { .. } => "alias",
        }
    }
}

/// A question after the health of a gRPC server (grpc.health.v1).
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct GrpcCheck {
    /// `host:port`.
    pub address: String,
    /// The service that is asked about; empty: the server as a whole.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub service: String,
    /// Whether it is spoken to with TLS.
    pub tls: bool,
    /// Whether any certificate will do.
    pub tls_skip_verify: bool,
}

impl GrpcCheck {
    /// `host:port`, or with a service behind it: `host:port/shop.Api`.
    pub fn parse(text: &str) -> Self {
        let (address, service) = text.split_once('/').unwrap_or((text, ""));
        GrpcCheck { address: address.to_owned(), service: service.to_owned(), ..GrpcCheck::default() }
    }

    /// As `parse` reads it.
    pub fn place(&self) -> String {
        if self.service.is_empty() { self.address.clone() } else { format!("{}/{}", self.address, self.service) }
    }
}

/// A request and how it is made.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct HttpCheck {
    /// Where to: `http://` or `https://`.
    pub url: String,
    /// The method; empty: GET.
    pub method: String,
    /// Headers, each with its values.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub header: BTreeMap<String, Vec<String>>,
    /// The body.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub body: String,
    /// Whether any certificate will do.
    pub tls_skip_verify: bool,
}

/// How a check is run.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct CheckRun {
    /// What it does.
    pub kind: CheckKind,
    /// How long from one run to the next.
    pub interval: Duration,
    /// How long a run may take.
    pub timeout: Duration,
    /// Passes in a row until it passes.
    #[serde(default)]
    pub success_before_passing: u32,
    /// Failures in a row until it warns; 0: as many as until it is critical.
    #[serde(default)]
    pub failures_before_warning: u32,
    /// Failures in a row until it is critical.
    #[serde(default)]
    pub failures_before_critical: u32,
    /// Critical for so long, its instance is deregistered.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub deregister_after: Option<Duration>,
}

/// An error unless `text` can name a node, service or instance.
pub fn check_name(what: &str, text: &str) -> Result<()> {
    named(what, text, MAX_NAME)
}

fn named(what: &str, text: &str, most: usize) -> Result<()> {
    let wrong = |why: String| Err(Error::invalid(format!("{what} {text:.70?}"), why));
    if text.is_empty() {
        return wrong("is empty".into());
    }
    if text.len() > most {
        return wrong(format!("is {} bytes long; {most} are allowed", text.len()));
    }
    match text.chars().find(|c| c.is_control()) {
        Some(bad) => wrong(format!("holds {bad:?}")),
        None => Ok(()),
    }
}

fn check_text(what: &str, text: &str, most: usize) -> Result<()> {
    if text.len() > most {
        return Err(Error::invalid(what, format!("is {} bytes long; {most} are allowed", text.len())));
    }
    match text.chars().find(|c| c.is_control() && !matches!(c, '\n' | '\t' | '\r')) {
        Some(bad) => Err(Error::invalid(format!("{what} {text:.70?}"), format!("holds {bad:?}"))),
        None => Ok(()),
    }
}

fn check_table(what: &str, table: &BTreeMap<String, String>) -> Result<()> {
    if table.len() > MAX_ENTRIES {
        return Err(Error::invalid(what, format!("has {} entries; {MAX_ENTRIES} are allowed", table.len())));
    }
    for (key, value) in table {
        check_text(&format!("{what} key"), key, 128)?;
        check_text(&format!("{what} {key:?}"), value, MAX_TEXT)?;
    }
    Ok(())
}

impl CatalogNode {
    /// An error where something is too long or not text.
    pub fn check(&self) -> Result<()> {
        check_name("node", &self.name)?;
        check_text("node address", &self.address, MAX_TEXT)?;
        check_text("node id", &self.id, 64)?;
        check_table("tagged addresses", &self.tagged_addresses)?;
        check_table("node meta", &self.meta)
    }
}

impl Instance {
    /// An error where something is too long or not text.
    pub fn check(&self) -> Result<()> {
        check_name("service", &self.service)?;
        check_name("service id", &self.id)?;
        check_text("service address", &self.address, MAX_TEXT)?;
        if self.tags.len() > MAX_ENTRIES {
            let message = format!("are {} tags; {MAX_ENTRIES} are allowed", self.tags.len());
            return Err(Error::invalid(format!("service {:?}", self.service), message));
        }
        for tag in &self.tags {
            check_text("tag", tag, MAX_TEXT)?;
        }
        if self.tagged_addresses.len() > MAX_ENTRIES {
            return Err(Error::invalid("tagged addresses", "are too many"));
        }
        for (key, tagged) in &self.tagged_addresses {
            check_text("tagged address", key, 128)?;
            check_text("tagged address", &tagged.address, MAX_TEXT)?;
        }
        check_table("service meta", &self.meta)
    }
}

impl CatalogCheck {
    /// An error where something is too long or not text.
    pub fn check(&self) -> Result<()> {
        // They may be made of the name or id of what they are about.
        named("check id", &self.id, MAX_NAME + 50)?;
        named("check", &self.name, MAX_NAME + 50)?;
        check_text("check notes", &self.notes, MAX_OUTPUT)?;
        match self.run.as_ref().map(|run| &run.kind) {
            None | Some(CheckKind::Ttl(_)) => Ok(()),
            Some(CheckKind::Udp(address)) => check_text("check address", address, MAX_TEXT),
            Some(CheckKind::Grpc(grpc)) => {
                check_text("check address", &grpc.address, MAX_TEXT)?;
                check_text("check's service", &grpc.service, MAX_NAME)
            }
            Some(CheckKind::Container { container, command }) => {
                check_text("check's container", container, MAX_NAME)?;
                check_text("check command", &command.concat(), MAX_OUTPUT)
            }
            Some(CheckKind::Command(words)) => match words.iter().map(String::len).sum::<usize>() {
                0..=MAX_OUTPUT => Ok(()),
                size => Err(Error::invalid("check command", format!("is {size} bytes long; {MAX_OUTPUT} are allowed"))),
            },
            Some(CheckKind::Script(name)) => check_name("check", name),
            Some(CheckKind::Tcp(address)) => check_text("check address", address, MAX_TEXT),
            Some(CheckKind::Alias { node, instance }) => {
                check_text("check's node", node, MAX_NAME)?;
                check_text("check's service", instance, MAX_NAME)
            }
            Some(CheckKind::Http(http)) => {
                check_text("check address", &http.url, 2048)?;
                check_text("check method", &http.method, 32)?;
                check_text("check body", &http.body, MAX_BODY)?;
                let sizes =
                    http.header.iter().map(|(name, values)| name.len() + values.iter().map(String::len).sum::<usize>());
                match sizes.sum::<usize>() {
                    0..=MAX_BODY => Ok(()),
                    size => {
                        Err(Error::invalid("check headers", format!("are {size} bytes long; {MAX_BODY} are allowed")))
                    }
                }
            }
        }
    }

    /// With what it said, cut to what is kept.
    pub fn say(&mut self, output: &str) {
        let end = output.char_indices().map(|(at, c)| at + c.len_utf8()).take_while(|end| *end <= MAX_OUTPUT).last();
        output[..end.unwrap_or_default()].clone_into(&mut self.output);
    }
}

/// `address:port`, with brackets around what has colons itself; without a port the address alone.
pub fn place(address: &str, port: u16) -> String {
    match (port, address.contains(':')) {
        (0, _) => address.to_owned(),
        (port, true) => format!("[{address}]:{port}"),
        (port, false) => format!("{address}:{port}"),
    }
}

/// The check of a host itself: whether it answers.
pub const SERF_HEALTH: &str = "serfHealth";
/// The check that stands for a node's maintenance.
pub const NODE_MAINTENANCE: &str = "_node_maintenance";
/// Before the instance's id: the check that stands for its maintenance.
pub const SERVICE_MAINTENANCE: &str = "_service_maintenance:";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_texts_have_bounds() {
        let names = [("", "empty"), ("a\nb", "'\\n'"), (&"x".repeat(201), "201 bytes")];
        for (name, why) in names {
            let error = check_name("service", name).unwrap_err();
            assert!(error.to_string().contains(why), "{error}");
        }
        check_name("service", "registrator:web/1 ü").unwrap();
        let many = Instance { id: "a".into(), service: "a".into(), tags: vec!["x".into(); 65], ..Instance::default() };
        assert!(many.check().unwrap_err().to_string().contains("65 tags"));
    }

    #[test]
    fn places_of_both_families() {
        assert_eq!(
            [place("10.0.0.1", 80), place("2001:db8::1", 80), place("db", 0)],
            ["10.0.0.1:80", "[2001:db8::1]:80", "db"]
        );
    }

    #[test]
    fn an_output_is_cut_between_letters() {
        let mut check = CatalogCheck::default();
        check.say(&"ü".repeat(3000));
        assert_eq!(check.output.len(), MAX_OUTPUT);
        check.say(&format!("x{}", "ü".repeat(3000)));
        assert_eq!(check.output.len(), MAX_OUTPUT - 1);
        check.say("");
        assert_eq!(check.output, "");
    }
}
