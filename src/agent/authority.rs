//! The cluster's authority: its certificate signs those of daemons and agents, and its fingerprint is in every join token.
//! Its key is sealed with the key of the secrets, which managers get when they join.

use std::collections::BTreeMap;
use std::sync::Arc;

use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, PublicKeyData, SignatureAlgorithm,
};
use ring::rand::{SecureRandom, SystemRandom};
use serde::{Deserialize, Serialize};

use crate::model::clock::Clock;
use crate::model::id::sha256_hex;
use crate::model::node::Role;
use crate::model::{Error, Kind, Result};
use crate::store::vault::Vault;
use crate::store::{Expect, Store, Write, decode, encode};

/// The record with the authority.
const AUTHORITY: &str = "meta/authority";
/// What its key is sealed as.
const KEY: &str = "the key of the authority";
/// How long a certificate of a daemon or an agent is good for; they are made anew long before.
pub const VALID_DAYS: i64 = 90;
/// When: a third of that before its end.
pub const RENEW_DAYS: i64 = 60;
/// The authority itself lives as long as the cluster.
const AUTHORITY_DAYS: i64 = 365 * 30;
/// The name under which daemons are reached.
pub const DAEMON: &str = "daemon.neap";
/// The name in an agent's certificate.
const AGENT: &str = "agent.neap";
/// The beginning of a join token, with its form.
const TOKEN: &str = "NEAP-1-";
/// Length of a join token's secret, in bytes.
const SECRET: usize = 16;

#[derive(Serialize, Deserialize)]
struct Stored {
    certificate: String,
    key: Vec<u8>,
    // By role; sealed.
    secrets: BTreeMap<String, Vec<u8>>,
}

/// A certificate with its key, both in PEM.
#[derive(Debug, Clone)]
pub struct Issued {
    /// The certificate.
    pub certificate: String,
    /// Its key.
    pub key: String,
}

/// Signs certificates and knows the join tokens.
pub struct Authority {
    store: Arc<dyn Store>,
    vault: Vault,
    clock: Arc<dyn Clock>,
    /// Its certificate, in PEM.
    pub certificate: String,
}

impl Authority {
    /// The one that the cluster has; none before a daemon has led for the first time.
    pub fn find(store: &Arc<dyn Store>, vault: Vault, clock: &Arc<dyn Clock>) -> Result<Option<Self>> {
        let Some(stored) = read(&**store)? else { return Ok(None) };
        let (store, clock) = (store.clone(), clock.clone());
        Ok(Some(Authority { store, vault, clock, certificate: stored.certificate }))
    }

    /// The same; made, by the daemon that leads, where there is none.
    pub async fn open(store: &Arc<dyn Store>, vault: Vault, clock: &Arc<dyn Clock>) -> Result<Self> {
        let stored = match read(&**store)? {
            Some(stored) => stored,
            None => {
                let made = make(&vault, &**clock)?;
                store.commit(vec![Write::put(AUTHORITY, encode(&made)).expect(Expect::Absent)]).await?;
                made
            }
        };
        let (store, clock) = (store.clone(), clock.clone());
        Ok(Authority { store, vault, clock, certificate: stored.certificate })
    }

    /// SHA-256 of its certificate.
    pub fn fingerprint(&self) -> Result<String> {
        fingerprint(&self.certificate)
    }

    /// A certificate for a daemon, with a key of its own.
    pub fn daemon(&self) -> Result<Issued> {
        let key = KeyPair::generate().map_err(|error| wrong("cannot make a key", &error))?;
        let certificate = self.sign(&key, DAEMON, ExtendedKeyUsagePurpose::ServerAuth)?;
        Ok(Issued { certificate, key: key.serialize_pem() })
    }

    /// A certificate for an agent; `public`: its public key, an uncompressed point on P-256 in hexadecimal digits.
    pub fn agent(&self, public: &str) -> Result<String> {
        self.sign(&Point::read(public)?, AGENT, ExtendedKeyUsagePurpose::ClientAuth)
    }

    fn sign(&self, public: &impl PublicKeyData, name: &str, purpose: ExtendedKeyUsagePurpose) -> Result<String> {
        let stored = read(&*self.store)?.ok_or_else(|| Error::not_found("authority"))?;
        let key = KeyPair::try_from(self.vault.unseal(KEY, &stored.key)?);
        let key = key.map_err(|error| wrong("has a key that cannot be read", &error))?;
        let mut params =
            CertificateParams::new(vec![name.to_owned()]).map_err(|error| wrong("cannot sign that name", &error))?;
        (params.not_before, params.not_after) = (day(&*self.clock, -1), day(&*self.clock, VALID_DAYS));
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![purpose];
        params.distinguished_name.push(DnType::CommonName, name);
        let signed = params.signed_by(public, &Issuer::new(authority_params(&*self.clock), key));
        Ok(signed.map_err(|error| wrong("cannot sign", &error))?.pem())
    }

