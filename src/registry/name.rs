//! Names of repositories and tags.

use std::fmt;
use std::str::FromStr;

use super::digest::Digest;
use super::refused::{Code, Refused};

/// Longest name of a repository, in bytes: clients put a host before it, and 255 is what they bear altogether.
pub const MAX_REPOSITORY: usize = 255;
/// Longest tag, in bytes.
pub const MAX_TAG: usize = 128;

/// A repository's name, such as `shop/api`: parts of lower-case letters and digits, with one of `.`, `_`, `__` or any number of `-`
/// between them, and slashes between the parts.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Repository(String);

impl Repository {
    /// As text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Repository {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

// One part of a name.
fn is_part(part: &[u8]) -> bool {
    let is_word = |byte: &u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    let mut rest = part;
    loop {
        let word = rest.iter().take_while(|byte| is_word(byte)).count();
        if word == 0 {
            return false;
        }
        rest = &rest[word..];
        let between = rest.iter().take_while(|byte| !is_word(byte)).count();
        match &rest[..between] {
            b"" => return true,
            b"." | b"_" | b"__" => {}
            dashes if dashes.iter().all(|byte| *byte == b'-') => {}
            _ => return false,
        }
        rest = &rest[between..];
    }
}

impl FromStr for Repository {
    type Err = Refused;

    fn from_str(text: &str) -> Result<Self, Refused> {
        let wrong = |why: &str| Refused::new(Code::NameInvalid, format!("repository {text:.80?} {why}")).about(text);
        if text.len() > MAX_REPOSITORY {
            return Err(wrong("has a name of more than 255 bytes"));
        }
        if !text.split('/').all(|part| is_part(part.as_bytes())) {
            return Err(wrong(
                "has a name that is none: lower-case letters and digits, with . _ __ or - between, and /",
            ));
        }
        Ok(Repository(text.to_owned()))
    }
}

/// What a manifest is asked for by.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Reference {
    /// A tag.
    Tag(String),
    /// What is in it.
    Digest(Digest),
}

impl Reference {
    /// As text.
    pub fn as_str(&self) -> &str {
        match self {
            Reference::Tag(tag) => tag,
            Reference::Digest(digest) => digest.as_str(),
        }
    }
}

/// Whether it is one of a tag.
pub fn check_tag(tag: &str) -> Result<(), Refused> {
    let is_word = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_';
    let first = tag.bytes().next().is_some_and(is_word);
    if !first || tag.len() > MAX_TAG || !tag.bytes().all(|byte| is_word(byte) || byte == b'.' || byte == b'-') {
        let why = format!("tag {tag:.140?} is none: 1 to 128 of letters, digits, _ . -, the first no . or -");
        return Err(Refused::new(Code::ManifestInvalid, why).about(tag));
    }
    Ok(())
}

impl FromStr for Reference {
    type Err = Refused;

    fn from_str(text: &str) -> Result<Self, Refused> {
        if text.contains(':') {
            return text.parse().map(Reference::Digest);
        }
        check_tag(text).map(|()| Reference::Tag(text.to_owned()))
    }
}

/// Whether what stands before an image's name is a registry's host, as Docker reads it.
pub fn is_host(part: &str) -> bool {
    part.contains(['.', ':']) || part == "localhost"
}

/// Where an image is that is one of another registry, by its name, and the rest of that: it begins with a host that is not this one, or with
/// `http://` or `https://` and any host.
pub fn elsewhere(image: &str) -> Option<(String, &str)> {
    let schemes = ["https://", "http://"].iter().find_map(|scheme| Some((*scheme, image.strip_prefix(scheme)?)));
    let (scheme, bare) = schemes.unwrap_or(("", image));
    let (host, rest) = bare.split_once('/')?;
    let name = host.split(':').next().unwrap_or_default();
    let is_other = host.contains(['.', ':']) && !matches!(name, "localhost" | "127.0.0.1" | "[");
    (is_other || !scheme.is_empty()).then(|| (format!("{scheme}{host}"), rest))
}

/// An image as people write it: `shop/api:1.0`, `shop/api@sha256:...`, with `:latest` where neither is said. A registry's host before
/// it, as images have it, is left out.
pub fn image(text: &str) -> Result<(Repository, Reference), Refused> {
    let rest = match text.split_once('/') {
        Some((host, rest)) if host.contains(':') || host == "localhost" => rest,
        _ => text,
    };
    if let Some((name, digest)) = rest.split_once('@') {
        // A tag before a digest says nothing more.
        let name = name.split_once(':').map_or(name, |(name, _)| name);
        return Ok((name.parse()?, Reference::Digest(digest.parse()?)));
    }
    let (name, tag) = rest.split_once(':').unwrap_or((rest, "latest"));
    check_tag(tag)?;
    Ok((name.parse()?, Reference::Tag(tag.to_owned())))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_what_the_specification_says() {
        for good in ["a", "shop/api", "a.b/c_d/e__f", "a---b", "0/1", &"a".repeat(255)] {
            assert!(good.parse::<Repository>().is_ok(), "{good}");
        }
        for bad in [
            "",
            "/",
            "a/",
            "/a",
            "a//b",
            "A",
            "a..b",
            "a___b",
            "-a",
            "a-",
            "a._b",
            "a b",
            "ä",
            "../a",
            &"a".repeat(256),
        ] {
            assert_eq!(bad.parse::<Repository>().unwrap_err().code, Code::NameInvalid, "{bad}");
        }
        for good in ["latest", "_", "v1.2-3", "A", &"t".repeat(128)] {
            assert_eq!(good.parse::<Reference>().unwrap(), Reference::Tag(good.into()));
        }
        let read = |text: &str| image(text).map(|(name, reference)| format!("{name} {}", reference.as_str()));
        assert_eq!(read("shop/api:1.0").unwrap(), "shop/api 1.0");
        assert_eq!(read("127.0.0.1:5000/shop/api").unwrap(), "shop/api latest");
        let digest = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";
        assert_eq!(read(&format!("localhost/a:1@{digest}")).unwrap(), format!("a {digest}"));
        let other = |text: &'static str| elsewhere(text).map(|(host, rest)| format!("{host} {rest}"));
        assert_eq!(other("docker.io/library/nginx:1").as_deref(), Some("docker.io library/nginx:1"));
        assert_eq!(other("http://127.0.0.1:5001/a/b").as_deref(), Some("http://127.0.0.1:5001 a/b"));
        for own in ["nginx", "shop/api:1", "127.0.0.1:5000/a", "localhost:5000/a", "localhost/a", "[::1]:5000/a"] {
            assert_eq!(other(own), None, "{own}");
        }
        assert!(read("a:").is_err() && read("A").is_err() && read("a@sha256:1").is_err());
        for bad in ["", ".a", "-a", "a/b", "a b", &"t".repeat(129)] {
            assert!(bad.parse::<Reference>().is_err(), "{bad}");
        }
    }
}
