//! Uploads: begun, gone on with, finished, given up.

use std::time::Duration;

use http_body_util::BodyExt;
use hyper::body::Incoming;
use hyper::header::{self, HeaderMap};
use hyper::{Method, Response};
use tokio::sync::mpsc;

use super::{Answer, Body, Call, DIGEST, UPLOAD, empty, put, response};
use crate::registry::digest::{Algorithm, Digest};
use crate::registry::name::Repository;
use crate::registry::refused::{Code, Refused};
use crate::registry::{Growing, ImageRegistry, Part, Received};

/// How long a client may send nothing of what it has begun to send.
pub const PATIENCE: Duration = Duration::from_secs(60);
/// Parts that wait to be written.
const WAITING: usize = 4;

/// POST: begins one; with a digest all of it comes at once, with a source it need not come at all.
pub async fn begin(call: Call, repository: &Repository) -> Answer {
    let Call { registry, caller, headers, query, body, .. } = call;
    registry.check_pushed(repository)?;
    if let (Some(digest), Some(from)) = (query.get("mount"), query.get("from")) {
        // Whatever is wrong with it: it is sent instead.
        if let (Ok(digest), Ok(from)) = (digest.parse::<Digest>(), from.parse::<Repository>())
            && caller.sees(registry.rules(), from.as_str())
            && registry.mount(&from, repository, &digest).await?
        {
            return Ok(made(repository, &digest));
        }
    }
    let digest = query.get("digest").map(str::parse::<Digest>).transpose()?;
    let algorithm = match (&digest, query.get("digest-algorithm")) {
        (Some(digest), _) => digest.algorithm(),
        (None, Some(text)) => text.parse()?,
        (None, None) => Algorithm::Sha256,
    };
    let growing = registry.begin(repository, algorithm).await?;
    let Some(digest) = digest else {
        let mut answer = response(202, empty());
        describe(&mut answer, repository, &growing);
        return Ok(answer);
    };
    // To its end, whether or not somebody waits for it: nobody else knows of this upload.
    let (own, name, id) = (registry.clone(), repository.clone(), growing.id().to_owned());
    let done = tokio::spawn(async move {
        match receive(&own, growing, body, &headers).await {
            Ok(growing) => {
                own.finish(&name, growing, &digest).await?;
                Ok(made(&name, &digest))
            }
            Err(refused) => {
                if let Ok(growing) = own.upload(&name, &id).await {
                    own.cancel(growing)?;
                }
                Err(refused)
            }
        }
    });
    done.await.unwrap_or_else(|_| Err(Refused::new(Code::Unknown, "the registry broke off")))
}

/// What is asked of one that has begun.
pub async fn answer(call: Call, repository: &Repository, id: &str) -> Answer {
    let Call { registry, method, headers, query, body, .. } = call;
    let growing = registry.upload(repository, id).await?;
    match method {
        Method::PATCH => {
            if let Some(answer) = out_of_order(repository, &growing, &headers)? {
                return Ok(answer);
            }
            let growing = receive(&registry, growing, body, &headers).await?;
            let mut answer = response(202, empty());
            describe(&mut answer, repository, &growing);
            Ok(answer)
        }
        Method::PUT => {
            let why = "the digest of what came has to be said (?digest=sha256:...)";
            let digest = query.get("digest").ok_or_else(|| Refused::new(Code::DigestInvalid, why))?;
            let digest: Digest = digest.parse()?;
            if let Some(answer) = out_of_order(repository, &growing, &headers)? {
                return Ok(answer);
            }
            let growing = receive(&registry, growing, body, &headers).await?;
            registry.finish(repository, growing, &digest).await?;
            Ok(made(repository, &digest))
        }
        Method::DELETE => {
            registry.cancel(growing)?;
            Ok(response(204, empty()))
        }
        _ => {
            let mut answer = response(204, empty());
            describe(&mut answer, repository, &growing);
            Ok(answer)
        }
    }
}

