//! The registrator: every container of a host, whoever started it, as it is to be found in the catalogue. It follows Docker's
//! events in their order, begins anew where a stream ends, and takes out what is told to end when it is told so, not when it has.

mod names;

pub use self::names::{OwnWords, own_words};

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Duration;

use bollard::Docker;
use bollard::models::{ContainerInspectResponse, EventMessage};
use bollard::query_parameters::{EventsOptions, ListContainersOptions};
use futures_util::StreamExt;
use serde::{Deserialize, Serialize};
use tokio::sync::watch;
use tokio::time::Instant;

use super::docker::{Address, container, trouble};
use crate::model::catalog::{CatalogCheck, Instance};
use crate::model::{Error, Result};

/// The wait before a Docker Engine that does not answer is asked again.
const AGAIN: Duration = Duration::from_millis(500);
/// How long one container may take to be looked at.
const LOOK: Duration = Duration::from_secs(2);
/// How often all is looked through, whatever events say.
const RESYNC: Duration = Duration::from_secs(60);
/// How long a container has to end that was told to; then it is there again. Whoever stops it may give it minutes.
const SURVIVED: Duration = Duration::from_secs(600);
/// How soon what did not answer, or was sent a signal that may be one to end by, is looked at again.
const SOON: Duration = Duration::from_secs(1);
/// How often that is done before the rest is told without it.
const PATIENCE: usize = 15;
/// Containers that are looked at together.
const TOGETHER: usize = 8;

/// Where containers are reached.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Where {
    /// At their host's address, by the ports that they publish.
    Host,
    /// At their own address, on a network of this name or on the one that they were made in.
    Inside(Option<String>),
}

/// Which containers are registered, and how, as an owner of hosts says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Wanted {
    /// Where they are reached; none: they are not registered.
    pub at: Option<Where>,
    /// Only what says its name.
    pub explicit: bool,
    /// Tags that all get.
    pub tags: Vec<String>,
}

impl Default for Wanted {
    fn default() -> Self {
        Wanted { at: Some(Where::Host), explicit: false, tags: Vec::new() }
    }
}

impl Wanted {
    /// On a host; `cluster` is whose replicas have names of their own. Nothing where none are registered.
    pub fn on(&self, hostname: &str, address: Option<std::net::IpAddr>, cluster: &str) -> Option<Rules> {
        Some(Rules {
            at: self.at.clone()?,
            hostname: hostname.to_owned(),
            address: address.map_or_else(|| "127.0.0.1".to_owned(), |address| address.to_string()),
            cluster: cluster.to_owned(),
            explicit: self.explicit,
            tags: self.tags.clone(),
        })
    }
}

impl std::str::FromStr for Where {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        match text.split_once(':') {
            None if text == "host" => Ok(Where::Host),
            None if text == "internal" => Ok(Where::Inside(None)),
            Some(("internal", network)) if !network.is_empty() => Ok(Where::Inside(Some(network.to_owned()))),
            _ => Err(Error::invalid(format!("registrator {text:.60?}"), "is no place where containers are reached")
                .help("write host, internal, internal:NETWORK or off")),
        }
    }
}

/// How containers of one host are registered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rules {
    /// Where they are reached.
    pub at: Where,
    /// The host's name, which is part of ids.
    pub hostname: String,
    /// The host's address, as others reach it.
    pub address: String,
    /// The cluster whose replicas are not registered: they have names of their own.
    pub cluster: String,
    /// Only what says its name.
    pub explicit: bool,
    /// Tags that all get.
    pub tags: Vec<String>,
}

/// What is registered of a container.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Registered {
    /// The instance.
    pub instance: Instance,
    /// Its checks.
    pub checks: Vec<CatalogCheck>,
}

/// All of a host, by the container's id.
pub type Containers = Arc<BTreeMap<String, Vec<Registered>>>;

/// What has changed on a host.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Changed {
    /// Whether what is not named is gone.
    pub whole: bool,
    /// Containers as they are.
    pub put: Vec<(String, Vec<Registered>)>,
    /// Containers that are gone.
    pub gone: Vec<String>,
}

/// What leads from one state to another; from none: all of it.
pub fn changed(before: Option<&Containers>, now: &Containers) -> Changed {
    let Some(before) = before else {
        let put = now.iter().map(|(id, all)| (id.clone(), all.clone())).collect();
        return Changed { whole: true, put, gone: Vec::new() };
    };
    let put = now.iter().filter(|(id, all)| before.get(*id) != Some(all));
    let gone = before.keys().filter(|id| !now.contains_key(*id));
    Changed {
        whole: false,
        put: put.map(|(id, all)| (id.clone(), all.clone())).collect(),
        gone: gone.cloned().collect(),
    }
}

/// Looks at a host's containers for as long as somebody wants to know.
pub struct Registrator {
    address: Address,
    rules: Rules,
    told: watch::Sender<Option<Containers>>,
    // Those that were told to end, and when they are looked at again.
    ending: HashMap<String, Instant>,
    // Others that are looked at again, and when.
    again: HashMap<String, Instant>,
    // What was said in the log already.
    complaints: BTreeSet<String>,
}

