//! Manifests, tags, repositories, and what says something of a manifest.

use std::collections::HashSet;

use http_body_util::BodyExt;
use hyper::header::{self, HeaderName};
use hyper::{Method, Response};
use serde_json::json;

use super::{Answer, Body, Call, DIGEST, PAGE, empty, full, json_of, put, response};
use crate::client::remote::segment;
use crate::registry::digest::Digest;
use crate::registry::manifest::{MAX_MANIFEST, OCI_INDEX};
use crate::registry::name::{Reference, Repository};
use crate::registry::refused::{Code, Refused};
use crate::registry::{Found, Page};

const SUBJECT: HeaderName = HeaderName::from_static("oci-subject");
const TAG: HeaderName = HeaderName::from_static("oci-tag");
const FILTERS: HeaderName = HeaderName::from_static("oci-filters-applied");
/// Most tags that one manifest gets at once.
const TAGS: usize = 100;

pub async fn answer(call: Call, repository: &Repository, reference: &Reference) -> Answer {
    match call.method {
        Method::PUT => put_manifest(call, repository, reference).await,
        Method::DELETE => {
            call.registry.delete_manifest(repository, reference).await?;
            Ok(response(202, empty()))
        }
        Method::HEAD => {
            let stale = call.registry.freshen(repository, reference).await?;
            let found = call.registry.manifest(repository, reference)?;
            Ok(warned(described(&found, empty()), stale))
        }
        _ => {
            let stale = call.registry.freshen(repository, reference).await?;
            let (found, bytes) = call.registry.content(repository, reference)?;
            let known = call.header(header::IF_NONE_MATCH);
            if known.is_some_and(|known| matches(known, &found.digest)) {
                let mut answer = described(&found, empty());
                answer.headers_mut().remove(header::CONTENT_LENGTH);
                *answer.status_mut() = hyper::StatusCode::NOT_MODIFIED;
                return Ok(answer);
            }
            call.registry.metrics().sent(bytes.len() as u64);
            Ok(warned(described(&found, full(bytes)), stale))
        }
    }
}

// What may not be the newest says so (RFC 7234, 5.5.1).
fn warned(mut answer: Response<Body>, stale: Option<String>) -> Response<Body> {
    if let Some(why) = stale {
        let text: String = why.chars().filter(|c| c.is_ascii_graphic() && *c != '"' || *c == ' ').take(200).collect();
        put(&mut answer, header::WARNING, format!("110 neap \"{text}\""));
    }
    answer
}

/// Whether a client has that already.
pub fn matches(known: &str, digest: &Digest) -> bool {
    known.split(',').any(|tag| {
        let tag = tag.trim();
        tag == "*" || tag.trim_start_matches("W/").trim_matches('"') == digest.as_str()
    })
}

fn described(found: &Found, body: Body) -> Response<Body> {
    let mut answer = response(200, body);
    put(&mut answer, header::CONTENT_TYPE, &found.media_type);
    put(&mut answer, header::CONTENT_LENGTH, found.size.to_string());
    put(&mut answer, DIGEST, found.digest.as_str());
    put(&mut answer, header::ETAG, format!("\"{}\"", found.digest));
    answer
}

