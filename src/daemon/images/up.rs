//! What the image registry of a host has to ask whoever leads: whose a token is, what other registries are told; and what it tells.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::agent::work::Worker;
use crate::api::oci::Tokens;
use crate::model::registry::Login;
use crate::model::right::Principal;
use crate::model::{Error, Kind, Result};
use crate::registry::cache::Logins;
use crate::runtime::images::ImageHappened;

/// How long a host goes by what it was told of a token, and of how many it keeps that.
const GRANTED: Duration = Duration::from_secs(30);
const MOST: usize = 4096;

/// A login on its way to the host that asks with it.
#[derive(Serialize, Deserialize)]
pub struct Told {
    /// Who asks.
    pub username: String,
    /// The password.
    pub password: String,
}

type Granted = HashMap<String, (Instant, Option<Principal>)>;

/// The way up.
pub struct Up {
    worker: Arc<Worker>,
    granted: Mutex<Granted>,
}

fn read<T: serde::de::DeserializeOwned>(answer: Value) -> Result<T> {
    serde_json::from_value(answer)
        .map_err(|error| Error::new(Kind::Unsupported, "daemon", "answers in words of another version").cause(error))
}

impl Up {
    /// By this host's connection.
    pub fn new(worker: Arc<Worker>) -> Arc<Self> {
        Arc::new(Up { worker, granted: Mutex::default() })
    }

    fn granted(&self) -> std::sync::MutexGuard<'_, Granted> {
        self.granted.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Tells whoever leads.
    pub async fn tell(&self, happened: &ImageHappened) -> Result<()> {
        self.worker.up.call(json!({ "image": happened })).await.map(drop)
    }
}

// Kept for a while, and for as long as nobody leads: who could do something can do it then.
#[async_trait]
impl Tokens for Up {
    async fn principal(&self, hash: &str) -> Result<Principal> {
        let unknown = || Error::new(Kind::Unauthenticated, "token", "is not known");
        let before = self.granted().get(hash).cloned();
        if let Some((at, granted)) = &before
            && at.elapsed() < GRANTED
        {
            return granted.clone().ok_or_else(unknown);
        }
        match self.worker.up.call(json!({ "principal": hash })).await.and_then(read::<Option<Principal>>) {
            Ok(granted) => {
                let mut known = self.granted();
                // Those that nobody has ever made can be made up without end.
                if known.len() >= MOST {
                    known.retain(|_, (_, granted)| granted.is_some());
                }
                // What is lent ends when whoever leads says so.
                let is_lent = granted.as_ref().is_some_and(Principal::is_lent);
                if !is_lent && (granted.is_some() || known.len() < MOST) {
                    known.insert(hash.to_owned(), (Instant::now(), granted.clone()));
                }
                drop(known);
                granted.ok_or_else(unknown)
            }
            Err(error) if error.kind == Kind::Unavailable => match before {
                Some((_, granted)) => granted.ok_or_else(unknown),
                None => Err(error),
            },
            Err(error) => Err(error),
        }
    }
}

#[async_trait]
impl Logins for Up {
    async fn at(&self, registry: &str) -> Result<Option<Login>> {
        let told: Option<Told> = read(self.worker.up.call(json!({ "login": registry })).await?)?;
        let login =
            |told: Told| Login { registry: registry.to_owned(), username: told.username, password: told.password };
        Ok(told.map(login))
    }
}