fn made(repository: &Repository, digest: &Digest) -> Response<Body> {
    let mut answer = response(201, empty());
    put(&mut answer, header::LOCATION, format!("/v2/{repository}/blobs/{digest}"));
    put(&mut answer, DIGEST, digest.as_str());
    answer
}

fn describe(answer: &mut Response<Body>, repository: &Repository, growing: &Growing) {
    put(answer, header::LOCATION, format!("/v2/{repository}/blobs/uploads/{}", growing.id()));
    put(answer, UPLOAD, growing.id());
    // Of nothing as well: there is no other way to say it.
    put(answer, header::RANGE, format!("0-{}", growing.size().saturating_sub(1)));
}

// What does not follow what came before is not taken, and the client is told where to go on.
fn out_of_order(
    repository: &Repository,
    growing: &Growing,
    headers: &HeaderMap,
) -> Result<Option<Response<Body>>, Refused> {
    let Some(range) = headers.get(header::CONTENT_RANGE) else { return Ok(None) };
    let text = String::from_utf8_lossy(range.as_bytes()).into_owned();
    let numbers = text.trim_start_matches("bytes ").split('/').next().and_then(|range| range.split_once('-'));
    let numbers = numbers.and_then(|(first, last)| Some((first.parse::<u64>().ok()?, last.parse::<u64>().ok()?)));
    let Some((first, last)) = numbers.filter(|(first, last)| first <= last) else {
        let why = format!("Content-Range: {text:.60?} is no range, such as 0-1023");
        return Err(Refused::new(Code::BlobUploadInvalid, why));
    };
    let said = (last - first).saturating_add(1);
    if let Some(length) = length(headers)
        && length != said
    {
        let why = format!("Content-Range says {said} bytes, Content-Length {length}");
        return Err(Refused::new(Code::SizeInvalid, why));
    }
    if first == growing.size() {
        return Ok(None);
    }
    let why = format!("the next byte is number {}, not {first}", growing.size());
    let refused = Refused::new(Code::BlobUploadInvalid, why).about(growing.id()).status_of(416);
    let mut answer = super::told(&refused);
    describe(&mut answer, repository, growing);
    Ok(Some(answer))
}

fn length(headers: &HeaderMap) -> Option<u64> {
    headers.get(header::CONTENT_LENGTH)?.to_str().ok()?.parse().ok()
}

// Takes a body to its end. What came before an end too early stays, for whoever goes on.
async fn receive(
    registry: &ImageRegistry,
    growing: Growing,
    mut body: Incoming,
    headers: &HeaderMap,
) -> Result<Growing, Refused> {
    if hyper::body::Body::is_end_stream(&body) {
        return Ok(growing);
    }
    let most = registry.limits().max_blob;
    let too_large = || Refused::new(Code::SizeInvalid, format!("a blob has {most} bytes at most")).status_of(413);
    if length(headers).is_some_and(|length| growing.size().saturating_add(length) > most) {
        return Err(too_large());
    }
    let (sender, parts) = mpsc::channel::<Part>(WAITING);
    let send = async move {
        loop {
            match tokio::time::timeout(PATIENCE, body.frame()).await {
                Ok(Some(Ok(frame))) => {
                    let Ok(data) = frame.into_data() else { continue };
                    if data.is_empty() {
                        continue;
                    }
                    // Whoever does not take it says why.
                    if sender.send(registry.part(data).await?).await.is_err() {
                        return Ok(());
                    }
                }
                Ok(Some(Err(_))) => {
                    return Err(Refused::new(Code::BlobUploadInvalid, "it did not come to its end"));
                }
                Ok(None) => return Ok(()),
                Err(_) => {
                    let why = format!("nothing came for {} seconds", PATIENCE.as_secs());
                    return Err(Refused::new(Code::BlobUploadInvalid, why).status_of(408));
                }
            }
        }
    };
    let (received, sent) = tokio::join!(registry.receive(growing, parts), send);
    let (growing, received) = received?;
    sent?;
    match received {
        Received::All => Ok(growing),
        Received::TooMuch => Err(too_large()),
    }
}
