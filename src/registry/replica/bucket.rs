//! A bucket of S3, or of what speaks like it.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use futures_util::stream::{BoxStream, FuturesUnordered};
use futures_util::{StreamExt, TryStreamExt};
use object_store::aws::{AmazonS3, AmazonS3Builder};
use object_store::client::{HttpClient, HttpConnector};
use object_store::path::Path;
use object_store::{
    ClientOptions, GetOptions, GetRange, MultipartUpload, ObjectStore, ObjectStoreExt, PutMode, PutOptions, RetryConfig,
};

use super::store::{Down, Kept, Store};
use crate::model::{Error, Result as ModelResult};

/// How long something small may take altogether, with all tries.
const SHORT: Duration = Duration::from_secs(20);
/// How long a part may take that is sent, and how long nothing may come of what is read.
const LONG: Duration = Duration::from_secs(120);
const SILENCE: Duration = Duration::from_secs(60);
/// What is sent in one request at most before it is sent in parts, and how large those are at least, in bytes.
const PART: u64 = 8 << 20;
/// Most parts that S3 takes.
const PARTS: u64 = 10_000;
/// What of one thing is on its way at a time, in bytes: one part at least.
const AT_ONCE: u64 = 32 << 20;

/// Which bucket, and where.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BucketOptions {
    /// Its name.
    pub name: String,
    /// What all names in it begin with; nothing, where it is the registry's alone.
    pub prefix: String,
    /// Where it is reached; by its region at Amazon, where it is not said.
    pub endpoint: Option<String>,
}

impl BucketOptions {
    /// Reads `s3://bucket/prefix`.
    pub fn read(text: &str, endpoint: Option<&str>) -> ModelResult<Self> {
        let subject = || format!("bucket {text:.100?}");
        let rest = text
            .strip_prefix("s3://")
            .ok_or_else(|| Error::invalid(subject(), "is no bucket").help("s3://BUCKET or s3://BUCKET/PREFIX"))?;
        let (name, prefix) = rest.split_once('/').unwrap_or((rest, ""));
        let is_name = (3..=63).contains(&name.len())
            && name.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || b".-_".contains(&byte));
        if !is_name {
            return Err(Error::invalid(subject(), "has no name of a bucket: 3 to 63 of a-z, 0-9, dots and dashes"));
        }
        let prefix = prefix.trim_matches('/');
        if prefix.split('/').any(|part| matches!(part, "." | "..")) || prefix.contains("//") {
            return Err(Error::invalid(subject(), "has a prefix with empty parts or dots"));
        }
        if let Some(endpoint) = endpoint {
            let is_address = endpoint
                .parse::<reqwest::Url>()
                .is_ok_and(|url| matches!(url.scheme(), "http" | "https") && url.has_host() && url.query().is_none());
            if !is_address {
                let why = format!("{endpoint:.100?} is no address, such as https://s3.example.com");
                return Err(Error::invalid("bucket", why));
            }
        }
        let endpoint = endpoint.map(|endpoint| endpoint.trim_end_matches('/').to_owned());
        Ok(BucketOptions { name: name.to_owned(), prefix: prefix.to_owned(), endpoint })
    }
}

/// A bucket.
pub struct Bucket {
    store: AmazonS3,
    prefix: Path,
    place: String,
    // Whether who asks is said by name and password.
    is_said: bool,
}

// Asks as all else of ours does that asks by HTTP.
#[derive(Debug)]
struct Connector;

impl HttpConnector for Connector {
    fn connect(&self, _: &ClientOptions) -> object_store::Result<HttpClient> {
        let client = crate::network::built(|builder| {
            builder
                .user_agent(concat!("neap/", env!("CARGO_PKG_VERSION")))
                .no_gzip()
                .http1_only()
                .connect_timeout(Duration::from_secs(5))
                .pool_idle_timeout(Duration::from_secs(15))
        });
        let failed = |error: reqwest::Error| object_store::Error::Generic { store: "S3", source: Box::new(error) };
        Ok(HttpClient::new(client.map_err(failed)?))
    }
}

