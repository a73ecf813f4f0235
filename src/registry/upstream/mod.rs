//! Another registry, as its client: what is asked of it, and why it did not answer.

mod auth;
pub mod place;
mod push;

use std::time::Duration;

use bytes::Bytes;
use reqwest::header::{ACCEPT, AUTHORIZATION, CONTENT_LENGTH, CONTENT_TYPE, HeaderMap, LINK, RANGE, RETRY_AFTER};
use reqwest::redirect::Policy;
use reqwest::{Client, Method, Response};
use serde::Deserialize;

use self::auth::{Challenge, Known};
use self::place::Place;
use super::digest::{Algorithm, Digest};
use super::manifest::{DOCKER_LIST, DOCKER_MANIFEST, MAX_MANIFEST, OCI_INDEX, OCI_MANIFEST, Referrer};
use super::name::{Reference, Repository, check_tag};
use super::refused::{Code, Refused};
use crate::model::registry::Login;
use crate::model::{Error, Result as ModelResult};

/// How long the head of an answer may take.
const PATIENCE: Duration = Duration::from_secs(30);
/// How long nothing may come of an answer that has begun.
pub const SILENCE: Duration = Duration::from_secs(60);
/// What it sends at least in a second, in bytes, over a minute and more.
pub const LEAST: u64 = 1024;
/// Largest list that is read, in bytes.
const MAX_LIST: usize = 4 << 20;
/// Most pages of tags that are read.
const PAGES: usize = 200;

/// Why another registry did not do what it was asked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Fault {
    /// It has none such.
    Missing(String),
    /// Who asked may not.
    Denied(String),
    /// Too much was asked, and for how many seconds more it will not answer, where it says so.
    Limited(String, Option<u64>),
    /// It does not answer, or nothing that can be read.
    Down(String),
}

impl Fault {
    /// In words.
    pub fn why(&self) -> &str {
        match self {
            Fault::Missing(why) | Fault::Denied(why) | Fault::Limited(why, _) | Fault::Down(why) => why,
        }
    }

    fn limited(answer: &Response, who: &str) -> Self {
        let seconds = answer.headers().get(RETRY_AFTER).and_then(|value| value.to_str().ok()?.parse().ok());
        Fault::Limited(format!("{who} was asked too much (429)"), seconds)
    }

    /// As it is told to a client of ours; `missing` is what is said where there is none such.
    pub fn refused(&self, missing: Code) -> Refused {
        let status = match self {
            Fault::Missing(_) => return Refused::new(missing, self.why()),
            Fault::Limited(..) => return Refused::new(Code::TooManyRequests, self.why()),
            Fault::Denied(_) => return Refused::new(Code::Denied, self.why()),
            Fault::Down(_) => 502,
        };
        Refused::new(Code::Unknown, self.why()).status_of(status)
    }
}

/// A manifest as it came.
#[derive(Debug, Clone)]
pub struct Fetched {
    /// Its digest, which its bytes have.
    pub digest: Digest,
    /// What it was called.
    pub media_type: Option<String>,
    /// It.
    pub bytes: Vec<u8>,
}

/// Another registry.
pub struct Upstream {
    /// Where it is.
    pub place: Place,
    client: Client,
    // Passwords go where they are asked for, and nowhere else.
    token_client: Client,
    known: Known,
}

#[derive(Deserialize)]
struct Tags {
    tags: Option<Vec<String>>,
}

#[derive(Deserialize)]
struct Referrers {
    manifests: Vec<Referrer>,
}

impl Upstream {
    /// One; where it `is_insecure` any certificate will do.
    pub fn new(place: Place, is_insecure: bool) -> ModelResult<Self> {
        let made = |redirects: fn() -> Policy| {
            crate::network::built(move |builder| {
                builder
                    .user_agent(concat!("neap/", env!("CARGO_PKG_VERSION")))
                    // Blobs are what they are called after: as they come.
                    .no_gzip()
                    .redirect(redirects())
                    .connect_timeout(Duration::from_secs(10))
                    .pool_idle_timeout(Duration::from_secs(15))
                    .danger_accept_invalid_certs(is_insecure)
            })
        };
        let failed = |error| Error::internal(format!("registry {}", place.registry), "cannot be asked").cause(error);
        let client = made(Policy::default).map_err(failed)?;
        let token_client = made(Policy::none).map_err(failed)?;
        Ok(Upstream { place, client, token_client, known: Known::default() })
    }