impl Registrator {
    /// Begins; what is registered, once it is known, and as it changes. Ends when nobody listens any more.
    pub fn spawn(address: Address, rules: Rules) -> watch::Receiver<Option<Containers>> {
        let (told, containers) = watch::channel(None);
        tokio::spawn(async move {
            loop {
                let (ending, again) = (HashMap::new(), HashMap::new());
                let (address, rules, told) = (address.clone(), rules.clone(), told.clone());
                let registrator = Registrator { address, rules, told, ending, again, complaints: BTreeSet::new() };
                match tokio::spawn(registrator.follow()).await {
                    Ok(()) => return,
                    Err(error) => tracing::error!(%error, "the registrator broke off; it begins anew"),
                }
                tokio::time::sleep(SOON).await;
            }
        });
        containers
    }

    async fn follow(mut self) {
        let (mut said, told) = (false, self.told.clone());
        loop {
            let listened = tokio::select! {
                result = self.listen() => result,
                () = told.closed() => return,
            };
            match listened {
                Ok(()) => said = false,
                Err(error) if !said => {
                    tracing::warn!(%error, "containers are not followed for now; what is known of them stays");
                    said = true;
                }
                Err(_) => {}
            }
            tokio::time::sleep(AGAIN).await;
        }
    }

    async fn listen(&mut self) -> Result<()> {
        let failed = |act: &str, error| trouble::error("containers", act, &error);
        let docker = self.address.client().await?.negotiate_version().await.map_err(|e| failed("follow them", e))?;
        let info = docker.info().await.map_err(|error| failed("follow them", error))?;
        if let Some(name) = info.name.clone().filter(|name| !name.is_empty()) {
            self.rules.hostname = name;
        }
        // From before the list on: what happens meanwhile is heard behind it.
        let since = container::since(&info);
        self.take_stock(&docker).await?;
        let kinds = vec!["container".to_owned(), "network".to_owned()];
        let options = EventsOptions { since, filters: Some(HashMap::from([("type".to_owned(), kinds)])), until: None };
        let mut events = Box::pin(docker.events(Some(options)));
        let mut resync = Instant::now() + RESYNC;
        loop {
            let next = self.ending.values().chain(self.again.values()).min().copied().unwrap_or(resync).min(resync);
            tokio::select! {
                event = events.next() => match event {
                    Some(event) => self.take_in(&docker, event.map_err(|error| failed("follow them", error))?).await,
                    None => return Ok(()),
                },
                () = tokio::time::sleep_until(next) => {
                    let now = Instant::now();
                    let due = self.ending.iter().chain(&self.again).filter(|(_, until)| **until <= now);
                    let due: BTreeSet<String> = due.map(|(id, _)| id.clone()).collect();
                    for id in due {
                        if self.ending.get(&id).is_some_and(|until| *until <= now) {
                            self.ending.remove(&id);
                        }
                        self.again.remove(&id);
                        self.look_at(&docker, &id).await;
                    }
                    if now >= resync {
                        resync = now + RESYNC;
                        self.take_stock(&docker).await?;
                    }
                }
            }
        }
    }

    // All that run. What was known before and is as it was stays as it is.
    async fn take_stock(&mut self, docker: &Docker) -> Result<()> {
        let listed = docker.list_containers(Some(ListContainersOptions::default())).await;
        let listed = listed.map_err(|error| trouble::error("containers", "list them", &error))?;
        let ids: BTreeSet<String> = listed.into_iter().filter_map(|summary| summary.id).collect();
        self.ending.retain(|id, _| ids.contains(id));
        let looks = ids.into_iter().filter(|id| !self.ending.contains_key(id));
        let mut looks = futures_util::stream::iter(looks.map(|id| async {
            let found = inspect(docker, &id).await;
            (id, found)
        }))
        .buffered(TOGETHER);
        let before = self.told.borrow().clone();
        let (mut now, mut silent) = (BTreeMap::new(), Vec::new());
        while let Some((id, found)) = looks.next().await {
            let all = match found {
                Looked::Is(inspected) => names::registered(&inspected, &self.rules, &mut self.complaints),
                Looked::Gone => Vec::new(),
                // One that hangs stays as it was.
                Looked::Silent => {
                    silent.push(id.clone());
                    before.as_ref().and_then(|before| before.get(&id)).cloned().unwrap_or_default()
                }
            };
            if !all.is_empty() {
                now.insert(id, all);
            }
        }
        drop(looks);
        // What is not named in the first word would be taken for gone.
        let mut tries = if before.is_none() { PATIENCE } else { 0 };
        while !silent.is_empty() && tries > 0 {
            tries -= 1;
            tokio::time::sleep(SOON).await;
            for id in std::mem::take(&mut silent) {
                match inspect(docker, &id).await {
                    Looked::Is(inspected) => {
                        drop(now.insert(id, names::registered(&inspected, &self.rules, &mut self.complaints)))
                    }
                    Looked::Gone => {}
                    Looked::Silent => silent.push(id),
                }
            }
        }
        now.retain(|_, all| !all.is_empty());
        self.again.extend(silent.into_iter().map(|id| (id, Instant::now() + SOON)));
        self.told.send_if_modified(|told| {
            let is_new = told.as_deref() != Some(&now);
            *told = Some(Arc::new(now));
            is_new
        });
        Ok(())
    }

