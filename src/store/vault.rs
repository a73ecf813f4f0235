//! Seals secrets before they are stored (ChaCha20-Poly1305, RFC 8439), with a key that lies beside the store.

use std::path::Path;

use ring::aead::{Aad, CHACHA20_POLY1305, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use ring::rand::{SecureRandom, SystemRandom};

use crate::model::{Error, Kind, Result};

/// Length of the key, in bytes.
const KEY: usize = 32;

/// Seals and opens.
pub struct Vault {
    key: LessSafeKey,
    bytes: Vec<u8>,
    random: SystemRandom,
}

/// What the key is sealed under where it goes from one manager to another.
const WRAP: &str = "the key of the vault";

impl Vault {
    /// With the key in `folder`; made on first use, readable by its owner only.
    pub fn open(folder: &Path) -> Result<Self> {
        let path = folder.join("secrets.key");
        let subject = path.display().to_string();
        let failed = |error: std::io::Error| Error::io(subject.clone(), "use the key of the secrets", &error);
        let random = SystemRandom::new();
        let bytes = match std::fs::read(&path) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                let mut bytes = vec![0; KEY];
                random.fill(&mut bytes).map_err(|_| Error::internal(subject.clone(), "no randomness for a key"))?;
                // A key that is half written would make secrets unreadable later.
                super::file::replace(&path, &bytes, 0o600).map_err(failed)?;
                bytes
            }
            Err(error) => return Err(failed(error)),
        };
        let key = UnboundKey::new(&CHACHA20_POLY1305, &bytes)
            .map_err(|_| Error::new(Kind::Corrupt, subject, "is not a key").help("restore it from a backup"))?;
        Ok(Vault { key: LessSafeKey::new(key), bytes, random })
    }

    /// Whether there is a key in `folder`.
    pub fn is_in(folder: &Path) -> bool {
        folder.join("secrets.key").exists()
    }

    /// The key itself, sealed with another one.
    pub fn wrapped(&self, with: &[u8; KEY]) -> Result<Vec<u8>> {
        Vault::of(with.to_vec())?.seal(WRAP, &self.bytes)
    }

    /// The key that `wrapped` holds, put into `folder` where there is none yet.
    pub fn unwrap(folder: &Path, wrapped: &[u8], with: &[u8; KEY]) -> Result<Self> {
        let bytes = Vault::of(with.to_vec())?.unseal(WRAP, wrapped)?;
        let path = folder.join("secrets.key");
        let subject = path.display().to_string();
        let failed = |error: std::io::Error| Error::io(subject.clone(), "keep the key of the secrets", &error);
        if path.exists() {
            if std::fs::read(&path).map_err(failed)? != bytes {
                return Err(Error::new(Kind::Conflict, subject, "is the key of another cluster").help(
                    "give this daemon another data folder (--data), or remove that key if nothing is sealed with it",
                ));
            }
            return Vault::of(bytes);
        }
        super::file::replace(&path, &bytes, 0o600).map_err(failed)?;
        Vault::of(bytes)
    }

    /// A secret that those who have the key share, for this purpose; hexadecimal digits.
    pub fn shared_secret(&self, purpose: &str) -> String {
        let key = ring::hmac::Key::new(ring::hmac::HMAC_SHA256, &self.bytes);
        let tag = ring::hmac::sign(&key, purpose.as_bytes());
        tag.as_ref().iter().map(|byte| format!("{byte:02x}")).collect()
    }

    fn of(bytes: Vec<u8>) -> Result<Self> {
        let key = UnboundKey::new(&CHACHA20_POLY1305, &bytes)
            .map_err(|_| Error::new(Kind::Corrupt, "key of the secrets", "is not a key"))?;
        Ok(Vault { key: LessSafeKey::new(key), bytes, random: SystemRandom::new() })
    }

    /// With a key that nothing outlives, beside a store in memory.
    pub fn in_memory() -> Result<Self> {
        let random = SystemRandom::new();
        let mut bytes = [0; KEY];
        random.fill(&mut bytes).map_err(|_| Error::internal("vault", "no randomness for a key"))?;
        Vault::of(bytes.to_vec())
    }

    /// Seals `value` for the thing called `name`; it opens under no other name.
    pub fn seal(&self, name: &str, value: &[u8]) -> Result<Vec<u8>> {
        let subject = || format!("secret \"{name:.70}\"");
        let mut nonce = [0; NONCE_LEN];
        self.random.fill(&mut nonce).map_err(|_| Error::internal(subject(), "no randomness to seal it with"))?;
        let mut sealed = value.to_vec();
        self.key
            .seal_in_place_append_tag(Nonce::assume_unique_for_key(nonce), Aad::from(name.as_bytes()), &mut sealed)
            .map_err(|_| Error::internal(subject(), "cannot be sealed"))?;
        Ok([&nonce[..], &sealed].concat())
    }

    /// Opens what was sealed for `name`.
    pub fn unseal(&self, name: &str, sealed: &[u8]) -> Result<Vec<u8>> {
        let wrong = || {
            Error::new(Kind::Corrupt, format!("secret \"{name:.70}\""), "does not open with this key")
                .help("restore secrets.key from a backup, or set the secret again")
        };
        let (nonce, sealed) = sealed.split_at_checked(NONCE_LEN).ok_or_else(wrong)?;
        let nonce = Nonce::try_assume_unique_for_key(nonce).map_err(|_| wrong())?;
        let mut bytes = sealed.to_vec();
        let opened = self.key.open_in_place(nonce, Aad::from(name.as_bytes()), &mut bytes).map_err(|_| wrong())?;
        Ok(opened.to_vec())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn opens_with_its_own_key_and_name_only() {
        let (one, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let vault = Vault::open(one.path()).unwrap();
        let sealed = vault.seal("shop/url", b"s3cret").unwrap();
        assert!(!sealed.windows(6).any(|window| window == b"s3cret"));
        assert_eq!(Vault::open(one.path()).unwrap().unseal("shop/url", &sealed).unwrap(), b"s3cret");
        assert!(vault.unseal("shop/other", &sealed).is_err());
        assert!(Vault::open(other.path()).unwrap().unseal("shop/url", &sealed).is_err());
        assert!(vault.unseal("shop/url", b"short").is_err());
        // From one folder to another, under a third key.
        let (kek, wrong) = ([1; KEY], [2; KEY]);
        let wrapped = vault.wrapped(&kek).unwrap();
        let third = tempfile::tempdir().unwrap();
        assert!(Vault::unwrap(third.path(), &wrapped, &wrong).is_err());
        let copied = Vault::unwrap(third.path(), &wrapped, &kek).unwrap();
        assert_eq!(copied.unseal("shop/url", &sealed).unwrap(), b"s3cret");
        assert_eq!(copied.shared_secret("peers"), vault.shared_secret("peers"));
        assert_eq!(Vault::unwrap(other.path(), &wrapped, &kek).err().unwrap().kind, Kind::Conflict);
        let mode = std::os::unix::fs::MetadataExt::mode(&std::fs::metadata(one.path().join("secrets.key")).unwrap());
        assert_eq!(mode & 0o777, 0o600);
    }
}
