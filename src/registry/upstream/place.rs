//! Where another registry is, from what people write: `docker.io`, `quay.io/org`, `http://registry.old:5000`.

use reqwest::Url;

use crate::model::registry::{self, HUB};
use crate::model::{Error, Result};
use crate::registry::name::Repository;
use crate::registry::refused::Refused;

/// Where Docker Hub answers.
const HUB_ADDRESS: &str = "https://registry-1.docker.io/";

/// Another registry, or a part of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    /// As logins call it.
    pub registry: String,
    /// Its address.
    pub base: Url,
    // What all names there begin with, or nothing.
    within: String,
}

impl Place {
    /// Reads one. Without a scheme it is HTTPS, but on this host.
    pub fn read(text: &str) -> Result<Self> {
        let subject = || format!("registry {text:.80?}");
        let (scheme, rest) = match text.split_once("://") {
            Some((scheme @ ("http" | "https"), rest)) => (Some(scheme), rest),
            Some(_) => return Err(Error::invalid(subject(), "is neither by http:// nor by https://")),
            None => (None, text),
        };
        let rest = rest.trim_end_matches('/');
        let (host, within) = rest.split_once('/').unwrap_or((rest, ""));
        let is_hub = registry::name(host).is_ok_and(|name| name == HUB) && !host.is_empty();
        if !within.is_empty() {
            within.parse::<Repository>().map_err(Refused::into_error)?;
        }
        if is_hub {
            let base = Url::parse(HUB_ADDRESS).expect("the address of Docker Hub is one");
            return Ok(Place { registry: HUB.to_owned(), base, within: within.to_owned() });
        }
        if host.is_empty() || !(host.contains(['.', ':']) || host == "localhost" || scheme.is_some()) {
            return Err(Error::invalid(subject(), "has no host").help("as in docker.io, registry.example.com:5000"));
        }
        let registry = registry::name(host)?;
        let usual = if is_own(host) { "http" } else { "https" };
        let address = format!("{}://{registry}/", scheme.unwrap_or(usual));
        let wrong = |error| Error::invalid(subject(), "is no address").cause(error);
        let base = Url::parse(&address).map_err(wrong)?;
        Ok(Place { registry, base, within: within.to_owned() })
    }

    /// Whether whoever is on the way reads what it is told.
    pub fn is_in_the_clear(&self) -> bool {
        self.base.scheme() != "https" && !is_own(&self.registry)
    }

    /// What of a repository there is behind what all names of this part begin with; nothing where it is of another part.
    pub fn rest<'a>(&self, name: &'a str) -> Option<&'a str> {
        match self.within.is_empty() {
            true => Some(name),
            false => name.strip_prefix(&self.within)?.strip_prefix('/'),
        }
    }

    /// A repository as it is called there.
    pub fn repository(&self, name: &str) -> std::result::Result<Repository, Refused> {
        // What Docker Hub keeps itself.
        let own = if self.registry == HUB && self.within.is_empty() && !name.contains('/') { "library/" } else { "" };
        let slash = if self.within.is_empty() { "" } else { "/" };
        format!("{}{slash}{own}{name}", self.within).parse()
    }
}

// Whether that is this host: what every client speaks to without a certificate.
fn is_own(host: &str) -> bool {
    let address = host.parse::<std::net::SocketAddr>().map(|address| address.ip()).or_else(|_| host.parse());
    let name = host.rsplit_once(':').map_or(host, |(name, _)| name);
    name == "localhost" || name == "[::1]" || address.is_ok_and(|address: std::net::IpAddr| address.is_loopback())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn registries_are_where_people_say() {
        let read = |text: &str, name: &str| {
            let place = Place::read(text).unwrap();
            format!("{} {} {}", place.registry, place.base, place.repository(name).unwrap())
        };
        assert_eq!(read("docker.io", "nginx"), "docker.io https://registry-1.docker.io/ library/nginx");
        assert_eq!(read("https://index.docker.io/", "a/b"), "docker.io https://registry-1.docker.io/ a/b");
        assert_eq!(read("docker.io/bitnami", "redis"), "docker.io https://registry-1.docker.io/ bitnami/redis");
        assert_eq!(read("quay.io/org/", "a"), "quay.io https://quay.io/ org/a");
        assert_eq!(read("registry.corp:5000", "a"), "registry.corp:5000 https://registry.corp:5000/ a");
        assert_eq!(read("http://old:5000", "a"), "old:5000 http://old:5000/ a");
        let rest = |text: &str, name: &'static str| Place::read(text).unwrap().rest(name);
        assert_eq!((rest("quay.io", "org/a"), rest("quay.io/org", "org/a")), (Some("org/a"), Some("a")));
        assert_eq!((rest("quay.io/org", "organ/a"), rest("quay.io/org", "org")), (None, None));
        for own in ["127.0.0.1:5000", "localhost:5000", "[::1]:5000"] {
            let place = Place::read(own).unwrap();
            assert!(place.base.scheme() == "http" && !place.is_in_the_clear(), "{own}");
        }
        assert_eq!(Place::read("localhost.example.com").unwrap().base.scheme(), "https");
        assert_eq!(Place::read("127.example.com").unwrap().base.scheme(), "https");
        assert!(Place::read("http://old:5000").unwrap().is_in_the_clear());
        assert!(!Place::read("old:5000").unwrap().is_in_the_clear());
        for bad in ["", "/", "nginx", "ftp://a.b", "a b.c", "quay.io/Org", "http://", "a.b:x"] {
            assert!(Place::read(bad).is_err(), "{bad:?}");
        }
    }
}