    // Asks, and once more where it says how it wants to know who asks. Statuses that mean no answer are told as such.
    async fn send(
        &self,
        method: Method,
        path: &str,
        headers: &HeaderMap,
        body: Option<Bytes>,
        (repository, pushes): (&Repository, bool),
        login: Option<&Login>,
    ) -> Result<Response, Fault> {
        let who = &self.place.registry;
        // Whatever an answer has said of where to go on: nobody else hears what is told to this one.
        let address = self.place.base.join(path).ok().filter(|address| address.origin() == self.place.base.origin());
        let address = address.ok_or_else(|| Fault::Down(format!("{who} has no address {path}")))?;
        let scope = scope(repository, pushes);
        for is_again in [false, true] {
            let said = match self.known.authorization(&self.token_client, &self.place.base, &scope, login).await {
                // It may want something else by now.
                Err(_) if !is_again && self.known.forget_challenge() => None,
                other => other?,
            };
            let was_basic = said.as_ref().is_some_and(|said| said.starts_with("Basic"));
            let mut request = self.client.request(method.clone(), address.clone()).headers(headers.clone());
            if let Some(said) = said {
                request = request.header(AUTHORIZATION, said);
            }
            if let Some(body) = &body {
                request = request.body(body.clone());
            }
            let answer = answered(request.send(), who).await?;
            let status = answer.status().as_u16();
            match status {
                401 if !is_again => {
                    let all = answer.headers().get_all("www-authenticate").iter();
                    let challenge = all.filter_map(|value| Challenge::read(value.to_str().ok()?)).next();
                    let Some(challenge) = challenge else { break };
                    if challenge == Challenge::Basic && (login.is_none() || was_basic) {
                        break;
                    }
                    self.known.forget(&scope, login);
                    self.known.asked_for(challenge);
                }
                401 | 403 => break,
                404 => return Err(Fault::Missing(format!("{who} has no {path}"))),
                429 => return Err(Fault::limited(&answer, who)),
                _ if answer.status().is_success() => return Ok(answer),
                _ => return Err(Fault::Down(format!("{who} answers {status}"))),
            }
        }
        let login =
            login.map_or("without a login (neap registry login)".to_owned(), |login| format!("as {}", login.username));
        Err(Fault::Denied(format!("{who} does not give {repository} {login}")))
    }

    /// The digest of a manifest, where it is there and says so.
    pub async fn digest(
        &self,
        repository: &Repository,
        reference: &Reference,
        login: Option<&Login>,
    ) -> Result<Option<Digest>, Fault> {
        let path = format!("v2/{repository}/manifests/{}", reference.as_str());
        let answer = self.send(Method::HEAD, &path, &kinds(), None, (repository, false), login).await?;
        Ok(said_digest(&answer))
    }

    /// A manifest; it is what it is called after.
    pub async fn manifest(
        &self,
        repository: &Repository,
        reference: &Reference,
        login: Option<&Login>,
    ) -> Result<Fetched, Fault> {
        let who = &self.place.registry;
        let path = format!("v2/{repository}/manifests/{}", reference.as_str());
        let answer = self.send(Method::GET, &path, &kinds(), None, (repository, false), login).await?;
        let media_type = answer.headers().get(CONTENT_TYPE).and_then(|kind| kind.to_str().ok()).map(str::to_owned);
        let said = match reference {
            Reference::Digest(digest) => Some(digest.clone()),
            Reference::Tag(_) => said_digest(&answer),
        };
        let bytes = bounded(answer, MAX_MANIFEST, who).await?;
        let digest = Digest::of(said.as_ref().map_or(Algorithm::Sha256, Digest::algorithm), &bytes);
        match said.filter(|said| *said != digest) {
            Some(said) => Err(Fault::Down(format!("{who} sent {digest} as the manifest {said}"))),
            None => Ok(Fetched { digest, media_type, bytes }),
        }
    }

    /// How large a blob is, where that is said.
    pub async fn size(
        &self,
        repository: &Repository,
        digest: &Digest,
        login: Option<&Login>,
    ) -> Result<Option<u64>, Fault> {
        let path = format!("v2/{repository}/blobs/{digest}");
        let answer = self.send(Method::HEAD, &path, &HeaderMap::new(), None, (repository, false), login).await?;
        Ok(answer.headers().get(CONTENT_LENGTH).and_then(|length| length.to_str().ok()?.parse().ok()))
    }

    /// A blob from its byte `from` on. Whether that is what comes: else it is all of it.
    pub async fn blob(
        &self,
        repository: &Repository,
        digest: &Digest,
        from: u64,
        login: Option<&Login>,
    ) -> Result<(Response, bool), Fault> {
        let path = format!("v2/{repository}/blobs/{digest}");
        let mut headers = HeaderMap::new();
        if from > 0
            && let Ok(range) = format!("bytes={from}-").parse()
        {
            headers.insert(RANGE, range);
        }
        let answer = self.send(Method::GET, &path, &headers, None, (repository, false), login).await?;
        let is_rest = answer.status().as_u16() == 206;
        Ok((answer, is_rest))
    }

