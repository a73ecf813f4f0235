//! Digests: blobs and manifests are called after what is in them.

use std::fmt;
use std::str::FromStr;

use sha2::{Digest as _, Sha256, Sha512};

use super::refused::{Code, Refused};

/// What a digest is made by.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Algorithm {
    /// SHA-256.
    Sha256,
    /// SHA-512.
    Sha512,
}

impl Algorithm {
    /// As in digests.
    pub fn as_str(self) -> &'static str {
        match self {
            Algorithm::Sha256 => "sha256",
            Algorithm::Sha512 => "sha512",
        }
    }

    fn length(self) -> usize {
        match self {
            Algorithm::Sha256 => 64,
            Algorithm::Sha512 => 128,
        }
    }
}

impl FromStr for Algorithm {
    type Err = Refused;

    fn from_str(text: &str) -> Result<Self, Refused> {
        match text {
            "sha256" => Ok(Algorithm::Sha256),
            "sha512" => Ok(Algorithm::Sha512),
            other => {
                let why = format!("the algorithm {other:.40?} is not known here; sha256 and sha512 are");
                Err(Refused::new(Code::DigestInvalid, why))
            }
        }
    }
}

/// An algorithm and what it has made, as in `sha256:e3b0...`.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Digest {
    algorithm: Algorithm,
    text: String,
}

impl Digest {
    /// The digest of some bytes.
    pub fn of(algorithm: Algorithm, bytes: &[u8]) -> Self {
        let mut hasher = Hasher::new(algorithm);
        hasher.update(bytes);
        hasher.finish()
    }

    /// What it was made by.
    pub fn algorithm(&self) -> Algorithm {
        self.algorithm
    }

    /// `sha256:e3b0...`.
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// What follows the algorithm.
    pub fn hex(&self) -> &str {
        &self.text[self.algorithm.as_str().len() + 1..]
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl FromStr for Digest {
    type Err = Refused;

    fn from_str(text: &str) -> Result<Self, Refused> {
        let wrong = |why: String| Refused::new(Code::DigestInvalid, why).about(text);
        let Some((algorithm, hex)) = text.split_once(':') else {
            return Err(wrong(format!("{text:.80?} is no digest, such as sha256:e3b0...")));
        };
        let algorithm: Algorithm = algorithm.parse()?;
        let is_hex = hex.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
        if hex.len() != algorithm.length() || !is_hex {
            let length = algorithm.length();
            return Err(wrong(format!("{text:.160?} has not {length} lower-case hexadecimal digits")));
        }
        Ok(Digest { algorithm, text: text.to_owned() })
    }
}

/// Makes a digest while the bytes come.
#[derive(Clone)]
pub enum Hasher {
    /// SHA-256.
    Sha256(Sha256),
    /// SHA-512.
    Sha512(Sha512),
}

impl Hasher {
    /// Of nothing yet.
    pub fn new(algorithm: Algorithm) -> Self {
        match algorithm {
            Algorithm::Sha256 => Hasher::Sha256(Sha256::new()),
            Algorithm::Sha512 => Hasher::Sha512(Sha512::new()),
        }
    }

    /// What it makes.
    pub fn algorithm(&self) -> Algorithm {
        match self {
            Hasher::Sha256(_) => Algorithm::Sha256,
            Hasher::Sha512(_) => Algorithm::Sha512,
        }
    }

    /// The next bytes.
    pub fn update(&mut self, bytes: &[u8]) {
        match self {
            Hasher::Sha256(hasher) => hasher.update(bytes),
            Hasher::Sha512(hasher) => hasher.update(bytes),
        }
    }

    /// The digest of all of them.
    pub fn finish(self) -> Digest {
        let algorithm = self.algorithm();
        let mut text = String::with_capacity(algorithm.as_str().len() + 1 + algorithm.length());
        text.push_str(algorithm.as_str());
        text.push(':');
        let mut put = |bytes: &[u8]| bytes.iter().for_each(|byte| text.push_str(&format!("{byte:02x}")));
        match self {
            Hasher::Sha256(hasher) => put(&hasher.finalize()),
            Hasher::Sha512(hasher) => put(&hasher.finalize()),
        }
        Digest { algorithm, text }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn digests_are_read_and_made() {
        let empty = Digest::of(Algorithm::Sha256, b"");
        assert_eq!(empty.as_str(), "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855");
        assert_eq!(empty.as_str().parse::<Digest>().unwrap(), empty);
        let long = Digest::of(Algorithm::Sha512, b"abc");
        assert_eq!((long.hex().len(), &long.hex()[..16]), (128, "ddaf35a193617aba"));
        assert_eq!(long.to_string().parse::<Digest>().unwrap().hex(), long.hex());
        for bad in ["", "sha256", "sha256:", "md5:d41d8cd98f00b204e9800998ecf8427e", "sha256:../../etc/passwd"] {
            assert_eq!(bad.parse::<Digest>().unwrap_err().code, Code::DigestInvalid, "{bad}");
        }
        let upper = empty.as_str().to_uppercase().replace("SHA", "sha");
        assert!(upper.parse::<Digest>().is_err());
    }
}
