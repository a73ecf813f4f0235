//! Configs of a Docker Swarm: small named objects in its managers' Raft. Their labels can be changed, and a change has to
//! carry the version that it was made on top of, which is a compare-and-set.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Mutex, PoisonError};

use async_trait::async_trait;
use base64::Engine;
use bollard::Docker;
use bollard::errors::Error as Trouble;
use bollard::models::ConfigSpec;
use bollard::query_parameters::{EventsOptions, ListConfigsOptions, UpdateConfigOptions};
use futures_util::StreamExt;

use crate::model::{Error, Kind, Result};

/// The label of every config of a store; its value is the cluster's name.
pub const STORE: &str = "neap.store";

/// A config as it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    /// Grows with every change.
    pub index: u64,
    /// What can be changed.
    pub labels: BTreeMap<String, String>,
    /// What cannot.
    pub data: Vec<u8>,
}

/// Where configs are kept. An error that says that a retry can help leaves it open whether the request was carried out.
#[async_trait]
pub trait Configs: Send + Sync {
    /// Makes one; false: there is one by this name.
    async fn create(&self, name: &str, labels: &BTreeMap<String, String>, data: &[u8]) -> Result<bool>;
    /// One by its name.
    async fn read(&self, name: &str) -> Result<Option<Config>>;
    /// Changes the labels of what has this version; false: it has another one.
    async fn update(&self, name: &str, index: u64, labels: &BTreeMap<String, String>) -> Result<bool>;
    /// Removes one, if it is there.
    async fn remove(&self, name: &str) -> Result<()>;
    /// All names of this store.
    async fn names(&self) -> Result<Vec<String>>;
    /// Returns when something may have changed.
    async fn changed(&self);
}

/// Those of a real Swarm, through one of its managers.
pub struct SwarmConfigs {
    docker: Docker,
    cluster: String,
    changes: tokio::sync::Mutex<Option<Events>>,
    // As it was read last: a change has to carry all that it leaves as it is.
    last: Mutex<Option<(u64, ConfigSpec)>>,
}

type Events = std::pin::Pin<Box<dyn futures_util::Stream<Item = Result<(), ()>> + Send>>;

impl SwarmConfigs {
    /// Of the store of `cluster`.
    pub fn new(docker: Docker, cluster: &str) -> Self {
        SwarmConfigs {
            docker,
            cluster: cluster.to_owned(),
            changes: tokio::sync::Mutex::default(),
            last: Mutex::default(),
        }
    }

    fn events(&self) -> Events {
        let filters = HashMap::from([("type".to_owned(), vec!["config".to_owned()])]);
        let options = EventsOptions { filters: Some(filters), ..EventsOptions::default() };
        Box::pin(self.docker.events(Some(options)).map(|event| event.map(drop).map_err(drop)))
    }
}

fn failed(act: &str, error: &Trouble) -> Error {
    let subject = "store in the Swarm";
    let message = format!("cannot {act}");
    match error {
        Trouble::DockerResponseServerError { status_code, message: said } => {
            // What a manager answers while leaders change leaves it open whether the request went through.
            let open = *status_code >= 500;
            let kind = if open { Kind::Unavailable } else { Kind::Internal };
            Error::new(kind, subject, message).cause(said.trim()).retry(open)
        }
        other => Error::new(Kind::Unavailable, subject, message).cause(other).retry(true),
    }
}

fn is_status(error: &Trouble, status: u16) -> bool {
    matches!(error, Trouble::DockerResponseServerError { status_code, .. } if *status_code == status)
}

#[async_trait]
impl Configs for SwarmConfigs {
    async fn create(&self, name: &str, labels: &BTreeMap<String, String>, data: &[u8]) -> Result<bool> {
        let spec = ConfigSpec {
            name: Some(name.to_owned()),
            labels: Some(labels.clone().into_iter().collect()),
            data: Some(base64::engine::general_purpose::STANDARD.encode(data)),
            ..ConfigSpec::default()
        };
        match self.docker.create_config(spec).await {
            Ok(_) => Ok(true),
            Err(error) if is_status(&error, 409) => Ok(false),
            Err(error) => Err(failed("write to it", &error)),
        }
    }

    async fn read(&self, name: &str) -> Result<Option<Config>> {
        let found = match self.docker.inspect_config(name).await {
            Ok(found) => found,
            Err(error) if is_status(&error, 404) => return Ok(None),
            Err(error) => return Err(failed("read it", &error)),
        };
        let spec = found.spec.unwrap_or_default();
        let index = found.version.and_then(|version| version.index).unwrap_or_default();
        *self.last.lock().unwrap_or_else(PoisonError::into_inner) = Some((index, spec.clone()));
        let data = base64::engine::general_purpose::STANDARD
            .decode(spec.data.unwrap_or_default())
            .map_err(|error| Error::new(Kind::Corrupt, format!("config {name}"), "is damaged").cause(error))?;
        Ok(Some(Config { index, labels: spec.labels.unwrap_or_default().into_iter().collect(), data }))
    }

    async fn update(&self, name: &str, index: u64, labels: &BTreeMap<String, String>) -> Result<bool> {
        let known = {
            let last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
            last.clone().filter(|(at, spec)| *at == index && spec.name.as_deref() == Some(name)).map(|(_, spec)| spec)
        };
        let mut spec = match known {
            Some(spec) => spec,
            None => {
                let found = self.docker.inspect_config(name).await.map_err(|error| failed("read it", &error))?;
                if found.version.and_then(|version| version.index) != Some(index) {
                    return Ok(false);
                }
                found.spec.unwrap_or_default()
            }
        };
        spec.labels = Some(labels.clone().into_iter().collect());
        let options = UpdateConfigOptions { version: i64::try_from(index).unwrap_or_default() };
        match self.docker.update_config(name, spec, options).await {
            Ok(()) => Ok(true),
            Err(Trouble::DockerResponseServerError { message, .. }) if message.contains("out of sequence") => Ok(false),
            Err(error) => Err(failed("write to it", &error)),
        }
    }

    async fn remove(&self, name: &str) -> Result<()> {
        match self.docker.delete_config(name).await {
            Ok(()) => Ok(()),
            Err(error) if is_status(&error, 404) => Ok(()),
            Err(error) => Err(failed("clear it up", &error)),
        }
    }

    async fn names(&self) -> Result<Vec<String>> {
        let filters = HashMap::from([("label".to_owned(), vec![format!("{STORE}={}", self.cluster)])]);
        let listed = self.docker.list_configs(Some(ListConfigsOptions { filters: Some(filters) })).await;
        let listed = listed.map_err(|error| failed("list it", &error))?;
        Ok(listed.into_iter().filter_map(|config| config.spec?.name).collect())
    }

    async fn changed(&self) {
        let mut stream = self.changes.lock().await;
        match stream.get_or_insert_with(|| self.events()).next().await {
            Some(Ok(())) => {}
            // Opened again with the next look.
            _ => {
                *stream = None;
                std::future::pending::<()>().await;
            }
        }
    }
}
