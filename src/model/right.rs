//! Who may do what: principal, role, name prefix. Each route says what it needs.

use std::fmt;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::error::{Error, Kind, Result};
use super::rules::Rules;

/// What a principal may do, each role including those before it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Role {
    /// Nothing: a token for Consul's API alone.
    None,
    /// Sees.
    Viewer,
    /// Changes services.
    Deployer,
    /// Changes nodes, scripts and tokens as well.
    Admin,
}

impl Role {
    /// As in flags.
    pub fn as_str(self) -> &'static str {
        match self {
            Role::None => "none",
            Role::Viewer => "viewer",
            Role::Deployer => "deployer",
            Role::Admin => "admin",
        }
    }
}

/// What those are called that are lent. No token has a name with a space.
const LENT: &str = "lent token";

/// Whoever makes a call.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Principal {
    /// A token's name, or `uid 1000` over the control socket.
    pub name: String,
    /// What they may do.
    pub role: Role,
    /// Only names that begin so; empty for all.
    pub prefix: String,
}

impl fmt::Display for Principal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.name)
    }
}

impl Principal {
    /// The control socket's peer: whoever may open it is as good as root.
    pub fn local(uid: u32) -> Self {
        Principal { name: format!("uid {uid}"), role: Role::Admin, prefix: String::new() }
    }

    /// One that is lent for a moment, for one repository: a Docker Engine that is told to push or to pull says it.
    pub fn lent(role: Role, repository: &str) -> Self {
        Principal { name: LENT.to_owned(), role, prefix: repository.to_owned() }
    }

    /// Whether it is lent: it is for the one name, and for nothing that begins so.
    pub fn is_lent(&self) -> bool {
        self.name == LENT
    }

    /// An error unless `role` is held, and for `name` if one is concerned.
    pub fn require(&self, role: Role, name: Option<&str>) -> Result<()> {
        if self.role < role {
            return Err(Error::new(
                Kind::Forbidden,
                format!("principal \"{}\"", self.name),
                format!("lacks the role {}", role.as_str()),
            )
            .help(format!(
                "use a token with the role {}; this one is {}",
                role.as_str(),
                self.role.as_str()
            )));
        }
        if let Some(name) = name
            && !(if self.is_lent() { name == self.prefix } else { name.starts_with(&self.prefix) })
        {
            return Err(Error::new(
                Kind::Forbidden,
                format!("principal \"{}\"", self.name),
                format!("may not touch \"{name:.70}\""),
            )
            .help(format!("its token is for names that begin with \"{}\"", self.prefix)));
        }
        // A role that reaches beyond names is no use to a principal that is confined to some.
        if name.is_none() && role == Role::Admin && !self.prefix.is_empty() {
            return Err(Error::new(
                Kind::Forbidden,
                format!("principal \"{}\"", self.name),
                "is confined to a name prefix",
            )
            .help("use a token without a prefix"));
        }
        Ok(())
    }
}

/// The one hook for changes: who asked for what, and how it ended.
pub trait Audit: Send + Sync {
    /// Takes down one entry.
    fn record(&self, principal: &Principal, action: &str, subject: &str, outcome: &Result<()>);
}

/// A token as it is stored: never the secret, only its hash.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Token {
    /// Who it stands for.
    pub principal: Principal,
    /// What it allows in Consul's API; by role and prefix where none are given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rules: Option<Rules>,
    /// SHA-256 of the secret.
    pub hash: String,
    /// When it was made.
    pub created_at: super::clock::Timestamp,
}

/// What a new token is to allow.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
pub struct NewToken {
    /// Its name, for lists and the audit.
    pub name: super::name::Name,
    /// What it allows; viewer where it is not said, and none where there are rules.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub role: Option<Role>,
    /// Only names that begin so.
    #[serde(default)]
    pub prefix: String,
    /// What it allows in Consul's API: HCL or JSON, as Consul's users write rules. By role and prefix where none are given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rules: Option<String>,
}

/// A new token: the only time its secret is seen.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
pub struct MadeToken {
    /// Who it stands for.
    pub principal: Principal,
    /// What the bearer sends.
    pub secret: String,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn roles_and_prefixes() {
        let deployer = Principal { name: "ci".into(), role: Role::Deployer, prefix: "shop-".into() };
        assert!(deployer.require(Role::Deployer, Some("shop-api")).is_ok());
        assert!(deployer.require(Role::Viewer, None).is_ok());
        assert_eq!(deployer.require(Role::Deployer, Some("bank")).unwrap_err().kind, Kind::Forbidden);
        assert_eq!(deployer.require(Role::Admin, None).unwrap_err().kind, Kind::Forbidden);
        let confined = Principal { name: "x".into(), role: Role::Admin, prefix: "shop-".into() };
        assert_eq!(confined.require(Role::Admin, None).unwrap_err().kind, Kind::Forbidden);
    }
}