impl Bucket {
    /// One. Who asks is said by the environment, as every client of S3 reads it: AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_REGION; else by
    /// the machine's role at Amazon.
    pub fn open(options: &BucketOptions) -> ModelResult<Self> {
        let place = match options.prefix.as_str() {
            "" => format!("s3://{}", options.name),
            prefix => format!("s3://{}/{prefix}", options.name),
        };
        let retry = RetryConfig { max_retries: 1, retry_timeout: Duration::from_secs(5), ..RetryConfig::default() };
        let mut builder = AmazonS3Builder::from_env()
            .with_bucket_name(&options.name)
            .with_retry(retry)
            .with_http_connector(Connector);
        let is_plain = options.endpoint.as_ref().is_some_and(|endpoint| endpoint.starts_with("http://"));
        builder = builder.with_client_options(ClientOptions::new().with_allow_http(is_plain));
        if let Some(endpoint) = &options.endpoint {
            builder = builder.with_endpoint(endpoint);
        }
        let failed = |error| Error::invalid(format!("bucket {place}"), "cannot be used").cause(error);
        let store = builder.build().map_err(failed)?;
        let is_said = std::env::var_os("AWS_ACCESS_KEY_ID").is_some();
        Ok(Bucket { store, prefix: Path::from(options.prefix.as_str()), place, is_said })
    }

    fn path(&self, name: &str) -> Path {
        self.prefix.parts().chain(Path::from(name).parts()).collect()
    }

    fn down(&self, error: &object_store::Error) -> Down {
        let mut cause: &dyn std::error::Error = error;
        while let Some(inner) = cause.source() {
            cause = inner;
        }
        let (outer, inner) = (error.to_string(), cause.to_string());
        // What the server said may be a page.
        let why = if outer.contains(&inner) { inner } else { format!("{outer}: {inner}") };
        let why: String = why.chars().map(|char| if char.is_control() { ' ' } else { char }).take(400).collect();
        let hint = match self.is_said {
            true => "",
            false => " (AWS_ACCESS_KEY_ID is not set, so that the machine's role counts)",
        };
        Down(format!("{}: {why}{hint}", self.place))
    }

    async fn within<T>(
        &self,
        time: Duration,
        work: impl Future<Output = Result<T, object_store::Error>>,
    ) -> Result<Result<T, object_store::Error>, Down> {
        let slow = |_| Down(format!("{} does not answer within {} s", self.place, time.as_secs()));
        tokio::time::timeout(time, work).await.map_err(slow)
    }

    async fn small<T>(&self, work: impl Future<Output = Result<T, object_store::Error>>) -> Result<Option<T>, Down> {
        match self.within(SHORT, work).await? {
            Ok(made) => Ok(Some(made)),
            Err(object_store::Error::NotFound { .. }) => Ok(None),
            Err(error) => Err(self.down(&error)),
        }
    }

    async fn parts(&self, path: &Path, file: &Arc<File>, size: u64) -> Result<(), Down> {
        let down = |error| self.down(&error);
        let mut upload = self.within(SHORT, self.store.put_multipart(path)).await?.map_err(down)?;
        let sent = self.send(&mut *upload, file, size).await;
        let done = match sent {
            Ok(()) => self.within(LONG, upload.complete()).await.and_then(|done| done.map_err(down)),
            Err(down) => Err(down),
        };
        if done.is_err() {
            // What cannot be given up either is left to the bucket's own rules.
            let _ = self.within(SHORT, upload.abort()).await;
        }
        done.map(drop)
    }

    async fn send(&self, upload: &mut dyn MultipartUpload, file: &Arc<File>, size: u64) -> Result<(), Down> {
        let part = PART.max(size.div_ceil(PARTS));
        let most = usize::try_from(AT_ONCE / part).unwrap_or(1).max(1);
        let (mut at, mut sending) = (0, FuturesUnordered::new());
        while at < size || !sending.is_empty() {
            if at < size && sending.len() < most {
                let end = (at + part).min(size);
                let bytes = self.load(file, at, end).await?;
                sending.push(self.within(LONG, upload.put_part(bytes.into())));
                at = end;
                continue;
            }
            if let Some(sent) = sending.next().await {
                sent?.map_err(|error| self.down(&error))?;
            }
        }
        Ok(())
    }

