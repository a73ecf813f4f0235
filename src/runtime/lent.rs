//! Tokens that are lent for a moment: to a Docker Engine that is told to push. They are in memory alone, and end by themselves.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use ring::rand::{SecureRandom, SystemRandom};

use crate::model::id::sha256_hex;
use crate::model::right::Principal;
use crate::model::{Error, Result};

/// How long one is good for. A push is asked who it is again and again.
const GOOD: Duration = Duration::from_secs(4 * 60 * 60);
/// Bytes of a secret.
const SECRET: usize = 24;

/// Those that are lent now, by their hashes.
#[derive(Default)]
pub struct Lent(Mutex<HashMap<String, (Instant, Principal)>>);

impl Lent {
    fn known(&self) -> MutexGuard<'_, HashMap<String, (Instant, Principal)>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Lends one; its secret.
    pub fn lend(&self, principal: Principal) -> Result<String> {
        let mut random = [0; SECRET];
        let failed = |_| Error::internal("token", "there is no randomness");
        SystemRandom::new().fill(&mut random).map_err(failed)?;
        let secret = random.iter().fold(String::from("lent_"), |text, byte| format!("{text}{byte:02x}"));
        let mut known = self.known();
        known.retain(|_, (at, _)| at.elapsed() < GOOD);
        known.insert(sha256_hex(secret.as_bytes()), (Instant::now(), principal));
        Ok(secret)
    }

    /// Takes it back.
    pub fn end(&self, secret: &str) {
        self.known().remove(&sha256_hex(secret.as_bytes()));
    }

    /// Whose it is, by its secret's hash.
    pub fn principal(&self, hash: &str) -> Option<Principal> {
        self.known().get(hash).filter(|(at, _)| at.elapsed() < GOOD).map(|(_, principal)| principal.clone())
    }
}