    /// All tags of a repository, in order.
    pub async fn tags(&self, repository: &Repository, login: Option<&Login>) -> Result<Vec<String>, Fault> {
        let who = &self.place.registry;
        let mut path = format!("v2/{repository}/tags/list?n=1000");
        let mut all = Vec::new();
        for _ in 0..PAGES {
            let answer = self.send(Method::GET, &path, &HeaderMap::new(), None, (repository, false), login).await?;
            let next = next_of(&answer, &self.place);
            let bytes = bounded(answer, MAX_LIST, who).await?;
            let page: Tags = serde_json::from_slice(&bytes).map_err(|_| Fault::Down(format!("{who} sent no tags")))?;
            // What would be no tag here is none to ask for.
            all.extend(page.tags.unwrap_or_default().into_iter().filter(|tag| check_tag(tag).is_ok()));
            match next {
                Some(next) => path = next,
                None => break,
            }
        }
        all.sort();
        all.dedup();
        Ok(all)
    }

    /// What says something of a manifest there.
    pub async fn referrers(
        &self,
        repository: &Repository,
        subject: &Digest,
        login: Option<&Login>,
    ) -> Result<Vec<Referrer>, Fault> {
        let who = &self.place.registry;
        let path = format!("v2/{repository}/referrers/{subject}");
        let answer = self.send(Method::GET, &path, &HeaderMap::new(), None, (repository, false), login).await?;
        let bytes = bounded(answer, MAX_LIST, who).await?;
        let wrong = |_| Fault::Down(format!("{who} sent no index of referrers"));
        Ok(serde_json::from_slice::<Referrers>(&bytes).map_err(wrong)?.manifests)
    }
}

// The manifests that are wanted: all, as they are.
fn kinds() -> HeaderMap {
    let mut headers = HeaderMap::new();
    for kind in [OCI_INDEX, DOCKER_LIST, OCI_MANIFEST, DOCKER_MANIFEST, "*/*;q=0.1"] {
        headers.append(ACCEPT, reqwest::header::HeaderValue::from_static(kind));
    }
    headers
}

fn said_digest(answer: &Response) -> Option<Digest> {
    answer.headers().get("docker-content-digest")?.to_str().ok()?.parse().ok()
}

// Where the next page is, of the same registry.
fn next_of(answer: &Response, place: &Place) -> Option<String> {
    let link = answer.headers().get(LINK)?.to_str().ok()?;
    let (address, rest) = link.trim().strip_prefix('<')?.split_once('>')?;
    let next = place.base.join(address).ok().filter(|next| next.origin() == place.base.origin())?;
    let query = next.query().map(|query| format!("?{query}")).unwrap_or_default();
    rest.contains("next").then(|| format!("{}{query}", next.path()))
}

// What a token is for.
fn scope(repository: &Repository, pushes: bool) -> String {
    format!("repository:{repository}:{}", if pushes { "pull,push" } else { "pull" })
}

// The head of an answer, within reason.
async fn answered(asked: impl Future<Output = reqwest::Result<Response>>, who: &str) -> Result<Response, Fault> {
    answered_within(asked, who, PATIENCE).await
}

async fn answered_within(
    asked: impl Future<Output = reqwest::Result<Response>>,
    who: &str,
    patience: Duration,
) -> Result<Response, Fault> {
    match tokio::time::timeout(patience, asked).await {
        Ok(Ok(answer)) => Ok(answer),
        Ok(Err(error)) => Err(Fault::Down(format!("{who} cannot be asked: {}", innermost(&error)))),
        Err(_) => Err(Fault::Down(format!("{who} does not answer within {} s", patience.as_secs()))),
    }
}

/// What an error comes down to.
pub fn innermost(error: &reqwest::Error) -> String {
    let mut cause: &dyn std::error::Error = error;
    while let Some(inner) = cause.source() {
        cause = inner;
    }
    cause.to_string()
}

// All of an answer that is no larger than that.
async fn bounded(mut answer: Response, most: usize, who: &str) -> Result<Vec<u8>, Fault> {
    let mut all = Vec::new();
    loop {
        let part = tokio::time::timeout(SILENCE, answer.chunk()).await;
        let part = part.map_err(|_| Fault::Down(format!("{who} broke off")))?;
        let Some(part) = part.map_err(|error| Fault::Down(format!("{who} broke off: {}", innermost(&error))))? else {
            return Ok(all);
        };
        if all.len() + part.len() > most {
            return Err(Fault::Down(format!("{who} answers with more than {most} bytes")));
        }
        all.extend_from_slice(&part);
    }
}