    fn put(&self, id: &str, all: Vec<Registered>) {
        self.told.send_if_modified(|told| {
            let known = told.get_or_insert_default();
            if known.get(id).map_or(&[][..], Vec::as_slice) == all.as_slice() {
                return false;
            }
            let known = Arc::make_mut(known);
            match all.is_empty() {
                true => known.remove(id),
                false => known.insert(id.to_owned(), all),
            };
            true
        });
    }

    async fn look_at(&mut self, docker: &Docker, id: &str) {
        if self.ending.contains_key(id) {
            return;
        }
        match inspect(docker, id).await {
            Looked::Is(inspected) => {
                let all = names::registered(&inspected, &self.rules, &mut self.complaints);
                self.put(id, all);
            }
            Looked::Gone => self.put(id, Vec::new()),
            Looked::Silent => drop(self.again.insert(id.to_owned(), Instant::now() + SOON)),
        }
    }

    async fn take_in(&mut self, docker: &Docker, event: EventMessage) {
        let (Some(action), Some(actor)) = (event.action, event.actor) else { return };
        let attributes = actor.attributes.unwrap_or_default();
        let is_network = event.typ == Some(bollard::models::EventMessageTypeEnum::NETWORK);
        let id = if is_network { attributes.get("container").cloned() } else { actor.id };
        let Some(id) = id else { return };
        match action.split(':').next().unwrap_or_default() {
            "connect" | "disconnect" if is_network => self.look_at(docker, &id).await,
            _ if is_network => {}
            "start" | "restart" => {
                self.ending.remove(&id);
                self.look_at(docker, &id).await;
            }
            "kill" => {
                let signal = attributes.get("signal").map(String::as_str).unwrap_or_default();
                if self.ends(docker, &id, signal).await {
                    self.ending.insert(id.clone(), Instant::now() + SURVIVED);
                    self.put(&id, Vec::new());
                } else {
                    self.again.insert(id, Instant::now() + SOON);
                }
            }
            "die" | "destroy" | "stop" => {
                self.ending.remove(&id);
                self.again.remove(&id);
                self.put(&id, Vec::new());
            }
            // It may be one of several processes that the kernel has ended.
            "oom" => drop(self.again.insert(id, Instant::now() + SOON)),
            "pause" => self.put(&id, Vec::new()),
            "unpause" | "health_status" | "rename" => self.look_at(docker, &id).await,
            _ => {}
        }
    }

    // Whether a signal is one to end by: that of `docker stop`, or the container's own. A reload (HUP) is not, nor what makes
    // some write down how they are (QUIT).
    async fn ends(&self, docker: &Docker, id: &str, signal: &str) -> bool {
        // Every moment counts, and it may not have been told of.
        if matches!(signal, "9" | "15") {
            return true;
        }
        let known = self.told.borrow().as_ref().is_some_and(|told| told.contains_key(id));
        if !known {
            return false;
        }
        let Looked::Is(inspected) = inspect(docker, id).await else { return false };
        let own = inspected.config.and_then(|config| config.stop_signal).unwrap_or_default();
        let own = own.trim_start_matches("SIG");
        let named = nix::sys::signal::Signal::iterator()
            .find(|known| (*known as i32).to_string() == signal)
            .is_some_and(|known| known.as_str().trim_start_matches("SIG") == own);
        named || own == signal
    }
}

enum Looked {
    Is(Box<ContainerInspectResponse>),
    Gone,
    Silent,
}

async fn inspect(docker: &Docker, id: &str) -> Looked {
    match tokio::time::timeout(LOOK, docker.inspect_container(id, None)).await {
        Ok(Ok(inspected)) => Looked::Is(Box::new(inspected)),
        Ok(Err(error)) if trouble::is_status(&error, 404) => Looked::Gone,
        _ => Looked::Silent,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_has_changed_is_told() {
        let registered = |id: &str| {
            let instance = Instance { id: id.into(), service: id.into(), ..Instance::default() };
            vec![Registered { instance, checks: Vec::new() }]
        };
        let of = |all: &[(&str, &str)]| -> Containers {
            Arc::new(all.iter().map(|(id, name)| ((*id).to_owned(), registered(name))).collect())
        };
        let (first, second) = (of(&[("a", "1"), ("b", "2")]), of(&[("b", "3"), ("c", "4")]));
        let begin = changed(None, &first);
        assert!(begin.whole && begin.put.len() == 2);
        let next = changed(Some(&first), &second);
        assert_eq!(next.put.iter().map(|(id, _)| id.as_str()).collect::<Vec<_>>(), ["b", "c"]);
        assert_eq!((next.gone, next.whole), (vec!["a".to_owned()], false));
    }
}
