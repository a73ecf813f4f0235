//! How another registry wants to know who asks: not at all, by a name and a password, or by a token that is got for them elsewhere.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use reqwest::{Client, Url};
use serde::Deserialize;

use super::{Fault, answered};
use crate::model::registry::{Login, TOKEN};

/// How long a token lasts of which nothing is said, as Docker has it.
const USUAL: u64 = 60;
/// What is left of a token that is not used any more: its request would come too late.
const LEFT: Duration = Duration::from_secs(5);
/// Largest answer with a token, in bytes.
const MAX_TOKEN: usize = 256 << 10;
/// Most tokens that are kept.
const MOST: usize = 10_000;

/// What a registry asks for with 401.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Challenge {
    /// A name and a password.
    Basic,
    /// A token, from there.
    Bearer {
        /// Where.
        realm: String,
        /// Whose.
        service: Option<String>,
    },
}

impl Challenge {
    /// Reads `WWW-Authenticate`.
    pub fn read(text: &str) -> Option<Self> {
        let (scheme, rest) = text.trim().split_once(' ').unwrap_or((text.trim(), ""));
        if scheme.eq_ignore_ascii_case("basic") {
            return Some(Challenge::Basic);
        }
        if !scheme.eq_ignore_ascii_case("bearer") {
            return None;
        }
        let known = parameters(rest);
        let of = |name: &str| known.get(name).cloned();
        Some(Challenge::Bearer { realm: of("realm")?, service: of("service") })
    }
}

// `name="value"` or `name=value`, with commas between. A value may hold commas.
fn parameters(mut text: &str) -> HashMap<String, String> {
    let mut all = HashMap::new();
    while let Some((name, rest)) = text.split_once('=') {
        let name = name.trim_matches([',', ' ']).to_ascii_lowercase();
        let (value, behind) = match rest.strip_prefix('"') {
            Some(quoted) => quoted.split_once('"').unwrap_or((quoted, "")),
            None => rest.split_once(',').unwrap_or((rest, "")),
        };
        all.insert(name, value.trim().to_owned());
        text = behind;
    }
    all
}

/// What is known of how to say who asks.
#[derive(Default)]
pub struct Known {
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    // What it asked for last.
    challenge: Option<Challenge>,
    // By scope and who asks: a token, and until when it is good.
    tokens: HashMap<(String, String), (String, Instant)>,
}

#[derive(Deserialize)]
struct Given {
    token: Option<String>,
    access_token: Option<String>,
    expires_in: Option<u64>,
}

// Who asks, as far as a token is another's.
fn bearer(login: Option<&Login>) -> String {
    login.map(|login| format!("{}:{}", login.username, login.password)).unwrap_or_default()
}

fn basic(login: &Login) -> String {
    format!("Basic {}", BASE64_STANDARD.encode(format!("{}:{}", login.username, login.password)))
}

impl Known {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// It asked for this.
    pub fn asked_for(&self, challenge: Challenge) {
        self.state().challenge = Some(challenge);
    }

    /// What it asked for some time ago is of no use: it is asked without. False: it never asked for anything.
    pub fn forget_challenge(&self) -> bool {
        self.state().challenge.take().is_some()
    }

    /// A token of this scope is not taken any more.
    pub fn forget(&self, scope: &str, login: Option<&Login>) {
        self.state().tokens.remove(&(scope.to_owned(), bearer(login)));
    }

