//! What a path of the OCI distribution API asks for. A repository's name has slashes of its own, so paths are read from behind.

use std::collections::HashMap;

use crate::api::consul::decoded;
use crate::registry::digest::Digest;
use crate::registry::name::{Reference, Repository};
use crate::registry::refused::{Code, Refused};

/// What is asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Asked {
    /// Whether this is one: `/v2/`.
    Base,
    /// What a client shows from then on.
    Token,
    /// The registry's numbers.
    Metrics,
    /// Repositories.
    Catalog,
    /// A repository's tags.
    Tags(Repository),
    /// A manifest.
    Manifest(Repository, Reference),
    /// A blob.
    Blob(Repository, Digest),
    /// A new upload.
    Uploads(Repository),
    /// An upload.
    Upload(Repository, String),
    /// What says something of a manifest.
    Referrers(Repository, Digest),
}

impl Asked {
    /// Reads a path; nothing: it is none of this API's.
    pub fn read(path: &str) -> Option<Result<Self, Refused>> {
        // Some clients write the colon of a digest as %3A.
        let path = decoded(path, false).ok()?;
        if path == "/metrics" {
            return Some(Ok(Asked::Metrics));
        }
        let rest = path.strip_prefix("/v2")?;
        match rest {
            "" | "/" => return Some(Ok(Asked::Base)),
            "/_catalog" => return Some(Ok(Asked::Catalog)),
            "/token" => return Some(Ok(Asked::Token)),
            _ => {}
        }
        let rest = rest.strip_prefix('/')?;
        if let Some(name) = rest.strip_suffix("/tags/list") {
            return Some(name.parse().map(Asked::Tags));
        }
        let uploads = rest.strip_suffix("/blobs/uploads/").or_else(|| rest.strip_suffix("/blobs/uploads"));
        if let Some(name) = uploads {
            return Some(name.parse().map(Asked::Uploads));
        }
        let (before, last) = rest.rsplit_once('/')?;
        if let Some(name) = before.strip_suffix("/blobs/uploads") {
            return Some(name.parse().map(|name| Asked::Upload(name, last.to_owned())));
        }
        let (name, kind) = before.rsplit_once('/')?;
        let read = match kind {
            "manifests" => name.parse().and_then(|name| last.parse().map(|last| Asked::Manifest(name, last))),
            "blobs" => name.parse().and_then(|name| last.parse().map(|last| Asked::Blob(name, last))),
            "referrers" => name.parse().and_then(|name| last.parse().map(|last| Asked::Referrers(name, last))),
            _ => return None,
        };
        Some(read)
    }

    /// The repository that is concerned.
    pub fn repository(&self) -> Option<&Repository> {
        match self {
            Asked::Base | Asked::Token | Asked::Catalog | Asked::Metrics => None,
            Asked::Tags(name)
            | Asked::Manifest(name, _)
            | Asked::Blob(name, _)
            | Asked::Uploads(name)
            | Asked::Upload(name, _)
            | Asked::Referrers(name, _) => Some(name),
        }
    }

    /// The same of another repository.
    pub fn of(self, repository: Repository) -> Self {
        match self {
            Asked::Tags(_) => Asked::Tags(repository),
            Asked::Manifest(_, reference) => Asked::Manifest(repository, reference),
            Asked::Blob(_, digest) => Asked::Blob(repository, digest),
            Asked::Uploads(_) => Asked::Uploads(repository),
            Asked::Upload(_, id) => Asked::Upload(repository, id),
            Asked::Referrers(_, digest) => Asked::Referrers(repository, digest),
            Asked::Base | Asked::Token | Asked::Catalog | Asked::Metrics => self,
        }
    }

    /// What it is, as it is counted.
    pub fn kind(&self) -> &'static str {
        match self {
            Asked::Base => "base",
            Asked::Token => "token",
            Asked::Metrics => "metrics",
            Asked::Catalog => "catalog",
            Asked::Tags(_) => "tags",
            Asked::Manifest(..) => "manifest",
            Asked::Blob(..) => "blob",
            Asked::Uploads(_) | Asked::Upload(..) => "upload",
            Asked::Referrers(..) => "referrers",
        }
    }

    /// The methods that it takes.
    pub fn methods(&self) -> &'static [&'static str] {
        match self {
            Asked::Base | Asked::Token | Asked::Catalog | Asked::Metrics | Asked::Tags(_) | Asked::Referrers(..) => {
                &["GET", "HEAD"]
            }
            Asked::Manifest(..) => &["GET", "HEAD", "PUT", "DELETE"],
            Asked::Blob(..) => &["GET", "HEAD", "DELETE"],
            Asked::Uploads(_) => &["POST"],
            Asked::Upload(..) => &["GET", "HEAD", "PATCH", "PUT", "DELETE"],
        }
    }
}