    /// The token with which a host of that role joins.
    pub fn token(&self, role: Role) -> Result<String> {
        let stored = read(&*self.store)?.ok_or_else(|| Error::not_found("authority"))?;
        let sealed = stored.secrets.get(role.as_str()).ok_or_else(|| Error::not_found("join token"))?;
        let secret = self.vault.unseal(&secret_name(role), sealed)?;
        Ok(JoinToken { fingerprint: self.fingerprint()?, secret: hex(&secret) }.to_string())
    }

    /// Makes the token of that role anew: the one before lets nobody in any more.
    pub async fn rotate(&self, role: Role) -> Result<()> {
        let entry = self.store.get(AUTHORITY)?.ok_or_else(|| Error::not_found("authority"))?;
        let mut stored: Stored = decode(AUTHORITY, &entry.value)?;
        stored.secrets.insert(role.as_str().into(), self.vault.seal(&secret_name(role), &random()?)?);
        let write = Write::put(AUTHORITY, encode(&stored)).expect(Expect::Version(entry.version));
        self.store.commit(vec![write]).await.map(drop)
    }

    /// The role that a join token's secret lets in.
    pub fn role(&self, secret: &str) -> Result<Role> {
        let stored = read(&*self.store)?.ok_or_else(|| Error::not_found("authority"))?;
        // Compared by hash, so that it takes the same time whatever was sent.
        let sent = sha256_hex(secret.as_bytes());
        for role in [Role::Worker, Role::Manager] {
            let Some(sealed) = stored.secrets.get(role.as_str()) else { continue };
            let secret = hex(&self.vault.unseal(&secret_name(role), sealed)?);
            if sha256_hex(secret.as_bytes()) == sent {
                return Ok(role);
            }
        }
        Err(Error::new(Kind::Unauthenticated, "join token", "is not known here")
            .help("`neap join-token worker` on a manager prints the one that is"))
    }
}

/// What a host shows to join: which authority it is to find, and that it may.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct JoinToken {
    /// SHA-256 of the authority's certificate.
    pub fingerprint: String,
    /// Known to those who may join.
    pub secret: String,
}

impl std::fmt::Display for JoinToken {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{TOKEN}{}-{}", self.fingerprint, self.secret)
    }
}

impl std::str::FromStr for JoinToken {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let wrong = |message: &str| {
            Err(Error::invalid("join token", message).help("`neap join-token worker` on a manager prints it"))
        };
        let digits = |text: &str, length: usize| text.len() == length && text.bytes().all(|b| b.is_ascii_hexdigit());
        let Some(rest) = text.trim().strip_prefix(TOKEN) else {
            if text.trim().starts_with("SWMTKN-") {
                return wrong("is one of Docker's: Neap has its own");
            }
            return wrong("does not begin with NEAP-1-");
        };
        match rest.split_once('-') {
            Some((print, secret)) if digits(print, 64) && digits(secret, SECRET * 2) => {
                Ok(JoinToken { fingerprint: print.to_lowercase(), secret: secret.to_lowercase() })
            }
            _ => wrong("is not whole"),
        }
    }
}

/// SHA-256 of a certificate in PEM.
pub fn fingerprint(certificate: &str) -> Result<String> {
    use rustls::pki_types::pem::PemObject;
    let read = rustls::pki_types::CertificateDer::from_pem_slice(certificate.as_bytes());
    Ok(sha256_hex(&read.map_err(|error| wrong("has a certificate that cannot be read", &error))?))
}

/// A key for an agent: in PEM, and its public part as `Authority::agent` takes it.
pub fn agent_key() -> Result<(String, String)> {
    let key = KeyPair::generate().map_err(|error| wrong("cannot make a key", &error))?;
    Ok((key.serialize_pem(), hex(key.der_bytes())))
}

/// The public part of a key in PEM.
pub fn public_key(key: &str) -> Result<String> {
    let key = KeyPair::from_pem(key).map_err(|error| wrong("has a key that cannot be read", &error))?;
    Ok(hex(key.der_bytes()))
}

// A public key that came over the network.
struct Point(Vec<u8>);

impl Point {
    fn read(text: &str) -> Result<Self> {
        let invalid = || Error::invalid("public key", "is not an uncompressed point on P-256 in hexadecimal digits");
        let is_hex = text.bytes().all(|byte| byte.is_ascii_hexdigit());
        if text.len() != 130 || !is_hex || !text.starts_with("04") {
            return Err(invalid());
        }
        let byte = |at: usize| u8::from_str_radix(&text[at..at + 2], 16).map_err(|_| invalid());
        (0..text.len()).step_by(2).map(byte).collect::<Result<_>>().map(Point)
    }
}

impl PublicKeyData for Point {
    fn der_bytes(&self) -> &[u8] {
        &self.0
    }

    fn algorithm(&self) -> &'static SignatureAlgorithm {
        &rcgen::PKCS_ECDSA_P256_SHA256
    }
}