    /// What is to be said with a request, as far as it is known what the registry wants.
    pub async fn authorization(
        &self,
        client: &Client,
        base: &Url,
        scope: &str,
        login: Option<&Login>,
    ) -> Result<Option<String>, Fault> {
        let challenge = self.state().challenge.clone();
        let Some(challenge) = challenge else { return Ok(None) };
        let Challenge::Bearer { realm, service } = challenge else { return Ok(login.map(basic)) };
        let key = (scope.to_owned(), bearer(login));
        if let Some((token, until)) = self.state().tokens.get(&key)
            && *until > Instant::now()
        {
            return Ok(Some(format!("Bearer {token}")));
        }
        let given = fetch(client, base, &realm, service.as_deref(), scope, login).await?;
        let lasts = Duration::from_secs(given.expires_in.unwrap_or(USUAL)).saturating_sub(LEFT);
        let none = || Fault::Down(format!("{realm} gave no token"));
        let token = given.token.or(given.access_token).filter(|token| !token.is_empty()).ok_or_else(none)?;
        let mut state = self.state();
        if state.tokens.len() >= MOST {
            let now = Instant::now();
            state.tokens.retain(|_, (_, until)| *until > now);
            if state.tokens.len() >= MOST {
                state.tokens.clear();
            }
        }
        if let Some(until) = Instant::now().checked_add(lasts) {
            state.tokens.insert(key, (token.clone(), until));
        }
        Ok(Some(format!("Bearer {token}")))
    }
}

async fn fetch(
    client: &Client,
    base: &Url,
    realm: &str,
    service: Option<&str>,
    scope: &str,
    login: Option<&Login>,
) -> Result<Given, Fault> {
    let mut address: Url = realm.parse().map_err(|_| Fault::Down(format!("{base} wants tokens from {realm:.200?}")))?;
    if address.scheme() != "https" && base.scheme() == "https" {
        return Err(Fault::Down(format!("{base} wants tokens from {realm:.200?}, in the clear")));
    }
    let request = match login {
        // Identity tokens are exchanged (OAuth 2); all else is asked for with a name and a password.
        Some(login) if login.username == TOKEN => {
            let fields = [
                ("grant_type", "refresh_token"),
                ("service", service.unwrap_or_default()),
                ("client_id", "neap"),
                ("scope", scope),
                ("refresh_token", &login.password),
            ];
            let body: String = Url::parse_with_params("http://form/", fields)
                .ok()
                .and_then(|form| form.query().map(str::to_owned))
                .unwrap_or_default();
            client.post(address).header("content-type", "application/x-www-form-urlencoded").body(body)
        }
        _ => {
            let mut pairs = address.query_pairs_mut();
            service.iter().for_each(|service| _ = pairs.append_pair("service", service));
            if !scope.is_empty() {
                pairs.append_pair("scope", scope);
            }
            drop(pairs);
            let request = client.get(address);
            login.map(basic).iter().fold(request, |request, value| request.header("authorization", value))
        }
    };
    let answer = answered(request.send(), realm).await?;
    match answer.status().as_u16() {
        200 => {}
        401 | 403 => {
            let who = login.map_or("anybody".to_owned(), |login| login.username.clone());
            return Err(Fault::Denied(format!("{realm} gives no token for {scope:?} to {who}")));
        }
        429 => return Err(Fault::limited(&answer, realm)),
        status => return Err(Fault::Down(format!("{realm} answers {status}"))),
    }
    let bytes = super::bounded(answer, MAX_TOKEN, realm).await?;
    serde_json::from_slice(&bytes).map_err(|_| Fault::Down(format!("{realm} gave no token")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_registries_ask_for() {
        let text = r#"Bearer realm="https://auth.docker.io/token",service="registry.docker.io",scope="repository:a:pull,push""#;
        let realm = "https://auth.docker.io/token".to_owned();
        let hub = Challenge::Bearer { realm, service: Some("registry.docker.io".into()) };
        assert_eq!(Challenge::read(text), Some(hub));
        let bare = Challenge::read("bearer error=x, realm=http://a/b");
        assert_eq!(bare, Some(Challenge::Bearer { realm: "http://a/b".into(), service: None }));
        assert_eq!(Challenge::read("Basic realm=\"x\""), Some(Challenge::Basic));
        for none in ["", "Bearer", "Digest realm=x", "Bearer service=x"] {
            assert_eq!(Challenge::read(none), None, "{none}");
        }
    }
}