/// What follows the question mark, by name; a name may come several times.
#[derive(Debug, Default)]
pub struct Query(HashMap<String, Vec<String>>);

impl Query {
    /// Reads it.
    pub fn read(text: Option<&str>) -> Result<Self, Refused> {
        let mut all: HashMap<String, Vec<String>> = HashMap::new();
        for part in text.unwrap_or_default().split('&').filter(|part| !part.is_empty()) {
            let (name, value) = part.split_once('=').unwrap_or((part, ""));
            let (Ok(name), Ok(value)) = (decoded(name, true), decoded(value, true)) else {
                return Err(Refused::new(Code::Unsupported, "the query cannot be read").status_of(400));
            };
            all.entry(name).or_default().push(value);
        }
        Ok(Query(all))
    }

    /// The first value of a name.
    pub fn get(&self, name: &str) -> Option<&str> {
        self.all(name).first().map(String::as_str)
    }

    /// All values of a name.
    pub fn all(&self, name: &str) -> &[String] {
        self.0.get(name).map_or(&[], Vec::as_slice)
    }

    /// How many are asked for; `most` where nothing is said.
    pub fn count(&self, most: usize) -> Result<usize, Refused> {
        match self.get("n").map(|text| text.parse::<usize>()) {
            None => Ok(most),
            Some(Ok(count)) => Ok(count.min(most)),
            Some(Err(_)) => {
                let why = format!("n={:.20?} is no number", self.get("n").unwrap_or_default());
                Err(Refused::new(Code::Unsupported, why).status_of(400))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DIGEST: &str = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

    #[test]
    fn paths_are_read_from_behind() {
        let read = |path: &str| Asked::read(path).unwrap().unwrap();
        let name = |text: &str| text.parse::<Repository>().unwrap();
        assert_eq!((read("/v2/"), read("/v2"), read("/v2/_catalog")), (Asked::Base, Asked::Base, Asked::Catalog));
        assert_eq!(read("/v2/a/tags/list"), Asked::Tags(name("a")));
        assert_eq!(
            read("/v2/manifests/manifests/manifests"),
            Asked::Manifest(name("manifests"), "manifests".parse().unwrap())
        );
        assert_eq!(read("/v2/blobs/uploads/blobs/uploads/"), Asked::Uploads(name("blobs/uploads")));
        assert_eq!(read("/v2/a/b/blobs/uploads/x-1"), Asked::Upload(name("a/b"), "x-1".into()));
        let encoded = format!("/v2/a/blobs/{}", DIGEST.replace(':', "%3a"));
        assert_eq!(read(&encoded), Asked::Blob(name("a"), DIGEST.parse().unwrap()));
        assert_eq!(read(&format!("/v2/a/referrers/{DIGEST}")), Asked::Referrers(name("a"), DIGEST.parse().unwrap()));
        for none in ["/", "/v1/", "/v2/x", "/v2/a/b", "/v2/a/others/x", "/v2/a/%zz"] {
            assert!(Asked::read(none).is_none(), "{none}");
        }
        for wrong in [
            "/v2/A/tags/list",
            "/v2/a/blobs/x",
            "/v2/a/manifests/.x",
            "/v2//manifests/x",
            "/v2/a/%2e%2e/blobs/uploads/",
        ] {
            assert!(Asked::read(wrong).unwrap().is_err(), "{wrong}");
        }
        let query = Query::read(Some("n=5&last=a%2Fb&tag=x&tag=y")).unwrap();
        assert_eq!((query.count(9).unwrap(), query.get("last"), query.all("tag").len()), (5, Some("a/b"), 2));
        assert!(Query::read(Some("n=x")).unwrap().count(9).is_err() && Query::read(Some("%z")).is_err());
    }
}