fn read(store: &dyn Store) -> Result<Option<Stored>> {
    store.get(AUTHORITY)?.map(|entry| decode(AUTHORITY, &entry.value)).transpose()
}

fn make(vault: &Vault, clock: &dyn Clock) -> Result<Stored> {
    let key = KeyPair::generate().map_err(|error| wrong("cannot make a key", &error))?;
    let certificate = authority_params(clock).self_signed(&key).map_err(|error| wrong("cannot be made", &error))?;
    let mut secrets = BTreeMap::new();
    for role in [Role::Worker, Role::Manager] {
        secrets.insert(role.as_str().to_owned(), vault.seal(&secret_name(role), &random()?)?);
    }
    Ok(Stored { certificate: certificate.pem(), key: vault.seal(KEY, key.serialized_der())?, secrets })
}

fn authority_params(clock: &dyn Clock) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, "neap authority");
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    (params.not_before, params.not_after) = (day(clock, -1), day(clock, AUTHORITY_DAYS));
    params
}

// Whole days: begun a day ago, so that clocks need not agree to the minute.
fn day(clock: &dyn Clock, offset: i64) -> time::OffsetDateTime {
    let seconds = i64::try_from(clock.wall().0 / 1000).unwrap_or_default() + offset * 86_400;
    time::OffsetDateTime::from_unix_timestamp(seconds).unwrap_or(time::OffsetDateTime::UNIX_EPOCH)
}

fn secret_name(role: Role) -> String {
    format!("join token {}", role.as_str())
}

fn random() -> Result<[u8; SECRET]> {
    let mut bytes = [0; SECRET];
    SystemRandom::new().fill(&mut bytes).map_err(|_| Error::internal("join token", "no randomness for it"))?;
    Ok(bytes)
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn wrong(message: &str, error: &dyn std::fmt::Display) -> Error {
    Error::internal("authority", message).cause(error)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::clock::SystemClock;
    use crate::store::MemoryStore;

    fn check(text: &str, expected: &str) {
        let got = match text.parse::<JoinToken>() {
            Ok(token) => token.secret,
            Err(error) => error.message,
        };
        assert_eq!(got, expected, "for {text:?}");
    }

    #[test]
    fn tokens() {
        let print = "0".repeat(64);
        check(&format!(" NEAP-1-{print}-{}\n", "A".repeat(32)), &"a".repeat(32));
        check(&format!("NEAP-1-{print}-{}", "a".repeat(31)), "is not whole");
        check(&format!("NEAP-1-{print}"), "is not whole");
        check("NEAP-2-x", "does not begin with NEAP-1-");
        check("SWMTKN-1-abc-def", "is one of Docker's: Neap has its own");
    }

    #[tokio::test]
    async fn secrets_let_in_until_they_are_rotated() {
        let store: Arc<dyn Store> = Arc::new(MemoryStore::default());
        let clock: Arc<dyn Clock> = Arc::new(SystemClock::start());
        let folder = tempfile::tempdir().unwrap();
        let vault = || Vault::open(folder.path()).unwrap();
        assert!(Authority::find(&store, vault(), &clock).unwrap().is_none());
        let authority = Authority::open(&store, vault(), &clock).await.unwrap();
        let token = |role| authority.token(role).unwrap().parse::<JoinToken>().unwrap();
        let (worker, manager) = (token(Role::Worker), token(Role::Manager));
        assert_eq!(worker.fingerprint, authority.fingerprint().unwrap());
        assert_eq!(authority.role(&worker.secret).unwrap(), Role::Worker);
        assert_eq!(authority.role(&manager.secret).unwrap(), Role::Manager);
        assert_eq!(authority.role("").unwrap_err().kind, Kind::Unauthenticated);
        authority.rotate(Role::Worker).await.unwrap();
        assert_eq!(authority.role(&worker.secret).unwrap_err().kind, Kind::Unauthenticated);
        assert_eq!(authority.role(&manager.secret).unwrap(), Role::Manager);
        assert_ne!(token(Role::Worker), worker);
        // Another daemon finds the same.
        let other = Authority::find(&store, vault(), &clock).unwrap().unwrap();
        assert_eq!(other.token(Role::Worker).unwrap(), authority.token(Role::Worker).unwrap());
        // What is kept tells nothing.
        let kept = store.get(AUTHORITY).unwrap().unwrap().value;
        assert!(!kept.windows(8).any(|part| part == &manager.secret.as_bytes()[..8]));
    }

    #[test]
    fn public_keys() {
        let (key, public) = agent_key().unwrap();
        assert_eq!(public_key(&key).unwrap(), public);
        assert!(Point::read(&public).is_ok());
        for wrong in ["", "04", &public.replacen("04", "05", 1), &format!("{}é", &public[..128])] {
            assert!(Point::read(wrong).is_err(), "{wrong}");
        }
    }
}
