//! Who may do what with images: everybody, or whoever brings one of Neap's tokens, as a password (Basic) or as clients of registries ask for
//! a token first (Bearer).

use std::sync::Arc;

use async_trait::async_trait;
use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use hyper::header::{self, HeaderMap};
use hyper::{Method, Response};
use serde_json::json;

use super::path::Asked;
use super::{Answer, Body, json_of, put};
use crate::api::auth;
use crate::model::id::sha256_hex;
use crate::model::right::{Principal, Role};
use crate::model::{Error, Kind, Result};
use crate::registry::name::Repository;
use crate::registry::refused::{Code, Refused};
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

/// The bearer of this is nobody in particular.
const ANYBODY: &str = "anybody";
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
    /// Whether clients come by TLS.
    pub is_secure: bool,
}

/// Who asks.
pub enum Caller {
    /// Nobody has to say.
    Anybody,
    /// The bearer of a token.
    Known(Principal),
}

impl Caller {
    /// Whether a repository is theirs to see.
    pub fn sees(&self, repository: &str) -> bool {
        match self {
            Caller::Anybody => true,
            Caller::Known(principal) => principal.require(Role::Viewer, Some(repository)).is_ok(),
        }
    }
}

fn unauthorized(why: &str) -> Refused {
    Refused::new(Code::Unauthorized, why)
}

// What a request says of who makes it: a secret.
fn secret(headers: &HeaderMap) -> std::result::Result<Option<String>, Refused> {
    let Some(value) = headers.get(header::AUTHORIZATION) else { return Ok(None) };
    let value = value.to_str().unwrap_or_default();
    let (scheme, rest) = value.split_once(' ').unwrap_or((value, ""));
    if scheme.eq_ignore_ascii_case("bearer") {
        return Ok(Some(rest.trim().to_owned()).filter(|secret| secret != ANYBODY));
    }
    if scheme.eq_ignore_ascii_case("basic") {
        let decoded = BASE64_STANDARD.decode(rest.trim()).ok().and_then(|bytes| String::from_utf8(bytes).ok());
        // The name is whatever people like: the token says who they are.
        let password = decoded.and_then(|pair| pair.split_once(':').map(|(_, password)| password.to_owned()));
        return password.map(Some).ok_or_else(|| unauthorized("the Authorization cannot be read"));
    }
    Err(unauthorized("the Authorization is neither Basic nor Bearer"))
}

impl Gate {
    async fn principal(&self, headers: &HeaderMap) -> std::result::Result<Option<Principal>, Refused> {
        let Some(secret) = secret(headers)? else { return Ok(None) };
        match self.tokens.principal(&sha256_hex(secret.as_bytes())).await {
            Ok(principal) => Ok(Some(principal)),
            Err(error) if error.kind == Kind::Unauthenticated => Err(unauthorized("the token is not known")),
            Err(error) => {
                tracing::warn!(%error, "a token could not be looked up");
                Err(Refused::new(Code::Unknown, "tokens cannot be looked up for now").status_of(503))
            }
        }
    }

    /// Who asks, if they may.
    pub async fn check(
        &self,
        method: &Method,
        headers: &HeaderMap,
        asked: &Asked,
    ) -> std::result::Result<Caller, Refused> {
        if self.access == Access::Open {
            return Ok(Caller::Anybody);
        }
        let looks = matches!(*method, Method::GET | Method::HEAD) && !matches!(asked, Asked::Upload(..));
        let Some(principal) = self.principal(headers).await? else {
            // Whoever asks whether this is a registry is told how to say who they are: Docker asks for nothing else later.
            let says_nobody = headers.contains_key(header::AUTHORIZATION);
            let may = self.access == Access::Pull && looks && (says_nobody || !matches!(asked, Asked::Base));
            return if may { Ok(Caller::Anybody) } else { Err(unauthorized("a token is needed: docker login")) };
        };
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

    /// Gives clients what they show from then on: their own token, or that of anybody.
    pub async fn token(&self, headers: &HeaderMap) -> Answer {
        let token = match secret(headers)? {
            Some(secret) => {
                if self.access != Access::Open {
                    self.principal(headers).await?;
                }
                secret
            }
            None if self.access == Access::Token => return Err(unauthorized("a token is needed: docker login")),
            None => ANYBODY.to_owned(),
        };
        Ok(json_of(&json!({ "token": token, "access_token": token, "expires_in": KEPT })))
    }
}
