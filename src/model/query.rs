//! Prepared queries: instances by a name that says how they are chosen.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::catalog::{MAX_ENTRIES, MAX_TEXT, check_name};
use super::{Error, Result};

/// A prepared query, in Consul's terms.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct Query {
    /// A UUID.
    pub id: String,
    /// What it is asked by, besides its id; with a template the beginning of what it is asked by. May be empty.
    pub name: String,
    /// Whether it answers for all names that begin with its own.
    pub is_template: bool,
    /// What of such a name `${match(N)}` stands for.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub pattern: String,
    /// Whether tags that come to nothing are left out.
    pub remove_empty_tags: bool,
    /// The service.
    pub service: String,
    /// Only instances whose checks all pass, rather than those that are not critical.
    pub only_passing: bool,
    /// Checks that do not count.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub ignore_checks: Vec<String>,
    /// Tags that instances have to have, or with `!` before them must not have.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub tags: Vec<String>,
    /// What their node's table has to say.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub node_meta: BTreeMap<String, String>,
    /// What their own table has to say.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub service_meta: BTreeMap<String, String>,
    /// The node that the answers are to be near to; kept, and without effect: distances are not measured.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub near: String,
    /// How many of the nearest datacenters are asked where there is none here; kept: there is one datacenter.
    pub nearest: u32,
    /// The datacenters that are asked then.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub datacenters: Vec<String>,
    /// How long DNS answers hold, in seconds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ttl: Option<u32>,
    /// The session that it ends with; empty: it stays.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub session: String,
    /// The change that made it.
    #[serde(skip)]
    pub created: u64,
    /// Its last change.
    #[serde(skip)]
    pub modified: u64,
}

impl Query {
    /// An error where something is too long, too much or not text.
    pub fn check(&self) -> Result<()> {
        check_name("service", &self.service)?;
        if !self.name.is_empty() {
            check_name("query", &self.name)?;
        }
        let lists = [&self.ignore_checks, &self.tags, &self.datacenters];
        let tables = [&self.node_meta, &self.service_meta];
        if lists.iter().any(|list| list.len() > MAX_ENTRIES) || tables.iter().any(|table| table.len() > MAX_ENTRIES) {
            return Err(Error::invalid("query", format!("has a list of more than {MAX_ENTRIES} entries")));
        }
        let texts =
            lists.into_iter().flatten().chain(tables.into_iter().flatten().flat_map(|(key, value)| [key, value]));
        match texts.chain([&self.pattern, &self.near]).find(|text| text.len() > MAX_TEXT) {
            Some(text) => {
                Err(Error::invalid("query", format!("has a text of {} bytes; {MAX_TEXT} are allowed", text.len())))
            }
            None => Ok(()),
        }
    }
}
