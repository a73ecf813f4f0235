//! Tokens that are lent for a moment: to a Docker Engine that is told to push. They are in memory alone, and end by themselves.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use ring::rand::{SecureRandom, SystemRandom};

use crate::model::id::sha256_hex;
use crate::model::right::Principal;
use crate::model::{Error, Result};

/// How long one is good for at most: it ends with what it was lent for, and a registry asks who one is again and again.
const GOOD: Duration = Duration::from_secs(24 * 60 * 60);
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::right::Role;
    use crate::registry::rules::{Action, Rules};

    #[test]
    fn what_is_lent_is_for_one_repository_and_ends() {
        let lent = Lent::default();
        let secret = lent.lend(Principal::lent(Role::Deployer, "shop/api")).unwrap();
        let hash = sha256_hex(secret.as_bytes());
        let pusher = lent.principal(&hash).unwrap();
        let allowed = |principal: &Principal, role, name: &str| principal.require(role, Some(name)).is_ok();
        assert!(allowed(&pusher, Role::Deployer, "shop/api") && !allowed(&pusher, Role::Admin, "shop/api"));
        for other in ["shop/api2", "shop/api/x", "shop", "x"] {
            assert!(!allowed(&pusher, Role::Viewer, other), "{other}");
        }
        // Rules were looked at before it was lent; to delete it is not for.
        let rules = Rules::read(Vec::new()).unwrap();
        let puller = Principal::lent(Role::Viewer, "shop/api");
        let may = |who: &Principal, name: &str| {
            [Action::Pull, Action::Push, Action::Delete].map(|action| rules.allow(who, name, action))
        };
        assert_eq!((may(&pusher, "shop/api"), may(&puller, "shop/api")), ([true, true, false], [true, false, false]));
        assert_eq!(may(&pusher, "shop/api2"), [false; 3]);
        assert_ne!(lent.lend(puller).unwrap(), secret);
        lent.end(&secret);
        assert_eq!(lent.principal(&hash), None);
    }
}
