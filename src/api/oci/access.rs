//! Who may do what with images: everybody, or whoever brings one of Neap's tokens or a name and a password, at once (Basic) or as clients of
//! registries ask for a token first (Bearer).

use std::sync::Arc;

use async_trait::async_trait;
use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use hyper::header::{self, HeaderMap};
use hyper::{Method, Response};
use serde_json::json;

use super::path::Asked;
use super::users::Users;
use super::{Answer, Body, json_of, put};
use crate::api::auth;
use crate::model::id::sha256_hex;
use crate::model::right::{Principal, Role};
use crate::model::{Error, Kind, Result};
use crate::registry::name::Repository;
use crate::registry::refused::{Code, Refused};
use crate::registry::rules::{ANYBODY, Action, Rules};
use crate::store::Store;

/// What is asked of clients.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    /// Nothing: whoever reaches it pulls, pushes and deletes.
    Open,
    /// A token of whoever pushes or deletes; all others pull.
    Pull,
    /// A token of everybody.
    Token,
}

impl std::str::FromStr for Access {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        match text {
            "open" => Ok(Access::Open),
            "pull" => Ok(Access::Pull),
            "token" => Ok(Access::Token),
            other => Err(Error::invalid(format!("registry access {other:.40?}"), "is none of open, pull, token")),
        }
    }
}

/// How long clients keep what they were given, in seconds. They ask again then; a token that was removed is of no use at once.
const KEPT: u32 = 300;

/// Who knows tokens.
#[async_trait]
pub trait Tokens: Send + Sync {
    /// Whose it is, by the secret's hash; an error that says `Unauthenticated` where nobody knows it.
    async fn principal(&self, hash: &str) -> Result<Principal>;
}

/// Those of a store.
pub struct StoredSecrets(pub Arc<dyn Store>);

#[async_trait]
impl Tokens for StoredSecrets {
    async fn principal(&self, hash: &str) -> Result<Principal> {
        auth::token(hash, &*self.0)
    }
}

/// Lets requests in.
pub struct Gate {
    /// What is asked of them.
    pub access: Access,
    /// Who knows tokens.
    pub tokens: Arc<dyn Tokens>,
    /// Users with passwords, where there are some.
    pub users: Option<Arc<Users>>,
    /// Whether clients come by TLS.
    pub is_secure: bool,
}

/// Who asks.
pub enum Caller {
    /// Nobody has to say.
    Anybody {
        /// Where no rule says, they see what is there.
        sees_all: bool,
    },
    /// The bearer of a token.
    Known(Principal),
}

impl Caller {
    /// Whether a repository is theirs to see.
    pub fn sees(&self, rules: &Rules, repository: &str) -> bool {
        match self {
            Caller::Anybody { sees_all } => match rules.who(repository, Action::Pull) {
                Some(all) => all.iter().any(|who| who == ANYBODY),
                None => *sees_all,
            },
            Caller::Known(principal) => {
                rules.allow(principal, repository, Action::Pull)
                    && principal.require(Role::Viewer, Some(repository)).is_ok()
            }
        }
    }
}

fn unauthorized(why: &str) -> Refused {
    Refused::new(Code::Unauthorized, why)
}

/// With which those begin that stand for a name and a password.
const PAIR: &str = "pair.";

// What a request says of who makes it.
enum Said {
    Nothing,
    // One of Neap's tokens.
    Secret(String),
    // A name, which is whatever people like where the password is one of Neap's tokens.
    Pair(String, String),
}

fn pair(encoded: &str) -> std::result::Result<Said, Refused> {
    let decoded = BASE64_STANDARD.decode(encoded.trim()).ok().and_then(|bytes| String::from_utf8(bytes).ok());
    let pair = decoded.and_then(|pair| pair.split_once(':').map(|(name, word)| (name.to_owned(), word.to_owned())));
    let (name, password) = pair.ok_or_else(|| unauthorized("the Authorization cannot be read"))?;
    Ok(Said::Pair(name, password))
}

fn said(headers: &HeaderMap) -> std::result::Result<Said, Refused> {
    let Some(value) = headers.get(header::AUTHORIZATION) else { return Ok(Said::Nothing) };
    let value = value.to_str().unwrap_or_default();
    let (scheme, rest) = value.split_once(' ').unwrap_or((value, ""));
    if scheme.eq_ignore_ascii_case("bearer") {
        return match rest.trim() {
            ANYBODY => Ok(Said::Nothing),
            secret => secret.strip_prefix(PAIR).map_or_else(|| Ok(Said::Secret(secret.to_owned())), pair),
        };
    }
    if scheme.eq_ignore_ascii_case("basic") {
        return pair(rest);
    }
    Err(unauthorized("the Authorization is neither Basic nor Bearer"))
}

