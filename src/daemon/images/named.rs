//! A registry that has a name: `--registry-name registry.corp:5000`. Where no certificate is given, the host makes an authority for its registry once,
//! whose certificate clients are given, and signs the name with it; that is made anew long before its end.

use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::{Duration, SystemTime};

use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose,
};

use serde::{Deserialize, Serialize};

use crate::model::id::sha256_hex;
use crate::model::{Error, Result};
use crate::store::file;

/// The authority's certificate, in the data folder.
pub const CA: &str = "registry-ca.crt";
const CA_KEY: &str = "registry-ca.key";
/// How long certificates are good for, in days, and when one is made anew.
const CA_DAYS: i64 = 365 * 30;
const DAYS: i64 = 90;
const RENEW: Duration = Duration::from_secs(60 * DAY);
const DAY: u64 = 24 * 60 * 60;

// What is known of a certificate: when it was made, in seconds since 1970, and the hashes of the authority's file, its own and its key's.
#[derive(Serialize, Deserialize)]
struct Made {
    at: u64,
    files: [String; 3],
}

/// Under which name a registry is reached, and at which port.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RegistryName {
    /// A host's name, or an address.
    pub host: String,
    /// The port.
    pub port: u16,
}

impl FromStr for RegistryName {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let wrong =
            |why: &str| Error::invalid(format!("--registry-name {text:.300?}"), why).help("such as registry.corp:5000");
        // An IPv6 address has its port behind brackets.
        let (host, port) = match text.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
            Some((host, rest)) => (host, rest.strip_prefix(':').or(rest.is_empty().then_some(""))),
            None => text.split_once(':').map_or((text, Some("")), |(host, port)| (host, Some(port))),
        };
        let port = match port.ok_or_else(|| wrong("is no name with a port"))? {
            "" => super::PORT,
            port => port.parse().ok().filter(|port| *port > 0).ok_or_else(|| wrong("has a port that is none"))?,
        };
        let is_label = |label: &str| {
            let fits = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-';
            !label.is_empty() && label.len() <= 63 && label.bytes().all(fits) && !label.starts_with('-')
        };
        let is_host = host.parse::<std::net::IpAddr>().is_ok() || (host.len() <= 253 && host.split('.').all(is_label));
        match is_host {
            true => Ok(RegistryName { host: host.to_ascii_lowercase(), port }),
            false => Err(wrong("is no host's name")),
        }
    }
}

impl std::fmt::Display for RegistryName {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.host.contains(':') {
            true => write!(f, "[{}]:{}", self.host, self.port),
            false => write!(f, "{}:{}", self.host, self.port),
        }
    }
}

fn wrong(error: rcgen::Error) -> Error {
    Error::internal("certificate of the image registry", "cannot be made").cause(error)
}

fn day(offset: i64) -> time::OffsetDateTime {
    let now = time::OffsetDateTime::from(SystemTime::now());
    now.replace_time(time::Time::MIDNIGHT) + time::Duration::days(offset)
}

fn authority() -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, "neap image registry");
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    (params.not_before, params.not_after) = (day(-1), day(CA_DAYS));
    params
}

