//! Making a Swarm, joining and leaving it, and the tokens for that: what the local Docker Engine does for its host.

use std::net::IpAddr;

use bollard::Docker;
use bollard::models::{LocalNodeState, SwarmInitRequest, SwarmJoinRequest, SwarmSpec};
use bollard::query_parameters::{LeaveSwarmOptions, UpdateSwarmOptions};

use crate::engines::docker::{Address, raw, trouble};
use crate::model::node::Role;
use crate::model::swarm::{SwarmAsk, SwarmState};
use crate::model::{Error, Kind, Result};

/// How often a change of the Swarm is tried when somebody else changed it in between.
const ATTEMPTS: usize = 10;

/// This host's place in a Swarm.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Membership {
    /// The node's id.
    pub node: String,
    /// Its address, as the others know it.
    pub address: Option<IpAddr>,
    /// Whether it is a manager.
    pub manager: bool,
    /// Where managers listen for nodes that join, `address:port`.
    pub managers: Vec<String>,
}

/// How a Swarm is made or joined: `docker swarm init`'s and `join`'s words.
#[derive(Debug, Clone, Default)]
pub struct Terms {
    /// Only as this.
    pub only: Option<Role>,
    /// The address that others are told.
    pub advertise_addr: Option<String>,
    /// Where managers listen; all interfaces, port 2377, where none is given.
    pub listen_addr: Option<String>,
    /// The address for containers' traffic.
    pub data_path_addr: Option<String>,
}

/// The Docker Engine of this host.
pub struct LocalSwarm {
    docker: Docker,
    address: Address,
}

impl LocalSwarm {
    /// Connects.
    pub async fn open(address: &Address) -> Result<Self> {
        let docker = address.client().await?.negotiate_version().await.map_err(|error| {
            trouble::error(format!("Docker Engine {}", address.url), "connect to it", &error)
                .help("start the Docker Engine of this host, or name it with --docker-host")
        })?;
        Ok(LocalSwarm { docker, address: address.clone() })
    }

    /// One that is connected already.
    pub fn with(docker: Docker, address: Address) -> Self {
        LocalSwarm { docker, address }
    }

    fn failed(&self, act: &str, error: &bollard::errors::Error) -> Error {
        trouble::error(format!("Docker Engine {}", self.address.url), act, error)
    }

    /// This host's place in a Swarm, if it is in one.
    pub async fn membership(&self) -> Result<Option<Membership>> {
        let info = self.docker.info().await.map_err(|error| self.failed("ask it", &error))?;
        let swarm = info.swarm.unwrap_or_default();
        let locked = || {
            Error::new(Kind::Conflict, format!("Docker Engine {}", self.address.url), "is a manager of a locked Swarm")
                .help("unlock it with its key: neap unlock")
        };
        match swarm.local_node_state {
            Some(LocalNodeState::LOCKED) => return Err(locked()),
            Some(LocalNodeState::ACTIVE | LocalNodeState::PENDING | LocalNodeState::ERROR) => {}
            _ => return Ok(None),
        }
        let Some(node) = swarm.node_id.filter(|id| !id.is_empty()) else { return Ok(None) };
        Ok(Some(Membership {
            node,
            address: swarm.node_addr.as_deref().and_then(|address| address.parse().ok()),
            manager: swarm.control_available == Some(true),
            managers: swarm.remote_managers.into_iter().flatten().filter_map(|manager| manager.addr).collect(),
        }))
    }

    /// Makes a Swarm with this host as its manager; returns the node's id.
    pub async fn init(&self, terms: &Terms) -> Result<String> {
        let request = SwarmInitRequest {
            listen_addr: Some(terms.listen_addr.clone().unwrap_or_else(|| "0.0.0.0:2377".into())),
            advertise_addr: terms.advertise_addr.clone(),
            data_path_addr: terms.data_path_addr.clone(),
            ..SwarmInitRequest::default()
        };
        self.docker.init_swarm(request).await.map_err(|error| {
            let said = trouble::said(&error);
            let error = self.failed("make a Swarm", &error);
            let several = said.contains("could not choose an IP address") || said.contains("multiple addresses");
            if several {
                error.help("say which address the other hosts reach: --advertise-addr ADDRESS")
            } else {
                error
            }
        })
    }

    /// Joins the Swarm behind `managers`, and waits until this host is one of its nodes.
    pub async fn join(&self, token: &str, managers: &[String], terms: &Terms) -> Result<Membership> {
        let request = SwarmJoinRequest {
            listen_addr: Some(terms.listen_addr.clone().unwrap_or_else(|| "0.0.0.0:2377".into())),
            advertise_addr: terms.advertise_addr.clone(),
            data_path_addr: terms.data_path_addr.clone(),
            remote_addrs: Some(managers.to_vec()),
            join_token: Some(token.to_owned()),
        };
        let joined = self.docker.join_swarm(request).await;
        joined.map_err(|error| {
            self.failed("join the Swarm", &error).help(format!(
                "the managers listen at {}; ports 2377 and 7946 (tcp, udp) and 4789 (udp) have to be open",
                managers.join(", ")
            ))
        })?;
        self.membership().await?.ok_or_else(|| {
            Error::new(
                Kind::Unavailable,
                format!("Docker Engine {}", self.address.url),
                "joined the Swarm, and is not in it",
            )
        })
    }

    /// Leaves the Swarm; a manager only with `force`.
    pub async fn leave(&self, force: bool) -> Result<()> {
        self.docker.leave_swarm(Some(LeaveSwarmOptions { force })).await.map_err(|error| {
            let error = self.failed("leave the Swarm", &error);
            let manager = error.cause.as_deref().is_some_and(|cause| cause.contains("manager"));
            if manager {
                error.help("make it a worker first (neap node demote NODE), or lose what only it knows: --force")
            } else {
                error
            }
        })
    }

