//! Pushing to another registry.

use bytes::Bytes;
use futures_util::Stream;
use reqwest::header::{AUTHORIZATION, CONTENT_LENGTH, CONTENT_TYPE, HeaderMap, HeaderValue, LOCATION};
use reqwest::{Body, Method};

use super::{Fault, Upstream, answered_within};
use crate::model::registry::Login;
use crate::registry::digest::Digest;
use crate::registry::name::{Reference, Repository};

/// How long a blob may take on its way, and how long a registry may think about it when it is there.
const BLOB: std::time::Duration = std::time::Duration::from_secs(4 * 60 * 60);

impl Upstream {
    /// Whether a blob is there.
    pub async fn has(&self, repository: &Repository, digest: &Digest, login: Option<&Login>) -> Result<bool, Fault> {
        let path = format!("v2/{repository}/blobs/{digest}");
        match self.send(Method::HEAD, &path, &HeaderMap::new(), None, (repository, true), login).await {
            Ok(_) => Ok(true),
            Err(Fault::Missing(_)) => Ok(false),
            Err(fault) => Err(fault),
        }
    }

    /// Pushes a blob of so many bytes: in one request behind the one that begins.
    pub async fn push_blob(
        &self,
        repository: &Repository,
        digest: &Digest,
        size: u64,
        parts: impl Stream<Item = std::io::Result<Bytes>> + Send + 'static,
        login: Option<&Login>,
    ) -> Result<(), Fault> {
        let who = &self.place.registry;
        let path = format!("v2/{repository}/blobs/uploads/");
        let begun = self.send(Method::POST, &path, &HeaderMap::new(), None, (repository, true), login).await?;
        let location = begun.headers().get(LOCATION).and_then(|value| value.to_str().ok());
        let address = location.and_then(|location| begun.url().join(location).ok());
        // What is told to this registry is for no other.
        let address = address.filter(|address| address.origin() == self.place.base.origin());
        let mut address = address.ok_or_else(|| Fault::Down(format!("{who} does not say where the upload goes on")))?;
        address.query_pairs_mut().append_pair("digest", digest.as_str());
        let scope = super::scope(repository, true);
        let said = self.known.authorization(&self.token_client, &self.place.base, &scope, login).await?;
        let request = self
            .client
            .put(address)
            .header(CONTENT_TYPE, "application/octet-stream")
            .header(CONTENT_LENGTH, size)
            .body(Body::wrap_stream(parts));
        let request = said.iter().fold(request, |request, said| request.header(AUTHORIZATION, said));
        let answer = answered_within(request.send(), who, BLOB).await?;
        match answer.status().as_u16() {
            201 => Ok(()),
            401 | 403 => Err(Fault::Denied(format!("{who} does not take blobs of {repository}"))),
            429 => Err(Fault::limited(&answer, who)),
            status => Err(Fault::Down(format!("{who} answers {status} to a blob"))),
        }
    }

    /// Pushes a manifest; what it names has to be there.
    pub async fn push_manifest(
        &self,
        repository: &Repository,
        reference: &Reference,
        media_type: &str,
        bytes: Vec<u8>,
        login: Option<&Login>,
    ) -> Result<(), Fault> {
        let path = format!("v2/{repository}/manifests/{}", reference.as_str());
        let mut headers = HeaderMap::new();
        let wrong = |_| Fault::Down(format!("{media_type:.80?} is no media type"));
        headers.insert(CONTENT_TYPE, HeaderValue::from_str(media_type).map_err(wrong)?);
        let body = Some(Bytes::from(bytes));
        self.send(Method::PUT, &path, &headers, body, (repository, true), login).await.map(drop)
    }
}