/// The files of a certificate for this name, made where there are none or where they are old.
pub fn face(data: &Path, name: &RegistryName) -> Result<(PathBuf, PathBuf)> {
    let failed = |error: std::io::Error| {
        Error::io(data.display().to_string(), "write the certificate of the image registry", &error)
    };
    let (ca, ca_key) = (data.join(CA), data.join(CA_KEY));
    let holds = |path: &Path| std::fs::metadata(path).is_ok_and(|about| about.len() > 0);
    if !holds(&ca) || !holds(&ca_key) {
        let key = KeyPair::generate().map_err(wrong)?;
        let made = authority().self_signed(&key).map_err(wrong)?;
        file::replace(&ca_key, key.serialize_pem().as_bytes(), 0o600).map_err(failed)?;
        file::replace(&ca, made.pem().as_bytes(), 0o644).map_err(failed)?;
    }
    // Of another name it is another file.
    let stem = format!("registry-name-{}", name.host.replace(':', "_"));
    let [certificate, key, about] = ["crt", "key", "json"].map(|kind| data.join(format!("{stem}.{kind}")));
    // What was made when, of which authority: one that is another's, or not what was made, is made anew.
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs();
    let hashes = || {
        let hash = |path: &PathBuf| sha256_hex(&std::fs::read(path).unwrap_or_default());
        [&ca, &certificate, &key].map(hash)
    };
    let is_good = |made: Made| made.at <= now + DAY && now < made.at + RENEW.as_secs() && made.files == hashes();
    let known = std::fs::read(&about).ok().and_then(|text| serde_json::from_slice(&text).ok());
    if known.is_some_and(is_good) {
        return Ok((certificate, key));
    }
    let text =
        std::fs::read_to_string(&ca_key).map_err(|error| Error::io(ca_key.display().to_string(), "read it", &error))?;
    let signer = Issuer::new(authority(), KeyPair::from_pem(&text).map_err(wrong)?);
    let own = KeyPair::generate().map_err(wrong)?;
    let mut params = CertificateParams::new(vec![name.host.clone()]).map_err(wrong)?;
    (params.not_before, params.not_after) = (day(-1), day(DAYS));
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, name.host.as_str());
    let signed = params.signed_by(&own, &signer).map_err(wrong)?;
    file::replace(&key, own.serialize_pem().as_bytes(), 0o600).map_err(failed)?;
    file::replace(&certificate, signed.pem().as_bytes(), 0o644).map_err(failed)?;
    let made = serde_json::to_vec(&Made { at: now, files: hashes() });
    let made = made.map_err(|error| Error::internal("certificate of the image registry", error.to_string()))?;
    file::replace(&about, &made, 0o600).map_err(failed)?;
    Ok((certificate, key))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_registries() {
        for (text, shown) in [
            ("registry.corp:5000", "registry.corp:5000"),
            ("Registry.Corp", "registry.corp:5000"),
            ("10.0.0.1:443", "10.0.0.1:443"),
            ("[fd00::1]:5001", "[fd00::1]:5001"),
            ("[::1]", "[::1]:5000"),
        ] {
            assert_eq!(text.parse::<RegistryName>().unwrap().to_string(), shown);
        }
        for bad in ["", ":5000", "a:b", "a:0", "a:99999", "a b", "-a", "a..b", "http://a", "[::1", "[::1]x", "a/b"] {
            assert!(bad.parse::<RegistryName>().is_err(), "{bad}");
        }
    }

    #[test]
    fn a_certificate_is_made_once_and_anew_for_another_name() {
        let folder = tempfile::tempdir().unwrap();
        let name = |text: &str| text.parse::<RegistryName>().unwrap();
        let read = |paths: &(PathBuf, PathBuf)| std::fs::read(&paths.0).unwrap();
        let first = face(folder.path(), &name("a.b")).unwrap();
        let (ca, made) = (std::fs::read(folder.path().join(CA)).unwrap(), read(&first));
        assert_eq!(read(&face(folder.path(), &name("a.b:1")).unwrap()), made);
        let other = face(folder.path(), &name("10.0.0.1")).unwrap();
        assert!(other != first && read(&other) != made);
        // The authority's own files have no name's.
        let ca_of = face(folder.path(), &name("ca")).unwrap();
        assert!(ca_of.0 != folder.path().join(CA));
        // An old one is made anew, by the same authority; so is one from a time to come, and one that is not what was made.
        let about = first.0.with_extension("json");
        let set = |at: u64| {
            let mut made: Made = serde_json::from_slice(&std::fs::read(&about).unwrap()).unwrap();
            made.at = at;
            std::fs::write(&about, serde_json::to_vec(&made).unwrap()).unwrap();
        };
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap().as_secs();
        let mut last = made;
        let name = name("a.b");
        let mut is_new = || {
            let now = read(&face(folder.path(), &name).unwrap());
            std::mem::replace(&mut last, now.clone()) != now
        };
        assert!(!is_new());
        for at in [now - RENEW.as_secs(), now + 2 * DAY] {
            set(at);
            assert!(is_new() && !is_new());
        }
        set(now + 60);
        assert!(!is_new(), "clocks are not that exact");
        std::fs::write(&first.1, "another key").unwrap();
        assert!(is_new() && !is_new());
        assert_eq!(std::fs::read(folder.path().join(CA)).unwrap(), ca);
    }
}