    /// Swarm's own token with which a node of that role joins.
    pub async fn token(&self, role: Role) -> Result<String> {
        let swarm = self.docker.inspect_swarm().await.map_err(|error| self.failed("inspect the Swarm", &error))?;
        let tokens = swarm.join_tokens.unwrap_or_default();
        let token = if role == Role::Manager { tokens.manager } else { tokens.worker };
        token
            .filter(|token| !token.is_empty())
            .ok_or_else(|| Error::new(Kind::Unavailable, "Swarm", format!("tells no token for a {}", role.as_str())))
    }

    /// Makes Swarm's own token for a role anew: the one before lets nobody in any more.
    pub async fn rotate_token(&self, role: Role) -> Result<()> {
        self.update(UpdateSwarmOptions {
            rotate_worker_token: role == Role::Worker,
            rotate_manager_token: role == Role::Manager,
            ..UpdateSwarmOptions::default()
        })
        .await
    }

    /// Says how the Swarm is, and changes it first where that is asked.
    pub async fn state(&self, ask: SwarmAsk) -> Result<SwarmState> {
        match ask {
            SwarmAsk::Show {} | SwarmAsk::UnlockKey {} => {}
            SwarmAsk::RotateCa {} => {
                self.change(UpdateSwarmOptions::default(), |spec| {
                    let ca = spec.ca_config.get_or_insert_default();
                    // A certificate of somebody's own making would be kept otherwise.
                    (ca.signing_ca_cert, ca.signing_ca_key) = (None, None);
                    ca.force_rotate = Some(ca.force_rotate.unwrap_or_default() + 1);
                })
                .await?;
            }
            SwarmAsk::Autolock { on } => {
                // A key that could not be told would be lost.
                self.raw("GET", "/swarm/unlockkey", None).await?;
                self.change(UpdateSwarmOptions::default(), |spec| {
                    spec.encryption_config.get_or_insert_default().auto_lock_managers = Some(on);
                })
                .await?;
            }
            SwarmAsk::RotateUnlockKey {} => {
                self.raw("GET", "/swarm/unlockkey", None).await?;
                let options = UpdateSwarmOptions { rotate_manager_unlock_key: true, ..UpdateSwarmOptions::default() };
                self.change(options, |_| {}).await?;
            }
        }
        let swarm = self.docker.inspect_swarm().await.map_err(|error| self.failed("inspect the Swarm", &error))?;
        let mut state = SwarmState {
            autolock: swarm.spec.and_then(|spec| spec.encryption_config?.auto_lock_managers) == Some(true),
            ca_certificate: swarm.tls_info.and_then(|info| info.trust_root).unwrap_or_default(),
            ca_rotating: swarm.root_rotation_in_progress == Some(true),
            unlock_key: None,
        };
        let with_key = !matches!(ask, SwarmAsk::Show {} | SwarmAsk::RotateCa {});
        if with_key && state.autolock {
            let told = self.raw("GET", "/swarm/unlockkey", None).await?;
            let key = told.get("UnlockKey").and_then(serde_json::Value::as_str).unwrap_or_default();
            state.unlock_key = Some(key.to_owned()).filter(|key| !key.is_empty());
        }
        Ok(state)
    }

    /// Unlocks this host's manager, which has started again.
    pub async fn unlock(&self, key: &str) -> Result<()> {
        let info = self.docker.info().await.map_err(|error| self.failed("ask it", &error))?;
        let locked = info.swarm.and_then(|swarm| swarm.local_node_state) == Some(LocalNodeState::LOCKED);
        if !locked {
            let subject = format!("Docker Engine {}", self.address.url);
            return Err(Error::new(Kind::Conflict, subject, "is not locked"));
        }
        let body = serde_json::json!({ "UnlockKey": key });
        self.raw("POST", "/swarm/unlock", Some(&body)).await.map(drop).map_err(|error| {
            let wrong = error.cause.as_deref().is_some_and(|cause| cause.contains("key"));
            match wrong {
                true => Error::invalid("unlock key", "does not fit").cause(error.cause.unwrap_or_default()),
                false => error,
            }
        })
    }

    async fn raw(&self, method: &str, path: &str, body: Option<&serde_json::Value>) -> Result<serde_json::Value> {
        raw::call(&self.address, &self.docker, method, path, body).await?.ok_or_else(|| {
            let subject = format!("Docker Engine {}", self.address.url);
            Error::new(Kind::Unsupported, subject, "can be asked that on its own host only")
                .help("use its socket: --docker-host unix:///var/run/docker.sock")
        })
    }

    async fn update(&self, options: UpdateSwarmOptions) -> Result<()> {
        self.change(options, |_| {}).await
    }

    async fn change(&self, options: UpdateSwarmOptions, change: impl Fn(&mut SwarmSpec)) -> Result<()> {
        for _ in 0..ATTEMPTS {
            let swarm = self.docker.inspect_swarm().await.map_err(|error| self.failed("inspect the Swarm", &error))?;
            let version = swarm.version.and_then(|version| version.index).unwrap_or_default();
            let options = UpdateSwarmOptions { version: i64::try_from(version).unwrap_or_default(), ..options.clone() };
            let mut spec = swarm.spec.unwrap_or_default();
            change(&mut spec);
            match self.docker.update_swarm(spec, options).await {
                Ok(()) => return Ok(()),
                Err(error) if trouble::said(&error).contains("out of sequence") => {}
                Err(error) => return Err(self.failed("change the Swarm", &error)),
            }
        }
        Err(Error::new(Kind::Conflict, "Swarm", "is changed by others all the time").retry(true))
    }
}