impl Gate {
    async fn token_of(&self, secret: &str) -> std::result::Result<Principal, Refused> {
        match self.tokens.principal(&sha256_hex(secret.as_bytes())).await {
            Ok(principal) => Ok(principal),
            Err(error) if error.kind == Kind::Unauthenticated => Err(unauthorized("the token is not known")),
            Err(error) => {
                tracing::warn!(%error, "a token could not be looked up");
                Err(Refused::new(Code::Unknown, "tokens cannot be looked up for now").status_of(503))
            }
        }
    }

    async fn principal(&self, said: &Said) -> std::result::Result<Option<Principal>, Refused> {
        match (said, &self.users) {
            (Said::Nothing, _) => Ok(None),
            (Said::Secret(secret), _) | (Said::Pair(_, secret), None) => self.token_of(secret).await.map(Some),
            (Said::Pair(name, password), Some(users)) => {
                let by_token = self.token_of(password).await;
                if by_token.is_err() && users.are(name, password).await {
                    return Ok(Some(Principal { name: name.clone(), role: Role::Deployer, prefix: String::new() }));
                }
                by_token.map(Some)
            }
        }
    }

    fn anybody(&self) -> Caller {
        Caller::Anybody { sees_all: self.access != Access::Token }
    }

    /// Who asks, if they may: as a rule for the repository says, or else as it is everywhere.
    pub async fn check(
        &self,
        rules: &Rules,
        method: &Method,
        headers: &HeaderMap,
        asked: &Asked,
    ) -> std::result::Result<Caller, Refused> {
        let looks = matches!(*method, Method::GET | Method::HEAD) && !matches!(asked, Asked::Upload(..));
        let action = match (looks, method) {
            (true, _) => Action::Pull,
            (false, &Method::DELETE) if !matches!(asked, Asked::Upload(..)) => Action::Delete,
            _ => Action::Push,
        };
        let allowed = asked.repository().and_then(|repository| rules.who(repository.as_str(), action));
        let wants_names = self.access != Access::Open || rules.want_names();
        if !wants_names || (self.access == Access::Open && allowed.is_none() && asked.repository().is_some()) {
            return Ok(self.anybody());
        }
        let Some(principal) = self.principal(&said(headers)?).await? else {
            // Whoever asks whether this is a registry is told how to say who they are: Docker asks for nothing else later.
            let says_nobody = headers.contains_key(header::AUTHORIZATION) || !matches!(asked, Asked::Base);
            let may = match &allowed {
                Some(all) => all.iter().any(|who| who == ANYBODY),
                None => says_nobody && (self.access == Access::Open || (self.access == Access::Pull && looks)),
            };
            return if may { Ok(self.anybody()) } else { Err(unauthorized("a token is needed: docker login")) };
        };
        // Whoever may change the rules is not locked out by them.
        if let Some(repository) = asked.repository()
            && !rules.allow(&principal, repository.as_str(), action)
        {
            let why = format!("{} may not do that with {repository}: a rule names who may", principal.name);
            return Err(Refused::new(Code::Denied, why).about(repository.as_str()));
        }
        let role = if looks { Role::Viewer } else { Role::Deployer };
        principal
            .require(role, asked.repository().map(Repository::as_str))
            .map_err(|error| Refused::new(Code::Denied, format!("{}: {}", error.subject, error.message)))?;
        Ok(Caller::Known(principal))
    }

    /// How to say who one is, with an answer that asks for it.
    pub fn challenge(&self, answer: &mut Response<Body>, headers: &HeaderMap, asked: Option<&Asked>) {
        let host = headers.get(header::HOST).and_then(|host| host.to_str().ok()).unwrap_or("localhost");
        let is_host = host.bytes().all(|byte| byte.is_ascii_alphanumeric() || b".-:[]_".contains(&byte));
        let host = if is_host { host } else { "localhost" };
        let scheme = if self.is_secure { "https" } else { "http" };
        let scope = asked.and_then(Asked::repository).map(|name| format!(",scope=\"repository:{name}:pull,push\""));
        let bearer =
            format!("Bearer realm=\"{scheme}://{host}/v2/token\",service=\"{host}\"{}", scope.unwrap_or_default());
        put(answer, header::WWW_AUTHENTICATE, bearer);
    }

    /// Gives clients what they show from then on: their own token, what stands for their name and password, or that of anybody.
    pub async fn token(&self, rules: &Rules, headers: &HeaderMap) -> Answer {
        let said = said(headers)?;
        let is_looked_at = self.access != Access::Open || rules.want_names();
        let token = match &said {
            Said::Nothing if self.access == Access::Token && !rules.name_anybody() => {
                return Err(unauthorized("a token is needed: docker login"));
            }
            Said::Nothing => ANYBODY.to_owned(),
            _ if is_looked_at && self.principal(&said).await?.is_none() => ANYBODY.to_owned(),
            Said::Secret(secret) => secret.clone(),
            Said::Pair(_, secret) if self.users.is_none() => secret.clone(),
            Said::Pair(name, password) => format!("{PAIR}{}", BASE64_STANDARD.encode(format!("{name}:{password}"))),
        };
        Ok(json_of(&json!({ "token": token, "access_token": token, "expires_in": KEPT })))
    }
}