    async fn load(&self, file: &Arc<File>, from: u64, until: u64) -> Result<Bytes, Down> {
        let file = file.clone();
        let read = move || {
            let mut bytes = vec![0; (until - from) as usize];
            file.read_exact_at(&mut bytes, from).map(|()| Bytes::from(bytes))
        };
        let read = tokio::task::spawn_blocking(read).await.map_err(std::io::Error::other).and_then(|read| read);
        read.map_err(|error| Down(format!("what is to be sent cannot be read: {error}")))
    }
}

#[async_trait]
impl Store for Bucket {
    fn place(&self) -> &str {
        &self.place
    }

    async fn create(&self, name: &str, bytes: Bytes) -> Result<bool, Down> {
        let (path, options) = (self.path(name), PutOptions::from(PutMode::Create));
        match self.within(LONG, self.store.put_opts(&path, bytes.into(), options)).await? {
            Ok(_) => Ok(true),
            Err(object_store::Error::AlreadyExists { .. } | object_store::Error::Precondition { .. }) => Ok(false),
            Err(error) => Err(self.down(&error)),
        }
    }

    async fn get(&self, name: &str) -> Result<Option<Bytes>, Down> {
        let path = self.path(name);
        self.small(async { self.store.get(&path).await?.bytes().await }).await
    }

    async fn size(&self, name: &str) -> Result<Option<u64>, Down> {
        let path = self.path(name);
        self.small(async { self.store.head(&path).await.map(|meta| meta.size) }).await
    }

    async fn read(&self, name: &str, from: u64) -> Result<Option<BoxStream<'static, Result<Bytes, Down>>>, Down> {
        let path = self.path(name);
        let range = (from > 0).then_some(GetRange::Offset(from));
        let options = GetOptions { range, ..GetOptions::default() };
        let Some(found) = self.small(self.store.get_opts(&path, options)).await? else { return Ok(None) };
        let place = self.place.clone();
        let chunks = futures_util::stream::try_unfold(found.into_stream(), move |mut chunks| {
            let place = place.clone();
            async move {
                match tokio::time::timeout(SILENCE, chunks.try_next()).await {
                    Ok(Ok(chunk)) => Ok(chunk.map(|chunk| (chunk, chunks))),
                    Ok(Err(error)) => Err(Down(format!("{place} broke off: {error:.300}"))),
                    Err(_) => Err(Down(format!("{place} broke off"))),
                }
            }
        });
        Ok(Some(chunks.boxed()))
    }

    async fn put(&self, name: &str, file: Arc<File>, size: u64) -> Result<(), Down> {
        let path = self.path(name);
        if size > PART {
            return self.parts(&path, &file, size).await;
        }
        let bytes = self.load(&file, 0, size).await?;
        let put = self.within(LONG, self.store.put(&path, bytes.into())).await?;
        put.map(drop).map_err(|error| self.down(&error))
    }

    async fn list(&self, prefix: &str) -> Result<Vec<Kept>, Down> {
        let (path, skip) = (self.path(prefix), self.path("").as_ref().len());
        let mut all = Vec::new();
        let mut pages = self.store.list(Some(&path));
        loop {
            let found = match self.within(SHORT, pages.try_next()).await? {
                Ok(Some(found)) => found,
                Ok(None) => return Ok(all),
                Err(error) => return Err(self.down(&error)),
            };
            let name = found.location.as_ref().get(skip..).unwrap_or_default().trim_start_matches('/').to_owned();
            let at = u64::try_from(found.last_modified.timestamp_millis()).unwrap_or_default();
            all.push(Kept { name, size: found.size, at });
        }
    }

    async fn remove(&self, name: &str) -> Result<(), Down> {
        let path = self.path(name);
        self.small(self.store.delete(&path)).await.map(drop)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buckets_are_read() {
        let read = |text: &str| BucketOptions::read(text, None).map(|bucket| (bucket.name, bucket.prefix)).ok();
        assert_eq!(read("s3://images"), Some(("images".into(), String::new())));
        assert_eq!(read("s3://images/a/b/"), Some(("images".into(), "a/b".into())));
        for wrong in
            ["images", "s3://", "s3://ab", "s3://Images", "s3://images/a/../b", "s3://images/a//b", "http://x/y"]
        {
            assert_eq!(read(wrong), None, "{wrong}");
        }
        assert!(BucketOptions::read("s3://images", Some("localhost:9000")).is_err());
        assert!(BucketOptions::read("s3://images", Some("http://localhost:9000/")).is_ok());
    }
}