async fn put_manifest(call: Call, repository: &Repository, reference: &Reference) -> Answer {
    let Call { registry, headers, query, body, .. } = call;
    let kind = headers.get(header::CONTENT_TYPE).and_then(|kind| kind.to_str().ok()).map(str::to_owned);
    let too_large = || {
        let why = format!("a manifest has {} MiB at most", MAX_MANIFEST >> 20);
        Refused::new(Code::ManifestInvalid, why).status_of(413)
    };
    let (mut body, mut bytes) = (body, Vec::new());
    loop {
        let silent = |_| Refused::new(Code::ManifestInvalid, "nothing more of it came").status_of(408);
        let frame = tokio::time::timeout(super::uploads::PATIENCE, body.frame()).await.map_err(silent)?;
        let Some(frame) = frame else { break };
        let frame = frame.map_err(|_| Refused::new(Code::ManifestInvalid, "it did not come to its end"))?;
        let Ok(data) = frame.into_data() else { continue };
        if bytes.len() + data.len() > MAX_MANIFEST {
            return Err(too_large());
        }
        bytes.extend_from_slice(&data);
    }
    let tags = match reference {
        Reference::Digest(_) => query.all("tag").to_vec(),
        Reference::Tag(_) => Vec::new(),
    };
    // One that is said twice is one.
    let mut seen = HashSet::new();
    let tags: Vec<String> = tags.into_iter().filter(|tag| seen.insert(tag.clone())).collect();
    if tags.len() > TAGS {
        let why = format!("{} tags at once are more than {TAGS}", tags.len());
        return Err(Refused::new(Code::ManifestInvalid, why).status_of(414));
    }
    let put_all = registry.put_manifest(repository, reference, tags.clone(), kind.as_deref(), bytes);
    let (digest, subject) = put_all.await?;
    let mut answer = response(201, empty());
    put(&mut answer, header::LOCATION, format!("/v2/{repository}/manifests/{digest}"));
    put(&mut answer, DIGEST, digest.as_str());
    if let Some(subject) = subject {
        put(&mut answer, SUBJECT, subject.as_str());
    }
    for tag in tags {
        answer.headers_mut().extend(tag.parse().ok().map(|tag| (TAG, tag)));
    }
    Ok(answer)
}

// A page of names, and where the next is.
fn paged(page: &Page, path: &str, count: usize, value: &serde_json::Value) -> Response<Body> {
    let mut answer = json_of(value);
    if let Some(last) = page.names.last().filter(|_| page.has_more) {
        let last = segment(last);
        put(&mut answer, header::LINK, format!("<{path}?n={count}&last={last}>; rel=\"next\""));
    }
    answer
}

pub async fn tags(call: &Call, repository: &Repository) -> Answer {
    let count = call.query.count(PAGE)?;
    let last = call.query.get("last").unwrap_or_default();
    let page = match call.registry.tags_upstream(repository).await? {
        None => call.registry.tags(repository, last, count)?,
        Some(all) => {
            let mut behind = all.into_iter().filter(|tag| tag.as_str() > last);
            let names = behind.by_ref().take(count).collect();
            Page { names, has_more: behind.next().is_some() }
        }
    };
    let value = json!({ "name": repository.as_str(), "tags": page.names });
    Ok(paged(&page, &format!("/v2/{repository}/tags/list"), count, &value))
}

pub fn catalog(call: &Call) -> Answer {
    let count = call.query.count(PAGE)?;
    let mut page = Page::default();
    let mut last = call.query.get("last").unwrap_or_default().to_owned();
    // Whoever is confined to some names sees those alone.
    loop {
        let more = call.registry.repositories(&last, count)?;
        page.has_more = more.has_more;
        last = more.names.last().cloned().unwrap_or_default();
        for name in more.names {
            if page.names.len() == count {
                page.has_more = true;
            } else if call.caller.sees(call.registry.rules(), &name) {
                page.names.push(name);
            }
        }
        if page.names.len() == count || !more.has_more {
            break;
        }
    }
    let value = json!({ "repositories": page.names });
    Ok(paged(&page, "/v2/_catalog", count, &value))
}

pub async fn referrers(call: &Call, repository: &Repository, subject: &Digest) -> Answer {
    let last = call.query.get("last").unwrap_or_default();
    let (mut all, has_more) = match call.registry.referrers_upstream(repository, subject).await? {
        None => call.registry.referrers(repository, subject, last).await?,
        Some(all) => (all, false),
    };
    let end = all.last().map(|referrer| referrer.digest.clone());
    let wanted = call.query.get("artifactType").filter(|kind| !kind.is_empty());
    if let Some(wanted) = wanted {
        all.retain(|referrer| referrer.artifact_type.as_deref() == Some(wanted));
    }
    let index = json!({ "schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": all });
    let mut answer = json_of(&index);
    put(&mut answer, header::CONTENT_TYPE, OCI_INDEX);
    if wanted.is_some() {
        put(&mut answer, FILTERS, "artifactType");
    }
    if let Some(end) = end.filter(|_| has_more) {
        let kind = segment(wanted.unwrap_or_default());
        let link = format!("</v2/{repository}/referrers/{subject}?last={end}&artifactType={kind}>; rel=\"next\"");
        put(&mut answer, header::LINK, link);
    }
    Ok(answer)
}
